"""Gathers the evidence of a sweep (manifest, submissions, journals, scheduler) and has it judged by `reconcile`."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from em_core.attempts import Attempt, JobTry, JobTryReader, read_job_try, winner
from em_core.journal import Record, SweepDir, append_batch, decode_all, read_lines, read_records, sweeps_under
from launchers.base import JobState, Launcher
from launchers.causes import NODE_FAILURE
from launchers.local import LocalLauncher
from launchers.slurm import SlurmLauncher
from sweeps.chains import Checkpoint, folders, needed_starts
from sweeps.ends import JobEnd, closed, read_end, settle
from sweeps.manifest import Manifest, read_manifest
from sweeps.reconcile import SubmittedJob, View, reconcile

OUTAGE = 600.0
"""Seconds within which the deaths of a node's jobs count as one failure of the node."""
FORGIVE_NODE = 86_400.0
"""Seconds after which a failure of a node is forgotten."""
ADOPT_AFTER = 60.0
"""Seconds after which a submission that no scheduler knows is taken to have never happened."""


def launcher_for(name: str, sweep: SweepDir) -> Launcher:
    return SlurmLauncher(sweep) if name == "slurm" else LocalLauncher(sweep)


@dataclass(frozen=True)
class Fed:
    """The runs that an open job was told of, and how often where it was more than once."""

    offset: int = 0
    runs: frozenset[str] = frozenset()
    again: Mapping[str, int] = field(default_factory=dict)


