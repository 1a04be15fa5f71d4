"""From settings to parts: what a person must mend is refused before anything starts."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from models import weights
from models.features import INPUT_SIZE
from models.step import cuda_is_available
from models.weights import MOST_ATTENTION, ForecasterConfig, Weights, expected_shapes, save
from streamer.errors import ModelError
from streamer.registry import Registry
from streamer.settings import Settings, load
from streamer.sinks import discovery
from streamer.wiring import decoder_from, device_of_from, is_included_from, load_weights, shard_from, step_told


def settings(path: Path, *more: str) -> Settings:
    return load(None, [f"model.weights={path}", *more], {"HOME": "/"})


def saved(path: Path, config: ForecasterConfig) -> Path:
    """Weights of a forecaster that has learned nothing."""
    tensors = {name: np.zeros(shape, np.float32) for name, shape in expected_shapes(config).items()}
    save(Weights(config, tensors, {}), path)
    return path


@pytest.mark.parametrize("input_size", [INPUT_SIZE - 1, INPUT_SIZE])
def test_weights_for_other_inputs_are_refused(tmp_path: Path, input_size: int) -> None:
    """Sound weights of another version are named with what they want and what there is."""
    config = ForecasterConfig(input_size, 8)
    path = saved(tmp_path / "other.safetensors", config)
    if input_size == INPUT_SIZE:
        assert load_weights(settings(path)).config == config
        return
    with pytest.raises(ModelError, match=rf"other\.safetensors: found weights for {input_size} inputs"):
        load_weights(settings(path))


def test_weights_that_look_ahead_are_refused(tmp_path: Path) -> None:
    """At the start, with the file, the reason and what to do; not when the first reading comes."""
    path = saved(tmp_path / "both.safetensors", ForecasterConfig(INPUT_SIZE, 8, bidirectional=True))
    with pytest.raises(ModelError, match=r"both\.safetensors: found bidirectional.*cannot stream.*--offline-label"):
        load_weights(settings(path))


def test_a_state_for_which_there_is_no_memory_is_refused(tmp_path: Path) -> None:
    """Attention over thousands of hidden states, for millions of series: said with the sizes, no traceback."""
    config = ForecasterConfig(INPUT_SIZE, 1024, attention=MOST_ATTENTION)
    # 168 TB: more than a process can address, however much the kernel promises
    given = settings(saved(tmp_path / "wide.safetensors", config), "limits.max_series=10000000")
    with pytest.raises(ModelError, match=r"no memory for 10000000 series.*16781312 bytes.*limits\.max_series"):
        shard_from(given, load_weights(given), Registry(10, math.inf, math.inf))


@pytest.mark.parametrize("is_enabled", [True, False])
def test_what_home_assistant_is_told_is_no_sensor(is_enabled: bool) -> None:
    """Our configs, whichever instance's, and its birth, where we know it; what others publish stays what it is."""
    given = load(None, [f"home_assistant.enabled={is_enabled}", 'input.exclude=["lab/**"]'], {"HOME": "/"})
    decoder = decoder_from(given)
    assert decoder.is_wanted("homeassistant/status") != is_enabled
    for instance in ("default", "another"):
        assert not decoder.is_wanted(discovery.config_topic("homeassistant", instance, "plant/oven"))
    assert decoder.is_wanted("homeassistant/device/kitchen/config")
    assert decoder.is_wanted("homeassistant/sensor/x/state")
    assert not decoder.is_wanted("lab/x")


def test_devices_are_called_what_the_rules_say() -> None:
    """As the engine calls them; and the globs are on those names."""
    rules = '[{pattern="plant/{line}/{device}/{metric...}", device="{line}/{device}"}]'
    given = load(None, [f"input.rules={rules}", 'home_assistant.include=["a/*"]'], {"HOME": "/"})
    device_of, is_included = device_of_from(given), is_included_from(given)
    decoder = decoder_from(given)
    for key in ("plant/a/oven/temp/core", "plant/b/oven/temp#x", "kitchen#temp", "telegraf/x#cpu,host=a.usage"):
        assert device_of(key) == decoder.device(key)
    assert device_of("plant/a/oven/temp/core") == "a/oven"
    assert [is_included(name) for name in ("a/oven", "b/oven", "a/oven/x")] == [True, False, False]
    assert is_included_from(load(None, [], {"HOME": "/"}))("anything")


def test_a_person_is_told_where_the_model_steps(tmp_path: Path) -> None:
    """On the CPU without a word on why; where CUDA is asked for and not there, what to do."""
    assert step_told(settings(weights.BASE)) == "cpu"
    if cuda_is_available():
        assert step_told(settings(weights.BASE, "model.device=cuda")) == "cuda, by the kernel"
        other = saved(tmp_path / "gru.safetensors", ForecasterConfig(INPUT_SIZE, 16, cell="gru"))
        assert "by torch; the kernel does not serve: it has the LSTM only" in step_told(
            settings(other, "model.device=auto")
        )
        return
    assert step_told(settings(weights.BASE, "model.device=auto")) == "cpu"
    with pytest.raises(ModelError, match=r"model\.device: found no CUDA device.*or cpu, or auto"):
        step_told(settings(weights.BASE, "model.device=cuda"))
