"""Calibrated tails against known distributions, brute force and numbers that a person can check."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models import calibration
from models.calibration import VIEWS, Calibration, Column, Float32, Float64

ONE = np.array([0])
MEANS = np.array([0.5, 0.4, 0.3])  # of exponential views, each above the least excess
NORMAL = np.ones(1, np.bool_)
EDGES = np.arange(calibration.BINS) * calibration.BIN_WIDTH
A_FEW = st.lists(st.floats(0, 300, width=32), min_size=3, max_size=3)


def taught(seed: int, readings: int, slots: int = 1, means: Float64 = MEANS) -> Calibration:
    """Series that have shown so many exponential views with these means."""
    rng = np.random.default_rng(seed)
    tails = Calibration.allocate(slots)
    for _ in range(readings):
        views = (rng.exponential(size=(slots, len(VIEWS))) * means).astype(np.float32)
        tails.learn(np.arange(slots), views, np.ones(slots, np.bool_))
    return tails


def distance(tails: Calibration, *views: float) -> list[float]:
    return [float(value) for value in calibration.distance(tails.gather(ONE), np.array([views], np.float32))[0]]


def rarity(tails: Calibration, *views: float, strict: float = 3.0) -> list[float]:
    """By default at a strictness that a thousand readings can show, so that the cautious tail counts."""
    found = tails.rarity(tails.gather(ONE), ONE, np.array([views], np.float32), np.array([strict]))
    return [float(value) for value in found[0]]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1000), st.integers(0, 120), A_FEW, A_FEW)
def test_distance_grows_with_each_view(seed: int, readings: int, one: list[float], two: list[float]) -> None:
    """An odder view is never less rare, and a view's rarity does not depend on the other views."""
    tails = taught(seed, readings)
    low, high = np.minimum(one, two), np.maximum(one, two)
    rare_low, rare_high = distance(tails, *low), distance(tails, *high)
    assert all(0 <= a <= b for a, b in zip(rare_low, rare_high, strict=True))
    for view in range(len(VIEWS)):
        mixed = low.copy()
        mixed[view] = high[view]
        assert distance(tails, *mixed)[view] == rare_high[view]


def test_a_new_series_has_the_prior() -> None:
    """One in ten lies above the prior threshold; twenty-one mean excesses times ln 10 above it, one in a hundred.

    Twenty-one, since the tail of a series without readings is widened by 1 + 20 / 1.
    """
    tails = Calibration.allocate(2)
    assert distance(tails, *calibration.PRIOR_THRESHOLD) == pytest.approx([1, 1, 1], abs=1e-6)
    assert distance(tails, *calibration.PRIOR_THRESHOLD / 2) == pytest.approx([0.5, 0.5, 0.5], abs=1e-6)
    beyond = calibration.PRIOR_THRESHOLD + calibration.PRIOR_EXCESS * 21 * np.log(10)
    assert distance(tails, *beyond) == pytest.approx([2, 2, 2], rel=1e-5)
    spelled_out = Calibration.allocate(1)
    spelled_out.rows[0, Column.THRESHOLD : Column.EXCESS] = calibration.PRIOR_THRESHOLD
    spelled_out.rows[0, Column.EXCESS : Column.RECORD] = calibration.PRIOR_EXCESS
    assert distance(spelled_out, 3, 3, 3) == distance(tails, 3, 3, 3)


def test_a_look_teaches_nothing_and_a_reset_forgets() -> None:
    """`judge` leaves the rows alone; a reset slot answers as a new one, and its neighbours as before."""
    tails = taught(1, 50, slots=3)
    before = tails.rows.copy()
    views = np.full((3, len(VIEWS)), 2, np.float32)
    histogram = tails.histogram.copy()
    tails.judge(np.arange(3), views, np.full(3, 5.0))
    np.testing.assert_array_equal(tails.rows, before)
    np.testing.assert_array_equal(tails.histogram, histogram)
    tails.reset(ONE)
    assert distance(tails, 2, 2, 2) == distance(Calibration.allocate(1), 2, 2, 2)
    np.testing.assert_array_equal(tails.rows[1:], before[1:])


