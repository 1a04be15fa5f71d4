"""Messages as they are found in the wild, what a rule does with them, and where the limits are."""

from __future__ import annotations

import re
import tracemalloc
from pathlib import Path

import pytest

from streamer.errors import SettingsError
from streamer.intake import READING_REJECTIONS
from streamer.payloads import FORMATS, Columns, Decoder, Rejection, Rule
from streamer.payloads.times import TIME_RANK
from streamer.payloads.words import WORDS
from tests.payloads.reading import ARRIVAL, columns, read, refusal, values

TASMOTA = '{"Time":"2017-02-16T10:13:52","DS18B20":{"Id":"01131B1234","Temperature":20.6},"TempUnit":"C"}'
SHELLY = (
    '{"src":"shellyplusht-08b61f","dst":"x/events","method":"NotifyFullStatus","params":{"ts":1680962879.62,'
    '"temperature:0":{"id":0,"tC":19.8,"tF":67.7},"humidity:0":{"id":0,"rh":44.3},"cover:0":{"id":0,"state":"open"}}}'
)
THINGS = (
    '{"end_device_ids":{"device_id":"dev1"},"received_at":"2022-07-18T09:34:16Z","uplink_message":{"f_port":1,'
    '"f_cnt":42,"decoded_payload":{"temperature":21.3},"rx_metadata":[{"rssi":-50,"snr":9.5,"timestamp":2463457000}],'
    '"settings":{"timestamp":2463457000},"received_at":"2022-07-18T09:34:15.775023242Z"}}'
)
CHIRPSTACK = (
    '{"deduplicationId":"3ac7e3c4","time":"2022-07-18T09:34:15.775023242+00:00","deviceInfo":{"devEui":"0101"},'
    '"fCnt":10,"fPort":5,"object":{"temperature":21.3,"door":"open"},"rxInfo":[{"rssi":-48}],"txInfo":{"frequency":1}}'
)
INFLUX = "weather,location=us-midwest temperature=82,humidity=71i 1465839830100400200"
TELEGRAF = '{"fields":{"usage_idle":98.1},"name":"cpu","tags":{"host":"a"},"timestamp":1458229140}'
SENML = '[{"bn":"urn:dev:ow:1:","bt":1.276e9,"n":"voltage","u":"V","v":120.1},{"n":"current","t":-5,"v":1.2}]'
UPLINK = 1658136855.775023

