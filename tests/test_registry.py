"""Keys, slots, devices; who is let in and what a flood costs."""

from __future__ import annotations

import tracemalloc
from dataclasses import asdict

import msgspec
import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from streamer.registry import FREE, Registry, RegistryState

PLENTY = 1_000_000


def make(max_series: int = PLENTY, per_minute: float = PLENTY, burst: float = PLENTY) -> Registry:
    return Registry(max_series, per_minute, burst)


def test_slots_are_dense_and_stay() -> None:
    """Keys get rows in the order in which they come, also twice in one call."""
    registry = make()
    assert registry.resolve(["a#x", "a#y", "a#x", "b"], 0.0).tolist() == [0, 1, 0, 2]
    assert registry.resolve(["b", "c", "a#x"], 1.0).tolist() == [2, 3, 0]
    assert registry.resolve([], 2.0).tolist() == []
    assert registry.resolve(["b"], 3.0).dtype == np.int32
    assert (len(registry), registry.rows) == (4, 4)
    assert [registry.key(slot) for slot in range(4)] == ["a#x", "a#y", "b", "c"]
    assert (registry.find("b"), registry.find("z")) == (2, None)
    assert "b" in registry
    assert "z" not in registry


def test_fields_of_a_topic_are_one_device() -> None:
    """By default; a device goes with its last series, and its number is used again."""
    registry = make()
    registry.resolve(["a#x", "a#y", "b", "c#x"], 0.0)
    assert registry.devices.tolist() == [0, 0, 1, 2]
    assert [registry.device_key(device) for device in range(registry.device_rows)] == ["a", "b", "c"]
    assert registry.evict([0]).tolist() == []
    assert registry.evict([1, 2]).tolist() == [0, 1]
    assert registry.devices.tolist() == [FREE, FREE, FREE, 2]
    registry.resolve(["d", "c#y"], 1.0)
    assert registry.device_key(registry.device(registry.resolve(["d"], 1.0)[0])) == "d"
    assert registry.device(3) == registry.device(registry.resolve(["c#y"], 1.0)[0]) == 2
    assert registry.device_rows == 3


def test_devices_as_a_rule_says() -> None:
    """The decoder may group topics."""
    registry = Registry(10, PLENTY, PLENTY, lambda key: key[0])
    registry.resolve(["a/1#x", "a/2#x", "b/1"], 0.0)
    assert registry.devices.tolist() == [0, 0, 1]


def test_devices_cannot_be_written() -> None:
    """They are handed out to be read."""
    registry = make()
    registry.resolve(["a"], 0.0)
    with pytest.raises(ValueError, match="read-only"):
        registry.devices[0] = 5


def test_freed_slots_are_used_again() -> None:
    """Arrays do not grow while there is room; a slot that is free or was never used stays as it is."""
    registry = make()
    registry.resolve(["a", "b", "c"], 0.0)
    registry.evict(np.array([1, 1, FREE], np.int32))
    assert len(registry) == 2
    assert registry.key(1) == ""
    assert registry.resolve(["d", "e", "b"], 1.0).tolist() == [1, 3, 4]


def test_the_rate_of_new_series_is_limited() -> None:
    """A burst at once, then as many as the time allows; those known go on."""
    registry = make(per_minute=60, burst=3)
    assert registry.resolve([f"n{i}" for i in range(5)], 0.0).tolist() == [0, 1, 2, FREE, FREE]
    assert registry.refused == {"rate": 2, "full": 0}
    assert registry.resolve(["n0", "n3", "n2"], 0.5).tolist() == [0, FREE, 2]
    assert registry.resolve(["n3", "n4"], 1.0).tolist() == [3, FREE]
    assert registry.resolve(["n4", "n5", "n6", "n7"], 3600.0).tolist() == [4, 5, 6, FREE]
    assert registry.refused == {"rate": 5, "full": 0}


def test_a_clock_that_runs_backwards_fills_nothing() -> None:
    """It neither raises nor pays twice for the same time."""
    registry = make(per_minute=60, burst=1)
    assert registry.resolve(["a"], 100.0).tolist() == [0]
    assert registry.resolve(["b"], 50.0).tolist() == [FREE]
    assert registry.resolve(["b"], 50.5).tolist() == [FREE]
    assert registry.resolve(["b"], 51.0).tolist() == [1]


def test_the_number_of_series_is_limited() -> None:
    """What is evicted makes room."""
    registry = make(max_series=2)
    assert registry.resolve(["a", "b", "c", "c"], 0.0).tolist() == [0, 1, FREE, FREE]
    assert registry.refused == {"rate": 0, "full": 2}
    registry.evict([0])
    assert registry.resolve(["c", "a"], 0.0).tolist() == [0, FREE]


