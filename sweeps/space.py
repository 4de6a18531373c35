"""The space that a study searches: from the spec's distributions to a trial's parameters, and from these to a config."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from em_core.config import PARAMS, TrainingConfig, canonical
from em_core.prompts import Prompt
from sweeps.axes import checked
from sweeps.complaints import said_as, unknown
from sweeps.expand import Config, Expansion, Fields, Finders, excluded_by, finders, point_config
from sweeps.fields import check_rule, in_words, matches, unknown_field
from sweeps.measurements import evaluations_of
from sweeps.objectives import check_objectives
from sweeps.own import is_field
from sweeps.search import Dimension
from sweeps.sources import refuse_unread
from sweeps.spec import Spec
from sweeps.yamlfile import Path_, SpecError

if TYPE_CHECKING:
    from optuna.trial import Trial

EXAMPLES = 32
"""Random points that are tried out before a study begins: a space that cannot be trained is refused, not searched."""


@dataclass(frozen=True)
class Numbers:
    """A number's distribution. `whole`: only whole numbers."""

    name: str
    low: float
    high: float
    step: float | None
    log: bool
    whole: bool
    when: Mapping[str, Any]

    def suggest(self, trial: Trial) -> float:
        """What the study's sampler proposes."""
        if self.whole:
            return trial.suggest_int(self.name, int(self.low), int(self.high), step=int(self.step or 1), log=self.log)
        return trial.suggest_float(self.name, self.low, self.high, step=self.step, log=self.log)

    def value(self, parameter: Any) -> Any:
        """The field's value: rounded as it is hashed, so that what runs is what is named."""
        return int(parameter) if self.whole else canonical(float(parameter))

    def parameter(self, value: Any) -> Any:
        """What Optuna is to be told for a value of the distribution."""
        return int(value) if self.whole else float(value)

    def holds(self, value: Any) -> bool:
        """Whether the value is in the distribution."""
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not self.low <= value <= self.high or (self.whole and value != int(value)):
            return False
        off = (value - self.low) / self.step if self.step else 0.0
        return bool(abs(off - round(off)) < 1e-8)


@dataclass(frozen=True)
class Choices:
    """A choice among values. Optuna knows those that it cannot store (a prompt's mapping) by their JSON."""

    name: str
    values: tuple[Any, ...]
    when: Mapping[str, Any]

    def suggest(self, trial: Trial) -> Any:
        """What the study's sampler proposes."""
        return trial.suggest_categorical(self.name, [_storable(v) for v in self.values])

    def value(self, parameter: Any) -> Any:
        """The field's value."""
        return next(v for v in self.values if _storable(v) == parameter)

    def parameter(self, value: Any) -> Any:
        """What Optuna is to be told for one of the values."""
        return _storable(value)

    def holds(self, value: Any) -> bool:
        """Whether the value is one of the choices; null may be one."""
        return value in self.values


def _storable(value: Any) -> Any:
    return json.dumps(value, sort_keys=True) if isinstance(value, dict | list) else value


