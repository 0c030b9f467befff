"""How many training images each taxon had: kept beside a model's taxonomy, and read from tables or shards.

# T taxa
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np

from bioclip_hc.data.captions import short
from bioclip_hc.data.sample import PathLike
from bioclip_hc.data.shards import ShardSet
from bioclip_hc.evaluation.layouts.tables import SUFFIXES, kind_of, open_table
from bioclip_hc.taxonomy import RANKS, Taxonomy, header_remedy, named, rank_columns

COUNTS = "taxonomy_counts.json"  # in a model folder, beside taxonomy.json
COLUMNS = ("images", "n_images", "count", "counts", "n")  # how a table may call the number of images
DIGITS = 12  # of a number of images, at most: sums of as many as a table can have fit into 64 bits
FORMAT_VERSION = 1


def save_counts(counts: np.ndarray, taxonomy: Taxonomy, folder: Path) -> None:
    """Write counts (T,), as `training_counts` gives them, into a model folder."""
    content = {"format": FORMAT_VERSION, "taxonomy_sha256": taxonomy.sha256, "images": counts.tolist()}
    aside = folder / f".{COUNTS}.new"
    aside.write_text(json.dumps(content, separators=(",", ":")), encoding="utf-8")
    os.replace(aside, folder / COUNTS)


def counts_of_model(folder: Path, own: Taxonomy, taxonomy: Taxonomy) -> np.ndarray | None:
    """(T,) training images of each taxon of `taxonomy`, of the model in a folder; None where it does not say.

    Args:
        own: the model's taxonomy.

    Raises:
        ValueError: the file is not one of counts, or of another taxonomy.
    """
    path = folder / COUNTS
    return _from_json(path, own, taxonomy) if path.is_file() else None


def read_counts(source: PathLike, taxonomy: Taxonomy) -> np.ndarray:
    """(T,) int64: the training images of each taxon, those of its descendants included.

    Args:
        source: a table (.csv, .tsv, each plain or .gz, .parquet) with the columns kingdom ... species and one of
            `COLUMNS`, a row for the images of a lineage; a model folder, or the counts in it (.json, with
            taxonomy.json beside it); else shards, as `expand_shards` names them. What they name and the taxonomy
            lacks is not counted there.

    Raises:
        FileNotFoundError: no such file, folder or shard.
        ValueError: a table without such columns, or whose numbers are none; a file that is not one of counts;
            parquet without pyarrow.
    """
    path = Path(source)
    if path.is_dir() and (path / COUNTS).is_file():
        path /= COUNTS
    if path.name.endswith(".json"):
        return _from_json(path, Taxonomy.load(path.with_name("taxonomy.json")), taxonomy)
    if kind_of(path) in SUFFIXES:
        try:
            return _from_table(path, taxonomy)
        except ImportError as error:  # pyarrow is missing
            raise ValueError(str(error)) from None
    return counts_of_shards(ShardSet(source), taxonomy)


def _from_json(path: Path, own: Taxonomy, taxonomy: Taxonomy) -> np.ndarray:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT_VERSION:
            raise ValueError(f"format {content['format']}")
        images = np.array(content["images"], dtype=np.int64)
        if images.shape != (own.size,) or (images < 0).any() or content["taxonomy_sha256"] != own.sha256:
            raise ValueError("they are not of the taxonomy beside them")
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ValueError(f"{path} has no training counts that can be used ({error}); delete it") from None
    same = own.encode_many([taxonomy.lineage_names(t) for t in range(taxonomy.size)])
    same_taxon = same[np.arange(taxonomy.size), taxonomy.rank]
    return np.where(same_taxon >= 0, images[same_taxon], 0)


def _from_table(path: Path, taxonomy: Taxonomy) -> np.ndarray:
    lineages, images = [], []
    with open_table(path) as table:
        number = table.place(COLUMNS)
        at_rank = rank_columns(table.header, path)
        if number is None or not at_rank:
            raise ValueError(
                f"{path} must have rank columns ({', '.join(RANKS)}) and one of {', '.join(COLUMNS)}, has "
                f"{table.header}{header_remedy(table.header)}"
            )
        for row in table.rows([number, *map(table.header.index, at_rank.values())]):
            if row.reason:
                raise ValueError(f"{path}, {row.where}: {row.reason}")
            said, *names = row.fields
            if not said.strip().isdecimal() or len(said.strip()) > DIGITS:
                raise ValueError(
                    f"{path}, {row.where}: {short(said)} is no number of images (of at most {DIGITS} digits)"
                )
            known = dict(zip(at_rank, map(named, names), strict=True))
            lineages.append([known.get(rank, "") for rank in RANKS])
            images.append(int(said))
    return _weighted(taxonomy.encode_many(lineages), np.array(images, dtype=np.int64), taxonomy)


def _weighted(taxa: np.ndarray, images: np.ndarray, taxonomy: Taxonomy) -> np.ndarray:
    """`training_counts` of lineages (L, R) that have so many images (L,) each."""
    counts = np.zeros(taxonomy.size, dtype=np.int64)
    for r in range(taxa.shape[1]):
        known = taxa[:, r] >= 0
        np.add.at(counts, taxa[known, r], images[known])
    return counts


def counts_of_shards(shards: ShardSet, taxonomy: Taxonomy) -> np.ndarray:
    """(T,) images of each taxon that shards hold."""
    images = np.bincount(shards.lineage_index, minlength=len(shards.lineages))
    return _weighted(taxonomy.encode_many(shards.lineages), images, taxonomy)
