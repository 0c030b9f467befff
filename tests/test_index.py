"""The index of a shard, under damage and attack, and its copy on disk."""

import gzip
import io
import json
import os
import tarfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shards_by_hand import JPEG, ROBIN, ROBIN_TAG, SCORPION, robin, sample, write_tar

from bioclip_hc.data import members as scanning
from bioclip_hc.data.captions import Label, format_taxon_tag
from bioclip_hc.data.index import build_index, kept_index, shard_index
from bioclip_hc.data.sample import MAX_TEXT_BYTES
from bioclip_hc.data.shards import ShardSet
from bioclip_hc.data.writer import write_shards


@pytest.mark.parametrize("chunk", [512, 700, 1024, 1279, 1280, 1536, 4096])
def test_a_header_that_lies_across_two_chunks_is_found(tmp_path, monkeypatch, chunk):
    """After damage headers are searched a chunk at a time; they may lie at any place of it."""
    monkeypatch.setattr(scanning, "CHUNK", chunk)
    whole = write_tar(tmp_path / "whole.tar", robin("a") | robin("b") | robin("c")).read_bytes()
    header = whole.index(b"b.jpg\0")
    for lost in (0, 1, 100, 255, 256, 257, 300, 511):  # bytes gone: what follows lies at no block's border
        path = tmp_path / f"{lost}.tar"
        path.write_bytes(b"x" * 512 + whole[512 : header - lost] + whole[header:])
        members, damage = scanning.scan(path)
        assert [m.name for m in members] == ["a.taxonTag.txt", "b.jpg", "b.taxonTag.txt", "c.jpg", "c.taxonTag.txt"]
        assert damage[0].begin == 0


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
        *robin("long", **{"taxonTag.txt": b"x" * (MAX_TEXT_BYTES + 1)}).items(),
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
    assert "no caption 'taxonTag.txt', nor a flat one; members found: jpg" in reasons["no_caption"]
    assert "is not" in reasons["unparsable"]
    assert "taxonTag.txt is not UTF-8" in reasons["latin1"]
    assert reasons["empty"] == "empty lineage"
    assert reasons["good"] == "duplicate key"
    assert "is larger than" in reasons["long"]
    assert "unsafe name" in reasons["../up"]
    assert "unsafe name" in reasons["/root"]


def test_an_oversized_image_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("bioclip_hc.data.index.MAX_IMAGE_BYTES", 100)
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
    path = write_tar(tmp_path / "s.tar", {"a.jpg": JPEG, "a.cls": b"3", "b.jpg": JPEG, "b.json": b"{}"})
    with pytest.raises(ValueError, match=r"s\.tar: none of its 2 samples .*'taxonTag\.txt'.*cls, jpg, json"):
        ShardSet(path)


def test_flat_captions_are_kept_as_they_are_and_read_back(tmp_path):
    """An index depends on its shard alone, whatever the taxonomy that is to come."""
    members = (
        {"a.jpg": JPEG, "a.txt": "a photo of  Bérnoullia.\n".encode(), "b.jpg": JPEG, "b.txt": b"a photo of ."}
        | {"c.jpg": JPEG, "c.sci.txt": b"Turdus", "c.com.txt": b"a photo of thrush."}
        | robin("d", **{"com.txt": b"robin", "txt": b"Oenanthe"})
    )
    path = write_tar(tmp_path / "s.tar", members)
    built = shard_index(path)
    assert built.labels == [
        Label((), "", "txt", "a photo of Bérnoullia."),
        Label((), "thrush", "sci.txt", "Turdus"),
        Label(ROBIN, "robin"),
    ]
    assert built.bad == [("b", "no caption says anything: txt")]
    assert built.extensions == ["com.txt", "jpg", "sci.txt", "taxontag.txt", "txt"]
    assert kept_index(path) == built


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
    assert index.keys == ["000000", "000001", "000003", "000004", "000005"]
    assert index.bad == [
        ("000002", "no image (jpg, jpeg, png, webp); members found: sci.txt, taxontag.txt"),
        ("", f"damaged tar after byte {third} of {len(data)}: no header; read on at byte {third + 1024}"),
    ]
    assert index.lost == 1024


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


def test_a_page_of_zeros_is_not_taken_for_the_end(tmp_path):
    """Of an archive's mark of its end the first block alone looks the same."""
    (path,) = write_shards([sample(i) for i in range(6)], tmp_path)
    begins = [offset - tarfile.BLOCKSIZE for offset in shard_index(path).offset]
    data = bytearray(path.read_bytes())
    data[begins[1] : begins[3]] = bytes(begins[3] - begins[1])
    path.write_bytes(data)
    index = build_index(path)
    assert index.keys == ["000000", "000003", "000004", "000005"]
    assert index.lost == begins[3] - begins[1]
    assert index.bad == [
        (
            "",
            f"damaged tar after byte {begins[1]} of {len(data)}: more follows the end-of-archive mark; "
            f"read on at byte {begins[3]}",
        )
    ]


def test_samples_in_damaged_parts_are_judged_by_their_bytes(tmp_path):
    folder = write_shards([sample(i, image=JPEG * 50) for i in range(8)], tmp_path)[0].parent
    (folder / "another.tar").write_bytes(b"<html>" * 8000)
    shards = ShardSet(folder)
    assert len(shards.bad) == 1
    assert 8 <= shards.lost <= 16  # 48,000 bytes of pictures that take 4,201 each


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_what_is_no_file_is_named(tmp_path, kind):
    write_shards([sample(0)], tmp_path)
    path = tmp_path / "other.tar"
    path.mkdir() if kind == "folder" else os.mkfifo(path)
    with pytest.raises(ValueError, match=r"other\.tar is not a file"):
        ShardSet(tmp_path)


def test_a_packed_tar_is_told_as_one(tmp_path):
    path = write_tar(tmp_path / "s.tar", robin("a"))
    path.write_bytes(gzip.compress(path.read_bytes()))
    assert "it is packed by gzip, unpack it first" in build_index(path).bad[0][1]


def test_a_byte_order_mark_is_no_letter_and_a_backslash_no_name(tmp_path):
    members = robin("marked", **{"taxonTag.txt": b"\xef\xbb\xbf" + ROBIN_TAG.encode()}) | robin("up\\..\\out")
    index = build_index(write_tar(tmp_path / "s.tar", members))
    assert index.keys == ["marked"]
    assert [reason.split(": ")[-1] for _, reason in index.bad] == ["unsafe name"]


def test_an_index_that_reaches_past_its_shard_is_built_again(tmp_path):
    path = write_tar(tmp_path / "s.tar", robin("a"))
    whole = shard_index(path)
    kept = path.with_name("s.tar.index.json")
    saved = json.loads(kept.read_text())
    saved["offset"] = [path.stat().st_size - 1]
    kept.write_text(json.dumps(saved))
    assert shard_index(path).offset == whole.offset
