"""The append-only log of readings: what `sync` has returned for is there after any crash, in its order, bit for bit.

A directory of segments, each named by the position of its first record; positions count records and never repeat. A
segment, all numbers little-endian, everything at multiples of 8:

    magic, format version, salt, first position, created (epoch seconds), CRC-32          8 + 4 + 4 + 8 + 8 + 4 (+ 4)
    records: CRC-32, bytes of the body, position, durable, kind; the body; zeros          4 + 4 + 8 + 8 + 1 (+ 7)

`durable` says below which position everything was synced when the record was made. By it a torn tail, which nobody was
told was safe, is told from damage: what fails its checksum below the `durable` of a later record had been safe once.

The sum is CRC-32, since zlib has it without a dependency (2 GB/s; CRC-32C would be as sure and has no home in Python):
it finds every error of up to 32 bits in a row, so every flipped bit, and others but for one in four billion. It begins
with the journal's salt, so that a payload that looks like a record is never taken for one.

Rules, and where they come from:

- A segment is written under another name, synced, renamed, and the directory is synced; and only when all before it is
  durable. So only the last segment can have a torn tail.
- After a failed fdatasync the kernel may have marked as clean what never reached the disk: the descriptor is given up,
  and what is not durable goes into a fresh segment, which supersedes the old one's tail (PostgreSQL, 2018; Rebello et
  al., "Can Applications Recover from fsync Failures?", 2020).
- For the same reason what `open` finds in the last segment is in doubt, though it can be read: the first `sync` writes
  it anew. Nothing is acknowledged on its word before. `open` itself writes nothing, so that a full disk is no obstacle.
- What cannot be written, for want of space, is cut off and stays pending; the next `sync` tries again.
- Damage is never skipped: `read` stops there with a DamagedError that says where it could go on, and who calls decides.
"""

from __future__ import annotations

import bisect
import contextlib
import functools
import math
import os
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from streamer import records
from streamer.disk import Files
from streamer.records import Record

MAGIC = b"STRMJRNL"
FORMAT_VERSION = 2
SEGMENT_BYTES = 16 << 20  # what is written anew at a start, and what retention gives back at once
MOST_TRIED = 1000  # places at which a damaged segment may go on: a bound for what was made to look like one

_PREFIX = struct.Struct("<8sIIQd4x")
_CHECKSUM = struct.Struct("<I")
HEADER_BYTES = _PREFIX.size + _CHECKSUM.size
_FRAME = struct.Struct("<IQQB7x")  # behind the checksum
FRAME_BYTES = _CHECKSUM.size + _FRAME.size
_NAME = re.compile(r"([0-9]{20})\.log(\.part|\.bad)?")


class DamagedError(Exception):
    """Records that were safe once, or were dropped, cannot be read."""

    def __init__(self, position: int, resumes_at: int, reason: str) -> None:
        super().__init__(f"the journal's records {position} to {resumes_at - 1}: {reason}")
        self.position = position
        """the first that is missing"""
        self.resumes_at = resumes_at
        """a `read` from here goes on behind the damage"""


class Opened(NamedTuple):
    """What `open` has found."""

    first: int
    """the oldest position"""
    end: int
    """the position of the next record"""
    cut_bytes: int
    """at the end of the last segment, of records that nobody was told were safe"""
    cut_reason: str
    damage: list[str]
    """a sentence for each file that is damaged as far as `open` looks: the headers, and the last segment"""


@dataclass(slots=True)
class _Segment:
    first: int
    created: float
    size_bytes: int


