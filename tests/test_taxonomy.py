"""The tree: identity of taxa, ids, relations, files, and what a table may do wrong.

# T taxa, R ranks
"""

import csv
import gzip
import json
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bioclip_hc.taxonomy import RANKS, Taxonomy, as_lineage, rank_index

ROBIN = ("Animalia", "Chordata", "Aves", "Passeriformes", "Turdidae", "Turdus", "migratorius")
WHEATEAR = ("Animalia", "Chordata", "Aves", "Passeriformes", "Muscicapidae", "Oenanthe", "oenanthe")
DROPWORT = ("Plantae", "Tracheophyta", "Magnoliopsida", "Apiales", "Apiaceae", "Oenanthe", "crocata")
HEAD = ",".join(RANKS)


def paths(taxonomy):
    return {taxonomy.path(t) for t in range(taxonomy.size)}


def known(lineage):
    return tuple(name for name in lineage if name)


def walk_up(taxonomy, t):
    """t, its parent, ... up to the root."""
    line = []
    while t >= 0:
        line.append(t)
        t = int(taxonomy.parent[t])
    return line


def write(path, *rows, head=HEAD):
    path.write_text("\n".join([head, *rows]) + "\n", encoding="utf-8")
    return path


# -- lineages


def test_as_lineage_takes_mappings_and_sequences():
    assert as_lineage(ROBIN) == ROBIN
    assert as_lineage(list(ROBIN)) == ROBIN
    assert as_lineage({"genus": "Turdus", "kingdom": "Animalia", "family": None}) == (
        ("Animalia", "", "", "", "", "Turdus", "")
    )
    assert as_lineage({"cls": "Aves"}) == ("", "", "Aves", "", "", "", "")
    assert as_lineage([None, float("nan"), "", "  ", " a  b\t", "\u00a0x", "y\n"]) == (
        ("", "", "", "", "a b", "x", "y")
    )


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ({"genuss": "Turdus"}, ValueError, "unknown rank 'genuss'; did you mean 'genus'"),
        ({"Family": "Turdidae"}, ValueError, "unknown rank 'Family'; did you mean 'family'"),
        ({"clade": "x", "kingdom": "y"}, ValueError, "unknown rank 'clade'.*ranks: kingdom, phylum"),
        (ROBIN[:6], ValueError, "a lineage has 7 names .*, got 6"),
        ("Animalia", TypeError, "split it into ranks"),
        ((1, 2, 3, 4, 5, 6, 7), TypeError, "a taxon name is a string, got int: 1"),
    ],
)
def test_bad_lineages(value, error, message):
    with pytest.raises(error, match=message):
        as_lineage(value)
    with pytest.raises(error, match=f"lineage 1: .*{message}"):
        Taxonomy.from_lineages([ROBIN, value])


def test_rank_names():
    assert [rank_index(name) for name in RANKS] == list(range(7))
    with pytest.raises(ValueError, match="unknown rank 'speices'; did you mean 'species'"):
        rank_index("speices")


# -- identity


def test_a_tree_of_two_birds():
    tree = Taxonomy.from_lineages([ROBIN, WHEATEAR])
    assert len(tree) == tree.size == 4 + 2 + 2 + 2
    assert [len(tree.at_rank(r)) for r in range(7)] == [1, 1, 1, 1, 2, 2, 2]
    robin = tree.encode(ROBIN)
    assert tree.path(robin[6]) == ROBIN
    assert tree.name(robin[5]) == "Turdus"
    assert tree.lineage_names(robin[5]) == (*ROBIN[:6], "")
    assert tree.children(robin[3]).tolist() == tree.at_rank(4).tolist()
    assert tree.children(-1).tolist() == [0]
    assert tree.children(robin[6]).tolist() == []
    assert tree.lca(robin[6], tree.encode(WHEATEAR)[6]) == robin[3]
    assert repr(tree) == "Taxonomy(10 taxa: 1 kingdom, 1 phylum, 1 class, 1 order, 2 family, 2 genus, 2 species)"


def test_homonyms_are_two_taxa_and_reported():
    tree = Taxonomy.from_lineages([WHEATEAR, DROPWORT])
    bird, plant = tree.encode(WHEATEAR), tree.encode(DROPWORT)
    assert tree.name(bird[5]) == tree.name(plant[5]) == "Oenanthe"
    assert bird[5] != plant[5]
    assert tree.lca(bird[5], plant[5]) == -1
    assert tree.report.conflicts == {"genus Oenanthe": [WHEATEAR[:6], DROPWORT[:6]]}
    assert "Oenanthe" in str(tree.report)


