"""The shadow: what served before forecasts on, unheard, and is compared reading by reading."""

from __future__ import annotations

import numpy as np
import pytest

from models import features, mixture
from models.step import NumpyStepper
from models.weights import ForecasterConfig, Weights
from streamer.readings import Scores
from streamer.recent import READINGS
from streamer.shadow import LEAST_READINGS
from streamer.shard import Shard
from tests.streams import START, batch, feed, new_shard, noise, random_weights, shipped_weights, stream

KEYS = [f"plant/{slot}" for slot in range(6)]
BAD = random_weights(ForecasterConfig(input_size=18, hidden_size=8))


def run(shard: Shard, first: int, last: int, odd: float = 0.0) -> None:
    for t in range(first, last):
        value = noise(len(KEYS), t, level=20.0)
        value[0] += odd
        shard.process(batch(np.arange(len(KEYS)), START + 10.0 * t, value), START)


def swapped(first: Shard, to: Weights) -> None:
    first.detector.watch(first.weights, np.arange(4), is_serving=True)
    first.begin_swap(to, 2)
    first.finish_swap()


def test_it_tells_worse_weights_from_better_ones() -> None:
    """Beyond the noise, in both directions."""
    signs = []
    for old, new in ((shipped_weights(), BAD), (BAD, shipped_weights())):
        shard = new_shard(KEYS, weights=old)
        run(shard, 0, 200)
        swapped(shard, new)
        run(shard, 200, 300)
        assert shard.detector.shadow is not None
        found = shard.detector.shadow.comparison()
        assert (found.readings, found.series) == (400, 4)
        assert abs(found.worse_by) > 2 * found.noise
        signs.append(found.worse_by > 0)
    assert signs == [True, False]


def test_the_old_weights_go_on_as_if_they_still_served() -> None:
    """The difference is that of two shards, one of which was never swapped, by plain arithmetic."""
    swapped_one, other = new_shard(KEYS), new_shard(KEYS)
    for shard in (swapped_one, other):
        run(shard, 0, 150)
    swapped(swapped_one, BAD)
    shadow, differences = swapped_one.detector.shadow, []
    assert shadow is not None
    twin = NumpyStepper(BAD, len(KEYS))
    served = swapped_one.detector.stepper
    twin.put(slice(None), served.export(slice(None)))
    for t in range(150, 190):
        value, time = noise(len(KEYS), t, level=20.0), np.full(len(KEYS), START + 10.0 * t)
        slots = np.arange(len(KEYS))
        look = features.look(other.detector.statistics, slots, time)
        y = features.to_y(value, look.location, look.scale)
        old = NumpyStepper(other.weights, len(KEYS))
        old.put(slice(None), other.detector.stepper.export(slice(None)))
        losses = [
            mixture.loss(mixture.unpack(stepper.step(slots, look.inputs), look.previous, look.step), y)
            for stepper in (twin, old)
        ]
        differences.append((losses[0] - losses[1])[:4])
        for shard in (swapped_one, other):
            shard.process(batch(slots, time, value), START)
    assert shadow.comparison().worse_by == pytest.approx(float(np.mean(differences)), abs=1e-5)


def test_readings_in_an_alarm_and_series_that_are_new_do_not_count() -> None:
    shard = new_shard(KEYS)
    run(shard, 0, 200)
    swapped(shard, BAD)
    run(shard, 200, 220, odd=500.0)
    shadow = shard.detector.shadow
    assert shadow is not None
    assert shadow.comparison().readings == 60
    assert shadow.comparison().series == 3
    shard.evict(np.array([1, 2]), START)
    shard.registry.resolve(["new/1", "new/2"], START)
    run(shard, 220, 240, odd=500.0)
    assert shadow.comparison().readings == 80


def test_after_a_restart_it_is_judged_when_it_has_seen_enough_again() -> None:
    """It begins with the last readings of each series, and nothing is said before as many more have come."""
    shard = new_shard(KEYS, weights=BAD)
    run(shard, 0, 200)
    shard.detector.watch(shipped_weights(), np.arange(6), is_serving=False)
    shadow = shard.detector.shadow
    assert shadow is not None
    run(shard, 200, 200 + READINGS)
    assert shadow.comparison().readings == 0
    assert shadow.comparison().noise == np.inf
    run(shard, 200 + READINGS, 200 + READINGS + LEAST_READINGS)
    assert shadow.comparison().series == 6
    assert shadow.comparison().worse_by > 0


def test_watching_changes_nothing() -> None:
    """Scores and state are the same with it and without it."""
    results: list[tuple[Scores, Shard]] = []
    for is_watched in (False, True):
        shard = new_shard(KEYS)
        feed(shard, stream(300, len(KEYS), seed=1), at_once=10)
        if is_watched:
            shard.detector.watch(BAD, np.array([1, 4]), is_serving=False)
        results.append((feed(shard, stream(300, len(KEYS), seed=2), at_once=7), shard))
    np.testing.assert_array_equal(results[0][0].score, results[1][0].score)
    for name, array in results[0][1].export().arrays.items():
        np.testing.assert_array_equal(array, results[1][1].export().arrays[name])
