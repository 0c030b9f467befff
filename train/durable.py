"""Files that are whole or absent after any kill or loss of power: written aside, brought to disk, then renamed."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, cast

import torch


def sync(path: Path) -> None:
    """Bring a file, or a folder's entries, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    """mkdir -p whose new folders are on disk."""
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        sync(path.parent)


def replace_text(path: Path, text: str) -> None:
    """Put `text` in the place of what `path` held."""
    aside = path.with_name(f".{path.name}.new")
    with aside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)
    sync(path.parent)


def replace_json(path: Path, content: Any) -> None:
    """Put `content` as JSON in the place of what `path` held."""
    replace_text(path, json.dumps(content, indent=1) + "\n")


def write_tensors(content: Any, path: Path) -> str:
    """torch.save to disk; returns the SHA-256 of what was written, taken on the way.

    Raises:
        OSError: the disk is full, the file too large, ... (torch.save alone hides which)
    """
    with path.open("wb", buffering=0) as raw:
        file = _Hashed(raw)
        try:
            torch.save(content, cast(IO[bytes], file))
        except RuntimeError:
            if file.error is not None:
                raise file.error from None
            raise
        os.fsync(raw.fileno())
    return file.sha256.hexdigest()


class _Hashed:
    """A file that takes the checksum of what passes, and keeps the first error for torch.save to be asked."""

    def __init__(self, file: Any) -> None:
        self._file, self.sha256 = file, hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            left = memoryview(data).cast("B")
            size = len(left)
            self.sha256.update(left)
            while len(left):  # the kernel takes at most 2 GiB at a time, and less of what no longer fits
                left = left[self._file.write(left) :]
        except OSError as error:
            error.filename = self._file.name
            self.error = self.error or error
            raise
        return size

    def flush(self) -> None:
        """Nothing is held back."""


def sha256(path: Path) -> str:
    """The checksum of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def stored_bytes(content: Any, seen: set[int] | None = None) -> int:
    """Bytes of the tensors in nested containers as torch.save writes them: each storage whole, and once."""
    seen = set() if seen is None else seen
    if isinstance(content, torch.Tensor):
        storage = content.untyped_storage()
        if storage.data_ptr() in seen:
            return 0
        seen.add(storage.data_ptr())
        return storage.nbytes()
    if isinstance(content, dict):
        return sum(stored_bytes(value, seen) for value in content.values())
    if isinstance(content, (list, tuple)):
        return sum(stored_bytes(value, seen) for value in content)
    return 0


def need_free(folder: Path, size: int, what: str) -> None:
    """Refuse to begin what would not fit.

    Raises:
        OSError: fewer than `size` bytes are free on the folder's file system.
    """
    status = os.statvfs(folder)
    free = status.f_bavail * status.f_frsize
    if free < size:
        raise OSError(f"{what} needs about {size / 1e6:,.1f} MB, and {folder} has {free / 1e6:,.1f} MB free")


@contextmanager
def plain_name(folder: Path) -> Iterator[Path]:
    """A path to a folder that is no pattern: DeepSpeed globs for its files, and "runs/a[1]" would match nothing."""
    with tempfile.TemporaryDirectory(prefix="bioclip_hc-") as place:
        link = Path(place) / "folder"
        link.symlink_to(folder.absolute(), target_is_directory=True)
        yield link
        with suppress(OSError):
            link.unlink()
