"""One sequential copy of each model per node, on its own disk, before workers start.

Sixty-four workers that read 15 GB each from a shared file system wait for it, and so does everybody else. The first
supervisor on a node copies a model folder under a lock on the node's disk; the others wait for it, then all load from
there. A copy gets its name by a rename when it is whole. Where it cannot be made (no such disk, no room), workers read the
shared folder as ever, and the supervisor's log has a line that says why. What a model is does not change by where it lies.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from em_core.errors import Fault
from em_core.journal import Record

LOCAL_MODELS = "EMSWEEP_LOCAL_MODELS"
"""Environment of the workers: JSON, model -> folder of its copy; `em_core.models.resolve_model` reads it."""
SPARE = 1 << 30
"""Bytes that a copy leaves free on the node's disk."""
CHUNK = 16 << 20
"""Bytes between two looks at whether the job must stop."""


def bring(disk: str, models: Mapping[str, str], stopping: Callable[[], bool] = lambda: False) -> dict[str, str]:
    """Copy each model's folder below `disk` unless it is there; returns model -> folder of the copy, of those that are.

    `disk` may hold variables of the node ($TMPDIR); `models` maps a model's name to its shared folder. Never raises for
    what a disk does: the shared folder serves as well, only slower.
    """
    copies = {}
    for model, folder in models.items():
        started = time.monotonic()
        try:
            copy, size = _copy_once(_own_folder(disk), Path(folder), stopping)
        except (OSError, Fault) as error:
            print(f"{model}: loaded from the shared {folder}: {error}", file=sys.stderr, flush=True)
            continue
        copies[model] = str(copy)
        how = f"copied {size / 2**20:,.0f} MiB in {time.monotonic() - started:.1f} s" if size else "found"
        print(f"{model}: {how}: {copy}", file=sys.stderr, flush=True)
    return copies


def of_job(header: Record, stopping: Callable[[], bool]) -> dict[str, str]:
    """What the workers' environment adds so that they load from copies: the job's models are brought first."""
    disk, models = header.get("local_disk"), header.get("model_folders") or {}
    copies = bring(disk, models, stopping) if disk else {}
    return {LOCAL_MODELS: json.dumps(copies)} if copies else {}


def _own_folder(disk: str) -> Path:
    """This user's folder below the node's disk. Nobody else may write there: models are loaded from it."""
    said = os.path.expandvars(disk)
    if "$" in said:
        raise Fault(f"local_disk {disk} names a variable that is not set here")
    if not Path(said).is_dir():
        raise Fault(f"there is no local disk {said}")
    own = Path(said) / f"emsweep-{os.getuid()}"
    own.mkdir(mode=0o700, exist_ok=True)
    if own.is_symlink() or own.stat().st_uid != os.getuid():
        raise Fault(f"{own} belongs to somebody else")
    return own


def _copy_once(own: Path, source: Path, stopping: Callable[[], bool]) -> tuple[Path, int]:
    """(the copy, bytes that were copied now: 0 where it was there)."""
    files = sorted(p for p in source.iterdir() if p.is_file())
    stamps = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in files]
    name = hashlib.sha256(repr((str(source), stamps)).encode()).hexdigest()[:16]
    copy, part = own / name, own / f".{name}.part"
    with open(own / f".{name}.lock", "wb") as lock:
        _wait_for(lock.fileno(), stopping)
        if copy.is_dir():
            return copy, 0
        shutil.rmtree(part, ignore_errors=True)  # what a killed supervisor left; its lock went with it
        size = sum(s for _, s, _ in stamps)
        free = shutil.disk_usage(own).free
        if free < size + SPARE:
            raise Fault(f"{own} has {free / 2**30:.1f} GiB free and {size / 2**30:.1f} (and 1 to spare) are needed")
        try:
            part.mkdir()
            for p in files:
                _copy_file(p, part / p.name, stopping)
            part.rename(copy)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
        return copy, size


def _wait_for(lock: int, stopping: Callable[[], bool]) -> None:
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if stopping():
                raise Fault("the job is stopping") from None
            time.sleep(0.2)


def _copy_file(source: Path, target: Path, stopping: Callable[[], bool]) -> None:
    with open(source, "rb") as src, open(target, "wb") as out:
        while data := src.read(CHUNK):
            if stopping():
                raise Fault("the job is stopping")
            out.write(data)
    if target.stat().st_size != source.stat().st_size:
        raise Fault(f"{source} changed while it was copied")
