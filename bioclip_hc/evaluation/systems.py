"""What is evaluated: a model, what photographs it sees, and the words in which it is asked for taxa.

# T taxa, D embed
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bioclip_hc.data.prompts import Prompts, read_prompts
from bioclip_hc.evaluation.embeddings import embed_taxa, text_form
from bioclip_hc.evaluation.published import Recipe, recipes
from bioclip_hc.model import HierarchicalCLIP, commit_of, load, resolve_folder
from bioclip_hc.taxonomy import Taxonomy


@dataclass(frozen=True)
class System:
    """A model ready to be asked.

    name: for tables; model: in eval mode; preprocess: PIL image -> (3, H, W); tokenizer: open_clip's; prompts: in
    which words it is asked for taxa; recipe: the published system it is, if any, whose key `published` takes;
    source, revision: where its weights are from, and of which commit of the hub, "" where from elsewhere.
    """

    name: str
    model: HierarchicalCLIP
    preprocess: Any
    tokenizer: Any
    prompts: Prompts
    recipe: Recipe | None = None
    source: str = ""
    revision: str = ""

    @classmethod
    def load(cls, name: str | Path, *, revision: str | None = None, device: str | torch.device = "cpu") -> System:
        """A model folder, weights file or hub repository, asked as it was trained.

        Raises:
            As `bioclip_hc.load`; and ValueError for a model that says of its words what is no `TextForm`.
        """
        folder = resolve_folder(name, revision)
        model, preprocess, tokenizer = load(folder, device=device)
        commit = commit_of(folder)
        try:
            prompts = Prompts.of(text_form(model))
        except ValueError as error:
            raise ValueError(f"{folder}: {error}") from None
        title = str(name).removeprefix("hf-hub:").partition("@")[0] if commit else folder.name
        return cls(title, model, preprocess, tokenizer, prompts, None, str(name), commit)

    @property
    def space(self) -> dict[str, Any]:
        """scale, curv and geometry, as `kernels.rank_topk` and the protocols take them.

        The kernels normalise Euclidean embeddings, so logits are open_clip's: scale times the cosine.
        """
        return {
            "scale": self.model.logit_scale().item(),
            "curv": self.model.manifold.curv.item(),
            "geometry": self.model.geometry,
        }

    def embed_taxa(self, taxonomy: Taxonomy, progress: Callable[[int], object] = lambda count: None) -> Tensor:
        """(T, D) float32 on the CPU, row t the text of taxon t; progress: as in `embeddings.embed_taxa`."""
        return embed_taxa(self.model, taxonomy, self.tokenizer, self.prompts, progress=progress)

    def to_dict(self) -> dict[str, Any]:
        """What belongs with every result of it: name, source, revision, prompts, space and both fingerprints."""
        return {
            "name": self.name,
            "key": self.recipe.key if self.recipe else "",
            "source": self.source,
            "revision": self.revision,
            "prompts": self.prompts.to_dict(),
            **self.space,
            "image_fingerprint": self.image_fingerprint,
            "text_fingerprint": self.text_fingerprint,
        }

    @property
    def image_fingerprint(self) -> str:
        """SHA-256 of all on which image embeddings depend: image tower, its scale, how photographs are prepared."""
        config = {key: value for key, value in self.model.model_cfg.items() if key != "text_cfg"}
        return _digest(config, self.model.geometry, self.model.preprocess_cfg, self._tensors(_is_image))

    @property
    def text_fingerprint(self) -> str:
        """SHA-256 of all on which text embeddings depend but the taxonomy: text tower, tokenizer, prompts."""
        return _digest(self._text_side, self.prompts.to_dict())

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the whole model without its prompts: of both sides, of the scalars, of the tokenizer."""
        return _digest(self.image_fingerprint, self._text_side, self.space)

    @property
    def _text_side(self) -> str:
        config = {key: value for key, value in self.model.model_cfg.items() if key != "vision_cfg"}
        tensors = self._tensors(lambda name: not _is_image(name) and not _is_space(name))
        return _digest(config, self.model.geometry, self._tokenizer_facts, tensors)

    @cached_property
    def _tokenizer_facts(self) -> list[Any]:
        return _tokenizer_facts(self.tokenizer)

    def _tensors(self, wanted: Callable[[str], bool]) -> list[_Facts]:
        """Of the model's tensors with wanted names; those that have changed since the last time are hashed anew."""
        state = {name: tensor for name, tensor in self.model.state_dict().items() if wanted(name)}
        marks = {name: _mark(tensor) for name, tensor in state.items()}
        changed = [name for name, mark in marks.items() if self._hashed.get(name, ((), None))[0] != mark]
        with ThreadPoolExecutor() as pool:  # hashing lets go of the interpreter; a large model takes a second
            for facts in pool.map(lambda name: _facts(name, state[name]), changed):
                self._hashed[facts[0]] = marks[facts[0]], facts
        return [self._hashed[name][1] for name in sorted(state)]

    @cached_property
    def _hashed(self) -> dict[str, tuple[tuple[Any, ...], _Facts]]:
        """Name of a tensor -> its mark when it was hashed, and what was found."""
        return {}


