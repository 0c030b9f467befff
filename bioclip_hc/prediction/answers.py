"""What is said of a photograph."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from bioclip_hc.taxonomy import RANKS, Lineage, Taxonomy

TAXON_COLUMNS = {
    "file_name": "text",
    **dict.fromkeys(RANKS, "text"),
    "common_name": "text",
    "rank": "text",
    "score": "number",
}
"""Columns of answers about taxa, in order, and what they hold."""
CLASS_COLUMNS = {"file_name": "text", "classification": "text", **TAXON_COLUMNS}
BIN_COLUMNS = {"file_name": "text", "classification": "text", "score": "number"}


class Prediction(NamedTuple):
    """One answer for one image.

    rank: "" for a class of free words, or a bin; taxon: its id, -1 likewise; lineage: seven names, "" where unknown
    or below `rank`; probability: softmax over the candidates of the rank, or over all classes (a bin: their sum);
    classification: the class or bin, as it was given; None where taxa were asked for.
    """

    file_name: str
    rank: str
    taxon: int
    lineage: Lineage
    common_name: str
    probability: float
    classification: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """file_name, (classification,) kingdom ... species, common_name, rank, score."""
        said = {} if self.classification is None else {"classification": self.classification}
        return {
            "file_name": self.file_name,
            **said,
            **dict(zip(RANKS, self.lineage, strict=True)),
            "common_name": self.common_name,
            "rank": self.rank,
            "score": round(self.probability, 6),
        }


class Answers(list[Prediction]):
    """The answers for one image, from the kingdom down and the best first; empty where none passes `min_prob`.

    file_name: "" for an image that is no file.
    """

    def __init__(self, file_name: str, answers: Iterable[Prediction]) -> None:
        super().__init__(answers)
        self.file_name = file_name

    def rows(self, columns: Iterable[str]) -> list[dict[str, Any]]:
        """A mapping of the columns for each answer; without any, one that has only the file's name."""
        if not self:
            empty = dict.fromkeys(columns, "") | {"file_name": self.file_name}
            return [empty | {"score": None}]
        return [{column: row[column] for column in columns} for row in (p.to_dict() for p in self)]


def about(
    file_name: str, taxonomy: Taxonomy, taxon: int, probability: float, said: str | None = None
) -> Prediction:
    """A taxon as an answer."""
    common = taxonomy.extra.get("common_name")
    return Prediction(
        file_name,
        RANKS[int(taxonomy.rank[taxon])],
        taxon,
        taxonomy.lineage_names(taxon),
        common[taxon] if common else "",
        probability,
        said,
    )
