"""The loop over time as kernels, in Triton's interpreter: against torch's autograd in float64, for every cell."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from models import cells, cuda_loop, recurrent, tbptt
from models.forecaster import Forecaster
from models.recurrent import Recurrent, State
from models.tbptt import Sequences
from models.weights import ForecasterConfig

INPUTS = cuda_loop.TRIED_INPUTS


def some_layer(cell: str, hidden: int, seed: int = 0) -> nn.Module:
    """In float64, with weights that none of the gates is indifferent to."""
    torch.manual_seed(seed)
    (layer,) = Recurrent(ForecasterConfig(INPUTS, hidden, cell=cell)).layers
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(0, 1.5 * hidden**-0.5)
    return layer.double()


def some_state(cell: str, hidden: int, batch: int) -> list[Tensor]:
    sizes = cells.state_sizes(cell, hidden)
    return [(0.5 * torch.randn(1, batch, size, dtype=torch.float64)).requires_grad_() for size in sizes]


def told(layer: nn.Module, inputs: Tensor, state: list[Tensor], found: tuple[Tensor, State]) -> list[Tensor]:
    """Outputs, last state, and the gradients of all that went in, of a loss that sees every output and every state."""
    outputs, after = found
    weights = [
        torch.cos(torch.arange(each.numel(), dtype=torch.float64)).view(each.shape) for each in (outputs, *after)
    ]
    loss = torch.stack([(each * weight).sum() for each, weight in zip((outputs, *after), weights, strict=True)]).sum()
    return [outputs, *after, *torch.autograd.grad(loss, (inputs, *state, *layer.parameters()))]


@pytest.mark.parametrize(("batch", "hidden", "steps"), [(35, 16, 7), (1, 16, 1), (16, 32, 3)])
@pytest.mark.parametrize("cell", cells.CELLS)
def test_outputs_and_gradients_are_those_of_autograd(
    interpreter: str, cell: str, batch: int, hidden: int, steps: int
) -> None:
    """Every output, state and gradient, in float64, to 1e-10: also of more sequences than a program has, and of one."""
    layer, state = some_layer(cell, hidden), some_state(cell, hidden, batch)
    inputs = torch.randn(batch, steps, INPUTS, dtype=torch.float64).requires_grad_()
    wanted = told(layer, inputs, state, recurrent.by_torch(layer, inputs, tuple(state)))
    found = told(layer, inputs, state, cuda_loop.run(layer, inputs, tuple(state)))
    for one, two in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-10)
        assert float(two.detach().abs().max()) > 1e-3


@pytest.mark.parametrize("cell", ["lstm", "fgr", "gru"])
def test_wide_layers_too(interpreter: str, cell: str) -> None:
    """128 units, which are spread over the device in another way."""
    layer, state = some_layer(cell, 128), some_state(cell, 128, 17)
    inputs = torch.randn(17, 3, INPUTS, dtype=torch.float64).requires_grad_()
    wanted = told(layer, inputs, state, recurrent.by_torch(layer, inputs, tuple(state)))
    found = told(layer, inputs, state, cuda_loop.run(layer, inputs, tuple(state)))
    for one, two in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("cell", ["lstm", "peephole", "fgr", "gru"])
def test_two_chunks_are_the_whole(interpreter: str, cell: str) -> None:
    """A state that is handed on, and not detached, carries the gradient too."""
    layer, state = some_layer(cell, 16), some_state(cell, 16, 3)
    inputs = torch.randn(3, 9, INPUTS, dtype=torch.float64).requires_grad_()
    whole = told(layer, inputs, state, cuda_loop.run(layer, inputs, tuple(state)))
    first, middle = cuda_loop.run(layer, inputs[:, :4], tuple(state))
    second, after = cuda_loop.run(layer, inputs[:, 4:], middle)
    pieces = told(layer, inputs, state, (torch.cat((first, second), dim=1), after))
    for one, two in zip(pieces, whole, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("cell", cells.CELLS)
def test_kernels_that_agree_are_taken(interpreter: str, cell: str) -> None:
    """In float16, as they train, they are near torch's float32; the trial changes no randomness."""
    seeded = torch.random.get_rng_state()
    assert recurrent.kernel_trouble(cell, 32, torch.device(interpreter)) == ""
    assert torch.equal(torch.random.get_rng_state(), seeded)


def test_kernels_that_do_not_agree_are_found_out(interpreter: str) -> None:
    """Wrong by a tenth, or no numbers at all: further off than is allowed."""
    device = torch.device(interpreter)

    def off(factor: float) -> float:
        def run(layer: nn.Module, inputs: Tensor, state: State) -> tuple[Tensor, State]:
            outputs, after = cuda_loop.run(layer, inputs, state)
            return outputs * factor, after

        return cuda_loop.deviation(some_layer("lstm", 16).float(), device, by=run)

    assert off(1.0) < recurrent.KERNEL_DEVIATION
    assert not off(1.1) < recurrent.KERNEL_DEVIATION
    assert not off(float("nan")) < recurrent.KERNEL_DEVIATION


