"""Makes the base weights from synthetic series only: `streamer train --pretrain OUT.safetensors`.

Each round makes fresh series, runs them through `features` as the daemon would, and trains over them by truncated BPTT
with carried state. Seeded: round r draws from the r-th child of the seed, so a run that is taken up again from its
checkpoint goes on as if it had not stopped. Same seed, same machine, same threads: same weights; on CUDA to rounding.
Series and their inputs are made on the CPU, by the code that serves; the network is trained where `device` says.

A finished run's checkpoint gives its weights again: the same command trains no more, it measures and writes.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from models import history, mixture, synthetic, tbptt, weights
from models import recipe as recipes
from models.forecaster import Forecaster
from models.recipe import FIRST_SCORED, Recipe

Report = Callable[[dict[str, float]], None]


def sequences(rng: np.random.Generator, count: int, steps: int, *, bidirectional: bool = False) -> tbptt.Sequences:
    """Synthetic series as training sequences, by the very code that serves."""
    series = synthetic.generate(rng, count, steps)
    return encode(series.time, series.value, bidirectional=bidirectional)


def encode(times: synthetic.Float64, values: synthetic.Float64, *, bidirectional: bool = False) -> tbptt.Sequences:
    """Training sequences of series `(count, steps)`, all of one length.

    Bidirectional, the inputs of each reading are followed by what all later readings say of it; see `history`.
    """
    count, steps = values.shape
    whole = history.History(times.ravel(), values.ravel(), np.full(count, steps))
    past = history.past(whole)
    inputs = np.concatenate((past.inputs, history.future(whole, past)), axis=1) if bidirectional else past.inputs
    mask = np.zeros((count, steps), bool)
    mask[:, FIRST_SCORED:] = True
    parts = (inputs.reshape(count, steps, -1), *(part.reshape(count, steps) for part in past[1:4]), mask)
    return tbptt.Sequences(*(torch.from_numpy(part) for part in parts))


def learning_rate(recipe: Recipe, update: int, updates: int) -> float:
    """Linear warm-up, then a cosine down to the final rate."""
    if update < recipe.warm_up_updates:
        return recipe.learning_rate * (update + 1) / recipe.warm_up_updates
    share = (update - recipe.warm_up_updates) / max(updates - recipe.warm_up_updates, 1)
    low = recipe.final_learning_rate
    return low + 0.5 * (recipe.learning_rate - low) * (1 + math.cos(math.pi * min(share, 1.0)))


class Pretraining:
    """One run: the model, its optimizer, the running average of its weights, and how far it has come."""

    def __init__(self, recipe: Recipe, device: str = "cpu") -> None:
        torch.manual_seed(recipe.seed)
        torch.set_num_threads(recipe.threads)
        self.recipe = recipe
        self.device = device
        self.model = Forecaster(recipe.config()).to(device)
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
            batch = sequences(rng, recipe.series, recipe.steps, bidirectional=recipe.bidirectional).to(self.device)
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
        tensors = {name: value.cpu().numpy().copy() for name, value in self.average.items()}
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
    def resume(cls, path: Path, device: str = "cpu") -> Pretraining:
        """Takes a run up again where its checkpoint left it, also one that was made before some switch was there.

        Raises WeightsError for a file that is no checkpoint, or whose recipe has a switch that is not known here.
        """
        try:
            with safe_open(path, "pt") as file:
                progress = json.loads(file.metadata()["progress"])
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise weights.WeightsError(
                f"{path}: found no checkpoint of a pre-training ({error}); expected one, or a name that is free"
            ) from error
        unknown = sorted(progress["recipe"].keys() - {field.name for field in fields(Recipe)})
        if unknown:
            raise weights.WeightsError(f"{path}: is of another version, whose recipe has {', '.join(unknown)}")
        tensors = load_file(path)
        run = cls(Recipe(**progress["recipe"]), device)
        run.round, run.update, run.losses = progress["round"], progress["update"], progress["losses"]
        run.model.load_state_dict(_under("model.", tensors))
        run.average = {name: value.to(device) for name, value in _under("average.", tensors).items()}
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
    untrained, _ = tbptt.masked_loss(Forecaster(model.config).to(batch.y.device), batch, None)
    head, _ = model(batch.inputs)
    flat = batch.mask
    head, previous, step, y = (part[flat].cpu().numpy() for part in (head, batch.previous, batch.step, batch.y))
    median = mixture.quantiles(mixture.unpack(head, previous, step))[:, 1]
    return {
        "log_loss": float(loss),
        "log_loss_untrained": float(untrained),
        "mean_absolute_error": float(np.abs(y - median).mean()),
        "mean_absolute_error_last_value": float(np.abs(y - previous).mean()),
    }


def device_from(wanted: str) -> str:
    """cpu or cuda, for auto what there is. Raises WeightsError."""
    has_cuda = wanted != "cpu" and torch.cuda.is_available()
    if wanted == "cuda" and not has_cuda:
        raise weights.WeightsError("--device: found no CUDA device that torch can use; expected one, or cpu, or auto")
    return "cuda" if has_cuda else "cpu"


def pretrain(
    recipe: Recipe, out: Path, say: Callable[[str], None], *, checkpoint: Path | None = None, device: str = "auto"
) -> dict[str, object]:
    """Trains, or goes on from the checkpoint, measures and writes; gives the figures. `say` hears of each round.

    The checkpoint is written after each round, so that a run that ends early loses one round at most. One that is not
    named lies beside the weights, and goes when they are written. Raises WeightsError for what a person can mend.
    """
    kept = checkpoint or recipes.checkpoint_beside(out)
    recipes.check(recipe, out, kept)
    where = device_from(device)
    run = Pretraining.resume(kept, where) if kept.exists() else Pretraining(recipe, where)
    if run.recipe != recipe:
        raise weights.WeightsError(
            f"{kept}: is of another recipe, {run.recipe}: name that one, or another checkpoint with --checkpoint"
        )
    if run.round:
        say(f"goes on from {kept}, after round {run.round}, on {where}")

    def report(figures: dict[str, float]) -> None:
        left = (run.recipe.rounds - run.round) * figures["seconds"]
        say(
            f"round {run.round}/{run.recipe.rounds} loss {figures['loss']:.4f} {figures['series_steps'] / 1e6:.0f} M "
            f"series-steps, {figures['seconds']:.1f} s on {where}, about {left / 60:.0f} min left"
        )

    run.run(report, kept)
    run.model.load_state_dict(run.average)
    run.model.eval()
    held_out = sequences(
        np.random.default_rng([recipe.seed, 2**31]), 256, recipe.steps, bidirectional=recipe.bidirectional
    )
    figures = evaluate(run.model, held_out.to(where))
    made = weights.save(run.result({"held_out": figures}), out)
    if checkpoint is None:
        kept.unlink()
    return {"weights": str(out), "sha256": made.sha256, "device": where, "updates": run.update, **figures}


def main(arguments: list[str] | None = None) -> int:
    """The same from a module's command line, figures as JSON; `streamer train --pretrain` is for people."""
    parser = argparse.ArgumentParser(prog="python -m models.pretrain", description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="the weights to write; a .json manifest goes beside them")
    recipes.add_arguments(parser)
    given = parser.parse_args(arguments)
    try:
        figures = pretrain(
            recipes.from_arguments(given), given.out, _to_stderr, checkpoint=given.checkpoint, device=given.device
        )
    except weights.WeightsError as error:
        parser.error(str(error))
    sys.stdout.write(json.dumps(figures, indent=2) + "\n")
    return 0


def _to_stderr(line: str) -> None:
    sys.stderr.write(line + "\n")


if __name__ == "__main__":
    sys.exit(main())
