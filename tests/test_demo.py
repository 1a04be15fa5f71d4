"""The demo: an honest account, a plant that one seed repeats, and the whole of it as a person starts it."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice, pairwise
from pathlib import Path
from random import Random

import msgspec
import pytest
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from streamer.demo import devices, faults, plant, show
from streamer.demo.broker import HOST, broker
from streamer.demo.clock import SPEED, STEP_SECONDS, PlantClock, first_moment
from streamer.demo.faults import GRACE_SECONDS, Alarm, Fault, credit, tally
from streamer.demo.plant import Began, Ended, Plant, Report
from streamer.demo.watch import AlarmEvent, Counters
from streamer.errors import ServiceError, StreamerError
from streamer.payloads import Columns, Decoder
from tests.end_to_end.daemon import StrictClient
from tests.servers import answers, free_port
from tests.waiting import wait_until

START = first_moment(1_800_000_000.0)
ACCOUNT = re.compile(r"faults injected=(\d+) caught=(\d+) missed=(\d+) false_alarms=(\d+)")


def a_fault(number: int = 1, kind: str = "shift", keys: tuple[str, ...] = ("p#flow",), start: float = 1000.0) -> Fault:
    """A fault that lasts 600 seconds."""
    return Fault(number=number, kind=kind, what="it breaks", keys=keys, start=start, end=start + 600.0)


# --- The account ---


@pytest.mark.parametrize(
    ("alarm", "is_credited"),
    [
        (Alarm("value", "p#flow", 1000.0), True),
        (Alarm("value", "p#flow", 1600.0 + GRACE_SECONDS), True),
        (Alarm("value", "p#flow", 999.9), False),  # too early
        (Alarm("value", "p#flow", 1600.1 + GRACE_SECONDS), False),  # too late
        (Alarm("value", "p#pressure", 1200.0), False),  # the same device, another series
        (Alarm("silent", "p#flow", 1200.0), False),  # a wrong value is no silence
    ],
)
def test_an_alarm_is_credited_by_series_time_and_kind(alarm: Alarm, is_credited: bool) -> None:
    """Only an alarm on the fault's series, within its time and the grace, of the fitting kind, has seen it."""
    fault = a_fault()
    assert credit([fault], alarm) == (fault if is_credited else None)


def test_silence_is_caught_by_the_joint_key_or_a_series_but_not_by_a_value() -> None:
    """A dead device is seen by alarms of kind silent alone."""
    fault = a_fault(kind="silence", keys=("p#*", "p#flow"))
    assert credit([fault], Alarm("silent", "p#*", 1500.0)) is fault
    assert credit([fault], Alarm("silent", "p#flow", 1500.0)) is fault
    assert credit([fault], Alarm("value", "p#flow", 1500.0)) is None


def test_the_account_counts_each_fault_once_and_every_other_alarm_as_false() -> None:
    """Two alarms on one fault catch one; an alarm elsewhere is false; a fault without any is missed."""
    three = [a_fault(1), a_fault(2, keys=("q",), start=3000.0), a_fault(3, keys=("p#flow", "r"), start=5000.0)]
    alarms = [
        Alarm("value", "p#flow", 1100.0),
        Alarm("value", "p#flow", 1500.0),
        Alarm("value", "p#flow", 3100.0),
        Alarm("value", "r", 5100.0),
        Alarm("silent", "q", 3100.0),
    ]
    assert tally(three, alarms) == (3, 2, 1, 2)
    assert str(tally(three, alarms)) == "faults injected=3 caught=2 missed=1 false_alarms=2"
    assert str(tally([], [])) == "faults injected=0 caught=0 missed=0 false_alarms=0"


# --- The plan ---


def test_a_run_of_limited_time_has_every_fault_in_turn_and_sees_each_to_its_end() -> None:
    """The first round is the list itself; no fault outlasts the run, none overlaps the grace of the one before."""
    end = START + 20_000.0
    planned = list(faults.plan(Random(1), START, end))
    assert [scenario for scenario, _ in planned[: len(faults.SCENARIOS)]] == list(faults.SCENARIOS)
    labels = [label for _, label in planned]
    assert [label.number for label in labels] == list(range(1, len(labels) + 1))
    assert labels[0].start == START
    assert labels[-1].end <= end
    assert all(late.start >= early.end + GRACE_SECONDS for early, late in pairwise(labels))


