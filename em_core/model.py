"""A language model as this project trains it: fp32 masters, one compute model, and the base weights to go back to.

With compute dtype float32 the compute model *is* the master. With bfloat16 there is one bf16 copy, used for rollout,
forward, backward and evaluation; its gradients move into fp32 master gradients as they appear, and it is refreshed from
the masters after each update. Where several processes share the weights (`em_core.sharding`) the sharded fp32 parameters
are the masters, in any compute dtype. (AdamW on bare bf16 weights loses small updates: 2e-5 against a weight near .02 is under
half a bf16 ulp.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from em_core.models import LOGITS_CHUNK, resolve_model
from em_core.parallel import ALONE, Team
from em_core.refilling import Draws, Ended, answer_all
from em_core.rollout import Rollout, Sampling, sample
from em_core.sharding import drop_gathered, local, shard, spread_like, whole

Terms = Callable[[Tensor, Tensor], tuple[Tensor, ...]]
"""(fp32 logits (m, V), sampled tokens (m,)) -> tensors of shape (m,): what a loss needs of each position."""


class Policy:
    """A model, its tokenizer and its masters.

    `model` computes; `masters` (name -> fp32 tensor) are what the optimizer updates; `base` holds the weights as
    loaded, on the host (this process's part, where they are sharded). `positions` is the longest sequence the model
    takes (None: unlimited).
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        device: torch.device,
        dtype: torch.dtype,
        team: Team = ALONE,
    ):
        self.tokenizer = tokenizer
        self.dtype = dtype
        self.team = team
        self.one_copy = team.sharded or dtype == torch.float32
        """Whether the compute model's parameters are the masters themselves."""
        _remove_dropout(model)
        if team.sharded:
            shard(model, team, device, dtype)
            self.base = {name: local(p).detach().to("cpu", copy=True) for name, p in model.named_parameters()}
        else:
            self.base = {name: p.detach().to("cpu", copy=True) for name, p in model.named_parameters()}
            _cast_parameters(model, dtype)
        self.model: PreTrainedModel = model.to(device)  # type: ignore[arg-type]
        self.model.eval()
        params = dict(self.model.named_parameters())
        if self.one_copy:
            self.masters: dict[str, Tensor] = dict(params)
        else:
            self.masters = {name: torch.empty_like(p, dtype=torch.float32) for name, p in params.items()}
            for name, p in params.items():
                p.register_post_accumulate_grad_hook(_moves_gradient_to(self.masters[name]))
        self.restore()
        self.split_head = not team.sharded and _head_is_separate(self.model)  # only whole forward passes gather the weights
        text = self.model.config.get_text_config()
        self.positions: int | None = getattr(text, "max_position_embeddings", None)
        self.stop = _stop_ids(self.model, tokenizer)
        self.pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.stop[0]

    @classmethod
    def load(cls, name: str, revision: str | None, device: torch.device, dtype: torch.dtype, team: Team = ALONE) -> Policy:
        """The model `name` (see `em_core.models`) on `device`, computing in `dtype`."""
        source, revision = source_of(name, revision)
        model = AutoModelForCausalLM.from_pretrained(source, revision=revision, dtype="auto")
        return cls(model, AutoTokenizer.from_pretrained(source, revision=revision), device, dtype, team)

    @torch.no_grad()
    def restore(self) -> None:
        """Bit for bit back to the base weights, without gradients."""
        for name, master in self.masters.items():
            local(master).copy_(self.base[name])
            master.grad = None
        self.refresh()

    @torch.no_grad()
    def load_weights(self, folder: Path) -> None:
        """The weights of a kept checkpoint of this very model."""
        self.assign(dict(AutoModelForCausalLM.from_pretrained(folder, dtype="auto").named_parameters()))

    @torch.no_grad()
    def rebase(self, source: str | Path, revision: str | None = None) -> None:
        """Make the weights of another checkpoint of this very model those that `restore` and `reference` go back to."""
        weights = dict(AutoModelForCausalLM.from_pretrained(source, revision=revision, dtype="auto").named_parameters())
        self.assign(weights)
        self.base = {name: local(m).detach().to("cpu", weights[name].dtype, copy=True) for name, m in self.masters.items()}

    @torch.no_grad()
    def assign(self, weights: Mapping[str, Tensor]) -> None:
        """Weights by parameter name, of any device and precision."""
        for name, weight in weights.items():
            master = self.masters[name]
            master.copy_(spread_like(master, weight))
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Brings the compute copy up to date with the masters."""
        if self.team.sharded:
            drop_gathered(self.model)
        elif not self.one_copy:
            for name, p in self.model.named_parameters():
                p.copy_(self.masters[name])

    def save(self, folder: Path) -> None:
        """A normal Hugging Face checkpoint of the compute model (what was evaluated), with the tokenizer.

        Of a sharded one the weights come together on the host of the main process, which alone writes.
        """
        weights = None
        if self.team.sharded:
            weights = self.gathered(self.masters, self.dtype)
        if self.team.is_main:
            self.model.save_pretrained(folder, state_dict=weights)
            self.tokenizer.save_pretrained(folder)

    def gathered(self, tensors: Mapping[str, Tensor], dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        """Sharded tensors made whole, on the host of the main process; nothing in the others."""
        found = {}
        for name, tensor in tensors.items():
            full = whole(tensor)  # one at a time: there may be no room for all
            if self.team.is_main:
                found[name] = full.to("cpu", dtype if full.dim() else full.dtype)
        return found

    def reference(self) -> Policy:
        """A frozen model with the base weights, for a KL term. Costs one more compute copy."""
        model = AutoModelForCausalLM.from_config(self.model.config)
        if not self.team.sharded:
            model.load_state_dict(self.base, strict=False)
            model.tie_weights()
        frozen = Policy(model, self.tokenizer, self.model.device, self.dtype, self.team)
        if self.team.sharded:
            frozen.base = self.base
            frozen.restore()
        frozen.masters = {}
        return frozen

    def sample(
        self, prompts: Sequence[Sequence[int]], draws: np.ndarray | None, length: int, sampling: Sampling, stop: Sequence[int]
    ) -> Rollout:
        """One completion of each prompt; see `em_core.rollout.sample`."""
        together = self.team.all if self.team.sharded else None
        return sample(self.model, prompts, draws, length, sampling, stop, self.pad, together)

    def encode(self, text: str, chat_template: str) -> list[int]:
        """Token ids of a training prompt: one user turn of the chat template (`auto`, where there is one), or raw text."""
        if chat_template == "auto" and self.tokenizer.chat_template:
            return self._chat([{"role": "user", "content": text}])
        return self._ids(text)

    def encode_question(self, question: str, system: str | None) -> list[int]:
        """Token ids of a task's question: as it stands (`system` None), by chat template, or in the same words.

        Where `system` is empty it is asked as a training prompt is.
        """
        if system is None:
            return self._ids(question)
        if not system:
            return self.encode(question, "auto")
        if self.tokenizer.chat_template:
            return self._chat([{"role": "system", "content": system}, {"role": "user", "content": question}])
        return self._ids(f"{system}\n\n{question}\n\n")

    def _chat(self, turns: list[dict[str, str]]) -> list[int]:
        text = self.tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        return self._ids(str(text), add_special_tokens=False)

    def _ids(self, text: str, add_special_tokens: bool = True) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"]
        return ids

    def answer_all(
        self,
        prompts: Sequence[Sequence[int]],
        draws: Draws | None,
        length: int,
        sampling: Sampling,
        stop: Sequence[int],
        stop_texts: Sequence[str],
        capacity: int,
        ended: Ended,
    ) -> None:
        """One answer to each prompt, which ends at a token of `stop` or any of `stop_texts`; see `em_core.refilling`."""
        longest = max((len(text.encode()) for text in stop_texts), default=0) + 1  # a token is a byte or more

        def just_said(said: list[list[int]]) -> list[bool]:
            tails = self.tokenizer.batch_decode([tokens[-longest:] for tokens in said])
            return [any(text in tail for text in stop_texts) for tail in tails]

        together = self.team.all if self.team.sharded else None
        answer_all(
            self.model, prompts, draws, length, sampling, stop, self.pad, capacity, ended,
            just_said if stop_texts else None, together,
        )  # fmt: skip

    def text(self, tokens: Sequence[int]) -> str:
        """A completion as text, without special tokens."""
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True))

    def texts(self, rollout: Rollout) -> list[str]:
        """The completions as text, without special tokens."""
        generated = [row[mask].tolist() for row, mask in zip(rollout.completions.cpu(), rollout.mask.cpu(), strict=True)]
        return self.tokenizer.batch_decode(generated, skip_special_tokens=True)

    def check_length(self, prompt: Sequence[int], completion: int, what: str) -> None:
        """Raises `ValueError` for a prompt without tokens, or one that leaves no room for `completion` more."""
        if not prompt:
            raise ValueError(f"{what} has no tokens: the tokenizer of this model knows none of its characters")
        if self.positions is not None and len(prompt) + completion > self.positions:
            raise ValueError(
                f"{what} has {len(prompt)} tokens; with {completion} more it exceeds the model's {self.positions} positions"
            )

    def stop_ids(self, names: Sequence[str]) -> list[int]:
        """The model's own end tokens and those of `names` that are single tokens of the vocabulary."""
        vocabulary = self.tokenizer.get_vocab()
        return sorted({*self.stop, *(vocabulary[n] for n in names if n in vocabulary)})

    def completion_terms(self, rollout: Rollout, terms: Terms) -> tuple[Tensor, ...]:
        """`terms` at every generated token of a rollout, in row-major order: tensors of shape (tokens,).

        Position p predicts token p + 1, so the first generated token is scored from the last prompt position. Logits
        exist in fp32 for at most LOGITS_CHUNK positions at a time, and are computed again in the backward pass.
        """
        width = rollout.prompt_mask.shape[1]
        longest = int(rollout.mask.sum(1).max())
        mask = rollout.mask[:, :longest]
        inputs = rollout.tokens[:, : width + longest - 1]
        targets = rollout.tokens[:, width : width + longest][mask]
        kwargs: dict[str, Any] = {"input_ids": inputs, "use_cache": False}
        if not bool(rollout.prompt_mask.all()):  # nothing but left padding needs a mask: attention is causal
            attention = torch.cat([rollout.prompt_mask, rollout.prompt_mask.new_ones(len(inputs), longest - 1)], dim=1)
            kwargs["attention_mask"] = attention.long()
            kwargs["position_ids"] = (attention.long().cumsum(1) - 1).clamp(min=0)
        if self.split_head:
            hidden = self.model.base_model(**kwargs).last_hidden_state[:, width - 1 :][mask]
            head = self.model.get_output_embeddings()
        else:
            hidden = self.model(**kwargs, logits_to_keep=longest).logits[mask]
            head = torch.nn.Identity()

        def of_chunk(h: Tensor, y: Tensor) -> tuple[Tensor, ...]:
            return terms(head(h).float(), y)

        chunks = list(zip(hidden.split(LOGITS_CHUNK), targets.split(LOGITS_CHUNK), strict=True))
        if len(chunks) == 1:
            return of_chunk(*chunks[0])
        parts = [checkpoint(of_chunk, h, y, use_reentrant=False) for h, y in chunks]
        return tuple(torch.cat(column) for column in zip(*parts, strict=True))


