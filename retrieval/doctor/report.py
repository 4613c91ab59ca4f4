"""What was found, for people and for programs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

State = Literal["ok", "note", "broken"]
MARK = {"ok": " ", "note": "!", "broken": "X"}
"""In front of a line for people."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    name: str
    """What it is, a word or two."""
    value: str
    """What was found."""
    state: State = "ok"
    """"note": works, but could be better; "broken": something that is needed does not work."""
    advice: str = ""
    """What to do, where there is something."""


@dataclass(frozen=True)
class Report:
    """All that was looked at."""

    device: str
    """The device that was asked about."""
    findings: tuple[Finding, ...]
    """In the order in which they were looked at."""

    @property
    def broken(self) -> bool:
        """Whether something that is needed does not work."""
        return any(f.state == "broken" for f in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "device": self.device,
            "broken": self.broken,
            "findings": [asdict(f) for f in self.findings],
        }

    def __str__(self) -> str:
        width = max(len(f.name) for f in self.findings)
        lines = []
        for f in self.findings:
            lines.append(f"{MARK[f.state]} {f.name:{width}}  {f.value}")
            if f.advice:
                lines.append(f"  {'':{width}}  -> {f.advice}")
        advised = sum(bool(f.advice) for f in self.findings)
        end = "something that is needed is broken, see X" if self.broken else "all that is needed works"
        return "\n".join([*lines, "", end + (f"; {advised} pieces of advice, see ->" if advised else "")])
