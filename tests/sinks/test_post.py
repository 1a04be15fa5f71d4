"""One POST: what is sent, what is understood of the answer, and that no server holds it for longer than it may."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from streamer.errors import ServiceError
from streamer.sinks.post import Poster, PostError
from tests.servers import HOST, Certificates, free_port
from tests.sinks.receiving import drip, misbehaving, receiving, say
from tests.waiting import wait_until

NOW = 1_790_000_000.0
SHORT_SECONDS = 0.3


def poster(port: int, *, scheme: str = "http", ca_file: str = "", host: str = HOST, seconds: float = 20.0) -> Poster:
    url = f"{scheme}://{host}:{port}/hook?to=me"
    return Poster(url, ca_file=ca_file, timeout_seconds=seconds, now=lambda: NOW)


def test_the_body_arrives_as_it_is() -> None:
    """With path and query, the length, the host and the headers that were given."""
    with receiving() as receiver:
        answer = poster(receiver.port).post(b'{"a": "\xc3\xa4"}', {"Content-Type": "application/json"})
    assert answer == (204, None)
    (posted,) = receiver.posted
    assert posted.path == "/hook?to=me"
    assert posted.body == b'{"a": "\xc3\xa4"}'
    assert posted.headers["Host"] == f"{HOST}:{receiver.port}"
    assert posted.headers["Content-Type"] == "application/json"
    assert posted.headers["Content-Length"] == "11"


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        ("7", 7.0), (" 7 ", 7.0), ("0", 0.0),
        ("Mon, 21 Sep 2026 14:14:20 GMT", 60.0), ("Mon, 21 Sep 2020 14:14:20 GMT", 0.0),
        ("soon", None), ("-3", None), ("9" * 400, None), ("Mon, 99 Sep 2026 99:99:99 GMT", None), ("", None),
    ],
)  # fmt: skip
def test_when_the_server_wants_to_be_asked_again(said: str, seconds: float | None) -> None:
    """Seconds or a date; nonsense says nothing (RFC 9110, section 10.2.3)."""
    with receiving() as receiver:
        receiver.will_answer(503, Retry_After=said)
        assert poster(receiver.port).post(b"", {}) == (503, seconds)


def test_a_redirect_is_not_followed() -> None:
    """It is an answer like any other: nobody sends an alarm where the operator has not said."""
    with receiving() as other, receiving() as receiver:
        receiver.will_answer(307, Location=f"http://{HOST}:{other.port}/elsewhere")
        assert poster(receiver.port).post(b"", {}).status == 307
        assert other.posted == []


def test_a_proxy_of_the_environment_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the daemon reads is in its settings."""
    with receiving() as receiver:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://{HOST}:{free_port()}")
        assert poster(receiver.port).post(b"", {}).status == 204


# --- Servers that misbehave ---

MANY = [b"HTTP/1.1 200 OK\r\n", *[b"X-Filler: 1\r\n"] * 90]


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("pieces", [[], [b"H"] * 400, MANY, [b"HTTP/1.1 100 Continue\r\n\r\n"] * 400])
def test_no_server_holds_it_for_longer_than_it_may(scheme: str, pieces: list[bytes]) -> None:
    """Silent from the start, or a byte at a time: of an answer, of a handshake."""
    with misbehaving(drip(pieces, 0.05)) as port:
        began_at = time.monotonic()
        with pytest.raises(PostError, match=r"no answer within 0\.3 s|not HTTP|SSL|record|wrong version"):
            poster(port, scheme=scheme, seconds=SHORT_SECONDS).post(b"x", {})
        assert time.monotonic() - began_at < 3.0  # a slow machine; without the limit it is 20 and more


@pytest.mark.parametrize(
    "text",
    [
        b"", b"\r\n", b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 abc\r\n\r\n", b"HTTP/1.1\r\n\r\n", b"HTTP/9.9 200 OK\r\n\r\n",
        b"\xff\xfe\x00" * 1000, b"A" * 200_000, b"HTTP/1.1 200 OK\r\n" + b"X: 1\r\n" * 1000,
    ],
)  # fmt: skip
def test_garbage_is_no_answer(text: bytes) -> None:
    """Said in words, whatever it was."""
    with misbehaving(say(text)) as port, pytest.raises(PostError, match=r"closed the connection|not HTTP"):
        poster(port).post(b"x", {})


def test_nobody_there_is_said() -> None:
    """A port that nobody listens on; a name that nobody has."""
    with pytest.raises(PostError, match="Connection refused"):
        poster(free_port()).post(b"", {})
    with pytest.raises(PostError, match=r"\w"):
        poster(80, host="nobody.invalid").post(b"", {})


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_another_thread_can_end_it(scheme: str) -> None:
    """At the end of the daemon nobody waits for a server; nor is anything begun after that."""
    failures: list[PostError] = []
    with misbehaving(drip([], 0)) as port:
        slow = poster(port, scheme=scheme)

        def post() -> None:
            try:
                slow.post(b"", {})
            except PostError as error:
                failures.append(error)

        thread = threading.Thread(target=post)
        thread.start()
        wait_until(lambda: slow._open is not None, 10, "the connection")
        slow.abort()
        thread.join(5)
        assert not thread.is_alive()
        with pytest.raises(PostError):
            slow.post(b"", {})
    assert len(failures) == 1


# --- TLS ---


def test_the_certificate_is_verified(certificates: Certificates) -> None:
    """By the authority that is named, for the name that is asked for, and by nobody else."""
    with receiving(certificates) as receiver:
        ca = str(certificates.ca)
        assert poster(receiver.port, scheme="https", ca_file=ca).post(b"x", {}).status == 204
        assert poster(receiver.port, scheme="https", ca_file=ca, host="localhost").post(b"x", {}).status == 204
        for ca_file in ("", str(certificates.other_ca)):
            with pytest.raises(PostError, match="its certificate is not to be trusted"):
                poster(receiver.port, scheme="https", ca_file=ca_file).post(b"x", {})
    assert len(receiver.posted) == 2
    with receiving(certificates, host="127.0.0.2") as receiver:
        with pytest.raises(PostError, match=r"its certificate is not to be trusted.*127\.0\.0\.2"):
            poster(receiver.port, scheme="https", ca_file=ca, host="127.0.0.2").post(b"x", {})
        assert receiver.posted == []


def test_a_ca_file_that_is_none_is_refused(tmp_path: Path) -> None:
    """At the start, by its setting's name."""
    (tmp_path / "ca.pem").write_text("no certificate")
    with pytest.raises(ServiceError, match=r"webhook\.ca_file"):
        poster(1, scheme="https", ca_file=str(tmp_path / "ca.pem"))


def test_what_is_told_of_the_address_has_no_path() -> None:
    """It may be a secret, as with many chat servers."""
    assert "hook" not in poster(80).origin
