"""The supervisor: one process per job. Hands runs to slots, replaces dead workers, and alone writes the job's journal.

Reads its assignment file as it grows (`run`, `cancel`, `stop`, `close`), starts one worker per slot, passes their
records into the journal line by line, and names the cause when one dies. It never trains and never imports torch.

Asked to stop, it hands out nothing more, gives the workers the time there is to save their state (or, before a time limit,
to finish), ends them, and journals why. Exit codes: 0 the assignment is done; 3 stopped; 4 stopped by the time limit with
work left that another try would bring forward; 1 the journal cannot be written.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import selectors
import signal
import socket
import sys
import time
from collections import Counter
from pathlib import Path
from types import FrameType

from em_core.config import Execution
from em_core.errors import EmsweepError, Fault
from em_core.journal import Appender, Record, RunStatus, SweepDir, decode, disk_faults, encode
from launchers import causes, local_copy, machines
from launchers.assignment import Assignment, finished_before
from launchers.halting import Alike, halted, is_failure
from launchers.second_chances import SecondChances
from launchers.slot import Slot, slot_environment
from launchers.snapshot import provenance

TICK = 0.25
"""Seconds between looks at the assignment file and at signals."""
EAGER = 0.05
"""The same while a slot waits for a run that somebody may append."""
IDLE = 600.0
"""Seconds without a run after which a job that waits for more ends: who feeds it is gone, and starts another if it comes back."""
LOG_TAIL = 2000
"""Characters of a dead worker's log that go into the journal."""
EARLY_SIGNAL = 90
"""Seconds before its time limit at which a job is warned (Slurm may do it up to a minute earlier)."""
LAST_WORDS = 15
"""Of these, the seconds the supervisor keeps for itself."""
TERM_SECONDS = 15
"""Seconds a worker has to save its state after SIGTERM; Slurm's SIGKILL follows after 30."""
SOON = 60.0
"""Seconds after a job's begin within which a run begins that has the whole job."""
DONE, STOPPED, REQUEUE = 0, 3, 4


