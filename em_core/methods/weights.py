"""What a token's loss counts. All completions of the update take part, n of at most L tokens; no gradient goes through."""

from __future__ import annotations

import torch
from torch import Tensor

from em_core.config import TrainingConfig


def steer(logp: Tensor, entropy: Tensor, old_logp: Tensor, advantage: Tensor, mask: Tensor, config: TrainingConfig) -> Tensor:
    """STEER (arXiv 2510.10150): the more a token is expected to change the entropy, the less it counts. All (n, L) -> (n, L).

    Omega = (A / p_old) p (1 - p) (log p + H), p the token's present probability and H the present entropy (nats, temperature 1:
    it is that of p where the sampling temperature is 1, as in the paper). The weight falls linearly from `steer_weight_max` at
    the smallest |Omega| of the update to `steer_weight_min` at the largest; where all are equal it is their middle.
    """
    size = (advantage * (logp - old_logp).exp() * (1 - logp.exp()) * (logp + entropy)).abs()
    least, most = size[mask].min(), size[mask].max()
    low, high = config.steer_weight_min, config.steer_weight_max
    if most == least:
        return torch.full_like(size, (low + high) / 2)
    return high - (size - least) * (high - low) / (most - least)
