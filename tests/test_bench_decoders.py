"""The decoders' benchmark checks what it measures."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
bench = importlib.import_module("bench_decoders")
TREE = bench.even_tree((2, 3, 5, 8, 12, 20, 40))


def test_the_tree_has_the_sizes_asked_for() -> None:
    assert np.bincount(TREE.rank).tolist() == [2, 3, 5, 8, 12, 20, 40]
    assert (TREE.lineages[TREE.at_rank(6)] >= 0).all()


@pytest.mark.parametrize("geometry", bench.GEOMETRIES)
@pytest.mark.parametrize("decoder", bench.DECODERS)
def test_answers_are_right_and_wrong_ones_are_noticed(monkeypatch, decoder, geometry) -> None:
    monkeypatch.setattr(bench, "THRESHOLD", 0.5)
    image, text = bench.features(geometry, 30, TREE.size, 16)
    (found,) = bench.decoded(decoder, geometry, image, text, TREE)
    assert found.shape == (30, 7)
    bench.examine(decoder, geometry, image, text, TREE, found.numpy())
    for wrong in (found.roll(1, 0), found.roll(1, 0).clamp_max(-1)):
        with pytest.raises(AssertionError):
            bench.examine(decoder, geometry, image, text, TREE, wrong.numpy())


def test_every_group_has_its_base_and_ours() -> None:
    groups = {}
    for *group, way in bench.cases():
        groups.setdefault(tuple(group), []).append(way)
    assert all(ways == [bench.PRODUCTS, bench.OURS] for ways in groups.values())
    assert {n for n, *_ in groups} == set(bench.SIZES) == set(bench.ROUNDS)
    assert bench.products(*bench.features("lorentz", 300, 20, 4)) == ()
