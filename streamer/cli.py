"""The command line: what it says goes to standard output as data, to standard error as log and complaint.

Exit status: 0 done; 1 the answer is no (unhealthy, unreadable, damaged, no fault caught, a warning); 2 usage or
settings; 3 no broker; 130 interrupted.
Every command imports what it needs when it runs: a refusal comes at once, and most never import torch.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from models import recipe
from streamer import DISTRIBUTION, version
from streamer.errors import InputError, ModelError, SettingsError, StateError, StreamerError

if TYPE_CHECKING:
    from http.client import HTTPConnection

    from streamer.report import Recorder
    from streamer.requests import Result
    from streamer.settings import Settings

HEALTH_TIMEOUT_SECONDS = 3.0
MOST_PROBE_MESSAGES = 100_000  # 100 s at the rate of the doctor
NO_BROKER = 3
SCHEMAS = ("alarm", "series", "device", "command", "result")
REQUEST_SECONDS = 30.0
POLL_SECONDS = 0.05  # so often it is looked for the daemon's answer

Arguments = argparse.Namespace
Handler = Callable[[Arguments], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; gives the exit status."""
    arguments = parser().parse_args(argv)
    handle: Handler = arguments.handle
    try:
        status = handle(arguments)
        sys.stdout.flush()
        return status
    except StreamerError as error:
        print(f"streamer {arguments.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read our output has left, as `head` does; what is still buffered has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def parser() -> argparse.ArgumentParser:
    """The whole command line; docs/commands.md is made from it."""
    top = argparse.ArgumentParser(
        prog="streamer", description="Scores MQTT sensor feeds and raises one alarm per incident.", allow_abbrev=False
    )
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(name: str, handle: Handler, sentence: str, *, options: bool = True) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name,
            help=sentence,
            description=sentence,
            allow_abbrev=False,
            add_help=options,
            prefix_chars="-" if options else "\0",  # no argument begins with it: all are handed on as they are
        )
        sub.set_defaults(handle=handle)
        return sub

    _add_settings(command("run", _run, "Run the daemon until SIGTERM; SIGHUP re-reads the settings."))

    demo = command("demo", _demo, "Run a simulated plant with labelled faults, its broker, and the daemon on it.")
    demo.add_argument("--seconds", type=_positive, metavar="N", help="stop after N seconds; without it, at Ctrl-C")
    demo.add_argument(
        "--port", type=_port, default=0, help="port of the broker on loopback; 0 (default) takes a free one"
    )
    demo.add_argument(
        "--http-port", type=_port, default=0, help="port of the daemon's HTTP; 0 (default) takes a free one"
    )
    demo.add_argument("--json", action="store_true", help="print the account as one JSON object, all else on stderr")

    check = command("check", _check, "Check settings, state, weights and certificates, without network.")
    _add_settings(check)
    _add_json(check)

    explain = command(
        "explain",
        _explain,
        "Show how one message is read; exit status 1 and why, if it would not be.",
    )
    explain.add_argument("topic", metavar="TOPIC", help="the topic that it was published to")
    explain.add_argument("payload", metavar="PAYLOAD", nargs="?", help="its payload; `-` reads standard input")
    explain.add_argument("--file", type=Path, metavar="FILE", help="read the payload from a file instead")
    _add_settings(explain)
    _add_json(explain)

    replay = command("replay", _replay, "Score files of readings by event time, at full speed.")
    replay.add_argument(
        "files", metavar="FILE", nargs="+", type=Path, help="CSV or Parquet; several stand side by side"
    )
    replay.add_argument(
        "--output",
        type=Path,
        metavar="OUT",
        help="where to write; a folder for several files; without it, standard output",
    )
    replay.add_argument("--device-score", action="store_true", help="add a row `*` with the joint score of the device")
    replay.add_argument(
        "--offline-label", action="store_true",
        help="forecast each reading from those after it too, for labelling history; wants bidirectional model.weights",
    )  # fmt: skip
    replay.add_argument(
        "--report", type=Path, metavar="OUT.html",
        help="write one page that shows it all, and needs nothing else; without --output no scores are printed then",
    )  # fmt: skip
    replay.add_argument(
        "--labels", action="append", default=[], type=Path, metavar="FILE",
        help="CSV of known faults, `start,end` or `start,end,series`: how many are caught, and what alarm is false; "
        "of several files either one for all, or one each in their order",
    )  # fmt: skip
    _add_settings(replay)
    replay.add_argument(
        "--json", action="store_true", help="print the counts as one JSON object; without --output no scores then"
    )

    state = command("state", _state, "Show what a state directory holds, as a start would take it; nothing is written.")
    state.add_argument(
        "directory", metavar="DIR", nargs="?", type=Path, help="the state directory; without it, state.directory"
    )
    _add_settings(state)
    _add_json(state)

    for name, sentence in (
        ("pause", "Take a series or a device out of service: neither judged nor learned from, its alarms closed."),
        ("resume", "Judge it again, as after a gap."),
        ("mark-normal", "Say that what a series does now is normal: its alarm closes, and it is learned anew."),
    ):
        asked = command(name, _ask_about_key, sentence)
        asked.add_argument(
            "key", metavar="KEY", help="a series, as alarms name it: plant/a#temperature; or a device: plant/a#*"
        )
        _add_timeout(asked)
        _add_settings(asked)
        _add_json(asked)

    weights = command("models", _models, "The weights that have served this site, or were to; and which one serves.")
    weights.add_argument(
        "action", choices=("ls", "show", "promote", "rollback"),
        help="list them; show one with its verdict; let one serve; let the one serve that served before",
    )  # fmt: skip
    weights.add_argument("generation", metavar="N", nargs="?", type=int, help="which one to show or to promote")
    _add_timeout(weights)
    _add_settings(weights)
    _add_json(weights)

    train = command(
        "train",
        _train,
        "Let the running daemon retrain now; with --pretrain, make weights from synthetic series.",
    )
    _add_timeout(train)
    _add_settings(train)
    train.add_argument(
        "out", metavar="OUT", nargs="?", type=Path, help="the weights to write, OUT.safetensors; a manifest goes beside"
    )
    train.add_argument("--pretrain", action="store_true", help="train base weights anew, on synthetic series")
    recipe.add_arguments(train)
    _add_json(train)

    bench = command(
        "bench",
        _bench,
        "Measure this machine, or how well faults are found; `streamer bench --help` lists what.",
        options=False,
    )
    bench.add_argument("arguments", nargs="*", metavar="...", help="what to measure, and its options")

    health = command("health", _health, "Ask a running daemon whether it is healthy: exit status 0, or 1.")
    health.add_argument(
        "--url", help="where it serves HTTP, such as http://127.0.0.1:9479; without it, as the settings say"
    )
    _add_settings(health)

    doctor = command("doctor", _doctor, "Connect to the broker and find out where it would lose data.")
    doctor.add_argument(
        "--probe-messages", type=_count, metavar="N",
        help="how many small messages to publish for an offline session of its own, to see how many are kept; 0: none; "
        "without it 1200, or none while the daemon is away",
    )  # fmt: skip
    _add_settings(doctor)
    _add_json(doctor)

    schema = command("schema", _schema, "Print the JSON Schema of what is published, or taken, as JSON.")
    schema.add_argument(
        "document", metavar="DOCUMENT", choices=SCHEMAS,
        help="alarm: an event; series, device: a state; command, result: what `mqtt.commands` takes and answers",
    )  # fmt: skip

    _add_json(command("version", _version, "Print the versions of what runs."))
    return top


