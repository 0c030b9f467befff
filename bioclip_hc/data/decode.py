"""From image bytes that nobody vouches for to pixels.

Decoding keeps to three formats, looks at the header before it spends memory, and reports whatever is wrong as a
`DecodeError`. Pillow reads every header and has the last word on every file; the pixels of a plain JPEG come from
simplejpeg where that is installed, in little more than half the time. Both are libjpeg-turbo and give the same
pixels.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from bioclip_hc.data.sample import MAX_IMAGE_BYTES

try:
    import simplejpeg
except ImportError:  # there is no wheel for every machine
    simplejpeg = None

FORMATS = ("JPEG", "PNG", "WEBP")
MAX_PIXELS = 2 * 89_478_485  # where Pillow itself raises DecompressionBombError: twice its MAX_IMAGE_PIXELS
MAX_ASPECT = 100  # resizing the shorter side of a 1 x 60,000 strip to 224 would allocate 9 GB
BACKGROUND = "white"  # behind transparent pixels, whose own colour is arbitrary

TRANSPOSE_OF_ORIENTATION = {  # EXIF 2.3, tag 0x0112; 1 is upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = (5, 6, 7, 8)  # of these, height and width change places


class DecodeError(ValueError):
    """The bytes are not an image that training can use; the message says why."""


def decode_image(data: bytes) -> Image.Image:
    """An upright 8-bit RGB image from JPEG, PNG or WebP bytes.

    Sixteen-bit greys are scaled, palettes and CMYK converted, transparency laid on white, the EXIF orientation
    applied; of an animation the first frame is taken.

    Raises:
        DecodeError: empty, too many bytes or pixels, an extreme aspect ratio, another format, damaged, cut off.
    """
    return Photograph(data).image()


def as_photograph(image: Image.Image) -> Image.Image:
    """A picture that Pillow has opened, as `decode_image` makes it of its bytes.

    Raises:
        DecodeError: as `decode_image`.
    """
    with _refusing(b""):
        _check_size(*image.size)
        image.load()  # a PNG may hold its orientation behind its pixels
        return _upright(_as_rgb(image), _orientation(image))


class Photograph:
    """An encoded image whose header has been read and found fit. Its pixels are decoded once.

    Attributes:
        scalable: whether `pixels` can be asked for at a fraction of the size, which a JPEG gives for less time.

    Raises:
        DecodeError: as `decode_image`, from each of its parts.
    """

    def __init__(self, data: bytes) -> None:
        if not data:
            raise DecodeError("zero bytes")
        if len(data) > MAX_IMAGE_BYTES:
            raise DecodeError(f"{len(data)} bytes are more than {MAX_IMAGE_BYTES}")
        self._data = data
        with _refusing(data):
            self._image = Image.open(io.BytesIO(data), formats=FORMATS)
            _check_size(*self._image.size)
            self.scalable = isinstance(self._image, JpegImageFile)
            if not self.scalable:
                self._image.load()  # a PNG may hold its orientation behind its pixels
            self._orientation = _orientation(self._image)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the upright image."""
        width, height = self._image.size
        return (width, height) if self._orientation in SIDEWAYS else (height, width)

    def image(self) -> Image.Image:
        """The upright RGB image."""
        with _refusing(self._data):
            self._image.load()
            return _upright(_as_rgb(self._image), self._orientation)

    def pixels(self, reduction: int = 1) -> np.ndarray:
        """(H, W, 3) uint8 of the upright image.

        Args:
            reduction: 2, 4 or 8, and at most the shorter side, gives the sides divided by it, rounded up, where the
                image is `scalable`.
        """
        stored = self._image
        width, height = stored.size
        if simplejpeg and stored.format == "JPEG" and stored.mode == "RGB" and self._orientation == 1:
            pixels = _plain_jpeg(self._data, -(-height // reduction), -(-width // reduction))
            if pixels is not None:
                return pixels
        if reduction > 1:
            stored.draft(None, (width // reduction, height // reduction))
        return np.array(self.image())


def _plain_jpeg(data: bytes, height: int, width: int) -> np.ndarray | None:
    """(height, width, 3) uint8 by libjpeg-turbo, or None where Pillow is to judge.

    simplejpeg takes libjpeg's warnings, of data that end early or are damaged, for errors. The size is that of the
    header that was checked: no other one is made room for.
    """
    room = np.empty((height, width, 3), dtype=np.uint8)
    try:
        pixels = simplejpeg.decode_jpeg(data, "RGB", min_height=height, min_width=width, buffer=room)
    except Exception:  # whatever it is: Pillow says what is wrong with the file, if anything
        return None
    return pixels if pixels.shape == room.shape else None


def decoder() -> str:
    """What decodes photographs here, with its version."""
    pillow = f"Pillow {version('pillow')}"
    if simplejpeg is None:
        return f"{pillow} (simplejpeg, which decodes JPEGs in less time, is not installed)"
    return f"simplejpeg {version('simplejpeg')}, {pillow} for what is not a plain JPEG"


@contextmanager
def _refusing(data: bytes) -> Iterator[None]:
    """What goes wrong with the bytes inside, as a DecodeError."""
    try:
        yield
    except DecodeError:
        raise
    except UnidentifiedImageError:
        raise DecodeError(f"not {', '.join(FORMATS)}{_what_else(data)}") from None
    except Exception as error:  # on damaged files Pillow raises anything, from SyntaxError to struct.error
        raise DecodeError(f"{type(error).__name__}: {error}") from error


def _what_else(data: bytes) -> str:
    """What the bytes are, for people."""
    kind = {b"GIF8": "GIF", b"II*\0": "TIFF", b"MM\0*": "TIFF"}.get(data[:4], "")
    if data[4:12] in (b"ftypheic", b"ftypmif1"):  # behind the size of the box
        kind = "HEIC"
    return f" but {kind}; convert it" if kind else f"; the bytes begin with {data[:16]!r}"


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise DecodeError(f"{width} x {height} pixels are more than {MAX_PIXELS}")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise DecodeError(f"{width} x {height} pixels: one side is more than {MAX_ASPECT} times the other")


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion clips it at 255
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        opaque = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, BACKGROUND), opaque).convert("RGB")
    return image.convert("RGB")


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged metadata does not make the pixels bad
        return 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    method = TRANSPOSE_OF_ORIENTATION.get(orientation)
    return image if method is None else image.transpose(method)
