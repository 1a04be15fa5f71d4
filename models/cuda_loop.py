"""The loop over time of a recurrent layer as one Triton kernel forward and one backward, for every cell of `cells`.

What can be one large product stays outside and is torch's: the inputs' part of the sums before the loop, the gradients
of the weights behind it. Inside is what one step wants of the one before. A program takes some sequences through all
steps; its weights are read once and stay on the chip (Diamos et al. 2016, "Persistent RNNs"). Sums are of float32 where
inputs are float16 or float32. cuDNN, and the loop in `recurrent`, are the fall-back and what the gradients are tested
against.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from models import cells, kernels, recurrent

Run = Callable[[nn.Module, Tensor, tuple[Tensor, ...]], tuple[Tensor, tuple[Tensor, ...]]]
"""One layer over `(batch, time, input_size)`, from a state with a leading axis of 1, as `recurrent.by_torch`"""

WIDE = 64  # hidden units; what is wider has fewer sequences a program, or registers and shared memory run out
LEAST_HIDDEN, MOST_HIDDEN = 16, 128  # the least for tensor cores, the most of which all weights fit on the chip
TRIED_BATCH, TRIED_STEPS, TRIED_INPUTS = 40, 5, 8  # more sequences than a program has


def can_run(hidden_size: int) -> bool:
    """Whether tensor cores take these sizes and the weights stay on the chip."""
    return LEAST_HIDDEN <= hidden_size <= MOST_HIDDEN and hidden_size & (hidden_size - 1) == 0


def run(layer: nn.Module, inputs: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """What `recurrent.by_torch` gives, in the type that autocast has for products."""
    weights = {name.removesuffix("_l0"): parameter for name, parameter in layer.named_parameters()}
    weight_hh, hidden = weights["weight_hh"], state[0].shape[-1]
    first, steps = tuple(part[0] for part in state), inputs.transpose(0, 1)
    cell, theirs = recurrent.cell_of(layer), weights["bias_hh"]
    if cell == "gru":  # n's part from h has its bias behind the reset gate
        bias = weights["bias_ih"] + functional.pad(theirs[: 2 * hidden], (0, hidden))
        hs = gru(functional.linear(steps, weights["weight_ih"], bias), first[0], weight_hh, theirs[2 * hidden :])
        last: tuple[Tensor, ...] = (hs[-1],)
    else:
        projected = functional.linear(steps, weights["weight_ih"], weights["bias_ih"] + theirs)  # all steps at once
        peepholes, recurrence = weights.get("weight_ch"), weights.get("weight_gh")
        hs, last = lstm(cells.LSTMS[cell], projected, first, weight_hh, peepholes, recurrence)
    return hs.transpose(0, 1), tuple(part.unsqueeze(0) for part in last)


def deviation(layer: nn.Module, device: torch.device, by: Run = run) -> float:
    """The furthest that `by` in float16 is from torch in float32: outputs, states and gradients, over the largest.

    Of some sequences; rounding makes it a few thousandths. No number where there is one that is none.
    """
    layer = layer.to(device)
    cell, hidden, width = recurrent.cell_of(layer), layer.get_parameter("weight_hh_l0").shape[1], TRIED_INPUTS
    shapes = [(TRIED_BATCH, TRIED_STEPS, width), *((1, TRIED_BATCH, n) for n in cells.state_sizes(cell, hidden))]
    given = [torch.randn(shape).to(device).requires_grad_() for shape in shapes]
    found: list[list[Tensor]] = []
    with torch.enable_grad():
        for path, is_mixed in ((recurrent.by_torch, False), (by, True)):
            with torch.autocast(device.type, torch.float16, enabled=is_mixed):
                outputs, state = path(layer, given[0], tuple(given[1:]))
            told = [each.float() for each in (outputs, *state)]
            loss = torch.stack([(each * torch.linspace(-1, 1, each.shape[-1], device=device)).sum() for each in told])
            found.append([*told, *torch.autograd.grad(loss.sum(), (*given, *layer.parameters()))])
    off = [(one - sure).abs().max() / sure.abs().max() for sure, one in zip(*found, strict=True)]
    return float(torch.stack(off).detach().max())  # Python's own max() would pass over what is no number


def lstm(
    switches: cells.Variant,
    projected: Tensor,
    state: tuple[Tensor, ...],
    weight_hh: Tensor,
    weight_ch: Tensor | None,
    weight_gh: Tensor | None,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """h of each step `(time, batch, hidden_size)`, and the state after the last; as `recurrent.gated`, step by step.

    `projected` `(time, batch, rows)`: the inputs' part of the sums, biases included. In its type is all that is kept.
    """
    to = [None if part is None else part.to(projected.dtype) for part in (*state, weight_hh, weight_ch, weight_gh)]
    gates = to[2] if switches.full_gate_recurrence else None
    given = (projected.contiguous(), to[0], to[1], gates, *to[-3:])
    hs, c, gates = _Lstm.apply(switches, *given)  # type: ignore[no-untyped-call]  # torch's own stub
    return hs, (hs[-1], c) if gates is None else (hs[-1], c, gates)


def gru(projected: Tensor, h: Tensor, weight_hh: Tensor, bias_n: Tensor) -> Tensor:
    """h of each step `(time, batch, hidden_size)`; `projected` has all biases but n's beside the state, `bias_n`."""
    given = (projected.contiguous(), *(part.to(projected.dtype) for part in (h, weight_hh, bias_n)))
    hs: Tensor = _Gru.apply(*given)  # type: ignore[no-untyped-call]  # torch's own stub
    return hs


