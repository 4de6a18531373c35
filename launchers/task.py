"""The supervisor: one process per job. Hands runs to slots, replaces dead workers, and alone writes the job's journal.

Reads its assignment file as it grows (`run`, `cancel`, `stop`, `close`), starts one worker per slot, passes their
records into the journal line by line, and names the cause when one dies. It never trains and never imports torch.

Exit codes: 0 the assignment is done; 3 stopped by a signal or by the end of its launcher; 1 the journal cannot be written.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from em_core.config import Evaluation, Execution, RunRequest, steps_within
from em_core.errors import EmsweepError, Fault
from em_core.journal import Appender, Record, RunStatus, SweepDir, disk_faults
from launchers import causes
from launchers.assignment import Assignment, finished_before
from launchers.snapshot import provenance, visible_gpus

TICK = 0.25
"""Seconds between looks at the assignment file and at signals."""
LOG_TAIL = 2000
"""Characters of a dead worker's log that go into the journal."""


@dataclass
class Slot:
    """A worker and what it is doing. `pending` holds the bytes of a record that has not arrived whole."""

    index: int
    process: subprocess.Popen[bytes] | None = None
    pipe: int = -1
    pending: bytes = b""
    request: RunRequest | None = None
    started: float = 0.0


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
        self.attempts: dict[str, int] = {}
        self.kills: dict[str, int] = {}
        self.stopping = ""
        self.selector = selectors.DefaultSelector()
        with disk_faults(sweep.journals):
            sweep.logs.mkdir(parents=True, exist_ok=True)
        self.journal = Appender(sweep.journal(self.job, try_))

    def run(self) -> int:
        with contextlib.ExitStack() as lock:
            # The lock tells a local `emsweep run` that this job lives; the kernel drops it with the process.
            held = lock.enter_context(open(self.journal.path, "rb"))
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._journal_start()
            try:
                self._loop()
            finally:
                self._end_workers()
            self.journal.append("job_end", reason=self.stopping or "done", t=time.time())
            self.journal.sync()
        return 3 if self.stopping else 0

    def stop(self, reason: str) -> None:
        """Ask the loop to end: current runs are journaled as interrupted and their workers killed."""
        self.stopping = self.stopping or reason

    def watch_stdin(self) -> None:
        """Stop when stdin ends: a local launcher holds its other end, so it never leaves a job behind."""
        self.selector.register(0, selectors.EVENT_READ, "stdin")

    def _loop(self) -> None:
        while not self.stopping:
            self.assignment.follow()
            self._apply_cancels()
            if self.assignment.stop:
                self.stop(self.assignment.stop)
                break
            for slot in self.slots:
                if slot.request is None and self.assignment.queue:
                    self._hand_out(slot)
            if self.assignment.closed and not self.assignment.queue and all(s.request is None for s in self.slots):
                return
            for key, _ in self.selector.select(TICK):
                if key.data == "stdin":
                    if not os.read(0, 4096):
                        self.stop("the launcher ended")
                else:
                    self._read(key.data)
        for slot in self.slots:
            if slot.request is not None:
                self._kill(slot)
                self._journal_end(slot, RunStatus.INTERRUPTED, "stopped", f"the job was stopped: {self.stopping}")

    # -- runs and workers ---------------------------------------------------------------------------------------

    def _hand_out(self, slot: Slot) -> None:
        record = self.assignment.queue.popleft()
        run_id = record["run_id"]
        number = self.attempts[run_id] = self.attempts.get(run_id, -1) + 1
        if slot.process is None:
            self._start_worker(slot)
        slot.request = self._request(record, number)
        slot.started = time.time()
        self._send(slot, slot.request.as_json())

    def _request(self, record: Record, number: int) -> RunRequest:
        config = self.assignment.configs[record["config_id"]]
        needed = {(i, s) for i, s in record.get("need", ())}
        evaluations = []
        for eval_id, fields, steps in self.assignment.header["evaluations"]:
            within = steps_within(steps, config.max_steps)
            if record["mode"] == "eval":
                within = tuple(s for s in within if (eval_id, s) in needed)
            if within:
                evaluations.append((eval_id, Evaluation(**fields), within))
        return RunRequest(
            run_id=record["run_id"],
            config_id=record["config_id"],
            seed=record["seed"],
            attempt=number,
            mode=record["mode"],
            config=config,
            evaluations=tuple(evaluations),
            keep=self.assignment.header["keep"],
            checkpoints=str(self.sweep.run_checkpoints(record["run_id"])),
        )

    def _start_worker(self, slot: Slot) -> None:
        read_end, write_end = os.pipe()
        with open(self.sweep.worker_log(self.job, slot.index), "ab") as log:
            slot.process = subprocess.Popen(
                [sys.executable, "-m", "em_core.worker", str(write_end)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=(write_end,),
                env=os.environ | slot_environment(slot.index, self.assignment.header),
            )
        os.close(write_end)
        slot.pipe, slot.pending = read_end, b""
        self.selector.register(read_end, selectors.EVENT_READ, slot)
        self._send(slot, {"execution": self.execution.model_dump()})

    def _send(self, slot: Slot, message: dict[str, Any]) -> None:
        assert slot.process is not None
        assert slot.process.stdin is not None
        # A worker that just died shows itself by the end of its pipe, where its death is dealt with.
        with contextlib.suppress(BrokenPipeError):
            slot.process.stdin.write(json.dumps(message, separators=(",", ":")).encode() + b"\n")
            slot.process.stdin.flush()

    def _read(self, slot: Slot) -> None:
        chunk = os.read(slot.pipe, 1 << 20)
        if not chunk:
            self._bury(slot)
            return
        *lines, slot.pending = (slot.pending + chunk).split(b"\n")
        if not lines:
            return
        # One write for what arrived together: whole lines only, so a reader never sees a torn record of ours.
        self.journal.write(b"\n".join(lines) + b"\n")
        for line in lines:
            if line.startswith(b'{"kind":"run_end"'):
                self.journal.sync()
                slot.request = None
                if b'"cause":"disk"' in line:
                    raise Fault(json.loads(line)["message"].removeprefix("Fault: "))

    def _bury(self, slot: Slot) -> None:
        """The worker died: say why, and put its run back where that was not the run's fault."""
        assert slot.process is not None
        returncode = slot.process.wait()
        self._forget_worker(slot)
        if slot.request is None:
            return
        run_id = slot.request.run_id
        cause = causes.of_death(returncode, self.kills.get(run_id, 0))
        request = slot.request
        self._journal_end(slot, cause.status, cause.cause, cause.message, self._log_tail(slot))
        if cause.status is RunStatus.INTERRUPTED:
            self.kills[run_id] = self.kills.get(run_id, 0) + 1
            need = [[i, s] for i, _, steps in request.evaluations for s in steps] if request.mode == "eval" else []
            again = {"run_id": run_id, "config_id": request.config_id, "seed": request.seed, "mode": request.mode, "need": need}
            self.assignment.queue.append(again)

    def _kill(self, slot: Slot) -> None:
        if slot.process is not None:
            slot.process.kill()
            slot.process.wait()
            self._forget_worker(slot)

    def _forget_worker(self, slot: Slot) -> None:
        assert slot.process is not None
        assert slot.process.stdin is not None
        self.selector.unregister(slot.pipe)
        os.close(slot.pipe)
        with contextlib.suppress(BrokenPipeError):
            slot.process.stdin.close()
        slot.process = None

    def _end_workers(self) -> None:
        """Close every worker's stdin, which ends it; kill what does not end."""
        for slot in self.slots:
            if slot.process is not None and slot.process.stdin is not None:
                with contextlib.suppress(BrokenPipeError):
                    slot.process.stdin.close()
        for slot in self.slots:
            if slot.process is not None:
                try:
                    slot.process.wait(timeout=5)
                except subprocess.TimeoutExpired:
                    slot.process.kill()
                    slot.process.wait()

    def _apply_cancels(self) -> None:
        cancelled = self.assignment.cancelled
        if not cancelled:
            return
        for record in [r for r in self.assignment.queue if r["run_id"] in cancelled]:
            self.assignment.queue.remove(record)
            self._journal_unstarted(record)
        for slot in self.slots:
            if slot.request is not None and slot.request.run_id in cancelled:
                self._kill(slot)
                self._journal_end(slot, RunStatus.CANCELLED, "cancelled", "cancelled by a person")
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
            **{"try": self.try_},
            **provenance(),
        )
        self.journal.sync()

    def _journal_end(self, slot: Slot, status: RunStatus, cause: str, message: str, tail: str = "") -> None:
        assert slot.request is not None
        now = time.time()
        self.journal.append(
            "run_end",
            run_id=slot.request.run_id,
            attempt=slot.request.attempt,
            t=now,
            seconds=now - slot.started,
            status=status,
            cause=cause,
            message=message,
            traceback=tail,
            steps=0,
            figures={},
        )
        self.journal.sync()
        slot.request = None

    def _journal_unstarted(self, record: Record) -> None:
        """A run that was cancelled while it waited: an attempt with an end and no beginning."""
        number = self.attempts[record["run_id"]] = self.attempts.get(record["run_id"], -1) + 1
        told = {"status": RunStatus.CANCELLED, "cause": "cancelled", "message": "cancelled before it started", "traceback": ""}
        ids = {"run_id": record["run_id"], "attempt": number}
        self.journal.append("run_end", **ids, t=time.time(), seconds=0.0, steps=0, figures={}, **told)
        self.journal.sync()

    def _log_tail(self, slot: Slot) -> str:
        with contextlib.suppress(OSError):
            return self.sweep.worker_log(self.job, slot.index).read_text(errors="replace")[-LOG_TAIL:]
        return ""


def slot_environment(index: int, header: Record) -> dict[str, str]:
    """What a worker's environment adds: its threads (pinned, or numbers change between launchers) and its GPUs."""
    threads = str(header["execution"]["threads"])
    environment = {
        "EMSWEEP_SLOT": str(index),
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "OPENBLAS_NUM_THREADS": threads,
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
    }
    gpus = int(header.get("gpus_per_run") or 0)
    if gpus:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(visible_gpus()[index * gpus : (index + 1) * gpus])
    return environment


def carry_out(assignment_path: str, try_: int, launcher: str, slurm_job_id: str | None = None) -> int:
    """Carry out one assignment in this process; returns the supervisor's exit code."""
    path = Path(assignment_path)
    sweep = SweepDir(path.parent.parent.parent, path.parent.parent.name)
    assignment = Assignment(path, finished=finished_before(sweep, path.stem, try_))
    assignment.follow()
    if not assignment.header:
        raise Fault(f"{path} is no assignment: the folder of the runs is not what this node sees under that path")
    supervisor = Supervisor(assignment, sweep, try_, launcher, slurm_job_id)

    def on_signal(number: int, _frame: FrameType | None) -> None:
        supervisor.stop(f"received {signal.Signals(number).name}")

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
