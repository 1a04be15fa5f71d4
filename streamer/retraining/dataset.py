"""From the journal to what can be learned: each series' readings in order, what of them counts, and how they split.

The journal is read twice, while the daemon goes on writing it: once to see who has sent how much and what is known of
it, once to take the readings of those that were chosen. What is kept is bounded by `max_series_steps`: twice as many
readings, among which the worst series are sought; besides that 600 bytes for each series that has sent something, and a
segment of the journal.

Never learned, and never judged by: what belonged to an alarm, nor the 16 readings before it, since the views that find
a slow fault find it late; and a series that is stuck, from the 30th equal reading on, which would teach nothing but to
be sure. What came while its series was paused is as if it had not come. A series that never moves is left out.

Who holds a slot is what the facts of the journal say; one that was forgotten and let in again is another series, and so
is one that begins anew since a person has marked it normal. It goes on behind damage as a recovery does
(`streamer.recovery`); where slots may have changed hands in what is missing, every series begins anew.

Time is split by position in the journal: what is before `judged_from` trains, its last part stops the training, and the
rest judges. Of a series with more readings than its share those around `judged_from` are taken, in one piece.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import msgspec
import numpy as np
from numpy.typing import NDArray

from models.history import History
from streamer import journal
from streamer.detector import WARM_READINGS, placed
from streamer.disk import Files
from streamer.readings import LARGEST_VALUE, Batch, Bool, Flag, Float64, UInt8
from streamer.records import (
    Abnormal,
    Admitted,
    Evicted,
    Fact,
    Group,
    Lateness,
    MarkedNormal,
    Paused,
    Record,
    Released,
    Resumed,
)
from streamer.recovery import MOST_HOLES, MOST_MERGED
from streamer.reorder import Reorder
from streamer.retraining.contract import Request

TRAIN, STOP, JUDGE = 0, 1, 2
"""of `Site.part`: trains, stops the training, judges"""
TRAIN_SHARE, STOP_SHARE = 0.6, 0.15  # of the readings
BUCKETS = 64  # of positions: as finely as the time is split
WIDENED = 16  # readings before an alarm: `calibration.SMOOTHING` of the slowest view
STUCK_READINGS = 30  # equal ones in a row, by eye
LEAST_READINGS = 100  # of a series, before the judged part
LEAST_SHARE = 4096  # readings of each series, where there are more series than can be had whole
LEAST_SERIES = 8  # of a site that is sampled
POOL = 2  # times as many readings as are trained on, among which the worst are sought
WORST_SHARE = 0.5  # of what is trained on; the rest is drawn, so that the others keep what they have

Slots = NDArray[np.intp]
Item = Batch | Fact | None
"""None: from here on every slot may be another series"""


@dataclass(frozen=True, slots=True, eq=False)
class Site:
    """What the series of a site have sent, one series after the other; arrays `(n,)` a reading unless said."""

    history: History
    normal: Bool
    """False: it belonged to an alarm, and has taught nothing lasting"""
    counts: Bool
    """it is learned from, or judged by"""
    part: UInt8
    device: list[str]
    """of each series; one that is not known is a device of its own"""
    weight: Float64
    """(series,): how many series of the site each stands for"""
    judged_from: int
    """position in the journal"""
    notes: list[str] = field(default_factory=list)
    """a sentence for each piece of the journal that is missing"""

    def of(self, part: int) -> Bool:
        """The readings of this part that count."""
        chosen: Bool = self.counts & (self.part == part)
        return chosen

    def series(self) -> NDArray[np.intp]:
        """(n,): which series each reading is of."""
        return np.repeat(np.arange(len(self.history.lengths)), self.history.lengths)

    def chosen(self, series: NDArray[np.intp], weight: Float64 | None = None) -> Site:
        """These series only, in this order."""
        time, value, lengths = self.history
        first = np.cumsum(lengths) - lengths
        rows = np.concatenate([np.arange(first[k], first[k] + lengths[k]) for k in series] or [np.empty(0, np.intp)])
        rows = rows.astype(np.intp)
        return replace(
            self,
            history=History(time[rows], value[rows], lengths[series]),
            normal=self.normal[rows],
            counts=self.counts[rows],
            part=self.part[rows],
            device=[self.device[k] for k in series],
            weight=self.weight[series] if weight is None else weight,
        )


def read(files: Files, request: Request) -> Site:
    """At most `POOL` times `max_series_steps` readings. Raises OSError."""
    # Positions count from the first day on, and time is split by position: by that of what is still kept.
    request = msgspec.structs.replace(request, begin=max(request.begin, journal.begins_at(files)))
    survey = _Survey(request)
    for first, last, item in _stream(files, request, survey.notes):
        survey.take(first, last, item)
    bounds = survey.bounds()
    wanted = _wanted(survey, bounds[1], request)
    return _site(_Collector(survey, bounds, wanted).collect(files, request), survey, wanted, bounds, request)


def sample(site: Site, loss: Float64, most_steps: int, rng: np.random.Generator) -> Site:
    """At most `most_steps` readings: the series with the highest `loss` `(series,)` first, the other half drawn."""
    lengths = site.history.lengths
    if lengths.sum() <= most_steps:
        return site
    by_loss = np.argsort(-np.nan_to_num(loss, nan=-np.inf), kind="stable")
    worst = by_loss[np.cumsum(lengths[by_loss]) <= WORST_SHARE * most_steps]
    others = rng.permutation(np.setdiff1d(by_loss, worst))
    drawn = others[np.cumsum(lengths[others]) <= most_steps - lengths[worst].sum()]
    weight = np.r_[np.ones(len(worst)), np.full(len(drawn), len(others) / max(len(drawn), 1))]
    return site.chosen(np.r_[worst, drawn], weight)


# --- The journal ---


def _records(files: Files, request: Request, notes: list[str]) -> Iterator[tuple[int, Record | None]]:
    """Each with its position."""
    start, changes, in_doubt = request.begin, None, False
    for _ in range(MOST_HOLES):
        try:
            for position, record in journal.read(files, start):
                if position >= request.end:
                    return
                if isinstance(record, Admitted | Evicted) and changes is not None:
                    changes += len(record.slots)
                if isinstance(record, Group):
                    if in_doubt and changes != record.changes:
                        yield position, None
                    changes, in_doubt = record.changes, False
                yield position, record
            return
        except journal.DamagedError as damage:
            if damage.position >= request.end:
                return
            if damage.position > request.begin:
                in_doubt = True
                notes.append(str(damage))
            start = damage.resumes_at


def _stream(files: Files, request: Request, notes: list[str]) -> Iterator[tuple[int, int, Item]]:
    """Facts as they come, readings in the order in which they were scored, small groups together.

    Each with the positions of its first and last record, which are of one bucket.
    """
    reorder, number = Reorder(request.lateness_seconds), 0
    waiting: list[Batch] = []
    rows = first = last = 0
    for position, record in _records(files, request, notes):
        goes_on = isinstance(record, Group) and rows < MOST_MERGED
        if waiting and not (goes_on and _bucket(position, request) == _bucket(first, request)):
            yield first, last, _joined(waiting)
            waiting, rows = [], 0
        first, last = position if not waiting else first, position
        if isinstance(record, Group):
            is_sound = _is_sound(record.batch)
            batch = record.batch[np.flatnonzero(is_sound)]
            if reorder.is_used:
                batch = reorder.take(batch, record.arrivals()[is_sound], number).batch
            number += len(batch)
            waiting.append(batch)
            rows += len(batch)
            continue
        if isinstance(record, Lateness):
            reorder.allow(record.seconds)
        elif isinstance(record, Released):
            yield position, position, reorder.release(record.now).batch
        elif isinstance(record, Evicted):
            reorder.evict(np.array(record.slots, np.intp))
        elif record is None:
            reorder.forget()
        yield position, position, record
    if waiting:
        yield first, last, _joined(waiting)


def _bucket(position: int, request: Request) -> int:
    return (position - request.begin) * BUCKETS // max(request.end - request.begin, 1)


def _is_sound(batch: Batch) -> Bool:
    """What a sensor may have measured: the journal is read as it is."""
    sound: Bool = (batch.slot >= 0) & np.isfinite(batch.time) & (np.abs(batch.value) <= LARGEST_VALUE)
    return sound


def _joined(batches: list[Batch]) -> Batch:
    return Batch(*(np.concatenate([getattr(b, name) for b in batches]) for name in ("slot", "time", "value", "flags")))


class _Survey:
    """Who has sent how much, and what is known of it. A series is numbered as it first shows."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._of = np.full(1024, -1, np.intp)  # slot -> series
        self._paused: set[int] = set()
        self._counts = np.zeros((1024, BUCKETS), np.uint32)
        self.slots: list[int] = []
        self.devices: list[str] = []
        self.moves: list[tuple[int, int, int]] = []
        """position, slot, and the series that holds it from there on, -1 for none"""
        self.pauses: list[tuple[int, int, bool]] = []
        """position, series, whether it is paused from there on"""
        self.spans: list[tuple[int, float, float]] = []
        """series, and from when to when it was abnormal"""
        self.notes: list[str] = []

    @property
    def counts(self) -> NDArray[np.uint32]:
        """(series, BUCKETS): readings."""
        return self._counts[: len(self.slots)]

    def take(self, first: int, last: int, item: Item) -> None:
        if isinstance(item, Batch):
            series = self._series(item.slot.astype(np.intp), last)
            found = np.bincount(series, minlength=len(self.slots))
            self.counts[:, _bucket(first, self._request)] += found.astype(np.uint32)
        elif isinstance(item, Admitted):
            for slot, device in zip(item.slots, item.devices, strict=True):
                self._enter(slot, first, device)
        elif isinstance(item, Evicted):
            self._leave(np.array(item.slots, np.intp), first)
        elif isinstance(item, Abnormal):
            self.spans.append((self.holder(item.slot, first), item.since, item.until))
        elif isinstance(item, MarkedNormal):
            for slot in item.slots:
                self._enter(slot, first, self.devices[self.holder(slot, first)])
        elif isinstance(item, Paused | Resumed):
            for slot in item.slots:
                self._pause(self.holder(slot, first), first, isinstance(item, Paused))
        elif item is None:
            self._leave(np.flatnonzero(self._of >= 0), first)

    def holder(self, slot: int, position: int) -> int:
        """The series that holds a slot now."""
        return int(self._series(np.array([slot], np.intp), position)[0])

    def _series(self, slots: Slots, position: int) -> Slots:
        if len(slots) and int(slots.max()) >= len(self._of):
            more = np.full(max(int(slots.max()) + 1, 2 * len(self._of)) - len(self._of), -1, np.intp)
            self._of = np.concatenate([self._of, more])
        for slot in np.unique(slots[self._of[slots] < 0]).tolist():
            self._enter(slot, position, "")
        return self._of[slots]

    def _enter(self, slot: int, position: int, device: str) -> None:
        number = len(self.slots)
        if slot >= len(self._of):
            self._of = np.concatenate([self._of, np.full(slot + 1, -1, np.intp)])
        if number == len(self._counts):
            self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
        self._of[slot] = number
        self.slots.append(slot)
        self.devices.append(device)
        self.moves.append((position, slot, number))

    def _leave(self, slots: Slots, position: int) -> None:
        known = slots[slots < len(self._of)]
        self._of[known] = -1
        self.moves += [(position, slot, -1) for slot in known.tolist()]

    def _pause(self, series: int, position: int, is_paused: bool) -> None:
        if not is_paused and series not in self._paused:  # it was paused before all that is known
            self.pauses.append((self._request.begin, series, True))
        self.pauses.append((position, series, is_paused))
        (self._paused.add if is_paused else self._paused.discard)(series)

    def bounds(self) -> tuple[int, int]:
        """The buckets with which stopping and judging begin."""
        total = np.cumsum(self.counts.sum(axis=0, dtype=np.int64))
        wanted = [share * total[-1] for share in (TRAIN_SHARE, TRAIN_SHARE + STOP_SHARE)]
        stop, judge = (int(np.abs(total - each).argmin()) + 1 for each in wanted)
        span = self._request.end - self._request.begin
        newest = -(-(self._request.judge_from - self._request.begin) * BUCKETS // max(span, 1))
        if newest > judge:
            stop, judge = int(stop * newest / judge), newest
        return min(stop, judge - 1), judge

    def is_paused(self) -> set[int]:
        """Series that are paused now, by the journal or by the request."""
        return self._paused | {int(self._of[slot]) for slot in self._request.paused if 0 <= slot < len(self._of)}

    def current(self) -> NDArray[np.intp]:
        """Slot -> series at the end, -1 for none."""
        return self._of


# --- The readings of those that are chosen ---


def _wanted(survey: _Survey, judge: int, request: Request) -> dict[int, tuple[int, int]]:
    """By series, which of its readings: from the one, to before the other. Drawn where there are too many."""
    before = survey.counts[:, :judge].sum(axis=1, dtype=np.int64)
    after = survey.counts[:, judge:].sum(axis=1, dtype=np.int64)
    usable = before >= LEAST_READINGS
    usable[sorted(survey.is_paused() - {-1})] = False
    able = np.flatnonzero(usable)
    least = min(LEAST_SHARE, request.max_series_steps // LEAST_SERIES)
    share = max(least, request.max_series_steps // max(len(able), 1))
    trained = np.minimum(before, round((TRAIN_SHARE + STOP_SHARE) * share))
    judged = np.minimum(after, share - round((TRAIN_SHARE + STOP_SHARE) * share))
    drawn = np.random.default_rng(request.seed).permutation(able)
    steps = np.cumsum((trained + judged)[drawn])
    taken = np.sort(drawn[: max(1, int((steps <= POOL * request.max_series_steps).sum()))])
    return {int(k): (int(before[k] - trained[k]), int(before[k] + judged[k])) for k in taken}


@dataclass(slots=True, eq=False)
class _Rows:
    """Readings as they were taken, all `(n,)`."""

    series: NDArray[np.intp]
    """numbered among those that are wanted"""
    time: Float64
    value: Float64
    flags: UInt8
    part: UInt8

    def __getitem__(self, rows: NDArray[np.intp] | Bool) -> _Rows:
        return _Rows(*(getattr(self, name)[rows] for name in self.__slots__))


class _Collector:
    """The second reading: the same series by the same moves, whatever the journal has dropped since."""

    def __init__(self, survey: _Survey, bounds: tuple[int, int], wanted: dict[int, tuple[int, int]]) -> None:
        count = len(survey.slots)
        self._moves = iter(survey.moves)
        self._pauses = iter(sorted(survey.pauses, key=lambda pause: pause[0]))
        self._next_move, self._next_pause = next(self._moves, None), next(self._pauses, None)
        self._of = np.full(max(survey.slots, default=0) + 1, -1, np.intp)
        self._paused = np.zeros(count, np.bool_)
        self._seen = np.zeros(count, np.int64)
        self._from, self._to = np.zeros(count, np.int64), np.zeros(count, np.int64)
        self._place = np.full(count, -1, np.intp)
        for place, (number, (begin, end)) in enumerate(wanted.items()):
            self._from[number], self._to[number], self._place[number] = begin, end, place
        self._bounds = np.array(bounds)

    def collect(self, files: Files, request: Request) -> _Rows:
        empty = Batch(np.empty(0, np.int32), np.empty(0), np.empty(0), np.empty(0, np.uint8))
        taken = [self._take(empty, 0)]
        for first, last, item in _stream(files, request, []):
            self._advance(last)
            if isinstance(item, Batch):
                taken.append(self._take(item, _bucket(first, request)))
        names = _Rows.__slots__
        return _Rows(*(np.concatenate([getattr(rows, name) for rows in taken]) for name in names))

    def _advance(self, position: int) -> None:
        while self._next_move is not None and self._next_move[0] <= position:
            self._of[self._next_move[1]] = self._next_move[2]
            self._next_move = next(self._moves, None)
        while self._next_pause is not None and self._next_pause[0] <= position:
            self._paused[self._next_pause[1]] = self._next_pause[2]
            self._next_pause = next(self._pauses, None)

    def _take(self, batch: Batch, bucket: int) -> _Rows:
        is_known = batch.slot < len(self._of)
        series = np.where(is_known, self._of[np.where(is_known, batch.slot, 0)], -1)
        rows = np.flatnonzero(series >= 0)
        series = series[rows]
        by_series = np.argsort(series, kind="stable")
        ranked = series[by_series]
        starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]]) if len(ranked) else np.empty(0, np.intp)
        nth = np.empty(len(series), np.int64)
        nth[by_series] = np.arange(len(series)) - np.repeat(starts, np.diff(np.r_[starts, len(series)]))
        nth += self._seen[series]
        self._seen += np.bincount(series, minlength=len(self._seen))
        is_wanted = (self._place[series] >= 0) & (nth >= self._from[series]) & (nth < self._to[series])
        is_wanted &= ~self._paused[series]
        rows, series = rows[is_wanted], series[is_wanted]
        part = np.full(len(rows), np.searchsorted(self._bounds, bucket, side="right"), np.uint8)
        return _Rows(
            self._place[series],
            batch.time[rows],
            batch.value[rows],
            batch.flags[rows],
            part,
        )


