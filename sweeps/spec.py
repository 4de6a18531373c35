"""The spec language: strict models, defaults from the site, overrides from the command line.

Precedence: site < spec < command line. Every mistake is one line with the YAML line and the nearest valid name.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, TypeAdapter, ValidationError, model_validator

from em_core.config import METHODS, Execution, Strict, TrainingConfig
from em_core.errors import UserError
from sweeps.yamlfile import Document, Path_, SpecError, read_document, read_scalar

M = TypeVar("M", bound=BaseModel)
Steps = list[Annotated[int, Field(ge=0)] | Literal["last"]]


class TaskFile(Strict):
    """A jsonl file of questions with the names of its fields, where they are not recognised."""

    file: str = Field(description="Path of a jsonl file, relative to the spec.")
    question: str | None = Field(None, description="Field with the question.")
    answer: str | None = Field(None, description="Field with the gold answer.")


class EvaluateEntry(Strict):
    """What is measured and when. Changing it never retrains a run."""

    tasks: list[str | TaskFile] = Field(min_length=1, description="Built-in tasks by name, or jsonl files.")
    steps: Steps = Field(
        ["last"], min_length=1, description="Optimizer updates after which to measure; 0: the base model; `last`."
    )
    temperature: float | list[float] = Field(0.0, description="Sampling temperature or temperatures (0: greedy).")
    top_p: float = Field(1.0, gt=0, le=1, description="Nucleus sampling mass.")
    num_samples: int = Field(1, ge=1, description="Answers per question (count).")
    max_completion_length: int | None = Field(None, ge=1, description="Longest answer (tokens; none: the task's own).")
    limit: int | None = Field(None, ge=1, description="Only the first so many questions (none: all).")


class Resources(BaseModel):
    """What a run needs and how runs are packed into jobs. Any `slurm_*` is handed to submitit without its prefix."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True, allow_inf_nan=False)

    when: dict[str, Any] = Field({}, description="In a list of rules: the rule is for configs with these values.")
    cpus_per_run: int = Field(1, ge=1, description="Cores, and threads, per run (count).")
    gpus_per_run: int | None = Field(
        None, ge=0, description="GPUs per run (count; none: 1 on a local machine with GPUs, else 0)."
    )
    mem_gb: float | None = Field(None, gt=0, description="Host memory per run (GB; none: the cluster's default).")
    timeout_min: int = Field(60, ge=1, description="Wall-clock limit of a job (minutes).")
    slots_per_job: int = Field(1, ge=1, description="Runs side by side in one Slurm job (count; an 8-GPU node: 8).")
    runs_per_job: int | Literal["auto"] = Field(
        "auto", description="Runs in one Slurm job (count; auto: as many as fill job_minutes)."
    )
    job_minutes: float = Field(30, gt=0, description="How long a job should last when runs_per_job is auto (minutes).")
    gpu: str | None = Field(
        None, description="The GPU the runs will meet (h100-80gb, a100-40gb, ...): the plan refuses what cannot fit."
    )

    @model_validator(mode="after")
    def _only_slurm_extras(self) -> Resources:
        for name in self.model_extra or {}:
            if not name.startswith("slurm_"):
                raise ValueError(unknown("resource", name, Resources.model_fields))
        return self


class Random(Strict):
    """Points drawn from distributions. They stand beside the values of the axes they name, and multiply the others."""

    count: int = Field(ge=1, description="Points to draw (count). More later keeps the earlier ones.")
    seed: int = Field(0, ge=0, description="Seed of the draws.")
    fields: dict[str, dict[str, list[Any]]] = Field(
        min_length=1,
        description="Field: {uniform: [low, high]}, {loguniform: [low, high]}, {randint: [low, high]} or {choice: [...]}.",
    )


