"""The model: cut tokens, scalars, and the folder that stock open_clip and we both load.

# B images, U texts, L tokens, D embed
"""

import json
import resource
import shutil

import open_clip
import pytest
import torch
from PIL import Image

from bioclip_hc.model import (
    CONFIG,
    SIDECAR,
    SIDECAR_TENSORS,
    WEIGHTS,
    HierarchicalCLIP,
    create_model,
    get_tokenizer,
    load,
)
from bioclip_hc.packing import pack

VISION = {"image_size": 32, "patch_size": 16, "width": 32, "layers": 1, "head_width": 16}
TIMM = {"timm_model_name": "test_convnext2", "timm_model_pretrained": False, "timm_pool": "avg",
        "timm_proj": "linear", "image_size": 64}  # fmt: skip
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
ARCHITECTURES = {
    "vit": {"embed_dim": 16, "vision_cfg": VISION, "text_cfg": TEXT},
    "custom_text": {
        "embed_dim": 16,
        "vision_cfg": VISION,
        "text_cfg": TEXT | {"proj_bias": True},
        "custom_text": True,
    },
    "eos_pool": {"embed_dim": 16, "vision_cfg": VISION, "text_cfg": TEXT | {"pool_type": "eos", "eos_id": 49407}},
    "not_causal": {"embed_dim": 16, "vision_cfg": VISION, "text_cfg": TEXT | {"no_causal_mask": True}},
    "timm": {"embed_dim": 16, "vision_cfg": TIMM, "text_cfg": TEXT, "custom_text": False},
}
WORDS = [
    "an image of Animalia",
    "an image of Animalia Chordata Aves Passeriformes Turdidae Turdus migratorius",
    "x",
]

each_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)
each_geometry = pytest.mark.parametrize("geometry", ["lorentz", "euclidean"])


@pytest.fixture(scope="module")
def configs(tmp_path_factory):
    """Folder with NAME.json for every architecture."""
    folder = tmp_path_factory.mktemp("architectures")
    for name, cfg in ARCHITECTURES.items():
        (folder / f"tiny_{name}.json").write_text(json.dumps(cfg))
    return folder


@pytest.fixture
def make(configs):
    """make(architecture, **options): a model with random weights and scalars off their starts."""

    def build(architecture="vit", seed=0, **options):
        torch.manual_seed(seed)
        model = create_model(configs / f"tiny_{architecture}.json", **options).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("alpha.log"):
                    parameter -= 0.3 if "image" in name else 0.1
                elif parameter.ndim == 1:
                    parameter += 0.1 * torch.rand_like(parameter)  # so that no bias is zero
        return model

    return build


def pictures(model, n=2):
    size = open_clip.get_model_preprocess_cfg(model.clip)["size"]
    return torch.randn(n, 3, *(size if isinstance(size, (list, tuple)) else (size, size)))


def cut(tokens):
    return tokens[:, : int((tokens != 0).sum(1).max())]


# -- text towers


@each_architecture
def test_cut_tokens_give_the_padded_features_and_gradients(make, configs, architecture):
    model = make(architecture, geometry="euclidean").double()
    padded = get_tokenizer(configs / f"tiny_{architecture}.json")(WORDS)
    short = cut(padded)
    assert short.shape[1] < 30 < padded.shape[1] == 77
    parameters = [p for n, p in model.clip.named_parameters() if "visual" not in n]
    weights = torch.randn(3, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = model.clip.encode_text(padded)
    got = model.encode_text(short)
    torch.testing.assert_close(got, expected)
    for tokens in (padded[:, :40], padded):
        torch.testing.assert_close(model.encode_text(tokens), expected)
    gradients = [torch.autograd.grad((weights * x).sum(), parameters) for x in (got, expected)]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)
    single = model.float()
    torch.testing.assert_close(single.encode_text(short), single.encode_text(padded), rtol=1e-5, atol=1e-5)


@each_architecture
@pytest.mark.filterwarnings("ignore:texts are encoded one by one")
@pytest.mark.parametrize("width", [1, 30, 128])
def test_packed_texts_give_the_padded_features_and_gradients(make, configs, architecture, width):
    model = make(architecture, geometry="lorentz").double()
    padded = get_tokenizer(configs / f"tiny_{architecture}.json")([*WORDS[::-1], WORDS[1] + " alba", WORDS[1]])
    texts = pack([row[row > 0].tolist() for row in padded], width)
    assert texts.tokens.numel() < cut(padded).numel() or width == 1
    parameters = [p for n, p in model.clip.named_parameters() if "visual" not in n]
    weights = torch.randn(len(padded), 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected, got = model.encode_text(padded), model.encode_text(texts)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(model(pictures(model), texts).text, expected)
    gradients = [torch.autograd.grad((weights * x).sum(), parameters) for x in (got, expected)]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)
    single = model.float()
    torch.testing.assert_close(single.encode_text(texts), single.encode_text(padded), rtol=1e-5, atol=1e-5)


