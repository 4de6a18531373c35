"""`status`: where the runs of each sweep stand and why attempts ended, from one look per sweep."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from analysis.tables import text_table
from em_core.attempts import Attempt, JobTry
from em_core.journal import RunStatus, SweepDir, read_records
from launchers.causes import CANCELLED, LOST
from launchers.halting import halted
from sweeps.logs import slurm_log
from sweeps.manifest import EXPLORE, LEFT_THE_SPEC, Manifest, find_sweep, read_manifest
from sweeps.observe import Observer
from sweeps.reconcile import SubmittedJob, View
from sweeps.site import Site
from sweeps.spec import load_site

ORDER = (
    RunStatus.COMPLETED, RunStatus.DIVERGED, RunStatus.RUNNING, RunStatus.QUEUED, RunStatus.NEW, RunStatus.WAITING,
    RunStatus.BLOCKED, RunStatus.FAILED, RunStatus.INTERRUPTED, RunStatus.CANCELLED, RunStatus.EXCLUDED,
)  # fmt: skip
NEWEST_FAILURES = 5
WATCH_EVERY = 5.0
"""Seconds between two looks of `status --watch`."""


@dataclass(frozen=True)
class Why:
    """One cause of ends: how many attempts it ended, when last (seconds since the epoch), and the newest example."""

    cause: str
    attempts: int
    t: float | None
    newest: str
    message: str


@dataclass(frozen=True)
class SeedCounts:
    """A seed budget so far: its `looks` (seeds per config at each), and how many configs have how many seeds."""

    looks: list[int]
    half_width: float
    configs: dict[int, int]

    def __str__(self) -> str:
        have = ", ".join(f"{n:,} config{'s' * (n != 1)} with {seeds}" for seeds, n in sorted(self.configs.items()))
        runs, most = sum(k * n for k, n in self.configs.items()), sum(self.configs.values()) * self.looks[-1]
        said = f"seeds {self.looks[0]} to {self.looks[-1]} until ±{self.half_width:g}"
        return f"{said}: {have}; {runs:,} of at most {most:,} runs"


def seed_counts(manifest: Manifest) -> SeedCounts | None:
    """How far a seed budget has got, from the manifest alone; None where the spec has none."""
    looks = manifest.spec.get("seed_looks")
    if not looks:
        return None
    per_config = Counter(
        r.config_id
        for r in manifest.runs.values()
        if r.stage == EXPLORE and r.seed < looks[-1] and not r.repeat and manifest.excluded.get(r.run_id) != LEFT_THE_SPEC
    )
    return SeedCounts(looks, manifest.spec["half_width"], dict(Counter(per_config.values())))


@dataclass(frozen=True)
class Standing:
    """What one look at a sweep tells. `failures`: (run, message) of the newest runs that count as failed."""

    sweep: str
    view: View
    whys: list[Why]
    failures: list[tuple[str, str]]
    halted: str | None
    seeds: SeedCounts | None = None

    def as_json(self) -> dict[str, Any]:
        return {
            "sweep": self.sweep,
            "runs": len(self.view.states),
            **{str(s): self.view.count(s) for s in ORDER},
            "live_jobs": len(self.view.live),
            "unheard_jobs": len(self.view.unheard),
            "blocked_by": dict(self.view.blocked),
            "halted": self.halted,
            "seed_budget": asdict(self.seeds) if self.seeds else None,
            "causes": [asdict(w) for w in self.whys],
            "failures": [{"run_id": run_id, "message": message} for run_id, message in self.failures],
        }


def stand(observer: Observer, every: float = 0.0) -> Standing:
    """Look once at a sweep; the scheduler is asked at most once per `every` seconds."""
    manifest = read_manifest(observer.sweep)
    view = observer.look(manifest, every=every)
    tries = observer.tries()
    whys = [*why_ended(tries), *_never_began(observer.sweep, observer.jobs(), tries, view)]
    return Standing(observer.sweep.sweep, view, whys, _failures(tries, view), halted(observer.sweep), seed_counts(manifest))


def why_ended(tries: Iterable[JobTry]) -> list[Why]:
    """The causes for which attempts ended, the most frequent first."""
    found: dict[str, list[Attempt]] = {}
    for t in tries:
        for a in t.attempts:
            if a.cause:
                found.setdefault(a.cause, []).append(a)
    whys = []
    for cause, attempts in found.items():
        newest = max(attempts, key=_ended_at)
        end = newest.end or {}
        whys.append(Why(cause, len(attempts), end.get("t") or None, newest.run_id, _first_line(end.get("message"))))
    return sorted(whys, key=lambda w: (-w.attempts, w.cause))


def _never_began(sweep: SweepDir, jobs: Iterable[SubmittedJob], tries: Iterable[JobTry], view: View) -> list[Why]:
    """Slurm jobs that are gone and never wrote a journal: a broken environment, or a node without the shared folder."""
    began = {t.job for t in tries}
    gone = [j for j in jobs if j.launcher == "slurm" and j.name not in began and j.name not in view.live]
    gone = [j for j in gone if j.cause != CANCELLED and not any(read_records(sweep.assignment(j.name), (b'{"kind":"stop"',)))]
    if not gone:
        return []
    newest = max(gone, key=lambda j: j.name)
    return [Why(newest.cause or LOST, len(gone), None, f"job {newest.name}", f"never began{_last_words(sweep, newest)}")]


def _last_words(sweep: SweepDir, job: SubmittedJob) -> str:
    """The last line that Slurm caught of a job, as ` (line)`."""
    path = slurm_log(sweep, job.id or "", "err")
    lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()] if path.is_file() else []
    return f" ({lines[-1].strip()})" if lines else ""


def _failures(tries: Iterable[JobTry], view: View) -> list[tuple[str, str]]:
    failed = [a for t in tries for a in t.attempts if a.status is RunStatus.FAILED and a.end]
    newest = {a.run_id: a for a in sorted(failed, key=_ended_at) if view.states.get(a.run_id) is RunStatus.FAILED}
    return [(r, str((a.end or {}).get("message"))) for r, a in list(newest.items())[-NEWEST_FAILURES:]]


def _ended_at(a: Attempt) -> tuple[float, str, int]:
    return ((a.end or {}).get("t") or 0.0, a.job, a.number)


def _first_line(message: Any) -> str:
    return (str(message or "").splitlines() or [""])[0]


def _table(standings: Sequence[Standing]) -> Table:
    """One row per sweep: how many runs stand where."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("sweep", no_wrap=True)
    columns = [s for s in ORDER if any(st.view.count(s) for st in standings)] or [RunStatus.NEW]
    table.add_column("runs", justify="right")
    for s in columns:
        table.add_column(str(s), justify="right")
    table.add_column("live jobs", justify="right")
    for st in standings:
        counts = (f"{st.view.count(s):,}" for s in columns)
        table.add_row(st.sweep, f"{len(st.view.states):,}", *counts, str(len(st.view.live)))
    return table


