"""From the bytes of a photograph to the pixels of a training batch, and from these to what a model reads.

# H, W pixels of a model's input

Preprocessing and augmentation are open_clip's, in three respects done otherwise. Randomness is tied to a sample's
seed. The plain random crop, which is all that open_clip's default does, is drawn without touching a generator that
others use, and resized by torch instead of Pillow: a quarter of the time. And pixels stay bytes until they are on
the device (`Normalize`), so that workers hold, and send, a quarter as much.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import math
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from open_clip.transform import AugmentationCfg, MaybeConvertMode, PreprocessCfg, image_transform_v2
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision import transforms

from bioclip_hc.data.decode import Photograph, decode_image

ATTEMPTS = 10  # of torchvision's RandomResizedCrop, before it takes the middle
FINE = 2  # pixels of a scaled photograph for each of the crop's, a side; Pillow's thumbnails take as many
MODES = {
    transforms.InterpolationMode.BICUBIC: "bicubic",
    transforms.InterpolationMode.BILINEAR: "bilinear",
}


class TrainingTransform:
    """(image bytes, seed in [0, 2^32)) -> pixels (3, H, W), a function of the two alone; raises DecodeError.

    Attributes:
        shape: (3, H, W).
        blank: (3, 1, 1), of the pixels' dtype: the mean colour, for a photograph that cannot be read.
    """

    def __init__(self, cfg: PreprocessCfg, dtype: torch.dtype) -> None:
        self.shape = torch.Size(cfg.input_size)
        mean = _per_channel(cfg.mean)
        self.blank = (255 * mean).round().to(dtype) if dtype == torch.uint8 else torch.zeros(3, 1, 1, dtype=dtype)

    def __call__(self, data: bytes, seed: int) -> Tensor:
        raise NotImplementedError

    def digest(self) -> str:
        """SHA-256 of what this makes of a picture: another one where other versions give other pixels."""
        rng = np.random.Philox(key=0)
        blocks = (rng.random_raw(3 * 16 * 20) >> np.uint64(56)).astype(np.uint8).reshape(16, 20, 3)
        file = io.BytesIO()
        Image.fromarray(blocks).resize((320, 256), Image.Resampling.BICUBIC).save(file, "JPEG", quality=80)
        found = hashlib.sha256()
        for reduction in (1, 2, 4):
            found.update(Photograph(file.getvalue()).pixels(reduction).tobytes())
        for seed in range(4):
            found.update(self(file.getvalue(), seed).numpy().tobytes())
        return found.hexdigest()


def build_transform(
    preprocess: Mapping[str, Any], augmentation: Mapping[str, Any] | None = None
) -> TrainingTransform:
    """open_clip's random preprocessing, for training.

    Args:
        preprocess: fields of open_clip's PreprocessCfg (size, mean, std, interpolation, resize_mode, ...), as
            `model.visual.preprocess_cfg` holds them.
        augmentation: fields of open_clip's AugmentationCfg (scale, ratio, color_jitter, ...).

    Raises:
        ValueError: a field that open_clip does not know.
    """
    _check_fields("preprocess", preprocess, PreprocessCfg)
    _check_fields("augmentation", augmentation or {}, AugmentationCfg)
    cfg = PreprocessCfg(**preprocess)
    stock = image_transform_v2(cfg, is_train=True, aug_cfg=dict(augmentation or {})).transforms
    match stock:
        case [
            transforms.RandomResizedCrop() as crop,
            MaybeConvertMode(),
            transforms.ToTensor(),
            transforms.Normalize(),
        ] if crop.interpolation in MODES:
            return RandomCrop(cfg, crop)
        case [*steps, transforms.ToTensor(), transforms.Normalize()]:
            return Augmentation(cfg, transforms.Compose([*steps, _as_bytes]), torch.uint8)
        case _:  # it goes on after it has normalised: timm's random erasing
            return Augmentation(cfg, transforms.Compose(stock), torch.float32)


def _check_fields(what: str, given: Mapping[str, Any], cfg: type) -> None:
    names = [field.name for field in dataclasses.fields(cfg)]
    if unknown := [name for name in given if name not in names]:
        raise ValueError(f"{what} has no field {unknown[0]!r} (fields: {', '.join(names)})")


class Normalize:
    """What a model reads, of the pixels (B, 3, H, W) that a TrainingTransform makes.

    Bytes become float32 by the operations of open_clip's preprocessing, in their order; float32 is normalised
    already, and passes.
    """

    def __init__(self, preprocess: Mapping[str, Any], device: torch.device | str = "cpu") -> None:
        self.mean, self.std = (_per_channel(preprocess[name]).to(device) for name in ("mean", "std"))

    def __call__(self, pixels: Tensor) -> Tensor:
        if pixels.dtype != torch.uint8:
            return pixels
        return pixels.to(torch.float32).div_(255).sub_(self.mean).div_(self.std)


def _per_channel(numbers: Any) -> Tensor:
    """(3, 1, 1) float32 of three numbers, or of one for all channels."""
    return torch.tensor(numbers, dtype=torch.float32).expand(3).view(3, 1, 1)


# -- the plain crop -----------------------------------------------------------------------------------------


class RandomCrop(TrainingTransform):
    """torchvision's RandomResizedCrop, drawn from the seed, of the upright photograph.

    The resized pixels are those of Pillow but for its rounding between the two passes (docs/decoding.md). A crop of
    several times H x W is cut from the photograph decoded at 1/2, 1/4 or 1/8 of its size, on that coarser grid.
    """

    def __init__(self, cfg: PreprocessCfg, crop: transforms.RandomResizedCrop) -> None:
        super().__init__(cfg, torch.uint8)
        self.scale, self.ratio, self.mode = crop.scale, crop.ratio, MODES[crop.interpolation]

    def __call__(self, data: bytes, seed: int) -> Tensor:
        photograph = Photograph(data)
        box = random_box(*photograph.size, self.scale, self.ratio, seed)
        by = self._reduction(*box[2:]) if photograph.scalable else 1
        top, left, height, width = box
        rows, columns = (  # each edge on the nearest line of the coarser grid
            slice(*((edge + by // 2) // by for edge in edges))
            for edges in ((top, top + height), (left, left + width))
        )
        pixels = torch.from_numpy(photograph.pixels(by))[rows, columns]
        return interpolate(pixels.permute(2, 0, 1)[None], self.shape[1:], mode=self.mode, antialias=True)[0]

    def _reduction(self, height: int, width: int) -> int:
        spare = min(height / self.shape[1], width / self.shape[2]) / FINE
        return next((by for by in (8, 4, 2) if by <= spare), 1)


def random_box(
    height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float], seed: int
) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a crop, distributed as torchvision's RandomResizedCrop draws it.

    Args:
        scale: bounds of the share of the area. ratio: bounds of width over height.
    """
    bits = np.random.Philox(key=seed).random_raw(4 * ATTEMPTS)
    draws = (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53  # in [0, 1)
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for for_area, for_ratio, for_top, for_left in draws.reshape(ATTEMPTS, 4).tolist():
        area = height * width * (scale[0] + (scale[1] - scale[0]) * for_area)
        aspect = math.exp(low + (high - low) * for_ratio)
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int((height - h + 1) * for_top), int((width - w + 1) * for_left), h, w
    h, w = height, width  # the largest in the middle that keeps the ratio's bounds
    if width / height < ratio[0]:
        h = max(1, min(height, round(width / ratio[0])))
    elif width / height > ratio[1]:
        w = max(1, min(width, round(height * ratio[1])))
    return (height - h) // 2, (width - w) // 2, h, w


# -- all else that open_clip can do -------------------------------------------------------------------------


class Augmentation(TrainingTransform):
    """open_clip's own transform under the sample's seed."""

    def __init__(self, cfg: PreprocessCfg, transform: Callable[[Image.Image], Tensor], dtype: torch.dtype) -> None:
        super().__init__(cfg, dtype)
        self.transform = transform

    def __call__(self, data: bytes, seed: int) -> Tensor:
        image = decode_image(data)
        with _seeded(seed):
            return self.transform(image)


def _as_bytes(image: Image.Image) -> Tensor:
    """(3, H, W) uint8."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


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
