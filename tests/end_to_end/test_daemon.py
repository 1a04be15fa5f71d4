"""The real daemon behind a real mosquitto: scores, alarms, counters, signals, state."""

from __future__ import annotations

import json
import math
import random
import signal
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from paho.mqtt.client import MQTTMessage

from models import weights
from streamer import snapshot
from streamer.recovery import DIGEST, MID
from streamer.registry import Registry
from streamer.replay import replay
from streamer.shard import Shard
from tests.conftest import StartBroker
from tests.end_to_end.daemon import START, client, message, running, send
from tests.scrapes import total
from tests.waiting import wait_until


def course(n: int, seed: int = 1) -> list[float]:
    """A calm sensor: a slow wave and a little noise."""
    rng = random.Random(seed)
    return [20 + 3 * math.sin(k / 30) + rng.gauss(0, 0.1) for k in range(n)]


def test_a_fault_becomes_one_alarm_and_every_message_is_accounted_for(mosquitto: StartBroker, tmp_path: Path) -> None:
    """From a payload to an alarm event, a retained state and counters that add up at every scrape."""
    broker = mosquitto()
    heard: list[MQTTMessage] = []
    with running(broker.port, tmp_path) as daemon, client(broker) as peer:
        daemon.wait_ready()
        peer.on_message = lambda _client, _data, got: heard.append(got)
        peer.subscribe("streamer/#", qos=1)
        values = course(420)
        values[400:405] = [60.0] * 5
        for k, value in enumerate(values):
            peer.publish("plant/oven", message(k, value), qos=1)
            if k % 50 == 0:
                daemon.numbers()
        for bad in ("", "{", '{"a": 1e999}', "no number", b"\xff\xfe"):
            send(peer, "plant/bad", bad)
        numbers = daemon.wait_settled(425)
        assert numbers["messages_decoded_total", ""] == 420
        assert total(numbers, "messages_rejected_total") == 5
        assert numbers["messages_retained_total", ""] == 0
        assert numbers["readings_unscored_total", "warming"] == 20
        assert numbers["readings_scored_total", ""] == 400
        assert numbers["alarms_opened_total", "value"] == 1
        events = wait_until(
            lambda: [json.loads(m.payload) for m in heard if "/alarm/" in m.topic], 10, "an alarm event"
        )
        assert events[0]["event"] == "opened"
        assert events[0]["key"] == "plant/oven#temperature"
        assert events[0]["direction"] == "above"
        assert events[0]["opened_at"] == START + 60 * 400
        assert {event["id"] for event in events} == {events[0]["id"]}
        state = "streamer/default/series/plant/oven%23temperature"
        wait_until(lambda: any(m.topic == state and m.payload for m in heard), 10, "the state of the series")
        assert any(m.topic == "streamer/default/status" and m.payload == b"online" for m in heard)
        assert daemon.stop() == 0
        wait_until(lambda: any(m.payload == b"offline" for m in heard), 10, "the word offline")


def test_it_waits_for_a_broker_and_keeps_its_state_over_a_restart(mosquitto: StartBroker, tmp_path: Path) -> None:
    """Live but not ready without a broker; ready when it appears; what is known survives a restart."""
    broker = mosquitto()
    broker.stop()
    with running(broker.port, tmp_path, "mqtt.reconnect_max_seconds=1") as daemon:
        wait_until(lambda: daemon.get("/-/healthy")[0] == 200, 20, "healthy")
        assert daemon.get("/-/ready")[0] == 503
        broker.start()
        daemon.wait_ready()
        assert daemon.numbers()["state_restored", ""] == 0
        with client(broker) as peer:
            for k, value in enumerate(course(30)):
                send(peer, "plant/oven", message(k, value))
        daemon.wait_settled(30)
        assert daemon.stop() == 0
    with running(broker.port, tmp_path) as daemon:
        daemon.wait_ready()
        with client(broker) as peer:
            send(peer, "plant/oven", message(30, 20.0))
            send(peer, "streamer/default/alarm/x", "21.5")
        numbers = daemon.wait_settled(2)
        assert numbers["state_restored", ""] == 1
        assert numbers["readings_scored_total", ""] == 1
        assert daemon.stop() == 0


