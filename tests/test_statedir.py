"""The state directory: made for its owner only, usable or refused by name, and one daemon's at a time."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from models.weights import BASE
from streamer.errors import StateError
from streamer.statedir import StateDirectory
from tests.servers import program

HOLDER = """
import sys
from pathlib import Path
from streamer.statedir import StateDirectory
directory = StateDirectory(Path(sys.argv[1]))
directory.open()
print("open", flush=True)
sys.stdin.read()
"""

NOBODY = 65534
# Imports and shipped weights come first: nobody else may be able to read this interpreter's libraries.
AS_NOBODY = f"""
import os, sys
import models.scorer, streamer.app, streamer.cli
models.scorer.shipped()
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid({NOBODY})
    os.setuid({NOBODY})
sys.exit(streamer.cli.main(sys.argv[1:]))
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that has opened `tmp_path / "state"`."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "state")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        yield process
        process.kill()


def test_it_is_created_for_its_owner_only(tmp_path: Path) -> None:
    """With the folders above it; one that is there stays as it is."""
    directory = StateDirectory(tmp_path / "lib" / "streamer")
    directory.open()
    assert directory.path.stat().st_mode & 0o777 == 0o700
    assert os.listdir(directory.path) == ["lock"]
    assert (directory.path / "lock").read_text() == f"{os.getpid()}\n"
    directory.close()
    directory.path.chmod(0o750)
    directory.open()
    assert directory.path.stat().st_mode & 0o777 == 0o750
    directory.close()


