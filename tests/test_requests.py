"""Requests: read from JSON, and handed over as files."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamer.requests import (
    KEPT_SECONDS,
    MOST_AT_ONCE,
    MOST_BYTES,
    NAMES,
    Command,
    MarkNormal,
    Pause,
    RequestFiles,
    Result,
    Resume,
    Rollback,
    id_in,
    name_of,
    read,
)
from tests.retraining.site import site
from tests.waiting import wait_until


@pytest.mark.parametrize("command", [Pause(key="a#b"), Resume(key="a#*", id="7"), MarkNormal(key="ä/+", id="x")])
def test_a_command_is_what_its_json_says(command: Command) -> None:
    """Any of them, there and back; its word is one that the refusal of another names."""
    assert read(msgspec.json.encode(command)) == command
    assert name_of(command) in NAMES


@given(st.binary(max_size=200))
@settings(max_examples=200)
def test_garbage_is_refused_with_a_sentence(payload: bytes) -> None:
    """Nothing that a command is not makes us fail, and its id is at most a short text."""
    with pytest.raises(ValueError, match="expected JSON such as"):
        read(payload)
    assert len(id_in(payload)) <= 64


@pytest.mark.parametrize(
    "payload",
    [
        '{"command": "pause"}',
        '{"command": "drop", "key": "a"}',
        '{"command": "pause", "key": 3}',
        '{"command": "pause", "key": "a", "until": 5}',
        '[{"command": "pause", "key": "a"}]',
        '{"key": "a"}',
        "[" * 10_000,
        "\\ud800",
    ],
)
def test_what_is_nearly_a_command_is_none(payload: str) -> None:
    """A word that is not known is not passed over: it might change what is meant."""
    with pytest.raises(ValueError, match="expected JSON such as"):
        read(payload.encode())


def test_a_request_is_taken_once_and_answered_once(tmp_path: Path) -> None:
    """The oldest first, in pieces that bound what one look costs."""
    daemon, asking = RequestFiles(tmp_path), RequestFiles(tmp_path)
    with pytest.raises(FileNotFoundError):
        asking.ask("1", Pause(key="a"))
    daemon.open()
    count = MOST_AT_ONCE + 3
    for n in range(count):
        asking.ask(f"{n:03}", Pause(key=str(n)))
    assert asking.result("000") is None
    taken = daemon.take(0.0)
    assert len(taken) == MOST_AT_ONCE
    taken += daemon.take(0.0)
    assert [read(each.payload) for each in taken] == [Pause(key=str(n)) for n in range(count)]
    daemon.answer("000", Result(True, "done"))
    assert asking.result("000") == Result(True, "done")
    assert asking.result("000") is None
    assert os.listdir(daemon.path) == []


def test_whoever_has_waited_for_long_enough_takes_the_request_back(tmp_path: Path) -> None:
    """And knows whether it was taken before; an answer that nobody fetches goes in time."""
    files = RequestFiles(tmp_path)
    files.open()
    files.ask("a", Pause(key="a"))
    assert files.withdraw("a")
    assert files.take(0.0) == []
    assert not files.withdraw("a")
    files.answer("a", Result(True, "done"))
    written = (files.path / "a.result.json").stat().st_mtime
    assert files.take(written + KEPT_SECONDS - 1) == []
    assert len(os.listdir(files.path)) == 1
    files.take(written + KEPT_SECONDS + 1)
    assert os.listdir(files.path) == []


def test_what_lies_there_at_a_start_is_refused(tmp_path: Path) -> None:
    """Nobody expects it to be obeyed now; old answers and halves go."""
    files = RequestFiles(tmp_path)
    files.open()
    files.ask("a", Pause(key="a", id="mine"))
    files.answer("b", Result(True, "done"))
    (files.path / ".c.json.part").write_bytes(b"half")
    RequestFiles(tmp_path).open()
    assert files.take(0.0) == []
    result = files.result("a")
    assert result is not None
    assert (result.done, result.id) == (False, "mine")
    assert os.listdir(files.path) == []


def test_what_is_no_request_file_does_no_harm(tmp_path: Path) -> None:
    """A link is not followed, a pipe is not waited for, a huge file is not read, a folder and odd names stay."""
    files = RequestFiles(tmp_path)
    files.open()
    secret = tmp_path / "secret"
    secret.write_bytes(msgspec.json.encode(Pause(key="secret")))
    (files.path / "link.json").symlink_to(secret)
    os.mkfifo(files.path / "pipe.json")
    (files.path / "huge.json").write_bytes(b" " * 10 * MOST_BYTES)
    (files.path / "folder.json").mkdir()
    (files.path / "o dd.json").write_bytes(b"{}")
    taken = {each.id: each.payload for each in files.take(0.0)}
    assert {name: len(payload) for name, payload in taken.items()} == {"link": 0, "pipe": 0, "huge": MOST_BYTES + 1}
    assert secret.exists()


def test_an_answer_that_is_fetched_meanwhile_does_not_keep_the_requests_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = RequestFiles(tmp_path)
    files.open()
    files.ask("a", Pause(key="a"))
    monkeypatch.setattr(os, "listdir", lambda _: ["a.json", "gone.result.json"])
    assert [each.id for each in files.take(0.0)] == ["a"]


def test_an_answer_that_cannot_be_written_does_not_lose_the_other_requests(tmp_path: Path) -> None:
    with site(tmp_path) as made:
        made.app._open_requests()
        asking = RequestFiles(tmp_path)
        for request in ("1", "2"):
            asking.ask(request, Rollback())
        (asking.path / "1.result.json").mkdir()
        wait_until(lambda: not made.app.serve_requests(), 10.0, "the answers")
        result = asking.result("2")
    assert result is not None
    assert "no other weights" in result.detail
