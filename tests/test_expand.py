"""spec -> runs: how many, which, in which order, under which names."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from pathlib import Path

import pytest

from em_core.errors import UserError
from sweeps.expand import Expansion, expand
from sweeps.spec import load_spec

pytestmark = pytest.mark.fast

EXAMPLE = """\
name: example
base: {model_name_or_path: miniature, method: em, max_steps: 20, num_generations: 8}
axes:
  learning_rate: {geomspace: [1.0e-4, 1.0e-3, 3]}
  temperature: [0.3, 0.7, 1.2]
zip:
  - {prompt: [plus, minus], max_completion_length: [24, 28]}
link: {loss_temperature: temperature}
arms:
  em: {method: em}
  rent: {method: rent, kl_coef: [0.0, 1.0e-3]}
exclude:
  - {learning_rate: 1.0e-3, temperature: 1.2}
random: {count: 20, seed: 0, fields: {learning_rate: {loguniform: [1.0e-5, 1.0e-3]}}}
seeds: 8
evaluate:
  - {tasks: [two_step_sums], steps: [0, 5, 10, 20], temperature: 0.0}
resources: {cpus_per_run: 1, timeout_min: 60}
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path.parent / "cache"))


def made(text: str, *sets: str) -> Expansion:
    Path("spec.yaml").write_text(text)
    return expand(load_spec(Path("spec.yaml"), sets))


def small(rest: str, *sets: str, seeds: str = "1", base: str = "prompt: plus, max_steps: 10") -> Expansion:
    return made(f"name: t\nbase: {{model_name_or_path: miniature, {base}}}\nseeds: {seeds}\n{rest}\n", *sets)


def values(e: Expansion, *names: str) -> list[tuple[object, ...]]:
    return [tuple(c.prompt_name if n == "prompt" else getattr(c.training, n) for n in names) for c in e.configs]


def column(e: Expansion, name: str) -> list[object]:
    return [v for (v,) in values(e, name)]


def test_example() -> None:
    """23 learning rates x 3 temperatures x 2 prompts, less the excluded pair, in one arm and twice in the other."""
    e = made(EXAMPLE)
    per_arm = 23 * 3 * 2 - 2
    assert Counter(w.arm for w in e.runs) == {"em": per_arm * 8, "rent": 2 * per_arm * 8}
    assert len(e.configs) == 3 * per_arm
    assert e.collapsed == 0
    assert e.sweep == "example"
    assert all(c.training.loss_temperature == (c.training.temperature if c.training.method == "em" else 0.5) for c in e.configs)
    assert set(values(e, "prompt", "max_completion_length")) == {("plus", 24), ("minus", 28)}
    [(eval_id, evaluation, steps)] = e.evaluations
    assert (evaluation.task, steps) == ("two_step_sums", (0, 5, 10, 20))
    assert eval_id == evaluation.eval_id()


def test_expansion_is_deterministic_and_unique() -> None:
    one, two = made(EXAMPLE), made(EXAMPLE)
    assert one == two
    assert len({c.config_id for c in one.configs}) == len(one.configs)
    assert len({(w.run_id, w.arm) for w in one.runs}) == len(one.runs)
    assert {w.run_id for w in one.runs} == {f"{c.config_id}-s{s}" for c in one.configs for s in range(8)}


def test_order_is_arm_then_axes_as_written_then_zip_then_seeds() -> None:
    e = small(
        "arms: {b: {top_k: 1}, a: {top_k: 2}}\n"
        "axes:\n  temperature: [0.7, 0.3]\n  learning_rate: [1e-3, 1e-4]\n"
        "zip: [{top_p: [0.5, 0.6], weight_decay: [0.0, 0.1]}]",
        seeds="[5, 2]",
    )
    order = itertools.product([1, 2], [0.7, 0.3], [1e-3, 1e-4], [(0.5, 0.0), (0.6, 0.1)])
    assert values(e, "top_k", "temperature", "learning_rate", "top_p", "weight_decay") == [
        (k, t, lr, *z) for k, t, lr, z in order
    ]
    assert [w.seed for w in e.runs[:4]] == [5, 2, 5, 2]
    assert list(dict.fromkeys(w.arm for w in e.runs)) == ["b", "a"]


