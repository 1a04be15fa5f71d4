"""The wheel holds what it should, the pins cover what is needed, nothing committed points to one person's machine."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent


class Project(msgspec.Struct, rename="kebab"):
    name: str
    dependencies: list[str]
    optional_dependencies: dict[str, list[str]]


class BuildSystem(msgspec.Struct):
    requires: list[str]


class Pyproject(msgspec.Struct, rename="kebab"):
    """The tables of pyproject.toml that are looked at here."""

    project: Project
    build_system: BuildSystem


def tracked() -> list[Path]:
    """The committed files that lie in the work tree."""
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [path for name in done.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def direct_requirements() -> list[Requirement]:
    """Everything that pyproject.toml names, all extras and the build back end included."""
    settings = msgspec.convert(tomllib.loads((ROOT / "pyproject.toml").read_text()), Pyproject)
    extras = [line for extra in settings.project.optional_dependencies.values() for line in extra]
    return [Requirement(line) for line in [*settings.project.dependencies, *extras, *settings.build_system.requires]]


def pins() -> dict[str, str]:
    """Name to version, from constraints.txt."""
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.split("==") for line in lines)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    """Built by the back end itself: no network, one second."""
    directory = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(directory)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(next(directory.glob("*.whl"))) as archive:
        yield archive


def test_the_wheel_has_two_packages_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    """Its top level is {streamer, models} and the metadata."""
    top = {name.split("/")[0] for name in wheel.namelist()}
    assert {name for name in top if not name.endswith(".dist-info")} == {"streamer", "models"}
    assert len(top) == 3


def test_the_wheel_holds_every_committed_file_of_both_packages(wheel: zipfile.ZipFile) -> None:
    """Data files too: types, weights, the page."""
    committed = {path.relative_to(ROOT).as_posix() for path in tracked()}
    packages = {name for name in committed if name.startswith(("streamer/", "models/"))}
    assert packages >= {"streamer/py.typed", "models/py.typed"}
    assert packages - set(wheel.namelist()) == set()


def test_the_wheel_holds_the_base_weights(wheel: zipfile.ZipFile) -> None:
    """Weights, manifest and model card: an installation scores without any download."""
    names = [name for name in wheel.namelist() if name.startswith("models/")]
    assert any(name.endswith(".safetensors") for name in names)
    assert any(name.endswith(".json") for name in names)
    assert "models/MODEL_CARD.md" in names


def test_the_wheel_names_its_licence_and_command(wheel: zipfile.ZipFile) -> None:
    """Apache-2.0 with its text, MIT of the charts with its own, and the console script."""
    metadata = {name.split(".dist-info/")[1]: name for name in wheel.namelist() if ".dist-info/" in name}
    assert b"License-Expression: Apache-2.0 AND MIT" in wheel.read(metadata["METADATA"])
    assert b"Apache License" in wheel.read(metadata["licenses/LICENSE"])
    assert b"MIT License" in wheel.read(metadata["licenses/streamer/web/static/uPlot.LICENSE"])
    assert b"streamer = streamer.__main__:main" in wheel.read(metadata["entry_points.txt"])


def test_the_wheel_runs_away_from_the_checkout(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    """Unpacked elsewhere it is the one that runs, and the command line answers."""
    wheel.extractall(tmp_path)
    program = "import streamer, runpy, sys; print(streamer.__file__); sys.argv = ['streamer', 'version']; "
    program += "runpy.run_module('streamer', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    where, *answer = done.stdout.splitlines()
    assert Path(where).is_relative_to(tmp_path)
    assert answer


def test_the_constraints_are_plain_pins() -> None:
    """Only comments and `name==version`: no address, no path, no option, no local version."""
    plain = re.compile(r"#.*|[a-z0-9]+(-[a-z0-9]+)*==[0-9]+(\.[0-9a-z]+)*|")
    wrong = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not plain.fullmatch(line)]
    assert not wrong


def test_the_constraints_satisfy_what_pyproject_asks() -> None:
    """Every direct dependency of every extra is pinned to a version inside its range."""
    for requirement in direct_requirements():
        version = pins().get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement} has no line in constraints.txt"
        assert requirement.specifier.contains(version), f"{requirement} does not admit the pinned {version}"


def test_the_constraints_cover_what_the_dependencies_bring() -> None:
    """Whatever the installed direct dependencies ask for here is pinned as well."""
    waiting, seen = direct_requirements(), set()
    while waiting:
        requirement = waiting.pop()
        name, extras = canonicalize_name(requirement.name), requirement.extras or {""}
        if (name, *extras) in seen:
            continue
        seen.add((name, *extras))
        try:
            needs = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # an environment may lack torch; the direct ones are checked above
        asked = [Requirement(line) for line in needs]
        waiting += [
            need for need in asked if need.marker is None or any(need.marker.evaluate({"extra": e}) for e in extras)
        ]
    assert {name for name, *_extras in seen} - pins().keys() == set()


# Character classes keep these expressions from finding themselves.
MACHINE_BOUND = re.compile(
    rb"py[p]i\.org|python[h]osted\.org|npm[j]s\.org|crates[.]io|download\.py[t]orch"  # indexes of packages
    rb"|-[-](?:extra-)?index-url|fi[n]d-links|trusted-h[o]st"
    rb"|(?<![\w/.-])/(?:wor[k]|roo[t])(?:/|\b)|\.librar[y]"  # paths of one machine
    rb"|\bfar[m]-|\bissues sho[w]\b"  # tools of one workplace
)


def test_nothing_committed_is_bound_to_a_machine() -> None:
    """No package index, no path of one machine: a clone works anywhere."""
    found = []
    for path in tracked():
        content = path.read_bytes()
        if b"\0" not in content:
            found += [
                f"{path.relative_to(ROOT)}: {match.group().decode()}" for match in MACHINE_BOUND.finditer(content)
            ]
    assert not found
