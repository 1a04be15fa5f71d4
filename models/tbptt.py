"""Truncated backpropagation through time: (h, c) is carried from chunk to chunk and detached, the loss is masked.

Williams & Peng 1990. With one chunk as long as the sequence the gradient is that of full backpropagation. It is clipped
by its norm (Pascanu et al. 2013): what explodes is cut, what vanishes is the cells' business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from models.forecaster import Forecaster, log_loss
from models.recurrent import State


class Sequences(NamedTuple):
    """Training sequences, all `(batch, time)` but the inputs."""

    inputs: Tensor
    """(batch, time, input_size)"""
    previous: Tensor
    step: Tensor
    y: Tensor
    mask: Tensor
    """True where the reading counts: not padding, not warm-up, not marked"""

    def chunk(self, start: int, stop: int) -> Sequences:
        return Sequences(*(part[:, start:stop] for part in self))

    def to(self, device: str) -> Sequences:
        return Sequences(*(part.to(device) for part in self))


def chunks(sequences: Sequences, length: int) -> Iterator[Sequences]:
    """Consecutive pieces of at most `length` steps."""
    for start in range(0, sequences.y.shape[1], length):
        yield sequences.chunk(start, start + length)


def masked_loss(model: Forecaster, part: Sequences, state: State | None) -> tuple[Tensor, State]:
    """Mean log-loss over the masked steps of one chunk, and the state after it."""
    head, state = model(part.inputs, state)
    losses = log_loss(head, part.previous, part.step, part.y)
    weight = part.mask.to(losses.dtype)
    return (losses * weight).sum() / weight.sum().clamp(min=1.0), state


def parameter_groups(model: Forecaster, head_rate: float = 1.0) -> list[dict[str, object]]:
    """For torch.optim: the recurrent layers, and read-out and head; `rate` is a multiple of the learning rate.

    In the order of `model.parameters()`, so that an optimizer's state fits whatever the rate.
    """
    stacks = [stack for stack in (model.lstm, model.reverse) if stack is not None]
    recurrent = [parameter for stack in stacks for parameter in stack.parameters()]
    read_out = list(model.parameters())[len(recurrent) :]
    return [{"params": recurrent, "rate": 1.0}, {"params": read_out, "rate": head_rate}]


def train_pass(
    model: Forecaster,
    sequences: Sequences,
    *,
    length: int,
    optimizer: torch.optim.Optimizer,
    clip: float = 1.0,
    after_update: Callable[[float], None] = lambda _: None,
) -> float:
    """Runs once over the sequences, one update a chunk; returns the mean loss of the chunks."""
    state: State | None = None
    total, count = 0.0, 0
    for part in chunks(sequences, length):
        if state is not None:
            state = tuple(part.detach() for part in state)
        loss, state = masked_loss(model, part, state)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch's own stub
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        total, count = total + float(loss.detach()), count + 1
        after_update(total / count)
    return total / max(count, 1)
