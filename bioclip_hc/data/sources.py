"""Which shards are meant: folders, globs, brace ranges and lists of them, here or elsewhere."""

from __future__ import annotations

import glob
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from braceexpand import braceexpand

from bioclip_hc.data import urls
from bioclip_hc.data.cache import Cache, Downloads
from bioclip_hc.data.sample import PathLike

MAX_RANGE = 1_000_000  # shards in one brace range, which is expanded in memory

Named = Path | urls.Address


def expand_shards(
    spec: PathLike | Sequence[PathLike],
    *,
    cache: PathLike | None = None,
    allow_pipe: bool = False,
    say: Callable[[str], None] | None = None,
) -> list[Path]:
    """The shards named by a folder, a file, a glob, a brace range ("shard-{000000..000010}.tar") or a list of them.

    Files and ranges may be elsewhere: https://, http://, hf://datasets/OWNER/NAME@COMMIT/PATH, s3:// and other
    object stores. Those are fetched into the cache first, and its files returned.

    Args:
        cache: folder of remote shards; by default `default_cache()`.
        allow_pipe: run "pipe:COMMAND" and take its output for a shard. Only for what the user himself typed.
        say: takes lines of progress.

    Returns:
        Each shard once, all of them files or broken links, so that naming them again means the same; sorted by
        file name, those of one name as given.

    Raises:
        FileNotFoundError: a named shard is missing, or a folder or glob holds none.
        ValueError: an empty list, unbalanced braces, a folder named like a shard, or an address that is not read.
        OSError: a remote shard cannot be had.
    """
    named = name_shards(spec, allow_pipe=allow_pipe)
    place = Cache(cache)
    with Downloads(remote(named), place, say=say) as downloads:
        downloads.wait()
    paths = on_disk(named, place)
    if say is not None:
        for path, other in _links(named, paths):
            say(f"{path} is the same file as {other}: read once, under that name")
    return paths


def _links(named: Sequence[Named], paths: Sequence[Path]) -> Iterator[tuple[Path, Path]]:
    """Local shards that are other names of those in `paths`, and these."""
    kept = {os.path.realpath(path): path for path in paths}
    for path in named:
        if isinstance(path, Path):
            other = kept[os.path.realpath(path)]
            if os.path.abspath(path) != os.path.abspath(other):
                yield path, other


def name_shards(spec: PathLike | Sequence[PathLike], *, allow_pipe: bool = False) -> list[Named]:
    """The same, nothing being fetched: local paths, and the addresses of the others.

    Raises:
        FileNotFoundError, ValueError: see `expand_shards`.
    """
    specs = [spec] if isinstance(spec, str | os.PathLike) else list(spec)
    if not specs:
        raise ValueError("no shards given; name a folder, a glob, a brace range or a list of shards")
    named = [shard for each in specs for shard in _expand_one(os.fspath(each), allow_pipe)]
    for shard in named:
        if isinstance(shard, Path) and shard.is_dir():
            raise ValueError(f"{shard} is not a file but a folder; rename it, or move it out")
    return named


def remote(named: Sequence[Named]) -> list[urls.Address]:
    """Those that must be fetched."""
    return [shard for shard in named if isinstance(shard, urls.Address)]


def on_disk(named: Sequence[Named], cache: Cache) -> list[Path]:
    """Paths of named shards, once they are fetched; see `expand_shards`.

    Their order does not depend on where the cache or a local folder lies, for it is part of what a run was given.
    """
    paths = [cache.path(shard) if isinstance(shard, urls.Address) else shard for shard in named]
    once: dict[str, Path] = {}
    for path in paths:
        once.setdefault(os.path.realpath(path), path)
    return sorted(once.values(), key=lambda path: path.name)


def _expand_one(spec: str, allow_pipe: bool) -> Iterator[Named]:
    if urls.is_remote(spec):
        for name in _braces(spec):
            yield urls.parse(name, allow_pipe=allow_pipe)
        return
    if not spec:
        raise ValueError("shards '': the path is empty; name a folder, a glob, a brace range or a file")
    if os.path.isdir(spec) and not spec.rstrip("/").endswith(".tar"):
        shards = sorted(Path(spec).glob("*.tar"))
        if not shards:
            raise FileNotFoundError(f"shards {spec!r}: no *.tar in this folder; build shards there or fix the path")
        yield from shards
        return
    for name in [spec] if os.path.isfile(spec) else _braces(spec):
        matches = [name] if os.path.isfile(name) else sorted(glob.glob(name))
        if not matches:
            raise FileNotFoundError(f"shards {spec!r}: there is no {name!r}; fix the path or the range")
        yield from map(Path, matches)


def _braces(spec: str) -> Iterator[str]:
    widths = [abs(int(last) - int(first)) + 1 for first, last in re.findall(r"\{(\d+)\.\.(\d+)", spec)]
    if math.prod(widths) > MAX_RANGE:
        raise ValueError(
            f"shards {urls.shown(spec)!r}: the range names more than {MAX_RANGE} shards; shorten it or use a glob"
        )
    try:
        yield from braceexpand(spec, escape=False)
    except ValueError:  # braceexpand's UnbalancedBracesError
        raise ValueError(
            f"shards {urls.shown(spec)!r}: unbalanced braces; a range reads {{000000..000010}}"
        ) from None
