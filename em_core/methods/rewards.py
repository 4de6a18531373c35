"""What a completion earns: Samples -> (n,). No gradient goes through a reward."""

from __future__ import annotations

import torch
from torch import Tensor

from em_core.config import TrainingConfig
from em_core.grading import STATED, has_answer
from em_core.methods.samples import Samples

NO_ANSWER = -7.0
"""RENT's reward of a completion that states no answer (nats)."""


def correct(s: Samples, config: TrainingConfig) -> Tensor:
    """1 where the answer equals the prompt's gold one, else 0 (verifiable reward, as in GRPO, arXiv 2402.03300)."""
    return s.tensor([float(gold is not None and STATED.right(gold, text)) for gold, text in zip(s.golds, s.texts, strict=True)])


def correct_in_time(s: Samples, config: TrainingConfig) -> Tensor:
    """1 where the answer is right and the completion ended within its length: DLER's truncation penalty (arXiv 2510.15110)."""
    return correct(s, config) * s.ended


def confidence(s: Samples, config: TrainingConfig) -> Tensor:
    """RENT (arXiv 2505.22660): minus the mean token entropy, -7 where no answer is stated."""
    assert s.entropy is not None
    mean = s.entropy.sum(1) / s.mask.sum(1)
    silent = torch.tensor([not has_answer(text) for text in s.texts], device=mean.device)
    return torch.where(silent, torch.full_like(mean, NO_ANSWER), -mean)


def negative_entropy(s: Samples, config: TrainingConfig) -> Tensor:
    """EM-RL-token (arXiv 2505.15134): minus the sum of the token entropies."""
    assert s.entropy is not None
    return -s.entropy.sum(1)


def log_probability(s: Samples, config: TrainingConfig) -> Tensor:
    """EM-RL-sequence (arXiv 2505.15134): the sum of the log-probabilities; its mean is minus the entropy of sequences."""
    assert s.logp is not None
    return s.logp.sum(1)


def majority(s: Samples, config: TrainingConfig) -> Tensor:
    """TTRL (arXiv 2504.16084): 1 where the answer is the most frequent one among the prompt's completions, else 0."""
    return s.tensor([float(most) for _, most in s.answer_counts()])


def share_of_answer(s: Samples, config: TrainingConfig) -> Tensor:
    """EMPO (arXiv 2504.05812): the share of the prompt's completions that give the same answer, 0 where none is stated."""
    return s.tensor([count / s.group for count, _ in s.answer_counts()])


def coin(s: Samples, config: TrainingConfig) -> Tensor:
    """A control: 1 with probability 1/2, whatever was said (spurious rewards, arXiv 2506.10947)."""
    return (s.draws("random_reward", 1)[:, 0] < 0.5).float()


def answered(s: Samples, config: TrainingConfig) -> Tensor:
    """A control: 1 where an answer is stated, right or wrong (format reward)."""
    return s.tensor([float(has_answer(text)) for text in s.texts])