def test_of_axes_that_advance_together_the_rows_differ_and_not_the_values() -> None:
    e = small("zip: [{temperature: [0.3, 0.3, 0.7], top_p: [0.5, 0.6, 0.5]}]")
    assert values(e, "temperature", "top_p") == [(0.3, 0.5), (0.3, 0.6), (0.7, 0.5)]
    with pytest.raises(UserError, match=r"spec.yaml:4: zip.0.temperature.1: .* is in the block twice"):
        small("zip: [{temperature: [0.3, 0.3], top_p: [0.5, 0.5]}]")


def test_two_zip_blocks_multiply() -> None:
    e = small("zip:\n  - {temperature: [0.3, 0.7], top_p: [0.5, 0.6]}\n  - {top_k: [1, 2, 3]}")
    assert len(e.configs) == 6
    assert set(values(e, "temperature", "top_p")) == {(0.3, 0.5), (0.7, 0.6)}


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ("{geomspace: [1.0e-4, 1.0e-3, 3]}", [1e-4, 10**-3.5, 1e-3]),
        ("{geomspace: [1e-3, 1e-5, 3]}", [1e-3, 1e-4, 1e-5]),
        ("{geomspace: [3e-4, 7e-4, 1]}", [3e-4]),
        ("{linspace: [0, 0.3, 4]}", [0.0, 0.1, 0.2, 0.3]),
        ("{range: [0.1, 0.5, 0.1]}", [0.1, 0.2, 0.3, 0.4, 0.5]),
        ("{range: [0.5, 0.0, -0.25]}", [0.5, 0.25, 0.0]),
        ("{range: [0.1, 0.45, 0.1]}", [0.1, 0.2, 0.3, 0.4]),
    ],
)
def test_spacings_end_exactly_and_are_rounded_as_they_are_hashed(said: str, wanted: list[float]) -> None:
    assert column(small(f"axes: {{learning_rate: {said}}}"), "learning_rate") == [float(f"{v:.12g}") for v in wanted]


def test_long_spacings_end_exactly() -> None:
    found = column(small("axes: {learning_rate: {geomspace: [3.0e-6, 7.0e-3, 57]}}"), "learning_rate")
    assert (found[0], found[-1], len(found)) == (3e-6, 7e-3, 57)


def test_whole_spacings_of_a_whole_field_are_whole() -> None:
    assert column(small("axes: {num_generations: {geomspace: [1, 8, 4]}}"), "num_generations") == [1, 2, 4, 8]
    assert column(small("axes: {top_k: {range: [10, 50, 20]}}"), "top_k") == [10, 30, 50]


def test_link_follows_axes_arms_base_and_defaults() -> None:
    link = "link: {loss_temperature: temperature}"
    assert set(values(small(f"axes: {{temperature: [0.3, 0.7]}}\n{link}"), "temperature", "loss_temperature")) == {
        (0.3, 0.3),
        (0.7, 0.7),
    }
    assert column(small(f"arms: {{a: {{temperature: 0.9}}}}\n{link}"), "loss_temperature") == [0.9]
    assert column(small(link), "loss_temperature") == [0.5]
    assert column(small(link, "temperature=0.4"), "loss_temperature") == [0.4]
    assert column(small(link, "loss_temperature=0.8"), "loss_temperature") == [0.8]


