"""Topics of our own: valid at every broker, one to one with the keys, told apart from inputs."""

from __future__ import annotations

import hashlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt.client import topic_matches_sub

from streamer.topics import LONGEST_BYTES, MOST_LEVELS, is_matched, is_own_output, output_topic, status_topic


@pytest.mark.parametrize(
    ("key", "topic"),
    [
        ("home/bedroom/temperature", "streamer/site/alarm/home/bedroom/temperature"),
        ("zigbee2mqtt/kitchen#temperature", "streamer/site/alarm/zigbee2mqtt/kitchen%23temperature"),
        ("plant/1#*", "streamer/site/alarm/plant/1%23*"),
        ("a+b/100%", "streamer/site/alarm/a%2Bb/100%25"),
        ("a#x\0y\x1fz", "streamer/site/alarm/a%23x%00y%1Fz"),
        ("a#\ud800", "streamer/site/alarm/a%23%ED%A0%80"),
        ("a#\ufffe", "streamer/site/alarm/a%23%EF%BF%BE"),
        ("küche#wärme", "streamer/site/alarm/küche%23wärme"),
    ],
)
def test_forbidden_characters_are_percent_encoded(key: str, topic: str) -> None:
    """What MQTT forbids in a topic is encoded, everything else reads as before."""
    assert output_topic("site", "alarm", key) == topic


@given(st.text(st.characters(), max_size=300))
def test_every_key_gives_a_topic_that_brokers_take(key: str) -> None:
    """Whatever a field is called, the topic is valid UTF-8 without wildcards and control characters."""
    topic = output_topic("site", "series", key)
    topic.encode()
    assert not re.search("[#+\x00-\x1f\x7f-\x9f]", topic)


@given(st.text(), st.text())
def test_different_keys_have_different_topics(one: str, other: str) -> None:
    """No two series write to one topic."""
    assert (output_topic("site", "alarm", one) == output_topic("site", "alarm", other)) == (one == other)


@pytest.mark.parametrize("key", ["a" * LONGEST_BYTES, "#" * 22_000, "a/" * MOST_LEVELS + "b"])
def test_a_topic_that_is_too_long_or_too_deep_ends_in_the_digest_of_the_key(key: str) -> None:
    """The topic stays valid, and the key's SHA-256 finds it."""
    assert output_topic("site", "alarm", key) == "streamer/site/alarm/" + hashlib.sha256(key.encode()).hexdigest()


def test_the_longest_topic_is_kept() -> None:
    """The limit is that of the protocol, not less."""
    key = "a" * (LONGEST_BYTES - len("streamer/site/alarm/"))
    assert output_topic("site", "alarm", key).endswith(key)


def test_own_output_is_told_from_inputs_and_from_other_instances() -> None:
    """Only what this instance publishes is its own output."""
    assert is_own_output(status_topic("site"), "site")
    assert is_own_output(output_topic("site", "series", "a/b"), "site")
    assert not is_own_output("streamer/site-2/status", "site")
    assert not is_own_output("streamer/site", "site")
    assert not is_own_output("plant/streamer/site/status", "site")


@pytest.mark.parametrize(
    "topic", ["a", "a/b", "a/b/c", "a/", "/a", "", "$SYS", "$SYS/a", "b", "b/a", "a//b", "/", "//"]
)
def test_filters_match_as_at_a_broker(topic: str) -> None:
    """The same as an independent library says, whose own rule for `$` is the specification's too."""
    filters = [
        "#",
        "+",
        "a",
        "a/#",
        "a/+",
        "+/b",
        "+/+",
        "/#",
        "/+",
        "+/#",
        "a/b/#",
        "a/+/c",
        "$SYS/#",
        "$SYS/+",
        "b/#",
    ]
    for each in [*filters, "+/", "a//b", "+//b", "//", "+/+/+"]:
        assert is_matched(each, topic) == topic_matches_sub(each, topic), each
