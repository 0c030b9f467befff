"""Name what is on photographs.

# N images, T taxa, D embed, b images of a batch, B its shape
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bioclip_hc.data.names import NameTable
from bioclip_hc.data.parallel import usable_processes
from bioclip_hc.data.prompts import Prompts
from bioclip_hc.evaluation.systems import System, open_system
from bioclip_hc.evaluation.text_cache import taxa_texts
from bioclip_hc.model import resolve_folder
from bioclip_hc.prediction.answers import Answers, Prediction
from bioclip_hc.prediction.classes import (
    ClassDecoder,
    Classes,
    read_bins,
    read_classes,
    resolve_bins,
    resolve_classes,
)
from bioclip_hc.prediction.inputs import Files, check_arguments
from bioclip_hc.prediction.reading import Batch, ImageLike, OnError, batches, filled, leave_out
from bioclip_hc.prediction.subset import as_candidates, read_subset
from bioclip_hc.prediction.taxa import TaxonDecoder, check_options
from bioclip_hc.taxonomy import RANKS, Taxonomy, rank_index

__all__ = ["Answers", "Embedding", "Prediction", "Predictor", "read_taxonomy"]

TAXONOMY = "taxonomy.json"
AT_ONCE = 64
AT_ONCE_ON_CPU = 4  # which is as fast there for each image, and has the first answer sooner
Decoder = TaxonDecoder | ClassDecoder
Images = ImageLike | Iterable[ImageLike]


class Embedding(NamedTuple):
    """file_name: "" for an image that is no file; vector: (D,) float32, a tangent vector at the origin."""

    file_name: str
    vector: np.ndarray


class Predictor:
    """A trained model with the names it can give.

    Texts are embedded when they are first needed; those of the taxonomy are kept on disk for the next time
    (`evaluation.text_cache`), those of the user's classes are not.

    Args:
        model: a model folder, hub repository or published system, as `evaluation.systems.open_system` takes it, or
            a System, which is asked where it is and as it is.
        taxonomy: a table (.csv, .csv.gz), a saved .json, or a Taxonomy; by default the model folder's own. The
            user's own classes need none.
        device, revision, prompts: where to compute, which commit of a hub repository, and in which words taxa are
            asked for, as in `open_system`.
        synonyms: a table (columns synonym, accepted) for names that the taxonomy lacks.
        cache: where text embeddings are kept: True, False, or a folder.
        tell: called with what is worth knowing and no error.

    Raises:
        FileNotFoundError: no such model.
        ValueError: a model or table that cannot be read; a revision of what is on no hub.
    """

    def __init__(
        self,
        model: str | Path | System,
        taxonomy: str | Path | Taxonomy | None = None,
        device: str | torch.device = "cpu",
        *,
        revision: str | None = None,
        prompts: Prompts | str | Path | None = None,
        synonyms: str | Path | None = None,
        cache: bool | str | Path = True,
        tell: Callable[[str], object] = warnings.warn,
    ) -> None:
        if revision is not None and (isinstance(model, System) or _is_here(str(model))):
            raise ValueError(f"revision {revision!r} is of a hub repository, which {model} is not; leave it out")
        self._taxonomy = read_taxonomy(Path(), taxonomy) if taxonomy is not None else None
        self.system = (
            model
            if isinstance(model, System)
            else open_system(model, revision=revision, device=device, prompts=prompts)
        )
        self.model, self.preprocess = self.system.model, self.system.preprocess
        self.device = next(self.model.parameters()).device
        self.tell = tell
        self._synonyms, self._cache = synonyms, cache

    @cached_property
    def taxonomy(self) -> Taxonomy:
        """The taxa to choose among.

        Raises:
            FileNotFoundError: none was given, and the model has none.
        """
        if self._taxonomy is not None:
            return self._taxonomy
        return read_taxonomy(home(self.system))

    @cached_property
    def names(self) -> NameTable:
        """The taxonomy's names, common names and synonyms."""
        return NameTable(self.taxonomy, self._synonyms)

    @cached_property
    def text(self) -> Tensor:
        """(T, D): the embedding of each taxon's text, on the device."""
        return self._embedded(self.taxonomy, self._cache)

    def predict(
        self,
        images: Images,
        *,
        rank: str | None = None,
        k: int | None = None,
        decode: str = "independent",
        min_prob: float = 0.0,
        subset: str | Path | np.ndarray | Sequence[bool] | None = None,
        classes: str | Path | Sequence[str] | None = None,
        bins: str | Path | None = None,
        as_words: bool = False,
        batch_size: int | None = None,
        workers: int | None = None,
        on_error: OnError = "raise",
    ) -> Iterator[Answers]:
        """Answers for each image, in order, as they come.

        Args:
            images: files and PIL images, which a thread takes a little ahead; or a single one, where a folder and a
                pattern stand for the pictures below it, as on the command line.
            rank: the rank to name; by default all ranks, coarse to fine.
            k: answers per rank, best first; 1 by default, which the decoders of paths alone give. Of classes or
                bins all by default.
            decode: "independent" chooses at each rank among all its taxa; "top-down" among the children of the
                taxon chosen above; "path" the path of the tree that is best as a whole.
            min_prob: answers less probable than this are left out; a path ends above the first of them.
            subset: a table of taxa (`prediction.subset.read_subset`), or (T,) bool: the taxa that may be
                answered.
            classes: the user's own classes in place of the taxa: a file with one a line, a text with commas, or
                a list. Names that the taxonomy knows are taxa, others free words.
            bins: a table of classes and bins; answered are bins, with the sums of their classes.
            as_words: classes are words, also those that the taxonomy knows.
            batch_size: images at once on the device, by default 64, on a CPU 4; fewer cost as much, for every batch
                is computed in this shape.
            workers: threads that decode; by default one for each core; 0: this one, which waits for whole batches.
            on_error: an image that cannot be read is an error ("raise"), left out ("skip"), or given to a function
                of its name and the error, and left out.

        Yields:
            one list of answers per readable image.

        Raises:
            ValueError: options that do not fit each other, ambiguous names, tables that cannot be read; embeddings
                that are not finite.
            DecodeError, OSError: an image that cannot be read.
            FileNotFoundError: a folder without pictures, or a pattern without a match.
            TypeError: no images.
        """
        decoder = self.decoder(
            rank=rank,
            k=k,
            decode=decode,
            min_prob=min_prob,
            subset=subset,
            classes=classes,
            bins=bins,
            as_words=as_words,
        )
        return self._answers(self._encoded(images, batch_size, workers, on_error), decoder)

    def embed(
        self,
        images: Images,
        *,
        batch_size: int | None = None,
        workers: int | None = None,
        on_error: OnError = "raise",
    ) -> Iterator[Embedding]:
        """The embedding of each image, in order, as they come; arguments and errors as in `predict`."""
        return self._embeddings(self._encoded(images, batch_size, workers, on_error))

    def decoder(
        self,
        *,
        rank: str | None = None,
        k: int | None = None,
        decode: str = "independent",
        min_prob: float = 0.0,
        subset: str | Path | np.ndarray | Sequence[bool] | None = None,
        classes: str | Path | Sequence[str] | None = None,
        bins: str | Path | None = None,
        as_words: bool = False,
    ) -> Decoder:
        """What turns image embeddings into answers; arguments and errors as in `predict`."""
        check_options(1 if k is None else k, decode, min_prob)
        ranks = range(len(RANKS)) if rank is None else [rank_index(rank)]
        if classes is None and bins is None:
            if as_words:
                raise ValueError("as_words is of classes and bins, of which there are none")
            candidates = None if subset is None else self.candidates(subset)
            return TaxonDecoder(
                self.taxonomy,
                self.text,
                self.system.space,
                ranks=ranks,
                k=k or 1,
                decode=decode,
                min_prob=min_prob,
                candidates=candidates,
            )
        if sum((classes is not None, bins is not None, rank is not None or subset is not None)) > 1:
            raise ValueError("classes, bins and rank or subset exclude each other: they say what may be answered")
        if decode != "independent":
            raise ValueError(f"decode={decode!r} follows the tree, in which classes and bins have no place")
        found = self.classes(classes, bins, as_words)
        text = self.embed_classes(found)
        return ClassDecoder(found, self.known_taxonomy, text, self.system.space, k=k, min_prob=min_prob)

    def candidates(self, subset: str | Path | np.ndarray | Sequence[bool]) -> np.ndarray:
        """(T,) bool: the taxa that a table of taxa leaves, or the truth values given."""
        if not isinstance(subset, str | Path):
            return as_candidates(subset, self.taxonomy.size)
        return read_subset(subset, self.names, self.tell)

    def classes(
        self, classes: str | Path | Sequence[str] | None, bins: str | Path | None, as_words: bool = False
    ) -> Classes:
        """The user's classes, or bins of them, looked up, or taken as words."""
        names = self.names if self.known_taxonomy and not as_words else None
        if bins is not None:
            return resolve_bins(read_bins(bins, self.tell), names, self.tell)
        return resolve_classes(read_classes(classes or []), names, self.tell)

    def embed_classes(self, classes: Classes) -> Tensor:
        """(C, D): the embeddings of the user's classes, on the device.

        They are those of a small taxonomy that holds them all, in which free words are kingdoms: so they are put
        into the same sentences as taxa.
        """
        taxonomy = self.known_taxonomy
        common = taxonomy.extra.get("common_name") if taxonomy else None
        known = [t if taxonomy and t >= 0 else -1 for t in classes.taxa]
        lineages = [
            taxonomy.lineage_names(t) if taxonomy and t >= 0 else (name, *[""] * (len(RANKS) - 1))
            for name, t in zip(classes.names, known, strict=True)
        ]
        small = Taxonomy.from_lineages(lineages, [common[t] if common and t >= 0 else "" for t in known])
        ids = small.encode_many(lineages).max(axis=1)  # the deepest has the largest
        return self._embedded(small, cache=False)[torch.from_numpy(ids).to(self.device)]

    # -- inside -------------------------------------------------------------------------------------------

    @property
    def known_taxonomy(self) -> Taxonomy | None:
        """The taxonomy; None where there is none."""
        try:
            return self.taxonomy
        except FileNotFoundError:
            return None

    def _embedded(self, taxonomy: Taxonomy, cache: bool | str | Path) -> Tensor:
        text = taxa_texts(self.system, taxonomy, cache=cache, tell=self.tell)
        if not text.isfinite().all():
            raise ValueError(
                f"{self.system.name} gives text embeddings that are not finite: its weights are damaged, or "
                "were so in training; take another model, or an earlier checkpoint"
            )
        return text.to(self.device)

    def _encoded(
        self, images: Images, batch_size: int | None, workers: int | None, on_error: OnError
    ) -> Iterator[tuple[list[str], Tensor]]:
        """Names (b,) and embeddings (B, D), the first b of them theirs; without what cannot be read or embedded."""
        if batch_size is None:
            batch_size = AT_ONCE_ON_CPU if self.device.type == "cpu" else AT_ONCE
        workers = usable_processes() if workers is None else workers
        self._check_preprocess()
        stream = batches(each(images), self.preprocess, batch_size=batch_size, workers=workers, on_error=on_error)
        return self._finite(stream, on_error)

    def _check_preprocess(self) -> None:
        """So that a photograph is not blamed for how the model wants it."""
        try:
            self.preprocess(Image.new("RGB", (2, 2)))
        except Exception as error:  # torchvision's, of many kinds
            raise ValueError(
                f"{self.system.name} cannot prepare any photograph ({error}); mend preprocess_cfg in its "
                "open_clip_config.json"
            ) from None

    def _finite(self, stream: Iterator[Batch], on_error: OnError) -> Iterator[tuple[list[str], Tensor]]:
        for names, pixels in stream:
            image = self._encode(pixels)
            finite = image[: len(names)].isfinite().all(dim=1).tolist()
            bad = [name for name, fine in zip(names, finite, strict=True) if not fine]
            if bad and on_error == "raise":  # those before it first
                finite = finite[: finite.index(False)] + [False] * (len(finite) - finite.index(False))
            kept = [i for i, fine in enumerate(finite) if fine]
            if kept:
                yield [names[i] for i in kept], filled(image[kept], len(image))
            for name in bad:
                leave_out(name, ValueError(f"{self.system.name} gives an embedding that is not finite"), on_error)

    @torch.inference_mode()
    def _encode(self, pixels: Tensor) -> Tensor:
        return self.model.encode_image(pixels.to(self.device)).float()

    def _answers(self, stream: Iterator[tuple[list[str], Tensor]], decoder: Decoder) -> Iterator[Answers]:
        for names, image in stream:
            yield from decoder(names, image)

    def _embeddings(self, stream: Iterator[tuple[list[str], Tensor]]) -> Iterator[Embedding]:
        for names, image in stream:
            yield from map(Embedding, names, image.cpu().numpy())


