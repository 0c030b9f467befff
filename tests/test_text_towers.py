"""Unique texts, cut and packed, against each text alone at full length, for every kind of text tower.

# n occurrences of texts in a batch, U distinct ones, D embed
"""

import json
import warnings

import numpy as np
import pytest
import torch

from bioclip_hc.data.text import TaxonTokens, TextForm
from bioclip_hc.model import _warn, create_model, get_tokenizer
from bioclip_hc.packing import pack
from bioclip_hc.taxonomy import Taxonomy

VISION = {"image_size": 32, "patch_size": 16, "width": 32, "layers": 1, "head_width": 16}
WORDS = 60
TEXT = {"context_length": 77, "vocab_size": WORDS, "width": 32, "heads": 2, "layers": 2}
CUSTOM = {"custom_text": True}
CAUSAL = {
    "argmax": ({}, {}),
    "argmax, a tower of its own": ({"proj_bias": True}, CUSTOM),
    "end token": ({"pool_type": "eos", "eos_id": WORDS - 1}, {}),
    "first": ({"pool_type": "first"}, CUSTOM),
    "layer scale, quick GELU": ({"ls_init_value": 0.3}, {"quick_gelu": True}),
    "no projection": ({"proj_type": "none"}, {"embed_dim": 32}),
    "normalised queries": ({"qk_norm": True, "scale_heads": True, "scale_attn": True}, {}),
    "normalised inner features": ({"scale_attn_inner": True, "scale_fc": True}, CUSTOM),
}
WHOLE = {
    "last": ({"pool_type": "last"}, {}),
    "not pooled": ({"pool_type": "none"}, {}),
    "not causal": ({"no_causal_mask": True}, {}),
    "SigLIP": ({"no_causal_mask": True, "pool_type": "last", "proj_bias": True, "context_length": 64}, CUSTOM),
    "class token": ({"embed_cls": True}, CUSTOM),
    "CoCa": (
        {"embed_cls": True, "output_tokens": True, "context_length": 76},
        CUSTOM | {"multimodal_cfg": {"context_length": 76, "width": 32, "heads": 2, "layers": 1}},
    ),
}
FORMS = {
    "path": TextForm(),
    "sentence": TextForm("a photo of {}.", separator=", "),
    "name": TextForm("{}", form="name"),
}
LINEAGES = [
    ("Animalia", "Chordata", "Aves", "Passeriformes", "Turdidae", "Turdus", "merula"),
    ("Animalia", "Chordata", "Aves", "Passeriformes", "Turdidae", "Turdus", "migratorius"),
    ("Animalia", "Chordata", "Aves", "Passeriformes", "Muscicapidae", "Oenanthe", "oenanthe"),
    ("Plantae", "Tracheophyta", "Magnoliopsida", "Apiales", "Apiaceae", "Oenanthe", "crocata"),
    ("Plantae", "Tracheophyta", "", "", "Rosaceae", "", "× hybrida"),
    ("Animalia", "Chordata", "Aves", "Passeriformes", "Turdidae", "Turdus", "philomelos " * 80 + "clarkei"),
    ("Animalia", "Chordata", "Aves", "Passeriformes", "Turdidae", "Turdus", "philomelos " * 80 + "hebridensis"),
]  # the last two are alike up to where the tokenizer cuts them off


@pytest.fixture(scope="module")
def tree():
    return Taxonomy.from_lineages(LINEAGES)


class Words:
    """A tokenizer with a token for each word, that begins, ends, cuts off and pads texts as CLIP's does."""

    def __init__(self, context, padding=0):
        self.context, self.padding, self.known = context, padding, {}

    def __call__(self, texts):
        rows = torch.full((len(texts), self.context), self.padding)
        for row, text in zip(rows, texts, strict=True):
            words = text.replace(".", " .").replace(",", " ,").split()
            tokens = [WORDS - 2, *(2 + self.known.setdefault(word, len(self.known)) for word in words)]
            tokens = [*tokens[: self.context - 1], WORDS - 1]
            row[: len(tokens)] = torch.tensor(tokens)
        assert len(self.known) < WORDS - 4
        return rows


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """make(kind, text_cfg, model_cfg): a model with random weights, no bias of it zero."""
    folder = tmp_path_factory.mktemp("towers")

    def build(kind, text, more):
        path = folder / f"tower_{''.join(filter(str.isalnum, kind))}.json"
        path.write_text(json.dumps({"embed_dim": 16, "vision_cfg": VISION, "text_cfg": TEXT | text} | more))
        torch.manual_seed(0)
        model = create_model(path, geometry="euclidean").eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.1 * torch.rand_like(parameter) if parameter.ndim == 1 else 0
        return model, Words((TEXT | text)["context_length"])

    return build


def parameters(model):
    """Those of the text tower."""
    others = ("visual", "text_decoder")
    return {name: p for name, p in model.clip.named_parameters() if not name.startswith(others)}


def results(model, features):
    """Features, and the gradients of a sum of them in which every number has its own weight."""
    weight = torch.randn(features.shape, generator=torch.Generator().manual_seed(1))
    trained = parameters(model)
    gradients = torch.autograd.grad((features * weight).sum(), trained.values(), allow_unused=True)
    found = {name: g for name, g in zip(trained, gradients, strict=True) if g is not None}
    return {"features": features.detach()} | found


