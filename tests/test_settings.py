"""Settings: four places in order, and every mistake refused by name, with its place and what was expected."""

from __future__ import annotations

import difflib
import os
import resource
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import ValidationError

from streamer.errors import SettingsError
from streamer.payloads.rules import CompiledRule, zone_of
from streamer.payloads.rules import Rule as PayloadRule
from streamer.places import Kind, Setting, variable
from streamer.settings import Rule, Settings, changed, load, reference, sources, tables

SETTINGS = {setting.name: setting for setting in reference()}
NAMES = sorted(SETTINGS)
LETTERS = "abcdefghijklmnopqrstuvwxyz_"


def refused(
    config: Path | None = None,
    overrides: list[str] | None = None,
    environ: dict[str, str] | None = None,
    secrets: Path | None = None,
) -> list[str]:
    """The problems that `load` names, one a line."""
    with pytest.raises(SettingsError) as caught:
        load(config, overrides or [], environ or {}, secrets)
    first, *lines = str(caught.value).splitlines()
    assert first.split()[0] == str(len(lines))
    return [line.strip() for line in lines]


def answer(config: Path | None, overrides: list[str]) -> str:
    """The refusal, empty where there is none."""
    try:
        load(config, overrides, {"HOME": "/"})
    except SettingsError as error:
        return str(error)
    return ""


def toml(folder: Path, text: str) -> Path:
    file = folder / "streamer.toml"
    file.write_text(text)
    return file


def is_told_apart(name: str, slip: str, names: list[str]) -> bool:
    """Nothing else is as close: `mqtt.hort` may mean mqtt.port or mqtt.host, nobody can tell."""
    closeness = {other: difflib.SequenceMatcher(a=other, b=slip).ratio() for other in names}
    return all(closeness[other] < closeness[name] for other in names if other != name)


@st.composite
def misspelt(draw: st.DrawFn) -> tuple[str, str]:
    """A known name, and what one slip of a finger makes of it."""
    name = draw(st.sampled_from(NAMES))
    at = draw(st.integers(0, len(name) - 1))
    letter = draw(st.sampled_from(LETTERS))
    slips = [name[:at] + name[at + 1 :], name[:at] + letter + name[at:], name[:at] + letter + name[at + 1 :]]
    if at + 1 < len(name):
        slips.append(name[:at] + name[at + 1] + name[at] + name[at + 2 :])
    slip = draw(st.sampled_from(slips))
    assume(is_told_apart(name, slip, NAMES))
    # In a file the tables are looked for first: `loc.format` is as close to [clock] as to [log].
    assume(is_told_apart(name.split(".")[0], slip.split(".")[0], sorted({each.split(".")[0] for each in NAMES})))
    return name, slip


def is_typo(slip: str) -> bool:
    return slip not in SETTINGS and slip not in tables() and all(slip.split("."))


# --- Places ---


def test_defaults_hold_without_any_place() -> None:
    """Without a file, a variable or an option everything has its default, and the state lies in the home directory."""
    settings = load(None, [], {"HOME": "/home/ann"})
    assert settings.model_copy(update={"state": Settings().state}) == Settings()
    assert settings.state.directory == "/home/ann/.local/state/streamer"
    assert sources(None, [], {"HOME": "/home/ann"}) == {}


