"""What a plan says, what it costs, and that it leaves nothing behind."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from em_core.errors import UserError
from em_core.journal import SweepDir
from sweeps import codes, control
from sweeps.expand import Expansion, expand
from sweeps.manifest import extend
from sweeps.plan import Plan, make_plan, preview, print_plan, spec_fields
from sweeps.spec import Spec, load_spec
from sweeps.submit import PlannedJob, expected_seconds, pack
from tests.conftest import Emsweep
from tests.test_expand import EXAMPLE

SMALL = """\
name: small
base: {model_name_or_path: miniature, prompt: plus, method: noop, max_steps: 5}
axes: {learning_rate: [1e-4, 1e-3]}
seeds: 2
evaluate:
  - {tasks: [two_step_sums], steps: [0, 5]}
"""
STUDY = """\
name: hunt
base: {model_name_or_path: miniature, prompt: plus}
search:
  space:
    learning_rate: {low: 1.0e-5, high: 1.0e-3, log: true}
    method: [em, noop]
    kl_coef: {low: 1.0e-4, high: 0.1, log: true, when: {method: em}}
  seeds_per_trial: 3
  n_trials: 8
  workers: 6
  confirm: {top: 1, seeds: 4}
evaluate: [{tasks: [two_step_sums], steps: [0, last]}]
resources: {slots_per_job: 2}
"""
LARGE = """\
name: large
base: {model_name_or_path: miniature, prompt: plus, num_generations: 8, max_completion_length: 24}
axes:
  learning_rate: {geomspace: [1.0e-6, 1.0e-3, 30]}
  temperature: {linspace: [0.3, 1.2, 28]}
seeds: 16
evaluate:
  - {tasks: [two_step_sums], steps: [0, 5, 10]}
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path.parent / "cache"))


def planned(text: str, *sets: str, launcher: str = "local") -> Plan:
    Path("spec.yaml").write_text(text)
    spec = load_spec(Path("spec.yaml"), sets)
    return make_plan(spec, expand(spec), Path("runs"), launcher)


def packed(text: str, *sets: str) -> list[PlannedJob]:
    """The Slurm jobs of a fresh sweep."""
    Path("spec.yaml").write_text(text)
    spec = load_spec(Path("spec.yaml"), sets)
    expansion = expand(spec)
    sweep = SweepDir(Path("runs"), expansion.sweep)
    manifest = preview(spec, expansion, sweep)
    seconds = {c: s.middle for c, s in expected_seconds(sweep, manifest.configs, spec, "slurm").items()}
    return pack(manifest, [(r, ()) for r in manifest.runs], spec, "slurm", seconds)


@pytest.mark.fast
def test_counts_of_the_example() -> None:
    plan = planned(EXAMPLE)
    assert (plan.configs, plan.seeds, plan.runs, plan.new, plan.to_train) == (408, 8, 3264, 3264, 3264)
    assert (plan.done, plan.diverged, plan.failed, plan.running, plan.queued, plan.excluded, plan.to_evaluate) == (0,) * 7
    assert plan.sweep == "example"
    assert "learning_rate" in plan.fields
    assert len(plan.head) == 12


@pytest.mark.fast
def test_a_run_wanted_by_two_arms_is_counted_once() -> None:
    plan = planned(SMALL + "arms: {a: {temperature: 0.5}, b: {temperature: [0.5, 0.7]}}\n")
    assert (plan.configs, plan.runs, plan.to_train) == (4, 8, 8)


@pytest.mark.slow
def test_plan_writes_nothing(tmp_path: Path, emsweep: Emsweep) -> None:
    (tmp_path / "spec.yaml").write_text(EXAMPLE)
    said = emsweep("plan", "spec.yaml", "--launcher", "local", check=0).stdout
    assert "408 configs x 8 seeds = 3,264 runs: 3,264 new" in said
    assert [p.name for p in tmp_path.iterdir()] == ["spec.yaml"]


@pytest.mark.slow
def test_json(tmp_path: Path, emsweep: Emsweep) -> None:
    """Every figure is there under its own name: scripts rely on them."""
    (tmp_path / "spec.yaml").write_text(EXAMPLE)
    said = json.loads(emsweep("plan", "spec.yaml", "--launcher", "local", "--json", check=0).stdout)
    counts = {"configs", "seeds", "runs", "collapsed", "new", "done", "diverged", "running", "queued", "failed", "interrupted"}
    work = {
        "excluded",
        "to_train",
        "to_evaluate",
        "unmeasured",
        "jobs",
        "runs_per_job",
        "workers",
        "files",
        "bytes",
    }
    others = {"sweep", "launcher", "device_hours", "measured_runs", "memory_gib", "fields", "head", "codes"}
    assert counts | work | others <= said.keys()
    assert all(isinstance(said[k], int) for k in counts | work)
    assert said["runs"] == 3264
    assert said["launcher"] == "local"


