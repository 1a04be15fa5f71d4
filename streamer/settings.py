"""Everything that an operator can set: type, unit, bounds, default, one sentence, and whether SIGHUP re-reads it.

`load` reads the four places (places.py) and gives one frozen `Settings`, or a SettingsError with every problem at once,
a line each: where, what was found, what was expected. docs/settings.md is made from this file by tests/references.py.
"""

from __future__ import annotations

import math
import re
import zoneinfo
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, TypeVar, get_args, get_origin
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from streamer import places, topics
from streamer.errors import SettingsError
from streamer.places import Kind, Known, Layer, Setting

T = TypeVar("T")

SECRETS = ("mqtt.password", "http.password", "webhook.token", "webhook.secret")
"""Each is the text of the file that NAME_file names."""
MAX_PACKET_BYTES = 268_435_455  # MQTT 5.0, section 1.5.5: the largest variable byte integer


def _set(
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


def _secret_file(sentence: str) -> str:
    """The field beside a secret: where the secret may lie instead."""
    return _set("", sentence, path="file", form="a path, or empty", reload=True)


def _secret(name: str) -> SecretStr:
    """A field that no place which others can read may say."""
    what = name.rpartition(".")[2]
    sentence = f"The {what} itself; only the secrets directory may say it, as a file `{name}`."
    return _set(SecretStr(""), sentence, reload=True)


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


_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")


def _pattern(text: str) -> str:
    """`{name}` is a level with a name, `{name...}` all levels that are left; the rest is a glob."""
    names = _PLACEHOLDER.findall(text)
    if not text or set(_PLACEHOLDER.sub("", text)) & set("{}"):
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


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)


# --- The settings ---


class Tls(_Table):
    """Encryption of the connection to the broker."""

    enabled: bool = _set(False, "Encrypt the connection and verify the broker's certificate and host name.")
    ca_file: Line = _set(
        "",
        "Certificates of the authorities that may have signed the broker's, PEM; empty: those of this machine.",
        path="file",
        form="a path, or empty",
    )
    cert_file: Line = _set(
        "", "The client's own certificate, PEM, with its chain.", path="file", form="a path, or empty"
    )
    key_file: Line = _set(
        "", "The private key of `cert_file`, PEM, without a passphrase.", path="file", form="a path, or empty"
    )

    @model_validator(mode="after")
    def _belongs_together(self) -> Tls:
        if bool(self.cert_file) != bool(self.key_file):
            there, absent = ("cert_file", "key_file") if self.cert_file else ("key_file", "cert_file")
            raise ValueError(f"found mqtt.tls.{there} alone; expected mqtt.tls.{absent} with it")
        if not self.enabled and (self.ca_file or self.cert_file):
            raise ValueError("found certificates, but mqtt.tls.enabled is false; expected mqtt.tls.enabled = true")
        return self


