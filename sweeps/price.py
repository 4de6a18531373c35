"""What a sweep will cost: seconds per run from measured history where there is any, files, bytes, memory."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from em_core.config import TrainingConfig, steps_within
from em_core.journal import RunStatus, SweepDir, decode, read_lines, sweeps_under
from em_core.models import memory_estimate, param_count
from em_core.tasks import load_task
from sweeps.complaints import unknown
from sweeps.expand import Config
from sweeps.manifest import Manifest, read_manifest
from sweeps.spec import Spec
from sweeps.yamlfile import SpecError

GPU_GIB = {
    "v100-16gb": 16, "v100-32gb": 32, "a100-40gb": 40, "a100-80gb": 80, "h100-80gb": 80, "h100-94gb": 94, "h200-141gb": 140,
    "b200-180gb": 180, "l40s-48gb": 48, "l4-24gb": 24, "a10g-24gb": 24, "a6000-48gb": 48, "rtx3090-24gb": 24, "rtx4090-24gb": 24,
    "t4-16gb": 16,
}  # fmt: skip
"""Memory of the GPUs a spec can name (GiB)."""


@dataclass(frozen=True)
class Seconds:
    """Expected seconds of one run: the middle, and a range (measured: 10% to 90%; guessed: a third to threefold).

    `runs` is how many measured runs it rests on; 0 for a guess.
    """

    middle: float
    low: float
    high: float
    runs: int


TAIL = 4 << 20
"""Bytes at the end of each journal that are read for history: about a thousand short runs."""


def measured(sweep: SweepDir, configs: Mapping[str, Config]) -> dict[str, Seconds]:
    """Seconds per run by config, from the newest completed runs under the root with the same model and method.

    Runs of another length are scaled by their work: updates x completions x longest completion, plus one.
    """
    wanted = {(c.model, c.training.method) for c in configs.values()}
    rates: dict[tuple[str, str], list[float]] = {key: [] for key in wanted}
    for other in sweeps_under(sweep.root):
        theirs = read_manifest(other)
        work = {c.config_id: _work(c.training) for c in theirs.configs.values() if (c.model, c.training.method) in wanted}
        for path in other.all_journals() if work else ():
            for run_id, seconds in _newest_trained(path):
                run = theirs.runs.get(run_id)
                if run is not None and run.config_id in work:
                    c = theirs.configs[run.config_id]
                    rates[c.model, c.training.method].append(seconds / work[run.config_id])
    known: dict[tuple[str, str], Seconds] = {}
    for key, rate in rates.items():
        if rate:
            tenths = statistics.quantiles(rate, n=10, method="inclusive") if len(rate) > 1 else [rate[0]] * 9
            known[key] = Seconds(statistics.median(rate), tenths[0], tenths[-1], len(rate))
    found = {}
    for c in configs.values():
        per = known.get((c.model, c.training.method))
        if per:
            w = _work(c.training)
            found[c.config_id] = Seconds(per.middle * w, per.low * w, per.high * w, per.runs)
    return found


def _newest_trained(path: Path) -> Iterator[tuple[str, float]]:
    """(run, seconds) of the completed trainings in the last part of a journal."""
    training: set[tuple[str, int]] = set()
    for _, line in read_lines(path, max(0, path.stat().st_size - TAIL), (b'{"kind":"run_',)).lines:
        r = decode(line)
        if r is None:
            continue
        attempt = (r["run_id"], r["attempt"])
        if r["kind"] == "run_start" and r["mode"] == "train":
            training.add(attempt)
        elif r["kind"] == "run_end" and r["status"] == RunStatus.COMPLETED and attempt in training:
            yield r["run_id"], r["seconds"]


FLOPS = {"cpu": 1e10, "gpu": 5e13}
"""What a core and a GPU achieve on these models, floating-point operations per second: an order of magnitude."""


def guessed(config: Config, device: str) -> Seconds | None:
    """Seconds of a run nobody has measured: 8 operations per parameter and token. None where the size is unknown."""
    if config.training.method == "noop":
        return Seconds(0.01, 0.003, 0.03, 0)
    if not config.training.loads_model:
        return None
    count = param_count(config.training.model_name_or_path, config.training.model_revision)
    if count is None:
        return None
    middle = 1.0 + 8 * count * _work(config.training) / FLOPS[device]
    return Seconds(middle, middle / 3, middle * 3, 0)


def _work(t: TrainingConfig) -> float:
    return float(t.max_steps * t.num_generations * t.max_completion_length + 1)


def bytes_per_run(manifest: Manifest, config: TrainingConfig) -> int:
    """Bytes a run writes to its journal: measured sizes of our records, and one character per graded answer."""
    total = 700 + 330 * config.max_steps
    for _, evaluation, steps in manifest.wanted_evaluations:
        answers = len(load_task(evaluation).questions) * evaluation.num_samples
        total += len(steps_within(steps, config.max_steps)) * (330 + answers)
    return total


def memory(configs: Iterable[Config], spec: Spec) -> dict[str, dict[str, float] | None]:
    """GiB by part of the largest run of every model of the sweep; None where its size cannot be known here.

    Raises `UserError` when a run meets a GPU (named by the rule of `resources` that is its own) too small for it.
    """
    try:
        return _memory(configs, spec)
    except SpecError as mistake:
        raise spec.document.error(mistake) from None


def _memory(configs: Iterable[Config], spec: Spec) -> dict[str, dict[str, float] | None]:
    where = ("resources", "gpu")
    for rule in spec.rules:
        if rule.gpu is not None and rule.gpu not in GPU_GIB:
            raise SpecError(where, unknown("GPU", rule.gpu, GPU_GIB))
    shapes = {}
    for c in configs:
        t = c.training
        if t.loads_model:
            gpu = spec.resources_for(t.model_dump() | {"prompt": c.prompt_name}).gpu
            size = (t.num_generations, t.max_completion_length, t.dtype, len(t.prompt))
            shapes[t.model_name_or_path, t.model_revision, *size, gpu] = t, gpu
    worst: dict[str, dict[str, float] | None] = {}
    for t, gpu in shapes.values():
        model = t.model_name_or_path
        estimate = memory_estimate(model, t.model_revision, t, spec.execution)
        if gpu is not None and estimate is not None and estimate["device"] > GPU_GIB[gpu]:
            raise SpecError(
                where,
                f"{model} needs about {estimate['device']:.0f} GiB on the GPU and a {gpu} has {GPU_GIB[gpu]}: "
                "use a larger GPU, gradient_checkpointing, or a smaller per_device_train_batch_size",
            )
        known = worst.get(model)
        if known is None or (estimate and estimate["device"] > known["device"]):
            worst[model] = estimate
    return worst


def varied_fields(configs: Sequence[Config]) -> list[str]:
    """Training fields that take more than one value, in the order of their definition; the prompt by its name."""
    points = [{**c.training.flat(), "prompt": c.prompt_name} for c in configs]
    names = dict.fromkeys(name for point in points for name in point)
    return [name for name in names if len({point.get(name) for point in points}) > 1]
