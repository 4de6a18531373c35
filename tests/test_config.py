"""Ids live for years: what makes them, what does not, and a golden record of everything that they rest on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field

from em_core import config as config_module
from em_core.config import (
    EVALUATION_VERSION,
    Evaluation,
    Execution,
    RunRequest,
    TrainingConfig,
    batches,
    can_halve,
    canonical,
    config_id,
    reads,
    run_id,
    steps_within,
)
from em_core.known_methods import KNOWN, Known
from em_core.models import model_key
from em_core.tasks import BUILT_IN

pytestmark = pytest.mark.fast

GOLDEN = Path(__file__).parent / "golden" / "ids.json"
KEY = "hub:example/model@default"

CONFIGS: dict[str, dict[str, Any]] = {
    "em": {},
    "em, other prompt": {"prompt": "Q:1+1=?"},
    "em, not ASCII": {"prompt": "Grüße, 世界"},
    "em, learning rate": {"learning_rate": 1e-3},
    "em, a third": {"temperature": 1 / 3},
    "em, everything": {
        "chat_template": "none",
        "dtype": "float32",
        "num_generations": 8,
        "max_completion_length": 24,
        "temperature": 0.7,
        "top_p": 1.0,
        "top_k": 0,
        "repetition_penalty": 1.0,
        "loss_temperature": 0.7,
        "learning_rate": 1e-4,
        "weight_decay": 0.0,
        "adam_beta1": 0.8,
        "adam_beta2": 0.99,
        "adam_epsilon": 1e-6,
        "max_grad_norm": 0.0,
        "max_steps": 20,
    },
    "em, several prompts": {"prompts_per_step": 2, "loss_type": "grpo"},
    "em, chained": {"parent": "0123456789ab", "from_step": 5},
    "em, stopped": {"stop_rule": "entropy_floor", "stop_threshold": 0.5, "stop_patience": 2, "stop_task_key": "sums@1"},
    "rent": {"method": "rent"},
    "rent, kl": {"method": "rent", "kl_coef": 1e-3},
    "grpo": {"method": "grpo", "answer": "24"},
    "clip_cov": {"method": "clip_cov", "answer": "24", "clip_cov_ratio": 1e-3, "num_iterations": 2},
    "noop": {"method": "noop"},
    "external": {"method": "external", "command": "/anywhere/train.py"},
    "external, params": {"method": "external", "params": {"width": 64, "rate": 1 / 3, "flag": True, "name": "Grüße", "n.m": 2.0}},
}
EVALUATIONS: dict[str, dict[str, Any]] = {
    "greedy": {"task": "two_step_sums", "task_key": "two_step_sums@1"},
    "sampled": {"task": "two_step_sums", "task_key": "two_step_sums@1", "temperature": 0.7, "num_samples": 4},
    "file": {"task": "math.jsonl", "task_key": "sha256:00", "question_field": "q", "answer_field": "a", "limit": 50},
}


def config(**fields: Any) -> TrainingConfig:
    return TrainingConfig(**{"model_name_or_path": "example/model", "prompt": "Q:12+7+5=?", **fields})


def record() -> dict[str, Any]:
    """Everything that an id rests on, as JSON has it."""
    said = {
        "methods": {
            method_name: {
                "version": method.version,
                "defaults": {
                    name: f.default
                    for name, f in sorted(TrainingConfig.model_fields.items())
                    if name in reads(method_name) and not f.is_required()
                },
            }
            for method_name, method in KNOWN.items()
            if method_name != "noop"  # reads every field, trains nothing, and may change at will
        },
        "evaluation": {
            "version": EVALUATION_VERSION,
            "defaults": {name: f.default for name, f in sorted(Evaluation.model_fields.items()) if not f.is_required()},
            "tasks": BUILT_IN,
        },
        "config_ids": {name: config_id(config(**fields), KEY) for name, fields in CONFIGS.items()},
        "eval_ids": {name: Evaluation(**fields).eval_id() for name, fields in EVALUATIONS.items()},
    }
    return dict(json.loads(json.dumps(said)))


def not_bumped(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Fields whose default changed, or went, while the version above them did not."""
    pairs = {
        **{m: (v, new["methods"].get(m, {})) for m, v in old["methods"].items()},
        "evaluation": (old["evaluation"], new["evaluation"]),
    }
    return [
        f"{name}.{field}"
        for name, (was, now) in pairs.items()
        for field, default in was["defaults"].items()
        if was["version"] == now.get("version") and now["defaults"].get(field, "gone") != default
    ]


