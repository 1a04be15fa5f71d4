"""`streamer bench`: what this machine makes of the daemon, and what the daemon makes of labelled faults, in figures."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from models.recipe import DEVICES
from streamer.bench.comparison import PEERS
from streamer.errors import ModelError

if TYPE_CHECKING:
    from streamer.bench import gpu


def main(argv: Sequence[str]) -> int:
    """Runs one measurement and prints a table, or JSON: 0 measured, 1 it could not be finished, 2 usage.

    For the main thread. Raises StreamerError for what a person can mend.
    """
    arguments = parser().parse_args(argv)
    measure: Callable[[argparse.Namespace], int] = arguments.measure
    return measure(arguments)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _ingest(arguments: argparse.Namespace) -> int:
    from streamer.bench.comparison import FULL, QUICK
    from streamer.bench.ingest import Options, measure
    from streamer.bench.processes import BenchError

    options = Options(
        messages=arguments.messages or (40_000 if arguments.quick else 400_000),
        series=arguments.series or (200 if arguments.quick else 1000),
        fields=arguments.fields,
        qos=arguments.qos,
        rate=arguments.rate,
        seconds=arguments.seconds,
        idle_seconds=2.0 if arguments.quick else 10.0,
        latency_seconds=2.0 if arguments.quick else 10.0,
        settings=tuple(arguments.overrides),
        against=tuple(arguments.against),
        sizes=QUICK if arguments.quick else FULL,
        many_series=(3000 if arguments.quick else 100_000) if arguments.many_series is None else arguments.many_series,
        many_messages=30_000 if arguments.quick else 300_000,
    )
    if options.series % options.fields:
        parser().error(f"--series {options.series} is no multiple of --fields {options.fields}")
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # or broker and daemon would be left behind
    try:
        report = measure(options, say=_say)
    except BenchError as error:
        _say(f"streamer bench: {error}")
        return 1
    finally:
        signal.signal(signal.SIGTERM, before)
    print(report.json() if arguments.json else report.table())
    return 0


def _quality(arguments: argparse.Namespace) -> int:
    from streamer.settings import load

    settings = load(arguments.config, arguments.overrides, os.environ, None)
    from streamer.bench.quality import measure

    words = [word.strip() for word in arguments.on.split(",") if word.strip()]
    judgement = measure(arguments.data, words, settings, arguments.scores, _say)
    print(judgement.report().json() if arguments.json else judgement.table())
    return 0


def _step(arguments: argparse.Namespace) -> int:
    from streamer.bench import gpu, step
    from streamer.bench.report import Report, machine

    report = Report(machine())
    step.add_steps(report, step.QUICK if arguments.quick else step.FULL, _say)
    gpu.add_steps(report, _on_gpu(arguments), arguments.device, _say)
    print(report.json() if arguments.json else report.table())
    return 0


def _scrape(arguments: argparse.Namespace) -> int:
    from streamer.bench.scrape import FULL, QUICK, measure

    report = measure(QUICK if arguments.quick else FULL, _say)
    print(report.json() if arguments.json else report.table())
    return 0


def _on_gpu(arguments: argparse.Namespace) -> gpu.Options:
    """What is measured on a GPU only; the sizes are those at which its limits were found."""
    from streamer.bench import gpu

    if arguments.quick:
        return gpu.Options(20_000, 8192, sequences=256, steps=16, repeats=2, host_repeats=20, noise_steps=50)
    return gpu.Options(1_000_000, 1 << 18, sequences=4096, steps=128, repeats=10, host_repeats=200, noise_steps=200)


def _train(arguments: argparse.Namespace) -> int:
    from models.weights import WeightsError
    from streamer.bench.training import Options, measure

    options = Options(
        series=arguments.series or (16 if arguments.quick else 128),
        steps=arguments.steps or (256 if arguments.quick else 2048),
        chunk=arguments.chunk,
        repeats=1 if arguments.quick else 5,
        threads=arguments.threads,
        device=arguments.device,
        loops=_on_gpu(arguments),
    )
    try:
        report = measure(options, say=_say)
    except WeightsError as error:
        raise ModelError(str(error)) from error
    print(report.json() if arguments.json else report.table())
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line behind `streamer bench`."""
    top = argparse.ArgumentParser(prog="streamer bench", description="Measure this machine.", allow_abbrev=False)
    kinds = top.add_subparsers(dest="kind", metavar="WHAT", required=True)
    ingest = kinds.add_parser(
        "ingest",
        help="a load generator, a real mosquitto and the daemon: from a published message to its score",
        description="Publish JSON messages to a private mosquitto, let the daemon score them, and print what it cost. "
        "Everything runs on loopback and ends with the measurement.",
        allow_abbrev=False,
    )
    ingest.add_argument("--messages", type=_count, metavar="N", help="of the load; 400000, with --quick 40000")
    ingest.add_argument("--series", type=_count, metavar="N", help="that they belong to; 1000, with --quick 200")
    ingest.add_argument("--fields", type=_count, default=1, metavar="N", help="readings in a message; 1")
    ingest.add_argument("--qos", type=int, choices=(0, 1), default=1, help="of publisher and subscription; 1")
    ingest.add_argument(
        "--rate", type=_rate, default=0.0, metavar="N",
        help="messages a second while latency is measured; without it, half of what the load has reached",
    )  # fmt: skip
    ingest.add_argument(
        "--seconds", type=_rate, default=60.0, metavar="N", help="after which the load ends in any case; 60"
    )
    ingest.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="overrides",
        help="a setting of the daemon, to compare with and without; may be repeated",
    )  # fmt: skip
    ingest.add_argument(
        "--against", type=_peers, default=_peers("all"), metavar="NAMES",
        help=f"programs to compare with, by comma: all (default), none, or of {', '.join(PEERS)}",
    )  # fmt: skip
    ingest.add_argument(
        "--many-series", type=_count_or_none, metavar="N",
        help="of a second daemon, for its rate and memory; 100000, with --quick 3000; 0: without it",
    )  # fmt: skip
    ingest.add_argument("--quick", action="store_true", help="a small load and short pauses: does it work at all")
    ingest.add_argument("--json", action="store_true", help="print one JSON object")
    ingest.set_defaults(measure=_ingest)
    _add_quality(kinds.add_parser(
        "quality",
        help="labelled recordings through the replay engine: which faults are caught, at how many false alarms",
        description="Score recordings side by side as `streamer replay` would, and compare scores and alarms with "
        "the labels.",
        allow_abbrev=False,
    ))  # fmt: skip
    _add_step(kinds.add_parser(
        "step",
        help="the streaming step on one core beside nn.LSTM and a large product; on a CUDA device beside its memory",
        description="Step the model on one core, beside torch's nn.LSTM and a large product of matrices; and on a CUDA "
        "device, in the kernel and by torch's own LSTM, and print how near to the device's limits each is. Without a "
        "device those figures are `not run`.",
        allow_abbrev=False,
    ))  # fmt: skip
    scrape = kinds.add_parser(
        "scrape",
        help="100,000 series in the exposition beside prometheus_client, and how long scoring waits meanwhile",
        description="Write the exposition of 100,000 series while readings are scored, and print what it costs.",
        allow_abbrev=False,
    )
    scrape.add_argument("--quick", action="store_true", help="5,000 series: does it work at all")
    scrape.add_argument("--json", action="store_true", help="print one JSON object")
    scrape.set_defaults(measure=_scrape)
    _add_train(kinds.add_parser(
        "train",
        help="series-steps a second of a retraining's loop, and the share of a bare nn.LSTM's that this is",
        description="Train on synthetic series by the loop of a retraining and by a bare one around torch's nn.LSTM, "
        "in turn, and print how fast each is.",
        allow_abbrev=False,
    ))  # fmt: skip
    return top


