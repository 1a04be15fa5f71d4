"""Weights on disk: what was saved comes back, and nothing else is taken for weights."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save as save_tensors

from models import cells, weights
from models.weights import ForecasterConfig, Weights, WeightsError, expected_shapes, recurrent_layers

SMALL = ForecasterConfig(input_size=2, hidden_size=2, num_layers=1)
Tensors = dict[str, np.ndarray]
Manifest = dict[str, object]


def some_weights(config: ForecasterConfig = SMALL, seed: int = 0) -> Weights:
    rng = np.random.default_rng(seed)
    tensors = {name: rng.normal(size=shape).astype(np.float32) for name, shape in expected_shapes(config).items()}
    return Weights(config, tensors, {"seed": seed, "losses": [0.1, -2.5e-9], "held_out": {"log_loss": -1.25}})


def forge(
    path: Path, *, tensors: Tensors | bytes | None = None, change: Callable[[Manifest], None] | None = None
) -> None:
    """Files that are wrong but whole: the SHA-256 of both are right, the content is not."""
    weights.save(some_weights(), path)
    beside = weights.manifest_path(path)
    manifest = json.loads(beside.read_text())
    del manifest[weights.SEAL]
    if tensors is not None:
        raw = tensors if isinstance(tensors, bytes) else save_tensors(tensors)
        path.write_bytes(raw)
        manifest |= {"sha256": hashlib.sha256(raw).hexdigest(), "bytes": len(raw)}
    if change is not None:
        change(manifest)
    body = json.dumps(manifest, indent=2, sort_keys=True) + "\n"
    manifest[weights.SEAL] = hashlib.sha256(body.encode()).hexdigest()
    beside.write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n")


def refusal(path: Path, names: Path) -> str:
    """What `load` says about files that it must refuse; it names the file that is at fault."""
    with pytest.raises(WeightsError) as caught:
        weights.load(path)
    assert str(names) in str(caught.value)
    return str(caught.value)


@settings(max_examples=25, deadline=None)
@given(
    st.builds(
        ForecasterConfig, st.integers(1, 9), st.integers(1, 9), st.integers(1, 3), st.sampled_from([0.0, 0.25]),
        cell=st.sampled_from(cells.CELLS), residual=st.booleans(), attention=st.integers(0, 5),
        bidirectional=st.booleans(),
    ),
    st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_what_was_saved_comes_back(
    tmp_path_factory: pytest.TempPathFactory, config: ForecasterConfig, seed: int
) -> None:
    """Configuration, every bit of every tensor, the recipe and the SHA-256 survive the disk."""
    path = tmp_path_factory.mktemp("weights") / "some.safetensors"
    given_weights = some_weights(config, seed)
    saved = weights.save(given_weights, path)
    loaded = weights.load(path)
    assert loaded.config == given_weights.config
    assert loaded.recipe == given_weights.recipe
    assert loaded.sha256 == saved.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert loaded.tensors.keys() == given_weights.tensors.keys()
    for name, value in given_weights.tensors.items():
        np.testing.assert_array_equal(loaded.tensors[name], value)


def test_a_plain_lstm_is_written_as_it_always_was(tmp_path: Path) -> None:
    """An older program reads it: no field that it does not know, unless the network needs it."""
    path = tmp_path / "some.safetensors"
    fields = {"input_size": 2, "hidden_size": 2, "num_layers": 1, "dropout": 0.0}
    for config, more in ((SMALL, {}), (dataclasses.replace(SMALL, cell="gru"), {"cell": "gru"})):
        weights.save(some_weights(config), path)
        assert json.loads(weights.manifest_path(path).read_text())["config"] == fields | more


def test_the_shipped_manifest_is_written_again_byte_for_byte(tmp_path: Path) -> None:
    """The base weights, loaded and saved, are the same two files."""
    path = tmp_path / "base.safetensors"
    weights.save(weights.load(), path)
    assert path.read_bytes() == weights.BASE.read_bytes()
    assert weights.manifest_path(path).read_bytes() == weights.manifest_path(weights.BASE).read_bytes()


def test_layers_come_in_the_order_in_which_they_are_stacked() -> None:
    """Each with its own tensors, the optional ones where the cell has them."""
    some = some_weights(ForecasterConfig(3, 2, 2, cell="fgr"))
    for k, layer in enumerate(recurrent_layers(some)):
        for name, value in layer._asdict().items():
            assert value is some.tensors[f"lstm.{name}_l{k}"]
    assert recurrent_layers(some_weights())[0].weight_ch is None


def test_saving_again_writes_the_same_bytes(tmp_path: Path) -> None:
    """Equal weights are equal files, whatever the order of their tensors, and nothing else is left behind."""
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    original = some_weights()
    weights.save(original, one)
    weights.save(dataclasses.replace(original, tensors=dict(reversed(original.tensors.items()))), two)
    assert one.read_bytes() == two.read_bytes()
    assert weights.manifest_path(one).read_bytes() == weights.manifest_path(two).read_bytes()
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "one.json", "one.safetensors", "two.json", "two.safetensors",
    ]  # fmt: skip


@pytest.mark.parametrize("suffix", [".safetensors", ".json"])
def test_every_truncation_is_refused(tmp_path: Path, suffix: str) -> None:
    """Cut anywhere, the file is named and refused; so it is with a byte too many."""
    path = tmp_path / "some.safetensors"
    weights.save(some_weights(), path)
    victim = path.with_suffix(suffix)
    whole = victim.read_bytes()
    for length in range(len(whole)):
        victim.write_bytes(whole[:length])
        refusal(path, victim)
    victim.write_bytes(whole + b"\n")
    refusal(path, victim)
    victim.write_bytes(whole)
    weights.load(path)


@pytest.mark.parametrize("suffix", [".safetensors", ".json"])
def test_every_flipped_bit_is_refused(tmp_path: Path, suffix: str) -> None:
    """500 single bits at random places, flipped one at a time: the files are refused each time, and named."""
    path = tmp_path / "some.safetensors"
    weights.save(some_weights(), path)
    victim = path.with_suffix(suffix)
    whole = np.frombuffer(victim.read_bytes(), np.uint8)
    rng = np.random.default_rng(6)
    for position in rng.integers(0, 8 * len(whole), 500):
        damaged = whole.copy()
        damaged[position // 8] ^= 1 << (position % 8)
        victim.write_bytes(damaged.tobytes())
        # A flip in the manifest's SHA-256 of the weights could be blamed on either; the seal blames the manifest.
        refusal(path, victim)


def test_a_figure_changed_by_hand_is_refused(tmp_path: Path) -> None:
    """Also what no number of the network depends on is sealed: a recipe that was edited is not the one that was run."""
    path = tmp_path / "some.safetensors"
    weights.save(some_weights(), path)
    beside = weights.manifest_path(path)
    beside.write_text(beside.read_text().replace("-1.25", "-1.75"))
    assert weights.SEAL in refusal(path, beside)


def test_files_of_two_models_do_not_mix(tmp_path: Path) -> None:
    """Weights beside another model's manifest are refused, though each file is whole."""
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    weights.save(some_weights(seed=1), one)
    weights.save(some_weights(seed=2), two)
    two.replace(one)
    assert "of another model" in refusal(one, one)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_no_numbers_are_neither_read_nor_written(tmp_path: Path, value: float) -> None:
    """One NaN or infinity in one tensor is enough, even with the right SHA-256; `save` refuses it as `load` does."""
    path = tmp_path / "some.safetensors"
    bad = some_weights()
    bad.tensors["head.bias"][3] = value
    forge(path, tensors=bad.tensors)
    assert "head.bias" in refusal(path, path)
    with pytest.raises(WeightsError, match=r"head\.bias"):
        weights.save(bad, tmp_path / "other.safetensors")
    assert not (tmp_path / "other.safetensors").exists()


