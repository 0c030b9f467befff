"""The bytes of one shard from elsewhere, one attempt at a time; `cache` tries again and keeps what came.

http and https go through the standard library's urllib. To go on in the middle of a body after a cut, no client's
own retry is of use, so that loop is ours with any of them; and urllib has what else is wanted: timeouts, proxies,
certificates, and an opener that knows no scheme but these two. (fsspec's http needs aiohttp and reads by ranges
only; huggingface_hub's client is another one in each of its major versions.) hf is read by huggingface_hub, with
its own cache and tokens, object stores by fsspec with the store's package, `pipe:` by the shell.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import functools
import http.client
import importlib.util
import io
import json
import netrc
import os
import re
import select
import shutil
import signal
import ssl
import subprocess
import tarfile
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote, urljoin, urlsplit

from bioclip_hc import __version__
from bioclip_hc.data.urls import FSSPEC, Address, beside, redacted

PIECE = 1 << 20  # bytes read at a time from a connection
STORE_PIECE = 1 << 25  # from an object store, where each is a request
MAX_SUMS_BYTES = 1 << 24
SUMS = "SHA256SUMS"
TAR_BLOCK = tarfile.BLOCKSIZE
FULL = {errno.ENOSPC, errno.EDQUOT}


@dataclass(frozen=True)
class Limits:
    """How long a shard is waited for, in seconds and bytes."""

    connect: float = 15.0
    """Seconds until a server is reached."""
    silence: float = 30.0
    """Seconds without a byte, or at fewer than `slowest` bytes a second, after which an attempt ends."""
    slowest: float = 1024.0
    attempts: int = 6
    """In a row that bring less than `progress` bytes more."""
    progress: int = 1 << 20
    backoff: float = 1.0
    """Seconds before the second attempt; each further wait is twice as long, up to `longest`, less up to a half."""
    longest: float = 60.0
    total: float = 6 * 3600.0
    """Seconds of one shard after which nothing is tried again."""


class Permanent(OSError):
    """Another attempt would end in the same way; the text names the fix."""


class Transient(OSError):
    """Another attempt may go well.

    Attributes:
        wait: seconds that the server asks for.
    """

    def __init__(self, text: str, wait: float = 0.0) -> None:
        super().__init__(text)
        self.wait = wait


class Cancelled(Exception):
    """Nobody waits for this shard any more."""


class Meter:
    """Bytes as they come, from several threads; and whether they are still wanted."""

    def __init__(self) -> None:
        self.bytes = 0
        self.stop = threading.Event()
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        """Count bytes.

        Raises:
            Cancelled: nobody wants them.
        """
        with self._lock:
            self.bytes += count
        self.sleep(0)

    def sleep(self, seconds: float) -> None:
        """Wait.

        Raises:
            Cancelled: nobody waits any longer.
        """
        if self.stop.wait(seconds) if seconds else self.stop.is_set():
            raise Cancelled


class Part:
    """The beginning of a shard on disk, and the mark by which its source tells whether it is still the same."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "part"
        self._note = folder / "part.json"

    def __len__(self) -> int:
        return self.path.stat().st_size if self.path.is_file() else 0

    def mark(self) -> str:
        """The source's mark of what is here, "" where it cannot be gone on with."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            return str(json.loads(self._note.read_bytes())["mark"]) if len(self) else ""
        return ""

    def begin(self, mark: str) -> None:
        """Start anew with what the source marks so."""
        self.drop()
        if mark:
            self._note.write_text(json.dumps({"mark": mark}))

    def discard(self) -> None:
        """Remove what is wrong, from the hub's cache too."""
        if self.path.is_symlink():
            Path(os.path.realpath(self.path)).unlink(missing_ok=True)
        self.drop()

    def drop(self) -> None:
        """Begin anew next time."""
        self.path.unlink(missing_ok=True)
        self._note.unlink(missing_ok=True)

    @contextlib.contextmanager
    def appending(self) -> Iterator[IO[bytes]]:
        """The file, to be added to; on disk when left.

        Raises:
            OSError: it cannot be written; its `filename` is the path.
        """
        with open(self.path, "ab", buffering=0) as file:
            yield file
            with _blamed_on(self.path):
                os.fsync(file.fileno())

    def need(self, size: int) -> None:
        """Refuse what would not fit.

        Raises:
            Permanent: fewer than `size` bytes are free.
        """
        free = shutil.disk_usage(self.path.parent).free
        if size > free:
            raise no_room(self.path.parent, f"{size / 1e6:,.1f} MB more")


