"""Decoding rules that act on a step's logits: EM-INF and EDT. They change what is measured, never the weights.

Both are logits processors of Hugging Face's interface, (tokens, scores (n, V)) -> scores (n, V), and come before the
temperature: `Sampling.processors` puts them first. Rows are independent, so the batch changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LogitsProcessor

from em_core.config import Decoding

EDT_BASE = 0.8
"""N of EDT. The paper fixes it, since theta says the same: N^(theta / H) = exp(theta ln N / H)."""


def decoding_processor(said: Decoding) -> LogitsProcessor | None:
    """What `said.decoding` adds to the chain of processors; None where tokens are drawn from the model's own distribution."""
    if said.decoding == "em_inf":
        return EntropyMinimizer(said.em_inf_steps, said.em_inf_learning_rate, said.em_inf_kl_coef, said.em_inf_threshold)
    return DynamicTemperature(said.edt_theta) if said.decoding == "edt" else None


def entropy(scores: Tensor) -> Tensor:
    """Entropy of softmax(scores) in nats, (n, V) -> (n, 1). A token of score -inf adds nothing."""
    surprise: Tensor = torch.special.entr(scores.softmax(-1))
    return surprise.sum(-1, keepdim=True)


@dataclass(frozen=True)
class EntropyMinimizer(LogitsProcessor):
    """EM-INF (arXiv 2505.15134): a few Adam steps on the logits themselves, min H(z) + kl_coef KL(p0 || p_z).

    A row is left alone as soon as its entropy is below `threshold` (nats), so that it does not end as greedy decoding.
    Steps, rate, weight and threshold are those of the released code (EM-INF/em_inf_eval.sh: 3, .1, .05, .3), and so is the
    place before temperature and top_p. There the threshold is held against the sum over the batch, here against each
    row's entropy; with a batch of one these are the same.

    Gradients are closed: dH/dz = -p (log p + H), dKL/dz = p - p0. Adam's first step is +-`learning_rate` whatever the
    gradient's size, up for tokens of p > e^-H and down for the others.
    """

    steps: int
    learning_rate: float
    kl_coef: float
    threshold: float

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        start = scores.softmax(-1)
        mean, square = torch.zeros_like(scores), torch.zeros_like(scores)
        for step in range(1, self.steps + 1):
            p = scores.softmax(-1)
            surprise = torch.special.entr(p)
            h = surprise.sum(-1, keepdim=True)
            gradient = surprise - p * h + self.kl_coef * (p - start)
            mean = 0.9 * mean + 0.1 * gradient
            square = 0.999 * square + 0.001 * gradient**2
            update = mean / (1 - 0.9**step) / ((square / (1 - 0.999**step)).sqrt() + 1e-8)
            scores = torch.where(h < self.threshold, scores, scores - self.learning_rate * update)
        return scores


@dataclass(frozen=True)
class DynamicTemperature(LogitsProcessor):
    """EDT (arXiv 2403.14541): T = T0 N^(theta / H), H the entropy (nats) of the model's distribution, N = .8.

    T0 is the temperature that follows in the chain. A sure step (H near 0) is greedy, an unsure one is drawn at almost T0.
    """

    theta: float

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        factor = EDT_BASE ** (self.theta / entropy(scores))
        # From the largest downwards, so that a factor of 0 leaves that one and makes no infinity of it.
        below = scores - scores.amax(-1, keepdim=True)
        return below / factor.clamp(min=torch.finfo(scores.dtype).tiny)
