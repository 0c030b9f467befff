"""The published layouts of iNaturalist 2021 and Rare Species, made small, and their real names."""

import csv
import json
import shutil
from pathlib import Path

import pytest
from test_layouts import ASPHODEL, ROBIN, jpeg, put, reasons, table

from bioclip_hc.evaluation.layouts import inat21, open_benchmark
from bioclip_hc.evaluation.layouts.base import Published
from bioclip_hc.evaluation.layouts.inat21 import lineage_of_folder
from bioclip_hc.taxonomy import RANKS

EARTHWORM = ("Animalia", "Annelida", "Clitellata", "Haplotaxida", "Lumbricidae", "Lumbricus", "terrestris")
COMMA = ("Animalia", "Arthropoda", "Insecta", "Lepidoptera", "Nymphalidae", "Polygonia", "c-album")
INAT = (EARTHWORM, COMMA, ROBIN)


def directory(i: int, lineage) -> str:
    return "_".join([f"{i:05d}", *lineage]).replace(" ", "_")


def inat(root: Path, split: str = "val", each: int = 2) -> dict:
    """A small split in its true form; returns the JSON's content, which is not yet written."""
    content = {"info": {"year": 2021}, "images": [], "categories": [], "annotations": [], "licenses": []}
    for i, lineage in enumerate(INAT):
        folder = directory(i, lineage)
        category = {**dict(zip(RANKS, lineage, strict=True)), "id": i, "image_dir_name": folder}
        category["specific_epithet"] = category.pop("species")
        category |= {"name": f"{lineage[5]} {lineage[6]}", "common_name": f"Common {i}", "supercategory": "Animals"}
        content["categories"].append(category)
        for _ in range(each):
            number = 1000 + len(content["images"])
            name = f"{split}/{folder}/{number:08x}-0000.jpg"
            put(root / name)
            image = {
                "id": number,
                "width": 8,
                "height": 8,
                "file_name": name,
                "latitude": float("nan"),
                "license": 0,
            }
            content["images"].append(image)
            content["annotations"].append({"id": number, "image_id": number, "category_id": i})
    return content


def written(root: Path, content: dict, split: str = "val") -> Path:
    return put(root / f"{split}.json", json.dumps(content).encode())


def labels(benchmark) -> list:
    photographs = benchmark.photographs
    return [photographs.lineages[row] for row in photographs.lineage_index]


# -- iNaturalist 2021


@pytest.mark.parametrize("form", ["folders", "root", "root with json", "folders with json", "json"])
def test_the_forms_of_inat21_open_to_the_same(tmp_path, form):
    content = inat(tmp_path)
    if "json" in form:
        written(tmp_path, content)
    data = {"json": tmp_path / "val.json", "root": tmp_path, "root with json": tmp_path}.get(form, tmp_path / "val")
    benchmark = open_benchmark("inat21", data)
    assert labels(benchmark) == [lineage for lineage in INAT for _ in range(2)]
    assert benchmark.photographs.read(5).image == jpeg()
    assert (benchmark.name, benchmark.ranks, benchmark.left_out) == ("iNat21 val", tuple(range(7)), [])
    assert len(benchmark.taxonomy.at_rank(6)) == 3
    (note,) = benchmark.notes
    assert "6 of 100,000 photographs, 3 of 10,000 species" in note
    common = benchmark.taxonomy.extra.get("common_name")
    assert (common is not None and "Common 2" in common) == ("json" in form)


def test_train_mini_is_read_likewise(tmp_path):
    inat(tmp_path)
    written(tmp_path, inat(tmp_path, "train_mini", each=3), "train_mini")
    assert len(open_benchmark("inat21", tmp_path, split="train_mini").photographs) == 9
    assert len(open_benchmark("inat21", tmp_path).photographs) == 6
    shutil.rmtree(tmp_path / "val")
    assert open_benchmark("inat21", tmp_path).name == "iNat21 train_mini"
    with pytest.raises(FileNotFoundError, match=r"neither a folder 'val' nor val.json"):
        open_benchmark("inat21", tmp_path, split="val")
    with pytest.raises(ValueError, match="split 'test' is none of val, train_mini, train"):
        open_benchmark("inat21", tmp_path, split="test")


