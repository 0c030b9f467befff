"""A whole training step, forward and backward of both towers with the loss, by every way of towers.py.

    python -m pytest benchmarks/bench_step.py --benchmark-json out.json

All seven ranks supervised, against open_clip's one text per image and against the authors' way. By default
ViT-B/32 at 224 pixels and 64 images: its text tower is ViT-B/16's (512 wide, 12 layers, 8 heads), and its image
tower is what two cores can carry. A costlier image tower brings all ratios closer to 1, so the text towers are
measured alone, too. There is no optimizer: it would add the same to every way. fp32.

    BENCH_STEP_MODEL=ViT-B-16   another open_clip architecture
    BENCH_STEP_BATCH=128        images of a batch
    BENCH_STEP_ROUNDS=3         timed steps of a way beside the one whose memory is measured; 0: that one is timed
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import recording
import timing
import torch
from peers import OURS
from recording import Call
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
ROUNDS = int(os.environ.get("BENCH_STEP_ROUNDS", "0"))
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BASE = "open_clip"


@pytest.fixture(scope="module")
def problem() -> StepProblem:
    """The batch of this run."""
    taxonomy, source = read_taxonomy()
    return StepProblem(ARCHITECTURE, taxonomy, source, draw_lineages(taxonomy, BATCH), DEVICE)


@pytest.mark.parametrize("name", WAYS)
def test_step(benchmark: Any, problem: StepProblem, name: str) -> None:
    """Time and peak memory of a step; the towers are the same, and so are their features."""
    way = describe(benchmark, "training step", problem, name)
    check_towers(way)
    last: list[Forward] = []

    def loss() -> Tensor:
        last[:] = [way.step()]
        return last[0].loss

    measure(benchmark, lambda: gradients(way, loss))
    benchmark.extra_info["largest_feature_difference"] = check_features(way, last[0])
    benchmark.extra_info["loss"] = last[0].loss.item()


@pytest.mark.parametrize("name", [name for name in WAYS if name != f"{OURS}, euclidean"])  # the same tower
def test_text(benchmark: Any, problem: StepProblem, name: str) -> None:
    """The text tower alone."""
    way = describe(benchmark, "text tower", problem, name)
    toward = torch.randn(len(way.rows), problem.embed_dim, device=DEVICE)
    measure(benchmark, lambda: gradients(way, lambda: (way.text() * toward).sum()))


def describe(benchmark: Any, what: str, problem: StepProblem, name: str) -> Way:
    """That way, with whose it is and what it encodes written down.

    The group names batch and taxonomy, so that a small run does not take a large one's place.
    """
    group = f"{what}, {ARCHITECTURE}, {len(problem.image_taxa)} images, {problem.source}"
    recording.name(benchmark, group, name, base=name == BASE)
    way = WAYS[name](problem)
    benchmark.extra_info.update(way.counts())
    return way


def measure(benchmark: Any, call: Call) -> None:
    """Peak memory and time of a call, after one in which libraries take their own memory."""
    call()
    if DEVICE.type == "cpu":
        recording.record(benchmark, call, ROUNDS)
        return
    benchmark.extra_info["peak_mib"] = round(timing.peak_mib(call), 1)

    def timed() -> None:
        call()
        torch.cuda.synchronize()

    benchmark.pedantic(timed, rounds=max(ROUNDS, 1), iterations=1)
