"""Random small trees with labels and predictions, and every measure of `score` written as loops over sets."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from bioclip_hc.taxonomy import RANKS, Taxonomy

R = len(RANKS)


# -- random problems --------------------------------------------------------------------------------------


@dataclass
class Case:
    """Answers to `truth` (N, R): `independent` at each rank for itself, and `paths` of the tree."""

    rng: np.random.Generator
    taxonomy: Taxonomy
    truth: np.ndarray
    independent: np.ndarray
    paths: np.ndarray

    def answers(self) -> tuple[np.ndarray, np.ndarray]:
        return self.independent, self.paths


def random_taxonomy(rng: np.random.Generator, missing: float, species: int = 30) -> Taxonomy:
    rows = [
        [f"{rank}{rng.integers(2)}" if rng.random() >= missing else "" for rank in RANKS[:-1]] + [f"s{i}"]
        for i in range(species)
    ]
    return Taxonomy.from_lineages(rows)


def random_truth(rng: np.random.Generator, taxonomy: Taxonomy, images: int) -> np.ndarray:
    """Lineages of random taxa: known down to any rank, with the gaps of the tree."""
    return taxonomy.lineages[rng.integers(taxonomy.size, size=images)]


def random_predictions(rng: np.random.Generator, taxonomy: Taxonomy, truth: np.ndarray) -> np.ndarray:
    """Right about two times of three, else any taxon of the rank or none."""
    guess = np.stack([rng.choice([*taxonomy.at_rank(r), -1], size=len(truth)) for r in range(R)], 1)
    return np.where((rng.random(truth.shape) < 0.66) & (truth >= 0), truth, guess)


def case(seed: int, missing: float | None = None, images: int = 40) -> Case:
    """Trees with and without gaps, truths with ranks left out and with nothing known."""
    rng = np.random.default_rng(seed)
    taxonomy = random_taxonomy(rng, 0.3 * (seed % 3) if missing is None else missing)
    truth = random_truth(rng, taxonomy, images)
    if missing is None:
        truth[rng.random(images) < 0.1] = -1
        truth[:, rng.random(R) < 0.1] = -1
    near = np.where(rng.random(images) < 0.3, truth.max(1), rng.integers(taxonomy.size, size=images))
    paths = np.where((near >= 0)[:, None], taxonomy.lineages[near], -1)
    return Case(rng, taxonomy, truth, random_predictions(rng, taxonomy, truth), paths)


# -- the definitions, image by image -----------------------------------------------------------------------


def by_hand(predictions: np.ndarray, truth: np.ndarray, taxonomy: Taxonomy) -> dict:
    """`Score.to_dict` from loops over sets."""
    first_error, on_path_right = [0] * (R + 1), [0] * R
    right, known, on_path = [0] * R, [0] * R, [0] * R
    nlca, por, run, tor, height, distance = ([] for _ in range(6))
    claims = hits = truths = 0
    for p, t in zip(predictions.tolist(), truth.tolist(), strict=True):
        ranks = [r for r in range(R) if t[r] >= 0]
        if not ranks:
            continue
        good = [p[r] == t[r] for r in ranks]
        first = ranks[good.index(False)] if False in good else R
        first_error[first] += 1
        for r, is_right in zip(ranks, good, strict=True):
            known[r] += 1
            right[r] += is_right
            on_path[r] += r <= first
            on_path_right[r] += r < first
        nlca.append(sum(r < first for r in ranks) / len(ranks))
        por.append(sum(good) / len(ranks))
        run.append(max(len(streak) for streak in "".join(" x"[g] for g in good).split(" ")) / len(ranks))
        if len(ranks) > 1:
            tor.append(sum(a and b for a, b in itertools.pairwise(good)) / (len(ranks) - 1))

        of_truth = set(t) - {-1}
        answers = [p[r] for r in range(ranks[-1] + 1) if p[r] >= 0]
        of_node = closure(answers[-1:], ranks, taxonomy)
        height.append(len(of_truth - of_node))
        distance.append(len(of_truth ^ of_node))
        claimed = closure([p[r] for r in ranks if p[r] >= 0], ranks, taxonomy)
        claims, hits, truths = claims + len(claimed), hits + len(claimed & of_truth), truths + len(of_truth)
    accuracy = [share(a, b) for a, b in zip(right, known, strict=True)]
    mistakes = [h for h in height if h]
    paths = [is_path(p, taxonomy) for p in predictions.tolist() if max(p) >= 0]
    precision, recall = share(hits, claims), share(hits, truths)
    return {
        "images": len(nlca),
        "known": known,
        "accuracy": accuracy,
        "average": mean([a for a in accuracy if a is not None]),
        "on_path": on_path,
        "on_path_accuracy": [share(a, b) for a, b in zip(on_path_right, on_path, strict=True)],
        "first_error": first_error,
        "nlca": mean(nlca),
        "full_path": share(first_error[-1], len(nlca)),
        "por": mean(por),
        "s_por_run": mean(run),
        "tor": mean(tor),
        "consistency": mean(paths),
        "lca_height": mean(height),
        "mistake_height": mean(mistakes),
        "tree_distance": mean(distance),
        "h_precision": precision,
        "h_recall": recall,
        "h_f1": share(2 * precision * recall, precision + recall) if hits else (0.0 if truths else None),
    }


def closure(taxa: list[int], ranks: list[int], taxonomy: Taxonomy) -> set[int]:
    """The taxa and all their ancestors, of the given ranks."""
    found = set()
    for t in taxa:
        while t >= 0:
            if taxonomy.rank[t] in ranks:
                found.add(t)
            t = int(taxonomy.parent[t])
    return found


def is_path(predictions: list[int], taxonomy: Taxonomy) -> bool:
    chosen = [t for t in predictions if t >= 0]
    path = {int(taxonomy.rank[a]): a for a in closure(chosen[-1:], list(range(R)), taxonomy)}
    return all(path.get(int(taxonomy.rank[t]), t) == t for t in chosen)


def share(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def mean(values: list) -> float | None:
    return sum(values) / len(values) if values else None
