"""Weights on disk: safetensors for the numbers, a JSON manifest for what they are, checked before they are used.

safetensors notices neither a flipped bit nor a file of another model; the manifest's SHA-256 and shapes do. Nothing in
these files can run code.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

FORMAT, FORMAT_VERSION = "anomaly-streamer weights", 1
BASE = Path(__file__).with_name("base.safetensors")
MOST_BYTES = 1 << 30


class WeightsError(Exception):
    """A weights file that cannot be used; the text names the file, what was found and what is wanted."""


@dataclass(frozen=True, slots=True)
class ForecasterConfig:
    """The shape of a forecaster."""

    input_size: int
    hidden_size: int = 64
    num_layers: int = 1
    dropout: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Weights:
    """One set of weights: the tensors by PyTorch's names, float32, and how they came about."""

    config: ForecasterConfig
    tensors: dict[str, NDArray[np.float32]]
    recipe: dict[str, object]
    """seed, data, steps, figures: what the model card says, for machines"""
    sha256: str = ""
    """of the safetensors file; empty before it is saved"""


def manifest_path(path: Path) -> Path:
    """`base.safetensors` has `base.json` beside it."""
    return path.with_suffix(".json")


def save(weights: Weights, path: Path) -> Weights:
    """Writes both files, the manifest last; each appears whole or not at all."""
    raw = save_tensors({name: np.ascontiguousarray(value, np.float32) for name, value in weights.tensors.items()})
    digest = hashlib.sha256(raw).hexdigest()
    manifest = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "config": dataclasses.asdict(weights.config),
        "tensors": {name: list(value.shape) for name, value in sorted(weights.tensors.items())},
        "bytes": len(raw),
        "sha256": digest,
        "recipe": weights.recipe,
    }
    _write(path, raw)
    _write(manifest_path(path), (json.dumps(manifest, indent=2, sort_keys=True) + "\n").encode())
    return dataclasses.replace(weights, sha256=digest)


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_name(path.name + ".part")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def load(path: Path = BASE) -> Weights:
    """Reads and checks both files. Raises WeightsError, which names the file, for anything that is not as the manifest says."""
    manifest = _manifest(manifest_path(path))
    raw = _read(path)
    digest = hashlib.sha256(raw).hexdigest()
    if digest != manifest["sha256"]:
        raise WeightsError(
            f"{path}: the file is damaged or of another model: its SHA-256 is {digest[:16]}..., "
            f"its manifest wants {str(manifest['sha256'])[:16]}...; restore both files from one source"
        )
    try:
        tensors = load_tensors(raw)
        config = ForecasterConfig(**manifest["config"])  # type: ignore[arg-type]  # TypeError below says what is off
    except (SafetensorError, TypeError, ValueError) as error:
        raise WeightsError(f"{path}: cannot be read as weights: {error}") from error
    check(path, config, tensors)
    recipe = manifest.get("recipe")
    return Weights(config, tensors, recipe if isinstance(recipe, dict) else {}, digest)


def expected_shapes(config: ForecasterConfig, head_size: int = 9) -> dict[str, tuple[int, ...]]:
    """Every tensor a forecaster of this shape has."""
    hidden = config.hidden_size
    shapes: dict[str, tuple[int, ...]] = {
        "head.weight": (head_size, hidden + config.input_size),
        "head.bias": (head_size,),
    }
    for layer in range(config.num_layers):
        width = config.input_size if layer == 0 else hidden
        shapes[f"lstm.weight_ih_l{layer}"] = (4 * hidden, width)
        shapes[f"lstm.weight_hh_l{layer}"] = (4 * hidden, hidden)
        shapes[f"lstm.bias_ih_l{layer}"] = (4 * hidden,)
        shapes[f"lstm.bias_hh_l{layer}"] = (4 * hidden,)
    return shapes


def check(path: Path, config: ForecasterConfig, tensors: dict[str, NDArray[np.float32]]) -> None:
    """Raises WeightsError unless the tensors are those of a forecaster of this shape, float32 and finite."""
    wanted = expected_shapes(config)
    found = {name: value.shape for name, value in tensors.items()}
    if found != wanted:
        off = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
        raise WeightsError(f"{path}: tensors {', '.join(off)} do not fit the configuration in the manifest")
    for name, value in tensors.items():
        if value.dtype != np.float32 or not np.isfinite(value).all():
            raise WeightsError(f"{path}: tensor {name} is not finite float32")


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise WeightsError(f"{path}: {path.stat().st_size} bytes are no weights of this program")
        return path.read_bytes()
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror}") from error


def _manifest(path: Path) -> dict[str, object]:
    try:
        manifest = json.loads(_read(path))
    except ValueError as error:
        raise WeightsError(f"{path}: the manifest is not JSON: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise WeightsError(f"{path}: is not a manifest of {FORMAT}")
    if manifest.get("format_version") != FORMAT_VERSION:
        raise WeightsError(
            f"{path}: format version {manifest.get('format_version')!r}, this program reads {FORMAT_VERSION}"
        )
    if not isinstance(manifest.get("config"), dict) or not isinstance(manifest.get("sha256"), str):
        raise WeightsError(f"{path}: config or sha256 is missing")
    return manifest