def test_settings_alone_do_not_read_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model has defaults whatever the environment; only `load` reads places."""
    monkeypatch.setenv("INSTANCE", "other")
    monkeypatch.setenv("MQTT", '{"host": "other"}')
    assert Settings().instance == "default"
    assert Settings().mqtt.host == "127.0.0.1"


def test_each_place_is_stronger_than_the_one_before(tmp_path: Path) -> None:
    """TOML file < secrets directory < environment < --set, one setting at a time."""
    config = toml(tmp_path, '[mqtt]\nhost = "file"\nport = 1\nusername = "file"\nqos = 0\n')
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    for name, text in {"mqtt.port": "2\n", "mqtt__username": "secret\n", "mqtt.qos": "1"}.items():
        (secrets / name).write_text(text)
    environ = {"STREAMER_MQTT__USERNAME": "environment", "STREAMER_MQTT__QOS": "0", "HOME": "/"}
    settings = load(config, ["mqtt.qos=2"], environ, secrets)
    mqtt = settings.mqtt
    assert (mqtt.host, mqtt.port, mqtt.username, mqtt.qos) == ("file", 2, "environment", 2)
    assert sources(config, ["mqtt.qos=2"], environ, secrets) == {
        "mqtt.host": f"{config}: mqtt.host",
        "mqtt.port": f"{secrets}/mqtt.port",
        "mqtt.username": "environment: STREAMER_MQTT__USERNAME",
        "mqtt.qos": "--set mqtt.qos",
    }


@pytest.mark.parametrize("setting", reference(), ids=lambda setting: setting.name)
def test_every_default_can_be_said_at_every_place(setting: Setting, tmp_path: Path) -> None:
    """The default of each setting is accepted in the file, the environment and after --set, and stays the same."""
    if setting.kind is Kind.HIDDEN:
        return
    wanted = load(None, [], {"HOME": "/"}).model_dump()
    text = setting.default if setting.kind is not Kind.TEXT else tomllib.loads(f"x = {setting.default}")["x"]
    if setting.name == "state.directory":
        text, setting_default = "/.local/state/streamer", '"/.local/state/streamer"'
    else:
        setting_default = setting.default
    *sections, key = setting.name.split(".")
    header = f"[{'.'.join(sections)}]\n" if sections else ""
    config = toml(tmp_path, f"{header}{key} = {setting_default}\n")
    assert load(config, [], {"HOME": "/"}).model_dump() == wanted
    assert load(None, [], {"HOME": "/", setting.variable: text}).model_dump() == wanted
    assert load(None, [f"{setting.name}={text}"], {"HOME": "/"}).model_dump() == wanted


@pytest.mark.parametrize("text", ['["a/#", "b"]', "['a/#', 'b',]"])
def test_lists_are_json_or_toml(text: str) -> None:
    """A list in the environment or after --set is written as in JSON or as in TOML."""
    assert load(None, [], {"STREAMER_MQTT__SUBSCRIBE": text}).mqtt.subscribe == ("a/#", "b")
    assert load(None, [f"mqtt.subscribe={text}"], {}).mqtt.subscribe == ("a/#", "b")


@pytest.mark.parametrize("text", ['[{"pattern": "a/{b}"}]', '[{pattern = "a/{b}"}]'])
def test_tables_are_json_or_toml(text: str) -> None:
    """A list of tables is written as in JSON or as in TOML."""
    assert load(None, [f"input.rules={text}"], {}).input.rules == (Rule(pattern="a/{b}"),)


def test_a_single_variable_is_stronger_than_its_table() -> None:
    """A whole table may be one variable; what is said of one setting counts more."""
    environ = {"STREAMER_MQTT__PORT": "5", "STREAMER_MQTT": '{"host": "h", "port": 4, "tls": {"enabled": true}}'}
    mqtt = load(None, [], environ).mqtt
    assert (mqtt.host, mqtt.port, mqtt.tls.enabled) == ("h", 5, True)


def test_the_file_can_be_named_by_the_environment(tmp_path: Path) -> None:
    """$STREAMER_CONFIG is the file where no option names one; the option is stronger."""
    config = toml(tmp_path, 'instance = "a"')
    other = tmp_path / "other.toml"
    other.write_text('instance = "b"')
    assert load(None, [], {"STREAMER_CONFIG": str(config)}).instance == "a"
    assert load(other, [], {"STREAMER_CONFIG": str(config)}).instance == "b"


def test_paths_are_relative_to_the_place_that_says_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a TOML file they start at its folder, elsewhere at the working directory."""
    (tmp_path / "etc").mkdir()
    config = toml(tmp_path / "etc", '[state]\ndirectory = "here"\n')
    monkeypatch.chdir(tmp_path)
    assert load(config, [], {}).state.directory == str(tmp_path / "etc" / "here")
    assert load(config, ["state.directory=there"], {}).state.directory == str(tmp_path / "there")


@pytest.mark.parametrize(
    ("environ", "wanted"),
    [
        ({"STATE_DIRECTORY": "/var/lib/a:/var/lib/b", "XDG_STATE_HOME": "/x"}, "/var/lib/a"),
        ({"XDG_STATE_HOME": "/x"}, "/x/streamer"),
        ({"HOME": "/h"}, "/h/.local/state/streamer"),
    ],
)
def test_where_state_is_kept(environ: dict[str, str], wanted: str) -> None:
    """systemd's directory, else XDG's, else the one in the home directory."""
    assert load(None, [], environ).state.directory == wanted


# --- The password ---


