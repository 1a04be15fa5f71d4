"""What a series goes by for people: its key, or what lists and topics show in its place."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable
from urllib.parse import unquote

NAME_BYTES = 512  # of a key that is shown in a list, in UTF-8; a topic can have 64 KiB

_DIGEST = re.compile(r"~[0-9a-f]{16}\Z")
_TOPIC_DIGEST = re.compile(r"[0-9a-f]{64}")
"""What a topic ends in where no broker would take it with the key; see `streamer.topics`."""


def name_of(key: str) -> str:
    """A series key as lists show it and paths have it; no two keys have one name.

    What is too long, or cannot be said in UTF-8, ends in a digest of the whole, and so does what looks like it.
    """
    raw = key.encode(errors="surrogatepass")
    if len(raw) <= NAME_BYTES and not _DIGEST.search(key) and _is_unicode(key):
        return key
    digest = "~" + _sha256(key)[:16]
    clean = key.encode(errors="replace")
    return clean[: NAME_BYTES - len(digest)].decode(errors="ignore") + digest


def meant(name: str, is_key: Callable[[str], bool], keys: Callable[[], Iterable[str]]) -> str:
    """The key of what goes by this name: itself, as lists show it, or percent-encoded as in a topic or a path.

    `keys`: of all series. What nobody goes by comes back as it is.
    """
    spelt = (name, unquote(name))
    found = next(filter(is_key, spelt), None)
    if found is None and _DIGEST.search(name):
        found = next((key for key in keys() if name_of(key) in spelt), None)
    if found is None and _TOPIC_DIGEST.fullmatch(name):
        found = next((key for key in keys() if _sha256(key) == name), None)
    return name if found is None else found


def _sha256(key: str) -> str:
    return hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest()


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
