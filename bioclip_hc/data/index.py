"""The index of one shard: which samples it holds and where their images lie."""

from __future__ import annotations

import io
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bioclip_hc.data.captions import CAPTION, COMMON, common_name, parse_taxon_tag
from bioclip_hc.data.members import Member, group, scan
from bioclip_hc.data.sample import IMAGE_EXTENSIONS, MAX_IMAGE_BYTES, MAX_TEXT_BYTES, PathLike
from bioclip_hc.taxonomy import Lineage, as_lineage

INDEX_VERSION = 1


@dataclass
class ShardIndex:
    """Where the samples of one shard are.

    Attributes:
        keys, offset, size: per usable sample, its key and the position and length of its image.
        label: per usable sample, its row in `labels`.
        labels: the distinct (lineage, common name) of the shard.
        bad: (key, reason) of all that is not usable; the key is "" for damage of the tar itself.
    """

    keys: list[str] = field(default_factory=list)
    offset: list[int] = field(default_factory=list)
    size: list[int] = field(default_factory=list)
    label: list[int] = field(default_factory=list)
    labels: list[tuple[Lineage, str]] = field(default_factory=list)
    bad: list[tuple[str, str]] = field(default_factory=list)


def shard_index(path: PathLike) -> ShardIndex:
    """The index of a shard, from the file beside it if that still fits, else by reading the shard once.

    The index is kept in `<shard>.index.json` when the folder can be written to.

    Raises:
        ValueError: samples there are, but none has the caption member.
    """
    path = Path(path)
    stat = path.stat()
    stamp = {"version": INDEX_VERSION, "bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    cache = path.with_name(path.name + ".index.json")
    index = _load_index(cache, stamp)
    if index is None:
        index = build_index(path)
        _save_index(cache, stamp, index)
    return index


def build_index(path: PathLike) -> ShardIndex:
    """Read a shard once from beginning to end and index it.

    Raises:
        ValueError: samples there are, but none has the caption member.
    """
    members, damage = scan(Path(path))
    index, label_of, seen, extensions = ShardIndex(), dict[Any, int](), set[str](), set[str]()
    with open(path, "rb") as file:
        for key, fields in group(members, index.bad):
            extensions |= {member.name[len(key) + 1 :] for member in fields.values()}
            try:
                if key in seen:
                    raise ValueError("duplicate key")
                image, label = _examine(file, fields)
            except ValueError as error:
                index.bad.append((key, str(error)))
            else:
                index.keys.append(key)
                index.offset.append(image.offset)
                index.size.append(image.size)
                index.label.append(label_of.setdefault(label, len(label_of)))
            seen.add(key)
    index.labels = list(label_of)
    if damage:
        index.bad.append(("", damage))
    elif seen and CAPTION.lower() not in map(str.lower, extensions):
        raise ValueError(
            f"{path}: none of its {len(seen)} samples has the caption member {CAPTION!r}; "
            f"members found: {', '.join(sorted(extensions)[:20])}"
        )
    return index


def _examine(file: io.BufferedReader, fields: dict[str, Member]) -> tuple[Member, tuple[Lineage, str]]:
    """The image member and the label of a sample.

    Raises:
        ValueError: the reason why the sample cannot be used.
    """
    for member in fields.values():
        if member.problem:
            raise ValueError(f"{Path(member.name).name}: {member.problem}")
    image = next((fields[extension] for extension in IMAGE_EXTENSIONS if extension in fields), None)
    if image is None:
        raise ValueError(f"no image ({', '.join(IMAGE_EXTENSIONS)}); members found: {', '.join(sorted(fields))}")
    if image.size > MAX_IMAGE_BYTES:
        raise ValueError(f"image of {image.size} bytes is larger than {MAX_IMAGE_BYTES}")
    if CAPTION.lower() not in fields:
        raise ValueError(f"no caption {CAPTION!r}; members found: {', '.join(sorted(fields))}")
    lineage = parse_taxon_tag(_read_text(file, fields[CAPTION.lower()]))
    if not any(lineage):
        raise ValueError("empty lineage")
    common = common_name(_read_text(file, fields[COMMON]), lineage) if COMMON in fields else ""
    return image, (lineage, common)


def _read_text(file: io.BufferedReader, member: Member) -> str:
    name = Path(member.name).name
    if member.size > MAX_TEXT_BYTES:
        raise ValueError(f"{name} of {member.size} bytes is larger than {MAX_TEXT_BYTES}")
    try:
        return os.pread(file.fileno(), member.size, member.offset).decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not UTF-8: {error.reason} at byte {error.start}") from None


def _load_index(cache: Path, stamp: dict[str, int]) -> ShardIndex | None:
    """The saved index, or None if there is none, it is another shard's, or it is damaged."""
    try:
        saved = json.loads(cache.read_bytes())
        if saved.pop("stamp") != stamp:
            return None
        index = ShardIndex(**saved)
        index.labels = [(as_lineage(lineage), str(common)) for lineage, common in index.labels]
        index.bad = [(str(key), str(reason)) for key, reason in index.bad]
        return index if _fits(index, stamp["bytes"]) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _fits(index: ShardIndex, total: int) -> bool:
    """Whether an index that was read from a file can be that of a shard of `total` bytes."""
    rows = zip(index.keys, index.offset, index.size, index.label, strict=True)
    return all(
        isinstance(key, str)
        and all(type(number) is int for number in (offset, size, label))
        and 0 <= offset <= offset + size <= total
        and 0 <= label < len(index.labels)
        for key, offset, size, label in rows
    )


def _save_index(cache: Path, stamp: dict[str, int], index: ShardIndex) -> None:
    """Write the index beside its shard, whole or not at all; where that cannot be, do without."""
    aside = cache.with_name(f"{cache.name}.{os.getpid()}.tmp")  # several processes may index one shard
    try:
        aside.write_text(json.dumps({"stamp": stamp, **vars(index)}))
        os.replace(aside, cache)
    except OSError:
        aside.unlink(missing_ok=True)
