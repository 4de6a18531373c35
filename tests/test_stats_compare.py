"""Comparisons of configs: against scipy and statsmodels, at the edges, and in simulations that could fail."""

from __future__ import annotations

import subprocess
import sys
from itertools import product

import numpy as np
import pytest

from analysis.stats.compare import Comparison, against, compare, compare_all, sign_flip_p, superiority

pytestmark = pytest.mark.fast

NAN = float("nan")
RNG = np.random.default_rng(0)
A = np.array([0.61, 0.64, 0.58, 0.66, 0.63, NAN])
B = np.array([0.51, 0.60, 0.55, 0.67, NAN, 0.40])


def test_paired_as_scipy_does_it() -> None:
    from scipy.stats import pearsonr, ttest_rel

    found, theirs = compare(A, B, RNG), ttest_rel(A[:4], B[:4])
    assert (found.paired, found.n_a, found.n_b) == (True, 4, 4)
    assert (found.mean_a, found.mean_b) == pytest.approx((A[:4].mean(), B[:4].mean()))
    assert found.difference == pytest.approx(found.mean_a - found.mean_b)
    assert found.p == pytest.approx(theirs.pvalue)
    assert (found.lo, found.hi) == pytest.approx(tuple(theirs.confidence_interval()))
    assert found.correlation == pytest.approx(pearsonr(A[:4], B[:4]).statistic)
    of_difference, apart = np.var(A[:4] - B[:4], ddof=1), np.var(A[:4], ddof=1) + np.var(B[:4], ddof=1)
    assert found.saved == pytest.approx(1 - of_difference / apart)
    assert found.superiority == 3 / 4


def test_unpaired_as_scipy_does_it() -> None:
    from scipy.stats import mannwhitneyu, ttest_ind

    a, b = np.array([0.9, 0.8, 0.85, NAN, NAN, NAN, NAN]), np.array([NAN, NAN, NAN, 0.5, 0.45, 0.6, 0.82])
    found, theirs = compare(a, b, RNG), ttest_ind(a[:3], b[3:], equal_var=False)
    assert (found.paired, found.n_a, found.n_b) == (False, 3, 4)
    assert found.p == pytest.approx(theirs.pvalue)
    assert (found.lo, found.hi) == pytest.approx(tuple(theirs.confidence_interval()))
    assert found.superiority == pytest.approx(mannwhitneyu(a[:3], b[3:]).statistic / 12)
    assert np.isnan([found.p_sign_flip, found.correlation, found.saved]).all()


def test_swapping_the_configs_mirrors_everything() -> None:
    for pair in ((A, B), (A, np.where(np.isfinite(A), NAN, 0.5)), (A[:1], B[:1])):
        one, other = compare(*pair, RNG), compare(*pair[::-1], RNG)
        assert (one.difference, one.lo, one.hi) == pytest.approx((-other.difference, -other.hi, -other.lo), nan_ok=True)
        assert (one.p, one.saved) == pytest.approx((other.p, other.saved), nan_ok=True)
        assert one.superiority_lo == pytest.approx(1 - other.superiority_hi, nan_ok=True)


@pytest.mark.parametrize("n", [2, 3, 6, 10])
def test_sign_flips_as_by_hand_and_as_scipy(n: int) -> None:
    from scipy.stats import permutation_test

    d = np.random.default_rng(n).normal(0.3, 1, n)
    by_hand = np.mean([abs(np.dot(signs, d)) >= abs(d.sum()) - 1e-9 for signs in product([1, -1], repeat=n)])
    assert sign_flip_p(d, RNG) == pytest.approx(by_hand)
    theirs = permutation_test((d,), np.mean, permutation_type="samples", n_resamples=10_000)
    assert sign_flip_p(d, RNG) == pytest.approx(theirs.pvalue)


def test_random_sign_flips_are_near_the_exact_p() -> None:
    d = np.random.default_rng(4).normal(0.35, 1, 40)
    shifted = np.concatenate([d, np.zeros(7), [NAN]])
    random = [sign_flip_p(shifted, np.random.default_rng(seed)) for seed in range(5)]
    signs = 1 - 2.0 * np.random.default_rng(5).integers(0, 2, (200_000, 40))
    exact = float((np.abs(signs @ d) >= abs(d.sum())).mean())
    assert 0.01 < exact < 0.2
    assert np.abs(np.array(random) - exact).max() < 4 * (exact * (1 - exact) / 9_999) ** 0.5
    assert len(set(random)) > 1


