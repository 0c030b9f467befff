"""Remote shards, from servers that stall, cut and corrupt: the exact bytes in the end, or one clear error."""

import errno
import hashlib
import io
import json
import os
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import remote_server as lab
from small_run import write_pictures

from bioclip_hc.data import cache as caches
from bioclip_hc.data import download, download_http, download_stores, transfer
from bioclip_hc.data.cache import Cache, Downloads
from bioclip_hc.data.shards import ShardSet
from bioclip_hc.data.sources import expand_shards
from bioclip_hc.data.transfer import Limits
from bioclip_hc.data.urls import parse

QUICK = Limits(connect=5, silence=0.6, slowest=1e4, attempts=4, progress=1000, backoff=0.01, longest=0.2, total=60)

TWICE = replace(QUICK, attempts=2)


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
def server(the_server, shards, monkeypatch):
    """Serves the shards at /set/, with nothing planned."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
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
    "a range from before what is here": [lab.cuts(), lab.earlier_range],
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
    "no answer": (lab.silent, r"attempts .* silent for 0\.6 s"),
    "stalls": (lab.stalls, r"silent for 0\.6 s"),
    "drips": (lab.drips, r"bytes in \d s"),
    "drips headers": (lab.drips_headers, r"bytes in \d s"),
    "cut, no mark": (lab.cuts(mark=False), r"4 attempts .* ended after [\d,]+ of [\d,]+ bytes"),
    "cut, nothing new": (lab.cuts(0), r"4 attempts .* ended after [\d,]+ of [\d,]+ bytes"),
    "chunked, cut": (lab.chunked_cut, "4 attempts .* ended in the middle"),
    "500": (lab.status(500), "4 attempts .* answers 500"),
    "503": (lab.status(503, Retry_After="Wed, 21 Oct 2015 07:28:00 GMT"), "4 attempts .* answers 503"),
    "a page": (lab.page, "it is a page, not a tar: .*Please log in.*, at two attempts in a row; fix the address"),
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
        fetch(url, folder=tmp_path, limits=TWICE if "silent" in said or "bytes in" in said else QUICK)
    assert time.monotonic() - start < 30
    assert not list(tmp_path.rglob("*.tar"))
    if fault in ONCE:
        assert server.count(FIRST) == 1
    if fault == "a page":  # it may have been a moment's; the same again is what the server has
        assert server.count(FIRST) == 2


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
    server.does("/set/SHA256SUMS", *[lambda h, body: h.head(200, Content_Length="x")] * 20)
    with pytest.raises(OSError, match="whether it has a SHA256SUMS beside it: a SHA256SUMS of 'x' bytes"):
        fetch(server.url + FIRST, folder=tmp_path)
    server.does("/set/SHA256SUMS", lab.cuts(), lab.silent)
    server.does(FIRST, lab.corrupts)
    assert fetch(server.url + FIRST, folder=tmp_path)[0].read_bytes() == server.files[FIRST]


@pytest.mark.parametrize("more", [0, 1])
def test_checksums_too_long_to_be_read_are_an_error_and_not_cut(server, body, tmp_path, monkeypatch, more):
    with_sums(server, *["#" * 90] * 40_000)
    sums = server.files["/set/SHA256SUMS"]
    monkeypatch.setattr(download, "MAX_SUMS_BYTES", len(sums) - more)
    if not more:
        assert fetch(server.url + FIRST, folder=tmp_path)[0].read_bytes() == body
        return
    with pytest.raises(OSError, match=rf"the SHA256SUMS beside it is larger than {len(sums) - 1:,} bytes; spread"):
        fetch(server.url + FIRST, folder=tmp_path)
    assert server.count("/set/SHA256SUMS") == 1
    assert server.count(FIRST) == 0


def test_a_mark_to_go_on_by_is_a_strong_etag_or_a_date():
    """RFC 9110, 13.1.5: a weak one does not say that the bytes are the same."""
    date = "Wed, 21 Oct 2015 07:28:00 GMT"
    for headers, mark in (
        ({"ETag": '"abc"', "Last-Modified": date}, '"abc"'),
        ({"ETag": 'W/"abc"', "Last-Modified": date}, ""),
        ({"ETag": 'W/"abc"'}, ""),
        ({"ETag": "abc"}, ""),
        ({"Last-Modified": date}, date),
        ({}, ""),
    ):
        assert download_http._mark(SimpleNamespace(headers=headers)) == mark, headers


def test_checksums_are_read_as_sha256sum_writes_them():
    a, b, c = ("a" * 64, "B" * 64, "c" * 64)
    text = f"{a}  one.tar\r\n{b} *two.tar\n\\{c}  odd\\\\name.tar\n{c[:-1]}  short.tar\n{c}  ./three.tar\nnoise\n"
    assert download._parse(text.encode() + b"\xff\xfe") == {
        "one.tar": a,
        "two.tar": b.lower(),
        "odd\\name.tar": c,
        "three.tar": c,
    }


def test_a_name_that_is_written_otherwise_here_has_its_checksum_all_the_same(server, body, tmp_path):
    server.files["/set/a%5Cb"] = body
    server.files["/set/SHA256SUMS"] = f"{'0' * 64}  a\\b\n".encode()
    with pytest.raises(OSError, match=f"should be {'0' * 64}"):
        fetch(server.url + "/set/a%5Cb", folder=tmp_path)


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
    usage = transfer.shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(transfer.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(
        OSError, match=f"needs {len(body) / 1e6:,.1f} MB more, and {tmp_path} has 0.0 MB free; make"
    ):
        fetch(server.url + FIRST, folder=tmp_path)
    assert server.count(FIRST) == 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_disk_that_fills_up_is_told_from_a_broken_connection(server, tmp_path, monkeypatch):
    def full(path, *mode, **more):
        return open("/dev/full", *mode, **more)

    monkeypatch.setattr(transfer, "open", full, raising=False)
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


# -- whole sets --------------------------------------------------------------------------------------------


def test_a_set_over_http_is_the_local_one(server, shards, tmp_path):
    local = ShardSet(shards)
    urls = server.url.replace("http://", "http://ann:secret@") + "/set/shard-{000000..000002}.tar?sig=x"
    with_sums(server)
    remote = ShardSet(expand_shards(urls, cache=tmp_path / "cache"))
    mixed = ShardSet(
        expand_shards([urls.replace("{000000..000002}", "000001"), shards[2], shards[0]], cache=tmp_path)
    )
    for other in (remote, mixed):
        assert len(other) == len(local)
        assert all(other.read(i) == local.read(i) for i in range(len(local)))
        assert other.fingerprints() == local.fingerprints()
    asked = [headers.get("Authorization") for headers in server.headers]
    assert asked == ["Basic YW5uOnNlY3JldA=="] * len(asked)
    written = "".join(p.read_text() for p in tmp_path.rglob("source.json"))
    assert "secret" not in written
    assert "sig" not in written


def test_a_redirect_to_another_host_is_not_given_the_password(server, body, tmp_path):
    with lab.serving() as other:
        other.files["/b.tar"] = body
        url = server.does(FIRST, lab.redirect(other.url + "/b.tar")).replace("http://", "http://ann:secret@")
        fetch(url, folder=tmp_path)
        assert "Authorization" in server.headers[-1]
        assert other.headers
        assert not any("Authorization" in headers for headers in other.headers)


def test_a_user_of_netrc_is_for_https_only(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".netrc").write_text("machine example.org login ann password s3cret\n")
    (tmp_path / ".netrc").chmod(0o600)
    assert download_http._user_of(parse("https://example.org/a.tar")) == "ann:s3cret"
    assert download_http._user_of(parse("http://example.org/a.tar")) == ""
    assert download_http._user_of(parse("https://example.com/a.tar")) == ""


def test_https_is_not_left_for_http_and_other_schemes_are_unknown(server, tmp_path):
    """The rule of redirects is asked directly, for there is no certificate here that a client would take."""
    url = server.url.replace("http:", "https:") + FIRST
    with pytest.raises(OSError, match=f"^{url}: not fetched"):  # a server that speaks plain http
        fetch(url, folder=tmp_path)
    opener = download_http._opener(QUICK)
    request = download_http.urllib.request.Request("https://example.org/a.tar")
    rule = next(handler for handler in opener.handlers if isinstance(handler, download_http._Redirects))
    with pytest.raises(OSError, match=r"redirects from https: to http:, which is not followed"):
        rule.http_error_302(request, io.BytesIO(), 302, "Found", {"location": "http://example.org/a.tar"})
    assert {"file", "ftp", "data", "unknown"}.isdisjoint(opener.handle_open)


# -- the hub and object stores -----------------------------------------------------------------------------

COMMIT = "ffa2a31" + "0" * 33
HUB = f"/datasets/tree/of-life/resolve/{COMMIT}/set/"


@pytest.fixture
def hub(server, shards, monkeypatch):
    """The fake hub's address of the first shard; huggingface_hub itself asks it."""
    import huggingface_hub.constants as constants

    def head(handler):
        data = server.files.get(handler.path)
        if data is None:
            lab.status(404, X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)(handler, b"")
        elif getattr(server, "gated", False):
            lab.status(403, X_Error_Code="GatedRepo")(handler, b"")
        else:
            mark = f'"{hashlib.sha256(data).hexdigest()}"'
            handler.head(200, X_Repo_Commit=COMMIT, ETag=mark, Content_Length=len(data))

    monkeypatch.setattr(lab.Handler, "do_HEAD", head, raising=False)
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setenv("HF_TOKEN", "hf_s3cret")
    server.files = {HUB + path.name: path.read_bytes() for path in shards}
    return f"hf://datasets/tree/of-life@{COMMIT}/set/shard-000000.tar"


