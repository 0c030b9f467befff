"""One HTML file that needs nothing else, runs nothing and asks for nothing, whatever is written into it."""

from __future__ import annotations

from collections.abc import Sequence

from bioclip_hc.evaluation.theme import theme_css

POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
PICTURES = "img-src data:"  # of a page that holds its pictures

# Pictures with what is said of them, side by side
CARDS = """
.sheet{display:grid;gap:1rem;grid-template-columns:repeat(auto-fill,minmax(min(100%,11.5rem),1fr))}
.card{margin:0;background:var(--soft);border-radius:.6rem;overflow:hidden;font-size:.8rem;line-height:1.35;min-width:0}
.frame{position:relative;aspect-ratio:4/3;display:grid;place-items:center;
background:color-mix(in srgb,var(--ink) 13%,var(--paper))}
.frame img{width:100%;height:100%;object-fit:scale-down;display:block;position:absolute;inset:0}
.frame p{margin:.8rem;overflow-wrap:anywhere;font-size:.78rem}
.why{position:absolute;left:.4rem;top:.4rem;background:var(--ink);color:var(--paper);padding:.05rem .45rem;
border-radius:1rem;font-size:.7rem;opacity:.88}
.card figcaption{padding:.55rem .7rem .7rem;overflow-wrap:anywhere}
.card figcaption b{font-size:.92rem}
.card figcaption div{margin-top:.25rem}
.key{font:.7rem/1.4 ui-monospace,SFMono-Regular,Menlo,monospace}
@media(max-width:30rem){.sheet{grid-template-columns:repeat(2,minmax(0,1fr));gap:.6rem}
.frame{aspect-ratio:1}}
"""


def document(heading: str, css: str, body: Sequence[str], *allowed: str) -> str:
    """The whole page.

    Args:
        heading: its title, HTML.
        css: what follows the colours of `theme_css`.
        body: its parts, HTML; empty ones are left out.
        allowed: directives of the Content-Security-Policy beside those of `POLICY`.
    """
    policy = "; ".join([POLICY, *allowed])
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width,initial-scale=1">\n'
        f"<title>{heading}</title>\n<style>{theme_css()}{css}</style>\n</head>\n<body>\n"
        + "\n".join(filter(None, body))
        + "\n</body>\n</html>\n"
    )
