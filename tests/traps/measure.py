"""What a habit changes: in one step on the same sequences, in accuracy after training (paired by seed), in time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
import torch
from torch import Tensor

from analysis.stats import Interval, t_interval
from analysis.stats.compare import against
from em_core.evaluation import evaluate
from em_core.methods.tokens import entropy
from em_core.model import Policy
from em_core.noise import uniforms
from em_core.rollout import Rollout, Sampling
from tests.models import miniature
from tests.reference_step import reference_loss
from tests.traps.settings import (
    CALM,
    COUNTED,
    CUT,
    HOT,
    LOSS_TEMPERATURE,
    MANY,
    MICRO_BATCH,
    PROMPT,
    QUESTIONS,
    SAME,
    Arm,
    bare_bf16,
    habits_of,
    optimizer_of,
    sampled,
    train,
    update,
)

SEEDS = range(16)


@dataclass(frozen=True)
class Step:
    """One habit on the same weights and sequences, over seeds. `loss` is the change in percent; the gradient's `cosine` with
    the right one, its `length` as a share of it. `cut`: the share of completions that ran out of tokens."""

    habit: str
    sequences: str
    cut: float
    loss: Interval
    cosine: float
    length: float


@dataclass(frozen=True)
class Trained:
    """Accuracies (arms, seeds) after training in one setting; the first arm is what the others are compared with."""

    said: str
    arms: list[str]
    accuracy: np.ndarray

    def differences(self) -> dict[str, dict[str, float]]:
        """Arm -> the row of `against`: `difference lo hi p p_holm`."""
        frame: pl.DataFrame = against(self.accuracy, 0, self.arms)
        return {row["a"]: row for row in frame.to_dicts()}


def flat(tensors: Iterable[Tensor | None]) -> Tensor:
    return torch.cat([t.detach().double().flatten() for t in tensors if t is not None])


def _loss_and_gradient(policy: Policy, rollout: Rollout, arm: Arm) -> tuple[float, Tensor]:
    loss = reference_loss(policy.model, rollout, LOSS_TEMPERATURE, **arm)
    loss.backward()
    gradient = flat(m.grad for m in policy.masters.values())
    for m in policy.masters.values():
        m.grad = None
    return loss.item(), gradient


def one_step(policy: Policy, mixed: Policy) -> list[Step]:
    found, arms = [], habits_of(policy)
    floored = {name: arm for name, arm in arms.items() if "floored_log" in arm and len(arm) == 1}
    for setting, some, model, said in (
        (CALM, arms, policy, "one prompt"),
        (CUT, arms, policy, CUT.said),
        (MANY, arms, policy, "8 prompts of 9 to 11 tokens"),
        (CALM, floored, mixed, "one prompt, bf16"),
    ):
        model.restore()
        rollouts = [sampled(model, setting, seed, 1) for seed in SEEDS]
        cut = 1 - float(np.mean([r.ended.double().mean() for r in rollouts]))
        right = [_loss_and_gradient(model, r, {}) for r in rollouts]
        for name, arm in some.items():
            pairs = list(zip([_loss_and_gradient(model, r, arm) for r in rollouts], right, strict=True))
            change = t_interval([100 * (w[0] / r[0] - 1) for w, r in pairs])
            cosine = float(np.mean([float(w[1] @ r[1] / (w[1].norm() * r[1].norm())) for w, r in pairs]))
            length = float(np.mean([float(w[1].norm() / r[1].norm()) for w, r in pairs]))
            found.append(Step(name, said, cut, change, cosine, length))
    return found


@torch.no_grad()
def first_token_share(policy: Policy) -> float:
    """Share of the loss that is the entropy of the first generated token (mean over seeds, step 1 of CALM)."""
    policy.restore()
    shares = []
    for seed in SEEDS:
        rollout = sampled(policy, CALM, seed, 1)
        (h,) = policy.completion_terms(rollout, lambda logits, _: (entropy(logits, LOSS_TEMPERATURE),))
        firsts = [float(row[0]) for row in h.split(rollout.mask.sum(1).tolist())]
        shares.append(sum(firsts) / float(h.sum()))
    return float(np.mean(shares))


def trained(policy: Policy) -> list[Trained]:
    habits = habits_of(policy)
    same = {"2 the same samples on 4 ranks": SAME}
    single = {k: habits[k] for k in ("4 off by one", "5 pad is the end token", "8 mean of micro-batch means")}
    whole = {"all: 2, 3, 4, 5, 7, 8": habits["all of these"] | SAME}
    padded = {
        "3 left padding": habits["3 left padding"],
        "both 3 and 4": habits["3 left padding"] | habits["4 off by one"],
    }
    found = []
    for setting, arms in ((CALM, same | single | whole), (HOT, same | single | whole), (MANY, same | padded | single | whole)):
        grid = [[train(policy, setting, seed, arm)[0] for seed in SEEDS] for arm in ({}, *arms.values())]
        found.append(Trained(setting.said, ["ours", *arms], np.array(grid)))
    return found


def distinct_samples(policy: Policy) -> tuple[float, float]:
    """How many of 8 completions differ at step 1: with draws of their own, and with those of 4 ranks that share a seed."""
    policy.restore()

    def count(distinct: int) -> float:
        return float(np.mean([len(torch.unique(sampled(policy, CALM, s, 1, distinct).tokens, dim=0)) for s in SEEDS]))

    return count(8), count(SAME["distinct"])


def counted_micro_batches(policy: Policy) -> Trained:
    """Trap 1: what 10 of the reference's steps come to, on so many GPUs."""
    updates = sorted({10 // n for n in COUNTED.values()}, reverse=True)  # 10 first: that is ours
    columns = [train(policy, CALM, seed, {}, at=sorted(updates))[::-1] for seed in SEEDS]
    gpus = {u: " or ".join(str(g) for g, n in COUNTED.items() if 10 // n == u) for u in updates}
    arms = [f"{u} update{'s' * (u != 1)}: {gpus[u]} GPU{'s' * (gpus[u] != '1')}" for u in updates]
    return Trained(CALM.said, arms, np.array(columns).T)


@dataclass(frozen=True)
class Way:
    """Where ten updates lead, beside fp32: share of weights that `moved`, distance and length relative to fp32's way."""

    learning_rate: float
    weights: str
    moved: float
    distance: float
    cosine: float
    length: float


def without_masters(fp32: Policy, mixed: Policy, bare: Policy) -> list[Way]:
    """Ten updates on the same sequences."""
    fp32.restore()
    rollouts = [sampled(fp32, CALM, 0, step) for step in range(1, 11)]
    found = []
    for learning_rate in (2e-6, 2e-5, 2e-4):
        true = _way(fp32, rollouts, learning_rate)
        for name, policy in (("bf16 with fp32 masters (ours)", mixed), ("bare bf16", bare)):
            way = _way(policy, rollouts, learning_rate)
            moved, cosine = float((way != 0).double().mean()), float(way @ true / (way.norm() * true.norm()))
            distance, length = float((way - true).norm() / true.norm()), float(way.norm() / true.norm())
            found.append(Way(learning_rate, name, moved, distance, cosine, length))
    return found


def _way(policy: Policy, rollouts: Sequence[Rollout], learning_rate: float) -> Tensor:
    policy.restore()
    before = flat(policy.masters.values()).clone()
    optimizer = optimizer_of(policy, learning_rate)
    for rollout in rollouts:
        update(policy, optimizer, rollout, {})
    return flat(policy.masters.values()) - before


def trained_without_masters(mixed: Policy, bare: Policy) -> Trained:
    """At the reference's rate of 2e-5, on half the seeds (bf16 is slow on a CPU)."""
    setting = replace(CALM, said="one prompt: rate 2e-5, sampling temperature .7, 10 updates", learning_rate=2e-5)
    grid = [[train(policy, setting, seed, {})[0] for seed in SEEDS[:8]] for policy in (mixed, bare)]
    return Trained(setting.said, ["bf16 with fp32 masters (ours)", "12 bare bf16"], np.array(grid))


@dataclass(frozen=True)
class Times:
    """Seconds for 8 completions of so many tokens, medians of three."""

    tokens: int
    ours: float
    cached: float
    uncached: float
    reference: float


def without_cache(policy: Policy) -> list[Times]:
    """Four ways in turn, three times: our loop, `generate` with and without cache, and without it two rows at a time."""
    policy.restore()
    prompt = policy.encode(PROMPT, "none")
    found = []
    for length in (24, 96, 192):
        draws = uniforms(0, "rollout", 1, range(8), length)
        ways: dict[str, Callable[[], object]] = {
            "ours": lambda n=length, u=draws: policy.sample([prompt] * 8, u, n, Sampling(0.7), [-1]),
            "cached": lambda n=length: _generate(policy, prompt, 8, n, True),
            "uncached": lambda n=length: _generate(policy, prompt, 8, n, False),
            "reference": lambda n=length: [_generate(policy, prompt, MICRO_BATCH, n, False) for _ in range(8 // MICRO_BATCH)],
        }
        taken = [{name: _seconds(way) for name, way in ways.items()} for _ in range(3)]
        found.append(Times(length, **{name: statistics.median(t[name] for t in taken) for name in ways}))
    return found


def _generate(policy: Policy, prompt: list[int], rows: int, length: int, cached: bool) -> None:
    ids = torch.tensor([prompt] * rows)
    policy.model.generate(
        ids, attention_mask=torch.ones_like(ids), min_new_tokens=length, max_new_tokens=length, do_sample=True,
        temperature=0.7, top_k=0, use_cache=cached,
    )  # fmt: skip


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def dropped_options(policy: Policy) -> tuple[float, Trained]:
    """Trap 11: the sd over seeds of a sampled evaluation of the same weights, and what `top_p` .95 was worth (temperature .6)."""
    policy.restore()
    said = QUESTIONS.model_copy(update={"temperature": 0.6})
    grid = [
        [evaluate(policy, said.model_copy(update={"top_p": p}), seed, 0, 200).accuracy for seed in SEEDS] for p in (0.95, 1.0)
    ]
    return float(np.std(grid[1], ddof=1)), Trained(
        "the base model, temperature .6", ["top_p .95", "top_p dropped"], np.array(grid)
    )


@dataclass(frozen=True)
class Measured:
    """All that the page shows."""

    steps: list[Step]
    first_token: float
    trained: list[Trained]
    distinct: tuple[float, float]
    counted: Trained
    ways: list[Way]
    bare: Trained
    times: list[Times]
    seeds_sd: float
    top_p: Trained


def measure() -> Measured:
    """Everything, in about five minutes of one core."""
    torch.set_num_threads(1)
    policy, mixed, bare = miniature(), miniature(torch.bfloat16), bare_bf16()
    times = without_cache(policy)
    seeds_sd, top_p = dropped_options(policy)
    return Measured(
        one_step(policy, mixed), first_token_share(policy), trained(policy), distinct_samples(policy),
        counted_micro_batches(policy), without_masters(policy, mixed, bare), trained_without_masters(mixed, bare), times,
        seeds_sd, top_p,
    )  # fmt: skip
