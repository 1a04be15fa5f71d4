"""What receiving costs: `python -m tests.bench.receive [--messages N] [--mosquitto]`, one JSON object to stdout.

A sender in a process of its own pushes PUBLISHes over loopback as fast as TCP takes them, directly or through a real
mosquitto. Compared are the fast way, the link by paho's own reading, and stock paho with an empty callback, by the CPU
time of this process. Every message of QoS 1 is acknowledged.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from streamer.clock import SystemClock
from streamer.mqtt import MqttLink
from streamer.readings import Message
from tests.fake_broker import FakeBroker, Peer, publish
from tests.servers import start_broker
from tests.waiting import wait_until

TOPICS = 1_000
WINDOW = 500  # publishes that the sender has unconfirmed at mosquitto
SECONDS = 120.0


def packets(count: int, qos: int, properties: bytes) -> list[bytes]:
    """JSON readings of a thousand sensors."""
    return [
        publish(
            f"plant/line-{n % TOPICS // 100}/sensor-{n % TOPICS}/reading",
            b'{"value": %d.%02d, "ts": 1700000%03d}' % (n % 90 + 10, n % 97, n % 1_000),
            qos=qos,
            mid=n % 65_535 + 1,
            properties=properties,
        )
        for n in range(count)
    ]


def serve(pipe: Connection, count: int, qos: int) -> None:
    """A broker that never limits: it sends everything at once, after the subscription, and reads without looking."""

    go = threading.Event()
    by_level = {level: b"".join(packets(count, qos, none)) for level, none in ((5, b"\x00"), (4, b""))}

    def behave(peer: Peer) -> None:
        peer.welcome()
        reading = threading.Thread(target=drain, args=[peer.sock], daemon=True)
        reading.start()
        go.wait()
        peer.send(by_level[peer.level])
        reading.join()

    with FakeBroker(behave) as fake:
        pipe.send(fake.port)
        pipe.recv()
        go.set()
        pipe.recv()


def drain(sock: socket.socket) -> None:
    while sock.recv(1 << 20):
        pass


def send_to(pipe: Connection, port: int, count: int, qos: int) -> None:
    """Publish through a real broker, at QoS 1 with a window."""
    sock = socket.create_connection(("127.0.0.1", port))
    sock.sendall(b"\x10\x10\x00\x04MQTT\x04\x02\x00\x3c\x00\x04load")
    sock.recv(4)
    everything = packets(count, qos, b"")
    pipe.send(port)
    pipe.recv()
    unread = 0
    for start in range(0, count, WINDOW):
        sock.sendall(b"".join(everything[start : start + WINDOW]))
        unread += 4 * WINDOW if qos else 0
        while unread > 0:
            unread -= len(sock.recv(unread))
    pipe.recv()
    sock.close()


class Count:
    """Counts to a number."""

    def __init__(self, wanted: int) -> None:
        self.wanted = wanted
        self.have = 0
        self.reached = threading.Event()

    def add(self, count: int) -> None:
        self.have += count
        if self.have >= self.wanted:
            self.reached.set()


def by_link(port: int, count: Count, qos: int, protocol: str, *, fast: bool, linger: float) -> Callable[[], object]:
    """Receive by our link; gives how to stop it."""

    def deliver(messages: list[Message]) -> None:
        count.add(len(messages))
        link.ack(messages)

    link = MqttLink(
        host="127.0.0.1",
        port=port,
        instance="bench",
        client_id="bench",
        filters=["plant/#"],
        deliver=deliver,
        clock=SystemClock(),
        protocol=protocol,
        qos=qos,
        fast=fast,
        linger_seconds=linger,
        session_expiry_seconds=0,
    )
    link.start()
    wait_until(lambda: link.status().subscribed, 10.0, "the subscription")
    return lambda: link.stop(1.0)


def by_paho(port: int, count: Count, qos: int, protocol: str) -> Callable[[], object]:
    """Receive by paho as its documentation shows; gives how to stop it."""
    version = MQTTProtocolVersion.MQTTv5 if protocol == "5" else MQTTProtocolVersion.MQTTv311
    client = Client(CallbackAPIVersion.VERSION2, "bench", protocol=version)
    subscribed = threading.Event()
    client.on_message = lambda _client, _userdata, _message: count.add(1)
    client.on_subscribe = lambda *_: subscribed.set()
    client.connect("127.0.0.1", port)
    client.subscribe("plant/#", qos)
    client.loop_start()
    subscribed.wait(10.0)

    def stop() -> None:
        client.disconnect()
        client.loop_stop()

    return stop


def measure(way: str, count: int, qos: int, protocol: str, mosquitto: bool) -> dict[str, float]:
    """Microseconds of CPU per message, and messages a second."""
    context = multiprocessing.get_context("spawn")
    pipe, end = context.Pipe()
    with tempfile.TemporaryDirectory() as directory:
        lines = ["max_inflight_messages 1000", "max_queued_messages 0", "set_tcp_nodelay true"]
        broker = start_broker(Path(directory), lines=["log_type error", *lines]) if mosquitto else None
        if broker is None:
            sender = context.Process(target=serve, args=(end, count, qos), daemon=True)
        else:
            sender = context.Process(target=send_to, args=(end, broker.port, count, qos), daemon=True)
        sender.start()
        port = pipe.recv()
        counter = Count(count)
        if way == "paho":
            stop = by_paho(port, counter, qos, protocol)
        else:
            linger = 0.0 if way.endswith("no linger") else 0.002
            stop = by_link(port, counter, qos, protocol, fast=way.startswith("fast"), linger=linger)
        cpu, wall = time.process_time(), time.perf_counter()
        pipe.send("go")
        if not counter.reached.wait(SECONDS):
            print(f"{way}: only {counter.have} of {count} came", file=sys.stderr)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        stop()
        pipe.send("end")
        sender.join(10.0)
        if broker is not None:
            broker.stop()
    return {"cpu_us_per_message": round(1e6 * cpu / counter.have, 2), "messages_per_second": round(counter.have / wall)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=200_000)
    parser.add_argument("--mosquitto", action="store_true", help="through a real broker, which is the slowest part")
    options = parser.parse_args()
    figures = {}
    ways = ["fast", "fast, no linger", "paho"] if options.mosquitto else ["fast", "link by paho", "paho"]
    for protocol in ("5", "3.1.1"):
        for qos in (0, 1):
            for way in ways:
                count = options.messages if way.startswith("fast") else options.messages // 4
                figures[f"{way}, MQTT {protocol}, QoS {qos}"] = measure(way, count, qos, protocol, options.mosquitto)
    print(json.dumps({"cores": os.cpu_count(), "mosquitto": options.mosquitto, "figures": figures}, indent=2))


if __name__ == "__main__":
    main()