WILD: list[tuple[str, str, list[tuple[str, float, float | None]]]] = [
    ("home/bedroom/temperature", "21.5", [("home/bedroom/temperature", 21.5, None)]),
    ("stat/lamp/POWER", "ON", [("stat/lamp/POWER", 1.0, None)]),
    ("window", "closed", [("window", 0.0, None)]),
    ("x", "true", [("x", 1.0, None)]),
    ("x", " -3.5e1\r\n\0", [("x", -35.0, None)]),
    ("x", "\ufeff21.5", [("x", 21.5, None)]),
    (
        "zigbee2mqtt/0x00157d00032b1234",
        '{"temperature":26.24,"humidity":45.37,"linkquality":110,"state":"ON","contact":false,"unit":"C","battery":null}',
        [
            ("zigbee2mqtt/0x00157d00032b1234#temperature", 26.24, None),
            ("zigbee2mqtt/0x00157d00032b1234#humidity", 45.37, None),
            ("zigbee2mqtt/0x00157d00032b1234#linkquality", 110.0, None),
            ("zigbee2mqtt/0x00157d00032b1234#state", 1.0, None),
            ("zigbee2mqtt/0x00157d00032b1234#contact", 0.0, None),
        ],
    ),
    ("z/x", '{"temperature":26.2,"last_seen":"2017-02-16T11:13:52+01:00"}', [("z/x#temperature", 26.2, 1487240032.0)]),
    ("z/x", '{"temperature":26.2,"last_seen":1487240032500}', [("z/x#temperature", 26.2, 1487240032.5)]),
    ("z/x/availability", '{"state":"online"}', [("z/x/availability#state", 1.0, None)]),
    ("tele/t/LWT", "Offline", [("tele/t/LWT", 0.0, None)]),
    ("tele/t/SENSOR", TASMOTA, [("tele/t/SENSOR#DS18B20.Temperature", 20.6, 1487240032.0)]),
    (
        "s/events/rpc",
        SHELLY,
        [
            ("s/events/rpc#params.temperature:0.tC", 19.8, 1680962879.62),
            ("s/events/rpc#params.temperature:0.tF", 67.7, 1680962879.62),
            ("s/events/rpc#params.humidity:0.rh", 44.3, 1680962879.62),
            ("s/events/rpc#params.cover:0.state", 1.0, 1680962879.62),
        ],
    ),
    ("homeassistant/sensor/x/state", "21.5", [("homeassistant/sensor/x/state", 21.5, None)]),
    ("homeassistant/sensor/x/battery_level", '"97"', [("homeassistant/sensor/x/battery_level", 97.0, None)]),
    ("homie/5/car/engine/temperature", "21.5", [("homie/5/car/engine/temperature", 21.5, None)]),
    (
        "m",
        INFLUX,
        [
            ("m#weather,location=us-midwest.temperature", 82.0, 1465839830.1004002),
            ("m#weather,location=us-midwest.humidity", 71.0, 1465839830.1004002),
        ],
    ),
    ("m", TELEGRAF, [("m#cpu,host=a.usage_idle", 98.1, 1458229140.0)]),
    (
        "m",
        SENML,
        [("m#urn:dev:ow:1:voltage", 120.1, 1.276e9), ("m#urn:dev:ow:1:current", 1.2, 1.276e9 - 5)],
    ),
    (
        "v3/app@ttn/devices/dev1/up",
        THINGS,
        [("v3/app@ttn/devices/dev1/up#uplink_message.decoded_payload.temperature", 21.3, UPLINK)],
    ),
    (
        "application/1/device/2/event/up",
        CHIRPSTACK,
        [
            ("application/1/device/2/event/up#object.temperature", 21.3, UPLINK),
            ("application/1/device/2/event/up#object.door", 1.0, UPLINK),
        ],
    ),
    (
        "log",
        '[{"time":1700000000,"value":1},{"time":1700000060,"value":2}]',
        [("log#value", 1.0, 1700000000.0), ("log#value", 2.0, 1700000060.0)],
    ),
]


@pytest.mark.parametrize(("topic", "payload", "wanted"), WILD)
def test_payloads_of_the_wild(topic: str, payload: str, wanted: list[tuple[str, float, float | None]]) -> None:
    """Each format gives its series, values and times, also when the topic is known already."""
    decoder = Decoder()
    assert read(decoder, topic, payload) == wanted
    assert read(decoder, topic, payload) == wanted


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "empty"),
        (b" \r\n\0", "empty"),
        (b"nan", "not_finite"),
        (b"-Infinity", "not_finite"),
        (b"1e999", "not_finite"),
        (b"9" * 400, "not_finite"),
        (b'{"a":1e999}', "not_finite"),
        (b'{"a":' + b"9" * 5000 + b"}", "not_finite"),
        (b"[NaN,nan,-inf]", "not_finite"),
        (b"\xff\xfe\x00", "bad_utf8"),
        (b'{"a":"\xff","b":1}', "bad_utf8"),
        (b'{"a":1', "bad_json"),
        (b"{'a':1}", "bad_json"),
        (b'{"\\ud800":1}', "bad_json"),
        (b"[" * 17 + b"1" + b"]" * 17, "too_deep"),
        (b"[" * 100_000, "too_deep"),
        (b'{"a":' * 50_000, "too_deep"),
        (b"[" + b",".join([b"1"] * 257) + b"]", "too_many_fields"),
        (b"{" + b",".join(b'"%d":1' % i for i in range(257)) + b"}", "too_many_fields"),
        (
            b'{"a":{' + b",".join(b'"%d":1' % i for i in range(200)) + b'},"b":[' + b"1," * 99 + b"1]}",
            "too_many_fields",
        ),
        (b" " * 262_145, "too_large"),
        (b'{"' + b"n" * 513 + b'":1}', "key_too_long"),
        (b'{"a":"text","b":null,"c":[]}', "no_number"),
        (b'{"id":7}', "no_number"),
        (b"1_000", "no_number"),
        (b"0x1f", "no_number"),
        (b"21.5 C", "no_number"),
        (b"unavailable", "no_number"),
        (b"null", "no_number"),
        (b'"2023-01-01T00:00:00+00:00"', "no_number"),
        (b"a = b", "no_number"),
        (b"[]", "no_number"),
        (b'[{"time":1700000000,"value":null}]', "no_number"),
    ],
)
def test_what_is_no_reading_has_a_reason(payload: bytes, reason: str) -> None:
    """Each kind of unreadable message is told apart from the others."""
    assert refusal(Decoder(), "t", payload) == reason


