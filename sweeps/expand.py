"""spec -> runs. Pure but for reading prompts, tasks and model folders; ordered; unique by run and arm.

The outermost loop is the arm, then the axes in the spec's order, then `zip` blocks, then random points, then seeds.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from em_core.config import TrainingConfig, config_id, reads, run_id, steps_within
from em_core.errors import UserError
from em_core.known_methods import KNOWN
from em_core.models import model_folder, model_key
from em_core.prompts import Prompt
from em_core.tasks import task_key
from sweeps.axes import checked, is_axis, values_of, with_random
from sweeps.complaints import said_as, unknown
from sweeps.fields import check_field, check_rule, matches
from sweeps.measurements import EvaluationSteps, evaluations_of, task_name
from sweeps.own import gathered, is_field, read_by, trainer_fields
from sweeps.prompts import Found, check_answers, names_answer, resolve_prompt
from sweeps.seeds import MAX_RUNS, SeedBudget, first_seeds
from sweeps.sources import check_needs, check_shares, refuse_double, refuse_unread, source_of
from sweeps.spec import Spec
from sweeps.stages import Part, parts_of
from sweeps.yamlfile import Path_, SpecError

Fields = dict[str, Any]


@dataclass(frozen=True)
class Config:
    """One point of the space, without the seed. `model` is what the model is, `prompt_name` what the spec called it."""

    config_id: str
    model: str
    prompt_name: str
    training: TrainingConfig


@dataclass(frozen=True)
class Wanted:
    """A run that the spec asks for; the same run may be wanted by two arms. `repeat` counts equal runs of a seed from 0.

    Of a spec with stages these are its arms."""

    run_id: str
    config: Config
    seed: int
    arm: str | None
    repeat: int = 0


@dataclass(frozen=True)
class Expansion:
    """Everything a spec asks for. `collapsed` counts points whose arm has the same config already, `prompt_sets` are those that
    configs name.

    With a `budget` the runs are those of the first look, and more of the same configs may follow.
    """

    sweep: str
    configs: tuple[Config, ...]
    runs: tuple[Wanted, ...]
    evaluations: tuple[EvaluationSteps, ...]
    collapsed: int = 0
    budget: SeedBudget | None = None
    prompt_sets: tuple[tuple[Prompt, ...], ...] = ()


def expand(spec: Spec) -> Expansion:
    """Expand a spec. Raises `UserError` with the YAML line for anything that cannot be trained, and for a study."""
    try:
        if spec.search:
            raise SpecError(("search",), "makes the spec a study, which asks for its configs: `emsweep study` carries it out")
        return _expand(spec)
    except SpecError as mistake:
        raise spec.document.error(mistake) from None


def _expand(spec: Spec) -> Expansion:
    seeds = first_seeds(spec.seeds)
    budget = spec.seeds if isinstance(spec.seeds, SeedBudget) else None
    most = (budget.max if budget else len(seeds)) + len(seeds) * (spec.repeats - 1)
    find_found, find_model = finders(spec)
    found: dict[str, Found] = {}

    def find_prompt(raw: Any) -> Found:
        prompt = find_found(raw)
        found[prompt.text] = prompt
        return prompt

    configs: dict[str, Config] = {}
    members: dict[tuple[str | None, str], Config] = {}
    methods: set[str] = set()
    collapsed = 0
    for part in parts_of(spec):
        parents = [c for (arm, _), c in members.items() if arm == part.after]
        with part.blamed():
            points = _part_points(part, parents, most)
            methods |= {fields["method"] for _, fields in points}
            refuse_unread(part.only_own(), {fields["method"] for _, fields in points})
            for arm, fields in points:
                config = _config(part.spec, fields, find_prompt, find_model)
                config = configs.setdefault(config.config_id, config)
                check_shares(part.spec, config.training)
                check_needs(part.spec, config.training)
                collapsed += (arm, config.config_id) in members
                members[arm, config.config_id] = config
    if spec.stages:
        refuse_unread(spec, methods)
    # Repeats of a run stand together, so that they come to the same job, and so to the same kind of machine.
    again = [(seed, repeat) for seed in seeds for repeat in range(spec.repeats)]
    runs = tuple(Wanted(run_id(c.config_id, s, r), c, s, arm, r) for (arm, _), c in members.items() for s, r in again)
    evaluations = evaluations_of(spec, list(configs.values()))
    if budget:
        _check_until(budget, evaluations, list(configs.values()))
    sets = tuple(prompt.prompts for prompt in found.values() if prompt.is_set)
    return Expansion(spec.sweep, tuple(configs.values()), runs, evaluations, collapsed, budget, sets)


Finders = tuple[Callable[[Any], Found], Callable[[Any], str]]


def finders(spec: Spec) -> Finders:
    """What finds a prompt and what a model is, each distinct one once."""
    return _memo(lambda raw: resolve_prompt(raw, spec.document.path.parent)), _memo(lambda pair: _model(*pair))


def excluded_by(spec: Spec, fields: Fields) -> dict[str, Any] | None:
    """The first rule of `exclude` that takes out a point of a study. Raises `UserError` where its fields are wrong."""
    try:
        _, fields = _resolved(spec, None, fields)
    except SpecError as mistake:
        raise spec.document.error(mistake) from None
    return next((rule for rule in spec.exclude if matches(rule, fields)), None)


def point_config(spec: Spec, fields: Fields, find: Finders) -> Config:
    """The config of one point of a study. Raises `UserError` where it cannot be trained."""
    try:
        _, fields = _resolved(spec, None, fields)
        config = _config(spec, fields, *find)
        check_shares(spec, config.training)
        check_needs(spec, config.training)
    except SpecError as mistake:
        raise spec.document.error(mistake) from None
    return config


def _check_until(budget: SeedBudget, evaluations: Sequence[EvaluationSteps], configs: Sequence[Config]) -> None:
    """Refuse a budget whose end could never be judged."""
    if not evaluations:
        raise SpecError(("seeds", "until"), "needs a measurement to judge by: say what under `evaluate:`")
    if budget.until.metric == "accuracy" and evaluations[0][1].measure != "accuracy":
        raise SpecError(("seeds", "until"), "only logits are measured: name one of their values as `metric`, as logit_skewness")
    measured = sorted({s for c in configs for s in steps_within(evaluations[0][2], c.training.max_steps)})
    if budget.until.step is not None and budget.until.step not in measured:
        said = ", ".join(map(str, measured))
        message = f"step {budget.until.step} is not measured by the first of `evaluate`, only {said}"
        raise SpecError(("seeds", "until", "step"), message)


# -- points -----------------------------------------------------------------------------------------------------


def _part_points(part: Part, parents: Sequence[Config], times: int) -> list[tuple[str | None, Fields]]:
    """(arm, field values) of a stage's points, of which every start of its runs is an axis; or of a spec without stages."""
    spec = part.spec
    refuse_double(spec)
    starts = part.starts(parents)
    points = [
        _resolved(spec, part.name or arm, {**fields, **start})
        for arm, fields in _points(spec, times * len(starts))
        for start in starts
    ]
    points = _excluded(spec, points)
    if not points:
        raise SpecError(("exclude",), "the spec expands to nothing: every point is excluded")
    if part.name and any(fields["method"] == "external" for _, fields in points):
        raise SpecError(("stages", part.name), "a trainer of your own cannot be part of a chain: its checkpoints are its own")
    return points