class Mqtt(_Table):
    """The broker, and the session that the daemon holds with it."""

    host: Host = _set("127.0.0.1", "Where the broker is.", form=HOST_FORM)
    port: int = _set(1883, "The broker's port; 8883 is usual with TLS.", lower=1, upper=65_535)
    protocol: Literal["auto", "5", "3.1.1"] = _set(
        "auto", "Version of MQTT; `auto` tries 5 and falls back to 3.1.1 where the broker refuses it."
    )
    client_id: Line = _set(
        "",
        "Name of the session at the broker, the same at every start; empty: `streamer-` and the instance.",
        form="text, or empty",
    )
    subscribe: tuple[Filter, ...] = _set(("#",), "Topic filters to subscribe to.", form="a list of topic filters")
    qos: int = _set(
        1,
        "Quality of service of the subscriptions; at 1 and 2 the broker keeps what the daemon has not acknowledged.",
        lower=0,
        upper=2,
    )
    commands: bool = _set(
        False,
        "Obey pause, resume and mark-normal on `streamer/<instance>/command`. Whoever may publish there can silence "
        "alarms: switch it on only where the broker's access control says who may.",
    )
    keep_alive_seconds: int = _set(
        30, "After this long without a packet each side asks whether the other lives.", lower=5, upper=65_535, unit="s"
    )
    session_expiry_seconds: int = _set(
        259_200,
        "How long the broker keeps session and messages while the daemon is away; MQTT 3.1.1 cannot say it. What it "
        "really keeps, and how many, `streamer doctor` finds out.",
        lower=0,
        upper=4_294_967_295,
        unit="s",
    )
    username: Line = _set("", "User at the broker; empty: none.", form="text, or empty")
    password_file: Line = _secret_file(
        "File that holds the password and nothing else; a last line break does not count."
    )
    password: SecretStr = _secret("mqtt.password")
    connect_timeout_seconds: float = _set(
        10.0, "How long a connection may take to be made.", lower=1, upper=300, unit="s"
    )
    reconnect_min_seconds: float = _set(
        1.0, "First pause before another attempt; it doubles and is jittered.", lower=0.1, upper=3600, unit="s"
    )
    reconnect_max_seconds: float = _set(30.0, "Longest pause between two attempts.", lower=0.1, upper=3600, unit="s")
    max_packet_bytes: int = _set(
        1_048_576,
        "Largest packet that the broker may send; MQTT 5 brokers drop larger ones, those of others are rejected.",
        lower=1024,
        upper=MAX_PACKET_BYTES,
        unit="bytes",
    )
    receive_maximum: int = _set(
        1000, "How many messages the broker may have unacknowledged on the way.", lower=1, upper=65_535, unit="messages"
    )
    linger_ms: int = _set(
        2,
        "The longest wait for more messages after a few have come, which saves work.",
        lower=0,
        upper=1000,
        unit="ms",
    )
    tls: Tls = Tls()

    @model_validator(mode="after")
    def _belongs_together(self) -> Mqtt:
        if self.reconnect_min_seconds > self.reconnect_max_seconds:
            raise ValueError(
                f"found mqtt.reconnect_min_seconds = {self.reconnect_min_seconds:g} above mqtt.reconnect_max_seconds = "
                f"{self.reconnect_max_seconds:g}; expected the smaller one as min"
            )
        if self.password.get_secret_value() and not self.username:
            raise ValueError("found a password without a user; expected mqtt.username with it")
        return self

    @field_validator("subscribe")
    @classmethod
    def _subscribes(cls, subscribe: tuple[str, ...]) -> tuple[str, ...]:
        if not subscribe:
            raise ValueError("at least one topic filter")
        return subscribe


class Rule(_Table):
    """How to read the messages of some topics; the first rule whose pattern matches a topic is the one that holds."""

    pattern: Pattern = Field(
        description="Topics that the rule is for: a glob; `{name}` names a level, `{name...}` all that are left.",
        json_schema_extra={"form": "a pattern such as plant/{line}/{device}/{metric...}"},
    )
    device: Line = _set(
        "",
        "Which series are judged together: topics that give the same text; empty: each topic is a device.",
        form="a template such as {line}/{device}, or empty",
    )
    format: Literal["auto", "number", "json", "influx", "senml", "telegraf", "lorawan"] = _set(
        "auto", "What the payloads are; `auto` looks at each."
    )
    include: tuple[Glob, ...] = _set(
        (), "Globs on field paths; if there is one, only those become series.", form="a list of globs"
    )
    exclude: tuple[Glob, ...] = _set((), "Globs on field paths that do not.", form="a list of globs")
    time_field: Line = _set("", "Path of the time; empty: found by its name.", form="a field path, or empty")
    value_field: Line = _set(
        "", "Path of the value, or of the table with the values; empty: all.", form="a field path, or empty"
    )
    time_zone: OptionalZone = _set(
        "", "The zone of times that do not say one; empty: `input.time_zone`.", form=f"{ZONE_FORM}, or empty"
    )

    @model_validator(mode="after")
    def _belongs_together(self) -> Rule:
        known = {name.removesuffix("...") for name in _PLACEHOLDER.findall(self.pattern)}
        if not set(_PLACEHOLDER.findall(self.device)) <= known:
            raise ValueError(
                f"found device = {places.shown(self.device)}; "
                f"expected names of the pattern: {', '.join(sorted(known)) or 'it has none'}"
            )
        if (self.time_field or self.value_field) and self.format not in ("auto", "json"):
            raise ValueError(f"found time_field or value_field with format = {self.format}; expected auto or json")
        return self


