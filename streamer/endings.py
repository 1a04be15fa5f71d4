"""Why there is no connection to the broker, in words for a person, and how long to wait before the next attempt.

Pure functions of what the system or the broker has said. Numbers of reasons are those of MQTT 5, sections 3.2.2.2
(CONNACK) and 3.14.2.1 (DISCONNECT); the client library gives those of MQTT 3.1.1 the same numbers.
"""

from __future__ import annotations

import enum
import ssl
from dataclasses import dataclass

from streamer.wire import HandshakeError, in_words


class Fate(enum.Enum):
    """What an ending asks for."""

    PASSING = "it may be better in a moment"
    PERSON = "it stays so until a person acts"
    VERSION = "the broker may not speak this version of MQTT"


@dataclass(frozen=True, slots=True)
class Ending:
    """Why a connection has ended, or was not made."""

    detail: str
    fate: Fate = Fate.PASSING


UNSUPPORTED_VERSION = 132
BAD_CLIENT_ID = 133
TAKEN_OVER = 142

WANTED = {
    BAD_CLIENT_ID: "expected another mqtt.client_id",
    134: "expected another mqtt.username or password",
    135: "expected another mqtt.username or password, or the broker's permission for this user",
    138: "expected the broker to lift the ban",
    140: "expected a broker that takes a user name and a password",
    TAKEN_OVER: "expected an mqtt.client_id that no other client uses",
    149: "expected a broker that takes larger packets",
    154: "expected a broker that retains messages",
    155: "expected a broker that takes QoS 1",
    156: "expected another mqtt.host",
    157: "expected another mqtt.host",
}
"""Reasons that stay until a person acts, and what that person is to do."""


def unreachable(error: OSError | UnicodeError, place: str) -> Ending:
    """No connection was made; `place` is host:port."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return Ending(
            f"the certificate of {place} is not trusted: {error.verify_message}; expected one for this host name, "
            "signed by an authority in mqtt.tls.ca_file",
            Fate.PERSON,
        )
    if isinstance(error, ssl.SSLError):
        return _tls_failure(error, place)
    if isinstance(error, HandshakeError):
        return Ending(
            f"{place} takes connections but does not answer TLS: {in_words(error)}; expected the broker's TLS port as "
            "mqtt.port, 8883 as a rule, or mqtt.tls.enabled = false if this port does not speak TLS",
            Fate.PERSON,
        )
    if isinstance(error, TimeoutError):
        return Ending(f"{place} does not answer")
    return Ending(f"{place} cannot be reached: {in_words(error)}")


def lost(end: OSError | EOFError | None, place: str, was_accepted: bool) -> Ending:
    """A connection that was made is gone, and the broker has not said why in MQTT."""
    if end is None or isinstance(end, EOFError | ConnectionError | ssl.SSLEOFError):
        if was_accepted:
            return Ending(f"{place} closed the connection")
        return Ending(f"{place} closed the connection instead of answering CONNECT", Fate.VERSION)
    if isinstance(end, ssl.SSLError):
        return _tls_failure(end, place)
    return Ending(f"the connection to {place} failed: {in_words(end)}")


def silent(place: str, timeout_seconds: float) -> Ending:
    """A connection was made, and CONNECT got no answer: an old broker, or one that hangs."""
    return Ending(f"{place} did not answer CONNECT within {timeout_seconds:g} s", Fate.VERSION)


def refused(reason: int, said: str, protocol: str, client_id: str) -> Ending:
    """The broker answered CONNECT with a refusal; `said` is the reason in the broker's words."""
    if reason == UNSUPPORTED_VERSION:
        return Ending(f"the broker does not speak MQTT {protocol}", Fate.VERSION)
    name = f" with the client id {client_id}" if reason == BAD_CLIENT_ID else ""
    return _with_advice(f"the broker refuses us{name}: {said}", reason)


def dismissed(reason: int, said: str, client_id: str) -> Ending:
    """The broker sent DISCONNECT."""
    if reason == TAKEN_OVER:
        said = f"another client has connected with our client id {client_id}"
    return _with_advice(f"the broker ended the connection: {said}", reason)


def suspicious(ending: Ending, times: int, client_id: str) -> Ending:
    """The same again and again soon after CONNACK: all that MQTT 3.1.1 shows when another client takes our session."""
    return Ending(
        f"{ending.detail}, {times} times in a row soon after it was made; does another client use the client id "
        f"{client_id}? expected an instance or mqtt.client_id of its own for each daemon",
        ending.fate,
    )


def pause_seconds(failures: int, fate: Fate, min_seconds: float, max_seconds: float, jitter: float) -> float:
    """The pause after the n-th failure in a row; `jitter` in [0, 1) spreads it over its whole range.

    The range doubles with every failure up to `max_seconds`. Where a person has to act it begins two steps further on
    and is the upper half: 4 to 8 s, 8 to 16, and so on, so that what was mended at once works soon.
    """
    steps = min(failures, 64) + (2 if fate is Fate.PERSON else 0)
    high = min(max_seconds, min_seconds * 2.0**steps)
    low = max(min_seconds, high / 2) if fate is Fate.PERSON else min_seconds
    return low + (high - low) * jitter


def _tls_failure(error: ssl.SSLError, place: str) -> Ending:
    """Why TLS failed, other than by a certificate that we do not trust."""
    if "ALERT" in str(error):  # the broker's word: TLSV13_ALERT_CERTIFICATE_REQUIRED and others
        return Ending(
            f"{place} refuses TLS: {in_words(error)}; it may expect a client certificate of its own authority in "
            "mqtt.tls.cert_file",
            Fate.PERSON,
        )
    return Ending(f"TLS with {place} failed: {in_words(error)}; expected a TLS port", Fate.PERSON)


def _with_advice(detail: str, reason: int) -> Ending:
    wanted = WANTED.get(reason)
    return Ending(f"{detail}; {wanted}", Fate.PERSON) if wanted else Ending(detail)
