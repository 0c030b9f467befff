"""Captions, shard files, the index under damage and attack, random access, quarantine."""

import io
import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import tarfile
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import webdataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bioclip_hc.data import shards
from bioclip_hc.data.shards import (
    Quarantine,
    Sample,
    ShardSet,
    build_index,
    expand_shards,
    format_taxon_tag,
    parse_taxon_tag,
    scientific_name,
    shard_index,
    write_shards,
)
from bioclip_hc.taxonomy import RANKS, as_lineage

ROBIN = ("Animalia", "Chordata", "Aves", "", "Turdidae", "Turdus", "migratorius")
SCORPION = ("Animalia", "Arthropoda", "Arachnida", "Scorpiones", "", "", "")
JPEG = b"\xff\xd8\xff\xe0" + b"jpeg" * 20
ROBIN_TAG = (
    "a photo of kingdom Animalia phylum Chordata class Aves order  family Turdidae "
    "genus Turdus species migratorius."
)


def sample(i: int, lineage=ROBIN, common="", image=JPEG) -> Sample:
    return Sample(f"{i:06d}", image + bytes([i % 256]), lineage, common)


def write_tar(path: Path, members: dict[str, bytes] | list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items() if isinstance(members, dict) else members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def robin(key: str, **other: bytes) -> dict[str, bytes]:
    members = {"jpg": JPEG, "taxonTag.txt": ROBIN_TAG.encode()} | other
    return {f"{key}.{extension}": data for extension, data in members.items()}


# -- captions


names = st.one_of(
    st.just(""),
    st.sampled_from(
        ["sp.", "× hybridus", "güntheri", '"Candidatus" x', "cf. rubra var. alba", "O'Brien", "a..", "."]
    ),
    st.text(max_size=20).map(lambda text: as_lineage([text] * 7)[0]),
)


@given(st.tuples(*[names] * 7))
def test_captions_round_trip_or_are_refused(lineage):
    if any(word in RANKS for name in lineage for word in name.split(" ")):
        with pytest.raises(ValueError, match="cannot be written as a tagged caption"):
            format_taxon_tag(lineage)
    else:
        assert parse_taxon_tag(format_taxon_tag(lineage)) == lineage


def test_the_caption_is_the_one_of_treeoflife():
    assert format_taxon_tag(ROBIN) == ROBIN_TAG
    assert parse_taxon_tag(ROBIN_TAG + "\n") == ROBIN
    assert format_taxon_tag(SCORPION).endswith("order Scorpiones family  genus  species .")


def test_a_missing_tag_is_an_unknown_rank():
    """Some shards of TreeOfLife-10M's kind drop the tags of unknown ranks instead of keeping them empty."""
    text = "a photo of kingdom Animalia class Aves genus Turdus species migratorius."
    assert parse_taxon_tag(text) == ("Animalia", "", "Aves", "", "", "Turdus", "migratorius")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not"),
        ("a photo of a robin", "is not"),
        ("a photo of a robin.", "does not begin with a rank"),
        ("kingdom Animalia.", "is not"),
        ("a photo of Animalia phylum Chordata.", "does not begin with a rank"),
        ("a photo of kingdom Animalia class Aves phylum Chordata.", "out of order"),
        ("a photo of kingdom Animalia kingdom Plantae.", "twice"),
        ("a photo of.", "is not"),
        ("a photo of .", "does not begin with a rank"),
    ],
)
def test_other_captions_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_taxon_tag(text)


@given(st.text(max_size=200))
def test_no_text_breaks_the_parser(text):
    for caption in (text, f"a photo of {text}.", f"a photo of kingdom {text}."):
        try:
            lineage = parse_taxon_tag(caption)
        except ValueError:
            continue
        assert len(lineage) == 7


def test_a_lineage_that_is_not_clean_is_refused():
    with pytest.raises(ValueError, match="reads back as"):
        format_taxon_tag((" Animalia", *[""] * 6))


def test_scientific_names():
    assert scientific_name(ROBIN) == "Turdus migratorius"
    assert scientific_name(SCORPION) == "Scorpiones"
    assert scientific_name(("Animalia", "", "", "", "", "Macropus", "")) == "Macropus"
    assert scientific_name(("",) * 7) == ""


# -- writing


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
        from bioclip_hc.data.shards import Sample, write_shards
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


# -- the index


