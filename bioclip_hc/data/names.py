"""Flat captions looked up in a taxonomy: which taxon a name means, or why that cannot be told.

# T taxa

Nothing is guessed. A name resolves to a taxon if it is the whole path of that one and no other (its known names
from the root down, one space between), or its own name: "Turdus migratorius" of a species, "Turdus" of a genus. A
name that fits two taxa, at whatever ranks and in whichever of these ways, is ambiguous: *Oenanthe* is a bird and a
plant. A caption not known to be scientific may also be the common name of one taxon, if the taxonomy has common
names. What is none of these may be a synonym, if a table of synonyms is given.

Names are compared letter by letter, after Unicode's NFC and with single spaces; only common names, for which there
is no rule of spelling, without regard to case. Nothing is corrected, completed or cut.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from bioclip_hc.data.captions import SCIENTIFIC, Label, common_name, flat_names, short
from bioclip_hc.data.sample import PathLike
from bioclip_hc.taxonomy import RANKS, Lineage, Taxonomy, nfc, table_reader

SHOWN = 3  # of the taxa that a name may mean, and of the examples of a reason
SPECIES = RANKS.index("species")

RESOLVED = ("tagged", "path", "name", "common name", "synonym")
"""How a caption told its taxon."""


class Found(NamedTuple):
    """What was found of a caption: a taxon and how, or -1, the kind of the reason, and the reason in full."""

    taxon: int
    how: str
    reason: str = ""


class NameTable:
    """Names of the taxa of a taxonomy.

    Args:
        taxonomy: its taxa; `extra["common_name"]`, if it has that, is what they are commonly called.
        synonyms: a table (.csv, .csv.gz) with the columns synonym and accepted, an accepted name being a name or a
            whole path of the taxonomy.

    Attributes:
        synonyms: synonym -> taxon.
        refused: synonym -> why it is not used: it is a name of the taxonomy itself, it stands for two names, or its
            accepted name is not in the taxonomy, ambiguous, or a synonym in turn (chains are not followed).

    Raises:
        FileNotFoundError, ValueError: no such table of synonyms, or not of this form (line named).
    """

    def __init__(self, taxonomy: Taxonomy, synonyms: PathLike | None = None) -> None:
        self.taxonomy = taxonomy
        self._by_path: dict[str, list[int]] = {}
        self._by_name: dict[str, list[int]] = {}
        self._by_common: dict[str, list[int]] = {}
        path: list[str] = []
        for t, (rank, parent) in enumerate(zip(taxonomy.rank.tolist(), taxonomy.parent.tolist(), strict=True)):
            name = normal(taxonomy.name(t))
            path.append(f"{path[parent]} {name}" if parent >= 0 else name)
            _add(self._by_path, path[t], t)
            if rank < SPECIES:
                _add(self._by_name, name, t)
            elif parent >= 0 and taxonomy.rank[parent] == SPECIES - 1:  # an epithet alone is no name
                genus = normal(taxonomy.name(parent))
                _add(self._by_name, f"{genus} {epithet(genus, name)}", t)
        for t, name in enumerate(taxonomy.extra.get("common_name", ())):
            if name.strip():
                _add(self._by_common, normal(name).casefold(), t)
        self.synonyms: dict[str, int] = {}
        self.refused: dict[str, str] = {}
        if synonyms is not None:
            self._add_synonyms(read_synonyms(synonyms))

    def find(self, names: Iterable[str], scientific: bool = False) -> Found:
        """The taxon that a caption means, of which `names` are the possible readings (`captions.flat_names`).

        Args:
            scientific: the caption is known not to be a common name.
        """
        names = [normal(name) for name in names]
        ways: dict[int, str] = {}  # taxon -> how it is meant
        for how, table in (("path", self._by_path), ("name", self._by_name)):
            for name in names:
                for taxon in table.get(name, ()):
                    ways.setdefault(taxon, how)
        if not scientific:
            for name in names:
                for taxon in self._by_common.get(name.casefold(), ()):
                    ways.setdefault(taxon, "common name")
        if not ways:
            ways = {self.synonyms[name]: "synonym" for name in names if name in self.synonyms}
        shown = short(names[-1]) if names else "''"  # what is left when all is taken off that may be
        if len(ways) > 1:
            return Found(-1, "ambiguous", f"name {shown} is ambiguous: {self._paths(ways)}")
        if ways:
            return Found(*ways.popitem())
        for name in names:
            if name in self.refused:
                return Found(-1, "refused synonym", f"synonym {shown} is not used: {self.refused[name]}")
        return Found(-1, "not in the taxonomy", f"name {shown} is not in the taxonomy")

    def label(self, label: Label) -> tuple[Found, Lineage, str]:
        """What a flat label means: the finding, and the taxon's lineage and common name (empty where not found)."""
        names, _ = flat_names(label.text)
        found = self.find(names, label.member in SCIENTIFIC)
        if found.taxon < 0:
            return found, (), ""
        lineage = self.taxonomy.lineage_names(found.taxon)
        said = common_name(label.common, lineage)
        if normal(said) in map(normal, names):  # what stands in for a common name, in the caption's own spelling
            said = ""
        known = self.taxonomy.extra.get("common_name")
        return found, lineage, said or (known[found.taxon] if known else "")

    def _add_synonyms(self, rows: list[tuple[int, str, str]]) -> None:
        accepted: dict[str, dict[str, int]] = {}  # synonym -> accepted name -> its first line
        for line, synonym, name in rows:
            accepted.setdefault(synonym, {}).setdefault(name, line)
        for synonym, names in accepted.items():
            name, line = next(iter(names.items()))
            own = self.find([synonym], scientific=True)
            meant = self.find([name], scientific=True)
            if own.how == "ambiguous":
                self.refused[synonym] = own.reason
            elif own.taxon >= 0:
                self.refused[synonym] = f"it is itself a name of the taxonomy: {self._paths([own.taxon])}"
            elif len(names) > 1:
                lines = ", ".join(f"{short(name)} (line {line})" for name, line in names.items())
                self.refused[synonym] = f"it stands for {len(names)} names: {lines}"
            elif meant.taxon < 0 and name in accepted:
                self.refused[synonym] = f"its accepted name {short(name)} (line {line}) is a synonym in turn"
            elif meant.taxon < 0:
                self.refused[synonym] = f"line {line}: accepted {meant.reason}"
        # only now, so that the order of rows decides nothing
        for synonym, names in accepted.items():
            if synonym not in self.refused:
                self.synonyms[synonym] = self.find(names, scientific=True).taxon

    def _paths(self, taxa: Iterable[int]) -> str:
        paths = sorted(" > ".join(self.taxonomy.path(t)) for t in taxa)
        more = f" | and {len(paths) - SHOWN} more" if len(paths) > SHOWN else ""
        return " | ".join(paths[:SHOWN]) + more


