"""Publishes wide CSV files over MQTT, each as a device, at a multiple of their own speed; `--help` says how.

A row becomes one JSON message on PREFIX/<name of the file>, with its time in the payload; QoS 1.
"""

from __future__ import annotations

import argparse
import csv
import heapq
import json
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion

IN_FLIGHT = 200


def messages(path: Path, prefix: str) -> Iterator[tuple[float, str, bytes]]:
    """Seconds since the file's first row, topic, payload; an empty cell is left out."""
    with path.open(newline="") as file:
        first: float | None = None
        for row in csv.DictReader(file):
            at = float(row["time"])
            first = at if first is None else first
            fields = {name: float(cell) for name, cell in row.items() if name != "time" and cell}
            yield at - first, f"{prefix}/{path.stem}", json.dumps({"time": at, **fields}).encode()


def publish(files: list[Path], host: str, port: int, *, speed: float, prefix: str) -> int:
    """Sends everything in the order of time and waits until the broker has it; returns how many messages."""
    client = Client(CallbackAPIVersion.VERSION2)
    room = threading.Semaphore(IN_FLIGHT)
    client.on_publish = lambda *_: room.release()
    client.connect(host, port)
    client.loop_start()
    start, sent = time.monotonic(), 0
    pause = threading.Event()
    for offset, topic, payload in heapq.merge(*(messages(path, prefix) for path in files)):
        pause.wait(max(0.0, start + offset / speed - time.monotonic()))
        room.acquire()
        client.publish(topic, payload, qos=1)
        sent += 1
    for _ in range(IN_FLIGHT):
        room.acquire()
    client.disconnect()
    client.loop_stop()
    return sent


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.publish", description=__doc__)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=1883)
    parser.add_argument("--speed", type=float, default=1.0)
    parser.add_argument("--prefix", default="replayed")
    given = parser.parse_args()
    count = publish(given.files, given.host, given.port, speed=given.speed, prefix=given.prefix)
    sys.stdout.write(f"{count} messages published\n")
