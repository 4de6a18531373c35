"""The loss, its gradient and ten updates are those of the reference on the same sequences and weights, in fp32, to 1e-5.

And each of the reference's habits, switched on, does what it is called: against loops over the entropies of each completion,
computed without padding.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from em_core.methods.tokens import entropy
from em_core.model import Policy
from em_core.noise import uniforms
from em_core.rollout import Rollout, Sampling
from em_core.trainer import Trainer
from tests.models import CPU, config, miniature, request, run
from tests.reference_step import reference_loss, reference_update
from tests.traps.settings import CALM, PROMPT, QUESTIONS, train

pytestmark = pytest.mark.slow

ONE = ["Q:12+7+5=?"] * 6
SEVERAL = ["Q:12+7+5=?", "Q:1+2+3=?", "Q:19+19+9=?", "Q:3-18+4=?", "Q:2+2+2=?", "Q:19+19+9=?Q:12+17+5=?"]
"""Of 9 to 22 tokens: some rows have more padding than prompt."""
LENGTH = 14
"""Some completions end before, others are cut."""
TEMPERATURE = 0.5


@pytest.fixture(scope="module")
def policy() -> Policy:
    return miniature()


def draw(policy: Policy, prompts: list[str]) -> Rollout:
    ids = [policy.encode(p, "none") for p in prompts]
    rollout = policy.sample(ids, uniforms(0, "parity", 1, range(len(ids)), LENGTH), LENGTH, Sampling(1.0), policy.stop)
    assert 0 < int(rollout.ended.sum()) < len(ids), "the test wants both ended and cut rows"
    return rollout


def ours(policy: Policy, rollout: Rollout, temperature: float) -> Tensor:
    (h,) = policy.completion_terms(rollout, lambda logits, _: (entropy(logits, temperature),))
    return h.mean()


def gradient(policy: Policy, loss: Tensor) -> Tensor:
    policy.model.zero_grad(set_to_none=True)
    loss.backward()
    found = torch.cat([m.grad.flatten() for m in policy.masters.values() if m.grad is not None])
    policy.model.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize("temperature", [0.25, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("prompts", [ONE, SEVERAL], ids=["one prompt", "several prompts"])
def test_loss_and_gradient(policy: Policy, prompts: list[str], temperature: float) -> None:
    rollout = draw(policy, prompts)
    mine, theirs = ours(policy, rollout, temperature), reference_loss(policy.model, rollout, temperature)
    assert mine.item() == pytest.approx(theirs.item(), rel=1e-5)
    a, b = gradient(policy, mine), gradient(policy, theirs)
    assert b.norm() > 0
    assert ((a - b).norm() / b.norm()).item() < 1e-5


def rows(policy: Policy, rollout: Rollout) -> list[tuple[int, int, list[float], bool]]:
    """Of each row, run through the model alone: prompt tokens, padding, the entropy at each position, whether it ended."""
    found = []
    for i in range(len(rollout.tokens)):
        prompt, mask = rollout.prompt_mask[i], rollout.mask[i]
        ids = torch.cat([rollout.tokens[i, : len(prompt)][prompt], rollout.completions[i][mask]])
        with torch.no_grad():
            z = policy.model(input_ids=ids[None]).logits[0].double().numpy() / TEMPERATURE
        p = np.exp(z - z.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        n = int(prompt.sum())
        found.append((n, len(prompt) - n, list(-(p * np.log(p)).sum(-1)), bool(rollout.ended[i])))
    return found


def tokens(n: int, padding: int, length: int, ended: bool, left_padding: bool, hidden_end: bool) -> list[int]:
    """Places, counted from the first prompt token, of the tokens that count as generated."""
    first = n - min(padding, n) if left_padding else n
    return list(range(first, length - 1 if ended and hidden_end else length))


@pytest.mark.parametrize("off_by_one", [False, True])
@pytest.mark.parametrize("hidden_end", [False, True])
@pytest.mark.parametrize("left_padding", [False, True])
@pytest.mark.parametrize("micro_batch", [0, 2, 4])
def test_each_trap_does_what_it_is_called(
    policy: Policy, left_padding: bool, off_by_one: bool, hidden_end: bool, micro_batch: int
) -> None:
    """Alone and with the others; all of them together (with micro-batches of 2) are what the reference computes."""
    rollout = draw(policy, SEVERAL)
    lists = []
    for n, padding, h, ended in rows(policy, rollout):
        places = tokens(n, padding, len(h), ended, left_padding, hidden_end)
        lists.append([h[t] if off_by_one else h[t - 1] for t in places if off_by_one or t > 0])
    size = micro_batch or len(lists)
    parts = [[h for row in lists[i : i + size] for h in row] for i in range(0, len(lists), size)]
    want = sum(sum(p) / len(p) for p in parts) / len(parts)
    stop = policy.stop if hidden_end else ()
    for floored_log in (False, True):  # in fp32 nothing
        found = reference_loss(
            policy.model, rollout, TEMPERATURE, left_padding=left_padding, off_by_one=off_by_one, hidden_end=stop,
            micro_batch=micro_batch, floored_log=floored_log,
        )  # fmt: skip
        assert found.item() == pytest.approx(want, rel=1e-5)
    if left_padding or off_by_one or hidden_end or micro_batch == 4:
        assert abs(want / ours(policy, rollout, TEMPERATURE).item() - 1) > 1e-4, "the trap changes nothing here"


def test_off_by_one_drops_the_first_token_and_gives_cut_rows_one_more(policy: Policy) -> None:
    """By hand, of one prompt: entropies h[-1] (at the prompt's end), h[0], ..., h[L-1] (at the last generated token)."""
    rollout = draw(policy, ONE)
    total = count = 0.0
    for n, padding, h, _ in rows(policy, rollout):
        assert padding == 0
        total, count = total + sum(h[n:]), count + len(h) - n
    assert count == int(rollout.mask.sum())
    found = reference_loss(policy.model, rollout, TEMPERATURE, off_by_one=True)
    assert found.item() == pytest.approx(total / count, rel=1e-5)


def test_the_floor_is_there_for_probabilities_that_underflow(policy: Policy) -> None:
    """At a temperature of .01 some are 0 in fp32: a bare logarithm would give NaN, the floor and the log-softmax do not."""
    rollout = draw(policy, ONE)
    floored = reference_loss(policy.model, rollout, 0.01, floored_log=True)
    exact = reference_loss(policy.model, rollout, 0.01)
    assert floored.item() == pytest.approx(exact.item(), rel=1e-4)
    assert torch.isfinite(gradient(policy, floored)).all()
    assert torch.isfinite(gradient(policy, exact)).all()


def test_ten_updates_through_the_trainer(tmp_path: Path) -> None:
    """Journal and checkpoint of a run, against ten reference updates that draw the same keyed uniforms."""
    said = config(max_steps=10, learning_rate=2e-4, loss_temperature=TEMPERATURE)
    _, records = run(Trainer(CPU), request(said, tmp_path, seed=3, keep="last"))
    policy = miniature()
    before = {name: p.detach().clone() for name, p in policy.model.named_parameters()}
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=2e-4, weight_decay=said.weight_decay)
    prompt, n, length = policy.encode(said.prompt, "none"), said.num_generations, said.max_completion_length
    for step, record in enumerate(records.of("metrics"), 1):
        sampling = Sampling(said.temperature, said.top_p, said.top_k, said.repetition_penalty)
        rollout = policy.sample([prompt] * n, uniforms(3, "rollout", step, range(n), length), length, sampling, policy.stop)
        assert int(rollout.mask.sum()) == record["values"]["tokens"]
        loss = reference_loss(policy.model, rollout, TEMPERATURE)
        assert record["values"]["loss"] == pytest.approx(loss.item(), rel=1e-5 if step == 1 else 1e-4)
        reference_update(loss, policy.model.parameters(), optimizer, said.max_grad_norm)
    assert step == 10
    trained = dict(AutoModelForCausalLM.from_pretrained(tmp_path / "step-10").named_parameters())
    far = torch.cat([(trained[name] - p).flatten() for name, p in policy.model.named_parameters()]).norm()
    moved = torch.cat([(p - before[name]).flatten() for name, p in policy.model.named_parameters()]).norm()
    assert (far / moved).item() < 1e-4
    assert (far / torch.cat([p.flatten() for p in before.values()]).norm()).item() < 1e-5


