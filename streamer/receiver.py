"""Messages out of a connection, and what paho is made to do for that: its client on a socket of ours.

Receiving has two ways, which give the same messages. The fast one reads all that has come at once, takes the PUBLISHes
out in one pass (packets.py) and leaves the rest to paho; the slow one is paho's own. Private names of paho 2.2 are used
in `PahoClient` alone; the version is pinned in pyproject.toml.
"""

from __future__ import annotations

import math
import struct
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from paho.mqtt import MQTTException
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MessageType, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from streamer.clock import Clock
from streamer.packets import PublishReader
from streamer.readings import Message
from streamer.wire import Wire

if TYPE_CHECKING:
    from paho.mqtt.client import SocketLike

LARGE_BATCH = 1_000  # messages that paho reads before they are delivered
VERSIONS = {"5": MQTTProtocolVersion.MQTTv5, "3.1.1": MQTTProtocolVersion.MQTTv311}

# The acknowledgement of QoS 1 and 2 as one big-endian word: type, remaining length 2, packet identifier.
_ACKNOWLEDGEMENT = {1: MessageType.PUBACK << 24 | 2 << 16, 2: MessageType.PUBCOMP << 24 | 2 << 16}
ACKNOWLEDGEMENT_BYTES = 4


class Receiver:
    """Messages out of a connection, in the fast way or in paho's own; both give the same (tests/test_receiver.py)."""

    def __init__(self, max_packet_bytes: int, clock: Clock, is_fast: bool, commands: str | None = None) -> None:
        """`commands`: a topic on which what the broker has kept is told from what is new."""
        self._reader = PublishReader(max_packet_bytes, _is_valid_properties)
        self._clock = clock
        self._is_fast = is_fast
        self._connection = 0
        self._batch: list[Message] = []
        self._commands = commands
        self._is_backlog = commands is not None

    def begin(self, connection: int, is_v5: bool) -> None:
        """A new connection; what is left of the old one is void."""
        self._connection = connection
        self._reader.begin(connection, is_v5)
        self._batch = []
        self._is_backlog = self._commands is not None

    def end_backlog(self) -> None:
        """What comes on the topic of commands from here on was published while we listened."""
        self._mark_kept()
        self._is_backlog = False

    def _mark_kept(self) -> None:
        """A command that the session has kept is as old as a retained one."""
        if self._is_backlog:
            self._batch = [m._replace(retain=True) if m.topic == self._commands else m for m in self._batch]

    def receive(self, client: PahoClient, wire: Wire) -> list[Message]:
        """What has come, in its order; paho deals with all other packets meanwhile, and may close."""
        if self._is_fast:
            self._receive_fast(client, wire)
        else:
            self._receive_slowly(client, wire)
        self._mark_kept()
        batch, self._batch = self._batch, []
        return batch

    def _receive_fast(self, client: PahoClient, wire: Wire) -> None:
        """Take the PUBLISHes out of one read; paho reads the other packets, each in its place."""
        try:
            data = wire.read()
        except BlockingIOError:
            return
        if not data:
            client.loop_read()  # paho finds the end of the stream, and closes
            return
        client.note_received()
        for part in self._reader.feed(data, self._clock.now()):
            if isinstance(part, list):
                self._batch += part
                continue
            wire.leave(part)
            while wire.has_rest and client.is_open():
                client.loop_read()
            if not client.is_open():
                return

    def _receive_slowly(self, client: PahoClient, wire: Wire) -> None:
        """Let paho read, a packet at a time, until nothing more is there or the batch is large."""
        wire.is_drained = False
        while not wire.is_drained and client.is_open() and len(self._batch) < LARGE_BATCH:
            client.loop_read()

    def on_message(self, _client: Client, _userdata: object, message: MQTTMessage) -> None:
        """paho calls it: for everything in the slow way, for QoS 2 and oddities in the fast one."""
        try:
            topic = message.topic
        except UnicodeDecodeError as error:
            topic = error.object.decode("utf-8", "backslashreplace")
        self._batch.append(
            Message(
                topic,
                bytes(message.payload[: self._reader.cut_bytes]),
                message.qos,
                message.mid,
                message.retain,
                self._clock.now(),
                self._connection,
                message.dup,
            )
        )


class PahoClient(Client):
    """paho on a socket of ours. Everything private that is used of paho 2.2 is here."""

    def __init__(
        self, version: MQTTProtocolVersion, client_id: str, is_session_kept: bool, open_socket: Callable[[], SocketLike]
    ) -> None:
        super().__init__(
            CallbackAPIVersion.VERSION2,
            client_id,
            clean_session=None if version == MQTTProtocolVersion.MQTTv5 else not is_session_kept,
            protocol=version,
            reconnect_on_failure=False,
            manual_ack=True,
        )
        self._open_socket = open_socket
        # With this callback paho leaves every write to `loop_write`.
        self.on_socket_register_write = _leave_it

    def _create_socket(self) -> SocketLike:
        return self._open_socket()

    def _handle_pubrel(self) -> MQTTErrorCode:
        """Answer a PUBREL for a message that is not known any more, as after a restart.

        Under manual acknowledgement paho does not, and the broker would keep one place of its window taken for ever.
        """
        mid = int.from_bytes(self._in_packet["packet"][:2], "big")
        is_known = mid in self._in_messages
        code = super()._handle_pubrel()
        return code if is_known or code != MQTTErrorCode.MQTT_ERR_SUCCESS else self._send_pubcomp(mid)

    def is_open(self) -> bool:
        """False as soon as paho has closed the connection."""
        return self.socket() is not None

    def ask_sooner(self, seconds: float) -> None:
        """Once connected: so much sooner than the keep-alive that was agreed.

        Unanswered for as long again the connection is given up: a half-open one within two keep-alives, although
        nobody looks more often than once in IDLE_SECONDS.
        """
        if self._keepalive:
            self._keepalive = max(self._keepalive - math.ceil(seconds), 1)

    def queue_acknowledgements(self, packets: bytes) -> None:
        """Many PUBACK and PUBCOMP packets in one write."""
        self._packet_queue(MessageType.PUBACK, packets, 0, 1)

    def note_received(self) -> None:
        """Bytes that paho did not see have come: the broker is alive."""
        with self._msgtime_mutex:
            self._last_bytes_received = time.monotonic()


def _leave_it(client: Client, _userdata: object, sock: SocketLike) -> None:
    """Do nothing."""


def acknowledgements(messages: Sequence[Message], connection: int) -> bytes:
    """The packets that acknowledge what this connection has delivered at QoS 1 and 2."""
    # Unpacking costs a third of four attributes.
    words = [_ACKNOWLEDGEMENT[qos] | mid for _, _, qos, mid, _, _, by, _ in messages if qos and by == connection]
    return struct.pack(f">{len(words)}I", *words)


def _is_valid_properties(block: bytes) -> bool:
    """paho's judgement of the property block of a PUBLISH."""
    try:
        _, size = Properties(PacketTypes.PUBLISH).unpack(block)
    except (MQTTException, struct.error, IndexError, KeyError, ValueError):
        return False
    return bool(size == len(block))
