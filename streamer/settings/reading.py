"""The four places -> one frozen `Settings`, or a SettingsError with every problem at once.

A line a problem: where, what was found, what was expected. How each place is read is in streamer/places.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import ValidationError
from pydantic_settings import InitSettingsSource

from streamer import places
from streamer.errors import SettingsError
from streamer.places import Kind, Known, Layer
from streamer.settings.catalogue import reference
from streamer.settings.declarations import SECRETS, Rule, Settings


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
            yield f"{place}: {places.unknown(near, 'key')}"
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
