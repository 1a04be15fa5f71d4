"""Bare payloads: one number or one word, as `home/bedroom/temperature` -> `21.5` and `stat/lamp/POWER` -> `ON`."""

from __future__ import annotations

_PAIRS = (
    ("off", "on"),
    ("false", "true"),
    ("no", "yes"),
    ("closed", "open"),
    ("close", "opened"),
    ("offline", "online"),
    ("inactive", "active"),
    ("disabled", "enabled"),
    ("disconnected", "connected"),
    ("unlocked", "locked"),
)

WORDS = {
    spelt: float(value)
    for pair in _PAIRS
    for value, word in enumerate(pair)
    for spelt in (word, word.upper(), word.capitalize())
}
"""Words for a binary state, as sensors spell them -> 0.0 or 1.0."""


def parse_number(text: str | bytes) -> float | None:
    """The number that a text is, None where it is none; NaN and infinite where it says so or is too large."""
    try:
        value = float(text)
    except ValueError:
        return None
    # Digits of other scripts and digit grouping are Python's, not any sensor's.
    grouped = "_" in text if isinstance(text, str) else b"_" in text
    return value if text.isascii() and not grouped else None
