"""Two and four processes give what one gives, compute each pair once, and send what the formula says.

The batch, the cases and the way to run them are those of benchmarks/processes.py, which prints the figures.
"""

import importlib
import sys
from pathlib import Path

import pytest
import torch

from bioclip_hc.losses import ClipLoss

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
processes = importlib.import_module("processes")
CASES, SIZES = processes.CASES, processes.SIZES
DTYPES = (torch.float32, torch.float64)
BOUND = {torch.float32: 5e-6, torch.float64: 1e-12}  # of relative differences


def everything(world):
    """The outcomes of all cases, and what some steps of SGD come to."""
    trained = {dtype: processes.train(world, dtype) for dtype in DTYPES}
    return processes.compute_cases(world), trained, clip_pairs(world)


def clip_pairs(world):
    """Pairs that a process computes for ClipLoss on twelve of them, gathered with gradient, not local."""
    image, text = torch.randn(2, 12 // world.size, 4).requires_grad_()
    with processes.counted_pairs() as count:
        loss = ClipLoss(gather_with_grad=True, rank=world.rank, world_size=world.size)
        loss(image, text, torch.ones(1)).backward()
    return sum(count)


@pytest.fixture(scope="module")
def alone():
    return processes.run_world(everything, 1)[0]


@pytest.fixture(scope="module", params=SIZES)
def together(request):
    return processes.run_world(everything, request.param)


def test_the_cases_are_awkward(together):
    """Texts in uneven numbers, a rank that a process lacks, one without images and texts, shares that are even."""
    size = len(together)
    lacking = []
    for i, case in enumerate(CASES):
        texts = [outcomes[i].texts for outcomes, *_ in together]
        if case.texts == "share":
            assert max(texts) - min(texts) <= 1
            everyones = processes.unique_texts(processes.global_taxa(case.sampler))[0]
            assert sum(texts) == len(everyones)
        else:
            assert len(set(texts)) > 1
        for rank in range(size):
            taxa = processes.global_taxa(case.sampler)[processes.own_images(case, processes.World(rank, size))]
            lacking.append((taxa < 0).all(0))
            assert (len(taxa) == 0) == (texts[rank] == 0)
    assert any(len(absent) and absent.any() and not absent.all() for absent in lacking)
    assert any(absent.all() for absent in lacking)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_world_size_is_invisible(alone, together, case):
    i = CASES.index(case)
    outcomes = [outcomes[i] for outcomes, *_ in together]
    assert len({outcome.loss for outcome in outcomes}) == 1  # to the bit: each process must go on alike
    assert max(processes.difference(outcomes, alone[0][i])) < BOUND[case.dtype]
    assert all(gradient.count_nonzero() for gradient in alone[0][i].gradients[:3])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_each_pair_is_computed_once_in_all(alone, together, case):
    """Forward and backward: as many numbers of tiles over all processes as with one."""
    i = CASES.index(case)
    counts = [outcomes[i].pairs for outcomes, *_ in together]
    assert sum(counts) == alone[0][i].pairs > 0
    assert max(counts) < alone[0][i].pairs or case.images == "lopsided"


def test_clip_loss_computes_each_pair_once_too(alone, together):
    assert alone[2] == 2 * 12 * 12
    assert [pairs for *_, pairs in together] == [alone[2] // len(together)] * len(together)


@pytest.mark.parametrize("dtype", DTYPES)
def test_sgd_ends_in_the_same_weights(alone, together, dtype):
    for _, trained, _ in together:
        for found, expected in zip(trained[dtype], alone[1][dtype], strict=True):
            torch.testing.assert_close(found, expected, rtol=BOUND[dtype], atol=BOUND[dtype])


@pytest.mark.parametrize("size", SIZES)
def test_bytes_sent_are_those_of_the_formula(size):
    try:
        counted = processes.run_world(processes.count_bytes, size, isolated=True)[0]
    except PermissionError as refused:
        pytest.skip(f"{refused}: bytes are counted in one, run as root or allow user namespaces")
    for traffic, (forward, backward) in zip(processes.TRAFFIC, counted, strict=True):
        assert 1 <= forward / traffic.forward_bytes(size) < 1.1  # headers, and the counts of texts
        assert 1 <= backward / traffic.backward_bytes(size) < 1.1
