"""Abstention along the best path; the risk-coverage curve and certified thresholds against loops and scipy."""

from __future__ import annotations

import itertools
import math

import guarantee
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_protocols import random_features, random_taxonomy

from bioclip_hc.evaluation import abstain, abstention, best_paths, certified_threshold, full_path, risk_coverage
from bioclip_hc.evaluation.abstention import certified_thresholds

SPACE = {"scale": 4.0, "geometry": "lorentz"}


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(2)
    taxonomy = random_taxonomy(rng, species=50, missing=0.3)
    return taxonomy, *random_features(rng, 60, taxonomy.size)


def test_threshold_0_never_abstains_and_above_1_always(problem) -> None:
    taxonomy, image, text = problem
    whole = full_path(image, text, taxonomy, **SPACE)
    np.testing.assert_array_equal(abstain(image, text, taxonomy, threshold=0, **SPACE), whole)
    assert (abstain(image, text, taxonomy, threshold=1.01, **SPACE) == -1).all()


@pytest.mark.parametrize("threshold", [0.05, 0.3, 0.6])
def test_it_stops_at_the_deepest_rank_that_passes(problem, threshold: float) -> None:
    taxonomy, image, text = problem
    paths = best_paths(image, text, taxonomy, **SPACE)
    found = abstain(image, text, taxonomy, threshold=threshold, **SPACE)
    probability = np.exp(paths.log_probability)
    some = 0
    for taxa, p, row in zip(paths.taxa, probability, found, strict=True):
        sure = 1.0
        for r, t in enumerate(taxa):
            if t >= 0:
                sure = min(sure, p[r])
            stays = t >= 0 and sure >= threshold
            assert row[r] == (t if stays else -1)
            some += not stays and t >= 0
    assert some, "nobody abstained"


def test_abstaining_takes_all_that_a_decoder_takes(problem) -> None:
    taxonomy, image, text = problem
    allowed = np.random.default_rng(0).random(taxonomy.size) < 0.6
    space = {"scale": 4.0, "geometry": "lorentz", "curv": 0.2, "candidates": allowed, "block": 9}
    paths = best_paths(image, text, taxonomy, **space)
    assert (paths.taxa != best_paths(image, text, taxonomy, **space | {"curv": 2.0}).taxa).any()
    found = abstain(image, text, taxonomy, threshold=0.2, **space)
    np.testing.assert_array_equal(found, abstention.stopped(paths.taxa, paths.confidence, 0.2))
    assert (found >= 0).any()
    assert not (found == paths.taxa).all()


def test_a_confidence_equal_to_the_threshold_passes() -> None:
    found = abstention.stopped(np.array([[1, 2, 3]]), np.array([[0.75, 0.5, 0.25]]), 0.5)
    assert found.tolist() == [[1, 2, -1]]


def test_the_grid_spreads_odds_evenly() -> None:
    grid = abstention.GRID
    assert (len(grid), grid[0]) == (64, 0)
    odds = grid[1:] / (1 - grid[1:])
    np.testing.assert_allclose(odds[[0, -1]], [1e-3, 1e6])
    np.testing.assert_allclose(np.diff(np.log(odds)), (math.log(1e6) + math.log(1e3)) / 62)


def test_the_default_is_to_fail_in_at_most_5_of_100_draws() -> None:
    right = np.ones(
        100, bool
    )  # 0.97^100 is 0.048: of 100 that are right one may say "less than 3 in 100 are wrong"
    certify = {"target": 0.03, "grid": [0.0]}
    assert certified_threshold(np.ones(100), right, **certify) == 0
    assert certified_threshold(np.ones(98), right[:98], **certify) == math.inf
    assert certified_threshold(np.ones(98), right[:98], **certify, delta=0.06) == 0


def test_a_higher_threshold_names_no_more(problem) -> None:
    taxonomy, image, text = problem
    named = [abstain(image, text, taxonomy, threshold=t, **SPACE) >= 0 for t in (0, 0.1, 0.4, 0.8)]
    assert all((less <= more).all() for more, less in itertools.pairwise(named))
    assert named[0].sum() > named[1].sum() > named[2].sum()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([0.1, 0.3, 0.5, 0.7, 0.9]), st.booleans()), min_size=1, max_size=25))
def test_the_curve_is_what_every_threshold_gives(decisions) -> None:
    confidence, right = (np.array(x) for x in zip(*decisions, strict=True))
    curve = risk_coverage(confidence, right)
    assert curve.threshold.tolist() == sorted(set(confidence.tolist()), reverse=True)
    area, before = 0.0, 0.0
    for threshold, coverage, risk in zip(curve.threshold, curve.coverage, curve.risk, strict=True):
        taken = [r for c, r in decisions if c >= threshold]
        assert coverage == len(taken) / len(decisions)
        assert risk == taken.count(False) / len(taken)
        area += (coverage - before) * risk
        before = coverage
    assert curve.coverage[-1] == 1
    assert curve.area == pytest.approx(area)