def test_every_bad_sample_is_named_once_with_its_reason(tmp_path):
    members = [
        *robin("good").items(),
        *robin("dir.d/also").items(),
        ("no_image.taxonTag.txt", ROBIN_TAG.encode()),
        ("gif.gif", b"GIF89a"),
        ("gif.taxonTag.txt", ROBIN_TAG.encode()),
        ("no_caption.jpg", JPEG),
        *robin("unparsable", **{"taxonTag.txt": b"a robin"}).items(),
        *robin("latin1", **{"taxonTag.txt": ROBIN_TAG.replace("Aves", "Avés").encode("latin-1")}).items(),
        *robin("empty", **{"taxonTag.txt": format_taxon_tag(("",) * 7).encode()}).items(),
        *robin("good").items(),
        *robin("long", **{"taxonTag.txt": b"x" * (shards.MAX_TEXT_BYTES + 1)}).items(),
        *robin("../up").items(),
        *robin("/root").items(),
        ("README", b"no sample"),
        ("._good.jpg", b"a Mac's shadow of good.jpg"),
        ("dir.d/._also.jpg", b"another"),
    ]
    index = build_index(write_tar(tmp_path / "s.tar", members))
    assert index.keys == ["good", "dir.d/also"]
    reasons = dict(index.bad)
    assert len(reasons) == len(index.bad)
    assert "no image" in reasons["no_image"]
    assert "members found: gif, taxontag.txt" in reasons["gif"]
    assert "no caption 'taxonTag.txt'; members found: jpg" in reasons["no_caption"]
    assert "is not" in reasons["unparsable"]
    assert "taxonTag.txt is not UTF-8" in reasons["latin1"]
    assert reasons["empty"] == "empty lineage"
    assert reasons["good"] == "duplicate key"
    assert "is larger than" in reasons["long"]
    assert "unsafe name" in reasons["../up"]
    assert "unsafe name" in reasons["/root"]


def test_an_oversized_image_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "MAX_IMAGE_BYTES", 100)
    members = robin("small") | robin("large", jpg=JPEG * 2)
    index = build_index(write_tar(tmp_path / "s.tar", members))
    assert index.keys == ["small"]
    assert index.bad == [("large", f"image of {2 * len(JPEG)} bytes is larger than 100")]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_only_regular_members_are_read(tmp_path, kind):
    path = tmp_path / "s.tar"
    with tarfile.open(path, "w") as tar:
        for name, data in robin("good").items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for name in ("evil.jpg", "evil"):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
        info = tarfile.TarInfo("evil.taxonTag.txt")
        info.size = len(ROBIN_TAG)
        tar.addfile(info, io.BytesIO(ROBIN_TAG.encode()))
    index = build_index(path)
    assert index.keys == ["good"]
    assert ("evil", "evil.jpg: not a regular file") in index.bad
    assert ("evil", "not a regular file") in index.bad


def test_common_names_that_stand_in_for_missing_ones_are_dropped(tmp_path):
    """TreeOfLife-10M writes the scientific name, or the whole path, into com.txt where it has no common name."""
    members = (
        robin("a", **{"com.txt": b"a photo of American robin."})
        | robin("b", **{"com.txt": b"a photo of Turdus migratorius."})
        | robin("c", **{"com.txt": b"a photo of Animalia Chordata Aves Turdidae Turdus migratorius."})
        | robin("d")
    )
    found = ShardSet(write_tar(tmp_path / "s.tar", members))
    assert [found.read(i).common_name for i in range(4)] == ["American robin", "", "", ""]
    assert len(found.lineages) == 1


def test_a_shard_without_captions_names_what_it_holds(tmp_path):
    path = write_tar(tmp_path / "s.tar", {"a.jpg": JPEG, "a.txt": b"robin", "b.jpg": JPEG, "b.json": b"{}"})
    with pytest.raises(ValueError, match=r"s\.tar: none of its 2 samples .*'taxonTag\.txt'.*jpg, json, txt"):
        ShardSet(path)


def test_one_sample_without_caption_does_not_stop_the_others(tmp_path):
    found = ShardSet(write_tar(tmp_path / "s.tar", {"a.jpg": JPEG} | robin("b")))
    assert [found.key(i) for i in range(len(found))] == ["b"]
    assert [record.key for record in found.bad] == ["a"]


def test_a_cut_tar_keeps_the_samples_before_the_cut(tmp_path):
    (whole,) = write_shards([sample(i, common="robin") for i in range(6)], tmp_path / "whole")
    data = whole.read_bytes()
    full = build_index(whole)
    last_byte = [offset + size for offset, size in zip(full.offset, full.size, strict=True)]
    cut = tmp_path / "cut.tar"
    for length in np.linspace(0, len(data) - 1, 120).astype(int):
        cut.write_bytes(data[:length])
        index = build_index(cut)
        assert index.keys == full.keys[: len(index.keys)]
        complete = sum(end <= length for end in last_byte)
        assert complete - 1 <= len(index.keys) <= complete
        for offset, size in zip(index.offset, index.size, strict=True):
            assert data[offset : offset + size].startswith(JPEG)
        if len(index.keys) < 6:
            assert any(key == "" and "damaged tar" in reason for key, reason in index.bad)


