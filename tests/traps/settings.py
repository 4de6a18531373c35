"""The ways in which the miniature is trained, and the arms: which of the reference's habits are on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from em_core.config import Evaluation
from em_core.evaluation import evaluate
from em_core.model import Policy
from em_core.noise import uniforms
from em_core.rollout import Rollout, Sampling
from tests.models import miniature
from tests.reference_step import reference_loss, reference_update

LOSS_TEMPERATURE = 0.5
QUESTIONS = Evaluation(task="two_step_sums", task_key="two_step_sums@1", limit=200)
RANKS = 4
MICRO_BATCH = 2
"""As in the reference; 8 completions per update here are 4 micro-batches, there 64 are 32."""
COUNTED = {1: 32, 4: 8, 8: 4, 16: 2, 32: 1}
"""GPUs -> micro-batches of 2 that the reference accumulates on each of them for its 64 completions per update."""

Arm = dict[str, Any]
"""Habits by their keyword in `reference_loss`, and `distinct`: how many of the 8 completions have draws of their own."""

PROMPT = "Q:12+7+5=?"
SEVERAL = ("Q:12+7+5=?", "Q:3+4+2=?", "Q:19+19+9=?", "Q:5-16+8=?", "Q:1+1+1=?", "Q:17+12+4=?", "Q:8+2+6=?", "Q:14-13+7=?")


@dataclass(frozen=True)
class Setting:
    """8 completions per update, the i-th one of the i-th of `prompts`."""

    said: str
    prompts: Sequence[str] = (PROMPT,) * 8
    length: int = 24
    temperature: float = 0.7
    learning_rate: float = 1e-4
    steps: int = 10


CALM = Setting("one prompt: rate 1e-4, sampling temperature .7, 10 updates")
HOT = Setting(
    "one prompt, so hot that it collapses: rate 7e-4, sampling temperature 1.5, 20 updates",
    temperature=1.5, learning_rate=7e-4, steps=20,
)  # fmt: skip
CUT = Setting("one prompt, sampling temperature 1.5, cut after 10 tokens", length=10, temperature=1.5)
MANY = Setting("8 prompts of 9 to 11 tokens: rate 5e-5, sampling temperature .7, 10 updates", SEVERAL, learning_rate=5e-5)


def habits_of(policy: Policy) -> dict[str, Arm]:
    """The habits that are in the reference's loss, by the name they have on the page."""
    each: dict[str, Arm] = {
        "3 left padding": {"left_padding": True},
        "4 off by one": {"off_by_one": True},
        "5 pad is the end token": {"hidden_end": tuple(policy.stop)},
        "7 log(p + 1e-12)": {"floored_log": True},
        "8 mean of micro-batch means": {"micro_batch": MICRO_BATCH},
    }
    return each | {"all of these": {k: v for arm in each.values() for k, v in arm.items()}}


SAME: Arm = {"distinct": 8 // RANKS}
"""Trap 2: each of 4 ranks draws the same 2 completions."""


def sampled(policy: Policy, setting: Setting, seed: int, step: int, distinct: int = 8) -> Rollout:
    """The rollout that the trainer would draw; with `distinct` below 8 the first so many samples come again and again."""
    draws = uniforms(seed, "rollout", step, [i % distinct for i in range(8)], setting.length)
    prompts = [policy.encode(p, "none") for p in setting.prompts]
    return policy.sample(prompts, draws, setting.length, Sampling(setting.temperature), policy.stop)


def bare_bf16() -> Policy:
    """A policy whose very weights are bf16, with no fp32 copy: AdamW updates them as they are."""
    policy = miniature()
    for p in policy.model.parameters():
        p.data = p.data.bfloat16()
    return policy


def update(policy: Policy, optimizer: torch.optim.Optimizer, rollout: Rollout, habits: Arm) -> None:
    loss = reference_loss(policy.model, rollout, LOSS_TEMPERATURE, **habits)
    reference_update(loss, policy.masters.values(), optimizer)
    policy.refresh()


def optimizer_of(policy: Policy, learning_rate: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(list(policy.masters.values()), lr=learning_rate, weight_decay=0.01)


def train(policy: Policy, setting: Setting, seed: int, arm: Arm, at: Iterable[int] = ()) -> list[float]:
    """Greedy accuracy (0..1) after each number of updates in `at`, or after the last."""
    habits = {name: value for name, value in arm.items() if name != "distinct"}
    policy.restore()
    optimizer = optimizer_of(policy, setting.learning_rate)
    wanted, found = list(at) or [setting.steps], []
    for step in range(max(wanted) + 1):
        if step:
            update(policy, optimizer, sampled(policy, setting, seed, step, arm.get("distinct", 8)), habits)
        if step in wanted:
            found.append(evaluate(policy, QUESTIONS, seed, step, 200).accuracy)
    return found
