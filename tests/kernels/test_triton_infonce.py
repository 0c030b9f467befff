"""The Triton kernels of level_infonce against the float64 reference: on a GPU as they are, elsewhere interpreted.

Memory that nothing wrote is NaN here (torch fills it in deterministic mode), so an unwritten place shows.
"""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton")

from bioclip_hc.kernels import configs, level_infonce, triton_infonce
from bioclip_hc.kernels.objective import make_objective

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SPACES = [("lorentz", "tangent"), ("lorentz", "hyperboloid"), ("euclidean", "tangent"), ("euclidean", "unit")]
NAMES = ("nll_image", "nll_text", "image", "text", "scale", "curv")
SOURCE = Path(triton_infonce.__file__).parent


@pytest.fixture(autouse=True)
def _poison():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def problem(M=70, N=150, D=40, R=2, taxa_per_rank=30, radius=1.0, dtype=torch.float32, seed=0):
    """Arguments of level_infonce up to text_taxon, and pair and text_bias: ragged ranks, repeated and missing taxa."""
    g = torch.Generator().manual_seed(seed)
    rank = torch.randint(0, R, (N,), generator=g)
    taxon = torch.randint(0, taxa_per_rank, (N,), generator=g) + 1000 * rank
    taxa = torch.randint(0, taxa_per_rank, (M, R), generator=g) + 1000 * torch.arange(R)
    taxa[torch.rand(M, R, generator=g) < 0.3] = -1
    pair = torch.randint(-1, N, (M,), generator=g) if N else torch.full((M,), -1)
    owners = (pair >= 0).nonzero().flatten()
    taxa[owners, rank[pair[owners]]] = taxon[pair[owners]]
    image, text = (torch.randn(rows, D, generator=g) * radius / D**0.5 for rows in (M, N))
    labels = [x.to(DEVICE) for x in (taxa, rank, taxon)]
    pair, bias = pair.to(DEVICE), (torch.rand(N, generator=g) * 2).to(DEVICE)
    return [image.to(DEVICE, dtype), text.to(DEVICE, dtype), *labels], pair, bias


def results(arguments, backend, dtype=None, scale=10.0, curv=0.7, **options):
    """nll and the gradients of a fixed random weighting of them, by name, float64 on the CPU."""
    image, text = (x.detach().to(dtype or x.dtype).requires_grad_() for x in arguments[:2])
    work = torch.float64 if image.dtype == torch.float64 else torch.float32
    scalars = [torch.tensor([x], dtype=work, device=DEVICE, requires_grad=True) for x in (scale, curv)]
    nll = level_infonce(image, text, *arguments[2:], *scalars, backend=backend, **options)
    g = torch.Generator().manual_seed(2)
    weights = [torch.rand(x.shape, generator=g, dtype=torch.float64).to(DEVICE) for x in nll]
    loss = sum((w * x.double()).sum() for w, x in zip(weights, nll, strict=True))
    gradients = torch.autograd.grad(loss, [image, text, *scalars], materialize_grads=True)
    return {name: x.detach().double().cpu() for name, x in zip(NAMES, (*nll, *gradients), strict=True)}


def compare(arguments, rows, by_norm, dtype=None, scale=10.0, **options):
    """Triton against the reference on the same, rounded inputs. rows: absolute, by_norm: relative."""
    got = results(arguments, "triton", scale=scale, **options)
    expected = results(arguments, "reference", dtype=torch.float64, scale=scale, **options)
    for name in NAMES[:2]:
        assert ((got[name] - expected[name]).abs() <= rows).all(), name
    for name in NAMES[2:4]:
        assert (got[name] - expected[name]).norm() <= by_norm * expected[name].norm() + 1e-7, name
    size = float(expected["nll_image"].abs().sum() + expected["nll_text"].abs().sum())
    for name in NAMES[4:]:  # sums over all pairs that nearly cancel
        assert (got[name] - expected[name]).abs() <= by_norm * (expected[name].abs() + size / scale), name


TOLERANCE = {torch.float32: (5e-5, 1e-5), torch.float16: (2e-2, 1e-2), torch.bfloat16: (2e-2, 1e-2)}


