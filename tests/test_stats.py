"""The statistics keep their promises: coverage and error rates by simulation, formulas against known values."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from analysis.stats import Floats, max_over_min, seed_means, t_interval, tied_with_best, wilson_interval

pytestmark = pytest.mark.fast

NAN = float("nan")


@pytest.mark.parametrize("n", [2, 3, 5, 16])
def test_t_interval_covers_the_mean_in_95_of_100_cases(n: int) -> None:
    rng = np.random.default_rng(n)
    repeats = 2000
    found = [t_interval(rng.normal(0.6, 0.05, n)) for _ in range(repeats)]
    coverage = np.mean([x.lo <= 0.6 <= x.hi for x in found])
    three_errors = 3 * (0.95 * 0.05 / repeats) ** 0.5
    assert abs(coverage - 0.95) < three_errors
    if n <= 5:  # the check can fail: the normal interval does not pass it
        normal = np.mean([abs(x.mean - 0.6) <= 1.96 * x.sd / n**0.5 for x in found])
        assert abs(normal - 0.95) > three_errors


def test_t_interval_of_few_equal_and_missing_values() -> None:
    assert t_interval([]).n == 0
    assert np.isnan(t_interval([]).mean)
    one = t_interval([0.5])
    assert (one.n, one.mean) == (1, 0.5)
    assert np.isnan([one.sd, one.lo, one.hi]).all()
    equal = t_interval([0.1] * 7)
    assert (equal.sd, equal.lo, equal.hi) == (0.0, equal.mean, equal.mean)
    known = t_interval([1.0, 2.0, 3.0, NAN, float("inf")])
    assert (known.n, known.mean, known.sd) == (3, 2.0, 1.0)
    assert known.hi == pytest.approx(2 + 4.302653 / 3**0.5)


def test_wilson_interval() -> None:
    assert wilson_interval(0, 10) == pytest.approx((0.0, 0.277533), abs=1e-6)
    assert wilson_interval(3, 10) == pytest.approx((0.107791, 0.603222), abs=1e-6)
    assert wilson_interval(10, 10)[1] == pytest.approx(1.0)
    assert np.isnan(wilson_interval(0, 0)).all()


def test_max_over_min() -> None:
    assert max_over_min([0.2, 0.5, NAN]).ratio == 2.5
    assert max_over_min([0.0, 0.5]).ratio == float("inf")
    assert np.isnan(max_over_min([0.0, 0.0]).ratio)
    assert np.isnan(max_over_min([-1.0, 2.0]).ratio)
    assert (max_over_min([-1.0, 2.0]).min, max_over_min([]).n) == (-1.0, 0)


def test_seed_means_of_a_full_grid_are_its_column_means() -> None:
    grid = np.random.default_rng(0).normal(size=(6, 4))
    assert seed_means(grid) == pytest.approx(grid.mean(axis=0))


def test_seed_means_do_not_depend_on_which_config_a_seed_lacks() -> None:
    grid = np.array([[0.9, 0.9, 0.9], [0.1, 0.1, NAN]])
    assert seed_means(grid) == pytest.approx([0.5, 0.5, 0.5])
    assert np.isnan(seed_means(np.array([[0.5, NAN]]))).tolist() == [False, True]
    assert np.isnan(seed_means(np.full((2, 2), NAN))).all()


def equal_configs(rng: np.random.Generator, configs: int, seeds: int) -> Floats:
    """Configs that do not differ; seeds with an effect of their own, as in a real sweep."""
    return 0.6 + rng.normal(0, 0.03, (configs, seeds)) + rng.normal(0, 0.02, seeds)


@pytest.mark.parametrize(("configs", "seeds"), [(5, 5), (18, 8)])
def test_tied_with_best_calls_equal_configs_worse_in_at_most_5_of_100_grids(
    configs: int, seeds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from scipy.stats import ttest_rel
    from statsmodels.stats.multitest import multipletests

    monkeypatch.setattr(gc, "collect", lambda *_: 0)  # statsmodels collects garbage in each call: .1 s
    rng = np.random.default_rng(configs)
    repeats, wrong, wrong_with_best_only = 300, 0, 0
    for _ in range(repeats):
        grid = equal_configs(rng, configs, seeds)
        ties = tied_with_best(grid)
        wrong += not ties.tied.all()
        p = ttest_rel(np.delete(grid, ties.best, 0), grid[ties.best], axis=1).pvalue
        wrong_with_best_only += bool(multipletests(p, 0.05, "holm")[0].any())
    limit = 0.05 + 3 * (0.05 * 0.95 / repeats) ** 0.5
    assert wrong / repeats < limit
    if configs == 18:  # the check can fail: forgetting that the best was chosen by looking does not pass it
        assert wrong_with_best_only / repeats > limit


def test_tied_with_best_tells_configs_apart() -> None:
    grid = equal_configs(np.random.default_rng(3), 6, 8)
    grid[4:] -= 0.4
    grid[2] += 0.01
    ties = tied_with_best(grid)
    assert ties.tied.tolist() == [True] * 4 + [False] * 2
    assert ties.p[ties.best] == 1


def test_pairs_are_tested_as_scipy_tests_them() -> None:
    from scipy.stats import ttest_ind, ttest_rel

    a = np.array([0.61, 0.64, 0.58, 0.66, NAN])
    b = np.array([0.51, 0.60, 0.55, 0.58, 0.40])
    assert tied_with_best(np.array([a, b])).p[1] == pytest.approx(ttest_rel(a[:4], b[:4]).pvalue)
    apart = np.array([[0.9, 0.8, 0.85, NAN, NAN, NAN], [NAN, NAN, NAN, 0.5, 0.45, 0.6]])
    welch = ttest_ind(apart[0, :3], apart[1, 3:], equal_var=False).pvalue
    assert tied_with_best(apart).p[1] == pytest.approx(welch)


def test_ties_at_the_edges() -> None:
    nothing = tied_with_best(np.full((2, 3), NAN))
    assert (nothing.best, nothing.tied.tolist()) == (-1, [False, False])
    one_seed = tied_with_best(np.array([[0.1], [0.9]]))
    assert (one_seed.best, one_seed.tied.tolist()) == (1, [True, True])
    one_config = tied_with_best(np.array([[0.1, 0.2]]))
    assert (one_config.best, one_config.tied.tolist()) == (0, [True])
    same = tied_with_best(np.array([[0.1, 0.2], [0.1, 0.2], [NAN, NAN]]))
    assert same.tied.tolist() == [True, True, False]
    always_lower = tied_with_best(np.array([[0.3, 0.5], [0.2, 0.4]]))
    assert always_lower.tied.tolist() == [True, False]