def test_the_hub_is_read_at_a_commit_and_checked(server, hub, body, tmp_path):
    server.does(HUB + "shard-000000.tar", lab.corrupts)  # of the right length: huggingface_hub takes it for good
    (path,) = fetch(hub, folder=tmp_path)
    assert path.read_bytes() == body
    assert server.count(HUB + "shard-000000.tar") == 2
    assert ShardSet(path).fingerprints().keys() == {"shard-000000.tar"}
    asked = len(server.asked)
    assert fetch(hub, folder=tmp_path) == [path]
    assert len(server.asked) == asked
    assert "s3cret" not in "".join(p.read_text() for p in tmp_path.rglob("*.json"))


def test_what_the_hub_lacks_or_guards_is_said_at_once(server, hub, tmp_path, monkeypatch):
    with pytest.raises(
        OSError, match=r"^hf://.*: the hub has no such dataset, commit or file.*RemoteEntryNotFound"
    ):
        fetch(hub.replace("000000", "000009"), folder=tmp_path)

    monkeypatch.setattr(server, "gated", True, raising=False)
    with pytest.raises(OSError, match="the dataset asks for your consent") as error:
        fetch(hub, folder=tmp_path)
    assert "s3cret" not in str(error.value)


def test_an_object_store_is_read_in_pieces_and_gone_on_with(shards, body, tmp_path, monkeypatch):
    """Through fsspec, with a store of this test's own under the name s3."""
    import fsspec
    from fsspec.implementations.memory import MemoryFileSystem

    class Store(MemoryFileSystem):
        protocol = ("s3",)
        store, pseudo_dirs, cachable = {}, [""], False
        fail, asked = 0, []

        def cat_file(self, path, start=None, end=None, **more):
            Store.asked.append((path.rpartition("/")[2], start, end))
            if start == 20_000 and Store.fail:
                Store.fail -= 1
                raise ConnectionError("the store hangs up: https://store/a?sig=s3cret")
            return super().cat_file(path, start, end, **more)

        def ukey(self, path):
            return hashlib.sha256(self.cat_file(path)).hexdigest()

    monkeypatch.setattr(download_stores, "STORE_PIECE", 10_000)
    monkeypatch.setattr(fsspec, "filesystem", lambda scheme: Store())
    Store().pipe("s3://bucket/set/shard-000000.tar", body)
    url = "s3://bucket/set/shard-000000.tar"
    Store.fail = 2
    (path,) = fetch(url, folder=tmp_path / "a")
    assert path.read_bytes() == body
    starts = [start for name, start, _ in Store.asked if start is not None]
    assert starts == [0, 10_000, 20_000, 20_000, *range(20_000, len(body), 10_000)]
    Store.fail = 99
    with pytest.raises(OSError, match=r"^s3://bucket/set/shard-000000.tar: not fetched in 4 .*hangs up") as error:
        fetch(url, folder=tmp_path / "b")
    assert "s3cret" not in str(error.value)
    Store.fail = 0
    Store().pipe("s3://bucket/set/SHA256SUMS", f"{'0' * 64}  shard-000000.tar\n".encode())
    with pytest.raises(OSError, match=r"its SHA-256 is .* and should be 0000"):
        fetch(url, folder=tmp_path / "c")
    with pytest.raises(OSError, match="the store has no such object"):
        fetch("s3://bucket/set/none.tar", folder=tmp_path)


