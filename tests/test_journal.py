"""The journal: what `sync` has returned for is read back bit for bit after any crash.

Whatever else is read is what was appended, in its order, up to some record; or there is a clear error.
"""

from __future__ import annotations

import errno
import random
import subprocess
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from streamer import journal, records
from streamer.disk import DiskFiles, Files
from streamer.journal import DamagedError, Journal
from streamer.readings import Batch, Message
from streamer.records import Admitted, Budget, Evicted, Group, Heard, Listening, Record, SessionLost, Swept
from tests.crashfs import CrashFiles, Inode

SMALL = 700  # bytes of a segment: a few records


def group(rng: np.random.Generator, messages: int, most_readings: int = 3) -> Group:
    readings = rng.integers(0, most_readings + 1, messages).astype(np.uint32)
    rows = int(readings.sum())
    return Group(
        Batch(
            rng.integers(0, 2**31 - 1, rows).astype(np.int32),
            rng.normal(1.7e9, 1e3, rows),
            rng.normal(size=rows) * 10.0 ** rng.integers(-30, 30, rows),
            rng.integers(0, 256, rows).astype(np.uint8),
        ),
        rng.normal(1.7e9, 1e3, messages),
        readings,
        rng.integers(0, 2**32, messages).astype(np.uint32),
        rng.integers(0, 2**16, messages).astype(np.uint16),
    )


def some_records(seed: int = 0) -> list[Record]:
    """Every kind."""
    rng = np.random.default_rng(seed)
    return [
        Admitted([0, 1], ["line 1/düse#°C", "a#b"], ["line 1/düse", "a"], 3.7, 1.7e9 + 0.1),
        group(rng, 1),
        group(rng, 9),
        Listening(1.7e9 + 1 / 3),
        group(rng, 0),
        Heard([3], 0.1),
        Swept(1e300),
        Budget(0.1),
        group(rng, 3),
        SessionLost(),
        Evicted([0], 5.0),
        group(rng, 2),
    ]


def bits(record: Record) -> tuple[int, bytes]:
    kind, body = records.encode(record)
    return kind, b"".join(body)


def opened(files: Files, segment_bytes: int = SMALL) -> Journal:
    """A journal that is open, with a salt of its own each time that it needs one."""
    made = Journal(files, lambda: 1.7e9, segment_bytes=segment_bytes)
    made.open()
    return made


def written(files: Files, groups_of: int = 2, segment_bytes: int = SMALL, seed: int = 0) -> list[Record]:
    """A journal with records of every kind, synced in groups."""
    one = opened(files, segment_bytes)
    wanted = some_records(seed)
    for start in range(0, len(wanted), groups_of):
        for record in wanted[start : start + groups_of]:
            one.append(record)
        one.sync()
    one.close()
    return wanted


def read_all(files: Files, start: int = 0) -> list[tuple[int, bytes]]:
    return [bits(record) for _, record in journal.read(files, start)]


# --- What is written comes back ---


@pytest.mark.parametrize("segment_bytes", [1, SMALL, journal.SEGMENT_BYTES])
def test_what_was_appended_is_read_back_from_any_position(tmp_path: Path, segment_bytes: int) -> None:
    """In order, bit for bit, by a journal that is open, by another, and in segments of any size."""
    files = DiskFiles(tmp_path / "journal")
    files.make()
    wanted = written(files, segment_bytes=segment_bytes)
    one = Journal(files, lambda: 0.0, segment_bytes=segment_bytes)
    found = one.open()
    assert (found.first, found.end, found.cut_bytes, found.damage) == (0, len(wanted), 0, [])
    for start in range(len(wanted) + 2):
        got = list(one.read(start))
        assert [position for position, _ in got] == list(range(start, len(wanted)))
        assert [bits(record) for _, record in got] == [bits(record) for record in wanted[start:]]
    assert len(list((tmp_path / "journal").iterdir())) == {1: 6, SMALL: 4, journal.SEGMENT_BYTES: 1}[segment_bytes]


