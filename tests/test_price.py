"""Plans are priced by what was measured: training, evaluation and loading apart, per kind of device, long before short."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from em_core.errors import UserError
from em_core.journal import Appender, SweepDir, append_batch, write_whole
from sweeps import history, price
from sweeps.expand import Expansion, expand
from sweeps.manifest import extend
from sweeps.plan import Plan, make_plan, spec_fields
from sweeps.spec import Spec, load_spec

SPEC = """\
name: NAME
base: {model_name_or_path: miniature, prompt: plus, max_steps: 10, num_generations: 8, max_completion_length: 20}
axes: {learning_rate: [1e-4, 1e-3]}
seeds: 3
evaluate: [{tasks: [two_step_sums], steps: [0, 10], limit: 50, max_completion_length: 10}]
execution: {device: cpu}
"""
STEP_TOKEN, ANSWER_TOKEN, PER_RUN, LOAD = 1e-3, 2e-4, 0.5, 30.0
"""What this machine takes, in seconds: per update x completion x token, per answer x token, per run, per worker."""

pytestmark = pytest.mark.fast


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path.parent / "cache"))


def wanted(text: str, name: str = "priced") -> tuple[Spec, Expansion]:
    Path("spec.yaml").write_text(text.replace("NAME", name))
    spec = load_spec(Path("spec.yaml"))
    return spec, expand(spec)


def planned(text: str, name: str = "priced", launcher: str = "slurm") -> Plan:
    spec, expansion = wanted(text, name)
    return make_plan(spec, expansion, Path("runs"), launcher)


def trained(text: str, name: str, *, device: str = "cpu", slower: float = 1.0, figures: bool = True, peak: float = 500.0) -> None:
    """A sweep whose every run was done by one worker, at the rates above (`slower`: times as long)."""
    spec, expansion = wanted(text, name)
    sweep = SweepDir(Path("runs"), name)
    manifest = extend(sweep, expansion, "spec", spec_fields(spec))
    runs = [[w.run_id for w in expansion.runs]]
    append_batch(sweep.submissions, [("intent", {"token": "t", "launcher": "local", "jobs": ["j"], "runs": runs, "t": 0.0})])
    write_whole(sweep.assignment("j"), [("job", {"job": "j", "execution": spec.execution.model_dump()}), ("close", {})])
    with Appender(sweep.journal("j", 0)) as out:
        out.append("job_start", job="j", t=0.0, **{"try": 0})
        for i, w in enumerate(expansion.runs):
            t = w.config.training
            own, shared = history.answer_tokens(manifest.wanted_evaluations, t)
            step = slower * STEP_TOKEN * t.max_steps * t.num_generations * t.max_completion_length
            answers = slower * ANSWER_TOKEN * (own + (shared if i == 0 else 0.0))
            seconds = step + answers + PER_RUN + (LOAD if i == 0 else 0.0)
            said: dict[str, Any] = {"rollout_seconds": step / 4, "train_seconds": step * 3 / 4, "eval_seconds": answers}
            measures = [[e, [0, 10] if t.max_steps >= 10 else [t.max_steps]] for e, _, _ in expansion.evaluations]
            ids = {"run_id": w.run_id, "attempt": 0}
            out.append("run_start", **ids, mode="train", slot=0, device=device, measures=measures)
            end = said | {"peak_memory_mb": peak} if figures else {}
            out.append("run_end", **ids, status="completed", seconds=seconds, figures=end, t=seconds, cause="", message="")
        out.append("job_end", reason="done", t=0.0)


def hours(text: str) -> float:
    """What a sweep of this spec takes at those rates."""
    _, expansion = wanted(text)
    plan = planned(text)
    total = 0.0
    for w in expansion.runs:
        t = w.config.training
        own, shared = history.answer_tokens(expansion.evaluations, t)
        total += STEP_TOKEN * t.max_steps * t.num_generations * t.max_completion_length + ANSWER_TOKEN * own + PER_RUN
    return (total + plan.jobs * (LOAD + ANSWER_TOKEN * shared)) / 3600


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", ""),
        ("num_generations: 8", "num_generations: 32"),
        ("steps: [0, 10]", "steps: [0, 2, 4, 6, 8, 10]"),
        ("limit: 50", "limit: 200"),
    ],
)
def test_a_sweep_is_priced_by_what_others_took(before: str, after: str) -> None:
    """Longer training costs more training, more answers cost more answering: each by its own rate."""
    trained(SPEC, "earlier")
    longer = SPEC.replace(before, after).replace("[1e-4, 1e-3]", "[2e-4, 2e-3]")
    plan = planned(longer)
    assert plan.device_hours is not None
    assert plan.measured_runs == 6
    assert plan.device_hours[1] == pytest.approx(hours(longer), rel=1e-6)


def test_greedy_answers_of_the_base_model_are_a_workers_not_a_runs() -> None:
    _, expansion = wanted(SPEC)
    own, shared = history.answer_tokens(expansion.evaluations, expansion.configs[0].training)
    assert (own, shared) == (50 * 10, 50 * 10)
    _, expansion = wanted(SPEC.replace("limit: 50", "limit: 50, temperature: 0.5"))
    assert history.answer_tokens(expansion.evaluations, expansion.configs[0].training) == (2 * 50 * 10, 0)


def test_smoke_counts_until_something_longer_ran() -> None:
    short = SPEC.replace("max_steps: 10", "max_steps: 1").replace("[0, 10]", "[last]").replace("seeds: 3", "seeds: 1")
    other = SPEC.replace("[1e-4, 1e-3]", "[2e-4, 2e-3]")
    trained(short, "priced.smoke", slower=2.0)
    first = planned(other)
    assert first.measured_runs == 2
    trained(SPEC, "earlier")
    second = planned(other)
    assert second.measured_runs == 6
    assert first.device_hours is not None
    assert second.device_hours is not None
    assert second.device_hours[1] == pytest.approx(hours(other))
    assert first.device_hours[1] > 1.2 * second.device_hours[1]


def test_a_cpu_says_nothing_about_a_gpu() -> None:
    trained(SPEC, "earlier", device="NVIDIA H200")
    other = SPEC.replace("[1e-4, 1e-3]", "[2e-4, 2e-3]")
    assert planned(other).measured_runs == 0
    gpu = other.replace("execution: {device: cpu}", "resources: {gpus_per_run: 1}")
    assert planned(gpu).measured_runs == 6


def test_without_figures_whole_seconds_are_scaled() -> None:
    trained(SPEC.replace("max_steps: 10", "max_steps: 10, method: noop"), "earlier", device="none", figures=False)
    text = (
        SPEC.replace("max_steps: 10", "max_steps: 20, method: noop")
        .replace("[1e-4, 1e-3]", "[2e-4]")
        .replace("seeds: 3", "seeds: 1")
    )
    plan = planned(text)
    assert plan.measured_runs == 6
    step = STEP_TOKEN * 10 * 8 * 20
    assert plan.device_hours is not None
    assert plan.device_hours[1] == pytest.approx(2 * (step + ANSWER_TOKEN * 500 + PER_RUN) / 3600, rel=0.01)


def test_measured_memory_is_said_and_counts() -> None:
    trained(SPEC, "earlier", peak=90 * 1024.0, device="NVIDIA H200")
    other = SPEC.replace("[1e-4, 1e-3]", "[2e-4, 2e-3]").replace("execution: {device: cpu}", "resources: {gpus_per_run: 1}")
    found = planned(other).memory_gib["miniature"]
    assert found is not None
    assert found["measured"] == found["device"] == 90
    assert "measured" not in (planned(other.replace("num_generations: 8", "num_generations: 9")).memory_gib["miniature"] or {})
    with pytest.raises(UserError, match="miniature took 90 GiB on the GPU and a a100-80gb has 80"):
        planned(other.replace("gpus_per_run: 1", "gpus_per_run: 1, gpu: a100-80gb"))


def test_guesses_include_answers() -> None:
    _, expansion = wanted(SPEC)
    [first, _] = expansion.configs
    without, with_ = price.guessed(first, "cpu"), price.guessed(first, "cpu", expansion.evaluations)
    assert without is not None
    assert with_ is not None
    assert with_.answer is not None
    assert with_.middle == pytest.approx(without.middle + 500 * with_.answer)
