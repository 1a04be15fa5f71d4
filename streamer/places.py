"""Where settings come from: the four places, each read into a table that remembers where every value was found.

    TOML file  <  secrets directory  <  environment STREAMER_...  <  --set NAME=VALUE

The last one that names a setting wins. Nothing here raises: what cannot be understood becomes a line of
`Layer.problems`, so that an operator sees all his mistakes at once, each with its place. A table of known settings
is an argument; which ones there are and what they mean is the business of streamer/settings.
"""

from __future__ import annotations

import difflib
import enum
import json
import re
import tomllib
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

PREFIX = "STREAMER_"
CONFIG_VARIABLE = "STREAMER_CONFIG"
SECRETS_VARIABLE = "STREAMER_SECRETS"
SECRET_BYTES = 65_536  # the longest password that MQTT can carry is 65,535 bytes
LIKE = 0.6  # difflib's own: what is less like any name was not meant to be one
CLOSE = 0.8  # by eye: `mqtt.pasword` is 0.96 to its setting, `client.key` below 0.6 to all of them


class Kind(enum.Enum):
    """What the text of a setting is turned into."""

    TEXT = "text"
    HIDDEN = "text that is never shown"
    SWITCH = "true or false"
    INTEGER = "integer"
    NUMBER = "number"
    LIST = "list of text"
    TABLES = "list of tables"


@dataclass(frozen=True, slots=True)
class Setting:
    """One thing that an operator can set: what the reference prints and what a refusal quotes."""

    name: str
    """dotted: `mqtt.tls.ca_file`"""
    kind: Kind
    unit: str
    """empty where there is none"""
    expected: str
    """what a value has to be, as the object of "expected": `an integer from 1 to 65535`"""
    default: str
    """as TOML"""
    sentence: str
    reload: bool
    """SIGHUP re-reads it"""
    file: bool
    """names a file that must be readable"""
    path: bool
    """a path: relative to the folder of the TOML file that says it"""

    @property
    def variable(self) -> str:
        """Its name in the environment."""
        return variable(self.name)


def variable(name: str) -> str:
    return PREFIX + name.replace(".", "__").upper()


@dataclass(slots=True)
class Layer:
    """What one place says."""

    values: dict[str, object] = field(default_factory=dict)
    """nested, as TOML gives it"""
    places: dict[str, str] = field(default_factory=dict)
    """dotted name -> where it was found"""
    problems: list[str] = field(default_factory=list)
    is_secret: bool = False
    """no refusal may repeat a value: a password may lie under the wrong name"""

    def put(self, name: str, value: object, place: str) -> None:
        table = self.values
        *sections, last = name.split(".")
        for section in sections:
            inner = table.setdefault(section, {})
            if not isinstance(inner, dict):
                raise TypeError(f"{name} lies below a setting that is no table")
            table = inner
        table[last] = value
        self.places[name] = place

    def get(self, name: str) -> object:
        """The value of a dotted name, None where this place does not say it."""
        found: object = self.values
        for section in name.split("."):
            found = found.get(section) if isinstance(found, dict) else None
        return found


class Known:
    """The settings that exist, and the tables that hold them."""

    def __init__(self, settings: Sequence[Setting]) -> None:
        self.settings = {setting.name: setting for setting in settings}
        self.tables = {name.rsplit(".", depth)[0] for name in self.settings for depth in range(1, name.count(".") + 1)}

    def closest(self, name: str) -> str | None:
        """The known dotted name that was meant by `name`; one that exists in another table comes first."""
        return self._closest(name, [*self.settings, *sorted(self.tables)])

    def closest_variable(self, name: str) -> str | None:
        """The known environment variable that was meant by `name`."""
        dotted = name.upper().removeprefix(PREFIX).lower().replace("__", ".")
        others = [each.removeprefix(PREFIX).lower() for each in (CONFIG_VARIABLE, SECRETS_VARIABLE)]
        near = self._closest(dotted, [*self.settings, *sorted(self.tables), *others])
        return None if near is None else variable(near)

    def _closest(self, name: str, names: Sequence[str]) -> str | None:
        moved = [known for known in self.settings if known.rsplit(".", 1)[-1] == name.rsplit(".", 1)[-1]]
        return moved[0] if len(moved) == 1 else closest(name, moved or names)


