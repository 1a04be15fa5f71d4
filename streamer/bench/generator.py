"""The load generator: a process of its own that publishes sensor-like JSON over a raw socket, MQTT 3.1.1, QoS 0 or 1.

Started as `python -m streamer.bench.generator PLAN`, the plan in JSON. Each line on standard input is a number: how
many messages it may have sent in all; the end of the input ends it. When it is done it prints an `Account` in JSON.

It costs a few per cent of a core at 20,000 messages a second: what is left of the machine belongs to what is measured.
It connects to this machine only, and stops by itself at the plan's number of messages or seconds, whichever is first.
"""

from __future__ import annotations

import os
import select
import socket
import sys
import time

import msgspec
import numpy as np

HOST = "127.0.0.1"
PUBACK_BYTES = 4  # in MQTT 3.1.1; a broker sends us nothing else
UNACKNOWLEDGED = 2000  # at QoS 1; the broker answers from memory, more brings nothing
BURST = 256  # messages a write
BODIES = 4096  # different payloads; a series goes through them one by one


class Plan(msgspec.Struct, frozen=True):
    """What to publish."""

    port: int
    prefix: str
    """the topics are `<prefix>/0`, `<prefix>/1` ..."""
    topics: int
    messages: int
    seconds: float
    """after which it ends in any case"""
    start: float
    """event time of the first round over all topics, epoch seconds of ten digits; every round is a second later. What a
    series reports goes by it, so that a plan which begins where another ended goes on with it"""
    fields: int = 1
    """readings in a message"""
    qos: int = 1
    rate: float = 0.0
    """messages a second; 0: as fast as it is allowed"""
    history: int = 1
    """so many readings of each field in a message, a second apart; above 1 as an array of objects"""


class Account(msgspec.Struct, frozen=True):
    """What was published."""

    sent: int
    began: float
    """CLOCK_MONOTONIC, which all processes share"""
    ended: float
    cpu_seconds: float


class Load:
    """The packets of a plan, made as they are needed."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._bodies = bodies(plan.fields)
        self._round = int(plan.start)
        length = len(self._payload(0, 0))
        self._heads = [publish_head(f"{plan.prefix}/{k}", length, plan.qos) for k in range(plan.topics)]
        self._sent = 0

    def take(self, count: int) -> bytes:
        """The next `count` packets."""
        first, self._sent = self._sent, self._sent + count
        heads, topics = self._heads, len(self._heads)
        packets: list[bytes] = []
        for number in range(first, first + count):
            turn, topic = divmod(number, topics)
            mid = (number % 0xFFFF + 1).to_bytes(2, "big") if self._plan.qos else b""
            packets += (heads[topic], mid, self._payload(turn, topic))
        return b"".join(packets)

    def _payload(self, turn: int, topic: int) -> bytes:
        start, history, first = self._plan.start, self._plan.history, self._round + 37 * topic
        if history == 1:
            return payload(self._bodies[(first + turn) % BODIES], start + turn)
        turns = range(turn * history, (turn + 1) * history)
        return b"[%s]" % b",".join([payload(self._bodies[(first + t) % BODIES], start + t) for t in turns])


def bodies(fields: int) -> list[bytes]:
    """Members of a JSON object: a slow wave with noise in each field, all of the same length."""
    rng = np.random.default_rng(0)
    phase = np.arange(BODIES)[:, None] * (2 * np.pi * 8 / BODIES) + np.arange(fields)
    value = np.clip(50 + 20 * np.sin(phase) + rng.normal(0, 0.5, (BODIES, fields)), 10, 99).tolist()
    names = ["value"] if fields == 1 else [f"value{k}" for k in range(fields)]
    return [
        b",".join(b'"%s":%.3f' % (name.encode(), number) for name, number in zip(names, row, strict=True))
        for row in value
    ]


def payload(body: bytes, time_: float) -> bytes:
    """One message: the readings and their event time."""
    return b'{%s,"ts":%.3f}' % (body, time_)


def publish_head(topic: str, payload_bytes: int, qos: int) -> bytes:
    """A PUBLISH up to its packet identifier (MQTT 3.1.1, 3.3)."""
    name = topic.encode()
    length = 2 + len(name) + (2 if qos else 0) + payload_bytes
    return bytes([0x30 | qos << 1]) + variable(length) + len(name).to_bytes(2, "big") + name


def variable(number: int) -> bytes:
    """A remaining length (MQTT 3.1.1, 2.2.3)."""
    encoded = bytearray()
    while True:
        number, rest = divmod(number, 128)
        encoded.append(rest | (0x80 if number else 0))
        if not number:
            return bytes(encoded)


def connect(port: int, client_id: str) -> socket.socket:
    """A clean session without keep-alive, on this machine."""
    link = socket.create_connection((HOST, port), timeout=10)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    name = client_id.encode()
    body = b"\x00\x04MQTT\x04\x02\x00\x00" + len(name).to_bytes(2, "big") + name
    link.sendall(b"\x10" + variable(len(body)) + body)
    answer = link.recv(4, socket.MSG_WAITALL)
    if answer != b"\x20\x02\x00\x00":
        raise ConnectionError(f"the broker on port {port} refused the load generator: {answer!r}")
    return link


def run(plan: Plan, link: socket.socket, credit: int) -> Account:
    """Publishes until the plan is fulfilled, its time is over or the input has ended; then waits for acknowledgements.

    `credit` is how many messages it may send before standard input says more.
    """
    load = Load(plan)
    began = time.monotonic()
    deadline = began + plan.seconds
    sent = acknowledged = acknowledged_bytes = 0
    is_told = True
    while time.monotonic() < deadline:
        if plan.qos == 0:
            acknowledged = sent
        limit = min(credit, acknowledged + UNACKNOWLEDGED, plan.messages) if is_told else sent
        if plan.rate:
            limit = min(limit, int((time.monotonic() - began) * plan.rate) + 1)
        count = min(limit - sent, BURST)
        if count > 0:
            link.sendall(load.take(count))
            sent += count
        elif acknowledged == sent and (sent == plan.messages or not is_told):
            break
        wait = 0.0 if count > 0 else 0.001 if plan.rate else 0.1
        ready, _, _ = select.select([link, sys.stdin] if is_told else [link], [], [], wait)
        if link in ready:
            content = link.recv(1 << 16)
            if not content:
                raise ConnectionError("the broker has closed the load generator's connection")
            acknowledged_bytes += len(content)
            acknowledged = acknowledged_bytes // PUBACK_BYTES
        if sys.stdin in ready:
            credit, is_told = told(credit)
    return Account(sent, began, time.monotonic(), time.process_time())


def told(credit: int) -> tuple[int, bool]:
    """The latest word on standard input, and whether there can be another one."""
    content = os.read(sys.stdin.fileno(), 4096)
    lines = content.split(b"\n")[:-1]  # the writer's lines are shorter than a pipe's atomic write
    return (int(lines[-1]) if lines else credit), bool(content)


def main() -> None:
    plan = msgspec.json.decode(sys.argv[1], type=Plan)
    with connect(plan.port, f"bench-{os.getpid()}") as link:
        print(msgspec.json.encode(run(plan, link, 0)).decode(), flush=True)


if __name__ == "__main__":
    main()
