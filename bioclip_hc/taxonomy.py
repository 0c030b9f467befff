"""The tree of life as integer arrays.

# T taxa, R ranks (seven), N lineages or pairs

A taxon is identified by its full path (the named ranks from the root down to it), never by its name alone:
*Oenanthe* is a bird and a plant. A rank that a lineage does not name is skipped, so a taxon's parent is its
nearest known ancestor, and an order may sit directly under a phylum.

Ids are rank-major and sorted by path inside a rank: the ids of one rank are contiguous, a parent's id is
smaller than its children's, and two tables with the same taxa give the same ids whatever the order of rows.
"""

from __future__ import annotations

import csv
import difflib
import gzip
import hashlib
import json
import math
import unicodedata
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np

RANKS = ("kingdom", "phylum", "class", "order", "family", "genus", "species")
ALIASES = {"cls": "class"}  # BioCLIP's CSVs and older Rare Species files cannot name a column `class`

UNNAMED = frozenset(("na", "n/a", "<na>", "nan", "none", "null", "unknown", "incertae sedis"))
"""Words that tables write where they have no name, in lower case; no taxon is called so."""

Lineage = tuple[str, ...]
"""Seven names, kingdom to species; "" where the rank is unknown."""

FORMAT_VERSION = 1

MAX_LINE, MAX_TABLE = 1 << 20, 1 << 32  # characters; the largest tables published are a twentieth of it


def as_lineage(value: Mapping[str, str | None] | Sequence[str | None]) -> Lineage:
    """A lineage from a mapping of rank names or a sequence of seven names.

    None, NaN and blanks mean unknown. Names keep their letters; only surrounding and repeated white space goes.

    Raises:
        ValueError: a key that is no rank (the nearest rank is suggested), or not seven names.
        TypeError: a name that is not a string.
    """
    if isinstance(value, Mapping):
        unknown = [key for key in value if ALIASES.get(key, key) not in RANKS]
        if unknown:
            raise ValueError(unknown_rank_message(unknown[0]))
        named = {ALIASES.get(key, key): value[key] for key in sorted(value, key=lambda key: key in ALIASES)}
        value = [named.get(rank) for rank in RANKS]
    elif isinstance(value, str):
        raise TypeError(f"a lineage is seven names, got the string {value!r}; split it into ranks first")
    if len(value) != len(RANKS):
        raise ValueError(f"a lineage has {len(RANKS)} names ({', '.join(RANKS)}), got {len(value)}: {value!r}")
    return tuple(_clean(name) for name in value)


