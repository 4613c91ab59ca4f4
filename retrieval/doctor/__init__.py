"""Check the installation: what is missing, what does not work, and the fix.

`checks` looks at packages, devices, libraries, threads, memory and disk. `trial` runs a small search on
generated scenes. Nothing here raises for a broken installation: the findings describe it.
"""

from collections.abc import Callable

from retrieval.doctor.checks import Finding, Report, run_checks
from retrieval.doctor.trial import run_trial

__all__ = ["Finding", "Report", "examine", "run_checks", "run_trial"]


def examine(
    device: str = "auto", trial: bool = True, checks: Callable[[str], list[Finding]] = run_checks
) -> Report:
    """Run the checks, then the trial if nothing required is broken.

    Args:
        device: "auto", "cpu" or "gpu"; GPU packages are required with "gpu" only.
        trial: also run a small search, about ten seconds.
        checks: returns the findings for a device.
    """
    findings = checks(device)
    if trial and any(finding.state == "broken" for finding in findings):
        findings = [*findings, Finding("trial", "skipped, because a requirement is broken")]
    elif trial:
        findings = [*findings, run_trial(device)]
    return Report(device, tuple(findings))
