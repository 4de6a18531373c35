"""Gathers the evidence of a sweep (manifest, submissions, journals, scheduler) and has it judged by `reconcile`."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from pathlib import Path

from em_core.journal import (
    Attempt,
    JobTry,
    JobTryReader,
    SweepDir,
    append_batch,
    read_job_try,
    read_records,
    sweeps_under,
    winner,
)
from launchers.base import JobState, Launcher
from launchers.local import LocalLauncher
from launchers.slurm import SlurmLauncher
from sweeps.manifest import Manifest, read_manifest
from sweeps.reconcile import SubmittedJob, View, reconcile

ADOPT_AFTER = 60.0
"""Seconds after which a submission that no scheduler knows is taken to have never happened."""


def launcher_for(name: str, sweep: SweepDir) -> Launcher:
    return SlurmLauncher(sweep) if name == "slurm" else LocalLauncher(sweep)


class Observer:
    """Looks at one sweep again and again, reading only journals that grew."""

    def __init__(self, sweep: SweepDir) -> None:
        self.sweep = sweep
        self.launchers: dict[str, Launcher] = {name: launcher_for(name, sweep) for name in ("local", "slurm")}
        self._readers: dict[Path, tuple[JobTryReader, int, JobTry]] = {}
        self._asked: dict[str, tuple[float, dict[str, JobState]]] = {}
        self._elsewhere: dict[str, Attempt] | None = None

    def look(self, manifest: Manifest | None = None, every: float = 0.0) -> View:
        """Judge the sweep now. The scheduler is asked at most once per `every` seconds; between, its last word counts."""
        manifest = manifest or read_manifest(self.sweep)
        jobs = self.jobs()
        states = self._states(jobs, every)
        tries = self.tries()
        if self._elsewhere is None:
            self._elsewhere = _done_elsewhere(self.sweep, manifest)
        checkpoints = _checkpoints(self.sweep, manifest.runs) if self.sweep.checkpoints.is_dir() else {}
        return reconcile(manifest, tries, jobs, states, checkpoints, self._elsewhere)

    def tries(self) -> list[JobTry]:
        """Every job try's states, in winning order."""
        found = []
        for path in self.sweep.all_journals():
            size = path.stat().st_size
            reader, known, told = self._readers.get(path, (None, -1, None))
            if reader is None or told is None or known != size or told.torn:
                reader = reader or JobTryReader(path)
                told = reader.read()
                self._readers[path] = (reader, size, told)
            found.append(told)
        return found

    def jobs(self) -> list[SubmittedJob]:
        """Every job that was ever handed to a launcher; an unanswered submission is looked up and adopted."""
        return _submitted(self.sweep)

    def _states(self, jobs: list[SubmittedJob], every: float) -> dict[str, JobState]:
        done = {t.job for t in self.tries() if t.ended == "done"}
        answer: dict[str, JobState] = {}
        for name, launcher in self.launchers.items():
            open_jobs = [j for j in jobs if j.launcher == name and j.name not in done]
            if not open_jobs:
                continue
            asked_at, told = self._asked.get(name, (0.0, {}))
            if name == "local" or time.monotonic() - asked_at >= every or any(j.name not in told for j in open_jobs):
                told = self._ask(launcher, open_jobs)
                self._asked[name] = (time.monotonic(), told)
            answer |= told
        return answer

    def _ask(self, launcher: Launcher, jobs: list[SubmittedJob]) -> dict[str, JobState]:
        """States by job name. A batch without a recorded answer is looked up by its token."""
        ids = {j.name: j.id for j in jobs}
        gone: set[str] = set()
        for token in {j.token for j in jobs if j.id is None}:
            batch = [j for j in self.jobs() if j.token == token]  # the whole batch: some may have ended already
            found = launcher.find(token, len(batch)) if launcher.name != "local" else [j.name for j in batch]
            if found:
                append_batch(self.sweep.submissions, [("submitted", {"token": token, "ids": found, "t": time.time()})])
                ids |= {j.name: i for j, i in zip(batch, found, strict=True) if j.name in ids}
            elif found is not None and time.time() - _intent_time(self.sweep, token) > ADOPT_AFTER:
                gone |= {j.name for j in batch}
        known = {name: i for name, i in ids.items() if i is not None}
        told = launcher.states(list(known.values()))
        states = {name: told.get(i, JobState.UNKNOWN) for name, i in known.items()}
        return {j.name: JobState.GONE if j.name in gone else states.get(j.name, JobState.UNKNOWN) for j in jobs}


def _submitted(sweep: SweepDir) -> list[SubmittedJob]:
    records = list(read_records(sweep.submissions))
    answers = {r["token"]: r["ids"] for r in records if r["kind"] == "submitted"}
    refused = {r["token"] for r in records if r["kind"] == "refused"}
    jobs = []
    for r in records:
        if r["kind"] != "intent" or r["token"] in refused:
            continue
        ids = answers.get(r["token"])
        ids = ids if ids and len(ids) == len(r["jobs"]) else None
        for i, name in enumerate(r["jobs"]):
            jobs.append(SubmittedJob(name, r["token"], r["launcher"], ids[i] if ids else None, frozenset(r["runs"][i])))
    return jobs


def _intent_time(sweep: SweepDir, token: str) -> float:
    return next(float(r["t"]) for r in read_records(sweep.submissions) if r["kind"] == "intent" and r["token"] == token)


def _checkpoints(sweep: SweepDir, runs: Iterable[str]) -> dict[str, set[int]]:
    """Steps of complete checkpoints on disk, by run. A checkpoint folder gets its name when it is complete."""
    found: dict[str, set[int]] = {}
    wanted = set(runs)
    for path in sweep.checkpoints.glob("*/step-*"):
        if path.parent.name in wanted and path.name.removeprefix("step-").isdigit():
            found.setdefault(path.parent.name, set()).add(int(path.name.removeprefix("step-")))
    return found


def _done_elsewhere(sweep: SweepDir, manifest: Manifest) -> dict[str, Attempt]:
    """Winners of this sweep's runs in the other sweeps of its root: a run is trained once, whoever wants it."""
    found: dict[str, list[Attempt]] = {}
    for other in sweeps_under(sweep.root):
        if other.sweep == sweep.sweep:
            continue
        theirs = {m.decode() for m in re.findall(rb'"run_id":"([^"]+)"', other.manifest.read_bytes())}
        if not theirs & manifest.runs.keys():
            continue
        for path in other.all_journals():
            for a in read_job_try(path).attempts:
                if a.run_id in manifest.runs:
                    found.setdefault(a.run_id, []).append(a)
    winners = {run_id: winner(attempts) for run_id, attempts in found.items()}
    return {run_id: w for run_id, w in winners.items() if w is not None}
