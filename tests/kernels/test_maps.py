"""Maps between tangent space and hyperboloid, and the Lorentz inner product."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bioclip_hc.kernels import exp_map0, log_map0, lorentz_inner

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
@pytest.mark.parametrize("function", [exp_map0, log_map0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_maps_and_their_gradients_are_finite_everywhere(function, length, dtype):
    v = torch.tensor([[0.6, 0.8]], dtype=dtype).mul(length).requires_grad_()
    c = torch.ones(1, dtype=dtype, requires_grad=True)
    out = function(v, c)
    for x in (out, *torch.autograd.grad(out.sum(), [v, c])):
        assert x.isfinite().all()


@pytest.mark.parametrize("function", [exp_map0, log_map0])
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
