"""Hierarchical vision-language models: images and taxonomic names in hyperbolic or Euclidean space.

Names load on first use (PEP 562), so that importing the package, or only its kernels, stays cheap.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "RANKS": "taxonomy",
    "Taxonomy": "taxonomy",
    "Lorentz": "manifolds",
    "Euclidean": "manifolds",
    "HierarchicalCLIP": "model",
    "load": "model",
    "LevelContrastiveLoss": "losses",
    "ClipLoss": "losses",
    "Predictor": "predictor",
}

__all__ = ["RANKS", "ClipLoss", "Euclidean", "HierarchicalCLIP", "LevelContrastiveLoss", "Lorentz", "Predictor",
           "Taxonomy", "load"]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'bioclip_hc' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(f"bioclip_hc.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
