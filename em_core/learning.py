"""From a rollout to the gradient of an update: rewards, advantages, token losses and their mean over all processes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from em_core.config import TrainingConfig, reads
from em_core.grading import has_answer
from em_core.methods import Method
from em_core.methods.losses import is_clipped
from em_core.methods.marks import covariance
from em_core.methods.samples import Samples
from em_core.methods.tokens import Tokens, entropy, log_probability
from em_core.model import Policy
from em_core.noise import uniforms
from em_core.prompts import Prompt
from em_core.rollout import Rollout

SCORED_TOGETHER = 8
"""Completions scored at once before the first update, at most."""
TOP_SHARES = (0.0002, 0.002, 0.02, 0.2, 0.5)
"""Shares of the tokens, by covariance, whose mean covariance is recorded (arXiv 2505.22617)."""


@dataclass(frozen=True)
class Batch:
    """This process's completions, n of at most L tokens, as the updates use them.

    `rows` (n) is their index among those of all processes. `advantage`, `old_logp` and `old_entropy` (n, L) are None where the
    method has no use for them; `trained` (n, L) says which tokens have a loss (None: all).
    """

    rollout: Rollout
    rows: range
    step: int
    advantage: Tensor | None = None
    old_logp: Tensor | None = None
    old_entropy: Tensor | None = None
    trained: Tensor | None = None

    def __getitem__(self, rows: slice) -> Batch:
        """Some of the completions, as views."""
        tensors = (self.advantage, self.old_logp, self.old_entropy, self.trained)
        return Batch(self.rollout[rows], self.rows[rows], self.step, *(None if t is None else t[rows] for t in tensors))


def prompts_at(rollout: int, prompts: Sequence[Prompt], count: int, seed: int) -> list[int]:
    """Which `count` prompts the rollout of that number (0, 1, ...) takes: a set is shuffled anew each time it was used up."""
    places = [divmod(position, len(prompts)) for position in range(rollout * count, (rollout + 1) * count)]
    epochs = {epoch for epoch, _ in places}
    orders = {e: uniforms(seed, "prompts", e, [0], len(prompts))[0].argsort(kind="stable") for e in epochs}
    return [int(orders[epoch][place]) for epoch, place in places]


def prepare(
    method: Method,
    policy: Policy,
    rollout: Rollout,
    golds: Sequence[str | None],
    config: TrainingConfig,
    seed: int,
    step: int,
    size: int,
) -> tuple[Batch, dict[str, float]]:
    """The batch of a rollout whose first update is `step`, and metrics about it. `golds` are those of all processes' completions.

    Without gradient; `size` completions at most are scored at once.
    """
    team, n = policy.team, config.completions
    here = team.share(n)
    rows = range(n)[here]
    if method.reward is None:
        return Batch(rollout, rows, step), {}
    logp = old_entropy = None
    if method.scores_first or config.updates_per_rollout > 1 or config.top_entropy_quantile < 1:
        logp, old_entropy = _scored(policy, rollout, config, size)
    texts = team.merged(dict(zip(rows, policy.texts(rollout), strict=True)))
    mask = team.joined(rollout.mask)
    s = Samples(
        [texts[i] for i in range(n)], golds, config.num_generations, mask, team.joined(rollout.ended),
        None if logp is None else team.joined(logp), None if old_entropy is None else team.joined(old_entropy),
        seed, step, range(n),
    )  # fmt: skip
    reward = method.reward(s, config)
    advantage = method.advantage(reward, s, config)[:, None] * mask
    if method.shape is not None:
        advantage = method.shape(advantage, s, config) * mask
    trained = None
    if config.top_entropy_quantile < 1:
        assert s.entropy is not None
        trained = s.entropy >= s.entropy[mask].quantile(1 - config.top_entropy_quantile)
    spread = s.grouped(reward).std(1) if s.group > 1 else s.grouped(reward)[:, 0] * 0
    values = {
        "unparsable": sum(not has_answer(text) for text in s.texts) / n,
        "reward": reward.mean().item(),
        "reward_std": spread.mean().item(),
        "frac_reward_zero_std": (spread == 0).float().mean().item(),
    }
    batch = Batch(rollout, rows, step, advantage[here], logp, old_entropy, None if trained is None else trained[here])
    return batch, values


def gradient(
    method: Method,
    policy: Policy,
    base: Policy | None,
    share: Batch,
    config: TrainingConfig,
    size: int,
    seed: int,
    backward: Callable[[Tensor], None],
) -> dict[str, float]:
    """Adds the gradient of an update's loss on its share of a rollout, a mean over all processes whatever the micro-batch
    `size`; returns metrics.

    `base` is the model to which a KL divergence is measured (None: to none).
    """
    team, mask = policy.team, share.rollout.mask
    mine = len(mask)
    all_of = team.total({"tokens": int(mask.sum()), "ended": int(share.rollout.ended.sum()), "completions": mine})
    tokens, completions = int(all_of["tokens"]), int(all_of["completions"])
    divisor = {"dapo": tokens, "grpo": completions, "dr_grpo": completions * config.max_completion_length}[config.loss_type]
    marked, weights = _set_apart(method, policy, share, config, size, seed)
    seen = {name: torch.zeros(mask.shape, device=mask.device) for name in ("logp", "entropy")}
    sums: dict[str, float] = {}
    for start in range(0, mine, size):
        rows = slice(start, start + size)
        part = share[rows]
        t, plain = _tokens(method, policy, part, None if marked is None else marked[rows], config)
        here = part.rollout.mask
        losses = method.loss(t, config)
        if weights is not None:
            losses = losses * weights[rows][here]
        if part.trained is not None:
            losses = losses * part.trained[here]
        parts = {"entropy": plain.sum()}
        if method.reward is not None:
            if config.entropy_coef:
                losses = losses - config.entropy_coef * t.entropy
            if "epsilon" in reads(config.method):
                parts["clipped"] = is_clipped(t, config).float().sum()
            seen["logp"][rows][here] = t.logp.detach()
            if base is not None:
                kl = _kl(base, part, t, config)
                parts["kl"] = kl.detach().sum()
                if config.kl_coef:
                    losses = losses + config.kl_coef * kl
        seen["entropy"][rows][here] = plain
        if config.loss_type == "grpo":
            losses = losses / here.sum(1).repeat_interleave(here.sum(1))
        total = losses.sum()
        backward(total / divisor)
        for name, value in {"loss": total.detach(), **parts}.items():
            sums[name] = sums.get(name, 0.0) + value.item()
    sums["sequence_entropy"] = (seen["entropy"].sum(1) / mask.sum(1)).sum().item()
    sums = team.total(sums)
    divisors = {"loss": divisor, "sequence_entropy": completions}
    values = {name: total / divisors.get(name, tokens) for name, total in sums.items()}
    values |= {"completion_length": tokens / completions, "truncated": 1 - all_of["ended"] / completions, "tokens": tokens}
    if share.advantage is not None:
        values |= _covariances(team.joined(seen["logp"]), team.joined(share.advantage), team.joined(mask))
    return values


@torch.no_grad()
def _scored(policy: Policy, rollout: Rollout, config: TrainingConfig, size: int) -> tuple[Tensor, Tensor]:
    """Log-probabilities at the sampling temperature and entropies at 1, (n, L) each, zero off the mask."""

    def terms(logits: Tensor, sampled: Tensor) -> tuple[Tensor, Tensor]:
        return log_probability(logits, sampled, config.temperature), entropy(logits)

    logp, plain = (torch.zeros(rollout.mask.shape, device=rollout.mask.device) for _ in range(2))
    together = min(size, SCORED_TOGETHER)
    for start in range(0, len(rollout.tokens), together):
        part = rollout[start : start + together]
        found = policy.completion_terms(part, terms)
        logp[start : start + together][part.mask], plain[start : start + together][part.mask] = found
    return logp, plain


def _tokens(method: Method, policy: Policy, part: Batch, marked: Tensor | None, config: TrainingConfig) -> tuple[Tokens, Tensor]:
    """What the loss sees of a micro-batch, and the entropies at temperature 1, (tokens,), without gradient."""
    mask = part.rollout.mask

    def direct(logits: Tensor, _sampled: Tensor) -> tuple[Tensor, Tensor]:
        return entropy(logits, config.loss_temperature), entropy(logits.detach())

    def by_advantage(logits: Tensor, sampled: Tensor) -> tuple[Tensor, Tensor]:
        return log_probability(logits, sampled, config.temperature), entropy(logits if config.entropy_coef else logits.detach())

    if method.reward is None:
        scored, plain = policy.completion_terms(part.rollout, direct)
        nothing = torch.zeros_like(plain)
        return Tokens(nothing, scored, nothing, plain, nothing, nothing.bool()), plain
    assert part.advantage is not None
    logp, plain = policy.completion_terms(part.rollout, by_advantage)
    old_logp = logp.detach() if part.old_logp is None else part.old_logp[mask]
    old_entropy = plain.detach() if part.old_entropy is None else part.old_entropy[mask]
    chosen = torch.zeros_like(old_logp, dtype=torch.bool) if marked is None else marked[mask]
    return Tokens(logp, plain, old_logp, old_entropy, part.advantage[mask], chosen), plain.detach()


def _set_apart(
    method: Method, policy: Policy, share: Batch, config: TrainingConfig, size: int, seed: int
) -> tuple[Tensor | None, Tensor | None]:
    """The tokens that the loss treats apart, and what each counts: of this process's completions, chosen among all."""
    if method.mark is None and method.weigh is None:
        return None, None
    assert share.advantage is not None
    assert share.old_logp is not None
    assert share.old_entropy is not None
    team, mask = policy.team, share.rollout.mask
    logp, now = share.old_logp, share.old_entropy
    if config.updates_per_rollout > 1:  # the policy may have moved since
        logp, now = _scored(policy, share.rollout, config, size)
    mine = (logp, now, share.old_logp, share.advantage, mask)
    all_logp, all_now, all_old, all_advantage, everybody = (team.joined(t) for t in mine)
    here = team.share(len(everybody))
    weights = marked = None
    if method.weigh is not None:
        weights = method.weigh(all_logp, all_now, all_old, all_advantage, everybody, config)[here]
    if method.mark is not None:
        t = Tokens(all_logp, all_now, all_old, all_now, all_advantage, everybody)
        rows = [row for part in team.merged({team.rank: list(share.rows)}).values() for row in part]
        draws = torch.from_numpy(uniforms(seed, "marks", share.step, rows, mask.shape[1])).to(mask.device)
        cov = covariance(all_logp, all_advantage, everybody)
        marked = method.mark(cov, everybody, is_clipped(t, config) & everybody, draws, config)[here]
    return marked, weights


def _kl(base: Policy, part: Batch, t: Tokens, config: TrainingConfig) -> Tensor:
    """KL(pi || base) per token by the k3 estimator e^d - d - 1, d = log base - log pi (Schulman 2020), with gradient."""
    with torch.no_grad():
        (base_logp,) = base.completion_terms(part.rollout, lambda z, y: (log_probability(z, y, config.temperature),))
    difference = base_logp - t.logp
    return difference.exp() - difference - 1


def _covariances(logp: Tensor, advantage: Tensor, mask: Tensor) -> dict[str, float]:
    """The mean covariance of log-probability and advantage over the tokens, and that of its top shares."""
    ordered = covariance(logp, advantage, mask)[mask].sort(descending=True).values
    found = {"cov": ordered.mean().item()}
    for share in TOP_SHARES:
        found[f"cov_top_{share * 100:g}%"] = ordered[: math.ceil(share * len(ordered))].mean().item()
    return found
