"""Words for binary states, and numbers as text."""

from __future__ import annotations

import math

import pytest

from streamer.payloads.words import WORDS, parse_number


def test_words_as_sensors_spell_them() -> None:
    """Three spellings each; other words are none."""
    assert [WORDS[word] for word in ("on", "ON", "On", "true", "TRUE", "open", "Online", "yes")] == [1.0] * 8
    assert [WORDS[word] for word in ("off", "OFF", "False", "closed", "CLOSE", "offline", "no", "inactive")] == [
        0.0
    ] * 8
    assert not {"", "oN", "unavailable", "unknown", "1", "home", "clear"} & WORDS.keys()
    assert set(WORDS.values()) == {0.0, 1.0}


@pytest.mark.parametrize(("text", "number"), [("21.5", 21.5), (" +1e3\n", 1000.0), (b"-.5", -0.5), (b"7.", 7.0)])
def test_numbers(text: str | bytes, number: float) -> None:
    """White space around a number is no part of it."""
    assert parse_number(text) == number


@pytest.mark.parametrize("text", ["", "1_0", b"1_0", "0x10", "1,5", "٢١", b"\xff", "1 2", "1.2.3"])
def test_texts_that_are_no_numbers(text: str | bytes) -> None:
    """What only Python calls a number is none."""
    assert parse_number(text) is None


def test_numbers_that_are_not_finite_say_so() -> None:
    """The caller tells them from texts."""
    assert math.isnan(parse_number("NaN") or 0.0)
    assert parse_number(b"1e999") == math.inf
