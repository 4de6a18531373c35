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
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from em_core.known_methods import KNOWN

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
    parent: str | None = Field(
        None, description="Config whose runs it goes on from, seed by seed; set by `stages:` (none: the model)."
    )
    from_step: int = Field(
        0, ge=0, description="The parent's step whose weights it starts from (optimizer updates; 0: the model)."
    )
    method: str = Field(
        "em",
        description="What is optimized: a method of docs/methods.md (`em`, `grpo`, ...), `noop` (trains nothing), or `external` "
        "(by `command`).",
    )
    prompt: str = Field(
        min_length=1,
        description="The prompt's text, or `set:DIGEST` of several. In a spec: a shipped name, {text: ..., answer: ...}, "
        "{file: ..., column: ..., answer_column: ..., row: ...}, {set: ..., limit: ...}; as an axis also {table: ..., top: ...}.",
    )
    answer: str | None = Field(
        None, min_length=1, description="Gold answer of the prompt, for rewards that need one; comes with the prompt."
    )
    chat_template: Literal["auto", "none"] = Field(
        "auto",
        description="`auto`: the prompt is one user turn of the tokenizer's chat template where it has one; `none`: raw text.",
    )
    dtype: Literal["auto", "bfloat16", "float32"] = Field(
        "auto",
        description="Compute precision. `auto`: bfloat16 on a GPU that has it, else float32. Master weights are always float32.",
    )
    prompts_per_step: int = Field(1, ge=1, description="Prompts that a rollout takes from a set (count).")
    num_generations: int = Field(64, ge=1, description="Completions sampled per prompt (count).")
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
    stop_rule: Literal["none", "entropy_floor", "entropy_slope", "validation_accuracy"] = Field(
        "none", description="What ends a run before max_steps (docs/methods.md); its weights then stay as they are."
    )
    stop_threshold: float = Field(
        0.0,
        ge=0,
        description="Of the stop rule: share of the first update's entropy (0..1), or the least gain of accuracy (0..1).",
    )
    stop_patience: int = Field(1, ge=1, description="Of the stop rule: updates that it looks back (count).")
    stop_task: str | None = Field(
        None, min_length=1, description="Validation questions of `validation_accuracy`: a built-in task, or a file of questions."
    )
    stop_task_key: str | None = Field(None, description="What the stop task is. Set by `expand`.")
    loss_type: Literal["dapo", "grpo", "dr_grpo"] = Field(
        "dapo",
        description="Mean of token losses: `dapo` over all tokens, `grpo` over each completion's and then over completions, "
        "`dr_grpo` over max_completion_length tokens of each.",
    )
    steps_per_generation: int = Field(1, ge=1, description="Updates on each pass over a rollout, each on an equal share (count).")
    num_iterations: int = Field(1, ge=1, description="Passes over each rollout (count).")
    scale_rewards: Literal["group", "batch", "none"] = Field(
        "group", description="By whose standard deviation an advantage is divided: its prompt's completions, all, or none."
    )
    epsilon: float = Field(0.2, gt=0, lt=1, description="Clip range of the probability ratio (1 - epsilon .. 1 + epsilon).")
    epsilon_high: float | None = Field(None, gt=0, description="Upper clip range, where it is another (clip-higher: 0.28).")
    kl_coef: float = Field(0.0, ge=0, description="Weight of the KL divergence to the base model (nats).")
    entropy_coef: float = Field(
        0.0, description="Weight of the entropy, which is then rewarded (> 0) or punished (< 0; per nat)."
    )
    top_entropy_quantile: float = Field(
        1.0, gt=0, le=1, description="Only this share of the tokens, those of highest entropy, is trained on (0 < share <= 1)."
    )
    clip_cov_ratio: float = Field(
        2e-4, gt=0, le=1, description="Clip-Cov: share of the tokens that are left out (0 < share <= 1)."
    )
    clip_cov_low: float = Field(1.0, description="Clip-Cov: only tokens of more covariance than this are left out (nats).")
    clip_cov_high: float = Field(5.0, description="Clip-Cov: only tokens of less covariance than this are left out (nats).")
    kl_cov_ratio: float = Field(
        2e-3, gt=0, le=1, description="KL-Cov: share of the tokens that are held back, by covariance (0 < share <= 1)."
    )
    kl_cov_coef: float = Field(1.0, ge=0, description="KL-Cov: weight of |log ratio| on those tokens (per nat).")
    clipped_weight_low: float = Field(0.75, ge=0, description="CE-GPPO: weight of gradients clipped below (beta 1).")
    clipped_weight_high: float = Field(1.0, ge=0, description="CE-GPPO: weight of gradients clipped above (beta 2).")
    entropy_ratio_band: float = Field(0.05, gt=0, description="ERC: how far a token's entropy ratio may be from 1 (> 0).")
    steer_weight_min: float = Field(
        0.8, ge=0, description="STEER: weight of the token of largest expected change of entropy (>= 0)."
    )
    steer_weight_max: float = Field(1.2, ge=0, description="STEER: weight of the token of smallest one (>= 0).")
    reward_quantile: float = Field(
        0.4, ge=0, le=1, description="QAE: quantile of a prompt's rewards that is the baseline (0..1)."
    )
    exploration_alpha: float = Field(0.4, ge=0, description="Reasoning with Exploration: weight of the entropy (per nat).")
    exploration_kappa: float = Field(2.0, gt=1, description="Reasoning with Exploration: the bonus is at most |A| / kappa (> 1).")
    command: str | None = Field(
        None, min_length=1, description="How your own trainer is started (shell words; files are relative to the spec)."
    )
    params: dict[str, Scalar] = Field(
        {}, description="What your own trainer reads besides; in a spec `params.NAME: value` (in its own units)."
    )

    @property
    def completions(self) -> int:
        """Completions of a rollout (count)."""
        return self.prompts_per_step * self.num_generations

    @property
    def updates_per_rollout(self) -> int:
        """How many updates follow from each rollout (count); a method that reads neither field makes one."""
        asked = {"steps_per_generation", "num_iterations"} <= reads(self.method)
        return self.steps_per_generation * self.num_iterations if asked else 1

    @property
    def loads_model(self) -> bool:
        """True where a run loads `model_name_or_path`; a rehearsal, a trainer of one's own and what was imported do not."""
        return self.method not in ("noop", "external", "imported")

    def flat(self) -> dict[str, Scalar]:
        """Every field, each of `params` under the name it has in a spec: `params.NAME`."""
        fields = self.model_dump()
        return {k: v for k, v in fields.items() if k != "params"} | {f"{PARAMS}{k}": v for k, v in self.params.items()}


