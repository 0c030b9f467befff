"""What a report compares: rows (a system under a protocol on a split), put together into groups.

A row without a protocol is a baseline, chance or the pixel probe: it is compared with every protocol of its split.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bioclip_hc.evaluation.detail import DetailedScore
from bioclip_hc.evaluation.metrics import Score


@dataclass(frozen=True)
class Row:
    """One system's score."""

    name: str
    protocol: str
    """"coarse-to-fine", "top-down", "full-path", or "" for a baseline."""
    split: str
    score: Score
    extra: Mapping[str, Any] = field(default_factory=dict)
    """What else to say of it, as JSON types: template, candidates, images seen, wall time."""
    published: Mapping[str, float] = field(default_factory=dict)
    """What was published of it: rank -> accuracy in percent, "average" in percent, "nlca" as a share."""

    @property
    def details(self) -> DetailedScore | None:
        """The score in full, where it is one."""
        return self.score if isinstance(self.score, DetailedScore) else None


@dataclass(frozen=True)
class Group:
    """Rows that may be compared: one split, one protocol, and the split's baselines."""

    split: str
    protocol: str
    rows: Sequence[Row]

    @property
    def title(self) -> str:
        return ", ".join(filter(None, (self.split, self.protocol)))

    @property
    def images(self) -> int:
        return max(row.score.images for row in self.rows)

    @property
    def systems(self) -> list[Row]:
        """The rows that are no baselines."""
        return [row for row in self.rows if row.protocol]


def groups(rows: Sequence[Row]) -> Iterator[Group]:
    """The rows of each split and protocol: systems from best to worst, then baselines from best to worst."""
    for split in dict.fromkeys(row.split for row in rows):
        of_split = [row for row in rows if row.split == split]
        for protocol in dict.fromkeys(row.protocol for row in of_split if row.protocol) or [""]:
            chosen = [row for row in of_split if row.protocol in (protocol, "")]
            chosen.sort(key=lambda row: (not row.protocol, -(row.score.average or 0)))
            yield Group(split, protocol, chosen)
