"""The door to a directory of files: all that the journal asks of a file system, so that a simulated one can stand in.

What a call has done outlives a power cut only after `sync` (contents) or `sync_names` (names). Every call may raise
OSError.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol


class Files(Protocol):
    """The files of one directory, by name."""

    def names(self) -> list[str]: ...

    def size(self, name: str) -> int: ...

    def read(self, name: str, most_bytes: int | None = None) -> bytes:
        """The file's first bytes, or all."""
        ...

    def create(self, name: str) -> int:
        """An empty file, also where there was one; a handle to write to."""
        ...

    def write(self, handle: int, offset: int, content: bytes) -> None:
        """All of `content`. After an error, any part of it may be there."""
        ...

    def truncate(self, handle: int, length: int) -> None: ...

    def sync(self, handle: int) -> None:
        """After an error the handle must not be trusted again: the kernel may have dropped what it could not write."""
        ...

    def close(self, handle: int) -> None: ...

    def rename(self, old: str, new: str) -> None:
        """Replaces `new`, at once or not at all."""
        ...

    def remove(self, name: str) -> None: ...

    def sync_names(self) -> None:
        """Makes what was created, renamed and removed outlive a power cut."""
        ...


class DiskFiles:
    """A real directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def make(self) -> None:
        """Creates the directory (0700) where there is none."""
        self._directory.mkdir(0o700, exist_ok=True)
        sync_directory(self._directory.parent)

    def names(self) -> list[str]:
        return os.listdir(self._directory)

    def size(self, name: str) -> int:
        return (self._directory / name).stat().st_size

    def read(self, name: str, most_bytes: int | None = None) -> bytes:
        # O_NONBLOCK: a pipe of this name must not hold up the start; for a file it changes nothing.
        descriptor = os.open(self._directory / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            return file.read(-1 if most_bytes is None else most_bytes)

    def create(self, name: str) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        return os.open(self._directory / name, flags, 0o600)

    def write(self, handle: int, offset: int, content: bytes) -> None:
        view = memoryview(content)
        while view:
            written = os.pwrite(handle, view, offset)
            view, offset = view[written:], offset + written

    def truncate(self, handle: int, length: int) -> None:
        os.ftruncate(handle, length)

    def sync(self, handle: int) -> None:
        os.fdatasync(handle)

    def close(self, handle: int) -> None:
        os.close(handle)

    def rename(self, old: str, new: str) -> None:
        (self._directory / old).replace(self._directory / new)

    def remove(self, name: str) -> None:
        (self._directory / name).unlink()

    def sync_names(self) -> None:
        sync_directory(self._directory)


def sync_directory(directory: Path) -> None:
    """Makes the names in the directory outlive a power cut. Raises OSError."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
