"""What `level_infonce` is asked for, checked once, in one value that every backend takes.

# M images, N texts, D embed, R ranks

Shapes and names are checked on the host. Values are checked on the device that holds them: on a CPU they raise
ValueError, on a GPU they fail asynchronously, because waiting for a label would stop the stream.
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
TAXON_BITS = 56  # a rank and a taxon share an int64 key


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
    def text_key(self) -> Tensor:
        """(N,) int64, equal for texts of one taxon, in order of (rank, taxon)."""
        return (self.text_rank << TAXON_BITS) | self.text_taxon

    @property
    def image_key(self) -> Tensor:
        """(M, R) int64, the text_key of each image's taxon at each rank, -1 = not supervised."""
        ranks = torch.arange(self.image_taxa.shape[1], device=self.image_taxa.device)
        known = (self.image_taxa >= 0) & (self.image_taxa < 1 << TAXON_BITS)
        return torch.where(known, (ranks << TAXON_BITS) | self.image_taxa, -1)

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
    """Check names and shapes of the arguments of `level_infonce`; their values are left to `check_values`.

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
    if image_taxa.shape[1] > 64:
        raise ValueError(f"image_taxa must have at most 64 ranks, got {image_taxa.shape[1]}")
    for name, ids, length in (("text_rank", text_rank, N), ("text_taxon", text_taxon, N), ("pair", pair, M)):
        if ids is not None and ids.shape != (length,):
            raise ValueError(f"{name} must be ({length},), got {tuple(ids.shape)}")
    if text_bias is not None and text_bias.shape != (N,):
        raise ValueError(f"text_bias must be ({N},), got {tuple(text_bias.shape)}")
    if pair is None and targets != "multi_positive":
        raise ValueError(f"targets={targets!r} needs pair: the index of each image's own text")
    taxa, rank, taxon = (ids.to(device, torch.int64) for ids in (image_taxa, text_rank, text_taxon))
    own = torch.full((M,), -1, dtype=torch.int64, device=device) if pair is None else pair.to(device, torch.int64)
    return Objective(
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


def check_values(o: Objective, curv: Tensor) -> None:
    """Check what the labels and the curvature hold.

    Raises:
        ValueError: naming the argument, the value and what it should be. On a GPU the stream fails instead, with
            the argument's name.
    """
    check_positive("curv", curv)
    check_range("text_rank", o.text_rank, 0, o.image_taxa.shape[1])
    check_range("text_taxon", o.text_taxon, 0, 1 << TAXON_BITS)
    check_range("image_taxa", o.image_taxa, -(1 << 63), 1 << TAXON_BITS)
    check_range("pair", o.pair, -1, len(o.text_rank))
    _check_pairs(o)


def check_positive(name: str, value: Tensor) -> None:
    """Check that a () tensor is a positive number."""
    fine = (value > 0) & value.isfinite()
    if value.is_cuda:
        torch._assert_async(fine, f"{name} must be positive")
    elif not bool(fine):
        raise ValueError(f"{name} must be positive, got {float(value)}")


def check_range(name: str, ids: Tensor, low: int, high: int) -> None:
    """Check that low <= ids < high everywhere."""
    wrong = (ids < low) | (ids >= high)
    end = f"2**{TAXON_BITS}" if high == 1 << TAXON_BITS else high
    if ids.is_cuda:
        torch._assert_async(~wrong.any(), f"{name} must be in [{low}, {end})")
    elif bool(wrong.any()):
        where = tuple(wrong.nonzero()[0].tolist())
        place = where[0] if len(where) == 1 else where
        raise ValueError(f"{name} must be in [{low}, {end}), got {int(ids[where])} at index {place}")


def _check_pairs(o: Objective) -> None:
    """An image must hold, at its own text's rank, that text's taxon."""
    if not len(o.text_rank):
        return
    own = o.pair.clamp_min(0)
    held = o.image_taxa.gather(1, o.text_rank[own].clamp(0, o.image_taxa.shape[1] - 1)[:, None])[:, 0]
    wrong = (o.pair >= 0) & (held != o.text_taxon[own])
    if wrong.is_cuda:
        torch._assert_async(~wrong.any(), "pair must name a text whose taxon image_taxa holds at its rank")
    elif bool(wrong.any()):
        i = int(wrong.nonzero()[0])
        j = int(o.pair[i])
        r = int(o.text_rank[j])
        raise ValueError(
            f"image {i} is paired with text {j} (rank {r}, taxon {int(o.text_taxon[j])}), but its "
            f"image_taxa[{i}, {r}] is {int(o.image_taxa[i, r])}; an image must be supervised at its text"
        )
