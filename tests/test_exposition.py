"""The per-series text: what prometheus_client's parsers read back is what was in the arrays, whatever the keys."""

from __future__ import annotations

import math
import subprocess
from collections.abc import Callable, Iterable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from streamer.clock import ManualClock
from streamer.exposition import CHUNK, GAUGES, LABEL_BYTES, PEAK_HALF_LIFE_SECONDS, SeriesTable, SeriesText, TopList
from tests.servers import program

HOSTILE = [
    'quote"s',
    "back\\slash",
    "line\nbreak",
    "nul\0byte",
    "carriage\rreturn\u2028separator",
    "lone surrogate \ud800 in the middle#also \udfff here",
    "percent %s %d %.12g %%#%(name)s",
    "x" * 65_536 + "#" + "é" * 65_536,
    'braces{topic="a"} 1#"} 2 # {',
    "#only a field",
    "topic#",
    "topic",
    " leading and trailing #\t",
    "snow☃man/𝔘𝔫𝔦𝔠𝔬𝔡𝔢#√",
    "# EOF\n#\n# EOF\n",
    "",
]


def table(keys: list[str], score: Iterable[float] | None = None) -> SeriesTable:
    """Columns that tell where they come from; the score is given or 0, 1, 2 ..."""
    n = len(keys)
    score_column = np.arange(n, dtype=float) if score is None else np.array(list(score), dtype=float)
    base = np.arange(n, dtype=float)
    return SeriesTable(keys, score_column, base + 0.5, base + 0.25, -base, base * 1e6)


def write(keys: list[str], score: Iterable[float] | None = None) -> str:
    return SeriesText(ManualClock().monotonic).write(table(keys, score), None).decode()


def samples(families: Iterable[Metric]) -> dict[str, dict[tuple[str, str], float]]:
    """name -> (topic, field) -> value; two samples with the same labels are an error."""
    found: dict[str, dict[tuple[str, str], float]] = {}
    for family in families:
        for sample in family.samples:
            labels = (sample.labels["topic"], sample.labels["field"])
            assert labels not in found.setdefault(sample.name, {}), f"twice: {sample}"
            found[sample.name][labels] = sample.value
    return found


Parser = Callable[[str], Iterable[Metric]]


def openmetrics(text: str) -> Iterable[Metric]:
    families: Iterable[Metric] = parse_openmetrics(text + "# EOF\n")  # type: ignore[no-untyped-call]  # the library's
    return families


PARSERS = pytest.mark.parametrize("parse", [parse_text, openmetrics], ids=["text", "openmetrics"])


@PARSERS
def test_every_column_goes_to_its_own_gauge(parse: Parser) -> None:
    """Topic and field are split at the first #, a bare number has no field, and the five gauges have their columns."""
    found = samples(parse(write(["plant/oven#temperature", "plant/oven#zone#2", "plant/door"])))
    assert found == {
        "streamer_anomaly_score": {
            ("plant/oven", "temperature"): 0,
            ("plant/oven", "zone#2"): 1,
            ("plant/door", ""): 2,
        },
        "streamer_y": {("plant/oven", "temperature"): 0.5, ("plant/oven", "zone#2"): 1.5, ("plant/door", ""): 2.5},
        "streamer_yhat": {
            ("plant/oven", "temperature"): 0.25,
            ("plant/oven", "zone#2"): 1.25,
            ("plant/door", ""): 2.25,
        },
        "streamer_yhat_lower": {("plant/oven", "temperature"): 0, ("plant/oven", "zone#2"): -1, ("plant/door", ""): -2},
        "streamer_yhat_upper": {
            ("plant/oven", "temperature"): 0,
            ("plant/oven", "zone#2"): 1e6,
            ("plant/door", ""): 2e6,
        },
    }


@PARSERS
def test_no_key_breaks_the_text_and_no_two_keys_become_one(parse: Parser) -> None:
    """A scrape survives quotes, line breaks, NUL, surrogates, formats and 64 KiB in a topic or field."""
    found = samples(parse(write(HOSTILE)))
    assert list(found["streamer_anomaly_score"].values()) == list(range(len(HOSTILE)))
    assert all(len(series) == len(HOSTILE) for series in found.values())
    longest = max(len(text.encode()) for labels in found["streamer_y"] for text in labels)
    assert longest == LABEL_BYTES


@given(st.lists(st.text(st.characters(exclude_categories=())), unique=True, max_size=8))
@settings(deadline=None)
def test_both_parsers_read_back_what_was_written(keys: list[str]) -> None:
    """Any text at all, surrogates included, gives one sample a key; harmless text comes back unchanged."""
    for parse in (parse_text, openmetrics):
        found = samples(parse(write(keys)))
        assert set(found) == (set(GAUGES) if keys else set())
        for row, (labels, value) in enumerate(found.get("streamer_y", {}).items()):
            key = keys[row]
            assert value == row + 0.5
            if key.isprintable() and not key.endswith("#"):
                assert labels == (key.partition("#")[0], key.partition("#")[2])


