"""What a launcher is, and the words for the state of a job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol


class JobState(StrEnum):
    """What the scheduler says of a job. UNKNOWN is an answer: the scheduler could not be asked, so wait."""

    PENDING = "pending"
    RUNNING = "running"
    GONE = "gone"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Ended:
    """How one try of a job ended, as the scheduler says it.

    `word` is the scheduler's own (TIMEOUT, NODE_FAIL, ...), `node` where it ran, `mem_gb` what it was given (GB).
    """

    word: str
    node: str | None = None
    mem_gb: float | None = None


@dataclass(frozen=True)
class Limits:
    """What a scheduler allows one user; None: no limit is known. `queued` is how many jobs the user has there now."""

    array_size: int | None = None
    submitted_jobs: int | None = None
    queued: int = 0


@dataclass(frozen=True)
class Batch:
    """Jobs that are submitted together (one Slurm array): same resources, each with its assignment file written.

    `token` is unique, known before the submission and findable in the scheduler afterwards; `name` is for people.
    `parallelism` is how many of the jobs may run at once (None: all).
    `machines` is on how many each job runs (one slot then, whose run has them all).
    `requeue`: Slurm runs a job again that a node or a preemption took.
    `code` is the folder of the code that the jobs run, absolute (`launchers.snapshot.take`).
    """

    token: str
    name: str
    jobs: tuple[str, ...]
    slots: int
    code: Path
    resources: Mapping[str, Any] = field(default_factory=dict)
    setup: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    parallelism: int | None = None
    machines: int = 1
    requeue: bool = True
    exclude_nodes: tuple[str, ...] = ()


class Launcher(Protocol):
    """Submits, asks, cancels. Knows nothing of runs."""

    name: str

    def submit(self, batch: Batch) -> list[str]:
        """Start every job of the batch; returns the scheduler's id of each, in order. Raises `Fault`."""

    def limits(self) -> Limits:
        """What may be submitted now."""

    def states(self, ids: Sequence[str]) -> dict[str, JobState]:
        """The state of each job, in one or two calls to the scheduler for all of them."""

    def ends(self, ids: Sequence[str]) -> dict[str, list[Ended]] | None:
        """How each ended try of these jobs ended, oldest first, or only the newest; a job that is forgotten is left out.

        None where that cannot be told now.
        """

    def find(self, token: str, jobs: Sequence[str]) -> list[str] | None:
        """Ids of a batch that was submitted under this token, [] if there is none, None if that cannot be told.

        `jobs` are the names of all of its jobs, which are made to start as if the submission had been answered.
        """

    def cancel(self, ids: Sequence[str]) -> None:
        """End these jobs; their supervisors journal what they were doing."""