def test_slots_learn_side_by_side_as_alone() -> None:
    """A series' tail does not depend on who else is in the wave."""
    rng = np.random.default_rng(4)
    views = rng.exponential(size=(200, 5, len(VIEWS))).astype(np.float32)
    together, alone = Calibration.allocate(5), Calibration.allocate(5)
    for row in views:
        together.learn(np.arange(5), row, np.ones(5, np.bool_))
        for k in range(5):
            alone.learn(np.array([k]), row[k : k + 1], NORMAL)
        alone.learn(np.array([], np.intp), row[:0], NORMAL[:0])  # nobody: nothing
    np.testing.assert_allclose(together.rows, alone.rows, rtol=1e-6)
    np.testing.assert_array_equal(together.histogram, alone.histogram)


def test_learned_tail_probabilities_are_right() -> None:
    """On exponential data a view that has the chance p gets p: the typical series within a factor of 1.4.

    Nine series of ten after 3,000 readings: within the factors below, a third above what was measured. They grow with
    the rarity, since the error of the mean excess multiplies it.
    """
    tails = taught(2, 3000, slots=40)
    for chance, factor in ((1e-1, 1.5), (1e-2, 1.7), (1e-3, 2.1), (1e-4, 2.6), (1e-6, 3.6)):
        views = np.tile((-np.log(chance) * MEANS).astype(np.float32), (40, 1))
        off = calibration.distance(tails.gather(np.arange(40)), views) + np.log10(chance)  # in powers of ten
        assert np.abs(np.median(off, axis=0)).max() < np.log10(1.4), chance
        assert np.quantile(np.abs(off), 0.9) < np.log10(factor), chance


def test_as_many_exceed_as_the_chance_says() -> None:
    """Of fresh readings, about one in a hundred is rarer than one in a hundred: what the alarm budget rests on."""
    tails = taught(3, 2000, slots=40)
    rng = np.random.default_rng(30)
    slots = np.repeat(np.arange(40), 500)
    views = (rng.exponential(size=(len(slots), len(VIEWS))) * MEANS).astype(np.float32)
    share = (calibration.distance(tails.gather(slots), views) > 2).mean(axis=0)
    assert (np.abs(np.log10(share / 0.01)) < np.log10(1.5)).all()


def test_a_young_series_is_not_stricter_than_its_age_allows() -> None:
    """The same view, far out, is less rare for a series of thirty readings than for one of three thousand."""
    far = np.full((20, len(VIEWS)), 5, np.float32)
    young, old = taught(5, 30, slots=20), taught(5, 3000, slots=20)
    told = [calibration.distance(each.gather(np.arange(20)), far) for each in (young, old)]
    assert (told[0] < told[1]).mean() > 0.8


def test_one_wild_view_cannot_deafen_a_series() -> None:
    """A view of 1e9 counts as eight mean excesses when it is learned: the bar hardly moves."""
    tails = taught(6, 1000)
    before = distance(tails, 3, 3, 3)
    tails.learn(ONE, np.full((1, len(VIEWS)), 1e9, np.float32), NORMAL)
    after = distance(tails, 3, 3, 3)
    assert all(0.9 * b < a <= b for a, b in zip(after, before, strict=True))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1000), st.integers(0, 120), A_FEW, A_FEW, st.floats(1.5, 9))
def test_rarity_grows_with_each_view(
    seed: int, readings: int, one: list[float], two: list[float], strict: float
) -> None:
    """An odder view is never less rare, and a view's rarity does not depend on the other views."""
    tails = taught(seed, readings)
    low, high = np.minimum(one, two), np.maximum(one, two)
    rare_low, rare_high = rarity(tails, *low, strict=strict), rarity(tails, *high, strict=strict)
    assert all(0 <= a <= b + 1e-5 for a, b in zip(rare_low, rare_high, strict=True))
    for view in range(len(VIEWS)):
        mixed = low.copy()
        mixed[view] = high[view]
        assert rarity(tails, *mixed, strict=strict)[view] == rare_high[view]


