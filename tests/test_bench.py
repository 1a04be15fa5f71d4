"""The measurement: packets that a broker understands, a load within its bounds, figures that mean what they say."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.bench import main
from streamer.bench.comparison import PEERS
from streamer.bench.generator import BODIES, UNACKNOWLEDGED, Account, Load, Plan, bodies, payload, variable
from streamer.bench.ingest import Options, measure, quantile, total
from streamer.bench.processes import BenchError, Generator, wait_for
from streamer.bench.report import Report
from streamer.errors import ServiceError
from streamer.packets import PublishReader
from streamer.readings import Message
from tests.fake_broker import FakeBroker, Peer, encode_length
from tests.waiting import wait_until

# --- The generator's packets ---


def messages_of(packets: bytes) -> list[Message]:
    """What the daemon's own reader finds in them."""
    reader = PublishReader(1 << 20, lambda _: True)
    reader.begin(1, is_v5=False)
    found: list[Message] = []
    for run in reader.feed(packets, 0.0):
        assert isinstance(run, list), f"no PUBLISH: {run[:20]!r}"
        found += run
    return found


@pytest.mark.parametrize("qos", [0, 1])
def test_the_daemon_reads_what_the_generator_writes(qos: int) -> None:
    """Topics in turn, packet identifiers without 0, a value and a time that goes on by a second a round."""
    load = Load(Plan(0, "bench", 3, 7, 60.0, 1.7e9, qos=qos))
    found = messages_of(load.take(2) + load.take(5))
    assert [message.topic for message in found] == [f"bench/{k}" for k in (0, 1, 2, 0, 1, 2, 0)]
    assert [message.mid for message in found] == ([1, 2, 3, 4, 5, 6, 7] if qos else [0] * 7)
    assert {message.qos for message in found} == {qos}
    read = [json.loads(message.payload) for message in found]
    assert [each["ts"] for each in read] == [1.7e9 + k for k in (0, 0, 0, 1, 1, 1, 2)]
    assert all(10 <= each["value"] < 100 for each in read)


def test_a_plan_that_begins_where_another_ended_goes_on_with_it() -> None:
    """A jump of all series at the beginning of every phase would be hundreds of alarms, and no plant."""
    whole = Load(Plan(0, "bench", 3, 12, 60.0, 1.7e9 + 0.5)).take(12)
    parts = [Load(Plan(0, "bench", 3, 6, 60.0, 1.7e9 + 0.5 + k, qos=1)).take(6) for k in (0, 2)]
    assert [m.payload for m in messages_of(whole)] == [m.payload for part in parts for m in messages_of(part)]
    past = Load(Plan(0, "bench", 1, 1, 60.0, 1.7e9, history=2)).take(1)
    then = Load(Plan(0, "bench", 1, 1, 60.0, 1.7e9 + 2)).take(1)
    went = Load(Plan(0, "bench", 1, 3, 60.0, 1.7e9)).take(3)
    read = [json.loads(message.payload) for message in messages_of(past + then)]
    assert [*read[0], read[1]] == [json.loads(message.payload) for message in messages_of(went)]


def test_packet_identifiers_start_again_at_one() -> None:
    """0 is forbidden, and there are 65,535 others."""
    load = Load(Plan(0, "t", 1, 70_000, 60.0, 1.7e9))
    load.take(65_533)
    assert [message.mid for message in messages_of(load.take(4))] == [65_534, 65_535, 1, 2]


def test_a_message_may_hold_the_past() -> None:
    """As many readings as there would be rounds, in an array; the next message goes on from there."""
    load = Load(Plan(0, "bench", 2, 4, 60.0, 1.7e9, history=3))
    read = [json.loads(message.payload) for message in messages_of(load.take(4))]
    assert [[each["ts"] - 1.7e9 for each in message] for message in read] == [[0, 1, 2]] * 2 + [[3, 4, 5]] * 2


