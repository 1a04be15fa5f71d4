"""One HTML file with everything in it: styles, programs, data. A policy in it lets nothing else run or be fetched.

Names from a recording are data only: JSON in which no `<` occurs, which the program shows as text.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import TextIO

import numpy as np

from streamer.labels import Label
from streamer.readings import Alarm, Float64
from streamer.report.track import Column, Track

MOST_CHARTS = 1000
LEAST_POINTS = 128  # of a chart
MOST_ALARMS = 2000
MOST_LABELS = 2000
MOST_CHANNELS = 8


@dataclass(frozen=True, slots=True)
class About:
    """What made the page."""

    version: str
    weights_sha256: str
    made_at: float
    """epoch seconds"""
    settings: dict[str, object]
    """those that matter to the scores"""


@dataclass(slots=True)
class Told:
    """An alarm as it was told last."""

    alarm: Alarm
    row: int
    """at which it opened"""
    keys: set[str] = field(default_factory=set)
    """of every series that it was ever about"""
    is_false: bool | None = None
    """None: there are no labels"""


@dataclass(frozen=True, slots=True)
class Labelled:
    """A label and what became of it."""

    label: Label
    rows: int
    delay: float | None
    """share of its rows that passed before an alarm opened in it; None: none did"""
    delay_seconds: float | None


@dataclass(frozen=True, slots=True)
class Series:
    """One series."""

    name: str
    counts: dict[str, int]
    """readings by what became of them"""
    track: Track


@dataclass(frozen=True, slots=True)
class Part:
    """One file."""

    name: str
    span: tuple[float, float] | None
    """times of the first row and of the last; None without a row"""
    rows: int
    series: list[Series]
    alarms: list[Told]
    labels: list[Labelled]
    figures: dict[str, object] | None


def write_page(page: TextIO, about: About, counts: dict[str, int], parts: Sequence[Part], all_points: int) -> None:
    """`all_points`: of all charts together, about."""
    shown = _most_anomalous(parts)
    most = max(all_points // max(sum(map(len, shown)), 1), LEAST_POINTS)
    data = {
        "version": about.version,
        "weights": about.weights_sha256,
        "made": about.made_at,
        "settings": about.settings,
        "counts": counts,
        "files": [_part(*each, most) for each in zip(parts, shown, strict=True)],
    }
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    for character in "<>&":  # so that nothing in it ends the element that holds it
        text = text.replace(character, f"\\u{ord(character):04x}")
    style = _read("web", "uPlot.min.css") + _read("web", "page.css") + _read("report", "report.css")
    library = _read("web", "uPlot.iife.min.js")
    program = "".join(
        _without_modules(_read(*each)) for each in (("web", "words.js"), ("web", "chart.js"), ("report", "report.js"))
    )
    contents = {
        "POLICY": _policy([library, program], style),
        "STYLE": style,
        "DATA": text,
        "LIBRARY": library,
        "PROGRAM": program,
    }
    for piece in re.split(r"<!--([A-Z]+)-->", _read("report", "report.html")):
        page.write(contents.get(piece, piece))


def _read(package: str, name: str) -> str:
    return files("streamer").joinpath(package, "static", name).read_text(encoding="utf-8")


def _without_modules(text: str) -> str:
    """A file without another to import from: browsers refuse modules that lie beside a page on disk."""
    return re.sub(r"^import .*;$|^export ", "", text, flags=re.MULTILINE)


def _policy(programs: Iterable[str], style: str) -> str:
    return "; ".join(
        [
            "default-src 'none'",
            "script-src " + " ".join(map(_hash, programs)),
            f"style-src {_hash(style)}",
            "base-uri 'none'",
            "form-action 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        ]
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


# --- Data ---


def _most_anomalous(parts: Sequence[Part]) -> list[list[Series]]:
    """Of each file the series that have a chart: those that were in an alarm first, then by their highest score."""
    ranked: list[tuple[bool, float, int, int]] = []
    for at, part in enumerate(parts):
        alarmed = {name_of(key) for told in part.alarms for key in told.keys}
        for number, each in enumerate(part.series):
            peak = each.track.peak
            ranked.append((each.name not in alarmed, math.inf if math.isnan(peak) else -peak, at, number))
    ranked.sort()
    shown: list[list[Series]] = [[] for _ in parts]
    for _, _, at, number in ranked[:MOST_CHARTS]:
        shown[at].append(parts[at].series[number])
    return shown


def name_of(key: str) -> str:
    """Of the series, without the number of its file."""
    return key.partition("#")[2]


class _Names(dict[str, int]):
    """Each name once, since it may be long: everything else says its number."""

    def __missing__(self, name: str) -> int:
        self[name] = number = len(self)
        return number


def _part(part: Part, shown: list[Series], most: int) -> dict[str, object]:
    names = _Names()
    series = [_series(each, names, most) for each in shown]
    strongest = sorted(part.alarms, key=lambda told: -(told.alarm.score or 0.0))[:MOST_ALARMS]
    strongest.sort(key=lambda told: told.alarm.opened_at)
    return {
        "name": part.name,
        "span": part.span,
        "rows": part.rows,
        "count": len(part.series),
        "charts": series,
        "alarms": [_alarm(each, names) for each in strongest],
        "alarm_count": len(part.alarms),
        "labels": [_label(each, names) for each in part.labels[:MOST_LABELS]],
        "figures": part.figures,
        "names": list(names),
    }


def _series(each: Series, names: _Names, most: int) -> dict[str, object]:
    track = each.track
    track.condense(most)
    points, columns = track.points, {}
    origin = float(points[Column.LAST, 0]) if points.shape[1] else 0.0
    for column in Column:
        values = points[column]
        if column is Column.TIME:
            columns["time"] = _base64(values, "<f8")
        elif column in (Column.LOW, Column.HIGH) and track.span == 1:
            continue  # as the last
        elif not np.isnan(values).all():
            # A meter that stands at a billion changes by less than float32 can tell of a billion.
            columns[column.name.lower()] = _base64(values - (0.0 if column is Column.SCORE else origin), "<f4")
    return {
        "name": names[each.name],
        "counts": each.counts,
        "span": track.span,
        "peak": _number(track.peak),
        "peak_at": _number(track.peak_at),
        "origin": origin,
        "columns": columns,
    }


def _alarm(told: Told, names: _Names) -> dict[str, object]:
    alarm = told.alarm
    return {
        "opened": alarm.opened_at,
        "closed": alarm.closed_at,
        "name": names[name_of(alarm.key)],
        "names": [names[name_of(key)] for key in sorted(told.keys)],
        "view": alarm.view,
        "direction": alarm.direction,
        "readings": alarm.readings,
        "channels": [[names[name_of(each.key)], _number(each.share)] for each in alarm.channels[:MOST_CHANNELS]],
        "false": told.is_false,
        **{name: _number(getattr(alarm, name)) for name in ("value", "usual", "expected", "lower", "upper", "score")},
    }


def _label(each: Labelled, names: _Names) -> dict[str, object]:
    label = each.label
    return {
        "start": label.start,
        "end": label.end,
        "name": None if label.series is None else names[label.series],
        "rows": each.rows,
        "delay": each.delay,
        "delay_seconds": each.delay_seconds,
    }


def _base64(values: Float64, kind: str) -> str:
    with np.errstate(over="ignore"):  # beyond float32 is infinite, and not drawn
        return base64.b64encode(values.astype(kind).tobytes()).decode()


def _number(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