def _add_timeout(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--timeout", type=_positive, default=REQUEST_SECONDS, metavar="SECONDS",
        help=f"how long to wait for the running daemon; without it {REQUEST_SECONDS:g}",
    )  # fmt: skip


def _add_settings(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--config", type=Path, metavar="FILE", help="settings in TOML; without it, $STREAMER_CONFIG if set"
    )
    sub.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", dest="overrides",
        help="one setting, such as mqtt.host=10.0.0.5; may be repeated, and is stronger than every other place",
    )  # fmt: skip
    sub.add_argument(
        "--secrets", type=Path, metavar="DIR",
        help="a directory with one file a secret setting, such as mqtt.password; "
        "without it, $STREAMER_SECRETS, else systemd's $CREDENTIALS_DIRECTORY",
    )  # fmt: skip


def _add_json(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--json", action="store_true", help="print one JSON object instead of text")


def _positive(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"found {text}; expected a number of seconds above 0")
    return seconds


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) > MOST_PROBE_MESSAGES:
        raise argparse.ArgumentTypeError(f"found {text}; expected an integer from 0 to {MOST_PROBE_MESSAGES}")
    return int(text)


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65_535:
        raise argparse.ArgumentTypeError(f"found {text}; expected an integer from 0 to 65535")
    return int(text)


