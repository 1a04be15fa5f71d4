"""The engine, turned by hand: every message and reading has one fate, alarms are told, settings change in between."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Literal

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.weights import ForecasterConfig, Weights
from streamer.clock import STALE_SECONDS, ManualClock
from streamer.engine import (
    FIRST_BATCH,
    IDLE_SECONDS,
    MAX_BATCH,
    MOST_CLOSED,
    STUCK_SECONDS,
    TURN_SECONDS,
    Adjustment,
    Engine,
)
from streamer.inbox import Inbox
from streamer.intake import MESSAGE_REJECTIONS, READING_REJECTIONS
from streamer.metrics import Metrics
from streamer.orders import COMMANDS_A_SECOND, MOST_WAITING
from streamer.outbox import Outgoing
from streamer.payloads import Decoder, Rejection
from streamer.readings import LARGEST_VALUE, Alarm, Batch, Float64, Message
from streamer.registry import Registry
from streamer.requests import MOST_BYTES, MarkNormal, Pause, Result, Resume
from streamer.shard import Outcome, Shard, State
from tests import scrapes
from tests.scrapes import Numbers, total
from tests.streams import START, noise, random_weights, shipped_weights
from tests.waiting import wait_until

SMALL = random_weights(ForecasterConfig(input_size=18, hidden_size=4))
"""where only the counting matters"""


class Bench:
    """An engine with real parts, and both ends of it in the test's hands."""

    def __init__(
        self,
        *,
        weights: Weights = SMALL,
        max_series: int = 20,
        burst: float = 1e9,
        inbox_bytes: int = 10**9,
        publish_series: Literal["alarm", "all", "off"] = "alarm",
        silent: bool = True,
        snapshot_seconds: float = 300.0,
        exclude: tuple[str, ...] = (),
        room: int = 10**9,
        start: float = START,
        lateness_seconds: float = 0.0,
    ) -> None:
        self.clock = ManualClock(start)
        self.inbox = Inbox(inbox_bytes)
        self.metrics = Metrics(
            "0",
            START,
            {
                "messages_rejected_total": [*(reason.value for reason in Rejection), *MESSAGE_REJECTIONS],
                "readings_rejected_total": [*(reason.value for reason in Rejection), *READING_REJECTIONS],
            },
            self.clock.monotonic,
        )
        self.metrics.measured("messages_queued", self.inbox.queued)
        self.decoder = Decoder(own_prefix="streamer/gate/", exclude=exclude, max_fields=8)
        self.shard = Shard(
            Registry(max_series, burst, burst, self.decoder.device),
            weights,
            max_series,
            budget_per_series_month=1.0,
            lateness_seconds=lateness_seconds,
        )
        self.published: list[Outgoing] = []
        self.acknowledged: list[Message] = []
        self.saves = 0
        self.remembered: list[Alarm] = []
        self.times_remembered = 0
        self.handed_on: list[tuple[str, Alarm, bytes]] = []
        self.overheard: list[Message] = []
        self.forgotten: list[str] = []
        self.is_hearing = True
        self.connection = 1
        self.room = room
        self.seconds_per_message = 0.0
        """how long the engine takes by the manual clock"""
        self.batches: list[int] = []
        self.engine = Engine(
            instance="gate",
            shard=self.shard,
            decoder=self.decoder,
            inbox=self.inbox,
            metrics=self.metrics,
            clock=self.clock,
            publish=self.publish,
            acknowledge=self.acknowledge,
            hearing=lambda: self.connection if self.is_hearing else 0,
            save=self.save,
            remember=self.remember,
            snapshot_seconds=snapshot_seconds,
            silent=silent,
            publish_series=publish_series,
            takes_commands=True,
            hand_on=lambda what, alarm, payload: self.handed_on.append((what, alarm, payload)),
            listeners={"private/birth": self.overheard.append},
            forgotten=self.forgotten.extend,
        )
        self.metrics.watch_series(lambda: self.engine.table)

    def publish(self, message: Outgoing) -> bool:
        if len(self.published) >= self.room:
            return False
        self.published.append(message)
        return True

    def acknowledge(self, messages: Sequence[Message]) -> None:
        self.acknowledged += messages
        self.batches.append(len(messages))
        self.clock.advance(self.seconds_per_message * len(messages))

    def save(self, shard: Shard) -> Iterator[None]:
        assert shard is self.shard
        self.saves += 1
        return iter(())

    def remember(self, alarms: list[Alarm]) -> None:
        self.remembered = alarms
        self.times_remembered += 1

    def receive(self, *messages: Message) -> None:
        """As the network thread does."""
        with self.metrics.lock:
            self.metrics.received(len(messages), sum(len(message.payload) for message in messages))
            refused = self.inbox.put(list(messages))
            if refused:
                self.metrics.dropped("inbox_full", len(refused))

    def turn(self, *messages: Message) -> None:
        """One turn of everything that waits."""
        self.receive(*messages)
        self.engine.turn(self.inbox.take(MAX_BATCH, 0))

    def say(self, topic: str, payload: str | bytes | float, *, retain: bool = False) -> Message:
        raw = payload if isinstance(payload, bytes) else str(payload).encode()
        return Message(topic, raw, 1, 1, retain, self.clock.now())

    def report(self, topic: str, values: Sequence[float], *, every: float = 60.0) -> None:
        """A turn for each value, in time."""
        for value in values:
            self.clock.advance(every)
            self.turn(self.say(topic, value))

    def numbers(self) -> Numbers:
        return scrapes.parse(self.metrics.render("")[0].decode())

    def events(self) -> list[dict[str, object]]:
        """What was said of alarms, oldest first."""
        return [json.loads(message.payload) for message in self.published if "/alarm/" in message.topic]

    def results(self) -> list[Result]:
        """What was said of commands by MQTT, oldest first."""
        said = [each.payload for each in self.published if each.topic == "streamer/gate/command/result"]
        return [msgspec.json.decode(payload, type=Result) for payload in said]

    def states(self, topic: str) -> list[bytes]:
        """The retained states of a series, oldest first."""
        return [message.payload for message in self.published if message.topic == f"streamer/gate/series/{topic}"]


# --- Every message and every reading has one fate ---

TOPICS = st.sampled_from(
    ["plant/a", "plant/b", "plant/c", "plant/d", "private/x", "streamer/gate/alarm/plant/a", "streamer/other/series/y"]
)
NUMBERS = st.one_of(
    st.floats(-100, 100), st.sampled_from([1e31, -1e305, 0.0]), st.sampled_from([float("nan"), float("inf")])
)
TIMES = st.one_of(st.integers(-5000, 200), st.just(10_000)).map(lambda seconds: START + seconds)
OBJECTS = st.dictionaries(st.sampled_from("abcdefghijkl"), st.one_of(NUMBERS, st.just("on"), st.none()), max_size=10)
PAYLOADS = st.one_of(
    NUMBERS.map(lambda number: str(number).encode()),
    OBJECTS.map(lambda document: json.dumps(document).encode()),
    st.tuples(TIMES, OBJECTS).map(lambda pair: json.dumps(pair[1] | {"time": pair[0]}).encode()),
    st.tuples(TIMES, NUMBERS).map(lambda pair: json.dumps([{"time": pair[0], "value": pair[1]}] * 2).encode()),
    st.binary(max_size=20),
)


