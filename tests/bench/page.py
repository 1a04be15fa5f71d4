"""What an open page costs scoring: `python -m tests.bench.page`, a table to stdout.

A mosquitto, the real daemon with its journal, 10,000 series, and a paced load whose time from arrival to score is read
from the daemon's own histogram: by turns while nobody looks, and while pages follow all series and the chart of one.
The pages are clients in a process of their own, since a browser would take the cores that are measured.
"""

from __future__ import annotations

import argparse
import http.client
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
from pathlib import Path

from streamer.bench import ingest
from streamer.bench.ingest import Options, load_plan, publish
from streamer.bench.processes import Child, broker
from tests.servers import HOST

SERIES, RATE, SECONDS = 10_000, 2_000.0, 15.0
"""messages a second; of a phase"""
ROUNDS = 5
MARGIN = 10.0  # messages and seconds of a phase are both bounds; this is what is left to the seconds


def look(port: int) -> None:
    """A page, until the process ends: its events, and once a second the readings of a series."""
    connection = http.client.HTTPConnection(HOST, port)
    connection.request("GET", "/api/events")
    events = connection.getresponse()
    following = urllib.parse.urlencode({"series": "bench/7#v0"})
    received = 0
    while line := events.readline():
        received += len(line)
        if line == b"event: health\n":
            chart = http.client.HTTPConnection(HOST, port)
            chart.request("GET", f"/api/series?{following}")
            chart.getresponse().read()
            chart.close()
            sys.stdout.write(f"{received}\n")  # one call: there are several pages
            sys.stdout.flush()
            received = 0


class Pages:
    """So many of them."""

    def __init__(self, port: int, count: int) -> None:
        command = [sys.executable, "-m", "tests.bench.page", "--look", str(port), "--pages", str(count)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.received: list[int] = []
        """bytes of each second's events"""
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        self.received += map(int, self._process.stdout)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._thread.join()


class Bench:
    """A daemon that knows all its series."""

    def __init__(self, folder: Path, server: Child, port: int) -> None:
        self._folder, self._server, self._port = folder, server, port
        settings = ("retrain.every_hours=0", "state.snapshot_seconds=3600")
        self._options = Options(SERIES, SERIES, 1, 1, RATE, SECONDS + MARGIN, 0.0, SECONDS, settings)
        self.daemon, _ = ingest.start(self._options, folder, port)
        self._first = time.time() - 86_400
        self._rounds = 0
        for _ in range(25):  # all have a score
            self.load(SERIES, 0.0)

    def load(self, messages: int, rate: float) -> tuple[float, float, float]:
        """p50 and p99 in ms, and microseconds of CPU a message."""
        plan = load_plan(self._options, self._port, messages, rate, self._first + 60 * self._rounds)
        self._rounds += 1 + messages // SERIES
        phase = publish(self.daemon, self._server, self._folder, plan)
        cpu = 1e6 * phase.daemon_cpu_seconds / max(phase.settled(), 1.0)
        return phase.latency_ms(0.5) or 0.0, phase.latency_ms(0.99) or 0.0, cpu


def measure(bench: Bench, pages: int) -> tuple[tuple[float, float, float], float]:
    """A phase with so many pages open, and the bytes a second that each got."""
    looking = Pages(bench.daemon.http_port, pages) if pages else None
    try:
        found = bench.load(int(RATE * SECONDS), RATE)
    finally:
        if looking is not None:
            looking.close()
    return found, statistics.median(looking.received) if looking is not None and looking.received else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--look", type=int, metavar="PORT", help=argparse.SUPPRESS)
    parser.add_argument("--pages", type=int, default=1, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.look is not None:
        threads = [threading.Thread(target=look, args=(arguments.look,)) for _ in range(arguments.pages)]
        for thread in threads:
            thread.start()
        return
    with tempfile.TemporaryDirectory() as name, broker(Path(name)) as (server, port):
        bench = Bench(Path(name), server, port)
        try:
            found: dict[int, list[tuple[float, float, float]]] = {0: [], 1: [], 8: []}
            sizes: dict[int, float] = {}
            for _ in range(ROUNDS):
                for pages, phases in found.items():
                    phase, sizes[pages] = measure(bench, pages)
                    phases.append(phase)
            print(
                "| pages open | p50 ms | p99 ms | CPU us a message | p99 to none | CPU to none | KB a second and page |"
            )
            print("|---|---|---|---|---|---|---|")
            base = [statistics.median(part) for part in zip(*found[0], strict=True)]
            for pages, phases in found.items():
                p50, p99, cpu = (statistics.median(part) for part in zip(*phases, strict=True))
                ratios = f"{p99 / base[1]:.2f} | {cpu / base[2]:.2f}"
                print(f"| {pages} | {p50:.1f} | {p99:.1f} | {cpu:.1f} | {ratios} | {sizes[pages] / 1000:.0f} |")
        finally:
            bench.daemon.stop()


if __name__ == "__main__":
    main()
