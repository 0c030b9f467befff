"""Labelled photographs, wherever they lie: what evaluation needs of them.

# N photographs
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from bioclip_hc.data.sample import MAX_IMAGE_BYTES, PathLike, Sample
from bioclip_hc.taxonomy import Lineage, Taxonomy


class Photographs(Protocol):
    """N labelled photographs in a fixed order; a `ShardSet` is one.

    lineages: the distinct lineages; lineage_index: (N,) int64, each photograph's row in `lineages`.
    """

    lineages: list[Lineage]
    lineage_index: np.ndarray

    def __len__(self) -> int: ...

    def name(self, i: int) -> str:
        """Where photograph i is, for people: a path, or a shard and a key."""
        ...

    def read(self, i: int) -> Sample:
        """Photograph i, not decoded; raises OSError where it cannot be read."""
        ...


def unresolved(photographs: Photographs, taxonomy: Taxonomy) -> str:
    """A sentence on the samples that name a taxon which the taxonomy lacks; "" where there are none."""
    named = np.array([[bool(name) for name in lineage] for lineage in photographs.lineages])
    lacks = np.any(named & (taxonomy.encode_many(photographs.lineages) < 0), axis=1)
    if not lacks.any():
        return ""
    first = " > ".join(filter(None, photographs.lineages[int(lacks.argmax())]))
    return (
        f"{int(lacks[photographs.lineage_index].sum())} of {len(photographs)} samples name taxa that the taxonomy "
        f"lacks, and count only at the ranks above them; the first: {first}"
    )


class PhotographFiles:
    """Photographs that are files.

    Args:
        files: (N,) paths.
        lineages: (N,) seven names each, "" where unknown.
        common_names: (N,), "" where there is none; by default there are none.

    Raises:
        ValueError: lists of different lengths.
    """

    def __init__(
        self, files: Sequence[PathLike], lineages: Sequence[Lineage], common_names: Sequence[str] | None = None
    ) -> None:
        self.files = [Path(file) for file in files]
        self._common = list(common_names) if common_names is not None else [""] * len(self.files)
        if not len(self.files) == len(lineages) == len(self._common):
            raise ValueError(
                f"every file needs one lineage and one common name, got {len(self.files)} files, "
                f"{len(lineages)} lineages and {len(self._common)} common names"
            )
        row: dict[Lineage, int] = {}
        self.lineage_index = np.array([row.setdefault(lineage, len(row)) for lineage in lineages], dtype=np.int64)
        self.lineages = list(row)

    def __len__(self) -> int:
        return len(self.files)

    def name(self, i: int) -> str:
        """The file's path."""
        return str(self.files[i])

    def read(self, i: int) -> Sample:
        """Photograph i, not decoded.

        Raises:
            OSError: it is missing, no regular file, or larger than a photograph may be.
        """
        file = self.files[i]
        if not file.is_file():  # a device or a pipe might never end
            raise FileNotFoundError(f"{file} is not there, or no file")
        with file.open("rb") as opened:
            image = opened.read(MAX_IMAGE_BYTES + 1)
        if len(image) > MAX_IMAGE_BYTES:
            raise OSError(f"{file} is larger than {MAX_IMAGE_BYTES >> 20} MiB, the most for a photograph")
        return Sample(self.name(i), image, self.lineages[self.lineage_index[i]], self._common[i])
