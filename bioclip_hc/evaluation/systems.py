"""What is evaluated: a model, what photographs it sees, and the words in which it is asked for taxa.

# T taxa, D embed
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bioclip_hc.data.text import TextForm
from bioclip_hc.evaluation.embeddings import embed_taxa, text_form
from bioclip_hc.model import HierarchicalCLIP, load, resolve_folder
from bioclip_hc.taxonomy import Taxonomy


@dataclass(frozen=True)
class System:
    """A model ready to be asked.

    name: for tables; model: in eval mode; preprocess: PIL image -> (3, H, W); tokenizer: open_clip's; form: how a
    taxon is written.
    """

    name: str
    model: HierarchicalCLIP
    preprocess: Any
    tokenizer: Any
    form: TextForm

    @classmethod
    def load(cls, name: str | Path, *, revision: str | None = None, device: str | torch.device = "cpu") -> System:
        """A model folder or hub repository, asked as it was trained.

        Raises:
            As `bioclip_hc.load`.
        """
        folder = resolve_folder(name, revision)
        model, preprocess, tokenizer = load(folder, device=device)
        return cls(folder.name, model, preprocess, tokenizer, text_form(model))

    @property
    def space(self) -> dict[str, Any]:
        """scale, curv and geometry, as `kernels.rank_topk` and the protocols take them."""
        return {
            "scale": self.model.logit_scale().item(),
            "curv": self.model.manifold.curv.item(),
            "geometry": self.model.geometry,
        }

    def embed_taxa(self, taxonomy: Taxonomy) -> Tensor:
        """(T, D) float32 on the CPU, row t the text of taxon t."""
        return embed_taxa(self.model, taxonomy, self.tokenizer, self.form)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the weights and of how photographs are prepared: of all on which image embeddings depend."""
        digest = hashlib.sha256(repr(sorted(self.model.preprocess_cfg.items())).encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()
