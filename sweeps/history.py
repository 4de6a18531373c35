"""What completed runs under a root took, read from their journals: what plans are priced by."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from em_core.config import Evaluation, Execution, TrainingConfig, steps_within
from em_core.errors import UserError
from em_core.journal import Record, RunStatus, SweepDir, decode, read_lines, sweeps_under
from em_core.tasks import load_task
from sweeps.expand import Config
from sweeps.manifest import Manifest, read_manifest
from sweeps.measurements import EvaluationSteps

TAIL = 4 << 20
"""Bytes at the end of each journal that are read for history: about a thousand short runs."""
SMOKE = ".smoke"
"""Ending of the name of a sweep that only measures what another will cost."""


@dataclass(frozen=True)
class Trained:
    """One completed training. `figures` are those of its `run_end`, empty where the method has none.

    `gpu` is None for what ran nowhere (noop), or where nobody knows (a trainer of one's own); `first` says that its worker
    loaded the model for it; `answer_tokens` is what its evaluations could generate at most (None: a task file is gone);
    `execution` is that of its job.
    """

    config: Config
    seconds: float
    figures: Mapping[str, float]
    gpu: bool | None
    first: bool
    answer_tokens: float | None
    execution: Mapping[str, Any]
    smoke: bool


def trained(root: Path, models: Collection[str]) -> Iterator[Trained]:
    """The newest completed trainings of these models (by key) in every sweep under `root`."""
    for sweep in sweeps_under(root):
        manifest = read_manifest(sweep)
        if any(c.model in models for c in manifest.configs.values()):
            for path in sweep.all_journals():
                yield from _of_journal(sweep, manifest, path, models)


def shape(t: TrainingConfig, model: str, execution: Mapping[str, Any]) -> tuple[Any, ...]:
    """What decides a run's memory and its time per step: runs of one shape differ in numbers only."""
    size = (model, t.method, t.completions, t.max_completion_length, t.dtype, t.kl_coef > 0)
    usual = Execution().model_dump() | dict(execution)
    spread = ("per_device_train_batch_size", "gradient_checkpointing", "num_processes", "num_machines")
    return (*size, *(usual.get(name) for name in spread))


def peaks(root: Path, models: Collection[str], gpu: bool) -> dict[tuple[Any, ...], float]:
    """Largest measured peak memory of a run by shape (GiB): of the GPU, or of the process where runs have none."""
    found: dict[tuple[Any, ...], float] = {}
    for t in trained(root, models):
        if t.gpu is gpu and "peak_memory_mb" in t.figures:
            key = shape(t.config.training, t.config.model, t.execution)
            found[key] = max(found.get(key, 0.0), t.figures["peak_memory_mb"] / 1024)
    return found


def _of_journal(sweep: SweepDir, manifest: Manifest, path: Path, models: Collection[str]) -> Iterator[Trained]:
    starts: dict[tuple[str, int], Record] = {}
    loaded: dict[int, str] = {}
    firsts: set[tuple[str, int]] = set()
    offset = max(0, path.stat().st_size - TAIL)
    execution: Mapping[str, Any] | None = None
    for _, line in read_lines(path, offset, (b'{"kind":"run_',)).lines:
        r = decode(line)
        run = manifest.runs.get(r["run_id"]) if r is not None else None
        if r is None or run is None:
            continue
        key, config = (r["run_id"], r["attempt"]), manifest.configs[run.config_id]
        if r["kind"] == "run_start":
            # In the tail of a long journal nobody knows what a worker did before: its first run there tells nothing.
            if loaded.get(r.get("slot", 0)) != config.model:
                loaded[r.get("slot", 0)] = config.model
                firsts.add(key)
                if offset:
                    continue
            if r["mode"] == "train" and not r.get("resumed_step"):
                starts[key] = r
        elif r["kind"] == "run_end" and r["status"] == RunStatus.COMPLETED and key in starts and config.model in models:
            if execution is None:
                execution = _execution(sweep, path)
            start, first = starts[key], key in firsts
            device = start.get("device", "none")
            yield Trained(
                config,
                r["seconds"],
                r.get("figures") or {},
                None if device in ("none", "external") else device != "cpu",
                first,
                _answered(manifest, start.get("measures", ()), first or config.training.parent is not None),
                execution,
                sweep.sweep.endswith(SMOKE),
            )


def _execution(sweep: SweepDir, journal: Path) -> Mapping[str, Any]:
    """Execution fields of a journal's job, from the first line of its assignment."""
    try:
        with open(sweep.assignment(journal.stem.rpartition(".")[0]), "rb") as f:
            return dict(json.loads(f.readline()).get("execution", {}))
    except (OSError, ValueError):
        return {}


def _answered(manifest: Manifest, measures: Collection[tuple[str, list[int]]], first: bool) -> float | None:
    """Answer tokens that a run's evaluations could generate. Greedy answers of the base model are a worker's first run's."""
    total = 0.0
    for eval_id, steps in measures:
        evaluation = manifest.evaluations.get(eval_id)
        tokens = None if evaluation is None else _tokens(evaluation)
        if evaluation is None or tokens is None:
            return None
        total += tokens * (len(steps) if first else sum(not _is_shared(evaluation, s) for s in steps))
    return total


def answer_tokens(evaluations: Collection[EvaluationSteps], t: TrainingConfig) -> tuple[float, float]:
    """(of every run, of a worker's first run besides): tokens that answers to these evaluations can have at most."""
    own = shared = 0.0
    for _, evaluation, steps in evaluations:
        tokens = _tokens(evaluation) or 0.0
        for step in steps_within(steps, t.max_steps):
            if _is_shared(evaluation, step) and t.parent is None:
                shared += tokens
            else:
                own += tokens
    return own, shared


def needed_tokens(manifest: Manifest, need: Collection[tuple[str, int]]) -> float:
    """Tokens that answers to (eval_id, step) pairs can have at most."""
    return sum(_tokens(manifest.evaluations[eval_id]) or 0.0 for eval_id, _ in need)


def _is_shared(evaluation: Evaluation, step: int) -> bool:
    """Greedy answers of the base model: a worker gives them once and remembers them."""
    return step == 0 and evaluation.temperature == 0


@cache
def _tokens(evaluation: Evaluation) -> float | None:
    """Questions x samples x longest answer; None where the task cannot be read."""
    try:
        task = load_task(evaluation)
    except UserError:
        return None
    return float(len(task.questions) * evaluation.num_samples * (evaluation.max_completion_length or task.max_completion_length))
