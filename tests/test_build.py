"""From labelled pictures on disk to shards, and the split by individual."""

import csv
import io
import math
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from bioclip_hc.data.build import (
    Photo,
    Skipped,
    photos_from_csv,
    photos_from_folders,
    read_samples,
    samples_from_csv,
    samples_from_folders,
    split_by_individual,
)
from bioclip_hc.data.shards import ShardSet
from bioclip_hc.data.writer import write_shards
from bioclip_hc.taxonomy import RANKS

WOLF = ("Animalia", "Chordata", "Mammalia", "Carnivora", "Canidae", "Canis", "lupus")
ANT = ("Animalia", "Arthropoda", "Insecta", "Hymenoptera", "Formicidae", "", "")


def picture(path: Path, fmt: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), (10, 200, 30)).save(buffer, fmt)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(buffer.getvalue())
    return buffer.getvalue()


def table(path: Path, rows: list[dict[str, str]]) -> Path:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def row(filepath: str, lineage=WOLF, **other: str) -> dict[str, str]:
    return {"filepath": filepath, **dict(zip(RANKS, lineage, strict=True)), **other}


# -- tables


def test_a_table_becomes_samples_with_their_bytes_and_labels(tmp_path):
    data = [
        picture(tmp_path / "a.b.jpg"),
        picture(tmp_path / "sub" / "c.PNG", "PNG"),
        picture(tmp_path / "ü.webp", "WEBP"),
    ]
    rows = [
        row("a.b.jpg", common_name=" grey wolf "),
        row("sub/c.PNG", ANT, common_name=""),
        row("ü.webp", common_name="wolf"),
    ]
    samples = list(samples_from_csv(table(tmp_path / "t.csv", rows)))
    assert [s.image for s in samples] == data
    assert [s.lineage for s in samples] == [WOLF, ANT, WOLF]
    assert [s.common_name for s in samples] == ["grey wolf", "", "wolf"]
    assert [s.key for s in samples] == ["00000000_a-b", "00000001_c", "00000002_-"]
    found = ShardSet(write_shards(samples, tmp_path / "shards"))
    assert [found.read(i) for i in range(3)] == samples


def test_paths_start_at_the_image_root_and_columns_have_other_names(tmp_path):
    picture(tmp_path / "pictures" / "a.jpg")
    renamed = {"file": "a.jpg", **{("cls" if r == "class" else r): n for r, n in zip(RANKS, WOLF, strict=True)}}
    path = table(tmp_path / "t.csv", [renamed])
    (photo,) = photos_from_csv(path, image_root=tmp_path / "pictures", path_column="file")
    assert photo.lineage == WOLF
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())  # as spreadsheets save it
    assert photos_from_csv(path, tmp_path / "pictures", "file") == [photo]


def test_words_for_no_name_are_none(tmp_path):
    picture(tmp_path / "a.jpg")
    rows = [row("a.jpg", ("nan", "NA", *WOLF[2:]), common_name="None")]
    (photo,) = photos_from_csv(table(tmp_path / "t.csv", rows))
    assert (photo.lineage, photo.common_name) == (("", "", *WOLF[2:]), "")


@pytest.mark.parametrize("last", ["cls", "class"])
def test_of_cls_and_class_the_first_is_the_rank(tmp_path, last):
    picture(tmp_path / "a.jpg")
    both = row("a.jpg") | {"cls": WOLF[2], "class": "a photo of a wolf"}
    both[last] = both.pop(last)
    (photo,) = photos_from_csv(table(tmp_path / "t.csv", [both]))
    assert photo.lineage == WOLF


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        (
            [{"path": "a.jpg", "kingdom": "Animalia"}],
            ValueError,
            "no column 'filepath', 'phylum'.*columns found: path, kingdom",
        ),
        ([row("a.jpg"), row("none.jpg")], FileNotFoundError, r"t\.csv, line 3: no picture at .*none\.jpg"),
        ([row("")], FileNotFoundError, "line 2: no picture"),
        ([row("a.jpg"), row("a.jpg", ANT)], ValueError, r"line 3: .*a\.jpg is on line 2 already"),
        ([row("a.jpg", ("", " ", "", "", "", "", ""))], ValueError, "line 2: no rank is named"),
        ([row("a.jpg", ("Animalia", "an order", *WOLF[2:]))], ValueError, "line 2: lineage .* cannot be written"),
    ],
)
def test_wrong_tables_name_the_row_and_the_fix(tmp_path, rows, error, message):
    picture(tmp_path / "a.jpg")
    with pytest.raises(error, match=message):
        samples_from_csv(table(tmp_path / "t.csv", rows))