class Journal:
    """For one thread, but for `syncing`; one process at a time may have it open. Others may `read` the directory."""

    def __init__(
        self,
        files: Files,
        now: Callable[[], float],
        *,
        segment_bytes: int = SEGMENT_BYTES,
        salt: Callable[[], int] = lambda: int.from_bytes(os.urandom(4), "little"),
    ) -> None:
        """`now` gives epoch seconds: by it segments age."""
        self._files = files
        self._now = now
        self._segment_bytes = segment_bytes
        self._make_salt = salt
        self._salt = 0
        self._segments: list[_Segment] = []
        """those that are durable; the last one is written to while there is a handle"""
        self._handle: int | None = None
        self._pending: list[bytes | bytearray] = []
        self._end = 0
        self._durable = 0

    @property
    def end(self) -> int:
        """The position of the next record."""
        return self._end

    @property
    def durable(self) -> int:
        """Every record below this position outlives a power cut."""
        return self._durable

    @property
    def pending_bytes(self) -> int:
        """Held in memory until a `sync` succeeds."""
        return sum(map(len, self._pending))

    def open(self, beyond: int = 0) -> Opened:
        """Finds what is there, and where it ends. Raises OSError only if the directory cannot be listed.

        New positions are at least `beyond`: the position of a snapshot that may have outlived its journal. Of damage
        before it nothing is said any more.
        """
        for name in self._files.names():
            if _is(name, ".part"):
                with contextlib.suppress(OSError):
                    self._files.remove(name)
        headers = [_header(self._files, first) for first in _logs(self._files)]
        sound = [header for header in headers if not header.trouble]
        self._salt = sound[-1].salt if sound else self._make_salt()
        self._end = self._durable = headers[-1].first + 1 if headers else 0  # behind a file that cannot be used
        damage = [self._put_aside(header) for header in headers if header.is_foreign]
        damage += [
            f"{_log(header.first)}: {header.trouble}"
            for header, following in pairwise(headers)
            if header.trouble and not header.is_foreign and following.first > beyond
        ]
        scan: _Scan | None = None
        cut_bytes = 0
        if headers and not headers[-1].is_foreign:
            last = headers.pop()
            content = _content(self._files, last.first)
            if content is None or (last.trouble and not sound):
                damage.append(self._put_aside(last))
            else:
                scan = _scan(content, last.first, None, self._salt)
                damage += [f"{_log(last.first)}: {last.trouble}"] if last.trouble else []
                damage += [str(_damaged(hole, last.first)) for hole in scan.holes if hole.resumes_at > beyond]
                cut_bytes = len(content) - scan.end_bytes
                self._pending = [content[HEADER_BYTES : scan.end_bytes]]
                self._durable, self._end = last.first, scan.end
                if scan.end < beyond:
                    headers.append(last)
        if self._end < beyond:
            self._pending = []
            self._end = self._durable = beyond
        self._segments = [
            _Segment(header.first, header.created, _size(self._files, _log(header.first)))
            for header in headers
            if not header.is_foreign
        ]
        first = self._segments[0].first if self._segments else self._durable
        return Opened(first, self._end, cut_bytes, scan.cut_reason if scan else "", damage)

    def append(self, record: Record) -> int:
        """Gives the record its position. It is in memory, and safe when a `sync` has returned."""
        kind, body = records.encode(record)
        self._pending.append(_framed(kind, body, self._end, self._durable, self._salt))
        self._end += 1
        return self._end - 1

    def sync(self) -> int:
        """Makes everything that was appended durable; gives `end`. Raises OSError: then nothing is lost, try again."""
        return self.syncing()()

    def syncing(self) -> Callable[[], int]:
        """A `sync` of what has been appended so far, for another thread.

        Until it has returned only `append` may be called, and what is read is as it was or as it will be.
        """
        return functools.partial(self._sync, len(self._pending), self._end)

    def _sync(self, count: int, end: int) -> int:
        content = b"".join(self._pending[:count])
        if self._handle is None or self._segments[-1].size_bytes + len(content) > self._segment_bytes:
            self._begin(content)
        elif content:
            self._extend(self._handle, self._segments[-1], content)
        del self._pending[:count]
        self._durable = end
        return end

    def _begin(self, content: bytes) -> None:
        """A new segment with all that is not durable; it replaces one of which nothing is durable."""
        self._give_up()
        created = self._now()
        prefix = _PREFIX.pack(MAGIC, FORMAT_VERSION, self._salt, self._durable, created)
        name = _log(self._durable)
        part = name + ".part"
        handle = self._files.create(part)
        try:
            self._files.write(handle, 0, prefix + _CHECKSUM.pack(zlib.crc32(prefix)))
            self._files.write(handle, HEADER_BYTES, content)
            self._files.sync(handle)
            self._files.rename(part, name)
            self._files.sync_names()
        except OSError:
            self._files.close(handle)
            with contextlib.suppress(OSError):
                self._files.remove(part)
            raise
        self._handle = handle
        if self._segments and self._segments[-1].first == self._durable:
            self._segments.pop()
        self._segments.append(_Segment(self._durable, created, HEADER_BYTES + len(content)))

    def _extend(self, handle: int, segment: _Segment, content: bytes) -> None:
        try:
            self._files.write(handle, segment.size_bytes, content)
        except OSError:
            try:
                self._files.truncate(handle, segment.size_bytes)
            except OSError:
                self._give_up()
            raise
        try:
            self._files.sync(handle)
        except OSError:
            self._give_up()
            raise
        segment.size_bytes += len(content)

    def _give_up(self) -> None:
        """The next `sync` begins a new segment."""
        if self._handle is not None:
            handle, self._handle = self._handle, None
            with contextlib.suppress(OSError):
                self._files.close(handle)

    def read(self, start: int) -> Iterator[tuple[int, Record]]:
        """As the function `read`; what is pending is not in it, but for what `open` has found."""
        return read(self._files, start)

    def drop_below(self, position: int, *, keep_seconds: float, keep_bytes: int) -> int:
        """Removes the oldest segments of which nothing is younger than `keep_seconds`, or while all take more than
        `keep_bytes`; none that holds a record at `position` or later. Gives how many. Raises OSError.

        Files that were set aside count too, and go first.
        """
        bad = {name: self._files.size(name) for name in sorted(self._files.names()) if _is(name, ".bad")}
        total = sum(bad.values()) + sum(segment.size_bytes for segment in self._segments)
        for name, size_bytes in bad.items():
            if total > keep_bytes:
                self._files.remove(name)
                total -= size_bytes
        dropped = 0
        while len(self._segments) > 1:
            oldest, following = self._segments[:2]
            is_old = self._now() - following.created > keep_seconds
            if following.first > position or not (is_old or total > keep_bytes):
                break
            with contextlib.suppress(FileNotFoundError):  # gone already, only that was not made to last
                self._files.remove(_log(oldest.first))
            self._files.sync_names()  # each by itself: a crash must not leave a hole between those that stay
            del self._segments[0]
            total -= oldest.size_bytes
            dropped += 1
        return dropped

    def close(self) -> None:
        """Lets go of the file; what is pending and not synced is gone."""
        self._give_up()
        self._pending = []

    def _put_aside(self, header: _Header) -> str:
        name, trouble = _log(header.first), header.trouble or "cannot be read"
        try:
            self._files.rename(name, name + ".bad")
        except OSError as error:
            return f"{name}: {trouble}; it could not be set aside: {error.strerror or error}"
        return f"{name}: {trouble}; it is kept as {name}.bad"


