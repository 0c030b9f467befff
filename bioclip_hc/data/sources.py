"""Which shards are meant: folders, globs, brace ranges and lists of them."""

from __future__ import annotations

import glob
import math
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from braceexpand import braceexpand

from bioclip_hc.data.sample import PathLike

MAX_RANGE = 1_000_000  # shards in one brace range, which is expanded in memory


def expand_shards(spec: PathLike | Sequence[PathLike]) -> list[Path]:
    """The shards named by a folder, a file, a glob, a brace range ("shard-{000000..000010}.tar") or a list of them.

    Returns:
        Sorted, each shard once.

    Raises:
        FileNotFoundError: a named shard is missing, or a folder or glob holds none.
        ValueError: an empty list, unbalanced braces, or a `pipe:` or URL (only local files are read).
    """
    specs = [spec] if isinstance(spec, str | os.PathLike) else list(spec)
    if not specs:
        raise ValueError("no shards given; name a folder, a glob, a brace range or a list of shards")
    found = {os.path.realpath(path): path for each in specs for path in _expand_one(os.fspath(each))}
    return sorted(found.values())


def _expand_one(spec: str) -> Iterator[Path]:
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:", spec):
        raise ValueError(f"shards {spec!r}: only local files are read, no pipes or URLs; download the shards first")
    if not spec:
        raise ValueError("shards '': the path is empty; name a folder, a glob, a brace range or a file")
    if os.path.isdir(spec):
        shards = sorted(Path(spec).glob("*.tar"))
        if not shards:
            raise FileNotFoundError(f"shards {spec!r}: no *.tar in this folder; build shards there or fix the path")
        yield from shards
        return
    widths = [abs(int(last) - int(first)) + 1 for first, last in re.findall(r"\{(\d+)\.\.(\d+)", spec)]
    if math.prod(widths) > MAX_RANGE:
        raise ValueError(f"shards {spec!r}: the range names more than {MAX_RANGE} shards; shorten it or use a glob")
    try:
        names = [spec] if os.path.isfile(spec) else braceexpand(spec, escape=False)
        for name in names:
            matches = [name] if os.path.isfile(name) else sorted(glob.glob(name))
            if not matches:
                raise FileNotFoundError(f"shards {spec!r}: there is no {name!r}; fix the path or the range")
            yield from map(Path, matches)
    except ValueError:  # braceexpand's UnbalancedBracesError
        raise ValueError(f"shards {spec!r}: unbalanced braces; a range reads {{000000..000010}}") from None
