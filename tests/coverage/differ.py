"""Differences between configs, the chosen best, questions, lost runs, and parts of a gain.

"not used": what was tried beside ours and left out, or what would be forgotten without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np

from analysis.stats import Floats, t_interval, tied_with_best
from analysis.stats.compare import against, compare, superiority
from analysis.stats.curse import winners_curse
from analysis.stats.gain import Measured, gain_parts
from analysis.stats.missing import depends_on_config
from analysis.stats.questions import clustered, clustered_difference, crossed, decoding_noise, flips
from tests.coverage.populations import NORMAL, POPULATIONS, SIZES, Population

Rng = np.random.Generator

CONFIGS = 6
"""In a family."""
QUESTIONS = 100
SAMPLES = 4


def rows(repeats: int, rng: Rng) -> Iterator[dict[str, Any]]:
    yield from _table(_two_configs, repeats, rng)
    yield from _table(_against_normal, repeats, rng, [p for p in POPULATIONS if p is not NORMAL])
    yield from _table(_shifted, repeats, rng)
    yield from _table(_families, repeats, rng)
    yield from _table(_chosen, max(1, repeats // 4), rng)
    yield from _table(_questions, max(1, repeats // 4), rng)
    yield from _table(_gains, max(1, repeats // 4), rng)
    for n in SIZES:
        losses = [depends_on_config(rng.binomial(n, 0.1, 20), np.full(20, n), rng).p < 0.05 for _ in range(repeats)]
        what = "failing depends on the config (random tables)"
        yield {
            "what": what,
            "kind": "test",
            "population": "a tenth fails",
            "n": n,
            "rate": float(np.mean(losses)),
            "nominal": 0.05,
        }


def _table(
    once: Callable[[Population, int, Rng], dict[str, bool]], repeats: int, rng: Rng, populations: Any = POPULATIONS
) -> Iterator[dict[str, Any]]:
    """`once` says of one simulation which interval covered and which test ("p: ...") rejected."""
    for p in populations:
        name = p.name + (" against normal" if once is _against_normal else "")
        for n in SIZES:
            found = [once(p, n, rng) for _ in range(repeats)]
            for what in found[0]:
                test = what.startswith("p: ")
                yield {
                    "what": what.removeprefix("p: "), "kind": "test" if test else "interval", "population": name, "n": n,
                    "rate": float(np.mean([f[what] for f in found])), "nominal": 0.05 if test else 0.95,
                }  # fmt: skip


def _two_configs(p: Population, n: int, rng: Rng) -> dict[str, bool]:
    """Two equal configs: once with a seed effect that both share, once with seeds of their own."""
    return _compared(p.draw(rng, (n,)), p.draw(rng, (n,)), rng)


def _against_normal(p: Population, n: int, rng: Rng) -> dict[str, bool]:
    """A config with bad seeds against one of equal mean without: the difference is as skewed as the seeds."""
    found = _compared(p.draw(rng, (n,)), rng.normal(p.mean, 0.02, n), rng)
    return {k: v for k, v in found.items() if "P(a > b)" not in k}  # equal means, but no known P


def _compared(a: Floats, b: Floats, rng: Rng) -> dict[str, bool]:
    shared, missing = rng.normal(0, 0.03, len(a)), np.full(len(a), np.nan)
    paired = compare(a + shared, b + shared, rng)
    apart = compare(np.concatenate([a, missing]), np.concatenate([missing, b]), rng)
    return {
        "difference, paired (Student's t)": paired.lo <= 0 <= paired.hi,
        "p: difference, paired (Student's t)": paired.p < 0.05,
        "p: difference, paired (sign flips)": paired.p_sign_flip <= 0.05,
        "P(a > b), paired (Wilson)": paired.superiority_lo <= 0.5 <= paired.superiority_hi,
        "difference, unpaired (Welch's t)": apart.lo <= 0 <= apart.hi,
        "p: difference, unpaired (Welch's t)": apart.p < 0.05,
        "P(a > b), unpaired (Newcombe)": apart.superiority_lo <= 0.5 <= apart.superiority_hi,
    }


def _shifted(p: Population, n: int, rng: Rng) -> dict[str, bool]:
    """a is better by one and a half sd: P(a > b) is far from .5."""
    truth = _superiority_of_shift(p)
    a, b = p.draw(rng, (n,)) + 1.5 * p.sd, p.draw(rng, (n,))
    _, lo, hi = superiority(a, b)
    theirs = _brunner_munzel(a, b)
    return {
        "P(a > b), unpaired, of a large effect (Newcombe)": lo <= truth <= hi,
        "not used: P(a > b) of a large effect (Brunner-Munzel)": theirs[0] <= truth <= theirs[1],
    }


@cache
def _superiority_of_shift(p: Population) -> float:
    fixed = np.random.default_rng(0)
    a, b = (np.sort(p.draw(fixed, (1_000_000,))) for _ in range(2))
    return float(np.searchsorted(b, a + 1.5 * p.sd).mean() / len(b))


def _brunner_munzel(a: Floats, b: Floats) -> tuple[float, float]:
    """Brunner and Munzel's (2000) t-interval of P(a > b), from placements."""
    from scipy.stats import rankdata, t

    m, n = len(a), len(b)
    ranks = rankdata(np.concatenate([a, b]))
    above = (ranks[:m] - rankdata(a)) / n, (ranks[m:] - rankdata(b)) / m
    va, vb = above[0].var(ddof=1) / m, above[1].var(ddof=1) / n
    if va + vb == 0:
        return float(above[0].mean()), float(above[0].mean())
    half = t.ppf(0.975, (va + vb) ** 2 / (va**2 / (m - 1) + vb**2 / (n - 1))) * (va + vb) ** 0.5
    return float(above[0].mean() - half), float(above[0].mean() + half)


