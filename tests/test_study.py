"""Studies from the command line to the results: asked, judged over seeds, told as what they are, confirmed, continued."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
import pytest

from analysis.queries import sql
from em_core.attempts import Attempt
from em_core.config import run_id
from em_core.journal import RunStatus, SweepDir
from em_core.noop import FAULT, STEP_SECONDS
from sweeps import cli
from sweeps.confirm import FIRST_FRESH
from sweeps.manifest import CONFIRM, EXPLORE, Manifest, read_manifest
from sweeps.observe import Observer
from sweeps.search import WarmStart
from sweeps.space import space_of
from sweeps.spec import load_spec
from sweeps.study_run import plan_study
from sweeps.warm_start import points_of

pytestmark = pytest.mark.xdist_group("study")  # one worker: the finished study is made once

SPEC = """\
name: {name}
base: {{model_name_or_path: miniature, prompt: plus, method: noop, max_steps: 4}}
search:
  space:
    learning_rate: {{low: 1.0e-5, high: 1.0e-3, log: true}}
    num_iterations: [1, 2, 3]
    epsilon: {{low: 0.1, high: 0.3, when: {{num_iterations: [1, 3]}}}}
  sampler: random
  seeds_per_trial: {seeds}
  n_trials: {trials}
  confirm: {{top: {top}, seeds: 3}}
  workers: 2
  {keys}
