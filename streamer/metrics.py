"""Everything that Prometheus sees of the daemon: names, help, buckets, and the numbers behind them.

Every exit of the pipeline has one counter, and the counters add up at every scrape:

    messages received = decoded + retained + ignored + rejected{reason} + dropped{reason} + queued
    readings decoded  = scored + unscored{reason} + rejected{reason} + pending

They do because one lock stands around all that belongs together: who moves a message from one side to the other holds
`Metrics.lock` while he does, and a scrape copies the numbers under it. The numbers are kept here and handed to
prometheus_client as finished families: its own counters have a lock each, and could not be read at one moment.
"""

from __future__ import annotations

import bisect
import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric

from streamer.exposition import GAUGES, LABELS, SeriesTable, SeriesText
from streamer.readings import Float64, Forecaster, Unscored

PREFIX = "streamer_"
SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
LATENCIES = (*SECONDS[:5], 0.015, 0.02, *SECONDS[5:])  # what is promised lies between ten and twenty-five milliseconds
READINGS = (1.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 4096.0, 16384.0, 65536.0)


class _Family(NamedTuple):
    """One metric. `label` has a fixed set of `values`; what the set is, `Metrics` is told where it is not said here."""

    kind: Literal["counter", "gauge", "histogram"]
    help: str
    label: str = ""
    values: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


ALARM_KINDS = ("value", "silent")
RETRAIN_RESULTS = ("promoted", "rejected", "failed", "too_little_data", "stale")
WEBHOOK_RESULTS = ("delivered", "refused", "given_up", "dropped")
FORECASTERS = tuple(forecaster.name.lower() for forecaster in Forecaster)
NOT_SCORED = tuple(reason.name.lower() for reason in Unscored if reason is not Unscored.SCORED)

