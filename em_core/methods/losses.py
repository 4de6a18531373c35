"""Losses of tokens that carry an advantage: Tokens -> (tokens,). rho is `Tokens.ratio`.

With one update per rollout rho is 1 and all of these have the gradient of -A log pi.
"""

from __future__ import annotations

import torch
from torch import Tensor

from em_core.config import TrainingConfig
from em_core.methods.tokens import Tokens


def bounds(config: TrainingConfig) -> tuple[float, float]:
    """1 - epsilon and 1 + epsilon_high, between which rho is free."""
    high = config.epsilon if config.epsilon_high is None else config.epsilon_high
    return 1 - config.epsilon, 1 + high


def unclipped(t: Tokens, config: TrainingConfig) -> Tensor:
    """REINFORCE: -A rho."""
    return -t.advantage * t.ratio


def clipped(t: Tokens, config: TrainingConfig) -> Tensor:
    """PPO's and GRPO's: max(-A rho, -A clip(rho, 1 - epsilon, 1 + epsilon_high)) (arXiv 1707.06347; clip-higher: 2503.14476)."""
    return torch.maximum(-t.advantage * t.ratio, -t.advantage * t.ratio.clamp(*bounds(config)))


def is_clipped(t: Tokens, config: TrainingConfig) -> Tensor:
    """Whether `clipped` gives a token no gradient, (tokens,) of bool."""
    low, high = bounds(config)
    ratio = t.ratio.detach()
    return ((t.advantage > 0) & (ratio > high)) | ((t.advantage < 0) & (ratio < low))


def clip_cov(t: Tokens, config: TrainingConfig) -> Tensor:
    """Clip-Cov (arXiv 2505.22617): marked tokens have loss 0, the others that of GRPO."""
    return clipped(t, config).masked_fill(t.marked, 0.0)


def kl_cov(t: Tokens, config: TrainingConfig) -> Tensor:
    """KL-Cov (arXiv 2505.22617): -A rho without clipping; marked tokens pay `kl_cov_coef` |log rho| besides."""
    return -t.advantage * t.ratio + config.kl_cov_coef * (t.logp - t.old_logp).abs() * t.marked


def gradient_preserving(t: Tokens, config: TrainingConfig) -> Tensor:
    """CE-GPPO (arXiv 2509.20712): where `clipped` stops the gradient, -A beta bound rho / sg(rho) keeps a bounded one.

    beta is `clipped_weight_low` below 1 - epsilon (for A < 0), `clipped_weight_high` above 1 + epsilon_high (for A > 0).
    """
    low, high = bounds(config)
    unit = (t.logp - t.logp.detach()).exp()
    kept = torch.where(t.advantage > 0, config.clipped_weight_high * high, config.clipped_weight_low * low)
    return torch.where(is_clipped(t, config), -t.advantage * kept * unit, clipped(t, config))


def entropy_ratio_clipped(t: Tokens, config: TrainingConfig) -> Tensor:
    """ERC (arXiv 2512.05591): no gradient where the token's entropy left [1 - b, 1 + b] times that at sampling."""
    ratio = t.entropy.detach() / t.old_entropy.clamp(min=1e-12)
    return clipped(t, config).masked_fill((ratio - 1).abs() > config.entropy_ratio_band, 0.0)
