"""Names looked up in a taxonomy: found in one way only, or not at all."""

import unicodedata

import pytest
from shards_by_hand import ROBIN

from bioclip_hc.data.captions import flat_names
from bioclip_hc.data.names import NameTable
from bioclip_hc.taxonomy import Taxonomy

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
