"""`emsweep smoke`: one step and one evaluation batch of each distinct shape, as a sweep of its own that prices the real one.

What is written is a spec like any other (runs/NAME.smoke/spec.yaml), so everything that reads sweeps knows what to do with
it. Each shape has a resource rule of its own, so each is a job of its own: its peak memory is its own, too.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from em_core.config import CHAINED, Decoding, Evaluation, TrainingConfig, reads
from em_core.journal import SweepDir
from em_core.prompts import PROMPTS, is_set, set_file
from em_core.tasks import BUILT_IN, EXTERNAL
from sweeps import history
from sweeps.expand import Config, Expansion, expand
from sweeps.own import read_by
from sweeps.prompts import resolve_prompt, store_sets
from sweeps.resources import Resources
from sweeps.site import Site
from sweeps.spec import Spec
from sweeps.written import write_spec

LONGEST = 80 - len(history.SMOKE)
"""Characters that the name of a spec leaves for the name of its sweep."""
NAMING = ("model_name_or_path", "model_revision", "method", "num_generations", "max_completion_length", "dtype", "kl_coef")
"""Training fields by which a person tells shapes apart."""


@dataclass(frozen=True)
class Shape:
    """What one shape of a sweep took: seconds per update and per evaluation batch, seconds to load, GiB at the peak.

    `configs` is how many configs of the sweep have it. Figures are None where the method records none (noop).
    """

    fields: dict[str, Any]
    configs: int
    status: str
    message: str
    device: str
    load_seconds: float | None
    step_seconds: float | None
    eval_seconds: float | None
    peak_gib: float | None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def smoke_name(sweep: str) -> str:
    """The smoke sweep's name: the sweep's, without what only overrides bring (`+`, `=`), and `.smoke`."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", sweep)[:LONGEST] + history.SMOKE


def shapes(spec: Spec, expansion: Expansion) -> list[list[Config]]:
    """Configs of one shape together: same memory, time per step and resources. The longest prompt comes first."""
    groups: dict[Any, list[Config]] = {}
    execution = spec.execution.model_dump()
    for c in expansion.configs:
        key = history.shape(c.training, c.model, execution), _rule(spec, c).model_dump_json()
        groups.setdefault(key, []).append(c)
    return [sorted(group, key=lambda c: -len(c.training.prompt)) for group in groups.values()]


def smoke_spec(spec: Spec, expansion: Expansion, folder: Path) -> dict[str, Any]:
    """The smoke sweep as the data of a spec: an arm and a resource rule per shape. `folder` is that of prompt sets."""
    chosen = [group[0] for group in shapes(spec, expansion)]
    arms = {f"shape-{i}": _fields(c, folder) for i, c in enumerate(chosen, 1)}
    rules = [{"when": _when(c, folder), **_rule(spec, c).model_dump(exclude={"when"}, exclude_none=True)} for c in chosen]
    batch = spec.execution.per_device_eval_batch_size
    return {
        "name": smoke_name(expansion.sweep),
        "description": f"One step and one evaluation batch of each shape of {expansion.sweep}.",
        "arms": arms,
        "seeds": [expansion.runs[0].seed],
        "evaluate": [_entry(e, batch) for _, e, _ in expansion.evaluations],
        "resources": [*rules, {}],
        "execution": spec.execution.model_dump(exclude={"threads"}),
    }


def write_smoke(spec: Spec, root: Path, site: Site) -> Spec:
    """Write the smoke sweep's spec beside its records and load it as any spec is loaded."""
    expansion = expand(spec)
    folder = SweepDir(root, expansion.sweep).prompts
    store_sets(folder, expansion.prompt_sets)
    data = smoke_spec(spec, expansion, folder)
    return write_spec(data, root, site, spec.document.path.parent, "emsweep smoke")


def _rule(spec: Spec, c: Config) -> Resources:
    return spec.resources_for(c.training.model_dump() | {"prompt": c.prompt_name})


