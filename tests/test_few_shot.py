"""Few-shot classification against scikit-learn, and against loops in float64 where space is hyperbolic."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bioclip_hc import evaluation
from bioclip_hc.evaluation.shots import (
    _classifier,
    _drawn,
    _usable,
    few_shot,
    lorentz_centroid,
    tangent_mean,
)
from bioclip_hc.taxonomy import RANKS, Taxonomy

R, D = len(RANKS), 12


@pytest.fixture(scope="module")
def taxonomy() -> Taxonomy:
    """Twelve species, of which two are of every genus, four of every family ..."""
    return Taxonomy.from_lineages(
        [[f"{rank}{i // max(1, 2 ** (R - 1 - r))}" for r, rank in enumerate(RANKS)] for i in range(12)]
    )


@pytest.fixture(scope="module")
def images(taxonomy):
    """(96, D) clustered float64 features and their taxa; some labels unknown."""
    rng = np.random.default_rng(0)
    species = rng.permutation(np.repeat(taxonomy.at_rank(R - 1), 8))
    centre = rng.normal(size=(taxonomy.size, D))
    v = centre[species] * 0.5 + rng.normal(size=(len(species), D)) * 0.9
    taxa = taxonomy.lineages[species].copy()
    taxa[rng.random(taxa.shape) < 0.1] = -1
    return torch.from_numpy(v), taxa


def episode(taxa: np.ndarray, r: int, shots: int, seed: int = 0):
    """Image positions and labels of one draw: support, its labels, query, its labels."""
    usable, label = _usable(taxa[:, r], shots)
    support, query = _drawn(label, shots, np.random.default_rng((seed, r)))
    return usable[support], label[support], usable[query], label[query]


def named(method: str, v: torch.Tensor, draw, geometry: str, k: int = 1, curv: float = 1.0) -> np.ndarray:
    support, label, query, _ = draw
    classify = _classifier(method, k, geometry, curv)
    return classify(v[support], torch.from_numpy(label), v, torch.from_numpy(query)).numpy()


def simple_shot_features(v: np.ndarray, support: np.ndarray) -> np.ndarray:
    unit = v / np.linalg.norm(v, axis=1, keepdims=True)
    centred = unit - unit[support].mean(axis=0)
    return centred / np.linalg.norm(centred, axis=1, keepdims=True)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of a variance that one shot does not have
@pytest.mark.parametrize("r", range(R - 3, R))
@pytest.mark.parametrize("shots", [1, 3])
def test_the_euclidean_centroid_is_scikit_learn_s(images, r: int, shots: int) -> None:
    neighbors = pytest.importorskip("sklearn.neighbors")
    v, taxa = images
    for seed in range(4):
        draw = support, label, query, _ = episode(taxa, r, shots, seed)
        x = simple_shot_features(v.numpy(), support)
        expected = neighbors.NearestCentroid().fit(x[support], label).predict(x[query])
        for method, geometry in (("centroid", "euclidean"), ("cosine", "lorentz"), ("cosine", "euclidean")):
            np.testing.assert_array_equal(named(method, v, draw, geometry), expected)


@pytest.mark.parametrize("geometry", ["euclidean", "lorentz"])
@pytest.mark.parametrize("k", [1, 5])
def test_neighbours_are_scikit_learn_s_where_votes_decide(images, geometry: str, k: int) -> None:
    neighbors = pytest.importorskip("sklearn.neighbors")
    v, taxa = images
    compared = 0
    for seed in range(4):
        draw = support, label, query, _ = episode(taxa, R - 2, 4, seed)
        metric = "cosine" if geometry == "euclidean" else distance
        model = neighbors.KNeighborsClassifier(k, metric=metric, algorithm="brute").fit(v[support], label)
        near = label[model.kneighbors(v[query], return_distance=False)]
        votes = np.stack([np.bincount(row, minlength=label.max() + 1) for row in near])
        decided = (votes == votes.max(axis=1, keepdims=True)).sum(axis=1) == 1
        found = named("knn", v, draw, geometry, k)
        np.testing.assert_array_equal(found[decided], model.predict(v[query])[decided])
        compared += decided.sum()
        for row, vote, answer in zip(near, votes, found, strict=True):  # ties: the nearest image of those taxa
            assert answer == next(c for c in row if vote[c] == vote.max())
    assert compared > 100


def point(v: np.ndarray, curv: float = 1.0) -> np.ndarray:
    """(D + 1,) time and space of a tangent vector's point, float64."""
    r = math.sqrt(curv) * np.linalg.norm(v)
    return np.concatenate([[math.cosh(r)], v * (math.sqrt(curv) * math.sinh(r) / r if r else 0)]) / math.sqrt(curv)


