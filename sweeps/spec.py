"""The spec language: strict models, defaults from the site, overrides from the command line.

Precedence: site < spec < command line. Every mistake is one line with the YAML line and the nearest valid name.
"""

from __future__ import annotations

import hashlib
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, Field, PrivateAttr, ValidationError

from em_core.config import PARAMS, STOP, Asking, Execution, Strict, TrainingConfig
from em_core.errors import UserError
from sweeps.complaints import complaint, said_as, unknown
from sweeps.fields import check_field, check_rule, matches
from sweeps.resources import Resources, check_processes
from sweeps.retries import Retries
from sweeps.search import FREE, INNER, SEEDS, Search, check_search
from sweeps.seeds import SeedBudget, Seeds, Until
from sweeps.site import Site, use_cache
from sweeps.stages import Random, Stage, check_stages, condition_of
from sweeps.variants import for_model
from sweeps.yamlfile import Document, Path_, SpecError, read_document, read_scalar

M = TypeVar("M", bound=BaseModel)
KEEP = "none|last|all|best:[1-9][0-9]*"
"""What `keep` may be, as a regular expression."""
LONGEST_NAME = 160
"""Characters of a sweep's name: it is a folder, and part of the names of jobs and pages."""
Steps = list[Annotated[int, Field(ge=0)] | Literal["last"]]
Heat = Annotated[float, Field(ge=0)]


class TaskFile(Strict):
    """A file of questions with the names of its fields, where they are not recognised."""

    file: str = Field(description="A .jsonl, .csv or .parquet file: a path, relative to the spec, or hf://datasets/....")
    question: str | None = Field(None, description="Field with the question.")
    answer: str | None = Field(None, description="Field with the gold answer.")


class EvaluateEntry(Asking):
    """What is measured and when. Changing it never retrains a run."""

    tasks: list[str | TaskFile] = Field(
        min_length=1, description="Built-in tasks by name, or files of questions (.jsonl, .csv, .parquet)."
    )
    steps: Steps = Field(
        ["last"], min_length=1, description="When to measure (optimizer updates; 0: the base model; `last`: the end)."
    )
    temperature: Heat | Annotated[list[Heat], Field(min_length=1)] = Field(
        0.0, description="Sampling temperature or temperatures (dimensionless; 0: greedy)."
    )
    stop: list[Annotated[str, Field(min_length=1)]] = Field([], description=STOP)


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
    models: dict[str, dict[str, Any]] = Field(
        {}, description="For other models: a pattern of the name (`*`: any) -> keys of the spec that are different for it."
    )
    arms: dict[str, dict[str, Any]] = Field({}, description="Named alternatives; lists inside an arm are its own axes.")
    exclude: list[dict[str, Any]] = Field([], description="Points to leave out; each rule must match some.")
    random: Random | None = Field(None, description="Random points beside the grid.")
    stages: dict[str, Stage] = Field({}, description="Chains: runs that start from the weights of others, stage by stage.")
    search: Search | None = Field(None, description="Instead of axes: a study, which asks for its configs (`emsweep study`).")
    seeds: Seeds = Field(description="Replicates: a count (seeds 0, 1, ...), a list of seeds, or a budget.")
    repeats: int = Field(1, ge=1, description="How often each seed is run: what differs is the hardware's noise (count).")
    evaluate: list[EvaluateEntry] = Field([], description="Measurements.")
    resources: dict[str, Any] | list[dict[str, Any]] = Field(
        {}, description="Resources of a run, or first-match rules with `when`."
    )
    execution: Execution = Field(Execution(), description="How runs are carried out; part of no id.")
    retries: Retries = Field(Retries(), description="How often bad luck is met with another try, and when the sweep stops.")
    max_device_hours: float | None = Field(
        None,
        gt=0,
        description="Budget: what the sweep's attempts may use together (device-hours; none: no limit).",
    )
    keep: str = Field("none", pattern=f"^({KEEP})$", description="Checkpoints that stay: none, last, best:K, all.")

    _document: Document = PrivateAttr()
    _overrides: dict[str, Any] = PrivateAttr(default_factory=dict)
    _rules: tuple[Resources, ...] = PrivateAttr(default=())
    _sets: tuple[str, ...] = PrivateAttr(default=())

    @property
    def document(self) -> Document:
        return self._document

    @property
    def overrides(self) -> dict[str, Any]:
        """Training fields (and `seeds`, `repeats`, `search.KEY`) set on the command line."""
        return self._overrides

    @property
    def sets(self) -> tuple[str, ...]:
        """Every `--set KEY=VALUE` as it was typed."""
        return self._sets

    @property
    def sweep(self) -> str:
        """The sweep's name: the spec's, and the overrides that change what is trained. Too long a name ends in a hash."""
        parts = [f"{k}={re.sub(r'[^A-Za-z0-9_.-]+', '-', str(v)).strip('-')}" for k, v in sorted(self._overrides.items())]
        name = "+".join([self.name, *parts])
        if len(name) <= LONGEST_NAME:
            return name
        return name[: LONGEST_NAME - 9] + "-" + hashlib.sha256(repr(sorted(self._overrides.items())).encode()).hexdigest()[:8]

    def resources_for(self, fields: Mapping[str, Any]) -> Resources:
        """The first rule whose `when` matches; the last one has none."""
        fields = {**fields, **{f"{PARAMS}{k}": v for k, v in fields.get("params", {}).items()}}
        return next((rule for rule in self._rules if matches(rule.when, fields)), self._rules[-1])

    @property
    def rules(self) -> tuple[Resources, ...]:
        """Resources over the site's defaults, in order; all but the last have a `when`."""
        return self._rules


