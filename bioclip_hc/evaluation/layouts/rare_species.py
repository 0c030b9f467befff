"""Rare Species (imageomics/rare-species on the Hugging Face hub).

    dataset/<kingdom-phylum-class-order-family-genus-species>/<eol_content_id>_<eol_page_id>_eol_full-size-copy.jpg
    metadata/rarespecies-catalog.csv    rarespecies_id, eol_content_id, eol_page_id, kingdom ... species, sciName,
                                        common
    metadata.csv                        the same, with file_name

The labels are the catalogue's: a folder's name cannot be taken apart where a name has a hyphen of its own. A
picture is found by its file_name where the table has that, else, wherever it lies, by an id in its own name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from bioclip_hc.data.captions import short
from bioclip_hc.data.photographs import PhotographFiles
from bioclip_hc.data.sample import IMAGE_EXTENSIONS, PathLike
from bioclip_hc.evaluation.layouts.base import Benchmark, LeftOut, Published
from bioclip_hc.evaluation.layouts.inside import Inside
from bioclip_hc.evaluation.layouts.rows import NameColumns
from bioclip_hc.evaluation.layouts.tables import PARQUET, Table, kind_of, open_table
from bioclip_hc.taxonomy import RANKS, Lineage, Taxonomy

PUBLISHED = Published(11_983, 400)  # the dataset card
CATALOGUES = ("metadata/rarespecies-catalog.csv", "rarespecies-catalog.csv", "metadata.csv")
RANKED = tuple(range(1, len(RANKS)))  # all are Animalia, so the published tables begin at the phylum
MAX_DEPTH = 8  # folders within folders in which pictures are looked for


def read(data: PathLike, *, images: PathLike | None = None, allow_outside: bool = False) -> Benchmark:
    """The photographs of the catalogue.

    Args:
        data: the dataset's folder, or the catalogue (`class`, or `cls` as in older ones).
        images: folder in which pictures are found; by default the dataset's, or that of the catalogue.
        allow_outside: see `Inside`.

    Raises:
        FileNotFoundError: no such file, or no catalogue in the folder.
        ValueError: a table that is no catalogue, see also `open_table`; no photograph that can be used.
        OSError: a folder that cannot be listed.
    """
    path = Path(data)
    catalogue = path if path.is_file() else next((path / c for c in CATALOGUES if (path / c).is_file()), None)
    if catalogue is None:
        raise FileNotFoundError(f"{path}: no catalogue; name it, or the folder that has {' or '.join(CATALOGUES)}")
    home = (
        path if path.is_dir() else catalogue.parent.parent if catalogue.parent.name == "metadata" else path.parent
    )
    inside = Inside(home if images is None else images, allow_outside)
    files: list[str] = []
    lineages: list[Lineage] = []
    taxa: dict[Lineage, str] = {}
    left_out: list[LeftOut] = []
    taken: set[str] = set()
    with open_table(catalogue) as table:
        if kind_of(catalogue) in PARQUET and table.place(("image",)) is not None:
            raise ValueError(
                f"{catalogue}: pictures inside a table are not read; write each to a file named by its "
                "rarespecies_id, and leave the column 'image' out"
            )
        finder = _Finder(table, inside, left_out)
        names = NameColumns(table)
        width = len(finder.used)
        for where, fields, reason in table.rows([*finder.used, *names.used]):
            try:
                if reason:
                    raise ValueError(reason)
                lineage = names.lineage(fields[width:])
                taxa[lineage] = taxa.get(lineage) or names.common(fields[width:])
                file = finder.file(fields[:width])
                if file in taken:
                    raise ValueError(f"{short(file)} belongs to a row above already")
            except ValueError as error:
                left_out.append(LeftOut(f"{catalogue}, {where}", str(error)))
                continue
            taken.add(file)
            files.append(file)
            lineages.append(lineage)
    if not files:
        why = f"; {left_out[0].name}: {left_out[0].reason}" if left_out else ""
        raise ValueError(
            f"{catalogue}: no picture of it is below {inside.folder}{why}; name their folder with images"
        )
    taxonomy = Taxonomy.from_lineages(taxa, taxa.values())
    photographs = PhotographFiles(files, lineages, [taxa[lineage] for lineage in lineages])
    notes = PUBLISHED.notes(photographs, taxonomy)
    return Benchmark("Rare Species", photographs, taxonomy, RANKED, left_out, [*names.notes(), *notes], not notes)


class _Finder:
    """Where the pictures of a catalogue's rows are.

    Attributes:
        used: places of the columns that are read, in the order that `file` wants.
    """

    def __init__(self, table: Table, inside: Inside, left_out: list[LeftOut]) -> None:
        ids = ("rarespecies_id", "eol_content_id", "eol_page_id")
        places = [table.place((name,)) for name in (*ids, "file_name")]
        if places[0] is None and places[1] is None:
            raise table.lacks(ids[:2])
        self.used = [place for place in places if place is not None]
        self._spots = [None if place is None else self.used.index(place) for place in places]
        self._inside = inside
        self._by_id: dict[str, list[str]] = {}
        for path, stem in _pictures(inside, inside.folder, left_out, MAX_DEPTH):
            eol = re.match(r"(\d+)_(\d+)(?:_|$)", stem)
            self._by_id.setdefault(f"{eol[1]}_{eol[2]}" if eol else stem, []).append(path)

    def file(self, fields: Sequence[str]) -> str:
        """The path of a row's picture.

        Raises:
            ValueError: there is none, or more than one; the text is the reason.
        """
        *ids, name = ("" if spot is None else fields[spot].strip() for spot in self._spots)
        own, content, page = (re.sub(r"^(\d+)\.0+$", r"\1", text) for text in ids)  # 11.0 is how pandas writes 11
        if name:
            return self._inside.file(name)
        for key in (f"{content}_{page}" if content and page else "", own, content):
            found = self._by_id.get(key, []) if key else []
            if len(found) > 1:
                raise ValueError(
                    f"{len(found)} pictures of the id {short(key)}: {short(found[0])}, {short(found[1])}; name one "
                    "folder with images"
                )
            if found:
                return found[0]
        raise ValueError(
            f"no picture of the id {short(f'{content}_{page}' if content and page else own or content)}"
        )


def _pictures(inside: Inside, folder: str, left_out: list[LeftOut], depth: int) -> Iterator[tuple[str, str]]:
    """(path, name without its ending) of the pictures below a folder."""
    for entry in inside.listing(folder):
        stem, _, ending = entry.name.rpartition(".")
        if entry.reason:
            left_out.append(LeftOut(entry.path, entry.reason))
        elif entry.kind == "folder" and depth:
            yield from _pictures(inside, entry.path, left_out, depth - 1)
        elif entry.kind == "file" and ending.lower() in IMAGE_EXTENSIONS:
            yield entry.path, stem
