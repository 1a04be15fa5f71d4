"""Labels: how they are read, which rows lie in them, and how alarms are judged by them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from streamer.errors import InputError
from streamer.labels import Label, Located, judge, read_labels


def test_labels_are_read_in_order_of_time(tmp_path: Path) -> None:
    """Epoch seconds or ISO 8601, with a series or without."""
    path = tmp_path / "l.csv"
    path.write_text("start,end,series\n2023-11-14T22:13:20,1700000060,\n\n100, 200 , a\n")
    assert read_labels(path) == [Label(100, 200, "a"), Label(1_700_000_000, 1_700_000_060, None)]
    path.write_text("start,end\n1,1\n")
    assert read_labels(path) == [Label(1, 1, None)]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", r"found 'nothing' as its first line; expected start,end"),
        ("from,to\n1,2\n", r"found 'from,to'"),
        ("start,end\n1\n", r"line 2: found 1 cells; expected 2"),
        ("start,end\n1,soon\n", r"line 2: found 'soon' as a time"),
        ("start,end\n2,1\n", r"line 2: found an end before the start"),
        ("start,end\n" + "1,2\n" * 10_001, r"found 10001 labels; expected at most"),
    ],
)
def test_what_is_no_label_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    """With the file and the line."""
    path = tmp_path / "l.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=rf"l\.csv.*{complaint}"):
        read_labels(path)


def test_a_file_that_is_absent_is_named(tmp_path: Path) -> None:
    """As any other file."""
    with pytest.raises(InputError, match=r"absent\.csv: cannot be read"):
        read_labels(tmp_path / "absent.csv")


def test_the_rows_of_a_label_are_found_while_they_pass() -> None:
    """First and last, edges included; -1 where no row lies in it."""
    located = Located([Label(10, 30, None), Label(20, 20, None), Label(31, 39, None)])
    for row, time in enumerate([0.0, 10.0, 20.0, 30.0, 40.0]):
        located.show(row, time)
    assert located.windows().tolist() == [[1, 3], [2, 2], [-1, -1]]


def test_alarms_are_judged_by_where_they_open() -> None:
    """In a window it is caught, as long again after it the alarm is forgiven, beyond that it is false."""
    windows = np.array([[100, 109], [300, 799]])
    judged = judge(windows, np.array([99, 100, 109, 119, 120, 899, 900]))
    assert judged.caught.tolist() == [1, -1]
    assert judged.is_false.tolist() == [True, False, False, False, True, False, True]


def test_an_alarm_of_another_series_neither_catches_nor_is_excused() -> None:
    """Where a label names a series."""
    concerns = np.array([[False, True]])
    judged = judge(np.array([[10, 19]]), np.array([12, 15]), concerns)
    assert judged.caught.tolist() == [1]
    assert judged.is_false.tolist() == [True, False]


def test_nothing_is_judged_by_nothing() -> None:
    """No window: every alarm is false; no alarm: nothing is caught."""
    none = np.empty(0, np.int64)
    assert judge(none.reshape(0, 2), np.array([3])).is_false.tolist() == [True]
    assert judge(np.array([[1, 2]]), none).caught.tolist() == [-1]
