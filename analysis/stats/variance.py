"""What share of the variance is luck? Variance components by random-effects analysis of variance."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from analysis.stats.basics import ALPHA, Floats

Labels = npt.NDArray[np.int64]
Effect = frozenset[str]
"""The factors of which one effect is made: {config}, or {config, seed} for their interaction."""

SETTINGS = frozenset({"config", "prompt", "config × prompt"})
LUCK = frozenset({"seed", "config × seed", "seed × step", "decoding"})
DRAWS = 10_000


@dataclass(frozen=True)
class Component:
    """`variance` in the squared unit of the values, `share` of the total in 0..1, `lo`..`hi` its 95% interval."""

    name: str
    variance: float
    share: float
    lo: float
    hi: float


@dataclass(frozen=True)
class Variance:
    """The components, and two sums of them: `luck` (seed, config × seed, seed × step, decoding) and the intraclass correlation.

    `icc` is the share of config, prompt and config × prompt: the correlation of two runs of one config (NaN with steps).
    `notes` says in plain words what was cut at 0, and what could not be told apart.
    """

    components: tuple[Component, ...]
    luck: Component
    icc: float
    icc_lo: float
    icc_hi: float
    n_configs: int
    n_runs: int
    notes: tuple[str, ...]


def intraclass_correlation(values: npt.ArrayLike, config: npt.ArrayLike) -> tuple[float, float, float]:
    """ICC(1) of (runs,) values by config, and its 95% interval: σ²_config / (σ²_config + σ²_seed), one-way random model.

    With a configs and n0 = (N - Σ n_i² / N) / (a - 1): σ²_config = (MS_between - MS_within) / n0 (Henderson 1953). The
    interval is exact for normal values with equal n (Searle 1971, F = MS_between / MS_within; F / F(q; a-1, N-a)); with
    unequal n it is Thomas and Hultquist's (1978): config means instead of MS_between, the harmonic mean instead of n.
    Estimate and interval are cut to 0..1. NaN where there is one config, one run in each, or no variance at all.
    """
    from scipy.stats import f

    y, codes = _known(values, config)
    n = np.bincount(codes)
    a, runs = len(n), len(y)
    if a < 2 or runs <= a or np.ptp(y) == 0:
        return float("nan"), float("nan"), float("nan")
    y = y - y.mean()
    means = np.bincount(codes, y) / n
    within = float(((y - means[codes]) ** 2).sum()) / (runs - a)
    between = float((n * means**2).sum()) / (a - 1)
    n0 = (runs - float((n**2).sum()) / runs) / (a - 1)
    config_variance = max(0.0, (between - within) / n0)
    icc = config_variance / (config_variance + within)
    if within == 0:
        return icc, 1.0, 1.0
    harmonic = a / float((1 / n).sum())
    ratio = harmonic * float(means.var(ddof=1)) / within
    bounds = [ratio / float(f.ppf(q, a - 1, runs - a)) for q in (1 - ALPHA / 2, ALPHA / 2)]
    lo, hi = (min(1.0, max(0.0, (bound - 1) / (bound - 1 + harmonic))) for bound in bounds)
    return icc, lo, hi


def variance_components(
    values: npt.ArrayLike,
    config: npt.ArrayLike,
    *,
    prompt: npt.ArrayLike | None = None,
    seed: npt.ArrayLike | None = None,
    step: npt.ArrayLike | None = None,
    decoding: npt.ArrayLike | None = None,
    rng: np.random.Generator,
) -> Variance:
    """Split the variance of values (rows,) into what settings and what luck contributed. NaN rows are left out.

    Each row is one run; with `step`, one run at one step. `config` labels its settings, *without the prompt* where
    `prompt` is given, so that prompt, config and config × prompt are told apart (where every setting has one prompt
    only, configs are taken as nested in prompts). `seed` names the seed of each row: where configs share seeds, `seed`
    is what a seed does to all configs alike (pairing takes it out) and `config × seed` the rest; otherwise, or without
    labels, all of it is `seed`. `step` needs `seed` and adds step, config × step and seed × step. Interactions that are
    not listed are in the last of these, the residual.

    `decoding`: the known variance of each value from sampling answers (`decoding_variance`: 0 for greedy, NaN for
    unknown); its mean is taken out of the residual. Rows that repeat a run (evaluated again, with other samples)
    measure it as well: then the residual is `decoding`.

    Method of moments, Henderson's method 1 (1953): T_F = Σ_levels (Σ y)² / n_level for every effect F has the
    expectation Σ_G k_FG σ²_G (+ N μ²), k_FG = Σ_f Σ_g n_fg² / n_f; solved for σ². Unbiased with runs missing at random,
    the ANOVA estimator in a full grid. Estimates below 0 are cut at 0 and noted. All effects are taken as random: a
    sweep's levels stand for others like them.

    Intervals of the shares: with nothing but config and seed that of `intraclass_correlation`; otherwise generalized
    confidence intervals (Weerahandi 1993), mean squares drawn as SS / χ²(df) `DRAWS` times and sent through the same
    equations. They assume normal effects; docs/coverage.md has what they cover when seeds are not.

    ValueError for `step` without `seed`.
    """
    if step is not None and seed is None:
        raise ValueError("with steps, `seed` must tell which rows are the same run")
    y = np.asarray(values, dtype=np.float64).ravel()
    known = np.isfinite(y)
    noise = np.full(len(y), 0.0 if decoding is None else np.nan)
    if decoding is not None:
        noise[:] = decoding
    y, noise = y[known], noise[known]
    named = {"config": config, "prompt": prompt, "seed": seed, "step": step}
    cells = _Cells({k: _codes(np.asarray(v).ravel()[known]) for k, v in named.items() if v is not None}, len(y))
    n_configs = cells.levels(frozenset(cells.factors) & {"config", "prompt"})
    effects, notes = _effects(cells)
    if len(y) == 0 or np.ptp(y) == 0:
        return _nothing(effects, n_configs, len(y), [*notes, "nothing varies"])
    table = _mean_squares(y - y.mean(), cells, effects)
    if "config" not in effects and "prompt" not in effects:
        return _nothing(effects, n_configs, len(y), [*notes, "its share of the variance cannot be told"])
    if table.df[-1] < 1:
        return _nothing(effects, n_configs, len(y), [*notes, "one run per config: luck cannot be told from the settings"])
    known_noise = None if decoding is None else _known_noise(noise, list(effects)[-1], notes)
    drawn = table.solve(table.squares * table.df / rng.chisquare(table.df, (DRAWS, len(table.df))))
    estimate = table.solve(table.squares[None])[0]
    names = list(effects)
    if known_noise is not None:
        names = [*names, "decoding"]
        estimate, drawn = _take_out(estimate[None], known_noise)[0], _take_out(drawn, known_noise)
    notes += [f"{name} came out below 0 and is shown as 0" for name, v in zip(names, estimate, strict=True) if v < 0]
    estimate, drawn = np.maximum(estimate, 0), np.maximum(drawn, 0)
    share, shares = estimate / estimate.sum(), drawn / drawn.sum(1, keepdims=True)

    def summed(name: str, of: frozenset[str]) -> Component:
        mine = np.array([n in of for n in names])
        lo, hi = np.nanquantile(shares[:, mine].sum(1), [ALPHA / 2, 1 - ALPHA / 2])
        return Component(name, float(estimate[mine].sum()), float(share[mine].sum()), float(lo), float(hi))

    components = [summed(name, frozenset({name})) for name in names]
    luck, icc = summed("luck", LUCK), summed("settings", SETTINGS)
    if names == ["config", "seed"]:
        _, lo, hi = intraclass_correlation(y, cells.codes(effects["config"]))
        icc = replace(icc, lo=lo, hi=hi)
        luck = replace(luck, lo=1 - hi, hi=1 - lo)
        components = [replace(components[0], lo=lo, hi=hi), replace(components[1], lo=1 - hi, hi=1 - lo)]
    if step is not None:
        notes.append("with steps there is no one intraclass correlation: choose a step")
        icc = Component("settings", *[float("nan")] * 4)
    return Variance(tuple(components), luck, icc.share, icc.lo, icc.hi, n_configs, len(y), tuple(notes))


def decoding_variance(correct: npt.ArrayLike, num_samples: int, *, temperature: float) -> Floats:
    """(...): variance of a run's accuracy from sampling `num_samples` answers to each question.

    `correct` (..., questions) counts the right answers to each question; accuracy is the mean of p = correct/num_samples
    over the Q questions, its variance Σ_q p (1 - p) / (num_samples - 1) / Q² (unbiased, answers independent). 0 for
    greedy answers (temperature 0); NaN with one sampled answer per question, which cannot tell luck in answering from
    a question's difficulty.
    """
    counts = np.asarray(correct, dtype=np.float64)
    if temperature == 0:
        return np.zeros(counts.shape[:-1])
    if num_samples < 2:
        return np.full(counts.shape[:-1], np.nan)
    p = counts / num_samples
    found: Floats = (p * (1 - p)).sum(-1) / (num_samples - 1) / counts.shape[-1] ** 2
    return found


class _Cells:
    """Which rows share a level of an effect."""

    def __init__(self, factors: dict[str, Labels], rows: int) -> None:
        self.factors, self.rows = factors, rows
        self._known: dict[Effect, Labels] = {frozenset(): np.zeros(rows, dtype=np.int64)}

    def codes(self, effect: Effect) -> Labels:
        """(rows,): the level of each row, numbered from 0."""
        if "row" in effect:
            return np.arange(self.rows)
        if effect not in self._known:
            name = max(effect)
            rest, mine = self.codes(effect - {name}), self.factors[name]
            self._known[effect] = _codes(rest * (mine.max(initial=0) + 1) + mine)
        return self._known[effect]

    def levels(self, effect: Effect) -> int:
        return int(self.codes(effect).max(initial=-1)) + 1


def _codes(labels: npt.NDArray[Any]) -> Labels:
    """Labels numbered from 0 without gaps."""
    if labels.dtype.kind == "i" and len(labels) and labels.min() >= 0 and labels.max() < 4 * len(labels):
        used = np.bincount(labels) > 0  # as np.unique, without sorting
        return np.asarray((np.cumsum(used) - 1)[labels], dtype=np.int64)
    return np.asarray(np.unique(labels, return_inverse=True)[1].ravel(), dtype=np.int64)


def _effects(cells: _Cells) -> tuple[dict[str, Effect], list[str]]:
    """The effects of the model by name, the residual last (each row is a level of it), and what had to be left out."""
    notes = [f"only one {name}" for name in cells.factors if cells.levels(frozenset({name})) == 1]
    factors = {name for name in cells.factors if cells.levels(frozenset({name})) > 1}
    cell = frozenset(factors & {"config", "prompt"})
    effects: dict[str, Effect] = {name: frozenset({name}) for name in ("prompt", "config") if name in cell}
    if len(cell) == 2:
        config, prompt, both = (cells.levels(e) for e in (effects["config"], effects["prompt"], cell))
        if both == config == prompt:
            notes.append("config and prompt vary together and cannot be told apart: both are in config")
            cell = frozenset({"config"})
            effects = {"config": cell}
        elif both in (config, prompt):  # nested: the inner one's levels are the cells
            effects["config" if both == config else "prompt"] = cell
        else:
            effects["config × prompt"] = cell
    if "step" in factors:
        effects |= {"step": frozenset({"step"}), "config × step": cell | {"step"}}
    row = frozenset({*factors, "row"})
    within = []
    if "seed" in factors:
        run = cell | {"seed"}
        shared = cells.levels(frozenset({"seed"})) < cells.levels(run)
        if shared and cell:
            effects["seed"] = frozenset({"seed"})
        within.append(("config × seed" if shared and cell else "seed", run))
        if "step" in factors:
            within.append(("seed × step", run | {"step"}))
    else:
        within.append(("seed", row))
    repeated = "seed" in factors and cells.levels(within[-1][1]) < cells.rows
    effects |= dict(within)
    if repeated:
        effects["decoding"] = row
    else:
        effects[within[-1][0]] = row
    return _identifiable(cells, effects, notes), notes


@dataclass(frozen=True)
class _Table:
    """The analysis of variance: per effect its mean square and df, and `expected` @ variances, the mean squares' means."""

    squares: Floats
    df: Floats
    expected: Floats

    def solve(self, squares: Floats) -> Floats:
        """(..., effects): the variances at which mean squares (..., effects) would be expected."""
        return np.asarray(np.linalg.solve(self.expected, squares.T).T, dtype=np.float64)


