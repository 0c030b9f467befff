"""level_infonce against loops over numbers, its gradients, its laws, and the places where floats are weak.

# M images, N texts, D embed, R ranks
"""

import math
from types import SimpleNamespace

import pytest
import torch

from bioclip_hc import kernels
from bioclip_hc.kernels import cpu, panel
from bioclip_hc.kernels.backends import BACKENDS
from bioclip_hc.kernels.objective import make_objective

SPACES = [("lorentz", "tangent"), ("lorentz", "hyperboloid"), ("euclidean", "tangent"), ("euclidean", "unit")]
TARGETS = ["multi_positive", "diagonal", "mask_out"]
SHAPES = [(63, 257), (257, 63), (1, 1), (1, 5), (5, 1), (0, 4), (4, 0)]

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # of the Triton kernels; on a CPU they are interpreted

FP32_BACKENDS = ("cpu", "triton")

needs_library = pytest.mark.skipif(cpu.why_not() is not None, reason=str(cpu.why_not()))
each_backend = pytest.mark.parametrize(
    "backend", [pytest.param(b, marks=needs_library) if b == "cpu" else b for b in BACKENDS]
)
each_float64_backend = pytest.mark.parametrize("backend", ["reference", "tiled"])
each_space = pytest.mark.parametrize(("geometry", "space"), SPACES)
each_target = pytest.mark.parametrize("targets", TARGETS)
each_restriction = pytest.mark.parametrize("restrict", [True, False])


def level_infonce(*arguments, backend=None, **options):
    """The operation; for triton on its device, and in fp32 where that is all that a backend does."""
    if backend not in FP32_BACKENDS:
        return kernels.level_infonce(*arguments, backend=backend, **options)
    device = DEVICE if backend == "triton" else "cpu"

    def move(x):
        if not isinstance(x, torch.Tensor):
            return x
        return x.to(device, torch.float32 if x.dtype == torch.float64 else None)

    options = {name: move(x) for name, x in options.items()}
    return tuple(x.cpu() for x in kernels.level_infonce(*map(move, arguments), backend=backend, **options))


def close(got, expected, **tolerance):
    """assert_close, with what fp32 can give where float64 was expected of an fp32 backend."""
    if got.dtype == torch.float32 and expected.dtype == torch.float64:
        tolerance = {"rtol": 2e-5, "atol": 2e-5} | tolerance
    torch.testing.assert_close(got, expected.to(got.dtype), **tolerance)


# -- the contract, number by number


def plain_logit(v, w, scale, c, geometry, space):
    """The similarity of two lists of numbers, from the textbook."""
    dot = sum(a * b for a, b in zip(v, w, strict=True))
    norms = math.hypot(*v), math.hypot(*w)
    if geometry == "euclidean":
        return scale * dot / (norms[0] * norms[1] if space == "tangent" else 1)
    if space == "tangent":  # exp_0(v) = sinh(sqrt(c)|v|) v / (sqrt(c)|v|)
        stretch = [math.sinh(math.sqrt(c) * n) / (math.sqrt(c) * n) for n in norms]
    else:
        stretch = [1.0, 1.0]
    times = [math.sqrt(1 / c + (k * n) ** 2) for k, n in zip(stretch, norms, strict=True)]
    inner = stretch[0] * stretch[1] * dot - times[0] * times[1]
    return -scale * math.acosh(-c * inner) / math.sqrt(c)


def logsumexp(values):
    top = max(values)
    return top + math.log(sum(math.exp(v - top) for v in values))


