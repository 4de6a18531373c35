"""Rows that end make room for waiting prompts, and no answer changes by it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from em_core.model import Policy
from em_core.noise import uniforms
from em_core.rollout import Sampling, sample
from tests.models import miniature

QUESTIONS = [f"Q:{a}{sign}{b}+{c}=?" for a in (1, 12, 19) for b in (3, 17) for c in (1, 9) for sign in "+-"]
pytestmark = pytest.mark.slow


def draws(indices: Sequence[int], length: int) -> np.ndarray:
    return uniforms(5, "t", 0, indices, length)


def refilled(policy: Policy, sampling: Sampling, length: int, capacity: int, stop_texts: tuple[str, ...] = ()) -> list[str]:
    """`text|end` of each question's answer; every one is told once."""
    prompts = [policy.encode(q, "none") for q in QUESTIONS]
    found: dict[int, str] = {}

    def ended(index: int, tokens: list[int], by_itself: bool) -> None:
        assert index not in found
        found[index] = f"{policy.text(tokens)}|{by_itself}"

    keyed = draws if sampling.temperature else None
    policy.answer_all(prompts, keyed, length, sampling, policy.stop, stop_texts, capacity, ended)
    return [found[i] for i in range(len(prompts))]


@pytest.mark.parametrize("sampling", [Sampling(0.0), Sampling(1.0, 0.95)])
def test_texts_are_those_of_whole_batches(sampling: Sampling) -> None:
    policy = miniature()
    prompts = [policy.encode(q, "none") for q in QUESTIONS]
    whole = sample(policy.model, prompts, draws(range(len(prompts)), 16), 16, sampling, policy.stop, policy.pad)
    expected = [f"{t}|{bool(e)}" for t, e in zip(policy.texts(whole), whole.ended, strict=True)]
    assert len({len(e) for e in expected}) > 3, "the test wants answers of several lengths"
    assert any(e.endswith("False") for e in expected), "and truncated ones"
    for capacity in (1, 3, 4, 10, 64):
        assert refilled(policy, sampling, 16, capacity) == expected


def test_the_batch_stays_filled() -> None:
    policy = miniature()
    sizes = []
    forward = policy.model.forward
    policy.model.forward = lambda *a, **k: sizes.append(k["input_ids"].shape) or forward(*a, **k)  # type: ignore[method-assign]
    refilled(policy, Sampling(1.0), 24, 8)
    reads = [n for n, width in sizes if width > 1]
    steps = [n for n, width in sizes if width == 1]
    assert sum(reads) == len(QUESTIONS)
    assert len(reads) > 3, "waiting prompts were read when half of the batch had left"
    assert max(steps) <= 8
    last_read = max(i for i, (_, width) in enumerate(sizes) if width > 1)
    assert min(n for n, width in sizes[:last_read] if width == 1) >= 4


def test_a_text_ends_an_answer() -> None:
    policy = miniature()
    whole = refilled(policy, Sampling(0.0), 24, 8)
    cut = refilled(policy, Sampling(0.0), 24, 8, (";1", "=2"))
    for long, short in zip(whole, cut, strict=True):
        text = long.rpartition("|")[0]
        ends = [at + 2 for s in (";1", "=2") if (at := text.find(s)) >= 0]
        assert short.rpartition("|")[0] == text[: min(ends, default=None)]
        assert not ends or short.endswith("True")
    assert cut != whole


def test_a_sliding_window_is_never_joined() -> None:
    """Its layers forget the first tokens, so their columns cannot be aligned: such a batch ends before the next one starts."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    shape = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    sliding = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
    policy = miniature()
    config = Qwen2Config(vocab_size=len(policy.tokenizer), eos_token_id=policy.stop[0], **shape, **sliding)
    policy.model = Qwen2ForCausalLM(config).eval()
    assert refilled(policy, Sampling(1.0), 20, 4) == refilled(policy, Sampling(1.0), 20, len(QUESTIONS))
