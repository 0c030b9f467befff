"""Shards: the tar format of TreeOfLife-10M, its writer, and a reader that visits every sample exactly once.

A shard is a plain tar. A sample is a run of members with one key (the name up to the first dot of its base name):

    KEY.jpg (jpeg, png, webp)   the picture
    KEY.taxonTag.txt            "a photo of kingdom Animalia phylum Chordata class Aves order  family Turdidae
                                genus Turdus species migratorius."
    KEY.sci.txt, KEY.com.txt    "a photo of Turdus migratorius.", "a photo of American robin."

Shards are data, never code: only regular members with these endings are opened, nothing is unpacked to disk, and
a damaged sample or tar ends up in `bad` with its reason, never in an exception from the depths of a parser.
"""

from __future__ import annotations

import glob
import hashlib
import io
import json
import math
import os
import re
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from braceexpand import braceexpand

from bioclip_hc.taxonomy import RANKS, Lineage, Taxonomy, as_lineage

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
CAPTION = "taxonTag.txt"
COMMON = "com.txt"
MAX_IMAGE_BYTES = 64 << 20  # a 100-megapixel photograph in good quality
MAX_TEXT_BYTES = 64 << 10  # the longest names known, hundreds of times over
MAX_HEADER_BYTES = 1 << 20  # what tarfile may read for one long name or pax header
MAX_OPEN_SHARDS = 512  # half of the usual limit of 1024 descriptors; further shards are opened at each read
MAX_RANGE = 1_000_000  # shards in one brace range, which is expanded in memory
INDEX_VERSION = 1

PathLike = str | os.PathLike[str]


class Sample(NamedTuple):
    """One picture as it lies in a shard, not decoded."""

    key: str
    image: bytes
    lineage: Lineage
    common_name: str = ""


# -- captions


def format_taxon_tag(lineage: Lineage) -> str:
    """The tagged caption of a lineage; an unknown rank keeps its tag, followed by nothing.

    Raises:
        ValueError: the lineage would not be read back as it is: a name holds the name of a rank as a word, or
            white space other than single spaces between words.
    """
    text = "a photo of " + " ".join(f"{rank} {name}" for rank, name in zip(RANKS, lineage, strict=True)) + "."
    try:
        read_back = parse_taxon_tag(text)
    except ValueError as error:
        raise ValueError(f"lineage {lineage!r} cannot be written as a tagged caption: {error}") from None
    if read_back != tuple(lineage):
        raise ValueError(
            f"lineage {lineage!r} cannot be written as a tagged caption: it reads back as {read_back!r}; "
            "pass it through as_lineage first"
        )
    return text


def parse_taxon_tag(text: str) -> Lineage:
    """The lineage of a tagged caption. A tag without a name, or a missing tag, is an unknown rank.

    Raises:
        ValueError: not of the form "a photo of kingdom ... species ...."; a tag twice or out of order.
    """
    text = text.strip()
    body = text.removeprefix("a photo of ").removesuffix(".")
    if len(body) != len(text) - len("a photo of ") - 1:
        raise ValueError(f'caption {_short(text)} is not "a photo of kingdom ... species ... ."')
    words = body.split(" ")
    starts = [i for i, word in enumerate(words) if word in RANKS]
    tags = [words[i] for i in starts]
    if tags != [rank for rank in RANKS if rank in tags]:
        raise ValueError(f"caption {_short(text)} names its ranks twice or out of order: {' '.join(tags)}")
    if starts[:1] != [0]:
        raise ValueError(f"caption {_short(text)} does not begin with a rank ({', '.join(RANKS)})")
    ends = [*starts[1:], len(words)]
    names = {tag: " ".join(words[start + 1 : end]) for tag, start, end in zip(tags, starts, ends, strict=True)}
    return as_lineage(names)


def scientific_name(lineage: Lineage) -> str:
    """Genus and species, or the deepest known name of a lineage that ends higher; "" for an empty one."""
    *higher, genus, species = lineage
    if genus or species:
        return f"{genus} {species}".strip()
    return next((name for name in reversed(higher) if name), "")


def _common_name(text: str, lineage: Lineage) -> str:
    """The common name in a caption; "" where TreeOfLife-10M repeats the scientific or full name for want of one."""
    name = text.strip().removeprefix("a photo of ").removesuffix(".")
    fallbacks = (scientific_name(lineage), " ".join(filter(None, lineage)))
    return "" if name in fallbacks else name


