"""Small copies of photographs for a page that holds its pictures: decoded as for training and written anew."""

from __future__ import annotations

import base64
import io

from PIL import Image

QUALITIES = (82, 60, 35)  # of the JPEG, until it is small enough
LEAST_SIDE = 16  # pixels; a JPEG of that has 1 KB


def small_jpeg(image: Image.Image, side: int, most: int) -> bytes:
    """A JPEG of at most `most` bytes (or of a few pixels) whose longer side is at most `side` pixels."""
    small = image.copy()
    while True:
        small.thumbnail((side, side))
        for quality in QUALITIES:
            file = io.BytesIO()
            small.save(file, "JPEG", quality=quality, optimize=True)
            if file.tell() <= most or (quality == QUALITIES[-1] and side <= LEAST_SIDE):
                return file.getvalue()
        side = side * 3 // 4


def data_uri(jpeg: bytes) -> str:
    """What an `img` shows without a request."""
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
