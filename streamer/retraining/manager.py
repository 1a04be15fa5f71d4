"""Retraining from the daemon's side: begins one when it is due, takes its verdict, watches over what was promoted.

For one thread, which calls `tick` once a second and may have to wait for the disk. It reads no reading and touches no
state: the engine is asked, and told, by plain callables; the training is another process's.

    due -> the engine says where the journal stands and what is abnormal -> child -> verdict
    promoted -> kept under the next number -> the engine swaps -> probation beside the weights before -> stays, or back
"""

from __future__ import annotations

import logging
import math
import os
import random
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import msgspec

from models.weights import Weights, WeightsError
from streamer.clock import Clock
from streamer.engine import Occasion
from streamer.generations import Generation, Generations
from streamer.log import event
from streamer.metrics import Metrics
from streamer.retraining.child import Child
from streamer.retraining.contract import CANDIDATE, Request, Verdict
from streamer.retraining.policy import Plan, Policy
from streamer.shadow import Comparison

log = logging.getLogger(__name__)

WORK_DIRECTORY = "retraining"
LAST = "last.json"
SURE = 3.0  # standard errors by which the new weights must be worse, at the end of the probation, to be taken back
VERY_SURE = 5.0  # before its end: looking every second at a difference makes small ones come by chance
LEAST_JUDGED = 500  # readings
RECORD_SECONDS = 3600.0  # a new record of the site's loss is written down no more often


class Serving(NamedTuple):
    """The engine's door for a retraining."""

    occasion: Callable[[], Future[Occasion]]
    swap: Callable[[Weights, int, bool], None]
    """weights, their number, whether those that served before are to be watched beside them"""
    watch: Callable[[Weights | None], None]
    """these forecast on unheard; None: nobody any more"""
    generation: Callable[[], int]
    is_swapping: Callable[[], bool]
    comparison: Callable[[], Comparison | None]
    loss: Callable[[], float]
    """of the forecasts of the whole site, of late"""


