"""What a sweep wants, on disk: append-only batches under the sweep's lock. Nothing is ever removed."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from em_core.config import Evaluation, TrainingConfig, run_id
from em_core.errors import UserError
from em_core.journal import Record, SweepDir, append_batch, read_records, sweeps_under
from sweeps.complaints import unknown
from sweeps.expand import Config, Expansion, Wanted
from sweeps.measurements import EvaluationSteps
from sweeps.prompts import store_sets

LEFT_THE_SPEC = "no longer in the spec"
"""Reason of the exclusion marks that an edited spec makes, and that it takes back when the run returns."""
BACK_IN_THE_SPEC = "back in the spec"
SEED_BUDGET, CONFIRM, STUDY = "seed-budget", "confirm", "study"
"""Why runs are wanted that no spec names: a look found that a config needs them, they confirm what was chosen, or a study asked
for them."""
EXPLORE, PARENT = "explore", "parent"
"""The stage of all runs but those that confirm, and of those from which these start."""


@dataclass
class Run:
    """A run that some batch asked for. `arms` are all arms that want it (None: outside any arm); `stage` as in the records.

    A `repeat` above 0 is the run of that seed done again: it tells the hardware's noise and is no replicate.
    """

    run_id: str
    config_id: str
    seed: int
    why: str
    stage: str
    arms: list[str | None]
    repeat: int = 0


@dataclass
class Manifest:
    """Everything wanted of a sweep so far, as one reading of the file gives it."""

    configs: dict[str, Config] = field(default_factory=dict)
    runs: dict[str, Run] = field(default_factory=dict)
    evaluations: dict[str, Evaluation] = field(default_factory=dict)
    measured: list[tuple[str, tuple[int | Literal["last"], ...]]] = field(default_factory=list)
    excluded: dict[str, str] = field(default_factory=dict)
    forgiven: dict[str, int] = field(default_factory=dict)
    study: Record = field(default_factory=dict)
    trials: dict[int, Record] = field(default_factory=dict)
    told: dict[int, Record] = field(default_factory=dict)
    spec: Record = field(default_factory=dict)

    @property
    def wanted_evaluations(self) -> list[EvaluationSteps]:
        """What the newest spec wants measured."""
        return [(i, self.evaluations[i], steps) for i, steps in self.measured if i in self.evaluations]

    @property
    def n_trials(self) -> int:
        """How many of a study's trials were asked for, without points that its spec excludes: those use up no budget."""
        return len(self.trials) - self._n_excluded

    @property
    def n_told(self) -> int:
        """How many of these are over."""
        return len(self.told) - self._n_excluded

    @property
    def answered(self) -> bool:
        """Whether a study has a complete trial: without one it says of no config what it is worth."""
        return any(r["state"] == "complete" for r in self.told.values())

    @property
    def _n_excluded(self) -> int:
        return sum(r["state"] == "excluded" for r in self.told.values())

    def take(self, r: Mapping[str, Any]) -> None:
        """Take in one record."""
        match r["kind"]:
            case "sweep":
                self.spec = dict(r)
                self.measured = [(i, tuple(steps)) for i, steps in r["evaluations"]]
            case "config":
                training = TrainingConfig.model_construct(**r["training"])
                self.configs[r["config_id"]] = Config(r["config_id"], r["model"], r["prompt_name"], training)
            case "evaluation":
                self.evaluations[r["eval_id"]] = Evaluation(**r["evaluation"])
            case "run":
                new = Run(r["run_id"], r["config_id"], r["seed"], r["why"], r["stage"], [], r.get("repeat", 0))
                run = self.runs.setdefault(r["run_id"], new)
                run.arms.append(r["arm"])
            case "exclude":
                self.excluded[r["run_id"]] = r["reason"]
            case "include":
                self.excluded.pop(r["run_id"], None)
            case "retry":
                self.forgiven[r["run_id"]] = r["forgiven"]
            case "study":
                self.study = dict(r)
            case "trial":
                self.trials[r["number"]] = dict(r)
            case "told":
                self.told[r["number"]] = dict(r)


def read_manifest(sweep: SweepDir) -> Manifest:
    """Read a sweep's manifest; an absent one is empty."""
    found = Manifest()
    for r in read_records(sweep.manifest):
        found.take(r)
    return found


Batch = list[tuple[str, Mapping[str, Any]]]


