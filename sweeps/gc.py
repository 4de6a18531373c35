"""`gc`: what may go from disk. Checkpoints the rule does not keep, half-written ones, states of runs that are done, old code.

Journals, manifests and logs are never touched; nor is anything that a job may be writing, or that is still to be evaluated.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from analysis.tables import text_table
from em_core.attempts import JobTry
from em_core.config import Keep
from em_core.errors import UserError
from em_core.journal import RunStatus, SweepDir, read_records, sweeps_under
from em_core.lock import locked
from launchers.base import JobState
from sweeps.chains import Checkpoint, needed_starts
from sweeps.manifest import Manifest, find_sweep, read_manifest
from sweeps.observe import Observer
from sweeps.reconcile import View
from sweeps.spec import KEEP

RESUME_STATE = "resume.pt"
"""The file in a run's checkpoint folder from which a killed run goes on (written by `em_core.resume`)."""
NOT_KEPT = "checkpoints that `keep` does not ask for"
EXCLUDED = "checkpoints of excluded runs"
HALF = "half-written checkpoints and states"
DONE = "states of runs that are done"
CODE = "code that no unfinished job uses"


@dataclass(frozen=True)
class Litter:
    """A file or folder that may go, and why."""

    path: Path
    why: str


@dataclass
class Found:
    """What may go with its `bytes`, and how much was left alone: runs of jobs that may be alive, checkpoints that are still
    to be evaluated, those that runs still to be trained start from, copies of the code while jobs are unfinished."""

    litter: list[Litter] = field(default_factory=list)
    bytes: list[int] = field(default_factory=list)
    live: int = 0
    wanted: int = 0
    starts: int = 0
    code_in_use: int = 0


def find_litter(root: Path, name: str | None, keep: Keep | None, remove: bool) -> Found:
    """Find what may go in one sweep, or in all (and then old code too). With `remove` it goes.

    For that the locks of the sweeps are held while it is judged, so that no job begins meanwhile. Raises `UserError` for a
    sweep that does not say what it keeps when no rule is given.
    """
    if keep is not None and not re.fullmatch(KEEP, keep):
        raise UserError(f"--keep {keep}: must be none, last, all or best:K with K of at least 1")
    sweeps = [find_sweep(root, name)] if name else sweeps_under(root)
    if not sweeps:
        raise UserError(f"there is no sweep under {root}")
    found = Found()
    with ExitStack() as locks:
        busy = False
        starts = _needed(root)
        for sweep in sweeps:
            if remove:
                locks.enter_context(locked(sweep.lock, f"sweep {sweep.sweep} is being changed"))
            observer = Observer(sweep)
            manifest = read_manifest(sweep)
            view = observer.look(manifest)
            busy = busy or bool(view.live) or _follow_up_waits(observer)
            _look(observer, manifest, view, keep or _own_keep(sweep, manifest), starts, found)
        if not name:
            _old_code(root, busy, found)
        if remove:  # a hidden name now, so that nobody takes half of it for a checkpoint; deleted when the locks are free
            found.litter = [Litter(_hidden(item.path), item.why) for item in found.litter]
    found.bytes = [_size(item.path) for item in found.litter]
    if remove:
        for item in found.litter:
            _delete(item.path)
        for sweep in sweeps:
            _remove_empty(sweep)
    return found


def _follow_up_waits(observer: Observer) -> bool:
    """Whether a job is queued that will go on with the sweep: it runs a copy of the code too."""
    newest = observer.follow_up()
    states = observer.launchers["slurm"].states([newest] if newest else [])
    return any(state is not JobState.GONE for state in states.values())


def _own_keep(sweep: SweepDir, manifest: Manifest) -> Keep:
    keep = manifest.spec.get("keep")
    if keep is None:
        raise UserError(f"the manifest of {sweep.sweep} does not say what it keeps: say --keep none, last, best:K or all")
    return str(keep)


def _needed(root: Path) -> set[Checkpoint]:
    """Checkpoints that runs of any sweep start from, as long as these have no outcome."""
    found: set[Checkpoint] = set()
    for sweep in sweeps_under(root):
        manifest = read_manifest(sweep)
        if any(c.training.parent for c in manifest.configs.values()):
            states = Observer(sweep).look(manifest).states
            left = (r for r, s in states.items() if not s.is_outcome() and s is not RunStatus.EXCLUDED)
            found.update(needed_starts(manifest, left))
    return found


