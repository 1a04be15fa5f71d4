"""The recurrent layers in torch: any cell, stacked, with dropout between layers only, residual on request, masked.

`lstm` and `gru` are torch's own (cuDNN on a GPU); the other cells of `cells` are a loop over time. On a GPU, in mixed
precision, `cuda_loop` has that loop as a kernel, for all cells. Parameters carry the names that torch.nn.LSTM gives
them, whatever the cell: `weight_ih_l0`. A sequence that is shorter than its batch stands at the left; its padding
changes neither a state nor a gradient, and its outputs are 0 there.
"""

from __future__ import annotations

import re
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import rnn

from models import cells
from models.weights import ForecasterConfig

State = tuple[Tensor, ...]
"""(h, c), (h,) or (h, c, gates), each `(num_layers, batch, ...)`; see `cells.state_sizes`"""

LEAST_BATCH = 1024  # sequences from which cuDNN is left for the kernel, by eye: with 4,096 it was a third as fast
KERNEL_DEVIATION = 0.03  # by eye: rounding to float16 makes a few thousandths of the largest, a wrong index the whole
FORGET_BIAS = 1.5  # a forget gate of 0.82 to begin with: measured in pre-training


class Gated(nn.Module):
    """One layer of an LSTM with other switches than torch's: `(batch, time, input_size)` to `(batch, time, hidden)`."""

    def __init__(self, cell: str, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.cell, self.switches = cell, cells.LSTMS[cell]
        for name, shape in cells.shapes(cell, input_size, hidden_size).items():
            parameter = nn.Parameter(torch.empty(shape))
            nn.init.uniform_(parameter, -(hidden_size**-0.5), hidden_size**-0.5)  # as torch.nn.LSTM begins
            self.register_parameter(f"{name}_l0", parameter)

    def forward(self, inputs: Tensor, state: State, lengths: Tensor | None = None) -> tuple[Tensor, State]:
        """The hidden state at each step, and the last state; `state` has a leading axis of 1, as in torch.nn.LSTM."""
        inputs = without_padding(inputs, lengths)
        weights = dict(self.named_parameters())
        bias = weights["bias_ih_l0"] + weights["bias_hh_l0"]
        projected = functional.linear(inputs, weights["weight_ih_l0"], bias).unbind(1)  # all steps at once
        peepholes, recurrence = weights.get("weight_ch_l0"), weights.get("weight_gh_l0")
        parts, outputs = tuple(part[0] for part in state), []
        for t, x in enumerate(projected):
            after = gated(self.switches, x, parts, weights["weight_hh_l0"], peepholes, recurrence)
            outputs.append(after[0])
            if lengths is not None:
                here = (lengths > t).unsqueeze(1)
                outputs[-1] = torch.where(here, after[0], 0.0)
                after = tuple(torch.where(here, new, old) for new, old in zip(after, parts, strict=True))
            parts = after
        return torch.stack(outputs, dim=1), tuple(part.unsqueeze(0) for part in parts)


def without_padding(sequences: Tensor, lengths: Tensor | None) -> Tensor:
    """Zeros behind each sequence's end: not even an infinity in the padding then reaches a gradient."""
    if lengths is None:
        return sequences
    is_real = torch.arange(sequences.shape[1], device=sequences.device) < lengths.unsqueeze(1)
    return torch.where(is_real.unsqueeze(-1), sequences, 0.0)


def gated(
    switches: cells.Variant,
    projected: Tensor,
    state: State,
    weight_hh: Tensor,
    weight_ch: Tensor | None,
    weight_gh: Tensor | None,
) -> State:
    """One step as `cells.gated` has it; `projected` `(n, rows)` is the input's part of the sums, biases included."""
    h, c = state[:2]
    z = _by_letter(switches.blocks, torch.addmm(projected, h, weight_hh.T))
    p = {} if weight_ch is None else _by_letter(switches.gates, weight_ch)
    r = {} if weight_gh is None else _by_letter(switches.gates, state[2] @ weight_gh.T)

    def gate(letter: str, c: Tensor) -> Tensor:
        if letter not in switches.gates:
            return torch.ones_like(c)
        total = torch.addcmul(z[letter], p[letter], c) if p else z[letter]
        return torch.sigmoid(total + r[letter] if r else total)

    i = gate("i", c)
    f = 1 - i if switches.coupled else gate("f", c)
    g = torch.tanh(z["g"]) if switches.input_activation else z["g"]
    c = f * c + i * g
    o = gate("o", c)
    h = o * (torch.tanh(c) if switches.output_activation else c)
    if not switches.full_gate_recurrence:
        return h, c
    return h, c, torch.cat([{"i": i, "f": f, "o": o}[letter] for letter in switches.gates], dim=1)


def _by_letter(letters: str, packed: Tensor) -> dict[str, Tensor]:
    return dict(zip(letters, packed.chunk(len(letters), dim=-1), strict=True))


def step(cell: str, layer: tuple[Tensor | None, ...], x: Tensor, state: State) -> State:
    """One step of any cell, for a stream: `layer` as `cells.Layer`, `x` `(n, input_size)`, a state of `(n, ...)`."""
    weight_ih, weight_hh, bias_ih, bias_hh, weight_ch, weight_gh = layer
    assert weight_ih is not None
    assert weight_hh is not None
    assert bias_ih is not None
    assert bias_hh is not None
    if cell == "lstm":
        return torch.lstm_cell(x, state, weight_ih, weight_hh, bias_ih, bias_hh)
    if cell == "gru":
        return (torch.gru_cell(x, state[0], weight_ih, weight_hh, bias_ih, bias_hh),)
    projected = functional.linear(x, weight_ih, bias_ih + bias_hh)
    return gated(cells.LSTMS[cell], projected, state, weight_hh, weight_ch, weight_gh)


def attend(weight: Tensor, hidden: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    """`hidden` `(n, time, size)` with the mean of the hidden states that resemble each, `(n, time, 2 size)`.

    Each looks at itself and at the `memory` `(n, count - 1, size)` before it. Before the first reading the hidden
    states were 0, as h_0 is: no mask is needed where a series begins. Also gives the memory after these steps.
    """
    time, size = hidden.shape[1:]
    known = torch.cat((memory, hidden), dim=1)
    query = hidden @ weight / size**0.5
    past = [known[:, k : k + time] for k in range(memory.shape[1] + 1)]  # views: the oldest first
    share = torch.softmax(torch.stack([(query * one).sum(dim=-1) for one in past]), dim=0)
    context = torch.zeros_like(hidden)
    for each, one in zip(share, past, strict=True):
        context = torch.addcmul(context, each.unsqueeze(-1), one)
    return torch.cat((hidden, context), dim=-1), known[:, time:]


class Recurrent(nn.Module):
    """The stack: inputs `(batch, time, input_size)` and a state to hidden states `(batch, time, hidden_size)`."""

    def __init__(self, config: ForecasterConfig) -> None:
        super().__init__()
        self.config = config
        widths = [config.input_size] + [config.hidden_size] * (config.num_layers - 1)
        self.layers = nn.ModuleList(_layer(config.cell, width, config.hidden_size) for width in widths)
        self.register_state_dict_post_hook(_name_as_torch_does)  # type: ignore[no-untyped-call]  # torch's own stub
        self.register_load_state_dict_pre_hook(_name_by_layer)  # type: ignore[no-untyped-call]  # torch's own stub

    def initialise(self) -> None:
        """Draws the recurrent weights and opens the gates; the rest is as torch's modules begin."""
        for layer in self.layers:
            _initialise(layer, self.config.cell, self.config.hidden_size)

    def zeros(self, inputs: Tensor) -> State:
        """The state of a batch that has no past."""
        sizes = cells.state_sizes(self.config.cell, self.config.hidden_size)
        return tuple(inputs.new_zeros(self.config.num_layers, inputs.shape[0], size) for size in sizes)

    def forward(
        self, inputs: Tensor, state: State | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """`lengths` `(batch,)`, 1 to time, says how many steps of each sequence are real; None: all."""
        before = self.zeros(inputs) if state is None else state
        below, after = inputs, []
        for k, layer in enumerate(self.layers):
            # Between the layers, never within the recurrence (Zaremba et al. 2014).
            fed = functional.dropout(below, self.config.dropout, self.training) if k else below
            out, last = _run(layer, fed, tuple(part[k : k + 1] for part in before), lengths)
            below = out + below if k and self.config.residual else out
            after.append(last)
        return below, tuple(torch.cat(parts) for parts in zip(*after, strict=True))


def _layer(cell: str, input_size: int, hidden_size: int) -> nn.Module:
    if cell == "lstm":
        return nn.LSTM(input_size, hidden_size, batch_first=True)
    if cell == "gru":
        return nn.GRU(input_size, hidden_size, batch_first=True)
    return Gated(cell, input_size, hidden_size)


@torch.no_grad()
def _initialise(layer: nn.Module, cell: str, hidden_size: int) -> None:
    """What keeps the past begins open (Gers et al. 2000, Jozefowicz et al. 2015); peepholes begin shut."""
    for name, parameter in layer.named_parameters():
        if name.startswith(("bias", "weight_ch", "weight_gh")):
            nn.init.zeros_(parameter)
    nn.init.orthogonal_(layer.get_parameter("weight_hh_l0"))
    if cell == "gru":
        blocks, letter, bias = "rzn", "z", FORGET_BIAS
    elif cells.LSTMS[cell].coupled:
        blocks, letter, bias = cells.LSTMS[cell].blocks, "i", -FORGET_BIAS  # f = 1 - i
    else:
        blocks, letter, bias = cells.LSTMS[cell].blocks, "f", FORGET_BIAS
    if letter in blocks:  # NFG forgets nothing
        at = blocks.index(letter) * hidden_size
        layer.get_parameter("bias_ih_l0")[at : at + hidden_size] = bias


def _run(layer: nn.Module, inputs: Tensor, state: State, lengths: Tensor | None) -> tuple[Tensor, State]:
    """One layer over the sequences, by the kernel where that is meant."""
    is_mixed = (
        inputs.is_cuda and torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda") == torch.float16
    )
    if lengths is None and is_mixed:
        is_slow = isinstance(layer, Gated) or len(inputs) >= LEAST_BATCH
        if is_slow and not kernel_trouble(cell_of(layer), state[0].shape[-1], inputs.device):
            from models import cuda_loop

            return cuda_loop.run(layer, inputs, state)
    return by_torch(layer, inputs, state, lengths)


def by_torch(layer: nn.Module, inputs: Tensor, state: State, lengths: Tensor | None = None) -> tuple[Tensor, State]:
    """torch's own layers know padding as packed sequences."""
    if isinstance(layer, Gated):
        return layer(inputs, state, lengths)  # type: ignore[no-any-return]  # a module's call is untyped
    given = state[0] if isinstance(layer, nn.GRU) else state
    if lengths is None:
        out, last = layer(inputs, given)
    else:
        packed = rnn.pack_padded_sequence(inputs, lengths.cpu(), batch_first=True, enforce_sorted=False)
        out, last = layer(packed, given)
        out, _ = rnn.pad_packed_sequence(out, batch_first=True, total_length=inputs.shape[1])
    return out, (last,) if isinstance(layer, nn.GRU) else last


def cell_of(layer: nn.Module) -> str:
    """The setting that makes such a layer."""
    if isinstance(layer, Gated):
        return layer.cell
    return "gru" if isinstance(layer, nn.GRU) else "lstm"


@cache
def kernel_trouble(cell: str, hidden_size: int, device: torch.device) -> str:
    """Why the kernels do not train such a layer here; empty: they do, and their gradients agree with torch's.

    The first call compiles them and tries them out, in seconds.
    """
    try:
        from models import cuda_loop
    except ImportError as error:
        return f"there is no Triton: {error}"
    if not cuda_loop.can_run(hidden_size):
        return "they have layers of 16, 32, 64 and 128 units only"
    try:
        with torch.random.fork_rng(devices=[]):  # the randomness of a training stays as it is
            far = cuda_loop.deviation(_layer(cell, cuda_loop.TRIED_INPUTS, hidden_size), device)
    except Exception as error:  # noqa: BLE001  a compiler, a driver and a device: whatever ails them, torch's path serves
        return f"they cannot be compiled and run here: {type(error).__name__}: {' '.join(str(error).split())[:500]}"
    return "" if far < KERNEL_DEVIATION else f"their gradients are {far:.3g} off torch's here"


def _rename(state: dict[str, Tensor], prefix: str, pattern: str, wanted: str) -> None:
    for name in [name for name in state if name.startswith(prefix)]:
        state[prefix + re.sub(pattern, wanted, name.removeprefix(prefix))] = state.pop(name)


def _name_as_torch_does(
    _module: nn.Module, state: dict[str, Tensor], prefix: str, _metadata: dict[str, object]
) -> None:
    """`layers.1.weight_ih_l0` in here is `weight_ih_l1` outside."""
    _rename(state, prefix, r"^layers\.(\d+)\.(\w+)_l0$", r"\2_l\1")


def _name_by_layer(
    _module: nn.Module,
    state: dict[str, Tensor],
    prefix: str,
    _metadata: dict[str, object],
    _strict: bool,
    _missing: list[str],
    _unexpected: list[str],
    _errors: list[str],
) -> None:
    """The other way round, when weights are loaded."""
    _rename(state, prefix, r"^(\w+)_l(\d+)$", r"layers.\2.\1_l0")
