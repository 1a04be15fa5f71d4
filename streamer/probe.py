"""Short connections to the broker that find out what it does; `doctor` asks, this file speaks.

Nothing runs in the background: each method returns when it is done, when its time is up, or raises NoConnectionError.
A probe has a client id of its own, a session that ends with it unless the caller wants to keep it, and no last will.
"""

from __future__ import annotations

import select
import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import NamedTuple, Self

from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags, MQTTMessage
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from streamer import endings
from streamer.endings import Ending
from streamer.receiver import VERSIONS, PahoClient
from streamer.wire import Wire, connect

TURN_SECONDS = 0.1  # the longest sleep within a wait
MOST_IN_FLIGHT = 20  # mosquitto's own default
MOST_PER_SECOND = 1_000  # messages; a tenth of what mosquitto relays on a slow core
MOST_READS = 100  # of one round: a flood must not keep us from looking at the time
EXPIRY_SECONDS = 60  # of what a probe publishes with MQTT 5: nobody's queue keeps it longer
FAILURE = 0x80  # reason codes from here on (MQTT 5, section 2.4)


class NoConnectionError(Exception):
    """There is no connection, or no longer; `ending` says why."""

    def __init__(self, ending: Ending) -> None:
        super().__init__(ending.detail)
        self.ending = ending


@dataclass(slots=True)
class Traffic:
    """What all probes together have sent and received."""

    connections: int = 0
    messages_sent: int = 0
    messages_received: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0


@dataclass(frozen=True, slots=True)
class Access:
    """How the daemon connects, but for its name."""

    host: str
    port: int
    username: str = ""
    password: str = ""
    tls: ssl.SSLContext | None = None
    keep_alive_seconds: int = 30
    timeout_seconds: float = 10.0
    """of a connection, and of every answer"""
    max_packet_bytes: int = 1_048_576
    traffic: Traffic = field(default_factory=Traffic)

    @property
    def place(self) -> str:
        return f"{self.host}:{self.port}"


class Received(NamedTuple):
    """A message that has come."""

    topic: str
    payload: bytes
    retain: bool


