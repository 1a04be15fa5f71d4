"""Readings for tests: batches by hand, noisy streams by seed, the shipped weights read once."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike

from models.weights import ForecasterConfig, Weights, expected_shapes, load
from streamer.detector import no_scores
from streamer.readings import Batch, Flag, Float64, Scores
from streamer.registry import Registry
from streamer.shard import Outcome, Shard

START = 1_767_225_600.0
"""2026-01-01T00:00:00Z"""


@cache
def shipped_weights() -> Weights:
    """The weights that users run; nobody writes to them."""
    return load()


def random_weights(config: ForecasterConfig, seed: int = 0) -> Weights:
    """Weights that mean nothing, with a checksum that no other seed has."""
    rng = np.random.default_rng(seed)
    tensors = {
        name: (0.3 * rng.normal(size=shape)).astype(np.float32) for name, shape in expected_shapes(config).items()
    }
    return Weights(config, tensors, {}, f"{seed:064d}")


def batch(slot: ArrayLike, time: ArrayLike, value: ArrayLike, *, arrival_time: bool = False) -> Batch:
    """One batch; a single number stands for a whole column. `arrival_time`: the payloads had no times."""
    slots, times, values = np.broadcast_arrays(np.atleast_1d(np.asarray(slot)), time, value)
    flags = np.full(slots.shape, Flag.ARRIVAL_TIME if arrival_time else 0, np.uint8)
    return Batch(slots.astype(np.int32), times.astype(np.float64), values.astype(np.float64), flags)


def noise(n: int, seed: int = 0, *, level: float = 20.0, scale: float = 1.0) -> Float64:
    """Independent readings around a level."""
    return level + scale * np.random.default_rng(seed).normal(size=n)


def stream(n: int, series: int, seed: int = 0) -> Batch:
    """`n` readings, one a second, of `series` series in random order: slow drift and noise, a few late or doubled."""
    rng = np.random.default_rng(seed)
    slot = rng.integers(0, series, n).astype(np.int32)
    time = START + np.arange(n, dtype=np.float64)
    odd = rng.random(n)
    time[odd < 0.02] -= 100.0
    value = 20 + 0.1 * np.cumsum(rng.normal(size=n)) + rng.normal(size=n)
    doubled = np.flatnonzero((odd > 0.98) & (np.arange(n) > 0))
    slot[doubled], time[doubled] = slot[doubled - 1], time[doubled - 1]
    return Batch(slot, time, value, np.zeros(n, np.uint8))


def cut(whole: Batch, at: list[int]) -> list[tuple[slice, Batch]]:
    """The batch in pieces that end at these rows."""
    edges = [0, *sorted(at), len(whole)]
    return [(slice(a, z), whole[a:z]) for a, z in pairwise(edges) if z > a]


def new_shard(
    keys: list[str], *, weights: Weights | None = None, budget: float = 1.0, max_series: int | None = None
) -> Shard:
    """A shard that knows these series, slot by slot in their order."""
    registry = Registry(max_series or max(len(keys), 1), 1e9, 1e9)
    registry.resolve(keys, START)
    return Shard(
        registry, weights or shipped_weights(), max_series or max(len(keys), 1), budget_per_series_month=budget
    )


def feed(shard: Shard, readings: Batch, *, at_once: int = 1) -> Scores:
    """Processes readings `at_once` by `at_once`, each piece at the time of its last one; gives all verdicts."""
    scores = no_scores(len(readings))
    for rows, piece in cut(readings, list(range(at_once, len(readings), at_once))):
        outcome: Outcome = shard.process(piece, float(piece.time.max()))
        scores.put(np.arange(rows.start, rows.stop), outcome.scores)
    return scores
