"""What is true of a cluster: the site file, and what it means for this process and for the jobs."""

from __future__ import annotations

import os
from typing import Any, Literal

from pydantic import Field

from em_core.config import Strict
from sweeps.resources import Resources


class Site(Strict):
    """What is true of a cluster and not of an experiment. Shipped specs name none of it."""

    launcher: Literal["auto", "local", "slurm"] = Field("auto", description="What `--launcher auto` means here.")
    partition: str | None = Field(None, description="Slurm partition.")
    account: str | None = Field(None, description="Slurm account.")
    qos: str | None = Field(None, description="Slurm quality of service.")
    setup: list[str] = Field([], description="Shell lines before each job (module load ...).")
    max_array_size: int | None = Field(None, ge=1, description="Longest Slurm array (tasks; none: the cluster's MaxArraySize).")
    max_submit_jobs: int | None = Field(
        None, ge=2, description="Jobs one user may have in the queue (count; none: what the cluster's accounting allows)."
    )
    follow_up: bool = Field(
        True, description="A small job reconciles the sweep when its jobs are over, and hands out what is left."
    )
    follow_up_resources: dict[str, Any] = Field({}, description="Slurm parameters of that job (slurm_partition: cpu, ...).")
    on_done: str | None = Field(None, description="Shell command when a sweep is done (mail, chat); the summary is its input.")
    on_stop: str | None = Field(None, description="Shell command when a sweep stops before it is done; the reason is its input.")
    env: dict[str, str] = Field(
        {}, description="Environment of the jobs (HF_HOME, ...). On Slurm HF_HUB_OFFLINE is 1 unless set here."
    )
    local_disk: str | None = Field(
        None, description="Disk of a node (a folder, or $TMPDIR): models are copied there once and loaded from there."
    )
    poll_seconds: float = Field(30, gt=0, description="Least time between two questions to the scheduler (seconds).")
    resources: dict[str, Any] = Field({}, description="Defaults for the specs' `resources`.")

    def slurm_defaults(self) -> dict[str, Any]:
        """The site's `resources`, with partition, account and QOS as submitit calls them."""
        named = {f"slurm_{n}": getattr(self, n) for n in ("partition", "account", "qos") if getattr(self, n) is not None}
        return {**self.resources, **named}


def use_cache(site: Site) -> None:
    """Make this process look for models where the jobs will. Before huggingface_hub is imported: it reads these once."""
    os.environ.update({k: v for k, v in site.env.items() if k.startswith("HF_") and k != "HF_HUB_OFFLINE"})


def job_environment(site: Site, launcher: str) -> dict[str, str]:
    """What jobs find in their environment. On Slurm they ask the Hub for nothing: `emsweep fetch` did before."""
    return {**({"HF_HUB_OFFLINE": "1"} if launcher == "slurm" else {}), **site.env}


def runs_offline(site: Site, launcher: str) -> bool:
    """Whether jobs load models from the cache only."""
    return job_environment(site, launcher).get("HF_HUB_OFFLINE", "0").lower() in ("1", "on", "yes", "true")


def default_resources(site: Site) -> Resources:
    """What a job gets whose spec says nothing."""
    return Resources(**site.slurm_defaults())