@pytest.mark.parametrize(("geometry", "space"), SPACES)
@pytest.mark.parametrize("targets", ["multi_positive", "diagonal", "mask_out"])
@pytest.mark.parametrize("restrict", [True, False])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_values_and_gradients(geometry, space, targets, restrict, dtype):
    arguments, pair, bias = problem(dtype=dtype)
    biased = {"text_bias": bias} if restrict else {}
    compare(
        arguments, *TOLERANCE[dtype], geometry=geometry, space=space, targets=targets, pair=pair, restrict=restrict,
        **biased,
    )  # fmt: skip


@pytest.mark.parametrize("geometry", ["lorentz", "euclidean"])
@pytest.mark.parametrize(("M", "N"), [(63, 257), (257, 63), (1, 1), (1, 5), (5, 1), (0, 4), (4, 0)])
def test_awkward_shapes(geometry, M, N):
    arguments, _, _ = problem(M, N, D=16, R=3)
    compare(arguments, 5e-5, 1e-5, geometry=geometry)


@pytest.mark.parametrize("geometry", ["lorentz", "euclidean"])
@pytest.mark.parametrize("D", [1, 33, 64])
def test_awkward_widths(geometry, D):
    arguments, _, _ = problem(40, 40, D=D)
    compare(arguments, 5e-5, 1e-5, geometry=geometry)


