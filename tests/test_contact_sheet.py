"""The figures of shards and their page: right, spread over the tree, and safe to open whatever the shards hold."""

import base64
import html.parser
import io
import json

import numpy as np
import pytest
from PIL import Image
from shards_by_hand import write_tar
from small_run import LINEAGES, picture

from bioclip_hc.data.ambiguity import HOMONYM, TWO_PARENTS, TWO_RANKS, ambiguities
from bioclip_hc.data.captions import format_taxon_tag
from bioclip_hc.data.sample import Sample
from bioclip_hc.data.shards import ShardSet
from bioclip_hc.data.survey import choose_pictures, survey
from bioclip_hc.data.writer import write_shards
from bioclip_hc.evaluation.contact_sheet import THUMBNAIL, THUMBNAIL_BYTES, page, thumbnails
from bioclip_hc.evaluation.document import PICTURES, POLICY
from bioclip_hc.taxonomy import RANKS, Taxonomy

MERULA, MIGRATORIUS, CORAX, VULPES, CANINA, FAGALES = LINEAGES
COUNTS = {MERULA: 11, MIGRATORIUS: 1, CORAX: 3, VULPES: 2, CANINA: 2, FAGALES: 1}
SIZES = {3: (64, 8), 7: (8, 64), 12: (300, 200), 15: (9, 9)}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """20 pictures in two shards, the second with samples that cannot be used and a key of the first."""
    folder = tmp_path_factory.mktemp("survey")
    lineages = [lineage for lineage, count in COUNTS.items() for _ in range(count)]
    samples = [
        Sample(f"p{i:02d}", picture(i, SIZES.get(i, (40, 36))), lineage, "fox" * (lineage == VULPES))
        for i, lineage in enumerate(lineages)
    ]
    paths = write_shards(samples[:18], folder)
    members = {"bad.jpg": b"x", "also.jpg": b"x", "page.jpg": b"<html>"}
    members["page.taxonTag.txt"] = members["p00.taxonTag.txt"] = format_taxon_tag(lineages[18]).encode()
    members["p00.jpg"] = samples[18].image
    members["last.jpg"] = samples[19].image
    members["last.taxonTag.txt"] = format_taxon_tag(lineages[19]).encode()
    return ShardSet([*paths, write_tar(folder / "z.tar", members)])


@pytest.fixture(scope="module")
def found(shards):
    return survey(shards, headers=1000)


def test_figures(shards, found):
    assert (found.shards, found.samples, found.lineages) == (2, 21, 6)
    known = {rank.rank: (rank.taxa, rank.known, rank.missing) for rank in found.ranks}
    assert known == {
        "kingdom": (2, 21, 0), "phylum": (2, 21, 0), "class": (3, 21, 0), "order": (3, 18, 3),
        "family": (4, 20, 1), "genus": (4, 20, 1), "species": (5, 20, 1),
    }  # fmt: skip
    assert [(clade.path[-1], clade.samples) for clade in found.largest] == [
        ("Aves", 15), ("Magnoliopsida", 4), ("Mammalia", 2),
    ]  # fmt: skip
    assert [(part.label, part.species, part.samples) for part in found.tail] == [
        ("1", 1, 1), ("2 to 9", 3, 8), ("10 to 99", 1, 11), ("100 to 999", 0, 0), ("1000 or more", 0, 0),
    ]  # fmt: skip
    assert [(count, first.split()[-1]) for count, _, first in found.unusable] == [(2, "bad")]
    assert found.repeated == 1
    assert found.repeated_first == [("p00", [str(path) for path in shards.paths])]
    assert found.headers.kinds == {"JPEG RGB": 20}
    assert [(count, first.split()[-1]) for count, _, first in found.headers.unread] == [(1, "page")]
    assert (found.headers.width.max(), found.headers.height.min()) == (300, 8)
    assert json.loads(json.dumps(found.to_dict()))["pictures"]["width"]["max"] == 300


def test_a_share_of_the_headers_is_spread_over_all(shards):
    headers = survey(shards, headers=5).headers
    assert headers.looked_at == 5
    assert headers.sample[0] == 0
    assert np.diff(headers.sample).max() <= 11  # one of the five cannot be read
    assert headers.bytes.tolist() == [len(shards.read(i).image) for i in headers.sample]


