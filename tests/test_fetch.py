"""Models come into the cache once, on a machine with network, and jobs run without it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sweeps.fetch import needed_files
from tests.conftest import Emsweep
from tests.hub import FILES, Hub, serving

SPEC = """\
name: hubby
base: {model_name_or_path: org/tiny, prompt: plus, max_steps: 1, num_generations: 2, max_completion_length: 8}
seeds: 1
"""
pytestmark = pytest.mark.slow


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving() as hub:
        yield hub


@pytest.fixture
def env(hub: Hub, tmp_path: Path) -> dict[str, str]:
    """Nothing but the local Hub can be reached; the cache is the site's."""
    (tmp_path / "spec.yaml").write_text(SPEC)
    (tmp_path / "site.toml").write_text(f'[env]\nHF_HOME = "{tmp_path}/hf"\n')
    return {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "XDG_CACHE_HOME": str(tmp_path / "cache"), "HF_TOKEN": ""}


@pytest.mark.fast
def test_only_the_files_that_loading_reads() -> None:
    usual = ["config.json", "generation_config.json", "tokenizer.json", "merges.txt", "README.md", "LICENSE"]
    sharded = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"]
    others = ["consolidated.safetensors", "pytorch_model.bin", "onnx/model.onnx", "original/consolidated.00.pth", "modeling.py"]
    kept = ["config.json", "generation_config.json", "merges.txt", "tokenizer.json"]
    assert needed_files([*usual, *sharded, *others]) == sorted([*kept, *sharded])
    assert needed_files([*usual, *others]) == sorted([*kept, "consolidated.safetensors"])
    assert needed_files([*usual, *others[1:]]) == sorted([*kept, "pytorch_model.bin"])


def test_fetch_once_then_offline(hub: Hub, env: dict[str, str], tmp_path: Path, emsweep: Emsweep) -> None:
    offline = {**env, "HF_HUB_OFFLINE": "1"}
    refused = emsweep("run", "spec.yaml", "--launcher", "local", "-y", env=offline, check=2)
    assert "`emsweep fetch SPEC` brings it" in refused.stderr
    assert refused.stderr.count("\n") == 1

    asked = len(hub.asked)
    refused = emsweep("submit", "spec.yaml", "-y", env=env, check=2)
    assert "jobs run offline: `emsweep fetch SPEC` brings it" in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert len(hub.asked) == asked, "on Slurm only the cache counts"
    assert not (tmp_path / "runs").exists()

    said = emsweep("fetch", "spec.yaml", env=env, check=0).stdout
    assert f"org/tiny: fetched, {len(FILES)} files, " in said
    assert str(tmp_path / "hf") in said
    assert sorted(hub.downloads()) == sorted(FILES)
    again = emsweep("fetch", "spec.yaml", env=env, check=0).stdout
    assert "org/tiny: was there, " in again
    assert len(hub.downloads()) == len(FILES), "nothing is fetched twice"

    asked = len(hub.asked)
    emsweep("run", "spec.yaml", "--launcher", "local", "-y", env=offline, check=0)
    assert len(hub.asked) == asked, "a run asks the Hub for nothing"


def test_a_download_that_breaks_off_goes_on(hub: Hub, env: dict[str, str], tmp_path: Path, emsweep: Emsweep) -> None:
    hub.cut = 100
    broken = emsweep("fetch", "spec.yaml", env=env)
    assert broken.returncode == 1, broken.stdout + broken.stderr
    assert broken.stderr.splitlines()[-1].startswith("emsweep: model org/tiny: ")
    assert "Traceback" not in broken.stderr
    hub.cut = 0
    hub.asked.clear()
    emsweep("fetch", "spec.yaml", env=env, check=0)
    assert "config.json" not in hub.downloads(), "what arrived whole is not fetched again"
    weights = next(tmp_path.glob("hf/hub/models--org--tiny/snapshots/*/model.safetensors"))
    assert weights.read_bytes() == FILES["model.safetensors"]


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        ({"spec": SPEC.replace("org/tiny", "org/tinny")}, 2, "model org/tinny: no such model on the Hub"),
        (
            {"spec": SPEC.replace("org/tiny,", "org/tiny, model_revision: v9,")},
            2,
            "model org/tiny@v9: the Hub has no such revision",
        ),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, 1, "model org/tiny: http://127.0.0.1:9 cannot be reached"),
        ({"HF_HUB_OFFLINE": "1"}, 2, "HF_HUB_OFFLINE is set here"),
    ],
)
def test_what_cannot_be_had_is_one_line(
    change: dict[str, str], code: int, said: str, env: dict[str, str], tmp_path: Path, emsweep: Emsweep
) -> None:
    (tmp_path / "spec.yaml").write_text(change.pop("spec", SPEC))
    done = emsweep("fetch", "spec.yaml", env={**env, **change}, timeout=100)
    assert done.returncode == code, done.stderr
    assert done.stderr.count("\n") == 1
    assert f"emsweep: {said}" in done.stderr


def test_folders_need_no_fetching(env: dict[str, str], tmp_path: Path, emsweep: Emsweep) -> None:
    (tmp_path / "spec.yaml").write_text(SPEC.replace("org/tiny", "miniature"))
    assert "nothing to fetch" in emsweep("fetch", "spec.yaml", env=env, check=0).stdout


@pytest.mark.long
def test_questions_from_the_hub_come_into_the_cache(hub: Hub, env: dict[str, str], tmp_path: Path, emsweep: Emsweep) -> None:
    task = "hf://datasets/org/sums/data/train.jsonl"
    spec = SPEC.replace("org/tiny", "miniature") + f"evaluate: [{{tasks: ['{task}'], max_completion_length: 20}}]\n"
    (tmp_path / "spec.yaml").write_text(spec)
    offline = {**env, "HF_HUB_OFFLINE": "1"}
    refused = emsweep("run", "spec.yaml", "--launcher", "local", "-y", env=offline, check=2)
    assert f"{task} is not in the Hugging Face cache" in refused.stderr
    assert "spec.yaml:4: evaluate.0.tasks.0" in refused.stderr
    assert f"{task}: 2 questions" in emsweep("fetch", "spec.yaml", env=env, check=0).stdout
    asked = len(hub.asked)
    assert asked
    emsweep("run", "spec.yaml", "--launcher", "local", "-y", env=offline, check=0)
    emsweep("plan", "spec.yaml", env=env, check=0)
    assert len(hub.asked) == asked, "what is in the cache is not asked for again"
    said = emsweep("sql", "SELECT task, n_questions FROM scores", "--format", "csv", check=0).stdout
    assert said.split() == ["task,n_questions", "train.jsonl,2"]
    (tmp_path / "spec.yaml").write_text(spec.replace("train.jsonl", "tarin.jsonl"))
    assert "neither in the Hugging Face cache nor to be had" in emsweep("plan", "spec.yaml", env=env, check=2).stderr
