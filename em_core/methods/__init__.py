"""Every method that trains, as the pieces it is made of. A new one is one more line here and in `em_core.known_methods`.

    rollout -> rewards -> advantages -> { marks, weights -> forward -> token losses -> mean -> backward -> update } per update

A method without a reward minimizes an entropy directly. docs/methods.md has every formula and its source.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from em_core.config import TrainingConfig
from em_core.methods import advantages, em, losses, marks, rewards, weights
from em_core.methods.samples import Samples
from em_core.methods.tokens import Tokens


@dataclass(frozen=True)
class Method:
    """The pieces of a method. The trainer calls them in this order; shapes are those of `Samples` and `Tokens`."""

    loss: Callable[[Tokens, TrainingConfig], Tensor]
    """The loss of each token, shape (tokens,)."""
    reward: Callable[[Samples, TrainingConfig], Tensor] | None = None
    """What each completion earns, shape (n,)."""
    advantage: Callable[[Tensor, Samples, TrainingConfig], Tensor] = advantages.by_group
    """The advantage of each completion, shape (n,), from the rewards."""
    shape: Callable[[Tensor, Samples, TrainingConfig], Tensor] | None = None
    """The advantage of each token, shape (n, L), from that of each completion spread over its tokens."""
    mark: Callable[[Tensor, Tensor, Tensor, Tensor, TrainingConfig], Tensor] | None = None
    """Tokens that the loss treats apart (`em_core.methods.marks`); needs `scores_first`."""
    weigh: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, TrainingConfig], Tensor] | None = None
    """What the loss of each token counts (`em_core.methods.weights`); needs `scores_first`."""
    scores_first: bool = False
    """Whether reward, shape, mark or weigh ask for the log-probabilities or entropies of the samples before the first update."""


METHODS: dict[str, Method] = {
    "em": Method(em.loss),
    "em_rl_sequence": Method(losses.unclipped, rewards.log_probability, advantages.leave_one_out, scores_first=True),
    "em_rl_token": Method(losses.unclipped, rewards.negative_entropy, advantages.leave_one_out, scores_first=True),
    "rent": Method(losses.clipped, rewards.confidence, scores_first=True),
    "empo": Method(losses.clipped, rewards.share_of_answer),
    "majority_vote": Method(losses.clipped, rewards.majority),
    "random_reward": Method(losses.clipped, rewards.coin),
    "format_reward": Method(losses.clipped, rewards.answered),
    "grpo": Method(losses.clipped, rewards.correct),
    "clip_cov": Method(losses.clip_cov, rewards.correct, mark=marks.clip_cov, scores_first=True),
    "kl_cov": Method(losses.kl_cov, rewards.correct, mark=marks.kl_cov, scores_first=True),
    "ce_gppo": Method(losses.gradient_preserving, rewards.correct),
    "erc": Method(losses.entropy_ratio_clipped, rewards.correct, scores_first=True),
    "steer": Method(losses.clipped, rewards.correct, weigh=weights.steer, scores_first=True),
    "qae": Method(losses.clipped, rewards.correct, advantages.by_quantile),
    "exploration": Method(losses.clipped, rewards.correct, shape=advantages.with_entropy_bonus, scores_first=True),
    "dler": Method(losses.clipped, rewards.correct_in_time, advantages.by_batch),
}