@pytest.mark.parametrize("ending", ["", "\n", "\r\n"])
def test_the_password_comes_from_its_file(tmp_path: Path, ending: str) -> None:
    """The file's text is the password; one line break at its end does not count."""
    (tmp_path / "password").write_bytes(b"s3 cret" + ending.encode())
    mqtt = load(None, [f"mqtt.password_file={tmp_path}/password", "mqtt.username=ann"], {}).mqtt
    assert mqtt.password.get_secret_value() == "s3 cret"


def test_the_password_comes_from_systemd(tmp_path: Path) -> None:
    """A credential of the name is enough; certificates that lie beside it are no settings."""
    (tmp_path / "mqtt.password").write_text("s3cret\n")
    (tmp_path / "client.key").write_text("no setting")
    settings = load(None, ["mqtt.username=ann"], {"CREDENTIALS_DIRECTORY": str(tmp_path)})
    assert settings.mqtt.password.get_secret_value() == "s3cret"


def test_the_password_is_never_shown(tmp_path: Path) -> None:
    """No text form of the settings, and no refusal, holds the password."""
    (tmp_path / "mqtt.password").write_text("s3cret")
    settings = load(None, ["mqtt.username=ann"], {}, tmp_path)
    assert "s3cret" not in f"{settings!r}{settings}{settings.model_dump()}{settings.model_dump_json()}"
    (tmp_path / "mqtt.password").write_bytes(b"s3cret\xff")
    assert "s3cret" not in "".join(refused(secrets=tmp_path))
    (tmp_path / "mqtt.password").write_text("s3cret")
    (tmp_path / "mqtt.port").write_text("s3cret")
    assert "s3cret" not in "".join(refused(secrets=tmp_path))
    (tmp_path / "mqtt.port").unlink()
    (tmp_path / "mqtt.host").write_text("s3cret s3cret")
    assert "s3cret" not in "".join(refused(secrets=tmp_path))
    (tmp_path / "mqtt.host").rename(tmp_path / "mqtt.password_file")
    assert "s3cret" not in "".join(refused(secrets=tmp_path))


@pytest.mark.parametrize("name", ["file", "environment", "option", "table"])
def test_the_password_is_refused_where_others_read_it(tmp_path: Path, name: str) -> None:
    """Neither the TOML file nor the environment nor the command line takes it, and the refusal does not repeat it."""
    config = toml(tmp_path, '[mqtt]\npassword = "s3cret"\n') if name == "file" else None
    environ = {"STREAMER_MQTT__PASSWORD": "s3cret"} if name == "environment" else {}
    overrides = {"option": ["mqtt.password=s3cret"], "table": ["mqtt={password='s3cret'}"]}.get(name, [])
    (problem,) = refused(config, overrides, environ)
    assert "mqtt.password_file" in problem
    assert "s3cret" not in problem


def test_the_password_of_the_page_is_kept_as_well(tmp_path: Path) -> None:
    """From a file or the secrets directory, never from where others read it; a new one takes effect at once."""
    (tmp_path / "http.password").write_text("s3cret\n")
    from_file = load(None, [f"http.password_file={tmp_path}/http.password"], {})
    from_secrets = load(None, [], {}, tmp_path)
    assert from_file.http.password == from_secrets.http.password
    assert from_secrets.http.password.get_secret_value() == "s3cret"
    (problem,) = refused(overrides=["http.password=s3cret"])
    assert "expected http.password_file" in problem
    assert "s3cret" not in problem
    assert changed(load(None, [], {}), from_secrets) == (["http.password"], [])


def test_two_passwords_are_one_too_many(tmp_path: Path) -> None:
    """A password file beside a secret is refused: nobody could tell which one holds."""
    (tmp_path / "mqtt.password").write_text("a")
    overrides = [f"mqtt.password_file={tmp_path}/mqtt.password", "mqtt.username=ann"]
    assert (
        load(None, overrides, {"CREDENTIALS_DIRECTORY": str(tmp_path / "..")}).mqtt.password.get_secret_value() == "a"
    )
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "mqtt.password").write_text("b")
    (problem,) = refused(overrides=overrides, secrets=tmp_path / "sub")
    assert "already said by" in problem


# --- The webhook ---


@pytest.mark.parametrize(
    "url",
    ["https://example.org", "http://127.0.0.1:8080/hook?a=b", "https://[::1]:8443/", "http://pager.internal/a/b", ""],
)
def test_an_address_to_post_to_is_taken_as_it_is(url: str) -> None:
    """With and without TLS; empty is off."""
    assert load(None, [f"webhook.url={url}"], {}).webhook.url == url