def test_an_unquoted_comma_is_not_taken_for_a_label(tmp_path):
    picture(tmp_path / "a.jpg")
    path = table(tmp_path / "t.csv", [row("a.jpg")])
    path.write_text(path.read_text().replace("Canidae", "Canidae,dogs"))
    with pytest.raises(ValueError, match="line 2: more fields than columns"):
        photos_from_csv(path)


HEADER = ",".join(["filepath", *RANKS, "common_name"])
LINE = ",".join(["{}.jpg", *WOLF, "wolf"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        # a quote left open, that closes nowhere, at the next quote, or where a field ends
        (f'{HEADER}\n{LINE.format("a")[:-4]}"wolf\n{LINE.format("b")}\n', r"t\.csv, line 3: not a well-formed CSV"),
        (f'{HEADER}\n"{LINE.format("a")}\n"b".jpg,{LINE[7:]}\n', "not a well-formed CSV.*a quote left open"),
        (f'{HEADER}\n{LINE.format("a")[:-4]}"wolf\nb.jpg,dog"\n', "line 3: a line break within a field"),
        (f"{HEADER}\na.jpg,Animalia\n", "line 2: fewer fields than columns"),
        (f"{HEADER}\n{LINE.format('a')}{'x' * 200_000}\n", "line 2: not a well-formed CSV .*field larger"),
        (f"{HEADER}\n", "no photographs, the table is a header only"),
        ("", "columns found: none$"),
        (HEADER.replace(",", ";") + "\n", "separated by ';'. separate it by commas"),
        (HEADER.title() + "\n", "Kingdom.*write them in lower case"),
        (f"{HEADER}\nä".encode("latin-1"), "line 2: not UTF-8 at byte 1 of the line; convert the table"),
        (HEADER.encode("utf-16"), "line 1: .*seems to be UTF-16"),
        (HEADER.encode("utf-16-le"), "is the table UTF-16"),
    ],
)
def test_a_damaged_table_is_refused_whole(tmp_path, text, message):
    for name in ("a", "b"):
        picture(tmp_path / f"{name}.jpg")
    path = tmp_path / "t.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message):
        photos_from_csv(path)


def test_folders_without_a_photograph_are_refused(tmp_path):
    (tmp_path / "_".join(["0", *WOLF])).mkdir()
    with pytest.raises(FileNotFoundError, match="no photographs in its folders"):
        photos_from_folders(tmp_path)


def test_a_picture_that_cannot_be_read_does_not_end_a_build(tmp_path, monkeypatch):
    monkeypatch.setattr("bioclip_hc.data.build.MAX_IMAGE_BYTES", 5000)
    good = picture(tmp_path / "good.jpg")
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere")
    (tmp_path / "vast.jpg").write_bytes(bytes(5001))
    items = [Photo(name, tmp_path / f"{name}.jpg", WOLF) for name in ("gone", "vast", "good")]
    skipped: list[Skipped] = []
    assert [s.image for s in read_samples(items, skipped.append)] == [good]
    assert [s.reason for s in skipped] == ["cannot be read: No such file or directory", "larger than 5000 bytes"]


def test_pictures_that_do_not_decode_are_reported_not_written(tmp_path):
    good = picture(tmp_path / "good.jpg")
    (tmp_path / "cut.jpg").write_bytes(good[:-60])
    (tmp_path / "page.jpg").write_bytes(b"<html>")
    (tmp_path / "empty.jpg").write_bytes(b"")
    rows = [row(name) for name in ("cut.jpg", "page.jpg", "good.jpg", "empty.jpg")]
    skipped: list[Skipped] = []
    samples = list(samples_from_csv(table(tmp_path / "t.csv", rows), on_skip=skipped.append))
    assert [s.image for s in samples] == [good]
    assert [s.path.name for s in skipped] == ["cut.jpg", "page.jpg", "empty.jpg"]
    assert skipped[2].reason == "zero bytes"


def test_without_a_listener_left_out_pictures_are_logged(tmp_path, caplog):
    (tmp_path / "page.jpg").write_bytes(b"<html>")
    assert list(samples_from_csv(table(tmp_path / "t.csv", [row("page.jpg")]))) == []
    assert "left out" in caplog.text
    assert "page.jpg" in caplog.text


# -- folders


