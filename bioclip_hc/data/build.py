"""Photographs with lineages, from a CSV or from iNat-style folders, as samples for `write_shards`.

First the list of photographs (paths and labels only, checked whole, so that a wrong label stops a build before it
begins), then, a few at a time, their bytes. Pictures are kept as they are, unless smaller ones are asked for; those
that do not decode are left out and reported.
"""

from __future__ import annotations

import csv
import functools
import io
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
from PIL import Image

from bioclip_hc.data.captions import format_taxon_tag
from bioclip_hc.data.decode import DecodeError, Photograph
from bioclip_hc.data.lots import choose_share, draw_lot
from bioclip_hc.data.parallel import in_order
from bioclip_hc.data.sample import PathLike, Sample
from bioclip_hc.taxonomy import ALIASES, RANKS, Lineage, as_lineage

logger = logging.getLogger(__name__)

JPEG_QUALITY = 95  # of pictures made smaller: above it files grow faster than what can be seen


class Photo(NamedTuple):
    """A labelled picture on disk."""

    key: str
    path: Path
    lineage: Lineage
    common_name: str = ""


class Skipped(NamedTuple):
    """A picture that was left out."""

    path: Path
    reason: str


OnSkip = Callable[[Skipped], object]


def log_skipped(skipped: Skipped) -> None:
    """The default for `on_skip`: a line in the log."""
    logger.warning("left out %s: %s", skipped.path, skipped.reason)


# -- sources


def photos_from_csv(
    csv_path: PathLike, image_root: PathLike | None = None, path_column: str = "filepath"
) -> list[Photo]:
    """The photographs of a table with a path column, the seven ranks and, if it has it, common_name.

    Args:
        image_root: what relative paths start from; the CSV's own folder by default.

    Raises:
        ValueError: a missing column (the columns found are named); a row with too many fields, without any rank,
            with a lineage that a caption cannot hold, or with a picture that another row has already.
        FileNotFoundError: a row whose picture is missing.
    """
    csv_path = Path(csv_path)
    root = csv_path.parent if image_root is None else Path(image_root)
    with open(csv_path, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        columns = _columns(reader.fieldnames or (), path_column, csv_path)
        photos: list[Photo] = []
        row_of: dict[Path, int] = {}
        for row in reader:
            where = f"{csv_path}, line {reader.line_num}"
            if None in row:
                raise ValueError(f"{where}: more fields than columns; quote fields that hold commas")
            path = root / (row[path_column] or "")
            if not path.is_file():
                raise FileNotFoundError(
                    f"{where}: no picture at {path}; fix column {path_column!r} or set image_root"
                )
            if path in row_of:
                raise ValueError(f"{where}: {path} is on line {row_of[path]} already; keep one of the rows")
            row_of[path] = reader.line_num
            lineage = _checked({rank: row[column] for rank, column in columns.items()}, where)
            common = (row.get("common_name") or "").strip()
            photos.append(Photo(_key(len(photos), path), path, lineage, common))
    return photos


def photos_from_folders(root: PathLike) -> list[Photo]:
    """The photographs of folders named as iNat 2021's: an index and the seven names, joined by underscores.

    `02912_Animalia_Chordata_Aves_Passeriformes_Turdidae_Turdus_migratorius`; further underscores belong to the
    species ("lupus_familiaris" is "lupus familiaris"), and a name left empty is an unknown rank.

    Raises:
        ValueError: a folder that is not named so.
        FileNotFoundError: no such folder, or none in it.
    """
    root = Path(root)
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not folders:
        raise FileNotFoundError(f"{root}: no folders such as {_EXAMPLE_FOLDER!r} in it")
    photos: list[Photo] = []
    for folder in folders:
        lineage = _lineage_of_folder(folder)
        for path in sorted(folder.iterdir()):
            if path.is_file() and not path.name.startswith("."):
                photos.append(Photo(_key(len(photos), path), path, lineage))
    return photos


_EXAMPLE_FOLDER = "00000_Animalia_Annelida_Clitellata_Haplotaxida_Lumbricidae_Lumbricus_terrestris"


def _lineage_of_folder(folder: Path) -> Lineage:
    index, *names = folder.name.split("_", len(RANKS))
    if not index.isdigit() or len(names) != len(RANKS):
        raise ValueError(
            f"{folder}: the name is not an index and {len(RANKS)} names joined by underscores, "
            f"such as {_EXAMPLE_FOLDER!r}; rename or move the folder"
        )
    names[-1] = names[-1].replace("_", " ")
    return _checked(dict(zip(RANKS, names, strict=True)), str(folder))


def _columns(found: Sequence[str], path_column: str, csv_path: Path) -> dict[str, str]:
    """Rank -> the column that holds it ("cls" is accepted for class)."""
    columns = {ALIASES.get(column, column): column for column in found}
    if missing := [name for name in (path_column, *RANKS) if name not in columns]:
        raise ValueError(
            f"{csv_path}: no column {', '.join(map(repr, missing))}; columns found: {', '.join(found)}"
        )
    return {rank: columns[rank] for rank in RANKS}


def _checked(names: dict[str, str], where: str) -> Lineage:
    """A lineage that the shard writer will take."""
    try:
        lineage = as_lineage(names)
        format_taxon_tag(lineage)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    if not any(lineage):
        raise ValueError(f"{where}: no rank is named; fill at least one of {', '.join(RANKS)}")
    return lineage


def _key(number: int, path: Path) -> str:
    """A key that is unique by its number and still tells a reader which picture it is."""
    return f"{number:08d}_" + re.sub(r"[^A-Za-z0-9-]+", "-", path.stem)[:64]


# -- reading


def read_samples(
    photos: Iterable[Photo], on_skip: OnSkip = log_skipped, *, processes: int = 1, max_side: int | None = None
) -> Iterator[Sample]:
    """Read the photographs in their order, leaving out those that do not decode.

    Args:
        on_skip: called with each picture that was left out, for instance `skipped.append` of a list.
        processes: how many read and decode; the samples are the same with any number.
        max_side: pictures with a longer side, in pixels, become JPEGs that fit into it; others keep their bytes.
    """
    read = functools.partial(_read, max_side=max_side)
    for outcome in in_order(read, photos, processes, died=_died):
        if isinstance(outcome, Skipped):
            on_skip(outcome)
        else:
            yield outcome


def _read(photo: Photo, max_side: int | None) -> Sample | Skipped:
    data = photo.path.read_bytes()
    try:
        picture = Photograph(data)
        if max_side is None or max(picture.size) <= max_side:
            picture.pixels()  # only to see that they are there
        else:
            data = _smaller(picture.image(), max_side)
    except DecodeError as error:
        return Skipped(photo.path, str(error))
    return Sample(photo.key, data, photo.lineage, photo.common_name)


def _smaller(image: Image.Image, max_side: int) -> bytes:
    image.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=JPEG_QUALITY)
    return file.getvalue()


