"""Imports point one way. A new file of `streamer/` takes its place in `LAYERS`, or these tests fail."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent

# Lowest first; `models` lies below them all. A part imports lower layers and its own, where no cycle may arise.
LAYERS = (
    {"answers"}  # what http and web say to each other
    | {"__init__", "errors", "exposition", "log", "metrics", "names", "places", "readings", "settings"}
    | {"sharing", "signals", "topics"},
    {"alarms", "baseline", "clock", "detector", "disk", "documents", "generations", "inbox", "inspection", "journal"}
    | {"outbox", "payloads", "recent", "records", "recovery", "redelivery", "registry", "reorder", "requests"}
    | {"safekeeping"}
    | {"shadow", "shard", "snapshot", "statedir"}
    | {"looks", "traces"}  # what the page is shown
    | {"labels", "rows"}  # what is in files of readings, and beside them
    | {"endings", "packets", "receiver", "wire"},  # what mqtt is made of
    {"diskthread", "engine", "intake", "lessons", "orders", "progress", "remembrance", "replay", "report"}
    | {"retraining", "saving", "telling"},
    {"probe", "wiring"},
    {"app", "doctor"},
    {"cli"},
    {"__main__"},
)
# They import the two lowest layers only, neither the engine nor one another; `app` wires them with plain callables.
SIBLINGS = {"http", "mqtt", "sinks", "systemd", "web"}
# They import what they like; only `cli` imports them, inside a function.
TOOLS = {"bench", "demo"}
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts} | dict.fromkeys(SIBLINGS, 2)

# What a package from elsewhere, or the settings, is used by; torch is free in models/ besides.
ONLY_IN = {
    "paho": {"mqtt", "probe", "receiver"},
    "prometheus_client": {"http", "metrics"},
    "pydantic": {"settings"},
    "pydantic_settings": {"settings"},
    "streamer.settings": {"app", "cli", "settings", "wiring"},
    "torch": {"detector", "retraining"},
}
# The middle layer says what happened and leaves the rest to the engine.
NOT_IN_THE_MIDDLE = {"logging", "streamer.log", "streamer.metrics", "threading", "time"}
ALLOWED_ALL_THE_SAME = {("clock", "time"), ("inbox", "threading"), ("inbox", "time"), ("receiver", "time")}


class Import(NamedTuple):
    """One import of one module of ours."""

    importer: str
    """dotted name of the module"""
    target: str
    line: int
    lazy: bool
    """inside a function"""

    def __str__(self) -> str:
        return f"{self.importer}, line {self.line}, imports {self.target}"


@cache
def modules() -> dict[str, Path]:
    """Every module of the two packages by its dotted name; a package's is `<package>.__init__`."""
    files = [path for package in ("models", "streamer") for path in (ROOT / package).rglob("*.py")]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in files}


def part(module: str) -> str:
    """The name in `LAYERS`: `streamer.payloads.times` belongs to `payloads`."""
    return [*module.split("."), "__init__"][1]


def imports_of(module: str, node: ast.AST, lazy: bool = False) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(module, alias.name, child.lineno, lazy)
        elif isinstance(child, ast.ImportFrom):
            above = module.split(".")[: -child.level] if child.level else []
            origin = ".".join([*above, *([child.module] if child.module else [])])
            for alias in child.names:
                deeper = f"{origin}.{alias.name}"  # `from streamer import topics` imports a module
                yield Import(
                    module, deeper if {deeper, f"{deeper}.__init__"} & modules().keys() else origin, child.lineno, lazy
                )
        inner = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield from imports_of(module, child, lazy or inner)


@cache
def all_imports() -> tuple[Import, ...]:
    return tuple(
        each for name, path in modules().items() for each in imports_of(name, ast.parse(path.read_text(), path.name))
    )


def of_streamer() -> Iterator[Import]:
    """What streamer's parts import, but for the tools."""
    return (
        each for each in all_imports() if each.importer.startswith("streamer.") and part(each.importer) not in TOOLS
    )


