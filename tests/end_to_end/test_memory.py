"""The memory that docs/reliability.md promises is what the real daemon takes, snapshots and restarts included."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.bench import memory
from tests.conftest import StartBroker

DOCS = Path(__file__).parent.parent.parent / "docs" / "reliability.md"


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "series", [pytest.param(5_000, marks=pytest.mark.slow), pytest.param(100_000, marks=pytest.mark.long)]
)
def test_memory_is_within_a_tenth_of_the_formula(mosquitto: StartBroker, tmp_path: Path, series: int) -> None:
    """Above it, and not so far below that the formula would say nothing."""
    resident, *peaks = memory.measure(mosquitto(lines=["max_queued_messages 0"]), tmp_path, series)
    expected, expected_peak = memory.formula(series)
    assert 0.75 * expected < resident < 1.1 * expected
    assert 0.75 * expected_peak < max(peaks) < 1.1 * expected_peak


def test_the_documentation_states_the_formula() -> None:
    """With the numbers that the test above holds the daemon to."""
    found = re.findall(r"`([0-9.]+) MB \+ ([0-9.]+) KB × series`", DOCS.read_text())
    stated = [(float(megabytes), float(kilobytes)) for megabytes, kilobytes in found]
    assert stated == [(memory.RESIDENT_MB, memory.RESIDENT_KB), (memory.PEAK_MB, memory.PEAK_KB)]
