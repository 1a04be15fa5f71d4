"""One showing of the demo: starts the parts, tells what happens, keeps the account, ends everything.

The daemon is the real one with its own alarm settings; it is handed the plant's clock and watched from outside. The
plant is a process of its own that publishes over loopback. What it says of its faults goes to the account alone.

    plant process --MQTT--> broker process --MQTT--> App --MQTT--> broker --MQTT--> watch ──┐
          └── time and labels on a pipe ──> PlantClock, events ─────────────────────────────┴─> the account, printed
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from queue import Empty, SimpleQueue
from tempfile import TemporaryDirectory
from types import FrameType
from typing import IO, NamedTuple

import msgspec

from streamer.app import App
from streamer.demo import plant, show, watch
from streamer.demo.broker import broker
from streamer.demo.clock import PlantClock, first_moment
from streamer.demo.faults import Alarm, Fault, Tally, credit, missed, tally
from streamer.demo.watch import AlarmEvent, Counters, Offline
from streamer.errors import ServiceError
from streamer.log import configure
from streamer.settings import Settings, load

INSTANCE = "demo"
SEED = 1
READY_SECONDS = 20.0
FIGURES_SECONDS = 5.0  # between two lines of figures
GLANCE_SECONDS = 0.2  # the longest wait for an event: then the time is looked at
GOODBYE_SECONDS = 1.0  # for the last alarms
PLANT_SECONDS = 1.0  # for the plant to end


class Stop(NamedTuple):
    """A person has had enough."""


class PlantGone(NamedTuple):
    """The plant's process has ended."""


Event = plant.Began | plant.Ended | AlarmEvent | Offline | Stop | PlantGone
Events = SimpleQueue[Event]


def run(seconds: float | None, port: int, http_port: int, as_json: bool) -> int:
    """As `streamer.demo.run_demo`."""
    with redirect_stdout(sys.stderr) if as_json else nullcontext():
        result = _play(seconds, port, http_port)
    if as_json:
        _say(json.dumps(result._asdict()))
    return 0 if result.caught else 1


def _play(seconds: float | None, port: int, http_port: int) -> Tally:
    deadline = None if seconds is None else time.monotonic() + seconds
    configure("error", "text")
    events: Events = SimpleQueue()
    with ExitStack() as stack:
        directory = stack.enter_context(TemporaryDirectory(prefix="streamer-demo-"))
        stack.enter_context(_stop_signals(events))
        with _children_deaf_to_interrupt():
            broker_port = stack.enter_context(broker(Path(directory), port))
        stack.enter_context(watch.subscription(broker_port, INSTANCE, events.put))
        settings = [f"instance={INSTANCE}", f"mqtt.port={broker_port}", f"http.port={http_port}"]
        clock = PlantClock(first_moment(time.time()))
        with _daemon(load(None, [*settings, f"state.directory={directory}/state"], {}), clock) as (app, served_at):
            account = Account(served_at, clock)
            if _is_ready(app, events):
                left = None if deadline is None else max(deadline - time.monotonic(), 1.0)
                faults_from = clock.now() + plant.faultless_seconds(left)
                _say(show.introduction(broker_port, served_at, INSTANCE, faults_from))
                with _plant(broker_port, clock, left, events):
                    _follow(app, events, account, deadline)
        account.close(events)
    for fault in account.missed():
        _say(show.missed(fault))
    result = account.tally()
    _say(str(result))
    return result


def _is_ready(app: App, events: Events) -> bool:
    """Waits until the daemon hears; False if a person stops that."""
    deadline = time.monotonic() + READY_SECONDS
    while not app.is_ready()[0]:
        if time.monotonic() > deadline:
            raise ServiceError(f"the daemon is not ready after {READY_SECONDS:g} s: {app.is_ready()[1]}")
        try:
            if isinstance(events.get(timeout=0.02), Stop):
                return False
        except Empty:
            continue
    return True


def _follow(app: App, events: Events, account: Account, deadline: float | None) -> None:
    """Takes in what happens until it is time to stop."""
    while deadline is None or time.monotonic() < deadline:
        try:
            event = events.get(timeout=GLANCE_SECONDS)
        except Empty:
            event = None
        if isinstance(event, Stop):
            return
        if isinstance(event, PlantGone):
            raise RuntimeError("the plant has ended by itself; what it said is above")
        if app.engine.has_failed or isinstance(event, Offline):
            raise RuntimeError(f"the daemon has ended by itself: {app.is_ready()[1]}")
        if event is not None:
            account.take(event)
        account.show_figures()