FAMILIES: Mapping[str, _Family] = MappingProxyType(
    {
        # The first identity: what became of every message.
        "messages_received_total": _Family("counter", "Messages that the broker has delivered."),
        "messages_decoded_total": _Family("counter", "Messages that were read."),
        "messages_retained_total": _Family("counter", "Messages that the broker had kept: old values, not scored."),
        "messages_ignored_total": _Family("counter", "Messages on topics that the settings leave out."),
        "messages_rejected_total": _Family("counter", "Messages that could not be read, by reason.", "reason"),
        "messages_dropped_total": _Family(
            "counter", "Messages given up before they were read, by reason.", "reason", ("inbox_full", "disk")
        ),
        "messages_queued": _Family("gauge", "Messages received and not yet settled."),
        # The second identity: what became of every reading.
        "readings_decoded_total": _Family("counter", "Readings found in messages."),
        "readings_scored_total": _Family("counter", "Readings that got a score."),
        "readings_unscored_total": _Family(
            "counter", "Readings that the model took without giving a score, by reason.", "reason", NOT_SCORED
        ),
        "readings_rejected_total": _Family("counter", "Readings that did not reach the model, by reason.", "reason"),
        "readings_pending": _Family(
            "gauge", "Readings decoded and not yet settled: those that wait by input.lateness_seconds."
        ),
        "readings_released_early_total": _Family(
            "counter", "Readings that did not wait for as long as input.lateness_seconds says, since too many waited."
        ),
        # The engine.
        "turns_total": _Family("counter", "Turns of the engine that settled at least one message."),
        "turn_seconds": _Family("histogram", "How long a turn of the engine took.", buckets=SECONDS),
        "turn_readings": _Family("histogram", "Readings in a turn of the engine.", buckets=READINGS),
        "scored_latency_seconds": _Family(
            "histogram",
            "From the arrival of a message to the score of its reading, input.lateness_seconds included.",
            buckets=LATENCIES,
        ),
        "last_progress_timestamp_seconds": _Family(
            "gauge", "When the engine last finished a turn, an idle one included."
        ),
        # Series and alarms.
        "series": _Family("gauge", "Series that have state."),
        "series_warming": _Family("gauge", "Series that have too few readings for a score."),
        "series_paused": _Family("gauge", "Series in maintenance: neither judged nor learned from."),
        "forecaster_in_charge": _Family(
            "gauge",
            "Series by which forecaster is in charge: the one with the smaller recent error.",
            "forecaster",
            FORECASTERS,
        ),
        "series_limit": _Family("gauge", "Series that may have state: limits.max_series."),
        "series_refused_total": _Family(
            "counter", "Readings of new series that were not admitted, by reason.", "reason", ("rate", "full")
        ),
        "series_evicted_total": _Family("counter", "Idle series that were forgotten to make room for new ones."),
        "alarms_open": _Family("gauge", "Alarms that are open, by kind.", "kind", ALARM_KINDS),
        "alarms_opened_total": _Family("counter", "Alarms that were opened, by kind.", "kind", ALARM_KINDS),
        "alarms_closed_total": _Family("counter", "Alarms that were closed, by kind.", "kind", ALARM_KINDS),
        "alarm_budget_per_series_month": _Family(
            "gauge", "False alarms that a series may raise in a month: alarms.budget_per_series_month."
        ),
        "commands_total": _Family(
            "counter",
            "Commands of an operator, by MQTT or a request file, by what became of them.",
            "result",
            ("done", "refused"),
        ),
        # The broker.
        "mqtt_connected": _Family("gauge", "1 while the broker has accepted the connection."),
        "mqtt_subscribed": _Family("gauge", "1 while the broker has granted every subscription."),
        "mqtt_reconnects_total": _Family("counter", "Connections made again after one was lost."),
        "mqtt_received_bytes_total": _Family("counter", "Bytes of payload that the broker has delivered."),
        "publishes_total": _Family("counter", "Messages of our own that were handed to the broker's connection."),
        "publishes_dropped_total": _Family("counter", "Messages of our own that found no room and were given up."),
        "publishes_refused_total": _Family("counter", "Messages of our own that the broker has refused (MQTT 5)."),
        "mqtt_stale_acknowledgements_total": _Family(
            "counter", "Acknowledgements not sent, since the connection that brought the message is gone."
        ),
        # Who else is told.
        "webhook_total": _Family(
            "counter",
            "Alarm events that were to be posted to webhook.url, by what became of them.",
            "result",
            WEBHOOK_RESULTS,
        ),
        "webhook_queued": _Family("gauge", "Alarm events that webhook.url has not taken yet."),
        "home_assistant_devices": _Family("gauge", "Devices that Home Assistant is told of."),
        # State.
        "model_generation": _Family("gauge", "Generation of the weights that serve."),
        "model_swapping": _Family("gauge", "1 while other weights come in, series by series."),
        "model_swaps_total": _Family("counter", "How often other weights have come to serve."),
        "model_rollbacks_total": _Family(
            "counter", "How often new weights did worse than those before, which came back by themselves."
        ),
        "retrain_total": _Family("counter", "Retrainings that have ended, by result.", "result", RETRAIN_RESULTS),
        "retrain_running": _Family("gauge", "1 while a retraining runs."),
        "retrain_timestamp_seconds": _Family("gauge", "When the last retraining of this run ended."),
        "state_restored": _Family("gauge", "1 when the start found the state of an earlier run, 0 when it began anew."),
        "snapshot_total": _Family("counter", "Snapshots that were tried, by result.", "result", ("ok", "failed")),
        "snapshot_seconds": _Family("gauge", "How long the last good snapshot took."),
        "snapshot_bytes": _Family("gauge", "Size of the last good snapshot."),
        "snapshot_timestamp_seconds": _Family("gauge", "When the last good snapshot was finished."),
        "journal_records": _Family("gauge", "Records that the journal has ever been given: its position."),
        "journal_pending_bytes": _Family("gauge", "What waits in memory for the disk, unacknowledged."),
        "journal_failing": _Family(
            "gauge", "1 while the disk refuses the journal, or does not answer, and nothing is acknowledged."
        ),
        "start_time_seconds": _Family("gauge", "When the daemon was started."),
    }
)
"""By name without the prefix."""
BUILD_INFO = _Family("gauge", "Version of the daemon; the value is 1.", "version")


class Reference(NamedTuple):
    """One line of the documentation."""

    name: str
    kind: str
    labels: tuple[str, ...]
    help: str


def reference() -> list[Reference]:
    """Every metric of our own, in the order of the exposition; `process_*` comes from prometheus_client."""
    families = {"build_info": BUILD_INFO, **FAMILIES}
    own = [
        Reference(PREFIX + name, family.kind, (family.label,) if family.label else (), family.help)
        for name, family in families.items()
    ]
    return own + [Reference(name, "gauge", LABELS, sentence) for name, sentence in GAUGES.items()]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class TurnCounts:
    """What one turn of the engine has settled. Mappings go from label value to count."""

    decoded: int = 0
    """messages, like the three below"""
    retained: int = 0
    ignored: int = 0
    rejected: Mapping[str, int] = field(default_factory=dict)
    readings: int = 0
    """all that the decoded messages held"""
    verdicts: NDArray[np.intp] = field(default_factory=lambda: np.zeros(len(Unscored), np.intp))
    """readings by `Unscored`: `np.bincount(scores.unscored, minlength=len(Unscored))`"""
    readings_rejected: Mapping[str, int] = field(default_factory=dict)
    pending: int = 0
    """readings that the engine still holds: replaces the last turn's"""
    series_refused: Mapping[str, int] = field(default_factory=dict)
    alarms_opened: Mapping[str, int] = field(default_factory=dict)
    alarms_closed: Mapping[str, int] = field(default_factory=dict)
    latency_seconds: Float64 = field(default_factory=lambda: np.empty(0))
    """arrival to score, of every scored reading"""
    seconds: float
    finished_at: float
    """epoch seconds"""


