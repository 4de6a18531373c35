"""Which code an attempt runs, and on what: a copy of the code as it was at submission, versions, hardware.

A job waits for hours and runs for days; meanwhile its user goes on editing. So jobs run from `ROOT/.code/DIGEST`, a copy of
the four packages with a note of where it came from, and never from the checkout.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import platform
import re
import secrets
import shutil
import socket
import subprocess
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import em_core
from em_core.journal import disk_faults

CODE = ("em_core", "launchers", "sweeps", "analysis")
NOT_CODE = ("sweeps/specs",)
"""What a spec says is in the manifest; no job reads a spec, and a copy per edited spec would be waste."""
NOTE = "provenance.json"
MOST_DIFF = 1_000_000
"""Characters of a diff that a snapshot keeps."""
PACKAGES = ("torch", "transformers", "accelerate", "numpy", "math-verify")


def home() -> Path:
    """The folder beside which `em_core` was found: a checkout, an installation, or a snapshot."""
    return Path(em_core.__file__).resolve().parent.parent


@cache
def take(root: Path) -> Path:
    """Copy the code as it is now to `<root>/.code/<digest>` and return that folder, absolute; an equal copy is used again.

    Once per process and root, so that everything one command submits runs the same code. From inside a snapshot (a job
    that submits jobs) it is that snapshot. Safe against other submitters and against being killed. Raises `Fault` where
    the disk refuses.
    """
    if (home() / NOTE).is_file():
        return home()
    files = {str(path.relative_to(home())): path.read_bytes() for path in _sources()}
    note = _origin()
    digest = hashlib.sha256(repr((note["commit"], note["dirty"])).encode())
    for name, content in files.items():
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    note["snapshot"] = digest.hexdigest()[:12]
    target = root.resolve() / ".code" / str(note["snapshot"])
    if not (target / NOTE).is_file():
        _write(target, {**files, NOTE: json.dumps(note, indent=1).encode()})
    return target


def _sources() -> Iterator[Path]:
    """Every file of the four packages, in order: sources and data, but no caches, hidden files or specs."""
    for package in CODE:
        for path in sorted((home() / package).rglob("*")):
            name = path.relative_to(home())
            hidden = any(part.startswith(".") or part == "__pycache__" for part in name.parts)
            if path.is_file() and not hidden and not str(name).startswith(NOT_CODE):
                yield path


def _write(target: Path, files: dict[str, bytes]) -> None:
    """A folder that is there whole or not at all: of two that write the same one, the first stays."""
    part = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    with disk_faults(target):
        try:
            for name, content in files.items():
                (part / name).parent.mkdir(parents=True, exist_ok=True)
                (part / name).write_bytes(content)
            part.rename(target)
        except OSError:
            shutil.rmtree(part, ignore_errors=True)
            if not (target / NOTE).is_file():
                raise


def _origin() -> dict[str, Any]:
    """Commit of the code, whether it was edited since, and how; no commit where it is in no repository."""
    git = ("git", "-C", str(home()))
    nothing = {"commit": None, "dirty": False, "diff": "", "diff_cut": False}
    if not _output(*git, "ls-files", "em_core/__init__.py"):  # an installation may lie in somebody else's repository
        return nothing
    paths = ("--", *CODE, *(f":(exclude){name}" for name in NOT_CODE))
    diff = _output(*git, "diff", "HEAD", *paths)
    return {
        "commit": _output(*git, "rev-parse", "HEAD") or None,
        "dirty": bool(_output(*git, "status", "--porcelain", *paths)),
        "diff": diff[:MOST_DIFF],
        "diff_cut": len(diff) > MOST_DIFF,
    }


@cache
def code_digest() -> str:
    """12 hex digits over the sources of `em_core`: the code that decides a run's numbers, committed or not."""
    digest = hashlib.sha256()
    core = home() / "em_core"
    for path in sorted(core.rglob("*.py")):
        digest.update(str(path.relative_to(core)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def provenance() -> dict[str, Any]:
    """Fields of `job_start`: the code, Python and packages, the host and its GPU, and where in Slurm this is."""
    note = home() / NOTE
    origin = json.loads(note.read_text()) if note.is_file() else _origin()
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    names = gpu_names()
    return {
        "code": code_digest(),
        "commit": origin["commit"],
        "dirty": origin["dirty"],
        "snapshot": origin.get("snapshot"),
        "python": platform.python_version(),
        "packages": versions,
        "cuda": _torch_cuda(),
        "host": socket.gethostname(),
        "gpu": names[0] if names else None,
        "driver": next(iter(_gpu_query("driver_version")), None),
        "cluster": os.environ.get("SLURM_CLUSTER_NAME"),
        "partition": os.environ.get("SLURM_JOB_PARTITION"),
    }


def _torch_cuda() -> str | None:
    """The CUDA version that torch was built for, read from its files: importing it takes seconds."""
    found = importlib.util.find_spec("torch")
    version = Path(found.origin).with_name("version.py") if found and found.origin else None
    said = re.search(r"^cuda[^=\n]*= *'([\d.]+)'", version.read_text(), re.MULTILINE) if version and version.is_file() else None
    return said[1] if said else None


def gpu_names() -> list[str]:
    """Names of the GPUs of this machine, [] where there are none."""
    return _gpu_query("name")


def _gpu_query(what: str) -> list[str]:
    """One value per GPU, [] where there are none."""
    if shutil.which("nvidia-smi") is None:
        return []
    said = _output("nvidia-smi", f"--query-gpu={what}", "--format=csv,noheader")
    return [line.strip() for line in said.splitlines() if line.strip()]


def visible_gpus() -> list[str]:
    """The GPUs this process may use, as CUDA_VISIBLE_DEVICES names them."""
    said = os.environ.get("CUDA_VISIBLE_DEVICES")
    if said is None:
        return [str(i) for i in range(len(gpu_names()))]
    return [name.strip() for name in said.split(",") if name.strip()] if gpu_names() else []


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