def test_limits_are_met_exactly() -> None:
    """What is as large, as deep, as wide or as long as allowed is read."""
    decoder = Decoder()
    assert values(decoder, "t", b"[" * 16 + b"1" + b"]" * 16) == {"t#" + ".".join("0" * 16): 1.0}
    assert len(values(decoder, "t", "[" + ",".join("1" * 256) + "]")) == 256
    assert values(decoder, "t", '{"' + "n" * 512 + '":1}') == {"t#" + "n" * 512: 1.0}
    assert values(decoder, "t", "1" + " " * 262_143) == {"t": 1.0}
    assert values(decoder, "t" * 1024, "1") == {"t" * 1024: 1.0}


@pytest.mark.parametrize("topic", ["", "a#b", "a/+/b", "a\nb", "a\0b", "a\ud800", "t" * 1025, "é" * 513])
def test_topics_that_cannot_be_keys(topic: str) -> None:
    """A hostile broker's topic is refused, whatever the payload."""
    assert refusal(Decoder(), topic, "1") is Rejection.BAD_TOPIC


def test_good_fields_survive_bad_neighbours() -> None:
    """Numbers that are no readings are counted, the others are read."""
    out = columns(
        Decoder(), "t", '{"a":1,"b":NaN,"c":1e999,"d":-inf,"' + "e" * 600 + '":2,"f":"NaN","g":{"h":nan,"i":3}}'
    )
    assert isinstance(out, Columns)
    assert list(zip(out.key, out.value, strict=True)) == [("t#a", 1.0), ("t#g.i", 3.0)]
    assert out.rejected == {Rejection.NOT_FINITE: 4, Rejection.KEY_TOO_LONG: 1}


def test_a_rejected_message_leaves_the_turn_as_it_was() -> None:
    """Readings of earlier messages stay, those of the refused one go."""
    decoder, out = Decoder(max_fields=3), Columns()
    assert decoder.decode("t", b'{"a":1,"b":NaN}', ARRIVAL, out) is None
    before = (list(out.key), list(out.time), list(out.value), list(out.flags), dict(out.rejected))
    for payload in (b'{"a":1,"x":{"b":1,"c":1,"d":NaN},"e":{"f":1}}', b"[[1,2],[3,4]]", b'{"a":NaN,"b":"x"}'):
        assert decoder.decode("t", payload, ARRIVAL, out) is not None
        assert (out.key, out.time, out.value, out.flags, out.rejected) == before


def test_booleans_are_a_setting() -> None:
    """Without `booleans` neither true nor words are numbers."""
    decoder = Decoder(booleans=False)
    assert refusal(decoder, "t", "ON") is Rejection.NO_NUMBER
    assert refusal(decoder, "t", "true") is Rejection.NO_NUMBER
    assert values(decoder, "t", '{"a":true,"b":"ON","c":1}') == {"t#c": 1.0}
    assert values(decoder, "t", '{"x":{"a":true,"b":"ON","c":1}}') == {"t#x.c": 1.0}


