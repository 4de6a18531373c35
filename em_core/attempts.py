"""What a journal says of attempts: how each try at a run ended, and whose numbers count. Never imports torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from em_core.journal import Record, RunStatus, decode_all, journal_order, read_lines

STATE_PREFIXES = (b'{"kind":"run_', b'{"kind":"job_')


@dataclass(frozen=True)
class Attempt:
    """One try at one run, as its journal tells it. `status` is RUNNING while no end was written."""

    run_id: str
    job: str
    try_: int
    number: int
    mode: str
    status: RunStatus
    start: Record
    end: Record | None

    @property
    def attempt_id(self) -> str:
        return attempt_id(self.job, self.try_, self.run_id, self.number)

    @property
    def cause(self) -> str:
        """Why it ended, in a word of `launchers.causes`; empty while it runs and where nothing went wrong."""
        return str((self.end or {}).get("cause") or "")


def attempt_id(job: str, try_: int, run: str, number: int) -> str:
    return f"{job}.{try_}/{run}/{number}"


@dataclass(frozen=True)
class JobTry:
    """One try of one job as its journal tells it. `ended` holds the reason when the supervisor wrote one."""

    job: str
    try_: int
    start: Record | None
    ended: str | None
    attempts: tuple[Attempt, ...]
    torn: int


class JobTryReader:
    """Follows the states in one journal, without parsing its measurements; reads only what was appended."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.try_, self.job = journal_order(path)
        self._offset = 0
        self._bad = 0
        self._start: Record | None = None
        self._ended: str | None = None
        self._starts: dict[tuple[str, int], Record] = {}
        self._ends: dict[tuple[str, int], Record] = {}
        self._attempts: dict[tuple[str, int], Attempt] = {}

    def read(self) -> JobTry:
        """The job try as its journal tells it now."""
        found = read_lines(self.path, self._offset, STATE_PREFIXES)
        self._offset = found.end
        for record in decode_all([line for _, line in found.lines]):
            try:
                self._take(record or {})
            except (KeyError, ValueError):  # torn, or of a version that this one does not know
                self._bad += 1
        return JobTry(self.job, self.try_, self._start, self._ended, tuple(self._attempts.values()), self._bad + found.torn)

    def _take(self, r: Record) -> None:
        match r["kind"]:
            case "run_start":
                self._starts[key := (r["run_id"], r["attempt"])] = r
                self._attempts[key] = self._attempt(key)
            case "run_end":
                RunStatus(r["status"])
                self._ends.setdefault(key := (r["run_id"], r["attempt"]), r)
                self._attempts[key] = self._attempt(key)
            case "job_start":
                self._start = r
            case "job_end":
                self._ended = r["reason"]

    def _attempt(self, key: tuple[str, int]) -> Attempt:
        end = self._ends.get(key)
        start = self._starts.get(key) or end or {}
        status = RunStatus(end["status"]) if end else RunStatus.RUNNING
        return Attempt(key[0], self.job, self.try_, key[1], start.get("mode", "train"), status, start, end)


def read_job_try(path: Path) -> JobTry:
    """The states in one journal."""
    return JobTryReader(path).read()


def winner(attempts: Iterable[Attempt]) -> Attempt | None:
    """The attempt whose numbers count: the first with an outcome, in (job try, job, number) order.

    A pure function of the journals, so that every reader at every time agrees.
    """
    finished = [a for a in attempts if a.mode == "train" and a.status.is_outcome()]
    return min(finished, key=lambda a: (a.try_, a.job, a.number), default=None)
