"""Where a spec sets its fields: each at one place, for somebody who reads it, and as a run can do it."""

from __future__ import annotations

from typing import Any

from em_core.config import TrainingConfig, reads
from em_core.known_methods import KNOWN
from sweeps.fields import check_field
from sweeps.own import is_field, read_by
from sweeps.spec import COUNTS, Spec
from sweeps.stages import refuse_chained
from sweeps.yamlfile import Path_, SpecError


def refuse_double(spec: Spec) -> None:
    """A field has one source: an axis, one zip block, or a link (arms and the command line may override the base)."""
    seen: dict[str, Path_] = {}
    sources: list[tuple[Path_, Any]] = [
        (("axes",), spec.axes),
        *((("zip", i), b) for i, b in enumerate(spec.zip)),
        (("link",), spec.link),
    ]
    for path, names in sources:
        for name in names:
            if name in seen:
                raise SpecError((*path, name), f"`{name}` is already set under `{'.'.join(map(str, seen[name]))}`")
            seen[name] = path
    for target, source in spec.link.items():
        if source in spec.link:
            raise SpecError(("link", target), f"`{source}` is a link itself: a link needs a field with a value of its own")
    for name in spec.random.fields if spec.random else ():
        if name in spec.link:
            raise SpecError(("random", "fields", name), f"`{name}` is already set under `link`")
        seen[name] = ("random", "fields")
    for arm, fields in spec.arms.items():
        for name in fields:
            if name in seen:
                raise SpecError(("arms", arm, name), f"`{name}` is already set under `{'.'.join(map(str, seen[name]))}`")
    for name in spec.base:
        if name in seen:
            raise SpecError(("base", name), f"`{name}` is also set under `{'.'.join(map(str, seen[name]))}`: keep one")


def refuse_unread(spec: Spec, methods: set[str]) -> None:
    """A field that no method of the spec reads would change nothing: a mistake. So is one that only a stage may set."""
    read = frozenset().union(*(reads(m) for m in methods))
    sources: list[tuple[Path_, Any]] = [(("base",), spec.base), (("axes",), spec.axes), (("link",), spec.link)]
    sources += [(("zip", i), block) for i, block in enumerate(spec.zip)]
    sources += [(("arms", name), fields) for name, fields in spec.arms.items()]
    if spec.random:
        sources.append((("random", "fields"), spec.random.fields))
    if spec.search:
        sources.append((("search", "space"), [n for n in spec.search.space if n not in spec.overrides]))
    sources.append(((), [n for n in spec.overrides if n not in COUNTS and not n.startswith("search.")]))
    for path, names in sources:
        refuse_chained(names, path)
        for name in names:
            if not is_field(name):
                check_field(name, None, (*path, name))
            if not read_by(name, read):
                raise SpecError((*path, name), f"nobody reads `{name}`: not a field of method {', '.join(sorted(methods))}")


def check_shares(spec: Spec, training: TrainingConfig) -> None:
    """Refuse processes and updates that cannot share a rollout equally, and processes that would each start a trainer of the
    user's."""
    where, processes, completions = ("execution", "num_processes"), spec.execution.num_processes, training.completions
    if processes > 1 and training.method == "external":
        raise SpecError(where, "a trainer of your own starts its processes itself: leave it at 1")
    if completions % processes:
        raise SpecError(where, f"{completions} completions cannot be shared equally by {processes} processes")
    if training.updates_per_rollout > 1 and completions // processes % training.steps_per_generation:
        per = " in each process" if processes > 1 else ""
        message = (
            f"{completions // processes} completions{per} cannot be shared equally by {training.steps_per_generation} updates"
        )
        raise SpecError(source_of(spec, "steps_per_generation"), message)


def check_needs(spec: Spec, training: TrainingConfig) -> None:
    """Refuse what the method cannot do, or would do under another's name."""
    known, method = KNOWN[training.method], training.method
    if known.needs_group and training.num_generations == 1:
        message = f"{method} judges a completion by the others of its prompt: it needs at least 2"
        raise SpecError(source_of(spec, "num_generations"), message)
    if (training.stop_rule == "validation_accuracy") != (training.stop_task is not None):
        message = "stop_rule validation_accuracy and stop_task go together: set both, or neither"
        raise SpecError(source_of(spec, "stop_rule" if training.stop_task is None else "stop_task"), message)
    if training.updates_per_rollout == 1 and (known.needs_ratio or (known.reads and training.epsilon_high is not None)):
        what = "epsilon_high" if training.epsilon_high is not None else "method"
        said = f"epsilon_high of {method}" if what == "epsilon_high" else method
        message = f"{said} does nothing with one update per rollout: set `steps_per_generation` or `num_iterations` above 1"
        raise SpecError(source_of(spec, what), message)


def source_of(spec: Spec, name: str) -> Path_:
    """Where the document, or the command line, sets a field, for a message."""
    if name in spec.overrides:
        return (name,)
    for path, names in ((("axes",), spec.axes), *((("zip", i), b) for i, b in enumerate(spec.zip))):
        if name in names:
            return (*path, name)
    for arm, fields in spec.arms.items():
        if name in fields:
            return ("arms", arm, name)
    return ("search", "space", name) if spec.search and name in spec.search.space else ("base", name)
