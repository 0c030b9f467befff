"""A list of taxa that restricts what may be answered: a checklist of a region, a survey's target species.

# T taxa
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from bioclip_hc.data.captions import short
from bioclip_hc.data.names import SHOWN, NameTable, epithet, normal
from bioclip_hc.taxonomy import RANKS, Taxonomy, header_remedy, named, rank_columns, table_reader

NAME = "name"
SPECIES, GENUS = RANKS.index("species"), RANKS.index("genus")


def read_subset(path: str | os.PathLike[str], names: NameTable, tell: Callable[[str], object]) -> np.ndarray:
    """(T,) bool: the taxa that a table names, those below them, and their ancestors.

    A row names the taxon of its deepest rank; a species by its epithet beside its genus, or by both words alone. Or
    the table has a column "name", of names as `NameTable` takes them. Rows that the taxonomy lacks are told and
    left out.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no column of these, or two of one name, a name that means several taxa, or no row that the
            taxonomy knows.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"table of taxa {path} does not exist")
    taxa: set[int] = set()
    lacking: list[str] = []
    with table_reader(path) as reader:
        find = _finder(list(reader.fieldnames or []), names, path)
        for row in reader:
            if None in row or None in row.values():
                raise ValueError(f"{path}, line {reader.line_num}: a row of another number of columns")
            try:
                taxon, shown = find(row)
            except ValueError as error:
                raise ValueError(f"{path}, line {reader.line_num}: {error}") from None
            if taxon >= 0:
                taxa.add(taxon)
            elif shown:
                lacking.append(f"line {reader.line_num}: {short(shown)}")
    if not taxa:
        first = f"; the first is {lacking[0]}" if lacking else ""
        raise ValueError(f"{path} names no taxon of the taxonomy{first}")
    if lacking:
        tell(f"{path}: {len(lacking)} rows are not in the taxonomy and left out: {'; '.join(lacking[:SHOWN])}")
    return closed(names.taxonomy, np.fromiter(taxa, np.int64))


def as_candidates(subset: np.ndarray | Sequence[bool], taxa: int) -> np.ndarray:
    """(T,) bool of an array or list that says of each taxon whether it may be answered.

    Raises:
        ValueError: other values, such as ids, or another length.
    """
    found = np.asarray(subset)
    if found.dtype != bool or found.shape != (taxa,):
        raise ValueError(
            f"subset must be a table's name, or a truth value for each of the {taxa} taxa; got an array of "
            f"{found.dtype}, shape {found.shape}; of ids, set those of np.zeros({taxa}, bool) to True"
        )
    return found


def _finder(columns: list[str], names: NameTable, path: Path) -> Callable[[dict[str, str]], tuple[int, str]]:
    """row -> the taxon that it names, -1 where the taxonomy lacks it, and its name, "" of an empty row."""
    if ranks := rank_columns(columns, path):
        index = _Index(names.taxonomy)
        return lambda row: _by_ranks({rank: normal(row[column]) for rank, column in ranks.items()}, index, names)
    if NAME in columns:
        return lambda row: _by_name(normal(row[NAME]), names)
    raise ValueError(
        f"{path} has neither a rank ({', '.join(RANKS)}) nor {NAME!r} among its columns: {columns}"
        f"{header_remedy(columns)}"
    )


def _by_ranks(row: dict[str, str], index: _Index, names: NameTable) -> tuple[int, str]:
    said = {RANKS.index(rank): name for rank, name in row.items() if named(name)}
    shown = " ".join(said.values())
    found = index.find(said) if said else []
    if len(found) > 1:
        paths = " | ".join(" > ".join(names.taxonomy.path(t)) for t in found[:SHOWN])
        raise ValueError(f"{short(shown)} is ambiguous: {paths}; add columns of higher ranks")
    if found:
        return found[0], shown
    return names.synonyms.get(shown, -1) if len(said) == 1 else -1, shown


def _by_name(name: str, names: NameTable) -> tuple[int, str]:
    found = names.find([name]) if name else None
    if found and found.taxon < 0 and found.how != "not in the taxonomy":
        raise ValueError(found.reason)
    return found.taxon if found else -1, name


def closed(taxonomy: Taxonomy, taxa: np.ndarray) -> np.ndarray:
    """(T,) bool: these taxa, all below them, and all above these."""
    inside = np.zeros(taxonomy.size, dtype=bool)
    inside[taxa] = True
    lineages = taxonomy.lineages
    below = ((lineages >= 0) & inside[lineages]).any(axis=1)
    ancestors = lineages[taxa]
    below[ancestors[ancestors >= 0]] = True
    return below


class _Index:
    """Taxa by rank and name."""

    def __init__(self, taxonomy: Taxonomy) -> None:
        self.taxonomy = taxonomy
        self._by_name: dict[tuple[int, str], list[int]] = {}
        for t, r in enumerate(taxonomy.rank.tolist()):
            self._by_name.setdefault((r, self._name(t, r)), []).append(t)

    def find(self, said: dict[int, str]) -> list[int]:
        """The taxa of the deepest rank with that name, under all that is said of higher ranks."""
        deepest = max(said)
        name = said[deepest]
        if deepest == SPECIES and GENUS in said:
            name = f"{said[GENUS]} {normal(epithet(said[GENUS], name))}"
        return [t for t in self._by_name.get((deepest, name), ()) if self._under(t, said, deepest)]

    def _under(self, taxon: int, said: dict[int, str], deepest: int) -> bool:
        lineage = self.taxonomy.lineages[taxon]
        return all(
            lineage[r] >= 0 and normal(self.taxonomy.name(int(lineage[r]))) == name
            for r, name in said.items()
            if r < deepest
        )

    def _name(self, taxon: int, rank: int) -> str:
        """Of a species genus and epithet."""
        name = normal(self.taxonomy.name(taxon))
        genus = int(self.taxonomy.lineages[taxon, GENUS])
        if rank < SPECIES or genus < 0:
            return name
        genus_name = normal(self.taxonomy.name(genus))
        return f"{genus_name} {normal(epithet(genus_name, name))}"
