"""The composition root: settings -> parts -> start in order -> signals -> stop in reverse."""

from __future__ import annotations

import gc
import logging
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import closing
from functools import partial
from pathlib import Path

import msgspec

from models.weights import WeightsError
from streamer import recovery, signals, version
from streamer.clock import Clock, Steps, SystemClock
from streamer.disk import DiskFiles
from streamer.diskthread import DiskThread, Patient
from streamer.engine import Adjustment, Engine
from streamer.errors import SettingsError, StateError
from streamer.generations import Generations, Origin
from streamer.http import Server
from streamer.http import tls_context as server_tls_context
from streamer.inbox import Inbox
from streamer.intake import MESSAGE_REJECTIONS, READING_REJECTIONS
from streamer.journal import Journal
from streamer.log import SparingLog, configure, event, set_level
from streamer.metrics import Metrics
from streamer.mqtt import ONLINE, MqttLink
from streamer.outbox import JSON, Outgoing
from streamer.payloads import Rejection
from streamer.readings import Alarm, Message
from streamer.redelivery import Redelivery
from streamer.registry import Registry
from streamer.requests import (
    ModelCommand,
    Promote,
    RequestFiles,
    Result,
    Rollback,
    Train,
    id_in,
    name_of,
    read_file,
)
from streamer.retraining.manager import Refused, Retraining, Serving, Terms
from streamer.retraining.policy import Plan
from streamer.saving import Keeping, Saving
from streamer.settings import Settings, changed
from streamer.sinks.discovery import birth_topic
from streamer.sinks.home_assistant import HomeAssistant, has_published
from streamer.sinks.post import Poster
from streamer.sinks.webhook import Webhook
from streamer.statedir import StateDirectory
from streamer.systemd import ServiceManager
from streamer.topics import command_topic
from streamer.web import Page, Vitals
from streamer.wire import tls_context
from streamer.wiring import (
    decoder_from,
    device_of_from,
    is_included_from,
    load_weights,
    shard_from,
    weights_path,
)

log = logging.getLogger(__name__)

# Objects between two looks for garbage: a turn makes and drops thousands that are in no cycle, and with Python's own
# 700 the looks cost a tenth of receiving and decoding (measured).
GARBAGE_OBJECTS = 50_000
STOP_SECONDS = 4.7  # SIGTERM is obeyed within five; of these
DRAIN_SECONDS = 2.4  # half for what is in the inbox, half for a copy of the state
FAREWELL_SECONDS = 0.6  # for the last acknowledgements and the word "offline"; a link that hangs takes one more
TEND_SECONDS = 0.5  # for the last word about weights
ANSWER_SECONDS = 0.05  # so often it is looked whether a request has its result
PATIENCE_SECONDS = 2.0  # with the disk, of those who tell others: then they tell all the same
FILTERS_FILE, ALARMS_FILE = "filters.json", "alarms.json"
WEBHOOK_FILE, HOME_ASSISTANT_FILE = "webhook.json", "home_assistant.json"
MOST_FILTERS = 1000


