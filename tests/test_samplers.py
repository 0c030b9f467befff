"""Orders, supervised ranks and unique texts: laws checked on random batches."""

import itertools
import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from bioclip_hc.data.samplers import (
    EMPTY,
    BatchPlan,
    epoch_order,
    local_slice,
    order_digest,
    sample_seed,
    supervise,
    unique_texts,
)

seeds = st.integers(0, 2**40)


def taxa_of(known: np.ndarray) -> np.ndarray:
    """Taxa with few values per rank, so that batches repeat them."""
    ids = np.arange(known.size).reshape(known.shape) % 3 + 10 * np.arange(known.shape[1])
    return np.where(known, ids, -1)


batches = st.tuples(st.integers(1, 40), st.integers(1, 7)).flatmap(lambda shape: arrays(bool, shape)).map(taxa_of)


def counts(supervised: np.ndarray) -> list[int]:
    return (supervised >= 0).sum(axis=0).tolist()


# -- order


@given(st.integers(0, 300), seeds, st.integers(0, 100))
def test_epoch_order_visits_every_sample_once(n, seed, epoch):
    order = epoch_order(n, seed, epoch)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(n))


def test_epoch_order_is_fixed_and_differs_by_epoch_and_seed():
    assert epoch_order(8, seed=0, epoch=0).tolist() == epoch_order(8, seed=0, epoch=0).tolist()
    orders = {tuple(epoch_order(50, seed, epoch)) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16


def test_epoch_order_is_the_one_recorded():
    """Raw bits are stable over numpy versions: a change here would break the resumption of saved runs."""
    assert epoch_order(10, seed=1, epoch=2).tolist() == [9, 2, 5, 6, 1, 7, 4, 8, 0, 3]
    assert sample_seed(seed=1, epoch=2, index=3) == 705110014


def test_every_sample_is_about_equally_often_first():
    first = Counter(int(epoch_order(5, 0, epoch)[0]) for epoch in range(1000))
    assert all(150 < first[i] < 250 for i in range(5))


def test_sample_seeds_do_not_repeat_over_samples_and_epochs():
    drawn = {sample_seed(0, epoch, index) for epoch in range(10) for index in range(100)}
    assert len(drawn) == 1000
    assert all(0 <= value < 2**32 for value in drawn)


# -- batches


@given(st.integers(1, 60), st.integers(1, 60), seeds)
def test_an_epoch_repeats_no_sample_and_misses_less_than_a_batch(n, batch, seed):
    if n < batch:
        with pytest.raises(ValueError, match=f"{n} samples do not fill one global batch of {batch}"):
            BatchPlan(n, batch, seed)
        return
    plan = BatchPlan(n, batch, seed)
    for epoch in range(2):
        steps = range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
        visited = np.concatenate([plan.indices(step) for step in steps])
        assert {plan.epoch(step) for step in steps} == {epoch}
        assert len(set(visited.tolist())) == len(visited) == n - n % batch


@given(st.integers(1, 60), st.integers(1, 60), seeds)
def test_a_padded_epoch_visits_every_sample_once_in_the_same_order(n, batch, seed):
    """Also one that does not fill a single batch; what is not dropped stands last, before the empty places."""
    plan = BatchPlan(n, batch, seed, "pad")
    assert plan.steps_per_epoch == -(-n // batch)
    for epoch in range(2):
        steps = range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
        visited = np.concatenate([plan.indices(step) for step in steps])
        assert {len(plan.indices(step)) for step in steps} == {batch}
        assert np.array_equal(visited[:n], epoch_order(n, seed, epoch))
        assert (visited[n:] == EMPTY).all()


@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 30), st.sampled_from(["drop", "pad"]))
def test_samples_are_counted_as_they_are_taken(n, batch, steps, remainder):
    if n < batch and remainder == "drop":
        return
    plan = BatchPlan(n, batch, 0, remainder)
    taken = [index for step in range(steps) for index in plan.indices(step).tolist() if index != EMPTY]
    assert plan.samples(steps) == len(taken)


def test_a_remainder_that_does_not_exist():
    with pytest.raises(ValueError, match="remainder must be 'drop' or 'pad', got 'keep'"):
        BatchPlan(10, 4, 0, "keep")  # type: ignore[arg-type]


