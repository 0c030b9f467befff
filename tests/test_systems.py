"""Published systems, each from a randomly initialised checkpoint in the form in which it is published.

# B images, T taxa, D embed

Architectures are small, but files, keys, containers and configurations are those of the real ones. What a loaded
system computes is compared with stock open_clip, or, where that cannot read the form, with formulas written here.
"""

import json
import math
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from bioclip_hc import model as model_module
from bioclip_hc.data.prompts import Prompts
from bioclip_hc.evaluation import systems
from bioclip_hc.evaluation.published import recipes
from bioclip_hc.evaluation.systems import open_system, system_folder
from bioclip_hc.kernels import rank_topk
from bioclip_hc.model import HierarchicalCLIP, load
from bioclip_hc.released import AUTHORS
from bioclip_hc.taxonomy import Taxonomy

TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1},
}
PREPROCESS = {"mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711]}
TREE = Taxonomy.from_lineages(
    [
        ["Animalia", "Chordata", "Aves", "Passeriformes", "Turdidae", "Turdus", "migratorius"],
        ["Animalia", "Chordata", "Aves", "Passeriformes", "Turdidae", "Turdus", "merula"],
        ["Plantae", "Tracheophyta", "Magnoliopsida", "Fagales", "Fagaceae", "Quercus", "robur"],
    ]
)
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Payload:
    """A pickle of it makes the file CANARY when it is loaded with all that a pickle can do."""

    def __reduce__(self):
        return os.system, ("touch CANARY",)


def stock(seed=0, **changes):
    """open_clip's own model, with a logit scale of its own."""
    torch.manual_seed(seed)
    model = open_clip.CLIP(**(TINY | changes)).eval()
    with torch.no_grad():
        model.logit_scale += 0.5
        model.visual.proj *= 3  # so that lengths are not near 1
    return model


def folder_of(path, config=TINY, **files):
    """A repository's folder: its configuration, tokenizer files that only other libraries read, and weights."""
    path.mkdir(parents=True)
    (path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": PREPROCESS}))
    for name in ("tokenizer_config.json", "special_tokens_map.json", "vocab.json"):
        (path / name).write_text("{}")
    for name, write in files.items():
        write(path / name.replace("__", "."))
    return path


def pickled(content):
    return lambda path: torch.save(content, path)


def tensors(state):
    return lambda path: save_file({name: t.contiguous() for name, t in state.items()}, path)


def pictures(n=5):
    torch.manual_seed(1)
    return torch.randn(n, 3, 32, 32)


def texts(prompts=("a photo of {}.",), separator=" "):
    return [[form.text(TREE, t) for t in range(TREE.size)] for form in Prompts(prompts, separator=separator).forms]


def logits(system, images):
    """(B, T) as `rank_topk` scores them: each taxon is alone in its rank."""
    with torch.inference_mode():
        image = system.model.encode_image(images)
    text = system.embed_taxa(TREE)
    score, index = rank_topk(image, text, torch.arange(TREE.size), **system.space)
    assert torch.equal(index[..., 0], torch.arange(TREE.size).expand(len(images), -1))
    return score[..., 0]


@torch.inference_mode()
def expected_logits(model, images, words, tokenizer):
    """open_clip's cosines times its logit scale, of one text per taxon."""
    return model.get_logits(images, tokenizer(words))[0]


# -- the forms


def test_bioclip_is_a_pickle_of_tensors_in_an_open_clip_folder(tmp_path):
    model = stock()
    folder = folder_of(tmp_path / "bioclip", open_clip_pytorch_model__bin=pickled(model.state_dict()))
    system = open_system(f"bioclip={folder}")
    theirs, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    expected = expected_logits(theirs.eval(), pictures(), texts()[0], tokenizer)
    torch.testing.assert_close(logits(system, pictures()), expected, rtol=1e-4, atol=1e-4)
    photograph = Image.effect_noise((50, 40), 80).convert("RGB")
    torch.testing.assert_close(system.preprocess(photograph), preprocess(photograph))
    assert (system.name, system.recipe.key) == ("BioCLIP", "bioclip")
    assert system.prompts == Prompts(("a photo of {}.",))
    assert system.space["geometry"] == "euclidean"


def test_lengths_play_no_part_under_the_cosine(tmp_path):
    """Encoder outputs are not normalised; the kernels do it: other lengths give the same logits."""
    model = stock()
    folder = folder_of(tmp_path / "m", open_clip_model__safetensors=tensors(model.state_dict()))
    system = open_system(folder)
    image = system.model.encode_image(pictures()).detach()
    assert (image.norm(dim=1) - 1).abs().min() > 0.1
    text = system.embed_taxa(TREE)
    ranks = torch.from_numpy(TREE.rank)
    once = rank_topk(image, text, ranks, **system.space)
    again = rank_topk(7 * image, 0.3 * text, ranks, **system.space)
    torch.testing.assert_close(once[0], again[0])
    assert torch.equal(once[1], again[1])
    cosine = torch.nn.functional.cosine_similarity(image[:, None], text[None], dim=-1)
    best = torch.stack([cosine[:, ranks == r].max(1).values for r in range(7)], 1)
    torch.testing.assert_close(once[0][..., 0], model.logit_scale.exp().detach() * best, rtol=1e-4, atol=1e-4)


def test_openclip_and_bioclip_2_have_both_kinds_of_file_and_safetensors_are_read(tmp_path):
    good, other = stock(0), stock(1)
    folder = folder_of(
        tmp_path / "m",
        open_clip_model__safetensors=tensors(good.state_dict()),
        open_clip_pytorch_model__bin=pickled(other.state_dict()),
    )
    system = open_system(f"openclip-vit-b-16={folder}")
    assert len(system.prompts.templates) == 80
    tokenizer = open_clip.get_tokenizer("ViT-B-16")
    with torch.inference_mode():
        words = texts(system.prompts.templates, ", ")
        zero_shot = torch.stack([good.encode_text(tokenizer(w), normalize=True) for w in words]).mean(0)
        zero_shot /= zero_shot.norm(dim=1, keepdim=True)  # open_clip's build_zero_shot_classifier
        expected = good.logit_scale.exp() * good.encode_image(pictures(), normalize=True) @ zero_shot.T
    torch.testing.assert_close(logits(system, pictures()), expected, rtol=1e-4, atol=1e-4)


def test_rcme_as_published_and_as_a_lightning_checkpoint(tmp_path):
    model = stock()
    published = folder_of(tmp_path / "rcme", open_clip_model__safetensors=tensors(model.state_dict()))
    lightning = {
        "epoch": 3,
        "global_step": 100,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": {f"model.{name}": t for name, t in model.state_dict().items()},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 1e-5}]}],
        "loops": {},
    }
    trained = folder_of(tmp_path / "trained", rcme__ckpt=pickled(lightning))
    expected = expected_logits(model, pictures(), texts(("{}",))[0], open_clip.get_tokenizer("ViT-B-16"))
    for where in (published, trained / "rcme.ckpt"):
        system = open_system(f"rcme={where}")
        assert system.prompts == Prompts(("{}",))
        torch.testing.assert_close(logits(system, pictures()), expected, rtol=1e-4, atol=1e-4)


def test_a_checkpoint_of_open_clips_trainer(tmp_path):
    state = {f"module.{name}": t.half() for name, t in stock().state_dict().items()}
    folder = folder_of(tmp_path / "m", epoch_9__pt=pickled({"epoch": 9, "name": "x", "state_dict": state}))
    ours = HierarchicalCLIP.from_pretrained(folder / "epoch_9.pt").eval()
    expected = stock().half().float().encode_image(pictures())
    torch.testing.assert_close(ours.encode_image(pictures()), expected, rtol=1e-5, atol=1e-5)


def hyperbolic(tmp_path, curv=0.0, visual=-2.0, textual=-1.5, **config):
    """The authors' form: options of their branch in model_cfg, and three scalars among the weights."""
    model = stock()
    scalars = {"curv": curv, "visual_alpha": visual, "textual_alpha": textual}
    state = model.state_dict() | {name: torch.tensor(value) for name, value in scalars.items()}
    own = {"use_hyperbolic": True, "curv_init": 1.0, "learn_curv": False, "entail_weight": 0.0} | config
    return model, folder_of(tmp_path / "hc", TINY | own, open_clip_model__safetensors=tensors(state))


def test_the_authors_hyperbolic_form(tmp_path):
    model, folder = hyperbolic(tmp_path)
    with pytest.raises(TypeError, match="use_hyperbolic"):  # which is why it is read here
        open_clip.create_model_and_transforms(f"local-dir:{folder}")
    system = open_system(f"bioclip-hc-hyperbolic={folder}")
    scale = model.logit_scale.exp().item()
    assert system.space == {"scale": pytest.approx(scale), "curv": 1.0, "geometry": "lorentz"}
    assert system.prompts == Prompts(("an image of {}",))
    tokenizer = open_clip.get_tokenizer("ViT-B-16")
    with torch.inference_mode():
        image = math.exp(-2.0) * model.encode_image(pictures()).double()
        text = math.exp(-1.5) * model.encode_text(tokenizer(texts(("an image of {}",))[0])).double()
    torch.testing.assert_close(system.model.encode_image(pictures()), image.float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(system.embed_taxa(TREE), text.float(), rtol=1e-4, atol=1e-5)
    u, v = (x / x.norm(dim=1, keepdim=True) for x in (image, text))
    a, b = image.norm(dim=1)[:, None], text.norm(dim=1)[None]
    cosh = a.cosh() * b.cosh() - a.sinh() * b.sinh() * (u @ v.T)  # the hyperbolic law of cosines
    expected = -model.logit_scale.exp() * cosh.clamp(min=1).acosh()
    torch.testing.assert_close(logits(system, pictures()).double(), expected.detach(), rtol=1e-4, atol=1e-4)


def test_the_authors_form_saved_again_is_a_folder_that_stock_open_clip_reads(tmp_path):
    _, folder = hyperbolic(tmp_path)
    ours = HierarchicalCLIP.from_pretrained(folder).eval()
    again = ours.save_pretrained(tmp_path / "again")
    theirs, _, _ = open_clip.create_model_and_transforms(f"local-dir:{again}")
    expected = ours.encode_image(pictures())
    torch.testing.assert_close(theirs.eval().encode_image(pictures()), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(HierarchicalCLIP.from_pretrained(again).eval().encode_image(pictures()), expected)


def test_curvature_is_kept_as_its_logarithm_and_an_odd_one_is_told(tmp_path):
    _, folder = hyperbolic(tmp_path, curv=0.7)
    model_module._warn.cache_clear()
    with pytest.warns(UserWarning, match=r"curv = 0\.7 is read as c = 2\.014"):
        system = open_system(f"bioclip-hc-hyperbolic={folder}")
    assert system.space["curv"] == pytest.approx(math.exp(0.7))


def test_scales_above_one_are_one(tmp_path):
    """As in training: exp(alpha) is at most 1."""
    model, folder = hyperbolic(tmp_path, visual=0.4)
    expected = model.encode_image(pictures())
    torch.testing.assert_close(open_system(folder).model.encode_image(pictures()), expected, rtol=1e-5, atol=1e-5)


def test_the_authors_euclidean_form_is_an_open_clip_folder(tmp_path):
    model = stock()
    folder = folder_of(tmp_path / "hc", open_clip_model__safetensors=tensors(model.state_dict()))
    system = open_system(f"bioclip-hc-euclidean={folder}")
    words = texts(("an image of {}",))[0]
    expected = expected_logits(model, pictures(), words, open_clip.get_tokenizer("ViT-B-16"))
    torch.testing.assert_close(logits(system, pictures()), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("wrapper", ["model.", "module.", "net.clip."])
def test_a_folder_whose_weights_kept_a_wrappers_prefix(tmp_path, wrapper):
    state = {wrapper + name: t for name, t in stock().state_dict().items()}
    folder = folder_of(tmp_path / "m", open_clip_model__safetensors=tensors(state))
    expected = stock().encode_image(pictures())
    torch.testing.assert_close(open_system(folder).model.encode_image(pictures()), expected, rtol=1e-5, atol=1e-5)


def test_the_scalars_among_the_weights_say_that_a_model_is_hyperbolic(tmp_path):
    _, folder = hyperbolic(tmp_path)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY, "preprocess_cfg": PREPROCESS}))
    assert open_system(folder).space["geometry"] == "lorentz"


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["ViT-B-16", "ViT-L-14"])
def test_true_size(tmp_path, architecture):
    """OpenCLIP's and BioCLIP's own architecture, and BioCLIP 2's."""
    theirs = open_clip.create_model(architecture).eval()
    config = open_clip.get_model_config(architecture)
    key = {"ViT-B-16": "bioclip", "ViT-L-14": "bioclip-2"}[architecture]
    folder = folder_of(tmp_path / "m", config, open_clip_pytorch_model__bin=pickled(theirs.state_dict()))
    system = open_system(f"{key}={folder}")
    images = torch.randn(2, 3, 224, 224)
    expected = expected_logits(theirs, images, texts()[0], open_clip.get_tokenizer(architecture))
    torch.testing.assert_close(logits(system, images), expected, rtol=1e-4, atol=1e-3)


# -- what is not what it says


def bad(tmp_path, change, **config):
    state = stock().state_dict()
    change(state)
    return folder_of(tmp_path / "m", TINY | config, open_clip_model__safetensors=tensors(state))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update(curv=torch.zeros(())), "has curv but no textual_alpha; a hyperbolic model needs all"),
        (lambda s: s.update({name: torch.zeros(2) for name in AUTHORS}), "curv must be the logarithm"),
        (lambda s: s.update({name: torch.tensor(math.nan) for name in AUTHORS}), "got .nan"),
        (lambda s: s.pop("logit_scale"), r"holds no logit_scale"),
        (lambda s: s.update({"student.logit_scale": torch.zeros(())}), r"holds 2 logit_scale"),
    ],
)  # fmt: skip
def test_scalars_that_cannot_be_meant(tmp_path, change, message):
    folder = bad(tmp_path, change, use_hyperbolic=True)
    with pytest.raises(ValueError, match=message):
        open_system(folder)


