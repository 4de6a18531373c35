"""`stages:` in a spec: runs that go on from the weights of other runs, each from those of the run with its own seed.

A stage expands as a spec does that has its `base`, `axes`, `zip`, `link`, `random` and `exclude`. What it comes `after` is
multiplied in: every config of that stage, at every `from_step`. Step 0 of a run is the base model, so that `from_step: 0` is
the same config as without a stage before it, and is trained once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from em_core.config import CHAINED, Strict
from sweeps.complaints import said_as, unknown
from sweeps.yamlfile import Path_, SpecError

if TYPE_CHECKING:
    from sweeps.expand import Config
    from sweeps.spec import Spec

BASE = "base"
"""What a stage comes after that starts from the model itself."""
RESERVED = (BASE, "eval", "params")
"""Words that name no stage: its fields are columns `STAGE_FIELD` in the results."""
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*", re.ASCII)
OWN = ("base", "axes", "zip", "link", "random", "exclude")
"""Keys that a stage has for itself; of a spec with stages only `base` is shared as well."""
Start = Annotated[int, Field(ge=0)] | Literal["last"]


class Random(Strict):
    """Points drawn from distributions. They stand beside the values of the axes they name, and multiply the others."""

    count: int = Field(ge=1, description="Points to draw (count). More later keeps the earlier ones.")
    seed: int = Field(0, ge=0, description="Seed of the draws (any number).")
    fields: dict[str, dict[str, list[Any]]] = Field(
        min_length=1,
        description="Field: {uniform: [low, high]}, {loguniform: [low, high]}, {randint: [low, high]} or {choice: [...]}.",
    )


class Stage(Strict):
    """One link of a chain: its runs start from the base model, or from those of the stage that it comes after."""

    after: str | None = Field(
        None, description="Stage whose runs it starts from; `base`: the base model (none: the stage before it, if any)."
    )
    from_step: Start | Annotated[list[Start], Field(min_length=1)] = Field(
        "last", description="At which of their steps, an axis (optimizer updates; 0: the base model; `last`: the end)."
    )
    base: dict[str, Any] = Field({}, description="Training fields that the stage's runs share, over those of all stages.")
    axes: dict[str, Any] = Field({}, description="As the axes of a spec.")
    zip: list[dict[str, Any]] = Field([], description="Blocks of axes of equal length that advance together.")
    link: dict[str, str] = Field({}, description="Training field: the field whose value it takes.")
    random: Random | None = Field(None, description="Random points beside the grid.")
    exclude: list[dict[str, Any]] = Field([], description="Points to leave out; each rule must match some.")
    resources: dict[str, Any] = Field({}, description="Resources of its runs, over those of the spec.")


@dataclass(frozen=True)
class Part:
    """One stage of a spec as a spec of its own; of a spec without stages there is one, without a name."""

    name: str | None
    spec: Spec
    after: str | None = None
    stage: Stage | None = None

    @contextmanager
    def blamed(self) -> Iterator[None]:
        """A mistake in what belongs to the stage is told at its place in the document."""
        try:
            yield
        except SpecError as mistake:
            first, second = (*mistake.path, None, None)[:2]
            if self.stage is None or first not in OWN or (first == "base" and second not in self.stage.base):
                raise
            raise SpecError(("stages", str(self.name), *mistake.path), mistake.message) from None

    def only_own(self) -> Spec:
        """The same without what all stages share, and what the command line set."""
        if self.stage is None:
            return self.spec
        own = self.spec.model_copy(update={"base": self.stage.base})
        own._overrides = {}
        return own

    def starts(self, parents: Sequence[Config]) -> list[dict[str, Any]]:
        """Fields that say from which weights its runs start: one entry per parent and step, one per model for step 0.

        Raises `SpecError` for a step that no parent reaches.
        """
        if self.after is None or self.stage is None:
            return [{}]
        steps = steps_of(self.stage)
        for i, step in enumerate(steps):
            if step != "last" and all(step > p.training.max_steps for p in parents):
                longest = max(p.training.max_steps for p in parents)
                where = ("stages", str(self.name), "from_step", *((i,) if isinstance(self.stage.from_step, list) else ()))
                raise SpecError(where, f"step {step} is beyond max_steps ({longest}) of every run of `{self.after}`")
        found: dict[tuple[Any, ...], dict[str, Any]] = {}
        for p in parents:
            model = {k: getattr(p.training, k) for k in ("model_name_or_path", "model_revision")}
            for step in (p.training.max_steps if s == "last" else s for s in steps):
                if step > p.training.max_steps:
                    continue
                # A config that is a child itself has its parent's weights at step 0.
                origin = (p.config_id, step) if step else (p.training.parent, p.training.from_step)
                chained = {"parent": origin[0], "from_step": origin[1]} if origin[0] else {}
                found.setdefault((*model.values(), *origin), model | chained)
        return list(found.values())


def steps_of(stage: Stage) -> list[int | Literal["last"]]:
    """The steps from which a stage starts."""
    return list(stage.from_step) if isinstance(stage.from_step, list) else [stage.from_step]


def parts_of(spec: Spec) -> list[Part]:
    """The stages of a spec in their order, each as a spec of its own."""
    if not spec.stages:
        return [Part(None, spec)]
    parts = []
    for name, after in after_of(spec).items():
        stage = spec.stages[name]
        own = {key: getattr(stage, key) for key in OWN if key != "base"}
        set_there = {*stage.axes, *stage.link, *(f for block in stage.zip for f in block)}
        set_there |= set(stage.random.fields) if stage.random else set()
        shared = {k: v for k, v in spec.base.items() if k not in set_there}
        parts.append(Part(name, spec.model_copy(update={"base": {**shared, **stage.base}, **own}), after, stage))
    return parts


def after_of(spec: Spec) -> dict[str, str | None]:
    """Stage -> the stage that it starts from; None: the base model."""
    found: dict[str, str | None] = {}
    before: str | None = None
    for name, stage in spec.stages.items():
        said = before if stage.after is None else stage.after
        found[name] = None if said == BASE else said
        before = name
    return found


def check_stages(spec: Spec) -> None:
    """Refuse stages that cannot be put in order, or whose names could be no columns. Raises `SpecError`."""
    for key in (*OWN[1:], "arms"):
        if spec.stages and getattr(spec, key):
            raise SpecError((key,), f"with `stages:` every stage has its own: put `{key}` under one of them")
    earlier: list[str] = []
    for name, stage in spec.stages.items():
        at: Path_ = ("stages", name)
        if not NAME.fullmatch(name) or name in RESERVED:
            allowed = f"letters, digits and `_`, and none of {', '.join(RESERVED)}"
            raise SpecError(at, f"`{name}` cannot be the name of a stage: {allowed}")
        if stage.after is not None and stage.after not in (BASE, *earlier):
            if stage.after in spec.stages:
                raise SpecError((*at, "after"), f"`{stage.after}` is not before it: a stage stands below the one it starts from")
            raise SpecError((*at, "after"), unknown("stage", stage.after, (BASE, *earlier)))
        first = not earlier if stage.after is None else stage.after == BASE
        if first and "from_step" in stage.model_fields_set:
            raise SpecError((*at, "from_step"), "it starts from the base model; a stage after another has steps to start from")
        steps = steps_of(stage)
        for i, step in enumerate(steps):
            if step in steps[:i]:
                raise SpecError((*at, "from_step", i), f"{said_as(step)} is in the axis twice")
        for key in ("base", "axes") if not first else ():
            for field in ("model_name_or_path", "model_revision"):
                if field in getattr(stage, key):
                    raise SpecError((*at, key, field), "a stage after another trains the model of that one: say it there")
        earlier.append(name)


def condition_of(spec: Spec, name: str) -> dict[str, Any]:
    """The `when` of a stage's resources: what its base says, by which its runs are told from those of others."""
    base = spec.stages[name].base
    said = {k: spec.overrides.get(k, v) for k, v in base.items() if not isinstance(v, dict)}
    if not said:
        raise SpecError(("stages", name, "resources"), "are for runs that match the stage's `base`, and it has none")
    return said


def refuse_chained(names: Sequence[str], path: Path_) -> None:
    """Refuse fields that only `stages:` may set."""
    for name in names:
        if name in CHAINED:
            raise SpecError((*path, name), f"`{name}` is not set by hand: runs that start from others are a stage of `stages:`")
