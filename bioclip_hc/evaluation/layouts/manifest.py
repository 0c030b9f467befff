"""A table of photographs: a path column and columns of ranks.

    file_name,kingdom,phylum,class,order,family,genus,species,common_name
    birds/1.jpg,Animalia,Chordata,Aves,Passeriformes,Turdidae,Turdus,migratorius,American robin

BioCLIP's form is one (index, kingdom, phylum, cls, order, family, genus, species, common_name, filepath, class).
"""

from __future__ import annotations

import os
from pathlib import Path

from bioclip_hc.data.captions import short
from bioclip_hc.data.photographs import PhotographFiles
from bioclip_hc.data.sample import PathLike
from bioclip_hc.evaluation.layouts.base import Benchmark, LeftOut, ranks_named
from bioclip_hc.evaluation.layouts.inside import Inside
from bioclip_hc.evaluation.layouts.rows import NameColumns
from bioclip_hc.evaluation.layouts.tables import open_table
from bioclip_hc.taxonomy import Lineage, Taxonomy

PATHS = ("file_name", "filepath", "path", "image")


def read(
    data: PathLike,
    *,
    images: PathLike | None = None,
    allow_outside: bool = False,
) -> Benchmark:
    """The photographs of a table.

    Columns: the first of `PATHS` that there is; the ranks that there are (see `NameColumns`); common_name. Letters'
    case in columns' names does not matter.

    Args:
        data: the table; .csv, .tsv (each plain or .gz) or .parquet.
        images: folder that relative paths start from; by default the table's own.
        allow_outside: see `Inside`.

    Raises:
        FileNotFoundError, ValueError, ImportError: see `open_table` and `NameColumns`; no path column; or no row
            that can be used, with the first reason.
    """
    path = Path(data)
    files: list[str] = []
    lineages: list[Lineage] = []
    commons: list[str] = []
    left_out: list[LeftOut] = []
    taxa: dict[Lineage, str] = {}  # with their common names
    row_of: dict[str, int] = {}
    with open_table(path) as table:
        place = table.place(PATHS)
        if place is None:
            raise table.lacks(PATHS)
        folder = Inside(path.parent if images is None else images, allow_outside)
        names = NameColumns(table)
        for where, fields, reason in table.rows([place, *names.used]):
            try:
                if reason:
                    raise ValueError(reason)
                lineage = names.lineage(fields[1:])
                common = names.common(fields[1:])
                taxa[lineage] = taxa.get(lineage) or common
                file = folder.file(fields[0])
                if (first := row_of.setdefault(os.path.normpath(file), len(files))) < len(files):
                    labels = "with the same" if lineages[first] == lineage else "with another"
                    raise ValueError(f"{short(fields[0])} is in the table already, {labels} label; keep one row")
            except ValueError as error:
                left_out.append(LeftOut(f"{path}, {where}", str(error)))
                continue
            files.append(file)
            lineages.append(lineage)
            commons.append(common)
    if not files:
        why = f"; {left_out[0].name}: {left_out[0].reason}" if left_out else ", the table is a header only"
        raise ValueError(f"{path}: no row can be used{why}; are the pictures below {folder.folder}?")
    taxonomy = Taxonomy.from_lineages(taxa, taxa.values())
    photographs = PhotographFiles(files, lineages, commons)
    return Benchmark(path.name, photographs, taxonomy, ranks_named(photographs.lineages), left_out, names.notes())
