"""What a swap of weights costs: `python -m tests.bench.swap [--series N]`, one JSON object to stdout.

The daemon's own engine and journal, without a broker: its turns are made here, of 200 messages each. `pause_ms` is the
time that one is held up by its piece of a swap, `pause_cpu_ms` the same in CPU time, which other work does not
lengthen; `turn_ms` are whole turns, while a swap goes on and without.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from streamer.app import App
from streamer.readings import Message
from streamer.settings import load

TURN_MESSAGES, READINGS = 200, 70
"""a turn's messages; so many readings of each series before the swap: more than it looks back"""


def measure(directory: Path, series: int) -> dict[str, float]:
    app = App(
        load(
            None,
            [
                f"state.directory={directory}", "http.enabled=false", "state.snapshot_seconds=86400", "log.level=error",
                f"limits.max_series={series}", f"limits.new_series_burst={series}",
            ],
            {},
        )
    )  # fmt: skip
    app._directory.open()
    app._recover(None)
    engine, rng = app.engine, np.random.default_rng(1)
    sent, now = 0, time.time() - 10.0 * READINGS

    def turn(count: int) -> float:
        nonlocal sent
        messages = [
            Message(
                f"plant/{(sent + k) % series}",
                b"%f" % rng.normal(20.0, 1.0),
                0,
                0,
                False,
                now + 10.0 * (sent // series),
            )
            for k in range(count)
        ]
        sent += count
        app._inbox.put(messages)
        taken, started = app._inbox.take(count, 0), time.perf_counter()
        engine.turn(taken)
        return time.perf_counter() - started

    while sent < READINGS * series:
        turn(4096)
    pauses: list[float] = []
    busy: list[float] = []
    go_on = engine._go_on_swapping

    def timed() -> None:
        started, cpu = time.perf_counter(), time.thread_time()
        go_on()
        pauses.append(time.perf_counter() - started)
        busy.append(time.thread_time() - cpu)

    without = [turn(TURN_MESSAGES) for _ in range(200)]
    engine._go_on_swapping = timed  # type: ignore[method-assign]  # only measured
    engine._saved_at = np.inf  # the snapshot that follows is measured elsewhere
    weights = replace(app._configured, sha256="0" * 64)
    engine.swap(weights, 2)
    begun, during = time.perf_counter(), []
    while engine.is_swapping:
        during.append(turn(TURN_MESSAGES))
    seconds = time.perf_counter() - begun
    app._journal.close()
    app._directory.close()
    app.link.stop(0.0)
    figures = {"series": float(series), "pieces": float(len(during)), "swap_seconds": seconds}
    figures |= {"pause_ms_median": 1e3 * float(np.median(pauses)), "pause_ms_longest": 1e3 * max(pauses)}
    figures["pause_cpu_ms_longest"] = 1e3 * max(busy)
    for name, turns in (("without", without), ("during", during)):
        figures[f"turn_ms_{name}_median"] = 1e3 * float(np.median(turns))
        figures[f"turn_ms_{name}_longest"] = 1e3 * max(turns)
    return {name: round(value, 1) for name, value in figures.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--series", type=int, default=10_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        print(json.dumps(measure(Path(place) / "state", arguments.series), indent=2))


if __name__ == "__main__":
    main()
