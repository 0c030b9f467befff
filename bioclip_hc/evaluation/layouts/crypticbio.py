"""CrypticBio (gmanolache/CrypticBio on the Hugging Face hub): tables of which the pictures are at addresses.

    CrypticBio-Benchmark/CrypticBio-Common.csv, -CommonUnseen.csv, -Endagered.csv (so spelt), -Invasive.csv
    CrypticBio/part_0.parquet ... part_626.parquet

Columns: scientificName, year, month, day, decimalLatitude, decimalLongitude, url, kingdom, phylum, class, order
(empty for Squamata), family, genus, vernacularName. Some addresses are dead. Pictures are looked up in a local
folder: as `bioclip_hc.data.pictures` keeps them, or as `wget --force-directories` does (HOST/PATH), or, where the
table has a column of paths (one prepared for BioCLIP's scripts does), there. They are fetched only if that is asked
for.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from bioclip_hc.data.photographs import PhotographFiles
from bioclip_hc.data.pictures import AT_ONCE, Pictures, picture_address
from bioclip_hc.data.sample import PathLike
from bioclip_hc.data.urls import Address
from bioclip_hc.evaluation.layouts.base import Benchmark, LeftOut, Published
from bioclip_hc.evaluation.layouts.inside import Inside
from bioclip_hc.evaluation.layouts.rows import NameColumns
from bioclip_hc.evaluation.layouts.tables import PARQUET, SEPARATORS, kind_of, open_table
from bioclip_hc.taxonomy import RANKS, Lineage, Taxonomy

SPLITS = {
    "common": ("CrypticBio-Common",),
    "common-unseen": ("CrypticBio-CommonUnseen",),
    "endangered": ("CrypticBio-Endangered", "CrypticBio-Endagered"),
    "invasive": ("CrypticBio-Invasive",),
}
"""The published tables' names, without their endings."""

PUBLISHED = {"common": Published(15_801, 158)}  # rows and species of the table itself
URLS, PATHS = ("url",), ("file_name", "filepath", "path")
RANKED = tuple(range(RANKS.index("order"), len(RANKS)))  # the published tables begin at the order
MAX_ROWS = 5_000_000  # of the 166 million that all parts have


def read(
    data: PathLike | Sequence[PathLike],
    *,
    images: PathLike | None = None,
    split: str | None = None,
    download: bool = False,
    retry_dead: bool = False,
    at_once: int = AT_ONCE,
    allow_outside: bool = False,
    say: Callable[[str], object] | None = None,
) -> Benchmark:
    """The photographs of one table, or of several parts.

    Args:
        data: a table (.csv, .tsv, .parquet), several, or a folder: of parts in parquet, or of one table, or of the
            published tables, of which `split` names one.
        images: folder of pictures; by default "images" beside the table. Paths of a column start from it if it is
            given, else from the table's folder.
        split: one of `SPLITS`.
        download: fetch what is missing, over http and https only.
        retry_dead: with it, ask also for addresses that were refused before.
        at_once: photographs that are fetched beside each other.
        allow_outside: see `Inside`.
        say: takes lines of progress.

    Raises:
        FileNotFoundError: no such table, or none in the folder.
        ValueError: several tables in the folder and none named; a table without addresses and paths, see also
            `open_table` and `NameColumns`; too many rows; no photograph that can be used.
        ImportError: parquet, and pyarrow is not installed.
        OSError: the folder of pictures cannot be written, or its disk is full.
    """
    tables = (
        [Path(each) for each in data] if not isinstance(data, str | os.PathLike) else _tables(Path(data), split)
    )
    if not tables:
        raise ValueError("no table of CrypticBio is named")
    home = tables[0].parent
    pictures = Pictures(home / "images" if images is None else images)
    left_out: list[LeftOut] = []
    taxa: dict[Lineage, str] = {}
    unknown: list[str] = []
    entries = list(_entries(tables, taxa, left_out, unknown))
    lookup = _Lookup(pictures, home if images is None else Path(images), allow_outside)
    if download:
        addresses = [entry.address for entry in entries if entry.address is not None]
        missing = [address for address in addresses if not lookup.mirrored(address)]
        pictures.fetch(missing, again=retry_dead, at_once=at_once, say=say or (lambda line: None))
    files: dict[str, _Entry] = {}
    for entry in entries:
        try:
            file = lookup.file(entry)
            if file in files:
                raise ValueError(f"its picture is that of {files[file].where} already")
            files[file] = entry
        except ValueError as error:
            left_out.append(LeftOut(entry.where, str(error)))
    if not files:
        why = f"; {left_out[0].name}: {left_out[0].reason}" if left_out else ""
        raise ValueError(f"{tables[0]}: no picture is below {pictures.folder}{why}")
    lineages = [entry.lineage for entry in files.values()]
    taxonomy = Taxonomy.from_lineages(taxa, taxa.values())
    photographs = PhotographFiles(list(files), lineages, [taxa[lineage] for lineage in lineages])
    which = next((name for name, stems in SPLITS.items() if _stem(tables[0]) in stems), "")
    notes = PUBLISHED[which].notes(photographs, taxonomy) if which in PUBLISHED else []
    name = f"CrypticBio {which or ', '.join(_stem(table) for table in tables[:3])}"
    return Benchmark(
        name, photographs, taxonomy, RANKED, left_out, [*unknown, *notes], which == "common" and not notes
    )


