"""The shard: all state of a set of series, and what a batch of readings or the passing of time does to it.

Shared-nothing and silent: readings in, verdicts and changes of alarms out. The daemon and `replay` drive the same one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from models.features import Wide
from models.weights import Weights
from streamer.alarms import Change, Note, SavedSilence, SavedValue, SilenceAlarms, ValueAlarms
from streamer.clock import Cadence
from streamer.detector import DIFFERENT_SECONDS, Detector, no_scores, waves
from streamer.readings import Alarm, Batch, Bool, Flag, Float64, Forecaster, Int32, Scores, Unscored
from streamer.records import Abnormal
from streamer.registry import FREE, Registry, RegistryState
from streamer.reorder import Reorder

MADE_BY_WEIGHTS = ("recurrent", "scorer", "calibration", "histogram", "forecasters")
"""Arrays that mean nothing under other weights."""
LATER = ("recent", "recent.count", "pauses", "forecasters", "scorer", "between")
"""Arrays that a snapshot of an earlier version has not: they begin anew, with zeros."""
LISTENED_SECONDS = (
    3600.0  # after an outage, or when the clock was set: so long every series has to show that it is there
)
LOOK_SECONDS = 60.0  # silence is looked for so often at least: what begins after two days may begin a minute later
ROUNDING_SECONDS = 1e-3  # of an epoch time, less an interval: a thousandth of it
PAUSED, RETURNING = 1, 2
"""in `Shard.pauses`: in maintenance; the next reading is the first after it"""


class Ready(NamedTuple):
    """Readings for `process`."""

    batch: Batch
    arrival: Float64
    """(n,) epoch seconds: when each reading came, however long it has waited since"""
    is_heard: bool
    """`hold` has taken note that they came"""
    changes: list[Change]
    """of alarms, since they came"""


NEVER = np.inf, -np.inf
"""From when to when: no moment lies between."""
FindWeights = Callable[[str], Weights | None]
"""By the SHA-256 of their file; None: they are not to be had."""


class Outcome(NamedTuple):
    """What a batch came to."""

    scores: Scores
    """row by row"""
    strictness: Float64
    """(n,): -log10 of the tail probability that is a score of 1; NaN where there is no forecast"""
    granted: Float64
    """(n,): decades of the score that are no rarity; NaN where there is no forecast"""
    changes: list[Change]


class State(NamedTuple):
    """All of a shard, copied: what a snapshot keeps."""

    arrays: dict[str, NDArray[np.generic]]
    """by name, one row a slot; and of the readings that wait, one row each"""
    rest: dict[str, object]
    """registry and open alarms, as JSON can hold them"""


Rows = slice | NDArray[np.intp]


class Copy:
    """The state of a moment, copied piece by piece while the shard goes on, which `keep`s the rows it is to change."""

    def __init__(
        self,
        readers: dict[str, Callable[[Rows], NDArray[np.generic]]],
        count: int,
        rest: dict[str, object],
        copied: dict[str, NDArray[np.generic]],
    ) -> None:
        self._readers = readers
        likes = {name: read(slice(0)) for name, read in readers.items()}
        empty = {n: np.empty((count, *like.shape[1:]), like.dtype) for n, like in likes.items()}
        self._state = State(empty | copied, rest)
        self._is_copied = np.zeros(count, np.bool_)
        self._next = 0

    def keep(self, slots: NDArray[np.integer]) -> None:
        """Before these change."""
        known = slots[slots < len(self._is_copied)].astype(np.intp)
        self._take(known[~self._is_copied[known]])

    def advance(self, rows: int) -> State | None:
        """Copies the next ones; the whole state once it is all there."""
        begin, end = self._next, self._next + rows
        missing = np.flatnonzero(~self._is_copied[begin:end])
        self._take(slice(begin, end) if len(missing) == rows else begin + missing)
        self._next = end
        return self._state if end >= len(self._is_copied) else None

    def _take(self, rows: Rows) -> None:
        for name, read in self._readers.items():
            self._state.arrays[name][rows] = read(rows)
        self._is_copied[rows] = True


class _Rest(msgspec.Struct):
    """The part of a state that is no array."""

    weights_sha256: str
    registry: RegistryState
    value_alarms: SavedValue
    silence_alarms: list[SavedSilence]
    taken: int = 0
    generation: int = 1


class Shard:
    """Registry, detector, cadence and alarms of up to `max_series` series. Owned by one thread."""

    def __init__(
        self,
        registry: Registry,
        weights: Weights,
        max_series: int,
        *,
        budget_per_series_month: float,
        device: str = "cpu",
        offline: bool = False,
        lateness_seconds: float = 0.0,
        generation: int = 1,
        find_weights: FindWeights = lambda _: None,
    ) -> None:
        """`find_weights`: those that a state, or a journal, has been served by."""
        self.registry = registry
        self.reorder = Reorder(lateness_seconds)
        self._configured = self._weights = weights
        self._incoming: tuple[Weights, int] | None = None
        self._known = {weights.sha256: weights}
        self._find_weights = find_weights
        self.generation = generation
        """of the weights"""
        self._device = device
        self._offline = offline
        self.taken = 0
        """readings so far, those too that were late or came twice"""
        self._allocate(max_series, budget_per_series_month)

    def _allocate(self, capacity: int, budget_per_series_month: float) -> None:
        self._capacity = capacity
        self.detector = Detector(
            self._weights,
            capacity,
            budget_per_series_month=budget_per_series_month,
            device=self._device,
            offline=self._offline,
        )
        self.cadence = Cadence(capacity)
        self.value_alarms = ValueAlarms(capacity, self.registry)
        self.silence_alarms = SilenceAlarms(capacity)
        self._none_due = NEVER
        self._copy: Copy | None = None
        self.applied = np.zeros(capacity, np.int64)
        """per slot: readings that were neither late nor came twice"""
        self.pauses = np.zeros(capacity, np.uint8)
        """per slot: 0, PAUSED or RETURNING"""

    def hold(self, batch: Batch, arrival: Float64) -> Ready:
        """Readings have come; gives those that are to be processed, in their order.

        Where there never was an allowance for lateness that is what came. Else some wait, and some that have waited go
        on; but who has sent them is heard now: neither cadence nor silence knows of the wait.
        """
        if not self.reorder.is_used:
            return Ready(batch, arrival, False, [])
        taken = self.reorder.take(batch, arrival, self.taken)
        self.taken += len(batch)
        self._keep(batch.slot)
        is_next = ~(taken.elapsed < DIFFERENT_SECONDS) | ((batch.flags & Flag.ARRIVAL_TIME) != 0)
        is_next &= self.pauses[batch.slot] != PAUSED
        changes: list[Change] = []
        for rows in waves(batch.slot):
            news = rows[is_next[rows]]
            self._observe(batch.slot[news].astype(np.intp), taken.elapsed[news], arrival[news])
            changes += self.hear(batch.slot[rows].astype(np.intp), arrival[rows])
        return Ready(taken.batch, taken.arrival, True, changes)

    def release(self, now: float) -> Ready:
        """Time has passed: gives the readings that have waited enough."""
        taken = self.reorder.release(now)
        return Ready(taken.batch, taken.arrival, True, [])

    def process(self, batch: Batch, arrival: float | Float64, *, is_heard: bool = False) -> Outcome:
        """Scores and learns a batch; no slot may be negative.

        `arrival` `(n,)` or one for all, epoch seconds: when each reading came, however long it has waited since.
        `is_heard`: `hold` has had them.
        """
        arrivals = np.broadcast_to(np.asarray(arrival, np.float64), (len(batch),))
        self.taken += 0 if is_heard else len(batch)
        self._keep(batch.slot)
        scores, (strictness, granted) = no_scores(len(batch)), np.full((2, len(batch)), np.nan)
        notes: list[Note] = []
        heard: list[Change] = []
        pauses = self.pauses[batch.slot]
        has_pauses = bool(pauses.any())  # hardly ever: then this costs one look
        scored = np.flatnonzero(pauses != PAUSED) if has_pauses else None
        if scored is not None and len(scored) < len(batch):
            is_paused = pauses == PAUSED
            scores.unscored[is_paused] = Unscored.PAUSED
            self._pass_over(batch[np.flatnonzero(is_paused)], None if is_heard else arrivals[is_paused])
        for among in waves(batch.slot if scored is None else batch.slot[scored]):
            rows = among if scored is None else scored[among]
            returning = self.pauses[batch.slot[rows]] == RETURNING if has_pauses else None
            part, wave = self.detector.score(batch[rows], returning)
            if has_pauses:
                self.pauses[wave.slots] = 0
            step = self.value_alarms.step(wave, part, rows[wave.rows], self.detector.calibration.keep)
            self.detector.learn(part, wave, step.normal)
            self.applied[wave.slots] += 1
            for end in step.ends:
                self.detector.calibration.put_back(end.slot, end.kept, end.peak_views)
            notes += step.notes
            if not is_heard:
                came = arrivals[rows]
                self._observe(wave.slots, wave.elapsed, came[wave.rows])
                heard += self.hear(batch.slot[rows].astype(np.intp), came)
            scores.put(rows, part)
            strictness[rows[wave.rows]], granted[rows[wave.rows]] = wave.strictness, wave.granted
        return Outcome(scores, strictness, granted, self.value_alarms.settle(notes) + heard)

    def _pass_over(self, batch: Batch, arrivals: Float64 | None) -> None:
        """Readings of paused series, in their order: that they have come is all that is learned from them.

        `arrivals` None: that is known already.
        """
        slots, last = np.unique(batch.slot[::-1].astype(np.intp), return_index=True)
        self.detector.show_value(slots, batch.value[::-1][last])
        if arrivals is not None:  # one by one: how long nothing was heard must not go by how the stream was cut
            for rows in waves(batch.slot):
                self.cadence.hear(batch.slot[rows].astype(np.intp), arrivals[rows])

    def _observe(self, slots: NDArray[np.intp], elapsed: Float64, arrival: Float64) -> None:
        """`slots` (unique) have reported in order, `elapsed` seconds of event time after their last reading."""
        self.cadence.observe(slots, elapsed, arrival, ~self.silence_alarms.is_silent(slots))

    def hear(self, slots: NDArray[np.intp], arrival: Float64) -> list[Change]:
        """`slots` (unique) have sent something, a reading or not, at `arrival` `(n,)`: none of them is silent."""
        self._keep(slots)
        self.cadence.hear(slots, arrival)
        return self.silence_alarms.heard(slots, float(arrival.max(initial=0.0)))

    def find_silent(self, now: float) -> list[Change]:
        """Opens alarms for the series and devices that are overdue `now`.

        While nothing comes nobody is overdue before the next one's time is up: until then there is no need to look. But
        a series that does not report by the clock may become one that can be overdue, by its age alone.
        """
        if self._none_due[0] <= now <= self._none_due[1]:
            return []
        count = self.registry.rows
        watched = np.where(self.pauses[:count] == PAUSED, FREE, self.registry.devices)
        quiet, allowed = self.cadence.quiet_seconds(count, now), self.cadence.allowed_seconds(count, now)
        left = (allowed - quiet)[(watched >= 0) & (quiet <= allowed)]
        self._none_due = now, now + float(left.min(initial=LOOK_SECONDS)) - ROUNDING_SECONDS
        return self.silence_alarms.sweep(
            now, quiet, allowed, self.cadence.arrival(count), watched, self.registry.key, self.registry.device_key
        )

    def listen_from(self, now: float) -> None:
        """Silence is counted from `now` on at the earliest: the daemon has not heard before."""
        self._none_due = NEVER
        self.cadence.listening_since = now

    def open_alarms(self) -> list[Alarm]:
        """Of every kind."""
        return self.value_alarms.open_alarms() + self.silence_alarms.open_alarms()

    def abnormal(self) -> list[tuple[int, float]]:
        """Slot and opening time, by the readings' own clock, of each series that is in a value alarm now."""
        return self.value_alarms.abnormal()

    def spans(self, slots: NDArray[np.intp]) -> list[Abnormal]:
        """What those of these series that are in a value alarm have shown since: it was none of their normal."""
        time = self.detector.statistics.wide[:, Wide.TIME]
        among = set(slots.tolist())
        return [Abnormal(slot, since, float(time[slot])) for slot, since in self.abnormal() if slot in among]

    def paused(self) -> NDArray[np.intp]:
        """The slots of the series that are in maintenance."""
        return np.flatnonzero(self.pauses[: self.registry.rows] == PAUSED)

    def is_paused(self, slots: NDArray[np.intp]) -> Bool:
        """Per slot: it is in maintenance."""
        is_paused: Bool = self.pauses[slots] == PAUSED
        return is_paused

    def is_in_alarm(self, slots: NDArray[np.intp]) -> Bool:
        """Per slot: it belongs to an open alarm of any kind."""
        return self.value_alarms.is_open(self._capacity)[slots] | self.silence_alarms.is_silent(slots)

    def pause(self, slots: NDArray[np.intp], now: float) -> list[Change]:
        """These series (unique) are in maintenance: nothing is scored, learned or missed; their alarms close."""
        self._keep(slots)
        self.pauses[slots] = PAUSED
        self.detector.show_value(slots, self.detector.latest[slots, 1])
        changes, ends = self.value_alarms.take_out(slots, "paused")
        for end in ends:
            self.detector.calibration.put_back(end.slot, end.kept, end.peak_views)
        return changes + self.silence_alarms.take_out(slots, now, "paused")

    def resume(self, slots: NDArray[np.intp], now: float) -> None:
        """They are watched again, as after a gap; those that were not paused stay as they are."""
        slots = slots[self.pauses[slots] == PAUSED]
        self._keep(slots)
        self.pauses[slots] = RETURNING
        self.cadence.await_from(slots, now)

    def mark_normal(self, slots: NDArray[np.intp], now: float) -> list[Change]:
        """What these series (unique) do now is normal: their alarms close, and what they were is forgotten.

        How often they report stays known where only their values are in alarm.
        """
        self._keep(slots)
        keeps_cadence = self.value_alarms.is_open(self._capacity)[slots] & ~self.silence_alarms.is_silent(slots)
        changes, _ = self.value_alarms.take_out(slots, "marked normal")
        changes += self.silence_alarms.take_out(slots, now, "marked normal")
        self.detector.begin_anew(slots)
        self.cadence.begin_anew(slots[~keeps_cadence])
        return changes

    def _keep(self, slots: NDArray[np.integer]) -> None:
        """Before these rows change."""
        self._none_due = NEVER
        if self._copy is not None:
            self._copy.keep(slots)

    def warming(self) -> int:
        """How many series have no verdict yet."""
        count = self.registry.rows
        return int((self.detector.is_warming(count) & (self.registry.devices >= 0)).sum())

    def forecast_loss(self, slots: NDArray[np.integer]) -> float:
        """How far off the weights have been on these series of late, in usual steps of each; NaN if nobody knows."""
        return self.detector.forecasters.loss(slots.astype(np.intp))

    def in_charge(self) -> dict[Forecaster, int]:
        """How many series each forecaster is in charge of."""
        leads = self.detector.forecasters.lstm_leads(slice(self.registry.rows))[self.registry.devices >= 0]
        return {Forecaster.LSTM: int(leads.sum()), Forecaster.BASELINE: int((~leads).sum())}

    def idle(self, now: float, idle_seconds: float, most: int) -> NDArray[np.intp]:
        """The slots that can best be spared, at most `most`: they have sent nothing for `idle_seconds`.

        Nor for as long as their cadence allows, nor in the last hour, in which the daemon has listened. Those without a
        verdict so far go first, those in an alarm last, of silence before of value, and those that are paused with
        these; then who has been quiet longest.
        """
        count = self.registry.rows
        arrival, allowed = self.cadence.arrival(count), self.cadence.allowed_seconds(count, now)
        least = np.where(np.isfinite(allowed), np.maximum(allowed, LISTENED_SECONDS), LISTENED_SECONDS)
        is_idle = (now - arrival > idle_seconds) & (self.cadence.quiet_seconds(count, now) > least)
        slots = np.flatnonzero(is_idle & (self.registry.devices >= 0))
        worth = 1 - self.detector.is_warming(count)[slots].astype(np.int64)
        worth += 2 * self.silence_alarms.is_silent(slots)
        worth += 4 * (self.value_alarms.is_open(count)[slots] | (self.pauses[slots] == PAUSED))
        return slots[np.lexsort((slots, arrival[slots], worth))[:most]]

    def evict(self, slots: NDArray[np.intp], now: float) -> list[Change]:
        """Forgets these series; their alarms close."""
        self._keep(slots)
        changes, _ = self.value_alarms.take_out(slots, "evicted")
        changes += self.silence_alarms.take_out(slots, now, "evicted")
        self.registry.evict(slots.astype(np.int32))
        self.reorder.evict(slots)
        self.detector.evict(slots)
        self.cadence.evict(slots)
        self.applied[slots] = 0
        self.pauses[slots] = 0
        return changes

    def live(self, now: float, stale_seconds: float) -> Int32:
        """Slots of the series that have reported within `stale_seconds`, or within what their cadence allows."""
        count = self.registry.rows
        absent, known = self.cadence.absent_seconds(count, now), self.registry.devices >= 0
        fresh = absent <= stale_seconds
        if not fresh[known].all():
            allowed = self.cadence.allowed_seconds(count, now)
            fresh |= np.isfinite(allowed) & (absent <= allowed)
        return np.flatnonzero(fresh & known).astype(np.int32)

    # --- Other weights ---

    @property
    def weights(self) -> Weights:
        """Those that serve; while others come in, the old ones."""
        return self._weights

    @property
    def is_swapping(self) -> bool:
        """Some series may be served by other weights already."""
        return self._incoming is not None

    @property
    def coming(self) -> int | None:
        """The generation that comes in; None while none does."""
        return None if self._incoming is None else self._incoming[1]

    def begin_swap(self, weights: Weights, generation: int) -> None:
        """These are to serve, once `go_on_swapping` has come to the last series; until then no copy may begin.

        What another swap had begun is finished first.
        """
        self.finish_swap()
        self._known[weights.sha256] = weights
        self._incoming = weights, generation
        self.detector.begin_swap(weights)

    def begin_swap_to(self, sha256: str, generation: int) -> bool:
        """The same with weights by their name; False if they are not to be had."""
        self.finish_swap()  # in any case: what is rebuilt from here on is not of the swap before
        found = self._find(sha256)
        if found is not None:
            self.begin_swap(found, generation)
        return found is not None

    def next_rebuilt(self, rows: int) -> int:
        """Up to which slot `go_on_swapping` should come, for so many at once."""
        return min((self.detector.rebuilt or 0) + rows, self.registry.rows)

    def go_on_swapping(self, end: int) -> bool:
        """The series up to slot `end` are served by the incoming weights; with the last one the swap is over: True."""
        if self._incoming is None:
            return True
        if self._copy is not None:
            self._copy.keep(np.arange(self.detector.rebuilt or 0, end))
        self.detector.rebuild(end)
        if end < self.registry.rows:
            return False
        self.detector.finish_swap()
        (self._weights, self.generation), self._incoming = self._incoming, None
        self._known = {each.sha256: each for each in (self._configured, self._weights)}  # not all that have ever served
        return True

    def finish_swap(self) -> None:
        """At once, however many series are left."""
        self.go_on_swapping(self.registry.rows)

    def give_up_swap(self) -> None:
        """The old weights go on; what those series that were served by the others have missed, they have missed."""
        self._incoming = None
        self.detector.give_up_swap()

    def make_room(self, rows: int) -> None:
        """Holds so many series, although the limit may have been lowered since they were let in."""
        if rows > self._capacity:
            self.finish_swap()
            state, listening_since = self.export(), self.cadence.listening_since
            self._allocate(rows, self.detector.budget_per_series_month)
            self.restore(state)
            self.cadence.listening_since = listening_since

    def begin_anew(self) -> None:
        """Forgets everything, as if it had met no reading."""
        self._incoming = None
        self._allocate(self._capacity, self.detector.budget_per_series_month)
        self.registry.forget()
        self.reorder.forget()
        self.taken = 0

    def export(self) -> State:
        """A copy of everything, in the order of the slots."""
        state = self._new_copy().advance(max(self.registry.rows, 1))
        if state is None:
            raise AssertionError("a copy of all rows is whole")
        return state

    def begin_copy(self) -> None:
        """Of everything as it is now; one that was not finished is given up."""
        self._copy = self._new_copy()

    def go_on_copying(self, rows: int) -> State | None:
        """Copies some more; the state as it was at `begin_copy` once it is all there."""
        state = self._copy.advance(rows) if self._copy is not None else None
        if state is not None:
            self._copy = None
        return state

    def _new_copy(self) -> Copy:
        rest = _Rest(
            self._weights.sha256,
            self.registry.state(),
            self.value_alarms.state(),
            self.silence_alarms.state(),
            self.taken,
            self.generation,
        )
        waiting = self.reorder.state(self.registry.rows)
        return Copy(self._readers(), self.registry.rows, msgspec.to_builtins(rest), waiting)

    def _readers(self) -> dict[str, Callable[[Rows], NDArray[np.generic]]]:
        """By name of the array: what gives its rows."""
        others: dict[str, NDArray[np.generic]] = {
            "cadence": self.cadence.rows,
            "between": self.cadence.between,
            "noted": self.value_alarms.noted,
            "applied": self.applied,
            "pauses": self.pauses,
        }
        arrays = self.detector.arrays() | others
        recurrent = {"recurrent": self.detector.stepper.export, "scorer": self.detector.scorer.export}
        return recurrent | {n: array.__getitem__ for n, array in arrays.items()}

    def restore(self, state: State) -> str | None:
        """Becomes what `export` saw; for a shard that has met no reading. None, or what had to be left behind.

        The weights that have made it serve. Where they are not to be had, (h, c) and the calibration begin anew under
        these, the running statistics stay. Raises ValueError if the state is not one of this shard's kind; then nothing
        is taken.
        """
        try:
            rest = msgspec.convert(state.rest, _Rest)
        except msgspec.ValidationError as error:
            raise ValueError(f"the state is not of this kind: {error}") from error
        count = len(rest.registry.keys)
        before, found = self._weights, self._find(rest.weights_sha256)
        is_ours = found is not None
        self._serve(found or before)
        try:
            arrays = {
                name: _fitting(name, _known(name, state, like, count), like, count)
                for name, like in ((name, read(slice(0))) for name, read in self._readers().items())
                if is_ours or name not in MADE_BY_WEIGHTS
            }
        except ValueError:
            self._serve(before)
            raise
        self._none_due = NEVER
        self.reorder.restore(state.arrays, count)
        if count > self._capacity:  # the limit was lowered: what is known stays, nothing new is let in
            self._allocate(count, self.detector.budget_per_series_month)
        self.registry.restore(rest.registry)
        self.detector.restore(arrays)
        self.cadence.rows[:count] = arrays["cadence"]
        self.cadence.between[:count] = arrays["between"]
        self.value_alarms.noted[:count] = arrays["noted"]
        self.applied[:count] = arrays["applied"]
        self.pauses[:count] = arrays["pauses"]
        self.taken = rest.taken
        self.generation = rest.generation if is_ours else self.generation
        self.value_alarms.restore(rest.value_alarms, with_kept=is_ours)
        self.silence_alarms.restore(rest.silence_alarms)
        return None if is_ours else "the hidden states and the calibration: other weights had made them"

    def _find(self, sha256: str) -> Weights | None:
        if sha256 not in self._known:
            found = self._find_weights(sha256)
            if found is None:
                return None
            self._known[sha256] = found
        return self._known[sha256]

    def _serve(self, weights: Weights) -> None:
        """For a shard that has met no reading."""
        if weights is not self._weights:
            self._weights = weights
            self._allocate(self._capacity, self.detector.budget_per_series_month)


def _known(name: str, state: State, like: NDArray[np.generic], count: int) -> NDArray[np.generic] | None:
    if name not in state.arrays and name in LATER:
        return np.zeros((count, *like.shape[1:]), like.dtype)
    return state.arrays.get(name)


def _fitting(
    name: str, found: NDArray[np.generic] | None, like: NDArray[np.generic], count: int
) -> NDArray[np.generic]:
    """The array, if it has `count` rows of the kind of `like`. Raises ValueError."""
    if found is None or found.dtype != like.dtype or found.shape != (count, *like.shape[1:]):
        raise ValueError(f"the state's array {name} does not fit")
    return found
