"""The space that a study searches: from the spec's distributions to a trial's parameters, and from these to a config."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from em_core.config import PARAMS, TrainingConfig, canonical
from em_core.prompts import Prompt
from sweeps.axes import checked
from sweeps.complaints import said_as, unknown
from sweeps.expand import Config, Expansion, Fields, Finders, finders, point_config
from sweeps.measurements import evaluations_of
from sweeps.own import is_field
from sweeps.search import Dimension
from sweeps.sources import refuse_unread
from sweeps.spec import Spec, matches, unknown_field
from sweeps.yamlfile import SpecError

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
        """What Optuna is to be told for the value; None where it is not in the distribution."""
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not self.low <= value <= self.high or (self.whole and value != int(value)):
            return None
        off = (value - self.low) / self.step if self.step else 0.0
        return value if abs(off - round(off)) < 1e-6 else None


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
        return next(v for v in self.values if _storable(v) == parameter)

    def parameter(self, value: Any) -> Any:
        return _storable(value) if value in self.values else None


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

    def parameters(self, said: Mapping[str, Any]) -> dict[str, Any]:
        """What Optuna is to be told of given values; those that the space does not hold are left to the sampler."""
        known = {d.name: d.parameter(said[d.name]) for d in self.dimensions if d.name in said}
        return {name: value for name, value in known.items() if value is not None}

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
            found.append(_dimension(name, said if isinstance(said, Dimension) else Dimension(choices=said), path, spec, earlier))
    if not found:
        raise SpecError(("search", "space"), "nothing is left to search: every field is set on the command line")
    space = Space(spec, tuple(found))
    for i, point in enumerate(spec.search.enqueue):
        for name, value in point.items():
            here = ("search", "enqueue", i, name)
            of = next((d for d in found if d.name == name), None)
            if of is None and name not in spec.overrides:
                raise SpecError(here, unknown("searched field", name, spec.search.space))
            if of is not None and of.parameter(value) is None:
                raise SpecError(here, f"{said_as(value)} is not in the space")
    return space


def _dimension(name: str, said: Dimension, path: tuple[str, ...], spec: Spec, earlier: Sequence[str]) -> Numbers | Choices:
    for field in said.when:
        if field not in earlier and field not in spec.base and field not in spec.overrides:
            known = [*earlier, *spec.base]
            raise SpecError((*path, "when", field), f"a condition is on a field above it: {unknown('field', field, known)}")
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
    annotation = str(TrainingConfig.model_fields[name].annotation) if name in TrainingConfig.model_fields else ""
    bounds = (said.low, said.high, said.step or 1)
    whole = all(float(b).is_integer() for b in bounds) if name.startswith(PARAMS) else "int" in annotation
    if whole and not all(float(b).is_integer() for b in bounds):
        raise SpecError(path, f"{name} is a whole number: so are its bounds and its step")
    low, high = (int(b) if whole else float(b) for b in bounds[:2])
    for key, bound in (("low", low), ("high", high)):
        checked(name, bound, (*path, key))
    return Numbers(name, low, high, said.step, said.log, whole, said.when)


def study_expansion(space: Space) -> Expansion:
    """What a study measures, before it has any run: its example configs, no runs, and its evaluations.

    Raises `UserError` where a point of the space cannot be trained.
    """
    spec = space.spec
    try:
        points = list(space.examples())
        fields = [spec.base | spec.overrides | p for p in points]
        methods = {f.get("method", TrainingConfig.model_fields["method"].default) for f in fields}
        refuse_unread(spec, methods)
        for name in (d.name for d in space.dimensions):
            refuse_unread(spec.model_copy(update={"base": {}, "link": {}, "axes": {name: []}}), methods)
        configs = {c.config_id: c for c in map(space.config, points)}
        evaluations = evaluations_of(spec, list(configs.values()))
        if not evaluations:
            raise SpecError(("evaluate",), "a study needs a measurement to judge trials by: say what to evaluate")
    except SpecError as mistake:
        raise spec.document.error(mistake) from None
    return Expansion(spec.sweep, tuple(configs.values()), (), evaluations, prompt_sets=space.prompt_sets())
