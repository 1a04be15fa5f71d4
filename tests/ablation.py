"""Detection quality without one of the views; all but the view as for `streamer bench quality`.

python -m tests.ablation level --data recordings --on lite
"""

from __future__ import annotations

import argparse
import sys

from models.calibration import VIEWS, Calibration, Float32, Float64, Slots
from streamer.cli import main

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.ablation", description=__doc__)
    parser.add_argument("view", choices=VIEWS)
    given, rest = parser.parse_known_args()
    muted = VIEWS.index(given.view)
    ranked, far = Calibration.rarity, Calibration.distance

    def rarity(self: Calibration, slots: Slots, views: Float32, strict: Float64) -> Float32:
        found = ranked(self, slots, views, strict)
        found[:, muted] = 0
        return found

    def distance(self: Calibration, slots: Slots, views: Float32) -> Float32:
        found = far(self, slots, views)
        found[:, muted] = 0
        return found

    setattr(Calibration, "rarity", rarity)  # noqa: B010 # a method is no place that mypy lets anyone assign to
    setattr(Calibration, "distance", distance)  # noqa: B010
    sys.exit(main(["bench", "quality", *rest]))