def test_equal_decimals_are_ties_for_sign_flips() -> None:
    # .3 + .3 - .6 is not 0 in floats, and a sum in another order is another float
    assert sign_flip_p([0.1, 0.2, -0.3], RNG) == 1
    assert sign_flip_p([0.0, 0.0], RNG) == 1
    assert sign_flip_p([0.0, 0.0, 0.5], RNG) == 1
    assert np.isnan(sign_flip_p([0.3], RNG))


def test_superiority_solves_newcombes_equation() -> None:
    from scipy.stats import brunnermunzel, norm

    x, y = np.random.default_rng(1).normal(0.6, 1, 7), np.random.default_rng(2).normal(0, 1, 5)
    estimate, lo, hi = superiority(x, y)
    assert estimate == pytest.approx(np.mean([(a > b) + (a == b) / 2 for a in x for b in y]))
    for p in (lo, hi):  # Hanley and McNeil's (1982) variance with both sizes replaced by their mean
        q1, q2, both = p / (2 - p), 2 * p * p / (1 + p), 7 * 5
        variance = (p * (1 - p) + (6 - 1) * ((q1 - p * p) + (q2 - p * p))) / both
        assert abs(estimate - p) / variance**0.5 == pytest.approx(norm.ppf(0.975))
    assert (brunnermunzel(x, y).pvalue < 0.05) == (not lo <= 0.5 <= hi)  # another method, the same verdict here


def test_superiority_at_the_edges() -> None:
    assert superiority([1.0, 2.0], [0.0, 0.5])[::2] == (1.0, 1.0)
    assert 0.2 < superiority([1.0, 2.0], [0.0, 0.5])[1] < 0.6  # two against two prove little
    assert superiority([1.0], [1.0])[0] == 0.5
    assert np.isnan(superiority([], [1.0])).all()
    assert superiority([0.3], [0.1 + 0.2])[0] == 0.5


def grid_with_holes() -> np.ndarray:
    rng = np.random.default_rng(7)
    grid = rng.normal([[0.5], [0.6], [0.62], [-0.4], [0.0]], 0.05, (5, 8))
    grid[0, 5:] = NAN
    grid[1, :4] = NAN
    grid[4] = NAN
    grid[3, 2] = float("inf")
    return grid


def test_the_table_of_all_pairs_is_one_comparison_per_row() -> None:
    grid = grid_with_holes()
    labels = ["v", "w", "x", "y", "z"]
    table = compare_all(grid, labels)
    assert table.height == 10
    assert table["p"].to_list()[:6] == sorted(table["p"].to_list()[:6])
    for row in table.iter_rows(named=True):
        one = compare(grid[labels.index(row["a"])], grid[labels.index(row["b"])], RNG)
        for field in Comparison.__dataclass_fields__:
            if field in row:
                assert row[field] == pytest.approx(getattr(one, field), nan_ok=True), field


def test_holm_over_the_rows_that_can_be_tested() -> None:
    from statsmodels.stats.multitest import multipletests

    for table in (compare_all(grid_with_holes(), list("vwxyz")), against(grid_with_holes(), 2, list("vwxyz"))):
        tested = table.filter(table["p"].is_finite())
        assert 2 < tested.height < table.height
        assert tested["p_holm"].to_list() == pytest.approx(multipletests(tested["p"].to_numpy(), method="holm")[1].tolist())
        assert not table.filter(~table["p"].is_finite())["p_holm"].is_finite().any()


def test_against_names_the_baseline_second() -> None:
    table = against(grid_with_holes(), 2, list("vwxyz"))
    assert set(table["b"]) == {"x"}
    assert sorted(table["a"]) == list("vwyz")
    assert against(np.array([[0.1, 0.2]]), 0, ["only"]).height == 0
    with pytest.raises(ValueError, match="2 configs have 1 labels"):
        compare_all(np.zeros((2, 2)), ["a"])


