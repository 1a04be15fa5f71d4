"""The metrics: every number is exported, and the counters add up at every scrape, whatever the threads do."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client import Histogram as LibraryHistogram
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from streamer.exposition import SeriesTable
from streamer.inbox import MESSAGE_BYTES, Inbox
from streamer.metrics import FAMILIES, SECONDS, Histogram, Metrics, TurnCounts, reference
from streamer.readings import Message, Unscored
from tests.servers import program
from tests.waiting import wait_until

LABEL_VALUES: Mapping[str, Iterable[str]] = {
    "messages_rejected_total": ("no_number", "too_large"),
    "readings_rejected_total": ("future", "not_finite"),
}
OPENMETRICS = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
Samples = dict[str, dict[tuple[str, ...], float]]


def make() -> Metrics:
    return Metrics("1.2.3", 1.7e9, LABEL_VALUES)


def families(text: str) -> list[Metric]:
    if text.endswith("# EOF\n"):
        return list(parse_openmetrics(text))  # type: ignore[no-untyped-call]  # the library's
    return list(parse_text(text))


def scrape(metrics: Metrics, accept: str = "") -> Samples:
    """Sample name without prefix -> label values -> value."""
    found: Samples = defaultdict(dict)
    for family in families(metrics.render(accept)[0].decode()):
        for sample in family.samples:
            found[sample.name.removeprefix("streamer_")][tuple(sample.labels.values())] = sample.value
    return found


def imbalance(found: Samples) -> tuple[float, float]:
    """What is missing in the identity of messages and in that of readings; (0, 0) where everything adds up."""

    def total(*names: str) -> float:
        return sum(sum(found[name].values()) for name in names)

    return (
        total("messages_received_total")
        - total("messages_decoded_total", "messages_retained_total", "messages_ignored_total")
        - total("messages_rejected_total", "messages_dropped_total", "messages_queued"),
        total("readings_decoded_total")
        - total("readings_scored_total", "readings_unscored_total", "readings_rejected_total", "readings_pending"),
    )


def test_the_sums_are_whole_before_anything_has_come() -> None:
    """A part that is absent would leave a query of the sum without an answer."""
    found = scrape(make())
    assert found["readings_pending"] == {(): 0.0}


# --- Names and values ---


def test_the_reference_names_exactly_what_is_exported() -> None:
    """No metric without a sentence in the documentation, and none there that does not exist."""
    metrics = make()
    for name, family in FAMILIES.items():
        if family.kind == "gauge":
            for value in family.values or ("",):
                metrics.set(name, 1, value)
    column = np.ones(1)
    metrics.watch_series(lambda: SeriesTable(["t"], column, column, column, column, column))
    metrics.show_series("all", 1)
    exported = {}
    for family_read in families(metrics.render("")[0].decode()):
        if family_read.name.startswith("streamer_"):
            name = family_read.name + ("_total" if family_read.type == "counter" else "")
            assert family_read.samples, f"{name} has no samples"
            labels = {label for sample in family_read.samples for label in sample.labels} - {"le"}
            exported[name] = (family_read.type, labels, family_read.documentation)
    assert exported == {one.name: (one.kind, set(one.labels), one.help) for one in reference()}


def test_each_help_is_one_sentence() -> None:
    """What Grafana shows beside a metric."""
    for one in reference():
        assert one.help.endswith(".")
        assert one.help.count(". ") == 0
        assert len(one.help) <= 100, one.name


def test_a_turn_moves_every_counter_by_what_it_says() -> None:
    """Each field of TurnCounts has its metric."""
    metrics = make()
    metrics.received(10, 250)
    metrics.dropped("inbox_full", 1)
    metrics.settle(
        TurnCounts(
            decoded=4,
            retained=2,
            ignored=1,
            rejected={"too_large": 2},
            readings=12,
            verdicts=np.bincount([0, 0, 0, 1, 2, 3, 4, 5, 5], minlength=len(Unscored)),
            readings_rejected={"future": 2},
            pending=1,
            series_refused={"rate": 5},
            alarms_opened={"value": 2},
            alarms_closed={"silent": 1},
            latency_seconds=np.array([0.002, 0.02, 0.2]),
            seconds=0.03,
            finished_at=1.7e9 + 5,
        )
    )
    metrics.measured("messages_queued", lambda: 0)
    for accept in ("", OPENMETRICS):
        found = scrape(metrics, accept)
        assert found["messages_received_total"] == {(): 10}
        assert found["mqtt_received_bytes_total"] == {(): 250}
        assert found["messages_dropped_total"] == {("inbox_full",): 1, ("disk",): 0}
        assert found["messages_decoded_total"] == {(): 4}
        assert found["messages_retained_total"] == {(): 2}
        assert found["messages_ignored_total"] == {(): 1}
        assert found["messages_rejected_total"] == {("no_number",): 0, ("too_large",): 2}
        assert found["readings_decoded_total"] == {(): 12}
        assert found["readings_scored_total"] == {(): 3}
        assert found["readings_unscored_total"] == {
            ("warming",): 1,
            ("gap",): 1,
            ("duplicate",): 1,
            ("late",): 1,
            ("paused",): 2,
        }
        assert found["readings_rejected_total"] == {("future",): 2, ("not_finite",): 0}
        assert found["readings_pending"] == {(): 1}
        assert found["series_refused_total"] == {("rate",): 5, ("full",): 0}
        assert found["alarms_opened_total"] == {("value",): 2, ("silent",): 0}
        assert found["alarms_closed_total"] == {("value",): 0, ("silent",): 1}
        assert found["turns_total"] == {(): 1}
        assert found["turn_seconds_sum"] == {(): 0.03}
        assert found["turn_readings_bucket"][("4.0",)] == 0
        assert found["turn_readings_bucket"][("16.0",)] == 1
        assert found["scored_latency_seconds_count"] == {(): 3}
        assert found["scored_latency_seconds_sum"][()] == pytest.approx(0.222)
        assert found["last_progress_timestamp_seconds"] == {(): 1.7e9 + 5}
        assert imbalance(found) == (0, 0)


def test_what_nobody_has_measured_is_absent_not_zero() -> None:
    """A daemon that has not connected yet does not claim that it has no series and a snapshot of 1970."""
    found = scrape(make())
    assert "series" not in found
    assert "snapshot_timestamp_seconds" not in found
    assert found["build_info"] == {("1.2.3",): 1}
    assert found["start_time_seconds"] == {(): 1.7e9}
    assert found["messages_received_total"] == {(): 0}
    assert found["process_resident_memory_bytes"][()] > 0


def test_a_failed_snapshot_leaves_the_figures_of_the_last_good_one() -> None:
    """The age of the last good snapshot is what an operator watches."""
    metrics = make()
    metrics.snapshot("ok", 1.5, 4096, 1.7e9)
    metrics.snapshot("failed", 9.0, 0, 1.8e9)
    found = scrape(metrics)
    assert found["snapshot_total"] == {("ok",): 1, ("failed",): 1}
    assert (found["snapshot_seconds"], found["snapshot_bytes"]) == ({(): 1.5}, {(): 4096})
    assert found["snapshot_timestamp_seconds"] == {(): 1.7e9}


def test_a_number_that_another_part_keeps_is_read_at_the_scrape() -> None:
    """Counters and gauges alike: whether it is connected, how often it has reconnected."""
    metrics = make()
    state = {"connected": True, "reconnects": 3}
    metrics.measured("mqtt_connected", lambda: state["connected"])
    metrics.measured("mqtt_reconnects_total", lambda: state["reconnects"])
    assert scrape(metrics)["mqtt_connected"] == {(): 1}
    state.update(connected=False, reconnects=4)
    found = scrape(metrics)
    assert (found["mqtt_connected"], found["mqtt_reconnects_total"]) == ({(): 0}, {(): 4})


@pytest.mark.parametrize(
    "use",
    [
        lambda metrics: metrics.add("messages_rejected_total", 1, "made up by a sensor"),
        lambda metrics: metrics.settle(TurnCounts(rejected={"new": 1}, seconds=0, finished_at=0)),
        lambda metrics: metrics.set("no_such_metric", 1),
        lambda metrics: metrics.set("alarms_open", 1, "made up by a sensor"),
        lambda metrics: metrics.measured("messages_dropped_total", lambda: 1),
        lambda metrics: metrics.measured("no_such_metric", lambda: 1),
    ],
)
def test_a_label_or_name_that_was_not_declared_is_a_bug(use: Callable[[Metrics], None]) -> None:
    """Label values are a fixed set: nothing that arrives can make a new series of our own metrics."""
    with pytest.raises(KeyError):
        use(make())


@pytest.mark.parametrize("values", [{}, {**LABEL_VALUES, "turns_total": ("x",)}, {**LABEL_VALUES, "typo_total": ()}])
def test_label_values_are_declared_once_and_for_the_right_metrics(values: Mapping[str, Iterable[str]]) -> None:
    """A reason that is forgotten shows at the start, not with the first message that has it."""
    with pytest.raises(ValueError, match="label"):
        Metrics("1", 0, values)


# --- Histograms ---


@given(st.lists(st.floats(0, 100)), st.lists(st.floats(0, 100)))
@settings(deadline=None)
def test_the_histogram_equals_that_of_prometheus_client(one_by_one: list[float], many: list[float]) -> None:
    """Filled one by one or by arrays, it counts what the library's counts."""
    own = Histogram(SECONDS)
    for value in one_by_one:
        own.observe(value)
    own.observe_many(np.array(many, dtype=float))
    registry = CollectorRegistry()
    library = LibraryHistogram("h", "H.", buckets=SECONDS, registry=registry)
    for value in one_by_one + many:
        library.observe(value)
    buckets, total = own.cumulative()
    for bound, count in buckets:
        assert registry.get_sample_value("h_bucket", {"le": bound}) == count
    assert registry.get_sample_value("h_sum") == pytest.approx(total)


