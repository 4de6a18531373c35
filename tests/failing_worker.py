"""A worker whose process of rank 1 alone fails while it samples; started in place of `em_core.worker` by a test."""

from __future__ import annotations

import os
from typing import Any

from em_core import model, worker


def _sample(*_: Any) -> None:
    raise MemoryError("only here")


if __name__ == "__main__":
    if os.environ["RANK"] == "1":
        model.sample = _sample  # type: ignore[assignment]
    worker.main()