def closest(name: str, names: Iterable[str]) -> str | None:
    """The one that is most like `name`; None where none is like it."""
    best, known = max((_likeness(name, known), known) for known in names)
    return known if best >= LIKE else None


def _likeness(name: str, known: str) -> float:
    """0 to 1; whoever leaves out the last words of a long name means it all the same."""
    whole = difflib.SequenceMatcher(None, known, name).ratio()
    leaf, known_leaf = name.rsplit(".", 1)[-1], known.rsplit(".", 1)[-1]
    if not leaf or not known_leaf.startswith(f"{leaf}_"):
        return whole
    cut = known[: len(known) - len(known_leaf) + len(leaf)]
    return max(whole, 0.99 * difflib.SequenceMatcher(None, cut, name).ratio())


def unknown(near: str | None, what: str = "setting") -> str:
    """What is to be said of a name that is none."""
    return f"no such {what}" + (f"; the closest known name is {near}" if near else "")


_USER = re.compile("://.*@", re.DOTALL)


def shown(value: object) -> str:
    """A value as an operator wrote it, cut to one line; of an address without the user, who may have a password."""
    if isinstance(value, bool):
        text = str(value).lower()
    elif isinstance(value, str):
        text = json.dumps(_USER.sub("://...@", value)[:80], ensure_ascii=False)
    elif isinstance(value, dict):
        text = "a table"
    elif isinstance(value, list):
        text = "a list"
    elif value is None:
        text = "null"
    else:
        # int() of a TOML file is bounded by Python's own limit on digits, so this cannot take long.
        text = str(value)
    return text if len(text) <= 80 else text[:79] + "…"


def printable(text: str) -> str:
    """One line that harms no terminal."""
    return "".join(character if character.isprintable() else "?" for character in text)


def read_toml(path: Path, known: Known) -> Layer:
    """A TOML file; the paths in it are relative to its folder."""
    layer = Layer()
    try:
        text = path.read_bytes().decode("utf-8-sig")
        tables = tomllib.loads(text)
    except OSError as error:
        layer.problems.append(f"{path}: cannot be read: {error.strerror}; expected a TOML file")
    except UnicodeDecodeError as error:
        line = bytes(error.object[: error.start]).count(b"\n") + 1
        layer.problems.append(f"{path}: line {line}: not UTF-8; expected a TOML file, which is UTF-8 text")
    except RecursionError:
        layer.problems.append(f"{path}: nested too deeply; expected a TOML file of tables and settings")
    except ValueError as error:  # tomllib's own error is one, and so is an integer of more than 4,300 digits
        layer.problems.append(f"{path}: {_toml_problem(str(error))}")
    else:
        _take(layer, known, tables, "", str(path))
        _anchor(layer, known, path.absolute().parent)
    return layer


def _toml_problem(text: str) -> str:
    """`Invalid value (at line 3, column 8)` with the place first."""
    match = re.fullmatch(r"(.*) \(at (?:line (\d+), column (\d+)|end of document)\)", text, re.DOTALL)
    if match is None:
        return f"not TOML: {shown(text)}"
    place = f"line {match[2]}, column {match[3]}" if match[2] else "last line"
    return f"{place}: not TOML: {match[1]}"


def _take(layer: Layer, known: Known, table: Mapping[str, object], above: str, place: str) -> None:
    """Put a parsed table into a layer; each key that is not known is a problem."""
    for key, value in table.items():
        name = above + key
        here = f"{place}: {name}"
        setting = known.settings.get(name)
        if setting is not None:
            if setting.kind is Kind.HIDDEN:
                layer.problems.append(f"{here}: {_secrets_only(name)}")
                continue
            layer.put(name, value, here)
        elif name not in known.tables:
            layer.problems.append(f"{here}: {unknown(known.closest(name))}")
        elif isinstance(value, dict):
            _take(layer, known, value, name + ".", place)
        else:
            layer.problems.append(f"{here}: found {shown(value)}; expected a table")