def _families(p: Population, n: int, rng: Rng) -> dict[str, bool]:
    """Six equal configs, with shared seed effects or (staggered) each with seeds of its own: is any called different?"""
    own = p.draw(rng, (CONFIGS, n))
    grid = own + rng.normal(0, 0.03, n)
    best = int(grid.mean(1).argmax())
    staggered = np.full((CONFIGS, CONFIGS * n), np.nan)
    for i in range(CONFIGS):
        staggered[i, i * n : (i + 1) * n] = own[i]
    pooled = (own.var(1, ddof=1).mean() / n) ** 0.5
    return {
        "p: any config worse than the best (Holm over all pairs)": not tied_with_best(grid).tied.all(),
        "p: any config worse than the best, no seed shared (Holm over all pairs)": not tied_with_best(staggered).tied.all(),
        "p: any config against a named baseline (Holm)": bool((against(grid, 0, "abcdef")["p_holm"] < 0.05).any()),
        "p: not used: against the best as if it had been named (Holm)": bool(
            (against(grid, best, "abcdef")["p_holm"] < 0.05).any()
        ),
        "p: not used: any config worse than the best, no seed shared (Tukey's HSD)": bool(
            np.ptp(own.mean(1)) > _tukey(n) * pooled
        ),
    }


@cache
def _tukey(n: int) -> float:
    """Critical range of the means of six configs with n seeds each, in standard errors."""
    from scipy.stats import studentized_range

    return float(studentized_range.ppf(0.95, CONFIGS, CONFIGS * (n - 1)))


def _chosen(p: Population, n: int, rng: Rng) -> dict[str, bool]:
    """The best of 40 configs whose means differ by two thirds of the seed sd."""
    effects = rng.normal(0, 2 / 3 * p.sd, 40)
    grid = p.draw(rng, (40, n)) + effects[:, None]
    found = winners_curse(grid, rng)
    truth = p.mean + effects[found.best]
    naive = t_interval(grid[found.best])
    return {
        "mean of the best of 40, corrected (split halves)": found.lo <= truth <= found.hi,
        "not used: mean of the best of 40, as if named (Student's t)": naive.lo <= truth <= naive.hi,
    }


def answers(accuracy: Floats, shared: float, rng: Rng, samples: int = SAMPLES) -> Floats:
    """(seeds, questions, samples): right with probability `accuracy` (seeds,) on a fresh question.

    A question's difficulty u is uniform, and answers are right where u is below the accuracy: all answers to a question
    share it, except for 1 - `shared` of them, which draw a difficulty of their own.
    """
    shape = (len(accuracy), QUESTIONS, samples)
    difficulty = np.where(rng.random(shape) < shared, rng.random((1, QUESTIONS, 1)), rng.random(shape))
    return (difficulty < accuracy[:, None, None]).astype(float)


