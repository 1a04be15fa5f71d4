"""`streamer replay`: files of readings through the very same shard as the daemon's, by event time, at full speed.

Causal: the score of a reading uses nothing that comes later; with `--offline-label` its forecast does, and no other
part of it. Each file is a device of its own; the files of one run stand side by side, and the k-th rows of all of them
make one batch, since series are independent of each other.
"""

from __future__ import annotations

import csv
import itertools
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Protocol, TextIO

import numpy as np

from models import calibration, history
from models.step import NumpyStepper
from models.weights import Weights
from streamer.detector import DIFFERENT_SECONDS
from streamer.errors import InputError
from streamer.outbox import iso
from streamer.payloads.times import EARLIEST, LATEST
from streamer.payloads.words import WORDS, parse_number
from streamer.progress import Progress
from streamer.readings import LARGEST_VALUE, Alarm, Batch, Float64, Int32, Scores, Unscored
from streamer.registry import FREE, Registry
from streamer.reorder import Reorder
from streamer.rows import JOINT, Reached, Row, read_rows
from streamer.shard import Outcome, Shard

COLUMNS = ("time", "series", "value", "expected", "lower", "upper", "score", "alarm")


class Writer(Protocol):
    """What `csv.writer` gives; its own type has no public name."""

    def writerow(self, row: Iterable[object], /) -> object: ...


class Nowhere:
    """A writer for whom wants no CSV."""

    def writerow(self, _row: Iterable[object], /) -> None:
        return None


class Watch(Protocol):
    """Sees everything that a replay sees, to make more of it than CSV."""

    def take(
        self, rows: dict[int, Row], rejected: Sequence[str], keys: Sequence[str], batch: Batch, outcome: Outcome
    ) -> None:
        """One row of each of these sources: keys of the readings that are no numbers, and of those of the batch."""

    def figures(self) -> list[dict[str, object]]:
        """What labels have told, source by source; empty without any."""

    def write(self, page: TextIO, counts: dict[str, int]) -> None:
        """The report."""


# --- Order ---


class InOrder:
    """The rows of a file in the order of their times, as far as none is too late; what they come to in the file's own.

    As the daemon does it, with the newest time that the file has shown so far in the place of its clock; the cells of a
    row stay together. It is the source, by `rows`, and stands before the writer: each row's lines are written before
    the next row is asked for.
    """

    def __init__(self, rows: Iterable[Row], writer: Writer, lateness_seconds: float) -> None:
        self._rows = rows
        self._reorder = Reorder(lateness_seconds)
        self._writer = writer
        self._lines: dict[int, list[tuple[object, ...]]] = {}
        self._at = 0
        self._written = 0

    def rows(self) -> Iterator[Row]:
        waiting: dict[int, Row] = {}
        slots: dict[str, int] = {}
        newest = -math.inf
        for number, row in enumerate(self._rows):
            waiting[number] = row
            newest = max(newest, row.time)
            slot = slots.setdefault(row.names[0] if len(row.names) == 1 else "", len(slots))
            came = Batch(np.array([slot], np.int32), np.array([row.time]), np.array([float(number)]), _NO_FLAGS)
            yield from self._let_go(self._reorder.take(came, np.array([newest]), number).batch, waiting)
        yield from self._let_go(self._reorder.release(math.inf).batch, waiting)

    def _let_go(self, batch: Batch, waiting: dict[int, Row]) -> Iterator[Row]:
        for number in batch.value.astype(np.intp).tolist():
            self._at = number
            self._lines[number] = []
            yield waiting.pop(number)
            while self._written in self._lines:
                for line in self._lines.pop(self._written):
                    self._writer.writerow(line)
                self._written += 1

    def writerow(self, row: Iterable[object], /) -> object:
        self._lines[self._at].append(tuple(row))
        return None


_NO_FLAGS = np.zeros(1, np.uint8)


# --- Scoring ---

OnOpened = Callable[[int, str, str, Alarm], None]
"""Told of each alarm when it opens: number of the source, the row's time as it was read, name of the series"""


def _ignore(_source: int, _time: str, _name: str, _alarm: Alarm) -> None:
    pass


