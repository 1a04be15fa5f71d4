"""The live page: what it shows of the daemon, as JSON and as events, and the files that a browser makes it of.

It reads copies. The engine is asked between two of its turns, at most once a second however many pages are open, and
not at all while none is.
"""

from streamer.web.board import Ask, Vitals
from streamer.web.page import Page

__all__ = ["Ask", "Page", "Vitals"]
