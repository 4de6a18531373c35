"""Questions, decoding noise, flips and the parts of a gain: against statsmodels, closed forms and simulations."""

from __future__ import annotations

import numpy as np
import pytest

from analysis.stats import Floats, t_interval
from analysis.stats.compare import sign_flip_p
from analysis.stats.gain import Measured, gain_parts
from analysis.stats.questions import clustered, clustered_difference, crossed, decoding_noise, flips
from tests.coverage.differ import answers, answers_to_these

pytestmark = pytest.mark.fast

NAN = float("nan")
RNG = np.random.default_rng(0)


def outcomes(seeds: int = 4, questions: int = 30, samples: int = 3) -> Floats:
    return answers(np.linspace(0.4, 0.8, seeds), 0.6, np.random.default_rng(1), samples)[:, :questions]


def test_clustered_as_statsmodels_does_it() -> None:
    from statsmodels.api import OLS

    y = outcomes()
    y[0, 3] = NAN
    y[:, 7] = NAN
    y[2, 9, 1] = NAN
    question = np.broadcast_to(np.arange(30)[None, :, None], y.shape)[np.isfinite(y)]
    theirs = OLS(y[np.isfinite(y)], np.ones(len(question))).fit(cov_type="cluster", cov_kwds={"groups": question}, use_t=True)
    found = clustered(y)
    assert (found.mean, found.se, found.df) == pytest.approx((theirs.params[0], theirs.bse[0], 28))
    assert (found.lo, found.hi) == pytest.approx(tuple(theirs.conf_int()[0]))


def test_one_answer_per_question_has_the_ordinary_standard_error() -> None:
    y = outcomes()[:1, :, 0]
    found, ordinary = clustered(y), t_interval(y)
    assert (found.lo, found.mean, found.hi) == pytest.approx((ordinary.lo, ordinary.mean, ordinary.hi))


def test_a_difference_is_paired_by_question() -> None:
    from scipy.stats import ttest_rel

    y = outcomes(6)
    a, b = y[:4], y[4:, :, :2]  # other seeds, fewer samples
    theirs = ttest_rel(a.mean((0, 2)), b.mean((0, 2)))
    found = clustered_difference(a, b)
    assert found.mean / found.se == pytest.approx(theirs.statistic)
    assert (found.lo, found.hi) == pytest.approx(tuple(theirs.confidence_interval()))
    a[:, 5] = NAN
    assert clustered_difference(a, b).df == 28
    with pytest.raises(ValueError, match="30 questions and b has 29"):
        clustered_difference(a, b[:, :29])


def test_crossed_as_the_analysis_of_variance_says() -> None:
    import pandas as pd
    from statsmodels.formula.api import ols
    from statsmodels.stats.anova import anova_lm

    y = np.random.default_rng(2).normal(0, 1, (4, 1)) + np.random.default_rng(3).normal(0, 0.5, (4, 12))
    table = pd.DataFrame({"y": y.ravel(), "s": np.repeat(range(4), 12), "q": np.tile(range(12), 4)})
    ms = anova_lm(ols("y ~ C(s) + C(q)", table).fit())["mean_sq"]
    found = crossed(y)
    variances = (ms["C(s)"] - ms["Residual"]) / 12, max(0, (ms["C(q)"] - ms["Residual"]) / 4), ms["Residual"]
    assert (found.seed_sd**2, found.question_sd**2, found.rest_sd**2) == pytest.approx(variances)
    by_parts = variances[0] / 4 + (ms["C(q)"] - ms["Residual"]) / 48 + variances[2] / 48
    assert found.estimate.se**2 == pytest.approx(max(by_parts, ms["C(s)"] / 48))


def test_crossed_covers_fresh_seeds_and_questions_where_either_alone_does_not() -> None:
    rng = np.random.default_rng(4)
    repeats, n, both, seeds_only, questions_only = 300, 8, 0, 0, 0
    for _ in range(repeats):
        y = answers(rng.normal(0.7, 0.06, n), 0.8, rng, 1)
        for_seeds = t_interval(y.mean((1, 2)))
        for_both, for_questions = crossed(y).estimate, clustered(y)
        both += for_both.lo <= 0.7 <= for_both.hi
        seeds_only += for_seeds.lo <= 0.7 <= for_seeds.hi
        questions_only += for_questions.lo <= 0.7 <= for_questions.hi
    limit = 0.95 - 3 * (0.95 * 0.05 / repeats) ** 0.5
    assert both / repeats > limit
    assert seeds_only / repeats < limit - 0.1  # all seeds share the questions
    assert questions_only / repeats < 0.95