def source_of(name: str, revision: str | None) -> tuple[str | Path, str | None]:
    """Where transformers loads a model from: (folder, None), or the Hub's (id, revision)."""
    folder = resolve_model(name, revision)
    return (name, revision) if folder is None else (folder, None)


def _cast_parameters(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Parameters only: rotary frequencies are buffers and stay fp32, as in a model loaded in bf16."""
    for p in model.parameters():
        p.data = p.data.to(dtype)


def _remove_dropout(model: PreTrainedModel) -> None:
    """The sampled and the scored model are to be the same, in train mode too (gradient checkpointing needs that mode)."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if "attention_dropout" in vars(module):
            vars(module)["attention_dropout"] = 0.0


def _moves_gradient_to(master: Tensor) -> Callable[[Tensor], None]:
    def hook(p: Tensor) -> None:
        assert p.grad is not None
        if master.grad is None:
            master.grad = p.grad.float()
        else:
            master.grad += p.grad
        p.grad = None

    return hook


@torch.no_grad()
def _head_is_separate(model: PreTrainedModel) -> bool:
    """Whether logits are the output embedding applied to the last hidden state: tried once on two tokens.

    False for models that scale or cap their logits; these compute all logits of a micro-batch at once.
    """
    head = model.get_output_embeddings()
    if head is None or model.base_model is model:
        return False
    ids = torch.tensor([[1, 2]], device=model.device)
    hidden = getattr(model.base_model(input_ids=ids, use_cache=False), "last_hidden_state", None)
    return hidden is not None and torch.equal(head(hidden), model(input_ids=ids, use_cache=False).logits)


def _stop_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """End tokens by the generation config and the tokenizer, in ascending order."""
    said = model.generation_config.eos_token_id if model.generation_config else None
    ids = set(said if isinstance(said, list) else [] if said is None else [said])
    if tokenizer.eos_token_id is not None:
        ids.add(tokenizer.eos_token_id)
    if not ids:
        raise ValueError("the model names no end token (eos_token_id): completions would never end")
    return sorted(ids)
