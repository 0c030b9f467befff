"""Both protocols of one model on labelled shards.

# N images, T taxa, R ranks
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bioclip_hc.data.shards import ShardSet
from bioclip_hc.evaluation.answers import answer_probability, best_answers
from bioclip_hc.evaluation.detail import DetailedScore, detailed
from bioclip_hc.evaluation.embeddings import embed_shards, embed_taxa
from bioclip_hc.evaluation.protocols import coarse_to_fine, top_down
from bioclip_hc.model import HierarchicalCLIP
from bioclip_hc.taxonomy import Taxonomy

PROTOCOLS = {"coarse-to-fine": coarse_to_fine, "top-down": top_down}
ANSWERS = 5  # of the protocol that can give more than one: the top-5 accuracy


@dataclass(frozen=True)
class Outcome:
    """What a model predicted.

    indices (N,): the samples; truth (N, R): taxon ids, -1 where unknown; predictions: protocol -> (N, R);
    probability: protocol -> (N, R) of the predictions, among the candidates of the rank; answers: protocol ->
    (N, R, ANSWERS), for the protocols that rank their answers; distance (T,): of each taxon's text from the origin,
    where the geometry has one.
    """

    indices: np.ndarray
    truth: np.ndarray
    predictions: Mapping[str, np.ndarray]
    taxonomy: Taxonomy
    probability: Mapping[str, np.ndarray]
    answers: Mapping[str, np.ndarray]
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


def truth_of(shards: ShardSet, taxonomy: Taxonomy) -> np.ndarray:
    """(N, R) taxon ids of all samples, -1 where a rank is unnamed or not in the taxonomy."""
    return taxonomy.encode_many(shards.lineages)[shards.lineage_index]


def evaluate(
    model: HierarchicalCLIP,
    preprocess: Any,
    tokenizer: Any,
    shards: ShardSet,
    taxonomy: Taxonomy,
    *,
    candidates: np.ndarray | None = None,
    batch_size: int = 256,
    workers: int = 0,
) -> Outcome:
    """Predict every readable sample under both protocols.

    Args:
        model, preprocess, tokenizer: as `bioclip_hc.load` gives them.
        taxonomy: the taxa that may be predicted, unless `candidates` (T,) bool names fewer.

    Raises:
        ValueError: no image can be read, or no sample has a label that the taxonomy knows.
    """
    truth = truth_of(shards, taxonomy)
    if not (truth >= 0).any():
        first = next(name for lineage in shards.lineages for name in lineage if name)
        raise ValueError(f"no sample's labels are in the taxonomy ({first!r} is not); is it the right table?")
    indices, image = embed_shards(model, shards, preprocess, batch_size, workers)
    if not len(indices):
        raise ValueError(f"none of the {len(shards)} images could be read")
    text = embed_taxa(model, taxonomy, tokenizer)
    space: dict[str, Any] = {
        "scale": model.logit_scale().item(),
        "curv": model.manifold.curv.item(),
        "geometry": model.geometry,
        "candidates": candidates,
    }
    predictions = {name: protocol(image, text, taxonomy, **space) for name, protocol in PROTOCOLS.items()}
    return Outcome(
        indices,
        truth[indices],
        predictions,
        taxonomy,
        {name: answer_probability(image, text, taxonomy, found, **space) for name, found in predictions.items()},
        {"coarse-to-fine": best_answers(image, text, taxonomy, k=ANSWERS, **space)},
        text.norm(dim=1).numpy() if model.geometry == "lorentz" else None,
    )
