"""Photographs fetched from a real server that behaves well or badly, and CrypticBio, whose tables name such."""

import json
import re
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import remote_server as server_of
from test_layouts import jpeg, put, reasons, table

from bioclip_hc.data import pictures as module
from bioclip_hc.data.pictures import LIMITS, Pictures, picture_address
from bioclip_hc.evaluation.layouts import open_benchmark
from bioclip_hc.taxonomy import RANKS

QUICK = replace(LIMITS, connect=5.0, silence=1.0, backoff=0.01, longest=0.05)


@pytest.fixture
def server():
    with server_of.serving() as running:
        yield running


def serve(server, name: str, *behaviours, side: int = 64) -> str:
    server.files[f"/{name}"] = jpeg(side)
    return server.does(f"/{name}", *behaviours) if behaviours else f"{server.url}/{name}"


def fetched(folder: Path, *urls: str, limits=QUICK, **options) -> Pictures:
    pictures = Pictures(folder, limits)
    pictures.fetch([picture_address(url) for url in urls], **options)
    return pictures


# -- fetching


@pytest.mark.parametrize(
    "faults",
    [
        [],
        [server_of.status(503)],
        [server_of.status(429, Retry_After=1), server_of.cuts()],
        [server_of.silent],
        [server_of.stalls],
        [server_of.resets],
        [server_of.nonsense],
        [server_of.until_closed_cut],  # no length: what is wrong shows when it is decoded
        [server_of.chunked_cut],
        [server_of.redirect("/other.jpg")],
    ],
)
def test_what_mends_is_fetched_whole(server, tmp_path, faults):
    url = serve(server, "a.jpg", *faults, side=256)
    serve(server, "other.jpg", side=256)
    said: list[str] = []
    pictures = fetched(tmp_path / "images", url, say=said.append)
    address = picture_address(url)
    assert (tmp_path / "images" / pictures.file(address)).read_bytes() == jpeg(256)
    assert pictures.failure(address) is None
    assert sorted(p.name for p in (tmp_path / "images").iterdir()) == sorted(
        [address.key[:2], "failed.jsonl", "lock"]
    )
    assert "fetching 1 photographs from 127.0.0.1 (1)" in said[0]
    assert said[-1] == "fetched 1 of 1 photographs, 0 cannot be had"


@pytest.mark.parametrize(
    ("behaviour", "reason", "lasting"),
    [
        (server_of.status(404), "the server answers 404", True),
        (server_of.status(410), "the server answers 410", True),
        (server_of.status(403), "the server answers 403", True),
        (server_of.status(500), "the server answers 500", False),
        (server_of.page, "what the server sends is no photograph: not JPEG", True),
        (server_of.until_closed_cut, "what the server sends is damaged", False),
        (server_of.cuts(0), "the connection ended after 0 of", False),
        (server_of.stalls, "the server was silent", False),
        (server_of.redirect("file:///etc/passwd"), "redirects from http: to file:", True),
        (server_of.redirect("/a.jpg"), "redirects in a circle", True),
        (server_of.zipped, "encoded by gzip", True),
    ],
)
def test_what_does_not_mend_is_remembered_with_its_reason(server, tmp_path, behaviour, reason, lasting):
    url = serve(server, "a.jpg", *[behaviour] * 30, side=900)
    pictures = fetched(tmp_path, url)
    address = picture_address(url)
    assert not pictures.holds(address)
    failure = pictures.failure(address)
    assert reason in failure.reason
    assert failure.lasting == lasting
    assert Pictures(tmp_path).failure(address) == failure
    asked = len(server.asked)
    fetched(tmp_path, url)
    assert (len(server.asked) == asked) == lasting
    server.plan.clear()
    if not lasting or behaviour is not server_of.redirect:
        assert fetched(tmp_path, url, again=True).holds(address)


def test_a_cut_photograph_is_gone_on_with(server, tmp_path):
    url = serve(server, "a.jpg", server_of.cuts(0.5), side=900)
    fetched(tmp_path, url)
    assert [span for _, span in server.asked] == [None, f"bytes={len(jpeg(900)) // 2}-"]


def test_many_are_fetched_beside_each_other_and_each_once(server, tmp_path):
    gate = threading.Barrier(4, timeout=30)

    def together(handler, body):
        gate.wait()  # nobody is answered before four have asked
        server_of.well(handler, body)

    urls = [serve(server, f"{i}.jpg", together) for i in range(8)]
    pictures = fetched(tmp_path, *urls, *urls, at_once=4, limits=replace(QUICK, silence=30.0))
    assert all(pictures.holds(picture_address(url)) for url in urls)
    assert len(server.asked) == 8
    fetched(tmp_path, *urls)
    assert len(server.asked) == 8


