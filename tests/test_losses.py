"""Losses against the published equations in loops, and against open_clip.

# B images, U texts, D embed, R ranks
"""

import argparse
import copy
import itertools
import math
import types

import open_clip.factory
import open_clip.loss
import pytest
import torch
from small_run import ARCHITECTURES
from torch._subclasses.fake_tensor import FakeTensorMode

from bioclip_hc.losses import ClipLoss, LevelContrastiveLoss, MixedRankClipLoss, _Batch
from bioclip_hc.taxonomy import RANKS

SCALE, CURV = 5.0, 0.7
F64 = torch.float64


def lineages(B, R=7, complete=True, seed=0):
    """(B, R) taxa of a random tree with two or three children a node: an id stands for a path."""
    g = torch.Generator().manual_seed(seed)
    path = torch.zeros(B, dtype=torch.int64)
    columns = []
    for _ in range(R):
        path = path * 3 + torch.randint(0, 2, (B,), generator=g)
        columns.append(path)
    taxa = torch.stack(columns, 1)
    if not complete:
        taxa[torch.rand(B, R, generator=g) < 0.35] = -1
    return taxa


def unique_texts(taxa):
    """Every (rank, taxon) of the batch once: (U,) and (U,)."""
    pairs = sorted({(r, t) for row in taxa.tolist() for r, t in enumerate(row) if t >= 0})
    return torch.tensor([r for r, _ in pairs]), torch.tensor([t for _, t in pairs])


def batch(B=10, R=7, complete=True, seed=0, D=4):
    taxa = lineages(B, R, complete, seed)
    rank, taxon = unique_texts(taxa)
    g = torch.Generator().manual_seed(seed + 100)
    image, text = (torch.randn(n, D, generator=g, dtype=F64).requires_grad_() for n in (B, len(rank)))
    return image, text, taxa, rank, taxon


def distance(v, w, c):
    """Geodesic distance of the points of two tangent vectors, differentiable, from the textbook."""
    x, y = (torch.sinh(c**0.5 * u.norm()) * u / (c**0.5 * u.norm()) for u in (v, w))
    inner = (x * y).sum() - torch.sqrt(1 / c + (x * x).sum()) * torch.sqrt(1 / c + (y * y).sum())
    return torch.acosh(-c * inner) / c**0.5


def similarity(image, text, geometry):
    rows = []
    for v in image:
        if geometry == "lorentz":
            rows.append([-SCALE * distance(v, w, CURV) for w in text])
        else:
            rows.append([SCALE * (v @ w) / (v.norm() * w.norm()) for w in text])
    return torch.stack([torch.stack(row) for row in rows])


def paper(image, text, taxa, rank, taxon, geometry="lorentz", balanced=False, restrict=True):
    """[(I->T, T->I)] per rank of the paper's equations, None for an absent rank."""
    s = similarity(image, text, geometry)
    out = []
    for r in range(taxa.shape[1]):
        K = [k for k in range(len(rank)) if rank[k] == r]
        images = [i for i in range(len(taxa)) if taxa[i, r] >= 0]
        if not K:
            out.append(None)
            continue
        z = {i: next(k for k in K if taxon[k] == taxa[i, r]) for i in images}
        P = {k: [i for i in images if z[i] == k] for k in K}
        text_pool = K if restrict else list(range(len(rank)))
        image_pool = images if restrict else [i for i in range(len(taxa)) if (taxa[i] >= 0).any()]
        nll = {i: torch.logsumexp(s[i, text_pool], 0) - s[i, z[i]] for i in images}
        if balanced:
            i2t = sum(sum(nll[i] for i in P[k]) / len(P[k]) for k in K) / len(K)
        else:
            i2t = sum(nll.values()) / len(images)
        t2i = sum(sum(torch.logsumexp(s[image_pool, k], 0) - s[p, k] for p in P[k]) / len(P[k]) for k in K) / len(K)
        out.append((i2t, t2i))
    return out


