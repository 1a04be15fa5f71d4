"""How every series stands: the word that MQTT has for it, in a copy that later readings do not change."""

from __future__ import annotations

import numpy as np

from streamer.looks import SeriesState, look, state_of
from tests.streams import START, noise, shipped_weights
from tests.test_engine import Bench


def states(bench: Bench) -> dict[str, str]:
    seen = look(bench.shard, None)
    return {key: SeriesState(state).name.lower() for key, state in zip(seen.keys, seen.state, strict=True)}


def test_each_state_has_its_word() -> None:
    """Warming, normal, alarm, gap, silent, paused: as they come."""
    bench = Bench(weights=shipped_weights())
    for value in noise(20).tolist():
        bench.clock.advance(10.0)
        bench.turn(*(bench.say(topic, value) for topic in ("a", "b", "c")))
    assert states(bench) == {"a": "warming", "b": "warming", "c": "warming"}
    for value in noise(180, seed=1).tolist():
        bench.clock.advance(10.0)
        bench.turn(*(bench.say(topic, value) for topic in ("a", "b", "c")))
    assert states(bench) == {"a": "normal", "b": "normal", "c": "normal"}
    bench.clock.advance(10.0)
    bench.turn(bench.say("a", 500.0), bench.say("b", 20.0), bench.say("c", 20.0))
    assert states(bench)["a"] == "alarm"
    bench.shard.pause(np.array([1]), bench.clock.now())
    for value in noise(10).tolist():
        bench.clock.advance(10.0)
        bench.turn(bench.say("b", value), bench.say("c", value))
    assert states(bench) == {"a": "silent", "b": "paused", "c": "normal"}
    bench.clock.advance(3600.0)
    bench.turn(bench.say("c", 20.0))
    assert states(bench)["c"] == "gap"
    assert state_of(bench.shard, 2) is SeriesState.GAP


def test_a_look_is_a_copy_and_takes_over_what_is_the_same() -> None:
    """Readings that come later do not change it; the list of keys is another only where series came or went."""
    bench = Bench()
    bench.report("a", [1.0])
    before = look(bench.shard, None)
    bench.report("a", [2.0])
    after = look(bench.shard, before)
    assert (before.latest[0, 1], after.latest[0, 1]) == (1.0, 2.0)
    assert before.heard[0] < after.heard[0]
    assert after.keys is before.keys
    bench.report("b", [3.0])
    later = look(bench.shard, after)
    assert (after.keys, later.keys) == (["a"], ["a", "b"])


def test_a_slot_that_nobody_holds_is_gone() -> None:
    """And its key is empty."""
    bench = Bench()
    bench.report("a", [1.0])
    bench.report("b", [1.0])
    bench.shard.evict(np.array([0]), START)
    seen = look(bench.shard, None)
    assert (seen.keys, seen.state.tolist()[0]) == (["", "b"], SeriesState.GONE)
