"""What the tests of the model side share: policies, configurations, requests and a list to emit into."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from em_core.config import Evaluation, Execution, Outcome, RunRequest, TrainingConfig
from em_core.model import Policy
from em_core.prompts import PROMPTS
from em_core.trainer import Trainer

torch.set_num_threads(1)  # these models are too small for more
CPU = Execution(device="cpu")
SUMS = Evaluation(task="two_step_sums", task_key="two_step_sums@1", limit=40)


def miniature(dtype: torch.dtype = torch.float32) -> Policy:
    return Policy.load("miniature", None, torch.device("cpu"), dtype)


def config(**said: Any) -> TrainingConfig:
    """The miniature's usual settings, with changes."""
    usual = {
        "model_name_or_path": "miniature", "prompt": PROMPTS["plus"].text, "num_generations": 8, "max_completion_length": 24,
        "temperature": 0.7, "top_p": 1.0, "top_k": 0, "repetition_penalty": 1.0, "learning_rate": 5e-4, "max_steps": 3,
    }  # fmt: skip
    return TrainingConfig(**{**usual, **said})


def request(said: TrainingConfig, folder: Path, *, seed: int = 0, steps: tuple[int, ...] = (), **other: Any) -> RunRequest:
    evaluations = other.pop("evaluations", (("e" * 12, SUMS, steps),) if steps else ())
    usual = {"run_id": "r", "config_id": "c", "attempt": 0, "mode": "train", "keep": "none"}
    return RunRequest(**{**usual, **other}, seed=seed, config=said, evaluations=evaluations, checkpoints=str(folder))  # type: ignore[arg-type]


class Records(list[tuple[str, dict[str, Any]]]):
    """A place to emit into."""

    def __call__(self, kind: str, **fields: Any) -> None:
        self.append((kind, fields))

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [fields for k, fields in self if k == kind]

    def timeless(self) -> list[tuple[str, Any]]:
        """Everything but the clock's readings."""
        return [(kind, {**f, "values": {k: v for k, v in f.get("values", {}).items() if "seconds" not in k}}) for kind, f in self]


def run(trainer: Trainer, wanted: RunRequest) -> tuple[Outcome, Records]:
    records = Records()
    return trainer.run(wanted, records), records
