"""What is recorded of a replay: bounded whatever its length, and judged as `streamer bench quality` would."""

from __future__ import annotations

import base64
import io
import json
import math
import re
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamer.bench.quality.figures import figures_of
from streamer.bench.quality.recordings import Recording
from streamer.bench.quality.scoring import score_recordings
from streamer.labels import read_labels
from streamer.readings import Batch, Scores, Unscored
from streamer.registry import Registry
from streamer.replay import replay
from streamer.report import About, Recorder
from streamer.report.page import MOST_CHARTS
from streamer.report.recorder import ALL_POINTS
from streamer.report.track import MOST_POINTS
from streamer.rows import Row
from streamer.shard import Outcome, Shard
from tests.chromium import chromium
from tests.report.recordings import write
from tests.streams import START, shipped_weights

ABOUT = About("1.2.3", "ab" * 32, START, {"alarms.budget_per_series_month": 1.0})


def recorder(*names: str) -> Recorder:
    return Recorder([Path(name) for name in names], None, ABOUT)


def written(made: Recorder, **counts: int) -> str:
    page = io.StringIO()
    made.write(page, counts)
    return page.getvalue()


def data_of(page: str) -> dict[str, Any]:
    """What the page holds."""
    found = re.search(r'<script type="application/json" id="data">([^<]*)</script>', page)
    assert found is not None
    data: dict[str, Any] = json.loads(found[1])
    return data


def column(chart: dict[str, Any], name: str) -> list[float]:
    raw = base64.b64decode(chart["columns"][name])
    found: list[float] = np.frombuffer(raw, "<f8" if name == "time" else "<f4").tolist()
    return found


def feed(made: Recorder, first: int, values: np.ndarray[Any, np.dtype[np.float64]], scores: float = 0.1) -> None:
    """Rows of one file, a column a series, from row `first` on; all in one batch."""
    n, count = values.shape
    keys = [f"0#s{k}" for k in range(count)] * n
    time = np.repeat(START + 60.0 * np.arange(first, first + n), count)
    flat = values.ravel()
    batch = Batch(np.tile(np.arange(count, dtype=np.int32), n), time, flat, np.zeros(flat.size, np.uint8))
    figures = (np.full(flat.size, scores), np.zeros(flat.size, np.uint8), flat, flat - 1, flat + 1)
    outcome = Outcome(Scores(*figures, np.zeros(flat.size, np.uint8)), np.ones(flat.size), np.zeros(flat.size), [])
    made.take({0: Row("", float(time[-1]), ["s0"], [0.0])}, [], keys, batch, outcome)


@pytest.mark.slow
def test_two_million_readings_of_a_series_make_a_small_page(chromium_program: str, tmp_path: Path) -> None:
    """In bounded memory; the one that was odd is there, at its full height; a browser draws it."""
    made, piece = recorder("long.csv"), 10_000
    rng = np.random.default_rng(0)
    tracemalloc.start()
    for k in range(200):
        values = rng.normal(size=(piece, 1))
        if k == 77:
            values[4321] = 99.0
            feed(made, k * piece, values[:4321])
            feed(made, k * piece + 4321, values[4321:4322], 3.25)
            feed(made, k * piece + 4322, values[4322:])
        else:
            feed(made, k * piece, values)
    page = written(made, readings=200 * piece)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 30_000_000  # of which the batches above are 3
    assert len(page) < 500_000
    (chart,) = data_of(page)["files"][0]["charts"]
    assert chart["counts"]["scored"] == 200 * piece
    points = len(column(chart, "time"))
    assert MOST_POINTS / 2 <= points <= MOST_POINTS
    assert points == math.ceil(200 * piece / chart["span"])
    assert (chart["peak"], chart["peak_at"]) == (3.25, START + 60 * (77 * piece + 4321))
    assert max(column(chart, "score")) == 3.25
    assert max(column(chart, "high")) + chart["origin"] == pytest.approx(99.0, rel=1e-6)
    target = tmp_path / "long.html"
    target.write_text(page)
    with chromium(chromium_program, tmp_path) as browser:
        browser.go(target.as_uri())
        browser.wait_for("document.querySelector('canvas')")
        assert f"a point stands for {chart['span']} readings" in browser.text(".series .meta")
        drawn = browser.evaluate("document.querySelector('.series').chart.plots[0].data")
        assert max(drawn[7]) == max(each for each in drawn[5] if each is not None) == pytest.approx(99.0, rel=1e-6)
        top = browser.evaluate("document.querySelector('.series').chart.plots[0].scales.y.max")
        assert top > 99
        assert not browser.complaints