@pytest.mark.parametrize(
    "url",
    [
        "example.org/hook", "ftp://example.org/", "file:///etc/passwd", "https://", "https:///path", "http://a:99999/",
        "http://a:0/", "http://a:b/", "https://ann:s3cret@example.org/", "https://example.org/#x",
        "https://ex ample.org/",
        "https://ex\u00e4mple.org/", "http://[::1/", "https://example.org/\t",
    ],
)  # fmt: skip
def test_an_address_that_makes_no_sense_is_refused(url: str) -> None:
    """One problem, with what is expected."""
    (problem,) = refused(overrides=[f"webhook.url={url}"])
    assert "expected http:// or https://" in problem


@pytest.mark.parametrize(
    "url", ["https://me:hunter2@example.org/x", "https://me:hun/ter2@e.org", "ftp://hunter2@e.org"]
)
def test_a_password_in_an_address_is_refused_and_not_repeated(url: str) -> None:
    """The text goes into the journal of the machine."""
    (problem,) = refused(overrides=[f"webhook.url={url}"])
    assert "hun" not in problem
    assert "ter2" not in problem


@pytest.mark.parametrize("name", ["token", "secret"])
def test_the_webhooks_secrets_come_from_files_and_are_not_shown(tmp_path: Path, name: str) -> None:
    """Named by a setting, or in the secrets directory; not in both, and nowhere else."""
    (tmp_path / "file").write_text("s3cret\n")
    from_file = load(None, [f"webhook.{name}_file={tmp_path}/file"], {})
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / f"webhook.{name}").write_text("s3cret")
    from_directory = load(None, [], {}, tmp_path / "secrets")
    for settings in (from_file, from_directory):
        assert getattr(settings.webhook, name).get_secret_value() == "s3cret"
        assert "s3cret" not in f"{settings!r}{settings}{settings.model_dump()}{settings.model_dump_json()}"
    (problem,) = refused(overrides=[f"webhook.{name}_file={tmp_path}/file"], secrets=tmp_path / "secrets")
    assert f"webhook.{name} is already said by" in problem
    (problem,) = refused(overrides=[f"webhook.{name}=s3cret"])
    assert f"webhook.{name}_file" in problem
    assert "s3cret" not in problem


@pytest.mark.parametrize("token", ["two words", "b\u00e4r", "line\nfeed: x"])
def test_a_token_that_is_no_word_is_refused_unseen(tmp_path: Path, token: str) -> None:
    """It could not be sent, or would say more than a token may."""
    (tmp_path / "file").write_text(token)
    (problem,) = refused(overrides=[f"webhook.token_file={tmp_path}/file"])
    assert "expected one word in ASCII" in problem
    assert token not in problem


# --- Home Assistant ---


@pytest.mark.parametrize("prefix", ["home/#", "+", "a//b", "/a", "a/", "", "a b", "home*", "hömé"])
def test_a_prefix_that_is_no_plain_topic_is_refused(prefix: str) -> None:
    """It is subscribed to, published to, and matched."""
    (problem,) = refused(overrides=[f"home_assistant.prefix={prefix}"])
    assert "expected a topic of letters" in problem


# --- Typos ---


@given(misspelt())
def test_a_misspelt_option_is_refused_with_the_right_name(case: tuple[str, str]) -> None:
    """One slip in the name of a setting after --set is refused, and the name that was meant is offered."""
    name, slip = case
    if is_typo(slip):
        (problem,) = refused(overrides=[f"{slip}=1"])
        assert problem == f"--set {slip}: no such setting; the closest known name is {name}"


@given(misspelt())
def test_a_misspelt_variable_is_refused_with_the_right_name(case: tuple[str, str]) -> None:
    """One slip in the name of a variable is refused, and the name that was meant is offered."""
    name, slip = case
    if is_typo(slip):
        (problem,) = refused(environ={variable(slip): "1"})
        assert problem == f"environment: {variable(slip)}: no such setting; the closest known name is {variable(name)}"


@given(misspelt())
def test_a_misspelt_key_is_refused_with_the_right_name(
    tmp_path_factory: pytest.TempPathFactory, case: tuple[str, str]
) -> None:
    """One slip in a key or a table of the TOML file is refused at the outermost name that is unknown."""
    name, slip = case
    if not is_typo(slip) or slip.count(".") != name.count("."):
        return
    config = toml(tmp_path_factory.getbasetemp(), f"{slip} = 1\n")
    (problem,) = refused(config)
    depth = next(depth for depth in range(1, 4) if upto(slip, depth) not in tables())
    assert problem == (f"{config}: {upto(slip, depth)}: no such setting; the closest known name is {upto(name, depth)}")