def test_another_model_has_other_keys() -> None:
    text = (
        "axes: {temperature: [0.3, 0.7]}\nmodels:\n  'org/*': {base: {prompt: minus}, axes: {top_p: [0.5, 0.6, 0.7]}, seeds: 2}"
    )
    here, there = small(text), small(text, "model_name_or_path=org/large", "top_k=7")
    assert values(here, "temperature", "prompt") == [(0.3, "plus"), (0.7, "plus")]
    assert values(there, "top_p", "prompt", "max_steps", "top_k") == [(p, "minus", 10, 7) for p in (0.5, 0.6, 0.7)]
    assert {c.training.model_name_or_path for c in there.configs} == {"org/large"}
    assert (len(here.runs), len(there.runs)) == (2, 6)
    assert column(small("models: {'*': {seeds: 3}}"), "prompt") == ["plus"], "the spec's own model is no other"
    with pytest.raises(UserError, match=r"spec.yaml:4: models.\*.axes.top_p.0: 'high' is not a number"):
        small("models: {'*': {axes: {top_p: [high]}}}", "model_name_or_path=org/large")


def test_arms_have_their_own_axes() -> None:
    e = small(
        "axes: {temperature: [0.3, 0.7]}\narms: {em: {method: em}, rent: {method: rent, kl_coef: [0.0, 0.1, 0.2]}}", seeds="2"
    )
    assert Counter(w.arm for w in e.runs) == {"em": 2 * 2, "rent": 2 * 3 * 2}
    assert {c.training.method for c in e.configs} == {"em", "rent"}


def test_a_field_the_method_does_not_read_leaves_its_id() -> None:
    """`kl_coef` is an axis of all arms; em does not read it, so its three points are one config."""
    e = small("axes: {kl_coef: [0.0, 0.1, 0.2]}\narms: {em: {method: em}, rent: {method: rent}}")
    assert Counter(w.arm for w in e.runs) == {"em": 1, "rent": 3}
    assert e.collapsed == 2
    assert [c.training.kl_coef for c in e.configs if c.training.method == "em"] == [0.0]


def test_the_same_run_wanted_by_two_arms_is_one_run() -> None:
    e = small("arms: {a: {temperature: 0.5}, b: {temperature: [0.5, 0.7]}}", seeds="2")
    assert len(e.configs) == 2
    assert [(w.arm, w.config.training.temperature, w.seed) for w in e.runs] == [
        *(("a", 0.5, s) for s in (0, 1)),
        *(("b", t, s) for t in (0.5, 0.7) for s in (0, 1)),
    ]
    assert len({w.run_id for w in e.runs}) == 4
    assert e.collapsed == 0


RANDOM = "random: {count: %d, seed: %d, fields: {temperature: {uniform: [0.1, 1.5]}, top_k: {randint: [1, 50]}}}"


def test_a_larger_count_keeps_the_earlier_draws() -> None:
    few, many = (values(small(RANDOM % (n, 0)), "temperature", "top_k") for n in (3, 30))
    assert many[:3] == few
    assert len(set(many)) == 30
    assert values(small(RANDOM % (3, 1)), "temperature", "top_k") != few


def test_draws_of_a_field_do_not_depend_on_the_others() -> None:
    alone = column(small("random: {count: 5, fields: {temperature: {uniform: [0.1, 1.5]}}}"), "temperature")
    assert alone == column(small(RANDOM % (5, 0)), "temperature")


def test_draws_stay_within_their_bounds() -> None:
    e = small(
        "random:\n  count: 200\n  fields:\n    learning_rate: {loguniform: [1e-6, 1e-2]}\n"
        "    temperature: {uniform: [0.2, 0.4]}\n"
        "    top_k: {randint: [3, 5]}\n    prompt: {choice: [plus, minus]}",
        base="max_steps: 10",
    )
    rates = [math.log10(float(str(v))) for v in column(e, "learning_rate")]
    assert -6 <= min(rates) < -5 < -3 < max(rates) <= -2
    assert 70 < sum(r < -4 for r in rates) < 130, "half of a log-uniform draw lies below the geometric middle"
    assert all(0.2 <= float(str(t)) <= 0.4 for t in column(e, "temperature"))
    assert set(column(e, "top_k")) == {3, 4, 5}
    assert set(column(e, "prompt")) == {"plus", "minus"}


