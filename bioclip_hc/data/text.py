"""From taxa to tokens: what is written of a taxon, and each text tokenised once.

# T taxa, U texts, L tokens
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bioclip_hc.data.names import epithet
from bioclip_hc.packing import PackedTexts, pack_rows
from bioclip_hc.taxonomy import Taxonomy, rank_index

FORMS = ("path", "name", "common", "path_common", "name_common")
AT_ONCE = 4096  # texts that are tokenised together: what they need meanwhile is a few MiB


@dataclass(frozen=True)
class TextForm:
    """How a taxon is put in words; it belongs to a model, and is saved with it.

    Attributes:
        template: a text with one {} for the taxon. The authors of BioCLIP-HC train with "an image of {}",
            BioCLIP with "a photo of {}.".
        form: "path" writes all known names from the kingdom down to the taxon; "name" the taxon alone (a
            species with its genus); "common" its common name; "path_common" and "name_common" add "with common
            name ..." to the first two. With these, BioCLIP's five kinds of caption (taxon, sci, com, taxon_com,
            sci_com). A taxon without a common name is written as if the form did not ask for one.
        separator: between the names of a path.
    """

    template: str = "an image of {}"
    form: str = "path"
    separator: str = " "

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not isinstance(value, str):
                raise ValueError(f"{name} must be a text, got {value!r}")
        if self.template.count("{}") != 1:
            raise ValueError(f"template must hold one {{}} for the taxon, got {self.template!r}")
        if self.form not in FORMS:
            raise ValueError(f"form must be one of {FORMS}, got {self.form!r}")

    def text(self, taxonomy: Taxonomy, taxon: int) -> str:
        """The text of one taxon."""
        path = taxonomy.path(taxon)
        binomial = bool((taxonomy.lineages[taxon, rank_index("genus") :] >= 0).all())
        if binomial:
            path = (*path[:-1], epithet(*path[-2:]))
        common = taxonomy.extra["common_name"][taxon] if "common_name" in taxonomy.extra else ""
        if self.form == "common" and common:
            return self.template.replace("{}", common)
        if not self.form.startswith("path"):
            path = path[-2:] if binomial else path[-1:]
        names = self.separator.join(path)
        if self.form.endswith("_common") and common:
            names = f"{names} with common name {common}"
        return self.template.replace("{}", names)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able form; `TextForm(**d)` reads it."""
        return asdict(self)


class TaxonTokens:
    """Tokens of taxa, made on first use and kept: one after the other in one array, 4 bytes each.

    Args:
        taxonomy: where ids and names come from.
        form: how a taxon is written.
        tokenizer: open_clip's: list of str -> (n, context length) int64, padded with 0. (One that pads otherwise
            has no padding here: its texts keep their full length, as their tower wants them.)
    """

    def __init__(self, taxonomy: Taxonomy, form: TextForm, tokenizer: Callable[[list[str]], Tensor]) -> None:
        self.taxonomy = taxonomy
        self.form = form
        self._tokenizer = tokenizer
        self._kept = np.empty(0, dtype=np.int32)
        self._used = 0
        self._start = np.empty(taxonomy.size, dtype=np.int64)  # (T,) where in it a taxon's tokens begin
        self._length = np.zeros(taxonomy.size, dtype=np.int32)  # (T,) how many they are, 0: not made yet

    def __call__(self, taxa: np.ndarray) -> Tensor:
        """(U, L) int64 tokens of taxon ids (U,), L the longest of them."""
        tokens, length = self._rows(taxa)
        tokens[np.arange(tokens.shape[1]) >= length[:, None]] = 0
        return torch.from_numpy(tokens)

    def packed(self, taxa: np.ndarray) -> PackedTexts:
        """The same texts in sequences that share their beginnings."""
        return pack_rows(*self._rows(taxa))

    @property
    def nbytes(self) -> int:
        """Bytes of all that is kept."""
        return self._used * self._kept.itemsize + self._start.nbytes + self._length.nbytes

    def _rows(self, taxa: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(U, L) int64 of which so many (U,) count, L the longest."""
        new = np.unique(taxa[self._length[taxa] == 0])
        for part in np.array_split(new, -(-len(new) // AT_ONCE)) if len(new) else ():
            self._make(part)
        length = self._length[taxa].astype(np.int64)
        place = self._start[taxa, None] + np.arange(length.max(initial=1))
        return self._kept.take(place, mode="clip").astype(np.int64), length

    def _make(self, taxa: np.ndarray) -> None:
        """Tokenise distinct taxa."""
        padded = self._tokenizer([self.form.text(self.taxonomy, t) for t in taxa.tolist()]).numpy()
        if not len(self._kept):  # room for all, of which the system gives memory to what is written
            self._kept = np.empty(self.taxonomy.size * padded.shape[1], dtype=np.int32)
        place = np.arange(padded.shape[1])
        length = np.where(padded != 0, place + 1, 1).max(1)
        kept = padded[place < length[:, None]]
        self._kept[self._used : self._used + len(kept)] = kept
        self._start[taxa] = self._used + np.cumsum(length) - length
        self._length[taxa] = length
        self._used += len(kept)