def without_head() -> Tensors:
    return {name: value for name, value in some_weights().tensors.items() if name != "head.weight"}


@pytest.mark.parametrize(
    ("tensors", "named"),
    [
        (without_head(), "head.weight"),
        (some_weights().tensors | {"extra": np.zeros(1, np.float32)}, "extra"),
        (some_weights(ForecasterConfig(3, 2)).tensors, "lstm.weight_ih_l0"),
        (some_weights(ForecasterConfig(2, 2, 2)).tensors, "lstm.weight_hh_l1"),
        (some_weights().tensors | {"head.bias": np.zeros((9, 1), np.float32)}, "head.bias"),
        (some_weights().tensors | {"head.bias": np.zeros(9, np.float64)}, "head.bias"),
        (some_weights().tensors | {"head.bias": np.zeros(9, np.int32)}, "head.bias"),
        ({}, "head.bias"),
    ],
    ids=["missing", "too many", "wider", "deeper", "rank", "float64", "int32", "none"],
)
def test_tensors_that_do_not_fit_the_configuration_are_named(tmp_path: Path, tensors: Tensors, named: str) -> None:
    """Whole files with the wrong tensors are refused by the name of what is off."""
    path = tmp_path / "some.safetensors"
    forge(path, tensors=tensors)
    assert named in refusal(path, path)


def header(text: bytes, body: bytes = b"") -> bytes:
    return struct.pack("<Q", len(text)) + text + body


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x80\x04K\x01.",  # a pickle
        header(b"{}"),
        header(b"not json"),
        header(b'{"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 4]}}', b"1234"),
        header(b'{"a": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}', b"1234"),
        header(b'{"a": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}}', b"1234"),
        struct.pack("<Q", 1 << 62) + b"{}",
    ],
    ids=["empty", "pickle", "no tensor", "no json", "short", "bfloat16", "float8", "endless header"],
)
def test_what_is_no_safetensors_is_refused_even_with_the_right_sum(tmp_path: Path, raw: bytes) -> None:
    """A manifest that vouches for it does not make it weights."""
    path = tmp_path / "some.safetensors"
    forge(path, tensors=raw)
    refusal(path, path)


