"""What a sweep will cost: seconds per run from measured history where there is any, bytes, memory."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from em_core.config import TrainingConfig, steps_within
from em_core.journal import SweepDir
from em_core.models import memory_estimate, param_count
from em_core.tasks import load_task
from sweeps.complaints import unknown
from sweeps.expand import Config
from sweeps.history import Trained, answer_tokens, shape, trained
from sweeps.manifest import Manifest
from sweeps.measurements import EvaluationSteps
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

    `runs` is how many measured runs it rests on; 0 for a guess. Every worker takes `load` seconds more, once.
    `answer` is what an evaluation takes per token that its answers can have at most; None where that is unknown.
    """

    middle: float
    low: float
    high: float
    runs: int
    load: float = 0.0
    answer: float | None = None


def measured(
    sweep: SweepDir, configs: Mapping[str, Config], evaluations: Sequence[EvaluationSteps] = (), gpu: bool = False
) -> dict[str, Seconds]:
    """Seconds per run by config, from completed runs under the root with the same model and method on the same kind of device.

    Training is priced per update x completion x longest completion, evaluation per token of its longest answers, the rest
    per run, from the figures that workers record; where there are none (noop) by whole seconds per unit of training.
    Smoke runs count only where nothing longer ran.
    """
    groups: dict[tuple[str, str], list[Trained]] = {}
    for t in trained(sweep.root, {c.model for c in configs.values()}):
        if t.gpu in (None, gpu):
            groups.setdefault((t.config.model, t.config.training.method), []).append(t)
    groups = {key: [t for t in runs if not t.smoke] or runs for key, runs in groups.items()}
    answers: dict[str, list[float]] = {}  # methods train differently and answer alike
    for (model, _), runs in groups.items():
        answers.setdefault(model, []).extend(
            t.figures["eval_seconds"] / t.answer_tokens for t in runs if t.figures and t.answer_tokens
        )
    found = {}
    for c in configs.values():
        key = (c.model, c.training.method)
        if key in groups:
            own, shared = answer_tokens(evaluations, c.training)
            found[c.config_id] = _priced(groups[key], answers[c.model], c.training, own, shared)
    return found


def _priced(runs: Sequence[Trained], answers: Sequence[float], t: TrainingConfig, own: float, shared: float) -> Seconds:
    """One config's seconds from the runs of its model and method; `own` and `shared` are tokens of answers."""
    detailed = [r for r in runs if r.figures]
    if not detailed:
        low, middle, high = _tenths([r.seconds / _work(r.config.training) for r in runs])
        w = _work(t)
        return Seconds(middle * w, low * w, high * w, len(runs), answer=0.0)
    spent = [(_spent(r, "rollout_seconds", "train_seconds"), _sampled(r.config.training)) for r in detailed]
    train = [seconds / tokens for seconds, tokens in spent if tokens] or [0.0]
    rest = [(r.first, r.seconds - _spent(r, "rollout_seconds", "train_seconds", "eval_seconds")) for r in detailed]
    later = [s for first, s in rest if not first]
    per_run = _tenths(later or [0.0])
    loads = [s for first, s in rest if first]
    load = max(0.0, statistics.median(loads) - per_run[1]) if loads else 0.0
    per_answer = _tenths(answers or [0.0])
    low, middle, high = (a * _sampled(t) + b + c * own for a, b, c in zip(_tenths(train), per_run, per_answer, strict=True))
    return Seconds(middle, low, high, len(detailed), load + shared * per_answer[1], per_answer[1] if answers else None)


def _spent(r: Trained, *names: str) -> float:
    return sum(r.figures.get(name, 0.0) for name in names)


