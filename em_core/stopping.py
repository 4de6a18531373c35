"""When a run stops by itself, before its accuracy falls: rules on what the run has recorded so far.

The paper leaves open how to notice overconfidence without labels; these are the candidates that one would try first
(`sweeps/specs/early-stopping.yaml` compares them). A stopped run's weights stay as they are: what is measured at a later
step is measured on them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from em_core.config import TrainingConfig

VALIDATION = "validation_accuracy"
"""Rule and metric: accuracy on `stop_task` after each update (0..1)."""


def should_stop(config: TrainingConfig, metrics: Sequence[Mapping[str, float]]) -> bool:
    """Whether the run ends with the last of these updates; `metrics` are the values recorded at each, from the first on.

    * `entropy_floor`: the entropy of the samples is below `stop_threshold` (a share) of that of the first update.
    * `entropy_slope`: over the last `stop_patience` updates it fell by less than `stop_threshold` of that of the first: what was
      to be gained by confidence is gained.
    * `validation_accuracy`: it has not risen by more than `stop_threshold` above the best before, for `stop_patience` updates.
    """
    patience, threshold = config.stop_patience, config.stop_threshold
    match config.stop_rule:
        case "entropy_floor":
            return metrics[-1]["entropy"] < threshold * metrics[0]["entropy"]
        case "entropy_slope":
            if len(metrics) <= patience:
                return False
            fall = metrics[-1 - patience]["entropy"] - metrics[-1]["entropy"]
            return fall < threshold * metrics[0]["entropy"]
        case "validation_accuracy":
            found = [m[VALIDATION] for m in metrics]
            return len(found) > patience and max(found[-patience:]) <= max(found[:-patience]) + threshold
    return False
