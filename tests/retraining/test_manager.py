"""What follows from a verdict: a swap with a probation, or nothing; and that it outlives a restart."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path

import pytest

from models import weights as weights_files
from models.weights import ForecasterConfig, Weights
from streamer.clock import ManualClock
from streamer.engine import Occasion
from streamer.generations import Generations
from streamer.metrics import Metrics
from streamer.retraining.contract import CANDIDATE, Request, Result, Verdict
from streamer.retraining.manager import WORK_DIRECTORY, Refused, Retraining, Serving, Terms
from streamer.retraining.policy import Plan
from streamer.shadow import Comparison
from tests import scrapes
from tests.streams import START, random_weights

HOUR = 3600.0
CONFIG = ForecasterConfig(input_size=18, hidden_size=4)


class Trained:
    """A training whose verdict the test says; its process has a test of its own."""

    pid = 1

    def __init__(self, request: Request) -> None:
        self.request = request
        self.verdict: Verdict | None = None
        self.is_killed = False
        self.starts = True

    def start(self) -> None:
        if not self.starts:
            raise OSError("no process to be had")

    def poll(self) -> Verdict | None:
        return self.verdict

    def kill(self) -> None:
        self.is_killed = True


class Desk:
    """A manager, and all that is told to the engine."""

    def __init__(
        self, directory: Path, clock: ManualClock | None = None, number: int = 1, *, is_swapping: bool = False
    ) -> None:
        self.directory, self.clock = directory, clock or ManualClock(START)
        self.generations = Generations(directory)
        self.number = number
        self.swaps: list[tuple[str, int, bool]] = []
        self.watched: list[str | None] = []
        self.comparison: Comparison | None = None
        self.loss = float("nan")
        self.children: list[Trained] = []
        self.starts = True
        self.is_swapping = is_swapping
        self.metrics = Metrics("0", START, {"messages_rejected_total": ["x"], "readings_rejected_total": ["x"]})
        self.metrics.measured("messages_queued", lambda: 0)
        if not self.generations.all():
            directory.mkdir(exist_ok=True)
            base = directory / "base.safetensors"
            weights_files.save(random_weights(CONFIG, 1), base)
            self.generations.add(base, "shipped", START)
        terms = Terms(
            plan=Plan(24 * HOUR, 0.5),
            journal=directory / "journal",
            lateness_seconds=0.0,
            min_readings=500,
            max_series_steps=10_000,
            probation_seconds=24 * HOUR,
            time_limit_seconds=HOUR,
            device="cpu",
            threads=1,
        )
        serving = Serving(
            occasion=self._occasion,
            swap=self._swap,
            watch=lambda weights: self.watched.append(weights.sha256 if weights else None),
            generation=lambda: self.number,
            is_swapping=lambda: self.is_swapping,
            comparison=lambda: self.comparison,
            loss=lambda: self.loss,
        )
        self.manager = Retraining(
            terms, directory, self.generations, serving, self.metrics, self.clock, seed=1, new_child=self._new_child
        )
        self.manager.start()

    def _occasion(self) -> Future[Occasion]:
        future: Future[Occasion] = Future()
        future.set_result(Occasion(123, [(4, START)], [5], ["plant"], 2.5))
        return future

    def _swap(self, weights: Weights, number: int, is_watched: bool) -> None:
        self.swaps.append((weights.sha256, number, is_watched))
        self.kept_at_swap = (self.directory / WORK_DIRECTORY / "last.json").read_bytes()
        self.number = number
        self.generations.serve(number, "")

    def _new_child(self, request: Request, _seconds: float) -> Trained:
        child = Trained(request)
        child.starts = self.starts
        self.children.append(child)
        return child

    def train(self, result: Result = "promoted", seed: int = 2) -> None:
        """One by hand, to its end; a promoted one has a candidate."""
        self.manager.train()
        self.manager.tick()
        out = self.directory / WORK_DIRECTORY
        out.mkdir(exist_ok=True)
        made = weights_files.save(random_weights(CONFIG, seed), out / CANDIDATE)
        self.children[-1].verdict = Verdict(
            result=result, reason="so be it", candidate_sha256=made.sha256, ends_at=100, figures={"gain": 0.1}
        )
        self.manager.tick()

    def results(self) -> dict[str, float]:
        numbers = scrapes.parse(self.metrics.render("")[0].decode())
        return {result: n for (name, result), n in numbers.items() if name == "retrain_total" and n}


def test_what_is_promoted_is_kept_and_serves_on_probation(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.train()
    request = desk.children[0].request
    assert (request.end, request.open_abnormal, request.paused, request.devices) == (123, [(4, START)], [5], ["plant"])
    assert (request.judge_from, request.budget_per_series_month) == (0, 2.5)
    about = desk.generations.about(2)
    assert about is not None
    assert (about.origin, about.trained_until, about.verdict["result"]) == ("trained", 100, "promoted")
    assert desk.swaps == [(about.sha256, 2, True)]
    assert b'"probation":{"number":2' in desk.kept_at_swap  # a kill from here on leaves nothing unwatched
    assert desk.results() == {"promoted": 1}
    desk.comparison = Comparison(10_000, 50, -0.1, 0.01)
    desk.clock.advance(25 * HOUR)
    desk.manager.tick()
    assert desk.watched == [None]
    assert desk.number == 2
    desk.train(seed=3)
    assert desk.children[-1].request.judge_from == 100


@pytest.mark.parametrize("result", ["rejected", "failed", "too_little_data"])
def test_what_is_not_promoted_changes_nothing(tmp_path: Path, result: Result) -> None:
    desk = Desk(tmp_path)
    desk.train(result)
    assert (desk.swaps, len(desk.generations.all()), desk.results()) == ([], 1, {result: 1})
    assert desk.manager.last.verdict is not None
    assert desk.manager.last.verdict.result == result
    desk.train("promoted")
    assert desk.number == 2


@pytest.mark.parametrize("hours", [1.0, 25.0])
def test_weights_that_do_worse_are_taken_back(tmp_path: Path, hours: float) -> None:
    """At the end of the probation if it is sure, before it if it is very sure."""
    desk = Desk(tmp_path)
    desk.train()
    desk.clock.advance(hours * HOUR)
    desk.comparison = Comparison(10_000, 50, 0.02, 0.02 / (4 if hours > 24 else 6))
    desk.manager.tick()
    base = desk.generations.about(1)
    assert base is not None
    assert desk.swaps[-1] == (base.sha256, 1, False)
    assert desk.watched == [None]
    assert scrapes.parse(desk.metrics.render("")[0].decode())["model_rollbacks_total", ""] == 1
    with pytest.raises(Refused, match="did worse and were taken back; `streamer models promote 2`"):
        desk.manager.rollback()
    desk.manager.promote(2)
    assert desk.number == 2


@pytest.mark.parametrize("found", [None, Comparison(100, 5, 0.5, 0.01), Comparison(10_000, 50, 0.02, 0.01)])
def test_weights_of_which_too_little_is_known_stay(tmp_path: Path, found: Comparison | None) -> None:
    """A probation without readings ends all the same, later."""
    desk = Desk(tmp_path)
    desk.train()
    desk.comparison = found
    for _ in range(10):
        desk.clock.advance(6 * HOUR)
        desk.manager.tick()
    assert desk.number == 2
    assert desk.manager.last.probation is None


def test_other_weights_that_came_meanwhile_make_it_stale(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.manager.train()
    desk.manager.tick()
    desk.number = 7
    desk.children[-1].verdict = Verdict(result="promoted", reason="", candidate_sha256="x")
    desk.manager.tick()
    assert (desk.swaps, desk.results()) == ([], {"stale": 1})


def test_a_candidate_that_is_not_the_one_that_was_judged_is_refused(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.manager.train()
    desk.manager.tick()
    (tmp_path / WORK_DIRECTORY).mkdir(exist_ok=True)
    weights_files.save(random_weights(CONFIG, 5), tmp_path / WORK_DIRECTORY / CANDIDATE)
    desk.children[-1].verdict = Verdict(result="promoted", reason="", candidate_sha256="another")
    desk.manager.tick()
    assert (desk.swaps, desk.results()) == ([], {"failed": 1})


def test_a_training_that_cannot_be_started_has_failed(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.starts = False
    desk.manager.train()
    desk.manager.tick()
    assert desk.results() == {"failed": 1}
    assert not desk.manager.is_running


def test_the_timer_goes_on_over_a_restart(tmp_path: Path) -> None:
    """And no retraining begins while another runs, or while weights are on probation."""
    desk = Desk(tmp_path)
    desk.train("rejected")
    desk.clock.advance(20 * HOUR)
    desk = Desk(tmp_path, desk.clock)
    desk.manager.tick()
    assert not desk.manager.is_running
    desk.clock.advance(7 * HOUR)
    desk.manager.tick()
    desk.manager.tick()
    assert desk.children
    with pytest.raises(Refused, match="runs already"):
        desk.manager.train()
    desk.manager.stop()
    assert desk.children[-1].is_killed
    desk = Desk(tmp_path, desk.clock)
    desk.train("promoted")
    desk.clock.advance(23.9 * HOUR)
    desk.manager.tick()
    assert not desk.manager.is_running


def test_a_probation_goes_on_over_a_restart(tmp_path: Path) -> None:
    """With the weights before watched anew; one whose weights do not serve is over."""
    desk, base = Desk(tmp_path), Generations(tmp_path).about(1)
    assert base is not None
    desk.train()
    again = Desk(tmp_path, desk.clock, number=2)
    assert again.watched == [base.sha256]
    halfway = Desk(tmp_path, desk.clock, is_swapping=True)  # killed in the middle of the swap: it goes on
    assert halfway.watched == [base.sha256]
    again.comparison = Comparison(10_000, 50, 0.5, 0.01)
    again.manager.tick()
    assert again.number == 1
    again.train(seed=3)
    lost = Desk(tmp_path, desk.clock)  # killed before the swap was on the disk
    assert lost.watched == []
    lost.manager.tick()
    assert lost.manager.last.probation is None


def test_a_daemon_that_is_started_every_morning_retrains_too(tmp_path: Path) -> None:
    clock = ManualClock(START)
    for _ in range(4):
        desk = Desk(tmp_path, clock)
        clock.advance(9 * HOUR)
        desk.manager.tick()
        desk.manager.stop()
    assert desk.manager.last.ended == START
    assert desk.manager.is_running


def test_a_clock_that_is_set_back_does_not_prolong_a_probation(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.train()
    desk.clock.set(START - 1000 * HOUR)
    desk.manager.tick()
    desk.clock.advance(48 * HOUR)
    desk.manager.tick()
    assert desk.manager.last.probation is None


def test_weights_that_were_trained_on_a_journal_that_is_gone_are_judged_by_the_new_one(tmp_path: Path) -> None:
    """Positions begin anew in it: none would ever be newer."""
    desk = Desk(tmp_path)
    desk.generations.add(desk.generations.path(1), "trained", START, trained_until=124)
    desk.number = 2
    desk.train("rejected")
    assert desk.children[0].request.judge_from == 0


def test_by_hand(tmp_path: Path) -> None:
    """What serves already, what is not there and what has nothing before it is refused; the rest ends a probation."""
    desk = Desk(tmp_path)
    with pytest.raises(Refused, match="serves already"):
        desk.manager.promote(1)
    with pytest.raises(Refused, match="found no generation 9"):
        desk.manager.promote(9)
    with pytest.raises(Refused, match="no other weights"):
        desk.manager.rollback()
    desk.generations.serve(1, "")
    desk.train()
    assert desk.manager.rollback() == "generation 1 comes to serve"
    assert desk.number == 1
    assert desk.manager.last.probation is None
    desk.manager.promote(2)
    assert desk.swaps[-1][1:] == (2, False)
    desk.is_swapping = True
    with pytest.raises(Refused, match="just coming to serve"):
        desk.manager.rollback()


@pytest.mark.parametrize("content", [b"\xff{", b"", b'{"ended": 1, "x": ' + b"[" * 100_000])
def test_what_is_kept_of_the_last_one_may_be_damaged(tmp_path: Path, content: bytes) -> None:
    desk = Desk(tmp_path)
    desk.train("rejected")
    (tmp_path / WORK_DIRECTORY / "last.json").write_bytes(content)
    assert Desk(tmp_path).manager.last.verdict is None


def test_drift_is_told_over_restarts(tmp_path: Path) -> None:
    """By the record that the weights had in an earlier run; that of other weights says nothing."""
    clock = ManualClock(START)

    def run(hours: float, loss: float, number: int = 1) -> Desk:
        desk = Desk(tmp_path, clock, number=number)
        desk.loss = loss
        for _ in range(int(60 * hours)):
            clock.advance(60.0)
            desk.manager.tick()
        return desk

    assert not run(3, 1.0).children
    assert not run(1.5, 5.0, number=2).children
    run(3, 1.0)
    assert run(1.5, 2.0).children
