"""How jobs ended: the scheduler's word and the supervisor's, made into one cause, recorded once, and believed from then on.

An attempt whose job died has no end in its journal. The holder of the sweep's lock writes one `ended` record per try of a
job into `submissions.jsonl`; everybody reads the attempts of that try as it says. A journal that says more, later, wins.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from em_core.attempts import Attempt, JobTry
from em_core.journal import Record, RunStatus, SweepDir, append_batch
from launchers.base import Ended, JobState, Launcher
from launchers.causes import CANCELLED, CANCELLED_BY_A_PERSON, LOST, STOPPED, TIME_LIMIT, of_job, worn_out
from launchers.task import SOON
from sweeps.reconcile import SubmittedJob, troubles


@dataclass(frozen=True)
class JobEnd:
    """One `ended` record. `given_up`: runs for which this was once too often."""

    job: str
    try_: int
    cause: str
    state: str
    node: str | None
    given_up: frozenset[str]
    t: float


def read_end(r: Record) -> JobEnd:
    return JobEnd(r["job"], r["try"], r["cause"], r["state"], r.get("node"), frozenset(r["given_up"]), r["t"])


def closed(tries: Iterable[JobTry], ends: Mapping[tuple[str, int], JobEnd]) -> list[JobTry]:
    """The job tries with an end for every attempt whose try is known to be over."""
    tries = list(tries)
    last: dict[str, int] = {}
    for t in tries:
        last[t.job] = max(t.try_, last.get(t.job, 0))
    found = []
    for t in tries:
        end = ends.get((t.job, t.try_))
        if end is None and t.try_ < last[t.job]:  # the job was tried again, so that try is over
            end = JobEnd(t.job, t.try_, STOPPED, "", None, frozenset(), 0.0)
        found.append(t if end is None else replace(t, attempts=tuple(_close(a, end) for a in t.attempts)))
    return found


def _close(a: Attempt, end: JobEnd) -> Attempt:
    stopped = a.status is RunStatus.INTERRUPTED and a.cause == STOPPED
    if a.status is not RunStatus.RUNNING and not (stopped and end.cause != LOST):
        return a
    status = RunStatus.CANCELLED if end.cause == CANCELLED else RunStatus.INTERRUPTED
    if a.run_id in end.given_up:
        status = RunStatus.FAILED
    told = {**(a.end or {"t": end.t, "seconds": None, "steps": 0, "traceback": ""}), "cause": end.cause}
    where = f" on {end.node}" if end.node else ""
    told["message"] = f"its job ended{where}: {end.state or end.cause}"
    return replace(a, status=status, end=told)


def settle(
    sweep: SweepDir,
    jobs: Iterable[SubmittedJob],
    tries: Iterable[JobTry],
    states: Mapping[str, JobState],
    known: Mapping[tuple[str, int], JobEnd],
    launchers: Mapping[str, Launcher],
    limits: Mapping[str, int],
) -> bool:
    """Record how every try that is over ended, where its own journal does not say it was done. True when something was.

    `tries` are closed ones. The caller holds the sweep's lock. `limits`: how often a run may meet each cause.
    """
    tries = list(tries)
    by_job: dict[str, dict[int, JobTry]] = defaultdict(dict)
    mine: dict[str, list[Attempt]] = defaultdict(list)
    for t in tries:
        by_job[t.job][t.try_] = t
        for a in t.attempts:
            mine[a.run_id].append(a)
    over: list[tuple[SubmittedJob, int]] = []
    for j in jobs:
        its = by_job[j.name]
        last = max(its, default=0)
        numbers = [n for n in its if n < last] + ([last] if states.get(j.name) is JobState.GONE else [])
        over += [(j, n) for n in numbers if (j.name, n) not in known and not (n in its and its[n].ended == "done")]
    if not over:
        return False
    words: dict[str, list[Ended]] = {}
    for name, launcher in launchers.items():
        said = launcher.ends([j.id for j, _ in over if j.launcher == name and j.id])
        if said is None:
            over = [(j, n) for j, n in over if j.launcher != name]
        words |= said or {}
    records = []
    for j, n in over:
        told, last = words.get(j.id or "", []), max(by_job[j.name], default=0)
        word = told[n] if n < len(told) and len(told) > last else told[-1] if told and n == last else Ended("")
        found = by_job[j.name].get(n)
        cause = _cause(word.word, found, j.open)
        given_up = [
            a.run_id
            for a in (found.attempts if found else ())
            if _unended(a) and _too_often(a, found, cause, mine, limits, _saved(sweep, a.run_id), j.open)
        ]
        fields = {"job": j.name, "try": n, "cause": cause, "state": word.word, "node": word.node, "mem_gb": word.mem_gb}
        records.append(("ended", {**fields, "given_up": given_up, "t": time.time()}))
    append_batch(sweep.submissions, records)
    return True


def _cause(word: str, t: JobTry | None, fed: bool) -> str:
    """The supervisor's reason where it left one that explains itself, else the scheduler's word.

    Of an open job (`fed`) that a person took away by hand the runs are done by another; `emsweep cancel` ends a study.
    """
    reason = t.ended if t is not None else None
    if reason == CANCELLED_BY_A_PERSON:
        return CANCELLED
    if reason == TIME_LIMIT:
        return TIME_LIMIT
    found = of_job(word)
    if found == CANCELLED and fed:
        return STOPPED
    return STOPPED if found == LOST and (reason is not None or word == "REQUEUED") else found


def _saved(sweep: SweepDir, run_id: str) -> bool:
    """Whether the run left a state that another try goes on from."""
    return any(sweep.run_checkpoints(run_id).glob("resume*"))


def _unended(a: Attempt) -> bool:
    return a.status is RunStatus.RUNNING or (a.end or {}).get("t") == 0.0


def _too_often(
    a: Attempt, t: JobTry | None, cause: str, mine: Mapping[str, list[Attempt]], limits: Mapping[str, int], saved: bool, fed: bool
) -> bool:
    if cause == TIME_LIMIT and t is not None and not saved:  # it had the whole job to itself, and that was not enough
        slot = a.start.get("slot")
        late = fed and a.start.get("t", 0.0) - (t.start or {}).get("t", 0.0) > SOON
        if not late and not any(b is not a and b.start.get("slot") == slot for b in t.attempts):
            return True
    return worn_out(cause, troubles(b for b in mine[a.run_id] if b is not a)[cause] + 1, limits)
