"""Variance components against closed forms, statsmodels, known truths; unbalanced; coverage; edges."""

from __future__ import annotations

import numpy as np
import pytest

from analysis.stats.variance import Variance, intraclass_correlation, variance_components

pytestmark = pytest.mark.fast
NAN = float("nan")


def long(grid: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values, config and seed of a (configs, seeds) grid."""
    config, seed = np.indices(grid.shape)
    return grid.ravel(), config.ravel(), seed.ravel()


def share(found: Variance, name: str) -> float:
    return next(c.variance for c in found.components if c.name == name)


def test_icc_is_the_closed_form_and_its_interval_searles() -> None:
    from scipy.stats import f

    grid = np.random.default_rng(0).normal(0.7, 0.03, (12, 6)) + np.random.default_rng(1).normal(0, 0.05, (12, 1))
    values, config, _ = long(grid)
    between = 6 * grid.mean(1).var(ddof=1)
    within = grid.var(axis=1, ddof=1).mean()
    icc, lo, hi = intraclass_correlation(values, config)
    assert icc == pytest.approx((between - within) / (between + 5 * within))
    ratios = between / within / np.array([f.ppf(0.975, 11, 60), f.ppf(0.025, 11, 60)])
    assert (lo, hi) == pytest.approx(tuple((ratios - 1) / (ratios + 5)))


def test_one_way_components_are_those_of_reml_where_balanced() -> None:
    import pandas as pd
    import statsmodels.formula.api as smf

    grid = np.random.default_rng(2).normal(0.7, 0.3, (15, 5)) + np.random.default_rng(3).normal(0, 0.5, (15, 1))
    values, config, _ = long(grid)
    found = variance_components(values, config, rng=np.random.default_rng(0))
    model = smf.mixedlm("y ~ 1", pd.DataFrame({"y": values}), groups=config).fit(reml=True)
    assert share(found, "config") == pytest.approx(float(model.cov_re.iloc[0, 0]), rel=1e-3)
    assert share(found, "seed") == pytest.approx(float(model.scale), rel=1e-3)
    assert found.luck.share == pytest.approx(1 - found.icc)


def test_two_way_components_are_the_analysis_of_variance() -> None:
    generator = np.random.default_rng(4)
    grid = generator.normal(0, 0.05, (10, 1)) + generator.normal(0, 0.03, (1, 8)) + generator.normal(0.7, 0.02, (10, 8))
    values, config, seed = long(grid)
    found = variance_components(values, config, seed=seed, rng=generator)
    rest = grid - grid.mean(1, keepdims=True) - grid.mean(0) + grid.mean()
    ms = 8 * grid.mean(1).var(ddof=1), 10 * grid.mean(0).var(ddof=1), (rest**2).sum() / 63
    assert share(found, "config") == pytest.approx((ms[0] - ms[2]) / 8)
    assert share(found, "seed") == pytest.approx((ms[1] - ms[2]) / 10)
    assert share(found, "config × seed") == pytest.approx(ms[2])
    assert sum(c.share for c in found.components) == pytest.approx(1)
    for c in found.components:
        assert c.lo <= c.share <= c.hi


def test_truth_is_found_on_average_balanced_or_not() -> None:
    generator = np.random.default_rng(5)
    truth = {"config": 0.05**2, "prompt": 0.04**2, "config × prompt": 0.03**2, "seed": 0.02**2}
    sums = dict.fromkeys(truth, 0.0)
    for _ in range(150):
        setting, prompt, _ = (a.ravel() for a in np.indices((8, 6, 4)))
        y = generator.normal(0, 0.05, 8)[setting] + generator.normal(0, 0.04, 6)[prompt]
        y = y + generator.normal(0, 0.03, (8, 6))[setting, prompt] + generator.normal(0.7, 0.02, len(setting))
        y[generator.random(len(y)) < 0.2] = NAN
        found = variance_components(y, setting, prompt=prompt, rng=generator)
        for name in truth:
            sums[name] += share(found, name) / 150
    for name, value in truth.items():
        assert sums[name] == pytest.approx(value, rel=0.2), name


def test_known_decoding_noise_is_taken_out_of_the_residual() -> None:
    grid = np.random.default_rng(6).normal(0.7, 0.03, (10, 6)) + np.random.default_rng(7).normal(0, 0.05, (10, 1))
    values, config, _ = long(grid)
    plain = variance_components(values, config, rng=np.random.default_rng(0))
    parted = variance_components(values, config, decoding=np.full(60, 0.02**2), rng=np.random.default_rng(0))
    assert share(parted, "decoding") == pytest.approx(0.02**2)
    assert share(parted, "seed") == pytest.approx(share(plain, "seed") - 0.02**2)
    assert parted.luck.variance == pytest.approx(plain.luck.variance)


def test_steps_are_a_factor_of_their_own() -> None:
    generator = np.random.default_rng(8)
    config, seed, step = (a.ravel() for a in np.indices((6, 5, 4)))
    y = generator.normal(0, 0.05, 6)[config] + generator.normal(0, 0.1, 4)[step] + generator.normal(0.7, 0.01, len(step))
    found = variance_components(y, config, seed=seed, step=step, rng=generator)
    assert share(found, "step") > share(found, "config") > 10 * found.luck.variance


def test_edges_are_nan_or_said() -> None:
    for values, config in (
        ([0.5], [0]),
        ([0.5, 0.6, 0.7], [0, 0, 0]),
        ([0.5, 0.6, 0.7], [0, 1, 2]),
        ([0.5] * 4, [0, 0, 1, 1]),
        ([], []),
    ):
        assert np.isnan(intraclass_correlation(values, config)[0])
        found = variance_components(values, config, rng=np.random.default_rng(0))
        assert np.isnan(found.luck.share) or config == [0, 0, 0]
        assert found.notes
    cut = variance_components([0.5, 0.7, 0.7, 0.5, 0.5, 0.7], [0, 0, 1, 1, 2, 2], rng=np.random.default_rng(0))
    assert share(cut, "config") == 0
    assert any("below 0" in note for note in cut.notes)


def test_the_intervals_cover_balanced_and_unbalanced() -> None:
    generator, repeats = np.random.default_rng(9), 400
    error = 3 * (0.95 * 0.05 / repeats) ** 0.5
    truth = 0.04**2 / (0.04**2 + 0.03**2)
    for unbalanced in (False, True):
        covered = []
        for _ in range(repeats):
            grid = generator.normal(0.7, 0.03, (10, 6)) + generator.normal(0, 0.04, (10, 1))
            if unbalanced:
                grid[:3, 2:] = NAN
            _, lo, hi = intraclass_correlation(*long(grid)[:2])
            covered.append(lo <= truth <= hi)
        assert abs(np.mean(covered) - 0.95) < error + 0.01 * unbalanced
