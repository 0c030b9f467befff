"""The readers of bench_data.py hand over the same photographs, and a broken epoch is noticed."""

import importlib
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
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
def test_pixels_are_those_of_one_preprocessing(monkeypatch, photographs, files, way):
    def brightness(image):
        return torch.full((3, 224, 224), float(np.asarray(image).mean()))

    monkeypatch.setattr(readers, "transform", brightness)
    epoch = list(readers.READERS[way](photographs, True)(0))
    readers.check_whole(photographs, True, readers.visit(iter(epoch)))
    for keys, lineages, pixels in epoch:
        expected = [brightness(readers.decode_image(files[key]))[0, 0, 0] for key in keys]
        assert pixels[:, 0, 0, 0].tolist() == [x.item() for x in expected]
        assert lineages == [photographs.lineage_of[key] for key in keys]


@pytest.mark.parametrize("way", readers.READERS)
def test_every_way_decodes_a_whole_epoch_with_workers(photographs, way):
    readers.check_whole(photographs, True, readers.visit(readers.READERS[way](photographs, True)(1)))


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
    assert readers.decode_image((tmp_path / "files" / "00000").glob("*.jpg").__next__().read_bytes()).size == (
        256,
        256,
    )


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