def test_rarity_is_the_rank_among_the_past() -> None:
    """Against counting: within half a bin; a new record is rarer than all, by how far it is beyond the old one."""
    rng = np.random.default_rng(11)
    past = (rng.exponential(size=(5000, len(VIEWS))) * MEANS).astype(np.float32)
    tails = Calibration.allocate(1)
    for row in past:
        tails.learn(ONE, row[None], NORMAL)
    age = 5000 + calibration.YOUTH
    youth = calibration.YOUTH_SHARE * np.log10((calibration.REMEMBERED + calibration.YOUTH) / age)
    for size in (0.1, 0.5, 1.0, 1.7):
        found = np.array(rarity(tails, size, size, size, strict=4.5)) - youth
        half = calibration.BIN_WIDTH / 2
        most = -np.log10(((past > size + half).sum(axis=0) + 0.5) / 5001)
        least = -np.log10(((past > size - half).sum(axis=0) + 0.5) / 5001)
        assert (found <= most + 0.02).all()
        assert (found >= least - 0.02).all()
    record = past.max(axis=0)
    at_record, beyond, far = (np.array(rarity(tails, *(record + more), strict=4.5)) for more in (0.2, 1.0, 50.0))
    assert (at_record > 3.7).all()
    assert (at_record < beyond).all()
    assert (beyond < far).all()
    assert (far < 4.5 + calibration.MOST_BEYOND).all()


def test_a_series_that_never_moved_has_no_tail_to_go_on_with() -> None:
    """The first toggle of a flag is as rare as its age says, not a wonder."""
    tails = Calibration.allocate(1)
    for _ in range(3000):
        tails.learn(ONE, np.zeros((1, len(VIEWS)), np.float32), NORMAL)
    assert max(rarity(tails, 10.0, 10.0, 10.0)) < 4.3
    assert max(rarity(tails, 10.0, 10.0, 10.0, strict=6.0)) < 4.3


@pytest.mark.parametrize(("readings", "strict"), [(50, 2.0), (100, 3.3), (300, 3.3), (300, 4.4)])
def test_youth_alone_makes_no_alarm(readings: int, strict: float) -> None:
    """What lies within the record has a score below 1, unless its rank alone is as rare as that."""
    tails = taught(16, readings)
    record = tails.rows[0, Column.RECORD : Column.ANCHOR]
    for share in (0.5, 0.8, 0.95):
        size = share * record
        counted = np.log10((readings + 1) / (tails.histogram[0] * (size[:, None] < EDGES)).sum(axis=1).clip(0.5))
        found = np.array(rarity(tails, *size, strict=strict))
        assert (found <= np.maximum(0.9 * strict, counted) + 1e-4).all()


@pytest.mark.parametrize(
    ("strict", "granted"), [(1.5, 0.45), (2.5, 0.75), (3.0, 0.9), (3.25, 0.4875), (3.4, 0.2), (3.5, 0.0), (9.0, 0.0)]
)
def test_a_run_of_rare_readings_is_granted_as_far_as_ranks_show_the_rarity(strict: float, granted: float) -> None:
    """999 readings show three decades, whatever they are; a new series shows none. 0.3 of a score at most."""
    tails = taught(18, 999)
    found = calibration.granted(tails.gather(ONE), np.array([strict]))
    assert found.tolist() == pytest.approx([granted], abs=1e-3)
    assert calibration.granted(Calibration.allocate(1).gather(ONE), np.array([strict])).tolist() == [0.0]
    judged = tails.judge(ONE, np.ones((1, len(VIEWS)), np.float32), np.array([strict]))
    assert judged.granted.tolist() == found.tolist()


@pytest.mark.parametrize("strict", [5.1, 6.2, 6.9])
def test_one_wild_reading_does_not_deafen_a_fast_series(strict: float) -> None:
    """A gross reading is an alarm after a grosser one too, at a minute, ten seconds and a second."""
    tails = taught(17, 1000)
    gross = tails.rows[0, Column.ANCHOR : Column.SMOOTH] + 6
    before = np.array(rarity(tails, *gross, strict=strict))
    tails.learn(ONE, np.full((1, len(VIEWS)), 15, np.float32), NORMAL)
    after = np.array(rarity(tails, *gross, strict=strict))
    assert (before > strict).all()
    assert (after > strict).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(0, 400))
def test_the_anchor_is_the_third_largest(seed: int, readings: int) -> None:
    """Against sorting, within half a bin."""
    rng = np.random.default_rng(seed)
    past = (rng.exponential(size=(readings, len(VIEWS))) * MEANS).astype(np.float32)
    tails = Calibration.allocate(1)
    for row in past:
        tails.learn(ONE, row[None], NORMAL)
    anchor = tails.rows[0, Column.ANCHOR : Column.SMOOTH]
    if readings < calibration.ANCHOR_RANK:
        assert (anchor == 0).all()
    else:
        third = np.sort(past, axis=0)[-calibration.ANCHOR_RANK]
        assert np.abs(anchor - third).max() <= calibration.BIN_WIDTH / 2 + 1e-5


