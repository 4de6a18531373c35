"""Results in MLflow: what is there, that nothing is there twice, and that both ways of writing leave the same behind."""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest

from analysis.collect import collect
from analysis.mlflow_export import export, quiet, shown
from analysis.mlflow_records import clean, evaluation_label, thinned
from em_core.config import Evaluation
from em_core.errors import UserError
from em_core.journal import SweepDir, append_batch, read_records
from tests.conftest import Emsweep
from tests.journals import GREEDY, SAMPLED, T0, Sweep
from tests.mlflow_server import served

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from analysis.mlflow_stores import BySqlite, Known

quiet()
DIVERGED, FAILED, INTERRUPTED = 0, 4, 8
"""Where Sweep.write puts them in a sweep of 24 runs and two jobs (see `small`)."""


def small(folder: Path, name: str = "demo", seeds: int = 4) -> tuple[Sweep, Path]:
    """Two rates, three temperatures, four seeds; the first run diverged, one failed, one was interrupted. Collected."""
    grid = {"learning_rate": [1e-4, 5e-4], "temperature": [0.3, 0.7, 1.2]}
    sweep = Sweep(folder / "runs", name, grid, range(seeds), (GREEDY, SAMPLED), steps=(0, 50, 100))
    statuses = dict(zip([sweep.runs[i].run_id for i in (DIVERGED, FAILED, INTERRUPTED)], ENDS, strict=True))
    sweep.write_manifest()
    sweep.job(f"{name}-0000", sweep.runs, statuses=statuses)
    collect(sweep.root, folder / "results.duckdb")
    return sweep, folder / "results.duckdb"


ENDS = ("diverged", "failed", "interrupted")


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Sweep, Path]:
    return small(tmp_path_factory.mktemp("swept"))


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database as MLflow makes it, which takes it seconds: to be copied."""
    path = tmp_path_factory.mktemp("empty") / "mlflow.db"
    client_of(f"sqlite:///{path}").search_experiments()
    return path


def new(empty: Path, folder: Path) -> str:
    """The URI of a fresh database in a folder."""
    folder.mkdir(exist_ok=True)
    shutil.copy(empty, folder / "mlflow.db")
    return f"sqlite:///{folder / 'mlflow.db'}"


@pytest.fixture(scope="module")
def file(swept: tuple[Sweep, Path], empty: Path) -> str:
    """The sweep exported into SQLite."""
    uri = new(empty, swept[1].parent)
    done = export(swept[1], "demo", uri)
    assert (done.new, done.edited, done.unchanged, done.waiting) == (24, 0, 0, 0)
    return uri


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, empty: Path) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("server")
    new(empty, folder)
    with served(folder) as address:
        yield address


def client_of(uri: str) -> MlflowClient:
    from mlflow import MlflowClient

    return MlflowClient(uri)


def held(uri: str, sweep: str = "demo") -> dict[str, dict[str, Any]]:
    """Everything that MLflow tells of a sweep's runs, by our own ids, without its own."""
    client = client_of(uri)
    experiment = client.get_experiment_by_name(sweep)
    found = client.search_runs([experiment.experiment_id], max_results=1000)
    keys = {r.info.run_id: r.data.tags.get("emsweep.run_id") or r.data.tags["emsweep.config_id"] for r in found}
    assert len(set(keys.values())) == len(keys), "a run is there twice"
    told = {}
    for r in found:
        tags = dict(r.data.tags)
        if "mlflow.parentRunId" in tags:
            tags["mlflow.parentRunId"] = keys[tags["mlflow.parentRunId"]]
        artifacts = sorted((a.path, a.file_size) for a in client.list_artifacts(r.info.run_id))
        points = {m: client.get_metric_history(r.info.run_id, m) for m in r.data.metrics}
        info = r.info
        told[keys[info.run_id]] = {
            "name": info.run_name, "status": info.status, "times": (info.start_time, info.end_time), "params": r.data.params,
            "tags": tags, "last": r.data.metrics, "artifacts": artifacts,
            "history": {name: sorted((p.step, p.value, p.timestamp) for p in curve) for name, curve in points.items()},
        }  # fmt: skip
    return told


