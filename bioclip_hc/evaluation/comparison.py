"""Several systems on one benchmark: from photographs to the runs and rows of a report.

# N photographs, R ranks, T taxa
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, count
from pathlib import Path
from typing import Any

import numpy as np

from bioclip_hc.data.prompts import read_prompts
from bioclip_hc.data.quarantine import BadSample, told_by_cause
from bioclip_hc.evaluation.abstention import certified_thresholds, stopped
from bioclip_hc.evaluation.counts import counts_of_model
from bioclip_hc.evaluation.images import Contents, Embedded
from bioclip_hc.evaluation.metrics import chance
from bioclip_hc.evaluation.outcome import Outcome, outcome
from bioclip_hc.evaluation.protocols import finite_rows
from bioclip_hc.evaluation.published import published_on
from bioclip_hc.evaluation.question import Question, folder_of, own_taxonomy
from bioclip_hc.evaluation.rows import Row
from bioclip_hc.evaluation.study import THRESHOLDS, Run
from bioclip_hc.evaluation.systems import System
from bioclip_hc.evaluation.text_cache import taxa_texts
from bioclip_hc.taxonomy import RANKS

FULL_PATH = "full-path"
TEST_HALF = ", test half"  # of a split, where thresholds are set on the other half
DELTA = 0.05  # the probability that a certified threshold does not hold after all


@dataclass(frozen=True)
class Stopping:
    """When to name no further: below a probability, or so that at most a share of names is wrong."""

    probability: float | None = None
    max_risk: float | None = None

    def __post_init__(self) -> None:
        for option, value in (("--abstain", self.probability), ("--max-risk", self.max_risk)):
            if value is not None and not 0 < value < 1:
                raise ValueError(f"{option} must lie between 0 and 1, got {value}")

    @property
    def marks(self) -> dict[str, float]:
        """The one probability for all ranks, by the name that it has in tables; {} where there is none."""
        return {} if self.probability is None else {f"stopping below {self.probability:.0%}": self.probability}


def run_of(
    system: System,
    question: Question,
    embedded: Embedded,
    *,
    stopping: Stopping | None = None,
    texts: Path | bool = True,
    counts: np.ndarray | None = None,
    tell: Callable[[str], object],
) -> Run:
    """What a system answers.

    Args:
        stopping: its probability is marked in the risk-coverage curves.
        texts: the cache of text embeddings, as in `taxa_texts`.
        counts: (T,) the training images of each taxon; None: what its folder says, if anything.
    """
    text = taxa_texts(system, question.taxonomy, cache=texts, tell=tell)
    if not finite_rows(text).all():
        raise ValueError(
            f"{system.name} gives text embeddings that are not finite: its weights are damaged, or were so in "
            "training; take another model, or an earlier checkpoint"
        )
    found = outcome(
        embedded.indices,
        embedded.vectors,
        question.truth[embedded.indices],
        text,
        question.taxonomy,
        question.offered,
        **system.space,
    )
    figures, differs = published_beside(system, question, embedded)
    extra = {"asked in": str(system.prompts), "candidates": question.candidates, **what_was_run(system)}
    if embedded.unread:
        extra["photographs without an embedding"] = str(len(embedded.unread))
    if differs:
        extra["published figures"] = f"are not set beside these: {differs}"
        tell(f"published figures of {system.name} are not set beside its own: {differs}")
    return Run(
        system.name,
        question.benchmark.name,
        found,
        question.benchmark.photographs,
        _counts(system, question) if counts is None else counts,
        figures,
        thresholds=(stopping.marks if stopping else {}) or THRESHOLDS,
        extra=extra,
    )


def published_beside(
    system: System, question: Question, embedded: Embedded
) -> tuple[dict[str, dict[str, float]], str]:
    """Published figures by protocol where they are of the same question, else none, and in what it differs."""
    figures = published_on(system.recipe.key, question.kind) if system.recipe else {}
    if not system.recipe or not figures:
        return {}, ""
    recipe = system.recipe
    differences = {
        "these are not all photographs of the benchmark, or others": not question.benchmark.whole
        or bool(embedded.unread),
        f"the candidates are {question.candidates}": question.taxonomy is not question.benchmark.taxonomy,
        f"it was asked in other words, {system.prompts}": system.prompts != read_prompts(recipe.prompts),
        f"it is of another commit, {system.revision}": bool(recipe.revision and system.revision)
        and system.revision != recipe.revision,
    }
    found = "; ".join(what for what, so in differences.items() if so)
    return ({}, found) if found else (figures, "")


def what_was_run(system: System) -> dict[str, str]:
    """Space, commit and weights of a system, for a table; `system_facts` has them in full."""
    facts = system.to_dict()
    space = f"{facts['geometry']}, scale {facts['scale']:.4g}"
    curved = f", curvature {-facts['curv']:.4g}" if facts["geometry"] == "lorentz" else ""
    return {
        "space": space + curved,
        **({"commit": system.revision} if system.revision else {}),
        "fingerprints": f"image {facts['image_fingerprint'][:12]}, text {facts['text_fingerprint'][:12]}",
    }


def system_facts(system: System) -> dict[str, Any]:
    """What belongs with every result of a system, less the folders that it lies in."""
    facts = system.to_dict()
    return facts if system.revision else {**facts, "source": without_folders(str(Path(facts["source"]).absolute()))}


def notes_of(question: Question, embedded: Embedded) -> list[str]:
    """What whoever reads the figures should know, a sentence each, less the folders that files lie in."""
    name = question.benchmark.photographs.name
    causes = told_by_cause(BadSample(name(i), "", reason) for i, reason in embedded.unread)
    said = [
        f"{question.benchmark.name}: {len(embedded.indices):,} photographs; candidates: {question.candidates}, "
        f"{question.taxonomy.size:,}",
        *question.lines(),
        *(f"left out {line}" for line in causes),
    ]
    return [without_folders(line) for line in said]


def without_folders(text: str) -> str:
    """A text with names of files in place of their absolute paths: a report travels, where they lay need not."""
    return re.sub(r"(?<![\w/.:])/(?:[^/\n;,]+/)+", "", text)


def _counts(system: System, question: Question) -> np.ndarray | None:
    own = own_taxonomy(system)
    return None if own is None else counts_of_model(folder_of(system), own, question.taxonomy)


def chance_rows(question: Question, embedded: Embedded, stopping: Stopping, contents: Contents) -> Iterator[Row]:
    """The baseline of a benchmark, and of its test half where there is one."""
    name, truth = question.benchmark.name, question.truth[embedded.indices]
    yield Row("chance", "", name, chance(truth, question.taxonomy, question.offered))
    if stopping.max_risk is not None:
        truth = truth[~_calibrating(contents, embedded.indices)]
        yield Row("chance", "", f"{name}{TEST_HALF}", chance(truth, question.taxonomy, question.offered))


def _calibrating(contents: Contents, indices: np.ndarray) -> np.ndarray:
    """(n,) bool, the photographs on which thresholds are set: half of them, copies of one together."""
    return np.array([contents.key[m][0] < 128 for m in contents.content[indices]], dtype=bool)


def stopping_rows(run: Run, stopping: Stopping, contents: Contents) -> Iterator[Row]:
    """Scores of paths that stop where they are not sure enough, -1 below being wrong where the truth is known.

    A certified threshold is chosen on half of the photographs, drawn by their content, and scored on the other
    half, beside whole paths.
    """
    found = run.outcome
    for name, probability in stopping.marks.items():
        yield _stopped_row(run, run.split, name, found, np.full(len(RANKS), probability))
    if stopping.max_risk is not None:
        calibrating = _calibrating(contents, found.indices)
        if calibrating.all() or not calibrating.any():
            raise ValueError(
                f"--max-risk needs photographs to set thresholds on and others to score; of {len(calibrating)} on "
                f"{run.split} all fall into one half; take more, or --abstain"
            )
        fit, test = _part(found, calibrating), _part(found, ~calibrating)
        level = certified_thresholds(
            fit.confidence, fit.predictions[FULL_PATH], fit.truth, target=stopping.max_risk, delta=DELTA
        )
        split = f"{run.split}{TEST_HALF}"
        score = replace(test, predictions={FULL_PATH: test.predictions[FULL_PATH]}).scores(run.counts)[FULL_PATH]
        yield Row(run.name, FULL_PATH, split, score, run.extra)
        name = f"stopping so that at most {stopping.max_risk:.0%} are wrong"
        yield _stopped_row(run, split, name, test, level)


def _stopped_row(run: Run, split: str, protocol: str, found: Outcome, level: np.ndarray) -> Row:
    taxa = stopped(found.predictions[FULL_PATH], found.confidence, level)  # type: ignore[arg-type]
    probability = np.where(taxa >= 0, found.probability[FULL_PATH], 0.0)
    answered = replace(found, predictions={protocol: taxa}, probability={protocol: probability}, answers={})
    parts = []
    for r, rank in enumerate(RANKS):
        known = found.truth[:, r] >= 0
        if known.any():
            named = known & (taxa[:, r] >= 0)
            wrong = f"{(taxa[named, r] != found.truth[named, r]).mean():.1%}" if named.any() else "–"
            parts.append(f"{rank} {named.sum() / known.sum():.1%} ({wrong}; from {level[r]:.3g})")
    extra = {**run.extra, "named (wrong of these; from which probability on)": ", ".join(parts)}
    return Row(run.name, protocol, split, answered.scores(run.counts)[protocol], extra)


def _part(found: Outcome, rows: np.ndarray) -> Outcome:
    """Some of the photographs."""
    return replace(
        found,
        indices=found.indices[rows],
        truth=found.truth[rows],
        predictions={name: taxa[rows] for name, taxa in found.predictions.items()},
        probability={name: p[rows] for name, p in found.probability.items()},
        answers={name: taxa[rows] for name, taxa in found.answers.items()},
        confidence=found.confidence[rows],
    )


def distinct_names(systems: Sequence[System]) -> list[System]:
    """The same, those of one name told apart by where they are from, or else by number.

    Of a folder's path the last two names are kept: a report travels, where its models lay need not.
    """
    named: list[System] = []
    for system in systems:
        names = [other.name for other in named]
        where = system.source if system.revision else "/".join(Path(system.source).absolute().parts[-2:])
        again = any(other.source == system.source for other in named)
        tries = (system.name, *([] if again else [f"{system.name} ({where})"]))
        numbered = (f"{system.name} ({i})" for i in count(2))
        named.append(replace(system, name=next(name for name in chain(tries, numbered) if name not in names)))
    return named


def prediction_rows(runs: Sequence[Run]) -> Iterator[dict[str, Any]]:
    """One row for each system, protocol and photograph, for whoever analyses on; see `PREDICTION_COLUMNS`."""
    for run in runs:
        found = run.outcome
        names = np.array([*(found.taxonomy.name(t) for t in range(found.taxonomy.size)), ""], dtype=object)
        for protocol, taxa in found.predictions.items():
            for row, i in enumerate(found.indices.tolist()):
                known = dict(zip(_TRUE, names[found.truth[row]], strict=True))
                said = dict(zip(RANKS, names[taxa[row]], strict=True))
                probability = dict(zip(_PROBABILITY, found.probability[protocol][row].tolist(), strict=True))
                sure = found.confidence[row].tolist() if protocol == FULL_PATH else [None] * len(RANKS)
                yield {
                    "file_name": run.photographs.name(i) if run.photographs else str(i),
                    "system": run.name,
                    "protocol": protocol,
                    **known,
                    **said,
                    **probability,
                    **dict(zip(_CONFIDENCE, sure, strict=True)),
                }


_TRUE, _PROBABILITY, _CONFIDENCE = (
    [f"{what}_{rank}" for rank in RANKS] for what in ("true", "probability", "confidence")
)
PREDICTION_COLUMNS = {
    **dict.fromkeys(["file_name", "system", "protocol", *_TRUE, *RANKS], "text"),
    **dict.fromkeys([*_PROBABILITY, *_CONFIDENCE], "number"),
}
