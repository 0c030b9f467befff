"""Bootstrap intervals against all resamples enumerated, scipy's bootstrap, normal theory, and what they promise."""

from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pytest
from score_by_hand import R, case

from bioclip_hc.evaluation import score
from bioclip_hc.evaluation.intervals import BLOCK, _resampled_sums, bootstrap
from bioclip_hc.evaluation.metrics import score_parts


def parts_of(values: np.ndarray) -> dict:
    return {"mean": (values, np.ones(len(values)))}


@pytest.mark.parametrize("seed", range(3))
def test_interval_equals_that_of_all_possible_resamples(seed: int) -> None:
    """Six images of which some are alike: 6 ** 6 resamples, each scored as if it were the data."""
    c = case(seed, missing=0.3, images=6)
    c.truth[1], c.independent[1] = c.truth[0], c.independent[0]
    chosen = np.array(list(itertools.product(range(6), repeat=6)))
    count = (chosen[:, :, None] == np.arange(6)).sum(1)
    parts = score_parts(c.independent, c.truth, c.taxonomy)
    result = bootstrap(parts, resamples=40_000, seed=seed, level=0.8)
    for name in ("nlca", "por", "h_f1", "tree_distance", "tor"):
        part, whole = (count @ x for x in parts[name])
        exact = np.sort(part[whole > 0] / whole[whole > 0])
        for found, q in zip(result.measures[name], (0.1, 0.9), strict=True):
            around = np.quantile(exact, [q - 0.01, q + 0.01])  # the draw's error: five standard deviations
            assert around[0] - 1e-12 <= found <= around[1] + 1e-12, name


def test_average_is_the_mean_over_the_ranks_that_a_resample_has() -> None:
    """As `score` says of the same images; one of three images alone knows the species."""
    c = case(1, missing=0.0, images=3)
    c.truth[:2, R - 1] = -1
    parts = score_parts(c.independent, c.truth, c.taxonomy)
    drawn = [list(rows) for rows in itertools.product(range(3), repeat=3)]
    exact = [score(c.independent[rows], c.truth[rows], c.taxonomy).average for rows in drawn]
    low, high = bootstrap(parts, resamples=20_000, level=0.9).measures["average"]
    assert np.quantile(exact, 0.02) - 1e-12 <= low <= np.quantile(exact, 0.08) + 1e-12
    assert np.quantile(exact, 0.92) - 1e-12 <= high <= np.quantile(exact, 0.98) + 1e-12
    assert low < high


def test_interval_equals_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(0).integers(0, 3, 300) / 2
    expected = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=4_000, rng=1)
    found = bootstrap(parts_of(values), resamples=20_000)
    np.testing.assert_allclose(found.measures["mean"], expected.confidence_interval, atol=0.006)
    error = values.std() / np.sqrt(len(values))  # of a mean, in theory
    np.testing.assert_allclose(found.measures["mean"], values.mean() + 1.96 * error * np.array([-1, 1]), atol=0.006)


def test_95_percent_of_intervals_hold_the_truth() -> None:
    rng = np.random.default_rng(0)
    intervals = [
        bootstrap(parts_of((rng.random(200) < 0.7).astype(float)), resamples=300, seed=i).measures["mean"]
        for i in range(400)
    ]
    covered = np.mean([low <= 0.7 <= high for low, high in intervals])
    assert 0.91 <= covered <= 0.98


def test_seed_decides_and_order_of_images_does_not_matter() -> None:
    c = case(4)
    order = c.rng.permutation(len(c.truth))
    first, again, shuffled = (
        bootstrap(score_parts(c.independent[o], c.truth[o], c.taxonomy), resamples=50)
        for o in (slice(None), slice(None), order)
    )
    assert first == again == shuffled
    assert bootstrap(score_parts(c.independent, c.truth, c.taxonomy), resamples=50, seed=1) != first


def test_intervals_hold_their_score_and_have_its_shape() -> None:
    c = case(0)
    result, intervals = (
        score(c.independent, c.truth, c.taxonomy),
        bootstrap(score_parts(c.independent, c.truth, c.taxonomy)),
    )
    for name, found in intervals.measures.items():
        value = getattr(result, name)
        if name == "first_error":
            value = [count / result.images for count in value]
        pairs = [(value, found)] if isinstance(value, float) else list(zip(value, found, strict=True))
        for number, interval in pairs:
            assert (number is None) == (interval is None), name
            assert number is None or interval[0] <= number <= interval[1], name


def test_nothing_to_measure() -> None:
    c = case(0)
    for truth in (np.full_like(c.truth, -1), c.truth[:0]):
        parts = score_parts(c.independent[: len(truth)], truth, c.taxonomy)
        measures = bootstrap(parts, resamples=10).measures
        assert measures["nlca"] is measures["average"] is None
        assert measures["accuracy"] == (None,) * R


def test_memory_is_bounded_where_no_two_images_are_alike() -> None:
    values = np.random.default_rng(0).random(30_000)
    tracemalloc.start()
    bootstrap(parts_of(values), resamples=200)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * 8 * BLOCK  # all counts at once would be 48 MB, twice over where they are made floats


@pytest.mark.parametrize("block", [1, 30, 100])
def test_resamples_drawn_in_blocks_are_those_drawn_at_once(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    columns = np.random.default_rng(0).integers(3, size=(20, 2)).astype(float)
    whole = _resampled_sums(columns, 11, np.random.default_rng(1))
    assert whole.shape == (11, 2)
    monkeypatch.setattr("bioclip_hc.evaluation.intervals.BLOCK", block)
    np.testing.assert_array_equal(_resampled_sums(columns, 11, np.random.default_rng(1)), whole)


def test_average_of_one_rank_is_its_accuracy() -> None:
    c = case(0, missing=0.0)
    c.truth[:, : R - 1] = -1
    with np.errstate(all="raise"):
        measures = bootstrap(score_parts(c.independent, c.truth, c.taxonomy), resamples=60).measures
    assert measures["average"] == measures["accuracy"][R - 1] is not None
    assert measures["accuracy"][0] is None


def test_whole_numbers_and_the_least_of_resamples() -> None:
    found = bootstrap({"mean": (np.arange(9), np.ones(9, dtype=int))}, resamples=2)
    low, high = found.measures["mean"]
    assert 0 <= low <= high <= 8
    assert (found.resamples, found.level, found.seed) == (2, 0.95, 0)
    assert bootstrap(parts_of(np.ones(2))).resamples == 1000


@pytest.mark.parametrize(
    ("options", "message"),
    [({"level": 0}, "level must be"), ({"level": 1}, "level must be"), ({"resamples": 1}, "resamples must")],
)
def test_errors(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bootstrap(parts_of(np.ones(3)), **options)
