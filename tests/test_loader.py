"""Batches: the same samples, taxa, texts and pixels at every world size and worker count.

# G images of the global batch, U texts, R ranks
"""

import io
import multiprocessing
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from bioclip_hc.data import loader
from bioclip_hc.data.loader import TrainingBatches, evaluation_batches
from bioclip_hc.data.preprocess import build_transform
from bioclip_hc.data.sample import Sample
from bioclip_hc.data.samplers import EMPTY, BatchPlan
from bioclip_hc.data.shards import ShardSet
from bioclip_hc.data.text import TaxonTokens, TextForm
from bioclip_hc.data.workers import IDLE
from bioclip_hc.data.writer import write_shards
from bioclip_hc.distributed import share_of_texts
from bioclip_hc.taxonomy import RANKS, Taxonomy

N, G = 22, 8
BAD = 5  # this sample's image cannot be decoded
PREPROCESS = {"size": 8, "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


def lineage(i):
    """Three orders, six genera (none for every fifth), eleven species."""
    genus = "" if i % 5 == 4 else f"Genus{i % 6}"
    return ("Animalia", "", "Aves", f"Order{i % 3}", "", genus, f"species{i % 11}")


def png(i):
    pixels = np.random.default_rng(i).integers(0, 256, (12, 14, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    samples = [Sample(f"{i:04d}", png(i)[: 60 if i == BAD else None], lineage(i)) for i in range(N)]
    return ShardSet(write_shards(samples, tmp_path_factory.mktemp("shards"), samples_per_shard=7))


@pytest.fixture(scope="module")
def tree():
    return Taxonomy.from_lineages(map(lineage, range(N)))


def tokenizer(texts):
    """Letters of each text, padded with 0."""
    return torch.tensor([[ord(c) for c in text[:60]] + [0] * (60 - len(text)) for text in texts])


@pytest.fixture
def batches(shards, tree):
    """batches(**options): TrainingBatches with random crops."""

    def build(global_batch=G, seed=3, remainder="drop", **options):
        return TrainingBatches(
            shards,
            tree,
            TaxonTokens(tree, TextForm("{}"), tokenizer),
            build_transform(PREPROCESS),
            BatchPlan(N, global_batch, seed, remainder),
            **options,
        )

    return build


def joined(parts):
    """The parts of all processes as one: tokens as texts, the rest concatenated."""
    return {
        "images": torch.cat([part.images for part in parts]),
        "image_taxa": torch.cat([part.image_taxa for part in parts]),
        "text_rank": torch.cat([part.text_rank for part in parts]),
        "text_taxon": torch.cat([part.text_taxon for part in parts]),
        "indices": torch.cat([part.indices for part in parts]),
        "texts": ["".join(chr(c) for c in row if c) for part in parts for row in part.tokens.padded().tolist()],
        "bad": [sample for part in parts for sample in part.bad],
    }


def assert_equal(one, two):
    assert one.keys() == two.keys()
    for name, value in one.items():
        same = torch.equal(value, two[name]) if isinstance(value, torch.Tensor) else value == two[name]
        assert same, name


STEPS = range(5)  # two epochs and a half


@pytest.mark.parametrize("mode", ["all", "balanced", "uniform", "deepest"])
@pytest.mark.parametrize("size", [2, 4, 8])
def test_the_world_size_is_invisible(batches, mode, size):
    """Of eight processes each has one image, which in one of them cannot be read."""
    alone = batches(mode=mode)
    together = [batches(mode=mode, world_rank=rank, world_size=size) for rank in range(size)]
    for step in STEPS:
        assert_equal(joined([part[step] for part in together]), joined([alone[step]]))


@pytest.mark.parametrize("mode", ["all", "balanced", "uniform", "deepest"])
@pytest.mark.parametrize(("global_batch", "held"), [(16, [4, 2, 0, 0]), (24, [6, 6, 6, 4])])
def test_a_padded_epoch_has_every_sample_once_and_empty_places_teach_nothing(batches, mode, global_batch, held):
    """One process, two, or four, which hold so many samples of the last batch."""
    options = {"mode": mode, "global_batch": global_batch, "remainder": "pad"}
    alone = batches(**options)
    epoch = [alone[step] for step in range(alone.plan.steps_per_epoch)]
    assert sorted(i for batch in epoch for i in batch.indices.tolist() if i != EMPTY) == list(range(N))
    assert sum(batch.samples for batch in epoch) == N
    assert sum(len(batch.bad) for batch in epoch) == 1
    empty = epoch[-1].indices == EMPTY
    assert (epoch[-1].image_taxa[empty] == -1).all()
    assert (epoch[-1].images[empty] == 128).all()  # the mean colour
    for size in (2, 4):
        processes = [batches(world_rank=rank, world_size=size, **options) for rank in range(size)]
        parts = [[process[step] for process in processes] for step in range(len(epoch))]
        for one, together in zip(epoch, parts, strict=True):
            assert_equal(joined(together), joined([one]))
    assert [part.samples for part in parts[-1]] == held


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_are_invisible(batches, workers):
    alone = [joined([batches()[step]]) for step in range(1, 5)]
    loaded = [joined([batch]) for batch in batches().load(1, 5, workers)]
    assert len(loaded) == 4
    for one, two in zip(loaded, alone, strict=True):
        assert_equal(one, two)


def test_workers_are_children_whatever_python_would_start(batches, monkeypatch):
    """Python 3.14 starts processes by a server; workers are to end with the process that they work for."""
    server = multiprocessing.get_context("forkserver")
    monkeypatch.setattr(multiprocessing.context._default_context, "_actual_context", server)
    data = batches()
    stream = data.load(0, 2, 1)
    next(stream)
    status = Path(f"/proc/{data.workers.pid(0)}/stat").read_text()
    stream.close()
    assert int(status.rpartition(")")[2].split()[1]) == os.getpid()


def test_a_worker_fills_the_memory_that_it_sends(batches, monkeypatch):
    assert not batches()[0].images.is_shared()
    monkeypatch.setattr(loader, "get_worker_info", lambda: True)
    batch = batches()[0]
    assert batch.images.is_shared()
    assert batch.images.dtype == torch.uint8
    assert torch.equal(batch.images, next(batches().load(0, 1)).images)


def test_an_epoch_visits_samples_once_with_new_crops(batches):
    data = batches(global_batch=11)
    first, second = ([data[step] for step in steps] for steps in ((0, 1), (2, 3)))
    assert sorted(torch.cat([b.indices for b in first]).tolist()) == list(range(N))
    place = {int(i): x for b in first for i, x in zip(b.indices, b.images, strict=True)}
    again = {int(i): x for b in second for i, x in zip(b.indices, b.images, strict=True)}
    assert sum(torch.equal(place[i], again[i]) for i in place) < N / 2  # tiny pictures have few crops
    assert place[0].shape == (3, 8, 8)


def test_labels_and_texts_are_those_of_the_samples(batches, shards, tree):
    for step in STEPS:
        batch = batches()[step]
        expected = []
        for row, i in enumerate(batch.indices.tolist()):
            names = shards.read(i).lineage
            assert names == lineage(int(shards.key(i)))
            taxa = [-1] * 7 if int(shards.key(i)) == BAD else tree.encode(names).tolist()
            assert batch.image_taxa[row].tolist() == taxa
            expected += [(r, t) for r, t in enumerate(tree.encode(names).tolist()) if t >= 0]
        depth_first = sorted(set(expected), key=lambda text: tree.lineages[text[1]].tolist())
        assert list(zip(batch.text_rank.tolist(), batch.text_taxon.tolist(), strict=True)) == depth_first
        texts = joined([batch])["texts"]
        assert texts == [" ".join(tree.path(t)) for t in batch.text_taxon.tolist()]


@pytest.mark.parametrize("size", [2, 4])
def test_processes_get_clades_whose_texts_begin_alike(batches, tree, size):
    """Fewer nodes are encoded than if texts were shared out by rank."""
    encoded = {"depth first": 0, "by rank": 0, "alone": 0}
    for step in STEPS:
        alone = batches()[step]
        encoded["alone"] += nodes(alone.tokens)
        by_rank = alone.text_rank.argsort(stable=True)
        for rank in range(size):
            start, stop = share_of_texts(len(by_rank), rank, size)
            taxa = alone.text_taxon[by_rank[start:stop]].numpy()
            encoded["by rank"] += nodes(TaxonTokens(tree, TextForm("{}"), tokenizer).packed(taxa))
            encoded["depth first"] += nodes(batches(world_rank=rank, world_size=size)[step].tokens)
    assert encoded["alone"] <= encoded["depth first"] < encoded["by rank"]


def nodes(packed):
    return len(packed.node[packed.node >= 0].unique())


def test_an_unreadable_image_is_reported_and_not_supervised(batches, shards):
    found = 0
    for step in STEPS:
        batch = batches()[step]
        keys = [shards.key(i) for i in batch.indices.tolist()]
        bad = [row for row, key in enumerate(keys) if key == f"{BAD:04d}"]
        assert [sample.key for sample in batch.bad] == [f"{BAD:04d}"] * len(bad)
        for row, sample in zip(bad, batch.bad, strict=True):
            assert batch.image_taxa[row].tolist() == [-1] * 7
            assert (batch.images[row] == 128).all()  # the mean colour
            assert sample.shard == str(shards.shard(int(batch.indices[row])))
            assert sample.reason
            found += 1
        others = [row for row in range(G) if row not in bad]
        assert (batch.image_taxa[others] >= 0).any(1).all()
        assert (batch.images[others] != 128).flatten(1).any(1).all()
    assert found >= 1


def test_a_batch_without_one_readable_image_keeps_its_shapes(batches, monkeypatch):
    """It may be one process' few of many: whether the run goes on is for the quarantine's limit to say."""
    expected = batches()[0]
    monkeypatch.setattr(ShardSet, "read", lambda self, i: Sample("x", b"not an image", lineage(0)))
    batch = batches()[0]
    assert batch.images.shape == expected.images.shape
    assert (batch.images == 128).all()
    assert (batch.image_taxa == -1).all()
    assert len(batch.bad) == G
    assert torch.equal(batch.text_taxon, expected.text_taxon)


def test_what_is_being_read_can_be_seen(batches, monkeypatch):
    data, seen = batches(), []
    read = ShardSet.read

    def look(self, i):
        seen.append((i, data.workers.sights()[0]))
        return read(self, i)

    monkeypatch.setattr(ShardSet, "read", look)
    indices = data[1].indices.tolist()
    assert [(i, (sight.step, sight.sample)) for i, sight in seen] == [(i, (1, i)) for i in indices]
    assert len({sight.moves for _, sight in seen}) == len(indices)
    monkeypatch.setattr(ShardSet, "read", lambda self, i: 1 / 0)
    for step, made in ((1, True), (2, False)):
        if not made:
            with pytest.raises(ZeroDivisionError):
                data[step]
        assert data.workers.sights()[0][1:] == (step, IDLE)


def test_a_stopped_worker_does_not_hold_up_the_end(batches, monkeypatch):
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.2)  # seconds that torch waits for it
    data = batches()
    stream = data.load(0, 5, 1)
    next(stream)
    pid = data.workers.pid(0)
    assert pid != os.getpid()
    os.kill(pid, signal.SIGSTOP)
    stream.close()
    assert data.workers.died() == []  # it was let go
    for process in multiprocessing.active_children():
        process.join(10)
    assert pid not in [process.pid for process in multiprocessing.active_children()]


@pytest.mark.parametrize("mode", ["all", "balanced", "uniform", "deepest"])
def test_only_named_ranks_supervise(batches, mode):
    used = ("class", "genus")
    off = [r for r, name in enumerate(RANKS) if name not in used]
    seen = set()
    for step in STEPS:
        batch = batches(mode=mode, ranks=used)[step]
        assert (batch.image_taxa[:, off] == -1).all()
        seen |= set(batch.text_rank.tolist())
        if mode != "all":
            assert ((batch.image_taxa >= 0).sum(1) <= 1).all()
    assert seen == {2, 5}


def test_a_balanced_batch_needs_an_image_for_each_rank(batches):
    with pytest.raises(ValueError, match="global batch of 6 is smaller than the 7 ranks"):
        batches(mode="balanced", global_batch=6)
    assert len(batches(mode="balanced", global_batch=6, ranks=RANKS[2:])[0].indices) == 6


def test_more_processes_than_texts(batches):
    parts = [batches(ranks=("kingdom",), world_rank=rank, world_size=4)[0] for rank in range(4)]
    assert [len(part.text_taxon) for part in parts] == [1, 0, 0, 0]
    assert len(parts[1].tokens) == 0


def test_texts_of_a_process_own_images(batches):
    """What a loss per process needs: a share of all texts would not hold the texts of its images."""
    for step in STEPS:
        for rank in range(2):
            batch = batches(world_rank=rank, world_size=2, own_texts=True)[step]
            alone = batches()[step]
            images = alone.image_taxa[4 * rank : 4 * rank + 4]
            assert torch.equal(batch.image_taxa, images)
            found = set(zip(batch.text_rank.tolist(), batch.text_taxon.tolist(), strict=True))
            assert len(found) == len(batch.text_rank) == len(batch.tokens)
            needed = {(r, t) for row in images.tolist() for r, t in enumerate(row) if t >= 0}
            assert needed == found or (batch.bad and needed < found)


def test_unknown_ranks_and_batches_that_do_not_divide(batches):
    with pytest.raises(ValueError, match="did you mean 'genus'"):
        batches(ranks=("genuss",))
    with pytest.raises(ValueError, match="global batch of 8 does not divide among 3"):
        batches(world_size=3)[0]


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_reads_every_readable_sample_in_order(shards, workers):
    transform = image_transform_v2(PreprocessCfg(**PREPROCESS), is_train=False)
    parts = list(evaluation_batches(shards, transform, batch_size=6, workers=workers))
    bad = next(i for i in range(N) if shards.key(i) == f"{BAD:04d}")
    indices = torch.cat([part for part, _ in parts]).tolist()
    assert indices == [i for i in range(N) if i != bad]
    images = torch.cat([pixels for _, pixels in parts])
    for i, pixels in zip(indices, images, strict=True):
        assert torch.equal(pixels, transform(Image.open(io.BytesIO(png(int(shards.key(i))))).convert("RGB")))
