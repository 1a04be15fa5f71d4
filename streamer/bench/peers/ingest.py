"""The daemon's own ingest stage and nothing behind it: its link, its decoder, its registry; parse, decode, slot."""

from __future__ import annotations

import gc
import threading

from streamer.app import GARBAGE_OBJECTS
from streamer.bench.generator import HOST
from streamer.bench.peers.receiving import FILTER, Meter, wanted
from streamer.bench.processes import wait_for
from streamer.clock import SystemClock
from streamer.mqtt import MqttLink
from streamer.payloads import Columns, Decoder
from streamer.readings import Message
from streamer.registry import Registry

SUBSCRIBED_SECONDS = 10.0


def main() -> None:
    port, messages, qos, _ = wanted()
    gc.set_threshold(GARBAGE_OBJECTS)
    decoder, registry, columns, meter = Decoder(), Registry(10**6, 1e9, 10**6), Columns(), Meter()
    count, done = 0, threading.Event()

    def deliver(batch: list[Message]) -> None:
        nonlocal count
        decoder.decode_all(batch, columns)
        registry.resolve(columns.key, 0.0)
        columns.clear()
        link.ack(batch)
        count += len(batch)
        if count >= messages:
            done.set()

    link = MqttLink(
        host=HOST,
        port=port,
        instance="bench",
        client_id="bench-ingest",
        filters=[FILTER],
        deliver=deliver,
        clock=SystemClock(),
        protocol="3.1.1",
        qos=qos,
        session_expiry_seconds=0,
    )
    link.start()
    wait_for(lambda: link.status().subscribed or None, SUBSCRIBED_SECONDS, "the subscription")
    meter.begin()
    done.wait()
    meter.end(count)
    link.stop(1.0)


if __name__ == "__main__":
    main()
