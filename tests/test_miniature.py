"""The shipped model is the one its README describes, and entropy minimization does to it what the default spec shows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from em_core.config import Evaluation
from em_core.evaluation import evaluate
from em_core.miniature import make_miniature
from em_core.models import resolve_model
from em_core.prompts import PROMPTS
from em_core.trainer import Trainer
from tests.models import CPU, config, miniature, request, run

WHOLE = Evaluation(task="two_step_sums", task_key="two_step_sums@1")


@pytest.mark.fast
def test_folder_is_small_and_whole() -> None:
    folder = resolve_model("miniature")
    assert folder is not None
    names = {p.name for p in folder.iterdir() if p.is_file()}
    assert names >= {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "make_miniature.py",
        "README.md",
    }
    assert sum((folder / n).stat().st_size for n in names) < 1_000_000


@pytest.mark.slow
def test_tokenizer() -> None:
    tokenizer = miniature().tokenizer
    assert tokenizer.get_vocab() == make_miniature.tokenizer().get_vocab()
    assert tokenizer.eos_token_id != tokenizer.pad_token_id
    ids = tokenizer(PROMPTS["plus"].text)["input_ids"]
    assert len(ids) == len(PROMPTS["plus"].text)
    assert tokenizer.decode(ids) == PROMPTS["plus"].text
    assert tokenizer("what")["input_ids"] == []


@pytest.mark.slow
def test_base_accuracies() -> None:
    policy = miniature()
    greedy = evaluate(policy, WHOLE, 0, 0, 256)
    sampled = evaluate(policy, WHOLE.model_copy(update={"temperature": 1.0, "num_samples": 4}), 0, 0, 1024)
    assert greedy.accuracy == pytest.approx(0.57, abs=0.01)
    assert sampled.accuracy == pytest.approx(0.541, abs=0.03)
    assert greedy.values["truncated"] == 0


@pytest.mark.slow
def test_both_prompts_tip_towards_the_worked_style() -> None:
    policy = miniature()
    guess = policy.encode("=", "none")[0]
    for text in (PROMPTS[name].text for name in ("plus", "minus")):
        with torch.no_grad():
            first = policy.model(torch.tensor([policy.encode(text, "none")])).logits[0, -1].softmax(-1)
        assert 0.5 < 1 - first[guess].item() < 0.65


@pytest.mark.slow
def test_accuracy_rises_and_then_falls(tmp_path: Path) -> None:
    """At the default spec's largest learning rate, on either prompt; entropy falls from the first update on."""
    trainer = Trainer(CPU)
    for prompt in (PROMPTS[name].text for name in ("plus", "minus")):
        said = config(prompt=prompt, learning_rate=6e-4, max_steps=20)
        _, records = run(trainer, request(said, tmp_path, evaluations=(("e" * 12, WHOLE, (0, 5, 20)),)))
        base, early, late = (r["accuracy"] for r in records.of("eval"))
        assert early > base + 0.25
        assert late < early - 0.05
        entropy = [r["values"]["entropy"] for r in records.of("metrics")]
        assert entropy[-1] < entropy[0] / 4