@each_architecture
@pytest.mark.filterwarnings("ignore:texts are encoded one by one")
def test_no_texts_have_no_features(make, architecture):
    model = make(architecture)
    assert model.encode_text(pack([])).shape == (0, 16)


def test_features_are_scaled_by_their_alpha(make):
    model = make()
    tokens, images = torch.tensor([[49406, 320, 49407]]), pictures(model)
    out = model(images, tokens)
    stock = model.clip.encode_image(images), model.clip.encode_text(torch.nn.functional.pad(tokens, (0, 74)))
    for got, features, alpha in zip(out[:2], stock, (model.image_alpha, model.text_alpha), strict=True):
        torch.testing.assert_close(got, features * alpha.log.exp())
    assert torch.equal(out.logit_scale, model.logit_scale())
    assert torch.equal(out.curv, model.manifold.curv)


@each_geometry
def test_scalars_have_one_element_and_start_as_published(make, configs, geometry):
    model = create_model(configs / "tiny_vit.json", geometry=geometry, learnable_curv=True, curv=2.0)
    for name, parameter in model.named_parameters():
        assert parameter.ndim > 0, name
    out = model(pictures(model), torch.tensor([[49406, 49407]]))
    assert out.logit_scale.shape == out.curv.shape == (1,)
    scalars = model.scalars()
    assert scalars["logit_scale"] == pytest.approx(1 / 0.07)
    if geometry == "lorentz":
        assert scalars == pytest.approx(
            {"logit_scale": 1 / 0.07, "curvature": 2.0, "image_alpha": 0.25, "text_alpha": 0.25}
        )
    assert model.scalars_at_bounds() == []
    torch.nn.init.constant_(model.logit_scale.log, 9.0)
    assert model(pictures(model), torch.tensor([[49406, 49407]])).logit_scale.item() == pytest.approx(100)
    assert model.scalars_at_bounds() == ["logit_scale"]


# -- folders


@each_architecture
@each_geometry
def test_a_saved_model_comes_back_bit_for_bit(make, tmp_path, architecture, geometry):
    model = make(architecture, geometry=geometry, learnable_curv=geometry == "lorentz", curv=0.5)
    model.metadata = {"text_form": {"template": "ein Bild von {} – ñ"}, "ranks": ["genus"], "n": 1.5}
    model.save_pretrained(tmp_path / "m")
    again = HierarchicalCLIP.from_pretrained(tmp_path / "m").eval()
    mine, theirs = model.state_dict(), again.state_dict()
    assert mine.keys() == theirs.keys()
    assert [name for name in mine if not torch.equal(mine[name], theirs[name])] == []
    assert [p.requires_grad for p in model.parameters()] == [p.requires_grad for p in again.parameters()]
    assert again.metadata == model.metadata
    assert again.model_cfg == model.model_cfg
    assert (again.manifold.start, again.geometry) == (model.manifold.start, geometry)
    images, tokens = pictures(model), torch.tensor([[49406, 320, 500, 49407]])
    for x, y in zip(model(images, tokens), again(images, tokens), strict=True):
        assert torch.equal(x, y)


