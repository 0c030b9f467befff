"""How far a prediction is from the truth in the tree.

# N images, R ranks, T taxa

Each measure compares sets of taxa closed under ancestors, the truth's and the prediction's. They hold only taxa of
ranks that the image's truth knows: an answer at a rank that nobody labelled is neither right nor wrong, and a
benchmark that leaves out a rank (-1 in the truth) leaves it out of every path. Where a lineage of the tree itself
skips a rank, its path is the shorter.

A measure is a pair of per-image arrays, `Parts`: its value over any images, in any weights, is the weighted sum of
the first over that of the second.
"""

from __future__ import annotations

import numpy as np

from bioclip_hc.taxonomy import RANKS, Taxonomy

Parts = tuple[np.ndarray, np.ndarray]  # numerators and denominators, (N,) or (N, columns)

BLOCK = 1 << 14  # images whose ancestor sets are held at once: 6 MiB


def tree_parts(predictions: np.ndarray, truth: np.ndarray, taxonomy: Taxonomy) -> dict[str, Parts]:
    """The measures of the tree, by name.

    With A the truth's known taxa and B the path to the predicted node, which is the deepest answer down to the
    deepest rank that the truth knows (both as sets, at the ranks known to the truth):

    - lca_height: |A - B|, the known ranks of the truth below its lowest common ancestor with the prediction, and
      mistake_height: the same over the images where it is not 0 (Bertinetto et al., "Making Better Mistakes",
      CVPR 2020). In a tree of complete lineages this is the height of the common ancestor: 0 for the
      true species, 1 for another species of its genus, 7 for another kingdom. An answer that stops short is a
      mistake of that height too.
    - tree_distance: |A - B| + |B - A|, the edges between the true and the predicted node, kingdoms hanging from
      a common root (Dekel, Keshet and Singer, "Large Margin Hierarchical Classification", ICML 2004).
    - h_precision, h_recall, h_f1: |A & C| / |C|, |A & C| / |A| and 2 |A & C| / (|A| + |C|), each of the sums over
      all images, with C the union of the paths to the answers at all known ranks (Kiritchenko et al., "Learning
      and Evaluation in the Presence of Class Hierarchies", 2006; Silla and Freitas 2011). C is B where
      the answers lie on one path; answers that contradict each other claim more taxa than one path has.
    - consistency: the share of images, labelled or not, whose answers lie on one path (1 - TICE, as used by Park
      et al., arXiv 2406.11608), see `valid_paths`.

    Args:
        predictions: (N, R) int64 taxon ids, -1 = none.
        truth: (N, R) int64 taxon ids, -1 = unknown or left out.
    """
    known = truth >= 0
    labelled, size = known.any(axis=1), known.sum(axis=1)
    path = _path_to_node(predictions, known, taxonomy)
    shared, length = (known & (path == truth)).sum(axis=1), (path >= 0).sum(axis=1)
    claimed, right = _claims(predictions, truth, taxonomy)
    valid, answered = valid_paths(predictions, taxonomy)
    height = size - shared
    return {
        "lca_height": (height, labelled),
        "mistake_height": (height, height > 0),
        "tree_distance": (size + length - 2 * shared, labelled),
        "h_precision": (right, claimed),
        "h_recall": (right, size),
        "h_f1": (2 * right, claimed + size),
        "consistency": (valid, answered),
    }


def valid_paths(predictions: np.ndarray, taxonomy: Taxonomy) -> Parts:
    """(N,) whether an image's answers lie on one path of the tree, and whether it has any.

    The deepest predicted taxon is the path's end; every prediction above it must be its ancestor. A rank that
    this taxon's lineage does not name is not held against the prediction, for an independent protocol has to
    answer there too.
    """
    deepest = predictions.max(axis=1, initial=-1)  # ids are rank-major: the deepest has the largest
    answered = deepest >= 0
    path = _paths(taxonomy)[deepest]
    fits = (predictions == path) | (predictions < 0) | (path < 0)
    return fits.all(axis=1) & answered, answered


def _path_to_node(predictions: np.ndarray, known: np.ndarray, taxonomy: Taxonomy) -> np.ndarray:
    """(N, R): the lineage of the predicted node at the ranks that the truth knows, -1 elsewhere."""
    no_deeper = np.logical_or.accumulate(known[:, ::-1], axis=1)[:, ::-1]  # the truth knows this rank or one below
    node = np.where(no_deeper, predictions, -1).max(axis=1, initial=-1)
    return np.where(known, _paths(taxonomy)[node], -1)


def _claims(predictions: np.ndarray, truth: np.ndarray, taxonomy: Taxonomy) -> Parts:
    """(N,) taxa on the paths to an image's answers, each counted once, and how many of them are the truth's."""
    path_of = _paths(taxonomy)
    claimed, right = (np.zeros(len(truth), np.int64) for _ in range(2))
    for start in range(0, len(truth), BLOCK):
        rows = slice(start, start + BLOCK)
        true = truth[rows]
        known = true >= 0
        paths = path_of[np.where(known, predictions[rows], -1)]  # (n, R, R): answer, rank
        paths[np.broadcast_to(~known[:, None, :], paths.shape)] = -1
        right[rows] = ((paths == true[:, None, :]) & known[:, None, :]).any(axis=1).sum(axis=1)
        paths.sort(axis=1)  # the same taxon claimed by several answers stands side by side
        first = np.ones_like(paths, dtype=bool)
        first[:, 1:] = paths[:, 1:] != paths[:, :-1]
        claimed[rows] = (first & (paths >= 0)).sum(axis=(1, 2))
    return claimed, right


def _paths(taxonomy: Taxonomy) -> np.ndarray:
    """(T + 1, R): the lineages, and a last row of nothing, which an id of -1 reads."""
    return np.concatenate([taxonomy.lineages, np.full((1, len(RANKS)), -1)])
