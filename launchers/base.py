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
class Batch:
    """Jobs that are submitted together (one Slurm array): same resources, each with its assignment file written.

    `token` is unique, known before the submission and findable in the scheduler afterwards.
    `code` is the folder of the code that the jobs run, absolute (`launchers.snapshot.take`).
    """

    token: str
    jobs: tuple[str, ...]
    slots: int
    code: Path
    resources: Mapping[str, Any] = field(default_factory=dict)
    setup: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


class Launcher(Protocol):
    """Submits, asks, cancels. Knows nothing of runs."""

    name: str

    def submit(self, batch: Batch) -> list[str]:
        """Start every job of the batch; returns the scheduler's id of each, in order. Raises `Fault`."""

    def states(self, ids: Sequence[str]) -> dict[str, JobState]:
        """The state of each job in one call to the scheduler."""

    def find(self, token: str, jobs: int) -> list[str] | None:
        """Ids of a batch that was submitted under this token, [] if there is none, None if that cannot be told."""

    def cancel(self, ids: Sequence[str]) -> None:
        """End these jobs; their supervisors journal what they were doing."""
