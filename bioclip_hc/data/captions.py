"""The texts of a sample in a shard, and what they tell of its taxon.

TreeOfLife-10M's shards hold ten texts a sample, of a lineage, its scientific name (genus and species, "" for one
that ends higher) and a common name (Imageomics/bioclip, scripts/evobio10m/make_wds.py, `make_txt`; the names
themselves: src/imageomics/naming.py, `Taxon`; the list of members: the dataset card):

    taxonTag.txt          a photo of kingdom Animalia phylum Chordata class Aves genus Turdus species migratorius.
    taxonTag_com.txt      the same, ending "species migratorius with common name American robin."
    taxonomic_name.txt    Animalia Chordata Aves Turdus migratorius
    taxon.txt, taxon_com.txt            "a photo of " it "." and the same with the common name
    scientific_name.txt   Turdus migratorius
    sci.txt, sci_com.txt                "a photo of " it "." and the same with the common name
    common_name.txt       American robin
    com.txt                             "a photo of " it "."

An unknown rank is left out, in the tagged forms with its tag; shards of this package keep the tag, followed by
nothing. A lineage that ends above its genus has "a photo of ." in sci.txt. Without a common name the scientific
name stands in for it, or the whole path if there is none. Names are in lower case but for a first capital, at the
species without it; a species may have more words ("geospiza x fuliginosa", subspecies), or none of a genus before
it. The images on the hub (image_set_*.tar.gz) hold pictures alone; these texts are in the shards made of them.

The tagged forms give the lineage by themselves. The others are flat: which rank a word belongs to is not written,
so they are kept as they are, to be looked up in a taxonomy (`names.NameTable`). So is the caption of an open_clip
shard (`txt`), which BioCLIP mixes of all these forms.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import NamedTuple

from bioclip_hc.taxonomy import RANKS, Lineage, as_lineage

CAPTION = "taxonTag.txt"
COMMON = "com.txt"

TAGGED, TAGGED_COMMON = "taxontag.txt", "taxontag_com.txt"  # members as an index has them, in lower case
SCIENTIFIC = (
    "taxonomic_name.txt", "taxon.txt", "taxon_com.txt",
    "scientific_name.txt", "sci.txt", "sci_com.txt",
)  # fmt: skip
COMMON_NAMES = ("com.txt", "common_name.txt")
FLAT = (*SCIENTIFIC, "txt", *COMMON_NAMES)
"""The flat members, the one that says most first."""

OPENINGS = ("a photo of ", "an image of ")
ARTICLES = ("a ", "an ", "the ")  # CLIP's own prompt is "a photo of a {}."
WITH_COMMON = " with common name "


class Label(NamedTuple):
    """What the texts of a sample say of its taxon.

    lineage: seven names, of a tagged caption; () for a flat one. common: the common name, "" for none.
    member, text: of a flat caption, which member it is (in lower case) and what it says, in single spaces; else "".
    """

    lineage: Lineage
    common: str = ""
    member: str = ""
    text: str = ""


def read_label(found: Collection[str], read: Callable[[str], str]) -> Label:
    """The label of a sample, from the best of its captions: tagged, else flat in the order of `FLAT`.

    Args:
        found: its members, in lower case.
        read: gives the text of one.

    Raises:
        ValueError: no caption, none that says anything, or a tagged one that cannot be read or names no rank.
    """
    common = next((member for member in COMMON_NAMES if member in found), "")
    if TAGGED in found or TAGGED_COMMON in found:
        text = read(TAGGED if TAGGED in found else TAGGED_COMMON)
        lineage, said = (parse_taxon_tag(text), "") if TAGGED in found else parse_taxon_tag_common(text)
        if not any(lineage):
            raise ValueError("empty lineage")
        return Label(lineage, common_name(read(common) if common else said, lineage))
    flat = [member for member in FLAT if member in found]
    for member in flat:
        text = " ".join(read(member).split())
        names, said = flat_names(text)
        if not names:
            continue
        if member == "txt" and (tagged := _tagged_text(text)):
            return tagged
        if common and member not in COMMON_NAMES:
            said = _said(read(common))
        return Label((), said, member, text)
    if flat:
        raise ValueError(f"no caption says anything: {', '.join(flat)}")
    raise ValueError(f"no caption {CAPTION!r}, nor a flat one; members found: {', '.join(sorted(found))}")


# -- tagged captions ---------------------------------------------------------------------------------------


def format_taxon_tag(lineage: Lineage) -> str:
    """The tagged caption of a lineage; an unknown rank keeps its tag, followed by nothing.

    Raises:
        ValueError: the lineage would not be read back as it is: a name holds the name of a rank as a word, or
            white space other than single spaces between words.
    """
    text = "a photo of " + " ".join(f"{rank} {name}" for rank, name in zip(RANKS, lineage, strict=True)) + "."
    try:
        read_back = parse_taxon_tag(text)
    except ValueError as error:
        raise ValueError(f"lineage {lineage!r} cannot be written as a tagged caption: {error}") from None
    if read_back != tuple(lineage):
        raise ValueError(
            f"lineage {lineage!r} cannot be written as a tagged caption: it reads back as {read_back!r}; "
            "pass it through as_lineage first"
        )
    return text


def parse_taxon_tag(text: str) -> Lineage:
    """The lineage of a tagged caption. A tag without a name, or a missing tag, is an unknown rank.

    Raises:
        ValueError: not of the form "a photo of kingdom ... species ...."; a tag twice or out of order.
    """
    text = text.strip()
    body = text.removeprefix("a photo of ").removesuffix(".")
    if len(body) != len(text) - len("a photo of ") - 1:
        raise ValueError(f'caption {short(text)} is not "a photo of kingdom ... species ... ."')
    words = body.split(" ")
    starts = [i for i, word in enumerate(words) if word in RANKS]
    tags = [words[i] for i in starts]
    if tags != [rank for rank in RANKS if rank in tags]:
        raise ValueError(f"caption {short(text)} names its ranks twice or out of order: {' '.join(tags)}")
    if starts[:1] != [0]:
        raise ValueError(f"caption {short(text)} does not begin with a rank ({', '.join(RANKS)})")
    ends = [*starts[1:], len(words)]
    names = {tag: " ".join(words[start + 1 : end]) for tag, start, end in zip(tags, starts, ends, strict=True)}
    return as_lineage(names)


def parse_taxon_tag_common(text: str) -> tuple[Lineage, str]:
    """The lineage of a tagged caption with a common name behind it, and that name; raises as `parse_taxon_tag`.

    The common name may hold the name of a rank ("royal family fern").
    """
    caption, behind, common = text.strip().partition(WITH_COMMON)
    return parse_taxon_tag(caption + "." if behind else caption), common.removesuffix(".")


def _tagged_text(text: str) -> Label | None:
    """The label of a caption of unknown form if it is a tagged one; "a photo of class clown." is none."""
    try:
        lineage, common = parse_taxon_tag_common(text)
    except ValueError:
        return None
    known = sum(map(bool, lineage))
    return Label(lineage, common_name(common, lineage)) if known > 1 or (known and lineage[0]) else None


# -- names -------------------------------------------------------------------------------------------------


def flat_names(text: str) -> tuple[list[str], str]:
    """The names that a flat caption may mean, and the common name that it adds ("" for none).

    "a photo of " or "an image of " is taken off, with an article behind it or not, and so is the sentence's
    period, which may as well be the name's own ("Cortinarius sp."): then there are two readings. No name: [].
    """
    body = " ".join(_body(text).split())
    name, behind, common = f" {body}".partition(WITH_COMMON)
    common = common.removesuffix(".")
    if behind and name:
        return [name.strip()], common
    whole = common if behind else body  # a lineage above the genus has no scientific name, only what stands in
    readings = [whole, whole.removesuffix(".").rstrip()]
    if body != " ".join(text.split()):
        readings += [reading.removeprefix(article) for article in ARTICLES for reading in readings]
    return [reading for reading in dict.fromkeys(readings) if reading not in ("", ".")], ""


def _body(text: str) -> str:
    """A caption without its opening."""
    text = text.strip()
    opening = next((opening for opening in OPENINGS if text.lower().startswith(opening)), "")
    return text[len(opening) :]


def _said(text: str) -> str:
    """What a caption says: what stands between its opening and its period, or all of it where it has no opening."""
    body = _body(text)
    return body if body == text.strip() else body.removesuffix(".")


def scientific_name(lineage: Lineage) -> str:
    """Genus and species, or the deepest known name of a lineage that ends higher; "" for an empty one."""
    *higher, genus, species = lineage
    if genus or species:
        return f"{genus} {species}".strip()
    return next((name for name in reversed(higher) if name), "")


def common_name(text: str, lineage: Lineage) -> str:
    """The common name in a caption; "" where TreeOfLife-10M for want of one, has the scientific or full name."""
    name = _said(text)
    scientific = scientific_name(lineage)
    # a species without a genus gets its first letter from the publisher
    return "" if name in (scientific, scientific.capitalize(), " ".join(filter(None, lineage))) else name


def printable(text: str) -> str:
    """A text of the data with its invisible characters replaced: what turns a line or moves a cursor."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def short(text: str) -> str:
    """A text as an error quotes it."""
    return repr(text if len(text) <= 200 else text[:200] + "...")