class Launch(NamedTuple):
    """How a kernel is spread over the device. By the compiler's account of registers and shared memory for an H100."""

    rows: int
    """sequences of a program: 32 make 128 programs of a batch of 4,096, about one for each processor"""
    options: dict[str, int]

    @classmethod
    def of(cls, hidden: int, *, recurrent: bool = False) -> Launch:
        """`recurrent`: with full gate recurrence, whose weights must not be fetched ahead: they are too many."""
        is_wide = hidden > WIDE
        stages = 1 if is_wide or recurrent else 2
        return cls(16 if is_wide else 32, {"num_warps": 8 if is_wide else 4, "num_stages": stages})


def _sum_of(dtype: torch.dtype) -> tl.dtype:
    return tl.float64 if dtype == torch.float64 else tl.float32


class _Lstm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        switches: cells.Variant,
        x: Tensor,
        h: Tensor,
        c: Tensor,
        gates: Tensor | None,
        weight_hh: Tensor,
        weight_ch: Tensor | None,
        weight_gh: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        (time, batch, _), hidden = x.shape, weight_hh.shape[1]
        hs, cs = (torch.cat((part[None], part.new_empty(time, batch, hidden))) for part in (h, c))
        zs = torch.empty_like(x)
        weights = [None if part is None else part.contiguous() for part in (weight_hh, weight_ch, weight_gh)]
        launch = Launch.of(hidden, recurrent=weight_gh is not None)
        first = None if gates is None else gates.contiguous()
        kernels.lstm_forward[(triton.cdiv(batch, launch.rows),)](
            x, hs, cs, first, *weights, hs[1:], cs[1:], zs, time, batch,
            **constants(switches, hidden), ROWS=launch.rows, SUM=_sum_of(x.dtype), **launch.options,
        )  # fmt: skip
        ctx.switches = switches
        ctx.save_for_backward(hs, cs, zs, first, *weights)
        return hs[1:], cs[-1].clone(), None if gates is None else _gates(switches, zs[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dhs: Tensor, dc: Tensor, dgates: Tensor | None) -> tuple[Tensor | None, ...]:
        hs, cs, zs, gates, weight_hh, weight_ch, weight_gh = ctx.saved_tensors
        switches, (time, batch, rows), hidden = ctx.switches, zs.shape, hs.shape[2]
        dzs, dh_0, dc_0 = torch.empty_like(zs), torch.empty_like(hs[0]), torch.empty_like(hs[0])
        dgates_0 = None if gates is None else torch.empty_like(gates)
        last = None if dgates is None else dgates.contiguous()
        launch = Launch.of(hidden, recurrent=weight_gh is not None)
        kernels.lstm_backward[(triton.cdiv(batch, launch.rows),)](
            dhs.contiguous()[-1], dc.contiguous(), last, weight_hh, weight_ch, weight_gh, cs[-1], zs[-1], dzs[-1],
            dh_0, dc_0, dgates_0, time, batch,
            **constants(switches, hidden), ROWS=launch.rows, SUM=_sum_of(zs.dtype), **launch.options,
        )  # fmt: skip
        d_hh = dzs.view(-1, rows).T @ hs[:-1].reshape(-1, hidden)
        d_ch: Tensor | None = None
        d_gh: Tensor | None = None
        d_gates = _gates(switches, dzs)  # (time, batch, gates * hidden)
        if weight_ch is not None:
            seen = [cs[1:] if letter == "o" else cs[:-1] for letter in switches.gates]
            parts = zip(d_gates.chunk(len(seen), dim=-1), seen, strict=True)
            d_ch = torch.cat([torch.einsum("tbh,tbh->h", part, c) for part, c in parts])
        if weight_gh is not None:
            before = torch.cat((gates[None], _gates(switches, zs[:-1])))
            d_gh = d_gates.flatten(0, 1).T @ before.flatten(0, 1)
        return None, dzs, dh_0, dc_0, dgates_0, d_hh, d_ch, d_gh


def constants(switches: cells.Variant, hidden: int) -> dict[str, int]:
    """What the LSTM's kernels are compiled for."""
    return {
        **{f"AT_{letter.upper()}": switches.blocks.find(letter) for letter in "ifgo"},
        "COUPLED": switches.coupled,
        "TANH_IN": switches.input_activation,
        "TANH_OUT": switches.output_activation,
        "PEEPHOLES": switches.peepholes,
        "RECURRENT": switches.full_gate_recurrence,
        "BLOCKS": len(switches.blocks),
        "HIDDEN": hidden,
    }


def _gates(switches: cells.Variant, blocks: Tensor) -> Tensor:
    """The blocks `(..., rows)` without g."""
    parts = zip(switches.blocks, blocks.chunk(len(switches.blocks), dim=-1), strict=True)
    return torch.cat([part for letter, part in parts if letter != "g"], dim=-1)


class _Gru(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, h: Tensor, weight_hh: Tensor, bias_n: Tensor) -> Tensor:
        (time, batch, _), hidden = x.shape, weight_hh.shape[1]
        hs = torch.cat((h[None], h.new_empty(time, batch, hidden)))
        zs = x.new_empty(time, batch, 4 * hidden)
        weight_hh = weight_hh.contiguous()
        launch = Launch.of(hidden)
        kernels.gru_forward[(triton.cdiv(batch, launch.rows),)](
            x, hs, weight_hh, bias_n.contiguous(), hs[1:], zs, time, batch,
            hidden, launch.rows, _sum_of(x.dtype), **launch.options,
        )  # fmt: skip
        ctx.save_for_backward(hs, zs, weight_hh)
        return hs[1:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dhs: Tensor) -> tuple[Tensor, ...]:
        hs, zs, weight_hh = ctx.saved_tensors
        (time, batch, _), hidden = zs.shape, hs.shape[2]
        dzs, dh_0, dhs = torch.empty_like(zs), torch.empty_like(hs[0]), dhs.contiguous()
        launch = Launch.of(hidden)
        kernels.gru_backward[(triton.cdiv(batch, launch.rows),)](
            dhs[-1], weight_hh, hs[-2], zs[-1], dzs[-1], dh_0, time, batch,
            hidden, launch.rows, _sum_of(zs.dtype), **launch.options,
        )  # fmt: skip
        beside = torch.cat((dzs[..., : 2 * hidden], dzs[..., 3 * hidden :]), dim=-1)  # the state's part of the sums
        d_hh = beside.flatten(0, 1).T @ hs[:-1].flatten(0, 1)
        return dzs[..., : 3 * hidden], dh_0, d_hh, dzs[..., 3 * hidden :].sum((0, 1))