def minkowski(x: np.ndarray, y: np.ndarray) -> float:
    return float(x[1:] @ y[1:] - x[0] * y[0])


def distance(v: np.ndarray, w: np.ndarray, curv: float = 1.0) -> float:
    return math.acosh(max(1.0, -curv * minkowski(point(v, curv), point(w, curv)))) / math.sqrt(curv)


@pytest.mark.parametrize("curv", [1.0, 0.3])
@pytest.mark.parametrize("method", ["centroid", "tangent"])
def test_the_hyperbolic_centroids_are_those_of_a_loop(images, method: str, curv: float) -> None:
    v, taxa = images
    for r, shots, seed in ((R - 1, 1, 0), (R - 1, 4, 1), (R - 3, 3, 2)):
        draw = support, label, query, _ = episode(taxa, r, shots, seed)
        centres = []
        for c in range(label.max() + 1):
            rows = v.numpy()[support[label == c]]
            if method == "tangent":
                centres.append(point(rows.mean(axis=0), curv))
            else:
                total = sum(point(row, curv) for row in rows)
                centres.append(total / math.sqrt(-curv * minkowski(total, total)))
        expected = [int(np.argmax([minkowski(point(v.numpy()[q], curv), y) for y in centres])) for q in query]
        np.testing.assert_array_equal(named(method, v, draw, "lorentz", curv=curv), expected)
        np.testing.assert_array_equal(named(method, v.float(), draw, "lorentz", curv=curv), expected)
        found = {"centroid": lorentz_centroid, "tangent": tangent_mean}[method](
            v[support], torch.from_numpy(label), curv
        )
        np.testing.assert_allclose(found, np.stack(centres)[:, 1:], rtol=1e-9, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.1, 3))
def test_the_lorentz_centroid_lies_on_the_hyperboloid_among_its_points(seed: int, curv: float) -> None:
    """It has the least sum of Lorentz distances squared: no other of the points, nor one beside it, has less."""
    rng = np.random.default_rng(seed)
    v = rng.normal(size=(5, 3)) * rng.uniform(0.1, 1.5)
    space = lorentz_centroid(torch.from_numpy(v), torch.zeros(5, dtype=torch.int64), curv)[0].numpy()

    def cost(space: np.ndarray) -> float:
        x = np.concatenate([[math.sqrt(1 / curv + space @ space)], space])
        return sum(-2 / curv - 2 * minkowski(x, point(row, curv)) for row in v)

    least = cost(space)
    others = [point(row, curv)[1:] for row in v] + [space + rng.normal(size=3) * 1e-3 for _ in range(8)]
    assert all(cost(other) >= least - 1e-9 for other in others)


@pytest.mark.parametrize("curv", [1.0, 0.4])
def test_the_lorentz_centroid_is_where_gradient_descent_on_the_hyperboloid_ends(curv: float) -> None:
    """Steps against the Riemannian gradient of the mean Lorentz distance squared, by the exponential map."""
    rng = np.random.default_rng(7)
    v = rng.normal(size=(6, 4)) * 0.8
    points = np.stack([point(row, curv) for row in v])
    sign = np.array([-1.0, 1, 1, 1, 1])
    x = point(np.zeros(4), curv)
    for _ in range(200):
        slope = sign * (-2 * (points * sign).mean(axis=0))  # of mean_i -2/c - 2 <x, y_i>, raised by the metric
        slope += curv * minkowski(x, slope) * x  # onto the tangent space at x
        step = -0.2 * slope
        length = math.sqrt(max(minkowski(step, step), 0)) * math.sqrt(curv)
        if length < 1e-15:
            break
        x = math.cosh(length) * x + math.sinh(length) / length * step
        x[0] = math.sqrt(1 / curv + x[1:] @ x[1:])  # against the drift of rounding
    found = lorentz_centroid(torch.from_numpy(v), torch.zeros(6, dtype=torch.int64), curv)[0]
    np.testing.assert_allclose(found, x[1:], atol=1e-9)


