"""Names looked up in a taxonomy: found in one way only, or not at all."""

import csv
import gzip
import time
import unicodedata
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shards_by_hand import ROBIN

from bioclip_hc.data.captions import Label, flat_names
from bioclip_hc.data.names import Found, NameTable, Resolution
from bioclip_hc.taxonomy import RANKS, Taxonomy, as_lineage

CHAT = ("Animalia", "Chordata", "Aves", "Passeriformes", "Muscicapidae", "Oenanthe", "oenanthe")
WATERWORT = ("Plantae", "Tracheophyta", "Magnoliopsida", "Apiales", "Apiaceae", "Oenanthe", "aquatica")
ROWS = {
    ROBIN: "American robin",
    CHAT: "wheatear",
    WATERWORT: "water dropwort",
    ("Animalia", "Mollusca", "Gastropoda", "", "", "Acmella", "pusilla"): "",
    ("Plantae", "Tracheophyta", "Magnoliopsida", "", "", "Acmella", "pusilla"): "",
    # one flat path, "Animalia Chordata Actinopteri x", for two taxa
    ("Animalia", "Chordata", "Actinopteri", "", "", "", "x"): "",
    ("Animalia", "Chordata", "", "", "", "Actinopteri", "x"): "",
    ("Animalia", "Arthropoda", "Insecta", "Hemiptera", "Coreidae", "Acanthocephala", "terminalis"): "",
    ("Animalia", "Acanthocephala", "", "", "", "", ""): "thorny-headed worm",
    ("Fungi", "Basidiomycota", "Agaricomycetes", "Agaricales", "Cortinariaceae", "Cortinarius", "sp."): "",
    ("Animalia", "Chordata", "Amphibia", "Anura", "Dendrobatidae", "", "ruthveni"): "",
    ("Animalia", "Chordata", "Aves", "Gruiformes", "Gruidae", "Grus", "Grus grus"): "common crane",
    ("Plantae", "Tracheophyta", "Magnoliopsida", "Asterales", "Asteraceae", "Dahlia", "pinnata"): "Dahlia",
    ("Animalia", "Chordata", "Aves", "Anseriformes", "Anatidae", "Anas", "crecca"): "teal",
    ("Animalia", "Chordata", "Aves", "Anseriformes", "Anatidae", "Anas", "carolinensis"): "Teal",
    ("Plantae", "", "", "", "", "Bérnoullia", "köhleri"): "",
}


@pytest.fixture(scope="module")
def taxonomy() -> Taxonomy:
    return Taxonomy.from_lineages(ROWS, ROWS.values())


@pytest.fixture(scope="module")
def table(taxonomy) -> NameTable:
    return NameTable(taxonomy)


def test_many_taxa_of_one_name_take_no_longer_than_others():
    rows = [("Animalia", "P", "C", "O", f"F{i}", "unknown", "") for i in range(20_000)]
    many = Taxonomy.from_lineages(rows)
    start = time.process_time()
    found = NameTable(many).find(["unknown"])
    assert time.process_time() - start < 2
    assert found.how == "ambiguous"
    assert found.reason.endswith("and 19997 more")