def test_what_is_too_large_is_ended(server, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_IMAGE_BYTES", 5000)
    server.files["/large.jpg"] = jpeg() + b"\0" * (8 << 20)
    pictures = fetched(tmp_path, f"{server.url}/large.jpg")
    assert "larger than" in pictures.failure(picture_address(f"{server.url}/large.jpg")).reason
    assert not list(tmp_path.glob("*/*.jpg"))


def test_a_full_disk_ends_it_and_condemns_no_address(server, tmp_path, monkeypatch):
    url = serve(server, "a.jpg")
    usage = module.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(OSError, match="needs more room for photographs"):
        fetched(tmp_path, url)
    monkeypatch.undo()
    assert fetched(tmp_path, url).holds(picture_address(url))


def test_a_memory_of_failures_that_is_damaged_is_read_as_far_as_it_goes(tmp_path):
    good = json.dumps({"key": "a", "url": "u", "reason": "r", "lasting": True})
    lines = ["[" * 10_000, "null", good, "{}", '{"key": "b"', "x" * 100_000]
    put(tmp_path / "failed.jsonl", "\n".join(lines).encode() + b"\xff")
    assert Pictures(tmp_path)._failures == {"a": ("r", True)}


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://host/a.jpg",
        "data:image/png,x",
        "pipe:touch x",
        "hf://datasets/a/b@abcdef0/x.jpg",
        "s3://b/a.jpg",
        "a.jpg",
        "",
        "//host/a.jpg",
        "javascript:x",
        "C:\\a.jpg",
    ],
)
def test_other_schemes_are_refused(url):
    with pytest.raises(ValueError, match="is not of http or https, and others are not fetched"):
        picture_address(url)


@pytest.mark.parametrize(
    "url", ["http://", "https:///a.jpg", "http://[::1/a.jpg", "http://h/a\nb.jpg", "http://h/*"]
)
def test_what_is_no_url_is_refused(url):
    with pytest.raises(ValueError, match=r"URL|write http"):
        picture_address(url)


def test_names_of_files_stay_in_the_folder():
    for url in (
        "http://h/../../etc/passwd.jpg",
        "http://h/a/%2e%2e/%2e%2e/b.PNG?x=/../y",
        "http://h/" + "x" * 5000,
    ):
        assert re.fullmatch(r"[0-9a-f]{2}/[0-9a-f]{32}\.(jpg|png)", Pictures("x").file(picture_address(url)))
    assert "secret" not in str(picture_address("http://user:secret@h/a.jpg?token=secret"))


# -- CrypticBio

HEADER = ("scientificName", "year", "month", "day", "decimalLatitude", "decimalLongitude", "url")
HEADER += (*RANKS[:-1], "vernacularName")
LADYBIRD = ("Animalia", "Arthropoda", "Insecta", "Coleoptera", "Coccinellidae", "Olla", "v-nigrum")
LIZARD = ("Animalia", "Chordata", "Squamata", "", "Lacertidae", "Podarcis", "siculus")


def row(url: str, lineage=LADYBIRD, common: str = "") -> tuple:
    return (f"{lineage[5]} {lineage[6]}", 2020.0, 5.0, 17.0, 45.1, 7.2, url, *lineage[:6], common)


def crypticbio(folder: Path, *rows, name: str = "CrypticBio-Common.csv") -> Path:
    return table(folder / name, rows, HEADER)


def test_crypticbio_as_published(server, tmp_path):
    urls = [serve(server, f"photos/{i}/original.jpg") for i in range(3)]
    dead = server.does("/photos/9/original.jpg", *[server_of.status(404)] * 5)
    path = crypticbio(
        tmp_path,
        row(urls[0], common="Ashy Gray Lady Beetle"),
        row(urls[1], LIZARD, "['Italian Wall Lizard']"),
        row(urls[0]),
        row(dead, LIZARD),
        row("ftp://host/x.jpg"),
        row(""),
        row(urls[2]),
    )
    with pytest.raises(ValueError, match=r"no picture is below .*images; .*not http|not of http"):
        open_benchmark("crypticbio", path)
    assert not server.asked  # nothing is fetched unless that is asked for
    benchmark = open_benchmark("crypticbio", path, download=True)
    assert [benchmark.photographs.lineages[i] for i in benchmark.photographs.lineage_index] == [
        LADYBIRD,
        LIZARD,
        LADYBIRD,
    ]
    assert (benchmark.name, benchmark.ranks) == ("CrypticBio common", (3, 4, 5, 6))
    assert benchmark.photographs.read(0).image == jpeg(64)
    found = "\n".join(reasons(benchmark))
    assert len(benchmark.left_out) == 4
    for part in (
        "line 6: the address 'ftp://host/x.jpg' is not of http or https",
        "line 7: neither an address nor a path",
        f"line 4: its picture is that of {path}, line 2 already",
        "line 5: dead address: the server answers 404",
    ):
        assert part in found
    assert any(line.startswith("left out 1: dead address: the server answers N") for line in benchmark.lines())
    assert "3 of 15,801 photographs, 2 of 158 species" in benchmark.notes[0]
    assert benchmark.taxonomy.extra["common_name"].count("Ashy Gray Lady Beetle") == 1
    assert "".join(benchmark.taxonomy.extra["common_name"]) == "Ashy Gray Lady Beetle"
    asked = len(server.asked)
    again = open_benchmark("crypticbio", path)
    assert again.left_out == benchmark.left_out
    assert len(server.asked) == asked
    open_benchmark("crypticbio", path, download=True)
    assert len(server.asked) == asked
    server.plan.clear()
    serve(server, "photos/9/original.jpg")
    assert len(open_benchmark("crypticbio", path, download=True, retry_dead=True).photographs) == 4


