"""Which tokens of an update the loss treats apart. All completions of the update take part, n of at most L tokens.

A mark is called with the covariances (n, L), the generated tokens and those whose gradient is clipped already (n, L, bool),
and uniform draws (n, L) keyed by completion; it returns (n, L) of bool.
"""

from __future__ import annotations

import torch
from torch import Tensor

from em_core.config import TrainingConfig


def covariance(logp: Tensor, advantage: Tensor, mask: Tensor) -> Tensor:
    """(A_t - mean A)(log pi_t - mean log pi), the means over all tokens (arXiv 2505.22617): (n, L), zero off the mask."""
    a, p = advantage[mask], logp[mask]
    found = torch.zeros_like(logp)
    found[mask] = (a - a.mean()) * (p - p.mean())
    return found


def clip_cov(cov: Tensor, mask: Tensor, clipped: Tensor, draws: Tensor, config: TrainingConfig) -> Tensor:
    """max(1, floor(ratio N)) random ones of the tokens with low < cov < high that are not clipped already."""
    free = mask & ~clipped & (cov > config.clip_cov_low) & (cov < config.clip_cov_high)
    return _first(draws.masked_fill(~free, torch.inf), free, config.clip_cov_ratio, mask)


def kl_cov(cov: Tensor, mask: Tensor, clipped: Tensor, draws: Tensor, config: TrainingConfig) -> Tensor:
    """The max(1, floor(ratio N)) tokens of largest covariance."""
    return _first(-cov.masked_fill(~mask, -torch.inf), mask, config.kl_cov_ratio, mask)


def _first(order: Tensor, candidates: Tensor, ratio: float, mask: Tensor) -> Tensor:
    """The candidates that come first in an order, as many as that share of all tokens, at least one."""
    count = min(max(1, int(ratio * int(mask.sum()))), int(candidates.sum()))
    chosen = torch.zeros_like(mask).flatten()
    chosen[order.flatten().sort(stable=True).indices[:count]] = True
    return chosen.view_as(mask)
