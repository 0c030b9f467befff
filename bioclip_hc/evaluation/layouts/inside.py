"""Files that data name: found below one folder, and nowhere else unless that is allowed.

Paths in a table are data, and may come from anybody: "../../etc/passwd" or a link to it is no photograph of the
benchmark. A file counts as inside if its path, all links followed, is below the folder, all links followed.
"""

from __future__ import annotations

import os
import re
import stat
from typing import NamedTuple

from bioclip_hc.data.captions import short
from bioclip_hc.data.sample import PathLike


class Entry(NamedTuple):
    """What lies in a folder: its name and path; "folder", "file", or "" with the reason why it is neither."""

    name: str
    path: str
    kind: str
    reason: str


class Inside:
    """A folder of files.

    Args:
        allow_outside: take absolute paths, "..", and links that lead out of it.
    """

    def __init__(self, folder: PathLike, allow_outside: bool = False) -> None:
        self.folder = os.fspath(folder)
        self._real = os.path.realpath(folder)
        self._allow = allow_outside
        self._known: dict[str, bool] = {}  # folder -> whether it is inside

    def file(self, name: str) -> str:
        """The path of a file that is there.

        Raises:
            ValueError: it is not, or not inside, or no regular file; the text is the reason.
        """
        if not name.strip():
            raise ValueError("no path")
        if unwritable(name):
            raise ValueError(
                f"a control character, or what is not UTF-8, in the path {short(name)}; rename the file"
            )
        if not self._allow and (os.path.isabs(name) or ".." in name.split("/")):
            raise ValueError(
                f"the path {short(name)} leads out of the folder; write it relative to that, or allow files outside"
            )
        path = os.path.join(self.folder, name)
        try:
            mode = os.lstat(path).st_mode
            if not self.holds(path, stat.S_ISLNK(mode)):
                raise ValueError(
                    f"a link leads {short(name)} out of the folder; copy the file, or allow files outside"
                )
            mode = os.stat(path).st_mode if stat.S_ISLNK(mode) else mode
        except (FileNotFoundError, NotADirectoryError):
            raise ValueError(f"no file {short(name)}") from None
        except OSError as error:
            raise ValueError(f"{short(name)} cannot be looked at: {error.strerror or error}") from None
        if not stat.S_ISREG(mode):  # a device or a pipe might never end
            raise ValueError(f"{short(name)} is no regular file")
        return path

    def listing(self, folder: str) -> list[Entry]:
        """What lies in a folder, by name; hidden files are passed over.

        Raises:
            OSError: it cannot be listed.
        """
        found = []
        with os.scandir(folder) as entries:  # tells folders from files without looking at each
            for entry in entries:
                if not entry.name.startswith("."):
                    kind, reason = self._kind(entry)
                    found.append(Entry(entry.name, entry.path, kind, reason))
        return sorted(found)

    def _kind(self, entry: os.DirEntry[str]) -> tuple[str, str]:
        if unwritable(entry.name):
            return "", f"a control character, or what is not UTF-8, in the name {short(entry.name)}; rename it"
        try:
            if entry.is_symlink() and not self.holds(entry.path, is_link=True):
                return "", f"a link leads {short(entry.name)} out of the folder; copy it, or allow files outside"
            kind = "folder" if entry.is_dir() else "file" if entry.is_file() else ""
        except OSError as error:  # links in a circle
            return "", f"{short(entry.name)} cannot be looked at: {error.strerror or error}"
        return kind, "" if kind else f"{short(entry.name)} is no regular file"

    def holds(self, path: str, is_link: bool) -> bool:
        """Whether a path is inside, or may be elsewhere."""
        if self._allow:
            return True
        if is_link:
            return self._below(os.path.realpath(path))
        folder = os.path.dirname(path)
        if folder not in self._known:
            self._known[folder] = self._below(os.path.realpath(folder))
        return self._known[folder]

    def _below(self, real: str) -> bool:
        return real == self._real or real.startswith(os.path.join(self._real, ""))


def unwritable(text: str) -> bool:
    """Whether a text holds control characters, or halves of letters, which no file in UTF-8 can hold."""
    return _UNWRITABLE.search(text) is not None


_UNWRITABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
