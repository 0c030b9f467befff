"""The members of a tar, told from its headers alone; a damaged or hostile tar ends the list, and raises nothing."""

from __future__ import annotations

import io
import os
import re
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

MAX_HEADER_BYTES = 1 << 20  # what tarfile may read for one long name or pax header

# key, extension: webdataset's rule, but for hidden files in folders ("birds/._1.jpg"), which are no samples here
MEMBER_NAME = re.compile(r"((?:.*/|)[^./]+)[.]([^/]*)", re.DOTALL)


class Member(NamedTuple):
    """Where the contents of a member lie."""

    name: str
    offset: int
    size: int
    problem: str  # why it must not be read, "" if it may be


class _HeaderFile(io.FileIO):
    """The file as tarfile sees it: it reads headers only, so a long read is a forged header's."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header claims {size} bytes")
        return super().read(size) or b""


def scan(path: Path) -> tuple[list[Member], str]:
    """All members of a tar up to its end or its first damage, and a description of that damage ("" if whole)."""
    members: list[Member] = []
    end = 0
    with _HeaderFile(path) as file:
        total = os.fstat(file.fileno()).st_size
        try:
            with tarfile.open(fileobj=file, mode="r:", encoding="utf-8") as tar:
                while (info := tar.next()) is not None:
                    tar.members.clear()  # type: ignore[attr-defined]  # it would keep every header
                    if tar.offset <= end:
                        raise tarfile.ReadError("a header points backwards")
                    end = tar.offset
                    if not info.isdir():
                        problem = _member_problem(info, total)
                        members.append(Member(info.name, info.offset_data, info.size, problem))
        except OSError:  # a failing disk is not a damaged shard
            raise
        except Exception as error:  # on forged headers tarfile raises anything, from ValueError to RecursionError
            return members, f"damaged tar after byte {min(end, total)} of {total}: {error}"
        file.seek(end)
        # tarfile takes a broken header in mid-archive for the end; the true end is a block of zeros
        if file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
            return members, f"damaged tar after byte {end} of {total}: no end-of-archive mark, it may be cut off"
    return members, ""


def _member_problem(info: tarfile.TarInfo, total: int) -> str:
    if unsafe_name(info.name):
        return "unsafe name"
    if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or info.sparse is not None:
        return "not a regular file"
    if info.size < 0 or info.offset_data + info.size > total:
        return "cut off at the end of the shard"
    return ""


def unsafe_name(name: str) -> bool:
    """Whether a name leads out of the archive."""
    return name.startswith("/") or "\0" in name or "\\" in name or ".." in name.split("/")


def group(members: Iterable[Member], bad: list[tuple[str, str]]) -> Iterator[tuple[str, dict[str, Member]]]:
    """Runs of members with one key, as lower-case extension -> member; an extension met again opens a new sample.

    A member without a key is no sample's and is passed over; a link or an unsafe name among them goes to `bad`.
    """
    key, fields = "", dict[str, Member]()
    for member in members:
        match = MEMBER_NAME.fullmatch(member.name)
        if match is None:
            if member.problem:
                bad.append((member.name, member.problem))
            continue
        extension = match[2].lower()
        if match[1] != key or extension in fields:
            if fields:
                yield key, fields
            key, fields = match[1], {}
        fields[extension] = member
    if fields:
        yield key, fields
