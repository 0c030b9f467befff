"""Protocols against loops over the tree, on random forests with skipped ranks."""

from __future__ import annotations

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bioclip_hc.evaluation import coarse_to_fine, protocols, score, top_down
from bioclip_hc.kernels import rank_topk
from bioclip_hc.taxonomy import RANKS, Taxonomy

R, D = len(RANKS), 8


def random_taxonomy(rng: np.random.Generator, species: int = 40, missing: float = 0.2) -> Taxonomy:
    """Lineages whose names come from a few per rank; each rank above species may be unknown."""
    rows = []
    for i in range(species):
        names = [f"{rank}{rng.integers(2 + r)}" if rng.random() >= missing else "" for r, rank in enumerate(RANKS)]
        rows.append([*names[:-1], f"species{i}"])
    return Taxonomy.from_lineages(rows)


def random_features(rng: np.random.Generator, images: int, taxa: int) -> tuple[torch.Tensor, torch.Tensor]:
    return tuple(torch.from_numpy(rng.normal(size=(n, D))).float() for n in (images, taxa))


def all_logits(image, text, geometry, space="tangent", curv=1.0) -> np.ndarray:
    """(N, T) by one call of the kernel per text; ranks play no part."""
    one = torch.zeros(1, dtype=torch.int64)
    columns = [
        rank_topk(image, text[[t]], one, 3.0, curv, geometry=geometry, space=space)[0][:, 0, 0]
        for t in range(len(text))
    ]
    return torch.stack(columns, 1).numpy()


@pytest.mark.parametrize(("geometry", "space"), [("lorentz", "hyperboloid"), ("euclidean", "unit")])
def test_features_in_the_other_spaces(geometry: str, space: str) -> None:
    """As they are given, not as tangent vectors: the answers differ."""
    rng = np.random.default_rng(6)
    taxonomy = random_taxonomy(rng, missing=0.0)
    image, text = random_features(rng, 40, taxonomy.size)
    settings = {"scale": 3.0, "geometry": geometry, "curv": 0.5}
    logits, others = (all_logits(image, text, geometry, s, 0.5) for s in (space, "tangent"))
    found = coarse_to_fine(image, text, taxonomy, space=space, **settings)
    descent = top_down(image, text, taxonomy, space=space, **settings)
    differ = 0
    for i in range(len(image)):
        standing = -1
        for r in range(R):
            taxa = taxonomy.at_rank(r).tolist()
            below = [t for t in taxa if taxonomy.parent[t] == standing]
            assert found[i, r] == best(logits[i], taxa)
            assert descent[i, r] == best(logits[i], below)
            differ += best(logits[i], below) != best(others[i], below)
            standing = descent[i, r]
    assert differ > 10


@hypothesis.settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0, 0.7), st.floats(0, 1))
def test_the_nearest_candidate_above(seed: int, missing: float, share: float) -> None:
    rng = np.random.default_rng(seed)
    taxonomy = random_taxonomy(rng, 12, missing)
    allowed = rng.random(taxonomy.size) < share
    parent = protocols.candidate_parent(taxonomy, allowed)
    assert parent.tolist() == [nearest_candidate(taxonomy, allowed, t) for t in range(taxonomy.size)]


def best(logits: np.ndarray, taxa: list[int]) -> int:
    return max(taxa, key=lambda t: logits[t]) if taxa else -1


@pytest.mark.parametrize("geometry", ["lorentz", "euclidean"])
@pytest.mark.parametrize("share", [1.0, 0.5, 0.0])
@pytest.mark.parametrize("block", [4096, 7])
def test_both_protocols_equal_a_loop_over_the_tree(geometry: str, share: float, block: int) -> None:
    rng = np.random.default_rng(int(10 * share))
    taxonomy = random_taxonomy(rng)
    image, text = random_features(rng, 23, taxonomy.size)
    allowed = rng.random(taxonomy.size) < share
    settings = {"scale": 3.0, "geometry": geometry, "candidates": allowed, "block": block}
    independent = coarse_to_fine(image, text, taxonomy, **settings)
    descent = top_down(image, text, taxonomy, **settings)

    logits = all_logits(image, text, geometry)
    for i in range(len(image)):
        standing = -1
        for r in range(R):
            candidates = [int(t) for t in taxonomy.at_rank(r) if allowed[t]]
            assert independent[i, r] == best(logits[i], candidates)
            below = [t for t in candidates if nearest_candidate(taxonomy, allowed, t) == standing]
            assert descent[i, r] == best(logits[i], below)
            standing = descent[i, r] if below else standing


def nearest_candidate(taxonomy: Taxonomy, allowed: np.ndarray, t: int) -> int:
    """Walk up to the first ancestor that is a candidate."""
    t = int(taxonomy.parent[t])
    while t >= 0 and not allowed[t]:
        t = int(taxonomy.parent[t])
    return t


def test_with_all_candidates_the_restricted_tree_is_the_tree() -> None:
    taxonomy = random_taxonomy(np.random.default_rng(0))
    parent = protocols.candidate_parent(taxonomy, np.ones(taxonomy.size, dtype=bool))
    np.testing.assert_array_equal(parent, taxonomy.parent)


