"""`select-prompts`: rankings worked by hand and by others, and a real asking of the miniature."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import polars as pl
import pytest

from em_core.config import Evaluation
from em_core.evaluation import evaluate
from em_core.prompts import PROMPT_SETS, Prompt, encode_set
from em_core.tasks import SYSTEM, load_task, task_key
from sweeps import cli
from sweeps.expand import expand
from sweeps.selection import Data, by_history, by_variance, read_data, read_history
from sweeps.spec import load_spec
from tests.cluster import SlurmCluster
from tests.conftest import Emsweep
from tests.models import miniature

SHARED = Path(__file__).parent.parent.parent / "shared" / "data" / "prompts"


def data(n: int) -> Data:
    return Data("d", tuple((row, Prompt(f"q{row}", str(row))) for row in range(n)), n)


@pytest.mark.fast
def test_variance_by_hand() -> None:
    """3 and 7 of 10 are equally variable, and the earlier row comes first."""
    table = by_variance(data(5), [(10, 10), (7, 10), (3, 10), (5, 10), (0, 10)])
    assert table.columns == ["rank", "row", "p", "variance", "n", "prompt", "answer"]
    assert table["row"].to_list() == [3, 1, 2, 0, 4]
    assert table["rank"].to_list() == [1, 2, 3, 4, 5]
    assert table["variance"].to_list() == pytest.approx([0.25, 0.21, 0.21, 0, 0])
    assert table["p"].to_list() == [0.5, 0.7, 0.3, 1.0, 0.0]
    assert table["prompt"].to_list()[0] == "q3"


@pytest.mark.fast
def test_history_by_hand() -> None:
    table = by_history(data(4), {0: [0.5, 0.5], 3: [0.0, 1.0, 0.5], 1: [0.0, 1.0]})
    assert table["row"].to_list() == [1, 3, 0], "row 2 has no history"
    assert table["history_std"].to_list() == pytest.approx([0.5, math.sqrt(1 / 6), 0])
    assert table["n"].to_list() == [2, 3, 2]
    assert table["p"].to_list() == [0.5, 0.5, 0.5]


@pytest.mark.fast
def test_the_shared_history_finds_the_prompts_that_others_found_in_it() -> None:
    """One-shot RLVR calls a prompt by its rank: pi1, pi2 and pi13 are rows 124, 267 and 682 of the data set."""
    if not (SHARED / "acc_step_500.json").is_file():
        pytest.skip("the shared prompts are not here")
    found = read_data(str(SHARED / "dsr_sub.parquet"), None, None, answered=False)
    table = by_history(found, read_history(SHARED / "acc_step_500.json"))
    assert table.height == 1209
    assert [table["row"][rank - 1] for rank in (1, 2, 13)] == [124, 267, 682]


@pytest.mark.fast
def test_prompts_as_a_task_are_asked_as_in_training(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(encode_set([Prompt("Q:1+2+3=?", "6")]))
    task = load_task(Evaluation(task=str(path), task_key=task_key(str(path))))
    assert (task.questions, task.golds, task.system) == (("Q:1+2+3=?",), ("6",), "")
    path.write_text('{"problem": "Q:1+2+3=?", "prompt": "x", "answer": "6"}\n')
    assert load_task(Evaluation(task=str(path), task_key=task_key(str(path)))).system == SYSTEM
    policy = miniature()
    for template in (None, "{% for m in messages %}{{ m['role'] }}:{{ m['content'] }};{% endfor %}"):
        policy.tokenizer.chat_template = template
        assert policy.encode_question("Q:1+2+3=?", "") == policy.encode("Q:1+2+3=?", "auto")


BAD = {
    "unknown": (["sms"], "prompt file {here}/sms does not exist"),
    "no answers": (["p.csv"], "p.csv: no prompt has a gold answer, by which its variance could be judged (--answer-column?)"),
    "history alone": (
        ["sums", "--history", "h.json"],
        "--history FILE and --by history_std go together: give both, or neither",
    ),
    "by alone": (["p.csv", "--by", "history_std"], "--history FILE and --by history_std go together: give both, or neither"),
    "suffix": (["sums", "-o", "t.json"], "--out t.json: a table of prompts is a .csv or .parquet file"),
    "folder": (["sums", "-o", "no/t.csv"], "--out no/t.csv: there is no such folder"),
    "rows": (
        ["p.csv", "--by", "history_std", "--history", "h.json"],
        "the history has row 7, and p has rows 0 to 0: is it that of another data set?",
    ),
    "no history": (
        ["p.csv", "--by", "history_std", "--history", "p.csv"],
        "p.csv is no JSON object of row -> [accuracy, ...]: Expecting value: line 1 column 1 (char 0)",
    ),
    "percent": (
        ["p.csv", "--by", "history_std", "--history", "percent.json"],
        "percent.json: row 0 needs at least two accuracies between 0 and 1",
    ),
    "model": (["sums", "--model", "./x"], "model './x': there is no such folder (and it is no Hub id)"),
}


@pytest.mark.fast
@pytest.mark.parametrize("name", BAD)
def test_mistakes_are_one_line_and_cost_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("p.csv").write_text("prompt\nhello\n")
    Path("h.json").write_text('{"7": [0.5, 1.0]}')
    Path("percent.json").write_text('{"0": [50, 100]}')
    args, said = BAD[name]
    with pytest.raises(SystemExit) as stop:
        cli.main(["select-prompts", *args, "--launcher", "local"])
    out, err = capsys.readouterr()
    assert (stop.value.code, out) == (2, "")
    assert err == f"emsweep: {said.replace('{here}', str(tmp_path))}\n"
    assert {p.name for p in tmp_path.iterdir()} == {"p.csv", "h.json", "percent.json"}


@pytest.mark.long
@pytest.mark.slow
def test_the_miniature_is_asked_and_a_larger_k_adds(tmp_path: Path, emsweep: Emsweep) -> None:
    ask = ("select-prompts", "sums", "--temperature", "0.7", "--top-p", "1", "--launcher", "local", "-y")
    emsweep(*ask, "-k", "2", "--top", "5", check=0)
    with open(tmp_path / "sums.variance.csv", newline="") as f:
        assert [r["rank"] for r in csv.DictReader(f)] == ["1", "2", "3", "4", "5"]
    said = emsweep(*ask, "-k", "3", "-o", "ranked.parquet", check=0).stdout
    assert "3 runs, 2 done" in said
    table = pl.read_parquet(tmp_path / "ranked.parquet")
    assert table["n"].unique().to_list() == [3]

    # The same by hand: seed by seed, in one process.
    path = next((tmp_path / "runs").glob("select-*/sums.jsonl"))
    asked = Evaluation(task=str(path), task_key=task_key(str(path)), temperature=0.7)
    outcomes = [evaluate(miniature(), asked, seed, 0, 64).outcomes for seed in range(3)]
    right = [sum(o[row] == "1" for o in outcomes) for row in range(64)]
    assert dict(zip(table["row"], table["p"], strict=True)) == {row: c / 3 for row, c in enumerate(right)}
    assert len({0, 4} - set(right)) + len({1, 2, 3} & set(right)) > 0
    order = sorted(range(64), key=lambda row: (-right[row] * (3 - right[row]), row))
    assert table["row"].to_list() == order

    (tmp_path / "spec.yaml").write_text(
        "name: t\nbase: {model_name_or_path: miniature, method: grpo, max_steps: 2, num_generations: 4}\nseeds: 1\n"
        "axes: {prompt: {table: ranked.parquet, top: 2}}\n"
    )
    chosen = [PROMPT_SETS["sums"]()[row] for row in order[:2]]
    trained = [c.training for c in expand(load_spec(tmp_path / "spec.yaml")).configs]
    assert [Prompt(t.prompt, t.answer) for t in trained] == chosen


@pytest.mark.long
@pytest.mark.slurm
@pytest.mark.slow
def test_asking_through_the_queue_gives_the_same_table(tmp_path: Path, slurm: SlurmCluster, emsweep: Emsweep) -> None:
    (tmp_path / "few.jsonl").write_bytes(encode_set(PROMPT_SETS["sums"]()[:12]))
    (tmp_path / "site.toml").write_text("poll_seconds = 1\n")
    ask = ("select-prompts", "few.jsonl", "--temperature", "0.7", "-k", "3", "-y")
    emsweep(*ask, "-o", "here.csv", "--launcher", "local", "--root", "other", "--db", "other.duckdb", check=0)
    emsweep(*ask, "-o", "there.csv", "--launcher", "slurm", env=slurm.env(), check=0)
    assert (tmp_path / "there.csv").read_text() == (tmp_path / "here.csv").read_text()


@pytest.mark.fast
def test_the_shipped_table_ranks_the_shipped_sums() -> None:
    e = expand(load_spec(Path(__file__).parent.parent / "sweeps" / "specs" / "prompt-selection.yaml"))
    assert sorted(c.training.prompt for c in e.configs) == sorted(p.text for p in PROMPT_SETS["sums"]())
    assert e.configs[0].prompt_name == "prompt-selection#0"
