"""Which checkpoints of a run stay on disk. `step-N` folders are normal Hugging Face checkpoints, there whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection
from pathlib import Path

from em_core.config import Keep
from em_core.journal import disk_faults


class ParentGone(Exception):
    """The checkpoint that a run was to start from is not there: its parent has to be trained again first."""


def step_folder(run: Path, step: int) -> Path:
    """Where the checkpoint of a step lies in a run's folder."""
    return run / f"step-{step}"


class Keeper:
    """Saves what `keep` (`none`, `last`, `all` or `best:K`) asks for as training goes on.

    `best:K` keeps the K highest accuracies among evaluated steps, the earlier step where two are equal. What was outdone
    stays on disk until `clear`, because a run that goes on from an earlier step may want it back. Steps that are `pinned`,
    because other runs start from them, are kept besides and take no place among the best. Of several processes
    that train one run only one `writes`; the others only hand in their part of the weights, in `save`.
    """

    def __init__(
        self,
        folder: Path,
        keep: Keep,
        last_step: int,
        save: Callable[[Path], None],
        writes: bool = True,
        pinned: Collection[int] = (),
    ) -> None:
        self.folder = folder
        self.keep = keep
        self.last_step = last_step
        self.save = save
        self.writes = writes
        self.pinned = frozenset(pinned)
        self.kept: dict[int, float] = {}
        """Step -> accuracy (-1 where there is none)."""
        self.outdone: set[int] = set()

    def offer(self, step: int, accuracy: float | None) -> None:
        """The weights after `step`, which was evaluated (`accuracy` is that of the first evaluation), is pinned or the last."""
        if step in self.pinned:
            self._write(step_folder(self.folder, step))
        elif self._asked_for(step, accuracy):
            self._write(step_folder(self.folder, step))
            self.outdone.discard(step)

    def _asked_for(self, step: int, accuracy: float | None) -> bool:
        """Whether `keep` wants this step, which then has its place in `kept`."""
        if self.keep == "none" or (self.keep == "last" and step != self.last_step):
            return False
        mine = -1.0 if accuracy is None else accuracy
        if self.keep.startswith("best:") and len(self.kept) >= int(self.keep.removeprefix("best:")):
            worst = min(self.kept, key=lambda s: (self.kept[s], -s))
            if mine <= self.kept[worst]:
                return False
            del self.kept[worst]
            self.outdone.add(worst)
        self.kept[step] = mine
        return True

    def clear(self) -> None:
        """Delete what was outdone."""
        for step in self.outdone if self.writes else ():
            shutil.rmtree(step_folder(self.folder, step), ignore_errors=True)
        self.outdone.clear()

    def emit(self, emit: Callable[..., None]) -> None:
        """Clear, and the `checkpoint` records of what is left at the end; paths are relative to the sweep's folder."""
        self.clear()
        there = {step for step in self.pinned if step_folder(self.folder, step).is_dir()}
        for step in sorted(self.kept.keys() | there):
            path = step_folder(self.folder, step)
            emit("checkpoint", step=step, path=os.path.relpath(path, self.folder.parent.parent))

    def _write(self, target: Path) -> None:
        if not self.writes:
            self.save(target)
            return
        part = target.with_name(f".{target.name}.{os.getpid()}")
        with disk_faults(target):
            part.mkdir(parents=True, exist_ok=True)
            try:
                self.save(part)
            except BaseException:
                shutil.rmtree(part, ignore_errors=True)  # half a checkpoint would keep a full disk full
                raise
            if target.exists():  # an earlier attempt's
                shutil.rmtree(target)
            part.rename(target)
