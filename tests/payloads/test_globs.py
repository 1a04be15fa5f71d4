"""Patterns of topics and field paths."""

from __future__ import annotations

import pytest

from streamer.payloads.globs import compile_globs, compile_pattern


@pytest.mark.parametrize(
    ("glob", "separator", "matches", "others"),
    [
        ("a/*", "/", ["a/b", "a/"], ["a", "a/b/c", "b/a/b"]),
        ("a/+", "/", ["a/b"], ["a", "a/b/c"]),
        ("a/#", "/", ["a", "a/b", "a/b/c"], ["ab", "b/a"]),
        ("#", "/", ["a", "a/b"], []),
        ("a/**", "/", ["a/b", "a/b/c"], ["a", "b"]),
        ("**/x", "/", ["x", "a/x", "a/b/x"], ["ax", "a/xy"]),
        ("a/**/x", "/", ["a/x", "a/b/x", "a/b/c/x"], ["ax", "a/b"]),
        ("a?c", "/", ["abc"], ["a/c", "ac"]),
        ("t-*/v", "/", ["t-1/v"], ["t-1/2/v"]),
        ("a.b[c]", "/", ["a.b[c]"], ["axb[c]", "a.bc"]),
        ("{a}", "/", ["{a}"], ["a"]),
        ("ENERGY.*", ".", ["ENERGY.Power"], ["ENERGY", "ENERGY.a.b"]),
        ("**.power", ".", ["power", "a.power", "a.b.power"], ["xpower"]),
        ("a+#", ".", ["a+#"], ["ab", "abc"]),
        ("temperature:*", ".", ["temperature:0"], ["temperature"]),
    ],
)
def test_globs(glob: str, separator: str, matches: list[str], others: list[str]) -> None:
    """Stars stay in their level, double stars do not, MQTT's wildcards are MQTT's."""
    pattern = compile_globs(("never", glob), separator)
    assert pattern is not None
    assert [text for text in matches + others if pattern.fullmatch(text)] == matches


def test_no_globs() -> None:
    """None is not the same as one that matches nothing."""
    assert compile_globs((), "/") is None


def test_named_levels() -> None:
    """A level, a part of a level, and all that are left."""
    match = compile_pattern("plant/{line}/press-{number}/{metric...}").fullmatch("plant/1/press-7/vibration/x")
    assert match is not None
    assert match.groupdict() == {"line": "1", "number": "7", "metric": "vibration/x"}
    assert compile_pattern("plant/{line}").fullmatch("plant/") is None
    assert compile_pattern("a/#").fullmatch("a") is not None
