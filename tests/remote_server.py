"""A real HTTP server that serves files, well or as badly as it is told."""

from __future__ import annotations

import http.server
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import formatdate


class Server(http.server.ThreadingHTTPServer):
    """Serves `files`; `plan[path]` holds how it answers the next requests of a path, before it does well.

    Attributes:
        asked: (path, Range header) of all requests so far.
        busy, most: requests being answered now, and at most.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.plan: dict[str, deque[Callable[[Handler, bytes], None]]] = {}
        self.asked: list[tuple[str, str | None]] = []
        self.headers: list[dict[str, str]] = []
        self.ending = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.busy = self.most = 0
        self.lock = threading.Lock()

    def does(self, path: str, *behaviours: Callable[[Handler, bytes], None]) -> str:
        """Plan the next answers to a path; returns its URL."""
        self.plan[path] = deque(behaviours)
        return self.url + path

    def count(self, path: str) -> int:
        return sum(asked == path for asked, _ in self.asked)


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        with self.server.lock:
            self.server.asked.append((path, self.headers.get("Range")))
            self.server.headers.append(dict(self.headers))
            self.server.busy += 1
            self.server.most = max(self.server.most, self.server.busy)
            plan = self.server.plan.get(path)
            behaviour = plan.popleft() if plan else well
        try:
            body = self.server.files.get(path)
            if body is None and behaviour is well:
                status(404)(self, b"")
            else:
                behaviour(self, body or b"")
        except (BrokenPipeError, ConnectionResetError):
            pass  # who asked has gone
        finally:
            with self.server.lock:
                self.server.busy -= 1

    def head(self, code: int, **headers: object) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server
    finally:
        server.ending.set()
        server.shutdown()
        thread.join()
        server.server_close()


def etag(body: bytes) -> str:
    return f'"{hash(body):x}"'


def well(handler: Handler, body: bytes) -> None:
    """With Range and If-Range, as a good server does."""
    start = asked_from(handler)
    if start and handler.headers.get("If-Range") == etag(body):
        span = f"bytes {start}-{len(body) - 1}/{len(body)}"
        handler.head(206, Content_Length=len(body) - start, Content_Range=span, ETag=etag(body))
        handler.wfile.write(body[start:])
    else:
        handler.head(200, Content_Length=len(body), ETag=etag(body))
        handler.wfile.write(body)


def asked_from(handler: Handler) -> int:
    return int(handler.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))


def plain(handler: Handler, body: bytes) -> None:
    """No ranges, no marks."""
    handler.head(200, Content_Length=len(body))
    handler.wfile.write(body)


def dated(handler: Handler, body: bytes) -> None:
    """Cut off, with a date for a mark."""
    handler.head(200, Content_Length=len(body), Last_Modified=formatdate(0, usegmt=True))
    handler.wfile.write(body[: len(body) // 2])


def dated_rest(handler: Handler, body: bytes) -> None:
    assert handler.headers["If-Range"] == formatdate(0, usegmt=True)
    start = asked_from(handler)
    handler.head(206, Content_Length=len(body) - start, Content_Range=f"bytes {start}-{len(body) - 1}/{len(body)}")
    handler.wfile.write(body[start:])


def wait_for_the_other_end(handler: Handler) -> None:
    """Until it has hung up, or all is over."""
    handler.connection.settimeout(0.1)
    while not handler.server.ending.is_set():
        try:
            if not handler.connection.recv(1):
                return
        except TimeoutError:
            continue


def silent(handler: Handler, body: bytes) -> None:
    """Takes the request and says nothing."""
    wait_for_the_other_end(handler)


def stalls(handler: Handler, body: bytes) -> None:
    """Half of the body, then nothing."""
    handler.head(200, Content_Length=len(body), ETag=etag(body))
    handler.wfile.write(body[: len(body) // 2])
    wait_for_the_other_end(handler)


def drips(handler: Handler, body: bytes) -> None:
    """A byte now and then: never silent, never done."""
    handler.head(200, Content_Length=len(body))
    drip(handler, body)


def drips_headers(handler: Handler, body: bytes) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    drip(handler, b"x" * 10_000)


def drip(handler: Handler, data: bytes) -> None:
    for i in range(len(data)):
        if handler.server.ending.is_set():
            return
        handler.wfile.write(data[i : i + 1])
        handler.wfile.flush()
        time.sleep(0.02)


def cuts(share: float = 0.5, mark: bool = True) -> Callable[[Handler, bytes], None]:
    """The connection ends in the middle; a range asked for is served up to there too."""

    def cut(handler: Handler, body: bytes) -> None:
        start = asked_from(handler) if handler.headers.get("If-Range") == etag(body) else 0
        marks = {"ETag": etag(body)} if mark else {}
        if start:
            marks["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        handler.head(206 if start else 200, Content_Length=len(body) - start, **marks)
        handler.wfile.write(body[start : start + int((len(body) - start) * share)])

    return cut


def longer(handler: Handler, body: bytes) -> None:
    """More than was promised: what fits the promise lacks its end."""
    handler.head(200, Content_Length=len(body) * 2 // 3)
    handler.wfile.write(body)


def corrupts(handler: Handler, body: bytes) -> None:
    """The right length, one bit wrong, in the middle of a picture."""
    wrong = bytearray(body)
    wrong[len(body) // 2] ^= 1
    handler.head(200, Content_Length=len(body), ETag=etag(body))
    handler.wfile.write(bytes(wrong))


def status(code: int, **headers: object) -> Callable[[Handler, bytes], None]:
    def answer(handler: Handler, body: bytes) -> None:
        handler.head(code, Content_Length=0, **headers)

    return answer


def redirect(to: str, code: int = 302) -> Callable[[Handler, bytes], None]:
    return status(code, Location=to)


def chunked(handler: Handler, body: bytes, whole: bool = True) -> None:
    handler.protocol_version = "HTTP/1.1"
    handler.head(200, Transfer_Encoding="chunked")
    for i in range(0, len(body), 5000):
        piece = body[i : i + 5000]
        handler.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        if not whole and i > len(body) // 2:
            return
    handler.wfile.write(b"0\r\n\r\n")


def chunked_cut(handler: Handler, body: bytes) -> None:
    chunked(handler, body, whole=False)


def until_closed(handler: Handler, body: bytes) -> None:
    """No length at all."""
    handler.head(200)
    handler.wfile.write(body)


def until_closed_cut(handler: Handler, body: bytes) -> None:
    until_closed(handler, body[: len(body) // 2])


def changed(handler: Handler, body: bytes) -> None:
    """The rest of another file, which its mark says though If-Range asked for none such."""
    start = asked_from(handler)
    assert start, "nothing was asked to be gone on with"
    span = f"bytes {start}-{len(body) - 1}/{len(body)}"
    handler.head(206, Content_Length=len(body) - start, Content_Range=span, ETag='"another"')
    handler.wfile.write(body[start:].replace(b"\xff", b"\xfe"))


def other_range(handler: Handler, body: bytes) -> None:
    """Another range than was asked for."""
    handler.head(206, Content_Length=10, Content_Range=f"bytes 0-9/{len(body)}", ETag=etag(body))
    handler.wfile.write(body[:10])


def earlier_range(handler: Handler, body: bytes) -> None:
    """More than was asked for, from before what is here, up to the end."""
    start = asked_from(handler) - 512
    span = f"bytes {start}-{len(body) - 1}/{len(body)}"
    handler.head(206, Content_Length=len(body) - start, Content_Range=span, ETag=etag(body))
    handler.wfile.write(body[start:])


def page(handler: Handler, body: bytes) -> None:
    """An error dressed as success."""
    text = b"<!DOCTYPE html><html><body>Please log in</body></html>"
    handler.head(200, Content_Length=len(text), Content_Type="text/html")
    handler.wfile.write(text)


def zipped(handler: Handler, body: bytes) -> None:
    handler.head(200, Content_Length=len(body), Content_Encoding="gzip")
    handler.wfile.write(body)


def nonsense(handler: Handler, body: bytes) -> None:
    """No HTTP."""
    handler.wfile.write(b"\x00\x01\x02 hello\r\n" * 10)


def resets(handler: Handler, body: bytes) -> None:
    """The connection is reset, not closed."""
    import socket
    import struct

    handler.head(200, Content_Length=len(body), ETag=etag(body))
    handler.wfile.write(body[: len(body) // 3])
    handler.wfile.flush()
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()
