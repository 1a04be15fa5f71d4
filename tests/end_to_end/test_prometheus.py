"""The real daemon under a real Prometheus: a fault reaches a webhook, and no panel of a dashboard is empty."""

from __future__ import annotations

import http.server
import json
import math
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from paho.mqtt.client import Client

from tests.conftest import StartAlertmanager, StartBroker, StartPrometheus
from tests.end_to_end.daemon import SECONDS, Daemon, client, message, running, send
from tests.end_to_end.test_daemon import course
from tests.servers import HOST, Prometheus
from tests.waiting import wait_until

DEPLOY = Path(__file__).parent.parent.parent / "deploy"
RULES = [DEPLOY / "prometheus" / name for name in ("rules.yml", "grafana_anomaly.yml")]
DASHBOARDS = sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))
TOPIC, FIELD = "plant/oven", "temperature"
CALM, FAULT = 400, 60.0


class Plant:
    """One sensor, a reading whenever it is asked for one; after the calm comes a fault that stays."""

    def __init__(self, peer: Client) -> None:
        self._peer = peer
        self._sent = 0

    def report(self) -> None:
        value = course(CALM)[self._sent] if self._sent < CALM else FAULT
        self._peer.publish(TOPIC, message(self._sent, value), qos=1)
        self._sent += 1


@contextmanager
def plant_with_a_fault(mosquitto: StartBroker, folder: Path) -> Iterator[tuple[Daemon, Plant]]:
    """A daemon that knows the sensor; the next reading is the fault."""
    broker = mosquitto()
    with running(broker.port, folder, "state.snapshot_seconds=1") as daemon, client(broker) as peer:
        daemon.wait_ready()
        plant = Plant(peer)
        for _ in range(CALM):
            plant.report()
        send(peer, "plant/bad", "{")
        daemon.wait_settled(CALM + 1)
        yield daemon, plant


@contextmanager
def webhook() -> Iterator[tuple[int, list[Any]]]:
    """The port of a small server, and the JSON that was posted to it."""
    posted: list[Any] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: pytest shows what matters."""

    with http.server.ThreadingHTTPServer((HOST, 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port, posted
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.slow
def test_a_fault_on_mqtt_reaches_the_webhook(
    mosquitto: StartBroker, prometheus: StartPrometheus, alertmanager: StartAlertmanager, tmp_path: Path
) -> None:
    """Through the shipped rules and route, with names that a person can go by; before the fault nothing does."""
    with plant_with_a_fault(mosquitto, tmp_path) as (daemon, plant), webhook() as (port, posted):
        config = (DEPLOY / "prometheus" / "alertmanager.yml").read_text()
        changed = config.replace("127.0.0.1:8080", f"{HOST}:{port}").replace("group_wait: 30s", "group_wait: 0s")
        server = prometheus(
            target_port=daemon.http_port, rule_files=RULES, alertmanager_port=alertmanager(config=changed).port
        )
        wait_until(lambda: server.query("streamer:alarms_budget:per_day"), SECONDS, "the recordings")
        assert not server.query('ALERTS{alertstate="firing"}')  # some wait for the first scrapes

        def told() -> list[Any]:
            plant.report()
            return list(posted)

        (first, *_) = wait_until(told, SECONDS, "the webhook's call")
        (alert,) = first["alerts"]
        assert alert["status"] == "firing"
        assert alert["labels"]["alertname"] == "StreamerAnomaly"
        assert alert["labels"]["instance"] == f"{HOST}:{daemon.http_port}"
        assert f"{TOPIC} {FIELD} (" in alert["annotations"]["description"]
        bridged = f'anomaly:level{{anomaly_name="{TOPIC}#{FIELD}", anomaly_select="1"}} == {FAULT}'
        wait_until(lambda: server.query(bridged), SECONDS, "the fault under Grafana's name")


# --- Dashboards ---


def filled(expression: str) -> str:
    """With Grafana's own variables and the dashboards' as somebody has chosen them."""
    for name, value in {"__rate_interval": "5s", "instance": ".*", "topic": TOPIC, "field": FIELD}.items():
        expression = re.sub(rf"\$(?:{name}\b|{{{name}}})", value, expression)
    assert "$" not in expression
    return expression


def questions(path: Path) -> Iterator[tuple[str, str]]:
    """What each panel, variable and annotation of a dashboard asks, with its name."""
    dashboard = json.loads(path.read_text())
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            yield f"{path.stem}, {panel['title']}, {target['legendFormat']}", target["expr"]
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            found = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"])
            assert found, variable
            yield f"{path.stem}, variable {variable['name']}", f"group by ({found[2]}) ({found[1]})"
    for annotation in dashboard["annotations"]["list"]:
        yield f"{path.stem}, annotation {annotation['name']}", annotation["expr"]


def answers(server: Prometheus, expression: str) -> list[float]:
    """The largest value of each series that a panel would draw over the last two minutes, where it is a number."""
    found = [sample.value for sample in server.query(f"max_over_time(({filled(expression)})[2m:1s])")]
    return [value for value in found if not math.isnan(value)]


@pytest.mark.slow
def test_no_panel_is_empty(mosquitto: StartBroker, prometheus: StartPrometheus, tmp_path: Path) -> None:
    """Each query of the three dashboards has an answer while a sensor is at fault; and both accounts are even."""
    wanted = {name: expression for path in DASHBOARDS for name, expression in questions(path)}
    assert len(wanted) > 70
    with plant_with_a_fault(mosquitto, tmp_path) as (daemon, plant):
        server = prometheus(target_port=daemon.http_port, rule_files=RULES)
        command = [sys.executable, "-m", "streamer", "train", "--set", f"state.directory={tmp_path / 'state'}"]
        subprocess.run(command, check=True, capture_output=True, timeout=SECONDS)
        plant.report()
        wait_until(lambda: server.query(f"streamer_y == {FAULT}"), SECONDS, "a scrape of the fault")
        empty = set(wanted)

        def is_full() -> bool:
            plant.report()
            empty.difference_update(name for name in sorted(empty) if answers(server, wanted[name]))
            return not empty

        try:
            wait_until(is_full, 2 * SECONDS, "an answer to each query")
        except AssertionError:
            pytest.fail(f"empty: {sorted(empty)}")
        for name in ("Messages unaccounted for", "Readings unaccounted for"):
            assert answers(server, wanted[f"operations, {name}, {{{{instance}}}}"]) == [0.0]
