"""When Home Assistant is told, of whom, and what is taken back: looks by hand, a clock that is moved by hand."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatch
from typing import Any

import numpy as np
import pytest

from streamer.clock import ManualClock
from streamer.exposition import SeriesTable
from streamer.metrics import Metrics
from streamer.outbox import STATE_SECONDS, Outgoing
from streamer.readings import Alarm
from streamer.registry import topic_of
from streamer.sinks import discovery
from streamer.sinks.home_assistant import LOOK_SECONDS, MOST_A_LOOK, MOST_SERIES, HomeAssistant, has_published
from tests import schemas
from tests.test_outbox import ALARM
from tests.waiting import wait_until

EVERY, IDLE = 10.0, 48 * 3600.0


class Site:
    """Series and alarms as an engine shows them, and a broker that retains what it is given."""

    def __init__(self, **options: Any) -> None:
        self.clock = ManualClock(1_790_000_000.0)
        self.values: dict[str, float] = {}
        """by series key"""
        self.alarms: list[Alarm] = []
        self.connection = 1
        self.room = 10**9
        self.is_full = False
        """the disk"""
        self.published: list[Outgoing] = []
        self.retained: dict[str, bytes] = {}
        self.kept: bytes | None = None
        self.metrics = Metrics("0", 0.0, {"messages_rejected_total": ["x"], "readings_rejected_total": ["x"]})
        self.sink = self.new(**options)

    def new(self, **options: Any) -> HomeAssistant:
        """The sink of another run on what the last one has left."""
        used: dict[str, Any] = {
            "is_enabled": True, "prefix": "homeassistant", "is_included": lambda _: True, "max_devices": 100,
        } | options  # fmt: skip
        self.sink = HomeAssistant(
            instance="gate", version="1.2", every_seconds=EVERY, idle_seconds=IDLE, device_of=topic_of,
            table=self.table, alarms=lambda: self.alarms, connection=lambda: self.connection,
            publish=self.publish, kept=self.kept, keep=self.keep, metrics=self.metrics, clock=self.clock, **used,
        )  # fmt: skip
        return self.sink

    def keep(self, content: bytes) -> None:
        if self.is_full:
            raise OSError(28, "No space left on device")
        self.kept = content

    def table(self) -> SeriesTable:
        values = np.array(list(self.values.values()), float)
        return SeriesTable(list(self.values), values / 100, values, values + 1, values - 5, values + 5)

    def publish(self, message: Outgoing) -> bool:
        if len(self.published) >= self.room:
            return False
        self.published.append(message)
        if message.payload and message.topic.endswith("/config") and not self.is_full:
            assert message.topic in (self.kept or b"").decode()  # killed now, the next run could take it back
        assert schemas.complaints(message.topic, message.payload) == []
        if message.payload:
            self.retained[message.topic] = message.payload
        else:
            self.retained.pop(message.topic, None)
        return True

    def look(self, seconds: float = LOOK_SECONDS) -> list[Outgoing]:
        """What is said at a look, so much later than the last one."""
        self.clock.advance(seconds)
        before = len(self.published)
        self.sink.look()
        return self.published[before:]

    def state(self, device: str) -> Any:
        return json.loads(self.retained[f"streamer/gate/device/{device}"])

    def config(self, device: str) -> Any:
        return json.loads(self.retained[discovery.config_topic("homeassistant", "gate", device)])

    def devices(self) -> set[str]:
        """Those that Home Assistant knows."""
        return {json.loads(p)["device"]["name"] for t, p in self.retained.items() if t.endswith("/config")}


def kinds(messages: Sequence[Outgoing]) -> Counter[str]:
    return Counter(
        ("config" if "/config" in m.topic else "state") + ("" if m.payload else " taken back") for m in messages
    )


# --- What is told, and when ---


def test_a_device_is_told_with_all_that_it_has() -> None:
    """Config, then state; each field has its figures, the device the highest score."""
    site = Site()
    site.values = {"oven#temp": 20.0, "oven#power": 90.0, "x": 1.0}
    assert kinds(site.look()) == {"config": 2, "state": 2}
    assert [m.topic for m in site.published][:2] == [
        discovery.config_topic("homeassistant", "gate", "oven"), "streamer/gate/device/oven",
    ]  # fmt: skip
    found = site.state("oven")
    assert (found["device"], found["problem"], found["score"], found["alarm"]) == ("oven", False, 0.9, None)
    assert found["series"][discovery.series_id("oven#temp")] == {
        "key": "oven#temp", "score": 0.2, "value": 20.0, "expected": 21.0, "lower": 15.0, "upper": 25.0,
    }  # fmt: skip
    assert len(site.config("oven")["components"]) == 4
    assert site.sink.devices() == 2
    assert site.metrics.total("publishes_total") == 4


def test_figures_are_told_when_they_have_changed_and_no_more_often_than_that() -> None:
    """Nothing new costs nothing."""
    site = Site()
    site.values = {"oven": 20.0}
    site.look()
    for _ in range(9):
        site.values["oven"] += 1
        assert site.look() == []
    assert kinds(site.look()) == {"state": 1}
    assert site.state("oven")["score"] == 0.29
    assert [m for _ in range(25) for m in site.look()] == []


def test_an_alarm_is_told_at_once_with_fresh_figures_and_so_is_its_end() -> None:
    """Whatever has been told a second before."""
    site = Site()
    site.values = {"plant/oven#temp.core": 20.0, "plant/y": 1.0}
    site.look()
    site.values["plant/oven#temp.core"] = 90.0
    site.alarms = [ALARM]
    assert kinds(site.look()) == {"state": 1}
    found = site.state("plant/oven")
    assert found["problem"]
    assert found["alarm"]["id"] == ALARM.id
    assert found["series"][discovery.series_id("plant/oven#temp.core")]["value"] == 90.0
    assert site.look() == []
    site.alarms = []
    assert kinds(site.look()) == {"state": 1}
    assert (site.state("plant/oven")["problem"], site.state("plant/oven")["alarm"]) == (False, None)
    assert not site.state("plant/y")["problem"]


def test_of_several_alarms_the_worst_is_named() -> None:
    """A device that is silent as a whole has its alarm under the joint key."""
    site = Site()
    site.values = {"oven#temp": 20.0}
    silent = Alarm("a" * 16, "silent", "oven#*", 1e9, 1e9)
    mild, grave = (replace(ALARM, id=str(n) * 16, key="oven#temp", score=float(n)) for n in (1, 2))
    for alarms in ([silent], [silent, mild], [mild, grave, silent]):
        site.alarms = list(alarms)
        site.look(EVERY)
        assert site.state("oven")["alarm"]["id"] == max(alarms, key=lambda each: each.score or 0.0).id


def test_a_device_that_comes_in_alarm_says_so_from_the_start() -> None:
    """Its first state is its true one."""
    site = Site()
    site.alarms = [replace(ALARM, key="oven")]
    site.values = {"oven": 20.0}
    assert kinds(site.look()) == {"config": 1, "state": 1}
    assert site.state("oven")["problem"]


def test_a_series_that_has_not_reported_of_late_has_no_figures() -> None:
    """Nobody takes yesterday's forecast for today's."""
    site = Site()
    site.values = {"oven#temp": 20.0, "oven#power": 90.0}
    site.look()
    del site.values["oven#power"]
    site.look(EVERY)
    assert site.state("oven")["series"][discovery.series_id("oven#power")]["value"] is None
    assert site.state("oven")["score"] == 0.2
    assert len(site.config("oven")["components"]) == 4


def test_a_new_field_is_shown_and_of_very_many_the_first() -> None:
    """A table of a thousand numbers is no device that a person looks at."""
    site = Site()
    site.values = {"oven#a": 1.0}
    site.look()
    site.values["oven#b"] = 2.0
    assert kinds(site.look(EVERY)) == {"config": 1, "state": 1}
    assert len(site.config("oven")["components"]) == 4
    site.values |= {f"oven#{number}": 1.0 for number in range(1000)}
    site.look(EVERY)
    assert len(site.config("oven")["components"]) == 2 + MOST_SERIES
    assert len(site.state("oven")["series"]) == MOST_SERIES


def test_what_has_not_changed_is_told_again_before_it_expires() -> None:
    """MQTT 5 lets the broker forget it."""
    site = Site()
    site.values = {"oven": 20.0}
    site.look()
    assert site.look(STATE_SECONDS / 2 - 10) == []
    assert kinds(site.look(10)) == {"state": 1}
    assert site.look(STATE_SECONDS / 2 - 10) == []


@pytest.mark.parametrize("why", ["birth", "reconnect"])
def test_all_is_told_again_to_whoever_has_forgotten(why: str) -> None:
    """Home Assistant was started, or the broker, without what it had retained."""
    site = Site()
    site.values = {"oven": 20.0, "x": 1.0}
    site.look()
    assert site.look() == []
    if why == "birth":
        site.sink.born()
        site.sink.born()
    else:
        site.connection = 2
    assert kinds(site.look()) == {"config": 2, "state": 2}
    assert site.look() == []


def test_without_a_broker_nothing_waits() -> None:
    """What is true when it is back is told then."""
    site = Site()
    site.connection = 0
    site.values = {"oven": 20.0}
    site.alarms = [replace(ALARM, key="oven")]
    assert [m for _ in range(30) for m in site.look()] == []
    site.connection = 1
    assert kinds(site.look()) == {"config": 1, "state": 1}
    assert site.state("oven")["problem"]


def test_what_found_no_room_is_told_later() -> None:
    """The link's queue is full; nothing is forgotten over it."""
    site = Site()
    site.values = {"oven": 20.0, "x": 1.0}
    site.room = 1
    site.look()
    assert site.metrics.total("publishes_total") == 1
    assert site.metrics.total("publishes_dropped_total") == 0  # nothing is lost
    site.room = 10**9
    site.look()
    assert site.devices() == {"oven", "x"}
    assert site.state("x")["score"] == 0.01


