"""The evidence on disk: file names and append-only JSONL records. Never imports torch.

Record kinds, by file (each line is one JSON object whose first key is ``kind``):

* ``manifest.jsonl``  what is wanted: ``sweep config evaluation run exclude include retry``, of a study also ``study trial told``
* ``submissions.jsonl``  what was handed to a scheduler, and how it ended: ``intent submitted refused ended follow_up
  controller cancelled``
* ``assignments/JOB.jsonl``  what a job is to do: ``job config evaluation run cancel stop close``
* ``journals/JOB.TRY.jsonl``  what happened: ``job_start run_start metrics eval checkpoint run_end job_end``
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar

from em_core.errors import Fault

Record = dict[str, Any]


class RunStatus(StrEnum):
    """Where a run stands; from RUNNING on also how an attempt stands. WAITING is for its parent, BLOCKED by it."""

    NEW = "new"
    WAITING = "waiting"
    BLOCKED = "blocked"
    EXCLUDED = "excluded"
    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    DIVERGED = "diverged"
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    CANCELLED = "cancelled"

    def is_outcome(self) -> bool:
        """True when the attempt's numbers count: it ran to its end, or to a non-finite loss."""
        return self in (RunStatus.COMPLETED, RunStatus.DIVERGED)


FINAL = frozenset({RunStatus.COMPLETED, RunStatus.DIVERGED, RunStatus.FAILED, RunStatus.CANCELLED})
"""Ends after which a job does not come back to a run."""


@dataclass(frozen=True)
class SweepDir:
    """Every file name of one sweep. Nothing else in the project spells one."""

    root: Path
    sweep: str

    @property
    def path(self) -> Path:
        return self.root / self.sweep

    @property
    def manifest(self) -> Path:
        return self.path / "manifest.jsonl"

    @property
    def submissions(self) -> Path:
        return self.path / "submissions.jsonl"

    @property
    def lock(self) -> Path:
        """Held for moments, by whoever appends to the manifest, the submissions or an assignment."""
        return self.path / "lock"

    @property
    def runner_lock(self) -> Path:
        """Held as long as an `emsweep run` works on this sweep."""
        return self.path / "runner.lock"

    @property
    def halted(self) -> Path:
        """There while the sweep is stopped for failing everywhere alike; says why. `emsweep retry` removes it."""
        return self.path / "halted.json"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def journals(self) -> Path:
        return self.path / "journals"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def study(self) -> Path:
        """Of a study: Optuna's own journal (`optuna-dashboard` opens it)."""
        return self.path / "study.journal"

    @property
    def prompts(self) -> Path:
        """The root's prompt sets: of all its sweeps, each named by its content."""
        return self.root / ".prompts"

    @property
    def report(self) -> Path:
        return self.path / "report"

    def assignment(self, job: str) -> Path:
        return self.path / "assignments" / f"{job}.jsonl"

    def journal(self, job: str, try_: int) -> Path:
        return self.journals / f"{job}.{try_}.jsonl"

    def worker_log(self, job: str, slot: int) -> Path:
        return self.logs / f"{job}.slot{slot}.log"

    def meeting(self, job: str, try_: int) -> Path:
        """Where a job on several machines says how they reach its supervisor."""
        return self.logs / f"{job}.{try_}.meeting"

    def run_checkpoints(self, run_id: str) -> Path:
        return self.checkpoints / run_id

    def all_journals(self) -> list[Path]:
        """Every journal, in the order in which attempts win: job try first, then name."""
        return sorted(self.journals.glob("*.jsonl"), key=journal_order)


def sweeps_under(root: Path) -> list[SweepDir]:
    """Every sweep below `root`, by name."""
    return [SweepDir(root, p.parent.name) for p in sorted(root.glob("*/manifest.jsonl"))]


def journal_order(path: Path) -> tuple[int, str]:
    """(job try, journal name): the order that decides between two completed attempts at one run."""
    job, _, try_ = path.stem.rpartition(".")
    return (int(try_) if try_.isdigit() else 0, job)


