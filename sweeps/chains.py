"""Runs that start from others: who is whose parent, which checkpoints that takes, and whether a child can start."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property

from em_core.attempts import Attempt
from em_core.config import run_id
from em_core.journal import RunStatus, SweepDir
from sweeps.manifest import Manifest

Checkpoint = tuple[str, int]
"""(run, step)."""
ENOUGH = 3
"""Trainings of a parent after which its checkpoint, gone each time, is not made again until somebody asks for it."""


def start_of(manifest: Manifest, run: str) -> Checkpoint | None:
    """The parent's run, of the same seed and repeat, and its step whose weights a run starts from; None: the model's."""
    wanted = manifest.runs[run]
    training = manifest.configs[wanted.config_id].training
    return (run_id(training.parent, wanted.seed, wanted.repeat), training.from_step) if training.parent else None


def needed_starts(manifest: Manifest, runs: Iterable[str]) -> Iterator[Checkpoint]:
    """The checkpoints from which these runs load weights; a rehearsal loads none."""
    for run in runs:
        start = start_of(manifest, run)
        if start is not None and manifest.configs[manifest.runs[run].config_id].training.loads_model:
            yield start


def pinned_steps(manifest: Manifest) -> dict[str, list[int]]:
    """Run -> steps whose checkpoints it keeps, whatever the spec's `keep` says, because runs of this sweep start there."""
    found: dict[str, set[int]] = {}
    for run, step in needed_starts(manifest, (r for r in manifest.runs if r not in manifest.excluded)):
        found.setdefault(run, set()).add(step)
    return {run: sorted(steps) for run, steps in found.items()}


def folders(sweeps: Iterable[SweepDir], runs: Collection[str]) -> dict[Checkpoint, str]:
    """Where the checkpoints of these runs lie, below the root; of a checkpoint in several sweeps that of the first.

    A checkpoint's folder gets its name when it is complete.
    """
    found: dict[Checkpoint, str] = {}
    for sweep in sweeps:
        for path in sorted(sweep.checkpoints.glob("*/step-*")) if runs else ():
            step = path.name.removeprefix("step-")
            if path.parent.name in runs and step.isdigit():
                found.setdefault((path.parent.name, int(step)), str(path.relative_to(sweep.root)))
    return found


class Verdict(StrEnum):
    """Whether a child can start: now, when its parent is done, or never as things are."""

    READY = "ready"
    WAITING = "waiting"
    BLOCKED = "blocked"


@dataclass(frozen=True)
class Judged:
    """A child's verdict. `again` is the run that has to be trained again first, for a checkpoint that is gone; `why` says
    what blocks it."""

    verdict: Verdict
    again: str | None = None
    why: str = ""


@dataclass
class Starts:
    """Judges children by where their parents stand. Pure: all evidence is handed in.

    `states` and `attempts` by run; `promised` are runs that a living job may still do; `there` are the checkpoints that exist
    anywhere under the root.
    """

    manifest: Manifest
    states: Mapping[str, RunStatus]
    attempts: Mapping[str, Collection[Attempt]]
    promised: Collection[str]
    there: Collection[Checkpoint]
    _known: dict[str, Judged] = field(default_factory=dict)

    @cached_property
    def _pinned(self) -> dict[str, list[int]]:
        return pinned_steps(self.manifest)

    def judge(self, run: str) -> Judged:
        """Whether a run can start; one without a parent always can."""
        if run not in self._known:
            self._known[run] = self._judge(run)
        return self._known[run]

    def is_there(self, run: str) -> bool:
        """Whether the weights that a run starts from can be had."""
        return all(start in self.there for start in needed_starts(self.manifest, [run]))

    def in_vain(self, run: str) -> bool:
        """Whether a parent was trained often enough to keep all that is missing of it, and it is missing all the same."""
        missing = {step for step in self._pinned.get(run, ()) if (run, step) not in self.there}
        done = [a for a in self.attempts.get(run, ()) if a.mode == "train" and a.status.is_outcome()]
        return sum(missing <= set(a.start.get("pinned", ())) for a in done) >= ENOUGH

    def _judge(self, run: str) -> Judged:
        start = start_of(self.manifest, run)
        if start is None:
            return Judged(Verdict.READY)
        parent, step = start
        state = self.states.get(parent)
        if state is None:
            return Judged(Verdict.BLOCKED, why=f"its parent {parent} is not part of the sweep")
        if state is RunStatus.COMPLETED:
            return Judged(Verdict.READY) if self.is_there(run) else self._again(parent, step)
        if state in (RunStatus.FAILED, RunStatus.DIVERGED, RunStatus.EXCLUDED):
            return Judged(Verdict.BLOCKED, why=f"its parent {parent} {'is' if state is RunStatus.EXCLUDED else 'has'} {state}")
        above = self.judge(parent)
        return above if above.verdict is Verdict.BLOCKED else Judged(Verdict.WAITING)

    def _again(self, parent: str, step: int) -> Judged:
        """The verdict on a child whose parent is done and did not keep the step, or lost it."""
        if parent in self.promised:
            return Judged(Verdict.WAITING)
        failures = sum(a.status is RunStatus.FAILED for a in self.attempts.get(parent, ()))
        if failures > self.manifest.forgiven.get(parent, 0):
            return Judged(Verdict.BLOCKED, why=f"its parent {parent} failed when it was trained again for its step {step}")
        above = self.judge(parent)
        return Judged(Verdict.WAITING, again=parent) if above.verdict is Verdict.READY else above