@pytest.mark.parametrize(
    ("name", "species"),
    [
        (directory(0, COMMA), "c-album"),
        ("00001_Animalia_Chordata_Mammalia_Carnivora_Canidae_Canis_lupus_familiaris", "lupus familiaris"),
        ("00001_Animalia_Chordata_Mammalia_Carnivora_Canidae_Canis_", ""),
        ("9_Animalia_Chordata_Mammalia_Carnivora_Canidae_Canis_Canis_lupus", "lupus"),
    ],
)
def test_folder_names(name, species):
    assert lineage_of_folder(name)[6] == species


@pytest.mark.parametrize("name", ["val", "00000_Animalia", "x_A_B_C_D_E_F_g", "٣_A_B_C_D_E_F_g", "0-A-B-C-D-E-F-g"])
def test_folders_of_other_names_are_left_out(tmp_path, name):
    inat(tmp_path)
    put(tmp_path / "val" / name / "x.jpg")
    benchmark = open_benchmark("inat21", tmp_path)
    assert len(benchmark.photographs) == 6
    assert "is not named as '00000_Animalia_Annelida" in reasons(benchmark)[0]


def test_what_lies_about_in_folders_is_left_out(tmp_path):
    inat(tmp_path)
    secret = put(tmp_path / "secret.jpg")
    folder = tmp_path / "val" / directory(0, EARTHWORM)
    put(folder / "notes.txt")
    put(folder / ".DS_Store")
    put(folder / "deeper" / "x.jpg")
    (folder / "link.jpg").symlink_to(secret)
    (folder / "within.jpg").symlink_to(next((tmp_path / "val" / directory(1, COMMA)).iterdir()))
    put(tmp_path / "val" / "loose.jpg")
    benchmark = open_benchmark("inat21", tmp_path / "val")
    assert len(benchmark.photographs) == 7
    found = "\n".join(reasons(benchmark))
    assert len(benchmark.left_out) == 4
    for part in (
        "notes.txt: neither jpg",
        "deeper: neither jpg, jpeg, png, webp, but a folder",
        "link.jpg: a link leads",
        "loose.jpg: 'loose.jpg' is in no class folder",
    ):
        assert part in found
    assert len(open_benchmark("inat21", tmp_path / "val", allow_outside=True).photographs) == 8


def test_names_of_the_json_are_preferred_and_disagreement_is_told(tmp_path):
    content = inat(tmp_path)
    content["categories"][0] |= {"genus": "Octolasion", "specific_epithet": "cyaneum", "name": "Octolasion cyaneum"}
    (tmp_path / "val" / directory(9, ASPHODEL)).mkdir()
    written(tmp_path, content)
    benchmark = open_benchmark("inat21", tmp_path)
    assert labels(benchmark)[0] == (*EARTHWORM[:5], "Octolasion", "cyaneum")
    assert "names of 1 class folders disagree with the JSON" in benchmark.notes[0]
    assert directory(0, EARTHWORM) in benchmark.notes[0]
    assert "1 folders that val.json does not name are not read" in benchmark.notes[1]


def test_entries_of_the_json_that_cannot_be_used_are_left_out(tmp_path):
    content = inat(tmp_path, each=4)
    images, notes, categories = content["images"], content["annotations"], content["categories"]
    images[0]["file_name"] = "../secret.jpg"
    images[1]["file_name"] = "val/none.jpg"
    del images[2]["file_name"]
    del images[3]["id"]
    images[4]["id"] = images[5]["id"]
    notes[6]["category_id"] = 77
    del notes[7]["image_id"]
    notes.append({"id": 1, "image_id": images[8]["id"], "category_id": 0})
    images[9]["file_name"] = images[10]["file_name"]
    images[11]["id"] = [1, 2]
    categories.append({**categories[2], "family": "Muscicapidae", "id": 78})
    put(tmp_path / "secret.jpg")
    written(tmp_path, content)
    benchmark = open_benchmark("inat21", tmp_path)
    found = "\n".join(reasons(benchmark))
    for part in (
        "images[0] ../secret.jpg: the path '../secret.jpg' leads out of the folder",
        "images[1] val/none.jpg: no file",
        "images[2]: no file_name",
        "images[3] ",
        "images[4] ",
        "is there 2 times",
        "no category 77",
        "annotations[7]: no image_id",
        "no annotation of the image id 1007",
        "annotations of the image id 1008 name 2 categories",
        "is listed already, under another id",
        "images[11] ",
    ):
        assert part in found, part
    assert labels(benchmark) == [ROBIN]
    assert len(benchmark.left_out) == 12


