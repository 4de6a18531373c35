"""Training one run after another on base weights that are loaded once."""

from __future__ import annotations

import gc
import math
import os
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import Accelerator
from torch import Tensor

from em_core import resume
from em_core.checkpoints import Keeper, ParentGone, step_folder
from em_core.config import Batches, Evaluation, Execution, Outcome, RunRequest, TrainingConfig, batches, reads
from em_core.errors import UserError
from em_core.evaluation import Scorer, evaluate
from em_core.learning import gradient, prepare, prompts_at
from em_core.methods import METHODS
from em_core.model import Policy, source_of
from em_core.models import model_key
from em_core.noise import uniforms
from em_core.parallel import ALONE, Team
from em_core.prompts import prompts_of
from em_core.rollout import Rollout, Sampling
from em_core.sharding import spread_like, whole
from em_core.stopping import VALIDATION, should_stop

Emit = Callable[..., None]
"""`emit(kind, **fields)`, kind `metrics`, `eval` or `checkpoint`; the fields are those of docs/records.md."""


class Trainer:
    """Runs requests in turn. Equal requests give equal numbers on a CPU, whatever ran before.

    The weights of one model stay loaded; a request for another replaces them.
    """

    def __init__(self, execution: Execution, team: Team = ALONE) -> None:
        transformers.utils.logging.disable_progress_bar()
        torch.set_num_threads(execution.threads)
        if execution.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)
        self.execution = execution
        self.team = replace(team, sharded=execution.fsdp and team.size > 1)
        self.accelerator = Accelerator(cpu=execution.device == "cpu", mixed_precision="no")
        self.device = self.accelerator.device
        if execution.device == "cuda" and self.device.type != "cuda":
            raise RuntimeError("execution.device is cuda, but torch finds no GPU here")
        self._loaded: tuple[object, Scorer] | None = None
        self._start = ""
        """The checkpoint whose weights the loaded model goes back to; empty: its own."""

    def describe(self, config: TrainingConfig) -> dict[str, Any]:
        """Where and how a run is computed, for its `run_start` record."""
        return {
            "device": self._device_name(),
            "dtype": str(self._dtype(config)).removeprefix("torch."),
            "threads": self.execution.threads,
        }

    def find_state(self, request: RunRequest) -> resume.State | None:
        """Where an earlier attempt at this run was saved; None: it starts from the beginning."""
        state = resume.find(request) if request.mode == "train" else None
        step = self.team.from_main(state.step if state else None)  # another machine may still see an older file
        return state if self.team.all(state is not None and state.step == step) else None

    def run(
        self, request: RunRequest, emit: Emit, state: resume.State | None = None, stopping: Callable[[], bool] = lambda: False
    ) -> Outcome:
        """Train and evaluate, or (mode `eval`) evaluate kept checkpoints.

        Training goes on from `state`, whose records are emitted again. With `save_steps` it looks at `stopping` after each
        step; where that says so, it saves its state and the outcome is `interrupted`.

        Raises `UserError` or `ValueError` where prompt, model and task do not fit each other, `FileNotFoundError` where
        a checkpoint to be evaluated is gone, `ParentGone` where it is the one to start from. A non-finite loss
        or gradient is no error: the outcome is `diverged`.
        """
        seconds = {"rollout_seconds": 0.0, "train_seconds": 0.0, "eval_seconds": 0.0}
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        scorer = self._scorer(request.config, request.start_from)
        size = batches(request.config, self.execution, request.halvings)
        scorer.batch_size = size.evaluation
        if request.mode == "eval":
            status, steps, message = self._measure(request, scorer, emit, seconds)
        else:
            status, steps, message = self._train(request, size, scorer, emit, seconds, state, stopping)
            if status != "interrupted" and self.team.is_main:
                resume.remove(request)
        return Outcome(status, steps, message, {**seconds, "peak_memory_mb": self._peak_memory_mb()})

    def free_memory(self) -> None:
        """Give back what a run that ran out of memory left behind."""
        if self._loaded is not None:
            self._loaded[1].policy.restore()
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _train(
        self,
        request: RunRequest,
        size: Batches,
        scorer: Scorer,
        tell: Emit,
        seconds: dict[str, float],
        state: resume.State | None,
        stopping: Callable[[], bool],
    ) -> tuple[Any, int, str]:
        config, policy, method = request.config, scorer.policy, METHODS[request.config.method]
        n, length, save_steps = config.completions, config.max_completion_length, self.execution.save_steps
        if n % self.team.size:
            raise UserError(f"a rollout has {n} completions, which {self.team.size} processes cannot share equally")
        prompts = prompts_of(config, Path(request.prompts))
        encoded = [policy.encode(p.text, config.chat_template) for p in prompts]
        for prompt in (min(encoded, key=len), max(encoded, key=len)):
            policy.check_length(prompt, length, "the prompt")
        sampling = Sampling(config.temperature, config.top_p, config.top_k, config.repetition_penalty)
        base = policy.reference() if config.kl_coef > 0 and "kl_coef" in reads(config.method) else None
        optimizer = torch.optim.AdamW(
            list(policy.masters.values()), lr=config.learning_rate, betas=(config.adam_beta1, config.adam_beta2),
            eps=config.adam_epsilon, weight_decay=config.weight_decay, fused=True,
        )  # fmt: skip
        keeper = Keeper(Path(request.checkpoints), request.keep, config.max_steps, policy.save, self.team.is_main, request.pinned)
        records: list[tuple[str, dict[str, Any]]] = []

        def emit(kind: str, **fields: Any) -> None:
            records.append((kind, fields))
            tell(kind, **fields)

        done = 0
        if state is None:
            self._evaluate(request, scorer, 0, emit, seconds)
        else:
            done = _go_on_from(state, policy, optimizer, keeper, emit)
        updates, share = config.updates_per_rollout, config.steps_per_generation
        for step in range(done + 1, config.max_steps + 1):
            started = time.perf_counter()
            number, update = divmod(step - 1, updates)
            if update == 0:
                chosen = prompts_at(number, prompts, config.prompts_per_step, request.seed)
                asked = [i for i in chosen for _ in range(config.num_generations)]
                rollout = self._rollout(policy, [encoded[i] for i in asked], sampling, length, size.rollout, request.seed, step)
                sampled = time.perf_counter()
                golds = [prompts[i].answer for i in asked]
                batch, judged = prepare(method, policy, rollout, golds, config, request.seed, step, size.train)
            else:
                sampled = started

            policy.model.train(self.execution.gradient_checkpointing)  # it works in train mode only; there is no dropout
            part = batch[update % share :: share] if updates > 1 else batch
            values = gradient(method, policy, base, part, config, size.train, request.seed, self.accelerator.backward) | judged
            policy.model.eval()
            self.team.sum_gradients(policy.masters.values())
            limit = config.max_grad_norm or math.inf
            values["grad_norm"] = whole(torch.nn.utils.clip_grad_norm_(policy.masters.values(), limit)).item()
            finite = math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"])
            if finite:
                optimizer.step()
                policy.refresh()
            optimizer.zero_grad(set_to_none=True)

            if config.stop_rule == VALIDATION:
                values[VALIDATION] = self._validation_accuracy(request, scorer, step)
            values |= {"rollout_seconds": sampled - started, "train_seconds": time.perf_counter() - sampled}
            for name in ("rollout_seconds", "train_seconds"):
                seconds[name] += values[name]
            emit("metrics", step=step, values=values)
            if not finite:
                keeper.emit(emit)
                return "diverged", step - 1, f"the loss or its gradient is not finite at step {step}"
            accuracies = self._evaluate(request, scorer, step, emit, seconds)
            if accuracies or step == config.max_steps or step in keeper.pinned:
                keeper.offer(step, accuracies[0] if accuracies else None)
            ruled = config.stop_rule != "none" and step < config.max_steps
            if ruled and should_stop(config, [f["values"] for kind, f in records if kind == "metrics"]):
                accuracies = self._measure_for_good(request, scorer, step, emit, seconds)
                keeper.offer(config.max_steps, accuracies[0] if accuracies else None)
                for later in sorted(s for s in keeper.pinned if step < s < config.max_steps):
                    keeper.offer(later, None)
                keeper.emit(emit)
                return "completed", step, f"stopped by {config.stop_rule} at step {step}"
            if not save_steps:
                keeper.clear()
            elif update == updates - 1 and step < config.max_steps:  # between two rollouts there is nothing else to save
                stop = self.team.from_main(stopping())
                if stop or step // save_steps > (step - updates) // save_steps:
                    state = self._state(step, policy, optimizer, keeper, records)
                    if self.team.is_main:
                        resume.save(request, state)
                    keeper.clear()
                if stop:
                    return "interrupted", step, f"saved at step {step}"
        keeper.emit(emit)
        return "completed", config.max_steps, ""

    def _rollout(
        self,
        policy: Policy,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        length: int,
        size: int,
        seed: int,
        step: int,
    ) -> Rollout:
        """This process's share of one completion per prompt, `size` at once."""
        mine = self.team.share(len(prompts))
        draws = uniforms(seed, "rollout", step, range(len(prompts))[mine], length)
        parts = []
        for start in range(0, len(draws), size):
            some = prompts[mine][start : start + size]
            parts.append(policy.sample(some, draws[start : start + size], length, sampling, policy.stop))
        return Rollout.joined(parts, policy.pad)

    def _measure(self, request: RunRequest, scorer: Scorer, emit: Emit, seconds: dict[str, float]) -> tuple[Any, int, str]:
        """Evaluate each wanted step from the checkpoint that training kept; step 0 is the base model."""
        for step in sorted({step for _, _, steps in request.evaluations for step in steps}):
            if step > 0:
                folder = step_folder(Path(request.checkpoints), step)
                if not folder.is_dir():
                    raise FileNotFoundError(f"{folder}: no checkpoint of step {step} was kept")
                scorer.policy.load_weights(folder)
            self._evaluate(request, scorer, step, emit, seconds)
        return "completed", 0, ""

    def _evaluate(
        self, request: RunRequest, scorer: Scorer, step: int, emit: Emit, seconds: dict[str, float]
    ) -> list[float | None]:
        """The accuracies of the evaluations that want this step, in the request's order; None for those of something else."""
        started = time.perf_counter()
        wanted = [(eval_id, evaluation) for eval_id, evaluation, steps in request.evaluations if step in steps]
        accuracies = [scorer.emit(eval_id, evaluation, request.seed, step, emit) for eval_id, evaluation in wanted]
        seconds["eval_seconds"] += time.perf_counter() - started
        return accuracies

    def _validation_accuracy(self, request: RunRequest, scorer: Scorer, step: int) -> float:
        """Greedy accuracy on the stop rule's questions (0..1)."""
        config = request.config
        task = Evaluation(task=config.stop_task or "", task_key=config.stop_task_key or "")
        return evaluate(scorer.policy, task, request.seed, step, scorer.batch_size).accuracy

    def _measure_for_good(
        self, request: RunRequest, scorer: Scorer, step: int, emit: Emit, seconds: dict[str, float]
    ) -> list[float | None]:
        """What is wanted after `step`, at which the run stopped: measured once, and true of every later step."""
        started = time.perf_counter()
        accuracies = []
        for eval_id, evaluation, steps in request.evaluations:
            later = [s for s in steps if s > step]
            if later:
                accuracies.append(scorer.emit(eval_id, evaluation, request.seed, later[-1], _for_each(later, emit)))
        seconds["eval_seconds"] += time.perf_counter() - started
        return accuracies

    def _state(
        self,
        step: int,
        policy: Policy,
        optimizer: torch.optim.Optimizer,
        keeper: Keeper,
        records: list[tuple[str, dict[str, Any]]],
    ) -> resume.State:
        masters: Mapping[str, Tensor] = policy.masters
        moments: dict[str, Mapping[str, Tensor]] = {name: optimizer.state[m] for name, m in masters.items()}
        if self.team.sharded:
            masters = policy.gathered(masters)
            moments = {name: policy.gathered(m) for name, m in moments.items()}
        return resume.State(step, self._device_name(), records, keeper.kept, keeper.outdone, masters, moments)

    def _scorer(self, config: TrainingConfig, start: str) -> Scorer:
        """The policy, back at its base weights (those of the checkpoint `start`, where there is one), and what is known of it."""
        key = (model_key(config.model_name_or_path, config.model_revision), self._dtype(config))
        if self._loaded is None or self._loaded[0] != key:
            self._loaded = None  # frees the other model first
            name, revision = config.model_name_or_path, config.model_revision
            policy = Policy.load(name, revision, self.device, self._dtype(config), self.team)
            if self.execution.gradient_checkpointing:
                policy.model.gradient_checkpointing_enable({"use_reentrant": False})
            self._loaded, self._start = (key, Scorer(policy, self.execution.per_device_eval_batch_size)), ""
        policy = self._loaded[1].policy
        if self._start != start:
            if start and not Path(start).is_dir():
                raise ParentGone(f"the checkpoint of step {config.from_step} of its parent {Path(start).parent.name} is gone")
            policy.rebase(*((start,) if start else source_of(config.model_name_or_path, config.model_revision)))
            # What was answered before was answered by other weights.
            self._loaded, self._start = (key, Scorer(policy, self.execution.per_device_eval_batch_size)), start
        policy.restore()
        return self._loaded[1]

    def _dtype(self, config: TrainingConfig) -> torch.dtype:
        if config.dtype == "auto":
            bf16 = self.device.type == "cuda" and torch.cuda.is_bf16_supported()
            return torch.bfloat16 if bf16 else torch.float32
        return torch.bfloat16 if config.dtype == "bfloat16" else torch.float32

    def _device_name(self) -> str:
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"

    def _peak_memory_mb(self) -> float:
        """Of this run on a GPU; of the process so far on a CPU (MiB)."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**20
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _go_on_from(state: resume.State, policy: Policy, optimizer: torch.optim.Optimizer, keeper: Keeper, emit: Emit) -> int:
    """Weights, moments and checkpoints as they were saved; its records once more. Returns the step."""
    policy.assign(state.masters)
    for name, moments in state.moments.items():
        master = policy.masters[name]
        optimizer.state[master] = {k: spread_like(master, v) for k, v in moments.items()}
    keeper.kept, keeper.outdone = dict(state.kept), set(state.outdone)
    for kind, fields in state.records:
        emit(kind, **fields)
    return state.step


def _for_each(steps: Sequence[int], emit: Emit) -> Emit:
    """An `emit` that records the same at several steps."""

    def repeated(kind: str, **fields: Any) -> None:
        for step in steps:
            emit(kind, **{**fields, "step": step})

    return repeated
