"""The state directory: created, tried out, and held by one daemon at a time; and the small files in it."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from pathlib import Path

from streamer.disk import sync_directory
from streamer.errors import StateError

MOST_KEPT_BYTES = 1 << 28


class StateDirectory:
    """Ours from `open` to `close`, and until the process ends, however it ends."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    def open(self) -> None:
        """Creates the directory (0700) where there is none, and locks it. Raises StateError.

        The lock is the kernel's (flock): it goes with the process, so that no stale one keeps a daemon from starting.
        """
        self._create()
        lock = self.path / "lock"
        try:
            os.listdir(self.path)
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise StateError(
                f"state.directory: {self.path} cannot be used by user {os.getuid()}: {error.strerror}; "
                "expected a directory that this user can read and write: mend its owner and mode, or name another"
            ) from error
        try:
            self._lock(lock, descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor

    def close(self) -> None:
        """Lets another daemon have it; nothing when it is not open."""
        if self._descriptor is None:
            return
        os.close(self._descriptor)
        self._descriptor = None

    def keep(self, name: str, content: bytes, *, synced: bool = False) -> None:
        """Replaces a small file, whole or not at all. Raises OSError.

        It outlives the process; `synced` a power cut too, and then it waits for the disk, which may hang.
        """
        part = self.path / f"{name}.part"
        part.unlink(missing_ok=True)
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb") as file:
            file.write(content)
            if synced:
                file.flush()
                os.fsync(descriptor)
        part.replace(self.path / name)
        if synced:
            sync_directory(self.path)

    def kept(self, name: str) -> bytes | None:
        """What was kept; None if there is no such file of ours, or it cannot be read."""
        try:
            descriptor = os.open(self.path / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return None
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            return None
        with open(descriptor, "rb") as file:
            return file.read(MOST_KEPT_BYTES)

    def _create(self) -> None:
        if os.path.isdir(self.path):  # unlike Path's, it answers whatever the path
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.mkdir(mode=0o700, exist_ok=True)
        except (OSError, ValueError) as error:
            places = (self.path, *self.path.parents)
            other = next((place for place in places if os.path.lexists(place) and not os.path.isdir(place)), None)
            found = f"{other} is no directory" if other else getattr(error, "strerror", None) or str(error)
            raise StateError(
                f"state.directory: {self.path} cannot be created by user {os.getuid()}: {found}; "
                "expected a directory, or a place where this user can make one"
            ) from error

    def _lock(self, lock: Path, descriptor: int) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StateError(
                f"state.directory: {self.path} is in use by {_holder(descriptor)}; expected one that no other daemon "
                "uses: stop that one, or give each its own state.directory (and its own instance)"
            ) from error
        except OSError as error:
            raise StateError(
                f"state.directory: {self.path} cannot be locked: {error.strerror}; expected a local file system"
            ) from error
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        except OSError as error:
            # A full disk is the world's: scoring goes on, and snapshots say what ails them. Only the pid is missing.
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise StateError(
                    f"state.directory: {lock} cannot be written: {error.strerror}; expected a disk that works"
                ) from error


def _holder(descriptor: int) -> str:
    """Who wrote the lock file, as far as it says: in the moment after it was locked it may not say yet."""
    text = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
    return f"process {text}" if text.isdecimal() else "another process"


def holder(lock: Path) -> str | None:
    """Who has the directory of this lock file open, None if nobody has; asked without keeping anybody from it."""
    try:
        descriptor = os.open(lock, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _holder(descriptor)
    finally:
        os.close(descriptor)
    return None