def test_categories_that_cannot_be_used(tmp_path):
    content = inat(tmp_path)
    content["categories"][0]["genus"] = None
    content["categories"].append({**content["categories"][1], "family": "Pieridae"})
    del content["categories"][2]["specific_epithet"]  # the name says it
    written(tmp_path, content)
    benchmark = open_benchmark("inat21", tmp_path)
    assert labels(benchmark) == [ROBIN, ROBIN]
    found = "\n".join(reasons(benchmark))
    assert "the category 0 cannot be used: no genus" in found
    assert "the category 1 is there more than once, with other names" in found


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "not JSON that can be read"),
        (b"\xff\xfe{}", "not JSON that can be read"),
        (b"[" * 100_000, "not JSON that can be read"),
        (b'{"images": ' + b'{"a":' * 100_000, "not JSON that can be read"),
        (b'{"images": [{"id": ' + b"9" * 5000 + b"}]}", "not JSON that can be read"),
        (b"[]", "no list 'images' of objects"),
        (b'{"images": [], "categories": []}', "no list 'annotations' of objects; the test set's labels"),
        (b'{"images": [1], "annotations": [], "categories": []}', "no list 'images' of objects"),
        (b'{"images": [], "annotations": [], "categories": {}}', "no list 'categories' of objects"),
        (b'{"images": [], "annotations": [], "categories": []}', "no photograph that can be used"),
        (b'{"images": [{"id": 1, "file_name": "\\ud800"}], "annotations": [], "categories": []}', "no annotation"),
    ],
)
def test_a_json_that_is_none_is_refused(tmp_path, content, says):
    with pytest.raises(ValueError, match=says):
        open_benchmark("inat21", put(tmp_path / "val.json", content))


def test_half_letters_in_the_json_are_left_out(tmp_path):
    content = inat(tmp_path)
    content["images"][0]["file_name"] = "val/\ud800.jpg"
    content["categories"][1]["genus"] = "Poly\ud800"
    written(tmp_path, content)
    benchmark = open_benchmark("inat21", tmp_path)
    assert len(benchmark.photographs) == 3
    assert len(benchmark.lines()) == 3
    assert "\ufffd" in "\n".join(benchmark.lines()).encode().decode()


