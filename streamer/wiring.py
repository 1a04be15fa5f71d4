"""From settings to parts that need no thread and no network: what the daemon, a replay and `explain` share."""

from __future__ import annotations

from streamer.payloads import Decoder, Rule
from streamer.settings import Settings
from streamer.topics import own_prefix


def decoder_from(settings: Settings) -> Decoder:
    """The decoder of payloads that `input` describes; it never reads this instance's own output."""
    given = settings.input
    return Decoder(
        include=given.include,
        exclude=given.exclude,
        own_prefix=own_prefix(settings.instance),
        rules=tuple(Rule(**rule.model_dump()) for rule in given.rules),
        booleans=given.booleans,
        time_zone=given.time_zone,
        max_payload_bytes=given.max_payload_bytes,
        max_depth=given.max_depth,
        max_fields=given.max_fields,
    )
