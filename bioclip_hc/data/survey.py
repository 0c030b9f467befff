"""What shards hold, in figures: taxa, names, texts, pictures, and what cannot be used of them.

# N samples, S of them looked at, T taxa
"""

from __future__ import annotations

import io
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from bioclip_hc.data.ambiguity import Ambiguity, ambiguities
from bioclip_hc.data.decode import FORMATS
from bioclip_hc.data.quarantine import BadSample, count_causes
from bioclip_hc.data.shards import ShardSet
from bioclip_hc.taxonomy import RANKS, Taxonomy

CONTEXT = 77  # tokens that CLIP's text tower reads, those of beginning and end included
LONGEST = 10  # texts told of
EXAMPLES = 20  # repeated keys told of
TAIL = (1, 2, 10, 100, 1000)  # where the bins of pictures per species begin
LARGEST = 12  # classes told of
MAX_CHARACTERS = 4096  # of a text that is tokenised: more are more than CONTEXT tokens, and tokenising is quadratic


class RankCount(NamedTuple):
    """A rank: its taxa, and how many samples name it or leave it empty."""

    rank: str
    taxa: int
    known: int
    missing: int


class Clade(NamedTuple):
    """A taxon of many samples."""

    path: tuple[str, ...]
    samples: int


class TailBin(NamedTuple):
    """Species with `first` to `last` pictures (None: or more): how many, and their pictures together."""

    first: int
    last: int | None
    species: int
    samples: int

    @property
    def label(self) -> str:
        if self.last is None:
            return f"{self.first} or more"
        return str(self.first) if self.first == self.last else f"{self.first} to {self.last}"


@dataclass(frozen=True)
class Texts:
    """Lengths of the texts "an image of KINGDOM ... SPECIES", in tokens of CLIP's tokenizer.

    Attributes:
        count: distinct texts, one for each lineage.
        quantiles: 50%, 99% and 100% of their lengths.
        cut, cut_samples: texts longer than CONTEXT, and samples that have them.
        longest: (tokens, text), the longest first; of a text, MAX_CHARACTERS are counted.
    """

    count: int
    quantiles: tuple[int, int, int]
    cut: int
    cut_samples: int
    longest: list[tuple[int, str]]


@dataclass(frozen=True)
class Headers:
    """What the headers of S pictures say.

    Attributes:
        sample: (S,) int64 numbers of the samples.
        width, height, bytes: (S,) int64.
        kinds: "JPEG RGB" -> pictures.
        unread: (pictures, cause, first) of those whose header cannot be read; they are not among the S.
    """

    sample: np.ndarray
    width: np.ndarray
    height: np.ndarray
    bytes: np.ndarray
    kinds: dict[str, int]
    unread: list[tuple[int, str, str]]

    @property
    def looked_at(self) -> int:
        return len(self.sample) + sum(count for count, _, _ in self.unread)


@dataclass(frozen=True)
class Survey:
    """The figures of `survey`.

    Attributes:
        bytes: of the shards.
        repeated: keys that several shards have; repeated_first: some of them, with these shards.
        unusable: (records, cause, first) of what is not among the samples.
        texts: None where there is no tokenizer.
    """

    shards: int
    samples: int
    bytes: int
    lineages: int
    ranks: list[RankCount]
    largest: list[Clade]
    tail: list[TailBin]
    ambiguities: list[Ambiguity]
    repeated: int
    repeated_first: list[tuple[str, list[str]]]
    unusable: list[tuple[int, str, str]]
    texts: Texts | None
    headers: Headers

    def to_dict(self) -> dict[str, Any]:
        """The figures as plain JSON types; of the pictures their quantiles."""
        h = self.headers
        sizes = {"width": h.width, "height": h.height, "bytes": h.bytes}
        texts = self.texts and {
            "context": CONTEXT,
            **{name: getattr(self.texts, name) for name in ("count", "cut", "cut_samples")},
            **dict(zip(("median", "p99", "longest"), self.texts.quantiles, strict=True)),
            "longest_texts": [{"tokens": tokens, "text": text} for tokens, text in self.texts.longest],
        }
        return {
            **{name: getattr(self, name) for name in ("shards", "samples", "bytes", "lineages")},
            "ranks": [rank._asdict() for rank in self.ranks],
            "largest_classes": [clade._asdict() for clade in self.largest],
            "pictures_per_species": [part._asdict() for part in self.tail],
            "ambiguous_names": [ambiguity._asdict() for ambiguity in self.ambiguities],
            "repeated_keys": {"count": self.repeated, "first": dict(self.repeated_first)},
            "unusable": [dict(zip(("records", "cause", "first"), row, strict=True)) for row in self.unusable],
            "texts": texts,
            "pictures": {
                "looked_at": h.looked_at,
                "kinds": h.kinds,
                "unread": [dict(zip(("pictures", "cause", "first"), row, strict=True)) for row in h.unread],
                **{name: quantiles(values) for name, values in sizes.items()},
            },
        }


