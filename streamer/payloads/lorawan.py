"""LoRaWAN servers, The Things Stack 3 and ChirpStack 4: the decoded object is the measurement, all else is radio.

Gateways that heard a frame come in any order and number, their counters look like times, and a frame's number only
rises: none of it makes a series that could be watched. A rule with `format = "json"` takes it all the same.
"""

from __future__ import annotations

from datetime import tzinfo
from typing import NamedTuple

from streamer.payloads.times import from_value
from streamer.payloads.tree import Reading, Tree


class Uplink(NamedTuple):
    """One frame: where its decoded object lies in the message, the object, and when it came in."""

    path: tuple[str, ...]
    measured: object
    time: float | None
    time_field: str


def uplink_of(document: dict[str, object], zone: tzinfo) -> Uplink | None:
    """The frame in a document, None where no network server wrote it."""
    uplink = document.get("uplink_message")
    if isinstance(uplink, dict) and "end_device_ids" in document:
        time, field = from_value(uplink.get("received_at"), zone), "uplink_message.received_at"
        if time is None:
            time, field = from_value(document.get("received_at"), zone), "received_at"
        return Uplink(("uplink_message", "decoded_payload"), uplink.get("decoded_payload"), time, field)
    device = document.get("deviceInfo")
    if isinstance(device, dict) and "devEui" in device:
        return Uplink(("object",), document.get("object"), from_value(document.get("time"), zone), "time")
    return None


def read(tree: Tree, reading: Reading, uplink: Uplink) -> None:
    """Append the readings of a frame; there are none where the server has no decoder for the device. Raises Refused."""
    node = reading.source.root
    for name in uplink.path:
        node = tree.sources.child(reading.source, node, name)
    origin = reading.source.root.prefix + uplink.time_field
    tree.read(reading, node, uplink.measured, (uplink.time, origin), len(uplink.path) + 1)
