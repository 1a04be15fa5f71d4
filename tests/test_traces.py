"""Readings of series that are looked at: none is made up, none is lost, and there are only so many."""

from __future__ import annotations

import numpy as np
import pytest

from streamer.detector import no_scores
from streamer.readings import Unscored
from streamer.recent import READINGS
from streamer.registry import Registry
from streamer.shard import Shard
from streamer.traces import COLUMNS, IDLE_SECONDS, MOST, ROWS, Part, Traces
from tests.streams import START, noise
from tests.streams import batch as batch_of
from tests.test_engine import SMALL, Bench

NOBODY = (-1, -1)
EVER = 1e12  # steady seconds: it is asked for until then


def shard_with(*keys: str) -> Shard:
    shard = Shard(Registry(100, 1e9, 1e9), SMALL, 100, budget_per_series_month=1.0)
    shard.registry.resolve(list(keys), START)
    return shard


def report(shard: Shard, traces: Traces, slots: list[int], times: list[float], values: list[float]) -> None:
    """As the engine does: judged, then told."""
    batch = batch_of(slots, times, values)
    traces.take(batch, shard.process(batch, START).scores)


def follow(traces: Traces, shard: Shard, key: str, now: float = 0.0, since: tuple[int, int] = NOBODY) -> Part:
    part = traces.follow(shard, key, now, *since)
    assert part is not None
    return part


def test_it_begins_with_what_is_kept_and_goes_on_with_every_reading_and_its_verdict() -> None:
    """The last 64 have no expectation but the newest; those that come are as they were judged, in their order."""
    bench = Bench()
    values = noise(READINGS + 40).tolist()
    bench.report("a", values[:-20])
    traces = bench.engine.traces
    past = follow(traces, bench.shard, "a", EVER)
    assert past.rows[:, 1].tolist() == values[20:-20][-READINGS:]
    assert np.isnan(past.rows[:-1, 2:]).all()
    assert past.rows[-1, 2:].tolist() == pytest.approx(bench.shard.detector.latest[0, [2, 3, 4, 0]].tolist())
    bench.report("a", values[-20:])
    whole = follow(traces, bench.shard, "a", EVER)
    assert whole.rows[:, 1].tolist() == values[-len(whole.rows) :]
    assert np.isfinite(whole.rows[-20:]).all()
    news = follow(traces, bench.shard, "a", EVER, since=(past.serial, past.first + len(past.rows)))
    assert (news.first, len(news.rows)) == (len(past.rows), 20)
    assert news.rows.tolist() == whole.rows[-20:].tolist()
    assert (np.diff(whole.rows[:, 0]) > 0).all()


def test_another_trace_or_a_number_that_it_never_had_gives_all_there_is() -> None:
    """A page that was open over a restart, or that makes numbers up."""
    shard, traces = shard_with("a"), Traces()
    report(shard, traces, [0] * 5, [START + k for k in range(5)], [1.0] * 5)
    part = follow(traces, shard, "a")
    for serial, number in ((part.serial + 1, 3), (part.serial, 6), (part.serial, -3), (-1, 10**15)):
        assert len(follow(traces, shard, "a", since=(serial, number)).rows) == 5
    assert len(follow(traces, shard, "a", since=(part.serial, 5)).rows) == 0


def test_the_past_is_bounded_and_what_has_gone_is_not_sent_again() -> None:
    """The newest stay; who asks for what is gone gets what is left, and is told from where."""
    shard, traces = shard_with("a"), Traces()
    serial = follow(traces, shard, "a").serial
    for start in range(0, ROWS + 300, 100):
        count = np.arange(start, start + 100, dtype=np.float64)
        traces.take(batch_of([0] * 100, START + count, count), no_scores(100))
    part = follow(traces, shard, "a", since=(serial, 10))
    assert (part.first, len(part.rows)) == (304, ROWS)
    assert part.rows[:, 1].tolist() == [float(k) for k in range(304, ROWS + 304)]


def test_readings_that_are_no_part_of_the_series_are_left_out() -> None:
    """Late ones and repeated ones; those of other series."""
    shard, traces = shard_with("a", "b"), Traces()
    serial = follow(traces, shard, "a").serial
    report(shard, traces, [0, 1, 0, 0, 0], [START, START, START + 1, START - 5, START + 1], [1.0, 7.0, 2.0, 8.0, 9.0])
    assert follow(traces, shard, "a", since=(serial, 0)).rows[:, 1].tolist() == [1.0, 2.0]


def test_a_paused_series_goes_on_without_verdicts() -> None:
    """What it says is shown, and no more."""
    shard, traces = shard_with("a"), Traces()
    follow(traces, shard, "a")
    shard.pause(np.array([0]), START)
    batch = batch_of([0], [START], [5.0])
    scores = shard.process(batch, START).scores
    assert scores.unscored[0] == Unscored.PAUSED
    traces.take(batch, scores)
    row = follow(traces, shard, "a").rows[-1]
    assert row[1] == 5.0
    assert np.isnan(row[COLUMNS.index("expected") :]).all()


def test_time_never_goes_back_on_a_chart() -> None:
    """A clock that is slewed stands still; one that is set back begins another trace."""
    bench = Bench()
    bench.report("a", [1.0, 2.0])
    traces = bench.engine.traces
    before = follow(traces, bench.shard, "a", EVER)
    bench.clock.set(bench.clock.now() - 65.0)  # `report` goes on by 60: five seconds back
    bench.report("a", [3.0])
    slewed = follow(traces, bench.shard, "a", EVER)
    assert slewed.serial == before.serial
    assert slewed.rows[-1, 0] == slewed.rows[-2, 0]
    bench.clock.set(bench.clock.now() - 86_400.0)
    bench.report("a", [4.0])
    after = follow(traces, bench.shard, "a", EVER, since=(slewed.serial, 3))
    assert after.serial != slewed.serial
    assert after.rows[:, 1].tolist() == [4.0]


def test_there_are_only_so_many_and_they_end() -> None:
    """Who was not asked for the longest makes room; nobody asks for a minute: none is left."""
    keys = [f"s{k}" for k in range(MOST + 1)]
    shard, traces = shard_with(*keys), Traces()
    first = follow(traces, shard, "s0", 0.0)
    for k, key in enumerate(keys[1:-1], 1):
        follow(traces, shard, key, float(k))
    assert follow(traces, shard, "s0", MOST).serial == first.serial
    follow(traces, shard, keys[-1], MOST + 1.0)
    assert len(traces) == MOST
    assert follow(traces, shard, "s1", MOST + 2.0).serial > MOST + 1
    traces.drop_idle(MOST + 2.0 + IDLE_SECONDS)
    assert len(traces) == 1
    traces.drop_idle(MOST + 3.0 + IDLE_SECONDS)
    assert len(traces) == 0


def test_a_series_that_is_no_more_has_none_and_its_slot_is_anothers() -> None:
    """Forgotten with the series, and by its key, not by its slot."""
    shard, traces = shard_with("a"), Traces()
    follow(traces, shard, "a")
    traces.forget(np.array([0]))
    shard.evict(np.array([0]), START)
    assert traces.follow(shard, "a", 0.0, *NOBODY) is None
    assert traces.follow(shard, "nobody", 0.0, *NOBODY) is None
    shard.registry.resolve(["b"], START)
    report(shard, traces, [0], [START], [1.0])
    assert len(follow(traces, shard, "b").rows) == 1
    assert len(traces) == 1
