"""A seed budget: looks decide from the journals alone, the same again after any crash, and what they decide stays."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.grid import read_grid
from analysis.stats import t_interval
from analysis.stats.sequential import look_interval, stopped_at
from em_core.journal import RunStatus, SweepDir, append_batch, read_records
from em_core.noop import FAULT, STEP_SECONDS
from sweeps.looks import Verdict, judge, look, read_scores
from sweeps.manifest import Manifest, Run, read_manifest
from sweeps.observe import Observer
from sweeps.seeds import SeedBudget, Until
from tests.cluster import SlurmCluster
from tests.conftest import Emsweep
from tests.test_follow import until
from tests.test_kill import kill, numbers, processes_of, start

LOOKS, LAST = (3, 6, 12), 12
SPEC = """
name: plant
base: {model_name_or_path: miniature, prompt: plus, method: noop, max_steps: 4}
axes: {learning_rate: [1.0e-4, 2.0e-4, 3.0e-4], temperature: [0.3, 0.7]}
seeds: {min: 3, max: 12, until: {half_width: 0.07}}
evaluate: [{tasks: [two_step_sums], steps: [0, 4], limit: 100}]
"""
PATIENT = "retries: {stop_after: 0}\n"


def budget(half_width: float = 0.05, **until: Any) -> SeedBudget:
    return SeedBudget(min=3, max=12, until=Until(half_width=half_width, **until))


def runs_of(n: int, given: int = 0) -> list[Run]:
    """A config's runs on seeds 0 to n-1, the last `given` of them by a look."""
    return [Run(f"c-s{s}", "c", s, "seed-budget" if s >= n - given else "spec", "explore", [None]) for s in range(n)]


WIDE, NARROW, NAN = [0.1, 0.5, 0.9], [0.50, 0.51, 0.52], float("nan")


@pytest.mark.fast
@pytest.mark.parametrize(
    ("n", "given", "final", "values", "expected"),
    [
        (3, 0, True, NARROW, (Verdict.ENOUGH, 3)),
        (3, 0, True, WIDE, (Verdict.MORE, 6)),
        (3, 0, False, [], (Verdict.WAITS, 3)),
        (2, 0, True, WIDE, (Verdict.WAITS, 2)),
        (3, 0, True, [], (Verdict.NOTHING, 3)),
        (3, 0, True, [NAN, NAN], (Verdict.NOTHING, 3)),
        (3, 0, True, [0.5, NAN, NAN], (Verdict.MORE, 6)),
        (6, 3, True, WIDE * 2, (Verdict.MORE, 12)),
        (12, 6, True, [0.1, 0.9] * 6, (Verdict.ALL, 12)),
        (12, 6, True, NARROW * 4, (Verdict.ENOUGH, 12)),
        (5, 2, True, NARROW, (Verdict.MORE, 6)),  # a look's batch of which a crash left a part: its word stands
        (5, 2, False, [], (Verdict.MORE, 6)),
        (8, 0, True, NARROW, (Verdict.ENOUGH, 8)),  # an edited spec had eight
        (8, 0, True, WIDE, (Verdict.MORE, 12)),
    ],
)
def test_the_verdict_on_a_config(n: int, given: int, final: bool, values: list[float], expected: tuple[Verdict, int]) -> None:
    assert judge(budget(), runs_of(n, given), final, values) == expected


def seeds_of(manifest: Manifest) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for r in manifest.runs.values():
        found.setdefault(r.config_id, []).append(r.seed)
    return found


def scores_of(sweep: SweepDir, manifest: Manifest) -> dict[str, dict[int, float]]:
    """Accuracy at step 4 by config and seed, read by another road than the looks'."""
    found: dict[str, dict[int, float]] = {}
    for path in sweep.all_journals():
        for r in read_records(path):
            if r["kind"] == "eval" and r["step"] == 4:
                run = manifest.runs[r["run_id"]]
                found.setdefault(run.config_id, {})[run.seed] = r["accuracy"]
    return found


