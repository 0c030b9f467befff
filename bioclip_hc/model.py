"""HierarchicalCLIP: an open_clip model whose features are tangent vectors of a manifold.

# B images, U texts, L tokens, D embed

A saved model is a folder that stock open_clip loads. The feature scales exp(alpha) are folded into the
projections there, so that stock `encode_image` and `encode_text` return tangent vectors. What open_clip's strict
loader would refuse lives beside it: `hyperbolic.json` says what the space is, `hyperbolic.safetensors` holds the
scalars and the projections as they were, so that loading here restores every bit.
"""

from __future__ import annotations

import copy
import json
import logging
import math
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import open_clip
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from open_clip.transformer import text_global_pool
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bioclip_hc.manifolds import MAX_LOGIT_SCALE, BoundedExp, Euclidean, Lorentz, make_manifold
from bioclip_hc.packing import PackedTexts
from bioclip_hc.released import AUTHORS, HYPERBOLIC, fit, is_plain, read_released, stock_config, weights_file

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"  # open_clip's names
SIDECAR, SIDECAR_TENSORS = "hyperbolic.json", "hyperbolic.safetensors"
FORMAT_VERSION = 1
PICKLES = ["*.bin", "*.pt", "*.pth"]
TOKENIZER_OPTIONS = {"additional_special_tokens", "clean", "language", "reduction_mask", "strip_sep_token"}
INIT_LOGIT_SCALE = 1 / 0.07  # CLIP, section 2.5


class ModelOutput(NamedTuple):
    """image (B, D) and text (U, D) tangent vectors; logit_scale (1,) and curv (1,), fp32."""

    image: Tensor
    text: Tensor
    logit_scale: Tensor
    curv: Tensor


