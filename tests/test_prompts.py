"""Words for taxa: presets, files, BioCLIP's kinds of caption, and ensembles of templates.

# T taxa, D embed
"""

import argparse
import json

import pytest
import torch
from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES

from bioclip_hc.cli_options import add_prompt_options, prompts_of
from bioclip_hc.data.prompts import PRESETS, Prompts, read_prompts
from bioclip_hc.data.text import TextForm
from bioclip_hc.evaluation import embeddings
from bioclip_hc.evaluation.embeddings import embed_taxa
from bioclip_hc.kernels.reference import exp_map0, log_map0
from bioclip_hc.model import create_model, get_tokenizer
from bioclip_hc.taxonomy import Taxonomy

ROBIN = ["Animalia", "Chordata", "Aves", "Passeriformes", "Turdidae", "Turdus", "migratorius"]
OAK = ["Plantae", "Tracheophyta", "Magnoliopsida", "Fagales", "Fagaceae", "Quercus", "robur"]
SEVERAL = Prompts(("a photo of {}.", "{} in a video game", "itap of my {}."), separator=", ")
TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 32, "layers": 1, "head_width": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def tree():
    return Taxonomy.from_lineages([ROBIN, OAK], ["American Robin", ""])


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("architecture") / "tiny_prompts.json"
    path.write_text(json.dumps(TINY))
    return path


@pytest.fixture(params=["lorentz", "euclidean"])
def model(config, request):
    torch.manual_seed(0)
    return create_model(config, geometry=request.param).eval()


# -- words


def test_the_presets(tree):
    robin = int(tree.encode(ROBIN)[6])
    path = " ".join(ROBIN)
    said = {name: [form.text(tree, robin) for form in PRESETS[name]().forms] for name in PRESETS}
    assert said["bioclip-hc"] == [f"an image of {path}"]
    assert said["bioclip"] == [f"a photo of {path}."]
    assert said["names"] == [path]
    assert said["openai-80"] == [template(", ".join(ROBIN)) for template in OPENAI_IMAGENET_TEMPLATES]
    assert len(said["openai-80"]) == 80


@pytest.mark.parametrize(
    ("form", "robin", "oak"),
    [
        ("name", "Turdus migratorius", "Quercus robur"),
        ("common", "American Robin", "Quercus robur"),
        ("name_common", "Turdus migratorius with common name American Robin", "Quercus robur"),
        ("path", " ".join(ROBIN), " ".join(OAK)),
        ("path_common", f"{' '.join(ROBIN)} with common name American Robin", " ".join(OAK)),
    ],
)
def test_bioclips_five_kinds_of_caption(tree, form, robin, oak):
    form = TextForm("a photo of {}.", form)
    assert form.text(tree, int(tree.encode(ROBIN)[6])) == f"a photo of {robin}."
    assert form.text(tree, int(tree.encode(OAK)[6])) == f"a photo of {oak}."


def test_common_names_of_a_taxonomy_without_any():
    tree = Taxonomy.from_lineages([ROBIN])
    assert TextForm("{}", "common").text(tree, 6) == "Turdus migratorius"


def test_prompts_travel_as_dictionaries():
    assert Prompts(**json.loads(json.dumps(SEVERAL.to_dict()))) == SEVERAL
    assert Prompts.of(TextForm("{}!", "name", "|")).forms == (TextForm("{}!", "name", "|"),)
    assert str(SEVERAL) == "'a photo of A, B, C.' and 2 more templates"


@pytest.mark.parametrize("templates", [(), "a {}", ("a {}", "b")])
def test_templates_that_cannot_be_meant(templates):
    with pytest.raises(ValueError, match=r"must (be a list|hold one \{\})"):
        Prompts(templates)


