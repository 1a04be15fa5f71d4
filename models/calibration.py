"""Several views of a reading, each calibrated per series to a tail probability, joined by maximum to one score.

A view is a number >= 0 that grows with oddness. Two questions are asked of each, by two measures that learn while it
streams:

- How rare is this reading among all that the series has shown? `rarity`: its rank in a histogram of the past; where the
  budget asks for a rarity that no rank can show, a tail with the slope of the series' own exceedances (peaks over
  threshold, Pickands 1975; Siffer et al. 2017 for the streaming use), or half that slope where ranks nearly can. It
  learns every reading, so what has come to stay is rare no more; an incident that is over is taken out again.
- How far is the series from its old normal? `distance`: the same tail from its 90 % quantile on. It learns nothing
  while an alarm is open, and is what an alarm is held by until the series is back.

The views are logarithms of an error, so that an exponential tail in them is a power law in the error itself. A new
series starts from a prior measured on synthetic ones.

score = log p / log p*, where p* is the tail probability that the operator's alarm budget allows at the series' cadence.
p* is that of a reading, the budget one of alarms, each a run of rare readings: where ranks decide, p is `granted` a
decade less.
"""

from __future__ import annotations

import enum
import math
import zlib
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.bounds import within

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Slots = NDArray[np.intp]

VIEWS = (
    "error",  # size of the forecast error in the series' global scale: one odd reading
    "level",  # distance from the usual level at this time of day, over the last few readings: a jump
    "drift",  # the same over the last 16 or so: what stays away, however little
)
ERROR, LEVEL, DRIFT = range(len(VIEWS))
PATTERN = len(VIEWS)  # the number of what is no view of one reading: the evidence of `scorer` made the score
NAMES = (*VIEWS, "pattern")
SMOOTHING = np.array([1.0, 1 / 3, 1 / 16], np.float32)  # weight of the newest reading in each view
MOST_DRIFT = 3.05  # ten scales, of one reading in `drift`: else one wild reading would last for fifty; mid of a bin

DECADE = math.log(10.0)  # Python's numbers leave an array in float32, numpy's own float64 do not
TAIL_SHARE = 0.1
AT_THRESHOLD = -math.log10(TAIL_SHARE)
PRIOR_THRESHOLD = np.array([1.2, 1.5, 1.5], np.float32)
PRIOR_EXCESS = np.array([0.30, 0.25, 0.25], np.float32)  # both: 90 % quantile, mean excess; held-out synthetic series
LEAST_EXCESS = 0.05  # by eye: an all but deterministic series has a tail too
PRIOR_WEIGHT = 10.0  # the prior counts as so many exceedances
SLOWEST_THRESHOLD_RATE = 0.02
SLOWEST_EXCESS_RATE = 1 / 200
MOST_EXCESSES = 8.0  # an exceedance counts at most so many mean excesses when it is learned
LEAST_DECADES = 0.7  # between the threshold and the anchor, when the curve of the tail is taken from them
YOUNG = 20.0  # readings: below about this age the tail of `distance` is widened

BINS, BIN_WIDTH = 128, 0.1  # of the histogram: to 12.8, where a view is 180,000 scales
GROUP = 16  # bins whose sum is kept as well: a rank adds up 8 sums and 16 bins, not 128 bins
GROUPS = BINS // GROUP
ABOVE = np.triu(np.ones((GROUP, GROUP), np.uint16), 1)  # in row b: 1 for each that is above b
REMEMBERED = 8000  # readings: a full histogram is halved, so that the last 4,000 to 8,000 count
MOST_VIEW = (BINS - 0.5) * BIN_WIDTH  # a view with a limit has it mid in a bin: there it is among its like
RECORD_FADES = 1 / 32_000  # a reading
TAIL_WIDTH = 2.0  # of the cautious tail
MOST_BEYOND = 8.0  # decades that it may add to the rank
UNMOVED = 0.05  # a record below it is that of a series which has not moved: there is no tail to go on with
YOUTH = 100  # readings
YOUTH_SHARE = 0.5  # how much of its youth is forgiven to a rank; of 0, 1/2 and 1 the best within the budget
MOST_FORGIVEN = 0.9  # the score up to which it is to one that is no record, before anything is `granted`
ANCHOR_RANK = 3  # where the plain tail begins: at the third largest
SHOWN, UNSHOWN = 1.5, 2.5  # decades that the budget asks for beyond the ranks: up to here cautious, from here on plain
RUN_GRANTED, RUN_FADES = 1.0, 0.5  # decades: what `granted` gives, and how far beyond the ranks; measured
MOST_GRANTED = 0.3  # as a score: more, and a series with a reading a day would hardly be without an alarm
PEAK_SHARE = 0.5  # of the way from the old record to the peak of an incident that is over
DISTANT_SHARE = 0.8  # a reading that is only far from the old normal, but not rare, scores at most this