def test_exact_embeddings_are_recognised_at_every_known_rank() -> None:
    """An image at its species' text, with ancestors' texts on the way, is found by both protocols."""
    taxonomy = Taxonomy.from_lineages(
        [[f"{rank}{i >> max(0, 3 - r)}" for r, rank in enumerate(RANKS)] for i in range(8)]
    )
    step = torch.eye(taxonomy.size)
    text = torch.stack([step[[a for a in taxonomy.lineage(t) if a >= 0]].sum(0) for t in range(taxonomy.size)])
    species = taxonomy.at_rank(R - 1)
    for protocol in (coarse_to_fine, top_down):
        found = protocol(text[species], text, taxonomy, scale=1.0, geometry="euclidean")
        np.testing.assert_array_equal(found, taxonomy.lineages[species])


def test_children_at_mixed_ranks_an_order_leaves_the_families_beside_it_behind() -> None:
    taxonomy = Taxonomy.from_lineages(
        [
            ("A", "B", "C", "Ord", "Fam", "", ""),
            ("A", "B", "C", "", "Orphan", "", ""),
            ("A", "B", "Empty", "", "", "Gen", ""),
        ]
    )
    name = {taxonomy.name(t): t for t in range(taxonomy.size)}
    text = torch.zeros(taxonomy.size, 2)
    text[:, 0] = 1.0
    text[name["Fam"]] = text[name["Empty"]] = torch.tensor([-1.0, 0.0])
    image = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])  # the first likes Orphan best, the second the class Empty
    found = top_down(image, text, taxonomy, scale=1.0, geometry="euclidean")
    assert found[0].tolist() == [name[n] for n in ("A", "B", "C", "Ord", "Fam")] + [-1, -1]
    assert found[1].tolist() == [name["A"], name["B"], name["Empty"], -1, -1, name["Gen"], -1]


def test_top_down_predictions_are_always_paths() -> None:
    rng = np.random.default_rng(3)
    taxonomy = random_taxonomy(rng, species=80, missing=0.4)
    image, text = random_features(rng, 200, taxonomy.size)
    found = top_down(image, text, taxonomy, scale=1.0, geometry="lorentz")
    assert score(found, found, taxonomy).consistency == 1.0


def test_a_small_list_budget_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(4)
    taxonomy = random_taxonomy(rng)
    image, text = random_features(rng, 50, taxonomy.size)
    whole = top_down(image, text, taxonomy, scale=1.0, geometry="lorentz")
    monkeypatch.setattr(protocols, "LIST_BUDGET", 5)
    np.testing.assert_array_equal(top_down(image, text, taxonomy, scale=1.0, geometry="lorentz"), whole)


@pytest.mark.parametrize(
    ("count", "ends"),
    [
        ([3, 3, 3, 3, 50, 1, 1, 1, 1, 1], [3, 4, 5, 9, 10]),
        ([5, 5, 1], [2, 3]),  # the budget to the last entry
        ([11, 11], [1, 2]),
        ([0, 0, 0, 0, 0], [4, 5]),
        ([9, 0, 1, 1], [3, 4]),
    ],
)
def test_blocks_are_as_long_as_budget_and_block_allow(monkeypatch: pytest.MonkeyPatch, count, ends) -> None:
    monkeypatch.setattr(protocols, "LIST_BUDGET", 10)
    found = list(protocols._blocks(np.array(count), 4))
    assert found == [slice(start, stop) for start, stop in zip([0, *ends], ends, strict=False)]


def test_blocks_cover_all_images_within_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocols, "LIST_BUDGET", 10)
    count = np.array([3, 3, 3, 3, 50, 1, 1, 1, 1, 1])
    parts = list(protocols._blocks(count, 4))
    assert [i for part in parts for i in range(part.start, part.stop)] == list(range(len(count)))
    assert all(count[part].sum() <= 10 or part.stop - part.start == 1 for part in parts)
    assert max(part.stop - part.start for part in parts) <= 4


@pytest.mark.parametrize("protocol", [coarse_to_fine, top_down])
def test_no_images_no_predictions(protocol) -> None:
    taxonomy = random_taxonomy(np.random.default_rng(0))
    text = torch.ones(taxonomy.size, D)
    assert protocol(torch.ones(0, D), text, taxonomy, scale=1.0, geometry="lorentz").shape == (0, R)


@pytest.mark.parametrize("protocol", [coarse_to_fine, top_down])
def test_errors_name_the_argument(protocol) -> None:
    taxonomy = random_taxonomy(np.random.default_rng(0))
    image, text = torch.ones(3, D), torch.ones(taxonomy.size, D)
    with pytest.raises(ValueError, match="text must hold one row per taxon"):
        protocol(image, text[1:], taxonomy, scale=1.0, geometry="lorentz")
    with pytest.raises(ValueError, match="image and text must be"):
        protocol(image[:, 1:], text, taxonomy, scale=1.0, geometry="lorentz")
    with pytest.raises(ValueError, match="candidates must be a bool mask"):
        protocol(image, text, taxonomy, scale=1.0, geometry="lorentz", candidates=np.arange(3))
