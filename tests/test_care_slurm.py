"""What a person sees and does about a sweep on a real Slurm: jobs that never begin, a part that is cancelled, calls made."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from em_core.journal import SweepDir
from em_core.noop import STEP_SECONDS
from tests.cluster import SlurmCluster
from tests.conftest import Emsweep

pytestmark = [pytest.mark.slurm, pytest.mark.slow]
SPEC = """
name: plant
base: {model_name_or_path: miniature, prompt: plus, method: noop, max_steps: 3}
axes: {learning_rate: [1.0e-4, 5.0e-4]}
seeds: 3
evaluate: [{tasks: [two_step_sums], steps: [0, 3], limit: 40}]
resources: {runs_per_job: 3, timeout_min: 5}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "plant.yaml").write_text(SPEC)
    (tmp_path / "site.toml").write_text("poll_seconds = 1\nfollow_up = false\n")
    return tmp_path


def until_quiet(slurm: SlurmCluster, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while slurm.run("squeue", "--noheader"):
        assert time.monotonic() < deadline
        time.sleep(0.5)


def test_jobs_that_never_begin_leave_their_last_words(folder: Path, slurm: SlurmCluster, emsweep: Emsweep) -> None:
    broken = '\nsetup = ["echo module: command not found: cuda/99 >&2; exit 3"]\n'
    site = folder / "site.toml"
    site.write_text(site.read_text() + broken)
    emsweep("submit", "plant.yaml", env=slurm.env(), check=0)
    until_quiet(slurm)
    deadline = time.monotonic() + 180
    # One job may be known to be gone before the other is.
    while (found := json.loads(emsweep("status", "--json", env=slurm.env(), check=0).stdout)[0])["live_jobs"]:
        assert time.monotonic() < deadline
        time.sleep(1)
    (why,) = found["causes"]
    assert why["attempts"] == 2
    assert why["message"] == "never began (module: command not found: cuda/99)"
    assert "module: command not found: cuda/99" in emsweep("logs", "plant", check=0).stdout


def test_a_part_of_a_sweep_is_cancelled_and_the_rest_goes_on(folder: Path, slurm: SlurmCluster, emsweep: Emsweep) -> None:
    env = {**slurm.env(), STEP_SECONDS: "3"}
    emsweep("submit", "plant.yaml", env=env, check=0)
    said = emsweep("cancel", "plant", "--where", "learning_rate=5e-4", env=env, check=0).stdout
    stopped = int(said.split()[0])
    assert 1 <= stopped <= 3, "on a busy machine some are done before the command has started"
    until_quiet(slurm)
    began = time.monotonic()
    while (found := json.loads(emsweep("status", "--json", env=env, check=0).stdout)[0])["live_jobs"]:
        forgotten = found["live_jobs"] == found["unheard_jobs"] and time.monotonic() - began > 60
        if forgotten:
            break
        assert time.monotonic() - began < 180
        time.sleep(1)
    # A job that was stopped before it began leaves its runs new, until the holder of the lock records how it ended. Where
    # not even the accounting remembers it, only a command that sees it missing for a while knows that it is gone: `run`.
    left = found["cancelled"] + found["interrupted"] + found["new"] + (found["queued"] if found["live_jobs"] else 0)
    assert (found["completed"], left) == (6 - stopped, stopped)
    emsweep("run", "plant.yaml", "--launcher", "slurm", env={**env, STEP_SECONDS: "0"}, check=0)
    run_id = json.loads(emsweep("sql", "SELECT run_id FROM runs LIMIT 1", "--format", "json", check=0).stdout)[0]["run_id"]
    assert "_0_log.out" in emsweep("logs", run_id, check=0).stdout
    assert SweepDir(folder / "runs", "plant").journals.is_dir()


def test_a_status_of_two_sweeps_asks_the_scheduler_once(folder: Path, slurm: SlurmCluster, emsweep: Emsweep) -> None:
    env = {**slurm.env(), STEP_SECONDS: "3"}
    emsweep("submit", "plant.yaml", env=env, check=0)
    emsweep("submit", "plant.yaml", "--set", "seeds=4", env=env, check=0)
    calls = folder / "calls"
    for program in ("squeue", "sacct"):
        (real,) = slurm.run("which", program).split()
        (folder / "bin").mkdir(exist_ok=True)
        (folder / "bin" / program).write_text(f'#!/bin/sh\necho {program} >> {calls}\nexec {real} "$@"\n')
        (folder / "bin" / program).chmod(0o755)
    counted = {**env, "PATH": f"{folder / 'bin'}:{env.get('PATH', '/usr/local/bin:/usr/bin:/bin')}"}
    assert len(json.loads(emsweep("status", "--json", env=counted, check=0).stdout)) == 2
    assert 1 <= len(calls.read_text().split()) <= 2
    emsweep("cancel", "plant", "-y", env=env, check=0)
    emsweep("cancel", "plant+seeds=4", "-y", env=env, check=0)
    until_quiet(slurm)
