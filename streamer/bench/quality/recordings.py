"""Labelled recordings on disk: the lists `NAME.txt` of a folder, and its packs `data/SET.npz`.

A pack holds four arrays for each recording `SET/...`: `/x` the values `(n, channels)`, `/t` epoch seconds `(n,)`, or
start and step `(2,)`, `/w` first and last row of each labelled fault `(k, 2)`, `/s` the row from which scores count.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray

from streamer.errors import InputError
from streamer.readings import Float32, Float64


@dataclass(frozen=True, slots=True, eq=False)
class Recording:
    """What a device has sent, and when something was wrong with it."""

    name: str
    time: Float64
    """(n,): epoch seconds"""
    values: Float32
    """(n, channels)"""
    windows: NDArray[np.int64]
    """(k, 2): first and last row of each labelled fault, in order; may be empty"""
    split: int
    """rows before this one are warm-up and do not count"""

    @property
    def dataset(self) -> str:
        return dataset_of(self.name)

    @property
    def counted_windows(self) -> NDArray[np.int64]:
        """(k, 2): the part of each window that counts, in rows from `split` on."""
        kept = self.windows[self.windows[:, 1] >= self.split]
        return np.maximum(kept - self.split, 0)


def dataset_of(name: str) -> str:
    """`NAB` of `NAB/realTweets/Twitter_volume_KO`."""
    return name.partition("/")[0]


def select(folder: Path, words: Sequence[str]) -> list[str]:
    """Names of recordings: each word is a list, a data set or one recording. Raises InputError."""
    if not folder.is_dir():
        raise InputError(f"{folder}: found no such folder; expected one with lists (lite.txt) and packs (data/*.npz)")
    packs = {path.stem: path for path in sorted((folder / "data").glob("*.npz"))}
    if not packs:
        raise InputError(f"{folder / 'data'}: found no packs; expected recordings as SET.npz")
    names: list[str] = []
    for word in words:
        chosen = folder / f"{word}.txt"
        if dataset_of(word) == word and chosen.is_file():
            names += _listed(chosen)
        elif word in packs:
            with _open(packs[word]) as pack:
                names += _names(pack)
        elif dataset_of(word) != word and dataset_of(word) in packs:
            names.append(word)
        else:
            lists = ", ".join(path.stem for path in sorted(folder.glob("*.txt"))) or "none"
            raise InputError(
                f"{folder}: found no {word}; expected a list ({lists}), a data set ({', '.join(packs)}) or a recording"
            )
    if not names:
        raise InputError(f"{folder}: found no recordings in {', '.join(words)}; expected at least one")
    return list(dict.fromkeys(names))


def load(folder: Path, names: Sequence[str]) -> Iterator[Recording]:
    """The recordings in the order of their names. Raises InputError."""
    pack: NpzFile | None = None
    opened = ""
    try:
        for name in names:
            if pack is None or dataset_of(name) != opened:
                if pack is not None:
                    pack.close()
                opened = dataset_of(name)
                pack = _open(folder / "data" / f"{opened}.npz")
            yield _recording(pack, name, folder / "data" / f"{opened}.npz")
    finally:
        if pack is not None:
            pack.close()


def _listed(path: Path) -> list[str]:
    """One name a line; `#` begins a comment."""
    lines = (line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


def _open(path: Path) -> NpzFile:
    if not path.is_file():
        raise InputError(f"{path}: found no such pack; expected the recordings of data set {path.stem}")
    if not zipfile.is_zipfile(path):
        raise InputError(f"{path}: found something else than a pack; expected arrays as numpy.savez writes them")
    try:
        pack: NpzFile = np.load(path, allow_pickle=False)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: cannot be read as a pack: {error}") from error
    return pack


def _names(pack: NpzFile) -> list[str]:
    return [key.removesuffix("/x") for key in pack.files if key.endswith("/x")]


def _recording(pack: NpzFile, name: str, path: Path) -> Recording:
    try:
        x, t, w, s = (pack[f"{name}/{part}"] for part in "xtws")
    except KeyError as error:
        raise InputError(f"{path}: found no {name}; expected it with its arrays /x, /t, /w and /s") from error
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path}: {name} cannot be read: {error}") from error
    time = t.astype(np.float64)
    if t.shape == (2,) and len(x) != 2:
        time = t[0] + t[1] * np.arange(len(x), dtype=np.float64)
    fits = x.ndim == 2 and x.size and time.shape == (len(x),) and w.ndim == 2 and w.shape[1] == 2 and s.shape == ()
    if not fits or not 0 <= int(s) < len(x) or (len(w) and not 0 <= w.min() <= w.max() < len(x)):
        shapes = ", ".join(f"/{part} {array.shape}" for part, array in zip("xtws", (x, t, w, s), strict=True))
        raise InputError(f"{path}: {name}: found {shapes}; expected (n, channels), (n,), (k, 2), (), all within n rows")
    return Recording(name, time, x.astype(np.float32), w.astype(np.int64), int(s))
