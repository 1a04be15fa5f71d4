"""The command line: what goes where, the exit status, and that a command imports no more than it needs."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from models.features import INPUT_SIZE
from models.weights import ForecasterConfig, Weights, expected_shapes, load, save
from streamer.cli import main, parser
from streamer.http import Server
from tests.servers import HOST, Certificates, free_port
from tests.states import flip, make_state, snapshots


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in os.environ:
        if name.startswith("STREAMER_") or name in ("CREDENTIALS_DIRECTORY", "STATE_DIRECTORY", "XDG_STATE_HOME"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Weights of a forecaster that has learned nothing."""
    config = ForecasterConfig(input_size=INPUT_SIZE, hidden_size=3)
    tensors = {name: np.zeros(shape, np.float32) for name, shape in expected_shapes(config).items()}
    save(Weights(config, tensors, {}), tmp_path / "w.safetensors")
    return tmp_path / "w.safetensors"


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of one command in this process."""
    status = main(argv)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


# --- Usage ---


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["rum"],
        ["run", "--conf", "x"],
        ["run", "extra"],
        ["run", "--set"],
        ["replay"],
        ["demo", "--seconds", "0"],
        ["demo", "--seconds", "nan"],
        ["demo", "--port", "65536"],
        ["version", "--text"],
        ["train", "--pretrain", "w.safetensors", "--device", "tpu"],
        ["train", "--pretrain", "w.safetensors", "--rounds", "many"],
    ],
)
def test_wrong_usage_is_refused(capsys: pytest.CaptureFixture[str], argv: list[str]) -> None:
    """What the command line does not know is refused with exit status 2 and a word on how to call it."""
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "usage: streamer" in captured.err


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    """--help answers on standard output with exit status 0."""
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    for name in ("run", "demo", "check", "explain", "replay", "state", "train", "bench", "health", "version"):
        assert f"    {name} " in out


def test_bench_takes_every_argument_as_it_is() -> None:
    """What follows `bench` belongs to the measurement, options included."""
    argv = ["ingest", "--json", "--help", "-x", "--set", "a=b"]
    assert parser().parse_args(["bench", *argv]).arguments == argv


@pytest.mark.parametrize("command", ["run", "check", "replay", "explain", "state", "health"])
def test_wrong_settings_are_refused_by_every_command(capsys: pytest.CaptureFixture[str], command: str) -> None:
    """Every command that reads settings refuses bad ones with exit status 2, and a text without traceback."""
    operands = {"replay": ["x.csv"], "explain": ["a", "1"]}.get(command, [])
    status, out, err = run(capsys, command, *operands, "--set", "mqtt.hots=1")
    assert (status, out) == (2, "")
    assert err == (
        f"streamer {command}: 1 problem in the settings:\n"
        "  --set mqtt.hots: no such setting; the closest known name is mqtt.host\n"
    )


@pytest.mark.parametrize(
    "argv",
    [
        ["check"],
        ["explain", "a/b", '{"temperature": 21.5}'],
        ["health", "--url", "http://127.0.0.1:1"],
        ["version"],
        ["run", "--set", "x=1"],
        ["train"],
        ["train", "--pretrain", "w.safetensors", "--cell", "elman"],
        ["--help"],
    ],
    ids=lambda argv: "-".join(argv[:2]),
)
def test_commands_without_a_model_never_import_torch(argv: list[str], weights: Path) -> None:
    """A health check or a look at a payload costs no second of torch's import."""
    if argv == ["check"]:
        argv = ["check", "--set", f"model.weights={weights}"]
    code = (
        "import sys; from streamer.cli import main\n"
        f"try: main({argv!r})\n"
        "except SystemExit: pass\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_a_reader_that_leaves_is_no_error() -> None:
    """`streamer ... | head` ends without a traceback."""
    read, write = os.pipe()
    os.close(read)
    with open(write, "wb") as gone:
        done = subprocess.run(
            [sys.executable, "-m", "streamer", "version"], stdout=gone, stderr=subprocess.PIPE, timeout=60, check=False
        )
    assert (done.returncode, done.stderr) == (1, b"")


# --- state ---


def test_state_tells_what_a_start_would_reach(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A few lines for people, all for programs; the directory of the settings unless another is named."""
    make_state(tmp_path / "state")
    status, out, _ = run(capsys, "state", "--set", f"state.directory={tmp_path / 'state'}")
    lines = dict(line.split("  ", 1) for line in out.splitlines() if not line.startswith(" "))
    assert status == 0
    assert lines["series"].strip() == "4"
    assert lines["readings"].strip() == "160"
    assert lines["snapshot-000000000002.snap"].endswith("bytes, used")
    found = json.loads(run(capsys, "state", str(tmp_path / "state"), "--json")[1])
    assert found["sha256"] == lines["SHA-256"].strip()
    assert found["readings_applied"]["plant/3#temperature"] == 40
    assert found["snapshots"][0] == {
        "file": "snapshot-000000000002.snap", "position": 21, "trouble": None,
        "size_bytes": (tmp_path / "state" / "snapshot-000000000002.snap").stat().st_size,
    }  # fmt: skip


def test_state_shows_ten_of_many_series(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """And says how many more there are."""
    make_state(tmp_path / "state", admit_at={k: f"plant/new{k}" for k in range(9)})
    out = run(capsys, "state", str(tmp_path / "state"))[1]
    assert "3 more series; --json has all" in out
    assert out.count("plant/") == 10


def test_damaged_state_is_exit_status_1_and_none_is_2(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """What a start would lose is named."""
    make_state(tmp_path / "state")
    flip(snapshots(tmp_path / "state")[-1], -50)
    status, out, _ = run(capsys, "state", str(tmp_path / "state"))
    assert status == 1
    assert "is damaged: its SHA-256 is not the one that it was written with; a start would set it aside" in out
    status, out, err = run(capsys, "state", str(tmp_path / "none"))
    assert (status, out) == (2, "")
    assert err.startswith(f"streamer state: {tmp_path / 'none'}: cannot be read by user")


# --- explain ---


def test_explain_shows_how_a_message_is_read(capsys: pytest.CaptureFixture[str]) -> None:
    """Series, value, time and device of each reading; with --json the same as an object."""
    status, out, _ = run(capsys, "explain", "zigbee2mqtt/kitchen", '{"temperature": 21.5}')
    assert status == 0
    assert "zigbee2mqtt/kitchen#temperature = 21.5" in out
    status, out, _ = run(capsys, "explain", "--json", "zigbee2mqtt/kitchen", '{"temperature": 21.5}')
    (reading,) = json.loads(out)["readings"]
    assert (status, reading["key"], reading["value"]) == (0, "zigbee2mqtt/kitchen#temperature", 21.5)


def test_explain_says_why_a_message_is_rejected(capsys: pytest.CaptureFixture[str]) -> None:
    """A message without a reading has exit status 1, the reason, and what would help."""
    status, out, err = run(capsys, "explain", "a/b", '{"temperature": }')
    assert (status, err) == (1, "")
    assert "bad_json" in out


def test_explain_follows_the_settings(capsys: pytest.CaptureFixture[str]) -> None:
    """Rules and globs of the settings hold, and the daemon's own output is left out."""
    rule = "input.rules=[{pattern='plant/{line}/{metric...}', device='{line}'}]"
    status, out, _ = run(capsys, "explain", "plant/a/b/c", "1", "--set", rule, "--json")
    assert (status, json.loads(out)["levels"]) == (0, {"line": "a", "metric": "b/c"})
    assert json.loads(out)["readings"][0]["device"] == "a"
    status, out, _ = run(capsys, "explain", "plant/a", "1", "--set", "input.exclude=['plant/*']", "--json")
    assert (status, json.loads(out)["wanted"]) == (1, False)
    status, out, _ = run(capsys, "explain", "streamer/x/status", "1", "--set", "instance=x", "--json")
    assert (status, json.loads(out)["wanted"]) == (1, False)
    status, out, _ = run(capsys, "explain", "plant/a", "1", "--set", "mqtt.subscribe=['lab/#', 'plant/+/x']")
    assert status == 1
    assert "mqtt.subscribe is lab/#, plant/+/x" in out


def test_explain_reads_bytes_from_elsewhere(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`-` is standard input and --file a file, both as bytes; one of the three has to be there."""
    (tmp_path / "payload").write_bytes(b"7")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfe")))
    assert "bad_utf8" in run(capsys, "explain", "a", "-")[1]
    assert "a = 7.0" in run(capsys, "explain", "a", "--file", str(tmp_path / "payload"))[1]
    assert run(capsys, "explain", "a")[0] == 2
    assert run(capsys, "explain", "a", "1", "--file", "x")[0] == 2
    status, _, err = run(capsys, "explain", "a", "--file", str(tmp_path / "absent"))
    assert status == 2
    assert "absent: cannot be read" in err


# --- check ---


def test_check_shows_what_would_be_used(capsys: pytest.CaptureFixture[str], weights: Path, tmp_path: Path) -> None:
    """State, weights, TLS, and every setting that is not at its default with its place; nothing is created."""
    config = tmp_path / "streamer.toml"
    config.write_text(f'[model]\nweights = "{weights.name}"\n[mqtt]\nport = 1884\n')
    status, out, err = run(capsys, "check", "--config", str(config))
    assert (status, err) == (0, "")
    assert f"{tmp_path}/.local/state/streamer (will be created)" in out
    assert f"1884  ({config}: mqtt.port)" in out
    assert not (tmp_path / ".local").exists()
    status, out, _ = run(capsys, "check", "--config", str(config), "--json")
    found = json.loads(out)
    assert found["settings"]["mqtt.port"] == {"value": 1884, "from": f"{config}: mqtt.port"}
    assert found["settings"]["mqtt.host"] == {"value": "127.0.0.1", "from": "default"}
    assert found["tls"] == "off"


def test_check_never_shows_the_password(capsys: pytest.CaptureFixture[str], weights: Path, tmp_path: Path) -> None:
    """Neither form of the answer holds it."""
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    (secrets / "mqtt.password").write_text("s3cret")
    argv = ["check", "--secrets", str(secrets), "--set", "mqtt.username=ann", "--set", f"model.weights={weights}"]
    for more in ([], ["--json"]):
        status, out, err = run(capsys, *argv, *more)
        assert status == 0
        assert "mqtt.password" in out
        assert "s3cret" not in out + err


def test_check_shows_of_an_address_no_more_than_its_host(capsys: pytest.CaptureFixture[str], weights: Path) -> None:
    """Many a chat's webhook has its secret in the path."""
    url = "webhook.url=https://hooks.example/T0/SECRET?token=SECRET"
    overrides = ["--set", url, "--set", f"model.weights={weights}"]
    for form in ([], ["--json"]):
        main(["check", *overrides, *form])
        captured = capsys.readouterr()
        assert "https://hooks.example" in captured.out
        assert "SECRET" not in captured.out + captured.err


def test_check_names_everything_that_cannot_be_used(
    capsys: pytest.CaptureFixture[str], weights: Path, tmp_path: Path
) -> None:
    """A damaged weights file, a file where the state directory should be, and a bad certificate come at once."""
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    (tmp_path / "state").touch()
    (tmp_path / "ca.pem").write_text("no certificate")
    status, out, err = run(
        capsys, "check", "--set", f"model.weights={weights}", "--set", f"state.directory={tmp_path}/state",
        "--set", "mqtt.tls.enabled=true", "--set", f"mqtt.tls.ca_file={tmp_path}/ca.pem",
    )  # fmt: skip
    assert (status, out) == (2, "")
    assert len(err.splitlines()) == 4
    for file in ("w.safetensors", "state", "ca.pem"):
        assert f"{tmp_path}/{file}" in err


def test_check_loads_certificates(
    capsys: pytest.CaptureFixture[str], weights: Path, certificates: Certificates
) -> None:
    """A certificate and its key are loaded; one that does not fit is refused."""
    argv = ["check", "--set", f"model.weights={weights}", "--set", "mqtt.tls.enabled=true"]
    argv += ["--set", f"mqtt.tls.ca_file={certificates.ca}"]
    argv += ["--set", f"mqtt.tls.cert_file={certificates.client_cert}"]
    status, out, err = run(capsys, *argv, "--set", f"mqtt.tls.key_file={certificates.client_key}")
    assert (status, err) == (0, "")
    assert f"client certificate: {certificates.client_cert}" in out
    status, _, err = run(capsys, *argv, "--set", f"mqtt.tls.key_file={certificates.ca}")
    assert status == 2
    assert str(certificates.client_cert) in err


# --- Weights that cannot serve ---


@pytest.fixture
def signals_as_before() -> Iterator[None]:
    """`run` holds signals back in this thread, and so would whatever it starts from then on."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    yield
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@pytest.mark.usefixtures("signals_as_before")
@pytest.mark.parametrize("command", [["run"], ["check"], ["replay", "readings.csv"]], ids=lambda argv: str(argv[0]))
def test_weights_that_look_ahead_are_refused_at_the_start(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, command: list[str]
) -> None:
    """By whatever would stream with them, with exit status 2: before a file is read or a broker is asked."""
    config = ForecasterConfig(input_size=INPUT_SIZE, hidden_size=3, bidirectional=True)
    tensors = {name: np.zeros(shape, np.float32) for name, shape in expected_shapes(config).items()}
    save(Weights(config, tensors, {}), tmp_path / "both.safetensors")
    argv = [*command, "--set", f"model.weights={tmp_path}/both.safetensors", "--set", f"state.directory={tmp_path}/s"]
    status, out, err = run(capsys, *argv)
    assert (status, out) == (2, "")
    assert "both.safetensors: found bidirectional weights, which cannot stream" in err
    assert not (tmp_path / "s").exists()


# --- train ---

TINY = ("--rounds", "2", "--series", "4", "--steps", "40", "--chunk", "20", "--hidden-size", "6", "--device", "cpu")


def readings(path: Path, n: int = 60) -> Path:
    """A file for `replay`: one series that goes up and down."""
    rows = [f"{1_700_000_000 + 60 * k},{20 + np.sin(k / 5) + 0.1 * (k % 7):.3f}" for k in range(n)]
    path.write_text("time,x\n" + "\n".join(rows) + "\n")
    return path


@pytest.mark.parametrize("cell", ["lstm", "peephole", "coupled", "gru"])
def test_every_cell_is_trained_saved_and_streams(capsys: pytest.CaptureFixture[str], tmp_path: Path, cell: str) -> None:
    """`train --pretrain --cell` makes weights that `check` finds sound and `replay` scores with, by the file alone."""
    out = tmp_path / "w.safetensors"
    status, text, err = run(capsys, "train", "--pretrain", str(out), "--cell", cell, *TINY, "--json")
    assert status == 0
    figures = json.loads(text)
    assert figures["sha256"] == load(out).sha256
    assert load(out).config.cell == cell
    assert [line.split()[:2] for line in err.splitlines()] == [["round", "1/2"], ["round", "2/2"]]
    assert run(capsys, "check", "--set", f"model.weights={out}")[0] == 0
    status, text, _ = run(capsys, "replay", str(readings(tmp_path / "r.csv")), "--set", f"model.weights={out}")
    scores = [line.split(",")[6] for line in text.splitlines()[1:]]
    assert status == 0
    assert scores[:20] == [""] * 20
    assert all(float(score) >= 0 for score in scores[20:])


def test_history_is_labelled_with_bidirectional_weights_only(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """With others `--offline-label` is refused and says how to train them; those then label, and do not stream."""
    both, file = tmp_path / "both.safetensors", str(readings(tmp_path / "r.csv"))
    status, out, err = run(capsys, "replay", "--offline-label", file)
    assert (status, out) == (2, "")
    assert "base.safetensors: found weights that read a series from its beginning only" in err
    assert "streamer train --pretrain --bidirectional OUT.safetensors" in err
    assert run(capsys, "train", "--pretrain", "--bidirectional", str(both), *TINY)[0] == 0
    status, out, _ = run(capsys, "replay", "--offline-label", file, "--set", f"model.weights={both}")
    assert (status, len(out.splitlines())) == (0, 61)
    assert out.splitlines()[-1].split(",")[6] != ""
    assert run(capsys, "replay", file, "--set", f"model.weights={both}")[0] == 2


def test_train_without_its_word_says_what_there_is(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """No daemon to ask; no OUT; a place that cannot be written; a name that is a manifest's: exit status 2 each."""
    for argv, named in (
        (["--set", f"state.directory={tmp_path / 'state'}"], "no daemon runs on"),
        (["w.safetensors"], "found w.safetensors without --pretrain"),
        (["--pretrain"], "found no OUT"),
        (["--pretrain", str(tmp_path / "absent" / "w.safetensors")], "absent/w.safetensors: cannot be written"),
        (["--pretrain", str(tmp_path / "w.json")], "is the name of a manifest"),
        (["--pretrain", str(tmp_path / "w.safetensors"), "--average", "2"], "an average from 0 to below 1"),
    ):
        status, out, err = run(capsys, "train", *argv)
        assert (status, out) == (2, "")
        assert err.startswith("streamer train: ")
        assert named in err
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_is_refused_where_there_is_none(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Never silently the CPU, on which it takes a night."""
    argv = ["train", "--pretrain", str(tmp_path / "w.safetensors"), *TINY, "--device", "cuda"]
    status, _, err = run(capsys, *argv)
    assert status == 2
    assert "found no CUDA device" in err


@pytest.mark.slow
def test_an_interrupted_training_goes_on_where_it_was(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Ctrl-C ends it with 130 and says what to do; the same command then makes the same weights as without it."""
    switches = [*TINY, "--rounds", "40", "--steps", "60"]
    out, whole = tmp_path / "w.safetensors", tmp_path / "whole.safetensors"
    # Where the tests run in the background, SIGINT is ignored, and a child inherits that.
    code = (
        "import signal, sys; from streamer.cli import main\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler); sys.exit(main(sys.argv[1:]))"
    )
    argv = [sys.executable, "-c", code, "train", "--pretrain", str(out), *switches]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("round 1/40")
        process.send_signal(signal.SIGINT)
        printed, err = process.communicate(timeout=60)
    assert (process.returncode, printed) == (130, ""), err
    assert err.splitlines()[-1] == f"interrupted; the same command goes on from {tmp_path}/w.checkpoint.safetensors"
    assert not out.exists()
    status, _, err = run(capsys, "train", "--pretrain", str(out), *switches)
    assert status == 0
    assert err.startswith(f"goes on from {tmp_path}/w.checkpoint.safetensors, after round ")
    assert run(capsys, "train", "--pretrain", str(whole), *switches)[0] == 0
    assert out.read_bytes() == whole.read_bytes()


# --- health ---


@pytest.fixture
def health() -> Iterator[tuple[Server, dict[str, bool]]]:
    """A server that answers as the test says."""
    answer = {"healthy": True}
    server = Server(
        HOST,
        0,
        lambda _: (b"", "text/plain"),
        lambda: (answer["healthy"], "the engine makes progress" if answer["healthy"] else "the engine stands still"),
        lambda: (False, "not subscribed"),
    )
    server.start()
    yield server, answer
    server.stop()


def test_health_asks_the_daemon(
    capsys: pytest.CaptureFixture[str], health: tuple[Server, dict[str, bool]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """0 and the text of a healthy daemon, 1 and the text of another; found by URL or by settings, never by a proxy."""
    server, answer = health
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    url = f"http://{HOST}:{server.port}"
    assert run(capsys, "health", "--url", url) == (0, "the engine makes progress\n", "")
    assert run(capsys, "health", "--set", f"http.port={server.port}")[0] == 0
    assert run(capsys, "health", "--set", f"http.port={server.port}", "--set", "http.host=0.0.0.0")[0] == 0
    answer["healthy"] = False
    assert run(capsys, "health", "--url", url) == (1, "the engine stands still\n", "")


def test_health_of_nobody_is_bad(capsys: pytest.CaptureFixture[str]) -> None:
    """Where nothing listens the answer is 1; where nothing can listen, or the URL is none, it is 2."""
    status, out, _ = run(capsys, "health", "--url", f"http://{HOST}:{free_port()}")
    assert status == 1
    assert out.startswith("unhealthy: no answer from")
    assert run(capsys, "health", "--set", "http.enabled=false")[0] == 2
    assert run(capsys, "health", "--url", "ftp://x")[0] == 2
    assert run(capsys, "health", "--url", "http://x:99999")[0] == 2


# --- version ---


def test_version_names_what_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """The distribution, Python and the libraries that matter, as text or JSON."""
    status, out, _ = run(capsys, "version")
    assert status == 0
    assert out.splitlines()[-1].split() == ["python", ".".join(map(str, sys.version_info[:3]))]
    assert json.loads(run(capsys, "version", "--json")[1]).keys() >= {"anomaly-streamer", "torch", "python"}


def test_replay_tells_alarms_and_what_had_no_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On standard error: a line an alarm, the counts, and what to do where nothing can be scored."""
    rows = [f"{60 * k},{20 + 0.1 * (k * 7919 % 13)}" for k in range(300)]
    rows[250] = f"{60 * 250},90"
    forwards, backwards, scores = tmp_path / "forwards.csv", tmp_path / "backwards.csv", tmp_path / "scores.csv"
    forwards.write_text("\n".join(["time,oven", *rows]))
    backwards.write_text("\n".join(["time,oven", *reversed(rows)]))
    assert main(["replay", str(forwards), "--output", str(scores)]) == 0
    alarm, counts = capsys.readouterr().err.splitlines()
    assert alarm.startswith("alarm at 15000 on oven: value 90, expected 2")
    assert counts == "readings 300, scored 280, warming 20, alarms 1"
    assert main(["replay", str(backwards), "--output", str(scores)]) == 0
    counts, advice = capsys.readouterr().err.splitlines()
    assert counts == "readings 300, scored 0, warming 1, late 299, alarms 0"
    assert "in the order of time" in advice


def odd_oven(folder: Path) -> Path:
    """A recording in which reading 250 is odd."""
    rows = [f"{60 * k},{20 + 0.1 * (k * 7919 % 13)}" for k in range(300)]
    rows[250] = f"{60 * 250},90"
    path = folder / "oven.csv"
    path.write_text("\n".join(["time,oven", *rows]))
    return path


def test_replay_prints_counts_and_figures_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One object on standard output, and no scores there; with --output they go to their file as ever."""
    recording, labels, scores = odd_oven(tmp_path), tmp_path / "labels.csv", tmp_path / "scores.csv"
    labels.write_text(f"start,end\n{60 * 249},{60 * 252}\n{60 * 100},{60 * 110}\n")
    for output in ([], ["--output", str(scores)]):
        status, out, _ = run(capsys, "replay", str(recording), "--labels", str(labels), "--json", *output)
        assert status == 0
        found = json.loads(out)
        assert (found["readings"], found["scored"], found["warming"], found["alarms"]) == (300, 280, 20, 1)
        (figures,) = found["labels"]
        assert (figures["events"], figures["caught"], figures["false_alarms"], figures["rows"]) == (2, 1, 0, 300)
        assert (figures["delay"], figures["delay_seconds"]) == (0.25, 60.0)
    assert len(scores.read_text().splitlines()) == 301
    assert json.loads(run(capsys, "replay", str(recording), "--json")[1])["labels"] == []


def test_figures_of_labels_are_told_to_people_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On standard error, after the counts."""
    labels = tmp_path / "labels.csv"
    labels.write_text("start,end\n6000,6600\n")
    _, out, err = run(capsys, "replay", str(odd_oven(tmp_path)), "--labels", str(labels))
    assert len(out.splitlines()) == 301
    assert err.splitlines()[-1] == (
        "file oven.csv, rows 300, events 1, caught 0, delay -, delay_seconds -, alarms 1, false_alarms 1, "
        "false_alarms_per_10k_rows 33.3333, labels_without_rows 0"
    )


def test_with_a_report_no_scores_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One page; beside it nothing is left, and --output has the very scores that it has without a report."""
    recording, page, scores = odd_oven(tmp_path), tmp_path / "out" / "page.html", tmp_path / "scores.csv"
    plain = run(capsys, "replay", str(recording))[1]
    status, out, _ = run(capsys, "replay", str(recording), "--report", str(page))
    assert (status, out) == (0, "")
    assert [path.name for path in page.parent.iterdir()] == ["page.html"]
    assert run(capsys, "replay", str(recording), "--report", str(page), "--output", str(scores))[1] == ""
    assert scores.read_text() == plain


def test_a_report_is_whole_or_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A replay that fails leaves the old page; an input is never overwritten, a bad target told before any work."""
    recording, page = odd_oven(tmp_path), tmp_path / "page.html"
    bad = tmp_path / "bad.csv"
    bad.write_text("time,a\n0,1\n60,x\n")
    page.write_text("the old one")
    assert run(capsys, "replay", str(bad), "--report", str(page))[0] == 2
    assert page.read_text() == "the old one"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.csv", "oven.csv", "page.html"]
    before = recording.read_bytes()
    status, _, err = run(capsys, "replay", str(recording), "--report", str(recording))
    assert (status, recording.read_bytes()) == (2, before)
    assert "same file as input and as report" in err
    labels = tmp_path / "labels.csv"
    labels.write_text("start,end\n0,1\n")
    for target, complaint in (
        (recording / "page.html", "page.html: cannot be written"),
        (tmp_path, "found something else than a file"),
        (Path(os.devnull), "found something else than a file"),
        (labels, "same file as labels and as report"),
        (tmp_path / "new.csv", "same file as output and as report"),
    ):
        options = ["--report", str(target), "--labels", str(labels), "--output", str(tmp_path / "new.csv")]
        status, _, err = run(capsys, "replay", str(recording), *options)
        assert status == 2
        assert complaint in err
    assert labels.read_text() == "start,end\n0,1\n"
    page.unlink()
    (tmp_path / "real.html").touch()
    page.symlink_to(tmp_path / "real.html")
    assert run(capsys, "replay", str(recording), "--report", str(page))[0] == 0
    assert page.is_symlink()
    assert "oven.csv" in (tmp_path / "real.html").read_text()


def test_labels_are_one_for_all_files_or_one_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In the order of the files; anything else is refused."""
    (tmp_path / "a").mkdir()
    files = [str(odd_oven(tmp_path)), str(odd_oven(tmp_path / "a"))]
    hit, miss = tmp_path / "hit.csv", tmp_path / "miss.csv"
    hit.write_text("start,end\n14900,15100\n")
    miss.write_text("start,end\n100,200\n")

    def caught(*labels: Path) -> list[int]:
        options = [word for path in labels for word in ("--labels", str(path))]
        return [each["caught"] for each in json.loads(run(capsys, "replay", *files, "--json", *options)[1])["labels"]]

    assert caught(hit) == [1, 1]
    assert caught(hit, miss) == [1, 0]
    status, _, err = run(capsys, "replay", *files, *["--labels", str(hit)] * 3)
    assert status == 2
    assert "found 3 times --labels for 2 files" in err


def test_a_terminal_sees_how_far_a_replay_has_come(tmp_path: Path) -> None:
    """A line that renews itself and is gone in the end; the counts stay."""
    rows = "".join(f"{60 * k},{k % 13}\n" for k in range(3000))
    (tmp_path / "x.csv").write_text("time,x\n" + rows)
    ours, its = os.openpty()
    command = [sys.executable, "-m", "streamer", "replay", str(tmp_path / "x.csv"), "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=its)
    os.close(its)
    told = b""
    with suppress(OSError):  # Linux says EIO where nobody has the other end any more
        while piece := os.read(ours, 4096):
            told += piece
    os.close(ours)
    assert json.loads(process.communicate(timeout=30)[0])["readings"] == 3000
    shown = re.findall(r"\r(\d+)%: (\d+) readings, \d+ a second, about \d+ s left\x1b\[K", told.decode())
    assert shown
    assert all(int(done) / 30 - 2 <= int(share) <= 100 for share, done in shown)  # what is read ahead counts as done
    assert re.search(r"\r\x1b\[Kreadings 3000, scored \d+, warming \d+.*\r\n$", told.decode())
