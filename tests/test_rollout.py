"""Sampling: keyed draws, the first generated token and the end token in the mask, agreement with Hugging Face's generate."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from em_core.noise import uniforms
from em_core.rollout import Rollout, Sampling, inverse_cdf, pad_left, sample
from tests.models import miniature

QUESTIONS = ["Q:12+7+5=?", "Q:3-18+4=?", "Q:1+2+3=?", "Q:19+19+9=?"]


@pytest.mark.fast
def test_uniforms_belong_to_their_key() -> None:
    eight = uniforms(3, "rollout", 5, range(8), 24)
    assert np.array_equal(uniforms(3, "rollout", 5, range(12), 24)[:8], eight)  # more samples keep the earlier ones
    assert np.array_equal(uniforms(3, "rollout", 5, [6, 2], 24), eight[[6, 2]])  # order is irrelevant
    assert np.array_equal(uniforms(3, "rollout", 5, range(8), 10), eight[:, :10])  # longer rows start with shorter ones
    for other in (
        uniforms(4, "rollout", 5, range(8), 24),
        uniforms(3, "evaluation", 5, range(8), 24),
        uniforms(3, "rollout", 6, range(8), 24),
    ):
        assert not np.isin(other, eight).any()
    assert eight.min() >= 0
    assert eight.max() < 1


@pytest.mark.fast
def test_inverse_cdf() -> None:
    scores = torch.tensor([[0.2, 0.0, 0.5, 0.3, 0.0]]).log()
    u = torch.tensor([0.0, 0.19, 0.21, 0.69, 0.71, 1 - 2.0**-53], dtype=torch.float64)
    assert inverse_cdf(scores.expand(6, -1), u).tolist() == [0, 0, 2, 2, 3, 3]  # tokens 1 and 4 have no mass
    draws = torch.from_numpy(uniforms(0, "x", 0, [0], 20_000)[0]).float()
    shares = torch.bincount(inverse_cdf(scores.expand(len(draws), -1), draws), minlength=5) / len(draws)
    assert torch.allclose(shares, torch.tensor([0.2, 0.0, 0.5, 0.3, 0.0]), atol=0.01)
    assert 0 <= inverse_cdf(torch.full((1, 5), torch.nan), torch.tensor([0.5])).item() < 5  # reported later as diverged


@pytest.mark.fast
def test_processors_are_in_hugging_faces_order() -> None:
    chain = Sampling(0.5, top_p=0.95, top_k=5, repetition_penalty=1.15).processors(17)
    names = [type(p).__name__ for p in chain]
    assert names == ["RepetitionPenaltyLogitsProcessor", "TemperatureLogitsWarper", "TopKLogitsWarper", "NucleusWarper"]
    assert not Sampling(1.0, top_k=17).processors(17)  # what does nothing is left out
    scores = torch.randn(200, 17, generator=torch.Generator().manual_seed(0))
    ids = torch.zeros(200, 1, dtype=torch.long)
    for top_p in (0.1, 0.8, 0.95, 0.999):
        theirs = LogitsProcessorList([TemperatureLogitsWarper(0.5), TopKLogitsWarper(5), TopPLogitsWarper(top_p)])
        assert torch.equal(Sampling(0.5, top_p, 5).processors(17)(ids, scores), theirs(ids, scores))  # type: ignore[arg-type]


@pytest.mark.fast
def test_pad_left() -> None:
    tokens, mask = pad_left([[5], [6, 7, 8]], 0, torch.device("cpu"))
    assert tokens.tolist() == [[0, 0, 5], [6, 7, 8]]
    assert mask.tolist() == [[False, False, True], [True, True, True]]


def _texts(rollout: Rollout) -> list[list[int]]:
    return [row[mask].tolist() for row, mask in zip(rollout.completions, rollout.mask, strict=True)]


@pytest.mark.slow
def test_greedy_agrees_with_generate_padded_or_not() -> None:
    policy = miniature()
    prompts = [policy.encode(q, "none") for q in QUESTIONS]
    assert len({len(p) for p in prompts}) > 1
    together = sample(policy.model, prompts, None, 24, Sampling(0.0), policy.stop, policy.pad)
    for prompt, ours in zip(prompts, _texts(together), strict=True):
        theirs = policy.model.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), max_new_tokens=24, do_sample=False
        )
        assert ours == theirs[0, len(prompt) :].tolist()
    tokens, mask = pad_left(prompts, policy.pad, torch.device("cpu"))
    padded = policy.model.generate(tokens, attention_mask=mask.long(), max_new_tokens=24, do_sample=False)
    assert torch.equal(padded, together.tokens[:, : padded.shape[1]])


@pytest.mark.slow
def test_mask_holds_the_first_token_and_the_end_token() -> None:
    policy = miniature()
    ids = policy.encode(QUESTIONS[0], "none")
    rollout = sample(policy.model, [ids] * 6, uniforms(0, "t", 1, range(6), 14), 14, Sampling(1.0), policy.stop, policy.pad)
    assert 0 < int(rollout.ended.sum()) < 6, "the test wants both ended and truncated rows"
    for row, mask, ended in zip(rollout.completions, rollout.mask, rollout.ended, strict=True):
        length = int(mask.sum())
        assert mask[:length].all()
        assert not mask[length:].any()
        is_end = torch.isin(row, torch.tensor(policy.stop))
        assert not is_end[: length - 1].any()
        assert bool(is_end[length - 1]) == bool(ended)
        assert bool(ended) or length == 14
        assert (row[length:] == policy.pad).all()


@pytest.mark.slow
def test_pad_that_is_the_end_token_stays_in_the_mask() -> None:
    policy = miniature()
    ids = policy.encode(QUESTIONS[0], "none")
    arguments = ([ids] * 4, uniforms(0, "t", 1, range(4), 24), 24, Sampling(1.0), policy.stop)
    usual = sample(policy.model, *arguments, policy.pad)
    same = sample(policy.model, *arguments, policy.stop[0])
    assert _texts(same) == _texts(usual)
    assert all(text[-1] == policy.stop[0] for text in _texts(same))


@pytest.mark.slow
def test_samples_belong_to_their_index() -> None:
    policy = miniature()
    ids = policy.encode(QUESTIONS[0], "none")

    def texts(indices: list[int]) -> dict[int, list[int]]:
        draws = uniforms(7, "rollout", 3, indices, 24)
        rollout = sample(policy.model, [ids] * len(indices), draws, 24, Sampling(0.9, 0.95, 8, 1.15), policy.stop, policy.pad)
        return dict(zip(indices, _texts(rollout), strict=True))

    eight = texts(list(range(8)))
    assert len({tuple(t) for t in eight.values()}) > 1
    more, turned, alone = texts(list(range(12))), texts([5, 0, 3]), texts([6])
    assert all(more[i] == eight[i] for i in eight)
    assert all(turned[i] == eight[i] for i in turned)
    assert alone[6] == eight[6]