evaluate: [{{tasks: [two_step_sums], steps: [0, 1, 2, 3, 4], limit: 60}}]
resources: {{timeout_min: 5}}
{more}
"""


@dataclass
class Folder:
    """A person's folder with specs, runs and results."""

    path: Path
    env: dict[str, str] = field(default_factory=dict)

    def write(self, name: str = "s", keys: str = "", more: str = "", **said: Any) -> str:
        text = SPEC.format(**{"name": name, "seeds": 2, "trials": 4, "top": 0, "keys": keys, "more": more, **said})
        (self.path / f"{name}.yaml").write_text(text)
        return f"{name}.yaml"

    def command(self, *args: str) -> list[str]:
        return [sys.executable, "-m", "sweeps.cli", *args]

    def environment(self, env: dict[str, str] | None = None) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent), **self.env, **(env or {})}

    def call(self, *args: str, check: int = 0, env: dict[str, str] | None = None) -> str:
        """What a command prints on stdout, or on stderr where it fails as it should."""
        done = subprocess.run(
            self.command(*args), cwd=self.path, env=self.environment(env), capture_output=True, text=True, timeout=120,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert done.returncode == check, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stderr if check else done.stdout

    def study(self, spec: str, *args: str, check: int = 0, env: dict[str, str] | None = None) -> str:
        return self.call("study", spec, "--launcher", "local", "-y", *args, check=check, env=env)

    def sweep(self, name: str = "s") -> SweepDir:
        return SweepDir(self.path / "runs", name)

    def manifest(self, name: str = "s") -> Manifest:
        return read_manifest(self.sweep(name))

    def attempts(self, name: str = "s") -> list[Attempt]:
        return [a for t in Observer(self.sweep(name)).tries() for a in t.attempts]

    def rows(self, query: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.call("sql", query, "--format", "json"))
        return found

    def optuna(self, name: str = "s") -> optuna.Study:
        backend = optuna.storages.journal.JournalFileBackend(str(self.sweep(name).study))
        return optuna.load_study(study_name=name, storage=optuna.storages.JournalStorage(backend))


def states(manifest: Manifest) -> list[str]:
    """What was told of each trial, in order of their numbers."""
    return [manifest.told[n]["state"] for n in sorted(manifest.told)]


def runs_of(manifest: Manifest, number: int, seeds: Sequence[int]) -> list[str]:
    return [run_id(manifest.trials[number]["config_id"], s) for s in seeds]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """A study that is over: four trials of two seeds, the best one confirmed on three fresh ones."""
    folder = Folder(tmp_path_factory.mktemp("study"), {"XDG_CONFIG_HOME": str(tmp_path_factory.getbasetemp() / "no-config")})
    folder.study(folder.write(top=1))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


@pytest.fixture
def again(done: Folder, tmp_path: Path) -> Folder:
    """A copy of the finished study, to go on with."""
    shutil.copytree(done.path, tmp_path / "copy", symlinks=True)
    return Folder(tmp_path / "copy", done.env)


# -- one study, looked at from all sides ----------------------------------------------------------------------------


@pytest.mark.slow
def test_every_run_is_trained_once_and_every_trial_told(done: Folder) -> None:
    manifest, attempts = done.manifest(), done.attempts()
    assert states(manifest) == ["complete"] * 4
    assert Counter(a.run_id for a in attempts) == dict.fromkeys(manifest.runs, 1)
    assert len(manifest.runs) == 4 * 2 + 3
    assert {a.status for a in attempts} == {RunStatus.COMPLETED}
    assert [manifest.trials[n]["origin"] for n in range(4)] == ["sampled"] * 4
    assert {tuple(runs_of(manifest, n, range(2))) for n in range(4)} <= {
        (a, b) for a in manifest.runs for b in manifest.runs if a < b
    }


@pytest.mark.slow
def test_a_trial_s_value_is_the_mean_of_its_seeds_in_the_database(done: Folder) -> None:
    manifest = done.manifest()
    query = (
        "SELECT config_id, avg(accuracy) AS mean, count(*) AS n FROM scores WHERE sweep = 's' AND step = 4 AND seed < 1000 "
        "GROUP BY ALL"
    )
    found = {r["config_id"]: r for r in done.rows(query)}
    for number, told in manifest.told.items():
        row = found[manifest.trials[number]["config_id"]]
        assert told["values"] == [pytest.approx(row["mean"])]
        assert (told["seeds"], row["n"]) == (2, 2)
    study = done.optuna()
    assert [t.values for t in study.trials] == [manifest.told[n]["values"] for n in range(4)]
    assert study.trials[0].intermediate_values.keys() == {0, 1}


@pytest.mark.slow
def test_a_conditional_field_is_in_a_config_only_where_its_condition_holds(done: Folder) -> None:
    manifest = done.manifest()
    for trial in manifest.trials.values():
        training, point = manifest.configs[trial["config_id"]].training, trial["params"]
        assert ("epsilon" in point) == (point["num_iterations"] != 2)
        assert training.epsilon == point.get("epsilon", 0.2)
        assert training.learning_rate == point["learning_rate"]
    assert {"epsilon" in t["params"] for t in manifest.trials.values()} == {True, False}


@pytest.mark.slow
def test_the_best_trial_is_confirmed_on_fresh_seeds(done: Folder) -> None:
    manifest = done.manifest()
    best = max(manifest.told.values(), key=lambda r: r["values"][0])["number"]
    fresh = [r for r in manifest.runs.values() if r.stage == CONFIRM]
    assert {r.config_id for r in fresh} == {manifest.trials[best]["config_id"]}
    assert sorted(r.seed for r in fresh) == [FIRST_FRESH + i for i in range(3)]
    stages = done.rows("SELECT stage, why, count(*) AS n FROM sweep_runs WHERE sweep = 's' GROUP BY ALL ORDER BY ALL")
    assert [(r["stage"], r["why"], r["n"]) for r in stages] == [("confirm", "confirm", 3), ("explore", "study", 8)]


@pytest.mark.long
@pytest.mark.slow
def test_the_commands_for_sweeps_know_a_study(done: Folder) -> None:
    assert "11" in done.call("status", "s")
    assert "completed" in done.call("show", runs_of(done.manifest(), 0, [0])[0])
    assert "On fresh seeds" in done.call("confirm", "s", "--top", "1", "--seeds", "3", "--launcher", "local")
    assert "page: " in done.call("report", "s")
    assert done.call("gc", "s") is not None
    assert len(done.attempts()) == 11, "nothing was trained by any of them"


# -- going on -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_same_command_does_nothing(done: Folder) -> None:
    before = done.sweep().manifest.read_bytes()
    done.study("s.yaml")
    assert done.sweep().manifest.read_bytes() == before
    assert len(done.attempts()) == 11


@pytest.mark.slow
def test_more_trials_go_on(again: Folder) -> None:
    again.study("s.yaml", "--set", "search.n_trials=6")
    manifest = again.manifest()
    assert states(manifest) == ["complete"] * 6
    assert len(manifest.trials) == 6
    assert manifest.study["n_trials"] == 6
    assert max(Counter(a.run_id for a in again.attempts()).values()) == 1
    best = max(manifest.told.values(), key=lambda r: r["values"][0])["number"]
    confirmed = {r.config_id for r in manifest.runs.values() if r.stage == CONFIRM}
    assert manifest.trials[best]["config_id"] in confirmed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("sampler: random", "objective: {rule: best}", "search.objective: the study s was begun with another;"),
        ("sampler: random", "objective: {direction: minimize}", "search.objective: the study s was begun with another;"),
        ("seeds_per_trial: 2", "seeds_per_trial: 3", "search.seeds_per_trial: the study s was begun with another;"),
        ("[1, 2, 3]", "[1, 2]", "search.space.num_iterations: a study keeps its choices"),
        ("[1, 2, 3]", "{low: 1, high: 3}", "search.space.num_iterations: a study keeps its choices"),
        (", log: true}", "}", "search.space.learning_rate: a study keeps its choices"),
        ("limit: 60", "limit: 50", "evaluate: the study s was begun with another;"),
        ("[0, 1, 2, 3, 4]", "[0, 1]", "evaluate: the study s was begun with another;"),
        ("max_steps: 4", "max_steps: 5", "trial 0 of the study s would be another config by now (max_steps was 4 and is 5);"),
        (
            "    learning_rate: {low: 1.0e-5, high: 1.0e-3, log: true}\n",
            "",
            "trial 0 of the study s would be another config by now (learning_rate was ",
        ),
    ],
)
def test_what_makes_trials_incomparable_is_refused(
    old: str, new: str, said: str, again: Folder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = again.path / "s.yaml"
    spec.write_text(spec.read_text().replace(old, new))
    before = again.sweep().manifest.read_bytes(), again.sweep().study.read_bytes()
    monkeypatch.chdir(again.path)
    with pytest.raises(SystemExit) as stop:
        cli.main(["study", "s.yaml", "--launcher", "local", "-y", "--set", "search.n_trials=6"])
    error = capsys.readouterr().err
    assert (stop.value.code, error.count("\n")) == (2, 1)
    assert error.startswith(f"emsweep: {said}")
    assert (again.sweep().manifest.read_bytes(), again.sweep().study.read_bytes()) == before


@pytest.mark.long
@pytest.mark.slow
def test_a_warm_start_tries_the_best_of_others_first_and_trains_no_run_twice(again: Folder) -> None:
    plain = (
        "name: p\nbase: {model_name_or_path: miniature, prompt: plus, method: noop, max_steps: 4}\n"
        "axes: {learning_rate: [2.0e-5, 3.0e-5, 4.0e-5]}\nseeds: 2\nresources: {timeout_min: 5}\n"
        "evaluate: [{tasks: [two_step_sums], steps: [0, 1, 2, 3, 4], limit: 60}]\n"
    )
    (again.path / "p.yaml").write_text(plain)
    again.call("run", "p.yaml", "--launcher", "local", "-y")
    means = again.rows(
        "SELECT learning_rate, avg(accuracy) AS mean FROM scores WHERE sweep = 'p' AND step = 4 GROUP BY ALL ORDER BY mean DESC"
    )
    keys = "warm_start: [{sweep: s, top: 2}, {sweep: p, top: 1}]\n  enqueue: [{learning_rate: 1.0e-4, num_iterations: 2}]"
    said = again.study(again.write("w", keys, trials=5))
    assert "2 of the best configs are tried first (warm start: s)" in said
    manifest, first = again.manifest("w"), again.manifest()
    origins = [manifest.trials[n]["origin"] for n in range(5)]
    assert origins == ["enqueued", "warm start: s", "warm start: s", "warm start: p", "sampled"]
    assert manifest.trials[0]["params"] == {"learning_rate": 1e-4, "num_iterations": 2}
    best = sorted(first.told.values(), key=lambda r: -r["values"][0])[:2]
    assert [manifest.trials[n]["params"] for n in (1, 2)] == [first.trials[r["number"]]["params"] for r in best]
    assert [manifest.told[n]["values"] for n in (1, 2)] == [r["values"] for r in best]
    assert manifest.trials[3]["params"]["learning_rate"] == means[0]["learning_rate"]
    assert manifest.trials[3]["params"]["num_iterations"] == 1, "the default is taken over as well"
    assert sorted(a.run_id for a in again.attempts("w")) == sorted(
        [*runs_of(manifest, 0, range(2)), *runs_of(manifest, 4, range(2))]
    )


# -- budgets --------------------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.slow
def test_device_hours_end_a_study(folder: Folder) -> None:
    spec = folder.path / folder.write(more="max_device_hours: 0.0007")
    spec.write_text(spec.read_text().replace("  n_trials: 4\n", ""))
    folder.study(spec.name, env={STEP_SECONDS: "0.1"})
    assert set(states(folder.manifest())) == {"complete"}, "what was begun is finished"
    took = sum(a.end["seconds"] for a in folder.attempts() if a.end)
    assert 0.0007 * 3600 / 3 < took <= 0.0007 * 3600


@pytest.mark.long
@pytest.mark.slow
def test_minutes_end_a_study(folder: Folder) -> None:
    spec = folder.path / folder.write(keys="timeout_min: 0.02")
    spec.write_text(spec.read_text().replace("  n_trials: 4\n", ""))
    said = folder.study(spec.name, env={STEP_SECONDS: "0.1"})
    assert set(states(folder.manifest())) == {"complete"}, "what was begun is finished"
    n = len(folder.manifest().trials)
    assert f"`search.timeout_min` (0.02, counted from when the study began) is used up after {n} trials" in said
    assert f"study {spec.name} --set search.timeout_min=" in said
    before = len(folder.attempts())
    folder.study(spec.name)
    assert len(folder.attempts()) == before, "nor is there time for more afterwards"


# -- pruning, faults, objectives ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("pruner", ["racing", pytest.param("wilcoxon", marks=pytest.mark.long)])
def test_pruning_between_seeds_uses_fewer_runs(pruner: str, folder: Folder) -> None:
    folder.study(folder.write(keys=f"pruner: {pruner}", seeds=6, trials=8))
    manifest, attempts = folder.manifest(), folder.attempts()
    told = Counter(states(manifest))
    assert told["pruned"] >= 1
    assert told["pruned"] + told["complete"] == 8
    assert len(attempts) < 8 * 6
    found = folder.rows("SELECT run_id, accuracy FROM scores WHERE step = 4")
    values = {r["run_id"]: r["accuracy"] for r in found}
    for number, r in manifest.told.items():
        mine = [values[run] for run in runs_of(manifest, number, range(r["seeds"]))]
        assert r["values"] == [pytest.approx(sum(mine) / len(mine))]
        if r["state"] == "pruned":
            assert r["seeds"] < 6
            assert r["why"] == f"behind the best after {r['seeds']} seeds"
    study = folder.optuna()
    assert study.best_value == max(r["values"][0] for r in manifest.told.values() if r["state"] == "complete")
    assert {t.state.name for t in study.trials} == {"COMPLETE"}, "a trial given up between seeds tells what it has"
    assert [t.user_attrs["told"] for t in study.trials] == states(manifest)
    best = -math.inf
    for r in sorted(manifest.told.values(), key=lambda r: r["t"]):
        if r["state"] == "complete":
            best = max(best, r["values"][0])
        else:
            assert r["values"][0] < best, "whoever is ahead goes on"


@pytest.mark.long
@pytest.mark.slow
def test_racing_tries_the_first_trials_with_one_seed_each(folder: Folder) -> None:
    """Then the one that leads the others gets its seeds, and they are held against it."""
    folder.study(folder.write(keys="pruner: racing\n  n_startup_trials: 5", seeds=4, trials=5))
    manifest = folder.manifest()
    runs = list(manifest.runs.values())
    assert [r.seed for r in runs[:5]] == [0] * 5
    assert 0 not in {r.seed for r in runs[5:]}
    told = sorted(manifest.told.values(), key=lambda r: r["t"])
    first = next(r for r in told if r["values"])
    assert first["state"] == "complete", "nothing is pruned before there is a best"


@pytest.mark.long
@pytest.mark.slow
def test_pruning_within_a_run_stops_it_and_frees_its_worker(folder: Folder) -> None:
    keys = "within_run: median\n  n_startup_trials: 2\n  n_warmup_steps: 1"
    folder.study(folder.write(keys=keys, seeds=1, trials=8), env={STEP_SECONDS: "0.2"})
    manifest = folder.manifest()
    pruned = [r for r in manifest.told.values() if r["state"] == "pruned"]
    assert pruned
    assert len(pruned) + states(manifest).count("complete") == 8
    ends = {a.run_id: a for a in folder.attempts()}
    for r in pruned:
        [run] = runs_of(manifest, r["number"], [0])
        assert r["values"] is None
        assert r["why"].startswith("seed 0 pruned at step ")
        reason = manifest.excluded[run]
        assert reason.startswith("pruned at step ")
        end = ends[run].end
        assert end is not None
        assert (ends[run].status, end["message"]) == (RunStatus.CANCELLED, reason)
        later = [a.start["t"] - end["t"] for a in ends.values() if a.start.get("t", 0) > end["t"]]
        assert not later or min(later) < 1.0, "the next run did not wait"
    before = len(ends)
    folder.study("s.yaml")
    assert len(folder.attempts()) == before, "what was stopped stays so"


@pytest.mark.long
@pytest.mark.slow
def test_failed_trials_are_told_so_and_the_study_goes_on(folder: Folder) -> None:
    command = folder.command("study", folder.write(trials=8), "--launcher", "local", "-y")
    env = folder.environment({FAULT: "bug:0.3"})
    done = subprocess.run(command, cwd=folder.path, env=env, capture_output=True, text=True, timeout=120)
    manifest = folder.manifest()
    failed = sum(a.status is RunStatus.FAILED for a in folder.attempts())
    said = f"{failed} runs failed; `emsweep status s` says why, `emsweep retry s` forgives them. Trials that failed stay so;"
    assert (done.returncode, done.stdout.count(said)) == (1, 1), done.stdout
    assert set(states(manifest)) == {"complete", "failed"}
    for number, r in manifest.told.items():
        if r["state"] == "failed":
            assert r["values"] is None
            assert r["why"] in ("seed 0 failed", "seed 1 failed")
            assert folder.optuna().trials[number].state == optuna.trial.TrialState.FAIL
    folder.study("s.yaml", check=1)
    said = f"s: 0 failed runs will be tried again by the next `emsweep study`, {failed} are forgiven and not done again"
    assert folder.call("retry", "s").startswith(said)
    assert "runs failed" not in folder.study("s.yaml"), "what was forgiven is no failure, nor is it trained: its trial was told"
    assert folder.manifest().told == manifest.told


@pytest.mark.slow
def test_what_the_spec_excludes_is_told_so_and_takes_no_budget(folder: Folder) -> None:
    """Of three choices two are out of the search, one of them only where it is enqueued by an earlier sweep's best."""
    folder.study(folder.write(trials=3, seeds=1, more="exclude: [{num_iterations: [1, 3]}]"))
    manifest = folder.manifest()
    told = Counter(states(manifest))
    assert told["complete"] == 3
    assert told["excluded"] == len(manifest.trials) - 3 > 0
    known = folder.optuna().trials
    for number, r in manifest.told.items():
        trial, frozen = manifest.trials[number], known[number]
        out = trial["params"]["num_iterations"] != 2
        assert (r["state"], trial["config_id"] is None) == ("excluded" if out else "complete", out)
        assert (frozen.state.name, frozen.value is None) == ("PRUNED" if out else "COMPLETE", out)
        assert (r["values"] is None, r["why"]) == (out, "excluded by the spec: num_iterations is 1 or 3" if out else "")
    assert len(folder.attempts()) == 3
    query = "SELECT state, count(*), count(config_id) FROM trials GROUP BY ALL ORDER BY ALL"
    assert sql(folder.path / "results.duckdb", query).rows() == [("complete", 3, 3), ("excluded", told["excluded"], 0)]
    assert plan_study(load_spec(folder.path / "s.yaml"), folder.path / "runs", "local").told == 3


@pytest.mark.slow
def test_a_space_of_which_hardly_anything_is_left_ends_the_study(folder: Folder) -> None:
    out = list(range(1, 1000))
    spec = folder.path / folder.write(more=f"exclude: [{{num_iterations: {out}}}]")
    spec.write_text(spec.read_text().replace("[1, 2, 3]", "{low: 1, high: 1000}").replace(", when: {num_iterations: [1, 3]}", ""))
    said = folder.study(spec.name, check=1)
    assert "20 trials in a row could not be made; the last: excluded by the spec: num_iterations is " in said
    assert said.count("\n") == 1
    assert set(states(folder.manifest())) == {"excluded"}


@pytest.mark.long
@pytest.mark.slow
def test_a_trial_that_was_begun_is_finished_whatever_the_spec_excludes_now(again: Folder) -> None:
    """As a controller leaves it that dies before it tells a trial; the next proposals are excluded."""
    first = again.manifest().trials[0]["params"]["num_iterations"]
    for path, telling in ((again.sweep().manifest, b'{"kind":"told"'), (again.sweep().study, b'{"op_code":6')):
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join(line for line in lines if not line.startswith(telling)))
    spec = again.path / "s.yaml"
    spec.write_text(spec.read_text() + f"exclude: [{{num_iterations: {first}}}]\n")
    again.study("s.yaml", "--set", "search.n_trials=8")
    now = again.manifest()
    assert [now.told[n]["state"] for n in range(4)] == ["complete"] * 4
    later = [now.trials[n]["params"]["num_iterations"] == first for n in sorted(now.trials) if n >= 4]
    assert [now.told[n]["state"] == "excluded" for n in sorted(now.told) if n >= 4] == later
    assert later.count(False) == 4