def test_a_store_without_its_package_names_it(tmp_path, monkeypatch):
    import fsspec

    def none(scheme):
        raise ImportError("Install gcsfs")

    monkeypatch.setattr(fsspec, "filesystem", none)
    with pytest.raises(OSError, match=r"^gs://bucket/a\.tar: gs:// needs the package gcsfs: pip install gcsfs"):
        fetch("gs://bucket/a.tar", folder=tmp_path)


# -- commands ----------------------------------------------------------------------------------------------


def test_a_command_is_run_where_that_is_allowed(shards, tmp_path):
    spec = f"pipe:cat {shards[0].parent}/shard-00000{{0..2}}.tar | cat"
    paths = expand_shards(spec, cache=tmp_path, allow_pipe=True)
    assert [path.name for path in paths] == [path.name for path in shards]
    assert ShardSet(paths).fingerprints() == ShardSet(shards).fingerprints()


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("cat {shard}; echo no more >&2; exit 3", "2 attempts .* ended with code 3: no more"),
        ("no-such-program-here {shard}", "ended with code 127"),
        ("head -c 5000 {shard}; kill -9 $$", "ended with code -9"),
        ("cat {shard}; sleep 50", r"silent for 0\.6 s"),
        ("exec sleep 50", r"silent for 0\.6 s"),
        ("exec >&-; sleep 50", r"did not end in 0\.6 s"),
        ("true", "it is empty"),
        ("echo '<html>'", "a page, not a tar"),
    ],
)
def test_a_command_that_fails_leaves_nothing(shards, tmp_path, command, said):
    with pytest.raises(OSError, match=f"^pipe:{command.split()[0]} \\.\\.\\.: .*{said}"):
        fetch(f"pipe:{command.format(shard=shards[0])}", folder=tmp_path, allow_pipe=True, limits=TWICE)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "lock"]