class Supervisor:
    """Carries out one assignment; see the module's docstring."""

    def __init__(self, assignment: Assignment, sweep: SweepDir, try_: int, launcher: str, slurm_job_id: str | None) -> None:
        self.assignment = assignment
        self.sweep = sweep
        self.try_ = try_
        self.launcher = launcher
        self.slurm_job_id = slurm_job_id
        self.job: str = assignment.header["job"]
        self.execution = Execution(**assignment.header["execution"])
        self.slots = [Slot(i) for i in range(assignment.header["slots"])]
        self.attempts: Counter[str] = Counter()
        self.chances = SecondChances(self.execution, assignment.header.get("retries", {}))
        self.stopping = ""
        self.stop_cause = causes.STOPPED
        self.stop_at = 0.0
        self.told_to_stop = False
        self.alike = Alike(sweep, assignment.header.get("stop_after", 0), assignment.header.get("t", 0.0))
        self.memory_kills = causes.memory_kills()
        self.began = 0.0
        self.copies: dict[str, str] = {}
        self.meeting: machines.Meeting | None = None
        self.selector = selectors.DefaultSelector()
        with disk_faults(sweep.journals):
            sweep.logs.mkdir(parents=True, exist_ok=True)
        self.journal = Appender(sweep.journal(self.job, try_))

    def run(self) -> int:
        with contextlib.ExitStack() as lock:
            if self.launcher == "local":
                # Tells a local `emsweep run` that this job lives; the kernel drops it with the process. Not where it is not
                # needed: network file systems refuse some locks.
                fcntl.flock(lock.enter_context(open(self.journal.path, "r+b")), fcntl.LOCK_EX)
            self._journal_start()
            if self.execution.num_machines > 1:
                self.meeting = machines.Meeting(self.sweep.meeting(self.job, self.try_))
            self.copies = local_copy.of_job(self.assignment.header, lambda: bool(self.stopping))
            try:
                self._loop()
            finally:
                self._end_workers()
            self.journal.append("job_end", reason=self.stopping or "done", t=time.time())
            self.journal.sync()
        progress = any(s.ended for s in self.slots) or self.execution.save_steps > 0
        if self.stop_cause == causes.TIME_LIMIT and self._unfinished and progress and not self.assignment.header.get("open"):
            return REQUEUE
        return STOPPED if self.stopping else DONE

    def stop(self, reason: str, cause: str = causes.STOPPED, seconds: float = 0.0) -> None:
        """Ask the loop to end within `seconds`; the first reason counts, the earliest end too. Safe in a signal handler."""
        end = time.monotonic() + seconds
        self.stop_at = min(self.stop_at, end) if self.stopping else end
        if not self.stopping:
            self.stopping, self.stop_cause = reason, cause

    def watch_stdin(self) -> None:
        """Stop when stdin ends: a local launcher holds its other end, so it never leaves a job behind."""
        self.selector.register(0, selectors.EVENT_READ, "stdin")

    def _loop(self) -> None:
        self.began, last_busy = time.time(), time.monotonic()
        while True:
            if self.assignment.follow():
                last_busy = time.monotonic()
            self._apply_cancels()
            if self.assignment.stop:
                self.stop(self.assignment.stop, causes.CANCELLED)
                self.stopping, self.stop_cause = self.assignment.stop, causes.CANCELLED  # however the signal came first
            elif reason := halted(self.sweep):
                self.stop(reason)
            busy = any(s.request is not None for s in self.slots)
            if self.stopping:
                self._tell_to_stop()
                if not busy or time.monotonic() >= self.stop_at:
                    break
            else:
                for slot in self.slots:
                    if slot.request is None and self.assignment.queue:
                        self._hand_out(slot)
                        busy = True
                if busy:
                    last_busy = time.monotonic()
                elif self.assignment.closed or time.monotonic() - last_busy > IDLE:
                    return
            waits = not self.assignment.closed and any(s.request is None for s in self.slots)
            for key, _ in self.selector.select(EAGER if waits else TICK):
                if key.data == "stdin":
                    if not os.read(0, 4096):
                        self.stop("the launcher ended")
                else:
                    self._read(key.data)
        self._unfinished = self._unfinished or bool(self.assignment.queue)
        for slot in self.slots:
            if slot.request is not None:
                self._kill(slot)
            if slot.request is not None:
                self._journal_stopped(slot)

    _unfinished = False

    def _tell_to_stop(self) -> None:
        """Once: workers that can save what they have are told to; the others go on as long as there is time."""
        if not self.told_to_stop:
            self.told_to_stop = True
            for slot in self.slots:
                if slot.request is not None:
                    slot.send({"stop": True})

    # -- runs and workers ---------------------------------------------------------------------------------------

    def _hand_out(self, slot: Slot) -> None:
        record = self.assignment.queue.popleft()
        if slot.leaving:
            self._kill(slot)
        if slot.process is None:
            environment, listener = slot_environment(slot.index, self.assignment.header) | self.copies, -1
            if self.meeting is not None:
                environment, listener = environment | {machines.TOKEN: self.meeting.token}, self.meeting.socket.fileno()
            slot.start(self.sweep.worker_log(self.job, slot.index), environment, self.execution, listener)
            self.selector.register(slot.pipe, selectors.EVENT_READ, slot)
            slot.send({"execution": self.execution.model_dump()})
        slot.record = record
        folder = self.sweep.run_checkpoints(record["run_id"])
        halvings = self.chances.halvings[record["config_id"]]
        slot.request = self.assignment.request(record, self._next_attempt(record["run_id"]), str(folder), halvings)
        slot.started = time.time()
        slot.send(slot.request.as_json())

    def _next_attempt(self, run_id: str) -> int:
        self.attempts[run_id] += 1
        return self.attempts[run_id] - 1

    def _read(self, slot: Slot) -> None:
        lines = slot.lines()
        if lines is None:
            self._bury(slot)
        elif lines:
            self._take(slot, lines)

    def _take(self, slot: Slot, lines: list[bytes]) -> None:
        """A worker's records into the journal: one write for what arrived together, so that nobody sees a torn one of ours."""
        ends = [i for i, line in enumerate(lines) if line.startswith(b'{"kind":"run_end"')]
        for i in ends:
            if is_failure(lines[i]):
                assert slot.record is not None
                assert slot.request is not None
                lines[i], again = self.chances.judged(lines[i], slot.record, slot.request)
                if again:
                    self.assignment.queue.appendleft(slot.record)
        self.journal.write(b"\n".join(lines) + b"\n")
        for i in ends:
            self.journal.sync()
            if b'"cause":"disk"' in lines[i]:
                raise Fault((decode(lines[i]) or {}).get("message", "disk").removeprefix("Fault: "))
            self._over(slot, lines[i])

    def _over(self, slot: Slot, line: bytes) -> None:
        """The slot is free again. A state saved on request is progress as an end is."""
        slot.request = slot.record = None
        slot.ended += 1
        slot.leaving = b'"worker_ends":true' in line
        if b'"status":"interrupted"' in line and self.stopping:
            self._unfinished = True
        if is_failure(line) and (reason := self.alike.too_many(decode(line) or {})):
            self.stop(reason)

    def _bury(self, slot: Slot) -> None:
        """The worker died: say why, and put its run back where that was not the run's fault."""
        returncode = self._forget(slot)
        if slot.record is None:
            return
        kills, self.memory_kills = self.memory_kills, causes.memory_kills()
        found = causes.of_death(returncode, out_of_memory=self.memory_kills > kills)
        record, status = slot.record, found.status
        if status is RunStatus.INTERRUPTED and self.chances.worn_out(record, found.cause):
            status = RunStatus.FAILED
        self._journal_end(slot, status, found.cause, found.message, self._log_tail(slot))
        if status is RunStatus.INTERRUPTED and found.cause != causes.HOST_MEMORY:
            self.assignment.queue.append(record)

    def _kill(self, slot: Slot) -> None:
        """End a worker at once, after taking what it had already written."""
        if slot.process is not None:
            slot.kill()
            while lines := slot.lines():
                self._take(slot, lines)
            self._forget(slot)

    def _forget(self, slot: Slot) -> int:
        self.selector.unregister(slot.pipe)
        return slot.forget()

    def _end_workers(self) -> None:
        for slot in self.slots:
            if slot.process is not None and slot.process.stdin is not None:
                with contextlib.suppress(BrokenPipeError):
                    slot.process.stdin.close()
        for slot in self.slots:
            if slot.process is not None:
                slot.end(5)

    def _apply_cancels(self) -> None:
        cancelled = self.assignment.cancelled
        if not cancelled:
            return
        for record in [r for r in self.assignment.queue if r["run_id"] in cancelled]:
            self.assignment.queue.remove(record)
            self._journal_unstarted(record, cancelled[record["run_id"]])
        for slot in self.slots:
            if slot.request is not None and (reason := cancelled.get(slot.request.run_id)):
                self._kill(slot)
                if slot.request is not None:
                    self._journal_end(slot, RunStatus.CANCELLED, causes.CANCELLED, reason)
        cancelled.clear()

    # -- journal ------------------------------------------------------------------------------------------------

    def _journal_start(self) -> None:
        self.journal.append(
            "job_start",
            job=self.job,
            t=time.time(),
            sweep=self.sweep.sweep,
            launcher=self.launcher,
            slurm_job_id=self.slurm_job_id,
            node=socket.gethostname() if self.launcher == "local" else os.environ.get("SLURMD_NODENAME", socket.gethostname()),
            pid=os.getpid(),
            slots=len(self.slots),
            cpus=len(os.sched_getaffinity(0)),
            mem_gb=causes.granted_gb(),
            gpus_per_run=self.assignment.header.get("gpus_per_run"),
            num_machines=self.execution.num_machines,
            **{"try": self.try_},
            **provenance(),
        )
        self.journal.sync()

    def _journal_stopped(self, slot: Slot) -> None:
        """The end of a run that the job's end cut short. One that had the whole job to itself will never fit."""
        minutes = self.assignment.header.get("timeout_min")
        saves = self.execution.save_steps > 0
        assert slot.record is not None
        if self.stop_cause == causes.TIME_LIMIT and saves and self.chances.worn_out(slot.record, causes.TIME_LIMIT):
            self._journal_end(slot, RunStatus.FAILED, causes.TIME_LIMIT, "met its job's time limit too often")
        elif self.stop_cause == causes.TIME_LIMIT and not slot.ended and not saves and self._had_it_all(slot):
            longer = (
                f"longer than the job's time limit of {minutes} min: raise resources.timeout_min, or set execution.save_steps"
            )
            self._journal_end(slot, RunStatus.FAILED, causes.TIME_LIMIT, longer)
        elif self.stop_cause == causes.CANCELLED:
            self._journal_end(slot, RunStatus.CANCELLED, causes.CANCELLED, self.stopping)
        else:
            self._unfinished = True
            self._journal_end(slot, RunStatus.INTERRUPTED, self.stop_cause, f"the job was stopped: {self.stopping}")

    def _had_it_all(self, slot: Slot) -> bool:
        """Whether a slot's first run had the whole job. In an open one it may have been given long after the job began."""
        return not self.assignment.header.get("open") or slot.started - self.began < SOON

    def _journal_end(self, slot: Slot, status: RunStatus, cause: str, message: str, tail: str = "") -> None:
        assert slot.request is not None
        now = time.time()
        said = {
            "run_id": slot.request.run_id, "attempt": slot.request.attempt, "t": now, "seconds": now - slot.started,
            "status": status, "cause": cause, "message": message, "traceback": tail, "steps": 0, "figures": {},
        }  # fmt: skip
        line = encode("run_end", said)
        self.journal.write(line)
        self.journal.sync()
        self._over(slot, line)

    def _journal_unstarted(self, record: Record, reason: str) -> None:
        """A run that was cancelled while it waited: an attempt with an end and no beginning."""
        told = {
            "status": RunStatus.CANCELLED,
            "cause": causes.CANCELLED,
            "message": f"{reason}, before it started",
            "traceback": "",
        }
        ids = {"run_id": record["run_id"], "attempt": self._next_attempt(record["run_id"])}
        self.journal.append("run_end", **ids, t=time.time(), seconds=0.0, steps=0, figures={}, **told)
        self.journal.sync()

    def _log_tail(self, slot: Slot) -> str:
        with contextlib.suppress(OSError):
            return self.sweep.worker_log(self.job, slot.index).read_text(errors="replace")[-LOG_TAIL:]
        return ""