class Training(Protocol):
    """One that runs, as `Child` does it."""

    @property
    def pid(self) -> int | None: ...

    def start(self) -> None: ...

    def poll(self) -> Verdict | None: ...

    def kill(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Terms:
    """What an operator has set."""

    plan: Plan
    journal: Path
    lateness_seconds: float
    min_readings: int
    max_series_steps: int
    probation_seconds: float
    time_limit_seconds: float
    device: Literal["auto", "cpu", "cuda"]
    threads: int


class Probation(msgspec.Struct):
    """Weights that have just come to serve, and those that would come back."""

    number: int
    before: int
    began: float


class Last(msgspec.Struct):
    """What outlives a restart."""

    ended: float
    verdict: Verdict | None = None
    probation: Probation | None = None
    taken_back: int | None = None
    """the generation that did worse than the one before it, and went"""
    drift_record: tuple[int, float] | None = None
    """a generation and the smallest mean loss of an hour under it"""


class Refused(Exception):
    """What was asked for cannot be done; the text says why."""


class Retraining:
    """One at a time. Everything is done by `tick`; commands say what became of them."""

    def __init__(
        self,
        terms: Terms,
        state_directory: Path,
        generations: Generations,
        serving: Serving,
        metrics: Metrics,
        clock: Clock,
        seed: int | None = None,
        new_child: Callable[[Request, float], Training] = Child,
    ) -> None:
        self._terms = terms
        self._directory = state_directory / WORK_DIRECTORY
        self._generations = generations
        self._serving = serving
        self._metrics = metrics
        self._clock = clock
        self._random = random.Random(seed)  # noqa: S311 (nothing secret hangs on it)
        self.last = Last(clock.now())
        """what the last one came to, and what is on probation"""
        self._policy = Policy(terms.plan, clock.now(), self._random.randrange(2**31))
        self._occasion: Future[Occasion] | None = None
        self._new_child = new_child
        self._child: Training | None = None
        self._incumbent: Generation | None = None
        self._reason = ""
        self._record_kept_at = -math.inf

    def start(self) -> None:
        """Goes on where the last run ended: with the timer, and with a probation."""
        kept = self._read_last()
        if kept is not None:
            self.last = kept
            self._policy = Policy(self._terms.plan, kept.ended, self._random.randrange(2**31))
        else:
            self._keep_last()  # a daemon that is started anew every day must not begin to count every day
        if self.last.drift_record is not None and self.last.drift_record[0] == self._serving.generation():
            self._policy.drift.record = self.last.drift_record[1]
        probation, serving = self.last.probation, self._serving
        if probation is not None and (probation.number == serving.generation() or serving.is_swapping()):
            try:
                self._serving.watch(self._generations.load(probation.before))
            except WeightsError as error:
                self._end_probation(f"the weights before are not to be had: {error}")

    def stop(self) -> None:
        """A training that runs is given up."""
        if self._child is not None:
            self._child.kill()
            self._child = None

    # --- By hand ---

    def train(self) -> str:
        """Begins a retraining now. Raises Refused."""
        if self.is_running:
            raise Refused("a retraining runs already; `streamer models ls` shows its verdict when it has ended")
        self._begin("command")
        return "a retraining begins; `streamer models ls` shows its verdict when it has ended"

    def promote(self, number: int) -> str:
        """Lets these weights serve, whatever was thought of them. Raises Refused."""
        if number == self._serving.generation() and not self._serving.is_swapping():
            raise Refused(f"generation {number} serves already")
        if self._serving.is_swapping():  # to end that one at once would keep readings waiting
            raise Refused("other weights are just coming to serve: ask again in a minute")
        try:
            weights = self._generations.load(number)
        except WeightsError as error:
            raise Refused(str(error)) from error
        self._end_probation("other weights were promoted by hand")
        self._swap(weights, number, is_watched=False)
        return f"generation {number} comes to serve"

    def rollback(self) -> str:
        """Lets the weights serve that served before. Raises Refused."""
        serving = self._generations.serving()
        if serving is None or serving.before is None:
            raise Refused("no other weights have served here before")
        if serving.before == self.last.taken_back:
            raise Refused(
                f"the ones before, generation {serving.before}, did worse and were taken back; "
                f"`streamer models promote {serving.before}` lets them serve all the same"
            )
        return self.promote(serving.before)

    # --- Once a second ---

    @property
    def is_running(self) -> bool:
        """One has begun and not ended."""
        return self._child is not None or self._occasion is not None

    def tick(self) -> None:
        """Whatever is to be done now; never waits."""
        now = self._clock.now()
        self._watch_drift()
        if self._occasion is not None and self._occasion.done():
            self._start_child(self._occasion.result())
        elif self._child is not None:
            verdict = self._child.poll()
            if verdict is not None:
                self._child = None
                self._take(verdict)
        elif not self.is_running and self.last.probation is None:
            reason = self._policy.reason(now)
            if reason is not None:
                self._begin(reason)
        if self.last.probation is not None and not self._serving.is_swapping():
            self._watch_over(self.last.probation, now)
        self._metrics.set("retrain_running", float(self.is_running))

    def _watch_drift(self) -> None:
        """The record outlives a restart, else a site that drifts under a daemon that is started daily is never told."""
        drift, monotonic = self._policy.drift, self._clock.monotonic()
        drift.observe(monotonic, self._serving.loss())
        record = self._serving.generation(), drift.record
        if math.isfinite(drift.record) and record != self.last.drift_record and monotonic >= self._record_kept_at:
            self.last.drift_record = record
            self._record_kept_at = monotonic + RECORD_SECONDS
            self._keep_last()

    def _begin(self, reason: str) -> None:
        self._reason = reason
        self._occasion = self._serving.occasion()

    def _start_child(self, occasion: Occasion) -> None:
        self._occasion = None
        incumbent = self._generations.about(self._serving.generation())
        if incumbent is None or self._serving.is_swapping():
            self._take(Verdict(result="failed", reason="no copy of the weights that serve is in the state directory"))
            return
        terms = self._terms
        request = Request(
            journal=str(terms.journal),
            begin=0,
            end=occasion.end,
            incumbent=str(self._generations.path(incumbent.number)),
            out=str(self._directory),
            # A position behind the end is one of a journal that is gone.
            judge_from=incumbent.trained_until if incumbent.trained_until <= occasion.end else 0,
            open_abnormal=occasion.open_abnormal,
            paused=occasion.paused,
            devices=occasion.devices,
            lateness_seconds=terms.lateness_seconds,
            budget_per_series_month=occasion.budget_per_series_month,
            max_series_steps=terms.max_series_steps,
            min_readings=terms.min_readings,
            device=terms.device,
            threads=terms.threads,
            seed=self._random.randrange(2**31),
        )
        child = self._new_child(request, terms.time_limit_seconds)
        try:
            child.start()
        except OSError as error:
            self._take(Verdict(result="failed", reason=f"it cannot be started: {error}"))
            return
        self._child, self._incumbent = child, incumbent
        event(
            log, logging.INFO, "retraining begins", reason=self._reason, records=occasion.end, pid=child.pid,
            generation=incumbent.number,
        )  # fmt: skip

    def _take(self, verdict: Verdict) -> None:
        """The verdict, and what follows from it."""
        result, reason = str(verdict.result), verdict.reason
        if verdict.result == "promoted":
            result, reason = self._promote(verdict)
        level = logging.WARNING if result == "failed" else logging.INFO
        figures = {name: value for name, value in verdict.figures.items() if name.isidentifier()}
        event(log, level, "retraining ended", **(figures | {"result": result, "reason": reason}))
        self._metrics.add("retrain_total", 1, result)
        now = self._clock.now()
        self._metrics.set("retrain_timestamp_seconds", now)
        self._policy.ended(now, in_vain=result != "promoted")
        self.last.ended = now
        self.last.verdict = verdict if result == verdict.result else msgspec.structs.replace(verdict, reason=reason)
        self._keep_last()

    def _promote(self, verdict: Verdict) -> tuple[str, str]:
        """Result and reason."""
        incumbent, number = self._incumbent, self._serving.generation()
        if incumbent is None or incumbent.number != number or self._serving.is_swapping():
            return "stale", "other weights have come to serve meanwhile"
        try:
            made = self._generations.add(
                self._directory / CANDIDATE, "trained", self._clock.now(),
                trained_until=verdict.ends_at, verdict=msgspec.to_builtins(verdict),
            )  # fmt: skip
            weights = self._generations.load(made.number)
        except (OSError, WeightsError) as error:
            return "failed", f"the candidate cannot be kept: {error}"
        if made.sha256 != verdict.candidate_sha256:
            return "failed", "the candidate is not the one that was judged"
        self.last.probation = Probation(made.number, number, self._clock.now())
        self._keep_last()  # before they serve: a run that is killed in between must not leave them unwatched
        self._swap(weights, made.number, is_watched=True)
        return "promoted", verdict.reason

    def _swap(self, weights: Weights, number: int, *, is_watched: bool) -> None:
        self._serving.swap(weights, number, is_watched)
        self._policy.drift.forget()

    # --- Probation ---

    def _watch_over(self, probation: Probation, now: float) -> None:
        """Whether the new weights stay."""
        found = self._serving.comparison()
        if self._serving.generation() != probation.number:
            self._end_probation("other weights serve")
            return
        probation.began = min(probation.began, now)  # the clock may have been set back
        is_over = now - probation.began >= self._terms.probation_seconds
        is_known = found is not None and found.readings >= LEAST_JUDGED and found.series > 1
        if found is not None and is_known and found.worse_by > (SURE if is_over else VERY_SURE) * found.noise:
            self._roll_back(probation, found)
        elif is_over and (is_known or now - probation.began >= 2 * self._terms.probation_seconds):
            by = f"better by {-found.worse_by:.4f} nats a reading" if found and is_known else "too little to tell"
            self._end_probation(f"the new weights stay: {by}")

    def _roll_back(self, probation: Probation, found: Comparison) -> None:
        try:
            weights = self._generations.load(probation.before)
        except WeightsError as error:
            self._end_probation(f"the weights before are not to be had: {error}")
            return
        event(
            log, logging.WARNING, "the new weights do worse: those before come back", generation=probation.before,
            worse_by=round(found.worse_by, 4), noise=round(found.noise, 4), readings=found.readings,
        )  # fmt: skip
        self._metrics.add("model_rollbacks_total")
        self.last.taken_back = probation.number
        self._end_probation("rolled back")
        self._swap(weights, probation.before, is_watched=False)

    def _end_probation(self, why: str) -> None:
        if self.last.probation is not None:
            event(log, logging.INFO, "probation ended", generation=self.last.probation.number, reason=why)
            self.last.probation = None
            self._serving.watch(None)
            self._keep_last()

    # --- What outlives a restart ---

    def _read_last(self) -> Last | None:
        try:
            return msgspec.json.decode((self._directory / LAST).read_bytes(), type=Last)
        except (OSError, ValueError, RecursionError):
            return None

    def _keep_last(self) -> None:
        part = self._directory / (LAST + ".part")
        try:
            self._directory.mkdir(0o700, exist_ok=True)
            part.write_bytes(msgspec.json.encode(self.last))
            os.replace(part, self._directory / LAST)
        except OSError as error:
            event(log, logging.WARNING, "not written", file=LAST, reason=str(error))
