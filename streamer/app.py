"""The composition root: settings -> parts -> start in order -> signals -> stop in reverse."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

from streamer import signals, snapshot
from streamer.clock import Clock, Steps, SystemClock
from streamer.engine import READING_REJECTIONS, Adjustment, Engine
from streamer.errors import SettingsError
from streamer.http import Server
from streamer.inbox import Inbox
from streamer.log import configure, event, set_level
from streamer.metrics import Metrics
from streamer.mqtt import MqttLink
from streamer.outbox import Outgoing
from streamer.payloads import Rejection
from streamer.readings import Message
from streamer.registry import Registry
from streamer.settings import Settings, changed
from streamer.shard import Shard, State
from streamer.statedir import StateDirectory
from streamer.wire import tls_context
from streamer.wiring import decoder_from, load_weights, shard_from

log = logging.getLogger(__name__)

DISTRIBUTION = "anomaly-streamer"
DRAIN_SECONDS = 3.0  # of the five within which SIGTERM is obeyed: for what is in the inbox and the last snapshot
FILTERS_FILE = "filters.json"
MOST_FILTERS = 1000
FAREWELL_SECONDS = 1.5  # for the last acknowledgements and the word "offline"


class App:
    """The daemon, put together. Everything that a person can mend is refused by the constructor or by `start`."""

    def __init__(self, settings: Settings, clock: Clock | None = None) -> None:
        self._settings = settings
        self._clock = clock or SystemClock()
        self._steps = Steps(self._clock) if clock is None else None  # a clock that is handed in runs as it likes
        self._directory = StateDirectory(Path(settings.state.directory))
        self._decoder = decoder_from(settings)
        weights = load_weights(settings)
        mqtt, limits = settings.mqtt, settings.limits
        self._past_filters = _past_filters(self._directory.path / FILTERS_FILE)
        registry = Registry(
            limits.max_series, limits.new_series_per_minute, limits.new_series_burst, self._decoder.device
        )
        self._shard = shard_from(settings, weights, registry)
        self._inbox = Inbox(limits.inbox_bytes)
        self.metrics = Metrics(
            importlib.metadata.version(DISTRIBUTION),
            self._clock.now(),
            {
                "messages_rejected_total": [reason.value for reason in Rejection],
                "readings_rejected_total": [*(reason.value for reason in Rejection), *READING_REJECTIONS],
            },
        )
        self.link = MqttLink(
            host=mqtt.host,
            port=mqtt.port,
            instance=settings.instance,
            client_id=settings.client_id,
            filters=mqtt.subscribe,
            unwanted=self._past_filters,
            deliver=self._deliver,
            clock=self._clock,
            protocol=mqtt.protocol,
            qos=mqtt.qos,
            username=mqtt.username,
            password=mqtt.password.get_secret_value(),
            tls=tls_context(mqtt.tls.ca_file, mqtt.tls.cert_file, mqtt.tls.key_file) if mqtt.tls.enabled else None,
            keep_alive_seconds=mqtt.keep_alive_seconds,
            session_expiry_seconds=mqtt.session_expiry_seconds,
            connect_timeout_seconds=mqtt.connect_timeout_seconds,
            reconnect_min_seconds=mqtt.reconnect_min_seconds,
            reconnect_max_seconds=mqtt.reconnect_max_seconds,
            max_packet_bytes=mqtt.max_packet_bytes,
            receive_maximum=mqtt.receive_maximum,
            linger_seconds=mqtt.linger_ms / 1000,
        )
        self.engine = Engine(
            instance=settings.instance,
            shard=self._shard,
            decoder=self._decoder,
            inbox=self._inbox,
            metrics=self.metrics,
            clock=self._clock,
            publish=self._publish,
            acknowledge=self.link.ack,
            is_hearing=self._is_hearing,
            save=self._save,
            snapshot_seconds=settings.state.snapshot_seconds,
            max_future_seconds=settings.clock.max_future_seconds,
            silent=settings.alarms.silent,
            publish_series=settings.alarms.publish_series,
        )
        self.http = (
            Server(settings.http.host, settings.http.port, self.metrics.render, self.is_healthy, self.is_ready)
            if settings.http.enabled
            else None
        )
        self._saving: threading.Thread | None = None
        self._wire_metrics()

    # --- Life ---

    def start(self) -> None:
        """Takes the state directory, restores, serves, connects. Raises StateError or ServiceError."""
        self._directory.open()
        try:
            self._remember_filters()
            self._restore()
            if self.http is not None:
                self.http.start()
        except BaseException:
            self._directory.close()
            raise
        self.engine.start()
        self.link.start()
        event(
            log, logging.INFO, "started", version=importlib.metadata.version(DISTRIBUTION),
            broker=f"{self._settings.mqtt.host}:{self._settings.mqtt.port}", state=str(self._directory.path),
            http=f"{self._settings.http.host}:{self.http.port}" if self.http else "off",
        )  # fmt: skip

    def stop(self) -> bool:
        """Drains, saves, says offline; True if nothing was left undone. Takes at most about five seconds."""
        self._inbox.close()
        drained = self.engine.stop(DRAIN_SECONDS)
        gone = self.link.stop(FAREWELL_SECONDS)
        if self._saving is not None:
            self._saving.join()
        if self.http is not None:
            self.http.stop()
        self._directory.close()
        event(log, logging.INFO, "stopped", drained=drained, queued=self._inbox.queued())
        return drained and gone

    def reload(self, settings: Settings) -> None:
        """Takes over what can change while it runs; logs what cannot."""
        now, later = changed(self._settings, settings)
        if later:
            event(log, logging.WARNING, "settings need a restart", settings=", ".join(later))
        event(log, logging.INFO, "settings read again", applied=", ".join(now) or "nothing has changed")
        # Only what is applied is remembered: the next time, what still waits for a restart is named again.
        self._settings = _merged(self._settings, settings, now)
        set_level(self._settings.log.level)
        self.metrics.show_series(self._settings.metrics.per_series, self._settings.metrics.top)
        self.metrics.set("alarm_budget_per_series_month", self._settings.alarms.budget_per_series_month)
        alarms = self._settings.alarms
        self.engine.adjust(Adjustment(decoder_from(self._settings), alarms.budget_per_series_month, alarms.silent))

    # --- What it says of itself ---

    def is_healthy(self) -> tuple[bool, str]:
        """Live: the engine makes progress and the network thread is alive, broker or no broker."""
        trouble = self.engine.trouble()
        if trouble is not None:
            return False, trouble
        status = self.link.status()
        return status.is_alive, "ok" if status.is_alive else f"the network thread has ended: {status.detail}"

    def is_ready(self) -> tuple[bool, str]:
        """Subscribed, and the engine makes progress."""
        healthy, reason = self.is_healthy()
        if not healthy:
            return False, reason
        status = self.link.status()
        return status.subscribed, status.detail

    # --- Wires ---

    def _deliver(self, messages: list[Message]) -> None:
        payload_bytes = sum(len(message.payload) for message in messages)
        with self.metrics.lock:
            self.metrics.received(len(messages), payload_bytes)
            refused = self._inbox.put(messages)
            if refused:
                self.metrics.dropped("inbox_full", len(refused))
        # Counted as lost; unacknowledged they would block the session. At the end they are left to the next start.
        if refused and not self._inbox.is_closed:
            self.link.ack(refused)

    def _is_hearing(self) -> bool:
        """Whether quiet is a sensor's own: not while there is no broker, nor when the wall clock has just been set."""
        has_stepped = self._steps is not None and self._steps.has_stepped()
        if has_stepped:
            event(log, logging.WARNING, "the clock of this machine was set: silence is counted anew")
        return self.link.status().subscribed and not has_stepped

    def _publish(self, message: Outgoing) -> bool:
        return self.link.publish(message.topic, message.payload, retain=message.retain)

    def _wire_metrics(self) -> None:
        metrics, settings = self.metrics, self._settings
        metrics.measured("messages_queued", self._inbox.queued)
        metrics.measured("mqtt_connected", lambda: self.link.status().connected)
        metrics.measured("mqtt_subscribed", lambda: self.link.status().subscribed)
        metrics.measured("mqtt_reconnects_total", lambda: self.link.counters().reconnects)
        metrics.set("series_limit", settings.limits.max_series)
        metrics.set("alarm_budget_per_series_month", settings.alarms.budget_per_series_month)
        metrics.set("model_generation", 1)
        metrics.watch_series(lambda: self.engine.table)
        metrics.show_series(settings.metrics.per_series, settings.metrics.top)

    # --- State ---

    def _remember_filters(self) -> None:
        """A broker's session outlives a setting: what was ever subscribed to must be taken back when it is left out."""
        known = dict.fromkeys([*self._past_filters, *self._settings.mqtt.subscribe])
        try:
            (self._directory.path / FILTERS_FILE).write_text(json.dumps(list(known)[-MOST_FILTERS:]))
        except OSError as error:  # a full disk: scoring goes on all the same
            event(log, logging.WARNING, "subscriptions not remembered", reason=str(error))

    def _restore(self) -> None:
        found, set_aside = snapshot.read_newest(self._directory.path)
        for bad in set_aside:
            event(log, logging.ERROR, "snapshot set aside", reason=bad)
        self.metrics.set("state_restored", 0)
        if found is None:
            event(log, logging.INFO, "no state to restore: every series begins anew")
            return
        try:
            left_behind = self._shard.restore(State(dict(found.arrays), found.meta))
        except ValueError as error:
            event(log, logging.ERROR, "state not restored: every series begins anew", reason=str(error))
            return
        self.metrics.set("state_restored", 1)
        event(
            log, logging.INFO, "state restored", series=len(self._shard.registry), file=found.path.name,
            left_behind=left_behind,
        )  # fmt: skip

    def _save(self, shard: Shard) -> None:
        """Copies the state at once and writes it in a thread of its own; a write that still runs is waited for."""
        if self._saving is not None:
            self._saving.join()
        state = shard.export()
        self._saving = threading.Thread(target=self._write, args=(state,), name="snapshot")
        self._saving.start()

    def _write(self, state: State) -> None:
        started = time.monotonic()
        try:
            path = snapshot.write(self._directory.path, state.arrays, state.rest, position=0)
        except OSError as error:
            self.metrics.add("snapshot_total", 1, "failed")
            event(log, logging.ERROR, "snapshot failed", reason=str(error))
            return
        self.metrics.snapshot("ok", time.monotonic() - started, path.stat().st_size, self._clock.now())


