"""What a system predicted on a benchmark, under every protocol.

# N images, T taxa, R ranks
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from bioclip_hc.evaluation.answers import answer_probabilities, best_answers
from bioclip_hc.evaluation.detail import DetailedScore, detailed
from bioclip_hc.evaluation.paths import best_paths
from bioclip_hc.evaluation.protocols import top_down
from bioclip_hc.taxonomy import Taxonomy

ANSWERS = 5  # of the protocol that can give more than one: the top-5 accuracy


@dataclass(frozen=True)
class Outcome:
    """What a model predicted.

    indices (N,): the photographs; truth (N, R): taxon ids, -1 where unknown; predictions: protocol -> (N, R);
    probability: protocol -> (N, R) of the predictions, among the candidates of the rank; answers: protocol ->
    (N, R, ANSWERS), for the protocols that rank their answers; confidence (N, R): of the full path down to each
    rank, by which one abstains (`Paths.confidence`); distance (T,): of each taxon's text from the origin, where the
    geometry has one.
    """

    indices: np.ndarray
    truth: np.ndarray
    predictions: Mapping[str, np.ndarray]
    taxonomy: Taxonomy
    probability: Mapping[str, np.ndarray]
    answers: Mapping[str, np.ndarray]
    confidence: np.ndarray
    distance: np.ndarray | None

    def scores(self, counts: np.ndarray | None = None) -> dict[str, DetailedScore]:
        """protocol -> score; with counts (T,), the training images of each taxon, also by how often it was seen."""
        return {
            name: detailed(
                found,
                self.truth,
                self.taxonomy,
                answers=self.answers.get(name),
                probability=self.probability[name],
                counts=counts,
                distance=self.distance,
            )
            for name, found in self.predictions.items()
        }


def outcome(
    indices: np.ndarray,
    image: Tensor,
    truth: np.ndarray,
    text: Tensor,
    taxonomy: Taxonomy,
    candidates: np.ndarray | None = None,
    **space: Any,
) -> Outcome:
    """Every protocol on embeddings.

    Args:
        indices: (N,) which photographs; image: (N, D); truth: (N, R) taxon ids, -1 where unknown.
        text: (T, D), row t the text of taxon t; candidates: (T,) bool, the taxa that may be predicted; None: all.
        space: scale, curv and geometry of the model, as in `coarse_to_fine`.
    """
    space |= {"candidates": candidates}
    paths = best_paths(image, text, taxonomy, **space)
    answers = best_answers(image, text, taxonomy, k=ANSWERS, **space)
    predictions = {
        "coarse-to-fine": answers[:, :, 0],
        "top-down": top_down(image, text, taxonomy, **space),
        "full-path": paths.taxa,
    }
    return Outcome(
        indices,
        truth,
        predictions,
        taxonomy,
        answer_probabilities(image, text, taxonomy, predictions, **space),
        {"coarse-to-fine": answers},
        paths.confidence,
        text.norm(dim=1).numpy() if space["geometry"] == "lorentz" else None,
    )
