"""bioclip-hc shards from the command line: what is printed, written and returned."""

import csv
import io
import json
import shutil
import signal
import subprocess
import sys
import textwrap

import pytest
from PIL import Image
from shards_by_hand import ROBIN_TAG, robin, write_tar
from small_run import LINEAGES, environment, picture, write_pictures

from bioclip_hc.cli import main
from bioclip_hc.data.shards import ShardSet
from bioclip_hc.taxonomy import RANKS


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with shards/, photos/ and labels.csv."""
    folder = tmp_path_factory.mktemp("shards")
    write_pictures(folder / "shards", 24)
    (folder / "photos").mkdir()
    with (folder / "labels.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["filepath", *RANKS, "common_name"])
        for i in range(12):
            (folder / "photos" / f"bird {i}.jpg").write_bytes(picture(i, (40 + 10 * i, 36)))
            table.writerow([f"photos/bird {i}.jpg", *LINEAGES[i % 6], ""])
    return folder


@pytest.fixture
def run(capsys):
    """Runs `bioclip-hc shards WORDS`; returns code, stdout, stderr."""

    def run(*words):
        code = main(["shards", *map(str, words)])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


def checked(folder):
    """What sha256sum says of a folder's shards."""
    return subprocess.run(
        ["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=folder, capture_output=True
    ).returncode


# -- build


def test_build_with_a_holdout(run, place, tmp_path):
    words = ("build", tmp_path / "out", "--csv", place / "labels.csv", "--holdout", "0.5", "--processes", "1")
    code, out, _ = run(*words)
    assert code == 0
    assert "train: 6 photographs, 1 shard file\n" in out
    assert "heldout: 6 photographs, 1 shard file\n" in out
    for part in ("train", "heldout"):
        assert sorted(path.name for path in (tmp_path / "out" / part).iterdir()) == [
            "SHA256SUMS", "shard-000000.tar", "shard-000000.tar.index.json",
        ]  # fmt: skip
        assert checked(tmp_path / "out" / part) == 0
    assert run("index", tmp_path / "out" / "train", tmp_path / "out" / "heldout", "--check")[:2] == (
        0, "2 shards, nothing stale\n",
    )  # fmt: skip
    code, _, err = run(*words)  # again, over what is there
    assert code == 2
    assert str(tmp_path / "out" / "train") in err


def test_a_build_that_fails_in_its_second_part_leaves_no_shard(run, tmp_path):
    rows = [(f"{i}.jpg", *LINEAGES[0]) for i in range(2)]
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("filepath", *RANKS), *rows])
    for path, *_ in rows:
        (tmp_path / path).write_bytes(picture(0))
    words = ("--csv", tmp_path / "labels.csv", "--holdout", "0.5", "--processes", "1")
    assert run("build", tmp_path / "whole", *words)[0] == 0
    held_out = ShardSet(tmp_path / "whole" / "heldout").key(0)
    (tmp_path / f"{held_out[-1]}.jpg").write_bytes(b"torn")  # now heldout/ has no picture, when train/ is written
    code, _, err = run("build", tmp_path / "out", *words)
    assert (code, f"none of the 1 photograph for {tmp_path / 'out' / 'heldout'} can be used" in err) == (2, True)
    assert f"left out {tmp_path / held_out[-1]}.jpg: " in err
    assert not (tmp_path / "out").exists()


def test_build_from_folders(run, tmp_path):
    for i, lineage in enumerate(LINEAGES[:3]):
        folder = tmp_path / "photos" / "_".join([f"{i:05d}", *lineage])
        folder.mkdir(parents=True)
        (folder / "a.jpg").write_bytes(picture(i))
    code, out, _ = run("build", tmp_path / "out", "--folders", tmp_path / "photos", "--processes", "2")
    assert (code, "3 photographs" in out) == (0, True)
    assert [ShardSet(tmp_path / "out").read(i).lineage for i in range(3)] == LINEAGES[:3]