def _anchor(layer: Layer, known: Known, folder: Path) -> None:
    """Make the paths of a layer absolute, from the folder that they are relative to."""
    for name, place in layer.places.items():
        value = layer.get(name)
        if known.settings[name].path and isinstance(value, str) and value:
            # `~user` stays: whoever that is, the refusal that follows names it.
            layer.put(name, str(folder / (Path(value).expanduser() if value.startswith("~/") else value)), place)


def _secrets_only(name: str) -> str:
    return (
        "a secret is not written here, where others can read it; "
        f"expected {name}_file, or a file {name} in the secrets directory"
    )


def read_secrets(folder: Path, known: Known, *, strict: bool, used: Container[Path] = ()) -> Layer:
    """A directory with one file a setting, named like it: `mqtt.password` or `mqtt__password`.

    Names that begin with a dot are passed over (Kubernetes keeps its `..data` there), and so are the files in `used`:
    a certificate that a setting points to. Another unknown name is a problem if `strict`; else only if it looks like
    a setting misspelt, since systemd puts every credential of a service there, not only ours.
    """
    layer = Layer(is_secret=True)
    try:
        files = sorted(folder.iterdir())
    except OSError as error:
        layer.problems.append(f"{folder}: cannot be read: {error.strerror}; expected a directory of secrets")
        return layer
    for file in files:
        if file.name.startswith(".") or file.absolute() in used:
            continue
        name = file.name.replace("__", ".")
        if name not in known.settings:
            near = known.closest(name)
            if strict or (near and difflib.SequenceMatcher(None, name, near).ratio() >= CLOSE):
                layer.problems.append(f"{file}: {unknown(near)}")
        elif known.settings[name].path:
            # Mostly a password under the wrong name, mqtt.password_file: as a path it would show in a refusal.
            layer.problems.append(f"{file}: a path is no secret; expected the secret itself, such as mqtt.password")
        elif name in layer.places:
            layer.problems.append(f"{file}: {name} is already said by {layer.places[name]}; expected one of the two")
        else:
            text, problem = read_secret(file)
            if problem:
                layer.problems.append(f"{file}: {problem}")
            else:
                _put_text(layer, known, name, text, str(file))
    return layer


def read_secret(file: Path) -> tuple[str, str]:
    """The text of a secret without its last line break, and what is wrong with it (empty: nothing)."""
    try:
        with file.open("rb") as stream:
            content = stream.read(SECRET_BYTES + 1)
        text = content.decode().removesuffix("\n").removesuffix("\r")
    except OSError as error:
        return "", f"cannot be read: {error.strerror}; expected a file with the secret"
    except ValueError:  # not UTF-8, or a NUL in the path
        return "", "not text; expected a file with the secret in UTF-8"
    if len(content) > SECRET_BYTES:
        return "", f"longer than {SECRET_BYTES} bytes; expected a file with the secret"
    return (text, "") if text else ("", "empty; expected a file with the secret")


def read_environment(environ: Mapping[str, str], known: Known) -> Layer:
    """Variables that begin with STREAMER_; `__` stands between a table and its settings."""
    layer = Layer()
    names = {variable(name): name for name in [*known.tables, *known.settings]}  # tables first: a setting is more exact
    for found in environ:
        if not found.upper().startswith(PREFIX) or found in names or found in (CONFIG_VARIABLE, SECRETS_VARIABLE):
            continue
        text = environ[found]
        near = known.closest_variable(found)
        if _is_kubernetes(found, text):
            layer.problems.append(
                f"environment: {found}: no setting: Kubernetes injects this name for a Service whose name begins with "
                f"`streamer`; set enableServiceLinks: false in the pod, or rename the Service"
                + (
                    ""
                    if "SERVICE" in found or "://" in text or "_PORT_" in found
                    else f"; as a setting it would be {near}"
                )
            )
        else:
            layer.problems.append(f"environment: {found}: {unknown(near)}")
    for name_there, name in names.items():
        if name_there in environ:
            _put_text(layer, known, name, environ[name_there], f"environment: {name_there}")
    _anchor(layer, known, Path.cwd())
    return layer


