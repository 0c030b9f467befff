"""Names that stand for more than one taxon of a taxonomy. None is an error: taxa are told apart by their paths."""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

from bioclip_hc.taxonomy import RANKS, Taxonomy

HOMONYM = "stand under several kingdoms"  # Oenanthe, a bird and a plant
TWO_PARENTS = "stand under several parents of one kingdom"  # often one taxon, filed twice
TWO_RANKS = "stand at several ranks"  # Actinobacteria, a phylum and a class


class Ambiguity(NamedTuple):
    """A name and the paths that it ends; `name` begins with its rank where that is one."""

    kind: str
    name: str
    paths: tuple[tuple[str, ...], ...]

    def __str__(self) -> str:
        return f"{self.name} ({' | '.join(' > '.join(path) for path in self.paths)})"


def ambiguities(taxonomy: Taxonomy) -> list[Ambiguity]:
    """Homonyms first, then names with two parents, then those at two ranks; species without the latter.

    A species' epithet repeats freely, so a species counts with its genus, and at its own rank alone.
    """
    found = [
        Ambiguity(HOMONYM if len({path[0] for path in paths}) > 1 else TWO_PARENTS, name, tuple(paths))
        for name, paths in taxonomy.report.conflicts.items()
    ]
    taxa = defaultdict[str, dict[int, int]](dict)  # name -> rank -> first taxon
    for t in range(len(taxonomy) - len(taxonomy.at_rank(len(RANKS) - 1))):  # ids are rank-major, species last
        taxa[taxonomy.name(t)].setdefault(int(taxonomy.rank[t]), t)
    found += [
        Ambiguity(TWO_RANKS, name, tuple(taxonomy.path(t) for t in ranks.values()))
        for name, ranks in taxa.items()
        if len(ranks) > 1
    ]
    return sorted(found, key=lambda ambiguity: (HOMONYM, TWO_PARENTS, TWO_RANKS).index(ambiguity.kind))
