"""Who asks for what: files, JSON below /api/, and the events that a page follows. docs/page.md has all of it."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from heapq import nlargest
from http import HTTPStatus
from itertools import islice
from urllib.parse import parse_qs, unquote

import msgspec
import numpy as np

from streamer.answers import Answer, Request, Stream
from streamer.looks import SeriesState, state_of
from streamer.names import name_of
from streamer.outbox import field_of, topic_of
from streamer.readings import Alarm, Float64
from streamer.shard import Shard
from streamer.traces import COLUMNS, Part, Traces
from streamer.web.board import Ask, Board, NoAnswerError, Sight, Vitals, short, state_name, whole
from streamer.web.files import Files

JSON = "application/json"
PAUSE_SECONDS = 1.0
MOST_SERIES = 10_000  # in one answer
USUAL_SERIES = 1_000
MOST_WORDS = 16  # of a search: thousands would keep the interpreter from the engine for seconds
MOST_AT_ONCE = 16  # questions about series; more would take all threads of the server, and a health check have none
MOST_ALARMS = 100  # open ones in one answer: the newest
RETRY_MS = 3_000
UNBUFFERED = (("X-Accel-Buffering", "no"),)  # nginx before us would hold events back

Alarms = Callable[[], tuple[Sequence[Alarm], Sequence[Alarm]]]
"""Those that are open, and those that were closed of late, the last one at the end; neither is ever changed."""


class Page:
    """`answer` is for the HTTP server, from any thread."""

    def __init__(
        self, ask: Ask, traces: Traces, alarms: Alarms, vitals: Callable[[], Vitals], monotonic: Callable[[], float]
    ) -> None:
        self._board = Board(ask, vitals, monotonic)
        self._traces = traces
        self._alarms = alarms
        self._monotonic = monotonic
        self._files = Files()
        self._turn = threading.Lock()
        """what takes the interpreter for a while is done by one thread at a time: it shares with the engine by heads"""
        self._places = threading.BoundedSemaphore(MOST_AT_ONCE)
        self._lists: tuple[tuple[Sequence[Alarm], Sequence[Alarm]] | None, bytes] = None, b""
        self._run = secrets.token_hex(4)
        """a trace of an earlier run has other readings under the same numbers"""

    def answer(self, request: Request) -> Answer | Stream | None:
        """None: there is no such thing."""
        try:
            match request.path:
                case "/api/health":
                    return _json(self._board.health())
                case "/api/alarms":
                    return Answer(HTTPStatus.OK, self._alarm_lists(), JSON)
                case "/api/events":
                    return Stream(partial(next, self._events()), "text/event-stream", PAUSE_SECONDS, UNBUFFERED)
            if request.path == "/api/series" or request.path.startswith("/api/series/"):
                if not self._places.acquire(blocking=False):
                    return Answer(HTTPStatus.SERVICE_UNAVAILABLE, b"Too many ask for series at once.\n")
                try:
                    return self._series(request) or Answer(HTTPStatus.NOT_FOUND, b"There is no such series.\n")
                finally:
                    self._places.release()
        except NoAnswerError:
            return Answer(HTTPStatus.SERVICE_UNAVAILABLE, b"The engine has not answered in time.\n")
        return self._files.get(request)

    # --- What there is to know ---

    def _series(self, request: Request) -> Answer | None:
        query = parse_qs(request.query, errors="replace")
        if request.path != "/api/series":
            return self._one(unquote(request.path.removeprefix("/api/series/")), query)
        if "series" in query:  # no path can be `..`, but a topic can
            return self._one(query["series"][0], query)
        return self._list(query)

    def _list(self, wanted: Mapping[str, list[str]]) -> Answer:
        """Series, the highest score first, those without one last."""
        sight = self._board.sight()
        with self._turn:
            return self._listed(sight, wanted)

    @staticmethod
    def _listed(sight: Sight, wanted: Mapping[str, list[str]]) -> Answer:
        state, score = sight.look.state, sight.look.latest[:, 0]
        chosen = state != SeriesState.GONE
        if "state" in wanted:
            names = {each.name.lower(): each.value for each in SeriesState if each is not SeriesState.GONE}
            unknown = [each for each in wanted["state"] if each not in names]
            if unknown:
                return _wrong(f"state is one of {', '.join(names)}")
            chosen &= np.isin(state, [names[each] for each in wanted["state"]])
        if "search" in wanted:
            words = {word for text in wanted["search"] for word in text.lower().split()}
            if len(words) > MOST_WORDS:
                return _wrong(f"search is at most {MOST_WORDS} words")
            for slot in np.flatnonzero(chosen).tolist():
                name = sight.names[slot].lower()
                chosen[slot] = all(word in name for word in words)
        limit = _number(wanted.get("limit", [str(USUAL_SERIES)])[0])
        if not 1 <= limit <= MOST_SERIES:
            return _wrong(f"limit is a number from 1 to {MOST_SERIES}")
        slots = np.flatnonzero(chosen)
        slots = slots[np.argsort(-np.nan_to_num(score[slots], nan=-1.0), kind="stable")][:limit]
        columns = [short(column) for column in sight.look.latest[slots].T]
        rows = [
            {
                "series": sight.names[slot],
                "state": state_name(int(state[slot])),
                **dict(zip(("score", "value", "expected", "lower", "upper"), figures, strict=True)),
                "heard": float(sight.look.heard[slot]),
            }
            for slot, *figures in zip(slots.tolist(), *columns, strict=True)
        ]
        return _json({"total": int(chosen.sum()), "series": rows})

    def _one(self, name: str, query: Mapping[str, list[str]]) -> Answer | None:
        """One series with the readings that are kept of it; None: there is no such series."""
        key = self._board.key_of(name)
        if not key:
            return None
        run, _, serial = query.get("trace", [""])[0].partition("-")
        follows = (_number(serial), _number(query.get("after", [""])[0])) if run == self._run else (-1, -1)
        now = self._board.now()
        found = self._board.question(partial(self._follow, key=key, serial=follows[0], number=follows[1], now=now))
        if found is None:
            return None
        part, state, latest = found
        open_alarms, closed = self._alarms()
        figures = dict(zip(("score", "value", "expected", "lower", "upper"), short(latest), strict=True))
        return _json(
            {
                "series": name,
                "key": whole(key),
                "state": state_name(state),
                **figures,
                "trace": f"{self._run}-{part.serial}",
                "first": part.first,
                "next": part.first + len(part.rows),
                "readings": dict(zip(COLUMNS, part.rows.T.tolist(), strict=True)),
                "alarms": [_brief(alarm) for alarm in (*closed, *open_alarms) if _concerns(alarm, key)],
            }
        )

    def _follow(
        self, shard: Shard, *, key: str, serial: int, number: int, now: float
    ) -> tuple[Part, SeriesState, Float64] | None:
        """In the engine's thread."""
        part = self._traces.follow(shard, key, self._monotonic(), serial, number)
        slot = shard.registry.find(key)
        if part is None or slot is None:
            return None
        return part, state_of(shard, slot, now), shard.detector.latest[slot].copy()

    def _alarm_lists(self) -> bytes:
        """As JSON; made anew when there is something new."""
        alarms = self._alarms()
        told, lists = self._lists
        if told is None or any(mine is not theirs for mine, theirs in zip(told, alarms, strict=True)):
            open_alarms, closed = alarms
            lists = msgspec.json.encode(
                {
                    "total_open": len(open_alarms),
                    "open": [_alarm(each) for each in nlargest(MOST_ALARMS, open_alarms, lambda each: each.opened_at)],
                    "closed": [_alarm(each) for each in reversed(closed)],
                }
            )
            self._lists = alarms, lists
        return lists

    # --- Events ---

    def _events(self) -> Iterator[Iterator[bytes]]:
        """For one page: each time what has changed since the time before, a piece after the other."""
        seen, told = 0, b""
        news = [f"retry: {RETRY_MS}\n\n".encode(), _event("hello", {"states": [*map(state_name, SeriesState)]})]
        while True:
            lists = self._alarm_lists()
            if lists != told:
                news.append(_framed("alarms", lists))
                told = lists
            try:
                sight = self._board.sight()
            except NoAnswerError:
                yield iter([*news, _event("health", self._board.health() | {"answers": False})])
            else:
                yield self._news(sight, seen, news)
                seen = sight.number
            news = []

    def _news(self, sight: Sight, seen: int, news: list[bytes]) -> Iterator[bytes]:
        yield from news
        chunks = sight.news(seen)
        while True:
            with self._turn:
                piece = b"".join(_event("series", columns) for columns in islice(chunks, 1))
            if not piece:
                break
            yield piece
        yield _event("health", sight.health | {"answers": True})  # last: with it all is said


