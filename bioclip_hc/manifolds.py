"""The two spaces, and the scalars that shape them.

# rows of features (..., D) are tangent vectors at the origin
# Scalars are parameters of shape (1,): DeepSpeed cannot flatten 0-d ones. Bounds are functions of a free
# parameter, never edits of `.data`, which optimizers with fp32 masters would undo.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from bioclip_hc.kernels import exp_map0
from bioclip_hc.kernels.reference import lorentz_distance

MAX_LOGIT_SCALE = 100.0  # CLIP, section 2.5
CURVATURE_SPAN = 10.0  # MERU lets the curvature move between a tenth and ten times its start


class _ClampInward(torch.autograd.Function):
    """clamp whose gradient vanishes only where a descent step would lead further out, so that no value sticks."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: float, high: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.low, ctx.high = low, high
        return x.clamp(low, high)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        outward = ((x >= ctx.high) & (grad < 0)) | ((x <= ctx.low) & (grad > 0))
        return grad.masked_fill(outward, 0), None, None


class BoundedExp(nn.Module):
    """exp of a parameter of shape (1,), kept in [low, high]; low may be 0 and high infinite.

    Args:
        value: where it starts; clamped to the bounds.
        low, high: bounds of the value, not of its logarithm.
        learnable: False freezes it.
    """

    def __init__(self, value: float, low: float = 0.0, high: float = math.inf, learnable: bool = True) -> None:
        super().__init__()
        if not (0 <= low < high and value > 0):
            raise ValueError(f"need 0 <= low < high and value > 0, got low={low}, high={high}, value={value}")
        self.low = math.log(low) if low > 0 else -math.inf
        self.high = math.log(high)
        self.log = nn.Parameter(torch.tensor([min(max(math.log(value), self.low), self.high)]), learnable)

    def forward(self) -> Tensor:
        """(1,) fp32."""
        return _ClampInward.apply(self.log.float(), self.low, self.high).exp()

    @torch.no_grad()
    def at_bound(self) -> bool:
        """Whether the value sits on one of its bounds although it is free to move."""
        x = float(self.log)
        return self.log.requires_grad and not self.low < x < self.high


class Lorentz(nn.Module):
    """Hyperbolic space of curvature -c in the Lorentz model.

    Args:
        curv: c > 0 at the start.
        learnable: whether c trains; then it stays within [curv / 10, 10 curv], as MERU's does.
    """

    geometry = "lorentz"

    def __init__(self, curv: float = 1.0, learnable: bool = False) -> None:
        super().__init__()
        self.start = curv
        self.curvature = BoundedExp(curv, curv / CURVATURE_SPAN, curv * CURVATURE_SPAN, learnable)

    @property
    def curv(self) -> Tensor:
        """(1,) fp32, c."""
        return self.curvature()

    def project(self, v: Tensor) -> Tensor:
        """Tangent vectors (..., D) to space components (..., D) of points."""
        return exp_map0(v, self.curv)

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        """(M, N) geodesic distances of points (M, D) and (N, D) given by space components; for small sets."""
        with torch.autocast(x.device.type, enabled=False):
            return lorentz_distance(x, y, self.curv, "hyperboloid")

    def radius(self, v: Tensor) -> Tensor:
        """(...,) distance from the origin of the points of tangent vectors (..., D)."""
        return v.norm(dim=-1)


class Euclidean(nn.Module):
    """The unit sphere with the cosine, CLIP's space; it has no curvature."""

    geometry = "euclidean"
    start = 1.0

    @property
    def curv(self) -> Tensor:
        """(1,) fp32: 1, ignored by Euclidean operations."""
        return torch.ones(1)

    def project(self, v: Tensor) -> Tensor:
        """Feature vectors (..., D) to unit vectors (..., D)."""
        return nn.functional.normalize(v, dim=-1)

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        """(M, N) angles in radians between unit vectors."""
        return (x @ y.T).clamp(-1, 1).acos()

    def radius(self, v: Tensor) -> Tensor:
        """(...,) norms of the feature vectors, before they are normalised."""
        return v.norm(dim=-1)


def make_manifold(geometry: str, curv: float = 1.0, learnable: bool = False) -> Lorentz | Euclidean:
    """The manifold of that name.

    Raises:
        ValueError: a geometry that does not exist.
    """
    if geometry == "lorentz":
        return Lorentz(curv, learnable)
    if geometry == "euclidean":
        return Euclidean()
    raise ValueError(f"geometry must be 'lorentz' or 'euclidean', got {geometry!r}")
