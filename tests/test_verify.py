"""Whatever is wrong with a shard is a finding: nothing stops the look at the others, nothing is written."""

import os
import random
import shutil
from collections import Counter

import pytest
from shards_by_hand import ROBIN_TAG, robin, write_tar
from small_run import LINEAGES, picture

from bioclip_hc.data import verify as module
from bioclip_hc.data.checksums import SUMS
from bioclip_hc.data.decode import Photograph
from bioclip_hc.data.index import index_file, shard_index
from bioclip_hc.data.names import NameTable
from bioclip_hc.data.sample import Sample
from bioclip_hc.data.seal import seal
from bioclip_hc.data.verify import Finding, verify
from bioclip_hc.data.writer import write_shards
from bioclip_hc.taxonomy import Taxonomy

PICTURES = [picture(i) for i in range(6)]


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    samples = [Sample(f"{i:04d}", PICTURES[i % 6], LINEAGES[i % 6]) for i in range(12)]
    list(seal(write_shards(samples, folder, samples_per_shard=4)))
    return folder


@pytest.fixture
def folder(original, tmp_path):
    """A copy of three sealed shards with four samples each."""
    return shutil.copytree(original, tmp_path / "shards")


def look(folder, processes=1, **options):
    found: list[Finding] = []
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.iterdir()}
    verdict = verify(sorted(folder.glob("*.tar")), processes, on_finding=found.append, **options)
    assert {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.iterdir()} == before
    assert Counter(finding.kind for finding in found) == kinds(verdict)
    return verdict, found


def kinds(verdict):
    counts = Counter()
    for (kind, _), (count, _) in verdict.findings.items():
        counts[kind] += count
    return counts


def overwrite(path, at, data):
    stat = path.stat()
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.parametrize("processes", [1, 2])
def test_whole_shards_are_whole(folder, processes):
    verdict, found = look(folder, processes)
    assert found == []
    assert (verdict.shards, verdict.samples, verdict.decoded) == (3, 12, 12)
    assert verdict.lineages == Counter(dict.fromkeys(LINEAGES, 2))
    assert (verdict.stale, verdict.unsigned, verdict.not_looked_up) == (0, [], 0)


def test_a_damaged_picture_is_named(folder):
    shard = folder / "shard-000001.tar"
    overwrite(shard, shard_index(shard).offset[2] + 10, b"\0" * 400)
    verdict, found = look(folder, 2)
    assert [(f.kind, f.key) for f in found] == [("checksum", ""), ("picture", "0006")]
    assert {f.shard for f in found} == {str(shard)}
    assert (verdict.samples, verdict.decoded) == (12, 11)


def test_an_index_that_lies_is_found_though_its_stamp_fits(folder):
    cache = index_file(folder / "shard-000000.tar")
    cache.write_text(cache.read_text().replace("merula", "pilaris"))
    assert "pilaris" in str(shard_index(folder / "shard-000000.tar").labels)  # a reader is deceived
    _, (finding,) = look(folder)
    assert (finding.kind, finding.shard) == ("index", str(folder / "shard-000000.tar"))


def test_an_index_of_another_time_is_no_error_but_told(folder):
    os.utime(folder / "shard-000000.tar", ns=(1, 1))
    index_file(folder / "shard-000001.tar").unlink()
    verdict, found = look(folder)
    assert (found, verdict.stale) == ([], 2)


def test_shards_and_sums_that_do_not_match(folder):
    (folder / "shard-000002.tar").unlink()
    write_tar(folder / "other.tar", robin("other", jpg=PICTURES[0]))
    _, found = look(folder)
    assert {(f.kind, os.path.basename(f.shard), f.reason) for f in found} == {
        ("checksum", "shard-000002.tar", f"the shard is in {SUMS}, but not there"),
        ("checksum", "other.tar", f"the shard is not in {SUMS}"),
    }
    (folder / SUMS).write_text("what?")
    _, (finding,) = look(folder)
    assert (finding.kind, "line 1: not a SHA-256" in finding.reason) == ("checksum", True)
    (folder / SUMS).unlink()
    verdict, found = look(folder)
    assert (found, verdict.unsigned) == ([], [folder])


def test_a_key_in_two_shards_is_found(folder):
    samples = [Sample(key, PICTURES[0], LINEAGES[0]) for key in ("0001", "new", "0007")]
    write_shards(samples, folder / "more")
    shutil.move(folder / "more" / "shard-000000.tar", folder / "z.tar")
    (folder / "more").rmdir()
    (folder / SUMS).unlink()
    _, found = look(folder)
    told = sorted((f.kind, os.path.basename(f.shard), f.key) for f in found)
    assert told == [("key", "z.tar", "0001"), ("key", "z.tar", "0007")]
    assert all("is in '" in f.reason and "shard-00000" in f.reason for f in found)


