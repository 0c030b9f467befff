"""Maps between tangent space and hyperboloid, and the Lorentz inner product."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bioclip_hc.kernels import exp_map0, log_map0, lorentz_inner, maps
from bioclip_hc.kernels.backends import BACKENDS, why_not

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
needs_triton = pytest.mark.skipif(why_not("triton", DEVICE) is not None, reason="no GPU, and no TRITON_INTERPRET=1")
each_backend = pytest.mark.parametrize(
    "backend", [pytest.param(b, marks=needs_triton) if b == "triton" else b for b in BACKENDS]
)
each_map = pytest.mark.parametrize("function", [exp_map0, log_map0])
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])

curvatures = st.floats(0.05, 20)
vectors = st.lists(st.floats(-1.3, 1.3), min_size=3, max_size=3)  # under the clamp of the radius


@settings(max_examples=50, deadline=None)
@given(vectors, curvatures)
def test_exp_map0_is_the_textbook_formula(v, c):
    norm = math.hypot(*v)
    r = math.sqrt(c) * norm
    factor = math.sinh(r) / r if r > 1e-6 else 1.0
    got = exp_map0(torch.tensor(v, dtype=torch.float64), c)
    torch.testing.assert_close(got, torch.tensor([factor * x for x in v], dtype=torch.float64))


@settings(max_examples=50, deadline=None)
@given(vectors, curvatures)
def test_log_map0_undoes_exp_map0(v, c):
    v = torch.tensor(v, dtype=torch.float64)
    torch.testing.assert_close(log_map0(exp_map0(v, c), c), v)


@settings(max_examples=50, deadline=None)
@given(vectors, vectors, curvatures)
def test_lorentz_inner_is_at_most_minus_one_over_c(x, y, c):
    x0, y0 = (math.sqrt(1 / c + sum(a * a for a in v)) for v in (x, y))
    expected = sum(a * b for a, b in zip(x, y, strict=True)) - x0 * y0
    x, y = (torch.tensor([v], dtype=torch.float64) for v in (x, y))
    got = lorentz_inner(x, y, c)
    assert float(got) == pytest.approx(expected, abs=1e-10)
    assert float(got) <= -1 / c + 1e-9
    assert float(lorentz_inner(x, x, c)) == pytest.approx(-1 / c)
    torch.testing.assert_close(lorentz_inner(y, x, c), got)


@pytest.mark.parametrize("length", [0.0, 1e-30, 1e-5, 0.99e-4, 1.01e-4, 1.0, 9.0, 20.0, 1e6])
@each_map
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_maps_and_their_gradients_are_finite_everywhere(function, length, dtype):
    v = torch.tensor([[0.6, 0.8]], dtype=dtype).mul(length).requires_grad_()
    c = torch.ones(1, dtype=dtype, requires_grad=True)
    out = function(v, c)
    for x in (out, *torch.autograd.grad(out.sum(), [v, c])):
        assert x.isfinite().all()


@each_map
@pytest.mark.parametrize("length", [1e-5, 0.5, 3.0])
def test_gradients(function, length):
    v = (torch.tensor([[0.6, 0.8], [1.0, -0.1]], dtype=torch.float64) * length).requires_grad_()
    c = torch.tensor([0.7], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(function, (v, c), eps=1e-7 * length)


def test_the_radius_is_clamped_as_merus():
    """sinh of at most asinh(2^15): space components of length 2^15 at most."""
    far = exp_map0(torch.tensor([[50.0, 0.0], [0.0, 5e4]]))
    torch.testing.assert_close(far, torch.tensor([[2.0**15, 0.0], [0.0, 2.0**15]]))


def test_half_precision_is_computed_in_fp32_and_shapes_are_kept():
    v = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)).half()
    assert exp_map0(v).dtype == torch.float32
    assert exp_map0(v).shape == (2, 3, 4)
    assert torch.equal(exp_map0(v), exp_map0(v.float()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(lorentz_inner(v[0], v[1]), lorentz_inner(v[0].float(), v[1].float()))


def test_a_curvature_has_one_element():
    with pytest.raises(ValueError, match=r"curv must have one element, got shape \(2,\)"):
        exp_map0(torch.zeros(3), torch.ones(2))


@each_backend
@pytest.mark.parametrize("curv", [0.0, -1.5, math.nan])
def test_a_curvature_is_positive(backend, curv):
    if backend == "triton" and DEVICE.type == "cuda":
        pytest.skip("a GPU would have to be waited for; its stream fails instead")
    x = torch.ones(2, 3)
    for call in (exp_map0, log_map0, lambda x, c, backend: lorentz_inner(x, x, c, backend=backend)):
        with pytest.raises(ValueError, match=rf"curv must be positive, got {curv}"):
            call(x, curv, backend=backend)


@each_map
def test_a_map_takes_float_vectors(function):
    with pytest.raises(ValueError, match=r"takes a float tensor \(..., D\), got torch.int64 of shape \(2, 3\)"):
        function(torch.ones(2, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"of shape \(\)"):
        function(torch.tensor(1.0))


# -- the GPU kernels, against the plain formulas in float64


@pytest.fixture
def poison(monkeypatch):
    """Fresh memory is NaN, so that a hole left by a kernel shows."""
    fresh = torch.Tensor.new_empty

    def poisoned(self, *args, **kwargs):
        out = fresh(self, *args, **kwargs)
        return out.fill_(math.nan) if out.is_floating_point() else out.fill_(-(10**6))

    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned)


def spread_rows(shape, dtype, largest=5.0, seed=0):
    """(..., D) vectors whose lengths run from 1e-3 to `largest`, with a zero vector among them."""
    g = torch.Generator().manual_seed(seed)
    v = torch.nn.functional.normalize(torch.randn(shape, generator=g), dim=-1)
    rows = v.view(math.prod(shape[:-1]), shape[-1])
    rows *= torch.logspace(-3, math.log10(largest), len(rows))[:, None]
    rows[1:2] = 0
    return v.to(DEVICE, dtype)


def with_gradients(function, *inputs, grad):
    """function(*inputs) and the gradients of <grad, it>."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    out = function(*inputs)
    return out.detach(), *torch.autograd.grad(out, inputs, grad.to(out.dtype))


