"""Snapshots: what was written comes back, whatever is damaged is noticed, and no crash leaves less than before."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import resource
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from streamer import snapshot
from tests.bench.snapshot import measure

Arrays = dict[str, NDArray[np.generic]]

META: dict[str, object] = {"keys": ["line 1/düse#°C", ""], "tokens": 1.5, "refilled_at": None}


def some_arrays(seed: int = 0) -> Arrays:
    rng = np.random.default_rng(seed)
    return {
        "recurrent": rng.normal(size=(3, 5)).astype(np.float32),
        "wide": np.array([[np.nan, -0.0], [np.inf, 1e300]]),
        "counts": rng.integers(-9, 9, 4).astype(np.int32),
        "positions": np.array([2**62, -1]),
        "visits": rng.integers(0, 255, (2, 3)).astype(np.uint8),
        "is_open": np.array([True, False, True]),
    }


def same(one: Mapping[str, NDArray[np.generic]], other: Mapping[str, NDArray[np.generic]]) -> bool:
    """Equal names, order, shapes, types and bits; NaN is NaN."""
    return list(one) == list(other) and all(
        one[name].dtype == other[name].dtype.newbyteorder("=")
        and one[name].shape == other[name].shape
        and one[name].tobytes() == other[name].astype(one[name].dtype).tobytes()
        for name in one
    )


def read_plainly(raw: bytes) -> tuple[dict[str, object], Arrays]:
    """The layout that the module's docstring describes, read by other means."""
    assert hashlib.sha256(raw[:-32]).digest() == raw[-32:]
    assert raw[:8] == b"STRMSNAP"
    header_bytes = int.from_bytes(raw[12:20], "little")
    assert int.from_bytes(raw[20:28], "little") == len(raw)
    header = json.loads(raw[28 : 28 + header_bytes])
    start = (28 + header_bytes + 63) // 64 * 64
    arrays: Arrays = {}
    for section in header["sections"]:
        at, dtype = start + section["offset"], np.dtype(section["dtype"])
        assert at % 64 == 0
        count = int(np.prod(section["shape"], dtype=int))
        arrays[section["name"]] = np.frombuffer(raw, dtype, count, at).reshape(section["shape"])
    return header, arrays


# --- There and back ---


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    """Arrays bit for bit, the meta object, the position; the file is for its owner only."""
    path = snapshot.write(tmp_path, some_arrays(), META, position=7)
    found, set_aside = snapshot.read_newest(tmp_path)
    assert found is not None
    assert not set_aside
    assert (found.path, found.position, found.meta) == (path, 7, META)
    assert same(found.arrays, some_arrays())
    assert path.stat().st_mode & 0o777 == 0o600


def test_the_file_is_laid_out_as_documented(tmp_path: Path) -> None:
    """A reader made from the docstring alone sees the same."""
    header, arrays = read_plainly(snapshot.write(tmp_path, some_arrays(), META, position=7).read_bytes())
    assert (header["position"], header["meta"]) == (7, META)
    assert same(arrays, some_arrays())


any_array = st.sampled_from([*snapshot.DTYPES, ">f8", ">i4"]).flatmap(
    lambda dtype: hnp.arrays(np.dtype(dtype), hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
)


@given(st.dictionaries(st.text(st.characters(codec="utf-8")), any_array, max_size=4), st.booleans())
@settings(deadline=None)
def test_arrays_of_any_shape_and_order_come_back(
    tmp_path_factory: pytest.TempPathFactory, arrays: Arrays, is_turned: bool
) -> None:
    """Also empty, without dimensions, transposed, of the other byte order, and none at all."""
    given_arrays = {name: array.T for name, array in arrays.items()} if is_turned else arrays
    path = snapshot.write(tmp_path_factory.mktemp("any"), given_arrays, {}, position=0)
    back = snapshot.read(path)
    assert same(back.arrays, given_arrays)
    assert all(array.flags.writeable and array.dtype.isnative for array in back.arrays.values())


@pytest.mark.parametrize(
    "array", [np.array([object()]), np.zeros(2, np.complex128), np.zeros(2, "M8[s]"), np.array("a")]
)
def test_other_types_are_refused_when_they_are_written(tmp_path: Path, array: NDArray[np.generic]) -> None:
    """Nothing that would need a pickle, and nothing that reading does not know."""
    with pytest.raises(TypeError, match="a snapshot does not hold arrays of"):
        snapshot.write(tmp_path, {"odd": array}, {}, position=0)
    assert not list(tmp_path.iterdir())


def test_memory_is_not_doubled(tmp_path: Path) -> None:
    """Beside the arrays themselves there are only pieces."""
    arrays: Arrays = {"large": np.ones(4 << 20), "also": np.ones(4 << 20)}
    tracemalloc.start()
    try:
        path = snapshot.write(tmp_path, arrays, {}, position=0)
        writing = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        back = snapshot.read(path)
        reading = tracemalloc.get_traced_memory()[1] - sum(array.nbytes for array in back.arrays.values())
    finally:
        tracemalloc.stop()
    assert max(writing, reading) < 1 << 20


# --- The newest good one ---


def write_some(directory: Path, count: int) -> list[Path]:
    return [snapshot.write(directory, some_arrays(k), META, position=k) for k in range(count)]


def position_of(found: snapshot.Found) -> int | None:
    return None if found.snapshot is None else found.snapshot.position


def test_two_are_kept(tmp_path: Path) -> None:
    """The newest and the one before it; equal positions do not collide."""
    for _ in range(5):
        snapshot.write(tmp_path, some_arrays(), META, position=3)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "snapshot-000000000004.snap",
        "snapshot-000000000005.snap",
    ]


