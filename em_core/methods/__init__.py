"""The methods that train, by name. Each is one module with two functions (see `Method`).

What the planner must know of a method (its version and the fields it reads) stands in `em_core.config.METHODS`.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from em_core.config import TrainingConfig
from em_core.methods import em, rent
from em_core.model import Policy
from em_core.rollout import Rollout

Sums = dict[str, Tensor]
"""Name -> sum over the tokens of a micro-batch (scalar, detached)."""


class Method(Protocol):
    """A loss that is a mean over all generated tokens of a step."""

    def weights(self, policy: Policy, rollout: Rollout, config: TrainingConfig) -> tuple[Tensor | None, dict[str, float]]:
        """What each completion counts, shape (n,), or None; and metrics about it. Called once per step, without gradient."""

    def loss(
        self, policy: Policy, base: Policy | None, rollout: Rollout, weights: Tensor | None, config: TrainingConfig
    ) -> tuple[Tensor, Sums]:
        """The sum of the loss over a micro-batch's tokens, and sums of metrics. The trainer divides by the step's token count."""


METHODS: dict[str, Method] = {"em": em, "rent": rent}
