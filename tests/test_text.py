"""What is written of a taxon, and its tokens."""

import unicodedata

import numpy as np
import open_clip
import pytest
import torch

from bioclip_hc.data.synthetic import evolve
from bioclip_hc.data.text import TaxonTokens, TextForm
from bioclip_hc.taxonomy import Taxonomy

ROBIN = ("Animalia", "Chordata", "Aves", "", "Turdidae", "Turdus", "migratorius")
NO_GENUS = ("Animalia", "Chordata", "Aves", "", "Turdidae", "", "dubius")


@pytest.fixture(scope="module")
def tree():
    return Taxonomy.from_lineages([ROBIN, NO_GENUS])


@pytest.fixture(scope="module")
def robin(tree):
    """{rank: taxon id} of the robin's known ranks."""
    return {r: int(t) for r, t in enumerate(tree.encode(ROBIN)) if t >= 0}


def test_a_path_is_written_down_to_the_taxon(tree, robin):
    form = TextForm()
    assert form.text(tree, robin[0]) == "an image of Animalia"
    assert form.text(tree, robin[4]) == "an image of Animalia Chordata Aves Turdidae"
    assert form.text(tree, robin[6]) == "an image of Animalia Chordata Aves Turdidae Turdus migratorius"
    bioclip = TextForm("a photo of {}.", separator=", ")
    assert bioclip.text(tree, robin[2]) == "a photo of Animalia, Chordata, Aves."


def test_a_name_alone_and_a_species_with_its_genus(tree, robin):
    form = TextForm("{}", form="name")
    assert form.text(tree, robin[2]) == "Aves"
    assert form.text(tree, robin[5]) == "Turdus"
    assert form.text(tree, robin[6]) == "Turdus migratorius"
    assert form.text(tree, tree.encode(NO_GENUS)[6]) == "dubius"  # not "Turdidae dubius"


@pytest.mark.parametrize("genus", ["Turdus", "Bénus"])
def test_a_genus_that_the_species_repeats_is_written_once(genus):
    apart = unicodedata.normalize("NFD", genus)
    tree = Taxonomy.from_lineages([(*ROBIN[:5], genus, f"{apart} merula"), (*ROBIN[:5], genus, "turdus turdus")])
    texts = {TextForm("{}").text(tree, t) for t in tree.at_rank(6)}
    path = " ".join(filter(None, ROBIN[:5]))
    assert texts == {f"{path} {genus} merula", f"{path} {genus} turdus turdus"}
    assert {TextForm("{}", "name").text(tree, t) for t in tree.at_rank(6)} == {
        f"{genus} merula",
        f"{genus} turdus turdus",
    }


def test_braces_in_a_name_are_letters():
    tree = Taxonomy.from_lineages([["{0} {}"] + [""] * 6])
    assert TextForm().text(tree, 0) == "an image of {0} {}"


def test_forms_travel_as_dictionaries():
    form = TextForm("{}!", "name", "|")
    assert TextForm(**form.to_dict()) == form


@pytest.mark.parametrize("template", ["an image", "{} {}", ""])
def test_a_template_has_one_place(template):
    with pytest.raises(ValueError, match=r"template must hold one {} for the taxon"):
        TextForm(template)


@pytest.mark.parametrize("wrong", [{"template": 5}, {"form": None}, {"form": ["path"]}, {"separator": 1}])
def test_a_form_is_made_of_texts(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be a text, got "):
        TextForm(**wrong)


def test_a_form_that_does_not_exist():
    with pytest.raises(ValueError, match=r"form must be one of .*, got 'lineage'"):
        TextForm(form="lineage")


def test_tokens_are_the_tokenizers_without_padding(tree, robin):
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    tokens = TaxonTokens(tree, TextForm(), tokenizer)
    taxa = [robin[6], robin[0], robin[6]]
    padded = tokenizer([TextForm().text(tree, t) for t in taxa])
    got = tokens(np.array(taxa))
    assert got.dtype == torch.int64
    longest = int((padded != 0).sum(1).max())
    assert got.shape == (3, longest)
    assert torch.equal(got, padded[:, :longest])
    assert not padded[:, longest:].any()
    assert tokens(np.array([robin[0]])).shape[1] == int((padded[1] != 0).sum())  # cut to the longest of its batch


def test_each_taxon_is_tokenised_once(tree):
    asked = []

    def tokenizer(texts):
        asked.extend(texts)
        return torch.tensor([[len(text), 0, 7, 0, 0] for text in texts])

    tokens = TaxonTokens(tree, TextForm("{}", "name"), tokenizer)
    assert tokens(np.empty(0, np.int64)).shape == (0, 1)
    assert tokens(np.array([2, 0, 2])).tolist() == [[4, 0, 7], [8, 0, 7], [4, 0, 7]]
    tokens(np.array([0, 1]))
    assert asked == ["Animalia", "Aves", "Chordata"]
    assert tokens(np.empty(0, np.int64)).shape == (0, 1)


def test_packed_tokens_are_the_same_texts(tree):
    tokens = TaxonTokens(tree, TextForm(), open_clip.get_tokenizer("ViT-B-32"))
    taxa = np.arange(tree.size)[::-1]
    packed = tokens.packed(taxa)
    assert torch.equal(packed.padded(), tokens(taxa))
    assert packed.tokens.numel() < packed.padded().numel()
    assert len(tokens.packed(np.empty(0, np.int64))) == 0


def test_what_is_kept_is_compact_and_does_not_mix(monkeypatch):
    """In any order of asking, by parts: 4 bytes a token, and 12 a taxon."""
    monkeypatch.setattr("bioclip_hc.data.text.AT_ONCE", 7)
    tree = Taxonomy.from_lineages(evolve(0, 60).lineages)
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    expected = tokenizer([TextForm().text(tree, t) for t in range(tree.size)])
    tokens = TaxonTokens(tree, TextForm(), tokenizer)
    rng = np.random.default_rng(0)
    for _ in range(40):
        taxa = rng.integers(0, tree.size, rng.integers(0, 30))
        got = tokens(taxa)
        assert torch.equal(got, expected[taxa, : got.shape[1]])
        assert not expected[taxa, got.shape[1] :].any()
        assert torch.equal(tokens.packed(taxa).padded(), got)
    tokens(np.arange(tree.size))
    assert tokens.nbytes == 4 * int((expected != 0).sum()) + 12 * tree.size


def test_a_tokenizer_that_does_not_pad_with_zeros_keeps_its_padding(tree):
    """Its tower knows it; a zero may then be a token of its own."""
    rows = torch.tensor([[0, 5, 2, 1], [0, 6, 1, 1], [7, 0, 2, 1]])
    tokens = TaxonTokens(tree, TextForm("{}", "name"), lambda texts: rows[: len(texts)])
    assert torch.equal(tokens(np.arange(3)), rows)
    assert torch.equal(tokens.packed(np.arange(3)).padded(), rows)
