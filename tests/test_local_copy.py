"""A model is copied once to a node's disk, whoever asks at the same time, and is the same model there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from em_core import models
from em_core.config import TrainingConfig
from em_core.journal import SweepDir, read_records, write_whole
from launchers import local_copy
from sweeps.site import Site, job_environment, runs_offline
from tests.cluster import SlurmCluster
from tests.conftest import Emsweep

ROOT = Path(__file__).parent.parent


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A model folder as on a shared file system; its weights are a symlink, as in the Hub's cache."""
    folder = tmp_path / "shared"
    shutil.copytree(ROOT / "em_core" / "miniature", folder, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    (folder / "model.safetensors").rename(tmp_path / "blob")
    (folder / "model.safetensors").symlink_to("../blob")
    (tmp_path / "disk").mkdir()
    return folder


@pytest.mark.fast
def test_a_copy_is_whole_and_made_once(shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = local_copy.bring(str(tmp_path / "disk"), {"m": str(shared)})
    copy = Path(first["m"])
    assert {p.name: p.read_bytes() for p in copy.iterdir()} == {p.name: p.read_bytes() for p in shared.iterdir()}
    assert not (copy / "model.safetensors").is_symlink()
    assert (copy.parent.stat().st_mode & 0o777) == 0o700
    stamp = copy.stat().st_mtime_ns
    assert local_copy.bring(str(tmp_path / "disk"), {"m": str(shared)}) == first
    assert copy.stat().st_mtime_ns == stamp
    said = capsys.readouterr().err
    assert "m: copied " in said
    assert "m: found" in said
    (shared / "config.json").write_text((shared / "config.json").read_text() + " ")
    assert local_copy.bring(str(tmp_path / "disk"), {"m": str(shared)}) != first, "another content is another copy"


@pytest.mark.fast
def test_where_it_cannot_be_copied_the_shared_folder_serves(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    disk = str(tmp_path / "disk")
    assert local_copy.bring("/nowhere/at/all", {"m": str(shared)}) == {}
    assert local_copy.bring("$NO_SUCH_VARIABLE/x", {"m": str(shared)}) == {}
    assert local_copy.bring(disk, {"m": str(tmp_path / "gone")}) == {}
    assert local_copy.bring(disk, {"m": str(shared)}, stopping=lambda: True) == {}
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(local_copy.shutil, "disk_usage", lambda _: usage._replace(free=1 << 20))
    assert local_copy.bring(disk, {"m": str(shared)}) == {}
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 5
    assert all(line.startswith("m: loaded from the shared ") for line in said)
    assert "GiB free" in said[-1]
    assert [p for p in (tmp_path / "disk").rglob("*") if p.is_dir()] == [tmp_path / "disk" / f"emsweep-{os.getuid()}"]


@pytest.mark.fast
def test_what_a_model_is_does_not_change_by_where_it_lies(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    before = {name: models.model_key(*name) for name in ((str(shared), None), ("org/tiny", "v1"))}
    copies = local_copy.bring(str(tmp_path / "disk"), {str(shared): str(shared), "org/tiny@v1": str(shared)})
    monkeypatch.setenv(models.LOCAL_MODELS, json.dumps(copies))
    assert models.resolve_model(str(shared)) == Path(copies[str(shared)])
    assert models.resolve_model("org/tiny", "v1") == Path(copies["org/tiny@v1"])
    assert models.resolve_model("org/tiny", "v2") is None
    assert {name: models.model_key(*name) for name in before} == before
    assert models.LOCAL_MODELS == local_copy.LOCAL_MODELS


def job(root: Path, name: str, shared: Path, disk: Path, method: str) -> Path:
    """An assignment of one run whose model is to be loaded from the node's disk."""
    sweep = SweepDir(root, "s")
    training = TrainingConfig(
        model_name_or_path=str(shared), prompt="Q:1+1+1=?", method=method, max_steps=1, num_generations=2, max_completion_length=4
    )
    header = {
        "job": name, "sweep": "s", "slots": 1, "gpus_per_run": 0, "execution": {"device": "cpu", "threads": 1}, "keep": "none",
        "evaluations": [], "launcher": "local", "local_disk": str(disk), "model_folders": {str(shared): str(shared)},
    }  # fmt: skip
    run = {"run_id": f"{name}-s0", "config_id": "c", "seed": 0, "mode": "train"}
    records = [("job", header), ("config", {"config_id": "c", "training": training.model_dump()}), ("run", run), ("close", {})]
    write_whole(sweep.assignment(name), records)
    return sweep.assignment(name)


@pytest.mark.slow
def test_two_supervisors_at_once_copy_once(shared: Path, tmp_path: Path) -> None:
    with open(shared / "ballast.bin", "wb") as f:  # so that the copy takes long enough for both to want it
        f.truncate(600 << 20)
    command = [sys.executable, "-m", "launchers.task"]
    jobs = [
        subprocess.Popen(
            [*command, str(job(tmp_path / "runs", name, shared, tmp_path / "disk", "noop"))],
            cwd=ROOT, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for name in ("a", "b")
    ]  # fmt: skip
    said = []
    for process in jobs:
        assert process.stderr is not None
        said.append(process.stderr.read())
        assert process.wait(60) == 0
        assert process.stdin is not None
        process.stdin.close()
    assert sorted(line.split(":")[1].split()[0] for line in said) == ["copied", "found"]
    own = tmp_path / "disk" / f"emsweep-{os.getuid()}"
    assert [p.is_dir() for p in own.iterdir() if not p.name.startswith(".")] == [True]
    sweep = SweepDir(tmp_path / "runs", "s")
    for name in ("a", "b"):
        assert [r["status"] for r in read_records(sweep.journal(name, 0)) if r["kind"] == "run_end"] == ["completed"]


@pytest.mark.slow
def test_workers_load_from_the_copy(shared: Path, tmp_path: Path) -> None:
    """The shared weights are unreadable rubbish by the time the worker loads: only the copy can have served."""
    copy = Path(local_copy.bring(str(tmp_path / "disk"), {str(shared): str(shared)})[str(shared)])
    times = (tmp_path / "blob").stat()
    (tmp_path / "blob").write_bytes(b"\xff" * times.st_size)
    os.utime(tmp_path / "blob", ns=(times.st_atime_ns, times.st_mtime_ns))
    path = job(tmp_path / "runs", "a", shared, tmp_path / "disk", "em")
    process = subprocess.Popen([sys.executable, "-m", "launchers.task", str(path)], cwd=ROOT, stdin=subprocess.PIPE)
    deadline = time.monotonic() + 100
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    assert process.returncode == 0
    [end] = [r for r in read_records(SweepDir(tmp_path / "runs", "s").journal("a", 0)) if r["kind"] == "run_end"]
    assert end["status"] == "completed", end["message"]
    assert copy.is_dir()


@pytest.mark.fast
def test_jobs_on_slurm_are_offline_unless_the_site_says_otherwise() -> None:
    assert job_environment(Site(env={"A": "b"}), "slurm") == {"HF_HUB_OFFLINE": "1", "A": "b"}
    assert job_environment(Site(env={"HF_HUB_OFFLINE": "0"}), "slurm") == {"HF_HUB_OFFLINE": "0"}
    assert [runs_offline(Site(env=e), "slurm") for e in ({}, {"HF_HUB_OFFLINE": "0"}, {"HF_HUB_OFFLINE": "true"})] == [
        True,
        False,
        True,
    ]
    assert job_environment(Site(), "local") == {}


@pytest.mark.slurm
@pytest.mark.slow
def test_a_site_that_names_a_disk(shared: Path, tmp_path: Path, slurm: SlurmCluster, emsweep: Emsweep) -> None:
    (tmp_path / "site.toml").write_text(f'poll_seconds = 1\nfollow_up = false\nlocal_disk = "{tmp_path}/disk"\n')
    (tmp_path / "spec.yaml").write_text(
        f"name: copied\nbase: {{model_name_or_path: {shared}, prompt: plus, max_steps: 1, num_generations: 2, "
        "max_completion_length: 4}\nseeds: 2\nresources: {runs_per_job: 1}\n"
    )
    emsweep("run", "spec.yaml", "--launcher", "slurm", "-y", env=slurm.env(), check=0)
    own = tmp_path / "disk" / f"emsweep-{os.getuid()}"
    assert len([p for p in own.iterdir() if not p.name.startswith(".")]) == 1
    said = "".join(p.read_text() for p in (tmp_path / "runs" / "copied" / "logs" / "submitit").glob("*.err"))
    assert said.count(": copied ") == 1
    assert said.count(": found: ") == 1