@pytest.mark.long
@pytest.mark.slow
def test_every_config_gets_the_seeds_that_its_own_scores_ask_for(tmp_path: Path, emsweep: Emsweep) -> None:
    (tmp_path / "plant.yaml").write_text(SPEC)
    said = emsweep("run", "plant.yaml", "--launcher", "local", check=0).stdout
    sweep = SweepDir(tmp_path / "runs", "plant")
    manifest = read_manifest(sweep)
    scores = scores_of(sweep, manifest)
    expected = {c: LOOKS[stopped_at([s[i] for i in range(len(s))], 0.07, LOOKS)] for c, s in scores.items()}
    assert {c: sorted(s) for c, s in seeds_of(manifest).items()} == {c: list(range(n)) for c, n in expected.items()}
    assert len(set(expected.values())) >= 2, "the looks told the configs apart"
    total = sum(expected.values())
    assert f"Seed budget: {total} runs instead of 72 ({1 - total / 72:.0%} saved); " in said
    assert {r.why for r in manifest.runs.values() if r.seed >= 3} == {"seed-budget"}

    before = sweep.manifest.read_bytes()
    again = emsweep("run", "plant.yaml", "--launcher", "local", check=0).stdout
    assert "nothing to do" in again
    assert sweep.manifest.read_bytes() == before, "nothing more is asked for, nothing left the spec"
    assert (
        f"6 configs x 3 to 12 seeds = {total} of at most 72 runs: {total} done" in emsweep("plan", "plant.yaml", check=0).stdout
    )
    status = emsweep("status", "plant", check=0).stdout
    counts = Counter(expected.values())
    have = ", ".join(f"{n} config{'s' * (n != 1)} with {k}" for k, n in sorted(counts.items()))
    assert f"seeds 3 to 12 until ±0.07: {have}; {total} of at most 72 runs" in status
    row = emsweep("sql", "SELECT seed_looks, half_width FROM sweeps", "--format", "json", check=0).stdout
    assert '"seed_looks":[3,6,12],"half_width":0.07' in row.replace(" ", "")

    # The report's intervals are those of the look at which a config stopped, wider than plain ones.
    grid = read_grid(tmp_path / "results.duckdb", "plant")
    for i, config_id in enumerate(grid.configs["config_id"]):
        values = grid.accuracy(4)[i]
        told, plain = grid.interval(i, values), t_interval(values)
        assert told == look_interval(values, [3, 6, 12].index(expected[config_id]), [3, 6, 12])
        assert told.hi - told.lo > plain.hi - plain.lo

    # A config that leaves the spec takes its further seeds with it, and brings them back.
    (tmp_path / "plant.yaml").write_text(SPEC.replace("temperature: [0.3, 0.7]", "temperature: [0.3]"))
    emsweep("run", "plant.yaml", "--launcher", "local", check=0)
    left = read_manifest(sweep)
    assert len(left.runs) - len(left.excluded) == sum(
        expected[c] for c in expected if left.configs[c].training.temperature == 0.3
    )
    (tmp_path / "plant.yaml").write_text(SPEC)
    emsweep("run", "plant.yaml", "--launcher", "local", check=0)
    assert read_manifest(sweep).excluded == {}
    assert len(read_manifest(sweep).runs) == total


@pytest.mark.slow
def test_plan_prices_the_budget_between_its_ends(tmp_path: Path, emsweep: Emsweep) -> None:
    (tmp_path / "plant.yaml").write_text(SPEC)
    said = emsweep("plan", "plant.yaml", "--launcher", "local", check=0).stdout
    assert "6 configs x 3 to 12 seeds = 18 of at most 72 runs: 18 new" in said
    assert "if every config needs 12 seeds" in said
    told = json.loads(emsweep("plan", "plant.yaml", "--launcher", "local", "--json", check=0).stdout)
    assert (told["seeds"], told["max_seeds"], told["runs"]) == (3, 12, 18)
    assert told["most_device_hours"][1] == pytest.approx(4 * told["device_hours"][1])
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_failed_runs_block_no_look_and_a_config_without_results_gets_no_more(tmp_path: Path, emsweep: Emsweep) -> None:
    (tmp_path / "plant.yaml").write_text(SPEC.replace("half_width: 0.07", "half_width: 0.0001") + PATIENT)
    emsweep("run", "plant.yaml", "--launcher", "local", env={FAULT: "bug:0.45"}, check=1)
    sweep = SweepDir(tmp_path / "runs", "plant")
    manifest, view = read_manifest(sweep), Observer(sweep).look()
    assert view.count(RunStatus.FAILED) > 3
    assert view.count(RunStatus.FAILED, RunStatus.COMPLETED) == len(manifest.runs)
    for config, seeds in seeds_of(manifest).items():
        first = [view.states[f"{config}-s{s}"] for s in range(3)]
        assert len(seeds) == (LAST if RunStatus.COMPLETED in first else 3), "the width asked for is never reached"

    everything = tmp_path / "all"
    everything.mkdir()
    (everything / "plant.yaml").write_text(SPEC + PATIENT)
    emsweep("run", "all/plant.yaml", "--launcher", "local", "--root", "all/runs", env={FAULT: "bug"}, check=1)
    assert len(read_manifest(SweepDir(everything / "runs", "plant")).runs) == 18


