"""What the daemon asks of a retraining, and what it is told: two JSON files in the retraining's directory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import msgspec

from streamer.disk import sync_directory

REQUEST, VERDICT, CANDIDATE = "request.json", "verdict.json", "candidate.safetensors"
MOST_BYTES = 64 << 20

Result = Literal["promoted", "rejected", "failed", "too_little_data"]


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A retraining: which readings, from which weights, within which bounds."""

    journal: str
    """the directory"""
    begin: int
    end: int
    """positions in the journal; what was dropped since is not missed"""
    incumbent: str
    """the weights to begin with and to be judged against"""
    out: str
    """the directory for candidate and verdict"""
    judge_from: int = 0
    """position from which on readings may judge: `ends_at` of the incumbent's verdict, 0 for base weights"""
    open_abnormal: list[tuple[int, float]] = []
    """slot and event time since which it is in a value alarm, or has been found faulty"""
    paused: list[int] = []
    """slots that are paused at `end`"""
    devices: list[str] = []
    """slot -> key of its device at `end`, empty for a free slot"""
    lateness_seconds: float = 0.0
    """how late a reading may be, at `begin`"""
    budget_per_series_month: float = 1.0
    max_series_steps: int = 1_000_000
    """readings that are trained on and judged by; each takes about 130 bytes"""
    min_readings: int = 2000
    """that there have to be to train on"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = 1
    seed: int = 1
    learning_rate: float = 3e-4
    """of the recurrent layers"""
    input_rate: float = 0.3
    head_rate: float = 0.3
    """of the input layer, and of read-out and head, as multiples of it"""
    epochs: int = 30
    """at most"""


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What a retraining came to."""

    result: Result
    reason: str
    """a sentence"""
    figures: dict[str, float | str] = {}
    incumbent_sha256: str = ""
    candidate_sha256: str = ""
    """empty where there is no candidate"""
    ends_at: int = 0
    """position in the journal before which the candidate was trained: only what is newer may judge it"""


def write(directory: Path, name: str, content: Request | Verdict) -> None:
    """The file appears whole or not at all, and outlives a power cut. Raises OSError."""
    part = directory / (name + ".part")
    try:
        with part.open("wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(content), indent=2))
            file.flush()
            os.fsync(file.fileno())
        part.replace(directory / name)
    except OSError:
        part.unlink(missing_ok=True)
        raise
    sync_directory(directory)


def read_request(path: Path) -> Request:
    """Raises OSError, and ValueError for what is no request."""
    return msgspec.json.decode(_read(path), type=Request)


def read_verdict(directory: Path) -> Verdict:
    """The same for the verdict in a retraining's directory."""
    return msgspec.json.decode(_read(directory / VERDICT), type=Verdict)


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MOST_BYTES)
