"""The engine of `streamer replay` on recordings: side by side, each a device of its own, in one run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from streamer.bench.quality.recordings import Recording
from streamer.readings import Float64
from streamer.replay import COLUMNS, Writer, replay_rows
from streamer.rows import JOINT, Row
from streamer.shard import Shard

SERIES, SCORE, ALARM = (COLUMNS.index(name) for name in ("series", "score", "alarm"))
TELL_SECONDS = 10.0

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, eq=False)
class Verdict:
    """What the engine made of a recording."""

    score: Float64
    """(n,): NaN where there is none; of several channels the joint one"""
    alarms: list[int]
    """rows at which an alarm opened, one entry an alarm, on whichever series of the device"""


def score_recordings(recordings: Sequence[Recording], shard: Shard, say: Say) -> list[Verdict]:
    """Verdicts as `streamer replay --device-score` would write them, recording by recording."""
    progress = _Progress(recordings, say)
    listeners = [_Listener(recording) for recording in recordings]
    writers: list[Writer] = list(listeners)
    replay_rows([progress.watch(_rows(each)) for each in recordings], shard, writers, device_score=True)
    return [listener.verdict() for listener in listeners]


def unit_score(score: Float64) -> Float64:
    """Scores in [0, 1] in the same order, as scorers from elsewhere want them: s / (1 + s), and 0 for none."""
    known = np.nan_to_num(score, nan=0.0)
    result: Float64 = known / (1.0 + known)
    return result


def _rows(recording: Recording) -> Iterator[Row]:
    names = [f"c{channel}" for channel in range(recording.values.shape[1])]
    for at, values in zip(recording.time.tolist(), recording.values, strict=True):
        yield Row("", at, names, values.tolist())


class _Listener:
    """Stands where the writer of an output file stands; a row `*` ends each row of the recording."""

    def __init__(self, recording: Recording) -> None:
        rows, channels = recording.values.shape
        self._score = np.full(rows, np.nan)
        self._wanted = JOINT if channels > 1 else "c0"
        self._opened: dict[str, int] = {}
        self._row = 0

    def writerow(self, row: Iterable[object], /) -> None:
        cells = tuple(row)
        series, score, alarm = cells[SERIES], cells[SCORE], cells[ALARM]
        if series == self._wanted and score:
            self._score[self._row] = float(str(score))
        if alarm:
            self._opened.setdefault(str(alarm), self._row)
        if series == JOINT:
            self._row += 1

    def verdict(self) -> Verdict:
        return Verdict(self._score, sorted(self._opened.values()))


class _Progress:
    """Says now and then how much is done."""

    def __init__(self, recordings: Sequence[Recording], say: Say) -> None:
        self._say = say
        self._readings = sum(each.values.size for each in recordings)
        self._left = len(recordings)
        self._done = 0
        self._told_at = time.monotonic()

    def watch(self, rows: Iterator[Row]) -> Iterator[Row]:
        for row in rows:
            yield row
            self._done += len(row.values)
            if time.monotonic() - self._told_at > TELL_SECONDS:
                self._told_at = time.monotonic()
                share = 100 * self._done / self._readings
                self._say(f"{share:.0f} % of {self._readings} readings; {self._left} recordings go on")
        self._left -= 1
