"""Shards: the tar format of TreeOfLife-10M, and a reader that visits every sample exactly once.

A shard is a plain tar. A sample is a run of members with one key (the name up to the first dot of its base name):

    KEY.jpg (jpeg, png, webp)   the picture
    KEY.taxonTag.txt            "a photo of kingdom Animalia phylum Chordata class Aves order  family Turdidae
                                genus Turdus species migratorius."
    KEY.sci.txt, KEY.com.txt    "a photo of Turdus migratorius.", "a photo of American robin."

`captions` has the other texts that there may be. A sample without a tagged one has its name looked up (`names`).

Shards are data, never code: only regular members with these endings are opened, nothing is unpacked to disk, and
a damaged sample or tar ends up in `bad` with its reason, never in an exception from the depths of a parser.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bioclip_hc.data.captions import CAPTION, Label
from bioclip_hc.data.index import shard_index
from bioclip_hc.data.keys import decoded, encoded, repeated_keys
from bioclip_hc.data.names import Found, NameTable, Resolution
from bioclip_hc.data.photographs import unresolved
from bioclip_hc.data.quarantine import BadSample
from bioclip_hc.data.sample import PathLike, Sample
from bioclip_hc.data.sources import expand_shards
from bioclip_hc.taxonomy import Lineage, Taxonomy

MAX_OPEN_SHARDS = 512  # half of the usual limit of 1024 descriptors; further shards are opened at each read


class ShardSet:
    """Random access to the samples of many shards, in a fixed order: by shard name, then as they lie in the tar.

    Reads are positioned (`os.pread`) on descriptors opened at first use, so threads and forked workers share
    nothing; a pickled copy opens its own.

    Attributes:
        paths: the shards, sorted.
        lineages: the distinct lineages of all samples.
        lineage_index: (N,) int64, each sample's row in `lineages`.
        bad: what the shards hold that is not among the N samples.
        lost: about how many more samples may lie in parts that are damaged, by their bytes.
        resolution: how their captions told their taxa, or why not, counted.

    Args:
        paths: shards, see `expand_shards`.
        names: where flat captions are looked up; a sample whose name it does not resolve is bad.

    Raises:
        FileNotFoundError, ValueError: see `expand_shards`; no shard has a usable sample; a shard without captions,
            or one with flat captions only when there are no `names`.
    """

    def __init__(self, paths: PathLike | Sequence[PathLike], names: NameTable | None = None) -> None:
        self._descriptors: dict[int, int] = {}
        self.paths = expand_shards(paths)
        self.bad: list[BadSample] = []
        self.resolution = Resolution(refused=names.refused if names else {})
        self._keys: list[np.ndarray] = []
        admitted: dict[Label, tuple[int, Found]] = {}  # -> its place in `said`
        said: dict[tuple[Lineage, str], int] = {}
        columns: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        lost = 0  # bytes
        for path in self.paths:  # one index at a time: as Python's objects, all of them would fill gigabytes
            index = shard_index(path)
            if names is None and index.labels and not any(label.lineage for label in index.labels):
                raise ValueError(
                    f"{path}: none of its samples has the tagged caption {CAPTION!r} (members found: "
                    f"{', '.join(index.extensions)}); to look its names up a taxonomy is needed: a table with the "
                    "columns kingdom ... species, as --data.taxonomy of train.py, --taxonomy of bioclip-hc, or "
                    "ShardSet(paths, NameTable(Taxonomy.read(TABLE)))"
                )
            found = [_admit(label, names, admitted, said) for label in index.labels]
            local = np.array(index.label, dtype=np.int64)
            for (_, how), samples in zip(found, np.bincount(local, minlength=len(found)).tolist(), strict=True):
                self.resolution.count(how, samples)
            label = np.array([row for row, _ in found], dtype=np.int32)[local]
            self.bad += [BadSample(str(path), *record) for record in index.bad]
            lost += index.lost
            self.bad += [
                BadSample(str(path), index.keys[i], found[local[i]][1].reason) for i in np.flatnonzero(label < 0)
            ]
            usable = label >= 0
            self._keys.append(encoded(index.keys)[usable])
            columns.append(
                (np.array(index.offset, np.int64)[usable], np.array(index.size, np.int64)[usable], label[usable])
            )
        self._start = np.cumsum([0] + [len(keys) for keys in self._keys])
        if not len(self):
            reason = f"; the first of {len(self.bad)} reasons: {self.bad[0].reason}" if self.bad else ""
            others = f" and {len(self.paths) - 1} more" if len(self.paths) > 1 else ""
            raise ValueError(f"no usable sample in {self.paths[0]}{others}{reason}")
        self._offset, self._size, self._label = (np.concatenate(column) for column in zip(*columns, strict=True))
        self.lost = lost * len(self) // max(1, int(self._size.sum()))
        row_of: dict[Lineage, int] = {}
        lineage_of_label = [row_of.setdefault(lineage, len(row_of)) for lineage, _ in said]
        self.lineages: list[Lineage] = list(row_of)
        self.lineage_index = np.array(lineage_of_label, dtype=np.int64)[self._label]
        self._common = [common for _, common in said]

    def __len__(self) -> int:
        return int(self._start[-1])

    def taxonomy(self) -> Taxonomy:
        """The taxa of the samples' lineages, with their common names."""
        used, first = np.unique(self._label, return_index=True)
        lineages = [self.lineages[self.lineage_index[i]] for i in first]
        return Taxonomy.from_lineages(lineages, [self._common[label] for label in used])

    def unresolved(self, taxonomy: Taxonomy) -> str:
        """A sentence on the samples that name a taxon which the taxonomy lacks; "" where there are none."""
        return unresolved(self, taxonomy)

    def key(self, i: int) -> str:
        """The key of sample i."""
        shard = self._shard_number(i)
        key: bytes = self._keys[shard][i - self._start[shard]]
        return decoded(key)

    def name(self, i: int) -> str:
        """Where sample i is, for people: its shard and its key."""
        return f"{self.shard(i)}: {self.key(i)}"

    def samples_of(self, shard: int) -> range:
        """The numbers of the samples that lie in paths[shard]."""
        return range(int(self._start[shard]), int(self._start[shard + 1]))

    def repeated_keys(self) -> Iterator[tuple[str, list[Path]]]:
        """Each key that several shards have, and these shards."""
        return ((key, [self.paths[shard] for shard in shards]) for key, shards in repeated_keys(self._keys))

    def shard(self, i: int) -> Path:
        """The shard that holds sample i."""
        return self.paths[self._shard_number(i)]

    def read(self, i: int) -> Sample:
        """Sample i, its image not decoded.

        Raises:
            IndexError: there is no sample i.
            OSError: the shard cannot be read, or has become shorter since it was indexed.
        """
        shard = self._shard_number(i)
        image = self._pread(shard, int(self._size[i]), int(self._offset[i]))
        lineage = self.lineages[self.lineage_index[i]]
        return Sample(self.key(i), image, lineage, self._common[self._label[i]])

    def fingerprints(self) -> dict[str, str]:
        """Shard name -> SHA-256 of its samples' keys, positions, sizes and lineages: what a run was given.

        Folders are left out, for data may move; of shards of one name the second is called "name (2)". Pixels are
        not read, so that terabytes cost no hours.
        """
        prints: dict[str, str] = {}
        seen: Counter[str] = Counter()
        line = ["\t".join(names) for names in self.lineages]
        for shard, path in enumerate(self.paths):
            part = slice(self._start[shard], self._start[shard + 1])
            digest = hashlib.sha256(b"\n".join(self._keys[shard].tolist()))
            digest.update(self._offset[part].tobytes() + self._size[part].tobytes())
            digest.update("\n".join(line[row] for row in self.lineage_index[part]).encode())
            seen[path.name] += 1
            prints[path.name + (f" ({seen[path.name]})" if seen[path.name] > 1 else "")] = digest.hexdigest()
        return prints

    def close(self) -> None:
        """Close the descriptors; a later read opens them again."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def __del__(self) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_descriptors": {}}

    def _shard_number(self, i: int) -> int:
        if not 0 <= i < len(self):
            raise IndexError(f"sample index must be in [0, {len(self)}), got {i}")
        return int(np.searchsorted(self._start, i, side="right")) - 1

    def _pread(self, shard: int, size: int, offset: int) -> bytes:
        descriptor = self._descriptors.get(shard)
        if descriptor is None:
            descriptor = self._open(shard)
        try:
            data = os.pread(descriptor, size, offset)
        finally:
            if self._descriptors.get(shard) != descriptor:
                os.close(descriptor)
        if len(data) != size:
            raise OSError(
                f"{self.paths[shard]}: read {len(data)} of {size} bytes at {offset}; "
                "the shard has changed since it was indexed"
            )
        return data

    def _open(self, shard: int) -> int:
        """A descriptor of a shard, kept unless enough are; of two threads that open at once, one keeps its own."""
        descriptor = os.open(str(self.paths[shard]), os.O_RDONLY)  # errors show what they are given
        if len(self._descriptors) < MAX_OPEN_SHARDS:
            self._descriptors.setdefault(shard, descriptor)
        return descriptor


def _admit(
    label: Label,
    names: NameTable | None,
    admitted: dict[Label, tuple[int, Found]],
    said: dict[tuple[Lineage, str], int],
) -> tuple[int, Found]:
    """The row of `said` that has a label's lineage and common name, -1 if it has none, and how it was found.

    Each label is looked up once, for all shards.
    """
    if label not in admitted:
        lineage, common = label.lineage, label.common
        found = Found(-1, "tagged")
        if not lineage and names is None:
            reason = f"no caption {CAPTION!r}, and no taxonomy to look {label.member} up in"
            found = Found(-1, "no taxonomy", reason)
        elif not lineage:
            assert names is not None
            found, lineage, common = names.label(label)
        admitted[label] = (said.setdefault((lineage, common), len(said)) if lineage else -1, found)
    return admitted[label]
