"""(what is wanted, what the journals prove, what the scheduler says) -> what to do next. Pure: nothing is read or sent.

Journals are believed first, the scheduler second. A run is missing only when no living job could still do it; a job is
dead only when the scheduler was asked and says so, never because it could not be asked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from em_core.attempts import Attempt, JobTry, winner
from em_core.config import steps_within
from em_core.journal import RunStatus
from launchers.base import JobState
from launchers.causes import CANCELLED, HOST_MEMORY, PARENT_GONE
from sweeps.chains import Checkpoint, Starts, Verdict
from sweeps.manifest import Manifest

Need = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class SubmittedJob:
    """A job that was handed (or about to be handed) to a launcher. `id` is None while no answer was recorded.

    `cause` is why it is known to have ended; empty while it may live. An `open` job is told of runs while it lives, of some
    more than once (`times`, where it is not 1), and does not come back once it has ended; `mem_gb` is the host memory per run
    that it asked for, None where it took what the cluster gives.
    """

    name: str
    token: str
    launcher: str
    id: str | None
    runs: frozenset[str]
    cause: str = ""
    open: bool = False
    times: Mapping[str, int] = field(default_factory=dict)
    mem_gb: float | None = None


@dataclass(frozen=True)
class View:
    """Where every run stands, and what that asks for.

    `live` and `unheard` are names of jobs that may still do something; of the latter the scheduler says nothing. `jobs` are
    all that were ever submitted, `tries` what their journals tell.
    `troubles` counts the bad luck of runs to train, by cause; `tried` counts all attempts of the sweep.
    `again` are runs that are done and to be trained again for a checkpoint that children start from; True: it was
    made often enough, and is gone all the same. `blocked` says of runs that cannot start why. `unready` names, for those of
    `unmeasured` whose start is gone, the run to train again first (None: there is none now).
    """

    states: Mapping[str, RunStatus]
    train: tuple[str, ...]
    evaluate: Mapping[str, Need]
    unmeasured: tuple[str, ...]
    live: frozenset[str]
    winners: Mapping[str, Attempt]
    unheard: frozenset[str] = frozenset()
    troubles: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    tried: int = 0
    again: Mapping[str, bool] = field(default_factory=dict)
    blocked: Mapping[str, str] = field(default_factory=dict)
    unready: Mapping[str, str | None] = field(default_factory=dict)
    jobs: tuple[SubmittedJob, ...] = ()
    tries: tuple[JobTry, ...] = ()

    def count(self, *states: RunStatus) -> int:
        return sum(s in states for s in self.states.values())

    @property
    def done(self) -> int:
        """Runs with an outcome: completed or diverged."""
        return self.count(RunStatus.COMPLETED, RunStatus.DIVERGED)


def reconcile(
    manifest: Manifest,
    tries: Iterable[JobTry],
    jobs: Collection[SubmittedJob],
    job_states: Mapping[str, JobState],
    checkpoints: Mapping[str, Collection[int]] | None = None,
    done_elsewhere: Mapping[str, Attempt] | None = None,
    starts: Collection[Checkpoint] = (),
) -> View:
    """Judge every wanted run and say which to train and which kept checkpoints to evaluate.

    `job_states`: by job name, from the launchers; a job without an entry is unknown and waited for.
    `checkpoints`: for runs that lack a measurement, the steps whose checkpoints were kept.
    `done_elsewhere`: winners of the same runs in other sweeps of this root; a run is trained once.
    `starts`: checkpoints of parents, anywhere under the root.
    """
    tries = tuple(tries)
    attempts: dict[str, list[Attempt]] = {}
    finished_jobs: set[str] = set()
    fed = {j.name for j in jobs if j.open}
    for t in tries:
        if t.ended == "done" or (t.ended and t.job in fed):
            finished_jobs.add(t.job)
        for a in t.attempts:
            attempts.setdefault(a.run_id, []).append(a)
    states_of = {j.name: job_states.get(j.name, JobState.UNKNOWN) for j in jobs if j.name not in finished_jobs}
    live = {name for name, state in states_of.items() if state is not JobState.GONE}
    promised: dict[str, dict[str, int]] = {}
    last_job: dict[str, SubmittedJob] = {}
    for j in jobs:
        for run_id in j.runs:
            last_job[run_id] = j
            if j.name in live:
                promised.setdefault(run_id, {})[j.name] = j.times.get(run_id, 1)

    states: dict[str, RunStatus] = {}
    winners: dict[str, Attempt] = {}
    train: list[str] = []
    evaluate: dict[str, Need] = {}
    unmeasured: list[str] = []
    bad_luck: dict[str, Mapping[str, int]] = {}
    wanted: dict[int, Need] = {}
    chains = Starts(manifest, states, attempts, promised, starts)
    for run_id in manifest.runs:
        mine = attempts.get(run_id, [])
        best = winner(mine) or (done_elsewhere or {}).get(run_id)
        if best is not None:
            winners[run_id] = best
        if run_id in manifest.excluded:
            states[run_id] = RunStatus.EXCLUDED
            continue
        if best is not None:
            states[run_id] = best.status
            need = () if best.status is RunStatus.DIVERGED else _unmeasured(manifest, run_id, [*mine, best], wanted)
            if need and not promised.get(run_id):
                kept = (checkpoints or {}).get(run_id, ())
                # An evaluation that failed is not repeated by itself either.
                failed = sum(a.status is RunStatus.FAILED for a in mine) > manifest.forgiven.get(run_id, 0)
                possible = () if failed else tuple((i, s) for i, s in need if s in kept or (s == 0 and chains.is_there(run_id)))
                if possible:
                    evaluate[run_id] = possible
                if len(possible) < len(need):
                    unmeasured.append(run_id)
            continue
        states[run_id] = _unfinished(mine, promised.get(run_id, {}), manifest.forgiven.get(run_id, 0))
        was_cancelled = run_id in last_job and last_job[run_id].cause == CANCELLED
        if was_cancelled and states[run_id] in (RunStatus.NEW, RunStatus.INTERRUPTED):  # with its job, perhaps before it began
            states[run_id] = RunStatus.CANCELLED
        if states[run_id] in (RunStatus.NEW, RunStatus.INTERRUPTED, RunStatus.CANCELLED):
            train.append(run_id)
            if found := troubles(mine):
                bad_luck[run_id] = found
    # A parent may stand below its child in the manifest: children are judged when all else is known.
    judged = {r: chains.judge(r) for r in (*train, *unmeasured)}
    held = {r: judged[r] for r in train if judged[r].verdict is not Verdict.READY}
    states |= {r: RunStatus(of.verdict) for r, of in held.items()}
    again = {of.again: chains.in_vain(of.again) for of in held.values() if of.again}
    blocked = {r: of.why for r, of in held.items() if of.verdict is Verdict.BLOCKED}
    unready = {r: judged[r].again for r in unmeasured if judged[r].verdict is not Verdict.READY}
    unheard = frozenset(name for name in live if states_of[name] is JobState.UNKNOWN)
    tried = sum(len(of_run) for of_run in attempts.values())
    return View(
        states, tuple(r for r in train if r not in held), evaluate, tuple(unmeasured), frozenset(live), winners, unheard,
        bad_luck, tried, again, blocked, unready, tuple(jobs), tries,
    )  # fmt: skip


def troubles(mine: Iterable[Attempt]) -> Counter[str]:
    """How often a run met each kind of bad luck since it last failed, by cause."""
    counts: Counter[str] = Counter()
    for a in sorted(mine, key=lambda a: (a.job, a.try_, a.number)):
        if a.status is RunStatus.FAILED:
            counts.clear()
        elif a.status is RunStatus.INTERRUPTED:
            counts[a.cause] += 1
    return counts


def _unfinished(mine: list[Attempt], promised_by: Mapping[str, int], forgiven: int) -> RunStatus:
    """The state of a run without an outcome. `promised_by`: living jobs that were told of it, and how often."""
    if any(a.status is RunStatus.RUNNING and a.job in promised_by for a in mine):
        return RunStatus.RUNNING
    failures = sum(a.status is RunStatus.FAILED for a in mine)
    # A job does not come back to what failed in it, nor to what needs more memory than it has, or a parent.
    handled = Counter(
        a.job for a in mine if a.status in (RunStatus.FAILED, RunStatus.CANCELLED) or a.cause in (HOST_MEMORY, PARENT_GONE)
    )
    if any(handled[job] < times for job, times in promised_by.items()):
        return RunStatus.QUEUED
    if failures > forgiven:
        return RunStatus.FAILED
    if not mine:
        return RunStatus.NEW
    last = max(mine, key=lambda a: (a.job, a.try_, a.number))
    return RunStatus.CANCELLED if last.status is RunStatus.CANCELLED else RunStatus.INTERRUPTED


def _unmeasured(manifest: Manifest, run_id: str, attempts: Iterable[Attempt], known: dict[int, Need]) -> Need:
    """(eval_id, step) pairs that the spec wants of a completed run and no completed attempt has. `known`: what it wants of
    runs of so many steps, filled in here."""
    has = {
        (i, s) for a in attempts if a.status.is_outcome() for i, steps in a.start.get("measures", ()) for s in steps
    }  # fmt: skip
    max_steps = manifest.configs[manifest.runs[run_id].config_id].training.max_steps
    if max_steps not in known:
        evaluations = manifest.wanted_evaluations
        known[max_steps] = tuple((i, s) for i, _, steps in evaluations for s in steps_within(steps, max_steps))
    return tuple(pair for pair in known[max_steps] if pair not in has)