def look_up(table: NameTable, text: str, scientific: bool = False) -> tuple[str, ...]:
    """How it was found and the last two names of its path, or how not and why."""
    found = table.find(flat_names(text)[0], scientific)
    return (found.how, *table.taxonomy.path(found.taxon)[-2:]) if found.taxon >= 0 else (found.how, found.reason)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Animalia Chordata Aves Turdidae Turdus migratorius", ("path", "Turdus", "migratorius")),
        ("a photo of Animalia Chordata Aves.", ("path", "Chordata", "Aves")),
        ("An image of  Animalia\tChordata ", ("path", "Animalia", "Chordata")),
        ("Animalia", ("path", "Animalia")),
        ("a photo of Turdus migratorius.", ("name", "Turdus", "migratorius")),
        ("a photo of a Turdus migratorius.", ("name", "Turdus", "migratorius")),
        ("Turdidae", ("name", "Aves", "Turdidae")),
        ("a photo of Turdus with common name American robin.", ("name", "Turdidae", "Turdus")),
        ("american Robin", ("common name", "Turdus", "migratorius")),
        ("a photo of the wheatear.", ("common name", "Oenanthe", "oenanthe")),
        ("Grus grus", ("name", "Grus", "Grus grus")),
        ("a photo of  with common name Animalia Chordata Aves.", ("path", "Chordata", "Aves")),
        ("a photo of Cortinarius sp..", ("name", "Cortinarius", "sp.")),
        ("a photo of Cortinarius sp.", ("name", "Cortinarius", "sp.")),
        (unicodedata.normalize("NFD", "Bérnoullia köhleri"), ("name", "Bérnoullia", "köhleri")),
    ],
)
def test_a_name_is_found_by_path_by_name_and_by_common_name(table, text, expected):
    assert look_up(table, text) == expected


@pytest.mark.parametrize(
    ("text", "how", "reason"),
    [
        (
            "Oenanthe",
            "ambiguous",
            "Animalia > Chordata > Aves > Passeriformes > Muscicapidae > Oenanthe | Plantae > ",
        ),
        ("a photo of Acmella pusilla.", "ambiguous", "Acmella > pusilla | Plantae > "),
        ("Animalia Chordata Actinopteri x", "ambiguous", "Animalia > Chordata > Actinopteri > x | Animalia > "),
        ("Acanthocephala", "ambiguous", "Animalia > Acanthocephala | Animalia > Arthropoda > "),  # phylum and genus
        ("Teal", "ambiguous", "Anas > carolinensis | "),
        ("Dahlia", "ambiguous", "Asteraceae > Dahlia | "),  # a genus, and what one of its species is called
        ("migratorius", "not in the taxonomy", "name 'migratorius' is not"),
        ("ruthveni", "not in the taxonomy", "name 'ruthveni' is not"),
        ("Dendrobatidae ruthveni", "not in the taxonomy", "is not"),  # a family and an epithet are no name
        ("turdus migratorius", "not in the taxonomy", "is not"),
        ("Turdus", "", ""),
        ("Turdus migratorius migratorius", "not in the taxonomy", "is not"),
        ("Turdus cf. migratorius", "not in the taxonomy", "is not"),
        ("Chordata Aves Turdidae Turdus migratorius", "not in the taxonomy", "is not"),  # a path is a whole one
        ("Animalia Chordata Aves Turdidae", "", ""),
        ("Animalia Chordata Aves Passeriformes Turdidae Turdus migratorius", "not in the taxonomy", "is not"),
        ("Animalia > Chordata", "not in the taxonomy", "is not"),
        ("a photo of a robin.", "not in the taxonomy", "name 'robin' is not"),
        ("a robin on a twig, Turdus migratorius", "not in the taxonomy", "is not"),
        ("", "not in the taxonomy", "name '' is not"),
    ],
)
def test_what_is_not_one_taxon_is_never_guessed(table, text, how, reason):
    found = look_up(table, text)
    assert found[0] == how if how else found[0] in ("path", "name")
    assert reason in found[1]


def test_a_name_known_to_be_scientific_is_no_common_name(table):
    assert look_up(table, "a photo of Dahlia.", scientific=True) == ("name", "Asteraceae", "Dahlia")
    assert look_up(table, "wheatear", scientific=True)[0] == "not in the taxonomy"


def test_many_homonyms_are_told_in_short():
    rows = [("Animalia", "Chordata", f"Class{i}", "", "", "Same", "") for i in range(5)]
    found = NameTable(Taxonomy.from_lineages(rows)).find(["Same"])
    assert found.reason.endswith("Class2 > Same | and 2 more")


words = st.sampled_from(["A", "B", "a", "A b", "x", ""])