def _settings(arguments: Arguments) -> Settings:
    from streamer.settings import load

    return load(arguments.config, arguments.overrides, os.environ, arguments.secrets)


# --- The commands ---


def _run(arguments: Arguments) -> int:
    load = partial(_settings, arguments)
    load()  # a refusal must not wait for what the daemon imports
    from streamer import signals

    signals.hold()  # before numpy is imported
    from streamer.app import run

    return run(load)


def _demo(arguments: Arguments) -> int:
    from streamer.demo import run_demo

    return run_demo(arguments.seconds, arguments.port, arguments.http_port, as_json=arguments.json)


def _replay(arguments: Arguments) -> int:
    settings = _settings(arguments)
    from streamer.payloads.words import WORDS
    from streamer.replay import replay_command
    from streamer.wiring import load_weights, shard_from

    offline: bool = arguments.offline_label
    weights = load_weights(settings, offline=offline)
    watch = _recorder(arguments, settings, weights.sha256) if arguments.report or arguments.labels else None
    return replay_command(
        arguments.files,
        arguments.output,
        lambda registry: shard_from(settings, weights, registry, offline=offline),
        settings.limits.max_series,
        device_score=arguments.device_score,
        offline=weights if offline else None,
        lateness_seconds=settings.input.lateness_seconds,
        words=WORDS if settings.input.booleans else {},
        watch=watch,
        report=arguments.report,
        as_json=arguments.json,
    )


def _recorder(arguments: Arguments, settings: Settings, weights: str) -> Recorder:
    from streamer import settings as reader
    from streamer.labels import read_labels
    from streamer.report import About, Recorder

    files, page, labels = arguments.files, arguments.report, [read_labels(path) for path in arguments.labels]
    if page and page.exists() and any(page.samefile(path) for path in arguments.labels):
        raise InputError(f"{page}: found the same file as labels and as report; expected another --report")
    if labels and len(labels) not in (1, len(files)):
        raise InputError(
            f"found {len(labels)} times --labels for {len(files)} files; expected it once, or once for each"
        )
    values = reader.values(settings)
    # A page is sent around: of the settings only those that its scores and alarms depend on.
    shown = {name: values[name] for name in ("alarms.budget_per_series_month", "input.lateness_seconds")}
    about = About(version(DISTRIBUTION), weights, time.time(), shown | {"offline_label": arguments.offline_label})
    each = labels * len(files) if len(labels) == 1 else labels
    return Recorder(files, each or None, about)


def _state(arguments: Arguments) -> int:
    arguments.overrides = [*arguments.overrides, "model.device=cpu"]  # reads what CUDA has made, too
    settings = _settings(arguments)
    import msgspec

    from streamer.generations import Generations
    from streamer.inspection import inspect
    from streamer.registry import Registry
    from streamer.wiring import load_weights, shard_from

    weights, limits = load_weights(settings), settings.limits
    registry = Registry(limits.max_series, limits.new_series_per_minute, limits.new_series_burst)
    directory = arguments.directory or Path(settings.state.directory)
    generations = Generations(directory)
    shard = shard_from(settings, weights, registry, find_weights=generations.find)
    shard.generation = generations.number_of(weights.sha256) or shard.generation
    found = inspect(directory, shard)
    if arguments.json:
        _print(msgspec.to_builtins(found._asdict()), as_json=True)
    else:
        _print(found.summary(), as_json=False)
    return 1 if found.problems else 0


def _schema(arguments: Arguments) -> int:
    from streamer.documents import schema

    _print(schema(arguments.document), as_json=True)
    return 0


def _ask_about_key(arguments: Arguments) -> int:
    return _ask(arguments, {"command": arguments.command, "key": arguments.key}, "KEY")


