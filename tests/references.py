"""The reference pages of docs/, made from the code: `python -m tests.references` writes them, `--check` compares.

docs/settings.md    from the model of the settings
docs/commands.md    from the tree of argparse
docs/metrics.md     from the table of the metrics
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from streamer import metrics
from streamer.cli import parser
from streamer.places import Kind, Setting
from streamer.settings import Rule, Settings, reference, tables

DOCS = Path(__file__).parent.parent / "docs"
MADE = "<!-- Made from the code by `make docs`; a change here is overwritten. -->"

SETTINGS_TEXT = """\
# Settings

{made}

Every setting has a default; `streamer run` needs no file. `streamer check` shows which ones would hold, and where each
was said. What is misspelt, of a wrong type or out of bounds is refused at the start with its place, exit status 2.

## Places

Four places, each stronger than the one before. Where two say the same setting, the stronger one holds; a list is taken
as a whole.

| Place | Chosen by | `mqtt.port` there |
|---|---|---|
| TOML file | `--config FILE`, else `$STREAMER_CONFIG`, else none | `port = 1884` below `[mqtt]` |
| secrets directory | `--secrets DIR`, else `$STREAMER_SECRETS`, else `$CREDENTIALS_DIRECTORY` | a file `mqtt.port` |
| environment | the prefix, capitals, `__` between table and setting | `STREAMER_MQTT__PORT=1884` |
| command line | may be repeated | `--set mqtt.port=1884` |

- **Text** is written as it is, without quotes, everywhere but in TOML. A switch is `true` or `false`, and outside TOML
  also `yes`, `no`, `on`, `off`, `1`, `0`.
- **Lists and tables** are written in TOML or JSON everywhere: `--set 'mqtt.subscribe=["plant/#", "lab/#"]'`,
  `STREAMER_MQTT__TLS='{{"enabled": true}}'`. A setting of its own is stronger than the table that holds it.
- **Paths** may be relative: in a TOML file to its folder, elsewhere to the working directory. `~/` is the home
  directory. A path is no secret: the secrets directory does not take one.
- **Files in the secrets directory** are named like the setting, with a dot or with `__`, as systemd's `LoadCredential`,
  Docker and Kubernetes mount them. The text of the file is the value; one line break at its end does not count.
- **The password of the broker** is the text of the file `mqtt.password` there, or of the file that `mqtt.password_file`
  names. Anywhere else it is refused, since others can read those places. No log, error or answer shows it. The same
  holds of `webhook.token` and `webhook.secret`.
- **Unknown files** in the secrets directory are refused, but for names that begin with a dot and for files that a
  setting names, such as a certificate. In systemd's `$CREDENTIALS_DIRECTORY`, which holds all credentials of a service,
  only a file whose name is nearly that of a setting is refused.
- **Kubernetes** injects variables such as `STREAMER_SERVICE_HOST` and `STREAMER_PORT` where a Service is called
  `streamer` or `streamer-...`. They are refused by that name: put `enableServiceLinks: false` into the pod, or rename
  the Service.

**Reload**: SIGHUP reads all places again. What is marked takes effect at once, the rest at the next start, and the log
says so. If anything is wrong, the old settings stay.
"""

COMMANDS_TEXT = """\
# Commands

{made}

Data goes to standard output, log and complaints to standard error.

| Exit status | Meaning |
|---|---|
| 0 | done |
| 1 | the answer is no: unhealthy, unreadable, damaged, no fault caught, a lossy broker; or nobody reads the output |
| 2 | usage, settings, or something that they name cannot be used |
| 3 | `streamer doctor` has found no broker, or was refused by it |
| 130 | interrupted |

"""

METRICS_TEXT = """\
# Metrics

{made}

`GET /metrics`, in the text formats of Prometheus and OpenMetrics; `process_*`, about the process, comes on top. At
every scrape, whatever the load, two sums hold:

    messages_received = messages_decoded + messages_retained + messages_ignored
                        + messages_rejected + messages_dropped + messages_queued
    readings_decoded = readings_scored + readings_unscored + readings_rejected + readings_pending

