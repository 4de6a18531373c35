"""Runs that stop by themselves: the rules by hand, and what a stopped run leaves."""

from __future__ import annotations

from pathlib import Path

import pytest

from em_core.config import Evaluation
from em_core.stopping import VALIDATION, should_stop
from em_core.trainer import Trainer
from tests.models import CPU, SUMS, config, request, run

SAMPLED = Evaluation(task="two_step_sums", temperature=0.8, num_samples=2, limit=10)


def entropies(*values: float) -> list[dict[str, float]]:
    return [{"entropy": v} for v in values]


@pytest.mark.fast
def test_rules_by_hand() -> None:
    floor = config(stop_rule="entropy_floor", stop_threshold=0.5)
    assert not should_stop(floor, entropies(1.0, 0.6))
    assert should_stop(floor, entropies(1.0, 0.6, 0.49))
    slope = config(stop_rule="entropy_slope", stop_threshold=0.1, stop_patience=2)
    assert not should_stop(slope, entropies(1.0, 1.0)), "nothing to look back at"
    assert not should_stop(slope, entropies(1.0, 0.9, 0.85))
    assert should_stop(slope, entropies(1.0, 0.5, 0.5, 0.45))
    assert should_stop(slope, entropies(1.0, 0.5, 0.6)) is False
    best = config(stop_rule="validation_accuracy", stop_task="two_step_sums", stop_patience=2, stop_threshold=0.05)
    for found, stops in (([0.5, 0.9], False), ([0.5, 0.9, 0.9, 0.94], True), ([0.5, 0.9, 0.9, 0.96], False)):
        assert should_stop(best, [{VALIDATION: v} for v in found]) is stops
    assert not should_stop(config(), entropies(1.0, 0.0))


@pytest.mark.slow
def test_a_stopped_run_is_measured_once_and_for_all_later_steps(tmp_path: Path) -> None:
    trainer = Trainer(CPU)
    said = config(max_steps=8, stop_rule="entropy_floor", stop_threshold=0.8)
    wanted = (("e" * 12, SUMS, (0, 1, 2, 5, 8)), ("s" * 12, SAMPLED, (0, 8)))
    outcome, records = run(trainer, request(said, tmp_path / "c" / "r", evaluations=wanted, keep="last"))
    entropy = [m["values"]["entropy"] for m in records.of("metrics")]
    assert [h < 0.8 * entropy[0] for h in entropy] == [False] * (len(entropy) - 1) + [True]
    assert 1 < len(entropy) < 8
    assert (outcome.status, outcome.steps) == ("completed", len(entropy))
    assert outcome.message == f"stopped by entropy_floor at step {len(entropy)}"
    assert {(e["eval_id"][0], e["step"]) for e in records.of("eval")} == {("e", s) for s in (0, 1, 2, 5, 8)} | {
        ("s", 0),
        ("s", 8),
    }
    late = [e for e in records.of("eval") if e["eval_id"][0] == "e" and e["step"] > len(entropy)]
    assert len({e["outcomes"] for e in late}) == 1
    assert [c["step"] for c in records.of("checkpoint")] == [8], "`last` is the frozen policy"

    plain = run(trainer, request(config(max_steps=len(entropy)), tmp_path / "d" / "r", steps=(len(entropy),)))[1]
    assert late[0]["outcomes"] == plain.of("eval")[-1]["outcomes"], "up to there it is the run that does not stop"


@pytest.mark.slow
def test_validation_accuracy_is_recorded_and_changes_nothing_but_the_end(tmp_path: Path) -> None:
    trainer = Trainer(CPU)
    rule = {"stop_rule": "validation_accuracy", "stop_task": "two_step_sums", "stop_patience": 2}
    outcome, records = run(trainer, request(config(max_steps=12, learning_rate=1e-3, **rule), tmp_path / "c" / "r"))
    found = [m["values"][VALIDATION] for m in records.of("metrics")]
    assert max(found[-2:]) <= max(found[:-2])
    assert outcome.steps == len(found) < 12
    plain = run(trainer, request(config(max_steps=len(found), learning_rate=1e-3), tmp_path / "d" / "r"))[1]
    assert [m["values"]["loss"] for m in plain.of("metrics")] == [m["values"]["loss"] for m in records.of("metrics")]