def test_the_mean_of_sequence_means_is_that_of_micro_batches_of_one(tmp_path: Path) -> None:
    """`loss_type: grpo` (EM-FT) does on purpose what trap 8 does to micro-batches of one completion."""
    said = config(loss_type="grpo", max_steps=1, loss_temperature=TEMPERATURE)
    _, records = run(Trainer(CPU), request(said, tmp_path, seed=3))
    policy = miniature()
    draws = uniforms(3, "rollout", 1, range(said.num_generations), said.max_completion_length)
    prompts = [policy.encode(said.prompt, "none")] * said.num_generations
    rollout = policy.sample(prompts, draws, said.max_completion_length, Sampling(said.temperature), policy.stop)
    want = reference_loss(policy.model, rollout, TEMPERATURE, micro_batch=1).item()
    assert records.of("metrics")[0]["values"]["loss"] == pytest.approx(want, rel=1e-5)
    assert abs(want / reference_loss(policy.model, rollout, TEMPERATURE).item() - 1) > 1e-3


def test_without_habits_the_arms_of_the_table_of_traps_are_the_trainer(tmp_path: Path) -> None:
    said = config(prompt=PROMPT, max_steps=CALM.steps, learning_rate=CALM.learning_rate)
    asked = request(said, tmp_path, seed=5, evaluations=(("e" * 12, QUESTIONS, (0, 5, 10)),))
    accuracies = [record["accuracy"] for record in run(Trainer(CPU), asked)[1].of("eval")]
    assert train(miniature(), CALM, 5, {}, at=(0, 5, 10)) == accuracies
    assert accuracies[0] < accuracies[2]


def test_the_reference_is_no_part_of_what_is_shipped() -> None:
    root = Path(__file__).parents[1]
    sources = [p for part in ("em_core", "launchers", "sweeps", "analysis") for p in (root / part).rglob("*.py")]
    assert len(sources) > 40
    assert not [p for p in sources if "reference_step" in p.read_text(encoding="utf-8")]
