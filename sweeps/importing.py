"""What other tools recorded, as configs, seeds and runs.

A config is every param but the seed. Runs of equal params and equal seed are repeats; without a seed, runs of equal params are
replicates, numbered in the order in which they began.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from em_core.attempts import Attempt
from em_core.config import PARAMS, Scalar, TrainingConfig, config_id, run_id
from em_core.errors import UserError
from em_core.journal import RunStatus
from em_core.known_methods import IMPORTED
from sweeps.complaints import unknown
from sweeps.expand import Config
from sweeps.manifest import EXPLORE
from sweeps.own import NONE, PARAM_NAME, gathered
from sweeps.spec import Spec
from sweeps.yamlfile import read_scalar

SEEDS = ("seed", "random_seed", "random_state", "rng_seed", "manual_seed", "global_seed", "data_seed")
"""Params that are taken for the seed, the first of them that is there."""

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
    """The name that was given, or one made of the source's. Raises `UserError` where that cannot be a sweep's."""
    [form] = [m.pattern for m in Spec.model_fields["name"].metadata if hasattr(m, "pattern") and m.pattern]
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", source).strip("-.")[:80] if said is None else said
    if len(name) > 80 or not re.fullmatch(form, name):
        rule = "letters, digits, `_`, `.` and `-`, at most 80"
        if said is None:
            raise UserError(f"no sweep's name can be made of {source!r}: give one with --name ({rule})")
        raise UserError(f"--name: {name!r} cannot be a sweep's name: {rule}")
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


def with_seeds(found: Sequence[Found], seed: str | None) -> tuple[list[Found], list[str]]:
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


def configs_of(found: Iterable[Found], choice: Choice, sweep: str) -> dict[str, Config]:
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


def place(found: Iterable[Found], configs: Mapping[str, Config], choice: Choice, known: Iterable[Attempt]) -> Iterator[Placed]:
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
            seed = int(f.params[choice.seed])  # type: ignore[arg-type]  # checked by with_seeds
            repeat = outcomes[config.config_id, seed] if f.status.is_outcome() else 0
            outcomes[config.config_id, seed] += f.status.is_outcome()
            run = run_id(config.config_id, seed, repeat)
            place = Placed(f, config, seed, repeat, attempts[run])
            attempts[run] += 1
        yield place


def doubts(placed: Sequence[Placed], choice: Choice) -> list[str]:
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
