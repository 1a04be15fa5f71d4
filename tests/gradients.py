"""How much of h_1 is left in h_T: `python -m tests.gradients docs/vanishing_gradient.svg` measures and draws it.

The spectral norm of d h_T / d h_1, with c_1 held, from the product of the steps' Jacobians in float64 (Hochreiter 1991;
Pascanu et al. 2013). Networks as training begins, fed with noise; and the shipped weights, fed with series like those
that they were trained on. Plotted is the geometric mean over the runs. Takes half a minute.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models import cells, features, pretrain, recurrent, weights
from models.weights import ForecasterConfig

State = tuple[Tensor, ...]
Norms = NDArray[np.float64]
"""`(steps,)`: of d h_T / d h_1 for T = 1, 2, ...; the first is 1"""

HIDDEN, STEPS, SEEDS = 32, 200, 3
SHOWN = (2, 10, 25, 50, 100, 200)  # T in the table


class Network(NamedTuple):
    """One layer that can be stepped: from `(n, input_size)` and its state to the next state, h first."""

    step: Callable[[Tensor, State], State]
    sizes: tuple[int, ...]


def plain(seed: int, hidden: int = HIDDEN) -> Network:
    """The plain network, begun as well as it can be: orthogonal recurrent weights, whose norm is 1."""
    torch.manual_seed(seed)
    weight_ih = torch.empty(hidden, features.INPUT_SIZE, dtype=torch.float64).uniform_(-(hidden**-0.5), hidden**-0.5)
    weight_hh = torch.nn.init.orthogonal_(torch.empty(hidden, hidden, dtype=torch.float64))
    return Network(lambda x, state: (torch.tanh(x @ weight_ih.T + state[0] @ weight_hh.T),), (hidden,))


def gated(cell: str, seed: int, hidden: int = HIDDEN, forget_bias: float | None = None) -> Network:
    """A cell as training begins; another bias for the LSTM's forget gate on request."""
    torch.manual_seed(seed)
    layer = recurrent.Recurrent(ForecasterConfig(features.INPUT_SIZE, hidden, cell=cell)).double()
    layer.initialise()
    tensors = {name.removesuffix("_l0"): value for name, value in layer.state_dict().items()}
    if forget_bias is not None:
        tensors["bias_ih"][hidden : 2 * hidden] = forget_bias
    return _network(cell, tuple(tensors.get(name) for name in cells.Layer._fields), hidden)


def shipped() -> Network:
    """The base weights."""
    base = weights.load()
    (layer,) = weights.recurrent_layers(base)
    parts = tuple(None if part is None else torch.from_numpy(part).double() for part in layer)
    return _network(base.config.cell, parts, base.config.hidden_size)


def _network(cell: str, layer: tuple[Tensor | None, ...], hidden: int) -> Network:
    return Network(lambda x, state: recurrent.step(cell, layer, x, state), cells.state_sizes(cell, hidden))