class Input(_Table):
    """Which messages count, and how they are read."""

    include: tuple[Glob, ...] = _set(
        (),
        "Globs on topics; if there is one, only topics that match one are read. `**` is any number of levels.",
        form="a list of globs",
        reload=True,
    )
    exclude: tuple[Glob, ...] = _set(
        (), "Globs on topics that are not read, even if included.", form="a list of globs", reload=True
    )
    rules: tuple[Rule, ...] = _set((), "How to read some topics, in the order of precedence.", form="a list of tables")
    booleans: bool = _set(True, "Read on/off, true/false and open/closed as 1 and 0.")
    time_zone: Zone = _set("UTC", "The zone of times that do not say one.", form=ZONE_FORM)
    lateness_seconds: float = _set(
        0.0,
        "How late a reading that has its own time may come and still be put in its place; for so long each such "
        "reading waits for its score. 0: none waits, and one that is older than the last is not scored.",
        lower=0,
        upper=3600,
        unit="s",
    )
    max_payload_bytes: int = _set(
        262_144, "A larger message is rejected.", lower=1, upper=MAX_PACKET_BYTES, unit="bytes"
    )
    max_depth: int = _set(16, "A message nested deeper is rejected.", lower=1, upper=64, unit="levels")
    max_fields: int = _set(256, "A message with more numbers is rejected.", lower=1, upper=10_000, unit="fields")


class Limits(_Table):
    """What bounds the memory, whatever the broker sends."""

    max_series: int = _set(
        100_000,
        "More series than this are refused and counted, unless idle ones can make room.",
        lower=1,
        upper=10_000_000,
        unit="series",
    )
    idle_hours: int = _set(
        48,
        "A series that has sent nothing for so long is forgotten when a new one finds no room.",
        lower=1,
        upper=87_600,
        unit="h",
    )
    new_series_per_minute: int = _set(
        5000, "How many new series a minute are admitted.", lower=1, upper=10_000_000, unit="series"
    )
    new_series_burst: int = _set(
        20_000, "How many new series are admitted at once.", lower=1, upper=10_000_000, unit="series"
    )
    inbox_bytes: int = _set(
        67_108_864,
        "How much may wait between network and engine; what comes on top is dropped and counted.",
        lower=65_536,
        upper=17_179_869_184,
        unit="bytes",
    )
    pending_bytes: int = _set(
        67_108_864,
        "How much may wait for a disk that refuses or hangs; then nothing more is taken, and the inbox fills.",
        lower=33_554_432,  # twice a segment of the journal: a start may have to write one anew before anything comes
        upper=17_179_869_184,
        unit="bytes",
    )


class Clock(_Table):
    """What event times are believed."""

    max_future_seconds: float = _set(
        300.0, "A reading further ahead of the daemon's clock is rejected.", lower=0, upper=86_400, unit="s"
    )


class Model(_Table):
    """The forecaster."""

    weights: Line = _set(
        "",
        "The weights, safetensors with a manifest beside it; empty: those that are shipped.",
        path="file",
        form="a path, or empty",
    )
    device: Literal["cpu", "cuda", "auto"] = _set(
        "cpu", "Where the model steps; `auto` takes CUDA where there is one. The CPU needs no torch."
    )


class Alarms(_Table):
    """When an operator is told."""

    budget_per_series_month: float = _set(
        1.0,
        "How many false alarms a series may raise in a month; a score of 1 is the rarity that this allows.",
        lower=0.001,
        upper=1000,
        unit="alarms",
        reload=True,
    )
    silent: bool = _set(True, "Raise an alarm when a series stops.", reload=True)
    publish_series: Literal["alarm", "all", "off"] = _set(
        "alarm", "The retained state of each series: while an alarm is open, always, or never."
    )