class HierarchicalCLIP(nn.Module):
    """Image and text towers of open_clip, a manifold, feature scales and a logit scale.

    Args:
        clip: an open_clip CLIP or CustomTextCLIP; its logit_scale is taken over.
        manifold: Lorentz or Euclidean.
        model_cfg: open_clip's `model_cfg` of this model, needed to save it.
        logit_scale: where the logit scale starts; at most 100.
        metadata: JSON-able facts that travel with the model (text form, ranks, taxonomy, provenance).
    """

    clip: Any  # open_clip's classes share no base that types their towers

    def __init__(
        self,
        clip: Any,
        manifold: Lorentz | Euclidean,
        model_cfg: dict[str, Any],
        logit_scale: float = INIT_LOGIT_SCALE,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.clip = clip
        self.manifold = manifold
        self.model_cfg = model_cfg
        self.metadata = dict(metadata or {})
        self.embed_dim = int(model_cfg["embed_dim"])
        del clip.logit_scale  # one owner: the bounded scale below
        self.logit_scale = BoundedExp(logit_scale, high=MAX_LOGIT_SCALE)
        if self.geometry == "lorentz":  # MERU: exp(alpha) starts at D^-0.5, so that norms start near 1
            self.image_alpha = BoundedExp(self.embed_dim**-0.5, high=1.0)
            self.text_alpha = BoundedExp(self.embed_dim**-0.5, high=1.0)

    @property
    def geometry(self) -> str:
        """ "lorentz" or "euclidean"."""
        return self.manifold.geometry

    @property
    def preprocess_cfg(self) -> dict[str, Any]:
        """open_clip's preprocessing (size, mean, std, interpolation, ...) of this model."""
        return open_clip.get_model_preprocess_cfg(self.clip)

    def encode_image(self, images: Tensor) -> Tensor:
        """Tangent vectors (B, D) of images (B, 3, H, W) preprocessed as `preprocess_cfg` says."""
        features = self.clip.encode_image(images.to(self.dtype))
        return features * self.image_alpha().to(features.dtype) if self.geometry == "lorentz" else features

    def encode_text(self, tokens: Tensor | PackedTexts) -> Tensor:
        """Tangent vectors (U, D) of tokens (U, L), or of packed texts, with the same result.

        L may be cut to the longest text. Packed texts share their beginnings where no feature depends on what
        follows its text's end; other towers get every text on its own, at full length, after one warning.
        """
        if isinstance(tokens, PackedTexts):
            features = _encode_packed(self.clip, tokens)
        else:
            features = _encode_text(self.clip, tokens)
        return features * self.text_alpha().to(features.dtype) if self.geometry == "lorentz" else features

    def forward(self, images: Tensor, tokens: Tensor | PackedTexts) -> ModelOutput:
        """Both sides and the scalars; training calls this alone (ZeRO-3 gathers parameters by module calls)."""
        return ModelOutput(
            self.encode_image(images),
            self.encode_text(tokens),
            self.logit_scale(),
            self.manifold.curv.to(images.device),
        )

    @property
    def dtype(self) -> torch.dtype:
        """Floating dtype of the towers' weights."""
        return next(self.clip.parameters()).dtype

    def scalars(self) -> dict[str, float]:
        """Current logit scale, curvature and feature scales, for logs; costs a host sync."""
        # forward itself, for ZeRO-3's hooks around a call would take the parameter apart again
        return {name: bounded.forward().item() for name, bounded in self._bounded()}

    def scalars_at_bounds(self) -> list[str]:
        """Names of the learnable scalars that sit on a bound."""
        return [name for name, bounded in self._bounded() if bounded.at_bound()]

    def _bounded(self) -> Iterator[tuple[str, BoundedExp]]:
        for name, module in self.named_modules():
            if isinstance(module, BoundedExp):
                yield name.removeprefix("manifold."), module

    # -- saving and loading -------------------------------------------------------------------------------

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write an open_clip folder with its sidecar; the config, which makes it loadable, comes last.

        Raises:
            FileExistsError: the folder holds something else.
        """
        folder = Path(folder)
        found = [path.name.lstrip(".") for path in folder.iterdir()] if folder.exists() else []
        if found and not any(name.startswith(("open_clip", "hyperbolic")) for name in found):
            raise FileExistsError(f"{folder} holds other files; save the model to a new or empty folder")
        folder.mkdir(parents=True, exist_ok=True)
        state = {name: t.detach().to("cpu").clone() for name, t in self.clip.state_dict().items()}
        state["logit_scale"] = self.logit_scale().detach().log().reshape(()).cpu()
        kept = {n: t.detach().cpu().clone() for n, t in self.state_dict().items() if not n.startswith("clip.")}
        left = {"image": 1.0, "text": 1.0}  # what a user of stock features still has to multiply with
        if self.geometry == "lorentz":
            for side, alpha in (("image", self.image_alpha), ("text", self.text_alpha)):
                names = _projection_names(self.clip, side)
                for name in names:
                    kept[f"clip.{name}"] = state[name].clone()
                    state[name] *= alpha().detach().cpu()
                if not names:
                    left[side] = alpha().item()
        sidecar = {
            "format": FORMAT_VERSION,
            "geometry": self.geometry,
            "curv": self.manifold.curv.item(),
            "curv_start": self.manifold.start,
            "learnable_curv": any(p.requires_grad for p in self.manifold.parameters()),
            "logit_scale": self.logit_scale().item(),
            "feature_scale": left,
            "metadata": self.metadata,
        }
        config = {"model_cfg": self.model_cfg, "preprocess_cfg": _jsonable(self.preprocess_cfg)}
        (folder / CONFIG).unlink(missing_ok=True)  # a folder half written is no model, old or new
        _replace(folder / WEIGHTS, lambda path: save_file(_contiguous(state), path))
        _replace(folder / SIDECAR_TENSORS, lambda path: save_file(_contiguous(kept), path))
        _replace(folder / SIDECAR, lambda path: _write_json(path, sidecar))
        _replace(folder / CONFIG, lambda path: _write_json(path, config))
        return folder

    @classmethod
    def from_pretrained(cls, name: str | Path, *, revision: str | None = None) -> HierarchicalCLIP:
        """Load a folder written by `save_pretrained`, any open_clip folder, or a hub repository of either.

        Args:
            name: a local folder, a weights file beside its open_clip_config.json, or "owner/repo" or
                "owner/repo@revision" (with or without "hf-hub:") on the Hugging Face hub. What is not an open_clip
                folder is read as `released` says, the authors' hyperbolic form included.
            revision: commit or tag of the hub repository; pin it for results that last.

        Raises:
            FileNotFoundError: no such folder, or no open_clip_config.json in it.
            ValueError: weights that do not fit the architecture, or an unreadable sidecar.
        """
        folder = resolve_folder(name, revision)
        weights, folder = (folder, folder.parent) if folder.is_file() else (None, folder)
        if weights and (folder / SIDECAR).is_file():
            raise ValueError(f"{weights} is a part of the model folder {folder}; give the folder")
        clip, model_cfg, scalars = _load_folder(folder, weights)
        pretrained_scale = clip.logit_scale.exp().item()
        if scalars:
            return _as_released(clip, model_cfg, pretrained_scale, scalars)
        if not (folder / SIDECAR).is_file():
            if (folder / SIDECAR_TENSORS).is_file():
                raise ValueError(f"{folder} has {SIDECAR_TENSORS} but no {SIDECAR}, which says what its space is")
            return cls(clip, Euclidean(), model_cfg, pretrained_scale)
        sidecar = read_sidecar(folder)
        manifold = make_manifold(sidecar["geometry"], sidecar["curv_start"], sidecar["learnable_curv"])
        model = cls(clip, manifold, model_cfg, sidecar["logit_scale"], sidecar["metadata"])
        if (folder / SIDECAR_TENSORS).is_file():
            _overlay(model, folder)
        elif isinstance(manifold, Lorentz):  # the folded weights alone: the same features, up to rounding
            nn.init.constant_(manifold.curvature.log, math.log(sidecar["curv"]))
            for side, alpha in (("image", model.image_alpha), ("text", model.text_alpha)):
                nn.init.constant_(alpha.log, math.log(sidecar["feature_scale"][side]))
        return model


def create_model(
    architecture: str | Path,
    pretrained: str | None = None,
    *,
    geometry: str = "lorentz",
    curv: float = 1.0,
    learnable_curv: bool = False,
    logit_scale: float | None = None,
    image_size: int | None = None,
) -> HierarchicalCLIP:
    """A model to train.

    Args:
        architecture: a name that open_clip knows, an open_clip model configuration (.json), or a folder with
            open_clip_config.json (its weights are loaded, and its sidecar left aside).
        pretrained: open_clip's tag or a weights file, for a named architecture.
        geometry, curv, learnable_curv: the manifold.
        logit_scale: where it starts; by default CLIP's 1/0.07, or for Euclidean space the loaded weights' own.
        image_size: overrides the architecture's.

    Raises:
        FileNotFoundError, ValueError: an architecture that does not exist, or weights that do not fit it.
    """
    if Path(architecture).is_dir():
        clip, model_cfg, _ = _load_folder(Path(architecture), None, image_size)
    else:
        clip, model_cfg = _load_clip(architecture, pretrained, image_size)
    if logit_scale is None:
        logit_scale = clip.logit_scale.exp().item() if geometry == "euclidean" else INIT_LOGIT_SCALE
    return HierarchicalCLIP(clip, make_manifold(geometry, curv, learnable_curv), model_cfg, logit_scale)


def load(
    name: str | Path, *, revision: str | None = None, device: str | torch.device = "cpu"
) -> tuple[HierarchicalCLIP, Any, Any]:
    """A model ready to predict: (model in eval mode, preprocess for PIL images, tokenizer).

    Raises:
        As `HierarchicalCLIP.from_pretrained`.
    """
    folder = resolve_folder(name, revision)
    model = HierarchicalCLIP.from_pretrained(folder).to(device).eval()
    try:
        preprocess = image_transform_v2(PreprocessCfg(**model.preprocess_cfg), is_train=False)
    except Exception as error:  # open_clip asserts what it expects of a configuration
        raise ValueError(f"{folder / CONFIG}: preprocess_cfg cannot be used: {error!r}") from None
    return model, preprocess, get_tokenizer(folder.parent if folder.is_file() else folder)


def get_tokenizer(architecture: str | Path) -> Any:
    """open_clip's tokenizer for an architecture as `create_model` takes it."""
    if Path(architecture).is_dir():
        _folder_config(Path(architecture))
        try:
            return open_clip.get_tokenizer(f"local-dir:{architecture}")
        except OSError:
            raise
        except Exception as error:  # a package that is missing, options that its tokenizer does not have, ...
            raise ValueError(f"the tokenizer of {architecture} cannot be made: {error!r}") from None
    return open_clip.get_tokenizer(_registered_name(architecture))


def resolve_folder(name: str | Path, revision: str | None = None) -> Path:
    """The local folder of a model, or its weights file; fetched from the hub when the name is neither.

    Of a hub repository that is not pinned to a commit it says once which commit was taken.

    Raises:
        FileNotFoundError: neither here nor a hub repository.
        OSError: the hub does not give it.
        ValueError: two different revisions.
    """
    path = Path(name)
    if path.exists():
        return path
    repo, _, at = str(name).removeprefix("hf-hub:").partition("@")
    if repo.count("/") != 1 or repo.startswith((".", "/")):
        raise FileNotFoundError(f"{name} is neither a folder nor a hub repository (owner/repo)")
    if at and revision and at != revision:
        raise ValueError(f"{name} names revision {at!r}, and {revision!r} was asked for; give one of them")
    folder = _snapshot(repo, at or revision)
    commit = commit_of(folder)
    if commit and commit != (at or revision):
        _warn(f"{repo} is not pinned; this is its commit {commit}, which --revision {commit} gives again")
    return folder


def commit_of(folder: Path) -> str:
    """The hub's commit that a folder in its cache holds, "" for a folder of another kind."""
    return folder.name if folder.parent.name == "snapshots" and len(folder.name) == 40 else ""


def _snapshot(repo: str, revision: str | None) -> Path:
    """A repository's model files; its pickles only where there are no safetensors."""
    from huggingface_hub import snapshot_download

    patterns = ["open_clip*", "hyperbolic*", "taxonomy*", "tokenizer*", "vocab*", "merges*", "special_tokens*"]
    try:
        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=patterns, ignore_patterns=PICKLES))
        if not any(file.name != SIDECAR_TENSORS for file in folder.glob("*.safetensors")):
            snapshot_download(repo, revision=revision, allow_patterns=[f"open_clip{end}" for end in PICKLES])
    except Exception as error:  # the hub's client and its HTTP library have errors of many kinds
        raise OSError(f"{repo} cannot be had from the hub: {error}") from None
    return folder