def test_what_a_build_cannot_begin_with_is_told_before_it_begins(run, place, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, err = run("build", tmp_path / "file" / "out", "--csv", place / "labels.csv")
    assert (code, f"{tmp_path / 'file'} is a file, not a folder for shards" in err) == (2, True)
    words = ("build", tmp_path / "out", "--csv", place / "labels.csv", "--holdout", "0.01")
    code, _, err = run(*words)
    assert (code, f"leaves none for {tmp_path / 'out' / 'heldout'}" in err) == (2, True)
    assert not (tmp_path / "out").exists()


def test_a_folder_within_a_species_folder_is_told(run, tmp_path):
    folder = tmp_path / "photos" / "_".join(["00000", *LINEAGES[0]])
    (folder / "more").mkdir(parents=True)
    for name in ("a.jpg", "more/b.jpg"):
        (folder / name).write_bytes(picture(0))
    code, out, err = run("build", tmp_path / "out", "--folders", tmp_path / "photos", "--processes", "1")
    assert (code, "1 photograph, 1 shard file" in out) == (1, True)
    assert f"left out {folder / 'more'}: a folder within a taxon's folder, its 1 files are not read" in err


def test_build_makes_large_pictures_smaller_and_no_other(run, place, tmp_path):
    words = ("build", tmp_path / "out", "--csv", place / "labels.csv", "--max-side", "100", "--processes", "2")
    assert run(*words)[0] == 0
    shards = ShardSet(tmp_path / "out")
    for i in range(12):
        original = (place / "photos" / f"bird {i}.jpg").read_bytes()
        with Image.open(io.BytesIO(shards.read(i).image)) as image:
            assert image.size == ((40 + 10 * i, 36) if i <= 6 else (100, round(36 * 100 / (40 + 10 * i))))
        assert (shards.read(i).image == original) == (i <= 6)


def test_a_broken_photograph_does_not_stop_a_build(run, place, tmp_path):
    text = (place / "labels.csv").read_text().replace("photos/", f"{place}/photos/")
    for i in (3, 5):
        text = text.replace(f"{place}/photos/bird {i}.jpg", f"torn{i}.jpg")
        (tmp_path / f"torn{i}.jpg").write_bytes(picture(0)[: 50 + i])
    (tmp_path / "labels.csv").write_text(text)
    code, out, err = run("build", tmp_path / "out", "--csv", tmp_path / "labels.csv")
    assert code == 1
    assert "10 photographs" in out
    assert "torn3.jpg" in err
    assert "torn5.jpg" in err
    (line,) = [line for line in out.splitlines() if line.startswith("         2  ")]  # both for one reason
    assert "torn3.jpg" in line


# -- shards that there are


@pytest.fixture
def copy(place, tmp_path):
    """A copy of the shards, without what lies beside them."""
    (tmp_path / "copy").mkdir()
    for path in (place / "shards").glob("*.tar"):
        shutil.copy(path, tmp_path / "copy")
    return tmp_path / "copy"


def damage(folder):
    """Spoil a picture; returns its shard and key."""
    shards = ShardSet(folder)
    data = shards.shard(3).read_bytes()
    shards.shard(3).chmod(0o644)
    image = shards.read(3).image
    shards.shard(3).write_bytes(data.replace(image, bytes(len(image))))
    return shards.shard(3), shards.key(3)


def test_index(run, copy):
    assert run("index", copy, "--check")[0] == 1
    code, out, _ = run("index", copy)
    assert (code, out.splitlines()[-1]) == (0, "2 shards; 4 things mended")
    assert checked(copy) == 0
    assert run("index", copy, "--check")[:2] == (0, "2 shards, nothing stale\n")
    shard, _ = damage(copy)
    code, out, _ = run("index", copy)
    assert (code, f"{shard} is not what SHA256SUMS says\n" in out) == (1, True)
    assert checked(copy) != 0
    assert run("index", copy, "--accept")[0] == 0
    assert checked(copy) == 0


def test_verify(run, copy):
    code, out, _ = run("verify", copy)
    assert code == 0
    assert "24 samples, 24 pictures decode" in out
    assert "1 folder without SHA256SUMS" in out
    assert out.endswith("nothing wrong\n")
    run("index", copy)
    shard, key = damage(copy)
    code, out, _ = run("verify", copy, "--jsonl", copy / "findings.jsonl", "--processes", "2")
    assert code == 1
    assert "24 samples, 23 pictures decode" in out
    assert "2 findings" in out
    lines = [json.loads(line) for line in (copy / "findings.jsonl").read_text().splitlines()]
    assert [(line["kind"], line["shard"], line["key"]) for line in lines] == [
        ("checksum", str(shard), ""), ("picture", str(shard), key),
    ]  # fmt: skip
    assert all(line["reason"] for line in lines)


def test_verify_looks_flat_captions_up(run, tmp_path):
    members = {}
    for key, name in (("1", "Turdus merula"), ("2", "Nemo nemo")):
        members |= {f"{key}.jpg": picture(0), f"{key}.txt": f"a photo of {name}.".encode()}
    write_tar(tmp_path / "flat.tar", members)
    with (tmp_path / "taxa.csv").open("w", newline="") as file:
        csv.writer(file).writerows([RANKS, *LINEAGES])
    (tmp_path / "more.csv").write_text("synonym,accepted\nNemo nemo,Corvus corax\n")
    code, out, _ = run("verify", tmp_path / "flat.tar")
    assert (code, "2 samples with flat captions only" in out) == (0, True)
    code, out, _ = run("verify", tmp_path / "flat.tar", "--taxonomy", tmp_path / "taxa.csv")
    assert (code, "name '...' is not in the taxonomy" in out) == (1, True)
    both = ("--taxonomy", tmp_path / "taxa.csv", "--synonyms", tmp_path / "more.csv")
    assert run("verify", tmp_path / "flat.tar", *both)[0] == 0
    code, out, _ = run("inspect", tmp_path / "flat.tar", *both)
    assert "taxa of 2 samples: 1 by name, 1 by synonym" in out
    assert "has every taxon that they name" in out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["individual"], "heldout: 12 samples of 6 lineages"),
        (["individual", "--fraction", "0.75"], "heldout: 6 samples of 6 lineages"),
        (["species", "--species", "2"], "held out 2 of 5 species"),
        (["species", "--share", "0.4"], "held out 2 of 5 species"),
        (["species", "--list", "LIST"], "held out 1 of 5 species; in training keep 1 their genus"),
    ],
)
def test_split(run, place, tmp_path, words, told):
    (tmp_path / "list").write_text("Turdus merula\n")
    words = [tmp_path / "list" if word == "LIST" else word for word in words]
    code, out, _ = run("split", place / "shards", tmp_path / "out", "--by", *words)
    assert (code, told in out) == (0, True)
    parts = [ShardSet(tmp_path / "out" / part) for part in ("train", "heldout")]
    assert sum(map(len, parts)) == 24
    assert run("verify", tmp_path / "out" / "train", tmp_path / "out" / "heldout")[1].endswith("nothing wrong\n")
    assert run("split", place / "shards", tmp_path / "out", "--by", *words)[0] == 2  # over what is there
    if words[0] == "species":
        again = ("--list", tmp_path / "out" / "heldout-species.txt")
        assert run("split", place / "shards", tmp_path / "again", "--by", "species", *again)[0] == 0
        for path in (tmp_path / "out").rglob("*.tar"):
            assert (tmp_path / "again" / path.relative_to(tmp_path / "out")).read_bytes() == path.read_bytes()


