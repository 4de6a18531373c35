"""Why a worker died, read from how its process ended, and whether the run is worth another try."""

from __future__ import annotations

import signal
from dataclasses import dataclass

from em_core.journal import RunStatus

MAX_KILLS = 3
"""A run whose worker is killed this often within one job is a failure, not bad luck."""

_CRASHES = {signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT, signal.SIGTRAP, signal.SIGSYS}


@dataclass(frozen=True)
class Cause:
    """`status` the attempt gets, `cause` in a word or two, `message` for a person."""

    status: RunStatus
    cause: str
    message: str


def of_death(returncode: int, kills_before: int) -> Cause:
    """The cause of a worker's death in the middle of a run.

    A crash (SIGSEGV and its kin) or a nonzero exit is the run's own doing: failed. SIGKILL and the like come from
    outside (an out-of-memory killer, a person): interrupted, until it happened `MAX_KILLS` times to the same run.
    """
    if returncode >= 0:
        return Cause(RunStatus.FAILED, "exit", f"the worker ended with exit code {returncode}")
    number = -returncode
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    if number in _CRASHES:
        return Cause(RunStatus.FAILED, "crash", f"the worker crashed ({name})")
    if kills_before + 1 >= MAX_KILLS:
        return Cause(RunStatus.FAILED, "killed", f"the worker was killed {MAX_KILLS} times ({name}); out of host memory?")
    return Cause(RunStatus.INTERRUPTED, "killed", f"the worker was killed ({name})")
