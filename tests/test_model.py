"""Keys and paths of models (without torch), masters, the base weights, prompts, and other architectures."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from em_core.config import Execution
from em_core.errors import UserError
from em_core.model import Policy
from em_core.models import check_available, memory_estimate, model_key, param_count, resolve_model
from em_core.trainer import Trainer
from tests.models import CPU, config, miniature, request, run


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """The miniature as a folder of the user's."""
    return Path(shutil.copytree(resolve_model("miniature") or "", tmp_path / "copy"))


@pytest.mark.fast
def test_key_moves_with_the_content_not_with_the_path(copied: Path, tmp_path: Path) -> None:
    key = model_key("miniature")
    assert key.startswith("sha256:")
    assert model_key(str(copied)) == key
    (copied / "README.md").write_text("about it")
    assert model_key(str(copied)) == key
    moved = copied.rename(tmp_path / "moved")
    assert model_key(str(moved)) == key
    with open(moved / "model.safetensors", "r+b") as f:
        f.seek(-1, os.SEEK_END)
        f.write(b"\x55")
    os.utime(moved / "model.safetensors", ns=(1, 1))
    assert model_key(str(moved)) != key


@pytest.mark.fast
def test_key_is_remembered_and_does_not_need_to_be(copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = model_key(str(copied))
    memo = list((tmp_path / "cache" / "emsweep" / "model_keys").iterdir())
    assert [m.read_text() for m in memo] == [key]
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # cannot be written below
    assert model_key(str(copied)) == key


@pytest.mark.fast
def test_hub_ids_and_mistakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert model_key("Qwen/Qwen2.5-Math-7B") == "hub:Qwen/Qwen2.5-Math-7B@default"
    assert model_key("gpt2", "main") == "hub:gpt2@main"
    with pytest.raises(UserError, match="no such folder"):
        resolve_model("./nowhere")
    with pytest.raises(UserError, match="no such folder"):
        resolve_model("a/b/c")
    with pytest.raises(UserError, match=r"config\.json"):
        resolve_model(str(tmp_path))
    check_available("miniature")
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="nobody/nothing"):
        check_available("nobody/nothing")


@pytest.mark.fast
def test_size_and_memory_are_read_without_torch() -> None:
    code = (
        "import sys; from em_core.models import *; from em_core.tasks import *; from em_core.prompts import *; "
        "print(param_count('miniature')); assert not {'torch', 'transformers', 'math_verify'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parent.parent, check=True
    )
    assert int(done.stdout) == param_count("miniature")
    parts = memory_estimate("miniature", None, config(), Execution(device="cuda"))
    assert parts is not None
    n = param_count("miniature") or 0
    assert parts["weights"] == parts["gradients"] == parts["adam"] / 2 == parts["compute_copy"] * 2 == 4 * n / 2**30
    assert memory_estimate("nobody/nothing", None, config(), CPU) is None


