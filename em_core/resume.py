"""A run's state between two updates, on disk, so that a killed run goes on from there.

One file in the run's checkpoint folder, replaced as a whole every `save_steps` updates and removed when the run has an
outcome. It holds the records so far as well: an attempt that goes on emits them again, so its journal tells the whole run.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from em_core.config import RunRequest
from em_core.journal import disk_faults

FILE = "resume.pt"
VERSION = 1
"""Bumped when `State` changes: older files are then ignored."""


@dataclass(frozen=True)
class State:
    """Everything that the updates after `step` depend on; the draws are keyed by step and need no state.

    `device` is the name of the one that computed it. `records` are (kind, fields) as emitted. `masters` (fp32) and
    `moments` (the optimizer's state) are by parameter. `kept` and `outdone` are the `Keeper`'s.
    """

    step: int
    device: str
    records: list[tuple[str, dict[str, Any]]]
    kept: dict[int, float]
    outdone: set[int]
    masters: Mapping[str, Tensor]
    moments: Mapping[str, Mapping[str, Tensor]]


def save(request: RunRequest, state: State) -> None:
    """Replace the run's state. Raises `Fault` where the disk refuses."""
    target = Path(request.checkpoints) / FILE
    part = target.with_name(f".{FILE}.{socket.gethostname()}.{os.getpid()}")
    with disk_faults(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(part, "wb") as out:
                torch.save({"of": _identity(request), **vars(state)}, out)
                out.flush()
                os.fsync(out.fileno())
            os.replace(part, target)
        except BaseException as error:
            part.unlink(missing_ok=True)  # half a state would keep a full disk full
            if isinstance(error.__context__, OSError):  # torch hides the disk's answer behind an error of its own
                raise error.__context__ from None
            raise


def find(request: RunRequest) -> State | None:
    """The state this run was last saved in, or None. One that is damaged, or not of this very run, is ignored aloud.

    Its tensors stay in the file until they are read.
    """
    path = Path(request.checkpoints) / FILE
    if not path.exists():
        return None
    try:
        damaged = zipfile.ZipFile(path).testzip()
        if damaged is not None:
            raise ValueError(f"{damaged} is damaged")
        said = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        of = said.pop("of")
        if of != _identity(request):
            raise ValueError(f"it is of {of}, and this is {_identity(request)}")
        state = State(**said)
        there = {(fields["eval_id"], fields["step"]) for kind, fields in state.records if kind == "eval"}
        wanted = {(eval_id, step) for eval_id, _, steps in request.evaluations for step in steps if step <= state.step}
        if not wanted <= there:
            raise ValueError("it lacks an evaluation that is wanted now")
    except Exception as error:  # whatever is wrong with the file, the run can start over
        print(f"{path} is ignored, the run starts over: {error}", file=sys.stderr, flush=True)
        return None
    return state


def remove(request: RunRequest) -> None:
    """Delete the state and what killed attempts left of theirs, and the folder where nothing else is in it."""
    folder = Path(request.checkpoints)
    ours = [path for path in folder.glob(f"*{FILE}*") if path.name == FILE or path.name.startswith(f".{FILE}.")]
    with contextlib.suppress(OSError):
        for path in ours:
            path.unlink(missing_ok=True)
        if ours:
            folder.rmdir()


def _identity(request: RunRequest) -> dict[str, Any]:
    """What must agree before a state is used. The device may differ: that is recorded."""
    of: dict[str, Any] = {"config_id": request.config_id, "seed": request.seed, "keep": request.keep}
    if request.pinned:  # a state from before they were wanted may be past them
        of["pinned"] = list(request.pinned)
    return {**of, "torch": str(torch.__version__), "version": VERSION}
