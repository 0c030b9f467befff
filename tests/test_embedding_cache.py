"""The cache of image embeddings: what it finds, what it does not trust, and many writers."""

import multiprocessing
import os

import numpy as np
import pytest

from bioclip_hc.evaluation.embedding_cache import EmbeddingCache, default_embedding_cache

SYSTEM, OTHER = "ab" * 32, "cd" * 32
WIDTH = 5
RECORD = 32 + 4 * WIDTH + 4


def keys(start, stop):
    return [i.to_bytes(2, "little") * 16 for i in range(start, stop)]


def rows(start, stop):
    return np.random.default_rng(start).normal(size=(stop - start, WIDTH)).astype(np.float32)


@pytest.fixture
def place(tmp_path):
    """A folder whose first part has 0 .. 9."""
    with EmbeddingCache(tmp_path, SYSTEM, WIDTH) as cache:
        cache.add(keys(0, 6), rows(0, 6))
        cache.add(keys(6, 10), rows(6, 10))
    return tmp_path


def part(folder):
    (found,) = (folder / SYSTEM).glob("*.part")
    return found


def look_up(folder, wanted, system=SYSTEM, width=WIDTH):
    told = []
    found, vectors = EmbeddingCache(folder, system, width, told.append).look_up(wanted)
    return found.tolist(), vectors, told


def test_what_was_kept_is_found_bit_by_bit(place):
    wanted = [*keys(8, 12), *keys(0, 6), *keys(8, 9)]  # one twice
    found, vectors, told = look_up(place, wanted)
    assert found == [True, True, False, False, *[True] * 6, True]
    np.testing.assert_array_equal(vectors[4:10], rows(0, 6))
    np.testing.assert_array_equal(vectors[[0, 1, 10]], rows(6, 10)[[2, 3, 2]])
    assert not vectors[2:4].any()
    assert told == []


def test_another_system_or_an_empty_folder_has_nothing(place, tmp_path):
    assert look_up(place, keys(0, 10), OTHER)[0] == [False] * 10
    assert look_up(tmp_path / "none", keys(0, 2))[0] == [False] * 2
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("cut", [1, RECORD - 1])
def test_a_torn_tail_is_told_once_and_the_rest_is_used(place, cut):
    path = part(place)
    os.truncate(path, path.stat().st_size - cut)
    found, vectors, told = look_up(place, keys(0, 10))
    assert found == [True] * 9 + [False]
    np.testing.assert_array_equal(vectors[:6], rows(0, 6))
    assert len(told) == 1
    assert "ends within a record" in told[0]
    assert look_up(place, keys(0, 10))[2] == []
    assert [p.name for p in (place / SYSTEM).iterdir()] == [path.name]


def test_any_flipped_byte_of_a_record_is_found(place):
    path = part(place)
    whole = path.read_bytes()
    start = len(whole) - 10 * RECORD
    for at in range(start + 3 * RECORD, start + 4 * RECORD):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << (at % 8)
        path.write_bytes(damaged)
        found, vectors, told = look_up(place, keys(0, 10))
        assert found == [True] * 3 + [False] + [True] * 6, at
        np.testing.assert_array_equal(vectors[3], 0)
        np.testing.assert_array_equal(vectors[6:], rows(6, 10))
        assert "has 1 damaged records" in told[0]


def test_a_part_of_another_header_is_left_alone(place):
    """Any byte of it: another version, system or width, or no part at all."""
    path = part(place)
    whole = path.read_bytes()
    for at in range(len(whole) - 10 * RECORD):
        damaged = whole[:at] + bytes([whole[at] ^ 16]) + whole[at + 1 :]
        path.write_bytes(damaged)
        found, _, told = look_up(place, keys(0, 10))
        assert not any(found)
        assert "is no part of this cache" in told[0]
        assert path.read_bytes() == damaged
    path.write_bytes(whole)
    (place / SYSTEM / "pickle.part").write_bytes(b"\x80\x04.")
    os.mkfifo(place / SYSTEM / "pipe.part")
    (place / SYSTEM / "folder.part").mkdir()
    found, _, told = look_up(place, keys(0, 10))
    assert all(found)
    assert len(told) == 1
    assert "pickle.part" in told[0]


@pytest.mark.parametrize("size", [0, 1, 40])
def test_a_part_that_has_just_begun_is_not_called_foreign(place, size):
    """Nor if its writer was killed then."""
    begun = place / SYSTEM / "begun.part"
    begun.write_bytes(part(place).read_bytes()[:size])
    found, _, told = look_up(place, keys(0, 10))
    assert all(found)
    assert told == []


def test_a_part_that_is_being_written_is_not_called_damaged(place):
    before = part(place)
    with EmbeddingCache(place, SYSTEM, WIDTH) as cache:
        cache.add(keys(10, 12), rows(10, 12))
        (path,) = set((place / SYSTEM).glob("*.part")) - {before}
        with path.open("ab") as file:
            file.write(b"half a record")
        size = path.stat().st_size
        found, _, told = look_up(place, keys(0, 12))
        assert all(found)
        assert told == []
        assert path.stat().st_size == size
    assert "ends within a record" in look_up(place, keys(0, 12))[2][0]


def test_a_folder_that_cannot_be_written_costs_the_cache_only(tmp_path):
    (tmp_path / "file").write_text("")
    told = []
    cache = EmbeddingCache(tmp_path / "file", SYSTEM, WIDTH, told.append)
    for _ in range(2):
        cache.add(keys(0, 2), rows(0, 2))
    assert len(told) == 1
    assert "embeddings are not kept" in told[0]
    assert cache.look_up(keys(0, 2))[0].tolist() == [False] * 2


def write(folder, first):
    with EmbeddingCache(folder, SYSTEM, WIDTH) as cache:
        for start in range(first, first + 100, 7):
            cache.add(keys(start, start + 7), rows(start, start + 7))


def test_processes_write_beside_each_other(tmp_path):
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=write, args=(tmp_path, first)) for first in (0, 0, 200)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
        assert writer.exitcode == 0
    found, vectors, told = look_up(tmp_path, keys(0, 305))
    assert found == [True] * 105 + [False] * 95 + [True] * 105
    np.testing.assert_array_equal(vectors[:7], rows(0, 7))
    assert told == []


def test_it_lies_in_the_users_cache(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert str(default_embedding_cache()) == "/somewhere/bioclip_hc/embeddings"