def no_room(folder: Path, needed: str) -> Permanent:
    """The error of a full disk."""
    free = shutil.disk_usage(folder if folder.is_dir() else folder.parent).free
    return Permanent(
        f"needs {needed}, and {folder.parent} has {free / 1e6:,.1f} MB free; make room, or name a cache on "
        "a larger disk (data.cache of a run, --cache of a command)"
    )


def download(address: Address, part: Part, limits: Limits, meter: Meter) -> None:
    """One attempt: after it `part` holds all bytes that the source says there are.

    Raises:
        Permanent, Transient, OSError, HTTPException: it does not; what came may be gone on with.
        Cancelled: see `Meter`.
    """
    how = {"http": _from_http, "https": _from_http, "hf": _from_hub, "pipe": _from_pipe}
    how.get(address.scheme, _from_store)(address, part, limits, meter)


def read_sums(address: Address, limits: Limits) -> dict[str, str]:
    """Name -> SHA-256 of the shards in the same remote folder, where it has a SHA256SUMS; one attempt.

    Raises:
        Permanent, Transient, OSError, HTTPException: whether it has one cannot be said.
    """
    if address.scheme in ("hf", "pipe"):  # the hub has its own sums, a command has no folder
        return {}
    if address.scheme in FSSPEC:
        store = _store(address)
        try:
            text = store.cat_file(beside(address, SUMS), end=MAX_SUMS_BYTES)
        except FileNotFoundError:
            return {}
        return parse_sums(text)
    try:
        with _open(beside(address, SUMS), address, limits, {}) as answer:
            pieces, size = [], 0
            while size < MAX_SUMS_BYTES and (piece := answer.read1(PIECE)):
                pieces.append(piece)
                size += len(piece)
    except Permanent:  # 404 and the like; what is wrong with the server itself shows at the shard
        return {}
    if size < min(MAX_SUMS_BYTES, int(answer.headers.get("Content-Length", 0))):
        raise Transient(f"{SUMS} beside it was cut off after {size} bytes")
    return parse_sums(b"".join(pieces))


def parse_sums(text: bytes) -> dict[str, str]:
    """Name -> hexadecimal SHA-256 of a file as `sha256sum` writes it; other lines are passed over."""
    lines = re.findall(
        r"^([0-9a-fA-F]{64}) [ *](?:\./)?([^\r\n]+)\r?$", text.decode("utf-8", "replace"), re.MULTILINE
    )
    return {name: digest.lower() for digest, name in lines}


def known_sum(address: Address, part: Part, sums: dict[str, str]) -> str:
    """The SHA-256 that the whole shard must have, "" where nobody says."""
    if address.scheme == "hf":  # the hub names large files in its cache by it
        name = os.path.basename(os.path.realpath(part.path))
        return name if re.fullmatch(r"[0-9a-f]{64}", name) else ""
    return sums.get(unquote(urlsplit(address.target).path.rpartition("/")[2]), "")


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


def write(file: IO[bytes], data: bytes) -> None:
    """All of it, or an error that names the file, which tells it from one of the other end."""
    left = memoryview(data)
    with _blamed_on(Path(file.name)):
        while left:
            left = left[file.write(left) :]