def plain_level_infonce(p, scale, c, geometry, space, targets, restrict, bias):
    """The contract in loops: (nll_image as M lists of R, nll_text as a list of N)."""
    taxa, rank, taxon, pair = (ids.tolist() for ids in (p.taxa, p.rank, p.taxon, p.pair))
    M, N, R = len(taxa), len(rank), len(taxa[0])
    l = [[plain_logit(v, w, scale, c, geometry, space) for w in p.text.tolist()] for v in p.image.double().tolist()]
    b = [0.0] * N if bias is None else bias.tolist()

    def positive(i, j):
        return taxa[i][rank[j]] == taxon[j] if targets == "multi_positive" else pair[i] == j

    def left_out(i, j):
        return targets == "mask_out" and taxa[i][rank[j]] == taxon[j] and pair[i] != j

    nll_image = [[0.0] * R for _ in range(M)]
    for i in range(M):
        for r in range(R):
            positives = [j for j in range(N) if rank[j] == r and positive(i, j)]
            if positives:
                pool = [j for j in range(N) if rank[j] == r or not restrict]
                pool = [j for j in pool if not (rank[j] == r and left_out(i, j))]
                mean = sum(l[i][j] for j in positives) / len(positives)
                nll_image[i][r] = logsumexp([l[i][j] + b[j] for j in pool]) - mean
    nll_text = [0.0] * N
    for j in range(N):
        positives = [i for i in range(M) if positive(i, j)]
        if positives:
            pool = [i for i in range(M) if (taxa[i][rank[j]] >= 0 if restrict else max(taxa[i]) >= 0)]
            pool = [i for i in pool if not left_out(i, j)]
            mean = sum(l[i][j] for i in positives) / len(positives)
            nll_text[j] = logsumexp([l[i][j] for i in pool]) - mean
    return nll_image, nll_text


def problem(M=11, N=14, D=4, R=3, taxa_per_rank=3, seed=0, dtype=torch.float64):
    """Random features and labels: repeated and missing taxa, images without a text, texts without an image.

    The last image knows no rank; rank 1 of 3 has no text that an image could own.
    """
    g = torch.Generator().manual_seed(seed)
    rank = torch.randint(0, R, (N,), generator=g)
    taxon = torch.randint(0, taxa_per_rank, (N,), generator=g) + 10 * rank
    taxa = torch.randint(0, taxa_per_rank, (M, R), generator=g) + 10 * torch.arange(R)
    taxa[torch.rand(M, R, generator=g) < 0.3] = -1
    pair = torch.randint(-1, N, (M,), generator=g)
    if M:
        taxa[-1], pair[-1] = -1, -1
    owners = (pair >= 0).nonzero().flatten()
    taxa[owners, rank[pair[owners]]] = taxon[pair[owners]]
    return SimpleNamespace(
        image=torch.randn(M, D, generator=g, dtype=dtype),
        text=torch.randn(N, D, generator=g, dtype=dtype),
        taxa=taxa,
        rank=rank,
        taxon=taxon,
        pair=pair,
        bias=torch.rand(N, generator=g, dtype=dtype) * 2,
    )


def call(p, scale=3.0, curv=0.7, *, bias=None, **options):
    if options.get("targets", "multi_positive") != "multi_positive":
        options["pair"] = p.pair
    return level_infonce(p.image, p.text, p.taxa, p.rank, p.taxon, scale, curv, text_bias=bias, **options)


@each_backend
@each_space
@each_target
@each_restriction
@pytest.mark.parametrize("biased", [False, True])
def test_values_are_the_contract(backend, geometry, space, targets, restrict, biased):
    p = problem()
    bias = p.bias if biased else None
    options = {"geometry": geometry, "space": space, "targets": targets, "restrict": restrict}
    nll_image, nll_text = call(p, bias=bias, backend=backend, **options)
    expected = plain_level_infonce(p, 3.0, 0.7, bias=bias, **options)
    assert nll_image.count_nonzero() > 6
    assert nll_text.count_nonzero() > 4
    close(nll_image, torch.tensor(expected[0], dtype=torch.float64))
    close(nll_text, torch.tensor(expected[1], dtype=torch.float64))


