"""What a report says of one system on one benchmark beyond its scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bioclip_hc.evaluation.confusion import Confusion
from bioclip_hc.evaluation.mistakes import Loss, Mistake


@dataclass(frozen=True)
class Curve:
    """Risk against coverage at one rank, thinned for drawing and for the file."""

    rank: str
    area: float
    """Of the whole curve (AURC)."""
    threshold: tuple[float, ...]
    coverage: tuple[float, ...]
    risk: tuple[float, ...]


@dataclass(frozen=True)
class Mark:
    """What one threshold of the confidence gives at one rank."""

    label: str
    rank: str
    threshold: float
    coverage: float
    risk: float | None
    """None: nothing passes."""


@dataclass(frozen=True)
class Picture:
    """A mistake as the page shows it."""

    mistake: Mistake
    name: str
    """Where the photograph is, for people."""
    jpeg: bytes
    """A small copy; empty where there is none."""
    problem: str = ""
    """Why there is none."""


@dataclass(frozen=True)
class Findings:
    """Of one system on one split, under one protocol."""

    name: str
    split: str
    protocol: str
    losses: Sequence[Loss] = ()
    confusions: Sequence[Confusion] = ()
    curves: Sequence[Curve] = ()
    marks: Sequence[Mark] = ()
    pictures: Sequence[Picture] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, without the pictures' pixels."""
        return {
            "name": self.name,
            "protocol": self.protocol,
            "split": self.split,
            "losses": [loss.to_dict() for loss in self.losses],
            "confusions": [c.to_dict() for c in self.confusions],
            "risk_coverage": [_plain(curve) for curve in self.curves],
            "abstention": [_plain(mark) for mark in self.marks],
            "mistakes": [picture.mistake.to_dict() | {"file": picture.name} for picture in self.pictures],
        }


def _plain(value: Curve | Mark) -> Mapping[str, Any]:
    return dict(vars(value))