def test_split_tells_what_it_leaves_out(run, tmp_path):
    members = {f"{i}.{end}": data for i in range(4) for end, data in (("jpg", picture(i)), ("pkl", b"x"))}
    write_tar(tmp_path / "s.tar", members | {f"{i}.taxonTag.txt": ROBIN_TAG.encode() for i in range(4)})
    assert run("split", tmp_path / "s.tar", tmp_path / "out", "--by", "individual")[0] == 2  # none is usable
    members = {name: data for i in range(4) for name, data in robin(f"{i}", jpg=picture(i), pkl=b"x").items()}
    write_tar(tmp_path / "s.tar", members | {"lost.jpg": b"x"})
    code, out, _ = run("split", tmp_path / "s.tar", tmp_path / "out", "--by", "individual")
    assert code == 1
    assert "neither pictures nor texts: 4 .pkl" in out
    assert "left out 1 unusable records" in out


def test_inspect(run, place, tmp_path):
    code, out, _ = run("inspect", place / "shards", "--output", tmp_path / "page.html", "--pictures", "7")
    assert code == 0
    assert "24 samples in 2 shards" in out
    assert [line.split()[:2] for line in out.splitlines() if " taxa " in line and "known" in line] == [
        [rank, str(len({lineage[: r + 1] for lineage in LINEAGES if lineage[r]}))] for r, rank in enumerate(RANKS)
    ]
    assert "Aves 12" in out
    html = (tmp_path / "page.html").read_text()
    assert html.count("<figure") == 7
    code, out, err = run(
        "inspect", place / "shards", "--json", "--output", tmp_path / "page.html", "--headers", "9"
    )
    assert code == 0
    assert "page.html" in err
    found = json.loads(out)
    assert (found["samples"], found["pictures"]["looked_at"]) == (24, 9)
    assert found["ranks"][3] == {"rank": "order", "taxa": 3, "known": 20, "missing": 4}


