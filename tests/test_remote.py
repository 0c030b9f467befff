"""Remote shards, from servers that stall, cut and corrupt: the exact bytes in the end, or one clear error."""

import errno
import hashlib
import json
import os
import threading
import time
from contextlib import contextmanager

import pytest
import remote_server as lab
from small_run import write_pictures

from bioclip_hc.data import cache as caches
from bioclip_hc.data import download
from bioclip_hc.data.cache import Cache, Downloads
from bioclip_hc.data.download import Limits
from bioclip_hc.data.shards import ShardSet
from bioclip_hc.data.sources import expand_shards
from bioclip_hc.data.urls import parse

QUICK = Limits(connect=5, silence=0.6, slowest=1e4, attempts=4, progress=1000, backoff=0.01, longest=0.2, total=60)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Three local shards of pictures."""
    folder = write_pictures(tmp_path_factory.mktemp("local"))
    return sorted(folder.glob("*.tar"))


@pytest.fixture(scope="module")
def body(shards):
    return shards[0].read_bytes()


@pytest.fixture(scope="module")
def the_server():
    with lab.serving() as server:
        yield server


@pytest.fixture
def server(the_server, shards):
    """Serves the shards at /set/, with nothing planned."""
    the_server.files = {f"/set/{path.name}": path.read_bytes() for path in shards}
    the_server.plan, the_server.asked, the_server.headers, the_server.most = {}, [], [], 0
    return the_server


def fetch(*urls, folder, limits=QUICK, at_once=4, say=None, allow_pipe=False):
    """Paths of fetched shards; no thread, descriptor or useless file is left, fetched or not."""
    cache = Cache(folder)
    addresses = [parse(url, allow_pipe=allow_pipe) for url in urls]
    with nothing_left(folder), Downloads(addresses, cache, limits=limits, at_once=at_once, say=say) as downloads:
        downloads.wait()
    return [cache.path(address) for address in addresses]


@contextmanager
def nothing_left(folder):
    before = len(os.listdir("/proc/self/fd"))
    try:
        yield
    finally:
        assert not [t for t in threading.enumerate() if t.name.startswith("fetch-")]
        end = time.monotonic() + 5
        while len(os.listdir("/proc/self/fd")) > before and time.monotonic() < end:
            time.sleep(0.01)  # the server's ends of connections, which lie in this process too
        assert len(os.listdir("/proc/self/fd")) <= before
        names = [path.name for path in folder.rglob("*") if path.is_file()]
        assert not [name for name in names if name.endswith(".tmp")]
        assert names.count("part") == names.count("part.json")  # a part that can be gone on with, or none


FIRST = "/set/shard-000000.tar"
MENDS = {
    "well": [],
    "no ranges": [lab.plain],
    "no answer": [lab.silent],
    "stalls in the body": [lab.stalls],
    "drips": [lab.drips],
    "drips headers": [lab.drips_headers],
    "cut, gone on with": [lab.cuts()],
    "cut again and again": [lab.cuts(0.2)] * 12,
    "cut, no ranges": [lab.cuts(mark=False), lab.plain],
    "cut, a date for a mark": [lab.dated, lab.dated_rest],
    "reset": [lab.resets],
    "fewer bytes than promised": [lab.cuts(0.9)],
    "more bytes than promised": [lab.longer],
    "error 500 three times": [lab.status(500)] * 3,
    "502": [lab.status(502)],
    "503 and when to come again": [lab.status(503, Retry_After=0)],
    "429": [lab.status(429)],
    "408": [lab.status(408)],
    "416 of a part": [lab.cuts(), lab.status(416)],
    "redirect": [lab.redirect("/set/shard-000000.tar?again")],
    "redirect 301": [lab.redirect("/set/shard-000000.tar?again", 301)],
    "redirect 307": [lab.redirect("/set/shard-000000.tar?again", 307)],
    "redirect 308": [lab.redirect("/set/shard-000000.tar?again", 308)],
    "chunked": [lab.chunked],
    "chunked, cut": [lab.chunked_cut],
    "no length": [lab.until_closed],
    "no length, cut": [lab.until_closed_cut],
    "changed between attempts": [lab.cuts(), lab.changed],
    "another range than asked for": [lab.cuts(), lab.other_range],
    "a page once": [lab.page],
    "no HTTP": [lab.nonsense],
}


@pytest.mark.parametrize("fault", MENDS)
def test_what_mends_ends_with_the_exact_bytes(server, body, tmp_path, fault):
    url = server.does(FIRST, *MENDS[fault])
    start = time.monotonic()
    (path,) = fetch(url, folder=tmp_path)
    assert path.read_bytes() == body
    assert time.monotonic() - start < 20
    assert sorted(p.name for p in path.parent.iterdir()) == ["lock", "shard-000000.tar", "source.json"]
    assert not server.plan[FIRST], "not all that was planned came to pass"
    asked = len(server.asked)
    assert fetch(url, folder=tmp_path) == [path]
    assert len(server.asked) == asked  # a cached shard asks nobody


LASTS = {
    "no answer": (lab.silent, r"4 attempts .* silent for 0\.6 s"),
    "stalls": (lab.stalls, r"silent for 0\.6 s"),
    "drips": (lab.drips, r"bytes in \d s"),
    "drips headers": (lab.drips_headers, r"bytes in \d s"),
    "cut, no mark": (lab.cuts(mark=False), r"4 attempts .* ended after [\d,]+ of [\d,]+ bytes"),
    "cut, nothing new": (lab.cuts(0), r"4 attempts .* ended after [\d,]+ of [\d,]+ bytes"),
    "chunked, cut": (lab.chunked_cut, "4 attempts .* ended in the middle"),
    "500": (lab.status(500), "4 attempts .* answers 500"),
    "503": (lab.status(503, Retry_After="Wed, 21 Oct 2015 07:28:00 GMT"), "4 attempts .* answers 503"),
    "a page": (lab.page, "4 attempts .* it is a page, not a tar: .*Please log in"),
    "no HTTP": (lab.nonsense, "4 attempts"),
    "another range": (lab.other_range, "4 attempts .* other bytes than were asked for"),
    # what another attempt cannot mend is tried once
    "404": (lab.status(404), "answers 404 Not Found; fix the address"),
    "410": (lab.status(410), "answers 410"),
    "403": (lab.status(403), r"answers 403 Forbidden; give it a user in ~/\.netrc"),
    "401": (lab.status(401), "answers 401"),
    "400": (lab.status(400), "answers 400"),
    "redirect loop": (lab.redirect(FIRST), "redirects in a circle"),
    "redirect to a file": (
        lab.redirect("file:///etc/passwd"),
        "redirects from http: to file:, which is not followed",
    ),
    "redirect to ftp": (
        lab.redirect("ftp://127.0.0.1/a.tar"),
        "redirects from http: to ftp:, which is not followed",
    ),
    "redirect to data": (lab.redirect("data:text/plain,x"), "redirects from http: to data:"),
    "redirect to a command": (lab.redirect("pipe:touch%20{folder}"), "redirects from http: to pipe:"),
    "redirect to nowhere": (lab.status(302), "redirects in a circle, or to nowhere"),
    "encoded": (lab.zipped, "encoded by gzip"),
}
ONCE = ("404", "410", "403", "401", "400", "redirect to a file", "encoded")


@pytest.mark.parametrize("fault", LASTS)
def test_what_lasts_ends_with_one_clear_error(server, tmp_path, fault):
    behaviour, said = LASTS[fault]
    url = server.does(FIRST, *[behaviour] * 50)
    start = time.monotonic()
    with pytest.raises(OSError, match=f"^{url}: .*{said}"):
        fetch(url, folder=tmp_path)
    assert time.monotonic() - start < 30
    assert not list(tmp_path.rglob("*.tar"))
    if fault in ONCE:
        assert server.count(FIRST) == 1


def test_a_part_is_gone_on_with_by_the_next_process(server, body, tmp_path):
    url = server.does(FIRST, *[lab.cuts(0.5)] + [lab.status(500)] * 10)
    with pytest.raises(OSError, match="answers 500"):
        fetch(url, folder=tmp_path)
    server.plan.clear()
    (path,) = fetch(url, folder=tmp_path)
    assert path.read_bytes() == body
    assert server.asked[-1] == (FIRST, f"bytes={len(body) // 2}-")


def test_a_part_of_another_version_is_not_gone_on_with(server, shards, tmp_path):
    url = server.does(FIRST, *[lab.cuts(0.5)] + [lab.status(500)] * 10)
    with pytest.raises(OSError, match="answers 500"):
        fetch(url, folder=tmp_path)
    server.plan.clear()
    server.files[FIRST] = shards[1].read_bytes()
    (path,) = fetch(url, folder=tmp_path)
    assert path.read_bytes() == shards[1].read_bytes()


# -- checksums ---------------------------------------------------------------------------------------------


def with_sums(server, *lines):
    digests = [f"{hashlib.sha256(data).hexdigest()}  {name[5:]}" for name, data in server.files.items()]
    server.files["/set/SHA256SUMS"] = "\n".join([*digests, *lines, ""]).encode()


def test_a_corrupted_shard_is_detected_and_fetched_again(server, body, tmp_path):
    with_sums(server)
    (path,) = fetch(server.does(FIRST, lab.corrupts, lab.corrupts), folder=tmp_path)
    assert path.read_bytes() == body
    assert server.count(FIRST) == 3
    assert server.count("/set/SHA256SUMS") == 1


def test_a_shard_that_stays_corrupted_is_refused(server, tmp_path):
    with_sums(server)
    with pytest.raises(OSError, match=r"4 attempts .* its SHA-256 is [0-9a-f]{64}, and should be [0-9a-f]{64}"):
        fetch(server.does(FIRST, *[lab.corrupts] * 10), folder=tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "lock"]


def test_a_page_where_the_checksums_are_asked_for_is_none(server, body, tmp_path):
    server.does("/set/SHA256SUMS", lab.page)
    assert fetch(server.url + FIRST, folder=tmp_path)[0].read_bytes() == body


def test_checksums_that_cannot_be_had_are_not_taken_for_none(server, tmp_path):
    with_sums(server)
    server.does("/set/SHA256SUMS", *[lab.status(500)] * 20)
    with pytest.raises(OSError, match="whether it has a SHA256SUMS beside it: the server answers 500"):
        fetch(server.url + FIRST, folder=tmp_path)
    server.does("/set/SHA256SUMS", lab.cuts(), lab.silent)
    server.does(FIRST, lab.corrupts)
    assert fetch(server.url + FIRST, folder=tmp_path)[0].read_bytes() == server.files[FIRST]


def test_checksums_are_read_as_sha256sum_writes_them():
    a, b, c = ("a" * 64, "B" * 64, "c" * 64)
    text = f"{a}  one.tar\r\n{b} *two.tar\n\\{c}  odd\\\\name.tar\n{c[:-1]}  short.tar\n{c}  ./three.tar\nnoise\n"
    assert download.parse_sums(text.encode() + b"\xff\xfe") == {
        "one.tar": a,
        "two.tar": b.lower(),
        "three.tar": c,
    }


def test_a_shard_that_is_damaged_at_the_source_is_used_as_a_local_one(server, body, tmp_path):
    """Cut off when it was made: the same twice, so it is the source's; the index says what is wrong with it."""
    cut = body[: len(body) * 2 // 3]
    server.files[FIRST] = cut
    (path,) = fetch(server.url + FIRST, folder=tmp_path)
    assert path.read_bytes() == cut
    assert server.count(FIRST) == 2
    assert "damaged tar" in ShardSet(path).bad[-1].reason


# -- the cache ---------------------------------------------------------------------------------------------


def test_a_cached_shard_works_offline_and_is_checked(server, body, tmp_path):
    url = server.url + FIRST
    (path,) = fetch(url, folder=tmp_path)
    record = json.loads(path.with_name("source.json").read_text())
    assert record["url"] == url
    assert record["sha256"] == hashlib.sha256(body).hexdigest()
    os.utime(path)  # another time, the same bytes: read once more, then trusted
    server.files.clear()
    fetch(url, folder=tmp_path)
    assert json.loads(path.with_name("source.json").read_text())["mtime_ns"] == path.stat().st_mtime_ns
    asked = len(server.asked)
    for harm in (lambda: path.write_bytes(body[:-1]), lambda: path.write_bytes(b"x" + body[1:]), path.unlink):
        server.files[FIRST] = body
        harm()
        fetch(url, folder=tmp_path)
        assert path.read_bytes() == body
    assert server.count(FIRST) == 4
    assert len(server.asked) > asked
    path.with_name("source.json").write_text('{"bytes": []}')
    fetch(url, folder=tmp_path)
    assert server.count(FIRST) == 5


def test_several_processes_fetch_a_shard_once(server, shards, tmp_path):
    """Threads of several `Downloads` hold their locks as processes do: by descriptors of their own."""
    urls = [f"{server.url}/set/{path.name}" for path in shards]
    for path in shards:
        server.does(f"/set/{path.name}", lambda handler, body: (time.sleep(0.3), lab.well(handler, body)))
    with nothing_left(tmp_path):
        pids = []
        for _ in range(4):
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    fetched = expand_shards(urls, cache=tmp_path)
                    code = 0 if [p.read_bytes() for p in fetched] == [p.read_bytes() for p in shards] else 3
                finally:
                    os._exit(code)
            pids.append(pid)
        assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0] * 4
    assert [server.count(f"/set/{path.name}") for path in shards] == [1, 1, 1]