# --- What of it counts ---


def _site(
    rows: _Rows, survey: _Survey, wanted: dict[int, tuple[int, int]], bounds: tuple[int, int], request: Request
) -> Site:
    rows = rows[np.argsort(rows.series, kind="stable")]
    rows = _in_order(rows, len(wanted))
    lengths = np.bincount(rows.series, minlength=len(wanted))
    first = np.cumsum(lengths) - lengths
    normal = np.ones(len(rows.series), np.bool_)
    counts = ~_stuck(rows) & (np.arange(len(rows.series)) - np.repeat(first, lengths) >= WARM_READINGS)
    place = {number: k for k, number in enumerate(wanted)}
    current = survey.current()
    still = [(int(current[slot]), since, np.inf) for slot, since in request.open_abnormal if 0 <= slot < len(current)]
    for number, since, until in [*survey.spans, *still]:
        k = place.get(number)
        if k is None:
            continue
        # By their order: the clock of a series without times of its own may have been set back in the middle.
        time = rows.time[first[k] : first[k] + lengths[k]]
        begin, end = np.flatnonzero(time >= since), np.flatnonzero(time <= until)
        if len(begin) and len(end) and begin[0] <= end[-1]:
            normal[first[k] + begin[0] : first[k] + end[-1] + 1] = False
            counts[first[k] + max(begin[0] - WIDENED, 0) : first[k] + end[-1] + 1] = False
    devices = []
    for number in wanted:
        slot = survey.slots[number]
        is_current = slot < len(current) and current[slot] == number and slot < len(request.devices)
        devices.append(survey.devices[number] or (request.devices[slot] if is_current else "") or f"slot {slot}")
    history = History(rows.time, rows.value, lengths)
    judged_from = request.begin + -(-bounds[1] * (request.end - request.begin) // BUCKETS)
    site = Site(history, normal, counts, rows.part, devices, np.ones(len(wanted)), judged_from, survey.notes)
    teaches = np.bincount(rows.series[site.of(TRAIN)], minlength=len(wanted)) > 0
    moves = np.zeros(len(wanted), np.bool_)
    moves[rows.series[1:][(rows.value[1:] != rows.value[:-1]) & (rows.series[1:] == rows.series[:-1])]] = True
    return site.chosen(np.flatnonzero(teaches & moves))


def _in_order(rows: _Rows, count: int) -> _Rows:
    """Without those that are late or come twice, as the detector sees them."""
    lengths = np.bincount(rows.series, minlength=count)
    first = np.cumsum(lengths) - lengths
    last, seen = np.full(count, np.nan), np.zeros(count, np.bool_)
    keeps = np.zeros(len(rows.series), np.bool_)
    for t in range(int(lengths.max(initial=0))):
        series = np.flatnonzero(lengths > t)
        at = first[series] + t
        arrival_time = (rows.flags[at] & Flag.ARRIVAL_TIME) != 0
        time, duplicate, late = placed(rows.time[at], arrival_time, last[series], seen[series])
        goes_on = ~(duplicate | late)
        rows.time[at] = time
        last[series[goes_on]] = time[goes_on]
        seen[series[goes_on]] = True
        keeps[at] = goes_on
    return rows[keeps]


def _stuck(rows: _Rows) -> Bool:
    """Readings that are the STUCK_READINGS-th equal one in a row of their series, or a later one."""
    moves = np.r_[True, (rows.value[1:] != rows.value[:-1]) | (rows.series[1:] != rows.series[:-1])]
    at = np.arange(len(rows.series))
    if not len(at):
        return np.zeros(0, np.bool_)
    since = np.maximum.accumulate(np.where(moves, at, 0))
    return at - since >= STUCK_READINGS - 1
