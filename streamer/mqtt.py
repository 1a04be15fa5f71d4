"""The link to the broker: packets in, alarms out. It knows paho, as receiver.py and probe.py do and nobody else.

One thread of ours runs paho's public loop functions (`loop_read`, `loop_write`, `loop_misc`); nobody else ever touches
the library. Other threads append to a queue and ring a bell. The thread connects, tells apart why a connection ended,
and waits before the next one: longer where a person has to act, so that a wrong password does not hammer the broker.
"""

from __future__ import annotations

import contextlib
import logging
import random
import select
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags
from paho.mqtt.enums import MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from streamer import endings
from streamer.clock import Clock
from streamer.endings import Ending, Fate
from streamer.log import SparingLog, event
from streamer.readings import Message
from streamer.receiver import ACKNOWLEDGEMENT_BYTES, VERSIONS, PahoClient, Receiver, acknowledgements
from streamer.topics import status_topic
from streamer.wire import Wire, connect

log = logging.getLogger(__name__)

ONLINE, OFFLINE = b"online", b"offline"
TEXT = "text/plain"
SMALL_BATCH = 64  # messages of a read after which waiting for more pays (measured behind mosquitto)
SHORTEST_LINGER_SECONDS = 0.0001  # a shorter sleep is mostly the kernel's own slack
IDLE_SECONDS = 1.0  # the longest sleep: keep-alive and deadlines are looked at so often
MOST_IN_FLIGHT = 20  # publishes without acknowledgement; mosquitto's own default
OUTGOING_BYTES = 256  # what a message that waits weighs beside its topic and payload
SUSPICIOUS_TIMES = 2  # connections lost in a row, each soon after it was made
REPEAT_SECONDS = 60.0  # the same trouble is logged once in so long
NAMES = {version: name for name, version in VERSIONS.items()}


class _Publish(NamedTuple):
    """A message that is to go out."""

    topic: str
    payload: bytes
    qos: int
    retain: bool
    content_type: str
    expiry_seconds: int | None


@dataclass(frozen=True, slots=True)
class LinkStatus:
    """How the link stands; a new value at every change."""

    connected: bool = False
    subscribed: bool = False
    """the broker has granted every filter"""
    since: float = 0.0
    """epoch seconds of the last change of `connected`"""
    detail: str = "not started"
    """one sentence for a person"""
    generation: int = 0
    """number of the connection, counted by attempts: `Message.connection` of what it delivers"""
    protocol: str | None = None
    """5 | 3.1.1; None while there is no connection"""
    reconnects: int = 0
    is_session_present: bool = False
    """the broker still had the session: it sends again what was not acknowledged"""
    session_began: int = 0
    """number of the connection that began the present session: what older ones delivered never comes again; 0 for a
    session of an earlier run"""
    is_alive: bool = True
    """False: a bug has ended the network thread, and nothing will come any more"""


@dataclass(slots=True)
class LinkCounters:
    """What the link has counted since its start."""

    bytes_received: int = 0
    messages_received: int = 0
    acknowledged: int = 0
    acknowledgements_stale: int = 0
    """not sent, since the connection that delivered the message is gone"""
    published: int = 0
    """handed over; QoS 1 and 2: confirmed by the broker"""
    publishes_dropped: int = 0
    """refused by `publish`"""
    publishes_refused: int = 0
    """refused by the broker, which only MQTT 5 tells"""
    reconnects: int = 0


