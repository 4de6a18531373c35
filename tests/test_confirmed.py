"""Confirmation is apart from exploration, in SQL, in the report's grid and in the polars function."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from analysis.collect import collect
from analysis.confirmed import best_explored, confirmed
from analysis.grid import read_grid
from analysis.queries import Frames, load
from analysis.stats import t_interval
from tests.journals import GREEDY, Sweep

pytestmark = pytest.mark.fast
FRESH = (1_000_000, 1_000_001, 1_000_002)
EVAL = GREEDY.eval_id()


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Frames:
    folder = tmp_path_factory.mktemp("demo")
    grid = {"learning_rate": [1e-4, 5e-4], "temperature": [0.3, 1.2]}
    Sweep(folder / "runs", grid=grid, seeds=(0, 1, 2, 3, *FRESH), fresh=FRESH).write()
    collect(folder / "runs", folder / "results.duckdb")
    return load("demo", folder / "results.duckdb")


def values(frames: Frames, config: str, fresh: bool) -> np.ndarray:
    """Accuracies at step 10 of a config's completed runs, by hand: from the seeds, not from the stage."""
    rows = frames.scores.filter((pl.col("config_id") == config) & (pl.col("step") == 10) & (pl.col("status") == "completed"))
    return rows.filter(pl.col("seed").is_in(FRESH) == fresh)["accuracy"].to_numpy()


def test_cells_of_the_two_stages_are_never_mixed(frames: Frames) -> None:
    cells = frames.cells.filter((pl.col("metric") == "accuracy") & (pl.col("step") == 10))
    assert sorted(cells["stage"].unique()) == ["confirm", "explore"]
    assert cells.group_by("stage").agg(pl.col("n_planned").sum()).sort("stage")["n_planned"].to_list() == [12, 16]
    for cell in cells.iter_rows(named=True):
        x = values(frames, cell["config_id"], cell["stage"] == "confirm")
        assert (cell["n"], cell["mean"]) == (len(x), pytest.approx(x.mean()))


def test_the_reports_grid_holds_exploration_only(frames: Frames) -> None:
    grid = read_grid(frames.db, "demo")
    assert grid.seeds == (0, 1, 2, 3)
    assert grid.configs["n_planned"].to_list() == [4, 4, 4, 4]


def test_confirmed_means_are_of_fresh_seeds_alone(frames: Frames) -> None:
    found = confirmed(frames.scores, EVAL, 10)
    assert found.height == 4
    assert found["mean"].is_sorted(descending=True)
    for row in found.iter_rows(named=True):
        fresh, chosen = (values(frames, row["config_id"], f) for f in (True, False))
        expected = t_interval(fresh)
        assert (row["n"], row["n_selected"]) == (len(fresh), len(chosen))
        assert (row["mean"], row["lo"], row["hi"]) == pytest.approx((expected.mean, expected.lo, expected.hi))
        assert row["difference"] == pytest.approx(fresh.mean() - chosen.mean())


def test_the_ranking_looks_at_exploration_only(frames: Frames) -> None:
    configs = frames.scores["config_id"].unique().to_list()
    means = {c: values(frames, c, False).mean() for c in configs}
    assert best_explored(frames.scores, EVAL, 10) == sorted(configs, key=lambda c: -means[c])
    lengths = best_explored(frames.scores, EVAL, "last", "completion_length")
    assert lengths == sorted(configs), "equal values: by name"
    assert best_explored(frames.scores, EVAL, 10, "no such metric") == []


def test_without_confirmation_there_is_an_empty_table_and_one_seed_has_no_interval(frames: Frames) -> None:
    explored = frames.scores.filter(pl.col("stage") == "explore")
    nothing = confirmed(explored, EVAL, 10)
    assert nothing.height == 0
    assert "difference" in nothing.columns
    one = frames.scores.filter((pl.col("stage") == "explore") | (pl.col("seed") == FRESH[2]))
    alone = confirmed(one, EVAL, 10)
    assert set(alone["n"]) == {1}
    assert alone["lo"].null_count() == alone.height > 0