def test_a_clock_that_was_set_back_does_not_take_from_the_sum() -> None:
    """The sum of a histogram only grows."""
    histogram = Histogram(SECONDS)
    histogram.observe_many(np.array([-3600.0, 1.0]))
    buckets, total = histogram.cumulative()
    assert (buckets[0][1], buckets[-1][1], total) == (1, 2, 1.0)


# --- The text ---


@pytest.mark.parametrize(
    ("accept", "is_openmetrics"),
    [
        ("", False),
        ("*/*", False),
        ("text/plain;version=0.0.4", False),
        ("text/html,application/xhtml+xml,*/*;q=0.8", False),
        (OPENMETRICS, True),
        ("application/openmetrics-text; version=0.0.1", True),
        ("text/plain;version=0.0.4;q=0.5, APPLICATION/OpenMetrics-Text;version=1.0.0;escaping=allow-utf-8;q=0.6", True),
        ("text/plain;version=what;escaping==;;,,", False),
        ("application/openmetrics-text;version=1.0.0\x00'\"\\", True),
    ],
)
def test_the_client_chooses_the_format(accept: str, is_openmetrics: bool) -> None:
    """Who names OpenMetrics gets it; everybody else, and every nonsense, the old text format."""
    text, content_type = make().render(accept)
    assert content_type.startswith("application/openmetrics-text; version=1.0.0" if is_openmetrics else "text/plain; ")
    assert text.endswith(b"# EOF\n") == is_openmetrics
    assert text.count(b"# EOF") == is_openmetrics
    assert families(text.decode())


