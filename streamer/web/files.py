"""The files that a browser makes the page of, held in memory: nothing outside them can be asked for."""

from __future__ import annotations

import hashlib
from http import HTTPStatus
from importlib.resources import files

from streamer.answers import Answer, Request

TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".LICENSE": "text/plain; charset=utf-8",
}
POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    ]
)
"""Only what lies here is run or shown, nothing is sent elsewhere, and no text of a sensor can become HTML."""


class Files:
    """By path: `/` is index.html, the others lie below `/static/`."""

    def __init__(self) -> None:
        self._answers: dict[str, Answer] = {}
        for entry in files("streamer.web").joinpath("static").iterdir():
            kind = TYPES.get(entry.name[entry.name.rfind(".") :])
            if kind is None:
                continue
            body = entry.read_bytes()
            tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
            headers = (("Cache-Control", "no-cache"), ("Content-Security-Policy", POLICY), ("ETag", tag))
            path = "/" if entry.name == "index.html" else f"/static/{entry.name}"
            self._answers[path] = Answer(HTTPStatus.OK, body, kind, headers)

    def get(self, request: Request) -> Answer | None:
        """None: there is no such file."""
        answer = self._answers.get(request.path)
        if answer is None:
            return None
        asked = request.headers.get("if-none-match", "")
        tag = dict(answer.headers)["ETag"]
        if tag in [each.strip().removeprefix("W/") for each in asked.split(",")]:
            return Answer(HTTPStatus.NOT_MODIFIED, b"", answer.content_type, answer.headers)
        return answer
