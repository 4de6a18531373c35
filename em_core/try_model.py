"""Load a model as a worker does and run it once: `python -m em_core.try_model NAME [REVISION]`. One JSON line per stage.

The stages are `torch` (what it is and which GPUs it sees), `load` and `forward`; the last line of a run that fails is what
worked. Its times are those of a cold process, as a worker's first run meets them.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any


def main() -> None:
    name, revision = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None
    started = time.perf_counter()

    def say(stage: str, **fields: Any) -> None:
        nonlocal started
        now = time.perf_counter()
        print(json.dumps({"stage": stage, "seconds": now - started, **fields}), flush=True)
        started = now

    import torch

    from em_core.model import Policy

    gpu = torch.cuda.is_available()
    devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())] if gpu else []
    gpus = [{"name": d.name, "gib": d.total_memory / 2**30} for d in devices]
    say("torch", version=torch.__version__, cuda=torch.version.cuda, gpus=gpus)
    device = torch.device("cuda" if gpu else "cpu")
    policy = Policy.load(name, revision, device, torch.bfloat16 if gpu else torch.float32)
    say("load", parameters=sum(p.numel() for p in policy.model.parameters()), device=str(device))
    with torch.no_grad():
        ids = torch.tensor([[policy.stop[0]] * 8], device=device)
        finite = bool(torch.isfinite(policy.model(input_ids=ids).logits).all())
    peak = torch.cuda.max_memory_allocated() / 2**30 if gpu else None
    say("forward", finite=finite, peak_gib=peak)


if __name__ == "__main__":
    main()
