"""RENT (arXiv 2505.22660): reinforcement learning with the model's own confidence as reward.

r = -(mean token entropy at temperature 1), or -7 where the completion states no answer; advantage (r - mean) / (sd + 1e-6)
within the group of completions, as in GRPO; policy gradient strictly on policy (one update per rollout, so the ratio is 1).
The probabilities of the policy gradient and of the KL term are those at the sampling temperature.
"""

from __future__ import annotations

import torch
from torch import Tensor

from em_core.config import TrainingConfig
from em_core.grading import has_answer
from em_core.methods.em import entropy
from em_core.model import Policy
from em_core.rollout import Rollout

NO_ANSWER = -7.0
"""Reward of a completion that states no answer (nats)."""


@torch.no_grad()
def weights(policy: Policy, rollout: Rollout, config: TrainingConfig) -> tuple[Tensor, dict[str, float]]:
    """The advantage of each completion within the group, which may be spread over several processes, shape (n,)."""
    size = 8  # completions scored at once; the mean of each one does not depend on it
    means = []
    for start in range(0, len(rollout.tokens), size):
        part = rollout[start : start + size]
        (h,) = policy.completion_terms(part, lambda logits, _: (entropy(logits),))
        lengths = part.mask.sum(1)
        means += [row.mean() for row in h.split(lengths.tolist())]
    reward = -torch.stack(means)
    unparsable = torch.tensor([not has_answer(text) for text in policy.texts(rollout)], device=reward.device)
    reward, unparsable = policy.team.joined(reward), policy.team.joined(unparsable)
    reward = torch.where(unparsable, torch.full_like(reward, NO_ANSWER), reward)
    advantage = group_advantage(reward)[policy.team.share(len(reward))]
    return advantage, {"reward": reward.mean().item(), "unparsable": unparsable.float().mean().item()}


def group_advantage(reward: Tensor) -> Tensor:
    """(r - mean) / (sd + 1e-6) over the group, with the sample standard deviation; 0 for a group of one. (n,) -> (n,)"""
    if len(reward) == 1:
        return torch.zeros_like(reward)
    return (reward - reward.mean()) / (reward.std() + 1e-6)


def loss(
    policy: Policy, base: Policy | None, rollout: Rollout, weights: Tensor | None, config: TrainingConfig
) -> tuple[Tensor, dict[str, Tensor]]:
    """Sum over generated tokens of -A log pi + kl_coef * KL(pi || base), the latter by the k3 estimator e^d - d - 1."""
    assert weights is not None

    def terms(logits: Tensor, sampled: Tensor) -> tuple[Tensor, Tensor]:
        logp = (logits / config.temperature).log_softmax(-1)
        return logp.gather(-1, sampled[:, None]).squeeze(-1), entropy(logits.detach())

    logp, plain = policy.completion_terms(rollout, terms)
    advantage = weights[:, None].expand_as(rollout.mask)[rollout.mask]
    # The ratio pi / pi_old is 1 here; it carries the gradient and keeps the loss's value that of GRPO.
    total = -(advantage * (logp - logp.detach()).exp()).sum()
    sums = {"entropy": plain.sum()}
    if base is not None:
        with torch.no_grad():
            base_logp, _ = base.completion_terms(rollout, terms)
        difference = base_logp - logp
        kl = (difference.exp() - difference - 1).sum()
        total = total + config.kl_coef * kl
        sums["kl"] = kl.detach()
    return total, sums
