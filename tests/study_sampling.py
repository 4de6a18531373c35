"""Whole searches by simulation: what TPE finds with one seed, with four, and with racing, at equal runs.

The second part of `make study-pruning`. The trials of the first part are random configs; here a sampler learns from what it is
told, so that it matters how a pruned trial is told, and how a search begins.
"""

from __future__ import annotations

import warnings
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np
import optuna
from optuna.trial import TrialState

from analysis.stats import Floats
from analysis.stats.racing import behind

BUDGETS = (16, 32, 64, 128)
NOISES = (0.06, 0.2)
FIELDS, STARTUP = 4, 10


@dataclass(frozen=True)
class Strategy:
    """`racing`: between seeds; `screen`: the startup trials get one seed each before any gets more; `told`: a pruned trial."""

    words: str
    seeds: int
    racing: bool = True
    screen: bool = True
    told: str = "complete"


STRATEGIES = (
    Strategy("1 seed", 1, False, False),
    Strategy("4 seeds", 4, False, False),
    Strategy("4 seeds, racing", 4),
    Strategy("4 seeds, racing, first trials not screened", 4, screen=False),
    Strategy("4 seeds, racing, not screened, pruned told as pruned", 4, screen=False, told="pruned"),
    Strategy("2 seeds, racing", 2),
)


def search(s: Strategy, noise: float, repeat: int) -> list[float]:
    """The true value of the config that the search would name after each budget, and how many trials it began."""
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    places, luck = np.random.default_rng([repeat, 0]), np.random.default_rng([repeat, 1])
    top, width = places.uniform(0.2, 0.8, FIELDS), places.uniform(0.3, 2, FIELDS)
    sampler = optuna.samplers.TPESampler(n_startup_trials=STARTUP, multivariate=True, group=True, seed=repeat)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    finished: list[Floats] = []
    best: tuple[float, float] = (-np.inf, np.nan)
    named: list[tuple[int, float]] = []
    used = trials = 0

    def ask() -> tuple[optuna.Trial, float, Floats]:
        nonlocal used, trials
        used, trials, trial = used + 1, trials + 1, study.ask()
        place = np.array([trial.suggest_float(f"x{i}", 0, 1) for i in range(FIELDS)])
        true = float(np.exp(-3 * (width * (place - top) ** 2).sum()))
        return trial, true, true + luck.normal(0, noise, s.seeds)

    def carry_on(trial: optuna.Trial, true: float, values: Floats) -> None:
        nonlocal used, best
        incumbent, k = max(finished, key=lambda v: float(v.mean()), default=values), 1
        while k < s.seeds and not (s.racing and finished and behind(values[:k], incumbent, finished, s.seeds)):
            used, k = used + 1, k + 1
        mean = float(values[:k].mean())
        if k < s.seeds and s.told == "pruned":
            study._storage.set_trial_state_values(trial._trial_id, TrialState.PRUNED, [mean])
            return
        study.tell(trial, mean)
        if k == s.seeds:
            finished.append(values)
            best = max(best, (mean, true))
            named.append((used, best[1]))

    if s.screen:
        for first in sorted([ask() for _ in range(STARTUP)], key=lambda t: -t[2][0]):
            carry_on(*first)
    while used < BUDGETS[-1]:
        carry_on(*ask())
    return [[0.0, *(true for at, true in named if at <= budget)][-1] for budget in BUDGETS] + [trials]


def row(s: Strategy, noise: float, repeats: int) -> str:
    found = np.array([search(s, noise, r) for r in range(repeats)])
    means, errors = found.mean(0), found.std(0, ddof=1) / repeats**0.5
    cells = [f"{m:.3f} ± {e:.3f}" for m, e in zip(means[:-1], errors[:-1], strict=True)]
    return f"| {noise:g} | {s.words} | {' | '.join(cells)} | {means[-1]:.0f} |"


def page(pool: Executor, repeats: int) -> str:
    cells = [(s, noise, repeats) for noise in NOISES for s in STRATEGIES]
    lines = pool.map(row, *zip(*cells, strict=True))
    return HEAD.format(fields=FIELDS, repeats=repeats) + "\n".join(lines) + "\n"


HEAD = """## With a sampler that learns

TPE over {fields} fields whose true value is a bump of height 1 (random configs differ by .25), {repeats} searches per line, one
run at a time: the true value of the config that the search would name after 16 to 128 runs, ± its standard error. *Screened*:
the first trials get one seed each before any gets more. *Told as pruned*: TPE ranks such trials behind all others.

| sd of a seed | TPE with | 16 runs | 32 | 64 | 128 | trials |
| ---: | --- | ---: | ---: | ---: | ---: | ---: |
"""
