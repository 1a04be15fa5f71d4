"""The documentation says what the code does: reference pages, links, commands, settings and metrics that it names."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from streamer import metrics
from streamer.cli import parser
from streamer.places import Kind
from streamer.settings import Rule, Settings, reference, tables
from tests import references

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "deploy").rglob("*.md")])

TABLES = "|".join(sorted({name.split(".")[0] for name in tables()}))
FILE_ENDINGS = ("py", "md", "toml", "json", "html", "js", "yaml", "service", "safetensors")


def names(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str) -> Iterator[str]:
    """The fenced code of one language."""
    for match in re.finditer(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
        yield match[1]


def commands(page: Path) -> Iterator[list[str]]:
    """The arguments of each `streamer` command in the page's console blocks."""
    for block in blocks(page, "console"):
        lines = block.replace("\\\n", " ").splitlines()
        prompted = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        for text in prompted or lines:  # where there are prompts, the rest is output
            # A variable before it, the shell's own words after it.
            call = re.sub(r"^(sudo )?([A-Z_]+=\S* )*", "", text) + " "
            if re.match(r"(\S*/)?streamer\s", call):
                yield shlex.split(re.split(r"\s(?:[|&;]|\d?>|<)", call)[0], comments=True)[1:]


def slugs(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_reference_pages_are_what_the_code_says() -> None:
    """A new setting, command or metric is in the documentation, or this fails: `make docs` writes it."""
    assert not list(references.stale()), "run `make docs`"


def test_reference_pages_are_complete() -> None:
    """Every setting, every key of a rule, every command with every option, and every metric has its line."""
    pages = references.pages()
    for setting in [*reference(), *reference(Rule)]:
        assert f"\n| `{setting.name}` |" in pages["settings.md"]
        assert setting.sentence.endswith("."), setting.name
        assert setting.unit or setting.kind not in (Kind.INTEGER, Kind.NUMBER) or setting.name.endswith(("port", "qos"))
    for name, sub in references.commands().items():
        assert f"\n## streamer {name}\n" in pages["commands.md"]
        for action in sub._actions:
            assert action.help, f"{name} {action.dest}"
    for metric in metrics.reference():
        assert f"\n| `{metric.name}` | {metric.kind} |" in pages["metrics.md"]


@pytest.mark.parametrize("page", PAGES, ids=names)
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link names a file of the project, and an anchor that is there."""
    text = re.sub(r"^```.*?^```|`[^`\n]*`", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{names(page)}: {target} is not there"
        assert file.is_relative_to(ROOT), f"{names(page)}: {target} lies outside the project"
        assert not anchor or anchor in slugs(file), f"{names(page)}: {target}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=names)
def test_commands_are_ones_that_exist(page: Path) -> None:
    """Every `streamer` command of a console block is accepted by the command line's parser."""
    for argv in commands(page):
        complaint = io.StringIO()
        try:
            with contextlib.redirect_stderr(complaint), contextlib.redirect_stdout(complaint):
                parser().parse_args(argv)
        except SystemExit as stop:
            if stop.code:  # 0: --help
                pytest.fail(f"{names(page)}: streamer {shlex.join(argv)}: {complaint.getvalue()}")


@pytest.mark.parametrize("page", PAGES, ids=names)
def test_toml_blocks_are_settings(page: Path) -> None:
    """Every TOML block of the documentation could be a file of settings."""
    for block in blocks(page, "toml"):
        Settings.model_validate(tomllib.loads(block))


@pytest.mark.parametrize("page", PAGES, ids=names)
def test_settings_that_are_named_exist(page: Path) -> None:
    """`mqtt.host` in backticks is a setting or a table; nothing that has been renamed lingers."""
    known = {setting.name for setting in reference()} | set(tables())
    named = re.findall(rf"`((?:{TABLES})\.[a-z_.]*[a-z_])(?: = [^`]*)?`", page.read_text())
    wrong = [name for name in named if name not in known and name.rsplit(".", 1)[-1] not in FILE_ENDINGS]
    assert not wrong, f"{names(page)}: {wrong}"


@pytest.mark.parametrize("page", PAGES, ids=names)
def test_metrics_that_are_named_exist(page: Path) -> None:
    """`streamer_...` is a metric, or one of the series that a histogram has."""
    known = {metric.name for metric in metrics.reference()}
    known |= {f"{metric.name}_{part}" for metric in metrics.reference() for part in ("bucket", "sum", "count")}
    named = set(re.findall(r"`(streamer_[a-z_]+[a-z])\b", page.read_text()))
    assert named <= known, f"{names(page)}: {sorted(named - known)}"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("```console\n$ streamer run \\\n  --set a=b\nstreamer run: no\n```\n", [["run", "--set", "a=b"]]),
        ("```console\n$ A=1 .venv/bin/streamer check | head\n```\n", [["check"]]),
        ("```console\nstreamer explain t '{\"a\": 1}'  # a word\n```\n", [["explain", "t", '{"a": 1}']]),
        ("```sh\nstreamer rum\n```\n", []),
    ],
)  # fmt: skip
def test_commands_are_found(tmp_path: Path, text: str, wanted: list[list[str]]) -> None:
    """The search for commands sees what a person would run."""
    page = tmp_path / "page.md"
    page.write_text(text)
    assert list(commands(page)) == wanted


def test_a_reference_page_that_has_fallen_behind_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`--check` fails until the pages are written, and writing them mends it."""
    monkeypatch.setattr(references, "DOCS", tmp_path / "docs")
    assert references.main(["--check"]) == 1
    assert references.main([]) == 0
    assert references.main(["--check"]) == 0
    (tmp_path / "docs" / "settings.md").write_text("old")
    assert list(references.stale()) == ["settings.md"]
