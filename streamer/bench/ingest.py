"""From a published message to its score: generator -> mosquitto -> daemon, each a process of its own, on loopback.

Everything about the daemon is read where an operator reads it, at /metrics, and from /proc. The generator is held back
by the daemon's own count of what it has settled: a broker that queues without a bound would else measure its memory.
"""

from __future__ import annotations

import math
import os
import re
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from streamer.bench.comparison import FULL, Comparison, Sizes
from streamer.bench.generator import Account, Plan
from streamer.bench.processes import (
    BenchError,
    Child,
    Daemon,
    Generator,
    Scrape,
    broker,
    cpu_per_second,
    cpu_seconds,
    memory_bytes,
    mosquitto,
    wait_for,
)
from streamer.bench.report import Busy, Report, machine
from streamer.settings import load as load_settings

AHEAD = 40_000  # messages published and not yet settled: more than the load is between two looks at the daemon
LOOK_SECONDS = 0.25  # each look is a scrape, and part of the load
STALLED_SECONDS = 5.0  # without progress, after the last message was published: the rest is lost
START_SERIES, START_RATE, START_SECONDS = 20, 2000.0, 60.0
WARM_READINGS = 20  # of a series have no score
PACED_SECONDS = 2.0  # a phase of the latency's
HISTORY = 25  # readings, so that each of many series has one
LATENCY = "streamer_scored_latency_seconds"


@dataclass(frozen=True, slots=True)
class Options:
    """What to measure."""

    messages: int
    series: int
    fields: int
    qos: int
    rate: float
    """messages a second while latency is measured; 0: half of what the load has reached"""
    seconds: float
    idle_seconds: float
    latency_seconds: float
    settings: tuple[str, ...]
    """further settings of the daemon"""
    against: tuple[str, ...] = ()
    """names of `PEERS`"""
    sizes: Sizes = FULL
    many_series: int = 0
    """of a second daemon, whose rate and memory are told; 0: there is none"""
    many_messages: int = 300_000

    @property
    def topics(self) -> int:
        return self.series // self.fields


@dataclass(frozen=True, slots=True)
class Phase:
    """One load, from its first message to the last settled one."""

    before: Scrape
    after: Scrape
    account: Account
    seconds: float
    daemon_cpu_seconds: float
    broker_cpu_seconds: float
    elsewhere_cores: float

    def grown(self, name: str) -> float:
        """By how much a counter has grown; without labels, over all of them."""
        return total(self.after, name) - total(self.before, name)

    def settled(self) -> float:
        return settled(self.after) - settled(self.before)

    def latency_ms(self, share: float) -> float | None:
        """Quantile of the time from arrival to score, None where nothing was scored."""
        pattern = re.compile(LATENCY + r'_bucket\{le="(.*)"\}')
        buckets = [
            (float(found[1]), count - self.before.get(name, 0.0))
            for name, count in self.after.items()
            if (found := pattern.fullmatch(name))
        ]
        seconds = quantile(buckets, share)
        return None if seconds is None else seconds * 1000


def measure(options: Options, say: Callable[[str], None]) -> Report:
    """All figures of one run; `say` is told what is being done.

    Raises BenchError for a measurement that fails, ServiceError where there is no mosquitto.
    """
    report = Report(machine())
    report.machine["mosquitto"] = mosquitto_version()
    raised = raised_settings(options)
    say(f"raised, so that all series are admitted at once: {', '.join(raised)}")
    report.machine["settings"] = " ".join([*raised, *options.settings])
    with tempfile.TemporaryDirectory(prefix="streamer-bench-") as name:
        directory = Path(name)
        with broker(directory) as (server, port):
            rate = _measure(options, say, report, directory, server, port)
            add_many(options, report, directory, server, port, rate, say)
    report.machine["load_average_after"] = round(os.getloadavg()[0], 2)
    return report


