"""The candidate against the incumbent, both run causally over readings that neither was trained on.

A candidate is promoted if all of this holds:

- its forecast loss, nats a reading, is better by LEAST_GAIN, and by more than its own noise: the lower end of the 95 %
  interval of the gain is above 0. The differences are paired, reading by reading; they are summed in blocks of 32 of a
  series, and in slices of time over all series, and the larger of the two standard errors counts: neighbours in time
  resemble each other, and so do the series of a site at one time (Cameron & Miller 2015, clustered errors);
- it raises no more alarms than the budget allows on these readings, or no more than the incumbent does, and not notably
  more than the incumbent in any case. Both weights go through the daemon's own shard for that, from the first reading;
- no device is ruined: none has a loss that is worse by RUINED and by more than three standard errors of its blocks.

Whatever is not finite refuses the candidate.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.calibration import MONTH_SECONDS
from models.weights import Weights
from streamer.readings import Batch, Float64, Forecaster
from streamer.registry import Registry
from streamer.retraining.dataset import JUDGE, Site
from streamer.shard import Shard

LEAST_GAIN = (
    0.02  # nats a reading, 2 % of its likelihood: where nothing is to gain, on plain noise, it came to 0.01 at most
)
NOISE_WIDTH = 2.1  # standard errors to the lower end: Student's t of 19 degrees of freedom, 20 slices
BLOCK_READINGS = 32
SLICES = 20
RUINED, RUINED_WIDTH = 0.1, 3.0
LEAST_JUDGED = 200  # readings: from fewer no error can be told
LEAST_JUDGED_OF_DEVICE = 3 * BLOCK_READINGS
NOTABLY = 1.64  # standard deviations of the difference of two counts


class Judgement(NamedTuple):
    """What became of the comparison."""

    is_better: bool
    reason: str
    figures: dict[str, float | str]


class Gain(NamedTuple):
    """How much lower the candidate's loss is, nats a reading."""

    mean: float
    error: float
    """one standard error"""


def judge(
    site: Site, before: Float64, after: Float64, alarms: tuple[int, int], budget_per_series_month: float
) -> Judgement:
    """`before`, `after` `(n,)`: the loss of each reading by the incumbent and by the candidate.

    `alarms`: those that each of them raises in the judged part, as `trial` gives them.
    """
    of = site.of(JUDGE)
    months = judged_months(site)
    figures: dict[str, float | str] = {
        "judged_readings": float(of.sum()),
        "judged_series_months": months,
        "alarms_before": float(alarms[0]),
        "alarms_after": float(alarms[1]),
        "alarms_allowed": allowed(budget_per_series_month * months),
    }
    if not np.isfinite(after[of]).all() or not np.isfinite(before[of]).all():
        return Judgement(False, "there are forecasts that are no numbers", figures)
    series = site.series()[of]
    weight = site.weight[series]
    gained = before[of] - after[of]
    gain = _gain(gained, weight, series, _slices(site.history.time[of]))
    figures |= {
        "loss_before": float(np.average(before[of], weights=weight)),
        "loss_after": float(np.average(after[of], weights=weight)),
        "gain": gain.mean,
        "gain_error": gain.error,
    }
    worst, ruined = _worst_device(site, gained, series)
    if worst is not None:
        figures |= {"worst_device": worst[0], "worst_device_gain": worst[1].mean, "worst_device_error": worst[1].error}
    figures["devices_ruined"] = float(ruined)
    refusal = _refusal(gain, alarms, figures, worst if ruined else None)
    told = f"forecast loss {figures['loss_before']:.3f} to {figures['loss_after']:.3f} nats a reading"
    if refusal:
        return Judgement(False, f"{refusal}; {told}", figures)
    reason = f"{told}, better by {gain.mean:.3f} +- {NOISE_WIDTH * gain.error:.3f}; alarms {alarms[0]} to {alarms[1]}"
    return Judgement(True, reason, figures)


def _refusal(
    gain: Gain, alarms: tuple[int, int], figures: dict[str, float | str], ruined: tuple[str, Gain] | None
) -> str:
    before, after = alarms
    least = gain.mean - NOISE_WIDTH * gain.error
    if not gain.mean >= LEAST_GAIN:
        return f"the forecasts are better by {gain.mean:.3f} nats a reading, and have to be by {LEAST_GAIN}"
    if not least > 0:
        return f"the forecasts are better by {gain.mean:.3f} nats a reading, which may be chance (at least {least:.3f})"
    if after > max(before, float(figures["alarms_allowed"])):
        return (
            f"it raises {after} alarms where the budget allows {figures['alarms_allowed']:.0f}, the incumbent {before}"
        )
    if after - before > NOTABLY * math.sqrt(after + before) and after - before >= 3:
        return f"it raises {after} alarms, notably more than the {before} of the incumbent"
    if ruined is not None:
        device, loss = ruined
        return f"the forecasts of {device} are worse by {-loss.mean:.3f} nats a reading"
    return ""


