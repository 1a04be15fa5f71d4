"""The daemon beside other programs, in one run: each gets the same messages, and what counts is its CPU time.

The others take turns with the daemon, or with its ingest stage alone, and what is said is the median of the ratios of
each turn: two things that are measured one right after the other meet the same machine.
"""

from __future__ import annotations

import importlib.util
import os
import select
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from streamer.bench.fake_broker import FakeBroker
from streamer.bench.generator import HOST, Plan
from streamer.bench.peers.receiving import Received
from streamer.bench.processes import BenchError, Generator, wait_for
from streamer.bench.report import Better, Report

READY_SECONDS, DONE_SECONDS = 60.0, 300.0
INGEST, SUBSCRIBER = "ingest", "mosquitto_sub"

Row = tuple[str, float, Better]
PEERS: dict[str, Row] = {
    "paho_json": ("paho_json_over_ingest_cpu", 20, "higher"),
    SUBSCRIBER: ("ingest_share_of_mosquitto_sub_rate", 0.95, "higher"),
    "paho_empty": ("daemon_over_paho_empty_cpu", 0.5, "lower"),
    "obvious": ("obvious_over_daemon_cpu", 50, "higher"),
    "river_trees": ("river_trees_over_daemon_cpu", 4, "higher"),
    "rrcf_trees": ("rrcf_trees_over_daemon_cpu", 500, "higher"),
}
"""Whom we are compared with, and the row of the table: its name, what is wanted and which way is better."""
WANTS_MODULE = {"river_trees": "river", "rrcf_trees": "rrcf"}


@dataclass(frozen=True, slots=True)
class Sizes:
    """How many messages each gets: about as many as it can take in a second or two."""

    repeats: int
    fast: int
    """the daemon's ingest stage, and a subscriber in C"""
    daemon: int
    by_peer: dict[str, int]
    skip: dict[str, int]
    """so many messages of it are not counted: until then its trees are not made or not full; it gets one series"""


FULL = Sizes(
    5,
    100_000,
    200_000,
    {"paho_json": 20_000, "paho_empty": 20_000, "obvious": 4000, "river_trees": 10_000, "rrcf_trees": 400},
    {"river_trees": 500, "rrcf_trees": 256},
)
QUICK = Sizes(
    1,
    20_000,
    20_000,
    {"paho_json": 4000, "paho_empty": 4000, "obvious": 500, "river_trees": 2000, "rrcf_trees": 280},
    {"river_trees": 500, "rrcf_trees": 256},
)


def absent(peer: str, against: Sequence[str]) -> str:
    """Why there is no comparison with it; empty: there is one."""
    if peer not in against:
        return "not asked for: --against"
    module = WANTS_MODULE.get(peer)
    if module is not None and importlib.util.find_spec(module) is None:
        return f"{module} is not installed: the extra [bench]"
    if peer == SUBSCRIBER and shutil.which(SUBSCRIBER) is None:
        return "mosquitto_sub is not installed: apt-get install mosquitto-clients"
    return ""


class Comparison:
    """All of them, one after the other; `daemon_cpu` publishes so many messages to the daemon and gives CPU seconds
    of each."""

    def __init__(
        self,
        report: Report,
        sizes: Sizes,
        plan: Plan,
        directory: Path,
        daemon_cpu: Callable[[int], float],
        say: Callable[[str], None],
    ) -> None:
        """`plan` is of the load, at the broker that the peers subscribe to."""
        self._report, self._sizes, self._plan = report, sizes, plan
        self._directory, self._daemon_cpu, self._say = directory, daemon_cpu, say

    def run(self, against: Sequence[str]) -> None:
        """Whom we can't be compared with is told, and whose program fails: its row is left out, the others go on."""
        for peer, (row, _, _) in PEERS.items():
            reason = absent(peer, against)
            if not reason:
                self._say(f"beside {peer}")
                try:
                    self._compare(peer)
                except BenchError as error:
                    reason = str(error)
                    self._say(reason)
            if reason:
                self._report.leave_out([row], reason)

    def _compare(self, peer: str) -> None:
        """In turn, so many times; the median of the ratios."""
        measured = [self._turn(peer) for _ in range(self._sizes.repeats)]
        ours, theirs = (statistics.median(values) for values in zip(*measured, strict=True))
        row, wanted, better = PEERS[peer]
        if peer == SUBSCRIBER:
            self._report.add("mosquitto_sub_messages_per_second", theirs, None, "higher")
        else:
            self._report.add(f"{peer}_cpu_us_per_message", 1e6 * theirs, None, "lower")
        if peer == "paho_json":
            self._report.add("ingest_cpu_us_per_message", 1e6 * ours, None, "lower")
        self._report.add(row, median_ratio(row, measured), wanted, better)

    def _turn(self, peer: str) -> tuple[float, float]:
        """Ours and theirs: CPU seconds of a message, or messages a second."""
        sizes = self._sizes
        if peer == "paho_json":
            return self._unlimited(INGEST, sizes.fast), self._unlimited(peer, sizes.by_peer[peer])
        if peer == SUBSCRIBER:
            return self._rate(self._program(INGEST, sizes.fast)), self._rate(self._subscriber(sizes.fast))
        count = sizes.by_peer[peer]
        ours = self._daemon_cpu(sizes.daemon)
        topics = 1 if peer in sizes.skip else self._plan.topics
        with self._program(peer, count) as program, self._load(count, topics):
            return ours, _cpu(program.received())

    def _unlimited(self, name: str, count: int) -> float:
        """By a broker that is never the slowest part."""
        with ExitStack() as stack:
            broker = stack.enter_context(FakeBroker(msgspec.structs.replace(self._plan, messages=count)))
            program = stack.enter_context(Program(name, broker.port, count, self._plan.qos, 0, self._directory))
            broker.send()
            return _cpu(program.received())

    @contextmanager
    def _load(self, count: int, topics: int) -> Iterator[Generator]:
        plan = msgspec.structs.replace(self._plan, messages=count, topics=topics)
        generator = Generator(plan, self._directory, count)
        try:
            yield generator
        finally:
            generator.kill()

    def _rate(self, program: Program | Subscriber) -> float:
        """Messages a second, from the first that is published to the last that has come."""
        with program, self._load(program.messages, self._plan.topics) as generator:
            ended = program.received().ended
            account = wait_for(generator.account, 10, "the load generator's end")
            return program.messages / (ended - account.began)

    def _program(self, name: str, count: int) -> Program:
        skip = self._sizes.skip.get(name, 0)
        return Program(name, self._plan.port, count, self._plan.qos, skip, self._directory)

    def _subscriber(self, count: int) -> Subscriber:
        return Subscriber(self._plan.port, count, self._plan.qos, self._directory)