@pytest.mark.fast
def test_files_grow_with_the_jobs_not_with_the_runs() -> None:
    few, many = (planned(SMALL, f"seeds={n}") for n in (2, 200))
    assert few.files == many.files < 20
    assert many.bytes > 50 * few.bytes


@pytest.mark.fast
def test_jobs_on_slurm_hold_many_runs() -> None:
    text = SMALL + "resources: {runs_per_job: 10, slots_per_job: 4}\n"
    jobs = packed(text, "seeds=16")
    assert [len(job.runs) for job in jobs] == [10, 10, 10, 2]
    assert [job.slots for job in jobs] == [4, 4, 4, 2]
    assert planned(text, "seeds=16", launcher="slurm").jobs == 4


@pytest.mark.fast
def test_several_machines_are_slurms_business_alone() -> None:
    text = SMALL + "execution: {num_processes: 4, num_machines: 2}\n"
    with pytest.raises(UserError) as refused:
        planned(text)
    line = text.splitlines().index("execution: {num_processes: 4, num_machines: 2}") + 1
    said = "a run on 2 machines needs Slurm: train with `--launcher slurm`, or set it to 1"
    assert str(refused.value).endswith(f"spec.yaml:{line}: execution.num_machines: {said}")
    one, two = planned(SMALL, launcher="slurm"), planned(text, launcher="slurm")
    assert two.files == one.files + 5 * two.jobs


@pytest.mark.fast
def test_configs_of_different_resources_are_in_different_jobs() -> None:
    rules = "resources: [{when: {learning_rate: 1e-3}, cpus_per_run: 2}, {cpus_per_run: 1}]\n"
    jobs = packed(SMALL + rules)
    assert sorted((job.resources.cpus_per_run, len(job.runs)) for job in jobs) == [(1, 2), (2, 2)]


@pytest.mark.fast
def test_a_prompt_may_look_like_markup(capsys: pytest.CaptureFixture[str]) -> None:
    """Prompts of chat models are full of brackets, and have line ends."""
    prompts = 'axes: {prompt: [{text: "[INST] one\\ntwo [/INST]"}, plus]}\n'
    plan = planned(SMALL.replace("prompt: plus, ", "").replace("axes: {learning_rate: [1e-4, 1e-3]}\n", prompts))
    print_plan(plan, Console(width=200))
    assert "  [INST] one two [/INST]\n" in capsys.readouterr().out