def test_a_run_without_a_limit_has_faults_for_ever_and_all_of_them() -> None:
    """A hundred faults, at times that differ, of every scenario."""
    planned = list(islice(faults.plan(Random(1), START, None), 100))
    assert {scenario.what for scenario, _ in planned} == {scenario.what for scenario in faults.SCENARIOS}
    pauses = [late.start - early.end for (_, early), (_, late) in pairwise(planned)]
    assert len(set(pauses)) == len(pauses)
    assert min(pauses) >= GRACE_SECONDS


# --- The plant ---


def reports(seconds: float, faults_from: float = float("inf")) -> list[Report | Began | Ended]:
    """What a plant does in its first seconds."""
    return list(Plant(7, START, faults_from, START + seconds).until(START + seconds))


def test_every_payload_is_read_and_the_series_are_those_that_are_promised() -> None:
    """Sixteen devices, 55 series; every reading but those without a time has the one that it was made at."""
    decoder = Decoder()
    columns = Columns()
    for event in reports(7200.0):
        assert isinstance(event, Report)
        before = len(columns)
        assert decoder.decode(event.topic, event.payload, 1.0, columns) is None, event
        for said in columns.time[before:]:
            assert said == 1.0 if event.topic == devices.OUTDOORS else abs(said - event.time) <= 1.0, event
    assert len(devices.build(7)) == 16
    assert len(set(columns.key)) == 55
    assert not columns.rejected


def test_one_seed_gives_one_plant_and_another_seed_another() -> None:
    """The same bytes at the same times, faults included."""
    assert reports(3600.0, START + 600.0) == reports(3600.0, START + 600.0)
    other = list(Plant(8, START, START + 600.0, START + 3600.0).until(START + 3600.0))
    assert other != reports(3600.0, START + 600.0)


def test_the_steps_of_the_wall_do_not_matter() -> None:
    """What happens does not depend on how often the plant is asked."""
    stepwise = Plant(7, START, START + 600.0, START + 3600.0)
    pieces = [event for step in range(1, 301) for event in stepwise.until(START + 12.0 * step)]
    assert pieces == reports(3600.0, START + 600.0)


def test_a_fault_touches_what_its_label_says_and_nothing_else() -> None:
    """Beside the same plant without faults, only readings of labelled series differ, and only in the fault's time."""
    seconds = 14_000.0
    calm = {(event.time, event.topic): event.payload for event in reports(seconds) if isinstance(event, Report)}
    seen = reports(seconds, START + 600.0)
    decoder = Decoder()
    active: Fault | None = None
    touched: set[tuple[int, str]] = set()
    for event in seen:
        if isinstance(event, Began):
            active = event.fault
        elif isinstance(event, Ended):
            active = None
        elif (undisturbed := calm.pop((event.time, event.topic))) != event.payload:
            assert active is not None
            assert active.start <= event.time <= active.end
            before, after = Columns(), Columns()
            decoder.decode(event.topic, undisturbed, 0.0, before)
            decoder.decode(event.topic, event.payload, 0.0, after)
            different = {k for k, a, b in zip(before.key, before.value, after.value, strict=True) if a != b}
            assert different <= set(active.keys)
            touched |= {(active.number, key) for key in different}
    labels = [event.fault for event in seen if isinstance(event, Began)]
    silent = [fault for fault in labels if fault.kind == faults.SILENCE]
    for time, topic in calm:  # what the silent devices would have said
        assert any(f.start <= time <= f.end and any(k.partition("#")[0] == topic for k in f.keys) for f in silent)
    assert touched == {(f.number, key) for f in labels if f.kind != faults.SILENCE for key in f.keys}
    assert calm


def test_a_number_strays_and_a_switch_takes_turns() -> None:
    """The parts that the plant is made of: spread, memory and cycle are those that were asked for."""
    wander = devices.Wander(Random(1), 2.0, 100.0)
    strayed = [wander.at(1000.0 * k) for k in range(2000)]
    assert sum(x * x for x in strayed) / len(strayed) == pytest.approx(4.0, rel=0.1)
    switch = devices.Switch(Random(1), 30.0, 70.0)
    states = [switch.phase(float(t)) for t in range(100_000)]
    assert sum(is_on for is_on, _ in states) / len(states) == pytest.approx(0.3, abs=0.01)
    assert all(0.0 <= phase < 1.0 for _, phase in states)