def test_the_area_of_the_best_order_is_the_least() -> None:
    right = np.array([True] * 7 + [False] * 3)
    best = risk_coverage(np.linspace(1, 0, 10), right).area
    assert best == pytest.approx(np.mean([0] * 7 + [1 / 8, 2 / 9, 3 / 10]))
    rng = np.random.default_rng(0)
    assert all(risk_coverage(rng.random(10), right).area >= best for _ in range(50))
    assert risk_coverage(np.ones(10), right).area == pytest.approx(0.3)


def test_the_binomial_tail_is_clopper_and_pearson_s_bound() -> None:
    scipy_stats = pytest.importorskip("scipy.stats")
    for count in (1, 7, 300, 5000):
        for wrong in {0, 1, count // 20, count // 3}:
            for share in (0.01, 0.1, 0.5):
                tail = abstention._at_most(wrong, count, share)
                assert tail == pytest.approx(scipy_stats.binom.cdf(wrong, count, share), rel=1e-8, abs=1e-300)
                if wrong < count:
                    for alpha in (0.05, 1e-4):
                        upper = scipy_stats.beta.ppf(1 - alpha, wrong + 1, count - wrong)
                        assert (upper <= share) == (tail <= alpha)
    assert abstention._at_most(0, 0, 0.1) == 1  # none passed: nothing is known


def test_the_certified_threshold_is_the_least_whose_bound_holds() -> None:
    rng = np.random.default_rng(3)
    confidence = rng.random(3000)
    right = rng.random(3000) < confidence
    grid = np.linspace(0, 1, 21)
    chosen = certified_threshold(confidence, right, target=0.2, grid=grid)
    holds = []
    for threshold in grid:
        taken = confidence >= threshold
        wrong = int((taken & ~right).sum())
        holds.append(abstention._at_most(wrong, int(taken.sum()), 0.2) <= 0.05 / 21)
    assert chosen == grid[holds.index(True)]
    assert 0.6 < chosen < 0.75  # the risk above t is (1 - t) / 2
    assert certified_threshold(confidence, right, target=0.001) == math.inf
    assert certified_threshold(confidence, np.ones(3000, bool), target=0.01) == 0


def test_the_guarantee_holds_as_often_as_it_says() -> None:
    """Risk above t is (1 - t) / 2: of 400 draws the share whose threshold breaks the target is at most delta."""
    rng = np.random.default_rng(4)
    broken, given_ = 0, 0
    for _ in range(400):
        confidence = rng.random(500)
        right = rng.random(500) < confidence
        threshold = certified_threshold(confidence, right, target=0.2, delta=0.2, grid=np.linspace(0.4, 0.95, 12))
        given_ += threshold < math.inf
        broken += threshold < math.inf and (1 - threshold) / 2 > 0.2 + 1e-12
    assert given_ > 300
    assert broken <= 0.2 * 400


@pytest.mark.parametrize("target", [0.1, 0.3])
def test_the_guarantee_holds_whatever_confidence_is_worth(target: float) -> None:
    for name, source in guarantee.sources(target).items():
        kept = guarantee.simulate(source, n=400, target=target, delta=0.1, draws=40)
        assert kept.broken <= 0.25, name  # of 40 draws at a chance of 0.1 more than 10 are wrong once in 700 cases
        if name == "mostly sure":
            assert kept.given > 0.9


def test_with_one_threshold_the_guarantee_is_as_tight_as_it_says() -> None:
    """All decisions are taken, and a hair too many are wrong: nearly delta of the draws must break the target."""
    rng = np.random.default_rng(5)
    source = guarantee.spread(lambda c: np.full(len(c), 0.7999))
    chosen = [certified_threshold(*source.draw(400, rng), target=0.2, delta=0.3, grid=[0.0]) for _ in range(800)]
    assert 0.23 < np.mean(np.isfinite(chosen)) < 0.33  # five standard deviations are 0.08
    assert {t for t in chosen if t < math.inf} == {0.0}


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=1, max_size=25), st.randoms())
def test_only_the_order_of_confidences_counts(decisions, random) -> None:
    confidence, right = (np.array(x) for x in zip(*decisions, strict=True))
    curve = risk_coverage(confidence, right)
    order = np.array(random.sample(range(len(right)), len(right)))
    other = risk_coverage(np.exp(confidence[order]) / 1e3, right[order])
    np.testing.assert_array_equal(curve.coverage, other.coverage)
    np.testing.assert_array_equal(curve.risk, other.risk)
    assert curve.area == other.area


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (([0.5, 0.6], [True]), "right"),
        (([0.5, 0.6], [1, 0]), "right"),
        (([], np.zeros(0, bool)), "one decision or more"),
        (([math.nan], [True]), "one decision or more"),
    ],
)
def test_errors_name_the_argument(arguments, words) -> None:
    for function in (risk_coverage, lambda *a: certified_threshold(*a, target=0.1)):
        with pytest.raises(ValueError, match=words):
            function(*arguments)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"target": 0}, "target"),
        ({"target": 0.1, "delta": 1}, "delta"),
        ({"target": 0.1, "grid": []}, "grid"),
        ({"target": 0.1, "grid": [0.5, math.nan]}, "grid"),
        ({"target": 0.1, "grid": [[0.5]]}, "grid"),
        ({"target": 1}, "target"),
        ({"target": 0.1, "delta": 0}, "delta"),
    ],
)
def test_options_out_of_range_are_named(options, words) -> None:
    with pytest.raises(ValueError, match=words):
        certified_threshold([0.5], [True], **options)