def test_a_genus_under_two_families_is_two_taxa_and_reported():
    moved = (*ROBIN[:4], "Muscicapidae", *ROBIN[5:])
    tree = Taxonomy.from_lineages([ROBIN, moved])
    assert tree.encode(ROBIN)[6] != tree.encode(moved)[6]
    assert set(tree.report.conflicts) == {"genus Turdus", "species Turdus migratorius"}


def test_epithets_repeat_freely():
    other = (*ROBIN[:5], "Catharus", "migratorius")
    assert Taxonomy.from_lineages([ROBIN, other]).report.conflicts == {}


def test_tautonyms_hybrids_and_literal_quotes_are_names_like_others(tmp_path):
    rows = [
        (*ROBIN[:5], "Gorilla", "gorilla"),
        (*ROBIN[:5], "Anas", "× platyrhynchos"),
        (*ROBIN[:5], "× Cupressocyparis", "leylandii"),
        (*ROBIN[:5], '"Candidatus"', "O'Brien, the 2nd"),
    ]
    with open(tmp_path / "t.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([RANKS, *rows])
    tree = Taxonomy.from_csv(tmp_path / "t.csv")
    assert [tree.path(tree.encode(row)[6]) for row in rows] == rows
    assert tree.size == 5 + 4 + 4


def test_two_spellings_of_one_letter_are_one_taxon_and_the_letters_are_kept():
    composed, decomposed = (unicodedata.normalize(form, "güntheri") for form in ("NFC", "NFD"))
    assert composed != decomposed
    tree = Taxonomy.from_lineages([(*ROBIN[:6], decomposed)])
    assert tree.encode((*ROBIN[:6], composed)).tolist() == tree.encode((*ROBIN[:6], decomposed)).tolist()
    assert tree.encode((*ROBIN[:6], composed)).min() >= 0
    assert tree.name(tree.size - 1) == decomposed
    both = Taxonomy.from_lineages([(*ROBIN[:6], composed), (*ROBIN[:6], decomposed)])
    assert both.size == 7
    assert both.report.duplicate_rows == 1
    assert both.sha256 == tree.sha256


def test_missing_ranks_are_skipped_never_filled():
    gap = (*ROBIN[:2], "", "", *ROBIN[4:])
    tree = Taxonomy.from_lineages([ROBIN, gap])
    ids = tree.encode(gap)
    assert (ids < 0).tolist() == [False, False, True, True, False, False, False]
    assert tree.parent[ids[4]] == ids[1]
    assert tree.path(ids[6]) == known(gap)
    assert tree.lca(ids[6], tree.encode(ROBIN)[6]) == ids[1]
    assert tree.report.missing["class"] == tree.report.missing["order"] == 1
    assert tree.report.missing["phylum"] == 0
    short = Taxonomy.from_lineages([(*ROBIN[:3], "", "", "", "")])
    assert sum(short.report.missing.values()) == 0  # a lineage that ends is no gap


def test_duplicates_and_empty_rows_are_counted():
    tree = Taxonomy.from_lineages([ROBIN, ROBIN, (*ROBIN[:6], ""), [""] * 7])
    assert tree.size == 7
    assert (tree.report.rows, tree.report.duplicate_rows, tree.report.empty_rows) == (4, 1, 1)
    assert str(tree.report).startswith("4 rows, 1 duplicates, 1 empty")


def test_encode_stops_where_the_path_leaves_the_tree():
    tree = Taxonomy.from_lineages([ROBIN])
    assert tree.encode((*ROBIN[:5], "Merula", "migratorius")).tolist() == [0, 1, 2, 3, 4, -1, -1]
    with_gap = Taxonomy.from_lineages([(*ROBIN[:5], "", "dubius")])  # below an unknown genus nothing is known
    assert with_gap.encode((*ROBIN[:5], "Turdus", "dubius")).tolist() == [0, 1, 2, 3, 4, -1, -1]
    assert tree.encode([""] * 7).tolist() == [-1] * 7
    assert tree.encode({"genus": "Turdus"}).tolist() == [-1] * 7
    assert tree.encode_many([ROBIN, [None] * 7]).tolist() == [list(range(7)), [-1] * 7]
    assert tree.encode_many([]).shape == (0, 7)


# -- laws, on random forests with gaps


names = st.sampled_from(["", "a", "b", "c"])
lineages = st.lists(st.tuples(*[names] * 7), min_size=1, max_size=12)


@settings(max_examples=60, deadline=None)
@given(lineages, st.randoms())
def test_ids_do_not_depend_on_the_order_of_rows(rows, random):
    shuffled = random.sample(rows, len(rows))
    one, two = Taxonomy.from_lineages(rows), Taxonomy.from_lineages(shuffled)
    assert [one.path(t) for t in range(one.size)] == [two.path(t) for t in range(two.size)]
    assert one.parent.tolist() == two.parent.tolist()
    assert one.rank.tolist() == two.rank.tolist()
    assert one.sha256 == two.sha256


@settings(max_examples=60, deadline=None)
@given(lineages)
def test_arrays_agree_with_each_other(rows):
    tree = Taxonomy.from_lineages(rows)
    assert tree.size == len({(r, row[: r + 1]) for row in rows for r in range(7) if row[r]})
    assert (np.diff(tree.rank) >= 0).all()
    for t in range(tree.size):
        line = walk_up(tree, t)
        assert sorted(line) == line[::-1]  # a parent's id is smaller
        assert [a for a in tree.lineage(t) if a >= 0] == line[::-1]
        assert tree.path(t) == tuple(tree.name(a) for a in line[::-1])
        assert tree.encode(tree.lineage_names(t)).tolist() == tree.lineage(t).tolist()
    for t in range(-1, tree.size):
        assert tree.children(t).tolist() == [c for c in range(tree.size) if tree.parent[c] == t]
    for r in range(7):
        assert tree.at_rank(r).tolist() == [t for t in range(tree.size) if tree.rank[t] == r]
    for row in rows:
        last = [t for t in tree.encode(row) if t >= 0][-1:]
        assert not known(row) or tree.path(last[0]) == known(row)


@settings(max_examples=60, deadline=None)
@given(lineages)
def test_lca_is_the_first_ancestor_that_two_walks_share(rows):
    tree = Taxonomy.from_lineages(rows)
    ids = np.arange(tree.size)
    table = tree.lca(ids[:, None], ids[None, :])
    for a in range(tree.size):
        above_b = [set(walk_up(tree, b)) for b in range(tree.size)]
        expected = [next((t for t in walk_up(tree, a) if t in line), -1) for line in above_b]
        assert table[a].tolist() == expected
    assert (table == table.T).all()
    assert table.diagonal().tolist() == ids.tolist()
    shared = table >= 0
    rows_of = np.broadcast_to(ids[:, None], table.shape)[shared]
    assert tree.lca(table[shared], rows_of).tolist() == table[shared].tolist()  # idempotent


def test_ids_out_of_range():
    tree = Taxonomy.from_lineages([ROBIN])
    for bad in (-1, 7):
        for call in (tree.name, tree.path, tree.lineage, tree.lineage_names, lambda t: tree.lca(t, 0)):
            with pytest.raises(IndexError, match=rf"taxon id must be in \[0, 7\), got {bad}"):
                call(bad)
    with pytest.raises(IndexError, match="got -1 at index 2"):
        tree.lca(np.array([0, 1, -1]), 0)
    with pytest.raises(IndexError, match="got -2"):
        tree.children(-2)
    with pytest.raises(ValueError, match=r"rank must be in \[0, 7\), got 7"):
        tree.at_rank(7)
    assert tree.lca(np.empty(0, np.int64), np.empty(0, np.int64)).shape == (0,)


def test_an_empty_tree():
    tree = Taxonomy.from_lineages([])
    assert tree.size == 0
    assert tree.encode(ROBIN).tolist() == [-1] * 7
    assert tree.children(-1).tolist() == []


# -- tables


def test_columns_by_name_in_any_order_and_the_rest_as_extra(tmp_path):
    table = write(
        tmp_path / "t.csv",
        "migratorius,Turdus,Animalia,,Aves,9",
        "migratorius,Turdus,Animalia,American robin,Aves,",
        ",Turdus,Animalia,thrushes,Aves,4",
        head="species,genus,kingdom,common_name,cls,count",
    )
    tree = Taxonomy.from_csv(table)
    assert (
        tree.encode({"kingdom": "Animalia", "class": "Aves", "genus": "Turdus", "species": "migratorius"})[6] == 3
    )
    assert tree.extra == {"common_name": ["", "", "thrushes", "American robin"], "count": ["", "", "4", "9"]}
    assert tree.report.duplicate_rows == 1


@pytest.mark.parametrize("head", ["cls,class", "class,cls", "Class, CLS"])
def test_the_rank_is_cls_where_a_table_has_class_too(tmp_path, head):
    """In BioCLIP's own tables `class` says what a picture is to be called."""
    row = {"cls": "Aves", "class": "a robin"}
    names = [name.strip().lower() for name in head.split(",")]
    table = write(
        tmp_path / "t.csv", ",".join(["Animalia", *(row[name] for name in names)]), head=f"Kingdom,{head}"
    )
    assert paths(Taxonomy.from_csv(table)) == {("Animalia",), ("Animalia", "Aves")}
    assert as_lineage({name: row[name] for name in names})[2] == "Aves"


def test_words_for_no_name_make_no_taxon(tmp_path):
    words = ["NA", "nan", "None", "N/A", "null", " Unknown", "incertae  sedis"]
    rows = [f"Animalia,,{word},Turdus,{word}" for word in words]
    tree = Taxonomy.from_csv(write(tmp_path / "t.csv", *rows, head="kingdom,phylum,class,genus,common_name"))
    assert paths(tree) == {("Animalia",), ("Animalia", "Turdus")}
    assert (tree.report.missing["class"], tree.extra) == (len(words), {})


def test_common_names_beside_lineages():
    tree = Taxonomy.from_lineages([ROBIN, ROBIN, (*WHEATEAR[:6], "")], ["", "American robin", "wheatears"])
    named = {tree.path(t)[-1]: name for t, name in enumerate(tree.extra["common_name"]) if name}
    assert named == {"migratorius": "American robin", "Oenanthe": "wheatears"}
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        Taxonomy.from_lineages([ROBIN, WHEATEAR], ["American robin"])


def test_gzip_byte_order_mark_and_windows_lines(tmp_path):
    text = ("\ufeff" + HEAD + "\r\n" + ",".join(ROBIN) + "\r\n").encode()
    (tmp_path / "t.csv").write_bytes(text)
    with gzip.open(tmp_path / "t.csv.gz", "wb") as file:
        file.write(text)
    for name in ("t.csv", "t.csv.gz"):
        assert paths(Taxonomy.from_csv(tmp_path / name)) == {ROBIN[:r] for r in range(1, 8)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a,b\n1,2\n", "has no rank column; columns found: .*'a', 'b'.*expected kingdom"),
        (b"", "has no rank column"),
        (b"kingdom;phylum\nAnimalia;Chordata\n", "separated by ';'. separate it by commas"),
        (b"kingdom,genus,genus\nAnimalia,A,B\n", "t.csv has two columns 'genus'; rename all but one"),
        (b"kingdom,genus, Genus\nAnimalia,A,B\n", "two columns 'genus' .*' Genus'.; rename all but one"),
        (b"kingdom,note,note\nAnimalia,A,B\n", "has two columns 'note'"),
        (b"kingdom,phylum\nAnimalia\n", "line 2: 2 columns expected"),
        (b"kingdom,phylum\nAnimalia,Chordata\nAnimalia,Chordata,x\n", "line 3: 2 columns expected"),
        (b"kingdom,phylum\nAnimalia,\xff\n", "is not UTF-8"),
        (b'kingdom,phylum\nAnimalia,"Chor"data\n', "not a well-formed CSV"),
        (b'kingdom,phylum\nAnimalia,"Chordata\n', "not a well-formed CSV"),
    ],
)
def test_bad_tables(tmp_path, content, message):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        Taxonomy.from_csv(tmp_path / "t.csv")