def test_a_process_killed_while_fetching_leaves_what_the_next_goes_on_with(server, body, tmp_path):
    url = server.does(FIRST, lab.stalls)
    pid = os.fork()
    if pid == 0:
        try:
            fetch(url, folder=tmp_path, limits=Limits())
        finally:
            os._exit(1)
    end = time.monotonic() + 30
    while not (parts := list(tmp_path.rglob("part"))) or parts[0].stat().st_size < len(body) // 2:
        assert time.monotonic() < end
        time.sleep(0.01)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    assert fetch(url, folder=tmp_path)[0].read_bytes() == body
    assert server.asked[-1] == (FIRST, f"bytes={len(body) // 2}-")


def test_so_many_are_fetched_at_once_and_no_more(server, body, tmp_path):
    names = [f"/many/{i}.tar" for i in range(12)]
    for name in names:
        server.files[name] = body
        server.does(name, lambda handler, body: (time.sleep(0.1), lab.well(handler, body)))
    lines = []
    paths = fetch(*[server.url + name for name in names], folder=tmp_path, at_once=3, say=lines.append)
    assert all(path.read_bytes() == body for path in paths)
    assert server.most == 3
    assert len(lines) == 2
    assert lines[0] == f"fetching 12 remote shards, the first {server.url}/many/0.tar, into {tmp_path}"
    assert lines[1].startswith(f"fetched 12 of 12 remote shards, {12 * len(body) / 1e6:,.1f} MB, ")


