"""The user's own classes: names that the taxonomy knows, or any words; and bins, which add classes up.

# C classes, b images of a batch, D embed
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bioclip_hc.data.captions import short
from bioclip_hc.data.names import NameTable, normal
from bioclip_hc.kernels import rank_topk
from bioclip_hc.prediction.answers import Answers, Prediction, about
from bioclip_hc.taxonomy import MAX_LINE, RANKS, Taxonomy, table_reader

SHOWN = 5  # mistakes in one error, and examples


@dataclass(frozen=True)
class Classes:
    """What may be answered.

    names (C,): as given; taxa (C,): ids, -1 for free words; bins: distinct names of bins; bin_of (C,): the bin of
    each class; both None without bins.
    """

    names: list[str]
    taxa: list[int]
    bins: list[str] | None = None
    bin_of: list[int] | None = None


# -- reading ------------------------------------------------------------------------------------------------


def read_classes(given: str | os.PathLike[str] | Iterable[str]) -> list[tuple[str, str]]:
    """(where, class): of a file, one a line, of a text, between commas, or of a sequence of texts.

    Raises:
        FileNotFoundError: what looks like a file's name is none.
        ValueError: not UTF-8, a line that is too long, no class.
    """
    if not isinstance(given, str | os.PathLike):
        rows = [(f"class {i}", name) for i, name in enumerate(given, 1)]
    elif os.path.exists(given):
        rows = [(f"{given}, line {i}", line) for i, line in enumerate(_lines(Path(given)), 1)]
    elif not isinstance(given, str) or ("," not in given and (os.sep in given or given.endswith((".txt", ".csv")))):
        raise FileNotFoundError(
            f"file of classes {given} does not exist; if this is a class itself, put a comma behind it"
        )
    else:
        rows = [(f"class {i}", name) for i, name in enumerate(given.split(","), 1)]
    rows = [(where, " ".join(name.split())) for where, name in rows]
    rows = [(where, name) for where, name in rows if name]
    if not rows:
        raise ValueError(f"{given} names no class")
    return rows


def _lines(path: Path) -> list[str]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            lines = list(iter(lambda: file.readline(MAX_LINE), ""))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error}); convert it first") from None
    if any(len(line) == MAX_LINE for line in lines):
        raise ValueError(f"{path} has a line of {MAX_LINE} characters: no list of classes")
    return lines


def read_bins(path: str | os.PathLike[str], tell: Callable[[str], object]) -> list[tuple[str, str, str]]:
    """(where, class, bin) of a table whose first two columns are these, whatever its first line calls them.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not UTF-8, no CSV, fewer than two columns, a row without either, no row.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"table of bins {path} does not exist")
    with table_reader(path) as reader:
        columns = list(reader.fieldnames or [])
        if len(columns) < 2 or len(set(columns)) < len(columns):
            raise ValueError(f"{path} must have two columns, class and bin; columns found: {columns}")
        first, second = columns[:2]
        if (first, second) != ("class", "bin"):
            tell(f"{path}: the first line names its columns; classes are {short(first)}, bins {short(second)}")
        rows = []
        for row in reader:
            name, label = (" ".join((row[column] or "").split()) for column in (first, second))
            if not name or not label or None in row:
                raise ValueError(f"{path}, line {reader.line_num}: a class and its bin expected")
            rows.append((f"{path}, line {reader.line_num}", name, label))
    if not rows:
        raise ValueError(f"{path} names no class")
    return rows


# -- looking up ---------------------------------------------------------------------------------------------


def resolve_classes(
    rows: Iterable[tuple[str, str]], names: NameTable | None, tell: Callable[[str], object]
) -> Classes:
    """Classes looked up in a taxonomy's names; what they do not know is taken as free words, which is told.

    Two names of one taxon are one class, which is told too.

    Raises:
        ValueError: names that mean several taxa, or synonyms that are not used; none is guessed.
    """
    return _resolved([(where, name, None) for where, name in rows], names, tell)


def resolve_bins(
    rows: Iterable[tuple[str, str, str]], names: NameTable | None, tell: Callable[[str], object]
) -> Classes:
    """The same with bins.

    Raises:
        ValueError: also a class in two bins.
    """
    return _resolved(rows, names, tell)


