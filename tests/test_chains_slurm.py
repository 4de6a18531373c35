"""A chain on a real Slurm: submitted once, its stages follow each other by themselves."""

from __future__ import annotations

from pathlib import Path

import pytest

from em_core.journal import RunStatus, SweepDir, read_records
from sweeps.expand import expand
from sweeps.observe import Observer
from tests.cluster import SlurmCluster
from tests.conftest import Emsweep
from tests.test_chains import SPEC, accuracies, attempts, loaded, stages
from tests.test_follow import SITE, until


@pytest.mark.slurm
@pytest.mark.slow
def test_a_chain_on_slurm_is_submitted_once(tmp_path: Path, on_slurm: SlurmCluster, emsweep: Emsweep) -> None:
    e = expand(loaded(tmp_path, SPEC.replace("timeout_min: 5", "timeout_min: 5, runs_per_job: 1")))
    (tmp_path / "site.toml").write_text(SITE.replace("told", f"{tmp_path}/told"))
    said = emsweep("submit", "order.yaml", "-y", env=on_slurm.env(), check=0).stdout
    assert "4 jobs submitted. 2 runs wait for their parents, and follow when these are done." in said
    until(240, "the follow-up did not finish the chain", lambda: (tmp_path / "told-done").exists())
    sweep = SweepDir(tmp_path / "runs", "order")
    assert Observer(sweep).look().count(RunStatus.COMPLETED) == 6
    assert len(attempts(sweep)) == 6
    kinds = [r["kind"] for r in read_records(sweep.submissions)]
    assert kinds.count("intent") == 2, "the children went in one array, when the parents were done"
    assert kinds.count("follow_up") == 2
    [em], [_, child] = stages(e)["em"], stages(e)["em_rent"]
    scores = accuracies(sweep)
    for seed in (0, 1):
        assert scores[f"{child.config_id}-s{seed}"][0] == scores[f"{em.config_id}-s{seed}"][2]


@pytest.mark.slurm
@pytest.mark.slow
def test_a_parent_that_fails_ends_the_chain_and_somebody_is_told(
    tmp_path: Path, on_slurm: SlurmCluster, emsweep: Emsweep
) -> None:
    loaded(tmp_path)
    (tmp_path / "site.toml").write_text(SITE.replace("told", f"{tmp_path}/told"))
    env = {**on_slurm.env(), "EMSWEEP_NOOP_FAULT": "bug"}
    emsweep("submit", "order.yaml", "--set", "method=noop", "-y", env=env, check=0)
    until(120, "nobody was told", lambda: (tmp_path / "told-stop").exists())
    until(5, "the command's input", lambda: "blocked" in (tmp_path / "told-stop").read_text())
    told = (tmp_path / "told-stop").read_text()
    assert told.startswith("order+method=noop: 0 of 6 runs done, 2 blocked, 4 failed (its parent ")