def test_single_series_are_shown_as_the_settings_say_and_a_silent_engine_costs_only_them() -> None:
    """off, top, all; and no answer in time."""
    metrics = make()
    answers: list[SeriesTable | None] = []

    def read() -> SeriesTable | None:
        return answers[-1]

    keys = ["a#x", "b", "c"]
    score, column = np.array([1.0, 3.0, 2.0]), np.ones(3)
    answers.append(SeriesTable(keys, score, column, column, column, column))
    metrics.watch_series(read)
    assert "y" not in scrape(metrics)
    metrics.show_series("top", 2)
    for accept in ("", OPENMETRICS):
        assert scrape(metrics, accept)["anomaly_score"] == {("b", ""): 3, ("c", ""): 2}
    metrics.show_series("all", 2)
    assert set(scrape(metrics)["anomaly_score"]) == {("a", "x"), ("b", ""), ("c", "")}
    answers.append(None)
    assert "y" not in scrape(metrics)
    assert scrape(metrics)["turns_total"] == {(): 0}


def test_the_series_are_read_outside_the_lock() -> None:
    """The engine that prepares them needs the lock to end its turn: waiting for it inside would be a deadlock."""
    metrics = make()

    def read() -> None:
        engine = threading.Thread(target=metrics.settle, args=(TurnCounts(seconds=0, finished_at=0),))
        engine.start()
        engine.join(10)
        assert not engine.is_alive()

    metrics.watch_series(read)
    metrics.show_series("all", 1)
    metrics.render("")


@pytest.mark.server("promtool")
def test_promtool_finds_nothing_wrong_with_the_names() -> None:
    """Prometheus' own linter reads the text."""
    metrics = make()
    for name, family in FAMILIES.items():
        if family.kind == "gauge":
            for value in family.values or ("",):
                metrics.set(name, 1, value)
    text = metrics.render("")[0]
    checked = subprocess.run([program("promtool"), "check", "metrics"], input=text, capture_output=True, check=False)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")


