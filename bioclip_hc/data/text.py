"""From taxa to tokens: what is written of a taxon, and each text tokenised once.

# U texts, L tokens
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bioclip_hc.packing import PackedTexts, pack
from bioclip_hc.taxonomy import Taxonomy, rank_index

FORMS = ("path", "name")


@dataclass(frozen=True)
class TextForm:
    """How a taxon is put in words; it belongs to a model, and is saved with it.

    Attributes:
        template: a text with one {} for the taxon. The authors of BioCLIP-HC train with "an image of {}",
            BioCLIP with "a photo of {}.".
        form: "path" writes all known names from the kingdom down to the taxon; "name" the taxon alone (a
            species with its genus).
        separator: between the names of a path.
    """

    template: str = "an image of {}"
    form: str = "path"
    separator: str = " "

    def __post_init__(self) -> None:
        if self.template.count("{}") != 1:
            raise ValueError(f"template must hold one {{}} for the taxon, got {self.template!r}")
        if self.form not in FORMS:
            raise ValueError(f"form must be one of {FORMS}, got {self.form!r}")

    def text(self, taxonomy: Taxonomy, taxon: int) -> str:
        """The text of one taxon."""
        path = taxonomy.path(taxon)
        if self.form == "name":
            genus_and_species = taxonomy.lineages[taxon, rank_index("genus") :]
            path = path[-2:] if (genus_and_species >= 0).all() else path[-1:]
        return self.template.replace("{}", self.separator.join(path))

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able form; `TextForm(**d)` reads it."""
        return asdict(self)


class TaxonTokens:
    """Tokens of taxa, made on first use and kept.

    Args:
        taxonomy: where ids and names come from.
        form: how a taxon is written.
        tokenizer: open_clip's: list of str -> (n, context length) int64, padded with 0.
    """

    def __init__(self, taxonomy: Taxonomy, form: TextForm, tokenizer: Callable[[list[str]], Tensor]) -> None:
        self.taxonomy = taxonomy
        self.form = form
        self._tokenizer = tokenizer
        self._cache: dict[int, Tensor] = {}

    def __call__(self, taxa: np.ndarray) -> Tensor:
        """(U, L) int64 tokens of taxon ids (U,), L the longest of them."""
        rows = self._rows(taxa)
        return (
            torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
            if rows
            else torch.zeros(0, 1, dtype=torch.int64)
        )

    def packed(self, taxa: np.ndarray) -> PackedTexts:
        """The same texts in sequences that share their beginnings."""
        return pack([row.tolist() for row in self._rows(taxa)])

    def _rows(self, taxa: np.ndarray) -> list[Tensor]:
        wanted = [int(t) for t in taxa]
        new = sorted(set(wanted) - self._cache.keys())
        if new:
            padded = self._tokenizer([self.form.text(self.taxonomy, t) for t in new])
            self._cache.update({t: _without_padding(row) for t, row in zip(new, padded, strict=True)})
        return [self._cache[t] for t in wanted]


def _without_padding(row: Tensor) -> Tensor:
    used = row.nonzero().flatten()
    return row[: int(used[-1]) + 1].clone() if len(used) else row[:1].clone()
