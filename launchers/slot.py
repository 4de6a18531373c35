"""A worker's share of a job: its process, the pipe its records come up, and the run it is doing."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from em_core.config import Execution, RunRequest
from em_core.journal import Record
from launchers.snapshot import visible_gpus


@dataclass
class Slot:
    """A worker and what it is doing.

    `record` is what the assignment says of the run, `request` what the worker was told; both None while it is idle.
    `pending` holds the bytes of a record that has not arrived whole, `ended` counts runs that ended here.
    """

    index: int
    process: subprocess.Popen[bytes] | None = None
    pipe: int = -1
    pending: bytes = b""
    record: Record | None = None
    request: RunRequest | None = None
    started: float = 0.0
    ended: int = 0
    leaving: bool = False
    """Whether the worker said that it takes no more runs."""

    def start(self, log: Path, environment: dict[str, str], execution: Execution, listener: int = -1) -> None:
        """Start the worker; its records come out of `pipe`. `listener`: the open port where other machines join it."""
        read_end, write_end = os.pipe()
        with open(log, "ab") as out:
            self.process = subprocess.Popen(
                worker_command(write_end, execution, listener),
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=out,
                pass_fds=(write_end,) if listener < 0 else (write_end, listener),
                env=os.environ | environment,
                start_new_session=True,  # its own group, so that it and its children can be killed together
                preexec_fn=deaf,
            )
        os.close(write_end)
        self.pipe, self.pending, self.leaving = read_end, b"", False

    def send(self, message: dict[str, Any]) -> None:
        assert self.process is not None
        assert self.process.stdin is not None
        # A worker that just died shows itself by the end of its pipe, where its death is dealt with.
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(message, separators=(",", ":")).encode() + b"\n")
            self.process.stdin.flush()

    def lines(self) -> list[bytes] | None:
        """Whole records that have arrived, waiting for some; None when the worker's end of the pipe is closed."""
        chunk = os.read(self.pipe, 1 << 20)
        if not chunk:
            return None
        *lines, self.pending = (self.pending + chunk).split(b"\n")
        return lines

    def kill(self) -> None:
        """End the worker and whatever it started, at once. What it had written can still be read."""
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def end(self, seconds: float) -> None:
        """Close the worker's stdin, which ends it; kill it where it does not end."""
        assert self.process is not None
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.kill()

    def forget(self) -> int:
        """Let go of a dead worker; returns its exit code (negative: the signal that ended it)."""
        assert self.process is not None
        assert self.process.stdin is not None
        returncode = self.process.wait()
        os.close(self.pipe)
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process = None
        return returncode


def worker_command(pipe: int, execution: Execution, listener: int = -1) -> list[str]:
    """The command line of a worker that writes its records into `pipe`: one process, or several that train together."""
    if execution.num_processes == 1:
        return [sys.executable, "-m", "em_core.worker", str(pipe)]
    if execution.num_machines == 1:
        return launch_command(pipe, execution)
    return [sys.executable, "-m", "launchers.machines", str(pipe), str(listener), execution.model_dump_json()]


def launch_command(pipe: int, execution: Execution, machine: int = 0, address: str = "127.0.0.1", port: int = 0) -> list[str]:
    """The command line that starts one machine's share of a run's processes. They meet at that address and port.

    `--multi_gpu` is `accelerate`'s word for several processes; on a CPU they talk through gloo.
    """
    return [
        sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--gpu_ids", "all",
        "--num_machines", str(execution.num_machines), "--machine_rank", str(machine),
        "--num_processes", str(execution.num_processes), "--main_process_ip", address, "--main_process_port", str(port),
        "--mixed_precision", "no", "--dynamo_backend", "no", "-m", "em_core.worker", str(pipe), execution.device,
    ]  # fmt: skip


def deaf() -> None:
    """Slurm signals every process of a job: only the supervisor is to obey, and not what starts a run's processes either."""
    for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


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
        "TORCHELASTIC_SIGNALS_TO_HANDLE": "SIGQUIT",  # SIGTERM too is the supervisor's business
    }
    gpus = int(header.get("gpus_per_run") or 0)
    if gpus:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(visible_gpus()[index * gpus : (index + 1) * gpus])
    return environment
