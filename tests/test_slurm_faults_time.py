"""Time limits under a sweep on Slurm: a job that meets its own goes on in its next try; a run that can never fit says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from em_core.journal import RunStatus
from em_core.noop import STEP_SECONDS
from tests.cluster import SlurmCluster
from tests.fault_tools import SPEC, Calm, Plant

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

RESOURCES = "{runs_per_job: 16, slots_per_job: 2, timeout_min: 1, slurm_partition: short}"
ONE_JOB = SPEC.replace("{runs_per_job: 8, slots_per_job: 2, timeout_min: 5}", RESOURCES)
FOUR_RUNS = (
    ONE_JOB.replace("[1.0e-4, 2.0e-4]", "[1.0e-4]").replace("[0.3, 0.7]", "[0.3]").replace("slots_per_job: 2", "slots_per_job: 4")
)


def test_a_time_limit_in_mid_run(on_slurm: SlurmCluster, tmp_path: Path, calm: Calm, request: pytest.FixtureRequest) -> None:
    plant = Plant(tmp_path, on_slurm, spec=ONE_JOB, step_seconds=1.6)  # 64 s of work, two runs at a time
    plant.finish(plant.start())
    assert len(plant.tries()) >= 2
    assert "time limit" in [t.ended for t in plant.tries()]
    assert plant.count(RunStatus.FAILED) == 0
    plant.judge("time limit in mid-run", len(plant.tries()) - 1, calm, request)


def test_a_run_longer_than_the_time_limit(
    on_slurm: SlurmCluster, tmp_path: Path, calm: Calm, request: pytest.FixtureRequest
) -> None:
    plant = Plant(tmp_path, on_slurm, spec=FOUR_RUNS, runs=4, step_seconds=20)
    said = plant.call("run", "plant.yaml", "--launcher", "slurm", check=False, seconds=240)
    assert "4 runs failed" in said
    assert len(plant.tries()) == 1, "what cannot fit is not tried for ever"
    told = plant.call("sql", "SELECT DISTINCT cause, message FROM attempts", "--format", "csv")
    assert "time limit" in told
    assert "raise resources.timeout_min" in told
    plant.call("retry", "plant")
    plant.env[STEP_SECONDS] = "0"
    plant.finish()
    plant.judge("a run longer than its time limit, then a shorter one", 1, calm, request)