@given(
    st.lists(st.lists(st.tuples(TOPICS, PAYLOADS, st.booleans()), max_size=12), min_size=1, max_size=8),
    st.sampled_from([0.0, 5.0, 2000.0]),
)
@settings(max_examples=100, deadline=None)
def test_both_identities_hold_after_every_turn_whatever_came(
    turns: list[list[tuple[str, bytes, bool]]], lateness_seconds: float
) -> None:
    """Garbage, retained and own messages, future and late times, wild numbers, refused series, a full inbox; readings
    that wait for earlier ones.
    """
    bench = Bench(max_series=6, burst=4.0, inbox_bytes=3000, exclude=("private/**",), lateness_seconds=lateness_seconds)
    received = 0
    for number, messages in enumerate(turns):
        received += len(messages)
        bench.clock.advance(7.0)
        bench.receive(*(bench.say(topic, payload, retain=retain) for topic, payload, retain in messages))
        numbers = bench.numbers()  # raises if an identity does not hold, here with messages that wait
        if number % 3 != 1:  # now and then several deliveries meet in one turn
            bench.turn()
            numbers = bench.numbers()
            assert numbers["messages_queued", ""] == 0
        assert numbers["messages_received_total", ""] == received
    bench.turn()
    numbers = bench.numbers()
    assert len(bench.acknowledged) == received - numbers["messages_dropped_total", "inbox_full"]
    refused = [numbers["readings_rejected_total", f"admission_{why}"] for why in ("rate", "full")]
    assert sum(refused) == total(numbers, "series_refused_total")
    assert len(bench.shard.registry) <= 6
    bench.clock.advance(lateness_seconds)
    bench.turn()
    assert bench.numbers()["readings_pending", ""] == 0


def test_what_waits_for_earlier_readings_is_pending_and_goes_on_by_itself() -> None:
    """After the allowance, at the next look; its message is acknowledged long before, and it is heard from at once."""
    bench = Bench(lateness_seconds=5.0)
    came = bench.clock.now()
    for late in (2.0, 0.5, 1.0):
        bench.turn(bench.say("plant/a", json.dumps({"time": came - late, "value": 20.0})))
    assert len(bench.acknowledged) == 3
    numbers = bench.numbers()
    assert numbers["readings_decoded_total", ""] == numbers["readings_pending", ""] == 3
    bench.clock.advance(4.9)
    bench.turn()
    assert bench.numbers()["readings_pending", ""] == 3
    bench.clock.advance(1.0)
    bench.turn()
    numbers = bench.numbers()
    assert numbers["readings_pending", ""] == 0
    assert numbers["readings_unscored_total", "warming"] == 3
    assert numbers["turns_total", ""] == 3
    assert bench.shard.cadence.arrival(1).tolist() == [came]


def test_who_may_still_be_in_the_inbox_is_waited_for() -> None:
    """An engine that lags judges by the arrivals that it has seen."""
    bench = Bench(lateness_seconds=5.0)
    say = bench.say
    came = bench.clock.now()
    bench.turn(say("plant/a", json.dumps({"time": came, "value": 20.0})))
    bench.receive(say("plant/a", json.dumps({"time": came - 1.0, "value": 20.0})))
    bench.clock.advance(60.0)
    bench.engine.turn([])
    assert bench.numbers()["readings_pending", ""] == 1
    bench.turn()
    bench.clock.advance(1.0)
    bench.turn()
    assert bench.numbers()["readings_unscored_total", "warming"] == 2


def test_alarms_of_readings_that_have_waited_are_told_and_counted() -> None:
    """By a look, without another message; the latency has the wait in it."""
    bench = Bench(weights=shipped_weights(), lateness_seconds=5.0)
    for value in [*noise(300).tolist(), 500.0]:
        bench.clock.advance(60.0)
        bench.turn(bench.say("oven", json.dumps({"time": bench.clock.now(), "value": value})))
    assert not bench.events()
    bench.clock.advance(6.0)
    bench.turn()
    assert [event["event"] for event in bench.events()] == ["opened"]
    numbers = bench.numbers()
    assert numbers["alarms_opened_total", "value"] == 1
    assert numbers["scored_latency_seconds_sum", ""] >= 5.0 * numbers["readings_scored_total", ""]


def test_each_fate_is_counted_by_its_name() -> None:
    """One message of each kind."""
    bench = Bench(exclude=("private/**",), max_series=2)
    bench.turn(
        bench.say("plant/a", 1.0),
        bench.say("plant/a", 1.0, retain=True),
        bench.say("private/a", 1.0),
        bench.say("streamer/gate/alarm/plant/a", 1.0),
        bench.say("plant/a", b"\xff"),
        bench.say("plant/a", ""),
        bench.say("plant/b", json.dumps({"time": START + 301, "x": 1})),
        bench.say("plant/b", 2e30),
        bench.say("plant/c", json.dumps({"x": 1, "y": 2})),
    )
    numbers = bench.numbers()
    expected = {
        ("messages_received_total", ""): 9,
        ("messages_decoded_total", ""): 4,
        ("messages_retained_total", ""): 1,
        ("messages_ignored_total", ""): 2,
        ("messages_rejected_total", "bad_utf8"): 1,
        ("messages_rejected_total", "empty"): 1,
        ("readings_decoded_total", ""): 5,
        ("readings_unscored_total", "warming"): 2,
        ("readings_rejected_total", "future"): 1,
        ("readings_rejected_total", "out_of_range"): 1,
        ("readings_rejected_total", "admission_full"): 1,
        ("series_refused_total", "full"): 1,
        ("turns_total", ""): 1,
        ("series", ""): 2,
    }
    assert {name: numbers[name] for name in expected} == expected


def test_who_is_in_charge_is_counted() -> None:
    """Each series once: a cycle that the LSTM sees coming, and one that is too young."""
    bench = Bench(weights=shipped_weights())
    bench.report("cycle", (20 + 5 * np.sin(2 * np.pi * np.arange(200) / 40)).tolist())
    bench.report("young", noise(5).tolist())
    numbers = bench.numbers()
    assert (numbers["forecaster_in_charge", "lstm"], numbers["forecaster_in_charge", "baseline"]) == (1, 1)


def test_a_reading_that_is_refused_founds_no_series() -> None:
    """Neither a future time nor a number beyond all measure takes a slot."""
    bench = Bench()
    bench.turn(
        bench.say("a", json.dumps({"time": START + 400, "x": 1})),
        bench.say("b", 10 * LARGEST_VALUE),
        bench.say("c", json.dumps({"time": START + 299, "x": 1})),
        bench.say("d", LARGEST_VALUE),
    )
    assert [bench.shard.registry.key(slot) for slot in range(len(bench.shard.registry))] == ["c#x", "d"]


def test_numbers_of_a_message_that_cannot_be_are_counted_beside_those_that_can() -> None:
    """A message that is partly readable is decoded."""
    bench = Bench()
    bench.turn(bench.say("a", '{"x": 1, "y": 1e999, "z": 3}'))
    numbers = bench.numbers()
    assert numbers["messages_decoded_total", ""] == 1
    assert numbers["readings_decoded_total", ""] == 3
    assert numbers["readings_rejected_total", "not_finite"] == 1
    assert numbers["readings_unscored_total", "warming"] == 2


