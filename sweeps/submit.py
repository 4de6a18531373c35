"""Turns runs that must be done into jobs: packing, assignment files, and a submission that survives a crash."""

from __future__ import annotations

import math
import os
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from em_core.errors import Fault
from em_core.journal import SweepDir, append_batch, read_records, write_whole
from launchers.base import Batch, Launcher
from launchers.snapshot import take, visible_gpus
from sweeps import price
from sweeps.expand import Config
from sweeps.manifest import Manifest
from sweeps.reconcile import Need
from sweeps.spec import Resources, Site, Spec

LOCAL_JOB = 100_000
"""Runs in one local job: all of them, its slots share one queue."""
SPREAD = 32
"""Jobs among which a sweep that would fit into fewer is spread, so that it uses the cluster."""
WORTH_A_JOB = 2.0
"""Minutes of work below which a job is not worth its start."""


@dataclass(frozen=True)
class PlannedJob:
    """Runs that one supervisor will do, side by side in `slots`. `runs` holds (run_id, need); need is empty to train."""

    resources: Resources
    slots: int
    runs: tuple[tuple[str, Need], ...]


def pack(
    manifest: Manifest, todo: Sequence[tuple[str, Need]], spec: Spec, launcher: str, seconds: Mapping[str, float]
) -> list[PlannedJob]:
    """Runs -> jobs. Locally one job takes all; on Slurm a job lasts about `job_minutes`, or `runs_per_job` runs.

    `todo` holds (run_id, need), need empty to train; `seconds` is the expected time per run, by config. Runs keep
    their order, so that a job's workers keep their weights.
    """
    groups: dict[str, tuple[Resources, list[tuple[str, Need]]]] = {}
    for run_id, need in todo:
        config = manifest.configs[manifest.runs[run_id].config_id]
        rule = spec.resources_for(config.training.model_dump() | {"prompt": config.prompt_name})
        groups.setdefault(rule.model_dump_json(), (rule, []))[1].append((run_id, need))
    jobs = []
    for rule, runs in groups.values():
        rule = rule if launcher == "slurm" else on_this_machine(rule)
        slots = local_slots(rule) if launcher == "local" else rule.slots_per_job
        size = (
            LOCAL_JOB if launcher == "local" else _runs_per_job(rule, slots, [seconds.get(r[0].rsplit("-s", 1)[0]) for r in runs])
        )
        for i in range(0, len(runs), size):
            part = tuple(runs[i : i + size])
            jobs.append(PlannedJob(rule, min(slots, len(part)), part))
    return jobs


def on_this_machine(rule: Resources) -> Resources:
    """Resources with what `none` GPUs per run means here: one where the machine has any."""
    if rule.gpus_per_run is None:
        return rule.model_copy(update={"gpus_per_run": 1 if visible_gpus() else 0})
    return rule


