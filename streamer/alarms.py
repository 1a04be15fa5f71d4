"""From scores and cadence to incidents: an alarm opens, is joined, is updated, closes when all is back to normal.

    score >= 1                                        opened, or joined: updated
    a score a quarter higher than the last told       updated
    10 readings in a row well below it, nearer to the
    old normal than half of it, and than half as far
    as it was, or as near as normal readings are      the series no longer holds the alarm; the last one: closed

The forecast gets used to a fault that stays, and it is rare no more; the distance from the old normal does not: its
statistics stand still while an alarm is open. So a jump that stays keeps its alarm, however well it is known by then;
a mild one of a young series with a reading a day may lose it, where what is normal is as far (a fifth of +3 sigma do).

A fault that moves several series of a device is one incident: a series that crosses 1 shortly after the device's alarm
has had news becomes a member of it. Each series is a member by its own readings alone, from its own score of 1 until it
is calm; it is not learned from just as long, and then forgets what was learned of the fault. Which incident it belongs
to changes nothing of that. So scores do not depend on other series, and `step` need not know in which order the
readings of different series came; `settle` then takes what `step` noted in the order of the stream, so that incidents
do not depend on how it was cut.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models import calibration
from streamer.readings import Alarm, Bool, Channel, Float32, Float64, Int32, Scores, Wave
from streamer.records import Abnormal
from streamer.registry import Registry

OPEN_SCORE = 1.0
CALM_SCORE = 0.5
WELL_BELOW = 0.8  # by eye: a score that hovers about 1 is one alarm
CALM_DECADES = 1.5  # of slow series no less than that: by one view 97 normal readings in 100 are so near
CALM_READINGS = 10
UPDATE_RATIO = 1.25
LASTING = [calibration.LEVEL, calibration.DRIFT]  # the views that do not get used to a fault
GROUP_READINGS = 30  # so many of its usual intervals after an alarm's last news a series still joins it (by eye)
NOTED_SCORE = 0.6  # a series that does not reach 1 contributes from here on,
NEAR_READINGS = 3  # so near to an alarm's news; at 0.5 and 5 twice as many are named by chance
MOST_CHANNELS = 8  # are named
KeyOf = Callable[[int], str]
What = Literal["noted", "opens", "follows"]
Keep = Callable[[int], calibration.Kept]


class Change(NamedTuple):
    """Something that happened to an alarm."""

    what: str
    """opened | updated | closed | left: a series no longer holds it, others do"""
    alarm: Alarm
    series: str | None = None
    """key of the series to which it happened; None: the alarm's own"""
    abnormal: Abnormal | None = None
    """what a series has shown that has left a value alarm by its own readings"""


class Reading(NamedTuple):
    """A reading with a score, as numbers only: a row of `ValueAlarms.noted`."""

    time: float
    interval: float
    """seconds between the series' readings, usually"""
    rarity: float
    """-log10 p"""
    score: float
    view: float
    value: float
    expected: float
    lower: float
    upper: float
    usual: float


class Note(NamedTuple):
    """What a reading means to the alarms, before it is said which of them."""

    row: int
    """in the batch"""
    slot: int
    time: float
    what: What
    """noted: near the threshold, of a series that is in no alarm"""
    reading: Reading | None
    """None if it is neither the first nor the worst of its series"""
    ends: float | None
    """the series is calm with it: event time since when it was in alarm; else None"""


class End(NamedTuple):
    """A series is calm again."""

    slot: int
    peak_views: Float32
    """the highest of each"""
    kept: calibration.Kept
    """what the calibration was when it crossed 1"""


class Step(NamedTuple):
    """What a wave of readings did."""

    normal: Bool
    """per row: the reading does not belong to an alarm"""
    notes: list[Note]
    """what `settle` wants"""
    ends: list[End]


def alarm_id(key: str, kind: str, opened_at: float) -> str:
    """Sixteen hex digits that the same incident always gets, also when the journal is replayed."""
    return hashlib.sha256(f"{key}\n{kind}\n{opened_at!r}".encode()).hexdigest()[:16]


@dataclass(slots=True)
class Member:
    """A series in alarm, by its own readings alone."""

    slot: int
    score: float
    """the highest so far"""
    peak_views: Sequence[float]
    kept: calibration.Kept | None
    calm: int = 0
    lasts: bool = False
    """a view that does not get used to the fault has reached 1, by rank or by distance"""
    furthest: float = 0.0
    """from the old normal, by these views, as a score"""
    since: float | None = None
    """event time of the reading that opened it"""


@dataclass(slots=True, eq=False)
class Incident:
    """An open alarm and what belongs to it."""

    device: int
    alarm: Alarm
    told_at: float
    """event time of its last news: it was opened or joined, or got a quarter worse"""
    told_score: float = 0.0
    slots: list[int] = field(default_factory=list)
    """of its members"""
    channels: dict[str, Reading] = field(default_factory=dict)
    """the rarest reading of each series that contributes, members or not"""