def answers_to_these(accuracy: Floats, rng: Rng, samples: int = SAMPLES) -> Floats:
    """The same, but right with probability `accuracy` on average over these very questions, easy and hard ones."""
    right = accuracy[:, None] + np.linspace(-0.08, 0.08, QUESTIONS)
    return (rng.random((len(accuracy), QUESTIONS, samples)) < right[..., None]).astype(float)


def _questions(p: Population, n: int, rng: Rng) -> dict[str, bool]:
    seeds, others, equal = p.draw(rng, (n,)), p.draw(rng, (n,)), np.full(n, p.mean)
    y = answers(np.concatenate([seeds, others]), 0.7, rng)
    a, b = y[:n], y[n:]
    here, everywhere = clustered(a), crossed(a).estimate
    gap, gap_everywhere = clustered_difference(a, b), crossed(a - b).estimate
    noise, none = decoding_noise(answers_to_these(seeds, rng)), decoding_noise(answers_to_these(equal, rng))
    return {
        "accuracy, fresh questions, these seeds (clustered)": here.lo <= seeds.mean() <= here.hi,
        "not used: accuracy, fresh questions, these seeds (as if independent)": bool(
            abs(a.mean() - seeds.mean()) <= 1.96 * a.std() / a.size**0.5
        ),
        "accuracy, fresh questions and seeds (two-way)": everywhere.lo <= p.mean <= everywhere.hi,
        "difference, fresh questions, these seeds (paired by question)": gap.lo <= seeds.mean() - others.mean() <= gap.hi,
        "difference, fresh questions and seeds (two-way, paired)": gap_everywhere.lo <= 0 <= gap_everywhere.hi,
        "sd of training without decoding noise (chi-square)": noise.lo <= p.sd <= noise.hi,
        "p: seeds differ beyond decoding noise (chi-square)": none.p < 0.05,
        **_flips(p, n, rng),
    }


def _flips(p: Population, n: int, rng: Rng) -> dict[str, bool]:
    """Training that takes as many questions away as it gives: mostly the same ones, whatever the seed."""
    from statsmodels.stats.contingency_tables import mcnemar

    equal = np.full(n, p.mean)
    before = np.repeat(answers(equal[:1], 1.0, rng, 1), n, 0)
    found = flips(before, answers(equal, 0.7, rng, 1), rng)
    pooled = mcnemar([[0, found.right_to_wrong.sum()], [found.wrong_to_right.sum(), 0]], exact=True).pvalue
    seeds = flips(answers_to_these(equal, rng, 1), answers_to_these(p.draw(rng, (n,)), rng, 1), rng)
    return {
        "p: flips of one seed (McNemar)": bool(found.p[0] <= 0.05),
        "p: flips over seeds, fresh questions (sign flips by question)": found.p_questions <= 0.05,
        "p: flips over seeds, fresh seeds (sign flips by seed)": seeds.p_seeds <= 0.05,
        "p: not used: flips pooled over seeds (McNemar)": bool(pooled <= 0.05),
    }


def _gains(p: Population, n: int, rng: Rng) -> dict[str, bool]:
    """Half right before and `p` after, among answers that end; a fifth, then a twentieth, does not end."""
    t0, t1, r1 = rng.normal(0.2, 0.03, n), rng.normal(0.05, 0.01, n), p.draw(rng, (n,))
    length = rng.normal(100, 10, n)
    found = gain_parts(Measured(0.5 * (1 - t0), t0, length), Measured(r1 * (1 - t1), t1, length))
    part = found.truncation
    # Now 10 tokens more make an answer .02 more often right, and training gives .1 besides.
    longer, zero = rng.normal(10, 10, n), np.zeros(n)
    gain = 0.1 + 0.002 * longer + p.draw(rng, (n,)) - p.mean
    by_length = gain_parts(Measured(zero, zero, length), Measured(gain, zero, length + longer))
    level, rho = by_length.at_equal_length, 0.02 / (0.02**2 + p.sd**2) ** 0.5
    told = {
        "part of a gain by truncation (Kitagawa, t)": part.explained.lo <= 0.15 * (0.5 + p.mean) / 2 <= part.explained.hi,
        "the rest of that gain": part.rest.lo <= (p.mean - 0.5) * 0.875 <= part.rest.hi,
        "gain at equal length (intercept, t)": level.lo <= 0.1 <= level.hi,
    }
    if n > 3:
        covered = by_length.length_correlation_lo <= rho <= by_length.length_correlation_hi
        told["correlation of gain and length (Fisher)"] = covered
    return told