class Probe:
    """One connection; `with` makes it and ends it."""

    def __init__(
        self,
        access: Access,
        client_id: str,
        protocol: str,
        *,
        session_expiry_seconds: int = 0,
        is_clean: bool = True,
        receive_maximum: int = 1000,
    ) -> None:
        """`protocol` is 5 or 3.1.1. With `is_clean` the broker forgets what it held under this client id."""
        self.client_id = client_id
        self.is_v5 = protocol == "5"
        self.is_session_present = False
        self.properties: dict[str, object] = {}
        """what CONNACK says beyond success; MQTT 5"""
        self.connect_seconds = 0.0
        self.messages: list[Received] = []
        self.confirmed: dict[int, int] = {}
        """reason code of each publish that the broker has confirmed, by its identifier"""
        self._access = access
        self._protocol = protocol
        self._session_expiry_seconds = session_expiry_seconds
        self._is_clean = is_clean
        self._receive_maximum = receive_maximum
        self._is_accepted = False
        self._ending: Ending | None = None
        self._granted: dict[int, list[int]] = {}
        self._wire: Wire | None = None
        self._client = PahoClient(VERSIONS[protocol], client_id, not is_clean, self._open_wire)
        self._client.on_connect = self._on_connect
        self._client.on_disconnect = self._on_disconnect
        self._client.on_subscribe = self._on_subscribe
        self._client.on_publish = self._on_publish
        self._client.on_message = self._on_message

    def __enter__(self) -> Self:
        """Connect. Raises NoConnectionError."""
        began = time.monotonic()
        access = self._access
        if access.username:
            self._client.username_pw_set(access.username, access.password)
        try:
            if self.is_v5:
                properties = Properties(PacketTypes.CONNECT)
                properties.SessionExpiryInterval = self._session_expiry_seconds
                properties.ReceiveMaximum = self._receive_maximum
                properties.MaximumPacketSize = access.max_packet_bytes
                self._client.connect(
                    access.host,
                    access.port,
                    access.keep_alive_seconds,
                    clean_start=self._is_clean,
                    properties=properties,
                )
            else:
                self._client.connect(access.host, access.port, access.keep_alive_seconds)
        except (OSError, UnicodeError) as error:
            raise NoConnectionError(endings.unreachable(error, access.place)) from error
        try:
            if not self.wait(lambda: self._is_accepted, access.timeout_seconds):
                raise NoConnectionError(endings.silent(access.place, access.timeout_seconds))
        except BaseException:
            self._close()
            raise
        self.connect_seconds = time.monotonic() - began
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Say goodbye."""
        if self._client.is_open():
            self._client.disconnect()
            self._client.loop_write()  # what a full socket does not take is lost with the goodbye
        self._close()

    def subscribe(self, topic_filter: str, qos: int, *, no_local: bool = False, retain_handling: int = 0) -> int | None:
        """The broker's answer: the QoS that it grants, a reason of 128 and more, or None if it gave none in time."""
        if self.is_v5:
            options = SubscribeOptions(qos, noLocal=no_local, retainHandling=retain_handling)
            _, mid = self._client.subscribe(topic_filter, options=options)
        else:
            _, mid = self._client.subscribe(topic_filter, qos)
        if mid is None:
            raise self._lost()
        is_answered = self.wait(lambda: mid in self._granted, self._access.timeout_seconds)
        return self._granted[mid][0] if is_answered else None

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> int:
        """Send a message; its identifier is in `confirmed` when the broker has it."""
        properties = None
        if self.is_v5:
            properties = Properties(PacketTypes.PUBLISH)
            properties.MessageExpiryInterval = EXPIRY_SECONDS
        self._access.traffic.messages_sent += 1
        return self._client.publish(topic, payload, qos, retain, properties).mid

    def publish_all(self, topic: str, payloads: Sequence[bytes], *, retain: bool = False) -> list[int]:
        """Send messages at QoS 1, no faster than is kind; the broker's reason code for each.

        It ends with the first that the broker does not confirm in time: the list is shorter then.
        """
        reasons: list[int] = []
        limit = self.properties.get("ReceiveMaximum")
        window = min(MOST_IN_FLIGHT, limit) if isinstance(limit, int) else MOST_IN_FLIGHT
        for start in range(0, len(payloads), window):
            began = time.monotonic()
            mids = [self.publish(topic, payload, retain=retain) for payload in payloads[start : start + window]]
            self.wait(partial(self._has_confirmed, mids), self._access.timeout_seconds)
            # Taken out: identifiers begin anew after 65,535.
            reasons += [self.confirmed.pop(mid) for mid in mids if mid in self.confirmed]
            if len(reasons) < start + len(mids):
                break
            self.wait(lambda: False, len(mids) / MOST_PER_SECOND - (time.monotonic() - began))
        return reasons

    def _has_confirmed(self, mids: list[int]) -> bool:
        return all(mid in self.confirmed for mid in mids)

    def collect(self, count: int, quiet_seconds: float) -> None:
        """Wait until so many messages have come, or none for a while."""
        before = -1
        while before < len(self.messages) < count:
            before = len(self.messages)
            self.wait(partial(self._has_more_than, before), quiet_seconds)

    def _has_more_than(self, count: int) -> bool:
        return len(self.messages) > count

    def payloads(self, topic: str) -> list[bytes]:
        """What has come on a topic."""
        return [message.payload for message in self.messages if message.topic == topic]

    def wait(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Serve the connection until the condition holds; False when the time is up."""
        deadline = time.monotonic() + seconds
        while not condition():
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            self._turn(min(left, TURN_SECONDS))
        return True

    def _turn(self, seconds: float) -> None:
        """One round of reading and writing."""
        wire = self._wire
        if wire is None or not self._client.is_open():
            raise self._lost()
        if self._client.want_write():
            self._client.loop_write()
        if not wire.has_pending():
            poll = select.poll()
            poll.register(wire.fileno(), select.POLLIN | (select.POLLOUT if self._client.want_write() else 0))
            poll.poll(1000 * seconds)
        wire.is_drained = False
        for _ in range(MOST_READS):
            if wire.is_drained or not self._client.is_open():
                break
            self._client.loop_read()
        self._client.loop_misc()

    def _lost(self) -> NoConnectionError:
        end = self._wire.end if self._wire is not None else None
        return NoConnectionError(self._ending or endings.lost(end, self._access.place, self._is_accepted))

    def _open_wire(self) -> Wire:
        self._access.traffic.connections += 1
        self._wire = connect(
            self._access.host, self._access.port, self._access.timeout_seconds, self._access.tls, is_buffered=False
        )
        return self._wire

    def _close(self) -> None:
        if self._wire is not None and not self._wire.is_closed:
            self._wire.close()
        if self._wire is not None:
            self._access.traffic.bytes_sent += self._wire.bytes_sent
            self._access.traffic.bytes_received += self._wire.bytes_received
            self._wire = None

    # --- What paho calls, within `_turn` ---

    def _on_connect(
        self, _client: Client, _userdata: object, flags: ConnectFlags, reason: ReasonCode, said: Properties | None
    ) -> None:
        self.properties = dict(said.json()) if said is not None else {}
        if reason.is_failure:
            added = self.properties.get("ReasonString")
            text = f"{reason} ({added})" if added else str(reason)
            self._ending = endings.refused(reason.value, text, self._protocol, self.client_id)
            return
        self.is_session_present = flags.session_present
        self._is_accepted = True

    def _on_disconnect(
        self, _client: Client, _userdata: object, flags: DisconnectFlags, reason: ReasonCode, _said: Properties | None
    ) -> None:
        if self._ending is None and flags.is_disconnect_packet_from_server:
            self._ending = endings.dismissed(reason.value, str(reason), self.client_id)

    def _on_subscribe(
        self, _client: Client, _userdata: object, mid: int, reasons: list[ReasonCode], _said: Properties | None
    ) -> None:
        self._granted[mid] = [reason.value for reason in reasons]

    def _on_publish(
        self, _client: Client, _userdata: object, mid: int, reason: ReasonCode, _said: Properties | None
    ) -> None:
        self.confirmed[mid] = reason.value

    def _on_message(self, client: Client, _userdata: object, message: MQTTMessage) -> None:
        try:
            topic = message.topic
        except UnicodeDecodeError:
            topic = ""
        self._access.traffic.messages_received += 1
        self.messages.append(Received(topic, bytes(message.payload), message.retain))
        client.ack(message.mid, message.qos)