def unknown_rank_message(name: str) -> str:
    """An error text for a rank that does not exist, with the nearest one that does."""
    close = difflib.get_close_matches(str(name).lower(), RANKS, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"unknown rank {name!r}{hint} (ranks: {', '.join(RANKS)})"


def rank_columns(columns: Sequence[str], where: object) -> dict[str, str]:
    """Rank -> the column of a table that names it, for the ranks that have one, by RANKS.

    Case and outer blanks of a column's name do not matter. Of `cls` and `class` the first is the rank, for
    BioCLIP's tables have in `class` what the picture is to be called.

    Args:
        where: the table, for the error.

    Raises:
        ValueError: a rank has two columns of one name.
    """
    found: dict[str, str] = {}
    for column in columns:
        name = column.strip().lower()
        if name in found and (name in RANKS or name in ALIASES):
            raise ValueError(f"{where} has two columns {name!r} ({found[name]!r}, {column!r}); rename all but one")
        found[name] = column
    found |= {rank: found[alias] for alias, rank in ALIASES.items() if alias in found}
    return {rank: found[rank] for rank in RANKS if rank in found}


def header_remedy(columns: Sequence[str]) -> str:
    """What may have to be done to a table whose header lacks columns: "; ...", or nothing."""
    if len(columns) == 1 and (mark := next((mark for mark in ";\t|" if mark in columns[0]), "")):
        return f"; is the table separated by {mark!r}? separate it by commas"
    if any("\0" in column for column in columns):
        return "; is the table UTF-16? convert it to UTF-8"
    return ""


def rank_index(name: str) -> int:
    """Position of a rank name in RANKS.

    Raises:
        ValueError: no such rank; the message suggests the nearest.
    """
    if name not in RANKS:
        raise ValueError(unknown_rank_message(name))
    return RANKS.index(name)


def _clean(name: str | None) -> str:
    if name is None or (isinstance(name, float) and math.isnan(name)):
        return ""
    if not isinstance(name, str):
        raise TypeError(f"a taxon name is a string, got {type(name).__name__}: {name!r}")
    return " ".join(name.split())


def named(cell: str) -> str:
    """A cell of a table, "" for a word of `UNNAMED`."""
    return "" if " ".join(cell.split()).lower() in UNNAMED else cell


def nfc(name: str) -> str:
    """What identity is decided on: the NFC form. The original letters stay for display."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


@dataclass(frozen=True)
class TaxonomyReport:
    """What was met while a table was read; nothing here is an error."""

    rows: int = 0
    duplicate_rows: int = 0
    """Rows that name a path already seen."""
    empty_rows: int = 0
    """Rows without a single name; they make no taxon."""
    missing: dict[str, int] = field(default_factory=dict)
    """Rows per rank that leave the rank empty although they name one below it."""
    conflicts: dict[str, list[tuple[str, ...]]] = field(default_factory=dict)
    """"rank name" -> the paths that carry it: homonyms, or one taxon filed under two parents. Each is a taxon
    of its own. Species are compared with their genus, for epithets repeat freely."""

    def __str__(self) -> str:
        lines = [f"{self.rows} rows, {self.duplicate_rows} duplicates, {self.empty_rows} empty"]
        lines += [f"  {count} rows without {rank}" for rank, count in self.missing.items() if count]
        lines.append(f"  {len(self.conflicts)} names stand under more than one parent and are kept apart")
        for name, paths in list(self.conflicts.items())[:5]:
            lines.append(f"    {name}: " + " | ".join(" > ".join(path) for path in paths))
        return "\n".join(lines)


class Taxonomy:
    """A rooted forest of taxa.

    Attributes:
        size: number of taxa T.
        rank: (T,) int64, the rank of each taxon, 0 (kingdom) to 6 (species).
        parent: (T,) int64, the nearest known ancestor, -1 at a root.
        lineages: (T, R) int64, row t = the ids of t and its ancestors at their ranks, -1 elsewhere.
        extra: column name -> (T,) list of str, what else the table said of a taxon ("" = nothing).
        report: what was met while reading.
    """

    def __init__(
        self,
        names: list[str],
        rank: np.ndarray,
        parent: np.ndarray,
        extra: dict[str, list[str]] | None = None,
        report: TaxonomyReport | None = None,
    ) -> None:
        self._names = names
        self.rank = rank
        self.parent = parent
        self.extra = extra or {}
        self.report = report or TaxonomyReport()
        self.size = len(names)
        self.lineages = _lineage_table(rank, parent)
        self._first = np.searchsorted(rank, np.arange(len(RANKS) + 1))
        self._children_order = np.argsort(parent, kind="stable")
        self._children_start = np.searchsorted(parent, np.arange(-1, self.size + 1), sorter=self._children_order)
        self._id: dict[tuple[int, int, str], int] = {
            (p, r, nfc(name)): t
            for t, (p, r, name) in enumerate(zip(parent.tolist(), rank.tolist(), names, strict=True))
        }

    # -- reading and writing ------------------------------------------------------------------------------

    @classmethod
    def read(cls, path: str | Path) -> Taxonomy:
        """A saved taxonomy (.json) or a table (anything else); raises as `load` and `from_csv` do."""
        return cls.load(path) if str(path).endswith(".json") else cls.from_csv(path)

    @classmethod
    def from_lineages(
        cls,
        lineages: Iterable[Mapping[str, str | None] | Sequence[str | None]],
        common_names: Iterable[str] | None = None,
    ) -> Taxonomy:
        """A taxonomy of every taxon named in any of the lineages (mappings by rank, or seven names).

        Args:
            common_names: one for each lineage ("" = none), kept as `extra["common_name"]` of its lowest taxon.

        Raises:
            ValueError: a lineage with an unknown key or not seven names; the message gives its position.
        """
        if common_names is None:
            return cls._build((lineage, {}) for lineage in lineages)
        pairs = zip(lineages, common_names, strict=True)
        return cls._build((lineage, {"common_name": name}) for lineage, name in pairs)

    @classmethod
    def from_csv(cls, path: str | Path) -> Taxonomy:
        """Read a table (.csv or .csv.gz, UTF-8) with the columns kingdom ... species; see `rank_columns`.

        Words such as "NA" or "unknown" (`UNNAMED`) leave a rank unknown. Further columns are kept in `extra` for
        the taxon that the row names; where several rows name it, the first that says something wins.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not UTF-8, not one rank column, two of one name, a malformed row (named by its number), a
                damaged .gz, or a line or a whole that no table of taxa has.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"taxonomy table {path} does not exist")
        with table_reader(path) as reader:
            return cls._build(_csv_rows(reader, path))

    @classmethod
    def _build(cls, rows: Iterable[tuple[Mapping | Sequence, Mapping[str, str]]]) -> Taxonomy:
        nodes: dict[tuple[int, int, str], int] = {}  # (provisional parent, rank, key) -> provisional id
        names: list[str] = []
        extras: dict[str, dict[int, str]] = {}
        leaves: set[int] = set()
        count = duplicates = empty = 0
        missing = dict.fromkeys(RANKS, 0)
        for number, (value, extra) in enumerate(rows):
            try:
                lineage = as_lineage(value)
            except (ValueError, TypeError) as error:
                raise type(error)(f"lineage {number}: {error}") from None
            count += 1
            node, gaps = -1, []
            for r, name in enumerate(lineage):
                if not name:
                    gaps.append(RANKS[r])
                    continue
                for gap in gaps:
                    missing[gap] += 1
                gaps = []
                key = (node, r, nfc(name))
                node = nodes.setdefault(key, len(names))
                if node == len(names):
                    names.append(name)
            if node < 0:
                empty += 1
                continue
            duplicates += node in leaves
            leaves.add(node)
            for column, text in extra.items():
                if text:
                    extras.setdefault(column, {}).setdefault(node, text)
        old_parent = [parent for parent, _, _ in nodes]
        old_rank = [rank for _, rank, _ in nodes]
        order = _canonical_order(old_parent, old_rank, [key for _, _, key in nodes])
        new = np.empty(len(order) + 1, np.int64)
        new[order] = np.arange(len(order))
        new[-1] = -1  # so that the parent of a root, -1, stays -1
        taxonomy = cls(
            [names[i] for i in order],
            np.array(old_rank, np.int64)[order],
            new[np.array(old_parent, np.int64)[order]],
        )
        taxonomy.extra = {column: [said.get(int(i), "") for i in order] for column, said in sorted(extras.items())}
        taxonomy.report = TaxonomyReport(count, duplicates, empty, missing, taxonomy._conflicts())
        return taxonomy

    def save(self, path: str | Path) -> None:
        """Write the taxonomy as JSON (UTF-8)."""
        content = {
            "format": FORMAT_VERSION,
            "ranks": RANKS,
            "name": self._names,
            "rank": self.rank.tolist(),
            "parent": self.parent.tolist(),
            "extra": self.extra,
        }
        Path(path).write_text(json.dumps(content, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Taxonomy:
        """Read what `save` wrote.

        Raises:
            ValueError: not such a file, another format version, or arrays that are no taxonomy.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            if content["format"] != FORMAT_VERSION or tuple(content["ranks"]) != RANKS:
                raise ValueError(f"format {content['format']} with ranks {content['ranks']}")
            names, extra = list(content["name"]), dict(content["extra"])
            rank, parent = (_whole(content[key], key) for key in ("rank", "parent"))
            _check_forest(names, rank, parent, extra)
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError, RecursionError) as error:
            raise ValueError(f"{path} is not a saved taxonomy ({error}); make one with Taxonomy.save") from None
        return cls(names, rank, parent, extra)

    # -- looking at one taxon -----------------------------------------------------------------------------

    def name(self, t: int) -> str:
        """The name of a taxon as its table wrote it."""
        return self._names[self._checked(t)]

    def path(self, t: int) -> tuple[str, ...]:
        """The known names from the root down to the taxon."""
        return tuple(self._names[a] for a in self.lineage(t) if a >= 0)

    def lineage(self, t: int) -> np.ndarray:
        """(R,) int64: the taxon and its ancestors at their ranks, -1 at ranks unknown or below it."""
        return self.lineages[self._checked(t)]

    def lineage_names(self, t: int) -> Lineage:
        """Seven names, "" where the rank is unknown or below the taxon."""
        return tuple(self._names[a] if a >= 0 else "" for a in self.lineage(t))

    def children(self, t: int) -> np.ndarray:
        """Ids of the taxa whose nearest known ancestor is t, ascending; t = -1 gives the roots."""
        if t != -1:
            self._checked(t)
        start, stop = self._children_start[t + 1 : t + 3]
        return self._children_order[start:stop]

    def at_rank(self, r: int) -> np.ndarray:
        """Ids of all taxa of rank r, ascending and contiguous."""
        if not 0 <= r < len(RANKS):
            raise ValueError(f"rank must be in [0, {len(RANKS)}), got {r}")
        return np.arange(self._first[r], self._first[r + 1])

    def _checked(self, t: int) -> int:
        if not 0 <= t < self.size:
            raise IndexError(f"taxon id must be in [0, {self.size}), got {t}")
        return int(t)

    # -- from names to ids and relations ------------------------------------------------------------------

    def encode(self, lineage: Mapping[str, str | None] | Sequence[str | None]) -> np.ndarray:
        """(R,) int64: the ids of a lineage's taxa, -1 where the rank is unnamed or its path is not in the tree.

        Known ranks are kept as they are; a rank that the lineage leaves out is never filled in.
        """
        ids = np.full(len(RANKS), -1, np.int64)
        node = -1
        for r, name in enumerate(as_lineage(lineage)):
            if not name:
                continue
            found = self._id.get((node, r, nfc(name)))
            if found is None:
                break
            ids[r] = node = found
        return ids

    def encode_many(self, lineages: Sequence[Mapping[str, str | None] | Sequence[str | None]]) -> np.ndarray:
        """(N, R) int64: `encode` of each lineage."""
        out = np.full((len(lineages), len(RANKS)), -1, np.int64)
        for i, lineage in enumerate(lineages):
            out[i] = self.encode(lineage)
        return out

    def lca(self, a: np.ndarray | int, b: np.ndarray | int) -> np.ndarray:
        """Lowest common ancestor of each pair, element by element.

        Args:
            a, b: taxon ids, broadcast against each other.

        Returns:
            int64 ids, -1 where the two have no common ancestor; lca(a, a) = a.

        Raises:
            IndexError: an id outside [0, T), -1 included.
        """
        a, b = np.broadcast_arrays(np.asarray(a, np.int64), np.asarray(b, np.int64))
        for ids in (a, b):
            wrong = (ids < 0) | (ids >= self.size)
            if wrong.any():
                where = int(np.flatnonzero(wrong)[0])
                raise IndexError(f"taxon id must be in [0, {self.size}), got {ids.flat[where]} at index {where}")
        common = np.full(a.shape, -1, np.int64)
        for r in range(len(RANKS)):  # ids are by full path: equal at a rank means equal above it
            x = self.lineages[a, r]
            np.copyto(common, x, where=(x >= 0) & (x == self.lineages[b, r]))
        return common

    @property
    def sha256(self) -> str:
        """A hash of the set of taxa (their full paths), independent of rows' order and of extra columns."""
        digest = hashlib.sha256()
        for parent, rank, name in zip(self.parent.tolist(), self.rank.tolist(), self._names, strict=True):
            digest.update(f"{parent}\t{rank}\t{nfc(name)}\n".encode())
        return digest.hexdigest()

    def __len__(self) -> int:
        return self.size

    def __repr__(self) -> str:
        counts = ", ".join(f"{len(self.at_rank(r))} {name}" for r, name in enumerate(RANKS))
        return f"Taxonomy({self.size} taxa: {counts})"

    def _conflicts(self) -> dict[str, list[tuple[str, ...]]]:
        seen: dict[tuple[int, str, str], list[int]] = {}
        species = rank_index("species")
        for t, (r, name) in enumerate(zip(self.rank.tolist(), self._names, strict=True)):
            parent = int(self.parent[t])
            genus = self._names[parent] if r == species and parent >= 0 else ""
            seen.setdefault((r, genus, nfc(name)), []).append(t)
        return {
            " ".join(filter(None, (RANKS[r], genus, name))): [self.path(t) for t in taxa]
            for (r, genus, name), taxa in seen.items()
            if len(taxa) > 1
        }


def _lineage_table(rank: np.ndarray, parent: np.ndarray) -> np.ndarray:
    """(T, R): each taxon's row is its parent's with itself added; rank by rank, parents come first."""
    table = np.full((len(rank), len(RANKS)), -1, np.int64)
    for r in range(len(RANKS)):
        taxa = np.flatnonzero(rank == r)
        below = taxa[parent[taxa] >= 0]
        table[below] = table[parent[below]]
        table[taxa, r] = taxa
    return table


def _canonical_order(parent: list[int], rank: list[int], key: list[str]) -> np.ndarray:
    """Old ids sorted by rank, then by path (a parent's place decides before the own name)."""
    order = np.empty(len(key), np.int64)
    place = {-1: -1}
    done = 0
    by_rank: list[list[int]] = [[] for _ in RANKS]
    for i, r in enumerate(rank):
        by_rank[r].append(i)
    for taxa in by_rank:
        for i in sorted(taxa, key=lambda i: (place[parent[i]], key[i])):
            place[i] = done
            order[done] = i
            done += 1
    return order


def _whole(values: list, name: str) -> np.ndarray:
    if not all(type(value) is int for value in values):
        raise ValueError(f"a {name} that is no whole number")
    return np.array(values, np.int64)


def _check_forest(names: list, rank: np.ndarray, parent: np.ndarray, extra: dict[str, list]) -> None:
    size = len(names)
    if rank.shape != (size,) or parent.shape != (size,) or any(len(col) != size for col in extra.values()):
        raise ValueError("arrays of different lengths")
    texts = [*names, *(text for column in extra.values() for text in column)]
    if not all(names) or not all(isinstance(text, str) for text in texts):
        raise ValueError("a name that is empty or not a string")
    for text in texts:
        text.encode()  # raises at half a letter, which JSON can write and no file can hold
    if size and (rank.min() < 0 or rank.max() >= len(RANKS) or np.any(np.diff(rank) < 0)):
        raise ValueError("ranks out of range or not sorted")
    has_parent = parent >= 0
    if np.any(parent < -1) or np.any(parent >= size) or np.any(rank[parent[has_parent]] >= rank[has_parent]):
        raise ValueError("a parent that is not of a higher rank")


def open_text(path: Path) -> IO[str]:
    """A table to be read, compressed if its name ends in .gz."""
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


@contextmanager
def table_reader(path: Path) -> Iterator[csv.DictReader[str]]:
    """The rows of a table (.csv or .csv.gz, UTF-8) within the context.

    Raises:
        ValueError: not UTF-8, not a CSV, two columns of one name, a damaged .gz, or what is too large for a table
            of names.
    """
    with open_text(path) as file:
        try:
            reader = csv.DictReader(_lines(file, path), strict=True)
            names = [name for name in reader.fieldnames or () if name]
            if twice := [name for name in names if names.count(name) > 1]:
                raise ValueError(f"{path} has two columns {twice[0]!r}; rename all but one")
            yield reader
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8 ({error}); convert it first") from None
        except csv.Error as error:
            raise ValueError(f"{path} is not a well-formed CSV: {error}") from None
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise ValueError(f"{path} is not a whole gzip file: {error}") from None


def _lines(file: IO[str], path: Path) -> Iterator[str]:
    """The lines of a table; what a small .gz unpacks to has bounds."""
    total = 0
    while line := file.readline(MAX_LINE):
        total += len(line)
        if len(line) == MAX_LINE or total > MAX_TABLE:
            raise ValueError(
                f"{path} has a line of {MAX_LINE} characters or more than {MAX_TABLE}: no table of taxa"
            )
        yield line


def _csv_rows(reader: csv.DictReader, path: Path) -> Iterator[tuple[list[str | None], dict[str, str]]]:
    columns = list(reader.fieldnames or [])
    at_rank = rank_columns(columns, path)
    if not at_rank:
        raise ValueError(
            f"{path} has no rank column; columns found: {columns}; expected {', '.join(RANKS)}"
            f"{header_remedy(columns)}"
        )
    sources = [at_rank.get(rank) for rank in RANKS]
    others = [column for column in columns if column not in sources]
    for row in reader:
        if None in row or None in row.values():
            raise ValueError(f"{path}, line {reader.line_num}: {len(columns)} columns expected, got another number")
        extra = {c: named(row[c]) if c == "common_name" else row[c] for c in others}
        yield [named(row[s]) if s else None for s in sources], extra
