"""From a journal to what can be learned: the same readings as were scored, without what is abnormal, split by time."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import msgspec
import numpy as np
import pytest

from streamer import recovery
from streamer.detector import WARM_READINGS
from streamer.disk import DiskFiles
from streamer.journal import Journal
from streamer.readings import Flag
from streamer.records import Abnormal, Evicted, Lateness, MarkedNormal, Paused, Released, Resumed
from streamer.redelivery import Redelivery
from streamer.retraining import dataset
from streamer.retraining.contract import Request
from streamer.retraining.dataset import JUDGE, STOP, STUCK_READINGS, TRAIN, WIDENED, Site
from tests.retraining.sites import CADENCE, Writer, noise, pattern, request, write_site
from tests.states import flip, new_shard
from tests.streams import START


def read(given: Request, **others: object) -> Site:
    return dataset.read(DiskFiles(Path(given.journal)), msgspec.structs.replace(given, **others))


def end(writer: Writer, directory: Path, **others: object) -> Request:
    position = writer.end()
    writer.journal.close()
    return request(directory, position, **others)


def rows_of(site: Site, series: int) -> slice:
    first = int(site.history.lengths[:series].sum())
    return slice(first, first + int(site.history.lengths[series]))


def steps(site: Site, series: int) -> list[int]:
    """The numbers of the readings of a series, by their times."""
    time: list[float] = ((site.history.time[rows_of(site, series)] - START) / CADENCE).round().tolist()
    return [int(step) for step in time]


def counted(site: Site, series: int) -> list[int]:
    of_it = site.counts[rows_of(site, series)]
    return [step for step, counts in zip(steps(site, series), of_it, strict=True) if counts]


def test_a_clean_site_is_all_there(tmp_path: Path) -> None:
    """Every reading once and in order; all but the first few count; the oldest train, the newest judge."""
    values = noise(np.random.default_rng(0), 4, 400)
    site = read(write_site(tmp_path, values))
    assert site.history.lengths.tolist() == [400] * 4
    np.testing.assert_array_equal(site.history.value.reshape(4, 400), values)
    assert all(steps(site, k) == list(range(400)) for k in range(4))
    assert all(counted(site, k) == list(range(WARM_READINGS, 400)) for k in range(4))
    assert site.normal.all()
    assert site.device == ["plant/0", "plant/0", "plant/1", "plant/1"]
    for k in range(4):
        part = site.part[rows_of(site, k)]
        assert (np.diff(part) >= 0).all()
        assert np.bincount(part) / 400 == pytest.approx([0.6, 0.15, 0.25], abs=0.02)
        assert site.judged_from - 1 == int((part != JUDGE).sum())  # one fact, and a group for each reading


def test_only_what_is_newer_than_the_incumbents_training_judges(tmp_path: Path) -> None:
    """`judge_from` moves the judged part, and what stops the training stays in front of it."""
    given = write_site(tmp_path, noise(np.random.default_rng(0), 2, 400))
    site = read(given, judge_from=360)
    assert 360 <= site.judged_from <= 370
    assert min(steps(site, 0)[k] for k in np.flatnonzero(site.of(JUDGE)[:400])) >= 359
    assert site.of(STOP).any()
    assert not read(given, judge_from=given.end).of(JUDGE).any()
    assert not read(given, judge_from=given.end + 50).of(JUDGE).any()


@pytest.mark.parametrize("kind", ["left", "open"])
def test_what_belonged_to_an_alarm_is_left_out(tmp_path: Path, kind: str) -> None:
    """With the readings just before it; of its series alone, once or told twice. It has taught nothing lasting."""
    writer = Writer(tmp_path / "journal")
    writer.admit([0, 1], ["a", "b"])
    values = noise(np.random.default_rng(0), 2, 300)
    writer.rows(values)
    since = START + 200 * CADENCE
    for _ in range(2 if kind == "left" else 0):
        writer.fact(Abnormal(1, since, START + 220 * CADENCE))
    given = end(writer, tmp_path, open_abnormal=[(1, since)] if kind == "open" else [])
    site = read(given)
    last = 220 if kind == "left" else 299
    assert counted(site, 0) == list(range(WARM_READINGS, 300))
    assert counted(site, 1) == [*range(WARM_READINGS, 200 - WIDENED), *range(last + 1, 300)]
    assert np.flatnonzero(~site.normal[rows_of(site, 1)]).tolist() == list(range(200, last + 1))


def test_a_slot_that_is_given_anew_is_another_series(tmp_path: Path) -> None:
    """Its alarms and its readings are not those of the series before it; devices come from the facts."""
    writer = Writer(tmp_path / "journal")
    writer.admit([0, 1], ["a", "b"])
    rng = np.random.default_rng(0)
    writer.rows(noise(rng, 2, 250))
    writer.fact(Abnormal(0, START + 100 * CADENCE, START + 110 * CADENCE))
    writer.fact(Evicted([0], START))
    writer.changes += 1
    writer.admit([0], ["c"])
    writer.rows(noise(rng, 2, 250), first=250)
    site = read(end(writer, tmp_path, open_abnormal=[(0, START + 480 * CADENCE)]))
    assert site.device == ["a", "b", "c"]
    assert [len(steps(site, k)) for k in range(3)] == [250, 500, 250]
    assert counted(site, 0) == [*range(WARM_READINGS, 100 - WIDENED), *range(111, 250)]
    assert counted(site, 2) == list(range(250 + WARM_READINGS, 480 - WIDENED))


def test_a_series_whose_admission_is_no_longer_kept_has_the_device_of_the_request(tmp_path: Path) -> None:
    """And one that nobody knows is a device of its own."""
    given = write_site(tmp_path, noise(np.random.default_rng(0), 3, 300))
    site = read(given, begin=1, devices=["x", "", "y"])
    assert site.device == ["x", "slot 1", "y"]


def test_a_stuck_series_teaches_nothing(tmp_path: Path) -> None:
    """From the 30th equal reading on; one that never moves is left out whole."""
    values = noise(np.random.default_rng(0), 3, 300)
    values[0, 100:200] = 7.0
    values[1] = 5.0
    site = read(write_site(tmp_path, values))
    assert len(site.history.lengths) == 2
    assert counted(site, 0) == [*range(WARM_READINGS, 100 + STUCK_READINGS - 1), *range(200, 300)]
    assert counted(site, 1) == list(range(WARM_READINGS, 300))


def test_a_paused_series_teaches_nothing(tmp_path: Path) -> None:
    """Between the facts; before a resumption whose pause is older than the journal; and whole if it still is so."""
    writer = Writer(tmp_path / "journal")
    writer.admit([0, 1, 2, 3], ["a", "b", "c", "d"])
    values = noise(np.random.default_rng(0), 4, 300)
    writer.rows(values[:, :100])
    writer.fact(Paused([0], START))
    writer.fact(Resumed([1], START))
    writer.rows(values[:, 100:150], first=100)
    writer.fact(Resumed([0], START))
    writer.fact(Paused([2], START))
    writer.rows(values[:, 150:], first=150)
    site = read(end(writer, tmp_path, paused=[3]))
    assert site.device == ["a", "b"]
    assert counted(site, 0) == [*range(WARM_READINGS, 100), *range(150, 300)]
    assert steps(site, 0) == [*range(100), *range(150, 300)]
    assert counted(site, 1) == list(range(100 + WARM_READINGS, 300))


def test_a_series_that_was_marked_normal_begins_anew(tmp_path: Path) -> None:
    """As the daemon has it: its old normal is forgotten, its device is the same, its new level counts."""
    writer = Writer(tmp_path / "journal")
    writer.admit([0, 1], ["a", "b"])
    values = noise(np.random.default_rng(0), 2, 400)
    values[1, 180:] += 80.0
    writer.rows(values[:, :200])
    writer.fact(MarkedNormal([1], START))
    writer.rows(values[:, 200:], first=200)
    site = read(end(writer, tmp_path))
    assert site.device == ["a", "b", "b"]
    assert counted(site, 1) == list(range(WARM_READINGS, 200))
    assert counted(site, 2) == list(range(200 + WARM_READINGS, 400))


@pytest.mark.parametrize("arrival_time", [False, True])
@pytest.mark.parametrize("lateness", [0, 90])
def test_the_same_readings_as_were_scored(tmp_path: Path, lateness: int, arrival_time: bool) -> None:
    """Late ones and duplicates, clocks set back, an allowance for lateness: as a replay by the shard has it."""
    rng = np.random.default_rng(lateness + arrival_time)
    writer = Writer(tmp_path / "journal", segment_bytes=1 << 14)
    writer.admit([0, 1], ["a", "b"])
    if lateness:
        writer.fact(Lateness(float(lateness)))
    flags = Flag.ARRIVAL_TIME if arrival_time else 0
    for k in range(130):
        count = int(rng.integers(1, 6))
        time = START + 60.0 * k + rng.choice([0.0, 0.0, -60.0, -5.0, 30.0], count)
        writer.group(rng.integers(0, 2, count), time, rng.normal(size=count), flags)
        if rng.random() < 0.1:
            writer.fact(Released(START + 60.0 * k + 30))
    given = end(writer, tmp_path)
    journal = Journal(DiskFiles(tmp_path / "journal"), lambda: START)
    shard = new_shard()
    recovery.recover(journal, journal.open(), None, shard, Redelivery())
    site = read(given)
    assert shard.applied[:2].sum() < shard.taken or arrival_time
    assert site.history.lengths.tolist() == shard.applied[:2].tolist()
    ends = np.cumsum(site.history.lengths) - 1
    np.testing.assert_array_equal(site.history.time[ends], shard.detector.statistics.wide[:2, 0])
    np.testing.assert_array_equal(site.history.value[ends], shard.detector.statistics.wide[:2, 1])


def break_group(directory: Path, step: int) -> None:
    """A bit of the group of this step: found by its time, which no other has."""
    needle = np.array([START + CADENCE * step] * 2).tobytes()
    for path in sorted(directory.glob("*.log")):
        at = path.read_bytes().find(needle)
        if at >= 0:
            flip(path, at + 2)
            return
    raise AssertionError(f"no group of step {step}")


def test_damage_is_gone_over(tmp_path: Path) -> None:
    """What cannot be read is missing, and said; what follows is of the same series."""
    given = write_site(tmp_path, noise(np.random.default_rng(0), 2, 300))
    break_group(tmp_path / "journal", 150)
    site = read(given)
    assert steps(site, 0) == steps(site, 1) == [*range(150), *range(151, 300)]
    assert len(site.notes) == 1
    assert "the journal's records 151 to 151" in site.notes[0]


def test_behind_damage_in_which_slots_may_have_changed_hands_every_series_begins_anew(tmp_path: Path) -> None:
    """The readings behind it are never joined to those of another series."""
    writer = Writer(tmp_path / "journal")
    writer.admit([0, 1], ["a", "b"])
    values = noise(np.random.default_rng(0), 2, 400)
    writer.rows(values[:, :200])
    lost = writer.journal.end
    writer.fact(Evicted([0], START))
    writer.changes += 1
    writer.admit([0], ["c"])
    writer.rows(values[:, 200:], first=200)
    given = end(writer, tmp_path, devices=["c", "b"])
    (path,) = (tmp_path / "journal").glob("*.log")
    flip(path, path.read_bytes().find(b'"Evicted"') + 3)
    site = read(given)
    assert site.notes == [f"the journal's records {lost} to {lost}: are damaged in {path.name}"]
    assert site.device == ["a", "b", "c", "b"]
    assert [len(steps(site, k)) for k in range(4)] == [200, 200, 200, 200]


class Vanishing(DiskFiles):
    """A directory whose oldest segment goes when the second reading begins, as retention may have it."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.begun = 0

    def names(self) -> list[str]:
        self.begun += 1
        if self.begun == 3:
            self.remove(min(super().names()))
        return super().names()


