"""What the broker says of itself in CONNACK (MQTT 5, section 3.2.2.3), held against what the daemon wants."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from streamer.doctor.findings import Case, Report

SMALL_PACKET_BYTES = 16_384  # an alarm event with eight channels has 2 to 10 KB, by the length of their names


@dataclass(frozen=True, slots=True)
class Granted:
    """The properties of CONNACK by their names; MQTT 3.1.1 has none."""

    protocol: str
    """5 | 3.1.1"""
    properties: Mapping[str, object]

    def number(self, name: str) -> int | None:
        """None where the broker does not say."""
        value = self.properties.get(name)
        return value if isinstance(value, int) else None


def judge(case: Case, granted: Granted, report: Report) -> None:
    """A finding on everything that is said there."""
    for check in (session_expiry, limits, features, keep_alive):
        check(case, granted, report)


def session_expiry(case: Case, granted: Granted, report: Report) -> None:
    asked = case.session_expiry_seconds
    given = granted.number("SessionExpiryInterval")
    if asked == 0:
        report.warn(
            "session expiry", "mqtt.session_expiry_seconds is 0: the broker keeps nothing while the daemon is away",
            "longer than the daemon's longest absence", "set mqtt.session_expiry_seconds",
        )  # fmt: skip
    elif granted.protocol != "5":
        report.unknown(
            "session expiry", "MQTT 3.1.1 cannot ask how long a session is kept",
            "see the broker's settings; mosquitto: persistent_client_expiration",
        )  # fmt: skip
    elif given is not None and given < asked:
        report.warn(
            "session expiry", f"{given} s granted", f"{asked} s (mqtt.session_expiry_seconds)",
            "raise the broker's limit, or keep the daemon's absences shorter",
        )  # fmt: skip
    else:
        report.ok("session expiry", f"{asked if given is None else given} s, as asked for")


def limits(case: Case, granted: Granted, report: Report) -> None:
    best = granted.number("MaximumQoS")
    wanted = max(1, case.qos)
    if best is not None and best < wanted:
        report.warn("maximum QoS", str(best), str(wanted), "let the broker allow it: only QoS 1 and 2 are acknowledged")
    elif case.qos == 0:
        report.warn(
            "maximum QoS", "mqtt.qos is 0: nothing is acknowledged, a crash loses what is on its way", "1",
            "set mqtt.qos = 1",
        )  # fmt: skip
    else:
        report.ok("maximum QoS", "2" if best is None else str(best))
    size = granted.number("MaximumPacketSize")
    if size is not None and size < SMALL_PACKET_BYTES:
        report.warn(
            "maximum packet", f"{size} bytes", f"{SMALL_PACKET_BYTES} bytes for an alarm with its channels",
            "raise the broker's limit; mosquitto: max_packet_size",
        )  # fmt: skip
    else:
        report.ok("maximum packet", "the broker names no limit" if size is None else f"{size} bytes")
    said = [
        f"{words} {value}"
        for words, name in (("receive maximum", "ReceiveMaximum"), ("topic alias maximum", "TopicAliasMaximum"))
        if (value := granted.number(name)) is not None
    ]
    report.ok("flow control", ", ".join(said) or "the broker names no limit")


def features(case: Case, granted: Granted, report: Report) -> None:
    if granted.number("RetainAvailable") == 0:
        report.warn(
            "retained messages", "not available", "available: status and open alarms are retained",
            "let the broker retain messages",
        )  # fmt: skip
    wild = [each for each in case.filters if "+" in each or "#" in each]
    if granted.number("WildcardSubscriptionAvailable") == 0 and wild:
        report.warn(
            "wildcards", "not available", f"available, for {', '.join(wild)}",
            "let the broker allow them, or name every topic in mqtt.subscribe",
        )  # fmt: skip
    shared = granted.number("SharedSubscriptionAvailable")
    if granted.protocol == "5":
        report.ok("shared subscriptions", f"{'not ' if shared == 0 else ''}available; the daemon uses none")


def keep_alive(case: Case, granted: Granted, report: Report) -> None:
    asked, given = case.access.keep_alive_seconds, granted.number("ServerKeepAlive")
    if given is not None and given > 2 * asked:
        report.warn(
            "keep-alive", f"the broker sets {given} s", f"{asked} s (mqtt.keep_alive_seconds)",
            "a connection that died unseen is noticed later; lower the broker's value",
        )  # fmt: skip
    else:
        report.ok("keep-alive", f"{asked} s" if given is None else f"{given} s, which the broker sets")
