"""The readers that bench_data.py measures: one epoch of the same photographs by each, in random order.

A reader is opened once, as a run opens it, and then gives epochs at any number of workers: iterators over batches
`(keys, lineages, payload)`, where the payload is a list of bytes or a tensor (b, 3, 224, 224) float32, normalised.
Peers decode as their users have it: by Pillow, then open_clip's transform. webdataset has our decoding too, so that
the readers are compared apart from it.
"""

from __future__ import annotations

import io
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import webdataset
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from records import OURS
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import DatasetFolder

from bioclip_hc.data.build import photos_from_csv
from bioclip_hc.data.captions import CAPTION, parse_taxon_tag
from bioclip_hc.data.loader import TrainingBatches
from bioclip_hc.data.preprocess import Normalize, build_transform
from bioclip_hc.data.sample import Sample
from bioclip_hc.data.samplers import BatchPlan, epoch_order
from bioclip_hc.data.shards import ShardSet
from bioclip_hc.data.synthetic import evolve, photograph
from bioclip_hc.data.text import TaxonTokens, TextForm
from bioclip_hc.data.writer import write_shards
from bioclip_hc.model import get_tokenizer
from bioclip_hc.taxonomy import Lineage

BATCH = 64
SHARDS = 4  # webdataset's workers share shards, so there must be as many
SIDE = 256  # pixels of a photograph's side, as in TreeOfLife-10M's training crops
LABELS = "images/natures_domain_labels.csv"

Item = tuple[str, Lineage, bytes | Tensor]
Batch = tuple[list[str], list[Lineage], list[bytes] | Tensor]
Epochs = Callable[[int], Iterator[Batch]]  # number of workers -> an epoch
Pixels = Callable[[bytes], Tensor]

PREPROCESS = PreprocessCfg(size=224)
stock = image_transform_v2(PREPROCESS, is_train=True)  # of a PIL image
transform, normalize = build_transform(asdict(PREPROCESS)), Normalize(asdict(PREPROCESS))


def by_pillow(image: bytes) -> Tensor:
    """Pixels as open_clip's own training has them."""
    return stock(Image.open(io.BytesIO(image)).convert("RGB"))


def by_ours(image: bytes) -> Tensor:
    """Pixels as this package's training has them, in bytes."""
    return transform(image, random.getrandbits(32))


@dataclass(frozen=True)
class Photographs:
    """The same samples twice on disk, as shards and as folders.

    Attributes:
        folder: holds `shards` and `files`.
        lineage_of: key -> lineage.
        bytes: of all images together.
        source: what the photographs are.
        classes: the lineage of each folder of `files`, in order.
    """

    folder: Path
    lineage_of: dict[str, Lineage]
    bytes: int
    source: str
    classes: list[Lineage]

    def __len__(self) -> int:
        return len(self.lineage_of)


# -- making them --------------------------------------------------------------------------------------------


