"""Readers of photographs with their lineages, and decoding alone: time, peak memory, whether an epoch was whole.

    python -m pytest benchmarks/bench_data.py --benchmark-json out.json

- bioclip_hc: the exact reader. Random access by an index, in an order drawn over all samples. Decoded, it is what
  the training loop reads, taxa and tokens of the batch included.
- webdataset: its pipeline on the same shards: shards in random order, a shuffle buffer, shards split among workers.
- webdataset, our decoding: its pipeline with this package's pixels, so that the readers are compared alone.
- folder: a file per photograph in a folder per species, in random order, by torchvision's dataset.

"bytes" hands over the bytes and the lineage of every sample, "decoded" its pixels after random preprocessing, in
float32, normalised; Pillow and open_clip's transform make the peers'. An epoch starts its workers anew; opening a
reader is measured apart (`open_ms`; ours indexes the shards, which a second run finds done, and makes the tokens of
all taxa). The files have just been written, so all read from the page cache: readers are compared, not disks. Every
epoch is checked sample by sample. One thread a process, as loaders' workers have it. Peak memory counts the
workers, and what processes share once.

"decode and crop" is that alone, a batch at a time on one core: of the same photographs, and of large ones, which
are decoded at a part of their size.

    BENCH_DATA_IMAGES=2048   photographs, a multiple of 64
    BENCH_DATA_ROUNDS=1      timed epochs
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import recording
import torch
from memory import peak_beyond_results, proportional_kib
from readers import (
    BATCH,
    READERS,
    SIDE,
    Photographs,
    by_ours,
    by_pillow,
    check_whole,
    mosaics,
    normalize,
    visit,
    write_photographs,
)
from records import OURS
from torch import Tensor

from bioclip_hc.data import decode

IMAGES = int(os.environ.get("BENCH_DATA_IMAGES", "2048"))
ROUNDS = int(os.environ.get("BENCH_DATA_ROUNDS", "1"))
LARGE = 32
BASE, BASE_WAY = "webdataset", "Pillow, open_clip"
INTERVAL = 0.02  # seconds between looks at the workers' memory


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: Any) -> Photographs:
    """The samples of this run."""
    return write_photographs(tmp_path_factory.mktemp("photographs"), IMAGES)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("way", READERS)
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("decoded", [False, True], ids=["bytes", "decoded"])
def test_reader(benchmark: Any, photographs: Photographs, decoded: bool, workers: int, way: str) -> None:
    """Time and peak memory of one epoch, in which every sample is seen once with its lineage."""
    if not decoded and way == "webdataset, our decoding":
        return  # nothing is decoded
    recording.name(benchmark, group_of(photographs, decoded, workers), way, base=way == BASE)

    for index in (photographs.folder / "shards").glob("*.index.json"):
        index.unlink()
    start = time.perf_counter()
    reader = READERS[way](photographs, decoded)
    benchmark.extra_info["open_ms"] = round(1000 * (time.perf_counter() - start), 1)
    epochs = []

    def epoch() -> int:
        epochs.append(visit(reader(workers)))
        return 0  # bytes kept: a batch is gone when the next one comes

    epoch()  # in which libraries take their own memory
    peak = peak_with_workers(epoch) if workers else peak_beyond_results(epoch)
    benchmark.extra_info["peak_mib"] = round(peak, 1)
    benchmark.pedantic(epoch, rounds=ROUNDS * (1 if decoded else 5), iterations=1)  # bytes take a tenth of a second
    for visited in epochs:
        check_whole(photographs, decoded, visited)
    if benchmark.stats:
        benchmark.extra_info["samples_per_s"] = round(len(photographs) / benchmark.stats.stats.median)


def pillow_alone(image: bytes) -> Tensor:
    """This package's pixels where simplejpeg is not installed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decode, "simplejpeg", None)
        return by_ours(image)


WAYS = {OURS: by_ours, f"{OURS}, by Pillow": pillow_alone, "Pillow, open_clip": by_pillow}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
def test_decode_and_crop(benchmark: Any, photographs: Photographs, large: bool, way: str) -> None:
    """Time and peak memory of turning bytes into batches of a model's pixels, on one core."""
    what = "of 2048 x 1536, mosaics" if large else f"of {SIDE} x {SIDE}"
    images = images_of(photographs, large)
    recording.name(
        benchmark, f"decode and crop, {len(images)} {what}, {photographs.source}", way, base=way == BASE_WAY
    )

    def call() -> list[Tensor]:
        for start in range(0, len(images), BATCH):
            batch = normalize(torch.stack([WAYS[way](image) for image in images[start : start + BATCH]]))
            assert batch.shape[1:] == (3, 224, 224)
        return []

    recording.record(benchmark, call, 3 * ROUNDS)
    if benchmark.stats:
        benchmark.extra_info["samples_per_s"] = round(len(images) / benchmark.stats.stats.median)


def images_of(photographs: Photographs, large: bool) -> list[bytes]:
    """A few batches."""
    if large:
        return mosaics(photographs, LARGE)
    return [path.read_bytes() for path in sorted((photographs.folder / "files").rglob("*.jpg"))[: 8 * BATCH]]


def group_of(photographs: Photographs, decoded: bool, workers: int) -> str:
    """How many photographs and which, so that a small run does not take a large one's place."""
    what = f"{len(photographs)} images, {photographs.source}"
    return f"reader, {'decoded' if decoded else 'bytes'}, {workers} workers, {what}"


def peak_with_workers(call: Callable[[], object]) -> float:
    """MiB that a call and the processes it started held at most beyond what this one held before.

    Proportional set sizes, looked at every few hundredths of a second: memory that processes share counts once.
    """
    gc.collect()
    before = peak = held()
    done = threading.Event()

    def look() -> None:
        nonlocal peak
        while not done.wait(INTERVAL):
            peak = max(peak, held())

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        call()
    finally:
        done.set()
        watcher.join()
    return (peak - before) / 1024


def held() -> int:
    """KiB of this process and its workers."""
    return sum(proportional_kib(pid) for pid in [os.getpid(), *(c.pid for c in multiprocessing.active_children())])