@given(st.lists(st.tuples(*[words] * 7), max_size=8), st.lists(words, min_size=1, max_size=4))
def test_what_is_found_has_that_name_and_no_other_taxon_has(rows, text):
    """Against a search of all taxa, one by one."""
    taxonomy = Taxonomy.from_lineages(rows)
    text = " ".join(" ".join(text).split())

    def bears(t: int) -> bool:
        *_, genus, species = taxonomy.lineage_names(t)
        own = species if species.startswith(f"{genus} ") else f"{genus} {species}"
        names = {" ".join(taxonomy.path(t))}
        if not species:
            names.add(taxonomy.name(t))
        elif genus:
            names.add(own)
        return text in names

    bearers = [t for t in range(taxonomy.size) if bears(t)]
    found = NameTable(taxonomy).find([text])
    assert found.taxon == (bearers[0] if len(bearers) == 1 else -1)
    assert (found.how == "ambiguous") == (len(bearers) > 1)


# -- synonyms ----------------------------------------------------------------------------------------------


def write_synonyms(path, *rows: str, header: str = "synonym,accepted"):
    data = "\n".join([header, *rows, ""]).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("name", ["synonyms.csv", "synonyms.csv.gz"])
def test_synonyms_are_looked_up_last(taxonomy, tmp_path, name):
    merula = "Merula  migratoria,Turdus migratorius"
    path = write_synonyms(tmp_path / name, merula, "Phoenicurus x,Animalia Chordata Aves", merula)
    table = NameTable(taxonomy, path)
    assert table.refused == {}
    assert look_up(table, "a photo of Merula migratoria.") == ("synonym", "Turdus", "migratorius")
    assert look_up(table, "Phoenicurus x") == ("synonym", "Chordata", "Aves")
    assert look_up(table, "merula migratoria")[0] == "not in the taxonomy"


@pytest.mark.parametrize(
    ("rows", "synonym", "reason"),
    [
        (["Merula,Turdus", "Merula,Grus"], "Merula", "it stands for 2 names: 'Turdus' (line 2), 'Grus' (line 3)"),
        (["Merula,Merle", "Merle,Turdus"], "Merula", "its accepted name 'Merle' (line 2) is a synonym in turn"),
        (["Merula,Merle", "Merle,Merula"], "Merle", "its accepted name 'Merula' (line 3) is a synonym in turn"),
        (["Merula,Merula"], "Merula", "its accepted name 'Merula' (line 2) is a synonym in turn"),
        (["Merula,Oenanthe"], "Merula", "line 2: accepted name 'Oenanthe' is ambiguous: Animalia > "),
        (["Merula,Lost"], "Merula", "line 2: accepted name 'Lost' is not in the taxonomy"),
        (["Merula,American robin"], "Merula", "line 2: accepted name 'American robin' is not in the taxonomy"),
    ],
)
def test_a_synonym_that_is_not_plain_is_refused_and_named(taxonomy, tmp_path, rows, synonym, reason):
    table = NameTable(taxonomy, write_synonyms(tmp_path / "synonyms.csv", *rows))
    assert reason in table.refused[synonym]
    how, told = look_up(table, synonym)
    assert how == "refused synonym"
    assert told.startswith(f"synonym {synonym!r} is not used: ")