def local_slots(rule: Resources) -> int:
    """Runs that fit side by side on this machine, at least one."""
    if rule.gpus_per_run:
        return max(1, len(visible_gpus()) // rule.gpus_per_run)
    return max(1, len(os.sched_getaffinity(0)) // rule.cpus_per_run)


def expected_seconds(sweep: SweepDir, configs: Mapping[str, Config], spec: Spec, launcher: str) -> dict[str, price.Seconds]:
    """Expected seconds per run by config: measured where there is history, guessed from the model's size elsewhere."""
    seconds = price.measured(sweep, configs)
    rule = spec.resources_for({})
    gpus = on_this_machine(rule).gpus_per_run if launcher == "local" else rule.gpus_per_run
    guesses: dict[tuple[object, ...], price.Seconds | None] = {}
    for config_id, c in configs.items():
        if config_id not in seconds:
            t = c.training
            shape = (t.method, c.model, t.max_steps, t.num_generations, t.max_completion_length)
            if shape not in guesses:
                guesses[shape] = price.guessed(c, "gpu" if gpus else "cpu")
            guess = guesses[shape]
            if guess is not None:
                seconds[config_id] = guess
    return seconds


def _runs_per_job(rule: Resources, slots: int, seconds: Sequence[float | None]) -> int:
    """Runs in one Slurm job: as many as fill `job_minutes`, but short sweeps are spread over some `SPREAD` jobs."""
    if rule.runs_per_job != "auto":
        return rule.runs_per_job
    known = [s for s in seconds if s]
    if not known:
        return max(1, slots)
    per_minute = 60 * slots / max(known)
    full = min(rule.job_minutes, 0.8 * rule.timeout_min) * per_minute
    spread = max(math.ceil(len(seconds) / SPREAD), WORTH_A_JOB * per_minute)
    return max(1, slots, int(min(full, spread)))


def submit(
    sweep: SweepDir, manifest: Manifest, jobs: Sequence[PlannedJob], spec: Spec, site: Site, launcher: Launcher
) -> list[str]:
    """Write assignments and intents, then hand the jobs over; returns their names. The caller holds the sweep's lock.

    A crash at any instant leaves either no intent (nothing was submitted) or an intent whose token the scheduler can
    be asked about; runs are never lost and an accidental second job costs time, not truth.
    """
    names: list[str] = []
    code = take(sweep.root)
    number = sum(r["kind"] == "intent" for r in read_records(sweep.submissions))
    for chunk in _chunks(jobs, site.max_array_size):
        batch = f"b{number:04d}"
        number += 1
        chunk_names = [f"{batch}-{i:05d}" for i in range(len(chunk))]
        for name, job in zip(chunk_names, chunk, strict=True):
            _write_assignment(sweep, manifest, name, job, spec, launcher.name)
        token = f"{sweep.sweep}-{batch}-{secrets.token_hex(3)}"
        runs = [[r for r, _ in job.runs] for job in chunk]
        intent = {"token": token, "launcher": launcher.name, "jobs": chunk_names, "runs": runs, "t": time.time()}
        append_batch(sweep.submissions, [("intent", intent)])
        resources = chunk[0].resources.model_dump(exclude={"when"})
        try:
            ids = launcher.submit(Batch(token, tuple(chunk_names), chunk[0].slots, code, resources, tuple(site.setup), site.env))
        except Fault:
            # A failed answer is not a refusal: the controller may have queued the jobs and timed out. Only its word counts.
            if launcher.find(token, len(chunk)) == []:
                append_batch(sweep.submissions, [("refused", {"token": token, "t": time.time()})])
            raise
        append_batch(sweep.submissions, [("submitted", {"token": token, "ids": ids, "t": time.time()})])
        names += chunk_names
    return names


def _chunks(jobs: Sequence[PlannedJob], size: int) -> Iterable[list[PlannedJob]]:
    """Jobs of equal resources and slots, at most `size` together: one array each."""
    chunk: list[PlannedJob] = []
    for job in jobs:
        if chunk and (len(chunk) == size or (job.resources, job.slots) != (chunk[0].resources, chunk[0].slots)):
            yield chunk
            chunk = []
        chunk.append(job)
    if chunk:
        yield chunk


def _write_assignment(sweep: SweepDir, manifest: Manifest, name: str, job: PlannedJob, spec: Spec, launcher: str) -> None:
    """A plain sweep's assignment is written whole and closed."""
    execution = spec.execution.model_copy(update={"threads": job.resources.cpus_per_run})
    header: dict[str, Any] = {
        "job": name,
        "sweep": sweep.sweep,
        "slots": job.slots,
        "gpus_per_run": job.resources.gpus_per_run,
        "execution": execution.model_dump(),
        "keep": spec.keep,
        "evaluations": [[i, e.model_dump(), list(steps)] for i, e, steps in manifest.wanted_evaluations],
        "launcher": launcher,
    }
    records: list[tuple[str, Mapping[str, Any]]] = [("job", header)]
    told: set[str] = set()
    for run_id, need in job.runs:
        run = manifest.runs[run_id]
        if run.config_id not in told:
            told.add(run.config_id)
            training = manifest.configs[run.config_id].training.model_dump()
            records.append(("config", {"config_id": run.config_id, "training": training}))
        mode = {"mode": "eval", "need": [list(n) for n in need]} if need else {"mode": "train"}
        records.append(("run", {"run_id": run_id, "config_id": run.config_id, "seed": run.seed, **mode}))
    write_whole(sweep.assignment(name), [*records, ("close", {})])
