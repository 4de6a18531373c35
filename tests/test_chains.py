"""Chains: a spec's `stages:` expanded, judged, and trained for real on the miniature."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from analysis.queries import load, sql
from analysis.versus import versus
from em_core.checkpoints import Keeper, ParentGone
from em_core.config import RunRequest, TrainingConfig
from em_core.errors import UserError
from em_core.journal import RunStatus, SweepDir, read_records
from em_core.trainer import Trainer
from launchers.base import JobState
from sweeps.expand import Config, Expansion, Wanted, expand
from sweeps.gc import find_litter
from sweeps.manifest import CONFIRM, Manifest, Run, additions
from sweeps.observe import Observer
from sweeps.plan import make_plan, todo_of
from sweeps.reconcile import View
from sweeps.spec import Spec, load_spec
from tests.conftest import Emsweep
from tests.models import CPU, Records, config, request, run
from tests.test_kill import REPO, numbers
from tests.test_parallel import PAIR, RENT, alone, compare, team
from tests.test_reconcile import attempt, job, judge, tried

SPEC = """\
name: order
base:
  {model_name_or_path: miniature, prompt: plus, num_generations: 8, max_completion_length: 24, temperature: 0.7, top_p: 1.0,
   top_k: 0, repetition_penalty: 1.0, learning_rate: 5.0e-4, max_steps: 2}
stages:
  em: {base: {method: em}}
  em_rent: {from_step: [0, last], base: {method: rent, kl_coef: 0.1}}
