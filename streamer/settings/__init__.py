"""Everything that an operator can set, and where it is read from.

    forms         what a text has to look like, and how a setting is declared
    declarations  the settings, table by table: type, unit, bounds, default, one sentence, whether SIGHUP re-reads it
    catalogue     the same as a list: for docs/settings.md and for refusals
    reading       the four places (streamer/places.py) -> one frozen `Settings`, or every problem at once

Each imports those above it only.
"""

from streamer.settings.catalogue import reference, tables
from streamer.settings.declarations import Rule, Settings
from streamer.settings.reading import changed, load, sources, values

__all__ = ["Rule", "Settings", "changed", "load", "reference", "sources", "tables", "values"]
