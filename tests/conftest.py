"""Fixtures for every test: real servers, started on demand and ended with the test; a loud word on absent ones."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Concatenate, NoReturn, ParamSpec, Protocol, TypeVar

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

ABSENT = re.compile(r"ABSENT: (.+?): (.+)")

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


def skip_absent(what: str, remedy: str) -> NoReturn:
    """Skip the test that asks, and say so again at the end."""
    pytest.skip(f"ABSENT: {what}: {remedy}")


def require(*names: str) -> None:
    """Skip the test that asks, with a loud reason, when one of the programs is absent; fail it under CI=true."""
    for name in names:
        if find_program(name) is None:
            debian = "mosquitto prometheus prometheus-alertmanager openssl strace faketime e2fsprogs util-linux"
            debian += " systemd systemd-container mmdebstrap podman buildah runc netavark aardvark-dns iptables"
            debian += " kubernetes-client"
            remedy = f"apt-get install {debian}, on Debian"
            if os.environ.get("CI") == "true":
                pytest.fail(f"ABSENT: {name}: {remedy}; CI=true makes this a failure", pytrace=False)
            skip_absent(name, remedy)


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers("server"):
        require(*marker.args)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What was absent, from the reports: they come from the processes of pytest-xdist, too."""
    absent: Counter[tuple[str, str]] = Counter()
    for outcome in ("skipped", "error", "failed"):
        for report in terminalreporter.stats.get(outcome, []):
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            if found := ABSENT.search(reason):
                absent[found[1], found[2]] += 1
    if absent:
        terminalreporter.section("ABSENT: not everything was tested", sep="!", red=True, bold=True)
    for (what, remedy), count in sorted(absent.items()):
        terminalreporter.line(f"{what}: {count} tests did not run; {remedy}", red=True)


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
def cuda() -> str:
    """The name of the GPU's device; without one the test is skipped, loudly."""
    import torch

    if not torch.cuda.is_available():
        skip_absent("a CUDA device", "nothing was tried on a GPU")
    return "cuda"


@pytest.fixture(scope="session")
def chromium_program() -> str:
    """A browser; without one the test is skipped, loudly."""
    found = find_program("chromium")
    if found is None:
        skip_absent("chromium", "apt-get install chromium fonts-dejavu-core, on Debian")
    return found


@pytest.fixture
def interpreter() -> str:
    """The device on which Triton's interpreter runs kernels; where it compiles them for a GPU the test is skipped."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("Triton compiles for the GPU here: TRITON_INTERPRET=1 runs this test")
    return "cpu"


@pytest.fixture
def quality_data() -> Path:
    """The folder of labelled recordings, which are not ours to ship; without it the test is skipped, loudly."""
    beside = Path(__file__).parent.parent.parent / "shared" / "quality"
    folder = Path(QUALITY_DATA or beside)
    if not (folder / "data").is_dir():
        skip_absent("recordings", f"set STREAMER_QUALITY_DATA to their folder, see docs/quality.md; found no {folder}")
    return folder


@pytest.fixture
def mosquitto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartBroker]:
    """Starts brokers, as many as a test wants: `broker = mosquitto(users={"ann": "secret"})`."""
    require("mosquitto", "mosquitto_passwd")
    yield from started_in_own_directory(start_broker, "mosquitto", tmp_path_factory)


@pytest.fixture
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartPrometheus]:
    """Starts Prometheus servers: `prometheus(target_port=9110).query("up")`."""
    require("prometheus")
    yield from started_in_own_directory(start_prometheus, "prometheus", tmp_path_factory)


@pytest.fixture
def alertmanager(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartAlertmanager]:
    """Starts Alertmanagers: `alertmanager(config=text)`."""
    require(ALERTMANAGER)
    yield from started_in_own_directory(start_alertmanager, "alertmanager", tmp_path_factory)


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """One set for the whole session; nothing in it changes."""
    require("openssl")
    return make_certificates(tmp_path_factory.mktemp("certificates"))
