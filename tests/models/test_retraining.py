"""Going on with training: padding changes nothing, the carried state neither, and what is broken is said."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from models import features, history, pretrain, retraining, synthetic, tbptt
from models.forecaster import Forecaster
from models.retraining import Recipe, TrainingError
from models.tbptt import Sequences
from models.weights import ForecasterConfig, Weights, load

CONFIGS = [
    ForecasterConfig(features.INPUT_SIZE, 8),
    ForecasterConfig(features.INPUT_SIZE, 8, 2, dropout=0.4, residual=True, attention=3),
    ForecasterConfig(features.INPUT_SIZE, 8, 2, cell="gru"),
    ForecasterConfig(features.INPUT_SIZE, 8, cell="peephole"),
]
LENGTHS = (130, 40, 90)
QUICK = Recipe(learning_rate=3e-3, epochs=4, chunk=32)


def names(config: ForecasterConfig) -> str:
    return f"{config.cell}{config.num_layers}"


def fresh(config: ForecasterConfig, seed: int = 0) -> Weights:
    torch.manual_seed(seed)
    model = Forecaster(config)
    with torch.no_grad():
        model.head.weight.normal_(0, 0.1)  # so that every layer matters from the first update on
    return Weights(config, {name: value.numpy() for name, value in model.state_dict().items()}, {}, "0" * 64)


def some() -> history.History:
    """Three series of unequal length."""
    made = synthetic.generate(np.random.default_rng(4), len(LENGTHS), max(LENGTHS))
    time = np.concatenate([made.time[k, :n] for k, n in enumerate(LENGTHS)])
    value = np.concatenate([made.value[k, :n] for k, n in enumerate(LENGTHS)])
    return history.History(time, value, np.array(LENGTHS))


def parts(batches: list[retraining.Padded], *, stop_from: float = 0.7) -> tuple[list[Sequences], list[Sequences]]:
    """The earlier readings of each series train, the later ones stop."""
    place = np.concatenate([np.arange(n) / n for n in LENGTHS])
    learned = np.concatenate([np.arange(n) >= 8 for n in LENGTHS])
    train, stop = learned & (place < stop_from), place >= stop_from
    return [batch.where(train) for batch in batches], [batch.where(stop) for batch in batches]


def padded(at_once: int) -> list[retraining.Padded]:
    whole = some()
    return retraining.padded(whole, np.ones(len(whole.time), np.bool_), at_once)


@pytest.mark.parametrize("config", CONFIGS, ids=names)
def test_a_padded_batch_is_its_series_one_by_one(config: ForecasterConfig) -> None:
    """The loss of each reading and the gradient of their sum, to 1e-5."""
    weights, everything = fresh(config), np.ones(sum(LENGTHS), np.bool_)
    together, alone = padded(len(LENGTHS)), padded(1)
    assert [len(batch.rows) for batch in together + alone] == [3, 1, 1, 1]
    one, other = (retraining.losses(weights, batches, everything) for batches in (together, alone))
    assert np.isfinite(one).all()
    np.testing.assert_allclose(one, other, atol=1e-5)

    gradients = []
    for batches in (together, alone):
        model = retraining.model_of(weights).eval()
        for batch in batches:
            sequences = batch.where(everything)
            loss, _ = tbptt.masked_loss(model, sequences, None)
            (loss * sequences.mask.sum() / len(everything)).backward()  # type: ignore[no-untyped-call]  # torch's stub
        gradients.append({name: value.grad for name, value in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize("config", CONFIGS, ids=names)
def test_chunks_with_the_carried_state_are_the_whole(config: ForecasterConfig) -> None:
    """Forward in pieces of 7 and 64 readings, and at once."""
    model = retraining.model_of(fresh(config)).eval()
    (batch,) = padded(len(LENGTHS))
    whole = tbptt.carried_losses(model, batch.sequences, 1000)
    for length in (7, 64):
        torch.testing.assert_close(tbptt.carried_losses(model, batch.sequences, length), whole, rtol=1e-5, atol=1e-5)


def test_what_stands_in_the_padding_does_not_matter() -> None:
    """Not even an infinity reaches a loss that counts, or a gradient."""
    everything = np.ones(sum(LENGTHS), np.bool_)
    (batch,) = padded(len(LENGTHS))
    is_padding = torch.from_numpy(batch.rows < 0)
    sequences = batch.where(everything)
    assert is_padding.any()
    assert not sequences.mask[is_padding].any()
    inputs = torch.where(is_padding.unsqueeze(-1), 1e6, sequences.inputs)
    wild = sequences._replace(inputs=inputs, y=torch.where(is_padding, -1e6, sequences.y))
    model = retraining.model_of(fresh(CONFIGS[0]))
    found = []
    for each in (sequences, wild):
        model.zero_grad()
        loss, _ = tbptt.masked_loss(model, each, None)
        loss.backward()  # type: ignore[no-untyped-call]  # torch's own stub
        found.append([loss.detach(), *(value.grad.clone() for value in model.parameters() if value.grad is not None)])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_a_history_with_alarms_is_learned_as_the_daemon_learns_it() -> None:
    """Readings that are not normal move the last value and neither location nor scale: `features.learn` by hand."""
    whole = some()
    normal = np.random.default_rng(1).random(len(whole.time)) < 0.8
    known = history.past(whole, normal)
    statistics = features.Statistics.allocate(1)
    slots = np.zeros(1, np.intp)
    for row in range(LENGTHS[0]):
        look = features.look(statistics, slots, whole.time[row : row + 1])
        np.testing.assert_array_equal(known.inputs[row], look.inputs[0])
        rows = slice(row, row + 1)
        features.learn(statistics, slots, whole.time[rows], whole.value[rows], normal[rows])
    assert (known.inputs != history.past(whole).inputs).any()


def test_it_learns_and_keeps_the_best() -> None:
    """What a fresh network does not know: the loss on later readings falls by what it says, repeatably."""
    weights, (train, stop) = fresh(CONFIGS[0]), parts(padded(2))
    recipe = replace(QUICK, epochs=12)
    fitted = retraining.fit(weights, train, stop, recipe, "cpu")
    assert fitted.is_better
    before, after = (float(fitted.figures[f"stopping_loss_{when}"]) for when in ("before", "after"))
    assert after < before - 0.1
    later = np.concatenate([np.arange(n) / n >= 0.7 for n in LENGTHS])
    found = retraining.losses(fitted.candidate, padded(3), later)[later].mean()
    assert found == pytest.approx(after, abs=1e-5)
    again = retraining.fit(weights, train, stop, recipe, "cpu")
    assert all(np.array_equal(value, again.candidate.tensors[name]) for name, value in fitted.candidate.tensors.items())


def test_what_is_worse_later_leaves_the_incumbent() -> None:
    """Targets of training that are shuffled teach nothing: what comes back are the incumbent's own numbers."""
    train, stop = parts(padded(3))
    good = load()
    rng = np.random.default_rng(0)
    mixed = [each._replace(y=each.y[:, torch.from_numpy(rng.permutation(each.y.shape[1]))]) for each in train]
    fitted = retraining.fit(good, mixed, stop, replace(QUICK, learning_rate=1e-2), "cpu")
    assert not fitted.is_better
    assert all(np.array_equal(value, good.tensors[name]) for name, value in fitted.candidate.tensors.items())