def test_thresholds_by_rank_are_those_of_each_rank_but_rise():
    rng = np.random.default_rng(0)
    sure = np.minimum.accumulate(np.where(np.arange(7) < 3, 1, 0.97) * rng.random((4000, 1)), axis=1)
    truth = np.tile(np.arange(7), (4000, 1))
    taxa = truth + 10 * ((sure < 0.6) & (np.arange(7) == 2))  # below the third rank all are right, sure or not
    found = certified_thresholds(sure, taxa, truth, target=0.1)
    alone = [certified_threshold(sure[:, r], taxa[:, r] == truth[:, r], target=0.1) for r in range(7)]
    assert found[:3].tolist() == alone[:3]
    assert alone[:4] == [0, 0, alone[2], 0]
    assert 0.4 < alone[2] < 0.7
    assert (found[3:] == alone[2]).all()


def ordered():
    """500 paths, the less sure half of them wrong at every rank."""
    sure = np.tile(np.linspace(1, 0.01, 500)[:, None], (1, 7))
    truth = np.tile(np.arange(7), (500, 1))
    return sure, np.where(sure > 0.5, truth, truth + 10), truth


def test_a_rank_at_which_nothing_is_named_changes_no_threshold():
    sure, taxa, truth = ordered()
    whole = certified_thresholds(sure, taxa, truth, target=0.1)
    taxa[:, [0, 3]] = truth[:, [0, 3]] = -1
    found = certified_thresholds(sure, taxa, truth, target=0.1)
    assert 0.4 < whole[6] < 0.7
    assert found[[1, 2, 4, 5, 6]].tolist() == whole[[1, 2, 4, 5, 6]].tolist()
    assert np.isinf(found[[0, 3]]).all()


@pytest.mark.parametrize("rank", [0, 3, 6])
def test_where_the_truth_of_none_is_known_nothing_is_named_nor_below(rank):
    sure, taxa, truth = ordered()
    truth[:, rank] = -1
    found = certified_thresholds(sure, taxa, truth, target=0.1)
    assert np.isfinite(found[:rank]).all()
    assert np.isinf(found[rank:]).all()


def test_no_image_certifies_nothing():
    none = np.zeros((0, 7), dtype=np.int64)
    assert np.isinf(certified_thresholds(none.astype(float), none, none, target=0.1)).all()


def test_where_nothing_can_be_certified_nothing_is_named_below_either():
    sure = np.full((50, 7), 0.9)
    truth = np.tile(np.arange(7), (50, 1))
    taxa = truth.copy()
    taxa[:, 2] += 10
    found = certified_thresholds(sure, taxa, truth, target=0.2)
    assert np.isfinite(found[:2]).all()
    assert np.isinf(found[2:]).all()


def test_every_rank_pays_for_all_thresholds_of_the_grid():
    """132 right ones of 132 certify 5% for one of about 30 thresholds, not for one of 64: that takes 140."""
    sure = np.tile(np.linspace(1, 0, 4000)[:, None], (1, 7))
    truth = np.tile(np.arange(7), (4000, 1))
    taxa = truth.copy()
    taxa[200:, 0] += 10
    for known, certified in ((132, False), (150, True)):
        told = truth.copy()
        told[known:, 1] = -1
        found = certified_thresholds(sure, taxa, told, target=0.05)
        assert 0.5 < found[0] < 1
        assert np.isfinite(found[1]) == certified
