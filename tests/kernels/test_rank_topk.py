"""rank_topk against sorting all logits."""

import math

import pytest
import torch

from bioclip_hc.kernels import panel, rank_topk
from bioclip_hc.kernels.ops import BACKENDS

SPACES = [("lorentz", "tangent"), ("lorentz", "hyperboloid"), ("euclidean", "tangent"), ("euclidean", "unit")]
each_backend = pytest.mark.parametrize("backend", BACKENDS)


def plain_logits(image, text, scale, c, geometry, space):
    """(M, N) float64 similarities, from the textbook."""
    v, w = image.double(), text.double()
    if geometry == "euclidean":
        if space == "tangent":
            v, w = (x / x.square().sum(1, keepdim=True).sqrt() for x in (v, w))
        return scale * v @ w.T
    if space == "tangent":
        r, q = ((c * x.square().sum(1, keepdim=True)).sqrt() for x in (v, w))
        v, w = v * r.sinh() / r, w * q.sinh() / q
    v0, w0 = ((1 / c + x.square().sum(1)).sqrt() for x in (v, w))
    return -scale * (c * (torch.outer(v0, w0) - v @ w.T)).acosh() / math.sqrt(c)


def plain_topk(logits, text_rank, ranks, k, lists=None):
    """Sort by falling logit, then by index; pad with -inf and -1."""
    score, index = [], []
    for i, row in enumerate(logits.tolist()):
        allowed = range(len(row)) if lists is None else lists[i]
        for r in range(ranks):
            best = sorted((-row[j], j) for j in allowed if text_rank[j] == r)[:k]
            score.append([-l for l, _ in best] + [-math.inf] * (k - len(best)))
            index.append([j for _, j in best] + [-1] * (k - len(best)))
    shape = (len(logits), ranks, k)
    return torch.tensor(score, dtype=torch.float64).view(shape), torch.tensor(index).view(shape)


