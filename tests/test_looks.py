"""How every series stands: the word that MQTT has for it, in a copy that later readings do not change."""

from __future__ import annotations

import numpy as np

from streamer.looks import SeriesState, look, state_of
from tests.streams import START, noise, shipped_weights
from tests.test_engine import Bench


def states(bench: Bench) -> dict[str, str]:
    seen = look(bench.shard, None, bench.clock.now())
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
    assert state_of(bench.shard, 2, bench.clock.now()) is SeriesState.GAP


def test_what_is_late_is_not_normal() -> None:
    """Though nothing has alarmed: silence is no alarm by the settings, or the daemon hears nobody."""
    bench = Bench(weights=shipped_weights(), silent=False)
    for value in noise(200).tolist():
        bench.clock.advance(1.0)
        bench.turn(*(bench.say(topic, value) for topic in ("a", "b")))
    for value in noise(200).tolist():
        bench.clock.advance(600.0)
        bench.turn(bench.say("b", value))
    assert states(bench) == {"a": "stale", "b": "normal"}
    bench.clock.advance(1200.0)
    assert states(bench)["b"] == "normal"
    bench.turn(bench.say("a", 20.0))
    assert states(bench) == {"a": "gap", "b": "normal"}
    bench.clock.advance(7 * 86_400.0)
    assert states(bench) == {"a": "stale", "b": "stale"}
    assert state_of(bench.shard, 0, bench.clock.now()) is SeriesState.STALE


def test_a_series_whose_cadence_is_not_known_is_not_stale_at_once() -> None:
    """Its few intervals say how long it may take, or five minutes; that a clock is set back is nobody's delay."""
    bench = Bench(weights=shipped_weights())
    for value in noise(25).tolist():
        bench.clock.advance(900.0)
        bench.turn(bench.say("a", value))
    bench.clock.advance(3600.0)
    assert states(bench) == {"a": "normal"}
    bench.clock.set(bench.clock.now() - 86_400.0)
    assert states(bench) == {"a": "normal"}
    bench.clock.advance(2 * 86_400.0)
    assert states(bench) == {"a": "stale"}


def test_a_look_is_a_copy_and_takes_over_what_is_the_same() -> None:
    """Readings that come later do not change it; the list of keys is another only where series came or went."""
    bench = Bench()
    bench.report("a", [1.0])
    before = look(bench.shard, None, bench.clock.now())
    bench.report("a", [2.0])
    after = look(bench.shard, before, bench.clock.now())
    assert (before.latest[0, 1], after.latest[0, 1]) == (1.0, 2.0)
    assert before.heard[0] < after.heard[0]
    assert after.keys is before.keys
    bench.report("b", [3.0])
    later = look(bench.shard, after, bench.clock.now())
    assert (after.keys, later.keys) == (["a"], ["a", "b"])


def test_a_slot_that_nobody_holds_is_gone() -> None:
    """And its key is empty."""
    bench = Bench()
    bench.report("a", [1.0])
    bench.report("b", [1.0])
    bench.shard.evict(np.array([0]), START)
    seen = look(bench.shard, None, bench.clock.now())
    assert (seen.keys, seen.state.tolist()[0]) == (["", "b"], SeriesState.GONE)
