"""From settings to parts: what a person must mend is refused before anything starts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from models.features import INPUT_SIZE
from models.weights import ForecasterConfig, Weights, expected_shapes, save
from streamer.errors import ModelError
from streamer.settings import Settings, load
from streamer.wiring import load_weights


def settings(path: Path) -> Settings:
    return load(None, [f"model.weights={path}"], {"HOME": "/"})


@pytest.mark.parametrize("input_size", [INPUT_SIZE - 1, INPUT_SIZE])
def test_weights_for_other_inputs_are_refused(tmp_path: Path, input_size: int) -> None:
    """Sound weights of another version are named with what they want and what there is."""
    config = ForecasterConfig(input_size, 8)
    tensors = {name: np.zeros(shape, np.float32) for name, shape in expected_shapes(config).items()}
    path = tmp_path / "other.safetensors"
    save(Weights(config, tensors, {}), path)
    if input_size == INPUT_SIZE:
        assert load_weights(settings(path)).config == config
        return
    with pytest.raises(ModelError, match=rf"other\.safetensors: found weights for {input_size} inputs"):
        load_weights(settings(path))
