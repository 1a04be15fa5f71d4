"""What a person may ask of a running daemon, as values, as JSON, and as files in the state directory.

A request is a file, `requests/<id>.json`, that appears whole; the daemon takes it away before it obeys, so that none is
obeyed twice, and answers with `requests/<id>.result.json`. Whoever may write there may command. What lies there when a
daemon starts is answered with a refusal: nobody expects a word of yesterday to be obeyed today. The same JSON comes by
MQTT where `mqtt.commands` is on.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

MOST_BYTES = 16_384  # of a request
MOST_AT_ONCE = 20  # requests of one look
KEPT_SECONDS = 600.0  # a result that nobody fetches
FOLDER, REQUEST, RESULT = "requests", ".json", ".result.json"
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


class _Command(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="command", kw_only=True):
    id: str = ""
    """comes back in the result"""


class Pause(_Command, frozen=True, tag="pause"):
    """Maintenance: the readings of a series or a device are neither judged nor learned, nor is their silence."""

    key: str


class Resume(_Command, frozen=True, tag="resume"):
    """The end of it."""

    key: str


class MarkNormal(_Command, frozen=True, tag="mark-normal"):
    """What the alarm is about is lawful."""

    key: str


class Train(_Command, frozen=True, tag="train"):
    """A retraining, now."""


class Promote(_Command, frozen=True, tag="promote"):
    """Other weights are to serve."""

    generation: int


class Rollback(_Command, frozen=True, tag="rollback"):
    """The weights that served before are to serve."""


Command = Pause | Resume | MarkNormal
"""What the engine obeys."""
ModelCommand = Train | Promote | Rollback
"""What is about the weights; by file only: no broker decides what serves."""
NAMES = ("pause", "resume", "mark-normal")


class Result(msgspec.Struct, frozen=True):
    """What has become of a request."""

    done: bool
    detail: str
    """a sentence for a person"""
    id: str = ""
    command: str = ""
    key: str = ""
    series: int = 0
    """how many it was about"""


def name_of(command: Command | ModelCommand) -> str:
    """Its word in JSON and on the command line."""
    return str(command.__struct_config__.tag)


def result_of(command: Command, done: bool, detail: str, series: int = 0) -> Result:
    """The answer to a command."""
    return Result(done, detail, command.id, name_of(command), command.key, series)


def read(payload: bytes) -> Command:
    """The command that a message holds. Raises ValueError with a sentence."""
    command = read_file(payload)
    if isinstance(command, ModelCommand):
        raise ValueError("what is about the weights is asked on its machine: `streamer train`, `streamer models`")
    return command


def read_file(payload: bytes) -> Command | ModelCommand:
    """The command that a file holds. Raises ValueError with a sentence."""
    if len(payload) > MOST_BYTES:
        raise ValueError(f"found {len(payload)} bytes or more; expected at most {MOST_BYTES}")
    try:
        return _COMMAND.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(
            f"{error}; expected JSON such as "
            '{"command": "pause", "key": "plant/a#temperature"}, the command one of ' + ", ".join(NAMES)
        ) from error


def id_in(payload: bytes) -> str:
    """The id of a request that cannot be obeyed, so that who waits for the answer knows it; empty without one."""
    try:
        return str(_ANY_ID.decode(payload[:MOST_BYTES]).id)[:64]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""


class _AnyId(msgspec.Struct):
    id: str = ""


_COMMAND: msgspec.json.Decoder[Command | ModelCommand] = msgspec.json.Decoder(Command | ModelCommand)
_ANY_ID: msgspec.json.Decoder[_AnyId] = msgspec.json.Decoder(_AnyId)


# --- Files ---


class Taken(NamedTuple):
    """A request that was taken out of the directory."""

    id: str
    """of the file"""
    payload: bytes


class RequestFiles:
    """The directory of requests; one object for the daemon, one for whoever asks. All methods raise OSError."""

    def __init__(self, state_directory: Path) -> None:
        self.path = state_directory / FOLDER

    # --- The daemon's side ---

    def open(self) -> None:
        """Makes the directory; what lies there from before is refused or forgotten."""
        self.path.mkdir(mode=0o700, exist_ok=True)
        for name in os.listdir(self.path):
            if name.endswith(RESULT) or not name.endswith(REQUEST):
                (self.path / name).unlink(missing_ok=True)
        for taken in self._take(None):
            refusal = "the daemon was started anew before it had obeyed, or said so: look, and ask again"
            self.answer(taken.id, Result(False, refusal, id_in(taken.payload)))

    def take(self, now: float) -> list[Taken]:
        """The requests that have come, the oldest first, at most MOST_AT_ONCE; `now` epoch seconds."""
        for name in os.listdir(self.path):
            path = self.path / name
            with contextlib.suppress(FileNotFoundError):  # it is just being fetched
                if name.endswith(RESULT) and now - path.lstat().st_mtime > KEPT_SECONDS:
                    path.unlink()
        return list(self._take(MOST_AT_ONCE))

    def _take(self, most: int | None) -> Iterator[Taken]:
        names = sorted(name for name in os.listdir(self.path) if not name.endswith(RESULT))
        ids = [name.removesuffix(REQUEST) for name in names if name.endswith(REQUEST)]
        for each in [each for each in ids if _ID.fullmatch(each)][:most]:
            path = self.path / f"{each}{REQUEST}"
            payload = _content(path)
            try:
                path.unlink()
            except OSError:  # whoever asked has waited for long enough; or it is no file
                continue
            yield Taken(each, payload)

    def answer(self, request: str, result: Result) -> None:
        """What has become of it, whole or not at all."""
        self._put(f"{request}{RESULT}", msgspec.json.encode(result))

    # --- The side of whoever asks ---

    def ask(self, request: str, command: Command | ModelCommand) -> None:
        """Puts it there. The daemon makes the directory: FileNotFoundError without it."""
        self._put(f"{request}{REQUEST}", msgspec.json.encode(command))

    def result(self, request: str) -> Result | None:
        """The answer, once; None while there is none."""
        path = self.path / f"{request}{RESULT}"
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        path.unlink(missing_ok=True)
        return msgspec.json.decode(content, type=Result)

    def withdraw(self, request: str) -> bool:
        """False if the daemon has taken it."""
        try:
            (self.path / f"{request}{REQUEST}").unlink()
        except FileNotFoundError:
            return False
        return True

    def _put(self, name: str, content: bytes) -> None:
        part = self.path / f".{name}.part"
        part.unlink(missing_ok=True)
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb") as file:
            os.fchmod(descriptor, 0o644)  # the other side may be another user; who gets here the directory decides
            file.write(content)
        part.replace(self.path / name)


def _content(path: Path) -> bytes:
    """Of a file that anybody may have put there; empty where it is none."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return b""
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        return b""
    with open(descriptor, "rb") as file:
        return file.read(MOST_BYTES + 1)