def _ask(arguments: Arguments, wanted: dict[str, str | int], about: str) -> int:
    """Hands a request to the daemon that runs on the state directory, and says what has become of it."""
    settings = _settings(arguments)
    import msgspec

    from streamer.requests import RequestFiles, Result, read_file
    from streamer.statedir import holder

    directory = Path(settings.state.directory)
    files, request = RequestFiles(directory), f"{time.time_ns():020d}-{os.getpid()}"
    try:
        command = read_file(msgspec.json.encode({**wanted, "id": request}))
    except (ValueError, UnicodeEncodeError) as error:
        raise InputError(f"{about}: {error}") from error
    try:
        if holder(directory / "lock") is None:
            raise StateError(
                f"state.directory: no daemon runs on {directory}, so nobody can be asked; expected the directory of "
                "one that runs: the settings that it was started with (--config, --set state.directory=...)"
            )
        files.ask(request, command)
        result = _wait_for(partial(files.result, request), arguments.timeout)
        if result is None:
            detail = "it was withdrawn: nothing has been done" if files.withdraw(request) else "it may yet be done"
            result = Result(False, f"the daemon has not answered in {arguments.timeout:g} s; {detail}", request)
    except OSError as error:
        raise StateError(
            f"state.directory: {directory} cannot be used by user {os.getuid()}: {error.strerror or error}; expected "
            "to run as the user of the daemon, which may write there"
        ) from error
    if arguments.json:
        _print(msgspec.to_builtins(result), as_json=True)
    else:
        print(result.detail, file=sys.stdout if result.done else sys.stderr)
    return 0 if result.done else 1


def _wait_for(look: Callable[[], Result | None], seconds: float) -> Result | None:
    deadline = time.monotonic() + seconds
    while (result := look()) is None and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)  # between two looks for a file that another process writes
    return result


def _models(arguments: Arguments) -> int:
    action, number = arguments.action, arguments.generation
    if action == "rollback":
        return _ask(arguments, {"command": "rollback"}, "N")
    if action != "ls" and number is None:
        raise InputError(f"found no N; expected `streamer models {action} N`; `streamer models ls` lists them")
    if action == "promote":
        return _ask(arguments, {"command": "promote", "generation": number or 0}, "N")
    settings = _settings(arguments)
    import msgspec

    from streamer.generations import Generations, described, line

    generations = Generations(Path(settings.state.directory))
    serving = generations.serving()
    if action == "show":
        about = generations.about(number or 0)
        if about is None:
            raise InputError(f"{generations.directory}: found no generation {number}; `streamer models ls` lists them")
        _print(msgspec.to_builtins(about) if arguments.json else described(about, serving), arguments.json)
    elif arguments.json:
        found = {"serving": msgspec.to_builtins(serving), "generations": msgspec.to_builtins(generations.all())}
        _print(found, as_json=True)
    else:
        for each in generations.all():
            print(line(each, serving))
    return 0


def _train(arguments: Arguments) -> int:
    if not arguments.pretrain:
        if arguments.out is not None:
            raise InputError(
                f"found {arguments.out} without --pretrain; expected `streamer train`, by which the running daemon "
                "retrains, or `streamer train --pretrain OUT.safetensors`, which makes weights from synthetic series"
            )
        return _ask(arguments, {"command": "train"}, "train")
    if arguments.out is None:
        raise StreamerError("found no OUT; expected `streamer train --pretrain OUT.safetensors`, the weights to write")
    from models.weights import WeightsError

    wanted, out = recipe.from_arguments(arguments), arguments.out
    checkpoint = arguments.checkpoint or recipe.checkpoint_beside(out)
    try:
        recipe.check(wanted, out, checkpoint)  # a refusal must not wait for torch
        from models.pretrain import pretrain

        figures = pretrain(wanted, out, _to_stderr, checkpoint=arguments.checkpoint, device=arguments.device)
    except WeightsError as error:
        raise ModelError(str(error)) from error
    except KeyboardInterrupt:
        left = f"goes on from {checkpoint}" if checkpoint.exists() else "begins anew: no round was finished"
        _to_stderr(f"interrupted; the same command {left}")
        raise
    _print(figures, arguments.json)
    return 0


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _bench(arguments: Arguments) -> int:
    from streamer.bench import main as bench

    return bench(arguments.arguments)