def median_ratio(row: str, measured: Sequence[tuple[float, float]]) -> float:
    """Of ours and theirs in each turn; ours above where the row's name begins with it."""
    is_ours_above = row.startswith(("daemon", INGEST))
    return statistics.median(ours / theirs if is_ours_above else theirs / ours for ours, theirs in measured)


def _cpu(received: Received) -> float:
    return received.cpu_seconds / received.messages


@contextmanager
def _on_one_core() -> Iterator[None]:
    """What is started meanwhile has the last core only: so all that are compared share it with the same others."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


class Program:
    """A program of `streamer.bench.peers` at work; entered, it has subscribed."""

    def __init__(self, name: str, port: int, messages: int, qos: int, skip: int, directory: Path) -> None:
        self.messages = messages
        self._name = name
        self._log = directory / f"{name}.log"
        arguments = map(str, (port, messages, qos, skip))
        self._command = [sys.executable, "-W", "ignore", "-m", f"streamer.bench.peers.{name}", *arguments]

    def __enter__(self) -> Program:
        with self._log.open("wb") as errors, _on_one_core():
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors,
                env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            )  # fmt: skip
        try:
            self._line(READY_SECONDS)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def received(self) -> Received:
        """Once it has everything. Raises BenchError."""
        return msgspec.json.decode(self._line(DONE_SECONDS), type=Received)

    def _line(self, seconds: float) -> bytes:
        stream = self._process.stdout
        if stream is None:
            raise AssertionError("it was asked for")
        line = stream.readline() if select.select([stream], [], [], seconds)[0] else b""
        if not line:
            said = self._log.read_text(errors="replace").strip().splitlines()
            raise BenchError(f"{self._name} has failed or is too slow: {said[-1] if said else 'not a word'}")
        return line


class Subscriber:
    """`mosquitto_sub` to /dev/null. The session is begun ahead of it, since it does not say when it has subscribed."""

    def __init__(self, port: int, messages: int, qos: int, directory: Path) -> None:
        self.messages = messages
        self._log = directory / f"{SUBSCRIBER}.log"
        program = shutil.which(SUBSCRIBER) or SUBSCRIBER
        self._command = [program, "-h", HOST, "-p", str(port), "-i", "bench-sub", "-t", "bench/#", "-q", str(qos)]

    def __enter__(self) -> Subscriber:
        self._once("-c", "-E")
        with self._log.open("wb") as errors, _on_one_core():
            self._process = subprocess.Popen(
                [*self._command, "-c", "-C", str(self.messages)], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                stderr=errors,
            )  # fmt: skip
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._once("-E")  # without -c: the session ends

    def _once(self, *options: str) -> None:
        """Subscribe and leave."""
        try:
            subprocess.run([*self._command, *options], check=True, capture_output=True, timeout=READY_SECONDS)
        except subprocess.SubprocessError as error:
            raise BenchError(f"{SUBSCRIBER} cannot subscribe: {error}") from error

    def received(self) -> Received:
        """Once it has everything. Raises BenchError."""
        try:
            status = self._process.wait(DONE_SECONDS)
        except subprocess.TimeoutExpired:
            status = -1
        if status != 0:
            raise BenchError(f"{SUBSCRIBER} has failed or is too slow: {self._log.read_text(errors='replace')[-200:]}")
        return Received(self.messages, 0.0, time.monotonic())
