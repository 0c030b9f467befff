"""What a sample is, and how large its parts may be."""

from __future__ import annotations

import os
from typing import NamedTuple

from bioclip_hc.taxonomy import Lineage

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
MAX_IMAGE_BYTES = 64 << 20  # a 100-megapixel photograph in good quality
MAX_TEXT_BYTES = 64 << 10  # the longest names known, hundreds of times over

PathLike = str | os.PathLike[str]


class Sample(NamedTuple):
    """One picture as it lies in a shard, not decoded."""

    key: str
    image: bytes
    lineage: Lineage
    common_name: str = ""
