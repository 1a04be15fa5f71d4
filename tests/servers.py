"""Real servers for the tests: mosquitto and Prometheus as child processes on free loopback ports, certificates for TLS.

Each server writes only below the directory that it is given and is ended by its process id. Tests get them from the
fixtures of `conftest.py`.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import random
import shutil
import signal
import socket
import subprocess
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec

from tests.waiting import wait_until

T = TypeVar("T")

HOST = "127.0.0.1"
READY_SECONDS = 20.0
STOP_SECONDS = 10.0


def processes_of(pid: int) -> list[int]:
    """The processes that a process has begun, whichever of its threads did."""
    lists = (path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children"))
    return [int(word) for words in lists for word in words.split()]


def end(process: subprocess.Popen[bytes], seconds: float) -> None:
    """SIGTERM, and SIGKILL for one that does not heed it."""
    process.terminate()
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class PortTakenError(Exception):
    """Somebody else took the free port before the server did."""


def at_free_port(start: Callable[[int], T]) -> T:
    """What `start` gives for a port of loopback that is free; somebody else may be the quicker one once."""
    try:
        return start(free_port())
    except PortTakenError:
        return start(free_port())


def find_program(name: str) -> str | None:
    """The path of a server program, also where Debian puts it (`/usr/sbin`) but a user's PATH does not look."""
    return shutil.which(
        name, path=os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])
    )


def program(name: str) -> str:
    """Like `find_program`, for callers that have made sure it is there."""
    path = find_program(name)
    assert path is not None, f"{name} is not installed"
    return path


def free_port() -> int:
    """A port that nobody listens on at this moment, below those that the kernel gives to whoever connects."""
    chance = random.SystemRandom()
    while True:
        port = chance.randrange(20_000, 32_000)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind((HOST, port))
            return port


def answers(port: int) -> bool:
    """Whether somebody accepts a connection on the port."""
    with contextlib.suppress(OSError), socket.create_connection((HOST, port), timeout=1):
        return True
    return False


class Server:
    """A child process that listens on one port; its output goes to `log_path`."""

    def __init__(self, command: Sequence[str], port: int, directory: Path) -> None:
        self.host = HOST
        self.port = port
        self.directory = directory
        self.log_path = directory / "log"
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """None while it does not run."""
        return None if self._process is None else self._process.pid

    def log(self) -> str:
        """Everything that it has printed, over all its starts."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def is_ready(self) -> bool:
        return answers(self.port)

    def start(self) -> None:
        """Returns when it serves. Raises `PortTakenError` when its port is no longer free."""
        assert self._process is None, "it runs already"
        printed_before = len(self.log())
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        process = self._process
        try:
            wait_until(
                lambda: process.poll() is not None or self.is_ready(),
                READY_SECONDS,
                f"{self._command[0]} on port {self.port}",
            )
            if process.poll() is not None:
                self._process = None
                if "ddress already in use" in self.log()[printed_before:]:
                    raise PortTakenError(self.port)
                raise AssertionError(f"{self._command[0]} ended at start with {process.returncode}:\n{self.log()}")
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        """SIGTERM, and SIGKILL for one that does not heed it; nothing when it does not run."""
        if self._process is None:
            return
        end(self._process, STOP_SECONDS)
        self._process = None

    def kill(self) -> None:
        """SIGKILL: sockets close without a farewell, nothing is saved."""
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        self._process = None

    def restart(self) -> None:
        """Stop and start with the same settings on the same port."""
        self.stop()
        self.start()

    def reload(self) -> None:
        """SIGHUP: mosquitto reads its password and ACL files again."""
        assert self._process is not None, "it does not run"
        self._process.send_signal(signal.SIGHUP)


@dataclass(frozen=True)
class Certificates:
    """PEM files for one test session: a server at localhost and 127.0.0.1, a client, an unrelated authority."""

    ca: Path
    server_cert: Path
    server_key: Path
    client_cert: Path
    client_key: Path
    other_ca: Path


CLIENT_NAME = "sensor-gateway"
"""common name of the client certificate"""

EXTENSIONS = """\
[req]
distinguished_name = name
prompt = no
[name]
[ca]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[server]
subjectAltName = DNS:localhost, IP:127.0.0.1, IP:::1
extendedKeyUsage = serverAuth
[client]
extendedKeyUsage = clientAuth
"""


def make_certificates(directory: Path) -> Certificates:
    """Two authorities, a server certificate and a client certificate of the first, valid for two days, by `openssl`."""
    (directory / "openssl.cnf").write_text(EXTENSIONS)

    def openssl(*arguments: str | Path) -> None:
        done = subprocess.run(
            [program("openssl"), *arguments], cwd=directory, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr

    new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-config", "openssl.cnf"]
    two_days = ["-days", "2"]

    def authority(name: str, common_name: str) -> None:
        files = ["-keyout", f"{name}.key", "-out", f"{name}.pem"]
        openssl("req", "-x509", *new_key, *files, *two_days, "-extensions", "ca", "-subj", f"/CN={common_name}")

    def leaf(name: str, common_name: str) -> None:
        openssl("req", *new_key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={common_name}")
        signer = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", *two_days]
        extensions = ["-extfile", "openssl.cnf", "-extensions", name]
        openssl("x509", "-req", "-in", f"{name}.csr", *signer, *extensions, "-out", f"{name}.pem")

    authority("ca", "Streamer test authority")
    authority("other-ca", "Unrelated authority")
    leaf("server", "localhost")
    leaf("client", CLIENT_NAME)
    return Certificates(
        ca=directory / "ca.pem",
        server_cert=directory / "server.pem",
        server_key=directory / "server.key",
        client_cert=directory / "client.pem",
        client_key=directory / "client.key",
        other_ca=directory / "other-ca.pem",
    )


class Broker(Server):
    """A mosquitto of its own."""

    def set_users(self, users: Mapping[str, str]) -> None:
        """Write the password file; a running broker takes it up after `reload`."""
        passwords = self.directory / "passwords"
        passwords.write_text("".join(f"{name}:{password}\n" for name, password in users.items()))
        passwords.chmod(0o600)
        subprocess.run([program("mosquitto_passwd"), "-U", passwords], capture_output=True, check=True)


def start_broker(
    directory: Path,
    *,
    lines: Sequence[str] = (),
    users: Mapping[str, str] | None = None,
    acl: str | None = None,
    tls: Certificates | None = None,
    require_client_certificate: bool = False,
) -> Broker:
    """A mosquitto that serves MQTT 5 and 3.1.1, over TLS when `tls` is given.

    `lines` are further lines of mosquitto.conf, `users` maps names to passwords (None: anonymous clients are welcome),
    `acl` is the text of an ACL file. Sessions and retained messages outlive `restart`, not `kill`.
    """
    config = ["allow_anonymous " + ("true" if users is None else "false"), "log_dest stdout", "log_type all"]
    config += ["persistence true", f"persistence_location {directory}/", "autosave_interval 0"]
    if os.geteuid() == 0:
        config.append("user root")  # else it drops to a user who may not read the test's directory
    if users is not None:
        config.append(f"password_file {directory / 'passwords'}")
    if acl is not None:
        (directory / "acl").write_text(acl)
        (directory / "acl").chmod(0o600)
        config.append(f"acl_file {directory / 'acl'}")
    if tls is not None:
        config += [f"certfile {tls.server_cert}", f"keyfile {tls.server_key}", f"cafile {tls.ca}"]
        config.append(f"require_certificate {'true' if require_client_certificate else 'false'}")

    def on(port: int) -> Broker:
        # Lines after `listener` belong to it, so the settings of the listener come last.
        (directory / "mosquitto.conf").write_text("\n".join([f"listener {port} {HOST}", *config, *lines]) + "\n")
        broker = Broker([program("mosquitto"), "-c", str(directory / "mosquitto.conf")], port, directory)
        if users is not None:
            broker.set_users(users)
        broker.start()
        return broker

    return at_free_port(on)


class Sample(NamedTuple):
    """One series of the answer to a PromQL query."""

    labels: dict[str, str]
    """the metric's name is `__name__`"""
    value: float


