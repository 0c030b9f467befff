"""The best path against every path of small random trees, and what must hold of any path."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_protocols import nearest_candidate, random_features, random_taxonomy

from bioclip_hc.evaluation import best_paths, coarse_to_fine, full_path, paths, score, top_down
from bioclip_hc.kernels import reference
from bioclip_hc.kernels.similarity import Similarity
from bioclip_hc.taxonomy import RANKS, Taxonomy

R = len(RANKS)
GEOMETRIES = ("lorentz", "euclidean")
SPACES = [("lorentz", "tangent"), ("lorentz", "hyperboloid"), ("euclidean", "tangent"), ("euclidean", "unit")]


def log_probabilities(image, text, taxonomy, allowed, scale, geometry, space="tangent", curv=1.0) -> np.ndarray:
    """(N, T) float64 from the oracle's logits, rank by rank; -inf of what is no candidate."""
    tensors = image.double(), text.double(), torch.tensor(scale).double(), torch.tensor(curv).double()
    logits = reference.logits(*tensors, geometry, space).numpy()
    logs = np.full(logits.shape, -math.inf)
    for r in range(R):
        taxa = [int(t) for t in taxonomy.at_rank(r) if allowed[t]]
        if taxa:
            top = logits[:, taxa].max(axis=1, keepdims=True)
            logs[:, taxa] = logits[:, taxa] - top - np.log(np.exp(logits[:, taxa] - top).sum(axis=1, keepdims=True))
    return logs


def all_paths(taxonomy: Taxonomy, allowed: np.ndarray) -> list[list[int]]:
    """Every path from a root to a leaf, by walking up from each candidate that is no other's nearest."""
    nodes = [int(t) for t in np.flatnonzero(allowed)]
    above = {t: nearest_candidate(taxonomy, allowed, t) for t in nodes}
    found = []
    for leaf in (t for t in nodes if t not in above.values()):
        path = [leaf]
        while above[path[0]] >= 0:
            path.insert(0, above[path[0]])
        found.append(path)
    return found


def row_of(taxonomy: Taxonomy, path: list[int]) -> list[int]:
    row = [-1] * R
    for t in path:
        row[taxonomy.rank[t]] = t
    return row