def test_random_points_stand_beside_the_axes_they_name() -> None:
    e = small(
        "axes:\n  temperature: [0.5, 0.9]\n  top_p: [0.8, 0.9]\n"
        + "random: {count: 3, fields: {temperature: {uniform: [0.1, 0.2]}}}"
    )
    temperatures = list(dict.fromkeys(column(e, "temperature")))
    assert len(e.configs) == (2 + 3) * 2
    assert temperatures[:2] == [0.5, 0.9]
    assert all(0.1 <= float(str(t)) <= 0.2 for t in temperatures[2:])


def test_random_points_of_two_axes_join_their_product() -> None:
    fields = "{temperature: {uniform: [0.1, 0.2]}, top_p: {uniform: [0.1, 0.2]}}"
    e = small(f"axes:\n  temperature: [0.5, 0.9]\n  top_k: [1, 2]\n  top_p: [0.8, 0.9]\nrandom: {{count: 3, fields: {fields}}}")
    assert len(e.configs) == (2 * 2 + 3) * 2


def test_a_draw_that_comes_twice_is_one_config() -> None:
    e = small("random: {count: 40, fields: {top_k: {randint: [1, 4]}}}")
    assert len(e.configs) == 4
    assert e.collapsed == 36


def test_an_override_of_a_drawn_field_leaves_the_rest() -> None:
    e = small(RANDOM % (6, 0), "temperature=0.5")
    assert set(column(e, "temperature")) == {0.5}
    assert set(column(e, "top_k")) == set(column(small(RANDOM % (6, 0)), "top_k"))


def test_exclude_matches_by_closeness() -> None:
    axes = "axes:\n  learning_rate: {geomspace: [1.0e-4, 1.0e-3, 3]}\n  temperature: {range: [0.1, 0.3, 0.1]}\n"
    e = small(axes + "exclude: [{learning_rate: 3.1622776601683795e-4, temperature: 0.30000000000000004}, {temperature: 0.1}]")
    middle = 0.000316227766017
    assert values(e, "learning_rate", "temperature") == [(1e-4, 0.2), (1e-4, 0.3), (middle, 0.2), (1e-3, 0.2), (1e-3, 0.3)]


def test_exclude_takes_lists_arms_prompts_links_and_defaults() -> None:
    arms = "axes: {prompt: [plus, minus], temperature: [0.3, 0.7]}\narms: {a: {top_k: 1}, b: {top_k: 2}}\n"
    prompts = "max_steps: 10"
    assert len(small(arms + "exclude: [{arm: a}]", base=prompts).configs) == 4
    assert len(small(arms + "exclude: [{arm: [a], prompt: minus}]", base=prompts).configs) == 6
    assert len(small(arms + "exclude: [{temperature: [0.3, 0.5]}]", base=prompts).configs) == 4
    linked = arms + "link: {loss_temperature: temperature}\nexclude: [{loss_temperature: 0.3, top_p: 0.95}]"
    assert len(small(linked, base=prompts).configs) == 4


def test_a_rule_about_an_overridden_field_may_match_nothing() -> None:
    """`--set` must not make a sound spec unsound; a rule about other fields must still match."""
    text = "axes: {temperature: [0.3, 0.7], top_k: [1, 2]}\nlink: {loss_temperature: temperature}\n"
    assert len(small(text + "exclude: [{temperature: 0.7}]", "temperature=0.5").configs) == 2
    assert len(small(text + "exclude: [{loss_temperature: 0.7}]", "temperature=0.5").configs) == 2
    with pytest.raises(UserError, match="matches no point"):
        small(text + "exclude: [{top_k: 7}]", "temperature=0.5")


def test_seeds_are_a_count_or_a_list() -> None:
    assert [w.seed for w in small("", seeds="3").runs] == [0, 1, 2]
    assert [w.seed for w in small("", seeds="[9, 4]").runs] == [9, 4]
    more = {w.run_id for w in small("", seeds="5").runs}
    assert {w.run_id for w in small("", seeds="3").runs} < more


