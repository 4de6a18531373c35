"""Answering many prompts of varied lengths: where rows have ended, waiting prompts take their places.

A batch that is decoded to its end is nearly empty for most of its steps when a few answers are long. Here every answer that
ends leaves the batch, and when half of the batch has left, waiting prompts are read (prefill) into a cache of their own, which
is joined to the one in use. Rows are aligned on the right: each holds its prompt and what it has said so far in its last
columns, behind padding that the attention mask hides, so that rows of any age are decoded together. An answer depends on
neither its place nor its neighbours, but for the rounding of another batch shape.

(transformers' continuous batching draws with one generator for all requests: its answers would depend on the batch.)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from em_core.rollout import Sampling, inverse_cdf, pad_left

Draws = Callable[[Sequence[int], int], np.ndarray]
"""(indices of prompts, length) -> uniforms in [0, 1), (indices, length)."""
Ended = Callable[[int, list[int], bool], None]
"""Is told of each answer when it is over: index of its prompt, tokens (with the end token), whether it ended by itself."""


class Batch:
    """Rows that are decoded together: what each has said, its uniforms, its cache, and the token it goes on from.

    `mask` (n, T) is true where the cache holds a row's own tokens, `position` (n, 1) is that of its `last` token (n, 1).
    """

    def __init__(self, indices: list[int], draws: np.ndarray | None, cache: DynamicCache, mask: Tensor, last: Tensor) -> None:
        self.indices = indices
        self.said: list[list[int]] = [[] for _ in indices]
        self.draws = draws
        self.cache = cache
        self.mask = mask
        self.last = last

    def __len__(self) -> int:
        return len(self.indices)

    def keep(self, rows: list[int]) -> None:
        """Only these rows stay, and of the columns those that one of them needs."""
        self.indices = [self.indices[r] for r in rows]
        self.said = [self.said[r] for r in rows]
        self.draws = None if self.draws is None else self.draws[rows]
        if not rows:
            return
        chosen = torch.tensor(rows, device=self.mask.device)
        self.mask, self.last = self.mask[chosen], self.last[chosen]
        first = int(self.mask.any(0).int().argmax())
        self.mask = self.mask[:, first:]
        for layer in _layers(self.cache):
            layer.keys, layer.values = layer.keys[chosen, :, first:], layer.values[chosen, :, first:]

    def join(self, other: Batch) -> None:
        """The rows of another batch behind these, all aligned on the right."""
        if not len(self):
            vars(self).update(vars(other))
            return
        self.indices += other.indices
        self.said += other.said
        if self.draws is not None and other.draws is not None:
            self.draws = np.concatenate([self.draws, other.draws])
        self.last = torch.cat([self.last, other.last])
        width = max(self.mask.shape[1], other.mask.shape[1])
        self.mask = torch.cat([_widened(self.mask, width, 1), _widened(other.mask, width, 1)])
        for mine, theirs in zip(_layers(self.cache), _layers(other.cache), strict=True):
            mine.keys = torch.cat([_widened(mine.keys, width, 2), _widened(theirs.keys, width, 2)])
            mine.values = torch.cat([_widened(mine.values, width, 2), _widened(theirs.values, width, 2)])


def _layers(cache: DynamicCache) -> list[Any]:
    """The cache's layers, whose `keys` and `values` are (n, heads, T, head size)."""
    return list(cache.layers)


def _widened(tensor: Tensor, width: int, dim: int) -> Tensor:
    """Zeros (false) in front along `dim`, up to `width`."""
    by = width - tensor.shape[dim]
    if not by:
        return tensor
    shape = list(tensor.shape)
    shape[dim] = by
    return torch.cat([tensor.new_zeros(shape), tensor], dim)


