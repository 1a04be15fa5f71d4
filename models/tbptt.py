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


def step_losses(
    model: Forecaster, part: Sequences, state: State | None, *, mixed: torch.dtype | None
) -> tuple[Tensor, State]:
    """The log-loss of each step `(batch, time)`, and the state after the last.

    `mixed`: what the layers compute in, the loss as ever; None: all is as it is.
    """
    with torch.autocast(part.inputs.device.type, mixed or torch.bfloat16, enabled=mixed is not None):
        head, state = model(part.inputs, state)
    return log_loss(head.to(part.y.dtype), part.previous, part.step, part.y), state


def masked_loss(
    model: Forecaster, part: Sequences, state: State | None, *, mixed: torch.dtype | None = None
) -> tuple[Tensor, State]:
    """Mean log-loss over the masked steps of one chunk, and the state after it."""
    losses, state = step_losses(model, part, state, mixed=mixed)
    weight = part.mask.to(losses.dtype)
    return (losses * weight).sum() / weight.sum().clamp(min=1.0), state


@torch.no_grad()
def carried_losses(model: Forecaster, sequences: Sequences, length: int, *, mixed: torch.dtype | None = None) -> Tensor:
    """The log-loss of each step `(batch, time)`, masked or not, the state carried from chunk to chunk."""
    state: State | None = None
    losses = []
    for part in chunks(sequences, length):
        found, state = step_losses(model, part, state, mixed=mixed)
        losses.append(found)
    return torch.cat(losses, dim=1)


def parameter_groups(model: Forecaster, head_rate: float = 1.0, input_rate: float = 1.0) -> list[dict[str, object]]:
    """For torch.optim: the input layer, the recurrent layers, and read-out and head, in this order.

    `rate` is a multiple of the learning rate. The input layer is what the first layer makes of the inputs. Where it
    learns as the recurrent layers do it is one group with them, in the order of `model.parameters()`: so the state of
    an optimizer of an earlier version fits.
    """
    stacks = [stack for stack in (model.lstm, model.reverse) if stack is not None]
    recurrent = [parameter for stack in stacks for parameter in stack.parameters()]
    read_out = list(model.parameters())[len(recurrent) :]
    groups: list[dict[str, object]] = [{"params": read_out, "rate": head_rate}]
    if input_rate == 1.0:
        return [{"params": recurrent, "rate": 1.0}, *groups]
    first = [stack.layers[0].get_parameter("weight_ih_l0") for stack in stacks]
    others = [parameter for parameter in recurrent if all(parameter is not each for each in first)]
    return [{"params": first, "rate": input_rate}, {"params": others, "rate": 1.0}, *groups]


def train_pass(
    model: Forecaster,
    sequences: Sequences,
    *,
    length: int,
    optimizer: torch.optim.Optimizer,
    clip: float = 1.0,
    mixed: torch.dtype | None = None,
    scaler: torch.amp.GradScaler | None = None,
    after_update: Callable[[float], None] = lambda _: None,
) -> float:
    """Runs once over the sequences, one update a chunk; returns the mean loss of the chunks.

    A chunk of which nothing counts moves the state on and nothing else. `scaler`: what keeps the small gradients of
    float16 from vanishing, and leaves out the update of a chunk whose gradients are too large for it.
    """
    scaler = scaler or torch.amp.GradScaler(enabled=False)
    state: State | None = None
    total, count = 0.0, 0
    for part in chunks(sequences, length):
        if state is not None:
            state = tuple(part.detach() for part in state)
        if not part.mask.any():
            with torch.no_grad():
                _, state = step_losses(model, part, state, mixed=mixed)
            continue
        loss, state = masked_loss(model, part, state, mixed=mixed)
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]  # torch's own stub
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        scaler.step(optimizer)
        scaler.update()
        total, count = total + float(loss.detach()), count + 1
        after_update(total / count)
    return total / max(count, 1)
