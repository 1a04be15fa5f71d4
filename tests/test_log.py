"""The log: one line a record whatever it holds, in two styles, and sparing where it has to be."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.log import (
    LONGEST_VALUE,
    FieldValue,
    JsonFormatter,
    SparingLog,
    TextFormatter,
    configure,
    event,
    set_level,
)

VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters())


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """The root logger, which the test may configure."""
    logger = logging.getLogger()
    handlers, level = logger.handlers[:], logger.level
    yield logger
    logger.handlers[:] = handlers
    logger.setLevel(level)


def record(message: str, fields: dict[str, FieldValue]) -> logging.LogRecord:
    made = logging.LogRecord("streamer.test", logging.INFO, "", 0, message, None, None)
    made.created = 1_772_359_200.125
    made.fields = fields
    return made


def test_a_line_of_text() -> None:
    """Time, level, logger, message, and the values as words that can be searched for."""
    fields: dict[str, FieldValue] = {
        "host": "a b",
        "port": 1883,
        "tls": False,
        "why": None,
        "at": 1772359200.25,
        "to": "",
    }
    assert TextFormatter().format(record("connected", fields)) == (
        "2026-03-01T10:00:00.125Z INFO    streamer.test connected "
        'host="a b" port=1883 tls=false why=none at=1772359200.25 to=""'
    )


def test_a_line_of_json() -> None:
    """The same as an object; a field whose name is taken gets another one."""
    line = JsonFormatter().format(record("connected", {"host": "a", "level": "x", "score": float("nan")}))
    assert json.loads(line) == {
        "time": "2026-03-01T10:00:00.125Z",
        "level": "info",
        "logger": "streamer.test",
        "message": "connected",
        "host": "a",
        "level_": "x",
        "score": "nan",
    }


@given(st.text(st.characters()), st.dictionaries(st.from_regex("[a-z_]+", fullmatch=True), VALUES))
def test_no_value_breaks_the_line(message: str, fields: dict[str, FieldValue]) -> None:
    """Line breaks, control characters, direction marks and lone surrogates of hostile topics never come through."""
    assert TextFormatter().format(record(message, fields)).isprintable()
    line = JsonFormatter().format(record(message, fields))
    assert line.isascii()
    assert line.isprintable()
    assert json.loads(line)["message"] == message


@given(st.text())
def test_a_quoted_value_cannot_forge_a_field(text: str) -> None:
    """What stands after `topic=` is one word, or ends at the quotes it began with."""
    line = TextFormatter().format(record("m", {"topic": text, "last": 1}))
    value = line.partition(" topic=")[2].removesuffix(" last=1")
    if value.startswith('"'):
        assert value.endswith('"')
        assert '"' not in value[1:-1].replace("\\\\", "").replace('\\"', "")
    else:
        assert not set(value) & set(' ="')


def test_a_long_value_is_cut() -> None:
    """A topic may have 65,535 characters; the log shows the first of them."""
    for formatter in (TextFormatter(), JsonFormatter()):
        assert len(formatter.format(record("m", {"topic": "x" * 65_535}))) < LONGEST_VALUE + 200


def test_a_traceback_is_indented() -> None:
    """A bug's traceback is there in full, and no line of it looks like a record."""
    stream = io.StringIO()
    log = logging.Logger("streamer.test")
    handler = logging.StreamHandler(stream)
    handler.setFormatter(TextFormatter())
    log.addHandler(handler)
    try:
        raise ValueError("a\n2026-03-01T10:00:00.125Z INFO forged")
    except ValueError:
        log.exception("failed")
    first, *rest = stream.getvalue().splitlines()
    assert first.endswith("ERROR   streamer.test failed")
    assert all(line.startswith("    ") for line in rest)
    assert "ValueError: a" in rest[-2]


@pytest.mark.parametrize("style", ["text", "json"])
def test_everything_goes_to_one_stream(root: logging.Logger, style: str) -> None:
    """Configuring twice does not write twice; the level can be changed while running."""
    stream = io.StringIO()
    configure("warning", style, io.StringIO())
    configure("warning", style, stream)
    log = logging.getLogger("streamer.test")
    event(log, logging.INFO, "unheard")
    set_level("info")
    event(log, logging.INFO, "heard", level="debug")
    (line,) = stream.getvalue().splitlines()
    assert "heard" in line


def test_a_sparing_log_counts_what_it_leaves_out(root: logging.Logger) -> None:
    """The first event is logged, then one per interval with the number in between; keys do not hold each other back."""
    stream = io.StringIO()
    configure("info", "text", stream)
    now = [100.0]
    sparing = SparingLog(logging.getLogger("streamer.test"), 10.0, lambda: now[0])
    logged = []
    for second in range(21):
        now[0] = 100.0 + second
        logged.append(sparing.event(logging.WARNING, "dropped", per="a", reason="full"))
    assert [second for second, was in enumerate(logged) if was] == [0, 10, 20]
    assert sparing.event(logging.WARNING, "dropped", per="b", reason="full")
    assert sparing.event(logging.WARNING, "other", per="a")
    endings = [line.partition(" dropped ")[2] for line in stream.getvalue().splitlines()]
    assert endings == ["reason=full", "reason=full left_out=9", "reason=full left_out=9", "reason=full", ""]


def test_a_sparing_log_is_bounded() -> None:
    """A flood of keys pushes out the oldest ones."""
    sparing = SparingLog(logging.Logger("streamer.test"), 10.0, lambda: 0.0, max_keys=2)
    assert [sparing.event(logging.DEBUG, "m", per=per) for per in "abca"] == [True, True, True, True]
    assert not sparing.event(logging.DEBUG, "m", per="c")
