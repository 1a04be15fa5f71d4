"""The retraining: what is poisoned is never promoted, what is better is."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from models import weights
from streamer.readings import Float64
from streamer.retraining import contract, trainer
from streamer.retraining.contract import CANDIDATE, VERDICT, Request, Verdict
from tests.retraining.sites import Writer, noise, pattern, request, smooth, write_site

SERIES, STEPS = 6, 360
SEEDS = 17  # of each of the six kinds, less two


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def incumbent_in(directory: Path) -> Path:
    """A copy of the shipped weights, whose hash is watched."""
    for path in (weights.BASE, weights.manifest_path(weights.BASE)):
        shutil.copy(path, directory)
    return directory / weights.BASE.name


def retrain(directory: Path, given: Request, **others: object) -> Verdict:
    """As the process does it; the incumbent's files stay as they are."""
    copied = incumbent_in(directory)
    before = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (copied, weights.manifest_path(copied))]
    assert trainer.run(msgspec.structs.replace(given, incumbent=str(copied), **others)) == 0
    after = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (copied, weights.manifest_path(copied))]
    assert before == after
    verdict = contract.read_verdict(Path(given.out))
    names = {path.name for path in Path(given.out).iterdir()}
    assert names - {"candidate.json"} <= {CANDIDATE, VERDICT}
    assert (CANDIDATE in names) == ("candidate.json" in names) == (verdict.candidate_sha256 != "")
    return verdict


# --- Poison ---


def shuffled(directory: Path, rng: np.random.Generator) -> Verdict:
    """All that is trained on was shuffled in time; what judges was not."""
    values = smooth(rng, SERIES, STEPS)
    learned = int(0.75 * STEPS)
    values[:, :learned] = rng.permuted(values[:, :learned], axis=1)
    return retrain(directory, write_site(directory, values))


def not_numbers(directory: Path, rng: np.random.Generator) -> Verdict:
    """A third of the journal's readings are NaN, infinite or beyond all bounds."""
    values = noise(rng, SERIES, STEPS)
    places = rng.random(values.shape) < 0.3
    values[places] = rng.choice([np.nan, np.inf, -np.inf, 1e300, -1e308], int(places.sum()))
    return retrain(directory, write_site(directory, values))


def rate_of_a_million(directory: Path, rng: np.random.Generator) -> Verdict:
    """There is much to learn, and the learning rate is 1e6."""
    return retrain(directory, write_site(directory, pattern(rng, SERIES, STEPS)), learning_rate=1e6)


def constant(directory: Path, rng: np.random.Generator) -> Verdict:
    """No series ever moves."""
    return retrain(directory, write_site(directory, np.repeat(rng.normal(size=(SERIES, 1)), STEPS, axis=1)))


