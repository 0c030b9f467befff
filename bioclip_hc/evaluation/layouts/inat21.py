"""iNaturalist 2021, as its archives unpack: class folders, annotations in JSON, or both.

    val/00000_Animalia_Annelida_Clitellata_Haplotaxida_Lumbricidae_Lumbricus_terrestris/0fc8....jpg
    val.json

A class folder is named by an index and the seven names, joined by underscores; what is more of them belongs to the
species. The JSON (images, annotations, categories; form: visipedia/inat_comp, 2021) has the names apart and common
names beside them, so where it is there, it says which pictures there are and what they show.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from bioclip_hc.data.captions import short
from bioclip_hc.data.photographs import PhotographFiles
from bioclip_hc.data.sample import IMAGE_EXTENSIONS, PathLike
from bioclip_hc.evaluation.layouts.base import Benchmark, LeftOut, Published
from bioclip_hc.evaluation.layouts.inside import Inside
from bioclip_hc.evaluation.layouts.rows import as_common, as_named, bare_epithet
from bioclip_hc.taxonomy import RANKS, Lineage, Taxonomy

PUBLISHED = {  # visipedia/inat_comp, 2021/README.md
    "val": Published(100_000, 10_000, 10),
    "train_mini": Published(500_000, 10_000, 50),
    "train": Published(2_686_843, 10_000),
}
EXAMPLE = "00000_Animalia_Annelida_Clitellata_Haplotaxida_Lumbricidae_Lumbricus_terrestris"
MAX_JSON_BYTES = 2 << 30  # twice the annotations of all 2.7 million training images


def read(
    data: PathLike, *, images: PathLike | None = None, split: str | None = None, allow_outside: bool = False
) -> Benchmark:
    """The photographs of one split.

    Args:
        data: the folder of the class folders (val); or the folder that has it and its JSON in it; or the JSON.
        images: the folder that the JSON's file names start from; by default the JSON's own.
        split: which of `PUBLISHED`, of a folder that holds several; by default val.
        allow_outside: see `Inside`.

    Raises:
        FileNotFoundError: no such file, or neither class folders nor a JSON in the folder.
        ValueError: a JSON that is none, or of another form; no photograph that can be used.
        OSError: a folder that cannot be listed.
    """
    path = Path(data)
    if split is not None and split not in PUBLISHED:
        raise ValueError(f"split {split!r} is none of {', '.join(PUBLISHED)}")
    if path.is_file():
        annotations, folder, name = path, path.with_suffix(""), path.stem
    elif path.is_dir():
        folder = _split_folder(path, split)
        name = folder.name
        annotations = folder.with_name(f"{name}.json")
    else:
        raise FileNotFoundError(
            f"{path} is not there; name the folder val, the folder that has it in it, or val.json"
        )
    if annotations.is_file():
        root = Path(images) if images is not None else annotations.parent
        found = _from_json(annotations, Inside(root, allow_outside))
        found.notes.extend(_folders_beside(folder, found, annotations.name))
    else:
        found = _from_folders(folder, Inside(folder, allow_outside))
    if not found.files:
        why = f"; {found.left_out[0].name}: {found.left_out[0].reason}" if found.left_out else ""
        raise ValueError(f"{path}: no photograph that can be used{why}")
    taxonomy = Taxonomy.from_lineages(found.taxa, found.taxa.values())
    photographs = PhotographFiles(found.files, found.lineages, [found.taxa[lineage] for lineage in found.lineages])
    notes = [*found.notes, *(PUBLISHED[name].notes(photographs, taxonomy) if name in PUBLISHED else [])]
    whole = not PUBLISHED["val"].notes(photographs, taxonomy)  # figures are published of no other split
    ranks = tuple(range(len(RANKS)))
    return Benchmark(f"iNat21 {name}", photographs, taxonomy, ranks, found.left_out, notes, whole)


def _split_folder(path: Path, split: str | None) -> Path:
    """The folder of the class folders, or what it would be called beside its JSON."""
    for name in (split,) if split else PUBLISHED:
        if (path / name).is_dir() or (path / f"{name}.json").is_file():
            return path / name
    if split and path.name != split:
        raise FileNotFoundError(f"{path}: neither a folder {split!r} nor {split}.json in it")
    return path


class _Found(NamedTuple):
    """Files and their lineages; all taxa with their common names; the class folders that the JSON names."""

    files: list[str]
    lineages: list[Lineage]
    taxa: dict[Lineage, str]
    left_out: list[LeftOut]
    notes: list[str]
    folders: set[str]


# -- class folders -----------------------------------------------------------------------------------------


def lineage_of_folder(name: str) -> Lineage:
    """The lineage that a class folder's name says.

    Raises:
        ValueError: it is not an index and seven names joined by underscores.
    """
    index, *names = name.split("_", len(RANKS))
    if not (index.isascii() and index.isdigit()) or len(names) != len(RANKS):
        raise ValueError(f"the folder {short(name)} is not named as {EXAMPLE!r}; rename it, or move it out")
    names[-1] = names[-1].replace("_", " ")
    return as_named(names)


def _from_folders(folder: Path, inside: Inside) -> _Found:
    found = _Found([], [], {}, [], [], set())
    entries = inside.listing(os.fspath(folder))
    for entry in entries:
        try:
            if entry.kind != "folder":
                raise ValueError(entry.reason or f"{short(entry.name)} is in no class folder")
            lineage = lineage_of_folder(entry.name)
            found.taxa[lineage] = ""
            pictures = inside.listing(entry.path)
        except (OSError, ValueError) as error:
            found.left_out.append(LeftOut(entry.path, str(error)))
            continue
        for picture in pictures:
            if picture.kind == "file" and _ending(picture.name) in IMAGE_EXTENSIONS:
                found.files.append(picture.path)
                found.lineages.append(lineage)
            else:
                reason = picture.reason or f"neither {', '.join(IMAGE_EXTENSIONS)}, but a {picture.kind}"
                found.left_out.append(LeftOut(picture.path, reason))
    if not found.taxa:
        why = f"; {found.left_out[0].reason}" if found.left_out else ""
        raise FileNotFoundError(f"{folder}: neither class folders such as {EXAMPLE!r} in it, nor val.json{why}")
    return found


def _ending(name: str) -> str:
    return name.rpartition(".")[2].lower()


# -- JSON --------------------------------------------------------------------------------------------------

_KEPT = {"images", "annotations", "categories", "id", "file_name", "image_id", "category_id", "image_dir_name"}
_KEPT |= {"name", "common_name", "specific_epithet", *RANKS}


def _from_json(path: Path, inside: Inside) -> _Found:
    content = _load(path)
    found = _Found([], [], {}, [], [], set())
    label_of = _labels(content["annotations"], path, found.left_out)
    categories = _categories(content["categories"], found)
    listed = Counter(image.get("id") for image in content["images"])
    seen: set[str] = set()
    for i, image in enumerate(content["images"]):
        number, name = image.get("id"), image.get("file_name")
        where = f"{path}, images[{i}]" + (f" {name}" if isinstance(name, str) else "")
        try:
            if number is None or not isinstance(name, str):
                raise ValueError(f"no {'id' if number is None else 'file_name'}")
            if listed[number] > 1:
                raise ValueError(f"the image id {number!r} is there {listed[number]} times")
            if number not in label_of:
                raise ValueError(f"no annotation of the image id {number!r}")
            if len(label_of[number]) > 1:
                raise ValueError(f"annotations of the image id {number!r} name {len(label_of[number])} categories")
            (label,) = label_of[number]
            lineage = categories.get(label, f"no category {label!r}")
            if isinstance(lineage, str):
                raise ValueError(lineage)
            file = inside.file(name)
            if file in seen:
                raise ValueError(f"{short(name)} is listed already, under another id")
        except ValueError as error:
            found.left_out.append(LeftOut(where, str(error)))
            continue
        seen.add(file)
        found.files.append(file)
        found.lineages.append(lineage)
    return found


def _load(path: Path) -> dict[str, list[dict[str, Any]]]:
    """The three lists of a JSON, of each entry only what is read here."""
    form = "{images: [...], annotations: [...], categories: [...]}, as iNaturalist 2021 publishes"
    if (size := path.stat().st_size) > MAX_JSON_BYTES:
        raise ValueError(f"{path}: {size} bytes, the most are {MAX_JSON_BYTES}; is this the right file?")
    try:
        text = path.read_text(encoding="utf-8-sig")
        content = json.loads(text, object_pairs_hook=_kept)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is one
        raise ValueError(f"{path}: not JSON that can be read ({str(error)[:200]}); expected {form}") from None
    for key in ("images", "annotations", "categories"):
        entries = content.get(key) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            hint = "; the test set's labels are not published, use val" if key == "annotations" else ""
            raise ValueError(f"{path}: no list {key!r} of objects{hint}; expected {form}")
    return content


def _kept(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object without what takes most of its room; identifiers are numbers or texts."""
    kept = {key: value for key, value in pairs if key in _KEPT}
    for key in ("id", "image_id", "category_id"):
        if not isinstance(kept.get(key), int | str):
            kept.pop(key, None)
    return kept