def finite_or_name(value: float) -> float | str:
    """JSON has no NaN: non-finite floats are written as the strings DuckDB and float() read back."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    return value


def encode(kind: str, fields: Mapping[str, Any]) -> bytes:
    """One journal line. Non-finite floats become strings one and two levels deep, where measurements live."""
    record: Record = {"kind": kind}
    for k, v in fields.items():
        if isinstance(v, Mapping):
            v = {k2: finite_or_name(v2) for k2, v2 in v.items()}
        record[k] = finite_or_name(v)
    return json.dumps(record, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode() + b"\n"


class Appender:
    """Appends whole lines to one file with single write() calls. Meant for one writer at a time.

    Raises `Fault` where the disk refuses (full, read-only, over quota), naming the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with disk_faults(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
            self._cut_torn_tail()

    def _cut_torn_tail(self) -> None:
        """Cut what readers would not pass: a half-written last line, or everything from a zero-filled stretch on.

        Nothing behind it was ever read by anybody, and what is appended after it never would be.
        """
        size = os.fstat(self._fd).st_size
        at = good = 0
        nul = -1
        while at < size and nul < 0:
            chunk = os.pread(self._fd, 1 << 20, at)
            nul = chunk.find(b"\0")
            newline = chunk.rfind(b"\n", 0, nul if nul >= 0 else len(chunk))
            good = at + newline + 1 if newline >= 0 else good
            at += len(chunk)
        if good < size:
            os.ftruncate(self._fd, good)

    def write(self, line: bytes) -> None:
        with disk_faults(self.path):
            view = memoryview(line)
            while view:
                view = view[os.write(self._fd, view) :]

    def append(self, kind: str, **fields: Any) -> None:
        self.write(encode(kind, fields))

    def sync(self) -> None:
        with disk_faults(self.path):
            os.fsync(self._fd)

    def close(self) -> None:
        os.close(self._fd)

    def __enter__(self) -> Appender:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class disk_faults:  # noqa: N801 (reads as a statement)
    """Context: turns the operating system's refusal to write into one clear `Fault`."""

    _SAY: ClassVar[dict[int, str]] = {
        errno.ENOSPC: "the disk is full",
        errno.EDQUOT: "the disk quota is used up",
        errno.EROFS: "the file system is read-only",
        errno.EFBIG: "the file may not grow further",
        errno.EIO: "the disk reports an error",
        errno.EACCES: "permission denied",
        errno.ENOTDIR: "a file is where a folder must be",
        errno.EEXIST: "a file is where a folder must be",
    }

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, _type: object, error: BaseException | None, _tb: object) -> None:
        if isinstance(error, OSError) and error.errno in self._SAY:
            raise Fault(
                f"{self._SAY[error.errno]}: cannot write {self.path}. Nothing recorded so far is lost; "
                "mend that and run the same command again."
            ) from error


def append_batch(path: Path, records: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
    """Append records as one write and fsync. The caller holds the sweep's lock."""
    data = b"".join(encode(kind, fields) for kind, fields in records)
    if data:
        with Appender(path) as out:
            out.write(data)
            out.sync()


def write_whole(path: Path, records: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
    """Write a file of records so that no reader ever sees half of it: temporary name, fsync, rename."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with disk_faults(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as out:
            out.write(b"".join(encode(kind, fields) for kind, fields in records))
            out.flush()
            os.fsync(out.fileno())
        os.replace(temporary, path)


@dataclass(frozen=True)
class Lines:
    """What `read_lines` found: (offset, line) pairs, where to go on next time, and how many lines were unreadable."""

    lines: list[tuple[int, bytes]]
    end: int
    torn: int


def read_lines(path: Path, offset: int = 0, prefixes: tuple[bytes, ...] = ()) -> Lines:
    """Complete, NUL-free lines of a journal from `offset` on; with `prefixes`, only lines that start so (four times as fast).

    Reading stops before a zero-filled stretch (a crash, or a network file system that has not delivered yet) and
    before an unfinished last line; both are counted as torn and read again next time.
    """
    try:
        with open(path, "rb") as f:
            f.seek(offset)
            data = f.read()
    except (FileNotFoundError, NotADirectoryError):
        return Lines([], offset, 0)
    complete = data.rfind(b"\n") + 1
    nul = data.find(b"\0", 0, complete)
    torn = int(complete < len(data) or nul >= 0)
    if nul >= 0:
        complete = data.rfind(b"\n", 0, nul) + 1
    wanted = re.compile(rb"\n((?:" + b"|".join(map(re.escape, prefixes)) + rb")[^\n]+)")
    return Lines([(offset + m.start(), m[1]) for m in wanted.finditer(b"\n" + data[:complete])], offset + complete, torn)


def read_records(path: Path, prefixes: tuple[bytes, ...] = ()) -> Iterator[Record]:
    """The records of a file, oldest first; unreadable lines are passed over."""
    yield from (r for r in decode_all([line for _, line in read_lines(path, 0, prefixes).lines]) if r is not None)


def decode_all(lines: list[bytes]) -> list[Record | None]:
    """`decode` of each line; as one JSON array, which takes half the time, unless one of them is damaged."""
    records: list[Record | None] = []
    with contextlib.suppress(ValueError):
        records = json.loads(b"[" + b",".join(lines) + b"]")
    whole = len(records) == len(lines) and all(isinstance(r, dict) and "kind" in r for r in records)
    return records if whole else [decode(line) for line in lines]


def decode(line: bytes) -> Record | None:
    """The record on a line, or None where the line is not one (a torn write)."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and "kind" in record else None
