"""From image embeddings to taxa: three ways to decide, and when to say nothing.

# b images of a batch, T taxa, D embed, R ranks, k answers per rank
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bioclip_hc.evaluation.abstention import stopped
from bioclip_hc.evaluation.answers import answer_probability
from bioclip_hc.evaluation.paths import best_paths
from bioclip_hc.evaluation.protocols import top_down
from bioclip_hc.kernels import level_infonce, rank_topk
from bioclip_hc.prediction.answers import Answers, about
from bioclip_hc.taxonomy import RANKS, Taxonomy

DECODERS = ("independent", "top-down", "path")


class TaxonDecoder:
    """Names taxa.

    Args:
        taxonomy: the T taxa; text (T, D): their embeddings, on the device of the images.
        space: scale, curv and geometry, as in `kernels.rank_topk`.
        ranks: those to name.
        k: answers per rank, where ranks are independent.
        decode: one of DECODERS.
        min_prob: answers less probable are left out; a path ends above the first of them.
        candidates: (T,) bool, the taxa that may be named; None: all.

    Raises:
        ValueError: an argument out of range, or k with a decoder that gives one answer.
    """

    def __init__(
        self,
        taxonomy: Taxonomy,
        text: Tensor,
        space: dict[str, Any],
        *,
        ranks: Sequence[int],
        k: int = 1,
        decode: str = "independent",
        min_prob: float = 0.0,
        candidates: np.ndarray | None = None,
    ) -> None:
        check_options(k, decode, min_prob)
        self.taxonomy, self.text, self.space = taxonomy, text, space
        self.ranks, self.k, self.decode, self.min_prob = list(ranks), k, decode, min_prob
        self.candidates = candidates
        nodes = np.arange(taxonomy.size) if candidates is None else np.flatnonzero(candidates)
        self._nodes = torch.from_numpy(nodes).to(text.device)
        self._offered = text if candidates is None else text[self._nodes]
        self._rank = torch.from_numpy(taxonomy.rank[nodes]).to(text.device)

    @torch.inference_mode()
    def __call__(self, names: Sequence[str], image: Tensor) -> list[Answers]:
        """The answers for the b images that have names; image: (B, D), the first b of them theirs."""
        if self.decode == "independent":
            taxa, probability = self._independent(image)
            taxa = np.where(probability >= self.min_prob, taxa, -1)
        else:
            path, likely = self._path(image) if self.decode == "path" else self._top_down(image)
            if self.min_prob > 0:
                least = np.minimum.accumulate(np.where(path >= 0, likely, 1), axis=1)
                path = stopped(path, least, self.min_prob)
            taxa, probability = path[:, :, None], likely[:, :, None]
        return [
            Answers(
                name,
                (
                    about(name, self.taxonomy, int(taxa[i, r, j]), float(probability[i, r, j]))
                    for r in self.ranks
                    for j in range(taxa.shape[2])
                    if taxa[i, r, j] >= 0
                ),
            )
            for i, name in enumerate(names)
        ]

    def _independent(self, image: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Taxa (b, R, k), -1 padded, and their probabilities."""
        if not len(self._nodes):
            return np.full((len(image), len(RANKS), 1), -1), np.zeros((len(image), len(RANKS), 1))
        score, index = rank_topk(image, self._offered, self._rank, k=self.k, ranks=len(RANKS), **self.space)
        texts = torch.arange(len(self._nodes), device=image.device)
        nll, _ = level_infonce(image, self._offered, index[:, :, 0], self._rank, texts, **self.space)
        # the others, by how far their logits are behind the best one's; rounding may leave nll below 0
        best = nll.double().clamp(min=0).neg().exp()[:, :, None]
        behind = torch.where(index >= 0, score - score[:, :, :1], 0.0)
        taxa = torch.where(index >= 0, self._nodes[index], -1)
        return taxa.cpu().numpy(), (best * behind.double().exp()).cpu().numpy()

    def _top_down(self, image: Tensor) -> tuple[np.ndarray, np.ndarray]:
        options: dict[str, Any] = {"candidates": self.candidates, **self.space}
        path = top_down(image, self.text, self.taxonomy, **options)
        return path, answer_probability(image, self.text, self.taxonomy, path, **options)

    def _path(self, image: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """By `best_paths`."""
        paths = best_paths(image, self.text, self.taxonomy, candidates=self.candidates, **self.space)
        return paths.taxa, np.exp(paths.log_probability)


def check_options(k: int, decode: str, min_prob: float) -> None:
    """Raise ValueError for options that no model could answer to."""
    if decode not in DECODERS:
        raise ValueError(f"decode must be one of {', '.join(map(repr, DECODERS))}, got {decode!r}")
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    if decode != "independent" and k != 1:
        raise ValueError(f"decode={decode!r} gives one answer per rank, got k={k}")
    if not 0 <= min_prob <= 1:  # and not a number
        raise ValueError(f"min_prob must be between 0 and 1, got {min_prob}")