@st.composite
def problems(draw):
    """A forest with ranks missing and children at mixed ranks, some of its taxa as candidates, and features."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    taxonomy = random_taxonomy(rng, draw(st.integers(1, 30)), draw(st.sampled_from([0.0, 0.2, 0.6])))
    rows = [taxonomy.lineage_names(t) for t in range(taxonomy.size)]
    if draw(st.booleans()):  # lineages that end above the species
        rows = [row[: rng.integers(1, R + 1)] for row in rows]
        rows = [(*row, *[""] * (R - len(row))) for row in rows]
        taxonomy = Taxonomy.from_lineages(row for row in rows if any(row)) if any(map(any, rows)) else taxonomy
    allowed = rng.random(taxonomy.size) < draw(st.sampled_from([1.0, 0.7, 0.2]))
    return taxonomy, allowed, *random_features(rng, draw(st.integers(1, 9)), taxonomy.size)


@pytest.mark.parametrize(("geometry", "space"), SPACES)
@settings(max_examples=25, deadline=None)
@given(problems())
def test_it_is_the_best_of_all_paths(geometry, space, problem) -> None:
    taxonomy, allowed, image, text = problem
    options = {"scale": 3.0, "geometry": geometry, "space": space, "curv": 0.7}
    logs = log_probabilities(image, text, taxonomy, allowed, **options)
    every = all_paths(taxonomy, allowed)
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 2e-4)):
        found = best_paths(image.to(dtype), text.to(dtype), taxonomy, **options, candidates=allowed, block=4)
        for i in range(len(image)):
            scores = [float(np.mean(logs[i, path])) for path in every]
            best = max(scores, default=-math.inf)
            assert found.score[i] == pytest.approx(best, abs=max(tolerance, 1e-5))
            own = [int(t) for t in found.taxa[i] if t >= 0]
            assert own in every or not every
            if every:
                assert scores[every.index(own)] >= best - tolerance
                assert found.taxa[i].tolist() == row_of(taxonomy, own)
                np.testing.assert_allclose(found.log_probability[i][found.taxa[i] >= 0], logs[i, own], atol=1e-3)
            assert not found.log_probability[i][found.taxa[i] < 0].any()


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_several_tiles_parts_and_blocks_are_one(monkeypatch: pytest.MonkeyPatch, geometry: str) -> None:
    rng = np.random.default_rng(5)
    taxonomy = random_taxonomy(rng, species=150, missing=0.1)
    image, text = (x.double() for x in random_features(rng, 41, taxonomy.size))
    whole = best_paths(image, text, taxonomy, scale=1.0, geometry=geometry)
    monkeypatch.setattr(paths, "TILE_TEXTS", 7)
    monkeypatch.setattr(paths, "TILE_IMAGES", 4)
    parts = best_paths(image, text, taxonomy, scale=1.0, geometry=geometry, block=10)
    np.testing.assert_array_equal(parts.taxa, whole.taxa)
    np.testing.assert_allclose(parts.log_probability, whole.log_probability, atol=1e-6)


def test_a_path_that_skips_a_rank_is_not_preferred_for_it() -> None:
    """Two families, equally sure at every rank they have, one without an order: a sum would take that one."""
    taxonomy = Taxonomy.from_lineages(
        [("A", "", "", order, "Fam", "", "") for order in ("Ord", "Other")] + [("A", "", "", "", "Orphan", "", "")]
    )
    name = {taxonomy.path(t): t for t in range(taxonomy.size)}
    text = torch.zeros(taxonomy.size, 4)
    text[name[("A",)], 3] = 1
    text[name[("A", "Ord")], 0] = 1
    text[name[("A", "Other")], 1] = 1
    text[name[("A", "Ord", "Fam")], 0] = 1
    text[name[("A", "Other", "Fam")], 1] = 1
    text[name[("A", "Orphan")], 0] = 0.9995  # a hair less sure than the family with an order
    text[name[("A", "Orphan")], 2] = math.sqrt(1 - 0.9995**2)
    found = full_path(torch.tensor([[1.0, 0, 0, 0]]), text, taxonomy, scale=3.0, geometry="euclidean")
    logs = log_probabilities(
        torch.tensor([[1.0, 0, 0, 0]]), text, taxonomy, np.ones(taxonomy.size, bool), 3.0, "euclidean"
    )[0]
    orphan, complete = (logs[[name[("A",)], *rest]] for rest in (
        [name[("A", "Orphan")]], [name[("A", "Ord")], name[("A", "Ord", "Fam")]],
    ))  # fmt: skip
    assert orphan.sum() > complete.sum()
    assert found[0].tolist() == [name[("A",)], -1, -1, name[("A", "Ord")], name[("A", "Ord", "Fam")], -1, -1]


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_a_wrong_turn_that_top_down_takes_is_mended(geometry: str) -> None:
    """The first rank leans to the wrong kingdom, all others are sure of a path in the right one."""
    taxonomy = Taxonomy.from_lineages([[f"{k}{rank}" for rank in RANKS] for k in "ab"])
    right = taxonomy.lineages[taxonomy.size - 1]
    text = torch.zeros(taxonomy.size, 2)
    text[:, 0], text[right, 1], text[right, 0] = 1.0, 1.0, 0.0
    text[right[0]], text[taxonomy.at_rank(0)[0]] = torch.tensor([0.2, 1.0]), torch.tensor([-0.1, 1.0])
    image = torch.tensor([[-0.1, 1.0]])
    assert top_down(image, text, taxonomy, scale=5.0, geometry=geometry)[0, 6] != right[6]
    np.testing.assert_array_equal(full_path(image, text, taxonomy, scale=5.0, geometry=geometry)[0], right)


@pytest.mark.parametrize("geometry", GEOMETRIES)
@settings(max_examples=15, deadline=None)
@given(problems())
def test_it_is_a_path_and_never_scores_below_top_down(geometry, problem) -> None:
    taxonomy, allowed, image, text = problem
    found = best_paths(image, text, taxonomy, scale=4.0, geometry=geometry, candidates=allowed)
    assert score(found.taxa, found.taxa, taxonomy).consistency in (None, 1.0)
    assert bool(allowed.any()) == bool((found.taxa >= 0).any())
    logs = log_probabilities(image, text, taxonomy, allowed, 4.0, geometry)
    for i, row in enumerate(top_down(image, text, taxonomy, scale=4.0, geometry=geometry, candidates=allowed)):
        if (row >= 0).any():
            assert found.score[i] >= np.mean(logs[i, row[row >= 0]]) - 1e-4
    confidence = found.confidence
    assert ((confidence >= 0) & (confidence <= 1)).all()
    for row, sure in zip(found.taxa, confidence, strict=True):
        assert (np.diff(sure[row >= 0]) <= 0).all()
        assert not sure[row < 0].any()


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.3]), st.sampled_from(GEOMETRIES))
def test_with_a_perfect_score_it_is_the_true_path_and_top_down_s(seed: int, missing: float, geometry: str) -> None:
    """Every image is near the texts of its own path and far from all others. Top-down misses a path that skips a
    rank at which its siblings have taxa: it must choose among them."""
    rng = np.random.default_rng(seed)
    taxonomy = random_taxonomy(rng, 25, missing)
    species = taxonomy.at_rank(R - 1)
    axes = torch.eye(taxonomy.size)
    image = torch.stack([axes[[t for t in taxonomy.lineage(int(s)) if t >= 0]].sum(0) for s in species])
    options = {"scale": 400.0, "geometry": geometry}
    found = full_path(image, axes, taxonomy, **options)
    np.testing.assert_array_equal(found, taxonomy.lineages[species])
    if not missing:
        np.testing.assert_array_equal(found, top_down(image, axes, taxonomy, **options))


def test_no_images_no_candidates_and_what_is_not_a_number_give_no_path() -> None:
    rng = np.random.default_rng(0)
    taxonomy = random_taxonomy(rng)
    image, text = random_features(rng, 3, taxonomy.size)
    options = {"scale": 1.0, "geometry": "lorentz"}
    assert full_path(image[:0], text, taxonomy, **options).shape == (0, R)
    nothing = best_paths(image, text, taxonomy, **options, candidates=np.zeros(taxonomy.size, dtype=bool))
    assert (nothing.taxa == -1).all()
    assert (nothing.score == -math.inf).all()
    image[1, 0] = math.nan
    found = best_paths(image, text, taxonomy, **options)
    assert (found.taxa[1] == -1).all()
    assert not found.confidence[1].any()
    assert (found.taxa[[0, 2]] >= 0).any(axis=1).all()


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("texts", [1024, 3])
def test_of_equal_scores_the_leaf_of_the_higher_rank_then_the_smaller_id(monkeypatch, geometry, texts) -> None:
    """All texts are one, and each rank has a power of two of them: scores are exactly equal."""
    monkeypatch.setattr(paths, "TILE_TEXTS", texts)
    even = Taxonomy.from_lineages(
        [[f"{rank}{i >> (R - 1 - r)}" for r, rank in enumerate(RANKS)] for i in range(64)]
    )
    uneven = Taxonomy.from_lineages([("A", *[""] * 6), ("B", "x", *[""] * 5), ("B", "y", *[""] * 5)])
    for taxonomy, leaf in ((even, even.at_rank(R - 1)[0]), (uneven, uneven.at_rank(0)[0])):
        text, image = (torch.eye(4)[:1].repeat(rows, 1) for rows in (taxonomy.size, 5))
        found = full_path(image, text, taxonomy, scale=2.0, geometry=geometry, block=2)
        np.testing.assert_array_equal(found, np.tile(taxonomy.lineages[leaf], (5, 1)))


@pytest.mark.parametrize("decoder", [full_path, top_down, coarse_to_fine])
def test_the_curvature_is_1_unless_another_is_given(decoder) -> None:
    rng = np.random.default_rng(1)
    taxonomy = random_taxonomy(rng, species=80)
    image, text = random_features(rng, 60, taxonomy.size)
    found, one, two = (
        decoder(image, text, taxonomy, scale=3.0, geometry="lorentz", **given)
        for given in ({}, {"curv": 1.0}, {"curv": 2.0})
    )
    np.testing.assert_array_equal(found, one)
    assert (found != two).any()
    found = best_paths(image.double(), text.double(), taxonomy, scale=3.0, geometry="lorentz")
    assert (found.taxa.dtype, found.log_probability.dtype) == (np.int64, np.float32)
    assert found.confidence.dtype == np.float32


def test_errors_name_the_argument() -> None:
    taxonomy = random_taxonomy(np.random.default_rng(0))
    image, text = torch.ones(3, 8), torch.ones(taxonomy.size, 8)
    with pytest.raises(ValueError, match="text must hold one row per taxon"):
        full_path(image, text[1:], taxonomy, scale=1.0, geometry="lorentz")
    with pytest.raises(ValueError, match="geometry must be one of"):
        full_path(image, text, taxonomy, scale=1.0, geometry="spherical")
    with pytest.raises(ValueError, match="curv must be positive"):
        full_path(image, text, taxonomy, scale=1.0, curv=-1.0, geometry="lorentz")
    with pytest.raises(ValueError, match="candidates must be a bool mask"):
        full_path(image, text, taxonomy, scale=1.0, geometry="lorentz", candidates=np.arange(3))


@pytest.mark.parametrize(("geometry", "space"), SPACES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_block_of_similarity_is_the_logits(geometry: str, space: str, dtype: torch.dtype) -> None:
    rng = np.random.default_rng(1)
    image, text = (x.to(dtype) for x in random_features(rng, 63, 129))
    image[0], text[1] = 0.0, image[2]  # the origin; one point twice
    image[3], text[4] = image[3] * 1e3, image[5] * 1e-3  # far beyond the clamp of the radius; near the origin
    work = torch.float64 if dtype == torch.float64 else torch.float32
    similarity = Similarity(2.0, 0.7, geometry, space, image)
    z, scratch = torch.empty(2, 129, 63, dtype=work)
    found = similarity.block(similarity.texts(text), similarity.images(image), z, scratch) * similarity.gain
    tensors = image.double(), text.double(), torch.tensor(2.0).double(), torch.tensor(0.7).double()
    expected = reference.logits(*tensors, geometry, space).T / math.log(2)
    far = torch.zeros(63, dtype=torch.bool)
    far[3] = geometry == "lorentz"  # a product of 1e5 and 10: its rounding is not small
    # of a point met twice, cosh is 1 with the rounding of the product, and the distance its root
    near = 1e-6 if dtype == torch.float64 else 2e-2
    twice = torch.zeros(129, 63, dtype=torch.bool)
    twice[1, 2] = True
    rest = ~twice & ~far
    torch.testing.assert_close(found[rest].double(), expected[rest], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[twice].double(), expected[twice], rtol=1e-4, atol=near)
