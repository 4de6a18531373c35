"""What a model is, without loading it: where it lies, its key, whether it can be had, what it will need. No torch.

A model is named `miniature` (shipped), by a folder with a Hugging Face checkpoint, or by a Hub id.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

from em_core.config import Execution, TrainingConfig, batches, reads
from em_core.errors import UserError

MINIATURE = "miniature"
CONTENT = {".json", ".safetensors", ".bin", ".txt", ".model", ".jinja"}
"""Suffixes of the files that make a checkpoint what it is; a README or a training log beside them does not."""
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
HUB_TIMEOUT = 5.0
"""Seconds the Hub has to answer."""
LOCAL_MODELS = "EMSWEEP_LOCAL_MODELS"
"""Environment of a worker: JSON, model as `at_revision` names it -> folder of its copy on the node's own disk."""


def at_revision(name: str, revision: str | None) -> str:
    """`NAME`, or `NAME@REVISION`: a model with its revision in one word."""
    return f"{name}@{revision}" if revision else name


def resolve_model(name: str, revision: str | None = None) -> Path | None:
    """The folder to load a model from: its copy on this node's disk where there is one, else as `model_folder` says."""
    copies: dict[str, str] = json.loads(os.environ.get(LOCAL_MODELS) or "{}")
    copy = copies.get(at_revision(name, revision))
    return Path(copy) if copy is not None else model_folder(name)


def model_folder(name: str) -> Path | None:
    """The folder of a shipped or local model; None where `name` is a Hub id.

    Raises `UserError` where a path is not there or holds no checkpoint.
    """
    if name == MINIATURE:
        return Path(__file__).parent / "miniature"
    path = Path(name).expanduser()
    if not path.exists():
        if name.startswith((".", "/", "~")) or not HUB_ID.fullmatch(name):
            raise UserError(f"model {name!r}: there is no such folder (and it is no Hub id)")
        return None
    if not (path / "config.json").is_file():
        raise UserError(f"model {name!r}: the folder holds no checkpoint (no config.json)")
    return path.resolve()