def test_refused_series_do_not_hold_up_those_that_are_known() -> None:
    """A flood of new topics in the same turn: the known one is scored to the end."""
    bench = Bench(max_series=3)
    bench.report("known", noise(40).tolist())
    for flood in range(10):
        bench.clock.advance(60)
        bench.turn(*(bench.say(f"flood/{flood}/{k}", 1.0) for k in range(50)), bench.say("known", 20.0))
    numbers = bench.numbers()
    assert numbers["readings_scored_total", ""] == 40 - 20 + 10
    assert numbers["series_refused_total", "full"] == 10 * 50 - 2
    assert numbers["series", ""] == 3


def test_messages_are_acknowledged_when_their_readings_have_been_taken() -> None:
    """In the same turn and in their order, the rejected ones too: nobody else will read them."""
    bench = Bench()
    messages = [bench.say("a", 1.0), bench.say("b", b"\xff"), bench.say("c", 2.0, retain=True)]
    bench.turn(*messages)
    assert bench.acknowledged == messages
    assert bench.shard.cadence.arrival(1).tolist() == [START]


def test_a_turn_without_messages_is_no_turn_of_the_counters() -> None:
    """Idle turns make progress, and nothing else."""
    bench = Bench()
    for _ in range(5):
        bench.clock.advance(1.0)
        bench.turn()
    assert bench.numbers()["turns_total", ""] == 0
    assert bench.numbers()["last_progress_timestamp_seconds", ""] == START + 5
    assert bench.engine.trouble() is None


# --- Who else is told ---


def test_each_event_is_handed_on_as_it_is_published() -> None:
    """In their order, with the alarm: opened, updated, closed; nothing that is not published."""
    bench = Bench(weights=shipped_weights())
    bench.report("oven", [*noise(60).tolist(), 60.0, 90.0, 300.0, *noise(60, 1).tolist()])
    published = [message.payload for message in bench.published if "/alarm/" in message.topic]
    assert [payload for _, _, payload in bench.handed_on] == published
    told = [what for what, _, _ in bench.handed_on]
    assert (told[0], told[-1], set(told[1:-1])) == ("opened", "closed", {"updated"})
    updates = [alarm.readings for what, alarm, _ in bench.handed_on if what == "updated"]
    assert len(set(updates)) == len(updates)  # by which a receiver tells them apart
    assert len({alarm.id for _, alarm, _ in bench.handed_on}) == 1


def test_a_topic_that_is_no_sensor_can_be_listened_to() -> None:
    """Retained or not; it is counted as what it is, and becomes no series."""
    bench = Bench(exclude=("private/**",))
    bench.turn(bench.say("private/birth", "online"), bench.say("private/other", "1"), bench.say("plant/a", "1"))
    bench.turn(bench.say("private/birth", "online", retain=True))
    assert [(m.payload, m.retain) for m in bench.overheard] == [(b"online", False), (b"online", True)]
    assert bench.numbers()["messages_ignored_total", ""] == 3
    assert len(bench.shard.registry) == 1


# --- Idle series make room ---


def test_idle_series_make_room_and_what_reports_stays() -> None:
    """A new series is refused, counted, and let in after the next look; nothing of the old one is left."""
    bench = Bench(max_series=3, publish_series="all")
    bench.report("busy", [1.0] * 3)
    bench.turn(bench.say("gone/b", 2.0), bench.say("gone/a", 1.0))
    bench.clock.advance(IDLE_SECONDS - 3600)
    bench.turn(bench.say("busy", 1.0), bench.say("new", 1.0))
    bench.clock.advance(3600)
    bench.turn(bench.say("busy", 1.0))
    assert bench.numbers()["series_evicted_total", ""] == 0  # it has been idle for long enough, but nobody wants in
    for _ in range(2):
        bench.clock.advance(1)
        bench.turn(bench.say("busy", 1.0), bench.say("new", 1.0))
    registry = bench.shard.registry
    assert ("gone/b" in registry, "gone/a" in registry, "busy" in registry, "new" in registry) == (
        False,
        True,
        True,
        True,
    )
    numbers = bench.numbers()
    assert (numbers["series_evicted_total", ""], numbers["series_refused_total", "full"]) == (1, 2)
    assert numbers["series", ""] == 3
    assert bench.states("gone/b")[-1] == b""
    assert bench.forgotten == ["gone/b"]
    assert bench.engine.table is not None
    assert bench.engine.table.keys == ["busy", "new"]


def test_a_flood_evicts_nobody_who_reports_and_the_others_no_faster_than_it_is_let_in() -> None:
    """A thousand made-up topics a second: the known series that report stay, and have their verdicts."""
    bench = Bench(max_series=20, burst=6.0)  # a minute, and at once
    for k in range(4):
        bench.clock.advance(60)
        bench.turn(*(bench.say(f"known/{n}", k) for n in range(5)))
    for k in range(2):
        bench.clock.advance(60)
        bench.turn(*(bench.say(f"idle/{k}/{n}", 1.0) for n in range(6)))
    bench.clock.advance(60)
    bench.turn(*(bench.say(f"idle/2/{n}", 1.0) for n in range(3)))
    assert len(bench.shard.registry) == 20
    for _ in range(50):
        bench.clock.advance(3600)
        bench.turn(*(bench.say(f"known/{n}", 1.0) for n in range(5)))
    for second in range(60):
        bench.clock.advance(1)
        bench.turn(*(bench.say(f"flood/{second}/{n}", 1.0) for n in range(1000)))
    numbers = bench.numbers()
    assert [f"known/{n}" in bench.shard.registry for n in range(5)] == [True] * 5
    assert 6 <= numbers["series_evicted_total", ""] <= 6 + 6 + 1
    assert numbers["series", ""] <= 20


def test_a_chart_of_a_series_that_is_forgotten_does_not_go_on_with_another_ones_readings() -> None:
    """The slot is another's; who looks on is told that the series is no more."""
    bench = Bench(max_series=1)
    bench.report("old", [1.0])
    traces = bench.engine.traces
    assert traces.follow(bench.shard, "old", 1e12, -1, -1) is not None
    bench.clock.advance(IDLE_SECONDS)
    for value in (7.0, 8.0, 9.0):
        bench.report("new", [value], every=1.0)
    assert "new" in bench.shard.registry
    assert len(traces) == 0
    assert traces.follow(bench.shard, "old", 1e12, -1, -1) is None


def test_alarms_that_were_closed_are_kept_for_who_looks_on_but_not_all() -> None:
    """The last ones, the newest at the end; a list that somebody has is never changed."""
    bench = Bench(max_series=MOST_CLOSED + 20)
    topics = [f"oven/{k}" for k in range(MOST_CLOSED + 10)]
    for _ in range(60):
        bench.clock.advance(60)
        bench.turn(*(bench.say(topic, 20.0) for topic in topics))
    bench.clock.advance(3600)
    bench.turn()
    assert len(bench.engine.alarms) == len(topics)
    before = bench.engine.closed_alarms
    bench.turn(*(bench.say(topic, 20.0) for topic in topics))
    assert before == ()
    assert [alarm.key for alarm in bench.engine.closed_alarms] == topics[-MOST_CLOSED:]
    assert not bench.engine.alarms


