"""SenML, RFC 8428: `[{"bn":"urn:dev:ow:1:","bt":1.276e9,"n":"voltage","v":120.1},{"n":"current","t":-5,"v":1.2}]`.

Base name and name make the path, base value and value the value (section 4.1). A time of less than 2^28 seconds is
relative to now (section 4.5.3), which is the arrival. A sum `s` is a series of its own.
"""

from __future__ import annotations

from streamer.payloads.times import from_number
from streamer.payloads.tree import Reading, Tree

_LABELS = frozenset(("bn", "bt", "bu", "bv", "bs", "bver", "n", "u", "v", "vs", "vb", "vd", "s", "t", "ut"))
_ABSOLUTE_SECONDS = 1 << 28


def is_pack(items: list[object]) -> bool:
    """Whether an array is a SenML pack."""
    named = False
    for item in items:
        if not isinstance(item, dict) or not item.keys() <= _LABELS:
            return False
        named = named or "bn" in item or "n" in item
    return named


def read(tree: Tree, reading: Reading, items: list[object]) -> None:
    """Append the readings of a pack. Raises Refused."""
    reading.fixed_time = True
    node = reading.source.root
    base_name = ""
    base_time = base_value = base_sum = 0.0
    for item in items:
        if not isinstance(item, dict):
            continue
        base_name = _text(item.get("bn"), base_name)
        base_time = _number(item.get("bt"), base_time)
        base_value = _number(item.get("bv"), base_value)
        base_sum = _number(item.get("bs"), base_sum)
        name = base_name + _text(item.get("n"), "")
        seconds = base_time + _number(item.get("t"), 0.0)
        time = reading.arrival + seconds if abs(seconds) < _ABSOLUTE_SECONDS else from_number(seconds)
        when = (None if seconds == 0.0 else time), "bt + t"
        value = item.get("v", item.get("vb", item.get("vs")))
        if isinstance(value, float | int) and not isinstance(value, bool) and base_value:
            value = _sum(value, base_value)
        if not isinstance(value, dict | list):
            tree.read_object(reading, node, {name: value}, when)
        total = item.get("s")
        if isinstance(total, float | int):
            place = tree.sources.child(reading.source, node, name)
            tree.read_object(reading, place, {"s": _sum(total, base_sum)}, when)
    reading.keep_last()


def _text(value: object, otherwise: str) -> str:
    return value if isinstance(value, str) else otherwise


def _number(value: object, otherwise: float) -> float:
    if isinstance(value, float | int) and not isinstance(value, bool) and abs(value) < 1e300:
        return float(value)
    return otherwise


def _sum(value: float, base: float) -> float:
    return value + base if abs(value) < 1e300 else value  # an integer beyond float64 is rejected further on
