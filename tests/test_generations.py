"""The weights in a state directory: numbered for good, checked before they serve, never in the way of a start."""

from __future__ import annotations

from pathlib import Path

import pytest

from models import weights as weights_files
from models.weights import ForecasterConfig, Weights, WeightsError
from streamer.generations import DIRECTORY, MOST_KEPT, Generations, Serving, described, line
from tests.states import flip
from tests.streams import START, random_weights

CONFIG = ForecasterConfig(input_size=18, hidden_size=4)


def file_of(folder: Path, seed: int) -> Path:
    path = folder / f"seed{seed}.safetensors"
    weights_files.save(random_weights(CONFIG, seed), path)
    return path


def filled(folder: Path, count: int = 3) -> Generations:
    generations = Generations(folder)
    for seed in range(count):
        generations.add(file_of(folder, seed), "trained" if seed else "shipped", START + seed, trained_until=10 * seed)
    return generations


def test_nothing_is_there_before_the_first(tmp_path: Path) -> None:
    generations = Generations(tmp_path)
    assert (generations.all(), generations.serving(), generations.find("x")) == ([], None, None)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(WeightsError, match="found no generation 1"):
        generations.load(1)


def test_each_has_a_number_for_good_and_the_bytes_of_its_file(tmp_path: Path) -> None:
    """The name of the file in it does not matter: the copy has the checksum of the original."""
    generations = filled(tmp_path)
    assert [each.number for each in generations.all()] == [1, 2, 3]
    original = weights_files.load(tmp_path / "seed2.safetensors")
    assert generations.load(3).sha256 == original.sha256
    found = generations.find(original.sha256)
    assert isinstance(found, Weights)
    assert generations.number_of(original.sha256) == 3
    assert generations.path(3).read_bytes() == (tmp_path / "seed2.safetensors").read_bytes()
    for path in generations.directory.glob("000003.*"):
        path.unlink()
    generations.path(7).touch()
    assert generations.add(file_of(tmp_path, 9), "trained", START).number == 8


@pytest.mark.parametrize("ending", [".safetensors", ".json", ".about.json"])
def test_one_that_is_damaged_is_not_to_be_had_and_the_others_are(tmp_path: Path, ending: str) -> None:
    generations = filled(tmp_path)
    sha256 = generations.load(2).sha256
    flip(generations.directory / f"000002{ending}", 3)
    assert generations.find(sha256) is None
    with pytest.raises(WeightsError):
        generations.load(2)
    assert generations.load(1)
    assert generations.load(3)


def test_another_file_under_its_name_is_not_it(tmp_path: Path) -> None:
    generations = filled(tmp_path)
    for ending in (".safetensors", ".json"):
        (generations.directory / f"000002{ending}").write_bytes(
            (generations.directory / f"000003{ending}").read_bytes()
        )
    with pytest.raises(WeightsError, match="is not what generation 2 was"):
        generations.load(2)


def test_links_and_rubbish_are_no_generations(tmp_path: Path) -> None:
    generations = filled(tmp_path, 1)
    (generations.directory / "000002.about.json").symlink_to(generations.directory / "000001.about.json")
    (generations.directory / "000003.about.json").write_bytes(b"\xff")
    (generations.directory / "000004.about.json").write_bytes(
        (generations.directory / "000001.about.json").read_bytes()
    )
    deep = b'{"number": 5, "sha256": "", "origin": "named", "created": 0, "verdict": {"a": ' + b"[" * 100_000
    (generations.directory / "000005.about.json").write_bytes(deep)
    (generations.directory / "x.about.json").touch()
    assert [each.number for each in generations.all()] == [1]


def test_a_copy_that_cannot_be_made_leaves_no_generation(tmp_path: Path) -> None:
    generations = filled(tmp_path, 1)
    (tmp_path / "bad.safetensors").write_bytes(b"no weights")
    with pytest.raises(OSError, match="bad"):
        generations.add(tmp_path / "bad.safetensors", "named", START)
    (tmp_path / "bad.json").write_bytes(b"{}")
    with pytest.raises(WeightsError):
        generations.add(tmp_path / "bad.safetensors", "named", START)
    assert [each.number for each in generations.all()] == [1]
    assert len(list(generations.directory.iterdir())) == 3  # and nothing else: a disk may stay full for long


def test_who_serves_is_remembered_with_who_did_before(tmp_path: Path) -> None:
    generations = filled(tmp_path)
    generations.serve(1, "a")
    assert generations.serving() == Serving(1, None, "a")
    generations.serve(3, "a")
    generations.serve(3, "b")
    assert Generations(tmp_path).serving() == Serving(3, 1, "b")
    (generations.directory / "serving.json").write_bytes(b"{")
    assert generations.serving() is None


def test_very_old_ones_go_but_not_those_that_serve(tmp_path: Path) -> None:
    generations, path = filled(tmp_path, 1), file_of(tmp_path, 1)
    generations.serve(1, "")
    for _ in range(MOST_KEPT + 4):
        generations.add(path, "trained", START)
    generations.serve(5, "")
    kept = [each.number for each in generations.all()]
    assert kept == [1, 5, *range(6, MOST_KEPT + 6)]
    assert {int(each.name[:6]) for each in (tmp_path / DIRECTORY).glob("0*")} == set(kept)


def test_people_see_which_serves_and_why(tmp_path: Path) -> None:
    generations = Generations(tmp_path)
    verdict: dict[str, object] = {"reason": "better by 0.1", "figures": {"gain": 0.1}}
    for seed in range(2):
        generations.add(file_of(tmp_path, seed), "trained", START, verdict=verdict if seed else {})
    serving = Serving(2, 1)
    assert [line(each, serving) for each in generations.all()] == [
        "   1  2026-01-01 00:00  trained  served before",
        "   2  2026-01-01 00:00  trained  serves         better by 0.1",
    ]
    told = described(generations.all()[1], serving)
    assert (told["serves"], told["verdict"], told["  gain"]) == (True, "better by 0.1", 0.1)
