"""Pruning within a run: a run is stopped for what it measured so far, by a pruner of Optuna that sees runs as trials.

The study itself has seeds for steps, and one trial cannot have two kinds of them. So this is another study, of runs, with
training steps for steps; it lives in memory and is made again from the journals, which have all that it was ever told.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import optuna
from optuna.trial import Trial, TrialState

from sweeps.search import Search

PRUNED = "pruned at step"
"""How the reason of an exclusion begins that was made here."""


class Stopper:
    """Says which runs are to be stopped. Curves are those of the study's objective, higher or lower being better as it says."""

    def __init__(self, search: Search) -> None:
        self.search = search
        pruners: dict[str, Any] = {
            "median": lambda: optuna.pruners.MedianPruner(search.n_startup_trials, search.n_warmup_steps),
            "successive_halving": lambda: optuna.pruners.SuccessiveHalvingPruner(),
            "hyperband": lambda: optuna.pruners.HyperbandPruner(),
        }
        direction = search.objectives[0].direction
        # hyperband shares runs out by a hash of the study's name: one that is drawn would share them out anew each time
        self.study = optuna.create_study(study_name="runs", direction=direction, pruner=pruners[search.within_run]())
        self._runs: dict[str, Trial] = {}
        self._steps: dict[str, set[int]] = {}
        self._over: set[str] = set()

    def should_stop(self, run_id: str, curve: Mapping[int, float]) -> int | None:
        """Take in what a run measured so far; the step at which it is to be stopped, None where it may go on."""
        for step in self._new(run_id, curve):
            if self._judged(run_id, step, curve[step]):
                self.end(run_id, curve, stopped=True)
                return step
        return None

    def end(self, run_id: str, curve: Mapping[int, float], stopped: bool = False) -> None:
        """A run is over: whole, or stopped. What it measured is what others are compared with."""
        if run_id in self._over:
            return
        self._over.add(run_id)
        for step in self._new(run_id, curve):
            self._judged(run_id, step, curve[step])  # halving compares a run with those that it has judged
        last = max((s for s, v in curve.items() if s > 0 and v == v), default=None)
        trial = self._trial(run_id)
        if stopped or last is None:
            self.study.tell(trial, state=TrialState.PRUNED if stopped else TrialState.FAIL)
        else:
            self.study.tell(trial, curve[last])

    def _judged(self, run_id: str, step: int, value: float) -> bool:
        """Let the pruner see a value; whether it would have the run stopped there."""
        self._trial(run_id).report(value, step)
        return step > self.search.n_warmup_steps and self._trial(run_id).should_prune()

    def _trial(self, run_id: str) -> Trial:
        if run_id not in self._runs:
            self._runs[run_id] = self.study.ask()
        return self._runs[run_id]

    def _new(self, run_id: str, curve: Mapping[int, float]) -> list[int]:
        """Steps after the base model that were not seen yet, in order; what is not finite says nothing here."""
        known = self._steps.setdefault(run_id, set())
        new = sorted(s for s, v in curve.items() if s > 0 and s not in known and v == v)
        known |= set(new)
        return new