def _add_step(step: argparse.ArgumentParser) -> None:
    step.add_argument("--device", choices=DEVICES, default="auto", help="where; auto (default) takes CUDA if there is")
    step.add_argument("--quick", action="store_true", help="a small load: does it work at all")
    step.add_argument("--json", action="store_true", help="print one JSON object")
    step.set_defaults(measure=_step)


def _add_train(train: argparse.ArgumentParser) -> None:
    train.add_argument("--series", type=_count, metavar="N", help="trained on side by side; 128, with --quick 16")
    train.add_argument("--steps", type=_count, metavar="N", help="readings of each; 2048, with --quick 256")
    train.add_argument("--chunk", type=_count, default=256, metavar="N", help="readings between two updates; 256")
    train.add_argument("--threads", type=_count, default=1, metavar="N", help="of torch, on the CPU; 1")
    train.add_argument("--device", choices=DEVICES, default="auto", help="where; auto (default) takes CUDA if there is")
    train.add_argument("--quick", action="store_true", help="a small load: does it work at all")
    train.add_argument("--json", action="store_true", help="print one JSON object")
    train.set_defaults(measure=_train)


def _add_quality(quality: argparse.ArgumentParser) -> None:
    quality.add_argument(
        "--data", type=Path, required=True, metavar="DIR", help="a folder with lists (lite.txt) and packs (data/*.npz)"
    )
    quality.add_argument(
        "--on", default="lite", metavar="WHICH", help="a list, a data set or a recording; several by comma; lite"
    )
    quality.add_argument("--scores", type=Path, metavar="DIR", help="save the scores of each recording, as NAME.npy")
    quality.add_argument("--config", type=Path, metavar="FILE", help="settings in TOML, as of `streamer replay`")
    quality.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", dest="overrides",
        help="one setting, to compare with and without; may be repeated",
    )  # fmt: skip
    quality.add_argument("--json", action="store_true", help="print one JSON object")
    quality.set_defaults(measure=_quality)


def _count(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) <= 100_000_000:
        raise argparse.ArgumentTypeError(f"found {text}; expected an integer from 1 to 100000000")
    return int(text)


def _count_or_none(text: str) -> int:
    return 0 if text == "0" else _count(text)


def _peers(text: str) -> list[str]:
    if text in ("all", "none"):
        return list(PEERS) if text == "all" else []
    names = [name.strip() for name in text.split(",")]
    unknown = [name for name in names if name not in PEERS]
    if unknown:
        raise argparse.ArgumentTypeError(f"found {', '.join(unknown)}; expected all, none, or of {', '.join(PEERS)}")
    return names


def _rate(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"found {text}; expected a number above 0")
    return number
