"""Kinds of odd and damaged samples, each a mechanism of its own, and what must become of them.

All show one picture, so that what is used can be held against it.
"""

from __future__ import annotations

import bz2
import functools
import gzip
import io
import pickle
import re
import struct
import tarfile
import unicodedata
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

TAG = (
    "a photo of kingdom Animalia phylum Chordata class Aves order Passeriformes family Turdidae genus Turdus "
    "species merula."
)
PIXELS = np.kron(np.random.default_rng(1).integers(0, 256, (2, 3, 3)), np.ones((16, 16, 1))).astype(np.uint8)
PICTURE = Image.fromarray(PIXELS)  # 48 x 32 in blocks, which survive JPEG
GREY = PICTURE.convert("L")


@dataclass(frozen=True)
class Specimen:
    """One kind of sample."""

    name: str
    where: str
    """What is odd: the "picture", the "caption" or the "archive"."""
    make: Callable[[], bytes]
    """The members' bytes in the tar."""
    used: tuple[str, ...] = ()
    """Keys that must be used."""
    bad: tuple[tuple[str, str], ...] = ()
    """(key, pattern of the reason) that must be told at the start; the key is "" for a place of the shard."""
    unread: tuple[tuple[str, str], ...] = ()
    """The same for what must be quarantined when it is decoded."""
    alike: bool = True
    """Whether what is used must look like the picture."""
    around: Callable[[bytes, bytes, bytes], bytes] = field(default=lambda before, own, after: before + own + after)
    """The whole shard, of good samples, the odd ones, good ones and the end."""
    lost: str = ""
    """Good samples that are lost with it: "" none, "after", "all"."""
    heavy: bool = False
    """Not for a training run on a small disk."""


# -- tar ----------------------------------------------------------------------------------------------------


def header(name: str | bytes, size: int = 0, kind: bytes = tarfile.REGTYPE, link: str = "",
           magic: bytes = b"ustar\x0000", size_field: bytes = b"", prefix: bytes = b"") -> bytes:  # fmt: skip
    """A tar header, as POSIX.1-1988 lays it out; what is forged in it has a right checksum."""
    name = name.encode() if isinstance(name, str) else name
    block = struct.pack(
        "100s8s8s8s12s12s8s1s100s8s32s32s8s8s155s12s",
        name, b"0000644", b"0000000", b"0000000", size_field or b"%011o" % size, b"00000000000", b" " * 8, kind,
        link.encode(), magic, b"", b"", b"0000000", b"0000000", prefix, b"",
    )  # fmt: skip
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % tarfile.BLOCKSIZE)


def member(name: str | bytes, data: bytes = b"", **forged: object) -> bytes:
    """A header and its data."""
    return header(name, **({"size": len(data)} | forged)) + padded(data)


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


JPEG = encoded(PICTURE, "JPEG", quality=95, subsampling=0)
PNG = encoded(PICTURE, "PNG")
END = bytes(2 * tarfile.BLOCKSIZE)


def sample(key: str, image: bytes = JPEG, extension: str = "jpg", tag: str | bytes = TAG) -> bytes:
    """Both members of a sample."""
    caption = tag.encode() if isinstance(tag, str) else tag
    return member(f"{key}.{extension}", image) + member(f"{key}.taxonTag.txt", caption)


def pax(records: dict[str, str], kind: bytes = tarfile.XHDTYPE) -> bytes:
    """A pax header of these records."""
    lines = b""
    for key, value in records.items():
        rest = f" {key}={value}\n".encode()
        size = len(rest)
        while len(rest) + len(str(size)) != size:
            size = len(rest) + len(str(size))
        lines += str(size).encode() + rest
    return member("PaxHeaders/x", lines, kind=kind)


# -- pictures -----------------------------------------------------------------------------------------------


def chunk(name: bytes, data: bytes, crc: int | None = None) -> bytes:
    """A chunk of a PNG."""
    return (
        struct.pack(">I", len(data))
        + name
        + data
        + struct.pack(">I", zlib.crc32(name + data) if crc is None else crc)
    )


def png(width: int = 48, height: int = 32, depth: int = 8, colour: int = 2, data: bytes | None = None,
        interlace: int = 0, before: bytes = b"", end: bool = True, crc: int | None = None) -> bytes:  # fmt: skip
    """A PNG written by hand; `data` is what is packed, by default the picture."""
    raw = b"".join(b"\0" + row.tobytes() for row in PIXELS) if data is None else data
    ihdr = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace), crc)
    return b"\x89PNG\r\n\x1a\n" + ihdr + before + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"") * end