def test_a_flood_of_new_keys_costs_no_memory_and_known_series_go_on() -> None:
    """100,000 new topics in a minute: the limit's worth is let in, the rest leaves nothing behind."""
    registry = make(per_minute=600, burst=100)
    known = registry.resolve([f"known/{i}" for i in range(50)], 0.0).tolist()
    tracemalloc.start()
    try:
        for second in range(1, 51):
            flood = [f"flood/{second}/{i}" for i in range(2_000)]
            slots = registry.resolve([*flood, *(f"known/{i}" for i in range(50))], float(second))
            assert slots[-50:].tolist() == known
        del flood
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(registry) == 100 + 50 * 10  # the burst, and ten a second
    assert registry.refused["rate"] == 100_000 - (len(registry) - 50)
    assert used < 1 << 20


def test_state_survives_a_snapshot() -> None:
    """Through JSON and back, a registry goes on exactly as the one that was not stopped."""
    one = make(max_series=6, per_minute=60, burst=5)
    one.resolve(["a#x", "a#y", "b", "c", "d"], 10.0)
    one.evict([1, 2, 4])
    state = msgspec.json.decode(msgspec.json.encode(one.state()), type=RegistryState)
    other = make(max_series=6, per_minute=60, burst=5)
    other.restore(state)
    assert asdict(other.state()) == asdict(one.state())
    for now, keys in ((11.5, ["e", "f", "a#x"]), (14.0, ["g", "h", "i"]), (20.0, ["a#y", "j"])):
        assert one.resolve(keys, now).tolist() == other.resolve(keys, now).tolist()
        assert one.devices.tolist() == other.devices.tolist()
        assert one.evict([0]).tolist() == other.evict([0]).tolist()
    assert asdict(other.state()) == asdict(one.state())


def test_a_state_larger_than_a_lowered_limit_stays() -> None:
    """Nothing known is thrown away; nothing new is let in."""
    one = make()
    one.resolve([f"k{i}" for i in range(3_000)], 0.0)
    other = make(max_series=10)
    other.restore(one.state())
    assert len(other) == 3_000
    assert other.resolve(["k2999", "new"], 0.0).tolist() == [2999, FREE]


KEYS = st.sampled_from([f"{topic}{field}" for topic in "abcde" for field in ("", "#x", "#y", "#x#y")])


class Model(RuleBasedStateMachine):
    """The registry against plain dicts that know nothing of slots."""

    @initialize()
    def begin(self) -> None:
        self.registry = make(max_series=8)
        self.slots: dict[str, int] = {}
        self.full = 0

    @rule(keys=st.lists(KEYS, max_size=6))
    def resolve(self, keys: list[str]) -> None:
        for key, slot in zip(keys, self.registry.resolve(keys, 0.0).tolist(), strict=True):
            if key in self.slots:
                assert slot == self.slots[key]
            elif len(self.slots) < 8:
                assert slot not in self.slots.values()
                assert 0 <= slot < 8
                self.slots[key] = slot
            else:
                assert slot == FREE
                self.full += 1

    @rule(slots=st.lists(st.integers(-1, 7), max_size=4))
    def evict(self, slots: list[int]) -> None:
        known = [slot for slot in slots if slot < self.registry.rows]
        before = {key.partition("#")[0] for key in self.slots}
        gone = self.registry.evict(known)
        self.slots = {key: slot for key, slot in self.slots.items() if slot not in known}
        assert len(gone) == len(before) - len({key.partition("#")[0] for key in self.slots})

    @rule()
    def restart(self) -> None:
        state, refused = self.registry.state(), self.registry.refused
        self.registry = make(max_series=8)
        self.registry.restore(state)
        self.registry.refused = refused

    @invariant()
    def agree(self) -> None:
        registry = self.registry
        assert len(registry) == len(self.slots)
        assert registry.refused == {"rate": 0, "full": self.full}
        assert registry.rows == len(registry.devices) <= 8
        for slot in range(registry.rows):
            key = registry.key(slot)
            assert (self.slots[key] == slot) if key else (registry.device(slot) == FREE)
        named = {key: registry.device_key(registry.device(slot)) for key, slot in self.slots.items()}
        assert named == {key: key.partition("#")[0] for key in self.slots}
        numbers = {registry.device(slot) for slot in self.slots.values()}
        assert len(numbers) == len(set(named.values()))
        assert all(0 <= number < registry.device_rows <= 5 for number in numbers)


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)


def test_another_registry_lets_in_what_this_one_has() -> None:
    """By the facts of each admission, whatever its own limits and rules are: the two are equal, to the last bit."""
    one = Registry(5, 7.0, 3.0, lambda key: key[0])
    other = Registry(1, 0.0, 0.0, lambda key: key)
    for keys, now in ((["a1", "a2", "b1", "b2", "a1"], 0.1), (["c1", "c2"], 7.3), (["b1", "d1"], 31.7)):
        admitted: list[int] = []
        one.resolve(keys, now, admitted)
        devices = [one.device_key(one.device(slot)) for slot in admitted]
        other.admit_again(admitted, [one.key(slot) for slot in admitted], devices, *one.bucket)
        assert other.state() == one.state()
        one.evict([1, 0])
        other.evict([1, 0])
    assert one.refused["rate"] > 0
    for slot, key in ((0, "z"), (0, one.key(2))):
        with pytest.raises(ValueError, match="of a registry that was not this one"):
            Registry(5, 1.0, 1.0).admit_again([slot + 1], [key], [key], 0.0, None)
