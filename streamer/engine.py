"""The one loop that owns the state: a turn takes what waits, reads it, makes it safe, scores it, tells what changed.

Only the engine's thread touches the shard. Everyone else puts messages into the inbox, leaves a `Change of settings` in
the one-slot mailbox, or reads what a turn has finished: counters, the table of series, the list of alarms.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple, TypeVar

import numpy as np

from models.weights import Weights
from streamer import outbox
from streamer.alarms import Change
from streamer.clock import STALE_SECONDS, Clock
from streamer.detector import no_scores
from streamer.exposition import SeriesTable
from streamer.inbox import Inbox
from streamer.intake import Intake
from streamer.journal import Journal
from streamer.log import SparingLog, event
from streamer.metrics import ALARM_KINDS, Metrics, TurnCounts
from streamer.orders import Deed, Orders, understood
from streamer.payloads import Decoder
from streamer.readings import Alarm, Float64, Message, Unscored
from streamer.records import (
    Abnormal,
    Evicted,
    Fact,
    Heard,
    Paused,
    Rebuilt,
    Released,
    Swapped,
    Swept,
)
from streamer.recovery import apply, slices
from streamer.redelivery import Redelivery
from streamer.remembrance import Remembrance
from streamer.requests import Command, Result
from streamer.safekeeping import PATIENCE_SECONDS, RETRY_SECONDS, Begin, Safekeeping, at_once
from streamer.shadow import Comparison
from streamer.shard import Outcome, Ready, Shard
from streamer.telling import HandOn, Publish, States, Telling
from streamer.topics import command_topic
from streamer.traces import Traces

log = logging.getLogger(__name__)
T = TypeVar("T")

MAX_BATCH = 4096  # messages a turn: the cost per reading has stopped falling, the latency not yet risen
FIRST_BATCH, LEAST_BATCH = 256, 16
TURN_SECONDS = 0.5  # a turn is kept about as short: a thousand readings of one series cost as much as a million of many
SWEEP_SECONDS = 1.0  # how often silence is looked for and the table of series renewed
STILL_SECONDS = 10.0  # how often it is looked who has become stale, while nothing comes
OWED_SNAPSHOT_SECONDS = 5.0  # one that must be written before anything is acknowledged is tried so often
REST_SECONDS = 0.05  # between two looks whether a slow disk has answered
STUCK_SECONDS = 30.0  # a turn that takes longer means that scoring stands still
IDLE_SECONDS = 48 * 3600.0  # a series that has been quiet for so long makes room for a new one
MOST_EVICTED = 1000  # in a sweep: some milliseconds
MOST_WATCHED = 256  # series for which the weights before forecast on
REBUILT_ROWS = 64  # series that get their state under other weights between two turns: 15 to 25 ms
MOST_CLOSED = 100  # alarms that were closed of late are kept for who looks on
MOST_SHOWN = 200  # characters of a key that somebody else has written, in the log
MAX_PENDING_BYTES = 64 << 20  # of readings that a disk refuses: they are kept in memory, and then no more are taken


@dataclass(frozen=True, slots=True)
class Adjustment:
    """Settings that change while the engine runs."""

    decoder: Decoder
    budget_per_series_month: float
    silent: bool


class Occasion(NamedTuple):
    """What a retraining has to know of the moment at which it begins."""

    end: int
    """position in the journal: all before it is durable"""
    open_abnormal: list[tuple[int, float]]
    """slot, and since when it has been in an alarm"""
    paused: list[int]
    """slots"""
    devices: list[str]
    """by slot: the key of its device, empty where there is none"""
    budget_per_series_month: float


class Engine:
    """Turns messages into verdicts. `start` runs it in a thread of its own; tests and tools call `turn` themselves."""

    def __init__(
        self,
        *,
        instance: str,
        shard: Shard,
        decoder: Decoder,
        inbox: Inbox,
        metrics: Metrics,
        clock: Clock,
        publish: Publish,
        acknowledge: Callable[[Sequence[Message]], None],
        hearing: Callable[[], int],
        journal: Journal | None = None,
        redelivery: Redelivery | None = None,
        session: Callable[[], int] = lambda: 0,
        save: Callable[[Shard], Iterator[None]] = lambda _: iter(()),
        owes_snapshot: Callable[[], bool] = lambda: False,
        remember: Callable[[list[Alarm]], None] = lambda _: None,
        commit_seconds: float = 0.01,
        begin: Begin = at_once,
        patience_seconds: float = PATIENCE_SECONDS,
        max_pending_bytes: int = MAX_PENDING_BYTES,
        snapshot_seconds: float = 300.0,
        max_future_seconds: float = 300.0,
        idle_seconds: float = IDLE_SECONDS,
        silent: bool = True,
        publish_series: States = "alarm",
        hand_on: HandOn = lambda _what, _alarm, _payload: None,
        rebuilt_rows: int = REBUILT_ROWS,
        takes_commands: bool = False,
        listeners: Mapping[str, Callable[[Message], None]] = MappingProxyType({}),
        forgotten: Callable[[Sequence[str]], None] = lambda _: None,
    ) -> None:
        """`hearing` gives the number of the connection by which the daemon hears every sensor, 0 while it does not.

        `session` gives the number of the connection that began the broker's session. `save` is given a shard that
        stands at the end of the journal, and copies that state from its first `next` on, a piece between two turns.
        While it `owes_snapshot` nothing is acknowledged, and one is tried every few seconds. `begin` calls what may
        have to wait for the disk, one after the other, and so does not keep the engine waiting for longer than
        `patience_seconds`. `takes_commands`: also by MQTT. `hand_on` gets each alarm event that MQTT gets,
        a listener each message on its topic, which `decoder` must not want, `forgotten` the keys of series that are no
        more; none of them may wait.
        """
        self._instance = instance
        self._shard = shard
        self._inbox = inbox
        self._metrics = metrics
        self._clock = clock
        self._redelivery = redelivery or Redelivery()
        self._safekeeping = Safekeeping(
            shard,
            journal,
            self._redelivery,
            acknowledge,
            max_pending_bytes,
            owes_snapshot=owes_snapshot,
            begin=begin,
            patience_seconds=patience_seconds,
        )
        self._owes_snapshot = owes_snapshot
        self._commit_seconds = commit_seconds if journal is not None else 0.0
        self._committed_at = -np.inf
        self._has_left = False
        """in the middle of a group: the state is none that a snapshot could name"""
        self._leaving = threading.Event()
        self._hearing = hearing
        self._save = save
        self._snapshot_seconds = snapshot_seconds
        self._idle_seconds = idle_seconds
        self._silent = silent
        self._telling = Telling(instance, shard, publish, metrics, publish_series, hand_on)
        self._rebuilt_rows = rebuilt_rows
        self._listeners = listeners
        self._forgotten = forgotten
        self._command_topic = command_topic(instance) if takes_commands else None
        self._sparing = SparingLog(log, 10.0, clock.monotonic)

        self._intake = Intake(
            decoder,
            self._safekeeping,
            shard.registry,
            session=session,
            divert=self._divert,
            hear=self._hear,
            max_future_seconds=max_future_seconds,
            sparing=self._sparing,
        )
        self._heard_by = 0
        self._taken_until = -np.inf
        """arrival of the last message that was taken"""
        self._has_settled = False
        self._listed_at = -np.inf
        self._remembrance = Remembrance(remember, begin)
        self._young: deque[tuple[int, Abnormal]] = deque()
        """what was abnormal, of which the disk may not know yet; with the position below which it would"""
        self._swept_at = -np.inf
        self._saved_at = clock.monotonic()
        self._saving: Iterator[None] | None = None
        self._mailbox: Adjustment | None = None
        self._swaps_asked, self._swaps_begun = 0, 0
        self._asked: deque[Callable[[], None]] = deque()
        self._orders = Orders(metrics, self._sparing, self._reply)
        self._thread: threading.Thread | None = None
        self._leave_by: float | None = None  # monotonic; set by `stop`
        self._failure: BaseException | None = None

        self.progress_at = clock.monotonic()
        """steady seconds of the last finished turn"""
        self.table: SeriesTable | None = None
        """the series as of the last sweep; replaced, never changed"""
        self.loss = np.nan
        """of the forecasts of the whole site, of late, as of the last sweep"""
        self.comparison: Comparison | None = None
        """of the weights that serve with those that are watched, as of the last sweep"""
        self.alarms: list[Alarm] = []
        """the open alarms as of the last change or sweep; replaced, never changed"""
        self.closed_alarms: tuple[Alarm, ...] = ()
        """those that this run has closed of late, the last one at the end; replaced, never changed"""
        self.traces = Traces()
        """for questions to `ask`: the engine's thread owns them"""

    # --- For other threads ---

    def start(self) -> None:
        """Begin to take messages."""
        with self._metrics.lock:  # what waits of an earlier run will have its verdict from this one
            self._metrics.add("readings_decoded_total", len(self._shard.reorder))
            self._metrics.set("readings_pending", len(self._shard.reorder))
        self._show(self._clock.now())
        if self._owes_snapshot():
            self._saved_at = -np.inf
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def stop(self, timeout_seconds: float) -> bool:
        """Take what is in the inbox for half the time, save, end; True if all was taken. Close the inbox first.

        What is left is not acknowledged: the broker has it for the next start.
        """
        self._leave_by = self._clock.monotonic() + timeout_seconds / 2
        self._leaving.set()
        if self._thread is None:
            return True
        self._thread.join(timeout_seconds)
        return not self._thread.is_alive() and self._failure is None and self._inbox.queued() == 0

    def close_lost(self, remembered: list[Alarm], closed: Mapping[str, Alarm] | None = None) -> None:
        """Before `start`: the alarms that were open when the last run ended, however it ended.

        Those of which the restored state knows nothing are told as closed; the run that closed them may have told it
        before it was killed, and then that one is told twice, by the same event, which the journal has had `closed`.
        The retained states of all series that are in no alarm by the state are taken back. Those that are open and were
        not remembered are told as opened: the run that opened them may have been killed before it could. That one is
        told twice does no harm, its id is the same.
        """
        self._remembrance.compare(self._shard.open_alarms(), remembered, closed or {})

    def add_abnormal(self, abnormal: Sequence[Abnormal]) -> None:
        """Before `start`: what a run that was killed could not write any more."""
        self._append_each(abnormal)

    def adjust(self, adjustment: Adjustment) -> None:
        """Applied between two turns; a later one replaces one that has not been applied yet."""
        self._mailbox = adjustment

    def ask(self, question: Callable[[Shard], T]) -> Future[T]:
        """The answer of the engine's thread, between two turns."""
        future: Future[T] = Future()

        def answer() -> None:
            try:
                future.set_result(question(self._shard))
            except BaseException as error:
                future.set_exception(error)
                raise

        self._asked.append(answer)
        return future

    def swap(self, weights: Weights, generation: int, *, is_watched: bool = False) -> None:
        """These are to serve: begun between two turns, and gone on with between the next ones.

        `is_watched`: those that serve now go on forecasting for a sample of the series, unheard: `comparison`.
        """
        self._swaps_asked += 1

        def begin(shard: Shard) -> None:
            self._watch(shard.weights if is_watched else None, is_serving=True)
            self._safekeeping.append(Swapped(generation, weights.sha256))
            shard.begin_swap(weights, generation)
            self._swaps_begun += 1  # from here on the shard says it itself: `is_swapping` must not be False in between
            event(log, logging.INFO, "other weights come in", generation=generation, sha256=weights.sha256[:16])

        self.ask(begin)

    def watch(self, weights: Weights | None) -> None:
        """These, which do not serve, forecast on for a sample of the series, unheard; None: nobody any more."""
        self.ask(lambda _: self._watch(weights, is_serving=False))

    def occasion(self) -> Future[Occasion]:
        """What a retraining wants to know of this moment."""

        def look(shard: Shard) -> Occasion:
            registry = shard.registry
            devices = [registry.device_key(registry.device(s)) if registry.key(s) else "" for s in range(registry.rows)]
            self._drop_young()
            abnormal = shard.abnormal() + [(each.slot, each.since) for _, each in self._young]
            budget = shard.detector.budget_per_series_month
            return Occasion(self._safekeeping.durable, abnormal, shard.paused().tolist(), devices, budget)

        return self.ask(look)

    @property
    def generation(self) -> int:
        """Of the weights that serve; while others come in, the old ones'."""
        return self._shard.generation

    @property
    def is_swapping(self) -> bool:
        """Other weights are coming in, or wanted."""
        return self._swaps_asked > self._swaps_begun or self._shard.is_swapping

    def command(self, command: Command, by: str = "request file") -> Future[Result]:
        """Obeyed between two turns; the result comes when a start would repeat it. From any thread."""
        return self._orders.put(command, by)

    @property
    def has_failed(self) -> bool:
        """A bug has ended the engine's thread."""
        return self._failure is not None

    @property
    def is_safe_unsaved(self) -> bool:
        """Whatever has become of the last snapshot, a start finds all in the journal."""
        return self._safekeeping.has_journal and self._safekeeping.is_safe and not self._owes_snapshot()

    def journal_trouble(self) -> str | None:
        """Why nothing is acknowledged, None while all is well."""
        return self._safekeeping.trouble(self._clock.monotonic())

    def pending_bytes(self) -> int:
        """What waits in memory for the disk, unacknowledged."""
        return self._safekeeping.pending_bytes

    def trouble(self) -> str | None:
        """Why scoring stands still, None while it does not."""
        if self._failure is not None:
            return f"the engine has failed: {self._failure!r}"
        standing = self._clock.monotonic() - self.progress_at
        if standing > STUCK_SECONDS:
            return f"the engine has not finished a turn for {standing:.0f} seconds"
        return None

    # --- The engine's thread ---

    def _run(self) -> None:
        try:
            limit = FIRST_BATCH
            while not self._is_to_leave():
                messages = self._take(limit)
                started = self._clock.monotonic()
                self.turn(messages)
                if messages:
                    share = TURN_SECONDS / max(self._clock.monotonic() - started, TURN_SECONDS / MAX_BATCH)
                    limit = min(max(int(len(messages) * share), LEAST_BATCH), MAX_BATCH)
            self._safekeeping.commit([], np.inf, is_last=True)
            self._orders.answer_last(self._safekeeping.is_kept)
            self._saving = None  # one that is not finished is older
            if self._is_remembered() and self._save_if_whole():
                while self._go_on_saving():
                    pass
            self._safekeeping.close()
        except BaseException as error:
            self._failure = error
            event(log, logging.CRITICAL, "engine failed", error=repr(error))
            raise

    def _take(self, limit: int) -> list[Message]:
        """What waits; a sync begins no sooner than `commit_seconds` after the one before began: messages gather.

        Meanwhile the one before ends, and what came with it is scored: only what is left of the time is waited for.
        """
        if self._safekeeping.is_full:
            self._leaving.wait(RETRY_SECONDS)
            return []
        if self._waits_to_save() and self._leave_by is None:
            self._leaving.wait(REST_SECONDS)
            return []
        is_idle = self._saving is None and not self.is_swapping
        messages = self._inbox.take(limit, SWEEP_SECONDS if is_idle else 0)
        rest_seconds = self._committed_at + self._commit_seconds - self._clock.monotonic()
        if messages and len(messages) < limit and rest_seconds > 0:
            self._inbox.gather(limit - len(messages), rest_seconds)
            messages += self._inbox.take(limit - len(messages), 0)
        return messages

    def _waits_to_save(self) -> bool:
        """A snapshot is due, and a slow disk is always at something: it ends if nothing more is taken."""
        now = self._clock.monotonic()
        is_due = now - self._saved_at >= self._save_every_seconds() and not self._shard.is_swapping
        return is_due and not self._safekeeping.is_safe and self._safekeeping.disk_trouble(now) is None

    def _save_every_seconds(self) -> float:
        return OWED_SNAPSHOT_SECONDS if self._owes_snapshot() else self._snapshot_seconds

    def _save_if_whole(self) -> bool:
        """A snapshot must be neither ahead of the journal nor in the middle of a group."""
        if self._has_left or not self._safekeeping.is_safe:
            return False
        if self._shard.is_swapping:
            if self._safekeeping.has_journal:  # it is all in there
                return False
            self._shard.give_up_swap()  # the next start begins it again; to finish it would take seconds
        if not self._is_remembered():  # how an alarm closed is in the journal, and not in a replay from here on
            return False
        self._saving = self._save(self._shard)
        self._go_on_saving()
        self._safekeeping.begin_anew()
        return True

    def _go_on_saving(self) -> bool:
        """The next piece of the state, copied before anything more changes; True if there may be another."""
        if self._saving is None:
            return False
        try:
            next(self._saving)
        except StopIteration:
            self._saving = None
        return self._saving is not None

    def _is_to_leave(self) -> bool:
        if self._leave_by is None:
            return False
        if self._safekeeping.is_full:  # nothing more would be taken
            return True
        return self._inbox.queued() == 0 or self._clock.monotonic() >= self._leave_by

    def turn(self, messages: list[Message]) -> None:
        """One turn: everything that follows from these messages and from the time that has passed."""
        started = self._clock.monotonic()
        self._take_mail()
        while self._asked:
            self._asked.popleft()()
        self._go_on_swapping()
        self._listen()
        self._obey(started)
        if messages:
            self._tell_past()  # a session's backlog comes ahead of SUBACK: "opened" before what closes it
            self._settle(messages, started)
        elif self._safekeeping.is_due:
            self._commit([], started)
        if started - self._swept_at >= SWEEP_SECONDS:
            self._sweep(started)
        is_due = started - self._saved_at >= self._save_every_seconds()
        if not self._go_on_saving() and is_due and not self._shard.is_swapping:
            self._saved_at = started if self._save_if_whole() else self._saved_at
        self._orders.answer(self._safekeeping.is_kept)
        self.progress_at = self._clock.monotonic()

    def _settle(self, messages: list[Message], started: float) -> None:
        now = self._clock.now()
        self._taken_until = messages[-1].arrival
        fates = self._intake.read(messages)
        self._obey(started)  # what these messages command: it is safe before they are acknowledged
        admitted = self._intake.admit(now, fates)
        self._commit(messages, started)
        ready = self._shard.hold(admitted.group.batch, admitted.group.arrivals())
        outcome = self._process(ready)
        if outcome is None:
            return
        self._safekeeping.applied(messages)
        finished = self._clock.now()
        turn = TurnCounts(
            decoded=fates.counts["decoded"],
            retained=fates.counts["retained"],
            ignored=fates.counts["ignored"],
            rejected=fates.rejected,
            readings=admitted.readings,
            verdicts=np.bincount(outcome.scores.unscored, minlength=len(Unscored)),
            readings_rejected=admitted.rejected,
            pending=len(self._shard.reorder),
            series_refused=admitted.series_refused,
            alarms_opened=_kinds(outcome, "opened"),
            alarms_closed=_kinds(outcome, "closed"),
            latency_seconds=_latency_seconds(ready, outcome, finished),
            seconds=self._clock.monotonic() - started,
            finished_at=finished,
        )
        with self._metrics.lock:
            self._inbox.done()
            self._metrics.settle(turn)

    def _divert(self, message: Message) -> None:
        """It is none with readings: a command, or for a listener, or nobody's."""
        if message.topic == self._command_topic:
            self._orders.take(message)
        elif listener := self._listeners.get(message.topic):
            listener(message)

    def _commit(self, messages: Sequence[Message], started: float) -> None:
        """Append, fdatasync, PUBACK: only what is safe is acknowledged."""
        self._committed_at = self._clock.monotonic()
        self._safekeeping.commit(messages, started)
        trouble = self.journal_trouble()
        if trouble is not None:
            self._sparing.event(logging.ERROR, "nothing is acknowledged", per="journal", reason=trouble)

    def _process(self, ready: Ready) -> Outcome | None:
        """Hands readings to the shard and tells what changed; None if it is time to leave in the middle of it.

        Then their messages are not settled. With a journal they are safe, and the next start takes them from there;
        without one they are not acknowledged: the broker sends them again, and those of their readings that have been
        taken are duplicates. Readings that have waited may be of messages that are acknowledged: without a journal
        they are seen through.
        """
        batch, parts = ready.batch, slices(ready.batch)
        may_leave = len(parts) > 1 and (self._safekeeping.has_journal or not ready.is_heard)
        self._tell(ready.changes)
        self._telling.note(batch.slot)
        self._has_settled = True
        unknown = np.full(len(batch), np.nan)
        whole = Outcome(no_scores(len(batch)), unknown, unknown.copy(), list(ready.changes))
        for rows in parts:
            if may_leave and self._leave_by is not None and self._clock.monotonic() >= self._leave_by:
                self._has_left = self._safekeeping.has_journal
                return None
            part = self._shard.process(batch[rows], ready.arrival[rows], is_heard=ready.is_heard)
            self.traces.take(batch[rows], part.scores)
            self._tell(part.changes)
            if len(parts) == 1 and not ready.changes:
                return part
            whole.scores.put(np.arange(len(batch))[rows], part.scores)
            whole.strictness[rows], whole.granted[rows] = part.strictness, part.granted
            whole.changes.extend(part.changes)
            self.progress_at = self._clock.monotonic()
        return whole

    def _append_each(self, facts: Sequence[Fact]) -> None:
        for fact in facts:
            self._safekeeping.append(fact)
            if isinstance(fact, Abnormal):
                self._young.append((self._safekeeping.end, fact))
        self._drop_young()

    def _drop_young(self) -> None:
        while self._young and self._young[0][0] <= self._safekeeping.durable:
            self._young.popleft()

    def _hear(self, keys: list[str], now: float) -> None:
        """Readings of these series were refused; but somebody is there."""
        slots = {slot for key in keys if (slot := self._shard.registry.find(key)) is not None}
        if slots:
            self._safekeeping.append(Heard(sorted(slots), now))
            self._tell(self._shard.hear(np.array(sorted(slots), np.intp), np.full(len(slots), now)))

    def _listen(self) -> None:
        """Before anything is taken in: silence, and the intervals that teach, begin when the daemon begins to hear."""
        before, self._heard_by = self._heard_by, self._hearing()
        if self._heard_by != before or not self._heard_by:
            self._shard.listen_from(self._clock.now())
        if self._heard_by and self._heard_by != before:
            self._say_anew()

    def _say_anew(self) -> None:
        """A broker that was away may have lost what it had retained; and a run that was killed has left some behind."""
        self._tell_past()
        self._telling.alarms_anew(self._clock.now())

    def _tell_past(self) -> None:
        """Once: what `close_lost` has found."""
        self._tell(self._remembrance.take_untold())
        self._tell(self._remembrance.take_lost(self._clock.now()))

    def _is_remembered(self) -> bool:
        """What has been told is on disk; False if the disk does not answer soon."""
        self.alarms = self._shard.open_alarms()  # also those that a restored state has brought
        return self._remembrance.is_kept(self.alarms)

    def _take_mail(self) -> None:
        adjustment, self._mailbox = self._mailbox, None
        if adjustment is not None:
            self._intake.decoder = adjustment.decoder
            self._silent = adjustment.silent
            self._shard.detector.budget_per_series_month = adjustment.budget_per_series_month

    def _watch(self, weights: Weights | None, *, is_serving: bool) -> None:
        self.comparison, detector = None, self._shard.detector
        if weights is None:
            detector.shadow = None
            return
        slots = np.flatnonzero(self._shard.registry.devices >= 0)
        sample = np.random.default_rng(0).permutation(slots)[:MOST_WATCHED]
        detector.watch(weights, sample, is_serving=is_serving)

    def _go_on_swapping(self) -> None:
        """Other weights, some series at a time."""
        if not self._shard.is_swapping:
            return
        end = self._shard.next_rebuilt(self._rebuilt_rows)
        self._safekeeping.append(Rebuilt(end))
        if self._shard.go_on_swapping(end):
            self._saved_at = -np.inf  # else every start would repeat it
            self._metrics.add("model_swaps_total")
            event(log, logging.INFO, "other weights serve", generation=self._shard.generation, series=end)

    def _sweep(self, started: float) -> None:
        """What depends on the passing of time: silence, the table of series, gauges."""
        self._swept_at = started
        self._orders.a_second_has_passed()
        now = self._clock.now()
        # Who has spoken may still wait in the inbox: then only the time up to the last message taken is judged.
        until = min(now, self._taken_until) if self._inbox.queued() else now
        self._release(started, until)
        if self._heard_by and self._silent:
            changes = self._shard.find_silent(until)
            if changes:  # a look that finds nothing changes nothing
                self._safekeeping.append(Swept(until))
                self._commit([], started)
            self._tell(changes)
            for change in changes:
                self._metrics.add("alarms_opened_total", 1, change.alarm.kind)
        self._make_room(started, now)
        self._telling.noted(now)
        self.traces.drop_idle(started)
        self.alarms = self._shard.open_alarms()
        self._remembrance.keep(self.alarms)
        shadow = self._shard.detector.shadow
        self.comparison = shadow.comparison() if shadow is not None else None
        self._show(now)
        self._renew_table(started, now)

    def _release(self, started: float, until: float) -> None:
        """Readings that have waited enough get their verdicts, though no other has come."""
        if not self._shard.reorder.is_due(until):
            return
        self._safekeeping.append(Released(until))
        self._commit([], started)
        ready = self._shard.release(until)
        outcome = self._process(ready)
        if outcome is None:
            return
        verdicts = np.bincount(outcome.scores.unscored, minlength=len(Unscored))
        with self._metrics.lock:
            self._metrics.judged(verdicts, _latency_seconds(ready, outcome, self._clock.now()))
            self._metrics.set("readings_pending", len(self._shard.reorder))
            for what in ("opened", "closed"):
                for kind, count in _kinds(outcome, what).items():
                    self._metrics.add(f"alarms_{what}_total", count, kind)

    def _make_room(self, started: float, now: float) -> None:
        """Idle series give way to new ones that were refused since the last sweep, as fast as new ones are let in."""
        registry = self._shard.registry
        wanting, self._intake.wanting = min(self._intake.wanting, int(registry.bucket[0])), 0
        most = min(wanting + max(len(registry) - registry.max_series, 0), MOST_EVICTED) if wanting else 0
        slots = self._shard.idle(now, self._idle_seconds, most) if most else np.empty(0, np.intp)
        if not len(slots):
            return
        keys = registry.keys(slots.astype(np.int32))
        self._append_each(self._shard.spans(slots))
        self._safekeeping.append(Evicted(slots.tolist(), now))
        self._commit([], started)
        changes = self._shard.evict(slots, now)
        self.traces.forget(slots)
        self._tell(changes)
        self._telling.forgotten(slots.tolist(), keys)
        self._forgotten(keys)
        with self._metrics.lock:
            self._metrics.add("series_evicted_total", len(slots))
            for change in changes:
                if change.what == "closed":
                    self._metrics.add("alarms_closed_total", 1, change.alarm.kind)
        self._sparing.event(logging.INFO, "idle series forgotten for new ones", series=len(slots), first=keys[0])

    def _show(self, now: float) -> None:
        """The gauges; what only a reading or a command changes is not counted anew without one."""
        kinds = Counter(alarm.kind for alarm in self.alarms)
        with self._metrics.lock:
            self._metrics.set("series", len(self._shard.registry))
            if self._has_settled or self.table is None:
                self._metrics.set("series_warming", self._shard.warming())
                self._metrics.set("series_paused", len(self._shard.paused()))
                for forecaster, count in self._shard.in_charge().items():
                    self._metrics.set("forecaster_in_charge", count, forecaster.name.lower())
            for kind in ALARM_KINDS:
                self._metrics.set("alarms_open", kinds[kind], kind)
            self._metrics.set("last_progress_timestamp_seconds", now)

    def _renew_table(self, started: float, now: float) -> None:
        if not self._has_settled and started - self._listed_at < STILL_SECONDS:
            return
        self._listed_at = started
        slots = self._shard.live(now, STALE_SECONDS)
        if self.table is not None and not self._has_settled and len(slots) == len(self.table.keys):
            return  # without messages series can only become stale; 100,000 keys are not listed anew each second
        self._has_settled = False
        latest = self._shard.detector.latest[slots]
        score, value, expected, lower, upper = latest.T.copy()
        self.table = SeriesTable(self._shard.registry.keys(slots), score, value, expected, lower, upper)
        self.loss = self._shard.forecast_loss(slots)

    # --- What a person asks for ---

    def _obey(self, started: float) -> None:
        """All that was asked for so far, in its order: each in the journal, then done."""
        while (order := self._orders.next()) is not None:
            self._tell_past()  # "opened" before what closes it
            found = understood(order.command, self._shard, self._clock.now())
            result = self._do(found, started) if isinstance(found, Deed) else found
            event(
                log, logging.INFO, "command done" if result.done else "command refused", command=result.command,
                key=result.key[:MOST_SHOWN], by=order.by, series=result.series, detail=result.detail,
            )  # fmt: skip
            self._orders.promise(self._safekeeping.end, result, order.future)

    def _do(self, deed: Deed, started: float) -> Result:
        if isinstance(deed.fact, Paused):
            self._append_each(self._shard.spans(deed.slots))
        self._safekeeping.append(deed.fact)
        self._commit([], started)
        changes = apply(deed.fact, self._shard, self._redelivery)
        self._has_settled = True  # what the table shows of these series has changed
        self._tell(changes)
        with self._metrics.lock:
            self._metrics.set("series_paused", len(self._shard.paused()))
            for change in changes:
                if change.what == "closed":
                    self._metrics.add("alarms_closed_total", 1, change.alarm.kind)
        return deed.result

    def _reply(self, result: Result) -> None:
        self._telling.send(outbox.command_result(self._instance, result))

    # --- Telling ---

    def _tell(self, changes: list[Change]) -> None:
        """To the log and to MQTT."""
        if not changes:
            return
        self._append_each([change.abnormal for change in changes if change.abnormal is not None])
        self.alarms = self._shard.open_alarms()
        closed = tuple(change.alarm for change in changes if change.what == "closed")
        if closed:
            self.closed_alarms = (*self.closed_alarms, *closed)[-MOST_CLOSED:]
        self._telling.changes(changes, self.alarms)


def _latency_seconds(ready: Ready, outcome: Outcome, finished: float) -> Float64:
    """Of the readings that were scored."""
    arrival: Float64 = ready.arrival[outcome.scores.unscored == Unscored.SCORED]
    return np.maximum(finished - arrival, 0.0)


def _kinds(outcome: Outcome, what: str) -> dict[str, int]:
    return dict(Counter(change.alarm.kind for change in outcome.changes if change.what == what))
