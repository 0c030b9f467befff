"""What shards hold, as one HTML file that needs nothing else: figures and sample pictures.

Everything in it comes from data that nobody vouches for. So names are cut, cleared of what cannot be seen, escaped
and kept from turning the text around them; pictures are decoded as for training and written anew, small; and the
page forbids scripts and requests.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np

from bioclip_hc.data.captions import printable, scientific_name
from bioclip_hc.data.decode import DecodeError, decode_image
from bioclip_hc.data.sample import Sample
from bioclip_hc.data.shards import ShardSet
from bioclip_hc.data.survey import CONTEXT, EXAMPLES, Headers, Shown, Survey, choose_pictures, quantiles
from bioclip_hc.evaluation.document import CARDS, PICTURES, document
from bioclip_hc.evaluation.thumbnails import data_uri, small_jpeg
from bioclip_hc.taxonomy import RANKS

THUMBNAIL = 320  # pixels of the longer side: sharp at twice the density of a card
THUMBNAIL_BYTES = 40_000
ROWS = 50  # of a table of ambiguous names


@dataclass(frozen=True)
class Thumbnail:
    """A sample as the page shows it.

    Attributes:
        size: (width, height) of the picture itself; None where it does not decode.
        jpeg: the small copy; empty where the picture does not decode.
        problem: why it does not.
    """

    sample: Sample
    shard: Path
    why: str
    size: tuple[int, int] | None
    jpeg: bytes
    problem: str = ""


def thumbnails(shards: ShardSet, headers: Headers, count: int) -> list[Thumbnail]:
    """Small copies of at most `count` pictures; see `choose_pictures`."""
    return [_thumbnail(shards, shown) for shown in choose_pictures(shards, headers, count)]


def _thumbnail(shards: ShardSet, shown: Shown) -> Thumbnail:
    path = shards.shard(shown.sample)
    try:
        sample = shards.read(shown.sample)
    except OSError as error:
        lineage = shards.lineages[shards.lineage_index[shown.sample]]
        return Thumbnail(Sample(shards.key(shown.sample), b"", lineage), path, shown.why, None, b"", str(error))
    try:
        image = decode_image(sample.image)
    except DecodeError as error:
        return Thumbnail(sample, path, shown.why, None, b"", str(error))
    jpeg = small_jpeg(image, THUMBNAIL, THUMBNAIL_BYTES)
    return Thumbnail(sample, path, shown.why, image.size, jpeg)


# -- page -------------------------------------------------------------------------------------------------

CSS = """
:root{color-scheme:light dark}
*{box-sizing:border-box}
body{margin:0 auto;padding:1.2rem clamp(.8rem,3vw,2.2rem) 4rem;max-width:84rem;background:var(--paper);
color:var(--ink);font:1rem/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
h1{font-size:1.6rem;line-height:1.25;margin:.4rem 0 1rem;overflow-wrap:anywhere}
h2{font-size:1.2rem;margin:2.6rem 0 .8rem;padding-bottom:.2rem;border-bottom:1px solid var(--faint)}
h3{font-size:1rem;margin:0 0 .6rem}
p{max-width:56rem}
.note,.faint{color:color-mix(in srgb,var(--ink) 68%,var(--paper))}
.note{font-size:.85rem;margin:.5rem 0}
.tiles{display:grid;gap:.6rem;grid-template-columns:repeat(auto-fit,minmax(8.2rem,1fr));padding:0;margin:0}
.tiles>div{background:var(--soft);border-radius:.6rem;padding:.65rem .8rem}
.tiles dt{font-size:.8rem}
.tiles dd{margin:0;font-size:1.25rem;line-height:1.35;font-weight:600;font-variant-numeric:tabular-nums}
.tiles .warn dd{color:var(--series-1)}
.panels{display:grid;gap:1.2rem 2.2rem;grid-template-columns:repeat(auto-fit,minmax(min(100%,25rem),1fr));
align-items:start;margin-top:2rem}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:.88rem;font-variant-numeric:tabular-nums}
th,td{padding:.28rem .5rem .28rem 0;text-align:right;vertical-align:top;border-bottom:1px solid var(--faint)}
th{font-weight:600}
th:first-child,td:first-child,.text{text-align:left}
.text{overflow-wrap:anywhere}
.panels .text{overflow-wrap:normal}
.text:not(:first-child){padding-left:.9rem}
tr:last-child td{border-bottom:0}
.bar{width:34%;min-width:4.5rem;padding-right:0}
.bar i{display:block;height:.72rem;margin-top:.32rem;border-radius:.2rem;background:var(--series-0)}
svg{display:block;width:100%;height:auto;max-width:34rem}
svg text{font:10px system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;fill:var(--ink)}
"""


def page(survey: Survey, pictures: Sequence[Thumbnail], title: str, remarks: Sequence[str] = ()) -> str:
    """The page.

    Args:
        remarks: sentences to say beside the figures, plain text.
    """
    heading = _shown(title, 200)
    parts = [
        f"<h1>{heading}</h1>",
        _tiles(survey),
        *(f'<p class="note">{_shown(remark, 600)}</p>' for remark in remarks),
        '<div class="panels">',
        _panel("Samples by rank", _ranks(survey)),
        _panel("Pictures per species", _tail(survey)),
        _panel("Largest classes", _largest(survey)),
        _panel("Width and height", _sizes(survey.headers)),
        "</div>",
        _sheet(pictures, survey),
        _section("Texts", _texts(survey)),
        _section("Names of several taxa", _ambiguities(survey)),
        _section("Keys in several shards", _repeated(survey)),
        _section("What cannot be used", _counts(survey.unusable, "records")),
        _section("Headers that cannot be read", _counts(survey.headers.unread, "pictures")),
    ]
    return document(heading, CSS + CARDS, parts, PICTURES)


def _shown(text: str, width: int = 120) -> str:
    """A text of the data as HTML: what cannot be seen, or turns the direction of writing, is replaced."""
    return escape(printable(text[:width])) + (f"… ({len(text)} characters)" if len(text) > width else "")


def _name(text: str, width: int = 120) -> str:
    """The same, kept from ordering what stands beside it by its own direction of writing."""
    return f"<bdi>{_shown(text, width)}</bdi>"


def _number(value: float) -> str:
    return f"{value:,.0f}"


def _bytes(count: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB"


def _section(title: str, content: str) -> str:
    return f"<section>\n<h2>{title}</h2>\n{content}\n</section>" if content else ""


def _panel(title: str, content: str) -> str:
    return f"<section>\n<h3>{title}</h3>\n{content}\n</section>" if content else ""


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], text: Sequence[int] = (0,)) -> str:
    """A table of cells that are HTML already; columns in `text` are set to the left, bars have no class of text."""
    kinds = [' class="text"' if i in text else "" for i in range(len(heads))]
    lines = ["<tr>" + "".join(f"<th scope=col{kind}>{head}</th>" for head, kind in zip(heads, kinds, strict=True))]
    for row in rows:
        cells = (
            cell if cell.startswith("<td") else f"<td{kind}>{cell}</td>"
            for cell, kind in zip(row, kinds, strict=True)
        )
        lines.append("<tr>" + "".join(cells))
    return '<div class="scroll"><table>\n' + "\n".join(lines) + "\n</table></div>"


def _bar(share: float) -> str:
    width = max(100 * share, 0.8) if share else 0
    return f'<td class="bar"><i style="width:{width:.1f}%"></i></td>'


def _tiles(survey: Survey) -> str:
    species = survey.ranks[-1].taxa
    unusable = sum(count for count, _, _ in survey.unusable)
    tiles = [
        ("samples", _number(survey.samples), False),
        ("species", _number(species), False),
        ("shards", _number(survey.shards), False),
        ("size", _bytes(survey.bytes), False),
        ("median picture", _median_size(survey.headers), False),
        ("unusable records", _number(unusable), unusable > 0),
        ("repeated keys", _number(survey.repeated), survey.repeated > 0),
    ]
    if survey.texts:
        tiles.append(("texts cut", _number(survey.texts.cut), survey.texts.cut > 0))
    return (
        '<dl class="tiles">'
        + "".join(
            f"<div{' class=warn' * warn}><dt>{name}</dt><dd>{value}</dd></div>" for name, value, warn in tiles
        )
        + "</dl>"
    )


def _median_size(headers: Headers) -> str:
    if not len(headers.sample):
        return "–"
    return f"{np.median(headers.width):.0f}&nbsp;×&nbsp;{np.median(headers.height):.0f}"


def _ranks(survey: Survey) -> str:
    rows = (
        (
            rank.rank,
            _number(rank.taxa),
            _bar(rank.known / survey.samples),
            _number(rank.known),
            _number(rank.missing),
        )
        for rank in survey.ranks
    )
    return _table(("rank", "taxa", "", "known", "missing"), rows)


def _tail(survey: Survey) -> str:
    most = max((part.species for part in survey.tail), default=0)
    if not most:
        return '<p class="note">No sample names a species.</p>'
    last = max(i for i, part in enumerate(survey.tail) if part.species)
    rows = (
        (part.label, _bar(part.species / most), _number(part.species), _number(part.samples))
        for part in survey.tail[: last + 1]
    )
    return _table(("pictures", "", "species", "samples"), rows)


def _largest(survey: Survey) -> str:
    if not survey.largest:
        return ""
    most = survey.largest[0].samples
    rows = (
        (_name(clade.path[-1], 40), _bar(clade.samples / most), _number(clade.samples), _name(clade.path[0], 24))
        for clade in survey.largest
    )
    return _table(("class", "", "samples", "kingdom"), rows, text=(0, 3))


# -- sizes of pictures

_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 352, 8, 232  # of the field of points, in a view of 360 x 262
_TICKS = (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8)  # times powers of ten, for wide and for narrow ranges
_INPUT = 224  # pixels that most models read


def _sizes(headers: Headers) -> str:
    """Widths and heights on logarithmic axes, equal ones as one point whose area grows with their number."""
    if not len(headers.sample):
        return ""
    both = np.concatenate([headers.width, headers.height])
    low, high = math.log2(max(1, both.min())) - 0.3, math.log2(max(1, both.max())) + 0.3

    def at(width: int, height: int) -> tuple[float, float]:
        across, up = ((math.log2(max(pixels, 1)) - low) / (high - low) for pixels in (width, height))
        return _LEFT + (_RIGHT - _LEFT) * across, _BOTTOM - (_BOTTOM - _TOP) * up

    places: dict[tuple[int, int], int] = {}
    for width, height in zip(headers.width.tolist(), headers.height.tolist(), strict=True):
        x, y = at(width, height)
        place = round(x), round(y)
        places[place] = places.get(place, 0) + 1
    most = max(places.values())
    steps = (int(step * 10**power) for power in range(6) for step in _TICKS[high - low < 4])
    ticks = [tick for tick in steps if low <= math.log2(tick) <= high]
    lines, labels, last = [], [], -math.inf
    for tick in ticks:
        x, y = at(tick, tick)
        lines.append(f'<path d="M{x:.1f} {_TOP}V{_BOTTOM}M{_LEFT} {y:.1f}H{_RIGHT}"/>')
        if x - last >= 30:  # or labels run into each other
            labels.append(f'<text x="{x:.1f}" y="{_BOTTOM + 13}">{tick}</text>')
            labels.append(f'<text x="{_LEFT - 5}" y="{y + 3.5:.1f}" text-anchor="end">{tick}</text>')
            last = x
    dots = "".join(
        f'<circle cx="{place[0]}" cy="{place[1]}" r="{1.6 + 5 * math.sqrt(count / most) * (most > 1):.1f}"/>'
        for place, count in sorted(places.items(), key=lambda item: -item[1])
    )
    kinds = ", ".join(f"{_shown(kind, 20)} {_number(count)}" for kind, count in headers.kinds.items())
    size = quantiles(headers.bytes)
    return (
        f'<svg viewBox="0 0 360 262" role="img" aria-label="Widths and heights of {len(headers.sample)} pictures">'
        f'<g stroke="var(--faint)" stroke-width=".6" fill="none">{"".join(lines)}</g>'
        f"{_input_lines(at) if low <= math.log2(_INPUT) <= high else ''}"
        f'<g fill="var(--series-0)" fill-opacity=".5" stroke="var(--series-0)" stroke-width=".5">{dots}</g>'
        f'<g text-anchor="middle">{"".join(labels)}'
        f'<text x="{(_LEFT + _RIGHT) // 2}" y="{_BOTTOM + 27}">width (pixels)</text>'
        f'<text transform="translate(9 {(_TOP + _BOTTOM) // 2}) rotate(-90)">height (pixels)</text></g></svg>'
        f'<p class="note">From the headers of {_number(headers.looked_at)} pictures. {kinds}. '
        f"A picture has {_bytes(size['median'])} in the median, {_bytes(size['max'])} at most.</p>"
    )


def _input_lines(at: Callable[[int, int], tuple[float, float]]) -> str:
    x, y = at(_INPUT, _INPUT)
    return (
        f'<path d="M{x:.1f} {_TOP}V{_BOTTOM}M{_LEFT} {y:.1f}H{_RIGHT}" '
        'stroke="var(--series-1)" stroke-dasharray="4 3"/>'
        f'<text x="{_RIGHT}" y="{y - 3:.1f}" text-anchor="end">{_INPUT}</text>'
    )


# -- sample pictures


def _sheet(pictures: Sequence[Thumbnail], survey: Survey) -> str:
    if not pictures:
        return ""
    note = (
        f'<p class="note">{len(pictures)} of {_number(survey.samples)}: extremes among the pictures looked at, and '
        "others spread over the tree, each clade in turn. A dash in a lineage is a rank that is not known.</p>"
    )
    cards = "\n".join(map(_card, pictures))
    return _section("Pictures", f'{note}\n<div class="sheet">\n{cards}\n</div>')


def _card(picture: Thumbnail) -> str:
    sample = picture.sample
    name = scientific_name(sample.lineage)
    if picture.size is None:
        frame, size = f"<p>does not decode: {_shown(picture.problem, 160)}</p>", ""
    else:
        frame = f'<img alt="{_shown(name, 80)}" loading="lazy" src="{data_uri(picture.jpeg)}">'
        size = f"{picture.size[0]} × {picture.size[1]}, "
    why = f'<span class="why">{escape(picture.why)}</span>' if picture.why else ""
    italic = ("<i>", "</i>") if sample.lineage[-1] or sample.lineage[-2] else ("", "")
    common = f"<div>{_name(sample.common_name, 60)}</div>" if sample.common_name else ""
    return (
        f'<figure class="card"><div class="frame">{frame}{why}</div><figcaption>'
        f"<b>{italic[0]}{_name(name, 60)}{italic[1]}</b>{common}"
        f'<div class="faint">{_path(sample.lineage)}</div>'
        f"<div>{size}{_bytes(len(sample.image))}</div>"
        f'<div class="key faint">{_name(sample.key, 80)}<br>{_name(picture.shard.name, 60)}</div>'
        "</figcaption></figure>"
    )


def _path(lineage: Sequence[str]) -> str:
    """The known ranks above the name, a dash for those between that are not."""
    last = max((r for r, name in enumerate(lineage) if name), default=-1)
    upper = lineage[: min(last, RANKS.index("genus"))]
    return " › ".join(_name(name, 40) if name else "–" for name in upper)


# -- tables


def _texts(survey: Survey) -> str:
    texts = survey.texts
    if texts is None:
        return ""
    median, nearly, longest = texts.quantiles
    note = (
        f'<p class="note">{_number(texts.count)} texts, “an image of” and the names from the kingdom down, have '
        f"{median} tokens in the median, {nearly} at 99%, {longest} at most. CLIP reads {CONTEXT}: "
        f"{_number(texts.cut)} texts, of {_number(texts.cut_samples)} samples, would be cut. The longest:</p>"
    )
    rows = ((_name(text, 200), _number(tokens)) for tokens, text in texts.longest)
    return note + _table(("text", "tokens"), rows)


def _ambiguities(survey: Survey) -> str:
    if not survey.ambiguities:
        return ""
    note = '<p class="note">None is an error: taxa are told apart by their whole path.</p>'
    rows = (
        (_name(a.name, 60), escape(a.kind), "<br>".join(_name(" > ".join(path), 200) for path in a.paths[:6]))
        for a in survey.ambiguities[:ROWS]
    )
    more = len(survey.ambiguities) - ROWS
    rest = f'<p class="note">and {_number(more)} more</p>' if more > 0 else ""
    return note + _table(("rank or name", "which", "paths"), rows, text=(0, 1, 2)) + rest


def _repeated(survey: Survey) -> str:
    if not survey.repeated:
        return ""
    rows = ((_name(key), "<br>".join(_name(path) for path in paths[:6])) for key, paths in survey.repeated_first)
    note = (
        f'<p class="note">The first {EXAMPLES} of {_number(survey.repeated)}:</p>'
        if survey.repeated > EXAMPLES
        else ""
    )
    return note + _table(("key", "shards"), rows, text=(0, 1))


def _counts(rows: Sequence[tuple[int, str, str]], what: str) -> str:
    if not rows:
        return ""
    cells = ((_name(cause, 200), _number(count), _name(first, 120)) for count, cause, first in rows)
    return _table(("reason", what, "first"), cells, text=(0, 2))
