"""Every example of docs/site.md is read, and submitted to a pretended Slurm: the sbatch text has the lines it promises."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from em_core.journal import SweepDir
from launchers.base import Batch
from launchers.slurm import SlurmLauncher
from sweeps.site import Site, default_resources, job_environment
from sweeps.spec import load_site

TEXT = (Path(__file__).parent.parent / "docs" / "site.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```toml\n(.*?)```\n(?:```text\n(.*?)```\n)?", TEXT, flags=re.S)

pytestmark = pytest.mark.fast


def submitted(site: Site, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """The sbatch text and the environment that Slurm would get."""
    (folder / "bin").mkdir()
    for name, script in (
        ("srun", "exit 0"),
        ("sbatch", f'cp "$1" {folder}/text; env > {folder}/env; echo Submitted batch job 7'),
    ):
        (folder / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}/bin:{os.environ['PATH']}")
    resources = default_resources(site)
    batch = Batch(
        token="t", name="s:1/1", jobs=("b0000-00000",), slots=resources.slots_per_job, code=folder,
        resources=resources.model_dump(exclude={"when"}), setup=tuple(site.setup), environment=job_environment(site, "slurm"),
    )  # fmt: skip
    assert SlurmLauncher(SweepDir(folder, "s")).submit(batch) == ["7"]
    return (folder / "text").read_text(), (folder / "env").read_text()


@pytest.mark.parametrize(("toml", "lines"), EXAMPLES)
def test_an_example_makes_the_lines_it_promises(toml: str, lines: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "site.toml").write_text(toml)
    monkeypatch.setenv("EMSWEEP_SITE", str(tmp_path / "site.toml"))
    site = load_site(tmp_path)
    text, environment = submitted(site, tmp_path, monkeypatch)
    for line in lines.splitlines():
        assert line in text
    for name, value in site.env.items():
        assert f"{name}={value}\n" in environment
    assert ("HF_HUB_OFFLINE=1\n" in environment) == ("HF_HUB_OFFLINE" not in site.env)


def test_the_page_has_the_examples_it_should() -> None:
    assert len(EXAMPLES) >= 9
    assert sum(bool(lines) for _, lines in EXAMPLES) >= 6
    said = set(re.findall(r"^(\w+) = ", "\n".join(toml for toml, _ in EXAMPLES), flags=re.M))
    assert {"partition", "account", "qos", "setup", "local_disk", "on_done", "on_stop", "slurm_python", "HF_HOME"} <= said


def test_the_nodes_interpreter_replaces_ours_and_is_no_sbatch_flag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site(resources={"slurm_python": "apptainer exec --nv em.sif python"})
    text, _ = submitted(site, tmp_path, monkeypatch)
    [command] = [line for line in text.splitlines() if line.startswith("srun ")]
    assert " apptainer exec --nv em.sif python -u -m submitit.core._submit " in command
    assert "#SBATCH --python" not in text