# What the kubelet injects for a Service: https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables
_SERVICE = re.compile(r"STREAMER_(\w+_)?SERVICE_(HOST|PORT(_\w+)?)", re.ASCII)
_SERVICE_PORT = re.compile(r"STREAMER_(\w+_)?PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?", re.ASCII)
_SERVICE_LINK = re.compile(r"STREAMER_(\w+_)?PORT", re.ASCII)


def _is_kubernetes(name: str, text: str) -> bool:
    """`STREAMER_HTTP_PORT=9479` is a misspelt setting, `STREAMER_HTTP_PORT=tcp://10.0.0.1:80` is a Service's link."""
    if _SERVICE.fullmatch(name) or _SERVICE_PORT.fullmatch(name) or name == "STREAMER_PORT":
        return True
    return _SERVICE_LINK.fullmatch(name) is not None and re.match(r"(tcp|udp|sctp)://", text) is not None


def read_overrides(overrides: Sequence[str], known: Known) -> Layer:
    """The `--set NAME=VALUE` of a command line, in their order."""
    layer = Layer()
    for override in overrides:
        name, equals, text = override.partition("=")
        place = f"--set {shown(name)[1:-1]}"
        if not equals:
            layer.problems.append(f"{place}: no value; expected NAME=VALUE, such as mqtt.host=10.0.0.5")
        elif name not in known.settings and name not in known.tables:
            layer.problems.append(f"{place}: {unknown(known.closest(name))}")
        else:
            _put_text(layer, known, name, text, place)
    _anchor(layer, known, Path.cwd())
    return layer


def _put_text(layer: Layer, known: Known, name: str, text: str, place: str) -> None:
    """Turn a text into the kind of value that its setting wants, and put it into the layer."""
    setting = known.settings.get(name)
    found = "a hidden value" if layer.is_secret else shown(text)
    if setting is None:
        table = _parse(text)
        if isinstance(table, dict):
            _take(layer, known, table, name + ".", place)
        else:
            layer.problems.append(
                f'{place}: found {found}; expected a table in TOML or JSON, such as {{key = "value"}}'
            )
    elif setting.kind is Kind.HIDDEN and not layer.is_secret:
        layer.problems.append(f"{place}: {_secrets_only(name)}")
    else:
        value = _coerce(setting, text)
        if value is None:
            layer.problems.append(f"{place}: found {found}; expected {setting.expected}")
        else:
            layer.put(name, value, place)


_SWITCHES = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def _coerce(setting: Setting, text: str) -> object:
    """The value that a text stands for; None where it stands for none of its kind."""
    match setting.kind:
        case Kind.TEXT | Kind.HIDDEN:
            return text
        case Kind.SWITCH:
            return _SWITCHES.get(text.strip().lower())
        case Kind.INTEGER | Kind.NUMBER:
            try:
                return int(text) if setting.kind is Kind.INTEGER else float(text)
            except ValueError:
                return None
        case Kind.LIST | Kind.TABLES:
            value = _parse(text)
            return value if isinstance(value, list) else None


def _parse(text: str) -> object:
    """A list or table written as JSON or as TOML; None where it is neither."""
    try:
        value: object = json.loads(text)
    except (ValueError, RecursionError):
        try:
            tables = tomllib.loads(f"value = {text}")
        except (ValueError, RecursionError):
            return None
        return tables["value"] if tables.keys() == {"value"} else None
    return value


def effective(layers: Sequence[Layer], name: str) -> tuple[object, str]:
    """What the last layer that says it says, and where; (None, "") where none does."""
    for layer in reversed(layers):
        if name in layer.places:
            return layer.get(name), layer.places[name]
    return None, ""
