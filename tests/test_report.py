"""The report: sentences against hand-made numbers, the edges, and a page that needs nothing else."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from rich.console import Console

from analysis.collect import collect
from analysis.grid import read_grid
from analysis.report import ABOUT, Report, build_report, print_summary
from analysis.stats import t_interval
from em_core.errors import UserError
from tests.journals import GREEDY, SAMPLED, Journal, Run, Sweep

pytestmark = pytest.mark.slow

Correct = Callable[[Run, int], int]
"""How many of 100 answers are right, for a run at a step."""


def made(
    folder: Path, grid: dict[str, list[float]], seeds: int, correct: Correct, status: str = "completed"
) -> tuple[Sweep, Path]:
    """A sweep whose accuracies are given, collected; steps 0, 5 and 10."""
    sweep = Sweep(folder / "runs", grid=grid, seeds=range(seeds))
    sweep.write_manifest()
    with Journal(sweep, "j-0000") as journal:
        for run in sweep.runs:
            journal.start(run)
            for step in sweep.steps if status != "failed" else ():
                right = correct(run, step)
                journal.eval(run, step, GREEDY, bits="1" * right + "0" * (100 - right))
            journal.end(run, status)
    collect(sweep.root, folder / "results.duckdb")
    return sweep, folder / "results.duckdb"


def report(folder: Path, db: Path) -> Report:
    return build_report(db, "demo", folder / "report")


def rising(run: Run, step: int) -> int:
    """Base .50; at step 5 the two lower rates are tied and clearly above the third; all fall at step 10."""
    if step == 0:
        return 50
    level = {1e-4: 80, 2e-4: 79, 5e-4: 60}[run.config.learning_rate]
    wobble = [0, 2, -2, 1, -1, 3, -3, 0][run.seed] * (3 if run.config.learning_rate == 5e-4 else 1)
    return level + wobble * (1 if run.config.learning_rate != 2e-4 else -1) - (10 if step == 10 else 0)


def test_the_three_sentences_say_the_numbers(tmp_path: Path) -> None:
    _, db = made(tmp_path, {"learning_rate": [1e-4, 2e-4, 5e-4]}, 8, rising)
    found = report(tmp_path, db)
    by_seed = np.array([[80 + w, 79 - w, 60 + 3 * w] for w in (0, 2, -2, 1, -1, 3, -3, 0)]).mean(1) / 100
    peak = t_interval(by_seed)
    assert found.sentences[0] == (
        f"Averaged over all 3 configs, accuracy starts at 0.500 before training, peaks at {peak.mean:.3f} "
        f"[{peak.lo:.3f}, {peak.hi:.3f}] at step 5 and ends at {peak.mean - 0.1:.3f} [{peak.lo - 0.1:.3f}, {peak.hi - 0.1:.3f}] "
        "at step 10 (mean and 95% t-interval over n = 8 seeds)."
    )
    assert found.sentences[1].startswith(
        "At step 5, 1 of the 2 other configs is statistically tied with the best (t-tests paired by seed, Holm at 5%): "
        "learning_rate=0.0001 has 0.800 [0.783, 0.817], n = 8 seeds, selected as the best of 3"
    )
    assert found.sentences[2] == (
        "The widest seed spread among 3 configs and 2 steps is that of learning_rate=0.0005 at step 10: max/min 1.44, "
        "from 0.410 to 0.590 over n = 8 seeds."
    )
    assert found.table["learning_rate"].to_list() == [1e-4, 2e-4, 5e-4]
    assert found.table["step"].to_list() == [5, 5, 5]
    assert found.table["tied"].to_list() == [True, True, False]
    assert found.table["mean"].to_list() == pytest.approx([0.80, 0.79, 0.60])


def test_only_varied_fields_are_named(tmp_path: Path) -> None:
    Sweep(tmp_path / "runs").write()
    collect(tmp_path / "runs", tmp_path / "results.duckdb")
    found = report(tmp_path, tmp_path / "results.duckdb")
    assert found.table.columns[:4] == ["prompt_name", "temperature", "learning_rate", "step"]
    assert "1 diverged, 1 failed and 1 not finished, left out" in found.sentences[0]
    assert "top_p" not in " ".join(found.sentences)
    assert found.table["n_diverged"].sum() == found.table["n_failed"].sum() == 1
    assert found.table.height == 18
    drawn = ("curves", "seeds", "ties", "heatmaps", "variance", "ranks", "best_of_k", "seeds_needed")
    assert [f.name for f in found.figures] == [f"{n}.{e}" for n in drawn for e in ("svg", "png")]
    assert all(f.stat().st_size > 1000 for f in found.figures)


def test_one_seed_needs_another(tmp_path: Path) -> None:
    _, db = made(tmp_path, {"learning_rate": [1e-4, 2e-4]}, 1, rising)
    found = report(tmp_path, db)
    assert "one seed, so no interval" in found.sentences[0]
    assert "learning_rate=0.0001 with 0.800, one seed" in found.sentences[1]
    assert "needs two seeds" in found.sentences[1]
    assert "needs two seeds" in found.sentences[2]
    assert found.table["tied"].to_list() == [None, None]


def test_one_config(tmp_path: Path) -> None:
    _, db = made(tmp_path, {"learning_rate": [1e-4]}, 4, rising)
    found = report(tmp_path, db)
    assert found.sentences[0].startswith("With one config, accuracy starts at 0.500")
    assert "nothing to compare" in found.sentences[1]
    assert "widest seed spread over 2 steps is that of the only config at step 10: max/min 1.06" in found.sentences[2]


@pytest.mark.parametrize("status", ["failed", "diverged", "interrupted"])
def test_no_run_with_a_result(tmp_path: Path, status: str) -> None:
    _, db = made(tmp_path, {"learning_rate": [1e-4, 2e-4]}, 2, rising, status)
    found = report(tmp_path, db)
    said = "not finished" if status == "interrupted" else status
    assert found.sentences[0] == f"No run has a result yet; of 4 runs, 4 {said}, left out."
    assert len(found.sentences) == 3
    assert found.table["n"].to_list() == [0, 0]
    assert found.figures == []
    assert "<table" in found.html.read_text()


def test_equal_values_and_zero(tmp_path: Path) -> None:
    _, db = made(tmp_path / "equal", {"learning_rate": [1e-4, 2e-4]}, 3, lambda run, step: 50)
    found = report(tmp_path, db)
    assert "starts at 0.500 before training" in found.sentences[0]
    assert "the other config is statistically tied" in found.sentences[1]
    assert "The seed changes nothing" in found.sentences[2]
    _, db = made(tmp_path / "zero", {"learning_rate": [1e-4, 2e-4]}, 3, lambda run, step: 40 * run.seed if step else 50)
    assert "max/min has no bound, as one seed got nothing right, from 0.000 to 0.800" in report(tmp_path, db).sentences[2]


def test_training_that_only_harms_says_so(tmp_path: Path) -> None:
    _, db = made(tmp_path, {"learning_rate": [1e-4, 2e-4]}, 3, lambda run, step: 60 - 2 * step - run.seed * (step > 0))
    first = report(tmp_path, db).sentences[0]
    assert "starts at 0.600 before training, which is its highest, peaks in training at 0.490" in first


def test_of_several_evaluations_the_first_counts_and_the_page_says_so(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path / "runs", grid={"learning_rate": [1e-4]}, evaluations=(SAMPLED, GREEDY)).write(jobs=1)
    collect(sweep.root, tmp_path / "results.duckdb")
    page = report(tmp_path, tmp_path / "results.duckdb").html.read_text()
    assert f"sampled at temperature 0.7, 2 answers per question ({SAMPLED.eval_id()}; the first of 2 evaluations)" in page


def test_configs_of_different_length_are_compared_at_common_steps_or_at_their_last(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path / "runs", grid={"max_steps": [5, 10]}, seeds=range(3))
    sweep.write_manifest()
    with Journal(sweep, "j-0000") as journal:
        for run in sweep.runs:
            journal.start(run)
            for step in (0, run.config.max_steps):
                right = 50 + step + run.seed
                journal.eval(run, step, GREEDY, bits="1" * right + "0" * (100 - right))
            journal.end(run)
    collect(sweep.root, tmp_path / "results.duckdb")
    found = report(tmp_path, tmp_path / "results.duckdb")
    assert "at each run's last step" in found.sentences[0]
    assert found.sentences[1].startswith("At each run's last step, the other config is not statistically tied")


def test_an_excluded_run_and_an_arm(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path / "runs", grid={"learning_rate": [1e-4, 2e-4]}, seeds=range(4))
    sweep.write_manifest(arm="base")
    sweep.job("j-0000", sweep.runs)
    other = Sweep(tmp_path / "runs", grid={"learning_rate": [1e-4]}, seeds=range(4))
    other.write_manifest(arm="low")
    sweep.mark("exclude", run_id=sweep.runs[0].run_id, reason="bad node")
    collect(sweep.root, tmp_path / "results.duckdb")
    grid = read_grid(tmp_path / "results.duckdb", "demo")
    assert sorted(grid.configs["arm"]) == ["base", "base + low"]
    assert grid.configs["n_planned"].sum() == 7
    assert grid.varied[0] == "arm"


def test_the_page_is_one_small_offline_file(tmp_path: Path) -> None:
    Sweep(tmp_path / "runs").write()
    collect(tmp_path / "runs", tmp_path / "results.duckdb")
    found = report(tmp_path, tmp_path / "results.duckdb")
    page = found.html.read_text()
    assert len(page) < 3_000_000
    assert re.findall(r'(?:src|href)="(?!#|data:)[^"]*"', page) == []
    assert not re.search(r"@import|url\((?!#)", page)
    assert all(sentence.replace("'", "&#39;") in page for sentence in found.sentences)
    body = page[page.index("<body>") :]
    assert "var(--series-1)" in body
    assert "#0072b2" not in body  # every colour of a figure follows the scheme
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    before = page
    assert report(tmp_path, tmp_path / "results.duckdb").html.read_text() == before


def test_what_people_write_is_escaped(tmp_path: Path) -> None:
    sweep = Sweep(
        tmp_path / "runs", grid={"prompt": ["<b>$x_1$</b>", "</script><i>"], "learning_rate": [1e-4, 2e-4]}, seeds=range(2)
    )
    sweep.write(jobs=1)
    collect(sweep.root, tmp_path / "results.duckdb")
    page = report(tmp_path, tmp_path / "results.duckdb").html.read_text()
    assert "<b>" not in page
    assert "</script><i>" not in page


def test_every_table_is_a_file_and_in_the_markdown(tmp_path: Path) -> None:
    Sweep(tmp_path / "runs").write()
    collect(tmp_path / "runs", tmp_path / "results.duckdb")
    stale = tmp_path / "report" / "tables" / "confirmed.csv"
    stale.parent.mkdir(parents=True)
    stale.write_text("of an earlier report\n")
    found = report(tmp_path, tmp_path / "results.duckdb")
    text = (tmp_path / "report" / "report.md").read_text()
    names = {path.stem for path in found.tables if path.suffix == ".csv"}
    assert {"configs", "spread", "against_best", "ranks", "variance", "missing", "missing_counted"} <= names
    assert {path.name for path in (tmp_path / "report" / "tables").iterdir()} == {f"{n}.csv" for n in names}
    page = found.html.read_text()
    for path in found.tables[:-1]:
        rows = pl.read_csv(path)
        title = ABOUT[path.stem][0]
        assert rows.height
        assert f"## {title}\n" in text
        assert f'<table id="{path.stem}">' in page
    assert pl.read_csv(stale.with_name("configs.csv"))["mean"].to_list() == found.table["mean"].to_list()
    for sentence in found.luck:
        assert sentence in text


def test_the_terminal_shows_sentences_and_five_rows(tmp_path: Path) -> None:
    Sweep(tmp_path / "runs").write()
    collect(tmp_path / "runs", tmp_path / "results.duckdb")
    text = io.StringIO()
    print_summary(report(tmp_path, tmp_path / "results.duckdb"), Console(file=text, width=200))
    lines = text.getvalue().splitlines()
    assert lines[0].startswith("Averaged over all 18 configs")
    assert sum(line.startswith("prompt-") for line in lines) == 5
    assert "(13 more rows on the page)" in lines


def test_an_unknown_sweep_writes_nothing(tmp_path: Path) -> None:
    _, db = made(tmp_path, {"learning_rate": [1e-4]}, 1, rising)
    with pytest.raises(UserError, match="no sweep 'dem'"):
        build_report(db, "dem", tmp_path / "report")
    assert not (tmp_path / "report").exists()
