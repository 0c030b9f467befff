"""The attempts, by mechanism: what a hostile shard, table, configuration, checkpoint or model folder may hold.

Each payload, if anything ran it, would leave a file; the sandbox also sees what it starts, connects to and writes.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import struct
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from faults.specimens import END, FOREIGN, JPEG, TAG, bomb_chunk, chunk, frame, header, member, pax, png, sample
from PIL import Image
from small_run import ARCHITECTURES

from bioclip_hc.data.checksums import read_sums
from bioclip_hc.data.decode import decode_image
from bioclip_hc.data.index import index_file, shard_index
from bioclip_hc.data.loader import evaluation_batches
from bioclip_hc.data.names import read_synonyms
from bioclip_hc.data.shards import ShardSet
from bioclip_hc.data.sources import expand_shards
from bioclip_hc.data.split import write_split
from bioclip_hc.data.survey import survey
from bioclip_hc.data.text import TextForm
from bioclip_hc.data.verify import verify
from bioclip_hc.evaluation.contact_sheet import page, thumbnails
from bioclip_hc.model import create_model, get_tokenizer, load
from bioclip_hc.predictor import read_taxonomy
from bioclip_hc.taxonomy import Taxonomy
from security.sandbox import CANARY

import checkpoint
from config import read_config
from durable import sha256
from fetch import bring

MIB = 1 << 20


class Attempt(NamedTuple):
    """One input."""

    mechanism: str
    name: str
    act: Callable[[Path], Any]
    bomb: str = ""
    """Of one that is to fill the memory: what it would unpack to."""
    make: Callable[[], bytes] | None = None
    """Its bytes."""


class Payload:
    """Unpickled, it runs a command."""

    def __init__(self, how: str) -> None:
        self.how = how

    def __reduce__(self) -> tuple[Any, ...]:
        if self.how == "eval":
            return eval, (f"open({CANARY!r}, 'w').close()",)
        if self.how == "exec":
            return exec, (f"open({CANARY!r}, 'w').close()",)
        return os.system, (f"touch {CANARY}",)


PICKLE = pickle.dumps(Payload("system"), 2)
COMMAND = f"touch {CANARY}"


def numpy_objects() -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([Payload("system")], dtype=object), allow_pickle=True)
    return file.getvalue()


def torch_file(content: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def transform(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image.resize((8, 8)))).permute(2, 0, 1).float()


def use(*paths: Path) -> None:
    """All that is done with shards: index, decode, verify, survey with its page, split."""
    shards = ShardSet(list(paths))
    for indices, _ in evaluation_batches(shards, transform):
        assert len(indices)
    taxonomy = shards.taxonomy()
    taxonomy.save(Path("taxonomy.json"))
    found = survey(shards, len(shards))
    Path("page.html").write_text(page(found, thumbnails(shards, found.headers, 8), str(paths[0])), encoding="utf-8")
    verify(shards.paths)
    if len(shards) > 1:
        write_split(shards, np.arange(len(shards)) % 2 == 0, Path("split"))


def of_shard(blocks: bytes, whole: bytes | None = None) -> Callable[[Path], None]:
    """Use a shard of these members and two good samples."""

    def act(folder: Path) -> None:
        path = folder / "s.tar"
        path.write_bytes(sample("good") + blocks + sample("also") + END if whole is None else whole)
        use(path)

    return act


def of_file(name: str, data: bytes | str, read: Callable[[Path], Any]) -> Callable[[Path], None]:
    """Read a file of these bytes."""

    def act(folder: Path) -> None:
        path = folder / name
        path.write_bytes(data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data)
        read(path)

    return act


# -- shards -------------------------------------------------------------------------------------------------

DECODED_BY_OTHERS = (
    "pyd",
    "pickle",
    "pkl",
    "p",
    "pth",
    "pt",
    "ckpt",
    "joblib",
    "ten",
    "tb",
    "cbor",
    "mp",
    "msg",
    "mp4",
    "ogv",
    "flac",
    "pyc",
    "py",
    "so",
    "sh",
    "exe",
    "dill",
    "cloudpickle",
    "h5",
    "hdf5",
    "onnx",
    "gguf",
    "cls",
    "index",
    "inx",
)


def pickles_in_shards() -> Iterator[Attempt]:
    where = "code in members of a shard, as webdataset's decoder would run it"
    for ending in DECODED_BY_OTHERS:
        content = b"#!/bin/sh\n" + COMMAND.encode() if ending in ("sh", "py", "exe") else PICKLE
        yield Attempt(where, f".{ending}", of_shard(sample("x") + member(f"x.{ending}", content)))
    yield Attempt(where, ".npy of objects", of_shard(sample("x") + member("x.npy", numpy_objects())))
    yield Attempt(where, ".pkl.gz", of_shard(sample("x") + member("x.pkl.gz", gzip.compress(PICKLE))))
    yield Attempt(where, "a torch file", of_shard(sample("x") + member("x.pth", torch_file(Payload("system")))))
    yield Attempt(where, "a pickle named jpg", of_shard(sample("x", PICKLE)))
    yield Attempt(where, "a pickle named png", of_shard(sample("x", PICKLE, "png")))
    yield Attempt(where, "a pickle as caption", of_shard(sample("x", tag=PICKLE)))
    yield Attempt(
        where, "a pickle of protocol 0 as caption", of_shard(sample("x", tag=pickle.dumps(Payload("eval"), 0)))
    )
    tagged = f'!!python/object/apply:os.system ["{COMMAND}"]'
    yield Attempt(where, "YAML that calls", of_shard(sample("x") + member("x.yaml", tagged.encode())))
    known = json.dumps({"py/reduce": [{"py/function": "os.system"}, [COMMAND]]}).encode()
    yield Attempt(where, "JSON of jsonpickle", of_shard(sample("x") + member("x.json", known)))
    yield Attempt(where, "a script's first line in a caption", of_shard(sample("x", tag=f"#!/bin/sh\n{COMMAND}")))
    yield Attempt(where, "a shard that is a pickle", of_shard(b"", PICKLE))
    yield Attempt(where, "a shard that is a torch file", of_shard(b"", torch_file(Payload("system"))))


PATHS = (
    "../up",
    "../../../../../../tmp/up",
    "/tmp/absolute",
    "//tmp/absolute",
    "a/../../up",
    "a/..",
    "./../up",
    "..\\up",
    "C:\\Windows\\up",
    "\\\\host\\share\\up",
    "C:up",
    "~/up",
    "$HOME/up",
    "%2e%2e/up",
    "．．／up",
    "a\0b",
    "-rf",
    "--help",
    "a/" * 300 + "deep",
    "x" * 5000,
    "CON",
    "up ",
    " up",
    "a\nb",
    "a\x1b[2Jb",
    "`touch up`",
    "$(touch up)",
    "|touch up",
    "; touch up",
    "{}",
    "%s%s%n",
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "../s.tar.index.json",
)


def paths_in_shards() -> Iterator[Attempt]:
    where = "names of members that lead elsewhere, or mean something to a shell or a page"
    for path in PATHS:
        blocks = pax({"path": f"{path}.jpg"}) + member("x", JPEG) + pax({"path": f"{path}.taxonTag.txt"})
        yield Attempt(where, repr(path[:40]), of_shard(blocks + member("y", TAG.encode())))
    overlong = b"\xc0\xae\xc0\xae/up"
    pair = member(overlong + b".jpg", JPEG) + member(overlong + b".taxonTag.txt", TAG.encode())
    yield Attempt(where, "overlong UTF-8 for ..", of_shard(pair))
    long_name = member("././@LongLink", b"../" * 90 + b"up.jpg\0", kind=tarfile.GNUTYPE_LONGNAME)
    yield Attempt(where, "GNU's long name with ..", of_shard(long_name + member("x", JPEG)))
    yield Attempt(where, "a global pax path", of_shard(pax({"path": "../up.jpg"}, tarfile.XGLTYPE) + sample("x")))
    yield Attempt(where, "ustar's prefix of ..", of_shard(member("up.jpg", JPEG, prefix=b"../..")))


def links_in_shards() -> Iterator[Attempt]:
    where = "members that are no files"
    for name, kind, link in (
        ("a symbolic link to a file", tarfile.SYMTYPE, "/etc/passwd"),
        ("a symbolic link to a folder", tarfile.SYMTYPE, "/tmp"),
        ("a symbolic link upwards", tarfile.SYMTYPE, "../.."),
        ("a hard link to a file", tarfile.LNKTYPE, "/etc/passwd"),
        ("a hard link to another member", tarfile.LNKTYPE, "good.jpg"),
        ("a character device", tarfile.CHRTYPE, ""),
        ("a block device", tarfile.BLKTYPE, ""),
        ("a pipe", tarfile.FIFOTYPE, ""),
        ("GNU's dump folder", b"D", ""),
        ("GNU's renaming", b"N", ""),
        ("the rest of another volume", b"M", ""),
    ):
        blocks = header("x.jpg", kind=kind, link=link) + member("x.taxonTag.txt", TAG.encode())
        yield Attempt(where, name, of_shard(blocks + member("x.jpg/y.jpg", JPEG)))


def sizes_in_shards() -> Iterator[Attempt]:
    where = "headers of a tar that claim what is not there"
    for name, field in (
        ("8 GiB", b"77777777777\0"),
        ("2 to the 95th", b"\x80" + b"\xff" * 11),
        ("minus one", b"\xff" * 12),
        ("minus 512 in octal", b"-0000001000\0"),
    ):
        yield Attempt(where, f"a picture of {name}", of_shard(header("x.jpg", size_field=field) + sample("y")))
        for kind, what in ((tarfile.XHDTYPE, "a pax header"), (tarfile.GNUTYPE_LONGNAME, "a long name")):
            blocks = header("x", kind=kind, size_field=field) + sample("y")
            yield Attempt(where, f"{what} of {name}", of_shard(blocks))
    sparse = pax({"GNU.sparse.map": "0,1," * 100_000 + "0,1", "GNU.sparse.size": "1" + "0" * 18})
    yield Attempt(where, "a sparse map of 100,000 entries", of_shard(sparse + sample("x")))
    yield Attempt(where, "5,000 empty long names", of_shard(header("././@LongLink", 0, b"L") * 5000 + sample("x")))
    yield Attempt(where, "2,000 global pax headers", of_shard(pax({"comment": "x"}, tarfile.XGLTYPE) * 2000))
    yield Attempt(where, "100,000 times the word ustar", of_shard(b"ustar" * 100_000 + bytes(-500_000 % 512)))
    yield Attempt(
        where, "pax records of wrong lengths", of_shard(member("x", b"99999999 path=x\n", kind=b"x") + sample("y"))
    )


# -- names of shards ----------------------------------------------------------------------------------------

SPECS = (
    f"pipe:{COMMAND}",
    f"PIPE:{COMMAND}",
    f"Pipe:{COMMAND}; cat s.tar",
    f"pipe://{COMMAND}",
    f" pipe:{COMMAND}",
    f"|{COMMAND}",
    f"!{COMMAND}",
    f"$({COMMAND})",
    f"`{COMMAND}`",
    f"; {COMMAND}",
    f"{{pipe:{COMMAND},s.tar}}",
    "file:///etc/passwd",
    "ftp://localhost/s.tar",
    "sftp://localhost/s.tar",
    "ssh://localhost/s.tar",
    "gopher://localhost/",
    "data:application/x-tar,x",
    "memory://s.tar",
    "local://s.tar",
    "zip://s.tar::file:///etc/passwd",
    "simplecache::file:///etc/passwd",
    "github://a:b@main/s.tar",
    "git://localhost/s.tar",
    "smb://localhost/s.tar",
    "hdfs://localhost/s.tar",
    "arrow_hdfs://x/s.tar",
    "jlab://x/s.tar",
    "reference://x",
    "dir::file:///",
    "webhdfs://x/s.tar",
    "tar://x::pipe:" + COMMAND,
    "javascript:alert(1)",
    "http://[::1",
    "http:///s.tar",
    "https://",
    "s3://",
    "hf://x",
    "hf://datasets/a/b/s.tar",
    "hf://datasets/a/b@main/s.tar",
    "hf://datasets/../../x@abcdef0/s.tar",
    "x{000000..999999999}.tar",
    "x{1..1000}{1..1000}{1..1000}{1..1000}.tar",
    "x" + "{a,b}" * 60 + ".tar",
    "{" * 5000,
    "x{0..9..0}.tar",
    "x{1..1000001}.tar",
    "/dev/zero",
    "/dev/stdin",
    "/proc/self/mem",
    "~root/s.tar",
    "$HOME/s.tar",
    "-o ProxyCommand=x",
    "--checkpoint-action=exec=sh",
    "",
    "\0",
    "a\0b.tar",
    "http://localhost/a\r\nHost: b/s.tar",
)


def names_of_shards() -> Iterator[Attempt]:
    where = "names of shards: pipes, odd schemes, shell's signs, ranges without end"
    for spec in SPECS:
        yield Attempt(where, repr(spec[:48]), lambda folder, spec=spec: ShardSet(spec))
        if spec.startswith(("pipe", "PIPE", "file", "|")):
            yield Attempt(
                where, f"in a list: {spec[:40]!r}", lambda folder, spec=spec: expand_shards(["good.tar", spec])
            )


# -- what lies beside shards --------------------------------------------------------------------------------


def kept_indexes() -> Iterator[Attempt]:
    where = "forged files beside a shard: its index, SHA256SUMS"

    def forged(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
        def act(folder: Path) -> None:
            path = folder / "s.tar"
            path.write_bytes(sample("a") + sample("b") + END)
            shard_index(path)
            content = json.loads(index_file(path).read_bytes())
            content = change(content) or content
            index_file(path).write_text(content if isinstance(content, str) else json.dumps(content))
            use(path)

        return act

    changes: dict[str, Callable[[dict[str, Any]], Any]] = {
        "an offset below zero": lambda c: c["offset"].__setitem__(0, -1),
        "an offset beyond the end": lambda c: c["offset"].__setitem__(0, 1 << 60),
        "an offset of 10 to the 400th": lambda c: c["offset"].__setitem__(0, 10**400),
        "a size of 2 to the 62nd": lambda c: c["size"].__setitem__(0, 1 << 62),
        "a label that is not there": lambda c: c["label"].__setitem__(0, 99),
        "keys that are no text": lambda c: c["keys"].__setitem__(0, {"a": 1}),
        "a key that leads out": lambda c: c["keys"].__setitem__(0, "../../up"),
        "labels of markup": lambda c: c["labels"][0].__setitem__(1, "<script>alert(1)</script>"),
        "fields that are none": lambda c: c.__setitem__("__class__", "os.system"),
        "infinity": lambda c: c.__setitem__("lost", float("inf")),
        "100,000 brackets": lambda c: "[" * 100_000,
        "a number of 5,000 digits": lambda c: json.dumps(c).replace("1536", "9" * 5000, 1),
        "half a letter": lambda c: c["labels"][0].__setitem__(1, "\ud800"),
    }
    for name, change in changes.items():
        yield Attempt(where, f"index: {name}", forged(change))

    def linked(folder: Path) -> None:
        outside = folder.parent / f"{folder.name}.target"
        path = folder / "s.tar"
        path.write_bytes(sample("a") + END)
        for name in (f"s.tar.index.json.{os.getpid()}.tmp", "s.tar.index.json"):
            (folder / name).symlink_to(outside)
        shard_index(path)

    yield Attempt(where, "index: a link that leads out, in its place", linked)
    line = "0" * 64 + "  "
    for name, text in (
        ("a name that leads out", f"{line}../../../etc/passwd\n"),
        ("an absolute name", f"{line}/etc/passwd\n"),
        ("a pipe", f"{line}pipe:{COMMAND}\n"),
        ("a command", f"{line}$({COMMAND})\n"),
        ("NULs", line + "\0\n"),
        ("a line of 16 MiB", line + "x" * (16 << 20)),
        ("pickle", PICKLE.decode("latin-1")),
    ):

        def summed(folder: Path, text: str = text) -> None:
            (folder / "s.tar").write_bytes(sample("a") + END)
            (folder / "SHA256SUMS").write_text(text)
            verify([folder / "s.tar"])
            read_sums(folder)

        yield Attempt(where, f"SHA256SUMS: {name}", summed)


# -- taxonomies ---------------------------------------------------------------------------------------------

HEAD = "kingdom,phylum,class,order,family,genus,species\n"


def tables() -> Iterator[Attempt]:
    where = "tables of taxa and synonyms"

    def read(path: Path) -> None:
        try:
            tree = Taxonomy.read(path)
        except ValueError:
            read_synonyms(path)
            raise
        tree.save(Path("again.json"))
        assert len(tree.sha256) == 64

    for name, text in {
        "a formula": HEAD + "\"=cmd|' /C calc'!A0\",,,,,,\n",
        "a command": HEAD + f"$({COMMAND}),`{COMMAND}`,|{COMMAND},,,,\n",
        "a template": HEAD + "{{7*7}},${7*7},%s%n,{0.__class__},,,\n",
        "a field of 200,000 letters": HEAD + "x" * 200_000 + ",,,,,,\n",
        "a line of 8 MiB": HEAD + "x," * (4 << 20),
        "NULs": HEAD + "\0,\0,,,,,\n",
        "a quote that never ends": HEAD + '"' + "x\n" * 100_000,
        "100,000 columns": ",".join(f"c{i}" for i in range(100_000)) + ",kingdom\n",
        "markup": HEAD + "<script>alert(1)</script>,,,,,,\n",
        "a pipe for a name": HEAD + f"pipe:{COMMAND},,,,,,\n",
        "YAML that calls": f'!!python/object/apply:os.system ["{COMMAND}"]',
    }.items():
        yield Attempt(where, f"CSV: {name}", of_file("t.csv", text, read))
    yield Attempt(where, "CSV: a pickle", of_file("t.csv", PICKLE, read))
    yield Attempt(where, "CSV: zstd", of_file("t.csv", b"\x28\xb5\x2f\xfd" + bytes(99), read))
    for name, spec in (
        ("a pipe", f"pipe:{COMMAND}"),
        ("a URL", "http://localhost/t.csv"),
        ("a device", "/dev/zero"),
    ):
        yield Attempt(where, f"{name} in place of a file", lambda folder, spec=spec: Taxonomy.read(spec))
    whole = {
        "format": 1,
        "ranks": ["kingdom", "phylum", "class", "order", "family", "genus", "species"],
        "name": ["a", "b"],
        "rank": [0, 1],
        "parent": [-1, 0],
        "extra": {},
    }
    for name, change in {
        "a parent below itself": {"parent": [1, 0]},
        "a parent that is not there": {"parent": [-1, 10**30]},
        "ranks of nothing": {"rank": [float("nan"), 1]},
        "names of markup": {"name": ["<script>", "b"]},
        "names that are no text": {"name": [{"__reduce__": 1}, "b"]},
        "half a letter": {"name": ["\ud800", "b"]},
        "__class__": {"__class__": "os.system"},
        "ten dimensions": {"rank": [[[[[[[[[[0]]]]]]]]]]},
    }.items():
        yield Attempt(where, f"JSON: {name}", of_file("t.json", json.dumps(whole | change), read))
    yield Attempt(where, "JSON: 100,000 brackets", of_file("t.json", "[" * 100_000, read))
    yield Attempt(
        where, "JSON: a number of 5,000 digits", of_file("t.json", '{"format": ' + "9" * 5000 + "}", read)
    )
    yield Attempt(where, "JSON: a pickle", of_file("t.json", PICKLE, read))


# -- pictures -----------------------------------------------------------------------------------------------

DELEGATES = {
    "MVG that reads a file": b"push graphic-context\nimage over 0,0 0,0 'label:@/etc/passwd'\npop graphic-context",
    "MSL that writes a file": b'<image><read filename="/etc/passwd"/><write filename="CANARY"/></image>',
    "SVG with an entity": b'<!DOCTYPE svg [<!ENTITY x SYSTEM "file:///etc/passwd">]><svg>&x;</svg>',
    "SVG that loads": b'<svg xmlns:xlink="x"><image xlink:href="http://localhost/x"/></svg>',
    "SVG with a script": b"<svg onload=alert(1)><script>alert(1)</script></svg>",
    "EPS that runs": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%touch CANARY) (w) file\n",
    "EPS in a DOS header": b"\xc5\xd0\xd3\xc6"
    + struct.pack("<II", 30, 60)
    + bytes(20)
    + b"%!PS (%pipe%touch CANARY) (w) file",
    "PDF that opens": b"%PDF-1.4\n1 0 obj<</OpenAction<</S/Launch/F(touch CANARY)>>>>endobj",
    "PNG with a pickle in a text": png(before=chunk(b"tEXt", b"pickle\0" + PICKLE)),
    "JPEG with PHP in a comment": JPEG[:2] + b"\xff\xfe\0\x20<?php system('touch CANARY'); ?>" + JPEG[2:],
    "JPEG that is a ZIP too": JPEG
    + (lambda f: (zipfile.ZipFile(f, "w").writestr("../up", "x"), f.getvalue())[1])(io.BytesIO()),
    "a text that names a file": b"@/etc/passwd",
    "a URL": b"url:http://localhost/x",
    "https:| of ImageMagick": b"push graphic-context\nfill 'url(https://localhost/x\"|touch \"CANARY)'\n",
    "XCF": b"gimp xcf file\0" + bytes(99),
    "PSD": b"8BPS\0\1" + bytes(99),
    "FITS": b"SIMPLE  =" + bytes(99),
    "WMF": b"\xd7\xcd\xc6\x9a" + bytes(99),
    "XPM": b"/* XPM */",
    "Photo CD": bytes(2048) + b"PCD_IPI" + bytes(99),
}


def pictures() -> Iterator[Attempt]:
    where = "files of programs that pictures are handed to, named jpg"
    for name, data in (DELEGATES | FOREIGN).items():
        yield Attempt(where, name, of_shard(sample("x", data)))


def wide_png(width: int, height: int, colour: int, depth: int = 8) -> bytes:
    """A PNG of one colour, packed row by row."""
    row = b"\0" + bytes(width * {0: 1, 2: 3, 6: 4}[colour] * depth // 8)
    squeezer = zlib.compressobj(1)
    data = b"".join(squeezer.compress(row) for _ in range(height)) + squeezer.flush()
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
        + chunk(b"IDAT", data)
        + chunk(b"IEND", b"")
    )


def bombs() -> Iterator[Attempt]:
    where = "bombs: small files that unpack to much"

    def made(name: str, make: Callable[[], bytes], unpacked: str) -> Attempt:
        def act(folder: Path) -> None:
            decode_image(_kept(name, make))

        return Attempt(where, name, act, unpacked, make)

    yield made("PNG of 30,000 x 30,000", lambda: wide_png(30_000, 30_000, 2), "2.7 GB")
    yield made("PNG of 100,000 x 100,000, no data", lambda: png(100_000, 100_000), "30 GB")
    yield made("JPEG of 65,500 x 65,500", lambda: frame(size=(65_500, 65_500)), "12.9 GB")
    yield made(
        "PNG of 1 x 170,000,000",
        lambda: png(1, 170_000_000, colour=0),
        "a strip",
    )
    yield made("PNG text of 256 MiB", lambda: bomb_chunk(b"zTXt"), "256 MiB")
    yield made("PNG international text of 256 MiB", lambda: bomb_chunk(b"iTXt"), "256 MiB")
    yield made("PNG profile of 256 MiB", lambda: bomb_chunk(b"iCCP"), "256 MiB")
    yield made(
        "500 PNG texts of 1 MiB",
        lambda: png(before=500 * chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(MIB - 1)))),
        "500 MiB",
    )
    yield made("WebP of 16,383 x 16,383", lambda: _webp_header(16_383, 16_383), "1.1 GB")
    yield made("the largest grey PNG that is let in", lambda: wide_png(13_000, 13_000, 0), "169 MB")
    yield made("the largest RGB PNG that is let in", lambda: wide_png(13_000, 13_000, 2), "507 MB")
    yield made("the largest PNG with alpha that is let in", lambda: wide_png(13_000, 13_000, 6), "676 MB")
    yield made("the largest 16-bit PNG that is let in", lambda: wide_png(13_000, 13_000, 0, 16), "338 MB")

    def table(name: str, data: Callable[[], bytes], unpacked: str) -> Attempt:
        def act(folder: Path) -> None:
            (folder / "t.csv.gz").write_bytes(_kept(name, data))
            Taxonomy.read(folder / "t.csv.gz")

        return Attempt(where, name, act, unpacked, data)

    yield table(
        "table of taxa: 1 GiB of zeros in a .csv.gz", lambda: gzip.compress(HEAD.encode()) + _zeros(b"\0"), "1 GiB"
    )
    yield table("table of taxa: one line of 1 GiB", lambda: gzip.compress(HEAD.encode()) + _zeros(b"x"), "1 GiB")
    yield table("table of taxa: a header of 1 GiB", lambda: _zeros(b","), "1 GiB")
    yield table("table of taxa: gzip in gzip", lambda: gzip.compress(_zeros(b"x")), "1 GiB")

    def tar(folder: Path) -> None:
        (folder / "s.tar").write_bytes(_kept(TAR, lambda: _zeros(b"\0")))
        use(folder / "s.tar")

    yield Attempt(where, TAR, tar, "1 GiB", lambda: _zeros(b"\0"))


TAR = "a shard that is gzip of 1 GiB"
_made: dict[str, bytes] = {}


def _kept(name: str, make: Callable[[], bytes]) -> bytes:
    """Made before the attempt's process is forked, so that its memory is not counted: see `prepare`."""
    if name not in _made:
        _made[name] = make()
    return _made[name]