class Webhook(_Table):
    """Alarm events to a web server, besides MQTT: one POST each, tried again until the server has it."""

    url: Url = _set("", "Where each alarm event is posted; empty: nowhere.", form="an address, or empty")
    token_file: Line = _secret_file("File that holds what is sent as `Authorization: Bearer`.")
    token: SecretStr = _secret("webhook.token")
    secret_file: Line = _secret_file(
        "File that holds the secret by which each event is signed, as Standard Webhooks says."
    )
    secret: SecretStr = _secret("webhook.secret")
    ca_file: Line = _set(
        "",
        "Certificates of the authorities that may have signed the server's, PEM; empty: those of this machine.",
        path="file",
        form="a path, or empty",
    )
    timeout_seconds: float = _set(10.0, "How long an attempt may take as a whole.", lower=0.1, upper=300, unit="s")
    max_events: int = _set(
        1000,
        "How many events may wait; the oldest `updated` makes room, or the oldest, and is counted.",
        lower=1,
        upper=100_000,
        unit="events",
    )
    retry_hours: float = _set(24.0, "An event that is older is given up.", lower=0.001, upper=720, unit="h")

    @field_validator("token")
    @classmethod
    def _is_token(cls, token: SecretStr) -> SecretStr:
        if not re.fullmatch(r"[!-~]*", token.get_secret_value()):
            raise ValueError("one word in ASCII")
        return token


class HomeAssistant(_Table):
    """Devices, their scores and alarms in Home Assistant, by its MQTT discovery."""

    enabled: bool = _set(False, "Tell Home Assistant of the devices; switched off again, they are removed there.")
    prefix: Topic = _set("homeassistant", "Its discovery prefix.", form="a topic of letters, digits, _, - and /")
    include: tuple[Glob, ...] = _set(
        (),
        "Globs on the names of devices, which are topics unless a rule says otherwise; if there is one, only those.",
        form="a list of globs",
    )
    max_devices: int = _set(
        100, "So many devices at most; the first that come, and the log says so.", lower=1, upper=10_000, unit="devices"
    )
    every_seconds: float = _set(
        10.0, "The figures of a device are told no more often; an alarm is told at once.", lower=1, upper=3600, unit="s"
    )


class Metrics(_Table):
    """What Prometheus sees of single series."""

    per_series: Literal["top", "all", "off"] = _set(
        "top", "Gauges for the series with the highest scores, for all, or for none.", reload=True
    )
    top: int = _set(100, "How many series `top` shows.", lower=1, upper=100_000, unit="series", reload=True)


class HttpTls(_Table):
    """Encryption of the page and of all else that is served by HTTP."""

    enabled: bool = _set(False, "Serve https only; a certificate that is renewed is read at the next start.")
    cert_file: Line = _set("", "The server's certificate, PEM, with its chain.", path="file", form="a path, or empty")
    key_file: Line = _set(
        "", "The private key of `cert_file`, PEM, without a passphrase.", path="file", form="a path, or empty"
    )

    @model_validator(mode="after")
    def _belongs_together(self) -> HttpTls:
        if self.enabled != bool(self.cert_file) or self.enabled != bool(self.key_file):
            raise ValueError("found only some of enabled, cert_file and key_file of http.tls; expected all or none")
        return self


class Http(_Table):
    """The server of the page, of /metrics and of the health checks."""

    enabled: bool = _set(True, "Serve HTTP.")
    host: Host = _set("127.0.0.1", "Address to listen on; 0.0.0.0 or :: for all of this machine.", form=HOST_FORM)
    port: int = _set(9479, "Port to listen on; 0 takes a free one, which the log names.", lower=0, upper=65_535)
    names: tuple[Host, ...] = _set(
        (),
        "Names under which browsers and Prometheus ask for it. If there is one, or on loopback, a request under any "
        "other name than these, localhost, `host` and addresses is refused.",
        form="a list of host names",
    )
    username: User = _set("streamer", "Who may see it, where there is a password.", form="text without a colon")
    password_file: Line = _secret_file(
        "File that holds the password and nothing else; a last line break does not count. Empty: whoever reaches the "
        "port may see it. /-/healthy and /-/ready never ask for it."
    )
    password: SecretStr = _secret("http.password")
    tls: HttpTls = HttpTls()