# --- The flood ---


def test_ten_thousand_series_do_not_flood_the_broker(caplog: pytest.LogCaptureFixture) -> None:
    """A hundred devices, at most a hundred messages a second; the log says once that not all are shown."""
    site = Site()
    site.values = {f"site/{number // 2}#{number % 2}": 1.0 for number in range(10_000)}
    most = max(len(site.look()) for _ in range(100))
    assert most <= MOST_A_LOOK + 1
    assert len(site.devices()) == 100
    assert kinds(site.published) == {"config": 100, "state": 100}
    (record,) = (record for record in caplog.records if "not told of all" in record.message)
    assert record.__dict__["fields"]["series_left_out"] == 9_800
    for _ in range(60):
        site.values = {key: value + 1.0 for key, value in site.values.items()}
        site.look()
    assert len(site.published) <= 200 + 100 * 7


def test_many_devices_have_their_turn_and_alarms_go_first() -> None:
    """More than can be told in time: each is told in the end, none always before another."""
    site = Site(max_devices=1000)
    site.values = {f"site/{number}": float(number) for number in range(1000)}
    for _ in range(25):
        site.look()
    assert len(site.devices()) == 1000
    before = len(site.published)
    for _ in range(25):
        site.values = {key: value + 1.0 for key, value in site.values.items()}
        site.look()
    told = Counter(message.topic for message in site.published[before:])
    assert len(told) == 1000
    assert max(told.values()) <= 3
    site.values = {key: value + 1.0 for key, value in site.values.items()}
    site.alarms = [replace(ALARM, key="site/777")]
    assert site.look(EVERY)[0].topic == "streamer/gate/device/site/777"


