"""What an HTTP request asks and what it gets: the words that http.py shares with those who answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http import HTTPStatus

Headers = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    path: str
    """without the query, undecoded"""
    headers: dict[str, str]
    """by lower-case name"""
    query: str = ""
    """undecoded"""


@dataclass(frozen=True, slots=True)
class Answer:
    status: HTTPStatus
    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    headers: Headers = ()
    """these take the place of the server's own"""


@dataclass(frozen=True, slots=True)
class Stream:
    """An answer that goes on until one of the two has had enough."""

    pieces: Callable[[], Iterator[bytes]]
    """what is to be sent now; called again, by the same thread, `pause_seconds` after it was"""
    content_type: str
    pause_seconds: float
    headers: Headers = ()
