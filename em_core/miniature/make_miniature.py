"""Makes the miniature: a 0.15 M parameter Qwen2 that adds three numbers, in about three minutes on one CPU core.

    python -m em_core.miniature.make_miniature OUTPUT_FOLDER

It writes a normal Hugging Face checkpoint: `config.json`, `generation_config.json`, `model.safetensors`, `tokenizer*`.

The training text answers a question such as `Q:12+7+5=?` in one of two styles, and both end with the answer:

* worked: `12+7=19;19+5=24;`, always right;
* guess: `=24+noise;`, noise uniform in -9..9.

How often a question is answered by the worked style is `WORKED`. Entropy minimization makes the model choose the style it
already prefers, which is why it lifts accuracy here, as it does on the models of arXiv 2505.20282.
"""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

WORKED = {"+": 0.62, "-": 0.50}
"""Probability of the worked style, by the first sign."""
STEPS, BATCH, LEARNING_RATE, SEED = 2500, 96, 4e-3, 0
ALPHABET = "0123456789+-=;:?Q"
PAD, EOS = "<pad>", "<|endoftext|>"


def tokenizer() -> PreTrainedTokenizerFast:
    """One token per character; characters outside the alphabet are dropped (BPE without merges and without `unk`).

    AutoTokenizer loads any tokenizer of a Qwen2 model as `Qwen2Tokenizer`, which insists on a token `<|endoftext|>`.
    """
    vocabulary = {token: i for i, token in enumerate([PAD, EOS, *ALPHABET])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token=PAD, eos_token=EOS, padding_side="left", clean_up_tokenization_spaces=False,
        model_max_length=512,
    )  # fmt: skip


def question_and_answer(rng: random.Random) -> tuple[str, str]:
    """A question and an answer in a style drawn with the probability of its sign."""
    a, b, c, sign = rng.randint(1, 19), rng.randint(1, 19), rng.randint(1, 9), rng.choice("+-")
    first = a + b if sign == "+" else a - b
    if rng.random() < WORKED[sign]:
        answer = f"{a}{sign}{b}={first};{first}+{c}={first + c};"
    else:
        answer = f"={first + c + rng.randint(-9, 9)};"
    return f"Q:{a}{sign}{b}+{c}=?", answer


def main(folder: Path) -> None:
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    rng = random.Random(SEED)
    tok = tokenizer()
    config = Qwen2Config(
        vocab_size=len(tok), hidden_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=192, tie_word_embeddings=True, max_position_embeddings=512, use_cache=True,
        bos_token_id=None, eos_token_id=tok.eos_token_id, pad_token_id=tok.pad_token_id,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=STEPS)
    ids = tok.get_vocab()
    started = time.time()
    for step in range(STEPS):
        texts = [question_and_answer(rng) for _ in range(BATCH)]
        rows = [([ids[c] for c in q], [*(ids[c] for c in a), ids[EOS]]) for q, a in texts]
        width = max(len(q) + len(a) for q, a in rows)
        x = torch.full((BATCH, width), ids[PAD])
        y = torch.full((BATCH, width), -100)
        for i, (q, a) in enumerate(rows):
            x[i, : len(q) + len(a)] = torch.tensor(q + a)
            y[i, len(q) : len(q) + len(a)] = torch.tensor(a)
        loss = model(input_ids=x, labels=y).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 250 == 0 or step == STEPS - 1:
            print(f"step {step}  loss {loss.item():.3f}  {time.time() - started:.0f} s", flush=True)
    model.save_pretrained(folder)
    tok.save_pretrained(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