@pytest.mark.long
@pytest.mark.slow
def test_a_diverged_run_ends_its_trial_and_is_no_failure(folder: Folder) -> None:
    spec = folder.path / folder.write(keys="enqueue: [{learning_rate: 1.0e+30}]", trials=2, seeds=2)
    text = spec.read_text().replace("high: 1.0e-3", "high: 1.0e+30").replace("noop, max_steps: 4", "em, max_steps: 4")
    text = text.replace("    num_iterations: [1, 2, 3]\n", "    num_generations: [2]\n")
    text = "\n".join(line for line in text.splitlines() if "epsilon" not in line)
    spec.write_text(text.replace("max_steps: 4}", "max_steps: 4, max_completion_length: 8}"))
    folder.call("study", spec.name, "--launcher", "local", "-y", "--set", "search.n_trials=1", check=1)
    manifest = folder.manifest()
    assert [(r["state"], r["values"]) for r in manifest.told.values()] == [("diverged", None)]
    assert "diverged" in manifest.told[0]["why"]
    assert {r.partition(":")[0] for r in manifest.excluded.values()} <= {"trial 0 was over"}, "its other seed, if it ran then"
    trial = folder.optuna().trials[0]
    assert (trial.state, trial.user_attrs["told"]) == (optuna.trial.TrialState.PRUNED, "diverged")


