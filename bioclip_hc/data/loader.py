"""Batches of a run, one per step, whole and in order.

# B local images, G images of the global batch, U texts that this process encodes, L tokens, R ranks

Everything but the pixels is a function of (seed, step) that each process computes for the whole global batch:
which samples, which ranks supervise them, which texts are the batch's distinct taxa and whose share each is. So
no ids are exchanged, and a run goes on from any step at any number of workers. Texts are shared out in depth-first
order: a process gets whole clades, whose texts begin alike, and packing reads their common beginnings once.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from bioclip_hc.data.decode import DecodeError, decode_image
from bioclip_hc.data.photographs import Photographs
from bioclip_hc.data.preprocess import TrainingTransform
from bioclip_hc.data.quarantine import BadSample
from bioclip_hc.data.samplers import (
    EMPTY,
    BatchPlan,
    SupervisionMode,
    local_slice,
    sample_seed,
    supervise,
    unique_texts,
)
from bioclip_hc.data.shards import ShardSet
from bioclip_hc.data.text import TaxonTokens
from bioclip_hc.data.workers import Workers
from bioclip_hc.distributed import share_of_texts
from bioclip_hc.packing import PackedTexts
from bioclip_hc.taxonomy import RANKS, Taxonomy, rank_index


class Batch(NamedTuple):
    """One process' part of one step.

    images (B, 3, H, W) uint8, or float32 where they are normalised already, see `preprocess.Normalize`; image_taxa
    (B, R) int64, -1 = not supervised, all -1 where the image could not be read; tokens: U texts, packed; text_rank
    and text_taxon (U,) int64; indices (B,) global sample indices, EMPTY at nobody's place, which is as that of an
    unreadable image but not bad; bad: the samples that could not be read.
    """

    images: Tensor
    image_taxa: Tensor
    tokens: PackedTexts
    text_rank: Tensor
    text_taxon: Tensor
    indices: Tensor
    bad: list[BadSample]

    @property
    def samples(self) -> int:
        """How many places hold a sample, readable or not."""
        return int((self.indices != EMPTY).sum())


@dataclass
class TrainingBatches(Dataset):
    """step -> Batch, for the process `world_rank` of `world_size`.

    Args:
        shards: the samples.
        taxonomy: gives every lineage its ids.
        tokens: gives every taxon its tokens.
        transform: makes a photograph's pixels.
        plan: which samples each step takes.
        mode: which known ranks supervise an image, see `samplers.supervise`.
        ranks: names of the ranks that may supervise; the others are treated as unknown.
        own_texts: True gives every process the texts of its own images, for a loss that is per process; False its
            share of the texts of all.

    Attributes:
        workers: who makes the batches and what they are reading, of the last `load`.
    """

    shards: ShardSet
    taxonomy: Taxonomy
    tokens: TaxonTokens
    transform: TrainingTransform
    plan: BatchPlan
    mode: SupervisionMode = "all"
    ranks: tuple[str, ...] = RANKS
    world_rank: int = 0
    world_size: int = 1
    own_texts: bool = False
    workers: Workers = field(default_factory=Workers, init=False)

    def __post_init__(self) -> None:
        used = [rank_index(name) for name in self.ranks]
        table = self.taxonomy.encode_many(self.shards.lineages)
        off = [r for r in range(len(RANKS)) if r not in used]
        table[:, off] = -1
        self.lineage_taxa = table  # (distinct lineages, R)
        # an ancestor has -1 where its descendants have ids, and stands before them
        self.depth_first = np.lexsort(self.taxonomy.lineages.T[::-1]).argsort()  # (T,) each taxon's place
        if self.mode == "balanced" and self.plan.global_batch < len(used):
            raise ValueError(
                f"a global batch of {self.plan.global_batch} is smaller than the {len(used)} ranks that the "
                "balanced sampler shares it among; enlarge the batch or name fewer ranks"
            )

    def __len__(self) -> int:
        raise TypeError("a run has as many steps as it is asked for; use `load(start, stop)`")

    def taxa_of(self, indices: np.ndarray) -> np.ndarray:
        """(n, R) taxa of samples at the supervised ranks, -1 where unknown and in EMPTY places."""
        taxa = self.lineage_taxa[self.shards.lineage_index[indices]]
        taxa[indices == EMPTY] = -1
        return taxa

    def __getitem__(self, step: int) -> Batch:
        try:
            return self._batch(step)
        finally:
            self.workers.done(step)

    def _batch(self, step: int) -> Batch:
        everyone = self.plan.indices(step)
        taxa = supervise(self.taxa_of(everyone), self.mode, self.plan.seed, step)
        local = local_slice(self.plan.global_batch, self.world_rank, self.world_size)
        text_rank, text_taxon, _ = unique_texts(taxa[local] if self.own_texts else taxa)
        order = self.depth_first[text_taxon].argsort()
        text_rank, text_taxon = text_rank[order], text_taxon[order]
        share = slice(None)
        if not self.own_texts:
            share = slice(*share_of_texts(len(text_rank), self.world_rank, self.world_size))
        indices, image_taxa = everyone[local].copy(), taxa[local].copy()
        images, bad = self._images(indices, step)
        for row, _ in bad:
            image_taxa[row] = -1
        return Batch(
            images,
            torch.from_numpy(image_taxa),
            self.tokens.packed(text_taxon[share]),
            torch.from_numpy(text_rank[share]),
            torch.from_numpy(text_taxon[share]),
            torch.from_numpy(indices),
            [sample for _, sample in bad],
        )

    def _images(self, indices: np.ndarray, step: int) -> tuple[Tensor, list[tuple[int, BadSample]]]:
        """(B, 3, H, W) pixels; those of EMPTY places and unreadable samples are blank, so that shapes stay."""
        images = torch.empty(len(indices), *self.transform.shape, dtype=self.transform.blank.dtype)
        if get_worker_info():
            images.share_memory_()  # while there is nothing to copy: from here the batch is sent as it lies
        bad = []
        epoch = self.plan.epoch(step)
        for row, i in enumerate(indices.tolist()):
            images[row] = self.transform.blank
            if i == EMPTY:
                continue
            self.workers.reading(step, i)
            try:
                images[row] = self.transform(self.shards.read(i).image, sample_seed(self.plan.seed, epoch, i))
            except (DecodeError, OSError) as error:
                bad.append((row, BadSample(str(self.shards.shard(i)), self.shards.key(i), str(error))))
        return images, bad

    def load(self, start: int, stop: int, workers: int = 0) -> Generator[Batch]:
        """The batches of steps [start, stop), in order, loaded ahead by `workers` processes.

        They start at the first batch, end with the thread that asks for it, and are let go by `close()`.
        """
        self.workers = crew = Workers(workers, start)
        loader = DataLoader(
            self,
            batch_size=None,
            sampler=range(start, stop),
            num_workers=workers,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # its own: drawing from the global one would shift a resumed run
            worker_init_fn=crew.begin,
            multiprocessing_context="fork" if workers else None,  # Python 3.14 would start them by another process
        )
        batches = iter(loader)
        crew.attend(batches)
        try:
            yield from batches
        except (OSError, EOFError):
            crew.expect_a_death()
            raise
        finally:
            crew.let_go(batches)


class _Images(Dataset):
    """Samples in order: (index, pixels), or (index, None) for one that cannot be read."""

    def __init__(self, photographs: Photographs, transform: Any) -> None:
        self.photographs, self.transform = photographs, transform

    def __len__(self) -> int:
        return len(self.photographs)

    def __getitem__(self, i: int) -> tuple[int, Tensor | None]:
        try:
            return i, self.transform(decode_image(self.photographs.read(i).image))
        except (DecodeError, OSError):
            return i, None


def evaluation_batches(
    photographs: Photographs, transform: Any, batch_size: int = 256, workers: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """(indices (b,), images (b, 3, H, W)) over all readable photographs in order; unreadable ones are left out."""
    loader = DataLoader(_Images(photographs, transform), batch_size, num_workers=workers, collate_fn=_stack)
    return (batch for batch in loader if batch is not None)


def _stack(items: list[tuple[int, Tensor | None]]) -> tuple[Tensor, Tensor] | None:
    good = [(i, pixels) for i, pixels in items if pixels is not None]
    if not good:
        return None
    return torch.tensor([i for i, _ in good]), torch.stack([pixels for _, pixels in good])
