"""What people and other programs are told of alarms and series: lines of the log, events and states on MQTT.

For the engine's thread. It looks at the shard, and changes nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from streamer import outbox
from streamer.alarms import Change
from streamer.log import event
from streamer.metrics import Metrics
from streamer.readings import Alarm
from streamer.shard import Shard

log = logging.getLogger(__name__)

Publish = Callable[[outbox.Outgoing], bool]
"""False: it found no room."""
HandOn = Callable[[str, Alarm, bytes], None]
"""What has become of an alarm, the alarm, and the event as it is published."""
States = Literal["alarm", "all", "off"]
"""Of which series the state is retained at the broker."""


class Telling:
    """All that the engine says."""

    def __init__(
        self,
        instance: str,
        shard: Shard,
        publish: Publish,
        metrics: Metrics,
        states: States,
        hand_on: HandOn = lambda _what, _alarm, _payload: None,
    ) -> None:
        """`hand_on` gets each event that is published on MQTT; it must not wait."""
        self._instance = instance
        self._shard = shard
        self._publish = publish
        self._metrics = metrics
        self._states = states
        self._hand_on = hand_on
        self._touched: set[int] = set()
        self._anew_at: float | None = None

    def changes(self, changes: Sequence[Change], still_open: Sequence[Alarm]) -> None:
        """What has become of alarms; `still_open` are those that are."""
        alarm_of = {key: alarm for alarm in still_open for key in series_of(alarm)}
        latest = {change.alarm.id: change for change in changes if change.what != "left"}
        for change in changes:
            alarm, key = change.alarm, change.series or change.alarm.key
            if change.what in ("opened", "closed"):
                level = logging.WARNING if change.what == "opened" else logging.INFO
                event(
                    log, level, f"alarm {change.what}", id=alarm.id, kind=alarm.kind, key=alarm.key, **_figures(alarm)
                )
            # A fault that moves a hundred fields of one message has a hundred updates: the last one says it all.
            if change.what != "left" and (change.what != "updated" or change is latest[alarm.id]):
                message = outbox.alarm_event(self._instance, change)
                self.send(message)
                self._hand_on(change.what, alarm, message.payload)
            if self._states != "off":
                # A series that was in alarm and then fell silent has two; the state tells of one that is open.
                shown = alarm if change.what in ("opened", "updated") else alarm_of.get(key)
                self.send(outbox.no_series_state(self._instance, key) if shown is None else self._state(shown, key))

    def alarms_anew(self, now: float) -> None:
        """The states of all series in alarm: a broker may have lost what it had retained, or let it expire."""
        self._anew_at = now
        if self._states != "off":
            for alarm in self._shard.open_alarms():
                for key in series_of(alarm):
                    self.send(self._state(alarm, key))

    def note(self, slots: NDArray[np.int32]) -> None:
        """These series have reported."""
        if self._states == "all":
            self._touched.update(slots.tolist())

    def noted(self, now: float) -> None:
        """With `all`: the state of each series that has reported since the last time. And of alarms before it expires.

        `now` in epoch seconds.
        """
        if self._anew_at is None:
            self._anew_at = now
        elif now - self._anew_at >= outbox.STATE_SECONDS / 2:
            self.alarms_anew(now)
        if not self._touched:
            return
        shard = self._shard
        is_warming = shard.detector.is_warming(shard.registry.rows)
        paused = set(shard.paused().tolist())
        for slot in self._touched:
            score, value, expected, lower, upper = shard.detector.latest[slot].tolist()
            alarm = shard.value_alarms.alarm_of(slot)
            state = "alarm" if alarm else "normal" if not np.isnan(score) else "warming" if is_warming[slot] else "gap"
            state = "paused" if slot in paused else state
            figures = {"score": score, "value": value, "expected": expected, "lower": lower, "upper": upper}
            key = shard.registry.key(slot)
            self.send(outbox.series_state(self._instance, key, state, time=now, figures=figures, alarm=alarm))
        self._touched.clear()

    def forgotten(self, slots: Sequence[int], keys: Sequence[str]) -> None:
        """These series are no more."""
        self._touched.difference_update(slots)
        if self._states == "all":
            for key in keys:
                self.send(outbox.no_series_state(self._instance, key))

    def send(self, message: outbox.Outgoing) -> None:
        """Counted, whatever becomes of it."""
        sent = self._publish(message)
        self._metrics.add("publishes_total" if sent else "publishes_dropped_total")

    def _state(self, alarm: Alarm, key: str) -> outbox.Outgoing:
        state = "silent" if alarm.kind == "silent" else "alarm"
        figures = self._shard.value_alarms.figures(alarm, key)
        return outbox.series_state(self._instance, key, state, time=alarm.updated_at, figures=figures, alarm=alarm)


def series_of(alarm: Alarm) -> tuple[str, ...]:
    """Whose state an alarm is; of a device that is silent its joint key."""
    return alarm.members or (alarm.key,)


def _figures(alarm: Alarm) -> dict[str, float | str | None]:
    """What the log says of an alarm."""
    if alarm.kind == "silent":
        return dict(alarm.detail)
    names = ("value", "expected", "lower", "upper", "usual", "score", "view")
    channels = ", ".join(f"{channel.key} {channel.share:.0%}" for channel in alarm.channels)
    return {name: getattr(alarm, name) for name in names if name != "usual" or alarm.usual is not None} | {
        "channels": channels
    }
