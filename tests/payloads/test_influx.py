"""Influx line protocol."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.payloads import Columns, Decoder, Rejection, Rule
from streamer.payloads.influx import Line, parse
from streamer.payloads.names import head
from tests.payloads.reading import columns, read, refusal, values

DECODER = Decoder()


def test_lines_escapes_and_types() -> None:
    """The cases of the reference: several lines, comments, escapes, and each type of field."""
    payload = (
        "# a comment, with = signs\n"
        "\n"
        "my\\ cpu,host\\ name=a\\,b,core=0 usage\\=idle=98.1,count=12i,free=7u,"
        'up=t,down=FALSE,mode="on" 1465839830100400200\r\n'
        'log,level=x text="a, b=c \\" \\\\\n second line",n=-1.5e-3 1465839830\n'
        "plain value=.5"
    )
    assert read(DECODER, "m", payload) == [
        ("m#my cpu,core=0,host name=a\\,b.usage=idle", 98.1, 1465839830.1004002),
        ("m#my cpu,core=0,host name=a\\,b.count", 12.0, 1465839830.1004002),
        ("m#my cpu,core=0,host name=a\\,b.free", 7.0, 1465839830.1004002),
        ("m#my cpu,core=0,host name=a\\,b.up", 1.0, 1465839830.1004002),
        ("m#my cpu,core=0,host name=a\\,b.down", 0.0, 1465839830.1004002),
        ("m#my cpu,core=0,host name=a\\,b.mode", 1.0, 1465839830.1004002),
        ("m#log,level=x.n", -0.0015, 1465839830.0),
        ("m#plain.value", 0.5, None),
    ]


def test_the_order_of_tags_makes_no_other_series() -> None:
    """Tags are sorted."""
    assert values(DECODER, "m", "a,x=1,y=2 v=1") == values(DECODER, "m", "a,y=2,x=1 v=1")


def test_a_broken_line_costs_only_itself() -> None:
    """The lines around it are read, it is counted."""
    out = columns(DECODER, "m", "a v=1 1700000000\nb v=\nc,x v=1\nd v=1 noon\ne v=1x\nf v=NaN,w=2\n g v=3")
    assert isinstance(out, Columns)
    assert list(zip(out.key, out.value, strict=True)) == [("m#a.v", 1.0), ("m#f.w", 2.0), ("m#g.v", 3.0)]
    assert out.rejected == {Rejection.BAD_LINE: 4, Rejection.NOT_FINITE: 1}


def test_text_with_an_equals_sign_is_not_called_broken() -> None:
    """Without a rule it simply holds no number; with one it is a bad line."""
    assert refusal(DECODER, "m", "state = fine") is Rejection.NO_NUMBER
    strict = Decoder(rules=(Rule("m", format="influx"),))
    assert refusal(strict, "m", "state = fine") is Rejection.BAD_LINE
    assert refusal(strict, "m", 'a text="x"') is Rejection.NO_NUMBER


def test_a_series_has_one_reading_at_a_time() -> None:
    """Of two lines for one series and time the last one holds, as in the database."""
    assert read(DECODER, "m", "a v=1,w=5 1700000000\na v=2 1700000000\na v=3 1700000001") == [
        ("m#a.w", 5.0, 1700000000.0),
        ("m#a.v", 2.0, 1700000000.0),
        ("m#a.v", 3.0, 1700000001.0),
    ]


def test_the_limit_of_fields_is_for_a_line() -> None:
    """A batch of many lines is not a message of too many fields, one long line is."""
    decoder = Decoder(max_fields=3)
    assert len(values(decoder, "m", "\n".join(f"a,n={i} x=1,y=2,z=3" for i in range(50)))) == 150
    assert refusal(decoder, "m", "a x=1,y=2,z=3,w=4") is Rejection.TOO_MANY_FIELDS


NAMES = st.text(alphabet="ab ,=é", min_size=1, max_size=4).filter(lambda text: not text.startswith("#"))
FIELDS = st.dictionaries(
    NAMES, st.floats(allow_nan=False, allow_infinity=False) | st.booleans() | st.text(), min_size=1
)


def escape(text: str, characters: str) -> str:
    return re.sub(f"([{characters}])", r"\\\1", text)


@given(st.lists(st.tuples(NAMES, st.dictionaries(NAMES, NAMES, max_size=3), FIELDS, st.none() | st.integers(0, 2**63))))
def test_what_is_written_by_the_book_is_read(
    points: list[tuple[str, dict[str, str], dict[str, float | bool | str], int | None]],
) -> None:
    """Any names, tags and values, escaped as the reference says, come back."""
    lines, expected = [], []
    for measurement, tags, fields, stamp in points:
        tagged = "".join(f",{escape(name, ', =')}={escape(tag, ', =')}" for name, tag in tags.items())
        written = ",".join(
            f"{escape(name, ', =')}="
            + (f'"{escape(value, chr(92) * 2 + chr(34))}"' if isinstance(value, str) else repr(value))
            for name, value in fields.items()
        )
        lines.append(f"{escape(measurement, ', ')}{tagged} {written}" + ("" if stamp is None else f" {stamp}"))
        expected.append((head(measurement, tags), fields, stamp))
    found = list(parse("\n".join(lines)))
    assert all(isinstance(line, Line) for line in found)
    assert [(line.head, line.fields, line.time) for line in found if line is not None] == expected


@pytest.mark.parametrize(
    "piece", ["a", "\\", "a,b=", "a,b=c", "=", "a b=", 'a b="', "a b=1,", "a b=1 ", "a b=1\n", " ", '"']
)
def test_hostile_lines_take_linear_time(piece: str) -> None:
    """A payload of the largest size that repeats what the expressions look for."""
    began = time.perf_counter()
    for text in (piece * (262_000 // len(piece)), "a b=" + piece * (262_000 // len(piece))):
        columns(DECODER, "m", text)
    assert time.perf_counter() - began < 10.0
