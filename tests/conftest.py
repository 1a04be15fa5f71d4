"""Fixtures for every test: real servers, started on demand and ended with the test; a loud word on absent ones."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Concatenate, ParamSpec, Protocol, TypeVar

import pytest

from tests.servers import (
    ALERTMANAGER,
    Alertmanager,
    Broker,
    Certificates,
    Prometheus,
    Server,
    find_program,
    make_certificates,
    start_alertmanager,
    start_broker,
    start_prometheus,
)

if not Path("/dev/nvidiactl").exists():  # before torch imports Triton, which decides by it once and for all
    os.environ.setdefault("TRITON_INTERPRET", "1")

P = ParamSpec("P")
S = TypeVar("S", bound=Server)

ABSENT = pytest.StashKey[Counter[str]]()
WITHOUT_RECORDINGS = pytest.StashKey[list[str]]()
WITHOUT_CUDA = pytest.StashKey[list[str]]()

# Taken out of the environment, since there a STREAMER_... that is no setting is refused.
QUALITY_DATA = os.environ.pop("STREAMER_QUALITY_DATA", None)


class StartBroker(Protocol):
    """`servers.start_broker` in a directory of its own; the test's end stops it."""

    def __call__(
        self,
        *,
        lines: Sequence[str] = (),
        users: Mapping[str, str] | None = None,
        acl: str | None = None,
        tls: Certificates | None = None,
        require_client_certificate: bool = False,
    ) -> Broker: ...


class StartPrometheus(Protocol):
    """`servers.start_prometheus` in a directory of its own; the test's end stops it."""

    def __call__(
        self,
        *,
        target_port: int,
        interval_seconds: int = 1,
        rule_files: Sequence[Path] = (),
        alertmanager_port: int | None = None,
    ) -> Prometheus: ...


class StartAlertmanager(Protocol):
    """`servers.start_alertmanager` in a directory of its own; the test's end stops it."""

    def __call__(self, *, config: str) -> Alertmanager: ...


def pytest_configure(config: pytest.Config) -> None:
    config.stash[ABSENT] = Counter()
    config.stash[WITHOUT_RECORDINGS] = []
    config.stash[WITHOUT_CUDA] = []


def require(config: pytest.Config, *names: str) -> None:
    """Skip the test that asks, with a loud reason, when one of the programs is absent; fail it under CI=true."""
    for name in names:
        if find_program(name) is None:
            config.stash[ABSENT][name] += 1
            debian = "mosquitto prometheus prometheus-alertmanager openssl strace faketime e2fsprogs util-linux"
            debian += " systemd systemd-container mmdebstrap podman buildah runc netavark aardvark-dns iptables"
            debian += " kubernetes-client"
            reason = f"SERVER ABSENT: {name!r} is not installed (Debian: apt-get install {debian})"
            if os.environ.get("CI") == "true":
                pytest.fail(f"{reason}; CI=true makes this a failure", pytrace=False)
            pytest.skip(reason)


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers("server"):
        require(item.config, *marker.args)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    absent = config.stash[ABSENT]
    if absent:
        terminalreporter.section("ABSENT SERVERS: not everything was tested", sep="!", red=True, bold=True)
        for name, count in sorted(absent.items()):
            terminalreporter.line(f"{name} is not installed: {count} tests did not run", red=True)
    skipped = config.stash[WITHOUT_RECORDINGS]
    if skipped:
        terminalreporter.section("ABSENT RECORDINGS: detection quality was not tested", sep="!", red=True, bold=True)
        terminalreporter.line(
            f"set STREAMER_QUALITY_DATA, see docs/quality.md: {len(skipped)} tests did not run", red=True
        )

    without_cuda = config.stash[WITHOUT_CUDA]
    if without_cuda:
        terminalreporter.section("ABSENT CUDA DEVICE: nothing was tested on a GPU", sep="!", red=True, bold=True)
        terminalreporter.line(f"torch sees no CUDA device: {len(without_cuda)} tests did not run", red=True)


def started_in_own_directory(
    start: Callable[Concatenate[Path, P], S], name: str, directories: pytest.TempPathFactory
) -> Iterator[Callable[P, S]]:
    """`start` without its first argument; what it has started is stopped at the end."""
    servers: list[S] = []

    def start_one(*args: P.args, **kwargs: P.kwargs) -> S:
        servers.append(start(directories.mktemp(name), *args, **kwargs))
        return servers[-1]

    yield start_one
    for server in servers:
        server.stop()


@pytest.fixture
def cuda(request: pytest.FixtureRequest) -> str:
    """The name of the GPU's device; without one the test is skipped, loudly."""
    import torch

    if not torch.cuda.is_available():
        request.config.stash[WITHOUT_CUDA].append(request.node.nodeid)
        pytest.skip("CUDA DEVICE ABSENT: torch sees none")
    return "cuda"


@pytest.fixture
def interpreter() -> str:
    """The device on which Triton's interpreter runs kernels; where it compiles them for a GPU the test is skipped."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("Triton compiles for the GPU here: TRITON_INTERPRET=1 runs this test")
    return "cpu"


@pytest.fixture
def quality_data(request: pytest.FixtureRequest) -> Path:
    """The folder of labelled recordings, which are not ours to ship; without it the test is skipped, loudly."""
    beside = Path(__file__).parent.parent.parent / "shared" / "quality"
    folder = Path(QUALITY_DATA or beside)
    if not (folder / "data").is_dir():
        request.config.stash[WITHOUT_RECORDINGS].append(request.node.nodeid)
        pytest.skip(f"RECORDINGS ABSENT: found no {folder}; set STREAMER_QUALITY_DATA to the folder of the recordings")
    return folder


@pytest.fixture
def mosquitto(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartBroker]:
    """Starts brokers, as many as a test wants: `broker = mosquitto(users={"ann": "secret"})`."""
    require(request.config, "mosquitto", "mosquitto_passwd")
    yield from started_in_own_directory(start_broker, "mosquitto", tmp_path_factory)


@pytest.fixture
def prometheus(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartPrometheus]:
    """Starts Prometheus servers: `prometheus(target_port=9110).query("up")`."""
    require(request.config, "prometheus")
    yield from started_in_own_directory(start_prometheus, "prometheus", tmp_path_factory)


@pytest.fixture
def alertmanager(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[StartAlertmanager]:
    """Starts Alertmanagers: `alertmanager(config=text)`."""
    require(request.config, ALERTMANAGER)
    yield from started_in_own_directory(start_alertmanager, "alertmanager", tmp_path_factory)


@pytest.fixture(scope="session")
def certificates(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """One set for the whole session; nothing in it changes."""
    require(request.config, "openssl")
    return make_certificates(tmp_path_factory.mktemp("certificates"))