def _gain(gained: Float64, weight: Float64, series: NDArray[np.intp], slices: NDArray[np.intp]) -> Gain:
    """Of readings `(n,)`, series by series in order of time."""
    mean = float(np.average(gained, weights=weight))
    rest = weight * (gained - mean)
    errors = (_error(rest, clusters) for clusters in (_blocks(series), slices))
    return Gain(mean, max(errors) / float(weight.sum()))


def _error(rest: Float64, cluster: NDArray[np.intp]) -> float:
    """The standard error of a sum of which each cluster is one draw; infinite of fewer than two."""
    sums = np.bincount(cluster, weights=rest)
    sums = sums[np.bincount(cluster) > 0]
    count = len(sums)
    return float(np.sqrt((sums**2).sum() * count / (count - 1))) if count > 1 else math.inf


def _blocks(series: NDArray[np.intp]) -> NDArray[np.intp]:
    """`series` `(n,)` is sorted: BLOCK_READINGS of one series after the other have a number."""
    lengths = np.bincount(series)
    nth = np.arange(len(series)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    most = int(lengths.max(initial=0)) // BLOCK_READINGS + 1
    blocks: NDArray[np.intp] = series * most + nth // BLOCK_READINGS
    return np.unique(blocks, return_inverse=True)[1]


def _slices(time: Float64) -> NDArray[np.intp]:
    """SLICES of as many readings each, by time."""
    rank = np.empty(len(time), np.intp)
    rank[np.argsort(time, kind="stable")] = np.arange(len(time))
    return rank * SLICES // max(len(time), 1)


def _worst_device(site: Site, gained: Float64, series: NDArray[np.intp]) -> tuple[tuple[str, Gain] | None, int]:
    """The one with the least gain, a ruined one where there is one; and how many are ruined."""
    names, number = np.unique(np.array(site.device), return_inverse=True)
    device = number[series]
    found: list[tuple[bool, float, str, Gain]] = []
    for k, name in enumerate(names.tolist()):
        mine = np.flatnonzero(device == k)
        if len(mine) < LEAST_JUDGED_OF_DEVICE:
            continue
        mean = float(gained[mine].mean())
        gain = Gain(mean, _error(gained[mine] - mean, _blocks(series[mine])) / len(mine))
        is_ruined = mean < -RUINED and mean + RUINED_WIDTH * gain.error < 0
        found.append((not is_ruined, mean, name, gain))
    if not found:
        return None, 0
    _, _, name, gain = min(found, key=lambda each: each[:2])
    return (name, gain), sum(not each[0] for each in found)


# --- Alarms ---


def judged_months(site: Site) -> float:
    """Series-months in the judged part."""
    series, is_judged = site.series(), site.part == JUDGE
    first, last = np.full(len(site.device), np.inf), np.full(len(site.device), -np.inf)
    np.minimum.at(first, series[is_judged], site.history.time[is_judged])
    np.maximum.at(last, series[is_judged], site.history.time[is_judged])
    return float(np.maximum(last - first, 0)[np.isfinite(first)].sum() / MONTH_SECONDS)


def allowed(expected: float) -> float:
    """What chance stays within, 95 times of 100, where so many alarms are expected (Poisson); one is always allowed."""
    count, term, total = 0, math.exp(-min(expected, 700.0)), 0.0
    if expected > 500:
        return math.floor(expected + 1.64 * math.sqrt(expected))
    while total + term < 0.95:
        total += term
        count += 1
        term *= expected / count
    return float(max(count, 1))


class Trial(NamedTuple):
    """What a shard makes of the readings under some weights."""

    alarms: int
    """that open in the judged part"""
    in_charge: float
    """share of the series for which the LSTM, and not the baseline, is in charge at the end"""


def trial(weights: Weights, site: Site, budget_per_series_month: float) -> Trial:
    """Of a shard that meets these readings and no others."""
    time, value, lengths = site.history
    count = len(lengths)
    registry = Registry(count, math.inf, math.inf)
    registry.admit_again(list(range(count)), [str(k) for k in range(count)], site.device, 0.0, None)
    shard = Shard(registry, weights, count, budget_per_series_month=budget_per_series_month)
    first = np.cumsum(lengths) - lengths
    alarms = 0
    for t in range(int(lengths.max(initial=0))):
        slots = np.flatnonzero(lengths > t)
        rows = first[slots] + t
        batch = Batch(slots.astype(np.int32), time[rows], value[rows], np.zeros(len(rows), np.uint8))
        for change in shard.process(batch, float(time[rows].max())).changes:
            if change.what == "opened" and change.series is not None:
                alarms += int(site.part[first[int(change.series)] + t] == JUDGE)
    leads = shard.in_charge()[Forecaster.LSTM]
    return Trial(alarms, leads / max(count, 1))
