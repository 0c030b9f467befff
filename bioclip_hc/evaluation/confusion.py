"""Which children of a taxon are taken for each other.

# N images, R ranks, T taxa, n children shown
"""

from __future__ import annotations

import difflib
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from bioclip_hc.data.captions import printable
from bioclip_hc.taxonomy import RANKS, Taxonomy

SHOWN = 10  # children with a row of their own
ROOT = "the root"  # what stands above the kingdoms


@dataclass(frozen=True)
class Confusion:
    """Counts of images by true and predicted child of one taxon."""

    clade: tuple[str, ...]
    """Its path; () is the root of the tree."""
    children: tuple[str, ...]
    """(n,) names of the children shown, those with most images first."""
    others: int
    """Further children that images are of or are taken for; they share the row and the column after the n."""
    counts: tuple[tuple[int, ...], ...]
    """(n + 1, n + 3) images: a row for each true child and one for the others; a column for each predicted child,
    one for the others, one for an answer outside the clade and one for no answer at all."""
    within: int
    """Images taken for another child of the clade, whether shown or not."""

    @property
    def images(self) -> int:
        """Images whose truth is a child or below one."""
        return sum(map(sum, self.counts))

    @property
    def title(self) -> str:
        return self.clade[-1] if self.clade else ROOT

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self) | {"images": self.images}


def confusion(
    predictions: np.ndarray, truth: np.ndarray, taxonomy: Taxonomy, clade: int, shown: int = SHOWN
) -> Confusion:
    """How the children of `clade` are taken for each other.

    An image counts if its truth has a child of the clade; what it is taken for is the uppermost child of the clade
    among its predictions.

    Args:
        predictions: (N, R) taxon ids, -1 = none; truth: (N, R), -1 = unknown.
        clade: a taxon, or -1 for the root.
        shown: children with a row of their own: those with most images; equal ones in the order of their ids.
    """
    true, found = (_child(ids, taxonomy, clade) for ids in (truth, predictions))
    counted = true >= 0
    true, found = true[counted], found[counted]
    answered = (predictions[counted] >= 0).any(axis=1)

    present, images = np.unique(np.concatenate([true, found[found >= 0]]), return_counts=True)
    of_truth = np.bincount(true, minlength=taxonomy.size)[present]
    order = np.lexsort((present, -images, -of_truth))
    children = present[order[:shown]]
    place = np.full(taxonomy.size + 1, len(children), np.int64)  # the others
    place[children] = np.arange(len(children))
    column = np.where(found >= 0, place[found], len(children) + np.where(answered, 1, 2))
    shape = len(children) + 1, len(children) + 3
    counts = np.bincount(place[true] * shape[1] + column, minlength=shape[0] * shape[1]).reshape(shape)
    return Confusion(
        clade=taxonomy.path(clade) if clade >= 0 else (),
        children=tuple(taxonomy.name(child) for child in children),
        others=len(present) - len(children),
        counts=tuple(map(tuple, counts.tolist())),
        within=int(((found >= 0) & (found != true)).sum()),
    )


def most_confused(predictions: np.ndarray, truth: np.ndarray, taxonomy: Taxonomy) -> int | None:
    """The clade within which most images are taken for a wrong child (-1: the root); None where none is.

    Of equal ones the upper, then the one with the smaller id.
    """
    mistaken = np.zeros(taxonomy.size + 1, np.int64)  # by clade, the root first
    for r in range(len(RANKS)):
        of = truth[:, r] >= 0
        clade = taxonomy.parent[truth[of, r]]
        found = np.full(len(clade), -1, np.int64)
        for answers in predictions[of].T[::-1]:  # the uppermost stays
            found = np.where((answers >= 0) & (_parent(answers, taxonomy) == clade), answers, found)
        wrong = (found >= 0) & (found != truth[of, r])
        mistaken += np.bincount(clade[wrong] + 1, minlength=len(mistaken))
    return int(mistaken.argmax()) - 1 if mistaken.any() else None


def taxa_named(name: str, taxonomy: Taxonomy) -> list[int]:
    """The taxa of a name (case aside); else of a path, or the end of one, written with > between its names."""
    asked = [" ".join(part.split()).casefold() for part in (name, *name.split(">"))]
    names = [taxonomy.name(t).casefold() for t in range(taxonomy.size)]
    if found := [t for t in range(taxonomy.size) if names[t] == asked[0]]:
        return found
    ends = [t for t in range(taxonomy.size) if names[t] == asked[-1]]
    path = asked[1:]
    return [t for t in ends if [part.casefold() for part in taxonomy.path(t)[-len(path) :]] == path]


def find_taxon(name: str, taxonomy: Taxonomy) -> int:
    """The one taxon of `taxa_named`.

    Raises:
        ValueError: no such taxon (the nearest name is suggested), or several (their paths are listed).
    """
    found = taxa_named(name, taxonomy)
    if len(found) == 1:
        return found[0]
    if found:
        paths = "; ".join(printable(" > ".join(taxonomy.path(t))) for t in found[:5])
        raise ValueError(f"{name!r} names {len(found)} taxa; give the path of one: {paths}")
    names = {taxonomy.name(t).casefold(): taxonomy.name(t) for t in reversed(range(taxonomy.size))}
    close = difflib.get_close_matches(name.split(">")[-1].strip().casefold(), names, n=1)
    hint = f"; did you mean {names[close[0]]!r}?" if close else ""
    raise ValueError(f"no taxon {name!r} in the taxonomy{hint}")


def _child(ids: np.ndarray, taxonomy: Taxonomy, clade: int) -> np.ndarray:
    """(N,) the uppermost child of the clade in each row of ids, -1 where there is none."""
    child = np.full(len(ids), -1, np.int64)
    for column in ids.T[::-1]:
        child = np.where((column >= 0) & (_parent(column, taxonomy) == clade), column, child)
    return child


def _parent(ids: np.ndarray, taxonomy: Taxonomy) -> np.ndarray:
    """Of each taxon; of -1, whatever it is."""
    return taxonomy.parent[np.maximum(ids, 0)] if taxonomy.size else ids
