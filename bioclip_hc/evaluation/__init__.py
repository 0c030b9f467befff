"""Hierarchical evaluation: protocols, metrics, baselines and the report.

Names load on first use (PEP 562), so that reading a score needs no torch and predicting needs no matplotlib.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bioclip_hc.evaluation.metrics import Score, chance, score
    from bioclip_hc.evaluation.probe import pixel_probe
    from bioclip_hc.evaluation.protocols import coarse_to_fine, top_down
    from bioclip_hc.evaluation.report import Embedding, Report, Row

_HOME = {
    "coarse_to_fine": "protocols",
    "top_down": "protocols",
    "Score": "metrics",
    "score": "metrics",
    "chance": "metrics",
    "pixel_probe": "probe",
    "Embedding": "report",
    "Report": "report",
    "Row": "report",
}

__all__ = [
    "Embedding",
    "Report",
    "Row",
    "Score",
    "chance",
    "coarse_to_fine",
    "pixel_probe",
    "score",
    "top_down",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