def load_spec(path: Path, sets: Iterable[str] = (), site: Site | None = None, text: str | None = None) -> Spec:
    """Decode a spec file (or the `text` it had), with `--set KEY=VALUE` overrides and the site's defaults. Raises `UserError`."""
    document = read_document(path, text)
    sets = tuple(sets)
    said: dict[str, Any] = {}
    for item in sets:
        key, equals, value = item.partition("=")
        if not equals or not key.strip():
            raise UserError(f"--set {item}: write KEY=VALUE")
        said[key.strip()] = read_scalar(value)
    try:
        data, moved = for_model(document.data, said.get("model_name_or_path"))
    except SpecError as mistake:
        raise document.error(mistake) from None
    document, keys = replace(document, moved=moved), list(said)
    overrides: dict[str, Any] = {}
    for key, value in said.items():
        _override(key, value, data, overrides)
    document = replace(document, overridden=frozenset((k,) if k.startswith(PARAMS) else tuple(k.split(".")) for k in keys))
    try:
        if isinstance(said_search := data.get("search"), dict):
            if "seeds" in data:
                raise SpecError(("seeds",), f"of a study are `{SEEDS}`, under `search:`")
            data["seeds"] = said_search.get(SEEDS, Search.model_fields[SEEDS].default)
        spec = _validated(Spec, data)
        if spec.search:
            check_search(spec.search, data, spec.max_device_hours)
        if "threads" in spec.execution.model_fields_set:
            raise SpecError(("execution", "threads"), "follows `resources.cpus_per_run`: set that")
        check_stages(spec)
        spec._document, spec._overrides, spec._sets = document, overrides, sets
        spec._rules = _resource_rules(spec, site or Site())
        check_processes(spec.execution, spec._rules)
    except SpecError as mistake:
        raise document.error(mistake) from None
    return spec


def load_site(beside: Path) -> Site:
    """The site file: $EMSWEEP_SITE, else `site.toml` beside the spec, else in the user's config folder; else defaults."""
    from typer import get_app_dir

    said = os.environ.get("EMSWEEP_SITE")
    candidates = [Path(said)] if said else [beside.parent / "site.toml", Path(get_app_dir("emsweep")) / "site.toml"]
    for path in candidates:
        if path.is_file():
            try:
                site = _validated(Site, tomllib.loads(path.read_text(encoding="utf-8")))
                if "when" in site.resources:
                    raise SpecError(("resources", "when"), "belongs to a spec")
                _resources({}, site.resources, ("resources",))
                return site
            except UnicodeDecodeError:
                raise UserError(f"{path}: is not UTF-8 text") from None
            except OSError as error:
                raise UserError(f"{path}: cannot be read ({error.strerror})") from None
            except tomllib.TOMLDecodeError as error:
                raise UserError(f"{path}: not valid TOML: {error}") from None
            except SpecError as mistake:
                raise UserError(f"{path}: {'.'.join(map(str, mistake.path))}: {mistake.message}") from None
    if said:
        raise UserError(f"EMSWEEP_SITE={said}: is no file")
    return Site()


def enter_site(beside: Path) -> Site:
    """The site, whose cache is ours from here on: models are looked for where the jobs will look."""
    site = load_site(beside)
    use_cache(site)
    return site


COUNTS = ("seeds", "repeats")
"""Keys that say how often a config is run: set on the command line, they make another sweep, as training fields do."""
UNNAMED = ("keep", "max_device_hours")
"""Keys that `--set` may change without making another sweep of it."""
FORMS = {
    "name": "is not a name: letters, digits, `_`, `.`, `-`; never a path",
    "keep": "must be none, last, all or best:K with K of at least 1",
}


def _validated(model: type[M], data: Any) -> M:
    try:
        return model.model_validate(data)
    except ValidationError as failure:
        errors = failure.errors()
        # An unknown key explains a missing one (a typo), so it comes first; of a union's branches the deepest knows most.
        rivals = [e for e in errors if e["loc"][:1] == errors[0]["loc"][:1]]
        error = next(
            (e for e in errors if e["type"] == "extra_forbidden"),
            max(rivals, key=lambda e: (len(_place(data, e)), e["type"] == "too_short")),
        )
        path = _place(data, error)
        if error["type"] == "extra_forbidden":
            raise SpecError(path, _unknown_key(model, path)) from None
        if error["type"] == "string_pattern_mismatch" and path[0] in FORMS:
            raise SpecError(path, f"{said_as(error['input'])} {FORMS[str(path[0])]}") from None
        words = [
            e["ctx"]["expected"] for e in rivals if e["type"] == "literal_error" and e is not error and _place(data, e) == path
        ]
        raise SpecError(path, " or ".join([complaint(error), *words])) from None