def test_what_has_come_to_stay_is_rare_no_more_but_as_far_as_before() -> None:
    """Rank follows every reading; the old normal none of those that are not normal."""
    tails = taught(12, 2000)
    level = np.array([[6.0, 6.0, 6.0]], np.float32)
    rare, far = min(rarity(tails, *level[0])), distance(tails, *level[0])
    for _ in range(300):
        tails.learn(ONE, level, ~NORMAL)
    assert rare > 4.5
    assert max(rarity(tails, *level[0])) < 2
    assert distance(tails, *level[0]) == far


def test_an_incident_that_is_over_is_forgotten_but_for_its_peak() -> None:
    """Afterwards a reading like it is nearly as rare as before; a dozen such, and it is one of the series' own."""
    tails = taught(13, 2000)
    before = tails.histogram.copy()
    peak = np.array([[6.0, 6.0, 6.0]], np.float32)
    rare = [np.array(rarity(tails, *peak[0]))]
    for _ in range(12):
        kept = tails.keep(0)
        for _ in range(100):
            tails.learn(ONE, peak, ~NORMAL)
        tails.put_back(0, kept, peak[0])
        rare.append(np.array(rarity(tails, *peak[0])))
    assert (np.diff(rare, axis=0) < 0).all()
    strict = float(calibration.strictness(1.0, np.array([300.0]))[0])
    assert rare[1].min() / strict > 0.85
    assert rare[-1].max() / strict < 0.8
    added = tails.histogram.astype(int) - before
    assert added.sum() == 12 * len(VIEWS)


def test_a_full_histogram_is_halved() -> None:
    """Counts stay within their sixteen bits; of each view, as many lie above any size as half of those before."""
    tails = taught(14, calibration.REMEMBERED - 1)
    before = tails.histogram[0, :, ::-1].cumsum(axis=1, dtype=int)
    tails.learn(ONE, np.zeros((1, len(VIEWS)), np.float32), NORMAL)
    after = tails.histogram[0, :, ::-1].cumsum(axis=1, dtype=int)
    assert tails.rows[0, Column.RANKED] == calibration.REMEMBERED / 2
    np.testing.assert_array_equal(after[:, :-1], (before[:, :-1] + 1) // 2)


def test_the_sums_are_those_of_the_histogram() -> None:
    """After learning, halving, an incident that is over, a reset, and for a histogram that came from elsewhere."""
    tails = taught(19, calibration.REMEMBERED + 50, slots=2)
    kept = tails.keep(1)
    for _ in range(20):
        tails.learn(np.arange(2), np.full((2, len(VIEWS)), 5, np.float32), np.zeros(2, np.bool_))
    tails.put_back(1, kept, np.full(len(VIEWS), 6, np.float32))
    wanted = tails.histogram.reshape(2, len(VIEWS), -1, calibration.GROUP).sum(axis=3)
    np.testing.assert_array_equal(tails.sums, wanted)
    other = Calibration.allocate(3)
    other.histogram[:2] = tails.histogram
    other.add_up(slice(2))
    np.testing.assert_array_equal(other.sums[:2], wanted)
    other.reset(np.array([1]))
    np.testing.assert_array_equal(other.sums[1:], 0)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1000), st.integers(0, 300), A_FEW)
def test_a_rank_counts_all_that_lies_above(seed: int, readings: int, size: list[float]) -> None:
    """By the sums and the bins nearby, as by all bins: the readable way, which this is held to."""
    tails, views = taught(seed, readings), np.array([size], np.float32)
    bins = (np.minimum(views, calibration.MOST_VIEW) / calibration.BIN_WIDTH).astype(int)
    here, above = tails._count(ONE, bins)
    for view, k in enumerate(bins[0].tolist()):
        assert here[0, view] == tails.histogram[0, view, k]
        assert above[0, view] == tails.histogram[0, view, k + 1 :].sum()


@pytest.mark.parametrize("spoiled", [b"", b"garbage", bytes(1000)])
def test_what_does_not_fit_is_not_put_back(spoiled: bytes) -> None:
    """A kept part that is damaged is refused whole."""
    tails = taught(18, 100)
    kept = tails.keep(0)
    before = tails.rows.copy(), tails.histogram.copy()
    peak = np.ones(len(VIEWS), np.float32)
    for each in (replace(kept, histogram=spoiled), replace(kept, record=[1.0])):
        with pytest.raises(ValueError, match="does not fit"):
            tails.put_back(0, each, peak)
    np.testing.assert_array_equal(tails.rows, before[0])
    np.testing.assert_array_equal(tails.histogram, before[1])