def assert_rows_close(got, want, tolerance):
    """Each row (a vector) to a tolerance relative to its length; a row that should be zero is."""
    error = (got.double() - want).norm(dim=-1)
    assert (error <= tolerance * want.norm(dim=-1)).all(), float((error / want.norm(dim=-1)).max())


def rounding(dtype):
    """What storing a gradient in that dtype costs, over fp32's arithmetic."""
    return 3e-6 if dtype == torch.float32 else torch.finfo(dtype).eps


@needs_triton
@each_map
@each_dtype
@pytest.mark.parametrize("shape", [(1, 1), (23, 37), (5, 257), (2, 3, 600), (7,), (0, 4), (4, 0)])
def test_kernels_of_the_maps(poison, function, dtype, shape):
    v, c = spread_rows(shape, dtype), torch.tensor(0.7, device=DEVICE)
    grad = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    out, dv, dc = with_gradients(lambda *x: function(*x, backend="triton"), v, c, grad=grad)
    expected, expected_dv, expected_dc = with_gradients(function, v.double(), c.double(), grad=grad)
    assert (out.dtype, dv.dtype, dc.dtype) == (torch.float32, dtype, torch.float32)
    assert_rows_close(out, expected, 2e-6)
    assert_rows_close(dv, expected_dv, rounding(dtype))
    scale = float((grad.double() * expected).abs().sum())  # of the terms that the curvature's gradient sums
    assert abs(float(dc) - float(expected_dc)) <= 1e-6 * max(scale, abs(float(expected_dc)))


