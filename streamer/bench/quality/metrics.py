"""How well scores point at labelled faults. Windows are first and last row, inclusive; a score is higher where odder.

caught    one threshold for all recordings, as low as the false alarms that an operator puts up with allow
VUS-PR    area under precision and recall, averaged over tolerances at the edges of a window: Paparrizos et al.,
          "Volume Under the Surface", VLDB 2022, with existence of events and 250 thresholds as in TSB-AD
NAB       the Numenta Anomaly Benchmark's score: Lavin and Ahmad, arXiv 1510.03336, sections III and IV
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamer.labels import GRACE_ROWS, Windows, grace
from streamer.readings import Bool, Float64

WIDEST_TOLERANCE = 100  # rows, of VUS
THRESHOLDS = 250  # of VUS


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """The rows of a recording that count."""

    score: Float64
    """(n,): finite"""
    windows: Windows

    def labels(self) -> Bool:
        """(n,): True inside a window."""
        return _covered(len(self.score), self.windows)


def _covered(rows: int, windows: Windows) -> Bool:
    """(rows,): True in any of the windows; they may reach beyond the end."""
    change = np.zeros(rows + 1, np.int64)
    np.add.at(change, windows[:, 0], 1)
    np.add.at(change, np.minimum(windows[:, 1] + 1, rows), -1)
    inside: Bool = change[:rows].cumsum() > 0
    return inside


# --- Caught, at so many false alarms ---


class Caught(NamedTuple):
    """What one threshold for all recordings catches."""

    share: float
    """of the windows; NaN without one"""
    delay: float
    """median share of a window that passes before it is caught; NaN where none is"""
    above: float
    """alarms sound above this score"""
    false_alarms: int


def caught(parts: Sequence[Scored], rows_per_false_alarm: float) -> Caught:
    """At the lowest threshold with at most one false alarm per so many rows, over all parts together."""
    budget = sum(len(part.score) for part in parts) / rows_per_false_alarm
    outside = [~_covered(len(part.score), grace(part.windows)) for part in parts]
    levels = np.unique(np.concatenate([part.score[free] for part, free in zip(parts, outside, strict=True)]))

    def false_alarms(above: float) -> int:
        pairs = zip(parts, outside, strict=True)
        return sum(_soundings(np.flatnonzero(free & (part.score > above))) for part, free in pairs)

    # No threshold has more false alarms than a lower one, since soundings are as many as can be so far apart.
    candidates = np.concatenate(([-np.inf], levels))
    low, high = 0, len(candidates) - 1
    while low < high:
        middle = (low + high) // 2
        if false_alarms(float(candidates[middle])) <= budget:
            high = middle
        else:
            low = middle + 1
    above = float(candidates[low])
    delays: list[float] = []
    for part in parts:
        for first, last in part.windows.tolist():
            hits = np.flatnonzero(part.score[first : last + 1] > above)
            if len(hits):
                delays.append(float(hits[0]) / (last - first + 1))
    windows = sum(len(part.windows) for part in parts)
    return Caught(
        len(delays) / windows if windows else np.nan,
        float(np.median(delays)) if delays else np.nan,
        above,
        false_alarms(above),
    )


def _soundings(rows: NDArray[np.intp]) -> int:
    """How often an alarm sounds that is raised at these rows (in order) and sounds at most once in `GRACE_ROWS`."""
    count, at = 0, 0
    while at < len(rows):
        count += 1
        at = int(np.searchsorted(rows, rows[at] + GRACE_ROWS))
    return count


# --- VUS-PR ---


def vus_pr(part: Scored, widest: int = WIDEST_TOLERANCE) -> float:
    """Volume under precision, recall and tolerance, 0 to 1; there must be rows inside and outside of windows.

    A tolerance of w rows widens each window by w / 2 at either side; a row there counts as sqrt(1 - distance / w) of a
    fault. Recall is that of rows times the share of windows that are touched at all.
    """
    n, label = len(part.score), part.labels()
    edges = np.flatnonzero(np.diff(label, prepend=False, append=False))
    first, last = edges[0::2], edges[1::2] - 1  # windows that touch are one here
    descending = np.sort(part.score)[::-1]
    threshold = descending[np.linspace(0, n - 1, THRESHOLDS).astype(np.intp)]
    rank = THRESHOLDS - np.searchsorted(threshold[::-1], part.score, side="right")  # the first threshold it reaches
    flagged, inside = _at_thresholds(rank), _at_thresholds(rank[label])
    row, distance = _surroundings(label, first, last, widest // 2)

    areas = []
    for tolerance in range(widest + 1):
        reach = tolerance // 2
        near = distance <= reach
        weight = np.bincount(row[near], np.sqrt(1.0 - distance[near] / max(tolerance, 1)), n)
        soft = np.flatnonzero(weight)
        around = _at_thresholds(rank[soft], np.minimum(weight[soft], 1.0))
        best = _best_ranks(rank, first - reach, last + reach)
        recall = np.minimum((inside + around) / (label.sum() + around / 2), 1.0)
        recall *= _at_thresholds(best) / len(best)
        precision = (inside + around) / flagged
        areas.append(float(np.diff(recall, prepend=0.0) @ precision))
    return float(np.mean(areas))


def _at_thresholds(rank: NDArray[np.intp], weight: Float64 | None = None) -> Float64:
    """(THRESHOLDS,): how many reach each threshold, or what they weigh."""
    return np.bincount(rank, weight, THRESHOLDS + 1)[:THRESHOLDS].cumsum().astype(np.float64)


def _surroundings(
    label: Bool, first: NDArray[np.intp], last: NDArray[np.intp], reach: int
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows within `reach` of a window and their distance from it, once for each window that is so near."""
    steps = np.arange(1, reach + 1)
    row = np.concatenate([(first[:, None] - steps).ravel(), (last[:, None] + steps).ravel()])
    distance = np.tile(steps, 2 * len(first))
    kept = (row >= 0) & (row < len(label))
    row, distance = row[kept], distance[kept]
    free = ~label[row]
    return row[free], distance[free]


