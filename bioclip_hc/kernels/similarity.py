"""Logits of a block of images and texts as one product and a map of it, for work that needs them all for a moment.

# b images, n texts, D embed

`rank_topk` and `level_infonce` reduce logits as they arise. What needs every logit of a block (sums along the
paths of a tree) takes them from here, and keeps none: texts are rows and images columns, so that what belongs to a
text is contiguous. In Lorentz geometry the product is cosh(sqrt(c) d) = x_0 y_0 - <x, y> of points scaled to
curvature -1; with r = sqrt(c) d(0, x) its rounding is some 1e-7 cosh(r_i) cosh(r_j).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bioclip_hc.kernels.objective import check_geometry, check_positive, compute_dtype, one_element
from bioclip_hc.kernels.reference import MAX_RADIUS, sinhc, unit


class Similarity:
    """The geometry of a call, checked once.

    gain: a logit in bits (logits over ln 2) is gain times what `block` gives.

    Args: as in `level_infonce`; like: a tensor of the features' dtype and device.

    Raises:
        ValueError: naming the argument, the value and what it should be.
    """

    def __init__(
        self, scale: Tensor | float, curv: Tensor | float, geometry: str, space: str, like: Tensor
    ) -> None:
        check_geometry(geometry, space)
        self.geometry, self.space = geometry, space
        self.curv = one_element("curv", curv, like)
        scale = float(one_element("scale", scale, like))
        if geometry == "lorentz":
            check_positive("curv", self.curv)
            self.gain = -scale / math.sqrt(float(self.curv))  # distances are taken as log2 e^(sqrt(c) d)
        else:
            self.gain = scale / math.log(2)

    def images(self, v: Tensor) -> Tensor:
        """(b, K) factors of images v (b, D), fp32 or float64."""
        return self._factors(v, -1.0)

    def texts(self, v: Tensor) -> Tensor:
        """(n, K) factors of texts v (n, D)."""
        return self._factors(v, 1.0)

    def block(self, texts: Tensor, images: Tensor, out: Tensor, scratch: Tensor) -> Tensor:
        """(n, b) cosines, or distances as log2 e^(sqrt(c) d), in `out`; both buffers are (n, b)."""
        product = torch.mm(texts, images.T, out=out)
        if self.geometry == "euclidean":
            return product
        product.clamp_(min=1)  # cosh; rounding may fall short
        root = torch.mul(product, product, out=scratch).sub_(1).sqrt_()
        return product.add_(root).log2_()

    def _factors(self, v: Tensor, sign: float) -> Tensor:
        v = v.to(compute_dtype(v))
        if self.space == "unit":
            return v
        norm = torch.linalg.vector_norm(v, dim=1)
        if self.geometry == "euclidean":
            return unit(v, norm)
        root = self.curv.sqrt()
        r = root * norm
        if self.space == "tangent":
            beyond = torch.where(r > MAX_RADIUS, MAX_RADIUS / r, 1)
            r = r.clamp_max(MAX_RADIUS)
            root = root * beyond * sinhc(r)
        space = v * root.reshape(-1, 1)
        time = r.cosh() if self.space == "tangent" else (1 + r * r).sqrt()
        return torch.cat([space * sign, time[:, None]], 1)
