"""A score in full beside the loop one would write: time and peak memory, 1,000 bootstrap resamples.

# N images, R ranks, C columns: what an image adds to the numerators and denominators of all measures

Labels and answers are random on iNat21's tree (or one as large, see bench_decoders.py): truths are species, answers
are right less and less often down the ranks, each rank for itself. The base is the definitions as loops over sets,
image by image, accuracies, top-5 and calibration curves of scikit-learn, and resamples drawn image by image. Both
must agree: figures to rounding, intervals as two draws do.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from bench_decoders import tree
from peers import OURS
from recording import Call, equal, name, record
from torch import Tensor

from bioclip_hc.evaluation import DetailedScore, detailed
from bioclip_hc.taxonomy import RANKS, Taxonomy

R = len(RANKS)
SIZES = (10_000, 100_000)  # images; the second are iNat21's validation images
ROUNDS = {10_000: 3, 100_000: 0}  # 0: the call for memory is the one that is timed
EXAMINED = 2000  # of another problem, whose answers are compared
LOOPS = "image by image"
K, BINS, RESAMPLES = 5, 15, 1000
RIGHT = np.linspace(0.95, 0.5, R)  # how often an answer is right at each rank
MEASURES = ("average", "nlca", "full_path", "por", "s_por_run", "tor", "consistency", "lca_height", "tree_distance")
RATIOS = ("h_precision", "h_recall", "h_f1")


@dataclass(frozen=True)
class Answers:
    """What a system predicted: truth, predictions (N, R); answers (N, R, K), best first; probability (N, R)."""

    taxonomy: Taxonomy
    truth: np.ndarray
    predictions: np.ndarray
    answers: np.ndarray
    probability: np.ndarray


@cache
def problem(images: int, taxonomy: Taxonomy) -> Answers:
    """Random labels and answers, the same for the same arguments."""
    rng = np.random.default_rng(0)
    truth = taxonomy.lineages[rng.choice(taxonomy.at_rank(R - 1), images)]
    others = np.stack([rng.choice(taxonomy.at_rank(r), (images, K)) for r in range(R)], axis=1)
    place = np.where(rng.random(truth.shape) < RIGHT, 0, rng.integers(2 * K, size=truth.shape))  # of the truth
    answers = np.where(place[:, :, None] == np.arange(K), truth[:, :, None], others)
    return Answers(taxonomy, truth, answers[:, :, 0], answers, rng.random(truth.shape))


def ours(p: Answers) -> tuple[Tensor, Tensor]:
    """This package's figures and intervals."""
    found = detailed(
        p.predictions, p.truth, p.taxonomy, answers=p.answers, probability=p.probability, resamples=RESAMPLES
    )
    return _figures(found), _intervals(found)


def _figures(s: DetailedScore) -> Tensor:
    assert s.top_k is not None
    assert s.calibration is not None
    single = [getattr(s, measure) for measure in (*MEASURES, *RATIOS)]
    return torch.tensor([*s.accuracy, *single, *s.top_k, *s.calibration.error], dtype=torch.float64)


def _intervals(s: DetailedScore) -> Tensor:
    intervals = s.intervals.measures
    return torch.tensor(
        [*intervals["accuracy"], *(intervals[m] for m in (*MEASURES, *RATIOS))], dtype=torch.float64
    )


def image_by_image(p: Answers) -> tuple[Tensor, Tensor]:
    """The same by loops over sets, scikit-learn, and resamples of single images."""
    paths = p.taxonomy.lineages.tolist()
    pairs = zip(p.truth.tolist(), p.predictions.tolist(), strict=True)
    columns = np.array([columns_of(true, found, paths) for true, found in pairs], dtype=float)
    rng = np.random.default_rng(0)
    rows = (rng.integers(len(columns), size=len(columns)) for _ in range(RESAMPLES))
    interval = np.quantile([figures_of(columns[chosen].sum(axis=0)) for chosen in rows], [0.025, 0.975], axis=0)
    figures = [*figures_of(columns.sum(axis=0)), *of_scikit_learn(p)]
    return torch.tensor(figures, dtype=torch.float64), torch.from_numpy(interval.T)