def upto(name: str, depth: int) -> str:
    return ".".join(name.split(".")[:depth])


@pytest.mark.parametrize(
    "name", ["STREAMER_TYPO", "STREAMER_", "STREAMER__MQTT", "STREAMER_MQTT__", "streamer_mqtt__host"]
)
def test_no_variable_of_ours_passes_silently(name: str) -> None:
    """Whatever begins with STREAMER_, in any case, is a setting or a mistake."""
    (problem,) = refused(environ={name: "1"})
    assert problem.startswith(f"environment: {name}: no such setting")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("alarm.budget_per_series_month", "alarms.budget_per_series_month"),
        ("alarms.budget", "alarms.budget_per_series_month"),
        ("alarm.budget", "alarms.budget_per_series_month"),
        ("budget_per_series_month", "alarms.budget_per_series_month"),
        ("alarms.budget_month", "alarms.budget_per_series_month"),
        ("mqtt.user", "mqtt.username"),
        ("http.ports", "http.port"),
        ("broker.subscribe", "mqtt.subscribe"),
        ("foo", None),
        ("zzz.yyy", None),
        ("database.name", None),
        ("", None),
    ],
)
def test_what_was_meant_is_offered_and_nothing_where_nothing_is_like_it(name: str, meant: str | None) -> None:
    """By the whole of the name: of a wrong table or of the first words of a long name it is the right setting."""
    (problem,) = refused(overrides=[f"{name}=1"])
    assert problem == f"--set {name}: no such setting" + (f"; the closest known name is {meant}" if meant else "")
    if name:
        (problem,) = refused(environ={variable(name): "1"})
        suggested = f"; the closest known name is {variable(meant)}" if meant else ""
        assert problem == f"environment: {variable(name)}: no such setting{suggested}"


@pytest.mark.parametrize("name", ["PATH", "STREAMERS", "STREAM_MQTT", "XSTREAMER_TYPO"])
def test_variables_of_others_are_none_of_our_business(name: str) -> None:
    """A name without the prefix is left alone."""
    assert load(None, [], {name: "1"}).instance == "default"


KUBERNETES = {  # https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables
    "STREAMER_SERVICE_HOST": "10.0.0.11",
    "STREAMER_SERVICE_PORT": "9479",
    "STREAMER_SERVICE_PORT_HTTP": "9479",
    "STREAMER_PORT": "tcp://10.0.0.11:9479",
    "STREAMER_PORT_9479_TCP": "tcp://10.0.0.11:9479",
    "STREAMER_PORT_9479_TCP_PROTO": "tcp",
    "STREAMER_PORT_9479_TCP_PORT": "9479",
    "STREAMER_PORT_9479_TCP_ADDR": "10.0.0.11",
    "STREAMER_METRICS_SERVICE_HOST": "10.0.0.11",
    "STREAMER_METRICS_PORT": "tcp://10.0.0.11:9479",
    "STREAMER_METRICS_PORT_9479_TCP_ADDR": "10.0.0.11",
}


def test_names_that_kubernetes_injects_are_named_as_such() -> None:
    """A Service called streamer is recognised in each of its variables, and the refusal says what to do."""
    problems = refused(environ=KUBERNETES)
    assert len(problems) == len(KUBERNETES)
    for problem, name in zip(problems, KUBERNETES, strict=True):
        assert problem.startswith(f"environment: {name}: ")
        assert "Kubernetes" in problem
        assert "enableServiceLinks: false" in problem


def test_a_missing_underscore_is_no_service() -> None:
    """STREAMER_HTTP_PORT=9479 is the setting misspelt: a Service's link would be a URL."""
    (problem,) = refused(environ={"STREAMER_PORT": "9479"})
    assert "Kubernetes" in problem
    assert problem.endswith(("as a setting it would be STREAMER_HTTP__PORT", "STREAMER_MQTT__PORT"))
    (problem,) = refused(environ={"STREAMER_HTTP_PORT": "9479"})
    assert problem.endswith("the closest known name is STREAMER_HTTP__PORT")