class App:
    """The daemon, put together. Everything that a person can mend is refused by the constructor or by `start`."""

    def __init__(self, settings: Settings, clock: Clock | None = None, manager: ServiceManager | None = None) -> None:
        self._settings = settings
        self._clock = clock or SystemClock()
        self._manager = manager or ServiceManager("", self._clock.monotonic)
        self._told_readings = self._clock.monotonic(), 0.0  # when the status was last told, and how many they were then
        self.has_refused = False
        """the settings that the last SIGHUP was about"""
        self._steps = Steps(self._clock) if clock is None else None  # a clock that is handed in runs as it likes
        self._directory = StateDirectory(Path(settings.state.directory))
        self._requests = RequestFiles(self._directory.path)
        self._asked: dict[str, Future[Result]] = {}
        """by the id of the request's file"""
        self._journal_directory = Path(settings.state.directory) / "journal"
        self._journal_files = DiskFiles(self._journal_directory)
        self._journal = Journal(self._journal_files, self._clock.now)
        self._disk = DiskThread()
        self._desk = DiskThread()  # for what is written of weights and retraining: it may wait for the disk, too
        self._tending: Future[object] | None = None
        self._redelivery = Redelivery()
        self._decoder = decoder_from(settings)
        self._configured = load_weights(settings)
        self._generations = Generations(self._directory.path)
        mqtt, limits = settings.mqtt, settings.limits
        self._births = [birth_topic(settings.home_assistant.prefix)] if settings.home_assistant.enabled else []
        self._past_filters = _strings(self._directory.kept(FILTERS_FILE))
        self._sparing = SparingLog(log, 60.0, self._clock.monotonic)
        registry = Registry(
            limits.max_series, limits.new_series_per_minute, limits.new_series_burst, self._decoder.device
        )
        self._shard = shard_from(settings, self._configured, registry, find_weights=self._generations.find)
        self._inbox = Inbox(limits.inbox_bytes)
        self.metrics = Metrics(
            version(),
            self._clock.now(),
            {
                "messages_rejected_total": [*(reason.value for reason in Rejection), *MESSAGE_REJECTIONS],
                "readings_rejected_total": [*(reason.value for reason in Rejection), *READING_REJECTIONS],
            },
        )
        self._saving = self._new_saving()
        self.link = MqttLink(
            host=mqtt.host,
            port=mqtt.port,
            instance=settings.instance,
            client_id=settings.client_id,
            filters=mqtt.subscribe,
            unwanted=self._past_filters,
            commands=command_topic(settings.instance) if mqtt.commands else None,
            besides=self._births,
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
            hearing=self._hearing,
            journal=self._journal if settings.state.durability == "journal" else None,
            redelivery=self._redelivery,
            session=lambda: self.link.status().session_began,
            begin=self._disk.begin,
            commit_seconds=settings.journal.commit_ms / 1000,
            max_pending_bytes=limits.pending_bytes,
            save=lambda shard: self._saving.save(shard, is_last=self._inbox.is_closed),
            owes_snapshot=lambda: self._saving.is_owed,
            remember=self._remember_alarms,
            snapshot_seconds=settings.state.snapshot_seconds,
            max_future_seconds=settings.clock.max_future_seconds,
            idle_seconds=3600.0 * limits.idle_hours,
            silent=settings.alarms.silent,
            publish_series=settings.alarms.publish_series,
            hand_on=self._hand_on,
            takes_commands=mqtt.commands,
            listeners=dict.fromkeys(self._births, self._hear_of_birth),
            forgotten=lambda keys: self.home_assistant.forget(keys) if self.home_assistant is not None else None,
        )
        kept = self._directory.kept(HOME_ASSISTANT_FILE) if settings.state.durability != "none" else None
        is_concerned = settings.home_assistant.enabled or has_published(kept)
        self.home_assistant = self._new_home_assistant(kept) if is_concerned else None
        self.webhook = self._new_webhook() if settings.webhook.url else None
        self.http = self._new_server() if settings.http.enabled else None
        self._served: tuple[int, str, int | None] | None = None
        self._coming: int | None = None
        self._retraining = self._new_retraining() if settings.state.durability == "journal" else None
        self._wire_metrics()

    # --- Life ---

    def start(self) -> None:
        """Takes the state directory, restores, serves, connects. Raises StateError or ServiceError."""
        self._manager.starting("restoring the state")
        self._directory.open()
        try:
            self._remember_filters()
            number = self._number_configured()
            self._open_requests()
            position = self._restore()
            durability = self._settings.state.durability
            recovered: recovery.Recovered | None = None
            # Also what an earlier run with a journal has left: it is not in the last snapshot.
            if durability == "journal" or (durability == "snapshot" and self._journal_directory.exists()):
                recovered = self._recover(position)
            if position is None and not len(self._shard.registry):
                event(log, logging.INFO, "no state to restore: every series begins anew")
            self._settle_weights(number)
            closed, abnormal = (recovered.closed, recovered.abnormal) if recovered else ({}, ())
            self.engine.close_lost(_alarms(self._directory.kept(ALARMS_FILE)), closed)
            self.engine.add_abnormal(abnormal)
            if self.http is not None:
                self.http.start()
        except BaseException:
            self._directory.close()
            raise
        self.engine.start()
        if self._retraining is not None:
            self._retraining.start()
        if self.webhook is not None:
            self.webhook.start()
        self.link.start()
        if self.home_assistant is not None:
            self.home_assistant.start()
        event(
            log, logging.INFO, "started", version=version(),
            broker=f"{self._settings.mqtt.host}:{self._settings.mqtt.port}", state=str(self._directory.path),
            http=f"{self._settings.http.host}:{self.http.port}" if self.http else "off",
        )  # fmt: skip

    def stop(self) -> bool:
        """Drains, saves, says offline, within five seconds; True if the state is saved.

        What could not be taken in time is not acknowledged: the broker has it for the next start.
        """
        deadline = time.monotonic() + STOP_SECONDS
        self._manager.stopping("taking what waits, saving the state")
        self._inbox.close()
        if self.home_assistant is not None:
            self.home_assistant.leave()
        drained = self.engine.stop(DRAIN_SECONDS)
        if self.webhook is not None:
            self.webhook.leave(FAREWELL_SECONDS)
        # A disk that hangs is not waited for: a training that is left behind ends with this process.
        wait([self._desk.begin(self._tend_last)], TEND_SECONDS)
        self._answer_requests()
        self.link.stop(FAREWELL_SECONDS)
        if self.http is not None:
            self.http.stop()
        if self.webhook is not None:
            self.webhook.stop()
        if self.home_assistant is not None:
            self.home_assistant.stop()
        self._saving.wait_for_last(max(deadline - time.monotonic(), 0.0))
        is_saved = self._saving.has_saved_last or self.engine.is_safe_unsaved
        self._directory.close()
        level = logging.INFO if is_saved else logging.ERROR
        event(log, level, "stopped", drained=drained, queued=self._inbox.queued(), state_saved=is_saved)
        return is_saved

    def tick(self) -> None:
        """What is to be done about once a second, in the main thread."""
        self._manager.tick(self.engine.progress_at, self.link.status().subscribed, self.status)
        if self._tending is not None:
            if not self._tending.done():
                return
            self._tending.result()  # a bug is not swallowed
        self._tending = self._desk.begin(self._tend)

    def _tend(self) -> None:
        """What may have to wait for the disk: it keeps neither the main thread nor the end waiting."""
        self._remember_serving()
        if self._retraining is not None:
            self._retraining.tick()

    def _tend_last(self) -> None:
        if self._retraining is not None:
            self._retraining.stop()
        self._remember_serving()

    def reload(self, settings: Settings) -> None:
        """Takes over what can change while it runs; logs what cannot."""
        self.has_refused = False
        now, later = changed(self._settings, settings)
        if later:
            event(log, logging.WARNING, "settings need a restart", settings=", ".join(later))
        applied = ", ".join(now) or ("none" if later else "nothing has changed")
        event(log, logging.INFO, "settings read again", applied=applied)
        # Only what is applied is remembered: the next time, what still waits for a restart is named again.
        self._settings = _merged(self._settings, settings, now)
        set_level(self._settings.log.level)
        self.metrics.show_series(self._settings.metrics.per_series, self._settings.metrics.top)
        self.metrics.set("alarm_budget_per_series_month", self._settings.alarms.budget_per_series_month)
        if self.http is not None and "http.password" in now:
            self.http.set_password(self._settings.http.password.get_secret_value())
        if "mqtt.password" in now:
            self.link.set_password(self._settings.mqtt.password.get_secret_value())
        if self.webhook is not None and any(name.startswith("webhook.") for name in now):
            self.webhook.use(*self._webhook_secrets())
        alarms = self._settings.alarms
        self.engine.adjust(Adjustment(decoder_from(self._settings), alarms.budget_per_series_month, alarms.silent))

    # --- Requests by file ---

    def serve_requests(self) -> bool:
        """Hands what was asked for to the engine, and its results to who asked; True while there are some to come."""
        try:
            for request, payload in self._requests.take(self._clock.now()):
                try:
                    command = read_file(payload)
                    if isinstance(command, ModelCommand):
                        self._asked[request] = self._desk.begin(partial(self._obey, command))
                    else:
                        self._asked[request] = self.engine.command(command)
                except ValueError as error:
                    self.metrics.add("commands_total", 1, "refused")
                    self._asked[request] = Future()
                    self._asked[request].set_result(Result(False, str(error), id_in(payload)))
        except OSError as error:
            self._sparing.event(logging.WARNING, "requests not read", per="requests", reason=str(error))
        self._answer_requests()
        return bool(self._asked)

    def _obey(self, command: ModelCommand) -> Result:
        """What is about the weights."""
        done, retraining = False, self._retraining
        if retraining is None:
            detail = "state.durability is not journal: there are no readings to train on, and no generations"
        else:
            try:
                match command:
                    case Train():
                        detail = retraining.train()
                    case Promote():
                        detail = retraining.promote(command.generation)
                    case Rollback():
                        detail = retraining.rollback()
                done = True
            except Refused as refusal:
                detail = str(refusal)
        self.metrics.add("commands_total", 1, "done" if done else "refused")
        event(log, logging.INFO, "command", by="request file", command=name_of(command), done=done, detail=detail)
        return Result(done, detail, command.id, name_of(command))

    def _answer_requests(self) -> None:
        for request in [request for request, future in self._asked.items() if future.done()]:
            try:
                self._requests.answer(request, self._asked.pop(request).result())
            except OSError as error:
                self._sparing.event(logging.WARNING, "request not answered", per="answer", reason=str(error))

    def _open_requests(self) -> None:
        try:
            self._requests.open()
        except OSError as error:  # scoring goes on without
            self._sparing.event(logging.WARNING, "no requests by file", per="requests", reason=str(error))

    # --- What it says of itself ---

    def has_failed(self) -> bool:
        """A bug has ended one of the threads: the process has to end, too."""
        sinks = (self.webhook, self.home_assistant)
        return (
            self.engine.has_failed
            or not self.link.status().is_alive
            or any(sink is not None and sink.has_failed for sink in sinks)
        )

    def is_healthy(self) -> tuple[bool, str]:
        """Live: the engine makes progress and the network thread is alive, broker or no broker."""
        trouble = self.engine.trouble()
        if trouble is not None:
            return False, trouble
        status = self.link.status()
        return status.is_alive, "ok" if status.is_alive else f"the network thread has ended: {status.detail}"

    def is_ready(self) -> tuple[bool, str]:
        """Subscribed, the engine makes progress, and the disk takes the journal."""
        healthy, reason = self.is_healthy()
        if not healthy:
            return False, reason
        trouble = self.engine.journal_trouble()
        if trouble is not None:
            return False, trouble
        status = self.link.status()
        return status.subscribed, status.detail

    def status(self) -> str:
        """How it is doing, in a line for people; the rate is that since it was last asked for."""
        now, readings = self._clock.monotonic(), self.metrics.total("readings_decoded_total")
        before, readings_before = self._told_readings
        self._told_readings = now, readings
        rate = (readings - readings_before) / max(now - before, 1.0)
        link, alarms = self.link.status(), len(self.engine.alarms)
        broker = f"{self._settings.mqtt.host}:{self._settings.mqtt.port}"
        parts = [
            f"{self.metrics.total('series'):.0f} series",
            f"{rate:.1f} readings/s",
            f"{alarms} open alarm{'' if alarms == 1 else 's'}",
            f"broker {broker}" if link.subscribed else f"waiting for the broker {broker}: {link.detail}",
        ]
        refusal = "the new settings were refused, see the log" if self.has_refused else None
        return "; ".join([*filter(None, [self.engine.trouble(), self.engine.journal_trouble(), refusal]), *parts])

    # --- Wires ---

    def _deliver(self, messages: list[Message]) -> None:
        payload_bytes = sum(len(message.payload) for message in messages)
        with self.metrics.lock:
            self.metrics.received(len(messages), payload_bytes)
            refused = self._inbox.put(messages)
            if refused:
                trouble = self.engine.journal_trouble()
                self.metrics.dropped("inbox_full" if trouble is None else "disk", len(refused))
        # Counted as lost; unacknowledged they would block the session. At the end they are left to the next start.
        if refused and not self._inbox.is_closed:
            self.link.ack(refused)

    def _hand_on(self, what: str, alarm: Alarm, payload: bytes) -> None:
        if self.webhook is not None:
            self.webhook.put(what, alarm, payload)

    def _webhook_secrets(self) -> tuple[str, str]:
        settings = self._settings.webhook
        return settings.token.get_secret_value(), settings.secret.get_secret_value()

    def _new_webhook(self) -> Webhook:
        settings, keeps = self._settings.webhook, self._settings.state.durability != "none"
        token, secret = self._webhook_secrets()
        if token and settings.url.startswith("http://"):
            event(log, logging.WARNING, "the webhook's token goes over the network as it is", advice="use https://")
        return Webhook(
            Poster(settings.url, ca_file=settings.ca_file, timeout_seconds=settings.timeout_seconds),
            instance=self._settings.instance,
            version=version(),
            token=token,
            secret=secret,
            most_events=settings.max_events,
            retry_seconds=3600.0 * settings.retry_hours,
            kept=self._directory.kept(WEBHOOK_FILE) if keeps else None,
            keep=self._keeper(WEBHOOK_FILE) if keeps else lambda _: None,
            metrics=self.metrics,
            clock=self._clock,
        )

    def _hear_of_birth(self, message: Message) -> None:
        """A retained one is of the past; and so is what Home Assistant has then found at the broker, all retained."""
        if self.home_assistant is not None and message.payload == ONLINE and not message.retain:
            self.home_assistant.born()

    def _connection(self) -> int:
        status = self.link.status()
        return status.generation if status.connected else 0

    def _new_home_assistant(self, kept: bytes | None) -> HomeAssistant:
        settings, keeps = self._settings.home_assistant, self._settings.state.durability != "none"
        return HomeAssistant(
            is_enabled=settings.enabled,
            instance=self._settings.instance,
            version=version(),
            prefix=settings.prefix,
            is_included=is_included_from(self._settings),
            max_devices=settings.max_devices,
            every_seconds=settings.every_seconds,
            idle_seconds=3600.0 * self._settings.limits.idle_hours,
            device_of=device_of_from(self._settings),
            table=lambda: self.engine.table,
            alarms=lambda: self.engine.alarms,
            connection=self._connection,
            publish=self._publish,
            kept=kept,
            keep=self._keeper(HOME_ASSISTANT_FILE) if keeps else lambda _: None,
            metrics=self.metrics,
            clock=self._clock,
        )

    def _hearing(self) -> int:
        """The connection by which quiet is a sensor's own; 0 without one, and when the wall clock has just been set."""
        has_stepped = self._steps is not None and self._steps.has_stepped()
        if has_stepped:
            event(log, logging.WARNING, "the clock of this machine was set: silence is counted anew")
        status = self.link.status()
        return status.generation if status.subscribed and not has_stepped else 0

    def _publish(self, message: Outgoing) -> bool:
        return self.link.publish(
            message.topic,
            message.payload,
            retain=message.retain,
            content_type=JSON if message.payload else "",
            expiry_seconds=message.expiry_seconds,
        )

    def _new_server(self) -> Server:
        http, engine = self._settings.http, self.engine
        page = Page(
            engine.ask,
            engine.traces,
            lambda: (engine.alarms, engine.closed_alarms),
            self._vitals,
            self._clock.monotonic,
        )
        return Server(
            http.host,
            http.port,
            self.metrics.render,
            self.is_healthy,
            self.is_ready,
            names=http.names,
            page=page.answer,
            tls=server_tls_context(http.tls.cert_file, http.tls.key_file) if http.tls.enabled else None,
            username=http.username,
            password=http.password.get_secret_value(),
        )

    def _vitals(self) -> Vitals:
        """What the page says of the daemon."""
        metrics, engine = self.metrics, self.engine
        (healthy, sentence), (ready, detail) = self.is_healthy(), self.is_ready()
        return Vitals(
            version=version(),
            instance=self._settings.instance,
            now=self._clock.now(),
            started_at=metrics.total("start_time_seconds"),
            healthy=healthy,
            ready=ready,
            detail=sentence if not healthy else detail,
            connected=self.link.status().connected,
            series=metrics.total("series"),
            warming=metrics.total("series_warming"),
            paused=metrics.total("series_paused"),
            alarms_open=len(engine.alarms),
            readings=metrics.total("readings_decoded_total"),
            latency_seconds=metrics.observed("scored_latency_seconds"),
            queued=self._inbox.queued(),
            generation=engine.generation,
            swapping=engine.is_swapping,
            retraining=metrics.total("retrain_running") > 0,
            retrained_at=metrics.total("retrain_timestamp_seconds"),
            retrainings=metrics.values("retrain_total"),
        )

    def _wire_metrics(self) -> None:
        metrics, settings = self.metrics, self._settings
        metrics.measured("messages_queued", self._inbox.queued)
        metrics.measured("readings_released_early_total", lambda: self._shard.reorder.early)
        metrics.measured("mqtt_connected", lambda: self.link.status().connected)
        metrics.measured("mqtt_subscribed", lambda: self.link.status().subscribed)
        metrics.measured("mqtt_reconnects_total", lambda: self.link.counters().reconnects)
        metrics.measured("mqtt_stale_acknowledgements_total", lambda: self.link.counters().acknowledgements_stale)
        metrics.measured("publishes_refused_total", lambda: self.link.counters().publishes_refused)
        metrics.measured("journal_records", lambda: self._journal.end)
        metrics.measured("journal_pending_bytes", self.engine.pending_bytes)
        metrics.measured("journal_failing", lambda: self.engine.journal_trouble() is not None)
        if self.webhook is not None:
            metrics.measured("webhook_queued", self.webhook.queued)
        if self.home_assistant is not None:
            metrics.measured("home_assistant_devices", self.home_assistant.devices)
        metrics.set("series_limit", settings.limits.max_series)
        metrics.set("alarm_budget_per_series_month", settings.alarms.budget_per_series_month)
        metrics.measured("model_generation", lambda: self.engine.generation)
        metrics.measured("model_swapping", lambda: self.engine.is_swapping)
        metrics.watch_series(lambda: self.engine.table)
        metrics.show_series(settings.metrics.per_series, settings.metrics.top)

    # --- Weights ---

    def _new_retraining(self) -> Retraining:
        settings, engine = self._settings.retrain, self.engine
        terms = Terms(
            plan=Plan(3600.0 * settings.every_hours, settings.drift_rise),
            journal=self._journal_directory,
            lateness_seconds=self._settings.input.lateness_seconds,
            min_readings=settings.min_readings,
            max_series_steps=settings.max_series_steps,
            probation_seconds=3600.0 * settings.probation_hours,
            time_limit_seconds=60.0 * settings.time_limit_minutes,
            device=settings.device,
            threads=settings.threads,
        )
        serving = Serving(
            occasion=engine.occasion,
            swap=lambda weights, number, is_watched: engine.swap(weights, number, is_watched=is_watched),
            watch=engine.watch,
            generation=lambda: engine.generation,
            is_swapping=lambda: engine.is_swapping,
            comparison=lambda: engine.comparison,
            loss=lambda: engine.loss,
        )
        return Retraining(terms, self._directory.path, self._generations, serving, self.metrics, self._clock)

    def _number_configured(self) -> int:
        """Keeps a copy of the weights that the settings name; gives their number, 0 where no copy could be kept."""
        number = self._generations.number_of(self._configured.sha256)
        if number is None and self._settings.state.durability != "none":
            origin: Origin = "named" if self._settings.model.weights else "shipped"
            try:
                number = self._generations.add(weights_path(self._settings), origin, self._clock.now()).number
            except (OSError, WeightsError) as error:
                event(log, logging.WARNING, "no copy of the weights was kept", reason=str(error))
                number = 0
        self._shard.generation = 1 if number is None else number
        return self._shard.generation

    def _settle_weights(self, configured: int) -> None:
        """Which weights serve: those that made the state; without one, those that served last.

        Unless the operator has named others since, or the program ships others and nothing was trained here.
        """
        serving, generations = self._generations.serving(), self._generations
        if serving is not None and not self._shard.taken and serving.number != self._shard.generation:
            self._swap(serving.number)
        current, sha256 = generations.about(self._shard.generation), self._configured.sha256
        if serving is not None and serving.configured == sha256:
            self._coming = serving.coming  # a swap to them that an earlier run did not come to the end of
        has_changed = serving is not None and serving.configured not in ("", sha256)
        is_ours_to_change = bool(self._settings.model.weights) or current is None or current.origin != "trained"
        if has_changed and is_ours_to_change:
            self._coming = configured
        if self._coming not in (None, self._shard.generation, self._shard.coming):
            event(log, logging.INFO, "the settings name other weights", generation=self._coming)
            self._swap(self._coming)
        self._remember_serving()

    def _swap(self, number: int) -> None:
        try:
            self.engine.swap(self._generations.load(number), number)
        except WeightsError as error:
            event(log, logging.ERROR, "weights that are to serve are missing", generation=number, reason=str(error))

    def _remember_serving(self) -> None:
        """Which weights serve, for a start that finds no other state."""
        number = self.engine.generation
        known = number, self._configured.sha256, None if self._coming == number else self._coming
        if known == self._served or self._settings.state.durability == "none" or not number:
            return
        try:
            self._generations.serve(*known)
            self._served = known
        except OSError as error:
            self._sparing.event(logging.WARNING, "not written", per="serving", file="serving.json", reason=str(error))

    # --- State ---

    def _new_saving(self) -> Saving:
        state, journal = self._settings.state, self._settings.journal
        keeping = Keeping(3600.0 * journal.keep_hours, journal.keep_bytes) if state.durability == "journal" else None
        return Saving(
            self._directory.path,
            self._journal,
            self._redelivery,
            self._disk,
            is_enabled=state.durability != "none",
            keeping=keeping,
            metrics=self.metrics,
            clock=self._clock,
        )

    def _remember_filters(self) -> None:
        """A broker's session outlives a setting: what was ever subscribed to must be taken back when it is left out."""
        commands = [command_topic(self._settings.instance)] if self._settings.mqtt.commands else []
        known = dict.fromkeys([*self._past_filters, *self._settings.mqtt.subscribe, *commands, *self._births])
        self._keep(FILTERS_FILE, list(known)[-MOST_FILTERS:])

    def _remember_alarms(self, alarms: list[Alarm]) -> None:
        """A run that is killed must not leave an alarm behind that nobody ever closes."""
        self._keep(ALARMS_FILE, alarms)

    def _keep(self, name: str, content: list[str] | list[Alarm]) -> None:
        try:
            self._directory.keep(name, msgspec.json.encode(content))
        except OSError as error:  # a full disk: scoring goes on all the same
            self._sparing.event(logging.WARNING, "not written", per=name, file=name, reason=str(error))

    def _keeper(self, name: str) -> Patient:
        """Writes a file that has to outlive a power cut; whoever has something to tell does not wait for a disk that
        hangs."""
        return Patient(partial(self._directory.keep, name, synced=True), PATIENCE_SECONDS)

    def _restore(self) -> int | None:
        """The newest state that is sound and fits; what is not is set aside, never overwritten by a fresh one.

        Gives its position in the journal, None for a shard without a past.
        """
        self.metrics.set("state_restored", 0)
        if self._settings.state.durability == "none":
            return None
        found = recovery.restore(self._directory.path, self._shard, self._redelivery)
        for reason in found.set_aside:
            event(log, logging.ERROR, "snapshot set aside", reason=reason)
        for failure in found.failures:
            log.error("a snapshot has made us fail", exc_info=failure)
        if found.snapshot is not None:
            self.metrics.set("state_restored", 1)
            event(
                log, logging.INFO, "state restored", series=len(self._shard.registry), file=found.snapshot.path.name,
                left_behind=found.left_behind,
            )  # fmt: skip
        return found.position

    def _recover(self, position: int | None) -> recovery.Recovered:
        """What came after the snapshot, from the journal.

        Raises StateError if the directory cannot be used at all.
        """
        journal, keeps = self._journal, self._settings.state.durability == "journal"
        try:
            self._journal_files.make()
            opened = journal.open(beyond=position or 0)
            recovered = recovery.recover(
                journal, opened, position, self._shard, self._redelivery,
                lambda at: self._manager.starting(f"replaying the journal: at {at} of {opened.end}"),
            )  # fmt: skip
        except OSError as error:
            raise StateError(
                f"state.directory: {self._journal_directory} cannot be used: {error.strerror}; "
                "expected a directory that this user can read and write"
            ) from error
        for damage in opened.damage:
            event(log, logging.ERROR, "journal damaged", reason=damage)
        if opened.cut_bytes:
            event(log, logging.INFO, "journal cut: never acknowledged", reason=opened.cut_reason, size=opened.cut_bytes)
        for lacking in recovered.lacking:
            event(log, logging.ERROR, "weights that were to serve are not to be had", weights=lacking)
        for missing in recovered.missing:
            event(log, logging.ERROR, "readings lost", reason=missing)
        if recovered.failure is not None:
            log.error("a replay has failed", exc_info=recovered.failure)
        if recovered.damage is not None:
            event(log, logging.ERROR, "journal not used to its end", reason=str(recovered.damage))
        if recovered.readings:
            self.metrics.set("state_restored", 1)
        event(
            log, logging.INFO, "journal replayed", position=recovered.end, readings=recovered.readings,
            series=len(self._shard.registry),
        )  # fmt: skip
        if not keeps:
            journal.close()
        elif recovered.damage is not None or recovered.missing:
            # Later records must not be replayed on what this state is not: from here on a snapshot begins.
            self._saving.is_owed = True
        return recovered


