"""What decides the scorer's weights, and what it learns from; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Lessons(NamedTuple):
    """Readings as the scorer is shown them; arrays `(series, steps)`."""

    inputs: NDArray[np.float16]
    """(series, steps, len(scorer.INPUTS))"""
    is_odd: NDArray[np.bool_]
    weight: NDArray[np.float16]
    """0: nobody can know, or there is no score"""


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that decides the weights."""

    seed: int = 1
    sets: int = 4
    """of lessons"""
    first_lesson: int = 101
    """seed of the first set; the others follow"""
    series: int = 1536
    """in a set"""
    steps: int = 4096
    hidden_size: int = 32
    updates: int = 3500
    batch: int = 192
    """series side by side"""
    chunk: int = 256
    """readings that the gradient is followed back through"""
    learning_rate: float = 4e-3
    final_share: float = 0.02
    """of the learning rate, where the cosine ends"""
    warm_up_updates: int = 100
    weight_decay: float = 1e-4
    average: float = 0.999
    """how much of the running mean of the weights each update keeps"""
