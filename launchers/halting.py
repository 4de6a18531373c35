"""Stops a sweep that fails everywhere for the same reason, before it burns ten thousand jobs on it.

A supervisor whose run failed counts that failure in all journals of the sweep; when it is one too many it leaves a file
that every other supervisor sees before it hands out a run.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from em_core.journal import Record, RunStatus, SweepDir, decode, read_lines, write_whole
from launchers.causes import signature

LOOK_EVERY = 10.0
"""Least seconds between two counts by one supervisor."""


@dataclass
class Alike:
    """How many runs failed in the same way, by the failure's signature: a supervisor's own at once, all of the sweep's whenever
    it counts them. `most` stop the sweep (0: none do); only failures after `since` count, when the job was last submitted."""

    sweep: SweepDir
    most: int
    since: float
    counts: Counter[str] = field(default_factory=Counter)
    looked_at: float = -LOOK_EVERY

    def too_many(self, end: Record) -> str | None:
        """Take in a failure; where it is one too many leave word that the sweep is to stop, and return why."""
        same = signature(end)
        self.counts[same] += 1
        if not self.most or (self.counts[same] < self.most and time.monotonic() - self.looked_at < LOOK_EVERY):
            return None
        self.looked_at = time.monotonic()
        self.counts[same] = count_alike(self.sweep, same, self.since)
        return halt(self.sweep, end, self.counts[same]) if self.counts[same] >= self.most else None


def count_alike(sweep: SweepDir, failure: str, since: float) -> int:
    """Failed attempts of the sweep with this signature that ended after `since` (seconds since the epoch)."""
    count = 0
    for path in sweep.all_journals():
        for _, line in read_lines(path, 0, (b'{"kind":"run_end"',)).lines:
            if b'"status":"failed"' in line:
                end = decode(line)
                count += end is not None and end["t"] >= since and signature(end) == failure
    return count


def halt(sweep: SweepDir, end: Record, count: int) -> str:
    """Leave word that the sweep is to stop because of this failure; returns the reason."""
    last = str(end.get("message") or end.get("cause")).splitlines()[0][:300]
    reason = f"{count} runs failed in the same way: {last}"
    told = {"reason": reason, "count": count, "run_id": end["run_id"], "t": time.time()}
    write_whole(sweep.halted, [("halted", told)])
    return reason


def halted(sweep: SweepDir) -> str | None:
    """Why the sweep was stopped, None while it is not."""
    try:
        told: Mapping[str, Any] = json.loads(sweep.halted.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError):
        return "the sweep was stopped"
    return str(told.get("reason"))


def is_failure(line: bytes) -> bool:
    """Whether a journal line ends a failed attempt."""
    return line.startswith(b'{"kind":"run_end"') and f'"status":"{RunStatus.FAILED}"'.encode() in line