def test_an_empty_directory_has_none(tmp_path: Path) -> None:
    """The first start; other files are nobody's business here."""
    (tmp_path / "lock").touch()
    (tmp_path / "snapshot-12.snap").touch()
    assert snapshot.read_newest(tmp_path) == (None, [])
    assert len(list(tmp_path.iterdir())) == 2


def test_what_a_crash_left_is_cleared_away(tmp_path: Path) -> None:
    """A file that was never finished is not read, and goes with the next snapshot."""
    (tmp_path / "snapshot-000000000009.snap.part").write_bytes(b"half")
    assert snapshot.read_newest(tmp_path) == (None, [])
    path = snapshot.write(tmp_path, {}, {}, position=0)
    assert list(tmp_path.iterdir()) == [path]


def test_a_damaged_one_is_set_aside_and_the_one_before_is_used(tmp_path: Path) -> None:
    """The reason names the file, what is wrong with it and where it is kept; the next start is quiet."""
    _, newest = write_some(tmp_path, 2)
    newest.write_bytes(newest.read_bytes()[:-1])
    found = snapshot.read_newest(tmp_path)
    assert position_of(found) == 0
    length = len(newest.with_name(newest.name + ".bad").read_bytes())
    assert found.set_aside == [
        f"{newest}: was written with {length + 1} bytes and has {length}; it is kept as {newest.name}.bad"
    ]
    again = snapshot.read_newest(tmp_path)
    assert (position_of(again), again.set_aside) == (0, [])
    assert snapshot.write(tmp_path, {}, {}, position=9).name == "snapshot-000000000003.snap"


def test_two_damaged_ones_leave_none(tmp_path: Path) -> None:
    """That is a cold start with two reasons, not an error."""
    for path in write_some(tmp_path, 2):
        path.write_bytes(b"")
    found = snapshot.read_newest(tmp_path)
    assert found.snapshot is None
    assert [reason.split(": ")[1].split(";")[0] for reason in found.set_aside] == [
        "does not begin as a snapshot does",
        "does not begin as a snapshot does",
    ]


def test_few_damaged_ones_are_kept(tmp_path: Path) -> None:
    """A disk that damages every snapshot is not filled by them; the newest two stay."""
    for _ in range(5):
        snapshot.write(tmp_path, {}, {}, position=0).write_bytes(b"rubbish")
        snapshot.read_newest(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "snapshot-000000000004.snap.bad",
        "snapshot-000000000005.snap.bad",
    ]


def as_directory(path: Path) -> None:
    path.mkdir()
    (path / "file").touch()


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (as_directory, "is not a file"),
        (os.mkfifo, "is not a file"),
        (lambda path: path.symlink_to("nowhere"), "cannot be read: No such file or directory"),
        (lambda path: path.symlink_to(path.name), "cannot be read: Too many levels of symbolic links"),
        (Path.touch, "does not begin as a snapshot does"),
        (lambda path: path.write_bytes(b"STRMSNAP"), "is cut off: it has 8 bytes"),
    ],
)
def test_odd_things_of_that_name_are_set_aside(tmp_path: Path, make: Callable[[Path], object], reason: str) -> None:
    """A directory, a pipe without a writer, a link to nothing, a circle of links: the start goes on."""
    (good,) = write_some(tmp_path, 1)
    odd = tmp_path / "snapshot-000000000002.snap"
    make(odd)
    found = snapshot.read_newest(tmp_path)
    assert found.snapshot is not None
    assert (found.snapshot.path, found.set_aside) == (good, [f"{odd}: {reason}; it is kept as {odd.name}.bad"])