def test_a_name_of_the_taxonomy_is_no_synonym(taxonomy, tmp_path):
    path = write_synonyms(tmp_path / "synonyms.csv", "Turdus migratorius,Grus grus", "Oenanthe,Grus grus")
    table = NameTable(taxonomy, path)
    assert table.refused["Turdus migratorius"].startswith("it is itself a name of the taxonomy: Animalia > ")
    assert "'Oenanthe' is ambiguous" in table.refused["Oenanthe"]
    assert look_up(table, "Turdus migratorius") == ("name", "Turdus", "migratorius")
    assert look_up(table, "Oenanthe")[0] == "ambiguous"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"name,accepted\nA,B\n", "has no column 'synonym'; columns found: \\['name', 'accepted'\\]"),
        (b"", "has no column 'synonym', 'accepted'"),
        (b"synonym,accepted\nA,\n", "line 2: a synonym and its accepted name expected"),
        (b"synonym,accepted\nA\n", "line 2: a synonym"),
        (b"synonym,accepted\nA,B,C\n", "line 2: a synonym"),
        (b"synonym,accepted\n\xff,B\n", "is not UTF-8"),
        (b'synonym,accepted\n"A,B\n', "is not a well-formed CSV"),
    ],
)
def test_a_broken_table_of_synonyms_is_refused(taxonomy, tmp_path, content, message):
    (tmp_path / "s.csv").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        NameTable(taxonomy, tmp_path / "s.csv")
    with pytest.raises(FileNotFoundError, match=r"table of synonyms .*nowhere\.csv does not exist"):
        NameTable(taxonomy, tmp_path / "nowhere.csv")


# -- the labels of samples ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("label", "common"),
    [
        (Label((), "", "txt", "Turdus migratorius"), "American robin"),  # the table's
        (Label((), "Robin", "sci.txt", "a photo of Turdus migratorius."), "Robin"),  # the shard's own
        (Label((), "Turdus migratorius", "sci.txt", "a photo of Turdus migratorius."), "American robin"),
        (Label((), "Merula migratoria", "sci.txt", "a photo of Merula migratoria."), "American robin"),
        (Label((), "", "com.txt", "a photo of american robin."), "American robin"),
    ],
)  # fmt: skip
def test_a_label_gets_the_whole_lineage_and_a_common_name(taxonomy, tmp_path, label, common):
    synonyms = write_synonyms(tmp_path / "s.csv", "Merula migratoria,Turdus migratorius")
    _, lineage, said = NameTable(taxonomy, synonyms).label(label)
    assert (lineage, said) == (ROBIN, common)


def test_a_resolution_counts_samples_and_keeps_a_few_reasons():
    resolution = Resolution()
    resolution.count(Found(3, "name"), 5)
    resolution.count(Found(-1, "tagged"), 2)
    for i in range(9):
        resolution.count(Found(-1, "ambiguous", f"name {i}"), 2)
    assert (resolution.resolved["name"], resolution.unresolved, resolution.flat) == (5, {"ambiguous": 18}, 23)
    assert resolution.lines() == [
        "taxa of 7 samples: 2 by their tagged captions, 5 by name",
        "18 samples left out, ambiguous: name 0; name 1; name 2",
    ]


def test_no_row_of_a_hostile_table_is_taken_for_another(data_folder):
    """Names of two kingdoms, homonyms of genera and phyla, hybrids, rows without a genus."""
    taxonomy = Taxonomy.from_csv(data_folder / "taxonomies" / "inat_nasty_rows.csv")
    table, count = NameTable(taxonomy), Counter[str]()
    for t in range(taxonomy.size):
        genus, species = taxonomy.lineage_names(t)[-2:]
        name = f"{genus} {species}".strip() or taxonomy.name(t)
        found = table.find(flat_names(f"a photo of {name}.")[0], scientific=True)
        assert found.taxon in (t, -1)
        count[found.how] += 1
        assert table.find([" ".join(taxonomy.path(t))]).taxon in (t, -1)
    assert count["name"] + count["path"] > 1900
    assert count["ambiguous"] > 300


def test_the_names_of_hostile_rows_give_their_own_lineage_or_none(data_folder):
    """scientific_name is another genus' or has more words (hybrids, subspecies, codes) than the columns in half."""
    path = data_folder / "taxonomies" / "inat_nasty_rows.csv"
    table, count = NameTable(Taxonomy.from_csv(path)), Counter[str]()
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            found, lineage, _ = table.label(Label((), "", "txt", row["scientific_name"]))
            assert lineage == (as_lineage({rank: row[rank] for rank in RANKS}) if found.taxon >= 0 else ())
            count[found.how] += 1
    assert count == {"name": 772, "path": 3, "ambiguous": 80, "not in the taxonomy": 689}
