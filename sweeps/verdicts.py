"""What `emsweep doctor` makes of its findings: ok, warn or FAIL, and what to do. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from em_core.journal import Record

Verdict = Literal["ok", "warn", "FAIL"]
SLOW_FILES = 2.0
"""Seconds from one side's write to the other's answer above which a file system is called slow."""
SKEW = 2.0
"""Seconds by which clocks may differ."""
SLOW_LOAD = 120.0
"""Seconds to load a model above which a copy on the node's own disk is worth a line in the site file."""


@dataclass(frozen=True)
class Check:
    """One line of the doctor's table: what was looked at, the verdict, what was found, and what to do."""

    check: str
    verdict: Verdict
    found: str
    advice: str = ""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def judge(f: Record) -> list[Check]:
    """All checks, in the order in which a person wants to mend them; what was never reached is left out."""
    if "error" in f["hello"]:
        return list(_job(f))
    parts = (_job, _files, _clock, _code, _gpus, _memory, _locks, _signal, _disks, _model, _cluster, _requeue)
    return [check for part in parts for check in part(f)]


def _job(f: Record) -> Iterator[Check]:
    hello = f["hello"]
    if "error" in hello:
        advice = "mend the site file (partition, account, setup, slurm_python): the job's own words are on the left"
        yield Check("job", "FAIL", hello["error"], advice)
    else:
        where = hello["slurm"].get("SLURMD_NODENAME", hello["host"])
        yield Check("job", "ok", f"ran on {where}, answered {f['start_seconds']:.1f} s after it was submitted")


def _files(f: Record) -> Iterator[Check]:
    pings = f.get("pings")
    if not pings:
        return
    bad = [p for p in pings if "error" in p]
    if bad:
        advice = "put the root (--root, EMSWEEP_ROOT) on a file system that every node shares"
        yield Check("shared files", "FAIL", f"what is written here is not seen there: {bad[0]['error']}", advice)
    elif not all(p["same"] for p in pings):
        yield Check("shared files", "FAIL", "what arrives is not what was written", "use another file system for the root")
    else:
        there_and_back = statistics.median(p["received"] - p["sent"] for p in pings)
        said = f"written here, seen there, answered, seen here: {there_and_back:.2f} s"
        if there_and_back > SLOW_FILES:
            yield Check("shared files", "warn", said, "status and follow-up lag by as much; nothing is wrong by it")
        else:
            yield Check("shared files", "ok", said)


def _clock(f: Record) -> Iterator[Check]:
    pings = [p for p in f.get("pings") or () if "error" not in p]
    if not pings:
        return
    best = min(pings, key=lambda p: p["received"] - p["sent"])
    skew = best["t"] - (best["sent"] + best["received"]) / 2
    within = (best["received"] - best["sent"]) / 2
    said = f"the node is {abs(skew):.2f} s {'ahead' if skew > 0 else 'behind'} (within {within:.2f} s)"
    late = abs(skew) - within > SKEW
    yield Check(
        "clocks", "warn" if late else "ok", said, "times of different nodes do not compare; tell the admins" if late else ""
    )


def _code(f: Record) -> Iterator[Check]:
    there, here = f.get("facts"), f["here"]
    if there is None:
        return
    if "error" in there:
        yield Check("node", "FAIL", there["error"], "the node's own words")
        return
    if there["code"] != here["code"]:
        advice = "the job imports another em_core than this command: one checkout, or one installation, for both"
        yield Check("code", "FAIL", f"em_core {there['code']} in {there['cwd']}, here {here['code']}", advice)
    missing = sorted(here["packages"].keys() - there["packages"].keys())
    other = {n: v for n, v in there["packages"].items() if v != here["packages"].get(n)}
    if missing:
        advice = f"install them for {there['executable']}, or name another interpreter (slurm_python)"
        yield Check("packages", "FAIL", f"not on the node: {', '.join(missing)}", advice)
    elif other or there["python"] != here["python"]:
        said = ", ".join(
            f"{n} {v} (here {here['packages'].get(n)})" for n, v in {"python": there["python"], **other}.items() if n != "python"
        )
        said = ", ".join(
            filter(None, [f"python {there['python']} (here {here['python']})" * (there["python"] != here["python"]), said])
        )
        yield Check("packages", "warn", said, "numbers may differ from runs made here; name one interpreter for both")
    else:
        yield Check("packages", "ok", f"python {there['python']}, " + ", ".join(f"{n} {v}" for n, v in there["packages"].items()))


def _gpus(f: Record) -> Iterator[Check]:
    there = f.get("facts") or {}
    stage = ((f.get("model") or {}).get("stages") or {}).get("torch")
    if "gpus" not in there:
        return
    names = ", ".join(f"{g['name']} ({(g['mib'] or 0) / 1024:.0f} GiB)" for g in there["gpus"]) or "none"
    asked, shown = f["gpus_asked"], len(there["gpus"])
    seen = len(stage["gpus"]) if stage else None
    said = f"{names}; torch sees {'nothing yet' if seen is None else seen}"
    if asked and shown < asked:
        advice = "check partition and gpus_per_run in the site file; some clusters want slurm_gres or slurm_constraint"
        yield Check("GPUs", "FAIL", f"asked for {asked}, nvidia-smi shows {names}", advice)
    elif shown and seen == 0:
        advice = "torch is a CPU build, or newer than the node's driver: install a build for its CUDA"
        yield Check("GPUs", "FAIL" if asked else "warn", said, advice)
    else:
        yield Check("GPUs", "ok", said if shown or asked else "none asked for, none there")