def test_only_what_is_included_is_told() -> None:
    """It takes no room either."""
    site = Site(is_included=lambda name: fnmatch(name, "plant/*"), max_devices=1)
    site.values = {"lab/a": 1.0, "plant/a": 1.0, "lab/b": 1.0}
    site.look()
    assert site.devices() == {"plant/a"}


# --- What is taken back ---


def test_a_device_that_is_forgotten_is_removed_and_its_place_is_free() -> None:
    """The config and the state are taken back; the next device has its place."""
    site = Site(max_devices=1)
    site.values = {"oven#temp": 20.0, "x": 1.0}
    site.look()
    assert site.devices() == {"oven"}
    del site.values["oven#temp"]
    site.sink.forget(["oven#temp", "never seen"])
    assert kinds(site.look()) == {"config taken back": 1, "state taken back": 1}
    assert site.retained == {}
    site.look(EVERY)
    assert site.devices() == {"x"}
    assert [each["device"] for each in json.loads(site.kept or b"")] == ["x"]


def test_a_series_that_is_forgotten_leaves_its_device_as_it_is() -> None:
    """Only its own sensor is removed; and shown again if it comes back."""
    site = Site()
    site.values = {"oven#a": 1.0, "oven#b": 2.0}
    site.look()
    name = f"{discovery.series_id('oven#b')}_expected"
    del site.values["oven#b"]
    site.sink.forget(["oven#b"])
    site.look()
    assert site.config("oven")["components"][name] == {"platform": "sensor"}
    assert list(site.state("oven")["series"]) == [discovery.series_id("oven#a")]
    site.values["oven#b"] = 2.0
    site.look(EVERY)
    assert len(site.config("oven")["components"][name]) > 1


def test_a_device_that_has_been_quiet_for_days_is_removed_unless_it_is_in_alarm() -> None:
    """Left out by the settings, or gone for good; a dead sensor stays for as long as its alarm does."""
    site = Site()
    site.values = {"a": 1.0, "b": 1.0}
    site.look()
    site.values = {}
    site.alarms = [Alarm("a" * 16, "silent", "a", 1e9, 1e9)]
    site.look(IDLE - 10)
    assert site.devices() == {"a", "b"}
    site.look(20)
    assert site.devices() == {"a"}
    site.alarms = []
    site.look(IDLE - 100)
    assert site.devices() == {"a"}
    site.look(200)
    assert site.devices() == set()


# --- Over restarts ---