def replay(
    files: list[Path],
    shard: Shard,
    outputs: list[TextIO],
    *,
    device_score: bool,
    offline: Weights | None = None,
    lateness_seconds: float = 0.0,
    words: Mapping[str, float] = WORDS,
    opened: OnOpened = _ignore,
    watch: Watch | None = None,
    progress: Progress | None = None,
) -> dict[str, int]:
    """Scores the files side by side and writes one output each. Returns counts: readings, verdicts by kind, alarms.

    `outputs`: empty where no CSV is wanted.
    `words`: what counts as a number besides numbers.
    Rows that are late by at most `lateness_seconds` are scored in their place.
    `offline`: the bidirectional weights of a shard that labels history; the files are then read whole beforehand.
    """
    writers: list[Writer] = [csv.writer(output, lineterminator="\n") for output in outputs]
    for writer in writers:
        writer.writerow(COLUMNS)
    if not writers:
        writers = [Nowhere() for _ in files]
    reached = [Reached() for _ in files]
    sources: list[Iterable[Row]] = [read_rows(*each, words) for each in zip(files, reached, strict=True)]
    if progress is not None:
        sizes = [path.stat().st_size for path in files]
        progress.measure(lambda: sum(size * at.share() for size, at in zip(sizes, reached, strict=True)) / sum(sizes))
    foresight = None
    if offline is not None:
        whole = [list(rows) for rows in sources]
        sources = [*whole]
        if progress is not None:
            progress.expect(sum(len(row.values) for rows in whole for row in rows))
        read = [list(InOrder(*each, lateness_seconds).rows()) for each in zip(sources, writers, strict=True)]
        foresight = Foresight(offline, shard, read)
    if lateness_seconds:
        ordered = [InOrder(*each, lateness_seconds) for each in zip(sources, writers, strict=True)]
        sources, writers = [each.rows() for each in ordered], [*ordered]
    rows = [iter(each) if progress is None else progress.follow(each) for each in sources]
    return replay_rows(rows, shard, writers, device_score=device_score, foresight=foresight, opened=opened, watch=watch)


class Foresight:
    """What the later readings of each series say of each reading; told to the shard just before it is scored."""

    def __init__(self, weights: Weights, shard: Shard, files: list[list[Row]]) -> None:
        stepper = shard.detector.stepper
        if not isinstance(stepper, NumpyStepper):
            raise TypeError("history is labelled on the CPU")
        self._stepper = stepper
        order: dict[str, list[bool]] = {}
        series: dict[str, list[tuple[float, float]]] = {}
        for i, rows in enumerate(files):
            for row in rows:
                for name, value in zip(row.names, row.values, strict=True):
                    if value is None or not abs(value) <= LARGEST_VALUE:
                        continue
                    readings = series.setdefault(f"{i}#{name}", [])
                    # As the detector has it: what is late or a duplicate is not scored, and teaches nothing.
                    is_next = not readings or row.time - readings[-1][0] >= DIFFERENT_SECONDS
                    order.setdefault(f"{i}#{name}", []).append(is_next)
                    if is_next:
                        readings.append((row.time, value))
        flat = np.array([reading for readings in series.values() for reading in readings]).reshape(-1, 2)
        lengths = np.array([len(readings) for readings in series.values()], np.intp)
        self._told = history.foresee(weights, history.History(flat[:, 0], flat[:, 1], lengths))
        count = itertools.count()
        self._upcoming = {key: iter([next(count) if is_next else -1 for is_next in order[key]]) for key in series}

    def tell(self, keys: list[str], slot: Int32) -> None:
        """Of the next reading of each of these series."""
        rows = np.array([next(self._upcoming[key]) for key in keys], np.intp)
        is_next = rows >= 0
        self._stepper.expect(slot[is_next].astype(np.intp), self._told[rows[is_next]])


def replay_rows(
    sources: Sequence[Iterator[Row]],
    shard: Shard,
    writers: list[Writer],
    *,
    device_score: bool,
    foresight: Foresight | None = None,
    opened: OnOpened = _ignore,
    watch: Watch | None = None,
) -> dict[str, int]:
    """The same for rows from anywhere: each source is a device of its own, and its writer gets tuples of `COLUMNS`."""
    left = dict(enumerate(sources))
    counts = dict.fromkeys(("readings", *(kind.name.lower() for kind in Unscored), "rejected", "alarms"), 0)
    while left:
        rows: dict[int, Row] = {}
        for index in list(left):
            row = next(left[index], None)
            if row is None:
                del left[index]
            else:
                rows[index] = row
        if rows:
            _step(shard, rows, writers, counts, foresight, opened, watch, device_score=device_score)
    return counts