def test_no_label_has_a_character_that_ends_a_line_or_controls_a_terminal() -> None:
    """Somebody reads /metrics with curl."""
    every = "".join(map(chr, [*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029, 0xD800, 0xDFFF]))
    text = write([f"{every}#{every}"])
    assert len(text.splitlines()) == text.count("\n")
    assert text.replace("\n", "").isprintable()


def test_keys_that_differ_only_in_what_cannot_be_written_stay_two() -> None:
    """Each ends in the digest of what it really is."""
    assert len(samples(parse_text(write(["\ud800", "\ud801", "\ufffd", "\0", "a#", "a"])))["streamer_y"]) == 6


def test_a_key_that_imitates_the_digest_of_another_gets_its_own() -> None:
    """A sensor can't take the labels of somebody whose name had to be shortened."""
    victim = samples(parse_text(write(["nul\0byte"])))["streamer_y"]
    imitation = next(iter(victim))[0]
    assert len(samples(parse_text(write(["nul\0byte", imitation])))["streamer_y"]) == 2


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=1, max_size=5))
@settings(deadline=None)
def test_numbers_come_back_to_twelve_digits_and_a_nan_is_absent(values: list[float]) -> None:
    """No series shows a number that it doesn't have."""
    keys = [f"t/{n}" for n in range(len(values))]
    for parse in (parse_text, openmetrics):
        found = samples(parse(write(keys, values))).get("streamer_anomaly_score", {})
        wanted = {(key, ""): value for key, value in zip(keys, values, strict=True) if not math.isnan(value)}
        assert found.keys() == wanted.keys()
        for labels, value in wanted.items():
            assert found[labels] == pytest.approx(value, rel=1e-11, abs=0) or found[labels] == value


def test_infinity_is_spelt_as_the_format_wants() -> None:
    """`+Inf`, as prometheus_client writes it."""
    lines = write(["a", "b"], [math.inf, -math.inf]).splitlines()
    assert lines[2:4] == [
        'streamer_anomaly_score{topic="a",field=""} +Inf',
        'streamer_anomaly_score{topic="b",field=""} -Inf',
    ]


def test_what_is_prepared_follows_the_series_as_they_come_and_go() -> None:
    """A table after many others is written like a table that was the first."""
    random = np.random.default_rng(7)
    kept = SeriesText(ManualClock().monotonic)
    keys: list[str] = []
    for step in range(12):
        keys = [key for key in keys if random.random() < 0.9] + [f"t{step}/{n}%" for n in range(700)]
        assert len(keys) > CHUNK or step < 2
        assert kept.write(table(keys), None).decode() == write(keys)
    assert kept.write(table(keys[:3]), None).decode() == write(keys[:3])
    assert len(kept._labels) <= 2 * 3 + CHUNK, "forgotten series are not kept in memory"


def test_the_top_list_has_the_highest_scores_and_those_without_one_last() -> None:
    """A warming series is shown where there is room, never in place of one that has a score."""
    keys = ["calm", "odd", "warming", "worst", "also warming"]
    score = [0.1, 3.0, math.nan, 9.0, math.nan]
    text = SeriesText(ManualClock().monotonic).write(table(keys, score), 2).decode()
    assert {topic for topic, _ in samples(parse_text(text))["streamer_y"]} == {"odd", "worst"}
    text = SeriesText(ManualClock().monotonic).write(table(keys, score), 3).decode()
    assert {topic for topic, _ in samples(parse_text(text))["streamer_y"]} == {"calm", "odd", "worst"}


def test_a_series_holds_its_place_until_its_peak_has_faded() -> None:
    """The list is what has been odd lately, not another set of names at each scrape."""
    clock = ManualClock()
    top = TopList(clock.monotonic)
    keys = ["a", "b"]
    assert top.choose(table(keys, [8.0, 1.0]), 1).tolist() == [0]
    clock.advance(PEAK_HALF_LIFE_SECONDS)  # a is still worth 4
    assert top.choose(table(keys, [0.1, 3.9]), 1).tolist() == [0]
    clock.advance(PEAK_HALF_LIFE_SECONDS)  # and now 2
    assert top.choose(table(keys, [0.1, 3.9]), 1).tolist() == [1]


def test_few_normal_series_are_new_in_the_top_list_at_each_scrape() -> None:
    """Scores of normal readings are noise: the list of the momentary top would be a new one every time."""
    random = np.random.default_rng(1)
    clock = ManualClock()
    top = TopList(clock.monotonic)
    keys = [f"t/{n}" for n in range(20_000)]
    new = []
    before: set[int] = set()
    for _ in range(60):
        chosen = set(top.choose(table(keys, random.exponential(size=len(keys))), 100).tolist())
        new.append(len(chosen - before))
        before = chosen
        clock.advance(15)
    assert new[0] == 100
    assert np.mean(new[40:]) < 15


@pytest.mark.server("promtool")
def test_promtool_finds_nothing_wrong_with_hostile_series() -> None:
    """Prometheus' own parser and linter read the text."""
    checked = subprocess.run(
        [program("promtool"), "check", "metrics"], input=write(HOSTILE).encode(), capture_output=True, check=False
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")
