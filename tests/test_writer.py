"""Shards written: read back by both readers, the same bytes, whole or not at all."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import webdataset
from shards_by_hand import JPEG, ROBIN, ROBIN_TAG, SCORPION, sample

from bioclip_hc.data import shards
from bioclip_hc.data.sample import Sample
from bioclip_hc.data.shards import ShardSet
from bioclip_hc.data.writer import write_shards


def test_written_samples_are_read_back(tmp_path):
    webp = b"RIFF\x10\x00\x00\x00WEBPVP8 "
    png = b"\x89PNG\r\n\x1a\n...."
    written = [
        sample(0, common="American robin"),
        sample(1, SCORPION),
        sample(2, common="Dr. Brown's thrush."),
        Sample("birds/3", png, ROBIN),
        Sample("4 ü", webp, ROBIN, "Wanderdrossel"),
    ]
    paths = write_shards(written, tmp_path / "out", samples_per_shard=2, prefix="50%d")
    assert [path.name for path in paths] == ["50%d-000000.tar", "50%d-000001.tar", "50%d-000002.tar"]
    found = ShardSet(paths)
    assert [found.read(i) for i in range(len(found))] == written
    assert found.bad == []
    assert [found.lineages[i] for i in found.lineage_index] == [s.lineage for s in written]
    assert len(found.lineages) == 2
    assert [found.shard(i) for i in range(5)] == [paths[0]] * 2 + [paths[1]] * 2 + [paths[2]]


def test_webdataset_reads_what_we_write(tmp_path):
    written = [sample(i, common="robin") for i in range(5)]
    paths = write_shards(written, tmp_path, samples_per_shard=2)
    stream = webdataset.WebDataset([str(path) for path in paths], shardshuffle=False)
    for expected, found in zip(written, stream, strict=True):
        assert found["__key__"] == expected.key
        assert found["jpg"] == expected.image
        assert found["taxontag.txt"].decode() == ROBIN_TAG
        assert found["sci.txt"] == b"a photo of Turdus migratorius."
        assert found["com.txt"] == b"a photo of robin."


def test_the_same_samples_give_the_same_bytes(tmp_path):
    one, other = (write_shards([sample(i) for i in range(3)], tmp_path / name) for name in "ab")
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in other]
    assert ShardSet(one).fingerprints() == ShardSet(other).fingerprints()
    both = ShardSet([*ShardSet(one).paths, *ShardSet(other).paths]).fingerprints()
    assert len(both) == len(ShardSet(one).paths) + len(ShardSet(other).paths)  # of one name, each by its own


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([], "no samples"),
        ([sample(1), sample(1)], "'000001' occurs twice"),
        ([Sample("a.b", JPEG, ROBIN)], "'a.b' would not be read back"),
        ([Sample("../a", JPEG, ROBIN)], "would not be read back"),
        ([Sample("/a", JPEG, ROBIN)], "would not be read back"),
        ([Sample("", JPEG, ROBIN)], "would not be read back"),
        ([Sample("a/", JPEG, ROBIN)], "would not be read back"),
        ([Sample("a", JPEG, ("",) * 7)], "empty lineage"),
        ([Sample("a", JPEG, ("Animalia", "my order here", *[""] * 5))], "cannot be written"),
        ([Sample("a", b"<html>", ROBIN)], "not JPEG, PNG or WebP, it begins with b'<html>'"),
    ],
)
def test_unwritable_samples_are_refused_and_leave_nothing(tmp_path, samples, message):
    with pytest.raises(ValueError, match=message):
        write_shards(samples, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_shards_is_not_written_to(tmp_path):
    (path,) = write_shards([sample(0)], tmp_path)
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match=r"already holds 1 shards .*another folder"):
        write_shards([sample(1)], tmp_path)
    assert path.read_bytes() == before


def test_a_killed_build_leaves_no_shard(tmp_path):
    script = """
        import itertools, sys
        from bioclip_hc.data.sample import Sample
        from bioclip_hc.data.writer import write_shards
        def samples():
            for i in itertools.count():
                if i == 25:
                    print("written", flush=True)
                    sys.stdin.read()
                yield Sample(f"{i:06d}", b"\\xff\\xd8\\xff" * 9, ("Animalia",) + ("",) * 6)
        write_shards(samples(), sys.argv[1], samples_per_shard=10)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)]
    root = Path(shards.__file__).parents[2]
    env = os.environ | {"PYTHONPATH": str(root)}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env) as build:
        assert build.stdout is not None
        assert build.stdout.readline() == b"written\n"
        build.send_signal(signal.SIGKILL)
    assert list(tmp_path.glob("*.tar")) == []
    assert len(write_shards([sample(0)], tmp_path)) == 1