def test_inat_folders_become_samples(tmp_path):
    picture(tmp_path / "00001_Animalia_Chordata_Mammalia_Carnivora_Canidae_Canis_lupus_familiaris" / "x.jpg")
    picture(tmp_path / "00000_Animalia_Chordata_Reptilia_Squamata_Viperidae_Bothrops_x-album" / "2.jpg")
    picture(tmp_path / "00000_Animalia_Chordata_Reptilia_Squamata_Viperidae_Bothrops_x-album" / "1.png", "PNG")
    picture(tmp_path / "00002_Animalia_Arthropoda____Formica_" / "y.webp", "WEBP")
    (tmp_path / "00002_Animalia_Arthropoda____Formica_" / ".DS_Store").write_bytes(b"")
    (tmp_path / "00002_Animalia_Arthropoda____Formica_" / "z.gif").write_bytes(b"GIF89a")
    (tmp_path / "README.txt").write_text("not a folder")
    skipped: list[Skipped] = []
    samples = list(samples_from_folders(tmp_path, on_skip=skipped.append))
    assert [s.key.partition("_")[2] for s in samples] == ["1", "2", "x", "y"]
    assert [s.lineage[-1] for s in samples] == ["x-album", "x-album", "lupus familiaris", ""]
    assert samples[3].lineage == ("Animalia", "Arthropoda", "", "", "", "Formica", "")
    assert [s.path.name for s in skipped] == ["z.gif"]


@pytest.mark.parametrize(
    "name",
    ["wolves", "Animalia_Chordata_Mammalia_Carnivora_Canidae_Canis_lupus", "0_Canis_lupus", "x_a_b_c_d_e_f_g"],
)
def test_other_folders_are_refused_with_an_example(tmp_path, name):
    picture(tmp_path / name / "x.jpg")
    with pytest.raises(ValueError, match=rf"{name}: the name is not an index .*00000_Animalia_Annelida"):
        photos_from_folders(tmp_path)


def test_a_root_without_folders_is_refused(tmp_path):
    picture(tmp_path / "x.jpg")
    with pytest.raises(FileNotFoundError, match="no folders such as '00000_Animalia"):
        photos_from_folders(tmp_path)


# -- split


def photos(counts: list[int]) -> list[Photo]:
    return [
        Photo(f"{taxon}-{i}", Path(f"{taxon}-{i}.jpg"), (f"kingdom {taxon}", *[""] * 6))
        for taxon, count in enumerate(counts)
        for i in range(count)
    ]


@given(st.lists(st.integers(1, 9), max_size=6), st.floats(0, 1), st.integers(0, 1000), st.randoms())
def test_every_taxon_gives_its_share_and_nothing_is_lost(counts, fraction, seed, shuffler):
    items = photos(counts)
    train, held_out = split_by_individual(items, fraction, seed)
    assert sorted(train + held_out) == sorted(items)
    given_by = Counter(photo.lineage for photo in train)
    for taxon, count in enumerate(counts):
        share = given_by[(f"kingdom {taxon}", *[""] * 6)]
        assert share == math.ceil(fraction * count)
    shuffled = shuffler.sample(items, len(items))
    assert set(split_by_individual(shuffled, fraction, seed)[0]) == set(train)


def test_the_split_depends_on_the_seed_and_the_taxon():
    items = photos([8, 8])
    splits = {tuple(p.key for p in split_by_individual(items, 0.5, seed)[0]) for seed in range(20)}
    assert len(splits) > 15
    train, _ = split_by_individual(items)
    assert {p.key[2] for p in train if p.key[0] == "0"} != {p.key[2] for p in train if p.key[0] == "1"}
    assert [p.key for p in split_by_individual(photos([1]))[0]] == ["0-0"]


def test_a_share_beyond_the_whole_is_refused():
    with pytest.raises(ValueError, match=r"fraction must be in \[0, 1\], got 2"):
        split_by_individual([], 2)


# -- real photographs


def test_the_sample_photographs_survive_the_whole_way(data_folder, tmp_path):
    if not (data_folder / "images").is_dir():
        pytest.skip("the sample photographs are not here")
    skipped: list[Skipped] = []
    found_photos = photos_from_csv(data_folder / "images" / "natures_domain_labels.csv")
    train, held_out = split_by_individual(found_photos)
    assert (len(found_photos), len(train), len(held_out)) == (210, 108, 102)
    assert {p.lineage for p in train} == {p.lineage for p in held_out}
    written = list(read_samples(found_photos, on_skip=skipped.append))
    found = ShardSet(write_shards(written, tmp_path, samples_per_shard=64))
    assert skipped == []
    assert found.bad == []
    assert len(found.lineages) == 54
    for i, (photo, sample) in enumerate(zip(found_photos, written, strict=True)):
        assert found.read(i) == sample
        assert sample.image == photo.path.read_bytes()
        assert (sample.lineage, sample.common_name) == (photo.lineage, photo.common_name)
