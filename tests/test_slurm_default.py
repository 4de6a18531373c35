"""The default sweep, whole: on a real Slurm and on this machine it gives the same numbers, bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cluster import SlurmCluster
from tests.conftest import Emsweep
from tests.test_kill import REPO, numbers

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(1500)]

SPEC = str(REPO / "sweeps" / "specs" / "miniature.yaml")


def test_the_default_sweep_is_bit_equal_on_slurm(tmp_path: Path, slurm: SlurmCluster, emsweep: Emsweep) -> None:
    site = tmp_path / "site.toml"
    site.write_text("poll_seconds = 2\n")
    env = {**slurm.env(), "EMSWEEP_SITE": str(site)}
    on_slurm = ("--launcher", "slurm", "--root", "there", "--db", "there.duckdb", "--set", "resources.runs_per_job=20")
    emsweep("run", SPEC, "-y", *on_slurm, env=env, check=0, timeout=700)
    emsweep("run", SPEC, "-y", "--launcher", "local", "--root", "here", "--db", "here.duckdb", check=0, timeout=700)
    here, there = numbers(tmp_path / "here", "miniature"), numbers(tmp_path / "there", "miniature")
    assert len(here) == 144
    assert here == there
