"""Hierarchical evaluation: protocols, metrics, baselines and the report.

Names load on first use (PEP 562), so that reading a score needs no torch and predicting needs no matplotlib.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bioclip_hc.evaluation.abstention import RiskCoverage, abstain, certified_threshold, risk_coverage
    from bioclip_hc.evaluation.detail import DetailedScore, detailed
    from bioclip_hc.evaluation.metrics import Score, chance, score
    from bioclip_hc.evaluation.paths import Paths, best_paths, full_path
    from bioclip_hc.evaluation.probe import pixel_probe
    from bioclip_hc.evaluation.protocols import coarse_to_fine, top_down
    from bioclip_hc.evaluation.report import Embedding, Report
    from bioclip_hc.evaluation.rows import Row
    from bioclip_hc.evaluation.shots import FewShot, few_shot
    from bioclip_hc.evaluation.study import Run, report_of

_HOME = {
    "coarse_to_fine": "protocols",
    "top_down": "protocols",
    "Paths": "paths",
    "best_paths": "paths",
    "full_path": "paths",
    "FewShot": "shots",
    "few_shot": "shots",
    "RiskCoverage": "abstention",
    "abstain": "abstention",
    "certified_threshold": "abstention",
    "risk_coverage": "abstention",
    "DetailedScore": "detail",
    "detailed": "detail",
    "Score": "metrics",
    "score": "metrics",
    "chance": "metrics",
    "pixel_probe": "probe",
    "Embedding": "report",
    "Report": "report",
    "Row": "rows",
    "Run": "study",
    "report_of": "study",
}

__all__ = [
    "DetailedScore",
    "Embedding",
    "FewShot",
    "Paths",
    "Report",
    "RiskCoverage",
    "Row",
    "Run",
    "Score",
    "abstain",
    "best_paths",
    "certified_threshold",
    "chance",
    "coarse_to_fine",
    "detailed",
    "few_shot",
    "full_path",
    "pixel_probe",
    "report_of",
    "risk_coverage",
    "score",
    "top_down",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