def test_what_is_dropped_meanwhile_is_not_missed(tmp_path: Path) -> None:
    """The daemon goes on: records behind `end` are not read, and the oldest may go between the two readings."""
    writer = Writer(tmp_path / "journal", segment_bytes=4096)
    writer.admit([0, 1], ["a", "b"])
    values = noise(np.random.default_rng(0), 3, 300)
    for k in range(300):
        writer.rows(values[:2, k : k + 1], first=k)
        writer.end()
    given = end(writer, tmp_path)
    more = Writer(tmp_path / "journal", changes=writer.changes, taken=writer.taken)
    more.admit([2], ["c"])
    more.rows(values, first=300)
    more.end()
    more.journal.close()
    whole = read(given)
    assert [steps(whole, k) for k in range(2)] == [list(range(300))] * 2
    site = dataset.read(Vanishing(tmp_path / "journal"), given)
    assert site.device == ["a", "b"]
    kept = steps(site, 0)
    assert 200 < len(kept) < 300
    assert kept == list(range(300 - len(kept), 300))
    assert site.history.value[rows_of(site, 1)].tolist() == values[1, kept].tolist()


def test_numbers_that_no_sensor_measures_are_left_out(tmp_path: Path) -> None:
    """A journal that somebody else has written: NaN, infinities, 1e300, slots below 0."""
    values = noise(np.random.default_rng(0), 1, 300)
    values[0, [50, 60, 70]] = [np.nan, np.inf, 1e300]
    writer = Writer(tmp_path / "journal")
    writer.admit([0], ["a"])
    writer.rows(values)
    writer.group([-5, 0], np.array([START + 1e5, np.nan]), np.ones(2))
    site = read(end(writer, tmp_path))
    assert np.isfinite(site.history.value).all()
    assert steps(site, 0) == [k for k in range(300) if k not in (50, 60, 70)]