def read_sidecar(folder: Path) -> dict[str, Any]:
    """The content of hyperbolic.json.

    Raises:
        ValueError: unreadable, of another format version, or with a key missing.
    """
    path = folder / SIDECAR
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        needed = ("geometry", "curv", "curv_start", "learnable_curv", "logit_scale", "feature_scale", "metadata")
        missing = [key for key in needed if key not in content]
        if content.get("format") != FORMAT_VERSION or missing:
            raise ValueError(f"format {content.get('format')!r}, missing keys {missing}")
        for key in ("curv", "curv_start", "logit_scale"):
            if not 0 < float(content[key]) < math.inf:
                raise ValueError(f"{key} = {content[key]!r}")
        if not isinstance(content["metadata"], dict) or not isinstance(content["feature_scale"], dict):
            raise ValueError("metadata and feature_scale are tables")
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is not a model description of format {FORMAT_VERSION} ({error})") from None
    return content


def _load_clip(
    architecture: str | Path, pretrained: str | None = None, image_size: int | None = None
) -> tuple[Any, dict[str, Any]]:
    """An open_clip model of a named architecture, and its model_cfg."""
    name = _registered_name(architecture)
    model_cfg = copy.deepcopy(open_clip.get_model_config(name))
    if image_size is not None:
        model_cfg["vision_cfg"]["image_size"] = image_size
    clip = _made(name, pretrained or architecture, pretrained=pretrained, force_image_size=image_size)
    return clip, model_cfg


