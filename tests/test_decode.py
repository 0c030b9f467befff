"""Images as they come from the wild: by either decoder the same pixels, or the same refusal."""

import contextlib
import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from bioclip_hc.data import decode
from bioclip_hc.data.decode import DecodeError, Photograph

RNG = np.random.default_rng(0)
PIXELS = np.kron(RNG.integers(0, 256, (2, 3, 3)), np.ones((16, 16, 1))).astype(np.uint8)  # blocks survive JPEG
PICTURE = Image.fromarray(PIXELS)


def encode(image: Image.Image, fmt: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, fmt, **options)
    return buffer.getvalue()


def verdict(function, *arguments) -> np.ndarray | str:
    """Pixels, or why there are none."""
    try:
        return np.array(function(*arguments))
    except DecodeError as error:
        return str(error)


def verdicts(data: bytes, reduction: int = 1) -> list[np.ndarray | str]:
    """What training makes of a file with simplejpeg, and with Pillow alone."""
    found = [verdict(lambda: Photograph(data).pixels(reduction))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decode, "simplejpeg", None)
        return [*found, verdict(lambda: Photograph(data).pixels(reduction))]


def alike(one: np.ndarray | str, two: np.ndarray | str) -> bool:
    return type(one) is type(two) and np.array_equal(one, two)


def decode_image(data: bytes) -> Image.Image:
    """decode.decode_image, with which training agrees by either decoder."""
    expected = verdict(decode.decode_image, data)
    for found in verdicts(data):
        assert alike(found, expected), (found, expected)
    return decode.decode_image(data)


def difference(image: Image.Image, pixels: np.ndarray = PIXELS) -> float:
    return float(np.abs(np.asarray(image).astype(int) - pixels).mean())


JPEG = encode(PICTURE, "JPEG", quality=95, subsampling=0)


@pytest.mark.parametrize(
    ("fmt", "options"),
    [
        ("JPEG", {"quality": 95, "subsampling": 0}),
        ("JPEG", {"quality": 95, "subsampling": 0, "progressive": True}),
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
    ],
)
def test_the_three_formats_decode(fmt, options):
    image = decode_image(encode(PICTURE, fmt, **options))
    assert (image.mode, image.size) == ("RGB", PICTURE.size)
    assert difference(image) < 6


def test_cmyk_is_converted():
    image = decode_image(encode(PICTURE.convert("CMYK"), "JPEG", quality=95))
    assert image.mode == "RGB"
    assert difference(image) < 10


def test_sixteen_bit_grey_is_scaled_not_clipped():
    grey = PIXELS[:, :, 0].astype(np.uint16) * 257
    image = decode_image(encode(Image.fromarray(grey)))
    assert difference(image, PIXELS[:, :, :1]) == 0


@pytest.mark.parametrize("mode", ["1", "L", "P"])
def test_grey_and_palettes_are_converted(mode):
    original = PICTURE.convert(mode)
    assert difference(decode_image(encode(original)), np.asarray(original.convert("RGB"))) == 0


@pytest.mark.parametrize("fmt", ["PNG", "WEBP"])
def test_transparent_pixels_become_white(fmt):
    image = PICTURE.copy()
    image.putalpha(Image.fromarray(np.where(np.arange(48) < 24, 0, 255).astype(np.uint8)[None].repeat(32, 0)))
    pixels = np.asarray(decode_image(encode(image, fmt, lossless=True)))
    assert (pixels[:, :24] == 255).all()
    assert (pixels[:, 24:] == PIXELS[:, 24:]).all()