def _measure(
    options: Options, say: Callable[[str], None], report: Report, directory: Path, server: Child, port: int
) -> float:
    """Gives messages for a second of the daemon's CPU time."""
    say("start: from nothing to the first score")
    daemon, start_seconds = start(options, directory, port)
    try:
        report.add("start_to_first_score_seconds", start_seconds, 5, "lower")
        say(f"idle: {options.idle_seconds:g} s without a message")
        report.add("idle_cpu_percent", 100 * cpu_per_second(daemon, options.idle_seconds), 1, "lower")

        say(f"load: {options.messages} messages of {options.series} series at QoS {options.qos}, as fast as it goes")
        rounds = math.ceil(options.messages / options.topics)
        first = time.time() - rounds - 4000  # so that no phase reaches the future
        load = publish(daemon, server, directory, load_plan(options, port, options.messages, 0.0, first))
        if load.account.sent < options.messages:
            say(f"--seconds {options.seconds:g} were over after {load.account.sent} messages")
        rate = add_load(report, load)

        paced = options.rate or rate / 2
        say(f"latency: {options.latency_seconds:g} s at {paced:.0f} messages/s")
        messages = max(1, int(paced * min(options.latency_seconds, PACED_SECONDS)))
        calm: list[Phase] = []
        first += rounds
        for _ in range(max(1, round(options.latency_seconds / PACED_SECONDS))):
            calm.append(publish(daemon, server, directory, load_plan(options, port, messages, paced, first)))
            first += math.ceil(messages / options.topics)
        add_latency(report, calm, commit_ms(options), say)
        compare(options, report, directory, daemon, server, load_plan(options, port, 0, 0.0, first), say)

        say(f"idle: {options.idle_seconds:g} s without a message, with all series known")
        report.add("idle_with_series_cpu_percent", 100 * cpu_per_second(daemon, options.idle_seconds), 1, "lower")
        scrape = wait_for(lambda: quiet(daemon, calm[-1].after), 30, "the daemon's count of its series")
        report.add("series", scrape["streamer_series"], options.series, "higher")
        report.add("resident_mb", memory_bytes(daemon.pid, "VmRSS") / 1e6, 1500, "lower")
        say("stop: drain, save the state of all series")
        stop(daemon, report)
    finally:
        daemon.stop()
    return load.settled() / max(load.daemon_cpu_seconds, 1e-9)


def compare(
    options: Options,
    report: Report,
    directory: Path,
    daemon: Daemon,
    server: Child,
    plan: Plan,
    say: Callable[[str], None],
) -> None:
    """The daemon, which all series have warmed up, in turn with other programs at a broker of their own."""
    published = 0

    def daemon_cpu(messages: int) -> float:
        nonlocal published
        next_plan = msgspec.structs.replace(plan, messages=messages, start=plan.start + published)
        published += math.ceil(messages / plan.topics)
        load = publish(daemon, server, directory, next_plan)
        return load.daemon_cpu_seconds / max(load.settled(), 1.0)

    (directory / "peers").mkdir()
    with broker(directory / "peers") as (_, port):
        theirs = msgspec.structs.replace(plan, port=port)
        Comparison(report, options.sizes, theirs, directory / "peers", daemon_cpu, say).run(options.against)


def add_many(
    options: Options,
    report: Report,
    directory: Path,
    server: Child,
    port: int,
    per_cpu_second: float,
    say: Callable[[str], None],
) -> None:
    """What many series cost, in rate and memory: a second daemon, each of whose series has met enough for a score.

    Rates are messages for a second of the daemon's CPU time: so two loads compare that had not the machine alike.
    """
    rows = {"rate_of_many_series_over_few": 0.8, "resident_bytes_per_series": 12 * 1024}
    if not options.many_series:
        report.leave_out(rows, "not asked for: --many-series")
        return
    say(f"many series: {options.many_series} of them, with {HISTORY} readings each")
    many = replace(options, series=options.many_series * options.fields)
    (directory / "many").mkdir()
    daemon = Daemon(directory / "many", port, (*raised_settings(many), f"mqtt.qos={options.qos}", *options.settings))
    try:
        wait_for(lambda: is_subscribed(daemon), 30, "the daemon's subscription")
        count = options.many_messages // many.topics + 1
        first = time.time() - HISTORY - count - 1
        past = Plan(port, "many", many.topics, many.topics, 120.0, first, options.fields, options.qos, 0.0, HISTORY)
        publish(daemon, server, directory, past)
        say(f"many series: {options.many_messages} messages, as fast as it goes")
        plan = msgspec.structs.replace(past, messages=options.many_messages, start=first + HISTORY, history=1)
        load = publish(daemon, server, directory, plan)
        scrape = wait_for(lambda: quiet(daemon, load.after), 30, "the daemon's count of its series")
        report.machine["many_series"] = scrape["streamer_series"]
        report.machine["busy_elsewhere_cores_many"] = round(load.elsewhere_cores, 2)
        per_message = load.daemon_cpu_seconds / max(load.settled(), 1.0)
        report.add("daemon_cpu_us_per_message_of_many_series", 1e6 * per_message, None, "lower")
        names = list(rows)
        report.add(names[0], 1 / per_message / per_cpu_second, rows[names[0]], "higher")
        resident = memory_bytes(daemon.pid, "VmRSS") / max(scrape["streamer_series"], 1.0)
        report.add(names[1], resident, rows[names[1]], "lower")
    finally:
        daemon.stop()


