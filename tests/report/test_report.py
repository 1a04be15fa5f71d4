"""The report in a real browser, from disk: what it shows, what it fetches (nothing), and what a name cannot do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.chromium import Chromium, chromium
from tests.report.recordings import FAULT, FAULT_END, HEIGHT, WIDTH, pump, report, write
from tests.streams import START, noise

pytestmark = pytest.mark.slow

PIXEL = """
((plot, at) => {
  const { canvas } = plot.ctx;
  const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d", { willReadFrequently: true });
  copy.drawImage(canvas, 0, 0);
  return [...copy.getImageData(Math.round(plot.valToPos(at, "x", true)), plot.bbox.top + 2, 1, 1).data];
})
"""
"""Red, green, blue and opacity at the upper edge of a chart, where no line is."""


@pytest.fixture
def browser(chromium_program: str, tmp_path: Path) -> Iterator[Chromium]:
    with chromium(chromium_program, tmp_path) as started:
        started.show(width=WIDTH, height=HEIGHT)
        yield started
        assert not started.complaints


def chart_of(name: str) -> str:
    """The chart of a series, as an expression; `name` is one too."""
    find = f"find((each) => each.querySelector('h4').textContent === {name})"
    return f"[...document.querySelectorAll('.series')].{find}.chart"


def texts(selector: str) -> str:
    """An expression too."""
    return f"[...document.querySelectorAll('{selector}')].map((each) => each.textContent)"


def open_page(browser: Chromium, page: Path) -> None:
    browser.go(page.as_uri())
    browser.wait_for("document.querySelector('.series canvas')")


def fetched(browser: Chromium) -> set[str]:
    return {url for url in browser.requests if not url.startswith("about:")}


def rows(browser: Chromium, table: str) -> list[list[str]]:
    """The cells of a list."""
    cells = "[...row.cells].map((cell) => cell.textContent)"
    found: list[list[str]] = browser.evaluate(
        f"[...document.querySelectorAll('{table} tbody tr')].map((row) => {cells})"
    )
    return found


def test_a_fault_is_in_the_list_on_the_chart_and_in_the_figures(browser: Chromium, tmp_path: Path) -> None:
    """In light and in dark, from a file, and nothing else is fetched."""
    recording, labels = pump(tmp_path)
    page = report(tmp_path, recording, "--labels", labels)
    browser.show(width=WIDTH, height=5_000)  # every chart is in view
    open_page(browser, page)
    browser.wait_for("document.querySelectorAll('.series canvas').length === 6")
    (alarm,) = rows(browser, ".alarms")
    opened, _, series, value, expected, _, score, _, channels, truth = alarm
    assert "2026" in opened
    assert series in ("flow", "pressure")
    assert float(score) >= 1
    assert float(value) > 0
    assert " to " in expected
    assert "flow" in channels
    assert "pressure" in channels
    assert truth == "in or just after one"
    events, caught, delay, alarms, false, _, outside = rows(browser, ".figures")[0]
    assert (events, caught, alarms, false, outside) == ("2", "1", "1", "0", "1")
    assert delay.endswith("min")
    fates = [row[-1].partition(" ")[0] for row in rows(browser, ".labels")]
    assert fates == ["no", "caught", "missed"]

    chart = chart_of("'pressure'")
    data = browser.evaluate(f"{chart}.plots[0].data")
    assert [len(column) for column in data] == [3000] * 7
    assert data[0][FAULT] == START + 60 * FAULT
    values = [float(line.split(",")[2]) for line in recording.read_text().splitlines()[1:]]
    np.testing.assert_allclose(data[4], values, rtol=1e-6)
    assert [each for each in data[6] if each is not None and each >= 1] or series == "flow"
    ground, label, both, after = (
        browser.evaluate(f"{PIXEL}({chart}.plots[0], {START + 60 * row})")
        for row in (1000, FAULT + 2, (FAULT + FAULT_END) // 2 + 10, 2650)
    )
    assert ground == after  # the second label is of another series
    assert len({tuple(ground), tuple(label), tuple(both)}) == 3
    temperature = chart_of("'temperature'")
    assert browser.evaluate(f"{PIXEL}({temperature}.plots[0], {START + 60 * 2650})") == label
    shown = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    browser.show(width=WIDTH, height=HEIGHT, scheme="dark")
    browser.wait_for(f"getComputedStyle(document.body).backgroundColor !== '{shown}'")
    assert fetched(browser) == {page.as_uri()}


def test_an_alarm_leads_to_its_chart(browser: Chromium, tmp_path: Path) -> None:
    """The part around it, also of a series that was out of view."""
    recording, _ = pump(tmp_path)
    open_page(browser, report(tmp_path, recording))
    browser.evaluate("document.querySelector('.alarms button').click()")
    chart = chart_of("document.querySelector('.alarms button').textContent")
    browser.wait_for(f"{chart}.plots[0].scales.x.min > {START}")
    low, high = (browser.evaluate(f"{chart}.plots[0].scales.x.{end}") for end in ("min", "max"))
    assert START + 60 * (FAULT - 250) < low < START + 60 * FAULT
    assert START + 60 * FAULT_END < high < START + 60 * (FAULT_END + 250)
    browser.wait_for(f"{chart}.root.getBoundingClientRect().top < innerHeight")


def test_a_name_is_text_whatever_it_says(browser: Chromium, tmp_path: Path) -> None:
    """Of a series, of a file, of a label; markup, quotes, a line end, 64 KiB."""
    names = [
        "</script><img src=x onerror=window.hacked=1>",
        "<!--<script>window.hacked=1</script>",
        "\"'`</title></style>",
        "${7*7}{{7*7}}\\u003cb>",
        "a\nb\tc\u2028\u202eexe",
        "__proto__",
        "<b>" + "x" * 65_500 + "</b>",
    ]
    values = np.tile(noise(200)[:, None], (1, len(names)))
    values[150] = 500.0
    recording = tmp_path / "<img src=x onerror=window.hacked=1>.csv"
    write(recording, names, START + 60.0 * np.arange(200), values)
    labels = tmp_path / "labels.csv"
    labels.write_text(f'start,end,series\n{START},{START + 600},"{names[0]}"\n')
    page = report(tmp_path, recording, "--labels", labels)
    open_page(browser, page)
    titles = browser.evaluate(texts(".series h4"))
    assert sorted(titles) == sorted(names)
    alarmed = browser.evaluate(texts(".alarms button"))
    assert alarmed
    assert set(alarmed) <= set(names)
    assert rows(browser, ".labels")[0][2] == names[0]
    assert browser.text(".part > h2") == recording.name
    assert browser.evaluate("document.querySelectorAll('img, b').length") == 0
    assert browser.evaluate("document.querySelectorAll('script').length") == 3
    assert browser.evaluate("window.hacked") is None
    assert browser.evaluate("document.documentElement.scrollWidth") <= WIDTH
    assert fetched(browser) == {page.as_uri()}


def test_the_policy_lets_nothing_else_run_or_be_fetched(browser: Chromium, tmp_path: Path) -> None:
    """What got into the page all the same would stand still."""
    open_page(browser, report(tmp_path, write(tmp_path / "a.csv", ["a"], np.arange(40.0), noise(40)[:, None])))
    browser.evaluate(
        """
        (() => {
          const script = document.createElement("script");
          try { script.text = "window.hacked = 1"; document.body.append(script); } catch {}
          const image = new Image();
          image.src = "https://example.org/x.png";
          document.body.append(image);
        })()
        """
    )
    browser.wait_for("new Promise((done) => setTimeout(() => done(true), 0))")
    assert browser.evaluate("window.hacked") is None
    assert browser.evaluate("fetch('https://example.org').then(() => 'sent', () => 'refused')") == "refused"
    assert any("Content Security Policy" in each for each in browser.complaints)
    browser.complaints.clear()


def test_many_series_are_drawn_when_they_come_into_view(browser: Chromium, tmp_path: Path) -> None:
    """The most anomalous one first; a search leaves those that fit."""
    count = 300
    values = 20 + np.random.default_rng(3).normal(size=(60, count))
    values[50, 123] = 500.0
    names = [f"hall/{k // 100}/machine {k % 100}" for k in range(count)]
    open_page(browser, report(tmp_path, write(tmp_path / "a.csv", names, 60.0 * np.arange(60), values)))
    titles = browser.evaluate(texts(".series h4"))
    assert titles[0] == names[123]
    assert sorted(titles) == sorted(names)
    assert browser.evaluate("document.querySelectorAll('.series canvas').length") <= 20
    browser.evaluate("document.querySelector('.series:last-child').scrollIntoView()")
    browser.wait_for("document.querySelector('.series:last-child canvas')")
    browser.wait_for("document.querySelectorAll('.series canvas').length <= 20")
    browser.evaluate(
        "(() => { const box = document.querySelector('.tools input'); box.value = 'MACHINE 23 1/';"
        " box.dispatchEvent(new Event('input')); })()"
    )
    shown = "[...document.querySelectorAll('.series')].filter((each) => each.checkVisibility())"
    assert browser.evaluate(f"{shown}.map((each) => each.querySelector('h4').textContent)") == ["hall/1/machine 23"]
    browser.wait_for(f"{shown}[0].querySelector('canvas')")


def test_several_files_have_a_part_each(browser: Chromium, tmp_path: Path) -> None:
    """Also of one name; what is no number, repeated or late is told, and is not on the chart."""
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder, value in zip(folders, (1.0, 2.0), strict=True):
        folder.mkdir()
        text = f"0,{value}\n60,nan\n60,{value}\n120,{value}\n120,9\n30,9\n"
        (folder / "a.csv").write_text("time,x\n" + text)
    browser.go(report(tmp_path, *(folder / "a.csv" for folder in folders)).as_uri())
    browser.wait_for("document.querySelectorAll('.series canvas').length === 4")
    assert browser.evaluate(texts(".part > h2")) == ["a.csv"] * 2
    metas = browser.evaluate(texts(".series .meta"))
    assert metas == ["3 warming, 1 duplicate, 1 late, 1 rejected; no score; 0 alarms"] * 2
    charts = browser.evaluate("[...document.querySelectorAll('.series')].map((each) => each.chart.plots[0].data)")
    assert [chart[4] for chart in charts] == [[1.0] * 3, [2.0] * 3]
    assert json.dumps(charts[0][0]) == "[0, 60, 120]"
