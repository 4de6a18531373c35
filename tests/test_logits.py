"""The measurement of logits: against whole forward passes and scipy, and from the spec to the database."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import skew

from analysis.grid import read_grid
from analysis.queries import sql
from analysis.report import build_report
from em_core import logits
from em_core.config import Evaluation
from em_core.errors import UserError
from em_core.logits import BINS, LOW, WIDTH, Moments, emit_logits, measure
from em_core.noop import Noop
from em_core.tasks import load_task, two_step_sums
from em_core.trainer import Trainer
from tests.conftest import Emsweep
from tests.models import CPU, SUMS, Records, config, miniature, request, run

LOGITS = Evaluation(task="two_step_sums", task_key="two_step_sums@1", measure="logits", limit=25)
BENCHMARKS = Path(__file__).parent.parent.parent / "shared" / "data" / "benchmarks"


def all_logits() -> np.ndarray:
    """At every token of the worked solutions, from one whole forward pass each: (positions, vocabulary)."""
    policy, task = miniature(), load_task(LOGITS)
    found = []
    for question, solution in zip(task.questions, task.solutions, strict=True):
        asked, answered = policy.encode_question(question, None), policy.encode_question(solution, None)
        with torch.no_grad():
            found.append(policy.model(torch.tensor([asked + answered])).logits[0, len(asked) - 1 : -1].double().numpy())
    return np.concatenate(found)


@pytest.mark.slow
def test_the_record_against_whole_forward_passes_and_scipy() -> None:
    records = Records()
    emit_logits(miniature(), "e", LOGITS, 3, 5, 256, records)
    [record] = records.of("eval")
    x = all_logits()
    said = {k: record["values"][k] for k in record["values"] if k.startswith(("logit", "top"))}
    expected = {
        f"{name}_{what}": float(f(y))
        for name, y in (("logit", x.ravel()), ("top_logit", x.max(1)))
        for what, f in (("mean", np.mean), ("sd", np.std), ("skewness", skew))
    }
    assert said == pytest.approx(expected, rel=1e-5)
    histogram = record["histogram"]
    edges = histogram["left"] + histogram["width"] * np.arange(len(histogram["counts"]) + 1)
    assert np.abs(np.histogram(x, edges)[0] - histogram["counts"]).sum() <= 2, "a logit at an edge may round either way"
    assert sum(histogram["counts"]) == x.size
    assert (record["accuracy"], record["outcomes"], record["n_questions"], record["step"]) == (None, "", 25, 5)


@pytest.mark.fast
@pytest.mark.parametrize("entries", [1 << 24, 300])
def test_processed_scores_are_the_50_highest_without_zeros(entries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logits, "ENTRIES", entries)  # in one block, or row by row
    x = torch.from_numpy(np.random.default_rng(0).gamma(2.0, 3.0, (40, 200)).astype(np.float32))
    x[:, :3] = torch.tensor([0.0, -torch.inf, 90.0])
    x[7] = 0.0
    x[7, 5] = 1.0  # of one row only one score is not zero
    kept = [row / 0.6 for row in np.sort(x.double().numpy(), axis=1)[:, -50:]]
    pooled = np.concatenate(kept)
    pooled = pooled[(pooled != 0) & np.isfinite(pooled)]
    found = Moments.pooled(*logits._processed_terms(x, torch.zeros(40)))
    assert found.n == len(pooled) == 39 * 50 + 1
    expected = {"p_mean": pooled.mean(), "p_sd": pooled.std(), "p_skewness": skew(pooled)}
    assert found.values("p") == pytest.approx(expected, rel=1e-9)
    halves = [Moments.pooled(*logits._processed_terms(part, torch.zeros(20))) for part in x.split(20)]
    assert vars(Moments.over(halves)) == pytest.approx(vars(found), rel=1e-9)


@pytest.mark.fast
def test_bins_hold_everything_but_nan() -> None:
    x = torch.tensor([[LOW, LOW + 1.5 * WIDTH, -1e9, 1e9], [torch.inf, -torch.inf, torch.nan, 0.0]], dtype=torch.float64)
    found = logits._binned(x)
    assert found.shape == (2, BINS)
    assert found.nonzero().tolist() == [[0, 0], [0, 1], [0, BINS - 1], [1, 0], [1, BINS // 2], [1, BINS - 1]]
    assert found.sum(1).tolist() == [4, 3]
    assert logits._histogram(np.array([0, 0, 3, 0, 1, 0])) == {"left": LOW + 2 * WIDTH, "width": WIDTH, "counts": [3, 0, 1]}
    equal = Moments.over([Moments(2, 1.0, 0.0, 0.0), Moments(1, 1.0, 0.0, 0.0)]).values("x")
    assert (equal["x_mean"], equal["x_sd"]) == (1.0, 0.0)
    assert np.isnan(equal["x_skewness"])


@pytest.mark.slow
def test_batches_do_not_matter_and_only_the_own_text_knows_the_seed() -> None:
    policy = miniature()
    names = ("logit", "top_logit", "processed")

    def told(seed: int, batch_size: int) -> dict[str, dict[str, float]]:
        found = measure(policy, LOGITS, seed, 2, batch_size)[1]
        return {name: Moments.over([getattr(m, name) for m in found]).values(name) for name in names}

    whole, parts, other = told(0, 256), told(0, 7), told(1, 256)
    for name in names:
        assert parts[name] == pytest.approx(whole[name], rel=1e-5)
    assert other["logit"] == whole["logit"]
    assert other["processed"] != whole["processed"]


@pytest.mark.slow
def test_a_run_measures_both_and_keeps_the_best_by_accuracy(tmp_path: Path) -> None:
    evaluations = (("e" * 12, SUMS, (0, 2, 4)), ("f" * 12, LOGITS, (0, 3, 4)))
    wanted = request(config(max_steps=4), tmp_path / "c" / "r", evaluations=evaluations, keep="best:1")
    outcome, records = run(Trainer(CPU), wanted)
    assert outcome.status == "completed"
    found = [(r["eval_id"][0], r["step"], r["accuracy"] is None) for r in records.of("eval")]
    assert found == [(i, s, i == "f") for i, s in [("e", 0), ("f", 0), ("e", 2), ("f", 3), ("e", 4), ("f", 4)]]
    assert next(r["step"] for r in records.of("checkpoint")) in (2, 4)
    skewness = [r["values"]["logit_skewness"] for r in records.of("eval") if r["eval_id"][0] == "f"]
    assert len(set(skewness)) == 3, "training moves the logits"
    rehearsed = Records()
    Noop(CPU).run(wanted, rehearsed)
    of_logits = ([r for r in told.of("eval") if r["eval_id"][0] == "f"] for told in (records, rehearsed))
    for real, fake in zip(*of_logits, strict=True):
        assert {*real} - {"grader"} == {*fake} - {"grader"}
        assert real["values"].keys() == fake["values"].keys()


@pytest.mark.slow
def test_every_solution_of_the_built_in_task_is_right() -> None:
    task = two_step_sums()
    assert len(task.solutions) == len(task.questions) == 200
    assert all(task.correct(gold, solution) for gold, solution in zip(task.golds, task.solutions, strict=True))
    assert len(load_task(LOGITS).solutions) == 25


@pytest.mark.fast
def test_solutions_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "some.jsonl"
    rows = [{"problem": "1+1?", "solution": "It is \\boxed{2}."}, {"problem": "2+2?", "answer": "2 and 2\n#### 4"}]
    rows += [{"question": "3+3?", "solution": ["first \\boxed{6}", "second"], "answer": "6"}, {"question": "4+4?", "answer": 8}]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    said = Evaluation(task=str(path), task_key="sha256:0", measure="logits", limit=3)
    assert load_task(said).solutions == ("It is \\boxed{2}.", "2 and 2\n#### 4", "first \\boxed{6}")
    with pytest.raises(UserError, match=r"some\.jsonl has none for its question 4$"):
        load_task(said.model_copy(update={"limit": None}))


@pytest.mark.slow
@pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="the shared benchmarks are not here")
@pytest.mark.parametrize("name", ["math500", "minerva_math", "olympiadbench", "gsm8k"])
def test_these_benchmarks_have_worked_solutions(name: str) -> None:
    task = load_task(Evaluation(task=str(BENCHMARKS / f"{name}.jsonl"), task_key="sha256:0", measure="logits"))
    assert len(task.solutions) == len(task.questions)
    assert min(map(len, task.solutions)) > 0


@pytest.mark.slow
def test_from_the_spec_to_the_database(tmp_path: Path, emsweep: Emsweep) -> None:
    """A rehearsal: what is stored, what SQL says of it, and that nobody takes it for an accuracy."""
    (tmp_path / "s.yaml").write_text(
        "name: shift\nbase: {model_name_or_path: miniature, method: noop, prompt: plus, max_steps: 10}\n"
        "axes: {learning_rate: [1.0e-4, 2.0e-4]}\nseeds: 3\nevaluate:\n"
        "  - {tasks: [two_step_sums], measure: logits, steps: [0, 5, 10]}\n"
        "  - {tasks: [two_step_sums], steps: [0, 10]}\n"
    )
    emsweep("run", "s.yaml", "--launcher", "local", "-y", check=0)
    db = tmp_path / "results.duckdb"
    grid = read_grid(db, "shift")
    assert (grid.steps, grid.n_evaluations, grid.evaluation["measure"]) == ((0, 10), 1, "accuracy")
    counts = sql(
        db,
        "SELECT e.measure, count(*) AS n, count(accuracy) AS known, count(outcomes) AS bits FROM evals "
        "JOIN (SELECT UNNEST(evaluations) AS e FROM sweeps) ON e.eval_id = evals.eval_id GROUP BY ALL ORDER BY ALL",
    )
    assert counts.rows() == [("accuracy", 12, 12, 12), ("logits", 18, 0, 0)]
    assert sql(db, "SELECT count(*) FROM answers").item() == 12 * 200
    bins = sql(db, "SELECT min(bin_left), max(bin_right), max(bin_right - bin_left), sum(count) FROM logit_histograms GROUP BY "
                   "run_id, step, eval_id")  # fmt: skip
    assert set(bins.rows()) == {(-3.0, -0.75, 0.25, sum(round(1000 * np.exp(-((i / 4 - 1) ** 2))) for i in range(9)))}
    cells = sql(db, "SELECT step, n, mean, t_lo FROM cells WHERE metric = 'logit_skewness' ORDER BY config_id, step")
    assert cells["step"].to_list() == [0, 5, 10] * 2
    found = build_report(db, "shift", tmp_path / "report")
    assert (tmp_path / "report" / "logit_skewness.svg").is_file()
    told = (tmp_path / "report" / "tables" / "logits.csv").read_text().splitlines()
    assert len(told) == 7
    assert "Logit shift" in found.html.read_text()
    row = dict(zip(told[0].split(","), told[1].split(","), strict=True))
    first = cells["mean"][0 if grid.configs["config_id"][0] == grid.configs["config_id"].min() else 3]
    assert float(row["logit_skewness"]) == pytest.approx(first)
    assert (row["shift"], row["n"]) == ("0.0", "3")
    shown = emsweep("show", sql(db, "SELECT min(run_id) FROM runs").item(), check=0).stdout
    assert "logit_skewness" in shown
