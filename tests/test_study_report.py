"""A study in the database, as frames, in sentences and on the page: against numbers made by hand, and on one that Optuna made."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from analysis.collect import collect
from analysis.figures.study import history
from analysis.figures.style import style
from analysis.grid import read_grid
from analysis.queries import sql
from analysis.report import ABOUT, build_report, summarize
from analysis.stats import t_interval
from analysis.study import FEWEST, Study, read_study
from analysis.study_sentences import study_doubts, study_sentences
from tests.journals import Sweep
from tests.studies import ACCURACY, FRESH, StudySweep

pytestmark = pytest.mark.slow
SPACE = {"learning_rate": {"low": 1e-5, "high": 1e-3, "log": True}, "method": {"choices": ["em", "grpo"]}}
RATES = (1e-4, 9e-4, 2e-4, 1e-3, 3e-4, 4e-4)


def collected(made: StudySweep) -> Path:
    db = made.root.parent / "results.duckdb"
    collect(made.root, db)
    return db


def found(made: StudySweep) -> Study:
    study = read_study(collected(made), "demo")
    assert study is not None
    return study


def by_hand(folder: Path, direction: str = "maximize") -> StudySweep:
    """Six trials of two seeds. 2 ends before 1; 1 is pruned with a lucky seed and one stopped within; 3 diverged; 5 runs."""
    made = StudySweep(folder / "runs", objectives=[{**ACCURACY, "direction": direction}], space=SPACE, seeds=2, n_trials=6)
    ids = [made.ask({"learning_rate": rate, "method": "grpo" if i == 4 else "em"})[1] for i, rate in enumerate(RATES)]
    ends = {0: (60, 62), 2: (70, 74), 4: (71, 71)}
    for number in (0, 2):
        for seed, end in enumerate(ends[number]):
            made.train(ids[number], seed, (50, 55, end))
        made.tell(number, "complete", [sum(ends[number]) / 200], 2)
    made.train(ids[1], 0, (50, 80, 90))
    made.train(ids[1], 1, (50, 20), "cancelled")
    made.tell(1, "pruned", [0.9], 1, "behind")
    made.train(ids[3], 0, (50, 10), "diverged")
    made.tell(3, "diverged", [None], 0, "seed 0 diverged")
    for seed, end in enumerate(ends[4]):
        made.train(ids[4], seed, (50, 55, end))
    made.tell(4, "complete", [0.71], 2)
    made.train(ids[5], 0, (50, 55, 60))
    for number, fresh in ((2, (70, 66, 68)), (4, (72, 73, 71))):
        for i, end in enumerate(fresh):
            made.train(ids[number], FRESH + i, (50, 55, end), stage="confirm")
    made.train(ids[4], FRESH + 3, (50, 10), "diverged", stage="confirm")
    return made


def test_the_tables_say_what_the_manifest_says(tmp_path: Path) -> None:
    made = by_hand(tmp_path)
    db = collected(made)
    [study] = sql(db, "FROM studies").rows(named=True)
    assert study["objectives"] == [ACCURACY]
    assert json.loads(study["space"]) == SPACE
    assert [study[c] for c in ("sampler", "pruner", "within", "seeds_per_trial", "n_trials")] == ["tpe", "racing", "median", 2, 6]
    trials = sql(db, "FROM trials ORDER BY number")
    assert trials["state"].to_list() == ["complete", "pruned", "complete", "diverged", "complete", "running"]
    assert trials["value"].to_list() == [0.61, 0.9, 0.72, None, 0.71, None]
    assert trials["values"].to_list()[3:] == [[None], [0.71], None]
    assert trials["seeds"].to_list() == [2, 1, 2, 0, 2, None]
    assert trials["why"].to_list() == [None, "behind", None, "seed 0 diverged", None, None]
    assert json.loads(trials["params"][4]) == {"learning_rate": 3e-4, "method": "grpo"}
    assert sql(db, "SELECT count(*) FROM trials WHERE told > asked").item() == 5
    made.record("study", objectives=[ACCURACY], space=SPACE, sampler="random", seeds_per_trial=2, n_trials=9)
    made.tell(5, "failed", [None], 0, "a bug")
    collect(made.root, db)
    assert sql(db, "SELECT sampler, n_trials, created < (SELECT min(asked) FROM trials) FROM studies").row(0) == (
        "random",
        9,
        True,
    )
    assert sql(db, "SELECT state, why FROM trials WHERE number = 5").row(0) == ("failed", "a bug")


def test_the_best_so_far_is_of_trials_with_all_their_seeds(tmp_path: Path) -> None:
    study = found(by_hand(tmp_path))
    ended = study.trials.filter(pl.col("trials_so_far").is_not_null()).sort("trials_so_far")
    assert ended["number"].to_list() == [0, 2, 1, 3, 4], "in the order in which they ended"
    assert ended["runs_so_far"].to_list() == [2, 4, 6, 7, 9], "a stopped run is a run"
    assert ended["best_so_far"].to_list() == [0.61, 0.72, 0.72, 0.72, 0.72]
    assert study.runs == 10
    assert study.complete["number"].to_list() == [2, 4, 0]
    assert study.trials["sd"].to_list() == pytest.approx(
        [np.std([0.6, 0.62], ddof=1), None, np.std([0.7, 0.74], ddof=1), None, 0, None]
    )
    assert study.ranked["number"].to_list() == [2, 4, 0, 1, 3, 5]


def test_less_may_be_better(tmp_path: Path) -> None:
    study = found(by_hand(tmp_path, "minimize"))
    assert study.complete["number"].to_list() == [0, 4, 2]
    assert study.trials.filter(pl.col("number") == 4)["best_so_far"].item() == 0.61
    assert study.confirmed["number"].to_list() == [2, 4]
    assert study.front["number"].to_list() == [0, 4]


def test_fresh_seeds_stand_beside_those_that_chose(tmp_path: Path) -> None:
    table = found(by_hand(tmp_path)).confirmed
    assert table["number"].to_list() == [4, 2], "the best on fresh seeds first"
    assert table["selected"].to_list() == pytest.approx([0.71, 0.72])
    assert table["mean"].to_list() == pytest.approx([0.72, 0.68])
    assert table["difference"].to_list() == pytest.approx([0.01, -0.04])
    assert table["n"].to_list() == [3, 3]
    assert table["lost"].to_list() == [1, 0], "a diverged one has no value, and is counted"
    expected = t_interval([0.70, 0.66, 0.68])
    assert table.row(1, named=True)["lo"] == pytest.approx(expected.lo)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        # seed 0 takes the step at which seed 1 is highest (5: .80), and the other way round (10: .70)
        ("best", [(0.60 + 0.50) / 2]),
        ("area", [((0.5 + 0.6) / 2 + (0.6 + 0.7) / 2) / 4 + ((0.5 + 0.8) / 2 + (0.8 + 0.5) / 2) / 4]),
    ],
)
def test_values_are_the_objectives(tmp_path: Path, rule: str, expected: list[float]) -> None:
    made = StudySweep(tmp_path / "runs", objectives=[{**ACCURACY, "rule": rule}], space=SPACE, seeds=2)
    number, cid = made.ask({"learning_rate": 1e-4, "method": "em"})
    for seed, curve in enumerate([(50, 60, 70), (50, 80, 50)]):
        made.train(cid, seed, curve)
        made.train(cid, FRESH + seed, curve, stage="confirm")
    made.tell(number, "complete", expected, 2)
    row = found(made).confirmed.row(0, named=True)
    assert row["selected"] == pytest.approx(expected[0])
    assert row["mean"] == pytest.approx(expected[0])


def test_the_fronts(tmp_path: Path) -> None:
    study = found(by_hand(tmp_path / "one"))
    assert study.front["number"].to_list() == [2, 4], "the highest, and the steadiest"
    length = {**ACCURACY, "metric": "completion_length", "direction": "minimize"}
    made = StudySweep(tmp_path / "two" / "runs", objectives=[ACCURACY, length], space=SPACE, seeds=2)
    for rate, values in ((1e-4, [0.6, 10.0]), (2e-4, [0.7, 20.0]), (3e-4, [0.65, 30.0])):
        number, cid = made.ask({"learning_rate": rate, "method": "em"})
        for seed in (0, 1):
            made.train(cid, seed, (50, 55, round(100 * values[0])))
        made.tell(number, "complete", [*values], 2)
    assert found(made).front.select("number", "value", "value_2").rows() == [(1, 0.7, 20.0), (0, 0.6, 10.0)]
    assert study_sentences(found(made))[0].startswith(
        "Of 3 trials (6 runs), 2 are on the front between accuracy at the last step and completion_length at the last step"
    )


def test_of_several_objectives_each_is_confirmed(tmp_path: Path) -> None:
    early = {**ACCURACY, "step": 5, "direction": "minimize"}
    made = StudySweep(tmp_path / "runs", objectives=[ACCURACY, early], space=SPACE, seeds=2)
    curves = {1e-4: ((50, 40, 60), (50, 42, 62)), 2e-4: ((50, 55, 70), (50, 59, 74))}
    fresh = {1e-4: ((50, 45, 58), (50, 49, 62)), 2e-4: ((50, 61, 69),)}
    for rate, found_ in curves.items():
        number, cid = made.ask({"learning_rate": rate, "method": "em"})
        for seed, curve in enumerate(found_):
            made.train(cid, seed, curve)
        for seed, curve in enumerate(fresh[rate]):
            made.train(cid, FRESH + seed, curve, stage="confirm")
        made.tell(number, "complete", [sum(c[i] for c in found_) / 200 for i in (2, 1)], 2)
    study = found(made)
    wanted = ("number", "selected", "mean", "n", "selected_2", "mean_2", "n_2", "difference_2", "lo_2")
    better, earlier = study.confirmed.select(wanted).rows()
    assert better == pytest.approx((1, 0.72, 0.69, 1, 0.57, 0.61, 1, 0.04, None))
    assert earlier == pytest.approx((0, 0.61, 0.60, 2, 0.41, 0.47, 2, 0.06, t_interval([0.45, 0.49]).lo))
    sentence = study_sentences(study)[0]
    assert "trial 1 (learning_rate=0.0002, method=em) has 0.720 and 0.570, and 0.690 and 0.610 on 1 fresh seed" in sentence
    assert f"has 0.610 and 0.410, and 0.600 [{t_interval([0.58, 0.62]).lo:.3f}" in sentence


def test_trials_beyond_bounds_that_were_narrowed_since_still_count(tmp_path: Path) -> None:
    made = by_hand(tmp_path)
    narrow = {**SPACE, "learning_rate": {"low": 1e-5, "high": 2e-5, "log": True}}
    before = found(made)
    made.record("study", objectives=[ACCURACY], space=narrow, sampler="tpe", seeds_per_trial=2, n_trials=6)
    after = found(made)
    assert after.space == narrow
    assert after.front["number"].to_list() == before.front["number"].to_list() == [2, 4]
    assert len(after._optuna().trials) == after.valued.height


def test_two_trials_of_one_config_share_its_runs(tmp_path: Path) -> None:
    made = StudySweep(tmp_path / "runs", space=SPACE, seeds=2)
    for _ in range(2):
        number, cid = made.ask({"learning_rate": 1e-4, "method": "em"})
        made.tell(number, "complete", [0.6], 2)
    for seed in (0, 1):
        made.train(cid, seed, (50, 55, 60))
    study = found(made)
    assert study.trials["runs"].to_list() == [2, 0]
    assert study.judged(read_grid(made.root.parent / "results.duckdb", "demo")).configs.height == 1


def test_the_sentences(tmp_path: Path) -> None:
    said = summarize(collected(by_hand(tmp_path)), "demo")
    interval = t_interval([0.70, 0.66, 0.68])
    assert said.sentences == [
        "Of 6 trials (10 runs), the best by accuracy at the last step is trial 2 (learning_rate=0.0002, method=em): selected "
        f"with 0.720 over 2 seeds, it has 0.680 [{interval.lo:.3f}, {interval.hi:.3f}] on 3 fresh seeds.",
        "Of the 2 confirmed trials, trial 4 is best on the fresh seeds; the other cannot be told from it (t-tests paired by "
        "seed, Holm at 5%); being chosen flattered them by 0.015 on average.",
        "Of 6 trials, 3 had all of their 2 seeds; 1 was pruned, after 2 of 2 runs, 1 diverged and 1 is not finished; only "
        "complete ones are compared.",
    ]
    assert said.table["number"].to_list() == [2, 4, 0, 1, 3, 5]


def test_before_anything_is_known(tmp_path: Path) -> None:
    made = StudySweep(tmp_path / "runs", space=SPACE)
    report = build_report(collected(made), "demo", tmp_path / "report")
    assert report.sentences == [
        "No trial is complete yet.",
        "There is no best trial to name.",
        "No trial has been asked for yet.",
    ]
    assert report.figures == []
    _, cid = made.ask({"learning_rate": 1e-4, "method": "em"})
    made.train(cid, 0, (50, 55, 60))
    report = summarize(collected(made), "demo")
    assert report.sentences[2] == "Of 1 trial, 0 had all of their 4 seeds; 1 is not finished."
    made.tell(0, "pruned", [0.6], 1)
    report = build_report(collected(made), "demo", tmp_path / "report")
    assert report.sentences[0] == "No trial is complete yet."
    assert "history.svg" in [f.name for f in report.figures]


def test_a_sweep_is_no_study(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path / "runs", grid={"learning_rate": [1e-4]}).write()
    collect(sweep.root, tmp_path / "results.duckdb")
    assert read_study(tmp_path / "results.duckdb", "demo") is None


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return collected(StudySweep(tmp_path_factory.mktemp("searched") / "runs").search())


def test_importance_finds_the_field_that_matters_and_is_not_told_from_few(searched: Path, tmp_path: Path) -> None:
    study = read_study(searched, "demo")
    assert study is not None
    assert study.importance["field"][0] == "learning_rate"
    assert study.importance["importance"].sum() == pytest.approx(1)
    assert set(study.importance["field"]) == {"learning_rate", "temperature", "num_generations", "method"}, (
        "kl_coef is conditional"
    )
    assert study.importance.equals(read_study(searched, "demo").importance), "the same at every reading"  # type: ignore[union-attr]
    few = found(by_hand(tmp_path))
    assert few.importance.height == 0
    [doubt] = study_doubts(few)
    assert doubt == f"Which fields matter is not told: that takes {FEWEST} trials with a value, and there are 4."


def test_an_enqueued_point_beside_the_space_is_no_trial_of_it(tmp_path: Path) -> None:
    made = StudySweep(tmp_path / "runs", space=SPACE, seeds=1)
    for i in range(FEWEST + 1):
        number, _ = made.ask({"learning_rate": 1e-2 if not i else i * 1e-5, "method": ("em", "grpo")[i % 2]}, "enqueued")
        made.tell(number, "complete", [0.5 + i / 100], 1)
    study = found(made)
    assert study.importance["field"].to_list() == ["learning_rate", "method"]
    assert study.front.height == 0, "one seed has no sd"


def test_the_page_of_a_search(searched: Path, tmp_path: Path) -> None:
    report = build_report(searched, "demo", tmp_path / "report")
    drawn = [f.stem for f in report.figures if f.suffix == ".svg"]
    assert drawn[:6] == ["history", "trial_curves", "parallel_coordinates", "slices", "importance", "pareto_front"]
    assert not {"curves", "heatmaps", "best_of_k"} & set(drawn), "those take configs for a grid"
    tables = [f.stem for f in report.tables if f.suffix == ".csv"]
    assert tables[:5] == [name for name in ABOUT if name in ("trials", "importance", "pareto_front", "configs", "confirmed")]
    page = report.html.read_text()
    assert "mathdefault" not in page
    assert "A study: 30 trials, 91 runs, judged by accuracy at the last step" in page
    ties = pl.read_csv(tmp_path / "report" / "tables" / "against_best.csv")
    study = read_study(searched, "demo")
    assert study is not None
    assert set(ties["trial"]) == set(study.complete["number"]), "pruned trials are compared with none"
    assert study.best is not None
    assert ties["trial"][0] == study.best["number"]


def test_trials_that_were_measured_once_have_no_curves(tmp_path: Path) -> None:
    """Where the length of training is searched, each trial's last step is another: points, and no line between them."""
    made = StudySweep(tmp_path / "runs", space=SPACE, seeds=2)
    for i, rate in enumerate(RATES[:3]):
        number, cid = made.ask({"learning_rate": rate, "method": "em"})
        made.steps = (5 + i,)
        for seed in range(2):
            made.train(cid, seed, (60 + i,))
        made.tell(number, "complete", [0.6 + i / 100], 2)
    drawn = [f.stem for f in build_report(collected(made), "demo", tmp_path / "report").figures]
    assert "history" in drawn
    assert "trial_curves" not in drawn