def test_questions_at_the_edges() -> None:
    assert np.isnan(clustered(np.full((2, 3), NAN)).mean)
    one_question = clustered([[1.0], [0.0]])
    assert one_question.mean == 0.5
    assert np.isnan([one_question.se, one_question.lo]).all()
    sure = crossed(np.ones((3, 5)))
    assert (sure.estimate.mean, sure.estimate.se, sure.estimate.lo, sure.seed_sd) == (1, 0, 1, 0)
    one_seed = crossed(np.ones((1, 5)))
    assert (one_seed.estimate.mean, one_seed.n_seeds) == (1, 1)
    assert np.isnan([one_seed.estimate.se, one_seed.estimate.hi, one_seed.seed_sd]).all()
    lost = np.ones((3, 5))
    lost[1, 2] = NAN
    assert crossed(lost).n_seeds == 2
    assert np.isnan(crossed(np.full((3, 5), NAN)).estimate.mean)
    apart = clustered_difference([[1.0, NAN]], [[NAN, 1.0]])
    assert np.isnan([apart.mean, apart.se]).all()


def test_decoding_noise_is_what_drawing_again_gives() -> None:
    """Closed form: a seed that answers question q right with probability r has sum r(1-r) / K / Q^2."""
    rng = np.random.default_rng(5)
    right = np.clip(0.7 + np.linspace(-0.08, 0.08, 100), 0, 1)
    truth = (right * (1 - right)).sum() / 4 / 100**2
    found = [decoding_noise(answers_to_these(np.full(5, 0.7), rng)) for _ in range(300)]
    assert np.mean([f.decoding_sd**2 for f in found]) == pytest.approx(truth, rel=0.02)
    assert np.mean([f.between_sd**2 for f in found]) == pytest.approx(truth, rel=0.15)
    assert np.mean([f.p < 0.05 for f in found]) < 0.05 + 3 * (0.05 * 0.95 / 300) ** 0.5


def test_training_noise_is_told_from_decoding_noise() -> None:
    rng = np.random.default_rng(6)
    found = [decoding_noise(answers_to_these(rng.normal(0.7, 0.03, 6), rng)) for _ in range(400)]
    limit = 0.95 - 3 * (0.95 * 0.05 / 400) ** 0.5
    assert np.mean([f.lo <= 0.03 <= f.hi for f in found]) > limit
    # the check can fail: taking all noise between seeds for training's does not pass it
    assert np.mean([f.between_sd**2 for f in found]) > 1.3 * 0.03**2
    assert np.mean([f.between_sd**2 - f.decoding_sd**2 for f in found]) == pytest.approx(0.03**2, rel=0.15)


def test_decoding_noise_says_what_it_cannot_tell() -> None:
    for one_answer in (outcomes()[..., 0], outcomes()[..., :1]):
        found = decoding_noise(one_answer)
        assert "not identifiable: one answer per question" in found.note
        assert found.between_sd == pytest.approx(one_answer.reshape(4, -1).mean(1).std(ddof=1))
        assert np.isnan([found.decoding_sd, found.training_sd, found.lo, found.hi, found.p]).all()
    assert "needs two seeds" in decoding_noise(outcomes()[:1]).note
    assert "needs two seeds" in decoding_noise(np.full((3, 4, 2), NAN)).note
    certain = decoding_noise(np.ones((3, 4, 2)))
    assert (certain.between_sd, certain.decoding_sd, certain.training_sd, certain.p, certain.note) == (0, 0, 0, 1, "")


def test_flips_of_each_seed_as_statsmodels_does_it() -> None:
    from scipy.stats import binomtest

    y = outcomes(6, 60, 1)[..., 0]
    before, after = y[:3].copy(), y[3:].copy()
    before[1, 4] = NAN
    after[2] = NAN
    found = flips(before, after, RNG)
    assert found.n.tolist() == [60, 59, 0]
    for s in range(2):
        better = int(((before[s] == 0) & (after[s] == 1)).sum())
        worse = int(((before[s] == 1) & (after[s] == 0)).sum())
        assert (found.wrong_to_right[s], found.right_to_wrong[s]) == (better, worse)
        assert found.p[s] == pytest.approx(binomtest(better, better + worse).pvalue)
    assert np.isnan(found.p[2])
    gain = (found.wrong_to_right.sum() - found.right_to_wrong.sum()) / found.n.sum()
    assert found.net.mean == pytest.approx(gain)


