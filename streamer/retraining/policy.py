"""When a retraining is due: by the clock, or since the site is forecast worse than the weights once did it.

Pure: time and losses come from outside.
"""

from __future__ import annotations

import math
import random
from collections import deque
from dataclasses import dataclass

JITTER = 0.1  # of the interval, lest a hundred gateways that were switched on together all train together
WINDOW_SECONDS = 3600.0  # a loss is a mean over so long
SAMPLE_SECONDS = 60.0
MOST_REST_SECONDS = 86_400.0  # a season that no weights forecast better must not train all day


@dataclass(frozen=True, slots=True)
class Plan:
    """What an operator has set."""

    every_seconds: float
    """0: not by the clock"""
    drift_rise: float
    """0: not by drift; .3: when the loss is 30 % above the record"""
    least_seconds: float = 3600.0
    """between two that drift asks for"""


class Drift:
    """The forecast loss of the site, and the record of the weights that serve: their best hour.

    Drift is a loss above the record by more than `rise`, in every sample of an hour.
    """

    def __init__(self, rise: float) -> None:
        self._rise = rise
        self.forget()

    def forget(self) -> None:
        """Other weights serve: they have no record yet."""
        self._samples: deque[tuple[float, float]] = deque()
        self.record = float("inf")
        """the smallest mean loss of an hour"""

    def observe(self, now: float, loss: float) -> None:
        """The loss of this moment, about once a minute; NaN where there are no series to tell it from."""
        if math.isnan(loss) or (self._samples and now - self._samples[-1][0] < SAMPLE_SECONDS):
            return
        self._samples.append((now, loss))
        while now - self._samples[0][0] > WINDOW_SECONDS:
            self._samples.popleft()
        if self._is_full:
            self.record = min(self.record, sum(each for _, each in self._samples) / len(self._samples))

    @property
    def _is_full(self) -> bool:
        return self._samples[-1][0] - self._samples[0][0] >= WINDOW_SECONDS - 2 * SAMPLE_SECONDS

    def has_come(self) -> bool:
        """Whether the weights fit the site worse than they did."""
        if not self._rise or not self._samples or not self._is_full:
            return False
        return min(loss for _, loss in self._samples) > (1 + self._rise) * self.record


class Policy:
    """Whether a retraining is due. `last` is when the last one ended, or when the site's first reading came."""

    def __init__(self, plan: Plan, last: float, seed: int) -> None:
        self.plan = plan
        self.drift = Drift(plan.drift_rise)
        self._random = random.Random(seed)  # noqa: S311 (nothing secret hangs on it)
        self._last = last
        self._rest_seconds = plan.least_seconds
        self._due_at = self._next(last)

    def ended(self, now: float, *, in_vain: bool = False) -> None:
        """One has ended. `in_vain`: the same weights serve; drift asks half as soon the next time, at most daily."""
        self._rest_seconds = min(2 * self._rest_seconds, MOST_REST_SECONDS) if in_vain else self.plan.least_seconds
        self._last, self._due_at = now, self._next(now)

    def reason(self, now: float) -> str | None:
        """Why one is due; None if none is."""
        if now < self._last:  # the clock was set back
            self._last, self._due_at = now, self._next(now)
        if self.plan.every_seconds and now >= self._due_at:
            return "timer"
        if self.drift.has_come() and now - self._last >= self._rest_seconds:
            return "drift"
        return None

    def _next(self, last: float) -> float:
        return last + self.plan.every_seconds * self._random.uniform(1 - JITTER, 1 + JITTER)
