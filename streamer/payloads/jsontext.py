"""Bytes -> JSON values, by msgspec, with the numbers that JSON has no word for counted and not fatal.

Microcontrollers print `nan` and Python prints `NaN`, `Infinity`; 1e999 overflows. One such field does not make its
neighbours unreadable: it comes back as an integer that no float64 can hold, so that one check serves them all.
"""

from __future__ import annotations

import math
import re

import msgspec

from streamer.payloads.columns import Rejection

UNREPRESENTABLE = 10**400

# A string, whole or cut short, is skipped; what else matches is a number without a finite value.
_ODD_NUMBERS = re.compile(
    rb'"(?:[^"\\]|\\.)*+"?|[-+]?\b(?:nan|inf(?:inity)?)\b|-?\b[0-9]{309,}+', re.IGNORECASE | re.DOTALL
)


def _finite(literal: str) -> float:
    value = float(literal)
    return value if math.isfinite(value) else UNREPRESENTABLE


parse_plain = msgspec.json.Decoder().decode
"""The value of a JSON text with nothing unusual in it; raises ValueError or RecursionError, and then `parse` may do."""

_tolerant = msgspec.json.Decoder(float_hook=_finite)


def parse(payload: bytes) -> object:
    """The value of a JSON text; the `Rejection` itself where there is none."""
    try:
        value: object = parse_plain(payload)
    except RecursionError:
        return Rejection.TOO_DEEP
    except ValueError:  # msgspec's errors and UnicodeDecodeError
        return _parse_tolerantly(payload)
    return value


def _parse_tolerantly(payload: bytes) -> object:
    try:
        payload.decode()
    except UnicodeDecodeError:
        return Rejection.BAD_UTF8
    repaired = _ODD_NUMBERS.sub(_repair, payload)
    try:
        value: object = _tolerant.decode(repaired)
    except RecursionError:
        return Rejection.TOO_DEEP
    except ValueError:
        return Rejection.BAD_JSON
    return value


def _repair(match: re.Match[bytes]) -> bytes:
    found = match.group()
    return found if found.startswith(b'"') else b"1e999"