def run(load: Callable[[], Settings], clock: Clock | None = None) -> int:
    """Runs the daemon until SIGTERM or SIGINT; SIGHUP reads the settings again by `load`. Returns the exit status."""
    settings = load()
    configure(settings.log.level, settings.log.format)
    gc.set_threshold(GARBAGE_OBJECTS)
    signals.hold()
    listener = signals.Listener()
    listener.start()
    with closing(ServiceManager(os.environ.get("NOTIFY_SOCKET", ""), time.monotonic)) as manager:
        app = App(settings, clock, manager)
        app.start()
        while True:
            got = listener.wait(ANSWER_SECONDS if app.serve_requests() else 1.0)
            if app.has_failed():
                event(log, logging.CRITICAL, "a part has failed: the service manager may start the daemon anew")
                manager.stopping("a part has failed, see the log")
                return 1
            if got is signal.SIGHUP:
                manager.reloading()
                _reload(app, load)
            if got is None or got is signal.SIGHUP:
                app.tick()  # not on the way to the end: the service manager ends a retraining too, which is no failure
                continue
            event(log, logging.INFO, "stopping", signal=got.name)
            return 0 if app.stop() else 1


def _reload(app: App, load: Callable[[], Settings]) -> None:
    try:
        settings = load()
    except SettingsError as error:
        event(log, logging.ERROR, "settings refused, the old ones stay", reason=str(error))
        app.has_refused = True
        return
    app.reload(settings)


def _strings(kept: bytes | None) -> list[str]:
    """The filters of earlier runs; none if the file is not as we write it."""
    try:
        return msgspec.json.decode(kept or b"[]", type=list[str])[:MOST_FILTERS]
    except (msgspec.DecodeError, UnicodeDecodeError):
        return []


def _alarms(kept: bytes | None) -> list[Alarm]:
    """The alarms that were open when the last run ended; none if the file is not as we write it."""
    try:
        return msgspec.json.decode(kept or b"[]", type=list[Alarm])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return []


def _merged(old: Settings, new: Settings, names: list[str]) -> Settings:
    """`old` with the named settings of `new`; each name is table.setting."""
    for name in names:
        table, _, leaf = name.partition(".")
        part = getattr(old, table).model_copy(update={leaf: getattr(getattr(new, table), leaf)})
        old = old.model_copy(update={table: part})
    return old