def _step(
    shard: Shard,
    rows: dict[int, Row],
    writers: list[Writer],
    counts: dict[str, int],
    foresight: Foresight | None,
    opened: OnOpened,
    watch: Watch | None,
    *,
    device_score: bool,
) -> None:
    """One row of every file that has one left."""
    cells = [(i, k) for i, row in rows.items() for k, value in enumerate(row.values) if value is not None]
    keys = [f"{i}#{rows[i].names[k]}" for i, k in cells]
    time = np.array([rows[i].time for i, _ in cells])
    value = np.array([rows[i].values[k] for i, k in cells], np.float64)
    good = np.flatnonzero(np.abs(value) <= LARGEST_VALUE)  # NaN is not
    good_keys = [keys[row] for row in good.tolist()]
    slot = shard.registry.resolve(good_keys, 0.0)
    if (slot == FREE).any():
        raise InputError(f"found more than {len(shard.registry)} series; expected fewer, or a larger limits.max_series")
    if foresight is not None:
        foresight.tell(good_keys, slot)
    batch = Batch(slot, time[good], value[good], np.zeros(len(good), np.uint8))
    outcome = shard.process(batch, max(row.time for row in rows.values()))
    place = dict(zip(good.tolist(), range(len(good)), strict=True))
    counts["readings"] += len(cells)
    counts["rejected"] += len(cells) - len(good)
    for kind, count in enumerate(np.bincount(outcome.scores.unscored, minlength=len(Unscored)).tolist()):
        counts[Unscored(kind).name.lower()] += count
    for change in outcome.changes:
        if change.what == "opened":
            counts["alarms"] += 1
            index, _, name = change.alarm.key.partition("#")
            opened(int(index), rows[int(index)].text, name, change.alarm)
    if watch is not None:
        rejected = [key for row, key in enumerate(keys) if row not in place]
        watch.take(rows, rejected, good_keys, batch, outcome)

    at = 0
    for i, row in rows.items():
        verdicts: list[int] = []
        for k, cell in enumerate(row.values):
            if cell is None:
                continue
            verdict = place.get(at)
            at += 1
            if verdict is None:
                writers[i].writerow((row.text, row.names[k], repr(cell), "", "", "", "", ""))
                continue
            verdicts.append(verdict)
            alarm = shard.value_alarms.alarm_of(int(slot[verdict]))
            writers[i].writerow(
                (row.text, row.names[k], repr(cell), *_figures(outcome.scores, verdict), alarm.id if alarm else "")
            )
        if device_score:
            joint = calibration.joint_score(
                outcome.scores.score[verdicts], outcome.strictness[verdicts], outcome.granted[verdicts]
            )
            alarms = [shard.value_alarms.alarm_of(int(slot[v])) for v in verdicts]
            first = next((alarm.id for alarm in alarms if alarm), "")
            writers[i].writerow((row.text, JOINT, "", "", "", "", _number(joint), first))


def _figures(scores: Scores, row: int) -> tuple[str, str, str, str]:
    """Expected, lower, upper, score of a row."""
    columns: tuple[Float64, ...] = (scores.expected, scores.lower, scores.upper, scores.score)
    expected, lower, upper, score = (_number(float(column[row])) for column in columns)
    return expected, lower, upper, score


def _number(value: float) -> str:
    return "" if math.isnan(value) else repr(value)


def _told(alarm: Alarm) -> str:
    numbers = (alarm.value, alarm.usual, alarm.expected, alarm.lower, alarm.upper, alarm.score)
    value, usual, expected, lower, upper, score = ("none" if each is None else f"{each:.6g}" for each in numbers)
    usually = "" if alarm.usual is None else f", usually {usual}"
    return f"value {value}{usually}, expected {expected} ({lower} to {upper}), score {score}, id {alarm.id}"


def _moment(time: str) -> str:
    """A time as it was read; epoch seconds, unless they count from the beginning of a recording, as ISO 8601."""
    seconds = parse_number(time)
    is_epoch = seconds is not None and EARLIEST <= seconds < LATEST
    return (iso(seconds) if is_epoch else None) or time.strip()


