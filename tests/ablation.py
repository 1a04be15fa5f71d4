"""Detection quality without one of the views; all but the view as for `streamer bench quality`.

python -m tests.ablation level --data recordings --on lite
"""

from __future__ import annotations

import argparse
import sys

from models import scorer
from models.calibration import NAMES, PATTERN, Calibration, Float32, Float64, Slots
from streamer.cli import main

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.ablation", description=__doc__)
    parser.add_argument("view", choices=NAMES)
    given, rest = parser.parse_known_args()
    muted = NAMES.index(given.view)
    ranked, far = Calibration.rarity, Calibration.distance

    def rarity(self: Calibration, slots: Slots, views: Float32, strict: Float64) -> Float32:
        found = ranked(self, slots, views, strict)
        found[:, muted] = 0
        return found

    def distance(self: Calibration, slots: Slots, views: Float32) -> Float32:
        found = far(self, slots, views)
        found[:, muted] = 0
        return found

    def score(calibrated: Float64, _evidence: Float32) -> Float64:
        return calibrated

    if muted == PATTERN:
        setattr(scorer, "score", score)  # noqa: B010 # a function is no place that mypy lets anyone assign to
    else:
        setattr(Calibration, "rarity", rarity)  # noqa: B010
        setattr(Calibration, "distance", distance)  # noqa: B010
    sys.exit(main(["bench", "quality", *rest]))
