"""The comparison of `python -m tests.from_scratch`: what is fed to it, and that training there learns."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models import pretrain, tbptt
from models.forecaster import Forecaster
from models.weights import ForecasterConfig
from streamer.bench.quality.recordings import Recording
from tests.from_scratch import SEGMENTS, increasing, losses, segments, train
from tests.streams import START, noise


def past(readings: int) -> tbptt.Sequences:
    time = START + 60.0 * np.arange(readings, dtype=np.float64)
    return pretrain.encode(time[None], noise(readings)[None])


def test_late_and_doubled_readings_are_left_out() -> None:
    """As the detector does not step them."""
    time = np.array([0.0, 60.0, 60.0, 30.0, 120.0])
    values = np.array([[1.0], [2.0], [3.0], [4.0], [5.0]], np.float32)
    ((kept, value),) = increasing(Recording("SET/a", time, values, np.empty((0, 2), np.int64), 0))
    assert kept.tolist() == [0.0, 60.0, 120.0]
    assert value.tolist() == [1.0, 2.0, 5.0]


@pytest.mark.parametrize("shift", [0, 3])
def test_segments_are_the_past_in_order(shift: int) -> None:
    """Side by side and without holes, but for what the division leaves over."""
    whole = past(100)
    parts = segments(whole, shift)
    assert parts.y.shape[0] == SEGMENTS
    torch.testing.assert_close(parts.y.flatten(), whole.y[0, shift : shift + parts.y.numel()])


def test_training_learns_the_series() -> None:
    """A hundred updates on noise that the untrained network takes for a walk."""
    series = past(600)
    config = ForecasterConfig(series.inputs.shape[2], 8)
    before = losses(Forecaster(config), series)[500:].mean()
    model, seen = train(config, series, 3e-3, 100, held_out=100)
    assert losses(model, series)[500:].mean() < before - 0.2
    assert len(seen) == 3  # before, and after every fifty updates
