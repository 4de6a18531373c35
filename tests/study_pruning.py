"""`make study-pruning`: what pruning between seeds saves and costs, by simulation, into docs/study_pruning.md."""

from __future__ import annotations

import argparse
import math
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import numpy as np
import optuna
from optuna.trial import TrialState
from scipy.special import stdtr, stdtrit

from analysis.stats import ALPHA, Floats
from analysis.stats.racing import behind
from analysis.stats.sequential import look_levels
from tests import study_sampling

TRIALS = 40
SEEDS = (4, 8, 16)
LEAST = 3
"""Finished trials before a test of the difference, or of a rise, has a spread to go by."""
NOISES = ("normal", "skewed", "bimodal", "heteroscedastic", "shared")
PAGE = Path(__file__).parents[1] / "docs" / "study_pruning.md"

Pruner = Callable[["Study", int, int], bool]
"""(study, trial, seeds it has) -> whether it is pruned there."""


@dataclass
class Study:
    """Trials one after the other: `true` (trials,), `values` (trials, seeds); `finished` grows, `best` is the incumbent."""

    true: Floats
    values: Floats
    finished: list[int] = field(default_factory=list)
    best: int = -1


@dataclass
class Counts:
    """Of trials that had an incumbent to be held against; `used`: runs of the first `TRIALS`; `final`: the winner's true mean."""

    pruned: int = 0
    better: int = 0
    pruned_better: int = 0
    leaders: int = 0
    pruned_leaders: int = 0
    used: int = 0
    final: float = math.nan


def noise(kind: str, rng: np.random.Generator, trials: int, seeds: int) -> Floats:
    """(trials, seeds): mean 0, variance 1 (heteroscedastic: on average over the configs)."""
    shape = (trials, seeds)
    if kind == "normal":
        return rng.normal(0, 1, shape)
    if kind == "skewed":  # some bad seeds
        return (2 - rng.gamma(2, 1, shape)) / 2**0.5
    if kind == "bimodal":  # a quarter of the runs collapse
        fall = (0.95 / (0.25 * 0.75)) ** 0.5
        return fall * (0.25 - (rng.random(shape) < 0.25)) + rng.normal(0, 0.05**0.5, shape)
    if kind == "heteroscedastic":  # half of the configs are three times as wild as the others
        sd = np.where(rng.random(trials) < 0.5, 0.2**0.5, 1.8**0.5)
        return sd[:, None] * rng.normal(0, 1, shape)
    if kind == "shared":  # half of the variance is what a seed does to all configs alike
        return rng.normal(0, 0.5**0.5, shape) + rng.normal(0, 0.5**0.5, seeds)
    raise ValueError(kind)


def none(study: Study, trial: int, k: int) -> bool:
    return False


def racing(study: Study, trial: int, k: int) -> bool:
    values = study.values
    return study.best >= 0 and behind(values[trial, :k], values[study.best], values[study.finished], values.shape[1])


def hardly(trial: Floats, best: Floats, finished: Floats, level: float = 0.05) -> bool:
    """Whether a trial will hardly overtake: the rise that it needs is above the upper t prediction limit of the rises of the
    finished trials (Hahn 1969, for one further observation), of which it takes `LEAST`."""
    k, seeds, n = len(trial), len(best), len(finished)
    if n < LEAST:
        return False
    rises = finished.mean(1) - finished[:, :k].mean(1)
    sd = float(rises.std(ddof=1))
    if k > 1:
        sd = max(sd, float(trial.std(ddof=1)) * (1 / k - 1 / seeds) ** 0.5)
    limit = float(rises.mean()) + float(stdtrit(n - 1, 1 - level)) * sd * (1 + 1 / n) ** 0.5
    return bool(best.mean() - trial.mean() > max(limit, 0.0))


def cautious(study: Study, trial: int, k: int) -> bool:
    return hardly(study.values[trial, :k], study.values[study.best], study.values[study.finished])


