"""Makes the scorer's weights anew: `python -m streamer.lessons OUT.safetensors`.

A lesson is a synthetic series with oddities that belong to it and anomalies that do not, seen through the engine as it
is without the scorer: what `models.scorer` is shown of each reading, whether it is odd, and how much that counts.
Seeded: the same machine and versions give the same weights. Twelve sets of lessons want 4 GB of memory.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models import injection, scorer, synthetic, weights
from models.scorer_recipe import Lessons, Recipe
from models.step import NumpyStepper
from streamer.readings import Batch
from streamer.registry import Registry
from streamer.shard import Shard

MOST_VALUE = 1e29
LEAST_TELLING = 50  # readings of a series before its lesson begins
LATER_SHARE = 0.35  # what the later two thirds of an anomaly count: to be told at once is worth more
USUAL_LENGTH, LENGTH_WEIGHTS = 20.0, (0.3, 3.0)  # long anomalies count less a reading, and more in all


class Witness(NumpyStepper):
    """Stands where the scorer does, says nothing, and keeps what it is shown."""

    slots: NDArray[np.intp]
    inputs: NDArray[np.float32]

    def step(self, slots: NDArray[np.intp], inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        self.slots, self.inputs = slots, inputs
        return np.zeros((len(slots), 1), np.float32)


def lessons(seed: int, count: int, steps: int) -> Lessons:
    """`count` series of `steps` readings each."""
    rng = np.random.default_rng(seed)
    series = synthetic.generate(rng, count, steps, incidents=False)
    lawful = injection.lawful(rng, series.value)
    injected = injection.inject(rng, lawful.value)
    weight = telling(injected, lawful.is_unclear)
    value = np.clip(injected.value, -MOST_VALUE, MOST_VALUE)

    registry = Registry(count, np.inf, np.inf)
    registry.resolve([f"lesson/{row}" for row in range(count)], float(series.time.min()))
    shard = Shard(registry, weights.load(), count, budget_per_series_month=1.0)
    witness = Witness(scorer.shipped(), 0)
    shard.detector.scorer = witness
    shown = np.zeros((count, steps, len(scorer.INPUTS)), np.float16)
    slots, flags = np.arange(count, dtype=np.int32), np.zeros(count, np.uint8)
    for step in range(steps):
        outcome = shard.process(Batch(slots, series.time[:, step], value[:, step], flags), series.time[:, step])
        shown[witness.slots, step] = witness.inputs
        weight[np.isnan(outcome.scores.score), step] = 0
    return Lessons(shown, injected.event > 0, weight)


def telling(injected: injection.Injected, is_unclear: NDArray[np.bool_]) -> NDArray[np.float16]:
    """How much each reading counts, `(count, steps)`: by the length of its anomaly, and how far into it it lies."""
    event = injected.event.ravel()
    length = np.bincount(event, minlength=event.max(initial=0) + 1)
    begin = np.full(len(length), event.size)
    np.minimum.at(begin, event, np.arange(event.size))
    is_later = (event > 0) & (np.arange(event.size) - begin[event] >= np.maximum(2, length[event] // 3))
    by_length = np.sqrt(USUAL_LENGTH / np.maximum(length, 1)).clip(*LENGTH_WEIGHTS)
    by_length[0] = 1
    weight = (by_length[event] * np.where(is_later, LATER_SHARE, 1)).reshape(injected.event.shape)
    weight[injected.is_aftermath | is_unclear] = 0
    weight[:, :LEAST_TELLING] = 0
    return weight.astype(np.float16)


def main(arguments: list[str] | None = None) -> int:
    """Makes the lessons, trains and writes."""
    parser = argparse.ArgumentParser(prog="python -m streamer.lessons", description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=Recipe().seed)
    given = parser.parse_args(arguments)
    recipe = replace(Recipe(), seed=given.seed)
    made = []
    for k in range(recipe.sets):
        made.append(lessons(recipe.first_lesson + k, recipe.series, recipe.steps))
        _say(f"lessons {k + 1}/{recipe.sets}")
    from models.scorer_training import train  # not on the way of those who serve: it imports torch

    trained = train(recipe, Lessons(*(np.concatenate(parts) for parts in zip(*made, strict=True))), _say)
    weights.save(trained, given.out, outputs=1)
    return 0


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")


if __name__ == "__main__":
    sys.exit(main())
