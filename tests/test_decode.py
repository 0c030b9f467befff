"""Images as they come from the wild, and open_clip's transforms under a seed."""

import contextlib
import io
import random
import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from bioclip_hc.data import decode
from bioclip_hc.data.decode import DecodeError, augment, build_transform, decode_image

RNG = np.random.default_rng(0)
PIXELS = np.kron(RNG.integers(0, 256, (2, 3, 3)), np.ones((16, 16, 1))).astype(np.uint8)  # blocks survive JPEG
PICTURE = Image.fromarray(PIXELS)


def encode(image: Image.Image, fmt: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, fmt, **options)
    return buffer.getvalue()


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
        (encode(PICTURE, "GIF"), "not JPEG, PNG, WEBP"),
        (encode(PICTURE, "BMP"), "not JPEG, PNG, WEBP"),
        (encode(PICTURE, "TIFF"), "not JPEG, PNG, WEBP"),
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


# -- transforms


PREPROCESS = {"size": 16, "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
STRONG = {
    "scale": (0.2, 1.0),
    "color_jitter": (0.4, 0.4, 0.4, 0.1),
    "color_jitter_prob": 0.8,
    "gray_scale_prob": 0.5,
}


def test_evaluation_is_open_clips_centre_crop():
    tensor = build_transform(PREPROCESS, train=False)(PICTURE)
    assert (tensor.shape, tensor.dtype) == ((3, 16, 16), torch.float32)
    resized = np.asarray(PICTURE.resize((24, 16), Image.Resampling.BICUBIC))[:, 4:20]
    expected = (torch.from_numpy(resized.copy()).permute(2, 0, 1) / 255 - 0.5) / 0.25
    torch.testing.assert_close(tensor, expected)


@pytest.mark.filterwarnings("ignore:Unused augmentation cfg items")
@pytest.mark.parametrize("augmentation", [None, {"scale": (0.2, 1.0)}, STRONG])
def test_augmentation_depends_on_the_seed_alone(augmentation):
    transform = build_transform(PREPROCESS, train=True, augmentation=augmentation)
    square = PICTURE.resize((64, 64))
    forward = [augment(transform, square, seed) for seed in range(20)]
    torch.manual_seed(99)
    random.seed(99)
    backward = [augment(transform, square, seed) for seed in reversed(range(20))]
    assert all(torch.equal(a, b) for a, b in zip(forward, reversed(backward), strict=True))
    assert len({tensor.numpy().tobytes() for tensor in forward}) > 10


def test_augmentation_leaves_the_generators_as_they_were():
    def states() -> list:
        return [torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()]

    before = states()
    augment(build_transform(PREPROCESS, train=True), PICTURE, seed=3)
    assert states() == before

    def fails(image: Image.Image) -> torch.Tensor:
        torch.rand(1), random.random(), np.random.random()
        raise RuntimeError("in the transform")

    with pytest.raises(RuntimeError, match="in the transform"):
        augment(fails, PICTURE, seed=3)
    assert states() == before


def test_unknown_fields_are_named():
    with pytest.raises(ValueError, match=r"preprocess has no field 'sise' \(fields: size, mode"):
        build_transform({"sise": 16}, train=False)
    with pytest.raises(ValueError, match="augmentation has no field 'hflip'"):
        build_transform(PREPROCESS, train=True, augmentation={"hflip": 0.5})
