"""What a loss sees of the generated tokens of a micro-batch, and how they are scored."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Tokens:
    """Every tensor has shape (tokens,), in the order of the completions; log-probabilities and entropies are in nats.

    `logp` is that of the sampled token at the sampling temperature, with gradient (of a method without a reward: the
    zeros that its loss does not look at). `entropy` is that of the full softmax: at temperature 1, and with gradient where
    `entropy_coef` asks for it; of a method without a reward at `loss_temperature`, with gradient. `old_logp` and
    `old_entropy` were taken with the policy that sampled. `marked` are those that the method's `mark` chose.
    """

    logp: Tensor
    entropy: Tensor
    old_logp: Tensor
    old_entropy: Tensor
    advantage: Tensor
    marked: Tensor

    @property
    def ratio(self) -> Tensor:
        """The policy's probability of the token over that at sampling; 1 before the first update, with its gradient."""
        return (self.logp - self.old_logp).exp()


def entropy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Entropy in nats of softmax(logits / temperature) over the last dimension: (..., V) -> (...), in 0..log V."""
    logp = (logits / temperature).log_softmax(-1)
    return -(logp.exp() * logp).sum(-1)


def log_probability(logits: Tensor, sampled: Tensor, temperature: float) -> Tensor:
    """log softmax(logits / temperature) of the sampled tokens: (m, V), (m,) -> (m,), in nats."""
    return (logits / temperature).log_softmax(-1).gather(-1, sampled[:, None]).squeeze(-1)
