"""One thread for the numerical libraries of each worker of pytest, because the workers fill the cores."""

import os

LIMITS = ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")
_limited: list[str] = []


def share_cores():
    """Limit the threads of this process and its children, where the user did not; before libraries start."""
    for name in LIMITS:
        if name not in os.environ:
            os.environ[name] = "1"
            _limited.append(name)


def without_limits():
    """Return the environment of a child that computes as outside of the tests."""
    return {name: value for name, value in os.environ.items() if name not in _limited}
