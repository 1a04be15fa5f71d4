"""Labelled faults of a recording: read from a file, and alarms judged by them as docs/quality.md says it."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamer.errors import InputError
from streamer.readings import Bool
from streamer.rows import epoch_seconds

Windows = NDArray[np.int64]
"""(k, 2): first and last row of each labelled fault, inclusive"""

GRACE_ROWS = 100
"""A false alarm sounds at most once in so many rows; so long after a window the way back to normal is none."""
MOST_LABELS = 10_000  # of a file: each is looked at for every row


@dataclass(frozen=True, slots=True)
class Label:
    """Between these times something was wrong."""

    start: float
    """epoch seconds"""
    end: float
    """inclusive"""
    series: str | None
    """None: of the whole device"""


def read_labels(path: Path) -> list[Label]:
    """The lines of a CSV file `start,end` or `start,end,series`, in order of time. Raises InputError."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            header = [name.strip() for name in next(reader, [])]
            if header not in (["start", "end"], ["start", "end", "series"]):
                found = ",".join(header)[:80] or "nothing"
                raise InputError(f"{path}: found {found!r} as its first line; expected start,end or start,end,series")
            labels = [
                _label(cells, len(header), f"{path}, line {reader.line_num}")
                for cells in reader
                if any(cell.strip() for cell in cells)
            ]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as CSV: {error}") from error
    if len(labels) > MOST_LABELS:
        raise InputError(f"{path}: found {len(labels)} labels; expected at most {MOST_LABELS}")
    return sorted(labels, key=lambda label: (label.start, label.end))


def _label(cells: list[str], columns: int, place: str) -> Label:
    if len(cells) != columns:
        raise InputError(f"{place}: found {len(cells)} cells; expected {columns}, as in the header")
    start, end = epoch_seconds(cells[0], place), epoch_seconds(cells[1], place)
    if end < start:
        raise InputError(f"{place}: found an end before the start; expected start,end")
    return Label(start, end, (cells[2].strip() if columns > 2 else "") or None)


class Located:
    """The rows that lie in each label, found while they pass."""

    def __init__(self, labels: Sequence[Label]) -> None:
        self._start = np.array([label.start for label in labels])
        self._end = np.array([label.end for label in labels])
        self._windows = np.full((len(labels), 2), -1, np.int64)

    def show(self, row: int, time: float) -> None:
        """Row by row, their numbers rising."""
        inside = (self._start <= time) & (time <= self._end)
        if inside.any():
            self._windows[inside & (self._windows[:, 0] < 0), 0] = row
            self._windows[inside, 1] = row

    def windows(self) -> Windows:
        """(k, 2), in the order of the labels; -1 where there is no row in it."""
        return self._windows


# --- Judging ---


class Judged(NamedTuple):
    """What alarms have made of windows."""

    caught: NDArray[np.int64]
    """(windows,): index of the first alarm that opened in it; -1: none"""
    is_false: Bool
    """(alarms,): it opened neither in a window nor just after one"""


def judge(windows: Windows, opened: NDArray[np.int64], concerns: Bool | None = None) -> Judged:
    """By the rows at which alarms opened, in their order.

    `concerns`: (windows, alarms), where it is only some alarms that a window has to do with.
    """
    if concerns is None:
        concerns = np.ones((len(windows), len(opened)), np.bool_)
    if not len(windows) or not len(opened):
        return Judged(np.full(len(windows), -1, np.int64), np.ones(len(opened), np.bool_))
    inside = _between(windows, opened) & concerns
    near = _between(grace(windows), opened) & concerns
    return Judged(np.where(inside.any(axis=1), inside.argmax(axis=1), -1), np.asarray(~near.any(axis=0)))


def grace(windows: Windows) -> Windows:
    """(k, 2): each window with the rows after it that do not count, as many as it has and `GRACE_ROWS` at most."""
    rows_after = np.minimum(windows[:, 1] - windows[:, 0] + 1, GRACE_ROWS)
    return np.column_stack((windows[:, 0], windows[:, 1] + rows_after))


def _between(windows: Windows, opened: NDArray[np.int64]) -> Bool:
    """(windows, alarms)"""
    inside: Bool = (opened >= windows[:, :1]) & (opened <= windows[:, 1:])
    return inside
