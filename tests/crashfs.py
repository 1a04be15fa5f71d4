"""A file system in memory that can lose power, and the directories that may be found afterwards.

What was written or renamed and not synced is kept, halved, dropped or reordered, at the level of blocks; names and
contents go their own ways. After a failed sync the pages count as clean, also those that are lost, as Linux has it; and
no later sync of the same file is to be believed.
Stricter than any real file system: to sync a file does not sync its name, and nothing keeps the order of two writes.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, field

BLOCK_BYTES = 64  # small, so that a small record spans several

Change = tuple[int, bytes | None]
"""offset and content of a write; or a length and None, where the file was cut to it"""


@dataclass(slots=True)
class Inode:
    content: bytearray = field(default_factory=bytearray)
    """as a program sees it"""
    durable: bytes = b""
    unsynced: list[Change] = field(default_factory=list)
    doubtful: list[Change] = field(default_factory=list)
    """on the disk or not, and no later sync looks at it"""
    has_failed: bool = False
    """a sync of it has: from now on what is written is doubtful, whatever a sync says"""


NameChange = tuple[str, Inode | None]
"""a name and what it stands for from now on, None for nothing; a rename is two of them at once"""


class CrashFiles:
    """`streamer.disk.Files` in memory."""

    def __init__(self) -> None:
        self.live: dict[str, Inode] = {}
        self.durable: dict[str, Inode] = {}
        self.unsynced: list[list[NameChange]] = []
        self.step: Callable[[], None] = lambda: None
        """called after everything that changes something"""
        self.failing_syncs: Container[int] = ()
        """which syncs fail, of a file or of names; the first is 1"""
        self.room_bytes: int | None = None
        """what all files may have together"""
        self.does_sync_files = True
        self.does_sync_names = True
        self.syncs = 0
        self.open_handles: dict[int, Inode] = {}
        self._last_handle = 0

    # --- What a program does ---

    def names(self) -> list[str]:
        return list(self.live)

    def size(self, name: str) -> int:
        return len(self._find(name).content)

    def read(self, name: str, most_bytes: int | None = None) -> bytes:
        return bytes(self._find(name).content[:most_bytes])

    def create(self, name: str) -> int:
        inode = self.live.get(name)
        if inode is None:
            inode = Inode()
            self._rename_all([(name, inode)])
        self._last_handle += 1
        self.open_handles[self._last_handle] = inode
        self.truncate(self._last_handle, 0)
        return self._last_handle

    def write(self, handle: int, offset: int, content: bytes) -> None:
        inode = self.open_handles[handle]
        fitting = len(content)
        if self.room_bytes is not None:
            used = sum(len(other.content) for other in self.live.values())
            fitting = max(min(fitting, self.room_bytes - used + max(len(inode.content) - offset, 0)), 0)
        for start in range(0, fitting, BLOCK_BYTES):
            block = bytes(content[start : min(start + BLOCK_BYTES, fitting)])
            inode.unsynced.append((offset + start, block))
            _apply(inode.content, inode.unsynced[-1])
        self.step()
        if fitting < len(content):
            raise OSError(errno.ENOSPC, "No space left on device")

    def truncate(self, handle: int, length: int) -> None:
        inode = self.open_handles[handle]
        inode.unsynced.append((length, None))
        _apply(inode.content, inode.unsynced[-1])
        self.step()

    def sync(self, handle: int) -> None:
        inode = self.open_handles[handle]
        is_failure = self._is_to_fail()
        if is_failure or inode.has_failed:
            inode.has_failed = True
            inode.doubtful += inode.unsynced
            inode.unsynced = []
        elif self.does_sync_files:
            durable = bytearray(inode.durable)
            for change in inode.unsynced:
                _apply(durable, change)
            inode.durable = bytes(durable)
            inode.unsynced = []
        self.step()
        if is_failure:
            raise OSError(errno.EIO, "Input/output error")

    def close(self, handle: int) -> None:
        del self.open_handles[handle]

    def rename(self, old: str, new: str) -> None:
        self._rename_all([(old, None), (new, self._find(old))])

    def remove(self, name: str) -> None:
        self._find(name)
        self._rename_all([(name, None)])

    def sync_names(self) -> None:
        if self._is_to_fail():
            self.step()
            raise OSError(errno.EIO, "Input/output error")
        if self.does_sync_names:
            self.durable = dict(self.live)
            self.unsynced = []
        self.step()

    def _find(self, name: str) -> Inode:
        if name not in self.live:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", name)
        return self.live[name]

    def _rename_all(self, changes: list[NameChange]) -> None:
        self.unsynced.append(changes)
        _apply_names(self.live, changes)
        self.step()

    def _is_to_fail(self) -> bool:
        self.syncs += 1
        return self.syncs in self.failing_syncs

    # --- What a power cut leaves ---

    def after_power_cut(self, rng: random.Random) -> Iterator[CrashFiles]:
        """Directories that may be found: all, half, nothing or any part of what was not synced."""
        names = [
            [*range(n)] for n in range(len(self.unsynced) + 1)
        ]  # the first n changes: a file system with a journal
        names += [[n] for n in range(len(self.unsynced))] if len(self.unsynced) > 1 else []
        for chosen in names:
            for fate in ("kept", "dropped", "halved", "first lost", "only last", "chance", "chance"):
                yield self._image(chosen, fate, rng)

    def one_after_power_cut(self, rng: random.Random) -> CrashFiles:
        """One of them by chance."""
        chosen = [n for n in range(len(self.unsynced)) if rng.random() < 0.5]
        return self._image(chosen, rng.choice(("kept", "dropped", "halved", "chance")), rng)

    def _image(self, chosen: list[int], fate: str, rng: random.Random) -> CrashFiles:
        found = dict(self.durable)
        for n in chosen:
            _apply_names(found, self.unsynced[n])
        image = CrashFiles()
        for name, inode in found.items():
            content = bytearray(inode.durable)
            for change in _survivors([*inode.doubtful, *inode.unsynced], fate, rng):
                _apply(content, change)
            image.live[name] = Inode(content, bytes(content))
        image.durable = dict(image.live)
        return image


def _survivors(changes: list[Change], fate: str, rng: random.Random) -> list[Change]:
    match fate:
        case "kept":
            return changes
        case "dropped":
            return []
        case "halved":
            half = changes[: (len(changes) + 1) // 2]
            if half and (content := half[-1][1]) is not None:
                half[-1] = half[-1][0], content[: len(content) // 2]
            return half
        case "first lost":
            return changes[1:]
        case "only last":
            return changes[-1:]
        case _:
            return [change for change in changes if rng.random() < 0.5]


def _apply(content: bytearray, change: Change) -> None:
    offset, block = change
    if block is None:
        del content[offset:]
        return
    content.extend(bytes(max(offset - len(content), 0)))  # a block that is missing reads as zeros
    content[offset : offset + len(block)] = block


def _apply_names(names: dict[str, Inode], changes: list[NameChange]) -> None:
    for name, inode in changes:
        if inode is None:
            names.pop(name, None)
        else:
            names[name] = inode
