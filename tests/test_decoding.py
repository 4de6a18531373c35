"""EM-INF and EDT: against autograd with torch's Adam, by hand, and in a measurement of the miniature."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from em_core.config import Evaluation
from em_core.decoding import DynamicTemperature, EntropyMinimizer, decoding_processor, entropy
from em_core.evaluation import evaluate
from em_core.rollout import Sampling
from tests.models import miniature

PAPER = EntropyMinimizer(steps=3, learning_rate=0.1, kl_coef=0.05, threshold=0.3)
IDS = torch.zeros(1, 1, dtype=torch.long)  # neither rule reads the tokens before


def scores(rows: int, vocabulary: int, scale: float) -> Tensor:
    return scale * torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(rows + vocabulary))


def minimized(row: Tensor, rule: EntropyMinimizer) -> Tensor:
    """One row (V,) by autograd and torch's own Adam, stopping as the paper's loop does: before a step, under the threshold."""
    z = torch.nn.Parameter(row.clone())
    adam = torch.optim.Adam([z], lr=rule.learning_rate)
    start = row.softmax(0)
    for _ in range(rule.steps):
        model = torch.distributions.Categorical(logits=z)
        if model.entropy() < rule.threshold:
            break
        kl = torch.distributions.kl_divergence(torch.distributions.Categorical(probs=start), model)
        adam.zero_grad()
        (model.entropy() + rule.kl_coef * kl).backward()
        adam.step()
    return z.detach()


@pytest.mark.fast
@pytest.mark.parametrize("rule", [PAPER, EntropyMinimizer(8, 0.3, 2.0, 0.1)], ids=["paper", "other"])
def test_em_inf_is_adam_on_the_logits(rule: EntropyMinimizer) -> None:
    wanted = scores(40, 12, 2.0).double()
    alone = torch.stack([minimized(row, rule) for row in wanted])
    assert torch.allclose(rule(IDS, wanted), alone, atol=1e-6)
    assert len({round(h, 1) for h in entropy(wanted).flatten().tolist()}) > 5, "the test wants sure and unsure rows"


@pytest.mark.fast
def test_em_infs_first_step_by_hand() -> None:
    row = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()  # H = 1.142: surprises .693, 1.204, 1.897, 2.996
    found = EntropyMinimizer(1, 0.1, 0.05, 0.3)(IDS, row) - row
    assert torch.allclose(found, torch.tensor([[0.1, -0.1, -0.1, -0.1]]), atol=1e-6)
    assert torch.equal(EntropyMinimizer(1, 0.1, 0.05, 1.15)(IDS, row), row)  # below the threshold nothing happens


@pytest.mark.fast
def test_em_inf_lowers_entropy_and_keeps_the_likeliest_token() -> None:
    for scale in (0.3, 1.0, 3.0):
        before = scores(2000, 30, scale)
        second = before.topk(2).indices[:, 1:]
        before = torch.cat([before, before.scatter(1, second, before.amax(1, keepdim=True) - 1e-3)])  # and near ties
        after = PAPER(IDS, before)
        sure = entropy(before) < 0.3
        assert torch.equal(after[sure.squeeze(1)], before[sure.squeeze(1)])
        assert (entropy(after) < entropy(before))[~sure].all()
        assert torch.equal(after.argmax(1), before.argmax(1))
    wild = EntropyMinimizer(steps=3, learning_rate=1.0, kl_coef=10.0, threshold=0.3)  # the way back overshoots
    assert not torch.equal(wild(IDS, before).argmax(1), before.argmax(1))


@pytest.mark.fast
def test_edt_by_hand() -> None:
    even, sure = [0.0, 0.0, -torch.inf], [0.0, -torch.inf, -torch.inf]
    skew = [math.log(0.9), math.log(0.1), -torch.inf]
    found = DynamicTemperature(0.5)(IDS, torch.tensor([even, skew, sure]))
    assert found[0].tolist() == even  # a tie stays one at every temperature
    h = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1))  # .325
    assert found[1, 1].item() == pytest.approx(math.log(1 / 9) / 0.8 ** (0.5 / h), rel=1e-5)  # T = .8^1.538 = .709
    assert found[2].softmax(0).tolist() == [1, 0, 0]
    chain = Sampling(0.7, decoding=DynamicTemperature(0.5)).processors(3)
    assert chain(IDS, torch.tensor([skew]))[0, 1].item() == pytest.approx(  # type: ignore[arg-type]
        math.log(1 / 9) / (0.7 * 0.8 ** (0.5 / h)), rel=1e-5
    )
    nearly = DynamicTemperature(0.1)(IDS, torch.tensor([[30.0, 0.0, -5.0]]))  # H = 1e-12: .8^(theta / H) is 0 in any float
    assert nearly.softmax(1).tolist() == [[1, 0, 0]]


@pytest.mark.fast
@pytest.mark.parametrize("rule", [PAPER, DynamicTemperature(0.5)], ids=["em_inf", "edt"])
def test_rows_are_independent_and_nan_stays_nan(rule: EntropyMinimizer | DynamicTemperature) -> None:
    together = scores(9, 23, 1.5)
    assert torch.equal(rule(IDS, together), torch.cat([rule(IDS, row[None]) for row in together]))
    together[4, 2] = torch.nan
    found = rule(IDS, together)
    assert found[4].isnan().any()
    assert found[[0, 8]].isfinite().all()


@pytest.mark.fast
def test_an_evaluation_says_its_rule() -> None:
    assert decoding_processor(Evaluation(task="t")) is None
    assert decoding_processor(Evaluation(task="t", decoding="em_inf")) == PAPER
    assert decoding_processor(Evaluation(task="t", decoding="edt", edt_theta=2.0)) == DynamicTemperature(2.0)
    ids = {Evaluation(task="t", decoding=d, temperature=1.0).eval_id() for d in ("sample", "em_inf", "edt")}
    assert len(ids) == 3
    assert Evaluation(task="t", decoding="sample").eval_id() == Evaluation(task="t").eval_id()


@pytest.mark.slow
def test_measured_on_the_miniature() -> None:
    policy = miniature()

    def measured(batch: int = 256, **said: object) -> tuple[float, str]:
        asked = Evaluation.model_validate({"task": "two_step_sums", "limit": 40, "temperature": 1.0, "num_samples": 2, **said})
        score = evaluate(policy, asked, 1, 0, batch)
        return score.accuracy, score.outcomes

    usual, minimal = measured(), measured(decoding="em_inf")
    assert minimal != usual
    assert measured(7, decoding="em_inf") == minimal
    cold = measured(decoding="edt", edt_theta=1e3)  # so large a theta makes every step greedy
    greedy = measured(temperature=0.0)
    assert cold == greedy
    assert measured(decoding="edt", edt_theta=1e-6) == usual
    assert measured(decoding="em_inf", temperature=0.0) == greedy