def test_one_that_cannot_be_set_aside_is_passed_over(tmp_path: Path) -> None:
    """The reason says so, and the one before is used all the same."""
    _, newest = write_some(tmp_path, 2)
    newest.write_bytes(b"")
    as_directory(newest.with_name(newest.name + ".bad"))
    found = snapshot.read_newest(tmp_path)
    assert position_of(found) == 0
    assert "it could not be set aside: Is a directory" in found.set_aside[0]


# --- Damage ---


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of a small good file."""
    return snapshot.write(tmp_path_factory.mktemp("raw"), some_arrays(), META, position=7).read_bytes()


def is_refused(path: Path, content: bytes) -> bool:
    path.write_bytes(content)
    try:
        snapshot.read(path)
    except snapshot.DamagedError:
        return True
    return False


def test_every_truncation_is_noticed(tmp_path: Path, raw: bytes) -> None:
    """Whatever the length, and one byte more."""
    missed = [length for length in range(len(raw)) if not is_refused(tmp_path / "file", raw[:length])]
    assert not missed
    assert is_refused(tmp_path / "file", raw + b"\0")


def test_every_flipped_bit_is_noticed(tmp_path: Path, raw: bytes) -> None:
    """2,000 of them, and each bit of the fixed part; the file as it was is good."""
    chosen = [*range(28 * 8), *np.random.default_rng(1).integers(28 * 8, len(raw) * 8, 2000).tolist()]
    missed = []
    for bit in chosen:
        content = bytearray(raw)
        content[bit // 8] ^= 1 << bit % 8
        if not is_refused(tmp_path / "file", bytes(content)):
            missed.append(bit)
    assert not missed
    assert not is_refused(tmp_path / "file", raw)


def forged(raw: bytes, version: int, header: bytes, body: bytes) -> bytes:
    """A file of any content with the right lengths and the right digest."""
    padding = bytes(-(28 + len(header)) % 64)
    length = 28 + len(header) + len(padding) + len(body) + 32
    prefix = raw[:8] + version.to_bytes(4, "little") + len(header).to_bytes(8, "little") + length.to_bytes(8, "little")
    content = prefix + header + padding + body
    return content + hashlib.sha256(content).digest()


def test_another_version_is_named(tmp_path: Path, raw: bytes) -> None:
    """A file of a later program is set aside whole, for the day when that program is back."""
    (tmp_path / "snapshot-000000000001.snap").write_bytes(forged(raw, 2, b"{}", b""))
    (reason,) = snapshot.read_newest(tmp_path).set_aside
    assert "is of format version 2, this program reads 1" in reason


@pytest.mark.parametrize(
    ("sections", "what"),
    [
        ([["a", "O", [1], 0]], "Invalid enum value 'O'"),
        ([["a", "f8", [-1], 0]], "Expected `int` >= 0"),
        ([["a", "f8", [1], 0]], "its arrays take 8 bytes where there are 64"),
        ([["a", "u1", [64], 64]], "its array a does not lie where it should"),
        ([["a", "u1", [64], 0], ["b", "u1", [64], 0]], "its array b does not lie where it should"),
        ([["a", "u1", [2**62, 2**62], 0]], "its arrays take 2126"),
        ([["none", "u1", [2**62, 2**62, 0], 0], ["a", "u1", [64], 0]], "its array none cannot be"),
        ([["a", "u1", [1] * 33, 0]], "Expected `array` of length <= 32"),
    ],
)
def test_a_header_is_not_believed(tmp_path: Path, raw: bytes, sections: list[list[object]], what: str) -> None:
    """Even with the right digest: its claims are held against the length of the file before memory is taken."""
    fields = ("name", "dtype", "shape", "offset")
    listed = [dict(zip(fields, section, strict=True)) for section in sections]
    header = json.dumps({"position": 0, "meta": {}, "sections": listed}).encode()
    path = tmp_path / "file"
    path.write_bytes(forged(raw, 1, header, bytes(64)))
    with pytest.raises(snapshot.DamagedError, match=what):
        snapshot.read(path)


@given(st.binary(max_size=200) | st.recursive(st.none(), st.lists).map(lambda value: json.dumps(value).encode()))
@settings(deadline=None)
def test_garbage_in_place_of_the_header_is_refused(tmp_path_factory: pytest.TempPathFactory, header: bytes) -> None:
    """Nothing but DamagedError, whatever stands there."""
    assert is_refused(tmp_path_factory.getbasetemp() / "garbage", forged(snapshot.MAGIC, 1, header, b""))


def test_a_header_nested_beyond_reading_is_refused(tmp_path: Path) -> None:
    """5,000 brackets are no recursion of ours."""
    deep = b'{"position":0,"meta":{"a":' + b"[" * 5000 + b"]" * 5000 + b'},"sections":[]}'
    assert is_refused(tmp_path / "file", forged(snapshot.MAGIC, 1, deep, b""))


# --- Crashes ---


class Step(NamedTuple):
    """One request to the file system."""

    what: str
    """create, write, sync, rename, delete, sync names"""
    name: str
    more: str | bytes = ""
    """what is written, or the new name"""


@contextmanager
def recorded(monkeypatch: pytest.MonkeyPatch, directory: Path) -> Iterator[list[Step]]:
    """What is asked of the file system in one directory; it is done as well."""
    steps: list[Step] = []
    names: dict[int, str] = {}
    real_open, real_write, real_fsync, real_replace, real_unlink = os.open, os.write, os.fsync, os.replace, os.unlink

    def open_(path: Path, flags: int, mode: int = 0o777) -> int:
        descriptor = real_open(path, flags, mode)
        names[descriptor] = "." if Path(path) == directory else Path(path).name
        if flags & os.O_CREAT:
            steps.append(Step("create", names[descriptor]))
        return descriptor

    def write(descriptor: int, content: bytes | memoryview) -> int:
        written = real_write(descriptor, content)
        steps.append(Step("write", names[descriptor], bytes(content[:written])))
        return written

    def fsync(descriptor: int) -> None:
        real_fsync(descriptor)
        name = names[descriptor]
        steps.append(Step("sync names" if name == "." else "sync", name))

    def replace(old: Path, new: Path) -> None:
        real_replace(old, new)
        steps.append(Step("rename", Path(old).name, Path(new).name))

    def unlink(path: Path) -> None:
        real_unlink(path)
        steps.append(Step("delete", Path(path).name))

    with monkeypatch.context() as patch:
        for name, function in (
            ("open", open_),
            ("write", write),
            ("fsync", fsync),
            ("replace", replace),
            ("unlink", unlink),
        ):
            patch.setattr(os, name, function)
        yield steps


class Inode:
    """A file without its name: what is on disk, and what is only in memory yet."""

    def __init__(self, content: bytes = b"") -> None:
        self.synced = content
        self.unsynced = b""


def worlds(before: Mapping[str, bytes], steps: Sequence[Step]) -> Iterator[dict[str, bytes]]:
    """Every directory that may be found after a crash behind these steps.

    Changes of names reach the disk in order, any number of them at any time; what was written to a file and not synced
    is there, half there, or not there.
    """
    on_disk = {name: Inode(content) for name, content in before.items()}
    in_memory = dict(on_disk)
    pending: list[tuple[str, Inode | None]] = []  # a name and what it now stands for

    def name_it(name: str, inode: Inode | None) -> None:
        pending.append((name, inode))
        in_memory.pop(name, None)
        if inode is not None:
            in_memory[name] = inode

    for what, name, more in steps:
        if what == "create":
            name_it(name, Inode())
        elif what == "write":
            assert isinstance(more, bytes)
            in_memory[name].unsynced += more
        elif what == "sync":
            in_memory[name].synced += in_memory[name].unsynced
            in_memory[name].unsynced = b""
        elif what == "rename":
            assert isinstance(more, str)
            name_it(more, in_memory[name])
            name_it(name, None)
        elif what == "delete":
            name_it(name, None)
        elif what == "sync names":
            on_disk = dict(in_memory)
            pending.clear()
    for count, share in itertools.product(range(len(pending) + 1), (0.0, 0.5, 1.0)):
        names = dict(on_disk)
        for name, inode in pending[:count]:
            names.pop(name, None)
            if inode is not None:
                names[name] = inode
        yield {name: inode.synced + inode.unsynced[: int(len(inode.unsynced) * share)] for name, inode in names.items()}


def complaints(directory: Path, before: Mapping[str, bytes], steps: Sequence[Step]) -> list[str]:
    """Crashes that lose or damage: none may. Snapshots 0 and 1 are there before, the steps write number 2."""
    done = next(k for k, step in enumerate(steps) if step.what == "rename") + 1  # the next step makes it last
    found = []
    for length in range(len(steps) + 1):
        wanted = {2} if length > done else {1, 2}
        for number, world in enumerate(worlds(before, steps[:length])):
            place = directory / f"{length}-{number}"
            place.mkdir()
            for name, content in world.items():
                (place / name).write_bytes(content)
            result = snapshot.read_newest(place)
            if position_of(result) not in wanted or result.set_aside:
                found.append(f"after {length} steps: {position_of(result)}, {result.set_aside}")
    return found


@pytest.fixture
def writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, bytes], list[Step]]:
    """A directory with two snapshots, and the steps that write a third."""
    directory = tmp_path / "state"
    directory.mkdir()
    write_some(directory, 2)
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    with recorded(monkeypatch, directory) as steps:
        snapshot.write(directory, some_arrays(2), META, position=2)
    return before, steps


def test_no_crash_loses_a_snapshot(tmp_path: Path, writing: tuple[dict[str, bytes], list[Step]]) -> None:
    """At every step, with every fate of what was not synced: the old one or the new one; after the end the new one."""
    before, steps = writing
    assert [what for what, _ in itertools.groupby(step.what for step in steps)] == [
        "create",
        "write",
        "sync",
        "rename",
        "sync names",
        "delete",
    ]
    assert not complaints(tmp_path, before, steps)


@pytest.mark.parametrize("forgotten", ["sync", "sync names"])
def test_a_forgotten_sync_would_be_noticed(
    tmp_path: Path, writing: tuple[dict[str, bytes], list[Step]], forgotten: str
) -> None:
    """Or the test before this one would prove nothing."""
    before, steps = writing
    assert complaints(tmp_path, before, [Step("nothing", "") if step.what == forgotten else step for step in steps])


# --- Disks that refuse ---


def check_refusal(directory: Path, reason: str) -> None:
    """A large snapshot is refused, what was there stays, nothing half is left, and a small one fits again."""
    names = sorted(path.name for path in directory.iterdir())
    with pytest.raises(OSError, match=reason):
        snapshot.write(directory, {"large": np.ones(4 << 20)}, {}, position=5)
    assert sorted(path.name for path in directory.iterdir()) == names
    assert position_of(snapshot.read_newest(directory)) == 1


def test_a_file_that_may_not_grow(tmp_path: Path) -> None:
    """The old snapshots stay, and the next one is written when there is room again."""
    write_some(tmp_path, 2)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        check_refusal(tmp_path, "File too large")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    snapshot.write(tmp_path, some_arrays(), META, position=6)
    assert position_of(snapshot.read_newest(tmp_path)) == 6


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one MiB."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(place)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"only root may mount a small disk: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk(small_disk: Path) -> None:
    """The old snapshots stay, and the next one is written when there is room again."""
    write_some(small_disk, 2)
    check_refusal(small_disk, "No space left on device")
    snapshot.write(small_disk, some_arrays(), META, position=6)
    assert position_of(snapshot.read_newest(small_disk)) == 6


WRITER = """
import sys, numpy as np
from pathlib import Path
from streamer import snapshot
for k in range(1_000_000):
    snapshot.write(Path(sys.argv[1]), {"rows": np.full((1000, 100), float(k))}, {"k": k}, position=k)
    print(k, flush=True)
"""


def test_kill_9_while_it_writes(tmp_path: Path) -> None:
    """Five kills at moments of chance: the newest snapshot is the last one reported, or the one after it."""
    for number in range(5):
        place = tmp_path / str(number)
        place.mkdir()
        with subprocess.Popen([sys.executable, "-c", WRITER, str(place)], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            reported = -1
            for line in itertools.islice(process.stdout, 1 + 3 * number):
                reported = int(line)
            process.kill()
            for line in process.stdout:
                with suppress(ValueError):
                    reported = int(line)
        found, set_aside = snapshot.read_newest(place)
        assert found is not None
        assert not set_aside
        assert found.position in {reported, reported + 1}
        assert found.meta == {"k": found.position}
        assert (found.arrays["rows"] == found.position).all()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("series", [10_000, pytest.param(100_000, marks=pytest.mark.long)])
def test_a_snapshot_holds_up_no_turn_for_50_ms(tmp_path: Path, series: int) -> None:
    """Of CPU time: the copy is made in pieces between the turns."""
    figures = measure(tmp_path / "state", series)
    assert figures["pause_cpu_ms"] < 50
    assert figures["pieces"] > series / 1024 / 2
