"""What `emsweep run` would do: counts, jobs, files, time and memory. Sends nothing, writes nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from analysis.tables import text_table
from em_core.journal import RunStatus, SweepDir
from sweeps import history, price
from sweeps.budget import budget_of, devices, rule_of
from sweeps.codes import CodeRuns, done_under
from sweeps.expand import Config, Expansion
from sweeps.manifest import CONFIRM, EXPLORE, Manifest, additions, asked_by, read_manifest
from sweeps.observe import Observer
from sweeps.reconcile import Need, View
from sweeps.seeds import SeedBudget
from sweeps.spec import Spec
from sweeps.stages import after_of, steps_of
from sweeps.submit import PlannedJob, expected_seconds, local_slots, on_this_machine, pack, uses_gpu
from sweeps.yamlfile import SpecError

HEAD = 12
"""Rows of the config table that are shown."""


@dataclass(frozen=True)
class Plan:
    """Every figure of `emsweep plan`.

    `device_hours` is (low, middle, high) and `minutes` the expected wall time with all workers busy; None where nothing is
    known yet. A seed budget starts with `seeds` and may go to `max_seeds` for `most_device_hours` (both None without one);
    each of these `seeds` is run `repeats` times. `runs` are those wanted so far. `budget` has `max`, `used`, `promised` and
    `left` (device-hours), None where the spec sets none.
    """

    sweep: str
    launcher: str
    configs: int
    seeds: int
    max_seeds: int | None
    repeats: int
    runs: int
    collapsed: int
    new: int
    done: int
    diverged: int
    running: int
    queued: int
    failed: int
    interrupted: int
    waiting: int
    blocked: int
    excluded: int
    stages: dict[str, dict[str, Any]]
    codes: list[CodeRuns]
    to_train: int
    to_evaluate: int
    again: int
    unmeasured: int
    jobs: int
    runs_per_job: int
    workers: int
    files: int
    bytes: int
    device_hours: tuple[float, float, float] | None
    most_device_hours: tuple[float, float, float] | None
    minutes: float | None
    budget: dict[str, float | None] | None
    measured_runs: int
    memory_gib: dict[str, dict[str, float] | None]
    fields: list[str]
    head: list[dict[str, Any]]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def preview(spec: Spec, expansion: Expansion, sweep: SweepDir, why: str = "spec") -> Manifest:
    """The manifest as it would be after `extend`."""
    manifest = read_manifest(sweep)
    for kind, fields in additions(manifest, expansion, why, spec_fields(spec)):
        manifest.take({"kind": kind, **fields})
    return manifest


def spec_fields(spec: Spec) -> dict[str, Any]:
    """What the manifest remembers of the spec itself."""
    overrides = [f"{k}={v}" for k, v in sorted(spec.overrides.items())]
    path = str(spec.document.path.resolve())
    said = {"spec": spec.document.text, "spec_path": path, "overrides": overrides, "stages": after_of(spec) or None}
    budget = spec.seeds if isinstance(spec.seeds, SeedBudget) else None
    looks = {"seed_looks": list(budget.looks), "half_width": budget.until.half_width} if budget else {}
    return {**said, "sets": list(spec.sets), "keep": spec.keep, **{k: looks.get(k) for k in ("seed_looks", "half_width")}}


def todo_of(view: View, retrain: bool) -> list[tuple[str, Need]]:
    """(run, need) pairs to hand out; `retrain` also trains again what lacks a measurement and kept no checkpoint.

    What would start from a checkpoint that is gone comes after the run that makes it again.
    """
    again = dict.fromkeys(view.again)
    again |= {r: None for run in view.unmeasured if retrain and (r := view.unready.get(run, run)) is not None}
    return [(r, ()) for r in (*view.train, *again)] + [(r, n) for r, n in view.evaluate.items() if r not in again]


def make_plan(spec: Spec, expansion: Expansion, root: Path, launcher: str, retrain: bool = False, why: str = "spec") -> Plan:
    """Plan a sweep: the spec's runs, or those that confirm. Raises `UserError` where a model cannot fit the spec's GPU, or
    one machine is too few."""
    machines = spec.execution.num_machines
    if launcher == "local" and machines > 1:
        only = f"a run on {machines} machines needs Slurm: train with `--launcher slurm`, or set it to 1"
        raise spec.document.error(SpecError(("execution", "num_machines"), only))
    sweep = SweepDir(root, expansion.sweep)
    manifest = preview(spec, expansion, sweep, why)
    observer = Observer(sweep)
    view = observer.look(manifest)
    asked = asked_by(manifest, expansion)
    counted = asked if why == CONFIRM else {r.run_id for r in manifest.runs.values() if r.stage == EXPLORE}
    states = {r: s for r, s in view.states.items() if r in counted}
    here = replace(view, states=states, winners={r: a for r, a in view.winners.items() if r in counted})
    configs = {c.config_id: c for c in expansion.configs}
    seconds = expected_seconds(sweep, configs, spec, launcher, manifest.wanted_evaluations)
    todo = todo_of(view, retrain)
    todo += [(r, ()) for r, state in view.states.items() if state is RunStatus.WAITING and r not in dict(todo)]
    jobs = pack(manifest, todo, spec, launcher, {c: s.middle for c, s in seconds.items()})
    peaks = history.peaks(root, {c.model for c in expansion.configs}, uses_gpu(spec, launcher))
    memory = price.memory(expansion.configs, spec, peaks)
    workers = _workers(jobs, spec, launcher)
    trained = [r for r, need in todo if not need]
    budget = budget_of(spec, launcher, sweep, manifest, view, observer.tries(), seconds)
    now = _hours(manifest, jobs, seconds, machines)
    return Plan(
        sweep=expansion.sweep,
        launcher=launcher,
        configs=len(expansion.configs),
        seeds=len({w.seed for w in expansion.runs}),
        max_seeds=expansion.budget.max if expansion.budget else None,
        repeats=1 + max(w.repeat for w in expansion.runs),
        runs=len(asked),
        collapsed=expansion.collapsed,
        new=here.count(RunStatus.NEW),
        done=here.done,
        diverged=here.count(RunStatus.DIVERGED),
        running=here.count(RunStatus.RUNNING),
        queued=here.count(RunStatus.QUEUED),
        failed=here.count(RunStatus.FAILED),
        interrupted=here.count(RunStatus.INTERRUPTED, RunStatus.CANCELLED),
        waiting=here.count(RunStatus.WAITING),
        blocked=here.count(RunStatus.BLOCKED),
        excluded=here.count(RunStatus.EXCLUDED),
        stages=_stages(spec, expansion, here),
        codes=done_under(observer, here),
        to_train=sum(not need for _, need in todo),
        to_evaluate=sum(len(need) for _, need in todo),
        again=len(view.again),
        unmeasured=len(view.unmeasured),
        jobs=len(jobs),
        runs_per_job=max((len(j.runs) for j in jobs), default=0),
        workers=workers,
        files=_files(jobs, launcher, machines),
        bytes=_bytes(manifest, todo),
        device_hours=now,
        most_device_hours=_most_hours(now, manifest, expansion, asked, spec, launcher, seconds),
        minutes=_minutes([manifest.runs[r].config_id for r in trained], seconds, workers),
        budget=budget.as_json() if budget else None,
        measured_runs=max((s.runs for s in seconds.values()), default=0),
        memory_gib=memory,
        fields=price.varied_fields(expansion.configs),
        head=_head(expansion),
    )


def _stages(spec: Spec, expansion: Expansion, view: View) -> dict[str, dict[str, Any]]:
    """Stage -> the one it comes after and from which steps, its configs and runs (a run may be in several), and those done."""
    found: dict[str, dict[str, Any]] = {}
    for name, after in after_of(spec).items():
        runs = [w for w in expansion.runs if w.arm == name]
        done = sum(view.states[w.run_id].is_outcome() for w in runs if w.run_id in view.states)
        told = {"after": after, "from_step": steps_of(spec.stages[name]) if after else None}
        found[name] = {**told, "configs": len({w.config.config_id for w in runs}), "runs": len(runs), "done": done}
    return found


def _workers(jobs: Sequence[PlannedJob], spec: Spec, launcher: str) -> int:
    if launcher == "local":
        rule = on_this_machine(spec.resources_for({}), spec.execution)
        return min(local_slots(rule), max((len(j.runs) for j in jobs), default=0))
    return sum(j.slots for j in jobs)


def _files(jobs: Sequence[PlannedJob], launcher: str, machines: int) -> int:
    """Files a submission makes: per job an assignment, a journal and a log per slot (submitit adds four), a few per sweep.

    Per machine more than one a log, and three of submitit's; and the file by which they find each other.
    """
    more = 4 * (machines - 1) + (machines > 1)
    return sum(2 + j.slots + (4 if launcher == "slurm" else 0) + more for j in jobs) + (4 if jobs else 0)


def _bytes(manifest: Manifest, todo: Sequence[tuple[str, Need]]) -> int:
    known: dict[str, int] = {}
    total = 0
    for run_id, _ in todo:
        config = manifest.runs[run_id].config_id
        if config not in known:
            known[config] = price.bytes_per_run(manifest, manifest.configs[config].training)
        total += known[config]
    return total


def _hours(
    manifest: Manifest, jobs: Sequence[PlannedJob], seconds: Mapping[str, price.Seconds], machines: int
) -> tuple[float, float, float] | None:
    """Device-hours of training, evaluating and loading what is to be done; None where some config has no price."""
    low = middle = high = 0.0
    for j in jobs:
        each = devices(j.resources.gpus_per_run, machines) / 3600
        for run_id, need in j.runs:
            s = seconds.get(manifest.runs[run_id].config_id)
            if s is None or (need and s.answer is None):
                return None
            answers = history.needed_tokens(manifest, need) * (s.answer or 0.0)
            times = (answers, answers, answers) if need else (s.low, s.middle, s.high)
            low, middle, high = (total + each * t for total, t in zip((low, middle, high), times, strict=True))
        load = each * j.slots * seconds[manifest.runs[j.runs[0][0]].config_id].load
        low, middle, high = low + load, middle + load, high + load
    return low, middle, high


def _most_hours(
    now: tuple[float, float, float] | None,
    manifest: Manifest,
    expansion: Expansion,
    asked: Collection[str],
    spec: Spec,
    launcher: str,
    seconds: Mapping[str, price.Seconds],
) -> tuple[float, float, float] | None:
    """The same where every config of a seed budget needs all its seeds."""
    if not expansion.budget or now is None:
        return None
    have = Counter(manifest.runs[r].config_id for r in asked if not manifest.runs[r].repeat)
    low, middle, high = now
    for c in expansion.configs:
        s, gpus = seconds.get(c.config_id), rule_of(c, spec, launcher).gpus_per_run
        if s is None:
            return None
        each = (expansion.budget.max - have[c.config_id]) * devices(gpus, spec.execution.num_machines) / 3600
        low, middle, high = low + each * s.low, middle + each * s.middle, high + each * s.high
    return low, middle, high


def _minutes(trained: Sequence[str], seconds: Mapping[str, price.Seconds], workers: int) -> float | None:
    """Wall time with all workers busy (minutes); `trained` has the config of each run."""
    known = [s.middle for s in map(seconds.get, trained) if s is not None]
    return sum(known) / 60 / max(1, workers) if len(known) == len(trained) else None


def _head(expansion: Expansion) -> list[dict[str, Any]]:
    arms: dict[str, str | None] = {}
    for w in expansion.runs:
        arms.setdefault(w.config.config_id, w.arm)
    fields = price.varied_fields(expansion.configs)
    return [{"config_id": c.config_id, **_arm(arms[c.config_id]), **_shown(c, fields)} for c in expansion.configs[:HEAD]]


def _arm(arm: str | None) -> dict[str, str]:
    return {} if arm is None else {"arm": arm}


def _shown(config: Config, fields: Sequence[str]) -> dict[str, Any]:
    point = {**config.training.flat(), "prompt": config.prompt_name}
    return {f: point.get(f) for f in fields}


def print_plan(plan: Plan, console: Console) -> None:
    """The plan for a person."""
    states = [("new", plan.new), ("done", plan.done), ("running", plan.running), ("queued", plan.queued)]
    states += [("waiting for their parents", plan.waiting), ("blocked by a parent", plan.blocked)]
    states += [("failed", plan.failed), ("interrupted", plan.interrupted), ("excluded", plan.excluded)]
    said = ", ".join(f"{n:,} {word}" for word, n in states if n) or "nothing"
    console.print(f"{plan.sweep}: {size_text(plan)}: {said}", soft_wrap=True)
    if plan.collapsed:
        console.print(
            f"  {plan.collapsed:,} points repeat a config: they differ only in fields their method does not read, or not at all",
            soft_wrap=True,
        )
    if plan.diverged:
        console.print(f"  {plan.diverged:,} of the done runs diverged (non-finite loss)", soft_wrap=True)
    for code in plan.codes:
        console.print(f"  {code}", soft_wrap=True)
    for name, told in plan.stages.items():
        steps = ", ".join(map(str, told["from_step"] or ()))
        after = f" after {told['after']} (from step {steps})" if told["after"] else ""
        configs = f"{told['configs']:,} config{'s' * (told['configs'] != 1)}"
        console.print(f"  stage {name}{after}: {configs}, {told['runs']:,} runs, {told['done']:,} done", soft_wrap=True)
    if plan.again:
        said = f"{plan.again:,} done runs are trained again: runs that start from them need a checkpoint that is not there"
        console.print(f"  {said}", soft_wrap=True)
    if plan.unmeasured:
        console.print(
            f"  {plan.unmeasured:,} done runs lack a measurement and kept no checkpoint: `--retrain` trains them again",
            soft_wrap=True,
        )
    evaluate = f", evaluate {plan.to_evaluate:,} checkpoints" if plan.to_evaluate else ""
    jobs = f"{plan.jobs:,} job{'s' * (plan.jobs != 1)} of up to {plan.runs_per_job:,} runs"
    console.print(f"  train {plan.to_train:,} runs{evaluate} ({plan.launcher}): {jobs}", soft_wrap=True)
    console.print(f"  writes about {plan.files:,} files, {plan.bytes / 1e6:,.1f} MB; {hours_text(plan)}", soft_wrap=True)
    if plan.budget:
        console.print(f"  {_budget_text(plan.budget)}", soft_wrap=True)
    for model, parts in plan.memory_gib.items():
        if parts is None:
            console.print(f"  {model}: memory unknown until the model is in the local cache", soft_wrap=True, markup=False)
        elif "measured" in parts:
            console.print(f"  {model}: {_memory(parts['measured'])} per run at its peak, measured", soft_wrap=True, markup=False)
        else:
            console.print(
                f"  {model}: about {_memory(parts['device'])} per run on the device, {_memory(parts['host'])} on the host",
                soft_wrap=True,
                markup=False,
            )
    for line in text_table(plan.head):
        console.print(line, soft_wrap=True, markup=False)
    if plan.configs > len(plan.head):
        console.print(f"... and {plan.configs - len(plan.head):,} more configs (--json has every figure)", soft_wrap=True)


def size_text(plan: Plan) -> str:
    """`18 configs x 8 seeds = 144 runs`; with a seed budget `18 configs x 4 to 32 seeds = 72 of at most 576 runs`.

    Repeats are named where there are any: `18 configs x 8 seeds x 3 repeats = 432 runs`.
    """
    configs = f"{plan.configs:,} config{'s' * (plan.configs != 1)}"
    if plan.max_seeds is None:
        repeats = f" x {plan.repeats} repeats" if plan.repeats > 1 else ""
        return f"{configs} x {plan.seeds} seed{'s' * (plan.seeds != 1)}{repeats} = {plan.runs:,} runs"
    more = plan.seeds * (plan.repeats - 1)
    repeated = f" and {plan.repeats} repeats of the first {plan.seeds}" if more else ""
    most = plan.configs * (plan.max_seeds + more)
    return f"{configs} x {plan.seeds} to {plan.max_seeds} seeds{repeated} = {plan.runs:,} of at most {most:,} runs"


def _budget_text(budget: Mapping[str, float | None]) -> str:
    promised = budget["promised"]
    under_way = "" if promised == 0 else f", {'unknown' if promised is None else f'{promised:.2g}'} under way"
    return f"budget: {budget['used']:.3g} of {budget['max']:.3g} device-hours used{under_way}, {budget['left']:.3g} left"


def _memory(gib: float) -> str:
    return f"{gib:.1f} GiB" if gib >= 1 else f"{gib * 1024:.0f} MiB"


def hours_text(plan: Plan) -> str:
    """Device-hours in words."""
    if plan.to_train + plan.to_evaluate == 0:
        return "nothing to train"
    if plan.device_hours is None:
        return "device-hours unknown: no such run was measured under this root, and no model is here to guess from"
    low, middle, high = plan.device_hours
    basis = f"from {plan.measured_runs:,} measured runs" if plan.measured_runs else "guessed from the model's size"
    most = ""
    if plan.most_device_hours is not None:
        most = f"; {plan.most_device_hours[1]:.2g} if every config needs {plan.max_seeds} seeds"
    return f"{middle:.2g} device-hours ({low:.2g} to {high:.2g}, {basis}){most}"
