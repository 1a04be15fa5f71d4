"""The Things Stack and ChirpStack."""

from __future__ import annotations

from streamer.payloads import Decoder, Rejection
from tests.payloads.reading import read, refusal, values

DECODER = Decoder()


def test_the_time_of_a_measurement_lies_nearest() -> None:
    """A device that sends its own time is believed; else the frame's, else the message's."""
    own = (
        '{"end_device_ids":{},"received_at":"2022-07-18T09:34:15Z","uplink_message":{"decoded_payload":'
        '{"temperature":21.3,"log":{"ts":1658136000,"v":1}}}}'
    )
    assert read(DECODER, "up", own) == [
        ("up#uplink_message.decoded_payload.temperature", 21.3, 1658136855.0),
        ("up#uplink_message.decoded_payload.log.v", 1.0, 1658136000.0),
    ]


def test_frames_without_a_decoder_hold_no_number() -> None:
    """Radio figures alone are no measurements."""
    assert refusal(DECODER, "up", '{"end_device_ids":{},"uplink_message":{"frm_payload":"AQ==","f_cnt":1}}') is (
        Rejection.NO_NUMBER
    )
    assert refusal(DECODER, "up", '{"deviceInfo":{"devEui":"01"},"fCnt":1,"data":"AQ=="}') is Rejection.NO_NUMBER


def test_what_only_looks_like_it() -> None:
    """Other objects with such names are plain JSON."""
    assert values(DECODER, "x", '{"deviceInfo":{"a":1},"object":{"b":2}}') == {"x#deviceInfo.a": 1.0, "x#object.b": 2.0}
    assert values(DECODER, "x", '{"uplink_message":{"b":2}}') == {"x#uplink_message.b": 2.0}
