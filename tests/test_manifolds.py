"""Bounded scalars and the two spaces."""

import math

import pytest
import torch

from bioclip_hc.kernels import exp_map0
from bioclip_hc.manifolds import BoundedExp, Euclidean, Lorentz, make_manifold


def test_a_bounded_scalar_has_one_element_and_stays_inside():
    scale = BoundedExp(14.0, low=2.0, high=100.0)
    assert scale.log.shape == scale().shape == (1,)
    assert scale().item() == pytest.approx(14)
    assert not scale.at_bound()
    for log, expected in ((20.0, 100.0), (-20.0, 2.0)):
        torch.nn.init.constant_(scale.log, log)
        assert scale().item() == pytest.approx(expected)
        assert scale.at_bound()
    assert BoundedExp(500.0, high=100.0)().item() == pytest.approx(100)
    assert BoundedExp(3.0).half()().dtype == torch.float32


@pytest.mark.parametrize(("start", "direction"), [(100.0, 1), (2.0, -1)])
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_a_value_at_its_bound_can_come_back(start, direction, optimizer):
    """Pushed outward it stays where it is, in its parameter too; pulled inward it moves at once."""
    scale = BoundedExp(start, low=2.0, high=100.0)
    steps = optimizer([scale.log], lr=1e-3, weight_decay=0.0)
    before = scale.log.item()
    for _ in range(5):
        steps.zero_grad()
        (-direction * scale()).sum().backward()
        steps.step()
    assert scale.log.item() == before
    steps.zero_grad()
    (direction * scale()).sum().backward()
    steps.step()
    assert (before - scale.log.item()) * direction > 0
    assert not scale.at_bound()


def test_inside_the_bounds_the_gradient_is_that_of_exp():
    scale = BoundedExp(7.0, high=100.0)
    scale().sum().backward()
    assert scale.log.grad.item() == pytest.approx(7)


def test_a_frozen_scalar_does_not_count_as_stuck():
    frozen = BoundedExp(1.0, high=1.0, learnable=False)
    assert not frozen.log.requires_grad
    assert not frozen.at_bound()
    assert BoundedExp(1.0, high=1.0).at_bound()


@pytest.mark.parametrize(("value", "low", "high"), [(0.0, 0.0, 1.0), (-1.0, 0.0, 1.0), (1.0, 2.0, 2.0), (1, -1, 2)])
def test_bounds_that_make_no_sense(value, low, high):
    with pytest.raises(ValueError, match=f"got low={low}, high={high}, value={value}"):
        BoundedExp(value, low, high)


def points(n, c, seed=0):
    v = torch.randn(n, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return v, exp_map0(v, c)


def test_lorentz_distances_are_a_metric():
    space = Lorentz(0.5).double()
    v, x = points(12, 0.5)
    d = space.distance(x, x)
    assert d.diagonal().abs().max() < 1e-7
    torch.testing.assert_close(d, d.T)
    assert (d[:, None, :] <= d[:, :, None] + d[None, :, :] + 1e-7).all()
    torch.testing.assert_close(space.distance(torch.zeros_like(x[:1]), x)[0], v.norm(dim=1), rtol=1e-6, atol=0)
    torch.testing.assert_close(space.radius(v), v.norm(dim=1))
    torch.testing.assert_close(space.project(v), x, rtol=1e-6, atol=1e-6)


def test_lorentz_distance_is_the_textbook_formula():
    c = 0.5
    _, x = points(5, c)
    _, y = points(6, c, seed=1)
    got = Lorentz(c).distance(x, y)
    for i, a in enumerate(x.tolist()):
        for j, b in enumerate(y.tolist()):
            a0, b0 = (math.sqrt(1 / c + sum(t * t for t in p)) for p in (a, b))
            inner = sum(s * t for s, t in zip(a, b, strict=True)) - a0 * b0
            assert got[i, j].item() == pytest.approx(math.acosh(-c * inner) / math.sqrt(c), rel=1e-6)


def test_autocast_does_not_reach_lorentz_distance():
    _, x = points(5, 1.0)
    expected = Lorentz().distance(x.float(), x.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(Lorentz().distance(x.float(), x.float()), expected)


def test_lorentz_distance_of_equal_points_has_a_finite_gradient():
    _, x = points(3, 1.0)
    x = x.float().requires_grad_()
    d = Lorentz().distance(x, x)
    assert torch.autograd.grad(d.sum(), x)[0].isfinite().all()
    assert d.diagonal().max() < 5e-3


def test_curvature_is_fixed_or_kept_within_ten_times_its_start():
    assert not Lorentz(2.0).curvature.log.requires_grad
    free = Lorentz(2.0, learnable=True)
    assert free.curv.item() == pytest.approx(2)
    for log, bound in ((9.0, 20.0), (-9.0, 0.2)):
        torch.nn.init.constant_(free.curvature.log, log)
        assert free.curv.item() == pytest.approx(bound)


def test_euclidean_space_is_the_sphere():
    space = Euclidean()
    v = torch.tensor([[3.0, 0.0], [0.0, 0.5], [-1.0, 0.0]])
    x = space.project(v)
    torch.testing.assert_close(x.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(space.distance(x, x[:1])[:, 0], torch.tensor([0.0, math.pi / 2, math.pi]))
    assert space.radius(v).tolist() == [3.0, 0.5, 1.0]
    assert space.curv.tolist() == [1.0]
    assert list(space.parameters()) == []


def test_manifolds_by_name():
    assert isinstance(make_manifold("euclidean"), Euclidean)
    lorentz = make_manifold("lorentz", 0.3, learnable=True)
    assert lorentz.start == 0.3
    assert lorentz.curvature.log.requires_grad
    with pytest.raises(ValueError, match="geometry must be 'lorentz' or 'euclidean', got 'poincare'"):
        make_manifold("poincare")