def test_unknown_secrets_are_refused_in_a_directory_of_our_own(tmp_path: Path) -> None:
    """A misspelt file is named; what Kubernetes keeps there, and a certificate that a setting names, is passed over."""
    (tmp_path / "..data").mkdir()
    (tmp_path / ".hidden").touch()
    for name in ("mqtt.pasword", "ca.pem"):
        (tmp_path / name).write_text("x")
    problems = refused(secrets=tmp_path)
    assert [problem.split(":")[0] for problem in problems] == [f"{tmp_path}/ca.pem", f"{tmp_path}/mqtt.pasword"]
    assert problems[1].endswith("the closest known name is mqtt.password")
    overrides = ["mqtt.tls.enabled=true", f"mqtt.tls.ca_file={tmp_path}/ca.pem"]
    (problem,) = refused(overrides=overrides, environ={"STREAMER_SECRETS": str(tmp_path)})
    assert problem.startswith(f"{tmp_path}/mqtt.pasword: ")


def test_a_misspelt_credential_is_refused_even_among_others(tmp_path: Path) -> None:
    """systemd's directory holds more than ours, but what looks like a setting misspelt is refused there too."""
    (tmp_path / "mqtt.pasword").write_text("x")
    (problem,) = refused(environ={"CREDENTIALS_DIRECTORY": str(tmp_path)})
    assert problem.endswith("the closest known name is mqtt.password")


def test_a_secret_said_twice_is_refused(tmp_path: Path) -> None:
    """The two spellings of one name do not stand side by side."""
    (tmp_path / "mqtt.username").write_text("a")
    (tmp_path / "mqtt__username").write_text("b")
    (problem,) = refused(secrets=tmp_path)
    assert "already said by" in problem


# --- Values ---

WRONG = {
    Kind.SWITCH: ["maybe", "", "2"],
    Kind.INTEGER: ["many", "", "1.5", "-1", "99999999999999999999", "nan"],
    Kind.NUMBER: ["much", "", "nan", "inf", "-1", "1e300"],
    Kind.LIST: ["a", "", "{}", "[1]", '[""]'],
    Kind.TABLES: ["a", "", "{}", "[1]", "[{}]"],
}


@pytest.mark.parametrize("setting", reference(), ids=lambda setting: setting.name)
def test_a_wrong_value_is_refused_with_what_was_expected(setting: Setting) -> None:
    """Each setting refuses what is not of its type or out of its bounds, wherever it is said."""
    for text in WRONG.get(setting.kind, []):
        (problem,) = refused(environ={setting.variable: text})
        assert problem.startswith(f"environment: {setting.variable}")
        assert "; expected " in problem
        (problem,) = refused(overrides=[f"{setting.name}={text}"])
        assert problem.startswith(f"--set {setting.name}")


@pytest.mark.parametrize("setting", reference(), ids=lambda setting: setting.name)
def test_a_value_of_another_type_is_refused_in_the_file(setting: Setting, tmp_path: Path) -> None:
    """TOML has types, and a number in quotes is not a number."""
    *sections, key = setting.name.split(".")
    value = '"1"' if setting.kind in (Kind.INTEGER, Kind.NUMBER, Kind.SWITCH, Kind.LIST, Kind.TABLES) else "1"
    config = toml(tmp_path, (f"[{'.'.join(sections)}]\n" if sections else "") + f"{key} = {value}\n")
    (problem,) = refused(config)
    assert problem.startswith(f"{config}: {setting.name}: ")
    assert "; expected " in problem


def test_bounds_are_part_of_the_refusal() -> None:
    """An operator reads what he may write."""
    assert refused(overrides=["mqtt.port=99999"]) == [
        "--set mqtt.port: found 99999; expected an integer from 1 to 65535"
    ]
    assert refused(overrides=["log.level=verbose"]) == [
        '--set log.level: found "verbose"; expected one of debug, info, warning, error'
    ]