def run(load: Callable[[], Settings], clock: Clock | None = None) -> int:
    """Runs the daemon until SIGTERM or SIGINT; SIGHUP reads the settings again by `load`. Returns the exit status."""
    settings = load()
    configure(settings.log.level, settings.log.format)
    signals.hold()
    listener = signals.Listener()
    listener.start()
    app = App(settings, clock)
    app.start()
    while True:
        got = listener.wait(1.0)
        if app.engine.has_failed or not app.link.status().is_alive:
            event(log, logging.CRITICAL, "a part has failed: the service manager may start the daemon anew")
            return 1
        if got is None:
            continue
        if got is signal.SIGHUP:
            _reload(app, load)
            continue
        event(log, logging.INFO, "stopping", signal=got.name)
        app.stop()
        return 0


def _reload(app: App, load: Callable[[], Settings]) -> None:
    try:
        settings = load()
    except SettingsError as error:
        event(log, logging.ERROR, "settings refused, the old ones stay", reason=str(error))
        return
    app.reload(settings)


def _past_filters(path: Path) -> list[str]:
    """The filters of earlier runs with this state directory; none if the file is absent or not ours."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return []
    return [each for each in found if isinstance(each, str)][:MOST_FILTERS] if isinstance(found, list) else []


def _merged(old: Settings, new: Settings, names: list[str]) -> Settings:
    """`old` with the named settings of `new`; each name is table.setting."""
    for name in names:
        table, _, leaf = name.partition(".")
        part = getattr(old, table).model_copy(update={leaf: getattr(getattr(new, table), leaf)})
        old = old.model_copy(update={table: part})
    return old