@each_float64_backend
@each_space
@each_target
@each_restriction
def test_gradients_are_those_of_the_values(backend, geometry, space, targets, restrict):
    p = problem(M=4, N=5, D=2, R=2, taxa_per_rank=2, seed=3)
    g = torch.Generator().manual_seed(1)
    weight_image, weight_text = (torch.randn(shape, generator=g, dtype=torch.float64) for shape in ((4, 2), (5,)))

    def weighted(image, text, scale, curv):
        p.image, p.text = image, text
        nll_image, nll_text = call(
            p, scale, curv, bias=p.bias, backend=backend, geometry=geometry, space=space, targets=targets,
            restrict=restrict,
        )  # fmt: skip
        return (weight_image * nll_image).sum() + (weight_text * nll_text).sum()

    scalars = [torch.tensor([value], dtype=torch.float64) for value in (2.0, 0.6)]
    inputs = [x.requires_grad_() for x in (p.image, p.text, *scalars)]
    assert torch.autograd.gradcheck(weighted, inputs)


# -- the tiled backend: everything can be cut, nothing depends on where


def forward_backward(p, backend, dtype=None, scale=3.0, curv=0.7, tile=None, **options):
    """Both nll and the gradients of a fixed random weighting of them for image, text, scale, curv."""
    dtype = dtype or p.image.dtype
    image, text = (x.detach().to(dtype).requires_grad_() for x in (p.image, p.text))
    scale, curv = (torch.tensor([float(x)], dtype=torch.float64, requires_grad=True) for x in (scale, curv))
    q = SimpleNamespace(**vars(p) | {"image": image, "text": text})
    g = torch.Generator().manual_seed(2)
    weights = [torch.rand(shape, generator=g, dtype=torch.float64) for shape in (p.taxa.shape, p.rank.shape)]
    if tile is None:
        nll = call(q, scale, curv, backend=backend, **options)
        loss = sum((w * x.double()).sum() for w, x in zip(weights, nll, strict=True))
        return (*nll, *torch.autograd.grad(loss, [image, text, scale, curv], materialize_grads=True))
    pair = None if options["targets"] == "multi_positive" else p.pair
    objective = make_objective(
        image, text, p.taxa, p.rank, p.taxon, pair=pair, text_bias=options.pop("bias", None), **options
    )
    numbers = image.detach(), text.detach(), scale.detach()[0].to(dtype), curv.detach()[0].to(dtype), objective
    *nll, row_lse, col_lse = panel.forward(*numbers, tile=tile)
    gradients = *(w.to(dtype) for w in weights), torch.zeros_like(col_lse)
    gradients = panel.backward(*numbers, row_lse, col_lse, *gradients, tile=tile)
    return (*nll, *(x.reshape(y.shape) for x, y in zip(gradients, (image, text, scale, curv), strict=True)))


@each_space
@each_target
@each_restriction
@pytest.mark.parametrize("tile", [1, 2, 3, 7])
def test_tiles_may_cut_anywhere(geometry, space, targets, restrict, tile):
    p = problem()
    options = {"geometry": geometry, "space": space, "targets": targets, "restrict": restrict, "bias": p.bias}
    whole = forward_backward(p, "reference", **options)
    cut = forward_backward(p, "tiled", tile=tile, **options)
    for expected, got in zip(whole, cut, strict=True):
        close(got, expected)


@each_space
@pytest.mark.parametrize(("M", "N"), SHAPES)
def test_awkward_shapes(geometry, space, M, N):
    p = problem(M=M, N=N, taxa_per_rank=40)
    dense, tiled = (forward_backward(p, b, geometry=geometry, space=space) for b in ("reference", "tiled"))
    assert dense[0].shape == (M, 3)
    assert dense[1].shape == (N,)
    for expected, got in zip(dense, tiled, strict=True):
        assert got.isfinite().all()
        close(got, expected)