def test_a_file_replayed_and_published_gives_the_same_scores(mosquitto: StartBroker, tmp_path: Path) -> None:
    """However the readings come and are cut into turns: scores and all that the detector has learned, to 1e-6."""
    broker = mosquitto()
    names = ("inlet", "outlet", "flow")
    rows = list(zip(*(course(200, seed) for seed in range(3)), strict=True))
    rows[150] = (90.0, *rows[150][1:])
    recording = tmp_path / "recording.csv"
    with recording.open("w") as file:
        file.write(f"time,{','.join(names)}\n")
        file.writelines(f"{START + 60 * k},{','.join(map(repr, row))}\n" for k, row in enumerate(rows))
    replayed = Shard(Registry(8, math.inf, math.inf), weights.load(), 8, budget_per_series_month=1.0)
    with (tmp_path / "scores.csv").open("w+") as output:
        replay([recording], replayed, [output], device_score=False)
        output.seek(0)
        written = {line.split(",")[1]: line.split(",")[-2] for line in output}  # the last score of each series
    wanted = replayed.export().arrays

    heard: dict[str, float | None] = {}
    with running(broker.port, tmp_path, "alarms.publish_series=all") as daemon, client(broker) as peer:
        daemon.wait_ready()
        peer.on_message = lambda _client, _data, got: heard.update(
            {got.topic.rpartition("%23")[2]: json.loads(got.payload or b'{"score": null}')["score"]}
        )
        peer.subscribe("streamer/default/series/#", qos=1)
        for k, row in enumerate(rows):
            peer.publish("plant/oven", json.dumps({"time": START + 60 * k} | dict(zip(names, row, strict=True))), qos=1)
        daemon.wait_settled(200)
        last = pytest.approx({name: float(written[name]) for name in names}, abs=1e-6)
        wait_until(lambda: heard == last, 10, f"the scores {written}")
        assert daemon.stop() == 0
    found = snapshot.read_newest(tmp_path / "state").snapshot
    assert found is not None
    assert found.arrays.keys() - {MID, DIGEST} == wanted.keys()
    for name in wanted.keys() - {"cadence", "between"}:  # these go by arrival
        np.testing.assert_allclose(
            found.arrays[name].astype(float), wanted[name].astype(float), rtol=1e-5, atol=1e-5, err_msg=name
        )


def test_sighup_applies_what_it_can_and_names_the_rest(mosquitto: StartBroker, tmp_path: Path) -> None:
    """A changed budget holds at once; a keep-alive waits for a restart and is named; nonsense changes nothing."""
    broker = mosquitto()
    config = tmp_path / "streamer.toml"
    config.write_text("[alarms]\nbudget_per_series_month = 1.0\n")
    with running(broker.port, tmp_path, config=config) as daemon:
        daemon.wait_ready()
        config.write_text("[alarms]\nbudget_per_series_month = 3.0\n[mqtt]\nkeep_alive_seconds = 77\n")
        daemon.process.send_signal(signal.SIGHUP)
        daemon.wait_log("settings need a restart")
        assert "settings=mqtt.keep_alive_seconds" in daemon.log()
        daemon.wait_log("applied=alarms.budget_per_series_month")
        wait_until(lambda: daemon.numbers()["alarm_budget_per_series_month", ""] == 3.0, 5, "the new budget")
        config.write_text("[alarms]\nbudget = 5.0\n")
        daemon.process.send_signal(signal.SIGHUP)
        daemon.wait_log("settings refused, the old ones stay")
        assert daemon.numbers()["alarm_budget_per_series_month", ""] == 3.0
        assert daemon.stop() == 0


def is_past(moment: float) -> bool:
    return time.monotonic() > moment


def test_a_pause_of_the_process_is_no_signal_to_stop(mosquitto: StartBroker, tmp_path: Path) -> None:
    """Stopped and continued as by Ctrl-Z or a debugger, it goes on, and ends with 0 when it is told to."""
    broker = mosquitto()
    with running(broker.port, tmp_path) as daemon:
        daemon.wait_ready()
        for _ in range(3):
            daemon.process.send_signal(signal.SIGSTOP)
            over_at = time.monotonic() + 1.3  # longer than the daemon waits for a signal
            wait_until(partial(is_past, over_at), 5, "the end of the pause")
            daemon.process.send_signal(signal.SIGCONT)
            daemon.wait_ready()
        assert daemon.process.poll() is None, daemon.log()
        assert "stopping" not in daemon.log()
        assert daemon.stop() == 0


