"""Telegraf's JSON."""

from __future__ import annotations

import json

from streamer.payloads import Decoder, Rejection
from tests.payloads.reading import read, refusal, values

DECODER = Decoder()


def metric(**fields: object) -> dict[str, object]:
    return {"fields": fields, "name": "cpu", "tags": {"host": "a.b", "n": 1}, "timestamp": 1458229140}


def test_a_batch() -> None:
    """Metrics keep their own tags and times; texts are left out and words are not."""
    other = {"fields": {"used": 5}, "name": "mem", "timestamp": 1458229150000}
    batch = {"metrics": [metric(idle=98.1, state="on", text="x"), other]}
    assert read(DECODER, "t", json.dumps(batch)) == [
        ("t#cpu,host=a\\.b.idle", 98.1, 1458229140.0),
        ("t#cpu,host=a\\.b.state", 1.0, 1458229140.0),
        ("t#mem.used", 5.0, 1458229150.0),
    ]


def test_the_same_series_as_the_line_protocol() -> None:
    """Whichever way Telegraf writes, the keys are the same."""
    line = "cpu,host=a,cpu=0 idle=1 1458229140"
    written = '{"fields":{"idle":1},"name":"cpu","tags":{"host":"a","cpu":"0"},"timestamp":1458229140}'
    decoder = Decoder()
    for _ in range(2):
        assert read(decoder, "t", line) == read(decoder, "t", written)


def test_what_only_looks_like_it() -> None:
    """Other objects with such names are plain JSON."""
    assert values(DECODER, "t", '{"fields":{"a":1},"name":"x"}') == {"t#fields.a": 1.0}
    assert values(DECODER, "t", '{"metrics":[{"a":1}]}') == {"t#metrics.0.a": 1.0}
    assert values(DECODER, "t", '{"metrics":{"a":1}}') == {"t#metrics.a": 1.0}


def test_limits_hold_for_each_metric() -> None:
    """A batch may hold more fields than a metric."""
    decoder = Decoder(max_fields=2)
    batch = [{"fields": {"a": 1, "b": 2}, "name": f"m{i}", "tags": {}} for i in range(5)]
    assert len(values(decoder, "t", json.dumps({"metrics": batch}))) == 10
    assert refusal(decoder, "t", json.dumps(metric(a=1, b=2, c=3))) is Rejection.TOO_MANY_FIELDS
