"""What a snapshot costs: `python -m tests.bench.snapshot [DIRECTORY] [--series N]`, one JSON object to stdout.

The daemon's own engine, journal and snapshots on the file system of DIRECTORY, without a broker: its turns are made
here, of 200 messages each. `pause_ms` is the longest that one of them was held up by the copy of a snapshot, and
`pause_cpu_ms` the same in CPU time, which other work on the machine does not lengthen; `sync_ms` is the longest sync of
the journal, `turn_ms` are whole turns: while a snapshot is copied, while one is written, and while there is none.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np

from streamer.app import App
from streamer.readings import Message
from streamer.settings import load

TURN_MESSAGES = 200


def measure(directory: Path, series: int) -> dict[str, float]:
    app = App(
        load(
            None,
            [
                f"state.directory={directory}", "http.enabled=false", "state.snapshot_seconds=1", "log.level=error",
                f"limits.max_series={series}", f"limits.new_series_burst={series}",
            ],
            {},
        )
    )  # fmt: skip
    app._directory.open()
    app._recover(None)
    engine, rng = app.engine, np.random.default_rng(1)
    sent, now = 0, time.time()

    def turn(count: int) -> None:
        nonlocal sent
        messages = [
            Message(f"plant/{(sent + k) % series}", b"%f" % rng.normal(20.0, 1.0), 0, 0, False, now + sent / series)
            for k in range(count)
        ]
        sent += count
        app._inbox.put(messages)
        engine.turn(app._inbox.take(count, 0))

    pauses: list[float] = []
    busy: list[float] = []
    syncs: dict[str, list[float]] = defaultdict(list)
    go_on, begin, sync = engine._go_on_saving, engine._save_if_whole, app._journal.sync

    def timed(what: Callable[[], bool]) -> bool:
        started, cpu = time.perf_counter(), time.thread_time()
        result = what()
        pauses.append(time.perf_counter() - started)
        busy.append(time.thread_time() - cpu)
        return result

    def timed_sync() -> int:
        started = time.perf_counter()
        result = sync()
        syncs["without" if app._saving.wait(0) else "written"].append(time.perf_counter() - started)
        return result

    engine._saved_at = np.inf  # not yet
    while sent < series:
        turn(4096)
    engine._go_on_saving = lambda: timed(go_on)  # type: ignore[method-assign]  # only measured
    engine._save_if_whole = lambda: timed(begin)  # type: ignore[method-assign]
    app._journal.sync = timed_sync  # type: ignore[method-assign]
    turns: dict[str, list[float]] = defaultdict(list)
    engine._saved_at = -np.inf
    while len(app._saving._positions) < 2 or len(turns["without"]) < 200:
        started = time.perf_counter()
        turn(TURN_MESSAGES)
        phase = "without" if app._saving.wait(0) else "written"
        turns["copied" if engine._saving is not None else phase].append(time.perf_counter() - started)
    app._saving.wait(60.0)
    figures = {"series": float(series), "pause_ms": 1e3 * max(pauses), "pieces": float(len(turns["copied"]))}
    figures["pause_cpu_ms"] = 1e3 * max(busy)
    for phase, seconds in syncs.items():
        figures[f"sync_ms_{phase}"] = 1e3 * max(seconds)
    for phase, seconds in turns.items():
        figures[f"turn_ms_{phase}_median"] = 1e3 * float(np.median(seconds))
        figures[f"turn_ms_{phase}_longest"] = 1e3 * max(seconds)
    figures["snapshot_megabytes"] = max(path.stat().st_size for path in directory.glob("*.snap")) / 1e6
    app._journal.close()
    app._directory.close()
    app.link.stop(0.0)
    return {name: round(value, 1) for name, value in figures.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path, nargs="?", help="where to write; a temporary directory by default")
    parser.add_argument("--series", type=int, default=100_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.directory) as place:
        print(json.dumps(measure(Path(place) / "state", arguments.series), indent=2))


if __name__ == "__main__":
    main()
