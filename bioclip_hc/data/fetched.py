"""Whether what was fetched can be a shard, where no checksum says so."""

from __future__ import annotations

import tarfile
from pathlib import Path

from bioclip_hc.data.urls import redacted

TAR_BLOCK = tarfile.BLOCKSIZE


def examine(path: Path) -> str:
    """Why this cannot be a shard, "" if it can."""
    with open(path, "rb") as file:
        head = file.read(TAR_BLOCK)
    if not head:
        return "it is empty"
    if head.lstrip()[:1] == b"<":
        return f"it is a page, not a tar: {redacted(head.decode('utf-8', 'replace'))[:80].strip()!r}"
    if head == tarfile.NUL * TAR_BLOCK:  # a tar of no members
        return ""
    if head[:2] == b"\x1f\x8b":
        return "it is compressed by gzip; shards are plain tars"
    try:
        tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        return f"it is no tar ({error})"
    return ""


def ended(path: Path) -> bool:
    """Whether it ends as a tar does, by a block of zeros."""
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - TAR_BLOCK))
        return file.read() == tarfile.NUL * TAR_BLOCK
