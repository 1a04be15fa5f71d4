"""`streamer bench quality`: figures a person can check, scores as `replay` writes them, and floors that hold."""

from __future__ import annotations

import csv
import importlib
import json
import math
import sys
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType

import msgspec
import numpy as np
import pytest
from numpy.typing import ArrayLike, NDArray

from streamer.bench import main
from streamer.bench.quality.figures import HEAD, WANTED, Figures, Judgement, figures_of
from streamer.bench.quality.metrics import NabFile, Scored, caught, nab, over_chance, vus_pr
from streamer.bench.quality.recordings import Recording, load, select
from streamer.bench.quality.scoring import Verdict, unit_score
from streamer.bench.report import Figure, Report
from streamer.cli import main as streamer
from streamer.errors import InputError, SettingsError
from streamer.readings import Float64

# What `streamer bench quality --json --data DIR --on NAME,NAME...` measures on these is a little better than FLOORS.
SHORT = (
    "NAB/realTraffic/speed_7578",
    "NAB/realAdExchange/exchange-4_cpc_results",
    "NAB/realAdExchange/exchange-4_cpm_results",
    "NAB/realTraffic/TravelTime_387",
    "SKAB/valve2/3",
    "SKAB/other/12",
    "SKAB/valve1/7",
    "3W/5-WELL-00016_20180405020345",
    "3W/2-WELL-00011_20141006160121",
    "MSL/T-9",
)
FLOORS = {
    "nab_caught_at_1_per_10k": 0.55,
    "nab_caught_at_1_per_1k": 0.78,
    "nab_vus_pr": 0.51,
    "nab_score_standard": 74.0,
    "nab_score_low_fp": 67.0,
    "nab_caught_by_alarm": 0.55,
    "nab_false_alarms": 4.0,  # of these, no more
    "skab_caught_at_1_per_10k": 0.93,
    "skab_vus_pr": 0.91,
    "3w_caught_at_1_per_10k": 0.93,
    "3w_vus_pr": 0.95,
    "msl_vus_pr": 0.39,
    "msl_false_alarms": 1.0,
}


def windows(*pairs: tuple[int, int]) -> NDArray[np.int64]:
    return np.array(pairs, np.int64).reshape(-1, 2)


def peaks(rows: int, at: Mapping[int, float]) -> Float64:
    """Zeros, but for some rows."""
    score = np.zeros(rows)
    for row, value in at.items():
        score[row] = value
    return score


# --- Figures of merit, by hand ---


def test_caught_has_the_lowest_threshold_that_the_false_alarms_allow() -> None:
    """One false alarm is allowed: 0.9 sounds, 0.8 may not, and 0.85 within the window is above that."""
    part = Scored(peaks(1000, {0: 0.9, 300: 0.8, 604: 0.85}), windows((600, 609)))
    found = caught([part], 1000)
    assert (found.share, found.above, found.false_alarms) == (1.0, 0.8, 1)
    assert found.delay == pytest.approx(0.4)
    none_allowed = caught([part], 1001)
    assert (none_allowed.share, none_allowed.above, none_allowed.false_alarms) == (0.0, 0.9, 0)
    assert math.isnan(none_allowed.delay)


def test_one_threshold_holds_for_all_recordings() -> None:
    """A recording whose scores run high costs the others their catches."""
    quiet = Scored(peaks(500, {100: 0.5}), windows((95, 104)))
    loud = Scored(peaks(500, {0: 0.7, 200: 0.7, 400: 0.7}), windows())
    assert caught([quiet], 1000).share == 1.0
    assert caught([quiet, loud], 500).share == 0.0  # at 0.5 there are three false alarms, two are allowed


@pytest.mark.parametrize(("row", "false_alarms"), [(609, 0), (619, 0), (620, 1)])
def test_after_a_window_its_own_length_is_free(row: int, false_alarms: int) -> None:
    """The way back to normal is no false alarm: ten rows after a window of ten."""
    assert caught([Scored(peaks(1000, {row: 0.9}), windows((600, 609)))], 1000).above == 0.0
    found = caught([Scored(peaks(1000, {row: 0.9, 0: 0.5, 300: 0.4}), windows((600, 609)))], 1000)
    assert found.above == (0.5 if false_alarms else 0.4)