def test_palette_transparency_becomes_white():
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    image.paste(0, (0, 0, 4, 8))
    pixels = np.asarray(decode_image(encode(image, transparency=0)))
    assert (pixels[:, :4] == 255).all()
    assert (pixels[:, 4:] == (10, 20, 30)).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_is_applied(fmt, orientation):
    """A camera stores the picture so that the operation of its tag makes it upright."""
    stored_by = {
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
        8: lambda a: np.rot90(a, -1),
    }
    stored = Image.fromarray(np.ascontiguousarray(stored_by.get(orientation, lambda a: a)(PIXELS)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = decode_image(encode(stored, fmt, exif=exif.tobytes(), subsampling=0, lossless=True))
    assert image.size == PICTURE.size
    assert difference(image) < 6


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"Exif\0\0"])
def test_damaged_exif_does_not_cost_the_picture(exif):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks on the metadata
        assert difference(decode_image(encode(PICTURE, "JPEG", exif=exif, subsampling=0))) < 6


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 64))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "zero bytes"),
        (b"<!DOCTYPE html><html>404</html>", "not JPEG, PNG, WEBP; the bytes begin with b'<!DOCTYPE"),
        (b"\0" * 1000, "not JPEG, PNG, WEBP"),
        (encode(PICTURE, "GIF"), "not JPEG, PNG, WEBP but GIF; convert it$"),
        (encode(PICTURE, "BMP"), "not JPEG, PNG, WEBP"),
        (encode(PICTURE, "TIFF"), "not JPEG, PNG, WEBP but TIFF; convert it$"),
        (b"\0\0\0\x18ftypheic" + b"\0" * 99, "not JPEG, PNG, WEBP but HEIC; convert it$"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not JPEG, PNG, WEBP"),
        (JPEG[:-50], "truncated"),
        (JPEG[: len(JPEG) // 2], "Truncated"),
        (JPEG[:10], "Truncated"),
        (encode(PICTURE)[:-30], "truncated"),
        (encode(PICTURE, "WEBP")[:-30], "could not create decoder"),
        (png_header(20_000, 20_000), "Image size .400000000 pixels. exceeds limit of 178956970"),
        (png_header(2**31 - 1, 2**31 - 1), "exceeds limit of 178956970"),
        (png_header(60_000, 1), "60000 x 1 pixels: one side is more than 100 times the other"),
        (png_header(0, 10), "not JPEG"),
    ],
)
def test_what_cannot_be_used_is_refused_with_a_reason(data, reason):
    with pytest.raises(DecodeError, match=reason):
        decode_image(data)


def test_the_caps_hold(monkeypatch):
    monkeypatch.setattr(decode, "MAX_PIXELS", 48 * 32 - 1)
    with pytest.raises(DecodeError, match="48 x 32 pixels are more than 1535"):
        decode_image(JPEG)
    monkeypatch.setattr(decode, "MAX_IMAGE_BYTES", len(JPEG) - 1)
    with pytest.raises(DecodeError, match=f"{len(JPEG)} bytes are more than {len(JPEG) - 1}"):
        decode_image(JPEG)


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from([JPEG, encode(PICTURE), encode(PICTURE, "WEBP")]),
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=6),
    st.integers(1, 10_000),
)
def test_damage_gives_an_image_or_a_decode_error(data, changes, length):
    damaged = bytearray(data)
    for position, value in changes:
        damaged[position % len(damaged)] = value
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with contextlib.suppress(DecodeError):
            assert decode_image(bytes(damaged[:length])).mode == "RGB"


# -- two decoders


COARSE = Image.fromarray(RNG.integers(0, 256, (4, 6, 3), dtype=np.uint8))
SMOOTH = COARSE.resize((133, 91), Image.Resampling.BICUBIC)
UPRIGHT = Image.Exif()
UPRIGHT[0x0112] = 1
PLAIN = {
    f"{sampling} {kind}": encode(SMOOTH, "JPEG", subsampling=sampling, **options)
    for sampling in ("4:4:4", "4:2:2", "4:2:0")
    for kind, options in {
        "baseline": {},
        "progressive": {"progressive": True},
        "with restarts": {"restart_marker_rows": 1},
        "optimized": {"optimize": True, "quality": 95},
        "with metadata": {"exif": UPRIGHT.tobytes(), "icc_profile": b"x" * 99, "comment": b"hello"},
    }.items()
}