def open_system(
    name: str | Path,
    *,
    revision: str | None = None,
    device: str | torch.device = "cpu",
    prompts: Prompts | str | Path | None = None,
) -> System:
    """A system by its published key, its hub name, or where it lies.

    Args:
        name: a key of published.toml ("bioclip"), which brings hub name, revision and prompts; KEY=PATH for that
            system's weights at a local folder or file; owner/repo or owner/repo@REVISION on the Hugging Face hub; a
            model folder; or a weights file beside its open_clip_config.json. A folder that is named like a key is
            meant by ./NAME.
        revision: a commit of the hub repository, in place of the recipe's.
        prompts: a preset, a file (`data.prompts.read_prompts`) or prompts; by default those of the recipe, else
            those the model was trained with.

    Raises:
        FileNotFoundError: no such folder, file or repository.
        ValueError: what is there is not the system that was named, or it cannot be read.
    """
    recipe, source, pinned = _located(name, revision)
    system = System.load(source, revision=pinned, device=device)
    if recipe is not None:
        if system.model.geometry != recipe.geometry:
            raise ValueError(
                f"{system.source} is {system.model.geometry}, but {recipe.key} is {recipe.geometry}; is it another "
                "system?"
            )
        system = replace(system, name=recipe.title, recipe=recipe, prompts=read_prompts(recipe.prompts))
    if prompts is not None:
        system = replace(system, prompts=prompts if isinstance(prompts, Prompts) else read_prompts(prompts))
    return system


def system_folder(name: str | Path, revision: str | None = None) -> Path:
    """The folder of a system's files, named as for `open_system`; nothing of it is loaded.

    Raises:
        FileNotFoundError: no such folder, file or repository.
    """
    _, source, pinned = _located(name, revision)
    path = resolve_folder(source, pinned)
    return path if path.is_dir() else path.parent


def _located(name: str | Path, revision: str | None) -> tuple[Recipe | None, str | Path, str | None]:
    """The published system that is named, if any; where its files are, and of which commit of the hub."""
    key, _, path = str(name).partition("=")
    recipe = recipes().get(key)
    if recipe is None:
        return None, name, revision
    return recipe, path or recipe.hub, revision if path else revision or recipe.revision or None


def _is_image(name: str) -> bool:
    return name.startswith(("clip.visual.", "image_alpha."))


def _is_space(name: str) -> bool:
    return name.startswith(("logit_scale.", "manifold.", "clip.logit_bias"))


def _digest(*facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=repr).encode()).hexdigest()


def _mark(tensor: Tensor) -> tuple[Any, ...]:
    """What changes when a tensor is written to or replaced; a write through `.data` or NumPy alone leaves it."""
    version = None if tensor.is_inference() else tensor._version  # those made in inference mode have none
    return tensor.data_ptr(), version, tensor.dtype, tensor.shape, tensor.device


_Facts = tuple[str, str, list[int], str]
"""A tensor's name, dtype, shape, and the SHA-256 of its numbers."""


def _facts(name: str, tensor: Tensor) -> _Facts:
    numbers = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return name, str(tensor.dtype), list(tensor.shape), hashlib.sha256(numbers.data).hexdigest()


def _tokenizer_facts(tokenizer: Any) -> list[Any]:
    """What its tokens depend on: its kind, vocabulary, merges and options, as open_clip's two kinds keep them."""
    inner = getattr(tokenizer, "tokenizer", None)  # of HFTokenizer
    backend = getattr(inner, "backend_tokenizer", None)
    options = {
        key: value if isinstance(value, str | int | float | bool | None) else getattr(value, "__qualname__", "")
        for key, value in getattr(tokenizer, "__dict__", {}).items()
    }
    vocabulary = getattr(tokenizer, "encoder", None) or (inner.get_vocab() if inner else {})
    merges = list(getattr(tokenizer, "bpe_ranks", {}))  # in their order
    return [type(tokenizer).__qualname__, options, _digest(repr(sorted(vocabulary.items())), repr(merges)),
            backend.to_str() if backend else ""]  # fmt: skip
