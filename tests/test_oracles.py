"""Every measure agrees with an independent implementation (tests/oracles.py)."""

from __future__ import annotations

import pytest

pytest.importorskip("sklearn")
pytest.importorskip("hiclass")
pytest.importorskip("networkx")

import oracles


@pytest.mark.parametrize("name", oracles.CHECKS, ids=" | ".join)
def test_agreement(name: tuple[str, str]) -> None:
    compared, difference = oracles.compare(oracles.CHECKS[name], range(12))
    assert compared >= 12
    assert difference < 1e-12
