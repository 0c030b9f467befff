"""Maps between the tangent space at the origin and the hyperboloid, and the Lorentz inner product.

# M, N points, D embed; points are given by their space components
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bioclip_hc.kernels import reference
from bioclip_hc.kernels.backends import choose_backend
from bioclip_hc.kernels.objective import check_features, check_positive, compute_dtype, one_element

Map = Callable[[Tensor, Tensor], Tensor]


def exp_map0(v: Tensor, curv: Tensor | float = 1.0, *, backend: str | None = None) -> Tensor:
    """Exponential map at the origin: tangent vectors (..., D) to space components (..., D) of curvature -curv.

    The radius sqrt(curv)|v| is clamped to asinh(2^15), as MERU does. Computed in fp32 (float64 for float64).

    Args:
        v: (..., D) float.
        curv: one element, c > 0; gradients flow to it too.
        backend: "reference" or "tiled" (the same, differentiable any number of times), "cpu" or "triton" (once), or
            None: triton on a GPU, cpu elsewhere, tiled where that cannot run or for float64.

    Raises:
        ValueError: naming the argument, the value and what it should be.
    """
    return _map(reference.exp_map0, _exp_map0, v, curv, backend)


def log_map0(x: Tensor, curv: Tensor | float = 1.0, *, backend: str | None = None) -> Tensor:
    """Logarithmic map at the origin, the inverse of exp_map0 below its clamp: (..., D) to (..., D).

    Arguments and errors are those of `exp_map0`.
    """
    return _map(reference.log_map0, _log_map0, x, curv, backend)


def _map(
    plain: Map, fused: Callable[[Tensor, Tensor, str], Tensor], v: Tensor, curv: Tensor | float, backend: str | None
) -> Tensor:
    if not v.ndim or not v.is_floating_point():
        raise ValueError(f"{plain.__name__} takes a float tensor (..., D), got {v.dtype} of shape {tuple(v.shape)}")
    c = one_element("curv", curv, v)
    with torch.autocast(v.device.type, enabled=False):
        chosen = choose_backend(backend, v.device, v.dtype)
        if chosen in ("cpu", "triton"):
            return fused(v, c, chosen)
        _check_curvature(c)
        return plain(v.to(compute_dtype(v)), c)


def lorentz_inner(x: Tensor, y: Tensor, curv: Tensor | float = 1.0, *, backend: str | None = None) -> Tensor:
    """(M, N) Lorentz inner products of points given by their space components, x (M, D) and y (N, D).

    Between -infinity and -1/curv, which is reached at x = y. The product of float16 or bfloat16 points is that of
    the numbers as they are, summed in fp32; on a GPU that of float32 points obeys
    torch.backends.cuda.matmul.allow_tf32. Other arguments and errors are those of `exp_map0`.
    """
    check_features(x, y)
    c = one_element("curv", curv, x)
    with torch.autocast(x.device.type, enabled=False):
        if choose_backend(backend, x.device, x.dtype) == "triton":
            result: Tensor = _lorentz_inner(x, y, c)
            return result
        _check_curvature(c)
        return reference.lorentz_inner(x.to(compute_dtype(x)), y.to(compute_dtype(y)), c)


def _check_curvature(curv: Tensor) -> None:
    if not torch.compiler.is_compiling():  # a graph cannot depend on a value
        check_positive("curv", curv)


# -- the operators of the fused kernels ------------------------------------------------------------------------


def _implementation(backend: str) -> tuple[Any, Any]:
    """The forward and backward that run."""
    if backend == "cpu":
        from bioclip_hc.kernels import cpu

        return cpu.map_forward, cpu.map_backward
    from bioclip_hc.kernels import triton_maps

    return triton_maps.forward, triton_maps.backward


def _map_operator(name: str) -> Callable[[Tensor, Tensor, str], Tensor]:
    """Operators of one map and of its gradient, in a row's v and in curv."""

    @torch.library.custom_op(f"bioclip_hc::{name}", mutates_args=())
    def forward(v: Tensor, curv: Tensor, backend: str) -> Tensor:
        check_positive("curv", curv)
        with torch.cuda.device_of(v):
            result: Tensor = _implementation(backend)[0](name, v, curv)
        return result

    @torch.library.custom_op(f"bioclip_hc::{name}_backward", mutates_args=())
    def backward(grad: Tensor, v: Tensor, curv: Tensor, backend: str) -> tuple[Tensor, Tensor]:
        with torch.cuda.device_of(v):
            result: tuple[Tensor, Tensor] = _implementation(backend)[1](name, grad, v, curv)
        return result

    def remember(ctx: Any, inputs: tuple[Tensor, Tensor, str], output: Tensor) -> None:
        *tensors, ctx.backend = inputs
        ctx.save_for_backward(*tensors)

    def differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        gradients: tuple[Tensor, Tensor] = backward(grad, *ctx.saved_tensors, ctx.backend)
        return (*gradients, None)

    def refuse(ctx: Any, *_: Any) -> None:
        raise RuntimeError(
            f"{name} of backends 'cpu' and 'triton' is differentiable once: call backward without create_graph, or "
            "take backend='reference'"
        )

    def shape(grad: Tensor, v: Tensor, curv: Tensor, backend: str) -> tuple[Tensor, Tensor]:
        return v.new_empty(v.shape), torch.empty_like(curv)

    forward.register_fake(lambda v, curv, backend: v.new_empty(v.shape, dtype=torch.float32))
    backward.register_fake(shape)
    forward.register_autograd(differentiate, setup_context=remember)
    backward.register_autograd(refuse)
    return forward


_exp_map0, _log_map0 = _map_operator("exp_map0"), _map_operator("log_map0")


@torch.library.custom_op("bioclip_hc::lorentz_inner", mutates_args=())
def _lorentz_inner(x: Tensor, y: Tensor, curv: Tensor) -> Tensor:
    from bioclip_hc.kernels import triton_maps

    check_positive("curv", curv)
    with torch.cuda.device_of(x):
        return triton_maps.lorentz_inner(x, y, curv)


@_lorentz_inner.register_fake
def _(x: Tensor, y: Tensor, curv: Tensor) -> Tensor:
    return x.new_empty((len(x), len(y)), dtype=torch.float32)


def _remember(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Two library products, as the matrix of gradients is there anyway.

    With x0 = sqrt(1/c + |x|^2): d<x, y>/dx = y - (y0 / x0) x, and dx0/dc = -1 / (2 c^2 x0).
    """
    x, y, curv = ctx.saved_tensors
    with torch.autocast(x.device.type, enabled=False):  # backward may be called inside an autocast block
        v, w = x.float(), y.float()
        v0, w0 = ((1 / curv + p.square().sum(1)).sqrt() for p in (v, w))
        pull_x, pull_y = (grad @ w0) / v0, (grad.T @ v0) / w0
        dx = torch.addmm(v * -pull_x[:, None], grad, w).to(x.dtype)
        dy = torch.addmm(w * -pull_y[:, None], grad.T, v).to(y.dtype)
        total = pull_x.sum(dtype=torch.float64) + pull_y.sum(dtype=torch.float64)
        return dx, dy, (total / (2 * curv.double().square())).to(curv.dtype)


_lorentz_inner.register_autograd(_differentiate, setup_context=_remember)
