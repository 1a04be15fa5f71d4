"""`streamer doctor`: what the broker does with messages that nobody has taken yet, and whether it keeps what the daemon
relies on.

findings.py     what is asked and what is told
granted.py      what the broker says of itself
trials.py       what has to be tried out
"""

from __future__ import annotations

from collections.abc import Callable

from streamer.doctor.findings import Case, Finding, Report, Verdict
from streamer.doctor.trials import Examination

__all__ = ["Case", "Finding", "Report", "Verdict", "examine"]


def examine(case: Case, tell: Callable[[Finding], None]) -> Report:
    """Connect as the daemon would, under another name, and try everything out; `tell` gets each finding at once."""
    examination = Examination(case, tell)
    try:
        examination.run()
    finally:
        examination.clean_up()
    return examination.report