class State(_Table):
    """What outlives the process."""

    directory: Line = _set(
        "",
        "Where state is kept; empty: $STATE_DIRECTORY, else $XDG_STATE_HOME/streamer, else ~/.local/state/streamer.",
        path="folder",
        form="a path, or empty",
    )
    durability: Literal["journal", "snapshot", "none"] = _set(
        "journal",
        "What outlives a crash: all that was acknowledged to the broker, what the last snapshot has, or nothing.",
    )
    snapshot_seconds: int = _set(
        300,
        "How often state is written while running; after a crash it is read, and the journal from there on.",
        lower=1,
        upper=86_400,
        unit="s",
    )


class Journal(_Table):
    """The log of readings, in `state.directory`: what is in it is acknowledged to the broker, and nothing else."""

    commit_ms: int = _set(
        10,
        "A write to the disk begins no sooner than so long after the one before began; messages gather meanwhile.",
        lower=0,
        upper=1000,
        unit="ms",
    )
    keep_hours: int = _set(
        168, "What is no longer needed for a restart is kept for so long.", lower=0, upper=87_600, unit="h"
    )
    keep_bytes: int = _set(
        1 << 30,
        "Above this size what is no longer needed for a restart goes earlier.",
        lower=0,
        upper=1 << 50,
        unit="bytes",
    )


class Retrain(_Table):
    """When and how the weights are trained on from this site's own readings, by the journal."""

    every_hours: int = _set(24, "How often; jittered by a tenth. 0: not by the clock.", lower=0, upper=8760, unit="h")
    drift_rise: float = _set(
        0.3,
        "Also when the forecasts of the whole site have for an hour been worse than in the best hour of these weights, "
        "by so large a share. 0: not by drift.",
        lower=0.0,
        upper=100.0,
        unit="share",
    )
    min_readings: int = _set(
        5000, "Readings that there have to be to train on.", lower=500, upper=1_000_000_000, unit="readings"
    )
    max_series_steps: int = _set(
        1_000_000,
        "At most so many readings are trained on; of a larger site the series with the worst forecasts first. Each "
        "takes about 160 bytes of memory.",
        lower=10_000,
        upper=1_000_000_000,
        unit="readings",
    )
    probation_hours: float = _set(
        24.0,
        "So long the weights that served before forecast on unheard; they come back if they do better.",
        lower=0.01,
        upper=8760.0,
        unit="h",
    )
    device: Literal["auto", "cpu", "cuda"] = _set(
        "auto", "Where it trains; `auto` takes CUDA where there is one. What fails there is done on the CPU."
    )
    threads: int = _set(1, "Threads of the training process, on the CPU.", lower=1, upper=1024, unit="threads")
    time_limit_minutes: int = _set(120, "A training that takes longer is ended.", lower=1, upper=100_000, unit="min")


class Log(_Table):
    """What is written to standard error."""

    level: Literal["debug", "info", "warning", "error"] = _set(
        "info", "The least important message that is written.", reload=True
    )
    format: Literal["text", "json"] = _set("text", "Lines for people, or one JSON object a line.")