@needs_triton
@each_map
@pytest.mark.parametrize("length", [1e-4, 0.03, 0.49, 0.51, 2.0, 10.0, 11.05, 11.1, 40.0, 1e6])
def test_a_row_of_any_length(function, length):
    """Both sides of where a series takes over, of the clamp of the radius (11.09), and far out."""
    v, c = torch.tensor([[0.6, 0.8]], device=DEVICE) * length, torch.tensor(1.0, device=DEVICE)
    grad = torch.tensor([[0.7, 0.1]], device=DEVICE)
    got = with_gradients(lambda *x: function(*x, backend="triton"), v, c, grad=grad)
    expected = with_gradients(function, v.double(), c.double(), grad=grad)
    for x, y in zip(got, expected, strict=True):
        assert_rows_close(x.reshape(1, -1), y.reshape(1, -1), 1e-5)


@needs_triton
@each_map
def test_at_the_origin_a_map_is_the_identity(function):
    grad = torch.tensor([[1.0, -2.0, 0.5]], device=DEVICE)
    zero, c = torch.zeros_like(grad), torch.tensor(3.0, device=DEVICE)
    out, dv, dc = with_gradients(lambda *x: function(*x, backend="triton"), zero, c, grad=grad)
    assert torch.equal(out, zero)
    assert torch.equal(dv, grad)
    assert float(dc) == 0


@needs_triton
@each_map
def test_rows_may_lie_anyhow(function):
    whole = spread_rows((12, 10), torch.float32)
    for v in (whole.T, whole[::2, 1::3], whole.view(3, 4, 10).transpose(0, 2), whole[:1].expand(4, 10)):
        c, grad = torch.tensor(0.7, device=DEVICE), torch.ones((), device=DEVICE).expand(v.shape)
        got = with_gradients(lambda *x: function(*x, backend="triton"), v, c, grad=grad)
        dense = with_gradients(lambda *x: function(*x, backend="triton"), v.contiguous(), c, grad=grad.contiguous())
        for x, y in zip(got, dense, strict=True):
            assert torch.equal(x, y)


@needs_triton
@pytest.mark.parametrize(
    ("dtype", "other"),
    [(torch.float32,) * 2, (torch.float16,) * 2, (torch.bfloat16,) * 2, (torch.float16, torch.bfloat16)],
)
@pytest.mark.parametrize(("M", "N", "D"), [(1, 1, 1), (63, 17, 37), (17, 40, 16), (0, 3, 4), (3, 0, 4), (3, 2, 0)])
def test_kernel_of_the_inner_product(poison, dtype, other, M, N, D):
    x, y = spread_rows((M, D), dtype), spread_rows((N, D), other, seed=1)
    c = torch.tensor(0.7, device=DEVICE)
    grad = torch.randn(M, N, generator=torch.Generator().manual_seed(2)).to(DEVICE)
    out, *gradients = with_gradients(lambda *x: lorentz_inner(*x, backend="triton"), x, y, c, grad=grad)
    inputs = (x.double(), y.double(), c.double())
    expected, *expected_gradients = with_gradients(lorentz_inner, *inputs, grad=grad)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out.double(), expected, rtol=1e-6, atol=2e-5)  # times are up to 5: 25 fp32 epsilons
    assert [g.dtype for g in gradients] == [dtype, other, torch.float32]
    for got, want, kind in zip(gradients, expected_gradients, (dtype, other, torch.float32), strict=True):
        atol = torch.finfo(kind).tiny * torch.finfo(kind).eps  # the least number that it holds
        atol += 2 * rounding(kind) * float(want.abs().max()) if want.numel() else 0
        torch.testing.assert_close(got.double(), want, rtol=rounding(kind), atol=atol)


@needs_triton
def test_the_inner_product_of_points_far_out_keeps_its_digits_at_x_equal_y():
    """Where times and product cancel, what is left is -1/c to rounding of |x|^2."""
    x = spread_rows((9, 33), torch.float32, largest=30.0)
    error = (lorentz_inner(x, x, 2.0, backend="triton").diagonal() + 0.5).abs()
    assert (error <= 4e-7 * (1 + x.square().sum(1))).all()