def _best_ranks(rank: NDArray[np.intp], first: NDArray[np.intp], last: NDArray[np.intp]) -> NDArray[np.intp]:
    """The lowest rank in each stretch of rows; stretches that share a row are one."""
    begins = np.concatenate(([True], first[1:] > last[:-1]))
    ends = np.concatenate((begins[1:], [True]))
    bounds = np.column_stack((np.maximum(first[begins], 0), np.minimum(last[ends] + 1, len(rank)))).ravel()
    padded = np.append(rank, THRESHOLDS)  # a stretch may end with the last row
    best: NDArray[np.intp] = np.minimum.reduceat(padded, bounds)[0::2]
    return best


def over_chance(value: float, chance: float) -> float:
    """How far a figure is on the way from that of random scores (0) to perfection (1)."""
    return (value - chance) / (1.0 - chance)


# --- NAB ---


class Profile(NamedTuple):
    """What NAB pays for a detection, takes for a missed window, and takes for a false alarm at most."""

    hit: float
    miss: float
    false_alarm: float


PROFILES = {
    "standard": Profile(1.0, 1.0, 0.11),
    "low_fp": Profile(1.0, 1.0, 0.22),
    "low_fn": Profile(1.0, 2.0, 0.11),
}


@dataclass(frozen=True, slots=True, eq=False)
class NabFile:
    """A whole recording, as NAB scores it."""

    score: Float64
    """(n,): of every row, warm-up included"""
    windows: Windows
    split: int
    """rows before it raise no alarm"""


def nab(files: Sequence[NabFile]) -> dict[str, float]:
    """The score in each profile: 100 for perfection, 0 for silence; at the threshold that is best in hindsight."""
    counted = [slice(file.split, None) for file in files]
    score = np.concatenate([file.score[rows] for file, rows in zip(files, counted, strict=True)])
    windows = sum(len(file.windows) for file in files)
    weights, owners, known = [], [], 0
    for file, rows in zip(files, counted, strict=True):
        weight, owner = _positions(len(file.score), file.windows)
        weights.append(weight[rows])
        owners.append(np.where(owner < 0, -1, owner + known)[rows])
        known += len(file.windows)
    order = np.argsort(-score, kind="stable")
    score, weight, owner = score[order], np.concatenate(weights)[order], np.concatenate(owners)[order]
    cuts = np.flatnonzero(np.diff(score, append=np.nan) != 0)  # a threshold takes all rows of one score
    return {name: _nab(weight, owner, cuts, windows, profile) for name, profile in PROFILES.items()}


def _nab(weight: Float64, owner: NDArray[np.intp], cuts: NDArray[np.intp], windows: int, profile: Profile) -> float:
    """One profile. Rows come by falling score; each one's gain is what it adds when the threshold comes down to it."""
    gain = profile.false_alarm * weight
    reachable = np.unique(owner[owner >= 0])  # a window within the warm-up can only be missed
    for window in reachable.tolist():
        rows = np.flatnonzero(owner == window)
        paid = np.maximum.accumulate(profile.hit * weight[rows])
        gain[rows] = np.diff(paid, prepend=-profile.miss)
    most = max(0.0, float(gain.cumsum()[cuts].max()))
    return 100.0 * most / (profile.hit * windows + profile.miss * len(reachable))


def _positions(n: int, windows: Windows) -> tuple[Float64, NDArray[np.intp]]:
    """Per row: what an alarm there weighs, and the window that it lies in (-1: none).

    Within a window a scaled sigmoid falls from 1 at its first row; after it, it goes on to fall towards -1, relative to
    the window's own width; before the first window an alarm weighs -1.
    """
    row = np.arange(n)
    owner = np.searchsorted(windows[:, 0], row, side="right") - 1  # the latest window that has begun
    weight = np.full(n, -1.0)
    seen = owner >= 0
    first, last = windows[owner[seen]].T
    width = (last - first + 1).astype(np.float64)
    within = row[seen] <= last
    inside = _sigmoid((row[seen] - last - 1) / width) / _sigmoid(np.array(-1.0))
    beyond = _sigmoid((row[seen] - last) / np.maximum(width - 1, 1e-9))
    weight[seen] = np.where(within, inside, beyond)
    owner[seen] = np.where(within, owner[seen], -1)
    return weight, owner


def _sigmoid(position: Float64) -> Float64:
    """1 far before, 0 at the end of a window, -1 from three widths after it on."""
    value: Float64 = np.where(position > 3, -1.0, 2.0 / (1.0 + np.exp(5.0 * np.clip(position, -3.0, 3.0))) - 1.0)
    return value
