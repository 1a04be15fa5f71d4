"""The daemon beside others: programs that do what they say, a broker that never limits, ratios the right way up."""

from __future__ import annotations

import importlib.util
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from models.weights import load
from streamer.bench import comparison, main, step
from streamer.bench.comparison import PEERS, Comparison, Program, Sizes, median_ratio
from streamer.bench.fake_broker import FakeBroker
from streamer.bench.generator import HOST, Load, Plan, connect
from streamer.bench.processes import BenchError, broker
from streamer.bench.report import Report
from streamer.bench.step import operations, two_layers
from tests.conftest import skip_absent

PROGRAMS = ("ingest", "paho_empty", "paho_json", "obvious", "river_trees", "rrcf_trees")


def plan(messages: int, qos: int = 1, port: int = 0) -> Plan:
    return Plan(port, "bench", 5, messages, 60.0, 1.7e9, qos=qos)


# --- The fake broker ---


@pytest.mark.parametrize("qos", [0, 1])
def test_it_sends_the_whole_load_and_no_more(qos: int) -> None:
    """As a plain subscriber sees it: the answers of a broker, then every packet of the plan."""
    wanted = plan(10_000, qos)
    expected = Load(wanted).take(wanted.messages)
    with FakeBroker(wanted) as server, connect(server.port, "test") as link:
        link.sendall(b"\x82\x0b\x00\x07\x00\x06bench#\x01\xc0\x00\x32\x07\x00\x01x\x00\x09hi")
        assert link.recv(11, socket.MSG_WAITALL) == b"\x90\x03\x00\x07\x01\xd0\x00\x40\x02\x00\x09"
        link.settimeout(10)
        link.sendall(b"\x40\x02\x00\x01")
        sending = threading.Thread(target=server.send)
        sending.start()
        found = b""
        while len(found) < len(expected):
            found += link.recv(1 << 20)
        assert found == expected
        link.settimeout(0.05)
        sending.join(10)
        with pytest.raises(TimeoutError):
            link.recv(1)


# --- The programs ---


@pytest.mark.slow
@pytest.mark.parametrize("qos", [0, 1])
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_takes_every_message(tmp_path: Path, name: str, qos: int) -> None:
    """And says what it has used; where it is not installed, that is told instead."""
    reason = comparison.absent(name, [*PEERS, "ingest"])
    if reason:
        assert reason == f"{comparison.WANTS_MODULE[name]} is not installed: the extra [bench]"
        skip_absent(comparison.WANTS_MODULE[name], "pip install with the extra [bench]")
    with FakeBroker(plan(60, qos)) as server, Program(name, server.port, 60, qos, 10, tmp_path) as program:
        server.send()
        received = program.received()
    assert received.messages == (60 if name == "ingest" else 50)
    assert received.cpu_seconds > 0


def test_a_program_that_fails_is_quoted(tmp_path: Path) -> None:
    """By its last word."""
    with socket.create_server((HOST, 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(BenchError, match="paho_empty has failed or is too slow: ConnectionRefusedError"):
        Program("paho_empty", port, 1, 0, 0, tmp_path).__enter__()


# --- The comparison ---


def test_ratios_are_taken_turn_by_turn() -> None:
    """The median of the ratios, not the ratio of medians; ours above where the row says so."""
    measured = [(1.0, 10.0), (2.0, 60.0), (4.0, 80.0)]
    assert median_ratio("paho_json_over_ingest_cpu", measured) == 20
    assert median_ratio("daemon_over_paho_empty_cpu", measured) == 0.05
    assert median_ratio("ingest_share_of_mosquitto_sub_rate", measured) == 0.05


def test_who_is_absent_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """With what would bring it."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert comparison.absent("river_trees", list(PEERS)) == "river is not installed: the extra [bench]"
    assert comparison.absent("mosquitto_sub", list(PEERS)).endswith("apt-get install mosquitto-clients")
    assert comparison.absent("paho_json", ["obvious"]) == "not asked for: --against"
    assert comparison.absent("paho_json", ["paho_json"]) == ""


@pytest.fixture
def peers(tmp_path: Path) -> Iterator[int]:
    with broker(tmp_path) as (_, port):
        yield port


@pytest.mark.slow
@pytest.mark.server("mosquitto")
@pytest.mark.server("mosquitto_sub")
def test_it_compares_behind_a_real_broker(peers: int, tmp_path: Path) -> None:
    """Those who are asked for, in turn; one that fails leaves its row out, and the others their figures."""
    report, said, asked = Report({}), list[str](), list[int]()

    def daemon_cpu(messages: int) -> float:
        asked.append(messages)
        if len(asked) == 3:
            raise BenchError("the daemon has ended")
        return 1e-5

    sizes = Sizes(2, 3000, 700, {"paho_json": 500, "paho_empty": 500, "obvious": 50}, {})
    against = ["paho_json", "mosquitto_sub", "paho_empty", "obvious"]
    Comparison(report, sizes, plan(0, 1, peers), tmp_path, daemon_cpu, said.append).run(against)
    assert asked == [700, 700, 700]
    assert report.figures.keys() == {
        "paho_json_cpu_us_per_message",
        "ingest_cpu_us_per_message",
        "paho_json_over_ingest_cpu",
        "mosquitto_sub_messages_per_second",
        "ingest_share_of_mosquitto_sub_rate",
        "paho_empty_cpu_us_per_message",
        "daemon_over_paho_empty_cpu",
    }
    assert all(figure.value > 0 for figure in report.figures.values())
    assert report.not_run == {
        "obvious_over_daemon_cpu": "the daemon has ended",
        "river_trees_over_daemon_cpu": "not asked for: --against",
        "rrcf_trees_over_daemon_cpu": "not asked for: --against",
    }


# --- The step, and a scrape ---


def test_operations_of_a_step() -> None:
    """Four gates of two products in each layer, and the head; two operations a weight."""
    assert operations(load().config) == 2 * (256 * (18 + 64) + 9 * (64 + 18))
    assert operations(two_layers(load()).config) == operations(load().config) + 2 * 256 * (64 + 64)


def test_the_step_is_measured_on_one_core(capsys: pytest.CaptureFixture[str]) -> None:
    """Both models, beside nn.LSTM and a large product."""
    report = Report({})
    step.add_steps(report, step.Options(50, 40, 1, 3), print)
    assert report.figures.keys() == {
        f"{model}_{name}"
        for model in ("2x64", "shipped")
        for name in ("step_cpu_us_per_reading", "lstm_batch_1_over_step", "step_share_of_sgemm")
    }
    assert all(figure.value > 0 for figure in report.figures.values())
    assert [name for name, figure in report.figures.items() if figure.wanted] == [
        "2x64_lstm_batch_1_over_step",
        "2x64_step_share_of_sgemm",
    ]
    assert capsys.readouterr().out.count("batches of 40") == 2


def test_a_scrape_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    """Beside the client library, and what it does to scoring."""
    assert main(["scrape", "--quick", "--json"]) == 0
    report = msgspec.json.decode(capsys.readouterr().out, type=Report)
    assert {name for name, figure in report.figures.items() if figure.wanted} == {
        "scoring_pause_while_scraped_ms",
        "prometheus_client_over_scrape_cpu",
    }
    assert report.figures["prometheus_client_over_scrape_cpu"].value > 1
    assert report.figures["turn_ms"].value > 0
