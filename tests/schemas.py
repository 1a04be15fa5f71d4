"""What the daemon publishes, held to the schemas that `streamer schema` prints."""

from __future__ import annotations

import json
from functools import cache

from jsonschema import Draft202012Validator

from streamer.documents import schema

DRAFT = Draft202012Validator


@cache
def validator(name: str) -> Draft202012Validator:
    found = schema(name)
    DRAFT.check_schema(found)
    return DRAFT(found, format_checker=DRAFT.FORMAT_CHECKER)


def complaints(topic: str, payload: bytes | bytearray) -> list[str]:
    """What is wrong with a message below `streamer/<instance>/`; nothing with one that takes a retained one back."""
    levels = topic.split("/")
    if levels[0] != "streamer" or len(levels) < 3 or not payload:
        return []
    name = "result" if levels[2:] == ["command", "result"] else levels[2]
    if name not in ("alarm", "series", "device", "result"):
        return []
    return of_document(name, payload)


def of_document(name: str, payload: bytes | bytearray) -> list[str]:
    """What is wrong with a document: that it is not by the schema, or has a field that the schema does not know."""
    document = json.loads(payload)
    known = validator(name)
    found = [f"{name}: {error.message} at {error.json_path}" for error in known.iter_errors(document)]
    (part,) = (part for at, part in known.schema["$defs"].items() if known.schema["$ref"] == f"#/$defs/{at}")
    if document.keys() != part["properties"].keys():
        found.append(f"{name}: {sorted(document.keys() ^ part['properties'].keys())} not in both")
    return found
