"""Photographs at http(s) addresses, brought one file each into a folder, and the memory of those that are gone.

    FOLDER/ab/abcdef0123....jpg   a photograph; its name is the hash of its address, signatures left out
    FOLDER/failed.jsonl           {"key", "url", "reason", "lasting"} of each that could not be had; the last
                                  line of a key counts
    FOLDER/parts/KEY/             what is on its way
    FOLDER/lock                   held by the one process that fetches

A photograph appears under its name whole or not at all, after it has been decoded: a page that says "not found" is
no photograph. What the server refuses, or what is none, is not asked for again unless that is wanted; a server that
was silent, or sent half, is, the next time.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import shutil
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import NamedTuple
from urllib.parse import urlsplit

import filelock

from bioclip_hc.data.captions import short
from bioclip_hc.data.decode import DecodeError, Photograph
from bioclip_hc.data.download_http import from_http
from bioclip_hc.data.sample import IMAGE_EXTENSIONS, MAX_IMAGE_BYTES, PathLike
from bioclip_hc.data.transfer import FULL, Cancelled, Limits, Meter, Part, Permanent, Transient, no_room
from bioclip_hc.data.urls import Address, parse, redacted, shown

AT_ONCE = 8  # photographs that are fetched beside each other; from one server, what a browser would
EVERY = 30.0  # seconds between lines of progress
MAX_CHECKED_PIXELS = 50_000_000  # in all threads beside each other; of larger ones the header alone is read
MAX_RECORD = 1 << 14  # characters of a line of failed.jsonl

LIMITS = Limits(attempts=3, total=600.0)


class Failure(NamedTuple):
    """Why a photograph could not be had, and whether asking again would help as little."""

    reason: str
    lasting: bool


def picture_address(url: str) -> Address:
    """The address of a photograph.

    Raises:
        ValueError: not one of http or https, or no URL; the text is the reason.
    """
    url = url.strip()
    scheme = url.partition(":")[0].lower() if ":" in url else ""
    if scheme not in ("http", "https"):
        raise ValueError(f"the address {short(shown(url))} is not of http or https, and others are not fetched")
    try:
        address = parse(url)
    except ValueError as error:
        raise ValueError(str(error).removeprefix("shards ")) from None
    ending = urlsplit(address.target).path.rpartition(".")[2].lower()
    return replace(address, name=f"{address.key}.{ending if ending in IMAGE_EXTENSIONS else 'jpg'}")


class Pictures:
    """A folder of fetched photographs.

    Args:
        folder: it need not be there before something is fetched.
        limits: of one photograph.
    """

    def __init__(self, folder: PathLike, limits: Limits = LIMITS) -> None:
        self.folder = Path(folder)
        self._limits = limits
        self._failures = _read_failures(self.folder / "failed.jsonl")

    def file(self, address: Address) -> str:
        """Where a photograph is, or will be, in the folder."""
        return f"{address.key[:2]}/{address.name}"

    def holds(self, address: Address) -> bool:
        """Whether it is there."""
        return os.path.isfile(self.folder / self.file(address))

    def failure(self, address: Address) -> Failure | None:
        """Why it could not be had the last time, if that is known."""
        return self._failures.get(address.key)

    def fetch(
        self,
        addresses: Iterable[Address],
        *,
        again: bool = False,
        at_once: int = AT_ONCE,
        say: Callable[[str], object] = lambda line: None,
    ) -> None:
        """Bring what is missing; what cannot be had is remembered, see `failure`.

        Where another process is fetching into the folder, it is waited for first.

        Args:
            again: also ask for what was refused before.
            say: takes lines of progress.

        Raises:
            OSError: the folder cannot be written, or its disk is full.
        """
        missing = {address.key: address for address in addresses if not self.holds(address)}
        if not missing:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(self.folder / "lock")
        try:
            held = lock.acquire(timeout=0)
        except filelock.Timeout:
            say(f"another process fetches into {self.folder}, waiting for it")
            held = lock.acquire()
        with held:
            self._failures = _read_failures(self.folder / "failed.jsonl")  # what the other one found
            todo = [
                address for address in missing.values() if not self.holds(address) and self._worth(address, again)
            ]
            if todo:
                self._fetch_all(todo, at_once, say)

    def _worth(self, address: Address, again: bool) -> bool:
        failure = self.failure(address)
        return again or failure is None or not failure.lasting

    def _fetch_all(self, todo: list[Address], at_once: int, say: Callable[[str], object]) -> None:
        hosts = Counter(urlsplit(address.target).hostname for address in todo)
        named = ", ".join(f"{host} ({count:,})" for host, count in hosts.most_common(5))
        more = f" and {len(hosts) - 5} other hosts" if len(hosts) > 5 else ""
        say(f"fetching {len(todo):,} photographs from {named}{more} into {self.folder}")
        queue, done = deque(todo), SimpleQueue[tuple[Address, Failure | BaseException | None]]()
        stop = threading.Event()
        threads = [
            threading.Thread(target=self._work, args=(queue, done, stop), name=f"picture-{i}", daemon=True)
            for i in range(min(at_once, len(todo)))
        ]
        for thread in threads:
            thread.start()
        try:
            self._gather(len(todo), done, say)
        finally:
            stop.set()
            end = time.monotonic() + 2.0
            for thread in threads:  # one that waits for a silent server is not waited for
                thread.join(max(0.0, end - time.monotonic()))
            shutil.rmtree(self.folder / "parts", ignore_errors=True)

    def _gather(
        self,
        count: int,
        done: SimpleQueue[tuple[Address, Failure | BaseException | None]],
        say: Callable[[str], object],
    ) -> None:
        """Take down what became of each."""
        failed, told = 0, time.monotonic()
        with open(self.folder / "failed.jsonl", "a", encoding="utf-8") as file:
            for number in range(1, count + 1):
                while True:
                    if time.monotonic() - told >= EVERY:
                        told = time.monotonic()
                        say(f"fetched {number - 1 - failed:,} of {count:,} photographs, {failed:,} cannot be had")
                    try:
                        address, outcome = done.get(timeout=EVERY)
                        break
                    except Empty:
                        continue
                if isinstance(outcome, BaseException):
                    raise outcome
                if outcome is not None:
                    failed += 1
                    self._failures[address.key] = outcome
                    record = {"key": address.key, "url": str(address)[: MAX_RECORD // 4], **outcome._asdict()}
                    file.write(json.dumps(record) + "\n")
                    file.flush()
        say(f"fetched {count - failed:,} of {count:,} photographs, {failed:,} cannot be had")

    def _work(
        self,
        queue: deque[Address],
        done: SimpleQueue[tuple[Address, Failure | BaseException | None]],
        stop: threading.Event,
    ) -> None:
        """Fetch one after the other."""
        while not stop.is_set():
            try:
                address = queue.popleft()
            except IndexError:
                return
            try:
                done.put((address, self._fetch(address, stop)))
            except Cancelled:
                return
            except BaseException as error:
                done.put((address, error))
                return

    def _fetch(self, address: Address, stop: threading.Event) -> Failure | None:
        """Bring one; returns why it cannot be had.

        Raises:
            OSError: the folder cannot be written, or its disk is full.
            Cancelled: nobody waits for it any more.
        """
        home = self.folder / "parts" / address.key
        home.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(home).free < 2 * MAX_IMAGE_BYTES:
            raise OSError(str(no_room(home, "more room for photographs")))
        part, began, reason = Part(home), time.monotonic(), ""
        meter = _Bounded(part, stop)
        for attempt in range(self._limits.attempts):
            wait = 0.0
            try:
                from_http(address, part, self._limits, meter)
                self._keep(address, part)
                return None
            except Permanent as error:
                part.drop()
                return Failure(redacted(str(error)), lasting=True)
            except (OSError, http.client.HTTPException) as error:
                if isinstance(error, OSError) and (error.errno in FULL or error.filename is not None):
                    raise  # of the disk: what fails at the other end has no file name
                reason = redacted(str(error)).strip() or type(error).__name__
                wait = getattr(error, "wait", 0.0)
            if attempt + 1 == self._limits.attempts or time.monotonic() - began > self._limits.total:
                break
            pause = self._limits.backoff * 2.0**attempt * random.uniform(0.5, 1)
            meter.sleep(min(self._limits.longest, max(pause, wait)))
        part.drop()
        return Failure(reason, lasting=False)

    def _keep(self, address: Address, part: Part) -> None:
        """Give a photograph its name.

        Raises:
            Permanent, Transient: it is none; it is damaged.
        """
        try:
            photograph = Photograph(part.path.read_bytes() if len(part) else b"")
        except DecodeError as error:
            raise Permanent(f"what the server sends is no photograph: {error}") from None
        try:
            if photograph.size[0] * photograph.size[1] <= MAX_CHECKED_PIXELS:
                photograph.pixels()
        except DecodeError as error:
            part.drop()
            raise Transient(f"what the server sends is damaged: {error}") from None
        target = self.folder / self.file(address)
        target.parent.mkdir(exist_ok=True)
        os.replace(part.path, target)
        part.drop()
        part.path.parent.rmdir()


class _Bounded(Meter):
    """Ends what is too large for a photograph, and all at once when nobody waits any more."""

    def __init__(self, part: Part, stop: threading.Event) -> None:
        super().__init__()
        self.stop, self._part = stop, part

    def add(self, count: int) -> None:
        super().add(count)
        if len(self._part) > MAX_IMAGE_BYTES:
            raise Permanent(f"larger than {MAX_IMAGE_BYTES >> 20} MiB, the most for a photograph")


def _read_failures(path: Path) -> dict[str, Failure]:
    """Key -> failure; lines that are none, such as one that was cut off, are passed over."""
    failures: dict[str, Failure] = {}
    if not path.is_file():
        return failures
    with path.open(encoding="utf-8", errors="replace") as file:
        while line := file.readline(MAX_RECORD):
            try:
                record = json.loads(line)
                failures[str(record["key"])] = Failure(str(record["reason"]), bool(record["lasting"]))
            except (ValueError, KeyError, TypeError, RecursionError):
                continue
    return failures