@each_backend
@each_restriction
def test_an_image_without_ranks_and_texts_without_images_are_zero_and_get_no_gradient(backend, restrict):
    p = problem(taxa_per_rank=2)
    p.text = torch.cat([p.text, p.text[:1]])
    p.rank, p.taxon = torch.cat([p.rank, torch.tensor([2])]), torch.cat([p.taxon, torch.tensor([999])])
    nll_image, nll_text, image, text, *_ = forward_backward(p, backend, restrict=restrict)
    assert nll_image[-1].tolist() == [0, 0, 0]
    assert nll_text[-1] == 0
    assert image[-1].tolist() == [0] * 4
    assert text[-1].abs().sum() > 0  # but it stays a negative of its rank


@each_backend
def test_a_rank_with_one_text_and_one_image_costs_nothing(backend):
    p = problem(M=2, N=2, R=2)
    p.taxa, p.rank, p.taxon = torch.tensor([[5, -1], [-1, 6]]), torch.tensor([0, 1]), torch.tensor([5, 6])
    nll_image, nll_text = call(p, backend=backend)
    assert nll_image.abs().max() < 1e-6
    assert nll_text.abs().max() < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@each_space
@each_target
def test_it_is_bitwise_repeatable(geometry, space, targets, dtype):
    p = problem(M=63, N=100, D=32, dtype=dtype)
    options = {"geometry": geometry, "space": space, "targets": targets, "bias": p.bias}
    once, again = (forward_backward(p, "tiled", **options) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(once, again, strict=True))


# -- laws


@each_backend
@each_space
@each_target
@each_restriction
def test_permuting_samples_permutes_rows(backend, geometry, space, targets, restrict):
    p = problem()
    g = torch.Generator().manual_seed(5)
    rows, cols = torch.randperm(11, generator=g), torch.randperm(14, generator=g)
    place = cols.argsort()
    q = SimpleNamespace(
        image=p.image[rows], text=p.text[cols], taxa=p.taxa[rows], rank=p.rank[cols], taxon=p.taxon[cols],
        pair=torch.where(p.pair >= 0, place[p.pair.clamp_min(0)], -1)[rows],
    )  # fmt: skip
    options = {"backend": backend, "geometry": geometry, "space": space, "targets": targets, "restrict": restrict}
    nll_image, nll_text = call(p, bias=p.bias, **options)
    permuted_image, permuted_text = call(q, bias=p.bias[cols], **options)
    close(permuted_image, nll_image[rows])
    close(permuted_text, nll_text[cols])


@each_backend
@each_space
def test_a_repeated_text_is_one_text_with_the_log_of_its_count(backend, geometry, space):
    """diagonal: three copies of text 0 and two of text 1 equal two texts biased by log 3 and log 2."""
    g = torch.Generator().manual_seed(0)
    image, text = (torch.randn(n, 4, generator=g, dtype=torch.float64) for n in (6, 3))
    copies = torch.tensor([0, 0, 0, 1, 1, 2])
    count = torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64)
    one_rank = {"backend": backend, "geometry": geometry, "space": space, "targets": "diagonal"}
    each_image, each_text = level_infonce(
        image, text[copies], copies[:, None], torch.zeros(6), copies, 4.0, pair=torch.arange(6), **one_rank
    )
    merged_image, merged_text = level_infonce(
        image, text, copies[:, None], torch.zeros(3), torch.arange(3), 4.0, pair=copies, text_bias=count.log(),
        **one_rank,
    )  # fmt: skip
    close(merged_image, each_image)
    close(
        merged_text * count.to(merged_text.dtype), torch.zeros(3).double().index_add(0, copies, each_text.double())
    )