@pytest.mark.parametrize("fields", [1, 6])
def test_payloads_are_json_of_one_length(fields: int) -> None:
    """The length stands in a packet's head, which is made once; every field has a wave of its own."""
    made = [payload(body, 1.7e9) for body in bodies(fields)]
    assert {len(each) for each in made} == {len(made[0])}
    assert len(made) == BODIES
    values = np.array([[value for name, value in json.loads(each).items() if name != "ts"] for each in made])
    assert values.shape == (BODIES, fields)
    assert (np.ptp(values, axis=0) > 30).all()


@given(st.integers(0, 268_435_455))
def test_remaining_lengths(number: int) -> None:
    """As the tests' own encoder writes them."""
    assert variable(number) == encode_length(number)


# --- The generator's bounds ---


class Counting:
    """A broker that accepts the generator and acknowledges in pieces of any size."""

    def __init__(self, *, is_silent: bool = False) -> None:
        self._is_silent = is_silent
        self.received = 0

    def __call__(self, peer: Peer) -> None:
        peer.read_until(0x10)
        peer.send(b"\x20\x02\x00\x00")
        while True:
            _, body = peer.read()
            end = 2 + int.from_bytes(body[:2], "big")
            self.received += 1
            if not self._is_silent:
                answer = b"\x40\x02" + body[end : end + 2]
                peer.send(answer[: self.received % 5])
                peer.send(answer[self.received % 5 :])


@contextmanager
def generating(
    plan: Callable[[int], Plan], broker: Callable[[Peer], None], path: Path, credit: int
) -> Iterator[Generator]:
    with FakeBroker(broker) as server:
        generator = Generator(plan(server.port), path, credit)
        try:
            yield generator
        finally:
            generator.kill()


def account_of(generator: Generator) -> Account:
    return wait_for(generator.account, 20, "the generator's account")


def test_it_sends_no_more_than_it_is_allowed(tmp_path: Path) -> None:
    """Until it is allowed more; then exactly what was planned, each one acknowledged."""
    broker = Counting()
    with generating(lambda port: Plan(port, "t", 10, 1000, 60.0, 1.7e9), broker, tmp_path, 300) as generator:
        wait_until(lambda: broker.received >= 300, 20, "the first messages")
        assert generator.account() is None
        assert broker.received == 300
        generator.allow(100)  # a late word takes nothing back
        generator.allow(5000)
        account = account_of(generator)
    assert (account.sent, broker.received) == (1000, 1000)
    assert account.cpu_seconds > 0
    assert account.began < account.ended < time.monotonic()


def test_the_end_of_its_input_ends_it(tmp_path: Path) -> None:
    """A measurement that dies leaves no load behind."""
    broker = Counting()
    with generating(
        lambda port: Plan(port, "t", 10, 10**8, 60.0, 1.7e9, rate=1000.0), broker, tmp_path, 10**8
    ) as generator:
        wait_until(lambda: broker.received >= 5, 20, "the first messages")
        generator.end()
        account = account_of(generator)
    assert account.sent == broker.received
    assert account.sent < 60_000


def test_it_stops_in_time(tmp_path: Path) -> None:
    """Also at a broker that acknowledges nothing; then no more than the window is sent."""
    broker = Counting(is_silent=True)
    with generating(lambda port: Plan(port, "t", 10, 10**8, 0.5, 1.7e9), broker, tmp_path, 10**8) as generator:
        account = account_of(generator)
    assert account.sent == UNACKNOWLEDGED
    assert 0.5 <= account.ended - account.began < 10


def test_it_keeps_to_its_rate(tmp_path: Path) -> None:
    """A thousand a second for a fifth of a second, never ahead of time."""
    broker = Counting()
    with generating(
        lambda port: Plan(port, "t", 10, 200, 60.0, 1.7e9, rate=1000.0), broker, tmp_path, 10**8
    ) as generator:
        account = account_of(generator)
    assert account.sent == 200
    assert account.ended - account.began >= 0.198


def refuse(peer: Peer) -> None:
    peer.read_until(0x10)
    peer.send(b"\x20\x02\x00\x05")


def hang_up(peer: Peer) -> None:
    peer.read_until(0x10)
    peer.send(b"\x20\x02\x00\x00")
    peer.read()
    raise EOFError