def assert_same(ours, theirs, inputs):
    torch.testing.assert_close(ours, theirs)
    for got, expected in zip(torch.autograd.grad(ours, inputs), torch.autograd.grad(theirs, inputs), strict=True):
        torch.testing.assert_close(got, expected)


# -- LevelContrastiveLoss


@pytest.mark.parametrize("geometry", ["lorentz", "euclidean"])
@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize("restrict", [True, False])
@pytest.mark.parametrize("balanced", [False, True])
def test_it_is_the_papers_loss(geometry, complete, restrict, balanced):
    b = batch(complete=complete)
    weighting = "balanced" if balanced else "standard"
    loss = LevelContrastiveLoss(geometry=geometry, restrict=restrict, image_weighting=weighting)
    out = loss(*b, SCALE, CURV)
    ranks = [i2t + t2i for i2t, t2i in paper(*b, geometry, balanced, restrict)]
    torch.testing.assert_close(out.per_rank, torch.stack(ranks).detach())
    assert_same(out.loss, sum(ranks) / 7, b[:2])


def test_the_authors_code_sums_halves():
    b = batch()
    out = LevelContrastiveLoss.reference_code()(*b, SCALE, CURV)
    assert_same(out.loss, sum(0.5 * (i2t + t2i) for i2t, t2i in paper(*b)), b[:2])
    assert LevelContrastiveLoss.reference_code(direction_weight=2.0).direction_weight == 2.0


@pytest.mark.parametrize("restrict", [True, False])
@pytest.mark.parametrize("weighting", ["standard", "balanced"])
@pytest.mark.parametrize("backend", ["reference", "tiled"])
def test_an_absent_rank_is_nan_in_the_log_and_nowhere_else(restrict, weighting, backend):
    """Rank 1 is known to nobody; a text of it is in the batch all the same, as when its image was unreadable."""
    image, text, taxa, rank, taxon = batch(complete=False)
    lost = (rank == 1).nonzero().flatten()
    taxa[:, 1] = -1
    taxa[0] = -1
    loss = LevelContrastiveLoss(restrict=restrict, image_weighting=weighting, backend=backend)
    out = loss(image, text, taxa, rank, taxon, SCALE, CURV)
    assert out.per_rank.isnan().tolist() == [False, True, False, False, False, False, False]
    assert out.floor.isnan().tolist() == out.per_rank.isnan().tolist()
    torch.testing.assert_close(out.loss.detach(), out.per_rank.nanmean())
    for gradient in torch.autograd.grad(out.loss, [image, text]):
        assert gradient.isfinite().all()
        assert gradient.abs().sum() > 0
    if restrict:
        assert not torch.autograd.grad(loss(image, text, taxa, rank, taxon, SCALE, CURV).loss, text)[0][lost].any()


def test_a_batch_without_any_label_costs_nothing():
    image, text, taxa, rank, taxon = batch()
    out = LevelContrastiveLoss()(image, text, torch.full_like(taxa, -1), rank, taxon, SCALE, CURV)
    assert out.loss.item() == 0
    assert out.per_rank.isnan().all()
    assert not torch.autograd.grad(out.loss, image)[0].any()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("complete", [True, False])
def test_the_floor_is_a_lower_bound_that_is_attained(seed, complete):
    """It is (1/K) sum log |P_k|; with images on their own texts, all far apart, only it remains."""
    image, text, taxa, rank, taxon = batch(complete=complete, seed=seed)
    out = LevelContrastiveLoss()(image, text, taxa, rank, taxon, SCALE, CURV)
    for r in range(7):
        counts = [(taxa[:, r] == t).sum().item() for t in taxon[rank == r]]
        assert out.floor[r].item() == pytest.approx(sum(map(math.log, counts)) / len(counts))
    assert (out.per_rank > out.floor).all()
    one = taxa[:, 6:]
    leaves = one.unique()[one.unique() >= 0]
    corner = torch.eye(len(leaves) + 1, dtype=F64) * 8
    image = corner[torch.searchsorted(leaves, one[:, 0].clamp_min(0))]
    out = LevelContrastiveLoss(("species",))(image, corner[:-1], one, leaves * 0, leaves, 100.0, 1.0)
    torch.testing.assert_close(out.per_rank, out.floor, rtol=1e-9, atol=1e-9)


