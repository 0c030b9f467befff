"""The keys of millions of samples, held as bytes: as str objects they would take a gigabyte in every worker."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np


def encoded(keys: Iterable[str]) -> np.ndarray:
    """(N,) fixed-width bytes of keys; `decoded` gives them back."""
    return np.array([key.encode("utf-8", "surrogatepass") for key in keys], dtype=np.bytes_)


def decoded(key: bytes) -> str:
    """A key as it was before `encoded`."""
    return key.decode("utf-8", "surrogatepass")


def repeated_keys(shards: Sequence[np.ndarray]) -> Iterator[tuple[str, list[int]]]:
    """Each key that stands in several shards, and the numbers of these shards, ascending.

    Args:
        shards: the encoded keys of each shard.
    """
    total = sum(map(len, shards))
    digest = np.fromiter((_digest(key) for keys in shards for key in keys.tolist()), np.uint64, total)
    order = np.argsort(digest, kind="stable")
    same = np.flatnonzero(digest[order[1:]] == digest[order[:-1]])
    start = np.cumsum([0, *map(len, shards)])
    runs = np.split(same, np.flatnonzero(np.diff(same) != 1) + 1) if len(same) else []
    for run in runs:  # of equal digests
        places: dict[bytes, list[int]] = {}
        for number in order[run[0] : run[-1] + 2].tolist():
            shard = int(np.searchsorted(start, number, side="right")) - 1
            places.setdefault(bytes(shards[shard][number - start[shard]]), []).append(shard)
        yield from ((decoded(key), found) for key, found in places.items() if len(found) > 1)


def _digest(key: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little")