@pytest.mark.long
@pytest.mark.slow
def test_two_objectives_have_a_pareto_front_that_is_confirmed(folder: Folder) -> None:
    """The best step, chosen on the other seed, and the mean height of the curve, here as small as possible."""
    keys = "objective: [{rule: best}, {rule: area, direction: minimize}]"
    folder.study(folder.write(keys=keys, trials=5, top=2))
    manifest = folder.manifest()
    found = folder.rows("SELECT config_id, seed, step, accuracy FROM scores WHERE sweep = 's' AND seed < 1000 ORDER BY step")
    for number, r in manifest.told.items():
        mine = [x for x in found if x["config_id"] == manifest.trials[number]["config_id"]]
        curves = [{x["step"]: x["accuracy"] for x in mine if x["seed"] == seed} for seed in range(2)]
        tops = [max((c[step], -step) for step in range(1, 5)) for c in curves]
        best = (curves[0][-tops[1][1]] + curves[1][-tops[0][1]]) / 2
        area = sum(sum((c[s] + c[s + 1]) / 2 for s in range(4)) / 4 for c in curves) / 2
        assert r["values"] == [pytest.approx(best), pytest.approx(area)]
    front = {manifest.trials[t.number]["config_id"] for t in folder.optuna().best_trials}
    confirmed = {r.config_id for r in manifest.runs.values() if r.stage == CONFIRM}
    assert len(confirmed) == 2
    assert confirmed <= front or front <= confirmed
    source = WarmStart(sweep="s", top=len(front))
    space = space_of(load_spec(folder.path / "s.yaml"))
    points = points_of(source, folder.path / "runs", folder.path / "results.duckdb", space)
    rates = {t["params"]["learning_rate"] for t in manifest.trials.values() if t["config_id"] in front}
    assert {p["learning_rate"] for p in points} == rates, "what another study begins with"


