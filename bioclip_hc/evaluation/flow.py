"""The way of a benchmark's images down the tree, as SVG: a stream from which each rank's first errors part.

# R ranks
"""

from __future__ import annotations

from collections.abc import Sequence

from bioclip_hc.taxonomy import RANKS

WIDTH = 360  # CSS pixels, as wide as a telephone
STREAM = 120  # pixels of all images
LEFT, BEND, GAP = 12, 12, 20  # before the stream; least radius of a bend; between two ribbons
RIBBON_END = 190  # where labels begin
THINNEST = 0.75  # pixels; a ribbon of one image shows too


def flow(first_error: Sequence[float], known: Sequence[int], ranks: Sequence[str] = RANKS) -> str:
    """A stream that narrows where images leave their true path.

    Args:
        first_error: (R + 1,) images by the rank of their first error, the last bin those without one.
        known: (R,) images whose truth is known at the rank; a rank that none knows is left out.
    """
    images = sum(first_error)
    if not images:
        return ""
    scale = STREAM / images
    right, y = float(images), float(GAP)
    parts = [_label(LEFT, 12, f"{images:,.0f} images")]
    for r, rank in enumerate(ranks):
        if not known[r]:
            continue
        lost = first_error[r]
        before, after = LEFT + right * scale, LEFT + (right - lost) * scale
        thick = max((before - after), THINNEST if lost else 0)
        below = y + BEND + thick + GAP
        text = f"{rank}: {_share(lost, images)}"
        title = f"{rank}: {lost:,.0f} of {images:,.0f} images leave their true path, {right - lost:,.0f} stay on it"
        parts.append(
            f"<g><title>{title}</title>{_stream(before, after, y, below)}{_ribbon(before, thick, y, r)}</g>"
        )
        parts.append(_label(RIBBON_END + 6, y + BEND + thick / 2 + 4, text))
        right, y = right - lost, below
    width = max(right * scale, THINNEST if right else 0)
    parts.append(
        f"<g><title>{right:,.0f} of {images:,.0f} images are right at every known rank</title>"
        f'<path d="M{LEFT} {y:.1f}h{width:.1f}v10h{-width:.1f}z" fill="var(--series-0)"/></g>'
    )
    parts.append(_label(LEFT, y + 26, f"right at every known rank: {_share(right, images)}"))
    return f'<svg viewBox="0 0 {WIDTH} {y + 34:.0f}">{"".join(parts)}</svg>'


def _stream(before: float, after: float, top: float, bottom: float) -> str:
    """What stays: as wide as before down to the bend, then as wide as what is left."""
    return (
        f'<path d="M{LEFT} {top:.1f}H{after:.2f}V{bottom:.1f}H{LEFT}z" fill="var(--series-0)" fill-opacity=".55"/>'
    )


def _ribbon(right: float, thick: float, top: float, rank: int) -> str:
    """What leaves: from the right edge of the stream, round a bend, to the label."""
    if not thick:
        return ""
    left, centre, outer = right - thick, right + BEND, BEND + thick
    return (
        f'<path d="M{left:.2f} {top:.1f}A{outer:.2f} {outer:.2f} 0 0 0 {centre:.2f} {top + outer:.2f}'
        f"H{RIBBON_END}V{top + BEND:.2f}H{centre:.2f}A{BEND} {BEND} 0 0 1 {right:.2f} {top:.1f}z"
        f'" fill="var(--rank-{rank})" stroke="var(--ink)" stroke-width=".4"/>'
    )


def _label(x: float, y: float, text: str) -> str:
    return f'<text x="{x:.0f}" y="{y:.1f}">{text}</text>'


def _share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} % ({part:,.0f})"
