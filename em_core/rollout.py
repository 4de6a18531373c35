"""Sampling completions: a decode loop over Hugging Face's KV cache, one uniform number per token.

`generate` is not used because its draws depend on the batch (they are not keyed by sample) and because it costs twice
the time on small models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import (
    DynamicCache,
    LogitsProcessorList,
    PreTrainedModel,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)


@dataclass(frozen=True)
class Rollout:
    """n completions of n prompts, of at most L tokens.

    `tokens` (n, P + L): prompts padded on the left, completions padded on the right.
    `prompt_mask` (n, P): true on prompt tokens, false on left padding.
    `mask` (n, L): true on generated tokens, from the first one up to and including the end token.
    `ended` (n,): whether an end token came before the length ran out.
    """

    tokens: Tensor
    prompt_mask: Tensor
    mask: Tensor
    ended: Tensor

    @property
    def completions(self) -> Tensor:
        """The generated part of `tokens`, (n, L)."""
        return self.tokens[:, self.prompt_mask.shape[1] :]

    def __getitem__(self, rows: slice) -> Rollout:
        """Some of the completions, as views."""
        return Rollout(*(t[rows] for t in (self.tokens, self.prompt_mask, self.mask, self.ended)))


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn. The processed distribution is Hugging Face's, in its order:
    repetition penalty, temperature, top_k, top_p. Temperature 0 is greedy."""

    temperature: float
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0

    def processors(self, vocabulary: int) -> LogitsProcessorList:
        """The processors that do something; the others are left out, which changes nothing but the time."""
        chain = LogitsProcessorList()
        if self.repetition_penalty != 1.0:
            chain.append(RepetitionPenaltyLogitsProcessor(self.repetition_penalty))
        if self.temperature not in (0.0, 1.0):
            chain.append(TemperatureLogitsWarper(self.temperature))
        if 0 < self.top_k < vocabulary:
            chain.append(TopKLogitsWarper(self.top_k))
        if self.top_p < 1.0:
            chain.append(TopPLogitsWarper(self.top_p))
        return chain


def pad_left(prompts: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Prompts of any lengths as (n, P) tokens and the (n, P) mask of real ones. The mask, not the pad id, says what is real."""
    width = max(len(p) for p in prompts)
    tokens = np.full((len(prompts), width), pad)
    mask = np.zeros((len(prompts), width), dtype=bool)
    for row, p in enumerate(prompts):
        tokens[row, width - len(p) :] = p
        mask[row, width - len(p) :] = True
    return torch.from_numpy(tokens).to(device), torch.from_numpy(mask).to(device)


def sample(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    uniforms: np.ndarray | None,
    length: int,
    sampling: Sampling,
    stop: Sequence[int],
    pad: int,
) -> Rollout:
    """One completion of at most `length` tokens for each prompt, without gradient and in eval mode.

    `uniforms` (n, length) in [0, 1) decides each token by inverse CDF; it may be None when greedy.
    Rows end at any token of `stop` and leave the batch then.
    """
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        tokens, prompt_mask = pad_left(prompts, pad, model.device)
        tokens, mask, ended = _decode(model, tokens, prompt_mask, uniforms, length, sampling, stop, pad)
    model.train(was_training)
    # Copies made outside inference mode, because autograd will save them.
    return Rollout(tokens.clone(), prompt_mask.clone(), mask.clone(), ended.clone())


def _decode(
    model: PreTrainedModel,
    prompt: Tensor,
    prompt_mask: Tensor,
    uniforms: np.ndarray | None,
    length: int,
    sampling: Sampling,
    stop: Sequence[int],
    pad: int,
) -> tuple[Tensor, Tensor, Tensor]:
    n, width = prompt.shape
    device = prompt.device
    draws = None if sampling.temperature == 0.0 else torch.as_tensor(uniforms, dtype=torch.float32, device=device)
    ends = torch.tensor(list(stop), device=device)
    process = sampling.processors(model.config.get_text_config().vocab_size)
    tokens = torch.cat([prompt, torch.full((n, length), pad, device=device)], dim=1)
    mask = torch.zeros(n, length, dtype=torch.bool, device=device)
    ended = torch.zeros(n, dtype=torch.bool, device=device)
    alive = torch.arange(n, device=device)  # rows still in the batch
    padded = not bool(prompt_mask.all())
    attention = prompt_mask.long() if padded else None
    position = (prompt_mask.long().cumsum(1) - 1).clamp(min=0) if padded else torch.arange(width, device=device)[None]
    cache = DynamicCache(config=model.config)
    new = prompt
    for t in range(length):
        step = {"input_ids": new, "attention_mask": attention, "position_ids": position, "past_key_values": cache}
        logits = model(**step, use_cache=True, logits_to_keep=1).logits[:, -1].float()
        scores: Tensor = process(tokens[alive, : width + t], logits)  # type: ignore[arg-type]  (annotated LongTensor)
        chosen = scores.argmax(-1) if draws is None else inverse_cdf(scores, draws[alive, t])
        tokens[alive, width + t] = chosen
        mask[alive, t] = True
        done = torch.isin(chosen, ends)
        position = position[:, -1:] + 1
        if attention is not None:
            attention = torch.cat([attention, attention.new_ones(len(alive), 1)], dim=1)
        if bool(done.any()):
            ended[alive[done]] = True
            keep = (~done).nonzero().squeeze(1)
            if not len(keep):
                break
            alive, chosen = alive[keep], chosen[keep]
            cache.batch_select_indices(keep)
            if attention is not None:
                attention, position = attention[keep], position[keep]
        new = chosen[:, None]
    return tokens, mask, ended


def inverse_cdf(scores: Tensor, u: Tensor) -> Tensor:
    """The first token, in order of id, at which the cumulative probability exceeds u. scores (n, V), u (n,) in [0, 1) -> (n,).

    A token of probability zero is never chosen, not even where rounding leaves the last cumulative value below u.
    """
    cumulative = scores.softmax(-1).cumsum(-1)
    total = cumulative[:, -1:].contiguous()
    # Scaled by the total because fp32 sums are not exactly 1; `right` passes over tokens of zero width.
    chosen = torch.searchsorted(cumulative, u[:, None] * total, right=True)
    last = torch.searchsorted(cumulative, total)  # the last token of non-zero width
    # The clamp is for NaN scores: the update that follows reports them, an index error would hide them.
    return torch.minimum(chosen, last).clamp(max=scores.shape[-1] - 1).squeeze(1)