@pytest.mark.long
@pytest.mark.slow
def test_confirm_takes_the_best_complete_trial_by_the_objective(folder: Folder) -> None:
    """Not the highest mean of all, which is the worst here, and may be a pruned trial's one lucky seed."""
    said = folder.study(folder.write(keys="objective: {direction: minimize}\n  pruner: racing", trials=4))
    manifest = folder.manifest()
    best = min((r for r in manifest.told.values() if r["state"] == "complete"), key=lambda r: r["values"][0])
    assert "ORDER BY value ASC" in said
    assert "and so flattered; `emsweep confirm s` measures it on fresh ones" in " ".join(said.split())
    said = folder.call("confirm", "s", "--top", "1", "--seeds", "2", "--launcher", "local", "-y")
    confirmed = {r.config_id for r in folder.manifest().runs.values() if r.stage == CONFIRM}
    assert confirmed == {manifest.trials[best["number"]]["config_id"]}
    *_, row = said.splitlines()
    assert row.split()[:2] == [str(best["number"]), str(round(best["values"][0], 3))]


@pytest.mark.long
@pytest.mark.slow
def test_a_warm_start_of_which_nothing_fits_is_said(again: Folder) -> None:
    spec = again.path / again.write("w", "warm_start: [{sweep: s}]", trials=1, seeds=1)
    narrow = spec.read_text().replace("[1, 2, 3]", "[4]").replace("low: 1.0e-5, high: 1.0e-3", "low: 1.0e-2, high: 1.0e-1")
    spec.write_text("\n".join(line for line in narrow.splitlines() if "epsilon" not in line))
    said = again.study(spec.name)
    assert "none is tried first (warm start: s): no value of its best configs is in this space\n" in said
    assert "Only one config is complete, so there is nothing to compare." in " ".join(said.split())


