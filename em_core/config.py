"""What a run is: its fields, its identity, and what each method reads. Never imports torch.

Three kinds of field exist, and every field is exactly one of them:

* *training* fields (`TrainingConfig`) change the weights and make `config_id`;
* *measurement* fields (`Evaluation`) say what is measured and make `eval_id`; they never retrain anything;
* *execution* fields (`Execution`) say how the work is done; they are recorded with the attempt and hashed nowhere.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Scalar = str | int | float | bool | None

PARAMS = "params."
"""How a spec begins the name of a field that only a trainer of one's own knows."""


class Strict(BaseModel):
    """A frozen model that refuses unknown keys, wrong types and non-finite numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class TrainingConfig(Strict):
    """Everything that changes the weights of a run, except its seed. Names are those of TRL and transformers."""

    model_name_or_path: str = Field(
        min_length=1,
        description="Model: `miniature` (shipped), a folder with a Hugging Face checkpoint, or a Hub id. `external`: any text.",
    )
    model_revision: str | None = Field(None, description="Hub revision (branch, tag or commit); none: the default branch.")
    method: str = Field(
        "em", description="What is optimized: `em`, `rent`, `noop` (trains nothing), or `external` (by `command`)."
    )
    prompt: str = Field(
        min_length=1,
        description="The prompt's text. In a spec: a shipped prompt's name, {text: ...} or {file: ..., column: ..., row: ...}.",
    )
    chat_template: Literal["auto", "none"] = Field(
        "auto",
        description="`auto`: the prompt is one user turn of the tokenizer's chat template where it has one; `none`: raw text.",
    )
    dtype: Literal["auto", "bfloat16", "float32"] = Field(
        "auto",
        description="Compute precision. `auto`: bfloat16 on a GPU that has it, else float32. Master weights are always float32.",
    )
    num_generations: int = Field(64, ge=1, description="Completions sampled per step (count).")
    max_completion_length: int = Field(512, ge=1, description="Longest completion (tokens).")
    temperature: float = Field(0.5, gt=0, description="Sampling temperature of the rollout (dimensionless, > 0).")
    top_p: float = Field(0.95, gt=0, le=1, description="Nucleus sampling: probability mass kept (0 < p <= 1).")
    top_k: int = Field(50, ge=0, description="Sample among the k likeliest tokens (count; 0: all).")
    repetition_penalty: float = Field(1.15, gt=0, description="Penalty on tokens already present (factor; 1: none).")
    loss_temperature: float = Field(
        0.5, gt=0, description="Temperature of the softmax whose entropy is minimised (dimensionless)."
    )
    learning_rate: float = Field(2e-5, ge=0, description="AdamW learning rate, constant (per optimizer step).")
    weight_decay: float = Field(0.01, ge=0, description="AdamW decoupled weight decay (per optimizer step).")
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="AdamW decay of the first moment (dimensionless).")
    adam_beta2: float = Field(0.999, ge=0, lt=1, description="AdamW decay of the second moment (dimensionless).")
    adam_epsilon: float = Field(1e-8, gt=0, description="AdamW epsilon (dimensionless).")
    max_grad_norm: float = Field(1.0, ge=0, description="Gradient clipping by global L2 norm (0: off).")
    max_steps: int = Field(10, ge=0, description="Optimizer updates (count).")
    kl_coef: float = Field(0.0, ge=0, description="Weight of the KL divergence to the base model (nats).")
    command: str | None = Field(
        None, min_length=1, description="How your own trainer is started (shell words; files are relative to the spec)."
    )
    params: dict[str, Scalar] = Field(
        {}, description="What your own trainer reads besides; in a spec `params.NAME: value` (in its own units)."
    )

    @property
    def loads_model(self) -> bool:
        """True where a run loads `model_name_or_path`; a rehearsal and a trainer of one's own do not."""
        return self.method not in ("noop", "external")

    def flat(self) -> dict[str, Scalar]:
        """Every field, each of `params` under the name it has in a spec: `params.NAME`."""
        fields = self.model_dump()
        return {k: v for k, v in fields.items() if k != "params"} | {f"{PARAMS}{k}": v for k, v in self.params.items()}


class Evaluation(Strict):
    """One measurement: a task at one temperature. `eval_id` names it; the steps at which it is taken do not."""

    task: str = Field(description="Name of a built-in task, or the path of a jsonl file of questions.")
    task_key: str = Field("", description="What the task is: `name@version`, or `sha256:...` of the file. Set by `expand`.")
    question_field: str | None = Field(None, description="jsonl: field that holds the question (none: recognised).")
    answer_field: str | None = Field(None, description="jsonl: field that holds the gold answer (none: recognised).")
    temperature: float = Field(0.0, ge=0, description="Sampling temperature (0: greedy).")
    top_p: float = Field(1.0, gt=0, le=1, description="Nucleus sampling: probability mass kept (0 < p <= 1).")
    num_samples: int = Field(1, ge=1, description="Answers sampled per question (count).")
    max_completion_length: int | None = Field(None, ge=1, description="Longest answer (tokens; none: the task's own).")
    limit: int | None = Field(None, ge=1, description="Only the first so many questions (none: all).")

    def eval_id(self) -> str:
        """12 hex digits that name this measurement; a new field with a default changes no id."""
        defaults = {name: f.default for name, f in type(self).model_fields.items()}
        said = {k: canonical(v) for k, v in self.model_dump().items() if v != defaults[k] and k != "task"}
        return _digest({"evaluation": EVALUATION_VERSION, **said})


EVALUATION_VERSION = 1
"""Bumped when sampling, extraction or grading changes what a stored score means."""

Keep = str
"""`none`, `last`, `all`, or `best:K`: which checkpoints of a run stay on disk."""


class Execution(Strict):
    """How a run is carried out. Recorded with each attempt, part of no id."""

    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Where to train. `auto`: the GPU when there is one.")
    per_device_train_batch_size: int = Field(
        0,
        ge=0,
        description="Completions per forward/backward pass (micro-batch; 0: all). The loss stays the mean over all tokens.",
    )
    per_device_eval_batch_size: int = Field(64, ge=1, description="Questions answered at once (count).")
    gradient_checkpointing: bool = Field(False, description="Recompute activations in the backward pass to save memory.")
    deterministic: bool = Field(False, description="Bit-identical runs on a GPU, slower (a CPU always is).")
    num_processes: int = Field(1, ge=1, description="Processes that train one run together, each on a GPU of its own (count).")
    num_machines: int = Field(1, ge=1, description="Machines (Slurm nodes) over which the processes are spread equally (count).")
    fsdp: bool = Field(False, description="Spread the weights over the processes (FSDP2), for models too large for one GPU.")
    save_steps: int = Field(
        0, ge=0, description="Write a state that a killed run goes on from, every so many updates (count; 0: never)."
    )
    threads: int = Field(1, ge=1, description="CPU threads per run (count). Set from resources.cpus_per_run.")


@dataclass(frozen=True)
class Batches:
    """How many completions are sampled, trained on, and how many questions answered at once (counts)."""

    rollout: int
    train: int
    evaluation: int


def batches(config: TrainingConfig, execution: Execution, halvings: int) -> Batches:
    """The batches of a process, halved `halvings` times but never below 1: less memory, the same numbers but for rounding."""
    rollout = config.num_generations // execution.num_processes
    train = min(execution.per_device_train_batch_size or rollout, rollout)
    return Batches(*(max(1, size >> halvings) for size in (rollout, train, execution.per_device_eval_batch_size)))


def can_halve(config: TrainingConfig, execution: Execution, halvings: int) -> bool:
    """Whether one halving more than `halvings` would make a batch of the run smaller."""
    return batches(config, execution, halvings + 1) != batches(config, execution, halvings)


@dataclass(frozen=True)
class Method:
    """What the planner must know of a method without importing torch.

    `version` is part of every id made with it: bump it when a default or the meaning of a field changes.
    `reads` are the training fields that influence its weights; the others never enter an id.
    """

    version: int
    reads: frozenset[str]


_ALWAYS = {"model_name_or_path", "model_revision", "method"}
_IN_THE_KEY = _ALWAYS | {"command"}
"""Fields that an id holds in another form: the method with its version, the rest as the model's key."""
_ROLLOUT = {
    "prompt", "chat_template", "dtype", "num_generations", "max_completion_length", "temperature", "top_p", "top_k",
    "repetition_penalty",
}  # fmt: skip
_OPTIMIZER = {
    "learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "max_steps",
}  # fmt: skip