@pytest.mark.parametrize(("behave", "reason"), [(refuse, "refused the load generator"), (hang_up, "Error")])
def test_a_generator_that_fails_says_why(tmp_path: Path, behave: Callable[[Peer], None], reason: str) -> None:
    """Its own last words, not a missing figure."""
    with (
        generating(lambda port: Plan(port, "t", 10, 10**6, 20.0, 1.7e9), behave, tmp_path, 10**6) as generator,
        pytest.raises(BenchError, match=reason),
    ):
        account_of(generator)


# --- Figures ---


def test_quantiles_are_those_of_prometheus() -> None:
    """Linear within a bucket, the last bound beyond it; nothing for an empty histogram."""
    buckets = [(0.1, 10.0), (float("inf"), 100.0), (0.5, 90.0), (0.2, 30.0)]
    assert quantile(buckets, 0.5) == pytest.approx(0.2 + 0.3 * (50 - 30) / 60)
    assert quantile(buckets, 0.05) == pytest.approx(0.05)
    assert quantile(buckets, 0.99) == 0.5
    assert quantile([(0.1, 0.0), (float("inf"), 0.0)], 0.5) is None
    assert quantile([], 0.5) is None


@given(st.lists(st.floats(0.001, 0.999), min_size=1, max_size=200), st.floats(0.01, 1.0))
def test_a_quantile_lies_in_the_bucket_of_the_right_one(values: list[float], share: float) -> None:
    """Of the sorted values, the one at this rank: never more than a bucket away."""
    bounds = [k / 10 for k in range(1, 11)]
    buckets = [(bound, float(sum(value <= bound for value in values))) for bound in bounds]
    found = quantile(buckets, share)
    exact = sorted(values)[min(len(values) - 1, max(0, int(np.ceil(share * len(values))) - 1))]
    assert found is not None
    assert abs(found - exact) <= 0.1 + 1e-9


def test_counters_are_added_up_over_their_labels() -> None:
    """But not with others whose names begin alike."""
    scrape = {'x_total{reason="a"}': 1.0, 'x_total{reason="b"}': 2.0, "x_total_seconds": 5.0, "y": 7.0}
    assert (total(scrape, "x_total"), total(scrape, "y"), total(scrape, "z")) == (3.0, 7.0, 0.0)


def test_the_report_says_what_is_wanted() -> None:
    """The object of the contract; the table marks what was missed, in either direction."""
    report = Report({"cores": 2.0})
    report.add("messages_per_second", 12345.678, 20_000, "higher")
    report.add("idle_cpu_percent", 0.5, 1, "lower")
    report.add("latency_p50_ms", 3.0, None, "lower")
    assert json.loads(report.json()) == {
        "machine": {"cores": 2.0},
        "figures": {
            "messages_per_second": {"value": 12350.0, "wanted": 20000.0, "better": "higher"},
            "idle_cpu_percent": {"value": 0.5, "wanted": 1.0, "better": "lower"},
            "latency_p50_ms": {"value": 3.0, "wanted": None, "better": "lower"},
        },
    }
    assert [line.split() for line in report.table().splitlines()[3:]] == [
        ["messages_per_second", "12350", ">=", "20000", "missed"],
        ["idle_cpu_percent", "0.5", "<=", "1"],
        ["latency_p50_ms", "3"],
    ]


# --- The command ---


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        ([], "the following arguments are required: WHAT"),
        (["speed"], "invalid choice: 'speed'"),
        (["ingest", "--messages", "0"], "found 0; expected an integer from 1 to 100000000"),
        (["ingest", "--rate", "nan"], "found nan; expected a number above 0"),
        (["ingest", "--seconds", "inf"], "found inf; expected a number above 0"),
        (["ingest", "--qos", "2"], "invalid choice: 2"),
        (["ingest", "--against", "paho_json,kafka"], "found kafka; expected all, none, or of paho_json, "),
        (["ingest", "--many-series", "-1"], "found -1; expected an integer from 1 to 100000000"),
        (["ingest", "--series", "10", "--fields", "3"], "--series 10 is no multiple of --fields 3"),
    ],
)
def test_wrong_usage(capsys: pytest.CaptureFixture[str], argv: list[str], complaint: str) -> None:
    """Exit status 2 and what was expected."""
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2
    assert complaint in capsys.readouterr().err


