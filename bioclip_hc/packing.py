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
    """Pack texts, given as tokens without padding.

    Args:
        width: the most nodes of a sequence; a longer text has a sequence of its own length.

    No texts are one sequence of padding, which the tower takes like any other.

    Raises:
        ValueError: a text without tokens, by its index.
    """
    if not all(map(len, texts)):
        raise ValueError(f"text {next(i for i, text in enumerate(texts) if not len(text))} has no tokens")
    rows = [_Row()]
    paths: list[tuple[int, list[int]]] = [(0, [])] * len(texts)
    for i in sorted(range(len(texts)), key=lambda i: tuple(texts[i])):  # depth first: neighbours share the most
        if not rows[-1].add(texts[i], width):
            rows.append(_Row())
            rows[-1].add(texts[i], width)
        paths[i] = len(rows) - 1, rows[-1].path.copy()
    length = max(1, *(len(row.tokens) for row in rows))
    tokens, position = (np.zeros((len(rows), length), np.int64) for _ in range(2))
    stop = np.tile(np.arange(1, length + 1), (len(rows), 1))  # padding sees itself, for a softmax needs something
    for s, row in enumerate(rows):
        row.close(0)
        n = len(row.tokens)
        tokens[s, :n], position[s, :n], stop[s, :n] = row.tokens, row.position, row.stop
    node = np.full((len(texts), max(map(len, texts), default=1)), -1)
    for i, (s, path) in enumerate(paths):
        node[i, : len(path)] = np.array(path) + s * length
    return PackedTexts(*map(torch.from_numpy, (tokens, position, stop, node)))


class _Row:
    """One sequence as it grows; `path` holds the places of the nodes of the text added last."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.position: list[int] = []
        self.stop: list[int] = []
        self.path: list[int] = []

    def add(self, text: Sequence[int], width: int) -> bool:
        """Add a text, of which what its predecessor lacks is new; False if that is more than there is room for."""
        shared = 0
        for place, token in zip(self.path, text, strict=False):
            if self.tokens[place] != token:
                break
            shared += 1
        if self.tokens and len(self.tokens) + len(text) - shared > width:
            return False
        self.close(shared)
        for depth in range(shared, len(text)):
            self.path.append(len(self.tokens))
            self.tokens.append(text[depth])
            self.position.append(depth)
            self.stop.append(0)
        return True

    def close(self, depth: int) -> None:
        """End the branches below `depth`: what comes next does not descend from them."""
        for place in self.path[depth:]:
            self.stop[place] = len(self.tokens)
        del self.path[depth:]
