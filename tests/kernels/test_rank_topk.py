"""rank_topk against sorting all logits."""

import math

import pytest
import torch

from bioclip_hc.kernels import panel, rank_topk, topk
from bioclip_hc.kernels.backends import BACKENDS, why_not

SPACES = [("lorentz", "tangent"), ("lorentz", "hyperboloid"), ("euclidean", "tangent"), ("euclidean", "unit")]
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
needs_triton = pytest.mark.skipif(why_not("triton", DEVICE) is not None, reason="no GPU, and no TRITON_INTERPRET=1")
each_backend = pytest.mark.parametrize(
    "backend", [pytest.param(b, marks=needs_triton) if b == "triton" else b for b in BACKENDS]
)


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


def run(backend, image, text, text_rank, *scalars, candidates=None, **options):
    """rank_topk with that backend, on the device where it can run; its result on the CPU."""
    there = DEVICE if backend == "triton" else torch.device("cpu")
    if candidates is not None:
        candidates = tuple(x.to(there) for x in candidates)
    score, index = rank_topk(
        image.to(there), text.to(there), text_rank.to(there), *scalars,
        candidates=candidates, backend=backend, **options,
    )  # fmt: skip
    return score.cpu(), index.cpu()


@each_backend
@pytest.mark.parametrize(("geometry", "space"), SPACES)
@pytest.mark.parametrize("restricted", [False, True])
def test_it_is_what_sorting_gives(backend, geometry, space, restricted):
    image, text, text_rank = features(7, 23)
    lists = (
        [[], [4], [22, 0, 7], list(range(23)), [3, 2, 1], list(range(0, 23, 2)), [5, 19]] if restricted else None
    )
    score, index = run(
        backend, image, text, text_rank, 3.0, 0.7, geometry=geometry, space=space, k=3, ranks=4,
        candidates=csr(lists) if restricted else None,
    )  # fmt: skip
    logits = plain_logits(image, text, 3.0, 0.7, geometry, space)
    expected_score, expected_index = plain_topk(logits, text_rank.tolist(), 4, 3, lists)
    assert (expected_index >= 0).any()
    assert torch.equal(index, expected_index)
    torch.testing.assert_close(score.double(), expected_score, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tile", [1, 2, 5, 64])
@pytest.mark.parametrize("k", [1, 4])
def test_tiles_may_cut_anywhere(tile, k):
    image, text, text_rank = features(6, 31)
    one = torch.tensor(1.0)
    score, index = panel.rank_topk(image, text, text_rank, one, one, "lorentz", "tangent", k, 3, None, tile=tile)
    logits = plain_logits(image, text, 1.0, 1.0, "lorentz", "tangent")
    expected_score, expected_index = plain_topk(logits, text_rank.tolist(), 3, k)
    assert torch.equal(index, expected_index)
    torch.testing.assert_close(score.double(), expected_score, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pairs", [1, 3, 1000])
def test_lists_may_be_cut_anywhere(monkeypatch, pairs):
    image, text, text_rank = features(4, 9)
    lists = [[8, 1, 2], [], [0, 3, 4, 5, 6, 7], [2, 6]]
    whole = rank_topk(image, text, text_rank, k=2, candidates=csr(lists), backend="tiled")
    monkeypatch.setattr(panel.TORCH.keep_best_of_lists.__func__, "__defaults__", (pairs,))
    cut = rank_topk(image, text, text_rank, k=2, candidates=csr(lists), backend="tiled")
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
    monkeypatch.setattr(panel.rank_topk, "__defaults__", (panel.TORCH, tile))
    _, index = run(
        backend, image, text, text_rank, geometry="euclidean", space="unit", k=k,
        candidates=csr(lists) if restricted else None,
    )  # fmt: skip
    assert torch.equal(index, plain_topk(image @ text.T, text_rank.tolist(), 2, k, lists)[1])


@each_backend
@pytest.mark.parametrize(("M", "N"), [(0, 4), (4, 0), (1, 1), (63, 257)])
def test_awkward_shapes(backend, M, N):
    image, text, text_rank = features(M, N)
    score, index = run(backend, image, text, text_rank, ranks=3, k=2)
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
        ({"text_rank": torch.tensor([0, 2, 7])}, r"text_rank must be in \[0, 3\), got 7 at index 2"),
        ({"text_rank": torch.tensor([0, -1, 2])}, r"text_rank must be in \[0, 3\), got -1 at index 1"),
        ({"k": 0}, "k must be at least 1, got 0"),
        ({"geometry": "poincare"}, "geometry must be one of"),
        ({"space": "unit"}, "space of geometry 'lorentz' must be one of"),
        ({"backend": "tile"}, "backend must be None or one of .*'tile'"),
        ({"text": torch.zeros(3, 4)}, "image and text must share D"),
        ({"candidates": (torch.tensor([0, 1]), torch.tensor([0]))}, r"\(indptr \(3,\), indices\)"),
        ({"candidates": (torch.tensor([0, 2, 1]), torch.tensor([0]))}, "indptr must rise from 0 to 1"),
        ({"candidates": (torch.tensor([1, 1, 1]), torch.tensor([0]))}, "indptr must rise from 0 to 1"),
        ({"candidates": (torch.tensor([0, 0, 2]), torch.tensor([0]))}, "indptr must rise from 0 to 1"),
        ({"curv": -1.0}, "curv must be positive, got -1"),
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


# -- the GPU kernels


@pytest.fixture
def poison(monkeypatch):
    """Fresh memory is NaN and an index that no text has, so that a hole left by a kernel shows."""
    fresh = torch.Tensor.new_empty

    def poisoned(self, *args, **kwargs):
        out = fresh(self, *args, **kwargs)
        return out.fill_(math.nan) if out.is_floating_point() else out.fill_(-(10**6))

    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned)


DTYPES = [
    (torch.float32, torch.float32, 2e-5),
    (torch.float16, torch.float16, 5e-3),  # unit rows of ten bits of mantissa
    (torch.bfloat16, torch.bfloat16, 5e-3),  # in fp16 too, but for rows taken as they are, which are exact
    (torch.float16, torch.float32, 2e-5),
]


@needs_triton
@pytest.mark.parametrize(("geometry", "space"), [("lorentz", "tangent"), ("euclidean", "unit")])
@pytest.mark.parametrize(("dtype", "other", "tolerance"), DTYPES)
@pytest.mark.parametrize("restricted", [False, True])
def test_scores_of_any_dtype(poison, geometry, space, dtype, other, tolerance, restricted):
    """Rounding may swap near equals, so scores are compared place by place, and with the text they are said of."""
    g = torch.Generator().manual_seed(0)
    image, text = torch.randn(3, 70, generator=g).to(dtype) / 8, torch.randn(50, 70, generator=g).to(other) / 8
    text_rank = torch.randint(0, 3, (50,), generator=g)
    lists = [torch.randperm(50, generator=g)[:length].tolist() for length in (50, 0, 9)] if restricted else None
    score, index = run(
        "triton", image, text, text_rank, 2.0, 0.7, geometry=geometry, space=space, k=2, ranks=3,
        candidates=csr(lists) if restricted else None,
    )  # fmt: skip
    logits = plain_logits(image, text, 2.0, 0.7, geometry, space)
    expected, _ = plain_topk(logits, text_rank.tolist(), 3, 2, lists)
    torch.testing.assert_close(score.double(), expected, rtol=tolerance, atol=tolerance)
    found = index >= 0
    assert torch.equal(found, expected > -math.inf)
    said = logits.gather(1, index.clamp_min(0).flatten(1)).view_as(score)
    torch.testing.assert_close(score.double()[found], said[found], rtol=tolerance, atol=tolerance)
    assert (text_rank[index] == torch.arange(3)[:, None])[found].all()
    assert all(len(set(row)) == len(row) for row in (r[r >= 0].tolist() for r in index.flatten(0, 1)))
    if restricted:
        assert all(set(index[i].flatten().tolist()) <= {-1, *own} for i, own in enumerate(lists))


@needs_triton
@pytest.mark.parametrize(("share", "restricted"), [(1, False), (16, False), (16, True)])
@pytest.mark.parametrize("k", [1, 5])
def test_many_ties_over_many_tiles(monkeypatch, poison, share, k, restricted):
    """Whole numbers from -2 to 2: nearly every place is tied, and what is displaced is tied as well."""
    from bioclip_hc.kernels import triton_topk

    monkeypatch.setattr(triton_topk, "SHARE", share)
    g = torch.Generator().manual_seed(0)
    image, text = (torch.randint(-1, 2, (rows, 2), generator=g).float() for rows in (4, 150))
    text_rank = torch.randint(0, 2, (150,), generator=g)
    lists = [torch.randperm(150, generator=g)[: 35 * i].tolist() for i in range(4)] if restricted else None
    score, index = run(
        "triton", image, text, text_rank, geometry="euclidean", space="unit", k=k,
        candidates=csr(lists) if restricted else None,
    )  # fmt: skip
    expected, expected_index = plain_topk(image @ text.T, text_rank.tolist(), 2, k, lists)
    assert torch.equal(index, expected_index)
    assert torch.equal(score.double(), expected)


@each_backend
@pytest.mark.parametrize("restricted", [False, True])
def test_of_equally_bad_texts_the_last_is_displaced(backend, restricted):
    text = torch.zeros(100, 1)
    text[70], text[90] = 1, 2  # in tiles of their own, when eight zeros are held
    _, index = run(
        backend, torch.ones(1, 1), text, torch.zeros(100, dtype=int), k=8, geometry="euclidean", space="unit",
        candidates=csr([range(100)]) if restricted else None,
    )  # fmt: skip
    assert index.flatten().tolist() == [90, 70, 0, 1, 2, 3, 4, 5]


@each_backend
@pytest.mark.parametrize("restricted", [False, True])
def test_k_may_be_more_than_there_are_texts(backend, restricted):
    image, text, text_rank = features(3, 23)
    lists = [[], [22, 0, 7], list(range(23))] if restricted else None
    _, index = run(backend, image, text, text_rank, k=200, candidates=csr(lists) if restricted else None)
    logits = plain_logits(image, text, 1.0, 1.0, *SPACES[0])
    assert torch.equal(index, plain_topk(logits, text_rank.tolist(), 3, 200, lists)[1])


@each_backend
def test_a_negative_scale_finds_the_farthest(backend):
    image, text, text_rank = features(3, 23)
    score, index = run(backend, image, text, text_rank, -2.0, k=2)
    expected, expected_index = plain_topk(
        plain_logits(image, text, -2.0, 1.0, *SPACES[0]), text_rank.tolist(), 3, 2
    )
    assert torch.equal(index, expected_index)
    torch.testing.assert_close(score.double(), expected, rtol=1e-5, atol=1e-5)


@needs_triton
def test_a_k_beyond_the_registers_is_refused_or_left_to_tiles():
    image, text, text_rank = (x.to(DEVICE) for x in features(2, 129, ranks=1))
    with pytest.raises(ValueError, match="at most 128 texts a rank, got k=129; take 'tiled'"):
        rank_topk(image, text, text_rank, k=129, backend="triton")
    assert torch.equal(rank_topk(image, text, text_rank, k=129)[1].sort().values[0, 0].cpu(), torch.arange(129))


def call(backend, restricted):
    """Arguments of the operator."""
    there = DEVICE if backend == "triton" else torch.device("cpu")
    image, text, text_rank = (x.to(there) for x in features(4, 9))
    lists = [x.to(there) for x in csr([[8, 1, 2], [], [0, 3], [2, 6]])] if restricted else [None, None]
    one = torch.ones((), device=there)
    return image, text, text_rank, one, one, *lists, "lorentz", "tangent", 2, 3, backend


@each_backend
@pytest.mark.parametrize("restricted", [False, True])
def test_opcheck(backend, restricted):
    torch.library.opcheck(topk._rank_topk, call(backend, restricted))


@each_backend
@pytest.mark.parametrize("restricted", [False, True])
def test_compile_sees_one_graph(backend, restricted):
    image, text, text_rank, *_, indptr, indices = call(backend, restricted)[:7]

    def find(image, text):
        lists = (indptr, indices) if restricted else None
        return rank_topk(image, text, text_rank, k=2, ranks=3, candidates=lists, backend=backend)

    torch.compiler.reset()
    compiled = torch.compile(find, fullgraph=True, backend="aot_eager")
    for got, want in zip(compiled(image, text), find(image, text), strict=True):
        assert torch.equal(got, want)


@each_backend
def test_autocast_changes_nothing(backend):
    image, text, text_rank, *_ = call(backend, False)
    plain = run(backend, image, text, text_rank, k=2)
    with torch.autocast(image.device.type, dtype=torch.bfloat16):
        cast = run(backend, image, text, text_rank, k=2)
    assert all(torch.equal(x, y) for x, y in zip(plain, cast, strict=True))