def test_a_table_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no\.csv does not exist"):
        Taxonomy.from_csv(tmp_path / "no.csv")


# -- saving


def test_save_and_load(tmp_path):
    table = write(tmp_path / "t.csv", ",".join(WHEATEAR) + ",Steinschmätzer", ",".join(DROPWORT) + ",",
                  head=HEAD + ",german")  # fmt: skip
    tree = Taxonomy.from_csv(table)
    tree.save(tmp_path / "t.json")
    again = Taxonomy.load(tmp_path / "t.json")
    assert again.sha256 == tree.sha256
    assert [again.path(t) for t in range(again.size)] == [tree.path(t) for t in range(tree.size)]
    assert again.lineages.tolist() == tree.lineages.tolist()
    assert again.extra == tree.extra
    assert again.encode(DROPWORT).tolist() == tree.encode(DROPWORT).tolist()
    assert "Steinschmätzer" in (tmp_path / "t.json").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"ranks": ["kingdom"]},
        {"name": ["Animalia"]},
        {"name": ["Animalia", ""]},
        {"rank": [1, 0]},
        {"rank": [0, 7]},
        {"rank": [0, 1.7]},
        {"rank": [False, True]},
        {"rank": ["0", "1"]},
        {"rank": 3},
        {"parent": [-1, 0.5]},
        {"parent": [-1, 1]},
        {"parent": [-1, 5]},
        {"parent": [-2, 0]},
        {"extra": {"common_name": ["x"]}},
        {"extra": None},
        {"parent": None},
    ],
)
def test_files_that_are_no_taxonomy(tmp_path, change):
    Taxonomy.from_lineages([(*ROBIN[:2], "", "", "", "", "")]).save(tmp_path / "t.json")
    content = json.loads((tmp_path / "t.json").read_text())
    (tmp_path / "t.json").write_text(json.dumps(content | change))
    with pytest.raises(ValueError, match=r"t\.json is not a saved taxonomy"):
        Taxonomy.load(tmp_path / "t.json")


