"""Training images of each taxon: from tables, shards and model folders, onto any taxonomy."""

import gzip
import json
import sys

import numpy as np
import pytest
from small_run import LINEAGES, write_pictures

from bioclip_hc.data.shards import ShardSet
from bioclip_hc.evaluation.counts import COUNTS, counts_of_model, counts_of_shards, read_counts, save_counts
from bioclip_hc.evaluation.strata import training_counts
from bioclip_hc.taxonomy import RANKS, Taxonomy

NUMBERS = [4, 0, 7, 1, 3, 5]  # of each lineage


@pytest.fixture
def taxonomy():
    return Taxonomy.from_lineages(LINEAGES)


@pytest.fixture
def expected(taxonomy):
    images = [lineage for lineage, n in zip(LINEAGES, NUMBERS, strict=True) for _ in range(n)]
    return training_counts(taxonomy.encode_many(images), taxonomy)


def table(path, header=(*RANKS, "images"), rows=None):
    rows = rows or [(*lineage, n) for lineage, n in zip(LINEAGES, NUMBERS, strict=True)]
    path.write_text("\n".join(",".join(map(str, row)) for row in (header, *rows)) + "\n")
    return path


def test_a_table(taxonomy, expected, tmp_path):
    assert read_counts(table(tmp_path / "t.csv"), taxonomy).tolist() == expected.tolist()
    aves = int(taxonomy.encode(LINEAGES[0])[2])
    assert expected[aves] == 4 + 0 + 7


def test_a_table_with_cls_beside_class_and_words_for_no_name(taxonomy, expected, tmp_path):
    header = (*("cls" if rank == "class" else rank for rank in RANKS), "images", "class")
    rows = [(*(name or "NA" for name in names), n, "a picture") for names, n in zip(LINEAGES, NUMBERS, strict=True)]
    assert read_counts(table(tmp_path / "t.csv", header, rows), taxonomy).tolist() == expected.tolist()


def test_shards(taxonomy, tmp_path):
    shards = write_pictures(tmp_path / "s", 20)
    found = read_counts(shards, taxonomy)
    assert (
        found.tolist()
        == training_counts(taxonomy.encode_many([LINEAGES[i % 6] for i in range(20)]), taxonomy).tolist()
    )
    assert found.tolist() == counts_of_shards(ShardSet(shards), taxonomy).tolist()


def test_a_model_folder_onto_another_taxonomy(taxonomy, expected, tmp_path):
    taxonomy.save(tmp_path / "taxonomy.json")
    save_counts(expected, taxonomy, tmp_path)
    other = Taxonomy.from_lineages([*LINEAGES[2:4], ("Fungi", "", "", "", "", "", "")])
    of_path = {taxonomy.path(t): n for t, n in enumerate(expected.tolist())}
    wanted = [of_path.get(other.path(t), 0) for t in range(other.size)]
    assert max(wanted) > 0
    for found in (
        read_counts(tmp_path, other),
        read_counts(tmp_path / COUNTS, other),
        counts_of_model(tmp_path, taxonomy, other),
    ):
        assert found.tolist() == wanted


def test_a_folder_without_counts_says_nothing(taxonomy, tmp_path):
    assert counts_of_model(tmp_path, taxonomy, taxonomy) is None


@pytest.mark.parametrize("damage", [{"images": [1]}, {"images": "x"}, {"format": 2}, {"taxonomy_sha256": "0"}])
def test_counts_that_are_not_of_the_taxonomy(taxonomy, expected, tmp_path, damage):
    save_counts(expected, taxonomy, tmp_path)
    content = json.loads((tmp_path / COUNTS).read_text())
    (tmp_path / COUNTS).write_text(json.dumps(content | damage))
    with pytest.raises(ValueError, match="no training counts that can be used"):
        counts_of_model(tmp_path, taxonomy, taxonomy)


@pytest.mark.parametrize(
    ("header", "rows", "message"),
    [
        ((*RANKS, "size"), None, "one of images, n_images, count"),
        ((*RANKS, "images"), [(*LINEAGES[0], 2**63)], "line 2: '9223372036854775808' is no number"),
        ((*RANKS, "images"), [(*LINEAGES[0], "1" * 5000)], "line 2: '1{200}...' is no number"),
        (("name", "images"), [("a", 1)], "must have rank columns"),
        ((*RANKS, "images"), [(*LINEAGES[0], "-1")], "line 2: '-1' is no number"),
        ((*RANKS, "images"), [(*LINEAGES[0], "")], "line 2: '' is no number"),
    ],
)
def test_tables_that_say_something_else(taxonomy, tmp_path, header, rows, message):
    with pytest.raises(ValueError, match=message):
        read_counts(table(tmp_path / "t.csv", header, rows), taxonomy)


@pytest.mark.parametrize("number", ["n_images", "Count"])
def test_tables_of_other_forms(taxonomy, expected, tmp_path, number):
    written = table(tmp_path / "t.csv", header=(*RANKS, number))
    with gzip.open(tmp_path / "t.TSV.gz", "wt") as file:
        file.write(written.read_text().replace(",", "\t"))
    for path in (written, tmp_path / "t.TSV.gz"):
        assert read_counts(path, taxonomy).tolist() == expected.tolist()


def test_a_parquet_table(taxonomy, expected, tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    pyarrow.parquet = pytest.importorskip("pyarrow.parquet")
    columns = dict(zip((*RANKS, "images"), (*zip(*LINEAGES, strict=True), NUMBERS), strict=True))
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet")
    assert read_counts(tmp_path / "t.parquet", taxonomy).tolist() == expected.tolist()


def test_a_parquet_table_without_what_reads_it(taxonomy, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match="pip install"):
        read_counts(tmp_path / "t.parquet", taxonomy)


def test_no_table(taxonomy, tmp_path):
    with pytest.raises(FileNotFoundError):
        read_counts(tmp_path / "t.csv", taxonomy)


def test_what_no_lineage_names_counts_for_those_above(taxonomy, tmp_path):
    row = ("Animalia", "Chordata", "Aves", "", "", "", "")
    found = read_counts(table(tmp_path / "t.csv", rows=[(*row, 9)]), taxonomy)
    assert np.flatnonzero(found).tolist() == taxonomy.encode(row)[:3].tolist()