def answer_all(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    draws: Draws | None,
    length: int,
    sampling: Sampling,
    stop: Sequence[int],
    pad: int,
    capacity: int,
    ended: Ended,
    just_said: Callable[[list[list[int]]], list[bool]] | None = None,
    together: Callable[[bool], bool] | None = None,
) -> None:
    """One answer of at most `length` tokens to each prompt, at most `capacity` at once, in the order of the prompts.

    An answer ends at a token of `stop`, or when `just_said` finds the end of its tokens to be the end. `draws` is None when
    greedy. `together` is as in `em_core.rollout.sample`: it is asked once after each forward pass.
    """
    assert sampling.repetition_penalty == 1.0, "evaluation has no repetition penalty: prompts are not kept"
    stops, waiting = frozenset(stop), deque(range(len(prompts)))
    process = sampling.processors(model.config.get_text_config().vocab_size)
    live: Batch | None = None

    def decide(batch: Batch, logits: Tensor) -> None:
        """The next token of each row; rows that end are told of and leave."""
        scores: Tensor = process(batch.last, logits.float())  # type: ignore[arg-type]
        if batch.draws is None:
            chosen = scores.argmax(-1)
        else:
            u = batch.draws[range(len(batch)), [len(said) for said in batch.said]]
            chosen = inverse_cdf(scores, torch.from_numpy(u).to(scores.device))
        batch.last = chosen[:, None]
        for said, token in zip(batch.said, chosen.tolist(), strict=True):
            said.append(token)
        by_text = just_said(batch.said) if just_said else [False] * len(batch)
        staying = []
        for row, said in enumerate(batch.said):
            by_itself = said[-1] in stops or by_text[row]
            if by_itself or len(said) == length:
                ended(batch.indices[row], said, by_itself)
            else:
                staying.append(row)
        if len(staying) < len(batch):
            batch.keep(staying)

    was_training = model.training
    model.train(False)
    # FSDP's buffers are made in the first forward pass and written by training: they must be no inference tensors.
    with torch.inference_mode() if together is None else torch.no_grad():
        while True:
            busy = len(live) if live is not None else 0
            room = capacity - busy
            if waiting and (not busy or (2 * busy <= capacity and _can_join(live))):
                some = [waiting.popleft() for _ in range(min(room, len(waiting)))]
                fresh, logits = _read(model, [prompts[i] for i in some], some, draws, length, pad)
                decide(fresh, logits)
                if live is None:
                    live = fresh
                elif len(fresh):
                    live.join(fresh)
            elif live is not None and busy:
                decide(live, _next(model, live))
            else:
                model(input_ids=torch.tensor([prompts[0][-1:]], device=model.device), use_cache=False)  # keeps up with the others
            over = not waiting and not (live is not None and len(live))
            if together(over) if together is not None else over:
                break
    model.train(was_training)


def _can_join(batch: Batch | None) -> bool:
    """Whether all layers keep all tokens: those with a sliding window cannot be aligned anew."""
    return batch is None or all(type(layer) is DynamicLayer for layer in batch.cache.layers)


def _read(
    model: PreTrainedModel, prompts: list[Sequence[int]], indices: list[int], draws: Draws | None, length: int, pad: int
) -> tuple[Batch, Tensor]:
    """Prompts as a batch, and the logits (n, V) after them."""
    tokens, mask = pad_left(prompts, pad, model.device)
    cache = DynamicCache(config=model.config)
    logits = _forward(model, tokens, mask, cache)
    return Batch(indices, draws(indices, length) if draws else None, cache, mask, tokens[:, -1:]), logits


def _next(model: PreTrainedModel, batch: Batch) -> Tensor:
    """The logits (n, V) after each row's last token, which the cache then holds."""
    batch.mask = torch.cat([batch.mask, batch.mask.new_ones(len(batch), 1)], dim=1)
    return _forward(model, batch.last, batch.mask, batch.cache)


def _forward(model: PreTrainedModel, new: Tensor, mask: Tensor, cache: DynamicCache) -> Tensor:
    position = (mask.long().cumsum(1) - 1).clamp(min=0)[:, -new.shape[1] :]
    step = {"input_ids": new, "attention_mask": mask.long(), "position_ids": position, "past_key_values": cache}
    return model(**step, use_cache=True, logits_to_keep=1).logits[:, -1]  # type: ignore[no-any-return]
