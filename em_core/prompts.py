"""Training prompts: the shipped ones by name, and sets of them. Never imports torch.

A config holds a prompt's text. A set of many would make every manifest and assignment large, so of a set it holds
`set:DIGEST`, and the prompts lie in DIGEST.jsonl, a file named by its own content: who has the name can check the content.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from em_core.config import TrainingConfig
from em_core.errors import UserError
from em_core.tasks import draw_sums, two_step_sums, two_step_sums_validation


@dataclass(frozen=True)
class Prompt:
    """A training prompt and its gold answer (None: it has none). The completion starts right after the text."""

    text: str
    answer: str | None


PROMPTS: Mapping[str, Prompt] = {
    "plus": Prompt("Q:12+7+5=?", "24"),
    "minus": Prompt("Q:17-8+4=?", "13"),
    "pi1": Prompt(
        r"The pressure \( P \) exerted by wind on a sail varies jointly as the area \( A \) of the sail and the cube of the "
        r"wind's velocity \( V \). When the velocity is \( 8 \) miles per hour, the pressure on a sail of \( 2 \) square feet "
        r"is \( 4 \) pounds. Find the wind velocity when the pressure on \( 4 \) square feet of sail is \( 32 \) pounds.",
        "12.7",
    ),
}
"""By name. `plus` and `minus` are for the miniature. `pi1` is that of One-shot EM and One-shot RLVR, whose label 12.8 is
inexact: the answer is the cube root of 2048, 12.70."""


def sums() -> tuple[Prompt, ...]:
    """64 sums of the kind that the miniature knows; none is a question of `two_step_sums` or of its validation task."""
    known = {*two_step_sums().questions, *two_step_sums_validation().questions}
    return tuple(Prompt(text, answer) for text, answer in draw_sums("sums", 64, known).items())


PROMPT_SETS: Mapping[str, Callable[[], tuple[Prompt, ...]]] = {"sums": sums}
"""The shipped sets by name."""

_SET = re.compile(r"set:([0-9a-f]{64})")


def is_set(prompt: str) -> bool:
    """Whether a config's `prompt` names a set."""
    return _SET.fullmatch(prompt) is not None


def encode_set(prompts: Sequence[Prompt]) -> bytes:
    """A set as its file holds it: a line of JSON for each prompt, in order. Equal sets give equal bytes."""
    rows = ({"prompt": p.text, "answer": p.answer} for p in prompts)
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def set_name(prompts: Sequence[Prompt]) -> str:
    """`set:` and the SHA-256 of the set's file, so a set's texts, answers and order make the ids of its runs."""
    return f"set:{hashlib.sha256(encode_set(prompts)).hexdigest()}"


def set_file(folder: Path, prompt: str) -> Path:
    """Where the set that a config's `prompt` names lies below a folder of sets."""
    return folder / f"{prompt.removeprefix('set:')}.jsonl"


def prompts_of(config: TrainingConfig, folder: Path) -> tuple[Prompt, ...]:
    """The one prompt of a config, or those of its set, which lies in `folder`.

    Raises `UserError` where the set is not there, or is another one than its name says.
    """
    if not is_set(config.prompt):
        return (Prompt(config.prompt, config.answer),)
    path = set_file(folder, config.prompt)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"the prompt set {path} cannot be read: {error.strerror}; `emsweep run` writes it anew") from None
    if hashlib.sha256(content).hexdigest() != path.stem:
        raise UserError(f"the prompt set {path} was changed: remove it, and `emsweep run` writes it anew")
    rows = [json.loads(line) for line in content.split(b"\n") if line]
    return tuple(Prompt(row["prompt"], row["answer"]) for row in rows)
