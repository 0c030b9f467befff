"""The readers of bench_data.py hand over the same photographs, and a broken epoch is noticed."""

import importlib
import io
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
from torchvision.transforms import RandomResizedCrop

from bioclip_hc.data import preprocess

readers, bench_data = map(importlib.import_module, ("readers", "bench_data"))


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("BIOCLIP_HC_DATA", "/nonexistent")
    try:
        return readers.write_photographs(tmp_path_factory.mktemp("photographs"), 128)
    finally:
        patch.undo()


@pytest.fixture(scope="module")
def files(photographs):
    return {path.stem: path.read_bytes() for path in (photographs.folder / "files").rglob("*.jpg")}


@pytest.mark.parametrize("way", readers.READERS)
@pytest.mark.parametrize("workers", [0, 2])
def test_bytes_arrive_whole(photographs, files, way, workers):
    epoch = list(readers.READERS[way](photographs, False)(workers))
    got = {key: image for keys, _, payload in epoch for key, image in zip(keys, payload, strict=True)}
    assert got == files
    readers.check_whole(photographs, False, readers.visit(iter(epoch)))
    assert [key for keys, _, _ in epoch for key in keys] != sorted(files), "the order is not random"


@pytest.mark.parametrize("way", readers.READERS)
def test_pixels_are_the_photographs_normalised(photographs, files, way):
    """Crops differ from way to way, and hold at least nine tenths of a picture: its mean tells which it is."""
    epoch = list(readers.READERS[way](photographs, True)(0))
    readers.check_whole(photographs, True, readers.visit(iter(epoch)))
    last = readers.stock.transforms[-2:]
    for keys, lineages, pixels in epoch:
        assert pixels.dtype == torch.float32
        for key, mine in zip(keys, pixels, strict=True):
            expected = last[1](last[0](Image.open(io.BytesIO(files[key])).convert("RGB")))
            assert (mine.mean((1, 2)) - expected.mean((1, 2))).abs().max() < 0.2
        assert lineages == [photographs.lineage_of[key] for key in keys]


@pytest.mark.parametrize("way", readers.READERS)
def test_every_way_decodes_a_whole_epoch_with_workers(photographs, way):
    readers.check_whole(photographs, True, readers.visit(readers.READERS[way](photographs, True)(1)))


def test_every_way_gives_the_same_crop(photographs, monkeypatch):
    """Where they draw the same box: the whole picture."""
    whole = (0, 0, 256, 256)
    monkeypatch.setattr(RandomResizedCrop, "get_params", staticmethod(lambda *_: whole))
    monkeypatch.setattr(preprocess, "random_box", lambda *_: whole)
    for data in bench_data.images_of(photographs, large=False)[:3]:
        ours, alone, theirs = (readers.normalize(way(data)) for way in bench_data.WAYS.values())
        assert torch.equal(ours, alone)
        assert (ours - theirs).abs().max() < 2.5 / 255 / min(readers.PREPROCESS.std)


def test_large_photographs_are_large(photographs):
    (data,) = readers.mosaics(photographs, 1)
    assert Image.open(io.BytesIO(data)).size == (2048, 1536)


def test_a_broken_epoch_is_noticed(photographs):
    whole = readers.visit(readers.ours(photographs, False)(0))
    (key, lineage), *rest = whole.samples
    other = next(x for x in photographs.classes if x != lineage)
    for samples, message in [
        (rest, "1 samples missed"),
        ([*whole.samples, (key, lineage)], "1 samples too many"),
        ([(key, other), *rest], "1 samples missed"),
    ]:
        with pytest.raises(AssertionError, match=message):
            readers.check_whole(photographs, False, whole._replace(samples=samples))
    with pytest.raises(AssertionError, match="bytes came instead of"):
        readers.check_whole(photographs, False, whole._replace(bytes=whole.bytes - 1))


def test_real_photographs_where_the_folder_is(data_folder, monkeypatch, tmp_path):
    monkeypatch.setenv("BIOCLIP_HC_DATA", str(data_folder))
    found = readers.write_photographs(tmp_path, 64)
    assert found.source == "crops of photographs"
    epoch = readers.visit(readers.folder(found, False)(0))
    readers.check_whole(found, False, epoch)
    assert Image.open(next((tmp_path / "files" / "00000").glob("*.jpg"))).size == (256, 256)


def test_a_group_says_how_many_photographs_and_which(photographs):
    name = bench_data.group_of(photographs, True, 2)
    assert name == "reader, decoded, 2 workers, 128 images, drawn"


def test_without_the_variable_no_folder_is_looked_for(monkeypatch, tmp_path):
    monkeypatch.delenv("BIOCLIP_HC_DATA", raising=False)
    monkeypatch.setattr(readers, "real", lambda *_: pytest.fail("photographs were looked for"))
    assert readers.write_photographs(tmp_path, 64).source == "drawn"


def test_counts_that_do_not_fill_batches_are_refused(tmp_path):
    with pytest.raises(ValueError, match="multiple of 64"):
        readers.write_photographs(tmp_path, 100)


def test_memory_of_workers_counts():
    def held_by_a_worker():
        loader = torch.utils.data.DataLoader(_Slow(), batch_size=None, num_workers=1)
        assert len(list(loader)) == 1

    assert 60 < bench_data.peak_with_workers(held_by_a_worker) < 300


class _Slow(torch.utils.data.Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, _):
        kept = np.ones(64 << 20, np.uint8)
        time.sleep(0.5)
        return int(kept[0])
