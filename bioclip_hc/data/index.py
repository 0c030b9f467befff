"""The index of one shard: which samples it holds and where their images lie."""

from __future__ import annotations

import io
import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bioclip_hc.data.captions import CAPTION, FLAT, TAGGED, TAGGED_COMMON, Label, read_label
from bioclip_hc.data.members import MAX_WALKS, Member, group, scan
from bioclip_hc.data.sample import IMAGE_EXTENSIONS, MAX_IMAGE_BYTES, MAX_TEXT_BYTES, PathLike
from bioclip_hc.taxonomy import RANKS

INDEX_VERSION = 4
MAX_EXTENSIONS = 100  # of a shard's members, kept for messages
MAX_SAVED_BYTES = 1 << 16  # of an index, beside eight times its shard, which names in JSON's escapes may take
CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x9f]")  # all but white space; they belong in no name


@dataclass
class ShardIndex:
    """Where the samples of one shard are.

    Attributes:
        keys, offset, size: per usable sample, its key and the position and length of its image.
        label: per usable sample, its row in `labels`.
        labels: the distinct labels of the shard. Flat captions are kept as they are, not looked up, so that an
            index depends on its shard alone.
        extensions: what the members of the samples are, in lower case.
        bad: (key, reason) of all that is not usable; the key is "" for damage of the tar itself.
        lost: bytes of such damage, in which further samples may lie.
    """

    keys: list[str] = field(default_factory=list)
    offset: list[int] = field(default_factory=list)
    size: list[int] = field(default_factory=list)
    label: list[int] = field(default_factory=list)
    labels: list[Label] = field(default_factory=list)
    extensions: list[str] = field(default_factory=list)
    bad: list[tuple[str, str]] = field(default_factory=list)
    lost: int = 0


def shard_index(path: PathLike) -> ShardIndex:
    """The index of a shard, from the file beside it if that still fits, else by reading the shard once.

    The index is kept in `<shard>.index.json` when the folder can be written to.

    Raises:
        ValueError: samples there are, but none has a caption member; or it is no file.
    """
    path = Path(path)
    stamp = _stamp(path)
    index = _load_index(index_file(path), stamp)
    if index is None:
        index = build_index(path)
        _save_index(index_file(path), stamp, index)
    return index


def kept_index(path: PathLike) -> ShardIndex | None:
    """The index kept beside a shard, None where there is none that fits the shard's size and time."""
    path = Path(path)
    return _load_index(index_file(path), _stamp(path))


def index_file(path: Path) -> Path:
    """Where the index of a shard is kept."""
    return path.with_name(path.name + ".index.json")


def build_index(path: PathLike) -> ShardIndex:
    """Read a shard once from beginning to end and index it.

    Raises:
        ValueError: samples there are, but none has a caption member.
    """
    members, damage = scan(Path(path))
    index, label_of, seen, extensions = ShardIndex(), dict[Label, int](), set[str](), set[str]()
    with open(path, "rb") as file:
        for key, fields in group(members, index.bad):
            extensions.update(fields)
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
    index.extensions = sorted(extensions)[:MAX_EXTENSIONS]
    index.bad += [("", str(place)) for place in damage]
    index.lost = sum(place.lost for place in damage)
    if seen and not damage and extensions.isdisjoint((TAGGED, TAGGED_COMMON, *FLAT)):
        raise ValueError(
            f"{path}: none of its {len(seen)} samples has the caption member {CAPTION!r}, nor a flat one "
            f"({', '.join(FLAT)}); members found: {', '.join(index.extensions[:20])}"
        )
    return index


def _examine(file: io.BufferedReader, fields: dict[str, Member]) -> tuple[Member, Label]:
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
    return image, read_label(fields, lambda extension: _read_text(file, fields[extension]))


def _read_text(file: io.BufferedReader, member: Member) -> str:
    name = Path(member.name).name
    if member.size > MAX_TEXT_BYTES:
        raise ValueError(f"{name} of {member.size} bytes is larger than {MAX_TEXT_BYTES}")
    try:
        text = os.pread(file.fileno(), member.size, member.offset).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not UTF-8: {error.reason} at byte {error.start}") from None
    if control := CONTROL.search(text):
        raise ValueError(f"{name} holds the control character {control[0]!r}")
    return text


def _stamp(path: Path) -> dict[str, int]:
    """What tells that a kept index is this shard's.

    Raises:
        ValueError: it is a folder, or a pipe that would be waited for.
        FileNotFoundError: it is not there, or a link to nothing.
    """
    try:
        stat = path.stat()
    except FileNotFoundError:
        what = f"a link to {os.readlink(path)}, which is not there" if path.is_symlink() else "not there"
        raise FileNotFoundError(f"{path} is {what}; mend it, or leave it out of the shards") from None
    if not path.is_file():
        raise ValueError(f"{path} is not a file; remove it from the shards, or rename it")
    return {"version": INDEX_VERSION, "bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}


def _load_index(cache: Path, stamp: dict[str, int]) -> ShardIndex | None:
    """The saved index, or None if there is none, it is another shard's, or it is damaged."""
    try:
        if cache.stat().st_size > MAX_SAVED_BYTES + 8 * stamp["bytes"]:
            return None
        saved = json.loads(cache.read_bytes())
        if saved.pop("stamp") != stamp:
            return None
        index = ShardIndex(**saved)
        index.labels = [
            Label(tuple(words[0].split("\t")) if words[0] else (), *map(str, words[1:]))
            for words in saved["labels"]
        ]
        index.bad = [(str(key), str(reason)) for key, reason in index.bad]
        for label in index.labels:
            "".join((*label.lineage, *label[1:])).encode()  # raises at half a letter, which no shard has
        return index if _fits(index, stamp["bytes"]) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _fits(index: ShardIndex, total: int) -> bool:
    """Whether an index that was read from a file can be that of a shard of `total` bytes."""
    offset, size, label = (np.asarray(numbers) for numbers in (index.offset, index.size, index.label))
    return (
        set(map(type, (*index.keys, *index.extensions))) <= {str}
        and type(index.lost) is int
        and 0 <= index.lost <= MAX_WALKS * total
        and all(column.shape == (len(index.keys),) for column in (offset, size, label))
        and all(column.dtype.kind == "i" for column in (offset, size, label) if column.size)
        and bool(
            np.all((offset >= 0) & (size >= 0) & (size <= min(total, MAX_IMAGE_BYTES)) & (offset <= total - size))
        )
        and bool(np.all((label >= 0) & (label < len(index.labels))))
        and all(
            len(each.lineage) == len(RANKS) and any(each.lineage) if each.lineage else bool(each.text)
            for each in index.labels
        )
    )


def _save_index(cache: Path, stamp: dict[str, int], index: ShardIndex) -> None:
    """Write the index beside its shard, whole or not at all; where that cannot be, do without."""
    aside = cache.with_name(f"{cache.name}.{os.getpid()}.tmp")  # several processes may index one shard
    # a shard of 10,000 samples may have as many labels: one string is read several times faster than seven
    labels = [("\t".join(lineage), *(rest if rest[-1] else rest[:1])) for lineage, *rest in index.labels]
    try:
        with aside.open("x", encoding="utf-8") as file:  # not through a link that someone left there
            file.write(json.dumps({"stamp": stamp, **vars(index), "labels": labels}))  # faster than json.dump
        os.replace(aside, cache)
    except OSError:
        aside.unlink(missing_ok=True)
