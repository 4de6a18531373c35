"""`merge`: brings the sweeps of another root (another cluster, a colleague) into this one. What is here is never changed.

Runs are deduplicated by their id, jobs by their first journal line. A foreign job keeps its name with that line's digest
appended (`b0000-00003~1f0e5c2a`), so that it can clash with no job of this root, now or later. Its assignments and
submissions stay behind: its scheduler's ids mean nothing here, and its journals are evidence enough. Every step is
atomic and looks at what is there, so an interrupted merge is finished by the next, and a finished one does nothing.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from em_core.errors import Fault, UserError
from em_core.journal import Record, SweepDir, append_batch, disk_faults, journal_order, read_lines, read_records, sweeps_under
from em_core.lock import locked
from em_core.prompts import is_set, set_file
from sweeps.manifest import BACK_IN_THE_SPEC, LEFT_THE_SPEC

MARK = "~"
"""Between a foreign job's own name and what it is; no job of this root has it in its name."""


@dataclass(frozen=True)
class Merged:
    """What came into one sweep."""

    sweep: str
    runs: int = 0
    journals: int = 0
    grown: int = 0
    checkpoints: int = 0

    def __str__(self) -> str:
        parts = [
            f"{n:,} {word}{'s' * (n != 1)}"
            for n, word in (
                (self.runs, "run"),
                (self.journals, "journal"),
                (self.grown, "grown journal"),
                (self.checkpoints, "checkpoint"),
            )
            if n
        ]
        return f"{self.sweep}: {', '.join(parts) or 'nothing new'}"


def merge(root: Path, other: Path) -> list[Merged]:
    """Bring every sweep under `other` into `root`. Raises `UserError` where `other` holds none, or is `root` itself."""
    theirs = sweeps_under(other)
    if not theirs:
        hint = f" (did you mean {other / 'runs'}?)" if sweeps_under(other / "runs") else ""
        raise UserError(f"there is no sweep under {other}{hint}")
    if other.resolve() == root.resolve():
        raise UserError(f"{other} is the root itself: name another one")
    return [_merge(SweepDir(root, sweep.sweep), sweep) for sweep in theirs]


def _merge(here: SweepDir, there: SweepDir) -> Merged:
    # Evidence first: a manifest that wants runs whose journals are still on their way would show them as new.
    journals, grown = _bring_journals(here, there)
    checkpoints = _bring_checkpoints(here, there)
    with locked(here.lock, f"sweep {here.sweep} is being changed"):
        ours = list(read_records(here.manifest))
        missing = missing_records(ours, list(read_records(there.manifest)), native=here.submissions.is_file())
        _bring_prompts(here, there, missing)
        append_batch(here.manifest, [(r["kind"], {k: v for k, v in r.items() if k != "kind"}) for r in missing])
    known = {r["run_id"] for r in ours if r["kind"] == "run"}
    runs = len({r["run_id"] for r in missing if r["kind"] == "run"} - known)
    return Merged(here.sweep, runs, journals, grown, checkpoints)


def missing_records(ours: Sequence[Record], theirs: Iterable[Record], native: bool) -> list[Record]:
    """Records of a manifest to append to ours, so that it wants what both want; nothing when asked again.

    Configs, evaluations and runs add up, and the trials of a study that was not run here. Of marks on the same run (exclude,
    include) the later one counts, of forgivenesses the larger. A sweep that was run here (`native`) keeps its spec, which
    neither claims nor drops what came; else the newest spec counts.
    """
    has = {_key(r) for r in ours}
    marks: dict[str, float] = {}
    forgiven: dict[str, int] = {}
    said = -1.0
    for r in ours:
        _count(r, marks, forgiven)
        said = max(said, r["t"]) if r["kind"] == "sweep" else said
    missing = []
    for r in theirs:
        match r["kind"]:
            case "config" | "evaluation" | "run":
                new = _key(r) not in has
                has.add(_key(r))
                r = {**r, "why": "merge"} if r["kind"] == "run" and native else r
            case "sweep":
                new = r["t"] > said and not native
                said = max(said, r["t"])
            case "exclude" | "include":
                new = r["t"] > marks.get(r["run_id"], 0.0) and not (native and r["reason"] in (LEFT_THE_SPEC, BACK_IN_THE_SPEC))
            case "retry":
                new = r["forgiven"] > forgiven.get(r["run_id"], 0)
            case "study" | "trial" | "told":  # two studies of one name have other trials under the same numbers
                new = not native and _key(r) not in has
                has.add(_key(r))
            case _:
                new = False
        if new:
            _count(r, marks, forgiven)
            missing.append(r)
    return missing


def _count(r: Record, marks: dict[str, float], forgiven: dict[str, int]) -> None:
    """Remember when a run was marked last, and how many of its failures were forgiven."""
    if r["kind"] in ("exclude", "include"):
        marks[r["run_id"]] = max(r["t"], marks.get(r["run_id"], 0.0))
    elif r["kind"] == "retry":
        forgiven[r["run_id"]] = max(r["forgiven"], forgiven.get(r["run_id"], 0))


def _bring_prompts(here: SweepDir, there: SweepDir, records: Iterable[Record]) -> None:
    """Copy the prompt sets that new configs name."""
    named = {r["training"]["prompt"] for r in records if r["kind"] == "config"}
    for prompt in filter(is_set, named):
        source, target = set_file(there.prompts, prompt), set_file(here.prompts, prompt)
        if source.is_file() and not target.is_file():
            _copy_start(source, source.stat().st_size, target)


def _key(r: Record) -> tuple[object, ...]:
    """What makes two records of the same kind the same, of the kinds that add up."""
    names = {"config": ("config_id",), "evaluation": ("eval_id",), "run": ("run_id", "arm")}
    names |= {"study": ("t",), "trial": ("number",), "told": ("number",)}
    return (r["kind"], *(r[name] for name in names.get(r["kind"], ())))


def _bring_journals(here: SweepDir, there: SweepDir) -> tuple[int, int]:
    """Copy journals that are not here, and bring those up to date that came from there; (new, grown)."""
    known = {job.identity: job.name for job in jobs_of(here)}
    new = grown = 0
    for job in jobs_of(there):
        name = known.get(job.identity, job.foreign_name)
        if not is_foreign(name):
            continue  # a job of this root, which somebody merged before: ours is the original
        for try_, path in job.tries.items():
            target = here.journal(name, try_)
            size = read_lines(path).end
            have = target.stat().st_size if target.is_file() else 0
            if size > have:
                _copy_start(path, size, target)
                new, grown = new + (have == 0), grown + (have > 0)
    return new, grown


@dataclass(frozen=True)
class Job:
    """A job with the journals of its tries. `identity`: a digest of the first line of the first of them."""

    name: str
    identity: str
    tries: Mapping[int, Path]

    @property
    def foreign_name(self) -> str:
        """The name under which another root keeps it."""
        return f"{self.name.partition(MARK)[0]}{MARK}{self.identity}"


def jobs_of(sweep: SweepDir) -> list[Job]:
    """Every job of a sweep that began; one whose first line is still being written comes next time."""
    tries: dict[str, dict[int, Path]] = {}
    for path in sweep.all_journals():
        try_, name = journal_order(path)
        tries.setdefault(name, {})[try_] = path
    found = []
    for name, paths in tries.items():
        with open(paths[min(paths)], "rb") as f:
            line = f.readline()
        if line.endswith(b"\n"):
            found.append(Job(name, hashlib.sha256(line).hexdigest()[:8], paths))
    return found


def is_foreign(job: str) -> bool:
    """Whether a job came from another root: its scheduler's ids and its logs are not here."""
    return MARK in job


def _copy_start(source: Path, size: int, target: Path) -> None:
    """Put the first `size` bytes of a file in place: there whole or not at all."""
    part = target.with_name(f".{target.name}.{os.getpid()}")
    with disk_faults(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(source, "rb") as read, open(part, "wb") as write:
            left = size
            while left and (chunk := read.read(min(left, 1 << 22))):
                write.write(chunk)
                left -= len(chunk)
            write.flush()
            os.fsync(write.fileno())
        shutil.copystat(source, part)
        os.replace(part, target)


def _bring_checkpoints(here: SweepDir, there: SweepDir) -> int:
    """Copy complete checkpoints of which there is none here."""
    copied = 0
    for source in sorted(there.checkpoints.glob("*/step-*")):
        target = here.run_checkpoints(source.parent.name) / source.name
        if target.exists():
            continue
        part = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            shutil.copytree(source, part, dirs_exist_ok=True)
        except OSError as error:
            shutil.rmtree(part, ignore_errors=True)
            if source.exists():  # else a run there has just outdone it
                raise Fault(f"cannot copy {source} to {target}: {error}") from error
            continue
        part.rename(target)
        copied += 1
    return copied


def print_merged(merged: Iterable[Merged], console: Console) -> None:
    """A line per sweep."""
    for one in merged:
        console.print(str(one), soft_wrap=True)
    console.print("`emsweep collect` brings it into the results")
