"""Indexes and checksums beside shards: what is made, what is told, and what is never blessed."""

import os
import subprocess

import pytest
from shards_by_hand import robin, sample, write_tar

from bioclip_hc.data.checksums import SUMS, read_sums, sha256_of, write_sums
from bioclip_hc.data.index import index_file, kept_index
from bioclip_hc.data.seal import seal
from bioclip_hc.data.writer import write_shards


@pytest.fixture
def shards(tmp_path):
    return write_shards([sample(i) for i in range(6)], tmp_path, samples_per_shard=2)


def told(*arguments, **options):
    return [(change.path.name, change.what, change.mended) for change in seal(*arguments, **options)]


def flip(path, at=700):
    """Change a byte and nothing that the file system tells of."""
    stat, data = path.stat(), bytearray(path.read_bytes())
    data[at] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.parametrize("processes", [1, 2])
def test_a_folder_is_sealed_once(shards, tmp_path, processes):
    first = told(shards, processes)
    assert sorted(first) == sorted(
        (path.name, what, True) for path in shards for what in ("had no index that fits it", f"was not in {SUMS}")
    )
    assert all(kept_index(path) is not None for path in shards)
    subprocess.run(["sha256sum", "-c", "--strict", SUMS], cwd=tmp_path, check=True, capture_output=True)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert told(shards, processes) == []
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_check_changes_nothing(shards, tmp_path):
    assert len(told(shards, check=True)) == 6
    assert not any(mended for _, _, mended in told(shards, check=True))
    assert sorted(path.name for path in tmp_path.iterdir()) == [path.name for path in shards]


def test_a_changed_shard_is_not_blessed_unless_that_is_asked_for(shards, tmp_path):
    told(shards)
    sums = read_sums(tmp_path)
    flip(shards[1])
    shards[2].unlink()
    wrong = [(shards[1].name, f"is not what {SUMS} says"), (shards[2].name, f"is in {SUMS}, but not there")]
    for _ in range(2):
        assert told(shards[:2]) == [(*case, False) for case in wrong]
        assert read_sums(tmp_path) == sums
    assert told(shards[:2], check=True, accept=True) == [(*case, False) for case in wrong]
    assert told(shards[:2], accept=True) == [(*case, True) for case in wrong]
    assert read_sums(tmp_path) == {path.name: sha256_of(path) for path in shards[:2]}


def test_an_index_of_another_time_is_renewed(shards):
    told(shards)
    os.utime(shards[0], ns=(1, 1))
    index_file(shards[1]).write_text("{")
    assert told(shards) == [(path.name, "had no index that fits it", True) for path in shards[:2]]
    assert told(shards) == []


def test_a_shard_that_cannot_be_indexed_is_told_every_time(shards, tmp_path):
    bad = write_tar(tmp_path / "bad.tar", {"1.jpg": b"x"})
    told([*shards, bad])
    ((name, what, mended),) = told([*shards, bad])
    assert (name, mended) == ("bad.tar", False)
    assert what.startswith("cannot be indexed: ")


def test_other_lines_of_the_sums_are_left_alone(shards, tmp_path):
    others = {"README.md": "0" * 64, "other.tar": "1" * 64}
    write_sums(tmp_path, {**others, shards[0].name: sha256_of(shards[0]).upper()})
    write_tar(tmp_path / "other.tar", robin("1"))
    told(shards)
    assert others.items() < read_sums(tmp_path).items()
    assert len(read_sums(tmp_path)) == 5


NAMES = [
    "a.tar",
    "with blank.tar",
    "back\\slash.tar",
    "new\nline.tar",
    "both\\n\n.tar",
    "ü.tar",
    "\udcff.tar",
    "*.tar",
]


def test_any_name_is_written_as_sha256sum_does(tmp_path):
    for name in NAMES:
        (tmp_path / name).write_bytes(os.fsencode(name))
    sums = {name: sha256_of(tmp_path / name) for name in NAMES}
    write_sums(tmp_path, sums)
    assert read_sums(tmp_path) == sums
    done = subprocess.run(["sha256sum", "-c", "--strict", SUMS], cwd=tmp_path, check=False, capture_output=True)
    assert done.returncode == 0, done.stderr
    theirs = subprocess.run(["sha256sum", "--", *NAMES], cwd=tmp_path, check=True, capture_output=True).stdout
    (tmp_path / SUMS).write_bytes(theirs.replace(b"  a.tar", b" *./a.tar"))
    assert read_sums(tmp_path) == sums


@pytest.mark.parametrize("line", ["x", "0" * 64, "0" * 63 + "  a.tar", "g" * 64 + "  a", "0" * 64 + "  a\0.tar"])
def test_a_line_that_is_no_checksum_is_named(tmp_path, line):
    (tmp_path / SUMS).write_text(f"{'0' * 64}  a.tar\n{line}\n")
    with pytest.raises(ValueError, match=f"{SUMS}, line 2: not a SHA-256"):
        read_sums(tmp_path)


def test_a_damaged_tar_is_told_every_time_and_unusable_samples_are_noted(tmp_path):
    empty = tmp_path / "empty.tar"
    empty.write_bytes(b"")
    lacking = write_tar(tmp_path / "lacking.tar", robin("a") | {"b.taxonTag.txt": b"a photo of"})
    told([empty, lacking])
    damage, note = sorted(seal([empty, lacking]))
    assert (damage.path, damage.mended, damage.noted) == (empty, False, False)
    assert damage.what.startswith("is damaged in 1 places; the first: ")
    assert (note.path, note.noted) == (lacking, True)
    assert note.what.startswith("holds 1 unusable samples; the first: b: ")


def test_nothing_is_called_mended_that_was_not_written(shards, tmp_path):
    (tmp_path / SUMS).mkdir()
    changes = seal(shards)
    assert [next(changes).what for _ in shards] == ["had no index that fits it"] * 3
    with pytest.raises(OSError, match=f"{SUMS} cannot be written .*make the folder writable"):
        next(changes)


def test_a_link_to_nothing_is_named(tmp_path):
    (tmp_path / "a.tar").symlink_to("nowhere.tar")
    with pytest.raises(FileNotFoundError, match=r"a\.tar is a link to nowhere\.tar, which is not there; mend it"):
        told([tmp_path / "a.tar"])
