"""The k best answers of each rank, and how probable a system thinks its answers are.

# N images, T taxa (one text each), D embed, R ranks, k answers per rank
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bioclip_hc.evaluation.protocols import checked_candidates, finite_rows
from bioclip_hc.kernels import level_infonce, rank_topk
from bioclip_hc.taxonomy import RANKS, Taxonomy

BLOCK = 4096  # images at once


@torch.no_grad()
def best_answers(
    image: Tensor, text: Tensor, taxonomy: Taxonomy, *, k: int, candidates: np.ndarray | None = None, **space: Any
) -> np.ndarray:
    """(N, R, k) int64: the k nearest candidates of each rank, ranks independent, best first, -1 padded.

    An image with features that are not finite has no answers.

    Args:
        image: (N, D), text: (T, D): embeddings, row t of text that of taxon t.
        candidates: (T,) bool, the taxa that may be answered; None = all.
        space: scale, curv, geometry and space of the model, as in `kernels.rank_topk`.

    Raises:
        ValueError: as `coarse_to_fine`.
    """
    nodes, text, text_rank = _offered(image, text, taxonomy, candidates)
    answers = np.full((len(image), len(RANKS), k), -1, np.int64)
    if len(nodes):
        for rows in _blocks(len(image)):
            _, index = rank_topk(image[rows], text, text_rank, k=k, ranks=len(RANKS), **space)
            found = index.cpu().numpy()
            answers[rows] = np.where(found >= 0, nodes[found], -1)
    answers[~finite_rows(image)] = -1
    return answers


@torch.no_grad()
def answer_probability(
    image: Tensor,
    text: Tensor,
    taxonomy: Taxonomy,
    answers: np.ndarray,
    *,
    candidates: np.ndarray | None = None,
    **space: Any,
) -> np.ndarray:
    """(N, R) float64: the softmax probability of each answer among the candidates of its rank; 0: none given.

    Args:
        answers: (N, R) int64 taxon ids among the candidates, -1 = none.
        Others as in `best_answers`, and the errors.
    """
    nodes, text, text_rank = _offered(image, text, taxonomy, candidates)
    probability = np.zeros(answers.shape)
    if len(nodes):
        taxa = torch.from_numpy(nodes).to(text.device)
        for rows in _blocks(len(image)):
            labels = torch.from_numpy(answers[rows]).to(image.device)
            nll, _ = level_infonce(image[rows], text, labels, text_rank, taxa, **space)
            probability[rows] = (
                nll.double().clamp(min=0).neg().exp().cpu().numpy()
            )  # rounding may leave nll below 0
    return np.where(answers >= 0, probability, 0.0)


@torch.no_grad()
def answer_probabilities(
    image: Tensor,
    text: Tensor,
    taxonomy: Taxonomy,
    predictions: Mapping[str, np.ndarray],
    *,
    candidates: np.ndarray | None = None,
    **space: Any,
) -> dict[str, np.ndarray]:
    """`answer_probability` of several answers to the same question, for little more than the first costs.

    The normaliser of a rank is the same whatever is answered: the first answers' probabilities give it, and the
    logits of answers alone tell what others have of it.

    Args:
        predictions: protocol -> (N, R) int64; at a rank where an image has an answer, the first must have one.
        Others as in `answer_probability`, and the errors.
    """
    given = {"candidates": candidates, **space}
    (first, answers), *others = predictions.items()
    found = {first: answer_probability(image, text, taxonomy, answers, **given)}
    logit = _logits(image, text, taxonomy, answers, **space) if others else answers
    for name, other in others:
        named = other >= 0
        apart = _logits(image, text, taxonomy, other, **space)[named] - logit[named]  # 0 for the same taxon
        found[name] = np.zeros(other.shape)
        found[name][named] = np.minimum(found[first][named] * np.exp(apart), 1)
    return found


def _logits(image: Tensor, text: Tensor, taxonomy: Taxonomy, answers: np.ndarray, **space: Any) -> np.ndarray:
    """(N, R) float64: the logit of each answer; -inf: none given."""
    text_rank = torch.from_numpy(taxonomy.rank).to(text.device)
    logits = np.empty(answers.shape)
    for rows in _blocks(len(image)):
        given = answers[rows] >= 0
        ends = np.cumsum([0, *given.sum(axis=1)])
        own = (torch.from_numpy(ends), torch.from_numpy(answers[rows][given]))
        score, _ = rank_topk(image[rows], text, text_rank, ranks=len(RANKS), candidates=own, **space)
        logits[rows] = score[:, :, 0].double().cpu().numpy()
    return logits


def _offered(
    image: Tensor, text: Tensor, taxonomy: Taxonomy, candidates: np.ndarray | None
) -> tuple[np.ndarray, Tensor, Tensor]:
    """The candidates' ids, texts and ranks."""
    nodes = np.flatnonzero(checked_candidates(image, text, taxonomy, candidates))
    if len(nodes) < taxonomy.size:
        text = text[torch.from_numpy(nodes).to(text.device)]
    return nodes, text, torch.from_numpy(taxonomy.rank[nodes]).to(text.device)


def _blocks(images: int) -> Iterator[slice]:
    return (slice(start, start + BLOCK) for start in range(0, images, BLOCK))
