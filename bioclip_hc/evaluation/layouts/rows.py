"""From the rows of a table to lineages: which columns name the ranks, and what a row names."""

from __future__ import annotations

from collections.abc import Sequence

from bioclip_hc.data.captions import short
from bioclip_hc.data.names import epithet, normal
from bioclip_hc.evaluation.layouts.inside import unwritable
from bioclip_hc.evaluation.layouts.tables import Table
from bioclip_hc.taxonomy import RANKS, Lineage, as_lineage, named, rank_columns

GENUS, SPECIES = RANKS.index("genus"), RANKS.index("species")

SCIENTIFIC = ("scientificname", "sciname", "scientific_name")
COMMON = ("common_name", "common", "vernacularname", "vernacular_name")
MAX_NAME = 1000  # letters; the longest names known have a tenth of it


class NameColumns:
    """The columns of a table that name taxa.

    Species are taken as epithets: of "Turdus migratorius" in the genus Turdus, "migratorius". Where there is no
    column species, or it is empty, the scientific name says it. The ranks are as `rank_columns` finds them.

    Attributes:
        used: places of the columns that are read; rows are to have them in this order.

    Raises:
        ValueError: no column of a rank, or one twice.
    """

    def __init__(self, table: Table) -> None:
        columns = rank_columns(table.header, table.path)
        places = [table.header.index(columns[rank]) if rank in columns else None for rank in RANKS]
        scientific, common = table.place(SCIENTIFIC), table.place(COMMON)
        if all(place is None for place in places):
            raise table.lacks(RANKS)
        wanted = [*places, scientific, common]
        self.used = [place for place in wanted if place is not None]
        at = iter(range(len(self.used)))
        spots = [None if place is None else next(at) for place in wanted]
        self._ranks, (self._scientific, self._common) = spots[: len(RANKS)], spots[len(RANKS) :]
        self._known: dict[tuple[str, ...], Lineage | ValueError] = {}  # a table has far more rows than taxa
        self._bare = 0  # rows whose species is an epithet without a genus

    def lineage(self, fields: Sequence[str]) -> Lineage:
        """What a row names.

        Raises:
            ValueError: no rank, a name that is none, or a scientific name that is not of the genus beside it.
        """
        names = self._names(fields)
        found = self._known.get(names)
        if found is None:
            try:
                found = as_named(names[: len(RANKS)], names[-1])
            except ValueError as error:
                found = error
            self._known[names] = found
        if isinstance(found, ValueError):
            raise ValueError(str(found))
        self._bare += bare_epithet(names, found)
        return found

    def notes(self) -> list[str]:
        """What to say of the rows read so far, a sentence each."""
        if not self._bare:
            return []
        return [f"the species is unknown in {self._bare:,} rows: an epithet without its genus names nothing"]

    def common(self, fields: Sequence[str]) -> str:
        """The common name that a row, whose lineage was read, gives; "" for none, and where its species is unknown
        for want of a genus."""
        names = self._names(fields)
        found = self._known.get(names)
        bare = isinstance(found, tuple) and bare_epithet(names, found)
        return "" if self._common is None or bare else as_common(fields[self._common])

    def _names(self, fields: Sequence[str]) -> tuple[str, ...]:
        return tuple("" if spot is None else fields[spot] for spot in (*self._ranks, self._scientific))


def bare_epithet(names: Sequence[str], lineage: Lineage) -> bool:
    """Whether a row's seven names and its scientific one say a species in one word and no genus: `as_named` leaves
    that unknown."""
    said = named(names[SPECIES]) or named(names[len(RANKS)])
    return bool(said) and not lineage[SPECIES] and not lineage[GENUS] and said not in lineage


def as_common(text: str) -> str:
    """A common name as others write it; "" for what is none, such as a list of them."""
    name = " ".join(named(text).split())
    return "" if len(name) > MAX_NAME or unwritable(name) or name.startswith(("[", "{")) else name


def as_named(names: Sequence[str], scientific: str = "") -> Lineage:
    """A lineage of seven names as a table has them, and the scientific name beside them; see `NameColumns`.

    Raises:
        ValueError: see `NameColumns.lineage`.
    """
    lineage = list(as_lineage([named(name) for name in names]))
    scientific = " ".join(named(scientific).split())
    for name in (*lineage, scientific):
        if unwritable(name):
            raise ValueError(f"a control character, or half a letter, in the name {short(name)}; remove it")
        if len(name) > MAX_NAME:
            raise ValueError(f"a name of {len(name)} letters ({short(name)}); is a quote or a separator missing?")
    genus = lineage[GENUS]
    if not lineage[SPECIES] and scientific:
        lineage[SPECIES] = scientific if normal(scientific) != normal(genus) else ""
        if genus and lineage[SPECIES] and epithet(genus, scientific) == scientific:
            raise ValueError(
                f"the scientific name {short(scientific)} is not of the genus {short(genus)}; mend one"
            )
    lineage[SPECIES] = epithet(genus, lineage[SPECIES])
    if not genus and len(lineage[SPECIES].split()) == 1:
        bare, lineage[SPECIES] = lineage[SPECIES], ""  # many genera have a "pusilla"
        if not any(lineage):
            raise ValueError(f"the species {short(bare)} without its genus names nothing; fill in the genus")
    if not any(lineage):
        raise ValueError(f"no rank is named; fill at least one of {', '.join(RANKS)}")
    return tuple(lineage)
