"""What the page can ask for, from the real server over a real engine: copies, in JSON that any parser takes."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any, BinaryIO, TypeVar

import numpy as np
import pytest

from streamer.answers import Request
from streamer.http import Limits, Server
from streamer.looks import SeriesState
from streamer.metrics import FAMILIES
from streamer.names import NAME_BYTES
from streamer.shard import Shard
from streamer.web import Page, Vitals
from streamer.web import board as boards
from streamer.web.board import CHUNK, short
from tests.servers import HOST
from tests.streams import noise, shipped_weights
from tests.test_engine import Bench
from tests.test_exposition import HOSTILE
from tests.test_http import Response, ask, connect, running
from tests.waiting import wait_until

T = TypeVar("T")


class Site:
    """A daemon without a broker: the engine turns when it is asked, or by the test's hand."""

    def __init__(self, **options: Any) -> None:
        self.bench = Bench(**options)
        self.questions = 0
        self.answers = True
        self.ahead_seconds = 0.0
        self._turning = threading.Lock()
        engine = self.bench.engine
        self.page = Page(
            self.ask, engine.traces, lambda: (engine.alarms, engine.closed_alarms), self.vitals, self.monotonic
        )
        self.server = Server(
            HOST, 0, self.bench.metrics.render, lambda: (True, ""), lambda: (True, ""), page=self.page.answer,
            limits=Limits(streams=4),
        )  # fmt: skip

    def ask(self, question: Callable[[Shard], T], /) -> Future[T]:
        self.questions += 1
        with self._turning:
            future = self.bench.engine.ask(question)
            if self.answers:
                self.bench.engine.turn([])
            return future

    def vitals(self) -> Vitals:
        metrics = self.bench.metrics
        return Vitals(
            version="0", instance="gate", now=self.bench.clock.now(), started_at=0.0, healthy=True, ready=True,
            detail="subscribed", connected=True, series=metrics.total("series"), warming=0, paused=0,
            alarms_open=len(self.bench.engine.alarms), readings=metrics.total("readings_decoded_total"),
            latency_seconds=metrics.observed("scored_latency_seconds"), queued=0, generation=1, swapping=False,
            retraining=False, retrained_at=float("nan"), retrainings=metrics.values("retrain_total"),
        )  # fmt: skip

    def monotonic(self) -> float:
        return self.bench.clock.monotonic() + self.ahead_seconds

    def look_again(self) -> None:
        """More than a second has passed."""
        self.ahead_seconds += 1.5

    def report(self, topic: str, values: list[float], every: float = 10.0) -> None:
        with self._turning:
            self.bench.report(topic, values, every=every)

    def get(self, path: str, **query: object) -> Any:
        response = self.ask_for(path, **query)
        assert response.status == 200, response.body
        assert response.headers["Content-Type"] == "application/json"
        return strict(response.body)

    def ask_for(self, path: str, **query: object) -> Response:
        return ask(self.server.port, f"{path}?{urllib.parse.urlencode(query)}" if query else path)


def strict(body: bytes) -> Any:
    """JSON as browsers take it: no NaN, no Infinity."""

    def refuse(word: str) -> None:
        raise ValueError(word)

    return json.loads(body, parse_constant=refuse)


@pytest.fixture
def site() -> Iterator[Site]:
    each = Site()
    with running(each.server):
        yield each


