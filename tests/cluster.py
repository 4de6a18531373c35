"""A throw-away Slurm cluster with two nodes on this machine: real programs, no systemd, nothing in /etc.

    python -m tests.cluster up /tmp/c1        # prints the exports a shell needs: eval "$(python -m tests.cluster up /tmp/c1)"
    python -m tests.cluster status /tmp/c1
    python -m tests.cluster down /tmp/c1      # kills every daemon and job of it, removes the folder

The tests use it, and `make slurm-up` offers it to everyone (docs/cluster.md). It needs nothing but Python's own library.

Everything lives in one folder: configuration, munge key, database, logs. Daemons listen on 127.0.0.1 (where the machine's own
name means another address Slurm cannot be told to; then munge's key alone guards the ports). It needs root, because slurmd
starts jobs as their users. How it differs from a real cluster: memory and CPUs are booked but not enforced (no cgroups), the
two nodes share this machine's cores, a dead node is noticed in seconds, and every wait that Slurm lets one set is short.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tests.ports import free_port

NODES = ("n1", "n2")
DAEMONS = ("munged", "mariadbd", "slurmdbd", "slurmctld")
PROGRAMS = ("munged", "mariadbd", "mariadb-install-db", "slurmdbd", "slurmctld", "slurmd", "sbatch", "sacct", "setsid")
# Small files and no forced writes: nobody will need this database after a crash of the machine.
MARIADB = ["--no-defaults", "--user=root", "--innodb-log-file-size=8M", "--innodb-flush-log-at-trx-commit=0"]
INSTALL = ["--skip-test-db", "--auth-root-authentication-method=socket", "--auth-root-socket-user=root"]
PATH = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"  # daemons live in sbin, which a user's PATH may lack


class ClusterError(Exception):
    """The cluster did not do what it was asked; the message carries the ends of its logs."""


def unavailable() -> str | None:
    """Why no cluster can run here, in one line; None when one can."""
    if missing := [name for name in PROGRAMS if not shutil.which(name, path=PATH)]:
        return f"Slurm is not installed ({', '.join(missing)} missing): apt-get install slurm-wlm slurmdbd mariadb-server munge"
    return "a Slurm cluster of one's own needs root" if os.geteuid() else None


class SlurmCluster:
    """One cluster in one folder. `settings` are further lines of slurm.conf, for example `MaxArraySize=11`; `cpus` is what
    each node is said to have, however few this machine has.

    The daemons are called munged, mariadbd, slurmdbd, slurmctld, n1 and n2; `start` and `stop` take these names.
    """

    def __init__(self, folder: str | Path, accounting: bool = True, cpus: int = 4, **settings: str | int) -> None:
        self.dir = Path(folder).resolve()
        self.accounting = accounting
        self.cpus = cpus
        self.settings = settings
        self._guard: subprocess.Popen[bytes] | None = None

    # Life and death

    def up(self, detached: bool = False) -> SlurmCluster:
        """Start everything and return when both nodes are idle. Unless `detached`, it all dies with this process."""
        if reason := unavailable():
            raise ClusterError(reason)
        if len(str(self.dir)) > 60:
            raise ClusterError(f"{self.dir}: too long a path, a socket's name has 107 characters at most")
        self.down()  # what a killed predecessor left in this folder
        if self.dir.exists() and any(self.dir.iterdir()):
            raise ClusterError(f"{self.dir} is not empty and holds no cluster")
        if not detached:
            # A process of its own, which cleans up when the pipe closes, outlives even `kill -9` of this one. PR_SET_PDEATHSIG
            # would not do: it follows the thread that started the daemon, and it spares slurmstepd and the jobs.
            guard, here = [sys.executable, "-m", "tests.cluster", "guard", str(self.dir)], Path(__file__).parents[1]
            self._guard = subprocess.Popen(guard, cwd=here, stdin=subprocess.PIPE, start_new_session=True)
        try:
            self._configure()
            self.start("munged")
            if self.accounting:
                self.run("mariadb-install-db", *MARIADB, f"--datadir={self.dir}/db", *INSTALL)
                self.start("mariadbd")
                self.start("slurmdbd")
                self.run("sacctmgr", "-i", "add", "cluster", "emsweep")
            self.start("slurmctld")
            for node in NODES:
                self.start(node)
            self.wait("two idle nodes", lambda: self.nodes() == dict.fromkeys(NODES, "idle"))
        except BaseException:
            self.down()
            raise
        return self

    def down(self) -> None:
        """Kill every daemon, job and leftover, and remove the folder."""
        end = time.monotonic() + 10
        while pids := self.processes():  # again until none is left: a daemon may start a child while it is being killed
            if time.monotonic() > end:
                raise ClusterError(f"processes {sorted(pids)} of {self.dir} do not die")
            _kill(pids)
            time.sleep(0.05)
        if (self.dir / "slurm.conf").exists():
            shutil.rmtree(self.dir)
        if self._guard and self._guard.stdin:
            self._guard.stdin.close()
            self._guard.wait()
            self._guard = None

    def __enter__(self) -> SlurmCluster:
        return self.up()

    def __exit__(self, *_: object) -> None:
        self.down()

    # Use

    def env(self) -> dict[str, str]:
        """This process's environment, pointed at this cluster and free of another Slurm's variables."""
        prefixes = ("SLURM_", "SBATCH_", "SRUN_", "SQUEUE_", "SACCT_", "SINFO_")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(prefixes)}
        return {**kept, "SLURM_CONF": f"{self.dir}/slurm.conf", "PATH": PATH}

    def run(self, *command: str, timeout: float = 60) -> str:
        """What a client program prints; ClusterError, with its complaint, when it fails."""
        done = subprocess.run(command, env=self.env(), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout)
        if done.returncode:
            raise ClusterError(f"{shlex.join(command)}: exit {done.returncode}: {done.stderr.strip()}")
        return done.stdout.strip()

    def jobs(self) -> dict[str, str]:
        """State by job (`12` or `12_3`) of all that the controller still remembers: a minute beyond the end."""
        lines = self.run("squeue", "--noheader", "--array", "--states=all", "--format=%i %T").splitlines()
        return dict(line.split() for line in lines)

    def nodes(self) -> dict[str, str]:
        """State by node, as sinfo says it: idle, mixed, allocated, down*, drained ..."""
        lines = self.run("sinfo", "--noheader", "--Node", "--partition=main", "--format=%N %T").splitlines()
        return dict(line.split() for line in lines)

    def wait(self, what: str, check: Callable[[], bool], seconds: float = 30) -> None:
        """Return once `check()` is true; a failing client program counts as not yet."""
        end, trouble = time.monotonic() + seconds, ""
        while time.monotonic() < end:
            try:
                if check():
                    return
            except (ClusterError, subprocess.TimeoutExpired) as error:
                trouble = f"; {error}"
            time.sleep(0.05)
        raise ClusterError(f"no {what} within {seconds:g} s{trouble}\n{self.logs()}")

    def finish(self, *jobs: str, seconds: float = 60) -> None:
        """Wait until these jobs (arrays by their number: all tasks) have ended in whatever way."""
        alive = {"PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "REQUEUED"}

        def over() -> bool:
            return not any(state in alive for job, state in self.jobs().items() if {job, job.split("_")[0]} & set(jobs))

        self.wait(f"end of {', '.join(jobs)}", over, seconds)

    def hurry(self, job: str) -> None:
        """Let a requeued job start now: Slurm makes it wait two minutes, and no setting shortens that."""
        self.run("scontrol", "update", f"JobId={job}", "StartTime=now")

    def hurry_all(self) -> None:
        """The same for every job that waits so."""
        for line in self.run("squeue", "--noheader", "--array", "--states=PENDING", "--format=%i %r").splitlines():
            if line.endswith(" BeginTime"):
                self.hurry(line.split()[0])

    def logs(self, lines: int = 15) -> str:
        """The last lines of every daemon's log."""
        files = sorted(self.dir.glob("log/*"))
        return "\n".join(f"== {f.name}\n" + "\n".join(f.read_text(errors="replace").splitlines()[-lines:]) for f in files)

    # Faults, and their repair

    def kill_node(self, name: str, daemon_only: bool = False) -> None:
        """A node dies at once, with its jobs; `daemon_only` leaves the jobs running, as when a node loses the network."""
        _kill({self._pid(name)} - {0} if daemon_only else self.processes(name))
        if not daemon_only:
            for rest in (self.dir / name).glob("job*"):  # as after a reboot; slurmd stumbles over them
                shutil.rmtree(rest)

    def declare_down(self, name: str) -> None:
        """The controller gives up a node now, with all that follows for its jobs; by itself it notices in 20 s."""
        self.run("scontrol", "update", f"NodeName={name}", "State=DOWN", "Reason=killed by a test")

    def start_node(self, name: str) -> None:
        self.start(name)
        self.wait(f"{name} in service", lambda: self.nodes()[name] in ("idle", "mixed", "allocated", "draining", "drained"))

    def drain(self, name: str, reason: str = "test") -> None:
        self.run("scontrol", "update", f"NodeName={name}", "State=DRAIN", f"Reason={reason}")

    def restart_controller(self) -> None:
        self.stop("slurmctld")
        self.start("slurmctld")

    def stop_accounting(self) -> None:
        """`sacct` fails until `start("slurmdbd")`; jobs go on, and the controller keeps their records meanwhile."""
        self.stop("slurmdbd")

    def reset(self) -> None:
        """Repair what a test broke: no jobs, all daemons alive, both nodes idle."""
        for name in (*DAEMONS, *NODES):
            if self.accounting or name not in ("mariadbd", "slurmdbd"):
                self.start(name)
        self.run("scancel", "--user=root")  # TERM first; a job that ignores it is killed after KillWait

        def repaired() -> bool:
            states = self.nodes()
            for name in states:
                if states[name].startswith("drain"):  # refused until the node has reported to a restarted controller
                    self.run("scontrol", "update", f"NodeName={name}", "State=RESUME")
            return set(states.values()) == {"idle"}

        self.wait("two idle nodes", repaired)

    def stop(self, name: str, sig: int = signal.SIGTERM) -> None:
        """Signal a daemon and wait for its end; -9 (signal.SIGKILL) is a crash."""
        if pid := self._pid(name):
            os.kill(pid, sig)
            self.wait(f"end of {name}", lambda: not self._pid(name))

    def start(self, name: str) -> None:
        """Start one daemon unless it runs, and wait until it answers where others need it."""
        if self._pid(name):
            return
        d = self.dir
        munge = f"--key-file={d}/munge.key --socket={d}/munge.socket --seed-file={d}/munge.seed --log-file={d}/log/munged.log"
        maria = f"{shlex.join(MARIADB)} --datadir={d}/db --socket={d}/db.socket --pid-file={d}/mariadbd.pid --skip-networking"
        commands = {
            "munged": f"munged --foreground --num-threads=2 --pid-file={d}/munged.pid {munge}",
            "mariadbd": f"mariadbd {maria}",
            "slurmdbd": "slurmdbd -D",
            "slurmctld": "slurmctld -D",
            **{node: f"slurmd -D -N {node}" for node in NODES},
        }
        answers: dict[str, Callable[[], bool]] = {
            "munged": (d / "munge.socket").is_socket,
            "mariadbd": (d / "db.socket").is_socket,
            "slurmdbd": lambda: bool(self.run("sacctmgr", "--noheader", "list", "tres", timeout=5)),
            "slurmctld": lambda: bool(self.nodes()),
        }
        for old in {"munged": ["munge.socket"], "mariadbd": ["db.socket"]}.get(name, []):
            (d / old).unlink(missing_ok=True)  # a killed one's
        # setsid --fork makes it a child of init: no signal to a test's process group reaches it, and we need not wait for it.
        with (d / "log" / f"{name}.out").open("ab") as out:
            command = ["setsid", "--fork", *commands[name].split()]
            env = {"PATH": PATH, "LANG": "C.UTF-8", "SLURM_CONF": f"{d}/slurm.conf", "MYSQL_UNIX_PORT": f"{d}/db.socket"}
            subprocess.run(command, cwd=d, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=out, check=True)
        self.wait(name, lambda: bool(self._pid(name)) and answers.get(name, lambda: True)())

    # Inner workings

    def _configure(self) -> None:
        for folder in ("", "log", "state", *NODES):
            (self.dir / folder).mkdir(parents=True, exist_ok=True)
        self.dir.chmod(0o755)  # munged refuses a socket in a folder that others may not enter
        (self.dir / "munge.key").touch(mode=0o600)
        (self.dir / "munge.key").write_bytes(os.urandom(128))
        host = socket.gethostname().split(".")[0]
        values = {"dir": self.dir, "host": host, "bind": "", "cpus": self.cpus}
        values |= {f"port_{name}": free_port() for name in ("ctld", "dbd", "n1", "n2")}
        values["storage"] = "slurmdbd" if self.accounting else "none"
        values["settings"] = "\n".join(f"{name}={value}" for name, value in self.settings.items())
        with suppress(OSError):  # these bind to the address of the machine's name: of use only where that is the loopback
            if socket.gethostbyname(socket.gethostname()).startswith("127."):
                values["bind"] = "NoInAddrAny,NoCtldInAddrAny"
        for name in ("slurm.conf", "slurmdbd.conf"):
            (self.dir / name).touch(mode=0o600)  # slurmdbd reads no file that others may read
            (self.dir / name).write_text(Path(__file__).with_name(f"{name}.in").read_text().format(**values))

    def _pid(self, name: str) -> int:
        """Process id of a living daemon, else 0. Its file may be a dead one's, and the number another program's by now."""
        try:
            pid = int((self.dir / f"{name}.pid").read_text())
        except (OSError, ValueError):
            return 0
        return pid if pid in self.processes() else 0

    def processes(self, node: str = "") -> set[int]:
        """Ids of all daemons and jobs of this cluster, or of one node, found by what they hold: no record to grow stale.

        Daemons have a log of ours open (slurmstepd's title overwrites its environment); jobs carry Slurm's variables.
        """
        log, found = f"{self.dir}/log/{node}", set()
        marks = (f"SLURM_CONF={self.dir}/slurm.conf\0".encode(), b"\0SLURM_JOB_ID=", f"\0SLURMD_NODENAME={node}".encode())
        for proc in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it ended meanwhile
                daemon = (proc / "comm").read_text().startswith(("slurm", "munged", "mariadbd"))
                environment = (proc / "environ").read_bytes()
                if all(mark in environment for mark in marks) or (
                    daemon and any(os.path.realpath(file).startswith(log) for file in (proc / "fd").iterdir())
                ):
                    found.add(int(proc.name))
        return found


