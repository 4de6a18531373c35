"""What a site file means for this process and for the jobs."""

from __future__ import annotations

import os

from sweeps.spec import Resources, Site


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
