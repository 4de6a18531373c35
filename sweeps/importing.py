"""Results that another tool recorded, as a sweep: a manifest and journals, of which `collect` makes tables as of any other.

A config is every param but the seed. Runs of equal params and equal seed are repeats; without a seed, runs of equal params are
replicates, numbered in the order in which they began. What was imported stays: a later import adds the runs that are new.
"""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

from em_core.config import PARAMS, Evaluation, Scalar, TrainingConfig, config_id, reads, run_id
from em_core.errors import UserError
from em_core.journal import Attempt, Record, RunStatus, SweepDir, append_batch, read_job_try, write_whole
from em_core.known_methods import IMPORTED
from em_core.lock import locked
from launchers.causes import CANCELLED, NON_FINITE
from sweeps.complaints import unknown
from sweeps.expand import Config
from sweeps.manifest import EXPLORE, Manifest, read_manifest
from sweeps.merge import is_foreign
from sweeps.own import NONE, PARAM_NAME, gathered
from sweeps.spec import Spec
from sweeps.yamlfile import read_scalar

SEEDS = ("seed", "random_seed", "random_state", "rng_seed", "manual_seed", "global_seed", "data_seed")
"""Params that are taken for the seed, the first of them that is there."""
JOB = re.compile(r"import-\d{4,}")

Curves = Mapping[str, Mapping[int, float]]
"""Metric -> step -> value."""


@dataclass(frozen=True)
class Found:
    """A run as the other tool has it.

    `source` names it for good (`mlflow:RUN`, `table:DIGEST`). `params` are all that were recorded, the seed among them. `last`:
    metric -> (step, value) of its end. `started` and `ended` are seconds since the epoch. `message` says which run it is.
    """

    source: str
    params: Mapping[str, Scalar]
    status: RunStatus
    last: Mapping[str, tuple[int, float]]
    message: str
    started: float | None = None
    ended: float | None = None
    commit: str | None = None
    stage: str = EXPLORE


@dataclass(frozen=True)
class Choice:
    """How results are read, the same at every import into one sweep.

    The first of `metrics` is what the report is about; of those `minimized` the negative is stored, so that more is better.
    `seed` names the param of the seed (None: there is none), `ignored` params have no part in a config. `step_offset` is added to
    every step.
    """

    metrics: tuple[str, ...]
    minimized: tuple[str, ...] = ()
    seed: str | None = None
    ignored: tuple[str, ...] = ()
    step_offset: int = 0


@dataclass(frozen=True)
class Imported:
    """What an import brought. `notes` are what a person should know, a sentence each."""

    sweep: str
    runs: int
    known: int
    statuses: Mapping[str, int]
    configs: int
    notes: list[str]


@cache
def typed(text: str) -> Scalar:
    """The value of a text: a number, true, false or null as in a spec (YAML 1.2), null also for `None`; else the text itself."""
    if text in ("", "null", "~", "None"):
        return None
    try:
        value = None if "#" in text else read_scalar(text)
    except UserError:
        return text
    return value if isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)) else text


def counted(n: int, noun: str) -> str:
    """`1 run`, `1,024 runs`."""
    return f"{n:,} {noun}{'s' * (n != 1)}"


def sweep_name(said: str | None, source: str) -> str:
    """The name that was given, or one made of the source's. Raises `UserError` where the given one cannot be a sweep's."""
    [form] = [m.pattern for m in Spec.model_fields["name"].metadata if hasattr(m, "pattern") and m.pattern]
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", source).strip("-.")[:80] if said is None else said
    if len(name) > 80 or not re.fullmatch(form, name):
        raise UserError(f"--name: {name!r} cannot be a sweep's name: letters, digits, `_`, `.` and `-`, at most 80")
    return name