class SavedValue(NamedTuple):
    """All of `ValueAlarms` but the array."""

    incidents: list[Incident]
    members: list[Member]


class ValueAlarms:
    """Alarms of kind `value`; a series is a member of at most one. Owned by one thread."""

    def __init__(self, capacity: int, registry: Registry) -> None:
        self._registry = registry
        self._is_open = np.zeros(capacity, np.bool_)
        self._members: dict[int, Member] = {}
        self._incidents: dict[str, Incident] = {}  # by id, in the order of opening
        self._incident_of: dict[int, Incident] = {}
        self._of_device: dict[int, list[Incident]] = {}
        self.noted = np.zeros((capacity, len(Reading._fields)))
        """a `Reading` a slot: of the last few that reached NOTED_SCORE the rarest; zeros: there was none"""

    def open_alarms(self) -> list[Alarm]:
        """The incidents that are open now."""
        return [incident.alarm for incident in self._incidents.values()]

    def is_open(self, count: int) -> Bool:
        """Which of the first `count` slots are in alarm."""
        return self._is_open[:count]

    def alarm_of(self, slot: int) -> Alarm | None:
        """The alarm that a series is a member of."""
        incident = self._incident_of.get(slot)
        return incident.alarm if incident else None

    def figures(self, alarm: Alarm, key: str) -> dict[str, float]:
        """Score, value, expected, lower and upper of the worst reading of a series in an alarm; empty if not known."""
        named = [channel for channel in alarm.channels if channel.key == key]
        incident = self._incidents.get(alarm.id)
        worst = named[0] if named else incident.channels.get(key) if incident else None
        names = ("score", "value", "expected", "lower", "upper") if worst else ()
        return {name: getattr(worst, name) for name in names}

    # --- Series by series ---

    def step(self, wave: Wave, scores: Scores, rows: NDArray[np.intp], keep: Keep) -> Step:
        """Takes a scored wave, before anything is learned from it; `rows` `(n,)` are its row numbers in the batch.

        Only readings near the threshold, or of a series in alarm, cost more than a look.
        """
        score = scores.score[wave.rows]
        concerned = np.flatnonzero(self._is_open[wave.slots] | (score >= NOTED_SCORE))
        normal = np.ones(len(wave.slots), np.bool_)
        notes: list[Note] = []
        ends: list[End] = []
        for row in concerned.tolist():
            at, slot, time = int(rows[row]), int(wave.slots[row]), float(wave.time[row])
            member = self._members.get(slot)
            what: What = "opens" if member is None else "follows"
            if member is not None:
                is_worst = self._follow(member, row, wave, float(score[row]))
            elif score[row] >= OPEN_SCORE:
                is_worst = True
                member = Member(slot, float(score[row]), wave.views[row].tolist(), keep(slot), since=time)
                self._members[slot] = member
                self._is_open[slot] = True
            else:
                notes.append(Note(at, slot, time, "noted", _reading(row, wave, scores), None))
                continue
            normal[row] = False
            self._calm(member, wave, row, float(score[row]))
            ended = member.since if member.calm >= CALM_READINGS else None
            notes.append(Note(at, slot, time, what, _reading(row, wave, scores) if is_worst else None, ended))
            if ended is not None:
                if member.kept is not None:
                    ends.append(End(slot, np.array(member.peak_views, np.float32), member.kept))
                self._forget(slot)
        return Step(normal, notes, ends)

    @staticmethod
    def _follow(member: Member, row: int, wave: Wave, score: float) -> bool:
        """Adds a reading; True if it is the worst so far."""
        if np.isnan(score) or (member.lasts and _is_back(member, wave, row, 0.0)):
            return False  # the way back from a long fault surprises as much as the fault did, and is not worse
        member.peak_views = np.maximum(member.peak_views, wave.views[row]).tolist()
        if score > member.score:
            member.score = score
            return True
        return False

    @staticmethod
    def _calm(member: Member, wave: Wave, row: int, score: float) -> None:
        if np.isnan(score):
            return  # no verdict is no sign of calm
        distances, lasting = wave.distances[row], float(wave.distances[row, LASTING].max())
        member.furthest = max(member.furthest, lasting)
        member.lasts |= max(lasting, float(wave.levels[row, LASTING].max())) >= OPEN_SCORE
        usual = CALM_DECADES / float(wave.strictness[row])
        is_calm = distances[calibration.ERROR] < max(CALM_SCORE, usual) and score < WELL_BELOW
        if member.lasts:
            is_calm &= _is_back(member, wave, row, usual)
        member.calm = member.calm + 1 if is_calm else 0

    def _forget(self, slot: int) -> None:
        del self._members[slot]
        self._is_open[slot] = False

    # --- In the order of the stream ---

    def settle(self, notes: list[Note]) -> list[Change]:
        """Takes all notes of a batch, and says what has become of the alarms."""
        changes: list[Change] = []
        for note in sorted(notes, key=lambda note: note.row):
            key = self._registry.key(note.slot)
            if note.what == "noted" and note.reading is not None:
                self._note(note.slot, key, note.reading)
            elif note.what == "opens" and note.reading is not None:
                changes.append(self._open(note.slot, key, note.reading))
            elif self._go_on(note, key):
                changes.append(Change("updated", self._incident_of[note.slot].alarm, key))
            if note.ends is not None:
                change = self._leave(note.slot, key, note.time)
                changes.append(change._replace(abnormal=Abnormal(note.slot, note.ends, note.time)))
        return changes

    def _note(self, slot: int, key: str, reading: Reading) -> None:
        """Keeps it for an alarm that may come, and adds it to one that has just come."""
        before = Reading(*self.noted[slot].tolist())
        if reading.rarity >= before.rarity or not _is_near(reading, before.time, NEAR_READINGS):
            self.noted[slot] = reading
        incident = self._recent(self._registry.device(slot), reading, NEAR_READINGS)
        if incident is not None:
            self._add(incident, key, reading)
            _describe(incident)

    def _open(self, slot: int, key: str, reading: Reading) -> Change:
        device, at = self._registry.device(slot), reading.time
        incident = self._recent(device, reading, GROUP_READINGS)
        what = "updated"
        if incident is None:
            what = "opened"
            incident = Incident(device, Alarm(alarm_id(key, "value", at), "value", key, at, at), at)
            self._incidents[incident.alarm.id] = incident
            self._of_device.setdefault(device, []).append(incident)
        incident.slots.append(slot)
        self._incident_of[slot] = incident
        members = (*incident.alarm.members, key)
        incident.alarm = replace(incident.alarm, updated_at=at, readings=incident.alarm.readings + 1, members=members)
        self._add(incident, key, reading)
        self._tell(incident, reading)
        return Change(what, incident.alarm, key)

    def _go_on(self, note: Note, key: str) -> bool:
        """Adds a member's reading; True if there is something to tell."""
        incident = self._incident_of[note.slot]
        incident.alarm = replace(incident.alarm, updated_at=note.time, readings=incident.alarm.readings + 1)
        if note.reading is None:
            return False
        self._add(incident, key, note.reading)
        if note.reading.score > UPDATE_RATIO * incident.told_score:
            self._tell(incident, note.reading)
            return True
        _describe(incident)
        return False

    def _recent(self, device: int, reading: Reading, readings: float) -> Incident | None:
        """The open incident of the device whose last news is so few intervals away; of several the latest."""
        near = [each for each in self._of_device.get(device, ()) if _is_near(reading, each.told_at, readings)]
        return max(near, key=lambda each: each.told_at, default=None)

    @staticmethod
    def _add(incident: Incident, key: str, reading: Reading) -> None:
        before = incident.channels.get(key)
        if before is None or reading.rarity > before.rarity:
            incident.channels[key] = reading

    def _tell(self, incident: Incident, reading: Reading) -> None:
        """There is news: who else was near the threshold belongs to it."""
        incident.told_at = reading.time
        incident.told_score = max(incident.told_score, reading.score)
        slots = np.flatnonzero(self._registry.devices == incident.device)
        time, interval, rarity = self.noted[slots, :3].T
        near = (rarity > 0) & (np.abs(time - incident.told_at) <= NEAR_READINGS * interval)
        for slot in slots[near].tolist():
            if slot not in self._incident_of:
                self._add(incident, self._registry.key(slot), Reading(*self.noted[slot].tolist()))
        _describe(incident)

    def _leave(self, slot: int, key: str, at: float) -> Change:
        """A series no longer holds its alarm."""
        incident = self._incident_of.pop(slot)
        incident.slots.remove(slot)
        members = tuple(member for member in incident.alarm.members if member != key)
        incident.alarm = replace(incident.alarm, members=members)
        if incident.slots:
            return Change("left", incident.alarm, key)
        del self._incidents[incident.alarm.id]
        self._of_device[incident.device].remove(incident)
        if not self._of_device[incident.device]:
            del self._of_device[incident.device]
        return Change("closed", replace(incident.alarm, closed_at=at, updated_at=at), key)

    def state(self) -> SavedValue:
        """What `restore` wants, not copied; in an order that how the stream was cut does not change."""
        return SavedValue(list(self._incidents.values()), sorted(self._members.values(), key=lambda each: each.slot))

    def restore(self, saved: SavedValue, *, with_kept: bool) -> None:
        """Takes over what `state` gave; without what was kept of the calibration if other weights had made it."""
        for incident in saved.incidents:
            self._incidents[incident.alarm.id] = incident
            self._of_device.setdefault(incident.device, []).append(incident)
            self._incident_of.update(dict.fromkeys(incident.slots, incident))
        for member in saved.members:
            member.kept = member.kept if with_kept else None
            if member.since is None:  # of an earlier build
                member.since = self._incident_of[member.slot].alarm.opened_at
            self._members[member.slot] = member
            self._is_open[member.slot] = True

    def abnormal(self) -> list[tuple[int, float]]:
        """Slot and opening time, by the readings' own clock, of each series that is in alarm now."""
        return [(member.slot, member.since) for member in self._members.values() if member.since is not None]

    def take_out(self, slots: NDArray[np.intp], reason: str) -> tuple[list[Change], list[End]]:
        """Takes series out of their alarms, whatever their readings say; `reason` is why those are closed then."""
        changes, ends = [], []
        for slot in slots.tolist():
            member = self._members.get(slot)
            if member is None:
                continue
            if member.kept is not None:
                ends.append(End(slot, np.array(member.peak_views, np.float32), member.kept))
            self._forget(slot)
            change = self._leave(slot, self._registry.key(slot), self._incident_of[slot].alarm.updated_at)
            if change.what == "closed":
                change = change._replace(alarm=replace(change.alarm, reason=reason))
            changes.append(change)
        self.noted[slots] = 0
        return changes, ends


