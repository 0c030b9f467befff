"""level_infonce_part: a batch cut into parts and merged is the batch, on every backend, gradients included.

# M images, N texts, D embed, R ranks
"""

import itertools

import pytest
import torch
from test_level_infonce import (
    DEVICE,
    FP32_BACKENDS,
    SPACES,
    close,
    each_backend,
    each_float64_backend,
    each_restriction,
    each_target,
    needs_library,
    problem,
)

from bioclip_hc.kernels import level_infonce, level_infonce_part


def labels_of(p, rows, targets):
    """What follows the features, of some images; options."""
    options = {"targets": targets, "text_bias": p.bias}
    if targets != "multi_positive":
        options["pair"] = p.pair[rows]
    return (p.taxa[rows], p.rank, p.taxon), options


def positives(p, rows, targets):
    """(N,) how many of some images each text is positive for."""
    if targets != "multi_positive":
        return (p.pair[rows, None] == torch.arange(len(p.rank))).sum(0)
    return torch.stack([(p.taxa[rows, r] == t).sum() for r, t in zip(p.rank, p.taxon, strict=True)])


def merged(parts, counts):
    """The texts' nll of the whole batch, as the docstring has it."""
    lse = torch.stack([text_lse for _, _, text_lse in parts]).logsumexp(0)
    total = sum(counts)
    rows = (
        torch.where(count > 0, count / total.clamp_min(1) * (nll_text + lse - text_lse), 0)
        for (_, nll_text, text_lse), count in zip(parts, counts, strict=True)
    )
    return torch.cat([nll_image for nll_image, _, _ in parts]), sum(rows)


def differentiated(nll, inputs):
    """Both nll and the gradients of a fixed random weighting of them, on the CPU."""
    g = torch.Generator().manual_seed(1)
    loss = sum((torch.rand(x.shape, generator=g, dtype=torch.float64).to(x) * x).sum() for x in nll)
    return [x.cpu() for x in (*nll, *torch.autograd.grad(loss, inputs, materialize_grads=True))]


def cut_and_merged(p, cuts, backend, targets, **options):
    """nll and gradients by parts, in what the backend takes."""
    dtype = torch.float32 if backend in FP32_BACKENDS else torch.float64
    device = DEVICE if backend == "triton" else "cpu"

    def move(x):
        return x.to(device, dtype if x.is_floating_point() else None)

    scalars = torch.tensor([3.0, 0.7]).unbind()
    image, text, scale, curv = inputs = [move(x).clone().requires_grad_() for x in (p.image, p.text, *scalars)]
    parts, counts = [], []
    for start, stop in itertools.pairwise(cuts):
        rows = slice(start, stop)
        labels, more = labels_of(p, rows, targets)
        more = {name: x if isinstance(x, str) else move(x) for name, x in more.items()}
        numbers = image[rows], text, *map(move, labels), scale, curv
        parts.append(level_infonce_part(*numbers, backend=backend, **options, **more))
        counts.append(move(positives(p, rows, targets)))
    return differentiated(merged(parts, counts), inputs)


def uncut(p, targets, **options):
    """The same of the whole batch, in float64."""
    scalars = torch.tensor([3.0, 0.7], dtype=torch.float32).double().unbind()
    image, text, scale, curv = inputs = [x.clone().requires_grad_() for x in (p.image, p.text, *scalars)]
    labels, more = labels_of(p, slice(None), targets)
    nll = level_infonce(image, text, *labels, scale, curv, backend="reference", **options, **more)
    return differentiated(nll, inputs)


# one space in the interpreter: what the others do differently, parts do not meet
COMBINATIONS = [
    pytest.param(backend, *space, marks=needs_library if backend == "cpu" else ())
    for backend in ("reference", "tiled", "cpu", "triton")
    for space in (SPACES if backend != "triton" else SPACES[:1])
]


@pytest.mark.parametrize(("backend", "geometry", "space"), COMBINATIONS)
@each_target
@each_restriction
def test_parts_are_the_whole(backend, geometry, space, targets, restrict):
    """A part without images, and two of which one has the image that knows no rank."""
    cuts = (0, 0, 4, 11)
    p = problem()
    options = {"geometry": geometry, "space": space, "targets": targets, "restrict": restrict}
    found = cut_and_merged(p, cuts, backend, **options), uncut(p, **options)
    assert found[1][1].count_nonzero() > 4
    for got, expected in zip(*found, strict=True):
        close(got, expected)