def _load_folder(
    folder: Path, weights: Path | None = None, image_size: int | None = None
) -> tuple[Any, dict[str, Any], dict[str, float]]:
    """An open_clip model from a folder, its model_cfg as stock open_clip takes it, and the authors' scalars.

    Args:
        weights: another file than the one that open_clip would take.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no {CONFIG}; it is not an open_clip model folder")
    files = {p.name for ending in ("safetensors", "bin", "pth") for p in folder.glob(f"*.{ending}")}
    if not weights and not files - {SIDECAR_TENSORS}:  # open_clip would go on with random ones
        raise FileNotFoundError(f"{folder} holds no weights ({WEIGHTS}); copy the whole model folder")
    as_is = _folder_config(folder)
    model_cfg = stock_config(as_is)
    file = weights or weights_file(folder)
    scalars: dict[str, float] = {}
    if weights is None and model_cfg == as_is and (file is None or is_plain(file)):
        clip = _made(f"local-dir:{folder}", folder, force_image_size=image_size)
    elif file is None:
        raise FileNotFoundError(f"{folder} holds no weights by a name that open_clip knows ({WEIGHTS})")
    else:
        released = read_released(file)
        scalars = released.scalars
        if as_is.get(HYPERBOLIC) and not scalars:
            raise ValueError(f"{path} says {HYPERBOLIC}, but {file.name} has none of {', '.join(AUTHORS)}")
        with TemporaryDirectory() as bare:  # the configuration alone, as stock open_clip takes it
            preprocess_cfg = json.loads(path.read_text(encoding="utf-8")).get("preprocess_cfg", {})
            _write_json(Path(bare) / CONFIG, {"model_cfg": model_cfg, "preprocess_cfg": preprocess_cfg})
            clip = _made(f"local-dir:{bare}", folder)
        fit(clip, released, file)
    if image_size is not None:
        model_cfg["vision_cfg"]["image_size"] = image_size
    return clip, model_cfg, scalars


def _made(name: str, source: str | Path, **options: Any) -> Any:
    """open_clip's model of that name.

    Raises:
        ValueError: it cannot be made, or weights do not fit it.
    """
    try:
        with _quiet_open_clip():
            return open_clip.create_model(name, **options)
    except OSError:
        raise
    except Exception as error:  # on a configuration or weights of somebody's making open_clip raises anything
        first = next((line for line in str(error).splitlines()[1:] if line.strip()), repr(error)).strip()
        where = name if name != f"local-dir:{source}" else source
        raise ValueError(f"the weights of {source} do not fit architecture {where}: {first[:300]}") from None


def _as_released(
    clip: Any, model_cfg: dict[str, Any], logit_scale: float, scalars: dict[str, float]
) -> HierarchicalCLIP:
    """The authors' hyperbolic model; its scalars are logarithms."""
    if abs(scalars["curv"]) > 1e-3:
        _warn(f"the checkpoint's curv = {scalars['curv']:.4g} is read as c = {math.exp(scalars['curv']):.4g}, its "
              "logarithm being kept, as in MERU; the paper fixes c = 1")  # fmt: skip
    model = HierarchicalCLIP(clip, Lorentz(math.exp(scalars["curv"])), model_cfg, logit_scale)
    for alpha, name in ((model.image_alpha, "visual_alpha"), (model.text_alpha, "textual_alpha")):
        nn.init.constant_(alpha.log, scalars[name])
    return model


