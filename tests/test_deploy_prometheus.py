"""The shipped rules and configurations, by the programs that read them: promtool and amtool."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

from streamer import settings
from streamer.metrics import reference
from tests.servers import program

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "deploy" / "prometheus"
RULE_FILES = ("rules.yml", "grafana_anomaly.yml")
TEST_FILES = ("rules_test.yml", "rules_hours_test.yml")
EXPORTED = {
    metric.name + part
    for metric in reference()
    for part in (("_bucket", "_sum", "_count") if metric.kind == "histogram" else ("",))
}

SETTINGS = {setting.name for setting in settings.reference()}


class Rule(NamedTuple):
    """One rule of a file."""

    kind: str
    """`alert` or `record`"""
    name: str
    text: str
    """as it stands in the file, from its expression to the next rule"""


def rules(name: str) -> list[Rule]:
    found = re.split(r"^ +- (alert|record): (\S+)\n", (FOLDER / name).read_text(), flags=re.MULTILINE)
    return [Rule(*found[at : at + 3]) for at in range(1, len(found), 3)]


ALERTS = [rule for rule in rules("rules.yml") if rule.kind == "alert"]


def run(name: str, *arguments: str, folder: Path = FOLDER) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program(name), *arguments], cwd=folder, capture_output=True, text=True, check=False)


def check(name: str, *arguments: str) -> None:
    done = run(name, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.server("promtool")
def test_rules_and_configuration_are_ones_that_prometheus_takes() -> None:
    """Rules with nothing that promtool's linter has to say, and the example with the files that it names."""
    check("promtool", "check", "rules", "--lint=all", "--lint-fatal", *RULE_FILES)
    check("promtool", "check", "config", "prometheus.yml")


@pytest.mark.server("amtool")
def test_alertmanager_takes_the_example() -> None:
    """And sends what is critical where it belongs."""
    check("amtool", "check-config", "alertmanager.yml")
    check("amtool", "config", "routes", "test", "--config.file=alertmanager.yml", "--verify.receivers=webhook", "a=b")


@pytest.mark.server("promtool")
@pytest.mark.parametrize("name", TEST_FILES)
def test_each_alert_fires_when_it_must_and_only_then(name: str) -> None:
    """The unit tests beside the rules."""
    check("promtool", "test", "rules", name)


@pytest.mark.slow
@pytest.mark.server("promtool")
@pytest.mark.timeout(600)
@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)
def test_an_alert_that_never_fires_or_fires_too_early_is_noticed(tmp_path: Path, alert: Rule) -> None:
    """The unit tests would fail if its expression were another, or its `for` were missing."""
    shutil.copytree(FOLDER, tmp_path, dirs_exist_ok=True)
    (name,) = (each for each in TEST_FILES if f'"{alert.name}"' in (FOLDER / each).read_text())
    changed = [re.sub(r"expr: \|\n(?: {10,}.*\n)+", "expr: up < 0\n", alert.text)]
    if re.search("^ +for:", alert.text, re.MULTILINE):
        changed.append(re.sub(r"^ +for: .*\n", "", alert.text, flags=re.MULTILINE))
    for text in changed:
        assert text != alert.text
        (tmp_path / "rules.yml").write_text((FOLDER / "rules.yml").read_text().replace(alert.text, text))
        done = run("promtool", "test", "rules", name, folder=tmp_path)
        assert done.returncode == 1, done.stdout + done.stderr
        assert alert.name in done.stdout + done.stderr


@pytest.mark.parametrize("name", RULE_FILES)
def test_rules_ask_for_what_the_daemon_exports(name: str) -> None:
    """Nothing that has been renamed lingers, in an expression or in what a person reads."""
    text = (FOLDER / name).read_text()
    recorded = {rule.name for rule in rules(name) if rule.kind == "record"}
    assert set(re.findall(r"\bstreamer_\w+", text.replace("streamer_%s_rejected_total", ""))) <= EXPORTED
    assert set(re.findall(r"\bstreamer:[\w:]+", text)) <= recorded
    tables = {name.partition(".")[0] for name in SETTINGS if "." in name}
    assert set(re.findall(rf"\b(?:{'|'.join(sorted(tables))})\.(?!yml)\w+", text)) <= SETTINGS


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)
def test_each_alert_says_what_is_wrong_and_what_to_do(alert: Rule) -> None:
    """Summary, description and severity; and a row in the documentation."""
    assert re.search(r"^ +severity: (critical|warning|info)$", alert.text, re.MULTILINE)
    assert re.search(r"^ +summary: [A-Z]", alert.text, re.MULTILINE)
    assert re.search(r"^ +description: >-$", alert.text, re.MULTILINE)
    assert f"\n| `{alert.name}` |" in (ROOT / "docs" / "grafana.md").read_text()