@contextlib.contextmanager
def _blamed_on(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise


# -- http and https ----------------------------------------------------------------------------------------


class Stale(Transient):
    """What is here is no beginning of what is there."""


def _from_http(address: Address, part: Part, limits: Limits, meter: Meter) -> None:
    start, mark = len(part), part.mark()
    asked = {"Range": f"bytes={start}-", "If-Range": mark} if mark else {}
    try:
        answer = _open(address.target, address, limits, asked)
    except Stale:
        part.drop()
        raise
    with answer:
        coding = answer.headers.get("Content-Encoding", "identity")
        if coding != "identity":
            raise Permanent(
                f"the server sends it encoded by {coding}, although asked not to; have it served as it is"
            )
        if answer.status != 206:
            start, total = 0, answer.length
            part.begin(_mark(answer))
        else:
            total = _total(answer.headers.get("Content-Range", ""), start)
            if total is None or _mark(answer) not in ("", mark):
                part.drop()
                was = (
                    "other bytes than were asked for"
                    if total is None
                    else "what has changed since the last attempt"
                )
                raise Transient(f"the server sends {was}")
        if total is not None:
            part.need(total - start)
        with part.appending() as file:
            got = start
            while piece := answer.read1(PIECE if total is None else min(PIECE, total - got)):
                write(file, piece)
                got += len(piece)
                meter.add(len(piece))
    if total is not None and got < total:
        raise Transient(f"the connection ended after {got:,} of {total:,} bytes")


def _mark(answer: http.client.HTTPResponse) -> str:
    """What If-Range takes: a strong ETag, or the date of the last change."""
    tag = str(answer.headers.get("ETag", ""))
    return tag if tag.startswith('"') else str(answer.headers.get("Last-Modified", "")) if not tag else ""


def _total(span: str, start: int) -> int | None:
    """How many bytes the whole shard has, if this is the rest of it from `start` on."""
    match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", span.strip())
    return int(match[3]) if match and int(match[1]) == start and int(match[2]) + 1 == int(match[3]) else None


def _open(url: str, address: Address, limits: Limits, headers: dict[str, str]) -> http.client.HTTPResponse:
    """A server's answer that has a body to be used.

    Raises:
        Permanent, Transient, OSError, HTTPException: there is none.
    """
    request = urllib.request.Request(
        url, headers={"Accept-Encoding": "identity", "User-Agent": f"bioclip_hc/{__version__}", **headers}
    )
    if user := address.user or _user_of(address):  # not sent on to where a redirect leads
        request.add_unredirected_header("Authorization", "Basic " + base64.b64encode(user.encode()).decode())
    try:
        answer: http.client.HTTPResponse = _opener(limits).open(request)
        return answer
    except urllib.error.HTTPError as error:
        with error:
            raise _refusal(error) from None
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise Permanent(f"its certificate is not valid: {error.reason.verify_message}") from None
        if isinstance(error.reason, TimeoutError):
            raise Transient(f"the server is not reached in {limits.connect:g} s") from None
        raise error.reason if isinstance(error.reason, OSError) else Transient(str(error.reason)) from None
    except http.client.InvalidURL as error:
        raise Permanent(f"not a URL: {redacted(str(error))}") from None


def _user_of(address: Address) -> str:
    """The "name:password" of ~/.netrc for this host, for https only."""
    host = urlsplit(address.target).hostname
    with contextlib.suppress(OSError, netrc.NetrcParseError):
        found = netrc.netrc().authenticators(host or "") if address.scheme == "https" else None
        return f"{found[0]}:{found[2]}" if found else ""
    return ""


def _refusal(error: urllib.error.HTTPError) -> OSError:
    """What a status that is no success means."""
    says = f"the server answers {error.code} {error.reason}"
    if error.code in (401, 403):
        return Permanent(f"{says}; give it a user in ~/.netrc, or a fresh signature in the URL")
    if error.code == 416:
        return Stale(f"{says}: what came before is longer than the shard is now")
    if error.code in (408, 425, 429) or (error.code >= 500 and error.code not in (501, 505)):
        return Transient(says, _retry_after(error.headers.get("Retry-After", "")))
    if 300 <= error.code < 400:
        return Permanent(f"the server redirects in a circle, or to nowhere ({error.code}); fix the address")
    return Permanent(f"{says}; fix the address")


def _retry_after(text: str) -> float:
    """Seconds; the header holds them or a date."""
    if text.strip().isdigit():
        return float(text)
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    return 0.0


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Followed from http to http or https, and from https to https."""

    def http_error_302(self, req: Any, fp: Any, code: int, msg: str, headers: Any) -> Any:
        old, new = req.type, urlsplit(urljoin(req.full_url, headers.get("location", ""))).scheme.lower()
        if new not in ("http", "https") or (old == "https" and new != "https"):
            fp.close()
            raise Permanent(f"the server redirects from {old}: to {new}:, which is not followed; fix the address")
        return super().http_error_302(req, fp, code, msg, headers)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


@functools.cache
def _opener(limits: Limits) -> urllib.request.OpenerDirector:
    """An opener for http and https alone."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])

    class Plain(urllib.request.HTTPHandler):
        def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(functools.partial(_Connection, limits=limits), req)

    class Secure(urllib.request.HTTPSHandler):
        def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
            connection = functools.partial(_SecureConnection, limits=limits, context=context)
            return self.do_open(connection, req)

    opener = urllib.request.OpenerDirector()  # build_opener would add file:, ftp: and data:
    for handler in (urllib.request.ProxyHandler, _Redirects, urllib.request.HTTPErrorProcessor, Plain, Secure):
        opener.add_handler(handler())
    opener.add_handler(urllib.request.HTTPDefaultErrorHandler())
    return opener


class _Timed(http.client.HTTPConnection):
    """One time to connect, another between bytes."""

    def __init__(self, host: str, *, limits: Limits, **options: Any) -> None:
        super().__init__(host, **{**options, "timeout": limits.connect})
        self._limits = limits
        self.response_class = functools.partial(_Response, limits=limits)  # type: ignore[assignment]

    def connect(self) -> None:
        super().connect()
        self.sock.settimeout(self._limits.silence)


class _Connection(_Timed):
    """http."""


class _SecureConnection(_Timed, http.client.HTTPSConnection):
    """https."""


class _Response(http.client.HTTPResponse):
    """An answer of which headers and body alike must come at some speed."""

    def __init__(self, sock: Any, *arguments: Any, limits: Limits, **options: Any) -> None:
        super().__init__(sock, *arguments, **options)
        self.fp = io.BufferedReader(_Paced(self.fp.detach(), limits))


class _Paced(io.RawIOBase):
    """A connection's bytes; a source that sends one now and then is as good as silent."""

    def __init__(self, raw: io.RawIOBase, limits: Limits) -> None:
        self._raw, self._limits = raw, limits
        self._since, self._bytes = time.monotonic(), 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        try:
            count = self._raw.readinto(buffer)
        except TimeoutError:
            raise Transient(f"the server was silent for {self._limits.silence:g} s") from None
        self._bytes += count or 0
        span = time.monotonic() - self._since
        if span > self._limits.silence:
            if self._bytes < self._limits.slowest * span:
                raise Transient(f"the server sent {self._bytes:,} bytes in {span:.0f} s")
            self._since, self._bytes = time.monotonic(), 0
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


# -- the hub, object stores, commands ----------------------------------------------------------------------


def _from_hub(address: Address, part: Part, limits: Limits, meter: Meter) -> None:
    """A link to the file in the hub's own cache: the user's, or under the cache that was named."""
    import huggingface_hub
    from huggingface_hub import errors
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()  # one for each shard, beside our one line
    repository, _, rest = address.target.partition("@")
    commit, _, path = rest.partition("/")
    part.path.unlink(missing_ok=True)
    own = part.path.parent.parent / "huggingface"
    try:
        found = huggingface_hub.hf_hub_download(
            repository,
            path,
            repo_type="dataset",
            revision=commit,
            cache_dir=own if own.is_dir() else None,
            library_name="bioclip_hc",
            library_version=__version__,
            etag_timeout=limits.connect,
        )
    except errors.GatedRepoError:
        raise Permanent(
            "the dataset asks for your consent; give it on its page, and log in by `hf auth login`"
        ) from None
    except errors.LocalEntryNotFoundError as error:  # the hub is not reached
        raise Transient(redacted(str(error).strip().splitlines()[0])) from None
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.EntryNotFoundError) as error:
        raise Permanent(
            f"the hub has no such dataset, commit or file, or does not show it to you ({type(error).__name__}); "
            "fix the address, or log in by `hf auth login`"
        ) from None
    except OSError as error:  # the client's own errors among them
        if error.errno in FULL:
            raise Permanent(
                f"the disk of the hub's cache is full ({error}); make room, set HF_HOME, or name a cache on a "
                "larger disk (data.cache of a run, --cache of a command)"
            ) from None
        raise Transient(
            redacted(str(error).strip().splitlines()[0] if str(error).strip() else repr(error))
        ) from None
    except Exception as error:  # of whichever http client this version of the hub has
        raise Transient(f"{type(error).__name__}: {redacted(str(error))}") from None
    part.path.symlink_to(os.path.realpath(found))
    meter.add(len(part))


