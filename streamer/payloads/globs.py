"""Patterns of topics and field paths -> regular expressions.

`*` is any text within one level, `**` any number of levels, `?` one character; MQTT's own `+` (one level) and `#` at
the end (this level and all below) mean what they mean there. `{name}` is a level with a name, `{name...}` all that are
left.
"""

from __future__ import annotations

import re

from streamer.errors import SettingsError

_PIECES = {
    "/": re.compile(r"\{([^{}]*)\}|/?#\Z|\*\*/|\*\*|.", re.DOTALL),
    ".": re.compile(r"()(?:\*\*\.|\*\*|.)", re.DOTALL),
}
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(?:\.\.\.)?\Z")


def compile_globs(patterns: tuple[str, ...], separator: str) -> re.Pattern[str] | None:
    """One expression that matches what any of the patterns matches, None where there are none."""
    if not patterns:
        return None
    return re.compile("|".join(f"(?:{_translate(pattern, separator, named=False)})" for pattern in patterns), re.DOTALL)


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """The expression of a rule's pattern; its groups are the named levels. Raises SettingsError."""
    expression = _translate(pattern, "/", named=True)
    try:
        return re.compile(expression, re.DOTALL)
    except re.error as error:
        raise SettingsError(
            f"input.rules: the pattern {pattern!r} names a level twice; name each one differently"
        ) from error


def _translate(pattern: str, separator: str, *, named: bool) -> str:
    level = f"[^{re.escape(separator)}]"
    parts: list[str] = []
    for match in _PIECES[separator].finditer(pattern):
        piece = match.group()
        if named and piece.startswith("{") and len(piece) > 1:
            parts.append(_named_level(pattern, match.group(1), level, at_end=match.end() == len(pattern)))
        elif named and piece in "{}":
            raise SettingsError(f"input.rules: the pattern {pattern!r} has a brace without its partner")
        elif piece == "/#":
            parts.append("(?:/.*)?")
        elif piece == "**" or (piece == "#" and match.end() == len(pattern) and separator == "/"):
            parts.append(".*")
        elif piece.startswith("**"):
            parts.append(f"(?:.*{re.escape(separator)})?")
        elif piece == "*" or (piece == "+" and separator == "/"):
            parts.append(level + "*")
        elif piece == "?":
            parts.append(level)
        else:
            parts.append(re.escape(piece))
    return "".join(parts)


def _named_level(pattern: str, name: str, level: str, *, at_end: bool) -> str:
    if _NAME.match(name) is None:
        raise SettingsError(
            f"input.rules: the pattern {pattern!r} has a level called {name!r}; "
            "a name consists of letters, digits and _ and may end in ... for all levels that are left"
        )
    if not name.endswith("..."):
        return f"(?P<{name}>{level}+)"
    if not at_end:
        raise SettingsError(
            f"input.rules: in the pattern {pattern!r} {{{name}}} takes all levels and so must be the last"
        )
    return f"(?P<{name[:-3]}>.+)"