def test_mcnemar_is_the_sign_flip_test_of_answers_that_changed() -> None:
    before, after = np.zeros((1, 20)), np.zeros((1, 20))
    before[0, :2], after[0, 2:11] = 1, 1
    assert flips(before, after, RNG).p[0] == pytest.approx(sign_flip_p((after - before)[0], RNG))
    # so with several samples the question's net change is what flips: two samples that agree are no more evidence
    doubled = flips(np.repeat(before[..., None], 2, 2), np.repeat(after[..., None], 2, 2), RNG)
    assert doubled.p[0] == pytest.approx(flips(before, after, RNG).p[0])
    assert doubled.wrong_to_right.tolist() == [18]


def test_pooled_flips_do_not_take_the_same_question_for_new_evidence() -> None:
    """Eight seeds that lose and win the same questions: a pooled McNemar test cries wolf, the question-wise one does not."""
    from scipy.stats import binomtest

    rng = np.random.default_rng(7)
    repeats, ours, pooled = 200, 0, 0
    equal = np.full(8, 0.7)
    for _ in range(repeats):
        before = np.repeat(answers(equal[:1], 1.0, rng, 1), 8, 0)
        found = flips(before, answers(equal, 0.8, rng, 1), rng)
        ours += found.p_questions <= 0.05
        gained, lost = int(found.wrong_to_right.sum()), int(found.right_to_wrong.sum())
        pooled += binomtest(gained, gained + lost).pvalue <= 0.05
    limit = 0.05 + 3 * (0.05 * 0.95 / repeats) ** 0.5
    assert ours / repeats < limit < pooled / repeats


def test_flips_at_the_edges() -> None:
    same = flips(outcomes(), outcomes(), RNG)
    assert (same.net.mean, same.p_questions, same.p_seeds) == (0, 1, 1)
    assert (same.p == 1).all()
    one_seed = flips([[1.0, 0.0]], [[1.0, 1.0]], RNG)
    assert np.isnan(one_seed.p_seeds)
    assert one_seed.p_questions == 1
    nothing = flips(np.full((2, 3), NAN), np.ones((2, 3)), RNG)
    assert (nothing.n == 0).all()
    assert np.isnan([*nothing.p, nothing.p_questions, nothing.p_seeds, nothing.net.mean]).all()
    with pytest.raises(ValueError, match="the same seeds"):
        flips(np.ones((2, 3)), np.ones((2, 4)), RNG)


def measured(accuracy: object, truncated: object, length: object, unparsable: object = None) -> Measured:
    """Numbers for each of five seeds."""
    arrays = [np.broadcast_to(np.asarray(v, dtype=float), 5).copy() for v in (accuracy, truncated, length)]
    return Measured(*arrays, None if unparsable is None else np.broadcast_to(np.asarray(unparsable, dtype=float), 5).copy())


def test_a_gain_that_is_only_truncation_leaves_no_rest() -> None:
    """Of the answers that end 70% are right, before and after; fewer are cut off after."""
    t0, t1 = np.array([0.4, 0.3, 0.35, 0.5, 0.2]), 0.05
    found = gain_parts(measured(0.7 * (1 - t0), t0, 100), measured(0.7 * (1 - t1), t1, 80))
    assert found.gain.mean == pytest.approx(0.7 * (t0 - t1).mean())
    assert found.truncation.explained.mean == pytest.approx(found.gain.mean)
    assert found.truncation.rest.mean == pytest.approx(0)
    assert found.truncation.least <= found.gain.mean <= found.truncation.most


def test_a_gain_without_truncation_is_all_rest() -> None:
    found = gain_parts(measured([0.5, 0.4, 0.6, 0.5, 0.5], 0, 100), measured(0.8, 0, [90, 95, 99, 80, 70]))
    assert (found.truncation.explained.mean, found.truncation.least, found.truncation.most) == (0, 0, 0)
    assert found.truncation.rest.mean == pytest.approx(found.gain.mean)


