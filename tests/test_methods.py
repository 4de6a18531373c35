"""The losses: against a few independent lines, by hand, by finite differences, and over micro-batches."""

from __future__ import annotations

import math

import pytest
import torch

from em_core.config import TrainingConfig
from em_core.methods import METHODS, em, rent
from em_core.model import Policy
from em_core.rollout import Rollout, Sampling, sample
from em_core.trainer import Trainer
from tests.models import CPU, config, miniature

PROMPT = "Q:12+7+5=?"


def draw(policy: Policy, n: int, length: int = 20, temperature: float = 1.0) -> Rollout:
    from em_core.noise import uniforms

    ids = policy.encode(PROMPT, "none")
    return sample(
        policy.model, [ids] * n, uniforms(0, "test", 1, range(n), length), length, Sampling(temperature), policy.stop, policy.pad
    )


@pytest.mark.fast
def test_entropy_by_hand() -> None:
    # Probabilities 1/2, 1/4, 1/4: H = 1/2 ln 2 + 1/2 ln 4 = 1.5 ln 2. At temperature 1/2 they become 2/3, 1/6, 1/6.
    logits = torch.tensor([0.5, 0.25, 0.25]).log()
    assert em.entropy(logits).item() == pytest.approx(1.5 * math.log(2), rel=1e-6)
    assert em.entropy(logits, 0.5).item() == pytest.approx(2 / 3 * math.log(1.5) + 1 / 3 * math.log(6), rel=1e-6)
    assert em.entropy(torch.zeros(8)).item() == pytest.approx(math.log(8))


@pytest.mark.fast
def test_entropy_gradient() -> None:
    logits = torch.randn(4, 7, dtype=torch.float64, requires_grad=True, generator=torch.Generator().manual_seed(0))
    assert torch.autograd.gradcheck(lambda z: em.entropy(z, 0.5), (logits,))


@pytest.mark.slow
def test_loss_is_the_entropy_of_the_completion_positions() -> None:
    """Against a full forward pass of each completion by itself, in the order in which a reader would write it."""
    policy = miniature()
    rollout = draw(policy, 6)
    total, parts = em.loss(policy, None, rollout, None, config(loss_temperature=0.5))
    want, plain, count = 0.0, 0.0, 0
    ids = policy.encode(PROMPT, "none")
    for row, mask in zip(rollout.completions, rollout.mask, strict=True):
        completion = row[mask].tolist()
        logits = policy.model(input_ids=torch.tensor([ids + completion])).logits[0]
        for position in range(len(ids) - 1, len(ids) + len(completion) - 1):  # predicts the first token, ..., the end token
            for temperature in (0.5, 1.0):
                p = torch.softmax(logits[position] / temperature, -1)
                h = -(p * p.log()).sum().item()
                want, plain = (want + h, plain) if temperature == 0.5 else (want, plain + h)
            count += 1
    assert count == int(rollout.mask.sum())
    assert total.item() == pytest.approx(want, rel=1e-4)
    assert parts["entropy"].item() == pytest.approx(plain, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(METHODS))
def test_micro_batches_do_not_move_the_step(name: str) -> None:
    """The loss is a mean over all tokens of a step, not a mean of micro-batch means; rows here differ in length."""
    policy = miniature()
    rollout = draw(policy, 7)
    assert len(set(rollout.mask.sum(1).tolist())) > 1
    gradients, losses = [], []
    for size in (0, 1, 2, 3):
        policy.restore()
        losses.append(Trainer(CPU)._gradient(METHODS[name], policy, None, rollout, config(method=name), size or 7)["loss"])
        gradients.append(torch.cat([m.grad.flatten() for m in policy.masters.values()]))  # type: ignore[union-attr]
    for gradient, loss in zip(gradients[1:], losses[1:], strict=True):
        assert loss == pytest.approx(losses[0], rel=1e-5, abs=1e-6)
        assert torch.allclose(gradient, gradients[0], rtol=1e-3, atol=1e-5 * gradients[0].abs().max().item())