def test_a_group_gives_each_reading_its_arrival() -> None:
    """Messages without readings have none."""
    rows = Batch(np.zeros(3, np.int32), np.zeros(3), np.zeros(3), np.zeros(3, np.uint8))
    one = Group(
        rows,
        np.array([1.0, 2.0, 3.0]),
        np.array([2, 0, 1], np.uint32),
        np.zeros(3, np.uint32),
        np.zeros(3, np.uint16),
    )
    assert one.arrivals().tolist() == [1.0, 1.0, 3.0]


def test_the_layout_is_the_documented_one() -> None:
    """By other means than the module's own: the first record of a segment."""
    files = CrashFiles()
    written(files, segment_bytes=journal.SEGMENT_BYTES)
    (raw,) = [bytes(inode.content) for inode in files.live.values()]
    numbers = [int.from_bytes(raw[at : at + size], "little") for at, size in ((8, 4), (16, 8), (36, 4))]
    assert raw[:8] == b"STRMJRNL"
    assert numbers == [2, 0, zlib.crc32(raw[:36])]
    length, position, durable = (
        int.from_bytes(raw[40 + at : 40 + at + n], "little") for at, n in ((4, 4), (8, 8), (16, 8))
    )
    assert (position, durable, raw[64]) == (0, 0, records.FACT)
    assert raw[72 : 72 + length] == bits(some_records()[0])[1]
    end = 72 + -(-length // 8) * 8
    assert int.from_bytes(raw[40:44], "little") == zlib.crc32(raw[44:end], int.from_bytes(raw[12:16], "little"))


def test_a_digest_tells_messages_apart_that_differ_in_topic_or_payload() -> None:
    """And takes any topic, also one that no UTF-8 can hold."""
    one = Message("a/b", b"1", 1, 7, False, 0.0)
    others = [one, one._replace(topic="a/c"), one._replace(payload=b"2"), one._replace(topic="a/\udc80")]
    assert len({records.digest(message) for message in others}) == 4
    assert records.digest(one) == records.digest(one._replace(dup=True, connection=9, arrival=5.0))


def test_nothing_is_durable_before_sync() -> None:
    """`end` counts what is pending, `durable` does not, and a read sees only what was synced."""
    files = CrashFiles()
    one = opened(files)
    assert [one.append(record) for record in some_records()[:3]] == [0, 1, 2]
    assert (one.end, one.durable, list(one.read(0))) == (3, 0, [])
    assert one.pending_bytes > 0
    assert one.sync() == 3
    assert (one.durable, one.pending_bytes, len(list(one.read(0)))) == (3, 0, 3)


# --- Power cuts ---


class Ledger(NamedTuple):
    """What was asked of a journal, by which a directory that is found later is judged."""

    appended: list[tuple[int, bytes]]
    durable: list[int]
    """its last element: below this everything must be there"""
    floor: list[int]
    """its last element: below this things may have been dropped"""

    def judge(self, files: CrashFiles) -> None:
        """Reads what there is; goes on writing; and loses power again."""
        one = Journal(files, lambda: 1.7e9, segment_bytes=SMALL)
        found = one.open()
        assert not found.damage
        assert found.first <= self.floor[-1]
        assert self.durable[-1] <= found.end <= len(self.appended)
        kept = [bits(record) for _, record in one.read(found.first)]
        assert kept == self.appended[found.first : found.end]
        one.append(SessionLost())
        one.sync()
        again = next(files.after_power_cut(random.Random(0)))
        assert read_all(again, found.first) == [*kept, bits(SessionLost())]


def work(
    files: CrashFiles, judge: Callable[[Ledger], None] = lambda _: None, rounds: int = 12, seed: int = 1
) -> Ledger:
    """Appends, syncs that may fail, restarts and retention; `judge` is called after every step of the file system."""
    rng = np.random.default_rng(seed)
    ledger = Ledger([], [0], [0])
    files.step = lambda: judge(ledger)
    one = opened(files)
    for number in range(rounds):
        for record in (Swept(float(number)), group(rng, int(rng.integers(0, 6)))):
            ledger.appended.append(bits(record))
            one.append(record)
        for _ in range(4):
            with suppress(OSError):
                ledger.durable.append(one.sync())
                break
        if number % 5 == 4:  # a crash of the process alone: what is not synced stays readable
            one.close()
            one = opened(files)
            del ledger.appended[one.end :]
        if number % 4 == 3:
            ledger.floor.append(one.durable - 3)
            with suppress(OSError):
                one.drop_below(one.durable - 3, keep_seconds=0.0, keep_bytes=0)
    files.step = lambda: None
    return ledger


def judge_every_power_cut(files: CrashFiles, rounds: int = 12) -> int:
    """Gives how many directories were judged."""
    rng = random.Random(2)
    judged = 0

    def judge(ledger: Ledger) -> None:
        nonlocal judged
        for image in files.after_power_cut(rng):
            judged += 1
            ledger.judge(image)

    work(files, judge, rounds)
    return judged


@pytest.mark.parametrize("failing", [(), range(4, 9), range(2, 100, 3)], ids=["none", "five", "every third"])
def test_no_power_cut_loses_what_was_durable(failing: range) -> None:
    """After every single step, with what was not synced kept, halved, dropped and reordered; also where syncs fail."""
    files = CrashFiles()
    files.failing_syncs = failing
    assert judge_every_power_cut(files) > 1_000


@pytest.mark.parametrize("mutant", ["does_sync_files", "does_sync_names"])
def test_a_journal_that_does_not_sync_is_caught(mutant: str) -> None:
    """Or the test above would prove nothing."""
    files = CrashFiles()
    setattr(files, mutant, False)
    with pytest.raises((AssertionError, DamagedError)):
        judge_every_power_cut(files)


def test_no_power_cut_during_recovery_loses_what_was_durable() -> None:
    """A second cut, after every step of what `open` and the first `sync` do."""
    files, rng = CrashFiles(), random.Random(3)

    def judge(ledger: Ledger) -> None:
        image = files.one_after_power_cut(rng)

        def judge_second() -> None:
            for second in image.after_power_cut(rng):
                ledger.judge(second)

        image.step = judge_second
        one = opened(image)
        assert one.sync() >= ledger.durable[-1]

    work(files, judge)


def test_a_failed_sync_is_not_believed_afterwards() -> None:
    """The process dies after it; the next one can read what has not arrived, and must not take it for durable."""
    files = CrashFiles()
    one = opened(files)
    one.append(Swept(0.0))
    one.sync()
    one.append(Swept(1.0))
    files.failing_syncs = {files.syncs + 1}
    with pytest.raises(OSError, match="Input/output"):
        one.sync()
    next_one = opened(files)
    assert next_one.end == 2
    assert next_one.durable == 0
    next_one.sync()
    (dropped, *_) = [image for image in files.after_power_cut(random.Random(0))][1:]
    assert read_all(dropped) == [bits(Swept(0.0)), bits(Swept(1.0))]


@pytest.mark.parametrize("number", range(1, 13))
def test_a_sync_that_fails_may_be_tried_again(number: int) -> None:
    """Whichever it is, of a file or of names: nothing is durable before it succeeds, and everything is after."""
    files = CrashFiles()
    files.failing_syncs = {number}
    one = opened(files)
    failed = 0
    for n in range(12):
        one.append(Swept(float(n)))
        before = one.durable
        try:
            one.sync()
        except OSError:
            failed += 1
            assert one.durable == before
            one.sync()
        assert one.durable == n + 1
    assert failed == (number <= files.syncs)
    assert read_all(files) == [bits(Swept(float(n))) for n in range(12)]


# --- Full disks ---


@pytest.mark.parametrize("segment_bytes", [SMALL, journal.SEGMENT_BYTES])
def test_a_full_disk_costs_nothing_but_time(segment_bytes: int) -> None:
    """Also in the middle of a record, or when a new segment is due: what was durable stays, the rest waits."""
    for room in range(0, 2_000, 40):
        files = CrashFiles()
        files.room_bytes = room
        one = opened(files, segment_bytes)
        for n, record in enumerate(some_records()):
            one.append(record)
            with suppress(OSError):
                assert one.sync() == n + 1
            assert len(read_all(files)) == one.durable
        files.room_bytes = None
        one.sync()
        assert read_all(files) == [bits(record) for record in some_records()]


def test_what_a_full_disk_has_taken_is_cut() -> None:
    """Room for one record of two: neither is to be read before both are durable."""
    files = CrashFiles()
    one = opened(files)
    one.sync()
    (name,) = files.names()
    before = files.size(name)
    for record in some_records()[:2]:
        one.append(record)
    files.room_bytes = before + one.pending_bytes - 8
    with pytest.raises(OSError, match="No space"):
        one.sync()
    assert files.size(name) == before


def test_a_full_disk_is_no_obstacle_to_a_start() -> None:
    """What is there can be read; `sync` fails until there is room."""
    files = CrashFiles()
    wanted = written(files)
    files.room_bytes = 0
    one = opened(files)
    assert [bits(record) for _, record in one.read(0)] == [bits(record) for record in wanted]
    with pytest.raises(OSError, match="No space"):
        one.sync()
    files.room_bytes = None
    assert one.sync() == len(wanted)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 256 KiB."""
    place = tmp_path / "small"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", place], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"mounting a tmpfs needs root: {done.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


def test_a_real_disk_that_is_full_heals_when_space_returns(small_disk: Path) -> None:
    """ENOSPC from the kernel: the partial append is cut, and nothing that was durable is harmed."""
    files = DiskFiles(small_disk)
    one = opened(files, 64 << 10)
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(128 << 10))
    rng = np.random.default_rng(0)
    wanted: list[Record] = []
    with pytest.raises(OSError, match="No space") as caught:  # noqa: PT012 - which round fills the disk is its affair
        while True:
            wanted.append(group(rng, 50))
            one.append(wanted[-1])
            one.sync()
    assert caught.value.errno == errno.ENOSPC
    assert read_all(files) == [bits(record) for record in wanted[:-1]]
    ballast.unlink()
    assert one.sync() == len(wanted)
    assert read_all(files) == [bits(record) for record in wanted]
    one.close()


# --- Damage ---


def strict_prefix_or_error(files: CrashFiles, wanted: list[Record]) -> bool:
    """Whether reading has noticed; fails for a record that was never appended in this place."""
    got: list[tuple[int, bytes]] = []
    try:
        found = Journal(files, lambda: 0.0, segment_bytes=SMALL).open()
        for _, record in journal.read(files, 0):
            got.append(bits(record))
        noticed = bool(found.cut_bytes or found.damage)
        stops_at = len(got)
    except DamagedError as error:
        noticed, stops_at = True, error.position
    assert len(got) == stops_at
    assert got == [bits(record) for record in wanted[: len(got)]]
    return noticed or len(got) < len(wanted)


def copies(files: CrashFiles) -> CrashFiles:
    twin = CrashFiles()
    twin.live = {name: Inode(bytearray(inode.content)) for name, inode in files.live.items()}
    return twin


@pytest.mark.parametrize("segment_bytes", [SMALL, journal.SEGMENT_BYTES])
def test_every_truncation_is_noticed(segment_bytes: int) -> None:
    """Each segment cut to each length."""
    files = CrashFiles()
    wanted = written(files, segment_bytes=segment_bytes)
    for name, inode in files.live.items():
        for length in range(len(inode.content)):
            twin = copies(files)
            del twin.live[name].content[length:]
            assert strict_prefix_or_error(twin, wanted), f"{name} cut to {length} bytes"


@pytest.mark.parametrize("segment_bytes", [SMALL, journal.SEGMENT_BYTES])
def test_every_flipped_bit_is_noticed(segment_bytes: int) -> None:
    """2,000 at random places."""
    files, rng = CrashFiles(), random.Random(4)
    wanted = written(files, segment_bytes=segment_bytes)
    for _ in range(2_000):
        twin = copies(files)
        name = rng.choice(sorted(twin.live))
        place, bit = rng.randrange(len(twin.live[name].content)), rng.randrange(8)
        twin.live[name].content[place] ^= 1 << bit
        assert strict_prefix_or_error(twin, wanted), f"bit {bit} of byte {place} of {name}"


@given(st.binary(max_size=300), st.integers(0, 11), st.integers(0, 400))
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_garbage_is_never_a_record(garbage: bytes, segment: int, offset: int) -> None:
    """Whatever is written over a segment, or behind it."""
    files = CrashFiles()
    wanted = written(files)
    inode = files.live[sorted(files.live)[segment % len(files.live)]]
    inode.content[offset : offset + len(garbage)] = garbage
    strict_prefix_or_error(files, wanted)


@pytest.mark.parametrize("segment_bytes", [SMALL, journal.SEGMENT_BYTES])
def test_damage_in_the_middle_is_told_and_reading_can_go_on_behind_it(segment_bytes: int) -> None:
    """A record that was durable is never cut as a torn tail is, nor skipped; also after restarts."""
    files = CrashFiles()
    wanted = written(files, segment_bytes=segment_bytes)
    inode = files.live[min(files.live)]
    at = inode.content.index(bits(wanted[1])[1])
    inode.content[at] ^= 1
    for _ in range(3):
        one = opened(files, segment_bytes)
        assert one.end == len(wanted)
        with pytest.raises(DamagedError, match="records 1 to 1: are damaged") as caught:
            list(one.read(0))
        assert (caught.value.position, caught.value.resumes_at) == (1, 2)
        assert read_all(files, 2) == [bits(record) for record in wanted[2:]]
        wanted.append(Swept(0.0))
        one.append(wanted[-1])
        one.sync()
        one.close()


def test_a_damaged_header_costs_no_record() -> None:
    """Where another segment knows the salt; and it is told all the same if the segment stands alone."""
    files = CrashFiles()
    wanted = written(files)
    files.live[max(files.live)].content[20] ^= 1
    assert opened(files).end == len(wanted)
    assert read_all(files) == [bits(record) for record in wanted]
    files = CrashFiles()
    written(files, segment_bytes=journal.SEGMENT_BYTES)
    files.live[max(files.live)].content[20] ^= 1
    one = Journal(files, lambda: 0.0)
    assert one.open().damage == [f"{0:020d}.log: does not begin as a segment does; it is kept as {0:020d}.log.bad"]
    one.append(Swept(0.0))
    one.sync()
    assert sorted(files.names()) == [f"{0:020d}.log.bad", f"{1:020d}.log"]


def test_a_segment_that_is_missing_is_told() -> None:
    """Somebody has deleted it."""
    files = CrashFiles()
    wanted = written(files)
    first, second, third = sorted(files.live)[:3]
    files.remove(second)
    got = 0
    with pytest.raises(DamagedError) as caught:  # noqa: PT012 - the records before it come first
        for position, _ in opened(files).read(0):
            got = position + 1
    assert (caught.value.position, caught.value.resumes_at) == (int(second[:20]), int(third[:20]))
    assert got == int(second[:20])
    assert read_all(files, caught.value.resumes_at) == [bits(record) for record in wanted[int(third[:20]) :]]
    files.remove(first)
    with pytest.raises(DamagedError, match="are no longer kept"):
        read_all(files, 0)


def test_another_format_version_is_set_aside() -> None:
    """It is never used, never overwritten, and does not keep the daemon from starting."""
    files = CrashFiles()
    written(files)
    for inode in files.live.values():
        inode.content[8] = 9
    one = Journal(files, lambda: 0.0)
    found = one.open()
    assert len(found.damage) == 4
    assert "is of format version 9, this program reads 2; it is kept as" in found.damage[0]
    one.append(Swept(0.0))
    assert one.sync() == found.end + 1
    assert sum(name.endswith(".bad") for name in files.names()) == 4


def test_a_payload_that_looks_like_a_record_is_never_taken_for_one() -> None:
    """The salt is not known to whoever publishes: his record, in the values of a torn one, stays what it is."""
    files = CrashFiles()
    one = opened(files)
    one.append(Swept(0.0))
    one.sync()
    fake = journal._framed(records.FACT, [b'{"type":"SessionLost"}'], 2, 2, 0)
    values = np.frombuffer(bytes(fake), "<f8")
    n = len(values)
    batch = Batch(np.zeros(n, np.int32), np.zeros(n), values, np.zeros(n, np.uint8))
    none = np.zeros(0)
    one.append(Group(batch, none, none.astype(np.uint32), none.astype(np.uint32), none.astype(np.uint16)))
    one.sync()
    (inode,) = files.live.values()
    assert bytes(fake) in bytes(inode.content)
    inode.content[-1] ^= 1
    found = Journal(files, lambda: 0.0).open()
    assert (found.end, found.cut_reason) == (1, "a record's checksum is wrong")
    assert read_all(files) == [bits(Swept(0.0))]


def test_a_journal_begins_beyond_a_snapshot_that_has_outlived_it() -> None:
    """No position means two things: what the snapshot holds is not written over."""
    files = CrashFiles()
    one = Journal(files, lambda: 0.0)
    assert one.open(beyond=40)[:2] == (40, 40)
    assert one.append(Swept(0.0)) == 40
    one.sync()
    one.close()
    one = Journal(files, lambda: 0.0)
    assert one.open(beyond=90).end == 90
    assert one.append(Swept(1.0)) == 90
    one.sync()
    assert read_all(files, 90) == [bits(Swept(1.0))]
    with pytest.raises(DamagedError) as caught:
        read_all(files, 41)
    assert caught.value.resumes_at == 90
    assert one.drop_below(90, keep_seconds=0.0, keep_bytes=0) == 1
    assert files.names() == [f"{90:020d}.log"]


# --- Retention ---


def test_segments_go_when_they_are_old_or_take_too_much_and_no_record_is_needed() -> None:
    """By whole segments, the oldest first, none that holds a needed position, and never the last."""
    files, now = CrashFiles(), [1000.0]
    one = Journal(files, lambda: now[0], segment_bytes=1)
    one.open()
    for n in range(6):
        now[0] += 10.0
        one.append(Swept(float(n)))
        one.sync()
    size = files.size(max(files.names()))
    assert one.drop_below(6, keep_seconds=1e9, keep_bytes=1 << 20) == 0
    assert one.drop_below(0, keep_seconds=0.0, keep_bytes=0) == 0
    assert one.drop_below(6, keep_seconds=35.0, keep_bytes=1 << 20) == 1  # the record of 1010, for the next is of 1020
    assert one.drop_below(6, keep_seconds=1e9, keep_bytes=4 * size) == 1
    assert one.drop_below(3, keep_seconds=0.0, keep_bytes=0) == 1
    assert read_all(files, 3) == [bits(Swept(float(n))) for n in range(3, 6)]
    assert one.drop_below(99, keep_seconds=0.0, keep_bytes=0) == 2
    assert one.append(Swept(6.0)) == 6
    one.sync()
    assert read_all(files, 5) == [bits(Swept(5.0)), bits(Swept(6.0))]


def test_a_removal_that_could_not_be_synced_does_not_end_retention() -> None:
    """The file is gone already when the next look comes to it, which then finds nothing to remove."""
    files = CrashFiles()
    one = opened(files, 1)
    for n in range(4):
        one.append(Swept(float(n)))
        one.sync()
    files.failing_syncs = {files.syncs + 1}
    with pytest.raises(OSError, match="Input/output"):
        one.drop_below(3, keep_seconds=0.0, keep_bytes=0)
    assert one.drop_below(3, keep_seconds=0.0, keep_bytes=0) == 3
    assert read_all(files, 3) == [bits(Swept(3.0))]


def test_a_segment_that_was_replaced_is_still_one() -> None:
    """The fresh one has its name; retention must not take the two for one behind the other."""
    files = CrashFiles()
    one = opened(files, 300)
    one.sync()
    one.append(Swept(0.0))
    files.failing_syncs = {files.syncs + 1}
    with pytest.raises(OSError, match="Input/output"):
        one.sync()
    for n in range(1, 5):
        one.append(Swept(float(n)))
        one.sync()
    assert len(files.names()) > 1
    assert one.drop_below(0, keep_seconds=0.0, keep_bytes=0) == 0
    assert read_all(files) == [bits(Swept(float(n))) for n in range(5)]


def test_what_was_set_aside_goes_first() -> None:
    """It must not fill the disk."""
    files = CrashFiles()
    wanted = written(files)
    files.rename(min(files.live), min(files.live) + ".bad")
    one = opened(files)
    one.sync()
    total = sum(map(files.size, files.names()))
    one.drop_below(len(wanted), keep_seconds=1e9, keep_bytes=total)
    assert len(files.names()) == 4
    one.drop_below(len(wanted), keep_seconds=1e9, keep_bytes=total - 1)
    assert not any(name.endswith(".bad") for name in files.names())


# --- Any order of everything ---


class AnyOrder(RuleBasedStateMachine):
    """Append, sync, faults, restarts, power cuts and retention, against a plain list."""

    @initialize()
    def begin(self) -> None:
        self.files = CrashFiles()
        self.appended: list[tuple[int, bytes]] = []
        self.durable = 0
        self.floor = 0
        self.now = 0.0
        self.start()

    def start(self) -> None:
        self.journal = Journal(self.files, lambda: self.now, segment_bytes=SMALL)
        found = self.journal.open()
        assert not found.damage
        assert found.first <= self.floor
        assert self.durable <= found.end <= len(self.appended)
        assert read_all(self.files, found.first) == self.appended[found.first : found.end]
        del self.appended[found.end :]

    @rule(seed=st.integers(0, 99), messages=st.integers(0, 12))
    def append(self, seed: int, messages: int) -> None:
        record = group(np.random.default_rng(seed), messages)
        assert self.journal.append(record) == len(self.appended)
        self.appended.append(bits(record))

    @rule()
    def sync(self) -> None:
        with suppress(OSError):
            self.durable = self.journal.sync()
            assert self.durable == len(self.appended)

    @rule(distance=st.integers(1, 3), count=st.integers(1, 3))
    def fail(self, distance: int, count: int) -> None:
        self.files.failing_syncs = range(self.files.syncs + distance, self.files.syncs + distance + count)

    @rule(room=st.none() | st.integers(0, 1_000))
    def fill(self, room: int | None) -> None:
        used = sum(map(self.files.size, self.files.names()))
        self.files.room_bytes = None if room is None else used + room

    @rule()
    def kill(self) -> None:
        self.files.open_handles.clear()
        self.start()

    @rule(rng=st.randoms(use_true_random=False))
    def cut_power(self, rng: random.Random) -> None:
        self.files = self.files.one_after_power_cut(rng)
        self.start()

    @precondition(lambda self: self.durable > 0)
    @rule(back=st.integers(0, 9), keep_bytes=st.integers(0, 3_000), seconds=st.integers(0, 9))
    def retain(self, back: int, keep_bytes: int, seconds: int) -> None:
        self.now += seconds
        position = max(self.durable - back, 0)
        self.floor = max(self.floor, position)
        with suppress(OSError):
            self.journal.drop_below(position, keep_seconds=5.0, keep_bytes=keep_bytes)

    @invariant()
    def no_handle_is_forgotten(self) -> None:
        assert len(self.files.open_handles) <= 1

    @invariant()
    def what_is_durable_can_be_read(self) -> None:
        got = read_all(self.files, self.floor)
        assert len(got) >= self.durable - self.floor
        assert got == self.appended[self.floor : self.floor + len(got)]


AnyOrder.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
test_any_order_of_everything = AnyOrder.TestCase
