"""The page of the real daemon, as its settings make it."""

from __future__ import annotations

import base64
import contextlib
import http.client
import signal
import ssl
import subprocess
import time
from http.client import HTTPResponse
from pathlib import Path

import pytest

from tests.conftest import StartBroker
from tests.end_to_end.daemon import STREAMER, client, message, running, send
from tests.servers import HOST, Certificates
from tests.waiting import wait_until

pytestmark = [pytest.mark.server("mosquitto"), pytest.mark.slow]


def basic(password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"ann:{password}".encode()).decode()}


def ask(context: ssl.SSLContext, port: int, path: str, password: str = "") -> tuple[int, bytes]:
    """Status and body; 0 while nobody answers."""
    connection = http.client.HTTPSConnection(HOST, port, timeout=5, context=context)
    headers = basic(password) if password else {}
    with contextlib.closing(connection), contextlib.suppress(OSError):
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        return response.status, response.read()
    return 0, b""


def follow(context: ssl.SSLContext, port: int, password: str) -> tuple[http.client.HTTPSConnection, HTTPResponse]:
    """An open page, to which the first events have come."""
    connection = http.client.HTTPSConnection(HOST, port, timeout=10, context=context)
    connection.request("GET", "/api/events", headers=basic(password))
    events = connection.getresponse()
    wait_until(lambda: events.readline().startswith(b"event: health"), 10, "the first events")
    return connection, events


def test_the_settings_lock_it_and_a_page_that_is_open_does_not_hold_up_the_end(
    tmp_path: Path, mosquitto: StartBroker, certificates: Certificates
) -> None:
    """https, a password for all but health, another by SIGHUP, a reading in the list; exit 0 within five seconds."""
    context = ssl.create_default_context(cafile=str(certificates.ca))
    password = tmp_path / "password"
    password.write_text("old\n")
    locked = [
        "http.tls.enabled=true",
        f"http.tls.cert_file={certificates.server_cert}",
        f"http.tls.key_file={certificates.server_key}",
        "http.username=ann",
        f"http.password_file={password}",
    ]
    broker = mosquitto()
    with running(broker.port, tmp_path, *locked) as daemon:
        port = daemon.http_port
        wait_until(lambda: ask(context, port, "/-/ready")[0] == 200, 20, "ready")
        overrides = [word for setting in (*locked, f"http.port={port}") for word in ("--set", setting)]
        health = subprocess.run([*STREAMER, "health", *overrides], capture_output=True, text=True, check=False)
        assert (health.returncode, health.stdout) == (0, "ok\n"), health.stderr
        for path in ("/", "/api/series", "/metrics"):
            assert ask(context, port, path)[0] == 401
            assert ask(context, port, path, "old")[0] == 200
        assert daemon.get("/-/healthy") == (0, "")  # not by http
        with client(broker) as sensor:
            send(sensor, "plant/a", message(0, 21.5))
        wait_until(lambda: b"plant/a#temperature" in ask(context, port, "/api/series", "old")[1], 10, "the reading")
        followed, old_events = follow(context, port, "old")
        password.write_text("new\n")
        daemon.process.send_signal(signal.SIGHUP)
        wait_until(lambda: ask(context, port, "/", "new")[0] == 200, 10, "the new password")
        assert ask(context, port, "/", "old")[0] == 401
        wait_until(lambda: not old_events.readline(), 10, "the end of what was followed under the old password")
        followed.close()
        connection, _ = follow(context, port, "new")
        began = time.monotonic()
        assert daemon.stop() == 0
        assert time.monotonic() - began < 5
        connection.close()