# --- The command ---


def _open(output: Path | None, path: Path, files: list[Path]) -> AbstractContextManager[TextIO]:
    """Where the scores of one of the files go."""
    many = len(files) > 1
    if output is None:
        if many:
            raise InputError("found several files; expected --output OUT, the folder for their scores")
        return nullcontext(sys.stdout)
    target = output / f"{path.stem}.csv" if many else output
    if target.exists() and any(target.samefile(each) for each in files):
        raise InputError(f"{target}: found the same file as input and as output; expected another --output")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        return target.open("w", newline="", encoding="utf-8")
    except OSError as error:
        raise InputError(f"{target}: cannot be written: {error.strerror}") from error


def replay_command(
    files: list[Path],
    output: Path | None,
    make_shard: Callable[[Registry], Shard],
    max_series: int,
    *,
    device_score: bool,
    offline: Weights | None = None,
    lateness_seconds: float = 0.0,
    words: Mapping[str, float] = WORDS,
    watch: Watch | None = None,
    report: Path | None = None,
    as_json: bool = False,
) -> int:
    """Replays to a file, to a folder for several files, or to standard output. Progress and counts go to stderr.

    `report`: where `watch` writes; with it, or with `as_json`, no scores go to standard output.
    """
    for path in files:
        if not path.is_file():
            raise InputError(f"{path}: found no such file; expected CSV or Parquet")
    if output is not None and len(files) > 1 and len({path.stem for path in files}) != len(files):
        raise InputError("found two files of one name; expected different names, since each names its output")
    shard = make_shard(Registry(max_series, math.inf, math.inf))
    began = time.monotonic()
    progress = Progress(sys.stderr)
    with ExitStack() as stack:
        page = None if report is None else stack.enter_context(_replacing(report, files))
        outputs: list[TextIO] = []
        if output is not None or not (report or as_json):
            outputs += [stack.enter_context(_open(output, path, files)) for path in files]
        if report is not None and any(Path(each.name).resolve() == report.resolve() for each in outputs):
            raise InputError(f"{report}: found the same file as output and as report; expected another --report")

        def opened(source: int, time: str, name: str, alarm: Alarm) -> None:
            where = f"{files[source]}: " if len(files) > 1 else ""
            progress.say(f"{where}alarm at {_moment(time)} on {name}: {_told(alarm)}")

        try:
            counts = replay(
                files, shard, outputs, device_score=device_score, offline=offline, lateness_seconds=lateness_seconds,
                words=words, opened=opened, watch=watch, progress=progress,
            )  # fmt: skip
        finally:
            progress.end()
        if watch is not None and page is not None:
            try:
                watch.write(page, counts)
                page.flush()
            except OSError as error:
                raise InputError(f"{report}: cannot be written: {error.strerror}") from error
    seconds = time.monotonic() - began
    _tell(counts, watch.figures() if watch else [], seconds, as_json=as_json)
    return 0


def _tell(counts: dict[str, int], figures: list[dict[str, object]], seconds: float, *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps({**counts, "seconds": round(seconds, 3), "labels": figures}, indent=2) + "\n")
    always = ("readings", "scored", "alarms")
    sys.stderr.write(", ".join(f"{name} {count}" for name, count in counts.items() if count or name in always) + "\n")
    for each in figures:
        told = ", ".join(f"{name} {'-' if value is None else value}" for name, value in each.items())
        sys.stderr.write(told + "\n")
    if counts["late"] > counts["scored"]:
        sys.stderr.write(
            f"{counts['late']} of {counts['readings']} readings are older than one before and have no score; "
            "expected them in the order of time\n"
        )


@contextmanager
def _replacing(path: Path, files: list[Path]) -> Iterator[TextIO]:
    """A file that takes the place of `path` once all is written; before that, what was there stays."""
    target = path.resolve()
    if target.exists() and not target.is_file():
        raise InputError(f"{path}: found something else than a file; expected --report OUT.html, a file to write")
    if target.exists() and any(target.samefile(each) for each in files):
        raise InputError(f"{path}: found the same file as input and as report; expected another --report")
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        file = part.open("w", encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from error
    try:
        with file:
            yield file
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