class Account:
    """What has happened so far, told as it happens. For one thread."""

    def __init__(self, http_port: int, clock: PlantClock) -> None:
        self._http_port = http_port
        self._clock = clock
        self._faults: list[Fault] = []
        self._alarms: list[Alarm] = []
        self._scraped: tuple[float, Counters] = (time.monotonic(), Counters(0, 0, 0))
        self._due_at = self._scraped[0] + FIGURES_SECONDS

    def take(self, event: Event) -> None:
        match event:
            case plant.Began(fault):
                self._faults.append(fault)
                _say(show.began(fault))
            case plant.Ended(fault):
                _say(show.ended(fault, fault in [credit(self._faults, alarm) for alarm in self._alarms]))
            case AlarmEvent(event="opened"):
                self._alarms.append(Alarm(event.kind, event.key, event.opened_at))
                _say(show.alarm_opened(event, credit(self._faults, self._alarms[-1])))
            case AlarmEvent(event="closed"):
                _say(show.alarm_closed(event))
            case _:
                pass

    def show_figures(self) -> None:
        """A line of figures, when one is due."""
        now_at = time.monotonic()
        if now_at < self._due_at:
            return
        self._due_at = now_at + FIGURES_SECONDS
        scraped_at, before = self._scraped
        try:
            now = watch.counters(self._http_port)
        except OSError as error:  # a machine that is too busy for one scrape may have time for the next
            _say(show.no_figures(self._clock.now(), str(error)))
            return
        _say(show.figures(self._clock.now(), now, (now.scored - before.scored) / (now_at - scraped_at)))
        self._scraped = (now_at, now)

    def close(self, events: Events) -> None:
        """Takes in what is on its way, up to the daemon's goodbye."""
        deadline = time.monotonic() + GOODBYE_SECONDS
        while (rest_seconds := deadline - time.monotonic()) > 0:
            try:
                event = events.get(timeout=rest_seconds)
            except Empty:
                return
            if isinstance(event, Offline):
                return
            self.take(event)

    def tally(self) -> Tally:
        """Who has seen what."""
        return tally(self._faults, self._alarms)

    def missed(self) -> list[Fault]:
        """What nobody has seen."""
        return missed(self._faults, self._alarms)


def _say(line: str) -> None:
    print(line, flush=True)


# --- Parts and signals ---


@contextmanager
def _daemon(settings: Settings, clock: PlantClock) -> Iterator[tuple[App, int]]:
    """The daemon runs while the block lasts; it, and the port that it serves HTTP on."""
    app = App(settings, clock)
    app.start()
    try:
        yield app, 0 if app.http is None else app.http.port
    finally:
        app.stop()


@contextmanager
def _plant(port: int, clock: PlantClock, seconds: float | None, events: Events) -> Iterator[None]:
    """The plant runs while the block lasts; its clock is heard, its labels are put into `events`."""
    command = [sys.executable, "-m", "streamer.demo.plant", f"--port={port}", f"--start={clock.now()!r}"]
    command += [f"--seed={SEED}", *([] if seconds is None else [f"--seconds={seconds!r}"])]
    with _children_deaf_to_interrupt():
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        if process.stdout is not None:
            threading.Thread(target=_listen, args=(process.stdout, clock, events), name="plant", daemon=True).start()
        yield
    finally:
        process.terminate()
        try:
            process.wait(PLANT_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _listen(lines: IO[bytes], clock: PlantClock, events: Events) -> None:
    decoder = msgspec.json.Decoder(plant.Word)
    for line in lines:
        word = decoder.decode(line)
        if isinstance(word, plant.Moment):
            clock.hear(word.time)
        else:
            events.put(word)
    events.put(PlantGone())


@contextmanager
def _stop_signals(events: Events) -> Iterator[None]:
    """Ctrl-C and SIGTERM become an event while the block lasts."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        events.put(Stop())

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _children_deaf_to_interrupt() -> Iterator[None]:
    """A terminal sends Ctrl-C to all; processes started here leave it to us to end them."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