def test_a_large_site_is_sampled(tmp_path: Path) -> None:
    """Never more than twice the budget is held; then the worst half of it, and others that stand for the rest."""
    values = noise(np.random.default_rng(0), 40, 200)
    given = write_site(tmp_path, values)
    site = read(given, max_series_steps=2000)
    assert 3000 <= len(site.counts) <= 4000
    loss = np.random.default_rng(1).random(len(site.device))
    chosen = dataset.sample(site, loss, 2000, np.random.default_rng(2))
    assert chosen.history.lengths.tolist() == [200] * 10
    worst = np.argsort(-loss)[:5]
    value = site.history.value.reshape(-1, 200)
    np.testing.assert_array_equal(chosen.history.value.reshape(-1, 200)[:5], value[worst])
    assert chosen.weight.tolist() == [1.0] * 5 + [(len(loss) - 5) / 5] * 5
    again = dataset.sample(read(given, max_series_steps=2000), loss, 2000, np.random.default_rng(2))
    for name in (field.name for field in fields(Site)):
        assert np.array_equal(getattr(chosen, name), getattr(again, name)) or name == "history"
    assert np.array_equal(chosen.history.value, again.history.value)


def test_of_a_long_series_the_readings_around_the_split_are_taken(tmp_path: Path) -> None:
    """One piece, three quarters of it before what judges."""
    rng = np.random.default_rng(0)
    writer = Writer(tmp_path / "journal")
    writer.admit([0, 1], ["a", "b"])
    fast = pattern(rng, 1, 12_000)
    for k in range(0, 12_000, 40):
        time = START + CADENCE * (k + np.arange(40.0)) / 40
        writer.group([0] * 40, time, fast[0, k : k + 40])
        writer.group([1], time[:1], np.array([float(k)]))
    site = read(end(writer, tmp_path, max_series_steps=8192))
    assert site.history.lengths.tolist() == [4096, 300]
    part = site.part[rows_of(site, 0)]
    assert int((part == JUDGE).sum()) == 1024
    at = int((fast[0] == site.history.value[0]).argmax())
    np.testing.assert_array_equal(site.history.value[:4096], fast[0, at : at + 4096])
    assert set(np.unique(part)) == {TRAIN, STOP, JUDGE}


