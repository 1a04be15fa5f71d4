"""What a measurement says: figures with what is wanted of them, and the machine that they were taken on."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

Better = Literal["higher", "lower"]


class Figure(msgspec.Struct, frozen=True):
    """One number; its name says its unit."""

    value: float
    wanted: float | None
    """the bound that it should keep; None: it is only shown"""
    better: Better

    def is_kept(self) -> bool:
        """True also where nothing is wanted."""
        if self.wanted is None:
            return True
        return self.value >= self.wanted if self.better == "higher" else self.value <= self.wanted


class Report(msgspec.Struct):
    """What `--json` prints."""

    machine: dict[str, str | float]
    figures: dict[str, Figure] = {}
    not_run: dict[str, str] | msgspec.UnsetType = msgspec.UNSET
    """why a figure is missing that would be here elsewhere, by its name"""

    def add(self, name: str, value: float, wanted: float | None, better: Better) -> None:
        self.figures[name] = Figure(float(f"{value:.4g}"), wanted, better)

    def leave_out(self, names: Iterable[str], reason: str) -> None:
        """These figures were not measured."""
        known = {} if self.not_run is msgspec.UNSET else self.not_run
        self.not_run = known | dict.fromkeys(names, reason) or msgspec.UNSET

    def json(self) -> str:
        return msgspec.json.format(msgspec.json.encode(self), indent=2).decode()

    def table(self) -> str:
        """For people."""
        left_out = {} if self.not_run is msgspec.UNSET else self.not_run
        width = max(map(len, [*self.figures, *self.machine, *left_out]))
        lines = [f"{name:<{width}}  {value}" for name, value in self.machine.items()]
        lines += ["", f"{'figure':<{width}}  {'value':>10}  {'wanted':>10}"]
        for name, figure in self.figures.items():
            sign = ">=" if figure.better == "higher" else "<="
            wanted = "" if figure.wanted is None else f"{sign} {figure.wanted:g}"
            missed = "" if figure.is_kept() else "  missed"
            lines.append(f"{name:<{width}}  {figure.value:>10g}  {wanted:>10}{missed}")
        lines += [f"{name:<{width}}  {'not run':>10}  {reason}" for name, reason in left_out.items()]
        return "\n".join(lines)


def machine() -> dict[str, str | float]:
    """What the figures depend on."""
    return {
        "processor": _processor(),
        "cores": float(len(os.sched_getaffinity(0))),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "load_average_before": round(os.getloadavg()[0], 2),
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


class Busy:
    """How many cores others kept busy meanwhile: what makes two runs differ."""

    def __init__(self, ours: Callable[[], float]) -> None:
        """`ours`: CPU seconds of everything that belongs to the measurement."""
        self._ours = ours
        self._before = self._reading()

    def elsewhere(self) -> float:
        """Cores, on average since the beginning."""
        (seconds, busy), (seconds_before, busy_before) = self._reading(), self._before
        return max(0.0, (busy - busy_before) / max(seconds - seconds_before, 1e-9))

    def _reading(self) -> tuple[float, float]:
        ticks = [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
        uptime = float(Path("/proc/uptime").read_text().split()[0])
        idle = ticks[3] + ticks[4]
        return uptime, (sum(ticks) - idle) / os.sysconf("SC_CLK_TCK") - self._ours()