def _died(photo: Photo) -> Sample | Skipped:
    return Skipped(photo.path, "the process that decoded it died")


def samples_from_csv(
    csv_path: PathLike,
    image_root: PathLike | None = None,
    path_column: str = "filepath",
    on_skip: OnSkip = log_skipped,
) -> Iterator[Sample]:
    """The samples of a table; see `photos_from_csv` and `read_samples`."""
    return read_samples(photos_from_csv(csv_path, image_root, path_column), on_skip)


def samples_from_folders(root: PathLike, on_skip: OnSkip = log_skipped) -> Iterator[Sample]:
    """The samples of iNat-style folders; see `photos_from_folders` and `read_samples`."""
    return read_samples(photos_from_folders(root), on_skip)


# -- splitting


class Labelled(Protocol):
    """What `split_by_individual` needs to know: a Photo has it, and so has a Sample."""

    @property
    def key(self) -> str: ...
    @property
    def lineage(self) -> Lineage: ...


L = TypeVar("L", bound=Labelled)


def split_by_individual(items: Sequence[L], fraction: float = 0.5, seed: int = 0) -> tuple[list[L], list[L]]:
    """Part the photographs of every taxon into training and held-out ones.

    A taxon gives ceil(fraction * n) of its n photographs to training, so that one with a single photograph is
    trained on. Which ones depends on the seed, the lineage and its keys alone, not on the order.

    Returns:
        (train, held_out), both in the order of `items`.

    Raises:
        ValueError: a fraction outside [0, 1].
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction must be in [0, 1], got {fraction}")
    row_of: dict[Lineage, int] = {}
    taxon = np.array([row_of.setdefault(item.lineage, len(row_of)) for item in items], np.int64)
    lot = np.array([draw_lot(seed, *item.lineage, item.key) for item in items], np.uint64)
    chosen = choose_share(taxon, lot, fraction).tolist()
    train = [item for item, kept in zip(items, chosen, strict=True) if kept]
    held_out = [item for item, kept in zip(items, chosen, strict=True) if not kept]
    return train, held_out