def test_a_hyperbolic_configuration_without_the_scalars(tmp_path):
    folder = bad(tmp_path, lambda s: None, use_hyperbolic=True)
    with pytest.raises(ValueError, match=r"says use_hyperbolic, but open_clip_model\.safetensors has none of curv"):
        open_system(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("ln_final.bias"), r"m/weights\.safetensors does not fit .*: ln_final\.bias is missing"),
        (lambda s: s.update(extra=torch.zeros(1)), "extra is unknown"),
        (lambda s: s.update(text_projection=torch.zeros(3, 16)), r"text_projection is \(3, 16\), not \(64, 16\)"),
    ],
)
def test_weights_of_another_architecture_say_which(tmp_path, change, message):
    folder = bad(tmp_path, change)
    (folder / "open_clip_model.safetensors").rename(folder / "weights.safetensors")
    with pytest.raises(ValueError, match=message):
        open_system(folder / "weights.safetensors")


def test_what_is_beside_a_wrapped_model_is_not_passed_over(tmp_path):
    state = {f"model.{name}": t for name, t in stock().state_dict().items()} | {"head.weight": torch.zeros(2)}
    folder = folder_of(tmp_path / "m", w__ckpt=pickled({"state_dict": state}))
    with pytest.raises(ValueError, match=r"holds 'head\.weight' beside the model, whose .* begin with 'model\.'"):
        open_system(folder / "w.ckpt")


