"""The settings, table by table: type, unit, bounds, default, one sentence, and whether SIGHUP re-reads it.

docs/settings.md is made from this file by tests/references.py.
"""

from __future__ import annotations

import re
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from streamer import places, topics
from streamer.settings.forms import (
    HOST_FORM,
    PLACEHOLDER,
    ZONE_FORM,
    Filter,
    Glob,
    Host,
    Line,
    OptionalZone,
    Pattern,
    Topic,
    Url,
    User,
    Zone,
    field,
    secret,
    secret_file,
)

SECRETS = ("mqtt.password", "http.password", "webhook.token", "webhook.secret")
"""Each is the text of the file that NAME_file names."""
MAX_PACKET_BYTES = 268_435_455  # MQTT 5.0, section 1.5.5: the largest variable byte integer


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)


class Tls(_Table):
    """Encryption of the connection to the broker."""

    enabled: bool = field(False, "Encrypt the connection and verify the broker's certificate and host name.")
    ca_file: Line = field(
        "",
        "Certificates of the authorities that may have signed the broker's, PEM; empty: those of this machine.",
        path="file",
        form="a path, or empty",
    )
    cert_file: Line = field(
        "", "The client's own certificate, PEM, with its chain.", path="file", form="a path, or empty"
    )
    key_file: Line = field(
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

    host: Host = field("127.0.0.1", "Where the broker is.", form=HOST_FORM)
    port: int = field(1883, "The broker's port; 8883 is usual with TLS.", lower=1, upper=65_535)
    protocol: Literal["auto", "5", "3.1.1"] = field(
        "auto", "Version of MQTT; `auto` tries 5 and falls back to 3.1.1 where the broker refuses it."
    )
    client_id: Line = field(
        "",
        "Name of the session at the broker, the same at every start; empty: `streamer-` and the instance.",
        form="text, or empty",
    )
    subscribe: tuple[Filter, ...] = field(("#",), "Topic filters to subscribe to.", form="a list of topic filters")
    qos: int = field(
        1,
        "Quality of service of the subscriptions; at 1 and 2 the broker keeps what the daemon has not acknowledged.",
        lower=0,
        upper=2,
    )
    commands: bool = field(
        False,
        "Obey pause, resume and mark-normal on `streamer/<instance>/command`. Whoever may publish there can silence "
        "alarms: switch it on only where the broker's access control says who may.",
    )
    keep_alive_seconds: int = field(
        30, "After this long without a packet each side asks whether the other lives.", lower=5, upper=65_535, unit="s"
    )
    session_expiry_seconds: int = field(
        259_200,
        "How long the broker keeps session and messages while the daemon is away; MQTT 3.1.1 cannot say it. What it "
        "really keeps, and how many, `streamer doctor` finds out.",
        lower=0,
        upper=4_294_967_295,
        unit="s",
    )
    username: Line = field("", "User at the broker; empty: none.", form="text, or empty")
    password_file: Line = secret_file(
        "File that holds the password and nothing else; a last line break does not count."
    )
    password: SecretStr = secret("mqtt.password")
    connect_timeout_seconds: float = field(
        10.0, "How long a connection may take to be made.", lower=1, upper=300, unit="s"
    )
    reconnect_min_seconds: float = field(
        1.0, "First pause before another attempt; it doubles and is jittered.", lower=0.1, upper=3600, unit="s"
    )
    reconnect_max_seconds: float = field(30.0, "Longest pause between two attempts.", lower=0.1, upper=3600, unit="s")
    max_packet_bytes: int = field(
        1_048_576,
        "Largest packet that the broker may send; MQTT 5 brokers drop larger ones, those of others are rejected.",
        lower=1024,
        upper=MAX_PACKET_BYTES,
        unit="bytes",
    )
    receive_maximum: int = field(
        1000, "How many messages the broker may have unacknowledged on the way.", lower=1, upper=65_535, unit="messages"
    )
    linger_ms: int = field(
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
    device: Line = field(
        "",
        "Which series are judged together: topics that give the same text; empty: each topic is a device.",
        form="a template such as {line}/{device}, or empty",
    )
    format: Literal["auto", "number", "json", "influx", "senml", "telegraf", "lorawan"] = field(
        "auto", "What the payloads are; `auto` looks at each."
    )
    include: tuple[Glob, ...] = field(
        (), "Globs on field paths; if there is one, only those become series.", form="a list of globs"
    )
    exclude: tuple[Glob, ...] = field((), "Globs on field paths that do not.", form="a list of globs")
    time_field: Line = field("", "Path of the time; empty: found by its name.", form="a field path, or empty")
    value_field: Line = field(
        "", "Path of the value, or of the table with the values; empty: all.", form="a field path, or empty"
    )
    time_zone: OptionalZone = field(
        "", "The zone of times that do not say one; empty: `input.time_zone`.", form=f"{ZONE_FORM}, or empty"
    )

    @model_validator(mode="after")
    def _belongs_together(self) -> Rule:
        known = {name.removesuffix("...") for name in PLACEHOLDER.findall(self.pattern)}
        if not set(PLACEHOLDER.findall(self.device)) <= known:
            raise ValueError(
                f"found device = {places.shown(self.device)}; "
                f"expected names of the pattern: {', '.join(sorted(known)) or 'it has none'}"
            )
        if (self.time_field or self.value_field) and self.format not in ("auto", "json"):
            raise ValueError(f"found time_field or value_field with format = {self.format}; expected auto or json")
        return self


class Input(_Table):
    """Which messages count, and how they are read."""

    include: tuple[Glob, ...] = field(
        (),
        "Globs on topics; if there is one, only topics that match one are read. `**` is any number of levels.",
        form="a list of globs",
        reload=True,
    )
    exclude: tuple[Glob, ...] = field(
        (), "Globs on topics that are not read, even if included.", form="a list of globs", reload=True
    )
    rules: tuple[Rule, ...] = field((), "How to read some topics, in the order of precedence.", form="a list of tables")
    booleans: bool = field(True, "Read on/off, true/false and open/closed as 1 and 0.")
    time_zone: Zone = field("UTC", "The zone of times that do not say one.", form=ZONE_FORM)
    lateness_seconds: float = field(
        0.0,
        "How late a reading that has its own time may come and still be put in its place; for so long each such "
        "reading waits for its score. 0: none waits, and one that is older than the last is not scored.",
        lower=0,
        upper=3600,
        unit="s",
    )
    max_payload_bytes: int = field(
        262_144, "A larger message is rejected.", lower=1, upper=MAX_PACKET_BYTES, unit="bytes"
    )
    max_depth: int = field(16, "A message nested deeper is rejected.", lower=1, upper=64, unit="levels")
    max_fields: int = field(256, "A message with more numbers is rejected.", lower=1, upper=10_000, unit="fields")


class Limits(_Table):
    """What bounds the memory, whatever the broker sends."""

    max_series: int = field(
        100_000,
        "More series than this are refused and counted, unless idle ones can make room.",
        lower=1,
        upper=10_000_000,
        unit="series",
    )
    idle_hours: int = field(
        48,
        "A series that has sent nothing for so long is forgotten when a new one finds no room.",
        lower=1,
        upper=87_600,
        unit="h",
    )
    new_series_per_minute: int = field(
        5000, "How many new series a minute are admitted.", lower=1, upper=10_000_000, unit="series"
    )
    new_series_burst: int = field(
        20_000, "How many new series are admitted at once.", lower=1, upper=10_000_000, unit="series"
    )
    inbox_bytes: int = field(
        67_108_864,
        "How much may wait between network and engine; what comes on top is dropped and counted.",
        lower=65_536,
        upper=17_179_869_184,
        unit="bytes",
    )
    pending_bytes: int = field(
        67_108_864,
        "How much may wait for a disk that refuses or hangs; then nothing more is taken, and the inbox fills.",
        lower=33_554_432,  # twice a segment of the journal: a start may have to write one anew before anything comes
        upper=17_179_869_184,
        unit="bytes",
    )


class Clock(_Table):
    """What event times are believed."""

    max_future_seconds: float = field(
        300.0, "A reading further ahead of the daemon's clock is rejected.", lower=0, upper=86_400, unit="s"
    )


class Model(_Table):
    """The forecaster."""

    weights: Line = field(
        "",
        "The weights, safetensors with a manifest beside it; empty: those that are shipped.",
        path="file",
        form="a path, or empty",
    )
    device: Literal["cpu", "cuda", "auto"] = field(
        "cpu", "Where the model steps; `auto` takes CUDA where there is one. The CPU needs no torch."
    )


class Alarms(_Table):
    """When an operator is told."""

    budget_per_series_month: float = field(
        1.0,
        "How many false alarms a series may raise in a month; a score of 1 is the rarity that this allows.",
        lower=0.001,
        upper=1000,
        unit="alarms",
        reload=True,
    )
    silent: bool = field(True, "Raise an alarm when a series stops.", reload=True)
    publish_series: Literal["alarm", "all", "off"] = field(
        "alarm", "The retained state of each series: while an alarm is open, always, or never."
    )


class Webhook(_Table):
    """Alarm events to a web server, besides MQTT: one POST each, tried again until the server has it."""

    url: Url = field("", "Where each alarm event is posted; empty: nowhere.", form="an address, or empty")
    token_file: Line = secret_file("File that holds what is sent as `Authorization: Bearer`.")
    token: SecretStr = secret("webhook.token")
    secret_file: Line = secret_file(
        "File that holds the secret by which each event is signed, as Standard Webhooks says."
    )
    secret: SecretStr = secret("webhook.secret")
    ca_file: Line = field(
        "",
        "Certificates of the authorities that may have signed the server's, PEM; empty: those of this machine.",
        path="file",
        form="a path, or empty",
    )
    timeout_seconds: float = field(10.0, "How long an attempt may take as a whole.", lower=0.1, upper=300, unit="s")
    max_events: int = field(
        1000,
        "How many events may wait; the oldest `updated` makes room, or the oldest, and is counted.",
        lower=1,
        upper=100_000,
        unit="events",
    )
    retry_hours: float = field(
        24.0,
        "An event that the server has not taken for so long is given up; time without a daemon does not count.",
        lower=0.001,
        upper=720,
        unit="h",
    )

    @field_validator("token")
    @classmethod
    def _is_token(cls, token: SecretStr) -> SecretStr:
        if not re.fullmatch(r"[!-~]*", token.get_secret_value()):
            raise ValueError("one word in ASCII")
        return token


class HomeAssistant(_Table):
    """Devices, their scores and alarms in Home Assistant, by its MQTT discovery."""

    enabled: bool = field(False, "Tell Home Assistant of the devices; switched off again, they are removed there.")
    prefix: Topic = field("homeassistant", "Its discovery prefix.", form="a topic of letters, digits, _, - and /")
    include: tuple[Glob, ...] = field(
        (),
        "Globs on the names of devices, which are topics unless a rule says otherwise; if there is one, only those.",
        form="a list of globs",
    )
    max_devices: int = field(
        100, "So many devices at most; the first that come, and the log says so.", lower=1, upper=10_000, unit="devices"
    )
    every_seconds: float = field(
        10.0, "The figures of a device are told no more often; an alarm is told at once.", lower=1, upper=3600, unit="s"
    )


class Metrics(_Table):
    """What Prometheus sees of single series."""

    per_series: Literal["top", "all", "off"] = field(
        "top", "Gauges for the series with the highest scores, for all, or for none.", reload=True
    )
    top: int = field(100, "How many series `top` shows.", lower=1, upper=100_000, unit="series", reload=True)


class HttpTls(_Table):
    """Encryption of the page and of all else that is served by HTTP."""

    enabled: bool = field(False, "Serve https only; a certificate that is renewed is read at the next start.")
    cert_file: Line = field("", "The server's certificate, PEM, with its chain.", path="file", form="a path, or empty")
    key_file: Line = field(
        "", "The private key of `cert_file`, PEM, without a passphrase.", path="file", form="a path, or empty"
    )

    @model_validator(mode="after")
    def _belongs_together(self) -> HttpTls:
        if self.enabled != bool(self.cert_file) or self.enabled != bool(self.key_file):
            raise ValueError("found only some of enabled, cert_file and key_file of http.tls; expected all or none")
        return self


class Http(_Table):
    """The server of the page, of /metrics and of the health checks."""

    enabled: bool = field(True, "Serve HTTP.")
    host: Host = field("127.0.0.1", "Address to listen on; 0.0.0.0 or :: for all of this machine.", form=HOST_FORM)
    port: int = field(9479, "Port to listen on; 0 takes a free one, which the log names.", lower=0, upper=65_535)
    names: tuple[Host, ...] = field(
        (),
        "Names under which browsers and Prometheus ask for it. If there is one, or on loopback, a request under any "
        "other name than these, localhost, `host` and addresses is refused.",
        form="a list of host names",
    )
    username: User = field("streamer", "Who may see it, where there is a password.", form="text without a colon")
    password_file: Line = secret_file(
        "File that holds the password and nothing else; a last line break does not count. Empty: whoever reaches the "
        "port may see it. /-/healthy and /-/ready never ask for it."
    )
    password: SecretStr = secret("http.password")
    tls: HttpTls = HttpTls()


class State(_Table):
    """What outlives the process."""

    directory: Line = field(
        "",
        "Where state is kept; empty: $STATE_DIRECTORY, else $XDG_STATE_HOME/streamer, else ~/.local/state/streamer.",
        path="folder",
        form="a path, or empty",
    )
    durability: Literal["journal", "snapshot", "none"] = field(
        "journal",
        "What outlives a crash: all that was acknowledged to the broker, what the last snapshot has, or nothing.",
    )
    snapshot_seconds: int = field(
        300,
        "How often state is written while running; after a crash it is read, and the journal from there on.",
        lower=1,
        upper=86_400,
        unit="s",
    )


class Journal(_Table):
    """The log of readings, in `state.directory`: what is in it is acknowledged to the broker, and nothing else."""

    commit_ms: int = field(
        10,
        "A write to the disk begins no sooner than so long after the one before began; messages gather meanwhile.",
        lower=0,
        upper=1000,
        unit="ms",
    )
    keep_hours: int = field(
        168, "What is no longer needed for a restart is kept for so long.", lower=0, upper=87_600, unit="h"
    )
    keep_bytes: int = field(
        1 << 30,
        "Above this size what is no longer needed for a restart goes earlier.",
        lower=0,
        upper=1 << 50,
        unit="bytes",
    )


class Retrain(_Table):
    """When and how the weights are trained on from this site's own readings, by the journal."""

    every_hours: int = field(24, "How often; jittered by a tenth. 0: not by the clock.", lower=0, upper=8760, unit="h")
    drift_rise: float = field(
        0.3,
        "Also when the forecasts of the whole site have for an hour been worse than in the best hour of these weights, "
        "by so large a share. 0: not by drift.",
        lower=0.0,
        upper=100.0,
        unit="share",
    )
    min_readings: int = field(
        5000, "Readings that there have to be to train on.", lower=500, upper=1_000_000_000, unit="readings"
    )
    max_series_steps: int = field(
        1_000_000,
        "At most so many readings are trained on; of a larger site the series with the worst forecasts first. Each "
        "takes about 160 bytes of memory.",
        lower=10_000,
        upper=1_000_000_000,
        unit="readings",
    )
    probation_hours: float = field(
        24.0,
        "So long the weights that served before forecast on unheard; they come back if they do better.",
        lower=0.01,
        upper=8760.0,
        unit="h",
    )
    device: Literal["auto", "cpu", "cuda"] = field(
        "auto", "Where it trains; `auto` takes CUDA where there is one. What fails there is done on the CPU."
    )
    threads: int = field(1, "Threads of the training process, on the CPU.", lower=1, upper=1024, unit="threads")
    time_limit_minutes: int = field(120, "A training that takes longer is ended.", lower=1, upper=100_000, unit="min")


class Log(_Table):
    """What is written to standard error."""

    level: Literal["debug", "info", "warning", "error"] = field(
        "info", "The least important message that is written.", reload=True
    )
    format: Literal["text", "json"] = field("text", "Lines for people, or one JSON object a line.")


class Settings(BaseSettings):
    """All settings of one daemon; frozen."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)

    instance: str = field(
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