def pick_metrics(asked: Sequence[str], minimized: Sequence[str], there: Collection[str]) -> tuple[str, ...]:
    """The metrics to judge by, as asked for; else the only one there is. Raises `UserError` with the nearest name, or all."""
    for name in (*asked, *minimized):
        if name not in there:
            raise UserError(f"--metric: {unknown('metric', name, sorted(there))}")
    if both := set(asked) & set(minimized):
        raise UserError(f"`{min(both)}` is to be high (--metric) and low (--minimize): give it once")
    if not asked and not minimized and len(there) != 1:
        listed = ", ".join(sorted(there)[:24]) + (f" and {len(there) - 24} more" if len(there) > 24 else "")
        raise UserError(f"by which metric? --metric NAME (higher is better) or --minimize NAME; there are: {listed or 'none'}")
    return tuple(dict.fromkeys((*asked, *minimized))) or tuple(there)


def pick_seed(said: str | None, found: Sequence[Found], ignored: Collection[str]) -> str | None:
    """The param that holds the seed. Raises `UserError` where the one named is in no run."""
    there = {name for f in found for name in f.params}
    for name in ignored:
        if name not in there:
            raise UserError(f"--ignore: {unknown('param', name, sorted(there))}")
    if said is not None and said not in there:
        raise UserError(f"--seed: {unknown('param', said, sorted(there))}")
    return said or next((name for name in SEEDS if name in there and name not in ignored), None)


def bring(
    sweep: SweepDir,
    choice: Choice,
    origin: Mapping[str, str],
    found: Sequence[Found],
    curves_of: Callable[[Sequence[Found]], Iterable[Curves]],
) -> Imported:
    """Import the runs that are new. `curves_of` yields the curves of the runs it is given, in their order; `origin` says, for
    people, where they come from.

    Journals are written whole before the manifest names their runs, and a journal that none names is written anew: a kill at any
    moment leaves nothing half. Raises `UserError` where the sweep is none that was imported, or was imported in another way.
    """
    _check(read_manifest(sweep), choice, sweep)
    found, notes = _with_seeds(found, choice.seed)
    configs = _configs(found, choice, sweep.sweep)
    with locked(sweep.lock, f"sweep {sweep.sweep} is being changed"):
        manifest = read_manifest(sweep)
        known, next_job = _known(sweep, manifest)
        new = [f for f in found if f.source not in known]
        placed = list(_placed(sorted(new, key=lambda f: f.started or 0.0), configs, choice, known.values()))
        zero = _write_journals(sweep, choice, placed, curves_of, next_job)
        append_batch(sweep.manifest, _wanted(manifest, sweep, choice, origin, placed))
    if zero and not choice.step_offset:
        notes.append(
            f"step 0 of `{choice.metrics[0]}` is taken for the score before training; where your script counts from 0, "
            "--step-offset 1 says so"
        )
    notes += _doubts(placed, choice)
    statuses = Counter(str(_status(p.found, choice)) for p in placed)
    return Imported(sweep.sweep, len(placed), len(known), statuses, len({p.config.config_id for p in placed}), notes)


def _check(manifest: Manifest, choice: Choice, sweep: SweepDir) -> None:
    before = manifest.spec.get("imported")
    anew = f"give another --name, or remove {sweep.path} to begin anew"
    if manifest.spec and before is None:
        raise UserError(f"{sweep.sweep} is a sweep that was run here: {anew.split(',')[0]}")
    for what, now in json.loads(json.dumps(asdict(choice))).items():
        if before is not None and before[what] != now:
            raise UserError(f"{sweep.sweep} was imported with {what} {before[what]!r}, not {now!r}: {anew}")


# -- configs and seeds ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Placed:
    """A run with its place in the sweep; `attempt` counts this import's attempts at one run."""

    found: Found
    config: Config
    seed: int
    repeat: int
    attempt: int

    @property
    def run_id(self) -> str:
        return run_id(self.config.config_id, self.seed, self.repeat)