def test_the_alarm_of_a_series_that_is_forgotten_closes_with_a_reason() -> None:
    """And is counted, and its retained state is taken back."""
    bench = Bench(max_series=2)
    for _ in range(60):
        bench.clock.advance(60)
        bench.turn(bench.say("oven", 20.0), bench.say("busy", 1.0))
    for _ in range(60):
        bench.clock.advance(3600)
        bench.turn(bench.say("busy", 1.0))
    assert bench.numbers()["alarms_open", "silent"] == 1
    for _ in range(2):
        bench.clock.advance(1)
        bench.turn(bench.say("busy", 1.0), bench.say("new", 1.0))
    opened, closed = [event for event in bench.events() if event["key"] == "oven"]
    assert (opened["event"], opened["reason"]) == ("opened", None)
    assert (closed["event"], closed["id"], closed["reason"]) == ("closed", opened["id"], "evicted")
    assert bench.states("oven")[-1] == b""
    numbers = bench.numbers()
    assert (numbers["alarms_open", "silent"], numbers["alarms_closed_total", "silent"]) == (0, 1)
    assert "new" in bench.shard.registry


# --- Alarms are told ---


def test_a_fault_is_told_as_event_and_as_retained_state() -> None:
    """Opened, then closed: the state appears and is taken back; the counters follow."""
    bench = Bench(weights=shipped_weights())
    bench.report("oven", noise(300).tolist())
    assert bench.published == []
    bench.report("oven", [90.0])
    opened = bench.events()[0]
    assert (opened["event"], opened["key"], opened["value"], opened["direction"]) == ("opened", "oven", 90.0, "above")
    state = json.loads(bench.states("oven")[-1])
    assert (state["state"], state["alarm"], state["value"]) == ("alarm", opened["id"], 90.0)
    assert [alarm.id for alarm in bench.engine.alarms] == [opened["id"]]
    assert bench.numbers()["alarms_open", "value"] == 1
    bench.report("oven", noise(20, 5).tolist())
    assert [(event["event"], event["id"]) for event in bench.events() if event["event"] != "updated"] == [
        ("opened", opened["id"]),
        ("closed", opened["id"]),
    ]
    assert bench.states("oven")[-1] == b""
    numbers = bench.numbers()
    assert (numbers["alarms_opened_total", "value"], numbers["alarms_closed_total", "value"]) == (1, 1)
    assert numbers["alarms_open", "value"] == 0
    assert numbers["publishes_total", ""] == len(bench.published)
    assert bench.engine.alarms == []


def test_a_silent_device_is_told_and_taken_back_when_it_returns() -> None:
    """Found by a sweep, without any message."""
    bench = Bench()
    for _ in range(60):
        bench.clock.advance(60)
        bench.turn(bench.say("oven", '{"t": 20, "p": 1}'))
    bench.clock.advance(290)
    bench.turn()
    assert bench.events() == []
    bench.clock.advance(20)
    bench.turn()
    (event,) = bench.events()
    assert (event["event"], event["kind"], event["key"]) == ("opened", "silent", "oven#*")
    assert json.loads(bench.states("oven%23*")[-1])["state"] == "silent"
    assert bench.numbers()["alarms_opened_total", "silent"] == 1
    assert bench.numbers()["alarms_open", "silent"] == 1
    bench.clock.advance(60)
    bench.turn(bench.say("oven", '{"t": 20, "p": 1}'))
    assert [event["event"] for event in bench.events()] == ["opened", "closed"]
    assert bench.states("oven%23*")[-1] == b""
    assert bench.numbers()["alarms_closed_total", "silent"] == 1


def test_an_alarm_that_outlives_another_on_its_series_keeps_the_state() -> None:
    """A sensor in alarm falls silent and comes back: the value alarm is still open, and the state says so."""
    bench = Bench(weights=shipped_weights())
    bench.report("oven", noise(300).tolist())
    bench.report("oven", [90.0] * 5)
    bench.clock.advance(600)
    bench.turn()
    assert json.loads(bench.states("oven")[-1])["state"] == "silent"
    bench.clock.advance(60)
    bench.turn(bench.say("oven", 90.0))
    assert json.loads(bench.states("oven")[-1])["state"] == "alarm"
    assert [alarm.kind for alarm in bench.engine.alarms] == ["value"]


@pytest.mark.parametrize("how", ["not hearing", "switched off"])
def test_silence_is_not_looked_for_where_it_says_nothing(how: str) -> None:
    """Without a broker every sensor is quiet; and an operator may not want to know."""
    bench = Bench(silent=how != "switched off")
    bench.report("oven", noise(60).tolist())
    bench.is_hearing = how != "not hearing"
    bench.clock.advance(3600)
    bench.turn()
    assert bench.events() == []


def test_silence_is_counted_anew_when_the_broker_is_back() -> None:
    """The hour without it is nobody's fault."""
    bench = Bench()
    bench.report("oven", noise(60).tolist())
    bench.is_hearing = False
    bench.clock.advance(3600)
    bench.turn()
    bench.is_hearing = True
    bench.clock.advance(1)
    bench.turn()
    bench.clock.advance(200)
    bench.turn()
    assert bench.events() == []
    bench.clock.advance(200)
    bench.turn()
    assert [event["kind"] for event in bench.events()] == ["silent"]


def test_all_states_are_published_when_that_is_wanted() -> None:
    """`publish_series = all`: warming, normal, gap and alarm, once a sweep for what has reported."""
    bench = Bench(weights=shipped_weights(), publish_series="all")

    def state_after(value: float, seconds: float = 60.0) -> str:
        bench.report("oven", [value], every=seconds)
        state: str = json.loads(bench.states("oven")[-1])["state"]
        return state

    assert [state_after(value) for value in noise(300).tolist()] == ["warming"] * 20 + ["normal"] * 280
    published = len(bench.published)
    bench.clock.advance(60)
    bench.turn()
    assert len(bench.published) == published  # nothing has come
    assert state_after(90.0) == "alarm"
    assert [state_after(value) for value in noise(20, 5).tolist()][-1] == "normal"
    assert state_after(20.0, 86_400) == "gap"


def test_no_state_is_published_when_that_is_wanted() -> None:
    """`publish_series = off` leaves the events."""
    bench = Bench(weights=shipped_weights(), publish_series="off")
    bench.report("oven", noise(300).tolist())
    bench.report("oven", [90.0])
    assert len(bench.events()) == len(bench.published) == 1


def test_what_finds_no_room_is_counted() -> None:
    """The link's queue is full: the stream goes on, and the loss is seen."""
    bench = Bench(weights=shipped_weights(), room=1)
    bench.report("oven", noise(300).tolist())
    bench.report("oven", [90.0])
    numbers = bench.numbers()
    assert (numbers["publishes_total", ""], numbers["publishes_dropped_total", ""]) == (1, 1)


def test_alarms_that_a_restored_state_brings_are_shown() -> None:
    """They were opened by an earlier run, and are no less open."""
    before = Bench(weights=shipped_weights())
    before.report("oven", noise(300).tolist())
    before.report("oven", [90.0])
    bench = Bench(weights=shipped_weights())
    bench.shard.restore(before.shard.export())
    bench.turn()
    assert bench.engine.alarms == before.engine.alarms
    assert bench.numbers()["alarms_open", "value"] == 1


# --- Between turns ---