STOP = "Texts that end an answer, besides the tokens that always do; it is cut before the first of them."


class Decoding(Strict):
    """How an answer's tokens are drawn: what a measurement and an entry of a spec's `evaluate` both say."""

    decoding: Literal["sample", "em_inf", "edt"] = Field(
        "sample",
        description="Draw from the model's distribution, from one whose entropy a few steps on the logits made smaller "
        "(`em_inf`), or at a temperature that follows the entropy (`edt`).",
    )
    em_inf_steps: int = Field(3, ge=1, description="EM-INF: Adam steps on the logits of a token (count).")
    em_inf_learning_rate: float = Field(0.1, gt=0, description="EM-INF: learning rate of those steps (logits per step).")
    em_inf_kl_coef: float = Field(0.05, ge=0, description="EM-INF: weight of the KL divergence from the model (dimensionless).")
    em_inf_threshold: float = Field(0.3, ge=0, description="EM-INF: entropy below which no further step is made (nats).")
    edt_theta: float = Field(0.1, gt=0, description="EDT: temperature is multiplied by .8^(theta / entropy) (nats).")


class Asking(Decoding):
    """How questions are asked: the rest of what a measurement and an entry of a spec's `evaluate` both say."""

    measure: Literal["accuracy", "logits"] = Field(
        "accuracy", description="`accuracy` of answers, or the distribution of the `logits` on the task's worked solutions."
    )
    top_p: float = Field(1.0, gt=0, le=1, description="Nucleus sampling: probability mass kept (0 < p <= 1).")
    num_samples: int = Field(1, ge=1, description="Answers sampled per question (count).")
    max_completion_length: int | None = Field(None, ge=1, description="Longest answer (tokens; none: the task's own).")
    limit: int | None = Field(None, ge=1, description="Only the first so many questions (none: all).")
    template: str = Field(
        "auto",
        description="How a question is asked: `auto` (`qwen25-math-cot` for files, `none` for built-in tasks), `none` (as it "
        "stands), `chat` (as a user turn of the tokenizer's chat template), `qwen25-math-cot` (so too, after its system turn), "
        "or your own text with {question}.",
    )
    system: str | None = Field(None, min_length=1, description="System turn of a chat (none: the template's own).")


