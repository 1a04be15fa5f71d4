"""Recordings for the report: a pump with two faults, and what `streamer replay` makes of it.

python -m tests.report.recordings       writes docs/report.png
"""

from __future__ import annotations

import csv
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from streamer.cli import main
from tests.chromium import chromium
from tests.streams import START

WIDTH, HEIGHT = 1100, 900
DOCS = Path(__file__).parent.parent.parent / "docs"
FAULT, FAULT_END = 2000, 2059
"""rows in which the flow falls and the pressure rises"""


def write(path: Path, names: Sequence[str], time: NDArray[np.floating], values: NDArray[np.floating]) -> Path:
    """A wide CSV file; values `(n, names)`."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["time", *names])
        writer.writerows([at, *row] for at, row in zip(time.tolist(), values.tolist(), strict=True))
    return path


def pump(folder: Path) -> tuple[Path, Path]:
    """Two days at a reading a minute, and its labels: a fault, one that is slow, and one of the day before."""
    rng, n = np.random.default_rng(1), 3000
    time = START + 60.0 * np.arange(n)
    day = np.sin(time / 86_400 * 2 * np.pi)
    flow = 40 + 6 * day + 0.5 * rng.normal(size=n)
    pressure = 3.2 + 0.3 * day + 0.03 * rng.normal(size=n)
    temperature = 55 + 3 * np.roll(day, 240) + 0.2 * rng.normal(size=n)
    flow[FAULT : FAULT_END + 1] -= 14
    pressure[FAULT + 4 : FAULT_END + 1] += 0.9
    temperature[2600:2720] += np.linspace(0, 4, 120)
    values = np.column_stack((flow, pressure, temperature)).round(3)
    labels = folder / "labels.csv"
    lines = [(FAULT, FAULT_END, ""), (2600, 2719, "temperature"), (-60, -1, "")]
    text = "".join(f"{START + 60 * first},{START + 60 * last},{name}\n" for first, last, name in lines)
    labels.write_text("start,end,series\n" + text)
    return write(folder / "pump.csv", ("flow", "pressure", "temperature"), time, values), labels


def report(folder: Path, *arguments: str | Path) -> Path:
    """The page of a replay."""
    page = folder / "report.html"
    assert main(["replay", *map(str, arguments), "--report", str(page)]) == 0
    return page


def picture(program: str) -> None:
    """Of the pump's report."""
    with tempfile.TemporaryDirectory() as name, chromium(program, Path(name)) as browser:
        folder = Path(name)
        recording, labels = pump(folder)
        browser.show(width=WIDTH, height=HEIGHT)
        browser.go(report(folder, recording, "--labels", labels).as_uri())
        browser.wait_for("document.querySelectorAll('canvas').length > 1")
        (DOCS / "report.png").write_bytes(browser.small_picture())


if __name__ == "__main__":
    picture(sys.argv[1] if len(sys.argv) > 1 else "chromium")
