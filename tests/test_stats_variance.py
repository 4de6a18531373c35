"""Variance components against statsmodels' REML, one-way formulas, published intervals, and simulation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from analysis.stats import Floats
from analysis.stats.variance import Variance, decoding_variance, intraclass_correlation, variance_components

pytestmark = pytest.mark.fast

NAN = float("nan")


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def by_name(found: Variance) -> dict[str, float]:
    return {c.name: c.variance for c in found.components}


def crossed(random: np.random.Generator, shape: tuple[int, int, int] = (6, 4, 5)) -> Floats:
    """(config, prompt, seed) with variances 9, 4, 1 (config × prompt), 2 (seed), 3 (config × seed)."""
    c, p, s = shape
    return (
        random.normal(0, 3, (c, 1, 1)) + random.normal(0, 2, (1, p, 1)) + random.normal(0, 1, (c, p, 1))
        + random.normal(0, 2**0.5, (1, 1, s)) + random.normal(0, 3**0.5, shape)
    )  # fmt: skip


def components(y: Floats, **more: Any) -> Variance:
    """Of (config, seed), (config, prompt, seed) or (config, prompt, seed, step) arrays."""
    names = {2: ("config", "seed"), 3: ("config", "prompt", "seed"), 4: ("config", "prompt", "seed", "step")}[y.ndim]
    labels = {name: index.ravel() for name, index in zip(names, np.indices(y.shape), strict=True)}
    return variance_components(y.ravel(), **labels, **more, rng=rng())


def test_one_way_by_hand_and_the_interval_of_shrout_and_fleiss() -> None:
    y = np.array([[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]], dtype=float)
    icc, lo, hi = intraclass_correlation(y, np.indices(y.shape)[0])  # Shrout and Fleiss 1979; R's psych::ICC, ICC1
    assert (icc, lo, hi) == pytest.approx((0.17, -0.0, 0.72), abs=0.01)
    assert icc == pytest.approx((11.2417 - 6.2639) / (11.2417 + 3 * 6.2639), abs=1e-4)
    found = variance_components(y.ravel(), np.indices(y.shape)[0].ravel(), rng=rng())
    assert by_name(found) == pytest.approx({"config": (11.2417 - 6.2639) / 4, "seed": 6.2639}, abs=1e-4)
    assert (found.icc, found.icc_lo, found.icc_hi) == (pytest.approx(icc), lo, hi)
    assert (found.luck.share, found.luck.lo, found.luck.hi) == (pytest.approx(1 - icc), 1 - hi, 1 - lo)


def test_one_way_with_unequal_seeds_has_hendersons_n0() -> None:
    y = [1.0, 2.0, 4.0, 7.0, 8.0, 3.0]
    config = ["a", "a", "a", "b", "b", "c"]
    within = (14 / 3 + 0.5) / 3
    between = (3 * (7 / 3 - 25 / 6) ** 2 + 2 * (7.5 - 25 / 6) ** 2 + (3 - 25 / 6) ** 2) / 2
    n0 = (6 - (9 + 4 + 1) / 6) / 2
    found = by_name(variance_components(y, config, rng=rng()))
    assert found == pytest.approx({"config": (between - within) / n0, "seed": within})
    icc, lo, hi = intraclass_correlation(y, config)
    assert icc == pytest.approx(found["config"] / (found["config"] + within))
    assert 0 <= lo < icc < hi <= 1


def test_balanced_crossed_components_are_those_of_reml() -> None:
    import pandas as pd
    import statsmodels.formula.api as smf

    y = crossed(np.random.default_rng(4), (5, 4, 4))
    c, p, s = (a.ravel() for a in np.indices(y.shape))
    frame = pd.DataFrame({"y": y.ravel(), "c": c, "p": p, "s": s, "all": 1})
    parts = {"config": "0 + C(c)", "prompt": "0 + C(p)", "config × prompt": "0 + C(c):C(p)", "seed": "0 + C(s)"}
    fit = smf.mixedlm("y ~ 1", frame, groups="all", vc_formula=parts).fit(reml=True)
    reml = dict(zip(fit.model.exog_vc.names, fit.vcomp, strict=True)) | {"config × seed": fit.scale}
    found = by_name(components(y))
    assert min(found.values()) > 0  # where nothing is cut, REML and ANOVA are the same
    assert found == pytest.approx(reml, rel=0.01)


@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_components_are_unbiased_with_and_without_missing_runs(missing: float) -> None:
    random = np.random.default_rng(1)
    found = []
    for _ in range(150):
        y = crossed(random, (12, 8, 6))
        y[random.random(y.shape) < missing] = NAN
        found.append(by_name(components(y)))
    truth = {"prompt": 4, "config": 9, "config × prompt": 1, "seed": 2, "config × seed": 3}
    for name, variance in truth.items():
        estimates = np.array([f[name] for f in found])
        assert abs(estimates.mean() - variance) < 3.5 * estimates.std() / 150**0.5, name


def test_seeds_that_configs_share_are_told_from_the_rest() -> None:
    y = np.random.default_rng(2).normal(0, 1, (300, 1)) + 5 * np.arange(4) + np.random.default_rng(3).normal(0, 2, (300, 4))
    found = by_name(components(y))
    assert found["config"] == pytest.approx(1, abs=0.5)  # three standard errors
    assert found["config × seed"] == pytest.approx(4, rel=0.15)
    assert found["seed"] == pytest.approx(25 * np.var(np.arange(4), ddof=1), rel=0.1)
    own = np.arange(y.size).reshape(y.shape)  # no two configs have a seed in common
    apart = variance_components(y.ravel(), np.indices(y.shape)[0].ravel(), seed=own.ravel(), rng=rng())
    assert [c.name for c in apart.components] == ["config", "seed"]


def test_steps_have_components_of_their_own() -> None:
    random = np.random.default_rng(5)
    y = crossed(random, (30, 10, 8))[..., None] + 2 * random.normal(size=12) + 0.5 * random.normal(size=(30, 10, 8, 12))
    found = components(y)
    parts = by_name(found)
    assert parts["step"] == pytest.approx(4, rel=0.9)
    assert (parts["seed × step"], parts["config × seed"]) == pytest.approx((0.25, 3), rel=0.1)
    assert parts["config × step"] < 0.05
    assert np.isnan(found.icc)
    with pytest.raises(ValueError, match="`seed`"):
        variance_components([1.0], [0], step=[0], rng=rng())


def test_prompts_that_do_not_cross_the_settings() -> None:
    y = np.random.default_rng(6).normal(size=(6, 3))
    config, seed = np.indices(y.shape)
    labels = {"config": config.ravel(), "seed": seed.ravel()}
    nested = variance_components(y.ravel(), prompt=(config // 2).ravel(), **labels, rng=rng())
    assert [c.name for c in nested.components] == ["prompt", "config", "seed", "config × seed"]
    one = variance_components(y.ravel(), prompt=np.zeros(18), **labels, rng=rng())
    assert one.notes[0] == "only one prompt"
    assert by_name(one) == by_name(components(y))
    together = variance_components(y.ravel(), prompt=config.ravel(), **labels, rng=rng())
    assert by_name(together) == by_name(one)
    assert "cannot be told apart" in together.notes[0]


def test_decoding_variance_is_what_sampling_again_shows() -> None:
    random = np.random.default_rng(7)
    chance = random.uniform(0, 1, 100)
    counts = random.binomial(4, chance, (20_000, 100))
    accuracy = counts.mean(1) / 4
    assert decoding_variance(counts, 4, temperature=0.7).mean() == pytest.approx(accuracy.var(), rel=0.05)
    assert decoding_variance(counts[:2], 4, temperature=0).tolist() == [0, 0]
    assert np.isnan(decoding_variance(counts[:2] > 0, 1, temperature=0.7)).all()


def test_decoding_noise_is_taken_out_of_the_seeds() -> None:
    random = np.random.default_rng(8)
    y = random.normal(0, 2, (200, 1)) + random.normal(0, 1, (200, 6)) + random.normal(0, 0.5, (200, 6))
    with_it, without = components(y, decoding=np.full(1200, 0.25)), components(y)
    assert by_name(with_it)["config × seed"] == pytest.approx(by_name(without)["config × seed"] - 0.25)
    assert by_name(with_it)["decoding"] == 0.25
    assert with_it.luck.share == pytest.approx(without.luck.share)
    assert sum(c.share for c in with_it.components) == pytest.approx(1)
    unknown = components(y, decoding=NAN)
    assert by_name(unknown) == by_name(without)
    assert any("decoding noise cannot be told apart" in note for note in unknown.notes)
    some = components(y, decoding=np.where(np.arange(1200) < 5, 0.25, NAN))
    assert any(note.startswith("decoding noise is known for 5 of 1,200 rows") for note in some.notes)
    assert by_name(components(y, decoding=0))["decoding"] == 0


def test_runs_that_were_evaluated_again_tell_decoding_noise() -> None:
    random = np.random.default_rng(9)
    run = random.normal(0, 2, (100, 1)) + random.normal(0, 1, (100, 8))
    y = run[..., None] + random.normal(0, 0.5, (100, 8, 3))
    config, seed, _ = (a.ravel() for a in np.indices(y.shape))
    parts = by_name(variance_components(y.ravel(), config, seed=seed, rng=rng()))
    assert (parts["config"], parts["config × seed"], parts["decoding"]) == pytest.approx((4, 1, 0.25), rel=0.25)


def test_estimates_below_0_are_cut_and_said_so() -> None:
    y = np.array([[1.0, 5.0], [5.0, 1.0], [2.0, 4.0]])
    found = variance_components(y.ravel(), np.indices(y.shape)[0].ravel(), rng=rng())
    assert by_name(found)["config"] == 0
    assert found.notes == ("config came out below 0 and is shown as 0",)
    assert (found.icc, found.icc_lo) == (0, 0)


@pytest.mark.parametrize(
    ("y", "note"),
    [
        (np.empty((0, 3)), "nothing varies"),
        (np.full((3, 3), NAN), "nothing varies"),
        (np.full((3, 3), 0.5), "nothing varies"),
        (np.array([[0.1, 0.2, 0.4]]), "its share of the variance cannot be told"),
        (np.array([[0.1], [0.2], [0.4]]), "one run per config: luck cannot be told from the settings"),
    ],
)
def test_what_cannot_be_told_is_nan_and_said(y: Floats, note: str) -> None:
    found = components(y)
    assert found.notes[-1] == note
    assert np.isnan([found.icc, found.luck.share, *by_name(found).values()]).all()
    assert np.isnan(intraclass_correlation(y, np.indices(y.shape)[0])).all()


def test_negative_values_and_another_origin_change_nothing() -> None:
    y = crossed(np.random.default_rng(10))
    assert by_name(components(y - 1000)) == pytest.approx(by_name(components(y)), rel=1e-6)


@pytest.mark.parametrize("unequal", [False, True])
def test_icc_interval_covers_in_95_of_100_cases(unequal: bool) -> None:
    random = np.random.default_rng(11)
    repeats, covered, by_bootstrap = 1500, 0, 0
    for _ in range(repeats):
        y = random.normal(size=(8, 1)) + random.normal(size=(8, 6))  # ICC = .5
        if unequal:
            y[np.arange(6) >= random.integers(2, 7, (8, 1))] = NAN
        _, lo, hi = intraclass_correlation(y, np.indices(y.shape)[0])
        covered += lo <= 0.5 <= hi
        if not unequal:
            drawn = y[random.integers(0, 8, (200, 8))]
            within = drawn.var(2, ddof=1).mean(1)
            between = drawn.mean(2).var(1, ddof=1) - within / 6
            low, high = np.quantile(between / (between + within), [0.025, 0.975])
            by_bootstrap += low <= 0.5 <= high
    limit = 3 * (0.05 * 0.95 / repeats) ** 0.5
    assert abs(covered / repeats - 0.95) < limit + 0.01 * unequal
    if not unequal:  # the check can fail: a bootstrap of the configs does not pass it
        assert by_bootstrap / repeats < 0.9


def test_intervals_of_shares_cover_in_95_of_100_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("analysis.stats.variance.DRAWS", 1000)
    random = np.random.default_rng(12)
    repeats = 500
    truth = {
        "prompt": 4 / 19,
        "config": 9 / 19,
        "config × prompt": 1 / 19,
        "seed": 2 / 19,
        "config × seed": 3 / 19,
        "luck": 5 / 19,
    }
    covered, halved = dict.fromkeys(truth, 0), dict.fromkeys(truth, 0)
    for _ in range(repeats):
        found = components(crossed(random))
        for c in (*found.components, found.luck):
            covered[c.name] += c.lo <= truth[c.name] <= c.hi
            halved[c.name] += (c.lo + c.share) / 2 <= truth[c.name] <= (c.hi + c.share) / 2
    for name in truth:
        assert 0.915 < covered[name] / repeats < 0.99, name
        assert halved[name] / repeats < 0.9, name  # the check can fail: half the interval does not pass it