def _version(arguments: Arguments) -> int:
    import platform

    versions = {name: version(name) for name in (DISTRIBUTION, "torch", "numpy", "paho-mqtt")}
    versions["python"] = platform.python_version()
    _print(versions, arguments.json)
    return 0


def _explain(arguments: Arguments) -> int:
    if (arguments.payload is None) == (arguments.file is None):
        raise StreamerError("found no payload, or two; expected PAYLOAD, or --file FILE")
    settings = _settings(arguments)
    import msgspec

    from streamer.payloads import explain
    from streamer.wiring import decoder_from

    explanation = explain(
        decoder_from(settings),
        arguments.topic,
        _payload(arguments),
        time.time(),
        settings.clock.max_future_seconds,
        settings.mqtt.subscribe,
    )
    print(msgspec.json.encode(explanation).decode() if arguments.json else explanation.text())
    return 0 if explanation.taken else 1


def _payload(arguments: Arguments) -> bytes:
    if arguments.file is not None:
        try:
            payload: bytes = arguments.file.read_bytes()
        except (OSError, ValueError) as error:
            raise InputError(f"{arguments.file}: cannot be read: {error}; expected a file with the payload") from error
        return payload
    return sys.stdin.buffer.read() if arguments.payload == "-" else os.fsencode(arguments.payload)


def _check(arguments: Arguments) -> int:
    from streamer import settings as reader

    settings = _settings(arguments)
    said = reader.sources(arguments.config, arguments.overrides, os.environ, arguments.secrets)
    mqtt, http = settings.mqtt, settings.http
    found: dict[str, object] = {
        "instance": settings.instance,
        "broker": f"{mqtt.host}:{mqtt.port}, as {settings.client_id}",
        "http": f"http{'s' if http.tls.enabled else ''}://{http.host}:{http.port}" if http.enabled else "off",
    }
    problems: list[str] = []
    for name, inspect in (
        ("state", _check_state), ("weights", _check_weights), ("device", _check_device), ("tls", _check_tls),
        ("webhook", _check_webhook),
    ):  # fmt: skip
        try:
            found[name] = inspect(settings)
        except StreamerError as error:
            problems.append(str(error))
    if problems:
        raise StreamerError("\n  ".join(["the settings are sound, but what they name is not:", *problems]))
    values = reader.values(settings)
    if arguments.json:
        found["settings"] = {name: {"value": values[name], "from": said.get(name, "default")} for name in values}
        _print(found, as_json=True)
    else:
        _print(found | {name: f"{json.dumps(values[name])}  ({place})" for name, place in said.items()}, as_json=False)
    return 0


