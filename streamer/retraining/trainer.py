"""The retraining itself: `python -m streamer.retraining.trainer REQUEST.json`, a process that `child` spawns.

It takes what processor and disk have to spare, is the first that the kernel ends when memory runs out, and ends by
itself when its parent does: its standard input is a pipe on which nothing ever comes, and which then ends. It may be
killed at any moment: the journal is only read, and a candidate counts only with a verdict, which is written last.

Exit status: 0 there is a verdict; 2 no usable request; 3 the verdict cannot be written.
"""

from __future__ import annotations

import contextlib
import math
import os
import resource
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from models import weights as weights_files
from models.weights import Weights, WeightsError
from streamer.disk import DiskFiles
from streamer.readings import Float64
from streamer.retraining import contract, dataset, judgement
from streamer.retraining.contract import CANDIDATE, Request, Verdict
from streamer.retraining.dataset import JUDGE, STOP, TRAIN, Site

NO_REQUEST, NO_VERDICT = 2, 3
POOL_SERIES = 32  # series of which the incumbent's loss is found at once
MOST_TOLD = 500  # characters of an error


class Outcome(NamedTuple):
    """What a retraining came to, before anything is written."""

    verdict: Verdict
    candidate: Weights | None
    """None: there is none that is worth a judgement"""


def main(arguments: list[str] | None = None) -> int:
    """Runs one request; gives the exit status."""
    given = sys.argv[1:] if arguments is None else arguments
    try:
        request = contract.read_request(Path(given[0]))
    except (IndexError, OSError, ValueError) as error:
        _say(f"found no usable request: {error}")
        return NO_REQUEST
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # the daemon waits for its signals, and passes that on
    _yield_to_others()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    return run(request)


def run(request: Request) -> int:
    """Trains, judges, writes. Gives the exit status."""
    try:
        outcome = retrain(request)
        verdict = _written(outcome, Path(request.out))
    except (OSError, WeightsError, MemoryError, RuntimeError) as error:  # RuntimeError: torch's word for all that fails
        verdict = _failed(error)
    try:
        contract.write(Path(request.out), contract.VERDICT, verdict)
    except OSError as error:
        _say(f"the verdict cannot be written: {error}; it was {verdict.result}: {verdict.reason}")
        return NO_VERDICT
    return 0