# --- The clock ---


def test_the_clock_follows_the_plant_and_stands_still_with_it() -> None:
    """Between two words it goes on by itself for one step; it never goes back; timers are the wall's."""
    wall = [50.0]
    clock = PlantClock(START, lambda: wall[0])
    assert clock.now() == START
    wall[0] += STEP_SECONDS / 2
    assert clock.now() == pytest.approx(START + SPEED * STEP_SECONDS / 2)
    wall[0] += 10.0
    assert clock.now() == pytest.approx(START + SPEED * STEP_SECONDS)
    clock.hear(START + 1.0)  # late and behind
    assert clock.now() == pytest.approx(START + SPEED * STEP_SECONDS)
    clock.hear(START + 100.0)
    assert clock.now() == START + 100.0
    assert clock.monotonic() == wall[0]


def test_the_plant_starts_on_a_morning_of_the_past() -> None:
    """At eight, a month ago, whatever the time of day is now."""
    for hour in range(24):
        start = first_moment(1_800_000_000.0 + 3600.0 * hour)
        assert start % 86_400.0 == 8 * 3600.0
        assert 29 * 86_400.0 < 1_800_000_000.0 + 3600.0 * hour - start < 32 * 86_400.0


def test_the_plant_runs_at_least_sixty_times_as_fast_as_the_wall() -> None:
    """The contract of the command; and a minute leaves more than half of it for faults."""
    assert SPEED >= 60.0
    assert plant.faultless_seconds(60.0) < 30.0 * SPEED
    assert plant.faultless_seconds(600.0) == plant.faultless_seconds(None) == 30.0 * SPEED


# --- The words ---


def test_lines_carry_the_plants_time_and_all_figures_of_an_alarm() -> None:
    """One line each, with value, expectation, band and score, and the fault that was seen."""
    alarm = AlarmEvent("opened", "id", "value", "p#flow", START, None, 17.06, 30.9, 29.0, 32.5, 1.14)
    assert show.alarm_opened(alarm, a_fault(start=START - 10.0)).endswith(
        "08:00:00  ALARM   opened on p#flow: value 17.06, expected 30.9 (29 to 32.5), score 1.14 <- fault 1"
    )
    late = AlarmEvent("opened", "id", "value", "p#flow", START, None, 17.06, 30.9, 29.0, 32.5, 1.14)
    assert show.alarm_opened(late, a_fault(start=START - 700.0)).endswith("<- fault 1, only at its end")
    assert show.missed(a_fault()) == "missed: fault 1, it breaks (shift) on p#flow"
    drift = AlarmEvent("opened", "id", "value", "p#flow", START, None, 17.06, 17.3, 16.0, 19.0, 1.14, usual=30.9)
    assert "value 17.06, usually 30.9, expected 17.3 (16 to 19), score" in show.alarm_opened(drift, None)
    silent = AlarmEvent("opened", "id", "silent", "p#*", START, detail={"quiet_seconds": 407.6, "allowed_seconds": 50})
    assert "silent for 408 s, 50 s allowed <- FALSE ALARM" in show.alarm_opened(silent, None)
    assert show.figures(START, Counters(10, 55, 2), 1234.5).endswith("1,234 readings/s of 55 series; alarms open: 2")


# --- The broker ---


def test_the_embedded_broker_carries_messages_and_gives_its_port_back(tmp_path: Path) -> None:
    """A real MQTT 5 round trip at QoS 1; afterwards nobody listens."""
    got: list[bytes | bytearray] = []

    def on_message(_client: Client, _userdata: object, message: MQTTMessage) -> None:
        got.append(message.payload)

    with broker(tmp_path, 0) as port:
        client = Client(CallbackAPIVersion.VERSION2, "test", protocol=MQTTProtocolVersion.MQTTv5)
        client.on_message = on_message
        granted = threading.Event()
        client.on_subscribe = lambda *_: granted.set()
        client.connect(HOST, port)
        client.loop_start()
        try:
            client.subscribe("a/#", 1)
            assert granted.wait(10.0)
            client.publish("a/b", b"21.5", qos=1)
            assert wait_until(lambda: got, 10.0, "the message") == [b"21.5"]
        finally:
            client.disconnect()
            client.loop_stop()
        with pytest.raises(ServiceError, match=rf"{port}.*--port"), broker(tmp_path, port):
            pass
    with broker(tmp_path, port) as again:
        assert again == port