def _points(spec: Spec, times: int) -> Iterator[tuple[str | None, Fields]]:
    """(arm, field values) of every point, before links and defaults. `times`: the most runs that each may have."""
    fixed = spec.overrides
    base = {k: checked(k, v, ("base", k)) for k, v in spec.base.items()} | fixed
    axes = [_axis(name, raw, ("axes", name)) for name, raw in spec.axes.items() if name not in fixed]
    blocks = [_block(rows, ("zip", i)) for i, rows in enumerate(spec.zip)]
    blocks = [[{k: v for k, v in row.items() if k not in fixed} for row in rows] for rows in blocks]
    outer = with_random(axes + blocks, spec.random, set(fixed))
    arms = _arms(spec)
    runs = times * sum(math.prod(map(len, (*outer, *inner))) for _, inner in arms)
    if runs > MAX_RUNS:
        raise SpecError(("axes",), f"the spec expands to {runs:,} runs; the limit is {MAX_RUNS:,}")
    for arm, inner in arms:
        for rows in itertools.product(*(inner[:1]), *outer, *(inner[1:])):
            point = dict(base)
            for row in rows:
                point.update(row)
            yield arm, point | fixed


def _arms(spec: Spec) -> list[tuple[str | None, list[list[Fields]]]]:
    """Each arm with its blocks of rows: first its fixed fields, then its own axes."""
    if not spec.arms:
        return [(None, [[{}]])]
    arms: list[tuple[str | None, list[list[Fields]]]] = []
    for name, fields in spec.arms.items():
        fixed: Fields = {}
        own = []
        for field, raw in fields.items():
            if field in spec.overrides:
                continue
            if is_axis(field, raw):
                own.append(_axis(field, raw, ("arms", name, field)))
            else:
                fixed[field] = checked(field, raw, ("arms", name, field))
        arms.append((name, [[fixed], *own]))
    return arms


def _axis(name: str, raw: Any, path: Path_) -> list[Fields]:
    """An axis as rows of one field."""
    return [{name: value} for value in values_of(name, raw, path)]