def additions(before: Manifest, expansion: Expansion, why: str, spec: Mapping[str, Any]) -> Batch:
    """What is to be appended so that the manifest wants `expansion`; nothing where it already does. Raises `UserError` for
    a sweep that was imported.

    For `why` "spec" the expansion is the whole of what the spec wants: runs of earlier specs that it no longer names
    are marked excluded, and marked included again when they come back. Runs that confirm are never the spec's.
    """
    refuse_imported(before)
    now = time.time()
    batch: Batch = []
    said = {"sweep": expansion.sweep, **spec, "evaluations": [[i, list(steps)] for i, _, steps in expansion.evaluations]}
    for eval_id, evaluation, steps in expansion.evaluations:
        if eval_id not in before.evaluations:
            batch.append(("evaluation", {"eval_id": eval_id, "evaluation": evaluation.model_dump(), "steps": list(steps)}))
    if any(before.spec.get(k) != v for k, v in said.items()):
        batch.append(("sweep", {"t": now, **said}))
    for c in expansion.configs:
        # Also where the same model moved to another folder: jobs load it from where it is now.
        if before.configs.get(c.config_id) != c:
            fields = {"config_id": c.config_id, "model": c.model, "prompt_name": c.prompt_name}
            batch.append(("config", {**fields, "training": c.training.model_dump()}))
    known = {(r.run_id, arm) for r in before.runs.values() for arm in r.arms}
    parents = missing_parents(before, expansion.runs)
    for stage, runs in ((PARENT, parents), (CONFIRM, expansion.runs)):
        for w in runs:
            if (w.run_id, w.arm) not in known:
                known.add((w.run_id, w.arm))  # two trials of a study may propose the same config at once
                who = {"run_id": w.run_id, "config_id": w.config.config_id, "seed": w.seed, "repeat": w.repeat, "arm": w.arm}
                batch.append(("run", {**who, "stage": stage if why == CONFIRM else EXPLORE, "why": why, "t": now}))
    if why == "spec":
        asked = asked_by(before, expansion)
        for run in before.runs.values():
            if run.why in ("spec", SEED_BUDGET) and run.run_id not in asked and run.run_id not in before.excluded:
                batch.append(("exclude", {"run_id": run.run_id, "reason": LEFT_THE_SPEC, "t": now}))
        for run_id, reason in before.excluded.items():
            if reason == LEFT_THE_SPEC and run_id in asked:
                batch.append(("include", {"run_id": run_id, "reason": BACK_IN_THE_SPEC, "t": now}))
    return batch


def refuse_imported(manifest: Manifest) -> None:
    """Raise `UserError` where a sweep holds results of another tool: nothing of it can be trained here."""
    if manifest.spec.get("imported"):
        name = manifest.spec["sweep"]
        raise UserError(f"{name} holds imported results, which cannot be trained here; a sweep of your own needs another name")


def missing_parents(before: Manifest, wanted: Collection[Wanted]) -> list[Wanted]:
    """The runs that children among `wanted` start from and that nobody asked for yet, those furthest up first.

    A seed budget or a confirmation asks for a seed of some config, and knows nothing of chains.
    """
    asked = {w.run_id for w in wanted} | before.runs.keys()
    arms = {r.config_id: r.arms[0] for r in before.runs.values()}
    found: dict[str, Wanted] = {}
    for w in wanted:
        config, above = w.config, []
        while config.training.parent and (parent := before.configs.get(config.training.parent)):
            who = (run_id(parent.config_id, w.seed, w.repeat), parent, w.seed, arms.get(parent.config_id), w.repeat)
            above.append(Wanted(*who))
            config = parent
        found |= {p.run_id: p for p in reversed(above) if p.run_id not in asked}
    return list(found.values())


def asked_by(manifest: Manifest, expansion: Expansion) -> set[str]:
    """The runs that an expansion asks for. A seed budget asks for all seeds below its `max` that its configs have got;
    repeats are those that the spec names, of the seeds that every config gets."""
    asked = {w.run_id for w in expansion.runs}
    if expansion.budget:
        configs, most = {c.config_id for c in expansion.configs}, expansion.budget.max
        runs = manifest.runs.values()
        asked |= {r.run_id for r in runs if r.config_id in configs and r.seed < most and r.stage == EXPLORE and not r.repeat}
    return asked


def extend(sweep: SweepDir, expansion: Expansion, why: str, spec: Mapping[str, Any], known: Manifest | None = None) -> Manifest:
    """Make the manifest want `expansion` too, and return it. The caller holds the sweep's lock; one that has held it since it
    read the manifest may say what it `known` of it."""
    manifest = known or read_manifest(sweep)
    batch = additions(manifest, expansion, why, spec)
    store_sets(sweep.prompts, expansion.prompt_sets)  # before anything names them
    append_batch(sweep.manifest, batch)
    for kind, fields in batch:
        manifest.take({"kind": kind, **fields})
    return manifest


def find_sweep(root: Path, name: str) -> SweepDir:
    """The sweep of that name under `root`. Raises `UserError` with the nearest name."""
    sweep = SweepDir(root, name)
    if not name or "/" in name or not sweep.manifest.is_file():
        known = [s.sweep for s in sweeps_under(root)]
        if not known:
            raise UserError(f"there is no sweep `{name}`: {root} holds none yet (`emsweep run SPEC` makes one)")
        raise UserError(f"{unknown('sweep', name, known)}")
    return sweep


def find_run(root: Path, run_id: str) -> list[SweepDir]:
    """The sweeps that want a run (a run is global under its root). Raises `UserError` when none does."""
    needle = run_id.encode()
    found = [s for s in sweeps_under(root) if needle in s.manifest.read_bytes() and run_id in read_manifest(s).runs]
    if not found:
        form = "a run is CONFIG_ID-sSEED or CONFIG_ID-sSEED-rREPEAT"
        raise UserError(f"no sweep under {root} has a run `{run_id}` ({form}; `emsweep sql` lists them)")
    return found