def test_an_empty_journal_is_an_empty_site(tmp_path: Path) -> None:
    """No readings, no series, and no error; also where there is no segment at all."""
    (tmp_path / "journal").mkdir()
    for position in (0, 10):
        site = read(request(tmp_path, position))
        assert (len(site.counts), site.device) == (0, [])


def test_an_old_journal_is_split_as_a_new_one(tmp_path: Path) -> None:
    """Of a million records the last few hundred are kept, as after a year: they train, stop and judge all the same."""
    values = noise(np.random.default_rng(0), 4, 400)
    writer = Writer(tmp_path / "journal", beyond=1_000_000)
    writer.admit(range(4), ["a"] * 4)
    writer.rows(values)
    site = read(end(writer, tmp_path))
    assert np.bincount(site.part) / 1600 == pytest.approx([0.6, 0.15, 0.25], abs=0.02)
    assert 1_000_000 < site.judged_from < writer.journal.end
    assert site.notes == []


@pytest.mark.parametrize("kind", ["closed", "open"])
def test_a_fault_in_which_the_clock_was_set_back_is_left_out(tmp_path: Path, kind: str) -> None:
    """Its last reading has then an earlier time than its first: of a series whose times are those of arrival."""
    writer = Writer(tmp_path / "journal")
    writer.admit([0], ["a"])
    values = noise(np.random.default_rng(0), 1, 400)[0]
    clock = START + CADENCE * (np.arange(400) - 100 * (np.arange(400) >= 220))
    for time, value in zip(clock, values, strict=True):
        writer.group([0], np.array([time]), np.array([value]), Flag.ARRIVAL_TIME)
    if kind == "closed":
        writer.fact(Abnormal(0, float(clock[200]), float(clock[250])))
    left_out = range(200 - WIDENED, 251 if kind == "closed" else 400)
    given = end(writer, tmp_path, open_abnormal=[(0, float(clock[200]))] if kind == "open" else [])
    counts = read(given).counts
    assert [k for k in range(WARM_READINGS, 400) if not counts[k]] == list(left_out)
