"""What the journal costs: `python -m tests.bench.journal [DIRECTORY] [--seconds S]`, one JSON object to stdout.

Groups of one-reading messages, each appended and synced by itself, on the file system of DIRECTORY; then the journal is
read back. `cpu_us` is the CPU time of `append` and `sync` together, a reading.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np

from streamer.disk import DiskFiles
from streamer.journal import Journal
from streamer.readings import Batch
from streamer.records import Group

GROUPS = (1, 100, 1_000, 4_096)  # messages


def group(messages: int) -> Group:
    rng = np.random.default_rng(messages)
    ones = np.ones(messages, np.uint32)
    return Group(
        Batch(
            rng.integers(0, 100_000, messages).astype(np.int32),
            rng.normal(1.7e9, 1.0, messages),
            rng.normal(size=messages),
            np.zeros(messages, np.uint8),
        ),
        rng.normal(1.7e9, 1.0, messages),
        ones,
        rng.integers(0, 2**32, messages).astype(np.uint32),
        ones.astype(np.uint16),
    )


def measure(directory: Path, messages: int, seconds: float) -> dict[str, float]:
    files = DiskFiles(directory)
    files.make()
    journal = Journal(files, time.time)
    journal.open()
    journal.sync()
    one, count, syncs = group(messages), 0, []
    cpu, begun = time.process_time(), time.perf_counter()
    while time.perf_counter() - begun < seconds:
        journal.append(one)
        before = time.perf_counter()
        journal.sync()
        syncs.append(time.perf_counter() - before)
        count += messages
    wall, cpu = time.perf_counter() - begun, time.process_time() - cpu
    size = sum(map(files.size, files.names()))
    journal.close()
    begun = time.perf_counter()
    Journal(files, time.time).open()
    open_seconds = time.perf_counter() - begun
    begun = time.perf_counter()
    readings = sum(len(record.batch) for _, record in journal.read(0) if isinstance(record, Group))
    return {
        "messages_per_second": round(count / wall),
        "cpu_us": round(1e6 * cpu / count, 3),
        "bytes_per_message": round(size / count, 1),
        "sync_ms_median": round(1e3 * float(np.median(syncs)), 3),
        "sync_ms_99": round(1e3 * float(np.quantile(syncs, 0.99)), 3),
        "open_seconds": round(open_seconds, 3),
        "read_us": round(1e6 * (time.perf_counter() - begun) / readings, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path, nargs="?", help="where to write; a temporary directory by default")
    parser.add_argument("--seconds", type=float, default=5.0, help="for each size of group")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.directory) as place:
        figures = {str(n): measure(Path(place) / str(n), n, arguments.seconds) for n in GROUPS}
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
