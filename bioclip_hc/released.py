"""Weights as others release them, brought to the names that open_clip's model has.

What is met besides an open_clip folder: weights inside a training checkpoint ("state_dict", of Lightning or of
open_clip's own trainer), with a wrapper's prefix before every name; and the form in which the authors of BioCLIP-HC
release their hyperbolic model, which stock open_clip refuses: `curv`, `visual_alpha` and `textual_alpha` among the
weights, and options of their branch in model_cfg. The three are logarithms, as in MERU, where their names are from:
c = exp(curv), and the tangent vectors are exp(alpha) times the features.

Nothing here runs code: safetensors hold tensors alone, and pickles are looked through before torch reads them with
weights_only.
"""

from __future__ import annotations

import inspect
import math
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import open_clip
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

AUTHORS = ("curv", "visual_alpha", "textual_alpha")
HYPERBOLIC = "use_hyperbolic"  # of the authors' model_cfg
CONTAINERS = ("state_dict", "model_state_dict", "model")
LANDMARK = "logit_scale"  # every CLIP has one, at its top: what stands before its name is a wrapper's prefix
PREFERRED = (  # the files that open_clip looks for in a folder, in its order
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
    "model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.pth",
    "model.pth",
)


class Released(NamedTuple):
    """state: the tensors of open_clip's model; scalars: the authors' by name, empty for a Euclidean model."""

    state: dict[str, Tensor]
    scalars: dict[str, float]


def weights_file(folder: Path) -> Path | None:
    """The file of weights that open_clip would take from a folder; None where it has none of the usual names."""
    return next((folder / name for name in PREFERRED if (folder / name).is_file()), None)


def is_plain(file: Path) -> bool:
    """Whether a file has the form that open_clip reads itself; its tensors are not read to find out.

    Raises:
        ValueError: a pickle that would run something, or a file that cannot be read.
    """
    if file.suffix == ".safetensors":
        with _opened(file) as tensors:
            names = list(tensors.keys())
    else:
        names = list(_tensors(file))  # mapped, not read
    prefixes = {name.removesuffix(LANDMARK) for name in names if name.rpartition(".")[2] == LANDMARK}
    return prefixes <= {"", "module."} and not any(name.rpartition(".")[2] in AUTHORS for name in names)


def read_released(file: Path) -> Released:
    """The weights in a file.

    Raises:
        ValueError: a pickle that would run something, no file of tensors, not a CLIP's, or a part of the authors'
            three scalars.
    """
    found = _tensors(file)
    tops = [name for name in found if name.rpartition(".")[2] == LANDMARK]
    if len(tops) != 1:
        raise ValueError(f"{file} holds {len(tops) or 'no'} {LANDMARK}, of which a CLIP model has one")
    prefix = tops[0].removesuffix(LANDMARK)
    if strange := sorted(name for name in found if not name.startswith(prefix)):
        raise ValueError(f"{file} holds {strange[0]!r} beside the model, whose names begin with {prefix!r}")
    state = {name.removeprefix(prefix): tensor for name, tensor in found.items()}
    there = [name for name in AUTHORS if name in state]
    if there and len(there) < len(AUTHORS):
        missing = min(set(AUTHORS) - set(there))
        raise ValueError(f"{file} has {there[0]} but no {missing}; a hyperbolic model needs all of {AUTHORS}")
    scalars = {name: _scalar(file, name, state.pop(name)) for name in there}
    return Released(state, scalars)


def stock_config(model_cfg: Mapping[str, Any]) -> dict[str, Any]:
    """A model_cfg without the options of the authors' branch, as stock open_clip takes it."""
    if HYPERBOLIC not in model_cfg:
        return dict(model_cfg)
    models = (open_clip.CLIP, open_clip.CustomTextCLIP)
    known = {"custom_text"}.union(*(inspect.signature(model.__init__).parameters for model in models))
    return {key: value for key, value in model_cfg.items() if key in known}


def fit(model: nn.Module, released: Released, file: Path) -> None:
    """Put the weights into open_clip's model.

    Raises:
        ValueError: a tensor is missing, unknown, or of another shape: which.
    """
    state = released.state
    if hasattr(model, "text") and not any(name.startswith("text.") for name in state):
        state = open_clip.model.convert_to_custom_text_state_dict(state)
    wanted = model.state_dict()
    state = {n: t.reshape(wanted[n].shape) if n in wanted and wanted[n].numel() == t.numel() == 1 else t
             for n, t in state.items()}  # fmt: skip
    said = []
    if missing := sorted(wanted.keys() - state.keys()):
        said.append(f"{_some(missing)} missing")
    if unknown := sorted(state.keys() - wanted.keys()):
        said.append(f"{_some(unknown)} unknown")
    for name in sorted(wanted.keys() & state.keys()):
        if wanted[name].shape != state[name].shape:
            said.append(f"{name} is {tuple(state[name].shape)}, not {tuple(wanted[name].shape)}")
    if said:
        raise ValueError(f"{file} does not fit the configuration beside it: {'; '.join(said[:3])}")
    model.load_state_dict(state)


def need_tensors(file: Path) -> None:
    """Refuse a pickle that names anything but tensors and plain containers; nothing is run to find out.

    Raises:
        ValueError: naming the file and what it would import.
    """
    if file.suffix == ".safetensors" or not zipfile.is_zipfile(file):
        return  # torch's old form cannot be looked through; weights_only refuses what is more than data in it
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    except Exception as error:  # whatever the parser of pickles raises on what is none
        raise ValueError(f"{file} is no file of torch.save ({error})") from None
    if names:
        raise ValueError(f"{file} would run {min(names)}; it is not loaded. Ask for its weights as safetensors")


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        with safe_open(file, "pt") as tensors:
            yield tensors
    except SafetensorError as error:
        raise ValueError(f"{file} is no file of safetensors: {error}") from None


def _tensors(file: Path) -> dict[str, Tensor]:
    if file.suffix == ".safetensors":
        with _opened(file) as tensors:
            return {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118  # it is no mapping
    need_tensors(file)
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except OSError:
        raise
    except Exception as error:  # a pickle may fail in any way
        raise ValueError(f"{file} cannot be read as weights: {_first_line(error)}") from None
    for name in CONTAINERS:
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
            break
    tensors = isinstance(content, dict) and all(isinstance(value, Tensor) for value in content.values())
    if not tensors or not all(isinstance(name, str) for name in content):
        raise ValueError(
            f"{file} holds no table of tensors, neither at its top nor as one of {', '.join(CONTAINERS)}"
        )
    return dict(content)


def _scalar(file: Path, name: str, tensor: Tensor) -> float:
    value = float(tensor) if tensor.numel() == 1 else math.nan
    if not abs(value) < 20:  # e^20 is beyond any curvature or scale
        raise ValueError(f"{file}: {name} must be the logarithm of a number, got {tensor.flatten()[:3].tolist()}")
    return value


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), repr(error))[:200]


def _some(names: list[str]) -> str:
    return f"{names[0]}{f' and {len(names) - 1} more are' if len(names) > 1 else ' is'}"