def prepare(attempts: list[Attempt]) -> None:
    """Make the bombs."""
    for one in attempts:
        if one.make is not None:
            _kept(one.name, one.make)


def _zeros(letter: bytes, size: int = 1 << 30) -> bytes:
    """So many of a letter, packed."""
    if repr(letter) not in _made:
        squeezer = zlib.compressobj(9, wbits=31)
        part = letter * (4 * MIB)
        packed = b"".join(squeezer.compress(part) for _ in range(size // len(part))) + squeezer.flush()
        _made[repr(letter)] = packed
    return _made[repr(letter)]


def _webp_header(width: int, height: int) -> bytes:
    body = b"VP8L" + struct.pack("<I", 5) + b"\x2f" + struct.pack("<I", (width - 1) | (height - 1) << 14) + b"\0"
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


# -- configurations -----------------------------------------------------------------------------------------


def configurations() -> Iterator[Attempt]:
    where = "configurations and words of the command line"

    def configured(text: str | bytes, *words: str) -> Callable[[Path], None]:
        def read(path: Path) -> None:
            config = read_config(path, list(words))
            ShardSet(bring(config.data))
            Taxonomy.read(config.data.taxonomy)

        return of_file("run.toml", text, read)

    start = '[data]\ntrain = "s.tar"\n[run]\noutput = "out"\n'
    for name, text in {
        "a key twice": start + 'output = "other"\n',
        "a table twice": start + "[run]\n",
        "an unknown key": start + 'exec = "x"\n',
        "__class__": start + "[data.__class__]\nx = 1\n",
        "dotted __init__": start + "__init__.x = 1\n",
        "a number of 5,000 digits": start + "seed = " + "9" * 5000 + "\n",
        "infinity": start + "silence = inf\n",
        "not a number": start + "silence = nan\n",
        "10,000 nested lists": start + "x = " + "[" * 10_000,
        "10,000 nested tables": start + "[" + "a." * 10_000 + "a]\n",
        "a pipe": start.replace("s.tar", f"pipe:{COMMAND}"),
        "a pipe that allows itself": start.replace("s.tar", f"pipe:{COMMAND}").replace(
            "[run]", "allow_pipe = true\n[run]"
        ),
        "a pipe in capitals": start.replace("s.tar", f"PIPE:{COMMAND}"),
        "a pipe after a comma": start.replace("s.tar", f"s.tar, pipe:{COMMAND}"),
        "a pipe as taxonomy": start.replace("[run]", f'taxonomy = "pipe:{COMMAND}"\n[run]'),
        "a command in a string": start.replace("s.tar", f"$({COMMAND})"),
        "a variable": start.replace("s.tar", "${HOME}/s.tar"),
        "an include": "!include /etc/passwd\n" + start,
        "a tracker that is a module": start + 'trackers = ["os"]\n',
        "NULs": start + "x = \0\n",
        "half a letter": start + 'x = "\\ud800"\n',
        "a string of 16 MiB": start + f'x = "{"x" * (16 << 20)}"\n',
        "YAML that calls": f'!!python/object/apply:os.system ["{COMMAND}"]',
        "a date of nowhere": start + "seed = 9999-99-99\n",
        "augmentation that is code": start
        + f"[data.augmentation]\nscale = \"__import__('os').system('{COMMAND}')\"\n",
        "a template that reaches in": start.replace("[run]", 'template = "{0.__class__}"\n[run]'),
    }.items():
        yield Attempt(where, name, configured(text))
    yield Attempt(where, "a pickle", configured(PICKLE))
    yield Attempt(where, "UTF-16", configured(start.encode("utf-16")))
    code = f"__import__('os').system('{COMMAND}')"
    for words in (
        ("--data.train", f"pipe:{COMMAND}"),
        ("--data.train", code),
        ("--data.augmentation", code),
        ("--run.seed", code),
        ("--data.ranks", code),
        ("--run.trackers", "os"),
    ):
        yield Attempt(where, " ".join(words)[:48], configured(start, *words))
    tree = Taxonomy.from_lineages([("{0.__class__}", "", "", "", "", "", "b")])
    for template in ("{}{0.__class__.__init__.__globals__}", "{}%s%n", "{}${HOME}", "{{}}", "{}{self}"):
        yield Attempt(where, f"text {template!r}", lambda folder, t=template: TextForm(t).text(tree, 0))


# -- checkpoints --------------------------------------------------------------------------------------------


def checkpoints() -> Iterator[Attempt]:
    where = "checkpoints: manifests that name others' files, pickles that run"

    def seal(path: Path, change: dict[str, Any] | None = None, files: dict[str, str] | None = None) -> None:
        own = {p.name: sha256(p) for p in path.iterdir() if p.is_file() and p.name != checkpoint.MANIFEST}
        content = {"facts": {"step": 4, "world_size": 1}, "files": own | (files or {})} | (change or {})
        content["sha256"] = checkpoint._sha256_of_json(content)
        (path / checkpoint.MANIFEST).write_text(json.dumps(content))

    def forged(change: Callable[[Path], Any], load: bool = False) -> Callable[[Path], None]:
        def act(folder: Path) -> None:
            path = folder / "checkpoints" / "step-00000004"
            path.mkdir(parents=True)
            (path / "mp_rank_00_model_states.pt").write_bytes(torch_file({"module": {"w": torch.zeros(2)}}))
            (path / "random-0.pt").write_bytes(torch_file(checkpoint._random_state()))
            change(path)
            found, problems = checkpoint.newest(path.parent)
            if found is None:
                raise ValueError(problems)
            checkpoint.load(Engine(), found)

        return act

    class Engine:
        """As far as `load` needs DeepSpeed's: it loads as that does, with all that a pickle can do."""

        global_rank = 0

        def load_universal_checkpoint(self) -> bool:
            return False

        def load_checkpoint(self, folder: str, tag: str) -> None:
            for file in sorted((Path(folder) / tag).glob("*states.pt")):
                torch.load(file, weights_only=False)

    for name, entry in (
        ("a path that leads out", {"../../../etc/passwd": "0" * 64}),
        ("an absolute path", {"/etc/passwd": "0" * 64}),
        ("an endless device", {"/dev/zero": "0" * 64}),
        ("a folder", {"..": "0" * 64}),
        ("nothing", {"": "0" * 64}),
        ("NUL", {"\0": "0" * 64}),
        ("a number for a checksum", {"random-0.pt": 7}),
    ):
        yield Attempt(where, f"a file named {name}", forged(lambda path, entry=entry: seal(path, files=entry)))
    for name, change in (
        ("no facts", {"facts": {}}),
        ("facts that are a list", {"facts": [1]}),
        ("no files", {"files": {}}),
        ("minus one processes", {"facts": {"step": 4, "world_size": -1}}),
        ("a step of text", {"facts": {"step": "4; rm", "world_size": 1}}),
    ):
        yield Attempt(where, name, forged(lambda path, change=change: seal(path, change)))
    for name, text in (
        ("100,000 brackets", "[" * 100_000),
        ("null", "null"),
        ("a pickle", PICKLE.decode("latin-1")),
        ("a number of 5,000 digits", "9" * 5000),
    ):
        yield Attempt(
            where, f"a manifest of {name}", forged(lambda p, text=text: (p / "manifest.json").write_text(text))
        )

    def linked(target: str) -> Callable[[Path], None]:
        def change(path: Path) -> None:
            seal(path, files={"linked.pt": "0" * 64})
            (path / "linked.pt").symlink_to(target)

        return forged(change)

    for target in ("/etc/passwd", "/dev/zero", "../../../../../../etc", "linked.pt"):
        yield Attempt(where, f"a link to {target}", linked(target))

    def piped(path: Path) -> None:
        os.mkfifo(path / "pipe.pt")
        seal(path, files={"pipe.pt": "0" * 64})

    yield Attempt(where, "a pipe that nobody writes to", forged(piped))

    def added(name: str, data: bytes, sealed: bool) -> Callable[[Path], None]:
        def change(path: Path) -> None:
            if not sealed:
                seal(path)
            (path / name).write_bytes(data)
            if sealed:
                seal(path)

        return forged(change)

    optimizer = "zero_pp_rank_0_mp_rank_00_optim_states.pt"
    for how in ("system", "eval", "exec"):
        evil = torch_file({"a": Payload(how)})
        yield Attempt(where, f"a file too many, that runs {how}", added(optimizer, evil, sealed=False))
        for name in (optimizer, "mp_rank_00_model_states.pt", "random-0.pt"):
            yield Attempt(where, f"{name} that runs {how}, sealed anew", added(name, evil, sealed=True))
    for name, data in {
        "of the old form": _legacy(),
        "of protocol 4": _zipped(pickle.dumps(Payload("system"), 4)),
        "of protocol 0": _zipped(pickle.dumps(Payload("system"), 0)),
        "by INST": _zipped(b"(S'touch CANARY'\nios\nsystem\n."),
        "by copyreg": _zipped(b"\x80\x02ccopyreg\n__newobj__\n(cos\nsystem\nU\x0ctouch CANARYt\x81."),
        "by a long way round": _zipped(
            b"\x80\x02cbuiltins\ngetattr\ncos\nsystem\nU\x08__call__\x86R(U\x0ctouch CANARYtR."
        ),
        "hidden behind an end": _zipped(b"\x80\x02N." + PICKLE),
        "bare": PICKLE,
        "named by a stack": _zipped(b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x0ctouch CANARY\x85R."),
    }.items():
        yield Attempt(where, f"a pickle {name}, sealed anew", added(optimizer, data, sealed=True))


def _legacy() -> bytes:
    file = io.BytesIO()
    torch.save({"a": Payload("system")}, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def _zipped(data: bytes) -> bytes:
    """A file of torch.save with another pickle in it."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(torch_file({"a": 1}))) as whole, zipfile.ZipFile(file, "w") as other:
        for name in whole.namelist():
            other.writestr(name, data if name.endswith("data.pkl") else whole.read(name))
    return file.getvalue()


# -- model folders ------------------------------------------------------------------------------------------


def models() -> Iterator[Attempt]:
    where = "model folders and weights"
    base = ARCHITECTURES["tiny"]

    def folder_of(change: Callable[[dict[str, Any], Path], Any]) -> Callable[[Path], None]:
        def act(folder: Path) -> None:
            path = folder / "model"
            create_tiny(path)
            config = json.loads((path / "open_clip_config.json").read_text())
            change(config, path)
            (path / "open_clip_config.json").write_text(json.dumps(config))
            load(path)

        return act

    def set_in(part: str, **values: Any) -> Callable[[dict[str, Any], Path], None]:
        return lambda config, path: config["model_cfg"][part].update(values)

    for name, change in {
        "a text tower on the hub": set_in("text_cfg", hf_model_name="evil/model"),
        "a tokenizer on the hub": set_in("text_cfg", hf_tokenizer_name="evil/model"),
        "remote code in tokenizer's options": set_in(
            "text_cfg", hf_tokenizer_name="x", tokenizer_kwargs={"trust_remote_code": True}
        ),
        "a vocabulary elsewhere": set_in("text_cfg", tokenizer_kwargs={"bpe_path": "/etc/passwd"}),
        "an image tower on the hub": set_in("vision_cfg", timm_model_name="hf-hub:evil/model"),
        "an image tower in a folder": set_in("vision_cfg", timm_model_name="local-dir:/tmp/x"),
        "an image tower that is fetched": set_in(
            "vision_cfg", timm_model_name="vit_tiny_patch16_224", timm_model_pretrained=True
        ),
        "an option that is none": set_in("text_cfg", __class__="os.system"),
        "a width of text": set_in("vision_cfg", width=COMMAND),
        "a negative width": set_in("vision_cfg", width=-8),
        "an activation that is code": set_in("text_cfg", act_kwargs={"__import__": "os"}),
        "a norm that is code": set_in("text_cfg", norm_kwargs={"eps": COMMAND}),
        "no text tower": lambda config, path: config["model_cfg"].pop("text_cfg"),
        "a preprocessing of code": lambda config, path: config["preprocess_cfg"].update(interpolation=COMMAND),
    }.items():
        yield Attempt(where, f"config: {name}", folder_of(change))

    def mapped(config: dict[str, Any], path: Path) -> None:
        config["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = "x"
        (path / "tokenizer_config.json").write_text(json.dumps({"auto_map": {"AutoTokenizer": ["evil.T", None]}}))
        (path / "evil.py").write_text(f"import os; os.system({COMMAND!r})")

    yield Attempt(where, "config: code of a tokenizer beside it", folder_of(mapped))

    def replaced(name: str, data: bytes) -> Callable[[Path], None]:
        def change(config: dict[str, Any], path: Path) -> None:
            (path / name).write_bytes(data)

        return folder_of(change)

    def pickled(name: str, data: bytes) -> Callable[[Path], None]:
        def change(config: dict[str, Any], path: Path) -> None:
            (path / "open_clip_model.safetensors").unlink()
            (path / name).write_bytes(data)

        return folder_of(change)

    for name in ("open_clip_pytorch_model.bin", "open_clip_model.pt", "open_clip_model.pth", "pytorch_model.bin"):
        yield Attempt(where, f"a pickle named {name}", pickled(name, torch_file({"a": Payload("system")})))
    yield Attempt(where, "a bare pickle for weights", pickled("open_clip_pytorch_model.bin", PICKLE))
    yield Attempt(where, "a pickle named safetensors", replaced("open_clip_model.safetensors", PICKLE))
    for name, head in {
        "of 2 to the 63rd bytes": None,
        "that is no JSON": b"{",
        "100,000 brackets deep": b"[" * 100_000,
        "with offsets beyond the end": b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,99999999]}}',
        "with offsets that cross": b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}',
        "of an unknown type": b'{"a":{"dtype":"PY","shape":[2],"data_offsets":[0,8]}}',
        "of negative shape": b'{"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}',
        "of 2 to the 62nd numbers": b'{"a":{"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,8]}}',
        "of one name twice": b'{"a":%b,"a":%b}' % (2 * (b'{"dtype":"F32","shape":[2],"data_offsets":[0,8]}',)),
    }.items():
        data = struct.pack("<Q", 1 << 63) if head is None else struct.pack("<Q", len(head)) + head + bytes(8)
        for file in ("open_clip_model.safetensors", "hyperbolic.safetensors"):
            yield Attempt(where, f"a header of {file} {name}", replaced(file, data))
    for name, text in {
        "100,000 brackets": "[" * 100_000,
        "a list": "[]",
        "no number": '{"format": 1, "geometry": "lorentz", "curv": NaN}',
        "a pickle": PICKLE.decode("latin-1"),
    }.items():
        yield Attempt(where, f"hyperbolic.json of {name}", replaced("hyperbolic.json", text.encode()))

    def sidecar(**values: Any) -> Callable[[Path], None]:
        def change(config: dict[str, Any], path: Path) -> None:
            content = json.loads((path / "hyperbolic.json").read_text())
            (path / "hyperbolic.json").write_text(json.dumps(content | values))

        return folder_of(change)

    for name, values in {
        "a geometry that is code": {"geometry": "__import__('os')"},
        "a curvature of nothing": {"curv_start": float("nan")},
        "a negative curvature": {"curv_start": -1},
        "a scale without end": {"logit_scale": float("inf")},
        "a curvature of text": {"curv_start": COMMAND},
        "facts that are none": {"metadata": [1]},
    }.items():
        yield Attempt(where, f"hyperbolic.json with {name}", sidecar(**values))

    def pretrained(data: bytes) -> Callable[[Path], None]:
        def act(folder: Path) -> None:
            (folder / "tiny.json").write_text(json.dumps(base))
            (folder / "weights.pt").write_bytes(data)
            create_model(folder / "tiny.json", str(folder / "weights.pt"))

        return act

    yield Attempt(where, "model.pretrained: a pickle", pretrained(torch_file({"a": Payload("system")})))
    yield Attempt(where, "model.pretrained: a bare pickle", pretrained(PICKLE))
    yield Attempt(where, "model.pretrained: of the old form", pretrained(_legacy()))
    for name in (
        "hf-hub:evil/model",
        "local-dir:/etc",
        "http://localhost/x",
        f"pipe:{COMMAND}",
        "../../etc/passwd",
        "a.json",
    ):
        yield Attempt(where, f"model.architecture = {name!r}", lambda folder, name=name: create_model(name))
        yield Attempt(where, f"the tokenizer of {name!r}", lambda folder, name=name: get_tokenizer(name))

    def named_file(act: Callable[[Path], Any], **text: Any) -> Callable[[Path], None]:
        def tried(folder: Path) -> None:
            with_remote_code()
            (folder / "a.json").write_text(json.dumps(base | {"text_cfg": base["text_cfg"] | text}))
            act(folder / "a.json")

        return tried

    for name, text in {
        "a text tower on the hub": {"hf_model_name": "evil/model"},
        "a tokenizer on the hub": {"hf_tokenizer_name": "evil/model"},
        "remote code in tokenizer's options": {
            "hf_tokenizer_name": ".", "tokenizer_kwargs": {"trust_remote_code": True}
        },
        "a vocabulary elsewhere": {"tokenizer_kwargs": {"bpe_path": "/etc/passwd"}},
    }.items():  # fmt: skip
        for what, act in {"model.architecture": create_model, "the tokenizer": get_tokenizer}.items():
            yield Attempt(where, f"{what} of a file with {name}", named_file(act, **text))

    def with_taxonomy(text: str) -> Callable[[Path], None]:
        def change(folder: Path) -> None:
            create_tiny(folder / "model")
            (folder / "model" / "taxonomy.json").write_text(text)
            read_taxonomy(folder / "model", None)

        return change

    yield Attempt(where, "taxonomy.json of 100,000 brackets", with_taxonomy("[" * 100_000))
    yield Attempt(where, "taxonomy.json that is a pickle", with_taxonomy(PICKLE.decode("latin-1")))


def with_remote_code() -> None:
    """A stand-in for transformers that runs what it is trusted with, or fetches."""

    def from_pretrained(name: Any, trust_remote_code: bool = False, **_: Any) -> Any:
        if trust_remote_code:
            os.system(COMMAND)
        raise SystemError(f"{name} would have been loaded")

    sys.modules["transformers"] = SimpleNamespace(  # type: ignore[assignment]
        AutoTokenizer=SimpleNamespace(from_pretrained=from_pretrained)
    )


_tiny: dict[str, bytes] = {}


def create_tiny(path: Path) -> None:
    """A small model's folder; made once."""
    if not _tiny:
        place = path.parent / "made"
        place.mkdir()
        (place / "tiny.json").write_text(json.dumps(ARCHITECTURES["tiny"]))
        made = create_model(place / "tiny.json").save_pretrained(place / "model")
        _tiny.update({file.name: file.read_bytes() for file in made.iterdir()})
    path.mkdir()
    for name, data in _tiny.items():
        (path / name).write_bytes(data)


# -- pages --------------------------------------------------------------------------------------------------

MARKUP = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "</style><script>alert(1)</script>",
    "</title><script>",
    "javascript:alert(1)",
    "' onmouseover='alert(1)",
    "<!--",
    "]]>",
    "&lt;script&gt;",
    "\u202e<script>",
    "<iframe src=http://localhost>",
    "<link rel=stylesheet href=http://localhost>",
    "<base href=http://localhost>",
    "@import url(http://localhost)",
    "<meta http-equiv=refresh content=0>",
)


def pages() -> Iterator[Attempt]:
    where = "markup in names, through the pages that show them"
    for text in MARKUP:

        def act(folder: Path, text: str = text) -> None:
            path = folder / "s.tar"
            tag = TAG.replace("merula", text)
            common = member("x.com.txt", f"a photo of {text}.".encode())
            path.write_bytes(sample("good") + sample("x", tag=tag) + common + sample(text.replace("/", ":")) + END)
            use(path)
            need_inert((folder / "page.html").read_text(encoding="utf-8"))

        yield Attempt(where, repr(text[:40]), act)


def need_inert(html: str) -> None:
    """Raises unless a page has no script, no handler of events, and no address but data: ones."""
    from html.parser import HTMLParser

    class Look(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            if tag in ("script", "iframe", "link", "base", "object", "embed"):
                raise RuntimeError(f"<{tag}> in the page")
            for name, value in attrs:
                if name.startswith("on") or (
                    name in ("src", "href", "xlink:href") and not (value or "").startswith(("data:", "#"))
                ):
                    raise RuntimeError(f"{name}={value} in the page")

    Look().feed(html)


def all_of_them() -> list[Attempt]:
    groups = (
        pickles_in_shards,
        paths_in_shards,
        links_in_shards,
        sizes_in_shards,
        names_of_shards,
        kept_indexes,
        tables,
        pictures,
        bombs,
        configurations,
        checkpoints,
        models,
        pages,
    )
    return [one for group in groups for one in group()]
