"""The world size is invisible: one process with 8 images, two with 4, four with 2 give one loss and gradient.

# W processes, G = 8 global images, R = 3 ranks, F features, D embed
Processes are gloo workers forked from a server that has imported torch once.
"""

import itertools
import multiprocessing
from datetime import timedelta

import open_clip.loss
import pytest
import torch
import torch.distributed as dist

from bioclip_hc.distributed import (
    all_gather_rows,
    average_gradient,
    gather_rows_with_grad,
    max_over_processes,
    row_counts,
    share_of_texts,
    share_unique_texts,
    sum_over_processes,
    world_rank,
    world_size,
)
from bioclip_hc.losses import ClipLoss, LevelContrastiveLoss, MixedRankClipLoss

G, R, F, D = 8, 3, 5, 4
RANKS = ("order", "genus", "species")
TAXA = torch.tensor(
    [[0, 1, 3], [0, 1, 3], [0, 1, 4], [0, 2, -1], [0, 2, -1], [0, -1, -1], [-1, -1, -1], [9, 2, -1]]
)  # rank 2 is absent from the second half, order 0 stands on both halves, image 6 could not be read
ONE_RANK = torch.where(torch.arange(R) == torch.tensor([0, 1, 2, 1, 1, 0, 0, 0])[:, None], TAXA, -1)


def unique_texts(taxa):
    pairs = sorted({(r, t) for row in taxa.tolist() for r, t in enumerate(row) if t >= 0})
    return torch.tensor(pairs, dtype=torch.int64).view(-1, 2).unbind(1)


def pixels(indices):
    return torch.randn(G, F, generator=torch.Generator().manual_seed(1), dtype=torch.float64)[indices]


