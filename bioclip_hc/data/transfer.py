"""What the ways to fetch a shard share: how long they wait, what they count, where they write, how they fail."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

PIECE = 1 << 20  # bytes read at a time from a connection
FULL = {errno.ENOSPC, errno.EDQUOT}


@dataclass(frozen=True)
class Limits:
    """How long a shard is waited for, in seconds and bytes."""

    connect: float = 15.0
    """Seconds until a server is reached."""
    silence: float = 30.0
    """Seconds without a byte, or at fewer than `slowest` bytes a second, after which an attempt ends."""
    slowest: float = 1024.0
    attempts: int = 6
    """In a row that bring less than `progress` bytes more."""
    progress: int = 1 << 20
    backoff: float = 1.0
    """Seconds before the second attempt; each further wait is twice as long, up to `longest`, less up to a half."""
    longest: float = 60.0
    total: float = 6 * 3600.0
    """Seconds of one shard after which nothing is tried again."""


class Permanent(OSError):
    """Another attempt would end in the same way; the text names the fix."""


class Transient(OSError):
    """Another attempt may go well.

    Attributes:
        wait: seconds that the server asks for.
    """

    def __init__(self, text: str, wait: float = 0.0) -> None:
        super().__init__(text)
        self.wait = wait


class Cancelled(Exception):
    """Nobody waits for this shard any more."""


class Meter:
    """Bytes as they come, from several threads; and whether they are still wanted."""

    def __init__(self) -> None:
        self.bytes = 0
        self.stop = threading.Event()
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        """Count bytes.

        Raises:
            Cancelled: nobody wants them.
        """
        with self._lock:
            self.bytes += count
        self.sleep(0)

    def sleep(self, seconds: float) -> None:
        """Wait.

        Raises:
            Cancelled: nobody waits any longer.
        """
        if self.stop.wait(seconds) if seconds else self.stop.is_set():
            raise Cancelled


class Part:
    """The beginning of a shard on disk, and the mark by which its source tells whether it is still the same."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "part"
        self._note = folder / "part.json"

    def __len__(self) -> int:
        return self.path.stat().st_size if self.path.is_file() else 0

    def mark(self) -> str:
        """The source's mark of what is here, "" where it cannot be gone on with."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            return str(json.loads(self._note.read_bytes())["mark"]) if len(self) else ""
        return ""

    def begin(self, mark: str) -> None:
        """Start anew with what the source marks so."""
        self.drop()
        if mark:
            self._note.write_text(json.dumps({"mark": mark}))

    def discard(self) -> None:
        """Remove what is wrong, from the hub's cache too."""
        if self.path.is_symlink():
            Path(os.path.realpath(self.path)).unlink(missing_ok=True)
        self.drop()

    def drop(self) -> None:
        """Begin anew next time."""
        self.path.unlink(missing_ok=True)
        self._note.unlink(missing_ok=True)

    @contextlib.contextmanager
    def appending(self) -> Iterator[IO[bytes]]:
        """The file, to be added to; on disk when left.

        Raises:
            OSError: it cannot be written; its `filename` is the path.
        """
        with open(self.path, "ab", buffering=0) as file:
            yield file
            with _blamed_on(self.path):
                os.fsync(file.fileno())

    def need(self, size: int) -> None:
        """Refuse what would not fit.

        Raises:
            Permanent: fewer than `size` bytes are free.
        """
        free = shutil.disk_usage(self.path.parent).free
        if size > free:
            raise no_room(self.path.parent, f"{size / 1e6:,.1f} MB more")


def no_room(folder: Path, needed: str) -> Permanent:
    """The error of a full disk."""
    free = shutil.disk_usage(folder if folder.is_dir() else folder.parent).free
    return Permanent(
        f"needs {needed}, and {folder.parent} has {free / 1e6:,.1f} MB free; make room, or name a cache on "
        "a larger disk (data.cache of a run, --cache of a command)"
    )


def write(file: IO[bytes], data: bytes) -> None:
    """All of it, or an error that names the file, which tells it from one of the other end."""
    left = memoryview(data)
    with _blamed_on(Path(file.name)):
        while left:
            left = left[file.write(left) :]


@contextlib.contextmanager
def _blamed_on(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise
