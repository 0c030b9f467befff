"""Laws of the measures that compare paths of the tree, on trees, labels and answers of any shape."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from score_by_hand import R, case, random_predictions, random_taxonomy

from bioclip_hc.evaluation import score
from bioclip_hc.evaluation.metrics import ONE_VALUE, score_parts, summary
from bioclip_hc.taxonomy import Taxonomy

SIMPLE = settings(max_examples=60, deadline=None)


@st.composite
def problems(draw: st.DrawFn, gaps: bool = True) -> tuple[np.ndarray, np.ndarray, Taxonomy]:
    """Predictions at each rank for itself, truths with anything left out, a tree with gaps or without."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    missing = draw(st.floats(0, 0.8)) if gaps else 0.0
    taxonomy = random_taxonomy(rng, missing, species=draw(st.integers(1, 25)))
    images = draw(st.integers(1, 25))
    truth = taxonomy.lineages[rng.integers(taxonomy.size, size=images)]
    predictions = random_predictions(rng, taxonomy, truth)
    if gaps:
        truth = np.where(rng.random(truth.shape) < draw(st.floats(0, 0.9)), -1, truth)
    return predictions, truth, taxonomy


def same(a: float | None, b: float | None) -> bool:
    return a is b if a is None or b is None else a == pytest.approx(b, abs=1e-12)


@SIMPLE
@given(problems(), st.randoms())
def test_the_order_of_images_and_copies_of_all_change_nothing(problem: tuple, random) -> None:
    predictions, truth, taxonomy = problem
    order = list(range(len(truth))) * 3
    random.shuffle(order)
    one, three = score(predictions, truth, taxonomy), score(predictions[order], truth[order], taxonomy)
    assert three.images == 3 * one.images
    assert all(same(getattr(one, name), getattr(three, name)) for name in ONE_VALUE)


@SIMPLE
@given(problems(), st.data())
def test_scores_of_parts_make_the_score_of_the_whole(problem: tuple, data: st.DataObject) -> None:
    predictions, truth, taxonomy = problem
    cut = data.draw(st.integers(0, len(truth)))
    pieces = [score_parts(predictions[s], truth[s], taxonomy) for s in (slice(None, cut), slice(cut, None))]
    joined = {
        name: tuple(np.concatenate([piece[name][i] for piece in pieces]) for i in (0, 1)) for name in pieces[0]
    }
    assert summary(joined) == score(predictions, truth, taxonomy)