def test_signals_in_quick_succession_do_not_kill_it(mosquitto: StartBroker, tmp_path: Path) -> None:
    """Also those that come while it starts, or while it is busy with the one before."""
    broker = mosquitto()
    with running(broker.port, tmp_path) as daemon:
        daemon.wait_log("started")
        for _ in range(200):
            daemon.process.send_signal(signal.SIGHUP)
        daemon.wait_log("settings read again")
        daemon.wait_ready()
        for _ in range(10):
            daemon.process.send_signal(signal.SIGTERM)
        assert daemon.stop() == 0
        daemon.wait_log("stopped drained=true")


def test_counters_add_up_at_every_scrape_under_load(mosquitto: StartBroker, tmp_path: Path) -> None:
    """Scraped as fast as it goes while thousands of messages of every kind come in."""
    broker = mosquitto()
    in_an_hour = json.dumps({"time": time.time() + 3600, "t": 1}).encode()
    payloads = (b"21.5", b'{"t": 20, "h": 1e999}', b"garbage", in_an_hour, b"\xff", b"[]")
    with running(broker.port, tmp_path, 'input.exclude=["private/**"]') as daemon, client(broker) as peer:
        daemon.wait_ready()
        sent = 12_000

        def publish() -> None:
            for k in range(sent):
                peer.publish(f"{'private' if k % 7 == 0 else 'plant'}/{k % 40}", payloads[k % len(payloads)], qos=0)

        publisher = threading.Thread(target=publish)
        publisher.start()
        scrapes = 0
        while not daemon.settled(sent):  # each look is a scrape whose sums have been checked
            scrapes += 1
            assert scrapes < 5000
        publisher.join()
        numbers = daemon.numbers()
        assert scrapes > 5
        assert numbers["messages_ignored_total", ""] == len(range(0, sent, 7))
        assert numbers["readings_rejected_total", "not_finite"] > 0
        assert numbers["readings_rejected_total", "future"] > 0
        assert daemon.stop() == 0


@pytest.mark.parametrize(("protocol", "delivered"), [("5", 0), ("3.1.1", 1)])
def test_what_the_broker_kept_and_what_the_daemon_said_itself_is_no_reading(
    mosquitto: StartBroker, tmp_path: Path, protocol: str, delivered: int
) -> None:
    """MQTT 5 can ask for no retained messages, else they are counted; no instance's verdicts are an input."""
    broker = mosquitto()
    with client(broker) as peer:
        send(peer, "plant/old", "21.5", retain=True)
        with running(broker.port, tmp_path, f"mqtt.protocol={protocol}") as daemon:
            daemon.wait_ready()
            daemon.wait_settled(delivered)
            send(peer, "streamer/default/alarm/plant/x", "21.5")
            send(peer, "streamer/other/series/plant/x", "21.5")
            send(peer, "streamer/plant/x", "21.5")
            send(peer, "plant/new", "21.5", retain=True)
            wait_until(lambda: daemon.numbers()["messages_decoded_total", ""] == 2, 10, "both readings")
            numbers = daemon.numbers()
            assert numbers["messages_retained_total", ""] == delivered
            assert numbers["messages_ignored_total", ""] >= 2
            assert numbers["readings_decoded_total", ""] == 2
            wait_until(lambda: daemon.numbers()["series", ""] == 2, 10, "two series")


def test_a_topic_that_is_no_longer_subscribed_to_does_not_come_any_more(mosquitto: StartBroker, tmp_path: Path) -> None:
    """The broker's session outlives the setting; a daemon that cannot remember says so and goes on."""
    broker = mosquitto()
    with running(broker.port, tmp_path, 'mqtt.subscribe=["old/#","plant/#"]') as daemon, client(broker) as peer:
        daemon.wait_ready()
        send(peer, "old/x", "1")
        daemon.wait_settled(1)
        assert daemon.stop() == 0
    with running(broker.port, tmp_path, 'mqtt.subscribe=["plant/#"]') as daemon, client(broker) as peer:
        daemon.wait_ready()
        send(peer, "old/x", "2")
        send(peer, "plant/x", "3")
        daemon.wait_settled(1)
        assert daemon.numbers()["messages_received_total", ""] == 1
        assert daemon.stop() == 0
    remembered = tmp_path / "state" / "filters.json"
    remembered.unlink()
    remembered.mkdir()
    with running(broker.port, tmp_path) as daemon:
        daemon.wait_ready()
        daemon.wait_log("not written file=filters.json")
