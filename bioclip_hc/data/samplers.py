"""Which samples, which ranks and which texts make a batch: pure functions of (seed, epoch, global sample index).

# n samples, B images of the global batch, R ranks, P patterns of known ranks, U unique texts

Nothing here knows of processes or workers: every process computes the global answer and takes its slice, so the
order of samples, the supervised ranks and the crops are the same at every world size. Draws are raw Philox bits,
which numpy keeps stable over its versions (its `permutation` and `choice` may change), so that a run resumed
under another numpy goes on in the same order.
"""

from __future__ import annotations

import itertools
from typing import Literal

import numpy as np

SupervisionMode = Literal["all", "balanced", "uniform", "deepest"]
Remainder = Literal["drop", "pad"]

EMPTY = -1  # in place of a sample: nobody's place in the last batch of an epoch that does not fill it

ORDER, RANK, AUGMENT = range(3)  # one random stream per use: the same (seed, epoch) never feeds two of them


def _draw(size: int, seed: int, stream: int, *counters: int) -> np.ndarray:
    """(size,) uint64 random bits that depend on the arguments only."""
    sequence = np.random.SeedSequence(seed, spawn_key=(stream, *map(int, counters)))
    return np.random.Philox(sequence).random_raw(size)


def epoch_order(n: int, seed: int, epoch: int) -> np.ndarray:
    """The order in which an epoch visits the n samples: (n,) int64, a permutation."""
    return np.argsort(_draw(n, seed, ORDER, epoch), kind="stable")


def sample_seed(seed: int, epoch: int, index: int) -> int:
    """The 32-bit seed of one sample's augmentation in one epoch, whoever loads it and whenever."""
    return int(_draw(1, seed, AUGMENT, epoch, index)[0] >> np.uint64(32))


def order_digest(start: int, indices: np.ndarray) -> int:
    """64 bits of which samples (n,) stood at the places start, start + 1, ... of a run's order; empty places add 0.

    The sum, modulo 2^64, of a hash of each (place, sample): parts of an order add up to the digest of the whole,
    whoever took them. (Mixing: the finalizer of SplitMix64; Steele, Lea, Flood 2014.)
    """
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64
        place = np.arange(start, start + len(indices), dtype=np.uint64)
        mixed = _mix(_mix(place) + indices.astype(np.uint64))
        return int(mixed[indices != EMPTY].sum(dtype=np.uint64))