def _tenths(values: Sequence[float]) -> tuple[float, float, float]:
    """10%, middle and 90% of some numbers."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    tenths = statistics.quantiles(values, n=10, method="inclusive")
    return tenths[0], statistics.median(values), tenths[-1]


FLOPS = {"cpu": 1e10, "gpu": 5e13}
"""What a core and a GPU achieve on these models, floating-point operations per second: an order of magnitude."""


def guessed(config: Config, device: str, evaluations: Sequence[EvaluationSteps] = ()) -> Seconds | None:
    """Seconds of a run nobody has measured: 8 operations per parameter and token to train, 2 to answer.

    None where the size is unknown.
    """
    if config.training.method == "noop":
        return Seconds(0.01, 0.003, 0.03, 0, answer=0.0)
    if not config.training.loads_model:
        return None
    count = param_count(config.training.model_name_or_path, config.training.model_revision)
    if count is None:
        return None
    own, shared = answer_tokens(evaluations, config.training)
    answer = 2 * count / FLOPS[device]
    middle = 1.0 + 8 * count * _work(config.training) / FLOPS[device] + answer * own
    return Seconds(middle, middle / 3, middle * 3, 0, answer * shared, answer)


def _sampled(t: TrainingConfig) -> float:
    """Tokens that a run's training samples at most."""
    return float(t.max_steps * t.completions * t.max_completion_length)


def _work(t: TrainingConfig) -> float:
    """The same as a measure of work that is never zero."""
    return _sampled(t) + 1


def bytes_per_run(manifest: Manifest, config: TrainingConfig) -> int:
    """Bytes a run writes to its journal: measured sizes of our records, and one character per graded answer."""
    total = 700 + 330 * config.max_steps
    for _, evaluation, steps in manifest.wanted_evaluations:
        answers = len(load_task(evaluation).questions) * evaluation.num_samples
        size = 330 + answers if evaluation.measure == "accuracy" else 1500  # of logits: a histogram
        total += len(steps_within(steps, config.max_steps)) * size
    return total


Peaks = Mapping[tuple[Any, ...], float]
"""Measured memory by shape (GiB), as `history.peaks` finds it."""


def memory(configs: Iterable[Config], spec: Spec, measured: Peaks | None = None) -> dict[str, dict[str, float] | None]:
    """GiB by part of the largest run of every model of the sweep; None where its size cannot be known here.

    Where runs of that shape were measured, `measured` is among the parts, and `device` is what was measured. Raises
    `UserError` when a run meets a GPU (named by the rule of `resources` that is its own) too small for it.
    """
    try:
        return _memory(configs, spec, measured or {})
    except SpecError as mistake:
        raise spec.document.error(mistake) from None


def _memory(configs: Iterable[Config], spec: Spec, measured: Peaks) -> dict[str, dict[str, float] | None]:
    where = ("resources", "gpu")
    for rule in spec.rules:
        if rule.gpu is not None and rule.gpu not in GPU_GIB:
            raise SpecError(where, unknown("GPU", rule.gpu, GPU_GIB))
    execution = spec.execution.model_dump()
    shapes = {}
    for c in configs:
        if c.training.loads_model:
            gpu = spec.resources_for(c.training.model_dump() | {"prompt": c.prompt_name}).gpu
            shapes[shape(c.training, c.model, execution), len(c.training.prompt), gpu] = c, gpu
    worst: dict[str, dict[str, float] | None] = {}
    for c, gpu in shapes.values():
        model = c.training.model_name_or_path
        estimate = memory_estimate(model, c.training.model_revision, c.training, spec.execution)
        peak = measured.get(shape(c.training, c.model, execution))
        if peak is not None:
            estimate = {**(estimate or {}), "measured": peak, "device": peak}
        if gpu is not None and estimate is not None and estimate["device"] > GPU_GIB[gpu]:
            raise SpecError(
                where,
                f"{model} {'took' if peak else 'needs about'} {estimate['device']:.0f} GiB on the GPU and a {gpu} has "
                f"{GPU_GIB[gpu]}: use a larger GPU, gradient_checkpointing, or a smaller per_device_train_batch_size",
            )
        known = worst.get(model)
        if known is None or (estimate and estimate["device"] > known["device"]):
            worst[model] = estimate
    return worst


def varied_fields(configs: Sequence[Config]) -> list[str]:
    """Training fields that take more than one value, in the order of their definition; the prompt by its name.

    An answer comes with its prompt, and is no field of its own unless a prompt has several.
    """
    points = [{**c.training.flat(), "prompt": c.prompt_name} for c in configs]
    names = dict.fromkeys(name for point in points for name in point)
    answers = {(c.training.prompt, c.training.answer) for c in configs if c.training.answer is not None}
    if len(answers) == len({prompt for prompt, _ in answers}):
        del names["answer"]
    return [name for name in names if len({point.get(name) for point in points}) > 1]
