"""What the planner must know of each method, without importing torch: its version, the fields it reads, what it needs.

How a method trains stands in `em_core.methods.METHODS`, under the same name.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Known:
    """`version` is part of every id made with the method: bump it when a default or the meaning of a field changes.

    `reads` are the training fields that influence its weights; the others never enter an id. `needs_answer`: every prompt
    must have a gold answer. `needs_group`: a completion is judged by the others of its prompt, so there must be several.
    `needs_ratio`: with one update per rollout it would be another method, because the policy is still the one that sampled.
    """

    version: int
    reads: frozenset[str] | None
    """None: all of them."""
    needs_answer: bool = False
    needs_group: bool = False
    needs_ratio: bool = False


_ALWAYS = {"model_name_or_path", "model_revision", "parent", "from_step", "method"}
_ROLLOUT = {
    "prompt", "prompts_per_step", "chat_template", "dtype", "num_generations", "max_completion_length", "temperature", "top_p",
    "top_k", "repetition_penalty",
}  # fmt: skip
_OPTIMIZER = {
    "learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "max_steps", "loss_type",
    "stop_rule", "stop_threshold", "stop_patience", "stop_task", "stop_task_key",
}  # fmt: skip
_EM = frozenset(_ALWAYS | _ROLLOUT | _OPTIMIZER | {"loss_temperature"})
_POLICY_GRADIENT = _ALWAYS | _ROLLOUT | _OPTIMIZER | {"kl_coef", "entropy_coef", "steps_per_generation", "num_iterations"}
_GRPO = frozenset(_POLICY_GRADIENT | {"scale_rewards", "epsilon", "epsilon_high", "top_entropy_quantile"})
_LABELED = _GRPO | {"answer"}

IMPORTED = "imported"
"""The method of runs that another tool trained and recorded."""

KNOWN: dict[str, Known] = {
    "noop": Known(1, None),
    "external": Known(1, None),
    IMPORTED: Known(1, frozenset({"method", "params"})),
    "em": Known(1, _EM),
    "em_rl_sequence": Known(1, frozenset(_POLICY_GRADIENT), needs_group=True),
    "em_rl_token": Known(1, frozenset(_POLICY_GRADIENT), needs_group=True),
    "rent": Known(1, _GRPO, needs_group=True),
    "empo": Known(1, _GRPO, needs_group=True),
    "majority_vote": Known(1, _GRPO, needs_group=True),
    "random_reward": Known(1, _GRPO, needs_group=True),
    "format_reward": Known(1, _GRPO, needs_group=True),
    "grpo": Known(1, _LABELED, needs_answer=True, needs_group=True),
    "clip_cov": Known(
        1, _LABELED | {"clip_cov_ratio", "clip_cov_low", "clip_cov_high"}, needs_answer=True, needs_group=True, needs_ratio=False
    ),
    "kl_cov": Known(
        1, (_LABELED - {"epsilon", "epsilon_high"}) | {"kl_cov_ratio", "kl_cov_coef"},
        needs_answer=True, needs_group=True, needs_ratio=True,
    ),
    "ce_gppo": Known(
        1, _LABELED | {"clipped_weight_low", "clipped_weight_high"}, needs_answer=True, needs_group=True, needs_ratio=True
    ),
    "erc": Known(1, _LABELED | {"entropy_ratio_band"}, needs_answer=True, needs_group=True, needs_ratio=True),
    "steer": Known(1, _LABELED | {"steer_weight_min", "steer_weight_max"}, needs_answer=True, needs_group=True),
    "qae": Known(1, _LABELED | {"reward_quantile"}, needs_answer=True, needs_group=True),
    "exploration": Known(
        1, _LABELED | {"exploration_alpha", "exploration_kappa"}, needs_answer=True, needs_group=True
    ),
    "dler": Known(1, _LABELED - {"scale_rewards"}, needs_answer=True, needs_group=True),
}  # fmt: skip
"""By name. `imported` trains nothing: what `emsweep import` brings has it.

Clip-higher is `grpo` with `epsilon_high: 0.28`; the 80/20 rule is `top_entropy_quantile: 0.2`."""