def _resolved(
    rows: Iterable[tuple[str, str, str | None]], names: NameTable | None, tell: Callable[[str], object]
) -> Classes:
    first: dict[int | str, tuple[str, str, str | None]] = {}  # taxon or words -> where, name and bin
    ways: dict[str, int] = {}
    wrong, again = [], []
    for where, name, label in rows:
        found = names.find([name]) if names else None
        if found and found.taxon < 0 and found.how != "not in the taxonomy":
            wrong.append(f"{where}: {found.reason}")
            continue
        key: int | str = found.taxon if found and found.taxon >= 0 else normal(name)
        if key not in first:
            first[key] = (where, name, label)
            way = f"by {found.how}" if found and found.taxon >= 0 else ""
            ways[way] = ways.get(way, 0) + 1
        elif first[key][2] != label:
            before = first[key]
            wrong.append(f"{where}: {short(name)} is in bin {short(str(label))}, and at {before[0]} in another")
        else:
            again.append(f"{where}: {short(name)} is {short(first[key][1])} of {first[key][0]}")
    if wrong:
        more = f"\n  and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise ValueError(
            f"{len(wrong)} classes cannot be used; write a whole path, kingdom to species, where a name is "
            "ambiguous, or ask in these very words (--as-words, as_words=True):\n  "
            + "\n  ".join(wrong[:SHOWN])
            + more
        )
    free = [name for key, (_, name, _) in first.items() if isinstance(key, str)]
    ways.pop("", None)
    if ways:
        tell(f"classes: {sum(ways.values())} taxa ({', '.join(f'{n} {way}' for way, n in ways.items())})")
    if free and names:
        shown = ", ".join(map(short, free[:SHOWN])) + (", ..." if len(free) > SHOWN else "")
        tell(f"classes: {len(free)} of free words, for the taxonomy does not know them: {shown}")
    if again:
        tell(f"classes: {len(again)} named twice; the first: {again[0]}")
    labels = list(dict.fromkeys(label for _, _, label in first.values() if label is not None))
    return Classes(
        [name for _, name, _ in first.values()],
        [key if isinstance(key, int) else -1 for key in first],
        labels or None,
        [labels.index(label) for _, _, label in first.values() if label is not None] or None,
    )


# -- answering ----------------------------------------------------------------------------------------------


class ClassDecoder:
    """Softmax over classes, whatever their ranks; with bins, its sums.

    Args:
        classes: C of them; text (C, D): their embeddings, on the device of the images.
        space: scale, curv and geometry, as in `kernels.rank_topk`.
        k: answers per image; None: all.
        min_prob: answers less probable are left out.
    """

    def __init__(
        self,
        classes: Classes,
        taxonomy: Taxonomy | None,
        text: Tensor,
        space: dict[str, Any],
        *,
        k: int | None = None,
        min_prob: float = 0.0,
    ) -> None:
        self.classes, self.taxonomy, self.text, self.space = classes, taxonomy, text, space
        self.k, self.min_prob = k, min_prob
        self._one_rank = torch.zeros(len(text), dtype=torch.int64, device=text.device)

    @torch.inference_mode()
    def __call__(self, names: Sequence[str], image: Tensor) -> list[Answers]:
        """The answers for the b images that have names; image: (B, D), the first b of them theirs."""
        score, index = rank_topk(image, self.text, self._one_rank, k=len(self.text), ranks=1, **self.space)
        order = index[:, 0].cpu().numpy()
        probability = score[:, 0].double().softmax(1).cpu().numpy()
        if self.classes.bins is not None:
            bin_of = np.array(self.classes.bin_of)
            sums = np.zeros((len(image), len(self.classes.bins)))
            np.add.at(sums, (np.arange(len(image))[:, None], bin_of[order]), probability)
            order = np.argsort(-sums, axis=1, kind="stable")
            probability = np.take_along_axis(sums, order, 1)
        return [
            Answers(
                name,
                (
                    self._answer(name, int(c), float(p))
                    for c, p in zip(order[i, : self.k], probability[i, : self.k], strict=True)
                    if p >= self.min_prob
                ),
            )
            for i, name in enumerate(names)
        ]

    def _answer(self, file_name: str, c: int, probability: float) -> Prediction:
        if self.classes.bins is None:
            taxon = self.classes.taxa[c]
            if taxon >= 0 and self.taxonomy is not None:
                return about(file_name, self.taxonomy, taxon, probability, self.classes.names[c])
            said = self.classes.names[c]
        else:
            said = self.classes.bins[c]
        return Prediction(file_name, "", -1, ("",) * len(RANKS), "", probability, said)