@each_backend
@each_space
@each_target
def test_ranks_are_independent(backend, geometry, space, targets):
    p = problem()
    options = {"backend": backend, "geometry": geometry, "space": space, "targets": targets}
    nll_image, nll_text = call(p, **options)
    for r in range(3):
        here = p.rank == r
        place = here.cumsum(0) - 1
        own = (p.pair >= 0) & (p.rank[p.pair.clamp_min(0)] == r)
        q = SimpleNamespace(
            image=p.image, text=p.text[here], taxa=p.taxa[:, r, None], rank=p.rank[here] - r, taxon=p.taxon[here],
            pair=torch.where(own, place[p.pair.clamp_min(0)], -1),
        )  # fmt: skip
        alone_image, alone_text = call(q, **options)
        close(alone_image[:, 0], nll_image[:, r])
        close(alone_text, nll_text[here])


@each_backend
def test_one_euclidean_rank_is_clips_loss(backend):
    ClipLoss = pytest.importorskip("open_clip.loss").ClipLoss
    g = torch.Generator().manual_seed(0)
    image, text = (
        torch.nn.functional.normalize(torch.randn(9, 5, generator=g, dtype=torch.float64), dim=1) for _ in range(2)
    )
    inputs = [x.requires_grad_() for x in (image, text, torch.tensor(20.0, dtype=torch.float64))]
    ids = torch.arange(9)
    nll_image, nll_text = level_infonce(
        image, text, ids[:, None], torch.zeros(9), ids, inputs[2], geometry="euclidean", space="unit",
        targets="diagonal", pair=ids, backend=backend,
    )  # fmt: skip
    ours, theirs = (nll_image.mean() + nll_text.mean()) / 2, ClipLoss()(*inputs)
    fp32 = {"rtol": 2e-5, "atol": 2e-5} if backend in FP32_BACKENDS else {}
    close(ours, theirs, **fp32)
    for got, expected in zip(torch.autograd.grad(ours, inputs), torch.autograd.grad(theirs, inputs), strict=True):
        close(got, expected, **fp32)


@each_backend
def test_one_hyperboloid_rank_is_merus_contrastive_term(backend):
    """MERU, equation 6: cross-entropies of -scale d_L, d_L = acosh(-c <x, y>_L) / sqrt(c)."""
    g = torch.Generator().manual_seed(0)
    x, y = (torch.randn(7, 5, generator=g, dtype=torch.float64) for _ in range(2))
    c = torch.tensor([0.8], dtype=torch.float64)
    scale = torch.tensor(5.0, dtype=torch.float64)
    inputs = [v.requires_grad_() for v in (x, y, scale, c)]
    x_time, y_time = (torch.sqrt(1 / c + (v**2).sum(1)) for v in (x, y))
    similarity = -scale * torch.acosh(-c * (x @ y.T - torch.outer(x_time, y_time))) / c.sqrt()
    ids = torch.arange(7)
    theirs = [torch.nn.functional.cross_entropy(s, ids) for s in (similarity, similarity.T)]
    ours = level_infonce(x, y, ids[:, None], torch.zeros(7), ids, scale, c, space="hyperboloid", backend=backend)
    ours, theirs = sum(nll.mean() for nll in ours), sum(theirs)
    fp32 = {"rtol": 2e-5, "atol": 2e-5} if backend in FP32_BACKENDS else {}
    close(ours, theirs, **fp32)
    for got, expected in zip(torch.autograd.grad(ours, inputs), torch.autograd.grad(theirs, inputs), strict=True):
        close(got, expected, **fp32)


@each_backend
@pytest.mark.parametrize("space", ["tangent", "hyperboloid"])
def test_without_curvature_the_distance_is_euclids(backend, space):
    """As c falls to 0 the space is flat, exp_0 is the identity, and l_ij = -scale |v_i - w_j|; the rest is O(c)."""
    p = problem()
    flat = torch.cdist(p.image, p.text) * -3.0
    ids = torch.arange(14)
    expected = torch.logsumexp(flat, 1) - flat[:, 4]
    taxa = torch.full((11, 1), 4)
    nll = [
        level_infonce(p.image, p.text, taxa, ids * 0, ids, 3.0, c, space=space, backend=backend)[0][:, 0]
        for c in (1e-4, 1e-6)
    ]
    errors = [float((x - expected).abs().max()) for x in nll]
    assert errors[0] < 5e-3
    if backend in FP32_BACKENDS:  # which see no further
        assert errors[1] < 1e-3
    else:
        assert errors[1] == pytest.approx(errors[0] / 100, rel=0.05)


