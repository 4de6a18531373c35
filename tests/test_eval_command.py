"""`emsweep eval`: a model as it is, through the same plant as everything else."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from em_core.config import Evaluation
from em_core.model import Policy
from em_core.trainer import Trainer
from sweeps.evaluate import eval_name
from tests.conftest import Emsweep
from tests.models import CPU, SUMS, config, request, run


@pytest.mark.fast
def test_names() -> None:
    assert eval_name("Qwen/Qwen2.5-Math-7B", None) == "eval-Qwen-Qwen2.5-Math-7B"
    assert eval_name("Qwen/Qwen2.5-Math-7B", "v1") == "eval-Qwen-Qwen2.5-Math-7B-v1"
    assert eval_name("/data/runs/abc-s1/step-10", None) == "eval-abc-s1-step-10"
    assert eval_name("miniature", None) == "eval-miniature"


@pytest.mark.slow
def test_runs_without_updates_load_one_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads = []
    load = Policy.load
    monkeypatch.setattr(Policy, "load", lambda *a: loads.append(a) or load(*a))
    trainer = Trainer(CPU)
    sampled = ("s" * 12, Evaluation(task="two_step_sums", temperature=0.8, num_samples=2, limit=10), (0,))
    outcomes = []
    for seed in (0, 1):
        wanted = request(
            config(max_steps=0, max_completion_length=1), tmp_path, seed=seed, evaluations=(("e" * 12, SUMS, (0,)), sampled)
        )
        outcome, records = run(trainer, wanted)
        assert (outcome.status, outcome.steps) == ("completed", 0)
        assert [kind for kind, _ in records] == ["eval", "eval"]
        outcomes.append([r["outcomes"] for r in records.of("eval")])
    assert len(loads) == 1
    assert outcomes[0][0] == outcomes[1][0]
    assert outcomes[0][1] != outcomes[1][1]


@pytest.mark.slow
def test_a_model_as_it_is(tmp_path: Path, emsweep: Emsweep) -> None:
    sums = tmp_path / "sums.jsonl"
    sums.write_text("".join(json.dumps({"problem": f"Q:{a}+7+5=?", "answer": a + 12}) + "\n" for a in range(1, 6)))

    def command(*more: str, check: int = 0) -> Any:
        return emsweep("eval", "miniature", "--launcher", "local", "-y", *more, check=check)

    refused = command("--task", "two_step_sums", "--template", "chta", check=2)
    assert "spec.yaml:13: evaluate.0.template: template 'chta' is none of auto, none, chat" in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert not (tmp_path / "runs").exists()

    command("--task", "two_step_sums", "--temperature", "0", "--temperature", "0.7", "--num-samples", "4", "--limit", "20")
    command("--task", "sums.jsonl", "--template", "{question}", "--stop", ";;", "--max-completion-length", "24")
    query = """SELECT task, eval_temperature AS t, accuracy, eval_other['pass@1'] AS one, eval_other['pass@2'] AS two,
                eval_other['pass@4'] AS four, eval_other['majority@4'] AS vote, step FROM scores ORDER BY ALL"""
    rows = list(csv.DictReader(io.StringIO(emsweep("sql", query, "--format", "csv", check=0).stdout)))
    assert [(r["task"], r["step"]) for r in rows] == [("sums.jsonl", "0"), ("two_step_sums", "0"), ("two_step_sums", "0")]
    assert float(rows[0]["accuracy"]) > 0
    assert rows[0]["vote"] == ""
    greedy, sampled = rows[1:]
    assert greedy["one"] == greedy["two"] == greedy["four"] == greedy["vote"] == greedy["accuracy"]
    one, two, four = (float(sampled[k]) for k in ("one", "two", "four"))
    assert float(sampled["accuracy"]) == pytest.approx(one)
    assert one < two < four
    attempts = emsweep("sql", "SELECT mode, steps FROM attempts ORDER BY started", "--format", "csv", check=0).stdout.split()
    assert attempts == ["mode,steps", "train,0", "eval,0"], "a task that comes later is measured alone"
    stops = "SELECT x.stop, x.template FROM sweeps, UNNEST(evaluations) AS u(x) WHERE x.task LIKE '%.jsonl'"
    assert json.loads(emsweep("sql", stops, "--format", "json", check=0).stdout) == [{"stop": [";;"], "template": "{question}"}]
