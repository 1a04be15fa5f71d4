"""A whole daemon but for network and wall clock: its engine, journal, state directory and retraining, by event time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from streamer.app import App
from streamer.clock import ManualClock
from streamer.readings import Message
from streamer.settings import load
from tests.streams import START
from tests.waiting import wait_until

TRAINING_SECONDS = 300.0  # a machine that does other things too


class Site:
    """Sensors that report when they are told to."""

    def __init__(self, directory: Path, *settings: str) -> None:
        self.clock = ManualClock(START)
        options = [f"state.directory={directory}", "http.enabled=false", "log.level=error", *settings]
        self.app = App(load(None, options, {}), self.clock)
        self.engine, self.shard = self.app.engine, self.app._shard
        self.results: list[str] = []

    def start(self) -> None:
        """As `App.start`, without network and threads."""
        app = self.app
        app._directory.open()
        number = app._number_configured()
        app._recover(app._restore())
        app._settle_weights(number)
        assert app._retraining is not None
        app._retraining.start()

    def stop(self) -> None:
        assert self.app._retraining is not None
        self.app._retraining.stop()
        self.app._saving.wait(60.0)
        self.app._journal.close()
        self.app._directory.close()
        self.app.link.stop(0.0)

    def send(self, values: Mapping[str, float]) -> None:
        """A reading each, now; one turn."""
        now = self.clock.now()
        messages = [Message(topic, b"%r" % value, 0, 0, False, now) for topic, value in values.items()]
        self.app._inbox.put(messages)
        self.engine.turn(self.app._inbox.take(len(messages), 0))

    def tick(self) -> None:
        """A second of the main thread; a retraining that it begins is seen to its end, and so is a swap."""
        retraining = self.app._retraining
        assert retraining is not None
        self.app._tend()
        if retraining.is_running:
            wait_until(self._has_ended, TRAINING_SECONDS, "the end of the retraining")
            verdict = retraining.last.verdict
            assert verdict is not None
            self.results.append(verdict.result)
        while self.engine.is_swapping:
            self.engine.turn([])

    def _has_ended(self) -> bool:
        assert self.app._retraining is not None
        self.engine.turn([])
        self.app._tend()
        return not self.app._retraining.is_running


@contextmanager
def site(directory: Path, *settings: str) -> Iterator[Site]:
    made = Site(directory, *settings)
    made.start()
    try:
        yield made
    finally:
        made.stop()