def test_numbers_that_are_none_are_an_error() -> None:
    """In the inputs, in the targets, and by a rate that throws the weights out of the world."""
    weights, (train, stop) = fresh(CONFIGS[0]), parts(padded(3))
    for name in ("inputs", "y"):
        broken = [each._replace(**{name: torch.full_like(getattr(each, name), torch.nan)}) for each in train]
        with pytest.raises(TrainingError):
            retraining.fit(weights, broken, stop, QUICK, "cpu")
    nowhere = [each._replace(y=torch.full_like(each.y, torch.nan)) for each in stop]
    with pytest.raises(TrainingError, match="incumbent's own loss"):
        retraining.fit(weights, train, nowhere, QUICK, "cpu")
    with pytest.raises(TrainingError, match="no number"):
        retraining.fit(weights, train, stop, replace(QUICK, learning_rate=1e38), "cpu")


def test_each_group_has_its_rate() -> None:
    """With a rate of 0 for input layer and head only the recurrent weights move; and the other way round."""
    weights, (train, stop) = fresh(CONFIGS[0]), parts(padded(3))
    frozen = retraining.fit(weights, train, stop, replace(QUICK, input_rate=0.0, head_rate=0.0), "cpu").candidate
    moved = {name for name, value in frozen.tensors.items() if not np.array_equal(value, weights.tensors[name])}
    assert moved == {"lstm.weight_hh_l0", "lstm.bias_ih_l0", "lstm.bias_hh_l0"}
    free = retraining.fit(weights, train, stop, replace(QUICK, input_rate=0.5), "cpu").candidate
    moved = {name for name, value in free.tensors.items() if not np.array_equal(value, weights.tensors[name])}
    assert moved == weights.tensors.keys()


