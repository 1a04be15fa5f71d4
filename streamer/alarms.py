"""From scores and cadence to incidents: an alarm opens, is updated, closes when the series is back to its old normal.

    score >= 1                                        opened
    a score a quarter higher than the last told       updated
    10 readings in a row nearer than half of it to the
    old normal, by every view that held the alarm     closed

The forecast gets used to a fault that stays, and it is rare no more; the distance from the old normal does not: its
statistics stand still while an alarm is open. So a jump that stays keeps its alarm, however well it is known by then.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models import calibration
from streamer.readings import Alarm, Bool, Float32, Float64, Int32, Scores, Wave

OPEN_SCORE = 1.0
CALM_SCORE = 0.5
CALM_READINGS = 10
UPDATE_RATIO = 1.25
LASTING = [calibration.LEVEL, calibration.DRIFT]  # the views that do not get used to a fault
KeyOf = Callable[[int], str]
Keep = Callable[[int], calibration.Kept]


class Change(NamedTuple):
    """Something that happened to an alarm."""

    what: str
    """opened | updated | closed"""
    alarm: Alarm


class End(NamedTuple):
    """An incident that ended by itself."""

    slot: int
    peak_views: Float32
    """the highest of each"""
    kept: calibration.Kept
    """what the calibration was when it opened"""


class Step(NamedTuple):
    """What a wave of readings did to the alarms."""

    normal: Bool
    """per row: the reading does not belong to an alarm"""
    changes: list[Change]
    ends: list[End]


def alarm_id(key: str, kind: str, opened_at: float) -> str:
    """Sixteen hex digits that the same incident always gets, also when the journal is replayed."""
    return hashlib.sha256(f"{key}\n{kind}\n{opened_at!r}".encode()).hexdigest()[:16]


@dataclass(slots=True)
class _Incident:
    alarm: Alarm
    peak_views: Float32
    told_score: float
    kept: calibration.Kept | None
    calm: int = 0
    held_by_level: bool = False


class SavedIncident(NamedTuple):
    """One open alarm as a snapshot keeps it."""

    slots: list[int]
    alarm: Alarm
    peak_views: Sequence[float] = ()
    told_score: float = 0.0
    calm: int = 0
    held_by_level: bool = False
    kept: calibration.Kept | None = None


class ValueAlarms:
    """Alarms of kind `value`, at most one a series. Owned by one thread."""

    def __init__(self, capacity: int) -> None:
        self._is_open = np.zeros(capacity, np.bool_)
        self._incidents: dict[int, _Incident] = {}

    def open_alarms(self) -> list[Alarm]:
        """The incidents that are open now."""
        return [incident.alarm for incident in self._incidents.values()]

    def alarm_of(self, slot: int) -> Alarm | None:
        """The alarm that is open on a series."""
        incident = self._incidents.get(slot)
        return incident.alarm if incident else None

    def is_open(self, slots: NDArray[np.intp]) -> Bool:
        """Per slot."""
        opened: Bool = self._is_open[slots]
        return opened

    def step(self, wave: Wave, scores: Scores, key_of: KeyOf, keep: Keep) -> Step:
        """Takes a scored wave, before anything is learned from it.

        Only readings that open an alarm or belong to one cost more than a look.
        """
        score = scores.score[wave.rows]
        concerned = np.flatnonzero(self._is_open[wave.slots] | (score >= OPEN_SCORE))
        normal = np.ones(len(wave.slots), np.bool_)
        changes: list[Change] = []
        ends: list[End] = []
        for row in concerned.tolist():
            slot = int(wave.slots[row])
            incident = self._incidents.get(slot)
            if incident is None:
                incident = self._open(slot, row, wave, scores, key_of, keep)
                changes.append(Change("opened", incident.alarm))
            elif self._follow(incident, row, wave, scores):
                changes.append(Change("updated", incident.alarm))
            normal[row] = False
            self._calm(incident, wave, row, scored=not np.isnan(score[row]))
            if incident.calm >= CALM_READINGS:
                at = float(wave.time[row])
                changes.append(Change("closed", replace(incident.alarm, closed_at=at, updated_at=at)))
                if incident.kept is not None:
                    ends.append(End(slot, incident.peak_views, incident.kept))
                self._forget(slot)
        return Step(normal, changes, ends)

    def _open(self, slot: int, row: int, wave: Wave, scores: Scores, key_of: KeyOf, keep: Keep) -> _Incident:
        key, at = key_of(slot), float(wave.time[row])
        alarm = _worst(Alarm(alarm_id(key, "value", at), "value", key, at, at, readings=1), row, wave, scores)
        incident = _Incident(alarm, wave.views[row].copy(), alarm.score or 0.0, keep(slot))
        self._incidents[slot] = incident
        self._is_open[slot] = True
        return incident

    @staticmethod
    def _follow(incident: _Incident, row: int, wave: Wave, scores: Scores) -> bool:
        """Adds a reading to an incident; True if there is something to tell."""
        alarm = replace(incident.alarm, updated_at=float(wave.time[row]), readings=incident.alarm.readings + 1)
        incident.alarm = alarm
        if incident.held_by_level and wave.distances[row, LASTING].max() < CALM_SCORE:
            return False  # the way back from a long fault surprises as much as the fault did, and is not worse
        score = float(scores.score[wave.rows[row]])
        if score > (alarm.score or 0.0):
            incident.alarm = _worst(alarm, row, wave, scores)
        np.maximum(incident.peak_views, wave.views[row], out=incident.peak_views)
        if score > UPDATE_RATIO * incident.told_score:
            incident.told_score = score
            return True
        return False

    @staticmethod
    def _calm(incident: _Incident, wave: Wave, row: int, *, scored: bool) -> None:
        if wave.distances[row, LASTING].max() >= OPEN_SCORE:
            incident.held_by_level = True
        if not scored:
            return  # no verdict is no sign of calm
        distances = wave.distances[row]
        holding = distances if incident.held_by_level else np.delete(distances, LASTING)
        incident.calm = incident.calm + 1 if holding.max() < CALM_SCORE else 0

    def _forget(self, slot: int) -> None:
        del self._incidents[slot]
        self._is_open[slot] = False

    def state(self) -> list[SavedIncident]:
        """What `restore` wants."""
        return [
            SavedIncident(
                [slot], each.alarm, each.peak_views.tolist(), each.told_score, each.calm, each.held_by_level, each.kept
            )
            for slot, each in self._incidents.items()
        ]

    def restore(self, saved: list[SavedIncident], *, with_kept: bool) -> None:
        """Puts back what `state` gave; without what was kept of the calibration if other weights had made it."""
        for each in saved:
            slot, views = each.slots[0], np.array(each.peak_views, np.float32)
            kept = each.kept if with_kept else None
            self._incidents[slot] = _Incident(each.alarm, views, each.told_score, kept, each.calm, each.held_by_level)
            self._is_open[slot] = True

    def evict(self, slots: NDArray[np.intp]) -> list[Change]:
        """Closes the alarms of series that are forgotten."""
        changes = []
        for slot in slots.tolist():
            if slot in self._incidents:
                alarm = self._incidents[slot].alarm
                changes.append(Change("closed", replace(alarm, closed_at=alarm.updated_at)))
                self._forget(slot)
        return changes


def _worst(alarm: Alarm, row: int, wave: Wave, scores: Scores) -> Alarm:
    """The alarm with this reading of the wave as its worst."""
    at = wave.rows[row]
    value, expected = float(wave.value[row]), float(scores.expected[at])
    return replace(
        alarm,
        value=value,
        expected=expected,
        lower=float(scores.lower[at]),
        upper=float(scores.upper[at]),
        score=float(scores.score[at]),
        direction="above" if value >= expected else "below",
        view=calibration.VIEWS[int(scores.view[at])],
    )


class SilenceAlarms:
    """Alarms of kind `silent`: a series, or a whole device, that is overdue by its own cadence.

    A device whose every series is overdue is one incident, under its joint key. A series is silent on its own only if
    its device has gone on reporting without it.
    """

    def __init__(self, capacity: int) -> None:
        self._incident_of = np.full(capacity, -1, np.int64)  # serial number of the incident a slot belongs to
        self._open: dict[int, tuple[Alarm, NDArray[np.intp]]] = {}
        self._serial = 0

    def open_alarms(self) -> list[Alarm]:
        """The incidents that are open now."""
        return [alarm for alarm, _ in self._open.values()]

    def is_silent(self, slots: NDArray[np.intp]) -> Bool:
        """Per slot: it belongs to an open alarm."""
        return self._incident_of[slots] >= 0

    def heard(self, slots: NDArray[np.intp], now: float) -> list[Change]:
        """Closes the alarms of series that report again."""
        changes: list[Change] = []
        if not self._open:
            return changes
        for serial in sorted(set(self._incident_of[slots].tolist()) - {-1}):
            alarm, members = self._open.pop(serial)
            self._incident_of[members] = -1
            changes.append(Change("closed", replace(alarm, updated_at=now, closed_at=now)))
        return changes

    def sweep(
        self,
        now: float,
        quiet: Float64,
        allowed: Float64,
        arrival: Float64,
        device: Int32,
        key_of: KeyOf,
        device_key_of: KeyOf,
    ) -> list[Change]:
        """Opens alarms for what is overdue `now`; arrays over the first n slots, `device` -1 where a slot is free."""
        known = device >= 0
        overdue = known & (quiet > allowed)
        if not (overdue & (self._incident_of[: len(quiet)] < 0)).any():
            return []
        devices = int(device.max()) + 1
        size = np.bincount(device[known], minlength=devices)
        silent = np.bincount(device[overdue], minlength=devices)
        latest = np.zeros(devices)
        np.maximum.at(latest, device[known], arrival[known])
        fresh = overdue & (self._incident_of[: len(quiet)] < 0)
        by_device = np.argsort(device, kind="stable")  # a gateway that dies takes thousands of devices with it
        numbers = np.unique(device[fresh])
        starts, ends = (np.searchsorted(device[by_device], numbers, side).tolist() for side in ("left", "right"))
        changes = []
        for number, start, end in zip(numbers.tolist(), starts, ends, strict=True):
            members = by_device[start:end]
            if silent[number] == size[number]:
                members = members[self._incident_of[members] < 0]
                key = key_of(int(members[0])) if size[number] == 1 else f"{device_key_of(number)}#*"
                changes.append(self._raise(key, members, now, quiet, allowed))
                continue
            alone = members[fresh[members] & (latest[number] - arrival[members] > allowed[members])]
            changes += [
                self._raise(key_of(int(slot)), np.array([slot]), now, quiet, allowed) for slot in alone.tolist()
            ]
        return changes

    def _raise(self, key: str, members: NDArray[np.intp], now: float, quiet: Float64, allowed: Float64) -> Change:
        self._serial += 1
        detail = {"quiet_seconds": float(quiet[members].min()), "allowed_seconds": float(allowed[members].max())}
        alarm = Alarm(alarm_id(key, "silent", now), "silent", key, now, now, detail=detail)
        self._open[self._serial] = (alarm, members)
        self._incident_of[members] = self._serial
        return Change("opened", alarm)

    def state(self) -> list[SavedIncident]:
        """What `restore` wants."""
        return [SavedIncident(members.tolist(), alarm) for alarm, members in self._open.values()]

    def restore(self, saved: list[SavedIncident]) -> None:
        """Puts back what `state` gave."""
        for each in saved:
            self._serial += 1
            members = np.array(each.slots, np.intp)
            self._open[self._serial] = (each.alarm, members)
            self._incident_of[members] = self._serial

    def evict(self, slots: NDArray[np.intp], now: float) -> list[Change]:
        """Closes the alarms of series that are forgotten."""
        return self.heard(slots, now)
