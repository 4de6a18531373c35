"""`emsweep doctor`: what it finds here and on the real cluster, and that each fault gets its verdict."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from em_core.journal import Record
from launchers.probe import room
from sweeps.verdicts import Check, judge
from tests.cluster import SlurmCluster
from tests.conftest import Emsweep

GOOD: Record = {
    "launcher": "slurm",
    "here": {"code": "c0de", "python": "3.11.7", "packages": {"torch": "2.13.0", "numpy": "2.4.6"}},
    "model_name": "org/seven",
    "site": {},
    "gpus_asked": 1,
    "hello": {"host": "n1", "slurm": {"SLURMD_NODENAME": "n1", "SLURM_MEM_PER_NODE": "65536"}},
    "start_seconds": 3.0,
    "pings": [{"sent": 100.0, "received": 100.2, "t": 100.1, "same": True} for _ in range(5)],
    "facts": {
        "code": "c0de", "python": "3.11.7", "packages": {"torch": "2.13.0", "numpy": "2.4.6"}, "executable": "/opt/python",
        "cwd": "/code", "cpus": 8, "memory_gib": {"MemTotal": 512.0, "MemAvailable": 500.0},
        "gpus": [{"name": "NVIDIA H200", "mib": 143771}], "visible_gpus": ["0"],
    },
    "locks": {"here": True, "there": True, "error": None},
    "signal": 0.4,
    "disks": {
        "here": {"free_gib": 900.0, "free_share": 0.4, "free_files": 10**7, "free_files_share": 0.5},
        "root": {"writable": True, "free_gib": 900.0, "free_share": 0.4, "free_files": 10**7, "free_files_share": 0.5},
        "local": {"path": "/scratch", "writable": True, "free_gib": 1000.0},
    },
    "model": {
        "returncode": 0, "stderr": "",
        "stages": {
            "torch": {"seconds": 9.0, "version": "2.13.0", "gpus": [{"name": "NVIDIA H200", "gib": 139.0}]},
            "load": {"seconds": 20.0, "device": "cuda", "parameters": 7_000_000_000},
            "forward": {"seconds": 0.8, "finite": True, "peak_gib": 28.0},
        },
    },
    "cluster": {"max_array_size": 1001, "max_submit_jobs": 500, "accounting": True, "version": "23.11"},
    "requeue": {"seconds": 4.0},
}  # fmt: skip


def verdicts(found: Record) -> dict[str, str]:
    return {c.check: c.verdict for c in judge(found)}


@pytest.mark.fast
def test_all_is_well() -> None:
    checks = judge(GOOD)
    assert {c.verdict for c in checks} == {"ok"}
    names = ["job", "shared files", "clocks", "packages", "GPUs", "host", "locks", "signals", "root", "local_disk", "model"]
    assert [c.check for c in checks] == [*names, "limits", "accounting", "requeue"]
    assert not any(c.advice for c in checks)


def put(path: str, value: Any) -> Callable[[Record], None]:
    """Change one place of the findings: `facts.gpus`, `pings.0.same`."""

    def change(found: Record) -> None:
        at: Any = found
        *parts, last = path.split(".")
        for part in parts:
            at = at[int(part) if part.isdigit() else part]
        at[int(last) if last.isdigit() else last] = value

    return change


@pytest.mark.fast
@pytest.mark.parametrize(
    ("change", "check", "verdict", "found", "advice"),
    [
        (put("hello", {"error": "job 3 failed: python: not found"}), "job", "FAIL", "python: not found", "slurm_python"),
        (put("pings", [{"error": "no answer within 90 s"}]), "shared files", "FAIL", "not seen there", "every node shares"),
        (put("pings.2.same", False), "shared files", "FAIL", "not what was written", "another file system"),
        (put("pings", [{"sent": 0.0, "received": 9.0, "t": 4.5, "same": True}]), "shared files", "warn", "9.00 s", "lag"),
        (put("pings", [{"sent": 0.0, "received": 0.2, "t": 60.1, "same": True}]), "clocks", "warn", "60.00 s ahead", "admins"),
        (put("pings", [{"sent": 60.0, "received": 60.2, "t": 0.1, "same": True}]), "clocks", "warn", "60.00 s behind", "admins"),
        (put("facts", {"error": "RuntimeError: nvidia-smi: broken"}), "node", "FAIL", "nvidia-smi: broken", ""),
        (put("facts.code", "0ther"), "code", "FAIL", "em_core 0ther in /code, here c0de", "one checkout"),
        (put("facts.packages", {"torch": "2.13.0"}), "packages", "FAIL", "not on the node: numpy", "/opt/python"),
        (put("facts.packages.torch", "2.11.0"), "packages", "warn", "torch 2.11.0 (here 2.13.0)", "one interpreter"),
        (put("facts.python", "3.12.1"), "packages", "warn", "python 3.12.1 (here 3.11.7)", "one interpreter"),
        (put("facts.gpus", []), "GPUs", "FAIL", "asked for 1, nvidia-smi shows none", "partition"),
        (put("model.stages.torch.gpus", []), "GPUs", "FAIL", "torch sees 0", "CPU build"),
        (put("locks.here", False), "locks", "FAIL", "there was given here", "flock"),
        (put("locks.there", False), "locks", "FAIL", "here was given there", "flock"),
        (put("locks.error", "OSError: No locks available"), "locks", "FAIL", "No locks available", "flock"),
        (put("signal", None), "signals", "FAIL", "never arrived", "container"),
        (put("signal", {"error": "scancel failed"}), "signals", "FAIL", "scancel failed", "container"),
        (put("disks.root.writable", False), "root", "FAIL", "not writable", "root"),
        (put("disks.root.free_gib", 5.0), "root", "warn", "5 GiB free", "make room"),
        (put("disks.root.free_files", 500), "root", "FAIL", "500 files", "make room"),
        (put("disks.local", {"path": "/scratch", "writable": False}), "local_disk", "warn", "/scratch is not there", "shared"),
        (put("model", {"error": "no answer within 500 s"}), "model", "FAIL", "no answer", ""),
        (
            put("model", {"returncode": 1, "stages": {}, "stderr": "x\nImportError: libcuda"}),
            "model", "FAIL", "torch does not import: ImportError", "",
        ),
        (put("model.returncode", 1), "model", "FAIL", "exit code 1", "emsweep fetch"),
        (put("model.stages.forward.finite", False), "model", "FAIL", "on cuda", "not finite"),
        (put("model.stages.load.seconds", 400.0), "model", "warn", "load 400.0 s", "local_disk"),
        (put("cluster.accounting", False), "accounting", "warn", "does not answer", "works without"),
        (put("requeue", {"error": "Access denied"}), "requeue", "warn", "Access denied", "next round"),
    ],
)  # fmt: skip
def test_each_fault_has_its_verdict(change: Callable[[Record], None], check: str, verdict: str, found: str, advice: str) -> None:
    record = copy.deepcopy(GOOD)
    change(record)
    [said] = [c for c in judge(record) if c.check == check]
    assert said.verdict == verdict
    assert found in said.found
    assert advice in said.advice
    assert "\n" not in said.found


@pytest.mark.fast
def test_no_gpu_asked_for_is_no_fault() -> None:
    record = copy.deepcopy(GOOD)
    record["gpus_asked"], record["facts"]["gpus"], record["model"]["stages"]["torch"]["gpus"] = 0, [], []
    assert verdicts(record)["GPUs"] == "ok"


@pytest.mark.fast
def test_room_of_a_real_disk(tmp_path: Path) -> None:
    said = room(tmp_path)
    assert said["free_gib"] is not None
    assert 0 < said["free_gib"] < 1e7
    assert 0 < (said["free_share"] or 0) <= 1


LOCAL = {"job", "shared files", "clocks", "packages", "GPUs", "host", "locks", "signals", "root", "model"}


def doctor(emsweep: Emsweep, *args: str, check: int, env: dict[str, str] | None = None) -> tuple[dict[str, Check], Record]:
    said = json.loads(emsweep("doctor", "--json", *args, env=env, check=check).stdout)
    return {c["check"]: Check(**c) for c in said["checks"]}, said


@pytest.mark.slow
def test_on_this_machine(tmp_path: Path, emsweep: Emsweep) -> None:
    (tmp_path / "site.toml").write_text(f'local_disk = "{tmp_path}/nowhere"\n')
    checks, said = doctor(emsweep, "--launcher", "local", check=0)
    assert checks.keys() == LOCAL | {"local_disk"}
    assert checks["local_disk"].verdict == "warn"
    assert [c for c in LOCAL if checks[c].verdict == "FAIL"] == []
    assert said["found"]["signal"] < 10
    assert sorted(p.name for p in tmp_path.iterdir()) == ["site.toml"], "nothing is left behind"


@pytest.mark.slow
def test_a_model_that_does_not_load_fails(tmp_path: Path, emsweep: Emsweep) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{}")
    done = emsweep("doctor", "--launcher", "local", "--model", str(tmp_path / "broken"), check=1)
    [line] = [line for line in done.stdout.splitlines() if line.startswith("model ")]
    assert " FAIL " in line
    assert "it does not load" in line


@pytest.mark.slurm
@pytest.mark.slow
def test_on_the_cluster(tmp_path: Path, slurm: SlurmCluster, emsweep: Emsweep) -> None:
    """By the path of every job: the site's set-up lines and environment are met there too."""
    (tmp_path / "site.toml").write_text('setup = ["export FROM_SETUP=yes"]\n[env]\nHF_HOME = "/some/cache"\n')
    checks, said = doctor(emsweep, "--launcher", "slurm", env=slurm.env(), check=0)
    assert checks.keys() == LOCAL | {"limits", "accounting", "requeue"}
    assert {name: c for name, c in checks.items() if c.verdict != "ok"} == {}
    found = said["found"]
    assert found["facts"]["hub"] == {"HF_HOME": "/some/cache", "HF_HUB_OFFLINE": "1"}
    assert found["hello"]["slurm"]["SLURMD_NODENAME"] in ("n1", "n2")
    assert found["cluster"]["max_array_size"] == 1001
    assert found["signal"] < 10
    assert not (tmp_path / "runs").exists()
    slurm.wait("an empty queue", lambda: not slurm.run("squeue", "--noheader", "--name=emsweep-doctor"))


