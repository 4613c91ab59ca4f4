"""What is installed, what is missing by name, what works, and what to do about it.

`installed` only looks: versions, devices, libraries, threads, memory, disk. `trial` does the job in small, on
generated scenes: embed, index, search, refine. Nothing here raises for what is broken: that is the answer.
"""

from retrieval.doctor.installed import look
from retrieval.doctor.report import Finding, Report
from retrieval.doctor.trial import try_out

__all__ = ["Finding", "Report", "examine", "look", "try_out"]


def examine(device: str = "auto", trial: bool = True) -> Report:
    """Look at everything, and try it out.

    Args:
        device: "auto", "cpu" or "gpu": what is missing for a GPU counts as broken with "gpu" alone.
        trial: also do the job in small, about ten seconds.
    """
    findings = look(device)
    needed = not any(f.state == "broken" for f in findings)
    if trial and needed:
        findings += try_out(device)
    elif trial:
        findings.append(Finding("trial", "left out, since something that it needs is broken"))
    return Report(device, tuple(findings))
