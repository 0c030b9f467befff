"""Held-out shards of TreeOfLife-10M's format."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bioclip_hc.data.names import NameTable
from bioclip_hc.data.sample import PathLike
from bioclip_hc.data.shards import ShardSet
from bioclip_hc.data.sources import expand_shards
from bioclip_hc.data.urls import shown, split_specs
from bioclip_hc.evaluation.layouts.base import Benchmark, LeftOut, ranks_named
from bioclip_hc.taxonomy import Taxonomy


def read(
    data: PathLike | Sequence[PathLike],
    *,
    taxonomy: Taxonomy | None = None,
    synonyms: PathLike | None = None,
    cache: PathLike | None = None,
    allow_pipe: bool = False,
    say: Callable[[str], object] | None = None,
) -> Benchmark:
    """The photographs of shards; see `expand_shards` for how they are named and what is raised.

    Args:
        taxonomy, synonyms: where flat captions are looked up (`NameTable`); tagged ones need neither.
        cache, allow_pipe: see `expand_shards`.
        say: takes lines of progress.
    """
    if synonyms is not None and taxonomy is None:
        raise ValueError("synonyms go with a taxonomy, whose names they stand for")
    specs = split_specs(data) if isinstance(data, str) else data
    names = None if taxonomy is None else NameTable(taxonomy, synonyms)
    shards = ShardSet(expand_shards(specs, cache=cache, allow_pipe=allow_pipe, say=_line(say)), names)
    left_out = [LeftOut(f"{shard} {key}".strip(), reason) for shard, key, reason in shards.bad]
    notes = shards.resolution.lines() if shards.resolution.flat else []
    if shards.lost:
        notes.append(f"about {shards.lost} more samples may lie in parts of shards that are damaged")
    return Benchmark(_name(specs), shards, shards.taxonomy(), ranks_named(shards.lineages), left_out, notes)


def _name(specs: PathLike | Sequence[PathLike]) -> str:
    listed = [specs] if isinstance(specs, str) or not isinstance(specs, Sequence) else specs
    return ",".join(shown(str(spec)) for spec in listed)


def _line(say: Callable[[str], object] | None) -> Callable[[str], None] | None:
    if say is None:
        return None
    told = say

    def line(text: str) -> None:
        told(text)

    return line
