"""Turns runs that must be done into jobs: packing, assignment files, and a submission that survives a crash."""

from __future__ import annotations

import math
import os
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from em_core.config import Execution
from em_core.errors import Fault
from em_core.journal import SweepDir, append_batch, read_records, write_whole
from em_core.models import MINIATURE, at_revision, cached_folder, model_folder
from launchers.base import Batch, Launcher
from launchers.snapshot import take, visible_gpus
from sweeps import price
from sweeps.chains import Checkpoint, pinned_steps, start_of
from sweeps.expand import Config
from sweeps.manifest import Manifest
from sweeps.measurements import EvaluationSteps
from sweeps.observe import start_folders
from sweeps.reconcile import Need
from sweeps.resources import Resources
from sweeps.site import Site, job_environment
from sweeps.spec import Spec

LOCAL_JOB = 100_000
"""Runs in one local job: all of them, its slots share one queue."""
ARRAY_SIZE = 1000
"""Longest array where the scheduler does not say."""
SPREAD = 32
"""Jobs among which a sweep that would fit into fewer is spread, so that it uses the cluster."""
WORTH_A_JOB = 2.0
"""Minutes of work below which a job is not worth its start."""


@dataclass(frozen=True)
class PlannedJob:
    """Runs that one supervisor will do, side by side in `slots`. `runs` holds (run_id, need); need is empty to train.

    With `open` it is told of runs while it lives, and waits for more until it is told that there are none. Such a job does
    not come back: the runs that its end cuts short are given to others, which need not wait for its next try.
    """

    resources: Resources
    slots: int
    runs: tuple[tuple[str, Need], ...]
    open: bool = False


def pack(
    manifest: Manifest,
    todo: Sequence[tuple[str, Need]],
    spec: Spec,
    launcher: str,
    seconds: Mapping[str, float],
    memory: Mapping[str, float] | None = None,
) -> list[PlannedJob]:
    """Runs -> jobs. Locally one job takes all; on Slurm a job lasts about `job_minutes`, or `runs_per_job` runs.

    `todo` holds (run_id, need), need empty to train; `seconds` is the expected time per run, by config; `memory` the host
    memory (GB) of runs for which what the spec says was not enough. Runs keep their order, so that a job's workers keep
    their weights.
    """
    groups: dict[str, tuple[Resources, list[tuple[str, Need]]]] = {}
    for run_id, need in todo:
        config = manifest.configs[manifest.runs[run_id].config_id]
        rule = spec.resources_for(config.training.model_dump() | {"prompt": config.prompt_name})
        if memory and run_id in memory:
            rule = rule.model_copy(update={"mem_gb": memory[run_id]})
        groups.setdefault(rule.model_dump_json(), (rule, []))[1].append((run_id, need))
    jobs = []
    for rule, runs in groups.values():
        runs.sort(key=lambda r: _model_of(manifest, r[0]))  # stable: a worker loads base weights as seldom as can be
        rule = rule if launcher == "slurm" else on_this_machine(rule, spec.execution)
        slots = local_slots(rule) if launcher == "local" else rule.slots_per_job
        size = (
            LOCAL_JOB
            if launcher == "local"
            else _runs_per_job(rule, slots, [seconds.get(manifest.runs[r].config_id) for r, _ in runs])
        )
        for i in range(0, len(runs), size):
            part = tuple(runs[i : i + size])
            jobs.append(PlannedJob(rule, min(slots, len(part)), part))
    return jobs


def _model_of(manifest: Manifest, run_id: str) -> tuple[str, Checkpoint]:
    """(model, the checkpoint that the run starts from): what a worker has to load before it."""
    return manifest.configs[manifest.runs[run_id].config_id].model, start_of(manifest, run_id) or ("", 0)


def on_this_machine(rule: Resources, execution: Execution) -> Resources:
    """Resources with what `none` GPUs per run means here: one for each process where the machine has any."""
    if rule.gpus_per_run is None:
        return rule.model_copy(update={"gpus_per_run": execution.num_processes if visible_gpus() else 0})
    return rule


