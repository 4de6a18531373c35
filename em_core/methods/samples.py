"""A rollout as rewards and advantages see it: all completions of all processes, in order of their index."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from em_core.grading import STATED, kinds
from em_core.noise import uniforms


@dataclass(frozen=True)
class Samples:
    """n completions of at most L tokens; those of one prompt stand together, `group` (count) of them.

    `texts` (n) are the completions, `golds` (n) the answers of their prompts (None: it has none), `mask` (n, L) is true on
    generated tokens, `ended` (n,) says whether an end token came in time. `logp` and `entropy` (n, L), zero elsewhere, are
    those of the policy that sampled: log-probability at the sampling temperature, entropy at temperature 1, in nats; None
    where the method does not score first. `seed`, `step` (the first update that uses them) and `rows` (the completions' index)
    key what is drawn.
    """

    texts: Sequence[str]
    golds: Sequence[str | None]
    group: int
    mask: Tensor
    ended: Tensor
    logp: Tensor | None
    entropy: Tensor | None
    seed: int
    step: int
    rows: range

    def grouped(self, values: Tensor) -> Tensor:
        """(n,) -> (prompts, group)."""
        return values.view(-1, self.group)

    def tensor(self, values: Sequence[float]) -> Tensor:
        """One number per completion, where the others are."""
        return torch.tensor(values, dtype=torch.float32, device=self.mask.device)

    def draws(self, purpose: str, length: int) -> Tensor:
        """Uniform draws in [0, 1), shape (n, length), keyed by seed, purpose, step and completion."""
        return torch.from_numpy(uniforms(self.seed, purpose, self.step, self.rows, length)).to(self.mask.device)

    def answer_counts(self) -> list[tuple[int, bool]]:
        """For each completion how many of its prompt gave the same answer, and whether that answer is the prompt's most
        frequent one (of equally frequent ones the first); (0, False) where it gave none."""
        found = []
        for start in range(0, len(self.texts), self.group):
            members = kinds([STATED.answer(text) for text in self.texts[start : start + self.group]], STATED.same)
            counts = Counter(m for m in members if m is not None)
            best = max(counts, key=counts.__getitem__, default=None)
            found += [(0, False) if m is None else (counts[m], m == best) for m in members]
        return found