def _reading(row: int, wave: Wave, scores: Scores) -> Reading:
    at = wave.rows[row]
    score = float(scores.score[at])
    return Reading(
        time=float(wave.time[row]),
        interval=float(wave.interval[row]),
        rarity=score * float(wave.strictness[row]),
        score=score,
        view=float(scores.view[at]),
        value=float(wave.value[row]),
        expected=float(scores.expected[at]),
        lower=float(scores.lower[at]),
        upper=float(scores.upper[at]),
        usual=float(wave.usual[row]),
    )


def _is_back(member: Member, wave: Wave, row: int, usual: float) -> bool:
    """By the views that do not get used to a fault; of a mild one that stays, CALM_SCORE would be too near.

    It is never asked to be nearer than the `usual` distance of a normal reading.
    """
    far = float(wave.distances[row, LASTING].max())
    return far < max(usual, min(CALM_SCORE, member.furthest / 2))


def _is_near(reading: Reading, time: float, readings: float) -> bool:
    """At most so many of the series' usual intervals lie between; a series whose clock is behind is as near."""
    return abs(reading.time - time) <= readings * reading.interval


def _describe(incident: Incident) -> None:
    """Brings what the alarm says up to what is known: its own series' worst reading, and the channels."""
    ranked = sorted(incident.channels.items(), key=lambda item: -item[1].rarity)[:MOST_CHANNELS]
    total = sum(reading.rarity for _, reading in ranked)
    own = _channel(incident.alarm.key, 1.0, incident.channels[incident.alarm.key])
    incident.alarm = replace(
        incident.alarm,
        value=own.value,
        expected=own.expected,
        lower=own.lower,
        upper=own.upper,
        usual=own.usual,
        score=own.score,
        direction="above" if own.value >= (own.expected if own.usual is None else own.usual) else "below",
        view=own.view,
        channels=tuple(_channel(key, reading.rarity / total, reading) for key, reading in ranked),
    )