@pytest.mark.slow
def test_chunks_do_not_move_the_terms(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = miniature()
    rollout = draw(policy, 5)
    found = []
    for chunk in (10_000, 7):
        monkeypatch.setattr("em_core.model.LOGITS_CHUNK", chunk)
        policy.restore()
        total, _ = em.loss(policy, None, rollout, None, config())
        total.backward()
        found.append((total.item(), policy.masters["model.layers.0.mlp.up_proj.weight"].grad))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    assert torch.allclose(found[0][1], found[1][1], rtol=1e-4, atol=1e-4)  # type: ignore[arg-type]


@pytest.mark.fast
def test_group_advantage() -> None:
    reward = torch.tensor([1.0, 2.0, 3.0])
    assert torch.allclose(rent.group_advantage(reward), torch.tensor([-1.0, 0.0, 1.0]), atol=1e-5)  # sd is 1
    assert rent.group_advantage(torch.tensor([5.0])).tolist() == [0.0]
    assert rent.group_advantage(torch.tensor([2.0, 2.0])).tolist() == [0.0, 0.0]


@pytest.mark.slow
def test_rent_rewards_confidence_and_punishes_silence() -> None:
    policy = miniature()
    rollout = draw(policy, 8, length=4)  # most completions are cut before they answer
    advantage, values = rent.weights(policy, rollout, config(method="rent"))
    silent = [not rent.has_answer(t) for t in policy.texts(rollout)]
    assert sum(silent) > 0
    assert values["unparsable"] == pytest.approx(sum(silent) / 8)
    whole = draw(policy, 8)
    answered = [i for i, t in enumerate(policy.texts(whole)) if rent.has_answer(t)]
    advantage, _ = rent.weights(policy, whole, config(method="rent"))
    lengths = whole.mask.sum(1)
    (h,) = policy.completion_terms(whole, lambda logits, _: (em.entropy(logits),))
    mean = torch.stack([row.mean() for row in h.split(lengths.tolist())])
    order = mean[answered].argsort(descending=True)
    assert torch.equal(advantage[answered].argsort(), order)


@pytest.mark.slow
def test_rent_gradient_is_the_policy_gradient_and_kl_starts_at_zero() -> None:
    policy = miniature()
    rollout = draw(policy, 5)
    said = config(method="rent", kl_coef=0.5, temperature=0.7)
    advantage = torch.tensor([1.0, -1.0, 0.5, 0.0, -0.5])
    base = policy.reference()
    total, parts = rent.loss(policy, base, rollout, advantage, said)
    assert parts["kl"].item() == pytest.approx(0.0, abs=1e-4)
    total.backward()
    got = policy.masters["model.norm.weight"].grad.clone()  # type: ignore[union-attr]
    policy.restore()
    (logp,) = policy.completion_terms(rollout, lambda z, y: ((z / 0.7).log_softmax(-1).gather(-1, y[:, None])[:, 0],))
    weights = torch.cat([a.expand(int(n)) for a, n in zip(advantage, rollout.mask.sum(1), strict=True)])
    (-(weights * logp).sum()).backward()
    assert torch.allclose(got, policy.masters["model.norm.weight"].grad, rtol=1e-3, atol=1e-3)  # type: ignore[arg-type]


@pytest.mark.slow
def test_kl_is_that_of_k3() -> None:
    """k3 averages to KL(pi || base) over samples; each term is e^d - d - 1 with d = log base - log pi, never negative."""
    policy = miniature()
    base = policy.reference()
    with torch.no_grad():
        policy.masters["model.norm.weight"].mul_(1.1)
    rollout = draw(policy, 4)
    _, parts = rent.loss(policy, base, rollout, torch.zeros(4), config(method="rent", kl_coef=1.0, temperature=1.0))
    terms = [
        p.completion_terms(rollout, lambda z, y: (z.log_softmax(-1).gather(-1, y[:, None])[:, 0],))[0] for p in (policy, base)
    ]
    d = (terms[1] - terms[0]).detach()
    assert parts["kl"].item() == pytest.approx((d.exp() - d - 1).sum().item(), rel=1e-4)
    assert parts["kl"].item() > 0


@pytest.mark.fast
def test_methods_agree_with_the_vocabulary() -> None:
    from em_core.config import METHODS as KNOWN

    assert set(METHODS) == set(KNOWN) - {"noop", "external"}
    assert set(TrainingConfig.model_fields) >= set().union(*(m.reads for m in KNOWN.values()))
