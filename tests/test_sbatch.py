"""The sbatch text of a batch, word for word: what a site's administrator will read when something is odd.

`python -m tests.test_sbatch` writes tests/golden/*.sbatch anew; look at the difference before you commit it.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from submitit.slurm.slurm import _make_sbatch_string

from launchers.base import Batch
from launchers.slurm import submitit_parameters

GOLDEN = Path(__file__).parent / "golden"
CODE = Path("/runs/.code/0123456789ab")
PLAIN = Batch("plant-b0000-abc123", "plant:1/1", ("b0000-00000",), 1, CODE, {"cpus_per_run": 1, "timeout_min": 60})
NODE = Batch(
    token="zoo-b0003-0f1e2d",
    name="zoo:3/40",
    jobs=tuple(f"b0003-{i:05d}" for i in range(250)),
    slots=8,
    code=CODE,
    resources={
        "cpus_per_run": 4, "gpus_per_run": 1, "mem_gb": 62.5, "timeout_min": 240, "slurm_partition": "gpu", "slurm_qos": "high",
        "slurm_account": "em", "slurm_constraint": "h100", "slurm_exclude": "gpu07", "slurm_srun_args": ["--export=ALL"],
        "slurm_array_parallelism": 64,
    },
    setup=("module load cuda",),
    parallelism=16,
    exclude_nodes=("gpu13",),
)  # fmt: skip
SHORT = Batch("s-b0000-1", "s:1/1", ("b0000-00000", "b0000-00001"), 2, CODE, {"cpus_per_run": 1, "timeout_min": 1})
TWO = Batch(
    token="big-b0000-5c0ffe",
    name="big:1/1",
    jobs=("b0000-00000",),
    slots=1,
    code=CODE,
    resources={"cpus_per_run": 8, "gpus_per_run": 8, "timeout_min": 240},
    machines=2,
)
BATCHES = {"plain": PLAIN, "eight-gpu-node": NODE, "one-minute": SHORT, "two-nodes": TWO}


def text(batch: Batch) -> str:
    parameters = submitit_parameters(batch)
    count = len(batch.jobs) if len(batch.jobs) > 1 else None
    said = _make_sbatch_string("python -u -m submitit.core._submit LOGS", "/runs/SWEEP/logs", map_count=count, **parameters)
    return said + "\n"


@pytest.mark.fast
@pytest.mark.parametrize("name", BATCHES)
def test_the_sbatch_text_is_what_it_was(name: str) -> None:
    assert text(BATCHES[name]) == (GOLDEN / f"{name}.sbatch").read_text()


if __name__ == "__main__":
    for name, batch in BATCHES.items():
        (GOLDEN / f"{name}.sbatch").write_text(text(batch))
