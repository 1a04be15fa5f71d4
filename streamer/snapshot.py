"""Arrays to disk and back: one file a snapshot, whole or not there at all, and checked bit by bit before it is used.

A file, all numbers little-endian:

    magic, format version, bytes of the header, bytes of the file       8 + 4 + 8 + 8
    header: JSON with the position, the meta object and, for each array, name, dtype, shape and offset
    the arrays as raw bytes, each at a multiple of 64
    SHA-256 of everything before it                                     32

It is written under another name in the same directory, synced and renamed, and the directory is synced: a crash at any
moment leaves the old snapshots and perhaps the new one. Nothing in a file can run code. The newest two are kept; there
must be room for a third while it is written. What cannot be used is set aside, never deleted at once and never fatal.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import re
import stat
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Protocol, get_args

import msgspec
import numpy as np
from numpy.typing import NDArray

from streamer.disk import sync_directory

MAGIC = b"STRMSNAP"
FORMAT_VERSION = 1
KEEP = 2
KEEP_BAD = 2  # enough to look into what went wrong, too few to fill a disk

_PREFIX = struct.Struct("<8sIQQ")
_DIGEST_BYTES = hashlib.sha256().digest_size
_ALIGN = 64  # a cache line
_PIECE_BYTES = 4 << 20  # written, read and hashed at a time
_NAME = re.compile(r"snapshot-([0-9]{12,})\.snap(\.part|\.bad)?")

DType = Literal["f4", "f8", "i4", "i8", "u1", "u2", "bool"]
DTYPES: tuple[DType, ...] = get_args(DType)
_DTYPES: dict[DType, np.dtype[np.generic]] = {name: np.dtype(name).newbyteorder("<") for name in DTYPES}
_NAMES: dict[np.dtype[np.generic], DType] = {_DTYPES[name]: name for name in DTYPES}

Natural = Annotated[int, msgspec.Meta(ge=0)]


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """What one file holds."""

    path: Path
    position: int
    """of the journal: what comes after it is not in here"""
    meta: dict[str, object]
    arrays: dict[str, NDArray[np.generic]]


class Found(NamedTuple):
    """What a directory had to offer."""

    snapshot: Snapshot | None
    """the newest good one"""
    set_aside: list[str]
    """a sentence for each file that could not be used: which, why, and what became of it"""


class DamagedError(Exception):
    """A file that is no snapshot of this program, or no longer; the text says what was found."""


class _Section(msgspec.Struct):
    name: str
    dtype: DType
    shape: Annotated[list[Natural], msgspec.Meta(max_length=32)]
    offset: Natural
    """from the first array's first byte"""


class _Header(msgspec.Struct):
    position: Natural
    meta: dict[str, object]
    sections: list[_Section]


class _Hash(Protocol):
    def update(self, piece: bytes | memoryview, /) -> None: ...


# --- Writing ---


def write(
    directory: Path,
    sections: Mapping[str, NDArray[np.generic]],
    meta: Mapping[str, object],
    *,
    position: int,
    is_gentle: bool = False,
) -> Path:
    """Adds a snapshot to the directory, deletes those that are too old, and gives the new one's path.

    When it returns, the snapshot outlives a power cut. `meta` is anything that JSON can hold. Raises OSError if the
    disk refuses; what was there before is still there then. Takes no memory to speak of beside the arrays. A gentle
    one syncs piece by piece, so that another file's sync, the journal's, never waits for all of it.
    """
    arrays = {name: _little_endian(array) for name, array in sections.items()}
    headers, end = _sections(arrays)
    header = msgspec.json.encode(_Header(position, dict(meta), headers))
    start = _aligned(_PREFIX.size + len(header))
    length = start + end + _DIGEST_BYTES
    files = _files(directory)
    for leftover in files.parts:
        with contextlib.suppress(OSError):
            leftover.unlink()
    path = directory / f"snapshot-{files.last + 1:012d}.snap"
    part = path.with_name(path.name + ".part")
    try:
        with _Writer(part, is_gentle) as writer:
            writer.write(_PREFIX.pack(MAGIC, FORMAT_VERSION, len(header), length))
            writer.write(header)
            for section, array in zip(headers, arrays.values(), strict=True):
                writer.pad_to(start + section.offset)
                writer.write(_bytes_of(array))
            writer.pad_to(start + end)
            writer.finish()
        part.replace(path)
        sync_directory(directory)
    except OSError:
        with contextlib.suppress(OSError):
            part.unlink()
        raise
    for old in files.good[KEEP - 1 :]:
        with contextlib.suppress(OSError):
            old.unlink()
    return path