def operators():
    c = torch.tensor(0.7, device=DEVICE)
    v, w = (spread_rows((rows, 7), torch.float16) for rows in (5, 3))
    grad = spread_rows((5, 7), torch.float32, seed=1)
    for operator in (maps._exp_map0, maps._log_map0):
        yield operator, (v.clone().requires_grad_(), c.clone().requires_grad_(), "triton")
    for operator in (torch.ops.bioclip_hc.exp_map0_backward, torch.ops.bioclip_hc.log_map0_backward):
        yield operator.default, (grad, v, c, "triton")
    yield maps._lorentz_inner, (v.clone().requires_grad_(), w.clone().requires_grad_(), c.clone().requires_grad_())


@needs_triton
@pytest.mark.parametrize("operator", range(5))
def test_opcheck(operator):
    torch.library.opcheck(*list(operators())[operator])


@each_backend
@pytest.mark.parametrize("name", ["exp_map0", "log_map0", "lorentz_inner"])
def test_compile_sees_one_graph(backend, name):
    def call(v, w, c):
        if name == "lorentz_inner":
            return lorentz_inner(v, w, c, backend=backend)
        return (exp_map0 if name == "exp_map0" else log_map0)(v, c, backend=backend)

    torch.compiler.reset()
    inputs = [spread_rows((rows, 7), torch.float32) for rows in (5, 3)] + [torch.tensor([0.7], device=DEVICE)]
    grad = torch.randn(5, 3 if name == "lorentz_inner" else 7, generator=torch.Generator().manual_seed(0)).to(
        DEVICE
    )
    used = inputs if name == "lorentz_inner" else [inputs[0], inputs[2]]

    def run(f):
        leaves = [x.clone().requires_grad_() for x in inputs]
        out = f(*leaves)
        wanted = [leaf for leaf, x in zip(leaves, inputs, strict=True) if any(x is u for u in used)]
        return out, *torch.autograd.grad(out, wanted, grad)

    for got, want in zip(run(torch.compile(call, fullgraph=True, backend="aot_eager")), run(call), strict=True):
        torch.testing.assert_close(got, want)


@each_backend
@each_map
def test_autocast_changes_nothing(backend, function):
    v, c = spread_rows((5, 7), torch.float32), torch.tensor(0.7, device=DEVICE)
    grad = spread_rows((5, 7), torch.float32, seed=1)
    plain = with_gradients(lambda *x: function(*x, backend=backend), v, c, grad=grad)
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
        cast = with_gradients(lambda *x: function(*x, backend=backend), v, c, grad=grad)
    for x, y in zip(plain, cast, strict=True):
        assert torch.equal(x, y)


@needs_triton
def test_autocast_does_not_reach_the_products_of_the_inner_products_gradient():
    x, y, c = (
        spread_rows((5, 7), torch.float32),
        spread_rows((3, 7), torch.float32),
        torch.tensor(0.7, device=DEVICE),
    )
    grad = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    plain = with_gradients(lambda *a: lorentz_inner(*a, backend="triton"), x, y, c, grad=grad)
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
        cast = with_gradients(lambda *a: lorentz_inner(*a, backend="triton"), x, y, c, grad=grad)
    for a, b in zip(plain, cast, strict=True):
        assert torch.equal(a, b)


@needs_triton
@each_map
def test_kernels_are_differentiable_once_and_say_so(function):
    v = torch.ones(2, 3, device=DEVICE, requires_grad=True)
    (dv,) = torch.autograd.grad(function(v, backend="triton").sum(), v, create_graph=True)
    with pytest.raises(RuntimeError, match=rf"{function.__name__} of backends .* is differentiable once"):
        torch.autograd.grad(dv.sum(), v)


@each_map
def test_the_plain_formulas_are_differentiable_twice(function):
    v = torch.tensor([[0.3, -0.4], [1.0, 2.0]], dtype=torch.float64, requires_grad=True)
    c = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(function, (v, c))


@needs_triton
def test_float64_is_refused_by_name():
    with pytest.raises(ValueError, match=r"backend .triton. cannot run here: .*not float64"):
        exp_map0(torch.ones(2, 3, dtype=torch.float64, device=DEVICE), backend="triton")