def wants_openmetrics(accept: str) -> bool:
    """Whether who sends this header is answered in OpenMetrics: all that an exposition's format goes by."""
    return "application/openmetrics-text" in {media.partition(";")[0].strip().lower() for media in accept.split(",")}


class Metrics:
    """The numbers and their text. Any thread may call any method; each takes the lock, which is reentrant."""

    def __init__(
        self,
        version: str,
        started_at: float,
        label_values: Mapping[str, Iterable[str]],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`label_values`: what `messages_rejected_total` and `readings_rejected_total` count, by family.

        A label value that was not declared is a KeyError where it is used: nothing a sensor sends can become one.
        """
        self.lock: AbstractContextManager[object] = threading.RLock()
        self._version = version
        self._values: dict[str, dict[str, float]] = {}
        self._histograms: dict[str, Histogram] = {}
        if unknown := label_values.keys() - {name for name, family in FAMILIES.items() if family.label}:
            raise ValueError(f"no such metric with a label: {', '.join(sorted(unknown))}")
        for name, family in FAMILIES.items():
            values = tuple(label_values.get(name, family.values)) if family.label else ("",)
            if not values:
                raise ValueError(f"{name}: what values has the label {family.label!r}?")
            if family.kind == "histogram":
                self._histograms[name] = Histogram(family.buckets)
            else:
                # A counter starts at 0; a gauge that nobody has measured is absent.
                self._values[name] = {value: 0.0 if family.kind == "counter" else math.nan for value in values}
        self._values["start_time_seconds"][""] = started_at
        self._values["readings_pending"][""] = 0.0  # a sum of which one part is absent is no sum to Prometheus
        self._measured: dict[str, Callable[[], float]] = {}
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)
        self._rendering = threading.Lock()
        self._series: Callable[[], SeriesTable | None] = lambda: None
        self._per_series: Literal["top", "all", "off"] = "off"
        self._top = 0
        self._text = SeriesText(monotonic)

    # --- Writing ---

    def add(self, name: str, amount: float = 1, label: str = "") -> None:
        """Count; `name` is a key of `FAMILIES`."""
        with self.lock:
            values = self._values[name]
            values[label] = values[label] + amount

    def set(self, name: str, value: float, label: str = "") -> None:
        """Set a gauge."""
        with self.lock:
            values = self._values[name]
            values[label]  # KeyError: not declared
            values[label] = value

    def measured(self, name: str, read: Callable[[], float]) -> None:
        """A number that another part keeps: `read` is called at each scrape, under the lock, and must not wait."""
        self._values[name][""]  # KeyError: unknown, or it has a label
        with self.lock:
            self._measured[name] = read

    def received(self, messages: int, payload_bytes: int) -> None:
        """Of the network thread. Hold the lock over this and `Inbox.put`, or a scrape sees only one of them."""
        with self.lock:
            self.add("messages_received_total", messages)
            self.add("mqtt_received_bytes_total", payload_bytes)

    def dropped(self, reason: str, messages: int) -> None:
        """Messages that are given up unread; under the same lock as `received`."""
        self.add("messages_dropped_total", messages, reason)

    def settle(self, turn: TurnCounts) -> None:
        """Of the engine thread, once a turn. Hold the lock over this and `Inbox.done`."""
        with self.lock:
            self.add("messages_decoded_total", turn.decoded)
            self.add("messages_retained_total", turn.retained)
            self.add("messages_ignored_total", turn.ignored)
            self._add_each("messages_rejected_total", turn.rejected)
            self.add("readings_decoded_total", turn.readings)
            self.judged(turn.verdicts, turn.latency_seconds)
            self._add_each("readings_rejected_total", turn.readings_rejected)
            self.set("readings_pending", turn.pending)
            self._add_each("series_refused_total", turn.series_refused)
            self._add_each("alarms_opened_total", turn.alarms_opened)
            self._add_each("alarms_closed_total", turn.alarms_closed)
            self.add("turns_total")
            self._histograms["turn_seconds"].observe(turn.seconds)
            self._histograms["turn_readings"].observe(turn.readings)
            self.set("last_progress_timestamp_seconds", turn.finished_at)

    def judged(self, verdicts: NDArray[np.intp], latency_seconds: Float64) -> None:
        """Of the engine thread: readings have their verdict; both as in `TurnCounts`."""
        with self.lock:
            for reason, count in zip(Unscored, verdicts.tolist(), strict=True):
                if reason is Unscored.SCORED:
                    self.add("readings_scored_total", count)
                elif count:
                    self.add("readings_unscored_total", count, reason.name.lower())
            if len(latency_seconds):
                self._histograms["scored_latency_seconds"].observe_many(latency_seconds)

    def snapshot(self, result: Literal["ok", "failed"], seconds: float, size_bytes: int, finished_at: float) -> None:
        """A snapshot was tried; the gauges tell of the last good one."""
        with self.lock:
            self.add("snapshot_total", 1, result)
            if result == "ok":
                self.set("snapshot_seconds", seconds)
                self.set("snapshot_bytes", size_bytes)
                self.set("snapshot_timestamp_seconds", finished_at)

    def _add_each(self, name: str, counts: Mapping[str, int]) -> None:
        for label, count in counts.items():
            self.add(name, count, label)

    # --- Single series ---

    def watch_series(self, read: Callable[[], SeriesTable | None]) -> None:
        """Where a scrape gets the series from. `read` may wait for the engine: it is called outside the lock.

        None stands for an engine that does not answer: the scrape goes on without single series.
        """
        self._series = read

    def show_series(self, per_series: Literal["top", "all", "off"], top: int) -> None:
        """Which series are shown; may change at any time."""
        with self._rendering:
            self._per_series, self._top = per_series, top

    # --- Reading ---

    def total(self, name: str) -> float:
        """What a counter or gauge stands at, over all its labels."""
        with self.lock:
            return sum(self._values[name].values())

    def values(self, name: str) -> dict[str, float]:
        """What a counter or gauge stands at, by label."""
        with self.lock:
            return dict(self._values[name])

    def observed(self, name: str) -> tuple[float, int]:
        """Sum and number of what a histogram has been told."""
        with self.lock:
            return self._histograms[name].total()

    def render(self, accept: str) -> tuple[bytes, str]:
        """The exposition and its content type: OpenMetrics 1.0 where `accept` names it, else the text format 0.0.4."""
        is_openmetrics = wants_openmetrics(accept)
        encode, content_type = choose_encoder("application/openmetrics-text" if is_openmetrics else "")
        with self._rendering:
            text = encode(self._registry)
            table = self._series() if self._per_series != "off" else None
            if table is None:
                return text, content_type
            end = b"# EOF\n" if is_openmetrics else b""
            top = self._top if self._per_series == "top" else None
            return self._text.write(table, top, text.removesuffix(end), end), content_type

    def collect(self) -> Iterable[Metric]:
        """All families of one moment; prometheus_client calls it."""
        with self.lock:
            for name, read in self._measured.items():
                self._values[name][""] = float(read())
            values = {name: dict(children) for name, children in self._values.items()}
            histograms = {name: histogram.copy() for name, histogram in self._histograms.items()}
        yield InfoMetricFamily(PREFIX + "build", BUILD_INFO.help, value={BUILD_INFO.label: self._version})
        for name, family in FAMILIES.items():
            if family.kind == "histogram":
                buckets, total = histograms[name].cumulative()
                yield HistogramMetricFamily(PREFIX + name, family.help, buckets=buckets, sum_value=total)
            else:
                yield _family(name, family, values[name])


class Histogram:
    """Counts by bucket, filled by arrays. Not locked: it belongs to `Metrics`."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = np.array(bounds)
        self._counts = np.zeros(len(bounds) + 1, np.int64)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect.bisect_left(self._bounds, value)] += 1
        self._sum += value

    def observe_many(self, values: Float64) -> None:
        """`values` (n,). A clock that was set back makes a latency negative: it counts as 0."""
        values = np.maximum(values, 0.0)
        self._counts += np.bincount(np.searchsorted(self._bounds, values), minlength=len(self._counts))
        self._sum += float(values.sum())

    def total(self) -> tuple[float, int]:
        """Sum and number of the readings."""
        return self._sum, int(self._counts.sum())

    def copy(self) -> Histogram:
        other = Histogram(tuple(self._bounds))
        other._counts, other._sum = self._counts.copy(), self._sum
        return other

    def cumulative(self) -> tuple[list[tuple[str, float]], float]:
        """(upper bound, readings up to it) of every bucket, and the sum of all."""
        bounds = [*(str(bound) for bound in self._bounds.tolist()), "+Inf"]
        return list(zip(bounds, np.cumsum(self._counts).tolist(), strict=True)), self._sum


def _family(name: str, family: _Family, values: Mapping[str, float]) -> Metric:
    """A counter or gauge as prometheus_client wants it; a NaN is left out."""
    make = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
    metric = make(PREFIX + name, family.help, labels=[family.label] if family.label else [])
    for label, value in values.items():
        if not math.isnan(value):
            metric.add_metric([label] if family.label else [], value)
    return metric