def test_overrides_win_over_axes_and_arms_and_zips() -> None:
    e = small(
        "axes: {temperature: [0.3, 0.7]}\nzip: [{top_p: [0.5, 0.6], top_k: [1, 2]}]\narms: {a: {weight_decay: [0.0, 0.1]}}",
        "temperature=0.5",
        "top_p=0.9",
        "weight_decay=0.2",
    )
    assert values(e, "temperature", "top_p", "top_k", "weight_decay") == [(0.5, 0.9, 1, 0.2), (0.5, 0.9, 2, 0.2)]
    assert e.sweep == "t+temperature=0.5+top_p=0.9+weight_decay=0.2"


def test_rehearsal_has_the_runs_of_what_it_rehearses() -> None:
    text = "axes: {temperature: [0.3, 0.7]}\narms: {em: {method: em}, rent: {method: rent, kl_coef: [0.1, 0.2]}}"
    assert len(small(text, "method=noop").runs) == len(small(text).runs)


def test_measurements_change_no_config() -> None:
    one = small("evaluate: [{tasks: [two_step_sums], steps: [0, 10]}]")
    two = small("evaluate: [{tasks: [two_step_sums], steps: [5], temperature: [0.0, 0.7], num_samples: 4}]")
    assert one.configs == two.configs
    assert len(two.evaluations) == 2


def test_the_same_measurement_twice_has_the_union_of_its_steps() -> None:
    e = small("evaluate:\n  - {tasks: [two_step_sums], steps: [last, 5]}\n  - {tasks: [two_step_sums], steps: [0, 5]}")
    assert [steps for _, _, steps in e.evaluations] == [(0, 5, "last")]


def test_paths_are_relative_to_the_spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "specs"
    folder.mkdir()
    (folder / "mine.jsonl").write_text('{"q": "1+1", "a": "2"}\n')
    (folder / "mine.txt").write_text("\nWhat is 1+1?\n")
    (folder / "spec.yaml").write_text(
        "name: t\nbase: {model_name_or_path: miniature, prompt: {file: mine.txt}}\nseeds: 1\n"
        "evaluate: [{tasks: [{file: mine.jsonl, question: q, answer: a}]}]\n"
    )
    e = expand(load_spec(folder / "spec.yaml"))
    [(_, evaluation, _)] = e.evaluations
    assert evaluation.task == str(folder / "mine.jsonl")
    assert e.configs[0].training.prompt == "What is 1+1?"
    assert e.configs[0].prompt_name == "mine"


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_prompts_from_tables(suffix: str) -> None:
    rows = [{"prompt": "first", "n": 1}, {"prompt": "second", "n": 2}]
    path = Path(f"p.{suffix}")
    if suffix == "csv":
        path.write_text("prompt,n\nfirst,1\nsecond,2\n")
    elif suffix == "jsonl":
        path.write_text(
            "".join(
                f'{{"prompt": [{{"role": "system", "content": "x"}}, {{"role": "user", "content": "{r["prompt"]}"}}]}}\n'
                for r in rows
            )
        )
    else:
        from pyarrow import Table, parquet

        parquet.write_table(Table.from_pylist(rows), path)
    e = small(f"axes: {{prompt: [{{file: p.{suffix}}}, {{file: p.{suffix}, column: prompt, row: 1}}]}}", base="max_steps: 1")
    assert [(c.training.prompt, c.prompt_name) for c in e.configs] == [("first", "p#0"), ("second", "p#1")]


def test_a_prompt_is_its_text_not_its_place() -> None:
    Path("a.txt").write_text("Q:12+7+5=?\n")
    shipped, mine, file = (
        small("", base=f"prompt: {p}").configs[0].config_id for p in ("plus", "{text: 'Q:12+7+5=?'}", "{file: a.txt}")
    )
    assert shipped == mine == file