def _mean_squares(y: Floats, cells: _Cells, effects: dict[str, Effect]) -> _Table:
    """Each effect's sum of squares is its T less the sums of squares of the mean and of the effects within it."""
    order = [frozenset(), *effects.values()]
    totals, sizes, levels = [], np.zeros((len(order), len(order))), []
    for i, effect in enumerate(order):
        codes = cells.codes(effect)
        n = np.bincount(codes)
        totals.append(float((np.bincount(codes, y) ** 2 / n).sum()))
        levels.append(len(n))
        for j, other in enumerate(order):
            if other <= effect:  # each level of `effect` lies in one of `other`
                sizes[i, j] = cells.rows
            elif "row" in other:
                sizes[i, j] = len(n)
            else:
                both = cells.codes(effect | other)
                counts = np.bincount(both)
                of_level = np.empty(len(counts), dtype=np.int64)
                of_level[both] = n[codes]
                sizes[i, j] = (counts**2 / of_level).sum()
    sums = np.column_stack([totals, levels, sizes])
    for i, effect in enumerate(order):
        sums[i] -= sum(sums[j] for j in range(i) if order[j] <= effect)
    df = sums[1:, 1]
    with np.errstate(divide="ignore", invalid="ignore"):
        return _Table(sums[1:, 0] / df, df, sums[1:, 3:] / df[:, None])