def _folder_config(folder: Path) -> dict[str, Any]:
    """The model_cfg of a model folder, checked; its tokenizer is the folder's own, whatever name is given."""
    return _checked_config(folder / CONFIG, folder)


def _checked_config(path: Path, folder: Path | None = None) -> dict[str, Any]:
    """The model_cfg that a file is, or holds if it is a model folder's, which may name nothing afar and no code.

    Args:
        folder: the model folder, which names no other; a file of its own may name folders that are here.

    Raises:
        ValueError: unreadable, or it does.
    """
    try:
        model_cfg = json.loads(path.read_text(encoding="utf-8"))
        model_cfg = model_cfg["model_cfg"] if folder else model_cfg
        text, vision = model_cfg["text_cfg"], model_cfg["vision_cfg"]
        named = {
            "text_cfg.hf_model_name": folder and text.get("hf_model_name"),
            "vision_cfg.timm_model_name": ":" in str(vision.get("timm_model_name")) and vision["timm_model_name"],
            "text_cfg.tokenizer_kwargs": sorted(set(text.get("tokenizer_kwargs") or {}) - TOKENIZER_OPTIONS),
        }
        sources = {folder} if folder else set()
        for key in () if folder else ("hf_model_name", "hf_tokenizer_name"):
            if name := text.get(key):
                named[f"text_cfg.{key}"] = not Path(name).is_dir() and name
                sources.add(Path(name))
        for file in (source / name for source in sources for name in ("tokenizer_config.json", "config.json")):
            if file.is_file():
                named[f"auto_map of {file.name}"] = json.loads(file.read_text("utf-8")).get("auto_map")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is not an open_clip model configuration ({error!r})") from None
    for key, value in named.items():
        if value:
            raise ValueError(f"{path}: {key} = {value!r} would load from elsewhere or run code; it is not loaded")
    return model_cfg