def interlaced() -> bytes:
    """PNG's Adam7: seven passes from coarse to fine."""
    raw = b""
    for x, y, dx, dy in (
        (0, 0, 8, 8),
        (4, 0, 8, 8),
        (0, 4, 4, 8),
        (2, 0, 4, 4),
        (0, 2, 2, 4),
        (1, 0, 2, 2),
        (0, 1, 1, 2),
    ):
        raw += b"".join(b"\0" + row.tobytes() for row in PIXELS[y::dy, x::dx])
    return png(data=raw, interlace=1)


def idat_at(data: bytes) -> int:
    return data.index(b"IDAT")


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]


def segment(marker: int, data: bytes) -> bytes:
    """A marker segment of a JPEG."""
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


def frame(
    marker: int | None = None, precision: int = 8, size: tuple[int, int] = (48, 32), data: bytes = JPEG
) -> bytes:
    """The JPEG with its frame header forged."""
    at = data.index(b"\xff\xc0")
    head = bytes([0xFF, marker or 0xC0]) + data[at + 2 : at + 4] + struct.pack(">BHH", precision, size[1], size[0])
    return data[:at] + head + data[at + 9 :]


def without(marker: int, data: bytes = JPEG) -> bytes:
    """The JPEG without its segments of a kind."""
    at = data.find(bytes([0xFF, marker]))
    while at >= 0:
        data = data[:at] + data[at + 2 + struct.unpack(">H", data[at + 2 : at + 4])[0] :]
        at = data.find(bytes([0xFF, marker]))
    return data


def after_start(segments: bytes, data: bytes = JPEG) -> bytes:
    """The JPEG with segments put behind its first marker."""
    return data[:2] + segments + data[2:]


def cmyk(transform: int) -> bytes:
    """A JPEG of four inks; with Adobe's transform 2 the first three are coded as YCbCr (YCCK)."""
    inks = 255 - PIXELS
    planes = np.asarray(Image.fromarray(inks).convert("YCbCr")) if transform == 2 else inks
    black = np.full((32, 48, 1), 255 if transform == 2 else 0, np.uint8)
    stored = np.concatenate(
        [255 - planes if transform == 2 else planes, 255 - black if transform == 2 else black], 2
    )
    data = bytearray(encoded(Image.fromarray(stored, "CMYK"), "JPEG", quality=95))
    data[data.index(b"Adobe") + 11] = transform
    return bytes(data)