def test_empty_places_leave_no_trace_in_the_digest():
    held = np.array([4, 2, 7])
    assert order_digest(5, np.array([4, 2, 7, EMPTY, EMPTY])) == order_digest(5, held)
    assert order_digest(5, np.array([4, EMPTY, 2, 7])) != order_digest(5, held)
    assert order_digest(5, np.array([EMPTY, EMPTY])) == 0


@given(st.integers(24, 100), seeds, st.integers(0, 200))
def test_the_global_batch_does_not_depend_on_the_world_size(n, seed, step):
    whole = BatchPlan(n, 24, seed).indices(step)
    for world_size in (1, 2, 3, 4, 8):
        parts = [BatchPlan(n, 24, seed).local_indices(step, r, world_size) for r in range(world_size)]
        assert np.array_equal(np.concatenate(parts), whole)


def test_a_plan_is_random_access_in_any_order_of_steps():
    plan = BatchPlan(20, 6, seed=3)
    forward = [plan.indices(step).tolist() for step in range(9)]
    backward = [BatchPlan(20, 6, seed=3).indices(step).tolist() for step in reversed(range(9))]
    assert forward == backward[::-1]


def test_a_plan_is_not_changed_by_who_reads_it():
    plan = BatchPlan(20, 6, seed=3)
    with pytest.raises(ValueError, match="read-only"):
        plan.indices(0)[0] = 5
    with pytest.raises(ValueError, match="read-only"):
        plan.local_indices(0, 0, 2)[:] = 5


def test_batches_that_do_not_divide_are_refused_with_the_nearest_that_do():
    with pytest.raises(ValueError, match=r"10 does not divide among 4 processes; the nearest that do are 8 and 12"):
        local_slice(10, 0, 4)
    with pytest.raises(ValueError, match=r"world_rank must be in \[0, 2\), got 2"):
        local_slice(10, 2, 2)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        BatchPlan(10, 0, seed=0)


# -- supervision


@given(batches, seeds, st.integers(0, 1000), st.sampled_from(["all", "balanced", "uniform", "deepest"]))
def test_supervision_only_hides_ranks(image_taxa, seed, step, mode):
    before = image_taxa.copy()
    if mode == "balanced" and len(image_taxa) < (image_taxa >= 0).any(axis=0).sum():
        return
    chosen = supervise(image_taxa, mode, seed, step)
    assert np.array_equal(image_taxa, before)
    assert np.array_equal(chosen[chosen >= 0], image_taxa[chosen >= 0])
    per_image = (chosen >= 0).sum(axis=1)
    labelled = (image_taxa >= 0).any(axis=1)
    if mode == "all":
        assert np.array_equal(chosen, image_taxa)
    else:
        assert np.array_equal(per_image, labelled)
    assert np.array_equal(chosen, supervise(image_taxa, mode, seed, step))


@given(st.integers(1, 7), st.integers(0, 60), seeds)
def test_balanced_counts_differ_by_at_most_one_when_all_is_known(ranks, extra, seed):
    image_taxa = taxa_of(np.ones((ranks + extra, ranks), dtype=bool))
    per_rank = counts(supervise(image_taxa, "balanced", seed, step=0))
    assert max(per_rank) - min(per_rank) <= 1


@given(st.integers(2, 3).flatmap(lambda r: arrays(bool, st.tuples(st.integers(r, 6), st.just(r)))), seeds)
def test_balanced_is_the_best_of_all_assignments(known, seed):
    rows = [np.flatnonzero(row) for row in known if row.any()]
    best = min(
        (sorted(Counter(choice).values()) + [0] * known.shape[1] for choice in itertools.product(*rows)),
        key=lambda loads: sum(load * load for load in loads),
    )
    per_rank = counts(supervise(taxa_of(known), "balanced", seed, step=0))
    assert sum(load * load for load in per_rank) == sum(load * load for load in best)
    assert max(per_rank) == max(best)


