"""`emsweep confirm`: the best configs on fresh seeds, recorded, repeatable, and apart from what chose them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from em_core.journal import RunStatus, SweepDir
from em_core.noop import STEP_SECONDS
from sweeps.confirm import FIRST_FRESH, chosen, expansion_of, fresh_seeds
from sweeps.expand import Config, TrainingConfig
from sweeps.manifest import Manifest, Run, read_manifest
from sweeps.observe import Observer
from sweeps.reconcile import View
from tests.cluster import SlurmCluster
from tests.conftest import Emsweep

SPEC = """
name: plant
base: {model_name_or_path: miniature, prompt: plus, method: noop, max_steps: 4}
arms: {a: {}, b: {}}
axes: {learning_rate: [1.0e-4, 2.0e-4, 3.0e-4], temperature: [0.3, 0.7]}
seeds: 3
evaluate: [{tasks: [two_step_sums], steps: [0, 4], limit: 100}]
resources: {runs_per_job: 4, timeout_min: 5}
"""


def manifest_of(explored: dict[str, list[int]], confirmed: dict[str, list[int]]) -> Manifest:
    m = Manifest()
    for stage, configs in (("explore", explored), ("confirm", confirmed)):
        for c, seeds in configs.items():
            m.configs[c] = Config(c, "m", "p", TrainingConfig(prompt="p", model_name_or_path="miniature"))
            for s in seeds:
                m.runs[f"{c}-s{s}"] = Run(f"{c}-s{s}", c, s, "spec", stage, ["a", "b"])
    return m


def view_of(m: Manifest, **states: RunStatus) -> View:
    found = {r: states.get(run.config_id, RunStatus.COMPLETED) for r, run in m.runs.items()}
    return View(found, (), {}, (), frozenset(), {})


@pytest.mark.fast
def test_what_was_chosen_before_stays_and_the_next_best_follow() -> None:
    none, some = manifest_of({"x": [0], "y": [0], "z": [0]}, {}), manifest_of({"x": [0], "y": [0], "z": [0]}, {"y": [9]})
    assert chosen(none, view_of(none), 2, ["z", "x", "y"]) == ["z", "x"]
    assert chosen(some, view_of(some), 1, ["z", "x", "y"]) == ["y"]
    assert chosen(some, view_of(some), 2, ["z", "x", "y"]) == ["y", "z"]
    assert chosen(some, view_of(some), 9, ["z", "x", "y"]) == ["y", "z", "x"]
    assert chosen(some, view_of(some, z=RunStatus.RUNNING), 1, []) == ["y"], "what is recorded needs no finished sweep"
    assert chosen(none, view_of(none, z=RunStatus.FAILED), 1, ["x", "y"]) == ["x"]


@pytest.mark.fast
def test_fresh_seeds_were_used_by_nothing() -> None:
    assert fresh_seeds(manifest_of({"x": [0, 1]}, {}), 3) == [FIRST_FRESH, FIRST_FRESH + 1, FIRST_FRESH + 2]
    assert fresh_seeds(manifest_of({"x": [0, FIRST_FRESH + 5]}, {}), 2) == [FIRST_FRESH + 6, FIRST_FRESH + 7]
    again = manifest_of({"x": [0]}, {"x": [FIRST_FRESH, FIRST_FRESH + 1]})
    assert fresh_seeds(again, 2) == [FIRST_FRESH, FIRST_FRESH + 1]
    assert fresh_seeds(again, 1) == [FIRST_FRESH]
    assert fresh_seeds(again, 3) == [FIRST_FRESH, FIRST_FRESH + 1, FIRST_FRESH + 2]
    # An edited spec came to use a seed that confirmed before: from then on it is not fresh.
    assert fresh_seeds(manifest_of({"x": [0], "y": [FIRST_FRESH]}, {"x": [FIRST_FRESH, FIRST_FRESH + 1]}), 2) == [
        FIRST_FRESH + 1,
        FIRST_FRESH + 2,
    ]


@pytest.mark.fast
def test_a_config_is_confirmed_in_all_its_arms() -> None:
    made = expansion_of(manifest_of({"x": [0], "y": [0]}, {}), SweepDir(Path("runs"), "plant"), ["y"], [7, 8])
    assert [(w.run_id, w.arm) for w in made.runs] == [("y-s7", "a"), ("y-s8", "a"), ("y-s7", "b"), ("y-s8", "b")]


def rows(emsweep: Emsweep, query: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(emsweep("sql", query, "--format", "json", check=0).stdout)
    return found


EXPLORED = (
    "SELECT config_id, avg(accuracy) AS mean FROM scores WHERE sweep = 'plant' AND arm = 'a' AND step = 4 AND seed < 1000 "
    "GROUP BY ALL ORDER BY mean DESC, config_id"
)
CELLS = "FROM cells WHERE stage = 'explore' ORDER BY ALL"


@pytest.mark.long
@pytest.mark.slow
def test_confirm_trains_the_best_again_on_fresh_seeds_and_repeats_nothing(tmp_path: Path, emsweep: Emsweep) -> None:
    (tmp_path / "plant.yaml").write_text(SPEC)
    ran = emsweep("run", "plant.yaml", "--launcher", "local", check=0).stdout
    assert "confirm plant --top 3 --seeds 16" in ran
    best = [r["config_id"] for r in rows(emsweep, EXPLORED)]
    explored, sentences = rows(emsweep, CELLS), emsweep("report", "plant", check=0).stdout
    said = emsweep("confirm", "plant", "--top", "2", "--seeds", "4", "--launcher", "local", check=0).stdout
    assert said.startswith("plant: 2 configs x 4 seeds = 8 runs, 0 done, ")
    manifest = read_manifest(SweepDir(tmp_path / "runs", "plant"))
    fresh = [r for r in manifest.runs.values() if r.stage == "confirm"]
    assert list(dict.fromkeys(r.config_id for r in fresh)) == best[:2]
    assert sorted({r.seed for r in fresh}) == [FIRST_FRESH + i for i in range(4)]
    assert {tuple(r.arms) for r in fresh} == {("a", "b")}
    by_stage = rows(emsweep, "SELECT stage, why, count(*) AS n FROM sweep_runs GROUP BY ALL ORDER BY ALL")
    assert [(r["stage"], r["why"], r["n"]) for r in by_stage] == [("confirm", "confirm", 16), ("explore", "spec", 36)]

    # Nothing that was said of exploration has changed.
    assert rows(emsweep, CELLS) == explored
    report = emsweep("report", "plant", check=0).stdout
    assert "Confirmed on fresh seeds, " in report
    assert report.partition("\n-")[0] == sentences.partition("\n-")[0]

    # The table's numbers, from SQL.
    means = rows(emsweep, "FROM cells WHERE stage = 'confirm' AND step = 4 AND metric = 'accuracy' AND arm = 'a'")
    assert {r["n"] for r in means} == {4}
    table = said[said.index("On fresh seeds, accuracy at step 4:") :]
    assert all(f"{r['mean']:.3g}" in table and f"{r['t_lo']:.3g}" in table for r in means)

    before = SweepDir(tmp_path / "runs", "plant").manifest.read_bytes()
    again = emsweep("confirm", "plant", "--top", "2", "--seeds", "4", "--launcher", "local", check=0).stdout
    assert again.startswith("plant: 2 configs x 4 seeds = 8 runs, 8 done, 0 workers (local), nothing to do")
    run = emsweep("run", "plant.yaml", "--launcher", "local", check=0).stdout
    assert run.startswith("plant: 6 configs x 3 seeds = 18 runs, 18 done")
    assert SweepDir(tmp_path / "runs", "plant").manifest.read_bytes() == before, "neither command asks for anything new"

    more = emsweep(
        "confirm", "plant", "--top", "3", "--seeds", "5", "--launcher", "local", "--set", "resources.timeout_min=7", check=0
    ).stdout
    assert more.startswith("plant: 3 configs x 5 seeds = 15 runs, 8 done, ")
    fresh = [r for r in read_manifest(SweepDir(tmp_path / "runs", "plant")).runs.values() if r.stage == "confirm"]
    assert set(dict.fromkeys(r.config_id for r in fresh)) == set(best[:3])


@pytest.mark.slow
def test_what_cannot_be_confirmed_is_said_in_one_line(tmp_path: Path, emsweep: Emsweep) -> None:
    (tmp_path / "plant.yaml").write_text(SPEC)
    emsweep("run", "plant.yaml", "--launcher", "local", check=0)
    for args, said in (
        (["plnt"], "unknown sweep `plnt`; did you mean `plant`?"),
        (["plant", "--step", "3"], "--step 3: measured is at 0, 4"),
        (["plant", "--metric", "acuracy"], "no run of plant tells `acuracy` where configs are compared"),
        (["plant", "--set", "temperature=2"], "--set: plant+temperature=2.0 would be another sweep; here only what changes no"),
    ):
        refused = emsweep("confirm", *args, "--launcher", "local", check=2)
        assert refused.stderr.startswith(f"emsweep: {said}")
        assert refused.stderr.count("\n") == 1
    (tmp_path / "plant.yaml").write_text(SPEC.replace("seeds: 3", "seeds: 4"))
    sweep = SweepDir(tmp_path / "runs", "plant")
    lines = sweep.manifest.read_bytes()
    run = next(iter(read_manifest(sweep).runs.values()))
    extra = b'{"kind":"run","run_id":"%s-s9","config_id":"%s","seed":9,"arm":"a","stage":"explore","why":"spec","t":0.0}\n'
    sweep.manifest.write_bytes(lines + extra % (run.config_id.encode(), run.config_id.encode()))
    refused = emsweep("confirm", "plant", "--launcher", "local", check=2)
    assert refused.stderr.startswith("emsweep: 1 of this sweep's runs are not done yet")
    assert not any(r.stage == "confirm" for r in read_manifest(sweep).runs.values())


@pytest.mark.slurm
@pytest.mark.slow
def test_on_slurm_too_and_interrupted_it_goes_on(tmp_path: Path, on_slurm: SlurmCluster, emsweep: Emsweep) -> None:
    (tmp_path / "plant.yaml").write_text(SPEC)
    (tmp_path / "site.toml").write_text("poll_seconds = 1\nfollow_up = false\n")
    emsweep("run", "plant.yaml", "--launcher", "local", check=0)
    env = {**on_slurm.env(), STEP_SECONDS: "0.1"}
    emsweep("confirm", "plant", "--top", "2", "--seeds", "4", "--launcher", "slurm", env=env, check=0)
    view = Observer(SweepDir(tmp_path / "runs", "plant")).look()
    assert view.count(RunStatus.COMPLETED) == 18 + 8
    where = rows(emsweep, "SELECT launcher, count(*) AS n FROM jobs GROUP BY ALL ORDER BY ALL")
    assert [r["launcher"] for r in where] == ["local", "slurm"]
