"""Goes on training a forecaster on a site's own readings: warm start, truncated BPTT, early stopping on a time split.

The best weights on the later part are kept, the incumbent's own among them; then they are drawn back towards the
incumbent as far as that is better still (Wortsman et al. 2022, "Robust fine-tuning of zero-shot models"): what a site
of few readings teaches is right in its direction and too much in its size.

fp32 on the CPU; on CUDA the layers compute in float16, which is what torch's autocast hands to cuDNN's LSTM whatever
type it is asked for (`_cudnn_rnn_cast_reflatten`), so the loss is scaled. A GPU that has no memory left, or is lost, is
no failure: the same is done on the CPU, from the beginning.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from models import tbptt
from models.forecaster import Forecaster
from models.history import History, past
from models.tbptt import Sequences
from models.weights import Weights

T = TypeVar("T")
Tensors = dict[str, torch.Tensor]
Say = Callable[[str], None]

DRAWN_BACK = (0.25, 0.5, 0.75)  # of the way from the incumbent to the best
MIXED = torch.float16
EVALUATED = 512  # steps of a chunk in which nothing is learned
BATCH_SERIES = 32


class TrainingError(Exception):
    """Training came to numbers that are none; the text says which."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that decides the candidate, beside the readings."""

    learning_rate: float = 3e-4
    """of the recurrent layers"""
    input_rate: float = 0.3
    """of the first layer's input weights, as a multiple of it"""
    head_rate: float = 0.3
    """of read-out and head, as a multiple of it"""
    epochs: int = 30
    patience: int = 6
    """epochs without a better loss on the later part, after which it ends"""
    chunk: int = 256
    """readings that the gradient is followed back through"""
    clip: float = 1.0
    weight_decay: float = 0.0
    warm_up_updates: int = 20
    """until the full rate: the first steps of Adam are as long as any, and know least"""
    average: float = 0.98
    """how much of the running mean of the weights each update keeps"""
    seed: int = 1
    threads: int = 1
    """of torch, on the CPU"""


class Fitted(NamedTuple):
    """What a training came to."""

    candidate: Weights
    """the incumbent's own tensors if nothing was better"""
    is_better: bool
    """on the later part; a judgement needs more"""
    figures: dict[str, float | str]


def fit(
    incumbent: Weights,
    train: Sequence[Sequences],
    valid: Sequence[Sequences],
    recipe: Recipe,
    device: str = "auto",
    say: Say = lambda _: None,
) -> Fitted:
    """Trains on the steps that `train` masks, stops by those that `valid` masks.

    Both are batches of padded sequences from the beginning of each series, those of `valid` longer: the state comes
    from what was before. `device`: auto, cpu or cuda. Raises TrainingError.
    """
    where = "cuda" if device == "cuda" or (device == "auto" and torch.cuda.is_available()) else "cpu"
    troubles: list[str] = []
    fitted = with_fall_back(lambda place: _Fit(incumbent, recipe, place, say).run(train, valid), where, troubles.append)
    for trouble in troubles:
        say(trouble)
        fitted.figures["fell_back"] = trouble
    return fitted


def with_fall_back(work: Callable[[str], T], device: str, say: Say) -> T:
    """`work(device)`; where a GPU has no memory left or fails, `work("cpu")`. Other errors are the work's own."""
    if device == "cpu":
        return work("cpu")
    try:
        return work(device)
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch was built without CUDA
        if not _is_of_the_device(error):
            raise
        say(f"{device} failed, it goes on with the CPU: {str(error).splitlines()[0]}")
    return work("cpu")


def _is_of_the_device(error: Exception) -> bool:
    lost = getattr(torch, "AcceleratorError", torch.OutOfMemoryError)
    words = ("CUDA", "cuDNN", "CUBLAS", "NVIDIA")
    return isinstance(error, torch.OutOfMemoryError | lost) or any(word in str(error) for word in words)


