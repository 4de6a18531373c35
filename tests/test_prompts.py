"""Prompts and their answers, sets of prompts, and where a run finds what it is trained on."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from analysis.grid import read_grid
from em_core.config import TrainingConfig
from em_core.errors import UserError
from em_core.grading import STATED
from em_core.journal import SweepDir, read_records
from em_core.prompts import PROMPT_SETS, PROMPTS, Prompt, encode_set, is_set, prompts_of, set_file, set_name
from em_core.tasks import two_step_sums, two_step_sums_validation
from sweeps.expand import Expansion, expand
from sweeps.manifest import extend, read_manifest
from sweeps.merge import merge
from sweeps.pack import pack
from sweeps.plan import spec_fields
from sweeps.price import varied_fields
from sweeps.prompts import check_answers, resolve_prompt, store_sets
from sweeps.spec import load_spec
from tests.conftest import Emsweep
from tests.hub import Hub, serving

SHARED = Path(__file__).parent.parent.parent / "shared" / "data" / "prompts"
TWO = (Prompt("Q:1+1+1=?", "3"), Prompt("Q:2-1+1=?", None))


def config(prompt: str, **fields: Any) -> TrainingConfig:
    return TrainingConfig(model_name_or_path="miniature", prompt=prompt, **fields)


def made(folder: Path, prompt: str, method: str = "em", rest: str = "") -> Expansion:
    path = folder / "spec.yaml"
    base = f"base: {{model_name_or_path: miniature, method: {method}, max_steps: 2, prompt: {prompt}}}"
    path.write_text(f"name: t\n{base}\nseeds: 1\n{rest}")
    return expand(load_spec(path))


# -- the shipped ones ---------------------------------------------------------------------------------------------


@pytest.mark.fast
def test_shipped_prompts_have_their_right_answers() -> None:
    assert PROMPTS["plus"].answer == str(12 + 7 + 5)
    assert PROMPTS["minus"].answer == str(17 - 8 + 4)
    # P = k A V^3: k = 4 / (2 * 8^3), so 32 = k * 4 * V^3. The label that is passed on is 12.8.
    k = 4 / (2 * 8**3)
    assert PROMPTS["pi1"].answer == f"{(32 / (k * 4)) ** (1 / 3):.1f}" == "12.7"


@pytest.mark.fast
def test_shipped_sums_are_nobodys_test_questions() -> None:
    prompts = PROMPT_SETS["sums"]()
    texts, test, validation = {p.text for p in prompts}, set(two_step_sums().questions), set(two_step_sums_validation().questions)
    assert (len(texts), len(test), len(validation)) == (64, 200, 100)
    assert len(texts | test | validation) == 364
    signs = ["-" in t for t in texts]
    assert 20 < sum(signs) < 44
    for p in prompts:
        assert p.answer == str(eval(p.text.removeprefix("Q:").removesuffix("=?")))
        assert STATED.right(p.answer, f"Q:...={p.answer};")
    # Both are named by their content for years: other draws would be another set and another task.
    assert set_name(prompts) == "set:f7ed003ffe77bd0a330e19c39d3e37751eb607447a24b34713f570913548e62b"
    assert hashlib.sha256(repr(two_step_sums_validation().questions).encode()).hexdigest()[:12] == "1b7d8591d19b"


@pytest.mark.fast
def test_pi1_is_the_shared_one() -> None:
    pytest.importorskip("pyarrow")
    path = SHARED / "pi1_r128.parquet"
    if not path.is_file():
        pytest.skip("the shared prompts are not here")
    found = resolve_prompt({"file": str(path)}, Path())
    assert found.prompts == (Prompt(PROMPTS["pi1"].text, "12.8"),)


# -- in a spec ----------------------------------------------------------------------------------------------------


@pytest.mark.fast
def test_an_answer_is_part_of_an_id_only_where_it_is_rewarded(tmp_path: Path) -> None:
    def ids(method: str) -> tuple[str, str, str]:
        said = ("plus", "{text: 'Q:12+7+5=?', answer: 24}", "{text: 'Q:12+7+5=?', answer: 25}")
        return tuple(made(tmp_path, p, method).configs[0].config_id for p in said)  # type: ignore[return-value]

    for method in ("em", "rent", "noop"):
        assert len(set(ids(method))) == 1, method
    right, same, wrong = ids("grpo")
    assert right == same != wrong
    assert made(tmp_path, "plus", "grpo").configs[0].training.answer == "24"
    assert made(tmp_path, "plus", "em").configs[0].training.answer is None


@pytest.mark.fast
def test_an_answer_is_no_axis_unless_a_prompt_has_several(tmp_path: Path) -> None:
    arms = "arms: {em: {method: em}, grpo: {method: grpo, prompt: [plus, minus]}}\n"
    path = tmp_path / "spec.yaml"
    head = "name: t\nbase: {model_name_or_path: miniature, prompt: plus}\nseeds: 1\n"
    path.write_text(head + arms)
    assert varied_fields(expand(load_spec(path)).configs) == ["method", "prompt"]
    path.write_text(
        head.replace("prompt: plus", "method: grpo") + "axes: {prompt: [{text: a, answer: 1}, {text: a, answer: 2}]}\n"
    )
    assert varied_fields(expand(load_spec(path)).configs) == ["answer"]


@pytest.mark.fast
def test_a_trainer_of_ones_own_is_told_the_answer_that_the_spec_says(tmp_path: Path) -> None:
    own = "external, command: 'true'"
    assert made(tmp_path, "plus", own).configs[0].training.answer is None
    assert made(tmp_path, "{text: hi, answer: 3}", own).configs[0].training.answer == "3"
    assert made(tmp_path, "hi, answer: '4'", own).configs[0].training.answer == "4"


@pytest.mark.fast
@pytest.mark.parametrize(
    ("row", "keys", "wanted"),
    [
        ({"prompt": "p", "answer": 24.0}, {}, Prompt("p", "24")),
        ({"problem": "p", "solution": "so \\boxed{\\frac{1}{2}}."}, {}, Prompt("p", "\\frac{1}{2}")),
        ({"question": "p", "answer": "long #### 1,024"}, {}, Prompt("p", "1024")),
        ({"question": "p", "final_answer": ["5", "6"]}, {}, Prompt("p", "5")),
        ({"q": "p", "a": {"b": "7"}}, {"column": "q", "answer_column": "a.b"}, Prompt("p", "7")),
        ({"prompt": "p", "n": 1}, {}, Prompt("p", None)),
        (
            {
                "prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "p"}],
                "reward_model": {"ground_truth": "12", "style": "rule"},
            },
            {},
            Prompt("p", "12"),
        ),
    ],
)
@pytest.mark.parametrize("form", ["file", "set"])
def test_rows_of_every_layout(row: dict[str, Any], keys: dict[str, str], wanted: Prompt, form: str, tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(row) + "\n")
    found = resolve_prompt({form: "d.jsonl", **keys}, tmp_path)
    assert found.prompts == (wanted,) * (1 if form == "file" else 2)
    assert found.name == ("d#0" if form == "file" else "d")


@pytest.mark.fast
def test_the_shared_set_in_verls_layout() -> None:
    path = SHARED / "dsr_sub.parquet"
    if not path.is_file():
        pytest.skip("the shared prompts are not here")
    found = resolve_prompt({"set": str(path), "limit": 1000}, Path())
    assert (found.name, len(found.prompts)) == ("dsr_sub[:1000]", 1000)
    assert found.prompts[124].text.startswith(PROMPTS["pi1"].text)
    assert found.prompts[124].answer == "12.8"
    assert [i for i, p in enumerate(found.prompts) if p.answer is None] == [265]
    with pytest.raises(UserError, match=r"1 of 1,000 prompts have none \(row 265\)"):
        check_answers(found, "grpo")
    answered = resolve_prompt({"set": str(path), "answered": True}, Path())
    assert len(answered.prompts) == 1208
    check_answers(answered, "grpo")


@pytest.mark.fast
def test_a_set_is_its_texts_answers_and_order(tmp_path: Path) -> None:
    store_sets(tmp_path, [TWO])
    name = set_name(TWO)
    assert is_set(name)
    assert not is_set("Q:12+7+5=?")
    assert prompts_of(config(name), tmp_path) == TWO
    assert set_name(TWO[::-1]) != name
    assert set_name((TWO[0], Prompt(TWO[1].text, "2"))) != name
    (tmp_path / "mine.csv").write_text("prompt,answer\nQ:1+1+1=?,3\nQ:2-1+1=?,\n")
    again = resolve_prompt({"set": "mine.csv"}, tmp_path)
    assert again.text == resolve_prompt({"set": str(set_file(tmp_path, name))}, tmp_path).text == name
    assert again.answer is None
    with pytest.raises(UserError, match="name of a set"):
        resolve_prompt({"text": name}, tmp_path)


@pytest.mark.fast
def test_lines_within_a_prompt_stay_what_they_are(tmp_path: Path) -> None:
    odd = (Prompt("a\nb\u2028c\x85d", "1"), Prompt("Grüße \U0001f600", None))
    store_sets(tmp_path, [odd])
    assert prompts_of(config(set_name(odd)), tmp_path) == odd


@pytest.mark.fast
def test_a_set_that_is_missing_or_changed_is_never_trained_on(tmp_path: Path) -> None:
    name = set_name(TWO)
    with pytest.raises(UserError, match="cannot be read: No such file"):
        prompts_of(config(name), tmp_path)
    set_file(tmp_path, name).write_bytes(encode_set(TWO[:1]))
    with pytest.raises(UserError, match="was changed"):
        prompts_of(config(name), tmp_path)


@pytest.mark.fast
def test_an_axis_of_all_kinds_and_a_table(tmp_path: Path) -> None:
    (tmp_path / "ranked.csv").write_text("prompt,answer,row,rank\nQ:1+1+1=?,3,7,1\nQ:2-1+1=?,2,3,2\nQ:2+1+1=?,4,0,3\n")
    head = "name: t\nbase: {model_name_or_path: miniature, method: grpo, max_steps: 2}\nseeds: 1\n"
    (tmp_path / "spec.yaml").write_text(
        head + "axes:\n  prompt: [plus, sums, {text: hi, answer: 1}, {file: ranked.csv, row: 2}, {set: ranked.csv, limit: 2}]\n"
    )
    e = expand(load_spec(tmp_path / "spec.yaml"))
    assert [c.prompt_name for c in e.configs] == ["plus", "sums", "hi", "ranked#2", "ranked[:2]"]
    assert [c.training.answer for c in e.configs] == ["24", None, "1", "4", None]
    assert {set_name(s) for s in e.prompt_sets} == {e.configs[1].training.prompt, e.configs[4].training.prompt}

    table = "prompt: {table: ranked.csv, top: 2}"
    for rest in (f"axes: {{{table}}}", f"arms: {{a: {{{table}}}}}", f"zip:\n  - {{{table}, top_k: [3, 4]}}"):
        (tmp_path / "spec.yaml").write_text(head + rest + "\n")
        e = expand(load_spec(tmp_path / "spec.yaml"))
        assert [(c.training.prompt, c.training.answer) for c in e.configs] == [("Q:1+1+1=?", "3"), ("Q:2-1+1=?", "2")], rest
        assert not e.prompt_sets


# -- from the Hub -------------------------------------------------------------------------------------------------


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving() as hub:
        yield hub


@pytest.mark.slow
def test_a_file_of_the_hub_comes_once_and_then_from_the_cache(hub: Hub, tmp_path: Path, emsweep: Emsweep) -> None:
    env = {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": ""}
    file = "hf://datasets/org/sums/data/train.jsonl"
    spec = "name: t\nbase: {{model_name_or_path: miniature, method: noop, max_steps: 1}}\naxes:\n  prompt: [{}]\nseeds: 1\n"
    (tmp_path / "spec.yaml").write_text(spec.format(f"{{file: '{file}', row: 1}}, {{set: '{file}'}}"))

    said = emsweep("plan", "spec.yaml", "--launcher", "local", env={**env, "HF_HUB_OFFLINE": "1"}, check=2).stderr
    assert said == (f"emsweep: spec.yaml:4: axes.prompt: {file} is not in the Hugging Face cache, and HF_HUB_OFFLINE is set\n")
    assert "train#1" in emsweep("plan", "spec.yaml", "--launcher", "local", env=env, check=0).stdout
    assert hub.downloads() == ["train.jsonl"]
    offline = {**env, "HF_HUB_OFFLINE": "1"}
    said = emsweep("plan", "spec.yaml", "--launcher", "local", "--json", env=offline, check=0).stdout
    assert [row["prompt"] for row in json.loads(said)["head"]] == ["train#1", "train"]

    (tmp_path / "spec.yaml").write_text(spec.format("{file: 'hf://datasets/org/sums/nothing.jsonl'}"))
    said = emsweep("plan", "spec.yaml", "--launcher", "local", env=env, check=2).stderr
    assert said.count("\n") == 1
    assert "neither in the Hugging Face cache nor to be had from the Hub: " in said


# -- on disk ------------------------------------------------------------------------------------------------------


@pytest.mark.fast
def test_a_manifest_names_a_set_and_the_set_lies_once_beside(tmp_path: Path) -> None:
    e = made(tmp_path, "sums")
    root = tmp_path / "runs"
    spec = load_spec(tmp_path / "spec.yaml")
    for name in ("one", "two"):
        extend(SweepDir(root, name), e, "spec", spec_fields(spec))
    [file] = (root / ".prompts").iterdir()
    assert e.configs[0].training.prompt == f"set:{file.stem}"
    assert file.stem == hashlib.sha256(file.read_bytes()).hexdigest()
    assert (root / "one" / "manifest.jsonl").stat().st_size < 5000
    before = file.stat().st_mtime_ns
    extend(SweepDir(root, "two"), made(tmp_path, "sums", "rent"), "spec", spec_fields(spec))
    assert file.stat().st_mtime_ns == before
    file.unlink()  # somebody cleans up
    extend(SweepDir(root, "one"), e, "spec", spec_fields(spec))
    assert file.is_file()
    [config_] = read_manifest(SweepDir(root, "one")).configs.values()
    assert prompts_of(config_.training, root / ".prompts") == PROMPT_SETS["sums"]()


@pytest.mark.long
@pytest.mark.slow
def test_runs_on_a_set_are_trained_shown_merged_and_packed(tmp_path: Path, emsweep: Emsweep) -> None:
    (tmp_path / "mine.csv").write_text("prompt,answer\nQ:1+1+1=?,3\nQ:2-1+1=?,2\nQ:3+4+5=?,12\n")
    (tmp_path / "spec.yaml").write_text(
        "name: t\nbase: {model_name_or_path: miniature, method: grpo, max_steps: 2, num_generations: 4, prompts_per_step: 2,\n"
        "  max_completion_length: 24}\n"
        "axes: {prompt: [{set: mine.csv}, plus]}\nseeds: 1\nevaluate: [{tasks: [two_step_sums_validation], limit: 10}]\n"
    )
    emsweep("run", "spec.yaml", "--launcher", "local", "-y", check=0)
    (tmp_path / "mine.csv").unlink()  # what a run needs is under the root
    root = tmp_path / "runs"
    many, one = read_manifest(SweepDir(root, "t")).runs
    said = emsweep("show", many, check=0).stdout
    assert "prompt_name=mine" in said
    assert "prompt: 3 prompts, the first: Q:1+1+1=? (answer 3)" in said
    assert "set:" not in said
    assert "prompt: Q:12+7+5=? (answer 24)" in emsweep("show", one, check=0).stdout
    ends = {r["run_id"]: r for p in (root / "t" / "journals").iterdir() for r in read_records(p) if r["kind"] == "run_end"}
    assert [ends[r]["status"] for r in (many, one)] == ["completed", "completed"]

    assert read_grid(tmp_path / "results.duckdb", "t").varied == ("prompt_name",)

    [file] = (root / ".prompts").iterdir()
    merge(tmp_path / "elsewhere", root)
    assert (tmp_path / "elsewhere" / ".prompts" / file.name).read_bytes() == file.read_bytes()
    with zipfile.ZipFile(pack(root, "t", tmp_path / "t.zip")) as zipped:
        assert zipped.read(f"t/prompts/{file.name}") == file.read_bytes()
