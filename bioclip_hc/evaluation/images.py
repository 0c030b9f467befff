"""Photographs to vectors: each distinct photograph once, by as many processes as there are, kept in a cache.

# N photographs, M distinct ones of them, D embed, W processes

A photograph is what its bytes are: two files with the same bytes are one, whatever they are called. Every batch has
the same shape, filled up with repetitions where photographs run out. A product's rows are then computed alike
whatever the other rows hold, so that a vector does not depend on what it was computed together with, nor on W, nor
on whether a run before this one had been killed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from bioclip_hc.data.decode import DecodeError, decode_image
from bioclip_hc.data.photographs import Photographs
from bioclip_hc.evaluation.embedding_cache import EmbeddingCache
from bioclip_hc.evaluation.processes import World
from bioclip_hc.evaluation.protocols import finite_rows
from bioclip_hc.evaluation.systems import System

BATCH = 64  # photographs at once
READERS = 4  # threads that read and hash: of one, a disk would idle while it hashes
ALONE = World()


class Unread(NamedTuple):
    """A photograph without a vector, and why: it is no photograph, or the model makes no finite numbers of it."""

    photograph: int
    reason: str


@dataclass(frozen=True)
class Contents:
    """Which photographs have the same bytes.

    key (M,): SHA-256 of each distinct content, in order of first appearance; first (M,): the first photograph that
    has it; content (N,): of each photograph, -1 where it could not be read; unread: those.
    """

    key: list[bytes]
    first: np.ndarray
    content: np.ndarray
    unread: list[Unread]


@dataclass(frozen=True)
class Embedded:
    """The vectors of all photographs that have one.

    indices (n,): which; vectors (n, D) float32, finite; unread: the others; computed: of how many distinct
    photographs the model has made vectors for it, the cache having had the others.
    """

    indices: np.ndarray
    vectors: Tensor
    unread: list[Unread]
    computed: int


def contents_of(
    photographs: Photographs, world: World = ALONE, progress: Callable[[int], object] = lambda done: None
) -> Contents:
    """Read every photograph once, each process its share; the result is the first process', for all."""
    own = range(len(photographs))[world.rank :: world.size]

    def digest(i: int) -> bytes | str:
        try:
            return hashlib.sha256(photographs.read(i).image).digest()
        except OSError as error:
            return str(error)

    found: list[bytes | str] = []
    with ThreadPoolExecutor(READERS) as pool:
        for start in range(0, len(own), 4096):
            found += pool.map(digest, own[start : start + 4096])
            progress(len(found) * world.size)
            world.check()
    everyone = world.gather(found)
    return world.from_first(_contents(everyone, len(photographs)) if world.first else None)


