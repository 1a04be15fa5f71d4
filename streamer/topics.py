"""The topics that the daemon publishes on. Pure functions.

streamer/<instance>/status          online | offline, retained
streamer/<instance>/alarm/<key>     events
streamer/<instance>/series/<key>    state, retained
streamer/<instance>/device/<name>   state, retained, for Home Assistant
streamer/<instance>/command/result  what has become of a command

And the one that it may listen to: streamer/<instance>/command.
"""

from __future__ import annotations

import hashlib
import re

ROOT = "streamer"
LONGEST_BYTES = 65_535  # the length field of an MQTT string has two bytes
MOST_LEVELS = 128  # EMQX's default; mosquitto takes 200

# A series key may hold what a topic may not: wildcards and NUL; and what brokers close the connection for: control
# characters, lone surrogates, non-characters (MQTT 5, section 1.5.4). "%" is encoded so that decoding is unique.
_FORBIDDEN = re.compile(
    "[%#+\\x00-\\x1f\\x7f-\\x9f\\ud800-\\udfff\\ufdd0-\\ufdef"
    + "".join(f"{chr(plane << 16 | 0xFFFE)}{chr(plane << 16 | 0xFFFF)}" for plane in range(17))
    + "]"
)


def own_prefix(instance: str) -> str:
    """What every topic of this instance starts with."""
    return f"{ROOT}/{instance}/"


def all_outputs() -> tuple[str, ...]:
    """Globs of what instances say of series, this one and others: read as sensors, two that hear each other never end.

    One would judge the other's scores, the other the verdicts on them, under ever longer names.
    """
    kinds = ("status", "alarm/#", "series/#", "device/#", "command/#")
    return tuple(f"{ROOT}/+/{kind}" for kind in kinds)


def status_topic(instance: str) -> str:
    """Where the instance says that it is online; the broker says there that it is not."""
    return own_prefix(instance) + "status"


def command_topic(instance: str) -> str:
    """Where commands are published, if `mqtt.commands` is on."""
    return own_prefix(instance) + "command"


def result_topic(instance: str) -> str:
    """Where the instance says what has become of them."""
    return command_topic(instance) + "/result"


def output_topic(instance: str, kind: str, key: str) -> str:
    """The topic of one series' output; `kind` is alarm, series or device.

    A topic that a broker would not take, too long or too deep, ends in the key's SHA-256 instead of the key.
    """
    start = f"{own_prefix(instance)}{kind}/"
    topic = start + _FORBIDDEN.sub(_percent, key)
    if len(topic.encode()) <= LONGEST_BYTES and topic.count("/") < MOST_LEVELS:
        return topic
    return start + hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def is_own_output(topic: str, instance: str) -> bool:
    """True for what this instance has published itself: never an input."""
    return topic.startswith(own_prefix(instance))


def is_matched(topic_filter: str, topic: str) -> bool:
    """Whether who has subscribed to the filter is sent what is published on the topic (MQTT 5, section 4.7)."""
    levels, wanted = topic.split("/"), topic_filter.split("/")
    if topic.startswith("$") and wanted[0] in ("+", "#"):
        return False
    if wanted[-1] == "#":
        wanted = wanted[:-1]
        if len(levels) < len(wanted):
            return False
        levels = levels[: len(wanted)]
    return len(levels) == len(wanted) and all(want in ("+", level) for want, level in zip(wanted, levels, strict=True))


def _percent(match: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in match[0].encode("utf-8", "surrogatepass"))