def noise(seed: int, steps: int = STEPS) -> Tensor:
    """Inputs of mean 0 and deviation 1, `(steps, input_size)`."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(steps, features.INPUT_SIZE, dtype=torch.float64, generator=generator)


def series(seed: int, steps: int = STEPS) -> Tensor:
    """The inputs of a synthetic series, from its 500th reading on."""
    return pretrain.sequences(np.random.default_rng([seed, 2**31 + 2]), 1, 500 + steps).inputs[0, 500:].double()


@torch.no_grad()
def norms(network: Network, inputs: Tensor) -> Norms:
    """|| d h_T / d h_1 || for T from 1 to the length of the inputs `(steps, input_size)`."""

    def advance(state: Tensor, x: Tensor) -> Tensor:
        parts = tuple(part[None] for part in torch.split(state, list(network.sizes)))
        return torch.cat([part[0] for part in network.step(x[None], parts)])

    jacobian: Callable[[Tensor, Tensor], Tensor] = torch.func.jacrev(advance)
    hidden = network.sizes[0]
    state = advance(torch.zeros(sum(network.sizes), dtype=torch.float64), inputs[0])
    product = torch.eye(len(state), dtype=torch.float64)
    found = [1.0]
    for x in inputs[1:]:
        product = jacobian(state, x) @ product
        state = advance(state, x)
        found.append(float(torch.linalg.matrix_norm(product[:hidden, :hidden], 2)))
    return np.array(found)


def measure() -> dict[str, Norms]:
    """All curves, by their labels: geometric means over the seeds."""
    kinds: dict[str, Callable[[int], Norms]] = {
        "plain RNN": lambda seed: norms(plain(seed), noise(seed)),
        "LSTM, forget bias 0": lambda seed: norms(gated("lstm", seed, forget_bias=0.0), noise(seed)),
        "LSTM, forget bias 1.5": lambda seed: norms(gated("lstm", seed), noise(seed)),
        "LSTM, forget bias 3": lambda seed: norms(gated("lstm", seed, forget_bias=3.0), noise(seed)),
        "peephole, 1.5": lambda seed: norms(gated("peephole", seed), noise(seed)),
        "coupled, 1.5": lambda seed: norms(gated("coupled", seed), noise(seed)),
        "GRU, 1.5": lambda seed: norms(gated("gru", seed), noise(seed)),
        "the shipped weights": lambda seed: norms(shipped(), series(seed)),
    }
    return {name: np.exp(np.mean([np.log(one(seed)) for seed in range(SEEDS)], axis=0)) for name, one in kinds.items()}


def figure(value: float) -> str:
    """One digit is all that three seeds can tell."""
    return f"{value:.2f}" if value >= 0.01 else f"{value:.0e}".replace("e-0", "e-")


def table(curves: dict[str, Norms]) -> str:
    """The figures as a table of Markdown."""
    lines = [f"| T | {' | '.join(map(str, SHOWN))} |", "|---|" + "--:|" * len(SHOWN)]
    lines += [f"| {name} | {' | '.join(figure(found[t - 1]) for t in SHOWN)} |" for name, found in curves.items()]
    return "\n".join(lines) + "\n"


COLOURS = ("#c0392b", "#b9770e", "#1f618d", "#2e86c1", "#7d3c98", "#148f77", "#616a6b", "#111111")
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 860, 470, 70, 230, 50, 55  # pixels
LOWEST = -22  # the axis ends at 1e-22


def svg(curves: dict[str, Norms]) -> str:
    """The drawing: T to the right, the norm upwards on a log scale, each curve's name at the right in its colour."""
    width, height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def across(t: float) -> float:
        return LEFT + width * (t - 1) / (STEPS - 1)

    def down(log10: float) -> float:
        return TOP + height * log10 / LOWEST

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        'font-size="13">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="26" font-size="16">What is left of the first step: ‖∂h_T / ∂h_1‖</text>',
        f'<clipPath id="plot"><rect x="{LEFT}" y="{TOP - 10}" width="{width}" height="{height + 10}"/></clipPath>',
    ]
    for log10 in range(0, LOWEST - 1, -2):
        parts.append(f'<path d="M{LEFT} {down(log10):.1f}h{width}" stroke="#dddddd"/>')
        label = "1" if log10 == 0 else f"1e{log10}"
        parts.append(f'<text x="{LEFT - 8}" y="{down(log10) + 4:.1f}" text-anchor="end">{label}</text>')
    for t in (1, 50, 100, 150, 200):
        parts.append(f'<path d="M{across(t):.1f} {TOP}v{height}" stroke="#dddddd"/>')
        parts.append(f'<text x="{across(t):.1f}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle">{t}</text>')
    parts.append(f'<text x="{LEFT + width / 2}" y="{HEIGHT - 12}" text-anchor="middle">T, steps</text>')
    ranked = sorted(zip(curves, COLOURS, strict=True), key=lambda each: -curves[each[0]][-1])
    label_at = -np.inf
    for name, colour in ranked:
        logs = np.log10(curves[name])
        points = " ".join(f"{across(t + 1):.1f},{down(log10):.1f}" for t, log10 in enumerate(logs))
        dashes = ' stroke-dasharray="6 4"' if name == "plain RNN" else ""
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2" '
            f'clip-path="url(#plot)"{dashes}/>'
        )
        label_at = max(min(down(logs[-1]), down(LOWEST)) + 4, label_at + 17)  # no label on another
        text = f"{name}: {figure(curves[name][-1])}"
        parts.append(f'<text x="{LEFT + width + 10}" y="{label_at:.1f}" fill="{colour}">{text}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def main(arguments: list[str]) -> int:
    """Measures, writes the drawing, prints the table."""
    (path,) = arguments
    torch.set_num_threads(1)
    curves = measure()
    Path(path).write_text(svg(curves))
    sys.stdout.write(table(curves))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
