"""`streamer bench quality`: labelled recordings through the replay engine; how well scores point at the faults."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from streamer.bench.quality.figures import Judgement, judge
from streamer.bench.quality.recordings import load, select
from streamer.bench.quality.scoring import Say, Verdict, score_recordings, unit_score
from streamer.bench.report import machine
from streamer.errors import InputError
from streamer.registry import Registry
from streamer.settings import Settings
from streamer.wiring import load_weights, shard_from


def measure(data: Path, words: Sequence[str], settings: Settings, scores: Path | None, say: Say) -> Judgement:
    """Scores the recordings that `words` choose and judges the scores; saves them in `scores` where that is given.

    Raises StreamerError.
    """
    recordings = list(load(data, select(data, words)))
    weights = load_weights(settings)
    found = machine()
    say(f"{len(recordings)} recordings, {sum(each.values.size for each in recordings)} readings")
    began = time.monotonic()
    shard = shard_from(settings, weights, Registry(settings.limits.max_series, math.inf, math.inf))
    verdicts = score_recordings(recordings, shard, say)
    seconds = time.monotonic() - began
    say(f"scored in {seconds:.0f} s")
    if scores is not None:
        save(scores, [each.name for each in recordings], verdicts)
    found |= {
        "weights": weights.sha256[:16],
        "load_average_after": round(os.getloadavg()[0], 2),
        "recordings": float(len(recordings)),
        "seconds": round(seconds, 1),
    }
    return judge(recordings, verdicts, found)


def save(folder: Path, names: Sequence[str], verdicts: Sequence[Verdict]) -> None:
    """NAME.npy for each recording: float64 in [0, 1], s / (1 + s), 0 where there is no score. Raises InputError."""
    for name, verdict in zip(names, verdicts, strict=True):
        target = folder / f"{name}.npy"
        if not target.resolve().is_relative_to(folder.resolve()):
            raise InputError(
                f"{name}: found a recording whose name leads out of {folder}; expected one that stays in it"
            )
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            np.save(target, unit_score(verdict.score), allow_pickle=False)
        except OSError as error:
            raise InputError(f"{target}: cannot be written: {error.strerror}") from error