@dataclass(frozen=True)
class Space:
    """The searched fields, in the spec's order, which is that of their conditions, and what is the same for every trial."""

    spec: Spec
    dimensions: tuple[Numbers | Choices, ...]

    def point(self, propose: Callable[[Numbers | Choices], Any]) -> dict[str, Any]:
        """The searched fields of one trial; `propose` is asked for the parameter of each whose conditions hold."""
        found: dict[str, Any] = {}
        for dimension in self.dimensions:
            if matches(dimension.when, self._fixed | found):
                found[dimension.name] = dimension.value(propose(dimension))
        return found

    def config(self, point: Mapping[str, Any]) -> Config:
        """The config of a point. Raises `UserError` where its values cannot go together."""
        return point_config(self.spec, {**self._fixed, **point}, self._find)

    def excluded(self, point: Mapping[str, Any]) -> str:
        """The rule of the spec that takes a point out of the space, in words; empty: none does."""
        return in_words(excluded_by(self.spec, {**self._fixed, **point}) or {})

    def parameters(self, said: Mapping[str, Any]) -> dict[str, Any]:
        """What Optuna is to be told of given values; those that the space does not hold are left to the sampler."""
        return {d.name: d.parameter(said[d.name]) for d in self.dimensions if d.name in said and d.holds(said[d.name])}

    def said_of(self, config: Config) -> dict[str, Any]:
        """The fields of any config as this space says them: a prompt or model is the choice that comes out the same."""
        said: dict[str, Any] = config.training.flat()
        same = {
            "prompt": lambda v: self._find[0](v).text == config.training.prompt,
            "model_name_or_path": lambda v: self._find[1]((v, config.training.model_revision)) == config.model,
        }
        for d in self.dimensions:
            if d.name in same and isinstance(d, Choices) and not config.training.command:
                said[d.name] = next(filter(same[d.name], d.values), said[d.name])
        return {d.name: said[d.name] for d in self.dimensions if d.name in said}

    def as_json(self) -> dict[str, dict[str, Any]]:
        """The space for the record: JSON values only."""
        return {d.name: _described(d) for d in self.dimensions}

    def prompt_sets(self) -> tuple[tuple[Prompt, ...], ...]:
        """The sets of prompts that trials may name."""
        raw = [v for d in self.dimensions if d.name == "prompt" and isinstance(d, Choices) for v in d.values]
        raw += [self._fixed["prompt"]] if self._fixed.get("prompt") is not None else []
        found = [self._find[0](r) for r in raw] if not self._fixed.get("command") else []
        return tuple(f.prompts for f in found if f.is_set)

    @property
    def _fixed(self) -> Fields:
        return self.spec.base | self.spec.overrides

    @cached_property
    def _find(self) -> Finders:
        return finders(self.spec)

    def examples(self) -> Iterator[dict[str, Any]]:
        """The lowest and the highest point, every choice at least once, and some random ones: always the same."""
        yield self.point(lambda d: d.low if isinstance(d, Numbers) else _storable(d.values[0]))
        yield self.point(lambda d: d.high if isinstance(d, Numbers) else _storable(d.values[-1]))
        most = max((len(d.values) for d in self.dimensions if isinstance(d, Choices)), default=1)
        rng = random.Random(0)
        for i in range(max(EXAMPLES, most)):
            yield self.point(lambda d, i=i: _example(d, i, rng))  # type: ignore[misc]


def _example(d: Numbers | Choices, i: int, rng: random.Random) -> Any:
    if isinstance(d, Choices):
        return _storable(d.values[i % len(d.values)] if i < len(d.values) else rng.choice(d.values))
    if d.step:
        return d.low + d.step * rng.randint(0, round((d.high - d.low) / d.step))
    drawn = d.low * (d.high / d.low) ** rng.random() if d.log else rng.uniform(d.low, d.high)
    return round(drawn) if d.whole else drawn


def _described(d: Numbers | Choices) -> dict[str, Any]:
    when = {"when": dict(d.when)} if d.when else {}
    if isinstance(d, Choices):
        return {"choices": [_storable(v) for v in d.values], **when}
    return {"low": d.low, "high": d.high, **({"log": True} if d.log else {}), **({"step": d.step} if d.step else {}), **when}


def space_of(spec: Spec) -> Space:
    """The checked space of a study's spec, without the fields that the command line fixes. Raises `UserError`."""
    try:
        return _space(spec)
    except SpecError as mistake:
        raise spec.document.error(mistake) from None


def _space(spec: Spec) -> Space:
    assert spec.search is not None
    found: list[Numbers | Choices] = []
    for name, said in spec.search.space.items():
        path = ("search", "space", name)
        if not is_field(name):
            raise SpecError(path, unknown_field(name))
        for where in ("base", "link"):
            if name in getattr(spec, where):
                raise SpecError(path, f"`{name}` is also set under `{where}`: keep one")
        if name not in spec.overrides:
            earlier = [d.name for d in found]
            if said == []:
                raise SpecError(path, "no choices: no trial has a value")
            dimension = _dimension(name, said if isinstance(said, Dimension) else Dimension(choices=said), path, spec, earlier)
            _refuse_never(dimension.when, (*path, "when"), spec, found)
            found.append(dimension)
    if not found:
        raise SpecError(("search", "space"), "nothing is left to search: every field is set on the command line")
    space = Space(spec, tuple(found))
    _check_exclude(spec, found)
    for i, point in enumerate(spec.search.enqueue):
        for name, value in point.items():
            here = ("search", "enqueue", i, name)
            of = next((d for d in found if d.name == name), None)
            if of is None and name not in spec.overrides:
                raise SpecError(here, unknown("searched field", name, spec.search.space))
            if of is not None and not of.holds(value):
                raise SpecError(here, f"{said_as(value)} is not in the space")
            if of is not None and of.when.keys() <= point.keys() and not matches(of.when, point):
                raise SpecError(here, f"is searched only where {in_words(of.when)}")
        given = {k: v for k, v in (spec.base | point).items() if k not in spec.overrides}
        for rule in spec.exclude:
            if rule.keys() <= given.keys() and matches(rule, given):
                raise SpecError(("search", "enqueue", i), f"is a point that `exclude` takes out: {in_words(rule)}")
    return space


