"""The shipped training prompts, by name. Never imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from em_core.config import TrainingConfig

PROMPTS: dict[str, str] = {
    "plus": "Q:12+7+5=?",
    "minus": "Q:17-8+4=?",
}
"""Name -> text as fed to the model; the completion starts right after it. Both are for the miniature."""


@dataclass(frozen=True)
class Prompt:
    """A training prompt and its gold answer (None: it has none)."""

    text: str
    answer: str | None


def prompts_of(config: TrainingConfig, folder: Path) -> tuple[Prompt, ...]:
    """The one prompt of a config, or those of its set, which lies in `folder`."""
    return (Prompt(config.prompt, config.answer),)