def test_times_without_a_zone_are_local() -> None:
    """The zone is a setting, and a rule's own goes before it."""
    decoder = Decoder(time_zone="Europe/Berlin", rules=(Rule("ny/#", time_zone="America/New_York"),))
    assert read(decoder, "t", '{"Time":"2017-02-16T11:13:52","a":1}') == [("t#a", 1.0, 1487240032.0)]
    assert read(decoder, "ny/t", '{"Time":"2017-02-16T05:13:52","a":1}') == [("ny/t#a", 1.0, 1487240032.0)]
    assert read(decoder, "t", '{"Time":"2017-02-16T10:13:52Z","a":1}') == [("t#a", 1.0, 1487240032.0)]


def test_wanted_topics() -> None:
    """Include narrows, exclude goes before it, and our own output is never wanted."""
    decoder = Decoder(
        include=("plant/**", "zigbee2mqtt/+"),
        exclude=("**/debug", "zigbee2mqtt/bridge/#"),
        own_prefix="plant/streamer/",
    )
    wanted = ["plant/a", "plant/a/b", "zigbee2mqtt/x"]
    unwanted = ["a", "plant", "plant/a/debug", "zigbee2mqtt/bridge", "zigbee2mqtt/a/set", "plant/streamer/status"]
    assert [topic for topic in wanted + unwanted if decoder.is_wanted(topic)] == wanted
    assert Decoder().is_wanted("anything/at/all")
    assert decoder.is_wanted("a\ud800"), "what cannot be read is counted by the decoder, not ignored"


def test_devices() -> None:
    """A device is a topic, a tagged measurement in it, or what a rule's template makes of named levels."""
    decoder = Decoder(rules=(Rule("plant/{line}/{device}/{metric...}", device="{line}/{device}"), Rule("lab/{x}")))
    assert decoder.device("a/b") == "a/b"
    assert decoder.device("a/b#c.d") == "a/b"
    assert decoder.device("m#weather,location=us.temperature") == "m#weather,location=us"
    assert decoder.device("plant/1/press/temperature") == "1/press"
    assert decoder.device("plant/1/press/vibration/x#rms") == "1/press"
    assert decoder.device("plant/1/press") == "plant/1/press", "three levels only: the rule does not hold"
    assert decoder.device("lab/x#y") == "lab/x"


def test_rules_choose_fields_time_and_value() -> None:
    """A rule's globs, paths and quotes."""
    decoder = Decoder(
        rules=(
            Rule("e/#", include=("ENERGY.*",), exclude=("**.Factor",)),
            Rule("v/#", value_field="data.reading", time_field="data.when"),
            Rule("o/#", value_field="payload"),
            Rule("i/#", include=("id",)),
            Rule("d/#", value_field="a\\.b"),
        )
    )
    assert values(decoder, "e/x", '{"ENERGY":{"Power":5,"Factor":0.9,"x":{"y":1}},"n":1}') == {"e/x#ENERGY.Power": 5.0}
    assert read(decoder, "v/x", '{"n":1,"data":{"reading":" 21.5","when":"1700000000"}}') == [
        ("v/x#data.reading", 21.5, 1700000000.0)
    ]
    assert read(decoder, "v/x", '{"data":{"reading":3,"ts":1500000000}}') == [("v/x#data.reading", 3.0, None)]
    assert refusal(decoder, "v/x", '{"data":{"reading":3,"when":"noon"}}') is Rejection.BAD_TIME
    assert refusal(decoder, "v/x", '{"data":{"reading":"1e999"}}') is Rejection.NOT_FINITE
    assert refusal(decoder, "v/x", '{"other":3}') is Rejection.NO_NUMBER
    assert read(decoder, "v/x", '[{"data":{"reading":"1","when":1700000000}},{"data":{"reading":2}}]') == [
        ("v/x#data.reading", 1.0, 1700000000.0)
    ]
    assert read(decoder, "o/x", '{"ts":1700000000,"payload":{"a":1,"b":{"c":2}},"n":3}') == [
        ("o/x#payload.a", 1.0, 1700000000.0),
        ("o/x#payload.b.c", 2.0, 1700000000.0),
    ]
    assert values(decoder, "i/x", '{"id":7,"n":1}') == {"i/x#id": 7.0}
    assert values(decoder, "d/x", '{"a.b":"7","a":{"b":1}}') == {"d/x#a\\.b": 7.0}


