"""The inbox: bounded by memory, in order, never in the network thread's way."""

from __future__ import annotations

import sys
import threading

from hypothesis import given, settings
from hypothesis import strategies as st

from streamer.inbox import MESSAGE_BYTES, Inbox
from streamer.readings import Message
from tests.waiting import wait_until


def message(number: int, payload: bytes = b"21.5") -> Message:
    return Message(f"t/{number}", payload, 1, number, False, 1.7e9 + number)


def test_messages_come_out_in_the_order_in_which_they_went_in_however_they_were_cut() -> None:
    """Lists put by the reader and lists taken by the engine have nothing to do with each other."""
    inbox = Inbox(10**9)
    sent = [message(number) for number in range(100)]
    assert inbox.put(sent[:7]) == []
    assert inbox.put(sent[7:50]) == []
    taken = inbox.take(10, 0)
    assert inbox.put(sent[50:]) == []
    while inbox:
        taken += inbox.take(13, 0)
    assert taken == sent


@given(st.lists(st.one_of(st.integers(1, 9).map(lambda n: ("put", n)), st.integers(1, 9).map(lambda n: ("take", n)))))
@settings(deadline=None)
def test_every_message_is_waiting_in_hand_done_or_refused(steps: list[tuple[str, int]]) -> None:
    """Whatever the sequence of calls, nothing is lost or doubled, and the weight stays below the limit."""
    limit_bytes = 5 * (MESSAGE_BYTES + 10)
    inbox = Inbox(limit_bytes)
    put = refused = done = 0
    in_hand = 0
    for step, count in steps:
        if step == "put":
            refused += len(inbox.put([message(put + n) for n in range(count)]))
            put += count
        else:
            in_hand += len(inbox.take(count, 0))
            if count % 2:
                inbox.done()
                done, in_hand = done + in_hand, 0
        assert inbox.queued() == len(inbox) + in_hand
        assert put == refused + done + inbox.queued()
        assert inbox.queued_bytes() <= limit_bytes
        assert (inbox.queued_bytes() == 0) == (inbox.queued() == 0)


def test_a_full_inbox_refuses_the_newest_and_says_which() -> None:
    """What waits already is older and stays; the caller learns what the broker must be told about."""
    inbox = Inbox(3 * (MESSAGE_BYTES + 7))
    sent = [message(number) for number in range(5)]
    assert inbox.put(sent) == sent[3:]
    assert inbox.take(10, 0) == sent[:3]
    assert inbox.put([sent[3]]) == [sent[3]], "what the engine has in hand is still in memory"
    inbox.done()
    assert inbox.put([sent[3]]) == []


def test_a_message_that_can_never_fit_takes_no_other_with_it() -> None:
    """10 MB in the middle of a list are refused alone."""
    inbox = Inbox(2**20)
    small, huge, last = message(1), message(2, b"x" * 10_000_000), message(3)
    assert inbox.put([small, huge, last]) == [huge]
    assert inbox.take(9, 0) == [small, last]


def test_the_weight_of_a_message_is_that_of_its_objects() -> None:
    """The constant is what Python's objects weigh beside their characters."""
    one = Message("a/b", b"12", 1, 70_000, False, 1.7e9, 300, False)
    parts = sum(sys.getsizeof(part) for part in (one, one.topic, one.payload, one.mid, one.arrival, one.connection))
    assert abs(parts + 16 - len(one.topic) - len(one.payload) - MESSAGE_BYTES) <= 40  # 16: the collector's header


def test_take_waits_for_a_message_and_close_wakes_it() -> None:
    """The engine sleeps in the inbox, and neither a message nor the end finds it deaf."""
    inbox = Inbox(10**6)
    taken: list[list[Message]] = []

    def engine() -> None:
        taken.append(inbox.take(10, 60))
        taken.append(inbox.take(10, 60))

    thread = threading.Thread(target=engine)
    thread.start()
    inbox.put([message(1)])
    wait_until(lambda: len(taken) == 1, 10, "the first message")
    inbox.close()
    thread.join(10)
    assert taken == [[message(1)], []]


def test_who_gathers_is_woken_once_there_is_enough() -> None:
    """It goes on at the third of three; afterwards the first one wakes again."""
    inbox, woken, told = Inbox(10**6), threading.Event(), threading.Event()

    def engine() -> None:
        inbox.gather(3, 60)
        woken.set()
        told.wait(10)
        inbox.take(3, 0)
        inbox.take(1, 60)

    thread = threading.Thread(target=engine)
    thread.start()
    for k in range(3):
        assert not woken.is_set()
        inbox.put([message(k)])
    assert woken.wait(10)
    told.set()
    wait_until(lambda: len(inbox) == 0, 10, "the three to be taken")
    inbox.put([message(3)])
    thread.join(10)
    assert not thread.is_alive()


def test_take_gives_nothing_when_nothing_comes_in_time() -> None:
    """An idle engine gets an empty list, its chance to look at its timers."""
    assert Inbox(10**6).take(10, 0.01) == []


def test_a_closed_inbox_hands_out_what_it_has_and_takes_no_more() -> None:
    """A stop drains what was received, and refuses the rest openly."""
    inbox = Inbox(10**6)
    inbox.put([message(1)])
    inbox.close()
    assert inbox.is_closed
    assert inbox.put([message(2)]) == [message(2)]
    assert inbox.take(10, 60) == [message(1)]
    assert inbox.take(10, 60) == []