def write_photographs(folder: Path, count: int) -> Photographs:
    """Write `count` JPEGs of 256 x 256 pixels as shards and as folders.

    They are random crops of the sample photographs of the folder $BIOCLIP_HC_DATA, else creatures of a synthetic
    tree of life.

    Raises:
        ValueError: the count is no multiple of the batch.
    """
    if count < BATCH or count % BATCH:
        raise ValueError(f"count must be a multiple of {BATCH}, got {count}")
    folder_of_data = os.environ.get("BIOCLIP_HC_DATA")
    labels = Path(folder_of_data) / LABELS if folder_of_data else None
    photographed = labels is not None and labels.is_file()
    samples, source = (real(labels, count), "crops of photographs") if photographed else (drawn(count), "drawn")
    samples = list(samples)
    write_shards(samples, folder / "shards", samples_per_shard=-(-count // SHARDS))
    classes = sorted({sample.lineage for sample in samples})
    for number, lineage in enumerate(classes):
        (folder / "files" / f"{number:05d}").mkdir(parents=True)
        for sample in samples:
            if sample.lineage == lineage:
                (folder / "files" / f"{number:05d}" / f"{sample.key}.jpg").write_bytes(sample.image)
    total = sum(len(sample.image) for sample in samples)
    return Photographs(folder, {s.key: s.lineage for s in samples}, total, source, classes)


def mosaics(photographs: Photographs, count: int) -> list[bytes]:
    """JPEGs of 2048 x 1536 pixels, from all of the photographs side by side: there are no large ones at hand."""
    files = sorted((photographs.folder / "files").rglob("*.jpg"))
    rng = np.random.default_rng(1)
    made = []
    for _ in range(count):
        canvas = Image.new("RGB", (8 * SIDE, 6 * SIDE))
        for place in range(48):
            with Image.open(files[rng.integers(len(files))]) as image:
                canvas.paste(image, (place % 8 * SIDE, place // 8 * SIDE))
        buffer = io.BytesIO()
        canvas.save(buffer, "JPEG", quality=90)
        made.append(buffer.getvalue())
    return made


def real(labels: Path, count: int) -> Iterator[Sample]:
    """Random square crops of labelled photographs."""
    photos = photos_from_csv(labels)
    rng = np.random.default_rng(0)
    for i in range(count):
        photo = photos[i % len(photos)]
        with Image.open(photo.path) as image:
            side = int(min(image.size) * rng.uniform(0.6, 1))
            left, top = (int(rng.integers(0, length - side + 1)) for length in image.size)
            crop = image.convert("RGB").resize((SIDE, SIDE), Image.BICUBIC, (left, top, left + side, top + side))
        buffer = io.BytesIO()
        crop.save(buffer, "JPEG", quality=90)
        yield Sample(f"{i:06d}", buffer.getvalue(), photo.lineage)


def drawn(count: int) -> Iterator[Sample]:
    """Creatures of a synthetic tree of life."""
    tree = evolve(0, 100)
    for i in range(count):
        individual, species = divmod(i, len(tree.lineages))
        yield Sample(f"{i:06d}", photograph(tree, species, individual, SIDE), tree.lineages[species])


# -- this package -------------------------------------------------------------------------------------------


def ours(photographs: Photographs, decoded: bool) -> Epochs:
    """The exact reader; decoded, the training loop's batches, with their taxa and tokens."""
    shards = ShardSet(photographs.folder / "shards")
    if not decoded:
        order = epoch_order(len(shards), seed=0, epoch=0).tolist()
        return lambda workers: iter(
            DataLoader(_Shards(shards), BATCH, sampler=order, num_workers=workers, collate_fn=stack)
        )
    taxonomy = shards.taxonomy()
    tokens = TaxonTokens(taxonomy, TextForm(), get_tokenizer("ViT-B-32"))
    tokens(np.arange(taxonomy.size))  # a run tokenises a taxon once
    plan = BatchPlan(len(shards), BATCH, seed=0)
    batches = TrainingBatches(shards, taxonomy, tokens, transform, plan)

    def epoch(workers: int) -> Iterator[Batch]:
        for batch in batches.load(0, plan.steps_per_epoch, workers):
            taxa = batch.image_taxa.tolist()
            lineages = [tuple(taxonomy.name(t) if t >= 0 else "" for t in row) for row in taxa]
            yield [shards.key(i) for i in batch.indices.tolist()], lineages, normalize(batch.images)

    return epoch


class _Shards(Dataset):
    def __init__(self, shards: ShardSet) -> None:
        self.shards = shards

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, i: int) -> Item:
        sample = self.shards.read(i)
        return sample.key, sample.lineage, sample.image


def stack(items: list[Item]) -> Batch:
    """Items to a batch."""
    keys, lineages, payload = zip(*items, strict=True)
    return list(keys), list(lineages), torch.stack(payload) if torch.is_tensor(payload[0]) else list(payload)


# -- peers --------------------------------------------------------------------------------------------------


def streamed(photographs: Photographs, decoded: bool, pixels: Pixels = by_pillow) -> Epochs:
    """webdataset's pipeline: shards and samples shuffled as its manual has it, an epoch split by shard."""
    urls = sorted(str(path) for path in (photographs.folder / "shards").glob("*.tar"))

    def item(sample: dict[str, Any]) -> Item:
        image = sample["jpg"]
        lineage = parse_taxon_tag(sample[CAPTION.lower()].decode())
        return sample["__key__"], lineage, pixels(image) if decoded else image

    wanted = (".jpg", CAPTION)
    dataset = webdataset.WebDataset(urls, shardshuffle=len(urls), select_files=lambda name: name.endswith(wanted))
    dataset = dataset.shuffle(1000).map(item).batched(BATCH, collation_fn=stack, partial=True)

    def epoch(workers: int) -> Iterator[Batch]:
        loader = webdataset.WebLoader(dataset, batch_size=None, num_workers=workers, collate_fn=_as_it_is)
        for keys, lineages, payload in loader:
            yield keys, lineages, normalize(payload) if torch.is_tensor(payload) else payload

    return epoch


def _as_it_is(batch: Batch) -> Batch:
    return batch


def folder(photographs: Photographs, decoded: bool) -> Epochs:
    """A file per photograph, a folder per class: torchvision's dataset behind torch's loader."""

    def read(path: str) -> tuple[str, bytes | Tensor]:
        image = Path(path).read_bytes()
        return Path(path).stem, by_pillow(image) if decoded else image

    def together(items: list[tuple[tuple[str, bytes | Tensor], int]]) -> Batch:
        return stack([(key, photographs.classes[label], payload) for (key, payload), label in items])

    dataset = DatasetFolder(str(photographs.folder / "files"), read, extensions=(".jpg",))
    return lambda workers: iter(DataLoader(dataset, BATCH, shuffle=True, num_workers=workers, collate_fn=together))


READERS: dict[str, Callable[[Photographs, bool], Epochs]] = {
    OURS: ours,
    "webdataset": streamed,
    "webdataset, our decoding": partial(streamed, pixels=by_ours),
    "folder": folder,
}


# -- whether an epoch is whole ------------------------------------------------------------------------------


class Visited(NamedTuple):
    """What an epoch handed over: its samples, and the bytes of its payload."""

    samples: list[tuple[str, Lineage]]
    bytes: int


def visit(epoch: Iterator[Batch]) -> Visited:
    """Go through an epoch, keeping keys and lineages."""
    samples, size = [], 0
    for keys, lineages, payload in epoch:
        samples += zip(keys, lineages, strict=True)
        size += payload.nbytes if torch.is_tensor(payload) else sum(map(len, payload))
    return Visited(samples, size)


def check_whole(photographs: Photographs, decoded: bool, visited: Visited) -> None:
    """Raises AssertionError unless every sample came exactly once, with its lineage and all of its payload."""
    expected = Counter(photographs.lineage_of.items())
    missed, extra = expected - Counter(visited.samples), Counter(visited.samples) - expected
    assert not missed, f"{missed.total()} samples missed, such as {next(iter(missed))}"
    assert not extra, f"{extra.total()} samples too many, such as {next(iter(extra))}"
    size = len(photographs) * 3 * 224 * 224 * 4 if decoded else photographs.bytes
    assert visited.bytes == size, f"{visited.bytes} bytes came instead of {size}"
