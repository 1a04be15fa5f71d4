"""Names of fields as parts of keys."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.payloads.names import (
    element_names,
    head,
    is_identifier,
    is_stamp,
    is_topic,
    segment,
    split_path,
    tagged_head,
)

TEXTS = st.text(alphabet=st.characters() | st.sampled_from(".\\,=\n #"), max_size=6)
LONE = st.characters(categories=["Cs"])


@given(st.lists(TEXTS | LONE, min_size=1, max_size=4), st.lists(TEXTS | LONE, min_size=1, max_size=4))
def test_different_names_make_different_paths(one: list[str], other: list[str]) -> None:
    """Also where names hold dots, backslashes, control characters or half a surrogate pair."""
    paths = [".".join(map(segment, names)) for names in (one, other)]
    assert (paths[0] == paths[1]) == (one == other)
    assert all(path.encode().decode() == path for path in paths)


@given(TEXTS, st.dictionaries(TEXTS, TEXTS, max_size=3), TEXTS, st.dictionaries(TEXTS, TEXTS, max_size=3))
def test_different_tags_make_different_heads(
    one: str, one_tags: dict[str, str], other: str, other_tags: dict[str, str]
) -> None:
    """Measurement and tags can be told from each other again."""
    assert (head(one, one_tags) == head(other, other_tags)) == ((one, one_tags) == (other, other_tags))


@given(TEXTS.filter(bool), st.dictionaries(TEXTS.filter(bool), TEXTS, min_size=1, max_size=3), TEXTS)
def test_tags_are_found_in_a_path(measurement: str, tags: dict[str, str], field: str) -> None:
    """A path that begins with measurement and tags gives them back."""
    assert tagged_head(f"{head(measurement, tags)}.{segment(field)}") == head(measurement, tags)


@pytest.mark.parametrize("path", ["", "a", "a.b", "cpu.usage", "a\\,b=c.d", "a,b.c", ",a=b.c"])
def test_paths_without_tags(path: str) -> None:
    """Most paths have none."""
    assert tagged_head(path) is None


@given(st.lists(st.text(alphabet="ab.\\é #", max_size=4), min_size=1, max_size=4))
def test_paths_of_rules_are_split_where_they_were_joined(names: list[str]) -> None:
    """What an operator copies from a key finds the field again."""
    assert split_path(".".join(map(segment, names))) == tuple(names)


def test_identifiers_and_stamps() -> None:
    """Names of things, names of times, and names that only look like them."""
    for name in ("id", "ID", "device_id", "sensorId", "uuid", "serial_number", "addr"):
        assert is_identifier(name)
    for name in ("GRID", "humid", "idle", "grid_power", "void", "Id2"):
        assert not is_identifier(name)
    for name in ("minute_ts", "updated_at", "lastUpdated", "boot_time", "since", "startTime"):
        assert is_stamp(name)
    for name in ("watts", "heat", "lifetime", "temperature", "Float", "state"):
        assert not is_stamp(name)


def test_topics() -> None:
    """Length counts in bytes."""
    assert is_topic("a/b c/é")
    assert is_topic("é" * 512)
    assert not is_topic("é" * 512 + "a")


def test_names_of_elements() -> None:
    """Elements go by a field that all have; a running number is a name only where there is no time."""
    assert element_names([{"name": "a", "id": 1}, {"name": "b", "id": 2}], timed=False) == ["a", "b"]
    assert element_names([{"name": "a", "id": 1}, {"name": "a", "id": 2}], timed=False) == ["1", "2"]
    assert element_names([{"name": "a"}, {"name": "a"}], timed=True) == ["a", "a"]
    assert element_names([{"id": 1}, {"id": 2}], timed=True) is None
    assert element_names([{"addr": 1}, {"addr": 2}], timed=True) == ["1", "2"]
    assert element_names([{"name": "a"}, {"x": 1}], timed=False) is None
    assert element_names([{"name": 1.5}, {"name": 2.5}], timed=False) is None
    assert element_names([{"id": True}, {"id": 10**400}], timed=False) is None
