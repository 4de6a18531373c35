"""The methods' pieces: by hand, against a few independent lines, and over micro-batches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from em_core.config import TrainingConfig, reads
from em_core.known_methods import KNOWN
from em_core.learning import Batch, gradient, prepare, prompts_at
from em_core.methods import METHODS, advantages, losses, marks, rewards, weights
from em_core.methods.samples import Samples
from em_core.methods.tokens import Tokens, entropy, log_probability
from em_core.model import Policy
from em_core.noise import uniforms
from em_core.prompts import Prompt
from em_core.rollout import Rollout, Sampling, sample
from tests.models import config, miniature

PROMPT = "Q:12+7+5=?"


def draw(policy: Policy, n: int, length: int = 20, temperature: float = 1.0) -> Rollout:
    ids = policy.encode(PROMPT, "none")
    return sample(
        policy.model, [ids] * n, uniforms(0, "test", 1, range(n), length), length, Sampling(temperature), policy.stop, policy.pad
    )


def learn(policy: Policy, rollout: Rollout, said: TrainingConfig, size: int = 0, **other: Any) -> tuple[dict[str, float], Batch]:
    """The gradient of a first update on a rollout."""
    method, n = METHODS[said.method], len(rollout.tokens)
    said = said.model_copy(update={"num_generations": n})
    batch, judged = prepare(method, policy, rollout, ["24"] * n, said, 0, 1, size or n)
    return gradient(method, policy, other.get("base"), batch, said, size or n, 0, Tensor.backward) | judged, batch


def gradients(policy: Policy) -> Tensor:
    return torch.cat([m.grad.flatten() for m in policy.masters.values() if m.grad is not None])


# -- entropy ------------------------------------------------------------------------------------------------------


@pytest.mark.fast
def test_entropy_by_hand() -> None:
    # Probabilities 1/2, 1/4, 1/4: H = 1/2 ln 2 + 1/2 ln 4 = 1.5 ln 2. At temperature 1/2 they become 2/3, 1/6, 1/6.
    logits = torch.tensor([0.5, 0.25, 0.25]).log()
    assert entropy(logits).item() == pytest.approx(1.5 * math.log(2), rel=1e-6)
    assert entropy(logits, 0.5).item() == pytest.approx(2 / 3 * math.log(1.5) + 1 / 3 * math.log(6), rel=1e-6)
    assert entropy(torch.zeros(8)).item() == pytest.approx(math.log(8))
    assert log_probability(logits[None], torch.tensor([1]), 0.5).item() == pytest.approx(math.log(1 / 6))


@pytest.mark.fast
def test_entropy_gradient() -> None:
    logits = torch.randn(4, 7, dtype=torch.float64, requires_grad=True, generator=torch.Generator().manual_seed(0))
    assert torch.autograd.gradcheck(lambda z: entropy(z, 0.5), (logits,))
    assert torch.autograd.gradcheck(lambda z: log_probability(z, torch.tensor([0, 3, 6, 3]), 0.7), (logits,))


@pytest.mark.slow
@pytest.mark.parametrize("loss_type", ["dapo", "grpo", "dr_grpo"])
def test_em_is_the_mean_entropy_of_the_completion_positions(loss_type: str) -> None:
    """Against a full forward pass of each completion by itself, in the order in which a reader would write it."""
    policy = miniature()
    rollout = draw(policy, 6)
    values, _ = learn(policy, rollout, config(loss_temperature=0.5, loss_type=loss_type, max_completion_length=20))
    ids = policy.encode(PROMPT, "none")
    scored: list[list[float]] = []
    plain: list[list[float]] = []
    for row, mask in zip(rollout.completions, rollout.mask, strict=True):
        completion = row[mask].tolist()
        logits = policy.model(input_ids=torch.tensor([ids + completion])).logits[0]
        where = range(len(ids) - 1, len(ids) + len(completion) - 1)  # predict the first token, ..., the end token
        for temperature, found in ((0.5, scored), (1.0, plain)):
            p = [torch.softmax(logits[position] / temperature, -1) for position in where]
            found.append([-(q * q.log()).sum().item() for q in p])
    tokens = sum(map(len, scored))
    assert tokens == int(rollout.mask.sum())
    want = {
        "dapo": sum(map(sum, scored)) / tokens,
        "grpo": sum(sum(row) / len(row) for row in scored) / 6,
        "dr_grpo": sum(map(sum, scored)) / (6 * 20),
    }
    assert values["loss"] == pytest.approx(want[loss_type], rel=1e-4)
    assert values["entropy"] == pytest.approx(sum(map(sum, plain)) / tokens, rel=1e-4)
    assert values["sequence_entropy"] == pytest.approx(sum(sum(row) / len(row) for row in plain) / 6, rel=1e-4)


# -- every method ---------------------------------------------------------------------------------------------------


def with_ratio(name: str) -> TrainingConfig:
    return config(method=name, num_generations=8, num_iterations=2 if KNOWN[name].needs_ratio else 1, temperature=1.0)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(METHODS))
def test_micro_batches_do_not_move_the_step(name: str) -> None:
    """The loss is a mean over all tokens of a step, not a mean of micro-batch means; rows here differ in length."""
    policy = miniature()
    rollout = draw(policy, 8)
    assert len(set(rollout.mask.sum(1).tolist())) > 1
    found = []
    for size in (8, 1, 3):
        policy.restore()
        values, _ = learn(policy, rollout, with_ratio(name), size)
        found.append((values, gradients(policy)))
    for values, moved in found[1:]:
        assert values["loss"] == pytest.approx(found[0][0]["loss"], rel=1e-5, abs=1e-6)
        assert torch.allclose(moved, found[0][1], rtol=1e-3, atol=1e-5 * found[0][1].abs().max().item())


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(METHODS) - {"em"}))
def test_the_first_update_follows_the_policy_gradient(name: str) -> None:
    """While the ratio is 1 every loss has the gradient of -A log pi over the tokens that it keeps."""
    policy = miniature()
    length = 12 if name == "format_reward" else 19  # so that some state no answer
    rollout = draw(policy, 8, length, temperature=1.5)
    _, batch = learn(policy, rollout, with_ratio(name))
    got = gradients(policy)
    policy.restore()
    (logp,) = policy.completion_terms(rollout, lambda z, y: (log_probability(z, y, 1.0),))
    assert batch.advantage is not None
    kept = torch.ones_like(logp)
    if name == "clip_cov":  # one random token of large covariance is left out
        a, p = batch.advantage[rollout.mask], logp.detach()
        cov = (a - a.mean()) * (p - p.mean())
        u = torch.from_numpy(uniforms(0, "marks", 1, range(8), length))[rollout.mask]
        candidates = ((cov > 1) & (cov < 5)).nonzero().flatten()
        assert len(candidates) > 1
        kept[candidates[u[candidates].argmin()]] = 0.0
    if name == "steer":  # more than one token counts otherwise: each by its own number
        (h,) = policy.completion_terms(rollout, lambda z, y: (entropy(z),))
        square = torch.zeros(rollout.mask.shape)
        p, now = square.clone(), square.clone()
        p[rollout.mask], now[rollout.mask] = logp.detach(), h.detach()
        kept = weights.steer(p, now, p, batch.advantage, rollout.mask, config())[rollout.mask]
        assert kept.std() > 0
    (-(batch.advantage[rollout.mask] * logp * kept).sum() / len(logp)).backward()
    want = gradients(policy)
    assert want.abs().max() > 0
    assert torch.allclose(got, want, rtol=1e-3, atol=1e-5 * want.abs().max().item())


@pytest.mark.slow
def test_chunks_do_not_move_the_terms(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = miniature()
    rollout = draw(policy, 5)
    found = []
    for chunk in (10_000, 7):
        monkeypatch.setattr("em_core.model.LOGITS_CHUNK", chunk)
        policy.restore()
        values, _ = learn(policy, rollout, config())
        found.append((values["loss"], policy.masters["model.layers.0.mlp.up_proj.weight"].grad))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    assert torch.allclose(found[0][1], found[1][1], rtol=1e-4, atol=1e-6)  # type: ignore[arg-type]


@pytest.mark.fast
def test_methods_agree_with_the_vocabulary() -> None:
    assert set(METHODS) == set(KNOWN) - {"noop", "external", "imported"}
    for name, method in METHODS.items():
        assert set(TrainingConfig.model_fields) >= reads(name)
        assert ("answer" in reads(name)) == KNOWN[name].needs_answer
        assert method.scores_first or (method.mark is None and method.weigh is None)
    assert set(TrainingConfig.model_fields) - {"command", "params"} == set().union(*(reads(name) for name in METHODS))


# -- rewards and advantages -----------------------------------------------------------------------------------------

RIGHT, WRONG, OTHER, SILENT = "12+7=19;19+5=24;", "=22;", "=20;", "12+7="


def samples(texts: Sequence[str], group: int, **other: Any) -> Samples:
    n = len(texts)
    usual = {"golds": ["24"] * n, "mask": torch.ones(n, 3, dtype=torch.bool), "ended": torch.ones(n, dtype=torch.bool)}
    usual |= {"logp": torch.zeros(n, 3), "entropy": torch.zeros(n, 3), "seed": 0, "step": 1, "rows": range(n)}
    return Samples(**{"texts": texts, "group": group, **usual, **other})  # type: ignore[arg-type]


@pytest.mark.fast
def test_rewards_by_hand() -> None:
    s = samples([RIGHT, WRONG, WRONG, SILENT, RIGHT, OTHER, SILENT, WRONG], 4)
    said = config()
    assert rewards.correct(s, said).tolist() == [1, 0, 0, 0, 1, 0, 0, 0]
    assert rewards.answered(s, said).tolist() == [1, 1, 1, 0, 1, 1, 0, 1]
    assert rewards.majority(s, said).tolist() == [0, 1, 1, 0, 1, 0, 0, 0], "of equally frequent answers the first"
    assert rewards.share_of_answer(s, said).tolist() == [0.25, 0.5, 0.5, 0, 0.25, 0.25, 0, 0.25]
    late = replace(s, ended=torch.tensor([True] * 4 + [False] * 4))
    assert rewards.correct_in_time(late, said).tolist() == [1, 0, 0, 0, 0, 0, 0, 0]
    assert rewards.correct(replace(s, golds=[None] * 8), said).sum() == 0


@pytest.mark.fast
def test_equal_answers_in_other_words_are_one() -> None:
    s = samples([r"so \boxed{1/2}", r"so \boxed{\frac{1}{2}}", r"so \boxed{0.5}", r"so \boxed{2}"], 4, golds=[r"\frac12"] * 4)
    assert rewards.share_of_answer(s, config()).tolist() == [0.75, 0.75, 0.75, 0.25]
    assert rewards.correct(s, config()).tolist() == [1, 1, 1, 0]


@pytest.mark.fast
def test_confidence_by_hand() -> None:
    mask = torch.tensor([[True, True, True], [True, True, False]])
    s = samples([RIGHT, WRONG], 2, mask=mask, entropy=torch.tensor([[0.3, 0.6, 0.9], [0.2, 0.4, 0.0]]))
    s = replace(s, logp=torch.tensor([[-1.0, -2.0, -3.0], [-0.5, -0.5, 0.0]]))
    assert rewards.confidence(s, config()).tolist() == pytest.approx([-0.6, -0.3])
    assert rewards.negative_entropy(s, config()).tolist() == pytest.approx([-1.8, -0.6])
    assert rewards.log_probability(s, config()).tolist() == pytest.approx([-6.0, -1.0])
    assert rewards.confidence(replace(s, texts=[RIGHT, SILENT]), config()).tolist() == pytest.approx([-0.6, rewards.NO_ANSWER])


@pytest.mark.fast
def test_a_coin_is_keyed_by_seed_step_and_completion() -> None:
    s = samples([RIGHT] * 2000, 4)
    coin = rewards.coin(s, config())
    assert set(coin.tolist()) == {0.0, 1.0}
    assert 0.45 < coin.mean() < 0.55
    assert torch.equal(rewards.coin(replace(s, texts=[WRONG] * 2000), config()), coin)
    assert torch.equal(rewards.coin(samples([RIGHT] * 8, 4), config()), coin[:8])
    assert not torch.equal(rewards.coin(replace(s, seed=1), config()), coin)
    assert not torch.equal(rewards.coin(replace(s, step=2), config()), coin)


@pytest.mark.fast
def test_advantages_by_hand() -> None:
    s = samples([RIGHT] * 6, 3)
    reward = torch.tensor([1.0, 2.0, 3.0, 5.0, 5.0, 5.0])

    def close(got: Tensor, want: list[float]) -> bool:
        return got.tolist() == pytest.approx(want, abs=1e-4)

    assert close(advantages.by_group(reward, s, config()), [-1, 0, 1, 0, 0, 0])
    assert close(advantages.by_group(reward, s, config(scale_rewards="none")), [-1, 0, 1, 0, 0, 0])
    sd = float(np.std([1, 2, 3, 5, 5, 5], ddof=1))
    assert close(advantages.by_group(reward, s, config(scale_rewards="batch")), [-1 / sd, 0, 1 / sd, 0, 0, 0])
    assert close(advantages.leave_one_out(reward, s, config()), [1 - 2.5, 0, 3 - 1.5, 0, 0, 0])
    spread = float(np.std([-1, 0, 1, 0, 0, 0], ddof=1))
    assert close(advantages.by_batch(reward, s, config()), [-1 / spread, 0, 1 / spread, 0, 0, 0])


@pytest.mark.fast
def test_a_quantile_as_baseline_by_hand() -> None:
    """K = .4 of five binary rewards: 0 with up to three right ones (p <= 1 - K), 1 with four. Of eight: up to four."""
    said = config(scale_rewards="none")
    for n, right, want in (
        (5, 1, [1, 0, 0, 0, 0]),
        (5, 3, [1, 1, 1, 0, 0]),
        (5, 4, [0, 0, 0, 0, -1]),
        (8, 5, [0] * 5 + [-1] * 3),
    ):
        reward = torch.tensor([1.0] * right + [0.0] * (n - right))
        assert advantages.by_quantile(reward, samples([RIGHT] * n, n), said).tolist() == want


@pytest.mark.fast
def test_entropy_bonus_by_hand() -> None:
    s = samples([RIGHT] * 2, 2, entropy=torch.tensor([[0.0, 1.0, 10.0]] * 2))
    advantage = torch.tensor([[2.0] * 3, [-1.0] * 3])
    got = advantages.with_entropy_bonus(advantage, s, config(exploration_alpha=0.4, exploration_kappa=2.0))
    assert torch.allclose(got, torch.tensor([[2.0, 2.4, 3.0], [-1.0, -0.6, -0.5]]))


# -- losses -----------------------------------------------------------------------------------------------------------


def tokens(ratio: Sequence[float], advantage: Sequence[float], marked: Sequence[bool] = (), **other: Any) -> Tokens:
    old = torch.linspace(-3, -1, len(ratio), dtype=torch.float64)
    logp = (old + torch.tensor(ratio, dtype=torch.float64).log()).requires_grad_()
    chosen = torch.tensor(marked or [False] * len(ratio))
    usual = {"entropy": torch.ones(len(ratio)), "old_entropy": torch.ones(len(ratio))} | other
    return Tokens(logp, old_logp=old, advantage=torch.tensor(advantage, dtype=torch.float64), marked=chosen, **usual)


def slopes(t: Tokens, loss: Any, said: TrainingConfig) -> tuple[list[float], list[float]]:
    """Loss and its derivative by log pi, per token."""
    found = loss(t, said)
    (slope,) = torch.autograd.grad(found.sum(), t.logp)
    return found.tolist(), slope.tolist()


@pytest.mark.fast
def test_clipping_by_hand() -> None:
    t = tokens([1.0, 1.5, 1.5, 0.5, 0.5, 1.25], [2.0, 2.0, -2.0, 2.0, -2.0, 1.0])
    got, slope = slopes(t, losses.clipped, config(method="grpo"))
    assert got == pytest.approx([-2.0, -2.4, 3.0, -1.0, 1.6, -1.2])
    assert slope == pytest.approx([-2.0, 0.0, 3.0, -1.0, 0.0, 0.0])
    assert losses.is_clipped(t, config()).tolist() == [False, True, False, False, True, True]
    higher = config(method="grpo", epsilon_high=0.28)
    assert slopes(t, losses.clipped, higher)[1] == pytest.approx([-2.0, 0.0, 3.0, -1.0, 0.0, -1.25])


@pytest.mark.fast
def test_clip_cov_and_kl_cov_by_hand() -> None:
    t = tokens([1.1, 1.1, 2.0], [1.0, 1.0, 1.0], marked=[False, True, False])
    assert slopes(t, losses.clip_cov, config(method="clip_cov"))[1] == pytest.approx([-1.1, 0.0, 0.0])
    got, slope = slopes(t, losses.kl_cov, config(method="kl_cov", kl_cov_coef=0.5))
    assert got == pytest.approx([-1.1, -1.1 + 0.5 * math.log(1.1), -2.0])
    assert slope == pytest.approx([-1.1, -1.1 + 0.5, -2.0]), "no clipping of the ratio"


@pytest.mark.fast
def test_ce_gppo_keeps_a_bounded_gradient_by_hand() -> None:
    t = tokens([1.0, 1.5, 0.5, 1.5], [1.0, 1.0, -1.0, -1.0])
    said = config(method="ce_gppo", clipped_weight_low=0.75, clipped_weight_high=0.5)
    got, slope = slopes(t, losses.gradient_preserving, said)
    assert slope == pytest.approx([-1.0, -0.5 * 1.2, 0.75 * 0.8, 1.5])
    assert got == pytest.approx([-1.0, -0.6, 0.6, 1.5])


@pytest.mark.fast
def test_erc_by_hand() -> None:
    t = tokens([1.0] * 4, [1.0] * 4, entropy=torch.tensor([1.0, 1.04, 1.06, 0.94]))
    assert slopes(t, losses.entropy_ratio_clipped, config(method="erc"))[1] == [-1.0, -1.0, 0.0, 0.0]


@pytest.mark.fast
@pytest.mark.parametrize("loss", [losses.unclipped, losses.clipped, losses.kl_cov])
def test_gradients_of_losses_by_finite_differences(loss: Any) -> None:
    t = tokens([0.9, 1.1, 1.5, 0.6], [1.0, -1.0, -0.5, 2.0], marked=[False, True, True, False])
    assert torch.autograd.gradcheck(lambda logp: loss(replace(t, logp=logp), config()), (t.logp,))


# -- marks --------------------------------------------------------------------------------------------------------------


@pytest.mark.fast
def test_covariance_by_hand() -> None:
    logp, advantage = torch.tensor([[-1.0, -3.0], [-2.0, 9.0]]), torch.tensor([[1.0, 1.0], [-2.0, 9.0]])
    mask = torch.tensor([[True, True], [True, False]])
    assert marks.covariance(logp, advantage, mask).tolist() == [[1.0, -1.0], [0.0, 0.0]]  # means 0 and -2


@pytest.mark.fast
def test_clip_cov_marks_random_tokens_within_its_bounds() -> None:
    cov = torch.tensor([[0.5, 1.5, 2.0, 4.0, 6.0, 3.0]]).repeat(100, 1)
    mask, clipped = torch.ones(100, 6, dtype=torch.bool), torch.zeros(100, 6, dtype=torch.bool)
    clipped[:, 5] = True
    mask[:, 3] = False
    draws = torch.rand(100, 6, generator=torch.Generator().manual_seed(0))
    said = config(method="clip_cov", clip_cov_ratio=0.03)
    chosen = marks.clip_cov(cov, mask, clipped, draws, said)
    assert int(chosen.sum()) == int(0.03 * 500)
    assert not chosen[:, [0, 3, 4, 5]].any(), "too small, no token, too large, clipped already"
    assert 0 < int(chosen[:, 1].sum()) < 15
    assert draws[chosen].max() < draws[:, 1:3][~chosen[:, 1:3]].min()
    one = marks.clip_cov(cov[:1], mask[:1], clipped[:1], draws[:1], config(method="clip_cov"))
    assert int(one.sum()) == 1, "at least one"
    none = marks.clip_cov(torch.zeros_like(cov), mask, clipped, draws, said)
    assert int(none.sum()) == 0


@pytest.mark.fast
def test_kl_cov_marks_the_largest() -> None:
    cov = torch.tensor([[5.0, 1.0, 2.0, 99.0], [4.0, 3.0, 0.0, 2.0]])
    mask = torch.tensor([[True, True, True, False], [True] * 4])
    chosen = marks.kl_cov(cov, mask, ~mask, cov, config(method="kl_cov", kl_cov_ratio=0.3))
    assert chosen.tolist() == [[True, False, False, False], [True, False, False, False]]


@pytest.mark.fast
def test_steer_weighs_by_the_expected_change_of_entropy() -> None:
    """Against the paper's expression in numpy, token by token."""
    n = np.random.default_rng(0)
    logp, old, h, a = -n.random((2, 5)) - 0.1, -n.random((2, 5)) - 0.1, n.random((2, 5)), n.normal(size=(2, 5))
    mask = np.array([[True] * 5, [True] * 3 + [False] * 2])
    p, p_old = np.exp(logp), np.exp(old)
    omega = np.abs((a / p_old) * p * (1 - p) * (np.log(p) + h))
    low, high = omega[mask].min(), omega[mask].max()
    want = 1.3 - (omega - low) * (1.3 - 0.7) / (high - low)
    said = config(method="steer", steer_weight_min=0.7, steer_weight_max=1.3)
    got = weights.steer(*(torch.from_numpy(x) for x in (logp, h, old, a, mask)), said).numpy()
    assert np.allclose(got[mask], want[mask])
    assert (got[mask].min(), got[mask].max()) == pytest.approx((0.7, 1.3))
    flat = torch.zeros(2, 5)
    assert set(weights.steer(flat, flat, flat, flat, torch.from_numpy(mask), said).flatten().tolist()) == {1.0}


