"""Which photographs are meant: files, folders, patterns and lists, one by one and in a fixed order.

Held are the names of the largest folder, the folders seen, and eight bytes for each file that was named itself; not
the names of all files.
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
import stat
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import BinaryIO

from bioclip_hc.data.sample import MAX_IMAGE_BYTES

PICTURES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp")
OTHERS = (".tif", ".tiff", ".gif", ".bmp", ".heic", ".heif", ".avif")  # not read, but nobody may think they were
MAX_NAME = 1 << 16  # bytes of a name in a list; Linux allows a path 4096


def check_arguments(names: Iterable[str]) -> None:
    """Raise FileNotFoundError for the first folder without a picture, or pattern without a match."""
    for name in names:
        if os.path.isdir(name):
            if next(Files().under(name), None) is None:
                raise FileNotFoundError(f"{name} holds no pictures ({', '.join(PICTURES)})")
        elif not os.path.lexists(name) and is_pattern(name) and next(_matches(name), None) is None:
            raise FileNotFoundError(f"no file matches {name}")


def is_pattern(name: str) -> bool:
    """Whether a name has * ? or [, as a shell's patterns have."""
    return any(c in name for c in "*?[")


class Files:
    """Finds photographs and gives each once, however often it is named.

    A folder stands for the pictures below it, by their endings and in the order of their names, without hidden
    files and folders; links are followed, and a folder is visited once, whatever links lead to it. What cannot be
    listed is given as it is, so that reading it says why.
    """

    def __init__(self) -> None:
        self._folders: set[tuple[int, int]] = set()  # visited whole
        self._named: set[bytes] = set()

    def found(self, names: Iterable[str], patterns: bool = True) -> Iterator[str]:
        """The files that names mean.

        Args:
            names: of files and folders; "./-" is the file "-".
            patterns: whether a name that is no file may be a pattern: * ? [] within a name, ** for any folders.
        """
        for name in names:
            if os.path.isdir(name):
                yield from self.under(name)
            elif patterns and is_pattern(name) and not os.path.lexists(name):
                for path in _matches(name):
                    yield from self.under(path) if os.path.isdir(path) else self._once(path)
            else:
                yield from self._once(name)

    def under(self, folder: str) -> Iterator[str]:
        """The pictures below a folder that has not been visited yet."""
        waiting = [folder]
        while waiting:
            path = waiting.pop()
            if path.endswith(os.sep) or path == folder:
                try:
                    known = os.stat(path)
                    if (known.st_dev, known.st_ino) in self._folders:
                        continue
                    self._folders.add((known.st_dev, known.st_ino))
                    waiting.extend(reversed(_listed(path)))
                except OSError:
                    yield path
            elif not self._named or _digest(path) not in self._named:
                yield path

    def _once(self, name: str) -> Iterator[str]:
        digest = _digest(name)
        folder, base = os.path.split(name)
        stood_for = _is_picture(base) and not base.startswith(".") and self._visited(folder)
        if digest in self._named or (stood_for and os.path.isfile(name)):
            return
        self._named.add(digest)
        yield name

    def _visited(self, folder: str) -> bool:
        try:
            known = os.stat(folder or os.curdir)
        except (OSError, ValueError):
            return False
        return (known.st_dev, known.st_ino) in self._folders


def _listed(folder: str) -> list[str]:
    """What a folder holds of pictures and folders, in order; folders end in a slash."""
    with os.scandir(folder) as entries:
        visible = sorted((entry.name, _is_folder(entry)) for entry in entries if not entry.name.startswith("."))
    return [
        os.path.join(folder, name, "") if is_folder else os.path.join(folder, name)
        for name, is_folder in visible
        if is_folder or _is_picture(name)
    ]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _is_picture(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in (*PICTURES, *OTHERS)


def _digest(name: str) -> bytes:
    """Of a file's place: its folder, by whatever links that was named, and the name in it."""
    folder, base = os.path.split(name)
    try:
        known = os.stat(folder or os.curdir)
        place = f"{known.st_dev} {known.st_ino} {base}"
    except (OSError, ValueError):
        place = os.path.abspath(name)
    return hashlib.blake2b(os.fsencode(place), digest_size=8).digest()


# -- patterns -----------------------------------------------------------------------------------------------


def _matches(pattern: str) -> Iterator[str]:
    """Files and folders that match, in order. One that does not say how names end means pictures."""
    parts = pattern.split(os.sep)
    fixed = next(i for i, part in enumerate(parts) if is_pattern(part))
    base, parts = os.sep.join(parts[:fixed]), [part for part in parts[fixed:] if part]
    if fixed and not base:
        base = os.sep
    deep = "**" in parts
    any_ending = not is_pattern(os.path.splitext(parts[-1])[1] or "*")
    seen: set[tuple[int, int]] = set()
    waiting: list[tuple[str, ...]] = [()]
    while waiting:
        names = waiting.pop()
        path = os.path.join(base, *names) if names else base
        is_folder = os.path.isdir(path or os.curdir)
        if names and _fits(names, parts) and (is_folder or any_ending or _is_picture(names[-1])):
            yield path
            continue  # of a folder all that is below it
        if is_folder and (deep or len(names) < len(parts)):
            try:
                known = os.stat(path or os.curdir)
                if (known.st_dev, known.st_ino) not in seen:
                    seen.add((known.st_dev, known.st_ino))
                    waiting.extend((*names, name) for name in sorted(os.listdir(path or os.curdir), reverse=True))
            except OSError:
                continue


def _fits(names: Sequence[str], parts: Sequence[str]) -> bool:
    if not parts:
        return not names
    if parts[0] == "**":
        visible = next((i for i, name in enumerate(names) if name.startswith(".")), len(names))
        return any(_fits(names[i:], parts[1:]) for i in range(visible + 1))
    return (
        bool(names)
        and (parts[0].startswith(".") or not names[0].startswith("."))
        and fnmatch.fnmatchcase(names[0], parts[0])
        and _fits(names[1:], parts[1:])
    )


# -- lists --------------------------------------------------------------------------------------------------


def listed_names(source: str, null: bool = False) -> Iterator[str]:
    """The names in a file, "-" for standard input, one by one as they come.

    Args:
        null: names end with a zero byte (`find -print0`) instead of a line's end.

    Raises:
        ValueError: no list of names.
    """
    with nullcontext(sys.stdin.buffer) if source == "-" else Path(source).open("rb") as file:
        for data in _until_zero(file) if null else _lines(file, source):
            if data:
                yield os.fsdecode(data)


def _lines(file: BinaryIO, source: str) -> Iterator[bytes]:
    first = True
    while line := file.readline(MAX_NAME):
        if len(line) == MAX_NAME or b"\0" in line:
            raise ValueError(f"{source} is no list of names: a line with a zero byte, or longer than a name can be")
        yield line.removeprefix(b"\xef\xbb\xbf" if first else b"").rstrip(b"\r\n")
        first = False


def _until_zero(file: BinaryIO) -> Iterator[bytes]:
    held = b""
    while block := os.read(file.fileno(), MAX_NAME):
        *whole, held = (held + block).split(b"\0")
        yield from whole
        if len(held) >= MAX_NAME:
            raise ValueError("no list of names: one is longer than a name can be; do they end with a zero byte?")
    yield held


# -- bytes --------------------------------------------------------------------------------------------------


def picture_bytes(path: str) -> bytes:
    """The content of a photograph's file.

    Raises:
        OSError: missing, no regular file (a pipe might never end), unreadable, or larger than a photograph may be.
        ValueError: a name that no file can have.
    """
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        os.scandir(path).close()  # raises where that is why it was not looked into
        raise IsADirectoryError("a folder")
    if not stat.S_ISREG(mode):
        raise OSError("no regular file")
    with open(path, "rb") as file:
        data = file.read(MAX_IMAGE_BYTES + 1)
    if len(data) > MAX_IMAGE_BYTES:
        raise OSError(f"larger than {MAX_IMAGE_BYTES >> 20} MiB, the most for a photograph")
    return data
