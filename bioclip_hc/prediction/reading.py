"""From photographs to batches of pixels, decoded ahead of the model.

# b images of a batch, B its shape

Every batch has the same shape, filled up with repetitions where it has fewer images. A product's rows are then
computed alike whatever the other rows hold: no answer depends on what came with it, nor on when.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from bioclip_hc.data.decode import DecodeError, Photograph, as_photograph
from bioclip_hc.prediction.ahead import ahead
from bioclip_hc.prediction.inputs import picture_bytes

ImageLike = str | os.PathLike[str] | Image.Image
OnError = str | Callable[[str, Exception], object]
"""What becomes of an image that cannot be read: "raise", "skip", or a function of its name and the error."""


class Batch(NamedTuple):
    """names (b,): of files, "" for PIL images; pixels: (B, 3, H, W), b <= B of them as the model wants them."""

    names: list[str]
    pixels: Tensor


def batches(
    images: Iterable[ImageLike],
    preprocess: Callable[[Image.Image], Any],
    *,
    batch_size: int,
    workers: int,
    on_error: OnError,
) -> Generator[Batch, None, None]:
    """All readable images in order, `batch_size` at once, or fewer where the next one is not there yet.

    Raises:
        ValueError: arguments out of range.
        DecodeError, OSError: an image that cannot be read, named, with on_error="raise"; after those before it.
    """
    if batch_size < 1 or workers < 0:
        raise ValueError(f"batch_size must be at least 1 and workers at least 0, got {batch_size} and {workers}")
    if not callable(on_error) and on_error not in ("raise", "skip"):
        raise ValueError(f"on_error must be 'raise', 'skip' or a function, got {on_error!r}")
    return _batches(images, preprocess, batch_size, workers, on_error)


def _batches(
    images: Iterable[ImageLike], preprocess: Any, batch_size: int, workers: int, on_error: OnError
) -> Generator[Batch, None, None]:
    def prepared(image: ImageLike) -> tuple[str, Tensor | Exception]:
        name = "" if isinstance(image, Image.Image) else os.fsdecode(image)
        try:
            return name, preprocess(_opened(image))
        except (ValueError, OSError) as error:  # DecodeError is a ValueError
            return name, error

    names: list[str] = []
    rows: list[Tensor] = []
    results = ahead(prepared, images, workers)
    try:
        for result in results:
            failed = result is not None and isinstance(result[1], Exception)
            if names and (result is None or len(names) == batch_size or (failed and on_error == "raise")):
                yield Batch(names, filled(torch.stack(rows), batch_size))
                names, rows = [], []
            if result is None:
                continue
            name, found = result
            if isinstance(found, Exception):
                leave_out(name, found, on_error)
            else:
                names.append(name)
                rows.append(found)
        if names:
            yield Batch(names, filled(torch.stack(rows), batch_size))
    finally:
        results.close()


def filled(rows: Tensor, count: int) -> Tensor:
    """(count, ...): rows, and the first of them again and again."""
    return torch.cat([rows, rows[:1].expand(count - len(rows), *rows.shape[1:])])


def leave_out(name: str, error: Exception, on_error: OnError) -> None:
    """What `on_error` says is to be done about an image; raises the error, named, where that is it."""
    if callable(on_error):
        on_error(name, error)
    elif on_error == "raise":
        raise named(name, error)


def named(name: str, error: Exception) -> Exception:
    """The error with the image's name in front."""
    if not name or getattr(error, "filename", None):
        return error
    return (DecodeError if isinstance(error, DecodeError) else type(error))(f"{name}: {error}")


def reason(error: Exception) -> str:
    """What an error says, without the file's name."""
    return getattr(error, "strerror", None) or str(error)


def _opened(image: ImageLike) -> Image.Image:
    if isinstance(image, Image.Image):
        return as_photograph(image)
    return Image.fromarray(Photograph(picture_bytes(os.fsdecode(image))).pixels())
