"""The logit shift (arXiv 2505.20282, section 5): how a model's logits are distributed, as mean, sd, skewness and histogram.

Two forms are measured, because the released code's cannot compare models on equal terms:

* raw: every logit at every token of the task's worked solutions, the same text for all models and steps;
* processed, as in the released code: the scores from which the model samples its own answers (logits / .6, the 50 highest),
  without zeros and infinities.

Both are pooled over all positions and vocabulary entries. Skewness is m3 / m2^1.5 of the central moments (`scipy.stats.skew`),
sd the population's. Moments are summed in double precision, over few positions at a time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from em_core.config import Evaluation
from em_core.model import Policy
from em_core.noise import uniforms
from em_core.rollout import Rollout, Sampling, pad_left
from em_core.tasks import load_task

PROCESSED = Sampling(temperature=0.6, top_k=50)
"""How the released code samples the text whose scores it describes."""
LOW, WIDTH, BINS = -128.0, 0.25, 1024
"""The histogram's bins: BINS of WIDTH from LOW on. The first and the last also hold what lies beyond."""
ENTRIES = 1 << 24
"""Logits that are in double precision at a time: 128 MB."""


@dataclass(frozen=True)
class Moments:
    """`n` values: their mean, and the sums of the squares and cubes of their distances from it."""

    n: float
    mean: float
    squares: float
    cubes: float

    @classmethod
    def pooled(cls, n: Tensor, mean: Tensor, squares: Tensor, cubes: Tensor) -> Moments:
        """The moments of several groups of values, each told by its own (shape (groups,)), together (Pebay 2008)."""
        total = n.sum()
        middle = (n * mean).sum() / total
        shift = mean - middle
        together = squares + n * shift**2, cubes + 3 * shift * squares + n * shift**3
        return cls(total.item(), middle.item(), together[0].sum().item(), together[1].sum().item())

    @classmethod
    def over(cls, parts: Sequence[Moments]) -> Moments:
        columns = torch.tensor([[p.n, p.mean, p.squares, p.cubes] for p in parts], dtype=torch.float64)
        return cls.pooled(*columns.T)

    def values(self, name: str) -> dict[str, float]:
        """`NAME_mean`, `NAME_sd` and `NAME_skewness`; the last is NaN where all values are equal."""
        variance = self.squares / self.n
        skewness = self.cubes / self.n / variance**1.5 if variance > 0 else float("nan")
        return {f"{name}_mean": self.mean, f"{name}_sd": variance**0.5, f"{name}_skewness": skewness}


@dataclass(frozen=True)
class Measured:
    """What one question adds: moments of the logits on its solution, of the highest at each position, and of the processed
    scores on the model's own answer of so many tokens; and how many raw logits lie in each bin."""

    logit: Moments
    top_logit: Moments
    processed: Moments
    counts: np.ndarray
    tokens: int
    ended: bool


def emit_logits(
    policy: Policy, eval_id: str, evaluation: Evaluation, seed: int, step: int, batch_size: int, emit: Callable[..., None]
) -> None:
    """Measure, and emit the `eval` record of docs/records.md: no accuracy, but `logit_...` values and a histogram.

    Raises `UserError` where the task cannot be read or has no solutions, `ValueError` where one does not fit the model.
    """
    started = time.perf_counter()
    task, found = measure(policy, evaluation, seed, step, batch_size)
    values: dict[str, float] = {}
    for name in ("logit", "top_logit", "processed"):
        values |= Moments.over([getattr(m, name) for m in found]).values(name)
    values["completion_length"] = sum(m.tokens for m in found) / len(found)
    values["truncated"] = 1 - sum(m.ended for m in found) / len(found)
    values["seconds"] = time.perf_counter() - started
    said = {"step": step, "eval_id": eval_id, "task": task, "grader": None, "n_questions": len(found), "num_samples": 1}
    counts = np.sum([m.counts for m in found], axis=0)
    emit("eval", **said, accuracy=None, outcomes="", values=values, histogram=_histogram(counts))


