"""What `level_infonce` is asked for, checked once, in one value that every backend takes.

# M images, N texts, D embed, R ranks
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

Geometry = Literal["lorentz", "euclidean"]
Space = Literal["tangent", "hyperboloid", "unit"]
Targets = Literal["multi_positive", "mask_out", "diagonal"]

SPACES: dict[str, tuple[str, ...]] = {"lorentz": ("tangent", "hyperboloid"), "euclidean": ("tangent", "unit")}


@dataclass(frozen=True)
class Objective:
    """Labels and options of one call.

    image_taxa (M, R) int64, -1 = not supervised; text_rank (N,) int64; text_taxon (N,) int64;
    pair (M,) int64 index of each image's own text, -1 = none; text_bias (N,) float or None.
    """

    image_taxa: Tensor
    text_rank: Tensor
    text_taxon: Tensor
    pair: Tensor
    text_bias: Tensor | None
    geometry: Geometry
    space: Space
    targets: Targets
    restrict: bool

    @property
    def pair_rank(self) -> Tensor:
        """(M,) rank of each image's own text, -1 = none."""
        if not len(self.text_rank):
            return torch.full_like(self.pair, -1)
        return torch.where(self.pair >= 0, self.text_rank[self.pair.clamp_min(0)], -1)


def check_geometry(geometry: str, space: str) -> None:
    """Raise ValueError for a geometry or a space that does not exist, naming those that do."""
    if geometry not in SPACES:
        raise ValueError(f"geometry must be one of {tuple(SPACES)}, got {geometry!r}")
    if space not in SPACES[geometry]:
        raise ValueError(f"space of geometry {geometry!r} must be one of {SPACES[geometry]}, got {space!r}")


def check_features(image: Tensor, text: Tensor) -> None:
    """Raise ValueError for features that are not (M, D) and (N, D) floats of one precision on one device."""
    for name, x in (("image", image), ("text", text)):
        if x.ndim != 2 or not x.is_floating_point():
            raise ValueError(f"{name} must be a float tensor (rows, D), got {x.dtype} of shape {tuple(x.shape)}")
    if image.shape[1] != text.shape[1]:
        raise ValueError(f"image and text must share D, got {image.shape[1]} and {text.shape[1]}")
    if compute_dtype(image) != compute_dtype(text):
        raise ValueError(f"image and text must both be float64, or neither, got {image.dtype} and {text.dtype}")
    if image.device != text.device:
        raise ValueError(f"image and text must be on one device, got {image.device} and {text.device}")


def one_element(name: str, value: Tensor | float, like: Tensor) -> Tensor:
    """A scalar given as float, () or (1,) tensor, as a () tensor of the compute dtype on `like`'s device."""
    value = torch.as_tensor(value, dtype=compute_dtype(like), device=like.device)
    if value.numel() != 1:
        raise ValueError(f"{name} must have one element, got shape {tuple(value.shape)}")
    return value.reshape(())


def compute_dtype(x: Tensor) -> torch.dtype:
    """Geometry and sums are done in fp32, or float64 for float64 inputs."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def make_objective(
    image: Tensor,
    text: Tensor,
    image_taxa: Tensor,
    text_rank: Tensor,
    text_taxon: Tensor,
    *,
    geometry: str,
    space: str,
    targets: str,
    pair: Tensor | None,
    text_bias: Tensor | None,
    restrict: bool,
) -> Objective:
    """Check everything that can be wrong with the labels of `level_infonce`.

    Raises:
        ValueError: naming the argument, the value and what it should be.
    """
    check_geometry(geometry, space)
    check_features(image, text)
    if targets not in get_args(Targets):
        raise ValueError(f"targets must be one of {get_args(Targets)}, got {targets!r}")
    M, N, device = len(image), len(text), image.device
    if image_taxa.ndim != 2 or len(image_taxa) != M:
        raise ValueError(f"image_taxa must be ({M}, R), got {tuple(image_taxa.shape)}")
    for name, ids, length in (("text_rank", text_rank, N), ("text_taxon", text_taxon, N), ("pair", pair, M)):
        if ids is not None and ids.shape != (length,):
            raise ValueError(f"{name} must be ({length},), got {tuple(ids.shape)}")
    if text_bias is not None and text_bias.shape != (N,):
        raise ValueError(f"text_bias must be ({N},), got {tuple(text_bias.shape)}")
    if pair is None and targets != "multi_positive":
        raise ValueError(f"targets={targets!r} needs pair: the index of each image's own text")
    taxa, rank, taxon = (ids.to(device, torch.int64) for ids in (image_taxa, text_rank, text_taxon))
    own = torch.full((M,), -1, dtype=torch.int64, device=device) if pair is None else pair.to(device, torch.int64)
    _check_range("text_rank", rank, 0, taxa.shape[1])
    _check_range("text_taxon", taxon, 0, None)
    _check_range("pair", own, -1, N)
    objective = Objective(
        taxa,
        rank,
        taxon,
        own,
        None if text_bias is None else text_bias.detach().to(device, compute_dtype(image)),
        geometry,  # type: ignore[arg-type]  # checked above
        space,  # type: ignore[arg-type]
        targets,  # type: ignore[arg-type]
        restrict,
    )
    if pair is not None:
        _check_pairs(objective)
    return objective


def _check_range(name: str, ids: Tensor, low: int, high: int | None) -> None:
    wrong = ids < low if high is None else (ids < low) | (ids >= high)
    if bool(wrong.any()):
        where = int(wrong.nonzero()[0])
        bounds = f"at least {low}" if high is None else f"in [{low}, {high})"
        raise ValueError(f"{name} must be {bounds}, got {int(ids[where])} at index {where}")


def _check_pairs(objective: Objective) -> None:
    """An image must hold, at its own text's rank, that text's taxon."""
    rows = (objective.pair >= 0).nonzero().flatten()
    own = objective.pair[rows]
    held = objective.image_taxa[rows, objective.text_rank[own]]
    wrong = held != objective.text_taxon[own]
    if bool(wrong.any()):
        i = int(rows[wrong][0])
        j = int(objective.pair[i])
        r = int(objective.text_rank[j])
        raise ValueError(
            f"image {i} is paired with text {j} (rank {r}, taxon {int(objective.text_taxon[j])}), but its "
            f"image_taxa[{i}, {r}] is {int(objective.image_taxa[i, r])}; an image must be supervised at its text"
        )
