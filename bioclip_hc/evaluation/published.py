"""The published systems and their figures, as published.toml says; needs no torch.

Figures are in %, nLCA is a share, as in the publication.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from importlib import resources
from typing import Any

from bioclip_hc.taxonomy import RANKS

PROTOCOLS = ("coarse-to-fine", "top-down")


@dataclass(frozen=True)
class Recipe:
    """How a published system is obtained and asked.

    Attributes:
        key, title: its name here, and in tables.
        hub: owner/repo. revision: the commit, "" where it is not known.
        geometry: what it must turn out to have. prompts: a preset of `data.prompts`.
        note: what is assumed about it.
    """

    key: str
    title: str
    hub: str
    geometry: str
    prompts: str
    revision: str = ""
    note: str = ""


@dataclass(frozen=True)
class Published:
    """What was reported of a system on a benchmark under a protocol.

    Attributes:
        accuracy: rank -> % over all images.
        average: their mean in %, None where not given. nlca: a share, None where not given.
        source, candidates: where it is from, and what could be answered.
        sic: which figure contradicts another, "" for none.
    """

    system: str
    benchmark: str
    protocol: str
    accuracy: Mapping[str, float]
    average: float | None
    nlca: float | None
    source: str
    candidates: str
    sic: str = ""

    @property
    def figures(self) -> dict[str, float]:
        """rank, "average" or "nlca" -> figure, those that were given: what a `Run` of `study` is set beside."""
        summary = {"average": self.average, "nlca": self.nlca}
        return {**self.accuracy, **{name: value for name, value in summary.items() if value is not None}}


def published(system: str, benchmark: str, protocol: str) -> Published | None:
    """What was reported of a system (a key of published.toml), None where nothing was."""
    return _content()[1].get((system, benchmark, protocol))


def published_on(system: str, benchmark: str) -> dict[str, dict[str, float]]:
    """protocol -> `Published.figures` of a system on a benchmark; empty where nothing was reported."""
    return {
        row.protocol: row.figures for row in all_published() if (row.system, row.benchmark) == (system, benchmark)
    }


def recipes() -> Mapping[str, Recipe]:
    """All published systems by key, in the order of the tables."""
    return _content()[0]


def all_published() -> list[Published]:
    """Every row of every table."""
    return list(_content()[1].values())


@cache
def _content() -> tuple[dict[str, Recipe], dict[tuple[str, str, str], Published]]:
    text = (resources.files("bioclip_hc.evaluation") / "published.toml").read_text(encoding="utf-8")
    return read_published(tomllib.loads(text))


def read_published(
    content: Mapping[str, Any],
) -> tuple[dict[str, Recipe], dict[tuple[str, str, str], Published]]:
    """Systems and rows of a file like published.toml, checked.

    Raises:
        ValueError: a key or value that cannot be meant, with the place where it stands.
    """
    _only(content, {"systems", "tables"}, set(), "published.toml")
    systems = {}
    for key, entry in content["systems"].items():
        _only(entry, {"title", "hub", "geometry", "prompts"}, {"revision", "note"}, f"systems.{key}")
        recipe = Recipe(key=key, **entry)
        for field in fields(Recipe):
            if not isinstance(value := getattr(recipe, field.name), str):
                raise ValueError(f"systems.{key}: {field.name} must be a text, got {value!r}")
        if recipe.revision and (len(recipe.revision) != 40 or set(recipe.revision) - set("0123456789abcdef")):
            raise ValueError(f"systems.{key}: revision must be a commit of 40 hex digits, got {recipe.revision!r}")
        if recipe.geometry not in ("euclidean", "lorentz"):
            raise ValueError(f"systems.{key}: geometry must be euclidean or lorentz, got {recipe.geometry!r}")
        if recipe.hub.count("/") != 1:
            raise ValueError(f"systems.{key}: hub must be owner/repo, got {recipe.hub!r}")
        systems[key] = recipe
    rows: dict[tuple[str, str, str], Published] = {}
    for table in content["tables"]:
        place = f"table {table.get('benchmark')} {table.get('protocol')}"
        _only(table, {"benchmark", "protocol", "source", "candidates", "ranks", "rows"}, set(), place)
        if table["protocol"] not in PROTOCOLS:
            raise ValueError(f"{place}: protocol must be one of {PROTOCOLS}")
        ranks = tuple(table["ranks"])
        if not ranks or list(ranks) != [rank for rank in RANKS if rank in ranks]:
            raise ValueError(f"{place}: ranks must be some of {RANKS}, coarse to fine, got {ranks}")
        for system, row in table["rows"].items():
            at = (system, table["benchmark"], table["protocol"])
            _only(row, {"accuracy"}, {"average", "nlca", "sic"}, f"{place}, {system}")
            if system not in systems or at in rows:
                raise ValueError(f"{place}: {system} is no system of this file, or is there twice")
            accuracy, average, nlca = row["accuracy"], row.get("average"), row.get("nlca")
            if len(accuracy) != len(ranks):
                raise ValueError(f"{place}, {system}: {len(accuracy)} accuracies for {len(ranks)} ranks")
            for value, most in [*((v, 100) for v in (*accuracy, average)), (nlca, 1)]:
                if value is not None and not (isinstance(value, int | float) and 0 <= value <= most):
                    raise ValueError(f"{place}, {system}: {value!r} is not between 0 and {most}")
            rows[at] = Published(
                *at,
                dict(zip(ranks, accuracy, strict=True)),
                average,
                nlca,
                table["source"],
                table["candidates"],
                row.get("sic", ""),
            )
    return systems, rows


def _only(entry: Mapping[str, Any], needed: set[str], allowed: set[str], place: str) -> None:
    if unknown := entry.keys() - needed - allowed:
        raise ValueError(f"{place}: unknown key {min(unknown)!r}")
    if missing := needed - entry.keys():
        raise ValueError(f"{place}: {min(missing)} is missing")