# -- numbers that floats handle badly


@each_backend
@each_target
def test_logits_hundreds_of_nats_apart(backend, targets):
    """Rows and columns far below their tile's largest logit keep their own sums; one shift for all loses them."""
    rows, cols = torch.tensor([0.0, -300.0, -900.0, 40.0]), torch.tensor([0.0, -250.0, -700.0, 30.0])
    l = rows[:, None] + cols + torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    ids = torch.arange(4)
    l = l.requires_grad_()  # unit vectors e_j as texts: the images' coordinates are the logits
    nll_image, nll_text = level_infonce(
        l, torch.eye(4), ids[:, None], torch.zeros(4), ids, 1.0, geometry="euclidean", space="unit",
        targets=targets, pair=ids, backend=backend,
    )  # fmt: skip
    exact = l.detach().double()
    close(nll_image[:, 0], (exact.logsumexp(1) - exact.diagonal()).float())
    close(nll_text, (exact.logsumexp(0) - exact.diagonal()).float())
    (got,) = torch.autograd.grad(nll_image.sum() + nll_text.sum(), l)
    close(got, (exact.softmax(1) + exact.softmax(0) - 2 * torch.eye(4)).float())


def extremes(geometry, space, dtype):
    """Vectors that are zero, ordinary, their twins, and as small and large as the space bears."""
    e, f = torch.eye(5, dtype=dtype)[:2]
    v = 0.3 * e - 0.2 * f
    clamp = math.asinh(2**15)
    special = {
        ("lorentz", "tangent"): [1e-8 * e, 1e-30 * f, clamp * f, -clamp * f, -1e6 * e],
        ("lorentz", "hyperboloid"): [1e-8 * e, 1e-30 * f, 2.0**15 * f, -(2.0**15) * f, -10 * e],
        ("euclidean", "tangent"): [1e6 * e, -1e6 * e, 1e-3 * f],  # its gradient is 1/|v| by right
        ("euclidean", "unit"): [1e-30 * e, 30 * e, -30 * e],
    }[geometry, space]
    return torch.stack([0 * e, v, v, *special])