class Settings(BaseSettings):
    """All settings of one daemon; frozen."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)

    instance: str = _set(
        "default",
        "Name of this daemon among others on the same broker; its output lies under `streamer/<instance>/`.",
        form="1 to 64 of a-z, 0-9 and -",
    )
    mqtt: Mqtt = Mqtt()
    input: Input = Input()
    limits: Limits = Limits()
    clock: Clock = Clock()
    model: Model = Model()
    alarms: Alarms = Alarms()
    webhook: Webhook = Webhook()
    home_assistant: HomeAssistant = HomeAssistant()
    metrics: Metrics = Metrics()
    http: Http = Http()
    state: State = State()
    journal: Journal = Journal()
    retrain: Retrain = Retrain()
    log: Log = Log()

    @field_validator("instance")
    @classmethod
    def _is_slug(cls, instance: str) -> str:
        if not re.fullmatch(r"[a-z0-9-]{1,64}", instance):
            raise ValueError("1 to 64 of a-z, 0-9 and -")
        return instance

    @model_validator(mode="after")
    def _belongs_together(self) -> Settings:
        if self.limits.inbox_bytes < self.mqtt.max_packet_bytes:
            raise ValueError(
                f"found limits.inbox_bytes = {self.limits.inbox_bytes} below mqtt.max_packet_bytes = "
                f"{self.mqtt.max_packet_bytes}; expected an inbox that holds the largest packet"
            )
        for topic_filter in self.mqtt.subscribe:
            if topics.is_own_output(topic_filter, self.instance):
                raise ValueError(f"found {topic_filter} in mqtt.subscribe, this daemon's own output; expected an input")
        return self

    @property
    def client_id(self) -> str:
        """Name of the session at the broker."""
        return self.mqtt.client_id or f"streamer-{self.instance}"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """`Settings()` has the defaults, whatever the environment: only `load` reads places, and names them."""
        del settings_cls, env_settings, dotenv_settings, file_secret_settings
        return (init_settings,)


# --- The reference: what there is to set ---


def reference(model: type[BaseModel] = Settings, above: str = "") -> list[Setting]:
    """Every setting in the order of the file, those of the tables below it included; not the keys of a rule."""
    settings: list[Setting] = []
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            settings += reference(inner, f"{above}{name}.")
        else:
            settings.append(_setting(above + name, field))
    return settings


def tables() -> dict[str, str]:
    """Dotted name -> sentence of each table, in the order of the file."""
    found: dict[str, str] = {}

    def walk(model: type[BaseModel], above: str) -> None:
        for name, field in model.model_fields.items():
            inner = field.annotation
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                found[above + name] = (inner.__doc__ or "").strip()
                walk(inner, f"{above}{name}.")

    walk(Settings, "")
    return found


def _setting(name: str, field: FieldInfo) -> Setting:
    extra = field.json_schema_extra
    if not isinstance(extra, dict):
        raise TypeError(f"{name} is not declared with _set()")
    kind, choices = _kind(field.annotation)
    unit, form = str(extra.get("unit", "")), str(extra.get("form", ""))
    lower, upper = extra.get("lower"), extra.get("upper")
    if choices:
        expected = "one of " + ", ".join(choices)
    elif kind in (Kind.INTEGER, Kind.NUMBER):
        expected = f"{'an integer' if kind is Kind.INTEGER else 'a number'} from {_number(lower)} to {_number(upper)}"
    else:
        expected = form or kind.value
    return Setting(
        name=name,
        kind=kind,
        unit=unit,
        expected=expected,
        default="none, it must be said" if field.is_required() else _toml(field.default),
        sentence=field.description or "",
        reload=extra.get("reload") is True,
        file=extra.get("path") == "file",
        path=bool(extra.get("path")),
    )


def _kind(annotation: object) -> tuple[Kind, tuple[str, ...]]:
    """The kind of a field, and what it may be where that is a choice."""
    if get_origin(annotation) is Literal:
        return Kind.TEXT, tuple(str(choice) for choice in get_args(annotation))
    if get_origin(annotation) is tuple:
        inner = get_args(annotation)[0]
        return (Kind.TABLES if isinstance(inner, type) and issubclass(inner, BaseModel) else Kind.LIST), ()
    kinds: dict[object, Kind] = {bool: Kind.SWITCH, int: Kind.INTEGER, float: Kind.NUMBER, SecretStr: Kind.HIDDEN}
    return kinds.get(annotation, Kind.TEXT), ()


def _number(bound: object) -> str:
    return str(int(bound)) if isinstance(bound, float) and bound == math.floor(bound) else str(bound)


def _toml(default: object) -> str:
    if isinstance(default, tuple):
        return "[" + ", ".join(_toml(item) for item in default) + "]"
    if isinstance(default, bool):
        return str(default).lower()
    return f'"{default}"' if isinstance(default, str | SecretStr) else str(default)


# --- Reading the places ---


def load(
    config: Path | None, overrides: Sequence[str], environ: Mapping[str, str], secrets: Path | None = None
) -> Settings:
    """The settings that hold; raises SettingsError with every problem.

    `config` is the TOML file; without it $STREAMER_CONFIG, else there is none.
    `secrets` is the secrets directory; without it $STREAMER_SECRETS, else systemd's $CREDENTIALS_DIRECTORY.
    """
    return _load(config, overrides, environ, secrets)[0]


def sources(
    config: Path | None, overrides: Sequence[str], environ: Mapping[str, str], secrets: Path | None = None
) -> dict[str, str]:
    """Dotted name -> the place that said it, for every setting that is not left at its default."""
    return _load(config, overrides, environ, secrets)[1]


def values(settings: Settings) -> dict[str, object]:
    """Dotted name -> value of every setting, in JSON's types; no password, nor what may be one in an address."""
    flat = _flat(settings.model_dump(mode="json"))
    url = urlsplit(settings.webhook.url)
    if url.path.strip("/") or url.query:
        flat["webhook.url"] = f"{url.scheme}://{url.netloc}/..."
    return flat


