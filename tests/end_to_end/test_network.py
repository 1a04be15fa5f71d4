"""The real daemon behind a network that fails and a broker that dies: back in time, nothing lost, nothing doubled."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.conftest import StartBroker
from tests.end_to_end.daemon import SECONDS
from tests.end_to_end.ledger import KEEPS_ALL
from tests.end_to_end.scene import delivered, scene
from tests.proxy import Proxy
from tests.waiting import wait_until

SLOW_COMMITS = "journal.commit_ms=500"  # so that acknowledgements are owed when a connection ends
KEEP_ALIVE_SECONDS = {"quick": 5, "as shipped": 30}
SETTINGS = {
    "quick": (
        SLOW_COMMITS,
        "mqtt.keep_alive_seconds=5",
        "mqtt.connect_timeout_seconds=1",
        "mqtt.reconnect_min_seconds=0.1",
        "mqtt.reconnect_max_seconds=1",
    ),
    "as shipped": (SLOW_COMMITS,),
}
PACES = ["quick", pytest.param("as shipped", marks=[pytest.mark.long, pytest.mark.timeout(600)])]


def report(pace: str, fault: str, **seconds: float) -> None:
    """The figures of docs/reliability.md, which `-s` shows."""
    figures = ", ".join(f"{name} {value:.1f} s" for name, value in seconds.items())
    print(f"\n{fault}, {pace}: {figures}")  # noqa: T201


def is_past(moment: float) -> bool:
    return time.monotonic() >= moment


def wait_for(seconds: float) -> None:
    """An outage lasts so long."""
    wait_until(partial(is_past, time.monotonic() + seconds), seconds + SECONDS, "the end of the outage")


# --- Faults ---


@pytest.mark.parametrize("pace", PACES)
def test_a_half_open_connection(mosquitto: StartBroker, tmp_path: Path, pace: str) -> None:
    """Noticed within two keep-alives, and all is taken in time after it heals."""
    keep_alive = KEEP_ALIVE_SECONDS[pace]
    with scene(mosquitto(lines=KEEPS_ALL), tmp_path, *SETTINGS[pace]) as on:
        on.ledger.publish(300)
        on.wait_delivered(50)
        on.proxy.blackhole()
        began = time.monotonic()
        on.ledger.publish(300)
        wait_until(lambda: on.daemon.get("/-/ready")[0] == 503, 3 * keep_alive, "not ready")
        noticed = time.monotonic() - began
        wait_for(keep_alive / 2)  # attempts are in vain
        on.proxy.heal()
        back = on.wait_taken(time.monotonic())
        report(pace, "half-open", noticed=noticed, back=back)
        assert noticed <= 2 * keep_alive
        on.end()


@pytest.mark.parametrize("pace", PACES)
def test_a_broker_that_is_restarted(mosquitto: StartBroker, tmp_path: Path, pace: str) -> None:
    """However long it was away, and with all that it kept."""
    with scene(mosquitto(lines=KEEPS_ALL), tmp_path, *SETTINGS[pace]) as on:
        on.proxy.throttle(20_000)
        on.ledger.publish(1000)
        on.wait_delivered(50)
        on.ledger.wait_published()
        on.broker.stop()
        on.proxy.reset()
        on.proxy.heal()
        wait_until(lambda: on.daemon.get("/-/ready")[0] == 503, SECONDS, "not ready")
        wait_for(2 if pace == "quick" else 150)  # until its attempts are as rare as they get
        healed_at = time.monotonic()
        on.broker.start()
        report(pace, "broker restarted", back=on.wait_taken(healed_at))
        on.end()


def test_a_broker_that_is_killed_and_has_lost_the_session(mosquitto: StartBroker, tmp_path: Path) -> None:
    """What it lost is lost; identifiers begin anew, and no acknowledgement of the old ones is sent."""
    with scene(mosquitto(lines=KEEPS_ALL), tmp_path, *SETTINGS["quick"]) as on:
        on.proxy.throttle(20_000)
        on.ledger.publish(1000)
        on.wait_delivered(50)
        on.ledger.wait_published()
        on.wait_owing()
        on.broker.kill()
        on.proxy.reset()
        on.proxy.heal()
        wait_until(lambda: on.daemon.get("/-/ready")[0] == 503, SECONDS, "not ready")
        lost = set(range(on.ledger.sent)) - delivered(on.proxy)
        assert lost
        healed_at = time.monotonic()
        on.broker.start()
        on.daemon.wait_ready()  # what comes before it has subscribed, a broker without the session gives to nobody
        on.ledger.publish(300)
        report("quick", "broker killed", back=on.wait_taken(healed_at, lost))
        assert on.daemon.numbers()["mqtt_stale_acknowledgements_total", ""] > 0
        on.end(lost)


def test_connections_that_are_reset(mosquitto: StartBroker, tmp_path: Path) -> None:
    """Again and again, each time with acknowledgements owed: those are not sent on the next connection."""
    with scene(mosquitto(lines=KEEPS_ALL), tmp_path, *SETTINGS["quick"]) as on:
        for resets in range(1, 6):
            on.ledger.publish(200)
            on.wait_delivered(on.ledger.sent - 100)
            on.proxy.reset()
            healed_at = time.monotonic()
            wait_until(partial(on.has_reconnected, resets), SECONDS, "another connection")
            on.daemon.wait_ready()
        report("quick", "reset", back=on.wait_taken(healed_at))
        assert on.daemon.numbers()["mqtt_stale_acknowledgements_total", ""] > 0
        on.end()


def slices(proxy: Proxy) -> None:
    """Of one byte."""
    proxy.slice(1)


def throttle(proxy: Proxy) -> None:
    proxy.throttle(10_000)


@pytest.mark.parametrize("fault", [slices, throttle])
def test_a_network_that_is_slow(mosquitto: StartBroker, tmp_path: Path, fault: Callable[[Proxy], None]) -> None:
    """Slow is not broken: the connection stays, and all comes through it."""
    with scene(mosquitto(lines=KEEPS_ALL), tmp_path, *SETTINGS["quick"]) as on:
        fault(on.proxy)
        on.ledger.publish(500)
        report("quick", fault.__name__, back=on.wait_taken(time.monotonic()))
        assert on.daemon.numbers()["mqtt_reconnects_total", ""] == 0
        on.end()