def _notes(st: Standing, alone: bool) -> list[str]:
    """Below the table: what stops a sweep, what is not known, why attempts ended, which runs failed."""
    of = "" if alone else f"{st.sweep}: "
    notes = []
    if st.halted:
        notes.append(f"{of}stopped: {st.halted}. `emsweep retry {st.sweep}` lets it go on.")
    if st.view.unheard:
        notes.append(f"{of}no scheduler answer about {len(st.view.unheard):,} jobs: they are waited for, never taken for dead")
    if st.seeds:
        notes.append(f"{of}{st.seeds}")
    if st.whys:
        rows = [{"why attempts ended": w.cause, "attempts": w.attempts, "newest": _example(w)} for w in st.whys]
        notes += [*([""] if alone else ["", f"{st.sweep}:"]), *text_table(rows)]
    notes += [f"{run_id}: {message}" for run_id, message in st.failures]
    notes += [f"{run_id} cannot start: {why}" for run_id, why in list(st.view.blocked.items())[:NEWEST_FAILURES]]
    return notes


def _example(w: Why) -> str:
    when = "" if w.t is None else time.strftime("%F %H:%M ", time.localtime(w.t))
    return f"{when}{w.newest}" + (f": {w.message}" if w.message else "")


def _shown(standings: Sequence[Standing]) -> list[RenderableType]:
    lines = [line for st in standings for line in _notes(st, len(standings) == 1)]
    return [_table(standings), *(Text(line) for line in lines)]


def print_status(root: Path, names: Sequence[str], console: Console) -> None:
    """Print where everything stands."""
    for part in _shown([stand(Observer(find_sweep(root, name))) for name in names]):
        console.print(part, soft_wrap=True)


def status_record(root: Path, names: Sequence[str]) -> list[dict[str, Any]]:
    """The same as data."""
    return [stand(Observer(find_sweep(root, name))).as_json() for name in names]


def watch_status(root: Path, names: Sequence[str], console: Console) -> None:
    """Print until nothing is alive; Ctrl-C leaves the sweep alone. The scheduler is asked as often as the site allows."""
    from rich.live import Live

    observers = [Observer(find_sweep(root, name)) for name in names]
    every = max(_site_of(observer.sweep).poll_seconds for observer in observers)
    with Live(console=console, auto_refresh=False) as live:
        while True:
            standings = [stand(observer, every) for observer in observers]
            live.update(Group(*_shown(standings)), refresh=True)
            if not any(st.view.live for st in standings):
                return
            time.sleep(WATCH_EVERY)


def _site_of(sweep: SweepDir) -> Site:
    """The site file that the sweep's spec meets."""
    return load_site(Path(read_manifest(sweep).spec.get("spec_path") or "spec.yaml"))
