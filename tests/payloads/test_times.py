"""Which numbers and texts are times, and which time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.payloads.times import TIME_RANK, find_time, from_number, from_text, from_value, unit_of

BERLIN = ZoneInfo("Europe/Berlin")
CENTURY = st.floats(946_684_800.0, 4_102_444_799.0)


@given(CENTURY, st.sampled_from([("s", 1.0), ("ms", 1e3), ("us", 1e6), ("ns", 1e9)]))
def test_the_size_of_a_number_gives_its_unit(epoch: float, unit: tuple[str, float]) -> None:
    """Every time from 2000 to 2100 is found again in every unit."""
    name, factor = unit
    assert unit_of(epoch * factor) == name
    assert from_number(epoch * factor) == pytest.approx(epoch, abs=1e-6)


@pytest.mark.parametrize(
    "number",
    [0, 15, -1.7e9, 946_684_799, 4_102_444_800, 1e11, 4.2e12, 5e14, 4.2e18, 10**30, float("inf"), float("nan")],
)
def test_numbers_that_are_no_times(number: float) -> None:
    """Uptimes, clocks that were never set, and what lies between the units."""
    assert from_number(number) is None
    assert unit_of(number) is None


@pytest.mark.parametrize(
    ("text", "epoch"),
    [
        ("2017-02-16T10:13:52Z", 1487240032.0),
        ("2017-02-16 10:13:52.25+00:00", 1487240032.25),
        ("20170216T101352Z", 1487240032.0),
        ("2017-02-16T11:13:52", 1487240032.0),  # Berlin
        ("2022-07-18T09:34:15.775023242+00:00", 1658136855.775023),
        ("1487240032", 1487240032.0),
        ("1487240032000", 1487240032.0),
        ("1487240032.5", 1487240032.5),
        ("2022-10-30T02:30:00", 1667089800.0),  # twice that night: the first, summer time
        ("2022-03-27T02:30:00", 1648344600.0),  # skipped that night: as if the clock had not been put forward
    ],
)
def test_texts_that_are_times(text: str, epoch: float) -> None:
    """ISO 8601 and numbers in quotes; without a zone the time is local."""
    assert from_text(text, BERLIN) == epoch


@pytest.mark.parametrize(
    "text",
    [
        "",
        "noon",
        "2017-02-16",
        "10:13:52",
        "1970-01-01T00:00:15",
        "2100-01-01T00:00:00Z",
        "12345678901234567890123",
        "2017-02-30T00:00:00",
        "2017-02-16T25:00:00",
        "0001-01-01T00:00:00+23:59",
        "9" * 70,
        "٢٠١٧٠٢١٦٠٠",
    ],
)
def test_texts_that_are_no_times(text: str) -> None:
    """A date alone, a time of day alone, what lies before 2000, nonsense."""
    assert from_text(text, BERLIN) is None


@given(CENTURY, st.integers(-14, 14))
def test_iso_texts_are_read_as_python_writes_them(epoch: float, hours: int) -> None:
    """Any zone's text gives the same instant."""
    moment = datetime.fromtimestamp(epoch, timezone(timedelta(hours=hours)))
    assert from_text(moment.isoformat(), UTC) == pytest.approx(epoch, abs=1e-6)


@given(st.text() | st.text(alphabet="0123456789-:TZ.+ W"))
def test_no_text_raises(text: str) -> None:
    """Every text is a time or none."""
    assert from_text(text, BERLIN) is None or from_text(text, BERLIN) is not None


def test_values_of_other_types_are_no_times() -> None:
    """A boolean is no number here."""
    others: list[object] = [None, True, [], {}]
    assert [from_value(value, UTC) for value in others] == [None] * 4
    assert from_value(1_700_000_000, UTC) == 1_700_000_000.0


def test_the_best_name_wins() -> None:
    """Rank decides and not the order of the fields; a name with no plausible time is passed over."""
    assert find_time({"last_seen": 1.6e9, "ts": 1.7e9, "a": 1.5e9}, UTC) == (1.7e9, "ts")
    assert find_time({"time": 5, "receivedAt": "2017-02-16T10:13:52Z"}, UTC) == (1487240032.0, "receivedAt")
    assert find_time({"T": 1.7e9, "value": 1.7e9}, UTC) is None


def test_spellings() -> None:
    """Names are known as they are written in snake, camel and capital letters."""
    for names in (
        ("time", "Time", "TIME"),
        ("date_time", "dateTime", "DateTime", "datetime"),
        ("last_seen", "lastSeen"),
    ):
        assert len({TIME_RANK[name] for name in names}) == 1
    assert "t" in TIME_RANK
    assert "T" not in TIME_RANK