class _Writer:
    """A new file, hashed while it is written."""

    def __init__(self, path: Path, is_gentle: bool) -> None:
        self._is_gentle = is_gentle
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._hash = hashlib.sha256()
        self._length = self._synced = 0

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def write(self, content: bytes | memoryview) -> None:
        view = memoryview(content)
        while view:
            written = os.write(self._descriptor, view[:_PIECE_BYTES])
            self._hash.update(view[:written])
            self._length += written
            view = view[written:]
            if self._is_gentle and self._length - self._synced >= _PIECE_BYTES:
                os.fdatasync(self._descriptor)
                self._synced = self._length

    def pad_to(self, length: int) -> None:
        """Zeros until the file is so long."""
        self.write(bytes(length - self._length))

    def finish(self) -> None:
        """The digest, and then the disk."""
        self.write(self._hash.digest())
        os.fsync(self._descriptor)


def _little_endian(array: NDArray[np.generic]) -> NDArray[np.generic]:
    """The array as it lies on disk; a copy only where it lies otherwise in memory."""
    wanted = array.dtype.newbyteorder("<")
    if wanted not in _NAMES:
        raise TypeError(f"a snapshot does not hold arrays of {array.dtype}, only of {', '.join(_DTYPES)}")
    return np.ascontiguousarray(array, wanted).reshape(array.shape)  # ascontiguousarray makes () a (1,)


def _sections(arrays: Mapping[str, NDArray[np.generic]]) -> tuple[list[_Section], int]:
    """Where each array goes, from the first one's first byte; and where the last one ends."""
    end = 0
    sections = []
    for name, array in arrays.items():
        offset = _aligned(end)
        sections.append(_Section(name, _NAMES[array.dtype], list(array.shape), offset))
        end = offset + array.nbytes
    return sections, end


# --- Reading ---


def read_newest(
    directory: Path, take: Callable[[Snapshot], None] = lambda _: None, aside: Callable[[Path], str] | None = None
) -> Found:
    """The newest snapshot that is sound, and that `take` does not refuse by a ValueError.

    What cannot be used is renamed `*.bad`, the newest two of those stay; or `aside` is done with it, and says what.
    Raises nothing for whatever the directory holds, and OSError if it cannot be listed.
    """
    aside = aside or put_aside
    set_aside: list[str] = []
    for path in newest_first(directory):
        try:
            found = read(path)
            take(found)
            return Found(found, set_aside)
        except (DamagedError, ValueError) as error:
            set_aside.append(f"{path}: {error}; {aside(path)}")
        except OSError as error:
            set_aside.append(f"{path}: cannot be read: {error.strerror or error}; {aside(path)}")
    return Found(None, set_aside)


def newest_first(directory: Path) -> list[Path]:
    """The files that may be snapshots. Raises OSError."""
    return _files(directory).good


def read(path: Path) -> Snapshot:
    """One file, checked. Raises DamagedError or OSError."""
    # O_NONBLOCK: a pipe of this name must not hold up the start; for a file it changes nothing.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise DamagedError("is not a file")
        return _read(path, descriptor, status.st_size)
    finally:
        os.close(descriptor)


