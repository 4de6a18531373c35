"""A seed budget's looks: which configs have enough seeds, from the journals, and the seeds that the others get.

A look at a config happens when all its runs are final. What it decides is a pure function of the journals, and is recorded
by the seeds that it adds (`why` is `seed-budget`): a config that got some of its next look's seeds gets the rest of them
without being judged again, so a command that is killed in between changes nothing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from em_core.attempts import read_job_try
from em_core.config import run_id, steps_within
from em_core.errors import Fault
from em_core.journal import RunStatus, SweepDir, decode_all, read_lines
from sweeps.expand import Expansion, Wanted
from sweeps.manifest import EXPLORE, LEFT_THE_SPEC, SEED_BUDGET, Manifest, Run
from sweeps.observe import sharing
from sweeps.reconcile import View
from sweeps.seeds import SeedBudget

FINAL = (RunStatus.COMPLETED, RunStatus.DIVERGED, RunStatus.FAILED, RunStatus.BLOCKED, RunStatus.EXCLUDED)


class Verdict(StrEnum):
    """What a look says of a config: it waits for its runs, has enough seeds, gets more, or has all there are."""

    WAITS = "waits"
    ENOUGH = "enough"
    MORE = "more"
    ALL = "all"
    NOTHING = "nothing to measure"


@dataclass(frozen=True)
class Looked:
    """A config with its runs so far and the verdict; `next_` is how many seeds it will have had."""

    config_id: str
    runs: tuple[Run, ...]
    verdict: Verdict
    next_: int


def look(budget: SeedBudget, manifest: Manifest, view: View, sweep: SweepDir) -> list[Looked]:
    """Judge every config of the spec. Raises `Fault` where the metric is one that no run tells."""
    groups: dict[str, list[Run]] = {}
    for run in manifest.runs.values():
        replicate = run.stage == EXPLORE and not run.repeat  # a repeat says nothing of what another seed would do
        if replicate and run.seed < budget.max and manifest.excluded.get(run.run_id) != LEFT_THE_SPEC:
            groups.setdefault(run.config_id, []).append(run)
    ready = {c for c, runs in groups.items() if all(view.states[r.run_id] in FINAL for r in runs)}
    completed = {
        r.run_id: step
        for c in ready
        if (step := judged_step(budget, manifest, c)) is not None
        for r in groups[c]
        if view.states[r.run_id] is RunStatus.COMPLETED
    }
    scores = _scores(budget, manifest, sweep, completed) if completed else {}
    found = []
    for config_id, runs in groups.items():
        measured = [r.run_id for r in runs if r.run_id in completed]
        # A completed run without its score is still to be measured.
        final = config_id in ready and all(r in scores for r in measured)
        verdict, next_ = judge(budget, runs, final, [scores[r] for r in measured] if final else [])
        found.append(Looked(config_id, tuple(runs), verdict, next_))
    return found


def judge(budget: SeedBudget, runs: Collection[Run], final: bool, values: Collection[float]) -> tuple[Verdict, int]:
    """(verdict, seeds that the config is to have) of a config with these runs and the values of those that completed."""
    from analysis.stats.sequential import enough

    looks, n = budget.looks, len(runs)
    if n < looks[0]:
        return Verdict.WAITS, n
    at = max(k for k, seeds in enumerate(looks) if seeds <= n)
    if at + 1 < len(looks) and any(r.why == SEED_BUDGET and r.seed >= looks[at] for r in runs):
        return Verdict.MORE, looks[at + 1]  # decided before, and not all of it written
    if not final:
        return Verdict.WAITS, n
    if not any(map(math.isfinite, values)):
        return Verdict.NOTHING, n
    if enough(list(values), budget.until.half_width, at, looks):
        return Verdict.ENOUGH, n
    return (Verdict.MORE, looks[at + 1]) if at + 1 < len(looks) else (Verdict.ALL, n)


def added(budget: SeedBudget, manifest: Manifest, looked: Collection[Looked], sweep: str) -> Expansion:
    """The new runs that the configs get whose mean is not known well enough."""
    more = [x for x in looked if x.verdict is Verdict.MORE]
    runs = [
        Wanted(run_id(x.config_id, seed), manifest.configs[x.config_id], seed, arm)
        for x in more
        for arm in dict.fromkeys(arm for r in x.runs for arm in r.arms)
        for seed in range(x.next_)
        if run_id(x.config_id, seed) not in manifest.runs
    ]
    configs = tuple(manifest.configs[x.config_id] for x in more)
    return Expansion(sweep, configs, tuple(runs), tuple(manifest.wanted_evaluations), budget=budget)


def saving(budget: SeedBudget, looked: Collection[Looked]) -> str:
    """What the budget saved, in a sentence: runs against what all seeds for all configs would have been."""
    count = Counter(x.verdict for x in looked)
    runs, most = sum(len(x.runs) for x in looked), len(looked) * budget.max
    within = f"{count[Verdict.ENOUGH]:,} of {len(looked):,} configs are known to within ±{budget.until.half_width:g}"
    rest = [
        (count[Verdict.ALL], f"not with all {budget.max} seeds"),
        (count[Verdict.NOTHING], "without any result"),
        (count[Verdict.WAITS] + count[Verdict.MORE], "not finished"),
    ]
    said = "".join(f", {n:,} {what}" for n, what in rest if n)
    return f"Seed budget: {runs:,} runs instead of {most:,} ({1 - runs / most:.0%} saved); {within}{said}."


def judged_step(budget: SeedBudget, manifest: Manifest, config_id: str) -> int | None:
    """The step at which a config is judged; None where it is never measured there."""
    steps = steps_within(manifest.measured[0][1], manifest.configs[config_id].training.max_steps) if manifest.measured else ()
    wanted = budget.until.step
    return wanted if wanted in steps else steps[-1] if wanted is None and steps else None


def _scores(budget: SeedBudget, manifest: Manifest, sweep: SweepDir, steps: Mapping[str, int]) -> dict[str, float]:
    """The metric by run, where its score is known; NaN where that lacks the metric, which some run must have."""
    metric, eval_id = budget.until.metric, manifest.measured[0][0]
    found = dict(read_scores(sweep, steps, eval_id))
    names = {name for values in found.values() for name in values}
    if names and metric not in names:
        raise Fault(f"seeds.until.metric: no run tells `{metric}`; they tell {', '.join(sorted(names))}")
    return {run: values.get(metric, math.nan) for run, values in found.items()}


def read_scores(sweep: SweepDir, steps: Mapping[str, int], eval_id: str) -> Iterator[tuple[str, dict[str, float]]]:
    """(run, its `accuracy` and other values) at its step in `steps`, from the journals of every sweep under the root.

    Of several attempts that hold it the first in (try, job, sweep, number) order counts, as in the results.
    """
    best: dict[str, tuple[tuple[int, str, str, int], dict[str, float]]] = {}
    needle = f'"eval_id":"{eval_id}"'.encode()
    for other in (sweep, *sharing(sweep, steps)):
        for path in other.all_journals():
            tries = read_job_try(path)
            counting = {(a.run_id, a.number) for a in tries.attempts if a.run_id in steps and a.status.is_outcome()}
            if not counting:
                continue
            lines = [line for _, line in read_lines(path, 0, (b'{"kind":"eval"',)).lines if needle in line]
            for r in decode_all(lines):
                if r is None or (r["run_id"], r["attempt"]) not in counting or r["step"] != steps[r["run_id"]]:
                    continue
                order = (tries.try_, tries.job, other.sweep, r["attempt"])
                if r["run_id"] not in best or order < best[r["run_id"]][0]:
                    numbers = {"accuracy": r.get("accuracy"), **(r.get("values") or {})}
                    best[r["run_id"]] = order, {k: float(v) for k, v in numbers.items() if v is not None}
    yield from ((run, values) for run, (_, values) in best.items())
