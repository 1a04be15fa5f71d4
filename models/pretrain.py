"""Makes the base weights from synthetic series only: `python -m models.pretrain OUT.safetensors`.

Each round makes fresh series, runs them through `features` as the daemon would, and trains over them by truncated BPTT
with carried state. Seeded: round r draws from the r-th child of the seed, so a run that is taken up again from its
checkpoint goes on as if it had not stopped. Same seed, same machine, same threads: same weights.

A finished run's checkpoint gives its weights again: the same command trains no more, it measures and writes.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from models import cells, features, mixture, synthetic, tbptt, weights
from models.forecaster import Forecaster

FIRST_SCORED = 8  # readings before the loss counts
CHOICES = {"cell": cells.CELLS}
Report = Callable[[dict[str, float]], None]


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that decides the weights."""

    seed: int = 1
    rounds: int = 260
    series: int = 512
    steps: int = 4096
    chunk: int = 128
    hidden_size: int = 64
    num_layers: int = 1
    dropout: float = 0.0
    learning_rate: float = 3e-3
    final_learning_rate: float = 5e-5
    warm_up_updates: int = 200
    weight_decay: float = 1e-4
    average: float = 0.998
    threads: int = 1
    cell: str = "lstm"
    residual: bool = False
    attention: int = 0
    bidirectional: bool = False
    head_rate: float = 1.0
    """the learning rate of read-out and head, as a multiple of that of the recurrent layers"""

    def config(self) -> weights.ForecasterConfig:
        """The forecaster that is trained."""
        return weights.ForecasterConfig(
            features.INPUT_SIZE,
            self.hidden_size,
            self.num_layers,
            self.dropout,
            self.cell,
            self.residual,
            self.attention,
            self.bidirectional,
        )


def sequences(rng: np.random.Generator, count: int, steps: int, *, bidirectional: bool = False) -> tbptt.Sequences:
    """Synthetic series as training sequences, by the very code that serves."""
    series = synthetic.generate(rng, count, steps)
    return encode(series.time, series.value, bidirectional=bidirectional)


def encode(times: synthetic.Float64, values: synthetic.Float64, *, bidirectional: bool = False) -> tbptt.Sequences:
    """Training sequences of series `(count, steps)`, all of one length.

    Bidirectional, the inputs of each reading are followed by those that the same series has when it is read from its
    end, in time that runs backwards: what all later readings say of it, and nothing that it says itself.
    """
    count, steps = values.shape
    statistics = features.Statistics.allocate(count)
    slots, normal = np.arange(count), np.ones(count, bool)
    inputs = np.empty((count, steps, features.INPUT_SIZE), np.float32)
    previous, step, y = (np.empty((count, steps), np.float32) for _ in range(3))
    following = np.zeros((count, steps), np.float32)
    for t in range(steps):
        look = features.look(statistics, slots, times[:, t])
        inputs[:, t], previous[:, t], step[:, t] = look.inputs, look.previous, look.step
        y[:, t] = features.to_y(values[:, t], look.location, look.scale)
        if t + 1 < steps:
            following[:, t] = features.to_y(values[:, t + 1], look.location, look.scale)
        features.learn(statistics, slots, times[:, t], values[:, t], normal)
    if bidirectional:
        back = encode(-times[:, ::-1], values[:, ::-1]).inputs.numpy()[:, ::-1].copy()
        # Each direction has its own location and scale. The reading that follows is told in the terms of the forecast.
        back[:, :-1, features.INPUTS.index("previous")] = np.arcsinh((following - previous) / step)[:, :-1]
        inputs = np.concatenate((inputs, back), axis=2)
    mask = np.zeros((count, steps), bool)
    mask[:, FIRST_SCORED:] = True
    return tbptt.Sequences(*(torch.from_numpy(array) for array in (inputs, previous, step, y, mask)))


