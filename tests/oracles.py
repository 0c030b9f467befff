"""Every measure of the evaluation against an independent implementation, on random small trees.

`python tests/oracles.py --cases 500` prints what agreed and by how much; tests/test_oracles.py asks the same of
fewer cases. Oracles: scikit-learn, hiclass, networkx, scipy, and the definitions as loops over sets.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Iterator

import networkx
import numpy as np
from hiclass import metrics as hiclass
from score_by_hand import by_hand, case, mean, random_taxonomy
from sklearn.metrics import accuracy_score

from bioclip_hc.evaluation import score
from bioclip_hc.taxonomy import RANKS

R = len(RANKS)
Pair = tuple[object, object]  # ours, theirs: numbers, None, or nested lists of them
Check = Callable[[int], Iterator[Pair]]


def loops(name: str) -> Check:
    def check(seed: int) -> Iterator[Pair]:
        c = case(seed)
        for found in c.answers():
            yield score(found, c.truth, c.taxonomy).to_dict()[name], by_hand(found, c.truth, c.taxonomy)[name]

    return check


def accuracy_of_sklearn(seed: int) -> Iterator[Pair]:
    c = case(seed)
    for found in c.answers():
        ours = score(found, c.truth, c.taxonomy)
        for r in range(R):
            rows = c.truth[:, r] >= 0
            yield ours.accuracy[r], accuracy_score(c.truth[rows, r], found[rows, r]) if rows.any() else None


def hiclass_of(name: str, function: Callable) -> Check:
    """hiclass takes the union of several paths per image, as levels of names ("" = none)."""

    def check(seed: int) -> Iterator[Pair]:
        c = case(seed)
        for found in c.answers():
            known = c.truth >= 0
            rows = known.any(1)
            named = np.where(known, found, -1)
            claimed = np.where((named >= 0)[:, :, None] & known[:, None, :], c.taxonomy.lineages[named], -1)
            true, claimed = (as_names(x)[rows] for x in (np.repeat(c.truth[:, None], R, 1), claimed))
            if rows.any() and (claimed != "").any():
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # it warns where nothing is right
                    yield getattr(score(found, c.truth, c.taxonomy), name), function(true, claimed)

    return check


def as_names(taxa: np.ndarray) -> np.ndarray:
    return np.where(taxa >= 0, taxa.astype(str), "")


def tree_of_networkx(name: str) -> Check:
    """A tree without gaps, with a root above the kingdoms: a truth of any depth against an answer as deep."""

    def check(seed: int) -> Iterator[Pair]:
        c = case(seed, missing=0.0)
        tree = networkx.DiGraph((int(p), t) for t, p in enumerate(c.taxonomy.parent))
        deep = c.truth.max(1)
        guess = np.array([c.rng.choice(c.taxonomy.at_rank(int(c.taxonomy.rank[t]))) for t in deep])
        ours = score(c.taxonomy.lineages[guess], c.truth, c.taxonomy)
        common = [networkx.lowest_common_ancestor(tree, p, t) for p, t in zip(guess, deep, strict=True)]
        height = [networkx.shortest_path_length(tree, a, t) for a, t in zip(common, deep, strict=True)]
        edges = tree.to_undirected(as_view=True)
        distance = [networkx.shortest_path_length(edges, p, t) for p, t in zip(guess, deep, strict=True)]
        theirs = {
            "lca_height": np.mean(height),
            "mistake_height": mean([h for h in height if h]),
            "tree_distance": np.mean(distance),
        }
        yield getattr(ours, name), theirs[name]

    return check


def lca_of_the_taxonomy(seed: int) -> Iterator[Pair]:
    """`Taxonomy.lca` has its own golden pairs."""
    c = case(seed, missing=0.3)
    deep, guess = c.truth.max(1), c.paths.max(1)
    guess = np.where(c.taxonomy.rank[guess] <= c.taxonomy.rank[deep], guess, deep)
    common = c.taxonomy.lca(deep, guess)
    below = (c.truth > common[:, None]).sum(1)  # ids are rank-major: what is deeper has the larger id
    yield score(c.taxonomy.lineages[guess], c.truth, c.taxonomy).lca_height, below.mean()


def nlca_is_average(seed: int) -> Iterator[Pair]:
    """The law behind the published top-down tables: complete lineages, predictions that are paths."""
    c = case(seed, missing=0.0)
    leaves = c.taxonomy.at_rank(R - 1)
    truth, found = (c.taxonomy.lineages[c.rng.choice(leaves, 60)] for _ in range(2))
    ours = score(found, truth, c.taxonomy)
    yield ours.nlca, np.mean([accuracy_score(truth[:, r], found[:, r]) for r in range(R)])


HAND = "loops over sets"
CHECKS: dict[tuple[str, str], Check] = {
    ("top-1 of each rank", "sklearn accuracy_score"): accuracy_of_sklearn,
    **{
        (name, HAND): loops(name)
        for name in by_hand(*(np.empty((0, R), np.int64),) * 2, random_taxonomy(np.random.default_rng(0), 0))
    },
    ("nLCA of paths, complete lineages", "mean of sklearn accuracy_score over ranks"): nlca_is_average,
    ("h_precision", "hiclass precision, micro"): hiclass_of("h_precision", hiclass.precision),
    ("h_recall", "hiclass recall, micro"): hiclass_of("h_recall", hiclass.recall),
    ("h_f1", "hiclass f1, micro"): hiclass_of("h_f1", hiclass.f1),
    ("lca_height", "networkx lowest_common_ancestor"): tree_of_networkx("lca_height"),
    ("lca_height, trees with gaps", "Taxonomy.lca"): lca_of_the_taxonomy,
    ("mistake_height", "networkx lowest_common_ancestor"): tree_of_networkx("mistake_height"),
    ("tree_distance", "networkx shortest_path_length"): tree_of_networkx("tree_distance"),
}


def compare(check: Check, seeds: range) -> tuple[int, float]:
    """Numbers compared and their largest difference; None equals None and nothing else."""
    differences = [d for seed in seeds for ours, theirs in check(seed) for d in distances(ours, theirs)]
    return len(differences), max(differences, default=0.0)


def distances(ours: object, theirs: object) -> Iterator[float]:
    if isinstance(ours, list | tuple | np.ndarray):
        for a, b in zip(ours, theirs, strict=True):
            yield from distances(a, b)
    elif ours is None or theirs is None:
        yield 0.0 if ours is theirs else np.inf
    else:
        yield abs(float(ours) - float(theirs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=200, help="random problems per row")
    options = parser.parse_args()
    print("| measure | oracle | numbers compared | largest difference |\n|---|---|---|---|")
    for (measure, oracle), check in CHECKS.items():
        count, difference = compare(check, range(options.cases))
        print(f"| {measure} | {oracle} | {count:,} | {difference:.1e} |", flush=True)


if __name__ == "__main__":
    main()