class Evaluation(Asking):
    """One measurement: a task at one temperature. `eval_id` names it; the steps at which it is taken do not."""

    task: str = Field(
        description="Name of a built-in task, or a file of questions (.jsonl, .csv, .parquet; a path or hf://datasets/...)."
    )
    task_key: str = Field("", description="What the task is: `name@version`, or `sha256:...` of the file. Set by `expand`.")
    question_field: str | None = Field(None, description="Of a file: field that holds the question (none: recognised).")
    answer_field: str | None = Field(None, description="Of a file: field that holds the gold answer (none: recognised).")
    temperature: float = Field(0.0, ge=0, description="Sampling temperature (0: greedy).")
    stop: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(strict=False)] = Field((), description=STOP)

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
    rollout = config.completions // execution.num_processes
    train = min(execution.per_device_train_batch_size or rollout, rollout)
    return Batches(*(max(1, size >> halvings) for size in (rollout, train, execution.per_device_eval_batch_size)))


def can_halve(config: TrainingConfig, execution: Execution, halvings: int) -> bool:
    """Whether one halving more than `halvings` would make a batch of the run smaller."""
    return batches(config, execution, halvings + 1) != batches(config, execution, halvings)


_IN_THE_KEY = {"model_name_or_path", "model_revision", "method", "command", "stop_task"}
"""Fields that an id holds in another form: the method with its version, the task by what it is, the rest as the model's key."""


CHAINED = frozenset({"parent", "from_step"})
"""Fields that say from which weights a run starts: set by a spec's `stages:`, never by hand."""


def reads(method: str) -> frozenset[str]:
    """The training fields that influence the weights of a run of that method."""
    known = KNOWN[method].reads
    return frozenset(TrainingConfig.model_fields) if known is None else known


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
    it is the command as the spec writes it (`em_core.models.external_key`), of imported runs `imported:` and the sweep's name.
    """
    fields = TrainingConfig.model_fields
    said: dict[str, Any] = {}
    for name in sorted(reads(config.method) - _IN_THE_KEY):
        value = _hashed(getattr(config, name))
        if value != _hashed(fields[name].default):
            said[name] = value
    return _digest({"method": config.method, "version": KNOWN[config.method].version, "model": model_key, "training": said})


RUN_ID = re.compile(r"[0-9a-f]{12}-s[0-9]+(-r[1-9][0-9]*)?")
"""What the name of a run looks like."""


def run_id(config: str, seed: int, repeat: int = 0) -> str:
    """`<config_id>-s<seed>`: a run's name, unique under one root. A repeat is the same run done again: `...-r<repeat>`."""
    return f"{config}-s{seed}-r{repeat}" if repeat else f"{config}-s{seed}"


def _digest(payload: Mapping[str, Any]) -> str:
    text = json.dumps(payload, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class RunRequest:
    """What a worker is asked to do: train a run, or (`mode` "eval") only measure checkpoints that were kept.

    `evaluations` holds (eval_id, evaluation, steps); steps are optimizer updates, 0 is the base model.
    `checkpoints` is the run's own folder; `step-N` folders below it are normal Hugging Face checkpoints.
    `halvings` says how often its batches are halved, after so many attempts that ran out of GPU memory. `prompts` is the folder
    of prompt sets.
    `start_from` is the checkpoint of its parent whose weights are its base model (empty: it has no parent), `pinned` are
    steps whose checkpoints other runs start from: they stay whatever `keep` says.
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
    prompts: str = ""
    start_from: str = ""
    pinned: tuple[int, ...] = ()

    def as_json(self) -> dict[str, Any]:
        return {
            **{k: getattr(self, k) for k in (*_REQUESTED, *_LATER)},
            "config": self.config.model_dump(),
            "evaluations": [[i, e.model_dump(), list(s)] for i, e, s in self.evaluations],
        }

    @classmethod
    def from_json(cls, d: Mapping[str, Any]) -> RunRequest:
        later: dict[str, Any] = {k: tuple(d[k]) if k == "pinned" else d[k] for k in _LATER if k in d}
        return cls(
            **{k: d[k] for k in _REQUESTED},
            **later,
            config=TrainingConfig(**d["config"]),
            evaluations=tuple((i, Evaluation(**e), tuple(s)) for i, e, s in d["evaluations"]),
        )


_LATER = ("halvings", "prompts", "start_from", "pinned")
"""Fields that requests of earlier versions lack."""
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
