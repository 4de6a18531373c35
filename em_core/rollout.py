"""Sampling completions: a decode loop over Hugging Face's KV cache, one uniform number per token.

`generate` is not used because its draws depend on the batch (they are not keyed by sample) and because it costs twice
the time on small models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import (
    DynamicCache,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
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

    @classmethod
    def joined(cls, parts: Sequence[Rollout], pad: int) -> Rollout:
        """Completions of equal L, one after another; shorter prompts are padded on the left, with `pad`, to the longest."""
        if len(parts) == 1:
            return parts[0]
        width = max(p.prompt_mask.shape[1] for p in parts)
        parts = [p._widened(width - p.prompt_mask.shape[1], pad) for p in parts]
        return cls(*(torch.cat([getattr(p, name) for p in parts]) for name in ("tokens", "prompt_mask", "mask", "ended")))

    def _widened(self, by: int, pad: int) -> Rollout:
        tokens, prompt_mask = (
            torch.nn.functional.pad(t, (by, 0), value=value) for t, value in ((self.tokens, pad), (self.prompt_mask, False))
        )
        return Rollout(tokens, prompt_mask, self.mask, self.ended)


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn. The processed distribution is Hugging Face's, in its order:
    repetition penalty, temperature, top_k, top_p; `decoding` comes before them all. Temperature 0 is greedy."""

    temperature: float
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    decoding: LogitsProcessor | None = None

    def processors(self, vocabulary: int) -> LogitsProcessorList:
        """The processors that do something; the others are left out, which changes nothing but the time."""
        chain = LogitsProcessorList([self.decoding] if self.decoding else [])
        if self.repetition_penalty != 1.0:
            chain.append(RepetitionPenaltyLogitsProcessor(self.repetition_penalty))
        if self.temperature not in (0.0, 1.0):
            chain.append(TemperatureLogitsWarper(self.temperature))
        if 0 < self.top_k < vocabulary:
            chain.append(TopKLogitsWarper(self.top_k))
        if self.top_p < 1.0:
            chain.append(NucleusWarper(self.top_p))
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
    together: Callable[[bool], bool] | None = None,
) -> Rollout:
    """One completion of at most `length` tokens for each prompt, without gradient and in eval mode.

    `uniforms` (n, length) in [0, 1) decides each token by inverse CDF; it may be None when greedy.
    Rows end at any token of `stop` and leave the batch then. `together` says whether what is true here (nothing left to
    do) is true in all processes that share a sharded model (None: there are no others): until then this one goes on with
    forward passes.
    """
    was_training = model.training
    model.eval()
    # FSDP's buffers are made in the first forward pass and written by training: they must be no inference tensors.
    with torch.inference_mode() if together is None else torch.no_grad():
        tokens, prompt_mask = pad_left(prompts, pad, model.device)
        tokens, mask, ended = _decode(model, tokens, prompt_mask, uniforms, length, sampling, stop, pad, together or bool)
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
    together: Callable[[bool], bool],
) -> tuple[Tensor, Tensor, Tensor]:
    n, width = prompt.shape
    device = prompt.device
    draws = None if sampling.temperature == 0.0 else torch.as_tensor(uniforms, device=device)
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
        scores: Tensor = process(tokens[alive, : width + t], logits)  # type: ignore[arg-type]
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
            alive, chosen = alive[keep], chosen[keep]
            if len(keep):
                cache.batch_select_indices(keep)
            if attention is not None:
                attention, position = attention[keep], position[keep]
        if together(not len(alive) or t == length - 1):
            break
        if not len(alive):
            _keep_up(model, prompt[:1, -1:], together)
            break
        new = chosen[:, None]
    return tokens, mask, ended


def _keep_up(model: PreTrainedModel, token: Tensor, together: Callable[[bool], bool]) -> None:
    """Forward passes for nothing, until the other processes have finished their rows as well."""
    while True:
        model(input_ids=token, use_cache=False)
        if together(True):
            return


def inverse_cdf(scores: Tensor, u: Tensor) -> Tensor:
    """The first token, in order of id, at which the cumulative probability exceeds u. scores (n, V), u (n,) in [0, 1) -> (n,).

    A token without mass is never chosen. Scores that are NaN give some token: the update that follows reports them.
    """
    cumulative = _integer_mass(scores).cumsum(-1)
    threshold = (u.double()[:, None] * cumulative[:, -1:]).long()  # below the total, since u < 1
    return torch.searchsorted(cumulative, threshold, right=True).squeeze(1).clamp(max=scores.shape[-1] - 1)


def _integer_mass(scores: Tensor) -> Tensor:
    """Probabilities in units of 2^-40: sums of integers are exact, and reproducible on a GPU, where float sums are not."""
    return (scores.softmax(-1) * 2**40).nan_to_num().long()


class NucleusWarper(LogitsProcessor):
    """`TopPLogitsWarper` with integer sums: its float `cumsum` is refused on a GPU in deterministic mode."""

    def __init__(self, top_p: float) -> None:
        self.top_p = top_p

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        ordered, ids = scores.sort(-1)
        cumulative = _integer_mass(ordered).cumsum(-1)
        tail = cumulative <= ((1 - self.top_p) * cumulative[:, -1:]).long()
        tail[:, -1] = False
        return scores.masked_fill(tail.scatter(1, ids, tail), -torch.inf)