def _memory(f: Record) -> Iterator[Check]:
    there = f.get("facts") or {}
    if "memory_gib" in there:
        m = there["memory_gib"]
        granted = f["hello"]["slurm"].get("SLURM_MEM_PER_NODE")
        said = f"{m.get('MemAvailable', 0):.0f} of {m.get('MemTotal', 0):.0f} GiB free, {there['cpus']} CPUs for the job"
        yield Check("host", "ok", said + (f", {int(granted) / 1024:.1f} GiB granted" if granted and granted.isdigit() else ""))


def _locks(f: Record) -> Iterator[Check]:
    locks = f.get("locks")
    if locks is None:
        return
    advice = "the root needs a file system with locks across nodes (Lustre: mounted with `flock`; NFS: v4, or v3 with lockd)"
    if locks["error"]:
        yield Check("locks", "FAIL", locks["error"], advice)
    elif locks["here"] and locks["there"]:
        yield Check("locks", "ok", "held there, refused here; held here, refused there")
    else:
        wrong = "there was given here" if not locks["here"] else "here was given there"
        yield Check("locks", "FAIL", f"a lock held {wrong} as well", advice)


def _signal(f: Record) -> Iterator[Check]:
    if "signal" not in f:
        return
    seconds = f["signal"]
    if isinstance(seconds, float):
        yield Check("signals", "ok", f"USR2 arrived, and was seen here after {seconds:.2f} s")
    else:
        why = seconds["error"] if seconds else "USR2 never arrived"
        advice = "at the time limit runs will be killed without a warning: a container or wrapper must pass signals on"
        yield Check("signals", "FAIL", why, advice)


def _disks(f: Record) -> Iterator[Check]:
    disks = f.get("disks")
    if disks is None:
        return
    there = disks["root"]
    if "error" in there or not there["writable"]:
        yield Check("root", "FAIL", there.get("error", "not writable from the node"), "use a root that the nodes may write to")
    else:
        d = min(there, disks["here"], key=lambda d: d["free_gib"])
        files, share = there["free_files"], there["free_files_share"]
        said = f"{d['free_gib']:,.0f} GiB free" + ("" if files is None else f", {files:,} files")
        scarce = d["free_gib"] < 10 or d["free_share"] < 0.02 or (files is not None and (files < 20_000 or share < 0.02))
        none_left = d["free_gib"] < 1 or (files is not None and files < 1000)
        verdict: Verdict = "FAIL" if none_left else "warn" if scarce else "ok"
        yield Check("root", verdict, said, "" if verdict == "ok" else "make room, or use another root; `keep: none` needs little")
    local = disks.get("local")
    if local is not None:
        if local.get("writable"):
            yield Check("local_disk", "ok", f"{local['path']}: {local['free_gib']:,.0f} GiB free")
        else:
            said = local.get("error") or f"{local['path']} is not there or not writable"
            yield Check("local_disk", "warn", said, "models are loaded from the shared file system until local_disk is right")


def _model(f: Record) -> Iterator[Check]:
    m = f.get("model")
    if m is None:
        return
    stages = m.get("stages") or {}
    if "error" in m or m["returncode"]:
        why = m.get("error") or (m["stderr"].strip().splitlines() or [f"exit code {m['returncode']}"])[-1][:300]
        tried = {"torch": "torch does not import", "load": "it does not load", "forward": "it does not run"}
        reached = next((words for stage, words in tried.items() if stage not in stages), "it does not end")
        advice = "a Hub model must be in the cache the site file names (env HF_HOME): `emsweep fetch SPEC` brings it"
        yield Check("model", "FAIL", f"{f['model_name']}: {reached}: {why}", "" if "torch" not in stages else advice)
        return
    torch, load, forward = stages["torch"], stages["load"], stages["forward"]
    said = f"{f['model_name']}: torch {torch['seconds']:.1f} s, load {load['seconds']:.1f} s"
    said += f", first forward {forward['seconds']:.1f} s on {load['device']}"
    said += f", {forward['peak_gib']:.1f} GiB" if forward["peak_gib"] else ""
    if not forward["finite"]:
        yield Check("model", "FAIL", said, "its logits are not finite on this device")
    elif load["seconds"] > SLOW_LOAD:
        yield Check("model", "warn", said, "name a disk of the nodes as local_disk in the site file: one copy per node")
    else:
        yield Check("model", "ok", said)


def _cluster(f: Record) -> Iterator[Check]:
    c = f.get("cluster")
    if c is None:
        return
    said = f"MaxArraySize {c['max_array_size'] or 'unknown'}, MaxSubmitJobs {c['max_submit_jobs'] or 'no limit known'}"
    yield Check("limits", "ok", f"Slurm {c['version'] or '?'}: {said}")
    if c["accounting"]:
        yield Check("accounting", "ok", "sacct answers")
    else:
        yield Check(
            "accounting", "warn", "sacct does not answer", "works without; why a job died is then known from the queue only"
        )


def _requeue(f: Record) -> Iterator[Check]:
    r = f.get("requeue")
    if r is None:
        return
    if "error" in r:
        advice = "interrupted jobs do not come back by themselves; the next round hands their runs out again"
        yield Check("requeue", "warn", r["error"], advice)
    else:
        yield Check("requeue", "ok", f"a job may requeue itself; back in the queue after {r['seconds']:.1f} s")
