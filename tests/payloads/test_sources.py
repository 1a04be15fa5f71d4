"""The bounded memory of topics."""

from __future__ import annotations

from datetime import UTC

from streamer.payloads.sources import Sources


def test_what_is_in_use_outlives_a_flood() -> None:
    """A topic that publishes on stays known while thousands of others come and go."""
    sources = Sources(include=None, exclude=None, own_prefix="", rules=(), zone=UTC, cache_bytes=50_000)
    known = sources.get("known")
    for i in range(5_000):
        sources.get(f"flood/{i}")
        if i % 10 == 0:
            assert sources.get("known") is known
    assert sources.cached_bytes <= 50_000


def test_a_topic_that_cannot_be_a_key_is_not_kept() -> None:
    """It may be 64 KiB long."""
    sources = Sources(include=None, exclude=None, own_prefix="", rules=(), zone=UTC, cache_bytes=50_000)
    assert not sources.get("a" * 60_000).is_valid
    assert sources.cached_bytes == 0


def test_names_that_change_with_every_message_are_forgotten() -> None:
    """One topic cannot fill the cache."""
    sources = Sources(include=None, exclude=None, own_prefix="", rules=(), zone=UTC, cache_bytes=1 << 20)
    for i in range(5_000):
        source = sources.get("t")
        assert sources.learn(source, source.root, f"{i:064}") == f"t#{i:064}"
    assert source.cached_bytes < 70_000
    assert len(source.root.keys) < 300
