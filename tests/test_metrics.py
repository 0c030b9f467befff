"""Metrics against loops and laws; the pixel probe."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from score_by_hand import by_hand, random_predictions, random_taxonomy, random_truth

from bioclip_hc.evaluation import Score, chance, pixel_probe, score
from bioclip_hc.taxonomy import RANKS, Taxonomy

R = len(RANKS)


def assert_same(actual: dict, expected: dict, tolerance: float = 1e-12) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        pairs = zip(actual[name], value, strict=True) if isinstance(value, list) else [(actual[name], value)]
        for a, b in pairs:
            assert a == (b if b is None else pytest.approx(b, abs=tolerance)), name


@pytest.mark.parametrize("seed", range(8))
def test_score_equals_a_loop_over_images(seed: int) -> None:
    rng = np.random.default_rng(seed)
    taxonomy = random_taxonomy(rng, missing=0.3 * (seed % 3))
    truth = random_truth(rng, taxonomy, 60)
    truth[rng.random(len(truth)) < 0.1] = -1  # images that nobody labelled
    predictions = random_predictions(rng, taxonomy, truth)
    assert_same(score(predictions, truth, taxonomy).to_dict(), by_hand(predictions, truth, taxonomy))


@pytest.mark.parametrize("seed", range(3))
def test_order_of_images_does_not_matter(seed: int) -> None:
    rng = np.random.default_rng(seed)
    taxonomy = random_taxonomy(rng, missing=0.2)
    truth = random_truth(rng, taxonomy, 50)
    predictions = random_predictions(rng, taxonomy, truth)
    order = rng.permutation(len(truth))
    shuffled = score(predictions[order], truth[order], taxonomy)
    assert_same(shuffled.to_dict(), score(predictions, truth, taxonomy).to_dict())


@pytest.mark.parametrize("seed", range(5))
def test_nlca_of_paths_is_the_mean_accuracy_over_ranks(seed: int) -> None:
    """The law behind the published top-down tables: complete lineages and predictions that are paths."""
    rng = np.random.default_rng(seed)
    taxonomy = random_taxonomy(rng, missing=0.0)
    leaves = taxonomy.at_rank(R - 1)
    truth, predictions = (taxonomy.lineages[rng.choice(leaves, 200)] for _ in range(2))
    result = score(predictions, truth, taxonomy)
    assert result.nlca == pytest.approx(np.mean(result.accuracy), abs=1e-12)
    assert result.nlca == pytest.approx(result.average, abs=1e-12)
    assert result.consistency == 1.0
    assert 0 < result.nlca < 1


@pytest.mark.parametrize("seed", range(5))
def test_laws_of_counts(seed: int) -> None:
    rng = np.random.default_rng(seed)
    taxonomy = random_taxonomy(rng, missing=0.3)
    truth = random_truth(rng, taxonomy, 80)
    result = score(random_predictions(rng, taxonomy, truth), truth, taxonomy)
    assert sum(result.first_error) == result.images
    assert result.first_error[-1] == result.full_path * result.images
    assert all(whole >= part for whole, part in zip(result.known, result.on_path, strict=True))
    assert result.full_path <= result.nlca


def test_a_perfect_prediction() -> None:
    taxonomy = random_taxonomy(np.random.default_rng(0), missing=0.3)
    truth = taxonomy.lineages
    result = score(truth, truth, taxonomy)
    assert result.nlca == result.full_path == result.consistency == result.average == 1.0
    assert result.first_error == (0,) * R + (taxonomy.size,)


def test_a_rank_that_no_truth_knows_is_none_and_stays_out_of_the_average() -> None:
    taxonomy = Taxonomy.from_lineages([("A", "B", "", "", "", "", "x"), ("A", "C", "", "", "", "", "y")])
    truth = taxonomy.lineages[taxonomy.at_rank(6)]
    wrong = truth.copy()
    wrong[0, 1] = truth[1, 1]
    result = score(wrong, truth, taxonomy)
    assert result.accuracy == (1.0, 0.5, None, None, None, None, 1.0)
    assert result.average == pytest.approx(2.5 / 3)
    assert result.first_error == (0, 1, 0, 0, 0, 0, 0, 1)
    assert result.nlca == pytest.approx((1 / 3 + 1) / 2)
    assert result.on_path_accuracy[6] == 1.0
    assert result.on_path == (2, 2, 0, 0, 0, 0, 1)
    assert result.consistency == 0.5


def test_nothing_to_score_gives_none_not_nan() -> None:
    taxonomy = Taxonomy.from_lineages([("A", "B", "", "", "", "", "x")])
    nothing = np.full((3, R), -1)
    for result in (score(nothing, nothing, taxonomy), score(nothing[:0], nothing[:0], taxonomy)):
        assert (result.images, result.average, result.nlca, result.full_path, result.consistency) == (
            0,
            *[None] * 4,
        )
        json.dumps(result.to_dict(), allow_nan=False)


def test_score_is_plain_json() -> None:
    taxonomy = random_taxonomy(np.random.default_rng(1), missing=0.2)
    truth = taxonomy.lineages
    for result in (score(truth, truth, taxonomy), chance(truth, taxonomy)):
        assert isinstance(result, Score)
        assert json.loads(json.dumps(result.to_dict(), allow_nan=False)) == result.to_dict()


@pytest.mark.parametrize("seed", range(3))
def test_chance_is_the_mean_score_of_every_possible_guess(seed: int) -> None:
    """A small tree, all guesses enumerated: each is a prediction, scored by `score`."""
    rng = np.random.default_rng(seed)
    rows = [(f"k{i % 2}", "", f"c{i % 3}", "" if i == 1 else "o", "", "", f"s{i}") for i in range(4)]
    taxonomy = Taxonomy.from_lineages(rows)
    allowed = np.ones(taxonomy.size, dtype=bool)
    if seed:
        allowed[rng.choice(taxonomy.at_rank(6))] = False  # its truth can never be met
        allowed[taxonomy.at_rank(3)] = seed == 1
    truth = taxonomy.lineages[rng.integers(taxonomy.size, size=6)]

    choices = [[t for t in taxonomy.at_rank(r) if allowed[t]] or [-1] for r in range(R)]
    guesses = [score(np.tile(g, (len(truth), 1)), truth, taxonomy) for g in itertools.product(*choices)]
    expected = chance(truth, taxonomy, allowed)
    shares = ("average", "nlca", "full_path", "por", "s_por_run", "tor", "consistency")
    for name in ("accuracy", "known", "on_path", "first_error", *shares):
        values = np.array([getattr(g, name) for g in guesses], dtype=float)
        np.testing.assert_allclose(
            np.array(getattr(expected, name), dtype=float), values.mean(0), atol=1e-12, err_msg=name
        )


@pytest.mark.parametrize(
    ("predictions", "message"),
    [
        (np.zeros((2, 3), dtype=int), r"predictions must be \(N, 7\) integers"),
        (np.full((2, R), 0.5), "predictions must be"),
        (np.full((2, R), 2), r"predictions\[0, 0\] must be -1 or a taxon id below 2, got 2"),
        (np.full((2, R), -2), r"predictions\[0, 0\] must be -1 or a taxon id below 2, got -2"),
        (np.full((2, R), 99), r"predictions\[0, 0\] must be -1 or a taxon id below 2, got 99"),
        (np.zeros((2, R), dtype=int), r"predictions\[0, 1\] must be a taxon of rank phylum, got 0 of rank kingdom"),
        (np.full((3, R), -1), "one row per image"),
    ],
)
def test_errors_name_the_entry(predictions: np.ndarray, message: str) -> None:
    taxonomy = Taxonomy.from_lineages([("A", "B", "", "", "", "", "")])
    with pytest.raises(ValueError, match=message):
        score(predictions, np.full((2, R), -1), taxonomy)


@pytest.mark.parametrize("pixels", [3, 80])  # more images than pixels, and fewer
def test_pixel_probe_equals_the_ridge_problem_solved_as_least_squares(pixels: int) -> None:
    rng = np.random.default_rng(0)
    taxonomy = random_taxonomy(rng, missing=0.2, species=6)
    taxa = random_truth(rng, taxonomy, 40)
    train, test = rng.normal(size=(40, pixels)) * 5 + 2, rng.normal(size=(15, pixels)) * 5 + 2
    found = pixel_probe(train, taxa, test, taxonomy, ridge=0.05)
    for r in range(R):
        rows = taxa[:, r] >= 0
        x, label = train[rows], taxa[rows, r]
        classes = np.unique(label)
        mean, unit = x.mean(0), x.std(0) * np.sqrt(len(x) * pixels)
        target = (label[:, None] == classes).astype(float)
        design = np.concatenate([(x - mean) / unit, np.sqrt(0.05) * np.eye(pixels)])  # the penalty as extra rows
        answer = np.concatenate([target - target.mean(0), np.zeros((pixels, len(classes)))])
        weight = np.linalg.lstsq(design, answer, rcond=None)[0]
        scores = (test - mean) / unit @ weight + target.mean(0)
        np.testing.assert_array_equal(found[:, r], classes[scores.argmax(1)])


def test_pixel_probe_learns_separable_taxa_and_leaves_unknown_ranks_out() -> None:
    rng = np.random.default_rng(1)
    taxonomy = Taxonomy.from_lineages([("A", "", "", "", "", f"g{i // 2}", f"s{i}") for i in range(6)])
    species = np.repeat(taxonomy.at_rank(6), 20)
    means = rng.normal(size=(taxonomy.size, 30)) * 3
    train, test = (means[species] + rng.normal(size=(len(species), 30)) for _ in range(2))
    train[:, 0] = test[:, 0] = 7.0  # a constant pixel says nothing and breaks nothing
    found = pixel_probe(train, taxonomy.lineages[species], test, taxonomy)
    assert (found[:, 1:5] == -1).all()
    result = score(found, taxonomy.lineages[species], taxonomy)
    assert min(result.accuracy[r] for r in (0, 5, 6)) > 0.95


def test_pixel_probe_errors() -> None:
    taxonomy = Taxonomy.from_lineages([("A", "B", "", "", "", "", "")])
    truth = np.full((4, R), -1)
    with pytest.raises(ValueError, match="train_pixels, train_taxa and test_pixels must be"):
        pixel_probe(np.ones((4, 3)), truth, np.ones((2, 5)), taxonomy)
    with pytest.raises(ValueError, match="ridge must be positive, got 0"):
        pixel_probe(np.ones((4, 3)), truth, np.ones((2, 3)), taxonomy, ridge=0)