def test_an_absent_broker_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """And how to get one."""
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with pytest.raises(ServiceError, match=r"mosquitto is not installed here; .*: apt-get install mosquitto"):
        main(["ingest", "--quick"])


class Printed(msgspec.Struct):
    """What `--json` prints, as strictly as the contract has it."""

    machine: dict[str, str | float]
    figures: dict[str, dict[str, float | str | None]]
    not_run: dict[str, str]


@pytest.mark.server("mosquitto")
def test_it_measures_a_real_daemon() -> None:
    """Every figure, nothing lost, every series admitted; the load is small and the pauses are short."""
    said: list[str] = []
    options = Options(
        messages=3000,
        series=60,
        fields=2,
        qos=1,
        rate=2000.0,
        seconds=60.0,
        idle_seconds=0.2,
        latency_seconds=0.5,
        settings=(),
    )
    report = msgspec.json.decode(measure(options, said.append).json(), type=Printed)
    figures = {name: figure["value"] for name, figure in report.figures.items()}
    assert figures.keys() == {
        "start_to_first_score_seconds",
        "idle_cpu_percent",
        "messages_per_second",
        "lost_messages",
        "scored_percent",
        "daemon_cpu_us_per_message",
        "daemon_cores",
        "broker_cpu_us_per_message",
        "generator_cpu_us_per_message",
        "messages_per_turn",
        "series",
        "paced_messages_per_second",
        "latency_p50_ms",
        "latency_p99_ms",
        "latency_p99_above_commit_ms",
        "idle_with_series_cpu_percent",
        "resident_mb",
        "resident_peak_mb",
        "stop_seconds",
    }
    assert report.not_run.keys() == {row for row, _, _ in PEERS.values()} | {
        "rate_of_many_series_over_few",
        "resident_bytes_per_series",
    }
    assert (figures["lost_messages"], figures["series"], figures["scored_percent"]) == (0.0, 80.0, 80.0)
    above = figures.pop("latency_p99_above_commit_ms")  # a phase may be quicker than a group can gather
    assert isinstance(above, float)
    assert all(isinstance(value, float) and value >= 0 for value in figures.values())
    assert report.machine["settings"] == (
        "limits.max_series=100000 limits.new_series_burst=20000 limits.new_series_per_minute=5000"
    )
    assert {
        "mosquitto",
        "processor",
        "cores",
        "busy_elsewhere_cores_load",
        "load_average_after",
    } <= report.machine.keys()
    assert [line.split(":")[0] for line in said[1:]] == ["start", "idle", "load", "latency", "idle", "stop"]


@pytest.mark.server("mosquitto")
def test_a_daemon_that_does_not_start_is_quoted(capsys: pytest.CaptureFixture[str]) -> None:
    """Exit status 1, with what it said."""
    assert main(["ingest", "--quick", "--set", "mqtt.nonsense=1"]) == 1
    assert "mqtt.nonsense" in capsys.readouterr().err


# --- Training ---


def test_training_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    """Series-steps a second of both loops, and their ratio, in the form that every measurement has."""
    argv = ["train", "--quick", "--series", "4", "--steps", "64", "--chunk", "32", "--device", "cpu", "--json"]
    assert main(argv) == 0
    report = msgspec.json.decode(capsys.readouterr().out, type=Report)
    assert (report.machine["device"], report.machine["precision"]) == ("cpu", "float32")
    assert set(report.figures) == {
        "series_steps_per_second",
        "bare_lstm_series_steps_per_second",
        "share_of_bare_lstm",
    }
    assert all(figure.value > 0 and figure.is_kept() for figure in report.figures.values())


def test_training_on_a_gpu_is_measured(cuda: str, capsys: pytest.CaptureFixture[str]) -> None:
    """In the precision in which it trains there."""
    assert main(["train", "--quick", "--device", cuda, "--json"]) == 0
    report = msgspec.json.decode(capsys.readouterr().out, type=Report)
    assert report.machine["precision"] == "float16, loss in float32"
    assert report.not_run is msgspec.UNSET