@pytest.mark.parametrize("name", ["open_clip_pytorch_model.bin", "checkpoint.ckpt", "epoch_3.pt"])
@pytest.mark.parametrize("old", [False, True])
def test_a_pickle_that_runs_is_refused(tmp_path, monkeypatch, name, old):
    monkeypatch.chdir(tmp_path)
    state = stock().state_dict() | {"a": Payload()}
    folder = folder_of(tmp_path / "m")
    torch.save({"state_dict": state}, folder / name, _use_new_zipfile_serialization=not old)
    with pytest.raises(ValueError, match="would run posix.system" if not old else "cannot be read as weights"):
        open_system(folder if name.endswith(".bin") else folder / name)
    assert not Path("CANARY").exists()
    torch.load(folder / name, weights_only=False)
    assert Path("CANARY").exists()  # so the payload works


@pytest.mark.parametrize("content", [b"", b"x", b"PK\3\4", os.urandom(1000)])
@pytest.mark.parametrize("name", ["w.safetensors", "w.ckpt"])
def test_files_that_are_none(tmp_path, name, content):
    folder = folder_of(tmp_path / "m")
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=str(folder / name)):
        open_system(folder / name)


@pytest.mark.parametrize("content", [[1], {"a": 1}, {"state_dict": {"a": [torch.zeros(1)]}}, {1: torch.zeros(1)}])
def test_pickles_without_a_table_of_tensors(tmp_path, content):
    folder = folder_of(tmp_path / "m", w__pt=pickled(content))
    with pytest.raises(ValueError, match="no table of tensors"):
        open_system(folder / "w.pt")