@pytest.mark.slow
def test_thousands_of_series_share_the_points() -> None:
    """The page has charts of the most anomalous ones, and says how many there were."""
    made, count = recorder("wide.csv"), 3_000
    rng = np.random.default_rng(0)
    for k in range(12):
        values = rng.normal(size=(100, count))
        feed(made, 100 * k, values)
    data = data_of(written(made))
    file = data["files"][0]
    assert file["count"] == count
    assert len(file["charts"]) == MOST_CHARTS
    assert sum(len(column(chart, "time")) for chart in file["charts"]) <= ALL_POINTS


def test_a_meter_at_a_billion_keeps_its_small_steps() -> None:
    """The page tells differences, which float32 can."""
    made = recorder("meter.csv")
    values = 1e9 + np.arange(100)[:, None] / 16
    feed(made, 0, values)
    (chart,) = data_of(written(made))["files"][0]["charts"]
    assert [each + chart["origin"] for each in column(chart, "last")] == values[:, 0].tolist()
    assert "low" not in chart["columns"]


def test_what_is_too_large_to_draw_breaks_nothing() -> None:
    """No warning, no number that JSON lacks."""
    made = recorder("large.csv")
    feed(made, 0, np.array([[1e300], [-1e300], [1.0]]), math.nan)
    assert math.isinf(column(data_of(written(made))["files"][0]["charts"][0], "last")[1])


def test_a_page_without_a_reading_is_a_page() -> None:
    """Of a file with a header only."""
    (file,) = data_of(written(recorder("empty.csv"), readings=0))["files"]
    assert (file["span"], file["charts"], file["alarms"], file["figures"]) == (None, [], [], None)


def test_the_figures_of_labels_are_those_of_the_quality_bench(tmp_path: Path) -> None:
    """On the same recording: events, what is caught, alarms, false ones, rows."""
    rng, n = np.random.default_rng(5), 1600
    values = (20 + rng.normal(size=(n, 2))).astype(np.float32)
    for first, last in ((400, 409), (900, 905), (1300, 1329)):
        values[first : last + 1, 0] += 60
    values[1100, 1] += 90
    time = np.asarray(START + 60.0 * np.arange(n), np.float64)
    windows = np.array([[395, 410], [600, 650], [1310, 1340]])  # the last one begins when the alarm is open already

    def shard() -> Shard:
        return Shard(Registry(8, math.inf, math.inf), shipped_weights(), 8, budget_per_series_month=1.0)

    recording = Recording("X/1", time, values, windows, 0)
    (verdict,) = score_recordings([recording], shard(), lambda _: None)
    wanted = figures_of([(recording, verdict)])
    labels = tmp_path / "labels.csv"
    labels.write_text("start,end\n" + "".join(f"{time[first]},{time[last]}\n" for first, last in windows))
    path = write(tmp_path / "x.csv", ["c0", "c1"], time, values)
    made = Recorder([path], [read_labels(labels)], ABOUT)
    replay([path], shard(), [], device_score=False, watch=made)
    (found,) = made.figures()
    assert wanted.false_alarms >= 1
    assert 1 <= wanted.alarmed_events < wanted.events
    assert found["rows"] == wanted.rows
    assert found["events"] == wanted.events
    assert found["caught"] == wanted.alarmed_events
    assert found["alarms"] == wanted.alarms
    assert found["false_alarms"] == wanted.false_alarms
    assert found["false_alarms_per_10k_rows"] == pytest.approx(wanted.false_alarms_per_10k, abs=1e-4)
    (file,) = data_of(written(made))["files"]
    assert sum(alarm["false"] for alarm in file["alarms"]) == wanted.false_alarms
    assert sum(label["delay"] is not None for label in file["labels"]) == wanted.alarmed_events


def test_counts_add_up(tmp_path: Path) -> None:
    """Every reading of a series is in one of its counts."""
    path = tmp_path / "a.csv"
    path.write_text("time,x,y\n" + "".join(f"{60 * k},{k % 7},nan\n" for k in range(40)) + "30,1,\n")
    made = Recorder([path], None, ABOUT)
    shard = Shard(Registry(8, math.inf, math.inf), shipped_weights(), 8, budget_per_series_month=1.0)
    counts = replay([path], shard, [], device_score=False, watch=made)
    (file,) = data_of(written(made, **counts))["files"]
    by_name = {file["names"][chart["name"]]: chart["counts"] for chart in file["charts"]}
    assert by_name["x"]["late"] == 1
    assert by_name["y"] == dict.fromkeys((kind.name.lower() for kind in Unscored), 0) | {"rejected": 40}
    for kind in [*(kind.name.lower() for kind in Unscored), "rejected"]:
        assert sum(each[kind] for each in by_name.values()) == counts[kind]
