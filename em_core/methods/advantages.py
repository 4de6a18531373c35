"""From rewards to advantages. (n,) stands for the completions, those of a prompt together; (n, L) for their tokens."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from em_core.config import TrainingConfig
from em_core.methods.samples import Samples

TINY = 1e-6


def by_group(reward: Tensor, s: Samples, config: TrainingConfig) -> Tensor:
    """GRPO (arXiv 2402.03300): (r - mean) / (sd + 1e-6) over the prompt's completions, sample standard deviation.

    `scale_rewards: batch` divides by the standard deviation of all rewards, `none` (Dr. GRPO, arXiv 2503.20783) by nothing.
    """
    centred = (s.grouped(reward) - s.grouped(reward).mean(1, keepdim=True)).flatten()
    return _scaled(centred, reward, s, config)


def leave_one_out(reward: Tensor, s: Samples, config: TrainingConfig) -> Tensor:
    """REINFORCE with the mean of the prompt's other completions as baseline: r - (sum - r) / (G - 1) (RLOO, arXiv 2402.14740)."""
    grouped = s.grouped(reward)
    return (grouped - (grouped.sum(1, keepdim=True) - grouped) / (s.group - 1)).flatten()


def by_quantile(reward: Tensor, s: Samples, config: TrainingConfig) -> Tensor:
    """QAE (arXiv 2509.22611): the baseline is not the mean of the prompt's rewards but their K-quantile, the smallest one that
    K of them do not exceed. Of a prompt answered rightly in at most 1 - K only the right answers count, else only the wrong."""
    grouped = s.grouped(reward)
    place = max(1, math.ceil(config.reward_quantile * s.group - 1e-9))
    baseline = grouped.kthvalue(place, dim=1, keepdim=True).values
    return _scaled((grouped - baseline).flatten(), reward, s, config)


def by_batch(reward: Tensor, s: Samples, config: TrainingConfig) -> Tensor:
    """DLER (arXiv 2510.15110): centred within the prompt, then normalised over all completions: (x - mean) / (sd + 1e-6)."""
    centred = (s.grouped(reward) - s.grouped(reward).mean(1, keepdim=True)).flatten()
    return (centred - centred.mean()) / (centred.std() + TINY)


def with_entropy_bonus(advantage: Tensor, s: Samples, config: TrainingConfig) -> Tensor:
    """Reasoning with Exploration (arXiv 2506.14758): A_t + min(alpha H_t, |A_t| / kappa), H without gradient. (n, L) -> (n, L)"""
    assert s.entropy is not None
    return advantage + torch.minimum(config.exploration_alpha * s.entropy, advantage.abs() / config.exploration_kappa)


def _scaled(centred: Tensor, reward: Tensor, s: Samples, config: TrainingConfig) -> Tensor:
    match config.scale_rewards:
        case "group":
            return (s.grouped(centred) / (s.grouped(reward).std(1, keepdim=True) + TINY)).flatten()
        case "batch":
            return centred / (reward.std() + TINY)
    return centred
