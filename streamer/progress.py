"""How far long work has come, for whoever waits for it: a line that renews itself, or now and then a line in a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TextIO

from streamer.rows import Row

TERMINAL_SECONDS = 0.5
LOG_SECONDS = 30.0
LOOK_READINGS = 1000  # so often the time is looked at


class Progress:
    """Of a replay: readings, their rate, and the share of the files that is done."""

    def __init__(self, out: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._out, self._clock = out, clock
        self._is_terminal = out.isatty()
        self._every_seconds = TERMINAL_SECONDS if self._is_terminal else LOG_SECONDS
        self._share: Callable[[], float] = lambda: 0.0
        self._began = self._told_at = clock()
        self._done = self._looked_at = 0
        self._is_shown = False

    def measure(self, share: Callable[[], float]) -> None:
        """What tells the share that is done, 0 to 1."""
        self._share = share

    def expect(self, readings: int) -> None:
        """So many there are in all."""
        self.measure(lambda: self._done / max(readings, 1))

    def follow(self, rows: Iterable[Row]) -> Iterator[Row]:
        """The same rows, counted."""
        for row in rows:
            self._done += len(row.values)
            if self._done - self._looked_at >= LOOK_READINGS:
                self._looked_at = self._done
                if self._clock() - self._told_at >= self._every_seconds:
                    self._show()
            yield row

    def say(self, line: str) -> None:
        """A line of its own, which stays."""
        self.end()
        self._out.write(line + "\n")

    def end(self) -> None:
        """Nothing of it is left on a terminal."""
        if self._is_shown:
            self._out.write("\r\x1b[K")
            self._is_shown = False

    def _show(self) -> None:
        self._told_at = self._clock()
        seconds = self._told_at - self._began
        share = min(self._share(), 1.0)
        left = f", about {seconds * (1 - share) / share:.0f} s left" if share > 0 else ""
        line = f"{share:.0%}: {self._done} readings, {self._done / seconds:.0f} a second{left}"
        self._out.write(f"\r{line}\x1b[K" if self._is_terminal else line + "\n")
        self._out.flush()
        self._is_shown = self._is_terminal
