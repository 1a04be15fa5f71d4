"""The report of a replay: what it has seen, condensed while it runs, and one page that shows it and asks nobody."""

from streamer.report.page import About
from streamer.report.recorder import Recorder

__all__ = ["About", "Recorder"]