def test_with_pairs_it_is_clip_restricted_to_ranks():
    """diagonal: one text per image, repeated texts included."""
    g = torch.Generator().manual_seed(0)
    image, text = (torch.randn(6, 4, generator=g, dtype=F64).requires_grad_() for _ in range(2))
    rank = torch.tensor([0, 0, 0, 1, 1, 1])
    taxon = torch.tensor([4, 4, 5, 7, 8, 8])
    taxa = torch.full((6, 2), -1)
    taxa[torch.arange(6), rank] = taxon
    loss = LevelContrastiveLoss(("a", "b"), targets="diagonal", direction_weight=0.5)
    out = loss(image, text, taxa, rank, taxon, SCALE, CURV, pair=torch.arange(6))
    s = similarity(image, text, "lorentz")
    ids = torch.arange(3)
    parts = [s[:3, :3], s[3:, 3:]]
    cross_entropy = torch.nn.functional.cross_entropy
    expected = [(cross_entropy(p, ids) + cross_entropy(p.T, ids)) / 2 for p in parts]
    assert_same(out.loss, sum(expected) / 2, [image, text])


def test_errors_of_the_level_loss():
    image, text, taxa, rank, taxon = batch()
    loss = LevelContrastiveLoss()
    with pytest.raises(ValueError, match=r"image_taxa must be \(B, 7\) for ranks .*got \(10, 6\)"):
        loss(image, text, taxa[:, :6], rank, taxon, SCALE, CURV)
    with pytest.raises(ValueError, match="geometry 'lorentz' needs curv"):
        loss(image, text, taxa, rank, taxon, SCALE)
    twice = torch.cat([text, text[2:3]]), taxa, *(torch.cat([x, x[2:3]]) for x in (rank, taxon))
    with pytest.raises(ValueError, match=rf"text 2 \(rank {rank[2]}, taxon {taxon[2]}\) is repeated"):
        loss(image, *twice, SCALE, CURV)
    with pytest.raises(ValueError, match=r"rank_reduction must be one of .*'median'"):
        LevelContrastiveLoss(rank_reduction="median")
    with pytest.raises(ValueError, match=r"image_weighting must be one of .*'even'"):
        LevelContrastiveLoss(image_weighting="even")
    assert loss.ranks == RANKS


@pytest.mark.parametrize("weighting", ["standard", "balanced"])
@pytest.mark.parametrize("paired", [False, True])
def test_the_host_never_waits_for_a_gpu(weighting, paired):
    """Tensors without values take the loss through: nothing it does on a GPU depends on what they hold."""
    loss = LevelContrastiveLoss(("a", "b"), image_weighting=weighting)
    with FakeTensorMode():
        device = torch.device("cuda")
        ids = [torch.zeros(*shape, dtype=torch.int64, device=device) for shape in ((5, 2), (3,), (3,), (5,))]
        taxa, rank, taxon, pair = ids
        rows = [torch.zeros(*shape, device=device) for shape in ((5, 4), (3, 4), (5, 2), (3,))]
        image, text, nll_image, nll_text = rows
        pooled = loss._pool(_Batch(image, text, taxa, rank, taxon, pair if paired else None, None))
        out = loss._reduce(nll_image, nll_text, nll_text, pooled, loss._count(pooled))
        assert out.loss.device.type == "cuda"
        assert out.per_rank.shape == (2,)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_the_device_counts_as_the_host_does_without_a_wait():
    image, text, taxa, rank, taxon = (x.detach() for x in batch(complete=False))
    nll = torch.rand(len(taxa), 7), torch.rand(len(text)), torch.rand(len(text))
    loss = LevelContrastiveLoss(image_weighting="balanced")
    pooled = loss._pool(_Batch(image, text, taxa, rank, taxon, None, None))
    expected = loss._reduce(*nll, pooled, loss._count(pooled))
    on_gpu = [x.cuda() for x in (image, text, taxa, rank, taxon, *nll)]
    torch.cuda.set_sync_debug_mode("error")
    try:
        pooled = loss._pool(_Batch(*on_gpu[:5], None, None))
        out = loss._reduce(*on_gpu[5:], pooled, loss._count(pooled))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close([x.cpu() for x in out], list(expected), equal_nan=True)


