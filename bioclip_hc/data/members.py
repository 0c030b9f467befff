"""The members of a tar, told from its headers alone; damage and forgery are read around, and raise nothing."""

from __future__ import annotations

import io
import os
import re
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

MAX_HEADER_BYTES = 1 << 20  # what tarfile may read for one long name or pax header
MAX_WALKS = 200  # damaged places after which the rest of a shard is given up
MAX_IN_VAIN = 20  # headers in a row behind which there is no member, after which it is, too
MAX_TRIES = 1000  # words "ustar" in one search that are no header
CHUNK = 1 << 20  # bytes searched at a time

MAGIC, MAGIC_OFFSET = b"ustar", 257  # POSIX.1-1988; V7 headers have none, and are not found again
COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"PK\3\4": "zip",
}
CUT_OFF, NEGATIVE = "cut off at the end of the shard", "a negative size"

# key, extension: webdataset's rule, but for hidden files in folders ("birds/._1.jpg"), which are no samples here
MEMBER_NAME = re.compile(r"((?:.*/|)[^./]+)[.]([^/]*)", re.DOTALL)


class Member(NamedTuple):
    """Where the contents of a member lie."""

    name: str
    offset: int
    size: int
    problem: str  # why it must not be read, "" if it may be


class Damage(NamedTuple):
    """A place of a tar where no header is."""

    begin: int
    resumed: int | None  # where reading went on, None: nowhere
    total: int  # bytes of the tar
    problem: str

    @property
    def lost(self) -> int:
        """Bytes that were not read."""
        return max(0, (self.total if self.resumed is None else self.resumed) - self.begin)

    def __str__(self) -> str:
        further = "" if self.resumed is None else f"; read on at byte {self.resumed}"
        return f"damaged tar after byte {self.begin} of {self.total}: {self.problem}{further}"


class _HeaderFile(io.FileIO):
    """The file as tarfile sees it: it reads headers only, so a long read is a forged header's."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header claims {size} bytes")
        return super().read(size) or b""


def scan(path: Path) -> tuple[list[Member], list[Damage]]:
    """All members of a tar, and what is damaged in it (nothing if it is whole).

    Beyond damage, reading goes on at the next header: what a lost page or a forged size takes away are the samples
    that it lies in. A file that was cut off cannot tell how much it has lost.
    """
    members: list[Member] = []
    damage: list[Damage] = []
    with _HeaderFile(path) as file:
        total = os.fstat(file.fileno()).st_size
        begin = in_vain = 0
        for walk in range(MAX_WALKS):
            known = len(members)
            end, look, problem = _walk(file, begin, total, members)
            if not problem:
                if not _anything(file, end, total):
                    break
                problem = "more follows the end-of-archive mark"
            in_vain = 0 if len(members) > known else in_vain + 1
            give_up = walk == MAX_WALKS - 1 or in_vain > MAX_IN_VAIN
            further = None if give_up else _next_header(file, look, total)
            if len(members) > known or not damage:
                damage.append(Damage(min(end, total), further, total, problem))
            else:  # one place that took several tries
                damage[-1] = damage[-1]._replace(resumed=further)
            if further is None:
                break
            begin = further
    return members, damage


def _walk(file: _HeaderFile, begin: int, total: int, members: list[Member]) -> tuple[int, int, str]:
    """Append the members from `begin` on.

    Returns:
        Where they end, from where a further header may be looked for, and what is wrong there, "" at a mark of the
        end.
    """
    end, look = begin, begin + 1
    file.seek(begin)
    try:
        with tarfile.open(fileobj=file, mode="r:", encoding="utf-8") as tar:
            while (info := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # it would keep every header
                problem, look = _member_problem(info, total), info.offset_data
                if not info.isdir():
                    members.append(Member(info.name, info.offset_data, info.size, problem))
                if problem in (CUT_OFF, NEGATIVE):  # or the size is forged, and others lie behind its header
                    return (total if problem == CUT_OFF else look), look, f"{info.name!r}: {problem}"
                if tar.offset <= end:
                    raise tarfile.ReadError("a header points backwards")
                end = tar.offset
    except OSError:  # a failing disk is not a damaged shard
        raise
    except Exception as error:  # on forged headers tarfile raises anything, from ValueError to RecursionError
        return end, look, f"{_compression(file) if end == 0 else ''}{error}"
    # tarfile takes a broken header in mid-archive for the end; the true end is a block of zeros
    if os.pread(file.fileno(), tarfile.BLOCKSIZE, end) == tarfile.NUL * tarfile.BLOCKSIZE:
        return end, end, ""
    return end, look, "no end-of-archive mark, it may be cut off" if end >= total else "no header"


def _compression(file: _HeaderFile) -> str:
    """What is to be said of a file that is packed, "" of others."""
    head = os.pread(file.fileno(), 8, 0)
    name = next((name for magic, name in COMPRESSED.items() if head.startswith(magic)), "")
    return f"it is packed by {name}, unpack it first; " if name else ""


def _anything(file: _HeaderFile, begin: int, total: int) -> bool:
    """Whether anything but zeros lies from `begin` on."""
    places = range(begin, total, CHUNK)
    return any(os.pread(file.fileno(), CHUNK, place).strip(tarfile.NUL) for place in places)


def _next_header(file: _HeaderFile, begin: int, total: int) -> int | None:
    """Where the first header from `begin` on lies, at whatever alignment (bytes may be missing); None: nowhere."""
    tries = 0
    for place in range(begin, total, CHUNK):
        chunk = os.pread(
            file.fileno(), CHUNK + tarfile.BLOCKSIZE, place
        )  # headers that begin in it lie whole in it
        at = chunk.find(MAGIC, MAGIC_OFFSET)
        while at >= 0 and tries < MAX_TRIES:
            block = chunk[at - MAGIC_OFFSET : at - MAGIC_OFFSET + tarfile.BLOCKSIZE]
            if len(block) == tarfile.BLOCKSIZE and _is_header(block):
                return place + at - MAGIC_OFFSET
            tries += 1
            at = chunk.find(MAGIC, at + 1)
    return None


def _is_header(block: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.TarError, ValueError):
        return False
    return True


def _member_problem(info: tarfile.TarInfo, total: int) -> str:
    if unsafe_name(info.name):
        return "unsafe name"
    if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or info.sparse is not None:
        return "not a regular file"
    if info.size < 0:
        return NEGATIVE
    return CUT_OFF if info.offset_data + info.size > total else ""


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