def test_balanced_moves_along_chains_of_ranks():
    """Rank 0 can only be relieved through rank 1, which passes its own images on to rank 2."""
    known = np.zeros((30, 3), dtype=bool)
    known[:10, 0] = True
    known[10:20, [0, 1]] = True
    known[20:, [1, 2]] = True
    assert counts(supervise(taxa_of(known), "balanced", seed=0, step=0)) == [10, 10, 10]


def test_balanced_is_as_equal_as_the_known_ranks_allow():
    known = np.array([[1, 1, 0]] * 9 + [[0, 1, 1]] * 1 + [[0, 1, 0]] * 5, dtype=bool)
    assert counts(supervise(taxa_of(known), "balanced", seed=0, step=0)) == [7, 7, 1]


def test_balanced_gives_every_image_every_rank_in_time():
    image_taxa = taxa_of(np.ones((7, 7), dtype=bool))
    seen = np.zeros((7, 7), dtype=np.int64)
    for step in range(700):
        seen += supervise(image_taxa, "balanced", seed=0, step=step) >= 0
    assert seen.min() > 60
    assert seen.max() < 140


def test_the_odd_ones_out_fall_on_changing_ranks():
    image_taxa = taxa_of(np.ones((8, 7), dtype=bool))
    favoured = {int(np.argmax(counts(supervise(image_taxa, "balanced", 0, step)))) for step in range(100)}
    assert favoured == set(range(7))


def test_balanced_takes_a_full_batch_in_far_less_than_a_second():
    rng = np.random.default_rng(0)
    image_taxa = taxa_of(rng.random((32_768, 7)) < np.linspace(0.95, 0.3, 7))
    start = time.perf_counter()
    supervise(image_taxa, "balanced", seed=0, step=0)
    assert time.perf_counter() - start < 0.5


def test_balanced_refuses_a_batch_smaller_than_its_ranks():
    with pytest.raises(ValueError, match="a batch of 3 images for 7 ranks"):
        supervise(np.ones((3, 7), dtype=np.int64), "balanced", seed=0, step=0)
    two_ranks = np.where(np.arange(7) < 2, np.ones((3, 7), dtype=np.int64), -1)
    assert counts(supervise(two_ranks, "balanced", seed=0, step=0))[2:] == [0] * 5


def test_uniform_draws_the_known_ranks_equally_often():
    image_taxa = taxa_of(np.tile([True, False, True, True, False, False, False], (3000, 1)))
    per_rank = counts(supervise(image_taxa, "uniform", seed=0, step=0))
    assert [count > 0 for count in per_rank] == [True, False, True, True, False, False, False]
    assert all(900 < count < 1100 for count in per_rank if count)


def test_deepest_is_the_most_specific_known_rank():
    image_taxa = np.array([[0, -1, 5, -1], [0, 2, 5, 9], [-1, -1, -1, -1], [4, -1, -1, -1]])
    expected = [[-1, -1, 5, -1], [-1, -1, -1, 9], [-1, -1, -1, -1], [4, -1, -1, -1]]
    assert supervise(image_taxa, "deepest", seed=0, step=0).tolist() == expected


def test_an_unknown_mode_names_the_modes():
    with pytest.raises(ValueError, match=r"'balance' \(modes: all, balanced, uniform, deepest\)"):
        supervise(np.zeros((1, 7), dtype=np.int64), "balance", seed=0, step=0)  # type: ignore[arg-type]


# -- texts


@given(batches)
def test_unique_texts_are_the_distinct_supervised_taxa(image_taxa):
    text_rank, text_taxon, pair = unique_texts(image_taxa)
    texts = list(zip(text_rank.tolist(), text_taxon.tolist(), strict=True))
    rows = [[(r, int(t)) for r, t in enumerate(row) if t >= 0] for row in image_taxa]
    assert texts == sorted({text for row in rows for text in row})
    assert text_rank.dtype == text_taxon.dtype == pair.dtype == np.int64
    for row, index in zip(rows, pair.tolist(), strict=True):
        assert (texts[index] == row[-1]) if row else index == -1


def test_a_batch_without_labels_has_no_texts():
    text_rank, text_taxon, pair = unique_texts(np.full((3, 7), -1, dtype=np.int64))
    assert text_rank.size == text_taxon.size == 0
    assert pair.tolist() == [-1, -1, -1]