def read(files: Files, start: int) -> Iterator[tuple[int, Record]]:
    """The records from position `start` on, each with its position; arrays are read-only.

    Raises DamagedError in the place of what is missing, and OSError. The end is where the last sound record ends.
    """
    found = _logs(files)
    if not found:
        return
    if start < found[0]:
        raise DamagedError(start, found[0], "are no longer kept")
    begin = bisect.bisect_right(found, start) - 1
    for first, limit in zip(found[begin:], [*found[begin + 1 :], None], strict=True):
        header = _header(files, first)
        salt = header.salt if not header.trouble else _other_salt(files, found)
        content = _content(files, first)
        if salt is None or content is None:
            if limit is None and start > first:
                return  # how far it went is not known
            missing = max(start, first)
            raise DamagedError(missing, limit or missing + 1, f"{_log(first)} {header.trouble or 'cannot be read'}")
        scan = _scan(content, first, limit, salt)
        holes = iter([hole for hole in scan.holes if hole.resumes_at > start])
        hole = next(holes, None)
        view = memoryview(content)
        for frame in scan.frames:
            if frame.position < start:
                continue
            if hole is not None and hole.position < frame.position:
                break
            try:
                record = records.decode(frame.kind, view[frame.begin : frame.begin + frame.body_bytes])
            except ValueError as error:
                raise DamagedError(frame.position, frame.position + 1, f"cannot be understood: {error}") from error
            yield frame.position, record
        if hole is not None:
            raise _damaged(_Hole(max(start, hole.position), hole.resumes_at), first)


def begins_at(files: Files) -> int:
    """The position of the oldest record that is kept; 0 where there is none. Raises OSError."""
    return min(_logs(files), default=0)


# --- Segments ---


def _log(first: int) -> str:
    return f"{first:020d}.log"


def _is(name: str, ending: str | None) -> bool:
    match = _NAME.fullmatch(name)
    return match is not None and match[2] == ending


def _logs(files: Files) -> list[int]:
    """The first positions of the segments, in order."""
    return sorted(int(name[:20]) for name in files.names() if _is(name, None))


def _content(files: Files, first: int) -> bytes | None:
    try:
        return files.read(_log(first))
    except OSError:
        return None


def _other_salt(files: Files, firsts: list[int]) -> int | None:
    """Of the newest segment whose header is sound: all of a journal have the same."""
    headers = (_header(files, first) for first in reversed(firsts))
    return next((header.salt for header in headers if not header.trouble), None)


def _size(files: Files, name: str) -> int:
    try:
        return files.size(name)
    except OSError:
        return 0


class _Header(NamedTuple):
    first: int
    salt: int = 0
    created: float = math.inf
    trouble: str = ""
    """why it cannot be used"""
    is_foreign: bool = False
    """sound, as far as one can see, but not of this version"""