def test_folders_that_hold_no_benchmark(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not there; name the folder val"):
        open_benchmark("inat21", tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="neither class folders such as '00000_"):
        open_benchmark("inat21", tmp_path)
    (tmp_path / directory(0, ROBIN)).mkdir()
    with pytest.raises(ValueError, match="no photograph that can be used"):
        open_benchmark("inat21", tmp_path)


def test_the_folders_of_all_10000_species_parse_back(data_folder):
    with (data_folder / "taxonomies" / "inat21.csv").open(encoding="utf-8") as file:
        rows = [(int(row["leaf_index"]), tuple(row[rank] for rank in RANKS)) for row in csv.DictReader(file)]
    assert len(rows) == 10_000
    assert [lineage_of_folder(directory(i, lineage)) for i, lineage in rows] == [lineage for _, lineage in rows]


def test_what_was_published_is_compared(tmp_path):
    content = inat(tmp_path)
    benchmark = open_benchmark("inat21", written(tmp_path, content))
    photographs, taxonomy = benchmark.photographs, benchmark.taxonomy
    assert Published(6, 3, 2).notes(photographs, taxonomy) == []
    assert "5 of 6" not in Published(6, 3).notes(photographs, taxonomy)
    assert "6 of 7 photographs" in Published(7, 3, 2).notes(photographs, taxonomy)[0]
    assert "3 of 4 species" in Published(6, 4, 2).notes(photographs, taxonomy)[0]
    assert "3 species have more or fewer than 3" in Published(6, 3, 3).notes(photographs, taxonomy)[0]
    shutil.rmtree(tmp_path / "val" / directory(0, EARTHWORM))
    benchmark = open_benchmark("inat21", tmp_path)
    note = Published(4, 3).notes(benchmark.photographs, benchmark.taxonomy)[0]
    assert "photographs of 2 of 3 species" in note


@pytest.mark.parametrize(("split", "whole"), [("val", True), ("train_mini", False)])
def test_whole_is_only_what_figures_are_published_of(tmp_path, monkeypatch, split, whole):
    monkeypatch.setitem(inat21.PUBLISHED, "val", Published(2, 2, 1))
    monkeypatch.setitem(inat21.PUBLISHED, "train_mini", Published(4, 2, 2))
    for i, lineage in enumerate((EARTHWORM, ROBIN)):
        for k in range(1 if split == "val" else 2):
            put(tmp_path / split / directory(i, lineage) / f"{k}.jpg")
    assert open_benchmark("inat21", tmp_path).whole == whole
    shutil.rmtree(tmp_path / split / directory(0, EARTHWORM))
    assert not open_benchmark("inat21", tmp_path).whole


# -- Rare Species

RARE = (
    ("Animalia", "Chordata", "Reptilia", "Testudines", "Geoemydidae", "Pangshura", "sylhetensis"),
    ("Animalia", "Mollusca", "Bivalvia", "Unionida", "Unionidae", "Cyclonaias", "tuberculata"),
)


def rare(root: Path, rank_of_class: str = "class") -> list[dict[str, str]]:
    """The dataset in its true form, two pictures a species; returns the catalogue's rows, which is written."""
    rows = []
    for i, lineage in enumerate(RARE):
        for k in range(2):
            content, page = 20_000_000 + 10 * i + k, 45_000_000 + i
            put(root / "dataset" / "-".join(lineage) / f"{content}_{page}_eol_full-size-copy.jpg")
            row = {"rarespecies_id": f"{i}{k}a8-4f2c", "eol_content_id": str(content), "eol_page_id": str(page)}
            row |= {
                rank_of_class if rank == "class" else rank: name for rank, name in zip(RANKS, lineage, strict=True)
            }
            rows.append({**row, "sciName": f"{lineage[5]} {lineage[6]}", "common": f"common {i}"})
    catalogue(root / "metadata" / "rarespecies-catalog.csv", rows)
    return rows


def catalogue(path: Path, rows) -> Path:
    return table(path, [list(row.values()) for row in rows], list(rows[0]))


@pytest.mark.parametrize("name", ["class", "cls"])
@pytest.mark.parametrize("data", [".", "metadata/rarespecies-catalog.csv"])
def test_rare_species_as_published(tmp_path, name, data):
    rare(tmp_path, name)
    put(tmp_path / "visuals" / "phyla_ToL_tree.png")
    benchmark = open_benchmark("rare-species", tmp_path / data)
    assert labels(benchmark) == [lineage for lineage in RARE for _ in range(2)]
    assert (benchmark.name, benchmark.ranks) == ("Rare Species", (1, 2, 3, 4, 5, 6))
    assert "4 of 11,983 photographs, 2 of 400 species" in benchmark.notes[0]
    assert "common 1" in benchmark.taxonomy.extra["common_name"]
    assert benchmark.photographs.read(3).common_name == "common 1"
    assert not benchmark.left_out


def test_pictures_are_found_by_any_of_their_ids(tmp_path):
    rows = rare(tmp_path / "set")
    flat = tmp_path / "flat"
    put(flat / f"{rows[0]['rarespecies_id']}.jpg")
    put(flat / "x" / f"{rows[1]['eol_content_id']}.PNG")
    put(flat / f"{rows[2]['eol_content_id']}_{rows[2]['eol_page_id']}.webp")
    benchmark = open_benchmark("rare-species", tmp_path / "set", images=flat)
    assert labels(benchmark) == [RARE[0], RARE[0], RARE[1]]
    assert "no picture of the id '20000011_45000001'" in reasons(benchmark)[0]


def test_pictures_inside_a_table_are_refused_with_the_fix(tmp_path):
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    columns = {name: [row[name] for row in rare(tmp_path)] for name in ("rarespecies_id", "genus", "species")}
    columns["image"] = [{"bytes": b"x", "path": None}] * len(columns["genus"])
    parquet.write_table(pa.table(columns), tmp_path / "t.parquet")
    with pytest.raises(ValueError, match="pictures inside a table are not read; write each to a file"):
        open_benchmark("rare-species", tmp_path / "t.parquet")


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_ids_that_pandas_made_fractions_are_ids(tmp_path, kind):
    rows = [row | {key: f"{row[key]}.0" for key in ("eol_content_id", "eol_page_id")} for row in rare(tmp_path)]
    if kind == "csv":
        path = catalogue(tmp_path / "metadata" / "t.csv", rows)
    else:
        pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        path = tmp_path / "t.parquet"
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        columns |= {name: [float(text) for text in columns[name]] for name in ("eol_content_id", "eol_page_id")}
        parquet.write_table(pa.table(columns), path)
    benchmark = open_benchmark("rare-species", path, images=tmp_path)
    assert (len(benchmark.photographs), benchmark.left_out) == (len(rows), [])


def test_two_pictures_of_one_id_are_left_out(tmp_path):
    rows = rare(tmp_path)
    for row in (rows[1], rows[3]):
        put(tmp_path / "small" / f"{row['eol_content_id']}_{row['eol_page_id']}_x.jpg")
    benchmark = open_benchmark("rare-species", tmp_path)
    assert len(benchmark.photographs) == 2
    assert "2 pictures of the id '20000001_45000000'" in reasons(benchmark)[0]
    assert len(open_benchmark("rare-species", tmp_path, images=tmp_path / "dataset").photographs) == 4


def test_the_table_with_file_names(tmp_path):
    rows = rare(tmp_path)
    for row, path in zip(rows, sorted((tmp_path / "dataset").glob("*/*.jpg")), strict=True):
        row["file_name"] = str(path.relative_to(tmp_path))
    rows[1]["file_name"] = "../../etc/passwd"
    rows[2]["file_name"] = rows[3]["file_name"]
    (tmp_path / "metadata" / "rarespecies-catalog.csv").unlink()
    benchmark = open_benchmark("rare-species", catalogue(tmp_path / "metadata.csv", rows).parent)
    assert labels(benchmark) == [RARE[0], RARE[1]]
    found = reasons(benchmark)
    assert "leads out of the folder" in found[0]
    assert "belongs to a row above already" in found[1]


def test_what_is_no_rare_species(tmp_path):
    with pytest.raises(FileNotFoundError, match="no catalogue; name it, or the folder that has metadata/rare"):
        open_benchmark("rare-species", tmp_path)
    rows = rare(tmp_path)
    shutil.rmtree(tmp_path / "dataset")
    with pytest.raises(ValueError, match=r"no picture of it is below .* name their folder with images"):
        open_benchmark("rare-species", tmp_path)
    plain = [{key: value for key, value in row.items() if "id" not in key} for row in rows]
    with pytest.raises(ValueError, match="no column 'rarespecies_id' or 'eol_content_id'"):
        open_benchmark("rare-species", catalogue(tmp_path / "t.csv", plain))


def test_rare_species_has_400_paths_and_385_epithets(data_folder, tmp_path):
    with (data_folder / "taxonomies" / "rare_species.csv").open(encoding="utf-8") as file:
        taxa = list(csv.DictReader(file))
    rows = [{"rarespecies_id": f"id{i}", **{rank: taxon[rank] for rank in RANKS}} for i, taxon in enumerate(taxa)]
    for row in rows:
        put(tmp_path / f"{row['rarespecies_id']}.jpg", b"x")
    benchmark = open_benchmark("rare-species", catalogue(tmp_path / "rarespecies-catalog.csv", rows))
    taxonomy = benchmark.taxonomy
    species = taxonomy.at_rank(6)
    assert (len(benchmark.photographs), len(species)) == (400, 400)
    assert len({taxonomy.name(t) for t in species}) == 385
    assert "400 of 11,983 photographs;" in benchmark.notes[0]
