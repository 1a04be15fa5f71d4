"""Series keys -> slots: who is let in, which row of every state array is whose, which series are one device.

Admission is a token bucket for new series under a ceiling. A key that is refused costs one failed look-up and leaves
nothing behind, so that a flood of made-up topics neither grows the memory nor holds up those already known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import repeat

import numpy as np
from numpy.typing import NDArray

from streamer.readings import Int32

FREE = -1
"""in `devices`: a slot that no series holds; from `resolve`: a key that was refused"""


def topic_of(key: str) -> str:
    """The device of a series where nothing else is said: its topic."""
    return key.partition("#")[0]


@dataclass(frozen=True, slots=True)
class RegistryState:
    """A registry as plain lists, for a snapshot; two registries with equal states go on alike."""

    keys: list[str]
    """slot -> key, empty for a free slot"""
    device_keys: list[str]
    """device -> its key, empty for a free number"""
    devices: list[int]
    """slot -> device, -1 for a free slot"""
    free_slots: list[int]
    """the last one is the next to be used"""
    free_devices: list[int]
    tokens: float
    """new series that may come at once"""
    refilled_at: float | None
    """`now` of the latest `resolve` that met a new key; None before the first"""
    changes: int = 0


class Registry:
    """The series that are known. For one thread."""

    def __init__(
        self,
        max_series: int,
        new_series_per_minute: float,
        burst: float,
        device_of: Callable[[str], str] = topic_of,
    ) -> None:
        self.max_series = max_series
        self._per_second = new_series_per_minute / 60.0
        self._burst = float(burst)
        self._device_of = device_of
        self._slots: dict[str, int] = {}
        self._keys: list[str] = []
        self._free_slots: list[int] = []
        self._devices = np.full(1024, FREE, np.int32)
        self._device_numbers: dict[str, int] = {}
        self._device_keys: list[str] = []
        self._members: list[int] = []
        self._free_devices: list[int] = []
        self._tokens = self._burst
        self._refilled_at: float | None = None
        self.changes = 0
        """series let in and forgotten so far: at two moments with the same count every slot means the same series"""
        self.refused: dict[str, int] = {"rate": 0, "full": 0}
        """readings whose new series was not let in, by reason"""

    def __len__(self) -> int:
        return len(self._slots)

    def __contains__(self, key: object) -> bool:
        return key in self._slots

    @property
    def rows(self) -> int:
        """One more than the largest slot ever used: how long a state array must be."""
        return len(self._keys)

    @property
    def device_rows(self) -> int:
        """The same for arrays with a row for each device."""
        return len(self._device_keys)

    @property
    def devices(self) -> Int32:
        """Slot -> device `(rows,)`, read-only, FREE where no series holds the slot; valid until the next call."""
        view = self._devices[: self.rows]
        view.flags.writeable = False
        return view

    @property
    def bucket(self) -> tuple[float, float | None]:
        """What is left of it, and when it was filled: with the keys, all that a replay cannot know of an admission."""
        return self._tokens, self._refilled_at

    def resolve(self, keys: list[str], now: float, admitted: list[int] | None = None) -> Int32:
        """The slot of each key `(n,)`, new ones let in where the limits allow, FREE where they do not.

        `now` is any clock in seconds that does not run backwards; it fills the bucket. The slots of new series are
        added to `admitted`.
        """
        slots = np.fromiter(map(self._slots.get, keys, repeat(FREE)), np.int32, len(keys))
        unknown = np.flatnonzero(slots == FREE)
        if len(unknown):
            self._refill(now)
            for row in unknown.tolist():
                slots[row] = self._admit(keys[row], admitted)
        return slots

    def admit_again(
        self, slots: list[int], keys: list[str], devices: list[str], tokens: float, refilled_at: float | None
    ) -> None:
        """Lets in what another run has let in, whatever the limits are now. Raises ValueError if it was not after this.

        `tokens` and `refilled_at` are the `bucket` that it left.
        """
        for slot, key, device in zip(slots, keys, devices, strict=True):
            if key in self._slots or self._enter(key, device) != slot:
                raise ValueError(f"the series {key!r} was let in to slot {slot} of a registry that was not this one")
        self._tokens, self._refilled_at = tokens, refilled_at

    def find(self, key: str) -> int | None:
        """The slot of a key, None where it is unknown; lets nothing in."""
        return self._slots.get(key)

    def of_device(self, device_key: str) -> NDArray[np.intp]:
        """The slots of a device's series `(m,)`; none where it is unknown."""
        number = self._device_numbers.get(device_key)
        return np.flatnonzero(self.devices == number) if number is not None else np.empty(0, np.intp)

    def key(self, slot: int) -> str:
        """The key that holds a slot, empty for a free one."""
        return self._keys[slot]

    def keys(self, slots: Int32) -> list[str]:
        """The key of each slot `(n,)`."""
        return list(map(self._keys.__getitem__, slots.tolist()))

    def keys_by_slot(self) -> list[str]:
        """The key of every slot, empty for a free one; copied."""
        return list(self._keys)

    def device(self, slot: int) -> int:
        """The number of the device that a slot's series belongs to."""
        return int(self._devices[slot])

    def device_key(self, device: int) -> str:
        """What a device is called: a topic, or what a rule's template gives."""
        return self._device_keys[device]

    def evict(self, slots: Iterable[int] | Int32) -> Int32:
        """Free slots for others; gives the numbers of the devices whose last series went `(m,)`.

        The caller clears what its arrays hold in these rows. A slot that is free already stays so.
        """
        gone: list[int] = []
        for slot in np.asarray(slots if isinstance(slots, np.ndarray) else list(slots), np.intp).tolist():
            key = self._keys[slot] if slot >= 0 else ""
            if not key:
                continue
            self.changes += 1
            del self._slots[key]
            self._keys[slot] = ""
            self._free_slots.append(slot)
            device = int(self._devices[slot])
            self._devices[slot] = FREE
            self._members[device] -= 1
            if self._members[device] == 0:
                del self._device_numbers[self._device_keys[device]]
                self._device_keys[device] = ""
                self._free_devices.append(device)
                gone.append(device)
        return np.array(gone, np.int32)

    def state(self) -> RegistryState:
        """Everything but the counts, copied."""
        return RegistryState(
            keys=list(self._keys),
            device_keys=list(self._device_keys),
            devices=self._devices[: self.rows].tolist(),
            free_slots=list(self._free_slots),
            free_devices=list(self._free_devices),
            tokens=self._tokens,
            refilled_at=self._refilled_at,
            changes=self.changes,
        )

    def forget(self) -> None:
        """Become what a new one is."""
        self.restore(RegistryState([], [], [], [], [], self._burst, None))

    def restore(self, state: RegistryState) -> None:
        """Become what a registry was; series beyond a limit that has since been lowered stay. Raises ValueError."""
        if len(state.devices) != len(state.keys) or max(state.devices, default=FREE) >= len(state.device_keys):
            raise ValueError("the registry has series of devices that it does not know")
        self._keys = list(state.keys)
        self._slots = {key: slot for slot, key in enumerate(state.keys) if key}
        self._free_slots = list(state.free_slots)
        self._devices = np.full(max(1024, len(state.devices)), FREE, np.int32)
        self._devices[: len(state.devices)] = state.devices
        self._device_keys = list(state.device_keys)
        self._device_numbers = {key: device for device, key in enumerate(state.device_keys) if key}
        self._members = np.bincount(self._devices[self._devices != FREE], minlength=len(state.device_keys)).tolist()
        self._free_devices = list(state.free_devices)
        self._tokens = min(state.tokens, self._burst)
        self._refilled_at = state.refilled_at
        self.changes = state.changes

    def _refill(self, now: float) -> None:
        if self._refilled_at is not None and now > self._refilled_at:
            self._tokens = min(self._burst, self._tokens + (now - self._refilled_at) * self._per_second)
        self._refilled_at = now

    def _admit(self, key: str, admitted: list[int] | None) -> int:
        slot = self._slots.get(key)  # an earlier row of the same call
        if slot is not None:
            return slot
        if len(self._slots) >= self.max_series:
            self.refused["full"] += 1
            return FREE
        if self._tokens < 1.0:
            self.refused["rate"] += 1
            return FREE
        self._tokens -= 1.0
        slot = self._enter(key, self._device_of(key))
        if admitted is not None:
            admitted.append(slot)
        return slot

    def _enter(self, key: str, device_key: str) -> int:
        self.changes += 1
        if self._free_slots:
            slot = self._free_slots.pop()
            self._keys[slot] = key
        else:
            slot = len(self._keys)
            self._keys.append(key)
            if slot == len(self._devices):
                self._devices = np.concatenate([self._devices, np.full(slot, FREE, np.int32)])
        self._slots[key] = slot
        self._devices[slot] = self._join(device_key)
        return slot

    def _join(self, device_key: str) -> int:
        device = self._device_numbers.get(device_key)
        if device is None:
            if self._free_devices:
                device = self._free_devices.pop()
                self._device_keys[device] = device_key
            else:
                device = len(self._device_keys)
                self._device_keys.append(device_key)
                self._members.append(0)
            self._device_numbers[device_key] = device
        self._members[device] += 1
        return device