def test_settings_change_between_two_turns() -> None:
    """Which topics are read, the budget, whether silence is told; the last word counts."""
    bench = Bench()
    bench.turn(bench.say("a", 1.0))
    bench.engine.adjust(Adjustment(bench.decoder, 7.0, silent=True))
    bench.engine.adjust(Adjustment(Decoder(exclude=("a",)), 5.0, silent=False))
    assert bench.shard.detector.budget_per_series_month == 1.0
    bench.turn(bench.say("a", 1.0), bench.say("b", 1.0))
    assert bench.shard.detector.budget_per_series_month == 5.0
    numbers = bench.numbers()
    assert (numbers["messages_ignored_total", ""], numbers["messages_decoded_total", ""]) == (1, 2)


def test_a_larger_budget_makes_the_same_reading_score_higher() -> None:
    """A score of 1 is the rarity that the budget allows."""
    scores = []
    for budget in (1.0, 100.0):
        bench = Bench(weights=shipped_weights())
        bench.report("oven", noise(100).tolist())
        bench.engine.adjust(Adjustment(bench.decoder, budget, silent=True))
        bench.report("oven", [23.0])
        scores.append(float(bench.shard.detector.latest[0, 0]))
    assert scores[0] < scores[1]


def test_state_is_saved_when_it_is_time() -> None:
    """Every `snapshot_seconds`, whether there were messages or not."""
    bench = Bench(snapshot_seconds=100.0)
    for _ in range(25):
        bench.clock.advance(10)
        bench.turn()
    assert bench.saves == 2


def test_the_table_of_series_holds_the_last_verdicts_of_what_is_not_stale() -> None:
    """What scrapes and pages show; a series that stopped disappears."""
    bench = Bench()
    bench.report("a", noise(40).tolist())
    bench.report("b", [1.0])
    table = bench.engine.table
    assert table is not None
    assert table.keys == ["a", "b"]
    assert table.value.tolist() == [noise(40)[-1], 1.0]
    assert np.isnan(table.score).tolist() == [False, True]
    bench.clock.advance(1)
    bench.turn()
    assert bench.engine.table is table  # nothing has come
    bench.clock.advance(STALE_SECONDS)
    bench.turn()
    table = bench.engine.table
    assert table is not None
    assert table.keys == []
    bench.turn(bench.say("c", 1.0))
    bench.clock.advance(1)
    bench.turn()
    table = bench.engine.table
    assert table is not None
    assert table.keys == ["c"]


# --- The thread ---


def test_it_takes_what_waits_and_ends_with_a_save() -> None:
    """Closing the inbox ends the thread when everything is settled; the last state is saved."""
    bench = Bench()
    bench.engine.start()
    bench.receive(*(bench.say("a", float(k)) for k in range(100)))
    wait_until(lambda: bench.inbox.queued() == 0, 20, "everything settled")
    bench.receive(*(bench.say("a", float(k)) for k in range(100)))
    bench.inbox.close()
    assert bench.engine.stop(20)
    assert bench.numbers()["messages_decoded_total", ""] == 200
    assert bench.saves == 1
    assert bench.engine.trouble() is None


def test_a_turn_stays_short_however_much_waits_and_however_dear_it_is() -> None:
    """Thousands of readings of one series come one after the other; health and the end must not wait for them."""
    bench = Bench()
    bench.receive(*(bench.say("a", float(k)) for k in range(2000)))
    bench.seconds_per_message = 0.01
    bench.engine.start()
    wait_until(lambda: len(bench.acknowledged) == 2000, 60, "everything settled")
    bench.inbox.close()
    assert bench.engine.stop(20)
    assert bench.batches[0] == FIRST_BATCH
    assert all(0.9 * TURN_SECONDS < 0.01 * size <= TURN_SECONDS for size in bench.batches[1:-1])
    assert [int(message.payload.removesuffix(b".0")) for message in bench.acknowledged] == list(range(2000))


def test_turns_grow_when_messages_are_cheap() -> None:
    """Under load the cost of a turn is shared by many."""
    bench = Bench()
    bench.receive(*(bench.say("a", b"garbage") for k in range(3 * MAX_BATCH)))
    bench.engine.start()
    wait_until(lambda: len(bench.acknowledged) == 3 * MAX_BATCH, 60, "everything settled")
    bench.inbox.close()
    assert bench.engine.stop(20)
    assert bench.batches[:3] == [FIRST_BATCH, MAX_BATCH, MAX_BATCH]


def test_what_cannot_be_taken_in_time_is_left_to_the_broker() -> None:
    """The end comes in time, with a save; what is left is not acknowledged and still counted as queued."""
    bench = Bench()
    bench.receive(*(bench.say("a", float(k)) for k in range(2000)))
    bench.seconds_per_message = 0.01
    bench.inbox.close()
    bench.engine.stop(4.0)  # not started: only says when to leave
    bench.engine.start()
    wait_until(lambda: bench.saves == 1, 60, "the end")
    assert not bench.engine.stop(20)
    numbers = bench.numbers()
    assert numbers["messages_decoded_total", ""] == len(bench.acknowledged) == FIRST_BATCH
    assert numbers["messages_queued", ""] == 2000 - FIRST_BATCH


def test_an_engine_that_was_never_started_can_be_stopped() -> None:
    """A start that failed half-way is taken back."""
    assert Bench().engine.stop(1)


def test_an_engine_that_stands_still_is_in_trouble() -> None:
    """Judged by finished turns, not by a timer."""
    bench = Bench()
    bench.turn()
    bench.clock.advance(STUCK_SECONDS)
    assert bench.engine.trouble() is None
    bench.clock.advance(1.0)
    assert bench.engine.trouble() == "the engine has not finished a turn for 31 seconds"
    bench.turn()
    assert bench.engine.trouble() is None


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_engine_that_fails_says_so() -> None:
    """A bug ends the thread; nothing is saved, nothing looks fine, `stop` does not claim success."""
    bench = Bench()

    def fail(messages: Sequence[Message]) -> None:
        raise IndexError("a bug")

    failing = Engine(
        instance="gate",
        shard=bench.shard,
        decoder=bench.decoder,
        inbox=bench.inbox,
        metrics=bench.metrics,
        clock=bench.clock,
        publish=bench.publish,
        acknowledge=fail,
        hearing=lambda: 1,
        save=bench.save,
    )
    failing.start()
    bench.receive(bench.say("a", 1.0))
    wait_until(lambda: failing.has_failed, 20, "the failure")
    assert "IndexError" in (failing.trouble() or "")
    assert not failing.stop(5)
    assert bench.saves == 0
    assert bench.numbers()["messages_queued", ""] == 1


# --- What an outage, a dear message and a bad clock must not do ---


@pytest.mark.parametrize("how", ["outage", "backlog before the subscription", "restart"])
def test_an_outage_teaches_no_series_how_long_it_may_be_quiet(how: str) -> None:
    """Whatever comes first after it, a reading or a look around: silence is found as before."""
    bench = Bench(max_series=4)
    bench.report("oven", noise(200).tolist(), every=1.0)
    if how == "restart":
        other = Bench(max_series=4, start=bench.clock.now())
        other.shard.restore(bench.shard.export())
        bench = other
    else:
        bench.is_hearing = False
        bench.turn()
    bench.clock.advance(3600)
    bench.is_hearing = how != "backlog before the subscription"
    bench.turn(bench.say("oven", 20.0))
    bench.is_hearing = True
    bench.report("oven", noise(50).tolist(), every=1.0)
    assert bench.shard.cadence.allowed_seconds(1, bench.clock.now()).tolist() == [20.0]
    bench.clock.advance(60)
    bench.turn()
    assert [event["kind"] for event in bench.events()] == ["silent"]