class Events:
    """A page's stream."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def next(self) -> tuple[str, Any]:
        name = ""
        while line := self._file.readline():
            if line.startswith(b"event: "):
                name = line[7:].strip().decode()
            if line.startswith(b"data: "):
                return name, strict(line[6:])
        raise EOFError

    def until_health(self) -> dict[str, list[Any]]:
        """All that one look has brought, by name."""
        found: dict[str, list[Any]] = {}
        while "health" not in found:
            name, content = self.next()
            found.setdefault(name, []).append(content)
        return found


@contextlib.contextmanager
def events(site: Site) -> Iterator[Events]:
    with connect(site.server.port) as client, client.makefile("rb") as file:
        client.sendall(b"GET /api/events HTTP/1.1\r\n\r\n")
        while file.readline().strip():
            pass
        yield Events(file)


# --- The files ---


def test_the_page_and_all_it_needs_come_from_here_under_a_strict_policy(site: Site) -> None:
    """Each file that index.html and the modules name is there; nothing inline, nothing from elsewhere."""
    page = ask(site.server.port, "/")
    policy = page.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "require-trusted-types-for 'script'; trusted-types 'none'" in policy
    html = page.body.decode()
    assert not re.search(r"<script>|<style>|style=|\son\w+=|https?:", html)
    names = re.findall(r'(?:src|href)="(/static/[^"]+)"', html)
    waiting, seen = list(names), set()
    while waiting:
        name = waiting.pop()
        seen.add(name)
        found = ask(site.server.port, name)
        assert (found.status, found.headers["X-Content-Type-Options"]) == (200, "nosniff"), name
        if name.endswith(".js") and "uPlot" not in name:
            text = found.body.decode()
            assert not re.search(r"innerHTML|insertAdjacentHTML|document\.write|eval\(|https?:", text), name
            waiting += {f"/static/{each}" for each in re.findall(r'from "\./([^"]+)"', text)} - seen
    assert len(seen) >= 9
    assert b"MIT License" in ask(site.server.port, "/static/uPlot.LICENSE").body


def test_a_file_that_the_browser_has_is_not_sent_again(site: Site) -> None:
    """It asks each time whether it is still the same."""
    found = ask(site.server.port, "/static/app.js")
    tag = found.headers["ETag"]
    again = ask(site.server.port, "/static/app.js", headers={"If-None-Match": f'"other", W/{tag}'})
    assert (again.status, again.body, again.headers["ETag"]) == (304, b"", tag)
    assert found.headers["Cache-Control"] == "no-cache"
    assert ask(site.server.port, "/static/app.js", headers={"If-None-Match": '"other"'}).status == 200


NO_PATHS = """
/static/ /static /static/../page.py /static/%2e%2e/page.py /static/..%2f..%2fapp.py /static//app.js /static/app.js/
/static/app.js%00 /page.py /index.html // /api /api/ /api/series/ /api/Series /api/events/ /../../etc/passwd
/api/series/nobody /api/series/%ff /api/series/%00
"""


@pytest.mark.parametrize("path", NO_PATHS.split())
def test_nothing_else_is_there(site: Site, path: str) -> None:
    """No path leads out of the files, whatever its spelling."""
    assert ask(site.server.port, path).status == 404


@pytest.mark.parametrize("path", ["/", "/static/app.js", "/api/series", "/api/alarms", "/api/health", "/api/events"])
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_nothing_can_be_changed(site: Site, path: str, method: str) -> None:
    """GET and HEAD."""
    assert ask(site.server.port, path, method).status == 405
    assert site.questions == 0


# --- Series ---


def test_the_list_has_the_worst_first_and_can_be_searched(site: Site) -> None:
    """By words in any order, by state; at most so many, and how many there are."""
    bench = site.bench
    for topic, n in (("plant/a", 40), ("plant/b", 5), ("tele/c", 40)):
        site.report(topic, noise(n).tolist(), every=0.1)
    found = site.get("/api/series")
    assert found["total"] == 3
    assert {each["series"]: each["state"] for each in found["series"]} == {
        "plant/a": "normal", "plant/b": "warming", "tele/c": "normal",
    }  # fmt: skip
    scores = [each["score"] for each in found["series"]]
    assert scores == [*sorted(scores[:2], reverse=True), None]
    latest = bench.shard.detector.latest[0]
    row = next(each for each in found["series"] if each["series"] == "plant/a")
    names = ("score", "value", "expected", "lower", "upper")
    assert [row[name] for name in names] == pytest.approx(latest.tolist(), rel=1e-5)
    assert row["heard"] <= bench.clock.now()
    assert site.get("/api/series", search="/A plant")["total"] == 1
    assert site.get("/api/series", search="")["total"] == 3
    assert site.get("/api/series", state="warming")["series"][0]["series"] == "plant/b"
    limited = site.get("/api/series", limit=1)
    assert (limited["total"], len(limited["series"])) == (3, 1)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("limit", "0"),
        ("limit", "-1"),
        ("limit", "x"),
        ("limit", "9" * 400),
        ("limit", "0" * 8 + "1" * 5_000),
        ("limit", "٣"),
        ("state", "gone"),
        ("search", " ".join(map(str, range(17)))),
    ],
)
def test_a_list_that_cannot_be_is_refused_with_what_can(site: Site, name: str, value: str) -> None:
    """400, and what was expected."""
    answer = site.ask_for("/api/series", **{name: value})
    assert answer.status == 400
    assert b"is " in answer.body


def test_one_series_comes_with_its_readings_and_then_with_the_new_ones() -> None:
    """Those that are kept, then only what came since; its alarms with it."""
    site = Site(weights=shipped_weights())
    site.report("plant/a", noise(200).tolist())
    with running(site.server):
        whole = site.get("/api/series/plant%2Fa")
        assert site.get("/api/series/plant/a")["key"] == "plant/a"
        assert site.get("/api/series", series="plant/a")["trace"] == whole["trace"]
        assert (whole["state"], whole["first"], whole["next"], whole["alarms"]) == ("normal", 0, 64, [])
        assert [len(column) for column in whole["readings"].values()] == [64] * 6
        site.report("plant/a", [500.0], every=1.0)
        news = site.get("/api/series/plant%2Fa", trace=whole["trace"], after=whole["next"])
        assert (news["state"], news["first"], news["next"]) == ("alarm", 64, 65)
        assert news["readings"]["value"] == [500.0]
        assert news["readings"]["score"][0] >= 1
        (alarm,) = news["alarms"]
        assert (alarm["kind"], alarm["closed_at"]) == ("value", None)
        assert alarm["opened_at"] == news["readings"]["time"][0]
        another = site.get("/api/series/plant%2Fa", trace="0-1", after=64)
    assert len(another["readings"]["time"]) == 65


def test_alarms_are_told_as_mqtt_tells_them_and_kept_for_a_while_when_closed() -> None:
    """The open ones with their channels; a closed one has its end."""
    site = Site(weights=shipped_weights())
    site.report("plant/a", noise(200).tolist())
    with running(site.server):
        assert site.get("/api/alarms") == {"total_open": 0, "open": [], "closed": []}
        site.report("plant/a", [500.0])
        (alarm,) = site.get("/api/alarms")["open"]
        assert (alarm["key"], alarm["topic"], alarm["field"], alarm["value"]) == ("plant/a", "plant/a", "", 500.0)
        assert alarm["channels"][0]["key"] == "plant/a"
        site.report("plant/a", noise(30, seed=3).tolist())
        lists = site.get("/api/alarms")
    assert (lists["total_open"], lists["open"]) == (0, [])
    (closed,) = lists["closed"]
    assert (closed["id"], closed["reason"]) == (alarm["id"], None)
    assert closed["closed_at"] > closed["opened_at"]


def test_health_tells_rates_of_the_last_second_and_needs_no_engine(site: Site) -> None:
    """Readings a second, and how long they took to their scores."""
    assert site.get("/api/health")["readings_per_second"] is None
    site.report("a", noise(50).tolist(), every=0.1)
    site.answers = False
    health = site.get("/api/health")
    assert (health["readings_per_second"], health["retrained_at"]) == (pytest.approx(10.0), None)
    assert health["latency_seconds"] == pytest.approx(0.0)
    assert set(health["retrainings"]) == set(FAMILIES["retrain_total"].values)


# --- Hostile names ---


@pytest.mark.parametrize(
    "key",
    [
        *filter(None, HOSTILE),
        "<script>alert(1)</script>",
        "</td><img src=x onerror=alert(1)>",
        "..",
        ".",
        "a/../b",
        "%2e%2e%2f",
        "a?b&series=c",
        "+ +",
        "#",
        "\ud800 alone",
        "~0123456789abcdef",
        "x" * 60_000,
        "é" * 30_000,
        "x" * 60_000 + "#y",
    ],
)
def test_any_name_is_listed_and_can_be_asked_for(site: Site, key: str) -> None:
    """As JSON, short enough for a list and for an address; the whole key comes with the series."""
    with site._turning:
        site.bench.shard.registry.resolve([key, "other"], 0.0)
    names = [each["series"] for each in site.get("/api/series")["series"]]
    (name,) = [each for each in names if each != "other"]
    assert len(name.encode()) <= NAME_BYTES
    found = site.get("/api/series", series=name)
    assert found["series"] == name
    assert found["key"] == key.encode(errors="replace").decode()
    if name not in (".", ".."):  # no path can end so
        assert site.get(f"/api/series/{urllib.parse.quote(name, safe='')}")["key"] == found["key"]


# --- Events ---


def test_a_page_gets_all_at_first_and_then_what_has_changed(site: Site) -> None:
    """Names once; of a hundred series only the one that has reported."""
    with site._turning:
        site.bench.shard.registry.resolve([f"s{k}" for k in range(20)], 0.0)
    with events(site) as stream:
        name, hello = stream.next()
        assert (name, hello["states"][0]) == ("hello", "alarm")
        first = stream.until_health()
        assert len(first["series"][0]["series"]) == 20
        assert first["alarms"] == [{"total_open": 0, "open": [], "closed": []}]
        assert first["health"][0]["answers"] is True
        site.report("s7", [5.0])
        site.look_again()
        changed = next(each["series"] for each in iter(stream.until_health, {}) if "series" in each)
        assert [(each["slot"], each["value"]) for each in changed] == [([7], [5.0])]
        assert "series" not in changed[0]


def test_many_series_come_in_pieces(site: Site) -> None:
    """None so large that the engine would wait for it."""
    with site._turning:
        site.bench.shard.registry.resolve([f"s{k}" for k in range(20)], 0.0)
    sight = site.page._board.sight()
    pieces = list(sight.news(0))
    assert [len(each["slot"]) for each in pieces] == [20]  # type: ignore[arg-type]  # JSON
    many = Site(max_series=3 * CHUNK)
    many.bench.shard.registry.resolve([f"s{k}" for k in range(3 * CHUNK - 5)], 0.0)
    sizes = [len(each["slot"]) for each in many.page._board.sight().news(0)]  # type: ignore[arg-type]  # JSON
    assert sizes == [CHUNK, CHUNK, CHUNK - 5]


def test_however_many_ask_the_engine_has_its_share_of_the_interpreter() -> None:
    """Threads share it by heads: with thirty that make lists at once the engine would have a thirtieth."""
    many = Site(max_series=5 * CHUNK)
    many.bench.shard.registry.resolve([f"s{k}" for k in range(5 * CHUNK)], 0.0)
    request = Request("GET", "/api/series", {}, "limit=10000&search=s")
    assert many.page.answer(request)
    is_over = threading.Event()

    def asks() -> None:
        while not is_over.is_set():
            many.page.answer(request)

    def turns(threads: int) -> int:
        """Of another thread, in a second, beside so many that ask."""
        is_over.clear()
        asking = [threading.Thread(target=asks) for _ in range(threads)]
        for thread in asking:
            thread.start()
        count, until = 0, time.monotonic() + 1.0
        while time.monotonic() < until:
            count += 1
        is_over.set()
        for thread in asking:
            thread.join()
        return count

    one = turns(1)
    assert turns(32) > one / 2


def test_however_many_ask_a_health_check_is_answered() -> None:
    """Who waits for a list has a thread, and of threads there is an end."""
    many, is_over = Site(max_series=20 * CHUNK), threading.Event()
    many.bench.shard.registry.resolve([f"s{k}" for k in range(20 * CHUNK)], 0.0)
    refused: list[Response] = []

    def asks() -> None:
        while not is_over.is_set():
            with contextlib.suppress(OSError, http.client.HTTPException):  # closed to make room
                answer = many.ask_for("/api/series", limit=10_000)
                if answer.status == 503:
                    refused.append(answer)

    with running(many.server):
        asking = [threading.Thread(target=asks) for _ in range(40)]
        for thread in asking:
            thread.start()
        try:
            wait_until(lambda: len(refused) > 10, 20, "more than there are places for")
            assert [ask(many.server.port, "/-/healthy").status for _ in range(10)] == [200] * 10
        finally:
            is_over.set()
            for thread in asking:
                thread.join()
    assert many.page.answer(Request("GET", "/api/series", {}))  # the places are free again


def test_a_slot_that_goes_to_another_series_is_told_with_its_new_name(site: Site) -> None:
    """Gone first, if there is a look in between; never another's readings under the old name."""
    site.report("a", [1.0])
    board = site.page._board
    before = board.sight()
    with site._turning:
        site.bench.shard.evict(np.array([0]), 0.0)
    site.look_again()
    gone = list(board.sight().news(before.number))
    assert [each["state"] for each in gone] == [[SeriesState.GONE]]
    site.report("b", [2.0])
    site.look_again()
    (news,) = board.sight().news(before.number)
    assert (news["slot"], news["series"], news["value"]) == ([0], ["b"], [2.0])
    assert board.key_of("a") is None
    assert board.key_of("b") == "b"