def test_views_are_moving_averages() -> None:
    """By the recursion, spelled out; looking changes nothing."""
    rng = np.random.default_rng(15)
    tails, wanted = Calibration.allocate(1), np.zeros(len(VIEWS))
    for _ in range(50):
        raw: Float32 = rng.random((1, len(VIEWS))).astype(np.float32)
        views = calibration.smooth(tails.gather(ONE), raw)
        wanted += calibration.SMOOTHING * (raw[0] - wanted)
        np.testing.assert_allclose(views[0], wanted, rtol=1e-5)
        np.testing.assert_array_equal(views, calibration.smooth(tails.gather(ONE), raw))
        tails.learn(ONE, views, NORMAL)


@pytest.mark.parametrize(
    ("seconds", "budget", "wanted"),
    [
        (86_400.0, 1.0, 1.9606),  # a reading a day: 30.44 a month, three views each: one in 91.3
        (3600.0, 1.0, 3.3408),  # an hour: 730.56 a month, one in 2,191.7
        (60.0, 1.0, 5.1189),  # a minute: 43,833.6 a month, one in 131,500.8
        (60.0, 10.0, 4.1189),  # ten alarms a month instead of one: ten times as likely
        (1.0, 1.0, 6.8971),  # a second
        (1e-9, 1.0, 9.0),  # never stricter than this
        (1e9, 1.0, 1.5),  # never laxer
        (60.0, 1e9, 1.5),
    ],
)
def test_strictness_in_numbers(seconds: float, budget: float, wanted: float) -> None:
    """-log10 of budget / readings a month / three views, between its limits."""
    assert calibration.strictness(budget, np.array([seconds]))[0] == pytest.approx(wanted, abs=1e-4)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 5) | st.just(float("nan")), st.floats(1.5, 9), st.floats(0, 1)), max_size=12),
)
def test_joint_score_is_that_of_the_rarest_among_k(parts: list[tuple[float, float, float]]) -> None:
    """Each score but for what is granted, of which one part in k stays, moved by the mean of the others, as a
    probability, times the number of looks, at most one; back to a score; the largest of them."""
    scored = [part for part in parts if not np.isnan(part[0])]
    quiet, least, weight = calibration.QUIET_SCORE, calibration.LEAST_SCORE, calibration.OTHERS_WEIGHT
    logs = [np.log(max(score, least) / quiet) - granted / strict for score, strict, granted in scored]
    wanted, k = float("nan"), len(scored)
    for at, (score, strict, granted) in enumerate(scored):
        others = np.mean(logs[:at] + logs[at + 1 :]) if k > 1 else 0.0
        rarity = (score * strict - granted + granted / k) * np.exp(weight * others)
        wanted = np.fmax(wanted, -np.log10(min(1.0, 10**-rarity * k)) / strict)
    columns = np.array(parts, np.float64).reshape(-1, 3)
    assert calibration.joint_score(*columns.T) == pytest.approx(wanted, abs=1e-9, nan_ok=True)


def test_joint_score_in_numbers() -> None:
    """A lone series keeps its score; of ten, the rarest pays one power of ten; what others see adds; none has none."""
    nan = float("nan")

    def joint(scores: list[float], strict: float = 5.0, granted: float = 0.0) -> float:
        return calibration.joint_score(np.array(scores), np.full(len(scores), strict), np.full(len(scores), granted))

    assert joint([1.5]) == joint([1.5], granted=1.0) == joint([1.5, nan]) == pytest.approx(1.5)
    quiet = calibration.QUIET_SCORE
    assert joint([1.5, *([quiet] * 9)]) == pytest.approx((7.5 - 1) / 5)
    assert joint([1.5, 16 * quiet], strict=99.0) > 2.9
    granted = np.exp(1.0 / 5)  # a decade, in what is below 1
    assert joint([1.5, *([quiet * granted] * 9)], granted=1.0) == pytest.approx((7.5 - 0.9 - 1) / 5)
    assert np.isnan(joint([nan]))
    assert np.isnan(joint([]))