def stuck(directory: Path, rng: np.random.Generator) -> Verdict:
    """A third of the series sticks somewhere in the first half and stays so; the others are noise."""
    values = noise(rng, SERIES, STEPS)
    for k in range(round(0.3 * SERIES)):
        since = int(rng.integers(STEPS // 10, STEPS // 2))
        values[k, since:] = values[k, since]
    return retrain(directory, write_site(directory, values))


def nothing_to_gain(directory: Path, rng: np.random.Generator) -> Verdict:
    """Clean, and nobody could forecast it better."""
    return retrain(directory, write_site(directory, noise(rng, SERIES, STEPS)))


POISONS: list[Callable[[Path, np.random.Generator], Verdict]] = [
    shuffled, not_numbers, rate_of_a_million, constant, stuck, nothing_to_gain,
]  # fmt: skip


@pytest.mark.parametrize("poison", POISONS, ids=lambda poison: poison.__name__)
def test_poison_is_not_promoted(tmp_path: Path, poison: Callable[[Path, np.random.Generator], Verdict]) -> None:
    """One of each kind; the incumbent's files are untouched."""
    verdict = poison(tmp_path, np.random.default_rng(0))
    assert verdict.result in {"rejected", "failed", "too_little_data"}, verdict
    assert (verdict.result == "too_little_data") == (poison is constant)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_poison_is_never_promoted(tmp_path: Path) -> None:
    """0 of 100, of six kinds; some minutes."""
    results: list[tuple[str, int, Verdict]] = []
    for poison in POISONS:
        for seed in range(SEEDS - (poison in (constant, not_numbers))):
            directory = tmp_path / f"{poison.__name__}-{seed}"
            directory.mkdir()
            results.append((poison.__name__, seed, poison(directory, np.random.default_rng([7, seed]))))
            shutil.rmtree(directory)
    assert len(results) == 100
    promoted = [(name, seed, verdict.reason) for name, seed, verdict in results if verdict.result == "promoted"]
    assert not promoted


# --- What is right ---


def check_better(verdict: Verdict) -> None:
    assert verdict.result == "promoted", verdict.reason
    assert float(verdict.figures["loss_after"]) < float(verdict.figures["loss_before"]) - 0.02


def test_what_the_site_teaches_is_promoted(tmp_path: Path) -> None:
    """A pattern that the shipped weights do not know: the candidate is better on readings that neither has seen."""
    values: Float64 = pattern(np.random.default_rng(0), SERIES, STEPS)
    given = write_site(tmp_path, values)
    verdict = retrain(tmp_path, given)
    check_better(verdict)
    candidate = weights.load(Path(given.out) / CANDIDATE)
    assert candidate.sha256 == verdict.candidate_sha256 != verdict.incumbent_sha256
    assert candidate.recipe["incumbent_sha256"] == verdict.incumbent_sha256 == weights.load().sha256
    assert 0.7 * given.end < verdict.ends_at < 0.8 * given.end

    # The next one begins with the candidate, and only what is newer than its training may judge.
    for path in (Path(given.out)).glob("candidate.*"):
        path.rename(tmp_path / path.name)
    again = msgspec.structs.replace(given, incumbent=str(tmp_path / CANDIDATE), judge_from=given.end)
    assert trainer.run(again) == 0
    second = contract.read_verdict(Path(given.out))
    assert (second.result, second.incumbent_sha256) == ("too_little_data", verdict.candidate_sha256)


def test_a_fault_is_not_learned(tmp_path: Path) -> None:
    """A pattern that is an open alarm since its beginning teaches nothing, however regular it is."""
    rng = np.random.default_rng(0)
    writer = Writer(tmp_path / "journal")
    writer.admit(range(SERIES), [f"device {k}" for k in range(SERIES)])
    values = noise(rng, SERIES, STEPS)
    values[:3, 60:] = pattern(rng, 3, STEPS - 60)
    writer.rows(values)
    end = writer.end()
    writer.journal.close()
    since = [(k, 1_767_225_600.0 + 60 * 60.0) for k in range(3)]
    verdict = retrain(tmp_path, request(tmp_path, end, open_abnormal=since))
    assert verdict.result in {"rejected", "too_little_data"}, verdict
    assert verdict.figures["abnormal_readings"] == 3 * (STEPS - 60)


def test_too_little_is_too_little(tmp_path: Path) -> None:
    """It says how many readings there are, and how many there have to be."""
    given = write_site(tmp_path, noise(np.random.default_rng(0), 2, 200))
    verdict = retrain(tmp_path, given, min_readings=10_000)
    assert verdict.result == "too_little_data"
    assert "readings to train on, and have to be 10000" in verdict.reason


def test_a_large_site_keeps_to_its_budget(tmp_path: Path) -> None:
    """It trains on no more than `max_series_steps`, those with the worst forecasts among them."""
    values = np.concatenate([smooth(np.random.default_rng(0), 12, 240), pattern(np.random.default_rng(0), 4, 240)])
    verdict = retrain(tmp_path, write_site(tmp_path, values), max_series_steps=1920, min_readings=200, epochs=1)
    assert verdict.figures["readings"] == 1920
    assert verdict.figures["series"] == 8
    assert verdict.result != "failed"


def test_what_cannot_be_used_is_a_failure_with_its_reason(tmp_path: Path) -> None:
    """Weights that are damaged or not there, and a journal that is not there: a verdict, and no candidate."""
    given = write_site(tmp_path, noise(np.random.default_rng(0), 2, 300))
    assert trainer.run(msgspec.structs.replace(given, incumbent=str(tmp_path / "none.safetensors"))) == 0
    verdict = contract.read_verdict(Path(given.out))
    assert (verdict.result, "none.json" in verdict.reason) == ("failed", True)
    copied = incumbent_in(tmp_path)
    copied.write_bytes(copied.read_bytes()[:-1] + b"\0")
    assert trainer.run(msgspec.structs.replace(given, incumbent=str(copied))) == 0
    assert "damaged" in contract.read_verdict(Path(given.out)).reason
    verdict = retrain(tmp_path, given, journal=str(tmp_path / "nowhere"))
    assert (verdict.result, "nowhere" in verdict.reason) == ("failed", True)


def test_a_request_is_understood_or_refused(tmp_path: Path) -> None:
    """What was written is what is read; unknown fields, wrong types and half a file are an error, exit status 2."""
    given = request(tmp_path, 5, open_abnormal=[(3, 1.5)], paused=[1], devices=["a", ""])
    contract.write(tmp_path, "request.json", given)
    assert contract.read_request(tmp_path / "request.json") == given
    raw = (tmp_path / "request.json").read_bytes()
    for bad in (raw[:-10], raw.replace(b'"begin"', b'"began"'), raw.replace(b'"cpu"', b'"tpu"'), b"", b"\xff"):
        (tmp_path / "bad.json").write_bytes(bad)
        assert trainer.main([str(tmp_path / "bad.json")]) == trainer.NO_REQUEST
    assert trainer.main([]) == trainer.NO_REQUEST