@pytest.fixture
def asked(monkeypatch):
    """The calls of simplejpeg from here on; skips where it is not installed."""
    simplejpeg = pytest.importorskip("simplejpeg")
    calls, decode_jpeg = [], simplejpeg.decode_jpeg

    def spy(*arguments, **options):
        calls.append(options)
        return decode_jpeg(*arguments, **options)

    monkeypatch.setattr(simplejpeg, "decode_jpeg", spy)
    return calls


@pytest.mark.parametrize("reduction", [1, 2, 4, 8])
@pytest.mark.parametrize("name", PLAIN)
def test_plain_jpegs_have_the_same_pixels_by_both(asked, name, reduction):
    one, two = verdicts(PLAIN[name], reduction)
    assert len(asked) == 1
    assert one.shape == (-(-91 // reduction), -(-133 // reduction), 3)
    assert alike(one, two)
    room = ((0, -91 % reduction), (0, -133 % reduction), (0, 0))
    blocks = np.pad(np.asarray(SMOOTH), room, "edge").reshape(len(one), reduction, -1, reduction, 3)
    assert difference(one, blocks.mean((1, 3))) < 15  # at 1/8 the colours of 4:2:2 are coarse


@pytest.mark.parametrize(
    "data",
    [
        encode(PICTURE.convert("CMYK"), "JPEG"),
        encode(PICTURE.convert("L"), "JPEG"),
        encode(PICTURE),
        encode(PICTURE, "WEBP"),
    ],
)
def test_all_else_is_left_to_pillow(asked, data):
    assert alike(*verdicts(data))
    assert not asked


@pytest.mark.parametrize("reduction", [1, 4])
@pytest.mark.parametrize("orientation", [1, 6, 9])
def test_scaled_photographs_are_upright(reduction, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    photograph = Photograph(encode(SMOOTH, "JPEG", exif=exif.tobytes()))
    assert photograph.scalable
    height, width = (133, 91) if orientation == 6 else (91, 133)
    assert photograph.size == (height, width)
    assert photograph.pixels(reduction).shape == (-(-height // reduction), -(-width // reduction), 3)


def test_a_jpeg_cut_anywhere_is_refused_by_both():
    data = PLAIN["4:2:0 baseline"]
    for length in [*range(0, len(data), 23), *range(len(data) - 20, len(data))]:
        one, two = verdicts(data[:length])
        assert isinstance(two, str)
        assert one == two


def test_damage_that_libjpeg_only_warns_of_goes_to_pillow(asked):
    """Its pixels are Pillow's, and a warning costs no photograph that Pillow would give."""
    data = bytearray(PLAIN["4:4:4 baseline"])
    start = data.index(b"\xff\xda") + 14
    data[start + 50 : start + 90] = bytes(40)
    one, two = verdicts(bytes(data))
    with pytest.raises(ValueError, match=r"[Cc]orrupt"):
        decode.simplejpeg.decode_jpeg(bytes(data))
    assert len(asked) == 2
    assert isinstance(two, np.ndarray)
    assert alike(one, two)


def test_only_the_size_that_was_checked_is_made_room_for(asked):
    data = PLAIN["4:4:4 baseline"]
    assert decode._plain_jpeg(data, 91, 133).shape == (91, 133, 3)
    for height, width in ((90, 133), (91, 132), (92, 133), (91, 134), (46, 66)):
        assert decode._plain_jpeg(data, height, width) is None
        assert asked[-1]["buffer"].shape == (height, width, 3)


def test_what_decodes_is_told(monkeypatch):
    pytest.importorskip("simplejpeg")
    assert decode.decoder().startswith("simplejpeg ")
    monkeypatch.setattr(decode, "simplejpeg", None)
    assert decode.decoder().startswith("Pillow ")
    assert "simplejpeg, which decodes JPEGs in less time, is not installed" in decode.decoder()
