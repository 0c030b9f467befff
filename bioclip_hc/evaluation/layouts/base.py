"""What every layout opens to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from bioclip_hc.data.photographs import Photographs
    from bioclip_hc.taxonomy import Lineage, Taxonomy


class LeftOut(NamedTuple):
    """What a benchmark names and cannot give: where it is named, and why it cannot be used."""

    name: str
    reason: str


@dataclass(frozen=True)
class Benchmark:
    """Labelled photographs of a benchmark.

    Attributes:
        name: as reports call it.
        photographs: those that can be read, as far as their files' being there tells.
        taxonomy: the benchmark's own taxa, with `extra["common_name"]`; among them choose, unless told otherwise.
            Taxa of photographs that are left out are in it too: a missing picture makes no question easier.
        ranks: indices of `RANKS` at which the benchmark is scored, ascending.
        left_out: the photographs that cannot be used.
        notes: what else whoever reads figures should know, a sentence each: data that are partial, labels that
            disagree.
        whole: these are all photographs and species of the benchmark that published figures are of, and no others.
    """

    name: str
    photographs: Photographs
    taxonomy: Taxonomy
    ranks: tuple[int, ...]
    left_out: list[LeftOut] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    whole: bool = False

    def lines(self) -> list[str]:
        """For people: the notes, then what was left out, counted by cause, the most frequent first."""
        from bioclip_hc.data.captions import printable
        from bioclip_hc.data.quarantine import BadSample, told_by_cause

        causes = told_by_cause(BadSample(name, "", reason) for name, reason in self.left_out)
        said = [f"left out {line}" for line in causes]
        return [printable(line) for line in [*self.notes, *said]]


class Published(NamedTuple):
    """What a benchmark is known to hold, by which data that are partial can be told.

    images, species: how many; each: photographs of every species, 0 where that differs.
    """

    images: int
    species: int
    each: int = 0

    def notes(self, photographs: Photographs, taxonomy: Taxonomy) -> list[str]:
        """How what is here differs from it, a sentence, if it does."""
        import numpy as np

        images, species = len(photographs), len(taxonomy.at_rank(6))
        counts = np.bincount(photographs.lineage_index, minlength=len(photographs.lineages))
        said = []
        if images != self.images:
            said.append(f"{images:,} of {self.images:,} photographs")
        if species != self.species:
            said.append(f"{species:,} of {self.species:,} species")
        elif len(counts) != self.species:
            said.append(f"photographs of {len(counts):,} of {self.species:,} species")
        if self.each and not said and (counts != self.each).any():
            odd = int((counts != self.each).sum())
            said.append(f"{odd:,} species have more or fewer than {self.each} photographs")
        if not said:
            return []
        return [f"not what was published: {', '.join(said)}; figures are not those of the whole benchmark"]


def ranks_named(lineages: Iterable[Lineage]) -> tuple[int, ...]:
    """The ranks that any of the lineages names."""
    named = {rank for lineage in lineages for rank, name in enumerate(lineage) if name}
    return tuple(sorted(named))
