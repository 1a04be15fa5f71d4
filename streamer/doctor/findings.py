"""What the doctor is asked, and what it tells: findings, one a check, and the report that they add up to."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from streamer.probe import Access


@dataclass(frozen=True, slots=True)
class Case:
    """What the daemon is set to."""

    access: Access
    instance: str
    protocol: str
    """5 | 3.1.1 | auto"""
    filters: Sequence[str]
    qos: int
    session_expiry_seconds: int
    messages: int | None = None
    """how many to publish into an offline queue; None: as many as is wise"""


class Verdict(enum.Enum):
    """What a check has come to."""

    OK = "ok"
    WARNING = "warning"
    UNKNOWN = "cannot tell"


@dataclass(frozen=True, slots=True)
class Finding:
    """One check."""

    check: str
    verdict: Verdict
    found: str
    wanted: str = ""
    advice: str = ""

    def __str__(self) -> str:
        wanted = f"; wanted: {self.wanted}" if self.wanted else ""
        advice = f"; {self.advice}" if self.advice else ""
        line = f"{self.verdict.value:<11}  {self.check}: {self.found}{wanted}{advice}"
        # The broker's own words are in it.
        return "".join(character if character.isprintable() else " " for character in line)


@dataclass(slots=True)
class Report:
    """The findings so far; `tell` gets each as it is made."""

    tell: Callable[[Finding], None]
    findings: list[Finding] = field(default_factory=list)
    is_reached: bool = False
    """the broker has taken a connection"""

    @property
    def has_warnings(self) -> bool:
        return any(finding.verdict is Verdict.WARNING for finding in self.findings)

    def ok(self, check: str, found: str) -> None:
        self._add(Finding(check, Verdict.OK, found))

    def warn(self, check: str, found: str, wanted: str, advice: str) -> None:
        self._add(Finding(check, Verdict.WARNING, found, wanted, advice))

    def unknown(self, check: str, found: str, advice: str = "") -> None:
        self._add(Finding(check, Verdict.UNKNOWN, found, "", advice))

    def _add(self, finding: Finding) -> None:
        self.findings.append(finding)
        self.tell(finding)
