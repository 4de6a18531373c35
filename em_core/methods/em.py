"""Entropy minimization (arXiv 2505.20282): the entropy of the model's own next-token distributions, on its own samples.

No reward, no label, no gradient through the sampling. What is sampled (top_p, top_k, penalty) and what is scored (the full
softmax at `loss_temperature`) are different distributions, as in the paper. `loss_type: grpo` makes it EM-FT (arXiv 2505.15134):
the mean over completions of the mean entropy of each one's tokens.
"""

from __future__ import annotations

from torch import Tensor

from em_core.config import TrainingConfig
from em_core.methods.tokens import Tokens


def loss(t: Tokens, config: TrainingConfig) -> Tensor:
    """H(softmax(logits / loss_temperature)) of each token, in nats."""
    return t.entropy
