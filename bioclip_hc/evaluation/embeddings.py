"""From a model and data to the two arrays that every protocol takes.

# N images, T taxa, D embed
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bioclip_hc.data.prompts import Prompts
from bioclip_hc.data.text import TaxonTokens, TextForm
from bioclip_hc.model import HierarchicalCLIP
from bioclip_hc.taxonomy import Taxonomy


@torch.inference_mode()
def embed_images(
    model: HierarchicalCLIP,
    batches: Iterable[tuple[Tensor, Tensor]],
    progress: Callable[[int], object] = lambda count: None,
) -> tuple[np.ndarray, Tensor]:
    """Tangent vectors of preprocessed images.

    Args:
        model: in eval mode, on any device.
        batches: (indices (b,), images (b, 3, H, W)), as `evaluation_batches` gives.
        progress: called with the number of images done after each batch.

    Returns:
        (N,) int64 indices and (N, D) float32 on the CPU.
    """
    device = next(model.parameters()).device
    indices, rows = [], []
    for index, images in batches:
        indices.append(index)
        rows.append(model.encode_image(images.to(device)).float().cpu())
        progress(sum(map(len, rows)))
    if not rows:
        return np.empty(0, np.int64), torch.empty(0, model.embed_dim)
    return torch.cat(indices).numpy(), torch.cat(rows)


@torch.inference_mode()
def embed_taxa(
    model: HierarchicalCLIP,
    taxonomy: Taxonomy,
    tokenizer: Any,
    prompts: Prompts | None = None,
    batch_size: int = 256,
    progress: Callable[[int], object] = lambda count: None,
) -> Tensor:
    """Tangent vectors of the texts of all taxa: (T, D) float32 on the CPU, row t the text of taxon t.

    Several templates give the mean of their embeddings: in hyperbolic space that of the tangent vectors at the
    origin, which the model's outputs are; under the cosine that of the unit vectors, itself of unit length. One
    template after the other is added up, so that memory does not grow with their number.

    Args:
        prompts: how a taxon is asked for; by default as the model was trained.
        progress: called with the number of texts done, templates times taxa in the end.
    """
    device = next(model.parameters()).device
    forms = (prompts or Prompts.of(text_form(model))).forms
    parts = np.array_split(np.arange(taxonomy.size), max(1, -(-taxonomy.size // batch_size)))
    on_sphere = len(forms) > 1 and model.geometry == "euclidean"
    total = torch.zeros(taxonomy.size, model.embed_dim)
    for i, form in enumerate(forms):
        tokens = TaxonTokens(taxonomy, form, tokenizer)
        for part in parts:
            if len(part):
                rows = model.encode_text(tokens.packed(part).to(device)).float()
                rows = nn.functional.normalize(rows, dim=1) if on_sphere else rows
                total[part[0] : part[-1] + 1] += rows.cpu()
                progress(i * taxonomy.size + int(part[-1]) + 1)
    if on_sphere:
        return nn.functional.normalize(total, dim=1)
    return total.div_(len(forms))


def text_form(model: HierarchicalCLIP) -> TextForm:
    """How the model was trained to read taxa; the default form for a model that does not say.

    Raises:
        ValueError: what it says is no form.
    """
    said = model.metadata.get("text", {})
    try:
        return TextForm(**said)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"metadata 'text' of the model must be a table of template, form and separator, got {said!r:.200} "
            f"({error})"
        ) from None
