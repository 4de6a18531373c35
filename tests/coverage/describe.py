"""Intervals of the spread between seeds and of what it is made of, of the best of k, and what ranks promise."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from analysis.stats.describe import describe_grid
from analysis.stats.planning import expected_best
from analysis.stats.ranks import rank_distribution
from analysis.stats.variance import intraclass_correlation, variance_components
from tests.coverage.populations import POPULATIONS, SIZES, Population

PARTS = {"prompt": 0.1, "config": 0.3, "config × prompt": 0.1, "seed": 0.1, "config × seed": 0.4}
"""True shares of the crossed sweep of 6 settings and 4 prompts; the last comes from the population, the others are normal."""


def rows(repeats: int, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    for p in POPULATIONS:
        for n in SIZES:
            for what, kind, rate in _of_population(p, n, repeats, rng):
                nominal = 0.05 if kind == "test" else 0.95
                yield {"what": what, "kind": kind, "population": p.name, "n": n, "rate": float(rate), "nominal": nominal}


def _of_population(p: Population, n: int, repeats: int, rng: np.random.Generator) -> Iterator[tuple[str, str, float]]:
    found = describe_grid(p.draw(rng, (repeats, n)))
    yield "sd (chi-square)", "interval", ((found["sd_lo"] <= p.sd) & (found["sd_hi"] >= p.sd)).mean()
    yield from _icc(p, n, repeats, rng)
    for missing in (0.0, 0.2):
        yield from _shares(p, n, missing, max(1, repeats // 4), rng)
    yield from _best_of_k(p, n, repeats, rng)
    yield from _ranks(p, n, max(1, repeats // 4), rng)


def _icc(p: Population, n: int, repeats: int, rng: np.random.Generator) -> Iterator[tuple[str, str, float]]:
    for what, unequal in (("ICC of 12 configs (F)", False), ("ICC of 12 configs, 2 to n seeds (Thomas-Hultquist)", True)):
        held = 0
        for _ in range(repeats):
            y = rng.normal(0, p.sd, (12, 1)) + p.draw(rng, (12, n))
            if unequal:
                y[np.arange(n) >= rng.integers(2, n + 1, (12, 1))] = np.nan
            _, lo, hi = intraclass_correlation(y, np.indices(y.shape)[0])
            held += lo <= 0.5 <= hi
        yield what, "interval", held / repeats


def _shares(p: Population, n: int, missing: float, repeats: int, rng: np.random.Generator) -> Iterator[tuple[str, str, float]]:
    truth = {**PARTS, "luck": PARTS["seed"] + PARTS["config × seed"]}
    held = dict.fromkeys(truth, 0)
    shape = (6, 4, n)
    config, prompt, seed = (index.ravel() for index in np.indices(shape))
    for _ in range(repeats):
        a, b, both, common = (
            rng.normal(0, p.sd * (PARTS[part] / PARTS["config × seed"]) ** 0.5, size)
            for part, size in (("config", (6, 1, 1)), ("prompt", (1, 4, 1)), ("config × prompt", (6, 4, 1)), ("seed", (1, 1, n)))
        )
        y = np.where(rng.random(shape) < missing, np.nan, a + b + both + common + p.draw(rng, shape))
        found = variance_components(y.ravel(), config, prompt=prompt, seed=seed, rng=rng)
        for part in (*found.components, found.luck):
            held[part.name] += part.lo <= truth[part.name] <= part.hi
    with_holes = f", {missing:.0%} of the runs missing" if missing else ""
    for name, count in held.items():
        yield f"variance share of {name}{with_holes} (generalized)", "interval", count / repeats


def _best_of_k(p: Population, n: int, repeats: int, rng: np.random.Generator) -> Iterator[tuple[str, str, float]]:
    for k in sorted({1, max(1, n // 4)}):
        truth = float(p.draw(rng, (400_000, k)).max(axis=1).mean())
        bands = [expected_best(x, k) for x in p.draw(rng, (repeats, n))]
        held = float(np.mean([b.lo[0] <= truth <= b.hi[0] for b in bands]))
        yield f"expected best of {k} (jackknife)", "interval", held


def _ranks(p: Population, n: int, repeats: int, rng: np.random.Generator) -> Iterator[tuple[str, str, float]]:
    truth = np.arange(6, 0, -1)
    held, wrong = [], []
    for _ in range(repeats):
        apart = rank_distribution(p.draw(rng, (6, n)) + 0.5 * p.sd * np.arange(6)[:, None], rng=rng, repeats=500)
        held.append(((apart.lo <= truth) & (truth <= apart.hi)).mean())
        wrong.append(rank_distribution(p.draw(rng, (2, n)), rng=rng, repeats=1000).p_best.max() >= 0.975)
    yield "rank among 6 configs .5 sd apart (bootstrap)", "interval", float(np.mean(held))
    yield "P(best) >= .975 for one of two equal configs", "test", float(np.mean(wrong))