class _Fit:
    """One training on one device."""

    def __init__(self, incumbent: Weights, recipe: Recipe, device: str, say: Say) -> None:
        torch.set_num_threads(recipe.threads)
        torch.manual_seed(recipe.seed)
        self._incumbent, self._recipe, self._device, self._say = incumbent, recipe, device, say
        self._mixed = MIXED if device != "cpu" else None
        self._model = model_of(incumbent).to(device)
        self._scaler = torch.amp.GradScaler(device, enabled=self._mixed is not None)
        groups = tbptt.parameter_groups(self._model, recipe.head_rate, recipe.input_rate)
        self._optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
        self._average = self._tensors()
        self._updates = 0
        self._set_rate()

    def run(self, train: Sequence[Sequences], valid: Sequence[Sequences]) -> Fitted:
        recipe, rng = self._recipe, np.random.default_rng(self._recipe.seed)
        begin = self._tensors()
        before = self._loss(valid)
        if not math.isfinite(before):
            raise TrainingError(
                "the incumbent's own loss is no number: there is something in the readings that is none"
            )
        best, least, at, epoch = begin, before, 0, 0
        while epoch < recipe.epochs and epoch - at < recipe.patience:
            epoch += 1
            self._epoch(train, rng)
            loss = self._loss_of(self._average, valid)
            self._say(f"epoch {epoch}: {loss:.4f} nats a reading on the later part, the incumbent {before:.4f}")
            if not math.isfinite(loss):
                raise TrainingError(f"epoch {epoch} came to a loss that is no number")
            if loss < least:
                best, least, at = {name: value.clone() for name, value in self._average.items()}, loss, epoch
        drawn_to = 1.0
        if at:
            for share in DRAWN_BACK:
                between = {name: torch.lerp(begin[name], value, share) for name, value in best.items()}
                loss = self._loss_of(between, valid)
                if loss < least:
                    least, drawn_to = loss, share
            best = {name: torch.lerp(begin[name], value, drawn_to) for name, value in best.items()}
        figures: dict[str, float | str] = {
            "stopping_loss_before": before,
            "stopping_loss_after": least,
            "epochs": float(epoch),
            "best_epoch": float(at),
            "drawn_to": drawn_to if at else 0.0,
            "updates": float(self._updates),
            "device": self._device,
        }
        arrays = {name: value.cpu().numpy().astype(np.float32) for name, value in best.items()}
        if not all(np.isfinite(value).all() for value in arrays.values()):
            raise TrainingError("there are weights that are no numbers")
        return Fitted(replace(self._incumbent, tensors=arrays, recipe={}, sha256=""), at > 0, figures)

    def _epoch(self, train: Sequence[Sequences], rng: np.random.Generator) -> None:
        self._model.train()
        for index in rng.permutation(len(train)).tolist():
            loss = tbptt.train_pass(
                self._model,
                train[index].to(self._device),
                length=self._recipe.chunk,
                optimizer=self._optimizer,
                clip=self._recipe.clip,
                mixed=self._mixed,
                scaler=self._scaler,
                after_update=self._updated,
            )
            if not math.isfinite(loss):
                raise TrainingError("training came to a loss that is no number")

    def _updated(self, _loss: float) -> None:
        self._updates += 1
        keep = min(self._recipe.average, self._updates / (self._updates + 10))
        with torch.no_grad():
            for name, value in self._model.state_dict().items():
                self._average[name].lerp_(value, 1 - keep)
        self._set_rate()

    def _set_rate(self) -> None:
        share = min(1.0, (self._updates + 1) / self._recipe.warm_up_updates)
        for group in self._optimizer.param_groups:
            group["lr"] = self._recipe.learning_rate * group["rate"] * share

    def _loss_of(self, tensors: Tensors, valid: Sequence[Sequences]) -> float:
        """With these weights; those in training stay."""
        mine = self._tensors()
        self._model.load_state_dict(tensors)
        loss = self._loss(valid)
        self._model.load_state_dict(mine)
        return loss

    def _loss(self, valid: Sequence[Sequences]) -> float:
        """A reading, over all that count."""
        self._model.eval()
        total, count = 0.0, 0
        for batch in valid:
            here = batch.to(self._device)
            losses = tbptt.carried_losses(self._model, here, EVALUATED, mixed=self._mixed)
            total += float(losses[here.mask].double().sum())
            count += int(here.mask.sum())
        return total / max(count, 1)

    def _tensors(self) -> Tensors:
        return {name: value.detach().clone() for name, value in self._model.state_dict().items()}


def model_of(weights: Weights) -> Forecaster:
    """The network of these weights, on the CPU."""
    model = Forecaster(weights.config)
    model.load_state_dict({name: torch.from_numpy(value) for name, value in weights.tensors.items()})
    return model


# --- From histories to sequences ---


class Padded(NamedTuple):
    """Some series of a history side by side, the shorter ones with zeros behind them."""

    sequences: Sequences
    """nothing is masked yet"""
    rows: NDArray[np.int32]
    """(batch, time): which reading of the history each step is, -1 for padding"""

    def where(self, chosen: NDArray[np.bool_]) -> Sequences:
        """Only the readings that are `chosen` `(n,)` count; what follows the last of them is left out."""
        mask = (self.rows >= 0) & chosen[self.rows]
        steps = int(np.flatnonzero(mask.any(axis=0)).max(initial=0)) + 1
        return self.sequences._replace(mask=torch.from_numpy(mask)).chunk(0, steps)


def padded(history: History, normal: NDArray[np.bool_], at_once: int = BATCH_SERIES) -> list[Padded]:
    """The history in batches of series of about one length; `normal` as in `models.history.past`."""
    first = np.cumsum(history.lengths) - history.lengths
    by_length = np.argsort(history.lengths, kind="stable")
    return [
        _padded(history, normal, first, by_length[begin : begin + at_once])
        for begin in range(0, len(by_length), at_once)
    ]


def _padded(history: History, normal: NDArray[np.bool_], first: NDArray[np.intp], series: NDArray[np.intp]) -> Padded:
    lengths = history.lengths[series]
    step = np.arange(int(lengths.max()))
    is_real = step < lengths[:, None]
    rows = np.where(is_real, first[series][:, None] + step, -1).astype(np.int32)
    flat = rows[is_real]
    known = past(History(history.time[flat], history.value[flat], lengths), normal[flat])
    parts: list[torch.Tensor] = []
    for array in (known.inputs, known.previous, known.step, known.y):
        wide = np.zeros((*rows.shape, *array.shape[1:]), np.float32)
        wide[is_real] = array
        parts.append(torch.from_numpy(wide))
    inputs, previous, step_y, y = parts
    nothing = torch.zeros(rows.shape, dtype=torch.bool)
    return Padded(Sequences(inputs, previous, step_y, y, nothing), rows)


def losses(weights: Weights, batches: Sequence[Padded], chosen: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The log-loss of each reading `(n,)` of the history that `batches` hold, in fp32; NaN where it is not `chosen`."""
    model = model_of(weights).eval()
    found = np.full(len(chosen), np.nan)
    for batch in batches:
        sequences = batch.where(chosen)
        mask = sequences.mask.numpy()
        rows = batch.rows[:, : mask.shape[1]][mask]
        found[rows] = tbptt.carried_losses(model, sequences, EVALUATED).numpy()[mask]
    return found
