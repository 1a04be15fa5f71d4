"""`inspect`: the state that a start would reach, whatever the files look like, and not a byte of them changed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from models.weights import ForecasterConfig
from streamer import snapshot
from streamer.disk import DiskFiles
from streamer.errors import StateError
from streamer.inspection import Inspection, inspect
from streamer.journal import Journal
from streamer.records import Paused
from streamer.statedir import StateDirectory
from tests.states import KEYS, SERIES, flip, flip_group, make_state, new_shard, snapshots
from tests.streams import START, random_weights


def look(directory: Path) -> Inspection:
    return inspect(directory, new_shard())


def contents(directory: Path) -> dict[str, tuple[int, bytes]]:
    """Every file with its time and content."""
    files = [path for path in sorted(directory.rglob("*")) if path.is_file()]
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in [*files]}


def test_it_says_what_is_there(tmp_path: Path) -> None:
    """Positions, files, counts by series."""
    make_state(tmp_path / "state")
    found = look(tmp_path / "state")
    assert (found.series, found.readings, found.readings_applied) == (SERIES, 160, dict.fromkeys(KEYS, 40))
    assert [(each.file, each.position) for each in found.snapshots] == [
        ("snapshot-000000000002.snap", 21), ("snapshot-000000000001.snap", 11),
    ]  # fmt: skip
    assert found.snapshot == "snapshot-000000000002.snap"
    assert (found.journal_first, found.journal_end, found.journal_replayed) == (0, 41, 20 * SERIES)
    assert (found.problems, found.alarms, found.in_use_by, found.left_behind) == ([], [], None, None)
    assert found.summary()["journal"] == "records 0 to 40"
    assert sum(found.in_charge.values()) == SERIES


def test_it_names_the_series_that_are_paused(tmp_path: Path) -> None:
    """Those that a start would leave paused; it is another state."""
    make_state(tmp_path / "a")
    before = look(tmp_path / "a")
    journal = Journal(DiskFiles(tmp_path / "a" / "journal"), lambda: START)
    journal.open()
    journal.append(Paused([1, 3], START))
    journal.sync()
    journal.close()
    found = look(tmp_path / "a")
    assert (before.paused, found.paused) == ([], [KEYS[1], KEYS[3]])
    assert found.summary()["paused"] == f"{KEYS[1]}, {KEYS[3]}"
    assert found.sha256 != before.sha256


def test_the_digests_do_not_depend_on_the_files(tmp_path: Path) -> None:
    """Without snapshots, with others, in other segments, from a torn tail: the same state; another one differs."""
    make_state(tmp_path / "a")
    found = look(tmp_path / "a")
    make_state(tmp_path / "b", snapshots=())
    make_state(tmp_path / "c", snapshots=(3, 39))
    shutil.copytree(tmp_path / "a", tmp_path / "d")
    flip(snapshots(tmp_path / "d")[-1], -50)
    last = max((tmp_path / "a" / "journal").glob("*.log"))
    shutil.copytree(tmp_path / "a", tmp_path / "e")
    with (tmp_path / "e" / "journal" / last.name).open("ab") as file:
        file.write(bytes(range(100)))
    for other in "bcde":
        again = look(tmp_path / other)
        assert (again.sha256, again.sha256_with_arrivals) == (found.sha256, found.sha256_with_arrivals), other
    assert look(tmp_path / "e").journal_cut_bytes == 100
    assert look(tmp_path / "e").problems == []
    make_state(tmp_path / "f", 39)
    assert look(tmp_path / "f").sha256 != found.sha256


def test_slots_do_not_matter(tmp_path: Path) -> None:
    """The same series let in in another order, by other readings before: what each has is the same."""
    shards = []
    for order in (KEYS, KEYS[::-1]):
        shard = new_shard()
        shard.registry.resolve(order, 0.0)
        shards.append(shard)
    found = []
    for number, shard in enumerate(shards):
        state = shard.export()
        directory = tmp_path / str(number)
        directory.mkdir()
        snapshot.write(directory, state.arrays, state.rest, position=0)
        found.append(look(directory).sha256)
    assert found[0] == found[1]


@pytest.mark.parametrize("damage", ["sound", "snapshot", "both", "journal", "foreign", "leftovers"])
def test_nothing_is_written(tmp_path: Path, damage: str) -> None:
    """Also where a start would set files aside or remove them: that is told instead."""
    directory = tmp_path / "state"
    make_state(directory, admit_at={30: "plant/new"})
    segments = sorted((directory / "journal").glob("*.log"))
    match damage:
        case "snapshot":
            flip(snapshots(directory)[-1], -50)
        case "both":
            for path in snapshots(directory):
                flip(path, -50)
        case "journal":
            flip_group(directory, 30)
        case "foreign":
            flip(next(path for path in segments if b"plant/new" in path.read_bytes()), 8)
        case "leftovers":
            (directory / "snapshot-000000000003.snap.part").write_bytes(b"half")
            (directory / "journal" / f"{99:020d}.log.part").write_bytes(b"half")
    before = contents(directory)
    directory.chmod(0o500)
    found = look(directory)
    directory.chmod(0o700)
    assert contents(directory) == before
    assert not any("it is kept" in problem for problem in found.problems)
    assert bool(found.problems) == (damage not in ("sound", "leftovers"))
    assert found.series == SERIES + (damage != "foreign")


def test_a_directory_in_use_is_said_to_be(tmp_path: Path) -> None:
    """By whom; and looking at it does not keep a daemon from it."""
    make_state(tmp_path / "state")
    directory = StateDirectory(tmp_path / "state")
    directory.open()
    assert look(tmp_path / "state").in_use_by == f"process {os.getpid()}"
    directory.close()
    assert look(tmp_path / "state").in_use_by is None
    directory.open()
    directory.close()


def test_the_state_of_other_weights_is_said_to_be(tmp_path: Path) -> None:
    """Counts are there, hidden states are not, as for a start."""
    weights = random_weights(ForecasterConfig(input_size=18, hidden_size=8))
    make_state(tmp_path / "state", snapshots=(40,), groups=41, weights=weights)
    found = look(tmp_path / "state")
    assert found.left_behind is not None
    assert found.readings == 41 * SERIES


def test_what_is_no_directory_is_refused(tmp_path: Path) -> None:
    """With its name."""
    with pytest.raises(StateError, match="cannot be read"):
        look(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    assert (look(tmp_path / "empty").series, look(tmp_path / "empty").journal_end) == (0, 0)
