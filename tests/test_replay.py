"""`streamer replay` in each clause of its contract."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from models import weights
from streamer.errors import InputError
from streamer.registry import Registry
from streamer.replay import COLUMNS, read_rows, replay, replay_command
from streamer.shard import Shard

WEIGHTS = weights.load()


def shard(registry: Registry) -> Shard:
    return Shard(registry, WEIGHTS, 64, budget_per_series_month=1.0)


def run(*files: Path, device_score: bool = False) -> list[list[dict[str, str]]]:
    """The output rows of each file."""
    outputs = [io.StringIO() for _ in files]
    replay(list(files), shard(Registry(64, math.inf, math.inf)), list(outputs), device_score=device_score)
    return [list(csv.DictReader(io.StringIO(output.getvalue()))) for output in outputs]


def wave(n: int, seed: int = 0) -> list[float]:
    rng = np.random.default_rng(seed)
    return [round(float(x), 3) for x in 20 + np.sin(np.arange(n) / 9) + 0.1 * rng.normal(size=n)]


def write(path: Path, header: str, rows: Sequence[tuple[object, ...]]) -> Path:
    path.write_text(header + "\n" + "".join(",".join(map(str, row)) + "\n" for row in rows))
    return path


def wide(folder: Path, n: int = 60, name: str = "wide.csv", seed: int = 0) -> Path:
    rows = zip((1_700_000_000 + 60 * k for k in range(n)), wave(n, seed), wave(n, seed + 1), strict=True)
    return write(folder / name, "time,a,b", list(rows))


def test_rows_columns_and_the_joint_score_come_in_order(tmp_path: Path) -> None:
    """Row by row, left to right, then `*`; time is echoed as it was read; no score before the series is warm."""
    (rows,) = run(wide(tmp_path), device_score=True)
    assert list(rows[0]) == list(COLUMNS)
    assert [row["series"] for row in rows] == ["a", "b", "*"] * 60
    assert [row["time"] for row in rows[::3]] == [str(1_700_000_000 + 60 * k) for k in range(60)]
    assert all(row["score"] == "" for row in rows[: 3 * 20])
    assert all(float(row["score"]) >= 0 for row in rows[3 * 20 :])
    joint = rows[-1]
    assert [joint[name] for name in ("value", "expected", "lower", "upper")] == [""] * 4
    a, b = float(rows[-3]["score"]), float(rows[-2]["score"])
    assert 0 <= float(joint["score"]) <= max(a, b)
    assert float(rows[-3]["lower"]) < float(rows[-3]["expected"]) < float(rows[-3]["upper"])


def test_an_empty_cell_is_no_reading_and_an_odd_number_keeps_its_row(tmp_path: Path) -> None:
    """No output row for an empty cell; NaN and infinity have a row without a score and teach nothing."""
    rows: list[tuple[object, ...]] = [(60 * k, value, "") for k, value in enumerate(wave(40))]
    rows[30] = (60 * 30, "nan", "")
    rows[31] = (60 * 31, "inf", "7")
    (out,) = run(write(tmp_path / "odd.csv", "time,a,b", rows))
    assert [row["series"] for row in out].count("b") == 1
    assert [row["score"] for row in out if row["value"] in {"nan", "inf"}] == ["", ""]
    assert out[-1]["score"] != ""


def test_long_and_wide_say_the_same(tmp_path: Path) -> None:
    """The same readings in either shape get the same scores."""
    values = wave(50)
    a = write(tmp_path / "w.csv", "time,x", [(60 * k, v) for k, v in enumerate(values)])
    b = write(tmp_path / "l.csv", "time,series,value", [(60 * k, "x", v) for k, v in enumerate(values)])
    first, second = run(a), run(b)
    assert first[0] == second[0]


def test_iso_times_without_a_zone_are_utc(tmp_path: Path) -> None:
    """2023-11-14T22:13:20 is 1,700,000,000, with or without its zone."""
    path = write(tmp_path / "t.csv", "time,x", [("2023-11-14T22:13:20", 1), ("2023-11-14T23:13:20+01:00", 2)])
    assert [row.time for row in read_rows(path)] == [1_700_000_000.0, 1_700_000_000.0]
    assert [row.text for row in read_rows(path)] == ["2023-11-14T22:13:20", "2023-11-14T23:13:20+01:00"]


def test_late_and_repeated_rows_stay_without_a_score(tmp_path: Path) -> None:
    """A row out of order or with a time that was there before is echoed, not scored."""
    rows: list[tuple[object, ...]] = [(60 * k, value) for k, value in enumerate(wave(40))]
    rows[35] = rows[34]
    rows[36] = (60 * 10 + 1, 20.0)
    (out,) = run(write(tmp_path / "late.csv", "time,x", rows))
    assert len(out) == 40
    assert [out[k]["score"] == "" for k in (34, 35, 36, 37)] == [False, True, True, False]


def test_several_files_side_by_side_are_as_each_alone(tmp_path: Path) -> None:
    """Independent devices: scores agree to 1e-6, alarms exactly."""
    files = [wide(tmp_path, 60, "one.csv", 1), wide(tmp_path, 45, "two.csv", 5)]
    together = run(*files)
    for path, rows in zip(files, together, strict=True):
        (alone,) = run(path)
        scores = [[float(row["score"] or -1) for row in table] for table in (rows, alone)]
        np.testing.assert_allclose(scores[0], scores[1], atol=1e-6)
        assert len(rows) == len(alone)


def test_what_comes_later_changes_no_earlier_score(tmp_path: Path) -> None:
    """Causal: another future, the same past."""
    values = wave(60)
    other = values[:40] + [1000.0] * 20
    a = write(tmp_path / "a.csv", "time,x", [(60 * k, v) for k, v in enumerate(values)])
    b = write(tmp_path / "b.csv", "time,x", [(60 * k, v) for k, v in enumerate(other)])
    assert run(a)[0][:40] == run(b)[0][:40]


def test_parquet_is_as_csv(tmp_path: Path) -> None:
    """The same table from a Parquet file."""
    values = wave(40)
    table = pyarrow.table({"time": [60.0 * k for k in range(40)], "x": values})
    parquet.write_table(table, tmp_path / "p.parquet")
    path = write(tmp_path / "c.csv", "time,x", [(60.0 * k, v) for k, v in enumerate(values)])
    assert run(tmp_path / "p.parquet") == run(path)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "expected time"),
        ("when,x\n1,2\n", "expected time"),
        ("time,x\n1\n", "line 2"),
        ("time,x\nyesterday,2\n", "line 2"),
        ("time,x\n1,two\n", "line 2"),
        ("time,x,x\n1,2,3\n", "more than once"),
        ("time,*\n1,2\n", "not *"),
    ],
)
def test_a_file_that_cannot_be_understood_is_named_with_its_line(tmp_path: Path, text: str, named: str) -> None:
    """InputError with the file, the place and what was expected."""
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=r"bad\.csv") as caught:
        list(read_rows(path))
    assert named in str(caught.value)


def test_several_files_go_to_a_folder(tmp_path: Path) -> None:
    """One output each, by the file's name; without --output several files are refused."""
    files = [wide(tmp_path, 5, "one.csv"), wide(tmp_path, 5, "two.csv")]
    with pytest.raises(InputError, match="--output"):
        replay_command(files, None, shard, 64, device_score=False)
    assert replay_command(files, tmp_path / "out", shard, 64, device_score=False) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["one.csv", "two.csv"]