def test_a_file_without_its_configuration(tmp_path):
    torch.save(stock().state_dict(), tmp_path / "w.pt")
    with pytest.raises(FileNotFoundError, match=r"has no open_clip_config\.json"):
        open_system(tmp_path / "w.pt")


def test_a_file_of_our_own_folder_is_not_read_without_its_geometry(tmp_path):
    _, folder = hyperbolic(tmp_path)
    saved = HierarchicalCLIP.from_pretrained(folder).save_pretrained(tmp_path / "ours")
    with pytest.raises(ValueError, match=f"is a part of the model folder {saved}; give the folder"):
        open_system(saved / "open_clip_model.safetensors")


def test_another_systems_weights_under_a_published_name(tmp_path):
    folder = folder_of(tmp_path / "m", open_clip_model__safetensors=tensors(stock().state_dict()))
    with pytest.raises(ValueError, match="is euclidean, but bioclip-hc-hyperbolic is lorentz"):
        open_system(f"bioclip-hc-hyperbolic={folder}")


# -- names


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """hub(repo, commit): a repository in the hub's cache, which the hub's own client reads without a network."""
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    model_module._warn.cache_clear()

    def put(repo, commit=COMMIT, seed=0):
        place = tmp_path / "cache" / f"models--{repo.replace('/', '--')}"
        (place / "refs").mkdir(parents=True, exist_ok=True)
        (place / "refs" / "main").write_text(commit)
        weights = tensors(stock(seed).state_dict())
        return folder_of(place / "snapshots" / commit, open_clip_model__safetensors=weights)

    return put


