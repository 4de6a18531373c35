"""`make bench-eval`: answering questions of widely varying answer lengths with and without refilling. Never part of the tests.

A random Qwen2 over 64 tokens draws its end token about once in 64: answers are 1 to 256 tokens long. The same answers are given
both ways; what differs is how many forward passes they take, and how full these are.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from em_core.noise import uniforms
from em_core.refilling import answer_all
from em_core.rollout import Sampling, sample

VOCABULARY, LENGTH, END = 64, 256, 63


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hidden", type=int, nargs="+", default=[64, 256, 512])
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--questions", type=int, default=500)
    parser.add_argument("--batch", type=int, nargs="+", default=[64])
    parser.add_argument("--threads", type=int, default=1)
    said = parser.parse_args()
    torch.set_num_threads(said.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(f"{said.questions} questions, {device}, {torch.get_num_threads()} threads")
    for hidden in said.hidden:
        model = random_model(hidden, said.layers).to(device)  # type: ignore[arg-type]
        for batch in said.batch:
            compare(model, said.questions, batch)


def random_model(hidden: int, layers: int) -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=VOCABULARY, hidden_size=hidden, intermediate_size=3 * hidden, num_hidden_layers=layers,
            num_attention_heads=hidden // 16, num_key_value_heads=max(1, hidden // 64), eos_token_id=END,
        )
    ).eval()  # fmt: skip


def compare(model: Qwen2ForCausalLM, questions: int, batch: int) -> None:
    """Prints tokens per second and forward passes, first batches to their end, then with refilling."""
    rng = np.random.default_rng(0)
    prompts = sorted((rng.integers(0, END, rng.integers(20, 60)).tolist() for _ in range(questions)), key=len)
    passes = [0]
    model.register_forward_pre_hook(lambda *_: passes.__setitem__(0, passes[0] + 1))
    sampling = Sampling(1.0)

    def in_batches() -> dict[int, list[int]]:
        found = {}
        for start in range(0, questions, batch):
            rows = range(start, min(start + batch, questions))
            draws = uniforms(0, "bench", 0, rows, LENGTH)
            rollout = sample(model, [prompts[i] for i in rows], draws, LENGTH, sampling, [END], 0)
            found |= {i: c[m].tolist() for i, c, m in zip(rows, rollout.completions, rollout.mask, strict=True)}
        return found

    def refilled() -> dict[int, list[int]]:
        found: dict[int, list[int]] = {}
        draws = lambda rows, length: uniforms(0, "bench", 0, rows, length)  # noqa: E731
        answer_all(model, prompts, draws, LENGTH, sampling, [END], 0, batch, lambda i, said, _: found.update({i: said}))
        return found

    results = []
    for name, way in (("batches", in_batches), ("refilled", refilled)):
        passes[0] = 0
        began = time.perf_counter()
        found = way()
        seconds = time.perf_counter() - began
        tokens = sum(map(len, found.values()))
        results.append(found)
        print(
            f"hidden {model.config.hidden_size:5d}, batch {batch:4d}, {name:8s}: {tokens / seconds:9,.0f} tokens/s, "
            f"{passes[0]:5d} passes, {seconds:6.1f} s"
        )
    same = sum(results[0][i] == results[1][i] for i in results[0])
    print(f"{same} of {questions} answers are the same to the last token")


if __name__ == "__main__":
    main()
