"""Images and containers without a registry: podman and buildah with a storage of their own, on Debian by mmdebstrap.

Needs root, and the network once, for Debian's packages and pip's.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.servers import READY_SECONDS, STOP_SECONDS, end, program
from tests.waiting import wait_until

ROOT = Path(__file__).parent.parent
PYTHON_IMAGE = "localhost/python"

# A container's limits may not be above those of whoever starts it; the files are where a container leaves nothing else.
CONTAINERS = """[containers]
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
[network]
network_backend = "netavark"
network_config_dir = "{folder}/networks"
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
tmp_dir = "{folder}/state"
"""
STORAGE = """[storage]
driver = "overlay"
graphroot = "{folder}/storage"
runroot = "{folder}/run"
"""
PIP = "[global]\nno-index = true\nfind_links = /wheels\n"


class NoWheelsError(Exception):
    """pip has not found what an image is built from."""


class Engine:
    """podman and buildah, whose images, containers and volumes all lie below one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        for name, text in (("containers.conf", CONTAINERS), ("storage.conf", STORAGE)):
            (folder / name).write_text(text.format(folder=folder))
        self.environment = os.environ | {
            "CONTAINERS_CONF": str(folder / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(folder / "storage.conf"),
        }

    def run(self, *command: str | Path, status: int | None = 0, seconds: float = 100) -> str:
        """What a command prints; it must end with `status`, unless that is None."""
        name, *arguments = command
        done = subprocess.run(
            [program(str(name)), *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=seconds,
        )
        assert status is None or done.returncode == status, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def podman(self, *arguments: str | Path, status: int | None = 0) -> str:
        return self.run("podman", *arguments, status=status).strip()

    def inspect(self, name: str) -> dict[str, Any]:
        """All that podman knows of an image or a container."""
        found: dict[str, Any] = json.loads(self.podman("inspect", name))[0]
        return found

    def debian(self, image: str, *packages: str) -> None:
        """An image of the release that runs here."""
        release, tree = platform.freedesktop_os_release()["VERSION_CODENAME"], self._folder / "tree.tar"
        include = f"--include={','.join(packages)}"
        self.run("mmdebstrap", "--quiet", "--variant=minbase", include, release, tree, seconds=400)
        self.podman("import", tree, image)
        tree.unlink()

    def build(self, image: str, dockerfile: Path, context: Path, *options: str) -> None:
        chroot = ("--isolation", "chroot", "--network", "host", "--format", "docker")  # what needs no systemd
        self.run("buildah", "bud", *chroot, *options, "-f", dockerfile, "-t", image, context, seconds=500)

    def fetch(self) -> None:
        """What the image is built on and from: wheels come as pip gets them on this machine. Raises `NoWheelsError`."""
        self.debian(PYTHON_IMAGE, "python3", "python3-venv", "ca-certificates")
        code = "import platform; print(platform.python_version())"
        version = self.podman("run", "--rm", PYTHON_IMAGE, "python3", "-c", code)
        (self._folder / "pip.conf").write_text(PIP)
        maker = [sys.executable, "deploy/docker/requirements.py", "cpu"]
        needed = subprocess.run(maker, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
        fetch = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--only-binary=:all:",
            f"--python-version={version}",
        ]
        fetch += ["--constraint", "constraints.txt", "--dest", str(self._folder / "wheels"), *needed, "hatchling"]
        done = subprocess.run(fetch, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise NoWheelsError(done.stderr[-500:])

    def build_streamer(self, image: str, torch: str) -> None:
        """By the Dockerfile, which does not know where the wheels come from."""
        arguments = [f"--build-arg=PYTHON_IMAGE={PYTHON_IMAGE}", f"--build-arg=TORCH={torch}"]
        arguments += [
            f"--secret=id=pip,src={self._folder / 'pip.conf'}",
            f"--volume={self._folder / 'wheels'}:/wheels:ro",
        ]
        self.build(image, ROOT / "deploy/docker/Dockerfile", ROOT, *arguments)

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Docker's programs may ask podman, as they would ask Docker."""
        socket = self._folder / "socket"
        self.environment["DOCKER_HOST"] = f"unix://{socket}"
        command = [program("podman"), "system", "service", "--time=0", f"unix://{socket}"]
        with (self._folder / "service").open("wb") as log:
            service = subprocess.Popen(command, env=self.environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            wait_until(socket.exists, READY_SECONDS, "podman's socket")
            yield
        finally:
            end(service, STOP_SECONDS)

    def close(self) -> None:
        """Nothing of it is left, and whatever else podman does on this machine is."""
        for things in ("rm", "volume rm", "rmi"):
            self.podman(*things.split(), "--all", "--force", status=None)
        self.podman("network", "prune", "--force", status=None)
        self.run("umount", self._folder / "storage/overlay", status=None)  # which podman mounts on itself
        shutil.rmtree(self._folder)