@pytest.mark.parametrize("radius", [0.1, 4.0, 8.0, 10.5])
def test_the_lorentz_centroid_of_one_point_is_that_point(radius: float) -> None:
    """In fp32 too, where far from the origin the squares of time and space differ by less than their rounding."""
    v = (
        torch.nn.functional.normalize(torch.randn(20, 16, generator=torch.Generator().manual_seed(0)), dim=1)
        * radius
    )
    found = lorentz_centroid(v, torch.arange(20), 1.0)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found, np.stack([point(row)[1:] for row in v.double().numpy()]), rtol=2e-5)


@pytest.mark.parametrize("method", ["centroid", "tangent", "cosine", "knn"])
def test_seeds_alone_decide_the_draws(images, taxonomy, method: str) -> None:
    v, taxa = images
    options = {"shots": 2, "method": method, "geometry": "lorentz"}
    first = few_shot(v, taxa, taxonomy, seeds=4, **options)
    np.random.seed(5)
    torch.manual_seed(5)
    again = few_shot(v, taxa, taxonomy, seeds=iter([0, 1, 2, 3]), **options)
    np.testing.assert_array_equal(first.accuracy, again.accuracy)
    one = few_shot(v, taxa, taxonomy, seeds=[2], **options)
    np.testing.assert_array_equal(one.accuracy[0], first.accuracy[2])
    np.testing.assert_array_equal(one.std[~np.isnan(one.mean)], 0)
    assert len(set(first.accuracy[:, R - 1].tolist())) > 1, "all draws are alike"
    draws = [_drawn(np.zeros(30, dtype=int), 3, np.random.default_rng((seed, 0)))[0].tolist() for seed in range(9)]
    assert len({tuple(sorted(draw)) for draw in draws}) == 9


def test_every_image_supports_equally_often() -> None:
    label = np.repeat([0, 1], [4, 8])
    support = [_drawn(label, 2, np.random.default_rng((seed, 6)))[0] for seed in range(2000)]
    share = np.bincount(np.concatenate(support), minlength=12) / 2000
    np.testing.assert_allclose(share, np.repeat([2 / 4, 2 / 8], [4, 8]), atol=0.06)  # five standard deviations


def test_precision_of_the_features(images, taxonomy) -> None:
    """Half precision is computed with in fp32, float64 stays what it is."""
    v, taxa = images
    options = {"shots": 2, "seeds": 3, "geometry": "lorentz"}
    half = few_shot(v.bfloat16(), taxa, taxonomy, **options)
    same = few_shot(v.bfloat16().float(), taxa, taxonomy, **options)
    np.testing.assert_array_equal(half.accuracy, same.accuracy)
    options |= {"method": "cosine", "rank": "species"}
    near = v * 1e-8 + 1  # in fp32 all are one vector
    fine, coarse = (few_shot(x, taxa, taxonomy, **options).mean[R - 1] for x in (near, near.float()))
    assert fine > 2 * coarse


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(-1, 5), min_size=1, max_size=40), st.integers(1, 3), st.integers(0, 100))
def test_a_draw_supports_with_as_many_of_each_taxon_and_asks_the_rest(taxa, shots: int, seed: int) -> None:
    taxa = np.array(taxa)
    usable, label = _usable(taxa, shots)
    assert sorted(usable.tolist()) == [i for i, t in enumerate(taxa) if t >= 0 and (taxa == t).sum() > shots]
    if not len(label):
        return
    assert all(len({int(taxa[i]) for i in usable[label == c]}) == 1 for c in range(label.max() + 1))
    support, query = _drawn(label, shots, np.random.default_rng(seed))
    assert sorted([*support, *query]) == list(range(len(label)))
    assert np.bincount(label[support]).tolist() == [shots] * (label.max() + 1)