def test_golden_record_of_defaults_versions_and_ids() -> None:
    """Fails when a default, a version or an id changed. `python -m tests.test_config` writes the new record.

    It refuses while a default changed and the version did not. A new field with a default only adds a line.
    """
    assert record() == json.loads(GOLDEN.read_text(encoding="utf-8"))


def test_a_changed_default_must_bump_the_version() -> None:
    old, new = (json.loads(GOLDEN.read_text(encoding="utf-8")) for _ in range(2))
    new["methods"]["em"]["defaults"] |= {"learning_rate": 1e-4, "new_field": 1}
    del new["evaluation"]["defaults"]["top_p"]
    assert not_bumped(old, new) == ["em.learning_rate", "evaluation.top_p"]
    new["methods"]["em"]["version"] += 1
    assert not_bumped(old, new) == ["evaluation.top_p"]


def test_a_new_field_with_a_default_changes_no_id(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wider(TrainingConfig):
        new_field: float = Field(0.25, description="Something added next year.")

    before = config_id(config(learning_rate=1e-3), KEY)
    em = KNOWN["em"]
    monkeypatch.setattr(config_module, "TrainingConfig", Wider)
    monkeypatch.setitem(KNOWN, "em", Known(em.version, reads("em") | {"new_field"}))
    said = {"model_name_or_path": "example/model", "prompt": "Q:12+7+5=?", "learning_rate": 1e-3}
    assert config_id(Wider(**said), KEY) == before
    assert config_id(Wider(**said, new_field=0.5), KEY) != before


def test_a_new_field_of_an_evaluation_changes_no_id() -> None:
    class Wider(Evaluation):
        new_field: int = Field(3, description="Something added next year.")

    said = EVALUATIONS["sampled"]
    assert Wider(**said).eval_id() == Evaluation(**said).eval_id()
    assert Wider(**said, new_field=4).eval_id() != Evaluation(**said).eval_id()


def test_a_default_that_is_spelled_out_changes_no_id() -> None:
    spelled = {name: f.default for name, f in TrainingConfig.model_fields.items() if name not in ("model_name_or_path", "prompt")}
    assert config_id(config(**spelled), KEY) == config_id(config(), KEY)


@pytest.mark.parametrize("name", [m for m in KNOWN if m != "noop"])
def test_what_the_method_does_not_read_leaves_its_id(name: str) -> None:
    other = {"loss_temperature": 0.9, "kl_coef": 0.25}
    for field, value in other.items():
        same = config_id(config(method=name, **{field: value}), KEY) == config_id(config(method=name), KEY)
        assert same == (field not in reads(name)), field


@pytest.mark.parametrize("name", sorted(reads("em") - {"model_name_or_path", "model_revision", "method", "stop_task"}))
def test_every_field_that_is_read_changes_the_id(name: str) -> None:
    said = [CONFIGS[f"em, {which}"] for which in ("everything", "several prompts", "chained", "stopped")]
    value = {k: v for fields in said for k, v in fields.items()}.get(name, "Q:2+2=?")
    assert config_id(config(**{name: value}), KEY) != config_id(config(), KEY)


def test_a_version_changes_every_id_of_its_method(monkeypatch: pytest.MonkeyPatch) -> None:
    em, rent = config_id(config(), KEY), config_id(config(method="rent"), KEY)
    monkeypatch.setitem(KNOWN, "em", Known(KNOWN["em"].version + 1, reads("em")))
    assert config_id(config(), KEY) != em
    assert config_id(config(method="rent"), KEY) == rent


def test_floats_are_rounded_to_12_digits() -> None:
    assert canonical(0.1 + 0.2) == 0.3
    assert canonical(1e-3 * (1 + 1e-13)) == 1e-3
    assert canonical(1e-3 * (1 + 1e-11)) != 1e-3
    assert canonical(True) is True
    assert canonical(7) == 7
    assert canonical(None) is None
    assert config_id(config(temperature=0.1 + 0.2), KEY) == config_id(config(temperature=0.3), KEY)
    near, far = (config_id(config(temperature=0.3 * (1 + d)), KEY) for d in (1e-14, 1e-10))
    assert near == config_id(config(temperature=0.3), KEY) != far


def test_a_whole_number_for_a_float_is_the_same_value() -> None:
    assert config_id(config(temperature=1), KEY) == config_id(config(temperature=1.0), KEY)


def checkpoint(folder: Path, weights: bytes = b"w") -> Path:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(weights)
    return folder


def test_a_model_is_its_content_not_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    one = checkpoint(tmp_path / "one")
    key = model_key(str(one))
    moved = one.rename(tmp_path / "elsewhere")
    assert model_key(str(moved)) == key
    (moved / "README.md").write_text("notes do not change a model")
    assert model_key(str(moved)) == key
    assert model_key(str(checkpoint(tmp_path / "one", b"other weights"))) != key
    (moved / "model.safetensors").write_bytes(b"x")
    assert model_key(str(moved)) != key, "same size and path, other content"


def test_the_path_enters_no_id() -> None:
    here, there = (TrainingConfig(model_name_or_path=p, prompt="a") for p in ("/data/a", "/mnt/b"))
    assert config_id(here, "sha256:aa") == config_id(there, "sha256:aa") != config_id(here, "sha256:bb")


def test_a_hub_model_is_its_id_and_revision() -> None:
    assert model_key("org/name") == "hub:org/name@default"
    assert model_key("org/name", "v2") == "hub:org/name@v2"


def test_digest_is_of_canonical_json(monkeypatch: pytest.MonkeyPatch) -> None:
    """Key order, spaces and escapes are fixed, so any language can compute an id."""
    seen: list[str] = []
    real = config_module.json.dumps
    monkeypatch.setattr(config_module.json, "dumps", lambda *a, **k: seen.append(real(*a, **k)) or seen[-1])
    config_id(config(prompt="Grüße", learning_rate=1e-3, temperature=0.1 + 0.2), KEY)
    assert seen == [
        '{"method":"em","model":"hub:example/model@default","training":{"learning_rate":0.001,"prompt":"Grüße","temperature":0.3},'
        '"version":1}'
    ]


def test_task_path_enters_no_eval_id_but_its_key_does() -> None:
    said = EVALUATIONS["file"]
    assert Evaluation(**{**said, "task": "elsewhere.jsonl"}).eval_id() == Evaluation(**said).eval_id()
    assert Evaluation(**{**said, "task_key": "sha256:01"}).eval_id() != Evaluation(**said).eval_id()


def test_ids_are_12_hex_digits_and_runs_add_the_seed() -> None:
    name = config_id(config(), KEY)
    assert len(name) == 12
    assert int(name, 16) >= 0
    assert run_id(name, 7) == f"{name}-s7"


def test_steps_within_a_run() -> None:
    assert steps_within([20, 0, "last", 5], 10) == (0, 5, 10)
    assert steps_within(["last"], 0) == (0,)
    assert steps_within([5], 3) == ()


def test_requests_survive_the_pipe() -> None:
    evaluation = Evaluation(**EVALUATIONS["sampled"])
    request = RunRequest("r-s0", "r", 0, 1, "train", config(), ((evaluation.eval_id(), evaluation, (0, 5)),), "best:2", "ckpt")
    assert RunRequest.from_json(json.loads(json.dumps(request.as_json()))) == request


def test_a_request_from_before_there_were_halvings_has_none() -> None:
    said = RunRequest("r", "c", 0, 0, "train", config(), (), "none", "/x", halvings=2).as_json()
    assert RunRequest.from_json(said).halvings == 2
    del said["halvings"]
    assert RunRequest.from_json(said).halvings == 0


@pytest.mark.parametrize(
    ("micro", "halvings", "want"),
    [(0, 0, (12, 12, 64)), (0, 1, (6, 6, 32)), (0, 2, (3, 3, 16)), (0, 9, (1, 1, 1)), (4, 1, (6, 2, 32)), (100, 0, (12, 12, 64))],
)
def test_halvings_reach_everything_that_is_done_at_once(micro: int, halvings: int, want: tuple[int, int, int]) -> None:
    said = batches(config(num_generations=12), Execution(per_device_train_batch_size=micro), halvings)
    assert (said.rollout, said.train, said.evaluation) == want


def test_batches_are_halved_until_all_are_one() -> None:
    execution = Execution(per_device_train_batch_size=1, per_device_eval_batch_size=4)
    assert [can_halve(config(num_generations=2), execution, h) for h in range(4)] == [True, True, False, False]


if __name__ == "__main__":
    made = record()
    if GOLDEN.exists() and (forgotten := not_bumped(json.loads(GOLDEN.read_text(encoding="utf-8")), made)):
        raise SystemExit(f"bump the version of what has another default now: {', '.join(forgotten)}")
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")