@pytest.mark.parametrize("restrict", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_rows_a_text_and_a_rank_alone(restrict, dtype):
    """Rank 0 has images but no text, rank 1 one of each, rank 2 no image; an image knows no rank."""
    arguments, _, _ = problem(6, 5, D=16, R=3, dtype=dtype)
    taxa = torch.full((6, 3), -1)
    taxa[:4, 0], taxa[4, 1] = 7, 1003
    rank, taxon = torch.tensor([1, 2, 2, 2, 2]), torch.tensor([1003, 2000, 2001, 2001, 2002])
    arguments[2:] = [x.to(DEVICE) for x in (taxa, rank, taxon)]
    compare(arguments, *TOLERANCE[dtype], restrict=restrict)


@pytest.mark.parametrize("dtypes", [(torch.float16, torch.float32), (torch.bfloat16, torch.float16)])
def test_mixed_dtypes_and_strides(dtypes):
    arguments, _, _ = problem(40, 70)
    wide = torch.zeros(40, 80, device=DEVICE, dtype=dtypes[0])
    wide[:, ::2] = arguments[0]
    arguments[:2] = [wide[:, ::2], arguments[1].to(dtypes[1]).T.contiguous().T]
    compare(arguments, 5e-5, 1e-2)  # fp32 holds both; gradients come back in the features' own dtypes


@pytest.mark.parametrize("geometry", ["lorentz", "euclidean"])
@pytest.mark.parametrize(
    "cut",
    [
        {"chunk": 1, "share": 1, "panel": 1},  # a tile at a time
        {"chunk": 3, "share": 2 * 8 * 300, "panel": 5 * 64 * 32 * 4, "group": 1},
        {"panel": 7 * 64 * 32 * 4, "group": 3},  # panels that end within a group's column
    ],
)
def test_panels_stripes_and_chunks_may_cut_anywhere(monkeypatch, geometry, cut):
    if DEVICE == "cuda":
        monkeypatch.setattr(
            triton_infonce, "config_for", lambda *_: replace(configs.TABLE[80, "ieee", geometry], **cut)
        )
    else:
        monkeypatch.setattr(configs, "INTERPRETED", replace(configs.INTERPRETED, **cut))
    arguments, _, _ = problem(200, 300, D=16)
    compare(arguments, 5e-5, 1e-5, geometry=geometry)


@pytest.mark.parametrize("low", [-1e30, -3e3])
@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("targets", ["multi_positive", "mask_out"])
def test_a_text_that_stands_for_none_is_no_negative(targets, together, low):
    """A bias that low removes a text from the images' denominators. Its own column keeps its digits, even in a tile
    that has only such texts."""
    arguments, pair, bias = problem(40, 160, R=1)
    out = torch.arange(160, device=DEVICE) % 2 == 0
    bias[out] = low
    if together:  # no image has their taxa, which come last
        arguments[4][out] += 500
        pair[(pair >= 0) & out[pair]] = -1
    compare(arguments, 5e-5, 1e-5, text_bias=bias, targets=targets, pair=pair)


@pytest.mark.parametrize("targets", ["multi_positive", "diagonal", "mask_out"])
def test_images_of_one_taxon_among_them_zeros(targets):
    arguments, _, _ = problem(40, 50, D=16, R=1)
    arguments[2][:], arguments[4][:] = 5, torch.arange(50, device=DEVICE) % 10
    arguments[0][::4], arguments[1][::3] = 0, 0
    compare(arguments, 5e-5, 1e-5, targets=targets, pair=5 + 10 * (torch.arange(40, device=DEVICE) % 4))


@pytest.mark.parametrize(("geometry", "space"), SPACES)
@pytest.mark.parametrize("side", [0, 1])
def test_a_broken_feature_shows_where_it_counts_and_nowhere_else(geometry, space, side):
    """NaN, and not a logit of 0, which would be the nearest of all in Lorentz space."""
    arguments, _, _ = problem(40, 50)
    rank = arguments[3]
    arguments[2][:], arguments[4][:] = torch.tensor([5, 1005]), 5 + 1000 * rank
    arguments[side][3, 7] = torch.nan
    got = results(arguments, "triton", geometry=geometry, space=space)
    images, texts = (got[name].isnan().cpu() for name in NAMES[:2])
    if side == 0:  # its own rows, and every text it is compared with
        assert texts.all()
        assert images[3].all()
        assert images.sum() == 2
    else:
        here = (rank == rank[3]).cpu()
        assert images[:, rank[3]].all()
        assert images.sum() == 40
        assert texts.tolist() == (here & (torch.arange(50) == 3)).tolist()


@pytest.mark.parametrize("targets", ["multi_positive", "mask_out"])
def test_rows_and_columns_hundreds_of_nats_apart(targets):
    """Tiles whose columns lie far below their rows' maxima need the columns' own."""
    g = torch.Generator().manual_seed(0)
    l = torch.randn(70, 90, generator=g) - 300 * torch.rand(70, 1, generator=g) - 400 * torch.rand(90, generator=g)
    own = torch.arange(70)
    labels = [own[:, None], torch.zeros(90, dtype=torch.int64), torch.arange(90)]
    arguments = [x.to(DEVICE) for x in (l, torch.eye(90), *labels)]
    compare(
        arguments, 1e-4, 1e-4, scale=1.0, geometry="euclidean", space="unit", targets=targets, pair=own.to(DEVICE)
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("radius", [1e-3, 0.1, 4.0])
def test_radii_from_flat_to_far(radius, dtype):
    """The workspace's units follow the radii: small gradients do not fade, large ones do not overflow."""
    arguments, _, _ = problem(50, 60, D=32, radius=radius, dtype=dtype)
    rows, by_norm = TOLERANCE[dtype]
    if radius == 1e-3:  # u is near its floor there, where fp32 has three digits of a distance
        by_norm = max(by_norm, 1e-3)
    compare(arguments, rows * max(1.0, radius), by_norm * max(1.0, 3 * radius), curv=1.0)


def test_a_point_near_the_origin_beside_others():
    """Its radial gradient is made of 1 - cosine itself: won back from u, that would lose digits as 1/s."""
    arguments, _, _ = problem(40, 50, D=32)
    arguments[0] = arguments[0] * torch.logspace(-8, 0, 40, device=DEVICE)[:, None]
    got, expected = (
        results(arguments, b, dtype=t)["image"] for b, t in (("triton", None), ("reference", torch.float64))
    )
    rows = expected.norm(dim=1) > 0
    assert rows.sum() > 20
    assert ((got - expected).norm(dim=1)[rows] <= 2e-5 * expected.norm(dim=1)[rows]).all()


@pytest.mark.parametrize("weight", [1e-12, 1e12])
def test_gradients_of_any_size_fit_the_workspace(weight):
    arguments, _, _ = problem(40, 40, D=16, dtype=torch.float16)
    found = {}
    for backend, dtype in (("triton", torch.float16), ("reference", torch.float64)):
        image = arguments[0].detach().to(dtype).float().to(dtype)
        text = arguments[1].detach().to(dtype).requires_grad_()
        nll, _ = level_infonce(image, text, *arguments[2:], 10.0, backend=backend)
        out = nll.double().sum() * weight
        if backend == "triton":  # the gradient itself is fp16: see it before it is stored
            o = make_objective(
                image, text, *arguments[2:], geometry="lorentz", space="tangent", targets="multi_positive",
                pair=None, text_bias=None, restrict=True,
            )  # fmt: skip
            scalars = torch.tensor(10.0, device=DEVICE), torch.tensor(1.0, device=DEVICE)
            wide = image.float(), text.detach().float()
            *_, row_lse, col_lse = triton_infonce.forward(*wide, *scalars, o)
            gradients = triton_infonce.backward(
                *wide,
                *scalars,
                o,
                row_lse,
                col_lse,
                torch.full_like(nll, weight),
                *torch.zeros(2, len(col_lse)).to(nll),
            )
            found[backend] = gradients[1].double()
        else:
            (found[backend],) = torch.autograd.grad(out, text)
    assert (found["triton"] - found["reference"]).norm() <= 1e-2 * found["reference"].norm()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_it_is_bitwise_repeatable(dtype):
    arguments, _, _ = problem(dtype=dtype)
    once, again = (results(arguments, "triton") for _ in range(2))
    assert all(torch.equal(once[name], again[name]) for name in NAMES)


# -- the custom operators


@pytest.mark.parametrize("backend", ["tiled", "triton"])
def test_opcheck(backend):
    (image, text, *labels), pair, bias = problem(9, 11, D=8)
    scalars = [torch.tensor(x, device=DEVICE, requires_grad=True) for x in (3.0, 0.7)]
    inputs = [image.requires_grad_(), text.requires_grad_(), *scalars, *labels, pair, bias]
    options = ["lorentz", "tangent", "diagonal", True, backend]
    torch.library.opcheck(torch.ops.bioclip_hc.level_infonce.default, (*inputs, *options))
    outputs = [x.detach() for x in torch.ops.bioclip_hc.level_infonce(*inputs, *options)]
    fixed = [x.detach() for x in inputs]
    gradients = outputs[0], outputs[1], outputs[3]
    saved = outputs[2:]
    operator = torch.ops.bioclip_hc.level_infonce_backward.default
    torch.library.opcheck(operator, (*gradients, *saved, *fixed, *options))


@pytest.mark.parametrize("backend", ["tiled", "triton"])
def test_compile_without_a_graph_break_and_autocast_without_effect(backend):
    arguments, _, _ = problem(12, 14, D=8)

    def step(image, text):
        nll_image, nll_text = level_infonce(image, text, *arguments[2:], 3.0, 0.7, backend=backend)
        return nll_image.sum() + nll_text.sum()

    plain, compiled = [], []
    for call, gradients in ((step, plain), (torch.compile(step, fullgraph=True, backend="aot_eager"), compiled)):
        image, text = (x.detach().requires_grad_() for x in arguments[:2])
        with torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=call is not step):
            gradients += torch.autograd.grad(call(image, text), [image, text])
    assert all(torch.equal(x, y) for x, y in zip(plain, compiled, strict=True))


class NothingWaits(TorchDispatchMode):
    """Fails on every aten operation that makes the host wait for the device's values."""

    WAITING = ("_local_scalar_dense", "nonzero", "unique", "masked_select", "bincount", "equal", "is_nonzero")

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        name = function.__name__.partition(".")[0]
        assert name not in self.WAITING, f"{function} waits for the device"
        assert not name.startswith("unique"), f"{function} waits for the device"
        return function(*arguments, **(options or {}))


def test_the_host_never_waits():
    (image, text, *labels), pair, bias = problem(20, 30, D=8)
    for restrict in (True, False):
        o = make_objective(
            image, text, *labels, geometry="lorentz", space="tangent", targets="mask_out", pair=pair,
            text_bias=bias, restrict=restrict,
        )  # fmt: skip
        scalars = torch.tensor(3.0, device=DEVICE), torch.tensor(1.0, device=DEVICE)
        with NothingWaits():
            nll_image, nll_text, row_lse, col_lse = triton_infonce.forward(image, text, *scalars, o)
            triton_infonce.backward(
                image, text, *scalars, o, row_lse, col_lse, *map(torch.ones_like, (nll_image, nll_text, col_lse))
            )


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")
@pytest.mark.parametrize("mode", ["stream", "graph"])
def test_on_a_gpu_the_step_runs_without_sync_and_in_a_graph(mode):
    (image, text, *labels), _, _ = problem(500, 600, D=64, dtype=torch.float16)
    image, text = image.requires_grad_(), text.requires_grad_()
    scale, curv = torch.tensor(10.0, device="cuda"), torch.tensor(1.0, device="cuda")

    def step():
        nll_image, nll_text = level_infonce(image, text, *labels, scale, curv)
        return torch.autograd.grad(nll_image.sum() + nll_text.sum(), [image, text])

    expected = step()
    if mode == "stream":
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            got = step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    else:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            got = step()
        graph.replay()
    assert all(torch.equal(x, y) for x, y in zip(got, expected, strict=True))


# -- what these tests are worth: each line that numerics hang on is taken out once, and must be missed


def mutant(folder, name, edits):
    """triton_infonce on triton_tiles, with lines of their sources replaced."""
    found = {"triton_tiles": None, "triton_infonce": None}
    for module in found:
        text = (SOURCE / f"{module}.py").read_text(encoding="utf-8")
        for old, new in edits.get(module, ()):
            assert text.count(old) == 1, f"{module} has {text.count(old)} of: {old}"
            text = text.replace(old, new)
        text = text.replace(
            "from bioclip_hc.kernels import triton_tiles as tiles", f"import triton_tiles_{name} as tiles"
        )
        text = text.replace("from bioclip_hc.kernels.triton_tiles import", f"from triton_tiles_{name} import")
        path = folder / f"{module}_{name}.py"
        path.write_text(text, encoding="utf-8")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        found[module] = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = found[module]
        spec.loader.exec_module(found[module])
    return found["triton_infonce"]


def largest_error(module, make, options):
    """Worst of values (absolute) and gradients (by norm) of a module's kernels, beside the float64 reference."""
    image, text, *labels = make()
    o = make_objective(
        image, text, *labels, space="unit" if options["geometry"] == "euclidean" else "tangent",
        targets="multi_positive", pair=None, text_bias=None, restrict=True, geometry=options["geometry"],
    )  # fmt: skip
    scalars = [torch.tensor(options["scale"], device=DEVICE), torch.tensor(1.0, device=DEVICE)]
    nll_image, nll_text, row_lse, col_lse = module.forward(image, text, *scalars, o)
    gradients = torch.ones_like(nll_image), torch.ones_like(nll_text), torch.zeros_like(col_lse)
    got = [nll_image, nll_text, *module.backward(image, text, *scalars, o, row_lse, col_lse, *gradients)]
    exact = [x.double().requires_grad_() for x in (image, text, *scalars)]
    nll = level_infonce(
        *exact[:2], *labels, *exact[2:], geometry=o.geometry, space=o.space, backend="reference"
    )  # fmt: skip
    expected = [*nll, *torch.autograd.grad(nll[0].sum() + nll[1].sum(), exact, materialize_grads=True)]
    errors = [(x.double() - y).abs().max() for x, y in zip(got[:2], expected[:2], strict=True)]
    errors += [
        (x.double() - y).norm() / y.norm().clamp_min(1e-3) for x, y in zip(got[2:], expected[2:], strict=True)
    ]
    return max(float(torch.nan_to_num(e.detach(), nan=1e9)) for e in errors)


def ragged():
    return problem(70, 90, D=16)[0]


def far_apart():
    g = torch.Generator().manual_seed(0)
    own = torch.arange(40)
    l = torch.randn(40, 120, generator=g) - torch.linspace(400, 0, 120)  # the later of two tiles is the higher
    labels = [own[:, None], torch.zeros(120, dtype=torch.int64), torch.arange(120)]
    return [x.to(DEVICE) for x in (l, torch.eye(120), *labels)]


def near_twins():
    """Unit vectors 0.03 apart in fp16, where 1 - <n_i, n_j> is all rounding if the norms are not the rounded ones'."""
    g = torch.Generator().manual_seed(0)
    text = torch.nn.functional.normalize(torch.randn(40, 64, generator=g), dim=1)
    image = text + 0.03 * torch.nn.functional.normalize(torch.randn(40, 64, generator=g), dim=1)
    own = torch.arange(40)
    labels = [own[:, None], torch.zeros(40, dtype=torch.int64), own]
    return [image.to(DEVICE, torch.float16), text.to(DEVICE, torch.float16), *(x.to(DEVICE) for x in labels)]


LORENTZ, CLIP = {"geometry": "lorentz", "scale": 10.0}, {"geometry": "euclidean", "scale": 1.0}
MUTATIONS = {
    "the ragged mask of columns": (
        ragged, LORENTZ, {"triton_infonce": [("shift = tl.where(valid, 0.0, MASKED)\n            in_rows", "shift = tl.where(valid, 0.0, 0.0)\n            in_rows")]},
    ),
    "the ragged mask of rows": (
        ragged, LORENTZ, {"triton_infonce": [("outside = tl.where(valid_row, 0.0, MASKED)", "outside = tl.where(valid_row, 0.0, 0.0)")]},
    ),
    "the columns' own shift": (
        far_apart, CLIP, {"triton_infonce": [("tl.min(tl.where(valid, sums, 1.0)) < LEAST_SUM", "tl.min(sums) < -1.0")]},
    ),
    "the rows' running maximum": (
        far_apart, CLIP, {"triton_infonce": [("total = total * tl.exp2(top - higher) + tl.sum(e, 1)", "total = total + tl.sum(e, 1)")]},
    ),
    "the norms of the rounded rows": (
        near_twins, LORENTZ | {"scale": 100.0}, {"triton_tiles": [("kept = rounded.to(tl.float32)", "kept = x")]},
    ),
    "the radii in the curvature's gradient": (
        ragged, LORENTZ, {"triton_infonce": [("((-natural * radii - total)", "((0 * radii - total)")]},
    ),
    "the logits in the curvature's gradient": (
        ragged, LORENTZ, {"triton_infonce": [("((-natural * radii - total)", "((-natural * radii - 0 * total)")]},
    ),
    "the radial gradient's angle": (
        ragged, LORENTZ, {"triton_infonce": [("rows_share = tl.sum(q * (sinh + _cosh(xa, xb)[:, None] * ys[None, :] * gap), 1)", "rows_share = tl.sum(q * sinh, 1)")]},
    ),
    "the pull of positives": (
        ragged, LORENTZ, {"triton_infonce": [("W -= tl.where(_positive(", "W -= 0.5 * tl.where(_positive(")]},
    ),
    "the ragged mask of the gradients": (
        ragged, CLIP, {"triton_infonce": [("shift = tl.where(valid, 0.0, MASKED)\n        in_rows", "shift = tl.where(valid, 0.0, 0.0)\n        in_rows")]},
    ),
}  # fmt: skip


@pytest.mark.skipif(DEVICE == "cuda", reason="the interpreter shows as much, sooner")
@pytest.mark.parametrize("what", MUTATIONS)
def test_dropping_it_is_noticed(tmp_path, what):
    make, options, edits = MUTATIONS[what]
    whole = largest_error(triton_infonce, make, options)
    broken = largest_error(mutant(tmp_path, what.replace(" ", "_").replace("'", ""), edits), make, options)
    assert whole < 0.03
    assert broken > 3 * whole
    assert broken > 1e-3
