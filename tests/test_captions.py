"""Captions: what is written of a lineage and read back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shards_by_hand import ROBIN, ROBIN_TAG, SCORPION

from bioclip_hc.data.captions import format_taxon_tag, parse_taxon_tag, scientific_name
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