@pytest.mark.parametrize("suffix", [".toml", ".json"])
def test_files_of_prompts(tmp_path, suffix):
    path = tmp_path / f"words{suffix}"
    templates = json.dumps(list(SEVERAL.templates))  # a list of TOML too
    text = f'templates = {templates}\nseparator = ", "' if suffix == ".toml" else json.dumps(SEVERAL.to_dict())
    path.write_text(text)
    assert read_prompts(path) == SEVERAL


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", '{"templates": []}', '{"templates": ["{}"], "colour": 1}', '{"templates": [1]}', "[" * 9999],
)
def test_files_that_hold_no_prompts(tmp_path, text):
    path = tmp_path / "words.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"words\.json must hold templates"):
        read_prompts(path)


def test_prompts_that_are_nowhere(tmp_path):
    with pytest.raises(ValueError, match="'openai' are neither one of bioclip-hc, bioclip, names, openai-80 nor"):
        read_prompts("openai")
    with pytest.raises(FileNotFoundError):
        read_prompts(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], None),
        (["--prompts", "bioclip"], Prompts(("a photo of {}.",))),
        (["--template", "the {}"], Prompts(("the {}",))),
        (
            ["--prompts", "openai-80", "--template", "a {}", "--template", "b {}"],
            Prompts(("a {}", "b {}"), "path", ", "),
        ),
    ],
)
def test_options(words, expected):
    parser = argparse.ArgumentParser()
    add_prompt_options(parser)
    assert prompts_of(parser.parse_args(words)) == expected


# -- ensembles


def features(model, tree, form, tokenizer):
    """One text at a time, at full length."""
    with torch.inference_mode():
        return torch.cat([model.encode_text(tokenizer([form.text(tree, t)])) for t in range(tree.size)])


def test_one_template_is_the_text_itself(model, config, tree):
    tokenizer = get_tokenizer(config)
    got = embed_taxa(model, tree, tokenizer, Prompts(("{}!",)))
    torch.testing.assert_close(got, features(model, tree, TextForm("{}!"), tokenizer), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(got.norm(dim=1), torch.ones(tree.size), atol=1e-3)  # its length is kept
    assert torch.equal(embed_taxa(model, tree, tokenizer), embed_taxa(model, tree, tokenizer, Prompts()))


def test_an_ensemble_is_the_mean_where_the_geometry_has_one(model, config, tree):
    tokenizer = get_tokenizer(config)
    each = torch.stack([features(model, tree, form, tokenizer) for form in SEVERAL.forms])
    got = embed_taxa(model, tree, tokenizer, SEVERAL, batch_size=3)
    if model.geometry == "euclidean":
        unit = torch.nn.functional.normalize(each, dim=-1)
        expected = torch.nn.functional.normalize(unit.mean(0), dim=-1)
    else:  # by way of the points: log0, mean, and what exp0 takes
        curv = model.manifold.curv
        expected = log_map0(exp_map0(each.double(), curv), curv).mean(0).float()
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_progress_counts_texts(model, config, tree):
    seen = []
    embed_taxa(model, tree, get_tokenizer(config), SEVERAL, batch_size=5, progress=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 3 * tree.size


def test_no_taxa(model, config):
    assert embed_taxa(model, Taxonomy.from_lineages([]), get_tokenizer(config), SEVERAL).shape == (0, 16)


def test_memory_does_not_grow_with_the_number_of_templates(model, config, tree, monkeypatch):
    """Tokens of one template are held at a time."""
    alive = []

    class Counted(embeddings.TaxonTokens):
        count = 0

        def __init__(self, *args):
            super().__init__(*args)
            Counted.count += 1
            alive.append(Counted.count)

        def __del__(self):
            Counted.count -= 1

    monkeypatch.setattr(embeddings, "TaxonTokens", Counted)
    many = Prompts(tuple(f"{'very ' * (i % 5)}good {{}}" for i in range(20)))
    embed_taxa(model, tree, lambda texts: torch.tensor([[49406, len(t), 49407] for t in texts]), many)
    assert len(alive) == 20
    assert max(alive) <= 2  # the next is made before the last one goes
