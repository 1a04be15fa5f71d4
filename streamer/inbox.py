"""The queue between the network thread and the engine, bounded by memory.

The network thread must never wait, so a full inbox refuses the newest messages and says which. A message counts
from `put` until the engine calls `done`: what waits and what the engine has in its hands are both `queued`.
"""

from __future__ import annotations

import threading
import time
from collections import deque

from streamer.readings import Message

MESSAGE_BYTES = 256
"""What a message weighs beside its topic and payload (`sys.getsizeof`: tuple, headers of str and bytes, numbers).
A topic is counted by its characters: non-Latin letters weigh up to four times as much."""


class Inbox:
    """Messages in the order of their arrival; any thread may call any method."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._changed = threading.Condition()
        self._lists: deque[tuple[list[Message], int]] = deque()  # with what each weighs
        self._waiting = 0
        self._wanted = 1
        """how many have to wait before the engine is woken"""
        self._in_hand = 0
        self._waiting_bytes = 0
        self._in_hand_bytes = 0
        self._is_closed = False

    def put(self, messages: list[Message]) -> list[Message]:
        """Take over `messages` and return those that were refused: over `max_bytes`, or after `close`. Never waits.

        The refused ones are unacknowledged: the caller counts them, and decides what the broker is told.
        """
        weight = _weigh(messages)
        with self._changed:
            if self._is_closed:
                return messages
            room = self._max_bytes - self._waiting_bytes - self._in_hand_bytes
            refused: list[Message] = []
            if weight > room:
                messages, refused, weight = _split(messages, room)
            if messages:
                self._lists.append((messages, weight))
                self._waiting += len(messages)
                self._waiting_bytes += weight
                if self._waiting >= self._wanted:
                    self._changed.notify()
            return refused

    def take(self, limit: int, timeout_seconds: float) -> list[Message]:
        """The oldest messages, at most `limit`; waits for the first one, and gives `[]` when none came in time.

        They stay queued, in the caller's hands, until `done`. A closed inbox hands out what it has and never waits.
        """
        deadline = time.monotonic() + timeout_seconds
        with self._changed:
            while not self._lists and not self._is_closed:
                rest_seconds = deadline - time.monotonic()
                if rest_seconds <= 0 or not self._changed.wait(rest_seconds):
                    break
            taken: list[Message] = []
            while self._lists and len(taken) < limit:
                messages, weight = self._lists.popleft()
                room = limit - len(taken)
                if len(messages) > room:
                    rest = messages[room:]
                    self._lists.appendleft((rest, _weigh(rest)))
                    messages = messages[:room]
                    weight -= self._lists[0][1]
                taken.extend(messages)
                self._waiting_bytes -= weight
                self._in_hand_bytes += weight
            self._waiting -= len(taken)
            self._in_hand += len(taken)
            return taken

    def gather(self, count: int, timeout_seconds: float) -> None:
        """Waits until so many messages wait, or for so long; not at all once it is closed."""
        with self._changed:
            self._wanted = count
            self._changed.wait_for(lambda: self._waiting >= count or self._is_closed, timeout_seconds)
            self._wanted = 1

    def done(self) -> None:
        """Everything taken so far is settled. Call it under the lock under which the counters move."""
        with self._changed:
            self._in_hand = 0
            self._in_hand_bytes = 0

    def close(self) -> None:
        """Refuse what comes from now on and wake the engine; what waits can still be taken."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    @property
    def is_closed(self) -> bool:
        return self._is_closed

    def queued(self) -> int:
        """Messages put and not yet done."""
        with self._changed:
            return self._waiting + self._in_hand

    def queued_bytes(self) -> int:
        """What they weigh; never above `max_bytes`."""
        with self._changed:
            return self._waiting_bytes + self._in_hand_bytes

    def __len__(self) -> int:
        """Messages that wait to be taken."""
        return self._waiting


def _weigh(messages: list[Message]) -> int:
    """Memory of `messages`, in bytes."""
    return MESSAGE_BYTES * len(messages) + sum([len(message[0]) + len(message[1]) for message in messages])


def _split(messages: list[Message], room: int) -> tuple[list[Message], list[Message], int]:
    """Those that fit into `room` bytes, older ones first; the others; the weight of those that fit."""
    fitting: list[Message] = []
    refused: list[Message] = []
    weight = 0
    for message in messages:
        heavier = weight + _weigh([message])
        if heavier > room:
            refused.append(message)
        else:
            fitting.append(message)
            weight = heavier
    return fitting, refused, weight