def assert_close(found, expected, what):
    """Within 1e-5 of the largest number of each tensor, or of 1."""
    assert found.keys() == expected.keys(), what
    for name, tensor in expected.items():
        far = (found[name] - tensor).abs().max() / tensor.abs().max().clamp_min(1)
        assert far < 1e-5, f"{what}, {name}: {far:.1e}"


def occurrences(tree):
    """(n,) taxa of a batch: every taxon, some of them several times, in no order."""
    taxa = np.concatenate([np.arange(tree.size), np.arange(0, tree.size, 3), np.arange(0, tree.size, 7)])
    return taxa[np.random.default_rng(0).permutation(len(taxa))]


def check(model, tokenizer, tree, form):
    """Every way against each text alone at full length, each occurrence of it."""
    taxa = occurrences(tree)
    texts = [form.text(tree, int(taxon)) for taxon in taxa]
    alone = model.clip.encode_text(tokenizer(texts))
    expected = results(model, alone)
    unique, occurrence = np.unique(taxa, return_inverse=True)
    tokens = TaxonTokens(tree, form, tokenizer)
    cut = tokens(unique)
    full = tokenizer([form.text(tree, int(taxon)) for taxon in unique])
    lengths = (cut != 0).sum(1)
    rows = [row[:length].tolist() for row, length in zip(cut, lengths, strict=True)]
    ways = {
        "unique": full,
        "cut": cut,
        "packed": tokens.packed(unique),
        "packed in short sequences": pack(rows, 40),
        "each in a sequence of its own": pack(rows, 1),
    }
    for name, way in ways.items():
        assert_close(results(model, model.encode_text(way)[occurrence]), expected, f"{form.template}, {name}")
        with torch.inference_mode():
            assert_close({"features": model.encode_text(way)[occurrence]}, {"features": alone}, name)
    return ways["packed"], full


@pytest.mark.parametrize("kind", CAUSAL)
def test_causal_towers_read_beginnings_once(make, tree, kind):
    model, tokenizer = make(kind, *CAUSAL[kind])
    for name, form in FORMS.items():
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            packed, full = check(model, tokenizer, tree, form)
        assert full.numel() / packed.tokens.numel() > {"path": 3, "sentence": 3, "name": 5}[name]


@pytest.mark.parametrize("kind", WHOLE)
def test_other_towers_get_whole_texts_after_one_warning(make, tree, kind):
    model, tokenizer = make(kind, *WHOLE[kind])
    _warn.cache_clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for form in FORMS.values():
            check(model, tokenizer, tree, form)
    said = [str(w.message) for w in caught if "texts are encoded one by one" in str(w.message)]
    assert len(said) == 1, said


@pytest.mark.parametrize(
    ("kind", "config", "padding"),
    [
        ("bert", {"pad_token_id": 0, "max_position_embeddings": 40}, 0),
        ("roberta", {"pad_token_id": 1, "max_position_embeddings": 42, "type_vocab_size": 1}, 1),
        ("mt5", {"pad_token_id": 0, "d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2}, 0),
    ],
)
def test_hugging_faces_encoders_get_what_their_tokenizer_gives(make, tmp_path, kind, config, padding):
    """Their padding need not be 0, and their longest text is not the tokenizer's."""
    transformers = pytest.importorskip("transformers")
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, "vocab_size": 99} | size | config))
    settings = transformers.AutoConfig.from_pretrained(tmp_path)
    transformers.AutoModel.from_config(settings).save_pretrained(tmp_path)
    text = {"hf_model_name": str(tmp_path), "hf_pooler_type": "mean_pooler", "hf_proj_type": "mlp"}
    model, _ = make(kind, text, CUSTOM)

    tree = Taxonomy.from_lineages(LINEAGES[:5])
    tokenizer, taxa = Words(30, padding), np.arange(tree.size)
    expected = results(model, model.clip.encode_text(tokenizer([TextForm().text(tree, t) for t in taxa])))
    packed = TaxonTokens(tree, TextForm(), tokenizer).packed(taxa)
    _warn.cache_clear()
    with pytest.warns(UserWarning, match="for their tower is not open_clip's own"):
        found = model.encode_text(packed)
    assert_close(results(model, found), expected, kind)


def test_a_text_cut_off_ends_with_the_end_token(tree):
    """As open_clip's tokenizer has it; packed, texts that differ only behind the cut are one."""
    tokenizer = get_tokenizer("ViT-B-32")
    taxa = np.flatnonzero([TextForm().text(tree, t).endswith(("clarkei", "hebridensis")) for t in range(tree.size)])
    packed = TaxonTokens(tree, TextForm(), tokenizer).packed(taxa)
    assert packed.padded().shape == (2, 77)
    assert packed.padded()[:, -1].tolist() == [49407, 49407]
    assert torch.equal(packed.padded(), tokenizer([TextForm().text(tree, int(t)) for t in taxa]))
    assert packed.tokens.numel() == 77
