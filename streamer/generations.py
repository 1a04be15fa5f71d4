"""The weights that have served a state directory, or were to, each under its number: `models/000002.safetensors`.

Beside each lies its manifest (`models.weights`) and `000002.about.json`, which says where it comes from. A set is never
changed and never gets another number; `serving.json` says which one serves, for a start that finds no other state.
"""

from __future__ import annotations

import contextlib
import os
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from models import weights as weights_files
from models.weights import Weights, WeightsError
from streamer.disk import sync_directory

T = TypeVar("T")

DIRECTORY = "models"
MOST_KEPT = 30  # 0.1 MB each; the one that serves, and the one before it, are kept whatever their age
MOST_BYTES = 1 << 20
_NUMBERED = re.compile(r"[0-9]{6}\.")
_ABOUT = re.compile(r"([0-9]{6})\.about\.json")
SERVING = "serving.json"

Origin = Literal["shipped", "named", "trained"]


class Generation(msgspec.Struct, frozen=True):
    """What is known of a set of weights."""

    number: int
    sha256: str
    origin: Origin
    """shipped with the program, named by the setting `model.weights`, or trained on this site"""
    created: float
    """epoch seconds"""
    trained_until: int = 0
    """position in the journal before which its training data lie; 0: it has seen none of this site"""
    verdict: dict[str, object] = {}
    """what its judgement said"""


class Serving(msgspec.Struct, frozen=True):
    """Which one serves, and which one did before it."""

    number: int
    before: int | None = None
    configured: str = ""
    """SHA-256 of those that the settings named at the last start"""
    coming: int | None = None
    """these were to serve since the settings name them, and did not yet"""


class Generations:
    """The sets in one state directory. Nothing is read or written before it is asked for."""

    def __init__(self, state_directory: Path) -> None:
        self.directory = state_directory / DIRECTORY

    def all(self) -> list[Generation]:
        """The oldest first; what cannot be read is left out."""
        try:
            names = os.listdir(self.directory)
        except OSError:
            return []
        numbers = sorted(int(found[1]) for name in names if (found := _ABOUT.fullmatch(name)))
        return [each for number in numbers if (each := self.about(number)) is not None]

    def about(self, number: int) -> Generation | None:
        """None if there is no such one."""
        found = _read(self._about_path(number), Generation)
        return found if found is not None and found.number == number else None

    def path(self, number: int) -> Path:
        """Where its weights are."""
        return self.directory / f"{number:06d}.safetensors"

    def load(self, number: int) -> Weights:
        """Raises WeightsError."""
        about = self.about(number)
        if about is None:
            raise WeightsError(f"{self.directory}: found no generation {number}; `streamer models ls` lists them")
        weights = weights_files.load(self.path(number))
        if weights.sha256 != about.sha256:
            raise WeightsError(
                f"{self.path(number)}: is not what generation {number} was; restore it, or promote another"
            )
        return weights

    def find(self, sha256: str) -> Weights | None:
        """The weights with this checksum, if they are here and sound."""
        for each in reversed(self.all()):
            if each.sha256 == sha256:
                with contextlib.suppress(WeightsError):
                    return self.load(each.number)
        return None

    def number_of(self, sha256: str) -> int | None:
        """The newest of these weights."""
        return next((each.number for each in reversed(self.all()) if each.sha256 == sha256), None)

    def add(
        self,
        file: Path,
        origin: Origin,
        now: float,
        *,
        trained_until: int = 0,
        verdict: dict[str, object] | None = None,
    ) -> Generation:
        """Keeps a copy of these weights under the next number. Raises OSError and WeightsError."""
        self.directory.mkdir(mode=0o700, exist_ok=True)
        taken = [int(name[:6]) for name in os.listdir(self.directory) if _NUMBERED.match(name)]
        path = self.path(max(taken, default=0) + 1)
        number = int(path.stem)
        try:
            for source, copy in ((file, path), (weights_files.manifest_path(file), weights_files.manifest_path(path))):
                weights_files.write_whole(copy, source.read_bytes())
            about = Generation(number, weights_files.load(path).sha256, origin, now, trained_until, verdict or {})
            weights_files.write_whole(self._about_path(number), msgspec.json.encode(about))
        except BaseException:  # on a disk that stays full each attempt would leave more
            for left in self.directory.glob(f"{number:06d}.*"):
                left.unlink(missing_ok=True)
            raise
        sync_directory(self.directory)
        return about

    def serving(self) -> Serving | None:
        """None before the first has served."""
        return _read(self.directory / SERVING, Serving)

    def serve(self, number: int, configured: str, coming: int | None = None) -> None:
        """This one serves from here on; very old ones go. Raises OSError."""
        last = self.serving() or Serving(number)
        now = Serving(number, last.before if number == last.number else last.number, configured, coming)
        if now != self.serving():
            self.directory.mkdir(mode=0o700, exist_ok=True)
            weights_files.write_whole(self.directory / SERVING, msgspec.json.encode(now))
            sync_directory(self.directory)
        for each in self.all()[:-MOST_KEPT]:
            if each.number not in (now.number, now.before):
                self._remove(each.number)

    def _remove(self, number: int) -> None:
        path = self.path(number)
        for each in (self._about_path(number), weights_files.manifest_path(path), path):
            each.unlink(missing_ok=True)

    def _about_path(self, number: int) -> Path:
        return self.directory / f"{number:06d}.about.json"


# --- For people ---


def line(about: Generation, serving: Serving | None) -> str:
    """One of a list."""
    marks = {serving.number: "serves", serving.before: "served before"} if serving else {}
    verdict = str(about.verdict.get("reason", ""))
    mark = marks.get(about.number, "")
    return f"{about.number:>4}  {_day(about.created)}  {about.origin:<7}  {mark:<13}  {verdict}".rstrip()


def described(about: Generation, serving: Serving | None) -> dict[str, object]:
    """All that is known of it, by name."""
    figures = about.verdict.get("figures")
    return {
        "generation": about.number,
        "SHA-256": about.sha256,
        "origin": about.origin,
        "created": _day(about.created),
        "serves": serving is not None and serving.number == about.number,
        **({"verdict": about.verdict.get("reason", "")} if about.verdict else {}),
        **({f"  {name}": value for name, value in figures.items()} if isinstance(figures, dict) else {}),
    }


def _day(epoch: float) -> str:
    return datetime.fromtimestamp(epoch, UTC).strftime("%Y-%m-%d %H:%M")


def _read(path: Path, kind: type[T]) -> T | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        with open(descriptor, "rb") as file:
            return msgspec.json.decode(file.read(MOST_BYTES), type=kind)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
