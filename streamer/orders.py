"""What a person asks the engine for: taken from any thread, or from a message; answered when a start would repeat it.

It keeps what waits, what was answered and what came twice, and says what a command comes to; the engine does it.
"""

from __future__ import annotations

import logging
import queue
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from itertools import chain
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from streamer.log import SparingLog
from streamer.metrics import Metrics
from streamer.names import meant
from streamer.readings import Message
from streamer.records import MarkedNormal, Paused, Resumed
from streamer.requests import Command, MarkNormal, Pause, Result, Resume, id_in, read, result_of
from streamer.shard import Shard

MOST_WAITING = 64
COMMANDS_A_SECOND = 10  # by MQTT: more than a person gives
AGAIN_SECONDS = 0.5  # the same command so soon is one command


class Order(NamedTuple):
    """A command that waits for the end of the turn."""

    command: Command
    by: str
    future: Future[Result]


class Deed(NamedTuple):
    """What a command comes to."""

    slots: NDArray[np.intp]
    """of the series that it changes"""
    fact: Paused | Resumed | MarkedNormal
    result: Result
    """once it is done"""


class _Answer(NamedTuple):
    """A result, which waits for the disk."""

    end: int
    """it is safe when all records below this position are"""
    result: Result
    future: Future[Result]


class Orders:
    """Commands and their answers; `put` from any thread, the rest for the engine's."""

    def __init__(self, metrics: Metrics, sparing: SparingLog, reply: Callable[[Result], None]) -> None:
        """`reply` sends a result to who has commanded by MQTT."""
        self._metrics = metrics
        self._sparing = sparing
        self._reply = reply
        self._waiting: queue.Queue[Order] = queue.Queue(MOST_WAITING)
        self._answers: deque[_Answer] = deque()
        self._heeded: deque[Message] = deque(maxlen=MOST_WAITING)
        """the last commands by MQTT: one that comes again is answered once"""
        self._left = COMMANDS_A_SECOND

    def put(self, command: Command, by: str) -> Future[Result]:
        """Its result, in time."""
        future: Future[Result] = Future()
        try:
            self._waiting.put_nowait(Order(command, by, future))
        except queue.Full:
            self._metrics.add("commands_total", 1, "refused")
            future.set_result(result_of(command, False, f"{MOST_WAITING} commands wait already: ask again later"))
        return future

    def take(self, message: Message) -> None:
        """One that has come by MQTT; what is none is answered too, as far as there are not too many."""
        if self._comes_again(message):
            return
        if self._left <= 0:
            self._metrics.add("commands_total", 1, "refused")
            self._sparing.event(logging.WARNING, "commands refused: too many a second", per="commands")
            return
        self._left -= 1
        self._heeded.append(message)
        try:
            if message.retain:
                raise ValueError(
                    "the broker had kept this command, retained or while the daemon was away: publish it anew, "
                    "without the retain flag"
                )
            asked = read(message.payload)
        except ValueError as error:
            self._metrics.add("commands_total", 1, "refused")
            self._sparing.event(logging.WARNING, "command refused", per="command", by="MQTT", reason=str(error))
            self._reply(Result(False, str(error), id_in(message.payload)))
            return
        self.put(asked, "MQTT").add_done_callback(lambda future: self._reply(future.result()))

    def _comes_again(self, message: Message) -> bool:
        """Since its acknowledgement was lost, or since two of our subscriptions match it."""
        alike = [each for each in self._heeded if each.payload == message.payload]
        return bool(alike) and (message.dup or message.arrival - alike[-1].arrival < AGAIN_SECONDS)

    def a_second_has_passed(self) -> None:
        """There may be some more by MQTT."""
        self._left = COMMANDS_A_SECOND

    def next(self) -> Order | None:
        """The one that has waited longest."""
        try:
            return self._waiting.get_nowait()
        except queue.Empty:
            return None

    def promise(self, end: int, result: Result, future: Future[Result]) -> None:
        """It is done; told once all records below `end` are safe."""
        self._metrics.add("commands_total", 1, "done" if result.done else "refused")
        self._answers.append(_Answer(end, result, future))

    def answer(self, is_kept: Callable[[int], bool]) -> None:
        """What is safe by now."""
        while self._answers and is_kept(self._answers[0].end):
            _, result, future = self._answers.popleft()
            future.set_result(result)

    def answer_last(self, is_kept: Callable[[int], bool]) -> None:
        """The end has come: what is not safe, or was not obeyed any more, is not done."""
        self.answer(is_kept)
        while self._answers:
            _, result, future = self._answers.popleft()
            detail = "the daemon has stopped before the disk had it: look, and ask again"
            future.set_result(msgspec.structs.replace(result, done=False, detail=detail))
        while (order := self.next()) is not None:
            order.future.set_result(result_of(order.command, False, "the daemon has stopped before it could obey"))


def understood(command: Command, shard: Shard, now: float) -> Deed | Result:
    """What is to be done, or why there is nothing to do; changes nothing."""
    registry = shard.registry

    def is_key(text: str) -> bool:
        return registry.find(text) is not None or len(registry.of_device(text.removesuffix("#*"))) > 0

    def keys() -> Iterable[str]:
        devices = (f"{registry.device_key(device)}#*" for device in range(registry.device_rows))
        return chain(registry.keys_by_slot(), devices)

    key = meant(command.key, is_key, keys)
    slot = registry.find(key)
    is_device = slot is None
    slots = registry.of_device(key.removesuffix("#*")) if slot is None else np.array([slot], np.intp)
    if not len(slots):
        return result_of(
            command, False,
            "found no such series and no such device; expected a key as alarms have it, such as "
            "plant/a#temperature, or plant/a#* for all series of a device",
        )  # fmt: skip
    is_paused = shard.is_paused(slots)
    fact: Paused | Resumed | MarkedNormal
    match command:
        case Pause():
            slots = slots[~is_paused]
            fact, detail = Paused(slots.tolist(), now), "paused"
        case Resume():
            slots = slots[is_paused]
            fact, detail = Resumed(slots.tolist(), now), "resumed: the next reading has no verdict"
        case MarkNormal():
            slots = slots[shard.is_in_alarm(slots)] if is_device else slots
            if not len(slots):
                return result_of(
                    command, False, "no series of this device is in an alarm: name the one that begins anew"
                )
            fact, detail = MarkedNormal(slots.tolist(), now), "marked normal: a verdict again in 20 readings"
    if not len(slots):
        already = "paused already" if isinstance(command, Pause) else "not paused"
        return result_of(command, True, f"nothing to do: {already}")
    return Deed(slots, fact, result_of(command, True, f"{len(slots)} series {detail}", len(slots)))