# -- which tables ------------------------------------------------------------------------------------------


def _tables(path: Path, split: str | None) -> list[Path]:
    if split is not None and split not in SPLITS:
        raise ValueError(f"split {split!r} is none of {', '.join(SPLITS)}")
    if not path.is_dir():
        return [path]
    folders = [path, *(folder for folder in sorted(path.iterdir()) if folder.is_dir() and "Bench" in folder.name)]
    texts = [file for folder in folders for file in sorted(folder.iterdir()) if kind_of(file) in SEPARATORS]
    if split is not None:
        found = [file for file in texts if _stem(file) in SPLITS[split]]
        if not found:
            raise FileNotFoundError(f"{path}: no {' or '.join(SPLITS[split])}.csv in it")
        return found[:1]
    parts = [file for file in path.iterdir() if kind_of(file) in PARQUET]
    if len(texts) + bool(parts) > 1:
        named = ", ".join(
            [*(str(file.relative_to(path)) for file in texts), *(["its parts in parquet"] if parts else [])]
        )
        raise ValueError(f"{path} holds several tables ({named}); name one, or a split of {', '.join(SPLITS)}")
    if not texts and not parts:
        raise FileNotFoundError(f"{path}: neither a table (.csv) nor parts (.parquet) in it")
    return texts or sorted(parts, key=lambda part: ([int(n) for n in re.findall(r"\d+", part.name)], part.name))


def _stem(path: Path) -> str:
    return path.name.partition(".")[0]


# -- rows and their pictures -------------------------------------------------------------------------------


class _Entry(NamedTuple):
    """A row: where it is, the path or the address that it gives, and its lineage."""

    where: str
    path: str
    address: Address | None
    lineage: Lineage


def _entries(
    tables: Sequence[Path], taxa: dict[Lineage, str], left_out: list[LeftOut], notes: list[str]
) -> Iterator[_Entry]:
    """The usable rows of all tables; fills in taxa with their common names, what is left out, and notes."""
    count = 0
    for path in tables:
        with open_table(path) as table:
            at_url, at_path = table.place(URLS), table.place(PATHS)
            if at_url is None and at_path is None:
                raise table.lacks([*URLS, *PATHS])
            first = [place for place in (at_url, at_path) if place is not None]
            names = NameColumns(table)
            for where, fields, reason in table.rows([*first, *names.used]):
                count += 1
                if count > MAX_ROWS:
                    raise ValueError(f"{path}: more than {MAX_ROWS:,} rows in all; name fewer parts")
                try:
                    if reason:
                        raise ValueError(reason)
                    rest = fields[len(first) :]
                    lineage = names.lineage(rest)
                    taxa[lineage] = taxa.get(lineage) or names.common(rest)
                    url = "" if at_url is None else fields[0].strip()
                    named = "" if at_path is None else fields[len(first) - 1].strip()
                    if not url and not named:
                        raise ValueError("neither an address nor a path")
                    address = picture_address(url) if url and not named else None
                except ValueError as error:
                    left_out.append(LeftOut(f"{path}, {where}", str(error)))
                    continue
                yield _Entry(f"{path}, {where}", named, address, lineage)
            notes += names.notes()


class _Lookup:
    """Where pictures are."""

    def __init__(self, pictures: Pictures, root: Path, allow_outside: bool) -> None:
        self._pictures = pictures
        self._named = Inside(root, allow_outside)
        self._below = Inside(pictures.folder, allow_outside)

    def file(self, entry: _Entry) -> str:
        """The path of a row's picture.

        Raises:
            ValueError: it is not there; the text is the reason.
        """
        if entry.address is None:
            return self._named.file(entry.path)
        stored = self._pictures.file(entry.address)
        try:
            return self._below.file(stored)
        except ValueError:
            if os.path.lexists(self._pictures.folder / stored):  # there, but a link that leads out, say
                raise
        if mirrored := self.mirrored(entry.address):
            return mirrored
        failure = self._pictures.failure(entry.address)
        if failure is None:
            raise ValueError(f"not fetched; its picture is not below '{self._pictures.folder}'; download it")
        if failure.lasting:
            raise ValueError(f"dead address: {failure.reason}")
        raise ValueError(f"not fetched, which may go well another time: {failure.reason}")

    def mirrored(self, address: Address) -> str:
        """The picture at HOST/PATH, "" where there is none."""
        url = urlsplit(address.target)
        try:
            return self._below.file(f"{url.hostname}{unquote(url.path)}")
        except ValueError:
            return ""