class Spec(Strict):
    """A sweep: what is trained, with which seeds, and what is measured."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=80, description="Name of the sweep; its folder under runs/."
    )
    description: str = Field("", description="For people.")
    base: dict[str, Any] = Field({}, description="Training fields that all runs share.")
    axes: dict[str, Any] = Field(
        {},
        description="Training field: a list, {geomspace|linspace: [first, last, count]} or {range: [first, last, step]}.",
    )
    zip: list[dict[str, Any]] = Field([], description="Blocks of axes of equal length that advance together.")
    link: dict[str, str] = Field({}, description="Training field: the field whose value it takes.")
    arms: dict[str, dict[str, Any]] = Field({}, description="Named alternatives; lists inside an arm are its own axes.")
    exclude: list[dict[str, Any]] = Field([], description="Points to leave out; each rule must match some.")
    random: Random | None = Field(None, description="Random points beside the grid.")
    seeds: int | list[int] = Field(description="Replicates: a count (seeds 0, 1, ...) or a list of seeds.")
    evaluate: list[EvaluateEntry] = Field([], description="Measurements.")
    resources: dict[str, Any] | list[dict[str, Any]] = Field(
        {}, description="Resources of a run, or first-match rules with `when`."
    )
    execution: Execution = Field(Execution(), description="How runs are carried out; part of no id.")
    keep: str = Field(
        "none", pattern=r"^(none|last|all|best:[1-9][0-9]*)$", description="Checkpoints that stay: none, last, best:K, all."
    )

    _document: Document = PrivateAttr()
    _overrides: dict[str, Any] = PrivateAttr(default_factory=dict)
    _rules: tuple[Resources, ...] = PrivateAttr(default=())

    @property
    def document(self) -> Document:
        return self._document

    @property
    def overrides(self) -> dict[str, Any]:
        """Training fields (and `seeds`) set on the command line."""
        return self._overrides

    @property
    def sweep(self) -> str:
        """The sweep's name: the spec's, and the overrides that change what is trained."""
        parts = [f"{k}={re.sub(r'[^A-Za-z0-9_.-]+', '-', str(v)).strip('-')}" for k, v in sorted(self._overrides.items())]
        return "+".join([self.name, *parts])[:200]

    def resources_for(self, fields: Mapping[str, Any]) -> Resources:
        """The first rule whose `when` matches. The last rule (or the only one) should have none."""
        for rule in self._rules:
            if all(fields.get(k) == v for k, v in rule.when.items()):
                return rule
        return self._rules[-1]


class Site(Strict):
    """What is true of a cluster and not of an experiment. Shipped specs name none of it."""

    launcher: Literal["auto", "local", "slurm"] = Field("auto", description="What `--launcher auto` means here.")
    partition: str | None = Field(None, description="Slurm partition.")
    account: str | None = Field(None, description="Slurm account.")
    qos: str | None = Field(None, description="Slurm quality of service.")
    setup: list[str] = Field([], description="Shell lines before each job (module load ...).")
    env: dict[str, str] = Field({}, description="Environment of the jobs (HF_HOME, HF_HUB_OFFLINE, ...).")
    max_array_size: int = Field(1000, ge=1, description="Longest Slurm array (tasks).")
    poll_seconds: float = Field(30, gt=0, description="Least time between two questions to the scheduler (seconds).")
    resources: dict[str, Any] = Field({}, description="Defaults for the specs' `resources`.")


FIELD_TYPES: dict[str, TypeAdapter[Any]] = {
    name: TypeAdapter(Annotated[f.annotation, f], config=ConfigDict(strict=True, allow_inf_nan=False))  # type: ignore[arg-type]
    for name, f in TrainingConfig.model_fields.items()
}


def load_spec(path: Path, sets: Iterable[str] = (), site: Site | None = None) -> Spec:
    """Decode a spec file, with `--set KEY=VALUE` overrides and the site's defaults. Raises `UserError`."""
    document = read_document(path)
    data = dict(document.data)
    overrides: dict[str, Any] = {}
    for item in sets:
        key, equals, value = item.partition("=")
        if not equals or not key:
            raise UserError(f"--set {item}: write KEY=VALUE")
        _override(key.strip(), read_scalar(value), data, overrides)
    try:
        spec = _validated(Spec, data)
        rules = _resource_rules(spec, site or Site())
    except SpecError as mistake:
        raise document.error(mistake) from None
    spec._document, spec._overrides, spec._rules = document, overrides, rules
    return spec


def load_site(beside: Path) -> Site:
    """The site file: $EMSWEEP_SITE, else `site.toml` beside the spec, else in the user's config folder; else defaults."""
    from typer import get_app_dir

    said = os.environ.get("EMSWEEP_SITE")
    candidates = [Path(said)] if said else [beside.parent / "site.toml", Path(get_app_dir("emsweep")) / "site.toml"]
    for path in candidates:
        if path.is_file():
            try:
                return _validated(Site, tomllib.loads(path.read_text()))
            except tomllib.TOMLDecodeError as error:
                raise UserError(f"{path}: not valid TOML: {error}") from None
            except SpecError as mistake:
                raise UserError(f"{path}: {'.'.join(map(str, mistake.path))}: {mistake.message}") from None
    if said:
        raise UserError(f"EMSWEEP_SITE={said}: no such file")
    return Site()


def check_field(name: str, value: Any, path: Path_) -> Any:
    """A training field's value, validated alone. Raises `SpecError` naming the field, the value and what is allowed."""
    if name not in FIELD_TYPES:
        raise SpecError(path, unknown_field(name))
    try:
        value = FIELD_TYPES[name].validate_python(value)
    except ValidationError as error:
        raise SpecError(path, complaint(error.errors()[0])) from None
    if name == "method" and value not in METHODS:
        raise SpecError(path, unknown("method", value, METHODS))
    return value


def unknown_field(name: str) -> str:
    """The message for a field that no run has, with the place where it belongs or the nearest name."""
    if name in ("seed", "seeds"):
        return "seeds are replicates, not a field: use the top-level key `seeds`"
    if name in Execution.model_fields:
        return f"`{name}` does not change the weights: put it under `execution:`"
    if name in Resources.model_fields or name.startswith("slurm_"):
        return f"`{name}` does not change the weights: put it under `resources:`"
    return unknown("field", name, TrainingConfig.model_fields)


