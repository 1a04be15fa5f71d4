"""Payloads -> readings, without configuration.

    decoder     which format a message is, and what an operator's rule says about its topic
    words       one number or one word
    tree        JSON objects and arrays: zigbee2mqtt, Tasmota, Shelly, {time, value}
    senml       RFC 8428
    influx      line protocol
    telegraf    Telegraf's JSON
    lorawan     The Things Stack and ChirpStack
    explain     the same for a person to read

Whatever the bytes: readings with finite values and valid keys, or a reason that is counted. docs/payloads.md is the
operator's side of this.
"""

from streamer.payloads.columns import Columns, Rejection
from streamer.payloads.decoder import Decoder
from streamer.payloads.explain import ExplainedReading, Explanation, explain
from streamer.payloads.rules import FORMATS, Rule

__all__ = ["FORMATS", "Columns", "Decoder", "ExplainedReading", "Explanation", "Rejection", "Rule", "explain"]
