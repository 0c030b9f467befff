"""Captions: what is written of a lineage and read back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shards_by_hand import ROBIN, ROBIN_TAG, SCORPION

from bioclip_hc.data.captions import (
    FLAT,
    Label,
    common_name,
    flat_names,
    format_taxon_tag,
    parse_taxon_tag,
    parse_taxon_tag_common,
    read_label,
    scientific_name,
)
from bioclip_hc.taxonomy import RANKS, as_lineage

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


# -- the forms of TreeOfLife-10M -----------------------------------------------------------------------------


def published(lineage, common: str = "") -> dict[str, str]:
    """The ten texts of a sample as its publisher writes them (bioclip's scripts/evobio10m/make_wds.py)."""
    scientific = " ".join(filter(None, lineage[-2:])).capitalize()
    whole = " ".join(filter(None, lineage))
    common = common or scientific or whole
    tagged = " ".join(f"{rank} {name}" for rank, name in zip(RANKS, lineage, strict=True) if name)
    return {
        "scientific_name.txt": scientific,
        "taxonomic_name.txt": whole,
        "common_name.txt": common,
        "sci.txt": f"a photo of {scientific}.",
        "com.txt": f"a photo of {common}.",
        "taxon.txt": f"a photo of {whole}.",
        "taxontag.txt": f"a photo of {tagged}.",
        "sci_com.txt": f"a photo of {scientific} with common name {common}.",
        "taxon_com.txt": f"a photo of {whole} with common name {common}.",
        "taxontag_com.txt": f"a photo of {tagged} with common name {common}.",
    }


PARSLEY = ("Plantae", "", "", "Apiales", "", "", "")
NO_GENUS = ("Animalia", "Chordata", "Amphibia", "Anura", "Dendrobatidae", "", "ruthveni")
SUBSPECIES = ("Animalia", "Chordata", "Aves", "Passeriformes", "Thraupidae", "Geospiza", "x fuliginosa minor")


def label(texts: dict[str, str]) -> Label:
    return read_label(texts, texts.__getitem__)


@pytest.mark.parametrize("lineage", [ROBIN, SCORPION, PARSLEY, NO_GENUS, SUBSPECIES])
@pytest.mark.parametrize("common", ["", "royal family robin", "St. John's-wort", "Mr. X. sp."])
def test_either_tagged_form_tells_lineage_and_common_name(lineage, common):
    texts = published(lineage, common)
    assert label(texts) == Label(lineage, common)
    for missing in ("taxontag.txt", "taxontag_com.txt"):
        assert label({name: text for name, text in texts.items() if name != missing}) == Label(lineage, common)
    assert label({"taxontag_com.txt": texts["taxontag_com.txt"]}) == Label(lineage, common)
    assert label({name: texts[name] for name in ("taxontag.txt", "common_name.txt")}) == Label(lineage, common)
    assert label({"taxontag.txt": texts["taxontag.txt"]}) == Label(lineage)
    assert parse_taxon_tag_common(texts["taxontag.txt"]) == (lineage, "")


@pytest.mark.parametrize("lineage", [ROBIN, SCORPION, PARSLEY, NO_GENUS, SUBSPECIES])
@pytest.mark.parametrize("common", ["", "American robin"])
def test_every_flat_form_tells_the_name_and_the_best_comes_first(lineage, common):
    texts = {name: text for name, text in published(lineage, common).items() if not name.startswith("taxontag")}
    scientific, whole = texts["scientific_name.txt"], texts["taxonomic_name.txt"]
    for member in ("taxonomic_name.txt", "taxon.txt", "taxon_com.txt"):
        found = label(texts)
        assert found.member == member
        assert flat_names(found.text)[0][-1] == whole
        assert common_name(found.common, lineage) == common
        del texts[member]
    for member in ("scientific_name.txt", "sci.txt", "sci_com.txt"):
        found = label(texts)
        if scientific:
            assert found.member == member
            assert flat_names(found.text)[0][-1] == scientific
        else:  # "a photo of ." says nothing, and nothing but what stands in for a common name is left
            assert found.member == "sci_com.txt"
            assert flat_names(found.text)[0][-1] == (common or whole)
        if scientific or member != "sci_com.txt":
            texts.pop(member)
    texts.pop("sci_com.txt", None)
    assert flat_names(label(texts).text)[0][-1] == (common or scientific or whole)


def test_the_caption_of_an_open_clip_shard_may_be_of_any_form():
    for lineage in (ROBIN, SCORPION, PARSLEY):
        for common in ("", "American robin"):
            for member, text in published(lineage, common).items():
                if not text.removeprefix("a photo of").strip(" ."):
                    continue
                found = label({"txt": text})
                tagged = member.startswith("taxontag")
                assert (found.lineage == lineage) == tagged
                assert (found.member == "txt" and found.text == " ".join(text.split())) != tagged
                if member == "taxontag_com.txt":
                    assert found.common == common


@pytest.mark.parametrize(
    ("text", "names", "common"),
    [
        ("a photo of Turdus.", ["Turdus.", "Turdus"], ""),
        ("A photo of a Turdus.", ["a Turdus.", "a Turdus", "Turdus.", "Turdus"], ""),
        ("an image of Animalia Chordata", ["Animalia Chordata"], ""),
        (" Turdus\n ", ["Turdus"], ""),
        ("a family of ducks", ["a family of ducks"], ""),
        ("Turdus with common name thrush.", ["Turdus"], "thrush"),
        ("a photo of  with common name Aves.", ["Aves"], ""),
        ("a photo of .", [], ""),
        ("a photo of", ["a photo of"], ""),
        (" . ", [], ""),
        ("", [], ""),
    ],
)
def test_what_a_flat_caption_may_mean(text, names, common):
    assert flat_names(text) == (names, common)


def test_a_sentence_with_the_name_of_a_rank_is_no_tagged_caption():
    for text in ("a photo of class clown.", "a photo of species.", "order of the garter", "a photo of family."):
        assert label({"txt": text}) == Label((), "", "txt", text)
    assert label({"txt": "a photo of kingdom Plantae."}) == Label(("Plantae", *[""] * 6))
    assert label({"txt": "a photo of genus Turdus species merula."}).lineage == ("",) * 5 + ("Turdus", "merula")


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({}, "no caption 'taxonTag.txt', nor a flat one; members found: $"),
        ({"json": "{}", "cls": "3"}, "nor a flat one; members found: cls, json"),
        ({"sci.txt": "a photo of .", "txt": " "}, "no caption says anything: sci.txt, txt"),
        ({"taxontag.txt": "a robin", "txt": "Turdus"}, "is not"),  # damage is not papered over
        ({"taxontag_com.txt": "a photo of genus  with common name x.", "txt": "Turdus"}, "empty lineage"),
    ],
)
def test_a_sample_without_a_usable_caption_is_told_why(texts, message):
    with pytest.raises(ValueError, match=message):
        label(texts)


@given(st.dictionaries(st.sampled_from(["taxontag_com.txt", *FLAT]), st.text(max_size=80)))
def test_no_texts_break_the_reader(texts):
    try:
        found = label(texts)
    except ValueError:
        return
    assert any(found.lineage) if found.lineage else flat_names(found.text)[0]
