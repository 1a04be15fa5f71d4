"""The model card says what the manifest of the shipped weights says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import NamedTuple

import numpy as np
import pytest

from models import calibration, features, mixture, scorer, weights
from models.scorer_recipe import Recipe
from models.weights import BASE

CARD = " ".join(BASE.with_name("MODEL_CARD.md").read_text().split())  # without its line breaks


class Shipped(NamedTuple):
    """What the manifest holds, by kind."""

    numbers: Mapping[str, float]
    losses: list[float]
    held_out: Mapping[str, float]
    parameters: int


def floats(found: object) -> dict[str, float]:
    assert isinstance(found, dict)
    return {name: value for name, value in found.items() if isinstance(value, int | float)}


@pytest.fixture(scope="module")
def shipped() -> Shipped:
    base = weights.load()
    losses = base.recipe["losses"]
    assert isinstance(losses, list)
    parameters = sum(value.size for value in base.tensors.values())
    return Shipped(floats(base.recipe), losses, floats(base.recipe["held_out"]), parameters)


def test_the_recipe_is_the_one_that_was_run(shipped: Shipped) -> None:
    """Series, readings, chunk, rounds, updates, rates, seed and the command that repeats it."""
    recipe = shipped.numbers
    total = recipe["rounds"] * recipe["series"] * recipe["steps"] / 1e6
    for words in (
        f"draws {recipe['series']} fresh series of {recipe['steps']:,} readings",
        f"chunks of {recipe['chunk']} readings",
        f"{recipe['warm_up_updates']} updates of warm-up",
        f"averaged with {recipe['average']}",
        f"{recipe['rounds']} rounds, {recipe['updates']:,} updates, {total:.0f} million series-steps",
        f"series-steps, seed {recipe['seed']}",
        f"--series {recipe['series']} --rounds {recipe['rounds']}",
        "a cosine from 3e-3 to 5e-5",
    ):
        assert words in CARD
    assert (recipe["learning_rate"], recipe["final_learning_rate"]) == (3e-3, 5e-5)


def test_the_figures_are_those_of_the_manifest(shipped: Shipped) -> None:
    """Held-out figures and the course of the loss, to the digits shown."""
    figures = shipped.held_out
    assert f"| log-loss, nats a reading | {figures['log_loss']:.3f} | {figures['log_loss_untrained']:.3f}," in CARD
    error, last = figures["mean_absolute_error"], figures["mean_absolute_error_last_value"]
    assert f"| mean absolute error in y | {error:.3f} | {last:.3f}," in CARD
    spans = ((1, 10), (31, 40), (61, 70), (91, 100), (121, 130), (141, 150))
    assert spans[-1][1] == len(shipped.losses)
    names = ", ".join(f"{first}-{last}" for first, last in spans)
    means = ", ".join(f"{np.mean(shipped.losses[first - 1 : last]):.2f}" for first, last in spans)
    assert f"Mean loss of rounds {names}: {means} nats" in CARD


def test_the_network_is_the_one_that_ships(shipped: Shipped) -> None:
    """Units, inputs, parameters and components."""
    units = weights.load().config.hidden_size
    assert f"one LSTM layer of {units} units over {features.INPUT_SIZE} inputs" in CARD
    assert f"{shipped.parameters:,} parameters" in CARD
    assert (mixture.COMPONENTS, len(calibration.VIEWS)) == (3, 3)
    assert "a mixture of three logistic distributions" in CARD
    assert weights.load().config.num_layers == 1
    assert "Apache-2.0" in CARD


def test_the_scorer_is_the_one_that_ships() -> None:
    """Its network, lessons and recipe are those of the manifest and of the code."""
    shipped = scorer.shipped()
    recipe = floats(shipped.recipe)
    assert (shipped.config.input_size, shipped.config.num_layers) == (len(scorer.INPUTS), 1)
    parameters = sum(value.size for value in shipped.tensors.values())
    total = recipe["sets"] * recipe["series"] * recipe["steps"] / 1e6
    for words in (
        f"one LSTM layer of {shipped.config.hidden_size} units over {len(scorer.INPUTS)} inputs",
        f"{parameters:,} parameters",
        f"{recipe['sets']} sets of {recipe['series']:,} series of {recipe['steps']:,} readings, {total:.0f} million",
        f"chunks of {recipe['chunk']} readings, {recipe['batch']} series side by side",
        f"{recipe['updates']:,} updates, weights averaged with {recipe['average']}, seed {recipe['seed']}",
    ):
        assert words in CARD
    assert recipe == floats(asdict(Recipe()))
    assert (scorer.PER_SCORE, scorer.GRANTED) == (6.0, 1.0)
    assert "a sixth of which, and of one nat more, is added to the calibrated score" in CARD
