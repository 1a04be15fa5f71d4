"""Detection quality without one of the views; all but the view as for `streamer bench quality`.

python -m tests.ablation level --data recordings --on lite
"""

from __future__ import annotations

import argparse
import sys

from models import scorer
from models.calibration import NAMES, PATTERN, Calibration, Float32, Float64, Judged, Slots
from streamer.cli import main

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.ablation", description=__doc__)
    parser.add_argument("view", choices=NAMES)
    given, rest = parser.parse_known_args()
    muted = NAMES.index(given.view)
    judge = Calibration.judge

    def muting(self: Calibration, slots: Slots, raw: Float32, strict: Float64) -> Judged:
        judged = judge(self, slots, raw, strict)
        judged.rarity[:, muted] = judged.distance[:, muted] = 0
        return judged

    def score(calibrated: Float64, _evidence: Float32) -> Float64:
        return calibrated

    if muted == PATTERN:
        setattr(scorer, "score", score)  # noqa: B010 # a function is no place that mypy lets anyone assign to
    else:
        setattr(Calibration, "judge", muting)  # noqa: B010
    sys.exit(main(["bench", "quality", *rest]))