def _with_seeds(found: Sequence[Found], seed: str | None) -> tuple[list[Found], list[str]]:
    """The runs that say their seed, and what is to be said of the others. Raises `UserError` where one with results says none."""
    if seed is None:
        return list(found), ["no param is a seed: runs of equal params are numbered in the order in which they began"]
    kept = []
    for f in found:
        value = f.params.get(seed)
        value = int(value) if isinstance(value, float) and value.is_integer() else value
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            kept.append(f)
        elif value is not None or f.status.is_outcome():
            is_what = f"`{seed}` is {value!r}, not a whole number of at least 0" if value is not None else f"there is no `{seed}`"
            raise UserError(f"{f.message}: {is_what}; name the seed's param (--seed), or number equal runs (--ignore {seed})")
    lost = len(found) - len(kept)
    notes = [f"the seed is `{seed}`"]
    return kept, notes + ([f"left out: {counted(lost, 'run')} that ended before telling it"] if lost else [])


def _configs(found: Iterable[Found], choice: Choice, sweep: str) -> dict[str, Config]:
    """Source -> config, of every run."""
    left_out = {choice.seed, *choice.ignored}
    key = f"{IMPORTED}:{sweep}"
    configs: dict[str, Config] = {}
    by_id: dict[str, Config] = {}
    names: dict[str, str] = {}
    for f in found:
        for name in f.params:
            if name not in names:
                names[name] = param_name(name)
        said = [(PARAMS + names[name], value) for name, value in f.params.items() if name not in left_out]
        if len(dict(said)) < len(said):
            twice = next(n for n, k in Counter(n for n, _ in said).items() if k > 1)
            raise UserError(f"{f.message}: two of its params would be `{twice}`; leave one out with --ignore")
        training = TrainingConfig(model_name_or_path=NONE, prompt=NONE, method=IMPORTED, **gathered(dict(said)))
        config = Config(config_id(training, key), key, NONE, training)
        configs[f.source] = by_id.setdefault(config.config_id, config)
    return configs


def param_name(name: str) -> str:
    """A param's name as a spec could write it behind `params.`: letters, digits, `_` and dots between them."""
    name = re.sub(r"[^A-Za-z0-9_.]", "_", name.removeprefix(PARAMS))
    if PARAM_NAME.fullmatch(PARAMS + name):
        return name
    name = name.replace(".", "_")
    return name if not name[:1].isdigit() else f"_{name}"


def _placed(found: Iterable[Found], configs: Mapping[str, Config], choice: Choice, known: Iterable[Attempt]) -> Iterator[Placed]:
    """Each new run behind the known ones. One that failed is an attempt at the run of its seed; further results are repeats."""
    outcomes: Counter[tuple[str, int]] = Counter()
    numbered: Counter[str] = Counter()
    for a in known:
        config, seed = a.start["config_id"], a.start["seed"]
        outcomes[config, seed] += a.status.is_outcome()
        numbered[config] = max(numbered[config], seed + 1)
    attempts: Counter[str] = Counter()
    for f in found:
        config = configs[f.source]
        if choice.seed is None:
            place = Placed(f, config, numbered[config.config_id], 0, 0)
            numbered[config.config_id] += 1
        else:
            seed = int(f.params[choice.seed])  # type: ignore[arg-type]  # checked by _with_seeds
            repeat = outcomes[config.config_id, seed] if f.status.is_outcome() else 0
            outcomes[config.config_id, seed] += f.status.is_outcome()
            run = run_id(config.config_id, seed, repeat)
            place = Placed(f, config, seed, repeat, attempts[run])
            attempts[run] += 1
        yield place


def _doubts(placed: Sequence[Placed], choice: Choice) -> list[str]:
    """What of the grouping may not be meant."""
    notes = []
    repeats = sum(p.repeat > 0 for p in placed)
    if repeats:
        notes.append(f"{counted(repeats, 'run')} with the params and the seed of another: repeats of it, no replicates")
    sizes = Counter(p.config.config_id for p in placed)
    if len(placed) > 1 and max(sizes.values()) == 1:
        values = defaultdict(set)
        for p in placed:
            for name, value in p.config.training.params.items():
                values[name].add(value)
        own = sorted(name for name, of in values.items() if len(of) == len(placed))
        said = f"; different in every run: {', '.join(own)} (--ignore leaves a param out)" if own else ""
        notes.append(f"every run is a config of its own, so there are no replicates{said}")
    return notes


