"""The score's benchmark checks what it measures."""

import importlib
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("sklearn")
sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
bench = importlib.import_module("bench_score")
TREE = importlib.import_module("bench_decoders").even_tree((2, 3, 5, 8, 12, 20, 40))


def test_both_ways_agree_and_differences_are_noticed() -> None:
    p = bench.problem(300, TREE)
    own, base = (way(p) for way in (bench.ours, bench.image_by_image))
    bench.examine(own, base)
    assert 0.4 < own[0][bench.R - 1] < 0.7
    assert len(own[1]) == len(own[0]) - 2 * bench.R  # neither top-5 nor calibration has an interval
    for column in range(len(own[0])):
        other = own[0].clone()
        other[column] += 1e-6
        with pytest.raises(AssertionError):
            bench.examine((other, own[1]), base)
    with pytest.raises(AssertionError, match="intervals differ"):
        bench.examine((own[0], own[1] + 0.3 * (own[1][:, 1:] - own[1][:, :1])), base)


def test_the_loop_resamples_as_often_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "RESAMPLES", 2)
    p = bench.problem(30, TREE)
    figures, intervals = bench.image_by_image(p)
    assert torch.isfinite(figures).all()
    assert (intervals[:, 0] <= intervals[:, 1]).all()


def test_every_group_has_its_base_and_ours() -> None:
    assert bench.cases() == [(n, way) for n in bench.SIZES for way in (bench.LOOPS, bench.OURS)]
    assert set(bench.SIZES) == set(bench.ROUNDS)
    assert [case for case in bench.cases() if bench.in_check(*case)] == bench.cases()[:2]
