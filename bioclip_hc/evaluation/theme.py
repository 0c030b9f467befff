"""The colours of pages and figures, in a light and a dark palette that stay apart for colour-blind readers.

Figures are drawn once and read on both: what is drawn in a placeholder colour becomes a CSS variable of the page.
"""

from __future__ import annotations

from bioclip_hc.taxonomy import RANKS

# variable: (light page, dark page). Okabe and Ito's hues, darkened or lightened; ranks run along viridis.
SERIES = [
    ("#0072b2", "#56b4e9"),
    ("#c25400", "#f5a05a"),
    ("#00805e", "#2fc79b"),
    ("#a8437f", "#e59cc6"),
    ("#806600", "#f0e442"),
    ("#5450a8", "#b3b0f5"),
]
RANK_PAIRS = list(
    zip(
        ["#440154", "#472c7a", "#3b518b", "#2d718e", "#218f8d", "#25ac82", "#58c765"],
        ["#355f8d", "#287c8e", "#1f988b", "#2fb47c", "#67cc5c", "#b2dd2d", "#fde725"],
        strict=True,
    )
)
THEME: dict[str, tuple[str, str]] = {
    "paper": ("#ffffff", "#15171a"),
    "soft": ("#f3f4f6", "#22252a"),
    "ink": ("#1c1f23", "#e6e6e3"),
    "muted": ("#555b63", "#a9adb3"),
    "faint": ("#b9bdc3", "#565b63"),
    **{f"series-{i}": pair for i, pair in enumerate(SERIES)},
    **{f"rank-{i}": pair for i, pair in enumerate(RANK_PAIRS)},
}
PLACEHOLDER = {name: f"#0000{i + 1:02x}" for i, name in enumerate(THEME)}

PAPER, INK, FAINT = (PLACEHOLDER[name] for name in ("paper", "ink", "faint"))
RANK_COLORS = tuple(PLACEHOLDER[f"rank-{i}"] for i in range(len(RANKS)))


def theme_css() -> str:
    """The colours as CSS variables, for both colour schemes."""
    light, dark = (";".join(f"--{name}:{pair[i]}" for name, pair in THEME.items()) for i in (0, 1))
    return f":root{{{light}}}\n@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}"
