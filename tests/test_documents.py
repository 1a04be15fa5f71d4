"""The schemas of what is published: they are schemas, say what each field means, and what is wrong is not by them."""

from __future__ import annotations

import json
import re
import typing
from dataclasses import fields
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from models import calibration
from streamer import cli, documents, outbox
from streamer.alarms import MOST_CHANNELS, Change
from streamer.documents import DOCUMENTS, AlarmEvent, Contribution
from streamer.readings import Alarm, Channel
from tests import schemas
from tests.test_outbox import ALARM

TOPIC = "streamer/gate/alarm/x"


def event(alarm: Alarm = ALARM, what: str = "opened") -> dict[str, object]:
    found: dict[str, object] = json.loads(outbox.alarm_event("gate", Change(what, alarm)).payload)
    return found


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_command_prints_a_schema(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A sound one, draft 2020-12, without the network: every reference is within it."""
    assert cli.main(["schema", name]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == documents.schema(name)
    Draft202012Validator.check_schema(printed)
    text = json.dumps(printed)
    assert all(f'"#/$defs/{at}"' in text for at in printed["$defs"])
    assert set(cli.SCHEMAS) == DOCUMENTS.keys()


@pytest.mark.parametrize("name", ["alarm", "series", "device"])
def test_every_field_says_what_it_is(name: str) -> None:
    """In words, but where its name is its own kind's."""
    parts = documents.schema(name)["$defs"]
    assert isinstance(parts, dict)
    for part in parts.values():
        assert part["description"]
        silent = {field for field, about in part["properties"].items() if "description" not in about}
        assert silent <= {"id", "kind", "opened"}, silent


def test_an_alarm_has_all_that_the_daemon_knows_of_it() -> None:
    """A field that an alarm gets is published, or this fails."""
    left_out = {"members"}
    added = {"event", "topic", "field", "opened", "closed"}
    assert {field.name for field in fields(Alarm)} - left_out | added == set(AlarmEvent.__struct_fields__)
    assert tuple(field.name for field in fields(Channel)) == Contribution.__struct_fields__


def test_the_words_of_the_schema_are_those_of_the_code() -> None:
    """Views and the number of channels."""
    view = typing.get_args(documents.View)[1]
    assert tuple(view.extra_json_schema["enum"]) == calibration.NAMES
    alarm = schemas.validator("alarm").schema["$defs"]["AlarmEvent"]
    assert alarm["properties"]["channels"]["maxItems"] == MOST_CHANNELS


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("event", "left"), ("id", "x"), ("kind", "odd"), ("value", "90"), ("reason", "why not"), ("opened_at", None),
        ("opened", 5), ("channels", [{}]), ("direction", "up"), ("readings", -1), ("detail", []),
    ],
)  # fmt: skip
def test_what_is_wrong_is_not_by_the_schema(field: str, wrong: object) -> None:
    """One field is wrong, or absent, or new."""
    assert schemas.complaints(TOPIC, json.dumps(event()).encode()) == []
    assert schemas.complaints(TOPIC, json.dumps(event() | {field: wrong}).encode())
    lacking = event()
    del lacking[field]
    assert schemas.complaints(TOPIC, json.dumps(lacking).encode())
    assert schemas.complaints(TOPIC, json.dumps(event() | {"new": 1}).encode())


PAGE = (Path(__file__).parent.parent / "docs" / "alarms.md").read_text()


@pytest.mark.parametrize("name", ["alarm", "series"])
def test_the_page_names_every_field(name: str) -> None:
    """What is published is documented."""
    parts = documents.schema(name)["$defs"]
    assert isinstance(parts, dict)
    fields_of = {field for part in parts.values() for field in part["properties"]}
    assert {field for field in fields_of if f"`{field}`" not in PAGE} == set()


def test_the_examples_of_the_page_are_by_the_schema() -> None:
    """And none is left out: they are what people copy."""
    examples = re.findall(r"^```json\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    names = ["alarm" if '"event"' in example else "series" for example in examples]
    assert names == ["alarm", "alarm", "alarm", "series"]
    assert [schemas.of_document(*each) for each in zip(names, map(str.encode, examples), strict=True)] == [[]] * 4
