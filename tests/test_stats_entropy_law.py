"""The entropy law against closed forms, a second implementation, and the coverage of its intervals."""

from __future__ import annotations

import numpy as np
import pytest

from analysis.stats.entropy_law import fit_law, over_seeds, predict_rest

pytestmark = pytest.mark.fast
NAN = float("nan")


def test_a_law_without_noise_is_found_again() -> None:
    h = np.linspace(1.2, 0.05, 8)
    law = fit_law(h, 0.9 - 0.15 * np.exp(h))
    assert law is not None
    assert (law.a.value, law.b.value, law.ceiling.value) == pytest.approx((0.15, 0.9, 0.75))
    assert law.r2 == pytest.approx(1.0)
    assert np.abs(law.residuals).max() < 1e-12
    assert law.at(np.array([0.0, 1.0])) == pytest.approx([0.75, 0.9 - 0.15 * np.e])


def test_by_hand() -> None:
    """e^H of 1, 2, 3 and R of .8, .5, .5: slope -.15, mean .6 at 2; residuals .05, -.1, .05 with one degree of freedom."""
    law = fit_law(np.log([1.0, 2.0, 3.0]), np.array([0.8, 0.5, 0.5]))
    assert law is not None
    assert (law.a.value, law.b.value, law.ceiling.value) == pytest.approx((0.15, 0.9, 0.75))
    assert law.residuals == pytest.approx([0.05, -0.1, 0.05])
    s = 0.015**0.5
    assert law.sd == pytest.approx(s)
    assert law.a.error == pytest.approx(s / 2**0.5)
    assert law.b.error == pytest.approx(s * (1 / 3 + 2**2 / 2) ** 0.5)
    assert law.ceiling.error == pytest.approx(s * (1 / 3 + 1**2 / 2) ** 0.5)
    assert law.a.hi - law.a.value == pytest.approx(12.706205 * law.a.error)
    assert law.r2 == pytest.approx(1 - 0.015 / 0.06)
    assert law.autocorrelation == pytest.approx(-0.01 / 0.015)


def test_against_the_normal_equations_with_missing_points() -> None:
    rng = np.random.default_rng(0)
    h = rng.uniform(0.1, 1.5, 12)
    r = 0.8 - 0.1 * np.exp(h) + rng.normal(0, 0.02, 12)
    h[3], r[7] = NAN, NAN
    law = fit_law(h, r)
    known = np.isfinite(h + r)
    x = np.stack([-np.exp(h[known]), np.ones(known.sum())], axis=1)
    (a, b), squares, *_ = np.linalg.lstsq(x, r[known])
    covariance = np.linalg.inv(x.T @ x) * squares[0] / (known.sum() - 2)
    assert law is not None
    assert law.n == 10
    assert (law.a.value, law.b.value) == pytest.approx((a, b))
    assert (law.a.error, law.b.error) == pytest.approx(np.diag(covariance) ** 0.5)
    assert law.ceiling.error == pytest.approx((np.array([-1, 1]) @ covariance @ [-1, 1]) ** 0.5)


def test_too_few_points_and_a_constant_entropy_have_no_law() -> None:
    two = np.array([0.5, 0.4])
    assert fit_law(two, two) is None
    assert fit_law(np.array([0.5, 0.4, NAN]), np.array([0.1, 0.2, 0.3])) is None
    assert fit_law(np.full(5, 0.7), np.linspace(0, 1, 5)) is None
    flat = fit_law(np.array([0.3, 0.2, 0.1]), np.full(3, 0.6))
    assert flat is not None
    assert flat.a.value == pytest.approx(0.0, abs=1e-12)
    h = np.linspace(1, 0, 5)
    assert predict_rest(h, h, 2) is None
    assert predict_rest(h, h, 5) is None


def test_the_rest_of_a_run_is_foretold() -> None:
    h = np.linspace(1.0, 0.1, 10)
    r = 0.9 - 0.2 * np.exp(h)
    r[7] += 0.03
    found = predict_rest(h, r, 4)
    assert found is not None
    assert (found.n_fit, found.n) == (4, 6)
    assert found.errors == pytest.approx([0, 0, 0, -0.03, 0, 0], abs=1e-12)
    assert (found.mean, found.max) == pytest.approx((0.005, 0.03))
    assert found.carried == pytest.approx(np.abs(r[3] - r[4:]).mean())


def simulated(rng: np.random.Generator, correlation: float, a: float = 0.12) -> tuple[np.ndarray, np.ndarray]:
    """A run of 12 points with a = .12 and b = .85, entropy falling from 1.2; noise of sd .02, correlated from point to point."""
    h = 1.2 * np.exp(-np.arange(12) / 5)
    noise = [rng.normal(0, 0.02)]
    for _ in h[1:]:
        noise.append(correlation * noise[-1] + rng.normal(0, 0.02 * (1 - correlation**2) ** 0.5))
    return h, 0.85 - a * np.exp(h) + noise


def test_intervals_of_one_run_cover_for_independent_noise_only() -> None:
    """And those over seeds cover with correlated noise as well, and with an `a` that differs between seeds."""
    rng = np.random.default_rng(1)
    repeats = 400
    error = 3 * (0.95 * 0.05 / repeats) ** 0.5

    def covered(correlation: float) -> list[float]:
        laws = [fit_law(*simulated(rng, correlation)) for _ in range(repeats)]
        truth = {"a": 0.12, "b": 0.85, "ceiling": 0.73}
        return [float(np.mean([getattr(x, n).lo <= v <= getattr(x, n).hi for x in laws])) for n, v in truth.items()]

    assert covered(0.0) == pytest.approx([0.95] * 3, abs=error)
    assert max(covered(0.8)) < 0.75
    held = []
    for _ in range(repeats // 2):
        seeds = [fit_law(*simulated(rng, 0.8, rng.normal(0.12, 0.02))) for _ in range(5)]
        found = over_seeds([law for law in seeds if law is not None], [])
        held.append([found.a.lo <= 0.12 <= found.a.hi, found.b.lo <= 0.85 <= found.b.hi])
    assert np.mean(held, axis=0) == pytest.approx([0.95, 0.95], abs=error * 2**0.5)
    assert np.isnan(found.error.mean)