def significance(study: Study, trial: int, k: int) -> bool:
    """A one-sided t-test of the paired differences from the incumbent, their sd pooled over the finished trials, .1 spent."""
    done, n, seeds = study.values[study.finished], len(study.finished), study.values.shape[1]
    if n < LEAST:
        return False
    df = (n - 1) * (seeds - 1)
    residuals = done - done.mean(1, keepdims=True) - done.mean(0) + done.mean()
    difference = study.values[trial, :k] - study.values[study.best, :k]
    variance = max(2 * float((residuals**2).sum()) / df, float(difference.var(ddof=1)) if k > 1 else 0.0)
    level = 0.1 / ALPHA * look_levels(range(1, seeds))[k - 1]
    return bool(stdtr(df, difference.mean() / (variance / k) ** 0.5) < level)


class Wilcoxon:
    """Optuna's own, in a study of its own that is told what ours is."""

    def __init__(self) -> None:
        pruner = optuna.pruners.WilcoxonPruner(p_threshold=0.1)
        self.study = optuna.create_study(direction="maximize", pruner=pruner, sampler=optuna.samplers.RandomSampler(seed=0))
        self.trial, self.number = self.study.ask(), 0

    def __call__(self, study: Study, trial: int, k: int) -> bool:
        if self.number != trial:  # the one before was finished or pruned
            self.close(study)
            self.trial, self.number = self.study.ask(), trial
        self.trial.report(float(study.values[trial, k - 1]), k - 1)
        return self.trial.should_prune()

    def close(self, study: Study) -> None:
        if self.number not in study.finished:
            self.study.tell(self.trial, state=TrialState.PRUNED)
            return
        self.trial.report(float(study.values[self.number, -1]), study.values.shape[1] - 1)
        self.study.tell(self.trial, float(study.values[self.number].mean()))


def simulate(true: Floats, values: Floats, prune: Pruner, runs: int) -> Counts:
    """One study with a budget of `runs`; a trial that cannot be carried to its end is not counted."""
    study, counts, seeds = Study(true, values), Counts(), values.shape[1]
    used = 0
    for trial in range(len(true)):
        k = 1
        while k < seeds and used + k < runs and not prune(study, trial, k):
            k += 1
        used += k
        if used >= runs and k < seeds:
            break
        pruned, first = k < seeds, study.best < 0
        better = not first and true[trial] > true[study.best]
        leads = first or values[trial].mean() > values[study.best].mean()
        counts.used += k if trial < TRIALS else 0
        counts.pruned += pruned
        counts.better += better
        counts.pruned_better += better and pruned
        counts.leaders += leads and not first
        counts.pruned_leaders += leads and pruned
        if not pruned:
            study.finished.append(trial)
            study.best = trial if leads else study.best
        if used >= runs:
            break
    counts.final = float(true[study.best])
    return counts


RULES: dict[str, Callable[[], Pruner]] = {
    "Wilcoxon": Wilcoxon,
    "racing": lambda: racing,
    "hardly to overtake, .05": lambda: cautious,
    "significantly worse, .1 spent": lambda: significance,
}
Cell = tuple[str, float, int, str]
"""Noise, sd of the configs' true means where that of a seed is 1, seeds per trial, rule."""


def row(cell: Cell, repeats: int) -> str:
    """One line of the table; every rule sees the same configs and seeds, and is paired with no pruning on them."""
    kind, spread, seeds, rule = cell
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    found, gains = [], []
    for repeat in range(repeats):
        rng = np.random.default_rng([repeat, NOISES.index(kind), seeds])
        true = rng.normal(0, spread, TRIALS * seeds)
        values = true[:, None] + noise(kind, rng, TRIALS * seeds, seeds)
        plain = simulate(true, values, none, TRIALS * seeds).final
        if rule == "one seed":
            gains.append(float(true[values[:, 0].argmax()]) - plain)
            continue
        found.append(simulate(true, values, RULES[rule](), TRIALS * seeds))
        gains.append(found[-1].final - plain)
    gain = f"{np.mean(gains):+.2f} ± {np.std(gains, ddof=1) / repeats**0.5:.2f}"
    if rule == "one seed":
        return f"| {kind} | {spread:g} | {seeds} | no pruning, one seed per trial | | | | | {gain} |"

    def share(of: str, among: str) -> str:
        whole = sum(getattr(c, among) for c in found)
        return f"{sum(getattr(c, of) for c in found) / whole:.3f}" if whole else "none"

    used = sum(c.used for c in found) / repeats / TRIALS / seeds
    shares = (share("pruned_better", "pruned"), share("pruned_better", "better"), share("pruned_leaders", "leaders"))
    return f"| {kind} | {spread:g} | {seeds} | {rule} | {used:.2f} | {' | '.join(shares)} | {gain} |"