def test_a_false_alarm_that_lasts_sounds_again() -> None:
    """Every hundred rows: rows 0 to 250 are three, and are too much where two are allowed."""
    score = peaks(1000, dict.fromkeys(range(251), 0.9) | {604: 0.5})
    part = Scored(score, windows((600, 609)))
    assert caught([part], 500).share == 0.0
    assert caught([part], 333).share == 1.0


def test_without_a_window_nothing_is_caught() -> None:
    """The share is absent, not 0."""
    found = caught([Scored(np.linspace(0, 1, 50), windows())], 10)
    assert math.isnan(found.share)
    assert math.isnan(found.delay)


def test_volume_under_precision_and_recall_by_hand() -> None:
    """Tolerances 0 and 1 reach no further than the window: average precision 1/2. At 2 its neighbours count sqrt(1/2).

    Then, from the highest score down: recall 0.707/1.354 at precision 0.707/1, recall 1 at precision 1.707/2.
    """
    part = Scored(np.array([0.1, 0.9, 0.5, 0.3]), windows((2, 2)))
    assert vus_pr(part, 0) == pytest.approx(0.5)
    root = math.sqrt(0.5)
    recall = root / (1 + root / 2)
    at_two = recall * root + (1 - recall) * (1 + root) / 2
    assert vus_pr(part, 2) == pytest.approx((0.5 + 0.5 + at_two) / 3)


def test_a_window_that_is_not_touched_lowers_recall() -> None:
    """Two windows of one row; the first is at the top, the second at the bottom: 1 * (1/2 * 1/2) + 3/4 * 2/4."""
    part = Scored(np.array([0.9, 0.5, 0.4, 0.1]), windows((0, 0), (3, 3)))
    assert vus_pr(part, 0) == pytest.approx(0.25 + 0.75 * 0.5)


def test_over_chance_runs_from_random_to_perfect() -> None:
    """Half of the way from 0.6 to 1 is a half."""
    assert over_chance(0.8, 0.6) == pytest.approx(0.5)
    assert over_chance(0.6, 0.6) == 0.0
    assert over_chance(1.0, 0.6) == 1.0


@pytest.mark.parametrize(
    ("at", "standard", "low_fp", "low_fn"),
    [
        ({50: 1.0}, 100.0, 100.0, 100.0),  # the first row of the window
        ({}, 0.0, 0.0, 0.0),
        ({10: 1.0, 50: 1.0}, 100.0, 100.0, 100.0),  # in the warm-up nothing counts
        ({20: 1.0, 50: 1.0}, 100 * 1.89 / 2, 100 * 1.78 / 2, 100 * 2.89 / 3),  # a false alarm at full price
        ({59: 1.0}, 62.41, 62.41, 74.94),  # the last row: a sigmoid of -1/10 over one of -1 is 0.2482
        ({20: 0.5, 50: 1.0}, 100.0, 100.0, 100.0),  # the best threshold lies between
    ],
)
def test_nab_by_hand(at: dict[int, float], standard: float, low_fp: float, low_fn: float) -> None:
    """100 rows of which 15 are warm-up, one window of ten."""
    found = nab([NabFile(peaks(100, at), windows((50, 59)), 15)])
    assert found == pytest.approx({"standard": standard, "low_fp": low_fp, "low_fn": low_fn}, abs=0.01)


def test_nab_charges_less_just_after_a_window() -> None:
    """At its last row plus three ninths of its width less one: sigmoid(1/3) = -0.6823."""
    found = nab([NabFile(peaks(100, {50: 1.0, 62: 1.0}), windows((50, 59)), 15)])
    charge = 0.11 * (1 - 2 / (1 + math.exp(5 / 3)))
    assert found["standard"] == pytest.approx(100 * (2 - charge) / 2)


# --- Equality with the scorer that came with the recordings ---


