"""What a daemon holds in memory: `python -m tests.bench.memory [SERIES ...]`, one JSON object a line to stdout.

A mosquitto and the real daemon with its journal: devices of twenty fields, a reading an hour for twelve hours, so that
every page of every array has been written. `resident` is what it then holds between two snapshots, `peak` the most that
it held while one was made, `restart` the most while it began anew from snapshot and journal; in MB, beside what the
formula says.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from streamer.bench.processes import memory_bytes
from tests.end_to_end.daemon import START, client, running
from tests.servers import Broker, start_broker
from tests.waiting import wait_until

RESIDENT_MB, PEAK_MB = 74.0, 79.0
"""without series: Python, numpy, the weights; at the peak a turn and what waits for the disk"""
RESIDENT_KB, PEAK_KB = 5.0, 9.7
"""a series more, in units of 1,000 bytes; 4.25 of them are its state, which a snapshot copies"""
FIELDS, READINGS = 20, 12
SECONDS = 600.0


def formula(series: int) -> tuple[float, float]:
    """MB resident, and at the peak, with the shipped weights."""
    return RESIDENT_MB + series * RESIDENT_KB / 1000, PEAK_MB + series * PEAK_KB / 1000


def measure(broker: Broker, folder: Path, series: int) -> tuple[float, float, float]:
    """MB resident, at the peak, and at the peak of a restart."""
    devices = series // FIELDS
    seconds = 5 if series <= 10_000 else 30  # longer than one takes: between two there is no copy
    settings = [f"limits.new_series_burst={series}", f"state.snapshot_seconds={seconds}"]
    with client(broker) as peer, running(broker.port, folder, *settings) as daemon:
        daemon.wait_ready()
        for k in range(READINGS):
            numbers = {f"field_{n}": round(20 + 0.1 * ((7 * k + 3 * n) % 11), 1) for n in range(FIELDS)}
            payload = json.dumps({"time": START + 3600 * k, **numbers})  # each hour has its place in the state
            sent = [peer.publish(f"plant/line_{n // 100}/device_{n}", payload, qos=1) for n in range(devices)]
            sent[-1].wait_for_publish(SECONDS)
            daemon.wait_settled((k + 1) * devices, SECONDS)
        wait_until(lambda: daemon.numbers()["series", ""] == devices * FIELDS, SECONDS, "all series")
        before, held = daemon.numbers()["snapshot_total", "ok"], list[int]()

        def has_saved() -> bool:
            held.append(memory_bytes(daemon.process.pid, "VmRSS"))
            return daemon.numbers()["snapshot_total", "ok"] > before + 1

        wait_until(has_saved, SECONDS, "a snapshot of all")
        resident, peak = min(held), memory_bytes(daemon.process.pid, "VmHWM")
        daemon.process.kill()
    with running(broker.port, folder, *settings) as daemon:
        daemon.wait_ready()
        wait_until(lambda: daemon.numbers()["snapshot_total", "ok"] >= 1, SECONDS, "a snapshot")
        restart = daemon.memory_bytes()
        assert daemon.numbers()["series", ""] == devices * FIELDS
        daemon.process.kill()
    return resident / 1e6, peak / 1e6, restart / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("series", nargs="*", type=int, default=[1_000, 10_000, 30_000, 100_000])
    for series in parser.parse_args().series:
        with tempfile.TemporaryDirectory() as folder:
            broker_folder = Path(folder, "broker")
            broker_folder.mkdir()
            broker = start_broker(broker_folder, lines=["max_queued_messages 0"])
            try:
                resident, peak, restart = measure(broker, Path(folder), series)
            finally:
                broker.stop()
        named = zip(("resident", "peak"), formula(series), strict=True)
        figures = {"series": series, "resident": resident, "peak": peak, "restart": restart}
        print(json.dumps({k: round(v, 1) for k, v in (figures | {f"{k}_formula": v for k, v in named}).items()}))


if __name__ == "__main__":
    main()