def test_a_device_that_is_not_there_is_no_failure() -> None:
    """Without CUDA a training that asks for it says so and comes to what the CPU comes to."""
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device; the tests that need one run instead")
    weights, (train, stop) = fresh(CONFIGS[0]), parts(padded(3))
    told: list[str] = []
    fitted = retraining.fit(weights, train, stop, replace(QUICK, epochs=1), "cuda", told.append)
    assert fitted.figures["device"] == "cpu"
    assert str(fitted.figures["fell_back"]).startswith("cuda failed, it goes on with the CPU: ")
    assert fitted.figures["fell_back"] in told
    plain = retraining.fit(weights, train, stop, replace(QUICK, epochs=1), "auto")
    assert plain.figures["device"] == "cpu"
    assert "fell_back" not in plain.figures
    assert all(np.array_equal(value, plain.candidate.tensors[name]) for name, value in fitted.candidate.tensors.items())


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_gpu_without_memory_or_that_is_lost_leaves_the_cpu(error: Exception) -> None:
    """The work is done again from its beginning; a failure that is none of the device's is not hidden."""
    tried: list[str] = []

    def work(device: str) -> str:
        tried.append(device)
        if device == "cuda":
            raise error
        return "done"

    told: list[str] = []
    assert retraining.with_fall_back(work, "cuda", told.append) == "done"
    assert tried == ["cuda", "cpu"]
    assert str(error) in told[0]

    def ours(_device: str) -> str:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        retraining.with_fall_back(ours, "cuda", told.append)


def test_mixed_precision_learns_as_fp32_does(cuda: str) -> None:
    """On CUDA in float16, near to what the CPU comes to in fp32."""
    weights, (train, stop) = fresh(CONFIGS[0]), parts(padded(3))
    on_cpu, on_cuda = (retraining.fit(weights, train, stop, QUICK, device) for device in ("cpu", cuda))
    assert on_cuda.figures["device"] == "cuda"
    assert float(on_cuda.figures["stopping_loss_after"]) == pytest.approx(
        float(on_cpu.figures["stopping_loss_after"]), abs=0.1
    )


def test_mixed_precision_computes_the_loss_in_full() -> None:
    """bfloat16 on the CPU, by the same switch: near to fp32, and the loss itself is float32."""
    model = retraining.model_of(fresh(CONFIGS[0])).eval()
    (batch,) = padded(len(LENGTHS))
    full = tbptt.carried_losses(model, batch.sequences, 64)
    mixed = tbptt.carried_losses(model, batch.sequences, 64, mixed=torch.bfloat16)
    assert mixed.dtype == torch.float32
    assert not torch.equal(full, mixed)
    real = torch.from_numpy(batch.rows >= 0)
    assert float((full - mixed)[real].abs().mean()) < 0.05


def test_a_scaled_loss_teaches_the_same() -> None:
    """Scaled up by 2^16 and down again, clipped in between: the same weights; a gradient that overflows is left out."""
    sequences = padded(3)[0].where(np.ones(sum(LENGTHS), np.bool_))
    found = []
    for scaler in (None, torch.amp.GradScaler("cpu")):
        model = retraining.model_of(fresh(CONFIGS[0]))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        tbptt.train_pass(model, sequences, length=32, optimizer=optimizer, scaler=scaler)
        found.append(model.state_dict())
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], rtol=1e-5, atol=1e-6)
    model = retraining.model_of(fresh(CONFIGS[0]))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=math.inf)
    tbptt.train_pass(model, sequences, length=200, optimizer=optimizer, scaler=scaler)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_shipped_weights_go_on_as_they_were() -> None:
    """Encoding by padding is what pre-training's own encoding gives."""
    made = synthetic.generate(np.random.default_rng(9), 3, 60)
    whole = history.History(made.time.ravel(), made.value.ravel(), np.full(3, 60))
    (batch,) = retraining.padded(whole, np.ones(180, np.bool_))
    wanted = pretrain.encode(made.time, made.value)
    for name in ("inputs", "previous", "step", "y"):
        assert torch.equal(getattr(batch.sequences, name), getattr(wanted, name)), name
