"""The demo's plant with the live page open: what a test looks at, and what the pictures of the documentation show.

python -m tests.web.scene       writes docs/page-light.png and docs/page-dark.png
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.chromium import Chromium, chromium
from tests.servers import HOST, answers, free_port, program
from tests.waiting import wait_until

DOCS = Path(__file__).parent.parent.parent / "docs"
SECONDS = 60  # the plant's first minute has the same faults each time
SERIES = "plant/compressor/1#pressure"  # its valve hunts in the last third of that minute
WIDTH, HEIGHT = 1280, 800

RECORDER = """
window.seen = new Set();
setInterval(() => {
  for (const row of document.querySelectorAll(".row")) seen.add(`${row.series} ${row.cells.state.textContent}`);
}, 50);
"""
"""Every state that the table has ever shown: a fault of the plant lasts two seconds."""


@contextmanager
def demo() -> Iterator[str]:
    """Address of the page of a demo that runs."""
    port = free_port()
    command = [sys.executable, "-m", "streamer", "demo", "--seconds", str(SECONDS), "--http-port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        wait_until(lambda: answers(port), 20, "the demo to serve")
        yield f"http://{HOST}:{port}/"
    finally:
        process.terminate()
        process.wait(20)


def open_page(browser: Chromium, address: str, series: str = SERIES) -> None:
    """With the chart of one series."""
    browser.show(width=WIDTH, height=HEIGHT)
    browser.go(f"{address}#{series.replace('/', '%2F').replace('#', '%23')}")
    browser.wait_for("document.querySelectorAll('.row').length > 10")
    browser.evaluate(RECORDER)
    browser.wait_for(f"document.querySelector('#series-title').textContent === {json.dumps(series)}")


def pictures(browser: Chromium, address: str) -> dict[str, bytes]:
    """PNG by name, some readings after the fault has been noticed."""
    open_page(browser, address)
    browser.wait_for("document.querySelector('#figures.alarm')", SECONDS)
    browser.wait_for(f"{reds('#chart .uplot:last-of-type canvas')} > 300")
    found = {}
    for scheme in ("light", "dark"):
        browser.show(width=WIDTH, height=HEIGHT, scheme=scheme)
        browser.wait_for(f"matchMedia('(prefers-color-scheme: {scheme})').matches")
        browser.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))")
        found[f"page-{scheme}.png"] = browser.small_picture()
    return found


def reds(canvas: str) -> str:
    """Script that counts the pixels of a canvas which have the colour of an anomaly, in a copy: the page's own canvas
    is not made to be read, and the browser complains of it to the page when a script does so again and again."""
    return f"""(() => {{
      const canvas = document.querySelector({json.dumps(canvas)});
      if (!canvas) return 0;
      const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d", {{ willReadFrequently: true }});
      copy.drawImage(canvas, 0, 0);
      const {{ data }} = copy.getImageData(0, 0, canvas.width, canvas.height);
      let count = 0;
      for (let at = 0; at < data.length; at += 4) {{
        if (data[at + 3] > 200 && data[at] > 150 && data[at + 1] < 140 && data[at + 2] < 130) count++;
      }}
      return count;
    }})()"""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, demo() as address, chromium(program("chromium"), Path(folder)) as one:
        for name, picture in pictures(one, address).items():
            (DOCS / name).write_bytes(picture)


if __name__ == "__main__":
    main()