@pytest.mark.slurm
@pytest.mark.slow
def test_a_job_that_cannot_start_says_why(tmp_path: Path, slurm: SlurmCluster, emsweep: Emsweep) -> None:
    (tmp_path / "site.toml").write_text('setup = ["echo no such module: cuda/99 >&2", "exit 1"]\n')
    checks, _ = doctor(emsweep, "--launcher", "slurm", env=slurm.env(), check=1)
    assert checks.keys() == {"job"}
    assert checks["job"].verdict == "FAIL"
    assert "no such module: cuda/99" in checks["job"].found
    (tmp_path / "site.toml").write_text('partition = "nowhere"\n')
    refused = emsweep("doctor", "--launcher", "slurm", env=slurm.env(), check=1)
    assert "Slurm refused the jobs" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.slurm
@pytest.mark.slow
def test_a_job_that_waits_says_for_what(tmp_path: Path, on_slurm: SlurmCluster, emsweep: Emsweep) -> None:
    for node in ("n1", "n2"):
        on_slurm.drain(node)
    said = emsweep("doctor", "--launcher", "slurm", "--timeout", "0.1", env=on_slurm.env(), check=1)
    assert "is pending: " in said.stdout
    assert "after 0.1 min" in said.stdout
    assert "DRAINED" in said.stdout.upper()
    on_slurm.wait("an empty queue", lambda: not on_slurm.run("squeue", "--noheader"))