# -- parts of an update ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_top_entropy_quantile_trains_on_the_forks_alone() -> None:
    policy = miniature()
    rollout = draw(policy, 8)
    said = config(method="grpo", temperature=1.0, top_entropy_quantile=0.2)
    _, batch = learn(policy, rollout, said)
    got = gradients(policy)
    policy.restore()
    logp, h = policy.completion_terms(rollout, lambda z, y: (log_probability(z, y, 1.0), entropy(z)))
    assert batch.advantage is not None
    forks = h.detach() >= h.detach().quantile(0.8)
    assert 0.15 < forks.float().mean() < 0.25
    (-(batch.advantage[rollout.mask] * logp)[forks].sum() / len(logp)).backward()
    assert torch.allclose(got, gradients(policy), rtol=1e-3, atol=1e-6)


@pytest.mark.slow
def test_entropy_coef_rewards_entropy() -> None:
    policy = miniature()
    rollout = draw(policy, 8)
    found = []
    for coef in (0.0, 0.5):
        policy.restore()
        learn(policy, rollout, config(method="grpo", entropy_coef=coef))
        found.append(gradients(policy))
    policy.restore()
    (h,) = policy.completion_terms(rollout, lambda z, _: (entropy(z),))
    (-0.5 * h.mean()).backward()
    assert torch.allclose(found[1] - found[0], gradients(policy), rtol=1e-2, atol=1e-4 * found[1].abs().max().item())


