"""The row-wise kernels of csrc/cuda: their numbers, on the host and on a GPU, and their machine code.

The lines that a GPU runs are compiled for the host as well, where threads stand for a team's lanes (csrc/cuda/
host_twin.cpp, with the sanitizer of undefined behaviour): so formulas, indices, alignment and what is written are
shown without a GPU. What that leaves to a GPU: its own sums over lanes, conversions and elementary functions.

Memory that nothing wrote is NaN here (torch fills it in deterministic mode), so an unwritten place shows.
"""

import dataclasses
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from bioclip_hc.kernels import cuda, level_infonce, reference

FOLDER = Path(__file__).parents[2] / "csrc" / "cuda"
UNIT, SPHERE, TANGENT, HYPERBOLOID = cuda.SPACES
PRODUCTS = [  # dtypes of features and product, and whether it is rounded to TF32
    (torch.float16, torch.float16, False),
    (torch.bfloat16, torch.float16, False),
    (torch.bfloat16, torch.bfloat16, False),
    (torch.float16, torch.float32, True),
    (torch.bfloat16, torch.float32, False),
    (torch.float32, torch.float32, False),
    (torch.float32, torch.float32, True),
]
WIDTHS = [1, 63, 512, 768, 1024, 4096]
EPS = torch.finfo(torch.float32).eps
SHARED_LIMIT = 48 * 1024  # bytes of a block that need no permission (CUDA C programming guide, table 24)