def test_all_problems_come_at_once(tmp_path: Path) -> None:
    """One start is enough to see every mistake of every place."""
    config = toml(tmp_path, 'instance = "A"\nhots = 1\n[mqtt]\nport = "x"\nhost = "mqtt://h"\n[http]\nport = -1\n')
    problems = refused(config, ["log.level=x", "a"], {"STREAMER_TYPO": "1", "STREAMER_METRICS__TOP": "0"})
    assert len(problems) == 9


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a = 1\nb = \n", "line 2, column 5: not TOML"),
        ("[mqtt\n", "line 1, column 6: not TOML"),
        ("[mqtt]\nport = 1\nport = 2\n", "line 3, column 9: not TOML"),
        ('x = """', "last line: not TOML"),
        ("port = " + "9" * 5000, "not TOML"),
        ("x = " + "[" * 5000, "nested too deeply"),
    ],
)
def test_bad_toml_is_refused_with_its_line(tmp_path: Path, text: str, wanted: str) -> None:
    """What is no TOML at all names the file and the line."""
    config = toml(tmp_path, text)
    (problem,) = refused(config)
    assert problem.startswith(f"{config}: {wanted}")


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    """An absent file, a directory, and bytes that are no text are named, wherever the name came from."""
    assert refused(tmp_path / "absent.toml")[0].startswith(f"{tmp_path}/absent.toml: cannot be read: No such file")
    assert refused(environ={"STREAMER_CONFIG": str(tmp_path)})[0].startswith(
        f"{tmp_path}: cannot be read: Is a directory"
    )
    (tmp_path / "latin.toml").write_bytes(b"# ok\ninstance = '\xe4'\n")
    assert refused(tmp_path / "latin.toml")[0].startswith(f"{tmp_path}/latin.toml: line 2: not UTF-8")
    assert refused(secrets=tmp_path / "absent")[0].startswith(f"{tmp_path}/absent: cannot be read: No such file")


@given(st.text(), st.sampled_from(NAMES))
def test_any_text_is_a_value_or_a_refusal(text: str, name: str) -> None:
    """Whatever follows --set NAME=, the answer is settings or a SettingsError of printable lines."""
    assert answer(None, [f"{name}={text}"]).replace("\n", "").isprintable()


