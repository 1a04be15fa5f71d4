"""The real daemon in a container: the image is built here and runs with no rights, beside a real broker; compose.yaml.

Takes minutes; as root:

    python -m pytest -m long tests/end_to_end/test_container.py
"""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import scrapes
from tests.conftest import StartBroker, require, skip_absent
from tests.containers import ROOT, Engine, NoWheelsError
from tests.end_to_end.daemon import SECONDS
from tests.scrapes import Numbers
from tests.servers import HOST, Broker, free_port, program
from tests.waiting import wait_until

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

IMAGE, SMALL_IMAGE = "localhost/streamer", "localhost/streamer-without-torch"
USER, PASSWORD = "streamer", "between 3 & 4 o'clock"
NO_RIGHTS = ("--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges")
NETAVARK = Path("/usr/lib/podman/netavark")
BASE, BROKER_IMAGE, PROMETHEUS_IMAGE = "localhost/servers", "localhost/broker", "localhost/prometheus"
SERVERS = f"""FROM {BASE} AS broker
RUN install -d -o 1883 /mosquitto/data
FROM {BASE} AS prometheus
RUN install -d -o 65534 /prometheus
USER 65534
ENTRYPOINT ["prometheus"]
"""  # what the images of compose.yaml do, on Debian


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """With the image in it, and Python's alone."""
    require("podman", "buildah", "runc", "mmdebstrap", "mosquitto_pub")
    if os.geteuid() != 0:
        pytest.skip("NOT ROOT: an image cannot be built")
    engine = Engine(tmp_path_factory.mktemp("engine"))
    try:
        engine.fetch()
        engine.build_streamer(IMAGE, "cpu")
        yield engine
    except NoWheelsError as error:
        skip_absent("torch's build for the CPU", f"pip does not find what the image needs: {error}")
    finally:
        engine.close()


def fetched(port: int, path: str) -> str:
    """The body of an answer; empty while nobody answers well."""
    try:
        with urllib.request.urlopen(f"http://{HOST}:{port}{path}", timeout=5) as answer:
            return str(answer.read().decode())
    except (urllib.error.URLError, OSError):
        return ""


def numbers(port: int) -> Numbers:
    return scrapes.parse(fetched(port, "/metrics"))


def publish(port: int, user: str, password: str, topic: str, count: int, start: int = 0) -> None:
    """A calm sensor's minutes; returns when the broker has them."""
    rng, began = random.Random(start), time.time() - 60 * 10_000
    rows = [{"time": round(began + 60 * k), "temperature": 20 + rng.gauss(0, 0.1)} for k in range(start, start + count)]
    payloads = "".join(json.dumps(row) + "\n" for row in rows)
    access = ["-h", HOST, "-p", str(port), "-u", user, "-P", password]
    command = [program("mosquitto_pub"), *access, "-t", topic, "-q", "1", "-l"]
    subprocess.run(command, input=payloads, text=True, check=True, timeout=SECONDS)


class Container:
    """`streamer run` in the image, with the volume `state` and a folder of secrets."""

    def __init__(self, engine: Engine, broker: Broker, secrets: Path, *options: str, image: str = IMAGE) -> None:
        self._engine = engine
        self.port = free_port()
        settings = {"MQTT__PORT": broker.port, "MQTT__USERNAME": USER, "HTTP__PORT": self.port, "HTTP__HOST": HOST}
        settings["RETRAIN__MIN_READINGS"] = 500
        variables = [f"--env=STREAMER_{name}={value}" for name, value in settings.items()]
        mounts = ("--volume=state:/var/lib/streamer", f"--volume={secrets}:/secrets:ro")
        timer = "--health-interval=disable"  # podman leaves it to systemd; the test asks by itself
        run = ("run", "--detach", "--network=host", timer, *NO_RIGHTS, *mounts, *variables, *options)
        self.name = engine.podman(*run, image)

    def log(self) -> str:
        return self._engine.run("sh", "-c", f"podman logs {self.name} 2>&1")

    def command(self, *arguments: str) -> str:
        """What `streamer ...` prints inside."""
        return self._engine.podman("exec", self.name, "streamer", *arguments)

    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = self._engine.inspect(self.name)["State"]
        return found

    def is_ready(self) -> bool:
        assert self.state()["Running"], self.log()
        return bool(fetched(self.port, "/-/ready"))

    def wait_scored(self, count: int) -> None:
        wait_until(lambda: numbers(self.port)["readings_scored_total", ""] == count, SECONDS, f"{count} scores")

    def stop(self) -> int:
        """As `docker stop` does it; the exit status, which must come within five seconds."""
        began = time.monotonic()
        self._engine.podman("stop", "--time=10", self.name)
        assert time.monotonic() - began < 5.0
        return int(self.state()["ExitCode"])


