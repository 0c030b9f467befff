"""How often `certified_threshold` breaks its promise, over many draws from distributions whose true risk is known.

`python tests/guarantee.py --draws 2000` prints a table; tests/test_abstention.py asks the same of fewer draws. A
distribution has finitely many confidences, so that the risk above every threshold is a sum, not an estimate.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from bioclip_hc.evaluation import certified_threshold

CONFIDENCE = (np.arange(500) + 0.5) / 500


@dataclass(frozen=True)
class Source:
    """Decisions: how often each confidence comes (m,), summing to 1, and how often it is then right (m,)."""

    confidence: np.ndarray
    weight: np.ndarray
    right: np.ndarray

    def draw(self, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """n decisions: their confidences and whether they were right."""
        which = rng.choice(len(self.weight), size=n, p=self.weight)
        return self.confidence[which], rng.random(n) < self.right[which]

    def risk(self, threshold: float) -> float:
        """The share of wrong ones among decisions that pass; 0 where none does."""
        passed = self.weight * (self.confidence >= threshold)
        return float((passed * (1 - self.right)).sum() / passed.sum()) if passed.any() else 0.0

    def coverage(self, threshold: float) -> float:
        """The share of decisions that pass."""
        return float(self.weight[self.confidence >= threshold].sum())


def spread(right: Callable[[np.ndarray], np.ndarray], weight: np.ndarray | None = None) -> Source:
    """Confidences all over (0, 1), uniform unless weights are given."""
    weights = np.ones(len(CONFIDENCE)) if weight is None else weight
    return Source(CONFIDENCE, weights / weights.sum(), right(CONFIDENCE))


def sources(target: float) -> dict[str, Source]:
    """The worst is the one of which every certificate is wrong, but only just."""
    just_above = target + 0.005
    return {
        "as sure as it is right": spread(lambda c: c),
        "mostly sure": spread(lambda c: c, CONFIDENCE**8),
        "too sure": spread(lambda c: c**2),
        "surer where it is wrong": spread(lambda c: 1 - c / 2),
        "risk just above the target everywhere": spread(lambda c: np.full(len(c), 1 - just_above)),
        "risk just above it but for the surest": spread(lambda c: np.where(c > 0.99, 1.0, 1 - just_above)),
        "three confidences": Source(
            np.array([0.2, 0.6, 0.9]),
            np.array([0.2, 0.3, 0.5]),
            np.array([0.3, 1 - 3 * target, 1 - just_above / 2]),
        ),
    }


@dataclass(frozen=True)
class Kept:
    """Shares of draws: with a threshold, and with one whose true risk is above the target; mean coverage."""

    given: float
    broken: float
    coverage: float


def simulate(source: Source, n: int, target: float, delta: float, draws: int, seed: int = 0) -> Kept:
    """Certify on n decisions, again and again."""
    rng = np.random.default_rng(seed)
    chosen = [certified_threshold(*source.draw(n, rng), target=target, delta=delta) for _ in range(draws)]
    given = [t for t in chosen if t < math.inf]
    broken = sum(source.risk(t) > target for t in given)
    return Kept(len(given) / draws, broken / draws, sum(map(source.coverage, given)) / draws)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=2000)
    options = parser.parse_args()
    head = ("decisions", "n", "target", "delta", "broken", "draws with a threshold", "named")
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for target, delta in ((0.1, 0.05), (0.2, 0.2)):
        for name, source in sources(target).items():
            for n in (100, 2000):
                k = simulate(source, n, target, delta, options.draws)
                print(f"| {name} | {n} | {target} | {delta} | {k.broken:.4f} | {k.given:.1%} | {k.coverage:.1%} |")


if __name__ == "__main__":
    main()