@pytest.mark.slow
def test_a_metric_that_no_run_tells_stops_the_command_in_one_line(tmp_path: Path, emsweep: Emsweep) -> None:
    (tmp_path / "plant.yaml").write_text(SPEC.replace("half_width: 0.07", "half_width: 0.07, metric: acuracy"))
    done = emsweep("run", "plant.yaml", "--launcher", "local", check=1)
    message = "seeds.until.metric: no run tells `acuracy`; they tell accuracy, completion_length, seconds, truncated"
    assert done.stderr == f"emsweep: {message}\n"
    assert len(read_manifest(SweepDir(tmp_path / "runs", "plant")).runs) == 18


@pytest.mark.slow
def test_scores_of_runs_that_another_sweep_trained_count(tmp_path: Path, emsweep: Emsweep) -> None:
    (tmp_path / "other.yaml").write_text(SPEC.replace("name: plant", "name: other").replace(SPEC.splitlines()[4], "seeds: 3"))
    (tmp_path / "plant.yaml").write_text(SPEC)
    emsweep("run", "other.yaml", "--launcher", "local", check=0)
    said = emsweep("run", "plant.yaml", "--launcher", "local", check=0).stdout
    sweep = SweepDir(tmp_path / "runs", "plant")
    trained = {a.run_id for t in Observer(sweep).tries() for a in t.attempts}
    assert "18 done, " in said.splitlines()[0]
    assert all(int(r.rsplit("-s", 1)[1]) >= 3 for r in trained), "seeds that the other sweep has are not trained again"
    manifest = read_manifest(sweep)
    runs = {r.run_id: 4 for r in manifest.runs.values()}
    assert dict(read_scores(sweep, runs, manifest.measured[0][0])).keys() == runs.keys()


@pytest.mark.long
@pytest.mark.slow
def test_a_look_is_the_same_when_it_is_taken_again_and_half_a_decision_is_completed(tmp_path: Path, emsweep: Emsweep) -> None:
    """The manifest is cut within the batch that a look wrote, as a kill in mid-write would."""
    (tmp_path / "plant.yaml").write_text(SPEC)
    emsweep("run", "plant.yaml", "--launcher", "local", check=0)
    sweep = SweepDir(tmp_path / "runs", "plant")
    lines = sweep.manifest.read_bytes().splitlines(keepends=True)
    calm = seeds_of(read_manifest(sweep))
    granted = [i for i, line in enumerate(lines) if b'"seed-budget"' in line]
    rng = np.random.default_rng(1)
    for cut in (granted[0], granted[1], granted[-1], *rng.choice(granted, 2)):
        sweep.manifest.write_bytes(b"".join(lines[:cut]) + lines[cut][:20])
        emsweep("run", "plant.yaml", "--launcher", "local", check=0)
        assert {c: sorted(s) for c, s in seeds_of(read_manifest(sweep)).items()} == {c: sorted(s) for c, s in calm.items()}
        assert len(read_manifest(sweep).runs) == sum(map(len, calm.values()))
        view = Observer(sweep).look()
        assert all(x.verdict in (Verdict.ENOUGH, Verdict.ALL) for x in look(budget(0.07), read_manifest(sweep), view, sweep))