@pytest.mark.slow
def test_a_run_says_what_it_is(swept: tuple[Sweep, Path], file: str) -> None:
    sweep, _ = swept
    there, run = held(file), sweep.runs[1]
    config, child = there[run.config_id], there[run.run_id]
    assert len(there) == 6 + 24
    assert (config["name"], child["name"]) == ("temperature=0.3, learning_rate=0.0001", run.run_id)
    assert child["tags"]["mlflow.parentRunId"] == run.config_id
    assert child["params"] == {"learning_rate": "0.0001", "temperature": "0.3", "prompt": "Q:1+1+1=?", "seed": "1"} | {
        "model_name_or_path": "miniature"
    }
    assert child["times"] == (int(T0 + 1) * 1000, int(T0 + 60) * 1000)
    tags = {k.removeprefix("emsweep."): v for k, v in child["tags"].items()}
    assert (tags["seed"], tags["stage"], tags["node"], tags["commit"], tags["code"]) == ("1", "explore", "n1", "abc1234", "c0de")
    assert (tags["attempt_id"], tags["status"], tags["steps"]) == (f"demo-0000.0/{run.run_id}/0", "completed", "100")
    assert [there[sweep.runs[i].run_id]["status"] for i in (DIVERGED, FAILED, INTERRUPTED)] == ["FAILED", "FAILED", "KILLED"]


@pytest.mark.slow
def test_curves_are_thinned_and_whole_beside(swept: tuple[Sweep, Path], file: str, tmp_path: Path) -> None:
    run = swept[0].runs[1]
    loss = held(file)[run.run_id]["history"]["loss"]
    assert len(loss) == 50
    assert [step for step, _, _ in (loss[0], loss[-1])] == [1, 100]
    [mlflow_run] = client_of(file).search_runs(
        ["1"], f"tags.`emsweep.config_id` = '{run.config_id}' and tags.`emsweep.runs` = '4'"
    )
    client_of(file).download_artifacts(mlflow_run.info.run_id, "", str(tmp_path))
    curves = pl.read_parquet(tmp_path / "curves.parquet").filter(run_id=run.run_id)
    assert curves.filter(name="loss").height == 100
    assert curves.filter(name="accuracy").group_by("eval_id").len()["len"].to_list() == [3, 3]
    assert json.loads((tmp_path / "config.json").read_text())["temperature"] == 0.3


@pytest.mark.slow
def test_scores_and_their_means(swept: tuple[Sweep, Path], file: str) -> None:
    from analysis.queries import load

    sweep, db = swept
    run = sweep.runs[5]
    scores = load("demo", db).scores.filter(run_id=run.run_id, eval_temperature=0.7).sort("step")
    there = held(file)
    told = [(s, v) for s, v, _ in there[run.run_id]["history"]["eval/arithmetic-num_samples_2-temperature_0.7/accuracy"]]
    assert told == list(zip(scores["step"], scores["accuracy"], strict=True))
    cell = load("demo", db).cells.filter(config_id=run.config_id, metric="accuracy", step=100, eval_id=GREEDY.eval_id())
    means = there[run.config_id]["last"]
    assert means["eval/arithmetic-num_samples_2/accuracy/mean"] == cell["mean"].item()
    assert means["eval/arithmetic-num_samples_2/accuracy/n"] == cell["n"].item() == 3  # its first seed failed


@pytest.mark.slow
def test_nothing_non_finite_is_written(swept: tuple[Sweep, Path], file: str) -> None:
    """Loss and entropy are NaN from step 50 on."""
    diverged = held(file)[swept[0].runs[DIVERGED].run_id]
    assert max(step for step, _, _ in diverged["history"]["loss"]) == 49
    assert all(value != 0 for _, value, _ in diverged["history"]["loss"])
    assert diverged["tags"]["emsweep.diverged"] == "true"
    assert json.loads(diverged["tags"]["emsweep.non_finite"]) == {"entropy": 50, "loss": 50}


@pytest.mark.slow
def test_a_second_export_writes_nothing(swept: tuple[Sweep, Path], file: str) -> None:
    before = Path(file.removeprefix("sqlite:///")).read_bytes()
    done = export(swept[1], "demo", file)
    assert (done.new, done.edited, done.unchanged) == (0, 0, 24)
    assert Path(file.removeprefix("sqlite:///")).read_bytes() == before