def test_names_that_are_not_utf8_are_kept(tmp_path):
    path = tmp_path / "s.tar"
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT, encoding="latin-1") as tar:
        for name, data in robin("Grünfink").items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    for _ in range(2):  # built, then loaded
        found = ShardSet(path)
        assert found.key(0) == "Gr\udcfcnfink"
        assert found.read(0).image == JPEG


def test_a_broken_header_in_the_middle_is_not_taken_for_the_end(tmp_path):
    (path,) = write_shards([sample(i) for i in range(6)], tmp_path)
    data = bytearray(path.read_bytes())
    third = shard_index(path).offset[2] - tarfile.BLOCKSIZE
    data[third : third + 100] = b"\xff" * 100
    path.write_bytes(data)
    index = build_index(path)
    assert index.keys == ["000000", "000001"]
    assert index.bad == [
        ("", f"damaged tar after byte {third} of {len(data)}: no end-of-archive mark, it may be cut off")
    ]


def test_damage_is_never_past_the_end_of_the_file(tmp_path):
    (path,) = write_shards([sample(i) for i in range(6)], tmp_path)
    total = shard_index(path).offset[3] + 1  # in the middle of a picture
    os.truncate(path, total)
    assert any(
        reason.startswith(f"damaged tar after byte {total} of {total}: ") for _, reason in build_index(path).bad
    )


@pytest.mark.parametrize("data", [b"", b"x", b"\0" * 100, b"<html>" * 1000, b"\x1f\x8b" + b"\0" * 5000])
def test_a_file_that_is_no_tar_is_damage(tmp_path, data):
    path = tmp_path / "s.tar"
    path.write_bytes(data)
    index = build_index(path)
    assert index.keys == []
    assert [key for key, _ in index.bad] == [""]
    with pytest.raises(ValueError, match=r"no usable sample in .*damaged tar"):
        ShardSet(path)


def forged(**fields: object) -> bytes:
    """A tar whose first header is forged, followed by a good sample."""
    info = tarfile.TarInfo("evil.jpg")
    for name, value in fields.items():
        setattr(info, name, value)
    good = io.BytesIO()
    with tarfile.open(fileobj=good, mode="w") as tar:
        for name, data in robin("good").items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return info.tobuf(tarfile.GNU_FORMAT) + good.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        forged(size=1 << 40),
        forged(size=-512),
        forged(size=-(1 << 20)),
        forged(type=tarfile.GNUTYPE_LONGNAME, size=1 << 33),
        forged(type=tarfile.XHDTYPE, size=1 << 33),
        forged(type=tarfile.XHDTYPE, size=-1),
        forged(type=tarfile.GNUTYPE_LONGNAME, size=0) * 2000,
        forged(type=tarfile.XGLTYPE, size=512),
    ],
)
def test_forged_headers_neither_hang_nor_allocate_nor_raise(tmp_path, data):
    path = tmp_path / "s.tar"
    path.write_bytes(data)
    index = build_index(path)
    assert set(index.keys) <= {"good"}
    assert index.bad or index.keys


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), min_size=1, max_size=8))
def test_random_damage_never_escapes_as_another_error(tmp_path, changes):
    whole = tmp_path / "whole"
    if not whole.exists():
        write_shards([sample(i) for i in range(3)], whole)
    data = bytearray((whole / "shard-000000.tar").read_bytes())
    for position, value in changes:
        data[position % 9000] = value  # headers and captions, not the padding behind them
    path = tmp_path / "s.tar"
    path.write_bytes(data)
    try:
        index = build_index(path)
    except ValueError as error:
        assert "caption member" in str(error)  # noqa: PT017 the one declared error
        return
    for offset, size in zip(index.offset, index.size, strict=True):
        assert 0 <= offset <= offset + size <= len(data)


# -- the cached index


