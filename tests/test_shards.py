"""Random access to the samples of many shards."""

import multiprocessing
import os
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from shards_by_hand import JPEG, ROBIN, SCORPION, robin, sample, write_tar

from bioclip_hc.data import shards
from bioclip_hc.data.names import NameTable
from bioclip_hc.data.shards import ShardSet
from bioclip_hc.data.writer import write_shards
from bioclip_hc.taxonomy import Taxonomy


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


# -- names looked up -----------------------------------------------------------------------------------------


@pytest.fixture
def table() -> NameTable:
    other = ("Plantae", "Tracheophyta", "", "", "", "Turdus", "")
    return NameTable(Taxonomy.from_lineages([ROBIN, SCORPION, other], ["American robin", "", ""]))


def flat(key: str, text: str) -> dict[str, bytes]:
    return {f"{key}.jpg": JPEG, f"{key}.txt": text.encode()}


def test_flat_captions_are_looked_up_and_the_rest_is_bad_with_its_reason(tmp_path, table):
    """Tagged, flat and unresolved samples of two shards: all counted, in order, none twice, none guessed."""
    one = robin("a") | flat("b", "Turdus migratorius") | flat("c", "Turdus") | flat("d", "a photo of a cat.")
    two = flat("e", "Animalia Arthropoda Arachnida Scorpiones") | flat("f", "american robin") | {"g.jpg": JPEG}
    paths = [
        write_tar(tmp_path / "1.tar", one),
        write_tar(tmp_path / "2.tar", two | flat("h", "Turdus") | flat("i", "american robin")),
    ]
    for _ in range(2):  # indexed, then from the files of the first time
        found = ShardSet(paths, table)
        samples = [found.read(i) for i in range(len(found))]
        assert [s.key for s in samples] == ["a", "b", "e", "f", "i"]
        assert [s.lineage for s in samples] == [ROBIN, ROBIN, SCORPION, ROBIN, ROBIN]
        assert [s.common_name for s in samples] == ["", "American robin", "", "American robin", "American robin"]
        assert [s.image for s in samples] == [JPEG] * 5
        assert [(Path(b.shard).name, b.key, b.reason.split(":")[0]) for b in found.bad] == [
            ("1.tar", "c", "name 'Turdus' is ambiguous"),
            ("1.tar", "d", "name 'cat' is not in the taxonomy"),
            ("2.tar", "g", "no caption 'taxonTag.txt', nor a flat one; members found"),
            ("2.tar", "h", "name 'Turdus' is ambiguous"),
        ]
        counted = {"tagged": 1, "path": 1, "name": 1, "common name": 2, "synonym": 0}
        assert found.resolution.resolved == counted
        assert found.resolution.unresolved == {"ambiguous": 2, "not in the taxonomy": 1}
        assert found.resolution.flat == 7
        assert found.unresolved(table.taxonomy) == ""
        assert {found.taxonomy().path(t)[-1] for t in (0, found.taxonomy().size - 1)} == {"Animalia", "migratorius"}


def test_shards_of_flat_captions_alone_need_a_taxonomy(tmp_path):
    path = write_tar(tmp_path / "s.tar", flat("a", "Turdus") | flat("b", "Rosa"))
    with pytest.raises(
        ValueError, match=r"s\.tar: none .* \(members found: jpg, txt\).*--data\.taxonomy .*NameTable"
    ):
        ShardSet(path)


def test_without_a_taxonomy_a_flat_caption_among_tagged_ones_is_bad(tmp_path):
    found = ShardSet(write_tar(tmp_path / "s.tar", robin("a") | flat("b", "Turdus migratorius")))
    assert len(found) == 1
    assert [record.reason for record in found.bad] == [
        "no caption 'taxonTag.txt', and no taxonomy to look txt up in"
    ]
    assert found.resolution.unresolved == {"no taxonomy": 1}


def test_where_no_name_resolves_the_first_reason_is_told(tmp_path, table):
    path = write_tar(tmp_path / "s.tar", flat("a", "cat") | flat("b", "dog"))
    with pytest.raises(ValueError, match=r"no usable sample in .*the first of 2 reasons: name 'cat' is not in the"):
        ShardSet(path, table)


def test_fingerprints_tell_where_and_how_large_the_samples_are(tmp_path):
    """Samples of the same keys and names, but elsewhere in the shard, or cut otherwise, are not the same shard."""

    def prints(folder: str, members: list[tuple[str, bytes]]) -> dict[str, str]:
        (tmp_path / folder).mkdir()
        return ShardSet(write_tar(tmp_path / folder / "s.tar", members)).fingerprints()

    members = [*robin("a").items(), *robin("b").items()]
    plain = prints("plain", members)
    assert prints("again", members) == plain
    assert prints("moved", [("README", b"no sample"), *members]) != plain
    assert prints("second moved", [*members[:2], ("README", b"no sample"), *members[2:]]) != plain
    assert prints("longer", [("a.jpg", JPEG + b"x"), *members[1:]]) != plain


def test_fingerprints_tell_what_the_names_resolved_to(tmp_path, table):
    """So that a run does not go on with another table, but does with one that changes nothing of its samples."""
    path = write_tar(
        tmp_path / "s.tar", robin("a") | flat("b", "Merula") | flat("c", "Grus") | flat("d", "American robin")
    )

    def prints(*rows: str) -> dict[str, str]:
        synonyms = tmp_path / "synonyms.csv"
        synonyms.write_text("\n".join(["synonym,accepted", *rows, ""]))
        return ShardSet(path, NameTable(table.taxonomy, synonyms)).fingerprints()

    merula = prints("Merula,Turdus migratorius")
    assert prints("Ciconia,Scorpiones", "Merula,Turdus migratorius") == merula
    assert prints("Merula,Scorpiones") != merula
    assert prints("Merula,Turdus migratorius", "Grus,Scorpiones") != merula
    assert prints() != merula
