"""Matplotlib's drawings as SVG text that stands in a page.

Text stays text, the background is transparent, and a figure is as wide as a telephone, so that letters keep their
size there. Names come from data: none is read as mathematics or markup.
"""

from __future__ import annotations

import functools
import io
import re
import warnings
import zlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec

from bioclip_hc.data.captions import printable
from bioclip_hc.evaluation.theme import FAINT, INK, PLACEHOLDER, THEME

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

P = ParamSpec("P")

WIDTH = 3.75  # inches, 360 CSS pixels

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "bioclip_hc",
    "font.family": "sans-serif",
    "font.size": 8.5,
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.5,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
}


def as_svg(draw: Callable[P, Figure]) -> Callable[P, str]:
    """Let a function that draws a Figure return it as SVG text instead."""

    @functools.wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> str:
        try:
            import matplotlib
        except ImportError:
            raise ImportError("the report's figures need matplotlib: pip install bioclip_hc[report]") from None
        buffer = io.StringIO()
        with matplotlib.rc_context(STYLE), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph")  # the reader's browser has the letters, not matplotlib
            draw(*args, **kwargs).savefig(
                buffer,
                format="svg",
                transparent=True,
                metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")),
            )
        return _inline(buffer.getvalue())

    return drawn


def _inline(svg: str) -> str:
    """An SVG document made fit to stand in a page: no prologue, own ids, themed colours, no fixed size."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'\s(width|height)="[^"]*pt"', "", svg, count=2)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>f{zlib.crc32(svg.encode()):08x}-", svg)
    for name, placeholder in PLACEHOLDER.items():
        svg = svg.replace(placeholder, f"var(--{name},{THEME[name][0]})")
    return svg.strip()


def axes_of(height: float) -> tuple[Figure, Axes]:
    """A figure that no global state knows, with one pair of axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.add_subplot()


def legend(figure: Figure, axes: Axes, names: Sequence[str], columns: int = 1) -> None:
    """The lines drawn so far with their names, above the axes."""
    labels = [short(name, 48) for name in names]
    figure.legend(axes.get_lines(), labels, loc="outside upper left", ncols=columns, columnspacing=1)


def short(name: str, length: int) -> str:
    """A name as a legend has room for it."""
    name = printable(name)
    return name if len(name) <= length else name[: length - 1] + "…"