def _identifiable(cells: _Cells, effects: dict[str, Effect], notes: list[str]) -> dict[str, Effect]:
    """The effects that have a degree of freedom of their own; the residual, last, stays whether it has or not."""
    kept: dict[str, Effect] = {}
    df: dict[Effect, int] = {frozenset(): 1}
    residual = list(effects)[-1]
    for name, effect in effects.items():
        own = cells.levels(effect) - sum(n for other, n in df.items() if other <= effect)
        if own < 1 and name != residual:
            notes.append(f"{name} cannot be told from the other effects")
        else:
            kept[name] = effect
            df[effect] = own
    return kept


def _known_noise(noise: Floats, residual: str, notes: list[str]) -> float | None:
    """The mean decoding variance of the rows where it is known."""
    known = noise[np.isfinite(noise)]
    if not len(known):
        notes.append(f"one sampled answer per question: decoding noise cannot be told apart and is in {residual}")
        return None
    if len(known) < len(noise):
        notes.append(f"decoding noise is known for {len(known):,} of {len(noise):,} rows, and taken to be the same in the others")
    return float(known.mean())


def _take_out(variances: Floats, noise: float) -> Floats:
    """(draws, effects + 1): the known decoding noise, out of the residual and as a component of its own."""
    return np.column_stack([variances[:, :-1], variances[:, -1] - noise, np.full(len(variances), noise)])


def _nothing(effects: dict[str, Effect], n_configs: int, n_runs: int, notes: list[str]) -> Variance:
    nan = float("nan")
    unknown = tuple(Component(name, nan, nan, nan, nan) for name in effects)
    return Variance(unknown, Component("luck", nan, nan, nan, nan), nan, nan, nan, n_configs, n_runs, tuple(notes))


def _known(values: npt.ArrayLike, labels: npt.ArrayLike) -> tuple[Floats, Labels]:
    y = np.asarray(values, dtype=np.float64).ravel()
    known = np.isfinite(y)
    return y[known], _codes(np.asarray(labels).ravel()[known])