def _header(files: Files, first: int) -> _Header:
    try:
        raw = files.read(_log(first), HEADER_BYTES)
    except OSError as error:
        return _Header(first, trouble=f"cannot be read: {error.strerror or error}")
    if len(raw) < HEADER_BYTES:
        return _Header(first, trouble=f"has a header of {len(raw)} bytes")
    magic, version, salt, position, created = _PREFIX.unpack_from(raw)
    if magic == MAGIC and version != FORMAT_VERSION:
        trouble = f"is of format version {version}, this program reads {FORMAT_VERSION}"
        return _Header(first, trouble=trouble, is_foreign=True)
    if magic != MAGIC or _CHECKSUM.unpack_from(raw, _PREFIX.size)[0] != zlib.crc32(raw[: _PREFIX.size]):
        return _Header(first, trouble="does not begin as a segment does")
    if position != first:
        return _Header(first, trouble=f"was written as {_log(position)}")
    return _Header(first, salt, created)


# --- Records in a segment ---


class _Frame(NamedTuple):
    position: int
    durable: int
    kind: int
    begin: int
    """offset of the body"""
    body_bytes: int
    end: int
    """offset of what follows"""


class _Hole(NamedTuple):
    position: int
    resumes_at: int


def _damaged(hole: _Hole, first: int) -> DamagedError:
    return DamagedError(hole.position, hole.resumes_at, f"are damaged in {_log(first)}")


@dataclass(slots=True)
class _Scan:
    end: int
    """the position that would come next"""
    end_bytes: int
    frames: list[_Frame] = field(default_factory=list)
    holes: list[_Hole] = field(default_factory=list)
    """records that were safe once"""
    cut_reason: str = ""


def _framed(kind: int, body: list[bytes], position: int, durable: int, salt: int) -> bytearray:
    body_bytes = sum(map(len, body))
    head = _FRAME.pack(body_bytes, position, durable, kind)
    framed = bytearray().join((bytes(_CHECKSUM.size), head, *body, bytes(-body_bytes % 8)))
    _CHECKSUM.pack_into(framed, 0, zlib.crc32(memoryview(framed)[_CHECKSUM.size :], salt))
    return framed


def _frame(content: bytes, offset: int, salt: int) -> _Frame | str:
    """The record that begins here, or why there is none."""
    if offset + FRAME_BYTES > len(content):
        return "a record is cut off"
    body_bytes, position, durable, kind = _FRAME.unpack_from(content, offset + _CHECKSUM.size)
    begin = offset + FRAME_BYTES
    end = begin + body_bytes + -body_bytes % 8
    if end > len(content):
        return "a record is cut off"
    checksum = zlib.crc32(memoryview(content)[offset + _CHECKSUM.size : end], salt)
    if _CHECKSUM.unpack_from(content, offset)[0] != checksum:
        return "a record's checksum is wrong"
    return _Frame(position, durable, kind, begin, body_bytes, end)


def _scan(content: bytes, first: int, limit: int | None, salt: int) -> _Scan:
    """All records of a segment; `limit` is the first position of the one behind it, None for the last."""
    frames: list[_Frame] = []
    doubts: list[tuple[_Hole, int, int, str]] = []  # with the frames before it, its offset, the reason
    position, offset = first, HEADER_BYTES
    while offset < len(content):
        frame = _frame(content, offset, salt)
        if isinstance(frame, _Frame) and frame.position == position:
            frames.append(frame)
            position, offset = position + 1, frame.end
            continue
        reason = frame if isinstance(frame, str) else f"a record has position {frame.position} instead of {position}"
        after = _resume(content, offset, position, salt)
        resumes_at = position if after is None else after.position
        doubts.append((_Hole(position, resumes_at), len(frames), offset, reason))
        if after is None:
            break
        position, offset = after.position, after.begin - FRAME_BYTES
    scan = _Scan(position, min(offset, len(content)), frames)
    for hole, before, hole_offset, reason in doubts:
        safe = limit if limit is not None else max((frame.durable for frame in frames[before:]), default=0)
        if hole.position >= safe:
            scan.end, scan.end_bytes, scan.frames, scan.cut_reason = hole.position, hole_offset, frames[:before], reason
            break
        if hole.resumes_at > hole.position:
            scan.holes.append(hole)
    if limit is not None:
        scan.frames = [frame for frame in scan.frames if frame.position < limit]
        scan.holes = [_Hole(position, min(resumes_at, limit)) for position, resumes_at in scan.holes]
        if scan.end < limit:
            scan.holes.append(_Hole(scan.end, limit))
    return scan


def _resume(content: bytes, offset: int, position: int, salt: int) -> _Frame | None:
    """The first sound record behind a bad one: its position tells where it may be."""
    words = np.frombuffer(content, "<u8", (len(content) - offset) // 8, offset)
    most = position + len(content) // FRAME_BYTES
    places = np.flatnonzero((words[1:] > position) & (words[1:] <= most))
    for place in places[:MOST_TRIED].tolist():
        frame = _frame(content, offset + 8 * place, salt)
        if isinstance(frame, _Frame):
            return frame
    return None
