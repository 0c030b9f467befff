"""The bytes of one shard from elsewhere, one attempt at a time; `cache` tries again and keeps what came."""

from __future__ import annotations

import os
import re
from urllib.parse import unquote, urlsplit

from bioclip_hc.data.checksums import MAX_SUMS_BYTES, SUMS, parse_sum
from bioclip_hc.data.download_http import from_http, open_url
from bioclip_hc.data.download_stores import from_hub, from_pipe, from_store, store_of
from bioclip_hc.data.transfer import PIECE, Limits, Meter, Part, Permanent, Transient
from bioclip_hc.data.urls import FSSPEC, Address, beside


def download(address: Address, part: Part, limits: Limits, meter: Meter) -> None:
    """One attempt: after it `part` holds all bytes that the source says there are.

    Raises:
        Permanent, Transient, OSError, HTTPException: it does not; what came may be gone on with.
        Cancelled: see `Meter`.
    """
    how = {"http": from_http, "https": from_http, "hf": from_hub, "pipe": from_pipe}
    how.get(address.scheme, from_store)(address, part, limits, meter)


def sums_beside(address: Address, limits: Limits) -> dict[str, str]:
    """Name -> SHA-256 of the shards in the same remote folder, where it has a SHA256SUMS; one attempt.

    Raises:
        Permanent, Transient, OSError, HTTPException: whether it has one cannot be said.
    """
    if address.scheme in ("hf", "pipe"):  # the hub has its own sums, a command has no folder
        return {}
    if address.scheme in FSSPEC:
        store = store_of(address)
        try:
            text = store.cat_file(beside(address, SUMS), end=MAX_SUMS_BYTES + 1)
        except FileNotFoundError:
            return {}
        return _parse(text)
    try:
        with open_url(beside(address, SUMS), address, limits, {}) as answer:
            pieces, size = [], 0
            while size <= MAX_SUMS_BYTES and (piece := answer.read1(PIECE)):
                pieces.append(piece)
                size += len(piece)
    except Permanent:  # 404 and the like; what is wrong with the server itself shows at the shard
        return {}
    promised = answer.headers.get("Content-Length", "0")
    if not re.fullmatch("[0-9]{1,18}", promised):
        raise Transient(f"a {SUMS} of {promised[:50]!r} bytes")
    if size <= MAX_SUMS_BYTES and size < int(promised):
        raise Transient(f"{SUMS} beside it was cut off after {size} bytes")
    return _parse(b"".join(pieces))


def _parse(content: bytes) -> dict[str, str]:
    """Name -> SHA-256; other lines are passed over: where there is no such file a server may answer with a page.

    Raises:
        Permanent: there is more than may be read, so that a shard's line might be missing.
    """
    if len(content) > MAX_SUMS_BYTES:
        raise Permanent(
            f"the {SUMS} beside it is larger than {MAX_SUMS_BYTES:,} bytes; spread the shards over several folders"
        )
    return dict(filter(None, map(parse_sum, content.decode("utf-8", "replace").split("\n"))))


def known_sum(address: Address, part: Part, sums: dict[str, str]) -> str:
    """The SHA-256 that the whole shard must have, "" where nobody says."""
    if address.scheme == "hf":  # the hub names large files in its cache by it
        name = os.path.basename(os.path.realpath(part.path))
        return name if re.fullmatch(r"[0-9a-f]{64}", name) else ""
    return sums.get(unquote(urlsplit(address.target).path.rpartition("/")[2]), "")
