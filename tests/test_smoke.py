"""`emsweep smoke`: each distinct shape once, small, through the path of a real sweep; plans are priced by it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from em_core.errors import UserError
from sweeps.expand import expand
from sweeps.site import Site
from sweeps.smoke import shapes, smoke_spec, write_smoke
from sweeps.spec import Spec, load_spec
from tests.cluster import SlurmCluster
from tests.conftest import Emsweep

SPEC = """\
name: big
base: {model_name_or_path: miniature, prompt: plus, max_steps: 50, max_completion_length: 16}
axes:
  learning_rate: [1e-4, 3e-4, 1e-3]
  num_generations: [4, 8]
  prompt: [{text: "Q:1+1+1=? [x]"}, minus]
seeds: [3, 4]
evaluate:
  - {tasks: [two_step_sums], steps: [0, 50], temperature: [0.0, 0.7], num_samples: 4}
  - {tasks: [two_step_sums], steps: [50], limit: 5}
execution: {device: cpu, per_device_eval_batch_size: 32}
resources: [{when: {max_steps: 50, learning_rate: 1e-3}, timeout_min: 7, slurm_comment: long}, {cpus_per_run: 1}]
"""


def wanted(tmp_path: Path, text: str = SPEC, site: Site | None = None) -> Spec:
    (tmp_path / "spec.yaml").write_text(text.replace("prompt: plus, ", ""))
    return load_spec(tmp_path / "spec.yaml", (), site)


@pytest.mark.fast
def test_one_small_run_of_each_shape(tmp_path: Path) -> None:
    spec = wanted(tmp_path)
    groups = shapes(spec, expand(spec))
    assert [len(g) for g in groups] == [4, 4, 2, 2], "two sizes, two rules"
    small = write_smoke(spec, tmp_path / "runs", Site())
    found = expand(small)
    assert (found.sweep, len(found.runs)) == ("big.smoke", 4)
    assert {(w.config.training.max_steps, w.seed) for w in found.runs} == {(1, 3)}
    assert {w.config.training.prompt for w in found.runs} == {"Q:1+1+1=? [x]"}, "the longest prompt needs the most memory"
    assert {(e.num_samples, e.limit, steps) for _, e, steps in found.evaluations} == {(4, 8, ("last",)), (1, 5, ("last",))}
    assert small.execution == spec.execution


@pytest.mark.fast
def test_each_shape_gets_the_resources_of_its_own_rule(tmp_path: Path) -> None:
    """Though its rule asked for another max_steps; and a job of its own, so that its peak memory is its own."""
    site = Site(partition="gpu", resources={"mem_gb": 3.0})
    spec = wanted(tmp_path, site=site)
    expansion = expand(spec)
    small = write_smoke(spec, tmp_path / "runs", site)
    rules = []
    for group, w in zip(shapes(spec, expansion), expand(small).runs, strict=True):
        c = group[0]
        real = spec.resources_for(c.training.model_dump() | {"prompt": c.prompt_name})
        said = small.resources_for(w.config.training.model_dump() | {"prompt": w.config.prompt_name})
        assert said.model_dump(exclude={"when"}) == real.model_dump(exclude={"when"})
        rules.append(said.model_dump_json())
    assert len(set(rules)) == 4
    assert [json.loads(r)["timeout_min"] for r in rules] == [60, 60, 7, 7]
    assert {json.loads(r)["slurm_partition"] for r in rules} == {"gpu"}


@pytest.mark.fast
def test_names_and_mistakes(tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text(SPEC.replace("prompt: plus, ", ""))
    spec = load_spec(tmp_path / "spec.yaml", ["seeds=5", "model_name_or_path=miniature"])
    assert smoke_spec(spec, expand(spec), Path("runs/.prompts"))["name"] == "big-model_name_or_path-miniature-seeds-5.smoke"
    broken = wanted(tmp_path, SPEC.replace("steps: [50]", "steps: [51]"))
    with pytest.raises(UserError, match="step 51"):
        write_smoke(broken, tmp_path / "runs", Site())
    assert not (tmp_path / "runs").exists()


@pytest.mark.long
@pytest.mark.slow
def test_what_it_says_and_what_plan_makes_of_it(tmp_path: Path, emsweep: Emsweep) -> None:
    (tmp_path / "spec.yaml").write_text(
        SPEC.replace("prompt: plus, ", "").replace("num_generations: [4, 8]", "num_generations: [4]")
    )
    before = json.loads(emsweep("plan", "spec.yaml", "--launcher", "local", "--json", check=0).stdout)
    said = json.loads(emsweep("smoke", "spec.yaml", "--launcher", "local", "--json", check=0).stdout)
    assert [(s["status"], s["configs"]) for s in said["shapes"]] == [("completed", 4), ("completed", 2)]
    for s in said["shapes"]:
        assert 0 < s["step_seconds"] < 60
        assert 0 < s["eval_seconds"] < 60
        assert 0 < s["load_seconds"] < 100
        assert 0.1 < s["peak_gib"] < 4
    after = json.loads(emsweep("plan", "spec.yaml", "--launcher", "local", "--json", check=0).stdout)
    assert (before["measured_runs"], after["measured_runs"]) == (0, 2)
    assert after["device_hours"] == said["device_hours"]
    assert after["memory_gib"]["miniature"]["measured"] == max(s["peak_gib"] for s in said["shapes"])
    assert "MiB per run at its peak, measured" in emsweep("plan", "spec.yaml", "--launcher", "local", check=0).stdout
    assert after["done"] == 0, "a smoke run is none of the sweep's"


@pytest.mark.slurm
@pytest.mark.slow
def test_through_the_queue(tmp_path: Path, slurm: SlurmCluster, emsweep: Emsweep) -> None:
    text = SPEC.replace("prompt: plus, ", "method: noop, ")
    (tmp_path / "spec.yaml").write_text(text)
    (tmp_path / "site.toml").write_text("poll_seconds = 1\n")
    said = emsweep("smoke", "spec.yaml", "--launcher", "slurm", env=slurm.env(), check=0).stdout
    assert said.count(" completed ") == 4
    jobs = emsweep("status", "--json", env=slurm.env(), check=0).stdout
    assert json.loads(jobs)[0]["completed"] == 4
