"""When a trial of a study is over, and with what: its runs' states and curves -> what Optuna is told."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from optuna.trial import FrozenTrial

from analysis.stats.objective import seed_values
from analysis.stats.racing import behind
from em_core.config import run_id
from em_core.errors import Fault
from em_core.journal import RunStatus, SweepDir
from sweeps.curves import Curves, Measure
from sweeps.expand import Config
from sweeps.manifest import Manifest
from sweeps.observe import Observer
from sweeps.reconcile import View
from sweeps.search import Search
from sweeps.stopped import PRUNED
from sweeps.trials import Told, Trials, best_first

BEHIND = "behind the best after"


@dataclass(frozen=True)
class Verdict:
    """`values`: one per objective, the mean over the `seeds` that are done; None where there is none. `why`: for a person."""

    told: Told
    values: list[float] | None
    seeds: int
    why: str = ""


class Judge:
    """Knows what was measured, and judges trials by it. `measures`: what each objective is about."""

    def __init__(self, search: Search, sweep: SweepDir, measures: Sequence[Measure], observer: Observer, trials: Trials) -> None:
        self.search, self.sweep, self.measures = search, sweep, measures
        self.observer, self.trials = observer, trials
        self.curves = {sweep.sweep: Curves(sweep, measures)}
        self.standing: dict[int, float] = {}
        """Of each trial that was judged between seeds, the mean over its first ones; higher is better."""
        self._seen: dict[int, tuple[Sequence[RunStatus | None], int | None]] = {}
        self._ranked: tuple[int, list[FrozenTrial]] = (-1, [])
        self._known: dict[int, list[float]] = {}

    @property
    def here(self) -> Curves:
        """The curves of this sweep's own runs."""
        return self.curves[self.sweep.sweep]

    @property
    def best(self) -> int | None:
        """The trial that the others are held against: of those with all their seeds the best."""
        finished = self._finished()
        return finished[0].number if finished else None

    def verdict(self, number: int, config: Config, manifest: Manifest, view: View, revived: Collection[str]) -> Verdict | None:
        """What is to be told of an open trial; None while it goes on. Raises `Fault` where no run tells the metric.

        `revived` are runs that count as not cancelled: the command that was given again does them.
        """
        seeds = range(self.search.seeds_per_trial)
        runs = [run_id(config.config_id, s) for s in seeds]
        states = [view.states.get(r) for r in runs]
        if self._seen.get(number) == (states, self.best):  # then nothing was added by which to judge
            return None
        self._seen[number] = states, self.best
        done = [s for s in seeds if states[s] is RunStatus.COMPLETED]
        lost = []
        for seed, run in enumerate(runs):
            if (found := self._lost(states[seed], manifest.excluded.get(run, ""), run in revived)) is not None:
                lost.append(Verdict(found[0], None, len(done), f"seed {seed} {found[1]}"))
        if lost:  # that a seed diverged says more than that another one was stopped for it
            return min(lost, key=lambda v: [Told.DIVERGED, Told.PRUNED, Told.FAILED].index(v.told))
        if len(done) == len(seeds):
            return self._whole(number, config, done, view)
        first = [s for s in done if s < len(done)]  # the first ones without a gap: as the best trial had them
        if self.search.pruner == "none" or not first or len(first) < len(done):
            return None
        values = list(self._values(config, first, view)[0].values())
        if not all(map(math.isfinite, values)) or not self._is_behind(number, values, manifest, view):
            return None
        return Verdict(Told.PRUNED, [sum(values) / len(values)], len(values), f"{BEHIND} {len(values)} seeds")

    def _lost(self, state: RunStatus | None, excluded: str, revived: bool) -> tuple[Told, str] | None:
        """What a single run decides for its trial, and why."""
        match state:
            case RunStatus.DIVERGED:
                return Told.DIVERGED, "diverged"
            case RunStatus.EXCLUDED if excluded.startswith(PRUNED):
                return Told.PRUNED, excluded
            case RunStatus.EXCLUDED if BEHIND in excluded:  # under way when a trial of the same config was given up
                return Told.PRUNED, f"is excluded: {excluded}"
            case RunStatus.EXCLUDED:
                return Told.FAILED, f"is excluded: {excluded}"
            case RunStatus.FAILED:
                return Told.FAILED, "failed"
            case RunStatus.CANCELLED if not revived:
                return Told.FAILED, "was cancelled"
        return None

    def _whole(self, number: int, config: Config, seeds: Sequence[int], view: View) -> Verdict:
        """Of a trial that has all its seeds."""
        found = self._values(config, seeds, view)
        means = [sum(values.values()) / len(values) for values in found]
        if not all(map(math.isfinite, means)):
            return Verdict(Told.FAILED, None, len(seeds), "nothing finite was measured where the objective looks")
        if len(found) == 1:
            self.trials.report(number, list(found[0].values()))
        return Verdict(Told.COMPLETE, means, len(seeds))

    def _is_behind(self, number: int, values: Sequence[float], manifest: Manifest, view: View) -> bool:
        """What the rule between seeds says of a trial with these values of its first seeds.

        Whoever is ahead of the best goes on, whatever the rule says: what is told of a pruned trial is its mean so far.
        """
        self.trials.report(number, values)
        sign = 1 if self.search.objectives[0].direction == "maximize" else -1
        mine = [sign * v for v in values]
        self.standing[number] = sum(mine) / len(mine)
        seeds = range(self.search.seeds_per_trial)
        finished = self._finished()
        for n in {t.number for t in finished} - self._known.keys():
            config = manifest.configs[manifest.trials[n]["config_id"]]
            self._known[n] = [sign * v for v in self._values(config, seeds, view)[0].values()]
        known = [self._known[t.number] for t in finished]
        if self.search.pruner == "wilcoxon" and known:
            return self.standing[number] < sum(known[0]) / len(seeds) and self.trials.should_prune(number)
        return bool(known) and behind(mine, known[0], known, len(seeds))

    def _finished(self) -> list[FrozenTrial]:
        """The trials with all their seeds, the best first; put in order once for each that is told."""
        if self._ranked[0] != self.trials.told:
            self._ranked = self.trials.told, best_first(self.trials.finished(), self.search)
        return self._ranked[1]

    def _values(self, config: Config, seeds: Sequence[int], view: View) -> list[dict[int, float]]:
        """By objective, the value of each of these seeds, all of them done."""
        found = []
        for objective, measure in zip(self.search.objectives, self.measures, strict=True):
            curves = {s: self._curve(run_id(config.config_id, s), measure, view) for s in seeds}
            found.append(seed_values(curves, objective.rule, objective.step))
        return found

    def _curve(self, run: str, measure: Measure, view: View) -> Mapping[int, float]:
        """What a run that is done measured, wherever it was done."""
        attempt, elsewhere = view.winners[run], self.observer.elsewhere
        home = elsewhere.homes[run] if elsewhere.winners.get(run) is attempt else self.sweep
        if home.sweep not in self.curves:
            self.curves[home.sweep] = Curves(home, self.measures)
        curves = self.curves[home.sweep]
        if not curves.of(attempt, measure):
            curves.follow()
        if curves.names and measure[1] not in curves.names:
            known = ", ".join(sorted(curves.names))
            raise Fault(f"search.objective.metric: no run tells `{measure[1]}`; they tell {known}")
        return curves.of(attempt, measure)
