"""What a text has to look like, and how a setting is declared: a field of pydantic, with what people are told of it."""

from __future__ import annotations

import re
import zoneinfo
from typing import Annotated, Literal, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, SecretStr

T = TypeVar("T")


def field(
    default: T,
    sentence: str,
    *,
    lower: float | None = None,
    upper: float | None = None,
    unit: str = "",
    form: str = "",
    path: Literal["", "file", "folder"] = "",
    reload: bool = False,
) -> T:
    """A field of a model. `form` says what a text has to look like; an integer or number has bounds and a unit."""
    return Field(
        default,
        description=sentence,
        ge=lower,
        le=upper,
        allow_inf_nan=False if isinstance(default, float) else None,
        # TOML has lists, the settings are frozen and have tuples; what is in the list stays strict.
        strict=False if isinstance(default, tuple) else None,
        json_schema_extra={
            "lower": lower,
            "upper": upper,
            "unit": unit,
            "form": form,
            "path": path,
            "reload": reload,
        },
    )


def secret_file(sentence: str) -> str:
    """The field beside a secret: where the secret may lie instead."""
    return field("", sentence, path="file", form="a path, or empty", reload=True)


def secret(name: str) -> SecretStr:
    """A field that no place which others can read may say."""
    what = name.rpartition(".")[2]
    sentence = f"The {what} itself; only the secrets directory may say it, as a file `{name}`."
    return field(SecretStr(""), sentence, reload=True)


# --- What a text has to look like ---


def _line(text: str) -> str:
    # Control characters; and the lone surrogates by which Python reads bytes that are not UTF-8.
    if re.search(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]", text):
        raise ValueError("text in UTF-8 without control characters")
    return text


def _host(text: str) -> str:
    if not re.fullmatch(r"[^\s/:@]+|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*(%\w+)?", text):
        raise ValueError("a host name or an address, without scheme, user or port")
    return text


def _user(text: str) -> str:
    """RFC 7617, section 2."""
    if not text or ":" in text:
        raise ValueError("text without a colon")
    return _line(text)


def _filter(text: str) -> str:
    """MQTT 5.0, section 4.7: `+` and `#` fill a level, `#` is the last one."""
    levels = text.split("/")
    if not 1 <= len(text.encode(errors="surrogatepass")) <= 65_535:
        raise ValueError("a topic filter of 1 to 65535 bytes")
    if levels[0] == "$share":
        raise ValueError("a topic filter without $share, which would tear a series apart between daemons")
    if "#" in levels[:-1] or any(len(level) > 1 and ("#" in level or "+" in level) for level in levels):
        raise ValueError("a topic filter in which + and # fill a whole level, and # is the last one")
    return _line(text)


def _topic(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*", text):
        raise ValueError("a topic of letters, digits, _, - and /")
    return text


def _url(text: str) -> str:
    """RFC 3986, as far as it is of use: no user, whose password would show; no fragment, which is not sent."""
    if not text:
        return text
    expected = "http:// or https://, a host and maybe a port and a path; no user, no fragment, nothing but ASCII"
    try:
        parts = urlsplit(text)
        is_whole = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError as error:
        raise ValueError(expected) from error
    if not is_whole or "@" in parts.netloc or "#" in text or not re.fullmatch(r"[!-~]+", text):
        raise ValueError(expected)
    return text


def _glob(text: str) -> str:
    if not text:
        raise ValueError("a glob that is not empty")
    return _line(text)


def _zone(text: str) -> str:
    if text.upper() not in ("UTC", "Z", "ETC/UTC"):  # needs no time zone database, which a small image lacks
        try:
            zoneinfo.ZoneInfo(text)
        except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as error:
            raise ValueError(
                "a time zone of this machine's database, such as UTC or Europe/Paris (Debian has it in tzdata)"
            ) from error
    return text


def _optional_zone(text: str) -> str:
    return _zone(text) if text else text


PLACEHOLDER = re.compile(r"\{([^{}]*)\}")


def _pattern(text: str) -> str:
    """`{name}` is a level with a name, `{name...}` all levels that are left; the rest is a glob."""
    names = PLACEHOLDER.findall(text)
    if not text or set(PLACEHOLDER.sub("", text)) & set("{}"):
        raise ValueError("a pattern in which every brace has its partner, such as plant/{line}/{device}")
    for name in names:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*(\.\.\.)?", name):
            raise ValueError("a pattern whose names are letters, digits and _, such as plant/{line}/{device}")
    if any(name.endswith("...") for name in names[:-1]) or (names and names[-1].endswith("...") and text[-1] != "}"):
        raise ValueError("a pattern that ends with {name...}, since that takes all levels that are left")
    if len({name.removesuffix("...") for name in names}) < len(names):
        raise ValueError("a pattern that gives each name to one level")
    return _line(text)


Line = Annotated[str, AfterValidator(_line)]
Host = Annotated[str, AfterValidator(_host)]
Topic = Annotated[str, AfterValidator(_topic)]
Url = Annotated[str, AfterValidator(_url)]
User = Annotated[str, AfterValidator(_user)]
Filter = Annotated[str, AfterValidator(_filter)]
Glob = Annotated[str, AfterValidator(_glob)]
Zone = Annotated[str, AfterValidator(_zone)]
OptionalZone = Annotated[str, AfterValidator(_optional_zone)]
Pattern = Annotated[str, AfterValidator(_pattern)]

HOST_FORM = "a host name or an IP address"
ZONE_FORM = "a time zone such as UTC or Europe/Paris"