@given(st.binary(max_size=200))
def test_any_file_is_settings_or_a_refusal(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    """Whatever a TOML file holds, the answer is settings or a SettingsError of printable lines."""
    config = tmp_path_factory.getbasetemp() / "any.toml"
    config.write_bytes(content)
    assert answer(config, []).replace("\n", "").isprintable()


# --- What belongs together ---


@pytest.mark.parametrize(
    ("overrides", "wanted"),
    [
        (["mqtt.tls.enabled=true", "mqtt.tls.cert_file={file}"], "expected mqtt.tls.key_file with it"),
        (["mqtt.tls.enabled=true", "mqtt.tls.key_file={file}"], "expected mqtt.tls.cert_file with it"),
        (["mqtt.tls.ca_file={file}"], "expected mqtt.tls.enabled = true"),
        (["http.tls.enabled=true"], "expected all or none"),
        (["http.tls.enabled=true", "http.tls.cert_file={file}"], "expected all or none"),
        (["http.tls.cert_file={file}", "http.tls.key_file={file}"], "expected all or none"),
        (["http.tls.enabled=true", "http.tls.cert_file={file}", "http.tls.key_file={file}.absent"], "No such file"),
        (["http.username=a:b"], "expected text without a colon"),
        (["http.password_file={file}"], "empty; expected a file with the secret"),
        (["mqtt.tls.enabled=true", "mqtt.tls.ca_file={file}.absent"], "No such file or directory"),
        (["mqtt.username=ann", "mqtt.password_file={file}.absent"], "No such file or directory"),
        (["mqtt.username=ann", "mqtt.password_file={file}"], "empty; expected a file with the secret"),
        (["model.weights={file}.absent"], "No such file or directory"),
        (["mqtt.reconnect_min_seconds=61"], "expected the smaller one as min"),
        (["limits.inbox_bytes=65536"], "expected an inbox that holds the largest packet"),
        (["mqtt.subscribe=['streamer/default/#']"], "this daemon's own output"),
        (["mqtt.subscribe=[]"], "expected at least one topic filter"),
        (["mqtt.subscribe=['a/#/b']"], "# is the last one"),
        (["mqtt.subscribe=['a+/b']"], "+ and # fill a whole level"),
        (["mqtt.subscribe=['$share/g/a']"], "without $share"),
        (["mqtt.host=broker:1883"], "without scheme, user or port"),
        (["input.time_zone=Mars/Base"], "Europe/Paris"),
        (["input.rules=[{pattern='a/{b}/{b}'}]"], "gives each name to one level"),
        (["input.rules=[{pattern='a/{b...}/c'}]"], "ends with {name...}"),
        (["input.rules=[{pattern='a/{b'}]"], "every brace has its partner"),
        (["input.rules=[{pattern='a/{b c}'}]"], "letters, digits and _"),
        (["input.rules=[{pattern='a/{b}', device='{c}'}]"], "expected names of the pattern: b"),
        (["input.rules=[{pattern='a', format='influx', time_field='t'}]"], "expected auto or json"),
        (["input.rules=[{patern='a', pattern='a'}]"], "the closest known name is pattern"),
        (["input.rules=[{pattern='a', time_zone='Mars'}]"], "Europe/Paris"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(overrides: list[str], wanted: str, tmp_path: Path) -> None:
    """What is fine alone and cannot work together is refused, by name."""
    (tmp_path / "file").touch()
    (problem,) = refused(overrides=[each.replace("{file}", str(tmp_path / "file")) for each in overrides])
    assert wanted in problem


@pytest.mark.parametrize("host", ["broker", "broker.example.org", "10.0.0.5", "::1", "fe80::1%eth0", "::ffff:10.0.0.5"])
def test_hosts(host: str) -> None:
    """Names and addresses of both families are hosts."""
    assert load(None, [f"mqtt.host={host}"], {}).mqtt.host == host


LEVELS = st.text("ab/{}.*+#_", min_size=1, max_size=12)


@given(LEVELS, LEVELS, st.sampled_from(["", "UTC", "Z", "Europe/Paris", "Europe", "x", "../x"]))
def test_a_rule_that_settings_accept_can_be_compiled(pattern: str, device: str, zone: str) -> None:
    """The settings refuse at least what the decoder would refuse later, without the operator's place."""
    try:
        rule = Rule(pattern=pattern, device=device, time_zone=zone)
    except ValidationError:
        return
    CompiledRule(PayloadRule(**rule.model_dump()), zone_of("UTC"))


def test_settings_are_frozen() -> None:
    """Nobody changes them in passing."""
    with pytest.raises(ValidationError):
        load(None, [], {}).mqtt.port = 5


# --- Reading again ---

RELOADABLE = {
    "log.level": "debug",
    "alarms.budget_per_series_month": "2",
    "alarms.silent": "false",
    "metrics.per_series": "off",
    "metrics.top": "5",
    "input.include": '["a"]',
    "input.exclude": '["a"]',
}


def test_what_takes_effect_at_once_and_what_waits_for_a_restart() -> None:
    """Exactly the settings that a running daemon can change are told apart from the rest."""
    names = ("mqtt.password", "http.password", "webhook.token", "webhook.secret")
    files = {each for name in names for each in (name, f"{name}_file")}  # another test changes what they hold
    assert {name for name, setting in SETTINGS.items() if setting.reload} == RELOADABLE.keys() | files
    old = load(None, [], {})
    overrides = [f"{name}={text}" for name, text in RELOADABLE.items()]
    new = load(None, [*overrides, "mqtt.port=5", "mqtt.tls.enabled=true", "input.rules=[{pattern='a'}]"], {})
    at_once, restart = changed(old, new)
    assert set(at_once) == RELOADABLE.keys()
    assert restart == ["mqtt.port", "mqtt.tls.enabled", "input.rules"]
    assert changed(old, load(None, [], {})) == ([], [])


def test_a_changed_password_takes_effect_at_once(tmp_path: Path) -> None:
    """A new secret is noticed without being shown."""
    (tmp_path / "mqtt.password").write_text("a")
    old = load(None, ["mqtt.username=ann"], {}, tmp_path)
    (tmp_path / "mqtt.password").write_text("b")
    assert changed(old, load(None, ["mqtt.username=ann"], {}, tmp_path)) == (["mqtt.password"], [])


# --- As an operator meets it ---


def test_a_refusal_is_quick_and_never_imports_torch(tmp_path: Path) -> None:
    """Exit status 2 in under two seconds, every problem on standard error, nothing on standard output, no torch."""
    config = toml(tmp_path, "[mqtt]\nhots = 1\n")
    code = (
        "import sys; from streamer.cli import main\n"
        f"status = main(['run', '--config', {str(config)!r}, '--set', 'log.level=loud'])\n"
        "print(int('torch' in sys.modules), int('numpy' in sys.modules)); sys.exit(status)"
    )
    environ = {name: value for name, value in os.environ.items() if not name.startswith("STREAMER_")}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environ | {"STREAMER_TYPO": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 2
    assert done.stdout == "0 0\n"
    assert done.stderr.splitlines()[0] == "streamer run: 3 problems in the settings:"
    assert len(done.stderr.splitlines()) == 4
    # Processor time, since a busy machine stretches any other.
    assert after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime < 2
