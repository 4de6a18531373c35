"""How a sweep's progress is shown: one live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

from em_core.journal import RunStatus
from sweeps.reconcile import View

PLAIN_EVERY = 15.0
"""Seconds between plain lines where there is no terminal."""


class live_line:  # noqa: N801 (reads as a statement)
    """Context whose `tell` shows a line that changes: in place on a terminal, elsewhere anew every so often."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        self.began = time.monotonic()
        self.said_at = 0.0
        self.said = ""

    def __enter__(self) -> Self:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, _t: type[BaseException] | None, _e: BaseException | None, _tb: TracebackType | None) -> None:
        if self.live:
            self.live.stop()

    def tell(self, line: str, last: bool = False) -> None:
        """Show it; where there is no terminal only if it is news, and either time has passed or it is the `last`."""
        if self.live:
            self.live.update(Text(line, no_wrap=True, overflow="ellipsis"), refresh=True)
        elif line != self.said and (last or time.monotonic() - self.said_at >= PLAIN_EVERY):
            self.console.print(line, highlight=False, soft_wrap=True)
            self.said, self.said_at = line, time.monotonic()


class watching(live_line):  # noqa: N801 (reads as a statement)
    """Its `update(view)` shows done, rate, time left, failed and diverged."""

    def __init__(self, console: Console, sweep: str) -> None:
        super().__init__(console)
        self.sweep = sweep
        self.first: int | None = None

    def update(self, view: View) -> None:
        self.tell(self._line(view), last=not view.live)

    def _line(self, view: View) -> str:
        wanted = len(view.states) - view.count(RunStatus.EXCLUDED)
        failed = view.count(RunStatus.FAILED)
        finished = view.done + failed
        if self.first is None:
            self.first = finished
        seconds = time.monotonic() - self.began
        rate = (finished - self.first) / seconds * 60 if seconds > 1 else 0.0
        left = f"{(wanted - finished) / rate:.1f} min left" if rate else "measuring"
        parts = [f"{view.done:,}/{wanted:,} done", f"{view.count(RunStatus.RUNNING)} running", f"{rate:.0f} runs/min", left]
        parts += [f"{failed} failed"] * bool(failed)
        parts += [f"{view.count(RunStatus.DIVERGED)} diverged"] * bool(view.count(RunStatus.DIVERGED))
        return f"{self.sweep}: " + " · ".join(parts)


class counting(live_line):  # noqa: N801 (reads as a statement)
    """Its `update(done, of)` shows how many runs are in MLflow, and the time left."""

    def __init__(self, console: Console, sweep: str) -> None:
        super().__init__(console)
        self.sweep = sweep
        self.said_at = self.began  # what takes seconds needs no line
        self.first: int | None = None

    def update(self, done: int, of: int) -> None:
        self.first = done if self.first is None else self.first
        rate = (done - self.first) / max(time.monotonic() - self.began, 1e-9)
        left = f" · {(of - done) / rate:.0f} s left" if rate and done < of else ""
        self.tell(f"{self.sweep}: {done:,}/{of:,} runs in MLflow{left}")
