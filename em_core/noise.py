"""Randomness keyed by what it is for, never by who draws it.

The uniforms of sample `i` at step `t` are a function of (seed, purpose, t, i) alone, so packing, micro-batches, batch
order and retries do not change what is sampled, and asking for more samples keeps the earlier ones.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np


def uniforms(seed: int, purpose: str, step: int, samples: Sequence[int], length: int) -> np.ndarray:
    """Uniform draws in [0, 1), float64, shape (len(samples), length); row k belongs to index samples[k].

    A longer row starts with the shorter one. Drawn on the CPU with Philox, whatever the device.
    """
    rows = np.empty((len(samples), length))
    purpose_key = zlib.crc32(purpose.encode())
    for k, sample in enumerate(samples):
        key = np.random.SeedSequence((seed, purpose_key, step, sample))
        rows[k] = np.random.Generator(np.random.Philox(key)).random(length)
    return rows