def is_in(target: str, package: str) -> bool:
    return f"{target}.".startswith(f"{package}.")


def test_every_file_has_a_layer() -> None:
    """A file that nobody has placed is named."""
    files = {name for name in modules() if is_in(name, "streamer")}
    unplaced = sorted(name for name in files if part(name) not in LEVEL.keys() | TOOLS)
    assert not unplaced, f"{unplaced}: say in LAYERS of tests/test_layers.py where this belongs"


def test_models_import_nothing_of_streamer() -> None:
    """The forecaster stands alone."""
    wrong = [str(each) for each in all_imports() if is_in(each.importer, "models") and is_in(each.target, "streamer")]
    assert not wrong


def test_streamer_imports_downwards() -> None:
    """Lower layers only; siblings know neither the engine nor one another; the tools come in through cli, lazily."""
    wrong = []
    for each in of_streamer():
        importer, target = part(each.importer), part(each.target)
        if not is_in(each.target, "streamer") or importer == target:
            continue
        if target in TOOLS:
            if importer != "cli" or not each.lazy:
                wrong.append(f"{each}: only cli may, inside a function")
        elif importer not in LEVEL or target not in LEVEL:
            continue  # the test above names it, or there is no such file
        elif LEVEL[target] > LEVEL[importer]:
            wrong.append(f"{each}: that lies higher")
        elif LEVEL[target] == LEVEL[importer] and {importer, target} & SIBLINGS:
            wrong.append(f"{each}: siblings do not know each other; app wires them")
    assert not wrong, "\n".join(wrong)


def test_parts_of_one_layer_form_no_circle() -> None:
    """Also lazy imports count; graphlib names the circle."""
    graph: dict[str, set[str]] = {}
    for each in of_streamer():
        if is_in(each.target, "streamer") and part(each.target) != part(each.importer):
            graph.setdefault(part(each.importer), set()).add(part(each.target))
    graphlib.TopologicalSorter(graph).prepare()


def test_each_package_from_elsewhere_has_one_home() -> None:
    """paho is in mqtt.py and probe.py, pydantic in settings, torch where it trains, and so on."""
    wrong = [
        f"{each}: only {sorted(homes)} may"
        for each in of_streamer()
        for package, homes in ONLY_IN.items()
        if is_in(each.target, package) and part(each.importer) not in homes
    ]
    assert not wrong, "\n".join(wrong)


def test_the_settings_are_declared_before_they_are_listed_and_read() -> None:
    """Each file of the package imports those before it only."""
    order = [f"streamer.settings.{name}" for name in ("forms", "declarations", "catalogue", "reading", "__init__")]
    inside = [each for each in all_imports() if is_in(each.importer, "streamer.settings") and each.target in order]
    assert {each.importer for each in inside} == {*order[1:]}
    assert not [str(each) for each in inside if order.index(each.target) >= order.index(each.importer)]


def test_the_middle_layer_is_silent() -> None:
    """No logging, no metrics, no clock, no threads."""
    wrong = [
        f"{each}: the middle layer returns what happened and the engine counts it"
        for each in of_streamer()
        for package in NOT_IN_THE_MIDDLE
        if part(each.importer) in LAYERS[1]
        and is_in(each.target, package)
        and (part(each.importer), package) not in ALLOWED_ALL_THE_SAME
    ]
    assert not wrong, "\n".join(wrong)


def test_importing_the_daemon_does_not_import_torch() -> None:
    """Every module but the tools, in a fresh interpreter: serving on the CPU never pays for torch."""
    parts = {
        name.removesuffix(".__init__") for name in modules() if is_in(name, "streamer") and part(name) not in TOOLS
    }
    program = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)\n"
    program += "sys.exit('torch was imported' if 'torch' in sys.modules else 0)"
    names = sorted(parts - {"streamer.__main__"})
    done = subprocess.run(
        [sys.executable, "-c", program, *names], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
