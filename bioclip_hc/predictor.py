"""Name what is on a photograph.

# N images, T taxa, R ranks, k answers per rank
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from bioclip_hc.data.decode import DecodeError, decode_image
from bioclip_hc.evaluation.embeddings import embed_taxa
from bioclip_hc.evaluation.protocols import top_down
from bioclip_hc.kernels import level_infonce, rank_topk
from bioclip_hc.model import load, resolve_folder
from bioclip_hc.taxonomy import RANKS, Taxonomy, rank_index

TAXONOMY = "taxonomy.json"


class Prediction(NamedTuple):
    """One answer for one image.

    lineage: seven names, "" where unknown or below `rank`; probability: softmax over the taxa of the rank.
    """

    file_name: str
    rank: str
    taxon: int
    lineage: tuple[str, ...]
    common_name: str
    probability: float

    def to_dict(self) -> dict[str, Any]:
        """file_name, kingdom ... species, common_name, rank, score."""
        names = dict(zip(RANKS, self.lineage, strict=True))
        return {
            "file_name": self.file_name,
            **names,
            "common_name": self.common_name,
            "rank": self.rank,
            "score": round(self.probability, 6),
        }


class Predictor:
    """A trained model with the names it can give; texts are embedded once, when it is made.

    Args:
        model: a model folder or hub repository, as `bioclip_hc.load` takes it.
        taxonomy: a table (.csv, .csv.gz), a saved .json, or a Taxonomy; by default the model folder's own.
        device: where to compute.

    Raises:
        FileNotFoundError: no such model, or no taxonomy given and none in the folder.
    """

    def __init__(
        self, model: str | Path, taxonomy: str | Path | Taxonomy | None = None, device: str | torch.device = "cpu"
    ) -> None:
        folder = resolve_folder(model)
        self.taxonomy = read_taxonomy(folder, taxonomy)
        self.model, self.preprocess, tokenizer = load(folder, device=device)
        self.device = torch.device(device)
        self._text = embed_taxa(self.model, self.taxonomy, tokenizer).to(self.device)
        self._text_rank = torch.from_numpy(self.taxonomy.rank).to(self.device)
        self._space: dict[str, Any] = {
            "scale": self.model.logit_scale().item(),
            "curv": self.model.manifold.curv.item(),
            "geometry": self.model.geometry,
        }

    def predict(
        self,
        images: Iterable[str | Path | Image.Image],
        *,
        rank: str | None = None,
        k: int = 1,
        decode: str = "independent",
        batch_size: int = 64,
    ) -> Iterable[list[Prediction]]:
        """Answers for each image, as they come.

        Args:
            images: files, or PIL images.
            rank: the rank to name; by default all ranks, coarse to fine.
            k: answers per rank, best first ("top-down" gives one).
            decode: "independent" chooses at each rank among all its taxa; "top-down" among the children of the
                taxon chosen above.

        Yields:
            one list per image; an image that cannot be read raises DecodeError, or OSError if it is missing.

        Raises:
            ValueError: an unknown rank or decode, or k with "top-down".
        """
        if decode not in ("independent", "top-down"):
            raise ValueError(f"decode must be 'independent' or 'top-down', got {decode!r}")
        if decode == "top-down" and k != 1:
            raise ValueError(f"decode='top-down' gives one answer per rank, got k={k}")
        ranks = list(range(len(RANKS))) if rank is None else [rank_index(rank)]
        return self._stream(images, ranks, k, decode, batch_size)

    def _stream(
        self, images: Iterable[str | Path | Image.Image], ranks: list[int], k: int, decode: str, batch_size: int
    ) -> Iterable[list[Prediction]]:
        names: list[str] = []
        pixels: list[torch.Tensor] = []
        for image in images:
            pixels.append(self.preprocess(_opened(image)))
            names.append("" if isinstance(image, Image.Image) else str(image))
            if len(pixels) == batch_size:
                yield from self._answers(names, pixels, ranks, k, decode)
                names, pixels = [], []
        if pixels:
            yield from self._answers(names, pixels, ranks, k, decode)

    @torch.inference_mode()
    def _answers(
        self, names: Sequence[str], pixels: Sequence[torch.Tensor], ranks: list[int], k: int, decode: str
    ) -> Iterable[list[Prediction]]:
        image = self.model.encode_image(torch.stack(list(pixels)).to(self.device)).float()
        if decode == "top-down":
            taxa = top_down(image, self._text, self.taxonomy, **self._space)[:, :, None]
        else:
            taxa = (
                rank_topk(image, self._text, self._text_rank, k=k, ranks=len(RANKS), **self._space)[1].cpu().numpy()
            )
        probability = np.stack([self._probability(image, taxa[:, :, i]) for i in range(taxa.shape[2])], axis=2)
        for i, name in enumerate(names):
            yield [
                self._prediction(name, r, int(taxa[i, r, j]), float(probability[i, r, j]))
                for r in ranks
                for j in range(taxa.shape[2])
                if taxa[i, r, j] >= 0
            ]

    def _probability(self, image: torch.Tensor, taxa: np.ndarray) -> np.ndarray:
        """(N, R) softmax probability of the given taxa (N, R) among all of their rank: exp of minus their nll."""
        labels = torch.from_numpy(taxa).to(self.device)
        text_taxon = torch.arange(len(self._text), device=self.device)
        nll, _ = level_infonce(image, self._text, labels, self._text_rank, text_taxon, **self._space)
        return nll.neg().exp().cpu().numpy()

    def _prediction(self, file_name: str, r: int, taxon: int, probability: float) -> Prediction:
        common = self.taxonomy.extra.get("common_name")
        return Prediction(
            file_name,
            RANKS[r],
            taxon,
            self.taxonomy.lineage_names(taxon),
            common[taxon] if common else "",
            probability,
        )


def read_taxonomy(folder: Path, taxonomy: str | Path | Taxonomy | None = None) -> Taxonomy:
    """The taxonomy given as a path or as itself, else the one saved with the model.

    Raises:
        FileNotFoundError: none given, and none in the folder.
    """
    if isinstance(taxonomy, Taxonomy):
        return taxonomy
    if taxonomy is not None:
        return Taxonomy.read(taxonomy)
    if not (folder / TAXONOMY).is_file():
        raise FileNotFoundError(f"{folder} has no {TAXONOMY}; name a table of taxa (columns {', '.join(RANKS)})")
    return Taxonomy.load(folder / TAXONOMY)


def _opened(image: str | Path | Image.Image) -> Image.Image:
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    try:
        return decode_image(Path(image).read_bytes())
    except DecodeError as error:
        raise DecodeError(f"{image}: {error}") from None