def _fields(c: Config, folder: Path) -> dict[str, Any]:
    """What an arm says to get this config with a single update."""
    usual = {name: f.default for name, f in TrainingConfig.model_fields.items()}
    read = reads(c.training.method)
    said = {k: v for k, v in c.training.flat().items() if read_by(k, read) and v != usual.get(k) and k not in CHAINED}
    own = c.training.method == "external"  # is told its answer as a field, not with a prompt that it may know otherwise
    prompt = _prompt(c, folder, None if own else c.training.answer)
    said = said if own else {k: v for k, v in said.items() if k != "answer"}
    return said | {"method": c.training.method, "prompt": prompt, "max_steps": 1}


def _prompt(c: Config, folder: Path, answer: str | None) -> str | dict[str, str]:
    """The config's prompt as a spec says it."""
    shipped = PROMPTS.get(c.prompt_name)
    if shipped is not None and shipped.text == c.training.prompt and answer in (None, shipped.answer):
        return c.prompt_name
    if is_set(c.training.prompt):
        return {"set": str(set_file(folder, c.training.prompt))}
    return {"text": c.training.prompt, **({"answer": answer} if answer is not None else {})}


def _when(c: Config, folder: Path) -> dict[str, Any]:
    """A rule's condition that this config alone meets."""
    said = _fields(c, folder)
    said["prompt"] = resolve_prompt(said["prompt"], folder).name if isinstance(said["prompt"], dict) else said["prompt"]
    return {k: v for k, v in said.items() if v is not None}


def _entry(e: Evaluation, batch: int) -> dict[str, Any]:
    """An entry of `evaluate` for one batch of answers, at the end."""
    limit = max(1, math.ceil(batch / e.num_samples))
    task: Any = e.task
    if e.task not in BUILT_IN and not e.task_key.startswith(EXTERNAL):
        names = {"question": e.question_field, "answer": e.answer_field}
        task = {"file": e.task, **{k: v for k, v in names.items() if v is not None}}
    said = {"temperature", "top_p", "num_samples", "max_completion_length", "template", "system", "decoding"}
    said |= {name for name in Decoding.model_fields if name.startswith(f"{e.decoding}_")}
    rest = e.model_dump(include=said, exclude_none=True) | {"stop": list(e.stop)}
    return {"tasks": [task], "steps": ["last"], **rest, "limit": limit if e.limit is None else min(limit, e.limit)}


def measured_shapes(spec: Spec, expansion: Expansion, root: Path, smoke: Expansion) -> list[Shape]:
    """What the smoke sweep found, a shape each, in the order of its arms."""
    from sweeps.observe import Observer

    sweep = SweepDir(root, smoke.sweep)
    attempts = {a.run_id: a for t in Observer(sweep).tries() for a in t.attempts}
    groups = shapes(spec, expansion)
    names = [n for n in NAMING if len({getattr(g[0].training, n) for g in groups}) > 1]
    found = []
    for group, wanted in zip(groups, smoke.runs, strict=True):
        attempt = attempts.get(wanted.run_id)
        end = (attempt.end if attempt else None) or {}
        figures = end.get("figures") or {}
        step = figures.get("rollout_seconds", 0.0) + figures.get("train_seconds", 0.0)
        evaluated = figures.get("eval_seconds", 0.0)
        found.append(
            Shape(
                {"model_name_or_path": group[0].training.model_name_or_path}
                | {n: getattr(group[0].training, n) for n in (*names, "num_generations", "max_completion_length")},
                len(group),
                str(end.get("status", "not run")),
                end.get("message", ""),
                attempt.start.get("device", "none") if attempt else "none",
                end["seconds"] - step - evaluated if figures else None,
                step if figures else None,
                evaluated if figures and expansion.evaluations else None,
                figures["peak_memory_mb"] / 1024 if "peak_memory_mb" in figures else None,
            )
        )
    return found


def print_shapes(found: Sequence[Shape], console: Console) -> None:
    """The table for a person."""
    from analysis.tables import text_table

    rows = [
        {
            **s.fields, "configs": s.configs, "status": s.status, "device": s.device, "load s": _short(s.load_seconds),
            "s/step": _short(s.step_seconds), "s/eval batch": _short(s.eval_seconds), "peak GiB": _short(s.peak_gib),
        }
        for s in found
    ]  # fmt: skip
    for line in text_table(rows):
        console.print(line, soft_wrap=True, markup=False)
    for s in found:
        if s.message:
            console.print(f"{s.fields}: {s.message}", soft_wrap=True, markup=False)


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.3g}")