OTHERS_WEIGHT = 0.25  # of the geometric mean of the others' scores in a device's joint one: measured
QUIET_SCORE = 0.22  # about the median of all readings of the recordings, before a decade was granted
LEAST_SCORE = 0.05  # below it all are as quiet: the engine gives hardly any, and 0 has no logarithm

MONTH_SECONDS = 30.44 * 86_400
STRICTNESS_RANGE = (1.5, 9.0)  # -log10 p*: a reading a day and a budget of one, up to a reading a millisecond


class Column(enum.IntEnum):
    """Columns of `Calibration.rows`; from the third on one a view."""

    COUNT = 0  # readings from which `distance` has learned
    RANKED = 1  # readings in the histogram
    THRESHOLD = 2
    EXCESS = THRESHOLD + len(VIEWS)
    RECORD = EXCESS + len(VIEWS)
    ANCHOR = RECORD + len(VIEWS)
    SMOOTH = ANCHOR + len(VIEWS)


WIDTH = Column.SMOOTH + len(VIEWS)


@dataclass(frozen=True, slots=True)
class Kept:
    """One series' histogram and records as they were when an alarm opened."""

    record: list[float]
    ranked: float
    histogram: bytes
    """uint16 (views, BINS), zlib"""


class Judged(NamedTuple):
    """A wave, each `(n, len(VIEWS))` unless said."""

    views: Float32
    rarity: Float32
    distance: Float32
    granted: Float32
    """(n,) decades, by `granted`"""


