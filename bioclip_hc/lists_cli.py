"""bioclip-hc list-taxa and list-models: what a model can name, and which models have names of their own.

Neither needs torch where the model is a folder.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bioclip_hc.cli_options import output_form
from bioclip_hc.taxonomy import RANKS

if TYPE_CHECKING:
    from bioclip_hc.taxonomy import Taxonomy

COLUMNS = {**dict.fromkeys(RANKS, "text"), "common_name": "text", "rank": "text"}
FORMATS = ("table", "csv", "json", "parquet")
ROWS_AT_ONCE = 1024


def add_commands(commands: Any) -> None:
    """Give the command line its `list-taxa` and `list-models`."""
    p = commands.add_parser("list-models", help="list the published systems that --model knows by a key")
    p.set_defaults(command=_list_models)

    p = commands.add_parser("list-taxa", aliases=["list-tol-taxa"], help="list the taxa that a model can name")
    p.set_defaults(command=_list_taxa)
    p.add_argument("--model", help="as of predict")
    p.add_argument("--taxonomy", help="table of taxa, in place of the model's own")
    p.add_argument("--rank", choices=RANKS, help="only this rank")
    p.add_argument("--below", metavar="NAME", help="only this taxon and those below it: a name, or a whole path")
    p.add_argument("--synonyms", metavar="CSV", help="table (columns synonym, accepted) for --below")
    p.add_argument("--format", choices=FORMATS, help="by default as the output is named, else csv")
    p.add_argument("--output", metavar="FILE", help="where to write; by default standard output")


def _list_taxa(options: argparse.Namespace) -> int:
    from bioclip_hc.prediction.output import destination
    from bioclip_hc.prediction.writers import TaxonTable, make_writer

    form = output_form(options, FORMATS, "csv")
    if options.synonyms and not options.below:
        raise ValueError("--synonyms are of the name of --below, which was not given; leave it out")
    taxonomy = _taxonomy(options)
    taxa = _taxa(options, taxonomy)
    with destination(options.output, keep_part=False) as sink:
        writer = make_writer(form, sink, COLUMNS, TaxonTable)
        for start in range(0, len(taxa), ROWS_AT_ONCE):
            writer.write(_rows(taxonomy, taxa[start : start + ROWS_AT_ONCE]))
        writer.close()
    return 0


def _taxonomy(options: argparse.Namespace) -> Taxonomy:
    from bioclip_hc.taxonomy import Taxonomy

    if options.taxonomy:
        taxonomy = Taxonomy.read(options.taxonomy)
        if not taxonomy.size:
            raise ValueError(f"{options.taxonomy} holds no taxon")
        return taxonomy
    if not options.model:
        raise ValueError("whose taxa? name a --model or a --taxonomy")
    folder = Path(options.model)
    if not folder.is_dir():
        from bioclip_hc.evaluation.systems import system_folder

        folder = system_folder(options.model)
    if not (folder / "taxonomy.json").is_file():
        raise FileNotFoundError(f"{folder} has no taxonomy.json; name a table of taxa with --taxonomy")
    return Taxonomy.load(folder / "taxonomy.json")


def _taxa(options: argparse.Namespace, taxonomy: Taxonomy) -> Any:
    """Ids of the taxa to list, rank after rank."""
    import numpy as np

    listed = np.ones(taxonomy.size, dtype=bool)
    if options.below:
        from bioclip_hc.data.names import NameTable

        found = NameTable(taxonomy, options.synonyms).find([options.below])
        if found.taxon < 0:
            raise ValueError(found.reason)
        listed = taxonomy.lineages[:, int(taxonomy.rank[found.taxon])] == found.taxon
    if options.rank:
        listed &= taxonomy.rank == RANKS.index(options.rank)
    return np.flatnonzero(listed)


def _rows(taxonomy: Taxonomy, taxa: Any) -> Iterator[dict[str, str]]:
    common = taxonomy.extra.get("common_name")
    for t in taxa.tolist():
        names = dict(zip(RANKS, taxonomy.lineage_names(t), strict=True))
        yield {**names, "common_name": common[t] if common else "", "rank": RANKS[int(taxonomy.rank[t])]}


def _list_models(options: argparse.Namespace) -> int:
    from bioclip_hc.evaluation.published import recipes

    for recipe in recipes().values():
        print(f"{recipe.key:<24} {recipe.title:<24} {recipe.hub}{'@' + recipe.revision if recipe.revision else ''}")
    return 0
