"""What is measured on a GPU: rows that say `not run` without one, and the same code in Triton's interpreter."""

from __future__ import annotations

import msgspec
import pytest
import torch

from streamer.bench import gpu, main
from streamer.bench.report import Report

SMALL = gpu.Options(series=70, batch=64, sequences=16, steps=3, repeats=1, host_repeats=1, noise_steps=6)


def test_what_a_gpu_would_show_is_not_run_without_one(capsys: pytest.CaptureFixture[str]) -> None:
    """Every row is named, with the reason; in the table too, and beside the figures of a training on the CPU."""
    for argv, rows, reason in (
        (["step", "--quick", "--device", "cpu"], gpu.STEP_ROWS, "not asked for: the device is the CPU"),
        (["train", "--quick", "--series", "2", "--steps", "16", "--device", "cpu"], gpu.LOOP_ROWS, "not asked for"),
        (["step", "--quick"], gpu.STEP_ROWS, "torch sees no CUDA device"),
    ):
        if argv == ["step", "--quick"] and torch.cuda.is_available():
            continue
        assert main([*argv, "--json"]) == 0
        report = msgspec.json.decode(capsys.readouterr().out, type=Report)
        assert isinstance(report.not_run, dict)
        assert report.not_run.keys() == rows.keys()
        assert not report.figures.keys() & rows.keys()
        assert all(reason in said for said in report.not_run.values())
    assert main(["step", "--quick", "--device", "cpu"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if "not run" in line]
    assert [line[0] for line in lines] == list(gpu.STEP_ROWS)


def test_a_report_of_everything_has_no_word_on_what_is_missing() -> None:
    """The JSON is as ever; what was left out once stays beside what is left out later."""
    report = Report({})
    report.leave_out([], "for nothing")
    assert msgspec.json.decode(report.json()) == {"machine": {}, "figures": {}}
    report.leave_out(["a"], "one")
    report.leave_out(["b"], "two")
    assert msgspec.json.decode(report.json())["not_run"] == {"a": "one", "b": "two"}


@pytest.mark.slow
def test_the_step_is_measured(interpreter: str) -> None:
    """The same code in Triton's interpreter: every figure that needs no graph, and why the others are not there."""
    report = Report({})
    said: list[str] = []
    gpu.Steps(report, SMALL, interpreter, said.append).run()
    assert isinstance(report.not_run, dict)
    graphs = {name for name in gpu.STEP_ROWS if name.startswith(("smallest", "host_to_host_256_over"))}
    assert report.not_run.keys() == graphs, said
    assert report.figures.keys() == gpu.STEP_ROWS.keys() - graphs
    assert all(figure.value > 0 for figure in report.figures.values())
    assert report.figures["error_over_torch_in_float16"].value < 1
    assert all("from the host's memory" in reason for reason in report.not_run.values())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:TF32 acceleration")  # of torch's own switch
def test_the_loop_is_measured(interpreter: str) -> None:
    """The same code in Triton's interpreter: every figure."""
    report = Report({})
    said: list[str] = []
    with torch.backends.mkldnn.flags(enabled=False):  # it does not differentiate torch's LSTM in float16
        gpu.Loops(report, SMALL, interpreter, said.append).run()
    assert report.not_run is msgspec.UNSET, said
    assert report.figures.keys() == gpu.LOOP_ROWS.keys()
    assert all(figure.value > 0 for figure in report.figures.values())


def test_the_step_on_a_gpu_is_measured(cuda: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Every figure."""
    assert main(["step", "--quick", "--device", cuda, "--json"]) == 0
    report = msgspec.json.decode(capsys.readouterr().out, type=Report)
    assert report.not_run is msgspec.UNSET
    assert report.figures.keys() == gpu.STEP_ROWS.keys()
