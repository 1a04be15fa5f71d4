"""All series as the open pages see them: looked at once a second, and told as what has changed since.

Every look has a number, and every slot the number of the look that changed it. A page that is slow gets fewer and
larger pieces of news, and nothing is kept for it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYetError
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from streamer.looks import Look, SeriesState, look
from streamer.names import name_of
from streamer.readings import Float64
from streamer.shard import Shard

T = TypeVar("T")

LOOK_SECONDS = 1.0
ANSWER_SECONDS = 3.0  # an idle engine answers within one
CHUNK = 1024  # series an event: 1 ms of encoding, then the engine can have the interpreter again


class Ask(Protocol):
    """`Engine.ask`."""

    def __call__(self, question: Callable[[Shard], T], /) -> Future[T]: ...


class NoAnswerError(Exception):
    """The engine is busy with something else, or has ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Vitals:
    """How the daemon is doing."""

    version: str
    instance: str
    now: float
    """epoch seconds of the daemon's clock"""
    started_at: float
    healthy: bool
    ready: bool
    detail: str
    """a sentence: what is wrong, or that nothing is"""
    connected: bool
    """to the broker"""
    series: float
    warming: float
    paused: float
    alarms_open: int
    readings: float
    """since the start"""
    latency_seconds: tuple[float, int]
    """from arrival to score: the sum since the start, and of how many readings"""
    queued: float
    """messages that wait"""
    generation: int
    """of the weights that serve"""
    swapping: bool
    retraining: bool
    retrained_at: float
    """epoch seconds; NaN: not since the start"""
    retrainings: dict[str, float]
    """how they ended, since the start"""


@dataclass(frozen=True, slots=True, eq=False)
class Sight:
    """A look, and what it has changed."""

    number: int
    look: Look
    names: list[str]
    """by slot; see `name_of`"""
    changed: NDArray[np.int64]
    """by slot: the number of the look that saw it change"""
    named: NDArray[np.int64]
    """by slot: the number of the look that saw another series there"""
    health: dict[str, object]

    def news(self, seen: int) -> Iterator[dict[str, object]]:
        """What has changed since the look of that number, at most CHUNK series at a time."""
        changed = self.changed > seen
        fresh = self.named > seen
        for slots, is_named in ((np.flatnonzero(changed & fresh), True), (np.flatnonzero(changed & ~fresh), False)):
            for start in range(0, len(slots), CHUNK):
                yield self._columns(slots[start : start + CHUNK], is_named)

    def _columns(self, slots: NDArray[np.intp], is_named: bool) -> dict[str, object]:
        score, value, expected, _, _ = self.look.latest[slots].T
        columns: dict[str, object] = {"slot": slots.tolist()}
        if is_named:
            columns["series"] = [self.names[slot] for slot in slots.tolist()]
        return columns | {
            "state": self.look.state[slots].tolist(),
            "score": short(score),
            "value": short(value),
            "expected": short(expected),
            "heard": np.round(self.look.heard[slots], 1).tolist(),
        }