def _concerns(alarm: Alarm, key: str) -> bool:
    if alarm.key.endswith("#*") and alarm.kind == "silent":
        return alarm.key.removesuffix("#*") == key.partition("#")[0]
    return key == alarm.key or key in alarm.members or any(channel.key == key for channel in alarm.channels)


def _brief(alarm: Alarm) -> dict[str, object]:
    names = ("id", "kind", "opened_at", "updated_at", "closed_at")
    return {name: getattr(alarm, name) for name in names}


def _alarm(alarm: Alarm) -> dict[str, object]:
    """As docs/mqtt.md has it; keys as lists show them."""
    document: dict[str, object] = msgspec.to_builtins(alarm)
    channels = [msgspec.to_builtins(channel) | {"key": name_of(channel.key)} for channel in alarm.channels]
    del document["members"]
    topic, field = name_of(topic_of(alarm)), name_of(field_of(alarm))
    return document | {"key": name_of(alarm.key), "topic": topic, "field": field, "channels": channels}


def _number(text: str) -> int:
    """-1: it is none."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 16 else -1


def _json(content: object) -> Answer:
    return Answer(HTTPStatus.OK, msgspec.json.encode(content), JSON)


def _wrong(sentence: str) -> Answer:
    return Answer(HTTPStatus.BAD_REQUEST, f"{sentence}\n".encode())


def _event(name: str, content: object) -> bytes:
    return _framed(name, msgspec.json.encode(content))


def _framed(name: str, content: bytes) -> bytes:
    """JSON has no line break of its own."""
    return b"event: %s\ndata: %s\n\n" % (name.encode(), content)