def each(images: Images) -> Iterable[ImageLike]:
    """The images that are meant; a single name is looked at as on the command line."""
    if isinstance(images, Image.Image):
        return [images]
    if isinstance(images, str | os.PathLike):
        check_arguments([os.fspath(images)])
        return Files().found([os.fspath(images)])
    if isinstance(images, Iterable):
        return images
    raise TypeError(f"images must be a file, a PIL image, or several of them, got {type(images).__name__}")


def _is_here(name: str) -> bool:
    """Whether a model's name is a path, or KEY=PATH."""
    return os.path.exists(name) or os.path.exists(name.partition("=")[2])


def home(system: System) -> Path:
    """The folder that a system's weights are in, which may have a taxonomy beside them.

    Raises:
        FileNotFoundError: it was not read from one.
    """
    if not system.source:
        raise FileNotFoundError(f"{system.name} is not from a folder; name a table of taxa")
    hub = system.source.partition("@")[0] if system.revision else system.source
    path = resolve_folder(hub, system.revision or None)
    return path if path.is_dir() else path.parent


def read_taxonomy(folder: Path, taxonomy: str | os.PathLike[str] | Taxonomy | None = None) -> Taxonomy:
    """The taxonomy given as a path or as itself, else the one saved with the model.

    Raises:
        FileNotFoundError: none given, and none in the folder.
        ValueError: it cannot be read, or holds no taxon.
    """
    if isinstance(taxonomy, Taxonomy):
        return taxonomy
    if taxonomy is not None:
        found = Taxonomy.read(Path(taxonomy))
        if not found.size:
            raise ValueError(f"{taxonomy} holds no taxon")
        return found
    if not (folder / TAXONOMY).is_file():
        raise FileNotFoundError(f"{folder} has no {TAXONOMY}; name a table of taxa (columns {', '.join(RANKS)})")
    return Taxonomy.load(folder / TAXONOMY)