def timed(bench: Bench, n: int) -> Message:
    """One message with an hour's readings and more of one series."""
    start = bench.clock.now() - n
    return bench.say("logger", json.dumps([{"time": start + k, "value": 20 + k % 7} for k in range(n)]))


def test_one_dear_message_stops_neither_the_health_nor_the_end() -> None:
    """Thousands of readings of one series in a message: the engine makes progress inside it, and leaves in time."""
    bench = Bench(max_series=4, snapshot_seconds=1e9)
    seen: list[float] = []
    step = bench.shard.process

    def process(batch: Batch, arrival: float | Float64, *, is_heard: bool = False) -> Outcome:
        seen.append(bench.engine.progress_at)
        bench.clock.advance(1.0)
        return step(batch, arrival, is_heard=is_heard)

    bench.shard.process = process  # type: ignore[method-assign]  # the real one, and a second passes
    bench.turn(timed(bench, 2000))
    assert len(seen) > 4
    assert len(set(seen)) == len(seen)
    assert bench.numbers()["readings_decoded_total", ""] == 2000
    assert [m.topic for m in bench.acknowledged] == ["logger"]
    assert bench.engine.trouble() is None

    bench.acknowledged.clear()
    bench.clock.advance(2000)
    bench.receive(timed(bench, 2000), timed(bench, 2000))
    bench.inbox.close()
    bench.engine.stop(6.0)  # not started: only says when to leave, in three seconds
    bench.engine.start()
    wait_until(lambda: bench.saves == 1, 60, "the end")
    assert bench.acknowledged == []
    assert bench.numbers()["messages_queued", ""] == 2


@pytest.mark.parametrize(
    ("ahead_seconds", "follows", "value"), [(-500, 1, 20), (0, 0, 20), (900, 1, 20), (0, 1, 1e300)]
)
def test_a_sensor_that_reports_with_a_bad_clock_is_not_silent(ahead_seconds: int, follows: int, value: float) -> None:
    """Late, repeated, in the future or out of range: somebody is there."""
    bench = Bench(max_series=4)
    for _ in range(60):
        bench.clock.advance(10)
        bench.turn(bench.say("oven", json.dumps({"time": bench.clock.now(), "value": 20})))
    stopped = bench.clock.now()
    for _ in range(60):
        bench.clock.advance(10)
        at = stopped + ahead_seconds + follows * (bench.clock.now() - stopped)
        bench.turn(bench.say("oven", json.dumps({"time": at, "value": value})))
    assert bench.events() == []
    assert bench.numbers()["readings_scored_total", ""] < 60
    bench.clock.advance(200)
    bench.turn()
    assert [event["kind"] for event in bench.events()] == ["silent"]


@pytest.mark.parametrize("payload", ["20", '{"time": %r, "value": 20}'], ids=["time of arrival", "time in the payload"])
def test_a_time_beyond_the_limit_is_rejected_and_counted(payload: str) -> None:
    """300 s ahead is believed, a moment more is not; by arrival that is a clock that was set back meanwhile."""
    bench = Bench(max_series=4)
    for ahead_seconds, rejected in ((300.0, 0), (300.1, 1), (86_400.0, 2)):
        at = bench.clock.now() + ahead_seconds
        message = bench.say("oven", payload % at if "%" in payload else payload)._replace(arrival=at)
        bench.turn(message)
        assert bench.numbers()["readings_rejected_total", "future"] == rejected
        assert bench.acknowledged[-1] is message
    assert bench.numbers()["readings_unscored_total", "warming"] == 1


# --- Alarms over the end of a run, and of a connection ---


def next_run(before: Bench, state: State, remembered: list[Alarm]) -> Bench:
    bench = Bench(weights=shipped_weights(), start=before.clock.now())
    bench.shard.restore(state)
    bench.engine.close_lost(remembered)
    return bench


def test_an_alarm_of_which_a_killed_run_left_the_state_behind_is_closed() -> None:
    """Opened after the last snapshot, then kill -9: the next run tells its end and takes its retained state back."""
    first = Bench(weights=shipped_weights())
    first.report("oven", noise(60).tolist())
    state = first.shard.export()
    first.report("oven", [90.0])
    first.clock.advance(1)
    first.turn()
    assert [alarm.key for alarm in first.remembered] == ["oven"]
    second = next_run(first, state, first.remembered)
    second.turn()
    assert [(event["event"], event["id"]) for event in second.events()] == [("closed", first.remembered[0].id)]
    assert second.states("oven") == [b""]
    second.clock.advance(1)
    second.turn()
    assert len(second.events()) == 1


def test_an_alarm_that_a_killed_run_has_opened_and_not_told_is_told() -> None:
    """Its readings are in the journal, so it is in the state; the file of told alarms is a second behind."""
    first = Bench(weights=shipped_weights())
    first.report("oven", [*noise(60).tolist(), 90.0])
    (alarm,) = first.shard.open_alarms()
    for remembered, wanted in (([], [("opened", alarm.id)]), ([alarm], [])):
        second = next_run(first, first.shard.export(), remembered)
        for _ in range(2):
            second.clock.advance(1)
            second.turn()
        assert [(event["event"], event["id"]) for event in second.events()] == wanted


def test_open_alarms_are_remembered_when_they_change_and_not_else() -> None:
    """The file is written when an alarm opens or closes, at most once a second."""
    bench = Bench(weights=shipped_weights())
    bench.report("oven", noise(60).tolist())
    assert bench.times_remembered == 0
    bench.report("oven", [90.0])
    assert (bench.times_remembered, len(bench.remembered)) == (1, 1)
    bench.report("oven", noise(40, 1).tolist())
    assert bench.remembered == []


# --- One incident of a device ---


def oven(bench: Bench, temperature: Sequence[float], power: Sequence[float]) -> None:
    """A turn for each message of a device with two fields, a minute apart."""
    for pair in zip(temperature, power, strict=True):
        bench.clock.advance(60)
        bench.turn(bench.say("oven", json.dumps(dict(zip(("temperature", "power"), pair, strict=True)))))


def oven_states(bench: Bench) -> list[tuple[str, str | None]]:
    """Field and alarm of each retained state, oldest first; None: taken back."""
    start = "streamer/gate/series/oven%23"
    said = [(message.topic, message.payload) for message in bench.published if message.topic.startswith(start)]
    return [(topic.removeprefix(start), json.loads(payload)["alarm"] if payload else None) for topic, payload in said]


def test_each_member_of_an_incident_has_a_state_while_it_is_one(caplog: pytest.LogCaptureFixture) -> None:
    """One alarm is told, counted and logged; the field that is back loses its state first."""
    bench = Bench(weights=shipped_weights())
    oven(bench, noise(200).tolist(), noise(200, 1).tolist())
    oven(bench, [900.0], [900.0])
    opened, updated = bench.events()
    assert (opened["event"], updated["event"]) == ("opened", "updated")
    assert opened["id"] == updated["id"]
    assert opened["topic"] == "oven"
    channels = updated["channels"]
    assert isinstance(channels, list)
    assert {channel["key"] for channel in channels} == {"oven#temperature", "oven#power"}
    assert oven_states(bench) == [("temperature", opened["id"]), ("power", opened["id"])]
    bench.clock.advance(1)
    bench.turn()
    assert bench.numbers()["alarms_open", "value"] == bench.numbers()["alarms_opened_total", "value"] == 1
    oven(bench, noise(14, 2).tolist(), [900.0] * 14)
    assert oven_states(bench)[-1] == ("temperature", None)
    oven(bench, noise(60, 3).tolist(), noise(60, 4).tolist())
    assert oven_states(bench)[-1] == ("power", None)
    assert [event["event"] for event in bench.events()].count("closed") == 1
    assert bench.numbers()["alarms_closed_total", "value"] == 1
    logged = [record.__dict__["fields"]["channels"] for record in caplog.records if record.message == "alarm opened"]
    assert len(logged) == 1
    assert "oven#temperature 100%" in logged[0]


