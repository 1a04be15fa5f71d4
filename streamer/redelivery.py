"""Which messages the broker has delivered already: those that the journal holds, by packet identifier.

A broker that has seen no acknowledgement sends a message again in the same session, with DUP and the identifier that it
had (MQTT 5, 4.4). An identifier is used for another message only once the first was acknowledged; so for each the last
message is enough, and topic and payload tell a repetition from a new message that never came through the first time.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamer.readings import Message
from streamer.records import Group, digest


class RedeliveryState(NamedTuple):
    """For a snapshot: arrays of one row for each identifier that is known."""

    mid: NDArray[np.uint16]
    digest: NDArray[np.int64]


class Redelivery:
    """What the session has delivered and the journal holds. For one thread."""

    def __init__(self) -> None:
        self._digests: dict[int, int] = {}

    def is_known(self, message: Message) -> bool:
        """The message came before: it wants an acknowledgement, and nothing else."""
        return message.dup and message.qos > 0 and self._digests.get(message.mid) == digest(message)

    def note(self, group: Group) -> None:
        """The journal has been given these."""
        self.note_coming(group.mid.tolist(), group.digest.tolist())

    def note_coming(self, mids: list[int], digests: list[int]) -> None:
        """The journal will be given these."""
        self._digests.update(zip(mids, digests, strict=True))
        self._digests.pop(0, None)  # QoS 0 has no identifiers

    def forget(self) -> None:
        """The session is lost: identifiers begin anew."""
        self._digests.clear()

    def state(self) -> RedeliveryState:
        """What `restore` wants."""
        count = len(self._digests)
        return RedeliveryState(
            np.fromiter(self._digests.keys(), np.uint16, count), np.fromiter(self._digests.values(), np.int64, count)
        )

    def restore(self, state: RedeliveryState) -> None:
        """Knows what another one knew."""
        self._digests = dict(zip(state.mid.tolist(), state.digest.tolist(), strict=True))
