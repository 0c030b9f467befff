"""Tables of photographs, and shards, opened as benchmarks."""

import csv
import gzip
import io
import os
from pathlib import Path

import pytest
from PIL import Image

from bioclip_hc.evaluation.layouts import BENCHMARKS, open_benchmark, options_of
from bioclip_hc.evaluation.layouts.inside import Inside
from bioclip_hc.taxonomy import RANKS

ROBIN = ("Animalia", "Chordata", "Aves", "Passeriformes", "Turdidae", "Turdus", "migratorius")
ASPHODEL = ("Plantae", "Tracheophyta", "Liliopsida", "Asparagales", "Asphodelaceae", "Asphodelus", "albus")
HEADER = ("file_name", *RANKS, "common_name")


def jpeg(side: int = 8) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side, side), (90, 120, 30)).save(file, "JPEG")
    return file.getvalue()


def put(path: Path, data: bytes | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(jpeg() if data is None else data)
    return path


def table(path: Path, rows, header=HEADER, delimiter=",") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows([header, *rows])
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with three photographs and a table of them."""
    data = tmp_path / "data"
    for name in ("a/robin.jpg", "a/robin 2.jpg", "b/asphodel.jpg"):
        put(data / name)
    rows = [
        ("a/robin.jpg", *ROBIN, "American robin"),
        ("a/robin 2.jpg", *ROBIN, ""),
        ("b/asphodel.jpg", *ASPHODEL, ""),
    ]
    table(data / "labels.csv", rows)
    return data


def opened(path: Path, **options):
    return open_benchmark("manifest", path, **options)


def reasons(benchmark) -> list[str]:
    return [f"{name}: {reason}" for name, reason in benchmark.left_out]


# -- what is read


def test_a_manifest_gives_photographs_taxa_and_ranks(folder):
    benchmark = opened(folder / "labels.csv")
    photographs = benchmark.photographs
    assert [Path(photographs.name(i)).name for i in range(3)] == ["robin.jpg", "robin 2.jpg", "asphodel.jpg"]
    assert [photographs.lineages[i] for i in photographs.lineage_index] == [ROBIN, ROBIN, ASPHODEL]
    sample = photographs.read(0)
    assert (sample.image, sample.lineage, sample.common_name) == (jpeg(), ROBIN, "American robin")
    assert len(benchmark.taxonomy.at_rank(6)) == 2
    robin = benchmark.taxonomy.encode(ROBIN)[6]
    assert benchmark.taxonomy.extra["common_name"][robin] == "American robin"
    assert benchmark.ranks == tuple(range(7))
    assert (benchmark.left_out, benchmark.notes, benchmark.lines()) == ([], [], [])


def test_the_form_of_bioclip_where_class_is_no_rank(folder):
    header = ("index", "kingdom", "phylum", "cls", "order", "family", "genus", "species", "common_name")
    header += ("filepath", "class")
    path = table(
        folder / "bioclip.csv", [(0, *ROBIN, "American robin", "a/robin.jpg", "Turdus migratorius")], header
    )
    assert opened(path).photographs.lineages == [ROBIN]


@pytest.mark.parametrize("column", ["file_name", "filepath", "path", "image", " FilePath "])
def test_path_columns(folder, column):
    path = table(folder / "t.csv", [("a/robin.jpg", *ROBIN)], (column, *map(str.title, RANKS)))
    assert opened(path).photographs.lineages == [ROBIN]


@pytest.mark.parametrize(
    ("given", "scientific", "species"),
    [
        ("migratorius", "", "migratorius"),
        ("Turdus migratorius", "", "migratorius"),
        ("", "Turdus migratorius", "migratorius"),
        ("", "Turdus", ""),
        ("merula", "Turdus migratorius", "merula"),  # the column species has the say
        ("migratorius achrusterus", "", "migratorius achrusterus"),
        ("Turdus × hybrida", "", "× hybrida"),
        ("nan", "Turdus migratorius", "migratorius"),  # words for no name
        ("None", "NA", ""),
    ],
)
def test_species_are_epithets(folder, given, scientific, species):
    path = table(
        folder / "t.csv", [("a/robin.jpg", *ROBIN[:6], given, scientific)], (*HEADER[:8], "scientificName")
    )
    assert opened(path).photographs.lineages == [(*ROBIN[:6], species)]


def test_a_scientific_name_of_another_genus_is_left_out(folder):
    rows = [("a/robin.jpg", *ROBIN[:6], "Merula migratoria"), ("b/asphodel.jpg", *ASPHODEL[:6], "Asphodelus albus")]
    benchmark = opened(table(folder / "t.csv", rows, (*HEADER[:7], "sciName")))
    assert benchmark.photographs.lineages == [ASPHODEL]
    assert "line 2: the scientific name 'Merula migratoria' is not of the genus 'Turdus'" in reasons(benchmark)[0]


def test_words_for_no_name_name_nothing(folder):
    path = table(folder / "t.csv", [("a/robin.jpg", "Incertae sedis", "nan", "Turdus", "unknown")],
                 ("path", "class", "order", "genus", "common"))  # fmt: skip
    benchmark = opened(path)
    assert benchmark.photographs.lineages == [("", "", "", "", "", "Turdus", "")]
    assert (benchmark.photographs.read(0).common_name, benchmark.ranks) == ("", (5,))


def test_ranks_that_no_photograph_names_are_not_scored(folder):
    path = table(folder / "t.csv", [("a/robin.jpg", "Aves", "", "Turdus")], ("path", "class", "order", "genus"))
    benchmark = opened(path)
    assert benchmark.ranks == (2, 5)
    assert benchmark.photographs.lineages == [("", "", "Aves", "", "", "Turdus", "")]


def test_tsv_gzip_and_byte_order_mark(folder):
    rows = [("a/robin.jpg", *ROBIN, "")]
    tsv = table(folder / "t.tsv", rows, delimiter="\t")
    (folder / "t.tsv.gz").write_bytes(gzip.compress(tsv.read_bytes()))
    (folder / "bom.csv").write_bytes(b"\xef\xbb\xbf" + table(folder / "t.csv", rows).read_bytes())
    for name in ("t.tsv", "t.tsv.gz", "bom.csv"):
        assert opened(folder / name).photographs.lineages == [ROBIN]


def test_images_may_lie_elsewhere(folder, tmp_path):
    path = table(tmp_path / "tables" / "t.csv", [("robin.jpg", *ROBIN, "")])
    with pytest.raises(
        ValueError, match=r"no row can be used; .*line 2: no file 'robin.jpg'; are the pictures below"
    ):
        opened(path)
    assert len(opened(path, images=folder / "a").photographs) == 1


def test_parquet(folder):
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    files = ["a/robin.jpg", "a/none.jpg", None, "b/asphodel.jpg"]
    columns = {"path": files, "groups": [["x"]] * 4}
    for r, rank in enumerate(RANKS):
        columns[rank] = [ROBIN[r], ROBIN[r], ROBIN[r], ASPHODEL[r] if rank != "order" else None]
    columns["genus"] = pa.array(columns["genus"]).dictionary_encode()
    parquet.write_table(pa.table(columns), folder / "t.parquet", row_group_size=3)
    benchmark = opened(folder / "t.parquet")
    assert benchmark.photographs.lineages == [ROBIN, (*ASPHODEL[:3], "", *ASPHODEL[4:])]
    assert [reason.partition(", ")[2] for reason in reasons(benchmark)] == [
        "row 2: no file 'a/none.jpg'",
        "row 3: no path",
    ]


def test_without_pyarrow_parquet_is_refused_with_the_fix(folder, monkeypatch):
    put(folder / "t.parquet", b"PAR1")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(ImportError, match=r"pip install 'bioclip_hc\[parquet\]'"):
        opened(folder / "t.parquet")


def test_the_sample_photographs(data_folder):
    benchmark = opened(data_folder / "images" / "natures_domain_labels.csv")
    assert len(benchmark.photographs) == 210
    assert not benchmark.left_out
    assert benchmark.ranks == tuple(range(7))
    assert benchmark.photographs.read(209).image[:2] == b"\xff\xd8"


# -- paths are data


@pytest.mark.parametrize("name", ["../secret.jpg", "a/../../secret.jpg", "{secret}", "link.jpg", "away/secret.jpg"])
def test_no_path_leaves_the_folder_unless_allowed(folder, tmp_path, name):
    secret = put(tmp_path / "secret.jpg")
    (folder / "link.jpg").symlink_to(secret)
    (folder / "away").symlink_to(tmp_path)
    name = name.format(secret=secret)
    path = table(folder / "t.csv", [("a/robin.jpg", *ROBIN, ""), (name, *ASPHODEL, "")])
    benchmark = opened(path)
    assert len(benchmark.photographs) == 1
    assert "out of the folder" in reasons(benchmark)[0]
    assert "allow files outside" in reasons(benchmark)[0]
    assert len(opened(path, allow_outside=True).photographs) == 2


def test_links_within_the_folder_and_to_it_are_followed(folder, tmp_path):
    (folder / "same.jpg").symlink_to(folder / "b" / "asphodel.jpg")
    (tmp_path / "other").symlink_to(folder)
    path = table(folder / "t.csv", [("same.jpg", *ASPHODEL, ""), ("a/robin.jpg", *ROBIN, "")])
    assert len(opened(path).photographs) == 2
    assert len(opened(tmp_path / "other" / path.name).photographs) == 2


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("a", "'a' is no regular file"),
        ("pipe.jpg", "'pipe.jpg' is no regular file"),
        ("broken.jpg", "no file 'broken.jpg'"),
        ("loop.jpg", "'loop.jpg' cannot be looked at|leads 'loop.jpg' out"),
        ("a/robin.jpg/x", "no file"),
        ("x" * 300, "cannot be looked at: File name too long"),
        ("  ", "no path"),
        ("a/ro\0bin.jpg", "a control character"),
        ("https://example.org/a.jpg", "no file"),
    ],
)
def test_what_is_no_photograph_is_left_out_with_its_reason(folder, name, reason):
    os.mkfifo(folder / "pipe.jpg")
    (folder / "broken.jpg").symlink_to("nothing.jpg")
    (folder / "loop.jpg").symlink_to("loop.jpg")
    benchmark = opened(table(folder / "t.csv", [("a/robin.jpg", *ROBIN, ""), (name, *ROBIN, "")]))
    assert len(benchmark.photographs) == 1
    with pytest.raises(ValueError, match=reason):
        raise ValueError(reasons(benchmark)[0])


def test_a_folder_that_only_begins_alike_is_outside(tmp_path):
    secret = put(tmp_path / "data-secret" / "x.jpg")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "x.jpg").symlink_to(secret)
    with pytest.raises(ValueError, match="out of the folder"):
        Inside(tmp_path / "data").file("x.jpg")


# -- rows and tables that cannot be used


def test_an_epithet_without_its_genus_names_nothing(folder):
    """Many genera have one: it is no taxon of its own at the root or below a family, and takes no common name."""
    rows = [
        ("a/robin.jpg", *[""] * 6, "pusilla", "a dwarf"),
        ("a/robin 2.jpg", *ROBIN[:5], "", "pusilla", "a dwarf"),
        ("b/asphodel.jpg", *ROBIN[:5], "", "Turdus migratorius", ""),
    ]
    benchmark = opened(table(folder / "t.csv", rows))
    taxonomy = benchmark.taxonomy
    assert sorted(taxonomy.name(int(t)) for t in range(taxonomy.size)) == sorted([*ROBIN[:5], "Turdus migratorius"])
    assert [list(lineage) for lineage in benchmark.photographs.lineages] == [
        [*ROBIN[:5], "", ""],
        [*ROBIN[:5], "", "Turdus migratorius"],
    ]
    assert "a dwarf" not in str(taxonomy.extra)
    said = benchmark.lines()
    assert said[0] == "the species is unknown in 1 rows: an epithet without its genus names nothing"
    assert (
        "line 2: the species 'pusilla' without its genus names nothing; fill in the genus" in reasons(benchmark)[0]
    )


def test_rows_that_cannot_be_used_are_counted_by_cause(folder):
    rows = [
        ("a/robin.jpg", *ROBIN, ""),
        ("a/none.jpg", *ROBIN, ""),
        ("a/neither.jpg", *ASPHODEL, ""),
        ("b/asphodel.jpg", *[""] * 7, ""),
        ("a/robin 2.jpg", *ROBIN[:6]),
        ("a/robin.jpg", *ASPHODEL, ""),
        ("a/./robin.jpg", *ROBIN, ""),
        ("a/robin 2.jpg", *ROBIN[:6], "x" * 1001, ""),
        ("a/robin 2.jpg", *ROBIN[:6], "mig\x07ratorius", ""),
    ]
    benchmark = opened(table(folder / "t.csv", rows))
    assert len(benchmark.photographs) == 1
    found = "\n".join(reasons(benchmark))
    for part in (
        "line 3: no file 'a/none.jpg'",
        "line 5: no rank is named",
        "line 6: 7 fields in 9 columns",
        "line 7: 'a/robin.jpg' is in the table already, with another label",
        "line 8: 'a/./robin.jpg' is in the table already, with the same label",
        "line 9: a name of 1001 letters",
        "line 10: a control character",
    ):
        assert part in found
    first = f"{folder / 't.csv'}, line 3: no file 'a/none.jpg'"
    assert benchmark.lines()[0] == f"left out 2: no file '...'; the first: {first}"
    assert len(benchmark.taxonomy.at_rank(6)) == 2  # a missing picture makes no question easier


HEAD = ",".join(HEADER).encode()
ROW = ",".join(["a/robin.jpg", *ROBIN, ""]).encode()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "the table is empty"),
        (b"\n\n", "the table is empty"),
        (HEAD, "the table is a header only"),
        (HEAD + b'\n"a/robin.jpg,' + b"x,\n" * 5, "line .*: not well-formed .*is a quote left open"),
        (HEAD + b'\n"a/robin.jpg\n",' + b",".join([b"x"] * 8) + b"\n", "a line break within a field"),
        (HEAD + b"\n" + ROW + b"\n\xff\xfe", "after line .*not UTF-8 .*iconv"),
        ((HEAD + b"\n" + ROW).decode().encode("utf-16"), "not UTF-8"),
        (HEAD + b"\n" + b"x" * 200_000, "field larger than field limit"),
        (HEAD + b"\n" + b"x" * (1 << 20), "a line of 1048576 characters"),
        (HEAD.replace(b",", b";") + b"\n" + ROW, "no column 'file_name' .*is it separated by ';'"),
        (b"kingdom\nx", "no column 'file_name' or 'filepath'.*columns found: 'kingdom'"),
        (b"path,name\na,b", "no column 'kingdom' or"),
        (b"path,genus,Genus\na,b,c", "two columns 'genus' .*rename"),
        (b"c," * 10_001 + b"path", "10002 columns"),
    ],
)
def test_a_table_that_is_none_is_refused_with_the_fix(folder, content, says):
    with pytest.raises(ValueError, match=says) as error:
        opened(put(folder / "t.csv", content))
    assert "t.csv" in str(error.value)


@pytest.mark.parametrize("content", [b"not gzip", gzip.compress(HEAD + b"\n" + ROW)[:-12]])
def test_a_damaged_gzip_is_refused(folder, content):
    with pytest.raises(ValueError, match="not a whole gzip file"):
        opened(put(folder / "t.csv.gz", content))


def test_hostile_parquet_is_refused(folder):
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pa.table({"path": ["a"] * 99, "genus": ["x"] * 99}), folder / "t.parquet")
    good = (folder / "t.parquet").read_bytes()
    for bad in (
        b"",
        b"PAR1",
        good[:-4],
        good[:40],
        b"PAR1" + b"\xff" * 100 + b"PAR1",
        good[:8] + b"\xff" * 60 + good[68:],
    ):
        with pytest.raises(ValueError, match=r"not a parquet file that can be read|no row can be used"):
            opened(put(folder / "bad.parquet", bad))
    parquet.write_table(pa.table({"path": [["a"], ["b"]], "genus": ["x", "y"]}), folder / "bad.parquet")
    with pytest.raises(ValueError, match="row 1: column 'path' holds no text"):
        opened(folder / "bad.parquet")


def test_a_row_group_without_bounds_is_refused(folder, monkeypatch):
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr("bioclip_hc.evaluation.layouts.tables.MAX_GROUP_BYTES", 10_000)
    long = pa.table({"path": ["a"] * 9, "genus": [f"{i}" * 9000 for i in range(9)], "other": ["z"] * 9})
    parquet.write_table(long, folder / "t.parquet", use_dictionary=False)
    with pytest.raises(ValueError, match=r"row group 0: its names take .* write the table with smaller row groups"):
        opened(folder / "t.parquet")


def test_what_is_no_table_at_all(folder):
    with pytest.raises(FileNotFoundError, match="is not there, or no file"):
        opened(folder / "none.csv")
    with pytest.raises(FileNotFoundError, match="is not there, or no file"):
        opened(folder)
    with pytest.raises(ValueError, match=r"the name must end in .csv, .tsv"):
        opened(put(folder / "labels.xlsx"))


# -- the one entrance


def test_kinds_and_options_are_named_in_errors():
    with pytest.raises(ValueError, match=r"no benchmark 'imagenet'; there are .*manifest"):
        open_benchmark("imagenet", "x")
    with pytest.raises(ValueError, match="'manifest' takes no option 'synonyms'; it takes images, allow_outside"):
        open_benchmark("manifest", "x", synonyms="y", cache=None)
    assert all(options_of(kind) for kind in BENCHMARKS)


def test_shards_are_a_benchmark(tmp_path):
    from bioclip_hc.data.sample import Sample
    from bioclip_hc.data.writer import write_shards

    samples = [Sample(f"{i}", jpeg(), lineage) for i, lineage in enumerate([ROBIN, ASPHODEL, ROBIN])]
    write_shards(samples, tmp_path)
    benchmark = open_benchmark("treeoflife", tmp_path)
    assert (len(benchmark.photographs), benchmark.ranks) == (3, tuple(range(7)))
    assert {tuple(benchmark.taxonomy.lineage_names(t)) for t in benchmark.taxonomy.at_rank(6)} == {ROBIN, ASPHODEL}
    assert benchmark.name == str(tmp_path)
    assert (benchmark.left_out, benchmark.notes) == ([], [])
    with pytest.raises(ValueError, match="synonyms go with a taxonomy"):
        open_benchmark("treeoflife", tmp_path, synonyms="x.csv")
