"""Random access to the samples of many shards."""

import multiprocessing
import os
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from shards_by_hand import JPEG, robin, sample, write_tar

from bioclip_hc.data import shards
from bioclip_hc.data.shards import ShardSet
from bioclip_hc.data.writer import write_shards


def test_access_is_random_and_bounded(tmp_path):
    found = ShardSet(write_shards([sample(i) for i in range(7)], tmp_path, samples_per_shard=3))
    order = np.random.default_rng(0).permutation(7)
    assert [found.read(i).key for i in order] == [f"{i:06d}" for i in order]
    for outside in (-1, 7):
        with pytest.raises(IndexError, match=rf"in \[0, 7\), got {outside}"):
            found.read(outside)


def keys_read(found: ShardSet) -> list[str]:
    return [found.read(i).image[-1:].hex() for i in range(len(found))]


def test_threads_and_copies_read_the_same(tmp_path):
    found = ShardSet(write_shards([sample(i) for i in range(40)], tmp_path, samples_per_shard=4))
    expected = keys_read(found)
    copy = pickle.loads(pickle.dumps(found))
    assert copy._descriptors == {}
    assert keys_read(copy) == expected
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(keys_read, [found] * 16)) == [expected] * 16
        assert list(pool.map(keys_read, [pickle.loads(pickle.dumps(found))] * 16)) == [expected] * 16


def exit_unless_read(found: ShardSet, expected: list[str]) -> None:
    for _ in range(20):
        if keys_read(found) != expected:
            sys.exit(1)


def test_forked_workers_share_descriptors_without_disturbing_each_other(tmp_path):
    found = ShardSet(write_shards([sample(i) for i in range(40)], tmp_path, samples_per_shard=4))
    expected = keys_read(found)
    fork = multiprocessing.get_context("fork")
    workers = [fork.Process(target=exit_unless_read, args=(found, expected)) for _ in range(3)]
    for worker in workers:
        worker.start()
    exit_unless_read(found, expected)
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]


def test_descriptors_are_bounded_and_given_back(tmp_path, monkeypatch):
    def count() -> int:
        return len(os.listdir("/proc/self/fd"))

    monkeypatch.setattr(shards, "MAX_OPEN_SHARDS", 2)
    paths = write_shards([sample(i) for i in range(6)], tmp_path, samples_per_shard=1)
    before = count()
    found = ShardSet(paths)
    keys_read(found)
    keys_read(found)
    assert count() == before + 2
    found.close()
    assert count() == before
    keys_read(found)
    del found
    assert count() == before


def test_a_shard_that_shrank_is_an_error_with_its_name(tmp_path):
    (path,) = write_shards([sample(i) for i in range(3)], tmp_path)
    found = ShardSet(path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(OSError, match=r"shard-000000\.tar: read \d+ of 85 bytes .* has changed"):
        found.read(2)


def test_the_bad_samples_of_all_shards_are_listed_with_their_shard(tmp_path):
    one = write_tar(tmp_path / "1.tar", robin("a") | {"b.jpg": JPEG})
    two = write_tar(tmp_path / "2.tar", robin("c") | {"d.jpg": JPEG})
    bad = ShardSet([two, one]).bad
    assert [(record.shard, record.key) for record in bad] == [(str(one), "b"), (str(two), "d")]