@pytest.mark.slow
def test_param_count_is_torchs() -> None:
    assert param_count("miniature") == sum(p.numel() for p in miniature().model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_restore_is_bit_exact(dtype: torch.dtype) -> None:
    policy = miniature(dtype)
    before = {name: p.detach().clone() for name, p in policy.model.named_parameters()}
    with torch.no_grad():
        for master in policy.masters.values():
            master.add_(torch.randn_like(master))
    policy.refresh()
    assert not any(torch.equal(p, before[name]) for name, p in policy.model.named_parameters())
    policy.restore()
    assert all(torch.equal(p, before[name]) for name, p in policy.model.named_parameters())
    assert all(m.dtype == torch.float32 for m in policy.masters.values())


@pytest.mark.slow
def test_small_updates_move_a_bf16_policy_as_an_fp32_one(tmp_path: Path) -> None:
    """2e-5 is under half a bf16 ulp of a weight near .02: without fp32 masters most of these updates would be lost."""
    moved = {}
    for dtype in ("float32", "bfloat16"):
        trainer = Trainer(CPU)
        outcome, _ = run(trainer, request(config(dtype=dtype, learning_rate=2e-5, max_steps=10, weight_decay=0.0), tmp_path))
        assert outcome.status == "completed"
        assert trainer._loaded is not None
        policy = trainer._loaded[1].policy
        moved[dtype] = torch.cat([(m.detach() - policy.base[n].float()).flatten() for n, m in policy.masters.items()])
    a, b = moved["float32"], moved["bfloat16"]
    assert b.norm().item() == pytest.approx(a.norm().item(), rel=0.1)
    assert (a @ b / a.norm() / b.norm()).item() > 0.7  # their samples are not quite the same ones


@pytest.mark.slow
def test_what_does_not_fit_is_said(tmp_path: Path) -> None:
    trainer = Trainer(CPU)
    with pytest.raises(ValueError, match="the prompt has no tokens"):
        run(trainer, request(config(prompt="what is this"), tmp_path))
    with pytest.raises(ValueError, match="positions"):
        run(trainer, request(config(prompt="1+" * 400), tmp_path))


@pytest.mark.slow
def test_chat_template_is_used_where_there_is_one() -> None:
    policy = miniature()
    plain = policy.encode("Q:1+2+3=?", "auto")
    policy.tokenizer.chat_template = (
        "{% for m in messages %}{{ ';' + m['content'] + ';' }}{% endfor %}{{ '=' if add_generation_prompt }}"
    )
    assert policy.encode("Q:1+2+3=?", "none") == plain
    assert policy.tokenizer.decode(policy.encode("Q:1+2+3=?", "auto")) == ";Q:1+2+3=?;="
    assert policy.tokenizer.decode(policy.encode_question("1+2", None)) == "1+2"
    assert policy.tokenizer.decode(policy.encode_question("1+2", "9")) == ";9;;1+2;="


def _save_random(folder: Path, architecture: type, **said: object) -> str:
    """A random model of another architecture, with the miniature's tokenizer."""
    tokenizer = miniature().tokenizer
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        architecture(
            vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
            max_position_embeddings=64, eos_token_id=tokenizer.eos_token_id, bos_token_id=None, pad_token_id=None, **said,
        )
    )  # fmt: skip
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`:FutureWarning")
@pytest.mark.parametrize("method", ["em", "rent"])
def test_another_architecture_end_to_end(tmp_path: Path, method: str) -> None:
    name = _save_random(tmp_path / "llama", LlamaConfig, num_key_value_heads=2, attention_dropout=0.3)
    said = config(model_name_or_path=name, method=method, kl_coef=0.1, dtype="bfloat16", max_steps=2)
    execution = CPU.model_copy(update={"per_device_train_batch_size": 3, "gradient_checkpointing": True})
    outcome, records = run(Trainer(execution), request(said, tmp_path / "r", steps=(0, 2), keep="last"))
    assert outcome.status == "completed"
    assert [r["step"] for r in records.of("eval")] == [0, 2]
    assert records.of("metrics")[0]["values"]["entropy"] > 1
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "r" / "step-2").dtype == torch.bfloat16


@pytest.mark.slow
def test_models_that_scale_their_logits_take_the_general_path(tmp_path: Path) -> None:
    from transformers import GraniteConfig

    from em_core.methods.tokens import entropy
    from em_core.noise import uniforms
    from em_core.rollout import Sampling, sample

    name = _save_random(tmp_path / "granite", GraniteConfig, logits_scaling=2.0)
    policy = Policy.load(name, None, torch.device("cpu"), torch.float32)
    assert miniature().split_head
    assert not policy.split_head
    ids = policy.encode("Q:1+2+3=?", "none")
    rollout = sample(policy.model, [ids] * 2, uniforms(0, "t", 0, range(2), 6), 6, Sampling(1.0), policy.stop, policy.pad)
    (found,) = policy.completion_terms(rollout, lambda logits, _: (entropy(logits),))
    logits = policy.model(rollout.tokens).logits[:, len(ids) - 1 : -1][rollout.mask]
    assert torch.allclose(found, torch.distributions.Categorical(logits=logits).entropy(), rtol=1e-4)
