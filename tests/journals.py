"""Writes realistic sweeps for the tests of `analysis`: a manifest and journals, exactly as docs/records.md says."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from em_core.config import Evaluation, TrainingConfig, config_id, run_id
from em_core.journal import Appender, SweepDir, append_batch

MODEL_KEY = "sha256:" + "ab" * 32
T0 = 1_800_000_000.0
GREEDY = Evaluation(task="arithmetic", task_key="arithmetic@1", num_samples=2)
SAMPLED = Evaluation(task="arithmetic", task_key="arithmetic@1", temperature=0.7, num_samples=2)

Grid = dict[str, Sequence[Any]]
GRID: Grid = {
    "learning_rate": [2e-5, 1e-4, 5e-4],
    "temperature": [0.3, 0.7, 1.2],
    "prompt": ["Q:12+7+5=?", "Q:17-8+4=?"],
}


@dataclass(frozen=True)
class Run:
    run_id: str
    config_id: str
    seed: int
    config: TrainingConfig
    repeat: int = 0


@dataclass
class Sweep:
    """A sweep on disk. Configs are the grid's points in order, seeds 0, 1, ...; those of `fresh` seeds confirm; `repeats` of a
    seed have equal numbers."""

    root: Path
    name: str = "demo"
    grid: Grid = field(default_factory=lambda: dict(GRID))
    seeds: Sequence[int] = range(8)
    evaluations: Sequence[Evaluation] = (GREEDY,)
    steps: Sequence[int] = (0, 5, 10)
    questions: int = 50
    fresh: Sequence[int] = ()
    repeats: int = 1

    def __post_init__(self) -> None:
        self.dir = SweepDir(self.root, self.name)
        self.runs: list[Run] = []
        for values in itertools.product(*self.grid.values()):
            said = {"prompt": "Q:1+1+1=?", **dict(zip(self.grid, values, strict=True))}
            config = TrainingConfig(model_name_or_path="miniature", **said)
            cid = config_id(config, MODEL_KEY)
            self.runs += [Run(run_id(cid, s, r), cid, s, config, r) for s in self.seeds for r in range(self.repeats)]

    def write_manifest(self, arm: str | None = None) -> None:
        append_batch(self.dir.manifest, self._wanted(arm))

    def _wanted(self, arm: str | None) -> Iterator[tuple[str, dict[str, Any]]]:
        measured = [[e.eval_id(), list(self.steps)] for e in self.evaluations]
        about = {"sweep": self.name, "t": T0, "spec": f"name: {self.name}\n", "spec_path": "x.yaml", "overrides": []}
        yield "sweep", {**about, "evaluations": measured}
        for e in self.evaluations:
            yield "evaluation", {"eval_id": e.eval_id(), "evaluation": e.model_dump(), "steps": list(self.steps)}
        for cid, runs in itertools.groupby(self.runs, lambda r: r.config_id):
            run = next(runs)
            name = f"prompt-{run.config.prompt[2:8]}"
            yield "config", {"config_id": cid, "model": MODEL_KEY, "prompt_name": name, "training": run.config.model_dump()}
        for r in self.runs:
            wanted = {"run_id": r.run_id, "config_id": r.config_id, "seed": r.seed, "repeat": r.repeat, "arm": arm}
            yield "run", {**wanted, "stage": "confirm" if r.seed in self.fresh else "explore", "why": "spec", "t": T0}

    def mark(self, kind: str, **fields: Any) -> None:
        append_batch(self.dir.manifest, [(kind, {**fields, "t": T0 + 1e6})])

    def job(self, job: str, runs: Sequence[Run], try_: int = 0, statuses: dict[str, str] | None = None, end: bool = True) -> None:
        """A whole job: every run trained with the status given for its id (completed), then the job's end."""
        with Journal(self, job, try_) as journal:
            for run in runs:
                journal.train(run, (statuses or {}).get(run.run_id, "completed"))
            if end:
                journal.write("job_end", reason="done", t=T0 + 500)

    def write(self, jobs: int = 4) -> Sweep:
        """Manifest and journals: in the first job one run diverged, one failed and one was interrupted."""
        self.write_manifest()
        bad = [self.runs[i].run_id for i in (0, len(self.runs) // 3 // jobs * jobs, jobs)] if len(self.runs) > 8 else []
        statuses = dict(zip(bad, ("diverged", "failed", "interrupted"), strict=False))
        for j in range(jobs):
            self.job(f"{self.name}-{j:04d}", self.runs[j::jobs], statuses=statuses)
        return self


class Journal:
    """Writes one journal the way a supervisor does."""

    def __init__(self, sweep: Sweep, job: str, try_: int = 0) -> None:
        self.sweep = sweep
        self.path = sweep.dir.journal(job, try_)
        new = not self.path.exists()
        self.file = Appender(self.path)
        if new:
            about = {"job": job, "try": try_, "t": T0, "sweep": sweep.name, "launcher": "local", "slurm_job_id": None}
            machine = {"node": "n1", "pid": 1, "slots": 2, "cpus": 2, "gpu": None, "code": "c0de", "commit": "abc1234"}
            self.write("job_start", **about, **machine, dirty=False, python="3.11.7", packages={"torch": "2.13.0"})

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def write(self, kind: str, **fields: Any) -> None:
        self.file.append(kind, **fields)

    def start(self, run: Run, attempt: int = 0, mode: str = "train") -> None:
        """Every eighth seed went on from a state that another kind of GPU had saved."""
        about = {"run_id": run.run_id, "attempt": attempt, "config_id": run.config_id, "seed": run.seed, "mode": mode}
        measures = [[e.eval_id(), list(self.sweep.steps)] for e in self.sweep.evaluations]
        resumed = {"resumed_step": 2, "resumed_device": "NVIDIA H100"} if run.seed % 8 == 7 else {"resumed_step": 0}
        machine = {"slot": 0, "t": T0 + 1, "device": "cpu", "dtype": "float32", "threads": 1}
        self.write("run_start", **about, **machine, measures=measures, **resumed)

    def metrics(self, run: Run, steps: Sequence[int], attempt: int = 0, nan_from: int | None = None) -> None:
        rng = np.random.default_rng([run.seed, len(steps)])
        for step in steps:
            loss = float("nan") if nan_from is not None and step >= nan_from else float(rng.gamma(2, 1 / step))
            values = {"loss": loss, "entropy": loss / 2, "grad_norm": 1.0, "completion_length": 31.5}
            self.write("metrics", run_id=run.run_id, attempt=attempt, step=step, values=values)

    def eval(self, run: Run, step: int, evaluation: Evaluation, attempt: int = 0, bits: str | None = None) -> None:
        bits = bits if bits is not None else outcomes(run, step, evaluation, self.sweep.questions)
        self.write(
            "eval",
            run_id=run.run_id,
            attempt=attempt,
            step=step,
            eval_id=evaluation.eval_id(),
            task=evaluation.task,
            n_questions=self.sweep.questions,
            num_samples=evaluation.num_samples,
            accuracy=bits.count("1") / len(bits) if bits else float("nan"),
            outcomes=bits,
            values={"completion_length": 20.0 + step, "truncated": 0.01, "seconds": 0.2},
        )

    def end(self, run: Run, status: str = "completed", attempt: int = 0) -> None:
        cause = {"failed": "exception", "interrupted": "preempted"}.get(status)
        figures = {"rollout_seconds": 1.0, "train_seconds": 2.0, "eval_seconds": 0.5, "peak_memory_mb": 369.0}
        about = {"run_id": run.run_id, "attempt": attempt, "status": status, "cause": cause, "message": "", "traceback": ""}
        self.write("run_end", **about, t=T0 + 60, seconds=59.0, steps=max(self.sweep.steps), figures=figures)

    def train(self, run: Run, status: str = "completed", attempt: int = 0) -> None:
        steps = self.sweep.steps if status == "completed" else self.sweep.steps[:2]
        self.start(run, attempt)
        last = max(self.sweep.steps)
        if 0 in steps:
            for e in self.sweep.evaluations:
                self.eval(run, 0, e, attempt)
        self.metrics(run, range(1, last + 1), attempt, nan_from=last // 2 if status == "diverged" else None)
        for step in steps:
            for e in self.sweep.evaluations:
                if step > 0:
                    self.eval(run, step, e, attempt)
        self.end(run, status, attempt)


def outcomes(run: Run, step: int, evaluation: Evaluation, questions: int) -> str:
    """Bits like the miniature's: accuracy rises, then falls at a high learning rate; some seeds collapse."""
    rng = np.random.default_rng([run.seed, step, int(run.config_id, 16)])
    lr, temperature = run.config.learning_rate, run.config.temperature
    bad_prompt = run.config.prompt.startswith("Q:17")
    progress = step * (lr / 1e-4) ** 0.5
    p = 0.57 + (0 if step == 0 else (-0.25 if bad_prompt else 0.35) * progress / (5 + progress))
    p -= 0.012 * max(0.0, progress - 8) * temperature
    sd = 0.0 if step == 0 else 0.02 + 0.05 * temperature * (lr > 2e-4)
    p = float(np.clip(rng.normal(p, sd), 0.02, 0.98))
    n = questions * evaluation.num_samples
    correct = np.zeros(n, dtype=int)
    correct[: round(p * n)] = 1
    rng.shuffle(correct)
    return "".join(map(str, correct))
