"""What there is to set, as a list: for the reference, for refusals, and for what has changed."""

from __future__ import annotations

import math
from typing import Literal, get_args, get_origin

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from streamer.places import Kind, Setting
from streamer.settings.declarations import Settings


def reference(model: type[BaseModel] = Settings, above: str = "") -> list[Setting]:
    """Every setting in the order of the file, those of the tables below it included; not the keys of a rule."""
    settings: list[Setting] = []
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            settings += reference(inner, f"{above}{name}.")
        else:
            settings.append(_setting(above + name, field))
    return settings


def tables() -> dict[str, str]:
    """Dotted name -> sentence of each table, in the order of the file."""
    found: dict[str, str] = {}

    def walk(model: type[BaseModel], above: str) -> None:
        for name, field in model.model_fields.items():
            inner = field.annotation
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                found[above + name] = (inner.__doc__ or "").strip()
                walk(inner, f"{above}{name}.")

    walk(Settings, "")
    return found


def _setting(name: str, field: FieldInfo) -> Setting:
    extra = field.json_schema_extra
    if not isinstance(extra, dict):
        raise TypeError(f"{name} is not declared with field()")
    kind, choices = _kind(field.annotation)
    unit, form = str(extra.get("unit", "")), str(extra.get("form", ""))
    lower, upper = extra.get("lower"), extra.get("upper")
    if choices:
        expected = "one of " + ", ".join(choices)
    elif kind in (Kind.INTEGER, Kind.NUMBER):
        expected = f"{'an integer' if kind is Kind.INTEGER else 'a number'} from {_number(lower)} to {_number(upper)}"
    else:
        expected = form or kind.value
    return Setting(
        name=name,
        kind=kind,
        unit=unit,
        expected=expected,
        default="none, it must be said" if field.is_required() else _toml(field.default),
        sentence=field.description or "",
        reload=extra.get("reload") is True,
        file=extra.get("path") == "file",
        path=bool(extra.get("path")),
    )


def _kind(annotation: object) -> tuple[Kind, tuple[str, ...]]:
    """The kind of a field, and what it may be where that is a choice."""
    if get_origin(annotation) is Literal:
        return Kind.TEXT, tuple(str(choice) for choice in get_args(annotation))
    if get_origin(annotation) is tuple:
        inner = get_args(annotation)[0]
        return (Kind.TABLES if isinstance(inner, type) and issubclass(inner, BaseModel) else Kind.LIST), ()
    kinds: dict[object, Kind] = {bool: Kind.SWITCH, int: Kind.INTEGER, float: Kind.NUMBER, SecretStr: Kind.HIDDEN}
    return kinds.get(annotation, Kind.TEXT), ()


def _number(bound: object) -> str:
    return str(int(bound)) if isinstance(bound, float) and bound == math.floor(bound) else str(bound)


def _toml(default: object) -> str:
    if isinstance(default, tuple):
        return "[" + ", ".join(_toml(item) for item in default) + "]"
    if isinstance(default, bool):
        return str(default).lower()
    return f'"{default}"' if isinstance(default, str | SecretStr) else str(default)
