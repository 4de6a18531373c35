"""One update the way the reference of one-shot EM (github.com/zitian-gao/one-shot-em) makes it, each of its habits by itself.

For comparison only: the parity test, the table docs/traps.md. With every habit off it is the same loss as `em`, written the
reference's way: one forward pass over the whole sequences with nothing but an attention mask (no position ids: with rotary
positions only differences count), logits of all positions at once, and masks over whole sequences.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from em_core.rollout import Rollout


def reference_loss(
    model: PreTrainedModel,
    rollout: Rollout,
    temperature: float,
    *,
    left_padding: bool = False,
    off_by_one: bool = False,
    hidden_end: Sequence[int] = (),
    floored_log: bool = False,
    micro_batch: int = 0,
) -> Tensor:
    """Mean entropy in nats of softmax(logits / temperature) over the generated tokens, a scalar with gradient.

    `left_padding` (trap 3): a row's generated tokens are looked for after as many positions as its prompt has tokens, counted
    from the left end, where its padding is: so the last pad-count tokens of the prompt count as generated.
    `off_by_one` (4): the entropy at a generated token's own position is taken for that token's, though it is that of the next.
    `hidden_end` (5): tokens that are padding as well as an end: they are neither seen nor counted.
    `floored_log` (7): log(p + 1e-12) of a softmax in place of a log-softmax, in the precision of the logits.
    `micro_batch` (8): the mean over micro-batches of so many rows of the mean over each one's tokens (0: the mean over all).
    """
    width = rollout.prompt_mask.shape[1]
    ends = torch.tensor(list(hidden_end), dtype=torch.long, device=rollout.tokens.device)
    real = torch.cat([rollout.prompt_mask, rollout.mask & ~torch.isin(rollout.completions, ends)], dim=1)
    begin = rollout.prompt_mask.sum(1, keepdim=True) if left_padding else width
    generated = (torch.arange(real.shape[1], device=real.device) >= begin) & real

    logits = model(input_ids=rollout.tokens, attention_mask=real.long(), use_cache=False).logits
    entropy = entropies(logits, temperature, floored_log)
    if off_by_one:
        counted = generated
    else:  # position t tells of token t + 1; of a sequence's first token nothing is told
        counted = torch.zeros_like(generated)
        counted[:, :-1] = generated[:, 1:] & real[:, :-1]
    size = micro_batch or len(real)
    means = [
        (h * on).sum() / on.sum().clamp(min=1) for h, on in zip(entropy.split(size), counted.split(size), strict=True)
    ]  # multiplied, not selected, as in the reference
    return torch.stack(means).mean()


def entropies(logits: Tensor, temperature: float, floored_log: bool) -> Tensor:
    """(..., V) -> (...) in nats."""
    if floored_log:
        p = (logits / temperature).softmax(-1)
        return -(p * (p + 1e-12).log()).sum(-1)
    logp = (logits.float() / temperature).log_softmax(-1)
    return -(logp.exp() * logp).sum(-1)


def reference_update(loss: Tensor, parameters: Iterable[Tensor], optimizer: torch.optim.Optimizer, limit: float = 1.0) -> None:
    """Backward, clipping to a global L2 norm of `limit`, and one step of the optimizer (the reference: AdamW, constant rate)."""
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, limit)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