def _check_state(settings: Settings) -> str:
    """Whether the state directory can be used; nothing is created."""
    folder = Path(settings.state.directory)
    if folder.exists():
        if not folder.is_dir():
            raise StateError(f"{folder}: found a file; expected a directory for state")
        if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
            raise StateError(
                f"{folder}: cannot be read and written by user {os.getuid()}; expected a directory of its own"
            )
        return f"{folder} (there)"
    parent = next(each for each in folder.parents if each.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise StateError(
            f"{folder}: cannot be created by user {os.getuid()} in {parent}; expected a directory to write in"
        )
    return f"{folder} (will be created)"


def _check_weights(settings: Settings) -> str:
    from models.weights import BASE
    from streamer.wiring import load_weights

    return f"{settings.model.weights or BASE} (SHA-256 {load_weights(settings).sha256[:16]})"


def _check_device(settings: Settings) -> str:
    from streamer.wiring import step_told

    return step_told(settings)


def _check_tls(settings: Settings) -> str:
    from streamer import http
    from streamer.wire import tls_context

    if settings.http.enabled and settings.http.tls.enabled:
        http.tls_context(settings.http.tls.cert_file, settings.http.tls.key_file)
    tls = settings.mqtt.tls
    if not tls.enabled:
        return "off"
    tls_context(tls.ca_file, tls.cert_file, tls.key_file)
    authorities = tls.ca_file or "those of this machine"
    return f"on, authorities: {authorities}, client certificate: {tls.cert_file or 'none'}"


def _check_webhook(settings: Settings) -> str:
    from streamer.sinks.post import Poster

    webhook = settings.webhook
    if not webhook.url:
        return "off"
    return Poster(webhook.url, ca_file=webhook.ca_file, timeout_seconds=webhook.timeout_seconds).origin


def _health(arguments: Arguments) -> int:
    import http.client

    connection = _connection(arguments)
    host, port = connection.host, connection.port
    try:
        connection.request("GET", "/-/healthy")
        response = connection.getresponse()
        text = response.read(4096).decode(errors="replace").strip()
    except (OSError, http.client.HTTPException, UnicodeError) as error:
        print(f"unhealthy: no answer from {host} port {port}: {error or type(error).__name__}")
        return 1
    finally:
        connection.close()
    print("".join(character if character.isprintable() else " " for character in text))
    return 0 if response.status == 200 else 1


def _doctor(arguments: Arguments) -> int:
    settings = _settings(arguments)
    import signal
    from dataclasses import asdict

    from streamer.doctor import Case, Finding, examine
    from streamer.probe import Access
    from streamer.wire import tls_context

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # it cleans up after itself then too
    mqtt, tls = settings.mqtt, settings.mqtt.tls
    access = Access(
        host=mqtt.host,
        port=mqtt.port,
        username=mqtt.username,
        password=mqtt.password.get_secret_value(),
        tls=tls_context(tls.ca_file, tls.cert_file, tls.key_file) if tls.enabled else None,
        keep_alive_seconds=mqtt.keep_alive_seconds,
        timeout_seconds=mqtt.connect_timeout_seconds,
        max_packet_bytes=mqtt.max_packet_bytes,
    )
    case = Case(
        access,
        instance=settings.instance,
        protocol=mqtt.protocol,
        filters=mqtt.subscribe,
        qos=mqtt.qos,
        session_expiry_seconds=mqtt.session_expiry_seconds,
        messages=arguments.probe_messages,
    )

    def tell(finding: Finding) -> None:
        if not arguments.json:
            print(finding, flush=True)

    report = examine(case, tell)
    traffic = asdict(access.traffic)
    if arguments.json:
        checks = [asdict(finding) | {"verdict": finding.verdict.value} for finding in report.findings]
        _print(
            {"broker": access.place, "reached": report.is_reached, "checks": checks, "traffic": traffic}, as_json=True
        )
    else:
        print("traffic: " + ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in traffic.items()))
    return NO_BROKER if not report.is_reached else int(report.has_warnings)


def _connection(arguments: Arguments) -> HTTPConnection:
    """To where the daemon serves HTTP; one that listens on every address is asked on loopback."""
    from http.client import HTTPConnection, HTTPSConnection

    if arguments.url:
        import urllib.parse

        url = urllib.parse.urlsplit(arguments.url)
        try:
            host, port = url.hostname, url.port
        except ValueError:
            host, port = None, 0
        if url.scheme not in ("http", "https") or host is None:
            raise SettingsError(f"--url: found {arguments.url}; expected http://HOST:PORT or https://HOST:PORT")
        kind = HTTPSConnection if url.scheme == "https" else HTTPConnection
        return kind(host, port, timeout=HEALTH_TIMEOUT_SECONDS)
    settings = _settings(arguments)
    if not settings.http.enabled:
        raise SettingsError("http.enabled is false: there is nobody to ask; expected a daemon that serves HTTP")
    if settings.http.port == 0:
        raise SettingsError("http.port is 0: only the daemon's log knows the port; expected --url")
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.http.host, settings.http.host)  # noqa: S104
    if not settings.http.tls.enabled:
        return HTTPConnection(host, settings.http.port, timeout=HEALTH_TIMEOUT_SECONDS)
    import ssl

    # The very certificate that the settings name, under whatever name the daemon is asked here.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    file = settings.http.tls.cert_file
    try:
        context.load_verify_locations(file)
    except OSError as error:
        found = f"http.tls.cert_file: {file} cannot be used: {error}"
        raise SettingsError(f"{found}; expected a certificate in PEM form") from error
    return HTTPSConnection(host, settings.http.port, timeout=HEALTH_TIMEOUT_SECONDS, context=context)


def _print(figures: Mapping[str, object], as_json: bool) -> None:
    """Named values for people, or as one JSON object."""
    if as_json:
        print(json.dumps(figures, indent=2, ensure_ascii=False))
        return
    width = max(len(name) for name in figures)
    for name, value in figures.items():
        print(f"{name:<{width}}  {value}")