def features(M, N, ranks=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    text_rank = torch.randint(0, ranks, (N,), generator=g)
    return torch.randn(M, 5, generator=g), torch.randn(N, 5, generator=g), text_rank


def csr(lists):
    return torch.tensor([0, *map(len, lists)]).cumsum(0), torch.tensor(
        [j for each in lists for j in each], dtype=int
    )


@each_backend
@pytest.mark.parametrize(("geometry", "space"), SPACES)
@pytest.mark.parametrize("k", [1, 3, 40])
@pytest.mark.parametrize("restricted", [False, True])
def test_it_is_what_sorting_gives(backend, geometry, space, k, restricted):
    image, text, text_rank = features(7, 23)
    lists = (
        [[], [4], [22, 0, 7], list(range(23)), [3, 2, 1], list(range(0, 23, 2)), [5, 19]] if restricted else None
    )
    score, index = rank_topk(
        image, text, text_rank, 3.0, 0.7, geometry=geometry, space=space, k=k, ranks=4, backend=backend,
        candidates=csr(lists) if restricted else None,
    )  # fmt: skip
    logits = plain_logits(image, text, 3.0, 0.7, geometry, space)
    expected_score, expected_index = plain_topk(logits, text_rank.tolist(), 4, k, lists)
    assert (expected_index >= 0).any()
    assert torch.equal(index, expected_index)
    torch.testing.assert_close(score.double(), expected_score, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tile", [1, 2, 5, 64])
@pytest.mark.parametrize("k", [1, 4])
def test_tiles_may_cut_anywhere(tile, k):
    image, text, text_rank = features(6, 31)
    one = torch.tensor(1.0)
    score, index = panel.rank_topk(image, text, text_rank, one, one, "lorentz", "tangent", k, 3, None, tile)
    logits = plain_logits(image, text, 1.0, 1.0, "lorentz", "tangent")
    expected_score, expected_index = plain_topk(logits, text_rank.tolist(), 3, k)
    assert torch.equal(index, expected_index)
    torch.testing.assert_close(score.double(), expected_score, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pairs", [1, 3, 1000])
def test_lists_may_be_cut_anywhere(monkeypatch, pairs):
    image, text, text_rank = features(4, 9)
    lists = [[8, 1, 2], [], [0, 3, 4, 5, 6, 7], [2, 6]]
    whole = rank_topk(image, text, text_rank, k=2, candidates=csr(lists))
    monkeypatch.setattr(panel._topk_of_lists, "__defaults__", (pairs,))
    cut = rank_topk(image, text, text_rank, k=2, candidates=csr(lists))
    assert torch.equal(cut[1], whole[1])
    torch.testing.assert_close(cut[0], whole[0])


@each_backend
@pytest.mark.parametrize("k", [1, 2, 6])
@pytest.mark.parametrize("restricted", [False, True])
@pytest.mark.parametrize("tile", [2, 1024])
def test_equal_scores_keep_the_smaller_index_first(monkeypatch, backend, k, restricted, tile):
    """Whole numbers: the products are exact, so equal texts score equal wherever they lie."""
    text = torch.tensor([[1.0, 2], [2, 1], [1, 2], [2, 1], [0, 0], [1, 2]])
    image = torch.tensor([[1.0, 1], [2, 1], [-1, 0]])
    text_rank = torch.tensor([0, 0, 0, 0, 0, 1])
    lists = [[5, 4, 3, 2, 1, 0], [2, 0, 3], [4, 2, 0]] if restricted else None
    monkeypatch.setattr(panel.rank_topk, "__defaults__", (tile,))
    _, index = rank_topk(
        image, text, text_rank, geometry="euclidean", space="unit", k=k, backend=backend,
        candidates=csr(lists) if restricted else None,
    )  # fmt: skip
    assert torch.equal(index, plain_topk(image @ text.T, text_rank.tolist(), 2, k, lists)[1])


@each_backend
@pytest.mark.parametrize(("M", "N"), [(0, 4), (4, 0), (1, 1), (63, 257)])
def test_awkward_shapes(backend, M, N):
    image, text, text_rank = features(M, N)
    score, index = rank_topk(image, text, text_rank, ranks=3, k=2, backend=backend)
    assert score.shape == index.shape == (M, 3, 2)
    assert torch.equal(index, plain_topk(plain_logits(image, text, 1, 1, *SPACES[0]), text_rank.tolist(), 3, 2)[1])


def test_ranks_default_to_those_of_the_texts_and_there_is_no_gradient():
    image, text, _ = features(2, 3)
    score, _ = rank_topk(image.requires_grad_(), text, torch.tensor([0, 4, 1]))
    assert score.shape == (2, 5, 1)
    assert not score.requires_grad
    assert score[:, 2:4].tolist() == [[[-math.inf]] * 2] * 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text_rank": torch.tensor([0, 2])}, r"text_rank must be \(3,\), got \(2,\)"),
        ({"text_rank": torch.tensor([0, 2, 7])}, r"text_rank must be in \[0, 3\), got 0 to 7"),
        ({"text_rank": torch.tensor([0, -1, 2])}, r"text_rank must be in \[0, 3\), got -1 to 2"),
        ({"k": 0}, "k must be at least 1, got 0"),
        ({"geometry": "poincare"}, "geometry must be one of"),
        ({"space": "unit"}, "space of geometry 'lorentz' must be one of"),
        ({"backend": "tile"}, "backend must be None or one of .*'tile'"),
        ({"text": torch.zeros(3, 4)}, "image and text must share D"),
        ({"candidates": (torch.tensor([0, 1]), torch.tensor([0]))}, r"\(indptr \(3,\), indices\)"),
        ({"candidates": (torch.tensor([0, 2, 1]), torch.tensor([0]))}, "indptr must rise from 0 to 1"),
        ({"candidates": (torch.tensor([0, 1, 2]), torch.tensor([0, 3]))}, r"indices must be in \[0, 3\), got .*3"),
        (
            {"candidates": (torch.tensor([0, 1, 2]), torch.tensor([0, -1]))},
            r"indices must be in \[0, 3\), got .*-1",
        ),
    ],
)
def test_errors(change, message):
    arguments = {
        "image": torch.ones(2, 5),
        "text": torch.ones(3, 5),
        "text_rank": torch.tensor([0, 1, 2]),
        "ranks": 3,
    }
    with pytest.raises(ValueError, match=message):
        rank_topk(**arguments | change)
