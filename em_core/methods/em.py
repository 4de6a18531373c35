"""Entropy minimization (arXiv 2505.20282): the entropy of the model's own next-token distributions, on its own samples.

No reward, no label, no gradient through the sampling. What is sampled (top_p, top_k, penalty) and what is scored (the full
softmax at `loss_temperature`) are different distributions, as in the paper.
"""

from __future__ import annotations

from torch import Tensor

from em_core.config import TrainingConfig
from em_core.model import Policy
from em_core.rollout import Rollout


def entropy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Entropy in nats of softmax(logits / temperature) over the last dimension: (..., V) -> (...), in 0..log V."""
    logp = (logits / temperature).log_softmax(-1)
    return -(logp.exp() * logp).sum(-1)


def weights(policy: Policy, rollout: Rollout, config: TrainingConfig) -> tuple[None, dict[str, float]]:
    """Every token counts the same."""
    return None, {}


def loss(
    policy: Policy, base: Policy | None, rollout: Rollout, weights: Tensor | None, config: TrainingConfig
) -> tuple[Tensor, dict[str, Tensor]]:
    """Sum over generated tokens of H(softmax(logits / loss_temperature)), in nats."""

    def terms(logits: Tensor, _sampled: Tensor) -> tuple[Tensor, Tensor]:
        return entropy(logits, config.loss_temperature), entropy(logits.detach())

    scored, plain = policy.completion_terms(rollout, terms)
    return scored.sum(), {"entropy": plain.sum()}
