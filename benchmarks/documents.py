"""Documents whose figures a command writes: what stands between two markers is its own, the rest is not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path


def replace_between(text: str, start: str, end: str, body: str, name: str) -> str:
    """The text with `body` between its markers.

    Raises:
        ValueError: the markers are not there once each, in that order.
    """
    if text.count(start) != 1 or text.count(end) != 1 or text.index(start) > text.index(end):
        raise ValueError(f"{name} must hold {start} and, after it, {end} once each")
    before, rest = text.split(start)
    return f"{before}{start}\n\n{body}\n\n{end}{rest.split(end)[1]}"


def require(path: Path, start: str, end: str) -> None:
    """Raises ValueError unless a file has its markers: before anything else is written."""
    replace_between(path.read_text(encoding="utf-8"), start, end, "", path.name)


def update(path: Path, start: str, end: str, body: str) -> None:
    """The same in a file."""
    text = replace_between(path.read_text(encoding="utf-8"), start, end, body, path.name)
    path.write_text(text, encoding="utf-8")


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    rows = (head, ["---"] * len(head), *([cell.replace("|", "/") for cell in line] for line in lines))
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