def _dimension(name: str, said: Dimension, path: tuple[str, ...], spec: Spec, earlier: Sequence[str]) -> Numbers | Choices:
    for field in said.when:
        if field not in earlier and field not in spec.base and field not in spec.overrides:
            known = [*earlier, *spec.base]
            raise SpecError((*path, "when", field), f"a condition is on a field above it: {unknown('field', field, known)}")
    if said.when:
        check_rule(said.when, (*path, "when"))
    if said.choices is not None:
        if said.low is not None or said.high is not None or said.log or said.step:
            raise SpecError((*path, "choices"), "a field has either choices or `low` and `high`")
        values = [checked(name, value, (*path, i)) for i, value in enumerate(said.choices)]
        for i, value in enumerate(values):
            if value in values[:i]:
                raise SpecError((*path, i), f"{said_as(value)} is there twice")
        return Choices(name, tuple(values), said.when)
    if said.low is None or said.high is None:
        raise SpecError(path, "needs `low` and `high`, or choices")
    if said.low > said.high:
        raise SpecError((*path, "high"), f"{said.high:g} is below `low` ({said.low:g})")
    if said.log and (said.low <= 0 or said.step):
        raise SpecError((*path, "log"), "needs bounds above 0, and no `step`")
    bounds = {"low": said.low, "high": said.high, "step": said.step or 1}
    if name.startswith(PARAMS):  # nobody declared a type: whole numbers stay so where all are written so
        whole = all(isinstance(b, int) for b in bounds.values())
    else:
        whole = "int" in str(TrainingConfig.model_fields[name].annotation)
    for key, bound in bounds.items():
        if whole and not float(bound).is_integer():
            raise SpecError((*path, key), f"{said_as(bound)} is not a whole number, and {name} is one")
    low, high = (checked(name, int(bounds[k]) if whole else float(bounds[k]), (*path, k)) for k in ("low", "high"))
    found = Numbers(name, low, high, said.step, said.log, whole, said.when)
    if not found.holds(high):
        steps = math.floor((high - low) / (said.step or 1))
        raise SpecError(
            (*path, "high"),
            f"{high:g} is not reached by steps of {said.step:g} from {low:g}: the last is {low + steps * (said.step or 1):g}",
        )
    return found


def _check_exclude(spec: Spec, dimensions: Sequence[Numbers | Choices]) -> None:
    """Refuse a rule of `exclude` that takes nothing out of the space."""
    for i, rule in enumerate(spec.exclude):
        path = ("exclude", i)
        check_rule(rule, path)
        for d in dimensions:
            named = [f for f in rule if spec.link.get(f, f) == d.name]
            if named and isinstance(d, Numbers) and not (d.whole or d.step or d.low == d.high):
                message = f"{d.name} is any number between its bounds: values can be left out of `choices`, or with a `step`"
                raise SpecError((*path, named[0]), message)
        _refuse_never(rule, path, spec, dimensions)


def _refuse_never(rule: Mapping[str, Any], path: Path_, spec: Spec, dimensions: Sequence[Numbers | Choices]) -> None:
    """Refuse a rule (of `when` or `exclude`) that no trial fulfils."""
    for field, wanted in rule.items():
        values, source = wanted if isinstance(wanted, list) else [wanted], spec.link.get(field, field)
        of = next((d for d in dimensions if d.name == source), None)
        fixed = (of is None or bool(of.when)) and matches({source: wanted}, spec.base | spec.overrides)
        possible = fixed or (of is not None and any(of.holds(v) for v in values))
        if not possible and not {field, source} & spec.overrides.keys():
            raise SpecError((*path, field), f"{said_as(wanted)} is no value that {field} has here: it never holds")


def study_expansion(space: Space) -> Expansion:
    """What a study measures, before it has any run: its example configs, no runs, and its evaluations.

    Raises `UserError` where a point of the space that the spec does not exclude cannot be trained.
    """
    spec = space.spec
    try:
        points = [p for p in space.examples() if not space.excluded(p)]
        if not points:
            raise SpecError(("exclude",), "nothing is left to search: every point that was tried out is excluded")
        fields = [spec.base | spec.overrides | p for p in points]
        methods = {f.get("method", TrainingConfig.model_fields["method"].default) for f in fields}
        refuse_unread(spec, methods)
        configs = {c.config_id: c for c in map(space.config, points)}
        evaluations = evaluations_of(spec, list(configs.values()))
        if not evaluations:
            raise SpecError(("evaluate",), "a study needs a measurement to judge trials by: say what to evaluate")
        check_objectives(spec, list(configs.values()), evaluations)
    except SpecError as mistake:
        raise spec.document.error(mistake) from None
    return Expansion(spec.sweep, tuple(configs.values()), (), evaluations, prompt_sets=space.prompt_sets())