def _labels(annotations: Iterable[dict[str, Any]], path: Path, left_out: list[LeftOut]) -> dict[Any, set[Any]]:
    """Image -> the categories that its annotations name."""
    labels: dict[Any, set[Any]] = {}
    for i, entry in enumerate(annotations):
        if missing := [key for key in ("image_id", "category_id") if key not in entry]:
            left_out.append(LeftOut(f"{path}, annotations[{i}]", f"no {missing[0]}"))
            continue
        labels.setdefault(entry["image_id"], set()).add(entry["category_id"])
    return labels


def _categories(entries: Iterable[dict[str, Any]], found: _Found) -> dict[Any, Lineage | str]:
    """Category -> its lineage, or why it has none; fills in the taxa and folders of `found`."""
    categories: dict[Any, Lineage | str] = {}
    disagree: list[str] = []
    for entry in entries:
        number, folder = entry.get("id"), entry.get("image_dir_name")
        if number is None:
            continue  # nothing can name it
        if isinstance(folder, str):
            found.folders.add(folder)
        try:
            names = [entry.get(rank) for rank in RANKS[:-1]] + [entry.get("specific_epithet") or ""]
            if missing := [rank for rank, name in zip(RANKS, names, strict=True) if not isinstance(name, str)]:
                raise ValueError(f"no {missing[0]}")
            scientific = entry.get("name")
            lineage = as_named(names, scientific if isinstance(scientific, str) else "")
        except ValueError as error:
            categories[number] = f"the category {number!r} cannot be used: {error}"
            continue
        if categories.setdefault(number, lineage) != lineage:
            categories[number] = f"the category {number!r} is there more than once, with other names"
            continue
        if bare_epithet([*names, str(scientific or "")], lineage):
            found.notes.append(f"the species of category {number!r} is unknown: {names[-1]!r} has no genus")
        common = entry.get("common_name")
        found.taxa[lineage] = found.taxa.get(lineage) or (as_common(common) if isinstance(common, str) else "")
        if isinstance(folder, str):
            try:
                agrees = lineage_of_folder(folder) == lineage
            except ValueError:
                agrees = False
            if not agrees:
                disagree.append(f"{short(folder)} against {' '.join(lineage)}")
    if disagree:
        found.notes.append(
            f"names of {len(disagree)} class folders disagree with the JSON, whose names are taken; the first: "
            f"{disagree[0]}"
        )
    return categories


def _folders_beside(folder: Path, found: _Found, annotations: str) -> list[str]:
    """What to say of class folders that the JSON does not know."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        names = sorted(e.name for e in entries if not e.name.startswith(".") and e.is_dir())
    unknown = [name for name in names if name not in found.folders]
    if not unknown:
        return []
    return [f"{len(unknown)} folders that {annotations} does not name are not read; the first: {short(unknown[0])}"]