# --- Conservation ---


class Pipeline:
    """Two network threads and an engine that do nothing but move counters, as fast as they can.

    `hold` is what stands around the moves that belong together.
    """

    def __init__(self, metrics: Metrics, hold: AbstractContextManager[object]) -> None:
        self._metrics = metrics
        self._hold = hold
        self._inbox = Inbox(200 * (MESSAGE_BYTES + 10))
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=run) for run in (self._network, self._network, self._engine)]
        metrics.measured("messages_queued", self._inbox.queued)

    def __enter__(self) -> Pipeline:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def _network(self) -> None:
        choose = np.random.default_rng(1)
        while not self._stopping.is_set():
            messages = [Message("t", b"1", 0, 0, False, 0.0)] * int(choose.integers(1, 50))
            with self._hold:
                self._metrics.received(len(messages), len(messages))
                self._metrics.dropped("inbox_full", len(self._inbox.put(messages)))

    def _engine(self) -> None:
        choose = np.random.default_rng(2)
        while not self._stopping.is_set():
            taken = self._inbox.take(100, 0.01)
            decoded, retained, ignored, rejected = choose.multinomial(len(taken), [0.25] * 4).tolist()
            verdicts = choose.multinomial(3 * decoded, [1 / len(Unscored)] * len(Unscored))
            turn = TurnCounts(
                decoded=decoded,
                retained=retained,
                ignored=ignored,
                rejected={"no_number": rejected},
                readings=3 * decoded + 2,
                verdicts=verdicts,
                readings_rejected={"future": 2},
                latency_seconds=np.zeros(verdicts[0]),
                seconds=0.0,
                finished_at=0.0,
            )
            with self._hold:
                self._inbox.done()
                self._metrics.settle(turn)


@contextmanager
def restless_threads() -> Iterator[None]:
    """Python changes threads every microsecond or so, not every 5 ms."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def test_both_identities_hold_at_every_scrape_under_load() -> None:
    """Messages and readings add up exactly, 200 times in both formats, while three threads move them."""
    metrics = make()
    with restless_threads(), Pipeline(metrics, metrics.lock):
        wait_until(lambda: scrape(metrics)["turns_total"][()] > 10, 30, "the engine to turn")
        found = [scrape(metrics, accept) for accept in ("", OPENMETRICS) * 100]
    assert [imbalance(one) for one in found] == [(0, 0)] * 200
    assert all(one["scored_latency_seconds_count"][()] == one["readings_scored_total"][()] for one in found)
    assert all(one["turn_readings_sum"][()] == one["readings_decoded_total"][()] for one in found)
    turns = [one["turns_total"][()] for one in found]
    assert turns == sorted(turns)
    assert turns[-1] > turns[0]
    last = found[-1]
    for name in ("messages_dropped_total", "messages_rejected_total", "readings_scored_total"):
        assert sum(last[name].values()) > 0, f"the load never reached {name}"
    assert any(one["messages_queued"][()] for one in found)


@pytest.mark.parametrize("mutant", ["writers do not hold it", "the scrape does not hold it"])
def test_without_the_lock_the_identities_are_seen_to_break(mutant: str) -> None:
    """The test above would notice: the same load with the lock left out shows sums that do not add up."""
    metrics = make()
    hold = metrics.lock
    if mutant == "writers do not hold it":
        hold = nullcontext()
    else:
        metrics.lock = nullcontext()
    with restless_threads(), Pipeline(metrics, hold):
        wait_until(lambda: imbalance(scrape(metrics)) != (0, 0), 60, "a scrape that does not add up")


def test_a_scrape_waits_for_a_writer_that_is_half_way() -> None:
    """The same, without chance: between `received` and `put` a scrape finds the door closed."""
    metrics = make()
    inbox = Inbox(10**6)
    metrics.measured("messages_queued", inbox.queued)
    found: list[Samples] = []
    scraped = threading.Event()

    def scraper() -> None:
        found.append(scrape(metrics))
        scraped.set()

    thread = threading.Thread(target=scraper)
    with metrics.lock:
        metrics.received(1, 1)
        thread.start()
        assert not scraped.wait(0.2)
        inbox.put([Message("t", b"1", 0, 0, False, 0.0)])
    thread.join(10)
    assert imbalance(found[0]) == (0, 0)
    assert found[0]["messages_queued"] == {(): 1}