def test_pictures_that_others_fetched_are_found(tmp_path):
    url = "https://inaturalist-open-data.s3.amazonaws.com/photos/207457311/original.jpg"
    path = crypticbio(tmp_path, row(url), row(url.replace("207", "208"), LIZARD))
    mirror = tmp_path / "mirror"
    put(mirror / "inaturalist-open-data.s3.amazonaws.com" / "photos" / "207457311" / "original.jpg")
    benchmark = open_benchmark("crypticbio", path, images=mirror)
    assert len(benchmark.photographs) == 1
    assert "not fetched; its picture is not below" in reasons(benchmark)[0]
    header = (
        "id",
        "kingdom",
        "phylum",
        "cls",
        "order",
        "family",
        "genus",
        "species",
        "common_name",
        "filepath",
        "class",
    )
    put(tmp_path / "images" / "train" / "0.jpg")
    prepared = table(
        tmp_path / "metadata.csv",
        [
            (0, *LIZARD[:6], "Podarcis siculus", "", path, "Podarcis siculus")
            for path in ("images/train/0.jpg", "../x")
        ],
        header,
    )
    benchmark = open_benchmark("crypticbio", prepared)
    assert benchmark.photographs.lineages == [LIZARD]
    assert "leads out of the folder" in reasons(benchmark)[0]


def test_parts_in_parquet(server, tmp_path):
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    for i, lineage in ((10, LIZARD), (9, LADYBIRD)):
        columns = dict(zip(HEADER, zip(row(serve(server, f"{i}.jpg"), lineage), strict=True), strict=True))
        columns["order"] = [lineage[3] or None]
        columns["crypticGroup"] = [["Olla v-nigrum", "Harmonia axyridis"]]
        schema = pa.table({key: list(value) for key, value in columns.items()})
        parquet.write_table(schema, tmp_path / f"part_{i}.parquet")
    benchmark = open_benchmark("crypticbio", tmp_path, download=True, images=tmp_path / "pictures")
    assert benchmark.photographs.lineages == [LADYBIRD, LIZARD]
    assert benchmark.name == "CrypticBio part_9, part_10"
    parts = [tmp_path / "part_10.parquet"]
    assert len(open_benchmark("crypticbio", parts, images=tmp_path / "pictures").photographs) == 1


def test_of_several_tables_one_must_be_named(tmp_path):
    names = ["CrypticBio-Common.csv", "CrypticBio-CommonUnseen.csv", "CrypticBio-Endagered.csv"]
    url = "http://h.org/a.jpg"
    for name in names:
        crypticbio(tmp_path / "CrypticBio-Benchmark", row(url), name=name)
    put(tmp_path / "CrypticBio-Benchmark" / "images" / "h.org" / "a.jpg")
    with pytest.raises(ValueError, match=r"holds several tables \(CrypticBio-Benchmark/CrypticBio-Common.csv, "):
        open_benchmark("crypticbio", tmp_path)
    for split, name in (("endangered", "endangered"), ("common-unseen", "common-unseen")):
        assert open_benchmark("crypticbio", tmp_path, split=split).name == f"CrypticBio {name}"
    with pytest.raises(FileNotFoundError, match=r"no CrypticBio-Invasive.csv in it"):
        open_benchmark("crypticbio", tmp_path, split="invasive")
    with pytest.raises(ValueError, match="split 'x' is none of common"):
        open_benchmark("crypticbio", tmp_path, split="x")
    with pytest.raises(FileNotFoundError, match="neither a table"):
        open_benchmark("crypticbio", tmp_path / "CrypticBio-Benchmark" / "images")
    with pytest.raises(ValueError, match="no column 'url' or 'file_name'"):
        open_benchmark("crypticbio", table(tmp_path / "t.csv", [LADYBIRD], RANKS))
