"""Fused operations of hierarchical contrastive learning; needs torch and numpy only.

`level_infonce` carries the whole product: CLIP's loss, MERU's contrastive term and the level-restricted loss of
BioCLIP-HC are calls of it. It never holds the (images, texts) matrix. `level_infonce_part` is the same for images
that are a part of a batch, as a process of several has them.
"""

from bioclip_hc.kernels.maps import exp_map0, log_map0, lorentz_inner
from bioclip_hc.kernels.ops import level_infonce, level_infonce_part
from bioclip_hc.kernels.topk import rank_topk

__all__ = ["exp_map0", "level_infonce", "level_infonce_part", "log_map0", "lorentz_inner", "rank_topk"]
