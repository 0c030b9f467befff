"""What is wrong with shards, told before a long training: bytes, tars, indexes, pictures, captions, keys."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bioclip_hc.data.checksums import SUMS, read_sums, sha256_of
from bioclip_hc.data.decode import DecodeError, Photograph
from bioclip_hc.data.index import ShardIndex, build_index, kept_index
from bioclip_hc.data.keys import encoded, repeated_keys
from bioclip_hc.data.names import NameTable
from bioclip_hc.data.parallel import in_order
from bioclip_hc.data.quarantine import cause
from bioclip_hc.data.seal import missing_shards
from bioclip_hc.taxonomy import Lineage

CHUNK = 128  # pictures that a process decodes at a time


class Finding(NamedTuple):
    """Something that is wrong.

    Attributes:
        kind: "checksum", "shard" (the tar, or all of its samples), "index", "sample", "name" (of a taxon),
            "picture" or "key".
        key: the sample's, "" where it is the shard that is wrong.
    """

    kind: str
    shard: str
    key: str
    reason: str


@dataclass
class Verdict:
    """What was looked at; complete when `verify` has ended.

    Attributes:
        samples: in the indexes of the shards, usable by what their headers and captions say.
        decoded: pictures among them that decode.
        findings: how many of each (kind, cause), and the first of them.
        lineages: each distinct lineage and its samples.
        not_looked_up: samples with flat captions, where no table of names was given.
        stale: shards without an index that fits; the first reader makes it, which takes a while.
        unsigned: folders of shards without SHA256SUMS.
    """

    shards: int = 0
    samples: int = 0
    decoded: int = 0
    findings: dict[tuple[str, str], tuple[int, Finding]] = field(default_factory=dict)
    lineages: Counter[Lineage] = field(default_factory=Counter)
    not_looked_up: int = 0
    stale: int = 0
    unsigned: list[Path] = field(default_factory=list)


def verify(
    paths: Sequence[Path],
    processes: int = 1,
    names: NameTable | None = None,
    on_finding: Callable[[Finding], object] = lambda finding: None,
    on_progress: Callable[[Verdict], object] = lambda verdict: None,
) -> Verdict:
    """Read shards whole, decode every picture as training does, and report what is wrong; nothing is written.

    A shard may be damaged in any way: that is a finding, and the others are looked at all the same.

    Args:
        names: where flat captions are looked up; a sample whose name it does not resolve is a finding.
    """
    verdict = Verdict()

    def tell(kind: str, shard: Path, key: str, reason: str) -> None:
        finding = Finding(kind, str(shard), key, reason)
        case = kind, cause(reason)
        count, first = verdict.findings.get(case, (0, finding))
        verdict.findings[case] = (count + 1, first)
        on_finding(finding)

    signed = _read_all_sums(paths, verdict, tell)
    keys: list[np.ndarray] = []

    def chunks() -> Iterator[_Chunk]:
        jobs = (
            (path, None if (sums := signed[path.parent]) is None else sums.get(path.name, "")) for path in paths
        )
        for found in in_order(_examine, jobs, max(1, processes // 4), died=_shard_died):
            for finding in found.findings:
                tell(*finding)
            verdict.shards += 1
            verdict.samples += len(found.content.keys)
            verdict.stale += found.stale
            keys.append(encoded(found.content.keys))
            for key, reason in _look_up(found.content, names, verdict):
                tell("name", found.path, key, reason)
            on_progress(verdict)
            rows = list(zip(found.content.keys, found.content.offset, found.content.size, strict=True))
            yield from (_Chunk(found.path, rows[i : i + CHUNK]) for i in range(0, len(rows), CHUNK))

    for path, good, bad in in_order(_decode, chunks(), processes, died=_decode_one_by_one):
        for key, reason in bad:
            tell("picture", path, key, reason)
        verdict.decoded += good
        on_progress(verdict)
    for key, shards in repeated_keys(keys):
        first, *others = (paths[shard] for shard in shards)
        for path in others:
            tell("key", path, key, f"the key is in {str(first)!r} already")
    return verdict


def _look_up(index: ShardIndex, names: NameTable | None, verdict: Verdict) -> Iterator[tuple[str, str]]:
    """Count the lineages of a shard; (key, reason) of the samples whose flat caption tells none."""
    counts = np.bincount(np.array(index.label, np.int64), minlength=len(index.labels)).tolist()
    for row, (label, count) in enumerate(zip(index.labels, counts, strict=True)):
        lineage, reason = label.lineage, ""
        if not lineage and names is not None:
            (_, _, reason), lineage, _ = names.label(label)
        if lineage:
            verdict.lineages[lineage] += count
        elif names is None:
            verdict.not_looked_up += count
        else:
            yield from ((key, reason) for key, each in zip(index.keys, index.label, strict=True) if each == row)


def _read_all_sums(
    paths: Iterable[Path], verdict: Verdict, tell: Callable[..., None]
) -> dict[Path, dict[str, str] | None]:
    """The checksums of each folder of shards; None where there are none, or none that can be read."""
    signed: dict[Path, dict[str, str] | None] = {}
    for folder in dict.fromkeys(path.parent for path in paths):
        try:
            signed[folder] = sums = read_sums(folder)
        except (ValueError, OSError) as error:
            signed[folder] = None
            tell("checksum", folder / SUMS, "", str(error))
            continue
        if sums is None:
            verdict.unsigned.append(folder)
        for name in missing_shards(folder, sums or ()):
            tell("checksum", folder / name, "", f"the shard is in {SUMS}, but not there")
    return signed


# -- a shard


class _Shard(NamedTuple):
    path: Path
    content: ShardIndex
    stale: bool
    findings: list[tuple[str, Path, str, str]]


def _examine(job: tuple[Path, str | None]) -> _Shard:
    """All but the pictures of a shard with its checksum, None in a folder without any, "" for a shard without."""
    path, expected = job
    findings: list[tuple[str, Path, str, str]] = []
    index, stale = ShardIndex(), False
    try:
        if expected == "":
            findings.append(("checksum", path, "", f"the shard is not in {SUMS}"))
        elif expected is not None and sha256_of(path) != expected:
            findings.append(("checksum", path, "", f"the shard is not what {SUMS} says"))
        index = build_index(path)
        kept = kept_index(path)
        stale = kept is None
        if not stale and kept != index:
            reason = "the index beside the shard is not the shard's; remove it, and the next reader makes it anew"
            findings.append(("index", path, "", reason))
    except (ValueError, OSError) as error:
        findings.append(("shard", path, "", str(error)))
    findings += [("sample" if key else "shard", path, key, reason) for key, reason in index.bad]
    return _Shard(path, index, stale, findings)


def _shard_died(job: tuple[Path, str | None]) -> _Shard:
    path, _ = job
    return _Shard(path, ShardIndex(), False, [("shard", path, "", "the process that read the shard died")])


# -- pictures


class _Chunk(NamedTuple):
    path: Path
    rows: list[tuple[str, int, int]]  # key, offset, size


class _Decoded(NamedTuple):
    path: Path
    good: int
    bad: list[tuple[str, str]]  # key, reason


def _decode(chunk: _Chunk) -> _Decoded:
    bad = []
    try:
        with open(chunk.path, "rb") as file:
            for key, offset, size in chunk.rows:
                try:
                    data = os.pread(file.fileno(), size, offset)
                    if len(data) != size:
                        raise DecodeError(f"read {len(data)} of {size} bytes: the shard has become shorter")
                    Photograph(data).pixels()
                except (DecodeError, OSError) as error:
                    bad.append((key, str(error)))
    except OSError as error:  # the shard cannot be opened any more
        bad = [(key, str(error)) for key, _, _ in chunk.rows]
    return _Decoded(chunk.path, len(chunk.rows) - len(bad), bad)


def _decode_one_by_one(chunk: _Chunk) -> _Decoded:
    """The same of a chunk at which a process died, to find at which of its pictures."""
    if len(chunk.rows) == 1:
        return _Decoded(chunk.path, 0, [(chunk.rows[0][0], "the process that decoded the picture died")])
    singles = (_Chunk(chunk.path, [row]) for row in chunk.rows)
    parts = list(in_order(_decode, singles, 2, died=_decode_one_by_one))
    return _Decoded(chunk.path, sum(part.good for part in parts), [pair for part in parts for pair in part.bad])