def _kill(pids: set[int]) -> None:
    # All stand still before the first dies: else slurmstepd would live to report its script's end, as no dead node does.
    for sig in (signal.SIGSTOP, signal.SIGKILL):
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, sig)


def main(command: str, folder: str) -> None:
    cluster = SlurmCluster(folder)
    if command == "up":
        if cluster.processes():
            for name in (*DAEMONS, *NODES):  # those that died meanwhile
                cluster.start(name)
        else:
            cluster.up(detached=True)
            print(f"Slurm with the nodes n1 and n2 runs in {folder}.", file=sys.stderr)
        if sys.stdout.isatty():
            print('This shell needs the line below; `eval "$(make slurm-up)"` takes it at once.', file=sys.stderr)
        print(f'export SLURM_CONF={shlex.quote(cluster.env()["SLURM_CONF"])} PATH="$PATH:/usr/sbin:/sbin"')
    elif command == "status":
        if not cluster.processes():
            raise ClusterError(f"no Slurm runs in {folder}; `make slurm-up` starts one")
        print(cluster.run("sinfo", "--Node"), cluster.run("squeue"), sep="\n")
    elif command in ("guard", "down"):
        if command == "guard":
            sys.stdin.read()  # until the process that started the cluster is gone
        cluster.down()
    else:
        raise ClusterError(f"unknown command {command!r}: up, status or down")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except ClusterError as problem:
        sys.exit(str(problem))