def test_the_engine_is_asked_once_a_second_however_many_look(site: Site) -> None:
    """And not at all while nobody does."""
    assert site.questions == 0
    for _ in range(5):
        site.get("/api/series")
    with events(site) as one, events(site) as other:
        for stream in (one, other):
            stream.until_health()
        assert site.questions == 1
        site.look_again()
        wait_until(lambda: site.questions == 2, 10, "the next look")
        for stream in (one, other):
            stream.until_health()
        assert site.questions == 2


def test_an_engine_that_does_not_answer_is_said_and_not_asked_again(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """503 for who asks, a word for who follows; no heap of questions afterwards."""
    monkeypatch.setattr(boards, "ANSWER_SECONDS", 0.05)
    site.answers = False
    for _ in range(3):
        assert site.ask_for("/api/series").status == 503
    with events(site) as stream:
        assert stream.until_health()["health"][0]["answers"] is False
        assert site.questions == 1
        site.answers = True
        site.bench.engine.turn([])
        wait_until(lambda: stream.until_health()["health"][0]["answers"], 10, "the engine to answer")
    assert site.get("/api/series")["total"] == 0


def test_a_stuck_engine_holds_up_no_thread_after_the_other(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """All who ask wait for the one question; then each hears at once that there is no answer."""
    monkeypatch.setattr(boards, "ANSWER_SECONDS", 0.5)
    site.answers = False
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(site.server.port)) for _ in range(20)]
        began = time.monotonic()
        for client in clients:
            client.sendall(b"GET /api/series HTTP/1.1\r\n\r\n")
        for client in clients:
            assert client.recv(100).startswith(b"HTTP/1.1 503 ")
    assert time.monotonic() - began < 5
    site.look_again()
    began = time.monotonic()
    assert site.ask_for("/api/series").status == 503
    assert time.monotonic() - began < 0.4
    assert site.questions == 1


def test_numbers_are_short_and_whatever_they_are_they_are_json() -> None:
    """Six digits; tiny, huge and absent ones too."""
    given = np.array([0.0, -0.0, 1.0, 21.5, 1 / 3, -123456.789, 1e-300, 5e-324, 1e300, np.nan, np.inf, -np.inf, 1e30])
    shown = short(given)
    assert shown[:6] == [0.0, -0.0, 1.0, 21.5, 0.333333, -123457.0]
    assert shown[6:9] == pytest.approx([1e-300, 5e-324, 1e300], rel=1e-5)
    assert np.isnan(shown[9])
    assert shown[12] == 1e30


def test_a_closed_page_leaves_nothing_behind(site: Site) -> None:
    """Its thread ends with the next piece of news."""
    before = threading.active_count()
    with events(site) as stream:
        stream.until_health()
    wait_until(lambda: threading.active_count() <= before, 10, "the threads to end")
