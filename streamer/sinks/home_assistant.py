"""Home Assistant shows every device with its alarm; here is decided what it is told, when and of whom.

One device of ours is one of theirs: a binary sensor `problem`, a sensor with the highest score, and one with the
expected value for each of its series. How a device stands is told at once when its alarm changes, else when its figures
have changed and no more often than the settings say: ten thousand series don't flood a broker. `look` does all that
about once a second, from what the engine has finished: its table of series and its list of alarms.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import msgspec

from streamer.clock import Clock
from streamer.documents import FieldState
from streamer.exposition import SeriesTable
from streamer.log import SparingLog, event
from streamer.metrics import Metrics
from streamer.outbox import STATE_SECONDS, Outgoing
from streamer.readings import Alarm
from streamer.sinks import discovery
from streamer.sinks.discovery import config_topic, series_id
from streamer.topics import output_topic

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
MOST_A_LOOK = 100  # messages: a hundred devices are there within three seconds, ten thousand within four minutes
MOST_KEY = 1000  # characters; who has a longer one is no sensor, and a file of such names would be large
MOST_SERIES = 16  # of a device, by its own order: a config is no larger than 10 KB, and a page of entities can be read


class Kept(msgspec.Struct, frozen=True):
    """A device that Home Assistant has been told of, as the file has it."""

    device: str
    series: list[str]
    config_topic: str
    state_topic: str


@dataclass(slots=True)
class _Device:
    """A device that Home Assistant is told of."""

    name: str
    seen_at: float
    """monotonic; it has reported, or is in an alarm"""
    series: dict[str, FieldState] = field(default_factory=dict)
    """by key, in the order in which they came"""
    gone: list[str] = field(default_factory=list)
    """ids of series that it had"""
    alarm: Alarm | None = None
    is_configured: bool = False
    told: bytes | None = None
    """the last state; None: it has to be told, whatever it is"""
    told_alarm: Alarm | None = None
    told_at: float = 0.0
    """monotonic"""
    looked_at: float = -float("inf")
    """monotonic: when it was last seen whether there is something to tell"""


class HomeAssistant:
    """`born` and `forget` are for any thread; the rest happens in a thread of its own, or in a test's."""

    def __init__(
        self,
        *,
        is_enabled: bool,
        instance: str,
        version: str,
        prefix: str,
        is_included: Callable[[str], bool],
        max_devices: int,
        every_seconds: float,
        idle_seconds: float,
        device_of: Callable[[str], str],
        table: Callable[[], SeriesTable | None],
        alarms: Callable[[], Sequence[Alarm]],
        connection: Callable[[], int],
        publish: Callable[[Outgoing], bool],
        kept: bytes | None,
        keep: Callable[[bytes], None],
        metrics: Metrics,
        clock: Clock,
    ) -> None:
        """Not `is_enabled`, it takes back what an earlier run has published, and that is all.

        `connection` is the number of the broker's connection, 0 without one; `kept` is what the last run gave to
        `keep`, which may raise OSError. A device that has been quiet for `idle_seconds` and is in no alarm is removed.
        """
        self._is_enabled = is_enabled
        self._instance = instance
        self._version = version
        self._prefix = prefix
        self._is_included = is_included
        self._max_devices = max_devices
        self._every_seconds = every_seconds
        self._idle_seconds = idle_seconds
        self._device_of = device_of
        self._table = table
        self._alarms = alarms
        self._connection = connection
        self._publish = publish
        self._keep = keep
        self._metrics = metrics
        self._clock = clock
        self._sparing = SparingLog(log, 3600.0, clock.monotonic)
        self._devices: dict[str, _Device] = {}
        self._by_series: dict[str, _Device] = {}
        self._removals: deque[Kept] = deque()
        """what has to be taken back at the broker"""
        self._scanned: set[str] = set()
        """keys of the last table"""
        self._scanned_at = -float("inf")
        self._seen_alarms: Sequence[Alarm] | None = None
        self._connected_by = 0
        self._is_changed = False
        """the file does not say what was published"""
        self._evicted: deque[str] = deque()
        self._is_born = threading.Event()
        self._is_over = threading.Event()
        self._thread: threading.Thread | None = None
        self.has_failed = False
        """a bug has ended the thread"""
        self._adopt(_decoded(kept))

    # --- For other threads ---

    def born(self) -> None:
        """Home Assistant is there again: it wants to know everything."""
        self._is_born.set()

    def forget(self, keys: Sequence[str]) -> None:
        """These series are no more."""
        self._evicted.extend(keys)

    def devices(self) -> int:
        """How many Home Assistant is told of."""
        return len(self._devices)

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="home-assistant", daemon=True)
        self._thread.start()

    def leave(self) -> None:
        """What is published stays: the broker's word `offline` says that nobody looks after it. Returns at once."""
        self._is_over.set()

    def stop(self, seconds: float = 0.2) -> None:
        """Wait for the end of a look."""
        self.leave()
        if self._thread is not None:
            self._thread.join(seconds)

    # --- The thread ---

    def _run(self) -> None:
        try:
            while not self._is_over.wait(LOOK_SECONDS):
                self.look()
        except Exception:  # our bug: the process has to end, and `has_failed` says so
            log.exception("a bug has ended the thread of the discovery")
            self.has_failed = True

    def look(self) -> None:
        """See what has changed, and say it, as far as one look may."""
        now, connection = self._clock.monotonic(), self._connection()
        self._take_evicted()
        if not connection:
            return
        if self._is_enabled:
            if connection != self._connected_by or self._is_born.is_set():
                self._is_born.clear()
                self._tell_anew()  # a broker that was away may have lost what it had retained
            if self._take_alarms() or now - self._scanned_at >= self._every_seconds:
                self._scanned_at = now
                self._scan(now)
                self._take_alarms()  # of those that are new
        self._connected_by = connection
        self._keep_all()  # first: what is published and not known would stay for ever
        for message in self._messages(now):
            if not self._publish(message):
                break  # no room: it is said at a later look
            self._metrics.add("publishes_total")
        self._keep_all()

    def _messages(self, now: float) -> Iterator[Outgoing]:
        """At most MOST_A_LOOK of what has to be said; that the next one is asked for means that this one was sent."""
        count = 0
        while self._removals and count < MOST_A_LOOK:
            for topic in (self._removals[0].config_topic, self._removals[0].state_topic):
                yield Outgoing(topic, b"", retain=True)
                count += 1
            self._removals.popleft()
            self._is_changed = True
        # An alarm does not wait behind the figures of others, nor the figures of one always behind those of another.
        for device in sorted(self._devices.values(), key=lambda each: (each.alarm is each.told_alarm, each.looked_at)):
            if count >= MOST_A_LOOK:
                return
            if not device.is_configured:
                yield discovery.config(
                    self._prefix, self._instance, self._version, device.name, list(device.series), device.gone
                )
                device.is_configured = True
                count += 1
            if not self._is_due(device, now):
                continue
            fields = {series_id(key): fields for key, fields in device.series.items()}
            message = discovery.state(self._instance, device.name, device.alarm, fields)
            will_expire = now - device.told_at >= STATE_SECONDS / 2
            if message.payload != device.told or will_expire:
                yield message
                count += 1
                device.told, device.told_at = message.payload, now
            device.told_alarm, device.looked_at = device.alarm, now

    def _is_due(self, device: _Device, now: float) -> bool:
        if device.told is None or (device.alarm is None) != (device.told_alarm is None):
            return True
        return now - device.looked_at >= self._every_seconds

    # --- What is to be said ---

    def _tell_anew(self) -> None:
        for device in self._devices.values():
            device.is_configured, device.told = False, None

    def _take_alarms(self) -> bool:
        """Which device is in which alarm; True if one has got one, or has it no more."""
        alarms = self._alarms()
        if alarms is self._seen_alarms:
            return False
        self._seen_alarms = alarms
        worst: dict[str, Alarm] = {}
        for alarm in alarms:
            is_joint = alarm.key.endswith("#*")
            name = alarm.key.removesuffix("#*") if is_joint else self._device_of(alarm.key)
            other = worst.get(name)
            if other is None or (alarm.score or 0.0) > (other.score or 0.0):
                worst[name] = alarm
        before = {name for name, device in self._devices.items() if device.alarm is not None}
        for name, device in self._devices.items():
            device.alarm = worst.get(name)
        return before != worst.keys() & self._devices.keys()

    def _scan(self, now: float) -> None:
        """Takes in the table of series: who is new, how all are, who has been quiet for too long."""
        table = self._table()
        if table is not None:
            keys = set(table.keys)
            left_out = sum(self._meet(key, now) for key in table.keys if key not in self._scanned)
            self._scanned = keys
            if left_out:
                self._sparing.event(
                    logging.WARNING, "Home Assistant is not told of all devices", per="limit", series_left_out=left_out,
                    advice="a larger home_assistant.max_devices, or home_assistant.include for those that matter",
                )  # fmt: skip
            self._read(table, now)
        for device in list(self._devices.values()):
            if device.alarm is not None:
                device.seen_at = now
            elif now - device.seen_at > self._idle_seconds:
                self._remove(device)

    def _meet(self, key: str, now: float) -> bool:
        """A series that was not in the last table; True if there is no room for its device."""
        if key in self._by_series or len(key) > MOST_KEY:
            return False
        name = self._device_of(key)
        device = self._devices.get(name)
        if device is None:
            if not self._is_included(name):
                return False
            if len(self._devices) >= self._max_devices:
                return True
            device = self._devices[name] = _Device(name, now)
            self._seen_alarms = None
        if len(device.series) < MOST_SERIES:
            self._join(device, key)
        return False

    def _join(self, device: _Device, key: str) -> None:
        device.series[key] = FieldState(key)
        device.gone = [ident for ident in device.gone if ident != series_id(key)]
        device.is_configured, device.told = False, None
        self._by_series[key] = device
        self._is_changed = True

    def _read(self, table: SeriesTable, now: float) -> None:
        """The figures of the series; those that have not reported of late have none."""
        rows = {key: row for row, key in enumerate(table.keys) if key in self._by_series}
        for key, device in self._by_series.items():
            row = rows.get(key)
            if row is None:
                device.series[key] = FieldState(key)
                continue
            device.seen_at = now
            device.series[key] = FieldState(
                key,
                score=_finite(table.score[row]),
                value=_finite(table.value[row]),
                expected=_finite(table.expected[row]),
                lower=_finite(table.lower[row]),
                upper=_finite(table.upper[row]),
            )

    # --- Who is no more ---

    def _take_evicted(self) -> None:
        while self._evicted:
            key = self._evicted.popleft()
            self._scanned.discard(key)
            device = self._by_series.pop(key, None)
            if device is None:
                continue
            del device.series[key]
            device.gone.append(series_id(key))
            device.gone = device.gone[-MOST_SERIES:]
            device.is_configured, device.told = False, None
            self._is_changed = True
            if not device.series:
                self._remove(device)

    def _remove(self, device: _Device) -> None:
        del self._devices[device.name]
        for key in device.series:
            del self._by_series[key]
        self._removals.append(self._kept(device))
        self._scanned.clear()  # somebody else may have its place
        self._is_changed = True

    # --- The file ---

    def _adopt(self, kept: Sequence[Kept]) -> None:
        """What the last run has published: it is ours, or it is taken back."""
        for each in kept:
            ours = config_topic(self._prefix, self._instance, each.device)
            is_wanted = self._is_enabled and self._is_included(each.device) and len(self._devices) < self._max_devices
            if is_wanted and each.config_topic == ours and each.device not in self._devices:
                device = self._devices[each.device] = _Device(each.device, self._clock.monotonic())
                for key in each.series[:MOST_SERIES]:
                    self._join(device, key)
            else:
                self._removals.append(each)
                self._is_changed = True
        if self._removals:
            event(log, logging.INFO, "devices are removed from Home Assistant", devices=len(self._removals))

    def _kept(self, device: _Device) -> Kept:
        return Kept(
            device.name,
            list(device.series),
            config_topic(self._prefix, self._instance, device.name),
            output_topic(self._instance, "device", device.name),
        )

    def _keep_all(self) -> None:
        """What Home Assistant knows, and what is to be taken back."""
        if not self._is_changed:
            return
        try:
            self._keep(msgspec.json.encode([*self._removals, *map(self._kept, self._devices.values())]))
            self._is_changed = False
        except OSError as error:
            self._sparing.event(
                logging.WARNING, "not written", per="file", file="home_assistant.json", reason=str(error)
            )


def has_published(kept: bytes | None) -> bool:
    """An earlier run has told Home Assistant of devices."""
    return bool(_decoded(kept))


def _decoded(kept: bytes | None) -> list[Kept]:
    """None if the file is not as we write it."""
    try:
        return msgspec.json.decode(kept or b"[]", type=list[Kept])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return []


def _finite(number: float) -> float | None:
    number = float(number)
    return number if abs(number) < float("inf") else None