def checkpoint(folder: Path, parameters: int) -> Path:
    """A model of that size, as far as a plan looks: its headers."""
    folder.mkdir(parents=True)
    sizes = {
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 32000,
    }
    (folder / "config.json").write_text(json.dumps(sizes))
    header = json.dumps({"w": {"dtype": "F32", "shape": [parameters // 1000, 1000], "data_offsets": [0, 0]}}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    return folder


@pytest.mark.fast
def test_a_gpu_that_is_too_small_is_refused(tmp_path: Path) -> None:
    checkpoint(tmp_path / "seven", 7_000_000_000)
    text = SMALL.replace("miniature", "./seven").replace("noop", "em")
    assert (planned(text).memory_gib[str(tmp_path / "seven")] or {})["device"] > 100
    with pytest.raises(
        UserError, match=r"^spec.yaml:7: resources.gpu: .*seven needs about \d+ GiB on the GPU and a a100-80gb has 80"
    ):
        planned(text + "resources: {gpu: a100-80gb}\n")
    with pytest.raises(UserError, match=r"unknown GPU `a100`; did you mean `a100-\d0gb`"):
        planned(text + "resources: {gpu: a100}\n")
    assert planned(text + "resources: {gpu: a100-80gb}\n", "method=noop").runs == 4, "a rehearsal needs no memory"


@pytest.mark.fast
def test_each_config_meets_the_gpu_of_its_own_rule(tmp_path: Path) -> None:
    checkpoint(tmp_path / "seven", 7_000_000_000)
    checkpoint(tmp_path / "half", 500_000_000)
    text = (
        SMALL.replace("model_name_or_path: miniature, ", "")
        .replace("noop", "em")
        .replace("axes: {", "axes: {model_name_or_path: [./seven, ./half], ")
    )
    text += "resources: [{when: {max_steps: %d}, gpu: l4-24gb}, {}]\n"
    assert planned(text % 7).configs == 4
    with pytest.raises(UserError, match=r"seven needs about .* l4-24gb"):
        planned(text % 5)


@pytest.mark.slow
def test_after_a_run(tmp_path: Path, emsweep: Emsweep, monkeypatch: pytest.MonkeyPatch) -> None:
    """History prices what comes next; done stays done; other code is counted; exclusions and failures show."""
    (tmp_path / "spec.yaml").write_text(SMALL)
    before = planned(SMALL)
    assert (before.measured_runs, before.to_train) == (0, 4)
    emsweep("run", "spec.yaml", "--launcher", "local", "-y")

    done = planned(SMALL)
    assert (done.done, done.new, done.to_train, done.jobs, done.unmeasured) == (4, 0, 0, 0, 0)
    assert [(c.runs, c.here) for c in done.codes] == [(4, True)]
    more = planned(SMALL.replace("seeds: 2", "seeds: 5"))
    assert (more.done, more.new, more.to_train, more.measured_runs) == (4, 6, 6, 4)
    assert more.device_hours is not None
    low, middle, high = more.device_hours
    assert 0 < low <= middle <= high < 1
    named = planned(SMALL, "seeds=5")
    assert (named.sweep, named.done, named.new) == ("small+seeds=5", 4, 6), "a run that another sweep has is not trained again"
    wider = planned(SMALL.replace("steps: [0, 5]", "steps: [0, 3, 5]"))
    assert (wider.to_train, wider.to_evaluate, wider.unmeasured) == (0, 0, 4), "no checkpoint was kept"

    monkeypatch.setattr(codes, "code_digest", lambda: "0" * 12)
    assert [(c.runs, c.here) for c in planned(SMALL).codes] == [(4, False)]
    assert [(c.runs, c.here) for c in planned(SMALL, "seeds=5").codes] == [(4, False)], "what another sweep trained"
    control.exclude(Path("runs"), planned(SMALL).head[0]["config_id"], "not of interest", undo=False)
    left = planned(SMALL)
    assert (left.excluded, left.done) == (2, 2)


@pytest.mark.fast
def test_a_model_that_moved_keeps_its_runs_and_is_found_where_it_is_now(tmp_path: Path) -> None:
    def wanted(folder: str) -> tuple[Spec, Expansion]:
        Path("spec.yaml").write_text(SMALL.replace("miniature", folder))
        spec = load_spec(Path("spec.yaml"))
        return spec, expand(spec)

    checkpoint(tmp_path / "one", 1_000_000)
    spec, before = wanted("./one")
    extend(SweepDir(Path("runs"), "small"), before, "spec", spec_fields(spec))
    (tmp_path / "one").rename(tmp_path / "two")
    spec, after = wanted("./two")
    assert [w.run_id for w in after.runs] == [w.run_id for w in before.runs]
    manifest = extend(SweepDir(Path("runs"), "small"), after, "spec", spec_fields(spec))
    assert {c.training.model_name_or_path for c in manifest.configs.values()} == {str(tmp_path / "two")}


@pytest.mark.slow
def test_time_of_a_large_plan(tmp_path: Path, emsweep: Emsweep, capsys: pytest.CaptureFixture[str]) -> None:
    """13,440 runs. The figure is printed; only something absurd fails, for machines differ."""
    (tmp_path / "large.yaml").write_text(LARGE)
    took = []
    for _ in range(3):
        began = time.perf_counter()
        said = emsweep("plan", "large.yaml", "--launcher", "local", check=0).stdout
        took.append(time.perf_counter() - began)
    assert "840 configs x 16 seeds = 13,440 runs: 13,440 new" in said
    with capsys.disabled():
        print(f"\nplan of 13,440 runs: {min(took):.2f} s, interpreter included", file=sys.stderr)
    assert min(took) < 10


def test_a_study_is_planned_without_being_begun(tmp_path: Path, emsweep: Emsweep) -> None:
    (tmp_path / "hunt.yaml").write_text(STUDY)
    said = emsweep("plan", "hunt.yaml", "--launcher", "slurm", check=0).stdout.splitlines()
    assert said[0].startswith("hunt: 8 trials x 3 seeds = up to 24 runs, then 1 x 4 to confirm, 0 trials done, 6 workers (slurm)")
    assert said[1] == "  3 open jobs of 2 slots, told of runs one by one"
    assert said[-2:] == ["  method: one of em, noop", "  kl_coef: 0.0001 to 0.1, log, when method is em"]
    told = json.loads(emsweep("plan", "hunt.yaml", "--launcher", "slurm", "--json", check=0).stdout)
    assert (told["jobs"], told["most_runs"], told["space"]["method"]) == (3, 28, {"choices": ["em", "noop"]})
    assert not (tmp_path / "runs").exists()
    for command in ("run", "smoke"):
        refused = emsweep(command, "hunt.yaml", check=2).stderr
        assert refused.count("\n") == 1
        assert "`emsweep study` carries it out" in refused
