"""Writes a study for the tests of `analysis`: Optuna proposes trials, a formula scores them; records as in docs/records.md."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from em_core.config import TrainingConfig, config_id, run_id
from em_core.journal import append_batch
from tests.journals import GREEDY, MODEL_KEY, T0, Journal, Run, Sweep

SPACE: dict[str, Any] = {
    "learning_rate": {"low": 1e-5, "high": 1e-3, "log": True},
    "temperature": {"low": 0.2, "high": 1.5},
    "num_generations": {"low": 4, "high": 64, "log": True},
    "method": {"choices": ["em", "grpo"]},
    "kl_coef": {"low": 0.0, "high": 0.2, "when": {"method": "grpo"}},
}
ACCURACY = {"metric": "accuracy", "task": None, "rule": "last", "step": None, "direction": "maximize"}
FRESH = 1_000_000
QUESTIONS = 100


@dataclass
class StudySweep:
    """A study on disk. `pruned` trials got two seeds, the second of which was stopped within; `add` appends one trial."""

    root: Path
    name: str = "demo"
    objectives: list[dict[str, Any]] = field(default_factory=lambda: [dict(ACCURACY)])
    space: dict[str, Any] = field(default_factory=lambda: dict(SPACE))
    seeds: int = 4
    steps: tuple[int, ...] = (0, 5, 10)
    n_trials: int = 30

    def __post_init__(self) -> None:
        self.sweep = Sweep(self.root, self.name, grid={}, seeds=(), evaluations=(GREEDY,), steps=self.steps, questions=QUESTIONS)
        self.sweep.runs = []
        self.sweep.write_manifest()
        self.dir = self.sweep.dir
        self.clock = T0
        self.number = 0
        about = {"objectives": self.objectives, "space": self.space, "sampler": "tpe", "pruner": "racing", "within": "median"}
        self.record("study", **about, seeds_per_trial=self.seeds, n_trials=self.n_trials)

    def record(self, kind: str, **fields: Any) -> None:
        self.clock += 1
        append_batch(self.dir.manifest, [(kind, {**fields, "t": self.clock})])

    def ask(self, params: dict[str, Any], origin: str = "sampled") -> tuple[int, str]:
        """A new trial; its number and config id."""
        config = TrainingConfig(model_name_or_path="miniature", prompt="Q:1+1+1=?", **params)
        cid = config_id(config, MODEL_KEY)
        self.record("config", config_id=cid, model=MODEL_KEY, prompt_name="ones", training=config.model_dump())
        self.record("trial", number=self.number, config_id=cid, params=params, origin=origin)
        self.number += 1
        return self.number - 1, cid

    def train(
        self, cid: str, seed: int, curve: list[int] | tuple[int, ...], status: str = "completed", stage: str = "explore"
    ) -> None:
        """A run with `curve` of 100 answers right at the steps; a `cancelled` one was stopped within, and is excluded."""
        run = Run(run_id(cid, seed), cid, seed, TrainingConfig(model_name_or_path="miniature", prompt="Q:1+1+1=?"))
        why = "study" if stage == "explore" else "confirm"
        self.record("run", run_id=run.run_id, config_id=cid, seed=seed, repeat=0, arm=None, stage=stage, why=why)
        with Journal(self.sweep, f"{self.name}-0000") as journal:
            journal.start(run)
            for step, right in zip(self.steps, curve, strict=False):
                journal.eval(run, step, GREEDY, bits="1" * right + "0" * (QUESTIONS - right))
            journal.end(run, status)
        if status == "cancelled":
            self.record("exclude", run_id=run.run_id, reason=f"pruned at step {self.steps[1]}: below the median")

    def tell(self, number: int, state: str, values: list[float | None], seeds: int, why: str = "") -> None:
        self.record("told", number=number, state=state, values=values, seeds=seeds, why=why)

    def search(self, confirmed: int = 3, fresh: int = 8) -> StudySweep:
        """Optuna's TPE over the space; one trial fails, hot ones diverge, poor ones are pruned, and the last one is running."""
        import optuna
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=1))
        flat = {
            "learning_rate": FloatDistribution(1e-5, 1e-3, log=True),
            "temperature": FloatDistribution(0.2, 1.5),
            "num_generations": IntDistribution(4, 64, log=True),
            "method": CategoricalDistribution(["em", "grpo"]),
        }
        best, told = 0.0, {}
        for i in range(self.n_trials):
            trial = study.ask(flat)
            if trial.params["method"] == "grpo":
                trial.suggest_float("kl_coef", 0.0, 0.2)
            number, cid = self.ask(trial.params, "enqueued" if i < 2 else "sampled")
            if i == self.n_trials - 1:
                self.train(cid, 0, curve(trial.params, 0))
                break
            ends = [curve(trial.params, seed) for seed in range(self.seeds)]
            value = float(np.mean([e[-1] for e in ends])) / 100
            if i == 4:
                self.train(cid, 0, (), "failed")
                self.tell(number, "failed", [None], 0, "exception in seed 0")
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
            elif trial.params["temperature"] > 1.2 and trial.params["learning_rate"] > 3e-4:
                self.train(cid, 0, ends[0][:2], "diverged")
                self.tell(number, "diverged", [None], 0, "seed 0 diverged")
                study.tell(trial, 0.0)
            elif value < best - 0.08:
                self.train(cid, 0, ends[0])
                self.train(cid, 1, ends[1][:2], "cancelled")
                self.tell(number, "pruned", [ends[0][-1] / 100], 1, "behind the best by 0.1")
                study.tell(trial, value)
            else:
                for seed, end in enumerate(ends):
                    self.train(cid, seed, end)
                self.tell(number, "complete", [value], self.seeds)
                study.tell(trial, value)
                best = max(best, value)
                told[number] = (value, cid, trial.params)
        for _, cid, params in sorted(told.values(), key=lambda t: -t[0])[:confirmed]:
            for seed in range(FRESH, FRESH + fresh):
                self.train(cid, seed, curve(params, seed), stage="confirm")
        return self


def curve(params: dict[str, Any], seed: int) -> tuple[int, int, int]:
    """Right answers of 100 at steps 0, 5, 10: best at a learning rate of 2e-4 and a temperature of .6, with luck of the seed."""
    distance = math.log10(params["learning_rate"] / 2e-4) ** 2 + 0.4 * (params["temperature"] - 0.6) ** 2
    height = 90 - 30 * distance - (6 if params["method"] == "grpo" else 0) - 20 * params.get("kl_coef", 0.0)
    luck = np.random.default_rng([seed, round(1e9 * params["learning_rate"])]).normal(0, 3)
    end = float(np.clip(height + luck, 1, 99))
    return 55, round(55 + 0.7 * (end - 55)), round(end)