# -- MixedRankClipLoss


@pytest.mark.parametrize("unreadable", [False, True])
def test_mixed_ranks_are_clip_on_one_caption_per_image(unreadable):
    """Each distinct caption is encoded once; open_clip sees it once per image."""
    g = torch.Generator().manual_seed(4)
    taxa = lineages(12)
    chosen = torch.randint(0, 7, (12,), generator=g)
    taxa[torch.arange(7) != chosen[:, None]] = -1
    rank, taxon = unique_texts(taxa)
    if unreadable:  # its caption stays carried by another image
        shared = next(i for i in range(12) if (taxa == taxa[i]).all(1).sum() > 1)
        taxa[shared] = -1
    seen = (taxa >= 0).any(1)
    image, text = (torch.randn(n, 4, generator=g, dtype=F64).requires_grad_() for n in (12, len(rank)))
    own = [int(((rank == r) & (taxon == taxa[i, r])).nonzero()) for i, r in enumerate(chosen) if seen[i]]
    assert len(set(own)) < len(own)
    scale = torch.tensor(SCALE, dtype=F64, requires_grad=True)
    out = MixedRankClipLoss()(image, text, taxa, rank, taxon, scale)
    unit = [torch.nn.functional.normalize(x, dim=1) for x in (image[seen], text[own])]
    theirs = open_clip.loss.ClipLoss()(*unit, scale)
    assert_same(out.loss, theirs, [image, text, scale])
    images = torch.bincount(chosen[seen], minlength=7)
    torch.testing.assert_close((out.per_rank.nan_to_num() * images).sum() / images.sum(), theirs.detach())
    assert (out.per_rank.isnan() == (images == 0)).all()
    assert not (out.per_rank < out.floor).any()


def test_errors_of_the_mixed_loss():
    image, text, taxa, rank, taxon = batch()
    loss = MixedRankClipLoss()
    with pytest.raises(ValueError, match="image 0 is supervised at 7 ranks, and a caption has one"):
        loss(image, text, taxa, rank, taxon, SCALE)
    with pytest.raises(ValueError, match="leave out pair and text_bias"):
        loss(image, text, taxa, rank, taxon, SCALE, pair=torch.zeros(10))


# -- ClipLoss


@pytest.mark.parametrize("B", [1, 2, 37])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("flags", list(itertools.product([False, True], repeat=3)))
def test_clip_loss_is_open_clips(B, dtype, flags):
    """flags: local_loss, gather_with_grad, cache_labels; twice, so that cached labels are used."""
    g = torch.Generator().manual_seed(0)
    losses = ClipLoss(*flags), open_clip.loss.ClipLoss(*flags)
    for _ in range(2):
        image, text = (torch.randn(B, 6, generator=g, dtype=dtype).requires_grad_() for _ in range(2))
        scale = torch.tensor(SCALE, dtype=dtype, requires_grad=True)
        ours, theirs = (loss(image, text, scale) for loss in losses)
        assert ours.dtype == theirs.dtype
        assert_same(ours, theirs, [image, text, scale])