def test_the_index_is_kept_beside_the_shard_and_renewed_with_it(tmp_path):
    (path,) = write_shards([sample(0), sample(1, SCORPION)], tmp_path)
    cache = tmp_path / "shard-000000.tar.index.json"
    first = shard_index(path)
    assert json.loads(cache.read_text())["keys"] == ["000000", "000001"]
    assert shard_index(path) == first
    write_tar(path, robin("other"))
    assert shard_index(path).keys == ["other"]
    assert {p.name for p in tmp_path.iterdir()} == {path.name, cache.name}


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 10_000), st.sampled_from([b"", b"9", b"-", b'"', b"[", b"null", b"1.5", b"}", b"\xff"]))
def test_a_damaged_index_is_built_again(tmp_path, position, patch):
    path, cache = tmp_path / "s.tar", tmp_path / "s.tar.index.json"
    if not path.exists():
        write_tar(path, robin("a") | robin("b"))
    cache.unlink(missing_ok=True)
    good = shard_index(path)
    text = cache.read_bytes()
    position %= len(text)
    cache.write_bytes(text[:position] + patch + text[position + 1 :])
    index = shard_index(path)
    assert len(index.keys) == len(good.keys) == len(index.offset) == len(index.size) == len(index.label)
    assert all(0 <= label < len(index.labels) for label in index.label)


def test_where_the_index_cannot_be_written_it_is_kept_in_memory(tmp_path):
    (path,) = write_shards([sample(0)], tmp_path)
    (tmp_path / "shard-000000.tar.index.json").mkdir()  # for root, a read-only folder is writable
    assert ShardSet(path).key(0) == "000000"
    assert len(list(tmp_path.iterdir())) == 2


# -- lists of shards


def test_shards_are_named_by_folder_file_glob_range_or_list(tmp_path):
    paths = write_shards([sample(i) for i in range(12)], tmp_path, samples_per_shard=1)
    folder = str(tmp_path)
    assert expand_shards(folder) == expand_shards(tmp_path) == paths
    assert expand_shards(paths[3]) == paths[3:4]
    assert expand_shards(f"{folder}/shard-00000[0-3].tar") == paths[:4]
    assert expand_shards(f"{folder}/shard-{{000008..000011}}.tar") == paths[8:]
    assert expand_shards([paths[5], f"{folder}/./shard-000005.tar", f"{folder}/*0.tar"]) == [
        paths[0],
        paths[5],
        paths[10],
    ]


def test_a_literal_name_wins_over_a_pattern(tmp_path):
    path = write_tar(tmp_path / "a{1..2}[x].tar", robin("a"))
    assert expand_shards(str(path)) == [path]


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ([], ValueError, "no shards given"),
        ("", ValueError, "path is empty"),
        ("pipe:cat /etc/passwd", ValueError, "pipe:cat.*only local files"),
        (["https://example.org/a.tar"], ValueError, "only local files"),
        ("s3://bucket/a.tar", ValueError, "only local files"),
        ("{folder}", FileNotFoundError, r"no \*\.tar in this folder"),
        ("{folder}/none.tar", FileNotFoundError, "there is no"),
        ("{folder}/*.tar", FileNotFoundError, "there is no"),
        ("{folder}/{{3..9}}.tar", FileNotFoundError, r"there is no '.*/3\.tar'"),
        ("{folder}/{{0..999999999}}.tar", ValueError, "more than 1000000 shards"),
        ("{folder}/{{0..9999}}-{{0..9999}}.tar", ValueError, "more than 1000000 shards"),
        ("{folder}/{{0..3.tar", ValueError, "unbalanced braces"),
    ],
)
def test_missing_shards_are_named(tmp_path, spec, error, message):
    if isinstance(spec, str):
        spec = spec.format(folder=tmp_path)
    with pytest.raises(error, match=message):
        expand_shards(spec)


# -- sets of shards


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


# -- quarantine


def append_many(path: Path, worker: int) -> None:
    quarantine = Quarantine(path, limit=1.0)
    for i in range(200):
        quarantine.record("s.tar", f"{worker}-{i}", "reason " * 50)


def test_processes_share_the_quarantine_file(tmp_path):
    path = tmp_path / "quarantine.jsonl"
    workers = [multiprocessing.get_context("fork").Process(target=append_many, args=(path, w)) for w in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len({line["key"] for line in lines}) == len(lines) == 800
    assert set(lines[0]) == {"shard", "key", "reason"}


def test_too_many_bad_samples_stop_the_run(tmp_path):
    quarantine = Quarantine(tmp_path / "q.jsonl", limit=0.1)
    for i in range(50):  # all bad, but too few to judge
        quarantine.record("s.tar", str(i), "zero bytes")
    quarantine.use(449)
    assert quarantine.seen == 499
    with pytest.raises(
        RuntimeError, match=r"51 of 500 samples were quarantined, more than the limit of 10%.*zero bytes"
    ):
        quarantine.record("s.tar", "last", "zero bytes")


def test_nothing_but_bad_samples_stops_at_the_hundredth():
    quarantine = Quarantine(None)
    for i in range(99):
        quarantine.record("s.tar", str(i), "zero bytes")
    with pytest.raises(RuntimeError, match="100 of 100 samples"):
        quarantine.record("s.tar", "99", "zero bytes")