@each_backend
@each_space
@each_target
@each_restriction
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_never_nan_or_infinite(backend, geometry, space, targets, restrict, dtype):
    vectors = extremes(geometry, space, dtype)
    n = len(vectors)
    p = SimpleNamespace(
        image=vectors, text=vectors.flip(0), taxa=torch.stack([torch.arange(n) // 2, torch.arange(n) % 2 + 10], 1),
        rank=torch.tensor([0, 1] * n)[:n], taxon=torch.tensor([0, 10] * n)[:n],
    )  # fmt: skip
    p.taxa[:, 0], p.taxa[3:, 1] = 0, -1
    p.pair = torch.zeros(n, dtype=torch.int64)
    options = {"geometry": geometry, "space": space, "targets": targets, "restrict": restrict}
    for name, x in zip(
        ("nll_image", "nll_text", "image", "text", "scale", "curv"),
        forward_backward(p, backend, scale=100.0, curv=1.0, **options),
        strict=True,
    ):
        assert x.isfinite().all(), name
        assert x.abs().max() < 1e9, name  # nor any 1/tiny


@each_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_gradient_at_the_origin_is_the_limit(backend, dtype):
    """At v = 0 the direction is undefined, the gradient is not: dl/dv = scale n_j, for d(0, w) = |w|."""
    g = torch.Generator().manual_seed(0)
    text = torch.randn(4, 5, generator=g, dtype=dtype)
    image = torch.zeros(1, 5, dtype=dtype, requires_grad=True)
    ids = torch.arange(4)
    nll, _ = level_infonce(image, text, torch.tensor([[2]]), ids * 0, ids, 3.0, 0.7, backend=backend)
    (got,) = torch.autograd.grad(nll.sum(), image)
    direction = torch.nn.functional.normalize(text.double(), dim=1)
    W = (-3.0 * text.double().norm(dim=1)).softmax(0) - torch.eye(4)[2]
    close(got[0].double(), 3.0 * W @ direction, rtol=1e-5, atol=1e-6)


@each_backend
def test_beyond_the_clamp_the_radius_neither_counts_nor_moves(backend):
    p = problem(dtype=torch.float32)
    far = torch.nn.functional.normalize(p.image, dim=1)
    results = []
    for radius in (40.0, 80.0):
        p.image = (far * radius).requires_grad_()
        nll_image, nll_text = call(p, curv=1.0, backend=backend)
        (gradient,) = torch.autograd.grad(nll_image.sum() + nll_text.sum(), p.image)
        results.append((nll_image, gradient))
        assert (gradient * far).sum(1).abs().max() < 1e-4 * gradient.norm()
    close(results[0][0], results[1][0])
    close(results[0][1], results[1][1] * 2)  # the angle turns half as fast


@pytest.mark.parametrize("backend", ["tiled", pytest.param("cpu", marks=needs_library)])
@pytest.mark.parametrize("radius", [0.1, 1.0])
@pytest.mark.parametrize("scale", [14.0, 100.0])
@each_space
def test_fp32_is_close_to_float64(backend, geometry, space, scale, radius):
    """For distances of at least 0.1 and radii of at most 1: nll within 2e-6 max(1, scale d_max), gradients 1e-5."""
    g = torch.Generator().manual_seed(0)
    p = problem(M=96, N=120, D=512, taxa_per_rank=20, dtype=torch.float32)
    p.image, p.text = (
        torch.nn.functional.normalize(torch.randn(n, 512, generator=g), dim=1) * radius for n in (96, 120)
    )
    options = {"geometry": geometry, "space": space, "scale": scale, "curv": 1.0}
    exact = forward_backward(p, "reference", dtype=torch.float64, **options)
    ours = forward_backward(p, backend, dtype=torch.float32, **options)
    d_max = max(
        abs(plain_logit(v, w, 1, 1, geometry, space)) for v in p.image.tolist()[:9] for w in p.text.tolist()
    )
    for got, expected in zip(ours[:2], exact[:2], strict=True):
        assert (got - expected).abs().max() <= 2e-6 * max(1, scale * d_max)
    for got, expected in zip(ours[2:4], exact[2:4], strict=True):
        assert (got - expected).norm() <= 1e-5 * expected.norm()
    size = float((exact[0].sum() + exact[1].sum()).detach())  # scalars' gradients are sums that nearly cancel
    assert abs(ours[4] - exact[4]) <= 1e-5 * abs(exact[4]) + 1e-6 * size / scale
    assert abs(ours[5] - exact[5]) <= 1e-5 * abs(exact[5]) + 1e-6 * size


@each_float64_backend
@each_space
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_inputs_are_computed_in_fp32(backend, geometry, space, dtype):
    p = problem(dtype=torch.float32)
    p.image, p.text = p.image.to(dtype), p.text.to(dtype)
    half = forward_backward(p, backend, geometry=geometry, space=space)
    full = forward_backward(p, backend, dtype=torch.float32, geometry=geometry, space=space)
    assert [x.dtype for x in half[:4]] == [torch.float32, torch.float32, dtype, dtype]
    for got, expected in zip(half, full, strict=True):
        close(got, expected.to(got.dtype))


@each_backend
def test_autocast_does_not_reach_the_values(backend):
    p = problem(dtype=torch.float32)
    expected = call(p, backend=backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = call(p, backend=backend)
    assert all(torch.equal(x, y) for x, y in zip(got, expected, strict=True))


def test_autocast_does_not_reach_the_gradients():
    """Nobody should call backward inside autocast, but many do."""
    p = problem(dtype=torch.float32)
    expected = forward_backward(p, "tiled")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = forward_backward(p, "tiled")
    assert all(torch.equal(x, y) for x, y in zip(got, expected, strict=True))


def test_scalars_of_any_shape_and_kind_are_accepted():
    p = problem()
    expected = call(p, 3.0, 0.7)
    for shape in ((), (1,)):
        got = call(p, torch.full(shape, 3.0, dtype=torch.float64), torch.full(shape, 0.7, dtype=torch.float64))
        assert all(torch.equal(x, y) for x, y in zip(got, expected, strict=True))


def test_double_backward_is_refused():
    p = problem()
    p.image.requires_grad_()
    nll, _ = call(p, backend="tiled")
    (gradient,) = torch.autograd.grad(nll.sum(), p.image, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiable once"):
        gradient.square().sum().backward()


# -- errors name the argument, the value and what it should be


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text_rank": torch.tensor([0, 9, 0])}, r"text_rank must be in \[0, 2\), got 9 at index 1"),
        ({"text_rank": torch.tensor([0, 0, -1])}, r"text_rank must be in \[0, 2\), got -1 at index 2"),
        ({"text_rank": torch.tensor([0, 0])}, r"text_rank must be \(3,\), got \(2,\)"),
        ({"text_taxon": torch.tensor([1, -1, 2])}, r"text_taxon must be in \[0, 2\*\*56\), got -1 at index 1"),
        ({"image_taxa": torch.zeros(4, 2)}, r"image_taxa must be \(2, R\), got \(4, 2\)"),
        ({"image": torch.zeros(2, 5)}, "image and text must share D, got 5 and 4"),
        ({"image": torch.zeros(2, 4, dtype=torch.int64)}, "image must be a float tensor"),
        ({"text": torch.zeros(3)}, r"text must be a float tensor \(rows, D\).*\(3,\)"),
        ({"text": torch.zeros(3, 4, dtype=torch.float64)}, "float64"),
        ({"geometry": "poincare"}, "geometry must be one of .*'poincare'"),
        ({"space": "unit"}, "space of geometry 'lorentz' must be one of .*'unit'"),
        ({"targets": "soft"}, "targets must be one of .*'soft'"),
        ({"backend": "cuda"}, "backend must be None or one of .*'cuda'"),
        ({"targets": "diagonal"}, "targets='diagonal' needs pair"),
        ({"targets": "mask_out", "pair": torch.tensor([0, 3])}, r"pair must be in \[-1, 3\), got 3 at index 1"),
        ({"targets": "diagonal", "pair": torch.tensor([0, 2])}, "image 1 is paired with text 2 .*rank 1, taxon 7"),
        ({"targets": "diagonal", "pair": torch.tensor([0])}, r"pair must be \(2,\), got \(1,\)"),
        ({"text_bias": torch.zeros(2)}, r"text_bias must be \(3,\), got \(2,\)"),
        ({"scale": torch.ones(2)}, r"scale must have one element, got shape \(2,\)"),
        ({"curv": 0.0}, r"curv must be positive, got 0.0"),
        ({"curv": math.nan}, r"curv must be positive, got nan"),
        ({"image_taxa": torch.zeros(2, 65)}, r"at most 64 ranks, got 65"),
        ({"curv": torch.ones(2)}, r"curv must have one element, got shape \(2,\)"),
    ],
)
def test_errors(change, message):
    arguments = {
        "image": torch.ones(2, 4), "text": torch.ones(3, 4), "image_taxa": torch.tensor([[5, 6], [5, -1]]),
        "text_rank": torch.tensor([0, 1, 1]), "text_taxon": torch.tensor([5, 6, 7]), "scale": 1.0,
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        level_infonce(**arguments | change)