def local_slots(rule: Resources) -> int:
    """Runs that fit side by side on this machine, at least one."""
    if rule.gpus_per_run:
        return max(1, len(visible_gpus()) // rule.gpus_per_run)
    return max(1, len(os.sched_getaffinity(0)) // rule.cpus_per_run)


def expected_seconds(
    sweep: SweepDir, configs: Mapping[str, Config], spec: Spec, launcher: str, evaluations: Sequence[EvaluationSteps] = ()
) -> dict[str, price.Seconds]:
    """Expected seconds per run by config: measured where there is history, guessed from the model's size elsewhere."""
    gpu = uses_gpu(spec, launcher)
    seconds = price.measured(sweep, configs, evaluations, gpu)
    guesses: dict[tuple[object, ...], price.Seconds | None] = {}
    for config_id, c in configs.items():
        if config_id not in seconds:
            t = c.training
            shape = (t.method, c.model, t.max_steps, t.completions, t.max_completion_length)
            if shape not in guesses:
                guesses[shape] = price.guessed(c, "gpu" if gpu else "cpu", evaluations)
            guess = guesses[shape]
            if guess is not None:
                seconds[config_id] = guess
    return seconds


def uses_gpu(spec: Spec, launcher: str) -> bool:
    """Whether runs will meet a GPU."""
    if spec.execution.device == "cpu":
        return False
    rule = spec.resources_for({})
    return bool((on_this_machine(rule, spec.execution) if launcher == "local" else rule).gpus_per_run)


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
    sweep: SweepDir,
    manifest: Manifest,
    jobs: Sequence[PlannedJob],
    spec: Spec,
    site: Site,
    launcher: Launcher,
    *,
    troubles: Mapping[str, Mapping[str, int]] | None = None,
    exclude_nodes: tuple[str, ...] = (),
    running: int = 0,
) -> list[str]:
    """Write assignments and intents, then hand the jobs over; returns the names of those that the scheduler has room for.

    The caller holds the sweep's lock. `running` is how many jobs of the sweep may run already, `troubles` what bad luck
    the runs had. A crash at any instant leaves either no intent (nothing was submitted) or an intent whose token the
    scheduler can be asked about; runs are never lost and an accidental second job costs time, not truth.
    """
    allowed = launcher.limits()
    most = site.max_submit_jobs or allowed.submitted_jobs
    if most is not None:
        jobs = jobs[: max(0, most - allowed.queued - 1)]  # one place is for the follow-up
    chunks = list(_chunks(jobs, site.max_array_size or allowed.array_size or ARRAY_SIZE))
    shares = _shares([len(chunk) for chunk in chunks], _cap(spec), running)
    names: list[str] = []
    links = Links(pinned_steps(manifest), start_folders(sweep, manifest))
    code = take(sweep.root)
    number = sum(r["kind"] == "intent" for r in read_records(sweep.submissions))
    for i, (chunk, share) in enumerate(zip(chunks, shares, strict=False)):
        batch = f"b{number + i:04d}"
        chunk_names = [f"{batch}-{j:05d}" for j in range(len(chunk))]
        for name, job in zip(chunk_names, chunk, strict=True):
            _write_assignment(sweep, manifest, name, job, spec, launcher.name, troubles or {}, site.local_disk, links)
        token = f"{sweep.sweep}-{batch}-{secrets.token_hex(3)}"
        runs = [[r for r, _ in job.runs] for job in chunk]
        intent = {"token": token, "launcher": launcher.name, "jobs": chunk_names, "runs": runs}
        told: dict[str, Any] = {**intent, "parallelism": share, "t": time.time()}
        if chunk[0].open:
            told |= {"open": True, "mem_gb": chunk[0].resources.mem_gb}
        append_batch(sweep.submissions, [("intent", told)])
        array = Batch(
            token=token,
            name=f"{sweep.sweep}:{i + 1}/{len(chunks)}",
            jobs=tuple(chunk_names),
            slots=chunk[0].slots,
            code=code,
            resources=chunk[0].resources.model_dump(exclude={"when"}),
            setup=tuple(site.setup),
            environment=job_environment(site, launcher.name),
            parallelism=share,
            machines=spec.execution.num_machines,
            requeue=not chunk[0].open,
            exclude_nodes=exclude_nodes,
        )
        try:
            ids = launcher.submit(array)
        except Fault:
            # A failed answer is not a refusal: the controller may have queued the jobs and timed out. Only its word counts.
            if launcher.find(token, chunk_names) == []:
                append_batch(sweep.submissions, [("refused", {"token": token, "t": time.time()})])
            if names:  # what is queued is to be followed; the next round meets the same refusal, or none
                return names
            raise
        append_batch(sweep.submissions, [("submitted", {"token": token, "ids": ids, "t": time.time()})])
        names += chunk_names
    return names


def _cap(spec: Spec) -> int | None:
    """How many jobs of the sweep may run at once, by submitit's name; Slurm itself only knows a cap per array."""
    caps = [int(cap) for rule in spec.rules if (cap := (rule.model_extra or {}).get("slurm_array_parallelism"))]
    return min(caps, default=None)


def _shares(sizes: Sequence[int], cap: int | None, running: int) -> list[int | None]:
    """The cap divided among arrays of these sizes, each at least 1; as many arrays as have a share. None: no cap.

    >>> _shares([100, 100, 50], 10, 0)
    [4, 4, 2]
    >>> _shares([5, 5, 5], 2, 0)
    [1, 1]
    """
    if cap is None:
        return [None] * len(sizes)
    left = cap - running
    if left <= 0:
        return []
    sizes = sizes[:left]
    shares = [1] * len(sizes)
    for _ in range(min(left, sum(sizes)) - len(sizes)):
        shares[min((i for i in range(len(sizes)) if shares[i] < sizes[i]), key=lambda i: shares[i] / sizes[i])] += 1
    return list(shares)


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


def _write_assignment(
    sweep: SweepDir,
    manifest: Manifest,
    name: str,
    job: PlannedJob,
    spec: Spec,
    launcher: str,
    troubles: Mapping[str, Mapping[str, int]],
    local_disk: str | None,
    links: Links,
) -> None:
    """A plain sweep's assignment is written whole and closed; that of an open job goes on."""
    on_each = spec.execution.num_processes // spec.execution.num_machines
    threads = max(1, job.resources.cpus_per_run // on_each)
    execution = spec.execution.model_copy(update={"threads": threads})
    header: dict[str, Any] = {
        "job": name,
        "sweep": sweep.sweep,
        "slots": job.slots,
        "gpus_per_run": job.resources.gpus_per_run,
        "timeout_min": job.resources.timeout_min,
        "retries": spec.retries.limits(),
        "stop_after": spec.retries.stop_after,
        "t": time.time(),
        "execution": execution.model_dump(),
        "keep": spec.keep,
        "evaluations": [[i, e.model_dump(), list(steps)] for i, e, steps in manifest.wanted_evaluations],
        "launcher": launcher,
        **({"open": True} if job.open else {}),
    }
    if local_disk and launcher == "slurm":
        header |= {"local_disk": local_disk, "model_folders": _model_folders(manifest, job)}
    records = [("job", header), *run_records(manifest, job.runs, troubles, links)]
    write_whole(sweep.assignment(name), records if job.open else [*records, ("close", {})])


def run_records(
    manifest: Manifest,
    runs: Iterable[tuple[str, Need]],
    troubles: Mapping[str, Mapping[str, int]],
    links: Links,
) -> list[tuple[str, Mapping[str, Any]]]:
    """What an assignment says of runs: each with its config before it."""
    records: list[tuple[str, Mapping[str, Any]]] = []
    told: set[str] = set()
    for run_id, need in runs:
        run = manifest.runs[run_id]
        if run.config_id not in told:
            told.add(run.config_id)
            training = manifest.configs[run.config_id].training.model_dump()
            records.append(("config", {"config_id": run.config_id, "training": training}))
        mode = {"mode": "eval", "need": [list(n) for n in need]} if need else {"mode": "train"}
        met = {"troubles": dict(troubles[run_id])} if run_id in troubles else {}
        chain = links.of(manifest, run_id, need)
        records.append(("run", {"run_id": run_id, "config_id": run.config_id, "seed": run.seed, **mode, **met, **chain}))
    return records


@dataclass(frozen=True)
class Links:
    """What chains ask of jobs: the steps that runs keep for their children, and where checkpoints lie, below the root."""

    pinned: Mapping[str, list[int]]
    folders: Mapping[Checkpoint, str]

    def of(self, manifest: Manifest, run_id: str, need: Need) -> dict[str, Any]:
        """The fields of a `run` record. Who only evaluates kept checkpoints needs no start, unless it measures there."""
        start = start_of(manifest, run_id)
        begins = not need or any(step == 0 for _, step in need)
        found = self.folders.get(start) if start and begins else None
        return {
            **({"start_from": found} if found else {}),
            **({"pinned": self.pinned[run_id]} if run_id in self.pinned and not need else {}),
        }


def _model_folders(manifest: Manifest, job: PlannedJob) -> dict[str, str]:
    """The shared folder of every model that a job loads and that has one; the shipped miniature is not worth a copy."""
    configs = {manifest.runs[r].config_id for r, _ in job.runs}
    found = {}
    for t in (manifest.configs[c].training for c in configs):
        if t.loads_model and t.model_name_or_path != MINIATURE:
            folder = model_folder(t.model_name_or_path) or cached_folder(t.model_name_or_path, t.model_revision)
            if folder is not None:
                found[at_revision(t.model_name_or_path, t.model_revision)] = str(folder)
    return found