@pytest.fixture
def scorer(quality_data: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """Its `score.py`; nothing of it stays imported."""
    names = ("score", "metrics", "load", "nab_score")
    monkeypatch.syspath_prepend(str(quality_data))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield importlib.import_module("score")
    for name in names:
        sys.modules.pop(name, None)


def random_parts(rng: np.random.Generator) -> list[Scored]:
    """Some recordings with windows of every length, also at the edges, and with ties."""
    parts = []
    for _ in range(int(rng.integers(1, 5))):
        rows = int(rng.integers(150, 2000))
        edges = np.sort(rng.choice(rows, 2 * int(rng.integers(0, 6)), replace=False)).reshape(-1, 2)
        score = rng.random(rows)
        for first, last in edges:
            score[first : last + 1] += rng.random() * 0.5
        score = np.round(score / 2, 2) if rng.random() < 0.5 else score / 2
        parts.append(Scored(score, edges.astype(np.int64)))
    return [*parts, Scored(np.append(rng.random(99), 0.9), windows((0, 3), (99, 99)))]


@pytest.mark.parametrize("seed", range(8))
def test_figures_equal_the_scorers_on_random_scores(scorer: ModuleType, seed: int) -> None:
    """Every figure that both have, to the last digits."""
    parts = random_parts(np.random.default_rng(seed))
    theirs = scorer.score_dataset([(str(k), part.score, part.windows) for k, part in enumerate(parts)])
    pairs = [
        (Recording(f"X/{k}", np.arange(float(len(p.score))), np.zeros((len(p.score), 1), np.float32), p.windows, 0), p)
        for k, p in enumerate(parts)
    ]
    ours = figures_of([(recording, Verdict(part.score / (1 - part.score), [])) for recording, part in pairs])
    assert_equal(ours, theirs)


def test_nab_equals_the_scorers_on_random_scores(scorer: ModuleType) -> None:
    """All profiles, with windows in the warm-up too."""
    rng = np.random.default_rng(1)
    nab_scores = importlib.import_module("nab_score").nab_scores
    for _ in range(20):
        parts = random_parts(rng)[:-1]  # its windows of one row are a division by zero there
        parts.append(Scored(rng.random(400), windows((10, 30), (200, 240))))
        files = [NabFile(p.score, p.windows, math.ceil(min(math.floor(0.15 * len(p.score)), 750))) for p in parts]
        theirs = nab_scores({str(k): (len(p.score), p.windows.tolist(), p.score) for k, p in enumerate(parts)})
        assert nab(files) == pytest.approx(
            {
                "standard": theirs["standard"],
                "low_fp": theirs["reward_low_FP_rate"],
                "low_fn": theirs["reward_low_FN_rate"],
            },
            abs=1e-9,
        )


def assert_equal(ours: Figures, theirs: Mapping[str, float]) -> None:
    assert ours.events == theirs["events"]
    for name, other in (
        ("caught", "caught"), ("delay", "delay"), ("caught_1k", "caught_1k"), ("vus_pr", "vus_pr"),
        ("vus_over_chance", "vus_n"),
    ):  # fmt: skip
        assert getattr(ours, name) == pytest.approx(theirs[other], abs=1e-9, nan_ok=True), name


# --- Recordings ---


def toy(name: str, rows: int, channels: int, seed: int = 0) -> dict[str, ArrayLike]:
    """A pack's arrays for one recording: noisy waves with a spike in the middle of the one labelled window."""
    rng = np.random.default_rng(seed)
    x = np.sin(np.arange(rows)[:, None] / 9 + np.arange(channels)) + 0.1 * rng.normal(size=(rows, channels))
    middle = rows * 3 // 4
    x[middle] += 40
    return {
        f"{name}/x": x.astype(np.float32),
        f"{name}/t": np.array([1.7e9, 60.0]),
        f"{name}/w": np.array([[middle - 5, middle + 5]]),
        f"{name}/s": np.array(30),
    }


def pack(folder: Path, **packs: Mapping[str, ArrayLike]) -> Path:
    (folder / "data").mkdir(exist_ok=True)
    for name, arrays in packs.items():
        with zipfile.ZipFile(folder / "data" / f"{name}.npz", "w") as archive:  # as np.savez writes it
            for key, value in arrays.items():
                with archive.open(f"{key}.npy", "w") as file:
                    np.lib.format.write_array(file, np.asarray(value))
    return folder


@pytest.fixture
def toys(tmp_path: Path) -> Path:
    """Two data sets of short recordings and the list `lite`."""
    pack(tmp_path, A=toy("A/one", 200, 1) | toy("A/two", 160, 1, 1), B=toy("B/deep/three", 180, 3, 2))
    (tmp_path / "lite.txt").write_text("# the short ones\nA/one  # one channel\n\nB/deep/three\n")
    return tmp_path


@pytest.mark.parametrize(
    ("on", "names"),
    [
        ("lite", ["A/one", "B/deep/three"]),
        ("A", ["A/one", "A/two"]),
        ("B/deep/three", ["B/deep/three"]),
        ("A/two,lite,A", ["A/two", "A/one", "B/deep/three"]),
    ],
)
def test_lists_data_sets_and_names_choose_recordings(toys: Path, on: str, names: list[str]) -> None:
    """In the order in which they are named, each once."""
    assert select(toys, on.split(",")) == names


def test_start_and_step_become_times(toys: Path) -> None:
    """Two numbers stand for all, unless there are two rows."""
    recording = next(load(toys, ["A/one"]))
    assert recording.time.tolist() == [1.7e9 + 60 * k for k in range(200)]
    assert (recording.values.shape, recording.split, recording.dataset) == ((200, 1), 30, "A")


def test_windows_count_from_the_split_on() -> None:
    """One that ends in the warm-up is gone, one that reaches out of it is cut."""
    recording = Recording("X/y", np.arange(9.0), np.zeros((9, 1), np.float32), windows((0, 2), (3, 5), (7, 8)), 4)
    assert recording.counted_windows.tolist() == [[0, 1], [3, 4]]


@pytest.mark.parametrize(
    ("on", "complaint"),
    [
        ("heavy", r"found no heavy; expected a list \(lite\), a data set \(A, B\) or a recording"),
        ("C/one", "found no C/one; expected"),
        ("A/three", "found no A/three; expected it with its arrays /x, /t, /w and /s"),
        ("../data", "found no ../data"),
        ("", "found no recordings"),
    ],
)
def test_what_is_not_there_is_named(toys: Path, on: str, complaint: str) -> None:
    """And so is what could have been said."""
    with pytest.raises(InputError, match=complaint):
        list(load(toys, select(toys, [word for word in on.split(",") if word])))


def test_a_folder_without_recordings_is_refused(tmp_path: Path) -> None:
    """Absent, empty, or with a list that names what no pack has."""
    with pytest.raises(InputError, match="found no such folder"):
        select(tmp_path / "nowhere", ["lite"])
    with pytest.raises(InputError, match="found no packs"):
        select(tmp_path, ["lite"])
    pack(tmp_path, A=toy("A/one", 40, 1))
    (tmp_path / "lite.txt").write_text("B/one\n")
    with pytest.raises(InputError, match=r"B\.npz: found no such pack"):
        list(load(tmp_path, select(tmp_path, ["lite"])))


@pytest.mark.parametrize(
    ("part", "value", "complaint"),
    [
        ("x", np.zeros(50), r"found /x \(50,\)"),
        ("t", np.arange(49.0), r"/t \(49,\)"),
        ("w", np.array([[10, 50]]), "all within n rows"),
        ("s", np.array(50), "all within n rows"),
        ("s", np.array([1]), r"/s \(1,\)"),
        ("x", np.array([[object()]] * 50), "cannot be read"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path: Path, part: str, value: ArrayLike, complaint: str) -> None:
    """With their shapes; an array of objects would be a pickle and is not opened."""
    pack(tmp_path, A=toy("A/one", 50, 1) | {f"A/one/{part}": value})
    with pytest.raises(InputError, match=complaint):
        list(load(tmp_path, ["A/one"]))


@pytest.mark.parametrize("content", [b"", b"no pack", b"PK\x03\x04 no more"])
def test_a_damaged_pack_is_refused(tmp_path: Path, content: bytes) -> None:
    """By its name."""
    pack(tmp_path)
    (tmp_path / "data" / "A.npz").write_bytes(content)
    with pytest.raises(InputError, match=r"A\.npz: found something else than a pack"):
        select(tmp_path, ["A"])


# --- Scores and alarms ---


def replayed(toys: Path, name: str) -> tuple[Float64, dict[str, int]]:
    """What `streamer replay --device-score` writes: the score of each row, and the row at which each alarm opened."""
    (recording,) = load(toys, [name])
    source, target = toys / "in.csv", toys / "out.csv"
    names = [f"c{k}" for k in range(recording.values.shape[1])]
    lines = [",".join(["time", *names])]
    for at, values in zip(recording.time.tolist(), recording.values.tolist(), strict=True):
        lines.append(",".join(map(repr, [at, *values])))
    source.write_text("\n".join(lines) + "\n")
    assert streamer(["replay", str(source), "--output", str(target), "--device-score"]) == 0
    score, opened, row = np.full(len(recording.time), np.nan), dict[str, int](), 0
    with target.open(newline="") as file:
        for each in csv.DictReader(file):
            if each["series"] == ("c0" if len(names) == 1 else "*") and each["score"]:
                score[row] = float(each["score"])
            if each["alarm"]:
                opened.setdefault(each["alarm"], row)
            row += each["series"] == "*"
    return score, opened


@pytest.mark.parametrize("name", ["A/one", "B/deep/three"])
def test_scores_are_those_of_replay(toys: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Bit for bit: one channel by its own score, several by the joint one; alarms where replay says they open."""
    score, opened = replayed(toys, name)
    assert np.isfinite(score).sum() > 100
    assert main(["quality", "--data", str(toys), "--on", name, "--scores", str(toys / "scores"), "--json"]) == 0
    saved = np.load(toys / "scores" / f"{name}.npy", allow_pickle=False)
    np.testing.assert_array_equal(saved, unit_score(score))
    figures = json.loads(capsys.readouterr().out)["figures"]
    alarms = [row for row in opened.values() if row >= 30]
    assert len(alarms) > 0
    assert figures[f"{name[0].lower()}_alarms"]["value"] == len(alarms)


def test_side_by_side_is_as_alone(toys: Path) -> None:
    """Devices of one run do not know each other."""
    argv = ["quality", "--data", str(toys), "--json", "--scores"]
    main([*argv, str(toys / "all"), "--on", "A,B"])
    for name in ("A/one", "A/two", "B/deep/three"):
        main([*argv, str(toys / "alone"), "--on", name])
        together, alone = (np.load(toys / where / f"{name}.npy") for where in ("all", "alone"))
        np.testing.assert_allclose(together, alone, atol=1e-6)


def test_scores_are_mapped_to_the_unit_interval() -> None:
    """In their order; no score is 0."""
    assert unit_score(np.array([np.nan, 0.0, 1.0, 3.0, np.inf])).tolist() == [0.0, 0.0, 0.5, 0.75, 1.0]


def test_alarms_are_counted_by_where_they_open() -> None:
    """In the warm-up: not at all. In a window: caught, once. Just after it: neither. Elsewhere: false."""
    recording = Recording(
        "X/y", np.arange(20_100.0), np.zeros((20_100, 1), np.float32), windows((1100, 1109), (5100, 5109)), 100
    )
    found = figures_of([(recording, Verdict(np.zeros(20_100), [50, 500, 1100, 1109, 1115, 1120, 9000]))])
    assert (found.alarms, found.alarmed_events, found.events) == (6, 1, 2)
    assert (found.false_alarms, found.caught_by_alarm, found.false_alarms_per_10k) == (3, 0.5, 1.5)


# --- The command ---


class Printed(msgspec.Struct, forbid_unknown_fields=True):
    """What `--json` prints, as strictly as the contract has it."""

    machine: dict[str, str | float]
    figures: dict[str, dict[str, float | str | None]]


def test_json_is_that_of_the_contract(toys: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Figures with what is wanted; progress on standard error; nothing is wanted of a few events."""
    assert main(["quality", "--data", str(toys), "--json"]) == 0
    out, err = capsys.readouterr()
    report = msgspec.json.decode(out, type=Printed)
    assert {"recordings", "seconds", "weights", "cores"} <= report.machine.keys()
    assert {f"{name}_{figure}" for name in "ab" for figure in ("caught_at_1_per_10k", "delay", "vus_pr", "alarms")} <= (
        report.figures.keys()
    )
    assert report.figures["a_caught_at_1_per_10k"] == {"value": 1.0, "wanted": None, "better": "higher"}
    assert "2 recordings, 740 readings" in err


def test_the_table_has_a_row_a_data_set(toys: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And the sum; no NAB score without NAB."""
    assert main(["quality", "--data", str(toys)]) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    head = next(at for at, line in enumerate(lines) if line.startswith("data set"))
    assert [cell.strip() for cell in lines[head].split("  ") if cell.strip()] == HEAD
    assert [line.split()[:2] for line in lines[head + 1 :]] == [["A", "1"], ["B", "1"], ["all", "2"]]


def test_settings_pass_through(toys: Path) -> None:
    """A larger budget makes higher scores; a setting that does not exist is refused."""
    argv = ["quality", "--data", str(toys), "--on", "A/one", "--json", "--scores"]
    main([*argv, str(toys / "default")])
    main([*argv, str(toys / "loose"), "--set", "alarms.budget_per_series_month=100"])
    default, loose = (np.load(toys / where / "A" / "one.npy") for where in ("default", "loose"))
    assert loose.sum() > default.sum()
    with pytest.raises(SettingsError, match=r"alarms\.nonsense"):
        main([*argv, str(toys / "none"), "--set", "alarms.nonsense=1"])


def test_errors_are_those_of_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit status 2 and a sentence; so for scores that cannot be written."""
    assert streamer(["bench", "quality", "--data", str(tmp_path / "nowhere")]) == 2
    assert "found no such folder" in capsys.readouterr().err
    pack(tmp_path, A=toy("A/one", 40, 1))
    (tmp_path / "file").write_text("")
    argv = ["bench", "quality", "--data", str(tmp_path), "--on", "A", "--scores", str(tmp_path / "file")]
    assert streamer(argv) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_a_name_that_leads_elsewhere_is_not_written(tmp_path: Path) -> None:
    """A pack comes from somewhere else."""
    pack(tmp_path, A=toy("A/../../away", 40, 1))
    with pytest.raises(InputError, match="leads out of"):
        main(["quality", "--data", str(tmp_path), "--on", "A", "--scores", str(tmp_path / "scores")])
    assert not (tmp_path / "away.npy").exists()


def test_something_is_wanted_where_there_are_enough_events() -> None:
    """Of a data set with ten, and of the mean when all that are wanted are there."""
    few = Figures(9, 1000, 0.1, 0.5, 0.2, 0.5, 0.3, 3, 1, 1)
    enough = Figures(10, 1000, 0.2, math.nan, 0.2, 0.5, 0.3, 3, 1, 1)
    sets = {"NAB": enough, "SKAB": enough, "SMAP": enough, "MSL": enough, "ASD": enough}
    scores = {"standard": 50.0, "low_fp": 40.0, "low_fn": 60.0}
    partly = Judgement({}, sets | {"3W": few}, scores).report()
    assert {name for name, figure in partly.figures.items() if figure.wanted is not None} == {
        name for name in WANTED if not name.startswith(("3w", "mean"))
    }
    assert "nab_delay" not in partly.figures
    whole = Judgement({}, sets | {"3W": enough}, scores)
    assert {n: f.wanted for n, f in whole.report().figures.items() if f.wanted is not None} == WANTED
    assert whole.means()["caught_at_1_per_10k"] == pytest.approx(0.2)
    assert "missed" in whole.table()


# --- Floors ---


@pytest.mark.filterwarnings("ignore:Mean of empty slice")  # the other scorer, where no data set has ten events
def test_quality_has_not_fallen(
    quality_data: Path, scorer: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A handful of short recordings; on the scores that were saved the other scorer finds the same figures."""
    argv = ["quality", "--data", str(quality_data), "--on", ",".join(SHORT), "--scores", str(tmp_path), "--json"]
    assert main(argv) == 0
    figures = msgspec.json.decode(capsys.readouterr().out, type=Report).figures

    theirs = scorer.score_dir(str(tmp_path), ",".join(SHORT))
    for name, dataset in theirs["datasets"].items():
        for ours, other in (("caught_at_1_per_10k", "caught"), ("vus_pr", "vus_pr"), ("vus_over_chance", "vus_n")):
            assert figures[f"{name.lower()}_{ours}"].value == pytest.approx(dataset[other], rel=1e-3), (name, ours)
    assert figures["nab_score_standard"].value == pytest.approx(theirs["nab"]["standard"], rel=1e-3)

    measured = {name: figures[name] for name in FLOORS}
    bounds = {name: Figure(figure.value, FLOORS[name], figure.better) for name, figure in measured.items()}
    fallen = {name: bound for name, bound in bounds.items() if not bound.is_kept()}
    assert not fallen