def quantiles(values: np.ndarray) -> dict[str, int]:
    """Minimum, quartiles, 99% and maximum."""
    names = {"min": 0, "p25": 25, "median": 50, "p75": 75, "p99": 99, "max": 100}
    if not len(values):
        return {}
    found = np.percentile(values, list(names.values()), method="nearest").tolist()
    return dict(zip(names, map(int, found), strict=True))


def survey(shards: ShardSet, headers: int, on_picture: Callable[[int], object] = lambda done: None) -> Survey:
    """Look at shards.

    Args:
        headers: of at most so many pictures, evenly spread over the shards, the header is read.
        on_picture: called with the number of headers read.
    """
    taxonomy = shards.taxonomy()
    samples = np.bincount(shards.lineage_index, minlength=len(shards.lineages))
    known = samples @ np.array([[bool(name) for name in lineage] for lineage in shards.lineages])
    ids = taxonomy.encode_many(shards.lineages)  # (lineages, R)
    of_taxon = np.zeros(len(taxonomy), np.int64)
    for column in ids.T:
        np.add.at(of_taxon, column[column >= 0], samples[column >= 0])
    repeated = shards.repeated_keys()
    first = list(islice(repeated, EXAMPLES))
    return Survey(
        shards=len(shards.paths),
        samples=len(shards),
        bytes=sum(path.stat().st_size for path in shards.paths),
        lineages=len(shards.lineages),
        ranks=[
            RankCount(rank, len(taxonomy.at_rank(r)), int(known[r]), len(shards) - int(known[r]))
            for r, rank in enumerate(RANKS)
        ],
        largest=_largest(taxonomy, of_taxon),
        tail=_tail(of_taxon[taxonomy.at_rank(len(RANKS) - 1)]),
        ambiguities=ambiguities(taxonomy),
        repeated=len(first) + sum(1 for _ in repeated),
        repeated_first=[(key, [str(path) for path in paths]) for key, paths in first],
        unusable=count_causes(shards.bad),
        texts=_texts(taxonomy, ids.max(axis=1), samples),
        headers=_headers(shards, headers, on_picture),
    )


def _largest(taxonomy: Taxonomy, of_taxon: np.ndarray) -> list[Clade]:
    classes = taxonomy.at_rank(RANKS.index("class"))
    order = classes[np.argsort(-of_taxon[classes], kind="stable")]
    return [Clade(taxonomy.path(t), int(of_taxon[t])) for t in order[:LARGEST].tolist()]


def _tail(pictures: np.ndarray) -> list[TailBin]:
    """The bins of TAIL over the numbers of pictures of each species."""
    bins = np.digitize(pictures, TAIL)
    ends = [begin - 1 for begin in TAIL[1:]]
    return [
        TailBin(begin, end, int((bins == i).sum()), int(pictures[bins == i].sum()))
        for i, (begin, end) in enumerate(zip(TAIL, [*ends, None], strict=True), 1)
    ]


def _texts(taxonomy: Taxonomy, taxa: np.ndarray, samples: np.ndarray) -> Texts | None:
    """Lengths of the texts of taxa, each of which `samples` have."""
    try:
        from open_clip.tokenizer import SimpleTokenizer

        from bioclip_hc.data.text import TextForm
    except ImportError:
        return None
    tokenizer, form = SimpleTokenizer(), TextForm()
    texts = [form.text(taxonomy, t) for t in taxa.tolist()]
    length = np.array([len(tokenizer.encode(text[:MAX_CHARACTERS])) + 2 for text in texts])
    cut = length > CONTEXT
    longest = np.argsort(-length, kind="stable")[:LONGEST].tolist()
    return Texts(
        len(texts),
        tuple(np.percentile(length, (50, 99, 100), method="nearest").astype(int).tolist()),
        int(cut.sum()),
        int(samples[cut].sum()),
        [(int(length[i]), texts[i]) for i in longest],
    )


