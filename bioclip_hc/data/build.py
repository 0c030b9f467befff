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
import os
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
from bioclip_hc.data.sample import MAX_IMAGE_BYTES, PathLike, Sample
from bioclip_hc.taxonomy import RANKS, Lineage, as_lineage, header_remedy, named, rank_columns

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
        ValueError: no UTF-8 or no CSV; a missing column (the columns found are named); no rows; a row with too many
            or too few fields, with a line break in what is read of it, without any rank, with a lineage that a
            caption cannot hold, or with a picture that another row has already.
        FileNotFoundError: a row whose picture is missing.
    """
    csv_path = Path(csv_path)
    root = csv_path.parent if image_root is None else Path(image_root)
    rows = _rows(csv_path)
    _, header = next(rows, (0, []))
    column = _columns(header, path_column, csv_path)
    at_path, at_common = column[path_column], column.get("common_name")
    at_rank = [column[rank] for rank in RANKS]
    used = [at_path, *at_rank, *([] if at_common is None else [at_common])]
    photos: list[Photo] = []
    line_of: dict[str, int] = {}
    lineage_of: dict[tuple[str, ...], Lineage] = {}  # a table has far more rows than taxa
    for line, row in rows:
        where = f"{csv_path}, line {line}"
        if len(row) != len(header):
            which, fix = ("more", "quote") if len(row) > len(header) else ("fewer", "fill the row, and quote")
            raise ValueError(f"{where}: {which} fields than columns; {fix} fields that hold commas")
        if any("\n" in row[i] or "\r" in row[i] for i in used):
            raise ValueError(f"{where}: a line break within a field; is a quote left open here or on a line above?")
        path = root / row[at_path]
        name = str(path)
        if not os.path.isfile(name):
            raise FileNotFoundError(f"{where}: no picture at {path}; fix column {path_column!r} or set image_root")
        if name in line_of:
            raise ValueError(f"{where}: {path} is on line {line_of[name]} already; keep one of the rows")
        line_of[name] = line
        names = tuple(named(row[i]) for i in at_rank)
        if names not in lineage_of:
            lineage_of[names] = _checked(dict(zip(RANKS, names, strict=True)), where)
        common = "" if at_common is None else named(row[at_common]).strip()
        photos.append(Photo(_key(len(photos), path), path, lineage_of[names], common))
    if not photos:
        raise ValueError(f"{csv_path}: no photographs, the table is a header only")
    return photos


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line on which it ends, fields) of each row of a CSV, the header first; empty lines are passed over.

    Raises:
        ValueError: not UTF-8, or not a CSV (line named).
    """
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)  # or an open quote takes the rows after it for one field
        try:
            yield from ((reader.line_num, row) for row in reader if row)
        except csv.Error as error:
            raise ValueError(
                f"{path}, line {reader.line_num}: not a well-formed CSV ({error}); "
                "is a quote left open there or on a line above?"
            ) from None
        except UnicodeDecodeError:
            raise ValueError(f"{path}{_not_utf8(path)}; convert the table first, as with iconv -t UTF-8") from None


def _not_utf8(path: Path) -> str:
    """Where a file that is not UTF-8 shows it."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                kind = ", it seems to be UTF-16" if line[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
                return f", line {number}: not UTF-8 at byte {error.start + 1} of the line{kind}"
    return ": not UTF-8"  # it has been changed meanwhile


def photos_from_folders(root: PathLike, on_skip: OnSkip = log_skipped) -> list[Photo]:
    """The photographs of folders named as iNat 2021's: an index and the seven names, joined by underscores.

    `02912_Animalia_Chordata_Aves_Passeriformes_Turdidae_Turdus_migratorius`; further underscores belong to the
    species ("lupus_familiaris" is "lupus familiaris"), and a name left empty is an unknown rank.

    Args:
        on_skip: called with each folder within these: what lies in it is not read.

    Raises:
        ValueError: a folder that is not named so.
        FileNotFoundError: no such folder, none in it, or no photographs in those.
    """
    root = Path(root)
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not folders:
        raise FileNotFoundError(f"{root}: no folders such as {_EXAMPLE_FOLDER!r} in it")
    photos: list[Photo] = []
    for folder in folders:
        lineage = _lineage_of_folder(folder)
        for path in sorted(path for path in folder.iterdir() if not path.name.startswith(".")):
            if path.is_file():
                photos.append(Photo(_key(len(photos), path), path, lineage))
            elif path.is_dir():
                files = sum(len(names) for _, _, names in os.walk(path))
                on_skip(Skipped(path, f"a folder within a taxon's folder, its {files} files are not read"))
    if not photos:
        raise FileNotFoundError(f"{root}: no photographs in its folders, such as {folders[0].name!r}")
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


def _columns(found: Sequence[str], path_column: str, csv_path: Path) -> dict[str, int]:
    """Column -> its place; the ranks as `rank_columns` finds them."""
    ranks = rank_columns(found, csv_path)
    place = {rank: found.index(column) for rank, column in ranks.items()}
    place |= {name: found.index(name) for name in (path_column, "common_name") if name in found}
    if missing := [name for name in (path_column, *RANKS) if name not in place]:
        raise ValueError(
            f"{csv_path}: no column {', '.join(map(repr, missing))}; "
            f"columns found: {', '.join(found) or 'none'}{_remedy(found, missing)}"
        )
    return place


def _remedy(found: Sequence[str], missing: Sequence[str]) -> str:
    """What may have to be done to a header in which columns are missed."""
    if not {column.strip().lower() for column in found}.isdisjoint(missing):
        return "; write them in lower case, without blanks around them"
    return header_remedy(found)


def _checked(names: dict[str, str], where: str) -> Lineage:
    """A lineage that the shard writer will take."""
    try:
        lineage = as_lineage(names)
        format_taxon_tag(lineage).encode()
    except UnicodeEncodeError:
        raise ValueError(f"{where}: the name is not UTF-8; rename it") from None
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
    """Read the photographs in their order, leaving out those that cannot be read or do not decode.

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
    try:
        with open(photo.path, "rb") as file:
            data = file.read(MAX_IMAGE_BYTES + 1)
    except OSError as error:
        return Skipped(photo.path, f"cannot be read: {error.strerror or error}")
    if len(data) > MAX_IMAGE_BYTES:
        return Skipped(photo.path, f"larger than {MAX_IMAGE_BYTES} bytes")
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
    return read_samples(photos_from_folders(root, on_skip), on_skip)


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
