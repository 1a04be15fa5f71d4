"""What the verdicts on a set of recordings are worth, data set by data set, and how it is printed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from streamer.bench.quality.metrics import NabFile, Scored, caught, nab, over_chance, vus_pr
from streamer.bench.quality.recordings import Recording
from streamer.bench.quality.scoring import Verdict, unit_score
from streamer.bench.report import Better, Report
from streamer.labels import judge as judge_alarms

ENOUGH_EVENTS = 10  # of a data set with fewer, one event more or less decides: not in the mean, and nothing is wanted
PER_ROWS = 10_000

WANTED = {
    "mean_caught_at_1_per_10k": 0.55,
    "mean_vus_over_chance": 0.25,
    "nab_caught_at_1_per_10k": 0.65,
    "nab_score_standard": 75.0,
    "nab_score_low_fp": 66.0,
    "nab_score_low_fn": 80.0,
    "skab_caught_at_1_per_10k": 0.50,
    "skab_vus_pr": 0.80,
    "smap_caught_at_1_per_10k": 0.60,
    "msl_caught_at_1_per_10k": 0.30,
    "asd_caught_at_1_per_10k": 0.45,
    "3w_caught_at_1_per_10k": 0.80,
}


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one data set; NaN where nothing can be said, as of one without a labelled fault."""

    events: int
    rows: int
    """that count, over all its recordings"""
    caught: float
    """share of the events, at one false alarm in 10,000 rows"""
    delay: float
    """median share of a window that has passed by then"""
    caught_1k: float
    """share of the events, at one false alarm in 1,000 rows"""
    vus_pr: float
    vus_over_chance: float
    alarms: int
    """of the engine itself, at the score of 1"""
    alarmed_events: int
    """in which one of them opened"""
    false_alarms: int
    """of those alarms: opened neither in a window nor just after it"""

    @property
    def caught_by_alarm(self) -> float:
        return self.alarmed_events / self.events if self.events else math.nan

    @property
    def false_alarms_per_10k(self) -> float:
        return self.false_alarms * PER_ROWS / self.rows


def _ranked(each: Figures) -> dict[str, float]:
    """What is averaged over data sets, by its name in the report."""
    return {
        "caught_at_1_per_10k": each.caught,
        "delay": each.delay,
        "caught_at_1_per_1k": each.caught_1k,
        "vus_pr": each.vus_pr,
        "vus_over_chance": each.vus_over_chance,
    }


@dataclass(frozen=True, slots=True)
class Judgement:
    """All figures of one run."""

    machine: dict[str, str | float]
    datasets: dict[str, Figures]
    nab: dict[str, float]
    """NAB's own score by profile; empty without its recordings"""

    def means(self) -> dict[str, float]:
        """Over the data sets with enough events, each counting the same."""
        enough = [_ranked(each) for each in self.datasets.values() if each.events >= ENOUGH_EVENTS]
        return {name: _mean([each[name] for each in enough]) for name in enough[0]} if enough else {}

    def report(self) -> Report:
        """Every figure by its name; a figure that is not a number is left out."""
        report = Report(dict(self.machine))
        enough = {name.lower() for name, each in self.datasets.items() if each.events >= ENOUGH_EVENTS}
        if {name.partition("_")[0] for name in WANTED} - {"mean"} <= enough:
            enough.add("mean")

        def add(group: str, name: str, value: float, better: Better) -> None:
            full = f"{group}_{name}"
            if not math.isnan(value):
                report.add(full, value, WANTED.get(full) if group in enough else None, better)

        groups = {name.lower(): _ranked(each) for name, each in self.datasets.items()}
        for group, values in [("mean", self.means()), *groups.items()]:
            for name, value in values.items():
                add(group, name, value, "lower" if name == "delay" else "higher")
        for profile, value in self.nab.items():
            add("nab", f"score_{profile}", value, "higher")
        for group, each in ((name.lower(), each) for name, each in self.datasets.items()):
            add(group, "events", each.events, "higher")
            add(group, "alarms", each.alarms, "lower")
            add(group, "caught_by_alarm", each.caught_by_alarm, "higher")
            add(group, "false_alarms", each.false_alarms, "lower")
            add(group, "false_alarms_per_10k_rows", each.false_alarms_per_10k, "lower")
        return report

    def table(self) -> str:
        """For people: the machine, a row for each data set, NAB's score, and what is wanted."""
        lines = [f"{name}  {value}" for name, value in self.machine.items()]
        lines += ["", *_aligned([HEAD, *(_row(name, each) for name, each in self.datasets.items()), *self._sums()])]
        if self.nab:
            lines += ["", "NAB score  " + "  ".join(f"{name} {value:.1f}" for name, value in self.nab.items())]
        report = self.report()
        wanted = {name: figure for name, figure in report.figures.items() if figure.wanted is not None}
        if wanted:
            lines += ["", *Report({}, wanted).table().splitlines()[1:]]
        return "\n".join(lines)

    def _sums(self) -> list[list[str]]:
        means = [_text(value) for value in self.means().values()]
        sums = [[f"mean ({ENOUGH_EVENTS}+ events)", "", *means, *[""] * 4]] if means else []
        every = list(self.datasets.values())
        events, rows = sum(each.events for each in every), sum(each.rows for each in every)
        false_alarms = sum(each.false_alarms for each in every)
        alarmed = sum(each.alarmed_events for each in every) / events if events else math.nan
        alarms = [str(sum(each.alarms for each in every)), _text(alarmed), str(false_alarms)]
        sums.append(["all", str(events), *[""] * 5, *alarms, _text(false_alarms * PER_ROWS / rows)])
        return sums