class Board:
    """Looks when somebody asks and the last look is old. Any thread."""

    def __init__(self, ask: Ask, vitals: Callable[[], Vitals], monotonic: Callable[[], float]) -> None:
        self._ask = ask
        self._vitals = vitals
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._waiting: Future[Look] | None = None
        self._asked_at = -np.inf
        self._sight: Sight | None = None
        self._looked_at = -np.inf
        self._counting = threading.Lock()
        self._counted: tuple[float, Vitals] | None = None
        self._rates: dict[str, float | None] = {}
        self._slots: dict[str, int] = {}
        """by name"""

    def sight(self) -> Sight:
        """Not older than LOOK_SECONDS. Raises NoAnswerError."""
        with self._lock:
            if self._sight is None or self._monotonic() - self._looked_at >= LOOK_SECONDS:
                found = self._look()
                self._looked_at = self._monotonic()
                self._sight = self._compared(self._sight, found)
            return self._sight

    def key_of(self, name: str) -> str | None:
        """The key of the series that goes by this name, None where there is none. Raises NoAnswerError."""
        found = self.sight()
        slot = self._slots.get(name)
        return found.look.keys[slot] if slot is not None and slot < len(found.look.keys) else None

    def health(self) -> dict[str, object]:
        """`Vitals`, with what the last second or two have brought instead of sums; the engine need not answer."""
        now, vitals = self._monotonic(), self._vitals()
        with self._counting:
            if self._counted is None or now - self._counted[0] >= LOOK_SECONDS:
                self._rates = _rates(*(self._counted or (now, vitals)), now, vitals)
                self._counted = now, vitals
            shown: dict[str, object] = msgspec.to_builtins(vitals)
            return shown | self._rates

    def now(self) -> float:
        """Epoch seconds of the daemon's clock."""
        return self._vitals().now

    def question(self, question: Callable[[Shard], T]) -> T:
        """Asks the engine for something else. Raises NoAnswerError."""
        try:
            return self._ask(question).result(ANSWER_SECONDS)
        except NotYetError:
            raise NoAnswerError from None

    def _look(self) -> Look:
        """One question at a time, and one wait for it: an engine that is stuck must not hold up one thread after the
        other until none is left for the health check, nor find a heap of questions afterwards."""
        if self._waiting is None:
            before = self._sight.look if self._sight is not None else None
            self._waiting = self._ask(partial(look, before=before, now=self.now()))
            self._asked_at = time.monotonic()  # not the clock of the data: this is waited for
        try:
            found = self._waiting.result(max(self._asked_at + ANSWER_SECONDS - time.monotonic(), 0.0))
        except NotYetError:
            raise NoAnswerError from None
        self._waiting = None
        return found

    def _compared(self, before: Sight | None, found: Look) -> Sight:
        number = 1 if before is None else before.number + 1
        count, known = len(found.keys), 0 if before is None else len(before.names)
        names = [] if before is None else before.names
        changed, named = np.full(count, number), np.full(count, number)
        if before is not None:
            both = slice(min(count, known))
            old, named[both] = before.look, before.named[both]
            is_same = (old.state[both] == found.state[both]) & (old.heard[both] == found.heard[both])
            is_same &= _same(old.latest[both], found.latest[both]).all(axis=1)
            if old.keys is not found.keys:
                others = [slot for slot, key in enumerate(found.keys[both]) if key is not old.keys[slot]]
                named[others], is_same[others] = number, False
            changed[both] = np.where(is_same, before.changed[both], number)
        if before is None or before.look.keys is not found.keys:
            fresh = np.flatnonzero(named == number).tolist()
            names = [*names[:count], *[""] * (count - known)]
            for slot in fresh:
                names[slot] = name_of(found.keys[slot])
            self._slots = {name: slot for slot, name in enumerate(names) if name}
        return Sight(number, found, names, changed, named, self.health())


def whole(key: str) -> str:
    """The key in full, as JSON can say it."""
    return key.encode(errors="replace").decode()


def short(values: Float64) -> list[float]:
    """With six digits, as much as anybody reads; JSON has null where there is nothing."""
    with np.errstate(all="ignore"):
        digits = 10.0 ** (5 - np.floor(np.log10(np.abs(values))))
        rounded = np.where(np.isfinite(digits) & (digits > 0), np.round(values * digits) / digits, values)
    shown: list[float] = rounded.tolist()
    return shown


def _rates(at: float, before: Vitals, now: float, vitals: Vitals) -> dict[str, float | None]:
    (seconds, count), (seconds_before, count_before) = vitals.latency_seconds, before.latency_seconds
    rate = (vitals.readings - before.readings) / (now - at) if now > at else None
    latency = (seconds - seconds_before) / (count - count_before) if count > count_before else None
    return {"readings_per_second": rate, "latency_seconds": latency}


def state_name(state: int) -> str:
    return SeriesState(state).name.lower()


def _same(one: Float64, other: Float64) -> NDArray[np.bool_]:
    is_same: NDArray[np.bool_] = (one == other) | (np.isnan(one) & np.isnan(other))
    return is_same