def test_rules_force_a_format() -> None:
    """A payload that is not of the format its rule demands is refused."""
    decoder = Decoder(rules=tuple(Rule(f"{name}/#", format=name) for name in ("number", "json", "influx", "senml")))
    assert values(decoder, "number/x", "5") == {"number/x": 5.0}
    assert refusal(decoder, "number/x", '{"a":1}') is Rejection.NO_NUMBER
    assert refusal(decoder, "number/x", INFLUX) is Rejection.NO_NUMBER
    assert values(decoder, "json/x", SENML)["json/x#0.v"] == 120.1
    assert values(decoder, "json/x", "5") == {"json/x": 5.0}
    assert refusal(decoder, "influx/x", "5") is Rejection.BAD_LINE
    assert refusal(decoder, "influx/x", '{"a":1}') is Rejection.NO_NUMBER
    assert refusal(decoder, "senml/x", '{"a":1}') is Rejection.NO_NUMBER
    whole = Decoder(rules=(Rule("v3/#", format="json"),))
    assert values(whole, "v3/x", THINGS)["v3/x#uplink_message.f_cnt"] == 42.0


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (Rule("a/{b"), "brace"),
        (Rule("a/{b}/{b}"), "twice"),
        (Rule("a/{b...}/c"), "last"),
        (Rule("a/{1}"), "'1'"),
        (Rule("a/{b}", device="{c}"), "uses c"),
        (Rule("a", format="xml"), "'xml'"),
        (Rule("a", time_zone="Mars/Olympus"), "Mars/Olympus"),
        (Rule("a", time_zone="../../etc/passwd"), "passwd"),
        (Rule("a", format="influx", value_field="b"), "value_field"),
    ],
)
def test_rules_that_make_no_sense_are_named(rule: Rule, said: str) -> None:
    """An operator reads what was found and what is wanted."""
    with pytest.raises(SettingsError, match=said):
        Decoder(rules=(rule,))


def test_hostile_topics_and_names_do_not_grow_memory() -> None:
    """The cache keeps to its bound, and a known topic is read all the same."""
    decoder = Decoder(cache_bytes=1 << 20)
    tracemalloc.start()
    try:
        for i in range(3_000):
            out = Columns()
            decoder.decode(f"hostile/{i}", b'{"a":1,"b":{"c":2}}', ARRIVAL, out)
            decoder.decode("one/topic", b'{"%032d":1,"x":{"%032d":{"y":1}}}' % (i, i), ARRIVAL, out)
            decoder.decode("lines", b"m%032d,t=%d x=1" % (i, i), ARRIVAL, out)
            assert len(out) == 5
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert decoder.cached_bytes <= 1 << 20
    assert used < 3 << 20


def test_the_documentation_has_every_reason() -> None:
    """docs/payloads.md lists what is counted, and nothing else."""
    text = (Path(__file__).parents[2] / "docs" / "payloads.md").read_text()
    table = text.partition("## Rejections")[2].partition("## New series")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == [
        *(reason.value for reason in Rejection),
        *READING_REJECTIONS,
    ]
    formats = text.partition("## Formats")[2].partition("## Rules")[0]
    assert {"auto", *re.findall(r"^\| `(\w+)` \|", formats, re.MULTILINE)} == set(FORMATS)
    words = text.partition("**Words**")[2].partition("Availability")[0]
    assert {word for word in WORDS if word.islower()} <= set(re.findall(r"\w+", words))
    times = text.partition("Names of time fields")[2].partition("also written")[0]
    assert {name for name in TIME_RANK if name.islower() and "_" in name} <= set(re.findall(r"[@\w]+", times))