seeds: 2
evaluate: [{tasks: [two_step_sums], steps: [0, last], limit: 300}]
resources: {timeout_min: 5}
"""


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Expansion]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path.parent / "cache"))

    def call(text: str = SPEC, *sets: str) -> Expansion:
        return expand(loaded(tmp_path, text, *sets))

    return call


def loaded(folder: Path, text: str = SPEC, *sets: str) -> Spec:
    (folder / "order.yaml").write_text(text)
    return load_spec(folder / "order.yaml", sets)


def stages(e: Expansion) -> dict[str | None, list[Config]]:
    found: dict[str | None, list[Config]] = {}
    for w in e.runs:
        if w.config not in found.setdefault(w.arm, []):
            found[w.arm].append(w.config)
    return found


# -- what a spec says ---------------------------------------------------------------------------------------------


@pytest.mark.fast
def test_a_child_is_its_own_axes_times_parents_times_steps(made: Callable[..., Expansion]) -> None:
    text = SPEC.replace(
        "em: {base: {method: em}}", "em: {base: {method: em, max_steps: 4}, axes: {learning_rate: [1e-4, 2e-4, 3e-4]}}"
    )
    text = text.replace("kl_coef: 0.1}}", "}, axes: {kl_coef: [0.0, 0.1]}}").replace("[0, last]", "[1, 2, last]")
    e = made(text)
    found = stages(e)
    assert [len(found[s]) for s in ("em", "em_rent")] == [3, 3 * 3 * 2]
    assert len(e.runs) == (3 + 18) * 2
    parents = [c.config_id for c in found["em"]]
    points = {(c.training.parent, c.training.from_step, c.training.kl_coef) for c in found["em_rent"]}
    assert points == {(p, s, k) for p in parents for s in (1, 2, 4) for k in (0.0, 0.1)}, "`last` is the parent's last step"
    assert all(c.training.max_steps == 2 and c.training.method == "rent" for c in found["em_rent"]), "nothing else is inherited"
    assert {c.config_id for c in made(text.replace("2e-4, ", "")).configs} < {c.config_id for c in e.configs}


@pytest.mark.fast
def test_step_0_of_a_parent_is_the_model_itself_and_is_trained_once(made: Callable[..., Expansion]) -> None:
    e = made(SPEC.replace("seeds:", "  rent: {after: base, base: {method: rent, kl_coef: 0.1}}\nseeds:"))
    found = stages(e)
    [plain] = found["rent"]
    assert plain in found["em_rent"]
    assert plain.training.parent is None
    text = SPEC.replace("stages:\n  em: {base: {method: em}}\n", "arms:\n").replace("from_step: [0, last], base: ", "")
    text = text.replace("em_rent: {{method: rent, kl_coef: 0.1}}", "rent: {method: rent, kl_coef: 0.1}")
    [same] = made(text).configs
    assert same.config_id == plain.config_id, "and it is the config of a spec without stages"


@pytest.mark.fast
def test_a_chain_of_three_and_the_models_go_down_it(made: Callable[..., Expansion]) -> None:
    text = SPEC.replace("seeds:", "  back: {from_step: [0, 1], base: {method: em, learning_rate: 1e-4}}\nseeds:")
    found = stages(made(text.replace("from_step: [0, last]", "from_step: 2")))
    [em], [rent], back = found["em"], found["em_rent"], found["back"]
    assert (rent.training.parent, rent.training.from_step) == (em.config_id, 2)
    starts = [(c.training.parent, c.training.from_step) for c in back]
    assert starts == [(em.config_id, 2), (rent.config_id, 1)], "step 0 of a child is what its parent left"
    rehearsed = stages(made(text.replace("from_step: [0, last]", "from_step: 2"), "method=noop"))
    assert rehearsed["em_rent"][0].training.parent == rehearsed["em"][0].config_id


@pytest.mark.fast
@pytest.mark.parametrize(
    ("old", "new", "line", "said"),
    [
        ("[0, last]", "[0, 9]", 7, "stages.em_rent.from_step.1: step 9 is beyond max_steps (2) of every run of `em`"),
        ("[0, last]", "[1, 1]", 7, "stages.em_rent.from_step.1: 1 is in the axis twice"),
        ("{from_step", "{after: me, from_step", 7, "stages.em_rent.after: unknown stage `me`; did you mean `em`?"),
        ("em: {base", "em: {after: em_rent, base", 6, "stages.em.after: `em_rent` is not before it"),
        ("em: {base", "em: {from_step: 2, base", 6, "stages.em.from_step: it starts from the base model"),
        ("em: {base", "eval: {base", 6, "stages.eval: `eval` cannot be the name of a stage: letters, digits and `_`"),
        ("em: {base", "em: {bas", 6, "stages.em.bas: unknown key `bas`; did you mean `base`?"),
        ("method: em}", "method: en}", 6, "stages.em.base.method: unknown method `en`"),
        ("method: em}", "method: em, kl_coef: 1.0}", 6, "stages.em.base.kl_coef: nobody reads `kl_coef`"),
        ("method: em}", "method: em, parent: x}", 6, "stages.em.base.parent: `parent` is not set by hand"),
        ("method: rent,", "method: rent, model_name_or_path: x,", 7, "stages.em_rent.base.model_name_or_path: a stage after"),
        ("seeds:", "axes: {top_p: [0.9, 1.0]}\nseeds:", 8, "axes: with `stages:` every stage has its own"),
        ("method: em}}", "method: em}, axes: {max_steps: []}}", 6, "stages.em.axes.max_steps: an empty axis"),
        ("method: em}}", "method: external, command: ls}}", 6, "stages.em: a trainer of your own cannot be part of a chain"),
        ("em: {base: {method: em}}", "em: {resources: {mem_gb: 2}}", 6, "stages.em.resources: are for runs"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_at_its_place(made: Callable[..., Expansion], old: str, new: str, line: int, said: str) -> None:
    assert old in SPEC
    with pytest.raises(UserError) as caught:
        made(SPEC.replace(old, new, 1))
    assert f"order.yaml:{line}: {said}" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.fast
def test_a_field_that_some_stage_reads_may_be_shared_or_overridden(made: Callable[..., Expansion]) -> None:
    shared = SPEC.replace("max_steps: 2}\n", "max_steps: 2, kl_coef: 0.3}\n").replace(", kl_coef: 0.1", "")
    assert {c.training.kl_coef for c in made(shared).configs} == {0.0, 0.3}
    assert {c.training.kl_coef for c in made(SPEC, "kl_coef=0.5").configs} == {0.0, 0.5}
    with pytest.raises(UserError, match="--set from_step: `from_step` is not set by hand"):
        made(SPEC, "from_step=1")


@pytest.mark.fast
def test_a_stage_has_its_resources_over_those_of_the_spec(tmp_path: Path) -> None:
    spec = loaded(tmp_path, SPEC.replace("kl_coef: 0.1}}", "kl_coef: 0.1}, resources: {cpus_per_run: 3}}"))
    rules = {c.training.method: spec.resources_for(c.training.model_dump()) for c in expand(spec).configs}
    assert {m: (r.cpus_per_run, r.timeout_min) for m, r in rules.items()} == {"em": (1, 5), "rent": (3, 5)}


# -- where runs stand ---------------------------------------------------------------------------------------------


def chained(*links: tuple[str, str | None, int], method: str = "em") -> Manifest:
    """A manifest of runs with one seed: (config, parent, step)."""
    m = Manifest()
    for name, parent, step in links:
        training = TrainingConfig(
            model_name_or_path="miniature", prompt="Q", method=method, max_steps=10, parent=parent, from_step=step
        )
        m.configs[name] = Config(name, "sha256:0", "plus", training)
        m.runs[f"{name}-s0"] = Run(f"{name}-s0", name, 0, "spec", "explore", [None])
    return m


ROW = (("a", None, 0), ("b", "a", 5), ("c", "b", 10))


def states(view: View) -> str:
    return " ".join(f"{r[0]}:{s}" for r, s in view.states.items())


@pytest.mark.fast
def test_a_child_is_handed_out_when_its_parent_has_left_it_something() -> None:
    m = chained(*reversed(ROW))
    nothing = judge(m, [], [], {})
    assert (states(nothing), nothing.train) == ("c:waiting b:waiting a:new", ("a-s0",)), "whatever their order"
    over = [tried(attempt("a-s0", RunStatus.COMPLETED), ended="done")]
    begun = judge(m, over, [], {}, starts={("a-s0", 5)})
    assert (states(begun), begun.train) == ("c:waiting b:new a:completed", ("b-s0",))
    both = [*over, tried(attempt("b-s0", RunStatus.COMPLETED, job="j1"), job="j1", ended="done")]
    assert judge(m, both, [], {}, starts={("a-s0", 5), ("b-s0", 10)}).train == ("c-s0",)
    running = judge(m, [tried(attempt("a-s0", RunStatus.RUNNING))], [job("j0", "a-s0")], {"j0": JobState.RUNNING})
    assert (states(running), running.train) == ("c:waiting b:waiting a:running", ())


@pytest.mark.fast
@pytest.mark.parametrize("status", [RunStatus.FAILED, RunStatus.DIVERGED, RunStatus.EXCLUDED])
def test_no_end_that_leaves_nothing_is_waited_for(status: RunStatus) -> None:
    m = chained(*ROW)
    if status is RunStatus.EXCLUDED:
        m.excluded["a-s0"] = "odd"
    view = judge(m, [tried(attempt("a-s0", status), ended="done")], [], {})
    assert states(view) == f"a:{status} b:blocked c:blocked"
    assert (view.train, view.again) == ((), {})
    assert set(view.blocked.values()) == {f"its parent a-s0 {'is' if status is RunStatus.EXCLUDED else 'has'} {status}"}


@pytest.mark.fast
def test_a_parent_whose_checkpoint_is_gone_is_trained_again_once() -> None:
    m = chained(*ROW)
    done = attempt("a-s0", RunStatus.COMPLETED)
    view = judge(m, [tried(done, ended="done")], [], {}, starts={("a-s0", 4)})
    assert (states(view), view.again, view.train) == ("a:completed b:waiting c:waiting", {"a-s0": False}, ())
    assert todo_of(view, retrain=False) == [("a-s0", ())]
    again = judge(m, [tried(done)], [job("j1", "a-s0")], {"j1": JobState.PENDING})
    assert (states(again), again.again) == ("a:completed b:waiting c:waiting", {})
    vain = [attempt("a-s0", RunStatus.COMPLETED, number=i, pinned=[5]) for i in range(3)]
    assert judge(m, [tried(done, *vain[:2], ended="done")], [], {}).again == {"a-s0": False}
    assert judge(m, [tried(done, *vain, ended="done")], [], {}).again == {"a-s0": True}, "often enough"
    failed = judge(m, [tried(done, attempt("a-s0", RunStatus.FAILED, number=1), ended="done")], [], {})
    assert states(failed) == "a:completed b:blocked c:blocked"
    assert failed.blocked["b-s0"] == "its parent a-s0 failed when it was trained again for its step 5"
    elsewhere = judge(m, [], [], {}, done_elsewhere={"a-s0": done})
    assert elsewhere.again == {"a-s0": False}, "also where it was trained for another sweep"


@pytest.mark.fast
def test_the_whole_chain_is_made_again_from_its_top() -> None:
    m = chained(*ROW)
    tries = [tried(attempt("a-s0", RunStatus.COMPLETED), attempt("b-s0", RunStatus.COMPLETED), ended="done")]
    view = judge(m, tries, [], {})
    assert (states(view), list(view.again)) == ("a:completed b:completed c:waiting", ["a-s0"])
    assert list(judge(m, tries, [], {}, starts={("a-s0", 5)}).again) == ["b-s0"]


@pytest.mark.fast
def test_a_rehearsal_keeps_no_checkpoints_and_needs_none() -> None:
    view = judge(chained(*ROW, method="noop"), [tried(attempt("a-s0", RunStatus.COMPLETED), ended="done")], [], {})
    assert view.train == ("b-s0",)


@pytest.mark.fast
def test_who_confirms_a_child_gets_its_parents_too() -> None:
    m = chained(*ROW)
    c = m.configs["c"]
    batch = additions(m, Expansion("t", (c,), (Wanted("c-s9", c, 9, None),), ()), CONFIRM, {})
    asked = [(r["run_id"], r["stage"], r["why"]) for kind, r in batch if kind == "run"]
    assert asked == [("a-s9", "parent", CONFIRM), ("b-s9", "parent", CONFIRM), ("c-s9", "confirm", CONFIRM)]


@pytest.mark.fast
def test_pinned_steps_stay_beside_those_that_keep_asks_for(tmp_path: Path) -> None:
    def save(folder: Path) -> None:
        (folder / "config.json").write_text("{}")

    for keep, kept in (("none", [2, 4]), ("last", [2, 4, 5]), ("best:1", [2, 3, 4])):
        keeper = Keeper(tmp_path / keep, keep, 5, save, pinned=(2, 4))
        for step, accuracy in {1: 0.3, 2: None, 3: 0.7, 4: 0.9, 5: 0.2}.items():
            keeper.offer(step, accuracy)
        records = Records()
        keeper.emit(records)
        assert [r["step"] for r in records.of("checkpoint")] == kept
        assert sorted(p.name for p in (tmp_path / keep).iterdir()) == [f"step-{s}" for s in kept]


# -- for real -----------------------------------------------------------------------------------------------------


def accuracies(sweep: SweepDir) -> dict[str, dict[int, Any]]:
    """Run -> step -> its answers, from the attempt that counts."""
    found = numbers(sweep.root, sweep.sweep)
    return {run: {r["step"]: r["outcomes"] for r in records if r["kind"] == "eval"} for run, records in found.items()}


def records_of(sweep: SweepDir, kind: str) -> list[dict[str, Any]]:
    return [r for path in sweep.all_journals() for r in read_records(path, (f'{{"kind":"{kind}"'.encode(),))]


def attempts(sweep: SweepDir) -> list[dict[str, Any]]:
    return records_of(sweep, "run_start")


def begun(folder: Path) -> subprocess.Popen[bytes]:
    """`emsweep run order.yaml`, under way."""
    command = [sys.executable, "-m", "sweeps.cli", "run", "order.yaml", "--launcher", "local"]
    env = {**os.environ, "PYTHONPATH": str(REPO)}
    return subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def until(seconds: float, process: subprocess.Popen[bytes], check: Callable[[], bool]) -> None:
    end = time.monotonic() + seconds
    while not check() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.02)
    assert check()


@pytest.mark.long
@pytest.mark.slow
def test_a_chain_on_this_machine(tmp_path: Path, emsweep: Emsweep) -> None:
    spec = loaded(tmp_path)
    e = expand(spec)
    plan = make_plan(spec, e, tmp_path / "runs", "local")
    assert (plan.runs, plan.new, plan.waiting, plan.to_train) == (6, 4, 2, 6)
    said = emsweep("plan", "order.yaml", check=0).stdout
    assert "stage em_rent after em (from step 0, last): 2 configs, 4 runs, 0 done" in said
    assert "4 new, 2 waiting for their parents" in said
    emsweep("run", "order.yaml", "--launcher", "local", check=0)
    sweep = SweepDir(tmp_path / "runs", "order")
    [em], [plain, child] = stages(e)["em"], stages(e)["em_rent"]
    started = attempts(sweep)
    assert sorted(r["run_id"] for r in started) == sorted(w.run_id for w in e.runs), "every run once, the parents too"
    scores = accuracies(sweep)
    for seed in (0, 1):
        parent, own, base = (f"{c.config_id}-s{seed}" for c in (em, child, plain))
        assert scores[own][0] == scores[parent][2], "a child begins where its parent of the same seed ended"
        assert scores[own][0] != scores[base][0] == scores[parent][0]
        [start] = [r for r in started if r["run_id"] == own]
        assert start["start_from"] == f"order/checkpoints/{parent}/step-2"
    assert scores[f"{child.config_id}-s0"][0] != scores[f"{child.config_id}-s1"][0]

    found = find_litter(sweep.root, "order", None, remove=True)
    assert len(found.litter) == 2, "nobody needs the parents' checkpoints any more"
    emsweep("run", "order.yaml", "--launcher", "local", check=0)
    assert len(attempts(sweep)) == 6, "and what is done stays done"

    more = SPEC.replace("seeds: 2", "seeds: 2\ndescription: more").replace("kl_coef: 0.1}", "kl_coef: 0.2}")
    plan = make_plan(loaded(tmp_path, more), expand(loaded(tmp_path, more)), sweep.root, "local")
    assert (plan.again, plan.waiting, plan.to_train) == (2, 2, 6)
    assert "2 done runs are trained again: runs that start from them need a checkpoint" in emsweep("plan", "order.yaml").stdout
    emsweep("run", "order.yaml", "--launcher", "local", check=0)
    assert find_litter(sweep.root, "order", None, remove=False).starts == 0
    again = accuracies(sweep)
    assert {r: s for r, s in again.items() if r in scores} == scores
    assert sum(r["run_id"] == f"{em.config_id}-s0" for r in attempts(sweep)) == 2


@pytest.mark.long
@pytest.mark.slow
def test_the_results_know_the_chain(tmp_path: Path, emsweep: Emsweep) -> None:
    text = SPEC.replace("em: {base: {method: em}}", "em: {base: {method: noop}, axes: {learning_rate: [1.0e-4, 2.0e-4]}}")
    text = text.replace("method: rent, kl_coef: 0.1}", "method: noop}, axes: {learning_rate: [3.0e-4, 4.0e-4]}")
    e = expand(loaded(tmp_path, text))
    emsweep("run", "order.yaml", "--launcher", "local", check=0)
    db = tmp_path / "results.duckdb"
    found = stages(e)
    rows = sql(db, "SELECT config_id, ancestor, depth, from_step, learning_rate FROM chains ORDER BY ALL").rows()
    rate = {c.config_id: c.training.learning_rate for c in e.configs}
    children = [c for c in found["em_rent"] if c.training.parent]
    assert rows == sorted((c.config_id, p, 1, 2, rate[p]) for c in children if (p := c.training.parent))
    frames = load("order", db)
    assert frames.stage_columns == ("em_learning_rate",)
    told = frames.scores.unique("config_id").select("config_id", "em_learning_rate", "em_rent_learning_rate", "from_step").rows()
    want = {(c.config_id, rate[c.config_id], None, 0) for c in found["em"]}
    want |= {(c.config_id, rate.get(c.training.parent or ""), rate[c.config_id], c.training.from_step) for c in found["em_rent"]}
    assert set(told) == want
    both = versus(db, "order:em_rent", "order:em")
    assert both.key == ("em_learning_rate",), "a child is paired with its own parent, not with who has its learning rate"
    assert sorted(both.cells["em_learning_rate"]) == [1e-4, 2e-4]
    assert both.alone == (1, 0), "where nothing was trained before there is nobody to be compared with"
    said = " ".join(emsweep("report", "order", check=0).stdout.split())
    assert "em_learning_rate=" in said
    assert "before training (of a run that goes on from another, what that one left)" in said

    emsweep("confirm", "order", "--top", "8", "--seeds", "2", "--launcher", "local", check=0)
    counts = sql(
        db, "SELECT stage, count(*) AS n FROM sweep_runs JOIN runs USING (run_id) WHERE status = 'completed' GROUP BY ALL"
    )
    assert dict(counts.rows()) == {"explore": 16, "confirm": 16}


@pytest.mark.slow
def test_a_parent_that_fails_blocks_its_children_and_the_sweep_ends(tmp_path: Path, emsweep: Emsweep) -> None:
    loaded(tmp_path)
    env = {"EMSWEEP_NOOP_FAULT": "bug"}
    done = emsweep("run", "order.yaml", "--launcher", "local", "--set", "method=noop", env=env, check=1, timeout=60)
    assert "2 runs could not start; of " in done.stdout
    name = "order+method=noop"
    told = json.loads(emsweep("status", name, "--json", check=0).stdout)[0]
    assert (told["failed"], told["blocked"], told["waiting"]) == (4, 2, 0)
    assert "cannot start: its parent" in emsweep("status", name, check=0).stdout
    emsweep("retry", name, check=0)
    emsweep("run", "order.yaml", "--launcher", "local", "--set", "method=noop", check=0)
    assert json.loads(emsweep("status", name, "--json", check=0).stdout)[0]["completed"] == 6


@pytest.mark.parametrize(
    "method", [pytest.param("noop", marks=pytest.mark.slow), pytest.param("em", marks=[pytest.mark.slow, pytest.mark.long])]
)
def test_killed_at_every_stage_it_ends_with_the_same_numbers(tmp_path: Path, emsweep: Emsweep, method: str) -> None:
    loaded(
        tmp_path, SPEC if method == "em" else SPEC.replace("method: em", "method: noop").replace("method: rent", "method: noop")
    )
    emsweep("run", "order.yaml", "--launcher", "local", "--root", "calm", check=0)
    calm = numbers(tmp_path / "calm", "order")
    sweep = SweepDir(tmp_path / "runs", "order")
    for seen in (1, 5):  # while the parents train, and while the children do
        with begun(tmp_path) as process:
            until(60, process, lambda seen=seen: len(attempts(sweep)) >= seen)  # type: ignore[misc]
            process.send_signal(signal.SIGKILL)
    emsweep("run", "order.yaml", "--launcher", "local", check=0)
    assert numbers(tmp_path / "runs", "order") == calm


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_worker_goes_from_start_to_start(tmp_path: Path, dtype: str) -> None:
    """For runs that start elsewhere the weights, the KL term's reference and remembered answers are those of the start."""
    trainer = Trainer(CPU)
    alone = run(Trainer(CPU), request(config(dtype=dtype, method="rent", kl_coef=0.1), tmp_path / "x", steps=(0, 3)))[
        1
    ].timeless()
    _, parent = run(trainer, request(config(dtype=dtype, max_steps=2), tmp_path / "a-s0", steps=(0, 2), pinned=(2,)))
    folder = tmp_path / "a-s0" / "step-2"
    child = config(dtype=dtype, method="rent", kl_coef=0.1, parent="a", from_step=2)
    _, records = run(trainer, request(child, tmp_path / "b", steps=(0, 3), start_from=str(folder)))
    first, second = (r["outcomes"] for r in parent.of("eval"))
    assert records.of("eval")[0]["outcomes"] == second != first
    assert abs(records.of("metrics")[0]["values"]["kl"]) < 1e-6 < records.of("metrics")[1]["values"]["kl"]
    left = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    assert trainer._loaded is not None
    assert all(torch.equal(base, left[name]) for name, base in trainer._loaded[1].policy.base.items())
    again = request(config(dtype=dtype, method="rent", kl_coef=0.1), tmp_path / "x", steps=(0, 3))
    assert run(trainer, again)[1].timeless() == alone, "and back at the model itself"
    gone = request(child, tmp_path / "c", start_from=str(tmp_path / "a-s0" / "step-3"))
    with pytest.raises(ParentGone, match="the checkpoint of step 2 of its parent a-s0 is gone"):
        run(trainer, gone)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("fsdp", [False, True], ids=["whole", "sharded"])
