"""Weights on disk: safetensors for the numbers, a JSON manifest for what they are, checked before they are used.

safetensors notices neither a flipped bit nor a file of another model; the manifest's SHA-256 and shapes do. The
manifest carries a SHA-256 of itself and is read only in the form in which it is written. Neither can run code.
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

from models import cells

FORMAT, FORMAT_VERSION = "anomaly-streamer weights", 1
SEAL = "manifest_sha256"
HEAD_SIZE = 9  # of a forecaster: a mixture of three distributions
BASE = Path(__file__).with_name("base.safetensors")
MOST_BYTES, MOST_MANIFEST_BYTES = 1 << 30, 1 << 24
MOST_LAYERS, MOST_ATTENTION = 64, 4096  # by eye: far above any use, far below what a damaged number could ask for


class WeightsError(Exception):
    """A weights file that cannot be used; the text names the file, what was found and what is wanted."""


@dataclass(frozen=True, slots=True)
class ForecasterConfig:
    """The shape of a forecaster."""

    input_size: int
    hidden_size: int = 64
    num_layers: int = 1
    dropout: float = 0.0
    """between layers, in training only"""
    cell: str = "lstm"
    """one of `cells.CELLS`"""
    residual: bool = False
    """each layer from the second on adds to the one below it"""
    attention: int = 0
    """how many of the last hidden states, the newest included, the head's read-out attends to; 0: no attention"""
    bidirectional: bool = False
    """a second stack reads the series from its end: for labelling history, impossible in a stream"""

    @property
    def width(self) -> int:
        """What comes with a reading: the inputs; bidirectional, those from its other side and the one that follows."""
        return 2 * self.input_size + 1 if self.bidirectional else self.input_size

    @property
    def head_inputs(self) -> int:
        """What the head sees: the hidden state, the read-out, the stack from the other end, and what has come."""
        return (1 + (self.attention > 0) + self.bidirectional) * self.hidden_size + self.width

    @property
    def memory(self) -> int:
        """How many past hidden states the read-out needs beside the present one."""
        return max(self.attention - 1, 0)


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
    if path.suffix == ".json":
        raise WeightsError(f"{path}: is the name of a manifest; name the weights, {path.with_suffix('.safetensors')}")
    return path.with_suffix(".json")


def save(weights: Weights, path: Path, *, outputs: int = HEAD_SIZE) -> Weights:
    """Writes both files, the manifest last; each appears whole or not at all. Raises WeightsError as `check` does."""
    beside = manifest_path(path)
    check(path, weights.config, weights.tensors, outputs)
    raw = save_tensors({name: np.ascontiguousarray(value, np.float32) for name, value in weights.tensors.items()})
    digest = hashlib.sha256(raw).hexdigest()
    manifest: dict[str, object] = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "config": _written(weights.config),
        "tensors": {name: list(value.shape) for name, value in sorted(weights.tensors.items())},
        "bytes": len(raw),
        "sha256": digest,
        "recipe": weights.recipe,
    }
    write_whole(path, raw)
    write_whole(beside, _sealed(manifest))
    return dataclasses.replace(weights, sha256=digest)


def write_whole(path: Path, content: bytes) -> None:
    """All of it is on the disk, or what was there before. Raises OSError."""
    temporary = path.with_name(path.name + ".part")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def load(path: Path = BASE, *, outputs: int = HEAD_SIZE) -> Weights:
    """Reads both files, of a network with so many `outputs`.

    Raises WeightsError, which names the file, for anything that is not as the manifest says.
    """
    beside = manifest_path(path)
    manifest = _manifest(beside)
    config = _config(beside, manifest.get("config"))
    raw = _read(path, MOST_BYTES)
    digest = hashlib.sha256(raw).hexdigest()
    if digest != manifest.get("sha256"):
        raise WeightsError(
            f"{path}: the file is damaged or of another model: {len(raw)} bytes with SHA-256 {digest[:16]}..., its "
            f"manifest wants {manifest.get('bytes')} bytes with {str(manifest.get('sha256'))[:16]}...; "
            "restore both files from one source"
        )
    try:
        tensors = load_tensors(raw)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:  # KeyError: a type that numpy has not
        raise WeightsError(f"{path}: cannot be read as weights: {error}") from error
    check(path, config, tensors, outputs)
    recipe = manifest.get("recipe")
    return Weights(config, tensors, recipe if isinstance(recipe, dict) else {}, digest)


def expected_shapes(config: ForecasterConfig, head_size: int = HEAD_SIZE) -> dict[str, tuple[int, ...]]:
    """Every tensor a forecaster of this shape has. `lstm.` are the recurrent layers, whatever their cell."""
    hidden = config.hidden_size
    shapes: dict[str, tuple[int, ...]] = {
        "head.weight": (head_size, config.head_inputs),
        "head.bias": (head_size,),
    }
    if config.attention:
        shapes["attention.weight"] = (hidden, hidden)
    for stack in ("lstm", "reverse") if config.bidirectional else ("lstm",):
        for layer in range(config.num_layers):
            width = config.input_size if layer == 0 else hidden
            for name, shape in cells.shapes(config.cell, width, hidden).items():
                shapes[f"{stack}.{name}_l{layer}"] = shape
    return shapes


