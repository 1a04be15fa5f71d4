"""A machine under systemd: a Debian of its own, booted by systemd-nspawn, with the daemon and mosquitto in it.

The tree is made by mmdebstrap, of the release that runs here, so that this Python can run in it: Python and the
installed packages are mounted, the daemon itself is copied to where it belongs. Needs root, and the network once.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from tests.servers import end, processes_of, program
from tests.waiting import wait_until

ROOT = Path(__file__).parent.parent
PACKAGES = "systemd,systemd-sysv,dbus,procps,python3,mosquitto,mosquitto-clients"  # python3: the libraries of ours
BOOT_SECONDS = 60.0
LAUNCHER = """#!/opt/streamer/bin/python
import sys
from streamer.__main__ import main
sys.exit(main())
"""


def make_tree(tree: Path) -> None:
    """Debian, and the daemon in /opt/streamer as an environment of its own."""
    release = platform.freedesktop_os_release()["VERSION_CODENAME"]
    command = [program("mmdebstrap"), "--quiet", "--variant=minbase", f"--include={PACKAGES}", release, str(tree)]
    subprocess.run(command, check=True)
    python = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = tree / "opt/streamer/lib" / python / "site-packages"
    for folder in (
        packages,
        tree / "opt/streamer/bin",
        tree / "opt/python",
        tree / "opt/packages",
        tree / "opt/deploy",
    ):
        folder.mkdir(parents=True)
    (tree / "opt/streamer/pyvenv.cfg").write_text("home = /opt/python/bin\n")
    (tree / "opt/streamer/bin/python").symlink_to(f"/opt/python/bin/{python}")
    (packages / "packages.pth").write_text("/opt/packages\n")
    for package in ("streamer", "models"):
        shutil.copytree(ROOT / package, packages / package, ignore=shutil.ignore_patterns("__pycache__"))
    launcher = tree / "opt/streamer/bin/streamer"
    launcher.write_text(LAUNCHER)
    launcher.chmod(0o755)
    (tree / "etc/ld.so.conf.d/python.conf").write_text("/opt/python/lib\n")
    (tree / "etc/hosts").write_text("127.0.0.1 localhost\n")


class Machine:
    """Boots at `start`; has a loopback network only."""

    def __init__(self, tree: Path) -> None:
        self.tree = tree
        self._process: subprocess.Popen[bytes] | None = None
        self._leader = 0

    def start(self) -> None:
        """Returns when it is up."""
        mounts = {"python": sys.base_prefix, "packages": sysconfig.get_path("purelib"), "deploy": ROOT / "deploy"}
        binds = [f"--bind-ro={source}:/opt/{name}" for name, source in mounts.items()]
        command = [program("systemd-nspawn"), "--quiet", "--boot", f"--directory={self.tree}", "--console=pipe"]
        command += ["--register=no", "--keep-unit", "--private-network", *binds]
        with (self.tree.parent / "console").open("wb") as console:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=console, stderr=subprocess.STDOUT
            )
        try:
            wait_until(self._is_up, BOOT_SECONDS, "a boot")
            self.run("ldconfig")
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Powers it off."""
        if self._process is None:
            return
        end(self._process, BOOT_SECONDS)
        self._process = None

    def run(self, *command: str, text: str = "", status: int | None = 0) -> str:
        """What a command in it prints, given `text`; it must end with `status`, unless that is None."""
        done = subprocess.run(
            [*self._inside(), *command], input=text, capture_output=True, text=True, check=False, timeout=100
        )
        assert status is None or done.returncode == status, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """A file of root's."""
        file = self.tree / path.removeprefix("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(mode)

    def pid_here(self, pid: int) -> int:
        """The number by which this machine knows one of that machine's processes; 0 if there is none."""
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                status = (folder / "status").read_text()
            except OSError:  # it has ended meanwhile
                continue
            (numbers,) = [line.split()[1:] for line in status.splitlines() if line.startswith("NSpid:")]
            if len(numbers) > 1 and int(numbers[-1]) == pid and self._is_inside(int(folder.name)):
                return int(folder.name)
        return 0

    def _is_inside(self, pid: int) -> bool:
        return os.stat(f"/proc/{pid}/ns/pid") == os.stat(f"/proc/{self._leader}/ns/pid")

    def _is_up(self) -> bool:
        assert self._process is not None
        pid = self._process.pid
        assert self._process.poll() is None, (self.tree.parent / "console").read_text(errors="replace")
        # The first child only makes the one that becomes the machine's first process.
        self._leader = (processes_of(pid) or [0])[-1]
        state = [*self._inside(), "systemctl", "is-system-running", "--wait"]
        return self._leader > 0 and subprocess.run(state, capture_output=True, check=False).returncode == 0

    def _inside(self) -> list[str]:
        return [program("nsenter"), "--target", str(self._leader), "--all"]
