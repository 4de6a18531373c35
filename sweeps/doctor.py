"""`emsweep doctor`: a probe job through the path that every job takes, and questions to it. `verdicts` judges the answers.

Everything that is asked is written to a folder under the root and removed afterwards.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from em_core.errors import Fault, UserError
from em_core.journal import Appender, Record, SweepDir, disk_faults, read_records
from launchers.base import Batch
from launchers.probe import answer_from, room
from launchers.scheduler import ask as ask_slurm
from launchers.slurm import SlurmLauncher
from launchers.snapshot import provenance, take
from sweeps.site import Site, default_resources, job_environment

PINGS = 5
ANSWER_SECONDS = 90.0
"""How long an answer may take: a slow file system shows a file's new lines only after a minute."""
MODEL_SECONDS = 500.0
SIGNAL_SECONDS = 30.0
TICK = 0.05
Say = Callable[[str], None]


class Probe(Protocol):
    """The job that answers."""

    def trouble(self) -> tuple[bool, str]:
        """(whether it is over, a line that says where it stands)."""

    def signal(self) -> None:
        """Send it USR2, as the scheduler does before the time limit."""

    def end(self) -> None:
        """Make sure that nothing of it is left."""


class LocalProbe:
    """The probe as a process of this machine."""

    def __init__(self, folder: Path, site: Site) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "launchers.probe", str(folder)],
            stderr=subprocess.PIPE,
            env=os.environ | job_environment(site, "local"),
            start_new_session=True,
        )

    def trouble(self) -> tuple[bool, str]:
        if self.process.poll() is None:
            return False, "starting"
        assert self.process.stderr is not None
        return True, f"exit code {self.process.returncode}: {_last_lines(self.process.stderr.read().decode(errors='replace'))}"

    def signal(self) -> None:
        self.process.send_signal(signal.SIGUSR2)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


class SlurmProbe:
    """The probe as a Slurm job, with the site's parameters, set-up lines and environment."""

    def __init__(self, root: Path, folder: Path, site: Site, minutes: int) -> None:
        self.logs = SweepDir(folder.parent, folder.name).logs
        resources = default_resources(site).model_copy(update={"timeout_min": minutes}).model_dump(exclude={"when"})
        batch = Batch(
            token=f"doctor-{folder.name}", name="emsweep-doctor", jobs=("doctor",), slots=1, code=take(root), resources=resources,
            setup=tuple(site.setup), environment=job_environment(site, "slurm"),
        )  # fmt: skip
        self.launcher = SlurmLauncher(SweepDir(folder.parent, folder.name))
        self.id = self.launcher.call(answer_from, str(folder), batch)

    def trouble(self) -> tuple[bool, str]:
        said = ask_slurm("squeue", "--noheader", "--states=all", "--job", self.id, "--format=%T|%r|%N")
        if said is None:
            return False, f"job {self.id}: Slurm does not answer"
        state, reason, node = [*said[0].split("|"), "", ""][:3] if said else ("gone", "", "")
        if state in ("RUNNING", "COMPLETING"):
            return False, f"job {self.id} runs on {node}, not a word from it yet"
        if state in ("PENDING", "CONFIGURING", "REQUEUED"):
            return False, f"job {self.id} is pending: {reason}"
        words = [p.read_text(errors="replace") for p in sorted((self.logs / "submitit").glob("*.err")) if p.stat().st_size]
        return True, f"job {self.id} {state.lower()}: {_last_lines(''.join(words)) or 'not a word in its log'}"

    def signal(self) -> None:
        if ask_slurm("scancel", "--signal=USR2", self.id) is None:
            raise Fault("scancel --signal=USR2 failed")

    def end(self) -> None:
        ask_slurm("scancel", self.id)


@dataclass
class Talk:
    """Our half of the conversation; see `launchers.probe`."""

    folder: Path
    probe: Probe
    n: int = 0

    def __post_init__(self) -> None:
        self.out = Appender(self.folder / "here.jsonl")

    def hello(self, minutes: float, say: Say) -> Record:
        """Wait until the job says something. Raises `Fault` with its last words, or why it is still pending."""
        deadline, told = time.monotonic() + 60 * minutes, ""
        while True:
            for r in self._said("hello"):
                return r
            over, line = self.probe.trouble()
            if over:
                for r in self._said("hello"):
                    return r
                raise Fault(line)
            if line != told and line != "starting":
                say(line)
                told = line
            if time.monotonic() > deadline:
                raise Fault(f"{line}, after {minutes:g} min (--timeout waits longer)")
            time.sleep(0.2 if line == "starting" else 1.0)

    def ask(self, kind: str, seconds: float = ANSWER_SECONDS, **fields: Any) -> Record:
        """A question's answer, with `sent` and `received` by our clock. An answer that does not come is one with `error`."""
        self.n += 1
        sent = time.time()
        self.out.append(kind, n=self.n, **fields)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for r in self._said("answer"):
                if r["n"] == self.n:
                    return {**r, "sent": sent, "received": time.time()}
            time.sleep(TICK)
        return {"error": f"no answer within {seconds:.0f} s", "sent": sent, "received": time.time()}

    def caught(self) -> float | None:
        """Send USR2; seconds until we see that it arrived, None where it never does."""
        sent = time.monotonic()
        self.probe.signal()
        while time.monotonic() - sent < SIGNAL_SECONDS:
            if any(r["signal"] == "SIGUSR2" for r in self._said("caught")):
                return time.monotonic() - sent
            time.sleep(TICK)
        return None

    def _said(self, kind: str) -> Iterator[Record]:
        return (r for r in read_records(self.folder / "node.jsonl") if r["kind"] == kind)