def test_texts_are_counted_in_the_tokens_of_clip(found):
    assert found.texts.count == 6
    assert found.texts.cut == 0
    tokens, text = found.texts.longest[0]
    assert tokens == found.texts.quantiles[-1]
    assert text == "an image of Animalia Chordata Aves Passeriformes Turdidae Turdus migratorius"
    from open_clip import get_tokenizer

    assert tokens == int((get_tokenizer("ViT-B-32")([text]) != 0).sum())


def test_a_text_too_long_is_told_with_its_samples(tmp_path):
    long = (*MERULA[:6], "so long " * 40)
    hostile = (*MERULA[:6], "x" * 60_000)  # tokenised whole, it would take minutes
    lineages = [tuple(" ".join(name.split()) for name in lineage) for lineage in (long, long, hostile, MERULA)]
    shards = ShardSet(write_shards([Sample(f"{i}", picture(i), line) for i, line in enumerate(lineages)], tmp_path))
    texts = survey(shards, 10).texts
    assert (texts.count, texts.cut, texts.cut_samples) == (3, 2, 3)


def test_ambiguous_names():
    rows = [
        ("Animalia", "Chordata", "Aves", "Passeriformes", "Muscicapidae", "Oenanthe", "oenanthe"),
        ("Plantae", "Tracheophyta", "Magnoliopsida", "Apiales", "Apiaceae", "Oenanthe", "javanica"),
        ("Animalia", "Chordata", "Aves", "Piciformes", "Picidae", "Picus", ""),
        ("Animalia", "Chordata", "Aves", "Piciformes", "Other", "Picus", ""),
        ("Bacteria", "Actinobacteria", "Actinobacteria", "", "", "", ""),
        ("Animalia", "Chordata", "Aves", "Passeriformes", "Muscicapidae", "Saxicola", "oenanthe"),
    ]
    found = ambiguities(Taxonomy.from_lineages(rows))
    assert [(a.kind, a.name) for a in found] == [
        (HOMONYM, "genus Oenanthe"), (TWO_PARENTS, "genus Picus"), (TWO_RANKS, "Actinobacteria"),
    ]  # fmt: skip
    assert found[2].paths == (("Bacteria", "Actinobacteria"), ("Bacteria", "Actinobacteria", "Actinobacteria"))


# -- pictures


def test_pictures_are_the_extremes_and_then_every_clade_in_turn(shards, found):
    chosen = choose_pictures(shards, found.headers, 12)
    why = {shown.why: shards.key(shown.sample) for shown in chosen if shown.why}
    assert (why["fewest pixels"], why["most pixels"]) == ("p15", "p12")
    assert (why["tallest"], why["widest"]) == ("p07", "p03")
    assert len({shown.sample for shown in chosen}) == len(chosen) == 12
    lineages = {shards.lineages[shards.lineage_index[shown.sample]] for shown in chosen}
    assert lineages == set(COUNTS)  # though half of all are blackbirds
    plants = [shown for shown in choose_pictures(shards, found.headers, 9) if not shown.why]
    kingdoms = [shards.lineages[shards.lineage_index[shown.sample]][0] for shown in plants]
    assert {"Animalia", "Plantae"} <= set(kingdoms)
    assert len(choose_pictures(shards, found.headers, 1000)) == 21
    assert choose_pictures(shards, found.headers, 0) == []


def test_thumbnails_are_small_and_what_does_not_decode_says_why(shards, found):
    pictures = thumbnails(shards, found.headers, 21)
    by_key = {shown.sample.key: shown for shown in pictures if shown.shard == shards.paths[0]}
    assert by_key["p12"].size == (300, 200)
    for shown in by_key.values():
        with Image.open(io.BytesIO(shown.jpeg)) as image:
            assert max(image.size) <= min(THUMBNAIL, max(shown.size))
    (broken,) = [shown for shown in pictures if shown.size is None]
    assert (broken.sample.key, broken.jpeg) == ("page", b"")
    assert broken.problem.startswith("not JPEG")