def columns_of(true: list[int], found: list[int], paths: list[list[int]]) -> list[float]:
    """(C,) of one image whose truth is known at all ranks: right (R), MEASURES but for the average, counts."""
    right = [a == b for a, b in zip(true, found, strict=True)]
    first = right.index(False) if False in right else R
    of_truth, of_node = set(true), set(paths[found[-1]]) - {-1}
    claimed = {t for answer in found for t in paths[answer] if t >= 0}
    return [
        *right,
        first / R,
        first == R,
        sum(right) / R,
        max(len(run) for run in "".join(" x"[hit] for hit in right).split(" ")) / R,
        sum(a and b for a, b in itertools.pairwise(right)) / (R - 1),
        all(a in (b, -1) for a, b in zip(paths[found[-1]], found, strict=True)),
        len(of_truth - of_node),
        len(of_truth ^ of_node),
        len(claimed & of_truth),
        len(claimed),
        len(of_truth),
        1,
    ]


def figures_of(total: np.ndarray) -> list[float]:
    """Accuracies, MEASURES and RATIOS from sums of the columns."""
    accuracy, means = total[:R] / total[-1], total[R : R + len(MEASURES) - 1] / total[-1]
    hits, claimed, true = total[-4:-1]
    return [*accuracy, accuracy.mean(), *means, hits / claimed, hits / true, 2 * hits / (claimed + true)]


def of_scikit_learn(p: Answers) -> list[float]:
    """Top-K accuracy and calibration error of each rank."""
    metrics = pytest.importorskip("sklearn.metrics")
    curves = pytest.importorskip("sklearn.calibration")
    top, error = [], []
    for r in range(R):
        hit = [t in row for t, row in zip(p.truth[:, r].tolist(), p.answers[:, r].tolist(), strict=True)]
        top.append(metrics.accuracy_score(np.ones(len(hit), dtype=bool), hit))
        right = p.predictions[:, r] == p.truth[:, r]
        share, stated = curves.calibration_curve(right, p.probability[:, r], n_bins=BINS)
        count = np.histogram(p.probability[:, r], BINS, (0, 1))[0]
        error.append((count[count > 0] * np.abs(share - stated)).sum() / count.sum())
    return [*top, *error]


WAYS = {LOOPS: image_by_image, OURS: ours}


def examine(own: tuple[Tensor, ...], base: tuple[Tensor, ...]) -> None:
    """Assert that figures are the same, and that intervals differ no more than two draws of 1,000 resamples do."""
    torch.testing.assert_close(own[0], base[0], rtol=0, atol=1e-9)
    width = (base[1][:, 1] - base[1][:, 0])[:, None]
    assert ((own[1] - base[1]).abs() <= 0.2 * width + 1e-9).all(), "intervals differ"


def cases() -> list[tuple[int, str]]:
    """N and way, those of one group beside each other."""
    return [(n, way) for n in SIZES for way in WAYS]


def in_check(n: int, way: str) -> bool:
    """What make bench-check measures again."""
    return n == SIZES[0]


@pytest.mark.parametrize(("n", "way"), cases())
def test_score(benchmark: Any, n: int, way: str) -> None:
    """Time and peak memory; ours also says whether two runs are bitwise equal, where there are two."""
    name(benchmark, f"detailed score, {n} images, {RESAMPLES} resamples", way, base=way == LOOPS)
    p, small = problem(n, tree()), problem(EXAMINED, tree())
    call: Call = lambda: WAYS[way](p)  # noqa: E731
    WAYS[way](small)
    first, last = record(benchmark, call, ROUNDS[n] if way == OURS else 0)
    if way == OURS:
        examine(ours(small), image_by_image(small))
        if ROUNDS[n]:
            benchmark.extra_info["repeatable"] = equal(first, last)
