"""What the doctor says of one thing, and how it is shown."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from rich.table import Table
from rich.text import Text


class Verdict(Enum):
    """How a finding bears on running Baton."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


_STYLES = {Verdict.OK: "green", Verdict.WARN: "yellow", Verdict.FAIL: "bold red"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at."""

    part: str
    verdict: Verdict
    found: str
    cure: str = ""
    """What to do about it; empty when nothing needs doing."""

    def as_json(self) -> dict[str, str]:
        """Return the finding as plain values."""
        return {"part": self.part, "verdict": self.verdict.value, "found": self.found, "cure": self.cure}


def ok(part: str, found: str) -> Finding:
    """Report that a part is as it should be."""
    return Finding(part=part, verdict=Verdict.OK, found=found)


def warn(part: str, found: str, cure: str) -> Finding:
    """Report what costs speed or reach, but lets a cluster run."""
    return Finding(part=part, verdict=Verdict.WARN, found=found, cure=cure)


def fail(part: str, found: str, cure: str) -> Finding:
    """Report what keeps a cluster from running."""
    return Finding(part=part, verdict=Verdict.FAIL, found=found, cure=cure)


def findings_table(findings: Sequence[Finding]) -> Table:
    """Draw the findings with the cure beside each."""
    table = Table(show_header=True, header_style="bold", box=None, pad_edge=False)
    for column in ("", "part", "found", "cure"):
        table.add_column(column, overflow="fold")
    for finding in findings:
        verdict = Text(finding.verdict.value, style=_STYLES[finding.verdict])
        table.add_row(verdict, Text(finding.part), Text(finding.found), Text(finding.cure))
    return table