@pytest.mark.parametrize(
    "config",
    [
        {"hidden_size": "2"}, {"hidden_size": 0}, {"input_size": -2}, {"num_layers": 10**12}, {"hidden_size": 2.0},
        {"num_layers": True}, {"dropout": 1.5}, {"dropout": "no"}, {"dropout": float("nan")}, {"unknown": 1},
        {"cell": "LSTM"}, {"cell": 3}, {"cell": ["gru"]}, {"residual": 1}, {"bidirectional": "yes"}, {"attention": -1},
        {"attention": True}, {"attention": 10**9},
    ],
)  # fmt: skip
def test_a_configuration_that_cannot_be_is_refused(tmp_path: Path, config: dict[str, object]) -> None:
    """Wrong types, sizes, numbers of layers and unknown words in a sealed manifest: refused at once, by name."""
    path = tmp_path / "some.safetensors"
    forge(path, change=lambda manifest: manifest.update(config=dataclasses.asdict(SMALL) | config))
    assert "config" in refusal(path, weights.manifest_path(path))


@pytest.mark.parametrize(("field", "value"), [("format_version", 2), ("format_version", None), ("format", "other")])
def test_another_format_is_refused(tmp_path: Path, field: str, value: object) -> None:
    """A later version and another program's manifest are told apart from damage."""
    path = tmp_path / "some.safetensors"
    forge(path, change=lambda manifest: manifest.update({field: value}))
    text = refusal(path, weights.manifest_path(path))
    assert "damaged" not in text
    assert "format version" in text if field == "format_version" else "not a manifest" in text


@pytest.mark.parametrize("field", ["config", "sha256", "format", weights.SEAL])
def test_a_manifest_without_a_field_is_refused(tmp_path: Path, field: str) -> None:
    """What the manifest must say cannot be left out, sealed or not."""
    path = tmp_path / "some.safetensors"
    beside = weights.manifest_path(path)
    if field == weights.SEAL:
        weights.save(some_weights(), path)
        manifest = json.loads(beside.read_text())
        del manifest[field]
        beside.write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n")
    else:
        forge(path, change=lambda manifest: manifest.__delitem__(field))
    refusal(path, path if field == "sha256" else beside)


@pytest.mark.parametrize(
    "text",
    [b"", b"null", b"[]", b'"text"', b"\xff\xfe", b"{", b"[" * 100_000, b'{"a":' * 100_000, b"9" * 10_000],
    ids=["empty", "null", "list", "text", "no utf-8", "open", "deep list", "deep object", "long number"],
)
def test_a_manifest_that_is_none_is_refused(tmp_path: Path, text: bytes) -> None:
    """Whatever else lies in its place, deep nesting included, is a WeightsError and nothing worse."""
    path = tmp_path / "some.safetensors"
    weights.save(some_weights(), path)
    weights.manifest_path(path).write_bytes(text)
    refusal(path, weights.manifest_path(path))


@pytest.mark.parametrize("suffix", [".safetensors", ".json"])
def test_a_missing_file_is_named(tmp_path: Path, suffix: str) -> None:
    """Either of the two that is absent, or a directory, is named with the system's word for it."""
    path = tmp_path / "some.safetensors"
    weights.save(some_weights(), path)
    path.with_suffix(suffix).unlink()
    assert "No such file" in refusal(path, path.with_suffix(suffix))
    path.with_suffix(suffix).mkdir()
    refusal(path, path.with_suffix(suffix))


@pytest.mark.parametrize("suffix", [".safetensors", ".json"])
def test_a_huge_file_is_refused_unread(tmp_path: Path, suffix: str) -> None:
    """A file of a terabyte, sparse, is refused by its size: reading it would fill the memory."""
    path = tmp_path / "some.safetensors"
    weights.save(some_weights(), path)
    with path.with_suffix(suffix).open("r+b") as file:
        file.truncate(1 << 40)
    assert str(1 << 40) in refusal(path, path.with_suffix(suffix))


def test_the_name_of_a_manifest_is_not_taken_for_weights(tmp_path: Path) -> None:
    """`some.json` would be overwritten by its own manifest: it is refused before anything is written."""
    with pytest.raises(WeightsError, match=r"some\.safetensors"):
        weights.save(some_weights(), tmp_path / "some.json")
    with pytest.raises(WeightsError, match=r"some\.safetensors"):
        weights.load(tmp_path / "some.json")
    assert not list(tmp_path.iterdir())


def test_a_write_that_fails_leaves_the_old_files(tmp_path: Path) -> None:
    """When the disk refuses, what was there before is still there and still loads."""
    path = tmp_path / "some.safetensors"
    weights.save(some_weights(seed=1), path)
    (tmp_path / "some.safetensors.part").mkdir()  # stands in the way of the temporary file
    with pytest.raises(OSError, match=r"\.part"):
        weights.save(some_weights(seed=2), path)
    assert weights.load(path).recipe["seed"] == 1