def _contents(shares: Sequence[Sequence[bytes | str]], count: int) -> Contents:
    place: dict[bytes, int] = {}
    content = np.full(count, -1, dtype=np.int64)
    first, unread = [], []
    for i in range(count):
        found = shares[i % len(shares)][i // len(shares)]
        if isinstance(found, str):
            unread.append(Unread(i, found))
            continue
        if found not in place:
            place[found] = len(place)
            first.append(i)
        content[i] = place[found]
    return Contents(list(place), np.array(first, dtype=np.int64), content, unread)


def embed_photographs(
    system: System,
    photographs: Photographs,
    contents: Contents,
    cache: EmbeddingCache | None = None,
    *,
    world: World = ALONE,
    batch_size: int = BATCH,
    workers: int = 0,
    progress: Callable[[int], object] = lambda done: None,
) -> Embedded | None:
    """The vectors of all photographs that can be read, for the first process; None for the others.

    Args:
        contents: as `contents_of` gives.
        cache: what is there is not computed, and what is computed is put there batch by batch, if it is finite.
        batch_size: the shape of every batch.
        workers: processes that decode, of each process; 0: none but itself.
        progress: called with how many photographs all have done so far, or about.

    Raises:
        ValueError: in the first process, where no photograph has a vector.
    """
    total = len(contents.key)
    found = np.zeros(total, dtype=bool)
    vectors = np.zeros((total, system.model.embed_dim), dtype=np.float32)
    if world.first and cache is not None:
        found, vectors = cache.look_up(contents.key)
        found &= finite_rows(torch.from_numpy(vectors))
    missing = np.flatnonzero(~world.from_first(found))
    own = missing[world.rank :: world.size]
    failed: list[tuple[int, str]] = []
    rows, parts = [], []
    for done, (which, part, bad) in enumerate(_batches(system, photographs, contents, own, batch_size, workers)):
        failed += bad
        if len(which):
            if cache is not None:
                cache.add([contents.key[m] for m in which], part)
            rows.append(which)
            parts.append(part)
        progress(min(len(missing), (done + 1) * batch_size * world.size))
        world.check()
    if cache is not None:
        cache.close()
    empty = np.zeros((0, vectors.shape[1]), np.float32)
    everyone = world.gather(
        (np.concatenate([*rows, np.empty(0, np.int64)]), np.concatenate([*parts, empty]), failed)
    )
    if not world.first:
        return None
    reason: dict[int, str] = {}
    computed = 0
    for which, part, bad in everyone:
        vectors[which], found[which] = part, True
        computed += len(which)
        reason |= dict(bad)
    readable = (contents.content >= 0) & np.append(found, False)[contents.content]
    unread = contents.unread + [
        Unread(i, reason[m]) for i, m in enumerate(contents.content.tolist()) if m >= 0 and not found[m]
    ]
    indices = np.flatnonzero(readable)
    if not len(indices):
        first = f"; the first: {photographs.name(min(unread).photograph)}: {min(unread).reason}" if unread else ""
        raise ValueError(f"{system.name} can be asked for none of the {len(photographs)} images{first}")
    return Embedded(indices, torch.from_numpy(vectors[contents.content[indices]]), sorted(unread), computed)


@torch.inference_mode()
def _batches(
    system: System, photographs: Photographs, contents: Contents, which: np.ndarray, size: int, workers: int
) -> Iterator[tuple[np.ndarray, np.ndarray, list[tuple[int, str]]]]:
    """Contents (b,), their vectors (b, D), and contents that are no photograph, with the reason, batch by batch."""
    device = next(system.model.parameters()).device
    pictures = _Pictures(photographs, contents, which, system.preprocess)
    for group in DataLoader(pictures, size, num_workers=workers, collate_fn=list):
        bad = [(m, found) for m, found in group if isinstance(found, str)]
        good = [(m, found) for m, found in group if not isinstance(found, str)]
        if not good:
            yield np.empty(0, np.int64), np.empty((0, system.model.embed_dim), np.float32), bad
            continue
        pixels = torch.stack([found for _, found in good])
        pixels = torch.cat([pixels, pixels[:1].expand(size - len(good), *pixels.shape[1:])])
        vectors = system.model.encode_image(pixels.to(device)).float().cpu()[: len(good)]
        which, finite = np.array([m for m, _ in good], dtype=np.int64), finite_rows(vectors)
        bad += [(m, f"{system.name} makes no finite numbers of it") for m in which[~finite].tolist()]
        yield which[finite], vectors.numpy()[finite], bad


class _Pictures(Dataset):
    """(content, its pixels), or (content, why there are none)."""

    def __init__(self, photographs: Photographs, contents: Contents, which: np.ndarray, preprocess: Any) -> None:
        self.photographs, self.contents, self.which, self.preprocess = photographs, contents, which, preprocess

    def __len__(self) -> int:
        return len(self.which)

    def __getitem__(self, place: int) -> tuple[int, Tensor | str]:
        m = int(self.which[place])
        try:
            data = self.photographs.read(int(self.contents.first[m])).image
            if hashlib.sha256(data).digest() != self.contents.key[m]:
                return m, "its bytes have changed since they were looked at"
            return m, self.preprocess(decode_image(data))
        except (DecodeError, OSError) as error:
            return m, str(error)