@pytest.mark.long
@pytest.mark.slow
def test_what_changed_is_brought_up_to_date(tmp_path: Path, empty: Path) -> None:
    """A run excluded and one included again, a failed run done again, seeds added: as if exported once, later."""
    sweep, db = small(tmp_path)
    once, twice = (new(empty, tmp_path / name) for name in ("once", "twice"))
    excluded, again, failed = sweep.runs[2], sweep.runs[3], sweep.runs[FAILED]
    sweep.mark("exclude", run_id=again.run_id, reason="by mistake")
    collect(sweep.root, db)
    export(db, "demo", twice)
    assert held(twice)[again.run_id]["tags"]["emsweep.excluded"] == "by mistake"
    sweep.mark("include", run_id=again.run_id, reason="")
    sweep.mark("exclude", run_id=excluded.run_id, reason="bad node")
    sweep.job("demo-0001", [failed])
    more = Sweep(sweep.root, "demo", sweep.grid, range(5), sweep.evaluations, sweep.steps)
    more.write_manifest()
    more.job("demo-0002", [r for r in more.runs if r.seed == 4])
    collect(sweep.root, db)
    done = export(db, "demo", twice)
    assert (done.new, done.edited, done.unchanged) == (6 + 1, 2, 24 - 3)
    export(db, "demo", once)
    there, fresh = held(twice), held(once)
    assert there[excluded.run_id]["tags"]["emsweep.excluded"] == "bad node"
    assert there[failed.run_id]["status"] == "FINISHED"
    for key, run in fresh.items():
        assert {**there[key], "times": run["times"]} == run  # a start is never changed


@pytest.mark.long
@pytest.mark.slow
def test_a_server_holds_the_same_as_sqlite(swept: tuple[Sweep, Path], file: str, server: str) -> None:
    """MLflow's client, request by request, and rows inserted into its tables."""
    done = export(swept[1], "demo", server)
    assert (done.new, done.unchanged) == (24, 0)
    assert held(server) == held(file)
    again = export(swept[1], "demo", server)
    assert (again.new, again.edited, again.unchanged) == (0, 0, 24)


KILLED = """
import sys; from pathlib import Path; from analysis.mlflow_export import export; export(Path(sys.argv[1]), 'demo', sys.argv[2])
"""


def killed(db: Path, uri: str, rng: random.Random, server: int = 0) -> int:
    """An export that is killed once MLflow holds a few runs more than before; how many it holds. `server`: a process group
    that sleeps meanwhile, so that it answers the last requests only when the next export is asking, too."""
    client = client_of(uri)

    def count() -> int:
        found = client.get_experiment_by_name("demo")
        return len(client.search_runs([found.experiment_id], max_results=1000)) if found else 0

    enough = count() + rng.randint(1, 4)
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(db), uri], env=os.environ | {"PYTHONPATH": os.getcwd()})
    while count() < enough and process.poll() is None:
        time.sleep(rng.random() / 50)
    if server:
        os.killpg(server, signal.SIGSTOP)
        time.sleep(0.1)  # for requests to be sent
    process.send_signal(signal.SIGKILL)
    process.wait()
    if server:
        os.killpg(server, signal.SIGCONT)
        return enough
    return count()


@pytest.mark.slow
def test_what_was_cut_off_is_made_whole(swept: tuple[Sweep, Path], file: str, tmp_path: Path, empty: Path) -> None:
    """As a kill leaves it between two requests: a run with nothing but its name, a run and a config's run without the last tag, a
    config's run made by hand away."""
    sweep, _ = swept
    _, db = small(tmp_path)
    uri = new(empty, tmp_path)
    export(db, "demo", uri)
    client = client_of(uri)
    there = {r.data.tags.get("emsweep.run_id") or r.data.tags["emsweep.config_id"]: r.info for r in client.search_runs(["1"])}
    first, second, third = (sweep.runs[i] for i in (1, 9, 17))
    client.delete_run(there[first.run_id].run_id)
    client.create_run("1", tags={"emsweep.run_id": first.run_id, "emsweep.config_id": first.config_id})
    client.delete_tag(there[second.run_id].run_id, "emsweep.digest")
    client.delete_tag(there[second.config_id].run_id, "emsweep.digest")
    client.delete_run(there[third.config_id].run_id)
    done = export(db, "demo", uri)
    assert (done.new, done.edited, done.unchanged) == (2, 0, 22)
    assert held(uri) == held(file)