def _block(block: dict[str, Any], path: Path_) -> list[Fields]:
    """A zip block as rows: its axes advance together."""
    columns = {name: values_of(name, raw, (*path, name), repeats=True) for name, raw in block.items()}
    if not columns:
        raise SpecError(path, "an empty zip block")
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        said = ", ".join(f"{name} has {n}" for name, n in lengths.items())
        raise SpecError(path, f"zipped axes must have equal lengths: {said}")
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    seen: set[str] = set()
    for i, row in enumerate(rows):
        if repr(row) in seen:
            raise SpecError((*path, next(iter(columns)), i), f"{said_as(row)} is in the block twice")
        seen.add(repr(row))
    return rows


# -- from points to configs ---------------------------------------------------------------------------------------


def _resolved(spec: Spec, arm: str | None, fields: Fields) -> tuple[str | None, Fields]:
    """A point with its links followed and its method filled in."""
    fields = dict(fields)
    fields.setdefault("method", TrainingConfig.model_fields["method"].default)
    for target, source in spec.link.items():
        if target in spec.overrides:
            continue
        if not is_field(source):
            raise SpecError(("link", target), unknown("field", source, TrainingConfig.model_fields))
        default = TrainingConfig.model_fields[source].default if source in TrainingConfig.model_fields else None
        value = fields.get(source, default)
        fields[target] = check_field(target, value, ("link", target))
    return arm, fields


def _excluded(spec: Spec, points: list[tuple[str | None, Fields]]) -> list[tuple[str | None, Fields]]:
    """The points without those that an exclude rule names; a rule that names none is a mistake."""
    for i, rule in enumerate(spec.exclude):
        check_rule(rule, ("exclude", i), spec.arms)
        kept = [(arm, f) for arm, f in points if not matches(rule, {**f, "arm": arm})]
        named = {*rule, *(spec.link.get(name) for name in rule)}
        if len(kept) == len(points) and not named & set(spec.overrides):
            raise SpecError(("exclude", i), f"{said_as(rule)} matches no point; exclude rules must match some")
        points = kept
    return points


def _config(spec: Spec, fields: Fields, find_prompt: Callable[[Any], Found], find_model: Callable[[Any], str]) -> Config:
    read, known = reads(fields["method"]), KNOWN[fields["method"]]
    values = {k: v for k, v in fields.items() if read_by(k, read)}
    own = values.get("command") is not None
    if "answer" in values and not own:
        raise SpecError(source_of(spec, "answer"), "comes with the prompt: `prompt: {text: ..., answer: ...}`")
    for needed in ("command",) if fields["method"] == "external" else () if own else ("model_name_or_path", "prompt"):
        if values.get(needed) is None:
            raise SpecError(("base",), f"no `{needed}`: set it under `base:` or as an axis")
    with _blamed(spec, "params"):
        values = gathered(values)
    if own:
        with _blamed(spec, "command"):
            key, values = trainer_fields(values, spec.document.path.parent)
    if values.get("stop_task") is not None:
        with _blamed(spec, "stop_task"):
            values["stop_task"] = task_name(values["stop_task"], spec.document.path.parent)
            values["stop_task_key"] = task_key(values["stop_task"])
    with _blamed(spec, "prompt"):
        prompt = find_prompt(values["prompt"])
        if known.needs_answer:
            check_answers(prompt, fields["method"])
        if known.needs_answer or (own and names_answer(values["prompt"])):
            values["answer"] = prompt.answer
        values["prompt"] = prompt.text
    if not own:
        with _blamed(spec, "model_name_or_path"):
            key = find_model((values["model_name_or_path"], values.get("model_revision")))
            folder = model_folder(values["model_name_or_path"])
        if folder is not None and values["model_name_or_path"] != "miniature":
            values["model_name_or_path"] = str(folder)
    training = TrainingConfig(**values)
    return Config(config_id(training, key), key, prompt.name, training)


@contextmanager
def _blamed(spec: Spec, name: str) -> Iterator[None]:
    """What goes wrong here is the fault of a field: the message names its line."""
    try:
        yield
    except UserError as error:
        raise SpecError(source_of(spec, name), str(error)) from None
    except OSError as error:
        what = "the model" if name == "model_name_or_path" else name
        raise SpecError(source_of(spec, name), f"{what} cannot be read: {error.strerror}") from None


def _model(name: str, revision: str | None) -> str:
    return model_key(name, revision)


def _memo(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Each distinct argument once; arguments may be unhashable."""
    known: dict[str, Any] = {}

    def call(argument: Any) -> Any:
        key = repr(argument)
        if key not in known:
            known[key] = function(argument)
        return known[key]

    return call
