"""A trainer of one's own as a process: what it is given, how it may end, and that nothing of it is left behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from analysis.grid import read_grid
from analysis.report import _evaluation
from em_core.config import Evaluation, Execution, Outcome, RunRequest, TrainingConfig
from em_core.external import External, OutOfMemoryError, TrainerFailed
from em_core.journal import RunStatus, SweepDir
from sweeps.manifest import read_manifest
from sweeps.observe import Observer
from sweeps.show import measurements
from tests.cluster import SlurmCluster
from tests.conftest import Emsweep
from tests.test_kill import start

pytestmark = pytest.mark.slow

SPECS = Path(__file__).parent.parent / "sweeps" / "specs"
HELD = Evaluation(task="held_out", task_key="external:held_out")
Said = list[tuple[str, dict[str, Any]]]


@pytest.fixture
def trained(tmp_path: Path) -> Callable[..., tuple[Outcome, Said]]:
    """Run a trainer's text in this process's hands, as a worker does."""

    def train(text: str, *evaluations: Evaluation, program: str = "python", **fields: Any) -> tuple[Outcome, Said]:
        script = tmp_path / "code" / "train.py"
        script.parent.mkdir(exist_ok=True)
        script.write_text(text)
        command = f"{program} {script}"
        config = TrainingConfig(model_name_or_path="none", prompt="none", method="external", command=command, **fields)
        asked = tuple((e.eval_id(), e, (0, 2)) for e in evaluations)
        (tmp_path / "runs" / "s").mkdir(parents=True, exist_ok=True)
        folder = str(tmp_path / "runs" / "s" / "checkpoints" / "c-s3")
        said: Said = []
        request = RunRequest("c-s3", "c", 3, 1, "train", config, asked, "last", folder)
        outcome = External(Execution(threads=2)).run(request, lambda kind, **record: said.append((kind, record)))
        return outcome, said

    return train


def test_what_it_is_given(
    trained: Callable[..., tuple[Outcome, Said]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    text = (
        "import json, os, sys\n"
        "run = json.load(sys.stdin)\n"
        "run |= {'cwd': os.getcwd(), 'python': sys.executable}\n"
        "open('given.json', 'w').write(json.dumps(run))\n"
        "print('a line for the log')\n"
        "os.makedirs(run['checkpoints'] + '/step-2')\n"
        "print(json.dumps({'kind': 'checkpoint', 'step': 2}))\n"
        "for s in (0, 2): print(json.dumps({'kind': 'eval', 'step': s, 'task': 'held_out', 'accuracy': s / 4}))\n"
        "print(json.dumps({'kind': 'metrics', 'step': 2, 'values': {'loss': 1}}), end='')\n"
    )
    outcome, said = trained(text, HELD, max_steps=2, params={"width": 8})
    given = json.loads((tmp_path / "code" / "given.json").read_text())
    assert (given["run_id"], given["config_id"], given["seed"], given["attempt"]) == ("c-s3", "c", 3, 1)
    assert (given["mode"], given["keep"], given["params"]) == ("train", "last", {"width": 8})
    assert given["training"]["max_steps"] == 2
    assert not {"command", "params"} & given["training"].keys()
    assert given["evaluations"] == [{"eval_id": HELD.eval_id(), **json.loads(HELD.model_dump_json()), "steps": [0, 2]}]
    assert given["checkpoints"] == str(tmp_path / "runs" / "s" / "checkpoints" / "c-s3")
    assert given["cwd"] == str(tmp_path / "code"), "it works in the folder of its script"
    assert given["python"] == sys.executable, "`python` is the one that runs emsweep"
    assert outcome == Outcome("completed", 2)
    assert [kind for kind, _ in said] == ["checkpoint", "eval", "eval", "metrics"], "the last line needs no line end"
    assert said[0][1]["path"] == "checkpoints/c-s3/step-2"
    assert "a line for the log" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("raise ValueError('a bad start')", TrainerFailed, "exit code 1: ValueError: a bad start"),
        ("import sys; sys.exit(7)", TrainerFailed, "exit code 7: it said nothing"),
        ("raise RuntimeError('CUDA out of memory. Tried')", OutOfMemoryError, "exit code 1: RuntimeError: CUDA out of memory"),
        ("print('one')\nprint('{\"kind\": \"eval\"}')", TrainerFailed, r"line 2 of the trainer's output: eval.step: is missing"),
        ("pass", TrainerFailed, "the trainer ended without telling held_out at step 0, held_out at step 2"),
    ],
)
def test_how_it_may_fail(trained: Callable[..., Any], text: str, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        trained(text, HELD)


def test_a_program_that_is_not_there(trained: Callable[..., Any]) -> None:
    with pytest.raises(TrainerFailed, match=r"exit code 127: .*no-such-program: not found"):
        trained("", program="no-such-program")


def test_what_it_left_behind_is_ended(trained: Callable[..., tuple[Outcome, Said]], tmp_path: Path) -> None:
    """A helper that holds its stdout open keeps nobody waiting, and does not outlive the run."""
    text = (
        "import subprocess\n"
        "p = subprocess.Popen(['sleep', '1000'])\n"
        "open('pid', 'w').write(str(p.pid))\n"
        'print(\'{"kind": "metrics", "step": 1, "values": {"a": 1}}\')\n'
    )
    began = time.monotonic()
    outcome, _ = trained(text)
    assert outcome.steps == 1
    assert time.monotonic() - began < 30
    assert gone(int((tmp_path / "code" / "pid").read_text()))


def test_it_may_end_its_own_helpers(trained: Callable[..., tuple[Outcome, Said]]) -> None:
    """The worker ignores TERM; a trainer that inherited that could not end a pool of processes."""
    text = (
        "import subprocess, signal\np = subprocess.Popen(['sleep', '1000']); p.terminate(); assert p.wait(5) == -signal.SIGTERM\n"
    )
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        assert trained(text)[0].status == "completed"
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


def gone(pid: int, seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if "Z" in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]:
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


# -- through the whole of it ---------------------------------------------------------------------------------------

PLANT = """\
name: plant
base: {method: external, command: python train.py, max_steps: 2}
axes: {params.a: [1, 2]}
seeds: 2
evaluate: [{tasks: [held_out], steps: [2]}]
"""
HEAD = """\
import json, os, signal, subprocess, sys, time
run = json.load(sys.stdin)
def tell(kind, **fields): print(json.dumps({"kind": kind, **fields}), flush=True)
def finish():
    tell("metrics", step=2, values={"loss": run["seed"]})
    tell("eval", step=2, task="held_out", accuracy=round(run["params"]["a"] / 10 + run["seed"] / 100, 3))