def _store(address: Address) -> Any:
    """fsspec's file system of an object store.

    Raises:
        Permanent: the package for it is not installed.
    """
    package = FSSPEC[address.scheme]
    import fsspec

    try:
        return fsspec.filesystem(address.scheme)
    except ImportError:
        hint = "" if importlib.util.find_spec(package) else f": pip install {package}"
        raise Permanent(f"{address.scheme}:// needs the package {package}{hint}") from None


def _from_store(address: Address, part: Part, limits: Limits, meter: Meter) -> None:
    store = _store(address)
    try:
        facts = store.info(address.target)
        total, mark = int(facts["size"]), str(store.ukey(address.target))
        if part.mark() != mark or len(part) > total:
            part.begin(mark)
        part.need(total - len(part))
        with part.appending() as file:
            while (start := len(part)) < total:
                piece = store.cat_file(address.target, start=start, end=min(start + STORE_PIECE, total))
                if not piece:
                    raise Transient(f"the store gave nothing at byte {start:,} of {total:,}")
                write(file, piece)
                meter.add(len(piece))
            if str(store.ukey(address.target)) != mark:
                raise Transient("it changed at the other end while it was read")
    except FileNotFoundError:
        raise Permanent("the store has no such object; fix the address") from None
    except PermissionError as error:
        if error.filename == str(part.path):
            raise
        raise Permanent(f"the store does not show it to you ({redacted(str(error))}); give credentials") from None
    except (OSError, Cancelled):
        raise
    except Exception as error:  # whatever the store's package raises
        raise Transient(f"{type(error).__name__}: {redacted(str(error))}") from None