class MqttLink:
    """A lasting connection to one broker.

    `deliver` is called by the network thread with the messages of one read, in their order; it must not block. What it
    takes stays unacknowledged at QoS 1 and 2 until `ack`.
    """

    def __init__(
        self,
        *,
        host: str,
        port: int,
        instance: str,
        client_id: str,
        filters: Sequence[str],
        deliver: Callable[[list[Message]], None],
        clock: Clock,
        protocol: str = "auto",
        qos: int = 1,
        username: str = "",
        password: str = "",
        tls: ssl.SSLContext | None = None,
        keep_alive_seconds: int = 30,
        session_expiry_seconds: int = 259_200,
        connect_timeout_seconds: float = 10.0,
        reconnect_min_seconds: float = 1.0,
        reconnect_max_seconds: float = 30.0,
        max_packet_bytes: int = 1_048_576,
        receive_maximum: int = 1000,
        linger_seconds: float = 0.002,
        outgoing_bytes: int = 16 << 20,
        unwanted: Sequence[str] = (),
        commands: str | None = None,
        besides: Sequence[str] = (),
        fast: bool = True,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """`protocol` is 5, 3.1.1 or auto; `fast=False` receives by paho alone; `jitter` gives numbers in [0, 1).

        `unwanted` are filters that an earlier run of this client id had and this one has not: the broker's session
        still holds them. `commands` is a topic to listen to besides, at QoS 1; what comes there from the time before
        this connection is delivered as retained. `besides` are further topics, at QoS 1 too. Without commands and those
        the link is as good as with them.
        """
        self._host = host
        self._port = port
        self._client_id = client_id
        self._filters = list(filters)
        self._unwanted = [each for each in unwanted if each not in (*filters, *besides, commands)]
        self._commands = commands
        self._commands_mid: int | None = None
        self._besides = list(besides)
        self._besides_mids: dict[int, str] = {}
        self._deliver = deliver
        self._clock = clock
        self._versions = list(VERSIONS.values()) if protocol == "auto" else [VERSIONS[protocol]]
        self._qos = qos
        self._username = username
        self._password = password
        self._tls = tls
        self._keep_alive_seconds = keep_alive_seconds
        self._session_expiry_seconds = session_expiry_seconds
        self._connect_timeout_seconds = connect_timeout_seconds
        self._reconnect_min_seconds = reconnect_min_seconds
        self._reconnect_max_seconds = reconnect_max_seconds
        self._max_packet_bytes = max_packet_bytes
        self._receive_maximum = receive_maximum
        self._linger_seconds = linger_seconds
        self._outgoing_bytes = outgoing_bytes
        self._is_fast = fast
        self._jitter = jitter
        self._status_topic = status_topic(instance)
        self._sparing = SparingLog(log, REPEAT_SECONDS, clock.monotonic)

        # Shared with other threads: appended to here, emptied by the network thread.
        self._outgoing: deque[_Publish] = deque()
        self._putting = threading.Lock()  # between those who publish
        self._put_bytes = self._sent_bytes = 0  # that went into it and out of it; the latter the network thread writes
        self._acks: deque[tuple[int, int, int, bytes]] = deque()  # connection, how many, stale ones, packets
        self._bell, self._bell_rope = socket.socketpair()
        self._bell.setblocking(False)
        self._bell_rope.setblocking(False)
        self._is_rung = False
        self._no_pause = threading.Event()
        self._leave_by: float | None = None  # monotonic; set by `stop`
        self._thread: threading.Thread | None = None
        self._status = LinkStatus()
        self._counters = LinkCounters()

        # The network thread's own.
        self._clients: dict[MQTTProtocolVersion, PahoClient] = {}
        self._receiver = Receiver(max_packet_bytes, clock, fast, commands)
        self._wire: Wire | None = None
        self._generation = 0
        self._session_began = 0
        self._accepted_at: float | None = None  # monotonic; None until CONNACK
        self._ending: Ending | None = None
        self._in_flight: set[int] = set()
        self._most_in_flight = MOST_IN_FLIGHT
        self._best_qos = 2
        self._may_retain = True
        self._subscribe_again_at: float | None = None
        self._protocol = ""
        self._spoken: MQTTProtocolVersion | None = None
        self._was_ever_accepted = False
        self._has_said_offline = False

    # --- For other threads ---

    def start(self) -> None:
        """Begin to connect; returns at once."""
        self._status = replace(self._status, detail=f"connecting to {self._place}", since=self._clock.now())
        self._thread = threading.Thread(target=self._run, name="mqtt", daemon=True)
        self._thread.start()

    def stop(self, timeout_seconds: float) -> bool:
        """Send what waits, say offline and goodbye; False if that was not done in time. Nothing is delivered after."""
        self._leave_by = self._clock.monotonic() + timeout_seconds
        self._no_pause.set()
        self._ring()
        if self._thread is not None:
            self._thread.join(timeout_seconds + 1.0)
            if self._thread.is_alive():  # it hangs in a connect or a name look-up; it is a daemon thread
                return False
        self._bell.close()
        self._bell_rope.close()
        return self._status.is_alive and not self._outgoing and not self._in_flight

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: int = 1,
        retain: bool = False,
        content_type: str = "",
        expiry_seconds: int | None = None,
    ) -> bool:
        """Queue a message, also while there is no connection; False if the queue is full or the link has ended.

        Of text `content_type` says what it is; with that and `expiry_seconds` only MQTT 5 can do something.
        """
        weight = len(topic) + len(payload) + OUTGOING_BYTES
        with self._putting:
            is_full = self._put_bytes - self._sent_bytes + weight > self._outgoing_bytes
            if is_full or self._leave_by is not None or not self._status.is_alive:
                self._counters.publishes_dropped += 1
                return False
            self._put_bytes += weight
            self._outgoing.append(_Publish(topic, payload, qos, retain, content_type, expiry_seconds))
        self._ring()
        return True

    def ack(self, messages: Sequence[Message]) -> None:
        """Acknowledge messages; the engine calls it once a turn, when it is sure of them.

        Those of an older connection are left out: their identifiers may mean other messages by now, and the broker
        sends them again.
        """
        connection = self._generation
        packets = acknowledgements(messages, connection)
        count = len(packets) // ACKNOWLEDGEMENT_BYTES
        stale = 0 if count == len(messages) else sum(message.qos > 0 for message in messages) - count
        if count or stale:
            self._acks.append((connection, count, stale, packets))
            self._ring()

    def set_password(self, password: str) -> None:
        """Use another password from the next connection on, and try at once if there is none now."""
        self._password = password
        self._no_pause.set()

    def status(self) -> LinkStatus:
        """How the link stands now."""
        return self._status

    def counters(self) -> LinkCounters:
        """A copy of the counters."""
        return replace(self._counters)

    def _ring(self) -> None:
        """Wake the network thread, once for all that is queued."""
        if not self._is_rung:
            self._is_rung = True
            with contextlib.suppress(OSError):  # full: it rings already; closed: there is nobody to wake
                self._bell_rope.send(b"!")

    # --- The network thread ---

    @property
    def _place(self) -> str:
        return f"{self._host}:{self._port}"

    def _run(self) -> None:
        try:
            self._stay_connected()
        except Exception as error:  # our bug: the process has to end, and `is_alive` says so
            log.exception("a bug has ended the network thread")
            self._tell(f"a bug has ended the network thread: {error!r}", connected=False, is_alive=False)
        finally:
            if self._wire is not None:
                self._wire.close()

    def _stay_connected(self) -> None:
        """Connect again and again until `stop`."""
        failures = short_lived = 0
        while not self._is_leaving():
            ending = self._connect_in_any_version()
            if self._is_leaving():
                break
            was_good = self._accepted_for_seconds() >= self._reconnect_max_seconds
            failures = 1 if was_good else failures + 1
            short_lived = 0 if was_good or self._accepted_at is None else short_lived + 1
            if short_lived >= SUSPICIOUS_TIMES and ending.fate is not Fate.PERSON:
                ending = endings.suspicious(ending, short_lived, self._client_id)
            self._pause(ending, failures)
        self._tell("stopped", connected=False)

    def _pause(self, ending: Ending, failures: int) -> None:
        """Say why there is no connection, and wait before the next attempt."""
        seconds = endings.pause_seconds(
            failures, ending.fate, self._reconnect_min_seconds, self._reconnect_max_seconds, self._jitter()
        )
        self._tell(ending.detail, connected=False)
        self._sparing.event(
            logging.ERROR if ending.fate is Fate.PERSON else logging.WARNING,
            "no connection to the broker",
            per=ending.detail,
            broker=self._place,
            reason=ending.detail,
            next_attempt_seconds=round(seconds, 1),
        )
        self._no_pause.wait(seconds)
        self._no_pause.clear()

    def _is_leaving(self) -> bool:
        return self._leave_by is not None

    def _accepted_for_seconds(self) -> float:
        """How long the broker has held the connection; 0 for one that it did not accept."""
        return 0.0 if self._accepted_at is None else self._clock.monotonic() - self._accepted_at

    def _connect_in_any_version(self) -> Ending:
        """Hold a connection until it ends. A broker that may not know MQTT 5 is asked for 3.1.1 at once.

        One that has spoken a version in this run is not taken to have forgotten it, unless it says so.
        """
        ending = Ending("not tried")
        for version in self._versions:
            ending = self._hold_connection(version)
            if ending.fate is not Fate.VERSION or version == self._spoken or self._is_leaving():
                break
            self._sparing.event(
                logging.INFO, "this version of MQTT brings no connection", protocol=self._protocol, reason=ending.detail
            )
        return ending

    def _hold_connection(self, version: MQTTProtocolVersion) -> Ending:
        """One connection from its first byte to its last; gives why it ended."""
        self._generation += 1
        self._protocol = NAMES[version]
        self._accepted_at = None
        self._ending = None
        self._subscribe_again_at = None
        self._receiver.begin(self._generation, version == MQTTProtocolVersion.MQTTv5)
        client = self._clients.get(version) or self._make_client(version)
        if self._username:
            client.username_pw_set(self._username, self._password)
        try:
            wire = self._connect(client, version)
        except (OSError, UnicodeError) as error:  # the latter from a host name that no DNS can hold
            return endings.unreachable(error, self._place)
        try:
            self._serve(client, wire)
        finally:
            wire.close()
        return self._ending or endings.lost(wire.end, self._place, self._accepted_at is not None)

    def _connect(self, client: PahoClient, version: MQTTProtocolVersion) -> Wire:
        """Open the socket and queue CONNECT; raises OSError."""
        if version == MQTTProtocolVersion.MQTTv5:
            properties = Properties(PacketTypes.CONNECT)
            properties.SessionExpiryInterval = self._session_expiry_seconds
            properties.ReceiveMaximum = self._receive_maximum
            properties.MaximumPacketSize = self._max_packet_bytes
            clean = self._session_expiry_seconds == 0
            client.connect(self._host, self._port, self._keep_alive_seconds, clean_start=clean, properties=properties)
        else:
            client.connect(self._host, self._port, self._keep_alive_seconds)
        wire = client.socket()
        if not isinstance(wire, Wire):
            raise TypeError("paho has connected without `_create_socket`")
        return wire

    def _make_client(self, version: MQTTProtocolVersion) -> PahoClient:
        client = PahoClient(version, self._client_id, self._session_expiry_seconds > 0, self._open_wire)
        is_v5 = version == MQTTProtocolVersion.MQTTv5
        properties = _properties(PacketTypes.WILLMESSAGE, self._status_message(OFFLINE)) if is_v5 else None
        client.will_set(self._status_topic, OFFLINE, qos=1, retain=True, properties=properties)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_subscribe = self._on_subscribe
        client.on_message = self._receiver.on_message
        client.on_publish = self._on_publish
        self._clients[version] = client
        return client

    def _open_wire(self) -> Wire:
        """paho calls it to connect; raises OSError."""
        self._wire = connect(
            self._host, self._port, self._connect_timeout_seconds, self._tls, is_buffered=self._is_fast
        )
        return self._wire

    def _serve(self, client: PahoClient, wire: Wire) -> None:
        """Run a connection until it ends; `_ending` or `wire.end` say why."""
        poll = select.poll()
        poll.register(self._bell, select.POLLIN)
        linger = Linger(self._linger_seconds)
        accept_by = self._clock.monotonic() + self._connect_timeout_seconds
        while client.is_open():
            if self._accepted_at is None and self._clock.monotonic() > accept_by:
                self._ending = endings.silent(self._place, self._connect_timeout_seconds)
                return
            if self._leave_by is not None and self._leave(client, self._leave_by):
                return
            self._send(client)
            if not client.is_open():
                return
            poll.register(wire.fileno(), select.POLLIN | (select.POLLOUT if client.want_write() else 0))
            events = linger.end(poll, wire) or dict(poll.poll(0 if wire.has_pending() else 1000 * IDLE_SECONDS))
            if self._bell.fileno() in events:
                self._bell.recv(64)
                self._is_rung = False
            if events.get(wire.fileno(), 0) & ~select.POLLOUT or wire.has_pending():
                linger.begin(self._receive(client, wire))
            client.loop_misc()
            self._retry_filters(client)

    def _retry_filters(self, client: Client) -> None:
        """Ask again for filters that the broker has refused: its permissions may have changed."""
        if self._subscribe_again_at is not None and self._clock.monotonic() >= self._subscribe_again_at:
            self._subscribe(client)

    def _receive(self, client: PahoClient, wire: Wire) -> int:
        """Read what has come and deliver it; gives the number of messages."""
        batch = self._receiver.receive(client, wire)
        self._counters.bytes_received += wire.bytes_received
        wire.bytes_received = 0
        if batch:
            self._counters.messages_received += len(batch)
            self._deliver(batch)
        return len(batch)

    def _send(self, client: PahoClient) -> None:
        """Write what other threads have queued, all acknowledgements in one piece; a full socket makes them wait."""
        if client.want_write():
            client.loop_write()
        if self._accepted_at is None or client.want_write():
            return
        packets = b"".join(self._take_acks())
        if packets:
            client.queue_acknowledgements(packets)
            client.loop_write()
        while self._outgoing and len(self._in_flight) < self._most_in_flight and not client.want_write():
            message = self._outgoing.popleft()
            self._sent_bytes += len(message.topic) + len(message.payload) + OUTGOING_BYTES
            self._publish_now(client, message)
            client.loop_write()

    def _take_acks(self) -> list[bytes]:
        """The packets for what was acknowledged on this connection."""
        taken = []
        while self._acks:
            connection, count, stale, packets = self._acks.popleft()
            if connection != self._generation:
                count, stale, packets = 0, stale + count, b""
            self._counters.acknowledged += count
            self._counters.acknowledgements_stale += stale
            taken.append(packets)
        return taken

    def _publish_now(self, client: Client, message: _Publish) -> None:
        """Queue a PUBLISH in paho, as far as the broker supports it."""
        qos = min(message.qos, self._best_qos)
        is_v5 = client.protocol == MQTTProtocolVersion.MQTTv5
        properties = _properties(PacketTypes.PUBLISH, message) if is_v5 else None
        info = client.publish(message.topic, message.payload, qos, message.retain and self._may_retain, properties)
        if qos:
            self._in_flight.add(info.mid)

    def _status_message(self, payload: bytes) -> _Publish:
        """It never expires: a subscriber wants to know for how long we have been away."""
        return _Publish(self._status_topic, payload, 1, True, TEXT, None)

    def _leave(self, client: PahoClient, leave_by: float) -> bool:
        """Say offline behind all that waits, and goodbye when the broker has it; True when there is no more to do.

        The broker's confirmation of `offline` also means that it has read every acknowledgement before it.
        """
        if self._accepted_at is None:
            return True
        if not self._has_said_offline and not self._outgoing and not self._acks:
            self._has_said_offline = True
            self._publish_now(client, self._status_message(OFFLINE))
        is_done = self._has_said_offline and not self._in_flight and not client.want_write()
        if is_done or self._clock.monotonic() >= leave_by:
            client.disconnect()
            client.loop_write()
            return True
        return False

    def _subscribe(self, client: Client) -> None:
        """Ask for all filters; MQTT 5 is told to send neither our own messages nor retained ones."""
        self._subscribe_again_at = None
        if client.protocol == MQTTProtocolVersion.MQTTv5:
            options = SubscribeOptions(self._qos, noLocal=True, retainHandling=SubscribeOptions.RETAIN_DO_NOT_SEND)
            client.subscribe([(topic_filter, options) for topic_filter in self._filters])
        else:
            client.subscribe([(topic_filter, self._qos) for topic_filter in self._filters])

    def _subscribe_besides(self, client: Client) -> None:
        """Each a subscription of its own, so that a broker that refuses it refuses nothing else."""
        if self._commands is not None:
            self._commands_mid = self._subscribe_to(client, self._commands)
        self._besides_mids = {mid: topic for topic in self._besides if (mid := self._subscribe_to(client, topic))}

    @staticmethod
    def _subscribe_to(client: Client, topic: str) -> int | None:
        if client.protocol == MQTTProtocolVersion.MQTTv5:
            options = SubscribeOptions(1, noLocal=True, retainHandling=SubscribeOptions.RETAIN_DO_NOT_SEND)
            return client.subscribe([(topic, options)])[1]
        return client.subscribe(topic, 1)[1]

    def _note_commands(self, reason: ReasonCode) -> None:
        """The broker has answered; from here on a command is one of now."""
        self._receiver.end_backlog()
        if reason.is_failure:
            detail = f"the broker refuses the subscription to {self._commands}: {reason}"
            self._sparing.event(logging.ERROR, "no commands by MQTT", per=detail, reason=detail)
        else:
            event(log, logging.INFO, "commands are taken", topic=self._commands)

    def _take_over(self, client: Client) -> None:
        """Publish again what the other version's client had not seen confirmed."""
        for other in self._clients.values():
            if other is not client:
                unconfirmed = other.drop_out_messages()
                self._sent_bytes -= sum(len(m.topic) + len(m.payload) + OUTGOING_BYTES for m in unconfirmed)
                self._in_flight.difference_update(message.mid for message in unconfirmed)
                self._outgoing.extendleft(
                    _Publish(
                        message.topic,
                        bytes(message.payload),
                        message.qos,
                        message.retain,
                        getattr(message.properties, "ContentType", ""),
                        getattr(message.properties, "MessageExpiryInterval", None),
                    )
                    for message in reversed(unconfirmed)
                )

    def _tell(
        self, detail: str, *, connected: bool, subscribed: bool = False, session: bool = False, is_alive: bool = True
    ) -> None:
        """Change the status."""
        old = self._status
        self._status = LinkStatus(
            connected=connected,
            subscribed=subscribed,
            since=old.since if connected == old.connected else self._clock.now(),
            detail=detail,
            generation=self._generation,
            protocol=self._protocol if connected else None,
            reconnects=self._counters.reconnects,
            is_session_present=session,
            session_began=self._session_began,
            is_alive=is_alive,
        )

    # --- What paho calls, always within its loop functions and so on the network thread ---

    def _on_connect(
        self,
        client: Client,
        _userdata: object,
        flags: ConnectFlags,
        reason: ReasonCode,
        properties: Properties | None,
    ) -> None:
        if reason.is_failure:
            self._ending = endings.refused(reason.value, _in_words(reason, properties), self._protocol, self._client_id)
            self._spoken = None
            return
        self._spoken = VERSIONS[self._protocol]
        self._counters.reconnects += self._was_ever_accepted
        self._was_ever_accepted = True
        self._accepted_at = self._clock.monotonic()
        self._clients[VERSIONS[self._protocol]].ask_sooner(2 * IDLE_SECONDS)
        self._most_in_flight = min(MOST_IN_FLIGHT, _number(properties, "ReceiveMaximum", MOST_IN_FLIGHT))
        self._best_qos = _number(properties, "MaximumQoS", 2)
        self._may_retain = _number(properties, "RetainAvailable", 1) == 1
        if not flags.session_present:
            self._session_began = self._generation
        self._tell("connected, not yet subscribed", connected=True, session=flags.session_present)
        event(
            log,
            logging.INFO,
            "connected to the broker",
            broker=self._place,
            protocol=self._protocol,
            session_present=flags.session_present,
        )
        self._take_over(client)
        self._publish_now(client, self._status_message(ONLINE))
        if self._unwanted and flags.session_present:
            client.unsubscribe(self._unwanted)
        self._subscribe_besides(client)
        self._subscribe(client)

    def _on_subscribe(
        self, _client: Client, _userdata: object, mid: int, reasons: list[ReasonCode], _properties: Properties | None
    ) -> None:
        if mid == self._commands_mid and reasons:
            self._commands_mid = None
            self._note_commands(reasons[0])
            return
        if (topic := self._besides_mids.pop(mid, None)) is not None:
            if reasons and reasons[0].is_failure:
                detail = f"the broker refuses the subscription to {topic}: {reasons[0]}"
                self._sparing.event(logging.WARNING, "not subscribed", per=detail, broker=self._place, reason=detail)
            return
        session = self._status.is_session_present
        refused = [f"{f}: {reason}" for f, reason in zip(self._filters, reasons, strict=False) if reason.is_failure]
        if refused or len(reasons) != len(self._filters):
            detail = f"the broker refuses the subscription to {'; '.join(refused) or 'some filters'}"
            self._tell(detail, connected=True, session=session)
            self._sparing.event(logging.ERROR, "not subscribed", per=detail, broker=self._place, reason=detail)
            self._subscribe_again_at = self._clock.monotonic() + self._reconnect_max_seconds
            return
        detail = f"subscribed with MQTT {self._protocol}"
        weaker = [f for f, reason in zip(self._filters, reasons, strict=True) if reason.value < self._qos]
        if weaker:
            detail += f"; the broker grants less than QoS {self._qos} on {', '.join(weaker)}"
        self._tell(detail, connected=True, subscribed=True, session=session)
        event(log, logging.INFO, "subscribed", broker=self._place, filters=", ".join(self._filters))

    def _on_publish(
        self, _client: Client, _userdata: object, mid: int, reason: ReasonCode, _properties: Properties | None
    ) -> None:
        self._in_flight.discard(mid)
        if reason.is_failure:
            self._counters.publishes_refused += 1
            self._sparing.event(
                logging.ERROR, "the broker refuses what we publish", per=str(reason), reason=str(reason)
            )
        else:
            self._counters.published += 1

    def _on_disconnect(
        self,
        _client: Client,
        _userdata: object,
        flags: DisconnectFlags,
        reason: ReasonCode,
        properties: Properties | None,
    ) -> None:
        if self._ending is None and flags.is_disconnect_packet_from_server:
            self._ending = endings.dismissed(reason.value, _in_words(reason, properties), self._client_id)
        elif self._ending is None and (self._wire is None or self._wire.end is None):
            self._ending = Ending(f"the connection ended: {reason}")