def test_two_processes_start_from_a_checkpoint_as_one_does(tmp_path: Path, fsdp: bool) -> None:
    run(Trainer(CPU), request(config(max_steps=2), tmp_path / "order" / "checkpoints" / "a-s0", pinned=(2,)))
    start = str(tmp_path / "order" / "checkpoints" / "a-s0" / "step-2")

    def child(folder: str) -> RunRequest:
        wanted = config(num_generations=6, parent="a", from_step=2, **RENT)
        return request(wanted, tmp_path / "order" / folder / "r", steps=(0, 3), start_from=start)

    with team(tmp_path, PAIR.model_copy(update={"fsdp": fsdp})) as workers:
        workers.tell(request(config(max_steps=1), tmp_path / "order" / "other" / "r").as_json())
        workers.until("run_end")
        workers.tell(child("many").as_json())
        many = workers.until("run_end")
    assert many[0]["start_from"] == "order/checkpoints/a-s0/step-2"
    compare(alone(child("one")), many)


@pytest.mark.slow
@pytest.mark.long
def test_a_checkpoint_that_vanished_when_its_turn_came_is_made_again(tmp_path: Path, emsweep: Emsweep) -> None:
    """The child was handed out when it was there; its job finds it gone, and the next rounds train the parent again."""
    text = SPEC.replace("[0, last], base", "last, base").replace("seeds: 2", "seeds: 1")
    [_, child] = expand(loaded(tmp_path, text)).configs
    sweep = SweepDir(tmp_path / "runs", "order")
    with begun(tmp_path) as process:
        until(60, process, sweep.assignment("b0001-00000").exists)
        shutil.rmtree(sweep.checkpoints)
        assert process.wait(timeout=120) == 0
    tried = [(r["run_id"].startswith(child.config_id), r["cause"]) for r in records_of(sweep, "run_end")]
    assert tried == [(False, ""), (True, "parent gone"), (False, ""), (True, "")]
    assert Observer(sweep).look().count(RunStatus.COMPLETED) == 2
