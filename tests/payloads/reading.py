"""Short ways to read one message."""

from __future__ import annotations

from streamer.payloads import Columns, Decoder, Rejection

ARRIVAL = 1_700_000_000.0


def columns(decoder: Decoder, topic: str, payload: bytes | str) -> Columns | Rejection:
    """What one message gives."""
    out = Columns()
    content = payload.encode() if isinstance(payload, str) else payload
    rejection = decoder.decode(topic, content, ARRIVAL, out)
    if rejection is not None:
        assert (out.key, out.time, out.value, out.flags, out.rejected) == ([], [], [], [], {})
        return rejection
    assert len(out.key) == len(out.time) == len(out.value) == len(out.flags) == len(out) > 0
    return out


def read(decoder: Decoder, topic: str, payload: bytes | str) -> list[tuple[str, float, float | None]]:
    """Key, value and time of each reading, in order; time None where it is the arrival."""
    out = columns(decoder, topic, payload)
    assert isinstance(out, Columns), out
    times = [None if flags else time for time, flags in zip(out.time, out.flags, strict=True)]
    assert all(time == ARRIVAL for time, flags in zip(out.time, out.flags, strict=True) if flags)
    return list(zip(out.key, out.value, times, strict=True))


def values(decoder: Decoder, topic: str, payload: bytes | str) -> dict[str, float]:
    """Value of each series; every series has one."""
    rows = read(decoder, topic, payload)
    found = {key: value for key, value, _ in rows}
    assert len(found) == len(rows)
    return found


def refusal(decoder: Decoder, topic: str, payload: bytes | str) -> Rejection:
    """Why a message gives nothing."""
    out = columns(decoder, topic, payload)
    assert isinstance(out, Rejection)
    return out
