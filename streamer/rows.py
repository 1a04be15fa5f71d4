"""Files of readings: the rows of CSV and Parquet, as `streamer replay` reads them."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from streamer.errors import InputError
from streamer.payloads.words import WORDS, parse_number

if TYPE_CHECKING:
    import pyarrow

FARTHEST_SECONDS = 253_402_300_800.0  # the year 10,000, as far as ISO 8601 goes
JOINT = "*"
"""The name of the rows that carry the joint score of a device; no series has it."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of an input file: its time as it was written and in epoch seconds, and its readings left to right."""

    text: str
    time: float
    names: Sequence[str]
    values: Sequence[float | None]
    """None: an empty cell"""


class Reached:
    """How far a file has been read."""

    def __init__(self) -> None:
        self.share: Callable[[], float] = lambda: 0.0
        """0 to 1, about: what is read ahead counts"""


def read_rows(path: Path, reached: Reached | None = None, words: Mapping[str, float] = WORDS) -> Iterator[Row]:
    """The rows of a CSV or Parquet file; `reached` is kept. Raises InputError, which names the file and the line.

    A cell is a number or one of the `words`, as a payload is.
    """
    read = _parquet_lines if path.suffix == ".parquet" else _csv_lines
    lines = read(path, reached or Reached())
    number, header = next(lines, (0, []))
    if not header or header[0].strip() != "time":
        found = ",".join(header)[:80] or "nothing"
        raise InputError(f"{path}: found {found!r} as its first line; expected time,<name>,... or time,series,value")
    names = [name.strip() for name in header]
    is_long = names == ["time", "series", "value"]
    if not is_long:
        _check_names(path, names[1:])
    for number, cells in lines:
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(names):
            raise InputError(
                f"{path}, line {number}: found {len(cells)} cells; expected {len(names)}, as in the header"
            )
        place = f"{path}, line {number}"
        time = epoch_seconds(cells[0], place)
        if is_long:
            _check_names(place, [cells[1].strip()])
            yield Row(cells[0], time, [cells[1].strip()], [_value(cells[2], words, place)])
        else:
            yield Row(cells[0], time, names[1:], [_value(cell, words, place) for cell in cells[1:]])


def _csv_lines(path: Path, reached: Reached) -> Iterator[tuple[int, list[str]]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            handle = file.fileno()
            total_bytes = max(os.fstat(handle).st_size, 1)
            reached.share = lambda: os.lseek(handle, 0, os.SEEK_CUR) / total_bytes
            reader = csv.reader(file)
            for cells in reader:
                yield reader.line_num, cells
            reached.share = lambda: 1.0
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as CSV: {error}") from error


def _parquet_lines(path: Path, reached: Reached) -> Iterator[tuple[int, list[str]]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise InputError(f"{path}: Parquet needs pyarrow: pip install 'anomaly-streamer[parquet]'") from error
    try:
        file = parquet.ParquetFile(path)
        yield 1, list(file.schema_arrow.names)
        number = 1
        total_rows = max(file.metadata.num_rows, 1)
        reached.share = lambda: (number - 1) / total_rows
        for batch in file.iter_batches():
            for record in zip(*(_column(column).to_pylist() for column in batch.columns), strict=True):
                number += 1
                yield number, [_cell(value) for value in record]
    except (OSError, pyarrow.ArrowException) as error:
        raise InputError(f"{path}: cannot be read as Parquet: {error}") from error


def _column(column: pyarrow.Array) -> pyarrow.Array:
    """Python's time has microseconds, and a float of epoch seconds hardly more; pandas writes nanoseconds."""
    import pyarrow

    kind = column.type
    if pyarrow.types.is_timestamp(kind) and kind.unit == "ns":
        return column.cast(pyarrow.timestamp("us", kind.tz), safe=False)
    return column


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(int(value))
    return value.isoformat() if isinstance(value, datetime) else str(value)


def _check_names(place: Path | str, names: list[str]) -> None:
    for name in names:
        if not name or name == JOINT:
            raise InputError(
                f"{place}: found {name!r} as the name of a series; expected one that is not empty and not *"
            )
    if len(set(names)) != len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise InputError(f"{place}: found {', '.join(twice)} more than once; expected a name for each series")


def epoch_seconds(cell: str, place: str) -> float:
    """Epoch seconds or ISO 8601; without a zone it is UTC. Raises InputError, which names the place."""
    time = parse_number(cell)
    if time is None:
        try:
            moment = datetime.fromisoformat(cell.strip())
            time = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
        except (ValueError, OverflowError):
            time = math.nan
    if not abs(time) < FARTHEST_SECONDS:
        raise InputError(f"{place}: found {cell[:40]!r} as a time; expected epoch seconds or ISO 8601")
    return time


def _value(cell: str, words: Mapping[str, float], place: str) -> float | None:
    text = cell.strip()
    if not text:
        return None
    value = parse_number(text)
    value = words.get(text) if value is None else value
    if value is None:
        expected = "a number, a word for two states such as ON or closed," if words else "a number"
        raise InputError(f"{place}: found {cell[:40]!r}; expected {expected} or an empty cell")
    return value
