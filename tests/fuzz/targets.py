"""What is fuzzed: each target reads bytes as a file of its kind, and may raise what it declares.

Plain noise never gets past the checksum of a tar's header or of a manifest, so each target has a mutator that knows
its form: it changes fields, lengths and order, and then sets the checksums right, or not.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from faults.specimens import END, TAG, archives, captions, header, member, pax, sample

from bioclip_hc.data import index
from bioclip_hc.data.captions import format_taxon_tag, parse_taxon_tag, read_label
from bioclip_hc.taxonomy import RANKS, Taxonomy, as_lineage

import checkpoint

Mutate = Callable[[bytes, int], bytes]
"""Changes bytes at random, at most so many."""

BLOCK = tarfile.BLOCKSIZE
ODD = (
    0, 1, -1, 1 << 31, 1 << 64, -(1 << 64), 10**400, 1.5, float("nan"), float("inf"), True, None, "", "\0", "../x",
    "/dev/zero", "\ud800", [], {}, [[]], {"": {}}, "9" * 5000,
)  # fmt: skip


def place() -> Path:
    """A folder in memory where there is one."""
    shared = Path("/dev/shm")
    return Path(tempfile.mkdtemp(prefix="fuzz-", dir=shared if os.access(shared, os.W_OK) else None))


@dataclass(frozen=True)
class Target:
    """A reader under test."""

    read: Callable[[bytes, Path], object]
    """Reads the bytes, in an empty folder of its own to put them; must raise nothing."""
    seeds: Callable[[], list[bytes]]
    mutate: Callable[[bytes, int, random.Random, Mutate], bytes]


# -- the index of a tar ---------------------------------------------------------------------------------------


def read_tar(data: bytes, folder: Path) -> object:
    """Index it; what is found lies in it."""
    path = folder / "s.tar"
    path.write_bytes(data)
    try:
        found = index.build_index(path)
    except ValueError as error:
        if "caption member" not in str(error):  # the one that is declared
            raise
        return str(error)
    assert 0 <= found.lost <= len(data) * (1 + len(found.bad))
    for offset, size in zip(found.offset, found.size, strict=True):
        assert 0 <= offset <= offset + size <= len(data)
    assert len(found.keys) == len(found.offset) == len(found.size) == len(found.label)
    json.dumps(vars(found))
    return found


def tar_seeds() -> list[bytes]:
    good = sample("good", b"\xff\xd8\xff" + bytes(200))
    small = [one for one in archives() if len(one.make()) < 20_000 and not one.heavy]
    return [one.around(good, one.make(), good + END) for one in small]


def mutate_tar(data: bytes, most: int, draw: random.Random, mutate: Mutate) -> bytes:
    """Change a header, a block, their order or number, or the end; set most checksums right."""
    blocks = [data[i : i + BLOCK] for i in range(0, len(data), BLOCK)] or [bytes(BLOCK)]
    for _ in range(draw.choice((1, 1, 2, 4))):
        i = draw.randrange(len(blocks))
        heads = [k for k, block in enumerate(blocks) if block[257:262] == b"ustar"]
        what = draw.randrange(9)
        if what <= 2 and heads:
            i = draw.choice(heads)
            begin, size = draw.choice(FIELDS)
            field = mutate(blocks[i][begin : begin + size].ljust(size, b"\0"), size)[:size].ljust(size, b"\0")
            blocks[i] = blocks[i][:begin].ljust(begin, b"\0") + field + blocks[i][begin + size :]
        elif what == 3 and heads:
            blocks[i : i + 1] = _blocks(draw.choice(HEADERS))
        elif what == 4:
            blocks.insert(i, draw.choice(blocks))
        elif what == 5 and len(blocks) > 1:
            del blocks[i]
        elif what == 6:
            k = draw.randrange(len(blocks))
            blocks[i], blocks[k] = blocks[k], blocks[i]
        elif what == 7:
            blocks[i] = mutate(blocks[i], BLOCK)[:BLOCK]
        else:
            blocks[i] = bytes(BLOCK)
    if draw.random() < 0.9:
        blocks = [_with_checksum(block) for block in blocks]
    whole = b"".join(blocks)
    if draw.random() < 0.1:
        whole = whole[: draw.randrange(len(whole) + 1)]
    return whole[:most]


FIELDS = ((0, 100), (124, 12), (124, 12), (156, 1), (156, 1), (157, 100), (257, 8), (345, 155), (0, 512))
HEADERS = [
    header("././@LongLink", 40, tarfile.GNUTYPE_LONGNAME),
    member("././@LongLink", b"x" * 40, kind=tarfile.GNUTYPE_LONGNAME),
    pax({"path": "../y.jpg"}),
    pax({"size": "-1"}),
    pax({"size": "7", "GNU.sparse.map": "0,1,2", "GNU.sparse.major": "1", "GNU.sparse.minor": "0"}),
    pax({"hdrcharset": "BINARY", "path": "\udcff.jpg".encode("utf-8", "replace").decode()}, tarfile.XGLTYPE),
    header("x", 512, tarfile.GNUTYPE_SPARSE, magic=b"ustar  \0"),
    header("x", kind=b"D"),
]


def _blocks(data: bytes) -> list[bytes]:
    return [data[i : i + BLOCK] for i in range(0, len(data), BLOCK)]


def _with_checksum(block: bytes) -> bytes:
    if block[257:262] != b"ustar" or len(block) < BLOCK:
        return block
    total = sum(block[:148]) + sum(block[156:]) + 8 * 32
    return block[:148] + b"%06o\0 " % total + block[156:]


# -- an index kept beside its shard ---------------------------------------------------------------------------


def read_kept(data: bytes, folder: Path) -> object:
    """Load a kept index; what passes for one fits its shard."""
    path = folder / "s.tar"
    path.write_bytes(SHARD)
    stamp = index._stamp(path)
    index.index_file(path).write_bytes(data.replace(b'"STAMP"', json.dumps(stamp).encode()))
    found = index.kept_index(path)
    if found is not None:
        assert all(0 <= o <= o + s <= len(SHARD) for o, s in zip(found.offset, found.size, strict=True))
        assert all(0 <= one < len(found.labels) for one in found.label)
        json.dumps(vars(found))
    return found


SHARD = sample("a") + sample("b") + END


def kept_seeds() -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "s.tar"
        path.write_bytes(SHARD)
        index.shard_index(path)
        content = json.loads(index.index_file(path).read_bytes()) | {"stamp": "STAMP"}
    return [json.dumps(content).encode(), b'{"stamp": "STAMP"}', b"[]", b"[" * 5000]


def mutate_json(data: bytes, most: int, draw: random.Random, mutate: Mutate) -> bytes:
    """Put an odd value somewhere, take a value away, double one; or change bytes."""
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        return mutate(data, most)
    if draw.random() < 0.2:
        return mutate(data, most)
    for _ in range(draw.choice((1, 1, 2))):
        content = _changed(content, draw)
    return json.dumps(content).encode()[:most]


def _changed(content: Any, draw: random.Random) -> Any:
    if isinstance(content, dict) and content and draw.random() < 0.9:
        key = draw.choice(sorted(content))
        kept = {k: v for k, v in content.items() if k != key}
        if draw.random() < 0.1:
            return kept
        return kept | {draw.choice((key,) * 9 + ("", "x")): _changed(content[key], draw)}
    if isinstance(content, list) and content and draw.random() < 0.9:
        i = draw.randrange(len(content))
        middle = [_changed(content[i], draw)] * draw.choice((0, 1, 1, 1, 2))
        return content[:i] + middle + content[i + 1 :]
    return draw.choice(ODD)


# -- lineages -------------------------------------------------------------------------------------------------


def read_caption(data: bytes, folder: Path) -> object:
    """The texts of a sample, of which the first byte says which members they are."""
    kind, _, rest = data.partition(b"\n")
    text = rest.decode("utf-8", "surrogateescape")
    names = [name for i, name in enumerate(MEMBERS) if kind and kind[0] >> (i % 8) & 1] or ["taxontag.txt"]
    try:
        lineage = parse_taxon_tag(text)
        assert len(lineage) == len(RANKS)
        assert as_lineage(lineage) == lineage
    except ValueError:
        lineage = None
    try:
        if lineage is not None:
            assert parse_taxon_tag(format_taxon_tag(lineage)) == lineage
    except ValueError:
        pass
    try:
        return read_label(names, lambda name: text)
    except ValueError as error:
        return str(error)


MEMBERS = (
    "taxontag.txt", "taxontag_com.txt", "com.txt", "txt",
    "taxon.txt", "sci_com.txt", "common_name.txt", "taxon_com.txt",
)  # fmt: skip


def caption_seeds() -> list[bytes]:
    texts = [TAG, TAG[:-1] + " with common name blackbird.", "a photo of Turdus merula.", "", "a photo of ."]
    tails = [one.make()[-512:].rstrip(b"\0") for one in captions()]
    return [bytes([1 << i]) + b"\n" + text.encode() for i, text in enumerate(texts)] + [b"\1\n" + t for t in tails]


def mutate_caption(data: bytes, most: int, draw: random.Random, mutate: Mutate) -> bytes:
    """Words taken out, doubled, swapped, put in."""
    if draw.random() < 0.4:
        return mutate(data, most)
    words = data.split(b" ")
    i, k = draw.randrange(len(words)), draw.randrange(len(words))
    what = draw.randrange(4)
    if what == 0:
        del words[i]
    elif what == 1:
        words.insert(i, words[k])
    elif what == 2:
        words[i], words[k] = words[k], words[i]
    else:
        others = (b"", b"\t", b"with common name", b"\xc2\xa0", b".")
        words.insert(i, draw.choice((*(rank.encode() for rank in RANKS), *others)))
    return b" ".join(words)[:most]


def read_table(data: bytes, folder: Path) -> object:
    """A table of taxa: the first byte says whether it is packed, or a saved taxonomy."""
    kind, body = data[:1], data[1:]
    path = folder / {b"g": "t.csv.gz", b"j": "t.json"}.get(kind, "t.csv")
    path.write_bytes(gzip.compress(body, 0) if kind == b"g" and not body.startswith(b"\x1f\x8b") else body)
    try:
        tree = Taxonomy.read(path)
    except ValueError as error:
        return str(error)
    assert tree.size == len(tree.rank) == len(tree.parent) == len(tree.lineages)
    for t in range(min(tree.size, 20)):
        names = tree.lineage_names(t)
        assert names[int(tree.rank[t])] == tree.name(t)
        if as_lineage(names) == names:  # a saved taxonomy may have names that no table gives
            tree.encode(names)
    assert len(tree.sha256) == 64
    return tree


def table_seeds() -> list[bytes]:
    csv = b"kingdom,phylum,class,order,family,genus,species,common_name\n"
    csv += b"Animalia,Chordata,Aves,,Turdidae,Turdus,merula,Blackbird\n"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.json"
        Taxonomy.from_lineages([("Animalia", "", "Aves", "", "", "Turdus", "merula")], ["Blackbird"]).save(path)
        saved = path.read_bytes()
    packed = gzip.compress(csv)
    return [
        b"c" + csv, b"c" + csv.replace(b"class", b"cls"), b"c\xef\xbb\xbf" + csv,
        b"c" + csv.replace(b"\n", b"\r\n"),
        b"c" + csv + b'"Ani""malia",,,,,,,\n', b"c" + csv + b"a,b\n", b"g" + csv, b"g" + packed, b"g" + packed[:-9],
        b"g" + packed[:12] + b"\xff" * 9 + packed[21:], b"j" + saved,
    ]  # fmt: skip


def mutate_table(data: bytes, most: int, draw: random.Random, mutate: Mutate) -> bytes:
    """Cells and rows taken out, doubled, swapped; a saved taxonomy as JSON."""
    kind, body = data[:1], data[1:]
    if kind == b"j":
        return kind + mutate_json(body, most - 1, draw, mutate)
    if draw.random() < 0.5:
        return kind + mutate(body, most - 1)
    mark = draw.choice((b"\n", b","))
    parts = body.split(mark)
    i, k = draw.randrange(len(parts)), draw.randrange(len(parts))
    parts[i : i + 1] = draw.choice(
        ([], [parts[i]] * 2, [parts[k]], [b'"' + parts[i]], [b"\0"], [b'"a\nb"'], [b"nan"])
    )
    return (kind + mark.join(parts))[:most]


# -- the manifest of a checkpoint -----------------------------------------------------------------------------


def read_checkpoint(data: bytes, folder: Path) -> object:
    """Look for the newest checkpoint of a run that has this manifest in one."""
    path = folder / "step-00000004"
    path.mkdir()
    for name, content in FILES.items():
        (path / name).write_bytes(content)
    (path / checkpoint.MANIFEST).write_bytes(data)
    found, problems = checkpoint.newest(folder)
    assert (found is None) == bool(problems)
    if found is not None:
        facts = checkpoint.facts_of(found)
        assert type(facts["step"]) is type(facts["world_size"]) is int
    return problems


FILES = {"random-0.pt": b"random", "mp_rank_00_model_states.pt": b"model"}


def sealed(content: dict[str, Any]) -> bytes:
    """A manifest whose own checksum is right."""
    content = {key: value for key, value in content.items() if key != "sha256"}
    return json.dumps(content | {"sha256": checkpoint._sha256_of_json(content)}).encode()


def checkpoint_seeds() -> list[bytes]:
    import hashlib

    files = {name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()}
    facts = {"step": 4, "world_size": 1, "samples": [[48, 0]], "order": 7, "skipped": 0, "skipped_in_a_row": 0}
    whole = {"facts": facts, "files": files}
    others = [
        whole | {"files": files | {"../../../etc/passwd": "0" * 64}},
        whole | {"files": files | {"/dev/zero": "0" * 64}},
        whole | {"files": {}}, whole | {"facts": {}}, whole | {"facts": facts | {"world_size": 0}},
    ]  # fmt: skip
    return [sealed(one) for one in (whole, *others)] + [json.dumps(whole).encode(), b"[" * 9000, b"null", b""]


def mutate_checkpoint(data: bytes, most: int, draw: random.Random, mutate: Mutate) -> bytes:
    """Changed as JSON, and mostly sealed anew."""
    changed = mutate_json(data, most, draw, mutate)
    try:
        content = json.loads(changed)
        if isinstance(content, dict) and draw.random() < 0.8:
            changed = sealed(content)
    except (ValueError, RecursionError):
        pass
    return changed[:most]


TARGETS = {
    "tar": Target(read_tar, tar_seeds, mutate_tar),
    "index": Target(read_kept, kept_seeds, mutate_json),
    "caption": Target(read_caption, caption_seeds, mutate_caption),
    "table": Target(read_table, table_seeds, mutate_table),
    "checkpoint": Target(read_checkpoint, checkpoint_seeds, mutate_checkpoint),
}