def cancelled_meanwhile(folder: Folder, spec: str, step_seconds: str, stage: str) -> str:
    """Carry a study on, and cancel the first run of this stage that is under way; its id."""
    command = folder.command("study", spec, "--launcher", "local", "-y")
    env = folder.environment({STEP_SECONDS: step_seconds})
    with subprocess.Popen(command, cwd=folder.path, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        running: list[str] = []
        until = time.monotonic() + 60
        while not running and time.monotonic() < until:
            time.sleep(0.1)
            wanted = folder.manifest().runs if folder.sweep().manifest.is_file() else {}
            running = (
                [a.run_id for a in folder.attempts() if a.run_id in wanted and wanted[a.run_id].stage == stage] if wanted else []
            )
        folder.call("cancel", running[0])
        process.communicate(timeout=60)
    return running[0]


@pytest.mark.long
@pytest.mark.slow
def test_cancelling_a_running_run_ends_its_trial(folder: Folder) -> None:
    run = cancelled_meanwhile(folder, folder.write(trials=2, seeds=1), "1.0", EXPLORE)
    manifest = folder.manifest()
    told = {manifest.trials[n]["config_id"]: r for n, r in manifest.told.items()}
    cancelled = told.pop(run.partition("-s")[0])
    assert (cancelled["state"], cancelled["seeds"]) == ("failed", 0)
    assert "cancelled" in cancelled["why"]
    assert [r["state"] for r in told.values()] == ["complete"]


@pytest.mark.long
@pytest.mark.slow
def test_a_cancelled_run_that_confirms_is_not_waited_for_and_the_same_command_does_it(folder: Folder) -> None:
    spec = folder.write(trials=1, seeds=1, top=1)
    run = cancelled_meanwhile(folder, spec, "1.5", CONFIRM)
    ends = {a.run_id: a.status for a in folder.attempts()}
    assert ends.pop(run) is RunStatus.CANCELLED
    assert set(ends.values()) == {RunStatus.COMPLETED}
    folder.study(spec)
    assert [a.status for a in folder.attempts() if a.run_id == run][-1] is RunStatus.COMPLETED
