"""The demo's words: what happens, a line each, with the plant's time of day in front. Pure functions."""

from __future__ import annotations

from datetime import UTC, datetime

from streamer.demo.clock import SPEED
from streamer.demo.faults import Fault
from streamer.demo.watch import AlarmEvent, Counters


def introduction(port: int, http_port: int, instance: str, faults_from: float) -> str:
    """Where to look."""
    listen = f"mosquitto_sub -V mqttv5 -h 127.0.0.1 -p {port} -v -t"
    return f"""\
A simulated plant, a broker and the daemon run on this machine; nothing leaves it.
  page      http://127.0.0.1:{http_port}/
  broker    127.0.0.1:{port} (MQTT 5)
  readings  {listen} 'plant/#'
  alarms    {listen} 'streamer/{instance}/alarm/#'
  metrics   http://127.0.0.1:{http_port}/metrics
  health    http://127.0.0.1:{http_port}/-/healthy
A second here is {SPEED / 60:g} minutes there; the times below are the plant's. The daemon knows nothing at first;
it learns what is normal until {_clock(faults_from)}, when the faults begin. Ctrl-C stops."""


def figures(moment: float, counters: Counters, per_second: float) -> str:
    """What the daemon does."""
    return _line(
        moment,
        "scored",
        f"{per_second:,.0f} readings/s of {counters.series} series; alarms open: {counters.alarms_open}",
    )


def no_figures(moment: float, reason: str) -> str:
    """The daemon did not answer a scrape."""
    return _line(moment, "scored", f"/metrics has not answered: {reason}")


def began(fault: Fault) -> str:
    """A fault begins."""
    return _line(fault.start, "FAULT", f"{fault.number} begins: {fault.what} ({fault.kind}) on {fault.keys[0]}")


def ended(fault: Fault, is_caught: bool) -> str:
    """A fault is over."""
    return _line(fault.end, "fault", f"{fault.number} is over, {'caught' if is_caught else 'not seen so far'}")


def alarm_opened(alarm: AlarmEvent, fault: Fault | None) -> str:
    """An alarm opens, and which fault it has seen."""
    if fault is None:
        whose = "FALSE ALARM: no fault there"
    else:
        whose = f"fault {fault.number}" + (", only at its end" if alarm.opened_at > fault.end else "")
    return _line(alarm.opened_at, "ALARM", f"opened on {alarm.key}: {_reason(alarm)} <- {whose}")


def missed(fault: Fault) -> str:
    """A fault of the account that no alarm has seen."""
    return f"missed: fault {fault.number}, {fault.what} ({fault.kind}) on {fault.keys[0]}"


def alarm_closed(alarm: AlarmEvent) -> str:
    """An alarm closes."""
    score = "" if alarm.score is None else f", highest score {alarm.score:.1f}"
    return _line(alarm.closed_at or alarm.opened_at, "alarm", f"closed on {alarm.key}{score}")


def _reason(alarm: AlarmEvent) -> str:
    if alarm.kind == "silent":
        quiet, allowed = alarm.detail.get("quiet_seconds", 0.0), alarm.detail.get("allowed_seconds", 0.0)
        return f"silent for {quiet:.0f} s, {allowed:.0f} s allowed"
    value, expected, lower, upper = map(_number, (alarm.value, alarm.expected, alarm.lower, alarm.upper))
    usual = "" if alarm.usual is None else f", usually {_number(alarm.usual)}"
    return f"value {value}{usual}, expected {expected} ({lower} to {upper}), score {_number(alarm.score)}"


def _number(number: float | None) -> str:
    return "none" if number is None else f"{number:.4g}"


def _line(moment: float, what: str, text: str) -> str:
    return f"{_clock(moment)}  {what:<7} {text}"


def _clock(moment: float) -> str:
    return f"{datetime.fromtimestamp(moment, UTC):%d %b %H:%M:%S}"