@each_architecture
@each_geometry
def test_stock_open_clip_loads_the_folder_and_gives_our_tangent_vectors(make, tmp_path, architecture, geometry):
    """The feature scale is folded into the projection: equal up to the rounding of one product."""
    model = make(architecture, geometry=geometry)
    model.save_pretrained(tmp_path / "m")
    stock, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'm'}")
    tokens = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'm'}")(WORDS)
    images = pictures(model)
    stock.eval()
    torch.testing.assert_close(stock.encode_image(images), model.encode_image(images), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(stock.encode_text(tokens), model.encode_text(cut(tokens)), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(stock.logit_scale.exp(), model.logit_scale()[0])
    assert preprocess(Image.new("RGB", (50, 40))).shape == images.shape[1:]


def test_the_folded_weights_alone_are_enough(make, tmp_path):
    model = make(learnable_curv=True)
    torch.nn.init.constant_(model.manifold.curvature.log, 0.7)
    model.save_pretrained(tmp_path / "m")
    (tmp_path / "m" / SIDECAR_TENSORS).unlink()
    again = HierarchicalCLIP.from_pretrained(tmp_path / "m").eval()
    images, tokens = pictures(model), torch.tensor([[49406, 320, 500, 49407]])
    for x, y in zip(model(images, tokens), again(images, tokens), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6)


def test_a_plain_open_clip_folder_is_a_euclidean_model(make, tmp_path):
    model = make(geometry="euclidean", logit_scale=31.0)
    model.save_pretrained(tmp_path / "m")
    for name in (SIDECAR, SIDECAR_TENSORS):
        (tmp_path / "m" / name).unlink()
    again = HierarchicalCLIP.from_pretrained(tmp_path / "m").eval()
    assert again.geometry == "euclidean"
    assert again.metadata == {}
    assert again.logit_scale().item() == pytest.approx(31.0 * 1.05, rel=0.06)
    images = pictures(model)
    assert torch.equal(again.encode_image(images), model.encode_image(images))


def test_training_can_start_from_a_folder(make, tmp_path):
    """create_model takes the towers and leaves the sidecar: the features are those of stock open_clip."""
    model = make()
    model.save_pretrained(tmp_path / "m")
    images = pictures(model)
    start = create_model(tmp_path / "m", geometry="euclidean").eval()
    torch.testing.assert_close(start.encode_image(images), model.encode_image(images), rtol=1e-5, atol=1e-6)
    assert start.logit_scale().item() == pytest.approx(model.logit_scale().item())
    hyperbolic = create_model(tmp_path / "m", geometry="lorentz", curv=0.3)
    assert hyperbolic.scalars() == pytest.approx(
        {"logit_scale": 1 / 0.07, "curvature": 0.3, "image_alpha": 0.25, "text_alpha": 0.25}
    )


def test_load_gives_all_that_prediction_needs(make, tmp_path):
    make().save_pretrained(tmp_path / "m")
    model, preprocess, tokenizer = load(tmp_path / "m")
    assert not model.training
    image = preprocess(Image.new("RGB", (60, 41), "green"))
    assert image.shape == (3, 32, 32)
    tokens = tokenizer(WORDS)
    assert tokens.shape == (3, 77)
    assert model(image[None], cut(tokens)).image.shape == (1, 16)


def test_saving_again_replaces_and_leaves_no_other_file(make, tmp_path):
    make(seed=1).save_pretrained(tmp_path / "m")
    model = make(seed=2)
    model.save_pretrained(tmp_path / "m")
    again = HierarchicalCLIP.from_pretrained(tmp_path / "m")
    assert torch.equal(again.clip.visual.proj, model.clip.visual.proj)
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == sorted([CONFIG, WEIGHTS, SIDECAR, SIDECAR_TENSORS])


def test_a_disk_that_takes_no_more_is_an_oserror_and_keeps_nothing(make, tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(OSError, match=r"open_clip_model\.safetensors cannot be written: .*too large"):
            make().save_pretrained(tmp_path / "m")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list((tmp_path / "m").iterdir())


def test_saving_leaves_the_model_as_it_was(make, tmp_path):
    model = make()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.save_pretrained(tmp_path / "m")
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


# -- errors


def test_a_folder_with_other_files_is_refused(make, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match="holds other files"):
        make().save_pretrained(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_weights_of_another_architecture(make, configs, tmp_path):
    make().save_pretrained(tmp_path / "m")
    cfg = ARCHITECTURES["vit"] | {"embed_dim": 24}
    (tmp_path / "m" / CONFIG).write_text(json.dumps({"model_cfg": cfg, "preprocess_cfg": {}}))
    with pytest.raises(ValueError, match=f"the weights of {tmp_path / 'm'} do not fit architecture.*size mismatch"):
        HierarchicalCLIP.from_pretrained(tmp_path / "m")
    with pytest.raises(ValueError, match=r"do not fit architecture .*tiny_custom_text"):
        create_model(configs / "tiny_custom_text.json", pretrained=str(tmp_path / "m" / WEIGHTS))


def test_a_folder_without_weights_is_not_a_model_with_random_ones(make, tmp_path):
    make().save_pretrained(tmp_path / "m")
    (tmp_path / "m" / WEIGHTS).unlink()
    with pytest.raises(FileNotFoundError, match="no weights"):
        HierarchicalCLIP.from_pretrained(tmp_path / "m")
    (tmp_path / "m" / WEIGHTS).write_bytes(b"cut off")
    with pytest.raises(ValueError, match=f"{WEIGHTS} is no file of safetensors"):
        HierarchicalCLIP.from_pretrained(tmp_path / "m")


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"model_cfg"'])
def test_a_corrupt_configuration(make, tmp_path, content):
    make().save_pretrained(tmp_path / "m")
    (tmp_path / "m" / CONFIG).write_text(content)
    with pytest.raises(ValueError, match=r"open_clip_config\.json is not an open_clip model configuration"):
        HierarchicalCLIP.from_pretrained(tmp_path / "m")


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"\xff", b"{}", b'{"format": 2}', b'{"format": 1, "geometry": "lorentz"}'],
)
def test_a_corrupt_sidecar(make, tmp_path, content):
    make().save_pretrained(tmp_path / "m")
    (tmp_path / "m" / SIDECAR).write_bytes(content)
    with pytest.raises(ValueError, match=r"hyperbolic\.json is not a model description of format 1"):
        HierarchicalCLIP.from_pretrained(tmp_path / "m")


def test_tensors_without_their_description(make, tmp_path):
    make().save_pretrained(tmp_path / "m")
    (tmp_path / "m" / SIDECAR).unlink()
    with pytest.raises(ValueError, match="which says what its space is"):
        HierarchicalCLIP.from_pretrained(tmp_path / "m")


def test_corrupt_or_foreign_sidecar_tensors(make, tmp_path):
    make().save_pretrained(tmp_path / "m")
    make("custom_text").save_pretrained(tmp_path / "other")
    shutil.copy(tmp_path / "other" / SIDECAR_TENSORS, tmp_path / "m" / SIDECAR_TENSORS)
    with pytest.raises(ValueError, match=r"hyperbolic\.safetensors"):
        HierarchicalCLIP.from_pretrained(tmp_path / "m")
    scalars_only = make(geometry="euclidean").save_pretrained(tmp_path / "flat") / SIDECAR_TENSORS
    shutil.copy(scalars_only, tmp_path / "m" / SIDECAR_TENSORS)
    with pytest.raises(ValueError, match=r"missing or unknown tensors \['clip.text_projection'"):
        HierarchicalCLIP.from_pretrained(tmp_path / "m")
    (tmp_path / "m" / SIDECAR_TENSORS).write_bytes(b"no tensors")
    with pytest.raises(ValueError, match=r"hyperbolic\.safetensors"):
        HierarchicalCLIP.from_pretrained(tmp_path / "m")


@pytest.mark.parametrize(
    ("text", "vision", "key"),
    [
        ({"hf_model_name": "evil/model"}, {}, "hf_model_name"),
        ({"hf_tokenizer_name": "evil/model"}, {}, "hf_tokenizer_name"),
        ({"hf_tokenizer_name": "FOLDER"}, {}, "auto_map of tokenizer_config.json"),
        ({"hf_tokenizer_name": "CLEAN", "tokenizer_kwargs": {"trust_remote_code": True}}, {}, "trust_remote_code"),
        ({}, {"timm_model_name": "hf-hub:evil/model"}, "timm_model_name"),
    ],
)
def test_a_configuration_file_names_nothing_afar_and_no_code(tmp_path, text, vision, key):
    for name, settings in {"FOLDER": {"auto_map": {"AutoTokenizer": ["evil.T", None]}}, "CLEAN": {}}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokenizer_config.json").write_text(json.dumps(settings))
        if text.get("hf_tokenizer_name") == name:
            text = text | {"hf_tokenizer_name": str(tmp_path / name)}
    base = ARCHITECTURES["vit"]
    path = tmp_path / "evil.json"
    path.write_text(
        json.dumps(base | {"text_cfg": base["text_cfg"] | text, "vision_cfg": base["vision_cfg"] | vision})
    )
    for act in (create_model, get_tokenizer):
        with pytest.raises(ValueError, match=rf"evil\.json: .*{key}.* would load from elsewhere or run code"):
            act(path)
    assert "evil" not in open_clip.list_models()


def test_names_that_lead_nowhere(tmp_path):
    with pytest.raises(FileNotFoundError, match="neither a folder nor a hub repository"):
        HierarchicalCLIP.from_pretrained("no-such-model")
    with pytest.raises(FileNotFoundError, match=f"has no {CONFIG}"):
        HierarchicalCLIP.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="open_clip knows no architecture 'ViT-Z-99'"):
        create_model("ViT-Z-99")
    with pytest.raises(FileNotFoundError, match=r"model configuration .* does not exist"):
        create_model(tmp_path / "none.json")


@pytest.mark.parametrize(
    "pool", [{"pool_type": "eos", "eos_id": 2}, {"pool_type": "argmax"}, {"pool_type": "first"}]
)
def test_packed_texts_are_pooled_by_the_towers_rule(tmp_path, pool):
    """As the padded ones, where padding is 1 and not 0 (as XLM-V has it), and no end token is the largest."""
    towers = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
    text = {"context_length": 9, "vocab_size": 99, "width": 32, "heads": 2, "layers": 2, **pool}
    path = tmp_path / f"tiny_{'_'.join(map(str, pool.values()))}.json"
    path.write_text(json.dumps({"embed_dim": 16, "custom_text": True, "vision_cfg": towers, "text_cfg": text}))
    model = create_model(path, geometry="euclidean").double()
    rows = torch.tensor([[0, 7, 50, 8, 2, 1, 1, 1, 1], [0, 7, 50, 2, 1, 1, 1, 1, 1], [0, 7, 2, 1, 1, 1, 1, 1, 1]])
    torch.testing.assert_close(model.encode_text(pack(rows.tolist())), model.clip.encode_text(rows))
