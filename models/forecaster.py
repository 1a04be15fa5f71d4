"""The forecaster in torch, as it is trained: stacked recurrent layers, a read-out, a distribution head.

The head sees the inputs beside the hidden state: what is linear in them (the day's shape, the last difference) need not
pass through the gates. Serving on the CPU uses `step` and the same weights, and never imports this module.

A bidirectional forecaster (Graves & Schmidhuber 2005) has two stacks that meet only in the head, as in ELMo (Peters et
al. 2018): were they joined between the layers, the second layer would see the very reading that is to be judged. So
does each stack have its own inputs: the reading as seen from the past, and the same as seen from the future. The
reading that follows, in the terms of the forecast, goes to the head alone: those terms are made of the past, and in the
other stack each reading would come by that way to its own forecast.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from models import mixture
from models.recurrent import Recurrent, State, attend, without_padding
from models.weights import ForecasterConfig


class Forecaster(nn.Module):
    """Maps inputs `(batch, time, input_size)` and a state to the head's parameters `(batch, time, 9)`.

    Bidirectional, the inputs are `(batch, time, 2 input_size + 1)`: from the past, from the future, what follows.
    """

    def __init__(self, config: ForecasterConfig) -> None:
        super().__init__()
        self.config = config
        self.lstm = Recurrent(config)
        self.reverse = Recurrent(config) if config.bidirectional else None
        self.attention = Attention(config.hidden_size, config.attention) if config.attention else None
        self.head = nn.Linear(config.head_inputs, mixture.PARAMETERS)
        self._initialise()

    def _initialise(self) -> None:
        """The head says "about as the last value"; the rest as `recurrent` begins."""
        self.lstm.initialise()
        if self.reverse is not None:
            self.reverse.initialise()
        nn.init.zeros_(self.head.weight)
        with torch.no_grad():
            self.head.bias.copy_(torch.tensor([0.0, 0.0, 0.0, -0.3, 0.0, 0.3, -1.0, 0.0, 1.0]))

    def forward(
        self, inputs: Tensor, state: State | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """The head at every step, and the state after the last real one.

        `lengths` `(batch,)`, 1 to time: what lies behind is padding and changes nothing before it; None: no padding.
        The state is that of `recurrent`, with attention followed by the last hidden states `(batch, memory, hidden)`;
        None: no past. The stack from the other end begins anew at the end of the inputs.
        """
        inputs = without_padding(inputs, lengths)
        ahead, back, state = self.encode(inputs, state, lengths)
        return self.head(torch.cat((ahead, inputs) if back is None else (ahead, back, inputs), dim=-1)), state

    def encode(
        self, inputs: Tensor, state: State | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None, State]:
        """What the network makes of the inputs from the past, from the future (None: it does not look), the state."""
        past = inputs[..., : self.config.input_size]
        memory = None if state is None or self.attention is None else state[-1]
        recurrent = state if state is None or self.attention is None else state[:-1]
        ahead, after = self.lstm(past, recurrent, lengths)
        if self.attention is not None:
            ahead, memory = self.attention(ahead, memory, lengths)
            after = (*after, memory)
        if self.reverse is None:
            return ahead, None, after
        order = _from_the_end(inputs, lengths)
        future = inputs[..., self.config.input_size : 2 * self.config.input_size]
        back, _ = self.reverse(_take(future, order), None, lengths)
        return ahead, _take(back, order), after


class Attention(nn.Module):
    """Read-out over the last `count` hidden states (Luong et al. 2015, "general"): causal, so that it can stream."""

    def __init__(self, hidden_size: int, count: int) -> None:
        super().__init__()
        self.count = count
        self.weight = nn.Parameter(torch.eye(hidden_size))  # it begins by looking for what resembles the present

    def forward(self, hidden: Tensor, memory: Tensor | None, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        """`hidden` `(batch, time, hidden_size)` with what is read beside it, and the memory for the next piece."""
        if memory is None:
            memory = hidden.new_zeros(hidden.shape[0], self.count - 1, hidden.shape[2])
        read, after = attend(self.weight, hidden, memory)
        if lengths is not None:
            rows = lengths.unsqueeze(1) + torch.arange(self.count - 1, device=hidden.device)
            after = _take(torch.cat((memory, hidden), dim=1), rows)
        return read, after


class ManyToOne(nn.Module):
    """A second head on a forecaster's network: one vector `(batch, output_size)` for a whole sequence.

    It sees the last real step from the past and, bidirectional, the first from the future: there each has seen it all.
    """

    def __init__(self, body: Forecaster, output_size: int) -> None:
        super().__init__()
        self.body = body
        config = body.config
        self.head = nn.Linear(config.head_inputs - config.width, output_size)

    def forward(self, inputs: Tensor, lengths: Tensor | None = None) -> Tensor:
        ahead, back, _ = self.body.encode(inputs, None, lengths)
        last = ahead[:, -1] if lengths is None else _take(ahead, lengths.unsqueeze(1) - 1)[:, 0]
        summary: Tensor = self.head(last if back is None else torch.cat((last, back[:, 0]), dim=-1))
        return summary


def _from_the_end(inputs: Tensor, lengths: Tensor | None) -> Tensor:
    """Step numbers `(batch, time)` that turn each sequence round and leave its padding; twice, they change nothing."""
    batch, time = inputs.shape[:2]
    steps = torch.arange(time, device=inputs.device).expand(batch, time)
    if lengths is None:
        return steps.flip(1)
    return torch.where(steps < lengths.unsqueeze(1), lengths.unsqueeze(1) - 1 - steps, steps)


def _take(sequences: Tensor, steps: Tensor) -> Tensor:
    """The steps `(batch, n)` of `(batch, time, size)`."""
    return sequences.gather(1, steps.unsqueeze(-1).expand(-1, -1, sequences.shape[-1]))


def log_loss(head: Tensor, previous: Tensor, step: Tensor, y: Tensor) -> Tensor:
    """Negative log-likelihood of `y` in nats, one a reading, bounded; all shapes but the head's are that of `y`."""
    logits, shift, spread = head.chunk(3, dim=-1)
    shift = torch.sinh(shift.clamp(-mixture.SHIFT_LIMIT, mixture.SHIFT_LIMIT))
    location = previous.unsqueeze(-1) + step.unsqueeze(-1) * shift
    spread = spread.clamp(-mixture.LOG_SCALE_LIMIT, mixture.LOG_SCALE_LIMIT).exp()
    scale = (step.unsqueeze(-1) * spread).clamp(min=mixture.SCALE_FLOOR)
    z = (y.unsqueeze(-1) - location) / scale
    log_density = -z.abs() - 2 * functional.softplus(-z.abs()) - scale.log()  # of the logistic
    total = torch.logsumexp(functional.log_softmax(logits, dim=-1) + log_density, dim=-1)
    return (-total).clamp(mixture.LEAST_LOSS, mixture.MOST_LOSS)
