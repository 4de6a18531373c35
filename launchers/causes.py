"""Why an attempt ended, and whether its run is worth another try. The words are those of the `cause` column in SQL.

A *failure* is the run's own doing (an exception, a crash): it is never repeated by itself. *Bad luck* comes from
outside (a node, a limit, memory) and is repeated, each kind up to its limit in `Retries`, counted per run since its
last failure. When a limit is reached the attempt counts as a failure.
"""

from __future__ import annotations

import hashlib
import os
import re
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from em_core.journal import Record, RunStatus

BUG, CRASH, EXIT = "exception", "crash", "exit"
KILLED, LOST, STOPPED, CANCELLED = "killed", "lost", "stopped", "cancelled"
HOST_MEMORY, GPU_MEMORY, DISK = "host out of memory", "gpu out of memory", "disk"
TIME_LIMIT, PREEMPTED, NODE_FAILURE, NON_FINITE = "time limit", "preempted", "node failure", "non-finite"
PARENT_GONE = "parent gone"
CAUSES = (
    BUG, CRASH, EXIT, KILLED, LOST, STOPPED, CANCELLED, HOST_MEMORY, GPU_MEMORY, DISK, TIME_LIMIT, PREEMPTED, NODE_FAILURE,
    NON_FINITE, PARENT_GONE,
)  # fmt: skip
"""Every word that stands in `cause`."""

CANCELLED_BY_A_PERSON = "cancelled by a person"
"""Reason in a `stop` of an assignment, and so in the `job_end` that follows it; and of a `cancel` that names no other."""

DEFAULT_LIMITS: Mapping[str, int] = {
    KILLED: 3, LOST: 5, HOST_MEMORY: 3, TIME_LIMIT: 50, PREEMPTED: 100, NODE_FAILURE: 5, PARENT_GONE: 3,
}  # fmt: skip
"""How often a run may meet each kind of bad luck before it counts as failed."""

_CRASHES = {signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT, signal.SIGTRAP, signal.SIGSYS}
_WORDS = {
    "OUT_OF_MEMORY": HOST_MEMORY, "TIMEOUT": TIME_LIMIT, "DEADLINE": TIME_LIMIT, "PREEMPTED": PREEMPTED,
    "NODE_FAIL": NODE_FAILURE, "BOOT_FAIL": NODE_FAILURE, "CANCELLED": CANCELLED,
}  # fmt: skip


@dataclass(frozen=True)
class Cause:
    """`status` the attempt gets, `cause` (see CAUSES), `message` for a person."""

    status: RunStatus
    cause: str
    message: str


def of_death(returncode: int, out_of_memory: bool = False) -> Cause:
    """The cause of a worker's death in the middle of a run.

    A crash (SIGSEGV and its kin) or a nonzero exit is the run's own doing: failed. SIGKILL and the like come from
    outside: interrupted. `out_of_memory`: the kernel killed a process of this job for its memory meanwhile.
    """
    if returncode >= 0:
        return Cause(RunStatus.FAILED, EXIT, f"the worker ended with exit code {returncode}")
    number = -returncode
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    if number in _CRASHES:
        return Cause(RunStatus.FAILED, CRASH, f"the worker crashed ({name})")
    if number == signal.SIGKILL and out_of_memory:
        return Cause(RunStatus.INTERRUPTED, HOST_MEMORY, "the kernel killed the worker: out of host memory")
    return Cause(RunStatus.INTERRUPTED, KILLED, f"the worker was killed ({name}); out of host memory?")


def of_job(word: str) -> str:
    """The cause in a scheduler's word for how a job ended (`CANCELLED by 1000` too); `lost` for any other."""
    return _WORDS.get(word.split()[0] if word.split() else "", LOST)


def worn_out(cause: str, times: int, limits: Mapping[str, int]) -> bool:
    """Whether a run that met this kind of bad luck `times` times is to be given up."""
    limit = {**DEFAULT_LIMITS, **limits}.get(cause)
    return limit is not None and times >= limit


def signature(end: Record) -> str:
    """What makes two failures the same: the traceback without numbers and addresses, else cause and message."""
    tail = str(end.get("traceback") or "")
    text = tail[tail.rfind("Traceback") :] if "Traceback" in tail else f"{end.get('cause')}: {end.get('message')}"
    return hashlib.sha256(re.sub(r"0x[0-9a-f]+|\d+", "#", text).encode()).hexdigest()[:12]


def memory_kills() -> int:
    """How often the kernel killed a process of this cgroup for its memory; 0 where that is not counted."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
        below = next(line.split("::", 1)[1] for line in lines if line.startswith("0::"))
        events = (Path("/sys/fs/cgroup") / below.lstrip("/") / "memory.events").read_text()
        return next(int(line.split()[1]) for line in events.splitlines() if line.startswith("oom_kill "))
    except (OSError, StopIteration, ValueError, IndexError):
        return 0


def granted_gb() -> float | None:
    """Host memory that Slurm gave this job (GB), None elsewhere."""
    said = os.environ
    if mb := said.get("SLURM_MEM_PER_NODE"):
        return float(mb) / 1024
    if (mb := said.get("SLURM_MEM_PER_CPU")) and (cpus := said.get("SLURM_CPUS_ON_NODE")):
        return float(mb) * float(cpus) / 1024
    return None