def _mix(x: np.ndarray) -> np.ndarray:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class BatchPlan:
    """The batches of a whole run, by absolute step.

    Each epoch is its own permutation, cut into global batches.

    Args:
        remainder: what becomes of the n % global_batch samples at the end of an epoch's order. "drop" leaves them
            out, other ones in every epoch; "pad" gives them a last batch, filled up with EMPTY places, so that an
            epoch takes every sample once and none twice.

    Attributes:
        steps_per_epoch: batches in an epoch.

    Raises:
        ValueError: no samples; fewer than one global batch where the remainder is dropped; an unknown remainder.
    """

    def __init__(self, n: int, global_batch: int, seed: int, remainder: Remainder = "drop") -> None:
        if global_batch < 1:
            raise ValueError(f"global_batch must be at least 1, got {global_batch}")
        if remainder not in ("drop", "pad"):
            raise ValueError(f"remainder must be 'drop' or 'pad', got {remainder!r}")
        if n < (global_batch if remainder == "drop" else 1):
            raise ValueError(
                f"{n} samples do not fill one global batch of {global_batch}; lower the batch, add shards, "
                "or fill it up with empty places (data.remainder = 'pad')"
            )
        self.n = n
        self.global_batch = global_batch
        self.seed = seed
        self.remainder = remainder
        self.steps_per_epoch = n // global_batch if remainder == "drop" else -(-n // global_batch)
        self._cached_epoch = -1
        self._order = np.empty(0, dtype=np.int64)

    def epoch(self, step: int) -> int:
        """The epoch that an absolute step belongs to."""
        return step // self.steps_per_epoch

    def samples(self, steps: int) -> int:
        """How many samples the first so many steps take."""
        epochs, position = divmod(steps, self.steps_per_epoch)
        return epochs * min(self.n, self.steps_per_epoch * self.global_batch) + position * self.global_batch

    def indices(self, step: int) -> np.ndarray:
        """(B,) int64 global sample indices of an absolute step, read-only; EMPTY places stand last."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch != self._cached_epoch:
            empty = max(0, self.steps_per_epoch * self.global_batch - self.n)
            order = epoch_order(self.n, self.seed, epoch)
            self._order, self._cached_epoch = np.pad(order, (0, empty), constant_values=EMPTY), epoch
            self._order.flags.writeable = False  # what is given out are views of it
        return self._order[position * self.global_batch : (position + 1) * self.global_batch]

    def local_indices(self, step: int, world_rank: int, world_size: int) -> np.ndarray:
        """(B / world_size,) int64, the slice of a step's batch that one process loads.

        Raises:
            ValueError: the batch does not divide, or there is no such process.
        """
        return self.indices(step)[local_slice(self.global_batch, world_rank, world_size)]


def local_slice(global_batch: int, world_rank: int, world_size: int) -> slice:
    """The rows of the global batch that belong to one process.

    Raises:
        ValueError: the batch does not divide by the world size, or world_rank is outside it.
    """
    if global_batch % world_size:
        raise ValueError(
            f"a global batch of {global_batch} does not divide among {world_size} processes; "
            f"the nearest that do are {global_batch - global_batch % world_size} "
            f"and {global_batch + -global_batch % world_size}"
        )
    if not 0 <= world_rank < world_size:
        raise ValueError(f"world_rank must be in [0, {world_size}), got {world_rank}")
    local = global_batch // world_size
    return slice(world_rank * local, (world_rank + 1) * local)


def supervise(image_taxa: np.ndarray, mode: SupervisionMode, seed: int, step: int) -> np.ndarray:
    """Choose the ranks that supervise each image of a global batch.

    Args:
        image_taxa: (B, R) int64 taxon at each rank, -1 where unknown; the whole global batch.
        mode: "all" known ranks; "uniform", one known rank at random; "deepest", the most specific known rank;
            "balanced", one known rank at random with equally many images per rank (counts differ by at most 1,
            or as little as the known ranks allow).
        seed, step: what the choice depends on besides the batch.

    Returns:
        (B, R) int64 copy with -1 at the ranks not chosen. An image without a known rank stays all -1.

    Raises:
        ValueError: an unknown mode; "balanced" with fewer images than there are ranks in the batch.
    """
    known = image_taxa >= 0
    if mode == "all":
        return image_taxa.copy()
    if mode == "balanced":
        chosen = _balanced_ranks(known, seed, step)
    elif mode == "uniform":
        chosen = _uniform_ranks(known, seed, step)
    elif mode == "deepest":
        chosen = _deepest_ranks(known)
    else:
        raise ValueError(f"unknown supervision mode {mode!r} (modes: all, balanced, uniform, deepest)")
    keep = known & (np.arange(image_taxa.shape[1]) == chosen[:, None])
    return np.where(keep, image_taxa, -1)


def _deepest_ranks(known: np.ndarray) -> np.ndarray:
    """(B,) int64 last known rank; the value in a row without one means nothing."""
    return known.shape[1] - 1 - np.argmax(known[:, ::-1], axis=1)


def _uniform_ranks(known: np.ndarray, seed: int, step: int) -> np.ndarray:
    """(B,) int64 one known rank of each row, each equally likely: the known rank with the largest draw."""
    draw = _draw(known.size, seed, RANK, step).reshape(known.shape) | np.uint64(1)  # above the 0 of unknown
    return np.argmax(np.where(known, draw, 0), axis=1)


def _balanced_ranks(known: np.ndarray, seed: int, step: int) -> np.ndarray:
    """(B,) int64 one known rank of each row (-1 without one), the counts per rank as equal as can be.

    Rows with the same known ranks are alike, and there are at most 2^R - 1 kinds of them: the quota of each kind
    is solved exactly, then dealt to its rows at random.
    """
    images, ranks = known.shape
    present = int(known.any(axis=0).sum())
    if images < present:
        raise ValueError(
            f"balanced supervision needs at least one image per rank: got a batch of {images} images "
            f"for {present} ranks; enlarge the global batch or supervise uniformly"
        )
    draw = _draw(images + ranks, seed, RANK, step)
    kind = known @ (1 << np.arange(ranks))
    codes, supply = np.unique(kind[kind > 0], return_counts=True)
    allowed = (codes[:, None] >> np.arange(ranks)) & 1 == 1
    preference = np.argsort(draw[images:], kind="stable")  # who gets the odd one out
    quota = _balanced_quota(allowed, supply, preference)

    rows = np.lexsort((draw[:images], kind))  # by kind, at random inside it
    rows = rows[kind[rows] > 0]
    chosen = np.full(images, -1, dtype=np.int64)
    chosen[rows] = np.repeat(np.tile(np.arange(ranks), len(codes)), quota.ravel())
    return chosen


def _balanced_quota(allowed: np.ndarray, supply: np.ndarray, preference: np.ndarray) -> np.ndarray:
    """Share the rows of each kind among its ranks so that the totals per rank are as equal as possible.

    An optimal semi-matching (Harvey, Ladner, Lovasz, Tamir: Semi-matchings for bipartite graphs and load
    balancing, 2006): an assignment minimises every convex cost of the totals if and only if no path of moves
    leads from a rank to another one with at least two images fewer. Start from even shares, shift along such
    paths until there is none; each shift lowers the sum of squares, so it ends.

    Args:
        allowed: (P, R) bool, the known ranks of each kind. supply: (P,) rows of each kind.
        preference: (R,) permutation, the ranks in the order in which they take what does not divide evenly.

    Returns:
        (P, R) int64 rows of each kind supervised at each rank; row sums equal supply.
    """
    share, odd = np.divmod(supply, allowed.sum(axis=1))
    turn = np.cumsum(allowed[:, preference], axis=1)[:, np.argsort(preference)]  # 1, 2, ... over allowed ranks
    quota = np.where(allowed, share[:, None] + (turn <= odd[:, None]), 0).astype(np.int64)
    while path := _shift_path(allowed, quota):
        _shift(allowed, quota, path)
    return quota


def _shift_path(allowed: np.ndarray, quota: np.ndarray) -> list[int]:
    """Ranks from an overloaded one to one with at least two images fewer, each step possible; [] if none."""
    total = quota.sum(axis=0)
    movable = (quota > 0).T.astype(np.int64) @ allowed.astype(np.int64) > 0  # (R, R): some row can go from r to s
    for start in np.argsort(-total, kind="stable"):
        came_from = {int(start): -1}
        queue = [int(start)]
        for rank in queue:  # breadth first; the list grows while it is walked
            for target in np.flatnonzero(movable[rank]):
                if int(target) not in came_from:
                    came_from[int(target)] = rank
                    queue.append(int(target))
        end = min(queue, key=lambda rank: total[rank])
        if total[start] - total[end] >= 2:
            path = [end]
            while came_from[path[-1]] >= 0:
                path.append(came_from[path[-1]])
            return path[::-1]
    return []


def _shift(allowed: np.ndarray, quota: np.ndarray, path: list[int]) -> None:
    """Move as many rows as every step of the path bears and equality asks for (at least one), in place."""
    total = quota.sum(axis=0)
    moves = [
        (int(np.argmax(np.where(allowed[:, target], quota[:, rank], 0))), rank, target)
        for rank, target in itertools.pairwise(path)
    ]
    amount = min((total[path[0]] - total[path[-1]]) // 2, *(quota[kind, rank] for kind, rank, _ in moves))
    for kind, rank, target in moves:
        quota[kind, rank] -= amount
        quota[kind, target] += amount


def unique_texts(image_taxa: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The distinct texts that a batch is compared with.

    Args:
        image_taxa: (B, R) int64 supervised taxa, -1 elsewhere.

    Returns:
        text_rank (U,) int64, text_taxon (U,) int64: the distinct (rank, taxon), by rank, then by taxon.
        pair (B,) int64: the text of each image's deepest supervised rank, -1 for an image without one.
    """
    images, ranks = image_taxa.shape
    known = image_taxa >= 0
    row, rank = np.nonzero(known)
    span = int(image_taxa.max(initial=0)) + 1
    code, text = np.unique(rank * span + image_taxa[row, rank], return_inverse=True)
    text_of = np.full((images, ranks), -1, dtype=np.int64)
    text_of[row, rank] = text
    pair = text_of[np.arange(images), _deepest_ranks(known)]
    return code // span, code % span, pair