def _from_pipe(address: Address, part: Part, limits: Limits, meter: Meter) -> None:
    """What a command writes, as /bin/sh runs it; all of it, or nothing."""
    part.begin("")
    with tempfile.TemporaryFile() as complaints:
        process = subprocess.Popen(  # the one place where a shell runs; `urls.parse` guards it
            address.target,
            shell=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=complaints,
            start_new_session=True,
            bufsize=0,
        )
        try:
            with part.appending() as file:
                while piece := _read_pipe(process.stdout, limits, meter):  # type: ignore[arg-type]
                    write(file, piece)
                    meter.add(len(piece))
            code = process.wait(limits.silence)
        except subprocess.TimeoutExpired:
            raise Transient(f"the command closed its output and did not end in {limits.silence:g} s") from None
        finally:
            if process.returncode is None:  # not waited for: the number is still its own
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)  # what it started goes with it
            process.stdout.close()  # type: ignore[union-attr]
            process.wait()
        if code:
            complaints.seek(max(0, complaints.seek(0, io.SEEK_END) - 2000))
            said = redacted(complaints.read().decode("utf-8", "replace")).strip().splitlines()
            raise Transient(f"the command ended with code {code}{f': {said[-1][:200]}' if said else ''}")


def _read_pipe(pipe: IO[bytes], limits: Limits, meter: Meter) -> bytes:
    end = time.monotonic() + limits.silence
    ready = select.poll()
    ready.register(pipe, select.POLLIN)
    while not ready.poll(500):
        meter.sleep(0)
        if time.monotonic() > end:
            raise Transient(f"the command was silent for {limits.silence:g} s")
    return pipe.read(PIECE)
