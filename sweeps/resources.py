"""What a run needs, and how runs are packed into jobs."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field


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
