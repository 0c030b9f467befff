"""The texts of a sample in a shard, and the lineage that they tell."""

from __future__ import annotations

from bioclip_hc.taxonomy import RANKS, Lineage, as_lineage

CAPTION = "taxonTag.txt"
COMMON = "com.txt"


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


def scientific_name(lineage: Lineage) -> str:
    """Genus and species, or the deepest known name of a lineage that ends higher; "" for an empty one."""
    *higher, genus, species = lineage
    if genus or species:
        return f"{genus} {species}".strip()
    return next((name for name in reversed(higher) if name), "")


def common_name(text: str, lineage: Lineage) -> str:
    """The common name in a caption; "" where TreeOfLife-10M for want of one, has the scientific or full name."""
    name = text.strip().removeprefix("a photo of ").removesuffix(".")
    fallbacks = (scientific_name(lineage), " ".join(filter(None, lineage)))
    return "" if name in fallbacks else name


def short(text: str) -> str:
    """A text as an error quotes it."""
    return repr(text if len(text) <= 200 else text[:200] + "...")