@pytest.mark.slow
def test_a_request_that_is_answered_late(
    swept: tuple[Sweep, Path], file: str, tmp_path: Path, empty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last requests of an export that was killed make their runs after the next export looked what is there."""
    from analysis.mlflow_stores import BySqlite

    sweep, _ = swept
    _, db = small(tmp_path)
    uri = new(empty, tmp_path)
    looks = []

    def known(store: BySqlite, experiment: str) -> Known:
        found = look(store, experiment)
        if not looks:
            for run in sweep.runs[:2]:
                client_of(uri).create_run(experiment, tags={"emsweep.run_id": run.run_id, "emsweep.config_id": run.config_id})
            client_of(uri).create_run(experiment, tags={"emsweep.config_id": sweep.runs[0].config_id})
        looks.append(found)
        return found

    look = BySqlite.known
    monkeypatch.setattr(BySqlite, "known", known)
    done = export(db, "demo", uri)
    assert (done.new, done.edited, done.unchanged) == (24, 0, 0)
    assert held(uri) == held(file)


@pytest.mark.long
def test_killed_and_exported_again(swept: tuple[Sweep, Path], file: str, tmp_path: Path, empty: Path) -> None:
    """On a server a run is made of several requests: what was cut off among them is made anew."""
    _, db = small(tmp_path)
    rng = random.Random(0)
    new(empty, tmp_path / "server")
    with served(tmp_path / "server") as own:
        assert killed(db, own, rng) < 30, "it was done before it was killed"
        killed(db, own, rng, int((tmp_path / "server" / "server.pid").read_text()))
        export(db, "demo", own)
        assert held(own) == held(file)


@pytest.mark.long
def test_killed_often_on_sqlite(swept: tuple[Sweep, Path], file: str, tmp_path: Path, empty: Path) -> None:
    _, db = small(tmp_path)
    rng = random.Random(1)
    uri = new(empty, tmp_path)
    for _ in range(6):
        killed(db, uri, rng)
    export(db, "demo", uri)
    assert held(uri) == held(file)


@pytest.mark.slow
def test_another_sweep_of_the_name_is_left_alone(swept: tuple[Sweep, Path], file: str, tmp_path: Path) -> None:
    sweep = Sweep(tmp_path / "runs", grid={"learning_rate": [1e-4]}, seeds=range(2))
    sweep.write_manifest()
    sweep.mark("exclude", run_id=sweep.runs[0].run_id, reason="")
    lines = [json.loads(line) for line in sweep.dir.manifest.read_text().splitlines()]
    lines = [line | {"t": line["t"] + 5} if line["kind"] == "run" else line for line in lines]
    sweep.dir.manifest.write_text("".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines))
    sweep.job("demo-0000", sweep.runs)
    collect(sweep.root, tmp_path / "results.duckdb")
    before = held(file)
    with pytest.raises(UserError, match=r"experiment 'demo' at .* holds another sweep of this name"):
        export(tmp_path / "results.duckdb", "demo", file)
    assert held(file) == before


@pytest.mark.slow
def test_the_command(emsweep: Emsweep, tmp_path: Path) -> None:
    sweep = Sweep(tmp_path / "runs", grid={"learning_rate": [1e-4, 2e-4]}, seeds=range(3))
    sweep.write_manifest()
    sweep.job("demo-0000", sweep.runs[1:])
    said = emsweep("export", "mlflow", check=0)
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    assert said.stderr == ""
    assert f"demo: exported 5 runs (0 unchanged, 1 not started) to {uri} in " in said.stdout
    assert said.stdout.endswith("s\nnext: make mlflow-ui\n")
    assert "demo: exported 0 runs (5 unchanged, 1 not started)" in emsweep("export", "mlflow", "demo", check=0).stdout
    assert len(held(uri)) == 2 + 5


@pytest.mark.long
@pytest.mark.slow
def test_what_goes_wrong_is_one_line(emsweep: Emsweep, tmp_path: Path, server: str) -> None:
    from mlflow import MlflowClient

    assert "there is no sweep under" in emsweep("export", "mlflow", check=2).stderr
    Sweep(tmp_path / "runs", "big", {"learning_rate": [1e-4]}, range(1)).write()
    away = emsweep(
        "export",
        "mlflow",
        "big",
        check=1,
        env={"MLFLOW_TRACKING_URI": "http://me:secret@127.0.0.1:9", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"},
    )
    assert away.stderr == ("emsweep: cannot reach MLflow at http://***@127.0.0.1:9; nothing is lost, the same command goes on\n")
    folder = emsweep("export", "mlflow", "big", check=2, env={"MLFLOW_TRACKING_URI": "./mlruns"})
    assert folder.stderr.startswith("emsweep: ./mlruns: MLflow no longer writes into folders")
    MlflowClient(server).create_experiment("big")
    foreign = emsweep("export", "mlflow", "big", check=2, env={"MLFLOW_TRACKING_URI": server})
    assert "holds runs that emsweep did not write" in foreign.stderr
    assert foreign.stderr.count("\n") == 1


@pytest.mark.fast
def test_thinned_keeps_first_and_last_and_spreads_the_rest() -> None:
    curve = [("loss", step, float(step)) for step in range(1, 1001)]
    steps = [step for _, step, _ in thinned(curve)]
    assert (len(steps), steps[0], steps[-1]) == (50, 1, 1000)
    assert {b - a for a, b in itertools.pairwise(steps)} <= {20, 21}
    assert thinned(curve[:50]) == curve[:50]


@pytest.mark.fast
def test_names_are_those_that_mlflow_takes() -> None:
    from mlflow.utils.validation import _validate_metric_name

    names = ["loss", "pass@8", "a b", "a//b", "../up", "/root", "naïve", "a:b", "x" * 300, "x" * 301, "ü", "ö", ".", "a/"]
    told = [clean(n) for n in names]
    assert told[:3] == ["loss", "pass_at_8", "a b"]
    assert len(set(told)) == len(names)
    for name in told:
        _validate_metric_name(name)
        assert len(name) <= 250


@pytest.mark.fast
def test_an_evaluation_is_named_by_what_is_not_the_default() -> None:
    def label(**fields: Any) -> str:
        return evaluation_label(Evaluation(**{"task": "two_step_sums", "task_key": "two_step_sums@1"} | fields).model_dump())

    assert label() == "two_step_sums"
    assert label(temperature=0.7, num_samples=4) == "two_step_sums-num_samples_4-temperature_0.7"
    assert label(task="data/math 500.jsonl", task_key="sha256:00") == "math_500"
    assert label(template="Q: {question}\nA:") == label(template="Q: {question}\nA:") != label(template="{question}")


@pytest.mark.fast
def test_a_password_is_not_shown() -> None:
    assert shown("https://me:secret@host:1/x") == "https://***@host:1/x"
    assert shown("sqlite:////a/b.db") == "sqlite:////a/b.db"


@pytest.mark.slow
@pytest.mark.long
def test_a_model_that_lies_elsewhere_by_now_is_no_other_param(empty: Path, tmp_path: Path) -> None:
    """MLflow refuses another value of a param, and a path makes no config: what a run was first said to have stays."""
    sweep, db = small(tmp_path, seeds=2)
    uri = new(empty, tmp_path / "mlflow")
    assert export(db, "demo", uri).new == 12
    other = SweepDir(sweep.root, "another")  # whose name comes first, and so its word for the model
    for r in read_records(sweep.dir.manifest):
        fields: dict[str, Any] = {k: v for k, v in r.items() if k != "kind"}
        if r["kind"] == "config":
            fields["training"] |= {"model_name_or_path": "/moved/model"}
        append_batch(other.manifest, [(r["kind"], fields | ({"sweep": "another"} if r["kind"] == "sweep" else {}))])
    collect(sweep.root, db)
    done = [export(db, "demo", uri) for _ in range(2)]
    assert [(d.new, d.edited, d.unchanged) for d in done] == [(0, 12, 0), (0, 0, 12)]
    assert held(uri)[sweep.runs[1].run_id]["params"]["model_name_or_path"] == "miniature"


@pytest.mark.slow
@pytest.mark.long
def test_seeds_come_back_from_a_config_s_run_that_was_not_finished(empty: Path, tmp_path: Path) -> None:
    """An export was killed when it had put them below a new one, and then an exclusion was undone: the old one holds again."""
    sweep, db = small(tmp_path, seeds=2)
    uri = new(empty, tmp_path / "mlflow")
    export(db, "demo", uri)
    before, client, config = held(uri), client_of(uri), sweep.runs[1].config_id
    stray = client.create_run("1", tags={"emsweep.config_id": config})
    for run in client.search_runs(["1"], f"tags.`emsweep.config_id` = '{config}' and tags.`emsweep.seed` LIKE '%'"):
        client.set_tag(run.info.run_id, "mlflow.parentRunId", stray.info.run_id)
    done = export(db, "demo", uri)
    assert (done.new, done.edited, done.unchanged) == (0, 0, 12)
    assert held(uri) == before
