"""Every measure of the evaluation against an independent implementation, on random small trees.

`python tests/oracles.py --cases 500` prints what agreed and by how much; tests/test_oracles.py asks the same of
fewer cases. Oracles: scikit-learn, hiclass, networkx, scipy, and the definitions as loops over sets.
"""

from __future__ import annotations

import argparse
import warnings
from collections import Counter
from collections.abc import Callable, Iterator

import networkx
import numpy as np
from hiclass import metrics as hiclass
from scipy.stats import kendalltau
from score_by_hand import by_hand, case, mean, random_taxonomy, share
from sklearn.calibration import calibration_curve
from sklearn.metrics import accuracy_score, top_k_accuracy_score

from bioclip_hc.evaluation import score
from bioclip_hc.evaluation.calibration import calibration
from bioclip_hc.evaluation.metrics import top_k
from bioclip_hc.evaluation.ordering import root_order
from bioclip_hc.evaluation.strata import strata, training_counts
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


def top_k_of_sklearn(seed: int) -> Iterator[Pair]:
    c = case(seed)
    k = int(c.rng.integers(1, 5))
    logits = c.rng.normal(size=(len(c.truth), c.taxonomy.size))
    answers = np.full((len(c.truth), R, k), -1)
    theirs: list[float | None] = []
    for r in range(R):
        taxa, rows = c.taxonomy.at_rank(r), c.truth[:, r] >= 0
        best = np.argsort(-logits[:, taxa], axis=1)[:, :k]
        answers[:, r, : best.shape[1]] = taxa[best]
        if not rows.any():
            theirs.append(None)
        elif len(taxa) <= k:  # which scikit-learn calls meaningless
            theirs.append(1.0)
        elif len(taxa) == 2:  # which it takes for the score of the second class
            theirs.append(accuracy_score(c.truth[rows, r], taxa[logits[rows][:, taxa].argmax(1)]))
        else:
            theirs.append(top_k_accuracy_score(c.truth[rows, r], logits[rows][:, taxa], k=k, labels=taxa))
    yield top_k(answers, c.truth, c.taxonomy), theirs


def calibration_of_sklearn(seed: int) -> Iterator[Pair]:
    """Its curve leaves empty bins out and counts no images; the error is the curve's, weighted by np.histogram."""
    c = case(seed)
    bins = int(c.rng.integers(1, 20))
    stated = np.clip(c.rng.random(c.truth.shape) * 1.1, 0, 1)
    for found in c.answers():
        ours = calibration(stated, found, c.truth, c.taxonomy, bins)
        for r in range(R):
            rows = (c.truth[:, r] >= 0) & (found[:, r] >= 0)
            if not rows.any():
                yield ours.error[r], None
                continue
            p, right = stated[rows, r], (found == c.truth)[rows, r]
            accuracy, confidence = calibration_curve(right, p, n_bins=bins)
            count = np.histogram(p, bins, (0, 1))[0]
            used = count[count > 0]
            yield [x for x in ours.accuracy[r] if x is not None], accuracy
            yield [x for x in ours.probability[r] if x is not None], confidence
            yield ours.count[r], count
            yield ours.error[r], (used * np.abs(accuracy - confidence)).sum() / used.sum()


def calibration_by_hand(seed: int) -> Iterator[Pair]:
    """With probabilities that lie on the edges of bins."""
    c = case(seed)
    bins = 8
    stated = c.rng.integers(0, 17, size=c.truth.shape) / 16
    ours = calibration(stated, c.independent, c.truth, c.taxonomy, bins)
    for r in range(R):
        cells: dict[int, list[tuple[float, bool]]] = {}
        for p, a, t in zip(stated[:, r], c.independent[:, r], c.truth[:, r], strict=True):
            if a >= 0 and t >= 0:
                m = next(m for m in range(bins) if p <= (m + 1) / bins)
                cells.setdefault(m, []).append((p, a == t))
        total = sum(map(len, cells.values()))
        gaps = [abs(sum(p for p, _ in cell) - sum(right for _, right in cell)) for cell in cells.values()]
        yield ours.error[r], share(sum(gaps), total)
        yield ours.count[r], [len(cells.get(m, ())) for m in range(bins)]


def order_of_scipy(seed: int) -> Iterator[Pair]:
    c = case(seed)
    distance = c.rng.permutation(c.taxonomy.size) + 0.5 * c.taxonomy.rank * c.rng.integers(0, 30)
    distance = distance + 1e-6 * np.arange(c.taxonomy.size)  # no ties: scipy's tau-b is then our tau-a
    taus = []
    for leaf in set(range(c.taxonomy.size)) - set(c.taxonomy.parent.tolist()):
        path = [t for t in c.taxonomy.lineage(leaf) if t >= 0]
        if len(path) > 1:
            taus.append(kendalltau(c.taxonomy.rank[path], distance[path]).statistic)
    yield root_order(distance, c.taxonomy), mean(taus)


def strata_by_hand(seed: int) -> Iterator[Pair]:
    """Each stratum's score is that of its images; counts are of sets of ancestors."""
    c = case(seed)
    head = int(c.rng.integers(1, 8))
    train = c.taxonomy.lineages[c.rng.integers(c.taxonomy.size, size=c.taxonomy.size)]
    seen = Counter(t for row in train.tolist() for t in row if t >= 0)
    counts = training_counts(train, c.taxonomy)
    yield counts, [seen[t] for t in range(c.taxonomy.size)]
    groups: dict[str, list[int]] = {"head": [], "tail": [], "unseen": []}
    for i, row in enumerate(c.truth.tolist()):
        known = [t for t in row if t >= 0]
        if known:
            n = seen[known[-1]]
            groups["unseen" if n == 0 else "head" if n >= head else "tail"].append(i)
    for name, rows in strata(c.truth, counts, c.taxonomy, head).items():
        yield np.flatnonzero(rows), groups[name]
        ours = score(c.independent[rows], c.truth[rows], c.taxonomy)
        yield ours.accuracy, by_hand(c.independent[groups[name]], c.truth[groups[name]], c.taxonomy)["accuracy"]


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
    ("top-k of each rank", "sklearn top_k_accuracy_score"): top_k_of_sklearn,
    ("calibration error and bins", "sklearn calibration_curve"): calibration_of_sklearn,
    ("calibration error, at edges", HAND): calibration_by_hand,
    ("order of distances from the root", "scipy kendalltau"): order_of_scipy,
    ("head, tail, unseen", HAND): strata_by_hand,
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