def test_the_next_run_goes_on_with_the_devices_of_the_last() -> None:
    """Also with those that have not reported yet; with their fields."""
    site = Site()
    site.values = {"oven#a": 1.0, "oven#b": 2.0, "x": 1.0}
    site.look()
    before = dict(site.retained)
    site.values = {}
    site.retained = {}
    site.new()
    site.look()
    assert site.retained.keys() == before.keys()
    assert {t: p for t, p in site.retained.items() if t.endswith("config")} == {
        t: p for t, p in before.items() if t.endswith("config")
    }
    assert site.state("oven")["score"] is None


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ({"is_enabled": False}, set()),
        ({"is_included": lambda name: name == "x"}, {"x"}),
        ({"max_devices": 1}, {"oven"}),
        ({"prefix": "other"}, set()),
    ],
)  # fmt: skip
def test_what_the_settings_no_longer_want_is_taken_back(options: dict[str, Any], left: set[str]) -> None:
    """Switched off, left out, beyond the limit, or told to another prefix; and by then the file says so."""
    site = Site()
    site.values = {"oven": 20.0, "x": 1.0}
    site.look()
    site.new(**options)
    site.look()
    at_old_prefix = {
        json.loads(p)["device"]["name"] for t, p in site.retained.items() if t.startswith("homeassistant/")
    }
    assert at_old_prefix == left
    assert has_published(site.kept) == (options.get("is_enabled", True))
    if not options.get("is_enabled", True):
        assert site.retained == {}
        assert site.look() == []


def test_what_could_not_be_taken_back_is_tried_again_by_the_next_run() -> None:
    """Switched off while the broker is away, and the daemon is killed."""
    site = Site()
    site.values = {"oven": 20.0}
    site.look()
    site.connection = 0
    site.new(is_enabled=False)
    site.look()
    site.new(is_enabled=False)
    site.connection = 1
    site.look()
    assert site.retained == {}


def test_the_file_knows_a_device_before_the_broker_does() -> None:
    """Killed in between, the next run can still take it back."""
    site = Site()
    site.room = 0
    site.values = {"oven": 20.0}
    site.look()
    assert site.published == []
    assert has_published(site.kept)


@pytest.mark.parametrize("kept", [None, b"", b"{", b'[{"device": 5}]', b"\xff", b"[" * 100_000])
def test_a_file_that_is_not_ours_is_no_device(kept: bytes | None) -> None:
    """The start goes on without it."""
    site = Site()
    site.kept = kept
    assert site.new().devices() == 0
    assert not has_published(kept)


def test_a_full_disk_keeps_nobody_from_being_told(caplog: pytest.LogCaptureFixture) -> None:
    """It is logged; only what is to be taken back after a kill would not be known."""
    site = Site()
    site.is_full = True
    site.values = {"oven": 20.0}
    site.look()
    assert site.devices() == {"oven"}
    assert any(record.message == "not written" for record in caplog.records)


# --- Hostile names; the thread ---


@pytest.mark.parametrize("name", ["<script>", "a" * 900, "{{ 1/0 }}", "x/../y", "+/#", "\0", "\u202e"])
def test_a_hostile_name_is_a_device_like_any_other(name: str) -> None:
    """Escaped in the topic, cut and harmless where it is shown, gone when it is gone."""
    site = Site()
    site.values = {name.partition("#")[0]: 1.0, f"plant#{name}": 1.0}
    site.look()
    assert len(site.retained) == 4
    site.sink.forget(list(site.values))
    site.values = {}
    site.look()
    assert site.retained == {}


def test_a_name_that_is_too_long_for_a_sensor_is_not_shown() -> None:
    """A topic may have 64 KiB: a hundred such devices would fill the broker's queue and the state directory."""
    site = Site()
    site.values = {"a" * 65_000: 1.0, f"oven#{'b' * 1000}": 1.0, "oven#c": 1.0}
    site.look()
    assert site.devices() == {"oven"}
    assert len(site.config("oven")["components"]) == 3
    assert len(site.kept or b"") < 1000
    site.sink.forget(list(site.values))
    site.look()
    assert site.retained == {}


def test_it_looks_by_itself_and_ends_when_it_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """In a thread of its own; a bug in it is not swallowed."""
    site = Site()
    site.values = {"oven": 20.0}
    site.sink.start()
    wait_until(lambda: site.devices() == {"oven"}, 10, "the device")
    site.sink.stop(5.0)
    assert not any(thread.name == "home-assistant" for thread in threading.enumerate())
    other = Site()
    other.sink._connection = lambda: 1 // 0
    other.sink.start()
    wait_until(lambda: other.sink.has_failed, 10, "the failure")
    assert "ZeroDivisionError" in caplog.text
