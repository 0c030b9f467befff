"""Photographs to vectors: each once, the same bits however they are shared out, and what is kept of it."""

import json

import numpy as np
import pytest
import torch
from small_run import ARCHITECTURES, LINEAGES, picture

from bioclip_hc.data.photographs import PhotographFiles
from bioclip_hc.evaluation.embedding_cache import EmbeddingCache
from bioclip_hc.evaluation.images import contents_of, embed_photographs
from bioclip_hc.evaluation.systems import System
from bioclip_hc.model import create_model


@pytest.fixture(scope="module")
def system(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    (folder / "tiny.json").write_text(json.dumps(ARCHITECTURES["tiny"]))
    torch.manual_seed(0)
    return System.load(create_model(folder / "tiny.json").save_pretrained(folder / "model"))


@pytest.fixture
def photographs(tmp_path):
    """Twelve files: 0 .. 8 of their own, 9 is 0 again, 10 is no picture, 11 is not there."""
    files = [tmp_path / f"{i}.jpg" for i in range(12)]
    for i, file in enumerate(files[:10]):
        file.write_bytes(picture(i % 9))
    files[10].write_text("<html>")
    return PhotographFiles(files, [LINEAGES[i % 4] for i in range(12)])


class Share:
    """A process among several, its messages by hand: `gather` gives what the others would have sent."""

    def __init__(self, rank, size, others=(), first=None):
        self.rank, self.size, self.first = rank, size, rank == 0
        self.others, self.said, self.sent = list(others), first, []

    def gather(self, value):
        self.sent.append(value)
        return [value, *(other.sent[len(self.sent) - 1] for other in self.others)] if self.first else []

    def from_first(self, value):
        return value

    def check(self):
        pass


def seen(monkeypatch, system):
    """The sizes of the batches that the model is asked for, from now on."""
    sizes = []
    encode = system.model.encode_image
    monkeypatch.setattr(system.model, "encode_image", lambda images: sizes.append(len(images)) or encode(images))
    return sizes


def kept(folder, system):
    return EmbeddingCache(folder / "cache", system.image_fingerprint, system.model.embed_dim)


def test_each_distinct_photograph_is_seen_once_and_kept(monkeypatch, system, photographs, tmp_path):
    contents = contents_of(photographs)
    assert len(contents.key) == 10
    assert contents.content.tolist() == [*range(9), 0, 9, -1]
    sizes = seen(monkeypatch, system)
    found = embed_photographs(system, photographs, contents, kept(tmp_path, system), batch_size=4)
    assert sizes == [4, 4, 4]  # ten contents, one of them no picture
    assert found.computed == 9
    assert found.indices.tolist() == list(range(10))
    assert torch.equal(found.vectors[0], found.vectors[9])
    assert len(torch.unique(found.vectors, dim=0)) == 9
    assert [photograph for photograph, _ in found.unread] == [10, 11]
    assert "not JPEG" in found.unread[0].reason
    assert "is not there" in found.unread[1].reason
    again = embed_photographs(system, photographs, contents, kept(tmp_path, system), batch_size=4)
    assert sizes == [4, 4, 4]  # the one that is no picture is tried, and no batch is made of it
    assert again.computed == 0
    assert torch.equal(again.vectors, found.vectors)
    assert again.unread == found.unread


def test_vectors_do_not_depend_on_what_they_are_computed_with(system, photographs):
    contents = contents_of(photographs)
    whole = embed_photographs(system, photographs, contents, batch_size=8)
    one = PhotographFiles(photographs.files[3:4], photographs.lineages[:1])
    alone = embed_photographs(system, one, contents_of(one), batch_size=8)
    assert torch.equal(alone.vectors[0], whole.vectors[3])
    assert not torch.equal(alone.vectors[0], torch.zeros(16))


def test_a_cache_that_has_some_gives_the_bits_of_one_that_has_none(system, photographs, tmp_path):
    """As after a kill: the rest is computed in other batches than it would have been."""
    contents = contents_of(photographs)
    whole = embed_photographs(system, photographs, contents, batch_size=4)
    with kept(tmp_path, system) as cache:
        cache.add([contents.key[i] for i in (1, 6)], whole.vectors[[1, 6]].numpy())
    found = embed_photographs(system, photographs, contents, kept(tmp_path, system), batch_size=4)
    assert found.computed == 7
    assert torch.equal(found.vectors, whole.vectors)


def test_what_the_cache_says_is_taken(system, photographs, tmp_path):
    contents = contents_of(photographs)
    with kept(tmp_path, system) as cache:
        cache.add(contents.key[:1], np.full((1, 16), 7, np.float32))
    found = embed_photographs(system, photographs, contents, kept(tmp_path, system))
    assert (found.vectors[[0, 9]] == 7).all()


def broken(monkeypatch, system, which):
    """The model makes no finite numbers of some of each batch."""
    encode = system.model.encode_image

    def encoded(images):
        vectors = encode(images).clone()
        vectors[which, 5] = float("nan")
        return vectors

    monkeypatch.setattr(system.model, "encode_image", encoded)


def test_what_is_not_finite_is_left_out_told_and_not_kept(monkeypatch, system, photographs, tmp_path):
    contents = contents_of(photographs)
    whole = embed_photographs(system, photographs, contents, batch_size=4)
    with monkeypatch.context() as patch:
        broken(patch, system, [0])
        found = embed_photographs(system, photographs, contents, kept(tmp_path, system), batch_size=4)
    assert found.indices.tolist() == [1, 2, 3, 5, 6, 7]
    assert found.vectors.isfinite().all()
    assert [photograph for photograph, _ in found.unread] == [0, 4, 8, 9, 10, 11]
    assert dict(found.unread)[9] == "model makes no finite numbers of it"
    again = embed_photographs(system, photographs, contents, kept(tmp_path, system), batch_size=4)
    assert again.computed == 3
    assert torch.equal(again.vectors, whole.vectors)


def test_what_is_not_finite_in_a_cache_is_not_taken(system, photographs, tmp_path):
    contents = contents_of(photographs)
    with kept(tmp_path, system) as cache:
        cache.add(contents.key[:1], np.full((1, 16), np.inf, np.float32))
    assert embed_photographs(system, photographs, contents, kept(tmp_path, system)).vectors.isfinite().all()


def test_a_model_that_makes_nothing_finite_is_an_error(monkeypatch, system, photographs):
    broken(monkeypatch, system, slice(None))
    with pytest.raises(ValueError, match=r"model can be asked for none of the 12 images; the first: .*0\.jpg: m"):
        embed_photographs(system, photographs, contents_of(photographs))


def test_workers_change_nothing(system, photographs):
    contents = contents_of(photographs)
    alone = embed_photographs(system, photographs, contents, batch_size=4)
    helped = embed_photographs(system, photographs, contents, batch_size=4, workers=2)
    assert torch.equal(alone.vectors, helped.vectors)
    assert alone.unread == helped.unread


def test_a_file_that_changes_meanwhile_is_not_taken_for_what_it_was(system, photographs, tmp_path):
    contents = contents_of(photographs)
    photographs.files[4].write_bytes(picture(99))
    found = embed_photographs(system, photographs, contents, kept(tmp_path, system))
    assert 4 not in found.indices
    assert "changed" in dict(found.unread)[4]
    assert not kept(tmp_path, system).look_up(contents.key[4:5])[0].any()


@pytest.mark.parametrize("size", [2, 3])
def test_shares_make_the_whole(system, photographs, size):
    shares = [Share(rank, size) for rank in range(1, size)]
    own = [contents_of(photographs, world=share) for share in shares]
    assert own == [None] * (size - 1)
    first = Share(0, size, shares)
    contents = contents_of(photographs, world=first)
    assert contents.content.tolist() == contents_of(photographs).content.tolist()
    for share in shares:
        assert embed_photographs(system, photographs, contents, world=NoCache(share), batch_size=4) is None
    found = embed_photographs(system, photographs, contents, world=NoCache(first), batch_size=4)
    whole = embed_photographs(system, photographs, contents, batch_size=4)
    assert torch.equal(found.vectors, whole.vectors)
    assert found.unread == whole.unread
    computed = [len(share.sent[-1][0]) for share in (first, *shares)]
    assert max(computed) < 9  # shared out, not repeated
    assert sum(computed) == 9


class NoCache:
    """A share whose first process found nothing in the cache."""

    def __init__(self, share):
        self.__dict__.update(rank=share.rank, size=share.size, first=share.first)
        self.gather, self.check = share.gather, share.check

    def from_first(self, value):
        return np.zeros(len(value), bool)
