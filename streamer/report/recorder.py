"""Watches a replay: counts, a track for each series, the alarms, and what labels say of them; memory is bounded.

Of many series each has fewer points: `ALL_POINTS` are shared among them, as far as `LEAST_POINTS` allows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

import numpy as np
from numpy.typing import NDArray

from streamer.labels import Label, Located, judge
from streamer.readings import Alarm, Batch, Bool, Unscored
from streamer.report.page import LEAST_POINTS, About, Labelled, Part, Series, Told, name_of, write_page
from streamer.report.track import MOST_POINTS, Column, Track
from streamer.rows import Row
from streamer.shard import Outcome

ALL_POINTS = 400_000  # 48 bytes each on the page: 20 MB
STAGED, MOST_STAGED = 1 << 14, 1 << 20  # readings between two looks at the tracks: 75 bytes each
STAGED_PER_SERIES = 32  # a look at a track costs 80 microseconds
PER_ROWS = 10_000
OUT_OF_ORDER = (Unscored.DUPLICATE, Unscored.LATE)


@dataclass(slots=True)
class _Source:
    """What is known of one file."""

    name: str
    labels: list[Label]
    located: Located
    rows: int = 0
    first: float = math.inf
    last: float = -math.inf
    alarms: dict[str, Told] = field(default_factory=dict)


@dataclass(slots=True)
class _Followed:
    """What is known of one series."""

    source: int
    name: str
    track: Track = field(default_factory=Track)
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(Unscored), np.int64))
    rejected: int = 0


class Recorder:
    """A `Watch` of a replay of these files. `labels`: of each file, an empty list or None without any."""

    def __init__(self, files: Sequence[Path], labels: Sequence[list[Label]] | None, about: About) -> None:
        self._about = about
        self._has_labels = labels is not None
        given = labels or [[]] * len(files)
        self._sources = [_Source(path.name, each, Located(each)) for path, each in zip(files, given, strict=True)]
        self._series: dict[str, _Followed] = {}
        self._by_slot: dict[int, _Followed] = {}
        self._make_room(STAGED)

    # --- While it runs ---

    def take(
        self, rows: dict[int, Row], rejected: Sequence[str], keys: Sequence[str], batch: Batch, outcome: Outcome
    ) -> None:
        """One row of each of these sources."""
        for index, row in rows.items():
            source = self._sources[index]
            source.first, source.last = min(source.first, row.time), max(source.last, row.time)
            if source.labels:
                source.located.show(source.rows, row.time)
        for key in rejected:
            self._of(key).rejected += 1
        for key, slot in zip(keys, batch.slot.tolist(), strict=True):
            if slot not in self._by_slot:
                self._by_slot[slot] = self._of(key)
        for start in range(0, len(batch), STAGED):
            self._stage(batch, outcome, slice(start, start + STAGED))
        for change in outcome.changes:
            self._note(change.alarm)
        for index in rows:
            self._sources[index].rows += 1

    def _make_room(self, readings: int) -> None:
        self._slot = np.empty(readings, np.int64)
        self._unscored = np.empty(readings, np.uint8)
        self._staged = np.empty((len(Column), readings))
        self._count = 0

    def _of(self, key: str) -> _Followed:
        followed = self._series.get(key)
        if followed is None:
            index, _, name = key.partition("#")
            followed = self._series[key] = _Followed(int(index), name)
        return followed

    def _stage(self, batch: Batch, outcome: Outcome, piece: slice) -> None:
        slot, scores = batch.slot[piece], outcome.scores
        if self._count + len(slot) > len(self._slot):
            self._settle()
            if len(self._slot) < min(STAGED_PER_SERIES * len(self._series), MOST_STAGED):
                self._make_room(2 * len(self._slot))
        into = slice(self._count, self._count + len(slot))
        self._slot[into] = slot
        self._unscored[into] = scores.unscored[piece]
        self._staged[Column.TIME, into] = batch.time[piece]
        self._staged[Column.LOW : Column.EXPECTED, into] = batch.value[piece]
        self._staged[Column.EXPECTED, into] = scores.expected[piece]
        self._staged[Column.LOWER, into] = scores.lower[piece]
        self._staged[Column.UPPER, into] = scores.upper[piece]
        self._staged[Column.SCORE, into] = scores.score[piece]
        self._count = into.stop

    def _settle(self) -> None:
        """What is staged goes to the tracks."""
        most = max(LEAST_POINTS, min(MOST_POINTS, ALL_POINTS // max(len(self._series), 1)))
        order = np.argsort(self._slot[: self._count], kind="stable")
        slot = self._slot[order]
        starts = np.flatnonzero(np.diff(slot, prepend=-1))
        for rows in np.split(order, starts[1:]) if len(order) else []:
            followed = self._by_slot[int(self._slot[rows[0]])]
            unscored = self._unscored[rows]
            followed.counts += np.bincount(unscored, minlength=len(Unscored))
            in_order = rows[~np.isin(unscored, OUT_OF_ORDER)]
            if len(in_order):
                followed.track.add(self._staged[:, in_order], most)
        self._count = 0

    def _note(self, alarm: Alarm) -> None:
        source = self._sources[int(alarm.key.partition("#")[0])]
        told = source.alarms.get(alarm.id)
        if told is None:
            told = source.alarms[alarm.id] = Told(alarm, source.rows)
        told.alarm = alarm
        told.keys.update((alarm.key, *alarm.members, *(channel.key for channel in alarm.channels)))

    # --- When it has ended ---

    def figures(self) -> list[dict[str, object]]:
        """Source by source: how alarms agree with the labels; empty without labels."""
        return [self._judged(source)[1] for source in self._sources] if self._has_labels else []

    def _judged(self, source: _Source) -> tuple[list[Labelled], dict[str, object], Bool]:
        """The labels one by one, the figures, and per alarm whether it is a false one."""
        told = list(source.alarms.values())
        windows = source.located.windows()
        opened = np.array([each.row for each in told], np.int64)
        names = [{name_of(key) for key in each.keys} for each in told]
        concerns = np.ones((len(source.labels), len(told)), np.bool_)
        for k, label in enumerate(source.labels):
            if label.series is not None:
                concerns[k] = [label.series in each for each in names]
        present = windows[:, 0] >= 0
        judged = judge(windows[present], opened, concerns[present])
        labelled: list[Labelled] = []
        caught = iter(judged.caught.tolist())
        for label, (first, last) in zip(source.labels, windows.tolist(), strict=True):
            by = next(caught) if first >= 0 else -1
            alarm = told[by] if by >= 0 else None
            share = (alarm.row - first) / (last - first + 1) if alarm else None
            late = max(alarm.alarm.opened_at - label.start, 0.0) if alarm else None
            labelled.append(Labelled(label, last - first + 1 if first >= 0 else 0, share, late))
        delays = [each.delay for each in labelled if each.delay is not None]
        seconds = [each.delay_seconds for each in labelled if each.delay_seconds is not None]
        false = int(judged.is_false.sum())
        figures: dict[str, object] = {
            "file": source.name,
            "rows": source.rows,
            "events": int(present.sum()),
            "caught": len(delays),
            "delay": round(float(np.median(delays)), 4) if delays else None,
            "delay_seconds": round(float(np.median(seconds)), 3) if seconds else None,
            "alarms": len(told),
            "false_alarms": false,
            "false_alarms_per_10k_rows": round(false * PER_ROWS / source.rows, 4) if source.rows else None,
            "labels_without_rows": int((~present).sum()),
        }
        return labelled, figures, judged.is_false

    def write(self, page: TextIO, counts: dict[str, int]) -> None:
        """The page."""
        self._settle()
        series: list[list[Series]] = [[] for _ in self._sources]
        for each in self._series.values():
            fates = {kind.name.lower(): int(each.counts[kind]) for kind in Unscored} | {"rejected": each.rejected}
            series[each.source].append(Series(each.name, fates, each.track))
        parts = []
        for source, own in zip(self._sources, series, strict=True):
            labelled, figures, is_false = self._judged(source)
            if self._has_labels:
                for told, wrong in zip(source.alarms.values(), is_false.tolist(), strict=True):
                    told.is_false = wrong
            parts.append(
                Part(
                    source.name,
                    (source.first, source.last) if source.rows else None,
                    source.rows,
                    own,
                    list(source.alarms.values()),
                    labelled,
                    figures if self._has_labels else None,
                )
            )
        write_page(page, self._about, counts, parts, ALL_POINTS)
