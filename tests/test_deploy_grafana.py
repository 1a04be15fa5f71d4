"""The shipped dashboards: made by their generator, of metrics that exist, and of what Grafana's own types allow."""

from __future__ import annotations

import json
import re
import runpy
import shutil
import subprocess
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import skip_absent
from tests.test_deploy_prometheus import ALERTS, EXPORTED

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "deploy" / "grafana"
NAMES = ("fleet", "series", "operations")
TYPES = ROOT / "tests" / "grafana"
PROCESS = {"process_resident_memory_bytes", "process_cpu_seconds_total", "process_open_fds", "process_max_fds"}


def read(name: str) -> Any:
    return json.loads((FOLDER / "dashboards" / f"{name}.json").read_text())


def test_the_files_are_what_the_generator_makes() -> None:
    """Else: `python deploy/grafana/generate.py`."""
    made = runpy.run_path(str(FOLDER / "generate.py"))["dashboards"]()
    assert set(made) == {path.name for path in (FOLDER / "dashboards").iterdir()} == {f"{name}.json" for name in NAMES}
    for name, text in made.items():
        assert (FOLDER / "dashboards" / name).read_text() == text, name


@pytest.mark.parametrize("name", NAMES)
def test_dashboards_ask_for_what_is_exported(name: str) -> None:
    """Metrics of the daemon and its process, and alerts that there are; nothing that rules would have to record."""
    text = (FOLDER / "dashboards" / f"{name}.json").read_text()
    assert set(re.findall(r"\bstreamer_\w+", text)) <= EXPORTED
    assert set(re.findall(r"\bprocess_\w+", text)) <= PROCESS
    assert "streamer:" not in text
    assert set(re.findall(r"\bStreamer[A-Z]\w+", text)) <= {alert.name for alert in ALERTS}


@pytest.mark.parametrize("name", NAMES)
def test_panels_have_their_own_place_and_say_what_they_mean(name: str) -> None:
    """No two overlap or share an id, none is wider than the page; every variable that is used is there."""
    dashboard = read(name)
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        at = panel["gridPos"]
        assert at["x"] >= 0
        assert at["x"] + at["w"] <= 24
        assert panel["type"] == "row" or panel["description"].endswith(".")
    for one, other in combinations([panel["gridPos"] for panel in panels], 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        assert beside or one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
    assert set(re.findall(r"\$\{?([a-z]\w+)", json.dumps(dashboard))) == variables


def test_a_click_on_a_series_leads_to_its_dashboard() -> None:
    """The link of the table of worst series sets each variable of the dashboard of one series."""
    (url,) = (
        link["url"]
        for panel in read("fleet")["panels"]
        for link in panel.get("fieldConfig", {}).get("defaults", {}).get("links", [])
    )
    series = read("series")
    assert url.startswith(f"/d/{series['uid']}?")
    assert set(re.findall(r"var-(\w+)=", url)) == {each["name"] for each in series["templating"]["list"]}


@pytest.mark.slow
def test_dashboards_fit_grafanas_types(tmp_path: Path) -> None:
    """`tsc` against @grafana/schema takes each dashboard, and none with a wrong key or value."""
    if shutil.which("node") is None or not (TYPES / "node_modules").is_dir():
        skip_absent("@grafana/schema", "npm ci --prefix tests/grafana")
    shutil.copy(TYPES / "schema.ts", tmp_path)
    (tmp_path / "node_modules").symlink_to(TYPES / "node_modules")
    texts = {name: (FOLDER / "dashboards" / f"{name}.json").read_text() for name in NAMES}
    wrong = ('"graphTooltip": 7', '"drawStyle": "lines"', '"fillopacity": 0', '"type": "bargage"', '"grafMode": "none"')
    for k, change in enumerate(wrong):
        key, _, value = change.partition(": ")
        old = {'"fillopacity"': '"fillOpacity"', '"grafMode"': '"graphMode"'}.get(key, key)
        pattern = '"type": "bargauge"' if "bargage" in value else rf"{old}: [^,\n]+"
        texts[f"wrong{k}"], found = re.subn(pattern, change, texts["fleet"], count=1)
        assert found
    for name, text in texts.items():
        source = f'import type {{ Dashboard }} from "./schema";\nexport const made: Dashboard = {text};\n'
        (tmp_path / f"{name}.ts").write_text(source)
    options = ["--noEmit", "--strict", "--skipLibCheck", "--target", "es2022"]
    options += ["--module", "esnext", "--moduleResolution", "bundler"]
    command = [str(tmp_path / "node_modules" / ".bin" / "tsc"), *options, *(f"{name}.ts" for name in texts)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    complained = set(re.findall(r"^(\w+)\.ts\(", done.stdout, re.MULTILINE))
    assert complained == {f"wrong{k}" for k in range(len(wrong))}, done.stdout[:3000] + done.stderr
