"""What the doctor tries out, on topics below `streamer/<instance>/doctor/` and under client ids of its own.

It never uses the daemon's client id, publishes nowhere else, and takes back its sessions and its retained message in
every case.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Iterator

from streamer.doctor.findings import Case, Finding, Report
from streamer.doctor.granted import Granted, judge
from streamer.endings import Fate
from streamer.probe import FAILURE, NoConnectionError, Probe
from streamer.topics import is_own_output, own_prefix, status_topic

DEFAULT_MESSAGES = 1_200  # mosquitto, EMQX and HiveMQ keep 1,000 by default
SESSION_SECONDS = 300  # how long the broker keeps the probing session if we are killed
RETAINED_SECONDS = 1.0  # until a retained message that is there has come
QUIET_SECONDS = 2.0  # nothing for so long: no more will come
WATCH_SECONDS = 6.0  # for the first message of the configured filters, all together
MOST_FILTERS = 50

QUEUE_SETTINGS = (
    "mosquitto: max_queued_messages and max_queued_bytes, as in deploy/mosquitto/mosquitto.conf; EMQX: "
    "mqtt.max_mqueue_len; HiveMQ: queued-messages"
)


class Examination:
    """One visit at the broker: `run`, and then `clean_up` whatever has happened."""

    def __init__(self, case: Case, tell: Callable[[Finding], None]) -> None:
        self.report = Report(tell)
        self._case = case
        self._protocol = ""
        suffix = secrets.token_hex(3)
        self._name = f"streamer-doctor-{suffix}"  # with one letter more 23 bytes, which every broker takes
        self._topic = f"{own_prefix(case.instance)}doctor/{suffix}/"
        self._kept: set[str] = set()
        """client ids whose session the broker may hold"""
        self._may_have_retained = False
        self._granted = Granted("", {})

    def run(self) -> None:
        """All checks, the cheap ones first. A connection that is lost ends its check and is no end of the others."""
        try:
            is_ours = self._connect()
        except NoConnectionError as error:
            self.report.warn("connection", str(error), "a connection to the broker", "see mqtt.* in docs/settings.md")
            return
        self.report.is_reached = True
        if not is_ours:
            return
        judge(self._case, self._granted, self.report)
        is_away = False
        with self._surviving("daemon"):
            is_away = self._daemon()
        delivers = False
        with self._surviving("delivery"):
            delivers = self._delivery()
        if delivers:
            for name, trial in (("retained", self._retained), ("own messages", self._no_local)):
                with self._surviving(name):
                    trial()
        self._subscriptions()
        with self._surviving("offline queue"):
            self._queue(delivers=delivers, is_away=is_away)
        self.report.unknown(
            "crash of the broker",
            "no client can see whether sessions and queues are on the broker's disk",
            "mosquitto: persistence true and autosave_interval 1, since by default it may lose half an hour; see "
            "docs/broker.md",
        )

    def clean_up(self) -> None:
        """End what sessions the broker may still hold, and take the retained message back.

        The answer to a clean start is the broker's word that the old session is gone; the new one ends with its
        connection.
        """
        left = []
        for client_id in sorted(self._kept):
            try:
                with Probe(self._case.access, client_id, self._protocol):
                    pass
            except NoConnectionError as error:
                left.append(f"the session {client_id} ({error})")
        self._kept.clear()
        if self._may_have_retained:
            try:
                with self._probe("c") as probe:
                    self._take_back(probe)
            except NoConnectionError as error:
                left.append(f"a retained message on {self._topic}retained ({error})")
        if left:
            advice = "MQTT 5 brokers drop it when its time is up; else remove it by hand"
            self.report.warn("left behind", "; ".join(left), "nothing", advice)

    @contextlib.contextmanager
    def _surviving(self, check: str) -> Iterator[None]:
        """A check that loses its connection tells so, and the next one goes on."""
        try:
            yield
        except NoConnectionError as error:
            self.report.warn(check, str(error), "a connection that lasts", "see the broker's log")

    # --- Connecting ---

    def _probe(self, letter: str, *, receive_maximum: int = 1000) -> Probe:
        """One that leaves no session."""
        return Probe(self._case.access, self._name + letter, self._protocol, receive_maximum=receive_maximum)

    def _lasting(self, letter: str, session_expiry_seconds: int) -> Probe:
        """One whose session the broker keeps, and has perhaps kept."""
        return Probe(
            self._case.access,
            self._name + letter,
            self._protocol,
            session_expiry_seconds=session_expiry_seconds,
            is_clean=False,
        )

    def _connect(self) -> bool:
        """Find the version that the broker speaks; False if it has put us into somebody else's session.

        The session is not cleared here: a broker that gives every client of a user the same name would clear the
        daemon's.
        """
        versions = ["5", "3.1.1"] if self._case.protocol == "auto" else [self._case.protocol]
        for self._protocol in versions:
            try:
                with self._lasting("a", self._case.session_expiry_seconds) as first:
                    return self._met(first)
            except NoConnectionError as error:
                if error.ending.fate is not Fate.VERSION or self._protocol == versions[-1]:
                    raise
        return False

    def _met(self, first: Probe) -> bool:
        self._granted = Granted(self._protocol, first.properties)
        if first.is_session_present:
            self.report.warn(
                "client id", "the broker has put a new client id into a session that was there, probably the daemon's",
                "a session for each client id",
                "let the broker take client ids as they are, as mosquitto does without use_username_as_clientid; "
                "nothing else was tried, for the daemon's sake",
            )  # fmt: skip
            return False
        self._kept.add(first.client_id)
        seconds, most = first.connect_seconds, self._case.access.timeout_seconds
        found = f"MQTT {self._protocol} with {self._case.access.place} in {seconds:.2f} s"
        if reason := first.properties.get("ReasonString"):
            found += f"; the broker says: {reason}"
        if seconds > most / 2:
            self.report.warn("connection", found, f"less than half of {most:g} s", "raise mqtt.connect_timeout_seconds")
        elif self._protocol == "3.1.1" and self._case.protocol == "auto":
            self.report.ok("connection", found + "; the broker does not speak MQTT 5")
        else:
            self.report.ok("connection", found)
        assigned = first.properties.get("AssignedClientIdentifier")
        if assigned is not None:
            self.report.warn(
                "client id", f"the broker calls us {assigned}", "the client id that was asked for",
                "let the broker take client ids as they are: the session hangs on them",
            )  # fmt: skip
        return True

    # --- What has to be tried ---

    def _daemon(self) -> bool:
        """Whether the daemon's retained status says that it is away: what we publish would wait in its queue."""
        status = self._retained_on(status_topic(self._case.instance))
        version = None
        with contextlib.suppress(NoConnectionError):  # there are brokers that close for $SYS
            version = self._retained_on("$SYS/broker/version")
        self.report.ok(
            "broker and daemon",
            f"the broker is {version or 'of an unknown kind'}; the daemon is {status or 'not known to it'}",
        )
        return status == "offline"

    def _retained_on(self, topic: str) -> str | None:
        with self._probe("a") as probe:
            probe.subscribe(topic, 0)
            probe.wait(lambda: bool(probe.messages), RETAINED_SECONDS)
            return probe.messages[0].payload.decode(errors="replace") if probe.messages else None

    def _delivery(self) -> bool:
        """Whether what we publish comes back to us; without it nothing else can be tried out."""
        if self._granted.number("MaximumQoS") == 0:
            self.report.unknown("delivery", "not tried, since nothing can be published at QoS 1")
            return False
        topic = self._topic + "delivery"
        with self._probe("a") as reader, self._probe("b") as writer:
            granted = reader.subscribe(topic, 1)
            began = time.monotonic()
            reasons = writer.publish_all(topic, [b"doctor: is this delivered?"])
            seconds = time.monotonic() - began
            has_come = reader.wait(lambda: bool(reader.messages), QUIET_SECONDS)
        if has_come:
            self.report.ok("delivery", f"{topic} at QoS {granted}, confirmed after {seconds:.2f} s")
            return True
        refused = granted is None or granted >= FAILURE or not reasons or reasons[0] >= FAILURE
        self.report.warn(
            "delivery", f"{'the broker refuses' if refused else 'nothing arrives on'} {topic}",
            f"leave for this user to write and read {own_prefix(self._case.instance)}#",
            "see the broker's access list; queue and retained messages were not tried",
        )  # fmt: skip
        return False

    def _retained(self) -> None:
        if self._granted.number("RetainAvailable") == 0:
            return
        topic = self._topic + "retained"
        with self._probe("b") as writer:
            self._may_have_retained = True
            writer.publish_all(topic, [b"doctor: an old value"], retain=True)
            old = self._first_on(topic, writer, 0)
            again = self._first_on(topic, writer, 2) if self._protocol == "5" else b""
            self._take_back(writer)
        if old is None:
            self.report.warn(
                "retained messages", "not kept, or not marked when delivered", "kept, and marked as retained",
                "let the broker retain messages: status and open alarms are, and an old value must not look new",
            )  # fmt: skip
        elif again:
            self.report.ok(
                "retained messages", "kept and marked; sent although we ask for none, so the daemon sets them aside"
            )
        else:
            self.report.ok(
                "retained messages", "kept and marked" + (", not sent where we ask for none" if again is None else "")
            )

    def _first_on(self, topic: str, writer: Probe, retain_handling: int) -> bytes | None:
        """The retained message that a new subscription brings; None if another one that is sent later comes first."""
        marker = b"doctor: a marker"
        with self._probe("a") as reader:
            reader.subscribe(topic, 1, retain_handling=retain_handling)
            writer.publish_all(topic, [marker])
            reader.wait(lambda: marker in reader.payloads(topic), QUIET_SECONDS)
            return next((message.payload for message in reader.messages if message.retain), None)

    def _take_back(self, probe: Probe) -> None:
        if probe.publish_all(self._topic + "retained", [b""], retain=True):  # confirmed
            self._may_have_retained = False

    def _no_local(self) -> None:
        if self._protocol != "5":
            self.report.ok("own messages", "MQTT 3.1.1 sends them back; the daemon knows its own output by its topic")
            return
        topic, own, other = self._topic + "own", b"doctor: my own", b"doctor: another's"
        with self._probe("a") as reader, self._probe("b") as writer:
            reader.subscribe(topic, 1, no_local=True)
            reader.publish_all(topic, [own])
            writer.publish_all(topic, [other])
            reader.wait(lambda: other in reader.payloads(topic), QUIET_SECONDS)
            if own in reader.payloads(topic):
                self.report.ok(
                    "own messages", "sent back although no-local is asked for; the daemon knows them by their topic"
                )
            else:
                self.report.ok("own messages", "not sent back: no-local works")

    def _subscriptions(self) -> None:
        """Ask for each configured filter on a connection of its own, until the first message or for a moment."""
        seconds = min(QUIET_SECONDS, WATCH_SECONDS / len(self._case.filters))
        for topic_filter in self._case.filters[:MOST_FILTERS]:
            with self._surviving(f"subscription {topic_filter}"):
                self._subscription(topic_filter, seconds)
        if len(self._case.filters) > MOST_FILTERS:
            self.report.unknown(
                "subscriptions", f"only the first {MOST_FILTERS} of {len(self._case.filters)} were tried"
            )

    def _subscription(self, topic_filter: str, seconds: float) -> None:
        check, wanted = f"subscription {topic_filter}", self._case.qos
        with self._probe("f", receive_maximum=1) as probe:
            granted = probe.subscribe(topic_filter, wanted, no_local=True, retain_handling=2)
            if granted is None or granted >= FAILURE:
                found = "no answer" if granted is None else f"refused with reason {granted:#x}"
                self.report.warn(check, found, f"QoS {wanted}", "let this user read it: see the broker's access list")
                return
            if granted < wanted:
                self.report.warn(check, f"granted at QoS {granted}", f"QoS {wanted}", "raise what the broker allows")
                return
            instance = self._case.instance
            has_come = probe.wait(
                lambda: any(not is_own_output(message.topic, instance) for message in probe.messages), seconds
            )
        if has_come:
            self.report.ok(check, f"granted at QoS {granted}, and messages arrive")
        else:
            self.report.unknown(
                check,
                f"granted at QoS {granted}, and nothing came within {seconds:.1f} s",
                "brokers may grant a filter and deliver nothing on it, as mosquitto does for one that its access list "
                "forbids: publish something there and look at streamer_messages_received_total",
            )

    def _queue(self, *, delivers: bool, is_away: bool) -> None:
        """How many messages wait for a session that is offline, and whether it is still there afterwards."""
        count = DEFAULT_MESSAGES if self._case.messages is None else self._case.messages
        if not delivers:
            self.report.unknown("offline queue", "not tried, since nothing is delivered at QoS 1")
            return
        if is_away and self._case.messages is None:
            self.report.unknown(
                "offline queue",
                f"not tried: the daemon is away, and {count} messages would take up room in its own queue",
                "run this while the daemon runs, or with --probe-messages N",
            )
            return
        topic = self._topic + "queue"
        self._kept.add(self._name + "q")
        with self._lasting("q", SESSION_SECONDS) as sleeper:
            sleeper.subscribe(topic, 1)
        wanted = [f"doctor: message {number} of {count}".encode() for number in range(1, count + 1)]
        unconfirmed = b"doctor: a message at QoS 0"
        with self._probe("b") as writer:
            writer.publish(topic, unconfirmed, qos=0)
            reasons = writer.publish_all(topic, wanted)
        with self._lasting("q", SESSION_SECONDS) as sleeper:
            sleeper.collect(count + 1, QUIET_SECONDS)
            arrived = set(sleeper.payloads(topic))
        if not sleeper.is_session_present:
            self.report.warn(
                "session", "gone after a reconnect", "kept while the client is away",
                "let the broker keep sessions: without, every pause of the daemon loses what comes meanwhile",
            )  # fmt: skip
            return
        self.report.ok("session", "outlives a reconnect")
        if unconfirmed in arrived:
            self.report.ok("QoS 0 while away", "kept too")
        else:
            self.report.warn(
                "QoS 0 while away", "not kept", "kept, since many gateways publish at QoS 0",
                "mosquitto: queue_qos0_messages true; or let the sensors publish at QoS 1",
            )  # fmt: skip
        self._tell_queue(count, sum(each < FAILURE for each in reasons), len(arrived.intersection(wanted)))

    def _tell_queue(self, sent: int, accepted: int, arrived: int) -> None:
        if sent == 0:
            self.report.unknown("offline queue", "not tried (--probe-messages 0)")
        elif arrived < accepted:
            self.report.warn(
                "offline queue",
                f"{arrived} of {accepted} messages were kept, although all were confirmed",
                "room for what comes in the daemon's longest absence", f"raise it: {QUEUE_SETTINGS}",
            )  # fmt: skip
        elif accepted < sent:
            self.report.warn(
                "offline queue", f"the broker took {accepted} of {sent} messages and kept them", "all of them",
                f"raise its limit: {QUEUE_SETTINGS}",
            )  # fmt: skip
        else:
            self.report.ok("offline queue", f"all {sent} messages were kept; the limit, if any, is above that")
