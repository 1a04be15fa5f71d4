"""Many messages at once: flat JSON objects of one shape, parsed by one call and read column by column.

`Decoder.decode` reads one message and is what this is held to (tests/payloads/test_runs.py). Whatever is not beyond
doubt is left to it: here every answer may be None.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from operator import itemgetter

from streamer.payloads.columns import Columns
from streamer.payloads.jsontext import parse_plain
from streamer.payloads.sources import Source
from streamer.payloads.times import TIME_RANK, from_number, is_in_seconds
from streamer.payloads.tree import ARRIVAL_TIME, NO_RANK

Document = dict[str, object]

_LEAVES = {float, int, str, bool, type(None)}
_NUMBERS = {float, int}


def parse_run(payloads: Sequence[bytes]) -> list[Document] | None:
    """The object of each payload, by one call; None unless each is one flat object and nothing else.

    Joined by commas, hostile payloads could close one another's objects, and so put words into a neighbour's mouth.
    They cannot: each has one opening brace, its first byte, and one closing brace; so n objects are those n payloads.
    """
    n, joined = len(payloads), b",".join(payloads)
    opens = min(payloads) >= b"{" and max(payloads) < b"|"  # `|` is the byte after `{`; three times as fast as a loop
    if not opens or joined.count(b"{") != n or joined.count(b"}") != n:
        return None
    try:
        documents = parse_plain(b"[" + joined + b"]")
    except (ValueError, RecursionError):
        return None
    return documents if len(documents) == n else None


def read_run(
    documents: Sequence[Document],
    sources: Sequence[Source],
    arrivals: Sequence[float],
    words: dict[str, float],
    out: Columns,
) -> range | None:
    """Append the readings of objects with the same names; the length of `out` after each. None: nothing was appended.

    A field is a column: numbers in all of them, or in none. The first one's order of fields holds for all.
    """
    if len(set(map(len, documents))) != 1:
        return None
    root, rank = sources[0].root, NO_RANK
    keys: list[list[str]] = []
    values: list[list[float]] = []
    times: list[float] | None = None
    for name in documents[0]:
        try:
            column = list(map(itemgetter(name), documents))
        except KeyError:
            return None
        kinds = set(map(type, column))
        if not kinds <= _LEAVES:
            return None
        if root.keys.get(name) == "":  # never a series, whatever it says
            continue
        if kinds == {str}:
            if name in TIME_RANK or not words.keys().isdisjoint(column):
                return None
            continue
        if not kinds <= _NUMBERS:
            return None
        try:
            numbers = column if kinds == {float} else list(map(float, column))
        except OverflowError:
            return None
        if name in root.stamps:
            moments = numbers if is_in_seconds(numbers) else list(map(from_number, numbers))
            if None in moments:
                return None
            found = TIME_RANK.get(name, NO_RANK)
            if found == rank and times is not None:  # two spellings of one name: the order in each object would tell
                return None
            if found < rank:
                rank, times = found, moments  # type: ignore[assignment]  # None is not among them
            continue
        try:
            keys.append([source.root.keys[name] for source in sources])
        except KeyError:  # a field that is new
            return None
        values.append(numbers)
    if not values:
        return None
    width, start = len(values), len(out.value)
    out.key += keys[0] if width == 1 else chain.from_iterable(zip(*keys, strict=True))
    out.value += values[0] if width == 1 else chain.from_iterable(zip(*values, strict=True))
    out.flags += [ARRIVAL_TIME if times is None else 0] * (width * len(documents))
    when = arrivals if times is None else times
    out.time += when if width == 1 else [moment for moment in when for _ in range(width)]
    return range(start + width, len(out.value) + 1, width)
