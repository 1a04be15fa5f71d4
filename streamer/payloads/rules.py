"""What an operator says about some topics: names of their levels, device, format, fields, time."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, tzinfo
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from streamer.errors import SettingsError
from streamer.payloads.globs import compile_globs, compile_pattern
from streamer.payloads.names import segment, split_path

FORMATS = ("auto", "number", "json", "influx", "senml", "telegraf", "lorawan")

_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")


@dataclass(frozen=True, slots=True)
class Rule:
    """One table of `input.rules`, as it is written; the first whose pattern matches a topic holds for it."""

    pattern: str
    """topic levels, some with names: `plant/{line}/{device}/{metric...}`"""
    device: str = ""
    """template of the device: topics that give the same text are judged jointly; empty: each topic is a device"""
    format: str = "auto"
    """one of FORMATS"""
    include: tuple[str, ...] = ()
    """globs of field paths that become series; empty: all"""
    exclude: tuple[str, ...] = ()
    """globs of field paths that do not"""
    time_field: str = ""
    """path of the message's time; empty: found by name"""
    value_field: str = ""
    """path of the value, which may be a number in quotes, or of the object with the values; all else is left out"""
    time_zone: str = ""
    """IANA zone of times without one; empty: the general one"""


class CompiledRule:
    """A rule made ready for use. Raises SettingsError where it cannot be."""

    __slots__ = ("exclude", "format", "include", "pattern", "rule", "time_path", "value_name", "value_path", "zone")

    def __init__(self, rule: Rule, zone: tzinfo) -> None:
        self.rule = rule
        self.pattern = compile_pattern(rule.pattern)
        self.format = rule.format
        self.include = compile_globs(rule.include, ".")
        self.exclude = compile_globs(rule.exclude, ".")
        self.time_path = split_path(rule.time_field) if rule.time_field else ()
        self.value_path = split_path(rule.value_field) if rule.value_field else ()
        self.value_name = ".".join(map(segment, self.value_path))
        self.zone = zone_of(rule.time_zone) if rule.time_zone else zone
        if rule.format not in FORMATS:
            raise SettingsError(
                f"input.rules: the pattern {rule.pattern!r} has the format {rule.format!r}; "
                f"wanted: {', '.join(FORMATS)}"
            )
        if (self.time_path or self.value_path) and rule.format not in ("auto", "json"):
            raise SettingsError(
                f"input.rules: the pattern {rule.pattern!r} has time_field or value_field, which need the format json, "
                f"not {rule.format!r}"
            )
        unknown = sorted(set(_PLACEHOLDER.findall(rule.device)) - set(self.pattern.groupindex))
        if unknown:
            raise SettingsError(
                f"input.rules: device {rule.device!r} uses {', '.join(unknown)}; "
                f"the pattern {rule.pattern!r} names {', '.join(self.pattern.groupindex) or 'no level'}"
            )

    def device(self, levels: dict[str, str]) -> str | None:
        """The device that a topic with these levels belongs to, None where the rule leaves that to the topic."""
        if not self.rule.device:
            return None
        return _PLACEHOLDER.sub(lambda match: levels[match.group(1)], self.rule.device)

    def takes(self, path: str) -> bool:
        """Whether the rule lets a field become a series."""
        if self.exclude is not None and self.exclude.fullmatch(path) is not None:
            return False
        return self.include is None or self.include.fullmatch(path) is not None

    def names(self, path: str) -> bool:
        """Whether the rule asks for a field expressly, whatever its name."""
        return path == self.value_name or (self.include is not None and self.include.fullmatch(path) is not None)


def zone_of(name: str) -> tzinfo:
    """The zone of an IANA name. Raises SettingsError."""
    if name.upper() in ("UTC", "Z", "ETC/UTC"):
        return UTC  # needs no zone files, which slim images lack
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise SettingsError(
            f"time zone {name!r} is unknown here; wanted: an IANA name such as Europe/Berlin "
            "(a slim system needs the package tzdata), or UTC"
        ) from error