def _place(data: Any, error: Any) -> Path_:
    """Where the document has an error: pydantic's location without the branches of unions, which are no keys of it."""
    path: Path_ = ()
    for part in error["loc"]:
        known = part in data if isinstance(data, dict) else isinstance(data, list) and part in range(len(data))
        if known:
            path, data = (*path, part), data[part]
    return (*path, error["loc"][-1]) if error["type"] == "missing" else path


def _unknown_key(model: type[BaseModel], path: Path_) -> str:
    """Message for an unknown key: near names among the siblings at that place."""
    name = str(path[-1])
    inner: dict[str, type[BaseModel]] = {
        "tasks": TaskFile,
        "until": Until,
        "seeds": SeedBudget,
        "evaluate": EvaluateEntry,
        "execution": Execution,
        "random": Random,
        "retries": Retries,
        "stages": Stage,
        **INNER,
    }
    siblings = next((m for part, m in inner.items() if part in path[:-1]), model).model_fields
    if model is Spec and len(path) == 1 and name in TrainingConfig.model_fields:
        return f"`{name}` is a training field: put it under `base:` or `axes:`"
    return unknown("key", name, siblings)


def _override(key: str, value: Any, data: dict[str, Any], overrides: dict[str, Any]) -> None:
    """`--set`: training fields, `seeds`, `repeats` become part of the name; execution, resources, keep and the budget do not."""
    if key in TrainingConfig.model_fields or key.startswith(PARAMS):
        try:
            overrides[key] = value if key == "prompt" else check_field(key, value, ())
        except SpecError as mistake:
            raise UserError(f"--set {key}: {mistake.message}") from None
    elif key in COUNTS:
        overrides[key] = data[key] = value
    elif key in UNNAMED:
        data[key] = value
    elif key.split(".")[0] in ("execution", "resources", "retries", "search") and "." in key:
        *sections, name = key.split(".")
        if sections == ["search"] and "search" not in data:
            raise UserError(f"--set {key}: this spec is no study: it has no `search`")
        for section in sections:
            if not isinstance(data.get(section, {}), dict):
                raise UserError(f"--set {key}: this spec's `{section}` is no mapping; edit the spec")
            data[section] = data = dict(data.get(section, {}))
        data[name] = value
        if sections[0] == "search" and key.removeprefix("search.") not in FREE:
            overrides[key] = value
    else:
        known = [*TrainingConfig.model_fields, *COUNTS, *UNNAMED, *(f"execution.{f}" for f in Execution.model_fields)]
        known += [f"retries.{f}" for f in Retries.model_fields] + [f"search.{f}" for f in Search.model_fields]
        raise UserError(f"--set {key}: {unknown('field', key, [*known, *(f'resources.{f}' for f in Resources.model_fields)])}")


def _resource_rules(spec: Spec, site: Site) -> tuple[Resources, ...]:
    """Those of stages, each over the spec's for all others; then the spec's."""
    rules = _spec_rules(spec, site)
    usual = rules[-1].model_dump(exclude={"when"}, exclude_unset=True)
    own = {name: stage.resources for name, stage in spec.stages.items() if stage.resources}
    for name, said in own.items():
        if "when" in said:
            raise SpecError(("stages", name, "resources", "when"), "belongs to the rules of the spec's own `resources`")
    for name in own:
        for field, value in condition_of(spec, name).items():
            check_field(field, value, ("stages", name, "base", field))
    stages = [
        _resources(usual, {**said, "when": condition_of(spec, name)}, ("stages", name, "resources")) for name, said in own.items()
    ]
    return (*stages, *rules)


def _spec_rules(spec: Spec, site: Site) -> tuple[Resources, ...]:
    """The spec's rules over the site's defaults. All but the last have a `when`, or some could never be reached."""
    defaults = site.slurm_defaults()
    if not isinstance(spec.resources, list):
        if "when" in spec.resources:
            raise SpecError(("resources", "when"), "belongs to a list of rules, whose last is for all others and has none")
        return (_resources(defaults, spec.resources, ("resources",)),)
    said = spec.resources or [{}]
    for i, rule in enumerate(said):
        if ("when" in rule) != (i < len(said) - 1):
            raise SpecError(("resources", i), "all rules but the last need a `when`; the last is for all others and has none")
    return tuple(_resources(defaults, rule, ("resources", i)) for i, rule in enumerate(said))


def _resources(defaults: Mapping[str, Any], said: Mapping[str, Any], path: Path_) -> Resources:
    """One rule. Raises `SpecError` for an unknown name, a wrong value, or a `when` that could never match."""
    for name in said:
        if name not in Resources.model_fields and not name.startswith("slurm_"):
            raise SpecError((*path, name), unknown("resource", name, Resources.model_fields))
    try:
        rule = Resources(**{**defaults, **said})
    except ValidationError as failure:
        error = failure.errors()[0]
        raise SpecError((*path, *error["loc"][:1]), complaint(error)) from None
    if "when" in said:
        check_rule(rule.when, (*path, "when"))
    return rule