def test_parts_add_up_and_format_is_told_where_it_is_stored() -> None:
    rng = np.random.default_rng(8)
    before = measured(rng.uniform(0.2, 0.4, 5), rng.uniform(0.1, 0.3, 5), rng.normal(100, 9, 5), rng.uniform(0.1, 0.5, 5))
    after = measured(rng.uniform(0.5, 0.7, 5), rng.uniform(0, 0.1, 5), rng.normal(90, 9, 5), 0.0)
    found = gain_parts(before, after)
    for part in (found.truncation, found.format):
        assert part is not None
        assert part.explained.mean + part.rest.mean == pytest.approx(found.gain.mean)
    assert found.format is not None
    assert found.format.most == pytest.approx(np.mean(before.unparsable))
    assert not any("unparsable" in note for note in found.notes)
    unstored = gain_parts(before, measured(0.6, 0, 90))
    assert unstored.format is None
    assert any("unparsable" in note for note in unstored.notes)


def test_bounds_hold_whatever_truncated_answers_would_have_been() -> None:
    """Answer by answer: what those that began or ceased to be cut off added lies within the bounds, often near an end."""
    rng = np.random.default_rng(9)
    for case in range(100):
        cut0, cut1 = rng.random((2, 5, 200)) < rng.uniform(0, 0.6, (2, 1, 1))
        right0, right1 = (rng.random((5, 200)) < rng.uniform(0, 1)) & ~cut0, (rng.random((5, 200)) < rng.uniform(0, 1)) & ~cut1
        changed = cut0 != cut1
        part = (right1.astype(float) - right0)[changed].sum() / right0.size
        flipped = flips(right0.astype(float), right1.astype(float), np.random.default_rng(0)) if case < 5 else None
        args = [measured(right.mean(1), cut.mean(1), 100) for right, cut in ((right0, cut0), (right1, cut1))]
        wide = gain_parts(*args).truncation
        assert wide.least - 1e-12 <= part <= wide.most + 1e-12
        if flipped is not None:
            narrow = gain_parts(*args, flipped).truncation
            assert wide.least <= narrow.least <= part + 1e-12
            assert part - 1e-12 <= narrow.most <= wide.most


def test_gain_at_equal_length_as_statsmodels_does_it() -> None:
    from scipy.stats import pearsonr
    from statsmodels.api import OLS, add_constant

    longer, gain = np.array([3.0, -5.0, 12.0, 8.0, 20.0]), np.array([0.11, 0.08, 0.2, 0.12, 0.25])
    found = gain_parts(measured(0.4, 0, 100), measured(0.4 + gain, 0, 100 + longer))
    theirs = OLS(gain, add_constant(longer)).fit()
    assert found.at_equal_length.mean == pytest.approx(theirs.params[0])
    assert (found.at_equal_length.lo, found.at_equal_length.hi) == pytest.approx(tuple(theirs.conf_int()[0]))
    assert found.at_equal_length.sd == pytest.approx(theirs.mse_resid**0.5)
    assert found.length_correlation == pytest.approx(pearsonr(gain, longer).statistic)
    r, half = np.arctanh(found.length_correlation), 1.959964 / 2**0.5
    assert (found.length_correlation_lo, found.length_correlation_hi) == pytest.approx(tuple(np.tanh([r - half, r + half])))
    assert found.length.mean == pytest.approx(longer.mean())


def test_gains_at_the_edges() -> None:
    same_length = gain_parts(measured(0.4, 0, 100), measured([0.5, 0.6, 0.5, 0.6, 0.5], 0, 90))
    assert any("equal length" in note for note in same_length.notes)
    assert np.isnan([same_length.length_correlation, same_length.at_equal_length.mean]).all()
    all_cut = gain_parts(measured(0, 1, 100), measured(0.8, 0, [1, 2, 3, 4, 5]))  # the gain is all truncation's
    assert (all_cut.truncation.explained.mean, all_cut.truncation.rest.mean) == pytest.approx((0.8, 0))
    missing = gain_parts(measured([NAN, 0.4, 0.4, 0.4, NAN], 0, 100), measured(0.6, 0, [NAN, 1, 2, 4, 9]))
    assert (missing.gain.n, missing.truncation.rest.n, missing.length.n, missing.at_equal_length.n) == (3, 3, 4, 3)
    nothing = gain_parts(measured(NAN, NAN, NAN), measured(NAN, NAN, NAN))
    assert nothing.gain.n == 0
    assert np.isnan([nothing.truncation.most, nothing.at_equal_length.mean]).all()
