"""What is kept beside shards: an index for each, and a folder's SHA256SUMS, which `sha256sum -c` reads too."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from bioclip_hc.data.checksums import SUMS, read_sums, sha256_of, write_sums
from bioclip_hc.data.index import ShardIndex, kept_index, shard_index
from bioclip_hc.data.parallel import in_order


class Change(NamedTuple):
    """Something of a shard, or beside it, that was not as it should be.

    Attributes:
        mended: it is as it should be now.
        noted: samples that the shard lacks, which is worth knowing, but nothing to be mended here.
    """

    path: Path
    what: str
    mended: bool
    noted: bool = False


class _State(NamedTuple):
    path: Path
    sha256: str
    stale: str  # what was the matter with its index, and is no more; "" if nothing was
    problem: str  # why it cannot be indexed
    damage: str = ""  # of the tar itself, by its index
    unusable: str = ""  # samples, by its index


def seal(
    paths: Sequence[Path],
    processes: int = 1,
    *,
    check: bool = False,
    accept: bool = False,
    on_shard: Callable[[], object] = lambda: None,
) -> Iterator[Change]:
    """Bring the indexes of shards and the SHA256SUMS of their folders up to date.

    A shard that differs from its checksum is not given a new one, for that would bless a damaged disk or
    download, unless `accept` says that it is meant to be as it is; nor is a line for a shard that is gone removed.

    Args:
        check: change nothing, only tell.
        on_shard: called after each shard.

    Yields:
        What was stale, missing or wrong, in the shards too, as far as indexes tell; nothing where all is as it
        should be.

    Raises:
        ValueError: a SHA256SUMS that cannot be read.
        OSError: a shard that cannot be read, a folder that cannot be written to.
    """
    folders = {path.parent: read_sums(path.parent) for path in paths}
    found: dict[Path, dict[str, str]] = {folder: {} for folder in folders}
    for state in in_order(functools.partial(_examine, check=check), paths, processes):
        found[state.path.parent][state.path.name] = state.sha256
        if state.problem:
            yield Change(state.path, state.problem, False)
        elif state.stale:
            yield Change(state.path, state.stale, not check)
        if state.damage:
            yield Change(state.path, state.damage, False)
        if state.unusable:
            yield Change(state.path, state.unusable, False, noted=True)
        on_shard()
    for folder, known in folders.items():
        sums = dict(known or {})
        changes = list(_renewed(folder, sums, found[folder], check, accept))
        if sums != known and not check:
            write_sums(folder, sums)
        yield from changes  # not before: what is called mended is written


def _renewed(
    folder: Path, sums: dict[str, str], found: dict[str, str], check: bool, accept: bool
) -> Iterator[Change]:
    """What is wrong with a folder's checksums; `sums` is brought up to date as far as that is allowed."""
    for name, digest in found.items():
        if name not in sums:
            yield Change(folder / name, f"was not in {SUMS}", not check)
            sums[name] = digest
        elif sums[name] != digest:
            yield Change(folder / name, f"is not what {SUMS} says", accept and not check)
            if accept:
                sums[name] = digest
    for name in missing_shards(folder, sums):
        yield Change(folder / name, f"is in {SUMS}, but not there", accept and not check)
        if accept:
            del sums[name]


def missing_shards(folder: Path, sums: Iterable[str]) -> list[str]:
    """The shards that a folder's checksums name and the folder lacks."""
    return [name for name in sums if name.endswith(".tar") and "/" not in name and not (folder / name).exists()]


def _examine(path: Path, check: bool) -> _State:
    index = kept_index(path)
    stale = "" if index is not None else "had no index that fits it"
    digest = sha256_of(path)
    if index is None and not check:
        try:
            index = shard_index(path)
        except ValueError as error:
            return _State(path, digest, "", f"cannot be indexed: {error}")
    if stale and not check and kept_index(path) is None:
        return _State(path, digest, "", "has no index: the folder cannot be written to", *_faults(index))
    return _State(path, digest, stale, "", *_faults(index))


def _faults(index: ShardIndex | None) -> tuple[str, str]:
    """What an index tells of its shard: damage of the tar, and samples that cannot be used."""
    bad = [] if index is None else index.bad
    damage = [reason for key, reason in bad if not key]
    samples = [f"{key}: {reason}" for key, reason in bad if key]
    return (
        f"is damaged in {len(damage)} places; the first: {damage[0]}" if damage else "",
        f"holds {len(samples)} unusable samples; the first: {samples[0]}" if samples else "",
    )