def test_an_alarm_that_is_over_within_its_turn_leaves_no_state() -> None:
    """Opened and closed are told, the state is taken back."""
    bench = Bench(weights=shipped_weights())
    values = [*noise(200).tolist(), 900.0, *noise(40, 1).tolist()]
    start = bench.clock.now() - 60.0 * len(values)
    bench.turn(*(bench.say("oven", json.dumps({"time": start + 60 * k, "t": v})) for k, v in enumerate(values)))
    assert [event["event"] for event in bench.events()] == ["opened", "closed"]
    said, taken_back = bench.states("oven%23t")
    assert json.loads(said)["value"] == 900.0
    assert taken_back == b""


def test_of_several_updates_in_a_turn_the_last_is_told() -> None:
    """A fault that moves all fields of a message: one event that it opened, one with all of them."""
    bench = Bench(weights=shipped_weights())
    fields = "abcdef"
    for k in range(200):
        bench.clock.advance(60)
        bench.turn(bench.say("oven", json.dumps(dict(zip(fields, noise(6, k).tolist(), strict=True)))))
    bench.clock.advance(60)
    bench.turn(bench.say("oven", json.dumps(dict.fromkeys(fields, 900.0))))
    opened, updated = bench.events()
    assert (opened["event"], updated["event"]) == ("opened", "updated")
    assert isinstance(updated["channels"], list)
    assert len(updated["channels"]) == len(oven_states(bench)) == 6


def test_a_series_that_joined_after_the_last_snapshot_leaves_no_state_behind() -> None:
    """The restored state knows the alarm and not this member of it."""
    first = Bench(weights=shipped_weights())
    oven(first, noise(200).tolist(), noise(200, 1).tolist())
    oven(first, [900.0], noise(1, 2).tolist())
    state = first.shard.export()
    oven(first, [900.0], [900.0])
    first.clock.advance(1)
    first.turn()
    assert [alarm.members for alarm in first.remembered] == [("oven#temperature", "oven#power")]
    second = next_run(first, state, first.remembered)
    second.turn()
    assert second.events() == []
    assert oven_states(second) == [("power", None), ("temperature", first.remembered[0].id)]


def test_states_of_open_alarms_are_published_again_before_they_expire() -> None:
    """An alarm that stays open for days, of a device that is silent by now, is there for whoever comes late."""
    bench = Bench(weights=shipped_weights(), silent=False)
    bench.report("oven", [*noise(60).tolist(), 90.0])
    said = bench.states("oven")
    for hours in (23, 47, 71, 95):
        bench.clock.advance(START + hours * 3600.0 - bench.clock.now())
        bench.turn()
        assert len(bench.states("oven")) - len(said) == (hours + 1) // 24 - 1
    assert set(bench.states("oven")) == set(said)
    assert {message.expiry_seconds for message in bench.published if "/series/" in message.topic} == {48 * 3600}


def test_states_of_open_alarms_are_published_again_when_the_broker_is_back() -> None:
    """A broker without persistence has lost what it had retained; so it is after a restart of the daemon."""
    bench = Bench(weights=shipped_weights())
    bench.report("oven", [*noise(60).tolist(), 90.0])
    said = bench.states("oven")
    assert len(said) == 1
    bench.is_hearing = False
    bench.turn()
    bench.is_hearing = True
    bench.turn()
    assert bench.states("oven") == [said[0], said[0]]
    bench.connection = 2  # it was away for less than a turn
    bench.turn()
    assert bench.states("oven") == [said[0]] * 3
    other = Bench(weights=shipped_weights(), start=bench.clock.now())
    other.shard.restore(bench.shard.export())
    other.turn()
    assert other.states("oven") == [said[0]]


def test_nobody_is_silent_whose_messages_wait() -> None:
    """An engine that is behind must not take its own delay for a sensor's."""
    bench = Bench(max_series=4)
    bench.report("oven", noise(60).tolist(), every=10.0)
    waiting = []
    for _ in range(60):
        bench.clock.advance(10)
        waiting.append(bench.say("oven", 20.0))
        waiting.append(bench.say("other", 20.0))
    bench.receive(*waiting)
    while messages := bench.inbox.take(20, 0):
        bench.engine.turn(messages)
        bench.clock.advance(1)
    assert bench.events() == []
    bench.clock.advance(60)
    bench.turn()
    assert {event["kind"] for event in bench.events()} == {"silent"}


def killed_in_an_alarm() -> Bench:
    """A run that has opened an alarm and had no time to tell."""
    bench = Bench(weights=shipped_weights())
    bench.report("oven", [*noise(60).tolist(), 90.0])
    return bench


def test_a_backlog_that_ends_an_untold_alarm_tells_both_in_order() -> None:
    """The messages of a persistent session come before the daemon hears: opened, closed, and no state is left."""
    first = killed_in_an_alarm()
    second = next_run(first, first.shard.export(), [])
    second.is_hearing = False
    second.report("oven", noise(60, 1).tolist())
    second.is_hearing = True
    second.clock.advance(1)
    second.turn()
    assert [event["event"] for event in second.events()] == ["opened", "closed"]
    assert second.states("oven")[-1] == b""


def test_a_lost_alarm_is_told_as_closed_once() -> None:
    """Also if nothing else is ever open: the next start does not tell it again."""
    first = Bench(weights=shipped_weights())
    first.report("oven", noise(60).tolist())
    state = first.shard.export()
    first.report("oven", [90.0])
    first.clock.advance(1)
    first.turn()
    remembered = first.remembered
    told: list[list[object]] = []
    for _ in range(2):
        bench = next_run(first, state, remembered)
        bench.clock.advance(1)
        bench.turn()
        told.append([event["event"] for event in bench.events()])
        remembered = bench.remembered if bench.times_remembered else remembered
    assert told == [["closed"], []]


def test_what_is_not_told_yet_is_not_remembered_as_told() -> None:
    """A run that never reached the broker leaves it to the next one."""
    first = killed_in_an_alarm()
    second = next_run(first, first.shard.export(), [])
    second.is_hearing = False
    second.clock.advance(1)
    second.turn()
    assert not second.events()
    assert not second.times_remembered


# --- Commands ---

COMMAND = "streamer/gate/command"
IDS = st.text(max_size=3)


