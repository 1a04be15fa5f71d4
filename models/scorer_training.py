"""Trains the scorer's network on lessons, by truncated BPTT with carried state; `streamer.lessons` makes them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from models import scorer
from models.recurrent import FORGET_BIAS
from models.scorer_recipe import Lessons, Recipe
from models.weights import ForecasterConfig, Weights

FIRST_BIAS = -4.0  # an odd reading is rare


class Network(nn.Module):
    """The LSTM and its head, which sees the inputs too."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(len(scorer.INPUTS), hidden_size)
        self.head = nn.Linear(hidden_size + len(scorer.INPUTS), 1)
        with torch.no_grad():
            for name in ("bias_ih_l0", "bias_hh_l0"):
                nn.init.zeros_(self.lstm.get_parameter(name))
            self.lstm.get_parameter("bias_ih_l0")[hidden_size : 2 * hidden_size] = FORGET_BIAS
            self.head.weight.mul_(0.3)
            self.head.bias.fill_(FIRST_BIAS)

    def forward(self, inputs: Tensor, state: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """The evidence `(time, batch)` of inputs `(time, batch, inputs)`, and (h, c) after them."""
        hidden, state = self.lstm(inputs, state)
        return self.head(torch.cat((hidden, inputs), dim=-1)).squeeze(-1), state


def train(recipe: Recipe, lessons: Lessons, say: Callable[[str], None]) -> Weights:
    """The weights, averaged over the updates. One thread."""
    torch.manual_seed(recipe.seed)
    torch.set_num_threads(1)
    rng = np.random.default_rng(recipe.seed)
    network = Network(recipe.hidden_size)
    average = {name: value.clone() for name, value in network.state_dict().items()}
    optimizer = torch.optim.AdamW(network.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    update, started, losses = 0, time.monotonic(), list[float]()
    while update < recipe.updates:
        rows = np.sort(rng.permutation(len(lessons.weight))[: recipe.batch])
        sign = torch.ones(len(rows), len(scorer.INPUTS))  # half of the series are turned upside down
        sign[:, scorer.SIGNED] = torch.from_numpy(rng.choice(np.array([-1, 1], np.float32), (len(rows), 1)))
        state = None
        for first in range(0, lessons.weight.shape[1], recipe.chunk):
            for group in optimizer.param_groups:
                group["lr"] = _learning_rate(recipe, update)
            inputs, is_odd, weight = (
                torch.from_numpy(part[rows, first : first + recipe.chunk]).float().transpose(0, 1) for part in lessons
            )
            evidence, state = network(inputs * sign, state)
            state = (state[0].detach(), state[1].detach())
            loss = functional.binary_cross_entropy_with_logits(evidence, is_odd, reduction="none")
            mean = (loss * weight).sum() / weight.sum().clamp(min=1)
            optimizer.zero_grad()
            mean.backward()  # type: ignore[no-untyped-call]  # torch's own
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            update += 1
            losses.append(mean.item())
            keep = min(recipe.average, update / (update + 10))
            with torch.no_grad():
                for name, value in network.state_dict().items():
                    average[name].lerp_(value, 1 - keep)
            if update % 500 == 0:
                say(f"{update}/{recipe.updates} loss {np.mean(losses[-500:]):.4f} {time.monotonic() - started:.0f} s")
    spans = [float(np.mean(losses[k : k + 500])) for k in range(0, len(losses), 500)]
    config = ForecasterConfig(len(scorer.INPUTS), recipe.hidden_size)
    tensors = {name: value.numpy().copy() for name, value in average.items()}
    return Weights(config, tensors, {**asdict(recipe), "losses": spans})


def _learning_rate(recipe: Recipe, update: int) -> float:
    """Linear warm-up within a cosine."""
    falling = 0.5 * (1 + math.cos(math.pi * min(update / recipe.updates, 1)))
    share = recipe.final_share + (1 - recipe.final_share) * falling
    return recipe.learning_rate * share * min(1.0, (update + 1) / recipe.warm_up_updates)
