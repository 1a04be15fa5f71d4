"""The test servers do what the other tests take for granted."""

from __future__ import annotations

import contextlib
import http.server
import os
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from tests.conftest import StartBroker, StartPrometheus
from tests.servers import HOST, Broker, Certificates, answers
from tests.waiting import wait_until


def new_client() -> paho.Client:
    return paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)


@contextlib.contextmanager
def connected(client: paho.Client, broker: Broker) -> Iterator[None]:
    """The network thread runs inside."""
    client.connect(broker.host, broker.port)
    client.loop_start()
    try:
        yield
    finally:
        client.disconnect()
        client.loop_stop()


def verdict(
    broker: Broker,
    user: str | None = None,
    password: str = "",
    tls: Certificates | None = None,
    with_certificate: bool = False,
) -> str:
    """The broker's answer to CONNECT."""
    answers: list[str] = []
    client = new_client()
    client.on_connect = lambda _client, _userdata, _flags, reason, _properties: answers.append(str(reason))
    if user is not None:
        client.username_pw_set(user, password)
    if tls is not None:
        identity = (str(tls.client_cert), str(tls.client_key)) if with_certificate else (None, None)
        client.tls_set(str(tls.ca), *identity)
    with connected(client, broker):
        return wait_until(lambda: answers, 10, "CONNACK")[0]


def retained(broker: Broker, topic: str) -> bytes:
    """The retained message of a topic."""
    payloads: list[bytes] = []
    client = new_client()
    client.on_message = lambda _client, _userdata, message: payloads.append(bytes(message.payload))
    client.on_connect = lambda client, *_rest: client.subscribe(topic)
    with connected(client, broker):
        return wait_until(lambda: payloads, 10, f"the retained message of {topic}")[0]


def test_a_broker_keeps_retained_messages_over_a_restart(mosquitto: StartBroker) -> None:
    """The same port serves again and knows what it knew."""
    broker = mosquitto()
    client = new_client()
    with connected(client, broker):
        client.publish("plant/state", b"on", qos=1, retain=True).wait_for_publish(10)
    broker.restart()
    assert retained(broker, "plant/state") == b"on"


def test_a_stopped_or_killed_broker_refuses_connections(mosquitto: StartBroker) -> None:
    """`stop` and `kill` end the process; `start` brings it back."""
    broker = mosquitto()
    broker.kill()
    assert not answers(broker.port)
    broker.start()
    assert answers(broker.port)
    broker.stop()
    assert not answers(broker.port)
    assert broker.pid is None


def test_a_broker_with_users_asks_for_the_password(mosquitto: StartBroker) -> None:
    """The right password enters, a wrong one and none do not; `reload` takes up a changed one."""
    broker = mosquitto(users={"ann": "secret"}, acl="user ann\ntopic readwrite plant/#\n")
    assert verdict(broker) == "Not authorized"
    assert verdict(broker, "ann", "wrong") == "Not authorized"
    assert verdict(broker, "ann", "secret") == "Success"
    broker.set_users({"ann": "changed"})
    broker.reload()
    wait_until(lambda: verdict(broker, "ann", "changed") == "Success", 10, "the new password to count")


def test_a_broker_over_tls_is_known_by_its_own_authority_only(
    mosquitto: StartBroker, certificates: Certificates
) -> None:
    """A client that trusts the authority connects; one that trusts another refuses the broker."""
    broker = mosquitto(tls=certificates)
    assert verdict(broker, tls=certificates) == "Success"
    stranger = ssl.create_default_context(cafile=certificates.other_ca)
    with (
        socket.create_connection((broker.host, broker.port)) as connection,
        pytest.raises(ssl.SSLCertVerificationError),
    ):
        stranger.wrap_socket(connection, server_hostname="localhost")


def test_a_broker_can_want_a_client_certificate(mosquitto: StartBroker, certificates: Certificates) -> None:
    """With the client certificate of the same authority the connection stands."""
    broker = mosquitto(tls=certificates, require_client_certificate=True)
    assert verdict(broker, tls=certificates, with_certificate=True) == "Success"


class OneMetric(http.server.BaseHTTPRequestHandler):
    """Serves one gauge."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.end_headers()
        self.wfile.write(b'answer{of="everything"} 42\n')

    def log_message(self, *_arguments: object) -> None:
        """Quiet."""


def test_prometheus_scrapes_and_answers_queries(prometheus: StartPrometheus) -> None:
    """What a port exports can be queried with its labels."""
    with http.server.ThreadingHTTPServer((HOST, 0), OneMetric) as exporter:
        threading.Thread(target=exporter.serve_forever, daemon=True).start()
        server = prometheus(target_port=exporter.server_port)
        sample = wait_until(lambda: server.query("answer"), 15, "the first scrape")[0]
        server.stop()
        exporter.shutdown()
    assert sample.value == 42
    assert sample.labels["of"] == "everything"


@pytest.mark.parametrize(("ci", "outcome"), [("", "1 skipped"), ("true", "1 error")])
def test_an_absent_server_is_loud_and_fails_under_ci(tmp_path: Path, ci: str, outcome: str) -> None:
    """Skipped with the reason and a section of its own; a failure where CI=true."""
    (tmp_path / "test_it.py").write_text(
        "import pytest\n@pytest.mark.server('no-such-server')\ndef test_it(): pass\n", encoding="utf-8"
    )
    repository = Path(__file__).parent.parent
    settings = ["-p", "tests.conftest", "-c", "pyproject.toml", "--rootdir", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *settings, str(tmp_path / "test_it.py")],
        cwd=repository,
        env={**os.environ, "CI": ci},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "ABSENT: not everything was tested" in done.stdout
    assert "no-such-server: 1 tests did not run; apt-get install" in done.stdout
    assert outcome in done.stdout.splitlines()[-1]
    assert done.returncode == (1 if ci else 0)
