"""What systems are asked: the photographs of a benchmark, and the taxa among which they may choose.

# N photographs, R ranks, T taxa
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bioclip_hc.data.photographs import unresolved
from bioclip_hc.data.sample import PathLike
from bioclip_hc.evaluation.benchmark import known_truth
from bioclip_hc.evaluation.layouts import Benchmark, open_benchmark, options_of
from bioclip_hc.evaluation.systems import System
from bioclip_hc.model import resolve_folder
from bioclip_hc.predictor import TAXONOMY, read_taxonomy
from bioclip_hc.taxonomy import RANKS, Taxonomy

ANYWAY = ("say", "cache", "allow_pipe")  # options that are no mistake where a benchmark has no use for them


@dataclass(frozen=True)
class Question:
    """A benchmark and its candidates.

    Attributes:
        kind: of the layouts' `BENCHMARKS`, "" for shards of which no benchmark is said.
        benchmark: the photographs.
        taxonomy: the taxa that may be predicted; candidates: where they are from, for people.
        truth: (N, R) taxon ids, -1 where unknown, not in the taxonomy, or at a rank that the benchmark leaves out.
        offered: (T,) bool, the taxa of the benchmark's ranks; None: all. A tree begins at the first of its ranks.
    """

    kind: str
    benchmark: Benchmark
    taxonomy: Taxonomy
    candidates: str
    truth: np.ndarray
    offered: np.ndarray | None

    def lines(self) -> list[str]:
        """What whoever reads the result should know, a sentence each."""
        lacking = unresolved(self.benchmark.photographs, self.taxonomy)
        return [*self.benchmark.lines(), *([lacking] if lacking else [])]


def asked(
    kind: str | None,
    data: PathLike | Sequence[PathLike],
    table: str | Path | None,
    systems: Sequence[System],
    **options: Any,
) -> Question:
    """Open a benchmark and settle its candidates.

    Args:
        kind: of the layouts' `BENCHMARKS`: the benchmark's own taxa are the candidates, as published protocols have
            it. None: shards, for which they are the taxa that the models were trained on.
        table: a table of taxa that are the candidates instead.
        options: of `open_benchmark`; None is as good as not given, and so are `ANYWAY` where the kind does not
            take them.

    Raises:
        ValueError: models of different taxonomies, of which none is named; no label that the taxonomy knows; as
            `open_benchmark`.
        OSError: as `open_benchmark`, or there is no taxonomy.
    """
    taxonomy: Taxonomy | None = None
    if table is not None:
        taxonomy, candidates = Taxonomy.read(table), f"the taxa of {Path(table).name}"
    elif kind is None:
        taxonomy, candidates = _common(systems), "the taxa that the model was trained on"
    else:
        candidates = "the benchmark's own taxa"
    known = options_of(kind or "treeoflife")
    given = {
        name: value
        for name, value in options.items()
        if value not in (None, False) and (name in known or name not in ANYWAY)
    }
    if "taxonomy" in known:
        given["taxonomy"] = taxonomy
    try:
        benchmark = open_benchmark(kind or "treeoflife", data, **given)
    except ImportError as error:
        raise ValueError(str(error)) from None
    taxonomy = taxonomy or benchmark.taxonomy
    truth = known_truth(benchmark.photographs, taxonomy)
    ranks = list(benchmark.ranks)
    truth[:, np.setdiff1d(np.arange(len(RANKS)), ranks)] = -1
    offered = np.isin(taxonomy.rank, ranks)
    return Question(kind or "", benchmark, taxonomy, candidates, truth, None if offered.all() else offered)


def folder_of(system: System) -> Path:
    """The folder that a system was loaded from."""
    return resolve_folder(system.source, system.revision or None)


def own_taxonomy(system: System) -> Taxonomy | None:
    """The taxonomy that a system was trained on, where its folder has it."""
    folder = folder_of(system)
    return read_taxonomy(folder) if (folder / TAXONOMY).is_file() else None


def _common(systems: Sequence[System]) -> Taxonomy:
    found = [read_taxonomy(folder_of(system)) for system in systems]
    for system, taxonomy in zip(systems, found, strict=True):
        if taxonomy.sha256 != found[0].sha256:
            raise ValueError(
                f"{systems[0].name} and {system.name} were trained on different taxa; name those to choose among "
                "by --taxonomy TABLE"
            )
    return found[0]