METHODS: dict[str, Method] = {
    "noop": Method(1, frozenset(TrainingConfig.model_fields)),
    "em": Method(1, frozenset(_ALWAYS | _ROLLOUT | _OPTIMIZER | {"loss_temperature"})),
    "rent": Method(1, frozenset(_ALWAYS | _ROLLOUT | _OPTIMIZER | {"kl_coef"})),
    "external": Method(1, frozenset(TrainingConfig.model_fields)),
}


def canonical(value: Scalar) -> Scalar:
    """The value as it is hashed: floats are rounded to 12 significant digits, so 0.1 + 0.2 is 0.3."""
    if isinstance(value, float) and math.isfinite(value):
        return float(f"{value:.12g}")
    return value


def _hashed(value: Scalar | Mapping[str, Scalar]) -> Any:
    """A field as it is hashed. Of `params`, whose types nobody declares, 1.0 and 1 are the same."""
    if isinstance(value, Mapping):
        params = {k: canonical(v) for k, v in value.items()}
        return {k: int(v) if isinstance(v, float) and v.is_integer() else v for k, v in params.items()}
    return canonical(value)


def config_id(config: TrainingConfig, model_key: str) -> str:
    """12 hex digits that name the experiment: the method, its version, the model and every non-default field it reads.

    `model_key` is what the model *is* (`hub:ID@REVISION` or `sha256:...` of its files), never its path, so that a
    moved folder keeps its runs and another model under the same path does not inherit them. Of a trainer of one's own
    it is the command as the spec writes it (`em_core.models.external_key`).
    """
    method = METHODS[config.method]
    fields = TrainingConfig.model_fields
    said: dict[str, Any] = {}
    for name in sorted(method.reads - _IN_THE_KEY):
        value = _hashed(getattr(config, name))
        if value != _hashed(fields[name].default):
            said[name] = value
    return _digest({"method": config.method, "version": method.version, "model": model_key, "training": said})


def run_id(config: str, seed: int) -> str:
    """`<config_id>-s<seed>`: a run's name, unique under one root."""
    return f"{config}-s{seed}"


def _digest(payload: Mapping[str, Any]) -> str:
    text = json.dumps(payload, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class RunRequest:
    """What a worker is asked to do: train a run, or (`mode` "eval") only measure checkpoints that were kept.

    `evaluations` holds (eval_id, evaluation, steps); steps are optimizer updates, 0 is the base model.
    `checkpoints` is the run's own folder; `step-N` folders below it are normal Hugging Face checkpoints.
    `halvings` says how often its batches are halved, after so many attempts that ran out of GPU memory.
    """

    run_id: str
    config_id: str
    seed: int
    attempt: int
    mode: Literal["train", "eval"]
    config: TrainingConfig
    evaluations: tuple[tuple[str, Evaluation, tuple[int, ...]], ...]
    keep: Keep
    checkpoints: str
    halvings: int = 0

    def as_json(self) -> dict[str, Any]:
        return {
            **{k: getattr(self, k) for k in _REQUESTED},
            "halvings": self.halvings,
            "config": self.config.model_dump(),
            "evaluations": [[i, e.model_dump(), list(s)] for i, e, s in self.evaluations],
        }

    @classmethod
    def from_json(cls, d: Mapping[str, Any]) -> RunRequest:
        return cls(
            **{k: d[k] for k in _REQUESTED},
            halvings=d.get("halvings", 0),
            config=TrainingConfig(**d["config"]),
            evaluations=tuple((i, Evaluation(**e), tuple(s)) for i, e, s in d["evaluations"]),
        )


_REQUESTED = ("run_id", "config_id", "seed", "attempt", "mode", "keep", "checkpoints")


@dataclass(frozen=True)
class Outcome:
    """How a run ended, as the trainer sees it: `completed`, `diverged` (a non-finite loss is an outcome, not an error), or
    `interrupted`: asked to stop, it saved its state."""

    status: Literal["completed", "diverged", "interrupted"]
    steps: int
    message: str = ""
    figures: Mapping[str, float] | None = None


def steps_within(steps: Sequence[int | Literal["last"]], max_steps: int) -> tuple[int, ...]:
    """The steps of an evaluation that a run of `max_steps` updates reaches, ascending; `last` is its last."""
    return tuple(sorted({max_steps if s == "last" else s for s in steps if s == "last" or s <= max_steps}))
