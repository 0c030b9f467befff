"""A whole training step, forward and backward of both towers with the loss, by every way of towers.py.

    python -m pytest benchmarks/bench_step.py --benchmark-json out.json

All seven ranks supervised, against open_clip's one text per image and against the authors' way. By default
ViT-B/32 at 224 pixels and 64 images: its text tower is ViT-B/16's (512 wide, 12 layers, 8 heads), and its image
tower is what two cores can carry. A costlier image tower brings all ratios closer to 1, so the text towers are
measured alone, too. There is no optimizer: it would add the same to every way. fp32.

    BENCH_STEP_MODEL=ViT-B-16   another open_clip architecture
    BENCH_STEP_BATCH=128        images of a batch
    BENCH_STEP_ROUNDS=3         timed steps of a way
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import timing
import torch
from memory import peak_beyond_results
from torch import Tensor
from towers import (
    WAYS,
    Forward,
    StepProblem,
    Way,
    check_features,
    check_towers,
    draw_lineages,
    gradients,
    read_taxonomy,
)

ARCHITECTURE = os.environ.get("BENCH_STEP_MODEL", "ViT-B-32")
BATCH = int(os.environ.get("BENCH_STEP_BATCH", "64"))
ROUNDS = int(os.environ.get("BENCH_STEP_ROUNDS", "1"))
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BASE = "open_clip"

Call = Callable[[], tuple[Tensor, ...]]


@pytest.fixture(scope="module")
def problem() -> StepProblem:
    """The batch of this run."""
    taxonomy, source = read_taxonomy()
    return StepProblem(ARCHITECTURE, taxonomy, source, draw_lineages(taxonomy, BATCH), DEVICE)


@pytest.mark.parametrize("name", WAYS)
def test_step(benchmark: Any, problem: StepProblem, name: str) -> None:
    """Time and peak memory of a step; the towers are the same, and so are their features."""
    benchmark.group = f"training step, {ARCHITECTURE}, {BATCH} images"
    way = WAYS[name](problem)
    check_towers(way)
    last: list[Forward] = []

    def loss() -> Tensor:
        last[:] = [way.step()]
        return last[0].loss

    describe(benchmark, name, way)
    measure(benchmark, lambda: gradients(way, loss))
    benchmark.extra_info["largest_feature_difference"] = check_features(way, last[0])
    benchmark.extra_info["loss"] = last[0].loss.item()


@pytest.mark.parametrize("name", [name for name in WAYS if name != "bioclip_hc, euclidean"])  # the same tower
def test_text(benchmark: Any, problem: StepProblem, name: str) -> None:
    """The text tower alone."""
    benchmark.group = f"text tower, {ARCHITECTURE}, {BATCH} images"
    way = WAYS[name](problem)
    toward = torch.randn(len(way.rows), problem.embed_dim, device=DEVICE)
    describe(benchmark, name, way)
    measure(benchmark, lambda: gradients(way, lambda: (way.text() * toward).sum()))


def describe(benchmark: Any, name: str, way: Way) -> None:
    """Whose way it is, and what it encodes."""
    benchmark.extra_info.update({"way": name, "taxonomy": way.problem.source, **way.counts()})
    if name == BASE:
        benchmark.extra_info["base"] = True


def measure(benchmark: Any, call: Call) -> None:
    """Peak memory of a first call, then the time of further ones."""
    if DEVICE.type == "cuda":
        call()
        peak = timing.peak_mib(call)
    else:
        peak = peak_beyond_results(lambda: sum(g.nbytes for g in call()))
    benchmark.extra_info["peak_mib"] = round(peak, 1)

    def timed() -> None:
        call()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()

    benchmark.pedantic(timed, rounds=ROUNDS, iterations=1)
