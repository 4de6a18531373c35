"""Runs from end to end: the same numbers cold, warm and alone; outcomes; checkpoints; evaluation of what was kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from em_core.checkpoints import Keeper
from em_core.config import Evaluation, RunRequest
from em_core.journal import encode
from em_core.trainer import Trainer
from tests.models import CPU, SUMS, Records, config, request, run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trainer() -> Trainer:
    return Trainer(CPU)


def test_records_are_those_of_the_contract(trainer: Trainer, tmp_path: Path) -> None:
    outcome, records = run(trainer, request(config(), tmp_path, steps=(0, 2, 3, 50), keep="last"))
    assert (outcome.status, outcome.steps, outcome.message) == ("completed", 3, "")
    assert set(outcome.figures or {}) == {"rollout_seconds", "train_seconds", "eval_seconds", "peak_memory_mb"}
    kinds = [(kind, fields["step"]) for kind, fields in records]
    want = [("eval", 0), ("metrics", 1), ("metrics", 2), ("eval", 2), ("metrics", 3), ("eval", 3), ("checkpoint", 3)]
    assert kinds == want
    values = records.of("metrics")[0]["values"]
    assert {"loss", "entropy", "grad_norm", "completion_length", "truncated", "tokens"} <= set(values)
    assert values["tokens"] == values["completion_length"] * 8
    score = records.of("eval")[0]
    assert (score["n_questions"], score["num_samples"], len(score["outcomes"])) == (40, 1, 40)
    assert score["accuracy"] == score["outcomes"].count("1") / 40
    assert {"completion_length", "truncated", "repetition", "unparsable", "seconds"} <= set(score["values"])
    assert records.of("checkpoint")[0]["path"] == f"{tmp_path.parent.name}/{tmp_path.name}/step-3"
    for kind, fields in records:
        encode(kind, fields)
    assert trainer.describe(config()) == {"device": "cpu", "dtype": "float32", "threads": 1}


def test_same_numbers_cold_warm_and_among_others(trainer: Trainer, tmp_path: Path) -> None:
    sampled = ("s" * 12, Evaluation(task="two_step_sums", temperature=0.8, num_samples=2, limit=10), (0, 3))
    greedy = ("e" * 12, SUMS, (0, 3))

    def wanted(seed: int, method: str = "em") -> RunRequest:
        return request(config(method=method, kl_coef=0.1), tmp_path, seed=seed, evaluations=(greedy, sampled))

    cold = run(Trainer(CPU), wanted(1))[1].timeless()
    run(trainer, wanted(2, "rent"))
    run(trainer, request(config(learning_rate=1e30), tmp_path))
    assert run(trainer, wanted(1))[1].timeless() == cold
    assert run(trainer, wanted(1))[1].timeless() == cold
    assert run(trainer, wanted(2))[1].timeless() != cold


def test_what_is_evaluated_does_not_touch_training(trainer: Trainer, tmp_path: Path) -> None:
    plain = run(trainer, request(config(), tmp_path))[1]
    sampled = Evaluation(task="two_step_sums", temperature=1.0, limit=5)
    watched = run(trainer, request(config(), tmp_path, evaluations=(("s" * 12, sampled, (0, 1, 2, 3)),), keep="all"))[1]
    assert [r for r in watched.timeless() if r[0] == "metrics"] == plain.timeless()


def test_a_huge_learning_rate_diverges_and_says_so(trainer: Trainer, tmp_path: Path) -> None:
    outcome, records = run(trainer, request(config(learning_rate=1e30, max_steps=6), tmp_path, steps=(0, 6), keep="last"))
    assert outcome.status == "diverged"
    assert outcome.steps < 6
    assert f"step {outcome.steps + 1}" in outcome.message
    assert [r["step"] for r in records.of("metrics")] == list(range(1, outcome.steps + 2))
    assert not records.of("checkpoint")


def test_evaluating_what_was_kept_equals_evaluating_while_training(trainer: Trainer, tmp_path: Path) -> None:
    sampled = ("s" * 12, Evaluation(task="two_step_sums", temperature=0.8, num_samples=2, limit=10), (0, 2, 4))
    both = (("e" * 12, SUMS, (0, 2, 4)), sampled)
    for dtype in ("float32", "bfloat16"):
        said = config(dtype=dtype, max_steps=4)
        _, trained = run(trainer, request(said, tmp_path / dtype, evaluations=both, keep="all"))
        outcome, later = run(Trainer(CPU), request(said, tmp_path / dtype, evaluations=both, mode="eval"))
        assert outcome.status == "completed"
        assert [r for r in trained.timeless() if r[0] == "eval"] == later.timeless()
    with pytest.raises(FileNotFoundError, match="step 3"):
        run(trainer, request(said, tmp_path / dtype, mode="eval", steps=(3,)))


@pytest.mark.parametrize(("keep", "kept"), [("none", []), ("last", [4]), ("all", [1, 2, 4])])
def test_keep(trainer: Trainer, tmp_path: Path, keep: str, kept: list[int]) -> None:
    _, records = run(trainer, request(config(max_steps=4), tmp_path, steps=(0, 1, 2), keep=keep))
    assert [r["step"] for r in records.of("checkpoint")] == kept
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"step-{s}" for s in kept]
    for step in kept:
        AutoModelForCausalLM.from_pretrained(tmp_path / f"step-{step}")
        assert AutoTokenizer.from_pretrained(tmp_path / f"step-{step}").eos_token == "<|endoftext|>"


def test_keep_best(tmp_path: Path) -> None:
    def save(folder: Path) -> None:
        (folder / "config.json").write_text("{}")

    (tmp_path / "step-2").mkdir()
    (tmp_path / "step-2" / "stale").touch()  # of an earlier attempt
    keeper = Keeper(tmp_path, "best:2", 6, save)
    for step, accuracy in {1: 0.5, 2: 0.7, 3: 0.7, 4: 0.6, 5: 0.8, 6: None}.items():
        keeper.offer(step, accuracy)
    records = Records()
    keeper.emit(records)
    assert [r["step"] for r in records.of("checkpoint")] == [2, 5]
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")) == [
        "step-2", "step-2/config.json", "step-5", "step-5/config.json",
    ]  # fmt: skip


def test_a_request_survives_json(tmp_path: Path) -> None:
    wanted = request(config(), tmp_path, steps=(0,))
    assert RunRequest.from_json(json.loads(json.dumps(wanted.as_json()))) == wanted


@pytest.mark.parametrize("method", ["em", "rent"])
def test_halved_batches_give_the_same_numbers_but_for_rounding(trainer: Trainer, tmp_path: Path, method: str) -> None:
    said = config(method=method, num_generations=12, max_steps=5, temperature=1.3)  # too hot for equal completions
    whole = run(trainer, request(said, tmp_path, steps=(5,)))[1]
    for halvings in (1, 3, 9):
        parts = run(trainer, request(said, tmp_path, steps=(5,), halvings=halvings))[1]
        for a, b in zip(whole.timeless(), parts.timeless(), strict=True):
            assert b[1]["values"] == pytest.approx(a[1]["values"], rel=1e-4 if method == "rent" else 1e-5, abs=1e-6)
            assert b[1].get("outcomes") == a[1].get("outcomes")