def _short(text: str) -> str:
    return repr(text if len(text) <= 200 else text[:200] + "...")


# -- writing


def write_shards(
    samples: Iterable[Sample], folder: PathLike, *, samples_per_shard: int = 1000, prefix: str = "shard"
) -> list[Path]:
    """Write samples into `folder` as prefix-000000.tar, ...; the same samples give the same bytes.

    The shards are written aside and appear together at the end: a build that dies leaves none.

    Returns:
        The shards, in order.

    Raises:
        FileExistsError: the folder already holds shards.
        ValueError: no samples, a key twice, a key that would not be read back, an empty or unwritable lineage,
            or an image that is not JPEG, PNG or WebP.
    """
    from webdataset import ShardWriter  # it imports torch, which readers do without

    if samples_per_shard < 1:
        raise ValueError(f"samples_per_shard must be at least 1, got {samples_per_shard}")
    folder = Path(folder).resolve()  # an absolute path cannot be taken for a webdataset URL
    folder.mkdir(parents=True, exist_ok=True)
    if present := sorted(folder.glob("*.tar")):
        raise FileExistsError(
            f"{folder} already holds {len(present)} shards ({present[0].name}, ...); "
            "write to another folder or remove them first"
        )
    seen: set[str] = set()
    written: list[Path] = []
    with tempfile.TemporaryDirectory(dir=folder, prefix=".building-") as aside:
        pattern = f"{aside}/{prefix}-".replace("%", "%%") + "%06d.tar"
        fixed = {"mtime": 0, "user": "", "group": "", "encoder": False, "format": "PAX_FORMAT"}
        with ShardWriter(
            pattern,
            maxcount=samples_per_shard,
            verbose=0,
            post=lambda name: written.append(Path(name)),
            **fixed,
        ) as writer:
            for sample in samples:
                if sample.key in seen:
                    raise ValueError(f"sample key {sample.key!r} occurs twice; keys must be unique")
                seen.add(sample.key)
                writer.write(_members_of(sample))
        if not seen:
            raise ValueError(f"no samples to write into {folder}; check the source's skipped list")
        for shard in written:
            os.replace(shard, folder / shard.name)
    return [folder / shard.name for shard in written]


def _members_of(sample: Sample) -> dict[str, str | bytes]:
    """A sample as webdataset writes it: extension -> contents."""
    key = sample.key
    if not (match := _MEMBER_NAME.match(f"{key}.jpg")) or match[1] != key or _unsafe_name(key):
        raise ValueError(
            f"sample key {key!r} would not be read back; use a relative name without dots, such as 'birds/000017'"
        )
    if not any(sample.lineage):
        raise ValueError(f"sample {key!r} has an empty lineage; name at least one rank or leave it out")
    members: dict[str, str | bytes] = {
        "__key__": key,
        _image_extension(sample): sample.image,
        CAPTION: format_taxon_tag(sample.lineage).encode(),
        "sci.txt": f"a photo of {scientific_name(sample.lineage)}.".encode(),
    }
    if sample.common_name:
        members[COMMON] = f"a photo of {sample.common_name}.".encode()
    return members


def _image_extension(sample: Sample) -> str:
    """The extension that the first bytes of the image call for."""
    head = sample.image[:12]
    if head.startswith(b"\xff\xd8\xff"):
        return "jpg"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if head[:4] == b"RIFF" and head[8:] == b"WEBP":
        return "webp"
    raise ValueError(f"sample {sample.key!r}: the image is not JPEG, PNG or WebP, it begins with {head!r}")


# -- the index of one shard


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


class _Member(NamedTuple):
    name: str
    offset: int
    size: int
    problem: str  # why it must not be read, "" if it may be


# key, extension: webdataset's rule, but for hidden files in folders ("birds/._1.jpg"), which are no samples here
_MEMBER_NAME = re.compile(r"((?:.*/|)[^./]+)[.]([^/]*)", re.DOTALL)


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
    members, damage = _scan(Path(path))
    index, label_of, seen, extensions = ShardIndex(), dict[Any, int](), set[str](), set[str]()
    with open(path, "rb") as file:
        for key, fields in _group(members, index.bad):
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