"""


def pages() -> dict[str, str]:
    """The text of each page by its file name."""
    return {"settings.md": settings_page(), "commands.md": commands_page(), "metrics.md": metrics_page()}


def settings_page() -> str:
    found = {setting.name: setting for setting in reference()}
    sections = {"": (Settings.__doc__ or "").strip(), **tables()}
    parts = [SETTINGS_TEXT.format(made=MADE)]
    for section, sentence in sections.items():
        inside = [setting for name, setting in found.items() if name.rpartition(".")[0] == section]
        heading = f"## [{section}]\n\n{sentence}" if section else "## Top level"
        parts.append(f"{heading}\n\n{settings_table(inside)}\n")
    keys = reference(Rule)
    parts.append(f"## [[input.rules]]\n\n{(Rule.__doc__ or '').strip()}\n\n{settings_table(keys)}\n")
    return "\n".join(parts)


def settings_table(settings: Iterable[Setting]) -> str:
    rows = [
        (
            f"`{setting.name}`",
            one_of(setting) if setting.kind is Kind.TEXT else setting.expected,
            setting.unit,
            ""
            if setting.kind is Kind.HIDDEN
            else setting.default
            if " " in setting.default
            else f"`{setting.default}`",
            "yes" if setting.reload else "",
            setting.sentence,
        )
        for setting in settings
    ]
    return table(("Setting", "Value", "Unit", "Default", "Reload", "Meaning"), rows)


def one_of(setting: Setting) -> str:
    choices = setting.expected.removeprefix("one of ")
    if choices == setting.expected:
        return setting.expected
    return "one of " + ", ".join(f"`{choice}`" for choice in choices.split(", "))


def commands_page() -> str:
    return COMMANDS_TEXT.format(made=MADE) + "\n".join(command_part(name, sub) for name, sub in commands().items())


def commands() -> dict[str, argparse.ArgumentParser]:
    """The parser of each command by its name."""
    for action in parser()._actions:  # argparse offers no public way to them
        if isinstance(action, argparse._SubParsersAction):
            return {name: sub for name, sub in action.choices.items() if isinstance(sub, argparse.ArgumentParser)}
    raise AssertionError("the command line has no commands")


def command_part(name: str, sub: argparse.ArgumentParser) -> str:
    actions = [action for action in sub._actions if not isinstance(action, argparse._HelpAction)]
    operands = [action for action in actions if not action.option_strings]
    options = [action for action in actions if action.option_strings]
    words = ["streamer", name, *map(operand, operands), *(f"[{option(action)}]" for action in options)]
    rows = [(f"`{operand(action)}`", action.help or "") for action in operands]
    rows += [(f"`{option(action)}`", action.help or "") for action in options]
    listed = f"\n{table(('Argument', 'Meaning'), rows)}\n" if rows else ""
    return f"## streamer {name}\n\n{sub.description}\n\n    {' '.join(words)}\n{listed}"


def operand(action: argparse.Action) -> str:
    name = str(action.metavar or "{" + ",".join(map(str, action.choices or ())) + "}")
    return {"?": f"[{name}]", "+": f"{name}...", "*": "..."}.get(str(action.nargs), name)


def option(action: argparse.Action) -> str:
    name = action.option_strings[-1]
    return name if action.nargs == 0 else f"{name} {action.metavar or action.dest.upper()}"


def metrics_page() -> str:
    rows = [
        (f"`{metric.name}`", metric.kind, ", ".join(f"`{label}`" for label in metric.labels), metric.help)
        for metric in metrics.reference()
    ]
    return METRICS_TEXT.format(made=MADE) + table(("Metric", "Type", "Labels", "Meaning"), rows) + "\n"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of Markdown."""

    def line(cells: Iterable[str]) -> str:
        return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"

    return "\n".join([line(head), f"|{'---|' * len(head)}", *map(line, rows)])


def stale() -> Iterator[str]:
    """Names of the pages that are not what the code says."""
    for name, text in pages().items():
        page = DOCS / name
        if not page.is_file() or page.read_text() != text:
            yield name


def main(argv: Sequence[str]) -> int:
    if list(argv) == ["--check"]:
        names = list(stale())
        sys.stderr.write("".join(f"docs/{name} is not what the code says: run `make docs`\n" for name in names))
        return 1 if names else 0
    if argv:
        sys.stderr.write("usage: python -m tests.references [--check]\n")
        return 2
    DOCS.mkdir(exist_ok=True)
    for name, text in pages().items():
        (DOCS / name).write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
