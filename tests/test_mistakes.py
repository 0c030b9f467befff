"""Which taxa lose images, which children are confused, which mistakes are the worst: against plain loops."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bioclip_hc.evaluation.confusion import confusion, find_taxon, most_confused, taxa_named
from bioclip_hc.evaluation.mistakes import SAME_TAXON, first_errors, losses, worst_mistakes
from bioclip_hc.taxonomy import RANKS, Taxonomy

R = len(RANKS)
LINEAGES = [
    ("A", "c", "m", "p", "h", "H", "s"),
    ("A", "c", "m", "p", "h", "P", "t"),
    ("A", "c", "m", "p", "", "Q", "t"),  # the order's children are a family and a genus
    ("A", "c", "a", "q", "i", "S", "u"),
    ("A", "r", "n", "", "j", "T", ""),
    ("B", "c", "", "", "k", "U", "v"),
    ("B", "c", "", "", "k", "U", "w"),
]


@pytest.fixture(scope="module")
def tree() -> Taxonomy:
    return Taxonomy.from_lineages(LINEAGES)


@st.composite
def answers(draw: st.DrawFn, paths: bool) -> tuple[np.ndarray, np.ndarray, Taxonomy]:
    """Truths with gaps, and predictions: paths of the tree, or whatever stands at each rank."""
    taxonomy = Taxonomy.from_lineages(LINEAGES)
    n = draw(st.integers(1, 12))
    pick = st.integers(0, taxonomy.size - 1)
    truth = taxonomy.lineages[[draw(pick) for _ in range(n)]].copy()
    truth[np.array(draw(st.lists(st.booleans(), min_size=n * R, max_size=n * R))).reshape(n, R)] = -1
    if paths:
        return taxonomy.lineages[[draw(pick) for _ in range(n)]], truth, taxonomy
    columns = [[draw(st.sampled_from([-1, *taxonomy.at_rank(r).tolist()])) for r in range(R)] for _ in range(n)]
    return np.array(columns), truth, taxonomy


def child_of(ids: list[int], clade: int, taxonomy: Taxonomy) -> int:
    return next((t for t in ids if t >= 0 and taxonomy.parent[t] == clade), -1)


@settings(max_examples=60, deadline=None)
@given(answers(paths=False), st.integers(-1, 12), st.integers(1, 4))
def test_confusion_counts_every_image_of_the_clade_once(
    drawn: tuple[np.ndarray, np.ndarray, Taxonomy], clade: int, shown: int
) -> None:
    predictions, truth, taxonomy = drawn
    found = confusion(predictions, truth, taxonomy, clade, shown)
    expected: Counter[tuple[int, int]] = Counter()
    for predicted, true in zip(predictions.tolist(), truth.tolist(), strict=True):
        if (child := child_of(true, clade, taxonomy)) >= 0:
            answer = child_of(predicted, clade, taxonomy)
            expected[child, answer if answer >= 0 else -1 if any(t >= 0 for t in predicted) else -2] += 1
    assert found.images == sum(expected.values())
    assert found.within == sum(n for (a, b), n in expected.items() if a != b and b >= 0)
    assert len(found.children) <= shown
    assert bool(found.others) == (len({t for pair in expected for t in pair if t >= 0}) > shown)
    names = {taxonomy.name(t): t for t in taxonomy.children(clade)}
    for i, true in enumerate(found.children):
        row = {answer: n for (child, answer), n in expected.items() if child == names[true]}
        assert list(found.counts[i][: len(found.children)]) == [row.get(names[c], 0) for c in found.children]
        assert list(found.counts[i][-2:]) == [row.get(-1, 0), row.get(-2, 0)]
        assert sum(found.counts[i]) == sum(row.values())
    images = [sum(row) for row in found.counts[:-1]]
    assert images == sorted(images, reverse=True)


@settings(max_examples=60, deadline=None)
@given(answers(paths=False))
def test_the_most_confused_clade_has_most_images_within(drawn: tuple[np.ndarray, np.ndarray, Taxonomy]) -> None:
    predictions, truth, taxonomy = drawn
    within: Counter[int] = Counter()
    for predicted, true in zip(predictions.tolist(), truth.tolist(), strict=True):
        for t in true:
            if t >= 0:
                answer = child_of(predicted, int(taxonomy.parent[t]), taxonomy)
                within[int(taxonomy.parent[t])] += answer >= 0 and answer != t
    most = max(within.values(), default=0)
    expected = min((clade for clade, n in within.items() if n == most), default=None) if most else None
    assert most_confused(predictions, truth, taxonomy) == expected


@settings(max_examples=60, deadline=None)
@given(answers(paths=False))
def test_losses_are_the_first_errors_of_each_taxon(drawn: tuple[np.ndarray, np.ndarray, Taxonomy]) -> None:
    predictions, truth, taxonomy = drawn
    reached: Counter[int] = Counter()
    taken_for: dict[int, Counter[int]] = {}
    for predicted, true in zip(predictions.tolist(), truth.tolist(), strict=True):
        for answer, t in zip(predicted, true, strict=True):
            if t < 0:
                continue
            reached[t] += 1
            if answer != t:
                taken_for.setdefault(t, Counter())[answer] += 1
                break
    found = losses(predictions, truth, taxonomy, count=taxonomy.size)
    by_path = {taxonomy.path(t): t for t in range(taxonomy.size)}
    assert {by_path[loss.taxon]: loss.lost for loss in found} == {t: c.total() for t, c in taken_for.items()}
    assert [loss.lost for loss in found] == sorted((loss.lost for loss in found), reverse=True)
    for loss in found:
        t = by_path[loss.taxon]
        assert loss.reached == reached[t]
        assert loss.rank == RANKS[taxonomy.rank[t]]
        assert loss.taken_for_images == max(taken_for[t].values())
        assert taken_for[t][by_path.get(loss.taken_for, -1)] == loss.taken_for_images


@settings(max_examples=60, deadline=None)
@given(answers(paths=True))
def test_worst_mistakes_leave_farthest_up_and_are_surest(
    drawn: tuple[np.ndarray, np.ndarray, Taxonomy],
) -> None:
    predictions, truth, taxonomy = drawn
    n = len(truth)
    probability = np.random.default_rng(0).random((n, R))
    indices = np.arange(n) * 3
    found = worst_mistakes(indices, predictions, truth, taxonomy, probability, n)
    first = first_errors(predictions, truth)
    wrong: dict[int, tuple[int, float]] = {}
    for i in np.flatnonzero(first < R).tolist():
        below = int((truth[i, first[i] :] >= 0).sum())  # a path that has left the truth never meets it again
        wrong[3 * i] = (below, float(probability[i, first[i]]))
    assert {m.photograph for m in found} <= set(wrong)
    keys = [wrong[m.photograph] for m in found]
    assert keys == sorted(keys, reverse=True)
    assert [m.height for m in found] == [height for height, _ in keys]
    kept = Counter(int(truth[m.photograph // 3].max()) for m in found)
    all_wrong = Counter(int(truth[i // 3].max()) for i in wrong)
    assert kept == {t: min(c, SAME_TAXON) for t, c in all_wrong.items()}
    for mistake in found:
        i = mistake.photograph // 3
        assert mistake.rank == RANKS[first[i]]
        assert mistake.truth == tuple(taxonomy.name(t) if t >= 0 else "" for t in truth[i].tolist())
        right = [taxonomy.name(t) for t in truth[i, : first[i]].tolist() if t >= 0]
        assert mistake.ancestor[-1:] == tuple(right[-1:])
        assert (mistake.probability is None) == (predictions[i, first[i]] < 0)


def test_of_two_children_among_the_answers_the_upper_counts(tree: Taxonomy) -> None:
    """The order p has a family and a genus for children; answers of independent ranks may name both."""
    clade = find_taxon("A > c > m > p", tree)
    family, genus = find_taxon("A > c > m > p > h", tree), find_taxon("A > c > m > p > Q", tree)
    predictions = np.full((1, R), -1)
    predictions[0, [4, 5]] = family, genus
    found = confusion(predictions, tree.lineages[[genus]], tree, clade)
    assert dict(zip(found.children, found.counts[found.children.index("Q")], strict=False)) == {"Q": 0, "h": 1}
    assert most_confused(predictions, tree.lineages[[genus]], tree) == clade
    assert most_confused(predictions, tree.lineages[[family]], tree) is None


def test_no_mistake_no_list(tree: Taxonomy) -> None:
    truth = tree.lineages[-3:]
    assert worst_mistakes(np.arange(3), truth, truth, tree, np.ones((3, R)), 5) == []
    assert losses(truth, truth, tree) == []
    assert most_confused(truth, truth, tree) is None


def test_no_more_mistakes_than_asked_for(tree: Taxonomy) -> None:
    truth = tree.lineages[tree.at_rank(6)]
    found = worst_mistakes(np.arange(len(truth)), np.roll(truth, 1, 0), truth, tree, np.ones(truth.shape), 2)
    assert len(found) == 2
    assert worst_mistakes(np.arange(len(truth)), np.roll(truth, 1, 0), truth, tree, np.ones(truth.shape), 0) == []


def test_a_taxon_is_found_by_name_or_path(tree: Taxonomy) -> None:
    assert tree.path(find_taxon("m", tree)) == ("A", "c", "m")
    assert tree.path(find_taxon(" M ", tree)) == ("A", "c", "m")
    assert tree.path(find_taxon("B > c", tree)) == ("B", "c")
    assert len(taxa_named("c", tree)) == 2
    assert taxa_named("B > m", tree) == []
    with pytest.raises(ValueError, match="names 2 taxa; give the path of one: A > c; B > c"):
        find_taxon("c", tree)
    with pytest.raises(ValueError, match="no taxon 'mm' in the taxonomy; did you mean 'm'"):
        find_taxon("mm", tree)