COLUMNS = (
    "| noise | config sd | seeds | rule | runs used | of the pruned, truly better | of the truly better, pruned "
    "| of the overtaking, pruned | selected, against no pruning |\n| --- | ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: |"
)
HEAD = """# Pruning between seeds: what it saves and what it costs

Made by `make study-pruning`: {repeats} simulated studies per line, some fifteen minutes on two free cores. Trials are
random configs, one after the other; the sd of a config's seeds is 1, and `config sd` that of the configs' true means. Seeds are
normal, skewed (some bad ones), bimodal (a quarter of the runs collapse), heteroscedastic (half of the configs three times
as wild as the others), or share half of their variance with all configs ("shared": a seed is good or bad for everybody).

- runs used: by the first {trials} trials, as a share of what they use without pruning
- truly better: with a higher true mean than the incumbent of that moment. That is no error by itself: an incumbent has lucky
  seeds, and a truly better trial with worse ones would not have been selected without pruning either
- overtaking: with a higher mean over all seeds than the incumbent, had it been carried to its end. To prune one is the error
- selected, against no pruning: how much better the true mean of the config is that the study ends with, in sds of a seed, at
  equal runs (what {trials} trials use without pruning; whoever prunes tries more configs), ± its standard error

`Wilcoxon` is Optuna's WilcoxonPruner (p_threshold .1, its default), `racing` is `analysis.stats.racing`: a trial goes on as
long as it is ahead of the incumbent. It refuses many a truly better trial, and still ends with the better config: what it saves
is spent on others.
"""
NOT_TAKEN = """## Rules that were not taken

`one seed`: all runs for configs with one seed each. `hardly to overtake`: a trial ends when the finished trials' rises from the
same seeds foretell, at a level of .05, that it will not overtake. `significantly worse`: a one-sided t-test of the paired
differences from the incumbent.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=50)
    repeats = parser.parse_args().repeats
    began = time.monotonic()
    main_cells = [(kind, 1.0) for kind in NOISES] + [(kind, sd) for kind in ("normal", "bimodal") for sd in (0.5, 2.0)]
    taken: list[Cell] = [(*c, n, rule) for c, n, rule in product(main_cells, SEEDS, ("Wilcoxon", "racing"))]
    rules = ("one seed", "significantly worse, .1 spent", "hardly to overtake, .05", "racing")
    some = (("normal", 1.0), ("heteroscedastic", 1.0), ("shared", 1.0), ("normal", 0.5))
    left: list[Cell] = [(*c, n, rule) for c, n, rule in product(some, SEEDS, rules)]
    with ProcessPoolExecutor(2) as pool:
        lines = list(pool.map(row, taken + left, [repeats] * len(taken + left)))
        sampled = study_sampling.page(pool, repeats)
    parts = [HEAD.format(repeats=repeats, trials=TRIALS), "\n".join([COLUMNS, *lines[: len(taken)]]) + "\n"]
    parts += [NOT_TAKEN, "\n".join([COLUMNS, *lines[len(taken) :]]) + "\n", sampled]
    PAGE.write_text("\n".join(parts), encoding="utf-8")
    print(f"{PAGE}: {(time.monotonic() - began) / 60:.1f} min")


if __name__ == "__main__":
    main()