def _look(observer: Observer, manifest: Manifest, view: View, keep: Keep, starts: Collection[Checkpoint], found: Found) -> None:
    """Judge every run's folder of one sweep."""
    sweep = observer.sweep
    folders = sorted(p for p in sweep.checkpoints.glob("*") if p.is_dir()) if sweep.checkpoints.is_dir() else []
    writing = {r for j in observer.jobs() if j.name in view.live for r in j.runs}
    accuracies = _accuracies(sweep, manifest, observer.tries()) if keep.startswith("best:") else {}
    for folder in folders:
        run_id = folder.name
        if run_id in writing:
            found.live += 1
            continue
        if run_id not in view.states:
            continue
        state = view.states[run_id]
        found.litter += [Litter(p, HALF) for p in sorted(folder.glob(".*"))]
        steps = {int(p.name.removeprefix("step-")): p for p in folder.glob("step-*") if p.name.removeprefix("step-").isdigit()}
        resume = sorted(folder.glob(RESUME_STATE))
        if state is RunStatus.EXCLUDED:
            found.litter += [Litter(p, EXCLUDED) for p in (*steps.values(), *resume)]
        elif state.is_outcome():
            found.litter += [Litter(p, DONE) for p in resume]
            wanted = {step for _, step in view.evaluate.get(run_id, ())}
            for step in sorted(steps.keys() - kept_steps(steps, keep, accuracies.get(run_id, {}))):
                if step in wanted:
                    found.wanted += 1
                elif (run_id, step) in starts:
                    found.starts += 1
                else:
                    found.litter.append(Litter(steps[step], NOT_KEPT))
        # A run that is not done goes on from what is here, or writes it again.


def kept_steps(steps: Iterable[int], keep: Keep, accuracies: Mapping[int, float]) -> set[int]:
    """Steps whose checkpoints `keep` asks for, among those there are.

    `best:K` takes the highest accuracies (a step without one comes last), the earlier step where two are equal.
    """
    there = sorted(steps)
    if keep == "all":
        return set(there)
    if keep == "none":
        return set()
    if keep == "last":
        return set(there[-1:])
    if not accuracies:  # nothing to judge by
        return set(there)
    ranked = sorted(there, key=lambda s: (-accuracies.get(s, -1.0), s))
    return set(ranked[: int(keep.removeprefix("best:"))])


def _accuracies(sweep: SweepDir, manifest: Manifest, tries: Iterable[JobTry]) -> dict[str, dict[int, float]]:
    """Run -> step -> accuracy by the spec's first evaluation, of the first attempt with an outcome that has it."""
    found: dict[str, dict[int, float]] = {}
    for t in tries:
        done = {(a.run_id, a.number) for a in t.attempts if a.status.is_outcome()}
        for r in read_records(sweep.journal(t.job, t.try_), (b'{"kind":"eval"',)) if done and manifest.measured else ():
            counts = r["accuracy"] is not None and (r["run_id"], r["attempt"]) in done  # None: logits were measured
            if r["eval_id"] == manifest.measured[0][0] and counts:
                found.setdefault(r["run_id"], {}).setdefault(r["step"], float(r["accuracy"]))
    return found


def _old_code(root: Path, busy: bool, found: Found) -> None:
    """Copies of the code under ROOT/.code. While any job is unfinished all stay: which it runs is known only once it began."""
    copies = sorted(p for p in (root / ".code").glob("*") if p.is_dir())
    if busy:
        found.code_in_use = len(copies)
    else:
        found.litter += [Litter(p, CODE) for p in copies]


def _hidden(path: Path) -> Path:
    if path.name.startswith("."):
        return path
    hidden = path.with_name(f".{path.name}.gone.{os.getpid()}")
    path.rename(hidden)
    return hidden


def _size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    return sum(p.lstat().st_size for p in (path, *path.rglob("*")) if p.is_file())


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def _remove_empty(sweep: SweepDir) -> None:
    for folder in sweep.checkpoints.glob("*"):
        with contextlib.suppress(OSError):  # not empty
            folder.rmdir()


def print_litter(found: Found, removed: bool, console: Console) -> None:
    """A row per reason: how many, how much; and what was left alone."""
    counts = Counter(item.why for item in found.litter)
    sizes: Counter[str] = Counter()
    for item, size in zip(found.litter, found.bytes, strict=True):
        sizes[item.why] += size
    rows = [{"what": why, "count": n, "MB": round(sizes[why] / 1e6, 1)} for why, n in counts.most_common()]
    for line in text_table(rows):
        console.print(line, soft_wrap=True)
    if found.live:
        console.print(f"left alone: {found.live:,} runs of jobs that may still be writing")
    if found.wanted:
        console.print(f"left alone: {found.wanted:,} checkpoints that are still to be evaluated (`emsweep run` does it)")
    if found.starts:
        console.print(f"left alone: {found.starts:,} checkpoints from which runs that are still to be trained will start")
    if found.code_in_use:
        console.print(f"left alone: {found.code_in_use:,} copies of the code, while jobs are unfinished")
    total = f"{len(found.litter):,} files and folders, {sum(found.bytes) / 1e6:,.1f} MB"
    if not found.litter:
        console.print("nothing to remove")
    else:
        console.print(f"{total} removed" if removed else f"{total} would go; nothing was touched. `--yes` removes them")
