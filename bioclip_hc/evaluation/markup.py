"""The parts of a page: texts of the data, tables, figures, sections. What is written into them is escaped here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from bioclip_hc.data.captions import printable
from bioclip_hc.evaluation.tables import Cell, Line, Table

LONGEST = 80  # characters of a name
TITLE = 160  # characters of a title: the names of a split, a protocol and a rank


def shown(text: str, width: int = LONGEST) -> str:
    """A text of the data as HTML: what cannot be seen, or turns the direction of writing, is replaced."""
    plain = printable(text)
    return escape(plain if len(plain) <= width else plain[: width - 1] + "…")


def name(text: str, width: int = LONGEST) -> str:
    """The same, kept from ordering what stands beside it by its own direction of writing."""
    return f"<bdi>{shown(text, width)}</bdi>"


def section(title: str, parts: Sequence[str], anchor: str) -> str:
    """A section, or nothing where it would be empty."""
    inside = "\n".join(filter(None, parts))
    return f'<section id="{anchor}">\n<h2>{title}</h2>\n{inside}\n</section>' if inside else ""


def folded(title: str, inside: str, unfolded: bool = False) -> str:
    """What is seen after a click, or nothing where it would be empty; the title is HTML."""
    return f"<details{' open' * unfolded}><summary>{title}</summary>\n{inside}\n</details>" if inside else ""


def grid(figures: Iterable[str]) -> str:
    """Figures side by side, as many as there is room for."""
    inside = "\n".join(filter(None, figures))
    return f'<div class="grid">\n{inside}\n</div>' if inside else ""


def figure(svg: str, title: str, caption: str, alternative: str) -> str:
    """A figure with its caption; title, caption and alternative are plain text. Nothing for no SVG."""
    if not svg:
        return ""
    labelled = svg.replace("<svg", f'<svg role="img" aria-label="{shown(alternative, 1000)}"', 1)
    head, foot = name(title, TITLE), shown(caption, 1000)
    return f"<figure><h4>{head}</h4>{labelled}<figcaption>{foot}</figcaption></figure>"


def table(content: Table, first: str = "system") -> str:
    """A table of a report. On a small screen its lines become cards (`style.CSS`): so each cell knows its head, and
    each element its role, which another `display` would take from it."""
    if not content.lines or not content.columns:
        return ""
    drawn = content.without_empty_columns()
    heads = "".join(
        f'<th role="columnheader" scope="col">{name(head, 40)}</th>' for head in (first, *drawn.columns)
    )
    lines = "\n".join(_line(line, drawn.columns) for line in drawn.lines)
    return (
        f'<table role="table" class="scores"><caption>{shown(drawn.title, 200)}</caption>\n'
        f'<thead role="rowgroup"><tr role="row">{heads}</tr></thead>\n'
        f'<tbody role="rowgroup">\n{lines}\n</tbody></table>'
    )


def _line(line: Line, columns: Sequence[str]) -> str:
    cells = "".join(
        f'<td role="cell" data-head="{shown(head, 40)}">{_cell(cell)}</td>'
        for head, cell in zip(columns, line.cells, strict=True)
    )
    head = name(line.head) + (f": {line.part}" if line.part else "")
    return f'<tr role="row" class="{line.kind}"><th role="rowheader" scope="row">{head}</th>{cells}</tr>'


def _cell(cell: Cell) -> str:
    text = f"<b>{shown(cell.text)}</b>" if cell.best else shown(cell.text)
    return f"{text}<small>{cell.interval}</small>" if cell.interval else text


def items(texts: Iterable[str]) -> str:
    """A list of sentences of plain text, or nothing."""
    inside = "".join(f"<li>{name(text, 500)}</li>" for text in texts)
    return f'<ul class="note">{inside}</ul>' if inside else ""


def listing(heads: Sequence[str], rows: Iterable[Sequence[str]], title: str) -> str:
    """A table of texts; heads and title are plain text, cells HTML, the first of a row its head."""
    lines = []
    for first, *rest in rows:
        cells = "".join(
            f'<td role="cell" data-head="{shown(head, 40)}">{cell}</td>'
            for head, cell in zip(heads[1:], rest, strict=True)
        )
        lines.append(f'<tr role="row"><th role="rowheader" scope="row">{first}</th>{cells}</tr>')
    if not lines:
        return ""
    top = "".join(f'<th role="columnheader" scope="col">{name(head, 40)}</th>' for head in heads)
    body = "\n".join(lines)
    return (
        f'<table role="table" class="listing"><caption>{shown(title, 200)}</caption>\n'
        f'<thead role="rowgroup"><tr role="row">{top}</tr></thead>\n'
        f'<tbody role="rowgroup">\n{body}\n</tbody></table>'
    )
