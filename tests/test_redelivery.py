"""Redelivered messages: known once the journal has them, in the same session, and never taken for another."""

from __future__ import annotations

import numpy as np

from streamer.readings import Batch, Message
from streamer.records import Group, digest
from streamer.redelivery import Redelivery

ONE = Message("plant/a", b"21.5", 1, 7, False, 100.0, connection=1)
AGAIN = ONE._replace(dup=True, connection=2, arrival=200.0)


def group(*messages: Message) -> Group:
    none = np.zeros(0)
    return Group(
        Batch(none.astype(np.int32), none, none, none.astype(np.uint8)),
        np.array([message.arrival for message in messages]),
        np.zeros(len(messages), np.uint32),
        np.array([digest(message) for message in messages], np.uint32),
        np.array([message.mid for message in messages], np.uint16),
    )


def test_a_message_is_known_when_it_comes_again() -> None:
    """With DUP, on any connection; without DUP it is a new message that is equal."""
    known = Redelivery()
    assert not known.is_known(AGAIN)
    known.note(group(ONE))
    assert known.is_known(AGAIN)
    assert not known.is_known(AGAIN._replace(dup=False))


def test_another_message_under_the_same_identifier_is_not_known() -> None:
    """Its first delivery was lost with the connection; and the newer one takes the place of the older."""
    known = Redelivery()
    known.note(group(ONE))
    other = AGAIN._replace(payload=b"21.6")
    assert not known.is_known(other)
    assert not known.is_known(AGAIN._replace(topic="plant/b"))
    known.note(group(other))
    assert known.is_known(other)
    assert not known.is_known(AGAIN)


def test_qos_0_is_never_known() -> None:
    """It has no identifier."""
    known = Redelivery()
    known.note(group(ONE._replace(qos=0, mid=0)))
    assert not known.is_known(AGAIN._replace(qos=0, mid=0))
    assert len(known.state().mid) == 0


def test_a_lost_session_begins_anew_and_a_restart_does_not() -> None:
    """Identifiers of a lost session mean other messages; what was known before a restart is known after it."""
    known, restarted = Redelivery(), Redelivery()
    known.note(group(ONE, ONE._replace(mid=65_535)))
    restarted.restore(known.state())
    assert restarted.is_known(AGAIN)
    assert restarted.is_known(AGAIN._replace(mid=65_535))
    restarted.forget()
    assert not restarted.is_known(AGAIN)