@pytest.mark.parametrize("key", [k for k, r in recipes().items() if r.geometry == "euclidean" and r.revision])
def test_a_pinned_row_is_fetched_at_its_commit_without_a_word(hub, key, recwarn):
    recipe = recipes()[key]
    hub(recipe.hub, recipe.revision)
    hub(recipe.hub, "f" * 40, seed=1)  # what main has become since
    system = open_system(key)
    torch.testing.assert_close(system.model.encode_image(pictures()), stock(0).encode_image(pictures()))
    assert (system.name, system.revision, system.source) == (recipe.title, recipe.revision, recipe.hub)
    assert not [w for w in recwarn if "pinned" in str(w.message)]
    newer = open_system(key, revision="f" * 40)
    assert newer.revision == "f" * 40
    assert newer.fingerprint != system.fingerprint


def test_the_folder_of_a_system_is_found_without_loading_it(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(systems.System, "load", None)
    recipe = recipes()["bioclip"]
    kept = hub(recipe.hub, recipe.revision), hub("a/b")
    assert (system_folder("bioclip"), system_folder(f"a/b@{COMMIT}")) == kept
    mine = folder_of(tmp_path / "mine", model__ckpt=pickled({}))
    for name in (mine, f"bioclip={mine}", mine / "model.ckpt"):
        assert system_folder(name) == mine


def test_an_unpinned_row_says_once_how_to_pin_it(hub, recwarn):
    hub("MVRL/rcme-tol-vit-base-patch16")
    said = f"rcme-tol-vit-base-patch16 is not pinned; this is its commit {COMMIT}, which --revision {COMMIT} gives"
    for _ in range(2):
        assert open_system("rcme").revision == COMMIT
    assert [said in str(w.message) for w in recwarn if "pinned" in str(w.message)] == [True]
    recwarn.clear()
    model_module._warn.cache_clear()
    open_system("rcme", revision=COMMIT)
    open_system(f"MVRL/rcme-tol-vit-base-patch16@{COMMIT}")
    assert not [w for w in recwarn if "pinned" in str(w.message)]


@pytest.mark.filterwarnings("ignore:.*is not pinned")
def test_hub_names(hub):
    hub("a/b")
    for name in ("a/b", "hf-hub:a/b", f"a/b@{COMMIT}", "a/b@main"):
        system = open_system(name)
        assert (system.name, system.revision, system.recipe) == ("a/b", COMMIT, None)
        assert system.prompts == Prompts()
    with pytest.raises(ValueError, match="names revision 'main', and 'other' was asked for"):
        open_system("a/b@main", revision="other")
    with pytest.raises(OSError, match="c/d"):
        open_system("c/d")
    assert load("a/b")[0].geometry == "euclidean"


@pytest.mark.parametrize("name", ["bioclip-hc", "no-such-folder", "a/b/c", "../a/b", ""])
def test_names_of_nothing(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError):
        open_system(name)


@pytest.mark.parametrize("text", [5, "an image of {}", ["{}"], None, {"templates": ["{}"]}, {"template": 5},
                                  {"template": "robin"}, {"form": ["path"]}, {"separator": None}])  # fmt: skip
def test_words_of_training_that_are_none_are_refused_with_the_model(tmp_path, text):
    _, folder = hyperbolic(tmp_path / "released")
    model = load(folder)[0]
    model.metadata["text"] = text
    model.save_pretrained(tmp_path / "m")
    with pytest.raises(ValueError, match=r"/m: metadata 'text' of the model must be a table of template, form"):
        open_system(tmp_path / "m")


def test_the_words_given_come_first(tmp_path):
    folder = folder_of(tmp_path / "m", open_clip_model__safetensors=tensors(stock().state_dict()))
    assert open_system(f"bioclip={folder}", prompts="names").prompts == Prompts(("{}",))
    assert open_system(folder, prompts=Prompts(("x {}",))).prompts == Prompts(("x {}",))
    with pytest.raises(ValueError, match="'nonsense' are neither"):
        open_system(folder, prompts="nonsense")


# -- fingerprints


def test_fingerprints_change_with_all_they_stand_for(tmp_path):
    """Each change, and which of (image, text, whole) it changes."""
    config = TINY | {"custom_text": False}
    base = stock().state_dict()

    def opened(name, state=base, cfg=config, prompts=None, preprocess=PREPROCESS):
        folder = folder_of(tmp_path / name, cfg, open_clip_model__safetensors=tensors(state))
        settings = {"model_cfg": cfg, "preprocess_cfg": preprocess}
        (folder / "open_clip_config.json").write_text(json.dumps(settings))
        system = open_system(folder, prompts=prompts)
        return system.image_fingerprint, system.text_fingerprint, system.fingerprint

    def moved(name):
        state = {n: t.clone() for n, t in base.items()}
        state[name].view(-1)[-1] += 1e-3
        return state

    text, vision = TINY["text_cfg"], TINY["vision_cfg"]
    before = opened("base")
    assert opened("copy") == before  # nor does the place play a part
    changed = {
        "image weights": (opened("a", moved("visual.proj")), (1, 0, 1)),
        "text weights": (opened("b", moved("text_projection")), (0, 1, 1)),
        "activation": (opened("c", cfg=config | {"quick_gelu": True}), (1, 1, 1)),
        "text heads": (opened("d", cfg=config | {"text_cfg": text | {"heads": 4}}), (0, 1, 1)),
        "image heads": (opened("e", cfg=config | {"vision_cfg": vision | {"head_width": 32}}), (1, 0, 1)),
        "mean": (opened("f", preprocess=PREPROCESS | {"mean": [0.5, 0.5, 0.5]}), (1, 0, 1)),
        "words": (opened("g", prompts="bioclip"), (0, 1, 0)),
        "tokenizer": (opened("h", cfg=config | {"text_cfg": text | {"tokenizer_kwargs": {"clean": "whitespace"}}}),
                      (0, 1, 1)),
        "logit scale": (opened("i", moved("logit_scale")), (0, 0, 1)),
    }  # fmt: skip
    for what, (after, expected) in changed.items():
        assert tuple(int(x != y) for x, y in zip(before, after, strict=True)) == expected, what


def test_fingerprints_of_hyperbolic_systems_change_with_their_scales(tmp_path):
    seen = []
    for name, scales in {"a": (-2.0, -1.5), "b": (-2.1, -1.5), "c": (-2.0, -1.6)}.items():
        _, folder = hyperbolic(tmp_path / name, 0.0, *scales)
        system = open_system(folder)
        seen.append((system.image_fingerprint, system.text_fingerprint))
    (image, text), (other_image, same_text), (same_image, other_text) = seen
    assert (image == same_image, image == other_image) == (True, False)
    assert (text == same_text, text == other_text) == (True, False)


def test_fingerprints_do_not_change_by_use(tmp_path):
    """Tokenizers remember what they have seen; that is no part of what they are."""
    folder = folder_of(tmp_path / "m", open_clip_model__safetensors=tensors(stock().state_dict()))
    system, used = open_system(folder), open_system(folder)
    used.embed_taxa(TREE)
    assert used.text_fingerprint == system.text_fingerprint


def test_fingerprints_follow_weights_that_change_in_memory(tmp_path, monkeypatch):
    folder = folder_of(tmp_path / "m", open_clip_model__safetensors=tensors(stock().state_dict()))
    system = open_system(folder)
    model, projection = system.model, system.model.clip.text_projection
    before = system.text_fingerprint, system.image_fingerprint, system.fingerprint
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        projection.view(-1)[-1] += 1e-3
    written = system.text_fingerprint
    assert (written != before[0], system.fingerprint != before[2]) == (True, True)
    assert system.image_fingerprint == before[1]
    model.load_state_dict(kept)
    assert (system.text_fingerprint, system.image_fingerprint, system.fingerprint) == before
    model.clip.text_projection = torch.nn.Parameter(projection.detach() * 2)
    assert system.text_fingerprint not in (before[0], written)
    seen = []
    facts = systems._facts
    monkeypatch.setattr(systems, "_facts", lambda name, tensor: seen.append(name) or facts(name, tensor))
    model.clip.text_projection = projection
    assert (system.text_fingerprint, system.text_fingerprint) == (before[0], before[0])
    assert seen == ["clip.text_projection"]  # what has not changed is not hashed again


def test_what_is_saved_with_a_result(tmp_path):
    folder = folder_of(tmp_path / "m", open_clip_model__safetensors=tensors(stock().state_dict()))
    said = json.loads(json.dumps(open_system(f"bioclip={folder}").to_dict()))
    assert said["prompts"] == {"templates": ["a photo of {}."], "form": "path", "separator": " "}
    assert (said["key"], said["source"], said["revision"]) == ("bioclip", str(folder), "")
    assert said["geometry"] == "euclidean"
    assert len(said["image_fingerprint"]) == len(said["text_fingerprint"]) == 64


def test_text_fingerprints_change_with_the_tokenizer_itself(tmp_path):
    """Not only with the configuration that names it: its files may change beside it."""
    folder = folder_of(tmp_path / "m", open_clip_model__safetensors=tensors(stock().state_dict()))
    system = open_system(folder)
    simple = open_clip.SimpleTokenizer

    def hugging_face(vocabulary, rules):
        backend = SimpleNamespace(to_str=lambda: rules)
        inner = SimpleNamespace(get_vocab=lambda: vocabulary, backend_tokenizer=backend)
        return SimpleNamespace(tokenizer=inner, context_length=77, clean_fn=None, strip_sep_token=False)

    tokenizers = [
        simple(),
        simple(clean="whitespace"),
        simple(additional_special_tokens=["<taxon>"]),
        simple(context_length=64),
        hugging_face({"a": 0, "b": 1}, "lower"),
        hugging_face({"a": 1, "b": 0}, "lower"),
        hugging_face({"a": 0, "b": 1}, "strip"),
    ]
    seen = [replace(system, tokenizer=tokenizer).text_fingerprint for tokenizer in tokenizers]
    assert len(set(seen)) == len(tokenizers)
    same = hugging_face({"b": 1, "a": 0}, "lower")  # in another order, as a library may list it
    assert replace(system, tokenizer=same).text_fingerprint == seen[4]
    assert seen[0] == system.text_fingerprint