def test_a_command_is_done_between_two_turns_and_counted() -> None:
    """By the key of a series or of a device; what it does not concern goes on."""
    bench = Bench()
    bench.turn(bench.say("plant/a", '{"t": 1.0, "p": 2.0}'), bench.say("plant/b", "3"))
    paused = bench.engine.command(Pause(key="plant/a#*", id="x"))
    assert not paused.done()
    bench.clock.advance(7.0)
    bench.turn(bench.say("plant/a", '{"t": 1.0, "p": 2.0}'), bench.say("plant/b", "3"))
    assert paused.result(0) == Result(True, "2 series paused", "x", "pause", "plant/a#*", 2)
    numbers = bench.numbers()
    assert numbers["series_paused", ""] == numbers["readings_unscored_total", "paused"] == 2
    resumed = [bench.engine.command(Resume(key=key)) for key in ("plant/a#t", "plant/a#t", "plant/b", "plant")]
    bench.turn()
    assert [(f.result(0).done, f.result(0).series) for f in resumed] == [(True, 1), (True, 0), (True, 0), (False, 0)]
    numbers = bench.numbers()
    assert [numbers["commands_total", what] for what in ("done", "refused")] == [4, 1]
    assert numbers["series_paused", ""] == 1


def test_an_alarm_that_a_command_ends_is_told_as_closed() -> None:
    """With the reason, and its state is taken back."""
    for command, reason in ((Pause(key="plant/a"), "paused"), (MarkNormal(key="plant/a#*"), "marked normal")):
        bench = Bench(weights=shipped_weights())
        bench.report("plant/a", [*noise(60), 900.0, 901.0])
        assert [event["event"] for event in bench.events()] == ["opened"]
        bench.engine.command(command)
        bench.turn()
        assert [(event["event"], event["reason"]) for event in bench.events()[1:]] == [("closed", reason)]
        assert bench.states("plant/a")[-1] == b""
        assert bench.numbers()["alarms_closed_total", "value"] == 1
        assert bench.engine.alarms == []


def test_an_alarm_of_the_last_run_is_told_before_a_command_ends_it() -> None:
    """Also while there is no broker yet: else whoever listens would hear of it last that it is open."""
    before = Bench(weights=shipped_weights())
    before.report("plant/a", [*noise(60), 900.0])
    bench = Bench(weights=shipped_weights(), start=before.clock.now())
    bench.shard.restore(before.shard.export())
    bench.engine.close_lost([])
    bench.is_hearing = False
    bench.engine.command(Pause(key="plant/a"))
    bench.turn()
    assert [event["event"] for event in bench.events()] == ["opened", "closed"]


def test_of_a_device_that_is_marked_normal_only_what_is_in_an_alarm_begins_anew() -> None:
    """If nothing is, the whole device does not: it is refused."""
    bench = Bench(weights=shipped_weights())
    quiet = bench.engine.command(MarkNormal(key="plant/a"))
    for k, value in enumerate(noise(60)):
        bench.clock.advance(7.0)
        bench.turn(bench.say("plant/a", json.dumps({"t": value + 900.0 * (k == 59), "p": value})))
    refused, done = bench.engine.command(MarkNormal(key="plant/b#*")), bench.engine.command(MarkNormal(key="plant/a"))
    again = bench.engine.command(MarkNormal(key="plant/a"))
    bench.turn()
    assert [f.result(0).series for f in (quiet, refused, done, again)] == [0, 0, 1, 0]
    assert "no series of this device is in an alarm" in again.result(0).detail
    assert bench.shard.warming() == 1


def test_what_shows_of_a_paused_series_is_its_value_alone() -> None:
    """In the metrics, and with `publish_series = all` in its state."""
    bench = Bench(publish_series="all")
    bench.metrics.show_series("all", 0)
    bench.report("plant/a", noise(40).tolist())
    assert 'streamer_anomaly_score{topic="plant/a"' in bench.metrics.render("")[0].decode()
    bench.engine.command(Pause(key="plant/a"))
    bench.report("plant/a", [55.0])
    text = bench.metrics.render("")[0].decode()
    assert 'streamer_anomaly_score{topic="plant/a"' not in text
    assert 'streamer_y{topic="plant/a",field=""} 55' in text
    assert json.loads(bench.states("plant/a")[-1])["state"] == "paused"


def test_a_command_by_mqtt_is_answered_by_mqtt() -> None:
    """With its id; it acts ahead of the readings of its turn, and is no reading and no rejection."""
    bench = Bench()
    bench.turn(bench.say("plant/a", "1"))
    bench.clock.advance(7.0)
    command = bench.say(COMMAND, '{"command": "pause", "key": "plant/a", "id": "n7"}')
    bench.turn(bench.say("plant/a", "1"), command)
    assert bench.results() == [Result(True, "1 series paused", "n7", "pause", "plant/a", 1)]
    numbers = bench.numbers()
    assert numbers["readings_unscored_total", "paused"] == numbers["messages_ignored_total", ""] == 1
    assert len(bench.acknowledged) == 3


def test_the_same_command_twice_is_one() -> None:
    """From a broker for which two of our subscriptions match, or that has not seen the acknowledgement."""
    bench = Bench()
    bench.turn(bench.say("plant/a", "1"))
    command = bench.say(COMMAND, '{"command": "mark-normal", "key": "plant/a"}')
    bench.turn(command, command)
    bench.clock.advance(60.0)
    bench.turn(command._replace(dup=True, retain=True, arrival=bench.clock.now()))
    assert len(bench.results()) == 1
    bench.turn(command._replace(arrival=bench.clock.now()))
    assert len(bench.results()) == 2


def test_a_command_that_the_broker_had_kept_is_refused() -> None:
    """Nobody knows how old it is."""
    bench = Bench()
    bench.turn(bench.say("plant/a", "1"))
    bench.turn(bench.say(COMMAND, '{"command": "pause", "key": "plant/a", "id": "old"}', retain=True))
    (result,) = bench.results()
    assert (result.done, result.id) == (False, "old")
    assert "the broker had kept this command" in result.detail
    assert not len(bench.shard.paused())


@given(st.one_of(st.binary(max_size=60), st.dictionaries(IDS, IDS | st.integers()).map(msgspec.json.encode)))
@settings(max_examples=60, deadline=None)
def test_what_is_no_command_is_answered_and_counted(payload: bytes) -> None:
    """Whatever it is; nothing happens."""
    bench = Bench()
    bench.turn(bench.say("plant/a", "1"))
    bench.turn(bench.say(COMMAND, payload))
    (result,) = bench.results()
    assert (result.done, result.series) == (False, 0)
    assert "expected" in result.detail
    assert bench.numbers()["commands_total", "refused"] == 1


def test_commands_are_bounded_in_size_and_number() -> None:
    """What is too much a second is counted and not answered, or answers would be a flood too."""
    bench = Bench()
    bench.turn(bench.say("plant/a", "1"))
    huge = json.dumps({"command": "pause", "key": "plant/a", "id": "x" * MOST_BYTES})
    bench.turn(bench.say(COMMAND, huge))
    assert "expected at most" in bench.results()[0].detail
    bench.clock.advance(2.0)
    bench.turn()
    keys = [json.dumps({"command": "pause", "key": f"no/{k}"}) for k in range(5 * COMMANDS_A_SECOND)]
    bench.turn(*(bench.say(COMMAND, key) for key in keys))
    assert len(bench.results()) == 1 + COMMANDS_A_SECOND
    assert bench.numbers()["commands_total", "refused"] == 1 + 5 * COMMANDS_A_SECOND
    futures = [bench.engine.command(Pause(key="plant/a")) for _ in range(MOST_WAITING + 1)]
    assert [future.done() for future in futures] == [False] * MOST_WAITING + [True]
    bench.turn()
    assert all(future.done() for future in futures)