def start(options: Options, directory: Path, port: int) -> tuple[Daemon, float]:
    """A daemon that has scored its first reading, and how many seconds that took from its exec.

    A few sensors already report meanwhile; a series has its first score with its 21st reading.
    """
    messages = int(START_RATE * START_SECONDS)
    first = time.time() - messages / START_SERIES
    plan = Plan(port, "start", START_SERIES, messages, START_SECONDS, first, rate=START_RATE)
    generator = Generator(plan, directory, messages)
    daemon = Daemon(directory, port, (*raised_settings(options), f"mqtt.qos={options.qos}", *options.settings))
    try:
        scrape = wait_for(lambda: scored(daemon), START_SECONDS, "the first score")
        seconds = time.monotonic() - daemon.began
        generator.end()
        wait_for(generator.account, 10, "the load generator's end")
        wait_for(lambda: quiet(daemon, scrape), 10, "the daemon to settle what it has received")
    except BaseException:
        daemon.stop()
        raise
    finally:
        generator.kill()
    return daemon, seconds


def publish(daemon: Daemon, server: Child, directory: Path, plan: Plan) -> Phase:
    """Runs one load to its end: all that was published is settled, or nothing has moved for some seconds."""
    before = looked_at(daemon)
    base = settled(before)
    busy = Busy(lambda: sum(map(cpu_seconds, (daemon.pid, server.pid, os.getpid()))))
    cpu = cpu_seconds(daemon.pid), cpu_seconds(server.pid)
    is_paced = plan.rate > 0  # it needs no holding back, and a scrape is a pause of ten milliseconds
    generator = Generator(plan, directory, plan.messages if is_paced else AHEAD)
    account: Account | None = None
    try:
        latest, moved_at = 0.0, time.monotonic()
        while True:
            time.sleep(LOOK_SECONDS)  # between two scrapes: looking more often would be part of the load
            now = time.monotonic()
            if is_paced and account is None and now - moved_at <= plan.seconds:
                account = generator.account()
                continue
            after = looked_at(daemon)
            done = settled(after) - base
            if done > latest:
                latest, moved_at = done, now
            account = account or generator.account()
            if account is not None and (done >= account.sent or now - moved_at > STALLED_SECONDS):
                break
            if account is None and now - moved_at > plan.seconds + STALLED_SECONDS:
                raise BenchError("the load generator does not come to an end")
            generator.allow(int(done) + AHEAD)
    finally:
        generator.kill()
    seconds = moved_at - account.began
    return Phase(
        before,
        after,
        account,
        seconds,
        cpu_seconds(daemon.pid) - cpu[0],
        cpu_seconds(server.pid) - cpu[1],
        max(0.0, busy.elsewhere() - account.cpu_seconds / seconds),
    )


def load_plan(options: Options, port: int, messages: int, rate: float, first: float) -> Plan:
    """The same series in every phase. `first`: event time of its first round; `rate` 0: as fast as it goes."""
    return Plan(port, "bench", options.topics, messages, options.seconds, first, options.fields, options.qos, rate)


def add_load(report: Report, load: Phase) -> float:
    """The figures of the saturating load; gives messages a second."""
    count = max(load.settled(), 1.0)
    rate = count / load.seconds
    report.machine["busy_elsewhere_cores_load"] = round(load.elsewhere_cores, 2)
    report.add("messages_per_second", rate, 20_000, "higher")
    report.add("lost_messages", load.account.sent - load.grown("streamer_messages_decoded_total"), 0, "lower")
    decoded = max(load.grown("streamer_readings_decoded_total"), 1.0)
    report.add("scored_percent", 100 * load.grown("streamer_readings_scored_total") / decoded, None, "higher")
    report.add("daemon_cpu_us_per_message", 1e6 * load.daemon_cpu_seconds / count, None, "lower")
    report.add("daemon_cores", load.daemon_cpu_seconds / load.seconds, None, "lower")
    report.add("broker_cpu_us_per_message", 1e6 * load.broker_cpu_seconds / count, None, "lower")
    report.add("generator_cpu_us_per_message", 1e6 * load.account.cpu_seconds / count, None, "lower")
    turns = max(load.grown("streamer_turns_total"), 1.0)
    report.add("messages_per_turn", count / turns, None, "higher")
    return rate