@torch.no_grad()
def measure(policy: Policy, evaluation: Evaluation, seed: int, step: int, batch_size: int) -> tuple[str, list[Measured]]:
    """(the task's name, what each of its questions adds, in order)."""
    task = load_task(evaluation)
    prompts = [policy.encode_question(q, task.system) for q in task.questions]
    length = evaluation.max_completion_length or task.max_completion_length
    if policy.positions is not None:
        length = max(1, min(length, policy.positions - max(map(len, prompts))))
    solutions = [policy.tokenizer(s, add_special_tokens=False)["input_ids"][:length] for s in task.solutions]
    for prompt, solution in zip(prompts, solutions, strict=True):
        policy.check_length(prompt, length, f"a question of {task.name}")
        policy.check_length(solution, 0, f"a solution of {task.name}")

    order = sorted(range(len(prompts)), key=lambda q: len(prompts[q]) + len(solutions[q]))
    mine = policy.team.dealt(order)
    stop = policy.stop_ids(task.stop)
    found: dict[int, Measured] = {}
    for start in range(0, len(mine), batch_size):
        batch = mine[start : start + batch_size]
        asked = [prompts[q] for q in batch]
        shared = _as_rollout(policy, asked, [solutions[q] for q in batch])
        raw = _split(policy.completion_terms(shared, _raw_terms), shared)
        own = policy.sample(asked, uniforms(seed, "logits", step, batch, length), length, PROCESSED, stop)
        scores = _split(policy.completion_terms(own, _processed_terms), own)
        rows = zip(batch, raw, scores, own.mask.sum(1).tolist(), own.ended.tolist(), strict=True)
        for q, (*moments, top, counts), processed, tokens, ended in rows:
            one, none = torch.ones_like(top), torch.zeros_like(top)
            found[q] = Measured(
                Moments.pooled(*moments), Moments.pooled(one, top, none, none), Moments.pooled(*processed),
                counts.sum(0).cpu().numpy(), tokens, ended,
            )  # fmt: skip
    found = policy.team.merged(found)
    return task.name, [found[q] for q in sorted(found)]


def _raw_terms(logits: Tensor, _target: Tensor) -> tuple[Tensor, ...]:
    """Of each position: its logits' moments, the highest of them, and how many lie in each bin (m, BINS)."""

    def of_block(x: Tensor) -> tuple[Tensor, ...]:
        return *_moments(x, torch.ones_like(x, dtype=torch.bool)), x.amax(-1), _binned(x)

    return _in_blocks(logits, of_block)


def _processed_terms(logits: Tensor, _target: Tensor) -> tuple[Tensor, ...]:
    """Of each position: the moments of the scores from which its token was sampled."""
    process = PROCESSED.processors(logits.shape[-1])

    def of_block(x: Tensor) -> tuple[Tensor, ...]:
        scores: Tensor = process(None, x)  # type: ignore[arg-type]  # these processors do not look at the tokens
        return _moments(scores, (scores != 0) & ~scores.isinf())

    return _in_blocks(logits, of_block)


def _in_blocks(logits: Tensor, of_block: Callable[[Tensor], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    parts = [of_block(block.double()) for block in torch.split(logits, max(1, ENTRIES // logits.shape[-1]))]
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))


def _moments(x: Tensor, kept: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """n, mean, sum of squares and of cubes about it, of the values kept in each row: x, kept (m, V) -> four of shape (m,)."""
    n = kept.sum(-1).to(x.dtype)
    mean = x.where(kept, 0.0).sum(-1) / n
    away = (x - mean[:, None]).where(kept, 0.0)
    return n, mean, (away**2).sum(-1), (away**3).sum(-1)


def _binned(x: Tensor) -> Tensor:
    """Counts (m, BINS) of each row's values; a NaN is in no bin."""
    bins = x.sub(LOW).div_(WIDTH).floor_().clamp_(0, BINS - 1).nan_to_num_(BINS).long()  # a NaN in one more, left out below
    bins += torch.arange(len(x), device=x.device)[:, None] * (BINS + 1)
    return torch.bincount(bins.flatten(), minlength=len(x) * (BINS + 1)).view(len(x), BINS + 1)[:, :BINS]


def _split(terms: tuple[Tensor, ...], rollout: Rollout) -> list[tuple[Tensor, ...]]:
    """Per-position tensors as a tuple for each row of the rollout."""
    lengths = rollout.mask.sum(1).tolist()
    return list(zip(*(torch.split(t, lengths) for t in terms), strict=True))


def _as_rollout(policy: Policy, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> Rollout:
    """Given text in the place of sampled one."""
    tokens, prompt_mask = pad_left(prompts, policy.pad, policy.model.device)
    lengths = torch.tensor([len(c) for c in completions])
    width = int(lengths.max())
    padded = torch.tensor([[*c, *[policy.pad] * (width - len(c))] for c in completions])
    mask = torch.arange(width) < lengths[:, None]
    device = tokens.device
    return Rollout(
        torch.cat([tokens, padded.to(device)], dim=1), prompt_mask, mask.to(device), torch.ones(len(mask), dtype=torch.bool)
    )


def _histogram(counts: np.ndarray) -> dict[str, Any]:
    """Counts of equal bins from the left edge of the first that holds anything to the last that does."""
    filled = counts.nonzero()[0]
    first, last = (int(filled[0]), int(filled[-1])) if len(filled) else (0, -1)
    return {"left": LOW + first * WIDTH, "width": WIDTH, "counts": counts[first : last + 1].tolist()}