def _channel(key: str, share: float, reading: Reading) -> Channel:
    view = int(reading.view)
    return Channel(
        key,
        share,
        reading.score,
        calibration.NAMES[view],
        reading.value,
        reading.expected,
        reading.lower,
        reading.upper,
        None if view == calibration.ERROR else reading.usual,
    )


class SavedSilence(NamedTuple):
    """An open alarm of kind `silent` as a snapshot keeps it."""

    slots: list[int]
    alarm: Alarm


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

    def state(self) -> list[SavedSilence]:
        """What `restore` wants."""
        return [SavedSilence(members.tolist(), alarm) for alarm, members in self._open.values()]

    def restore(self, saved: list[SavedSilence]) -> None:
        """Puts back what `state` gave."""
        for each in saved:
            self._serial += 1
            members = np.array(each.slots, np.intp)
            self._open[self._serial] = (each.alarm, members)
            self._incident_of[members] = self._serial

    def take_out(self, slots: NDArray[np.intp], now: float, reason: str) -> list[Change]:
        """Takes series out of their alarms; one of which none is left is closed, for that `reason`."""
        changes: list[Change] = []
        for serial in sorted(set(self._incident_of[slots].tolist()) - {-1}):
            alarm, members = self._open.pop(serial)
            left = members[~np.isin(members, slots)]
            if len(left):
                self._open[serial] = (alarm, left)
            else:
                changes.append(Change("closed", replace(alarm, updated_at=now, closed_at=now, reason=reason)))
        self._incident_of[slots] = -1
        return changes
