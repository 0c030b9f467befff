"""Shards written: samples into tars, the same bytes for the same samples."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from bioclip_hc.data.captions import CAPTION, COMMON, format_taxon_tag, scientific_name
from bioclip_hc.data.members import MEMBER_NAME, unsafe_name
from bioclip_hc.data.sample import PathLike, Sample


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
    seen: set[str] = set()
    written: list[Path] = []
    with whole_or_not_at_all(folder) as (aside,):
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
    return [folder / shard.name for shard in written]


@contextmanager
def whole_or_not_at_all(*folders: Path) -> Iterator[tuple[Path, ...]]:
    """A place aside for each folder; what lies there at the end of the block is moved into the folder, by name.

    So SHA256SUMS comes before the shards, and a move that is cut off shows as shards missing from the sums. A block
    that fails leaves no folder that was not there before.

    Raises:
        FileExistsError: a folder already holds shards.
        NotADirectoryError: it is a file, or lies in one.
    """
    with ExitStack() as stack:
        asides = []
        for folder in folders:
            ancestry = (folder, *folder.parents)
            if files := [path for path in ancestry if path.exists() and not path.is_dir()]:
                raise NotADirectoryError(
                    f"{files[0]} is a file, not a folder for shards; name another or remove it"
                )
            for path in reversed(ancestry):  # callbacks are called last to first
                if not path.exists():
                    stack.callback(_remove_if_empty, path)
            folder.mkdir(parents=True, exist_ok=True)
            if present := sorted(folder.glob("*.tar")):
                raise FileExistsError(
                    f"{folder} already holds {len(present)} shards ({present[0].name}, ...); "
                    "write to another folder or remove them first"
                )
            asides.append(Path(stack.enter_context(tempfile.TemporaryDirectory(dir=folder, prefix=".building-"))))
        yield tuple(asides)
        for folder, aside in zip(folders, asides, strict=True):
            for path in sorted(aside.iterdir()):
                os.replace(path, folder / path.name)


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def _members_of(sample: Sample) -> dict[str, str | bytes]:
    """A sample as webdataset writes it: extension -> contents."""
    key = sample.key
    if not (match := MEMBER_NAME.match(f"{key}.jpg")) or match[1] != key or unsafe_name(key):
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