def test_what_samples_lack(folder):
    tag = ROBIN_TAG.encode()
    members = {
        "1.jpg": PICTURES[0],
        "2.taxonTag.txt": tag,
        "3.jpg": PICTURES[0], "3.taxonTag.txt": b"a photo of a bird",
        "4.jpg": b"", "4.taxonTag.txt": tag,
        "5.jpg": b"<html>", "5.taxonTag.txt": tag,
        "6.jpg": PICTURES[0], "6.taxonTag.txt": b"\xff",
        "7.jpg": PICTURES[0], "7.taxonTag.txt": tag,
    }  # fmt: skip
    write_tar(folder / "shard-000000.tar", members)
    (folder / SUMS).unlink()
    verdict, found = look(folder)
    assert [(f.kind, f.key) for f in found] == [
        ("sample", "1"), ("sample", "2"), ("sample", "3"), ("sample", "6"), ("picture", "4"), ("picture", "5"),
    ]  # fmt: skip
    assert verdict.decoded == 9


def test_flat_captions_are_looked_up_where_there_is_a_table(folder):
    members = {}
    for key, name in (("1", "Turdus merula"), ("2", "Nemo nemo"), ("3", "Nemo nemo")):
        members |= {f"{key}.jpg": PICTURES[0], f"{key}.txt": f"a photo of {name}.".encode()}
    write_tar(folder / "shard-000000.tar", members)
    (folder / SUMS).unlink()
    verdict, found = look(folder)
    assert (found, verdict.not_looked_up, verdict.decoded) == ([], 3, 11)
    verdict, found = look(folder, names=NameTable(Taxonomy.from_lineages(LINEAGES)))
    assert [(f.kind, f.key) for f in found] == [("name", "2"), ("name", "3")]
    assert verdict.not_looked_up == 0
    assert verdict.lineages[LINEAGES[0]] == 1 + 1  # shard 1 has one, and 1.txt


def no_tar(path):
    path.write_bytes(random.Random(0).randbytes(5000))


DAMAGE = {
    "empty": lambda path: path.write_bytes(b""),
    "no tar": no_tar,
    "cut": lambda path: path.write_bytes(path.read_bytes()[:3000]),
    "zeros": lambda path: path.write_bytes(bytes(20_000)),
    "folder": lambda path: (path.unlink(), path.mkdir()),
    "gone": lambda path: (path.unlink(), path.symlink_to("nowhere")),
    "no captions": lambda path: (path.unlink(), write_tar(path, {"1.jpg": PICTURES[0]})),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_shard_that_is_no_shard(folder, kind):
    path = folder / "shard-000001.tar"
    path.chmod(0o644)
    DAMAGE[kind](path)
    found: list[Finding] = []
    verdict = verify(sorted(folder.glob("*.tar")), on_finding=found.append)
    assert {finding.shard for finding in found} == {str(path)}
    assert verdict.shards == 3
    assert verdict.decoded >= 8  # those of the other two


def test_damage_at_random_is_found_and_never_an_error(folder):
    rng = random.Random(0)
    path = folder / "shard-000001.tar"
    whole = path.read_bytes()
    path.chmod(0o644)
    for _ in range(60):
        data = bytearray(whole)
        if rng.random() < 0.3:
            del data[rng.randrange(len(data)) :]
        else:
            at = rng.randrange(len(data))
            data[at : at + rng.choice((1, 8, 600))] = rng.randbytes(rng.choice((1, 8, 600)))
        if bytes(data) == whole:
            continue
        path.write_bytes(data)
        verdict = verify(sorted(folder.glob("*.tar")))
        assert kinds(verdict)["checksum"] == 1
        assert verdict.decoded >= 8


def test_a_picture_that_kills_its_process_is_named(folder, monkeypatch):
    def deadly(data):
        if data == PICTURES[3]:
            os.kill(os.getpid(), 9)
        return Photograph(data)

    monkeypatch.setattr(module, "Photograph", deadly)
    verdict, found = look(folder, 2)
    assert [(f.kind, f.key) for f in found] == [("picture", "0003"), ("picture", "0009")]
    assert (verdict.samples, verdict.decoded) == (12, 10)


def test_cases_of_one_cause_are_counted_together(folder):
    for number in (0, 1, 2):
        shard = folder / f"shard-00000{number}.tar"
        overwrite(shard, shard_index(shard).offset[0], b"<html>" + bytes([65 + number]))
    verdict, found = look(folder)
    ((count, first),) = [case for (kind, _), case in verdict.findings.items() if kind == "picture"]
    assert (count, first) == (3, found[[f.kind for f in found].index("picture")])