def words(rank, taxon):
    """A taxon's text features depend on the taxon only."""
    table = torch.randn(R, 10, F, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return table[rank, taxon]


def encoders():
    """Parameters that all processes share: two linear encoders, logit scale, curvature."""
    g = torch.Generator().manual_seed(3)
    shapes = (D, F), (D, F), (1,), (1,)
    parameters = [torch.randn(shape, generator=g, dtype=torch.float64) * 0.5 for shape in shapes]
    return [p.requires_grad_() for p in parameters]


def even(rank, size):
    return range(rank * G // size, (rank + 1) * G // size)


def uneven(rank, size):
    """The first process has all but one image for each of the others."""
    first = G - size + 1
    return range(first) if rank == 0 else range(first + rank - 1, first + rank)


SCENARIOS = {
    # name: (loss, taxa, who holds which images, texts: of the own images | biased | shares of all | one an image)
    "own texts": (lambda: LevelContrastiveLoss(RANKS), TAXA, even, "own"),
    "shared texts": (lambda: LevelContrastiveLoss(RANKS), TAXA, even, "share"),
    "uneven batches": (lambda: LevelContrastiveLoss(RANKS), TAXA, uneven, "own"),
    "options": (
        lambda: LevelContrastiveLoss(
            RANKS, "euclidean", rank_reduction="sum", image_weighting="balanced", restrict=False
        ),
        TAXA,
        even,
        "share",
    ),
    "biased texts": (lambda: LevelContrastiveLoss(RANKS), TAXA, even, "bias"),
    "unrestricted, masked out": (
        lambda: LevelContrastiveLoss(RANKS, targets="mask_out", restrict=False, image_weighting="balanced"),
        ONE_RANK,
        uneven,
        "pair",
    ),
    "mixed ranks": (lambda: MixedRankClipLoss(RANKS), ONE_RANK, even, "share"),
    "pairs": (lambda: LevelContrastiveLoss(RANKS, targets="mask_out"), ONE_RANK, even, "pair"),
}


def run_scenario(name, rank, size):
    """(loss, per_rank, gradients of the encoders' parameters) as this process sees them."""
    make_loss, taxa, holder, texts = SCENARIOS[name]
    indices = list(holder(rank, size))
    local = taxa[indices]
    pair = None
    if texts == "share":
        text_rank, text_taxon = unique_texts(taxa)
        share = slice(*share_of_texts(len(text_rank), rank, size))
        text_rank, text_taxon = text_rank[share], text_taxon[share]
    elif texts in ("own", "bias"):
        text_rank, text_taxon = unique_texts(local)
    else:
        has_text = (local >= 0).any(1)
        text_rank = local[has_text].argmax(1)
        text_taxon = local[has_text].amax(1)
        pair = torch.where(has_text, has_text.cumsum(0) - 1, -1)
    W_image, W_text, log_scale, log_curv = parameters = encoders()
    out = make_loss()(
        pixels(indices) @ W_image.T, words(text_rank, text_taxon) @ W_text.T, local, text_rank, text_taxon,
        log_scale.exp(), log_curv.exp(), pair=pair,
        text_bias=(text_taxon % 3).double() if texts == "bias" else None,
    )  # fmt: skip
    gradients = torch.autograd.grad(out.loss, parameters, materialize_grads=True)
    return out.loss.detach(), out.per_rank, gradients


def run_clip(loss_class, local_loss, gather_with_grad, cache_labels, dtype, rank, size):
    """(loss, gradients) of this process, in two calls, so that cached labels are used."""
    g = torch.Generator().manual_seed(rank)
    loss = loss_class(local_loss, gather_with_grad, cache_labels, rank, size)
    results = []
    for _ in range(2):
        image, text = (torch.randn(3, D, generator=g, dtype=dtype).requires_grad_() for _ in range(2))
        scale, bias = (torch.tensor(x, dtype=dtype, requires_grad=True) for x in (4.0, -10.0))
        value = loss(image, text, scale, logit_bias=bias, output_dict=True)["contrastive_loss"]
        results.append((value.detach(), torch.autograd.grad(value, [image, text, scale, bias])))
    return results


FLAGS = [False, True]
CLIP_MODES = list(itertools.product(FLAGS, FLAGS, FLAGS, [torch.float32, torch.float64]))


def run_collectives(rank, size):
    """What test_collectives looks at."""
    x = torch.arange(2.0 * (rank + 1)).view(-1, 2) + 100 * rank
    counts = row_counts(len(x), x.device)
    a, b = (torch.zeros(rank + 1, 2, requires_grad=True) for _ in range(2))
    both = gather_rows_with_grad(a, counts) + gather_rows_with_grad(b, counts)  # one gradient tensor for two nodes
    (both * torch.arange(len(both))[:, None]).sum().backward()
    wide = torch.zeros(1, 1, dtype=torch.bfloat16, requires_grad=True)
    shares = gather_rows_with_grad(wide, [1] * size) * (1.0 if rank else 256.0)
    shares.sum().backward()
    return counts, all_gather_rows(x, counts), (a.grad, b.grad), (world_rank(), world_size()), wide.grad


def worker(folder, rank, size):
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=timedelta(seconds=60))
    results = {name: run_scenario(name, rank, size) for name in SCENARIOS}
    if size == 2:
        losses = {"ours": ClipLoss, "theirs": open_clip.loss.ClipLoss}
        for mode in CLIP_MODES:
            results[mode] = {name: run_clip(cls, *mode, rank, size) for name, cls in losses.items()}
        results["code"] = LevelContrastiveLoss.reference_code(ranks=RANKS)(*per_process_batch(rank), 2.0, 1.0).loss
    results["collectives"] = run_collectives(rank, size)
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def per_process_batch(rank):
    taxa = TAXA[list(even(rank, 2))]
    text_rank, text_taxon = unique_texts(taxa)
    return pixels(list(even(rank, 2))), words(text_rank, text_taxon), taxa, text_rank, text_taxon


@pytest.fixture(scope="module", params=[2, 4])
def world(request, tmp_path_factory):
    """Results of every process of a world of two or four."""
    size = request.param
    folder = tmp_path_factory.mktemp(f"world{size}")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch.distributed", "open_clip", "pytest"])
    processes = [context.Process(target=worker, args=(str(folder), rank, size)) for rank in range(size)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(90)
    assert [process.exitcode for process in processes] == [0] * size
    return [torch.load(folder / f"{rank}.pt") for rank in range(size)]


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_world_size_is_invisible(world, name):
    loss, per_rank, gradients = run_scenario(name, 0, 1)
    assert loss.isfinite()
    assert all(g.abs().sum() > 0 for g in gradients[:3])
    for result in world:
        torch.testing.assert_close(result[name][0], loss)
        torch.testing.assert_close(result[name][1], per_rank, equal_nan=True)
    for i, expected in enumerate(gradients):
        average = sum(result[name][2][i] for result in world) / len(world)
        torch.testing.assert_close(average, expected)


def test_the_authors_code_takes_each_process_alone(world):
    if len(world) == 2:
        loss = LevelContrastiveLoss.reference_code(ranks=RANKS)
        alone = [loss(*per_process_batch(rank), 2.0, 1.0).loss for rank in range(2)]
        assert alone[0] != alone[1]
        torch.testing.assert_close([result["code"] for result in world], alone)


@pytest.mark.parametrize("mode", CLIP_MODES)
def test_clip_loss_is_open_clips(world, mode):
    """At world size 2, for every local_loss, gather_with_grad, cache_labels and dtype: value and all gradients."""
    if len(world) == 2:
        for result in world:
            torch.testing.assert_close(result[mode]["ours"], result[mode]["theirs"])


def test_collectives(world):
    """Process p holds p + 1 rows; gradients of gathered rows are summed over processes."""
    size = len(world)
    expected = torch.cat([torch.arange(2.0 * (p + 1)).view(-1, 2) + 100 * p for p in range(size)])
    for rank, result in enumerate(world):
        counts, gathered, gradients, place, wide = result["collectives"]
        assert counts == [p + 1 for p in range(size)]
        assert torch.equal(gathered, expected)
        assert place == (rank, size)
        rows = torch.arange(sum(range(rank + 1)), sum(range(rank + 2)))[:, None].expand(-1, 2) * float(size)
        for gradient in gradients:
            assert torch.equal(gradient, rows)
        assert wide == torch.tensor(256.0 + size - 1).bfloat16()  # 256 + 1 + 1 + 1 is 256, if each sum is rounded


def test_without_a_process_group_everything_is_a_no_op():
    x = torch.ones(3, 2)
    assert (world_rank(), world_size(), row_counts(3, x.device)) == (0, 1, [3])
    assert all_gather_rows(x, [3]) is x
    assert gather_rows_with_grad(x, [3]) is x
    assert average_gradient(x) is x
    assert sum_over_processes([x, x])[1] is x
    assert torch.equal(max_over_processes(x), x)
    rank, taxon = share_unique_texts(torch.tensor([1, 0, 1]), torch.tensor([5, 7, 5], dtype=torch.int32))
    assert (rank.tolist(), taxon.tolist()) == ([0, 1], [7, 5])
    nothing = torch.empty(0, dtype=torch.int64)
    assert [len(x) for x in share_unique_texts(nothing, nothing)] == [0, 0]


@pytest.mark.parametrize("count", [0, 1, 5, 8, 9])
@pytest.mark.parametrize("size", [1, 2, 4, 7])
def test_shares_cover_the_texts_once_in_order(count, size):
    shares = [share_of_texts(count, rank, size) for rank in range(size)]
    assert [i for start, stop in shares for i in range(start, stop)] == list(range(count))
    assert max(stop - start for start, stop in shares) - min(stop - start for start, stop in shares) <= 1
