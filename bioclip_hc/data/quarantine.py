"""The record of what a run was given and could not use."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from bioclip_hc.data.sample import PathLike


class BadSample(NamedTuple):
    """What a shard holds and training cannot use; the key is "" for damage of the shard itself."""

    shard: str
    key: str
    reason: str


def cause(reason: str) -> str:
    """A reason without the numbers and quotations of the one case, so that cases can be counted."""
    quoted = re.sub(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"", "'...'", reason)
    told = re.sub(r"( is ambiguous| is not used): .*", r"\1", quoted)  # what a name may mean is its own affair
    return re.sub(r"(?<![-\w])\d+\b", "N", told)  # the 8 of UTF-8 is part of a name


def by_cause(bad: Iterable[BadSample]) -> dict[str, list[BadSample]]:
    """The samples of each cause, the most frequent first."""
    causes: dict[str, list[BadSample]] = {}
    for sample in bad:
        causes.setdefault(cause(sample.reason), []).append(sample)
    return dict(sorted(causes.items(), key=lambda item: -len(item[1])))


def count_causes(bad: Iterable[BadSample]) -> list[tuple[int, str, str]]:
    """(samples, cause, the first of them), the most frequent first."""
    return [
        (len(samples), why, f"{samples[0].shard} {samples[0].key}".strip())
        for why, samples in by_cause(bad).items()
    ]


def told_by_cause(bad: Iterable[BadSample]) -> list[str]:
    """A line for each cause, the most frequent first: how many, why, and which is the first, its reason in full."""
    lines = []
    for why, samples in by_cause(bad).items():
        first = samples[0]
        full = "" if first.reason == why else f": {first.reason}"
        lines.append(f"{len(samples)}: {why}; the first: {f'{first.shard} {first.key}'.strip()}{full}")
    return lines


class TooManyBadSamples(RuntimeError):
    """So much of the data is unusable that going on would hide it."""


class Quarantine:
    """The record of samples that training met and could not use.

    One JSON object a line, {"shard", "key", "reason"}, appended in a single write, so that processes can share the
    file. Counts are this process's own; what is judged are those of all.

    Args:
        path: the JSONL file, or None to count only.
        limit: the largest share of samples that may be quarantined, judged from the 100th sample on.

    Attributes:
        used, quarantined: samples so far.
        last: the last one that was recorded, if any.
    """

    ENOUGH = 100  # samples before a share means anything

    def __init__(self, path: PathLike | None = None, limit: float = 0.1) -> None:
        self.path = None if path is None else Path(path)
        self.limit = limit
        self.used = 0
        self.quarantined = 0
        self.last: BadSample | None = None

    @property
    def seen(self) -> int:
        """Samples used and quarantined."""
        return self.used + self.quarantined

    def use(self, count: int = 1) -> None:
        """Count samples that were used."""
        self.used += count

    def record(self, shard: PathLike, key: str, reason: str) -> None:
        """Count and write down a sample that was not."""
        self.quarantined += 1
        self.last = BadSample(os.fspath(shard), key, reason)
        if self.path is not None:
            line = json.dumps({"shard": os.fspath(shard), "key": key, "reason": reason}) + "\n"
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(descriptor, line.encode())
            finally:
                os.close(descriptor)

    def over_limit(self, used: int, quarantined: int) -> str:
        """A sentence on counts that a run must end at, "" if they are within the limit.

        A share of a few samples means nothing, and that of one process of many is a matter of luck.
        """
        seen = used + quarantined
        if seen < self.ENOUGH or quarantined <= self.limit * seen:
            return ""
        return f"{quarantined} of {seen} samples were quarantined, more than the limit of {self.limit:.0%}"
