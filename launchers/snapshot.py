"""Which code, packages and hardware an attempt ran on."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import em_core

PACKAGES = ("torch", "transformers", "accelerate", "numpy", "math-verify")


@cache
def code_digest() -> str:
    """12 hex digits over the sources of `em_core`: the code that decides a run's numbers, committed or not."""
    digest = hashlib.sha256()
    home = Path(em_core.__file__).parent
    for path in sorted(home.rglob("*.py")):
        digest.update(str(path.relative_to(home)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def provenance() -> dict[str, Any]:
    """Fields of `job_start`: digest of the code, commit and whether it was edited, Python and package versions."""
    home = Path(em_core.__file__).parent
    commit = _output("git", "-C", str(home), "rev-parse", "HEAD")
    dirty = bool(commit) and bool(_output("git", "-C", str(home), "status", "--porcelain", "--untracked-files=no"))
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "code": code_digest(),
        "commit": commit or None,
        "dirty": dirty,
        "python": platform.python_version(),
        "packages": versions,
    }


def gpu_names() -> list[str]:
    """Names of the GPUs of this machine, [] where there are none."""
    if shutil.which("nvidia-smi") is None:
        return []
    return [
        line.strip() for line in _output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader").splitlines() if line.strip()
    ]


def visible_gpus() -> list[str]:
    """The GPUs this process may use, as CUDA_VISIBLE_DEVICES names them."""
    said = os.environ.get("CUDA_VISIBLE_DEVICES")
    if said is None:
        return [str(i) for i in range(len(gpu_names()))]
    return [name.strip() for name in said.split(",") if name.strip()] if gpu_names() else []


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