first = run["params"]["a"] == 1 and run["seed"] == 0 and run["attempt"] == 0
"""


def plant(folder: Path, text: str, spec: str = PLANT) -> None:
    (folder / "plant.yaml").write_text(spec)
    (folder / "train.py").write_text(HEAD + text)


def scores(emsweep: Emsweep) -> str:
    asked = "SELECT params.a::INT AS a, seed, accuracy FROM scores ORDER BY ALL"
    return emsweep("sql", asked, "--format", "csv", check=0).stdout


ALL = "a,seed,accuracy\n1,0,0.1\n1,1,0.11\n2,0,0.2\n2,1,0.21\n"


def test_a_killed_trainer_is_bad_luck_and_a_killed_worker_takes_it_along(tmp_path: Path, emsweep: Emsweep) -> None:
    plant(
        tmp_path,
        "if first: os.kill(os.getpid(), signal.SIGKILL)\n"
        "if run['params']['a'] == 2 and run['attempt'] == 0:\n"
        "    helper = subprocess.Popen(['sleep', '1000'])\n"
        "    open(f'pids{run[\"seed\"]}', 'w').write(f'{os.getpid()} {helper.pid}')\n"
        "    time.sleep(1000)\n"
        "finish()\n",
    )
    process = start(tmp_path, "local", {})
    files = [tmp_path / f"pids{seed}" for seed in (0, 1)]
    waiting = list(files)
    deadline = time.monotonic() + 60
    while waiting:
        assert time.monotonic() < deadline
        for f in [f for f in waiting if f.exists() and len(f.read_text().split()) == 2]:
            os.kill(_parent(int(f.read_text().split()[0])), signal.SIGKILL)
            waiting.remove(f)
        time.sleep(0.1)
    assert all(gone(int(pid)) for f in files for pid in f.read_text().split()), "an orphan trains on"
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert scores(emsweep) == ALL
    attempts = [a for t in Observer(SweepDir(tmp_path / "runs", "plant")).tries() for a in t.attempts]
    died = [a for a in attempts if a.status is RunStatus.INTERRUPTED]
    assert len(died) == 3
    assert all(a.end and a.end["cause"] == "killed" for a in died)


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_a_failed_and_a_diverged_run_are_told_apart(tmp_path: Path, emsweep: Emsweep) -> None:
    plant(
        tmp_path,
        "if run['params']['a'] == 2: tell('end', status='diverged', message='the loss is infinite'); sys.exit(0)\n"
        "if first and not os.path.exists('mended'): raise ValueError('not yet')\n"
        "finish()\n",
    )
    emsweep("run", "plant.yaml", "--launcher", "local", "-y", check=1)
    asked = ("sql", "SELECT DISTINCT status, cause, message FROM runs ORDER BY ALL", "--format", "csv")
    told = emsweep(*asked, check=0).stdout.splitlines()[1:]
    assert told == [
        'completed,"",""',
        "diverged,non-finite,the loss is infinite",
        "failed,exception,TrainerFailed: exit code 1: ValueError: not yet",
    ]
    trace = emsweep("sql", "SELECT traceback FROM attempts WHERE status = 'failed'", "--format", "json", check=0).stdout
    assert "train.py" in trace
    (tmp_path / "mended").touch()
    emsweep("retry", "plant", check=0)
    emsweep("run", "plant.yaml", "--launcher", "local", "-y", check=0)


def test_scores_nobody_asked_for_are_queried_and_reported_all_the_same(tmp_path: Path, emsweep: Emsweep) -> None:
    plant(tmp_path, "finish()\n", PLANT.replace("evaluate: [{tasks: [held_out], steps: [2]}]\n", ""))
    said = emsweep("run", "plant.yaml", "--launcher", "local", "-y", check=0).stdout
    assert "params_a=2 has 0.205" in " ".join(said.split())
    assert scores(emsweep) == ALL
    losses = emsweep("sql", "SELECT sum(value) AS s, count(*) AS n FROM metrics WHERE name = 'loss'", "--format", "csv", check=0)
    assert losses.stdout == "s,n\n2.0,4\n"
    assert _evaluation(read_grid(tmp_path / "results.duckdb", "plant")).startswith("held_out, told by the trainer (")


def test_an_edited_trainer_shows_in_its_attempts(tmp_path: Path, emsweep: Emsweep) -> None:
    plant(tmp_path, "finish()\n")
    emsweep("run", "plant.yaml", "--launcher", "local", "-y", check=0)
    plant(tmp_path, "finish()  # edited\n", PLANT.replace("seeds: 2", "seeds: 3"))
    emsweep("run", "plant.yaml", "--launcher", "local", "-y", check=0)
    asked = "SELECT n FROM (SELECT trainer, count(*) AS n FROM attempts GROUP BY trainer) ORDER BY n"
    assert emsweep("sql", asked, "--format", "csv", check=0).stdout == "n\n2\n4\n"


@pytest.mark.long
def test_the_shipped_example_end_to_end(tmp_path: Path, emsweep: Emsweep) -> None:
    """run, again, sql, frames, report; the numbers rest on config and seed alone."""
    spec = str(SPECS / "external.yaml")
    few = ("--launcher", "local", "-y", "--set", "seeds=4", "--set", "params.width=16")
    said = emsweep("run", spec, *few, check=0).stdout
    assert "3 configs x 4 seeds = 12 runs" in said
    assert "The widest seed spread" in said
    assert "params_learning_rate=" in said
    assert "nothing to do" in emsweep("run", spec, *few, check=0).stdout
    sweep = "external+params.width=16+seeds=4"
    asked = f"FROM cells WHERE sweep = '{sweep}' AND metric = 'accuracy' AND step = 200 AND n = 4 AND sd > 0 AND mean > .6"
    assert emsweep("sql", f"SELECT count(*) AS n {asked}", "--format", "csv", check=0).stdout == "n\n3\n"
    answers = "SELECT count(*) AS n, max(question) AS q FROM answers WHERE step = 200"
    assert emsweep("sql", answers, "--format", "csv", check=0).stdout == "n,q\n2400,199\n"
    emsweep("report", sweep, check=0)
    page = (tmp_path / "runs" / sweep / "report" / "index.html").read_text()
    assert "params_learning_rate" in page

    from analysis.queries import load

    cells = load(sweep, tmp_path / "results.duckdb").cells
    assert sorted(cells["params_learning_rate"].unique()) == [0.1, 1.0, 10.0]
    assert cells["params_width"].unique().to_list() == [16]

    emsweep("run", spec, *few, "--root", "again", "--db", "again.duckdb", check=0)
    assert curves(tmp_path / "runs", sweep) == curves(tmp_path / "again", sweep)


def curves(root: Path, name: str) -> dict[str, list[Any]]:
    """Every record of every run that counts."""
    sweep = SweepDir(root, name)
    found = {}
    for run_id, attempt in Observer(sweep).look().winners.items():
        records = measurements(sweep, attempt)
        found[run_id] = [[r["kind"], r["step"], r["values"], r.get("outcomes")] for r in records]
    assert found.keys() == read_manifest(sweep).runs.keys()
    return found


@pytest.mark.slurm
def test_the_example_on_slurm_equals_here(tmp_path: Path, slurm: SlurmCluster, emsweep: Emsweep) -> None:
    for name in ("external.yaml", "external_example.py"):
        shutil.copy(SPECS / name, tmp_path / name)
    (tmp_path / "site.toml").write_text("poll_seconds = 1\n")
    few = ("-y", "--set", "seeds=2", "--set", "params.width=16")
    emsweep("run", "external.yaml", "--launcher", "slurm", *few, "--root", "there", "--db", "t.duckdb", env=slurm.env(), check=0)
    emsweep("run", "external.yaml", "--launcher", "local", *few, "--root", "here", "--db", "h.duckdb", check=0)
    sweep = "external+params.width=16+seeds=2"
    assert len(curves(tmp_path / "here", sweep)) == 6
    assert curves(tmp_path / "here", sweep) == curves(tmp_path / "there", sweep)


def test_a_new_measurement_is_asked_of_the_checkpoints_it_kept(tmp_path: Path, emsweep: Emsweep) -> None:
    plant(
        tmp_path,
        "if run['mode'] == 'train':\n"
        "    finish()\n"
        "    os.makedirs(run['checkpoints'] + '/step-2')\n"
        "    tell('checkpoint', step=2)\n"
        "else:\n"
        "    for e in run['evaluations']: tell('eval', step=2, eval_id=e['eval_id'], accuracy=0.5)\n",
    )
    emsweep("run", "plant.yaml", "--launcher", "local", "-y", check=0)
    (tmp_path / "plant.yaml").write_text(PLANT.replace("[held_out]", "[held_out, later]"))
    emsweep("run", "plant.yaml", "--launcher", "local", "-y", check=0)
    asked = "SELECT task, count(*) AS n FROM evals JOIN attempts USING (attempt_id) GROUP BY ALL ORDER BY ALL"
    assert emsweep("sql", asked, "--format", "csv", check=0).stdout == "task,n\nheld_out,4\nlater,4\n"
    modes = "SELECT mode, count(*) AS n FROM attempts GROUP BY ALL ORDER BY ALL"
    assert emsweep("sql", modes, "--format", "csv", check=0).stdout == "mode,n\neval,4\ntrain,4\n"


@pytest.mark.long
def test_day_one_knows_that_it_loads_no_model(tmp_path: Path, emsweep: Emsweep) -> None:
    spec = str(SPECS / "external.yaml")
    assert "no model to fetch" in emsweep("fetch", spec, check=0).stdout
    said = emsweep("smoke", spec, "--launcher", "local", check=0).stdout
    assert " completed " in said
    emsweep("run", spec, "--launcher", "local", "-y", "--set", "seeds=1", check=0)
    plan = json.loads(emsweep("plan", spec, "--launcher", "local", "--json", check=0).stdout)
    assert (plan["measured_runs"], plan["done"]) == (9, 9), "what it took is known, whatever it ran on"
