"""What protocols and measures must say together: laws on random trees, and figures of real taxonomies."""

from __future__ import annotations

import csv
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from score_by_hand import random_taxonomy, random_truth

from bioclip_hc.evaluation import coarse_to_fine, full_path, score, top_down
from bioclip_hc.evaluation.answers import best_answers
from bioclip_hc.evaluation.hierarchy import tree_parts
from bioclip_hc.evaluation.outcome import outcome
from bioclip_hc.taxonomy import RANKS, Taxonomy

R, D = len(RANKS), 6
GEOMETRIES = ("lorentz", "euclidean")
DECODERS = (coarse_to_fine, top_down, full_path)


def features(rng: np.random.Generator, taxonomy: Taxonomy, truth: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (N, D) near the texts (T, D) of their true taxa, so that about half of the answers are right."""
    text = rng.normal(size=(taxonomy.size, D))
    image = np.where(truth[:, :, None] >= 0, text[truth], 0).mean(axis=1) + 0.3 * rng.normal(size=(len(truth), D))
    return torch.from_numpy(image).float(), torch.from_numpy(text).float()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(GEOMETRIES))
def test_top_down_through_complete_lineages(seed: int, geometry: str) -> None:
    """nLCA is the mean of the accuracies over all images, which are products of those on the true path."""
    rng = np.random.default_rng(seed)
    taxonomy = random_taxonomy(rng, missing=0.0)
    truth = taxonomy.lineages[rng.choice(taxonomy.at_rank(R - 1), 40)]
    image, text = features(rng, taxonomy, truth)
    descent, independent = (
        protocol(image, text, taxonomy, scale=3.0, geometry=geometry) for protocol in (top_down, coarse_to_fine)
    )
    result = score(descent, truth, taxonomy)
    right = (descent == truth).mean(axis=0)
    assert result.nlca == pytest.approx(right.mean(), abs=1e-12)
    assert result.nlca == pytest.approx(result.average, abs=1e-12)
    share = 1.0
    for r in range(R):
        share *= result.on_path_accuracy[r] if result.on_path[r] else 0.0
        assert result.accuracy[r] == pytest.approx(share, abs=1e-12)
        assert result.accuracy[r] == (result.on_path[r + 1] / 40 if r + 1 < R else result.full_path)
    assert result.consistency == 1.0
    assert result.accuracy[0] == score(independent, truth, taxonomy).accuracy[0]  # there the protocols coincide


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.sampled_from(GEOMETRIES))
def test_a_benchmark_that_begins_below_the_kingdom(seed: int, first: int, geometry: str) -> None:
    """Upper ranks left out of candidates and truth: as if the tree had been cut off above them."""
    rng = np.random.default_rng(seed)
    taxonomy = random_taxonomy(rng, missing=0.2)
    truth = random_truth(rng, taxonomy, 30)
    image, text = features(rng, taxonomy, truth)
    allowed = taxonomy.rank >= first
    truth[:, :first] = -1
    rows = [taxonomy.lineage_names(t) for t in range(taxonomy.size)]
    unlike = [  # names are made unique, so that the cut tree has the same taxa as the whole one
        [f"{t}" if t >= 0 and r >= first else "" for r, t in enumerate(taxonomy.lineage(t))]
        for t in np.flatnonzero(allowed)
    ]
    assert len(rows) == taxonomy.size
    cut = Taxonomy.from_lineages(unlike)
    of_cut = np.array([int(cut.path(t)[-1]) for t in range(cut.size)])  # id in the whole tree
    assert sorted(of_cut) == np.flatnonzero(allowed).tolist()
    place = np.full(taxonomy.size + 1, -1)
    place[of_cut] = np.arange(cut.size)
    for decoder in DECODERS:
        whole = decoder(image, text, taxonomy, scale=3.0, geometry=geometry, candidates=allowed)
        small = decoder(image, text[torch.from_numpy(of_cut)], cut, scale=3.0, geometry=geometry)
        np.testing.assert_array_equal(place[whole], small)
        assert (whole[:, :first] == -1).all()
        result = score(whole, truth, taxonomy)
        assert result.to_dict() == score(small, place[truth], cut).to_dict()
        assert result.known[:first] == (0,) * first
        assert result.accuracy[:first] == (None,) * first


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_an_image_whose_features_are_not_finite_is_answered_nothing(geometry: str, broken: float) -> None:
    """Nor does it disturb the others: it counts as an image that the system got wrong."""
    rng = np.random.default_rng(3)
    taxonomy = random_taxonomy(rng, missing=0.2)
    truth = random_truth(rng, taxonomy, 12)
    truth[5] = taxonomy.lineages[taxonomy.at_rank(R - 1)[0]]  # the first taxa: what an argmax over NaN would give
    image, text = features(rng, taxonomy, truth)
    image[5, 1] = broken
    space = {"scale": 3.0, "geometry": geometry}
    found = outcome(np.arange(12), image, truth, text, taxonomy, **space)
    others = np.arange(12) != 5
    healthy = outcome(np.arange(11), image[others], truth[others], text, taxonomy, **space)
    assert not found.confidence[5].any()
    assert (found.answers["coarse-to-fine"][5] == -1).all()
    for name, predictions in found.predictions.items():
        assert (predictions[5] == -1).all(), name
        assert not found.probability[name][5].any(), name
        np.testing.assert_array_equal(predictions[others], healthy.predictions[name])
    for name, result in found.scores().items():
        assert result.images == 12
        assert result.full_path <= 11 / 12, name
        assert result.calibration.error == healthy.scores()[name].calibration.error


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("decoder", [*DECODERS, best_answers])
def test_a_text_that_is_not_finite_is_an_error_unless_it_is_no_candidate(geometry: str, decoder) -> None:
    rng = np.random.default_rng(4)
    taxonomy = random_taxonomy(rng, missing=0.2)
    image, text = features(rng, taxonomy, random_truth(rng, taxonomy, 5))
    space = {"scale": 3.0, "geometry": geometry} | ({"k": 2} if decoder is best_answers else {})
    text[7, 2] = math.nan
    text[9, 0] = math.inf
    words = f"text must be finite, got NaN or infinity for 2 taxa, the first '{' '.join(taxonomy.path(7))}'"
    with pytest.raises(ValueError, match=words):
        decoder(image, text, taxonomy, **space)
    rest = ~np.isin(np.arange(taxonomy.size), [7, 9])
    found = decoder(image, text, taxonomy, candidates=rest, **space)
    assert not np.isin(found, [7, 9]).any()
    assert (found[:, R - 1] >= 0).any()


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("block", [1, 3, 100])
def test_of_texts_that_are_equally_near_the_smaller_id_is_answered(geometry: str, block: int) -> None:
    """Every text is one of two, so that ties are everywhere."""
    rng = np.random.default_rng(5)
    taxonomy = random_taxonomy(rng, missing=0.0)
    two = torch.eye(D)[:2]  # along axes: whatever the order of summation, equal texts get equal scores
    text, image = two[torch.from_numpy(rng.integers(2, size=taxonomy.size))], two.repeat(4, 1)
    space = {"scale": 3.0, "geometry": geometry, "block": block}
    independent, descent = (decoder(image, text, taxonomy, **space) for decoder in (coarse_to_fine, top_down))
    for i in range(len(image)):
        standing = -1
        for r in range(R):
            for taxa, found in (
                (taxonomy.at_rank(r), independent),
                ([t for t in taxonomy.at_rank(r) if taxonomy.parent[t] == standing], descent),
            ):
                same = [t for t in taxa if torch.equal(text[t], image[i])]
                assert found[i, r] == (same[0] if same else taxa[0])
            standing = descent[i, r]
    space.pop("block")
    np.testing.assert_array_equal(best_answers(image, text, taxonomy, k=2, **space)[:, :, 0], independent)


def test_epithets_that_repeat_are_different_species(data_folder) -> None:
    """Rare Species has 400 species of 385 epithets; naming the other of the same epithet is wrong."""
    taxonomy = Taxonomy.from_csv(data_folder / "taxonomies" / "rare_species.csv")
    species = taxonomy.at_rank(R - 1)
    epithets = [taxonomy.name(int(t)) for t in species]
    assert (len(species), len(set(epithets))) == (400, 385)
    first_of = dict(zip(reversed(epithets), reversed(species), strict=True))
    namesake = taxonomy.lineages[[first_of[name] for name in epithets]]
    result = score(namesake, taxonomy.lineages[species], taxonomy)
    assert result.accuracy[R - 1] == 385 / 400
    assert result.full_path == 385 / 400
    rng = np.random.default_rng(0)
    text = torch.from_numpy(rng.normal(size=(taxonomy.size, 32)))
    found = coarse_to_fine(text[torch.from_numpy(species)], text, taxonomy, scale=9.0, geometry="euclidean")
    np.testing.assert_array_equal(found[:, R - 1], species)


def test_heights_and_distances_of_the_golden_pairs(data_folder) -> None:
    """iNaturalist 2021's pairs of species, with the depth of their common ancestor and the edges between them."""
    folder = data_folder / "taxonomies"
    taxonomy = Taxonomy.from_csv(folder / "inat21.csv")
    with (folder / "inat21.csv").open(encoding="utf-8", newline="") as table:
        rows = [[row[rank] for rank in RANKS] for row in csv.DictReader(table)]
    leaves = taxonomy.encode_many(rows)
    with (folder / "golden_inat21_lca_pairs.csv").open(encoding="utf-8", newline="") as table:
        pairs = list(csv.DictReader(table))
    a, b = (leaves[[int(pair[side]) for pair in pairs]] for side in ("leaf_a", "leaf_b"))
    depth, edges = (np.array([int(pair[name]) for pair in pairs]) for name in ("lca_depth", "edge_distance"))
    assert len(pairs) > 4000
    parts = tree_parts(a, b, taxonomy)
    np.testing.assert_array_equal(parts["tree_distance"][0], edges)
    np.testing.assert_array_equal(parts["lca_height"][0], R - depth)
    np.testing.assert_array_equal(parts["h_recall"][0], depth)
    assert score(a, b, taxonomy).nlca == pytest.approx(depth.mean() / R, abs=1e-12)
