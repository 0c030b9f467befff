"""Tile shapes of the GPU kernels: one static table per architecture, so that every process runs the same code.

`python benchmarks/tune.py` measures the candidates on the GPU at hand and prints a new table. Autotuning while
training is not done: ranks would choose differently, and sums in another order differ in their last bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch


@dataclass(frozen=True)
class Tile:
    """Shape of one kernel's tile, and how it is run."""

    rows: int
    cols: int
    depth: int  # step of the inner product
    warps: int
    stages: int  # depth of the software pipeline
    per_sm: int = 1  # programs resident on one multiprocessor

    @property
    def registers(self) -> int:
        """How many registers a thread may have. Unasked, the assembler may spill some to fit one program more."""
        return min(255, 65536 // (32 * self.warps * self.per_sm) // 8 * 8)


@dataclass(frozen=True)
class Config:
    """How level_infonce runs.

    forward: the pass over the logits. backward: their recomputation; its rows and cols are also the tile in which
    dL/dS waits in the workspace. product: gradient = dS @ features; backward's tile gives its rows, cols is how
    many features are done at once.
    """

    forward: Tile
    backward: Tile
    product: Tile
    chunk: int = 16  # column tiles that one forward program walks before it writes its row sums
    group: int = 32  # row tiles of the backward pass that share column tiles in cache
    share: int = 64 << 20  # bytes of column sums that await their addition
    panel: int = 64 << 20  # bytes of the workspace for dL/dS
    rows: Literal["triton", "cuda"] = (
        "triton"  # who prepares features and takes gradients back: csrc/cuda is an option
    )


_16 = Tile(128, 128, 64, 8, 3)
_TF32 = Tile(128, 128, 32, 8, 3)
_IEEE = Tile(64, 64, 16, 8, 2)

TABLE: dict[tuple[int, str, str], Config] = {
    (80, "16", "euclidean"): Config(Tile(128, 64, 64, 8, 3), Tile(128, 64, 64, 8, 3), _16),
    (80, "16", "lorentz"): Config(Tile(128, 64, 64, 8, 3), Tile(128, 64, 64, 8, 3), _16),
    (80, "tf32", "euclidean"): Config(Tile(128, 64, 32, 8, 3), Tile(128, 64, 32, 8, 3), _TF32),
    (80, "tf32", "lorentz"): Config(Tile(128, 64, 32, 8, 3), Tile(128, 64, 32, 8, 3), _TF32),
    (80, "ieee", "euclidean"): Config(_IEEE, _IEEE, _IEEE),
    (80, "ieee", "lorentz"): Config(_IEEE, _IEEE, _IEEE),
    (90, "16", "euclidean"): Config(Tile(128, 64, 64, 8, 3), Tile(128, 64, 64, 8, 3), _16),
    (90, "16", "lorentz"): Config(Tile(128, 64, 64, 8, 3), Tile(128, 64, 64, 8, 3), _16),
    (90, "tf32", "euclidean"): Config(Tile(128, 64, 32, 8, 3), Tile(128, 64, 32, 8, 3), _TF32),
    (90, "tf32", "lorentz"): Config(Tile(128, 64, 32, 8, 3), Tile(128, 64, 64, 8, 2), _TF32),
    (90, "ieee", "euclidean"): Config(_IEEE, _IEEE, _IEEE),
    (90, "ieee", "lorentz"): Config(_IEEE, _IEEE, _IEEE),
}

# small enough for small tests to have several tiles, groups and chunks; rows and columns differ
INTERPRETED = Config(
    Tile(32, 64, 32, 4, 1), Tile(64, 32, 32, 4, 1), Tile(64, 32, 32, 4, 1), chunk=2, group=2, panel=1 << 20
)


def config_for(device: torch.device, dtype: torch.dtype, tf32: bool, geometry: str) -> Config:
    """The table's entry for that device (the newest architecture not newer than it) and product."""
    if device.type != "cuda":
        return INTERPRETED
    major, minor = torch.cuda.get_device_capability(device)
    known = max(arch for arch, _, _ in TABLE if arch <= 10 * major + minor)
    return TABLE[known, precision_name(dtype, tf32), geometry]


def precision_name(dtype: torch.dtype, tf32: bool) -> str:
    """ "16", "tf32" or "ieee": the tables' second key."""
    if dtype != torch.float32:
        return "16"
    return "tf32" if tf32 else "ieee"


# lorentz_inner: bound by the matrix that it writes, so one shape does on every architecture
INNER: dict[str, Tile] = {
    "16": Tile(128, 128, 64, 8, 3),
    "tf32": Tile(64, 128, 32, 8, 3),
    "ieee": Tile(64, 64, 16, 8, 2),
    "interpreted": Tile(16, 32, 16, 4, 1),
}

# rank_topk: half the rows, as the k best of each stay in registers beside the tile
TOPK: dict[str, Tile] = {
    "16": Tile(64, 128, 64, 8, 3),
    "tf32": Tile(64, 128, 32, 8, 3),
    "ieee": Tile(64, 64, 16, 8, 2),
    "interpreted": Tile(16, 32, 64, 4, 1),
}


def tile_for(table: dict[str, Tile], device: torch.device, dtype: torch.dtype, tf32: bool) -> Tile:
    """The entry of a table that holds for all architectures."""
    return table[precision_name(dtype, tf32) if device.type == "cuda" else "interpreted"]