def test_a_second_daemon_is_refused_by_name(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    """The message has the directory, the holder's process id, and what to do."""
    with pytest.raises(StateError) as caught:
        StateDirectory(tmp_path / "state").open()
    assert str(caught.value) == (
        f"state.directory: {tmp_path / 'state'} is in use by process {holder.pid}; expected one that no other daemon "
        "uses: stop that one, or give each its own state.directory (and its own instance)"
    )


def test_kill_9_frees_it(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    """No stale lock keeps the next start away; a longer process id leaves no trace in the file."""
    holder.kill()
    holder.wait()
    lock = tmp_path / "state" / "lock"
    lock.write_text("123456789\n")
    directory = StateDirectory(tmp_path / "state")
    directory.open()
    assert lock.read_text() == f"{os.getpid()}\n"
    directory.close()


def test_one_process_cannot_open_it_twice(tmp_path: Path) -> None:
    """Two daemons in one process are two daemons; after `close` the other one has it."""
    one, other = StateDirectory(tmp_path), StateDirectory(tmp_path)
    one.open()
    with pytest.raises(StateError, match=f"is in use by process {os.getpid()}"):
        other.open()
    one.close()
    one.close()
    other.open()
    other.close()


def test_a_holder_who_does_not_say_who_he_is(tmp_path: Path) -> None:
    """The file is for people: whatever stands in it, the lock holds."""
    one = StateDirectory(tmp_path)
    one.open()
    (tmp_path / "lock").write_bytes(b"\xff\x00 rubbish")
    with pytest.raises(StateError, match="is in use by another process"):
        StateDirectory(tmp_path).open()
    one.close()


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("file", "cannot be created by user .*: .*/file is no directory; expected a directory"),
        ("file/below", "cannot be created by user .*: .*/file is no directory; expected"),
        ("circle", "cannot be created by user .*: .*/circle is no directory; expected"),
        ("x" * 300, "cannot be created by user .*: File name too long; expected"),
        ("nul\0", "cannot be created by user .*: .*null .*; expected"),
        ("/proc/1/streamer", "cannot be created by user .*: .*; expected"),
        ("/proc/self/task", "cannot be used by user .*; expected a directory that this user can read and write"),
        ("held", "cannot be used by user .*: Too many levels of symbolic links; expected"),
    ],
)
def test_what_cannot_be_used_is_refused(tmp_path: Path, path: str, found: str) -> None:
    """Found, wanted, what to do; a link in place of the lock file is not followed."""
    (tmp_path / "file").touch()
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "held").mkdir()
    (tmp_path / "held" / "lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StateError, match=found):
        StateDirectory(tmp_path / path).open()
    assert not (tmp_path / "elsewhere").exists()


@pytest.fixture
def secret() -> Iterator[Path]:
    """A directory that nobody but root may enter, in one that everybody may."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)  # noqa: S103  everybody may look for what is inside
        path = Path(folder) / "secret"
        path.mkdir(mode=0)
        yield path
        path.chmod(0o700)


@pytest.mark.parametrize("where", ["secret", "root"])
def test_a_directory_of_somebody_else_ends_the_start(secret: Path, where: str) -> None:
    """The first thing that goes wrong when a service changes its user: exit status 2, the directory and what to do."""
    path = secret if where == "secret" else Path("/")
    weights = secret.with_name(BASE.name)  # nobody may not be able to read the checkout; the page neither
    for file in (BASE, BASE.with_suffix(".json")):
        shutil.copy(file, secret.parent)
        secret.with_name(file.name).chmod(0o644)
    arguments = ["run"]
    for setting in (f"state.directory={path}", f"model.weights={weights}", "http.enabled=false"):
        arguments += ["--set", setting]
    ended = subprocess.run(
        [sys.executable, "-c", AS_NOBODY, *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 2, ended.stderr
    assert (
        f"state.directory: {path} cannot be used by user {NOBODY if os.geteuid() == 0 else os.geteuid()}"
        in ended.stderr
    )
    assert "expected a directory" in ended.stderr


def test_small_files_are_replaced_whole_and_seen_by_their_owner_only(tmp_path: Path) -> None:
    """What was kept stays when the disk takes no more; a link or a pipe of that name is not ours."""
    directory = StateDirectory(tmp_path)
    assert directory.kept("filters.json") is None
    directory.keep("filters.json", b"one")
    directory.keep("filters.json", b"two")
    assert directory.kept("filters.json") == b"two"
    assert (tmp_path / "filters.json").stat().st_mode & 0o777 == 0o600
    limits = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)); import signal\n"
    full = limits + "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nfrom pathlib import Path\n"
    full += "from streamer.statedir import StateDirectory\n"
    full += f"StateDirectory(Path({str(tmp_path)!r})).keep('filters.json', b'three')"
    ended = subprocess.run([sys.executable, "-c", full], capture_output=True, text=True, timeout=60, check=False)
    assert "File too large" in ended.stderr
    assert directory.kept("filters.json") == b"two"
    (tmp_path / "elsewhere").write_bytes(b"secret")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(tmp_path / "pipe")
    assert directory.kept("link") is None
    assert directory.kept("pipe") is None
    assert directory.kept(".") is None


def test_what_is_to_outlive_a_power_cut_is_on_the_disk_before_it_has_its_name(tmp_path: Path) -> None:
    """And its name is, before anybody relies on it: by the system calls of the real thing."""
    log = tmp_path / "calls"
    code = "import sys; from pathlib import Path; from streamer.statedir import StateDirectory\n"
    code += "StateDirectory(Path(sys.argv[1])).keep('webhook.json', b'[]', synced=True)"
    calls = "?rename,?renameat,renameat2,fsync"
    watched = [program("strace"), "-f", "-y", "-qq", "-e", f"trace={calls}", "-o", str(log)]
    subprocess.run([*watched, sys.executable, "-c", code, str(tmp_path)], check=True, timeout=60)
    seen = [line.partition(" ")[2].strip() for line in log.read_text().splitlines() if str(tmp_path) in line]
    assert [line.partition("(")[0].removesuffix("at").removesuffix("at2") for line in seen] == [
        "fsync", "rename", "fsync",
    ]  # fmt: skip
    assert "webhook.json.part>" in seen[0]
    assert f"{tmp_path}>" in seen[2]