def _read(path: Path, descriptor: int, size: int) -> Snapshot:
    digest = hashlib.sha256()
    header_bytes = _header_bytes(_take(descriptor, min(size, _PREFIX.size), digest), size)
    header = _decode(_take(descriptor, header_bytes, digest))
    start = _aligned(_PREFIX.size + header_bytes)
    _check_layout(header.sections, size - _DIGEST_BYTES - start)
    _take(descriptor, start - _PREFIX.size - header_bytes, digest)
    arrays: dict[str, NDArray[np.generic]] = {}
    end = 0
    for section in header.sections:
        _take(descriptor, section.offset - end, digest)
        try:
            array = np.empty(section.shape, _DTYPES[section.dtype])
        except ValueError as error:  # (2**40, 0): no bytes, but no array either
            raise DamagedError(f"its array {section.name} cannot be: {error}") from error
        _fill(descriptor, _bytes_of(array), digest)
        arrays[section.name] = array
        end = section.offset + array.nbytes
    if _take(descriptor, _DIGEST_BYTES, hashlib.sha256()) != digest.digest():
        raise DamagedError("is damaged: its SHA-256 is not the one that it was written with")
    return Snapshot(path, header.position, header.meta, arrays)


def _header_bytes(prefix: bytes, size: int) -> int:
    """How long the header is, in a file whose first bytes are as they should be."""
    if not prefix.startswith(MAGIC):
        raise DamagedError("does not begin as a snapshot does")
    if len(prefix) < _PREFIX.size:
        raise DamagedError(f"is cut off: it has {size} bytes")
    _, version, header_bytes, length = _PREFIX.unpack(prefix)
    if version != FORMAT_VERSION:
        raise DamagedError(f"is of format version {version}, this program reads {FORMAT_VERSION}")
    if length != size:
        raise DamagedError(f"was written with {length} bytes and has {size}")
    if _aligned(_PREFIX.size + header_bytes) + _DIGEST_BYTES > size:
        raise DamagedError(f"is damaged: a header of {header_bytes} bytes in a file of {size}")
    return int(header_bytes)


def _decode(raw: bytes) -> _Header:
    try:
        return msgspec.json.decode(raw, type=_Header)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DamagedError(f"is damaged: its header cannot be read: {error}") from error


def _check_layout(sections: list[_Section], room: int) -> None:
    """Refuses arrays that do not lie one after the other and fill the room exactly: no other claim is believed."""
    end = 0
    for section in sections:
        if section.offset != _aligned(end):
            raise DamagedError(f"is damaged: its array {section.name} does not lie where it should")
        end = section.offset + math.prod(section.shape) * _DTYPES[section.dtype].itemsize
    if end != room:
        raise DamagedError(f"is damaged: its arrays take {end} bytes where there are {room}")


def _take(descriptor: int, length: int, digest: _Hash) -> bytes:
    content = bytearray(length)
    _fill(descriptor, memoryview(content), digest)
    return bytes(content)


def _fill(descriptor: int, view: memoryview, digest: _Hash) -> None:
    """Reads as many bytes as the view has."""
    while view:
        got = os.readv(descriptor, [view[:_PIECE_BYTES]])
        if not got:
            raise DamagedError("became shorter while it was read")
        digest.update(view[:got])
        view = view[got:]


# --- Both ---


class _Files(NamedTuple):
    good: list[Path]
    """those that may be read, newest first"""
    bad: list[Path]
    """those that were set aside, newest first"""
    parts: list[Path]
    """what a crash in the middle of `write` has left"""
    last: int
    """the highest number, 0 where there is none"""


def _files(directory: Path) -> _Files:
    found = _Files([], [], [], 0)
    for name in os.listdir(directory):
        if match := _NAME.fullmatch(name):
            number, ending = int(match[1]), match[2]
            {None: found.good, ".bad": found.bad, ".part": found.parts}[ending].append(directory / name)
            found = found._replace(last=max(found.last, number))
    found.good.sort(key=_number, reverse=True)
    found.bad.sort(key=_number, reverse=True)
    return found


def _number(path: Path) -> int:
    return int(path.name.split("-")[1].split(".")[0])


def put_aside(path: Path) -> str:
    """Renames the file, deletes those that were set aside long ago, and says what has become of it."""
    bad = path.with_name(path.name + ".bad")
    try:
        path.replace(bad)
    except OSError as error:
        return f"it could not be set aside: {error.strerror or error}"
    for old in _files(path.parent).bad[KEEP_BAD:]:
        with contextlib.suppress(OSError):
            old.unlink()
    return f"it is kept as {bad.name}"


def _bytes_of(array: NDArray[np.generic]) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _aligned(offset: int) -> int:
    return -(-offset // _ALIGN) * _ALIGN
