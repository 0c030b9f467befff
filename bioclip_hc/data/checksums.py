"""SHA-256 of files, and the form in which `sha256sum` keeps those of a folder."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

SUMS = "SHA256SUMS"
MAX_SUMS_BYTES = 128 << 20  # a line of 86 bytes for each of a million shards, and half as many again


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def parse_sum(line: str) -> tuple[str, str] | None:
    """Name and hexadecimal SHA-256 of a line as `sha256sum` writes it; None of any other."""
    match = re.fullmatch(r"(\\?)([0-9A-Fa-f]{64}) [ *]([^\0]+)", line.rstrip("\r"))
    if match is None:
        return None
    escaped, digest, name = match.groups()
    if escaped:
        name = re.sub(r"\\([\\n])", lambda m: "\n" if m[1] == "n" else "\\", name)
    return name.removeprefix("./"), digest.lower()


def read_sums(folder: Path) -> dict[str, str] | None:
    """File name -> SHA-256 as the folder's SHA256SUMS has it; None where there is no such file.

    Raises:
        ValueError: a line that is not a checksum and a name.
    """
    path = folder / SUMS
    if not path.is_file():
        return None
    if path.stat().st_size > MAX_SUMS_BYTES:
        raise ValueError(f"{path} of {path.stat().st_size} bytes is larger than {MAX_SUMS_BYTES}")
    sums: dict[str, str] = {}
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        text = os.fsdecode(line).rstrip("\r")
        if text:
            found = parse_sum(text)
            if found is None:
                raise ValueError(f"{path}, line {number}: not a SHA-256, two blanks and a name: {text[:100]!r}")
            sums[found[0]] = found[1]
    return sums


def write_sums(folder: Path, sums: dict[str, str]) -> None:
    """Write a folder's SHA256SUMS, whole or not at all."""
    lines = []
    for name, digest in sorted(sums.items()):
        escaped = name.replace("\\", "\\\\").replace("\n", "\\n")  # as coreutils does
        lines.append(f"{chr(92) if escaped != name else ''}{digest}  {escaped}\n")
    aside = folder / f"{SUMS}.{os.getpid()}.tmp"
    try:
        aside.write_bytes(os.fsencode("".join(lines)))
        os.replace(aside, folder / SUMS)
    except OSError as error:
        raise OSError(f"{folder / SUMS} cannot be written ({error.strerror}); make the folder writable") from None
    finally:
        aside.unlink(missing_ok=True)