def test_progress_is_said_now_and_then(server, tmp_path, monkeypatch):
    monkeypatch.setattr(caches, "EVERY", 0.1)
    url = server.does(FIRST, lambda handler, body: (time.sleep(0.5), lab.well(handler, body)))
    lines = []
    fetch(url, folder=tmp_path, say=lines.append)
    assert 3 <= len(lines) <= 8
    assert lines[1].startswith("fetched 0 of 1 remote shards")
    lines.clear()
    fetch(url, folder=tmp_path, say=lines.append)
    assert lines == []  # nothing to fetch, nothing to say


def test_one_that_fails_ends_the_others(server, shards, tmp_path):
    urls = [f"{server.url}/set/{path.name}" for path in shards]
    for path in shards[1:]:
        server.does(f"/set/{path.name}", *[lab.stalls] * 9)
    server.files.pop(FIRST)
    start = time.monotonic()
    with pytest.raises(OSError, match=f"^{urls[0]}: the server answers 404"):
        fetch(*urls, folder=tmp_path, limits=Limits(silence=2, backoff=0.01))
    assert time.monotonic() - start < 15


def test_a_full_disk_says_what_is_needed_and_where(server, body, tmp_path, monkeypatch):
    usage = download.shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(
        OSError, match=f"needs {len(body) / 1e6:,.1f} MB more, and {tmp_path} has 0.0 MB free; make"
    ):
        fetch(server.url + FIRST, folder=tmp_path)
    assert server.count(FIRST) == 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_disk_that_fills_up_is_told_from_a_broken_connection(server, tmp_path, monkeypatch):
    def full(path, *mode, **more):
        return open("/dev/full", *mode, **more)

    monkeypatch.setattr(download, "open", full, raising=False)
    with pytest.raises(OSError, match=r"needs more than .* make room"):
        fetch(server.url + FIRST, folder=tmp_path)
    assert server.count(FIRST) == 1


def test_a_cache_that_cannot_be_written_is_named(server, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cache .*file/cache cannot be written .*data\.cache"):
        fetch(server.url + FIRST, folder=tmp_path / "file" / "cache")


def test_a_cache_without_locks_is_refused(server, tmp_path, monkeypatch):
    def no_locks(*_, **__):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(caches.filelock.FileLock, "acquire", no_locks)
    with pytest.raises(OSError, match="has no locks; name a cache on a local disk"):
        fetch(server.url + FIRST, folder=tmp_path)