@dataclass(slots=True)
class Calibration:
    """What is known of each series' tails, one row a slot; a row of zeros is a new series."""

    rows: Float32
    """(capacity, WIDTH)"""
    histogram: NDArray[np.uint16]
    """(capacity, views, BINS): readings by the size of each view"""
    sums: NDArray[np.uint16]
    """(capacity, views, BINS / GROUP): of each GROUP bins of the histogram, from which they follow"""

    @classmethod
    def allocate(cls, capacity: int) -> Calibration:
        counts = (capacity, len(VIEWS))
        return cls(
            np.zeros((capacity, WIDTH), np.float32),
            np.zeros((*counts, BINS), np.uint16),
            np.zeros((*counts, GROUPS), np.uint16),
        )

    def reset(self, slots: Slots) -> None:
        """Forget these series."""
        self.rows[slots] = 0
        self.histogram[slots] = 0
        self.sums[slots] = 0

    def add_up(self, rows: slice | Slots) -> None:
        """The sums of these rows, whose histogram has been put there from elsewhere."""
        grouped = self.histogram.reshape(*self.sums.shape, GROUP)
        self.sums[rows] = grouped[rows].sum(axis=3, dtype=np.uint16)

    def gather(self, slots: Slots) -> Float32:
        """These rows, column by column in memory: an operation on three views is then three long ones, not n short."""
        rows = np.asfortranarray(self.rows.take(slots, axis=0))
        new = rows[:, Column.COUNT] == 0
        if new.any():
            rows[new, Column.THRESHOLD : Column.EXCESS] = PRIOR_THRESHOLD
            rows[new, Column.EXCESS : Column.RECORD] = PRIOR_EXCESS
        return rows

    def judge(self, slots: Slots, raw: Float32, strict: Float64) -> Judged:
        """The views of a reading of each slot, and what they mean, by one look at the rows; changes nothing.

        `raw` `(n, len(VIEWS))` are those of the reading alone. `strict` `(n,)`: -log10 of the tail probability that is
        a score of 1.
        """
        rows = self.gather(slots)
        views = smooth(rows, raw)
        return Judged(views, self.rarity(rows, slots, views, strict), distance(rows, views), granted(rows, strict))

    def rarity(self, rows: Float32, slots: Slots, views: Float32, strict: Float64) -> Float32:
        """-log10 of the tail probability of each view `(n, len(VIEWS))` among all that the series has shown.

        `strict` `(n,)`: -log10 of the tail probability that is a score of 1. As far as the ranks of the past can show
        such a rarity they decide, and only the cautious tail is laid on; the further it is beyond what they can show,
        the more the plain tail is trusted, for else a young or fast series could have no alarm at all.

        cautious: rank, its youth forgiven half-way; beyond the record a tail twice as wide as the exceedances are.
        plain: beyond the third largest a tail as wide as the exceedances are, or as the way from the 90 % quantile to
        there, if that is wider. No single wild reading can deafen it.
        """
        asked, ranked = strict.astype(np.float32)[:, None], rows[:, Column.RANKED, None]
        bins, place = _bins(views)
        here, above = self._count(slots, bins)
        rank = -np.log10((above + here * (1 - place) + 0.5) / (ranked + 1))
        youth = YOUTH_SHARE * np.log10((REMEMBERED + YOUTH) / np.minimum(ranked + YOUTH, REMEMBERED + YOUTH))
        threshold, record = rows[:, Column.THRESHOLD : Column.EXCESS], rows[:, Column.RECORD : Column.ANCHOR]
        anchor, excess = rows[:, Column.ANCHOR : Column.SMOOTH], rows[:, Column.EXCESS : Column.RECORD]
        width = DECADE * np.maximum(excess, LEAST_EXCESS)

        above_record = np.where(record > UNMOVED, np.maximum(views - record, 0) / (TAIL_WIDTH * width), 0)
        most = np.where(above_record > 0, np.inf, np.maximum(rank, MOST_FORGIVEN * asked))
        cautious = np.minimum(rank + youth, most) - MOST_BEYOND * np.expm1(above_record / -MOST_BEYOND)

        at_anchor = np.log10(np.maximum(ranked / ANCHOR_RANK, 1))
        observed = (anchor - threshold) / np.maximum(at_anchor - AT_THRESHOLD, LEAST_DECADES)
        further = np.minimum(views, MOST_VIEW) - anchor
        further = np.where((further > BIN_WIDTH / 2) & (anchor > UNMOVED), further, 0)
        above_anchor = further / np.maximum(width, observed)
        plain = np.where(above_anchor > 0, at_anchor + above_anchor, 0)

        trust = within((_beyond_ranks(rows, asked) - SHOWN) / (UNSHOWN - SHOWN), 0, 1)
        result: Float32 = np.maximum(cautious + trust * np.maximum(plain - cautious, 0), 0)
        return result

    def _count(self, slots: Slots, bins: NDArray[np.intp]) -> tuple[Float32, Float32]:
        """How many readings each view `(n, views)` has in its bin, and how many in those above."""
        cells, groups, places = _cells(slots), *np.divmod(bins.T, GROUP)
        here = self.histogram.reshape(-1).take(cells * BINS + bins.T)
        nearby = self.histogram.reshape(-1, GROUP).take(cells * GROUPS + groups, axis=0)
        above = np.einsum("vnb,vnb->vn", nearby, ABOVE.take(places, axis=0))  # in 16 bits: REMEMBERED is less
        sums = self.sums.reshape(-1, GROUPS).take(cells, axis=0)
        above += np.einsum("vnb,vnb->vn", sums, ABOVE[:GROUPS, :GROUPS].take(groups, axis=0))
        return here.T.astype(np.float32), above.T.astype(np.float32)

    def learn(self, slots: Slots, views: Float32, normal: NDArray[np.bool_]) -> None:
        """Takes views `(n, len(VIEWS))` in; where a reading is not `normal` `(n,)`, the old normal stays as it is."""
        if not len(slots):
            return
        rows = self.gather(slots)
        threshold, excess = rows[:, Column.THRESHOLD : Column.EXCESS], rows[:, Column.EXCESS : Column.RECORD]
        count, teaches = rows[:, Column.COUNT, None], normal[:, None]
        over = views > threshold
        width = np.maximum(excess, LEAST_EXCESS)
        rate = np.maximum(10.0 / (count + 10.0), SLOWEST_THRESHOLD_RATE)
        size = within(views - threshold, 0.0, MOST_EXCESSES * width)
        excess_rate = np.maximum(1.0 / (TAIL_SHARE * count + PRIOR_WEIGHT), SLOWEST_EXCESS_RATE)
        moved = np.maximum(threshold + rate * width * (over - TAIL_SHARE), 0.05)
        rows[:, Column.EXCESS : Column.RECORD] = excess + (over & teaches) * excess_rate * (size - excess)
        rows[:, Column.THRESHOLD : Column.EXCESS] = np.where(teaches, moved, threshold)
        rows[:, Column.COUNT] += normal

        record = rows[:, Column.RECORD : Column.ANCHOR]
        bounded = np.minimum(views, np.maximum(record, threshold) + MOST_EXCESSES * width)
        rows[:, Column.RECORD : Column.ANCHOR] = np.maximum(record * (1 - RECORD_FADES), bounded)
        rows[:, Column.SMOOTH : WIDTH] = views
        rows[:, Column.RANKED] += 1
        cells, (bins, _) = _cells(slots), _bins(views)
        self.histogram.reshape(-1)[cells * BINS + bins.T] += 1
        self.sums.reshape(-1)[cells * GROUPS + bins.T // GROUP] += 1
        self.rows[slots] = rows
        self._halve(slots[rows[:, Column.RANKED] >= REMEMBERED])
        anchor = rows[:, Column.ANCHOR : Column.SMOOTH]  # what lies in its bin, or below, does not move it
        self._anchor(cells[((bins.astype(np.float32) * BIN_WIDTH > anchor) | (anchor == 0)).T])

    def _halve(self, slots: Slots) -> None:
        """Every other reading is forgotten, counted from the largest of each view on."""
        if not len(slots):
            return
        from_above = (self.histogram[slots, :, ::-1].cumsum(axis=2, dtype=np.int32) + 1) // 2
        self.histogram[slots, :, ::-1] = np.diff(from_above, axis=2, prepend=0)
        self.rows[slots, Column.RANKED] = from_above[:, 0, -1]
        self.add_up(slots)
        self._anchor(_cells(slots).ravel())

    def _anchor(self, cells: Slots) -> None:
        """Finds the middle of the bin of each ANCHOR_RANK-th largest anew, by `_cells`; 0 while there are fewer."""
        if not len(cells):
            return
        from_above = self.histogram.reshape(-1, BINS)[cells, ::-1].cumsum(axis=1, dtype=np.uint16)
        bins = BINS - 1 - (from_above >= ANCHOR_RANK).argmax(axis=1)
        slots, view = np.divmod(cells, len(VIEWS))
        enough = from_above[:, -1] >= ANCHOR_RANK
        self.rows[slots, Column.ANCHOR + view] = np.where(enough, (bins + 0.5) * BIN_WIDTH, 0)

    def keep(self, slot: int) -> Kept:
        """What `put_back` needs, taken when an alarm opens."""
        row = self.rows[slot]
        packed = zlib.compress(self.histogram[slot].tobytes(), 1)
        return Kept(row[Column.RECORD : Column.ANCHOR].tolist(), float(row[Column.RANKED]), packed)

    def put_back(self, slot: int, kept: Kept, peak: Float32) -> None:
        """An incident has ended: its readings are forgotten, but for one, its `peak` `(len(VIEWS),)`.

        So the same fault is told again the next time, while a burst that belongs to the series becomes one of its kind.
        Raises ValueError if `kept` is not what `keep` gave.
        """
        unpack, shape = zlib.decompressobj(), self.histogram[slot].shape
        try:
            packed = unpack.decompress(kept.histogram, self.histogram[slot].nbytes)
            histogram = np.frombuffer(packed, np.uint16).reshape(shape).copy()
            record = np.array(kept.record, np.float32).reshape(len(VIEWS))
        except (ValueError, zlib.error) as problem:
            raise ValueError(f"what was kept of slot {slot} does not fit: {problem}") from None
        bins, _ = _bins(peak)
        histogram[np.arange(len(VIEWS)), bins] += 1
        self.histogram[slot] = histogram
        self.add_up(np.array([slot]))
        row = self.rows[slot]
        row[Column.RANKED] = kept.ranked + 1
        row[Column.RECORD : Column.ANCHOR] = record + PEAK_SHARE * np.maximum(peak - record, 0)
        self._anchor(_cells(np.array([slot])).ravel())


def smooth(rows: Float32, raw: Float32) -> Float32:
    """The views `(n, len(VIEWS))` from those of the reading alone; `rows` as `Calibration.gather` gives them."""
    before = rows[:, Column.SMOOTH : WIDTH]
    views: Float32 = before + SMOOTHING * (raw - before)
    return views


def distance(rows: Float32, views: Float32) -> Float32:
    """-log10 of the tail probability of each view `(n, len(VIEWS))` in the series' old normal."""
    threshold, excess = rows[:, Column.THRESHOLD : Column.EXCESS], rows[:, Column.EXCESS : Column.RECORD]
    young = DECADE * (1 + YOUNG / (rows[:, Column.COUNT, None] + 1))
    beyond = AT_THRESHOLD + (views - threshold) / (np.maximum(excess, LEAST_EXCESS) * young)
    result: Float32 = np.where(views > threshold, beyond, AT_THRESHOLD * views / threshold)
    return result


def granted(rows: Float32, strict: Float64) -> Float32:
    """Decades `(n,)` by which the score of a series is higher than its rarity is, for rarity comes in runs.

    A rank is exact for a reading, but the budget counts alarms, and as rare readings come together, many are one alarm:
    where the ranks alone decide, a third of the budget would be spent. Where a tail does, it is spent without this.
    """
    asked = strict.astype(np.float32)
    faded = within(_beyond_ranks(rows, asked[:, None])[:, 0] / RUN_FADES, 0, 1)
    result: Float32 = np.minimum(RUN_GRANTED, MOST_GRANTED * asked) * (1 - faded)
    return result


def _beyond_ranks(rows: Float32, asked: Float32) -> Float32:
    """Decades `(n, 1)` between the rarity `(n, 1)` that the budget asks for and what the ranks of the past can show."""
    return asked - np.log10(rows[:, Column.RANKED, None] + 1)


def _cells(slots: Slots) -> Slots:
    """(views, n): which row each view of a series has, where each has one."""
    return slots * len(VIEWS) + np.arange(len(VIEWS))[:, None]


def _bins(views: Float32) -> tuple[NDArray[np.intp], Float32]:
    """The bin of each view and how far in it the view lies, 0 to 1."""
    position = views.clip(0, MOST_VIEW) / BIN_WIDTH
    bins = np.floor(position)
    return bins.astype(np.intp), (position - bins).astype(np.float32, copy=False)


def strictness(budget_per_month: float, interval_seconds: Float64) -> Float64:
    """-log10 p* of a series that reports every `interval_seconds`: p* = budget / readings a month / number of views."""
    p = budget_per_month * interval_seconds / MONTH_SECONDS / len(VIEWS)
    return np.clip(-np.log10(np.maximum(p, 1e-30)), *STRICTNESS_RANGE)


def joint_score(scores: Float64, strict: Float64, granted: Float64) -> float:
    """One score of a device from those of its series at one time `(k,)`, NaN where absent: the rarest, for k looks.

    What the others see at the same time counts too: a fault mostly moves several channels, chance moves one.
    The decades `granted` `(k,)` pay for the runs of one series: each of k keeps a k-th, and none is louder by them.
    NaN if none has a score.
    """
    known = ~np.isnan(scores)
    score, strict, granted = scores[known], strict[known], granted[known]
    count = len(score)
    if not count:
        return float("nan")
    louder = np.log(np.maximum(score, LEAST_SCORE) / QUIET_SCORE) - granted / strict
    others = (louder.sum() - louder) / max(count - 1, 1)  # a lone series has none, which is as if they were quiet
    own = score * strict - granted * (1 - 1 / count)
    rarity = own * np.exp(OTHERS_WEIGHT * others) - np.log10(count)
    return float((np.maximum(rarity, 0.0) / strict).max())
