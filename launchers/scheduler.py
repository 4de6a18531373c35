"""What Slurm says when it is asked: one squeue, and one sacct for what left the queue. Its answers are evidence, never orders.

A query that fails, hangs or cannot be read gives None: unknown. An answer that lacks a job proves nothing by itself: it
may be half an answer, or yesterday's. `Witness.states` says when several together do.
"""

from __future__ import annotations

import getpass
import re
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from launchers.base import Ended, JobState, Limits

QUERY_TIMEOUT = 30
"""Seconds after which a scheduler that does not answer counts as not answering."""
FRESH = 2.0
"""Seconds during which one answer of squeue serves every sweep that this process looks at."""
SETTLE = 5.0
"""Seconds a job must be over before it is believed: its last journal lines may still be on their way."""
GRACE = 20.0
"""Seconds a job must be missing, seen twice, where nobody knows when it ended."""
PENDING = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "SUSPENDED", "RESV_DEL_HOLD"}
STARTED = {"RUNNING", "COMPLETING", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING"}
LIVE = PENDING | STARTED
_SACCT = "JobID,State,End,NodeList,ReqMem,NNodes,AllocCPUS"


@dataclass(frozen=True)
class Row:
    """One try of a job in a scheduler's answer. `over_at` is in seconds since the epoch, None while it is not over."""

    word: str
    over_at: float | None
    comment: str = ""
    node: str | None = None
    mem_gb: float | None = None


class Witness:
    """Remembers what was seen between one question and the next."""

    def __init__(self) -> None:
        self._queue: tuple[float, dict[str, Row] | None] = (-FRESH, None)
        self._missing_since: dict[str, float] = {}

    def queue(self) -> dict[str, Row] | None:
        """This user's jobs by id, those that ended in the last minutes too (as long as Slurm's MinJobAge)."""
        asked_at, rows = self._queue
        if time.monotonic() - asked_at >= FRESH:
            said = ask("squeue", "--noheader", "--array", "--states=all", "--user", getpass.getuser(), "--format=%i|%T|%e|%k")
            rows = None if said is None else dict(_queued(said))
            self._queue = (time.monotonic(), rows)
        return rows

    def forget(self) -> None:
        """Ask anew next time: something was submitted or cancelled."""
        self._queue = (-FRESH, None)

    def states(self, ids: Sequence[str]) -> dict[str, JobState]:
        """A job is GONE when two witnesses agree: it left the queue, and the accounting says it ended.

        Where the accounting does not know it, the controller must say that it knows no such job either. And it must have
        been over for a while. Anything less is UNKNOWN.
        """
        listed = self.queue()
        if listed is None:
            return dict.fromkeys(ids, JobState.UNKNOWN)
        states: dict[str, JobState] = {}
        for job in ids:
            word = listed[job].word if job in listed else ""
            if word in LIVE:
                states[job] = JobState.PENDING if word in PENDING else JobState.RUNNING
                self._missing_since.pop(job, None)
        over = [job for job in ids if job not in states]
        if not over:
            return states
        remembered = accounting(over)
        now, instant = time.time(), time.monotonic()
        unknown_ids: dict[str, bool] = {}
        for job in over:
            states[job] = JobState.UNKNOWN
            first = self._missing_since.setdefault(job, instant)
            tries = (remembered or {}).get(job)
            if tries:
                if tries[-1].word in LIVE:  # the accounting is ahead of the queue's answer, or that was yesterday's
                    continue
                over_at = tries[-1].over_at
            elif job in listed:
                over_at = listed[job].over_at
            else:
                base = job.split("_")[0]
                if base not in unknown_ids:
                    unknown_ids[base] = _controller_forgot(base)
                if not unknown_ids[base]:
                    continue
                over_at = None
            if instant - first >= GRACE or (over_at is not None and now - over_at >= SETTLE):
                states[job] = JobState.GONE
        return states

    def ends(self, ids: Sequence[str]) -> dict[str, list[Ended]] | None:
        """How each ended try of these jobs ended; from the queue's last minutes, and of the newest try only, where there is
        no accounting. None where there is one that does not answer: a verdict is for good, so it can wait.
        """
        remembered = accounting(ids)
        if remembered is None and not _accounting_is_off():
            return None
        found = {
            job: [Ended(r.word, r.node, r.mem_gb) for r in rows if r.word not in LIVE or r.word == "REQUEUED"]
            for job, rows in (remembered or {}).items()
        }
        for job in ids:
            row = (self.queue() or {}).get(job)
            if job not in found and row is not None and row.word not in LIVE:
                found[job] = [Ended(row.word)]
        return found


def _queued(lines: Iterable[str]) -> Iterable[tuple[str, Row]]:
    for line in lines:
        job, word, end, comment = [*line.split("|", 3), "", "", ""][:4]
        word = word.strip()
        if word:
            yield job.strip(), Row(word, None if word in LIVE else _seconds(end), comment)


def accounting(ids: Sequence[str]) -> dict[str, list[Row]] | None:
    """Every try of these jobs as the accounting has it, oldest first; None where it is off or does not answer."""
    bases = sorted({job.split("_")[0] for job in ids})
    said = ask(
        "sacct", "--duplicates", "--noheader", "--allocations", "--parsable2", f"--format={_SACCT}", "--jobs", ",".join(bases)
    )
    if said is None:
        return None
    wanted = set(ids)
    rows: dict[str, list[Row]] = {}
    for line in said:
        fields = line.split("|")
        if len(fields) == len(_SACCT.split(",")) and fields[0] in wanted and fields[1].strip():
            job, word, end, node, mem, nodes, cpus = fields
            known = None if node in ("", "None assigned") else node
            rows.setdefault(job, []).append(Row(word, _seconds(end), "", known, _gigabytes(mem, nodes, cpus)))
    return rows


def _accounting_is_off() -> bool:
    """Whether the controller answers, and says that it keeps no accounts."""
    config = ask("scontrol", "show", "config") or []
    kept = [line.partition("=")[2].strip() for line in config if line.startswith("AccountingStorageType")]
    return bool(kept) and kept[0] in ("accounting_storage/none", "(null)", "")


def _controller_forgot(job: str) -> bool:
    """Whether the controller answers, and says that there is no such job."""
    try:
        done = subprocess.run(
            ["scontrol", "show", "job", job], capture_output=True, text=True, timeout=QUERY_TIMEOUT, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode != 0 and "Invalid job id" in done.stderr


def _seconds(text: str) -> float | None:
    """Slurm's local time as seconds since the epoch."""
    try:
        return time.mktime(time.strptime(text.strip(), "%Y-%m-%dT%H:%M:%S"))
    except (ValueError, OverflowError):
        return None


def _gigabytes(text: str, nodes: str, cpus: str) -> float | None:
    """Slurm's ReqMem (`4G`, `100M`, of older versions `100Mc` per CPU or `4Gn` per node) as GB of the whole job."""
    found = re.fullmatch(r"([\d.]+)([KMGTP]?)([cn]?)", text.strip())
    if found is None:
        return None
    each = float(found[1]) * {"K": 2**-20, "M": 2**-10, "": 2**-10, "G": 1.0, "T": 2**10, "P": 2**20}[found[2]]
    factor = {"c": cpus, "n": nodes, "": "1"}[found[3]]
    return each * int(factor) if factor.isdigit() else None


def limits(witness: Witness) -> Limits:
    """MaxArraySize from the controller; the tightest MaxSubmitJobs of this user's associations and their QOS."""
    listed = witness.queue() or {}
    return Limits(_array_size(), _submitted_jobs(), sum(row.word in LIVE for row in listed.values()))


def _array_size() -> int | None:
    lines = (line.partition("=") for line in _settings("scontrol", "show", "config"))
    sizes = [value.strip() for name, _, value in lines if name.strip() == "MaxArraySize"]
    return int(sizes[0]) if sizes and sizes[0].isdigit() else None


def _submitted_jobs() -> int | None:
    assoc = ("show", "assoc", f"user={getpass.getuser()}", "format=MaxSubmitJobs,QOS,DefaultQOS")
    rows = [line.split("|") for line in _settings("sacctmgr", "--noheader", "--parsable2", *assoc) if line.count("|") == 2]
    numbers = {int(own) for own, _, _ in rows if own.isdigit()}
    mine = {name for _, allowed, default in rows for name in (default or allowed).split(",") if name}
    if mine:
        qos = ("show", "qos", "format=Name,MaxSubmitJobsPerUser")
        for line in _settings("sacctmgr", "--noheader", "--parsable2", *qos):
            name, _, most = line.partition("|")
            if name in mine and most.isdigit():
                numbers.add(int(most))
    return min(numbers, default=None)


def longest_minutes(partition: str | None) -> int | None:
    """The time limit of a partition's jobs (minutes; of the default one where none is named); None: there is none to know."""
    for line in _settings("sinfo", "--noheader", "--format=%P|%l"):
        name, _, said = line.strip().partition("|")
        if name == partition or (partition is None and name.endswith("*")) or name == f"{partition}*":
            found = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):\d+", said)
            return sum(int(n or 0) * each for n, each in zip(found.groups(), (1440, 60, 1), strict=True)) if found else None
    return None


def _settings(*command: str) -> tuple[str, ...]:
    """How the cluster is set up: asked once in a process, and again only after a question that failed."""
    try:
        return _answered(*command)
    except LookupError:
        return ()


@lru_cache
def _answered(*command: str) -> tuple[str, ...]:
    """Raises `LookupError`, which no cache remembers, where there is no answer."""
    said = ask(*command)
    if said is None:
        raise LookupError(command[0])
    return tuple(said)


def ask(*command: str) -> list[str] | None:
    """Lines of a scheduler command's answer, None where it failed: a failed query means unknown, never dead."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=QUERY_TIMEOUT, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.splitlines() if done.returncode == 0 else None