def read_synonyms(path: PathLike) -> list[tuple[int, str, str]]:
    """(line, synonym, accepted name) of a table with these two columns; further ones are passed over.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not UTF-8, not a CSV, a missing column (those found are named), or a row without either name.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"table of synonyms {path} does not exist")
    with table_reader(path) as reader:
        return list(_synonym_rows(reader, path))


def _synonym_rows(reader: csv.DictReader[str], path: Path) -> Iterator[tuple[int, str, str]]:
    columns = list(reader.fieldnames or [])
    if missing := [name for name in ("synonym", "accepted") if name not in columns]:
        raise ValueError(f"{path} has no column {', '.join(map(repr, missing))}; columns found: {columns}")
    for row in reader:
        synonym, accepted = (normal(row[name] or "") for name in ("synonym", "accepted"))
        if None in row or not synonym or not accepted:
            raise ValueError(f"{path}, line {reader.line_num}: a synonym and its accepted name expected")
        yield reader.line_num, synonym, accepted


@dataclass
class Resolution:
    """How the captions of a set of shards told their taxa, counted in samples; printed, it is `lines()`.

    Attributes:
        resolved: way (of `RESOLVED`) -> samples.
        unresolved: kind of reason -> samples. They are in `ShardSet.bad` too, each with its reason.
        examples: kind of reason -> a few of these reasons.
        refused: the synonyms that are not used, see `NameTable`.
    """

    resolved: dict[str, int] = field(default_factory=lambda: dict.fromkeys(RESOLVED, 0))
    unresolved: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    @property
    def flat(self) -> int:
        """Samples whose captions had to be looked up."""
        return sum(self.resolved.values()) - self.resolved["tagged"] + sum(self.unresolved.values())

    def count(self, found: Found, samples: int) -> None:
        """Count samples of one caption."""
        if found.taxon >= 0 or found.how in RESOLVED:
            self.resolved[found.how] += samples
            return
        self.unresolved[found.how] = self.unresolved.get(found.how, 0) + samples
        examples = self.examples.setdefault(found.how, [])
        if len(examples) < SHOWN and found.reason not in examples:
            examples.append(found.reason)

    def lines(self) -> list[str]:
        """For people: one line of what was resolved, and one for each kind of reason that kept others from it."""
        ways = ", ".join(f"{count} {_BY.get(way, f'by {way}')}" for way, count in self.resolved.items() if count)
        found = [f"taxa of {sum(self.resolved.values())} samples: {ways}"] if ways else []
        for kind, count in sorted(self.unresolved.items(), key=lambda item: -item[1]):
            examples = "; ".join(self.examples[kind])
            found.append(f"{count} samples left out, {kind}: {examples}")
        for synonym, reason in list(self.refused.items())[:1]:
            found.append(f"{len(self.refused)} synonyms not used; the first: {short(synonym)}: {reason}")
        return found

    def __str__(self) -> str:
        return "\n".join(self.lines())


_BY = {"tagged": "by their tagged captions"}


def normal(name: str) -> str:
    """A name as names are compared: NFC, single spaces."""
    return nfc(" ".join(name.split()))


def epithet(genus: str, species: str) -> str:
    """What a species is called after its genus, in its own letters: some tables repeat the genus before it."""
    words, count = species.split(), len(genus.split())
    if 0 < count < len(words) and normal(" ".join(words[:count])) == normal(genus):
        return " ".join(words[count:])
    return species


def _add(table: dict[str, list[int]], name: str, taxon: int) -> None:
    table.setdefault(name, []).append(taxon)
