"""What a person is told about a connection that is not there, and how long the next attempt waits."""

from __future__ import annotations

import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.endings import Ending, Fate, dismissed, lost, pause_seconds, refused, suspicious, unreachable
from streamer.wire import HandshakeError

PLACE = "broker:1883"


@pytest.mark.parametrize(
    ("ending", "words", "fate"),
    [
        (unreachable(ConnectionRefusedError(111, "Connection refused"), PLACE), "Connection refused", Fate.PASSING),
        (unreachable(TimeoutError("timed out"), PLACE), "does not answer", Fate.PASSING),
        (unreachable(UnicodeError("label too long"), PLACE), "label too long", Fate.PASSING),
        (unreachable(ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER]"), PLACE), "expected a TLS port", Fate.PERSON),
        (unreachable(HandshakeError("timed out"), PLACE), "does not answer TLS: timed out", Fate.PERSON),
        (lost(EOFError(), PLACE, was_accepted=True), "closed the connection", Fate.PASSING),
        (lost(EOFError(), PLACE, was_accepted=False), "instead of answering CONNECT", Fate.VERSION),
        (lost(ConnectionResetError(104, "reset"), PLACE, was_accepted=False), "answering CONNECT", Fate.VERSION),
        (lost(ssl.SSLEOFError(8, "EOF occurred"), PLACE, was_accepted=True), "closed the connection", Fate.PASSING),
        (lost(ssl.SSLError(1, "[SSL: TLSV13_ALERT_X]"), PLACE, was_accepted=False), "refuses TLS", Fate.PERSON),
        (lost(OSError(113, "No route to host"), PLACE, was_accepted=True), "No route to host", Fate.PASSING),
        (lost(None, PLACE, was_accepted=True), "closed the connection", Fate.PASSING),
        (refused(132, "Unsupported protocol version", "5", "id"), "does not speak MQTT 5", Fate.VERSION),
        (refused(133, "Client identifier not valid", "5", "id-7"), "id-7", Fate.PERSON),
        (refused(134, "Bad user name or password", "5", "id"), "mqtt.username or password", Fate.PERSON),
        (refused(135, "Not authorized", "5", "id"), "Not authorized", Fate.PERSON),
        (refused(136, "Server unavailable", "5", "id"), "Server unavailable", Fate.PASSING),
        (dismissed(142, "Session taken over", "id-7"), "our client id id-7", Fate.PERSON),
        (dismissed(139, "Server shutting down", "id"), "Server shutting down", Fate.PASSING),
        (suspicious(Ending("closed"), 3, "id-7"), "3 times in a row", Fate.PASSING),
    ],
)
def test_an_ending_says_what_happened_and_what_it_asks_for(ending: Ending, words: str, fate: Fate) -> None:
    """The sentence names the cause; the fate decides about the next attempt."""
    assert words in ending.detail
    assert ending.fate is fate


@given(st.integers(1, 10_000), st.floats(0.1, 10), st.floats(1, 6), st.floats(0, 1, exclude_max=True))
def test_pauses_stay_within_their_bounds(failures: int, least: float, factor: float, jitter: float) -> None:
    """No pause is shorter than the shortest or longer than the longest that the operator allows."""
    for fate in Fate:
        assert least <= pause_seconds(failures, fate, least, least * factor, jitter) <= least * factor + 1e-9


def test_pauses_double_and_spread_over_their_whole_range() -> None:
    """Many daemons that lost one broker do not come back at the same moment."""
    ranges = [[pause_seconds(n, Fate.PASSING, 1, 60, jitter) for jitter in (0.0, 1.0)] for n in (1, 2, 3, 4, 99)]
    assert ranges == [[1, 2], [1, 4], [1, 8], [1, 16], [1, 60]]


def test_what_only_a_person_can_mend_waits_longer() -> None:
    """A wrong password does not hammer the broker, not even at first, and what is mended at once works soon."""
    ranges = [[pause_seconds(n, Fate.PERSON, 1, 60, jitter) for jitter in (0.0, 1.0)] for n in (1, 2, 3, 4, 99)]
    assert ranges == [[4, 8], [8, 16], [16, 32], [30, 60], [30, 60]]