def recurrent_layers(weights: Weights, direction: str = "lstm") -> list[cells.Layer]:
    """The recurrent layers in the order in which they are stacked; `reverse` are those that read from the end."""
    names = cells.shapes(weights.config.cell, 1, 1)
    return [
        cells.Layer(**{name: weights.tensors[f"{direction}.{name}_l{k}"] for name in names})
        for k in range(weights.config.num_layers)
    ]


def check_streams(config: ForecasterConfig) -> None:
    """Raises WeightsError for a forecaster that cannot score a reading when it comes."""
    if config.bidirectional:
        raise WeightsError(
            "found bidirectional weights, which cannot stream: they judge a reading by the readings after it, which "
            "have not come yet; use them to label history (streamer replay --offline-label), and to stream weights "
            "that were trained without --bidirectional"
        )


def check(
    path: Path, config: ForecasterConfig, tensors: dict[str, NDArray[np.float32]], outputs: int = HEAD_SIZE
) -> None:
    """Raises WeightsError unless the tensors are those of a network of this shape, float32 and finite."""
    wanted = expected_shapes(config, outputs)
    found = {name: value.shape for name, value in tensors.items()}
    if found != wanted:
        off = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
        raise WeightsError(f"{path}: tensors {', '.join(off)} do not fit the configuration in the manifest")
    for name, value in tensors.items():
        if value.dtype != np.float32 or not np.isfinite(value).all():
            raise WeightsError(f"{path}: tensor {name} is not finite float32")


def _read(path: Path, most_bytes: int) -> bytes:
    try:
        size = path.stat().st_size
        if size > most_bytes:
            raise WeightsError(f"{path}: {size} bytes; {most_bytes} is the most that this program reads")
        return path.read_bytes()
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror}") from error


def _manifest(path: Path) -> dict[str, object]:
    raw = _read(path, MOST_MANIFEST_BYTES)
    try:
        manifest = json.loads(raw)
        written = _sealed({k: v for k, v in manifest.items() if k != SEAL}) if isinstance(manifest, dict) else b""
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: the manifest is not JSON: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise WeightsError(f"{path}: is not a manifest of {FORMAT}")
    if manifest.get("format_version") != FORMAT_VERSION:
        raise WeightsError(
            f"{path}: format version {manifest.get('format_version')!r}, this program reads {FORMAT_VERSION}"
        )
    if written != raw:
        raise WeightsError(f"{path}: is damaged or was edited: it is not what its {SEAL} says; restore it")
    return manifest


def _sealed(manifest: dict[str, object]) -> bytes:
    """The manifest's file: one form for one content, with the SHA-256 of the content."""

    def render(content: dict[str, object]) -> bytes:
        return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()

    return render({**manifest, SEAL: hashlib.sha256(render(manifest)).hexdigest()})


FIRST_FIELDS = ("input_size", "hidden_size", "num_layers", "dropout")  # what every manifest has


def _written(config: ForecasterConfig) -> dict[str, object]:
    """Later fields only where they say something: an older program reads what it can serve and refuses the rest."""
    plain = ForecasterConfig(config.input_size)
    every = dataclasses.asdict(config)
    return {name: value for name, value in every.items() if name in FIRST_FIELDS or value != getattr(plain, name)}


def _config(path: Path, found: object) -> ForecasterConfig:
    names = {field.name for field in dataclasses.fields(ForecasterConfig)}
    if not isinstance(found, dict) or not set(FIRST_FIELDS) <= found.keys() <= names:
        later = ", ".join(sorted(names - set(FIRST_FIELDS)))
        raise WeightsError(f"{path}: config wants {', '.join(FIRST_FIELDS)} and knows besides {later}")
    wanted = fault(ForecasterConfig(**found))
    if wanted:
        raise WeightsError(f"{path}: config wants {wanted}")
    return ForecasterConfig(**{**found, "dropout": float(found["dropout"])})


def fault(config: ForecasterConfig) -> str | None:
    """What a configuration from outside should have been, None if it is; not even its types are certain."""
    sizes: tuple[object, ...] = (config.input_size, config.hidden_size, config.num_layers)
    if not all(type(size) is int and size > 0 for size in sizes) or config.num_layers > MOST_LAYERS:
        return f"sizes that are positive integers and at most {MOST_LAYERS} layers"
    dropout: object = config.dropout
    if not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        return f"a dropout from 0 to below 1, found {dropout!r}"
    if config.cell not in cells.CELLS:
        return f"a cell that is one of {', '.join(cells.CELLS)}, found {config.cell!r}"
    if type(config.attention) is not int or not 0 <= config.attention <= MOST_ATTENTION:
        return f"an attention over 0 to {MOST_ATTENTION} hidden states, found {config.attention!r}"
    switches: tuple[object, ...] = (config.residual, config.bidirectional)
    if not all(type(switch) is bool for switch in switches):
        return "true or false for residual and bidirectional"
    return None