@each_float64_backend
@pytest.mark.parametrize(("geometry", "space"), SPACES[::2])
@each_target
@each_restriction
def test_gradients_are_those_of_all_three(backend, geometry, space, targets, restrict):
    p = problem(M=4, N=5, D=2, R=2, taxa_per_rank=2, seed=3)
    p.image, p.text = (x.requires_grad_() for x in (p.image, p.text))
    labels, more = labels_of(p, torch.arange(4), targets)

    def rows(image, text, scale, curv):
        options = {"geometry": geometry, "space": space, "restrict": restrict, "backend": backend}
        nll_image, nll_text, text_lse = level_infonce_part(image, text, *labels, scale, curv, **options, **more)
        return nll_image, nll_text, text_lse.masked_fill(text_lse <= -1e29, 0)

    scalars = [torch.tensor([x], dtype=torch.float64, requires_grad=True) for x in (2.0, 0.6)]
    assert torch.autograd.gradcheck(rows, [p.image, p.text, *scalars])


@each_backend
@each_target
@pytest.mark.parametrize("M", [0, 5])
def test_a_text_that_met_no_image_has_no_gradient(backend, targets, M):
    """No image knows rank 1; masked out, text 2 meets images of its own taxon only, of which it is nobody's."""
    image, text = torch.randn(M, 4), torch.randn(4, 4)
    rank, taxon = torch.tensor([0, 1, 0, 1]), torch.tensor([7, 3, 7, 4])
    taxa, pair = torch.full((M, 2), -1), torch.zeros(M, dtype=torch.int64)
    taxa[:, 0] = 7
    arguments = [x.to(DEVICE if backend == "triton" else "cpu") for x in (image, text, taxa, rank, taxon)]
    image, text = inputs = [x.requires_grad_() for x in arguments[:2]]
    pair = None if targets == "multi_positive" else pair.to(image.device)
    out = level_infonce_part(*arguments, 3.0, backend=backend, targets=targets, pair=pair)
    nll_image, nll_text, text_lse = out
    nothing = [True, True, True, True] if not M else [False, True, targets == "mask_out", True]
    assert (text_lse <= -1e29).tolist() == nothing
    assert text_lse.isfinite().all()
    for weight in (1.0, -2.0, 1e30):
        loss = (text_lse.where(text_lse <= -1e29, torch.zeros_like(text_lse)) * weight).sum()
        for gradient in torch.autograd.grad(loss, inputs, retain_graph=True):
            assert not gradient.any()  # and no NaN, which is something
    loss = nll_image.sum() + nll_text.sum() + text_lse[:1].sum()
    of_image, of_text = torch.autograd.grad(loss, inputs)
    assert of_image.isfinite().all()
    assert of_text.isfinite().all()
    assert not of_text[[1, 3]].any()
    assert of_text[0].any() == (M > 0)


@pytest.mark.parametrize("geometry", ["lorentz", "euclidean"])
def test_a_text_pulled_more_than_pushed_fits_the_workspace(geometry):
    """Merging leaves a text the push of its share of the denominator, here 1e-6, and the whole pull, in fp16."""
    triton_infonce = pytest.importorskip("bioclip_hc.kernels.triton_infonce")
    assert triton_infonce is not None
    g = torch.Generator().manual_seed(0)
    image, text = (torch.randn(n, 8, generator=g) / 8**0.5 for n in (20, 30))
    taxon = torch.arange(30)
    labels = taxon[:20, None], torch.zeros(30, dtype=torch.int64), taxon
    found = {}
    for backend, dtype in (("triton", torch.float16), ("reference", torch.float64)):
        device = DEVICE if backend == "triton" else "cpu"
        inputs = [x.half().to(device, dtype).requires_grad_() for x in (image, text)]
        moved = [x.to(device) for x in labels]
        _, nll_text, text_lse = level_infonce_part(*inputs, *moved, 10.0, geometry=geometry, backend=backend)
        loss = (nll_text - (1 - 1e-6) * text_lse)[:20].double().sum() * 1e3
        found[backend] = [x.double().cpu() for x in torch.autograd.grad(loss, inputs)]
    for got, expected in zip(found["triton"], found["reference"], strict=True):
        assert (got - expected).norm() <= 1e-2 * expected.norm()
