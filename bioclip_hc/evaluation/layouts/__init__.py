"""Benchmarks as they are published, each opened to the same thing: photographs, their taxa, and what was left out.

One module a layout; each has a function `read`, whose docstring says what it reads and which options it takes.
Importing this package loads neither torch nor numpy.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from bioclip_hc.evaluation.layouts.base import Benchmark, LeftOut

if TYPE_CHECKING:
    from bioclip_hc.data.sample import PathLike

BENCHMARKS = {
    "inat21": "iNaturalist 2021: class folders, or val.json, or both (val, train_mini, train)",
    "rare-species": "Rare Species: its catalogue, and the pictures found by their ids",
    "crypticbio": "CrypticBio: its tables, and the pictures at their addresses, once fetched",
    "manifest": "any CSV, TSV or parquet table with a path column and columns of ranks; BioCLIP's CSV is one",
    "treeoflife": "held-out shards of TreeOfLife-10M's format",
}
"""Kind -> what it reads, for people."""

__all__ = ["BENCHMARKS", "Benchmark", "LeftOut", "open_benchmark", "options_of"]


def open_benchmark(kind: str, data: PathLike | Sequence[PathLike], **options: Any) -> Benchmark:
    """Open a benchmark that lies on disk.

    Args:
        kind: one of `BENCHMARKS`.
        data: where it is: a folder or a table; of treeoflife shards, as `expand_shards` names them.
        options: by kind (an option of None is as good as not given):
            images (all but treeoflife): folder that relative paths start from, or in which pictures are found; by
                default the table's own, or the dataset's, or (crypticbio) "images" beside the table.
            split (inat21, crypticbio): which part of a folder that holds several: "val" (the default),
                "train_mini", "train"; "common", "common-unseen", "endangered", "invasive".
            download (crypticbio): fetch pictures that are missing; by default nothing is fetched.
            retry_dead, at_once (crypticbio): with it, ask also for addresses that were refused before; how many
                are fetched beside each other.
            allow_outside (all but treeoflife): use files outside of that folder, which absolute paths, "..", and
                symbolic links may lead to; by default such rows are left out.
            taxonomy, synonyms (treeoflife): where flat captions are looked up, a Taxonomy and the path of a table.
            cache, allow_pipe (treeoflife): as of `expand_shards`.
            say (treeoflife, crypticbio): takes lines of progress for people.

    Raises:
        ValueError: no such kind; an option that this kind does not take; data that are not of this layout, or of
            which nothing can be used. The text names the file, the row where there is one, and the fix.
        FileNotFoundError: there is no such folder, table or shard.
        ImportError: a parquet file, and pyarrow is not installed.
        OSError: what is there cannot be read, or (shards elsewhere) cannot be had.
    """
    takes = options_of(kind)
    given = {name: value for name, value in options.items() if value is not None}
    if unknown := [name for name in given if name not in takes]:
        raise ValueError(
            f"benchmark {kind!r} takes no option {unknown[0]!r}; it takes {', '.join(takes) or 'none'}"
        )
    benchmark: Benchmark = _module(kind).read(data, **given)
    return benchmark


def options_of(kind: str) -> tuple[str, ...]:
    """The options that a kind takes.

    Raises:
        ValueError: no such kind.
    """
    parameters = inspect.signature(_module(kind).read).parameters.values()
    return tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)


def _module(kind: str) -> Any:
    if kind not in BENCHMARKS:
        raise ValueError(f"no benchmark {kind!r}; there are {', '.join(BENCHMARKS)}")
    return import_module(f"{__name__}.{kind.replace('-', '_')}")
