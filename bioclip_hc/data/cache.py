"""Remote shards brought whole to this host's disk, each once, tried again where that can help, and trusted after.

    CACHE/KEY/NAME.tar       the shard, under its own name (for hf a link into the hub's cache); its index beside it
    CACHE/KEY/source.json    where it is from, its size and SHA-256
    CACHE/KEY/part           the beginning of one that is being fetched, gone on with where the source allows that
    CACHE/KEY/lock           held by the one process that fetches it

A whole shard is used as it is, without asking its source, so it works offline and a run that resumes sees what it
began with. It is checked by size and time of change, and by SHA-256 where the time differs.
"""

from __future__ import annotations

import errno
import http.client
import json
import os
import random
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import filelock

from bioclip_hc.data.checksums import SUMS, sha256_of
from bioclip_hc.data.download import download, known_sum, sums_beside
from bioclip_hc.data.fetched import ended, examine
from bioclip_hc.data.sample import PathLike
from bioclip_hc.data.transfer import FULL, Cancelled, Limits, Meter, Part, Permanent, Transient, no_room
from bioclip_hc.data.urls import Address, redacted

AT_ONCE = 4  # shards that one process fetches beside each other
EVERY = 30.0  # seconds between lines of progress
POLL = 0.2  # seconds between looks at a lock


