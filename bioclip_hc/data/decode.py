"""From image bytes that nobody vouches for to a pixel tensor.

Decoding keeps to three formats, looks at the header before it spends memory, and reports whatever is wrong as a
`DecodeError`. Preprocessing and augmentation are open_clip's; the randomness of one sample is tied to its seed.
"""

from __future__ import annotations

import dataclasses
import io
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from open_clip.transform import AugmentationCfg, PreprocessCfg, image_transform_v2
from PIL import ExifTags, Image, UnidentifiedImageError

from bioclip_hc.data.sample import MAX_IMAGE_BYTES

Transform = Callable[[Image.Image], torch.Tensor]

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


class DecodeError(ValueError):
    """The bytes are not an image that training can use; the message says why."""


def decode_image(data: bytes) -> Image.Image:
    """An upright 8-bit RGB image from JPEG, PNG or WebP bytes.

    Sixteen-bit greys are scaled, palettes and CMYK converted, transparency laid on white, the EXIF orientation
    applied; of an animation the first frame is taken.

    Raises:
        DecodeError: empty, too many bytes or pixels, an extreme aspect ratio, another format, damaged, cut off.
    """
    if not data:
        raise DecodeError("zero bytes")
    if len(data) > MAX_IMAGE_BYTES:
        raise DecodeError(f"{len(data)} bytes are more than {MAX_IMAGE_BYTES}")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(*image.size)
            image.load()
            return _upright(_as_rgb(image), _orientation(image))
    except DecodeError:
        raise
    except UnidentifiedImageError:
        raise DecodeError(f"not {', '.join(FORMATS)}; the bytes begin with {data[:16]!r}") from None
    except Exception as error:  # on damaged files Pillow raises anything, from SyntaxError to struct.error
        raise DecodeError(f"{type(error).__name__}: {error}") from error


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


def build_transform(
    preprocess: Mapping[str, Any], train: bool, augmentation: Mapping[str, Any] | None = None
) -> Transform:
    """open_clip's preprocessing: (W, H) RGB image -> (3, H', W') float32, normalised.

    Args:
        preprocess: fields of open_clip's PreprocessCfg (size, mean, std, interpolation, resize_mode, ...), as
            `model.visual.preprocess_cfg` holds them.
        train: random crops and the augmentation instead of the centre crop.
        augmentation: fields of open_clip's AugmentationCfg (scale, ratio, color_jitter, ...); train only.

    Raises:
        ValueError: a field that open_clip does not know.
    """
    _check_fields("preprocess", preprocess, PreprocessCfg)
    _check_fields("augmentation", augmentation or {}, AugmentationCfg)
    return image_transform_v2(PreprocessCfg(**preprocess), is_train=train, aug_cfg=dict(augmentation or {}))


def _check_fields(what: str, given: Mapping[str, Any], cfg: type) -> None:
    names = [field.name for field in dataclasses.fields(cfg)]
    if unknown := [name for name in given if name not in names]:
        raise ValueError(f"{what} has no field {unknown[0]!r} (fields: {', '.join(names)})")


def augment(transform: Transform, image: Image.Image, seed: int) -> torch.Tensor:
    """Apply a random transform so that its outcome depends on the image and the seed alone.

    Args:
        seed: in [0, 2^32), from `samplers.sample_seed`.
    """
    with _seeded(seed):
        return transform(image)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the generators that torchvision and timm draw from, and put them back as they were.

    Only torch's CPU generator: `torch.manual_seed` would reseed the GPUs, too.
    """
    torch_state, python_state, numpy_state = torch.get_rng_state(), random.getstate(), np.random.get_state()
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(torch_state)
        random.setstate(python_state)
        np.random.set_state(numpy_state)
