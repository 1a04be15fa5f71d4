"""What decides a set of pre-trained weights, and its switches on a command line; imports neither numpy nor torch."""

from __future__ import annotations

import argparse
import math
import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from models.weights import ForecasterConfig

DEVICES = ("auto", "cpu", "cuda")
FIRST_SCORED = 8  # readings before the loss counts


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that decides the weights."""

    seed: int = field(default=1, metadata={"help": "of all randomness"})
    rounds: int = field(default=260, metadata={"help": "how many times fresh series are made and trained on"})
    series: int = field(default=512, metadata={"help": "synthetic series in a round"})
    steps: int = field(default=4096, metadata={"help": "readings in a series"})
    chunk: int = field(default=128, metadata={"help": "readings that the gradient is followed back through"})
    hidden_size: int = field(default=64, metadata={"help": "units of a recurrent layer"})
    num_layers: int = field(default=1, metadata={"help": "recurrent layers, one above the other"})
    dropout: float = field(default=0.0, metadata={"help": "share of what goes from layer to layer that is left out"})
    learning_rate: float = field(default=3e-3, metadata={"help": "of AdamW, at its highest"})
    final_learning_rate: float = field(default=5e-5, metadata={"help": "where the cosine ends"})
    warm_up_updates: int = field(default=200, metadata={"help": "updates until the highest learning rate"})
    weight_decay: float = field(default=1e-4, metadata={"help": "of AdamW"})
    average: float = field(
        default=0.998, metadata={"help": "how much of the running mean of the weights each update keeps"}
    )
    threads: int = field(default=1, metadata={"help": "of torch, on the CPU"})
    cell: str = field(
        default="lstm",
        metadata={
            "help": "lstm, peephole, coupled, gru, or a variant of Greff's: nig, nfg, nog, niaf, noaf, cifg, fgr"
        },
    )
    residual: bool = field(default=False, metadata={"help": "each layer from the second on adds to the one below"})
    attention: int = field(default=0, metadata={"help": "how many of the last hidden states the head reads; 0: none"})
    bidirectional: bool = field(
        default=False, metadata={"help": "read the series from its end too: for labelling history, refused in a stream"}
    )
    head_rate: float = field(
        default=1.0, metadata={"help": "learning rate of read-out and head, as a multiple of the recurrent layers'"}
    )

    def config(self) -> ForecasterConfig:
        """The forecaster that is trained."""
        from models.features import INPUT_SIZE
        from models.weights import ForecasterConfig

        return ForecasterConfig(
            INPUT_SIZE,
            self.hidden_size,
            self.num_layers,
            self.dropout,
            self.cell,
            self.residual,
            self.attention,
            self.bidirectional,
        )

    def fault(self) -> str | None:
        """What the recipe should have been, None if it can be trained."""
        from models.weights import fault

        if min(self.rounds, self.series, self.chunk, self.threads) < 1 or self.steps <= FIRST_SCORED:
            return f"1 or more rounds, series, readings in a chunk and threads, and more than {FIRST_SCORED} steps"
        if min(self.seed, self.warm_up_updates) < 0:
            return "a seed and a number of warm-up updates of 0 or more"
        rates = (self.learning_rate, self.final_learning_rate, self.weight_decay, self.head_rate)
        if not all(0 <= rate < math.inf for rate in rates) or not 0 <= self.average < 1:
            return "rates and a weight decay of 0 or more, and an average from 0 to below 1"
        return fault(self.config())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The recipe's switches and `--device`; a default is said in each sentence."""
    for each in fields(Recipe):
        name, sentence = f"--{each.name.replace('_', '-')}", each.metadata["help"]
        if isinstance(each.default, bool):
            parser.add_argument(name, action="store_true", help=sentence)
        else:
            parser.add_argument(
                name,
                type=type(each.default),
                default=each.default,
                metavar="X",
                help=f"{sentence} (default: {each.default})",
            )
    parser.add_argument(
        "--device", choices=DEVICES, default="auto", metavar="WHERE",
        help="cpu, cuda or auto: where it trains; auto (default) takes CUDA where there is one",
    )  # fmt: skip
    parser.add_argument(
        "--checkpoint", type=Path, metavar="FILE",
        help="written after each round, taken up again if it exists; without it one beside OUT, deleted at the end",
    )  # fmt: skip


def from_arguments(arguments: argparse.Namespace) -> Recipe:
    """The recipe that the switches say."""
    return Recipe(**{each.name: getattr(arguments, each.name) for each in fields(Recipe)})


def checkpoint_beside(out: Path) -> Path:
    """Where a run that names no checkpoint keeps it."""
    return out.with_suffix(".checkpoint.safetensors")


def check(recipe: Recipe, *files: Path) -> None:
    """Raises WeightsError for what a run would only fail at after an hour: recipe, and the files it writes."""
    from models.weights import WeightsError, manifest_path

    wanted = recipe.fault()
    if wanted:
        raise WeightsError(f"found {recipe}; expected {wanted}")
    for file in files:
        manifest_path(file)
        if not file.parent.is_dir() or not os.access(file.parent, os.W_OK | os.X_OK) or file.is_dir():
            raise WeightsError(f"{file}: cannot be written; expected a file's name, in a directory that is writable")