def early_signal(timeout_min: int) -> int:
    """Seconds before the time limit at which Slurm is to warn a job: less where the whole job is short."""
    return min(EARLY_SIGNAL, 20 * timeout_min)


def carry_out(assignment_path: str, try_: int, launcher: str, slurm_job_id: str | None = None) -> int:
    """Carry out one assignment in this process; returns the supervisor's exit code."""
    path = Path(assignment_path)
    sweep = SweepDir(path.parent.parent.parent, path.parent.parent.name)
    assignment = Assignment(path, finished=finished_before(sweep, path.stem, try_))
    assignment.follow()
    if not assignment.header:
        raise Fault(f"{path} is no assignment: the folder of the runs is not what this node sees under that path")
    if try_ and assignment.header.get("open"):  # brought back by force: what it had was given to other jobs when it ended
        assignment.queue.clear()
        assignment.closed = True
    supervisor = Supervisor(assignment, sweep, try_, launcher, slurm_job_id)
    warned_before = early_signal(assignment.header.get("timeout_min", 60))

    def on_signal(number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGUSR2:
            supervisor.stop("time limit", causes.TIME_LIMIT, max(0, warned_before - LAST_WORDS))
        else:
            saves = supervisor.execution.save_steps > 0
            supervisor.stop(f"received {signal.Signals(number).name}", seconds=TERM_SECONDS if saves else 0)

    # After submitit's own handlers, which would requeue and exit and leave our workers alive.
    for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT):
        signal.signal(number, on_signal)
    if launcher == "local":
        supervisor.watch_stdin()
    return supervisor.run()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("assignment")
    parser.add_argument("--try", dest="try_", type=int, default=0)
    args = parser.parse_args()
    try:
        sys.exit(carry_out(args.assignment, args.try_, "local"))
    except EmsweepError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
