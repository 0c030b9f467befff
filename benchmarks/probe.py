"""Rates of the machine at hand, measured when a run ends: what scaling.py's model of a step is fed with.

Best of a few trials: the model asks what the machine can do, not what else it is doing.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

TRIALS = 5
SIDE, WIDTH = 1024, 512  # a tile of logits and the width of features, as in bench_loss.py
STREAM_BYTES = 256 << 20  # larger than any cache


def rates() -> dict[str, float]:
    """Of all threads together: products in GFLOP/s (fp32 and bf16), memory in GB/s, exponentials in 1e9/s."""
    return {
        "product_gflops": product_rate(torch.float32) / 1e9,
        "product_bf16_gflops": product_rate(torch.bfloat16) / 1e9,
        "memory_gb_s": memory_rate() / 1e9,
        "special_g_s": special_rate() / 1e9,
    }


def product_rate(dtype: torch.dtype) -> float:
    """FLOP/s of a tile's product, (1024, 512) @ (512, 1024)."""
    x, y, out = (torch.zeros(shape, dtype=dtype) for shape in ((SIDE, WIDTH), (WIDTH, SIDE), (SIDE, SIDE)))
    return 16 * 2 * SIDE * SIDE * WIDTH / best_of(lambda: [torch.mm(x, y, out=out) for _ in range(16)])


def memory_rate() -> float:
    """Bytes/s read and written by a copy of what no cache holds."""
    source = torch.zeros(STREAM_BYTES // 4)
    target = torch.empty_like(source).copy_(source)
    return 2 * STREAM_BYTES / best_of(lambda: target.copy_(source))


def special_rate() -> float:
    """Exponentials/s over a tile that a cache holds."""
    x = torch.zeros(SIDE // 2, SIDE // 2)
    out = torch.empty_like(x)
    return 16 * x.numel() / best_of(lambda: [torch.exp(x, out=out) for _ in range(16)])


def best_of(call: Callable[[], object], trials: int = TRIALS, warm_up: bool = True) -> float:
    """Seconds of the quickest of a few calls, by default after one that is not timed."""
    if warm_up:
        call()
    times = []
    for _ in range(trials):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)
