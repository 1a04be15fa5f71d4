"""What a SIGKILL costs mosquitto, and what its persistence costs: `python -m tests.bench.broker [--kills N]`.

A session is away, a sensor publishes at QoS 1, the broker is killed at a random moment and started again. Printed is
how much of what it had confirmed is gone, and how fast it confirms with many retained messages.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

from streamer.probe import Access, Probe
from tests.servers import Broker, start_broker

SETTINGS = {
    "mosquitto's default (autosave_interval 1800)": ["autosave_interval 1800"],
    "autosave_interval 1": ["autosave_interval 1"],
    "autosave_interval 1, autosave_on_changes true": ["autosave_interval 1", "autosave_on_changes true"],
}
PER_SECOND = 200


def access(broker: Broker) -> Access:
    return Access("127.0.0.1", broker.port)


def away(broker: Broker) -> Probe:
    return Probe(access(broker), "away", "5", session_expiry_seconds=3600, is_clean=False)


def start(folder: Path, lines: list[str]) -> Broker:
    everything = ["max_queued_messages 0", *lines]
    return start_broker(Path(tempfile.mkdtemp(dir=folder)), lines=everything)


def lost(folder: Path, lines: list[str], choose: random.Random, *, flat_out: bool) -> tuple[int, int, bool]:
    """Confirmed messages, how many of them a kill has cost, and whether the session is still there."""
    broker = start(folder, lines)
    with away(broker) as probe:
        probe.subscribe("t", 1)
    confirmed: list[bytes] = []
    with Probe(access(broker), "sensor", "5") as sensor:
        began = time.monotonic()
        end = began + 2.0 + choose.uniform(0.0, 2.0)
        while (now := time.monotonic()) < end:
            batch = [b"%d" % (len(confirmed) + i) for i in range(20 if flat_out else 1)]
            sensor.publish_all("t", batch)
            confirmed += batch
            if not flat_out:
                sensor.wait(lambda: False, began + len(confirmed) / PER_SECOND - now)
        broker.kill()
    broker.start()
    with away(broker) as probe:
        is_present = probe.is_session_present
        probe.collect(len(confirmed), 2.0)
        arrived = set(probe.payloads("t"))
    broker.stop()
    return len(confirmed), len(set(confirmed) - arrived), is_present


def confirmed_a_second(folder: Path, lines: list[str], retained: int) -> float:
    """How fast messages for a session that is away are confirmed by a broker that holds so many retained ones.

    The probe itself reaches some 550, with 20 on the way.
    """
    broker = start(folder, ["autosave_interval 1800"])
    with Probe(access(broker), "filler", "5") as filler:
        for number in range(retained):
            filler.publish(f"r/{number}", b"x" * 100, qos=0, retain=True)
        filler.publish_all("end", [b""])
    broker.stop()  # saves
    config = broker.directory / "mosquitto.conf"
    config.write_text(config.read_text().replace("autosave_interval 1800", "\n".join(lines)))
    broker.start()
    with away(broker) as probe:
        probe.subscribe("t", 1)
    count = 0
    with Probe(access(broker), "sensor", "5") as sensor:
        began = time.monotonic()
        while (seconds := time.monotonic() - began) < 5.0:
            count += len(sensor.publish_all("t", [b"x" * 100] * 20))
    broker.kill()
    return count / seconds


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.broker", description=__doc__)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name, lines in SETTINGS.items():
            measure(Path(folder), name, lines, given.kills, random.Random(given.seed))


def measure(folder: Path, name: str, lines: list[str], kills: int, choose: random.Random) -> None:
    for flat_out in (False, True):
        speed = "20 at a time" if flat_out else f"{PER_SECOND} a second"
        for _ in range(kills):
            count, gone, is_present = lost(folder, lines, choose, flat_out=flat_out)
            session = "kept" if is_present else "lost"
            sys.stdout.write(f"{name}; {speed}: confirmed {count}, gone {gone}, session {session}\n")
    for retained in (0, 2_000, 20_000):
        speed = f"{confirmed_a_second(folder, lines, retained):.0f} confirmed a second"
        sys.stdout.write(f"{name}; {retained} retained: {speed}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