class Observer:
    """Looks at one sweep again and again, reading only what grew."""

    def __init__(self, sweep: SweepDir) -> None:
        self.sweep = sweep
        self.launchers: dict[str, Launcher] = {name: launcher_for(name, sweep) for name in ("local", "slurm")}
        self._readers: dict[Path, tuple[JobTryReader, int, JobTry]] = {}
        self._asked: dict[str, tuple[float, dict[str, JobState]]] = {}
        self.elsewhere = Elsewhere(sweep)
        self._known = -1
        self._starts: tuple[set[str], list[SweepDir]] = (set(), [])
        self._submissions: tuple[int, list[Record]] = (-1, [])
        self._fed: dict[str, Fed] = {}

    def look(self, manifest: Manifest | None = None, every: float = 0.0) -> View:
        """Judge the sweep now. The scheduler is asked at most once per `every` seconds; between, its last word counts."""
        manifest = manifest or read_manifest(self.sweep)
        jobs = self.jobs()
        tries = self.tries()
        states = self._states(jobs, tries, every)
        if self._known != len(manifest.runs):  # a manifest only grows
            self._known = len(manifest.runs)
            self.elsewhere.find(manifest.runs)
            self._starts = parents_and_homes(self.sweep, manifest)
        checkpoints = _checkpoints(self.sweep, manifest.runs) if self.sweep.checkpoints.is_dir() else {}
        parents, homes = self._starts
        return reconcile(manifest, tries, jobs, states, checkpoints, self.elsewhere.winners, folders(homes, parents))

    def settle(self, limits: Mapping[str, int]) -> None:
        """Record how the jobs that are over ended. The caller holds the sweep's lock."""
        jobs, tries = self.jobs(), self.tries()
        settle(self.sweep, jobs, tries, self._states(jobs, tries, 0.0), self._ends(), self.launchers, limits)

    def tries(self) -> list[JobTry]:
        """Every job try's states, in winning order; attempts of a try that is known to be over have an end."""
        found = []
        for path in self.sweep.all_journals():
            size = path.stat().st_size
            reader, known, told = self._readers.get(path, (None, -1, None))
            if reader is None or told is None or known != size or told.torn:
                reader = reader or JobTryReader(path)
                told = reader.read()
                self._readers[path] = (reader, size, told)
            found.append(told)
        return closed(found, self._ends())

    def jobs(self) -> list[SubmittedJob]:
        """Every job that was ever handed to a launcher."""
        records = self._records()
        answers = {r["token"]: r["ids"] for r in records if r["kind"] == "submitted"}
        refused = {r["token"] for r in records if r["kind"] == "refused"}
        causes = {job: end.cause for (job, _), end in sorted(self._ends().items())}
        jobs = []
        for r in records:
            if r["kind"] != "intent" or r["token"] in refused:
                continue
            ids = answers.get(r["token"])
            ids = ids if ids and len(ids) == len(r["jobs"]) else [None] * len(r["jobs"])
            for name, id_, runs in zip(r["jobs"], ids, r["runs"], strict=True):
                fed = self._fed_of(name) if r.get("open") else None
                told, times = (fed.runs, fed.again) if fed else (frozenset(runs), {})
                cause, mem_gb = causes.get(name, ""), r.get("mem_gb")
                jobs.append(SubmittedJob(name, r["token"], r["launcher"], id_, told, cause, bool(fed), times, mem_gb))
        return jobs

    def _fed_of(self, job: str) -> Fed:
        """The runs of a job that is fed while it lives: its assignment is the only record of them."""
        known = self._fed.get(job, Fed())
        path = self.sweep.assignment(job)
        if path.is_file() and path.stat().st_size == known.offset:
            return known
        found = read_lines(path, known.offset, (b'{"kind":"run"',))
        times = Counter(dict.fromkeys(known.runs, 1)) | Counter(known.again)
        times.update(r["run_id"] for r in decode_all([line for _, line in found.lines]) if r is not None)
        self._fed[job] = Fed(found.end, frozenset(times), {r: n for r, n in times.items() if n > 1})
        return self._fed[job]

    def bad_nodes(self, failures: int) -> tuple[str, ...]:
        """Nodes that failed at least so often under this sweep's jobs within a day."""
        now = time.time()
        failed = [e for e in self._ends().values() if e.cause == NODE_FAILURE and e.node and now - e.t < FORGIVE_NODE]
        # Of a job on several nodes (`n[1-2]`) nobody says which one failed.
        failed = [e for e in failed if not re.search(r"[\[,]", e.node or "")]
        outages = {(e.node, int(e.t // OUTAGE)) for e in failed}  # its jobs die together: that is one failure
        counts = Counter(node for node, _ in outages)
        return tuple(sorted(node for node, n in counts.items() if node and n >= failures))

    def under_way(self, live: Collection[str]) -> int:
        """How many of the living jobs may run at once, by the shares that their arrays were given."""
        total = 0
        for r in self._records():
            if r["kind"] == "intent" and (alive := sum(job in live for job in r["jobs"])):
                total += min(alive, r.get("parallelism") or alive)
        return total

    def follow_up(self) -> str | None:
        """Id of the newest follow-up job, None where there was none."""
        return next(iter(self.follow_ups()[-1:]), None)

    def follow_ups(self) -> list[str]:
        """Ids of all of them, the newest last."""
        return [r["id"] for r in self._records() if r["kind"] == "follow_up"]

    def newest(self, *kinds: str) -> Record | None:
        """The newest submission record of these kinds."""
        return next((r for r in reversed(self._records()) if r["kind"] in kinds), None)

    def _records(self) -> list[Record]:
        """The submissions so far; read again when the file grew."""
        try:
            size = self.sweep.submissions.stat().st_size
        except OSError:
            return []
        if size != self._submissions[0]:
            self._submissions = (size, list(read_records(self.sweep.submissions)))
        return self._submissions[1]

    def _ends(self) -> dict[tuple[str, int], JobEnd]:
        return {(r["job"], r["try"]): read_end(r) for r in self._records() if r["kind"] == "ended"}

    def _states(self, jobs: list[SubmittedJob], tries: list[JobTry], every: float) -> dict[str, JobState]:
        done = {t.job for t in tries if t.ended == "done"}
        newest: dict[str, int] = {}
        for t in tries:
            newest[t.job] = max(t.try_, newest.get(t.job, 0))
        over = {job for job, try_ in self._ends() if try_ >= newest.get(job, 0)}
        answer: dict[str, JobState] = dict.fromkeys(over, JobState.GONE)
        for name, launcher in self.launchers.items():
            open_jobs = [j for j in jobs if j.launcher == name and j.name not in done and j.name not in over]
            if not open_jobs:
                continue
            asked_at, told = self._asked.get(name, (0.0, {}))
            if name == "local" or time.monotonic() - asked_at >= every or any(j.name not in told for j in open_jobs):
                told = self._ask(launcher, open_jobs, {t.job: t.start for t in tries if t.start})
                self._asked[name] = (time.monotonic(), told)
            answer |= told
        return answer

    def _ask(self, launcher: Launcher, jobs: list[SubmittedJob], started: Mapping[str, Record]) -> dict[str, JobState]:
        """States by job name. A batch without a recorded answer is looked up: by its journals, then by its token."""
        ids = {j.name: j.id for j in jobs}
        gone: set[str] = set()
        for token in {j.token for j in jobs if j.id is None}:
            batch = [j for j in self.jobs() if j.token == token]  # the whole batch: some may have ended already
            found = self._batch_ids(launcher, token, [j.name for j in batch], started)
            if found:
                append_batch(self.sweep.submissions, [("submitted", {"token": token, "ids": found, "t": time.time()})])
                ids |= {j.name: i for j, i in zip(batch, found, strict=True) if j.name in ids}
            elif found is not None and time.time() - self._intent_time(token) > ADOPT_AFTER:
                gone |= {j.name for j in batch}
        known = {name: i for name, i in ids.items() if i is not None}
        told = launcher.states(list(known.values()))
        states = {name: told.get(i, JobState.UNKNOWN) for name, i in known.items()}
        return {j.name: JobState.GONE if j.name in gone else states.get(j.name, JobState.UNKNOWN) for j in jobs}

    def _batch_ids(self, launcher: Launcher, token: str, names: list[str], started: Mapping[str, Record]) -> list[str] | None:
        if launcher.name == "local":
            return names
        for name in names:
            if job := (started.get(name) or {}).get("slurm_job_id"):
                base = str(job).split("_")[0]
                return [base] if len(names) == 1 else [f"{base}_{i}" for i in range(len(names))]
        return launcher.find(token, names)

    def _intent_time(self, token: str) -> float:
        return next(float(r["t"]) for r in self._records() if r["kind"] == "intent" and r["token"] == token)


def parents_and_homes(sweep: SweepDir, manifest: Manifest) -> tuple[set[str], list[SweepDir]]:
    """The runs from which runs of this sweep start, and the sweeps that may hold their checkpoints: this one first."""
    parents = {run for run, _ in needed_starts(manifest, manifest.runs)}
    return parents, [sweep, *sharing(sweep, dict.fromkeys(parents))] if parents else []


def start_folders(sweep: SweepDir, manifest: Manifest) -> dict[Checkpoint, str]:
    """Where the checkpoints lie that runs of this sweep start from, below the root."""
    parents, homes = parents_and_homes(sweep, manifest)
    return folders(homes, parents)


def _checkpoints(sweep: SweepDir, runs: Iterable[str]) -> dict[str, set[int]]:
    """Steps of complete checkpoints on disk, by run. A checkpoint folder gets its name when it is complete."""
    found: dict[str, set[int]] = {}
    wanted = set(runs)
    for path in sweep.checkpoints.glob("*/step-*"):
        if path.parent.name in wanted and path.name.removeprefix("step-").isdigit():
            found.setdefault(path.parent.name, set()).add(int(path.name.removeprefix("step-")))
    return found


def sharing(sweep: SweepDir, runs: Mapping[str, object]) -> Iterator[SweepDir]:
    """The other sweeps of the root that want some of these runs."""
    for other in sweeps_under(sweep.root):
        if other.sweep != sweep.sweep:
            theirs = {m.decode() for m in re.findall(rb'"run_id":"([^"]+)"', other.manifest.read_bytes())}
            if theirs & runs.keys():
                yield other


class Elsewhere:
    """What other sweeps of the root have done of a sweep's runs: a run is trained once, whoever wants it.

    Each run is looked up once, when it is first wanted.
    """

    def __init__(self, sweep: SweepDir) -> None:
        self.sweep = sweep
        self.winners: dict[str, Attempt] = {}
        self.homes: dict[str, SweepDir] = {}
        """Of each of them the sweep in which it was done."""
        self._known: set[str] = set()
        self._manifests: dict[Path, tuple[int, set[str]]] = {}

    def find(self, runs: Collection[str]) -> None:
        """Look for those that are new."""
        new = set(runs) - self._known
        self._known |= new
        found: dict[str, list[tuple[Attempt, SweepDir]]] = {}
        for other in sweeps_under(self.sweep.root) if new else ():
            if other.sweep == self.sweep.sweep or not (shared := new & self._runs_of(other)):
                continue
            for path in other.all_journals():
                for a in read_job_try(path).attempts:
                    if a.run_id in shared:
                        found.setdefault(a.run_id, []).append((a, other))
        for run_id, attempts in found.items():
            if (best := winner(a for a, _ in attempts)) is not None:
                self.winners[run_id] = best
                self.homes[run_id] = next(home for a, home in attempts if a is best)

    def _runs_of(self, other: SweepDir) -> set[str]:
        size = other.manifest.stat().st_size
        if self._manifests.get(other.manifest, (-1, set()))[0] != size:
            named = re.findall(rb'"run_id":"([^"]+)"', other.manifest.read_bytes())
            self._manifests[other.manifest] = size, {m.decode() for m in named}
        return self._manifests[other.manifest][1]
