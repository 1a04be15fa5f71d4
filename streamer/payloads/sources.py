"""What is known of each topic, kept so that a message costs one look-up, in bounded memory whatever is published.

Two generations of entries: when the young one is full it becomes the old one, and the old one is forgotten. What is
in use moves back to the young one, so that a flood of new topics pushes out itself and never those that publish on.
"""

from __future__ import annotations

import re
from datetime import tzinfo

from streamer.payloads.names import MAX_PATH_BYTES, is_identifier, is_stamp, is_topic, segment
from streamer.payloads.rules import CompiledRule
from streamer.payloads.times import TIME_RANK

_ENTRY_BYTES = 250  # a key's string object, its share of a dict, the name; by measurement
_SOURCE_BYTES = 700  # a Source, its root Node and their dicts; by measurement


class Node:
    """One object's place in the payloads of a topic, and the names that it has shown there."""

    __slots__ = ("children", "keys", "prefix", "stamps")

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        """`topic#` and the path down to this object with its dot"""
        self.keys: dict[str, str] = {}
        """name -> series key; empty for a field that is never a series"""
        self.stamps: dict[str, str] = {}
        """the same for names of times, whose value decides whether it is a series"""
        self.children: dict[str, Node] = {}


class Source:
    """One topic: whether it is wanted, which rule holds, and its fields so far."""

    __slots__ = ("cached_bytes", "heads", "is_flat", "is_valid", "is_wanted", "levels", "root", "rule", "topic", "zone")

    def __init__(self, topic: str, zone: tzinfo) -> None:
        self.topic = topic
        self.is_valid = True
        self.is_wanted = True
        self.rule: CompiledRule | None = None
        self.levels: dict[str, str] = {}
        self.zone = zone
        self.root = Node(topic + "#")
        self.heads: dict[str, Node] = {}
        """measurement and tags, as the format writes them -> the place of their fields"""
        self.is_flat = True
        """its objects have held nothing but leaves so far, and no rule holds: the short way is worth trying"""
        self.cached_bytes = _SOURCE_BYTES + 3 * len(topic)


class Sources:
    """Topics -> sources, for one thread."""

    def __init__(
        self,
        *,
        include: re.Pattern[str] | None,
        exclude: re.Pattern[str] | None,
        own_prefix: str,
        rules: tuple[CompiledRule, ...],
        zone: tzinfo,
        cache_bytes: int,
    ) -> None:
        self._include = include
        self._exclude = exclude
        self._own_prefix = own_prefix
        self._rules = rules
        self._zone = zone
        self._generation_bytes = cache_bytes // 2
        self._topic_bytes = cache_bytes // 16  # one topic cannot push out all others
        self.young: dict[str, Source] = {}
        """for a look-up without a call; `get` finds what is missing here"""
        self._old: dict[str, Source] = {}
        self._young_bytes = 0

    @property
    def cached_bytes(self) -> int:
        """About how much memory the known topics take."""
        return self._young_bytes + sum(source.cached_bytes for source in self._old.values())

    def get(self, topic: str) -> Source:
        """The source of a topic, known or new."""
        source = self.young.get(topic) or self._old.pop(topic, None) or self._make(topic)
        if topic not in self.young and source.is_valid:
            self._charge(source.cached_bytes)
            self.young[topic] = source
        return source

    def tagged(self, source: Source, written: str, head: str) -> Node:
        """The place of the fields of a measurement with tags, remembered as what it is `written`."""
        node = Node(f"{source.root.prefix}{head}.")
        if len(node.prefix) <= len(source.topic) + 2 * MAX_PATH_BYTES:
            self._account(source, len(node.prefix) + len(written))
            source.heads[written] = node
        return node

    def child(self, source: Source, node: Node, name: str) -> Node:
        """The place of an object below another one."""
        child = node.children.get(name)
        if child is None:
            child = Node(f"{node.prefix}{segment(name)}.")
            if len(child.prefix) <= len(source.topic) + 2 * MAX_PATH_BYTES:  # a longer path gives no series anyway
                self._account(source, 2 * len(child.prefix))
                node.children[name] = child
        return child

    def learn(self, source: Source, node: Node, name: str) -> str | None:
        """The key of a field that has not been seen: empty where it is never a series, None where it is too long."""
        key = node.prefix + segment(name)
        path = key[len(source.topic) + 1 :]
        if len(path.encode()) > MAX_PATH_BYTES:
            return None
        rule = source.rule
        if (is_identifier(name) and not (rule is not None and rule.names(path))) or (
            rule is not None and not rule.takes(path)
        ):
            key = ""
        self._account(source, len(key))
        (node.stamps if name in TIME_RANK or is_stamp(name) else node.keys)[name] = key
        return key

    def _account(self, source: Source, text_bytes: int) -> None:
        cost = _ENTRY_BYTES + 2 * text_bytes
        if source.cached_bytes > self._topic_bytes:  # names that change with every message: start afresh
            source.root = Node(source.topic + "#")
            source.heads = {}
            source.cached_bytes = _SOURCE_BYTES + 3 * len(source.topic)
        source.cached_bytes += cost
        self._charge(cost)

    def _charge(self, cost: int) -> None:
        self._young_bytes += cost
        if self._young_bytes > self._generation_bytes:
            self._old = self.young
            self.young = {}
            self._young_bytes = cost

    def _make(self, topic: str) -> Source:
        source = Source(topic, self._zone)
        source.is_valid = is_topic(topic)
        if not source.is_valid:  # not kept: hostile, and perhaps 64 KiB long
            return source
        source.is_wanted = not (
            (self._own_prefix != "" and topic.startswith(self._own_prefix))
            or (self._include is not None and self._include.fullmatch(topic) is None)
            or (self._exclude is not None and self._exclude.fullmatch(topic) is not None)
        )
        for rule in self._rules:
            match = rule.pattern.fullmatch(topic)
            if match is not None:
                source.rule = rule
                source.is_flat = False
                source.levels = match.groupdict()
                source.zone = rule.zone
                break
        return source