class Linger:
    """Lets messages gather after a small batch, instead of waking for each; worth 3 to 7 times in CPU (measured).

    It lasts twice as long when something came meanwhile, and half as long when nothing did: when the broker waits for
    our acknowledgements, lingering only delays them.
    """

    def __init__(self, longest_seconds: float) -> None:
        self._longest_seconds = longest_seconds
        self.seconds = longest_seconds
        self._has_lingered = False

    def begin(self, message_count: int) -> None:
        """Wait, if a batch of so many messages asks for it."""
        if 0 < message_count < SMALL_BATCH and self._longest_seconds:
            time.sleep(self.seconds)  # lingering is the point: the broker sends more at once
            self._has_lingered = True

    def end(self, poll: select.poll, wire: Wire) -> dict[int, int]:
        """What is there by now, and learn from it; empty if there was no lingering."""
        if not self._has_lingered:
            return {}
        self._has_lingered = False
        events = dict(poll.poll(0))
        seconds = self.seconds * (2.0 if wire.fileno() in events else 0.5)
        self.seconds = min(max(seconds, SHORTEST_LINGER_SECONDS), self._longest_seconds)
        return events


def _properties(packet: int, message: _Publish) -> Properties | None:
    """What MQTT 5 says besides; None where there is nothing to say."""
    if not message.content_type and message.expiry_seconds is None:
        return None
    properties = Properties(packet)
    if message.content_type:
        properties.PayloadFormatIndicator = 1  # UTF-8
        properties.ContentType = message.content_type
    if message.expiry_seconds is not None:
        properties.MessageExpiryInterval = message.expiry_seconds
    return properties


def _in_words(reason: ReasonCode, properties: Properties | None) -> str:
    """The reason's name, with what the broker adds to it."""
    added = getattr(properties, "ReasonString", "")
    return f"{reason} ({added})" if added else str(reason)


def _number(properties: Properties | None, name: str, default: int) -> int:
    """A property of the broker's CONNACK."""
    value = getattr(properties, name, default)
    return value if isinstance(value, int) else default
