"""The method that trains nothing: it rehearses a sweep. Never imports torch.

Its numbers are drawn from a hash of every training field, the seed and the step, so a rehearsal is reproducible bit
for bit and every spec can be run with ``--set method=noop`` to see jobs, files, SQL and report before a GPU is asked.
The curve rises and falls by design of this file; it says nothing about any model.

`EMSWEEP_NOOP_FAULT` makes runs fail at their last step, so that the answer to a fault can be rehearsed as well:

* `gpu_oom`   out of GPU memory until the batches were halved twice
* `host_oom`  out of host memory
* `bug`       an error in the code
* `NAME:0.5`  the same for that share of the runs, always the same ones (by a hash of config and seed)
"""

from __future__ import annotations

import hashlib
import math
import os
import random
import time
from collections.abc import Callable
from typing import Any

from em_core.config import Evaluation, Execution, Outcome, RunRequest, TrainingConfig
from em_core.tasks import load_task

STEP_SECONDS = "EMSWEEP_NOOP_STEP_SECONDS"
"""Environment variable: how long a rehearsed step takes (seconds; default 0)."""
FAULT = "EMSWEEP_NOOP_FAULT"
"""Environment variable: which fault befalls the runs (see the module's docstring)."""


class OutOfMemoryError(RuntimeError):
    """Named like torch's, by whose name the worker knows it."""


UNKNOWN = 100
"""Questions of a rehearsed task that only a trainer of one's own knows."""


class Noop:
    """Same shape as `em_core.trainer.Trainer`: describe a configuration, run a request."""

    def __init__(self, execution: Execution) -> None:
        self.execution = execution
        self.step_seconds = float(os.environ.get(STEP_SECONDS, "0"))

    def describe(self, config: TrainingConfig) -> dict[str, Any]:
        return {"device": "none", "dtype": "none", "threads": self.execution.threads}

    def find_state(self, request: RunRequest) -> None:
        """Nothing is ever saved: a rehearsal starts over."""

    def free_memory(self) -> None:
        """It holds none."""

    def run(self, request: RunRequest, emit: Callable[..., None], *_: object) -> Outcome:
        digest = hashlib.sha256(f"{request.config.model_dump_json()}/{request.seed}".encode()).hexdigest()
        skill = random.Random(digest).gauss(0.0, 0.05)
        self._evaluate(request, 0, digest, skill, emit)
        for step in range(1, request.config.max_steps + 1 if request.mode == "train" else 1):
            if self.step_seconds:
                time.sleep(self.step_seconds)
            draw = random.Random(f"{digest}/{step}")
            emit("metrics", step=step, values={"loss": 1.0 / step + draw.random() / 100, "grad_norm": draw.random()})
            self._evaluate(request, step, digest, skill, emit)
        _befall(os.environ.get(FAULT, ""), request, digest)
        return Outcome("completed", steps=request.config.max_steps)

    def _evaluate(self, request: RunRequest, step: int, digest: str, skill: float, emit: Callable[..., None]) -> None:
        for eval_id, evaluation, steps in request.evaluations:
            if step not in steps:
                continue
            n = len(load_task(evaluation).questions) or UNKNOWN
            if evaluation.measure == "logits":
                _rehearse_logits(eval_id, evaluation, n, step, random.Random(f"{digest}/{eval_id}/{step}"), emit)
                continue
            rise = min(step, 10) / 10 * 0.3 - max(0, step - 10) / 10 * 0.1
            p = min(0.99, max(0.01, 0.5 + (rise + skill if step else 0.0)))
            draw = random.Random(f"{digest}/{eval_id}/{step}")
            outcomes = "".join("1" if draw.random() < p else "0" for _ in range(n * evaluation.num_samples))
            emit(
                "eval",
                step=step,
                eval_id=eval_id,
                task=evaluation.task,
                n_questions=n,
                num_samples=evaluation.num_samples,
                accuracy=outcomes.count("1") / len(outcomes),
                outcomes=outcomes,
                values={"completion_length": 0.0, "truncated": 0.0, "seconds": 0.0},
            )


def _rehearse_logits(
    eval_id: str, evaluation: Evaluation, n: int, step: int, draw: random.Random, emit: Callable[..., None]
) -> None:
    """A record like that of `em_core.logits.emit_logits`: skewness that rises with the steps, a histogram with one peak."""
    shapes = {"logit": -2.0, "top_logit": 15.0, "processed": 20.0}
    values = {"completion_length": 0.0, "truncated": 0.0, "seconds": 0.0}
    for name, mean in shapes.items():
        values |= {f"{name}_mean": mean, f"{name}_sd": 4.0, f"{name}_skewness": 0.5 + step / 50 + draw.gauss(0.0, 0.05)}
    histogram = {"left": -3.0, "width": 0.25, "counts": [round(1000 * math.exp(-((i / 4 - 1) ** 2))) for i in range(9)]}
    said = {"step": step, "eval_id": eval_id, "task": evaluation.task, "grader": None, "n_questions": n, "num_samples": 1}
    emit("eval", **said, accuracy=None, outcomes="", values=values, histogram=histogram)


def _befall(fault: str, request: RunRequest, digest: str) -> None:
    """Raise the fault, where it is this run's turn. Raises `ValueError` for a fault nobody knows."""
    name, _, share = fault.partition(":")
    if not name or int(digest[:8], 16) >= float(share or 1) * 16**8:
        return
    match name:
        case "gpu_oom":
            if request.halvings < 2:
                raise OutOfMemoryError(f"rehearsed: no GPU memory left with {request.halvings} halvings")
        case "host_oom":
            raise MemoryError("rehearsed: no host memory left")
        case "bug":
            raise RuntimeError("a bug in the code")
        case _:
            raise ValueError(f"{FAULT}={fault}: no such fault")