def learning_rate(recipe: Recipe, update: int, updates: int) -> float:
    """Linear warm-up, then a cosine down to the final rate."""
    if update < recipe.warm_up_updates:
        return recipe.learning_rate * (update + 1) / recipe.warm_up_updates
    share = (update - recipe.warm_up_updates) / max(updates - recipe.warm_up_updates, 1)
    low = recipe.final_learning_rate
    return low + 0.5 * (recipe.learning_rate - low) * (1 + math.cos(math.pi * min(share, 1.0)))


class Pretraining:
    """One run: the model, its optimizer, the running average of its weights, and how far it has come."""

    def __init__(self, recipe: Recipe) -> None:
        torch.manual_seed(recipe.seed)
        torch.set_num_threads(recipe.threads)
        self.recipe = recipe
        self.model = Forecaster(recipe.config())
        self.average = {name: value.clone() for name, value in self.model.state_dict().items()}
        groups = tbptt.parameter_groups(self.model, recipe.head_rate)
        self.optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
        self.round = 0
        self.update = 0
        self.losses: list[float] = []

    @property
    def updates(self) -> int:
        return self.recipe.rounds * math.ceil(self.recipe.steps / self.recipe.chunk)

    def run(self, report: Report, checkpoint: Path | None = None) -> None:
        """Trains to the end of the recipe; after each round writes the checkpoint and reports."""
        while self.round < self.recipe.rounds:
            started = time.monotonic()
            rng = np.random.default_rng([self.recipe.seed, self.round])
            # Dropout draws from torch's own generator: a round that is taken up again must draw the same.
            torch.manual_seed(int(np.random.SeedSequence([self.recipe.seed, self.round]).generate_state(1)[0]))
            recipe = self.recipe
            batch = sequences(rng, recipe.series, recipe.steps, bidirectional=recipe.bidirectional)
            self._set_rate()
            loss = tbptt.train_pass(
                self.model, batch, length=self.recipe.chunk, optimizer=self.optimizer, after_update=self._updated
            )
            self.losses.append(loss)
            self.round += 1
            if checkpoint is not None:
                self.save_checkpoint(checkpoint)
            seconds = time.monotonic() - started
            done = float(self.round * self.recipe.series * self.recipe.steps)
            report({"round": self.round, "loss": loss, "seconds": seconds, "series_steps": done})

    def _updated(self, _loss: float) -> None:
        self.update += 1
        keep = min(self.recipe.average, self.update / (self.update + 10))
        with torch.no_grad():
            for name, value in self.model.state_dict().items():
                self.average[name].lerp_(value, 1 - keep)
        self._set_rate()

    def _set_rate(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = group["rate"] * learning_rate(self.recipe, self.update, self.updates)

    def result(self, figures: dict[str, object]) -> weights.Weights:
        """The averaged weights with their recipe."""
        recipe: dict[str, object] = {**asdict(self.recipe), "updates": self.update, "losses": self.losses, **figures}
        tensors = {name: value.numpy().copy() for name, value in self.average.items()}
        return weights.Weights(self.model.config, tensors, recipe)

    def save_checkpoint(self, path: Path) -> None:
        """Everything needed to go on, in one safetensors file."""
        tensors: dict[str, Tensor] = {}
        for name, value in self.model.state_dict().items():
            tensors[f"model.{name}"] = value
            tensors[f"average.{name}"] = self.average[name]
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"adam.{index}.{name}": value for name, value in state.items()}
        progress = {"recipe": asdict(self.recipe), "round": self.round, "update": self.update, "losses": self.losses}
        temporary = path.with_name(path.name + ".part")
        save_file(tensors, temporary, {"progress": json.dumps(progress)})
        temporary.replace(path)

    @classmethod
    def resume(cls, path: Path) -> Pretraining:
        """Takes a run up again where its checkpoint left it, also one that was made before some switch was there.

        Raises WeightsError for a recipe with a switch that is not known here.
        """
        with safe_open(path, "pt") as file:
            progress = json.loads(file.metadata()["progress"])
        unknown = sorted(progress["recipe"].keys() - {field.name for field in fields(Recipe)})
        if unknown:
            raise weights.WeightsError(f"{path}: is of another version, whose recipe has {', '.join(unknown)}")
        tensors = load_file(path)
        run = cls(Recipe(**progress["recipe"]))
        run.round, run.update, run.losses = progress["round"], progress["update"], progress["losses"]
        run.model.load_state_dict(_under("model.", tensors))
        run.average = _under("average.", tensors)
        state = run.optimizer.state_dict()
        moments = _under("adam.", tensors)
        indices = {int(name.partition(".")[0]) for name in moments}
        state["state"] = {index: _under(f"{index}.", moments) for index in indices}
        run.optimizer.load_state_dict(state)
        return run


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}


