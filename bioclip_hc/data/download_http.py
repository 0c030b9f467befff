"""One attempt over http or https.

Through the standard library's urllib: to go on in the middle of a body after a cut, no client's own retry is of
use, so that loop is ours with any of them; and urllib has what else is wanted: timeouts, proxies, certificates, and
an opener that knows no scheme but these two. (fsspec's http needs aiohttp and reads by ranges only;
huggingface_hub's client is another one in each of its major versions.)
"""

from __future__ import annotations

import base64
import contextlib
import functools
import http.client
import io
import netrc
import re
import ssl
import time
import urllib.error
import urllib.request
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urljoin, urlsplit

from bioclip_hc import __version__
from bioclip_hc.data.transfer import PIECE, Limits, Meter, Part, Permanent, Transient, write
from bioclip_hc.data.urls import Address, redacted


class Stale(Transient):
    """What is here is no beginning of what is there."""


def from_http(address: Address, part: Part, limits: Limits, meter: Meter) -> None:
    start, mark = len(part), part.mark()
    asked = {"Range": f"bytes={start}-", "If-Range": mark} if mark else {}
    try:
        answer = open_url(address.target, address, limits, asked)
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


def open_url(url: str, address: Address, limits: Limits, headers: dict[str, str]) -> http.client.HTTPResponse:
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
