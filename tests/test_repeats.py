"""Repeats: the same run again, exactly equal on a CPU, and no replicate to anything but the noise floor."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal
from scipy.stats import chi2

from analysis.collect import collect
from analysis.confirmed import best_explored
from analysis.evidence import weigh
from analysis.luck import luck
from analysis.queries import load, sql
from analysis.repeats import noise_sentence, read_repeats
from analysis.report import build_report
from analysis.versus import versus
from analysis.versus_report import sentences
from em_core.config import RUN_ID
from em_core.errors import UserError
from em_core.journal import RunStatus, SweepDir, append_batch, read_records
from sweeps.choose import choose
from sweeps.confirm import chosen
from sweeps.expand import Expansion, expand
from sweeps.looks import Verdict, look
from sweeps.manifest import Manifest, extend, read_manifest
from sweeps.plan import make_plan, size_text, spec_fields
from sweeps.reconcile import View
from sweeps.seeds import SeedBudget, Until
from sweeps.spec import Spec, load_spec
from sweeps.standing import seed_counts
from tests.conftest import Emsweep
from tests.journals import SAMPLED, Journal, Run, Sweep
from tests.test_cli import call
from tests.test_report import made

SPEC = """\
name: plant
base: {model_name_or_path: miniature, prompt: plus, method: noop, max_steps: 4}
axes: {learning_rate: [1.0e-4, 2.0e-4]}
seeds: 2
repeats: 3
evaluate: [{tasks: [two_step_sums], steps: [0, 4], limit: 100}]
"""
BUDGET = "{min: 2, max: 6, until: {half_width: 0.001}}"


def read(folder: Path, text: str, *sets: str) -> tuple[Spec, Expansion]:
    (folder / "plant.yaml").write_text(text)
    spec = load_spec(folder / "plant.yaml", sets)
    return spec, expand(spec)


def wanted(folder: Path, text: str) -> Manifest:
    """The manifest after the spec said so."""
    spec, expansion = read(folder, text)
    return extend(SweepDir(folder / "runs", "plant"), expansion, "spec", spec_fields(spec))


# -- what a spec asks for -------------------------------------------------------------------------------------------


@pytest.mark.fast
def test_repeat_0_is_the_run_as_ever_and_the_others_stand_beside_it(tmp_path: Path) -> None:
    _, one = read(tmp_path, SPEC.replace("repeats: 3\n", ""))
    _, three = read(tmp_path, SPEC)
    assert [w.run_id for w in three.runs if not w.repeat] == [w.run_id for w in one.runs]
    assert one.configs == three.configs
    first = one.runs[0].run_id
    assert [w.run_id for w in three.runs[:4]] == [first, f"{first}-r1", f"{first}-r2", one.runs[1].run_id]
    assert all(RUN_ID.fullmatch(w.run_id) for w in three.runs)
    assert not RUN_ID.fullmatch(f"{first}-r0")
    assert not RUN_ID.fullmatch("miniature-s2")


@pytest.mark.fast
@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("repeats: 0", "plant.yaml:5: repeats: 0 must be greater than or equal to 1"),
        ("repeats: two", "plant.yaml:5: repeats: 'two' is not a whole number"),
        ("repeats: 1000000", "axes: the spec expands to 4,000,000 runs; the limit is 2,000,000"),
        ("repeat: 3", "plant.yaml:5: repeat: unknown key `repeat`; did you mean `repeats`?"),
    ],
)
def test_mistakes(tmp_path: Path, said: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        read(tmp_path, SPEC.replace("repeats: 3", said))
    assert message in str(error.value)


@pytest.mark.fast
def test_on_the_command_line_it_makes_another_sweep(tmp_path: Path) -> None:
    spec, expansion = read(tmp_path, SPEC, "repeats=2")
    assert (spec.sweep, len(expansion.runs)) == ("plant+repeats=2", 8)


@pytest.mark.fast
def test_the_plan_says_it(tmp_path: Path) -> None:
    spec, expansion = read(tmp_path, SPEC)
    assert size_text(make_plan(spec, expansion, tmp_path / "runs", "local")) == "2 configs x 2 seeds x 3 repeats = 12 runs"
    spec, expansion = read(tmp_path, SPEC.replace("seeds: 2", f"seeds: {BUDGET}"))
    said = size_text(make_plan(spec, expansion, tmp_path / "runs", "local"))
    assert said == "2 configs x 2 to 6 seeds and 3 repeats of the first 2 = 12 of at most 20 runs"


@pytest.mark.fast
def test_repeats_that_leave_the_spec_are_marked_and_come_back(tmp_path: Path) -> None:
    for seeds in ("2", BUDGET):
        text = SPEC.replace("seeds: 2", f"seeds: {seeds}")
        assert not wanted(tmp_path, text).excluded
        gone = wanted(tmp_path, text.replace("repeats: 3", "repeats: 2")).excluded
        assert len(gone) == 4
        assert all(run.endswith("-r2") for run in gone)
        assert not wanted(tmp_path, text).excluded


@pytest.mark.fast
def test_seed_counts_and_confirmation_do_not_know_repeats(tmp_path: Path) -> None:
    manifest = wanted(tmp_path, SPEC.replace("seeds: 2", f"seeds: {BUDGET}"))
    assert [r.repeat for r in manifest.runs.values()][:3] == [0, 1, 2]
    counts = seed_counts(manifest)
    assert counts is not None
    assert counts.configs == {2: 2}
    states = {r: RunStatus.QUEUED if run.repeat else RunStatus.COMPLETED for r, run in manifest.runs.items()}
    view = View(states, (), {}, (), frozenset(), {})
    assert chosen(manifest, view, 1, list(manifest.configs)) == list(manifest.configs)[:1], "nobody waits for a repeat"


@pytest.mark.fast
def test_a_seed_budget_looks_at_replicates_alone(tmp_path: Path) -> None:
    """Every run of repeat 0 failed; of the repeats one is still running and one has completed."""
    manifest = wanted(tmp_path, SPEC.replace("seeds: 2", f"seeds: {BUDGET}"))
    after = {0: RunStatus.FAILED, 1: RunStatus.RUNNING, 2: RunStatus.COMPLETED}
    view = View({r: after[run.repeat] for r, run in manifest.runs.items()}, (), {}, (), frozenset(), {})
    budget = SeedBudget(min=2, max=6, until=Until(half_width=0.001))
    looked = look(budget, manifest, view, SweepDir(tmp_path / "runs", "plant"))
    assert [(x.verdict, len(x.runs), x.next_) for x in looked] == [(Verdict.NOTHING, 2, 2)] * 2


@pytest.mark.fast
def test_they_can_be_named(tmp_path: Path) -> None:
    manifest = wanted(tmp_path, SPEC)
    root, run = tmp_path / "runs", next(iter(manifest.runs))
    [second] = choose(root, "plant", ["repeat=2"])
    assert sorted(second.runs) == sorted(r for r in manifest.runs if r.endswith("-r2"))
    [itself] = choose(root, f"{run}-r1")
    assert itself.runs == {f"{run}-r1"}
    with pytest.raises(UserError, match="unknown repeat `3`"):
        choose(root, "plant", ["repeat=3"])
    with pytest.raises(UserError, match="CONFIG_ID-sSEED-rREPEAT"):
        choose(root, f"{run}-r7")


# -- no replicate ---------------------------------------------------------------------------------------------------


def written(folder: Path, repeats: int) -> Path:
    """A sweep of which everything that is a repeat says something else, and one diverged and one failed."""
    sweep = Sweep(
        folder / "runs",
        grid={"learning_rate": [1e-4, 5e-4], "temperature": [0.3, 1.2]},
        seeds=(0, 1, 2, 3, 1_000_000),
        fresh=(1_000_000,),
        evaluations=(SAMPLED,),
        repeats=repeats,
    )
    sweep.write_manifest()
    lost = {sweep.runs[repeats].run_id: "diverged", sweep.runs[-repeats].run_id: "failed"}
    if repeats > 1:
        lost |= {sweep.runs[1].run_id: "diverged", sweep.runs[-1].run_id: "failed"}
    with Journal(sweep, "j-0000") as journal:
        for run in sweep.runs:
            if not run.repeat:
                journal.train(run, lost.get(run.run_id, "completed"))
                continue
            journal.start(run)
            for step in sweep.steps:
                journal.eval(run, step, SAMPLED, bits="1" * 100)
            journal.metrics(run, range(1, 8))
            journal.end(run, lost.get(run.run_id, "completed"))
        journal.write("job_end", reason="done", t=1_800_000_500.0)
    db = folder / "results.duckdb"
    collect(sweep.root, db)
    return db


@pytest.mark.long
@pytest.mark.slow
def test_with_repeats_everything_else_stays_as_it_was(tmp_path: Path) -> None:
    dbs = [written(tmp_path / str(n), n) for n in (1, 3)]
    counted = [sql(db, "SELECT count(*) AS n, count(DISTINCT (config_id, seed)) AS s FROM runs").row(0) for db in dbs]
    assert counted == [(20, 20), (60, 20)]
    without, with_ = (load("demo", db) for db in dbs)
    for name in ("runs", "scores", "cells", "metrics", "answers"):
        assert_frame_equal(getattr(without, name), getattr(with_, name))
    views = "SELECT (SELECT count(*) FROM answers), (SELECT count(*) FROM scores), (SELECT sum(n) FROM cells)"
    assert sql(dbs[0], views).row(0) == sql(dbs[1], views).row(0)
    assert without.repeats.height == 0
    assert with_.repeats["run_id"].n_unique() == 60

    one, three = (weigh(db, "demo") for db in dbs)
    assert one is not None
    assert three is not None
    assert one.variance.components[-1].name == "decoding", "the answers are looked at, too"
    tables, more = one.tables(), three.tables()
    assert more.keys() - tables.keys() == {"noise_floor"}
    for name, table in tables.items():
        assert_frame_equal(table, more[name])
    assert luck(three)[:-1] == luck(one)
    assert best_explored(without.scores, SAMPLED.eval_id(), 10) == best_explored(with_.scores, SAMPLED.eval_id(), 10)
    ten, zero = "demo@10", "demo@0"
    assert sentences(versus(dbs[0], ten, zero)) == sentences(versus(dbs[1], ten, zero))

    reports = [build_report(db, "demo", db.parent / "report") for db in dbs]
    assert reports[0].sentences == reports[1].sentences
    pages = [r.html.with_name("report.md").read_text() for r in reports]
    noise = re.compile(
        r"\n- Hardware noise[^\n]*|## Noise of the hardware\n.*?\n\n(?=##)|## Noise of the hardware\n.*", re.DOTALL
    )
    assert len(noise.findall(pages[1])) == 2
    assert noise.sub("", pages[1]).strip() == pages[0].strip()
    assert "Noise of the hardware" in reports[1].html.read_text()
    assert all("20 runs of 4 configs" not in r.html.read_text() and "16 runs of 4 configs" in r.html.read_text() for r in reports)


@pytest.mark.slow
def test_a_manifest_of_before_has_no_repeats(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path / "runs", grid={"learning_rate": [1e-4]}, seeds=range(2)).write(jobs=1)
    records = [{k: v for k, v in r.items() if k != "repeat"} for r in read_records(sweep.dir.manifest)]
    sweep.dir.manifest.unlink()
    append_batch(sweep.dir.manifest, [(r.pop("kind"), r) for r in records])
    collect(sweep.root, tmp_path / "results.duckdb")
    assert sql(tmp_path / "results.duckdb", "SELECT repeat FROM runs")["repeat"].to_list() == [0, 0]
    assert [r.repeat for r in read_manifest(sweep.dir).runs.values()] == [0, 0]


# -- the noise floor ------------------------------------------------------------------------------------------------


def noisy(folder: Path, gpus: tuple[str | None, ...], right: dict[int, int], lost: tuple[int, int] | None = None) -> Path:
    """One config, two seeds, a repeat per entry of `gpus`, in a job on that machine. Of 100 answers `right[repeat]` are
    right at step 10 (the first ones), 50 before. `lost` (seed, repeat) diverged."""
    sweep = Sweep(folder / "runs", grid={"learning_rate": [1e-4]}, seeds=range(2), evaluations=(SAMPLED,), repeats=len(gpus))
    sweep.write_manifest()
    for repeat, gpu in enumerate(gpus):
        with Journal(sweep, f"j-{repeat:04d}") as journal:
            for run in (r for r in sweep.runs if r.repeat == repeat):
                _start(journal, run, gpu)
                for step in sweep.steps:
                    n = right[repeat] if step == 10 else 50
                    journal.eval(run, step, SAMPLED, bits="1" * n + "0" * (100 - n))
                journal.metrics(run, range(1, 11))
                journal.end(run, "diverged" if (run.seed, run.repeat) == lost else "completed")
    collect(sweep.root, folder / "results.duckdb")
    return folder / "results.duckdb"


def _start(journal: Journal, run: Run, gpu: str | None) -> None:
    about = {"run_id": run.run_id, "attempt": 0, "config_id": run.config_id, "seed": run.seed, "mode": "train", "slot": 0}
    kind = {"device": gpu or "cpu", "dtype": "bfloat16" if gpu else "float32", "threads": 1, "resumed_step": 0}
    journal.write("run_start", **about, **kind, t=1.0, measures=[[SAMPLED.eval_id(), [0, 5, 10]]])


def said(db: Path, sweep: str = "demo") -> tuple[str, Any]:
    found = weigh(db, sweep)
    assert found is not None
    assert found.repeats is not None
    return noise_sentence(found.repeats), found


@pytest.mark.slow
def test_only_what_was_computed_alike_is_compared(tmp_path: Path) -> None:
    """Two of four repeats ran on other machines; of the other two 60 and 64 answers were right, for either seed."""
    db = noisy(tmp_path, ("H100", None, "H100", "A100"), {0: 60, 1: 10, 2: 64, 3: 90})
    sentence, found = said(db)
    assert (found.repeats.left_out, found.repeats.hardware, found.repeats.times) == (4, ("H100",), (2, 2))
    row = found.tables()["noise_floor"].filter(pl.col("step") == 10).row(0, named=True)
    assert (row["groups"], row["runs"], row["largest"], row["flipped"]) == (2, 4, pytest.approx(0.04), 0.04)
    assert row["sd"] == pytest.approx(0.04 / 2**0.5)
    assert (row["lo"], row["hi"]) == pytest.approx([row["sd"] * (2 / chi2.ppf(q, 2)) ** 0.5 for q in (0.975, 0.025)])
    assert found.tables()["noise_floor"]["sd"].to_list() == [0.0, 0.0, row["sd"]]
    at_10 = read_repeats(db, found.grid)
    assert at_10 is not None
    assert sentence.startswith(
        "Hardware noise at step 10: sd 0.028 [0.015, 0.178] over 4 runs, 2 of each config and seed (H100), "
    )
    assert "at most 0.040 apart; 4% of the answers flip" in sentence
    assert sentence.endswith("; left out: 4 computed by other hardware, software or settings.")


@pytest.mark.slow
def test_equal_ones_are_bit_identical_and_one_that_diverged_is_told(tmp_path: Path) -> None:
    sentence, _ = said(noisy(tmp_path / "a", (None, None), {0: 60, 1: 60}))
    assert (
        sentence
        == "Hardware noise at step 10: sd 0.000 over 4 runs, 2 of each config and seed (CPU): every repeat is bit-identical."
    )
    sentence, _ = said(noisy(tmp_path / "b", (None, None, None), {0: 60, 1: 60, 2: 60}, lost=(1, 2)))
    assert "over 5 runs, 2 to 3 of each config and seed" in sentence
    assert sentence.endswith("bit-identical; completed in some repeats and diverged in others: 1 seed.")
    sentence, _ = said(noisy(tmp_path / "c", ("A100", "H100"), {0: 60, 1: 60}))
    assert sentence.startswith("Hardware noise cannot be told: no two completed repeats of a run are comparable; left out: 4 ")


@pytest.mark.slow
def test_equal_scores_of_different_training_are_not_called_identical(tmp_path: Path) -> None:
    db = noisy(tmp_path, (None, None), {0: 60, 1: 60})
    sweep = SweepDir(tmp_path / "runs", "demo")
    path = sweep.journal("j-0001", 0)
    lines = path.read_text().splitlines()
    at = next(i for i, line in enumerate(lines) if '"metrics"' in line and '"step":7' in line)
    lines[at] = lines[at].replace('"grad_norm":1.0', '"grad_norm":1.0000001')
    path.write_text("\n".join(lines) + "\n")
    db.unlink()
    (tmp_path / ".results.duckdb.collector").unlink()
    collect(tmp_path / "runs", db)
    assert "no score or answer differs, but training metrics do, from step 7 on" in said(db)[0]


@pytest.mark.slow
def test_without_repeats_nothing_is_said(tmp_path: Path) -> None:
    _, db = made(tmp_path, {"learning_rate": [1e-4, 2e-4]}, 3, lambda run, step: 50 + step + run.seed)
    found = weigh(db, "demo")
    assert found is not None
    assert found.repeats is None
    assert "noise_floor" not in found.tables()


# -- through the whole of it ----------------------------------------------------------------------------------------

TRAINED = """\
name: plant
base: {model_name_or_path: miniature, prompt: plus, max_steps: 3, num_generations: 4, max_completion_length: 16, temperature: 0.7}
axes: {learning_rate: [3.0e-4, 2.0e-3]}
seeds: 2
repeats: 2
evaluate: [{tasks: [two_step_sums], steps: [0, 3], temperature: 0.7, limit: 40}]
"""


def differing(db: Path, table: str, value: str, key: str) -> tuple[int, int, int]:
    """(pairs of repeat 0 and 1, how many of them differ, distinct values over all runs)."""
    results = "WHERE NOT ends_with(a.name, 'seconds')" if table == "metrics" else ""
    pair = f"b.run_id = a.run_id || '-r1' AND {' AND '.join(f'b.{k} = a.{k}' for k in key.split())}"
    query = (
        f"SELECT count(*), count(*) FILTER (a.{value} IS DISTINCT FROM b.{value}), count(DISTINCT a.{value}) "
        f"FROM {table} AS a JOIN {table} AS b ON {pair} {results}"
    )
    pairs, differ, kinds = sql(db, query).row(0)
    return pairs, differ, kinds


@pytest.mark.long
@pytest.mark.slow
def test_on_a_cpu_repeats_are_bit_identical(tmp_path: Path, emsweep: Emsweep) -> None:
    """Whatever attempt, slot and neighbours a run has: it would fail if any draw were keyed by one of them."""
    (tmp_path / "plant.yaml").write_text(TRAINED)
    ran = emsweep("run", "plant.yaml", "--launcher", "local", "-y", check=0).stdout
    assert ran.startswith("plant: 2 configs x 2 seeds x 2 repeats = 8 runs, ")
    db = tmp_path / "results.duckdb"
    pairs, differ, kinds = differing(db, "metrics", "value", "step name")
    assert (pairs >= 4 * 3 * 5, differ) == (True, 0)
    assert kinds > pairs / 3, "seeds and configs do differ"
    pairs, differ, kinds = differing(db, "evals", "outcomes", "step eval_id")
    assert (pairs, differ) == (8, 0)
    assert kinds > 4
    assert sql(db, "SELECT n FROM cells WHERE metric = 'accuracy'")["n"].to_list() == [2] * 4
    [noise] = [s for s in build_report(db, "plant", tmp_path / "report").luck if s.startswith("Hardware noise")]
    assert noise.endswith(": sd 0.000 over 8 runs, 2 of each config and seed (CPU): every repeat is bit-identical.")


NOISY = """\
import json, os, random, sys, time
run = json.load(sys.stdin)
noise = random.Random(f"{time.time_ns()} {os.getpid()}").gauss(0, 0.03)
luck = random.Random(run["seed"]).gauss(0, 0.1)
print(json.dumps({"kind": "eval", "step": 2, "task": "held_out", "accuracy": run["params"]["a"] + luck + noise}))
"""


@pytest.mark.slow
def test_a_trainer_with_noise_of_its_own_shows_how_much(tmp_path: Path, emsweep: Emsweep) -> None:
    """Simulated: a trainer that does not keep to its seed. 2 configs x 4 seeds x 3 repeats: 16 degrees of freedom."""
    (tmp_path / "train.py").write_text(NOISY)
    (tmp_path / "plant.yaml").write_text(
        "name: plant\nbase: {method: external, command: python train.py, max_steps: 2}\naxes: {params.a: [1, 2]}\n"
        "seeds: 4\nrepeats: 3\nevaluate: [{tasks: [held_out], steps: [2]}]\n"
    )
    emsweep("run", "plant.yaml", "--launcher", "local", "-y", check=0)
    sentence, found = said(tmp_path / "results.duckdb", "plant")
    floor = found.repeats.floor
    assert (floor.groups, floor.runs, floor.df) == (8, 24, 16)
    assert f"sd {floor.sd:.3f} [{floor.lo:.3f}, {floor.hi:.3f}] over 24 runs, 3 of each config and seed (CPU)" in sentence
    assert "of the variance between seeds is this noise" in sentence
    # The 95% interval misses in one run of twenty, and a test may not fail by chance: these ends, in one of five million.
    widest = [floor.sd * (16 / chi2.ppf(q, 16)) ** 0.5 for q in (1 - 1e-7, 1e-7)]
    assert widest[0] < 0.03 < widest[1]
    assert floor.sd < 0.07, "not the luck of the seeds"


@pytest.mark.slow
def test_show_exclude_merge_pack_and_gc_know_them(
    tmp_path: Path, emsweep: Emsweep, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plant.yaml").write_text(SPEC)
    emsweep("run", "plant.yaml", "--launcher", "local", check=0)
    run = next(iter(read_manifest(SweepDir(tmp_path / "runs", "plant")).runs))

    def asked(*args: str) -> str:
        assert call(*args) == 0
        return " ".join(capsys.readouterr().out.split())

    assert f"{run}-r2 completed seed 0, repeat 2 in plant" in asked("show", f"{run}-r2")
    assert call("logs", f"{run}-r2") == 2
    assert f"nothing was logged for {run}-r2" in capsys.readouterr().err
    assert "plant: 12 runs, " in asked("merge", "runs", "--root", "elsewhere")
    asked("collect", "--root", "elsewhere", "--db", "elsewhere.duckdb")
    same = "SELECT run_id, repeat, status FROM runs ORDER BY ALL"
    assert_frame_equal(sql("results.duckdb", same), sql("elsewhere.duckdb", same))
    assert sql("elsewhere.duckdb", "FROM repeats WHERE repeat = 2 AND status = 'completed' AND step = 4").height == 4
    asked("pack", "plant", "-o", "plant.zip")
    assert "plant: 4 runs excluded" in asked("exclude", "plant", "--where", "repeat=2", "--reason", "slow node")
    assert "over 8 runs, 2 of each config and seed" in asked("report", "plant")
    asked("gc", "--yes")
    plan = asked("plan", "plant.yaml", "--launcher", "local")
    assert "2 configs x 2 seeds x 3 repeats = 12 runs: 8 done, 4 excluded" in plan
    assert "train 0 runs" in plan
