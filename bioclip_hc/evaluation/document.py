"""One HTML file that needs nothing else, runs nothing and asks for nothing, whatever is written into it."""

from __future__ import annotations

from collections.abc import Sequence

from bioclip_hc.evaluation.plots import theme_css

POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
PICTURES = "img-src data:"  # of a page that holds its pictures


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