def add_latency(report: Report, calm: Sequence[Phase], commit: float, say: Callable[[str], None]) -> None:
    """The figures of the phases below saturation, the median of each; `commit`: milliseconds for which readings gather.

    In a phase of ten seconds one pause of a tenth of a second, whoever makes it, is the worst hundredth.
    """
    report.machine["busy_elsewhere_cores_latency"] = round(statistics.median(p.elsewhere_cores for p in calm), 2)
    paced = statistics.median(p.account.sent / (p.account.ended - p.account.began) for p in calm)
    report.add("paced_messages_per_second", paced, None, "higher")
    for name, share in (("latency_p50_ms", 0.5), ("latency_p99_ms", 0.99)):
        found = [value for phase in calm if (value := phase.latency_ms(share)) is not None]
        if not found:
            say(f"no {name}: nothing was scored; a series needs more than {WARM_READINGS} readings (--messages)")
            continue
        report.add(name, statistics.median(found), None, "lower")
        if share == 0.99:
            report.add("latency_p99_above_commit_ms", statistics.median(found) - commit, 15, "lower")


def commit_ms(options: Options) -> float:
    """How long messages gather before they are written, at most."""
    settings = load_settings(None, options.settings, {})
    return settings.journal.commit_ms if settings.state.durability == "journal" else 0.0


def stop(daemon: Daemon, report: Report) -> None:
    """SIGTERM; while the state is saved, memory is at its highest."""
    peak = 0

    def look() -> None:
        nonlocal peak
        peak = max(peak, memory_bytes(daemon.pid, "VmHWM"))

    seconds = daemon.stop(look)
    if daemon.status != 0:
        raise BenchError(f"the daemon ended with status {daemon.status} after SIGTERM")
    report.add("resident_peak_mb", peak / 1e6, 1500, "lower")
    report.add("stop_seconds", seconds, 5, "lower")


# --- What the daemon says ---


def looked_at(daemon: Daemon) -> Scrape:
    """Raises BenchError when it does not answer in time."""
    return wait_for(daemon.scrape, 30, "an answer of /metrics")


def scored(daemon: Daemon) -> Scrape | None:
    """A scrape with a scored reading in it."""
    scrape = daemon.scrape()
    return scrape if scrape and total(scrape, "streamer_readings_scored_total") > 0 else None


def quiet(daemon: Daemon, before: Scrape) -> Scrape | None:
    """A scrape that shows nothing in the queue, and progress since."""
    scrape = daemon.scrape()
    name = "streamer_last_progress_timestamp_seconds"
    is_done = scrape and scrape["streamer_messages_queued"] == 0 and scrape[name] > before[name] + 0.5
    return scrape if is_done else None


def is_subscribed(daemon: Daemon) -> bool | None:
    """True once the broker has granted what it asked for."""
    scrape = daemon.scrape()
    return True if scrape and scrape["streamer_mqtt_subscribed"] == 1 else None


def settled(scrape: Scrape) -> float:
    """Messages that have left the pipeline, but for our own output that comes back."""
    return sum(total(scrape, f"streamer_messages_{fate}_total") for fate in ("decoded", "rejected", "dropped"))


def total(scrape: Scrape, name: str) -> float:
    """A counter, over all its labels."""
    return sum(value for sample, value in scrape.items() if sample == name or sample.startswith(name + "{"))


def quantile(buckets: list[tuple[float, float]], share: float) -> float | None:
    """As Prometheus' histogram_quantile: `buckets` are upper bounds and cumulative counts, in any order."""
    ordered = sorted(buckets)
    if not ordered or ordered[-1][1] <= 0:
        return None
    rank = share * ordered[-1][1]
    lower_bound = lower_count = 0.0
    for bound, count in ordered:
        if count >= rank:
            if math.isinf(bound):
                return lower_bound
            return lower_bound + (bound - lower_bound) * (rank - lower_count) / (count - lower_count)
        lower_bound, lower_count = bound, count
    return lower_bound


def raised_settings(options: Options) -> list[str]:
    """Admission is there to be hit by a misbehaving sender, and a load of new series looks like one."""
    series = options.series + START_SERIES
    return [
        f"limits.max_series={max(100_000, series)}",
        f"limits.new_series_burst={max(20_000, series)}",
        f"limits.new_series_per_minute={max(5_000, series)}",
    ]


def mosquitto_version() -> str:
    """`2.0.11`, for the report."""
    done = subprocess.run([mosquitto(), "-h"], capture_output=True, text=True, check=False)
    found = re.search(r"version (\S+)", done.stdout)
    return found[1] if found else "unknown"
