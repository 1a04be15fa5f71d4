"""What series go by: one name each, and back from each way in which one is shown."""

from __future__ import annotations

import urllib.parse
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.names import meant, name_of
from streamer.orders import Deed, understood
from streamer.requests import Pause
from streamer.topics import output_topic
from tests.streams import new_shard

SHOWN: dict[str, Callable[[str], str]] = {
    "key": lambda key: key,
    "list": name_of,
    "topic": lambda key: output_topic("gate", "alarm", key).removeprefix("streamer/gate/alarm/"),
    "path": lambda key: urllib.parse.quote(name_of(key), safe=""),
}


def test_no_two_keys_have_one_name() -> None:
    """Not those that are cut, not those that cannot be said, not one that is made to look like another's name."""
    long = ["x" * 600, "x" * 601, "x" * 600 + "y", "\ud800", "\udfff", "?"]
    keys = [*long, *(name_of(key) for key in long if name_of(key) != key)]
    assert len({name_of(key) for key in keys}) == len(keys)


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40) | st.text("a%23#+/~", min_size=500))
def test_every_key_is_found_by_what_is_shown_of_it(key: str) -> None:
    """On the page, in a topic, in a path of the page; beside others."""
    others = {"plant/a#t", "plant/a", f"{key}x"}
    keys = {*others, key}
    for show in SHOWN.values():
        assert meant(show(key), keys.__contains__, lambda: keys) == key
    assert meant("nobody", keys.__contains__, lambda: keys) == "nobody"


def test_a_key_that_looks_like_another_ones_topic_is_itself() -> None:
    """Whoever has a `%` in a topic gets what he says."""
    keys = {"a#b", "a%23b"}
    assert meant("a%23b", keys.__contains__, lambda: keys) == "a%23b"


@pytest.mark.parametrize("how", SHOWN)
@pytest.mark.parametrize(
    "key", ["plant/a#temp+1", "plant/a#50%", "plant/b", f"plant/{'long/' * 150}c#t", "plant/d#a#b", "plant/a#*"]
)
def test_commands_take_what_is_shown(how: str, key: str) -> None:
    """Series, and devices as their alarms name them."""
    keys = ["plant/a#temp+1", "plant/a#50%", "plant/b", f"plant/{'long/' * 150}c#t", "plant/d#a#b"]
    shard = new_shard(keys)
    deed = understood(Pause(key=SHOWN[how](key)), shard, 0.0)
    assert isinstance(deed, Deed)
    assert [keys[slot] for slot in deed.slots] == (keys[:2] if key.endswith("#*") else [key])


def test_a_device_with_a_long_name_goes_by_what_its_alarm_is_shown_as() -> None:
    """The page cuts it as it cuts a series."""
    shard = new_shard([f"plant/{'long/' * 150}c#{field}" for field in "tp"])
    deed = understood(Pause(key=name_of(f"plant/{'long/' * 150}c#*")), shard, 0.0)
    assert isinstance(deed, Deed)
    assert len(deed.slots) == 2
