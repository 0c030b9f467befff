"""Forward and backward of the loss beside the dense way, in one run: time and peak memory.

    make bench      or      python -m pytest benchmarks/bench_loss.py --benchmark-json out.json

N images against N texts of one rank, D = 512, fp32: CLIP's problem (euclidean) and MERU's (lorentz). "tiled" is
what training uses; "dense" holds the matrices and lets autograd differentiate them, as open_clip and MERU do.
"sorted" is the same op with the N texts spread over seven ranks, each image supervised at one of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from memory import peak_beyond_results
from torch import Tensor

from bioclip_hc.kernels import level_infonce

D = 512
RANKS = 7


def problem(n: int, ranks: int) -> dict[str, Tensor]:
    """n pairs of unit-length features whose texts are spread evenly over the ranks."""
    generator = torch.Generator().manual_seed(0)
    image, text = (torch.nn.functional.normalize(torch.randn(n, D, generator=generator), dim=1) for _ in range(2))
    taxon = torch.arange(n)
    rank = taxon % ranks
    image_taxa = torch.full((n, ranks), -1)
    image_taxa[taxon, rank] = taxon
    return {"image": image, "text": text, "image_taxa": image_taxa, "text_rank": rank, "text_taxon": taxon}


def step(case: dict[str, Tensor], geometry: str, backend: str) -> Callable[[], int]:
    """One forward and backward; returns the bytes of the gradients it leaves."""
    scale = torch.tensor(14.3, requires_grad=True)
    image, text = (case[name].requires_grad_() for name in ("image", "text"))

    def call() -> int:
        labels = (case["image_taxa"], case["text_rank"], case["text_taxon"])
        nll_image, nll_text = level_infonce(image, text, *labels, scale, geometry=geometry, backend=backend)
        loss = (nll_image.sum() + nll_text.sum()) / (2 * len(image))
        gradients = torch.autograd.grad(loss, (image, text, scale))
        return sum(g.nbytes for g in gradients)

    return call


@pytest.mark.parametrize("n", [1024, 4096, 8192])
@pytest.mark.parametrize("geometry", ["euclidean", "lorentz"])
@pytest.mark.parametrize("way", ["tiled", "sorted", "dense"])
def test_loss(benchmark: Any, n: int, geometry: str, way: str) -> None:
    """Time of forward and backward; peak memory beyond inputs and returned gradients in extra_info."""
    benchmark.group = f"{geometry}, N = {n}"
    call = step(problem(n, RANKS if way == "sorted" else 1), geometry, "reference" if way == "dense" else "tiled")
    call()
    benchmark.extra_info["peak_mib"] = round(peak_beyond_results(call), 1)
    benchmark.pedantic(call, rounds=3, iterations=1)


@pytest.mark.parametrize("n", [1024, 4096, 8192])
def test_four_products(benchmark: Any, n: int) -> None:
    """The floor: the four matrix products that forward and backward need (KERNELS, work counts)."""
    benchmark.group = f"euclidean, N = {n}"
    case = problem(n, 1)
    x, y = case["image"], case["text"]

    def call() -> None:
        for rows in x.split(1024):
            for columns in y.split(1024):
                tile = rows @ columns.T
                tile = rows @ columns.T
                tile @ columns
                tile.T @ rows

    call()
    benchmark.pedantic(call, rounds=3, iterations=1)