class _Vector(msgspec.Struct):
    metric: dict[str, str]
    value: tuple[float, str]


class _Answer(msgspec.Struct):
    result: list[_Vector]


class _Response(msgspec.Struct):
    data: _Answer


class Prometheus(Server):
    """A Prometheus that scrapes one port."""

    def is_ready(self) -> bool:
        with contextlib.suppress(OSError):
            return self._get("/-/ready")[0] == http.client.OK
        return False

    def query(self, expression: str) -> list[Sample]:
        """The instant vector of a PromQL expression, now."""
        status, body = self._get("/api/v1/query?" + urllib.parse.urlencode({"query": expression}))
        assert status == http.client.OK, body.decode()
        return [
            Sample(row.metric, float(row.value[1])) for row in msgspec.json.decode(body, type=_Response).data.result
        ]

    def _get(self, path: str) -> tuple[int, bytes]:
        with contextlib.closing(http.client.HTTPConnection(self.host, self.port, timeout=10)) as connection:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read()


def start_prometheus(
    directory: Path,
    *,
    target_port: int,
    interval_seconds: int = 1,
    rule_files: Sequence[Path] = (),
    alertmanager_port: int | None = None,
) -> Prometheus:
    """A Prometheus that scrapes `/metrics` on a port of this machine as job `streamer`."""
    alertmanagers = [f"{HOST}:{alertmanager_port}"] if alertmanager_port else []
    scrape = {"job_name": "streamer", "static_configs": [{"targets": [f"{HOST}:{target_port}"]}]}
    config = {
        "global": {"scrape_interval": f"{interval_seconds}s", "evaluation_interval": f"{interval_seconds}s"},
        "rule_files": [str(path) for path in rule_files],
        "alerting": {"alertmanagers": [{"static_configs": [{"targets": alertmanagers}]}]},
        "scrape_configs": [scrape],
    }
    (directory / "prometheus.yml").write_bytes(msgspec.json.encode(config))  # JSON is YAML

    def on(port: int) -> Prometheus:
        command = [program("prometheus"), f"--config.file={directory / 'prometheus.yml'}", "--log.level=warn"]
        command += [f"--storage.tsdb.path={directory / 'data'}", f"--web.listen-address={HOST}:{port}"]
        server = Prometheus(command, port, directory)
        server.start()
        return server

    return at_free_port(on)


class Alertmanager(Server):
    """An Alertmanager of its own, without a cluster."""


ALERTMANAGER = "prometheus-alertmanager"
"""Debian's name for it"""


def start_alertmanager(directory: Path, *, config: str) -> Alertmanager:
    """`config` is the text of alertmanager.yml."""
    (directory / "alertmanager.yml").write_text(config)

    def on(port: int) -> Alertmanager:
        command = [program(ALERTMANAGER), f"--config.file={directory / 'alertmanager.yml'}", "--log.level=warn"]
        command += [f"--storage.path={directory / 'data'}", f"--web.listen-address={HOST}:{port}"]
        server = Alertmanager([*command, "--cluster.listen-address="], port, directory)
        server.start()
        return server

    return at_free_port(on)