@pytest.fixture(autouse=True)
def _poison():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session")
def builder():
    """csrc/cuda/build.py as a module."""
    spec = importlib.util.spec_from_file_location("build_csrc_cuda", FOLDER / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def built(builder, tmp_path_factory):
    """Path of a freshly built library, and what ptxas said of its kernels."""
    try:
        nvcc = builder.find_nvcc()
    except RuntimeError as error:
        pytest.skip(str(error))
    path = tmp_path_factory.mktemp("cuda") / cuda.LIBRARY.name
    return path, builder.build(path, nvcc)


@pytest.fixture(scope="session")
def host_twin(tmp_path_factory):
    """The library's functions on host memory."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++")
    version = subprocess.run([compiler, "-dumpversion"], check=True, capture_output=True, text=True).stdout.strip()
    if int(version.partition(".")[0]) < 11:
        pytest.skip(f"g++ {version} has no std::barrier")
    path = tmp_path_factory.mktemp("host") / "libhost_twin.so"
    options = ["-std=c++20", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared", "-pthread"]
    checked = ["-fsanitize=undefined", "-fsanitize-undefined-trap-on-error"]  # needs no library
    subprocess.run([compiler, *options, *checked, FOLDER / "host_twin.cpp", "-o", path], check=True)
    return cuda.load(path)


@pytest.fixture(params=["host", "gpu"])
def device(request, monkeypatch):
    """Where `cuda.prepare` and `cuda.to_inputs` run in a test."""
    if request.param == "host":
        library = request.getfixturevalue("host_twin")
        monkeypatch.setattr(cuda, "_launch", lambda _, name, *rest: cuda.call(library, name, 0, None, *rest))
        return torch.device("cpu")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    path, _ = request.getfixturevalue("built")
    monkeypatch.setattr(cuda, "LIBRARY", path)
    return torch.device("cuda", torch.cuda.current_device())


@pytest.fixture
def way_taken(request, device):
    """Asserts how the latest call went about its rows, a Way of csrc/cuda/rows.h; a GPU does not tell."""
    library = request.getfixturevalue("host_twin") if device.type == "cpu" else None

    def check(way):
        assert library is None or library.bioclip_hc_last_way() == way

    return check


def features(rows, D, dtype, device, radius=1.0, seed=0):
    """v (rows, D) of about that length, one row of zeros among them, on `device`."""
    g = torch.Generator().manual_seed(seed)
    v = torch.randn(rows, D, generator=g) * radius / D**0.5
    if rows > 1:
        v[rows // 2] = 0
    return v.to(device, dtype)


def shuffled(rows, device):
    return torch.randperm(rows, generator=torch.Generator().manual_seed(1)).to(device, torch.int32)


def exact_polar(v, curv, space):
    """|v|, r and s of v, float64."""
    norm = v.norm(dim=1) if space != UNIT else v.new_zeros(len(v))
    if space == TANGENT:
        r = (curv**0.5 * norm).clamp_max(reference.MAX_RADIUS)
        return norm, r, r.sinh()
    if space == HYPERBOLOID:
        return norm, (curv**0.5 * norm).asinh(), curv**0.5 * norm
    return norm, torch.zeros_like(norm), torch.zeros_like(norm)


def check_prepared(rows, v, order, curv, space, tf32):
    """Rows against mathematics in float64: n to its last place but for ties, polar to a few of fp32's."""
    exact = (v if order is None else v[order.long()]).double()
    norm, r, s = exact_polar(exact, curv, space)
    expected = exact if space == UNIT else reference.unit(exact, norm)
    n, D = rows.n.double(), v.shape[1]
    half_step = (2.0**-10 if tf32 else torch.finfo(rows.n.dtype).eps) / 2
    least = 2.0**-25 if rows.n.dtype == torch.float16 else 0  # half of fp16's least step
    fp32_noise = 4 * EPS * expected.abs()
    assert ((n[:, :D] - expected).abs() <= half_step * expected.abs() + least + fp32_noise).all()
    assert (n[:, D:] == 0).all()
    if tf32:
        assert (rows.n.view(torch.int32) & 0x1FFF == 0).all()
    h = n.square().sum(1) / 2
    for column, value in enumerate((norm, r, s, (r / 2).exp(), (-r / 2).exp(), h)):
        got = rows.polar[:, column].double()
        assert ((got - value).abs() <= 8 * EPS * (1 + r) * value).all(), f"column {column} of polar"


@pytest.mark.parametrize("D", WIDTHS)
@pytest.mark.parametrize("product", PRODUCTS, ids=str)
def test_unit_rows_and_polar_scalars(device, product, D):
    dtype, wanted, tf32 = product
    curv = torch.tensor(0.7, device=device)
    for rows, ordered in ((1, False), (9 if device.type == "cpu" else 257, True)):
        v = features(rows, D, dtype, device)
        order = shuffled(rows, device) if ordered else None
        for space in cuda.SPACES:
            width = -(-D // 64) * 64
            prepared = cuda.prepare(v, order, curv, space, wanted, width, tf32)
            assert prepared.n.shape == (rows, width)
            check_prepared(prepared, v, order, float(curv), space, tf32)


@pytest.mark.parametrize("D", WIDTHS)
@pytest.mark.parametrize("dtype", cuda.DTYPES)
def test_gradients_of_the_features(device, dtype, D):
    """Against autograd in float64 through r and n; a row of zeros has the limit there."""
    curv, factor = torch.tensor([0.7], device=device), torch.tensor(-3.0, device=device)
    rows = 9 if device.type == "cpu" else 257
    v, order = features(rows, D, dtype, device), shuffled(rows, device)
    width = -(-D // 64) * 64
    dn, dr = (
        features(rows, width, torch.float32, device, seed=2),
        features(rows, 1, torch.float32, device, seed=3)[:, 0],
    )
    dn[:, D:] = float("nan")  # is nobody's gradient
    for space in cuda.SPACES:
        polar = cuda.prepare(v, order, curv, space, torch.float32, width, False).polar
        got = cuda.to_inputs(v, order, dn, dr, polar, factor, curv, space)
        expected = exact_gradient(v, order, dn[:, :D], dr, float(factor), float(curv), space)
        assert got.shape == v.shape
        check_gradient(got, *expected)


def check_gradient(got, expected, size):
    """Rows against float64, to rounding: of their own dtype, and of fp32 in terms of that size that may cancel."""
    error = (got.double() - expected).norm(dim=1)
    least = 2.0**-25 * got.shape[1] ** 0.5 if got.dtype == torch.float16 else 0  # half of fp16's least step
    assert (error <= torch.finfo(got.dtype).eps * expected.norm(dim=1) + 16 * EPS * size + least).all()


def exact_gradient(v, order, dn, dr, factor, curv, space):
    """Gradient of factor (<s dn, n> - dr r), s held fixed, by v, (rows, D), and the size of its terms, (rows,)."""
    at = order.long()
    leaf = v.double().requires_grad_()
    sorted_v = leaf[at]
    zero = sorted_v.detach().norm(dim=1) == 0
    safe = torch.where(zero[:, None], torch.ones_like(sorted_v), sorted_v)
    norm, r, s = exact_polar(safe, curv, space)
    n = safe if space == UNIT else safe / norm[:, None]
    weight = s.detach() if space in (TANGENT, HYPERBOLOID) else torch.ones_like(s)
    loss = factor * ((weight[:, None] * dn.double() * n).sum(1) - dr.double() * r)
    (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    limit = factor * dn.double() * (curv**0.5 if space in (TANGENT, HYPERBOLOID) else 1.0)
    gradient = torch.where(zero[:, None], limit, gradient[at])
    along = abs(factor) * (weight.detach() / (1 if space == UNIT else norm.detach())) * dn.double().norm(dim=1)
    size = torch.where(zero, limit.norm(dim=1), gradient.norm(dim=1) + along)
    return torch.zeros_like(gradient).index_copy(0, at, gradient), torch.zeros_like(size).index_copy(0, at, size)


LAYOUTS = {  # v of a (rows, 2 D + 8) matrix, and the way its rows are gone about
    "rows apart": (lambda wide, D: wide[:, :D], {512: 0, 1024: 1, 4096: 2}),
    "starts that are not aligned": (lambda wide, D: wide[:, 1 : D + 1], {512: 3, 1024: 3, 4096: 3}),
    "columns apart": (lambda wide, D: wide[:, : 2 * D : 2], {512: 3, 1024: 3, 4096: 3}),
    "columns first": (lambda wide, D: wide[:, :D].T.contiguous().T, {512: 3, 1024: 3, 4096: 3}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("D", [512, 1024, 4096])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_strides_and_starts(device, way_taken, dtype, D, layout):
    view, ways = LAYOUTS[layout]
    v = view(features(5, 2 * D + 8, dtype, device), D)
    curv = torch.ones(1, device=device)
    prepared = cuda.prepare(v, None, curv, TANGENT, dtype, D, False)
    way_taken(ways[D])
    check_prepared(prepared, v, None, 1.0, TANGENT, False)
    dn, dr = (features(5, width, torch.float32, device, seed=2) for width in (D, 1))
    got = cuda.to_inputs(v, None, dn, dr[:, 0].contiguous(), prepared.polar, curv, curv, TANGENT)
    way_taken(ways[D])
    expected = exact_gradient(v, torch.arange(5, device=device), dn, dr[:, 0], 1.0, 1.0, TANGENT)
    check_gradient(got, *expected)


@pytest.mark.parametrize("D", [500, 510])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_rows_that_start_aligned_but_end_within_16_bytes(device, way_taken, dtype, D):
    """What lies between a row's end and the next row's start is neither taken nor written."""
    wide = torch.full((5, 512), float("nan"), dtype=dtype, device=device)
    v = wide[:, :D]
    v.copy_(features(5, D, dtype, device))
    way = 0 if D % (16 // dtype.itemsize) == 0 else 3
    curv = torch.ones(1, device=device)
    prepared = cuda.prepare(v, None, curv, HYPERBOLOID, dtype, 512, False)
    way_taken(way)
    check_prepared(prepared, v, None, 1.0, HYPERBOLOID, False)
    dn, dr = (features(5, width, torch.float32, device, seed=2) for width in (512, 1))
    got = cuda.to_inputs(v, None, dn, dr[:, 0].contiguous(), prepared.polar, curv, curv, HYPERBOLOID)
    way_taken(way)
    arange = torch.arange(5, device=device)
    check_gradient(got, *exact_gradient(v, arange, dn[:, :D], dr[:, 0], 1.0, 1.0, HYPERBOLOID))


@pytest.mark.parametrize(
    ("D", "width", "way"),
    [
        (40, 64, 0), (512, 512, 0), (512, 520, 1), (1000, 1024, 1), (1024, 1032, 2), (2000, 2048, 2),
        (8184, 8192, 2), (8192, 8200, 3), (9000, 9024, 3), (12, 20, 3), (8, 100, 3), (40, 44, 3),
    ],
)  # fmt: skip
def test_zeros_fill_up_rows_whether_held_or_not(device, way_taken, D, width, way):
    curv = torch.tensor(1.0, device=device)
    for product in ((torch.float16, torch.float16), (torch.bfloat16, torch.float32)):
        v = features(3, D, product[0], device)
        check_prepared(cuda.prepare(v, None, curv, SPHERE, product[1], width, False), v, None, 1.0, SPHERE, False)
        way_taken(way)


@pytest.mark.parametrize("space", [TANGENT, HYPERBOLOID])
def test_radii_from_flat_to_beyond_the_clamp(device, space):
    """fp32 rows of length 1e-12 to 1e12; past the clamp of a tangent row only its direction moves."""
    v = features(50, 64, torch.float32, device)
    v[25] = 1
    v = torch.nn.functional.normalize(v, dim=1) * torch.logspace(-12, 12, 50, device=device)[:, None]
    curv, factor = torch.tensor(1.3, device=device), torch.tensor(1.0, device=device)
    prepared = cuda.prepare(v, None, curv, space, torch.float32, 64, False)
    check_prepared(prepared, v, None, float(curv), space, False)
    dn, dr = (features(50, width, torch.float32, device, seed=4) for width in (64, 1))
    got = cuda.to_inputs(v, None, dn, dr[:, 0].contiguous(), prepared.polar, factor, curv, space)
    expected = exact_gradient(v, torch.arange(50, device=device), dn, dr[:, 0], 1.0, float(curv), space)
    check_gradient(got, *expected)
    if space == TANGENT:
        assert (prepared.polar[-20:, 1] == torch.tensor(reference.MAX_RADIUS, dtype=torch.float32)).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("space", list(cuda.SPACES))
@pytest.mark.parametrize("product", PRODUCTS, ids=str)
def test_a_row_that_is_not_finite_shows_and_spoils_no_other(device, product, space, value):
    dtype, wanted, tf32 = product
    v = features(4, 64, dtype, device)
    v[1, 5] = value
    if value != value and dtype == torch.float32:  # the NaN that GPUs make: adding to its bits gives a number
        v.view(torch.int32)[1, 5] = 0x7FFFFFFF
    prepared = cuda.prepare(v, None, torch.ones(1, device=device), space, wanted, 64, tf32)
    assert not prepared.n[1].isfinite().all()
    assert not prepared.polar[1].isfinite().all()
    if value != value and space in (TANGENT, HYPERBOLOID):
        assert prepared.polar[1].isnan().all()
    assert prepared.n[[0, 2, 3]].isfinite().all()
    assert prepared.polar[[0, 2, 3]].isfinite().all()


@pytest.mark.parametrize("product", PRODUCTS, ids=str)
def test_rows_taken_as_they_are_pass_every_16_bit_number(device, product):
    """The conversions, over all numbers that 16 bits hold; of fp32 those that a bf16 can be widened to."""
    dtype, wanted, tf32 = product
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int16, device=device).view(64, 1024)
    v = bits.view(dtype) if dtype != torch.float32 else bits.view(torch.bfloat16).float()
    got = cuda.prepare(v, None, torch.ones(1, device=device), UNIT, wanted, 1024, tf32).n
    assert torch.equal(got.nan_to_num(0, 1, -1), v.to(wanted).nan_to_num(0, 1, -1)) or tf32
    assert torch.equal(got.isnan(), v.isnan())
    assert torch.equal(got.signbit() | v.isnan(), v.signbit() | v.isnan())
    assert torch.equal(got.isinf(), v.to(wanted).isinf())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_gradients_are_rounded_to_the_nearest(device, dtype):
    """Any bits of an fp32, and those between, at and beside what 16 bits hold: to even, to infinity, to zero."""
    g = torch.Generator().manual_seed(0)
    dn = torch.randint(-(2**31), 2**31, (64, 1024), generator=g).to(torch.int32).view(torch.float32)
    held = torch.randint(-(2**15), 2**15, (16, 1024), generator=g).to(torch.int16).view(dtype).float()
    up = torch.nextafter(held, torch.tensor(torch.inf))
    ties = (held.view(torch.int32) + (0x1000 if dtype == torch.float16 else 0x8000)).view(torch.float32)
    edges = torch.tensor([65504.0, 65519.0, 65520.0, 65535.0, 2.0**-24, 2.0**-25, 2.0**-25 * 1.001, 2.0**-14])
    dn = torch.cat([dn, held, up, ties, edges.repeat(1, 128)]).to(device)
    rows, curv = len(dn), torch.ones(1, device=device)
    v, polar = torch.zeros(rows, 1024, dtype=dtype, device=device), torch.zeros(rows, 6, device=device)
    got = cuda.to_inputs(v, None, dn, polar[:, 0].contiguous(), polar, curv, curv, UNIT)
    expected = dn.to(dtype)
    assert torch.equal(got.isnan(), expected.isnan())
    same = got.view(torch.int16) == expected.view(torch.int16)
    assert (same | got.isnan()).all()


@pytest.mark.parametrize("space", list(cuda.SPACES))
@pytest.mark.parametrize("product", PRODUCTS, ids=str)
def test_the_triton_twin_agrees(device, product, space):
    tiles = pytest.importorskip("bioclip_hc.kernels.triton_tiles")
    dtype, wanted, tf32 = product
    curv = torch.tensor(0.7, device=device)
    for rows, D in ((9, 63), (33, 512), (3, 1024)):
        v, order, width = features(rows, D, dtype, device, radius=2.0), shuffled(rows, device), -(-D // 64) * 64
        got = cuda.prepare(v, order, curv, space, wanted, width, tf32)
        twin = tiles.prepare(v, order, curv, space, wanted, width, tf32)
        step = 2.0**-10 if tf32 else torch.finfo(wanted).eps
        assert ((got.n.double() - twin.n.double()).abs() <= step * twin.n.double().abs() + 2.0**-24).all()
        rounding = 2 * step if space != UNIT else 0  # rows fall to either neighbour; the interpreter cuts bf16 off
        assert torch.allclose(got.polar[:, :5], twin.polar[:, :5], rtol=1e-5, atol=0)
        assert torch.allclose(got.polar[:, 5], twin.polar[:, 5], rtol=rounding + 1e-5, atol=0)


@pytest.mark.parametrize("space", list(cuda.SPACES))
@pytest.mark.parametrize("dtype", cuda.DTYPES)
def test_the_triton_twin_of_the_gradients_agrees(device, dtype, space):
    infonce = pytest.importorskip("bioclip_hc.kernels.triton_infonce")
    curv, factor = torch.tensor(0.7, device=device), torch.tensor(2.0, device=device)
    for rows, D in ((9, 63), (33, 512), (3, 1024)):
        v, order, width = features(rows, D, dtype, device, radius=2.0), shuffled(rows, device), -(-D // 64) * 64
        dn, dr = (features(rows, w, torch.float32, device, seed=5) for w in (width, 1))
        side = cuda.prepare(v, order, curv, space, torch.float32, width, False)
        twin = infonce._to_inputs(v, order, dn, dr[:, 0].contiguous(), side, factor, curv, space)
        got = cuda.to_inputs(v, order, dn, dr[:, 0].contiguous(), side.polar, factor, curv, space)
        assert (got - twin).double().norm() <= (torch.finfo(dtype).eps + 8 * EPS) * twin.double().norm()


@pytest.mark.parametrize(
    ("geometry", "space"),
    [("lorentz", "tangent"), ("lorentz", "hyperboloid"), ("euclidean", "tangent"), ("euclidean", "unit")],
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_level_infonce_starts_and_ends_with_these_rows(device, monkeypatch, dtype, geometry, space):
    """Values and gradients against the reference, with Triton's kernels between `prepare` and `to_inputs`."""
    infonce = pytest.importorskip("bioclip_hc.kernels.triton_infonce")
    called, shipped = Counter(), infonce.config_for

    def counted(name, function):
        def call(*arguments):
            called[name] += 1
            return function(*arguments)

        return call

    monkeypatch.setattr(infonce, "config_for", lambda *of: dataclasses.replace(shipped(*of), rows="cuda"))
    for name in ("prepare", "to_inputs"):
        monkeypatch.setattr(cuda, name, counted(name, getattr(cuda, name)))
    g = torch.Generator().manual_seed(0)
    taxa = torch.randint(-1, 12, (40, 2), generator=g).to(device)
    rank, taxon = (torch.randint(0, high, (50,), generator=g).to(device) for high in (2, 12))
    results = {}
    for backend, work in (("triton", dtype), ("reference", torch.float64)):
        x, y = (features(rows, 40, dtype, device, seed=rows).to(work).requires_grad_() for rows in (40, 50))
        scalars = [
            torch.tensor([value], device=device, dtype=work if work == torch.float64 else torch.float32)
            for value in (5.0, 0.7)
        ]
        scalars = [scalar.requires_grad_() for scalar in scalars]
        nll = level_infonce(x, y, taxa, rank, taxon, *scalars, geometry=geometry, space=space, backend=backend)
        loss = nll[0].sum() + nll[1].sum()
        results[backend] = [*nll, *torch.autograd.grad(loss, [x, y, *scalars], materialize_grads=True)]
    assert called == {"prepare": 4, "to_inputs": 2}
    tolerance = 1e-2 if dtype == torch.float16 else 2e-5
    for got, expected in zip(results["triton"], results["reference"], strict=True):
        assert (got.double() - expected).norm() <= tolerance * (1 + expected.norm())


def test_no_rows(device):
    curv, v = torch.ones(1, device=device), torch.empty(0, 64, device=device)
    prepared = cuda.prepare(v, None, curv, TANGENT, torch.float32, 64, False)
    assert prepared.n.shape == (0, 64)
    assert prepared.polar.shape == (0, 6)
    dr = torch.empty(0, device=device)
    assert cuda.to_inputs(v, None, v, dr, prepared.polar, curv, curv, TANGENT).shape == (0, 64)


def test_repeats_are_bitwise_equal(device):
    curv = torch.ones(1, device=device)
    v = features(9, 1024, torch.float32, device)
    once, again = (cuda.prepare(v, None, curv, TANGENT, torch.float32, 1024, True) for _ in range(2))
    assert torch.equal(once.n, again.n)
    assert torch.equal(once.polar, again.polar)


# -- errors


def arguments(**changed):
    v = torch.zeros(3, 8, dtype=torch.float16)
    return {
        "v": v, "order": None, "curv": torch.tensor(1.0), "space": TANGENT, "dtype": torch.float16, "width": 8,
        "tf32": False, **changed,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"v": torch.zeros(3, 8, dtype=torch.float64)}, r"v must be one of .*, got torch.float64"),
        ({"v": torch.zeros(8)}, r"v must be \(rows, D\), got \(8,\)"),
        ({"space": 4}, r"space must be one of .*hyperboloid.*, got 4"),
        ({"dtype": torch.bfloat16}, r"dtype of the product must be one of .*, got torch.bfloat16"),
        ({"dtype": torch.float64}, r"dtype of the product must be one of .*, got torch.float64"),
        ({"width": 7}, r"width must be at least the 8 columns of v, got 7"),
        ({"tf32": True}, r"tf32 rounds a product of torch.float32, got torch.float16"),
        ({"order": torch.zeros(3, dtype=torch.int64)}, r"order must be contiguous \(3,\) of torch.int32"),
        ({"order": torch.zeros(2, dtype=torch.int32)}, r"order must be .*, got contiguous \(2,\)"),
        ({"order": torch.zeros(6, dtype=torch.int32)[::2]}, r"order must be .*, got strided \(3,\)"),
        ({"curv": torch.ones(2)}, r"curv must be .*, got contiguous \(2,\)"),
        (
            {"curv": torch.tensor(1.0, dtype=torch.float64)},
            r"curv must be .*, got contiguous \(1,\) of torch.float64",
        ),
    ],
    ids=str,
)
def test_prepare_names_what_it_refuses(changed, message):
    with pytest.raises(ValueError, match=message):
        cuda.prepare(**arguments(**changed))


@pytest.mark.parametrize(
    ("name", "value"),
    [("dn", torch.zeros(3, 7)), ("dn", torch.zeros(2, 8)), ("dn", torch.zeros(3, 8, dtype=torch.float16)),
     ("dr", torch.zeros(3, 1)), ("polar", torch.zeros(3, 5)), ("factor", torch.zeros(2))],
)  # fmt: skip
def test_to_inputs_names_what_it_refuses(name, value):
    given = {
        "v": torch.zeros(3, 8), "order": None, "dn": torch.zeros(3, 8), "dr": torch.zeros(3),
        "polar": torch.zeros(3, 6), "factor": torch.ones(1), "curv": torch.ones(1), "space": UNIT,
    }  # fmt: skip
    with pytest.raises(ValueError, match=f"{name} must be"):
        cuda.to_inputs(**given | {name: value})


def test_a_missing_library_says_how_to_build_it(monkeypatch, tmp_path):
    monkeypatch.setattr(cuda, "LIBRARY", tmp_path / "none.so")
    assert "python csrc/cuda/build.py" in cuda.why_not(torch.device("cuda"))
    with pytest.raises(ValueError, match=r"none\.so is not built; python csrc/cuda/build\.py builds it"):
        cuda.prepare(**arguments())


def test_tensors_elsewhere_are_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(cuda, "LIBRARY", tmp_path / "library.so")
    cuda.LIBRARY.touch()
    with pytest.raises(ValueError, match="tensors are on cpu, not on a CUDA device"):
        cuda.prepare(**arguments())


def test_a_broken_library_says_so(tmp_path):
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"no library")
    with pytest.raises(RuntimeError, match=r"broken\.so does not load: .*; python csrc/cuda/build\.py"):
        cuda.load(broken)


def test_an_old_gpu_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(cuda, "LIBRARY", tmp_path)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla T4")
    assert cuda.why_not(torch.device("cuda", 0)) == "they need compute capability 8.0 or newer, Tesla T4 has 7.5"


# -- the build


def test_kernels_do_not_spill_and_fit(built):
    _, kernels = built
    assert Counter(kernel.arch for kernel in kernels) == {80: 36, 90: 36}
    for kernel in kernels:
        assert kernel.spills == kernel.stack == 0, kernel
        assert kernel.shared <= SHARED_LIMIT, kernel
        assert kernel.registers <= 128, kernel


def tool(name):
    """A binary utility of CUDA: on PATH, or the one that Triton brings."""
    if shutil.which(name):
        return shutil.which(name)
    triton = importlib.util.find_spec("triton")
    brought = Path(triton.origin).parent / "backends" / "nvidia" / "bin" / name if triton else Path()
    if not brought.is_file():
        pytest.skip(f"no {name}")
    return brought


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_library_loads_and_says_what_is_missing(built):
    path, _ = built
    x = torch.zeros(1, 8)
    arguments = (0, None, x, 2, 8, 1, None, x, x, 2, x, 1, 8, 8, UNIT, False)
    with pytest.raises(RuntimeError, match=r"bioclip_hc_prepare: CUDA error \d+, .*(driver|device)"):
        cuda.call(cuda.load(path), "bioclip_hc_prepare", *arguments)


@pytest.mark.parametrize("arch", [80, 90])
def test_rows_are_read_and_written_16_bytes_at_a_time(built, arch):
    """In the machine code of every kernel that holds rows: no load or store of a feature alone."""
    path, _ = built
    code = subprocess.run(
        [tool("cuobjdump"), "-sass", "-arch", f"sm_{arch}", path], check=True, capture_output=True, text=True
    ).stdout
    seen = Counter()
    for part in code.split("Function : ")[1:]:
        found = re.search(r"(prepare|to_inputs)ILi(\d+)ELi(\d+)E", part.partition("\n")[0])
        instructions = Counter(re.findall(r"\b(?:LDG|STG)\.E\S*|\b(?:LDL|STL)\b", part))
        name, held = found[1], int(found[2])
        seen[name, held] += 1
        assert not instructions["LDL"] + instructions["STL"]
        sizes = Counter("128" if ".128" in i else "16" if "16" in i else "other" for i in instructions)
        if held:
            assert "16" not in sizes, instructions
            assert any(i.startswith("LDG") and ".128" in i for i in instructions), instructions
            assert any(i.startswith("STG") and ".128" in i for i in instructions), instructions
    assert seen == {("prepare", 0): 6, ("prepare", 16): 6, ("prepare", 32): 12} | {
        ("to_inputs", 0): 3, ("to_inputs", 16): 3, ("to_inputs", 32): 6,
    }  # fmt: skip


def test_the_library_has_ptx_for_newer_gpus_and_no_runtime_of_its_own_to_find(built):
    path, _ = built
    listed = subprocess.run([tool("cuobjdump"), "-lptx", path], check=True, capture_output=True, text=True).stdout
    assert "sm_90" in listed
    library = path.read_bytes()
    assert b"libcudart.so" not in library


def test_the_command_builds(builder, tmp_path):
    try:
        builder.find_nvcc()
    except RuntimeError as error:
        pytest.skip(str(error))
    # the kernels are tested above: something small tells whether the command works
    script = tmp_path / "csrc" / "cuda" / "build.py"
    script.parent.mkdir(parents=True)
    (script.parent / "small.cu").write_text('extern "C" __global__ void small(float* x) { *x = 1; }\n')
    text = (FOLDER / "build.py").read_text(encoding="utf-8")
    script.write_text(text.replace('("prepare.cu", "to_inputs.cu")', '("small.cu",)'), encoding="utf-8")
    done = subprocess.run([sys.executable, script], check=True, capture_output=True, text=True)
    made = tmp_path / "bioclip_hc" / "kernels" / cuda.LIBRARY.name
    assert made.stat().st_size > 0
    assert [path.name for path in made.parent.iterdir()] == [made.name]
    assert re.search(r"MiB in .* s; 2 kernels for sm_80 and sm_90, .* registers, 0 bytes of spills", done.stdout)


def test_where_nvcc_is_missing_the_command_says_what_to_do(builder, monkeypatch, tmp_path):
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(builder.shutil, "which", lambda *_, **__: None)
    with pytest.raises(RuntimeError, match=r"nvcc is neither on PATH .* CUDA toolkit \(11\.8 or newer\)"):
        builder.build(tmp_path / "library.so")


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo 'Cuda compilation tools, release 11.2, V11.2.67'", "is of CUDA 11.2; sm_90 needs 11.8 or newer"),
        ("echo no version", r"is of CUDA \(it does not say\)"),
        (
            '[ "$1" = --version ] && echo release 13.0 || { echo no C++ compiler; exit 3; }',
            "3:\nno C\\+\\+ compiler",
        ),
    ],
)
def test_an_nvcc_that_fails_is_quoted(builder, tmp_path, script, message):
    nvcc = tmp_path / "nvcc"
    nvcc.write_text(f"#!/bin/sh\n{script}\n")
    nvcc.chmod(0o755)
    with pytest.raises(RuntimeError, match=message):
        builder.build(tmp_path / "library.so", str(nvcc))
    assert not (tmp_path / "library.so").exists()


# -- the benchmark


@pytest.fixture
def bench(monkeypatch):
    """benchmarks/bench_prepare.py as a module."""
    pytest.importorskip("triton")
    monkeypatch.syspath_prepend(str(FOLDER.parents[1] / "benchmarks"))
    return importlib.import_module("bench_prepare")


def test_the_benchmark_runs_and_tells_ways_that_disagree(bench, device, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(bench, "CALLS", 2)
    path = tmp_path / "prepare.json"
    smoke = ["--smoke", "--output", str(path), "--dtypes", "fp16", "tf32"]
    assert bench.main(smoke) == 0
    assert bench.main([*smoke, "--ordered", "--resume"]) == 0
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["card"]["torch"] == torch.__version__
    ways = Counter((row["op"], row["way"], row["dtype"], row["ordered"]) for row in content["rows"])
    assert len(ways) == 2 * 3 * 2 * 2
    assert set(ways.values()) == {1}
    sizes = {(row["op"], row["dtype"]): row["bytes"] for row in content["rows"] if not row["ordered"]}
    assert sizes["prepare", "fp16"] == 8 * 64 * (2 + 2) + 8 * 24
    assert sizes["to_inputs", "tf32"] == 8 * 64 * (4 + 4 + 4) + 8 * (4 + 24)
    assert "prepare, ordered: Triton's time over csrc/cuda's, geometric mean: " in capsys.readouterr().out
    wrong = bench.WAYS["prepare"] | {"cuda": lambda x: tuple(t * 1.01 for t in bench.triton_prepare(x))}
    monkeypatch.setitem(bench.WAYS, "prepare", wrong)
    assert bench.main(smoke) == 1
    assert "does not agree with Triton's: prepare of fp16, 8 x 64" in capsys.readouterr().out


def test_the_benchmark_counts_what_must_be_moved_and_means_geometrically(bench):
    row = {"op": "prepare", "dtype": "fp16", "width": 512, "ordered": False, "gb_per_s": 1.0}
    rows = [
        row | {"rows": rows, "way": way, "ms": {"p50": ms}}
        for rows, times in ((8, (0.001, 0.002, 0.001)), (16, (0.008, 0.001, 0.001)))
        for way, ms in zip(("triton", "cuda", "copy"), times, strict=True)
    ]
    assert bench.speedups(rows) == {"prepare": pytest.approx(2.0)}  # of 1/2 and 8
    assert "| prepare | fp16 | 16 | 512 | 8.0 | 1.0 | 8.00 |" in bench.table(rows)
    assert bench.by_shape(rows[:-1]).keys() == {("prepare", "fp16", 8, 512)}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_benchmark_says_so_and_fails(bench):
    done = subprocess.run([sys.executable, bench.__file__], capture_output=True, text=True)
    assert done.returncode == 1
    assert "This needs an NVIDIA GPU" in done.stderr


def test_without_the_library_the_benchmark_says_how_to_build_it(bench, monkeypatch, tmp_path):
    monkeypatch.setattr(cuda, "LIBRARY", tmp_path / "none.so")
    monkeypatch.setattr(bench, "require_gpu", lambda: None)
    with pytest.raises(SystemExit, match=r"none\.so is not built; python csrc/cuda/build\.py builds it"):
        bench.main([])
