"""What a retraining costs scoring, whatever becomes of it: `python -m tests.bench.beside_training`, a table to stdout.

A mosquitto, the real daemon with its journal, and a paced load whose time from arrival to score is read from the
daemon's own histogram: while nothing else goes on, while a retraining is stopped, is killed, is denied memory or a file
to write, and while one runs undisturbed, which then has its verdict.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from streamer.bench import ingest
from streamer.bench.ingest import Options, load_plan, publish
from streamer.bench.processes import Child, Daemon, broker, wait_for
from tests.servers import processes_of

SECONDS, RATE, SERIES, HISTORY = 20.0, 2_000.0, 400, 200_000
"""of a phase; messages a second; readings of the history that is trained on"""
VERDICT_SECONDS = 600.0
MEMORY_BYTES = 400 << 20  # of addresses: less than torch takes to be imported


def trainer_of(daemon: Daemon) -> int | None:
    """Its process, None while there is none."""
    return next(iter(processes_of(daemon.pid)), None)


def limited(what: int, most: int) -> Callable[[int], None]:
    return lambda pid: resource.prlimit(pid, what, (most, most)) and None


FATES: dict[str, Callable[[int], None]] = {
    "it is stopped (SIGSTOP)": lambda pid: os.kill(pid, signal.SIGSTOP),
    "it is killed (SIGKILL)": lambda pid: os.kill(pid, signal.SIGKILL),
    "it gets no memory": limited(resource.RLIMIT_AS, MEMORY_BYTES),
    "it can write no file": limited(resource.RLIMIT_FSIZE, 0),
    "it runs": lambda _: None,
}
"""What is done to it as soon as it is there"""


def verdicts(daemon: Daemon) -> dict[str, int]:
    """Retrainings that have ended, by result."""
    scrape = wait_for(daemon.scrape, 10, "a scrape")
    name = "streamer_retrain_total"
    found = {key: re.fullmatch(name + r'\{result="(.*)"\}', key) for key, value in scrape.items() if value}
    return {label[1]: int(scrape[key]) for key, label in found.items() if label}


class Bench:
    """A daemon with a history, and phases of load."""

    def __init__(self, folder: Path, server: Child, port: int) -> None:
        self._folder, self._server, self._port = folder, server, port
        settings = ("retrain.min_readings=500", "state.snapshot_seconds=3600")
        self._options = Options(HISTORY, SERIES, 1, 1, RATE, 300.0, 0.0, SECONDS, settings)
        self.daemon, _ = ingest.start(self._options, folder, port)
        self._rounds = HISTORY // SERIES
        self._first = time.time() - self._rounds - 4000  # no phase reaches the future
        publish(self.daemon, server, folder, load_plan(self._options, port, HISTORY, 0.0, self._first))

    def load(self) -> tuple[float, float]:
        """p50 and p99 of a phase, ms."""
        messages = int(RATE * SECONDS)
        plan = load_plan(self._options, self._port, messages, RATE, self._first + self._rounds)
        self._rounds += messages // SERIES
        phase = publish(self.daemon, self._server, self._folder, plan)
        return phase.latency_ms(0.5) or 0.0, phase.latency_ms(0.99) or 0.0

    def train(self) -> int:
        """Begins one, gives its process."""
        command = [sys.executable, "-m", "streamer", "train", "--set", f"state.directory={self._folder / 'state'}"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return wait_for(lambda: trainer_of(self.daemon), 20, "the trainer")

    def ended(self, before: dict[str, int]) -> str:
        """The result of the one that has ended since."""

        def another() -> str | None:
            found = verdicts(self.daemon)
            return next((name for name, count in found.items() if count > before.get(name, 0)), None)

        return wait_for(another, VERDICT_SECONDS, "a verdict")


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    with tempfile.TemporaryDirectory() as name, broker(Path(name)) as (server, port):
        bench = Bench(Path(name), server, port)
        try:
            print("| while | p50 ms | p99 ms | p99 to idle | the verdict |")
            print("|---|---|---|---|---|")
            idle = [bench.load() for _ in range(3)]
            p50, p99 = (sorted(part)[1] for part in zip(*idle, strict=True))
            print(f"| nothing else goes on (median of three) | {p50:.1f} | {p99:.1f} | 1.00 | |", flush=True)
            for fate, strike in FATES.items():
                before = verdicts(bench.daemon)
                pid = bench.train()
                strike(pid)
                mine = bench.load()
                if "SIGSTOP" in fate:
                    os.kill(pid, signal.SIGKILL)
                result = bench.ended(before)
                print(f"| {fate} | {mine[0]:.1f} | {mine[1]:.1f} | {mine[1] / p99:.2f} | {result} |", flush=True)
        finally:
            bench.daemon.stop()


if __name__ == "__main__":
    main()