def test_what_a_silent_command_started_ends_with_it(tmp_path):
    with pytest.raises(OSError, match="silent"):
        fetch("pipe:sleep 51.2507 & sleep 51.2507", folder=tmp_path, allow_pipe=True, limits=TWICE)
    end = time.monotonic() + 10
    while any(b"51.2507" in command for command in commands()):
        assert time.monotonic() < end
        time.sleep(0.05)


def commands():
    """Command lines of all processes."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            yield path.read_bytes()


def test_no_command_is_reached_otherwise(server, hub, tmp_path, monkeypatch):
    """From lists of shards, redirects and checksums; tests/test_remote_training.py tries configurations."""
    monkeypatch.setattr(caches, "Limits", lambda: QUICK)
    bait = tmp_path / "bait"
    tried = [
        "pipe:touch {}", "PIPE:touch {}", " pipe:touch {}", "pipe::touch {}", "|touch {}", "$(touch {})",
        "`touch {}`", "; touch {}", "file://pipe:touch {}", "https://pipe:touch {}", "s3::pipe:touch {}",
        "pipe://touch {}", "{{a,pipe:touch {}}}", "{{pipe:,x}}touch {}", "http+pipe:touch {}",
        "https://127.0.0.1:1/$(touch {}).tar", "https://127.0.0.1:1/a.tar;touch {}",
        hub.replace("set/", ";touch {};"), hub.replace("shard", "$(touch {})"), hub.replace("tree/", "|touch {}/"),
    ]  # fmt: skip
    for spec in (spec.format(bait) for spec in tried):
        with pytest.raises((ValueError, OSError)):
            expand_shards([spec], cache=tmp_path / "c")
        with pytest.raises((ValueError, OSError)):
            fetch(spec, folder=tmp_path / "c")
    server.files["/set/SHA256SUMS"] = f"{'0' * 64}  pipe:touch {bait}\npipe:touch {bait}\n".encode()
    server.does(FIRST, lab.redirect(f"pipe:touch%20{bait}"))
    with pytest.raises(OSError, match="redirects from http: to pipe:"):
        fetch(server.url + FIRST, folder=tmp_path / "c")
    assert not bait.exists()


def test_the_command_line_reads_shards_from_elsewhere(server, tmp_path, capsys):
    from bioclip_hc.cli import main

    url = server.url.replace("http://", "http://ann:s3cret@") + "/set/shard-{000000..000002}.tar"
    page = tmp_path / "page.html"
    words = [
        "shards",
        "inspect",
        url,
        "--cache",
        str(tmp_path / "cache"),
        "--processes",
        "1",
        "--output",
        str(page),
    ]
    assert main(words) == 0
    printed = capsys.readouterr()
    assert "48 samples in 3 shards" in printed.out
    assert "fetched 3 of 3 remote shards" in printed.err
    assert "s3cret" not in printed.out + printed.err + page.read_text()
    assert main(["shards", "inspect", "pipe:touch x"]) == 2
    assert "only with --allow-pipe on the command line" in capsys.readouterr().err
