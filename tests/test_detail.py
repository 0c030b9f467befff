"""Everything of one system: answers and their probabilities, calibration, order, strata, and all of it as JSON."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from score_by_hand import R, case, random_taxonomy

from bioclip_hc.evaluation import coarse_to_fine, score
from bioclip_hc.evaluation.answers import answer_probabilities, answer_probability, best_answers
from bioclip_hc.evaluation.calibration import calibration
from bioclip_hc.evaluation.detail import detailed
from bioclip_hc.evaluation.intervals import bootstrap
from bioclip_hc.evaluation.metrics import score_parts, top_k
from bioclip_hc.evaluation.ordering import root_order
from bioclip_hc.evaluation.strata import strata, training_counts
from bioclip_hc.taxonomy import Taxonomy

SPACE = {"scale": 7.0, "geometry": "euclidean"}


@pytest.mark.parametrize("some", [False, True])
def test_answers_and_probabilities_are_those_of_a_dense_softmax(
    some: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bioclip_hc.evaluation.answers.BLOCK", 7)
    rng = np.random.default_rng(0)
    taxonomy = random_taxonomy(rng, 0.2)
    image, text = (torch.from_numpy(rng.normal(size=(n, 5))) for n in (20, taxonomy.size))
    allowed = rng.random(taxonomy.size) < 0.5 if some else np.ones(taxonomy.size, bool)
    allowed[taxonomy.at_rank(2)] &= not some  # a rank without candidates
    given = {"candidates": allowed} if some else {}
    found = best_answers(image, text, taxonomy, k=3, **given, **SPACE)
    probability = answer_probability(image, text, taxonomy, found[:, :, 0], **given, **SPACE)

    unit = [x / x.norm(dim=1, keepdim=True) for x in (image, text)]
    logits = (7.0 * unit[0] @ unit[1].T).numpy()
    for r in range(R):
        taxa = taxonomy.at_rank(r)
        taxa = taxa[allowed[taxa]]
        order = taxa[np.argsort(-logits[:, taxa], axis=1)[:, :3]]
        np.testing.assert_array_equal(found[:, r, : order.shape[1]], order)
        assert (found[:, r, order.shape[1] :] == -1).all()
        share = np.exp(logits[:, taxa])
        expected = (share / share.sum(1, keepdims=True)).max(1) if len(taxa) else np.zeros(20)
        np.testing.assert_allclose(probability[:, r], expected, atol=1e-6)
    np.testing.assert_array_equal(found[:, :, 0], coarse_to_fine(image, text, taxonomy, **given, **SPACE))


def test_detail_is_plain_json_and_its_strata_are_scores_of_their_images() -> None:
    c = case(2)
    counts = training_counts(c.taxonomy.lineages[c.rng.integers(c.taxonomy.size, size=30)], c.taxonomy)
    answers = np.stack([c.independent, c.truth], axis=2)
    probability = c.rng.random(c.truth.shape)
    given = {"answers": answers, "probability": probability, "counts": counts, "head": 4, "resamples": 20}
    result = detailed(c.independent, c.truth, c.taxonomy, **given, distance=c.taxonomy.rank * 1.0)

    content = result.to_dict()
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    plain = score(c.independent, c.truth, c.taxonomy).to_dict()
    assert {name: content[name] for name in plain} == plain
    assert result.top_k == tuple(None if a is None else 1.0 for a in result.accuracy)
    assert result.calibration == calibration(probability, c.independent, c.truth, c.taxonomy)
    assert (result.k, result.head, result.root_order) == (2, 4, 1.0)
    assert result.intervals == bootstrap(score_parts(c.independent, c.truth, c.taxonomy), resamples=20)
    assert sum(part.images for part in result.strata.values()) == result.images
    for name, rows in strata(c.truth, counts, c.taxonomy, 4).items():
        part = result.strata[name]
        assert part.images == rows.sum() > 0
        assert part.strata is part.root_order is None
        assert (part.k, part.head) == (2, 4)
        assert part.top_k == top_k(answers[rows], c.truth[rows], c.taxonomy)
        assert part.top_k_average == 1.0
        assert part.intervals == bootstrap(
            score_parts(c.independent[rows], c.truth[rows], c.taxonomy), resamples=20
        )
        assert part.calibration == calibration(probability[rows], c.independent[rows], c.truth[rows], c.taxonomy)
        assert {n: part.to_dict()[n] for n in plain} == score(
            c.independent[rows], c.truth[rows], c.taxonomy
        ).to_dict()


def test_detail_without_anything_else() -> None:
    c = case(0)
    result = detailed(c.paths, c.truth, c.taxonomy, resamples=5)
    assert result.top_k is result.top_k_average is result.calibration is result.strata is result.root_order is None
    assert result.k == 1
    assert (result.intervals.resamples, result.intervals.seed, result.head) == (5, 0, 20)
    other = detailed(c.paths, c.truth, c.taxonomy, counts=np.full(c.taxonomy.size, 20), seed=7, head=21)
    assert (other.intervals.resamples, other.intervals.seed) == (1000, 7)
    tail = other.strata["tail"]
    assert (tail.images, tail.top_k, tail.calibration) == (other.images, None, None)
    assert (tail.intervals.resamples, tail.intervals.seed) == (1000, 7)


def test_average_of_the_top_k_is_over_the_ranks_present() -> None:
    c = case(3)
    c.truth[:, 2] = -1
    result = detailed(c.independent, c.truth, c.taxonomy, answers=c.independent[:, :, None], resamples=2)
    assert result.top_k == result.accuracy
    assert result.top_k[2] is None
    assert result.top_k_average == result.average
    nothing = detailed(c.independent[:0], c.truth[:0], c.taxonomy, answers=c.independent[:0, :, None], resamples=2)
    assert nothing.top_k == (None,) * R
    assert nothing.top_k_average is None


def test_defaults_are_those_of_the_literature() -> None:
    c = case(1)
    assert len(calibration(np.full(c.truth.shape, 0.5), c.paths, c.truth, c.taxonomy).count[0]) == 15
    counts = np.where(np.arange(c.taxonomy.size) % 2, 20, 19)
    labelled = c.truth.max(axis=1)
    found = strata(c.truth, counts, c.taxonomy)
    np.testing.assert_array_equal(found["head"], (labelled >= 0) & (labelled % 2 == 1))
    np.testing.assert_array_equal(found["tail"], (labelled >= 0) & (labelled % 2 == 0))


@pytest.mark.parametrize("geometry", ["euclidean", "lorentz"])
@pytest.mark.parametrize(("some", "dtype", "rtol"), [(False, torch.float32, 1e-4), (True, torch.float64, 1e-10)])
def test_probabilities_of_several_answers_are_those_of_each(
    geometry: str, some: bool, dtype: torch.dtype, rtol: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bioclip_hc.evaluation.answers.BLOCK", 7)
    rng = np.random.default_rng(3)
    taxonomy = random_taxonomy(rng, 0.2, species=60)
    image, text = (torch.from_numpy(rng.normal(size=(n, 6))).to(dtype) for n in (20, taxonomy.size))
    image[4] = torch.nan
    space = {"scale": 20.0, "geometry": geometry}
    space |= {"candidates": rng.random(taxonomy.size) < 0.6} if some else {}
    best, second = np.moveaxis(best_answers(image, text, taxonomy, k=2, **space), 2, 0)
    mixed = np.where(rng.random(best.shape) < 0.5, best, second)
    found = answer_probabilities(image, text, taxonomy, {"best": best, "second": second, "mixed": mixed}, **space)
    for name, answers in (("best", best), ("second", second), ("mixed", mixed)):
        expected = answer_probability(image, text, taxonomy, answers, **space)
        np.testing.assert_allclose(found[name], expected, rtol=rtol)
        np.testing.assert_array_equal(found[name] == 0, answers < 0)
    np.testing.assert_array_equal(found["mixed"][mixed == best], found["best"][mixed == best])
    assert (found["second"] < found["best"])[second >= 0].all()


def test_without_candidates_there_are_no_answers() -> None:
    rng = np.random.default_rng(1)
    taxonomy = random_taxonomy(rng, 0.2)
    image, text = (torch.from_numpy(rng.normal(size=(n, 5))) for n in (3, taxonomy.size))
    nobody = np.zeros(taxonomy.size, bool)
    found = best_answers(image, text, taxonomy, k=2, candidates=nobody, **SPACE)
    assert found.shape == (3, R, 2)
    assert (found == -1).all()
    assert not answer_probability(image, text, taxonomy, found[:, :, 0], candidates=nobody, **SPACE).any()


def test_a_probability_is_at_most_1_whatever_the_rounding() -> None:
    """Images at their own texts in fp32: the loss, whose exponential it is, may come out below 0."""
    rng = np.random.default_rng(2)
    taxonomy = random_taxonomy(rng, 0.0, species=60)
    text = torch.from_numpy(rng.normal(size=(taxonomy.size, 8))).float()
    species = taxonomy.at_rank(R - 1)
    space = {"scale": 100.0, "geometry": "euclidean"}
    found = answer_probability(text[species], text, taxonomy, taxonomy.lineages[species], **space)
    assert found.max() <= 1
    assert found.min() >= 0
    assert found.dtype == np.float64


def test_probabilities_as_good_as_they_say_have_no_calibration_error() -> None:
    rng = np.random.default_rng(0)
    taxonomy = Taxonomy.from_lineages([("A", "", "", "", "", "", "x"), ("A", "", "", "", "", "", "y")])
    truth = taxonomy.lineages[rng.choice(taxonomy.at_rank(6), 40_000)]
    stated = rng.random(truth.shape)
    wrong = np.where(truth == taxonomy.at_rank(6)[0], taxonomy.at_rank(6)[1], taxonomy.at_rank(6)[0])
    guess = np.where(rng.random(truth.shape) < stated, truth, np.where(np.arange(R) == 6, wrong, -1))
    error = calibration(stated, guess, truth, taxonomy).error
    assert error[6] < 0.01
    assert calibration(np.sqrt(stated), guess, truth, taxonomy).error[6] > 0.1  # too sure of itself
    assert error[1] is None


def test_order_of_root_distances() -> None:
    taxonomy = random_taxonomy(np.random.default_rng(3), 0.4)
    rank = taxonomy.rank.astype(float)
    assert root_order(rank, taxonomy) == 1
    assert root_order(-rank, taxonomy) == -1
    assert root_order(np.zeros(taxonomy.size), taxonomy) == 0
    assert root_order(np.exp(rank) / 3, taxonomy) == 1  # only the order counts
    chain = Taxonomy.from_lineages([(*"KPC", "", "", "", "")])
    assert root_order([1, 3, 2], chain) == pytest.approx(1 / 3)
    assert root_order([1, 1, 2], chain) == pytest.approx(2 / 3)  # a tie is neither
    assert root_order([4], Taxonomy.from_lineages([("K", "", "", "", "", "", "")])) is None


def test_errors_name_the_entry() -> None:
    taxonomy = Taxonomy.from_lineages([("A", "B", "", "", "", "", "")])
    taxa = taxonomy.lineages
    ok = np.full(taxa.shape, 0.5)
    bad = ok.copy()
    bad[1, 1] = np.nan
    misplaced = np.where(taxa == 0, 1, taxa)
    with pytest.raises(ValueError, match=r"probability\[1, 1\] must be in \[0, 1\], got nan"):
        calibration(bad, taxa, taxa, taxonomy)
    assert calibration(bad, taxa[:1].repeat(2, 0), taxa[:1].repeat(2, 0), taxonomy).error[0] == 0.5  # not read
    for outside in (1.5, -0.1):
        with pytest.raises(ValueError, match=rf"probability\[1, 1\] must be in \[0, 1\], got {outside}"):
            calibration(np.where(np.isnan(bad), outside, bad), taxa, taxa, taxonomy)
    with pytest.raises(ValueError, match="one row per image"):
        calibration(ok[:1], taxa, taxa, taxonomy)
    with pytest.raises(ValueError, match="bins must be at least 1, got 0"):
        calibration(ok, taxa, taxa, taxonomy, bins=0)
    with pytest.raises(ValueError, match=r"answers must be \(2, 7, 'k'\) taxon ids, got shape \(2, 7\)"):
        top_k(taxa, taxa, taxonomy)
    with pytest.raises(ValueError, match=r"answers\[:, :, 1\]\[0, 0\] must be a taxon of rank kingdom, got 1"):
        top_k(np.stack([taxa, misplaced], 2), taxa, taxonomy)
    with pytest.raises(ValueError, match=r"counts must be 2 integers >= 0, one per taxon, got int64 .* of -1"):
        strata(taxa, np.array([3, -1]), taxonomy)
    with pytest.raises(ValueError, match="counts must be 2 integers"):
        strata(taxa, np.array([3.0, 1.0]), taxonomy)
    with pytest.raises(ValueError, match="head must be at least 1, got 0"):
        strata(taxa, np.array([3, 1]), taxonomy, head=0)
    with pytest.raises(ValueError, match="distance must be 2 finite numbers"):
        root_order([1.0, np.inf], taxonomy)