@pytest.mark.parametrize("block", [1, 7, 40])
def test_claims_in_blocks_are_those_of_all_at_once(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    c = case(5)
    whole = score(c.independent, c.truth, c.taxonomy)
    monkeypatch.setattr("bioclip_hc.evaluation.hierarchy.BLOCK", block)
    assert score(c.independent, c.truth, c.taxonomy) == whole


@SIMPLE
@given(problems())
def test_bounds(problem: tuple) -> None:
    predictions, truth, taxonomy = problem
    result = score(predictions, truth, taxonomy)
    known = (truth >= 0).sum(1)
    if not result.images:
        assert result.nlca is result.h_recall is result.lca_height is None
        return
    assert result.full_path <= result.nlca <= result.s_por_run + 1e-12 <= result.por + 2e-12
    assert 0 <= result.lca_height <= known.max()
    assert result.lca_height <= result.tree_distance <= 2 * known.max()
    if result.mistake_height is not None:
        assert max(1, result.lca_height) <= result.mistake_height <= known.max()
    if result.tor is not None and (known[known > 0] > 1).all():
        assert result.tor <= result.por + 1e-12
    if result.h_precision is not None:
        low, high = sorted([result.h_precision, result.h_recall])
        assert low - 1e-12 <= result.h_f1 <= high + 1e-12


@SIMPLE
@given(problems())
def test_truth_as_the_prediction_is_perfect(problem: tuple) -> None:
    _, truth, taxonomy = problem
    result = score(truth, truth, taxonomy)
    best = {"lca_height": 0, "tree_distance": 0, "mistake_height": None}
    for name in ONE_VALUE:
        if result.images and not (name == "tor" and result.tor is None):
            assert same(getattr(result, name), best.get(name, 1.0)), name


@SIMPLE
@given(problems(), st.data())
def test_ranks_that_the_truth_does_not_know_do_not_matter(problem: tuple, data: st.DataObject) -> None:
    """Whatever is answered below the deepest known rank, or at a rank that nobody labelled above a given answer."""
    predictions, truth, taxonomy = problem
    unknown = truth < 0
    deepest = np.where(unknown, -1, np.arange(R)).max(1)
    answered = (predictions[np.arange(len(truth)), deepest] >= 0) & (deepest >= 0)
    free = unknown & (answered[:, None] | (np.arange(R) > deepest[:, None]))
    other = random_predictions(np.random.default_rng(data.draw(st.integers(0, 99))), taxonomy, truth)
    changed = np.where(free, other, predictions)
    before, after = (score(p, truth, taxonomy) for p in (predictions, changed))
    assert all(same(getattr(before, n), getattr(after, n)) for n in ONE_VALUE if n != "consistency")


@SIMPLE
@given(problems(gaps=False), st.data())
def test_paths_between_species_of_complete_lineages(problem: tuple, data: st.DataObject) -> None:
    """All measures of shared ancestry are one; distance is a metric."""
    taxonomy = problem[2]
    species = taxonomy.at_rank(R - 1)
    a, b, c = (taxonomy.lineages[[data.draw(st.sampled_from(list(species))) for _ in range(3)]] for _ in range(3))
    result = score(a, b, taxonomy)
    assert same(result.nlca, result.average)
    assert same(result.nlca, result.h_recall)
    assert same(result.nlca, result.h_precision)
    assert same(result.nlca, result.por)
    assert same(result.nlca, 1 - result.lca_height / R)
    assert same(result.tree_distance, 2 * result.lca_height)
    assert result.consistency == 1
    distance = {
        (x, y): score(p, t, taxonomy).tree_distance
        for x, p in enumerate((a, b, c))
        for y, t in enumerate((a, b, c))
    }
    assert same(distance[0, 1], distance[1, 0])
    assert distance[0, 2] <= distance[0, 1] + distance[1, 2]


def test_what_the_measures_say_of_one_tree() -> None:
    """By hand: a class of two orders; one order has no families."""
    rows = [(*"KPCOFG", "s"), (*"KPCOFG", "t"), (*"KPCQ", "", "H", "u")]
    taxonomy = Taxonomy.from_lineages(rows)
    s, t, u = taxonomy.encode_many(rows)

    sibling = score(t[None], s[None], taxonomy)
    assert (sibling.lca_height, sibling.mistake_height, sibling.tree_distance) == (1, 1, 2)
    assert (sibling.h_precision, sibling.h_recall, sibling.h_f1) == (6 / 7, 6 / 7, 6 / 7)
    assert (sibling.s_por_run, sibling.tor) == (6 / 7, 5 / 6)

    far = score(u[None], s[None], taxonomy)  # u has no family: three taxa of its own, s has four
    assert (far.lca_height, far.tree_distance) == (4, 7)
    assert (far.h_precision, far.h_recall) == (3 / 6, 3 / 7)
    back = score(s[None], u[None], taxonomy)  # s's family is of a rank that u does not have: not counted
    assert (back.lca_height, back.tree_distance) == (3, 6)

    short = s.copy()
    short[5:] = -1
    stopped = score(short[None], s[None], taxonomy)
    assert (stopped.lca_height, stopped.tree_distance, stopped.h_precision, stopped.h_recall) == (2, 2, 1, 5 / 7)
    generous = score(s[None], short[None], taxonomy)  # nobody said which genus and species: not wrong
    assert (generous.lca_height, generous.tree_distance, generous.h_f1, generous.full_path) == (0, 0, 1, 1)

    split = s.copy()
    split[3] = u[3]  # right but for an order that is not its family's
    mixed = score(split[None], s[None], taxonomy)
    assert (mixed.consistency, mixed.por, mixed.s_por_run, mixed.nlca, mixed.tor) == (0, 6 / 7, 3 / 7, 3 / 7, 4 / 6)
    assert (mixed.h_precision, mixed.h_recall, mixed.lca_height) == (7 / 8, 1, 0)