@torch.no_grad()
def evaluate(model: Forecaster, batch: tbptt.Sequences) -> dict[str, float]:
    """Held-out figures: log-loss a reading, the untrained head's, mean absolute error in y, the last value's."""
    loss, _ = tbptt.masked_loss(model, batch, None)
    untrained, _ = tbptt.masked_loss(Forecaster(model.config), batch, None)
    head, _ = model(batch.inputs)
    flat = batch.mask
    forecast = mixture.unpack(head[flat].numpy(), batch.previous[flat].numpy(), batch.step[flat].numpy())
    median = mixture.quantiles(forecast)[:, 1]
    y = batch.y[flat].numpy()
    return {
        "log_loss": float(loss),
        "log_loss_untrained": float(untrained),
        "mean_absolute_error": float(np.abs(y - median).mean()),
        "mean_absolute_error_last_value": float(np.abs(y - batch.previous[flat].numpy()).mean()),
    }


def main(arguments: list[str] | None = None) -> int:
    """The command line: a recipe's switches, progress to stderr, the held-out figures to stdout."""
    parser = argparse.ArgumentParser(prog="python -m models.pretrain", description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="the weights to write; a .json manifest goes beside them")
    parser.add_argument("--checkpoint", type=Path, help="written after each round; taken up again if it exists")
    default = Recipe()
    for field in fields(Recipe):
        name, value = f"--{field.name.replace('_', '-')}", getattr(default, field.name)
        if isinstance(value, bool):
            parser.add_argument(name, action="store_true")
        else:
            parser.add_argument(name, type=type(value), default=value, choices=CHOICES.get(field.name))
    options = vars(parser.parse_args(arguments))
    out, checkpoint = options.pop("out"), options.pop("checkpoint")
    recipe = Recipe(**options)
    try:
        weights.manifest_path(out)
        wanted = weights.fault(recipe.config())
        if wanted:
            parser.error(f"found {recipe}; expected {wanted}")
        resumes = checkpoint is not None and checkpoint.exists()
        run = Pretraining.resume(checkpoint) if resumes else Pretraining(recipe)
    except weights.WeightsError as error:
        parser.error(str(error))
    if run.recipe != recipe:
        parser.error(f"{checkpoint} is of another recipe, {run.recipe}: name that one, or another checkpoint")

    def report(figures: dict[str, float]) -> None:
        left = (run.recipe.rounds - run.round) * figures["seconds"]
        sys.stderr.write(
            f"round {run.round}/{run.recipe.rounds} loss {figures['loss']:.4f} {figures['series_steps'] / 1e6:.0f} M "
            f"series-steps, {figures['seconds']:.1f} s, about {left / 60:.0f} min left\n"
        )

    run.run(report, checkpoint)
    run.model.load_state_dict(run.average)
    run.model.eval()
    held_out = np.random.default_rng([recipe.seed, 2**31])
    figures = evaluate(run.model, sequences(held_out, 256, recipe.steps, bidirectional=recipe.bidirectional))
    weights.save(run.result({"held_out": figures}), out)
    sys.stdout.write(json.dumps(figures, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
