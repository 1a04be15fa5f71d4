"""The per-series gauges as text, written straight from arrays.

A client library's encoder costs 8 us a sample and holds the GIL: four seconds for 100,000 series. Here the text that
never changes, the labels, is prepared a chunk of series at a time, and a scrape fills in the numbers: 0.3 us a sample.
The lines follow both the text format 0.0.4 and OpenMetrics 1.0, which agree on gauges.
"""

from __future__ import annotations

import hashlib
import io
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import compress

import numpy as np
from numpy.typing import NDArray

from streamer.readings import Float64

GAUGES = {
    "streamer_anomaly_score": "Score of the last reading: 1 is the rarity that the alarm budget allows.",
    "streamer_y": "Last reading, in the series' own unit.",
    "streamer_yhat": "Median of the forecast for the last reading.",
    "streamer_yhat_lower": "Lower end of the 99 % band of the forecast for the last reading.",
    "streamer_yhat_upper": "Upper end of the 99 % band of the forecast for the last reading.",
}
"""Name and help, in the order of the columns of `SeriesTable`."""
LABELS = ("topic", "field")

CHUNK = 1024
"""Series a template: 0.3 ms of formatting, so that the engine never waits long for the GIL (by eye)."""
REST_SECONDS = 0.0001
"""Between two chunks. A turn of the engine asks for the GIL hundreds of times, and gets it only when its holder sleeps,
or after 5 ms: without a rest a turn lasted as long as a scrape of 100,000 series, 180 ms, and with it 14 (measured)."""
LABEL_BYTES = 1024
"""The longest label value, in UTF-8; a topic can have 64 KiB."""
PEAK_HALF_LIFE_SECONDS = 600.0
"""How fast a series of the top list loses its claim to the place (by eye)."""

_UNSAFE = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029]")
"""What breaks a parser (NUL ends Prometheus' scanner, a surrogate is no UTF-8) or a line of somebody's terminal."""
_DIGEST = re.compile(r"~[0-9a-f]{16}\Z")


@dataclass(frozen=True, slots=True, eq=False)
class SeriesTable:
    """The last verdict of every series that is not stale, row by row; all arrays `(n,)`, NaN where there is nothing."""

    keys: list[str]
    """series keys, each once"""
    score: Float64
    value: Float64
    expected: Float64
    lower: Float64
    upper: Float64

    def select(self, rows: NDArray[np.intp]) -> SeriesTable:
        return SeriesTable(
            [self.keys[row] for row in rows],
            self.score[rows],
            self.value[rows],
            self.expected[rows],
            self.lower[rows],
            self.upper[rows],
        )


class SeriesText:
    """Writes a `SeriesTable` as exposition text; keeps what it has prepared. One thread at a time."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._list = TopList(monotonic)
        self._labels: dict[str, bytes] = {}
        self._chunks: list[tuple[list[str], bytes]] = []

    def write(self, table: SeriesTable, top: int | None, before: bytes = b"", after: bytes = b"") -> bytes:
        """All five families with HELP and TYPE, of the `top` series or of all; a NaN is a sample left out.

        `before` and `after` are put around it: to join 44 MB anew would hold the GIL for 50 ms.
        """
        if top is not None:
            table = table.select(self._list.choose(table, top))
        columns = (table.score, table.value, table.expected, table.lower, table.upper)
        starts = range(0, len(table.keys), CHUNK)
        templates = self._prepare(table.keys)
        text = io.BytesIO()  # grows in place, and hands out what it has without a copy
        text.write(before)
        for (name, sentence), column in zip(GAUGES.items(), columns, strict=True):
            text.write(f"# HELP {name} {sentence}\n# TYPE {name} gauge\n".encode())
            for start, template in zip(starts, templates, strict=True):
                if start:
                    time.sleep(REST_SECONDS)  # scoring gets the interpreter between two pieces
                text.write(_fill(template, name.encode(), column[start : start + CHUNK]))
        text.write(after)
        return text.getvalue()

    def _prepare(self, keys: list[str]) -> list[bytes]:
        """One template for each chunk of `keys`; only chunks whose keys have changed are made anew."""
        chunks = [keys[start : start + CHUNK] for start in range(0, len(keys), CHUNK)]
        self._chunks = [
            self._chunks[at] if at < len(self._chunks) and self._chunks[at][0] == chunk else (chunk, self._join(chunk))
            for at, chunk in enumerate(chunks)
        ]
        if len(self._labels) > 2 * len(keys) + CHUNK:
            self._labels = {key: self._labels[key] for key in keys}
        return [template for _, template in self._chunks]

    def _join(self, keys: list[str]) -> bytes:
        """A line a key, ready for the % operator; NUL, which no label holds, stands for the metric's name."""
        for key in keys:
            if key not in self._labels:
                self._labels[key] = labels(key).replace("%", "%%").encode()
        # 12 digits are more than any sensor has, and cost half of repr's 17.
        return b"".join([b"\0" + self._labels[key] + b" %.12g\n" for key in keys])


class TopList:
    """The series with the highest recent scores, few of them new at each scrape.

    The score of a single reading is noise in a normal series: a list of the momentary top would name other series at
    each scrape, and Prometheus would keep them all. So a series holds its place with the highest score that it had
    there, and that claim fades by half every ten minutes.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._claims: dict[str, float] = {}
        self._chosen_at = monotonic()

    def choose(self, table: SeriesTable, top: int) -> NDArray[np.intp]:
        """At most `top` rows, ascending; series without a score come last."""
        now = self._monotonic()
        fading = 0.5 ** ((now - self._chosen_at) / PEAK_HALF_LIFE_SECONDS)
        self._chosen_at = now
        rank = np.nan_to_num(table.score, nan=-1.0, posinf=1e9)
        for row, key in enumerate(table.keys):
            if key in self._claims:
                rank[row] = max(rank[row], self._claims[key] * fading)
        rows = np.arange(len(rank))
        if len(rank) > top:
            rows = np.sort(np.argpartition(rank, len(rank) - top)[len(rank) - top :])
        self._claims = {table.keys[row]: float(rank[row]) for row in rows}
        return rows


def labels(key: str) -> str:
    """`{topic="...",field="..."}` of a series key, the field of a bare number empty; no two keys give one text."""
    topic, separator, field = key.partition("#")
    is_nameless = bool(separator) and not field  # an empty JSON name is not a bare number
    return f'{{topic="{_label_value(topic)}",field="{_label_value(field, is_nameless)}"}}'


def _label_value(text: str, needs_digest: bool = False) -> str:
    """`text`, escaped. What cannot be said in full ends in a digest of the whole, and so does what looks like it."""
    is_long = len(text.encode(errors="replace")) > LABEL_BYTES
    if needs_digest or is_long or _UNSAFE.search(text) or _DIGEST.search(text):
        digest = "~" + hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]
        clean = _UNSAFE.sub("\ufffd", text).encode()
        text = clean[: LABEL_BYTES - len(digest)].decode(errors="ignore") + digest
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _fill(template: bytes, name: bytes, values: Float64) -> bytes:
    """The lines of `template` with their numbers; a NaN takes its line away."""
    present = ~np.isnan(values)
    if not present.all():
        values = values[present]
        lines = compress(template.split(b"\n"), present.tolist())
        template = b"".join([line + b"\n" for line in lines])
    text = template.replace(b"\0", name) % tuple(values.tolist())
    if np.isinf(values).any():
        text = text.replace(b" inf\n", b" +Inf\n").replace(b" -inf\n", b" -Inf\n")
    return text