def changed(old: Settings, new: Settings) -> tuple[list[str], list[str]]:
    """Names of the settings that differ: those that take effect at once, and those that wait for a restart."""
    before, after = _flat(old.model_dump()), _flat(new.model_dump())
    names = [setting for setting in reference() if before[setting.name] != after[setting.name]]
    return [each.name for each in names if each.reload], [each.name for each in names if not each.reload]


def _flat(table: Mapping[str, object], above: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, value in table.items():
        flat |= _flat(value, f"{above}{name}.") if isinstance(value, dict) else {above + name: value}
    return flat


def _load(
    config: Path | None, overrides: Sequence[str], environ: Mapping[str, str], secrets: Path | None
) -> tuple[Settings, dict[str, str]]:
    known = Known(reference())
    if config is None and environ.get(places.CONFIG_VARIABLE):
        config = Path(environ[places.CONFIG_VARIABLE])
    said = [
        _defaults(environ),
        places.read_toml(config, known) if config is not None else Layer(),
        places.read_environment(environ, known),
        places.read_overrides(overrides, known),
    ]
    said.insert(2, _secrets(said, known, environ, secrets))
    said.append(_secret_files(said))

    problems = [problem for layer in said for problem in layer.problems]
    problems += _unreadable(said, known)
    settings: Settings | None = None
    try:
        # The first source is the strongest; the tables of all of them are merged key by key.
        layers = tuple(InitSettingsSource(Settings, init_kwargs=layer.values) for layer in reversed(said))
        build: Callable[..., Settings] = Settings  # to a type checker it takes the fields only
        settings = build(_build_sources=(layers, {}))
    except ValidationError as error:
        problems += _refusals(error, said, known)
    if settings is None or problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        lines = [places.printable(problem) for problem in problems]
        raise SettingsError("\n  ".join([f"{count} in the settings:", *lines]))
    found = {setting.name: places.effective(said, setting.name)[1] for setting in known.settings.values()}
    return settings, {name: place for name, place in found.items() if place}


def _defaults(environ: Mapping[str, str]) -> Layer:
    """The defaults that depend on the environment: where state is kept."""
    layer = Layer()
    if environ.get("STATE_DIRECTORY"):  # systemd gives several as a:b
        layer.put("state.directory", environ["STATE_DIRECTORY"].split(":")[0], "environment: STATE_DIRECTORY")
    elif environ.get("XDG_STATE_HOME"):
        folder = Path(environ["XDG_STATE_HOME"]) / "streamer"
        layer.put("state.directory", str(folder), "environment: XDG_STATE_HOME")
    else:
        home = Path(environ["HOME"]) if environ.get("HOME") else Path.home()
        layer.put("state.directory", str(home / ".local/state/streamer"), "")
    return layer


def _secrets(said: Sequence[Layer], known: Known, environ: Mapping[str, str], secrets: Path | None) -> Layer:
    used: set[Path] = set()
    for setting in known.settings.values():
        value, _ = places.effective(said, setting.name)
        if setting.path and isinstance(value, str) and value:
            used.add(Path(value))
    if secrets is None and environ.get(places.SECRETS_VARIABLE):
        secrets = Path(environ[places.SECRETS_VARIABLE])
    if secrets is not None:
        return places.read_secrets(secrets, known, strict=True, used=used)
    if environ.get("CREDENTIALS_DIRECTORY"):
        return places.read_secrets(Path(environ["CREDENTIALS_DIRECTORY"]), known, strict=False, used=used)
    return Layer()


def _secret_files(said: Sequence[Layer]) -> Layer:
    """What the files of secrets hold."""
    layer = Layer(is_secret=True)
    for name in SECRETS:
        file, place = places.effective(said, f"{name}_file")
        _, other = places.effective(said, name)
        if not isinstance(file, str) or not file:
            continue
        if other:
            layer.problems.append(f"{place}: {name} is already said by {other}; expected one of the two")
            continue
        text, problem = places.read_secret(Path(file))
        if problem:
            layer.problems.append(f"{place}: {file}: {problem}")
        else:
            layer.put(name, text, place)
    return layer


def _unreadable(said: Sequence[Layer], known: Known) -> Iterator[str]:
    """Files that a setting names and that cannot be read; those of secrets are read anyway."""
    for setting in known.settings.values():
        value, place = places.effective(said, setting.name)
        is_secret = setting.name.removesuffix("_file") in SECRETS
        if setting.file and not is_secret and isinstance(value, str) and value:
            try:
                with Path(value).open("rb"):
                    pass
            except OSError as error:
                yield f"{place}: {places.shown(value)}: {error.strerror}; expected a file that can be read"
            except ValueError:
                yield f"{place}: {places.shown(value)}: not a path; expected a file that can be read"


def _refusals(error: ValidationError, said: Sequence[Layer], known: Known) -> Iterator[str]:
    """Pydantic's errors in an operator's words; `loc` leads back to the place."""
    rule_keys = {setting.name: setting for setting in reference(Rule)}
    secret_places = {place for layer in said if layer.is_secret for place in layer.places.values()}
    for detail in error.errors(include_url=False):
        name, within = _split(detail["loc"], known)
        place = _place(said, name) + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in within)
        setting = known.settings.get(name)
        key = rule_keys.get(str(within[1])) if len(within) > 1 else None
        expected = detail.get("ctx", {}).get("error")
        exact = places.effective(said, name)[1]
        hidden = (setting is not None and setting.kind is Kind.HIDDEN) or exact in secret_places
        found = "a hidden value" if hidden else places.shown(detail["input"])
        if setting is None or (expected is not None and len(within) == 1 and setting.kind is Kind.TABLES):
            # Settings that contradict each other: the text says what was found.
            yield f"{place}: {expected}"
        elif detail["type"] == "extra_forbidden":
            near = places.closest(str(within[-1]), [*rule_keys])
            yield f"{place}: no such key; the closest known name is {near}"
        elif detail["type"] == "missing" and key is not None:
            yield f"{place}: absent; expected {key.expected}"
        elif expected is not None:
            yield f"{place}: found {found}; expected {expected}"
        elif key is not None and len(within) == 2:
            yield f"{place}: found {found}; expected {key.expected}"
        elif within:
            table = setting.kind is Kind.TABLES and key is None
            yield f"{place}: found {found}; expected {'a table' if table else 'text'}"
        else:
            yield f"{place}: found {found}; expected {setting.expected}"


def _split(location: tuple[int | str, ...], known: Known) -> tuple[str, tuple[int | str, ...]]:
    """The setting that an error is about, and where in its value: `input.rules` and `(0, "pattern")`."""
    for end in range(1, len(location)):
        name = ".".join(str(part) for part in location[:end])
        if name in known.settings:
            return name, location[end:]
    return ".".join(str(part) for part in location), ()


def _place(said: Sequence[Layer], name: str) -> str:
    """Where a setting was said, else the first one of the table."""
    exact = places.effective(said, name)[1]
    if exact:
        return exact
    below = (place for layer in reversed(said) for each, place in layer.places.items() if each.startswith(name))
    return next((place for place in below if place), name or "settings")
