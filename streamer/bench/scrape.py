"""A scrape of many series: its CPU time beside the client library's own encoder, and how long scoring stands still.

The library is measured by one of the five gauges of a series and counted five times: half a million of its children
would be a gigabyte.
"""

from __future__ import annotations

import hashlib
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import numpy as np

from models.weights import load
from streamer.bench.processes import wait_for
from streamer.bench.report import Report, machine
from streamer.exposition import GAUGES, LABELS, SeriesTable
from streamer.metrics import Metrics
from streamer.readings import Batch
from streamer.registry import Registry
from streamer.shard import Shard

BURNT_BYTES = 200 << 20
TURN_SECONDS = 30.0  # far more than one takes
WARM_TURNS = 30  # until each series has a score
START = 1.7e9


@dataclass(frozen=True, slots=True)
class Options:
    """What to measure."""

    series: int
    scrapes: int
    scored_series: int = 500
    """readings of a turn of the engine meanwhile"""


FULL, QUICK = Options(100_000, 10), Options(5000, 3)


def measure(options: Options, say: Callable[[str], None]) -> Report:
    """All figures of one run."""
    report = Report(machine())
    report.machine["series"] = float(options.series)
    table = a_table(options.series)
    metrics = Metrics("", 0.0, dict.fromkeys(("messages_rejected_total", "readings_rejected_total"), ("",)))
    metrics.show_series("all", options.series)
    metrics.watch_series(lambda: table)
    say(f"{options.scrapes} scrapes of {options.series} series while readings are scored")
    metrics.render("")  # the labels are prepared once
    with Turns(options) as turns:
        longest = [(turns.longest(burn), turns.longest(lambda: metrics.render(""))) for _ in range(options.scrapes)]
    usual = statistics.median(turns.seconds)
    burnt, scraped = ([1e3 * (seconds - usual) for seconds in each] for each in zip(*longest, strict=True))
    report.add("turn_ms", 1e3 * usual, None, "lower")
    report.add("scoring_pause_otherwise_ms", max(burnt), None, "lower")
    report.add("scoring_pause_otherwise_median_ms", statistics.median(burnt), None, "lower")
    report.add("scoring_pause_while_scraped_ms", max(scraped), 50, "lower")
    report.add("scoring_pause_while_scraped_median_ms", statistics.median(scraped), None, "lower")

    say("beside prometheus_client")
    ours, theirs = [], []
    encode = by_the_library(table)
    for _ in range(3):
        ours.append(cpu_seconds(lambda: metrics.render("")))
        theirs.append(len(GAUGES) * cpu_seconds(encode))
    report.add("scrape_cpu_seconds", statistics.median(ours), None, "lower")
    report.add("prometheus_client_cpu_seconds", statistics.median(theirs), None, "lower")
    ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
    report.add("prometheus_client_over_scrape_cpu", statistics.median(ratios), 15, "higher")
    return report


def a_table(series: int) -> SeriesTable:
    """Verdicts of as many sensors."""
    keys = [f"plant/line-{n // 100}/sensor-{n}#temperature" for n in range(series)]
    return SeriesTable(keys, *np.random.default_rng(0).normal(50, 10, (5, series)))


def by_the_library(table: SeriesTable) -> Callable[[], object]:
    """The exposition of one gauge of all series."""
    from prometheus_client import CollectorRegistry, Gauge, generate_latest

    registry = CollectorRegistry()
    gauge = Gauge("streamer_y", "Last reading.", LABELS, registry=registry)
    for key, value in zip(table.keys, table.value.tolist(), strict=True):
        topic, _, field = key.partition("#")
        gauge.labels(topic, field).set(value)
    return lambda: generate_latest(registry)


def cpu_seconds(work: Callable[[], object]) -> float:
    """Of this thread."""
    before = time.thread_time()
    work()
    return time.thread_time() - before


def burn() -> None:
    """About as long as a scrape, and as busy, without the GIL: what the machine itself does to a turn."""
    hashlib.sha256(bytes(BURNT_BYTES)).digest()


class Turns:
    """An engine's thread that scores one batch after the other, and looks at the clock."""

    def __init__(self, options: Options) -> None:
        registry = Registry(options.scored_series, 1e9, 1e9)
        self._slots = registry.resolve([f"t/{n}" for n in range(options.scored_series)], START)
        self._shard = Shard(registry, load(), options.scored_series, budget_per_series_month=1.0)
        self._rng, self._number = np.random.default_rng(1), 0
        self._thread = threading.Thread(target=self._score)
        self._is_over = False
        self.seconds: list[float] = []
        """of each turn so far"""

    def __enter__(self) -> Self:
        for _ in range(WARM_TURNS):
            self._turn()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over = True
        self._thread.join()

    def longest(self, work: Callable[[], object]) -> float:
        """Seconds of the longest turn while `work` is done; those that it begins and ends in count."""
        first = len(self.seconds)
        work()
        last = len(self.seconds)
        wait_for(lambda: len(self.seconds) - last or None, TURN_SECONDS, "the end of the turn that it has ended in")
        return max(self.seconds[first:])

    def _score(self) -> None:
        while not self._is_over:
            before = time.monotonic()
            self._turn()
            self.seconds.append(time.monotonic() - before)

    def _turn(self) -> None:
        self._number += 1
        n, now = len(self._slots), START + self._number
        value = self._rng.normal(50, 1, n)
        self._shard.process(Batch(self._slots, np.full(n, now), value, np.zeros(n, np.uint8)), now)