def examine(root: Path, launcher: str, site: Site, model: str, minutes: float, say: Say) -> Record:
    """Everything that the verdicts rest on. What could not be found out is an `error` in its place; nothing is left behind.

    Raises `UserError` where the root cannot be written, `Fault` where Slurm refuses the job.
    """
    name, _, revision = model.partition("@")
    made = not root.exists()
    folder = root / ".doctor" / secrets.token_hex(4)
    with disk_faults(folder):
        folder.mkdir(parents=True)
    found: Record = {"launcher": launcher, "here": provenance(), "model_name": model, "site": site.model_dump()}
    found["gpus_asked"] = default_resources(site).gpus_per_run or 0
    probe: Probe | None = None
    try:
        probe = LocalProbe(folder, site) if launcher == "local" else SlurmProbe(root, folder, site, 12)
        talk = Talk(folder, probe)
        began = time.monotonic()
        try:
            found["hello"] = talk.hello(minutes, say)
        except Fault as why:
            found["hello"] = {"error": str(why)}
            return found
        found["start_seconds"] = time.monotonic() - began
        say("it answers; looking around ...")
        found["pings"] = [_ping(talk) for _ in range(PINGS)]
        if "error" in found["pings"][0]:
            return found
        found["facts"] = talk.ask("facts", 120)
        found["locks"] = _locks(talk)
        found["signal"] = _or_error(talk.caught)
        found["disks"] = {"here": room(root), "root": talk.ask("disk", path=str(root))}
        if site.local_disk:
            found["disks"]["local"] = talk.ask("disk", path=site.local_disk)
        say(f"loading {model} there ...")
        found["model"] = talk.ask("model", MODEL_SECONDS, model=name, revision=revision or None)
        if isinstance(probe, SlurmProbe):
            found["cluster"] = _cluster(probe)
            found["requeue"] = _requeue(talk, probe)
        else:
            talk.out.append("end", n=talk.n + 1)
        return found
    finally:
        if probe is not None:
            probe.end()
        shutil.rmtree(root if made else folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            folder.parent.rmdir()


def _ping(talk: Talk) -> Record:
    text = secrets.token_hex(2048)
    answer = talk.ask("ping", text=text)
    if "error" not in answer:
        answer["same"] = answer.pop("text") == text[::-1] and answer["digest"] == hashlib.sha256(text.encode()).hexdigest()
    return answer


def _locks(talk: Talk) -> Record:
    """Whether a lock that is held on one side is refused on the other, both ways; None where it could not be tried."""
    held = talk.ask("hold", file="theirs.lock")
    refused_here: bool | None = None
    if held.get("held"):
        with open(talk.folder / "theirs.lock", "r+b") as f:
            refused_here = _refused(f.fileno())
        talk.ask("drop", file="theirs.lock")
    with open(talk.folder / "ours.lock", "wb") as f:
        mine = _or_error(lambda: fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB))
        answer = talk.ask("try", file="ours.lock")
    error = held.get("error") or answer.get("error") or (mine or {}).get("error")
    return {"here": refused_here, "there": answer.get("refused"), "error": error}


def _refused(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def _or_error(do: Callable[[], Any]) -> Any:
    try:
        return do()
    except (OSError, Fault) as error:
        return {"error": str(error)}


def _cluster(probe: SlurmProbe) -> Record:
    """What the scheduler allows and remembers."""
    config = [line.partition("=") for line in ask_slurm("scontrol", "show", "config") or []]
    said = {name.strip(): value.strip() for name, _, value in config}
    known = probe.launcher.limits()
    return {
        "max_array_size": known.array_size,
        "max_submit_jobs": known.submitted_jobs,
        "accounting": ask_slurm("sacct", "--noheader", "--jobs", probe.id) is not None,
        "version": said.get("SLURM_VERSION"),
    }


def _requeue(talk: Talk, probe: SlurmProbe) -> Record:
    """Let the job requeue itself, which ends it; the queue says whether it would come back."""
    answer = talk.ask("requeue", 10)
    if answer.get("returncode"):
        return {"error": answer["stderr"]}
    deadline = time.monotonic() + SIGNAL_SECONDS
    while time.monotonic() < deadline:
        if "pending" in probe.trouble()[1]:
            return {"seconds": time.time() - answer["sent"]}
        time.sleep(0.5)
    return {"error": f"`scontrol requeue` was taken, and {probe.trouble()[1]}"}


def _last_lines(text: str, lines: int = 3) -> str:
    return " / ".join([line.strip() for line in text.splitlines() if line.strip()][-lines:])


def check_root(root: Path) -> None:
    """Raises `UserError` where the root is no folder."""
    if root.exists() and not root.is_dir():
        raise UserError(f"--root {root}: is a file; the root is the folder of the runs")