class _HeaderFile(io.FileIO):
    """The file as tarfile sees it: it reads headers only, so a long read is a forged header's."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header claims {size} bytes")
        return super().read(size) or b""


def _scan(path: Path) -> tuple[list[_Member], str]:
    """All members of a tar up to its end or its first damage, and a description of that damage ("" if whole)."""
    members: list[_Member] = []
    end = 0
    with _HeaderFile(path) as file:
        total = os.fstat(file.fileno()).st_size
        try:
            with tarfile.open(fileobj=file, mode="r:", encoding="utf-8") as tar:
                while (info := tar.next()) is not None:
                    tar.members.clear()  # type: ignore[attr-defined]  # it would keep every header
                    if tar.offset <= end:
                        raise tarfile.ReadError("a header points backwards")
                    end = tar.offset
                    if not info.isdir():
                        problem = _member_problem(info, total)
                        members.append(_Member(info.name, info.offset_data, info.size, problem))
        except OSError:  # a failing disk is not a damaged shard
            raise
        except Exception as error:  # on forged headers tarfile raises anything, from ValueError to RecursionError
            return members, f"damaged tar after byte {min(end, total)} of {total}: {error}"
        file.seek(end)
        # tarfile takes a broken header in mid-archive for the end; the true end is a block of zeros
        if file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
            return members, f"damaged tar after byte {end} of {total}: no end-of-archive mark, it may be cut off"
    return members, ""


def _member_problem(info: tarfile.TarInfo, total: int) -> str:
    if _unsafe_name(info.name):
        return "unsafe name"
    if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or info.sparse is not None:
        return "not a regular file"
    if info.size < 0 or info.offset_data + info.size > total:
        return "cut off at the end of the shard"
    return ""


def _unsafe_name(name: str) -> bool:
    return name.startswith("/") or "\0" in name or "\\" in name or ".." in name.split("/")


def _group(members: Iterable[_Member], bad: list[tuple[str, str]]) -> Iterator[tuple[str, dict[str, _Member]]]:
    """Runs of members with one key, as lower-case extension -> member; an extension met again opens a new sample.

    A member without a key is no sample's and is passed over; a link or an unsafe name among them goes to `bad`.
    """
    key, fields = "", dict[str, _Member]()
    for member in members:
        match = _MEMBER_NAME.fullmatch(member.name)
        if match is None:
            if member.problem:
                bad.append((member.name, member.problem))
            continue
        extension = match[2].lower()
        if match[1] != key or extension in fields:
            if fields:
                yield key, fields
            key, fields = match[1], {}
        fields[extension] = member
    if fields:
        yield key, fields


def _examine(file: io.BufferedReader, fields: dict[str, _Member]) -> tuple[_Member, tuple[Lineage, str]]:
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
    common = _common_name(_read_text(file, fields[COMMON]), lineage) if COMMON in fields else ""
    return image, (lineage, common)


def _read_text(file: io.BufferedReader, member: _Member) -> str:
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


# -- sets of shards


def expand_shards(spec: PathLike | Sequence[PathLike]) -> list[Path]:
    """The shards named by a folder, a file, a glob, a brace range ("shard-{000000..000010}.tar") or a list of them.

    Returns:
        Sorted, each shard once.

    Raises:
        FileNotFoundError: a named shard is missing, or a folder or glob holds none.
        ValueError: an empty list, unbalanced braces, or a `pipe:` or URL (only local files are read).
    """
    specs = [spec] if isinstance(spec, str | os.PathLike) else list(spec)
    if not specs:
        raise ValueError("no shards given; name a folder, a glob, a brace range or a list of shards")
    found = {os.path.realpath(path): path for each in specs for path in _expand_one(os.fspath(each))}
    return sorted(found.values())


def _expand_one(spec: str) -> Iterator[Path]:
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:", spec):
        raise ValueError(f"shards {spec!r}: only local files are read, no pipes or URLs; download the shards first")
    if not spec:
        raise ValueError("shards '': the path is empty; name a folder, a glob, a brace range or a file")
    if os.path.isdir(spec):
        shards = sorted(Path(spec).glob("*.tar"))
        if not shards:
            raise FileNotFoundError(f"shards {spec!r}: no *.tar in this folder; build shards there or fix the path")
        yield from shards
        return
    widths = [abs(int(last) - int(first)) + 1 for first, last in re.findall(r"\{(\d+)\.\.(\d+)", spec)]
    if math.prod(widths) > MAX_RANGE:
        raise ValueError(f"shards {spec!r}: the range names more than {MAX_RANGE} shards; shorten it or use a glob")
    try:
        names = [spec] if os.path.isfile(spec) else braceexpand(spec, escape=False)
        for name in names:
            matches = [name] if os.path.isfile(name) else sorted(glob.glob(name))
            if not matches:
                raise FileNotFoundError(f"shards {spec!r}: there is no {name!r}; fix the path or the range")
            yield from map(Path, matches)
    except ValueError:  # braceexpand's UnbalancedBracesError
        raise ValueError(f"shards {spec!r}: unbalanced braces; a range reads {{000000..000010}}") from None


class BadSample(NamedTuple):
    """What a shard holds and training cannot use; the key is "" for damage of the shard itself."""

    shard: str
    key: str
    reason: str


class ShardSet:
    """Random access to the samples of many shards, in a fixed order: by shard name, then as they lie in the tar.

    Reads are positioned (`os.pread`) on descriptors opened at first use, so threads and forked workers share
    nothing; a pickled copy opens its own.

    Attributes:
        paths: the shards, sorted.
        lineages: the distinct lineages of all samples.
        lineage_index: (N,) int64, each sample's row in `lineages`.
        bad: what the shards hold that is not among the N samples.

    Raises:
        FileNotFoundError, ValueError: see `expand_shards`; no shard has a usable sample; a shard without captions.
    """

    def __init__(self, paths: PathLike | Sequence[PathLike]) -> None:
        self._descriptors: dict[int, int] = {}
        self.paths = expand_shards(paths)
        indexes = [shard_index(path) for path in self.paths]
        self.bad = [
            BadSample(str(path), *record)
            for path, index in zip(self.paths, indexes, strict=True)
            for record in index.bad
        ]
        self._start = np.cumsum([0] + [len(index.keys) for index in indexes])
        if not len(self):
            reason = f"; the first of {len(self.bad)} reasons: {self.bad[0].reason}" if self.bad else ""
            others = f" and {len(self.paths) - 1} more" if len(self.paths) > 1 else ""
            raise ValueError(f"no usable sample in {self.paths[0]}{others}{reason}")
        # encoded, for millions of str objects would cost a gigabyte in every forked worker
        self._keys = [np.array([key.encode("utf-8", "surrogatepass") for key in index.keys]) for index in indexes]
        self._offset = np.array([offset for index in indexes for offset in index.offset], dtype=np.int64)
        self._size = np.array([size for index in indexes for size in index.size], dtype=np.int64)
        label_of: dict[tuple[Lineage, str], int] = {}
        label = [label_of.setdefault(index.labels[i], len(label_of)) for index in indexes for i in index.label]
        row_of: dict[Lineage, int] = {}
        lineage_of_label = [row_of.setdefault(lineage, len(row_of)) for lineage, _ in label_of]
        self.lineages: list[Lineage] = list(row_of)
        self.lineage_index = np.array(lineage_of_label, dtype=np.int64)[label]
        self._label = np.array(label, dtype=np.int32)
        self._common = [common for _, common in label_of]

    def __len__(self) -> int:
        return int(self._start[-1])

    def taxonomy(self) -> Taxonomy:
        """The taxa of the samples' lineages, with their common names."""
        used, first = np.unique(self._label, return_index=True)
        lineages = [self.lineages[self.lineage_index[i]] for i in first]
        return Taxonomy.from_lineages(lineages, [self._common[label] for label in used])

    def unresolved(self, taxonomy: Taxonomy) -> str:
        """A sentence on the samples that name a taxon which the taxonomy lacks; "" where there are none."""
        named = np.array([[bool(name) for name in lineage] for lineage in self.lineages])
        lacks = np.any(named & (taxonomy.encode_many(self.lineages) < 0), axis=1)
        if not lacks.any():
            return ""
        first = " > ".join(filter(None, self.lineages[int(lacks.argmax())]))
        return (
            f"{int(lacks[self.lineage_index].sum())} of {len(self)} samples name taxa that the taxonomy lacks, and "
            f"count only at the ranks above them; the first: {first}"
        )

    def key(self, i: int) -> str:
        """The key of sample i."""
        shard = self._shard_number(i)
        key: bytes = self._keys[shard][i - self._start[shard]]
        return key.decode("utf-8", "surrogatepass")

    def shard(self, i: int) -> Path:
        """The shard that holds sample i."""
        return self.paths[self._shard_number(i)]

    def read(self, i: int) -> Sample:
        """Sample i, its image not decoded.

        Raises:
            IndexError: there is no sample i.
            OSError: the shard cannot be read, or has become shorter since it was indexed.
        """
        shard = self._shard_number(i)
        image = self._pread(shard, int(self._size[i]), int(self._offset[i]))
        lineage = self.lineages[self.lineage_index[i]]
        return Sample(self.key(i), image, lineage, self._common[self._label[i]])

    def fingerprints(self) -> dict[str, str]:
        """Shard name -> SHA-256 of its samples' keys, positions, sizes and lineages: what a run was given.

        Folders are left out, for data may move; of shards of one name the second is called "name (2)". Pixels are
        not read, so that terabytes cost no hours.
        """
        prints: dict[str, str] = {}
        seen: Counter[str] = Counter()
        line = ["\t".join(names) for names in self.lineages]
        for shard, path in enumerate(self.paths):
            part = slice(self._start[shard], self._start[shard + 1])
            digest = hashlib.sha256(b"\n".join(self._keys[shard].tolist()))
            digest.update(self._offset[part].tobytes() + self._size[part].tobytes())
            digest.update("\n".join(line[row] for row in self.lineage_index[part]).encode())
            seen[path.name] += 1
            prints[path.name + (f" ({seen[path.name]})" if seen[path.name] > 1 else "")] = digest.hexdigest()
        return prints

    def close(self) -> None:
        """Close the descriptors; a later read opens them again."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def __del__(self) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_descriptors": {}}

    def _shard_number(self, i: int) -> int:
        if not 0 <= i < len(self):
            raise IndexError(f"sample index must be in [0, {len(self)}), got {i}")
        return int(np.searchsorted(self._start, i, side="right")) - 1

    def _pread(self, shard: int, size: int, offset: int) -> bytes:
        descriptor = self._descriptors.get(shard)
        if descriptor is None:
            descriptor = self._open(shard)
        try:
            data = os.pread(descriptor, size, offset)
        finally:
            if self._descriptors.get(shard) != descriptor:
                os.close(descriptor)
        if len(data) != size:
            raise OSError(
                f"{self.paths[shard]}: read {len(data)} of {size} bytes at {offset}; "
                "the shard has changed since it was indexed"
            )
        return data

    def _open(self, shard: int) -> int:
        """A descriptor of a shard, kept unless enough are; of two threads that open at once, one keeps its own."""
        descriptor = os.open(self.paths[shard], os.O_RDONLY)
        if len(self._descriptors) < MAX_OPEN_SHARDS:
            self._descriptors.setdefault(shard, descriptor)
        return descriptor


class TooManyBadSamples(RuntimeError):
    """So much of the data is unusable that going on would hide it."""


class Quarantine:
    """The record of samples that training met and could not use.

    One JSON object a line, {"shard", "key", "reason"}, appended in a single write, so that processes can share the
    file. Counts are this process's own.

    Args:
        path: the JSONL file, or None to count only.
        limit: the largest share of samples that may be quarantined, judged from the 100th sample on.
    """

    ENOUGH = 100  # samples before a share means anything

    def __init__(self, path: PathLike | None = None, limit: float = 0.1) -> None:
        self.path = None if path is None else Path(path)
        self.limit = limit
        self.used = 0
        self.quarantined = 0

    @property
    def seen(self) -> int:
        """Samples used and quarantined."""
        return self.used + self.quarantined

    def use(self, count: int = 1) -> None:
        """Count samples that were used."""
        self.used += count

    def record(self, shard: PathLike, key: str, reason: str) -> None:
        """Count and write down a sample that was not.

        Raises:
            TooManyBadSamples: more than the limit were quarantined.
        """
        self.quarantined += 1
        if self.path is not None:
            line = json.dumps({"shard": os.fspath(shard), "key": key, "reason": reason}) + "\n"
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(descriptor, line.encode())
            finally:
                os.close(descriptor)
        if self.seen >= self.ENOUGH and self.quarantined > self.limit * self.seen:
            where = f"; see {self.path}" if self.path else ""
            raise TooManyBadSamples(
                f"{self.quarantined} of {self.seen} samples were quarantined, more than the limit of "
                f"{self.limit:.0%}; the last: {os.fspath(shard)}, {key!r}: {reason}{where}"
            )