def _registered_name(architecture: str | Path) -> str:
    """The name under which open_clip knows an architecture; a .json file is checked and registered first."""
    path = Path(architecture)
    if path.suffix == ".json":
        if not path.is_file():
            raise FileNotFoundError(f"model configuration {path} does not exist")
        model_cfg = _checked_config(path)

        open_clip.add_model_config(path)
        # what has been checked is what is used
        if ":" in path.stem or open_clip.get_model_config(path.stem) != model_cfg:
            raise ValueError(f"{path} is not an open_clip model configuration, or another one has its name")
        return path.stem
    if ":" in str(architecture) or open_clip.get_model_config(str(architecture)) is None:
        raise ValueError(
            f"open_clip knows no architecture {str(architecture)!r}; give one of open_clip.list_models(), "
            "a model configuration (.json) or a model folder"
        )
    return str(architecture)


@contextmanager
def _quiet_open_clip() -> Iterator[None]:
    """open_clip warns of random initialisation through the root logger; here that is asked for."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)


def _overlay(model: HierarchicalCLIP, folder: Path) -> None:
    """Put the unfolded projections and the scalars in place; a part of them would scale features twice."""
    path = folder / SIDECAR_TENSORS
    needed = {name for name in model.state_dict() if not name.startswith("clip.")}
    if model.geometry == "lorentz":
        needed |= {f"clip.{name}" for side in ("image", "text") for name in _projection_names(model.clip, side)}
    try:
        tensors = load_file(path)
        if tensors.keys() != needed:
            raise ValueError(f"missing or unknown tensors {sorted(tensors.keys() ^ needed)[:5]}")
        model.load_state_dict(tensors, strict=False)
    except (SafetensorError, RuntimeError, ValueError) as error:
        raise ValueError(f"{path} does not fit the model beside it: {error}") from None


def _encode_text(clip: Any, tokens: Tensor) -> Tensor:
    """open_clip's encode_text for tokens cut to any length; equal to the padded call."""
    tower = getattr(clip, "text", clip)
    if _why_whole(tower):
        return clip.encode_text(_at_full_length(tower, tokens))
    dtype = tower.transformer.get_cast_dtype()
    L = tokens.shape[1]
    x = tower.token_embedding(tokens).to(dtype) + tower.positional_embedding[:L].to(dtype)
    x = tower.ln_final(tower.transformer(x, attn_mask=tower.attn_mask[:L, :L]))
    return _project(tower, _pooled(tower, x, tokens))