def rotated(orientation: int) -> bytes:
    """As a camera stores it that was held otherwise."""
    stored_by = {
        2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1], 5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a, 1), 7: lambda a: np.rot90(a, 2).swapaxes(0, 1), 8: lambda a: np.rot90(a, -1),
    }  # fmt: skip
    stored = Image.fromarray(np.ascontiguousarray(stored_by.get(orientation, lambda a: a)(PIXELS)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(stored, "JPEG", quality=95, subsampling=0, exif=exif.tobytes())


def restarts(kept: bool = True) -> bytes:
    """A JPEG with restart markers after every block, or with those taken out and still announced."""
    data = encoded(PICTURE, "JPEG", quality=95, subsampling=0, restart_marker_blocks=1)
    if kept:
        return data
    scan = data.index(b"\xff\xda")
    return data[:scan] + re.sub(rb"\xff[\xd0-\xd7]", b"", data[scan:])


@functools.cache
def animated(form: str) -> bytes:
    others = [Image.fromarray(255 - PIXELS), PICTURE]
    return encoded(PICTURE, form, save_all=True, append_images=others, duration=100, lossless=True)


def bomb_chunk(name: bytes, size: int = 256 << 20) -> bytes:
    """A PNG whose text or profile unpacks to `size` zeros."""
    squeezer = zlib.compressobj(9)
    packed = b"".join(squeezer.compress(bytes(1 << 20)) for _ in range(size >> 20)) + squeezer.flush()
    lead = {b"zTXt": b"x\0\0", b"iCCP": b"x\0\0", b"iTXt": b"x\0\1\0\0\0"}[name]
    return png(before=chunk(name, lead + packed))


def transparent(mode: str) -> Image.Image:
    """The picture in a mode that has transparency, all of it opaque."""
    return PICTURE.convert("RGBA").convert(mode)


def palette() -> bytes:
    """A palette with one transparent entry that nothing uses."""
    image = PICTURE.convert("P", palette=Image.Palette.ADAPTIVE, colors=16)
    return encoded(image, "PNG", transparency=200, bits=8)


def deep(channels: int) -> bytes:
    """A PNG of 16 bits a channel: RGB or RGBA."""
    wide = PIXELS.astype(">u2") * 257
    if channels == 4:
        wide = np.concatenate([wide, np.full((32, 48, 1), 65535, ">u2")], 2)
    return png(
        depth=16,
        colour=2 if channels == 3 else 6,
        data=b"".join(b"\0" + row.astype(">u2").tobytes() for row in wide),
    )


def exif_loop() -> bytes:
    """An EXIF directory that points at itself, and counts that go beyond its end."""
    entries = struct.pack(">HHIHH", 0x0112, 3, 1, 1, 0) + struct.pack(">HHII", 0x8769, 4, 1, 8)
    tiff = b"MM\0*" + struct.pack(">I", 8) + struct.pack(">H", 2) + entries + struct.pack(">I", 8)
    return after_start(segment(0xE1, b"Exif\0\0" + tiff))


NOT_AN_IMAGE = "not JPEG, PNG, WEBP"
FOREIGN = {
    "HTML of an error page": b"<!DOCTYPE html><html><body>404</body></html>",
    "XML of a bucket's error": b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
    "a pointer of Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "PDF": b"%PDF-1.4\n1 0 obj<</Type/Catalog>>endobj\n%%EOF",
    "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
    "a pickle": pickle.dumps([1, 2]),
    "HEIC": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99),
    "WAV, a RIFF as WebP is": b"RIFF\x24\0\0\0WAVEfmt " + bytes(99),
    "a JPEG XL codestream": b"\xff\x0a" + bytes(99),
    "noise": np.random.default_rng(2).bytes(3000),
}
PILLOWS_OWN = ("GIF", "BMP", "TIFF", "PPM", "ICO", "JPEG2000", "AVIF")  # which Pillow could read


def pictures() -> list[Specimen]:
    """What is odd in the picture of a sample with a good caption."""

    def used(name: str, make: Callable[[], bytes], extension: str = "jpg", alike: bool = True) -> Specimen:
        return Specimen(name, "picture", lambda: sample("odd", make(), extension), used=("odd",), alike=alike)

    def unread(name: str, make: Callable[[], bytes], reason: str, extension: str = "jpg") -> Specimen:
        return Specimen(name, "picture", lambda: sample("odd", make(), extension), unread=(("odd", reason),))

    def rotations() -> bytes:
        return b"".join(sample(f"odd{i}", rotated(i)) for i in range(1, 9))

    grey_row = b"".join(b"\0" + row.tobytes() for row in np.asarray(GREY))
    kinds = [
        used("progressive JPEG", lambda: encoded(PICTURE, "JPEG", quality=95, subsampling=0, progressive=True)),
        used("grey JPEG", lambda: encoded(GREY, "JPEG"), alike=False),
        used("CMYK", lambda: cmyk(0)),
        used("YCCK", lambda: cmyk(2)),
        used("JPEG coded as RGB", lambda: encoded(PICTURE, "JPEG", quality=95, keep_rgb=True)),
        used("JPEG with halved colours", lambda: encoded(PICTURE, "JPEG", quality=95, subsampling=2)),
        used("JPEG with restart markers", restarts),
        used("restart markers missing", lambda: restarts(False), alike=False),
        used("a byte changed in the scan", lambda: flipped(JPEG, len(JPEG) - 200), alike=False),
        unread("a page of zeros in the scan", lambda: JPEG[:-300] + bytes(200) + JPEG[-100:], "."),
        used("bytes after the end of a JPEG", lambda: JPEG + b"<html>" * 50),
        used("two JPEGs in one file", lambda: JPEG + encoded(Image.fromarray(255 - PIXELS), "JPEG")),
        used(
            "MPO, a JPEG with others behind it",
            lambda: encoded(
                PICTURE, "MPO", quality=95, subsampling=0, save_all=True, append_images=[GREY.convert("RGB")]
            ),
        ),
        used("fill bytes before markers", lambda: JPEG[:2] + b"\xff" * 9 + JPEG[2:]),
        used("a hundred application segments", lambda: after_start(segment(0xEB, bytes(60_000)) * 100)),
        used("a damaged colour profile", lambda: after_start(segment(0xE2, b"ICC_PROFILE\0\1\1" + b"junk" * 40))),
        Specimen("EXIF rotations 1 to 8", "picture", rotations, used=tuple(f"odd{i}" for i in range(1, 9))),
        used("EXIF of garbage", lambda: after_start(segment(0xE1, b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"))),
        used("EXIF rotation 99", lambda: rotated(99)),
        used("EXIF that points at itself", exif_loop),
        used("a 1 x 1 picture", lambda: encoded(PICTURE.resize((1, 1)), "PNG"), "png", alike=False),
        used("PNG named jpg", lambda: PNG),
        used("JPEG named png", lambda: JPEG, "png"),
        used("WebP named jpeg", lambda: encoded(PICTURE, "WEBP", lossless=True), "jpeg"),
        used("extension in capitals", lambda: JPEG, "JPG"),
        used(
            "PNG of 16-bit grey",
            lambda: encoded(Image.fromarray(np.asarray(GREY).astype(np.uint16) * 257), "PNG"),
            "png",
            alike=False,
        ),
        used("PNG of 16-bit RGB", lambda: deep(3), "png"),
        used("PNG of 16-bit RGB and alpha", lambda: deep(4), "png"),
        used("interlaced PNG", interlaced, "png"),
        used("PNG of one bit", lambda: encoded(PICTURE.convert("1"), "PNG"), "png", alike=False),
        used("PNG of grey and alpha", lambda: encoded(GREY.convert("LA"), "PNG"), "png", alike=False),
        used(
            "PNG of grey with one grey transparent",
            lambda: png(colour=0, before=chunk(b"tRNS", b"\0\1"), data=grey_row),
            "png",
            alike=False,
        ),
        used("PNG with alpha", lambda: encoded(transparent("RGBA"), "PNG"), "png"),
        used("PNG with a palette", palette, "png", alike=False),
        used("PNG without its end", lambda: png(end=False), "png"),
        used("animated PNG", lambda: animated("PNG"), "png"),
        used("WebP, lossy, with alpha", lambda: encoded(transparent("RGBA"), "WEBP", quality=95), "webp"),
        used("animated WebP", lambda: animated("WEBP"), "webp"),
        unread("zero bytes", lambda: b"", "zero bytes"),
        unread("one byte", lambda: b"\xff", NOT_AN_IMAGE),
        unread("JPEG cut in its header", lambda: JPEG[:60], "Truncated|truncated|header|SOF|not JPEG"),
        unread("JPEG cut in its scan", lambda: JPEG[: len(JPEG) * 3 // 4], "[Tt]runcated"),
        unread(
            "progressive JPEG cut in a later scan",
            lambda: encoded(PICTURE, "JPEG", progressive=True, quality=95)[:-150],
            "[Tt]runcated",
        ),
        unread("bytes before the start of a JPEG", lambda: b"HTTP/1.1 200 OK\r\n\r\n" + JPEG, NOT_AN_IMAGE),
        unread("JPEG of 12 bits", lambda: frame(precision=12), "."),
        unread("lossless JPEG", lambda: frame(0xC3), "."),
        unread("hierarchical JPEG", lambda: frame(0xC5), "."),
        unread("JPEG of height 0", lambda: frame(size=(48, 0)), "."),
        unread("JPEG of 65,500 x 65,500", lambda: frame(size=(65500, 65500)), "pixels"),
        unread("JPEG without quantisation tables", lambda: without(0xDB), "."),
        used("JPEG without Huffman tables, as in motion JPEG", lambda: without(0xC4)),
        unread(
            "JPEG with five components",
            lambda: (lambda at: JPEG[: at + 9] + b"\5" + JPEG[at + 10 :])(JPEG.index(b"\xff\xc0")),
            ".",
        ),
        unread(
            "a Huffman table of garbage",
            lambda: (lambda at: JPEG[: at + 5] + b"\xff" * 16 + JPEG[at + 21 :])(JPEG.index(b"\xff\xc4")),
            ".",
        ),
        unread(
            "a sliver of 1 x 200", lambda: encoded(PICTURE.resize((1, 200)), "PNG"), "100 times the other", "png"
        ),
        unread("PNG with a wrong checksum of its header", lambda: png(crc=1), ".", "png"),
        used("PNG with a wrong checksum of its data", lambda: flipped(PNG, len(PNG) - 14), "png"),
        unread(
            "PNG with damaged packing",
            lambda: (lambda d: d[: idat_at(d) + 8] + bytes(40) + d[idat_at(d) + 48 :])(png()),
            ".",
            "png",
        ),
        unread("PNG cut in its data", lambda: PNG[: len(PNG) * 2 // 3], ".", "png"),
        used("PNG with too few rows", lambda: png(data=bytes(145 * 10)), "png", alike=False),
        unread("PNG without data", lambda: PNG[: idat_at(PNG) - 4] + chunk(b"IEND", b""), ".", "png"),
        unread("PNG of 30,000 x 30,000", lambda: png(30000, 30000), "pixels", "png"),
        unread("PNG of 2 to the 31st pixels wide", lambda: png(1 << 31, 1), ".", "png"),
        unread("PNG of no width", lambda: png(0, 32), ".", "png"),
        unread("PNG of three bits", lambda: png(depth=3), ".", "png"),
        unread(
            "PNG with an unknown filter",
            lambda: png(data=b"".join(b"\x09" + row.tobytes() for row in PIXELS)),
            ".",
            "png",
        ),
        unread("PNG whose text unpacks to 256 MiB", lambda: bomb_chunk(b"zTXt"), ".", "png"),
        unread("PNG whose international text unpacks to 256 MiB", lambda: bomb_chunk(b"iTXt"), ".", "png"),
        unread("PNG whose profile unpacks to 256 MiB", lambda: bomb_chunk(b"iCCP"), ".", "png"),
        unread("WebP cut off", lambda: encoded(PICTURE, "WEBP", lossless=True)[:-30], ".", "webp"),
        unread(
            "WebP whose canvas is not its picture's",
            lambda: (lambda d: d[:24] + b"\xff\x3f\0\xff\x3f\0" + d[30:])(animated("WEBP")),
            ".",
            "webp",
        ),
        *(unread(f"{name} named jpg", lambda data=data: data, NOT_AN_IMAGE) for name, data in FOREIGN.items()),
        *(
            unread(f"{form} named jpg", lambda form=form: encoded(PICTURE, form), NOT_AN_IMAGE)
            for form in PILLOWS_OWN
        ),
    ]
    kinds.append(
        Specimen(
            "a picture of more than 64 MiB",
            "picture",
            lambda: sample("odd", JPEG + bytes(64 << 20)),
            bad=(("odd", "is larger than"),),
            heavy=True,
        )
    )
    return kinds


# -- captions -----------------------------------------------------------------------------------------------


def captions() -> list[Specimen]:
    """What is odd in the caption of a sample with a good picture."""

    def used(name: str, tag: str | bytes) -> Specimen:
        return Specimen(name, "caption", lambda: sample("odd", tag=tag), used=("odd",))

    def bad(name: str, tag: str | bytes, reason: str) -> Specimen:
        return Specimen(name, "caption", lambda: sample("odd", tag=tag), bad=(("odd", reason),))

    long = TAG.replace("merula", "m" * ((64 << 10) - len(TAG) + len("merula")))
    no_caption = member("odd.jpg", JPEG)
    return [
        Specimen("no caption", "caption", lambda: no_caption, bad=(("odd", "no caption 'taxonTag.txt'"),)),
        Specimen(
            "the caption under another name",
            "caption",
            lambda: no_caption + member("odd.caption", TAG.encode()),
            bad=(("odd", "no caption"),),
        ),
        Specimen(
            "no picture", "caption", lambda: member("odd.taxonTag.txt", TAG.encode()), bad=(("odd", "no image"),)
        ),
        Specimen(
            "an extension that is none of a picture",
            "caption",
            lambda: sample("odd", encoded(PICTURE, "GIF"), "gif"),
            bad=(("odd", "no image"),),
        ),
        bad("empty caption", "", "is not"),
        bad("a caption of white space", " \n\t ", "is not"),
        bad("a caption in Latin-1", TAG.replace("Aves", "Avés").encode("latin-1"), "not UTF-8"),
        bad("a caption in UTF-16", TAG.encode("utf-16"), "not UTF-8"),
        used("a caption with a byte-order mark", b"\xef\xbb\xbf" + TAG.encode()),
        bad("NUL in the caption", TAG.replace("Aves", "Av\0es"), "control character"),
        bad("an escape sequence in the caption", TAG.replace("Aves", "\x1b[2JAves"), "control character"),
        used("a caption that ends with CR LF", TAG + "\r\n"),
        bad("ranks divided by tabs", TAG.replace(" ", "\t"), "is not"),
        bad(
            "an empty lineage",
            "a photo of kingdom  phylum  class  order  family  genus  species .",
            "empty lineage",
        ),
        bad("ranks out of order", "a photo of phylum Chordata kingdom Animalia.", "out of order"),
        bad("a rank twice", TAG.replace("phylum", "kingdom"), "twice"),
        bad("the name of a rank as a name", TAG.replace("Turdidae", "order"), "twice"),
        bad("ranks in capitals", TAG.replace("kingdom", "Kingdom"), "does not begin with a rank"),
        bad("no full stop", TAG.rstrip("."), "is not"),
        bad("words where a lineage must be", "a photo of a blackbird.", "does not begin with a rank"),
        bad("JSON as the caption", '{"kingdom": "Animalia"}', "is not"),
        bad("HTML as the caption", "<html>429 Too Many Requests</html>", "is not"),
        used("a caption of 64 KiB", long),
        bad("a caption of more than 64 KiB", long + " ", "larger than"),
        used("a taxon that the taxonomy lacks", TAG.replace("merula", "unknownensis")),
        used(
            "a lineage with gaps",
            "a photo of kingdom Animalia phylum  class  order  family  genus Turdus species .",
        ),
        used("names from right to left", TAG.replace("merula", "\u202eשחרור")),
        used("zero-width characters in a name", TAG.replace("merula", "mer\u200bula\u200d")),
        used("a name in decomposed letters", TAG.replace("merula", unicodedata.normalize("NFD", "mérula"))),
        used("a letter beyond the basic plane", TAG.replace("merula", "\U0001f426")),
        bad(
            "a surrogate in the caption",
            TAG.replace("merula", "\ud800").encode("utf-8", "surrogatepass"),
            "not UTF-8",
        ),
        used("a hybrid's sign", TAG.replace("merula", "× hybridus")),
        used("markup in a name", TAG.replace("merula", "<script>alert(1)</script>")),
    ]


# -- archives -----------------------------------------------------------------------------------------------


def archives() -> list[Specimen]:
    """What is odd in how a sample lies in its tar."""
    whole, tag = sample("odd"), member("odd.taxonTag.txt", TAG.encode())

    def used(name: str, blocks: bytes | Callable[[], bytes], *keys: str, **more: object) -> Specimen:
        return Specimen(
            name, "archive", blocks if callable(blocks) else lambda: blocks, used=keys or ("odd",), **more
        )

    def bad(
        name: str, blocks: bytes, *records: tuple[str, str], used: tuple[str, ...] = (), **more: object
    ) -> Specimen:
        return Specimen(name, "archive", lambda: blocks, used=used, bad=records, **more)

    def no_regular_file(name: str, kind: bytes, link: str = "", **forged: object) -> Specimen:
        return bad(name, header("odd.jpg", kind=kind, link=link, **forged) + tag, ("odd", "not a regular file"))

    def unsafe(name: str, path: str) -> Specimen:
        return bad(name, sample(path), (path, "unsafe name"))

    damage, sized = ("", "damaged tar"), functools.partial(member, "odd.jpg", JPEG)
    cut = ("odd", "cut off at the end of the shard")
    broken = b"\xff" * 20 + header("odd.jpg", len(JPEG))[20:] + padded(JPEG)  # its checksum is wrong now
    long_name = member("././@LongLink", b"birds/" + b"x" * 300 + b".jpg\0", kind=tarfile.GNUTYPE_LONGNAME)
    long_tag = member("././@LongLink", b"birds/" + b"x" * 300 + b".taxonTag.txt\0", kind=tarfile.GNUTYPE_LONGNAME)
    nested = padded(sample("inner") + END)
    packed = gzip.compress
    return [
        bad("a key twice", whole + sample("between") + whole, ("odd", "duplicate key"), used=("odd", "between")),
        bad("a key of a good sample again", sample("good0"), ("good0", "duplicate key")),
        bad("a member twice", member("odd.jpg", JPEG) + whole, ("odd", "no caption"), ("odd", "duplicate key")),
        used("caption before picture", tag + member("odd.jpg", JPEG)),
        bad(
            "two samples' members by turns",
            member("odd.jpg", JPEG) + member("even.jpg", JPEG) + tag + member("even.taxonTag.txt", TAG.encode()),
            ("odd", "no caption"),
            ("even", "no caption"),
            ("odd", "duplicate key"),
            ("even", "duplicate key"),
        ),
        used("two pictures of one sample", member("odd.png", PNG) + whole),
        used("members of unknown kinds", whole + member("odd.cls", b"7") + member("odd.json", b"{}")),
        used(
            "a folder's entry among the members",
            member("odd.jpg", JPEG) + header("odd", kind=tarfile.DIRTYPE) + tag,
        ),
        used("names in folders, from ./ on", sample("./a/b.c/odd"), "./a/b.c/odd"),
        used("members without a key", member("README", b"text") + member(".hidden", b"") + whole),
        used(
            "shadows of a Mac", member("._odd.jpg", b"shadow") + member("a/._odd.taxonTag.txt", b"shadow") + whole
        ),
        no_regular_file("a symbolic link", tarfile.SYMTYPE, "/etc/passwd"),
        no_regular_file("a hard link", tarfile.LNKTYPE, "good0.jpg"),
        no_regular_file("a character device", tarfile.CHRTYPE),
        no_regular_file("a block device", tarfile.BLKTYPE),
        no_regular_file("a pipe", tarfile.FIFOTYPE),
        no_regular_file("a contiguous file", tarfile.CONTTYPE),
        no_regular_file("an unknown kind of member", b"Z"),
        bad(
            "a sparse file of GNU's old form",
            header("odd.jpg", kind=tarfile.GNUTYPE_SPARSE, magic=b"ustar  \0") + tag,
            ("odd", "not a regular file"),
        ),
        bad(
            "a sparse file of pax",
            pax(
                {
                    "GNU.sparse.major": "0",
                    "GNU.sparse.minor": "1",
                    "GNU.sparse.name": "odd.jpg",
                    "GNU.sparse.size": "1000000000",
                    "GNU.sparse.map": "0,9",
                }
            )
            + sized()
            + tag,
            ("odd", "not a regular file"),
        ),
        unsafe("an absolute path", "/etc/odd"),
        unsafe("a path that leads out", "../../odd"),
        unsafe("a path that leads out in its middle", "a/../../odd"),
        bad("a path with backslashes", sample("a\\..\\odd"), ("a\\", "unsafe name")),
        bad(
            "a pax header with a path that leads out",
            pax({"path": "../odd.jpg"}) + sized() + tag,
            ("../odd", "unsafe name"),
            ("odd", "no image"),
        ),
        Specimen(
            "a pax header with a smaller size",
            "archive",
            lambda: pax({"size": "100"}) + sized() + tag,
            bad=(damage,),
            unread=(("odd", "."),),
        ),
        bad("a pax header with a size beyond the end", pax({"size": "99999999999"}) + sized() + tag, cut, damage),
        Specimen(
            "a pax header with a size that is no number",
            "archive",
            lambda: pax({"size": "many"}) + sized() + tag,
            bad=(damage,),
            unread=(("odd", "zero bytes"),),
        ),
        bad(
            "a pax header of wrong lengths",
            member("x", b"0 path=x\n", kind=tarfile.XHDTYPE) + whole,
            damage,
            used=("odd",),
        ),
        used("a pax header that tells nothing", pax({"comment": "x" * 5000}) + whole),
        used("a global pax header", pax({"comment": "of all"}, tarfile.XGLTYPE) + whole),
        used(
            "GNU's long names",
            long_name + member("x", JPEG) + long_tag + member("y", TAG.encode()),
            "birds/" + "x" * 300,
        ),
        used(
            "a prefix of ustar",
            member("odd.jpg", JPEG, prefix=b"birds/of")
            + member("odd.taxonTag.txt", TAG.encode(), prefix=b"birds/of"),
            "birds/of/odd",
        ),
        bad(
            "a long name of 8 GiB",
            header("././@LongLink", 1 << 33, tarfile.GNUTYPE_LONGNAME) + whole,
            damage,
            used=("odd",),
        ),
        bad(
            "a pax header of 8 GiB",
            header("x", kind=tarfile.XHDTYPE, size_field=b"\x80" + bytes(6) + b"\2" + bytes(4)) + whole,
            damage,
            used=("odd",),
        ),
        Specimen(
            "two thousand long names of nothing",
            "archive",
            lambda: header("././@LongLink", 0, tarfile.GNUTYPE_LONGNAME) * 2000,
            bad=(damage,),
            lost="after",
        ),
        used("a size in base 256", sized(size_field=b"\x80" + len(JPEG).to_bytes(11, "big")) + tag),
        bad("a negative size in base 256", sized(size_field=b"\xff" * 12) + tag, damage, ("odd", "negative size")),
        bad("a negative size in octal", sized(size_field=b"-0000001000") + tag, damage, ("odd", "negative size")),
        bad("a size that is no number", sized(size_field=b"lots of it!!") + tag, damage, ("odd", "no image")),
        bad("a size beyond the end", sized(size_field=b"77777777777") + tag, cut, damage),
        bad("a size of 2 to the 88th", sized(size_field=b"\x80" + b"\xff" * 11) + tag, cut, damage),
        Specimen(
            "a size too small",
            "archive",
            lambda: sized(size_field=b"%011o" % 512) + tag,
            bad=(damage,),
            unread=(("odd", "."),),
        ),
        bad(
            "a size too large by one block",
            sized(size_field=b"%011o" % (len(padded(JPEG)) + 1)) + tag,
            damage,
            used=("odd",),
        ),
        bad("a header with a wrong checksum", broken + tag, damage, ("odd", "no image")),
        bad("a header overwritten with zeros", bytes(512) + padded(JPEG) + tag, damage, ("odd", "no image")),
        bad("a page of zeros over a whole sample", bytes(len(whole)), damage),
        Specimen(
            "bytes missing in the middle",
            "archive",
            lambda: whole[:700] + whole[1000:],
            bad=(damage,),
            unread=(("odd", "."),),
        ),
        used(
            "headers of Unix V7",
            member("odd.jpg", JPEG, magic=b"") + member("odd.taxonTag.txt", TAG.encode(), magic=b""),
        ),
        used("a key with a line feed", sample("o\ndd"), "o\ndd"),
        used(
            "a key in Latin-1",
            member("Grünfink.jpg".encode("latin-1"), JPEG)
            + member("Grünfink.taxonTag.txt".encode("latin-1"), TAG.encode()),
            "Gr\udcfcnfink",
        ),
        used("a key with an emoji and a bidi mark", sample("\U0001f426\u202e"), "\U0001f426\u202e"),
        bad("a tar within the tar", member("inner.tar", nested) + whole, ("inner", "no image"), used=("odd",)),
        used("an empty name", member("", b"nothing") + whole),
        used(
            "no end mark",
            whole,
            around=lambda before, own, after: before + own + after[: -len(END)],
            bad=(("", "no end-of-archive mark"),),
        ),
        used("half an end mark", whole, around=lambda before, own, after: before + own + after[:-512]),
        used("a long end of zeros", whole, around=lambda before, own, after: before + own + after + bytes(1 << 20)),
        used(
            "bytes after the end",
            whole,
            around=lambda before, own, after: before + own + after + b"<html>" * 99,
            bad=(("", "more follows the end"),),
        ),
        used(
            "two tars in one file",
            whole,
            around=lambda before, own, after: before + END + own + after,
            bad=(("", "more follows the end"),),
        ),
        used(
            "a tar packed by gzip",
            whole,
            around=lambda before, own, after: packed(before + own + after),
            bad=(("", "packed by gzip"),),
            lost="all",
        ),
        used(
            "a tar packed by bzip2",
            whole,
            around=lambda before, own, after: bz2.compress(before + own + after),
            bad=(("", "packed by bzip2"),),
            lost="all",
        ),
        used("an empty file", whole, around=lambda before, own, after: b"", bad=(damage,), lost="all"),
        used("a tar of no members", whole, around=lambda before, own, after: END * 10, lost="all"),
        used(
            "a page of HTML named tar",
            whole,
            around=lambda before, own, after: b"<html>" * 2000,
            bad=(damage,),
            lost="all",
        ),
        used(
            "cpio named tar",
            whole,
            around=lambda before, own, after: b"070701" + b"0" * 104 + b"a\0\0\0" * 900,
            bad=(damage,),
            lost="all",
        ),
        used(
            "bytes of each word swapped",
            whole,
            around=lambda before, own, after: np.frombuffer(before + own + after, np.uint16).byteswap().tobytes(),
            bad=(damage,),
            lost="all",
        ),
        used(
            "bytes before the first header",
            whole,
            around=lambda before, own, after: b"#!shar\n" + before + own + after,
            bad=(damage,),
        ),
    ]


@functools.cache
def all_of_them() -> tuple[Specimen, ...]:
    return (*pictures(), *captions(), *archives())