@pytest.mark.parametrize("shape", [(), (1,)])
def test_clip_loss_takes_a_bias_and_names_its_part(shape):
    """One bias on every logit changes nothing but needs its gradient of 0: DDP waits for it."""
    g = torch.Generator().manual_seed(0)
    image, text = (torch.randn(9, 6, generator=g, dtype=F64).requires_grad_() for _ in range(2))
    scale, bias = (torch.full(shape, x, dtype=F64, requires_grad=True) for x in (SCALE, -10.0))
    parts = [loss(image, text, scale, bias, output_dict=True) for loss in (ClipLoss(), open_clip.loss.ClipLoss())]
    assert parts[0].keys() == parts[1].keys()
    ours, theirs = (part["contrastive_loss"] for part in parts)
    assert ours.shape == theirs.shape
    assert_same(ours, theirs, [image, text, scale, bias])


@pytest.mark.parametrize("accum_freq", [1, 2])
@pytest.mark.parametrize("bias", [None, -10.0])
def test_open_clips_training_runs_with_it(monkeypatch, accum_freq, bias):
    """Its train_one_epoch as it is, its create_loss with our class in the place of its own: the same weights."""
    train = pytest.importorskip("open_clip_train.train")
    args = argparse.Namespace(
        device="cpu", precision="fp32", distill=False, accum_freq=accum_freq, skip_scheduler=True, horovod=False,
        grad_clip_norm=None, rank=0, local_rank=0, world_size=1, log_local=False, log_every_n_steps=1, batch_size=4,
        wandb=False, model="tiny", siglip=False, local_loss=True, gather_with_grad=True,
    )  # fmt: skip
    g = torch.Generator().manual_seed(0)
    pixels = torch.randn(4, 4, 3, 32, 32, generator=g, dtype=F64)  # float64, as four steps magnify rounding
    batches = zip(pixels, torch.randint(1, 99, (4, 4, 77), generator=g), strict=True)

    class Loader(list):
        num_batches, num_samples = 4, 16

    data = {"train": types.SimpleNamespace(dataloader=Loader(batches), set_epoch=lambda epoch: None)}
    torch.manual_seed(0)
    start = open_clip.CLIP(**ARCHITECTURES["tiny"], init_logit_bias=bias, output_dict=True).double()
    trained = []
    for loss_class in (open_clip.loss.ClipLoss, ClipLoss):
        monkeypatch.setattr(open_clip.factory, "ClipLoss", loss_class)
        loss = open_clip.factory.create_loss(args)
        assert type(loss) is loss_class
        model = copy.deepcopy(start)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        train.train_one_epoch(model, data, loss, 0, optimizer, None, None, None, args)
        trained.append(model.state_dict())
    assert not torch.equal(trained[0]["text_projection"], start.state_dict()["text_projection"])
    torch.testing.assert_close(trained[1], trained[0])


def test_clip_loss_refuses_horovod():
    with pytest.raises(ValueError, match="use_horovod=True is not supported"):
        ClipLoss(use_horovod=True)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8])
@pytest.mark.parametrize("kind", [LevelContrastiveLoss, MixedRankClipLoss])
def test_ids_of_any_integer_type_mean_the_same(kind, dtype):
    generator = torch.Generator().manual_seed(0)
    image, text = (torch.randn(n, 8, generator=generator) / 4 for n in (4, 4))
    rank, taxon = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 2, 3])
    taxa = torch.tensor([[0, -1], [1, -1], [-1, 2], [-1, 3]])
    loss = kind(ranks=("family", "genus"))
    expected = loss(image, text, taxa, rank, taxon, torch.tensor([10.0]), 1.0)
    found = loss(image, text, taxa, rank.to(dtype), taxon.to(dtype), torch.tensor([10.0]), 1.0)
    torch.testing.assert_close(found.per_rank, expected.per_rank, rtol=0, atol=0)
    torch.testing.assert_close(found.loss, expected.loss, rtol=0, atol=0)