def _encode_packed(clip: Any, texts: PackedTexts) -> Tensor:
    """open_clip's encode_text of packed texts: nodes at their own positions, seeing their ancestors."""
    tower = getattr(clip, "text", clip)
    if reason := _why_whole(tower):
        _warn(f"texts are encoded one by one, at full length, for their tower {reason}: as exact, but slower")
        return _encode_text(clip, texts.padded())
    dtype = tower.transformer.get_cast_dtype()
    x = tower.token_embedding(texts.tokens).to(dtype)
    x = x + nn.functional.embedding(texts.position, tower.positional_embedding).to(dtype)
    sees = texts.sees()
    mask = torch.zeros(sees.shape, dtype=dtype, device=x.device).masked_fill_(~sees, -math.inf)
    heads = tower.transformer.resblocks[0].attn.num_heads
    x = tower.transformer(x, attn_mask=mask.repeat_interleave(heads, 0))
    node = _pooled(tower, texts.node, texts.padded())  # the rule is open_clip's, applied to where the tokens are
    return _project(tower, tower.ln_final(x.flatten(0, 1)[node]))


def _why_whole(tower: Any) -> str | None:
    """Why a text's feature may depend on what follows its end, so that it needs its padding; None: it does not."""
    if not hasattr(tower, "positional_embedding"):
        return "is not open_clip's own"
    if getattr(tower, "attn_mask", None) is None:
        return "is not causal"
    if getattr(tower, "cls_emb", None) is not None:
        return "puts a class token behind the padding"
    pool = _pool(tower)
    return None if pool in ("argmax", "eos", "first") else f"pools {pool!r}"


def _at_full_length(tower: Any, tokens: Tensor) -> Tensor:
    """Tokens padded to the length that open_clip's tower takes; other towers leave padding out themselves."""
    if not hasattr(tower, "positional_embedding"):
        return tokens
    return nn.functional.pad(tokens, (0, tower.context_length - tokens.shape[1]))


@cache
def _warn(message: str) -> None:  # once each
    warnings.warn(message, stacklevel=4)


def _project(tower: Any, x: Tensor) -> Tensor:
    projection = tower.text_projection
    if projection is None:
        return x
    return projection(x) if isinstance(projection, nn.Linear) else x @ projection


def _pooled(tower: Any, x: Tensor, tokens: Tensor) -> Tensor:
    """Of x (U, L, ...) what open_clip takes for each text."""
    eos = getattr(tower, "text_eos_id", getattr(tower, "eos_id", None))
    return text_global_pool(x, tokens, _pool(tower), eos_token_id=eos)


def _pool(tower: Any) -> str | None:
    """Which token's features open_clip takes for the text's."""
    return getattr(tower, "text_pool_type", getattr(tower, "pool_type", None))


def _projection_names(clip: Any, side: str) -> list[str]:
    """State-dict names of the last linear map of a tower, its bias included; empty if it does not end in one."""
    if side == "text":
        candidates = ["text_projection", "text.text_projection"]
    else:
        candidates = ["visual.proj", "visual.attnpool.c_proj", "visual.head.proj"]
    state = clip.state_dict()
    for name in candidates:
        names = [n for n in (name, f"{name}.weight", f"{name}.bias") if n in state]
        if names:
            return names
    return []


def _jsonable(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.contiguous() for name, t in tensors.items()}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _replace(path: Path, write: Any) -> None:
    """Write beside the path, then rename: a reader never meets half a file, and a full disk keeps none.

    Raises:
        OSError: it cannot be written, whoever wrote.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(temporary)
        os.replace(temporary, path)
    except SafetensorError as error:
        raise OSError(f"{path} cannot be written: {error}") from None
    finally:
        temporary.unlink(missing_ok=True)