def test_accuracies_are_those_of_the_draws(images, taxonomy) -> None:
    v, taxa = images
    found = few_shot(v, taxa, taxonomy, shots=2, seeds=[3, 8], geometry="lorentz")
    for r in range(R):
        support, label, query, truth = draw = episode(taxa, r, 2, 8)
        assert found.classes[r] == len(set(label.tolist()))
        if found.classes[r] < 2:
            assert np.isnan(found.accuracy[:, r]).all()
            continue
        assert found.queries[r] == len(query)
        assert not set(query) & set(support)
        assert found.accuracy[1, r] == (named("centroid", v, draw, "lorentz") == truth).mean()
    np.testing.assert_allclose(found.std[R - 1], np.std(found.accuracy[:, R - 1], ddof=1))
    assert found.mean[R - 1] > 2 / 12
    again = few_shot(v, taxa, taxonomy, shots=2, seeds=[3, 8], geometry="lorentz", rank="species")
    np.testing.assert_array_equal(again.accuracy[:, R - 1], found.accuracy[:, R - 1])
    assert np.isnan(again.accuracy[:, : R - 1]).all()
    assert evaluation.few_shot is few_shot


def test_more_shots_and_well_apart_taxa_are_named_right(taxonomy) -> None:
    rng = np.random.default_rng(1)
    species = np.repeat(taxonomy.at_rank(R - 1), 6)
    v = torch.from_numpy(np.eye(taxonomy.size)[species] + rng.normal(size=(len(species), taxonomy.size)) * 0.01)
    for method in ("centroid", "tangent", "cosine", "knn"):
        found = few_shot(
            v, taxonomy.lineages[species], taxonomy, shots=1, method=method, geometry="lorentz", rank="species"
        )
        assert found.mean[R - 1] == 1
        assert found.std[R - 1] == 0


def test_chunks_of_queries_change_nothing(images, monkeypatch: pytest.MonkeyPatch) -> None:
    v, taxa = images
    draw = episode(taxa, R - 1, 2)
    whole = named("knn", v, draw, "lorentz", 5)
    monkeypatch.setattr("bioclip_hc.evaluation.shots.QUERIES", 7)
    np.testing.assert_array_equal(named("knn", v, draw, "lorentz", 5), whole)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"shots": 0}, "shots"),
        ({"seeds": 0}, "seeds"),
        ({"method": "svm"}, "method must be one of"),
        ({"method": "tangent", "geometry": "euclidean"}, "needs geometry 'lorentz'"),
        ({"geometry": "spherical"}, "geometry"),
        ({"curv": -1.0}, "curv must be positive, got -1"),
        ({"curv": 0.0}, "curv must be positive, got 0"),
        ({"curv": math.inf}, "curv must be positive, got inf"),
        ({"method": "knn", "neighbours": 0}, "neighbours"),
        ({"rank": "tribe"}, "unknown rank"),
    ],
)
def test_errors_name_the_argument(images, taxonomy, change, words) -> None:
    v, taxa = images
    with pytest.raises(ValueError, match=words):
        few_shot(v, taxa, taxonomy, **({"shots": 1, "geometry": "lorentz"} | change))


def test_shapes_that_do_not_fit_are_named(images, taxonomy) -> None:
    v, taxa = images
    with pytest.raises(ValueError, match="taxa must have a row"):
        few_shot(v[1:], taxa, taxonomy, shots=1, geometry="lorentz")
    broken = v.clone()
    broken[[3, 5], 1] = torch.tensor([math.nan, math.inf], dtype=v.dtype)
    with pytest.raises(ValueError, match="embedding must be finite, got NaN or infinity in 2 rows, first 3"):
        few_shot(broken, taxa, taxonomy, shots=1, geometry="lorentz")
    with pytest.raises(ValueError, match="embedding must be float"):
        few_shot(v.long(), taxa, taxonomy, shots=1, geometry="lorentz")
