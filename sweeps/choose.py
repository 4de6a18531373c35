"""The runs a person names: a sweep, a config id or a run id, narrowed by `--where FIELD=VALUE`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from em_core.config import RUN_ID
from em_core.errors import UserError
from em_core.journal import SweepDir, sweeps_under
from sweeps.complaints import said_as, unknown
from sweeps.fields import check_rule, matches
from sweeps.manifest import Manifest, Run, find_run, find_sweep, read_manifest
from sweeps.yamlfile import SpecError, read_scalar


@dataclass(frozen=True)
class Chosen:
    """Runs of one sweep that a person named, with the manifest they were found in."""

    sweep: SweepDir
    manifest: Manifest
    runs: set[str]


def choose(root: Path, target: str, where: Sequence[str] = ()) -> list[Chosen]:
    """The runs of a sweep, a config or a run, in every sweep that wants them; with `where`, those that match all of it.

    Raises `UserError` when there are none.
    """
    found = _named(root, target)
    if not where:
        return found
    rule = _rule(where, [c.manifest for c in found])
    narrowed = [Chosen(c.sweep, c.manifest, {r for r in c.runs if _fits(c.manifest, c.manifest.runs[r], rule)}) for c in found]
    if not any(c.runs for c in narrowed):
        raise UserError(f"no run of `{target}` has {' and '.join(where)}")
    return [c for c in narrowed if c.runs]


def _named(root: Path, target: str) -> list[Chosen]:
    sweep = SweepDir(root, target)
    if target and "/" not in target and sweep.manifest.is_file():
        manifest = read_manifest(sweep)
        return [Chosen(sweep, manifest, set(manifest.runs))]
    if RUN_ID.fullmatch(target):
        return [Chosen(s, read_manifest(s), {target}) for s in find_run(root, target)]
    found = []
    for other in sweeps_under(root):
        manifest = read_manifest(other)
        runs = {r.run_id for r in manifest.runs.values() if r.config_id == target}
        if runs:
            found.append(Chosen(other, manifest, runs))
    if not found:
        find_sweep(root, target)  # says what there is
    return found


def _rule(where: Sequence[str], manifests: Iterable[Manifest]) -> dict[str, list[Any]]:
    """Field -> values of which any will do. Raises `UserError` for a field or value that no run can have."""
    rule: dict[str, list[Any]] = {}
    for item in where:
        name, equals, text = item.partition("=")
        if not equals or not name.strip():
            raise UserError(f"--where {item}: write FIELD=VALUE")
        try:
            value = read_scalar(text)
        except UserError:
            raise UserError(f"--where {item}: {text!r} is not a value") from None
        rule.setdefault(name.strip(), []).extend(value if isinstance(value, list) else [value])
    manifests = list(manifests)
    known: dict[str, set[Any]] = {
        "arm": {arm for m in manifests for r in m.runs.values() for arm in r.arms if arm is not None},
        "prompt": {c.prompt_name for m in manifests for c in m.configs.values()},
        "seed": {r.seed for m in manifests for r in m.runs.values()},
        "repeat": {r.repeat for m in manifests for r in m.runs.values()},
    }
    for name, values in rule.items():
        for value in values:
            if isinstance(value, dict | list):
                raise UserError(f"--where {name}: {said_as(value)} is no single value")
            if name in known:
                if value not in known[name]:
                    raise UserError(f"--where: {unknown(name, value, sorted(str(v) for v in known[name]))}")
            else:
                _check(name, value)
    return rule


def _check(name: str, value: Any) -> None:
    try:
        check_rule({name: value}, (name,))
    except SpecError as mistake:
        raise UserError(f"--where {name}: {mistake.message}") from None


def _fits(manifest: Manifest, run: Run, rule: Mapping[str, list[Any]]) -> bool:
    config = manifest.configs[run.config_id]
    fields = {**config.training.model_dump(), "prompt": config.prompt_name, "seed": run.seed, "repeat": run.repeat}
    return any(matches(rule, {**fields, "arm": arm}) for arm in run.arms or [None])