@pytest.mark.long
@pytest.mark.slow
def test_killed_between_and_within_looks_nothing_is_lost_or_doubled(tmp_path: Path) -> None:
    calm, storm = tmp_path / "calm", tmp_path / "storm"
    for folder in (calm, storm):
        folder.mkdir()
        (folder / "plant.yaml").write_text(SPEC)
    done = start(calm, "local", {})
    done.communicate(timeout=120)
    assert done.returncode == 0
    expected = numbers(calm / "runs")
    rng = np.random.default_rng(3)
    kills = 0
    process: subprocess.Popen[str] = start(storm, "local", {STEP_SECONDS: "0.05"})
    while kills < 8:
        try:
            process.communicate(timeout=float(rng.uniform(1.5, 3.5)))
        except subprocess.TimeoutExpired:
            kills += bool(kill(processes_of(storm) if kills % 2 else [process.pid]))
            process.wait(timeout=30)
        if process.returncode == 0:
            break
        process = start(storm, "local", {STEP_SECONDS: "0.05"})
    while process.returncode != 0:
        process.communicate(timeout=200)
        if process.returncode:
            process = start(storm, "local", {})
    assert kills >= 3, "the sweep was over before it was disturbed"
    sweep = SweepDir(storm / "runs", "plant")
    assert numbers(storm / "runs") == expected
    records = [r for r in read_records(sweep.manifest) if r["kind"] == "run"]
    assert len(records) == len({r["run_id"] for r in records}) == len(expected)


@pytest.mark.slow
def test_a_run_that_a_person_excluded_is_no_seed_that_is_missing(tmp_path: Path, emsweep: Emsweep) -> None:
    (tmp_path / "plant.yaml").write_text(SPEC)
    emsweep("run", "plant.yaml", "--launcher", "local", "--set", "seeds=3", check=0)
    sweep = SweepDir(tmp_path / "runs", "plant+seeds=3")
    run_id = next(iter(read_manifest(sweep).runs))
    append_batch(sweep.manifest, [("exclude", {"run_id": run_id, "reason": "bad node", "t": 0.0})])
    found = {x.config_id: x for x in look(budget(10.0), read_manifest(sweep), Observer(sweep).look(), sweep)}
    assert {x.verdict for x in found.values()} == {Verdict.ENOUGH}
    assert {len(x.runs) for x in found.values()} == {3}


@pytest.mark.slurm
@pytest.mark.slow
def test_on_slurm_the_follow_up_job_takes_the_looks(tmp_path: Path, on_slurm: SlurmCluster, emsweep: Emsweep) -> None:
    text = SPEC + "resources: {runs_per_job: 12, slots_per_job: 2, timeout_min: 5}\n"
    (tmp_path / "calm").mkdir()
    (tmp_path / "calm" / "plant.yaml").write_text(text)
    emsweep("run", "calm/plant.yaml", "--launcher", "local", "--root", "calm/runs", "--db", "calm/results.duckdb", check=0)
    expected = seeds_of(read_manifest(SweepDir(tmp_path / "calm" / "runs", "plant")))
    (tmp_path / "plant.yaml").write_text(text)
    (tmp_path / "site.toml").write_text(f'poll_seconds = 1\non_done = "cat > {tmp_path}/told-done"\n')
    said = emsweep("submit", "plant.yaml", env=on_slurm.env(), check=0).stdout
    assert "plant: 6 configs x 3 to 12 seeds = 18 of at most 72 runs" in said
    until(300, "the follow-ups did not finish the sweep", lambda: (tmp_path / "told-done").exists())
    sweep = SweepDir(tmp_path / "runs", "plant")
    assert {c: sorted(s) for c, s in seeds_of(read_manifest(sweep)).items()} == {c: sorted(s) for c, s in expected.items()}
    runs = sum(map(len, expected.values()))
    until(5, "the command's output", lambda: "Seed budget: " in (tmp_path / "told-done").read_text())
    assert (tmp_path / "told-done").read_text().startswith(f"plant: {runs} of {runs} runs done. Seed budget: ")
    kinds = [r["kind"] for r in read_records(sweep.submissions)]
    assert kinds.count("follow_up") >= len(LOOKS), "a follow-up after every look's jobs"