@pytest.fixture
def broker(mosquitto: StartBroker) -> Broker:
    return mosquitto(users={USER: PASSWORD})


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    """As an operator would leave them: for root, and for group 0, of which the container's user is."""
    folder = tmp_path / "secrets"
    folder.mkdir()
    (folder / "mqtt.password").write_text(PASSWORD)
    (folder / "mqtt.password").chmod(0o640)
    return folder


@contextmanager
def running(engine: Engine, broker: Broker, secrets: Path, *options: str, image: str = IMAGE) -> Iterator[Container]:
    """A daemon that is ready, and does not outlive the test; its state does."""
    container = Container(engine, broker, secrets, *options, image=image)
    try:
        wait_until(container.is_ready, SECONDS, "ready")
        yield container
    finally:
        engine.podman("rm", "--force", container.name)


@pytest.fixture
def volume(engine: Engine) -> Iterator[None]:
    """A new one, called `state`."""
    engine.podman("volume", "create", "state")
    yield
    engine.podman("volume", "rm", "--force", "state")


def test_the_image_is_what_it_says(engine: Engine) -> None:
    """User, signal, health check, labels; the committed program, the pinned versions, neither pip nor a compiler."""
    image = engine.inspect(IMAGE)
    config = image["Config"]
    assert (config["User"], config["StopSignal"]) == ("10001:0", "SIGTERM")
    assert (config["Entrypoint"], config["Cmd"]) == (["streamer"], ["run"])
    assert image["Healthcheck"]["Test"] == ["CMD", "streamer", "health"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert image["Labels"]["org.opencontainers.image.licenses"] == project["license"]
    assert not any("wheels" in json.dumps(part) for part in (config, image["History"]))  # nor where pip has looked

    def inside(script: str, status: int = 0) -> str:
        return engine.podman("run", "--rm", "--entrypoint=sh", IMAGE, "-c", script, status=status)

    inside("command -v pip pip3 gcc cc || python -c 'import pip'", status=1)
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    code = "import importlib.metadata as m; [print(d.name, d.version, sep='==') for d in m.distributions()]"
    found = inside(f'cd / && /opt/streamer/bin/python -c "{code}"').lower().replace("_", "-").replace("+cpu", "")
    installed = {line for line in found.splitlines() if "pip==" not in line}
    assert {line for line in installed if not line.startswith("anomaly-streamer==")} <= set(pins)
    packages = "cd /opt/streamer/lib/python3*/site-packages && find streamer models -type f ! -name '*.pyc'"
    tracked = subprocess.run(
        ["git", "ls-files", "streamer", "models"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert set(inside(packages).split("\n")) == set(tracked.stdout.split("\n")[:-1])
    sys.stdout.write(f"image: {image['Size'] / 1e6:.0f} MB\n")


@pytest.mark.usefixtures("volume")
def test_it_runs_without_rights_and_keeps_its_state(engine: Engine, broker: Broker, secrets: Path) -> None:
    """Scored, healthy, stopped by SIGTERM; a new container goes on where the one before it ended."""
    with running(engine, broker, secrets) as container:
        publish(broker.port, USER, PASSWORD, "plant/oven", 100)
        container.wait_scored(80)
        engine.podman("healthcheck", "run", container.name)
        assert container.state()["Health"]["Status"] == "healthy"
        pid = container.state()["Pid"]
        assert "streamer run" in Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
        status = Path(f"/proc/{pid}/status").read_text()
        assert re.search(r"^NSpid:\t\d+\t1$", status, re.MULTILINE)  # it is the container's first process
        assert re.search(r"^CapEff:\t0+$", status, re.MULTILINE)
        assert re.search(r"^NoNewPrivs:\t1$", status, re.MULTILINE)
        assert re.search(r"^Uid:\t10001\t", status, re.MULTILINE)
        sys.stdout.write(re.search(r"^VmRSS:.*", status, re.MULTILINE)[0] + "\n")  # type: ignore[index]
        engine.podman("exec", container.name, "sh", "-c", "echo > /opt/streamer/x || echo > /etc/streamer/x", status=2)
        assert "1 series paused" in container.command("pause", "plant/oven")
        assert "1 series resumed" in container.command("resume", "plant/oven")
        assert container.stop() == 0
        assert "state_saved=true" in container.log()
        assert PASSWORD not in container.log() + json.dumps(engine.inspect(container.name))
    with running(engine, broker, secrets) as container:
        publish(broker.port, USER, PASSWORD, "plant/oven", 10, start=100)
        container.wait_scored(9)  # all but the first, which comes after the pause
        assert container.stop() == 0
    look = (
        "run",
        "--rm",
        *NO_RIGHTS,
        "--network=none",
        "--volume=state:/var/lib/streamer:ro",
        IMAGE,
        "state",
        "--json",
    )
    assert json.loads(engine.podman(*look))["readings"] == 110


@pytest.mark.usefixtures("volume")
def test_any_user_will_do(engine: Engine, broker: Broker, secrets: Path) -> None:
    """One that no file knows, of group 0, as OpenShift chooses it: the daemon serves, and torch trains."""
    with running(engine, broker, secrets, "--user=1000660000:0") as container:
        publish(broker.port, USER, PASSWORD, "plant/oven", 2000)
        container.wait_scored(1980)
        container.command("train")
        wait_until(lambda: "retraining ended" in container.log(), 200, "a verdict")
        assert re.search("retraining ended .*result=(promoted|rejected)", container.log())
        assert container.stop() == 0


@pytest.mark.usefixtures("volume")
def test_without_torch_it_scores(engine: Engine, broker: Broker, secrets: Path) -> None:
    """A third of the size, for where nothing is trained; a retraining fails, says why, and disturbs nothing."""
    engine.build_streamer(SMALL_IMAGE, "none")
    size = engine.inspect(SMALL_IMAGE)["Size"]
    sys.stdout.write(f"image without torch: {size / 1e6:.0f} MB\n")
    assert size < 0.4 * engine.inspect(IMAGE)["Size"]
    with running(engine, broker, secrets, image=SMALL_IMAGE) as container:
        publish(broker.port, USER, PASSWORD, "plant/oven", 1000)
        container.wait_scored(980)
        container.command("train")
        wait_until(lambda: "retraining ended" in container.log(), 60, "a verdict")
        assert re.search("retraining ended .*result=failed .*torch", container.log())
        publish(broker.port, USER, PASSWORD, "plant/oven", 10, start=1000)
        container.wait_scored(990)
        assert container.stop() == 0


def test_settings_that_cannot_be_end_it(engine: Engine) -> None:
    """Exit status 2, and the reason, before anything connects."""
    engine.podman("run", "--rm", *NO_RIGHTS, "--network=none", "--env=STREAMER_MQTT__PROT=1883", IMAGE, status=2)


class Compose:
    """Docker's own program on compose.yaml, with images that were made here; there is none of Grafana."""

    services = ("passwords", "mosquitto", "streamer", "prometheus")

    def __init__(self, engine: Engine, folder: Path) -> None:
        self._engine = engine
        self.ports = {name: free_port() for name in ("MQTT_PORT", "HTTP_PORT", "PROMETHEUS_PORT")}
        engine.environment |= {name: str(port) for name, port in self.ports.items()}
        images = (BROKER_IMAGE, BROKER_IMAGE, IMAGE, PROMETHEUS_IMAGE)
        services = {name: {"image": image} for name, image in zip(self.services, images, strict=True)}
        (folder / "images.yaml").write_text(yaml.safe_dump({"services": services}))
        self._files = ("--file", str(ROOT / "deploy/compose.yaml"), "--file", str(folder / "images.yaml"))

    def __call__(self, *arguments: str) -> None:
        self._engine.run(Path(sys.executable).parent / "docker-compose", *self._files, *arguments)

    def close(self) -> None:
        self("down", "--volumes")

    def up(self) -> None:
        """Returns when each is healthy. One by one: Debian 12's podman names a container that has ended otherwise than
        Docker does, and Compose would wait for `passwords` for ever."""
        for service in self.services:
            name = f"streamer-{service}-1"
            self("up", "--detach", "--no-build", "--no-deps", service)
            if service == "passwords":
                assert self._engine.podman("wait", name) == "0"
            else:
                wait_until(partial(self._is_healthy, name), SECONDS, service)

    def _is_healthy(self, name: str) -> bool:
        """Now; podman leaves it to systemd to ask from time to time."""
        self._engine.podman("healthcheck", "run", name, status=None)
        return bool(self._engine.inspect(name)["State"]["Health"]["Status"] == "healthy")


def test_compose_brings_it_all_up(engine: Engine, tmp_path: Path) -> None:
    """A broker that lets in who has a password, readings scored, their numbers in Prometheus; and the same again."""
    if not NETAVARK.exists():
        skip_absent("netavark", "containers have no network of their own")
    engine.debian(BASE, "mosquitto", "mosquitto-clients", "prometheus")
    (tmp_path / "Dockerfile").write_text(SERVERS)
    for image in (BROKER_IMAGE, PROMETHEUS_IMAGE):
        engine.build(image, tmp_path / "Dockerfile", tmp_path, f"--target={image.rpartition('/')[2]}")
    compose = Compose(engine, tmp_path)
    mqtt, http, prometheus = compose.ports.values()

    def seen() -> float:
        query = urllib.parse.urlencode({"query": "streamer_readings_scored_total{job='streamer'}"})
        rows = json.loads(fetched(prometheus, f"/api/v1/query?{query}"))["data"]["result"]
        return float(rows[0]["value"][1]) if rows else 0.0

    with engine.serving(), closing(compose):
        compose.up()
        volume = "--volume=streamer_passwords:/passwords:ro"
        password = engine.podman("run", "--rm", volume, BROKER_IMAGE, "cat", "/passwords/zigbee2mqtt")
        publish(mqtt, "zigbee2mqtt", password, "zigbee2mqtt/oven", 100)
        wait_until(lambda: seen() == 80, 2 * SECONDS, "the scores in Prometheus")
        with pytest.raises(subprocess.CalledProcessError):
            publish(mqtt, "zigbee2mqtt", "wrong", "zigbee2mqtt/oven", 1)
        assert "StreamerBrokerLost" in fetched(prometheus, "/api/v1/rules")
        assert engine.inspect("streamer-streamer-1")["HostConfig"]["Memory"] == 1500 * 1024 * 1024
        for service in Compose.services[1:]:
            found = engine.inspect(f"streamer-{service}-1")
            assert not found["EffectiveCaps"]
            assert found["HostConfig"]["ReadonlyRootfs"]
            assert not found["Config"]["User"].startswith("0:")
        compose("down")
        compose.up()
        publish(mqtt, "zigbee2mqtt", password, "zigbee2mqtt/oven", 10, start=100)
        wait_until(lambda: numbers(http)["readings_scored_total", ""] == 10, SECONDS, "scores after another start")