def test_comparisons_at_the_edges() -> None:
    one_seed = compare([0.5], [0.25], RNG)
    assert (one_seed.paired, one_seed.n_a, one_seed.difference) == (False, 1, 0.25)
    assert np.isnan([one_seed.lo, one_seed.hi, one_seed.p, one_seed.p_sign_flip]).all()
    nothing = compare([NAN, NAN], [NAN, NAN], RNG)
    assert (nothing.n_a, nothing.n_b) == (0, 0)
    assert np.isnan([nothing.difference, nothing.p, nothing.superiority]).all()
    equal = compare([0.1] * 5, [0.1] * 5, RNG)
    assert (equal.difference, equal.lo, equal.hi, equal.p, equal.p_sign_flip, equal.superiority) == (0, 0, 0, 1, 1, 0.5)
    assert np.isnan(equal.correlation)
    shifted = compare(np.array([-0.5, -0.3, -0.4]) + 0.1, [-0.5, -0.3, -0.4], RNG)
    assert (shifted.difference, shifted.lo, shifted.p) == pytest.approx((0.1, 0.1, 0))
    assert (shifted.correlation, shifted.p_sign_flip) == pytest.approx((1, 0.25))
    with pytest.raises(ValueError, match="by seed"):
        compare([0.1, 0.2], [0.1], RNG)


def test_pairing_narrows_the_interval_and_stays_honest() -> None:
    """Seed effects three times the rest: paired intervals cover 95% at a third of the width, unpaired ones cover too much."""
    rng = np.random.default_rng(8)
    repeats, n = 600, 6
    covered, too_wide, ratio, saved = 0, 0, [], []
    for _ in range(repeats):
        seed = rng.normal(0, 0.06, n)
        a, b = 0.5 + seed + rng.normal(0, 0.02, n), 0.45 + seed + rng.normal(0, 0.02, n)
        paired = compare(a, b, rng)
        apart = compare(np.append(a, [NAN] * n), np.append([NAN] * n, b), rng)
        covered += paired.lo <= 0.05 <= paired.hi
        too_wide += apart.lo <= 0.05 <= apart.hi
        ratio.append((paired.hi - paired.lo) / (apart.hi - apart.lo))
        saved.append(paired.saved)
    three_errors = 3 * (0.95 * 0.05 / repeats) ** 0.5
    assert abs(covered / repeats - 0.95) < three_errors
    assert too_wide / repeats > 0.95 + three_errors / 2
    assert 0.25 < np.median(ratio) < 0.55
    assert np.median(saved) == pytest.approx(0.9, abs=0.06)  # .06² / (.06² + .02²)


def test_sign_flips_cry_wolf_in_at_most_5_of_100_cases_whatever_the_shape() -> None:
    """Differences of two equal bimodal configs; at n = 5 no p is below .05, at n = 8 the test has its size."""
    rng = np.random.default_rng(9)
    repeats = 1500
    for n in (5, 8):
        collapsed = rng.random((2, repeats, n)) < 0.25
        a, b = np.where(collapsed, 0.45, 0.85) + rng.normal(0, 0.02, (2, repeats, n))
        rate = np.mean([sign_flip_p(d, rng) <= 0.05 for d in a - b])
        assert rate <= 0.05 + 3 * (0.05 * 0.95 / repeats) ** 0.5
        assert (rate == 0) == (n == 5)


def test_superiority_covers_where_brunner_and_munzel_do_not() -> None:
    from tests.coverage.differ import _brunner_munzel

    rng = np.random.default_rng(10)
    repeats, n = 800, 5
    truth = 0.9213504  # of normals 2 sd apart: Phi(2 / sqrt 2)
    pairs = [(rng.normal(2, 1, n), rng.normal(0, 1, n)) for _ in range(repeats)]
    ours = np.mean([lo <= truth <= hi for _, lo, hi in (superiority(a, b) for a, b in pairs)])
    theirs = np.mean([lo <= truth <= hi for lo, hi in (_brunner_munzel(a, b) for a, b in pairs)])
    limit = 0.95 - 3 * (0.95 * 0.05 / repeats) ** 0.5
    assert ours > limit > theirs


def test_importing_the_statistics_imports_no_library_but_numpy() -> None:
    modules = "compare, curse, gain, missing, questions"
    heavy = "{'scipy', 'statsmodels', 'polars', 'pandas'}"
    check = f"import sys; from analysis.stats import {modules}; sys.exit(sorted({heavy} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