@pytest.mark.slow
@pytest.mark.parametrize("cell", ["peephole", "coupled", "gru"])
def test_training_in_mixed_precision_goes_as_in_float32(interpreter: str, cell: str) -> None:
    """The next value of a wave, in float16 with the loss scaled, by the kernels: the losses of torch's float32."""
    wave = torch.sin(2 * torch.pi * (torch.arange(8)[:, None] + torch.arange(25)[None]) / 8).unsqueeze(-1)
    losses: list[list[float]] = []
    for by, is_mixed in ((recurrent.by_torch, False), (cuda_loop.run, True)):
        torch.manual_seed(0)
        stack, head = Recurrent(ForecasterConfig(1, 16, cell=cell)), nn.Linear(16, 1)
        (layer,), state = stack.layers, stack.zeros(wave)
        optimizer = torch.optim.AdamW([*layer.parameters(), *head.parameters()], lr=2e-2)
        scaler = torch.amp.GradScaler(interpreter, enabled=is_mixed)
        losses.append([])
        for _ in range(30):
            with torch.autocast(interpreter, torch.float16, enabled=is_mixed):
                outputs, _ = by(layer, wave[:, :-1], state)
                guess = head(outputs)
            loss = (guess.float() - wave[:, 1:]).square().mean()
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            losses[-1].append(float(loss.detach()))
    assert losses[0][-1] < 0.1 * losses[0][0]
    assert losses[1] == pytest.approx(losses[0], rel=0.05, abs=2e-3)


def test_sizes_that_tensor_cores_do_not_take_are_refused() -> None:
    """With the reason; torch's own path then trains."""
    assert "16, 32, 64 and 128" in recurrent.kernel_trouble("lstm", 24, torch.device("cuda"))
    assert not any(cuda_loop.can_run(hidden) for hidden in (8, 48, 256))


def test_a_device_that_is_not_there_is_a_reason() -> None:
    """Not an error: whoever asked goes on with torch."""
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    assert recurrent.kernel_trouble("lstm", 16, torch.device("cuda")).startswith(
        "they cannot be compiled and run here: "
    )


# --- On a device ---


@pytest.mark.parametrize("hidden", [64, 128])
@pytest.mark.parametrize("cell", cells.CELLS)
def test_compiled_kernels_agree(cuda: str, cell: str, hidden: int) -> None:
    """On this device, compiled: near torch's float32."""
    assert recurrent.kernel_trouble(cell, hidden, torch.device(cuda)) == ""


@pytest.mark.parametrize("cell", ["lstm", "peephole", "gru"])
def test_training_on_a_device_runs_the_kernels(cuda: str, cell: str) -> None:
    """In mixed precision, from so many sequences on, the layers' gradients are those of float32, nearly."""
    torch.manual_seed(0)
    layers = Recurrent(ForecasterConfig(INPUTS, 64, 2, cell=cell)).to(cuda)
    inputs = torch.randn(recurrent.LEAST_BATCH, 20, INPUTS, device=cuda)
    found = []
    for mixed in (False, True):
        with torch.autocast(cuda, torch.float16, enabled=mixed):
            outputs, _ = layers(inputs)
        loss = outputs.float().square().mean()
        found.append([loss, *torch.autograd.grad(loss * 1024, list(layers.parameters()))])
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(two, one, rtol=0.05, atol=0.02 * float(one.detach().abs().max()))


@pytest.mark.parametrize("cell", ["peephole", "coupled", "fgr"])
def test_a_device_learns_by_the_kernels(cuda: str, cell: str) -> None:
    """In mixed precision, with its loss scaled, a wave that the last value alone does not tell: two nats better."""
    torch.manual_seed(0)
    model = Forecaster(ForecasterConfig(1, 16, cell=cell)).to(cuda)
    wave = torch.sin(2 * torch.pi * (torch.arange(8)[:, None] + torch.arange(65)[None]) / 8)
    y, previous = wave[:, 1:], wave[:, :-1]
    mask = torch.arange(64).expand(8, 64) >= 4
    sequences = Sequences(previous.unsqueeze(-1), previous, torch.full_like(y, 0.5), y, mask).to(cuda)
    optimizer, scaler = torch.optim.AdamW(model.parameters(), lr=1e-2), torch.amp.GradScaler(cuda)
    losses = [
        tbptt.train_pass(model, sequences, length=16, optimizer=optimizer, mixed=torch.float16, scaler=scaler)
        for _ in range(60)
    ]
    assert losses[-1] < losses[0] - 2
