"""What a run needs, and how runs are packed into jobs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from em_core.config import Execution
from sweeps.yamlfile import SpecError


class Resources(BaseModel):
    """What a run needs and how runs are packed into jobs. Any `slurm_*` is handed to submitit without its prefix."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True, allow_inf_nan=False)

    when: dict[str, Any] = Field({}, description="In a list of rules: the rule is for configs with these values.")
    cpus_per_run: int = Field(1, ge=1, description="Cores, and threads, per run (count).")
    gpus_per_run: int | None = Field(
        None, ge=0, description="GPUs per run (count; none: 1 per process on a local machine with GPUs, else 0)."
    )
    mem_gb: float | None = Field(None, gt=0, description="Host memory per run (GB; none: the cluster's default).")
    timeout_min: int = Field(60, ge=1, description="Wall-clock limit of a job (minutes).")
    slots_per_job: int = Field(1, ge=1, description="Runs side by side in one Slurm job (count; an 8-GPU node: 8).")
    runs_per_job: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto", description="Runs in one Slurm job (count; auto: as many as fill job_minutes)."
    )
    job_minutes: float = Field(30, gt=0, description="How long a job should last when runs_per_job is auto (minutes).")
    gpu: str | None = Field(
        None, description="The GPU the runs will meet (h100-80gb, a100-40gb, ...): the plan refuses what cannot fit."
    )


def check_processes(execution: Execution, rules: Iterable[Resources]) -> None:
    """Refuse processes that would have no GPU of their own, sharding among one, and machines without an equal share."""
    processes, machines = execution.num_processes, execution.num_machines
    if processes % machines:
        share = f"{processes} processes (`num_processes`, of all machines together) cannot be spread equally over {machines}"
        raise SpecError(("execution", "num_machines"), share)
    if execution.fsdp and processes == 1:
        raise SpecError(("execution", "fsdp"), "spreads the weights over several processes: set `num_processes` as well")
    for rule in rules:
        if machines > 1 and rule.slots_per_job > 1:
            whole = "a run on several machines has its job to itself: leave `resources.slots_per_job` at 1"
            raise SpecError(("execution", "num_machines"), whole)
        if rule.gpus_per_run and rule.gpus_per_run < processes // machines:
            gpus = f"`resources.gpus_per_run` is {rule.gpus_per_run}" + (" on each machine" if machines > 1 else "")
            raise SpecError(("execution", "num_processes"), f"{processes} processes need a GPU each, and {gpus}")