def test_trials_without_a_config_or_a_value(tmp_path: Path) -> None:
    """Values that cannot go together make no config, and a trial that was stopped within a run has no value."""
    made = by_hand(tmp_path)
    made.record("trial", number=6, config_id=None, params={"learning_rate": 1e-4, "method": "em"}, origin="sampled")
    made.record("told", number=6, state="failed", values=None, seeds=0, why="cannot go together")
    made.number = 7
    number, cid = made.ask({"learning_rate": 7e-4, "method": "em"})
    made.train(cid, 0, (50, 20), "cancelled")
    made.record("told", number=number, state="pruned", values=None, seeds=0, why="seed 0 pruned at step 5: median")
    made.record("trial", number=8, config_id=None, params={"learning_rate": 1e-5, "method": "grpo"}, origin="sampled")
    made.record("told", number=8, state="excluded", values=None, seeds=0, why="excluded by the spec: method is grpo")
    study = found(made)
    assert study.trials.filter(pl.col("number") >= 6).select("value", "runs").rows() == [(None, 0), (None, 1), (None, 0)]
    assert study.best is not None
    assert study.best["number"] == 2
    assert "2 were pruned, after 3 of 4 runs, 1 diverged, 1 failed, 1 excluded and 1 is not finished" in study_sentences(study)[2]
    with style():
        drawn = history(study, tmp_path)
    assert "stopped within a run" in drawn.svg
    assert "dashes at the foot" in drawn.caption
    assert "crosses at the foot: diverged, failed and excluded" in drawn.caption


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_a_collapsed_trial_does_not_flatten_the_history(tmp_path: Path, direction: str) -> None:
    made = StudySweep(tmp_path / "runs", objectives=[{**ACCURACY, "direction": direction}], space=SPACE, seeds=1)
    for i, value in enumerate([0.9, 0.91, 0.92, 0.9, 0.93, 0.94, 0.91, 0.92]):
        made.ask({"learning_rate": (i + 1) * 1e-5, "method": "em"})
        made.tell(i, "complete", [value if direction == "maximize" else 1 - value], 1)
    made.ask({"learning_rate": 1e-3, "method": "em"})
    made.tell(8, "pruned", [0.1 if direction == "maximize" else 0.9], 1)
    with style():
        caption = history(found(made), tmp_path).caption
    assert ("Triangles: 1 trial below 0.8" if direction == "maximize" else "Triangles: 1 trial above 0.1") in caption
