"""The node's half of `emsweep doctor`: a job that answers questions about where it runs, and then ends.

`here.jsonl` and `node.jsonl` in a folder under the root are the two halves of a conversation. Each side appends to its own
file and follows the other's, just as assignments and journals are used, so that the talk itself is the first check. A
question is a record {kind, n, ...}; its answer repeats `n`. The job ends at `end`, or after `PATIENCE` seconds of silence.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from em_core.journal import Appender, Record, read_records
from launchers.snapshot import provenance, visible_gpus

PATIENCE = 120.0
"""Seconds without a question after which nobody is thought to be there any more."""
TICK = 0.02
"""Seconds between two looks at the other side's file."""
MODEL_SECONDS = 480
"""Seconds a model may take to load."""


class Node:
    """Answers until it is told to end. Every public method answers the question of its name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.out = Appender(folder / "node.jsonl")
        self.locks: dict[str, int] = {}
        for number in (signal.SIGUSR2, signal.SIGTERM):  # after submitit's own, as the supervisor does
            signal.signal(number, self._caught)

    def serve(self) -> None:
        answered = -1
        heard_at = time.monotonic()
        self.out.append("hello", n=-1, t=time.time(), pid=os.getpid(), host=socket.gethostname(), slurm=_slurm())
        while time.monotonic() - heard_at < PATIENCE:
            for r in read_records(self.folder / "here.jsonl"):
                if r["n"] > answered:
                    answered = r["n"]
                    if r["kind"] == "end":
                        return
                    self._answer(r)
                    heard_at = time.monotonic()
            time.sleep(TICK)

    def _answer(self, question: Record) -> None:
        answers: dict[str, Callable[[Record], dict[str, Any]]] = {
            "ping": self.ping, "facts": self.facts, "hold": self.hold, "try": self.try_lock, "drop": self.drop,
            "model": self.model, "disk": self.disk, "requeue": self.requeue,
        }  # fmt: skip
        try:
            said = answers[question["kind"]](question)
        except Exception as error:  # an answer too: it says which check fails, and the others go on
            said = {"error": f"{type(error).__name__}: {error}"}
        self.out.append("answer", n=question["n"], t=time.time(), **said)

    def ping(self, question: Record) -> dict[str, Any]:
        """What arrived here of a text that was written there."""
        return {"digest": hashlib.sha256(question["text"].encode()).hexdigest(), "text": question["text"][::-1]}

    def facts(self, _question: Record) -> dict[str, Any]:
        """This node: interpreter, packages, CPUs, memory (GiB), GPUs (name, MiB)."""
        memory = {k: int(v.split()[0]) / 2**20 for k, v in _lines("/proc/meminfo") if k in ("MemTotal", "MemAvailable")}
        return {
            **provenance(),
            "executable": sys.executable,
            "cwd": os.getcwd(),
            "machine": platform.machine(),
            "cpus": len(os.sched_getaffinity(0)),
            "memory_gib": memory,
            "gpus": _gpus(),
            "visible_gpus": visible_gpus(),
            "hub": {k: v for k, v in os.environ.items() if k.startswith("HF_") and "TOKEN" not in k},
        }

    def hold(self, question: Record) -> dict[str, Any]:
        """Take a lock and keep it."""
        return {"held": self._lock(question["file"])}

    def try_lock(self, question: Record) -> dict[str, Any]:
        """Whether a lock that is held there is refused here."""
        taken = self._lock(question["file"])
        self.drop(question)
        return {"refused": not taken}

    def drop(self, question: Record) -> dict[str, Any]:
        fd = self.locks.pop(question["file"], None)
        if fd is not None:
            os.close(fd)
        return {}

    def _lock(self, name: str) -> bool:
        fd = os.open(self.folder / name, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return False
        self.locks[name] = fd
        return True

    def model(self, question: Record) -> dict[str, Any]:
        """Load a model in a process of its own, as a worker would: a crash there is an answer here."""
        command = [sys.executable, "-m", "em_core.try_model", question["model"], *filter(None, [question.get("revision")])]
        done = subprocess.run(command, capture_output=True, text=True, timeout=MODEL_SECONDS, check=False)
        stages: dict[str, Any] = {}
        for line in done.stdout.splitlines():
            with contextlib.suppress(ValueError):
                record = json.loads(line)
                stages[record.pop("stage")] = record
        return {"stages": stages, "returncode": done.returncode, "stderr": done.stderr[-1500:] if done.returncode else ""}

    def disk(self, question: Record) -> dict[str, Any]:
        """Room on a disk as this node sees it; its name may hold variables ($TMPDIR)."""
        path = os.path.expandvars(question["path"])
        with contextlib.suppress(FileNotFoundError):
            return {"path": path, "writable": os.access(path, os.W_OK), **room(path)}
        return {"path": path, "writable": False}

    def requeue(self, _question: Record) -> dict[str, Any]:
        """Ask Slurm to run this very job again, as a supervisor does that was told to make room."""
        job = os.environ["SLURM_JOB_ID"]
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, timeout=30, check=False)
        return {"returncode": done.returncode, "stderr": done.stderr.strip()}

    def _caught(self, number: int, _frame: FrameType | None) -> None:
        self.out.append("caught", n=-1, t=time.time(), signal=signal.Signals(number).name)


def room(path: str | Path) -> dict[str, float | int | None]:
    """GiB and files (None: the file system does not count them) that are free on a disk, and their shares (0..1)."""
    v = os.statvfs(path)
    return {
        "free_gib": v.f_bavail * v.f_frsize / 2**30,
        "free_share": v.f_bavail / v.f_blocks if v.f_blocks else 1.0,
        "free_files": v.f_favail if v.f_files else None,
        "free_files_share": v.f_favail / v.f_files if v.f_files else None,
    }


def _gpus() -> list[dict[str, Any]]:
    """Name and memory (MiB) of every GPU that nvidia-smi shows."""
    command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except OSError:
        return []
    if said.returncode:
        raise RuntimeError(f"nvidia-smi: {(said.stdout + said.stderr).strip()[:300]}")
    rows = [line.rpartition(",") for line in said.stdout.splitlines() if "," in line]
    return [{"name": name.strip(), "mib": int(mib) if mib.strip().isdigit() else None} for name, _, mib in rows]


def _slurm() -> dict[str, str]:
    names = ("SLURM_JOB_ID", "SLURM_RESTART_COUNT", "SLURM_JOB_PARTITION", "SLURM_MEM_PER_NODE", "SLURMD_NODENAME")
    return {n: os.environ[n] for n in names if n in os.environ}


def _lines(path: str) -> list[tuple[str, str]]:
    with open(path) as f:
        return [(k, v.strip()) for k, _, v in (line.partition(":") for line in f)]


def answer_from(folder: str) -> None:
    """What submitit calls on the node."""
    Node(Path(folder)).serve()


if __name__ == "__main__":
    answer_from(sys.argv[1])