def test_a_thumbnail_of_noise_is_bounded(tmp_path):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (700, 700, 3), dtype=np.uint8))
    file = io.BytesIO()
    noise.save(file, "PNG")
    shards = ShardSet(write_shards([Sample("n", file.getvalue(), MERULA)], tmp_path))
    (shown,) = thumbnails(shards, survey(shards, 1).headers, 1)
    assert 0 < len(shown.jpeg) < 1.5 * THUMBNAIL_BYTES


# -- page


class Reader(html.parser.HTMLParser):
    """What a browser would make of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attributes]

    def handle_data(self, data):
        self.text.append(data)


TAGS = {
    "html", "head", "meta", "title", "style", "body", "h1", "h2", "h3", "p", "dl", "div", "dt", "dd", "section",
    "table", "tr", "th", "td", "i", "b", "bdi", "br", "svg", "g", "path", "text", "circle", "figure", "figcaption",
    "img", "span",
}  # fmt: skip
HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'--><svg/onload=alert(1)>",
    "</style></title><h1>",
    "&lt;b&gt;",
    "javascript:alert(1)",
    "\u05d0\u05d1\u05d2",
    "x" * 30_000,
    "{{7*7}} ${7*7} %s",
    "N\u0301\u0302\u0303" * 50,
]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """Names, common names, keys, shards and a folder that would break out of a page."""
    folder = tmp_path_factory.mktemp("hostile") / "<script>alert(2)<" / "script>&\"'"
    folder.mkdir(parents=True)
    members = {}
    for i, name in enumerate(HOSTILE):
        key = f"{i}<i onclick=alert(3)>\"'&{i}"
        members[f"{key}.jpg"] = picture(i)
        members[f"{key}.taxonTag.txt"] = format_taxon_tag((*MERULA[:5], name, name)).encode()
        members[f"{key}.com.txt"] = f"a photo of {name}.".encode()
    members["lost<b>.jpg"] = b""
    paths = [write_tar(folder / f"{name}.tar", members) for name in ("a<b>", "b\u202e\n")]
    return ShardSet(paths)


def test_hostile_shards_make_a_harmless_page(hostile):
    found = survey(hostile, 100)
    text = page(found, thumbnails(hostile, found.headers, 30), f"Shards of {hostile.paths[0]}", HOSTILE)
    reader = Reader(text)
    assert set(reader.tags) <= TAGS
    assert not [each for each in reader.attributes if each[1].startswith("on")]
    links = [
        (tag, value)
        for tag, name, value in reader.attributes
        if name in ("src", "href", "srcset", "data", "action")
    ]
    assert {tag for tag, _ in links} == {"img"}
    for _, value in links:
        kind, _, data = value.partition(",")
        assert kind == "data:image/jpeg;base64"
        Image.open(io.BytesIO(base64.b64decode(data, validate=True))).verify()
    assert ("meta", "content", f"{POLICY}; {PICTURES}") in reader.attributes
    assert "url(" not in text
    assert "@import" not in text
    shown = "".join(reader.text)
    for name in HOSTILE[:6]:
        assert name in shown  # as text
    assert "x" * 1000 not in shown
    assert "(30000 characters)" in shown
    assert "\u202e" not in text
    assert found.repeated == len(HOSTILE)
    assert len(text) < 1_000_000


def test_the_page_says_the_figures(shards, found):
    text = page(found, thumbnails(shards, found.headers, 20), "Birds", ["a remark"])
    shown = " ".join("\n".join(Reader(text).text).split())
    for said in (
        "Birds",
        "a remark",
        "samples 21",
        "unusable records 2",
        "order 3 18 3",
        "fewest pixels",
        "Vulpes vulpes",
    ):
        assert said in shown, said
    assert text.count('<figure class="card">') == 20
    assert "Animalia › Chordata" in "".join(Reader(text).text)
    assert "Magnoliopsida › – › Rosaceae" in "".join(Reader(text).text)  # no order
    bars = len(RANKS) + 3 + len(found.largest)  # 3: no bins beyond the last that has species
    assert text.count('<td class="bar">') == bars


def test_a_page_without_pictures_texts_or_species(tmp_path):
    shards = ShardSet(write_shards([Sample("1", b"\xff\xd8\xff", FAGALES)], tmp_path))
    found = survey(shards, 1)
    text = page(found, [], "", ())
    assert "No sample names a species" in text
    assert "<figure" not in text
    assert found.to_dict()["pictures"]["width"] == {}