def test_ctrl_c_ends_at_once_in_one_line(place):
    script = """
        import signal, sys, time
        signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts behind itself ignores it
        from bioclip_hc.cli import main
        from bioclip_hc.data import seal
        def slow(path, check):
            print("at work\\n", end="", flush=True)  # in one piece: two workers say it
            time.sleep(600)
        seal._examine = slow
        sys.exit(main(sys.argv[1:]))
    """
    command = [
        sys.executable,
        "-c",
        textwrap.dedent(script),
        "shards",
        "index",
        place / "shards",
        "--processes",
        "2",
    ]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment(), **pipes) as process:
        assert process.stdout.readline() == "at work\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert process.stderr.read() == "bioclip-hc: interrupted\n"


# -- mistakes


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["build", "OUT", "--csv", "nowhere.csv"], "nowhere.csv"),
        (["build", "OUT", "--folders", "EMPTY"], "no folders"),
        (["build", "OUT", "--folders", "EMPTY", "--holdout", "1"], "--holdout is a share in [0, 1), got 1.0"),
        (["index", "EMPTY"], "no *.tar in this folder"),
        (["verify", "nowhere"], "nowhere"),
        (["verify", "SHARDS", "--jsonl", "nowhere/f.jsonl"], "nowhere/f.jsonl"),
        (["verify", "SHARDS", "--synonyms", "LIST"], "--synonyms goes with --taxonomy"),
        (["inspect", "nowhere"], "nowhere"),
        (["inspect", "SHARDS", "--taxonomy", "nowhere.csv"], "nowhere.csv"),
        (["inspect", "SHARDS", "--output", "nowhere/page.html"], "nowhere/page.html"),
        (
            ["split", "SHARDS", "OUT", "--by", "individual", "--fraction", "1"],
            "must be in (0, 1), got 1.0",
        ),
        (["split", "SHARDS", "OUT", "--by", "individual", "--species", "1"], "go with --by species"),
        (["split", "SHARDS", "OUT", "--by", "species"], "takes one of --species, --share, --list"),
        (["split", "SHARDS", "OUT", "--by", "species", "--species", "5"], "from 1 to 4 of 5 species"),
        (["split", "SHARDS", "OUT", "--by", "species", "--share", "1.5"], "--share must be in (0, 1), got 1.5"),
        (["split", "SHARDS", "OUT", "--by", "species", "--list", "nowhere.txt"], "nowhere.txt"),
        (["split", "SHARDS", "OUT", "--by", "species", "--list", "LIST"], "'Canis lupus'; a line holds"),
    ],
)
def test_mistakes_are_one_line_and_code_2(run, place, tmp_path, words, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "list").write_text("Turdus merula\nCanis lupus\n")
    known = {
        "SHARDS": place / "shards",
        "EMPTY": tmp_path / "empty",
        "LIST": tmp_path / "list",
        "OUT": tmp_path / "o",
    }
    code, _, err = run(*(known.get(word, word) for word in words))
    assert code == 2
    assert message in err
    assert err.startswith("bioclip-hc: ")
    assert len(err.strip().splitlines()) == 1
    assert not list(tmp_path.rglob("*.tar"))


def test_a_reader_that_has_seen_enough_is_no_error(place):
    """`bioclip-hc shards index ... | head -n 0`: the pipe is closed before anything is written."""
    command = [sys.executable, "-m", "bioclip_hc.cli", "shards", "index", str(place / "shards")]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(60) == 0
    process.stderr.close()