@pytest.mark.parametrize("content", [b"", b"[1]", b"{}", b"\xff\xfe", b'{"format": 1'])
def test_files_that_are_not_even_json(tmp_path, content):
    (tmp_path / "t.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"t\.json is not a saved taxonomy"):
        Taxonomy.load(tmp_path / "t.json")


# -- real tables


def test_golden_lowest_common_ancestors(data_folder):
    """4,989 pairs of iNaturalist species with the depth of their common ancestor, computed elsewhere."""
    folder = data_folder / "taxonomies"
    tree = Taxonomy.from_csv(folder / "inat21.csv")
    with open(folder / "inat21.csv", encoding="utf-8", newline="") as file:
        rows = {int(row["leaf_index"]): [row[rank] for rank in RANKS] for row in csv.DictReader(file)}
    with open(folder / "golden_inat21_lca_pairs.csv", encoding="utf-8", newline="") as file:
        golden = list(csv.DictReader(file))
    assert len(golden) > 4000
    leaf = {index: tree.encode(row)[6] for index, row in rows.items()}
    assert sorted(leaf.values()) == tree.at_rank(6).tolist()  # 10,000 species, none twice
    common = tree.lca(*(np.array([leaf[int(row[side])] for row in golden]) for side in ("leaf_a", "leaf_b")))
    depth = np.where(common >= 0, tree.rank[common] + 1, 0)
    assert depth.tolist() == [int(row["lca_depth"]) for row in golden]
    named = [row["lca_rank"] for row in golden if int(row["lca_depth"])]
    assert [RANKS[r] for r in tree.rank[common[common >= 0]]] == named


def test_nasty_rows_keep_their_own_paths(data_folder):
    """Homonyms, gaps, hybrids, quotes and the like, picked from iNaturalist's taxa."""
    table = data_folder / "taxonomies" / "inat_nasty_rows.csv"
    tree = Taxonomy.from_csv(table)
    with open(table, encoding="utf-8", newline="") as file:
        rows = [tuple(row[rank] for rank in RANKS) for row in csv.DictReader(file)]
    assert len(rows) > 1000
    for row in rows:
        ids = tree.encode(row)
        assert [t >= 0 for t in ids] == [bool(name) for name in row]
        deepest = max(ids, key=lambda t: tree.rank[t] if t >= 0 else -1)
        assert [unicodedata.normalize("NFC", name) for name in tree.path(deepest)] == [
            unicodedata.normalize("NFC", " ".join(name.split())) for name in row if name
        ]
    assert tree.size == len({(r, row[: r + 1]) for row in rows for r in range(7) if row[r]})
    assert tree.report.conflicts