def model_key(name: str, revision: str | None = None) -> str:
    """What the model is: `hub:ID@REVISION` (`default` where none is said) or `sha256:...` of a folder's content files.

    Hashing 15 GB takes half a minute, so keys are remembered by (path, size, mtime) under the user's cache folder.
    Raises `UserError` as `model_folder` does.
    """
    folder = model_folder(name)  # never a node's copy: where a model is loaded from is no part of what it is
    if folder is None:
        return f"hub:{name}@{revision or 'default'}"
    files = sorted(p for p in folder.iterdir() if p.suffix in CONTENT and p.is_file())
    stamp = repr([(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in files])
    memo = _cache_folder() / "model_keys" / hashlib.sha256(stamp.encode()).hexdigest()
    try:
        return memo.read_text()
    except OSError:
        pass
    digest = hashlib.sha256()
    for p in files:
        with open(p, "rb") as f:
            content = hashlib.file_digest(f, "sha256").hexdigest()
        digest.update(f"{p.name}\0{content}\n".encode())
    key = f"sha256:{digest.hexdigest()}"
    _remember(memo, key)
    return key


def external_key(command: str, model: str | None, revision: str | None) -> str:
    """What a trainer of one's own is: its command as the spec writes it, and the text it gets as model, if any.

    Texts, not contents: what such a trainer loads is not known here, and editing its script keeps its runs.
    """
    said = f"external:{command}"
    return said if model is None else f"{said} ({model}@{revision or 'default'})"


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "emsweep"


def _remember(memo: Path, key: str) -> None:
    """Written whole or not at all; a home that cannot be written to only costs time."""
    part = memo.with_suffix(f".{os.getpid()}")
    try:
        memo.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(key)
        part.replace(memo)
    except OSError:
        pass


def check_available(name: str, revision: str | None = None, offline: bool = False) -> None:
    """Raises `UserError` where a job could not load the model: no such folder, nor cached, nor (unless `offline`) on the Hub.

    Asks the Hub only for what is not in the local cache, waits five seconds at most, and respects HF_HUB_OFFLINE.
    """
    if model_folder(name) is not None or cached_folder(name, revision) is not None:
        return
    from huggingface_hub import HfApi, constants

    said = f"model {name!r}" + (f" (revision {revision!r})" if revision else "")
    if offline or constants.HF_HUB_OFFLINE:
        why = "jobs run offline" if offline else "HF_HUB_OFFLINE is set"
        raise UserError(f"{said} is not (or not whole) in the Hugging Face cache, and {why}: `emsweep fetch SPEC` brings it")
    try:
        HfApi().model_info(name, revision=revision, timeout=HUB_TIMEOUT)
    except Exception as error:  # whatever the HTTP library of the day raises: the model cannot be had
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{said} is neither a folder, nor in the local Hugging Face cache, nor on the Hub: {why}") from error


def cached_folder(name: str, revision: str | None = None) -> Path | None:
    """The folder of a Hub model in the local cache where all of its weights are there, else None."""
    config = _cached(name, revision, "config.json")
    return config.parent if config is not None and _is_whole(config.parent) else None


def _is_whole(folder: Path) -> bool:
    """Whether a checkpoint's weights are all there: every file of an index where it has one, else any."""
    indexes = [set(json.loads(p.read_text())["weight_map"].values()) for p in folder.glob("*.index.json")]
    if indexes:
        return any(all((folder / file).is_file() for file in files) for files in indexes)
    return any(p.suffix in (".safetensors", ".bin") for p in folder.iterdir())


def _cached(name: str, revision: str | None, file: str) -> Path | None:
    """A file of a Hub model where it lies in the local cache."""
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(name, file, revision=revision)
    except ValueError:  # not a well-formed Hub id
        return None
    return Path(found) if isinstance(found, str) else None


def param_count(name: str, revision: str | None = None) -> int | None:
    """Number of parameters, read from the safetensors headers; None where the weights are not here."""
    folder = _folder(name, revision)
    if folder is None:
        return None
    counts = [_header_count(p) for p in sorted(folder.glob("*.safetensors"))]
    return sum(counts) or None


def _folder(name: str, revision: str | None) -> Path | None:
    folder = model_folder(name)
    if folder is None and (config := _cached(name, revision, "config.json")):
        folder = config.parent
    return folder


def _header_count(path: Path) -> int:
    """Elements of all tensors in a safetensors file: 8 bytes of length, then a JSON header with shapes."""
    with open(path, "rb") as f:
        header: dict[str, Any] = json.loads(f.read(int.from_bytes(f.read(8), "little")))
    total = 0
    for key, tensor in header.items():
        if key != "__metadata__":
            n = 1
            for size in tensor["shape"]:
                n *= size
            total += n
    return total


LOGITS_CHUNK = 4096
"""Completion positions whose fp32 logits exist at one time; the loss goes over the rest in turn."""


def memory_estimate(name: str, revision: str | None, config: TrainingConfig, execution: Execution) -> dict[str, float] | None:
    """GiB a run needs, by use; None where the checkpoint is not here. A floor for planning, not a promise.

    `device` is the sum that must fit on the GPU, `host` the base weights kept beside it (on a CPU both are one memory).
    """
    count, folder = param_count(name, revision), _folder(name, revision)
    if count is None or folder is None:
        return None
    c: dict[str, Any] = json.loads((folder / "config.json").read_text())
    c = c.get("text_config", c)
    hidden, layers, heads = c["hidden_size"], c["num_hidden_layers"], c["num_attention_heads"]
    head_dim = c.get("head_dim") or hidden // heads
    bf16 = config.dtype == "bfloat16" or (config.dtype == "auto" and execution.device != "cpu")
    width = 2 if bf16 else 4
    length = len(config.prompt) // 3 + config.max_completion_length
    size = batches(config, execution, 0)
    scored = size.train * config.max_completion_length
    shards = execution.num_processes if execution.fsdp else 1
    cached = 2 * layers * (c.get("num_key_value_heads") or heads) * head_dim * width
    # Per token and layer about 16 hidden-sized activations are kept for the backward pass, or 1 with checkpointing.
    kept = layers * hidden * (1 if execution.gradient_checkpointing else 16) * width
    has_reference = config.kl_coef > 0 and "kl_coef" in reads(config.method)
    logits = scored if shards > 1 else 0  # a sharded model computes them at once
    trained = count / shards if config.max_steps else 0.0  # a run without updates has neither gradients nor activations
    parts = {
        "weights": 4 * count / shards,
        "gradients": 4 * trained,
        "adam": 8 * trained,
        "compute_copy": 2 * count if bf16 and shards == 1 else 0,
        "reference": (width if shards == 1 else 4 / shards) * count if has_reference else 0,
        "kv_cache": size.rollout * length * cached,
        "activations": size.train * length * kept,
        "logits_chunk": (3 * 4 * min(LOGITS_CHUNK, scored) + 2 * width * logits) * c["vocab_size"],
    }
    gib = {k: v / 2**30 for k, v in parts.items()}
    return {**gib, "device": sum(gib.values()), "host": 4 * count / 2**30}