def test_without_iotcore_the_operator_is_told_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra is named as pip wants it."""
    monkeypatch.setitem(sys.modules, "iotcore", None)
    with pytest.raises(StreamerError, match=r"pip install 'anomaly-streamer\[demo\]'"), broker(tmp_path, 0):
        pass


# --- The whole ---


@contextmanager
def demo(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """`streamer demo` as a person starts it; ended with the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", "streamer", "demo", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def account_of(output: str) -> list[int]:
    """injected, caught, missed, false alarms of the last line."""
    found = ACCOUNT.fullmatch(output.splitlines()[-1])
    assert found is not None, output
    return [int(number) for number in found.groups()]


def test_a_short_demo_stops_by_itself_and_its_account_agrees_with_its_exit_status() -> None:
    """Twenty seconds: faults come, the account adds up, the status tells whether one was caught, stderr stays empty.

    What is published meanwhile is by the published schemas.
    """
    port, heard = free_port(), StrictClient(MQTTProtocolVersion.MQTTv5)
    with demo("--seconds", "20", "--port", str(port)) as process:
        wait_until(lambda: answers(port), 20, "the broker")
        heard.connect(HOST, port)
        heard.subscribe("streamer/demo/#")
        heard.loop_start()
        output, complaints = process.communicate(timeout=60)
        heard.disconnect()
        heard.loop_stop()
    assert heard.complaints == []
    assert heard.documents["alarm"] >= output.count("ALARM")
    injected, caught, missed, _ = account_of(output)
    assert complaints == ""
    assert injected == caught + missed >= 1
    assert output.count("begins:") == injected
    assert process.returncode == (0 if caught else 1)
    assert re.search(r"scored +[\d,]+ readings/s of 55 series", output)


def test_with_json_the_account_is_all_that_is_on_standard_output() -> None:
    """What is told on the way goes to standard error."""
    with demo("--seconds", "3", "--json") as process:
        output, told = process.communicate(timeout=60)
    account = json.loads(output)
    assert list(account) == ["injected", "caught", "missed", "false_alarms"]
    assert list(account.values()) == account_of(told)
    assert process.returncode == (0 if account["caught"] else 1)


def test_interrupt_stops_the_demo_within_five_seconds_and_still_gives_the_account() -> None:
    """A Ctrl-C before any fault: nothing was caught, exit status 1, and no process is left."""
    port = free_port()
    with demo("--port", str(port)) as process:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        assert any(" scored " in line for line in lines)
        process.send_signal(signal.SIGINT)
        output, complaints = process.communicate(timeout=5)
    assert complaints == ""
    assert account_of(output) == [0, 0, 0, 0]
    assert process.returncode == 1
    assert not answers(port)


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    """Exit status 2 and one line that says which port, for the broker's and for the daemon's own."""
    with broker(tmp_path, 0) as taken:
        for option in ("--port", "--http-port"):
            with demo(option, str(taken), "--seconds", "5") as process:
                output, complaints = process.communicate(timeout=30)
            assert process.returncode == 2, (output, complaints)
            assert str(taken) in complaints
            assert "Traceback" not in complaints


@pytest.mark.long
def test_a_minute_catches_half_of_the_faults_with_fewer_false_alarms_than_that() -> None:
    """What `make demo SECONDS=60` promises."""
    with demo("--seconds", "60") as process:
        output, _ = process.communicate(timeout=120)
    injected, caught, _, false_alarms = account_of(output)
    assert process.returncode == 0
    assert injected >= 6, output
    assert 2 * caught >= injected, output
    assert false_alarms <= caught, output


def test_the_plants_words_survive_the_pipe() -> None:
    """Time and labels come out of JSON as they went in."""
    decoder = msgspec.json.Decoder(plant.Word)
    for word in (plant.Moment(START), Began(a_fault()), Ended(a_fault())):
        assert decoder.decode(msgspec.json.encode(word)) == word