HEAD = [
    "data set", "events", "caught@1/10k", "delay", "caught@1/1k", "VUS-PR", "VUS over chance",
    "alarms", "caught by alarm", "false alarms", "per 10,000",
]  # fmt: skip


def _row(name: str, each: Figures) -> list[str]:
    alarms = [str(each.alarms), _text(each.caught_by_alarm), str(each.false_alarms), _text(each.false_alarms_per_10k)]
    return [name, str(each.events), *(_text(value) for value in _ranked(each).values()), *alarms]


def _mean(values: Sequence[float]) -> float:
    """Of those that are known; NaN where none is."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def _text(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

    def line(row: Sequence[str]) -> str:
        right = "  ".join(f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True))
        return f"{row[0]:<{widths[0]}}  {right}".rstrip()

    return [line(row) for row in rows]


# --- From verdicts to figures ---


def judge(recordings: Sequence[Recording], verdicts: Sequence[Verdict], machine: dict[str, str | float]) -> Judgement:
    """The verdicts are the recordings', in their order."""
    pairs: dict[str, list[tuple[Recording, Verdict]]] = {}
    for recording, verdict in zip(recordings, verdicts, strict=True):
        pairs.setdefault(recording.dataset, []).append((recording, verdict))
    files = [NabFile(unit_score(v.score), r.windows, r.split) for r, v in pairs.get("NAB", [])]
    scores = nab(files) if any(len(file.windows) for file in files) else {}
    return Judgement(machine, {name: figures_of(each) for name, each in pairs.items()}, scores)


def figures_of(pairs: Sequence[tuple[Recording, Verdict]]) -> Figures:
    """Of the recordings of one data set."""
    parts = [Scored(unit_score(v.score)[r.split :], r.counted_windows) for r, v in pairs]
    at_10k, at_1k = caught(parts, PER_ROWS), caught(parts, 1000)
    labelled = [part for part in parts if 0 < part.labels().sum() < len(part.score)]
    volume = chance = math.nan
    if labelled:
        volume = float(np.mean([vus_pr(part) for part in labelled]))
        rng = np.random.default_rng(0)  # random scores, the same in every run
        chance = float(np.mean([vus_pr(Scored(rng.random(len(p.score)), p.windows)) for p in labelled]))
    alarms = [_alarms(recording, verdict) for recording, verdict in pairs]
    return Figures(
        events=sum(len(part.windows) for part in parts),
        rows=sum(len(part.score) for part in parts),
        caught=at_10k.share,
        delay=at_10k.delay,
        caught_1k=at_1k.share,
        vus_pr=volume,
        vus_over_chance=over_chance(volume, chance),
        alarms=sum(count for count, _, _ in alarms),
        alarmed_events=sum(events for _, events, _ in alarms),
        false_alarms=sum(wrong for _, _, wrong in alarms),
    )


def _alarms(recording: Recording, verdict: Verdict) -> tuple[int, int, int]:
    """Alarms after the warm-up, windows in which one opened, alarms that opened far from any window."""
    windows = recording.counted_windows
    opened = np.array([row - recording.split for row in verdict.alarms if row >= recording.split], np.int64)
    judged = judge_alarms(windows, opened)
    return len(opened), int((judged.caught >= 0).sum()), int(judged.is_false.sum())
