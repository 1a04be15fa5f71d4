"""The forecaster in torch, as it is trained: stacked LSTM, dropout between layers only, a distribution head.

The head sees the inputs beside the hidden state: what is linear in them (the day's shape, the last difference) need not
pass through the gates. Serving on the CPU uses `step` and the same weights, and never imports this module.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from models import mixture
from models.weights import ForecasterConfig

State = tuple[Tensor, Tensor]
NLL_LEAST, NLL_MOST = -4.0, 15.0  # nats a reading may add to the loss: equal and wild ones teach no more than that


class Forecaster(nn.Module):
    """Maps inputs `(batch, time, input_size)` and a state to the head's parameters `(batch, time, 9)`."""

    def __init__(self, config: ForecasterConfig) -> None:
        super().__init__()
        self.config = config
        self.lstm = nn.LSTM(
            config.input_size,
            config.hidden_size,
            config.num_layers,
            batch_first=True,
            dropout=config.dropout if config.num_layers > 1 else 0.0,
        )
        self.head = nn.Linear(config.hidden_size + config.input_size, mixture.PARAMETERS)
        self._initialise()

    def _initialise(self) -> None:
        """Forget gates open (Gers et al. 2000, Jozefowicz et al. 2015); the head says "about as the last value"."""
        hidden = self.config.hidden_size
        for layer in range(self.config.num_layers):
            bias: Tensor = getattr(self.lstm, f"bias_ih_l{layer}")
            nn.init.zeros_(getattr(self.lstm, f"bias_hh_l{layer}"))
            nn.init.zeros_(bias)
            bias.data[hidden : 2 * hidden] = 1.5
            nn.init.orthogonal_(getattr(self.lstm, f"weight_hh_l{layer}"))
        nn.init.zeros_(self.head.weight)
        with torch.no_grad():
            self.head.bias.copy_(torch.tensor([0.0, 0.0, 0.0, -0.3, 0.0, 0.3, -1.0, 0.0, 1.0]))

    def forward(self, inputs: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        hidden, state = self.lstm(inputs, state)
        return self.head(torch.cat((hidden, inputs), dim=-1)), state


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
    return (-total).clamp(NLL_LEAST, NLL_MOST)
