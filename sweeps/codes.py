"""What was done under which code: the done runs of a sweep, by the version of `em_core` that trained them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from em_core.attempts import Attempt, JobTry, read_job_try
from em_core.journal import Record, sweeps_under
from launchers.snapshot import code_digest
from sweeps.observe import Observer
from sweeps.reconcile import View


@dataclass(frozen=True)
class CodeRuns:
    """Done runs under one version of `em_core`.

    `code` is its digest (None: not recorded), `commits` those it was found in (`-dirty`: the copy was edited), `runs` how many
    done runs it trained, `here` whether it is the version that this process has.
    """

    code: str | None
    commits: tuple[str, ...]
    runs: int
    here: bool

    def __str__(self) -> str:
        commits = ", ".join(c[:9] + "-dirty" * c.endswith("-dirty") for c in self.commits[:3])
        more = ", ..." if len(self.commits) > 3 else ""
        said = f" (commit {commits}{more})" if commits else ""
        here = ", the code that is here" if self.here else ""
        return f"{self.runs:,} done under em_core {self.code or 'of a version that was not recorded'}{said}{here}"


def done_under(observer: Observer, view: View) -> list[CodeRuns]:
    """The codes of a sweep's done runs: what is here first, then by how many runs they trained."""
    starts = _starts(observer.tries())
    winners = [a for r, a in view.winners.items() if view.states[r].is_outcome()]
    elsewhere = {(a.job, a.try_) for a in winners if _name(a) not in starts}
    for other in sweeps_under(observer.sweep.root) if elsewhere else ():
        paths = [other.journal(job, try_) for job, try_ in elsewhere]
        starts = _starts(read_job_try(p) for p in paths if p.is_file()) | starts
    runs: dict[str | None, int] = {}
    commits: dict[str | None, dict[str, None]] = {}
    for a in winners:
        start = starts.get(_name(a), {})
        code, commit = start.get("code"), start.get("commit")
        runs[code] = runs.get(code, 0) + 1
        if commit:
            commits.setdefault(code, {})[commit + "-dirty" * bool(start.get("dirty"))] = None
    here = code_digest()
    found = [CodeRuns(code, tuple(commits.get(code, ())), n, code == here) for code, n in runs.items()]
    return sorted(found, key=lambda c: (not c.here, -c.runs))


def _starts(tries: Iterable[JobTry]) -> dict[tuple[str, float], Record]:
    """The start of its job, by attempt."""
    return {_name(a): t.start for t in tries if t.start for a in t.attempts}


def _name(a: Attempt) -> tuple[str, float]:
    """An attempt among those of all sweeps: job names are a sweep's own, so the time tells them apart."""
    return a.attempt_id, a.start.get("t", 0.0)