def default_cache() -> Path:
    """$XDG_CACHE_HOME/bioclip_hc/shards, or the same under ~/.cache."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    return Path(home if os.path.isabs(home) else os.path.expanduser("~/.cache")) / "bioclip_hc" / "shards"


class Cache:
    """A folder of remote shards; several processes and hosts may use one at a time.

    Args:
        folder: by default `default_cache()`, and for hf:// the hub's own cache. A folder that is named holds both.
    """

    def __init__(self, folder: PathLike | None = None) -> None:
        self.folder = Path(folder).expanduser().absolute() if folder else default_cache()
        self._own_hub = bool(folder)

    def path(self, address: Address) -> Path:
        """Where a shard is, or will be."""
        return self.folder / address.key / address.name

    def holds(self, address: Address) -> bool:
        """Whether a shard is here, whole and not touched since."""
        path = self.path(address)
        with suppress(FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
            record, stat = _read_record(path), path.stat()
            return (stat.st_size, stat.st_mtime_ns) == (record["bytes"], record["mtime_ns"])
        return False

    def recognises(self, address: Address) -> bool:
        """Whether what is here is the shard all the same, by its SHA-256; if so it is held from now on."""
        path = self.path(address)
        with suppress(FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
            record, stat = _read_record(path), path.stat()
            if stat.st_size == record["bytes"] and sha256_of(path) == record["sha256"]:
                _write_record(path, {**record, "mtime_ns": stat.st_mtime_ns})
                return True
        return False

    def keep(self, address: Address, part: Part, digest: str) -> None:
        """Give a fetched shard its name."""
        path, stat = self.path(address), part.path.stat()
        facts = {"url": str(address), "bytes": stat.st_size, "sha256": digest, "mtime_ns": stat.st_mtime_ns}
        _write_record(path, facts)  # before the shard: alone it says nothing
        os.replace(part.path, path)
        part.drop()
        _sync(path.parent)

    def make(self, address: Address) -> Path:
        """The folder of a shard.

        Raises:
            Permanent: it cannot be made.
        """
        folder = self.path(address).parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if self._own_hub and address.scheme == "hf":
                (self.folder / "huggingface").mkdir(exist_ok=True)
        except OSError as error:
            raise Permanent(
                f"the cache {self.folder} cannot be written ({error.strerror}); name another (data.cache of a run, "
                "--cache of a command)"
            ) from None
        return folder


class Downloads:
    """Shards on their way into a cache, in threads of their own; a context, in which to `wait` for them.

    Leaving it ends what is not done. A shard that another process is fetching is waited for.

    Args:
        addresses: what to fetch; what the cache holds is left alone.
        cache: into which.
        limits: of one shard.
        at_once: threads.
        say: takes lines of progress: one at the start, one now and then, one at the end; none where all is here.
    """

    def __init__(
        self,
        addresses: Sequence[Address],
        cache: Cache,
        *,
        limits: Limits | None = None,
        at_once: int = AT_ONCE,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self._cache, self._limits, self._say = cache, limits or Limits(), say or (lambda line: None)
        self._meter = Meter()
        self._todo = deque(address for address in dict.fromkeys(addresses) if not cache.holds(address))
        self._count, self._done = len(self._todo), 0
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        self._sums: dict[str, dict[str, str]] = {}
        self._sums_lock = threading.Lock()
        names = (f"fetch-{i}" for i in range(min(at_once, self._count)))
        self._threads = [threading.Thread(target=self._work, name=name, daemon=True) for name in names]
        self._began = self._said = time.monotonic()

    def __enter__(self) -> Downloads:
        if self._count:
            self._say(f"fetching {self._count} remote shards, the first {self._todo[0]}, into {self._cache.folder}")
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._meter.stop.set()
        if kind is None or issubclass(kind, Exception):  # who presses Ctrl-C does not wait for a silent server
            end = time.monotonic() + self._limits.connect + self._limits.silence
            for thread in self._threads:
                thread.join(max(0.0, end - time.monotonic()))

    def wait(self, seconds: float = float("inf")) -> bool:
        """Until all shards are there, or so long; whether they are.

        Raises:
            OSError: one cannot be had; the text names it, what was tried, and the fix.
        """
        end = time.monotonic() + seconds
        with self._changed:
            while self._error is None and self._done < self._count:
                now = time.monotonic()
                if now >= end:
                    return False
                if now - self._said >= EVERY:
                    self._said = now
                    self._say(self._progress())
                self._changed.wait(min(end - now, EVERY))
            if self._error is not None:
                raise self._error
        if self._count:
            self._say(self._progress())
            self._count = self._done = 0  # said once
        return True

    def _progress(self) -> str:
        """How far they are, for people."""
        megabytes = self._meter.bytes / 1e6
        speed = megabytes / max(1e-3, time.monotonic() - self._began)
        return f"fetched {self._done} of {self._count} remote shards, {megabytes:,.1f} MB, {speed:,.1f} MB/s"

    def _work(self) -> None:
        """Fetch one after the other, as long as nothing goes wrong."""
        while True:
            try:
                address = self._todo.popleft()
            except IndexError:
                return
            try:
                self._fetch(address)
            except Cancelled:
                return
            except BaseException as error:
                with self._changed:
                    self._error = self._error or error
                    self._meter.stop.set()
                    self._changed.notify_all()
                return
            with self._changed:
                self._done += 1
                self._changed.notify_all()

    def _fetch(self, address: Address) -> None:
        """Bring one shard into the cache, unless it is there.

        Raises:
            OSError: see `wait`.
            Cancelled: see `Meter`.
        """
        began, tried, failed, most = time.monotonic(), 0, 0, 0
        limits, suspect = self._limits, ""
        reason: Exception
        try:
            folder = self._cache.make(address)
            with self._locked(folder / "lock"):
                if self._cache.holds(address) or self._cache.recognises(address):
                    return
                part = Part(folder)
                while True:
                    tried += 1
                    try:
                        digest = self._attempt(address, part, suspect)
                        self._cache.keep(address, part, digest)
                        return
                    except Suspect as error:
                        suspect, reason = error.seen, error
                    except (OSError, http.client.HTTPException) as error:
                        reason = self._judged(error, part)
                    finally:
                        if not part.mark():
                            part.drop()
                    if len(part) >= most + limits.progress:
                        most, failed = len(part), 0
                    failed += 1
                    if failed >= limits.attempts or time.monotonic() - began > limits.total:
                        raise Permanent(
                            f"not fetched in {tried} attempts and {time.monotonic() - began:.0f} s, the last: "
                            f"{reason}; try again later, or fetch it by other means and name the local file"
                        )
                    wait = limits.backoff * 2.0 ** (failed - 1) * random.uniform(0.5, 1)
                    self._meter.sleep(min(limits.longest, max(wait, getattr(reason, "wait", 0.0))))
        except Permanent as error:
            raise OSError(f"{address}: {error}") from None

    def _attempt(self, address: Address, part: Part, suspect: str) -> str:
        """Fetch what is missing of a shard and check it all; returns its SHA-256."""
        sums = self._sums_beside(address)
        download(address, part, self._limits, self._meter)
        digest, expected = sha256_of(part.path), known_sum(address, part, sums)
        if expected:
            if digest != expected:
                part.discard()
                raise Transient(f"its SHA-256 is {digest}, and should be {expected}")
            return digest
        if problem := examine(part.path):
            part.discard()
            if problem == suspect:
                raise Permanent(f"{problem}, at two attempts in a row; fix the address, or give the server a user")
            raise Suspect(problem, problem)
        if not ended(part.path) and digest != suspect:
            part.discard()
            raise Suspect(digest, "it does not end as a tar does, it may be cut off")
        return digest

    def _sums_beside(self, address: Address) -> dict[str, str]:
        """The checksums in the shard's remote folder, asked for once."""
        remote = address.target.partition("?")[0].rpartition("/")[0]
        with self._sums_lock:
            if remote not in self._sums:
                try:
                    self._sums[remote] = sums_beside(address, self._limits)
                except (OSError, http.client.HTTPException) as error:
                    if isinstance(error, Permanent):
                        raise
                    raise Transient(f"whether it has a {SUMS} beside it: {redacted(str(error))}") from None
            return self._sums[remote]

    def _judged(self, error: OSError | http.client.HTTPException, part: Part) -> Exception:
        """The error of an attempt as the reason to try again.

        Raises:
            Permanent: there is none.
        """
        if isinstance(error, Permanent):
            part.drop()
            raise error
        if isinstance(error, OSError) and (error.errno in FULL or error.filename == str(part.path)):
            size = len(part)
            part.drop()
            if error.errno in FULL:
                raise no_room(part.path.parent, f"more than {size / 1e6:,.1f} MB")
            raise Permanent(f"{part.path} cannot be written ({error.strerror}); mend that, or name another cache")
        if isinstance(error, Transient):
            return error
        said = redacted(str(error)).strip() or type(error).__name__
        if isinstance(error, http.client.IncompleteRead):
            said = "the connection ended in the middle"
        return Transient(said)

    def _locked(self, path: Path) -> filelock.AcquireReturnProxy:
        """The lock of a shard, held.

        Raises:
            Permanent: the file system of the cache has none.
        """
        lock = filelock.FileLock(path)
        while True:
            try:
                return lock.acquire(timeout=1, poll_interval=POLL)
            except filelock.Timeout:
                self._meter.sleep(0)
            except OSError as error:
                if error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.EINVAL):
                    raise Permanent(
                        f"the file system of {path} has no locks; name a cache on a local disk (data.cache of a "
                        "run, --cache of a command)"
                    ) from None
                raise Permanent(f"{path} cannot be locked: {error}; mend that, or name another cache") from None


class Suspect(Transient):
    """What may be as it should, or never will be: asked for once more, and believed if the same comes again.

    Attributes:
        seen: by which it is known again.
    """

    def __init__(self, seen: str, text: str) -> None:
        super().__init__(text)
        self.seen = seen


def say(line: str) -> None:
    """Progress for people, on stderr."""
    print(line, file=sys.stderr, flush=True)


def _read_record(path: Path) -> dict[str, Any]:
    """source.json of a shard; see `Cache.holds` for what it raises."""
    record: dict[str, Any] = json.loads(path.with_name("source.json").read_bytes())
    return record


def _write_record(path: Path, facts: dict[str, object]) -> None:
    """source.json of a shard, whole or not at all."""
    aside = path.with_name(f"source.json.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        with aside.open("w", encoding="utf-8") as file:
            json.dump(facts, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path.with_name("source.json"))
    finally:
        aside.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
