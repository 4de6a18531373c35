"""Questions as a second source of error, and what single answers tell that a mean hides.

Outcomes are (seeds, questions) or (seeds, questions, samples): 1 right, 0 wrong, NaN missing; the same question at the
same place. Answers to one question are alike, whoever gives them, so questions are the clusters.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from analysis.stats.basics import ALPHA, Floats
from analysis.stats.compare import sign_flip_p

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Estimate:
    """A mean of answers (0..1; a difference: -1..1) with its standard error and 95% interval mean ± t(.975, df) se.

    NaN where nothing can be said (one question, or one seed where seeds are asked for).
    """

    mean: float
    se: float
    df: float
    lo: float
    hi: float


def _estimate(mean: float, se: float, df: float) -> Estimate:
    from scipy.stats import t

    half = float(t.ppf(1 - ALPHA / 2, df)) * se if df > 0 else float("nan")
    return Estimate(mean, se, df, mean - half, mean + half)


def clustered(outcomes: npt.ArrayLike) -> Estimate:
    """The accuracy of *these* checkpoints on questions like these: standard error clustered by question.

    Over the N answers y to Q questions, se = sqrt(Q/(Q-1) sum_q (sum_{i in q} (y_i - mean))^2) / N (Miller 2024, "Adding
    error bars to evals", equation 4; the factor Q/(Q-1) is for few questions), df = Q-1. One answer per question gives
    the ordinary standard error. It says nothing about other seeds: see `crossed`.
    """
    y, known = _by_question(outcomes)
    q, n = int(known.any(1).sum()), int(known.sum())
    if not n:
        return _estimate(np.nan, np.nan, np.nan)
    mean = float(y[known].mean())
    sums = np.where(known, y - mean, 0.0).sum(1)
    se = float(np.sqrt(q / (q - 1) * (sums**2).sum()) / n) if q > 1 else float("nan")
    return _estimate(mean, se, q - 1)


def clustered_difference(a: npt.ArrayLike, b: npt.ArrayLike) -> Estimate:
    """Accuracy of a minus that of b on questions like these, paired by question; seeds and samples need not match.

    d_q = mean answer of a to q - mean answer of b to q; se = sd(d) / sqrt(Q) over the Q questions both answered, df = Q-1
    (Miller 2024, section 4.2). Questions that are hard for both cancel. Raises `ValueError` for unequal numbers of
    questions.
    """
    first, second = _question_means(a), _question_means(b)
    if len(first) != len(second):
        raise ValueError(f"a has {len(first)} questions and b has {len(second)}")
    d = first - second
    d = d[np.isfinite(d)]
    se = float(d.std(ddof=1) / len(d) ** 0.5) if len(d) > 1 else float("nan")
    return _estimate(float(d.mean()) if len(d) else float("nan"), se, len(d) - 1)


@dataclass(frozen=True)
class Crossed:
    """An accuracy for fresh seeds *and* fresh questions; `estimate` as above.

    Standard deviations (unit of the outcomes) of one seed's effect, one question's and the rest (their interaction with
    the decoding noise), each 0 where its estimate is negative.
    """

    estimate: Estimate
    n_seeds: int
    n_questions: int
    seed_sd: float
    question_sd: float
    rest_sd: float


def crossed(outcomes: npt.ArrayLike) -> Crossed:
    """Two-way standard error: seeds and questions both are samples, each seed answered each question.

    y_sq = mean + seed_s + question_q + rest_sq; var(mean) = var_seed/S + var_question/Q + var_rest/(SQ), estimated by
    the method of moments: (MS_seed + MS_question - MS_rest) / (SQ), at least each of the first two alone;
    Satterthwaite's df (Searle, Casella & McCulloch 1992, ch. 4). Samples of a question are averaged first. For a paired
    difference by seed and question give a - b. Seeds with a missing answer are left out. NaN below two seeds or two
    questions.
    """
    y = _cells(outcomes)
    y = y[np.isfinite(y).all(1)]
    s, q = y.shape
    mean = float(y.mean()) if y.size else float("nan")
    if s < 2 or q < 2:
        nan = float("nan")
        return Crossed(_estimate(mean, nan, nan), s, q, nan, nan, nan)
    seeds, questions = y.mean(1), y.mean(0)
    ms_s, ms_q = q * float(seeds.var(ddof=1)), s * float(questions.var(ddof=1))
    rest = y - seeds[:, None] - questions + mean
    ms_e = float((rest**2).sum()) / ((s - 1) * (q - 1))
    total = max(ms_s + ms_q - ms_e, ms_s, ms_q)
    parts = [(ms_s, s - 1), (ms_q, q - 1), (ms_e, (s - 1) * (q - 1))]
    if total == ms_s:
        parts = parts[:1]
    elif total == ms_q:
        parts = parts[1:2]
    spread = sum(ms**2 / df for ms, df in parts)
    df = total**2 / spread if spread > 0 else float(s - 1)
    found = _estimate(mean, (total / (s * q)) ** 0.5, df)
    return Crossed(found, s, q, *(max(0.0, v) ** 0.5 for v in ((ms_s - ms_e) / q, (ms_q - ms_e) / s, ms_e)))


@dataclass(frozen=True)
class Noise:
    """Why seeds differ on the same questions: standard deviations of a seed's accuracy.

    `between_sd`: between seeds, as seen. `decoding_sd`: what drawing the answers again would give. `training_sd`: the
    rest, what training with another seed does, with its 95% interval `lo`..`hi`; `p`: of no such rest.
    Where `note` is not empty, decoding and training cannot be told apart, for the reason it gives, and are NaN.
    """

    n_seeds: int
    between_sd: float
    decoding_sd: float
    training_sd: float
    lo: float
    hi: float
    p: float
    note: str


def decoding_noise(outcomes: npt.ArrayLike) -> Noise:
    """Decoding noise apart from seed noise; outcomes (seeds, questions, samples) of one config, one step, all drawn apart.

    var_decoding = mean over seeds of sum_q r (1-r) / (K-1) / Q^2, with r the share right of K samples: exact and free
    of the spread between questions, because all seeds answer the same ones. var_training = var_between - var_decoding,
    at least 0. Interval and p (Searle, Casella & McCulloch 1992): (S-1) var_between / (var_training + var_decoding) is
    chi-square with S-1 degrees of freedom, for normal seed effects and var_decoding taken as known. One sample per
    question identifies nothing: greedy answers have no decoding noise, and single draws cannot be told from training,
    except at step 0, where all seeds share one model and all spread is decoding's.
    """
    from scipy.stats import chi2

    y = np.asarray(outcomes, dtype=np.float64)
    y = y.reshape(*y.shape, 1) if y.ndim == 2 else y
    y = y[np.isfinite(y).all((1, 2))]
    s, q, k = y.shape
    between = float(y.mean((1, 2)).var(ddof=1)) if s > 1 and y.size else float("nan")
    if s < 2 or k < 2:
        why = "noise between seeds needs two seeds" if s < 2 else "one answer per question (a greedy one has no decoding noise)"
        nan = float("nan")
        return Noise(s, between**0.5, nan, nan, nan, nan, nan, f"not identifiable: {why}")
    right = y.mean(2)
    decoding = float((right * (1 - right)).sum(1).mean()) / (k - 1) / q**2
    total = (s - 1) * between
    lo, hi = (max(0.0, total / float(chi2.ppf(at, s - 1)) - decoding) ** 0.5 for at in (1 - ALPHA / 2, ALPHA / 2))
    p = float(chi2.sf(total / decoding, s - 1)) if decoding > 0 else (0.0 if total > 0 else 1.0)
    return Noise(s, between**0.5, decoding**0.5, max(0.0, between - decoding) ** 0.5, lo, hi, p, "")


@dataclass(frozen=True)
class Flips:
    """Answers that changed between two checkpoints or configs. Counts (seeds,) are of answers known on both sides.

    `p` (seeds,): McNemar's exact test of each seed. `net`: (wrong to right - right to wrong) / answers over all seeds,
    which is the difference in accuracy, with the interval of `clustered_difference` (fresh questions, these seeds).
    `p_questions`: the pooled McNemar test with the question as the unit, `p_seeds`: with the seed as the unit (sign
    flips).
    """

    n: Counts
    right_to_wrong: Counts
    wrong_to_right: Counts
    p: Floats
    net: Estimate
    p_questions: float
    p_seeds: float


def flips(before: npt.ArrayLike, after: npt.ArrayLike, rng: np.random.Generator) -> Flips:
    """Question flips between two arrays of outcomes of equal shape: the same seeds, questions and samples.

    Per seed: exact binomial test of wrong-to-right against right-to-wrong (McNemar 1947), with several samples per
    question its extension to clusters: sign flips of each question's net change (the same test for one sample). Pooled
    counts are not independent: the same questions flip for every seed (all seeds start from one model), so pooling is
    over clusters: sign flips of each question's net change, exact up to 16 questions, else random. `p` is NaN where
    nothing was answered. Raises `ValueError` for unequal shapes.
    """
    from statsmodels.stats.contingency_tables import mcnemar

    x, y = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    if x.shape != y.shape:
        raise ValueError(f"flips need the same seeds, questions and samples: {x.shape} against {y.shape}")
    change = (y - x).reshape(*x.shape[:2], -1)
    known = np.isfinite(change)
    n, worse, better = (c.sum((1, 2)) for c in (known, change < 0, change > 0))
    if change.shape[2] == 1:
        p = [float(mcnemar([[0, b], [c, 0]], exact=True).pvalue) if b + c else 1.0 for b, c in zip(worse, better, strict=True)]
    else:
        p = [sign_flip_p(np.where(known, change, 0.0)[s].sum(1), rng) for s in range(len(change))]
    by_question = np.where(known, change, 0.0).sum((0, 2))
    return Flips(
        n, worse, better, np.where(n > 0, p, np.nan), clustered(change),
        sign_flip_p(by_question[known.any((0, 2))], rng),
        sign_flip_p(np.where(known, change, 0.0).sum((1, 2))[n > 0], rng),
    )  # fmt: skip


def _cells(outcomes: npt.ArrayLike) -> Floats:
    """(seeds, questions): the mean over samples."""
    y = np.asarray(outcomes, dtype=np.float64)
    return y.mean(2) if y.ndim == 3 else y


def _by_question(outcomes: npt.ArrayLike) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """(questions, answers): all answers to a question in one row."""
    y = np.asarray(outcomes, dtype=np.float64)
    y = np.moveaxis(y, 1, 0).reshape(y.shape[1], -1)
    return y, np.isfinite(y)


def _question_means(outcomes: npt.ArrayLike) -> Floats:
    y, known = _by_question(outcomes)
    with np.errstate(invalid="ignore"):
        means: Floats = np.where(known, y, 0.0).sum(1) / known.sum(1)
    return means