def retrain(request: Request) -> Outcome:
    """Raises OSError, WeightsError, MemoryError and RuntimeError."""
    from models import retraining

    began = time.monotonic()
    incumbent = weights_files.load(Path(request.incumbent))
    weights_files.check_streams(incumbent.config)
    site = dataset.read(DiskFiles(Path(request.journal)), request)
    if site.history.lengths.sum() > request.max_series_steps:
        rng = np.random.default_rng(request.seed)
        site = dataset.sample(site, _recent_losses(incumbent, site), request.max_series_steps, rng)
    figures = _counted(site)

    def outcome(result: contract.Result, reason: str, candidate: Weights | None = None) -> Outcome:
        figures["seconds"] = round(time.monotonic() - began, 3)
        figures["peak_memory_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        # JSON has no word for what is no number.
        said = {name: value for name, value in figures.items() if isinstance(value, str) or math.isfinite(value)}
        verdict = Verdict(
            result=result,
            reason="; ".join([reason, *site.notes]),
            figures=said,
            incumbent_sha256=incumbent.sha256,
            ends_at=site.judged_from,
        )
        recipe: dict[str, object] = {"retrained": said, "incumbent_sha256": incumbent.sha256}
        return Outcome(verdict, None if candidate is None else replace(candidate, recipe=recipe))

    lacking = _lacking(site, request)
    if lacking:
        return outcome("too_little_data", lacking)
    batches = retraining.padded(site.history, site.normal)
    try:
        fitted = retraining.fit(
            incumbent,
            [batch.where(site.of(TRAIN)) for batch in batches],
            [batch.where(site.of(STOP)) for batch in batches],
            retraining.Recipe(
                learning_rate=request.learning_rate,
                input_rate=request.input_rate,
                head_rate=request.head_rate,
                epochs=request.epochs,
                seed=request.seed,
                threads=request.threads,
            ),
            request.device,
            _say,
        )
    except retraining.TrainingError as error:
        return outcome("failed", str(error))
    figures |= fitted.figures
    if not fitted.is_better:
        return outcome("rejected", "training has found nothing better than the incumbent on newer readings")
    judged = site.of(JUDGE)
    before, after = (retraining.losses(weights, batches, judged) for weights in (incumbent, fitted.candidate))
    budget = request.budget_per_series_month
    old, new = (judgement.trial(weights, site, budget) for weights in (incumbent, fitted.candidate))
    found = judgement.judge(site, before, after, (old.alarms, new.alarms), budget)
    figures |= {**found.figures, "lstm_in_charge_before": old.in_charge, "lstm_in_charge_after": new.in_charge}
    return outcome("promoted" if found.is_better else "rejected", found.reason, fitted.candidate)


def _recent_losses(incumbent: Weights, site: Site) -> Float64:
    """`(series,)`: the incumbent's mean loss on the readings that stop the training; NaN where there are none."""
    from models import retraining

    mean = np.full(len(site.device), np.nan)
    for begin in range(0, len(mean), POOL_SERIES):
        series = np.arange(begin, min(begin + POOL_SERIES, len(mean)))
        part = site.chosen(series)
        recent = part.of(STOP)
        losses = retraining.losses(incumbent, retraining.padded(part.history, part.normal), recent)
        of, count = part.series()[recent], len(series)
        with np.errstate(invalid="ignore"):
            mean[series] = np.bincount(of, losses[recent], count) / np.bincount(of, minlength=count)
    return mean


def _counted(site: Site) -> dict[str, float | str]:
    return {
        "series": float(len(site.device)),
        "readings": float(len(site.counts)),
        "training_readings": float(site.of(TRAIN).sum()),
        "stopping_readings": float(site.of(STOP).sum()),
        "judging_readings": float(site.of(JUDGE).sum()),
        "abnormal_readings": float((~site.normal).sum()),
    }


def _lacking(site: Site, request: Request) -> str:
    for part, least, what in (
        (TRAIN, request.min_readings, "to train on"),
        (STOP, judgement.LEAST_JUDGED, "to stop by"),
        (JUDGE, judgement.LEAST_JUDGED, "that are newer, to judge by"),
    ):
        found = int(site.of(part).sum())
        if found < least:
            return f"there are {found} readings {what}, and have to be {least}"
    return ""


def _written(outcome: Outcome, out: Path) -> Verdict:
    """The candidate's files; gives the verdict that names it. Raises OSError and WeightsError: then nothing is left."""
    if outcome.candidate is None:
        return outcome.verdict
    try:
        saved = weights_files.save(outcome.candidate, out / CANDIDATE)
    except BaseException:
        for left in out.glob(f"{Path(CANDIDATE).stem}.*"):
            left.unlink()
        raise
    return msgspec.structs.replace(outcome.verdict, candidate_sha256=saved.sha256)


def _failed(error: Exception) -> Verdict:
    text = str(error).strip() or type(error).__name__
    return Verdict(result="failed", reason=" ".join(text.split())[:MOST_TOLD])


# --- The process ---


def _yield_to_others() -> None:
    """The lowest priority there is; by SCHED_IDLE the disk serves others first too (the kernel's task_nice_ioclass)."""
    os.nice(19)
    with contextlib.suppress(OSError):  # a container may forbid it
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def _end_with_parent() -> None:
    """Waits until standard input ends."""
    with contextlib.suppress(OSError):
        while os.read(0, 4096):
            pass
    os._exit(1)


def _say(line: str) -> None:
    with contextlib.suppress(OSError):  # nobody listens any more
        sys.stderr.write(line + "\n")
        sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
