"""bioclip-hc shards from the command line: what is printed, written and returned."""

import csv
import io
import subprocess
import sys

import pytest
from PIL import Image
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
    assert "train: 6 photographs, 1 shard files" in out
    assert "heldout: 6 photographs, 1 shard files" in out
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


def test_a_build_that_fails_in_its_second_part_leaves_no_shard(run, place, tmp_path):
    lines = (place / "labels.csv").read_text().replace("photos/", f"{place}/photos/").splitlines()
    (tmp_path / "labels.csv").write_text("\n".join([lines[0], *lines[1::6]]))  # one taxon, two photographs
    words = ("build", tmp_path / "out", "--csv", tmp_path / "labels.csv", "--holdout", "0.5")
    broken = tmp_path / "out" / "heldout" / "shard-000000.tar"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"")
    assert run(*words)[0] == 2
    assert list((tmp_path / "out").rglob("*.tar")) == [broken]
    broken.unlink()
    assert run(*words)[0] == 0


def test_build_from_folders(run, tmp_path):
    for i, lineage in enumerate(LINEAGES[:3]):
        folder = tmp_path / "photos" / "_".join([f"{i:05d}", *lineage])
        folder.mkdir(parents=True)
        (folder / "a.jpg").write_bytes(picture(i))
    code, out, _ = run("build", tmp_path / "out", "--folders", tmp_path / "photos", "--processes", "2")
    assert (code, "3 photographs" in out) == (0, True)
    assert [ShardSet(tmp_path / "out").read(i).lineage for i in range(3)] == LINEAGES[:3]


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
    """`bioclip-hc shards inspect ... | head -n 0`: the pipe is closed before anything is written."""
    command = [sys.executable, "-m", "bioclip_hc.cli", "shards", "inspect", str(place / "shards")]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(60) == 0
    process.stderr.close()
