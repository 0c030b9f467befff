"""Texts that begin alike, packed so that a causal text tower reads their common beginnings once.

# U texts, S sequences, L nodes of a sequence

A taxon's text is the beginning of its descendants' texts, up to the end token. The texts of a batch form a tree of
tokens; in a causal tower a node's features depend on its ancestors alone, so one node serves all texts that begin
with it. The tree is cut into sequences, its nodes in depth-first order, and a node attends to itself and its
ancestors. Every text gets exactly what it would get on its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

WIDTH = 128  # nodes of a sequence: beyond it attention, quadratic in it, costs more than repeated beginnings save


@dataclass(frozen=True)
class PackedTexts:
    """Texts as sequences of tree nodes.

    Attributes:
        tokens: (S, L) int64, 0 in padding.
        position: (S, L) int64, the node's place in its texts.
        stop: (S, L) int64, the first place in the sequence after the node's descendants: nodes at [own place, stop)
            see it, and no others do.
        node: (U, longest) int64, where each token of each text is, counted over all sequences; -1 in padding.
    """

    tokens: Tensor
    position: Tensor
    stop: Tensor
    node: Tensor

    def __len__(self) -> int:
        return len(self.node)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PackedTexts:
        """The same on a device."""
        return self._each(lambda x: x.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> PackedTexts:
        """The same in page-locked memory; torch's loader calls it."""
        return self._each(lambda x: x.pin_memory())

    def padded(self) -> Tensor:
        """(U, longest) int64: the same texts one by one, padded with 0."""
        return self.tokens.flatten()[self.node.clamp_min(0)].masked_fill(self.node < 0, 0)

    def sees(self) -> Tensor:
        """(S, L, L) bool: whether a node (row) attends to another (column)."""
        place = torch.arange(self.tokens.shape[1], device=self.tokens.device)
        return (place <= place[:, None]) & (place[:, None] < self.stop[:, None, :])

    def split(self, parts: int) -> list[tuple[PackedTexts, Tensor]]:
        """The sequences in that many shares, as even as can be, each with the indices (u,) of its texts."""
        length = self.tokens.shape[1]
        sequence = self.node[:, 0] // length  # (U,) where each text is
        shares = []
        for own in torch.arange(len(self.tokens)).tensor_split(parts):
            if not len(own):
                shares.append((pack([]), own))
                continue
            texts = ((sequence >= own[0]) & (sequence <= own[-1])).nonzero().flatten()
            node = self.node[texts]
            node = torch.where(node < 0, -1, node - own[0] * length)
            shares.append((PackedTexts(self.tokens[own], self.position[own], self.stop[own], node), texts))
        return shares

    def _each(self, change: Callable[[Tensor], Tensor]) -> PackedTexts:
        return PackedTexts(*(change(getattr(self, field.name)) for field in fields(self)))


def pack(texts: Sequence[Sequence[int]], width: int = WIDTH) -> PackedTexts:
    """Pack texts, given as tokens without padding; as `pack_rows`."""
    length = np.array([len(text) for text in texts], dtype=np.int64)
    tokens = np.zeros((len(texts), length.max(initial=1)), dtype=np.int64)
    for row, text in zip(tokens, texts, strict=True):
        row[: len(text)] = text
    return pack_rows(tokens, length, width)


def pack_rows(tokens: np.ndarray, length: np.ndarray, width: int = WIDTH) -> PackedTexts:
    """Pack texts, given as rows of which so many tokens count.

    Args:
        tokens: (U, longest) int. length: (U,) int.
        width: the most nodes of a sequence; a longer text has a sequence of its own length.

    No texts are one sequence of padding, which the tower takes like any other.

    Raises:
        ValueError: a text without tokens, by its index.
    """
    if not length.all():
        raise ValueError(f"text {int(length.argmin())} has no tokens")
    if not len(tokens):
        padding = torch.zeros(1, 1, dtype=torch.int64)
        return PackedTexts(padding, padding, padding + 1, padding[:0])
    depth = np.arange(length.max())
    tokens = np.where(depth < length[:, None], tokens[:, : len(depth)], -1)
    order = np.lexsort(tokens.T[::-1])  # depth first: neighbours share the most
    tokens, length = tokens[order], length[order]
    shared = _shared_beginnings(tokens, length)
    sequence = _sequences(shared, length, width)  # (U,)
    begins = np.diff(sequence, prepend=-1) > 0
    shared[begins] = 0  # nothing is shared across sequences

    # Nodes are numbered over all sequences in the order in which texts add them; `first` is a text's first new one.
    new = (depth >= shared[:, None]) & (depth < length[:, None])  # (U, longest)
    total = int(new.sum())
    first = np.cumsum(length - shared) - (length - shared)
    path = np.maximum.accumulate(np.where(new, (first - shared)[:, None] + depth, -1))  # of each text, once cut
    # a text ends what lies at or below the depth where it leaves its predecessors; a new sequence ends all
    ends = np.where(depth >= shared[:, None], first[:, None], total)
    stop = np.vstack([np.minimum.accumulate(ends[::-1])[-2::-1], np.full((1, len(depth)), total)])

    start = first[begins]  # (S,) the number of each sequence's first node
    places = int(np.diff(start, append=total).max())
    text, at = new.nonzero()
    row, place = sequence[text], np.arange(total) - start[sequence[text]]
    packed = np.zeros((3, len(start), places), dtype=np.int64)
    packed[2] = np.arange(1, places + 1)  # padding sees itself, for a softmax needs something
    packed[:, row, place] = tokens[new], at, stop[new] - start[row]
    node = np.empty_like(tokens)
    node[order] = np.where(depth < length[:, None], path + (sequence * places - start[sequence])[:, None], -1)
    return PackedTexts(*map(torch.from_numpy, (*packed, node)))


def _shared_beginnings(tokens: np.ndarray, length: np.ndarray) -> np.ndarray:
    """(U,) how many tokens each text begins with as the one before it does."""
    alike = np.logical_and.accumulate(tokens[1:] == tokens[:-1], axis=1).sum(1)
    return np.concatenate([[0], np.minimum(alike, length[1:])])


def _sequences(shared: np.ndarray, length: np.ndarray, width: int) -> np.ndarray:
    """(U,) the sequence of each text: that of the one before it, as long as there is room for what is new."""
    found, current, used = [], -1, width + 1
    for alike, whole in zip(shared.tolist(), length.tolist(), strict=True):
        used += whole - alike
        if used > width:
            current, used = current + 1, whole
        found.append(current)
    return np.array(found)
