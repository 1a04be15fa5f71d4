"""`streamer replay` in each clause of its contract."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from models import weights
from models.features import INPUT_SIZE
from streamer.cli import main
from streamer.errors import InputError
from streamer.payloads import Columns, Decoder, Rejection
from streamer.payloads.words import WORDS
from streamer.registry import Registry
from streamer.replay import COLUMNS, replay, replay_command
from streamer.rows import Reached, read_rows
from streamer.shard import Shard
from tests.streams import random_weights

WEIGHTS = weights.load()
BOTH_WAYS = random_weights(weights.ForecasterConfig(INPUT_SIZE, 6, 2, attention=3, bidirectional=True))


def shard(registry: Registry) -> Shard:
    return Shard(registry, WEIGHTS, 64, budget_per_series_month=1.0)


def run(*files: Path, device_score: bool = False, lateness_seconds: float = 0.0) -> list[list[dict[str, str]]]:
    """The output rows of each file."""
    outputs = [io.StringIO() for _ in files]
    replay(
        list(files),
        shard(Registry(64, math.inf, math.inf)),
        list(outputs),
        device_score=device_score,
        lateness_seconds=lateness_seconds,
    )
    return [list(csv.DictReader(io.StringIO(output.getvalue()))) for output in outputs]


def label(*files: Path, lateness_seconds: float = 0.0) -> list[list[dict[str, str]]]:
    """The output rows of each file with `--offline-label`, under bidirectional weights that have learned nothing."""
    outputs = [io.StringIO() for _ in files]
    registry = Registry(64, math.inf, math.inf)
    labelling = Shard(registry, BOTH_WAYS, 64, budget_per_series_month=1.0, offline=True)
    replay(
        list(files),
        labelling,
        list(outputs),
        device_score=False,
        offline=BOTH_WAYS,
        lateness_seconds=lateness_seconds,
    )
    return [list(csv.DictReader(io.StringIO(output.getvalue()))) for output in outputs]


def forecasts(rows: list[dict[str, str]]) -> list[tuple[str, str, str]]:
    return [(row["expected"], row["lower"], row["upper"]) for row in rows]


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


@pytest.mark.parametrize("is_long", [False, True])
def test_rows_that_are_late_within_the_allowance_have_the_scores_of_those_in_order(
    tmp_path: Path, is_long: bool
) -> None:
    """To the last bit, in the order of the file, also beside others; a repeated time stays a duplicate."""
    n, rng = 200, np.random.default_rng(2)
    rows: list[tuple[object, ...]] = list(zip((60 * k for k in range(n)), wave(n), wave(n, 1), strict=True))
    header = "time,a,b"
    if is_long:
        header, rows = "time,series,value", [each for t, a, b in rows for each in ((t, "a", a), (t, "b", b))]
        rows.append((60 * n, "once", 1.0))  # a series that never comes again holds nothing up
    order = np.argsort(np.arange(len(rows)) + rng.uniform(0, 6, len(rows)), kind="stable").tolist()
    in_order, shaken = (
        write(tmp_path / "o.csv", header, rows),
        write(tmp_path / "s.csv", header, [rows[k] for k in order]),
    )
    (expected,) = run(in_order, device_score=not is_long)
    beside, found = run(wide(tmp_path), shaken, device_score=not is_long, lateness_seconds=600.0)
    lines = 1 if is_long else 3
    assert found == [line for k in order for line in expected[lines * k : lines * k + lines]]
    assert beside == run(wide(tmp_path), device_score=not is_long)[0]
    (off,) = run(shaken, device_score=not is_long)
    assert sum(line["score"] == "" for line in off) > sum(line["score"] == "" for line in found) + 50

    rows.insert(100, rows[99])
    (twice,) = run(write(tmp_path / "t.csv", header, rows), lateness_seconds=600.0)
    cells = 1 if is_long else 2
    assert [line["score"] for line in twice[98 * cells :]].index("") == 2 * cells


def test_history_is_labelled_in_the_order_of_time(tmp_path: Path) -> None:
    """What the later readings say is said of the same reading, wherever it stands in the file."""
    rows: list[tuple[object, ...]] = [(60 * k, value) for k, value in enumerate(wave(60))]
    (expected,) = label(write(tmp_path / "o.csv", "time,x", rows))
    rows.insert(50, rows.pop(45))
    (found,) = label(write(tmp_path / "s.csv", "time,x", rows), lateness_seconds=600.0)
    assert [row["time"] for row in found] == [str(row[0]) for row in rows]
    assert sorted(found, key=lambda row: int(row["time"])) == expected
    assert expected[45]["score"] != ""


def test_a_row_that_is_later_than_the_allowance_has_no_score(tmp_path: Path) -> None:
    """It stays where it was in the file."""
    rows: list[tuple[object, ...]] = [(60 * k, value) for k, value in enumerate(wave(60))]
    rows.insert(50, rows.pop(30))
    path = write(tmp_path / "late.csv", "time,x", rows)
    (out,) = run(path, lateness_seconds=600.0)
    assert [row["time"] for row in out] == [str(row[0]) for row in rows]
    assert [k for k in range(21, 60) if not out[k]["score"]] == [50]
    assert run(path, lateness_seconds=1260.0)[0][50]["score"] != ""


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
        ("time,x\n1e300,2\n", "line 2"),
        ("time,x\nnan,2\n", "line 2"),
        ("time,x\n1,two\n", "line 2"),
        ("time,x,x\n1,2,3\n", "more than once"),
        ("time,*\n1,2\n", "not *"),
        ("time,x\n1,2\n2,1_0\n", "line 3"),
        ("time,x\n1_0,2\n", "line 2"),
        ("time,x\n,2\n", "line 2"),
        ("time,x\n1,2\n1e999,2\n", "line 3"),
        ("time,series,value\n1,*,2\n", "line 2"),
        ("time,series,value\n1,,2\n", "line 2"),
        ("time,x,\n1,2,3\n", "not empty"),
        ("time,x\n1,2,3\n", "found 3 cells"),
    ],
)
def test_a_file_that_cannot_be_understood_is_named_with_its_line(tmp_path: Path, text: str, named: str) -> None:
    """InputError with the file, the place and what was expected."""
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=r"bad\.csv") as caught:
        list(read_rows(path))
    assert named in str(caught.value)


def test_words_are_read_as_payloads_are(tmp_path: Path) -> None:
    """All that the decoder of payloads knows, in both forms; none of them where `input.booleans` is off."""
    cells = [*WORDS, "21.5", " -3 ", "off ", "nan"]
    wide = write(tmp_path / "wide.csv", "time,x", list(enumerate(cells)))
    long = write(tmp_path / "long.csv", "time,series,value", [(k, "x", cell) for k, cell in enumerate(cells)])
    for path in (wide, long):
        for row, cell in zip(read_rows(path), cells, strict=True):
            found = Columns()
            assert Decoder().decode("t", cell.encode(), 0.0, found) in (None, Rejection.NOT_FINITE)
            assert list(row.values) == found.value or math.isnan(row.values[0] or 0.0)
        with pytest.raises(InputError, match="line 2: found 'off'; expected a number or an empty cell"):
            list(read_rows(path, words={}))


def test_the_command_follows_the_settings_and_tells_times_in_iso_8601(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Epoch seconds say nothing to a person; a time that is text already is told as it stands."""
    values = wave(300)
    values[250] = 90.0
    start = 1_790_000_000
    for name, time in (("epoch", str), ("text", lambda at: datetime.fromtimestamp(at, UTC).isoformat())):
        rows = [(time(start + 60 * k), value, "open" if k % 9 else "closed") for k, value in enumerate(values)]
        path = write(tmp_path / f"{name}.csv", "time,x,door", rows)
        assert main(["replay", str(path), "--output", str(tmp_path / "out")]) == 0
        told = {"epoch": "2026-09-21T18:23:20.000Z", "text": "2026-09-21T18:23:20+00:00"}[name]
        assert f"alarm at {told} on x: value 90" in capsys.readouterr().err
    assert main(["replay", str(path), "--set", "input.booleans=false"]) == 2
    assert "expected a number or an empty cell" in capsys.readouterr().err


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "UTC", "Europe/Paris"])
def test_parquet_times_of_any_unit_are_read(tmp_path: Path, unit: str, zone: str | None) -> None:
    """pandas writes nanoseconds; a column without a zone is UTC. Booleans are numbers, nulls are empty cells."""
    per_second = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
    times = pyarrow.array([1_700_000_000 * per_second + (0 if unit == "s" else per_second // 4)]).cast(
        pyarrow.timestamp(unit, zone)
    )
    table = pyarrow.table({"time": times, "open": [True], "absent": pyarrow.array([None], pyarrow.float64())})
    parquet.write_table(table, tmp_path / "t.parquet")
    (row,) = read_rows(tmp_path / "t.parquet")
    assert row.time == 1_700_000_000 + (0 if unit == "s" else 0.25)
    assert list(row.values) == [1.0, None]


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_how_far_a_file_is_read_rises_from_nothing_to_all(tmp_path: Path, ending: str) -> None:
    """About, while it is read, and when it has been closed."""
    path, n = tmp_path / f"long.{ending}", 200_000
    if ending == "csv":
        write(path, "time,x", [(k, 1) for k in range(n)])
    else:
        parquet.write_table(pyarrow.table({"time": np.arange(n, dtype=float), "x": np.ones(n)}), path)
    reached = Reached()
    shares = [reached.share()]
    for k, _ in enumerate(read_rows(path, reached)):
        if k % 10_000 == 0:
            shares.append(reached.share())
    shares.append(reached.share())
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0, 1)
    assert 0.4 < shares[len(shares) // 2] < 0.6


def test_a_file_that_is_no_parquet_is_named(tmp_path: Path) -> None:
    """Damaged, or something else under that name."""
    path = tmp_path / "bad.parquet"
    path.write_bytes(b"PAR1 and nothing more")
    with pytest.raises(InputError, match=r"bad\.parquet: cannot be read as Parquet"):
        list(read_rows(path))


def test_a_byte_order_mark_crlf_and_spaces_do_not_matter(tmp_path: Path) -> None:
    """Spreadsheets write them; time is echoed as it stands there."""
    path = tmp_path / "excel.csv"
    path.write_bytes(b"\xef\xbb\xbftime , a \r\n 1.50, 2\r\n\r\n")
    (row,) = read_rows(path)
    assert (row.text, row.time, list(row.names), list(row.values)) == (" 1.50", 1.5, ["a"], [2.0])


def test_an_alarm_is_named_on_each_of_its_rows(tmp_path: Path) -> None:
    """From the reading that opened it to the last one before it closed; on the row of the device too."""
    values = wave(300)
    values[250] = 90.0
    (rows,) = run(write(tmp_path / "a.csv", "time,x", [(60 * k, v) for k, v in enumerate(values)]), device_score=True)
    named = [k for k, row in enumerate(rows[::2]) if row["alarm"]]
    assert named[0] == 250
    assert named == list(range(250, 250 + len(named)))
    assert 10 <= len(named) < 40
    assert len({row["alarm"] for row in rows[::2]}) == 2
    assert [row["alarm"] for row in rows[::2]] == [row["alarm"] for row in rows[1::2]]


def test_an_alarm_of_several_series_is_named_on_the_rows_of_each(tmp_path: Path) -> None:
    """While the series is a member of it, and no longer."""
    x, y = np.array(wave(300)), np.array(wave(300))
    x[250] = y[250] = 90.0
    y[251:270] = 90.0
    path = write(tmp_path / "a.csv", "time,x,y", [(60 * k, *pair) for k, pair in enumerate(zip(x, y, strict=True))])
    (rows,) = run(path, device_score=True)
    x_alarm, y_alarm, device = ([row["alarm"] for row in rows[k::3]] for k in range(3))
    assert len({*x_alarm, *y_alarm, *device} - {""}) == 1
    assert x_alarm[250] == x_alarm[255] != x_alarm[265] == ""
    assert [k for k, alarm in enumerate(y_alarm) if alarm][:20] == list(range(250, 270))
    assert device == y_alarm


def test_a_row_of_a_device_without_any_reading_has_an_empty_joint_score(tmp_path: Path) -> None:
    """One row `*` for each input row, in the long form as in the wide one."""
    path = write(tmp_path / "w.csv", "time,x,y", [(0, 1, 2), (60, "", ""), (120, "", 3)])
    (rows,) = run(path, device_score=True)
    assert [row["series"] for row in rows] == ["x", "y", "*", "*", "y", "*"]
    assert [row["score"] for row in rows] == [""] * 6
    path = write(tmp_path / "l.csv", "time,series,value", [(0, "x", 1), (0, "y", 2), (60, "x", "")])
    (rows,) = run(path, device_score=True)
    assert [row["series"] for row in rows] == ["x", "*", "y", "*", "*"]


def test_more_series_than_the_limit_are_refused(tmp_path: Path) -> None:
    """Never scored under another series' state."""
    path = write(tmp_path / "many.csv", "time," + ",".join(f"c{k}" for k in range(65)), [(0, *range(65))])
    with pytest.raises(InputError, match=r"more than 64 series.*limits\.max_series"):
        run(path)


def test_an_input_is_never_overwritten(tmp_path: Path) -> None:
    """Neither as the output itself nor by a folder that holds the inputs."""
    files = [wide(tmp_path, 5, "one.csv"), wide(tmp_path, 5, "two.csv")]
    before = [path.read_bytes() for path in files]
    (tmp_path / "link.csv").symlink_to(files[0])
    for inputs, output in ((files[:1], files[0]), (files[:1], tmp_path / "link.csv"), (files, tmp_path)):
        with pytest.raises(InputError, match="same file as input and as output"):
            replay_command(inputs, output, shard, 64, device_score=False)
    assert [path.read_bytes() for path in files] == before


def test_what_cannot_be_read_or_written_is_named(tmp_path: Path) -> None:
    """A file that is absent, two of one name, an output below a file."""
    one = wide(tmp_path, 5, "one.csv")
    with pytest.raises(InputError, match=r"absent\.csv: found no such file"):
        replay_command([tmp_path / "absent.csv"], None, shard, 64, device_score=False)
    (tmp_path / "other").mkdir()
    with pytest.raises(InputError, match="two files of one name"):
        replay_command([one, wide(tmp_path / "other", 5, "one.csv")], tmp_path, shard, 64, device_score=False)
    with pytest.raises(InputError, match="cannot be written"):
        replay_command([one], one / "scores.csv", shard, 64, device_score=False)


def test_replaying_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    """No randomness, no clock."""
    path = wide(tmp_path)
    for name in ("a", "b"):
        replay_command([path], tmp_path / name, shard, 64, device_score=True)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_several_files_go_to_a_folder(tmp_path: Path) -> None:
    """One output each, by the file's name; without --output several files are refused."""
    files = [wide(tmp_path, 5, "one.csv"), wide(tmp_path, 5, "two.csv")]
    with pytest.raises(InputError, match="--output"):
        replay_command(files, None, shard, 64, device_score=False)
    assert replay_command(files, tmp_path / "out", shard, 64, device_score=False) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["one.csv", "two.csv"]


def test_a_label_is_forecast_from_both_sides_and_never_from_its_own_value(tmp_path: Path) -> None:
    """Another reading 50: its own forecast stays what it was, those before it and after it change."""
    values = wave(60)
    other = [*values[:50], values[50] + 1.5, *values[51:]]
    a = write(tmp_path / "a.csv", "time,x", [(60 * k, v) for k, v in enumerate(values)])
    b = write(tmp_path / "b.csv", "time,x", [(60 * k, v) for k, v in enumerate(other)])
    one, two = forecasts(label(a)[0]), forecasts(label(b)[0])
    assert one[50] == two[50]
    assert one[50] != ("", "", "")
    assert [k for k in range(40, 60) if one[k] == two[k]] == [50]
    assert [row["score"] == "" for row in label(a)[0]] == [True] * 20 + [False] * 40
    one, two = forecasts(run(a)[0]), forecasts(run(b)[0])
    assert one[:51] == two[:51]


def test_rows_that_are_not_scored_tell_the_others_nothing_of_what_is_to_come(tmp_path: Path) -> None:
    """Late, repeated, empty, infinite: the others are labelled as in a file without them."""
    rows: list[tuple[object, ...]] = [
        (60 * k, v, w) for k, (v, w) in enumerate(zip(wave(50), wave(50, 3), strict=True))
    ]
    odd = list(rows)
    for at, row in ((45, (60 * 10 + 1, 99.0, 99.0)), (40, (60 * 39, 77.0, "")), (30, (60 * 29 + 7, "inf", "nan"))):
        odd.insert(at, row)
    plain = label(write(tmp_path / "plain.csv", "time,a,b", rows))[0]
    mixed = label(write(tmp_path / "mixed.csv", "time,a,b", odd))[0]
    assert len(mixed) == len(plain) + 5
    kept = [row for row in mixed if row["value"] not in ("99.0", "77.0", "inf", "nan")]
    assert kept == plain


def test_several_files_are_labelled_as_each_alone(tmp_path: Path) -> None:
    """Of unequal length, in the wide and in the long form."""
    long = write(
        tmp_path / "long.csv", "time,series,value",
        [(60 * k, name, v + at) for k, v in enumerate(wave(45, 8)) for at, name in enumerate(("p", "q"))],
    )  # fmt: skip
    files = [wide(tmp_path, 60, "one.csv", 1), wide(tmp_path, 25, "two.csv", 5), long]
    for path, together in zip(files, label(*files), strict=True):
        (alone,) = label(path)
        assert [row["time"] for row in together] == [row["time"] for row in alone]
        for name in ("expected", "score"):
            columns = [[float(row[name] or -1) for row in table] for table in (together, alone)]
            np.testing.assert_allclose(columns[0], columns[1], atol=1e-4)


def test_a_file_without_readings_is_labelled_too(tmp_path: Path) -> None:
    """Nothing in, nothing out."""
    assert label(write(tmp_path / "empty.csv", "time,x", [])) == [[]]
    assert label(write(tmp_path / "blank.csv", "time,x", [(0, ""), (60, "")])) == [[]]