def _headers(shards: ShardSet, count: int, on_picture: Callable[[int], object]) -> Headers:
    wanted = np.unique(np.linspace(0, len(shards) - 1, min(count, len(shards))).round().astype(np.int64))
    rows: list[tuple[int, int, int, int]] = []
    kinds, bad = Counter[str](), list[BadSample]()
    for done, i in enumerate(wanted.tolist(), 1):
        try:
            data = shards.read(i).image
            width, height, kind = _header(data)
            rows.append((i, width, height, len(data)))
            kinds[kind] += 1
        except (ValueError, OSError) as error:
            bad.append(BadSample(str(shards.shard(i)), shards.key(i), str(error)))
        on_picture(done)
    columns = [np.array(column, np.int64) for column in zip(*rows, strict=True)] or [np.empty(0, np.int64)] * 4
    return Headers(columns[0], columns[1], columns[2], columns[3], dict(kinds.most_common()), count_causes(bad))


def _header(data: bytes) -> tuple[int, int, str]:
    """Width, height and "JPEG RGB".

    Raises:
        ValueError: the header cannot be read.
    """
    try:
        with warnings.catch_warnings(), Image.open(io.BytesIO(data), formats=FORMATS) as image:
            warnings.simplefilter("ignore")  # of bombs: nothing is decoded
            return (*image.size, f"{image.format} {image.mode}")
    except Exception as error:  # on damaged files Pillow raises anything
        raise ValueError(f"{type(error).__name__}: not a picture's header") from error


# -- sample pictures


class Shown(NamedTuple):
    """A sample worth seeing, and why ("" where it stands for its clade)."""

    sample: int
    why: str


def choose_pictures(shards: ShardSet, headers: Headers, count: int) -> list[Shown]:
    """At most `count` samples: the extremes among those looked at, the others spread over the tree.

    The spread takes clades in turn at every rank, so that a small kingdom is seen before a second beetle.
    """
    chosen: dict[int, str] = {}
    for number, why in _extremes(headers):
        if len(chosen) < count:
            chosen.setdefault(number, why)
    spread = _in_turn(_of_lineages(shards), 0)
    for number in spread:
        if len(chosen) >= count:
            break
        chosen.setdefault(number, "")
    return [Shown(number, why) for number, why in chosen.items()]


def _extremes(headers: Headers) -> Iterator[tuple[int, str]]:
    if not len(headers.sample):
        return
    pixels = headers.width * headers.height
    shape = headers.width / np.maximum(headers.height, 1)
    for values, low, high in (
        (pixels, "fewest pixels", "most pixels"),
        (shape, "tallest", "widest"),
        (headers.bytes / np.maximum(pixels, 1), "fewest bytes a pixel", "most bytes a pixel"),
    ):
        yield int(headers.sample[values.argmin()]), low
        yield int(headers.sample[values.argmax()]), high


def _of_lineages(shards: ShardSet) -> list[tuple[tuple[str, ...], np.ndarray]]:
    """Each lineage and the numbers of its samples, in the order of names."""
    order = np.argsort(shards.lineage_index, kind="stable")
    parts = np.split(order, np.searchsorted(shards.lineage_index[order], np.arange(1, len(shards.lineages))))
    return sorted(zip(shards.lineages, parts, strict=True), key=lambda pair: pair[0])


def _in_turn(lineages: Sequence[tuple[tuple[str, ...], np.ndarray]], rank: int) -> Iterator[int]:
    """One sample of each taxon of a rank in turn, those of a taxon by the same rule one rank down."""
    if rank == len(RANKS):
        yield from (int(i) for _, numbers in lineages for i in numbers)
        return
    taxa: dict[str, list] = {}
    for pair in lineages:
        taxa.setdefault(pair[0][rank], []).append(pair)
    if len(taxa) == 1:
        yield from _in_turn(lineages, rank + 1)
        return
    running = [_in_turn(part, rank + 1) for part in taxa.values()]
    while running:
        alive = []
        for iterator in running:
            if (number := next(iterator, None)) is not None:
                yield number
                alive.append(iterator)
        running = alive