@pytest.mark.slow
def test_kl_is_that_of_k3() -> None:
    """k3 averages to KL(pi || base) over samples; each term is e^d - d - 1 with d = log base - log pi, never negative."""
    policy = miniature()
    base = policy.reference()
    said = config(method="rent", kl_coef=1.0, temperature=1.0)
    rollout = draw(policy, 4)
    assert learn(policy, rollout, said, base=base)[0]["kl"] == pytest.approx(0.0, abs=1e-5)
    with torch.no_grad():
        policy.masters["model.norm.weight"].mul_(1.1)
    values, _ = learn(policy, rollout, said, base=base)
    here, there = (
        p.completion_terms(rollout, lambda z, y: (z.log_softmax(-1).gather(-1, y[:, None])[:, 0],))[0] for p in (policy, base)
    )
    d = (there - here).detach()
    assert values["kl"] == pytest.approx((d.exp() - d - 1).mean().item(), rel=1e-4)
    assert values["kl"] > 0


@pytest.mark.slow
def test_the_recorded_covariances_are_those_of_the_samples() -> None:
    policy = miniature()
    rollout = draw(policy, 8)
    values, batch = learn(policy, rollout, config(method="grpo", temperature=1.0))
    (logp,) = policy.completion_terms(rollout, lambda z, y: (log_probability(z, y, 1.0),))
    assert batch.advantage is not None
    a, p = batch.advantage[rollout.mask].numpy(), logp.detach().numpy()
    assert values["cov"] == pytest.approx(np.cov(a, p, bias=True)[0, 1], rel=1e-3)
    each = np.sort((a - a.mean()) * (p - p.mean()))[::-1]
    assert values["cov_top_20%"] == pytest.approx(each[: math.ceil(0.2 * len(each))].mean(), rel=1e-3)
    assert values["cov_top_0.02%"] == pytest.approx(each[0], rel=1e-3)


@pytest.mark.fast
def test_a_set_is_used_up_before_it_is_shuffled_anew() -> None:
    prompts = [Prompt(str(i), None) for i in range(10)]
    taken = [i for rollout in range(5) for i in prompts_at(rollout, prompts, 4, seed=3)]
    assert sorted(taken[:10]) == sorted(taken[10:]) == list(range(10))
    assert taken[:10] != taken[10:] != list(range(10))
    assert [i for rollout in range(5) for i in prompts_at(rollout, prompts, 4, seed=4)] != taken
    assert prompts_at(7, prompts[:1], 3, 0) == [0, 0, 0]
