"""`emsweep compare`: pairing by seed and by what varies on both sides, flips, and errors of one line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from analysis.collect import collect
from analysis.stats.compare import compare
from analysis.versus import versus
from analysis.versus_report import sentences, write_versus
from em_core.errors import UserError
from tests.conftest import Emsweep
from tests.journals import GREEDY, Journal, Sweep
from tests.test_report import made, rising

pytestmark = pytest.mark.slow

RATES = {"learning_rate": [1e-4, 2e-4, 5e-4]}


def test_two_steps_of_a_sweep_are_paired_by_config_and_seed(tmp_path: Path) -> None:
    _, db = made(tmp_path, RATES, 8, rising)
    found = versus(db, "demo@10", "demo@5")
    assert found.key == ("learning_rate",)
    assert (found.a.step, found.b.step, found.alone) == (10, 5, (0, 0))
    c = found.overall
    assert (c.paired, c.n_a, c.difference, c.lo, c.hi) == (True, 8, pytest.approx(-0.1), pytest.approx(-0.1), pytest.approx(-0.1))
    assert found.cells["difference"].to_list() == pytest.approx([-0.1] * 3)
    assert found.flips is not None
    f = found.flips
    assert [int(x.sum()) for x in (f.n, f.right_to_wrong, f.wrong_to_right)] == [2400, 240, 0]
    assert "240 the other way round" in sentences(found)[1]


def test_two_sweeps_with_other_fields_are_matched_where_they_agree(tmp_path: Path) -> None:
    one, db = made(tmp_path, RATES, 8, rising)
    other = Sweep(tmp_path / "runs", "other", {"learning_rate": [1e-4, 2e-4, 9e-4], "weight_decay": [0.5]}, range(4, 12))
    other.write_manifest()
    with Journal(other, "o-0000") as journal:
        for run in other.runs:
            journal.start(run)
            for step in other.steps:
                right = 70 + run.seed + step
                journal.eval(run, step, GREEDY, bits="1" * right + "0" * (100 - right))
            journal.end(run)
    collect(one.root, db)
    found = versus(db, "other", "demo")
    assert found.key == ("learning_rate",)
    assert found.alone == (1, 1)
    assert found.cells["learning_rate"].to_list() == [2e-4, 1e-4]
    by_hand = []
    for seed in range(4, 8):
        runs = [r for r in one.runs if r.seed == seed and r.config.learning_rate < 5e-4]
        by_hand.append(np.mean([80 + seed - rising(r, 10) for r in runs]) / 100)
    assert found.overall.n_a == 4, "seeds 4 to 7 are what both have"
    assert found.overall.difference == pytest.approx(np.mean(by_hand))
    assert "1 of A's and 1 of B's" in sentences(found)[1]


def test_configs_and_arms(tmp_path: Path) -> None:
    sweep, db = made(tmp_path, RATES, 8, rising)
    best, worst = sweep.runs[0].config_id, sweep.runs[-1].config_id
    found = versus(db, best, f"{worst}@5")
    assert (found.key, found.a.step) == ((), 5)
    values = [np.array([rising(r, 5) for r in sweep.runs if r.config_id == c]) / 100 for c in (best, worst)]
    by_hand = compare(*values, np.random.default_rng(0))
    assert found.overall == by_hand
    assert "A is better in 100%" in sentences(found)[0]


def test_one_seed_is_not_taken_for_more(tmp_path: Path) -> None:
    _, db = made(tmp_path, RATES, 1, rising)
    assert "nobody knows whether it is luck" in sentences(versus(db, "demo@5", "demo@0"))[0]


@pytest.mark.long
def test_the_command_its_files_and_its_errors(tmp_path: Path, emsweep: Emsweep) -> None:
    made(tmp_path, RATES, 8, rising)
    said = emsweep("compare", "demo@5", "demo@0", "--out", "out", check=0)
    assert "demo@5 (step 5) has 0.730, demo@0 (step 0) 0.500" in said.stdout.replace("\n", " ")
    assert "| learning_rate | n_a |" in (tmp_path / "out" / "compare.md").read_text()
    assert (tmp_path / "out" / "cells.csv").read_text().count("\n") == 4
    told = json.loads(emsweep("compare", "demo@5", "demo@0", "--json", check=0).stdout)
    assert told["overall"]["difference"] == pytest.approx(0.23)
    for words, message in (
        (("demmo", "demo"), "'demmo' is neither a sweep, SWEEP:ARM, nor a config; sweeps here: demo"),
        (("demo@7", "demo"), "demo@7: nothing was measured at step 7; it was at 0, 5, 10"),
        (("demo:x", "demo"), "demo has no arm 'x'; it has: none"),
        (("demo@x", "demo"), "demo@x: a step is a number, as in demo@10"),
        (("demo", "demo", "--task", "y"), "demo and demo have no evaluation y in common"),
    ):
        refused = emsweep("compare", *words, check=2)
        assert refused.stderr.strip() == f"emsweep: {message}"


def test_arms_whose_fields_differ(tmp_path: Path) -> None:
    """What only one arm varies is averaged over; what both vary is paired."""
    first = Sweep(tmp_path / "runs", grid={"learning_rate": [1e-4, 2e-4]}, seeds=range(4))
    first.write_manifest(arm="plain")
    first.job("j-0000", first.runs)
    second = Sweep(tmp_path / "runs", grid={"learning_rate": [1e-4, 2e-4], "weight_decay": [0.1, 0.2, 0.3]}, seeds=range(4))
    second.write_manifest(arm="decay")
    second.job("j-0001", second.runs)
    collect(first.root, tmp_path / "results.duckdb")
    found = versus(tmp_path / "results.duckdb", "demo:decay", "demo:plain")
    assert found.key == ("learning_rate",)
    assert (found.overall.paired, found.overall.n_a, found.cells.height) == (True, 4, 2)
    with pytest.raises(UserError, match="nothing to pair"):
        versus(tmp_path / "results.duckdb", "demo:decay", other(tmp_path))


def other(folder: Path) -> str:
    sweep = Sweep(folder / "runs", "far", {"learning_rate": [7e-4, 8e-4]}, range(4))
    sweep.write_manifest()
    sweep.job("f-0000", sweep.runs)
    collect(sweep.root, folder / "results.duckdb")
    return "far"


def test_files_are_complete(tmp_path: Path) -> None:
    _, db = made(tmp_path, RATES, 8, rising)
    page, cells = write_versus(versus(db, "demo@5", "demo@0"), tmp_path / "out")
    assert page.read_text().startswith("# demo@5 against demo@0\n")
    assert cells.is_file()