# -- what was imported before ---------------------------------------------------------------------------------------


def _known(sweep: SweepDir, manifest: Manifest) -> tuple[dict[str, Attempt], int]:
    """(source -> its attempt, number of the next job). A journal that the manifest does not name whole was never finished: it is
    removed, and its runs come again."""
    known: dict[str, Attempt] = {}
    numbers = [-1]
    for path in sweep.all_journals():
        told = read_job_try(path)
        if not is_foreign(told.job) and not all(a.run_id in manifest.runs for a in told.attempts):
            path.unlink()
            continue
        known |= {a.start["source"]: a for a in told.attempts if "source" in a.start}
        numbers += [int(told.job.split("-")[1])] if JOB.fullmatch(told.job) else []
    return known, max(numbers) + 1


# -- what is written ------------------------------------------------------------------------------------------------


def _evaluations(choice: Choice) -> dict[str, Evaluation]:
    """Metric -> the measurement it is."""
    tasks = {name: f"-{name}" if name in choice.minimized else name for name in choice.metrics}
    return {name: Evaluation(task=task, task_key=f"{IMPORTED}:{task}") for name, task in tasks.items()}


def _wanted(
    manifest: Manifest, sweep: SweepDir, choice: Choice, origin: Mapping[str, str], placed: Sequence[Placed]
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """What the manifest does not name yet."""
    now = time.time()
    for evaluation in _evaluations(choice).values():
        if (eval_id := evaluation.eval_id()) not in manifest.evaluations:
            yield "evaluation", {"eval_id": eval_id, "evaluation": evaluation.model_dump(), "steps": "last"}
    if not manifest.spec:
        spec = f"# Brought by `emsweep import` from {', '.join(f'{k} {v}' for k, v in origin.items())}\n"
        spec += f"name: {sweep.sweep}\nbase: {{method: {IMPORTED}}}\nseeds: 1\n"
        about = {
            "sweep": sweep.sweep,
            "t": now,
            "spec": spec,
            "spec_path": "",
            "overrides": [],
            "keep": "none",
            "evaluations": [],
        }
        yield "sweep", {**about, "imported": json.loads(json.dumps(asdict(choice))) | dict(origin)}
    configs = {p.config.config_id: p.config for p in placed}
    for c in configs.values():
        if c.config_id not in manifest.configs:
            fields = {"config_id": c.config_id, "model": c.model, "prompt_name": c.prompt_name}
            yield "config", {**fields, "training": _told(c.training)}
    runs = {p.run_id: p for p in placed if p.run_id not in manifest.runs}
    for p in runs.values():
        who = {"run_id": p.run_id, "config_id": p.config.config_id, "seed": p.seed, "repeat": p.repeat, "arm": None}
        yield "run", {**who, "stage": p.found.stage, "why": "import", "t": now}


def _told(training: TrainingConfig) -> dict[str, Any]:
    """The fields of an imported run; all others are null in the results, not at the defaults of a training here."""
    has = {"model_name_or_path", "parent", "from_step", "prompt"} | reads(IMPORTED)
    return {name: value if name in has else None for name, value in training.model_dump().items()}


def _write_journals(
    sweep: SweepDir,
    choice: Choice,
    placed: Sequence[Placed],
    curves_of: Callable[[Sequence[Found]], Iterable[Curves]],
    first: int,
) -> bool:
    """A journal for each commit that runs were made with; whether some curve begins at step 0."""
    by_commit: dict[str | None, list[Placed]] = {}
    for p in placed:
        by_commit.setdefault(p.found.commit, []).append(p)
    zero = False

    def records(job: str, commit: str | None, runs: Sequence[Placed]) -> Iterator[tuple[str, Record]]:
        nonlocal zero
        about = {"job": job, "try": 0, "t": time.time(), "sweep": sweep.sweep, "launcher": "import", "slurm_job_id": None}
        yield "job_start", {**about, "node": None, "pid": os.getpid(), "gpu": None, "commit": commit, "packages": {}}
        for p, curves in zip(runs, curves_of([p.found for p in runs]), strict=True):
            zero = zero or any(0 in curve and len(curve) > 1 for m in choice.metrics[:1] if (curve := curves.get(m)))
            yield from _records(p, curves, choice)
        yield "job_end", {"reason": "done", "t": time.time()}

    for number, (commit, runs) in enumerate(by_commit.items(), first):
        job = f"import-{number:04d}"
        write_whole(sweep.journal(job, 0), records(job, commit, runs))
    return zero


def _status(f: Found, choice: Choice) -> RunStatus:
    """As it was recorded; completed with a metric that ended non-finite is diverged."""
    ends = [f.last[m][1] for m in choice.metrics if m in f.last]
    diverged = f.status is RunStatus.COMPLETED and not all(map(math.isfinite, ends))
    return RunStatus.DIVERGED if diverged else f.status


CAUSES = {RunStatus.DIVERGED: NON_FINITE, RunStatus.CANCELLED: CANCELLED}


def _records(p: Placed, curves: Curves, choice: Choice) -> Iterator[tuple[str, Record]]:
    """A run as a supervisor would have told it.

    Each of `choice.metrics` is an evaluation, with the last values of all other metrics beside the last of the first one; the
    curves of the others are training metrics.
    """
    f, who = p.found, {"run_id": p.run_id, "attempt": p.attempt}
    curves = {name: _placed_steps(curve, choice.step_offset) for name, curve in curves.items()}
    evaluations = _evaluations(choice)
    judged = {m: curves[m] for m in choice.metrics if curves.get(m)}
    others = {name: curve for name, curve in curves.items() if curve and (name not in judged or name in choice.minimized)}
    measures = [[evaluations[m].eval_id(), sorted(curve)] for m, curve in judged.items()]
    about = {"config_id": p.config.config_id, "seed": p.seed, "mode": "train", "slot": 0, "t": f.started, "device": IMPORTED}
    yield "run_start", {**who, **about, "source": f.source, "measures": measures}
    by_step: dict[int, dict[str, float]] = defaultdict(dict)
    for name, curve in others.items():
        for step, value in curve.items():
            by_step[step][name] = value
    for step in sorted(by_step):
        yield "metrics", {**who, "step": step, "values": by_step[step]}
    for m, curve in judged.items():
        sign = -1.0 if m in choice.minimized else 1.0
        task = {"eval_id": evaluations[m].eval_id(), "task": evaluations[m].task, "grader": "external"}
        for step in sorted(curve):
            with_others = m == choice.metrics[0] and step == max(curve)
            values = {name: other[max(other)] for name, other in others.items()} if with_others else {}
            score = {"n_questions": None, "num_samples": 1, "accuracy": sign * curve[step], "outcomes": "", "values": values}
            yield "eval", {**who, "step": step, **task, **score}
    status = _status(f, choice)
    seconds = f.ended - f.started if f.started is not None and f.ended is not None else None
    end = {"status": str(status), "cause": CAUSES.get(status, ""), "message": f.message, "traceback": "", "t": f.ended}
    steps = max((max(curve) for curve in curves.values() if curve), default=0)
    yield "run_end", {**who, **end, "seconds": seconds, "steps": steps, "figures": {}}


def _placed_steps(curve: Mapping[int, float], offset: int) -> Mapping[int, float]:
    """The curve at the steps of the results. A single value at step 0 was recorded without a step: it is the end, step 1."""
    return {1: curve[0]} if set(curve) == {0} else {step + offset: value for step, value in curve.items()}
