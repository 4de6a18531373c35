"""One run on several machines: Slurm starts a task on each, and here they find each other and end together.

The first task is the supervisor. It listens on a port as long as it lives, and writes the number into a file that all
machines see. Its worker, the leader (`main`), starts `accelerate launch` on its own machine; the task on every other
machine (`serve`) connects and does the same there:

    supervisor --- stdin, records ---> leader --- accelerate launch --- processes
                                         |  one connection per other machine
                                       serve  --- accelerate launch --- processes

A connection lasts as long as its team, says on which port the processes meet, and brings back the records of those that
failed far away. Its end is the news that something died, whatever it was (a process, a launcher, the leader, a task): each
side then kills what it started, and the leader dies as a killed worker does. Where nobody listens any more the supervisor
is gone, and `serve` returns. A machine that vanishes without a word is Slurm's business: it ends the job.
"""

from __future__ import annotations

import contextlib
import ctypes
import hmac
import json
import os
import secrets
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from em_core.config import Execution
from em_core.journal import Record, SweepDir, disk_faults
from launchers import local_copy
from launchers.slot import deaf, launch_command, slot_environment

ADDRESS = "SLURM_LAUNCH_NODE_IPADDR"
"""Environment of a Slurm task: the address of the job's first machine, by which Slurm reached this one from there."""
TOKEN = "EMSWEEP_MACHINES_TOKEN"
"""Environment of the leader: what a machine says first, so that no stranger is taken for one."""
LOOK_EVERY = 0.5
"""Seconds between looks for the supervisor's port."""
PATIENCE = 10.0
"""Seconds that a machine which connected has to say the token."""
_set_process_option = ctypes.CDLL(None).prctl
_PR_SET_PDEATHSIG = 1


class Meeting:
    """The supervisor's open port. `place` is the file (for this user's eyes only) that tells the other machines of it."""

    def __init__(self, place: Path) -> None:
        self.socket = socket.create_server(("", 0))
        self.token = secrets.token_hex(16)
        part = place.with_suffix(".new")
        with disk_faults(place), open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as out:
            out.write(f"{self.socket.getsockname()[1]} {self.token}")
        part.replace(place)


def main() -> None:
    """The leader: `python -m launchers.machines PIPE LISTENER EXECUTION`, the numbers of open files and JSON."""
    with contextlib.suppress(OSError):  # another machine went away, or the supervisor
        _lead()
    _end_all()


def _lead() -> None:
    """Until the team is over."""
    pipe, listener = int(sys.argv[1]), socket.socket(fileno=int(sys.argv[2]))
    execution = Execution(**json.loads(sys.argv[3]))
    token = os.environ.pop(TOKEN)
    ends = select.epoll()
    ends.register(0, 0)  # of stdin only the end matters here: the main process reads it
    ends.register(listener, select.EPOLLIN)
    others: dict[int, socket.socket] = {}
    while len(others) < execution.num_machines - 1:
        if {fd for fd, _ in ends.poll()} != {listener.fileno()}:
            return
        other, _ = listener.accept()
        if _says(other, token):
            others[other.fileno()] = other
            ends.register(other, select.EPOLLIN)
        else:
            other.close()
    ends.unregister(listener)
    with socket.create_server(("", 0)) as probe:
        port = probe.getsockname()[1]
    for other in others.values():
        other.sendall(b"%d" % port)
    command = launch_command(pipe, execution, 0, os.environ[ADDRESS], port)
    launcher = subprocess.Popen(command, pass_fds=(pipe,), preexec_fn=_bound)
    ends.register(os.pidfd_open(launcher.pid), select.EPOLLIN)
    records = dict.fromkeys(others, b"")
    while True:
        for fd, _ in ends.poll():
            data = _received(others[fd]) if fd in others else b""
            if not data:
                return
            records[fd] += data
            whole, newline, records[fd] = records[fd].rpartition(b"\n")
            os.write(pipe, whole + newline)


def serve(assignment: str, try_: int, machine: int) -> None:
    """What the task on every other machine of a job does: it is there for one team after another, until the supervisor is gone.

    `machine` counts from 1. Slurm's signals are the supervisor's business, so they are ignored.
    """
    deaf()
    path = Path(assignment)
    sweep = SweepDir(path.parent.parent.parent, path.parent.parent.name)
    with open(path, "rb") as f:
        header: Record = json.loads(f.readline())
    environment = os.environ | slot_environment(0, header) | local_copy.of_job(header, lambda: False)
    place, log = sweep.meeting(header["job"], try_), sweep.worker_log(header["job"], machine)
    while not place.exists():
        time.sleep(LOOK_EVERY)
    port, token = place.read_text().split()
    address = os.environ[ADDRESS]
    with contextlib.suppress(ConnectionRefusedError):
        while True:
            with socket.create_connection((address, int(port))) as leader:
                with contextlib.suppress(OSError):
                    leader.sendall(token.encode())
                meet = _received(leader)
                if meet:
                    pipe, far_end = os.pipe()
                    command = launch_command(far_end, Execution(**header["execution"]), machine, address, int(meet))
                    _train(command, leader, (pipe, far_end), environment, log)


def _train(command: list[str], leader: socket.socket, pipe: tuple[int, int], environment: dict[str, str], log: Path) -> None:
    """This machine's part of a team: until it ends, or the leader does."""
    with open(log, "ab") as out:
        launcher = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,  # its end is one more sign for the processes that this one is gone
            stdout=out,
            stderr=out,
            pass_fds=pipe[1:],
            env=environment,
            start_new_session=True,
            preexec_fn=_bound,
        )
    launcher_end = os.pidfd_open(launcher.pid)
    ends = select.epoll()
    for fd in (leader.fileno(), launcher_end, pipe[0]):
        ends.register(fd, select.EPOLLIN)
    with contextlib.suppress(OSError):  # the leader's death
        while {fd for fd, _ in ends.poll()} == {pipe[0]}:
            leader.sendall(os.read(pipe[0], 1 << 16))
    with contextlib.suppress(ProcessLookupError):
        os.killpg(launcher.pid, signal.SIGKILL)
    launcher.communicate()
    ends.close()
    for fd in (launcher_end, *pipe):
        os.close(fd)


def _end_all() -> None:
    """End this process and its launcher as killed ones: no end of a team was asked for, or it is to be at once."""
    os.killpg(0, signal.SIGKILL)


def _bound() -> None:
    """What is started so ignores Slurm's signals, and dies with the process that started it."""
    deaf()
    _set_process_option(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _says(other: socket.socket, token: str) -> bool:
    other.settimeout(PATIENCE)
    with contextlib.suppress(OSError):
        said = other.recv(len(token), socket.MSG_WAITALL)
        other.settimeout(None)
        return hmac.compare_digest(said, token.encode())
    return False


def _received(other: socket.socket) -> bytes:
    """What has arrived, waiting for some; empty where the other end is gone."""
    try:
        return other.recv(1 << 16)
    except ConnectionError:
        return b""


if __name__ == "__main__":
    main()
