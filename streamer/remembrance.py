"""Which open alarms have been told, on disk: a run that is killed leaves none behind that nobody ever closes.

For the engine's thread, and before it starts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import replace
from functools import partial

from streamer.alarms import Change
from streamer.readings import Alarm
from streamer.safekeeping import PATIENCE_SECONDS, Begin
from streamer.telling import series_of


class Remembrance:
    """What the last run has told and this one has not yet, and what the file says."""

    def __init__(self, remember: Callable[[list[Alarm]], None], begin: Begin) -> None:
        """`remember` writes the file; `begin` calls what may have to wait for the disk."""
        self._remember = remember
        self._begin = begin
        self._remembered: list[Alarm] = []
        self._remembering: Future[object] | None = None
        self._lost: list[Change] = []
        self._untold: list[Change] = []

    def compare(self, known: Sequence[Alarm], remembered: list[Alarm], closed: Mapping[str, Alarm]) -> None:
        """Once: alarms that are open by the restored state, by the file, and those that the journal has as closed."""
        heard_of, ids = {alarm.id for alarm in remembered}, {alarm.id for alarm in known}
        series = {key for alarm in known for key in series_of(alarm)}
        for alarm in remembered:
            told = set(series)
            if alarm.id not in ids:
                self._lost.append(Change("closed", closed.get(alarm.id, alarm)))
                told.add(alarm.key)
            self._lost += [Change("left", alarm, key) for key in series_of(alarm) if key not in told]
        self._untold = [Change("opened", a, next(iter(a.members), None)) for a in known if a.id not in heard_of]
        self._remembered = remembered

    def take_untold(self) -> list[Change]:
        """What has opened and was not told; once."""
        untold, self._untold = self._untold, []
        return untold

    def take_lost(self, now: float) -> list[Change]:
        """What was told as open, and is not; once."""
        lost, self._lost = self._lost, []
        return [each if each.alarm.closed_at else _closed(each, now) for each in lost]

    def keep(self, alarms: list[Alarm]) -> None:
        """Begins to write what is open now. Not while something of the past is to be taken: until then the file must
        say what the last run has told."""
        if self._remembering is not None and self._remembering.done():
            self._remembering.result()  # a bug is not swallowed
            self._remembering = None
        if self._remembering is None and not (self._untold or self._lost) and alarms != self._remembered:
            self._remembering = self._begin(partial(self._remember, alarms))
            self._remembered = alarms

    def is_kept(self, alarms: list[Alarm]) -> bool:
        """It is on disk; False if the disk does not answer soon."""
        for _ in range(2):  # the first may still be an older write
            self.keep(alarms)
            if self._remembering is not None and not wait([self._remembering], PATIENCE_SECONDS).done:
                return False
        return True


def _closed(change: Change, now: float) -> Change:
    return change._replace(alarm=replace(change.alarm, updated_at=now, closed_at=now, reason="lost"))