def unknown(what: str, name: object, valid: Iterable[str]) -> str:
    """`unknown field `lerning_rate`; did you mean `learning_rate`?`"""
    names = list(valid)
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    hint = f"did you mean `{near[0]}`?" if near else f"known: {', '.join(names)}"
    return f"unknown {what} `{name}`; {hint}"


def complaint(error: Any) -> str:
    """One pydantic error in a person's words."""
    value, kind, context = error.get("input"), error["type"], error.get("ctx", {})
    said = repr(value) if not isinstance(value, dict | list) or len(repr(value)) < 60 else type(value).__name__
    match kind:
        case "float_type" | "float_parsing":
            return f"{said} is not a number"
        case "int_type" | "int_parsing" | "int_from_float":
            return f"{said} is not a whole number"
        case "bool_type":
            return f"{said} is not true or false"
        case "string_type":
            return f"{said} is not text"
        case "list_type":
            return f"{said} is not a list"
        case "dict_type" | "model_type" | "model_attributes_type":
            return f"{said} is not a mapping"
        case "finite_number":
            return f"{said} is not finite"
        case "missing":
            return "is missing"
        case "value_error":
            return str(context.get("error", error["msg"]))
        case "string_pattern_mismatch":
            return f"{said} does not have the form {context['pattern']}"
        case _:
            text = error["msg"].removeprefix("Input should be ").removeprefix("Value should have ")
            return f"{said} must be {text}" if error["msg"].startswith("Input should be") else f"{said}: {error['msg']}"


def _validated(model: type[M], data: Any) -> M:
    try:
        return model.model_validate(data)
    except ValidationError as failure:
        errors = failure.errors()
        # An unknown key explains a missing one (a typo), so it comes first.
        error = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
        path = tuple(p for p in error["loc"] if not _union_branch(p))
        if error["type"] == "extra_forbidden":
            raise SpecError(path, _unknown_key(model, path)) from None
        if path == ("name",) and error["type"] == "string_pattern_mismatch":
            raise SpecError(path, f"{error['input']!r} is not a name: letters, digits, `_`, `.`, `-`; never a path") from None
        raise SpecError(path, complaint(error)) from None


def _union_branch(part: str | int) -> bool:
    """Pydantic puts the branch of a union into the location; it is no key of the document."""
    return isinstance(part, str) and (part in ("int", "float", "str", "TaskFile") or "[" in part)


def _unknown_key(model: type[BaseModel], path: Path_) -> str:
    """Message for an unknown key: near names among the siblings at that place."""
    name = str(path[-1])
    siblings: Iterable[str] = model.model_fields
    if len(path) > 1:
        inner: dict[str, type[BaseModel]] = {"evaluate": EvaluateEntry, "execution": Execution, "random": Random}
        siblings = inner.get(str(path[0]), Resources).model_fields
    elif name in TrainingConfig.model_fields:
        return f"`{name}` is a training field: put it under `base:` or `axes:`"
    return unknown("key", name, siblings)


def _override(key: str, value: Any, data: dict[str, Any], overrides: dict[str, Any]) -> None:
    """`--set`: a training field or `seeds` becomes part of the name; execution, resources and keep do not."""
    if key in TrainingConfig.model_fields:
        try:
            overrides[key] = value if key == "prompt" else check_field(key, value, ())
        except SpecError as mistake:
            raise UserError(f"--set {key}: {mistake.message}") from None
    elif key == "seeds":
        overrides[key] = data[key] = value
    elif key == "keep":
        data[key] = value
    elif key.split(".")[0] in ("execution", "resources") and "." in key:
        section, name = key.split(".", 1)
        if isinstance(data.get(section, {}), list):
            raise UserError(f"--set {key}: this spec's resources are a list of rules; edit the spec")
        data[section] = {**data.get(section, {}), name: value}
    else:
        known = [*TrainingConfig.model_fields, "seeds", "keep", *(f"execution.{f}" for f in Execution.model_fields)]
        raise UserError(f"--set {key}: {unknown('field', key, [*known, *(f'resources.{f}' for f in Resources.model_fields)])}")


def _resource_rules(spec: Spec, site: Site) -> tuple[Resources, ...]:
    """The spec's rules over the site's defaults."""
    defaults = dict(site.resources)
    for name in ("partition", "account", "qos"):
        if getattr(site, name) is not None:
            defaults[f"slurm_{name}"] = getattr(site, name)
    said = spec.resources if isinstance(spec.resources, list) else [spec.resources]
    rules = []
    for i, rule in enumerate(said or [{}]):
        where: Path_ = ("resources", i) if isinstance(spec.resources, list) else ("resources",)
        try:
            rules.append(Resources(**{**defaults, **rule}))
        except ValidationError as failure:
            error = failure.errors()[0]
            raise SpecError((*where, *error["loc"][:1]), complaint(error)) from None
        for name in rules[-1].when:
            if name not in TrainingConfig.model_fields:
                raise SpecError((*where, "when", name), unknown("field", name, TrainingConfig.model_fields))
    return tuple(rules)
